//! Anchors: copies of the newest checkpoint outside of the ledger, from which it shows when the
//! ledger's tail was cut, when an old copy of it was put back, or when two of it ran.
//!
//! A hash chain sees none of these: what is left of it holds. So the newest checkpoint is also kept
//! in a file, on another medium where there is one, and in a data object on the token. Whoever
//! takes the ledger back must take every anchor back with it, and to the same time.
//!
//! An anchor lags behind: what is lost within its lag is not seen. It is never overwritten
//! unless what it says is of our own tree; else another copy of the ledger ran, and we must not
//! go on. This module says how an anchor stands; `daemon` decides what comes of it.

use std::fmt;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use nix::fcntl::OFlag;

use crate::governance::keyring::Keyring;
use crate::ledger::checkpoint::{MAX_NOTE_BYTES, Note, NoteFault};
use crate::store::{Reader, StoreError};
use crate::token::{Keeper, ObjectError, Pool};

/// One place where the newest checkpoint is kept.
#[derive(Clone)]
pub enum Anchor {
    /// A file that holds the note.
    File(PathBuf),
    /// A data object on the token that holds the note.
    Token {
        /// The token's threads.
        token: Arc<Keeper>,
        /// What the object is called, which names the ledger: a token may hold those of several.
        label: String,
    },
}

/// Why an anchor could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum AnchorError {
    /// The file system failed.
    #[error("couldn't {doing} {}: {source}", path.display())]
    File {
        /// What was being done.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The token failed.
    #[error(transparent)]
    Token(#[from] ObjectError),
    /// What is there is not a checkpoint.
    #[error("it is not a checkpoint: {0}")]
    Malformed(#[from] NoteFault),
}

impl Anchor {
    /// The object on the token for the ledger `origin`.
    #[must_use]
    pub fn on_token(token: Arc<Keeper>, origin: &str) -> Self {
        Anchor::Token { token, label: label_of(origin) }
    }

    /// `file` or `token`, as the ledger says it.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Anchor::File(_) => "file",
            Anchor::Token { .. } => "token",
        }
    }

    /// What it holds. Whether that is to be believed, [`judge`] says.
    ///
    /// # Errors
    /// When it can't be read, or holds something else than a note.
    pub fn read(&self) -> Result<Option<Note>, AnchorError> {
        match self {
            Anchor::File(path) => read_file(path),
            Anchor::Token { token, label } => newest(&token.objects()?.read_objects(label)?),
        }
    }

    /// Replaces what it holds, which is there until the new note is. It is durable afterwards as far as
    /// the medium says so.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn write(&self, note: &Note) -> Result<(), AnchorError> {
        match self {
            Anchor::File(path) => write_file(path, note),
            Anchor::Token { token, label } => {
                Ok(token.objects()?.replace_object(label, Some(note.as_str().as_bytes()))?)
            }
        }
    }

    /// Takes it away, for a ledger that was not made after all.
    ///
    /// # Errors
    /// When it can't be taken away.
    pub fn remove(&self) -> Result<(), AnchorError> {
        match self {
            Anchor::File(path) => std::fs::remove_file(path).map_err(failed("remove", path)),
            Anchor::Token { token, label } => Ok(token.objects()?.replace_object(label, None)?),
        }
    }
}

impl fmt::Display for Anchor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Anchor::File(path) => write!(f, "the anchor {}", path.display()),
            Anchor::Token { label, .. } => write!(f, "the anchor on the token (data object \"{label}\")"),
        }
    }
}

impl fmt::Debug for Anchor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn label_of(origin: &str) -> String {
    format!("attestd anchor {origin}")
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> AnchorError {
    move |source| AnchorError::File { doing, path: path.into(), source }
}

fn read_file(path: &Path) -> Result<Option<Note>, AnchorError> {
    // No link is followed: writing would put a file in its place, beside the ledger and not where it
    // leads to. And no pipe is waited for.
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let file = match File::options().read(true).custom_flags(flags.bits()).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("read", path)(error)),
    };
    if !file.metadata().map_err(failed("read", path))?.is_file() {
        let other = std::io::Error::other("it is not a regular file");
        return Err(failed("read", path)(other));
    }
    let mut bytes = Vec::new();
    // One byte more than a note may have shows that it has too many.
    file.take(MAX_NOTE_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(failed("read", path))?;
    Ok(Some(Note::parse(&bytes)?))
}

