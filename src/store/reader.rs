//! What readers see of the ledger file: committed entries, the tree over them, and its checkpoints.

use std::path::Path;

use rusqlite::{Connection, OpenFlags, OptionalExtension, params};

use super::schema::{VERSION, check_kind, check_sqlite, open};
use super::{StoreError, algorithm_of, failed, mode_of};
use crate::ledger::canonical;
use crate::ledger::chain::Head;
use crate::ledger::checkpoint::{Checkpoint, Note};
use crate::ledger::code::Code;
use crate::ledger::entry::{Sequence, SignatureAlgorithm};
use crate::ledger::hash::Digest;
use crate::ledger::key::{KeyId, Signature};
use crate::ledger::merkle::{NodeHash, TreeSize};
use crate::ledger::tile::{Tile, Tree, TreeError};

/// A committed entry as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Its place.
    pub sequence: Sequence,
    /// The sealed canonical line, without a line feed.
    pub bytes: Vec<u8>,
    /// Where a client gave the id: its uid and the hash of the content.
    pub idempotency: Option<(u32, Digest)>,
}

impl Line {
    /// Holds the bytes to be an entry, that of this place, whose hash is its own.
    ///
    /// # Errors
    /// When they are not: somebody has changed the file.
    pub fn check(&self) -> Result<canonical::Decoded<'_>, StoreError> {
        let damaged =
            |what: &dyn std::fmt::Display| StoreError::Damaged(format!("entry {}: {what}", self.sequence));
        let decoded = canonical::decode(&self.bytes).map_err(|fault| damaged(&fault))?;
        if decoded.entry.sequence_number != self.sequence {
            return Err(damaged(&format!("it says that it is entry {}", decoded.entry.sequence_number)));
        }
        if decoded.computed_hash != decoded.entry.entry_hash {
            return Err(damaged(&Code::EntryHashMismatch.title()));
        }
        Ok(decoded)
    }
}

/// A reader of committed entries. It never sees what is only reserved.
#[derive(Debug)]
pub struct Reader {
    pub(super) connection: Connection,
}

