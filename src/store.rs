//! The ledger file: what is durable, in which order, and what readers may see of it.
//!
//! One writer ([`Store`]) and any number of readers ([`Reader`]) of one SQLite file in WAL mode
//! with `synchronous=FULL`. It stores what it is given and judges nothing; [`Committed`] can only
//! be made here, after the signatures are on the disk.
//!
//! ```text
//! reserve n+1 and commit n  ──one transaction──►  entries(n+1), commits(n+1), signatures(n)
//! ```

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::{Flock, FlockArg};
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, params};

use crate::ledger::canonical::{self, Unsigned};
use crate::ledger::chain::{Entry, Head};
use crate::ledger::entry::{Sequence, SignatureAlgorithm};
use crate::ledger::hash::Digest;
use crate::ledger::key::{KeyId, Signable, Signature};

/// The version of the schema that this program writes.
const SCHEMA_VERSION: i32 = 1;
/// "atst", so that `file` and we can tell the ledger from any other SQLite file.
const APPLICATION_ID: i32 = 0x6174_7374;
/// Before it SQLite had the WAL-reset bug, which can corrupt a database.
const MIN_SQLITE: i32 = 3_051_003;
/// The writer checkpoints the WAL itself only when it has grown to this many pages (32 MiB) in
/// spite of the checkpoint thread.
const WAL_LIMIT_PAGES: u32 = 8_192;
/// How long a reader waits for a lock before it gives up; in WAL mode only recovery takes one.
const BUSY: std::time::Duration = std::time::Duration::from_secs(10);

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
    #[error("the ledger has schema version {found}, this program knows up to {SCHEMA_VERSION}")]
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

fn failed(doing: &'static str) -> impl Fn(rusqlite::Error) -> StoreError {
    move |source| match source.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => StoreError::Full(source),
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

/// Entries that are reserved, signed and committed together.
#[derive(Debug)]
pub struct Reservation {
    /// The sequence number of the first.
    pub first: Sequence,
    /// With which key all are signed.
    pub key: KeyId,
    /// In which way.
    pub algorithm: SignatureAlgorithm,
    /// The entries, in order, at least one.
    pub entries: Vec<Reserved>,
}

impl Reservation {
    /// What the token signs, in order.
    #[must_use]
    pub fn signables(&self) -> Vec<Signable> {
        self.entries.iter().map(|reserved| reserved.entry.signable()).collect()
    }
}

/// Entries that are durable with their signatures. Only [`Store::write`] makes one.
#[derive(Debug)]
pub struct Committed {
    reservation: Reservation,
    signatures: Vec<Signature>,
}

impl Committed {
    /// The sequence number after the last entry.
    #[must_use]
    pub fn end(&self) -> Sequence {
        Sequence(self.reservation.first.0 + self.reservation.entries.len() as u64)
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
        self.signatures[index].write_hex_der(&mut hex);
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
        self.signatures[index].write_hex_der(out);
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
        check_sqlite()?;
        let lock = lock(path)?;
        use std::os::unix::fs::OpenOptionsExt;
        match std::fs::OpenOptions::new().write(true).create_new(true).mode(0o640).open(path) {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                return Err(StoreError::Exists(path.into()));
            }
            Err(source) => return Err(StoreError::Io { doing: "create", path: path.into(), source }),
        }
        let connection = open(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        let setup = format!(
            "PRAGMA page_size=8192; PRAGMA journal_mode=WAL; BEGIN; {} PRAGMA application_id={APPLICATION_ID}; \
             PRAGMA user_version={SCHEMA_VERSION}; COMMIT;",
            include_str!("schema.sql")
        );
        connection.execute_batch(&setup).map_err(failed("create the ledger's tables"))?;
        Self::with(connection, path, lock)
    }

    /// Opens the ledger file and brings an older schema up to date.
    ///
    /// # Errors
    /// When it is missing, not a ledger, newer than this program, or held by another daemon.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        check_sqlite()?;
        if !path.exists() {
            return Err(StoreError::Missing(path.into()));
        }
        let lock = lock(path)?;
        let mut connection = open(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        let found = check_kind(&connection, path)?;
        migrate(&mut connection, found, &MIGRATIONS)?;
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
            let mut signatures = Vec::with_capacity(committed.signatures.len() * Signature::BYTES);
            for (reserved, signature) in committed.entries().iter().zip(&committed.signatures) {
                signatures.extend_from_slice(signature.as_bytes());
                let hex = signature.to_der().len() * 2;
                bytes += (reserved.entry.unsigned().line.len() + hex + 1) as u64;
            }
            let changed = transaction
                .prepare_cached(
                    "UPDATE commits SET signatures=?2, bytes=?3 WHERE first=?1 AND signatures IS NULL",
                )
                .and_then(|mut update| {
                    update.execute(params![committed.reservation.first.0, signatures, bytes])
                })
                .map_err(failed("commit the signatures"))?;
            if changed != 1 {
                return Err(StoreError::Damaged(format!(
                    "entry {} is not reserved, so it can't be committed",
                    committed.reservation.first
                )));
            }
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
                "SELECT first, count, key_id, mode FROM commits WHERE signatures IS NULL ORDER BY first",
                [],
                |row| {
                    Ok((row.get::<_, u64>(0)?, row.get::<_, u64>(1)?, row.get::<_, Vec<u8>>(2)?, row.get(3)?))
                },
            )
            .optional()
            .map_err(failed("look for reserved entries"))?;
        let Some((first, count, key, mode)) = row else { return Ok(None) };
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
            head.follow(entry).map_err(|code| damaged(&code.title()))?;
            hashes.push(entry.entry_hash);
        }
        if hashes.len() as u64 != count {
            return Err(StoreError::Damaged(format!(
                "{count} entries were reserved, {} are there",
                hashes.len()
            )));
        }
        Ok(Some(Unfinished { first: Sequence(first), key, mode, hashes }))
    }

    /// Makes the signatures of an [`Unfinished`] reservation durable.
    ///
    /// # Errors
    /// When it is not reserved any more, or can't be written.
    pub fn finish(&mut self, unfinished: &Unfinished, signatures: &[Signature]) -> Result<(), StoreError> {
        let mut raw = Vec::new();
        let mut bytes = self.bytes;
        for (index, signature) in signatures.iter().enumerate() {
            raw.extend_from_slice(signature.as_bytes());
            let length: u64 = self
                .connection
                .query_row(
                    "SELECT length(body) FROM entries WHERE sequence=?1",
                    [unfinished.first.0 + index as u64],
                    |row| row.get(0),
                )
                .map_err(failed("read a reserved entry"))?;
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
    transaction
        .prepare_cached("INSERT INTO commits (first, count, key_id, mode) VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![
        reservation.first.0,
        reservation.entries.len(),
        reservation.key.0.0,
        mode_of(reservation.algorithm)
    ])?;
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

fn check_sqlite() -> Result<(), StoreError> {
    if rusqlite::version_number() < MIN_SQLITE {
        Err(StoreError::OldSqlite(rusqlite::version()))
    } else {
        Ok(())
    }
}

/// The lock is a file of its own: closing any descriptor of the database itself would drop
/// SQLite's locks on it.
fn lock(path: &Path) -> Result<Flock<File>, StoreError> {
    let lock_path = path.with_added_extension("lock");
    let file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&lock_path)
        .map_err(|source| StoreError::Io { doing: "open the lock", path: lock_path.clone(), source })?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| StoreError::Locked(lock_path))
}