fn write_file(path: &Path, note: &Note) -> Result<(), AnchorError> {
    let unborn = path.with_added_extension("unborn");
    // What a crash left, or somebody put there, is not written through.
    match std::fs::remove_file(&unborn) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(failed("replace", &unborn)(error));
        }
        _ => {}
    }
    let mut options = File::options();
    options.write(true).create_new(true).mode(0o640);
    options
        .open(&unborn)
        .and_then(|mut file| file.write_all(note.as_str().as_bytes()).and_then(|()| file.sync_all()))
        .map_err(failed("write", &unborn))?;
    std::fs::rename(&unborn, path).map_err(failed("write", path))?;
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let directory = directory.unwrap_or(Path::new("."));
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed("sync", directory))
}

/// The note of the largest tree. There can be several: a token that lost its power may have the new
/// object and the old, or a new one that is cut.
fn newest(values: &[Vec<u8>]) -> Result<Option<Note>, AnchorError> {
    let mut newest = None;
    let mut malformed = None;
    for value in values {
        match Note::parse(value) {
            Ok(note) => match &newest {
                Some(other) if size_of(other) >= size_of(&note) => {}
                _ => newest = Some(note),
            },
            Err(fault) => malformed = Some(fault),
        }
    }
    match (newest, malformed) {
        (None, Some(fault)) => Err(fault.into()),
        (newest, _) => Ok(newest),
    }
}

fn size_of(note: &Note) -> u64 {
    note.checkpoint().root().size.leaves()
}

/// The ledger as it is, against which an anchor is held.
#[derive(Debug, Clone, Copy)]
pub struct Ledger<'a> {
    /// Whom it belongs to.
    pub origin: &'a str,
    /// Its keys.
    pub keys: &'a Keyring,
    /// Its entries and its tree.
    pub reader: &'a Reader,
}

/// How an anchor stands to the ledger.
#[derive(Debug)]
pub enum Standing {
    /// It is of the ledger's own past.
    Agrees {
        /// How many entries it knows of.
        entries: u64,
        /// How many came after it.
        lag: u64,
    },
    /// There is nothing.
    Missing,
    /// It knows of more entries than there are.
    Ahead {
        /// How many it knows of.
        anchored: u64,
        /// How many there are.
        entries: u64,
    },
    /// It knows of other entries than these.
    Beside {
        /// Of how many.
        anchored: u64,
    },
    /// It belongs to another ledger.
    OtherOrigin {
        /// To which.
        origin: String,
    },
    /// It is not signed by the ledger's key.
    NotSigned(NoteFault),
    /// It can't be read.
    Unreadable(AnchorError),
}

/// How `anchor` stands to `ledger`, and what it holds.
///
/// # Errors
/// When the ledger can't be read.
pub fn judge(anchor: &Anchor, ledger: Ledger<'_>) -> Result<(Standing, Option<Note>), StoreError> {
    let note = match anchor.read() {
        Ok(Some(note)) => note,
        Ok(None) => return Ok((Standing::Missing, None)),
        Err(error) => return Ok((Standing::Unreadable(error), None)),
    };
    Ok((compare(&note, ledger)?, Some(note)))
}

fn compare(note: &Note, ledger: Ledger<'_>) -> Result<Standing, StoreError> {
    let checkpoint = note.checkpoint();
    let root = checkpoint.root();
    let entries = ledger.reader.count()?;
    Ok(if checkpoint.origin() != ledger.origin {
        Standing::OtherOrigin { origin: checkpoint.origin().to_owned() }
    } else if let Err(fault) = note.verify(&ledger.keys.signer_of(root.size)) {
        Standing::NotSigned(fault)
    } else if root.size.leaves() > entries {
        Standing::Ahead { anchored: root.size.leaves(), entries }
    } else if ledger.reader.tree(entries)?.root(root.size)? != root {
        Standing::Beside { anchored: root.size.leaves() }
    } else {
        Standing::Agrees { entries: root.size.leaves(), lag: entries - root.size.leaves() }
    })
}

/// Has the token of `pool`, which is to be rotated to, hold an anchor before it is the ledger's token: what
/// it holds already, if that agrees, else `note`.
///
/// # Errors
/// In words, why it can't be rotated to.
pub fn plant(pool: &Pool, note: &Note, ledger: Ledger<'_>) -> Result<(), String> {
    let label = label_of(ledger.origin);
    let held = pool.read_objects(&label).map_err(AnchorError::from).and_then(|held| newest(&held));
    match held.map_err(|error| error.to_string())? {
        Some(held) => match compare(&held, ledger).map_err(|error| error.to_string())? {
            Standing::Agrees { .. } => Ok(()),
            standing => Err(format!("the anchor on it {}", said(&standing))),
        },
        None => pool
            .replace_object(&label, Some(note.as_str().as_bytes()))
            .map_err(|error| AnchorError::from(error).to_string()),
    }
}

