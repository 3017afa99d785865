//! Where entries are found by id and by what they say: a file beside the ledger, written off the
//! commit path, disposable.
//!
//! It holds copies, and a copy is not evidence: whoever looks something up here reads the entry
//! itself from the ledger and checks it. The newest ids are held in memory until the index thread
//! has written them; both together always know every committed entry.

use std::collections::HashMap;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::types::Value;
use rusqlite::{Connection, ErrorCode, OptionalExtension, params, params_from_iter};

use crate::failpoint;
use crate::governance::governor::Governor;
use crate::ledger::canonical;
use crate::ledger::entry::{EntryId, EntryView, EventCategory, EventType, ExecutionStatus, Sequence};
use crate::ledger::hash::Digest;
use crate::ledger::timestamp::Timestamp;
use crate::store::{Reader, StoreError};

/// Another layout is simply built again.
const LAYOUT: i32 = 2;
/// Runs of one level are merged when there are this many.
const FAN_IN: usize = 16;
/// Runs of this level (about a million ids) are not merged further, so that no merge takes long.
const TOP_LEVEL: i64 = 2;
/// The index thread writes when this many entries wait, or after [`IDLE_FLUSH`].
const FLUSH_ENTRIES: usize = 4_096;
const IDLE_FLUSH: std::time::Duration = std::time::Duration::from_millis(500);
/// How many committed batches may wait for the index thread before the sequencer waits for it.
const BACKLOG: usize = 1_024;
/// An index of so many entries is counted while the daemon starts, which takes a few milliseconds.
const COUNTED_AT_START: u64 = 100_000;
/// Rows that one page of a list may look at, so that a rare combination can't hold a reader long.
const SCAN_ROWS: u64 = 500_000;

/// What can go wrong with the index.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// SQLite failed.
    #[error("couldn't {doing} the index: {source}")]
    Sqlite {
        /// What was being done.
        doing: &'static str,
        /// Why it failed.
        source: rusqlite::Error,
    },
    /// The file could not be removed to build it again.
    #[error("couldn't remove the old index {path}: {source}")]
    Remove {
        /// Which file.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The ledger could not be read to build the index from.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The index has seen entries that the ledger does not have.
    #[error(
        "the index {} has seen entry {}, and the ledger of {count} entries does not have it",
        index.display(),
        indexed - 1
    )]
    Ahead {
        /// The index.
        index: PathBuf,
        /// How many entries it has seen.
        indexed: u64,
        /// How many there are.
        count: u64,
    },
    /// The index has lost entries.
    #[error("the index should have {indexed} entries and has {found}")]
    Incomplete {
        /// How many entries it has seen.
        indexed: u64,
        /// How many it has.
        found: u64,
    },
    /// The index thread is gone.
    #[error("the index thread has stopped")]
    Stopped,
}

impl IndexError {
    fn is_disk_full(&self) -> bool {
        let IndexError::Sqlite { source, .. } = self else { return false };
        source.sqlite_error_code() == Some(ErrorCode::DiskFull)
    }
}

fn failed(doing: &'static str) -> impl Fn(rusqlite::Error) -> IndexError {
    move |source| IndexError::Sqlite { doing, source }
}

/// What the index keeps of an entry.
#[derive(Debug, Clone)]
pub struct Fact {
    sequence: u64,
    id: EntryId,
    hash: Digest,
    at: Timestamp,
    event_type: EventType,
    category: EventCategory,
    status: ExecutionStatus,
    severity: u8,
    actor: String,
    action: String,
    is_step: bool,
}

impl Fact {
    /// Takes it from an entry, whose place and hash are given beside it: the view of an admitted
    /// event has none yet.
    #[must_use]
    pub fn of(entry: &EntryView<'_>, sequence: Sequence, at: Timestamp, hash: Digest) -> Self {
        Fact {
            sequence: sequence.0,
            id: entry.entry_id,
            hash,
            at,
            event_type: entry.event_type,
            category: entry.event_category,
            status: entry.execution_status,
            severity: entry.severity,
            actor: entry.actor_id.to_string(),
            action: entry.action_type.to_owned(),
            is_step: Governor::changes(entry),
        }
    }
}

