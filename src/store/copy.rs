//! A copy of the ledger file as it is at one moment, page by page, while a daemon may be writing it.
//!
//! Pages are copied, not rows: what is in the copy are the bytes that the ledger has, those included
//! that SQLite does not use at the moment. It reads within one transaction, so it is of one moment, and
//! the daemon goes on; what is committed meanwhile stays in the WAL until the copy is done.

use std::ffi::c_int;
use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, OpenFlags};

use super::reader::Reader;
use super::{StoreError, failed};
use crate::ledger::chain::Head;
use crate::ledger::checkpoint::Note;

/// Pages of 4 KiB that are copied before the caller hears of it.
const PAGES: c_int = 1_024;

/// What a copy has in it.
#[derive(Debug, Clone)]
pub struct Copied {
    /// What the next committed entry would follow.
    pub head: Head,
    /// The newest signed checkpoint.
    pub note: Option<Note>,
    /// Entries that are reserved and not signed.
    pub reserved: u64,
}

impl Reader {
    /// Copies the ledger into the new file `to`, which only its owner can read. It is durable when this
    /// returns, except for its name. `progress` hears of pages: done, and of how many.
    ///
    /// # Errors
    /// When the ledger can't be read, or `to` can't be written. What was made is left.
    pub fn copy(&self, to: &Path, mut progress: impl FnMut(u64, u64)) -> Result<Copied, StoreError> {
        let doing = "copy the ledger";
        let io = |doing| move |source| StoreError::Io { doing, path: to.to_owned(), source };
        // Made beforehand, since SQLite would leave its mode to the umask.
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(to)
            .map_err(io("make"))?;
        let transaction = self.connection.unchecked_transaction().map_err(failed(doing))?;
        // The first read is what the moment is taken at.
        let copied =
            Copied { head: self.head()?, note: self.newest_note()?, reserved: self.unsealed()?.len() as u64 };
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut target = Connection::open_with_flags(to, flags).map_err(failed(doing))?;
        // Torn by a crash it is of no use anyway, and is begun again under another name.
        target
            .execute_batch("PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA cache_size=-2048;")
            .map_err(failed(doing))?;
        {
            let backup = Backup::new(&self.connection, &mut target).map_err(failed(doing))?;
            loop {
                let step = backup.step(PAGES).map_err(failed(doing))?;
                let pages = backup.progress();
                let (all, left) = (pages.pagecount.unsigned_abs(), pages.remaining.unsigned_abs());
                progress(u64::from(all - left), u64::from(all));
                match step {
                    StepResult::Done => break,
                    StepResult::More => {}
                    // Nobody should be in the way: the target is ours, and what we read we hold.
                    _ => std::thread::sleep(std::time::Duration::from_millis(10)),
                }
            }
        }
        target.close().map_err(|(_, error)| failed(doing)(error))?;
        drop(transaction);
        file.sync_all().map_err(io("sync"))?;
        Ok(copied)
    }
}