/// How far an anchor has come, for whoever asks.
#[derive(Debug)]
pub struct Gauge {
    /// [`Anchor::kind`].
    pub kind: &'static str,
    /// The entries that it knows of.
    pub entries: AtomicU64,
}

/// Why a ledger must not be extended: what an anchor says of it.
#[derive(Debug, thiserror::Error)]
#[error("{anchor} {}", said(standing))]
pub struct Contradiction {
    /// Which anchor.
    pub anchor: Anchor,
    /// How it stands; never [`Standing::Agrees`].
    pub standing: Standing,
}

fn said(standing: &Standing) -> String {
    match standing {
        Standing::Agrees { lag, .. } => format!("agrees with the ledger, which has {lag} entries more"),
        Standing::Missing => "is missing".into(),
        Standing::Ahead { anchored, entries } => format!(
            "knows of {anchored} signed entries, the ledger has {entries}: it was cut, or an old copy was put back"
        ),
        Standing::Beside { anchored } => format!(
            "knows of {anchored} entries that are not those of this ledger: two copies of it were run"
        ),
        Standing::OtherOrigin { origin } => format!("belongs to the ledger of {origin}"),
        Standing::NotSigned(fault) => format!("is not signed by the ledger's key: {fault}"),
        Standing::Unreadable(error) => format!("can't be used: {error}"),
    }
}

impl Contradiction {
    /// Whether it is useless to try again until somebody has done something.
    #[must_use]
    pub fn needs_operator(&self) -> bool {
        match &self.standing {
            Standing::Unreadable(AnchorError::Token(error)) => error.needs_operator(),
            _ => true,
        }
    }

    /// How to go on.
    #[must_use]
    pub fn remedy(&self) -> &'static str {
        match &self.standing {
            Standing::Missing => {
                "find out where it went, and whether the ledger was put back with it. If it was lost, or this anchor \
                 is new: `attestd anchor reset --config FILE --reason TEXT`, which the ledger will say for ever"
            }
            Standing::Ahead { .. } => {
                "put the ledger back that has all entries. If there is none, this one is not extended any more: \
                 `attestd init --successor-of LEDGER --origin NEW --reason TEXT` begins another that names it"
            }
            Standing::Beside { .. } => {
                "keep both ledgers, they are the evidence, and stop the other one. Neither is extended any more: \
                 `attestd init --successor-of LEDGER --origin NEW --reason TEXT` begins another that names one"
            }
            Standing::OtherOrigin { .. } => "give each ledger an anchor of its own: see `anchor.file`",
            Standing::Agrees { .. } | Standing::NotSigned(_) | Standing::Unreadable(_) => {
                "find out what happened to it and put the right one back. If it is lost, move away what is there \
                 and see `attestd anchor reset`"
            }
        }
    }
}