/// Ids of entries that are committed but not in the file yet.
#[derive(Debug, Default)]
struct Recent {
    ids: Mutex<HashMap<EntryId, Sequence>>,
    /// Entries before this are in the file.
    indexed: AtomicU64,
}

enum Order {
    Note(Vec<Fact>),
    /// Write all that waits, then answer.
    Flush(mpsc::Sender<()>),
}

/// The index of a running daemon: its thread, and look-ups.
#[derive(Debug)]
pub struct Index {
    path: PathBuf,
    recent: Arc<Recent>,
    orders: Option<SyncSender<Order>>,
    thread: Option<std::thread::JoinHandle<()>>,
    readers: Mutex<Vec<Connection>>,
}

impl Index {
    /// Opens the index of the ledger that `ledger` reads, building what is missing, and starts
    /// its thread. `progress` hears how many entries are indexed while it is built.
    ///
    /// # Errors
    /// When the file can't be made or the ledger can't be read.
    pub fn open(path: &Path, ledger: &Reader, progress: impl FnMut(u64)) -> Result<Self, IndexError> {
        let mut writer = Writer::open(path, ledger)?;
        writer.catch_up(ledger, progress)?;
        let recent = Arc::new(Recent::default());
        recent.indexed.store(writer.indexed, Ordering::Release);
        let (orders, inbox) = mpsc::sync_channel(BACKLOG);
        let thread = std::thread::Builder::new()
            .name("index".into())
            .spawn({
                let recent = recent.clone();
                move || writer.run(&inbox, &recent)
            })
            .map_err(|_| IndexError::Stopped)?;
        Ok(Index {
            path: path.into(),
            recent,
            orders: Some(orders),
            thread: Some(thread),
            readers: Mutex::default(),
        })
    }

    /// Takes note of committed entries. Their ids can be looked up when this returns.
    ///
    /// # Errors
    /// When the index thread has ended, on a fault that it has logged. The ids are known all the
    /// same, but memory would not hold them for ever.
    pub fn note(&self, facts: Vec<Fact>) -> Result<(), IndexError> {
        {
            let mut ids = self.recent.ids.lock().unwrap_or_else(PoisonError::into_inner);
            ids.extend(facts.iter().map(|fact| (fact.id, Sequence(fact.sequence))));
        }
        let orders = self.orders.as_ref().ok_or(IndexError::Stopped)?;
        orders.send(Order::Note(facts)).map_err(|_| IndexError::Stopped)
    }

    /// Where the committed entry with this id is, from memory alone. Entries before
    /// [`Index::indexed`] may be missing here.
    #[must_use]
    pub fn recent(&self, id: EntryId) -> Option<Sequence> {
        self.recent.ids.lock().unwrap_or_else(PoisonError::into_inner).get(&id).copied()
    }

    /// Entries before this are in the file.
    #[must_use]
    pub fn indexed(&self) -> u64 {
        self.recent.indexed.load(Ordering::Acquire)
    }

