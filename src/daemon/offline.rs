//! A ledger file without its daemon: no token, no PIN, no socket.

use std::io;
use std::path::Path;

use super::Fault;
use super::genesis::Genesis;
use crate::audit::{self, Expectations, Interruption, TrustedKeys, Verdict};
use crate::bundle::DirectoryWriter;
use crate::ledger::chain::Head;
use crate::ledger::entry::Sequence;
use crate::store::{Reader, StoreError};

/// Entries are read in pieces of about this size.
pub(crate) const PIECE_BYTES: usize = 1 << 20;

/// A ledger file, open for reading.
#[derive(Debug)]
pub struct Offline {
    reader: Reader,
    genesis: Genesis,
    count: u64,
}

impl Offline {
    /// Opens the ledger at `path`, whether or not a daemon is running on it.
    ///
    /// # Errors
    /// When there is none, or it has no entry 0.
    pub fn open(path: &Path) -> Result<Self, Fault> {
        let reader = Reader::open(path)?;
        let count = reader.count()?;
        let genesis = read_genesis(path, &reader)?;
        Ok(Offline { reader, genesis, count })
    }

    /// Committed entries when it was opened.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Writes a bundle of the entries from `from` up to but not including `to` into the new or
    /// empty directory `dir`. `progress` hears how many entries are written.
    ///
    /// # Errors
    /// When the ledger can't be read or the directory can't be written.
    pub fn export(
        &self,
        dir: &Path,
        from: u64,
        to: u64,
        mut progress: impl FnMut(u64),
    ) -> Result<u64, Fault> {
        let doing = |source| Fault::Io { doing: format!("write the bundle {}", dir.display()), source };
        let to = to.min(self.count);
        let from = from.min(to);
        let mut writer = DirectoryWriter::create(dir, from).map_err(doing)?;
        let mut written = 0;
        for line in lines(&self.reader, Sequence(from), Sequence(to)) {
            writer.append(&line?).map_err(doing)?;
            written += 1;
            progress(written);
        }
        writer.finish(&self.genesis.origin, &self.genesis.key).map_err(doing)?;
        Ok(written)
    }

    /// Checks the whole ledger against the key that its genesis names. Whether that is the right
    /// key, only somebody with the key from elsewhere can say: `attest-verify --key`.
    ///
    /// # Errors
    /// When the ledger can't be read.
    pub fn verify(&self, progress: impl FnMut(u64)) -> Result<Verdict, Fault> {
        verify(&self.reader, &self.genesis, self.count, progress)
    }
}

pub(super) fn read_genesis(path: &Path, reader: &Reader) -> Result<Genesis, Fault> {
    let line = reader.line(Sequence(0))?.ok_or_else(|| Fault::Unborn(path.into()))?;
    Genesis::read(&line).map_err(|reason| Fault::Genesis { path: path.into(), reason })
}

/// Checks the first `count` entries.
pub(crate) fn verify(
    reader: &Reader,
    genesis: &Genesis,
    count: u64,
    mut progress: impl FnMut(u64),
) -> Result<Verdict, Fault> {
    let mut expectations = Expectations::trusting(TrustedKeys::only(genesis.key.clone()));
    expectations.after = Some(Head::EMPTY);
    let mut read = 0;
    let lines = lines(reader, Sequence(0), Sequence(count)).inspect(|_| {
        read += 1;
        progress(read);
    });
    audit::audit(lines, &expectations)
        .map_err(|source| Fault::Io { doing: "read the ledger to check it".into(), source })
}

/// The committed lines of a range, read piece by piece.
pub(crate) fn lines(
    reader: &Reader,
    from: Sequence,
    to: Sequence,
) -> impl Iterator<Item = Result<Vec<u8>, Unreadable>> + '_ {
    let mut next = from;
    let mut piece = Vec::new().into_iter();
    let mut failed = false;
    std::iter::from_fn(move || {
        if failed {
            return None;
        }
        if piece.len() == 0 && next < to {
            match reader.lines(next, to, PIECE_BYTES) {
                Ok(lines) => piece = lines.into_iter(),
                Err(error) => {
                    failed = true;
                    return Some(Err(Unreadable(error)));
                }
            }
        }
        let line = piece.next()?;
        next = line.sequence.next();
        Some(Ok(line.bytes))
    })
}

/// The ledger file could not be read to the end of the range.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct Unreadable(StoreError);

impl From<Unreadable> for Fault {
    fn from(unreadable: Unreadable) -> Self {
        Fault::Store(unreadable.0)
    }
}

impl From<Unreadable> for Interruption {
    fn from(unreadable: Unreadable) -> Self {
        match unreadable.0 {
            // A ledger that contradicts itself is a finding, not a failure to look.
            StoreError::Damaged(what) => Interruption::Faulty(
                audit::Fault::new(crate::ledger::code::Code::BundleFile).within("the ledger").because(what),
            ),
            other => Interruption::Unreadable(io::Error::other(other.to_string())),
        }
    }
}
