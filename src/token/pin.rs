//! Where the PIN comes from. It is read anew for each login, handed over once and wiped.
//!
//! Besides, somebody can be asked for it, see [`super::terminal`]. It is never kept, and never comes from
//! a command line, the environment or the configuration's text, all of which other programs can read.
//! While it is here its page is locked, so that it is not swapped out; what the token's module makes of
//! it is the module's to protect.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use region::LockGuard;
use secrecy::{ExposeSecretMut, SecretBox};
use zeroize::Zeroize;

/// The longest PIN taken, in bytes. PKCS#11 modules stop at 255 or well before.
const PIN_MAX: usize = 256;

/// Where the PIN is read at each login.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PinSource {
    /// A systemd credential (`LoadCredential=`, `LoadCredentialEncrypted=`) of this name.
    /// systemd sees to who can read it.
    Credential(String),
    /// A file that belongs to root or to the daemon's user, readable by its owner alone.
    File(PathBuf),
    /// Somebody at this process's terminal, who is asked each time.
    Terminal,
}

/// Why there is no PIN.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// A credential is wanted, but systemd gave none.
    #[error(
        "the PIN is to come from the credential `{0}`, but CREDENTIALS_DIRECTORY is not set: \
             not started by systemd, or without LoadCredential="
    )]
    NoCredentials(String),
    /// A credential's name that is not a file name.
    #[error("`{0}` cannot be the name of a credential")]
    CredentialName(String),
    /// The file cannot be opened or read.
    #[error("couldn't read the PIN from {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A folder, pipe, socket or device.
    #[error("the PIN file {} is not a regular file", .0.display())]
    NotAFile(PathBuf),
    /// Others than its owner can use the file.
    #[error("the PIN file {path} has mode {mode:04o}, so others than its owner can use it: chmod 600 {path}",
            path = path.display())]
    Mode {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file belongs to somebody who is neither root nor the daemon's user.
    #[error("the PIN file {} belongs to uid {uid}, who could change it: it must be root's or the daemon's", path.display())]
    Owner {
        /// The file.
        path: PathBuf,
        /// Its owner.
        uid: u32,
    },
    /// Nothing in it, save perhaps a line feed.
    #[error("the PIN file {} is empty", .0.display())]
    Empty(PathBuf),
    /// Nobody could be asked, or nobody answered.
    #[error("couldn't ask for the PIN on the terminal: {0}")]
    Terminal(io::Error),
    /// More than a PIN can be.
    #[error("the PIN file {} holds more than {PIN_MAX} bytes, which is no PIN", .0.display())]
    TooLong(PathBuf),
}

/// A PIN in memory that is not swapped out.
pub(super) struct Pin {
    // Before the memory is given back: what is not mapped any more cannot be unlocked.
    _locked: Option<LockGuard>,
    pub(super) secret: SecretBox<Vec<u8>>,
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pin")
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        // Before its page is unlocked.
        self.secret.expose_secret_mut().zeroize();
    }
}

/// What can be said of a PIN that is there, without saying it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PinFound {
    /// The file that it was read from.
    pub path: PathBuf,
    /// The file's permission bits.
    pub mode: u32,
    /// Who owns the file.
    pub uid: u32,
}

impl PinSource {
    /// Holds the source against what the daemon's user `uid` wants of it. The PIN is read, and wiped.
    ///
    /// # Errors
    /// [`PinError`], as at a login; for a source that asks somebody, too: nobody is asked.
    pub fn look(&self, uid: u32) -> Result<PinFound, PinError> {
        let path = self.path()?;
        let is_file = matches!(self, PinSource::File(_));
        drop(read_pin(&path, is_file.then_some(uid))?);
        let metadata = path.metadata().map_err(|source| PinError::Read { path: path.clone(), source })?;
        Ok(PinFound { mode: metadata.mode() & 0o7777, uid: metadata.uid(), path })
    }

    fn path(&self) -> Result<PathBuf, PinError> {
        match self {
            PinSource::File(path) => Ok(path.clone()),
            PinSource::Credential(name) => {
                if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\0']) {
                    return Err(PinError::CredentialName(name.clone()));
                }
                let directory = std::env::var_os("CREDENTIALS_DIRECTORY")
                    .ok_or_else(|| PinError::NoCredentials(name.clone()))?;
                Ok(Path::new(&directory).join(name))
            }
            PinSource::Terminal => {
                Err(PinError::Terminal(io::Error::new(io::ErrorKind::Unsupported, "it is not in a file")))
            }
        }
    }

    /// Reads the PIN, without the one line feed that may end it. The bytes need not be UTF-8.
    pub(super) fn read(&self) -> Result<Pin, PinError> {
        match self {
            PinSource::File(path) => read_pin(path, Some(nix::unistd::geteuid().as_raw())),
            PinSource::Credential(_) => read_pin(&self.path()?, None),
            PinSource::Terminal => {
                // It was typed into memory that is not locked; a program with a person before it is short.
                let secret =
                    super::terminal::ask("PIN of the token: ", PIN_MAX).map_err(PinError::Terminal)?;
                Ok(Pin { _locked: None, secret })
            }
        }
    }
}

