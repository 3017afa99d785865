//! Running a ledger: check it, unlock the key, finish what was reserved, say so in a BOOT entry,
//! serve, and say so in a SHUTDOWN entry.

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use super::genesis::Genesis;
use super::init::{sign, write_public_key};
use super::offline::{lines, read_genesis};
use super::{Fault, host, io, token_options};
use crate::audit::{self, Expectations, TrustedKeys};
use crate::config::Config;
use crate::failpoint;
use crate::governance::Policy;
use crate::index::Index;
use crate::ledger::canonical;
use crate::ledger::chain::Head;
use crate::ledger::entry::{EntryId, EventCategory, EventType, Sequence, SignatureAlgorithm};
use crate::ledger::key::{PublicKey, Signable};
use crate::sequencer::{Outcome, Sequencer, Setup, Submission, Ticket, now};
use crate::server::budget::Budget;
use crate::server::listener::{self, Connections, Limits};
use crate::server::routes;
use crate::server::service::{Parts, Service};
use crate::store::{Reader, Store, StoreError, Unfinished, mode_of};
use crate::token::{Identity, Pool, Token};

/// How many of the last entries a start checks in full: what a crash could have touched, and
/// little enough that a start takes the same time at any length.
const CHECKED_AT_START: u64 = 1_024;
/// Of the memory budget, what is kept for the daemon's own entries.
const OWN_BYTES: usize = 1 << 20;
/// Threads that may wait for the disk or a directory service; a burst of connections has no more.
const BLOCKING_THREADS: usize = 32;
/// How often the WAL is looked at, and how large it may be before it is moved into the file.
const WAL_CHECK: Duration = Duration::from_millis(250);
const WAL_BYTES: u64 = 8 << 20;

/// Runs the daemon until it is told to stop.
///
/// # Errors
/// When it can't start, or had to stop because of a fault.
pub fn serve(config: &Config) -> Result<(), Fault> {
    let ledger = &config.ledger.path;
    if ledger.symlink_metadata().is_err() {
        return Err(Fault::NoLedger(ledger.clone()));
    }
    let mut store = Store::open(ledger)?;
    let reader = Reader::open(ledger)?;
    if reader.count()? == 0 {
        return Err(Fault::Unborn(ledger.clone()));
    }
    let genesis = read_genesis(ledger, &reader)?;
    if genesis.origin != config.origin {
        return Err(Fault::OtherOrigin { ledger: genesis.origin, config: config.origin.clone() });
    }
    // Before the token is touched: a ledger that does not hold is not extended.
    let mut verified = check_tail(&reader, &genesis)?;
    let unfinished = store.unfinished(reader.head()?)?;
    let (pool, token) = unlock(config, &genesis)?;
    if let Some(unfinished) = unfinished {
        finish(&mut store, &unfinished, &pool, &genesis.key)?;
        verified = check_tail(&reader, &genesis)?;
    }
    let head = reader.head()?;
    let index = Index::open(&config.ledger.index, &reader, |indexed| {
        tracing::info!(indexed, of = head.next.0, "building the index");
    })?;
    if config.ledger.public_key.symlink_metadata().is_err() {
        write_public_key(&config.ledger.public_key, &genesis.key.to_pem())?;
    }
    let boot = boot_entries(&reader, &head, verified)?;

    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("http")
        .max_blocking_threads(BLOCKING_THREADS)
        .build()
        .map_err(io("start the runtime"))?;
    runtime.block_on(run(config, Started { store, genesis, pool, token, index: Arc::new(index), head, boot }))
}

struct Started {
    store: Store,
    genesis: Genesis,
    pool: Arc<Pool>,
    token: Identity,
    index: Arc<Index>,
    head: Head,
    boot: Vec<Own>,
}