    /// Where the committed entry with this id is.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn find(&self, id: EntryId) -> Result<Option<Sequence>, IndexError> {
        // Memory first: the thread takes an id out of memory only after it is in the file.
        if let Some(sequence) = self.recent(id) {
            return Ok(Some(sequence));
        }
        self.with_reader(|connection| {
            connection
                .prepare_cached(
                    "SELECT ids.sequence FROM runs JOIN ids ON ids.run = runs.run AND ids.id = ?1 LIMIT 1",
                )?
                .query_row([id.0], |row| row.get(0).map(Sequence))
                .optional()
        })
    }

    /// The entries before `end` from which the state of governance is built ([`Governor::changes`]),
    /// in order.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn steps(&self, end: Sequence) -> Result<Vec<Sequence>, IndexError> {
        if self.indexed() < end.0 {
            self.flush()?;
        }
        self.with_reader(|connection| {
            connection
                .prepare_cached("SELECT sequence FROM steps WHERE sequence < ?1 ORDER BY sequence")?
                .query_map([end.0], |row| row.get(0).map(Sequence))?
                .collect()
        })
    }

    /// One page of the entries that match: their sequence numbers in the order asked for, and
    /// where to go on. Everything committed when this is called is looked at.
    ///
    /// # Errors
    /// When the file can't be read or the index thread is gone.
    pub fn list(&self, filter: &Filter, committed: u64) -> Result<Page, IndexError> {
        if self.indexed() < committed {
            self.flush()?;
        }
        self.with_reader(|connection| filter.page(connection, committed))
    }

    fn flush(&self) -> Result<(), IndexError> {
        let (done, wait) = mpsc::channel();
        let orders = self.orders.as_ref().ok_or(IndexError::Stopped)?;
        orders.send(Order::Flush(done)).map_err(|_| IndexError::Stopped)?;
        wait.recv().map_err(|_| IndexError::Stopped)
    }

    fn with_reader<T>(&self, read: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, IndexError> {
        let kept = self.readers.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let connection = match kept {
            Some(connection) => connection,
            None => {
                let connection = Connection::open(&self.path).map_err(failed("open"))?;
                connection
                    .execute_batch("PRAGMA query_only=ON; PRAGMA cache_size=-2048;")
                    .map_err(failed("open"))?;
                connection
            }
        };
        let result = read(&connection).map_err(|error| {
            remove_if_damaged(&self.path, &error);
            failed("read")(error)
        });
        self.readers.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
        result
    }
}