impl Reader {
    /// Opens the ledger file for reading, with or without a daemon that writes it.
    ///
    /// # Errors
    /// When it is missing, not a ledger, or newer than this program.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        check_sqlite()?;
        if !path.exists() {
            return Err(StoreError::Missing(path.into()));
        }
        let connection = match open_for_reading(path) {
            Ok(connection) => connection,
            // On a medium that can't be written there is no place for SQLite's shared memory. A
            // file without a WAL beside it is whole, and can be read as it is.
            Err(error) if !wal_beside(path) => {
                let uri = format!(
                    "file:{}?immutable=1",
                    percent_encoding::percent_encode(
                        path.as_os_str().as_encoded_bytes(),
                        percent_encoding::NON_ALPHANUMERIC
                    )
                );
                Connection::open_with_flags(
                    uri,
                    OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI,
                )
                .map_err(|_| error)?
            }
            Err(error) => return Err(error),
        };
        check_kind(&connection, path)?;
        Ok(Reader { connection })
    }

    /// How many entries are committed.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn count(&self) -> Result<u64, StoreError> {
        self.connection
            .prepare_cached(
                "SELECT first + count FROM commits WHERE signatures IS NOT NULL ORDER BY first DESC LIMIT 1",
            )
            .and_then(|mut select| select.query_row([], |row| row.get(0)).optional())
            .map(|count| count.unwrap_or(0))
            .map_err(failed("count the entries"))
    }

    /// The committed entry at `sequence`.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn line(&self, sequence: Sequence) -> Result<Option<Line>, StoreError> {
        Ok(self.lines(sequence, Sequence(sequence.0 + 1), usize::MAX)?.pop())
    }

    /// Committed entries from `from` up to but not including `to`, in order, stopping after the
    /// one with which their bytes reach `max_bytes`, and before one that can't be read: what is
    /// good is not lost with what is not, and the next call says what is wrong with that.
    ///
    /// # Errors
    /// When the file can't be read or the first entry, which should be there, is not.
    pub fn lines(&self, from: Sequence, to: Sequence, max_bytes: usize) -> Result<Vec<Line>, StoreError> {
        let mut lines = Vec::new();
        match self.read_lines(from, to, max_bytes, &mut lines) {
            Err(error) if lines.is_empty() => Err(error),
            _ => Ok(lines),
        }
    }

    /// All of the committed entries from `from` up to but not including `to`.
    fn all_lines(&self, from: Sequence, to: Sequence) -> Result<Vec<Line>, StoreError> {
        let mut lines = Vec::new();
        self.read_lines(from, to, usize::MAX, &mut lines)?;
        Ok(lines)
    }

    fn read_lines(
        &self,
        from: Sequence,
        to: Sequence,
        max_bytes: usize,
        lines: &mut Vec<Line>,
    ) -> Result<(), StoreError> {
        let doing = "read entries";
        if from >= to {
            return Ok(());
        }
        let mut commits = self
            .connection
            .prepare_cached(
                "SELECT first, count, mode, signatures FROM commits \
                 WHERE first >= coalesce((SELECT max(first) FROM commits WHERE first <= ?1), ?1) \
                 AND first < ?2 AND signatures IS NOT NULL ORDER BY first",
            )
            .map_err(failed(doing))?;
        let mut commits = commits.query([from.0, to.0]).map_err(failed(doing))?;
        let mut bodies = self
            .connection
            .prepare_cached(
                "SELECT sequence, signature_at, body, caller, content FROM entries \
                 WHERE sequence >= ?1 AND sequence < ?2 ORDER BY sequence",
            )
            .map_err(failed(doing))?;
        let mut total = 0;
        let mut next = from.0;
        while let Some(commit) = commits.next().map_err(failed(doing))? {
            let (first, count): (u64, u64) =
                (commit.get(0).map_err(failed(doing))?, commit.get(1).map_err(failed(doing))?);
            let mode = commit.get_ref(2).map_err(failed(doing))?;
            let in_common = mode.as_str().is_ok_and(|mode| mode == mode_of(SignatureAlgorithm::TreeP256));
            let signatures = commit.get_ref(3).map_err(failed(doing))?;
            let signatures = signatures.as_blob().map_err(|e| StoreError::Damaged(e.to_string()))?;
            let signature_of = |sequence: u64| {
                let index = if in_common { 0 } else { usize::try_from(sequence - first).ok()? };
                let at = index.checked_mul(Signature::BYTES)?;
                signatures.get(at..at.checked_add(Signature::BYTES)?).and_then(Signature::from_stored)
            };
            let end = (first + count).min(to.0);
            let mut rows = bodies.query([next.max(first), end]).map_err(failed(doing))?;
            while let Some(row) = rows.next().map_err(failed(doing))? {
                let line = line_of(row, signature_of).map_err(|error| match error {
                    StoreError::Damaged(what) => StoreError::Damaged(format!("entry {next}: {what}")),
                    other => other,
                })?;
                if line.sequence.0 != next {
                    return Err(StoreError::Damaged(format!("entry {next} is missing")));
                }
                next += 1;
                total += line.bytes.len();
                lines.push(line);
                if total >= max_bytes {
                    return Ok(());
                }
            }
            if next < end {
                return Err(StoreError::Damaged(format!("entry {next} is missing")));
            }
        }
        Ok(())
    }

    /// Bytes of the sealed lines of the entries before `end`, each with its line feed. `end` must
    /// not be over the count.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn bytes_before(&self, end: Sequence) -> Result<u64, StoreError> {
        if end.0 == 0 {
            return Ok(0);
        }
        let last = end.0 - 1;
        let (first, whole_end, whole): (u64, u64, u64) = self
            .connection
            .prepare_cached(
                "SELECT first, first + count, bytes FROM commits WHERE first <= ?1 ORDER BY first DESC LIMIT 1",
            )
            .and_then(|mut s| s.query_row([last], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))))
            .map_err(failed("measure entries"))?;
        if whole_end == end.0 {
            return Ok(whole);
        }
        let before: Option<u64> = self
            .connection
            .prepare_cached("SELECT bytes FROM commits WHERE first < ?1 ORDER BY first DESC LIMIT 1")
            .and_then(|mut s| s.query_row([first], |row| row.get(0)).optional())
            .map_err(failed("measure entries"))?;
        let rest = self.all_lines(Sequence(first), end)?;
        Ok(before.unwrap_or(0) + rest.iter().map(|line| line.bytes.len() as u64 + 1).sum::<u64>())
    }

    /// What the next entry follows: the last committed entry, or the head of an empty ledger.
    ///
    /// # Errors
    /// When the file can't be read or the last entry is not one.
    pub fn head(&self) -> Result<Head, StoreError> {
        let count = self.count()?;
        let Some(last) = count.checked_sub(1) else { return Ok(Head::EMPTY) };
        let line = self
            .line(Sequence(last))?
            .ok_or_else(|| StoreError::Damaged(format!("entry {last} is missing")))?;
        let decoded = canonical::decode(&line.bytes)
            .map_err(|fault| StoreError::Damaged(format!("entry {last}: {fault}")))?;
        Ok(Head::after(&decoded.entry))
    }

    /// The bodies of the entries that are reserved and not signed, of which nobody else may hear: for
    /// a ledger that is not extended any more.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn unsealed(&self) -> Result<Vec<Vec<u8>>, StoreError> {
        let count = self.count()?;
        self.connection
            .prepare_cached("SELECT body FROM entries WHERE sequence >= ?1 ORDER BY sequence")
            .and_then(|mut select| select.query_map([count], |row| row.get(0))?.collect())
            .map_err(failed("read reserved entries"))
    }

    #[expect(clippy::type_complexity, reason = "a closure has no name, and boxing it would cost each read")]
    /// The tree over the first `size` committed entries, to make roots and proofs of.
    ///
    /// # Errors
    /// When there are not so many.
    pub fn tree(
        &self,
        size: u64,
    ) -> Result<Tree<impl FnMut(Tile) -> Result<Vec<u8>, StoreError> + '_>, StoreError> {
        let count = self.count()?;
        let size = TreeSize::new(size).filter(|size| size.leaves() <= count).ok_or_else(|| {
            StoreError::Damaged(format!("there are {count} entries, {size} were to be there"))
        })?;
        Ok(Tree::new(size, |tile| self.tile(tile)))
    }

    /// The hashes of a tile, at least as many as it is wide. Its entries must be committed.
    ///
    /// # Errors
    /// When it can't be read, or is not there.
    pub fn tile(&self, tile: Tile) -> Result<Vec<u8>, StoreError> {
        let wanted = usize::from(tile.width()) * NodeHash::BYTES;
        let kept: Option<Vec<u8>> = self
            .connection
            .prepare_cached("SELECT hashes FROM tiles WHERE level=?1 AND tile=?2")
            .and_then(|mut select| {
                select.query_row(params![tile.level(), tile.index()], |row| row.get(0)).optional()
            })
            .map_err(failed("read the tree"))?;
        match kept {
            Some(hashes) if hashes.len() >= wanted => Ok(hashes),
            None if tile.level() == 0 && !tile.is_full() => {
                let first = tile.index() << Tile::HEIGHT;
                let leaves = self.hashes(Sequence(first), Sequence(first + u64::from(tile.width())))?;
                Ok(leaves.iter().flat_map(|hash| NodeHash::of_leaf(*hash).0.0).collect())
            }
            _ => Err(StoreError::Damaged(format!("{} of the tree is missing", tile.path()))),
        }
    }

    /// The `entry_hash`es of a range, which are those of the bytes of the entries.
    ///
    /// # Errors
    /// When an entry can't be read, or is none.
    pub fn hashes(&self, from: Sequence, to: Sequence) -> Result<Vec<Digest>, StoreError> {
        self.all_lines(from, to)?.iter().map(|line| Ok(line.check()?.computed_hash)).collect()
    }

    /// The newest checkpoint, signed.
    ///
    /// # Errors
    /// When it can't be read, or is none.
    pub fn newest_note(&self) -> Result<Option<Note>, StoreError> {
        self.note("ORDER BY first DESC", [])
    }

    /// The smallest signed checkpoint whose tree has the entry at `sequence` in it.
    ///
    /// # Errors
    /// As [`Reader::newest_note`].
    pub fn note_over(&self, sequence: Sequence) -> Result<Option<Note>, StoreError> {
        self.note(
            "AND first >= coalesce((SELECT max(first) FROM commits WHERE first <= ?1), ?1) \
             AND first + count > ?1 ORDER BY first",
            [sequence.0],
        )
    }

    fn note(&self, which: &str, params: impl rusqlite::Params) -> Result<Option<Note>, StoreError> {
        let select = format!("{NOTES} {which} LIMIT 1");
        let row = self
            .connection
            .prepare_cached(&select)
            .and_then(|mut select| select.query_row(params, stored_note).optional())
            .map_err(failed("read a checkpoint"))?;
        row.map(note_of).transpose()
    }

    /// The checkpoints that signatures of the entries from `from` up to but not including `to`
    /// refer to, oldest first.
    ///
    /// # Errors
    /// When one can't be read, or is none; nothing follows then.
    pub fn notes_of(
        &self,
        from: Sequence,
        to: Sequence,
        mut each: impl FnMut(Note) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        if from >= to {
            return Ok(());
        }
        let select = format!(
            "{NOTES} AND mode='{}' AND first < ?2 \
             AND first >= coalesce((SELECT max(first) FROM commits WHERE first <= ?1), ?1) ORDER BY first",
            mode_of(SignatureAlgorithm::TreeP256)
        );
        let doing = "read the checkpoints";
        let mut select = self.connection.prepare_cached(&select).map_err(failed(doing))?;
        let mut rows = select.query([from.0, to.0]).map_err(failed(doing))?;
        while let Some(row) = rows.next().map_err(failed(doing))? {
            each(note_of(stored_note(row).map_err(failed(doing))?)?)?;
        }
        Ok(())
    }

    /// The mode in which the last committed entries were signed.
    ///
    /// # Errors
    /// When it can't be read, or is none.
    pub fn mode(&self) -> Result<Option<SignatureAlgorithm>, StoreError> {
        let mode: Option<String> = self
            .connection
            .query_row(
                "SELECT mode FROM commits WHERE signatures IS NOT NULL ORDER BY first DESC LIMIT 1",
                [],
                |row| row.get(0),
            )
            .optional()
            .map_err(failed("read the mode"))?;
        mode.map(|mode| {
            algorithm_of(&mode).ok_or_else(|| StoreError::Damaged(format!("there is no mode {mode}")))
        })
        .transpose()
    }

    /// The version of the file's schema, and that which this program writes.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn schema_version(&self) -> Result<(i32, i32), StoreError> {
        self.connection
            .query_row("PRAGMA user_version", [], |row| Ok((row.get(0)?, VERSION)))
            .map_err(failed("read the schema version"))
    }

    /// Has SQLite look through the whole file: what it finds wrong with it, in its words, a few lines at
    /// most. It takes as long as reading the file does.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn look_through(&self) -> Result<Vec<String>, StoreError> {
        let doing = "look through the ledger";
        let mut select = self.connection.prepare("PRAGMA quick_check(5)").map_err(failed(doing))?;
        let said = select.query_map([], |row| row.get(0)).map_err(failed(doing))?;
        let said: Vec<String> = said.collect::<Result<_, _>>().map_err(failed(doing))?;
        Ok(if said == ["ok"] { Vec::new() } else { said })
    }

    /// Moves what is in the WAL into the file, as far as no reader is in the way.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn checkpoint(&self) -> Result<(), StoreError> {
        self.connection
            .query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))
            .map_err(failed("checkpoint the WAL"))
    }
}