fn open(path: &Path, flags: OpenFlags) -> Result<Connection, StoreError> {
    let connection = Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)
        .map_err(failed("open the ledger"))?;
    connection.busy_timeout(BUSY).map_err(failed("open the ledger"))?;
    Ok(connection)
}

fn check_kind(connection: &Connection, path: &Path) -> Result<i32, StoreError> {
    let pragma = |name: &str| connection.query_row(&format!("PRAGMA {name}"), [], |row| row.get::<_, i32>(0));
    let application = match pragma("application_id") {
        Ok(application) => application,
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::NotADatabase) => 0,
        Err(error) => return Err(failed("read the ledger's header")(error)),
    };
    if application != APPLICATION_ID {
        return Err(StoreError::NotALedger(path.into()));
    }
    let found = pragma("user_version").map_err(failed("read the schema version"))?;
    if found > SCHEMA_VERSION { Err(StoreError::Newer { found }) } else { Ok(found) }
}

/// The step from each schema version to the next, from version 1 on.
const MIGRATIONS: [&str; SCHEMA_VERSION as usize - 1] = [];

/// Each step and the version it leads to are one transaction: interrupted, the next start goes on
/// with the step that was not done.
fn migrate(connection: &mut Connection, found: i32, steps: &[&str]) -> Result<(), StoreError> {
    let done =
        usize::try_from(found - 1).map_err(|_| StoreError::Damaged("its schema version is 0".into()))?;
    for (step, sql) in steps.iter().enumerate().skip(done) {
        let transaction = connection.transaction().map_err(failed("begin a migration"))?;
        transaction
            .execute_batch(&format!("{sql} PRAGMA user_version={};", step + 2))
            .map_err(failed("migrate the ledger"))?;
        transaction.commit().map_err(failed("make a migration durable"))?;
    }
    Ok(())
}

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