impl Drop for Index {
    fn drop(&mut self) {
        drop(self.orders.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The index thread's side: the one connection that writes.
struct Writer {
    connection: Connection,
    /// Entries before this are in the file.
    indexed: u64,
    names: HashMap<String, i64>,
}

impl Writer {
    fn open(path: &Path, ledger: &Reader) -> Result<Self, IndexError> {
        let genesis = hash_at(ledger, 0)?;
        if path.exists() {
            match Self::open_existing(path, ledger, genesis) {
                Ok(Some(writer)) => return Ok(writer),
                Ok(None) => {
                    tracing::warn!("the index is not that of this ledger, or not whole; building it again");
                }
                Err(ahead @ IndexError::Ahead { .. }) => return Err(ahead),
                Err(error) => tracing::warn!(%error, "the index can't be used; building it again"),
            }
        }
        // Also where only the file itself was deleted: its WAL would be taken for the new file's.
        remove(path)?;
        // It repeats what the ledger says, so it is for the same eyes. What goes wrong, SQLite tells.
        let _ = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o640).open(path);
        let connection = Connection::open(path).map_err(failed("create"))?;
        connection
            .execute_batch(&format!(
                "PRAGMA journal_mode=WAL; BEGIN; {} PRAGMA user_version={LAYOUT}; COMMIT;",
                include_str!("index.sql")
            ))
            .map_err(failed("create"))?;
        connection
            .execute("INSERT INTO mark VALUES (?1, 0, ?2)", params![genesis.0, Digest::ZERO.0])
            .map_err(failed("create"))?;
        Self::with(connection, 0)
    }

    /// `None` when the file is the index of another ledger.
    fn open_existing(path: &Path, ledger: &Reader, genesis: Digest) -> Result<Option<Self>, IndexError> {
        let connection = Connection::open(path).map_err(failed("open"))?;
        let layout: i32 =
            connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(failed("open"))?;
        if layout != LAYOUT {
            return Ok(None);
        }
        let (found, indexed, hash): ([u8; 32], u64, [u8; 32]) = connection
            .query_row("SELECT genesis, indexed, hash FROM mark", [], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?))
            })
            .map_err(failed("open"))?;
        if found != genesis.0 {
            return Ok(None);
        }
        // Only what is committed is indexed, so an index that knows more, or something else, has
        // seen this ledger with entries that it has no more.
        let count = ledger.count()?;
        if indexed > count || (indexed > 0 && hash_at(ledger, indexed - 1)?.0 != hash) {
            return Err(IndexError::Ahead { index: path.into(), indexed, count });
        }
        let writer = Self::with(connection, indexed)?;
        // A longer index is looked through by its thread.
        if indexed <= COUNTED_AT_START && writer.check_complete().is_err() {
            return Ok(None);
        }
        Ok(Some(writer))
    }

    fn with(connection: Connection, indexed: u64) -> Result<Self, IndexError> {
        // Consistent after a power cut, if not complete: the mark says how far it came.
        connection
            .execute_batch("PRAGMA synchronous=NORMAL; PRAGMA cache_size=-8192;")
            .map_err(failed("open"))?;
        Ok(Writer { connection, indexed, names: HashMap::new() })
    }

    fn catch_up(&mut self, ledger: &Reader, mut progress: impl FnMut(u64)) -> Result<(), IndexError> {
        let count = ledger.count()?;
        while self.indexed < count {
            let lines = ledger.lines(Sequence(self.indexed), Sequence(count), 8 << 20)?;
            let mut facts = Vec::with_capacity(lines.len());
            for line in &lines {
                let decoded = canonical::decode(&line.bytes)
                    .map_err(|fault| StoreError::Damaged(format!("entry {}: {fault}", line.sequence)))?;
                let entry = &decoded.entry;
                facts.push(Fact::of(entry, line.sequence, entry.timestamp, entry.entry_hash));
            }
            self.write(&facts)?;
            progress(self.indexed);
        }
        Ok(())
    }

    fn run(mut self, inbox: &Receiver<Order>, recent: &Recent) {
        let mut waiting: Vec<Fact> = Vec::new();
        let mut open = true;
        let mut full = false;
        // Not at the start, which would take the longer the longer the ledger is.
        if self.indexed > COUNTED_AT_START
            && let Err(error) = self.check_complete()
        {
            tracing::error!(%error, "stopping; the next start builds the index again");
            if let Some(path) = self.connection.path() {
                // What can't be removed is found incomplete again.
                let _ = remove(Path::new(path));
            }
            return;
        }
        while open || !waiting.is_empty() {
            let mut flush = None;
            match inbox.recv_timeout(IDLE_FLUSH) {
                Ok(Order::Note(facts)) => {
                    waiting.extend(facts);
                    if waiting.len() < FLUSH_ENTRIES {
                        continue;
                    }
                }
                Ok(Order::Flush(done)) => flush = Some(done),
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => open = false,
            }
            if !waiting.is_empty() {
                match self.write(&waiting) {
                    Ok(()) => full = false,
                    // The ledger's disk is most likely the same, so little more will come to wait
                    // here. Who waits for a flush hears that it failed.
                    Err(error) if error.is_disk_full() && open => {
                        if !std::mem::replace(&mut full, true) {
                            tracing::warn!(%error, "the disk is full; the index waits for room");
                        }
                        continue;
                    }
                    Err(error) => {
                        if let (IndexError::Sqlite { source, .. }, Some(path)) =
                            (&error, self.connection.path())
                        {
                            remove_if_damaged(Path::new(path), source);
                        }
                        tracing::error!(%error, "the index can't be written");
                        return;
                    }
                }
                recent.indexed.store(self.indexed, Ordering::Release);
                let mut ids = recent.ids.lock().unwrap_or_else(PoisonError::into_inner);
                for fact in waiting.drain(..) {
                    ids.remove(&fact.id);
                }
            }
            if let Some(done) = flush {
                let _ = done.send(());
            }
        }
    }

    /// An entry that the index lost would be taken for one that was never sealed, and its id sealed
    /// once more.
    fn check_complete(&self) -> Result<(), IndexError> {
        let (ids, facts): (u64, u64) = self
            .connection
            .query_row("SELECT (SELECT count(*) FROM ids), (SELECT count(*) FROM facts)", [], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .map_err(failed("check"))?;
        if ids == self.indexed && facts == self.indexed {
            Ok(())
        } else {
            Err(IndexError::Incomplete { indexed: self.indexed, found: ids.min(facts) })
        }
    }

    /// Writes one run.
    fn write(&mut self, facts: &[Fact]) -> Result<(), IndexError> {
        let Some(last) = facts.last() else { return Ok(()) };
        let indexed = last.sequence + 1;
        let names = facts
            .iter()
            .map(|fact| Ok((self.name(&fact.actor)?, self.name(&fact.action)?)))
            .collect::<rusqlite::Result<Vec<_>>>()
            .map_err(failed("write"))?;
        let mut sorted: Vec<(EntryId, u64)> = facts.iter().map(|fact| (fact.id, fact.sequence)).collect();
        sorted.sort_unstable();
        let mut write = || {
            let transaction = self.connection.transaction()?;
            {
                transaction.execute("INSERT INTO runs (level) VALUES (0)", [])?;
                let run = transaction.last_insert_rowid();
                let mut insert = transaction.prepare_cached("INSERT INTO ids VALUES (?1, ?2, ?3)")?;
                for (id, sequence) in &sorted {
                    insert.execute(params![run, id.0, sequence])?;
                }
                let mut insert = transaction
                    .prepare_cached("INSERT INTO facts VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)")?;
                for (fact, (actor, action)) in facts.iter().zip(&names) {
                    insert.execute(params![
                        fact.sequence,
                        fact.at.as_micros(),
                        fact.event_type as i64,
                        fact.category as i64,
                        fact.status as i64,
                        fact.severity,
                        actor,
                        action
                    ])?;
                }
                let mut insert = transaction.prepare_cached("INSERT INTO steps VALUES (?1)")?;
                for fact in facts.iter().filter(|fact| fact.is_step) {
                    insert.execute([fact.sequence])?;
                }
                failpoint::reach("within-index-write");
                transaction.execute("UPDATE mark SET indexed=?1, hash=?2", params![indexed, last.hash.0])?;
                for level in 0..TOP_LEVEL {
                    merge(&transaction, level)?;
                }
            }
            transaction.commit()
        };
        write().map_err(failed("write"))?;
        self.indexed = indexed;
        Ok(())
    }

    fn name(&mut self, name: &str) -> rusqlite::Result<i64> {
        if let Some(id) = self.names.get(name) {
            return Ok(*id);
        }
        self.connection.prepare_cached("INSERT OR IGNORE INTO names (name) VALUES (?1)")?.execute([name])?;
        let id = self
            .connection
            .prepare_cached("SELECT id FROM names WHERE name=?1")?
            .query_row([name], |row| row.get(0))?;
        // Names can be as many as entries; what is kept of them in memory is bounded.
        if self.names.len() >= 4_096 {
            self.names.clear();
        }
        self.names.insert(name.to_owned(), id);
        Ok(id)
    }
}

