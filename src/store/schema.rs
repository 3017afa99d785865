//! Which file is a ledger, and how an older one becomes one of today's.

use std::path::Path;

use rusqlite::{Connection, ErrorCode, OpenFlags, Transaction, params};

use super::{StoreError, failed, insert_tiles};
use crate::ledger::canonical;
use crate::ledger::tile::Edge;

/// The version of the schema that this program writes.
pub(super) const VERSION: i32 = 2;
/// "atst", so that `file` and we can tell the ledger from any other SQLite file.
pub(super) const APPLICATION_ID: i32 = 0x6174_7374;
/// Before it SQLite had the WAL-reset bug, which can corrupt a database.
const MIN_SQLITE: i32 = 3_051_003;
/// How long a reader waits for a lock before it gives up; in WAL mode only recovery takes one.
const BUSY: std::time::Duration = std::time::Duration::from_secs(10);

/// What a migration hears of how far it has come: entries done, and of how many.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64);

/// The step from each schema version to the next, from version 1 on.
pub(super) const MIGRATIONS: [Step; VERSION as usize - 1] = [plant_tree];

/// One step.
pub(super) type Step = fn(&Transaction<'_>, Progress<'_>) -> Result<(), StoreError>;

pub(super) fn check_sqlite() -> Result<(), StoreError> {
    if rusqlite::version_number() < MIN_SQLITE {
        Err(StoreError::OldSqlite(rusqlite::version()))
    } else {
        Ok(())
    }
}

pub(super) fn open(path: &Path, flags: OpenFlags) -> Result<Connection, StoreError> {
    let connection = Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)
        .map_err(failed("open the ledger"))?;
    connection.busy_timeout(BUSY).map_err(failed("open the ledger"))?;
    Ok(connection)
}

/// The schema version of the ledger at `path`.
pub(super) fn check_kind(connection: &Connection, path: &Path) -> Result<i32, StoreError> {
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
    if found > VERSION { Err(StoreError::Newer { found }) } else { Ok(found) }
}

/// Each step and the version it leads to are one transaction: interrupted, the next start goes on
/// with the step that was not done.
pub(super) fn migrate(
    connection: &mut Connection,
    found: i32,
    steps: &[Step],
    progress: Progress<'_>,
) -> Result<(), StoreError> {
    let done =
        usize::try_from(found - 1).map_err(|_| StoreError::Damaged("its schema version is 0".into()))?;
    for (step, migrate) in steps.iter().enumerate().skip(done) {
        let transaction = connection.transaction().map_err(failed("begin a migration"))?;
        migrate(&transaction, progress)?;
        transaction
            .execute_batch(&format!("PRAGMA user_version={};", step + 2))
            .map_err(failed("migrate the ledger"))?;
        transaction.commit().map_err(failed("make a migration durable"))?;
    }
    Ok(())
}

/// How many leaves are put into the tree at a time.
const LEAVES: usize = 4_096;

/// Version 2: the tree and its checkpoints. The tree over the entries that are there is built once;
/// the first checkpoint over them is signed when the daemon runs.
fn plant_tree(transaction: &Transaction<'_>, progress: Progress<'_>) -> Result<(), StoreError> {
    let migrating = failed("migrate the ledger");
    transaction
        .execute_batch(concat!(
            "ALTER TABLE commits ADD COLUMN checkpoint TEXT;",
            "ALTER TABLE commits ADD COLUMN checkpoint_signature BLOB;",
            include_str!("tree.sql")
        ))
        .map_err(&migrating)?;
    let count: u64 = transaction
        .query_row("SELECT coalesce(max(sequence) + 1, 0) FROM entries", [], |row| row.get(0))
        .map_err(&migrating)?;
    let mut select =
        transaction.prepare("SELECT sequence, body FROM entries ORDER BY sequence").map_err(&migrating)?;
    let mut rows = select.query(params![]).map_err(&migrating)?;
    let mut edge = Edge::new();
    let mut hashes = Vec::with_capacity(LEAVES);
    loop {
        let row = rows.next().map_err(&migrating)?;
        if row.is_none() || hashes.len() == LEAVES {
            let tiles = edge
                .extend(hashes.drain(..))
                .map_err(|_| StoreError::Damaged("it has more entries than a tree can have".into()))?;
            insert_tiles(transaction, &tiles).map_err(&migrating)?;
            progress(edge.root().size.leaves(), count);
        }
        let Some(row) = row else { return Ok(()) };
        let sequence: u64 = row.get(0).map_err(&migrating)?;
        let body = row.get_ref(1).map_err(&migrating)?;
        let body = body.as_blob().map_err(|e| StoreError::Damaged(e.to_string()))?;
        let decoded = canonical::decode(body)
            .map_err(|fault| StoreError::Damaged(format!("entry {sequence}: {fault}")))?;
        // The tree takes the hash that the bytes have, and the number that the entry says: what is
        // damaged must not become part of what will be signed.
        if decoded.entry.sequence_number.0 != sequence
            || decoded.computed_hash != decoded.entry.entry_hash
            || edge.root().size.leaves() + hashes.len() as u64 != sequence
        {
            return Err(StoreError::Damaged(format!("entry {sequence} is not what it says it is")));
        }
        hashes.push(decoded.computed_hash);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(connection: &Connection) -> i32 {
        connection.query_row("PRAGMA user_version", [], |row| row.get(0)).expect("a number")
    }

    fn run(transaction: &Transaction<'_>, sql: &str) -> Result<(), StoreError> {
        transaction.execute_batch(sql).map_err(failed("test"))
    }

    #[test]
    fn a_migration_is_done_whole_or_not_at_all_and_goes_on_where_it_stopped() {
        let mut connection = Connection::open_in_memory().expect("opened");
        connection.execute_batch("CREATE TABLE t (a); PRAGMA user_version=1;").expect("made");
        let good: Step = |transaction, _| run(transaction, "ALTER TABLE t ADD b DEFAULT 2;");
        let broken: Step = |transaction, _| {
            run(transaction, "INSERT INTO t (a) VALUES (1); INSERT INTO nowhere VALUES (1);")
        };
        let mended: Step = |transaction, _| run(transaction, "INSERT INTO t (a) VALUES (1);");
        let rows = |connection: &Connection| -> i64 {
            connection.query_row("SELECT count(b) FROM t", [], |row| row.get(0)).expect("a number")
        };

        assert!(migrate(&mut connection, 1, &[good, broken], &mut |_, _| {}).is_err());
        assert_eq!((version(&connection), rows(&connection)), (2, 0));
        migrate(&mut connection, 2, &[good, mended], &mut |_, _| {}).expect("migrated");
        assert_eq!((version(&connection), rows(&connection)), (3, 1));
        migrate(&mut connection, 3, &[good, mended], &mut |_, _| {}).expect("nothing to do");
        assert_eq!((version(&connection), rows(&connection)), (3, 1));
        assert!(matches!(migrate(&mut connection, 0, &[good], &mut |_, _| {}), Err(StoreError::Damaged(_))));
    }
}
