//! A ledger file without its daemon: no token, no PIN, no socket.

use std::path::Path;

use super::genesis::Genesis;
use super::{Fault, keys};
use crate::audit::Verdict;
use crate::bundle::DirectoryWriter;
use crate::evidence::{self, Extract, context, lines};
use crate::governance::keyring::Keyring;
use crate::ledger::entry::Sequence;
use crate::store::Reader;

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
        let (origin, key) = (&self.genesis.origin, &self.genesis.key);
        // The daemon's index may be in use, or not be there at all.
        let steps = || context::scan(&self.reader, Sequence(0), Sequence(from.min(self.count)));
        // Only a part needs to be told of keys after it.
        let keys = if to < self.count {
            keys::found(&self.reader, &self.genesis)?
        } else {
            Keyring::of(key.clone())
        };
        let extract = Extract::plan(&self.reader, origin, &keys, from, Some(to), steps)?;
        let (from, to) = (Sequence(extract.from), Sequence(extract.to));
        let mut writer = DirectoryWriter::create(dir, extract.contents).map_err(doing)?;
        let mut written = 0;
        for line in lines(&self.reader, from, to) {
            writer.append(&line?).map_err(doing)?;
            written += 1;
            progress(written);
        }
        let mut outcome = Ok(());
        self.reader.notes_of(from, to, |note| {
            outcome = std::mem::replace(&mut outcome, Ok(())).and_then(|()| writer.append_checkpoint(&note));
            Ok(())
        })?;
        outcome.and_then(|()| writer.finish()).map_err(doing)?;
        Ok(written)
    }

    /// Checks the whole ledger against the key that its genesis names. Whether that is the right
    /// key, only somebody with the key from elsewhere can say: `attest-verify --key`.
    ///
    /// # Errors
    /// When the ledger can't be read.
    pub fn verify(&self, progress: impl FnMut(u64)) -> Result<Verdict, Fault> {
        let Genesis { origin, key, .. } = &self.genesis;
        Ok(evidence::verify(&self.reader, origin, key, self.count, progress)?)
    }
}

pub(super) fn read_genesis(path: &Path, reader: &Reader) -> Result<Genesis, Fault> {
    let line = reader.line(Sequence(0))?.ok_or_else(|| Fault::Unborn(path.into()))?;
    Genesis::read(&line).map_err(|reason| Fault::Genesis { path: path.into(), reason })
}