/// Signed checkpoints; the index keeps them from being looked for among all commits.
const NOTES: &str = "SELECT checkpoint, key_id, coalesce(checkpoint_signature, signatures) \
     FROM commits INDEXED BY checkpoints WHERE checkpoint IS NOT NULL AND signatures IS NOT NULL";

type StoredNote = (String, Vec<u8>, Vec<u8>);

fn stored_note(row: &rusqlite::Row<'_>) -> rusqlite::Result<StoredNote> {
    Ok((row.get(0)?, row.get(1)?, row.get(2)?))
}

fn note_of((text, key, signature): StoredNote) -> Result<Note, StoreError> {
    let damaged = |what: &dyn std::fmt::Display| StoreError::Damaged(format!("a checkpoint: {what}"));
    let checkpoint = Checkpoint::parse(&text).map_err(|fault| damaged(&fault))?;
    let key: [u8; 32] = key.try_into().map_err(|_| damaged(&"its key id is not 32 bytes"))?;
    let signature = Signature::from_stored(&signature).ok_or_else(|| damaged(&"its signature is not one"))?;
    Ok(Note::new(checkpoint, KeyId(Digest(key)), &signature))
}

/// What a proof that could not be made says of the ledger: its tiles are not as they must be.
impl From<TreeError<StoreError>> for StoreError {
    fn from(error: TreeError<StoreError>) -> Self {
        match error {
            TreeError::Read { source, .. } => source,
            error @ (TreeError::Range { .. } | TreeError::TileLength { .. }) => {
                StoreError::Damaged(error.to_string())
            }
        }
    }
}

