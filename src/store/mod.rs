//! The ledger file: what is durable, in which order, and what readers may see of it.
//!
//! One writer ([`Store`]) and any number of readers ([`Reader`]) of one SQLite file in WAL mode
//! with `synchronous=FULL`. It stores what it is given and judges nothing; [`Committed`] can only
//! be made here, after the signatures are on the disk.
//!
//! ```text
//! reserve n+1 and commit n  ──one transaction──►  entries(n+1), tiles(n+1), commits(n+1), signatures(n)
//! ```

mod copy;
mod reader;
mod schema;

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::{Flock, FlockArg};
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, params};

pub use copy::Copied;
pub use reader::{Line, Reader};
pub use schema::Progress;

use crate::ledger::canonical::{self, Unsigned};
use crate::ledger::chain::{Entry, Head};
use crate::ledger::checkpoint::{Checkpoint, Note};
use crate::ledger::entry::{Sequence, SignatureAlgorithm};
use crate::ledger::hash::Digest;
use crate::ledger::key::{KeyId, Signable, Signature};
use crate::ledger::tile::{Edge, TileBytes};

/// The writer checkpoints the WAL itself only when it has grown to this many pages (32 MiB) in
/// spite of the checkpoint thread.
const WAL_LIMIT_PAGES: u32 = 8_192;
/// What can go wrong with the ledger file.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is no ledger.
    #[error("there is no ledger at {0}")]
    Missing(PathBuf),
    /// There is something already.
    #[error("{0} exists already")]
    Exists(PathBuf),
    /// The file is not a ledger.
    #[error("{0} is not an attestd ledger")]
    NotALedger(PathBuf),
    /// A newer program wrote it.
    #[error("the ledger has schema version {found}, this program knows up to {}", schema::VERSION)]
    Newer {
        /// The version found.
        found: i32,
    },
    /// Another daemon has it.
    #[error("another process holds the lock {0}")]
    Locked(PathBuf),
    /// The linked SQLite must not be used.
    #[error("SQLite {0} is linked; 3.51.3 or later is needed, earlier ones can corrupt a WAL")]
    OldSqlite(&'static str),
    /// The disk is full. Nothing was reserved.
    #[error("the disk is full")]
    Full(#[source] rusqlite::Error),
    /// What is stored contradicts itself.
    #[error("the ledger is damaged: {0}")]
    Damaged(String),
    /// Reading or writing failed. After a write the outcome is unknown.
    #[error("couldn't {doing}: {source}")]
    Sqlite {
        /// What was being done.
        doing: &'static str,
        /// Why it failed.
        source: rusqlite::Error,
    },
    /// A file operation failed.
    #[error("couldn't {doing} {path}: {source}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
}

impl StoreError {
    /// Whether it was for want of room, in a reservation or in what had to be written all the same.
    #[must_use]
    pub fn is_full(&self) -> bool {
        match self {
            StoreError::Full(_) => true,
            StoreError::Sqlite { source, .. } => source.sqlite_error_code() == Some(ErrorCode::DiskFull),
            _ => false,
        }
    }
}

fn failed(doing: &'static str) -> impl Fn(rusqlite::Error) -> StoreError {
    use rusqlite::Error;
    move |source| match (&source, source.sqlite_error_code()) {
        (_, Some(ErrorCode::DiskFull)) => StoreError::Full(source),
        // The file, or a value in it, is not what this program writes: another start finds the same.
        (_, Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
        | (
            Error::FromSqlConversionFailure(..)
            | Error::IntegralValueOutOfRange(..)
            | Error::InvalidColumnType(..)
            | Error::Utf8Error(..),
            _,
        ) => StoreError::Damaged(format!("couldn't {doing}: {source}")),
        _ => StoreError::Sqlite { doing, source },
    }
}

/// An entry in a reservation.
#[derive(Debug)]
pub struct Reserved {
    /// The entry.
    pub entry: Entry,
    /// Where a client gave its id: by whom, and the hash of the content that it gave with it.
    pub idempotency: Option<(u32, Digest)>,
}

/// Entries that are reserved, signed and committed together, or a checkpoint alone over entries
/// that are committed already.
#[derive(Debug)]
pub struct Reservation {
    /// The sequence number of the first.
    pub first: Sequence,
    /// With which key all are signed.
    pub key: KeyId,
    /// In which way.
    pub algorithm: SignatureAlgorithm,
    /// The entries, in order.
    pub entries: Vec<Reserved>,
    /// The tiles of the tree that change with them.
    pub tiles: Vec<TileBytes>,
    /// The tree with the entries in it, if that is to be signed too. In mode `commit` it must be.
    pub checkpoint: Option<Checkpoint>,
}

impl Reservation {
    /// The sequence number after the last entry.
    #[must_use]
    pub fn end(&self) -> Sequence {
        Sequence(self.first.0 + self.entries.len() as u64)
    }

    /// What the token signs: each entry that has a signature of its own, then the checkpoint.
    #[must_use]
    pub fn signables(&self) -> Vec<Signable> {
        let alone: &[Reserved] = match self.algorithm {
            SignatureAlgorithm::EntryP256 => &self.entries,
            SignatureAlgorithm::TreeP256 => &[],
        };
        let entries = alone.iter().map(|reserved| reserved.entry.signable());
        entries.chain(self.checkpoint.clone().map(Signable::Checkpoint)).collect()
    }
}

/// Entries that are durable with their signatures. Only [`Store::write`] makes one.
#[derive(Debug)]
pub struct Committed {
    reservation: Reservation,
    /// Of what [`Reservation::signables`] names.
    signatures: Vec<Signature>,
}

impl Committed {
    /// The sequence number after the last entry.
    #[must_use]
    pub fn end(&self) -> Sequence {
        self.reservation.end()
    }

    /// How its entries are signed.
    #[must_use]
    pub fn algorithm(&self) -> SignatureAlgorithm {
        self.reservation.algorithm
    }

    /// The signed checkpoint with which this commit ends, if it has one.
    #[must_use]
    pub fn note(&self) -> Option<Note> {
        let checkpoint = self.reservation.checkpoint.clone()?;
        Some(Note::new(checkpoint, self.reservation.key, self.signatures.last()?))
    }

    fn signature(&self, index: usize) -> &Signature {
        match self.reservation.algorithm {
            SignatureAlgorithm::EntryP256 => &self.signatures[index],
            SignatureAlgorithm::TreeP256 => &self.signatures[0],
        }
    }

    /// The entries in order.
    #[must_use]
    pub fn entries(&self) -> &[Reserved] {
        &self.reservation.entries
    }

    /// The sealed line of the entry at `index`.
    #[must_use]
    pub fn line(&self, index: usize) -> Vec<u8> {
        let mut hex = Vec::with_capacity(canonical::MAX_SIGNATURE_HEX);
        self.signature(index).write_hex_der(&mut hex);
        self.reservation.entries[index].entry.unsigned().seal(&hex)
    }

    /// Appends what a batch client gets for the entry at `index`, and a line feed.
    pub fn write_acknowledgement(&self, index: usize, out: &mut Vec<u8>) {
        let entry = &self.reservation.entries[index].entry;
        out.extend_from_slice(
            format!(
                "{{\"sequence_number\":{},\"entry_id\":\"{}\",\"entry_hash\":\"{}\",\"timestamp\":\"{}\",\"hsm_signature\":\"",
                entry.sequence(),
                entry.id(),
                entry.hash(),
                entry.timestamp()
            )
            .as_bytes(),
        );
        self.signature(index).write_hex_der(out);
        out.extend_from_slice(b"\"}\n");
    }
}

/// A row of a reservation that a stopped daemon left unsigned.
#[derive(Debug)]
pub struct Unfinished {
    /// The sequence number of the first.
    pub first: Sequence,
    /// The key with which it must be signed.
    pub key: KeyId,
    /// Its mode, as stored.
    pub mode: String,
    /// The `entry_hash`es in order, recomputed from the bodies.
    pub hashes: Vec<Digest>,
    /// The text of the checkpoint that was reserved with them.
    pub checkpoint: Option<String>,
}

impl Unfinished {
    /// What has to be signed, which is what was to be signed before: `edge` is that of the tree
    /// before these entries, and afterwards of the tree with them.
    ///
    /// # Errors
    /// When the tree that the entries make is not the one that was reserved.
    pub fn signables(&self, edge: &mut Edge) -> Result<Vec<Signable>, StoreError> {
        let damaged = |what: &str| StoreError::Damaged(format!("reservation {}: {what}", self.first));
        edge.extend(self.hashes.iter().copied()).map_err(|full| damaged(&full.to_string()))?;
        let Some(text) = &self.checkpoint else {
            return Ok(self.hashes.iter().copied().map(Signable::Entry).collect());
        };
        let checkpoint = Checkpoint::parse(text).map_err(|fault| damaged(&fault.to_string()))?;
        if checkpoint.root() != edge.root() {
            return Err(damaged("its entries make another tree than its checkpoint says"));
        }
        Ok(vec![Signable::Checkpoint(checkpoint)])
    }
}

/// The one writer of a ledger file. It holds the lock that keeps a second daemon out.
#[derive(Debug)]
pub struct Store {
    connection: Connection,
    path: PathBuf,
    /// Bytes of all committed lines.
    bytes: u64,
    _lock: Flock<File>,
}

impl Store {
    /// Makes a new, empty ledger file, readable by its owner and group only.
    ///
    /// # Errors
    /// [`StoreError::Exists`] when anything is there.
    pub fn create(path: &Path) -> Result<Self, StoreError> {
        schema::check_sqlite()?;
        let lock = lock(path)?;
        match std::fs::OpenOptions::new().write(true).create_new(true).mode(0o640).open(path) {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                return Err(StoreError::Exists(path.into()));
            }
            Err(source) => return Err(StoreError::Io { doing: "create", path: path.into(), source }),
        }
        let connection = schema::open(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        let setup = format!(
            "PRAGMA page_size=8192; PRAGMA journal_mode=WAL; BEGIN; {}{} PRAGMA application_id={}; \
             PRAGMA user_version={}; COMMIT;",
            include_str!("schema.sql"),
            include_str!("tree.sql"),
            schema::APPLICATION_ID,
            schema::VERSION,
        );
        connection.execute_batch(&setup).map_err(failed("create the ledger's tables"))?;
        Self::with(connection, path, lock)
    }

    /// Opens the ledger file and brings an older schema up to date, of which `progress` hears.
    ///
    /// # Errors
    /// When it is missing, not a ledger, newer than this program, or held by another daemon.
    pub fn open(path: &Path, progress: Progress<'_>) -> Result<Self, StoreError> {
        schema::check_sqlite()?;
        if !path.exists() {
            return Err(StoreError::Missing(path.into()));
        }
        let lock = lock(path)?;
        let mut connection = schema::open(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        let found = schema::check_kind(&connection, path)?;
        schema::migrate(&mut connection, found, &schema::MIGRATIONS, progress)?;
        Self::with(connection, path, lock)
    }

    fn with(connection: Connection, path: &Path, lock: Flock<File>) -> Result<Self, StoreError> {
        connection
            .execute_batch(&format!(
                "PRAGMA synchronous=FULL; PRAGMA wal_autocheckpoint={WAL_LIMIT_PAGES}; PRAGMA cache_size=-4096;"
            ))
            .map_err(failed("set up the ledger's connection"))?;
        let mode: String = connection
            .query_row("PRAGMA journal_mode", [], |row| row.get(0))
            .map_err(failed("read the journal mode"))?;
        if mode != "wal" {
            return Err(StoreError::Damaged(format!("its journal mode is {mode}, not wal")));
        }
        let bytes: Option<u64> = connection
            .query_row(
                "SELECT bytes FROM commits WHERE signatures IS NOT NULL ORDER BY first DESC LIMIT 1",
                [],
                |row| row.get(0),
            )
            .optional()
            .map_err(failed("read the last commit"))?;
        check_end(&connection)?;
        Ok(Store { connection, path: path.into(), bytes: bytes.unwrap_or(0), _lock: lock })
    }

    /// Where the file is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes signatures of the commit before and the reservation of the next in one durable
    /// transaction. At least one of them is given.
    ///
    /// Afterwards: `Ok`, both are durable. [`StoreError::Full`], nothing was reserved; the commit
    /// half was tried again alone and `committed` says whether it is durable. Any other error: the
    /// outcome is unknown, and the daemon must stop, because the page cache may no longer say what
    /// the disk holds.
    ///
    /// # Errors
    /// As above, beside what was committed all the same.
    pub fn write(
        &mut self,
        signed: Option<(Reservation, Vec<Signature>)>,
        reserve: Option<&Reservation>,
    ) -> (Option<Arc<Committed>>, Result<(), StoreError>) {
        let commit = signed.map(|(reservation, signatures)| Committed { reservation, signatures });
        match self.transaction(commit.as_ref(), reserve) {
            Ok(bytes) => {
                self.bytes = bytes;
                (commit.map(Arc::new), Ok(()))
            }
            Err(full @ StoreError::Full(_)) if reserve.is_some() && commit.is_some() => {
                match self.transaction(commit.as_ref(), None) {
                    Ok(bytes) => {
                        self.bytes = bytes;
                        (commit.map(Arc::new), Err(full))
                    }
                    // The signatures could not be kept. They are still reserved, and a restart
                    // with room on the disk signs the same entries again.
                    Err(StoreError::Full(source)) => {
                        (None, Err(StoreError::Sqlite { doing: "commit the signatures", source }))
                    }
                    Err(other) => (None, Err(other)),
                }
            }
            Err(StoreError::Full(source)) if commit.is_some() => {
                (None, Err(StoreError::Sqlite { doing: "commit the signatures", source }))
            }
            Err(other) => (None, Err(other)),
        }
    }

    fn transaction(
        &mut self,
        commit: Option<&Committed>,
        reserve: Option<&Reservation>,
    ) -> Result<u64, StoreError> {
        let mut bytes = self.bytes;
        let transaction = self.connection.transaction().map_err(failed("begin a commit"))?;
        if let Some(committed) = commit {
            bytes += commit_in(&transaction, committed, bytes)?;
        }
        if let Some(reservation) = reserve {
            reserve_in(&transaction, reservation).map_err(failed("reserve entries"))?;
        }
        // Reserved but unsigned from here on. If we stop after this line, the next start finds the
        // same rows and signs them again, so no sequence number is ever signed with two contents.
        transaction.commit().map_err(failed("make a commit durable"))?;
        Ok(bytes)
    }

    /// The reservation that a stopped daemon left unsigned, if any. `head` is what its first entry
    /// must follow.
    ///
    /// Whatever this returns gets signed, so each entry is held to be what the sequencer would have
    /// reserved at this place: no other content ever gets a number that was given.
    ///
    /// # Errors
    /// When it can't be read, or its entries are not whole or not the next in the chain.
    pub fn unfinished(&self, mut head: Head) -> Result<Option<Unfinished>, StoreError> {
        let row = self
            .connection
            .query_row(
                "SELECT first, count, key_id, mode, checkpoint FROM commits WHERE signatures IS NULL ORDER BY first",
                [],
                |row| {
                    let key: Vec<u8> = row.get(2)?;
                    Ok((row.get::<_, u64>(0)?, row.get::<_, u64>(1)?, key, row.get::<_, String>(3)?, row.get(4)?))
                },
            )
            .optional()
            .map_err(failed("look for reserved entries"))?;
        let Some((first, count, key, mode, checkpoint)) = row else { return Ok(None) };
        let key: [u8; 32] =
            key.try_into().map_err(|_| StoreError::Damaged("a key id is not 32 bytes".into()))?;
        let key = KeyId(Digest(key));
        let mut hashes = Vec::new();
        let mut select = self
            .connection
            .prepare("SELECT body, signature_at FROM entries WHERE sequence >= ?1 AND sequence < ?2 ORDER BY sequence")
            .map_err(failed("read reserved entries"))?;
        let mut rows = select.query([first, first + count]).map_err(failed("read reserved entries"))?;
        while let Some(row) = rows.next().map_err(failed("read reserved entries"))? {
            let next = head.next;
            let damaged =
                |what: &dyn std::fmt::Display| StoreError::Damaged(format!("reserved entry {next}: {what}"));
            let body: Vec<u8> = row.get(0).map_err(failed("read reserved entries"))?;
            let signature_at: usize = row.get(1).map_err(failed("read reserved entries"))?;
            let decoded = canonical::decode(&body).map_err(|fault| damaged(&fault))?;
            let entry = &decoded.entry;
            if decoded.computed_hash != entry.entry_hash {
                return Err(damaged(&"its hash is wrong"));
            }
            if canonical::encode(entry)
                != (Unsigned { line: body.clone(), signature_at, hash: entry.entry_hash })
            {
                return Err(damaged(&"it has a signature, or no place for one"));
            }
            if entry.signing_key_id != key {
                return Err(damaged(&"it names another key than its reservation"));
            }
            if algorithm_of(&mode).is_some_and(|algorithm| algorithm != entry.signature_algorithm) {
                return Err(damaged(&"it names another mode than its reservation"));
            }
            head.follow(entry).map_err(|code| damaged(&code.title()))?;
            hashes.push(entry.entry_hash);
        }
        if hashes.len() as u64 != count {
            return Err(StoreError::Damaged(format!(
                "{count} entries were reserved, {} are there",
                hashes.len()
            )));
        }
        Ok(Some(Unfinished { first: Sequence(first), key, mode, hashes, checkpoint }))
    }

    /// Makes the signatures of an [`Unfinished`] reservation durable.
    ///
    /// # Errors
    /// When it is not reserved any more, or can't be written.
    pub fn finish(&mut self, unfinished: &Unfinished, signatures: &[Signature]) -> Result<(), StoreError> {
        let raw: Vec<u8> = signatures.iter().flat_map(|signature| *signature.as_bytes()).collect();
        let mut bytes = self.bytes;
        for index in 0..unfinished.hashes.len() {
            let length: u64 = self
                .connection
                .query_row(
                    "SELECT length(body) FROM entries WHERE sequence=?1",
                    [unfinished.first.0 + index as u64],
                    |row| row.get(0),
                )
                .map_err(failed("read a reserved entry"))?;
            // Each its own, or all the one of the checkpoint.
            let signature = signatures
                .get(index)
                .or(signatures.last().filter(|_| unfinished.checkpoint.is_some()))
                .ok_or_else(|| StoreError::Damaged("a signature is missing".into()))?;
            bytes += length + signature.to_der().len() as u64 * 2 + 1;
        }
        let changed = self
            .connection
            .execute(
                "UPDATE commits SET signatures=?2, bytes=?3 WHERE first=?1 AND signatures IS NULL",
                params![unfinished.first.0, raw, bytes],
            )
            .map_err(failed("commit signatures found missing"))?;
        if changed != 1 {
            return Err(StoreError::Damaged(format!("entry {} is not reserved any more", unfinished.first)));
        }
        self.bytes = bytes;
        Ok(())
    }
}

/// Holds the entries to end where the commits do. What stands beyond would be in the way of the
/// next reservation, and what is missing was there once.
fn check_end(connection: &Connection) -> Result<(), StoreError> {
    let end = |select: &str| connection.query_row(select, [], |row| row.get::<_, u64>(0));
    let doing = failed("look for the end of the ledger");
    let entries = end("SELECT coalesce(max(sequence) + 1, 0) FROM entries").map_err(&doing)?;
    let commits = end("SELECT coalesce((SELECT first + count FROM commits ORDER BY first DESC LIMIT 1), 0)")
        .map_err(&doing)?;
    if entries == commits {
        Ok(())
    } else {
        Err(StoreError::Damaged(format!("its entries end at {entries}, its commits at {commits}")))
    }
}

fn reserve_in(transaction: &rusqlite::Transaction<'_>, reservation: &Reservation) -> rusqlite::Result<()> {
    let mut insert = transaction.prepare_cached(
        "INSERT INTO entries (sequence, signature_at, body, caller, content) VALUES (?1, ?2, ?3, ?4, ?5)",
    )?;
    for reserved in &reservation.entries {
        let unsigned = reserved.entry.unsigned();
        insert.execute(params![
            reserved.entry.sequence().0,
            unsigned.signature_at,
            unsigned.line,
            reserved.idempotency.map(|(uid, _)| uid),
            reserved.idempotency.map(|(_, content)| content.0),
        ])?;
    }
    insert_tiles(transaction, &reservation.tiles)?;
    let checkpoint = match reservation.algorithm {
        SignatureAlgorithm::EntryP256 => None,
        SignatureAlgorithm::TreeP256 => reservation.checkpoint.as_ref().map(Checkpoint::text),
    };
    transaction
        .prepare_cached(
            "INSERT INTO commits (first, count, key_id, mode, checkpoint) VALUES (?1, ?2, ?3, ?4, ?5)",
        )?
        .execute(params![
            reservation.first.0,
            reservation.entries.len(),
            reservation.key.0.0,
            mode_of(reservation.algorithm),
            checkpoint,
        ])?;
    Ok(())
}

/// Writes what a signature makes of a reservation. Gives the bytes of its sealed lines.
fn commit_in(
    transaction: &rusqlite::Transaction<'_>,
    committed: &Committed,
    before: u64,
) -> Result<u64, StoreError> {
    let Committed { reservation, signatures } = committed;
    let doing = failed("commit the signatures");
    let not_reserved = || {
        StoreError::Damaged(format!("entry {} is not reserved, so it can't be committed", reservation.first))
    };
    let count = reservation.entries.len();
    // In mode `each` a checkpoint is signed beside the entries, and its signature is the last.
    let (of_entries, of_checkpoint) = match reservation.algorithm {
        SignatureAlgorithm::EntryP256 => signatures.split_at(count.min(signatures.len())),
        SignatureAlgorithm::TreeP256 => (&signatures[..], &[][..]),
    };
    let beside = reservation.checkpoint.as_ref().zip(of_checkpoint.first());
    let (text, signature) =
        (beside.map(|(checkpoint, _)| checkpoint.text()), beside.map(|(_, signature)| signature.as_bytes()));
    if count == 0 {
        // A tree has one note: the commit that ends with it must be whole and have none. The next
        // one may be reserved already.
        let changed = transaction
            .prepare_cached(
                "UPDATE commits SET checkpoint=?2, checkpoint_signature=?3 \
                 WHERE first=(SELECT max(first) FROM commits WHERE first < ?1) AND first + count = ?1 \
                 AND signatures IS NOT NULL AND checkpoint IS NULL",
            )
            .and_then(|mut update| update.execute(params![reservation.first.0, text, signature]))
            .map_err(&doing)?;
        return if changed == 1 { Ok(0) } else { Err(not_reserved()) };
    }
    let mut bytes = 0;
    for (index, reserved) in reservation.entries.iter().enumerate() {
        let hex = committed.signature(index).to_der().len() * 2;
        bytes += (reserved.entry.unsigned().line.len() + hex + 1) as u64;
    }
    let raw: Vec<u8> = of_entries.iter().flat_map(|signature| *signature.as_bytes()).collect();
    let changed = transaction
        .prepare_cached(
            "UPDATE commits SET signatures=?2, bytes=?3, checkpoint=coalesce(?4, checkpoint), \
             checkpoint_signature=?5 WHERE first=?1 AND signatures IS NULL",
        )
        .and_then(|mut update| {
            update.execute(params![reservation.first.0, raw, before + bytes, text, signature])
        })
        .map_err(&doing)?;
    if changed == 1 { Ok(bytes) } else { Err(not_reserved()) }
}

/// Keeps tiles. The partial one of leaves is made from the entries when it is asked for.
fn insert_tiles(transaction: &rusqlite::Transaction<'_>, tiles: &[TileBytes]) -> rusqlite::Result<()> {
    let mut insert = transaction
        .prepare_cached("INSERT OR REPLACE INTO tiles (level, tile, hashes) VALUES (?1, ?2, ?3)")?;
    for TileBytes { tile, bytes } in tiles {
        if tile.is_full() || tile.level() > 0 {
            insert.execute(params![tile.level(), tile.index(), bytes])?;
        }
    }
    Ok(())
}

/// The name of the mode that signs with `algorithm`.
#[must_use]
pub fn mode_of(algorithm: SignatureAlgorithm) -> &'static str {
    match algorithm {
        SignatureAlgorithm::EntryP256 => "each",
        SignatureAlgorithm::TreeP256 => "commit",
    }
}

/// The algorithm of the mode that is so named.
#[must_use]
pub fn algorithm_of(mode: &str) -> Option<SignatureAlgorithm> {
    [SignatureAlgorithm::EntryP256, SignatureAlgorithm::TreeP256]
        .into_iter()
        .find(|algorithm| mode_of(*algorithm) == mode)
}

/// Keeps daemons from the ledger, until it is dropped.
#[derive(Debug)]
pub struct KeptOut {
    _lock: Option<Flock<File>>,
}

/// Keeps daemons from the ledger at `path` for a while, changing nothing.
///
/// # Errors
/// [`StoreError::Locked`] when one is running on it, or when that can't be told.
pub fn keep_out(path: &Path) -> Result<KeptOut, StoreError> {
    let lock_path = path.with_added_extension("lock");
    let file = match File::open(&lock_path) {
        Ok(file) => file,
        // No daemon was ever started on it.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(KeptOut { _lock: None }),
        Err(source) => return Err(StoreError::Io { doing: "open the lock", path: lock_path, source }),
    };
    let lock =
        Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| StoreError::Locked(lock_path))?;
    Ok(KeptOut { _lock: Some(lock) })
}

/// The lock is a file of its own: closing any descriptor of the database itself would drop
/// SQLite's locks on it.
fn lock(path: &Path) -> Result<Flock<File>, StoreError> {
    let lock_path = path.with_added_extension("lock");
    let file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        // Whoever can open it can hold it, and with it keep the daemon from starting.
        .mode(0o600)
        .open(&lock_path)
        .map_err(|source| StoreError::Io { doing: "open the lock", path: lock_path.clone(), source })?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| StoreError::Locked(lock_path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::governance::{Host, Policy};
    use crate::ledger::entry::{EntryId, EventCategory, EventType};
    use crate::ledger::timestamp::Timestamp;

    const KEY: KeyId = KeyId(Digest([7; 32]));

    /// A ledger in a directory of its own, with `head` following what was reserved in it.
    struct Ledger {
        _dir: tempfile::TempDir,
        path: PathBuf,
        head: Head,
        edge: Edge,
        algorithm: SignatureAlgorithm,
    }

    impl Ledger {
        fn new() -> (Self, Store) {
            let dir = tempfile::tempdir().expect("a directory");
            let path = dir.path().join("ledger.db");
            let store = Store::create(&path).expect("created");
            let algorithm = SignatureAlgorithm::EntryP256;
            (Ledger { _dir: dir, path, head: Head::EMPTY, edge: Edge::new(), algorithm }, store)
        }

        /// Makes the next `count` entries, of about `bytes` each.
        fn reservation(&mut self, count: usize, bytes: usize) -> Reservation {
            let host =
                Host { version: "0".into(), host: "h".into(), boot_id: String::new(), replicas: Vec::new() };
            let policy = Policy::new(&host, 1 << 20);
            let first = self.head.next;
            let mut entry = || {
                let payload = format!(r#"{{"filler":"{}"}}"#, "x".repeat(bytes));
                let id = EntryId(*uuid::Uuid::new_v4().as_bytes());
                let admitted = policy.own(EventType::Action, EventCategory::Normal, "test", payload, id);
                let now = Timestamp::from_micros(1_000_000);
                let entry = self.head.extend(admitted.view(), now, self.algorithm, KEY);
                Reserved { entry, idempotency: None }
            };
            let entries: Vec<Reserved> = (0..count).map(|_| entry()).collect();
            let tiles = self.edge.extend(entries.iter().map(|reserved| reserved.entry.hash())).expect("room");
            let checkpoint = match self.algorithm {
                SignatureAlgorithm::EntryP256 => None,
                SignatureAlgorithm::TreeP256 => Some(self.checkpoint()),
            };
            Reservation { first, key: KEY, algorithm: self.algorithm, entries, tiles, checkpoint }
        }

        fn checkpoint(&self) -> Checkpoint {
            Checkpoint::new("test.example/ledger", self.edge.root()).expect("an origin")
        }

        /// Reserves and commits.
        fn append(&mut self, store: &mut Store, count: usize) {
            let reservation = self.reservation(count, 10);
            let signed = reservation.signables().len();
            assert!(store.write(None, Some(&reservation)).1.is_ok());
            assert!(store.write(Some((reservation, signatures(signed))), None).1.is_ok());
        }

        fn count(&self) -> u64 {
            Reader::open(&self.path).and_then(|reader| reader.count()).expect("readable")
        }
    }

    /// In range, and no more: the store does not verify.
    fn signatures(count: usize) -> Vec<Signature> {
        let mut raw = [0; Signature::BYTES];
        (raw[31], raw[63]) = (1, 1);
        vec![Signature::from_stored(&raw).expect("in range"); count]
    }

    /// Lets the file grow by `pages` and no more: SQLite then says what it says of a full disk.
    fn leave_room_for(store: &Store, pages: i64) {
        let count: i64 =
            store.connection.query_row("PRAGMA page_count", [], |row| row.get(0)).expect("a number");
        store
            .connection
            .query_row(&format!("PRAGMA max_page_count={}", count + pages), [], |_| Ok(()))
            .expect("set");
    }

    #[test]
    fn reserved_entries_are_seen_when_they_are_committed() {
        let (mut ledger, mut store) = Ledger::new();
        let first = ledger.reservation(3, 10);
        let (committed, result) = store.write(None, Some(&first));
        assert!(committed.is_none() && result.is_ok());
        let reader = Reader::open(&ledger.path).expect("opened");
        assert_eq!(reader.count().expect("readable"), 0);
        assert_eq!(reader.line(Sequence(0)).expect("readable"), None);
        assert_eq!(reader.head().expect("readable"), Head::EMPTY);

        let second = ledger.reservation(2, 10);
        let (committed, result) = store.write(Some((first, signatures(3))), Some(&second));
        assert!(result.is_ok());
        let committed = committed.expect("committed");
        assert_eq!(committed.end(), Sequence(3));
        assert_eq!(reader.count().expect("readable"), 3);
        assert_eq!(reader.line(Sequence(3)).expect("readable"), None);
        let lines = reader.lines(Sequence(0), Sequence(9), usize::MAX).expect("readable");
        let sealed: Vec<Vec<u8>> = (0..3).map(|index| committed.line(index)).collect();
        assert_eq!(lines.into_iter().map(|line| line.bytes).collect::<Vec<_>>(), sealed);

        assert!(store.write(Some((second, signatures(2))), None).1.is_ok());
        let lines = reader.lines(Sequence(0), Sequence(9), usize::MAX).expect("readable");
        for end in 0..=5 {
            let bytes: usize = lines[..end].iter().map(|line| line.bytes.len() + 1).sum();
            assert_eq!(reader.bytes_before(Sequence(end as u64)).expect("readable"), bytes as u64);
        }
        assert_eq!(reader.head().expect("readable"), ledger.head);
    }

    #[test]
    fn a_reserve_without_room_reserves_nothing() {
        let (mut ledger, mut store) = Ledger::new();
        let reservation = ledger.reservation(1, 100_000);
        leave_room_for(&store, 2);
        let (committed, result) = store.write(None, Some(&reservation));
        assert!(committed.is_none());
        assert!(matches!(result, Err(StoreError::Full(_))), "{result:?}");
        assert!(store.unfinished(Head::EMPTY).expect("readable").is_none());
        leave_room_for(&store, 100);
        assert!(store.write(None, Some(&reservation)).1.is_ok());
    }

    #[test]
    fn a_commit_goes_on_alone_when_the_reserve_beside_it_has_no_room() {
        let (mut ledger, mut store) = Ledger::new();
        let first = ledger.reservation(1, 10);
        assert!(store.write(None, Some(&first)).1.is_ok());
        let second = ledger.reservation(1, 100_000);
        leave_room_for(&store, 2);
        let (committed, result) = store.write(Some((first, signatures(1))), Some(&second));
        assert_eq!(committed.expect("committed").end(), Sequence(1));
        assert!(matches!(result, Err(StoreError::Full(_))), "{result:?}");
        assert_eq!(ledger.count(), 1);
        assert!(store.unfinished(Head::EMPTY).expect("readable").is_none());
    }

    #[test]
    fn a_commit_without_room_is_unknown_and_stays_reserved() {
        let (mut ledger, mut store) = Ledger::new();
        let reservation = ledger.reservation(1_000, 10);
        let hashes: Vec<Digest> = reservation.entries.iter().map(|reserved| reserved.entry.hash()).collect();
        assert!(store.write(None, Some(&reservation)).1.is_ok());
        for next in [None, Some(ledger.reservation(1, 10))] {
            leave_room_for(&store, 0);
            let again = Reservation {
                entries: clone(&reservation),
                tiles: reservation.tiles.clone(),
                checkpoint: None,
                ..reservation
            };
            let (committed, result) = store.write(Some((again, signatures(1_000))), next.as_ref());
            assert!(committed.is_none());
            // Not `Full`, which would say that all is as before: the daemon must stop.
            assert!(
                matches!(&result, Err(error @ StoreError::Sqlite { .. }) if error.is_full()),
                "{result:?}"
            );
        }
        drop(store);
        let mut store = Store::open(&ledger.path, &mut |_, _| {}).expect("opened");
        let unfinished = store.unfinished(Head::EMPTY).expect("whole").expect("reserved");
        assert_eq!((unfinished.first, &unfinished.hashes), (Sequence(0), &hashes));
        assert_eq!((unfinished.key, unfinished.mode.as_str()), (KEY, "each"));
        store.finish(&unfinished, &signatures(1_000)).expect("finished");
        assert_eq!(ledger.count(), 1_000);
        assert!(store.finish(&unfinished, &signatures(1_000)).is_err());
    }

    fn clone(reservation: &Reservation) -> Vec<Reserved> {
        let entries = reservation.entries.iter();
        entries.map(|reserved| Reserved { entry: reserved.entry.clone(), idempotency: None }).collect()
    }

    #[test]
    fn what_is_not_reserved_is_not_committed() {
        let (mut ledger, mut store) = Ledger::new();
        let reservation = ledger.reservation(1, 10);
        let (committed, result) = store.write(Some((reservation, signatures(1))), None);
        assert!(committed.is_none());
        assert!(matches!(result, Err(StoreError::Damaged(_))), "{result:?}");
        assert_eq!(ledger.count(), 0);
    }

    #[test]
    fn what_is_found_reserved_must_follow_the_head() {
        let (mut ledger, mut store) = Ledger::new();
        let _skipped = ledger.reservation(1, 10);
        let second = ledger.reservation(1, 10);
        assert!(store.write(None, Some(&second)).1.is_ok());
        let error = store.unfinished(Head::EMPTY).expect_err("entry 1 does not follow nothing");
        assert!(error.to_string().contains("reserved entry 0: a sequence number is missing"), "{error}");
    }

    #[test]
    fn the_tree_that_is_read_is_the_one_that_was_written() {
        let (mut ledger, mut store) = Ledger::new();
        let reader = Reader::open(&ledger.path).expect("opened");
        let mut roots = vec![Edge::new().root()];
        for commit in [1, 2, 200, 52, 1, 1, 300, 255, 256, 257] {
            ledger.append(&mut store, commit);
            roots.push(ledger.edge.root());
        }
        // What is reserved beyond what is committed does not show.
        assert!(store.write(None, Some(&ledger.reservation(300, 10))).1.is_ok());
        let count = reader.count().expect("readable");
        assert!(reader.tree(count + 1).is_err());
        let mut tree = reader.tree(count).expect("there");
        for root in &roots {
            assert_eq!(tree.root(root.size).expect("readable"), *root);
            let path = tree.consistency(root.size, roots[roots.len() - 1].size).expect("readable");
            let checked = crate::ledger::merkle::verify_consistency(root, &roots[roots.len() - 1], &path);
            assert_eq!(checked, Ok(()));
        }
        let edge = tree.edge().expect("readable");
        assert_eq!(edge.root(), roots[roots.len() - 1]);
        drop(store);
        let mut store = Store::open(&ledger.path, &mut |_, _| {}).expect("opened");
        let head = reader.head().expect("readable");
        let unfinished = store.unfinished(head).expect("whole").expect("reserved");
        let mut edge = edge;
        let signables = unfinished.signables(&mut edge).expect("the same tree");
        assert_eq!((signables.len(), edge.root()), (300, ledger.edge.root()));
        store.finish(&unfinished, &signatures(300)).expect("finished");
        assert_eq!(reader.tree(count + 300).expect("there").edge().expect("readable").root(), edge.root());
    }

    #[test]
    fn in_mode_commit_all_entries_have_the_signature_of_their_checkpoint() {
        let (mut ledger, mut store) = Ledger::new();
        ledger.append(&mut store, 3);
        ledger.algorithm = SignatureAlgorithm::TreeP256;
        ledger.append(&mut store, 5);
        ledger.append(&mut store, 1);
        let reader = Reader::open(&ledger.path).expect("opened");
        assert_eq!(reader.mode().expect("readable"), Some(SignatureAlgorithm::TreeP256));
        let lines = reader.lines(Sequence(0), Sequence(9), usize::MAX).expect("readable");
        assert_eq!(lines.len(), 9);
        let sized = |sequence| {
            let note = reader.note_over(Sequence(sequence)).expect("readable");
            note.map(|note| note.checkpoint().root().size.leaves())
        };
        // The first three have no checkpoint of their own, so theirs is the next one.
        assert_eq!([0, 2, 3, 7, 8, 9].map(sized), [Some(8), Some(8), Some(8), Some(8), Some(9), None]);
        let newest = reader.newest_note().expect("readable").expect("there");
        assert_eq!(*newest.checkpoint(), ledger.checkpoint());
        let mut sizes = Vec::new();
        for (from, to) in [(0, 9), (0, 3), (2, 4), (7, 8), (8, 9), (9, 9)] {
            let mut these = Vec::new();
            reader
                .notes_of(Sequence(from), Sequence(to), |note| {
                    these.push(note.checkpoint().root().size.leaves());
                    Ok(())
                })
                .expect("readable");
            sizes.push(these);
        }
        let none: Vec<u64> = Vec::new();
        assert_eq!(sizes, [vec![8, 9], none.clone(), vec![8], vec![8], vec![9], none]);

        // After a crash the checkpoint that was reserved is the one that gets signed.
        assert!(store.write(None, Some(&ledger.reservation(4, 10))).1.is_ok());
        let unfinished =
            store.unfinished(reader.head().expect("readable")).expect("whole").expect("reserved");
        let mut edge = reader.tree(9).expect("there").edge().expect("readable");
        let signables = unfinished.signables(&mut edge).expect("the same tree");
        assert_eq!(signables, [Signable::Checkpoint(ledger.checkpoint())]);
        let mut other = Edge::new();
        assert!(matches!(unfinished.signables(&mut other), Err(StoreError::Damaged(_))));
        store.finish(&unfinished, &signatures(1)).expect("finished");
        assert_eq!(sized(9), Some(13));
        let bytes: usize = reader
            .lines(Sequence(0), Sequence(13), usize::MAX)
            .expect("readable")
            .iter()
            .map(|line| line.bytes.len() + 1)
            .sum();
        assert_eq!(reader.bytes_before(Sequence(13)).expect("readable"), bytes as u64);
    }

    #[test]
    fn a_checkpoint_alone_belongs_to_the_last_commit_and_there_is_one_of_a_size() {
        let (mut ledger, mut store) = Ledger::new();
        ledger.append(&mut store, 3);
        let alone = |ledger: &Ledger| Reservation {
            entries: Vec::new(),
            tiles: Vec::new(),
            checkpoint: Some(ledger.checkpoint()),
            first: ledger.head.next,
            key: KEY,
            algorithm: ledger.algorithm,
        };
        let (committed, result) = store.write(Some((alone(&ledger), signatures(1))), None);
        assert!(result.is_ok());
        let note = committed.and_then(|committed| committed.note()).expect("noted");
        let reader = Reader::open(&ledger.path).expect("opened");
        assert_eq!(reader.newest_note().expect("readable"), Some(note));
        assert!(store.write(Some((alone(&ledger), signatures(1))), None).1.is_err());
        // The next commit may be reserved meanwhile.
        ledger.append(&mut store, 2);
        let late = alone(&ledger);
        assert!(store.write(None, Some(&ledger.reservation(1, 10))).1.is_ok());
        assert!(store.write(Some((late, signatures(1))), None).1.is_ok());
        let newest = reader.newest_note().expect("readable").expect("there");
        assert_eq!(newest.checkpoint().root().size.leaves(), 5);
        let stale = Reservation { first: Sequence(3), ..alone(&ledger) };
        assert!(store.write(Some((stale, signatures(1))), None).1.is_err());
    }

    #[test]
    fn a_ledger_without_a_tree_gets_one() {
        let (mut ledger, mut store) = Ledger::new();
        for count in [1, 700, 3] {
            ledger.append(&mut store, count);
        }
        store
            .connection
            .execute_batch(
                "DROP TABLE tiles; DROP INDEX checkpoints; ALTER TABLE commits DROP COLUMN checkpoint; \
                 ALTER TABLE commits DROP COLUMN checkpoint_signature; PRAGMA user_version=1;",
            )
            .expect("version 1");
        drop(store);
        let mut heard = Vec::new();
        let mut store = Store::open(&ledger.path, &mut |done, of| heard.push((done, of))).expect("migrated");
        assert_eq!(heard, [(704, 704)]);
        let reader = Reader::open(&ledger.path).expect("opened");
        assert_eq!(reader.tree(704).expect("there").edge().expect("readable").root(), ledger.edge.root());
        assert_eq!(reader.newest_note().expect("readable"), None);
        ledger.append(&mut store, 300);
        assert_eq!(reader.tree(1_004).expect("there").edge().expect("readable").root(), ledger.edge.root());
    }

    #[test]
    fn what_is_good_before_a_gap_is_read_and_the_next_call_names_the_gap() {
        let (mut ledger, mut store) = Ledger::new();
        ledger.append(&mut store, 150);
        ledger.append(&mut store, 150);
        let reader = Reader::open(&ledger.path).expect("opened");
        let gap_at = |gap: u64| {
            let lines = reader.lines(Sequence(0), Sequence(300), usize::MAX).expect("the good ones");
            assert_eq!(lines.last().expect("some").sequence, Sequence(gap - 1));
            let error = reader.lines(Sequence(gap), Sequence(300), usize::MAX).expect_err("a gap");
            assert!(error.to_string().contains(&format!("entry {gap} is missing")), "{error}");
            assert!(reader.hashes(Sequence(0), Sequence(300)).is_err());
            assert!(reader.bytes_before(Sequence(299)).is_err());
        };
        let change = |sql: &str| store.connection.execute_batch(sql).expect("changed");
        change("DELETE FROM entries WHERE sequence=200");
        gap_at(200);
        change("DELETE FROM commits WHERE first=0");
        assert!(reader.lines(Sequence(0), Sequence(300), usize::MAX).is_err());
    }

    #[test]
    fn a_line_is_what_its_place_and_its_hash_say() {
        let (mut ledger, mut store) = Ledger::new();
        ledger.append(&mut store, 3);
        let reader = Reader::open(&ledger.path).expect("opened");
        let line = reader.line(Sequence(1)).expect("readable").expect("there");
        assert!(line.check().is_ok());
        let elsewhere = Line { sequence: Sequence(2), ..line.clone() };
        let mut changed = line.clone();
        let at = changed.bytes.windows(2).position(|pair| pair == b"xx").expect("its payload");
        changed.bytes[at] = b'y';
        let cut = Line { bytes: line.bytes[1..].to_vec(), ..line };
        for (line, what) in [(elsewhere, "entry 2: it says"), (changed, "entry 1: "), (cut, "entry 1: ")] {
            let error = line.check().expect_err(what).to_string();
            assert!(error.contains(what), "{error}");
        }
    }

    #[test]
    fn a_ledger_whose_entries_and_commits_end_apart_is_damaged() {
        for change in [
            "DELETE FROM commits WHERE first=3",
            "DELETE FROM commits",
            "DELETE FROM entries WHERE sequence=4",
            "INSERT INTO entries SELECT 9, signature_at, body, caller, content FROM entries WHERE sequence=4",
            "UPDATE commits SET count=-9 WHERE first=3",
            "UPDATE commits SET count=9223372036854775807 WHERE first=3",
        ] {
            let (mut ledger, mut store) = Ledger::new();
            ledger.append(&mut store, 3);
            ledger.append(&mut store, 2);
            store.connection.execute_batch(change).expect("changed");
            drop(store);
            let error = Store::open(&ledger.path, &mut |_, _| {}).expect_err(change);
            assert!(matches!(error, StoreError::Damaged(_)), "{change}: {error}");
        }
    }

    #[test]
    fn a_page_that_is_no_page_is_damage() {
        let (mut ledger, mut store) = Ledger::new();
        ledger.append(&mut store, 900);
        drop(store);
        let mut bytes = std::fs::read(&ledger.path).expect("readable");
        bytes[8_192..].fill(0x5A);
        std::fs::write(&ledger.path, bytes).expect("writable");
        let error = Store::open(&ledger.path, &mut |_, _| {}).expect_err("no page is whole");
        assert!(matches!(error, StoreError::Damaged(_)), "{error}");
    }

    #[test]
    fn only_the_owner_can_hold_the_lock() {
        use std::os::unix::fs::PermissionsExt;
        let (ledger, _store) = Ledger::new();
        let lock = std::fs::metadata(ledger.path.with_added_extension("lock")).expect("there");
        assert_eq!(lock.permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn one_store_at_a_time_and_never_over_another() {
        let (ledger, store) = Ledger::new();
        assert!(matches!(Store::open(&ledger.path, &mut |_, _| {}), Err(StoreError::Locked(_))));
        assert!(matches!(Store::create(&ledger.path), Err(StoreError::Locked(_))));
        drop(store);
        assert!(matches!(Store::create(&ledger.path), Err(StoreError::Exists(_))));
        assert!(Store::open(&ledger.path, &mut |_, _| {}).is_ok());
        assert!(matches!(
            Store::open(&ledger.path.with_extension("none"), &mut |_, _| {}),
            Err(StoreError::Missing(_))
        ));
    }
}
