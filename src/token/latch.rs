//! The PIN latch: a PIN that a token refused is not tried again, however often the daemon starts,
//! until an operator says that it was put right.
//!
//! A file beside the ledger, written before the login that it could be needed for:
//!
//! ```text
//! {"refused":"PinIncorrect","serial":"0a1b…","state":"refused"}
//! ```
//!
//! In state `trying` a login was under way when the daemon ended. That one is tried once more, since a
//! power cut must not need an operator; a second one that did not end is held to be refused.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Latch(PathBuf);

/// What is known of the last login.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Latched {
    /// What the token said, as PKCS#11 calls it; of one that did not end, that.
    pub refused: String,
    /// Which token.
    pub serial: String,
    /// How it stands.
    pub state: State,
}

/// How a login stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It is under way, or was when the daemon ended.
    Trying,
    /// The second time that it did not end.
    TryingAgain,
    /// The token refused the PIN.
    Refused,
}

/// Why there is no login.
#[derive(Debug, thiserror::Error)]
pub enum LatchError {
    /// A PIN was refused before.
    #[error(
        "the token with serial \"{serial}\" refused the PIN before ({refused}), so it is not tried again"
    )]
    Latched {
        /// Which token.
        serial: String,
        /// What it said.
        refused: String,
    },
    /// The file can't be read or written; without it a PIN could be burnt.
    #[error("couldn't {doing} the PIN latch {}: {source}", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl Latch {
    /// The latch that is kept in the file at `path`.
    #[must_use]
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Latch(path.into())
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// What the file says. One that can't be understood was not written by us, or not to its end:
    /// nothing is tried then.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn read(&self) -> Result<Option<Latched>, LatchError> {
        match fs::read(&self.0) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes).unwrap_or_else(|_| Latched {
                refused: "the file is damaged".into(),
                serial: String::new(),
                state: State::Refused,
            }))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(self.failed("read")(source)),
        }
    }

    /// Opens the latch again, at an operator's word. Whether there was anything to open.
    ///
    /// # Errors
    /// When the file can't be removed.
    pub fn clear(&self) -> Result<bool, LatchError> {
        match fs::remove_file(&self.0) {
            Ok(()) => self.sync_directory().map(|()| true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(self.failed("remove")(source)),
        }
    }

    /// Says that a login begins. A crash from here on leaves the file.
    pub(super) fn begin(&self, serial: &str) -> Result<(), LatchError> {
        let state = match self.read()? {
            None => State::Trying,
            Some(Latched { state: State::Trying, .. }) => State::TryingAgain,
            Some(Latched { refused, serial, state: State::TryingAgain | State::Refused }) => {
                return Err(LatchError::Latched { serial, refused });
            }
        };
        self.write(&Latched { refused: "the login did not end".into(), serial: serial.into(), state })
    }

    /// Says that the token took the PIN, or did not look at it.
    pub(super) fn open(&self) -> Result<(), LatchError> {
        self.clear().map(drop)
    }

    /// Says that the token refused the PIN.
    pub(super) fn refuse(&self, serial: &str, refused: &str) -> Result<(), LatchError> {
        self.write(&Latched { refused: refused.into(), serial: serial.into(), state: State::Refused })
    }

    /// The old content or the new one is there after a crash, never something between.
    fn write(&self, latched: &Latched) -> Result<(), LatchError> {
        let next = self.0.with_extension("next");
        let mut text = serde_json::to_vec(latched).unwrap_or_default();
        text.push(b'\n');
        let write = || {
            let mut file: File =
                File::options().write(true).create(true).truncate(true).mode(0o600).open(&next)?;
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&next, &self.0)
        };
        write().map_err(self.failed("write"))?;
        self.sync_directory()
    }

    fn sync_directory(&self) -> Result<(), LatchError> {
        let directory = self.0.parent().filter(|parent| !parent.as_os_str().is_empty());
        let directory = directory.unwrap_or(Path::new("."));
        File::open(directory).and_then(|directory| directory.sync_all()).map_err(self.failed("write"))
    }

    fn failed(&self, doing: &'static str) -> impl FnOnce(io::Error) -> LatchError {
        let path = self.0.clone();
        move |source| LatchError::Io { doing, path, source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn latch() -> (tempfile::TempDir, Latch) {
        let directory = tempfile::tempdir().expect("a directory");
        let latch = Latch::at(directory.path().join("pin-latch"));
        (directory, latch)
    }

    #[test]
    fn a_refused_pin_is_tried_once_whatever_happens_after() {
        let (_directory, latch) = latch();
        latch.begin("1").expect("the first try");
        latch.refuse("1", "PinIncorrect").expect("written");
        for _ in 0..100 {
            assert!(matches!(latch.begin("1"), Err(LatchError::Latched { .. })));
        }
        assert!(latch.clear().expect("an operator's word"));
        latch.begin("1").expect("a try again");
        latch.open().expect("taken");
        assert_eq!(latch.read().expect("readable"), None);
        assert!(!latch.clear().expect("nothing to clear"));
    }

    #[test]
    fn a_login_that_does_not_end_is_tried_twice_at_most() {
        let (_directory, latch) = latch();
        latch.begin("1").expect("the first try");
        latch.begin("1").expect("after a power cut");
        assert!(matches!(latch.begin("1"), Err(LatchError::Latched { .. })));
    }

    #[test]
    fn a_damaged_file_is_a_closed_latch() {
        let (_directory, latch) = latch();
        for bytes in [b"".as_slice(), b"{\"state\":\"trying\"}", b"\xFF"] {
            fs::write(latch.path(), bytes).expect("writable");
            assert!(matches!(latch.begin("1"), Err(LatchError::Latched { .. })), "{bytes:?}");
        }
    }
}