/// An entry of the daemon's own: type, category, action and canonical payload.
type Own = (EventType, EventCategory, &'static str, String);

async fn run(config: &Config, started: Started) -> Result<(), Fault> {
    let Started { store, genesis, pool, token, index, head, boot } = started;
    let size = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
    let policy = Arc::new(Policy::new(&host(config), size(config.limits.entry_bytes)));
    // Before the BOOT entry, so that a start that fails here does not write one each time. Clients
    // that connect already are heard once it is sealed.
    let (socket, access) = listener::bind(&config.server)?;
    let (fault_sender, mut fault) = oneshot::channel();
    let sequencer = Sequencer::start(Setup {
        store,
        head,
        pool: pool.clone(),
        key: genesis.key.id(),
        index: index.clone(),
        policy: policy.clone(),
        commit_entries: size(config.limits.commit_entries),
        queue_wait: Duration::from_secs(config.limits.queue_wait_seconds),
        min_free_bytes: config.ledger.min_free_bytes,
        on_fault: Box::new(move || {
            // Nobody listens only when the daemon is stopping already.
            let _ = fault_sender.send(());
        }),
    })
    .map_err(io("start the sequencer"))?;
    let sequencer = Arc::new(sequencer);
    for own in boot {
        append_own(&sequencer, &policy, own).await?;
    }
    let wal = tokio::task::spawn_blocking({
        let (ledger, sequencer) = (config.ledger.path.clone(), sequencer.clone());
        move || tend_wal(&ledger, &sequencer)
    });

    if let Err(error) = listener::raise_nofile_limit() {
        tracing::warn!(%error, "couldn't raise the limit of open files");
    }
    let connections = Arc::new(Connections::default());
    let draining = tokio::sync::watch::Sender::new(false);
    let service = Arc::new(Service::new(Parts {
        origin: genesis.origin,
        ledger: config.ledger.path.clone(),
        key: genesis.key,
        token,
        pool,
        policy,
        sequencer: sequencer.clone(),
        index,
        budget: Budget::new(size(config.limits.memory_bytes), OWN_BYTES),
        access,
        connections: connections.clone(),
        request_bytes: size(config.limits.request_bytes),
        batch_answer_bytes: size(config.limits.batch_answer_bytes),
        min_free_bytes: config.ledger.min_free_bytes,
        draining: draining.subscribe(),
        idle: config.server.idle_timeout(),
    }));
    let (mut terminate, mut interrupt) = (
        signal(SignalKind::terminate()).map_err(io("listen for SIGTERM"))?,
        signal(SignalKind::interrupt()).map_err(io("listen for SIGINT"))?,
    );
    tracing::info!(socket = %config.server.socket.display(), entries = head.next.0, "ready");
    let mut reason = "SIGTERM";
    let shutdown = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => reason = "SIGINT",
            _ = &mut fault => reason = "fault",
        }
        tracing::info!(reason, "stopping");
        draining.send_replace(true);
    };
    listener::serve(socket, routes::router(service), Limits::from(&config.server), connections, shutdown)
        .await;
    sequencer.stop(reason).await;
    let _ = wal.await;
    let _ = std::fs::remove_file(&config.server.socket);
    match sequencer.gauges().fault() {
        Some(fault) => Err(Fault::Stopped(fault)),
        None => {
            tracing::info!(entries = sequencer.gauges().committed.load(Ordering::Relaxed), "stopped");
            Ok(())
        }
    }
}

/// Opens the token that the genesis names and has it prove that it holds the ledger's key.
fn unlock(config: &Config, genesis: &Genesis) -> Result<(Arc<Pool>, Identity), Fault> {
    let mut token = Token::open(&token_options(&config.token, Some(genesis.token.clone()))?)?;
    let found = token.public_key().id();
    if found != genesis.key.id() {
        return Err(Fault::OtherKey { expected: genesis.key.id(), found });
    }
    token.prove_possession(&genesis.origin)?;
    tracing::info!(token = %token.identity(), library = token.library(), key = %found, "unlocked the key");
    let identity = token.identity().clone();
    Ok((Arc::new(Pool::start(token).map_err(io("start the token's threads"))?), identity))
}

/// Signs what a stopped daemon had reserved: exactly those entries, with their own key and mode.
fn finish(store: &mut Store, unfinished: &Unfinished, pool: &Pool, key: &PublicKey) -> Result<(), Fault> {
    if unfinished.key != key.id() || unfinished.mode != mode_of(SignatureAlgorithm::EntryP256) {
        return Err(Fault::OtherReservation {
            first: unfinished.first.0,
            key: unfinished.key,
            mode: unfinished.mode.clone(),
        });
    }
    tracing::warn!(
        first = unfinished.first.0,
        count = unfinished.hashes.len(),
        "signing entries that were reserved"
    );
    let signables = unfinished.hashes.iter().copied().map(Signable::Entry).collect();
    let signatures = sign(pool, signables)?;
    failpoint::reach("after-signing-again");
    // A crash before this line leaves the same reservation; its signatures differ, its content not.
    Ok(store.finish(unfinished, &signatures)?)
}