/// Removes the file and what SQLite keeps beside it, so that the next start builds it again.
fn remove(path: &Path) -> Result<(), IndexError> {
    for suffix in ["", "-wal", "-shm"] {
        let mut file = path.as_os_str().to_owned();
        file.push(suffix);
        match std::fs::remove_file(&file) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                return Err(IndexError::Remove { path: file.into(), source });
            }
            _ => {}
        }
    }
    Ok(())
}

/// A start looks at little of the file, so a damaged page is found by whoever comes upon it. He
/// gets the error; the next start gets a new index.
fn remove_if_damaged(path: &Path, error: &rusqlite::Error) {
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
    if matches!(error.sqlite_error_code(), Some(DatabaseCorrupt | NotADatabase)) {
        match remove(path) {
            Ok(()) => tracing::error!(%error, "the index is damaged; restart to build it again"),
            Err(error) => tracing::error!(%error, "the index is damaged; delete it and restart"),
        }
    }
}

fn merge(transaction: &rusqlite::Transaction<'_>, level: i64) -> rusqlite::Result<()> {
    let runs: Vec<i64> = transaction
        .prepare_cached("SELECT run FROM runs WHERE level=?1")?
        .query_map([level], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    if runs.len() < FAN_IN {
        return Ok(());
    }
    let list = runs.iter().map(i64::to_string).collect::<Vec<_>>().join(",");
    transaction.execute("INSERT INTO runs (level) VALUES (?1)", [level + 1])?;
    let merged = transaction.last_insert_rowid();
    transaction.execute(
        &format!("INSERT INTO ids SELECT ?1, id, sequence FROM ids WHERE run IN ({list}) ORDER BY id"),
        [merged],
    )?;
    transaction.execute(&format!("DELETE FROM ids WHERE run IN ({list})"), [])?;
    transaction.execute(&format!("DELETE FROM runs WHERE run IN ({list})"), [])?;
    Ok(())
}

fn hash_at(ledger: &Reader, sequence: u64) -> Result<Digest, IndexError> {
    let Some(line) = ledger.line(Sequence(sequence))? else { return Ok(Digest::ZERO) };
    let decoded = canonical::decode(&line.bytes)
        .map_err(|fault| StoreError::Damaged(format!("entry {sequence}: {fault}")))?;
    Ok(decoded.entry.entry_hash)
}

/// Which entries a list is to hold.
#[derive(Debug, Clone, Default)]
#[allow(missing_docs, reason = "each is the query parameter of the same name, see docs/api.md")]
pub struct Filter {
    pub event_type: Option<EventType>,
    pub event_category: Option<EventCategory>,
    pub execution_status: Option<ExecutionStatus>,
    pub severity: Option<u8>,
    pub severity_min: Option<u8>,
    pub actor_id: Option<String>,
    pub action_type: Option<String>,
    pub action_type_prefix: Option<String>,
    /// Inclusive.
    pub since: Option<Timestamp>,
    /// Exclusive.
    pub until: Option<Timestamp>,
    /// Inclusive.
    pub from: u64,
    /// Exclusive.
    pub to: Option<u64>,
    pub ascending: bool,
    pub limit: usize,
}

/// Sequence numbers that match, and where the next page begins.
#[derive(Debug, PartialEq, Eq)]
pub struct Page {
    /// In the order asked for.
    pub sequences: Vec<Sequence>,
    /// The first sequence number that was not looked at, if there is one in the range.
    pub next: Option<Sequence>,
}

impl Filter {
    /// Whether it asks for what only those may know who may see an entry in full.
    #[must_use]
    pub fn looks_inside(&self) -> bool {
        self.execution_status.is_some()
            || self.severity.is_some()
            || self.severity_min.is_some()
            || self.actor_id.is_some()
            || self.action_type.is_some()
            || self.action_type_prefix.is_some()
    }

    /// Whether `entry` matches, apart from range and order: the check against the signed bytes.
    #[must_use]
    pub fn matches(&self, entry: &EntryView<'_>) -> bool {
        fn is<T: PartialEq>(wanted: &Option<T>, found: &T) -> bool {
            wanted.as_ref().is_none_or(|wanted| wanted == found)
        }
        is(&self.event_type, &entry.event_type)
            && is(&self.event_category, &entry.event_category)
            && is(&self.execution_status, &entry.execution_status)
            && is(&self.severity, &entry.severity)
            && self.severity_min.is_none_or(|least| entry.severity >= least)
            && self.actor_id.as_ref().is_none_or(|actor| *actor == entry.actor_id)
            && self.action_type.as_ref().is_none_or(|action| action == entry.action_type)
            && self.action_type_prefix.as_ref().is_none_or(|prefix| entry.action_type.starts_with(prefix))
            && self.since.is_none_or(|since| entry.timestamp >= since)
            && self.until.is_none_or(|until| entry.timestamp < until)
    }

    fn page(&self, connection: &Connection, committed: u64) -> rusqlite::Result<Page> {
        let (from, to) = self.range(connection, committed)?;
        let mut wheres = Vec::new();
        let mut values: Vec<Value> = Vec::new();
        let mut equal = |column: &str, value: Option<i64>| {
            if let Some(value) = value {
                values.push(value.into());
                wheres.push(format!("{column}=?{}", values.len()));
            }
        };
        equal("type", self.event_type.map(|t| t as i64));
        equal("category", self.event_category.map(|c| c as i64));
        equal("status", self.execution_status.map(|s| s as i64));
        equal("severity", self.severity.map(i64::from));
        for (column, name) in [("actor", &self.actor_id), ("action", &self.action_type)] {
            if let Some(name) = name {
                let id: Option<i64> = connection
                    .prepare_cached("SELECT id FROM names WHERE name=?1")?
                    .query_row([name], |row| row.get(0))
                    .optional()?;
                let Some(id) = id else { return Ok(Page { sequences: Vec::new(), next: None }) };
                equal(column, Some(id));
            }
        }
        if let Some(least) = self.severity_min {
            values.push(i64::from(least).into());
            wheres.push(format!("severity>=?{}", values.len()));
        }
        if let Some(prefix) = &self.action_type_prefix {
            values.push(prefix.clone().into());
            // Action types are ASCII, so this character sorts behind all of them.
            values.push(format!("{prefix}\u{7f}").into());
            wheres.push(format!(
                "action IN (SELECT id FROM names WHERE name>=?{} AND name<?{})",
                values.len() - 1,
                values.len()
            ));
        }
        // A selective name is found through its own tree, whatever the range; everything else is a
        // scan of a stretch of limited length.
        let selective = self.actor_id.is_some() || self.action_type.is_some();
        let (from, to, more) = self.stretch(from, to, selective);
        values.push(i64::try_from(from).unwrap_or(i64::MAX).into());
        wheres.push(format!("sequence>=?{}", values.len()));
        values.push(i64::try_from(to).unwrap_or(i64::MAX).into());
        wheres.push(format!("sequence<?{}", values.len()));
        let sql = format!(
            "SELECT sequence FROM facts WHERE {} ORDER BY sequence {} LIMIT {}",
            wheres.join(" AND "),
            if self.ascending { "ASC" } else { "DESC" },
            self.limit + 1
        );
        let mut select = connection.prepare_cached(&sql)?;
        let mut sequences: Vec<Sequence> = select
            .query_map(params_from_iter(values), |row| row.get(0).map(Sequence))?
            .collect::<rusqlite::Result<_>>()?;
        let next = if sequences.len() > self.limit { sequences.pop() } else { more.map(Sequence) };
        Ok(Page { sequences, next })
    }

    /// The range of sequence numbers, with times turned into sequence numbers: ledger time never
    /// runs backwards, so a binary search will do.
    fn range(&self, connection: &Connection, committed: u64) -> rusqlite::Result<(u64, u64)> {
        let mut from = self.from.min(committed);
        let mut to = self.to.unwrap_or(committed).min(committed);
        if let Some(since) = self.since {
            from = from.max(first_at_or_after(connection, since, committed)?);
        }
        if let Some(until) = self.until {
            to = to.min(first_at_or_after(connection, until, committed)?);
        }
        Ok((from, to))
    }

    /// The part of the range that one page looks at, and where the rest begins, if there is one.
    fn stretch(&self, from: u64, to: u64, selective: bool) -> (u64, u64, Option<u64>) {
        if selective || to.saturating_sub(from) <= SCAN_ROWS {
            (from, to, None)
        } else if self.ascending {
            (from, from + SCAN_ROWS, Some(from + SCAN_ROWS))
        } else {
            (to - SCAN_ROWS, to, Some(to - SCAN_ROWS - 1))
        }
    }
}

fn first_at_or_after(connection: &Connection, time: Timestamp, committed: u64) -> rusqlite::Result<u64> {
    let mut at = connection.prepare_cached("SELECT at FROM facts WHERE sequence=?1")?;
    let (mut low, mut high) = (0, committed);
    while low < high {
        let middle = low + (high - low) / 2;
        let found: Option<i64> = at.query_row([middle], |row| row.get(0)).optional()?;
        if found.is_some_and(|found| found < time.as_micros()) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    Ok(low)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn writer() -> (tempfile::TempDir, Writer) {
        let dir = tempfile::tempdir().expect("a directory");
        let connection = Connection::open(dir.path().join("index.db")).expect("opened");
        connection.execute_batch(include_str!("index.sql")).expect("made");
        connection.execute("INSERT INTO mark VALUES (x'', 0, x'')", []).expect("marked");
        let writer = Writer::with(connection, 0).expect("set up");
        (dir, writer)
    }

    fn fact(sequence: u64) -> Fact {
        let mut id = [0; 16];
        // Spread, as random ids are.
        id[..8].copy_from_slice(&sequence.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
        Fact {
            hash: Digest::ZERO,
            sequence,
            id: EntryId(id),
            at: Timestamp::from_micros(1_000 + sequence as i64 / 2),
            event_type: EventType::Action,
            category: EventCategory::Normal,
            status: ExecutionStatus::Success,
            severity: (sequence % 11) as u8,
            actor: format!("actor-{}", sequence % 3),
            action: format!("test.{}", sequence % 5),
            is_step: false,
        }
    }

    #[test]
    fn runs_are_merged_and_every_id_stays_in_exactly_one() {
        let (_dir, mut writer) = writer();
        let runs = FAN_IN * FAN_IN + 3;
        for run in 0..runs as u64 {
            writer.write(&[fact(2 * run), fact(2 * run + 1)]).expect("written");
        }
        let number = |sql: &str| -> usize {
            writer.connection.query_row(sql, [], |row| row.get(0)).expect("a number")
        };
        assert_eq!(number("SELECT count(*) FROM runs"), 1 + 3);
        assert_eq!(number("SELECT count(*) FROM ids"), 2 * runs);
        assert_eq!(number("SELECT count(DISTINCT id) FROM ids JOIN runs USING (run)"), 2 * runs);
        assert_eq!(writer.indexed, 2 * runs as u64);
    }

    #[test]
    fn a_write_that_finds_no_room_changes_nothing_and_is_done_later() {
        let (_dir, mut writer) = writer();
        writer.write(&[fact(0)]).expect("written");
        let pages: i64 =
            writer.connection.query_row("PRAGMA page_count", [], |row| row.get(0)).expect("a number");
        let limit = |writer: &Writer, pages: i64| {
            writer
                .connection
                .query_row(&format!("PRAGMA max_page_count={pages}"), [], |_| Ok(()))
                .expect("set");
        };
        limit(&writer, pages);
        let facts: Vec<Fact> = (1..2_000).map(fact).collect();
        let error = writer.write(&facts).expect_err("no room");
        assert!(error.is_disk_full(), "{error}");
        assert_eq!(writer.indexed, 1);
        limit(&writer, 1_000_000);
        writer.write(&facts).expect("written");
        assert_eq!(writer.indexed, 2_000);
    }

    #[test]
    fn pages_follow_each_other_and_miss_nothing() {
        let (_dir, mut writer) = writer();
        writer.write(&(0..500).map(fact).collect::<Vec<_>>()).expect("written");
        for ascending in [true, false] {
            let mut filter =
                Filter { action_type: Some("test.3".into()), ascending, limit: 7, ..Filter::default() };
            let mut found = Vec::new();
            loop {
                let page = filter.page(&writer.connection, 500).expect("read");
                found.extend(page.sequences.iter().map(|sequence| sequence.0));
                match page.next {
                    Some(next) if ascending => filter.from = next.0,
                    Some(next) => filter.to = Some(next.0 + 1),
                    None => break,
                }
            }
            let mut expected: Vec<u64> = (0..500).filter(|sequence| sequence % 5 == 3).collect();
            if !ascending {
                expected.reverse();
            }
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn times_are_turned_into_sequence_numbers() {
        let (_dir, mut writer) = writer();
        writer.write(&(0..100).map(fact).collect::<Vec<_>>()).expect("written");
        for (micros, first) in [(0, 0), (1_000, 0), (1_001, 2), (1_049, 98), (1_050, 100)] {
            let time = Timestamp::from_micros(micros);
            assert_eq!(first_at_or_after(&writer.connection, time, 100).expect("read"), first, "{micros}");
        }
    }
}