fn wal_beside(path: &Path) -> bool {
    let mut wal = path.as_os_str().to_owned();
    wal.push("-wal");
    Path::new(&wal).exists()
}

fn open_for_reading(path: &Path) -> Result<Connection, StoreError> {
    let connection = open(path, OpenFlags::SQLITE_OPEN_READ_WRITE)
        .or_else(|_| open(path, OpenFlags::SQLITE_OPEN_READ_ONLY))?;
    connection
        .execute_batch("PRAGMA query_only=ON; PRAGMA cache_size=-2048;")
        .map_err(failed("open the ledger for reading"))?;
    connection
        .query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))
        .map_err(failed("open the ledger for reading"))?;
    Ok(connection)
}

fn line_of(
    row: &rusqlite::Row<'_>,
    signature_of: impl Fn(u64) -> Option<Signature>,
) -> Result<Line, StoreError> {
    let get = failed("read an entry");
    let sequence: u64 = row.get(0).map_err(&get)?;
    let signature_at: usize = row.get(1).map_err(&get)?;
    let body = row.get_ref(2).map_err(&get)?;
    let body = body.as_blob().map_err(|e| StoreError::Damaged(e.to_string()))?;
    let caller: Option<u32> = row.get(3).map_err(&get)?;
    let content: Option<[u8; 32]> = row.get(4).map_err(&get)?;
    let signature =
        signature_of(sequence).ok_or_else(|| StoreError::Damaged("its signature is not one".into()))?;
    if signature_at > body.len() {
        return Err(StoreError::Damaged("its body is cut".into()));
    }
    let mut hex = Vec::with_capacity(canonical::MAX_SIGNATURE_HEX);
    signature.write_hex_der(&mut hex);
    Ok(Line {
        sequence: Sequence(sequence),
        bytes: canonical::seal(body, signature_at, &hex),
        idempotency: caller.zip(content.map(Digest)),
    })
}