/// A reader of committed entries. It never sees what is only reserved.
#[derive(Debug)]
pub struct Reader {
    connection: Connection,
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
    /// one with which their bytes reach `max_bytes`.
    ///
    /// # Errors
    /// When the file can't be read or an entry that should be there is not.
    pub fn lines(&self, from: Sequence, to: Sequence, max_bytes: usize) -> Result<Vec<Line>, StoreError> {
        let doing = "read entries";
        let mut lines = Vec::new();
        if from >= to {
            return Ok(lines);
        }
        let mut commits = self
            .connection
            .prepare_cached(
                "SELECT first, count, signatures FROM commits \
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
            let signatures = commit.get_ref(2).map_err(failed(doing))?;
            let signatures = signatures.as_blob().map_err(|e| StoreError::Damaged(e.to_string()))?;
            let end = (first + count).min(to.0);
            let mut rows = bodies.query([next.max(first), end]).map_err(failed(doing))?;
            while let Some(row) = rows.next().map_err(failed(doing))? {
                let line = line_of(row, first, signatures).map_err(|error| match error {
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
                    return Ok(lines);
                }
            }
            if next < end {
                return Err(StoreError::Damaged(format!("entry {next} is missing")));
            }
        }
        Ok(lines)
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
        let rest = self.lines(Sequence(first), end, usize::MAX)?;
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

fn line_of(row: &rusqlite::Row<'_>, first: u64, signatures: &[u8]) -> Result<Line, StoreError> {
    let get = failed("read an entry");
    let sequence: u64 = row.get(0).map_err(&get)?;
    let signature_at: usize = row.get(1).map_err(&get)?;
    let body = row.get_ref(2).map_err(&get)?;
    let body = body.as_blob().map_err(|e| StoreError::Damaged(e.to_string()))?;
    let caller: Option<u32> = row.get(3).map_err(&get)?;
    let content: Option<[u8; 32]> = row.get(4).map_err(&get)?;
    let at = usize::try_from(sequence - first).unwrap_or(usize::MAX).saturating_mul(Signature::BYTES);
    let signature = signatures
        .get(at..at.saturating_add(Signature::BYTES))
        .and_then(Signature::from_stored)
        .ok_or_else(|| StoreError::Damaged("its signature is not one".into()))?;
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
    }

    impl Ledger {
        fn new() -> (Self, Store) {
            let dir = tempfile::tempdir().expect("a directory");
            let path = dir.path().join("ledger.db");
            let store = Store::create(&path).expect("created");
            (Ledger { _dir: dir, path, head: Head::EMPTY }, store)
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
                let entry = self.head.extend(admitted.view(), now, SignatureAlgorithm::EntryP256, KEY);
                Reserved { entry, idempotency: None }
            };
            let entries = (0..count).map(|_| entry()).collect();
            Reservation { first, key: KEY, algorithm: SignatureAlgorithm::EntryP256, entries }
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
            let again = Reservation { entries: clone(&reservation), ..reservation };
            let (committed, result) = store.write(Some((again, signatures(1_000))), next.as_ref());
            assert!(committed.is_none());
            // Not `Full`, which would say that all is as before: the daemon must stop.
            assert!(matches!(result, Err(StoreError::Sqlite { .. })), "{result:?}");
        }
        drop(store);
        let mut store = Store::open(&ledger.path).expect("opened");
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
    fn one_store_at_a_time_and_never_over_another() {
        let (ledger, store) = Ledger::new();
        assert!(matches!(Store::open(&ledger.path), Err(StoreError::Locked(_))));
        assert!(matches!(Store::create(&ledger.path), Err(StoreError::Locked(_))));
        drop(store);
        assert!(matches!(Store::create(&ledger.path), Err(StoreError::Exists(_))));
        assert!(Store::open(&ledger.path).is_ok());
        assert!(matches!(Store::open(&ledger.path.with_extension("none")), Err(StoreError::Missing(_))));
    }

    #[test]
    fn a_migration_is_done_whole_or_not_at_all_and_goes_on_where_it_stopped() {
        let mut connection = Connection::open_in_memory().expect("opened");
        connection.execute_batch("CREATE TABLE t (a); PRAGMA user_version=1;").expect("made");
        let version = |connection: &Connection| -> i32 {
            connection.query_row("PRAGMA user_version", [], |row| row.get(0)).expect("a number")
        };
        let good = "ALTER TABLE t ADD b DEFAULT 2;";
        let broken = "INSERT INTO t (a) VALUES (1); INSERT INTO nowhere VALUES (1);";
        let mended = "INSERT INTO t (a) VALUES (1);";

        assert!(migrate(&mut connection, 1, &[good, broken]).is_err());
        assert_eq!(version(&connection), 2);
        let rows = |connection: &Connection| -> i64 {
            connection.query_row("SELECT count(b) FROM t", [], |row| row.get(0)).expect("a number")
        };
        assert_eq!(rows(&connection), 0);
        migrate(&mut connection, 2, &[good, mended]).expect("migrated");
        assert_eq!((version(&connection), rows(&connection)), (3, 1));
        migrate(&mut connection, 3, &[good, mended]).expect("nothing to do");
        assert_eq!((version(&connection), rows(&connection)), (3, 1));
        assert!(matches!(migrate(&mut connection, 0, &[good]), Err(StoreError::Damaged(_))));
    }
}