/// `user` is whose the file must be, if not root's, and closed to all others; `None` where somebody else sees
/// to that.
fn read_pin(path: &Path, user: Option<u32>) -> Result<Pin, PinError> {
    let failed = |source| PinError::Read { path: path.to_owned(), source };
    // What was opened is judged, not what the path names by then. Without O_NONBLOCK a pipe
    // would hang us before it could be refused.
    let file =
        File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(PinError::NotAFile(path.to_owned()));
    }
    if let Some(user) = user {
        let mode = metadata.mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(PinError::Mode { path: path.to_owned(), mode });
        }
        let uid = metadata.uid();
        if uid != 0 && uid != user {
            return Err(PinError::Owner { path: path.to_owned(), uid });
        }
    }

    // Room for the longest PIN, its line feed and one byte too many, so that the buffer never
    // moves and leaves a copy behind. `SecretBox` wipes the whole of it.
    const ROOM: usize = PIN_MAX + 2;
    let mut pin = SecretBox::new(Box::new(vec![0; ROOM]));
    let bytes = pin.expose_secret_mut();
    let locked = region::lock(bytes.as_ptr(), ROOM)
        .inspect_err(
            |error| tracing::warn!(%error, "couldn't lock the memory of the PIN; reading it all the same"),
        )
        .ok();
    let mut length = 0;
    while length < ROOM {
        match (&file).read(&mut bytes[length..]) {
            Ok(0) => break,
            Ok(n) => length += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failed(error)),
        }
    }
    bytes.truncate(length);
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
    }
    match bytes.len() {
        0 => Err(PinError::Empty(path.to_owned())),
        1..=PIN_MAX => Ok(Pin { secret: pin, _locked: locked }),
        _ => Err(PinError::TooLong(path.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use secrecy::ExposeSecret;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    fn file(content: &[u8], mode: u32) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("pin");
        fs::write(&path, content).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("mode set");
        (dir, path)
    }

    fn read(content: &[u8], mode: u32) -> Result<Vec<u8>, PinError> {
        let (_dir, path) = file(content, mode);
        PinSource::File(path).read().map(|pin| pin.secret.expose_secret().clone())
    }

    #[test]
    fn one_line_feed_is_taken_off_and_nothing_else() {
        for (content, pin) in [
            (&b"1234"[..], &b"1234"[..]),
            (b"1234\n", b"1234"),
            (b"1234\n\n", b"1234\n"),
            (b" 12 \r\n", b" 12 \r"),
            (b"\xff\x00", b"\xff\x00"),
        ] {
            assert_eq!(read(content, 0o600).expect("a PIN"), pin);
        }
        assert_eq!(read(&[b'7'; PIN_MAX], 0o400).expect("a PIN").len(), PIN_MAX);
        let mut longest = [b'7'; PIN_MAX + 1];
        longest[PIN_MAX] = b'\n';
        assert_eq!(read(&longest, 0o600).expect("a PIN").len(), PIN_MAX);
    }

    #[test]
    fn what_cannot_be_a_pin_is_refused() {
        assert!(matches!(read(b"", 0o600), Err(PinError::Empty(_))));
        assert!(matches!(read(b"\n", 0o600), Err(PinError::Empty(_))));
        assert!(matches!(read(&[b'7'; PIN_MAX + 1], 0o600), Err(PinError::TooLong(_))));
        assert!(matches!(read(&[b'7'; 5000], 0o600), Err(PinError::TooLong(_))));
    }

    #[test]
    fn a_file_that_others_can_use_is_refused_with_the_fix() {
        for mode in [0o644, 0o640, 0o604, 0o620, 0o601] {
            let error = read(b"1234", mode).expect_err("refused");
            let text = error.to_string();
            assert!(matches!(error, PinError::Mode { mode: found, .. } if found == mode), "{text}");
            assert!(text.contains(&format!("{mode:04o}")) && text.contains("chmod 600 "), "{text}");
        }
    }

    #[test]
    fn only_a_regular_file_is_read() {
        let (dir, path) = file(b"1234", 0o600);
        assert!(matches!(PinSource::File(dir.path().to_owned()).read(), Err(PinError::NotAFile(_))));
        let pipe = dir.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRUSR).expect("a pipe");
        assert!(matches!(PinSource::File(pipe).read(), Err(PinError::NotAFile(_))));
        fs::remove_file(&path).expect("removed");
        let error = PinSource::File(path).read().expect_err("gone");
        assert!(matches!(error, PinError::Read { .. }));
        assert!(error.to_string().contains("No such file"), "{error}");
    }

    #[test]
    fn a_credential_is_read_from_its_folder_with_the_mode_that_systemd_gives() {
        let (_dir, path) = file(b"1234\n", 0o440);
        assert_eq!(read_pin(&path, None).expect("a PIN").secret.expose_secret(), b"1234");
    }

    #[test]
    fn its_page_is_locked_while_it_is_there() {
        let locked = || {
            let status = fs::read_to_string("/proc/self/status").expect("readable");
            let line = status.lines().find_map(|line| line.strip_prefix("VmLck:")).expect("there");
            line.trim_end_matches("kB").trim().parse::<u64>().expect("a number")
        };
        let (_dir, path) = file(b"1234", 0o600);
        let pin = PinSource::File(path).read().expect("a PIN");
        // Other tests lock and unlock theirs meanwhile, but not this one's.
        assert!(locked() >= 4, "{}", locked());
        drop(pin);
    }

    #[test]
    fn the_pin_does_not_show_in_debug_output() {
        let (_dir, path) = file(b"98761234", 0o600);
        let source = PinSource::File(path);
        let pin = source.read().expect("a PIN");
        assert!(!format!("{source:?} {pin:?}").contains("98761234"));
    }
}