/// Why an anchor was not brought forward.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    /// The daemon must stop.
    #[error(transparent)]
    Contradicted(#[from] Contradiction),
    /// It may work later.
    #[error(transparent)]
    Anchor(#[from] AnchorError),
    /// The ledger can't be read.
    #[error(transparent)]
    Ledger(#[from] StoreError),
}

/// Has `anchor` hold `note`, the newest of `ledger`, if what it holds is of the same tree.
///
/// # Errors
/// [`UpdateError::Contradicted`] when it is not: another copy of the ledger ran.
pub fn update(anchor: &Anchor, note: &Note, ledger: Ledger<'_>) -> Result<(), UpdateError> {
    match judge(anchor, ledger)? {
        // An older note would say less.
        (Standing::Agrees { .. }, Some(held)) if size_of(&held) >= size_of(note) => Ok(()),
        (Standing::Agrees { .. }, _) => Ok(anchor.write(note)?),
        (Standing::Unreadable(error @ (AnchorError::File { .. } | AnchorError::Token(_))), _) => {
            Err(error.into())
        }
        (standing, _) => Err(Contradiction { anchor: anchor.clone(), standing }.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::checkpoint::Checkpoint;
    use crate::ledger::hash::Digest;
    use crate::ledger::key::{KeyId, Signature};
    use crate::ledger::merkle::{NodeHash, Root, TreeSize};
    use std::os::unix::fs::PermissionsExt;

    fn note(size: u64) -> Note {
        let root = Root {
            size: TreeSize::new(size).expect("below 2^63"),
            hash: NodeHash(Digest::of(&size.to_be_bytes())),
        };
        let mut raw = [0; Signature::BYTES];
        (raw[31], raw[63]) = (1, 1);
        let signature = Signature::from_stored(&raw).expect("in range");
        Note::new(
            Checkpoint::new("test.example/ledger", root).expect("an origin"),
            KeyId(Digest([7; 32])),
            &signature,
        )
    }

    #[test]
    fn a_file_holds_the_last_note_that_was_written() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("anchor");
        let anchor = Anchor::File(path.clone());
        assert!(anchor.read().expect("readable").is_none());
        for size in [1, 70_000, 2] {
            anchor.write(&note(size)).expect("written");
            assert_eq!(anchor.read().expect("readable"), Some(note(size)));
        }
        let mode = std::fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o777 & !0o640, 0, "{mode:o}");
        assert_eq!(std::fs::read_dir(dir.path()).expect("listed").count(), 1);
        anchor.remove().expect("removed");
        assert!(anchor.read().expect("readable").is_none());
    }

    #[test]
    fn what_is_no_note_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("anchor");
        let anchor = Anchor::File(path.clone());
        let whole = note(9).as_str().as_bytes().to_vec();
        let cut = &whole[..whole.len() - 1];
        let twice = whole.repeat(2);
        let long = vec![b'a'; MAX_NOTE_BYTES + 1];
        for bytes in [&b""[..], b"\n", b"garbage", b"\0\xff\xfe", cut, &twice, &long] {
            std::fs::write(&path, bytes).expect("written");
            assert!(matches!(anchor.read(), Err(AnchorError::Malformed(_))), "{bytes:?}");
        }
        std::fs::remove_file(&path).expect("removed");
        std::fs::create_dir(&path).expect("a directory");
        assert!(matches!(anchor.read(), Err(AnchorError::File { .. })));
        let error = Anchor::File(dir.path().join("no/anchor")).write(&note(1)).expect_err("nowhere");
        assert!(error.to_string().contains("no/anchor"), "{error}");
    }

    #[test]
    fn of_several_the_largest_counts() {
        let bytes = |size| note(size).as_str().as_bytes().to_vec();
        let of = |values: &[Vec<u8>]| newest(values).expect("a note").map(|note| size_of(&note));
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[bytes(2), bytes(10), bytes(9)]), Some(10));
        // What a cut of the power left of the new one.
        assert_eq!(of(&[bytes(2), bytes(10)[..40].to_vec()]), Some(2));
        assert_eq!(of(&[Vec::new(), bytes(2)]), Some(2));
        assert!(newest(&[b"garbage".to_vec()]).is_err());
    }

    #[test]
    fn no_link_is_followed_and_no_pipe_waited_for() {
        let dir = tempfile::tempdir().expect("a directory");
        let (file, link, pipe) = (dir.path().join("file"), dir.path().join("link"), dir.path().join("pipe"));
        std::fs::write(&file, "not a note").expect("written");
        std::os::unix::fs::symlink(&file, &link).expect("linked");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("made");
        for path in [&link, &pipe] {
            assert!(matches!(read_file(path), Err(AnchorError::File { .. })), "{}", path.display());
        }
        // A link in the place of the unfinished file is replaced, not written through.
        let checkpoint =
            crate::ledger::checkpoint::Checkpoint::new("a.example/b", crate::ledger::merkle::Root::EMPTY);
        let raw = [[0; 31].as_slice(), &[1], &[0; 31], &[1]].concat();
        let signature = crate::ledger::key::Signature::from_stored(&raw).expect("in range");
        let key = crate::ledger::key::KeyId(crate::ledger::hash::Digest([1; 32]));
        let note = Note::new(checkpoint.expect("an origin"), key, &signature);
        let anchor = dir.path().join("anchor");
        std::os::unix::fs::symlink(&file, dir.path().join("anchor.unborn")).expect("linked");
        write_file(&anchor, &note).expect("written");
        assert_eq!(std::fs::read(&file).expect("readable"), b"not a note");
        assert_eq!(read_file(&anchor).expect("readable"), Some(note));
    }
}