/// Checks the last entries in full and says which.
fn check_tail(reader: &Reader, genesis: &Genesis) -> Result<(u64, u64), Fault> {
    let count = reader.count()?;
    let from = count.saturating_sub(CHECKED_AT_START);
    let mut expectations = Expectations::trusting(TrustedKeys::only(genesis.key.clone()));
    expectations.after = Some(head_before(reader, from)?);
    expectations.threads = NonZeroUsize::new(2);
    let verdict = audit::audit(lines(reader, Sequence(from), Sequence(count)), &expectations)
        .map_err(io("check the last entries"))?;
    match verdict.fault {
        Some(fault) => Err(Fault::Tail(fault)),
        None => Ok((from, count - 1)),
    }
}

fn head_before(reader: &Reader, sequence: u64) -> Result<Head, Fault> {
    let Some(before) = sequence.checked_sub(1) else { return Ok(Head::EMPTY) };
    let damaged = |what: String| StoreError::Damaged(format!("entry {before} {what}"));
    let line = reader.line(Sequence(before))?.ok_or_else(|| damaged("is missing".into()))?;
    let decoded = canonical::decode(&line.bytes).map_err(|fault| damaged(fault.to_string()))?;
    Ok(Head::after(&decoded.entry))
}

/// The BOOT entry, and a word on the clock where it runs behind the ledger.
fn boot_entries(reader: &Reader, head: &Head, (from, to): (u64, u64)) -> Result<Vec<Own>, Fault> {
    let last = reader.line(Sequence(to))?.map(|line| line.bytes).unwrap_or_default();
    let last_action =
        canonical::decode(&last).map(|decoded| decoded.entry.action_type.to_owned()).unwrap_or_default();
    let previous = match last_action.as_str() {
        "system_shutdown" => "clean",
        _ if head.next == Sequence(1) => "first",
        _ => "unclean",
    };
    let now = now();
    let mut own = Vec::new();
    if now < head.timestamp {
        let behind = head.timestamp.as_micros() - now.as_micros();
        tracing::warn!(behind_micros = behind, "the clock is behind the last entry");
        let payload = format!(r#"{{"behind_microseconds":{behind},"clock":"{now}","found":"behind"}}"#);
        own.push((EventType::Action, EventCategory::Warning, "system_clock", payload));
    }
    let payload = format!(
        r#"{{"attribution_verified":true,"boot_time":"{now}","head":{{"entry_hash":"{}","sequence_number":{to}}},"initial_k_state":1,"invariants_loaded":7,"previous_shutdown":"{previous}","verified_from":{from},"verified_to":{to},"version":"{}"}}"#,
        head.hash,
        crate::VERSION,
    );
    own.push((EventType::Boot, EventCategory::Normal, "system_initialization", payload));
    Ok(own)
}

/// Appends an entry of the daemon's own and waits until it is sealed.
async fn append_own(sequencer: &Sequencer, policy: &Policy, own: Own) -> Result<(), Fault> {
    let (event_type, category, action, payload) = own;
    let id = EntryId(*uuid::Uuid::new_v4().as_bytes());
    let admitted = policy.own(event_type, category, action, payload, id);
    let (ticket, outcome) = oneshot::channel();
    let submission = Submission { admitted, ticket: Ticket::Single(ticket), searched: 0 };
    let refused = sequencer.submit(vec![submission]).is_err();
    match outcome.await {
        Ok(Outcome::Committed { .. }) if !refused => Ok(()),
        other => {
            let reason =
                sequencer.gauges().fault().unwrap_or_else(|| format!("{action} was not sealed: {other:?}"));
            Err(Fault::Stopped(reason))
        }
    }
}

/// Moves the WAL into the file off the commit path, so that commits need not.
fn tend_wal(ledger: &Path, sequencer: &Sequencer) {
    let mut wal = ledger.as_os_str().to_owned();
    wal.push("-wal");
    let reader = match Reader::open(ledger) {
        Ok(reader) => reader,
        Err(error) => {
            tracing::error!(%error, "nobody tends the WAL; commits do it themselves");
            return;
        }
    };
    let mut full = false;
    while !sequencer.gauges().stopping.load(Ordering::Acquire) {
        std::thread::sleep(WAL_CHECK);
        let bytes = std::fs::metadata(&wal).map_or(0, |metadata| metadata.len());
        if bytes < WAL_BYTES {
            continue;
        }
        match reader.checkpoint() {
            Ok(()) => full = false,
            // Nothing is lost: what is not in the file yet stays in the WAL.
            Err(error @ StoreError::Full(_)) => {
                if !std::mem::replace(&mut full, true) {
                    tracing::warn!(%error, "couldn't move the WAL into the ledger; trying again");
                }
            }
            // An fsync that failed is final: the page cache may no longer say what the disk holds.
            Err(error) => return sequencer.fail(error.to_string()),
        }
    }
}
