//! Running a ledger: check it, unlock the key, finish what was reserved, say so in a BOOT entry,
//! serve, and say so in a SHUTDOWN entry.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use super::anchors::Checked;
use super::genesis::Genesis;
use super::init::{sign, write_public_key};
use super::notify::Notifier;
use super::offline::read_genesis;
use super::watchdog::{self, Watchdog};
use super::{Fault, anchors, governing, host, io, keys, pin_latch, token_opening};
use crate::anchor::{self, Contradiction, Gauge, Standing};
use crate::audit::{self, Before, Expectations, TrustedKeys};
use crate::caller::Access;
use crate::config::{self, Config, OnTokenLoss};
use crate::evidence::lines;
use crate::failpoint;
use crate::governance::Policy;
use crate::governance::governor::Governor;
use crate::governance::keyring::Keyring;
use crate::governance::rules::Rules;
use crate::index::{Index, IndexError};
use crate::ledger::canonical;
use crate::ledger::chain::Head;
use crate::ledger::code::Code;
use crate::ledger::entry::{EventCategory, EventType, Sequence, SignatureAlgorithm};
use crate::ledger::json;
use crate::ledger::key::{KeyId, PublicKey};
use crate::ledger::merkle::{NodeHash, TreeSize};
use crate::ledger::tile::{Edge, Tile};
use crate::publish::{self, Published, Publisher, Trust};
use crate::sequencer::{Event, Gauges, MODE_CHANGE, Outcome, Sequencer, Setup, chain, now};
use crate::server::budget::Budget;
use crate::server::listener::{self, Limits, Passed};
use crate::server::routes;
use crate::server::service::{Parts, Service};
use crate::server::tree;
use crate::store::{Reader, Store, StoreError, Unfinished, algorithm_of, mode_of};
use crate::token::{Expected, Identity, Keeper, Pool, SignError, TokenError, TokenOptions};

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
/// How often it is looked whether violations were counted long enough.
const SETTLE_EVERY: Duration = Duration::from_secs(1);
/// How often it is looked whether a call of the library hangs.
const WATCH_CALLS: Duration = Duration::from_secs(1);
/// How long a stop may wait for the last publication, of which there is little to do.
const LAST_PUBLICATION: Duration = Duration::from_secs(5);

/// A ledger that holds, with nothing left unsigned and its key unlocked.
pub(super) struct Opened {
    pub(super) store: Store,
    pub(super) reader: Reader,
    pub(super) index: Index,
    pub(super) genesis: Genesis,
    /// The keys, of which the token has the newest.
    pub(super) keys: Arc<Keyring>,
    /// Which entries were checked in full.
    pub(super) verified: (u64, u64),
    pub(super) edge: Edge,
    pub(super) pool: Arc<Pool>,
    pub(super) token: Arc<Keeper>,
    /// All that are configured.
    pub(super) anchors: Vec<Checked>,
    /// How the next entry would be signed if nothing changed.
    pub(super) algorithm: SignatureAlgorithm,
}

/// What is to become of an anchor that is not there.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Absent {
    /// The ledger is refused.
    Refused,
    /// It is to be made.
    Given,
}

impl Absent {
    fn refuse(self, anchors: &[Checked]) -> Result<(), Fault> {
        let missing = anchors.iter().find(|checked| checked.entries.is_none());
        match missing.filter(|_| self == Absent::Refused) {
            Some(Checked { anchor, .. }) => {
                Err(Fault::Anchor(Contradiction { anchor: anchor.clone(), standing: Standing::Missing }))
            }
            None => Ok(()),
        }
    }
}

/// A ledger that holds as far as that can be said without its token.
struct Found {
    store: Store,
    reader: Reader,
    index: Index,
    genesis: Genesis,
    keys: Arc<Keyring>,
    /// The one that has the newest key.
    token: Identity,
    verified: (u64, u64),
    edge: Edge,
    anchors: Vec<Checked>,
}

impl Found {
    /// The key that signs what comes next.
    fn key(&self) -> &PublicKey {
        self.keys.newest().unwrap_or(&self.genesis.key)
    }

    fn explain(&self, error: TokenError) -> Fault {
        keys::explain(error, self.key().id(), self.keys.terms().len() > 1)
    }
}

/// Opens the ledger to extend it, where it and its anchors hold. What is refused without the token is
/// refused before the token is touched; what an anchor says, before anything is signed.
/// `progress` hears of what may take minutes.
pub(super) fn open(config: &Config, absent: Absent, progress: Progress<'_>) -> Result<Opened, Fault> {
    let found = find(config, absent, progress)?;
    let keeper = Arc::new(keeper(config, &found)?);
    let pool = keeper.open().map_err(|error| found.explain(error))?;
    finish(config, absent, found, &pool, keeper, progress)
}

/// Hears in words what is being done.
type Progress<'a> = &'a dyn Fn(&str);

fn open_index(config: &Config, reader: &Reader, progress: Progress<'_>) -> Result<Index, IndexError> {
    Index::open(&config.ledger.index, reader, |indexed| {
        progress(&format!("building the index: {indexed} entries"));
        tracing::info!(indexed, "building the index");
    })
}

fn find(config: &Config, absent: Absent, progress: Progress<'_>) -> Result<Found, Fault> {
    let ledger = &config.ledger.path;
    if ledger.symlink_metadata().is_err() {
        return Err(Fault::NoLedger(ledger.clone()));
    }
    let store = Store::open(ledger, &mut |done, of| {
        progress(&format!("building the tree of the ledger, once: {done} of {of} entries"));
        if done.is_multiple_of(1 << 18) || done == of {
            tracing::info!(done, of, "building the tree, once");
        }
    })?;
    let reader = Reader::open(ledger)?;
    if reader.count()? == 0 {
        return Err(Fault::Unborn(ledger.clone()));
    }
    let genesis = read_genesis(ledger, &reader)?;
    if genesis.origin != config.origin {
        return Err(Fault::OtherOrigin { ledger: genesis.origin, config: config.origin.clone() });
    }
    let index = match open_index(config, &reader, progress) {
        Ok(index) => index,
        Err(error) => {
            // An anchor knows more of what is gone than the index does.
            let keys = &keys::found(&reader, &genesis)?;
            let ledger = anchor::Ledger { origin: &genesis.origin, keys, reader: &reader };
            absent.refuse(&anchors::check(anchors::off_token(config), ledger)?)?;
            return Err(error.into());
        }
    };
    let verified = check_tail(&reader, &genesis, |end| governing::governor_at(&reader, &index, end))?;
    let keys = keys_now(&reader, &index)?;
    let edge = check_tree(&reader, &genesis, &keys, verified.0)?;
    let ledger = anchor::Ledger { origin: &genesis.origin, keys: &keys, reader: &reader };
    let anchors = anchors::check(anchors::off_token(config), ledger)?;
    absent.refuse(&anchors)?;
    let token = keys::token_of_newest(&reader, &keys, &genesis)?;
    Ok(Found { store, reader, index, genesis, keys, token, verified, edge, anchors })
}

fn keys_now(reader: &Reader, index: &Index) -> Result<Arc<Keyring>, Fault> {
    Ok(governing::governor_at(reader, index, Sequence(reader.count()?))?.standing().keys.clone())
}

/// The rest, with the token: its anchor, and what a stopped daemon had reserved.
fn finish(
    config: &Config,
    absent: Absent,
    found: Found,
    pool: &Arc<Pool>,
    token: Arc<Keeper>,
    progress: Progress<'_>,
) -> Result<Opened, Fault> {
    let key = found.key().id();
    let Found {
        mut store, reader, mut index, genesis, mut keys, mut verified, mut edge, mut anchors, ..
    } = found;
    let ledger = anchor::Ledger { origin: &genesis.origin, keys: &keys, reader: &reader };
    anchors.extend(anchors::check(anchors::on_token(config, &token), ledger)?);
    absent.refuse(&anchors)?;
    while let Some(found) = store.unfinished(reader.head()?)? {
        sign_again(&mut store, &found, &mut edge, pool, key)?;
        drop(index);
        index = open_index(config, &reader, progress)?;
        verified = check_tail(&reader, &genesis, |end| governing::governor_at(&reader, &index, end))?;
    }
    keys = keys_now(&reader, &index)?;
    // The last thing that was reserved may have been the change of the key.
    if let Some(newest) = keys.newest().filter(|newest| newest.id() != key) {
        return Err(Fault::OtherKey { expected: newest.id(), found: key });
    }
    let algorithm = Last::read(&reader, &reader.head()?)?.algorithm;
    let pool = pool.clone();
    Ok(Opened { store, reader, index, genesis, keys, verified, edge, pool, token, anchors, algorithm })
}

/// Where clients connect.
struct Bound {
    socket: UnixListener,
    access: Access,
    path: PathBuf,
    /// One that the service manager passed is not ours to remove.
    is_own: bool,
}

impl Bound {
    fn to(config: &config::Server, passed: Option<Passed>) -> Result<Self, Fault> {
        let Some(passed) = passed else {
            let (socket, access) = listener::bind(config)?;
            return Ok(Bound { socket, access, path: config.socket.clone(), is_own: true });
        };
        let path = passed.path().to_owned();
        if path != config.socket {
            tracing::warn!(passed = %path.display(), configured = %config.socket.display(), "another socket was passed than `server.socket`");
        }
        let (socket, access) = passed.listen()?;
        Ok(Bound { socket, access, path, is_own: false })
    }

    fn remove(&self) {
        if self.is_own {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Runs the daemon until it is told to stop. `notifier` hears how it is.
///
/// # Errors
/// When it can't start, or had to stop because of a fault.
pub fn serve(config: &Config, notifier: Arc<Notifier>) -> Result<(), Fault> {
    // Before there is any thread, as it wants.
    let passed = Passed::take()?;
    notifier.starting("checking the ledger");
    let found = find(config, Absent::Refused, &|doing| notifier.starting(doing))?;
    if config.ledger.public_key.symlink_metadata().is_err() {
        write_public_key(&config.ledger.public_key, &found.genesis.key.to_pem())?;
    }
    let keeper = Arc::new(keeper(config, &found)?);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("http")
        .max_blocking_threads(BLOCKING_THREADS)
        .build()
        .map_err(io("start the runtime"))?;
    runtime.block_on(start(config, notifier, passed, found, keeper))
}

async fn start(
    config: &Config,
    notifier: Arc<Notifier>,
    passed: Option<Passed>,
    found: Found,
    keeper: Arc<Keeper>,
) -> Result<(), Fault> {
    let (mut passed, rules) = (passed, governing::read(config)?);
    notifier.starting("unlocking the key on the token");
    let mut bound = None;
    let found = match keeper.open() {
        Ok(_) => found,
        Err(error) if error.needs_operator() => return Err(found.explain(error)),
        Err(error) => {
            let bound = bound.insert(Bound::to(&config.server, passed.take())?);
            match wait(config, &notifier, found, &keeper, bound, error).await? {
                Some(found) => *found,
                None => {
                    bound.remove();
                    return Ok(());
                }
            }
        }
    };
    let pool = keeper.pool().ok_or(SignError::Panicked)?;
    let progress = |doing: &str| notifier.starting(doing);
    let Opened { store, reader, index, genesis, keys, verified, edge, token, anchors, .. } =
        finish(config, Absent::Refused, found, &pool, keeper, &progress)?;
    // The keeper is to be the only one that has it.
    drop(pool);
    let head = reader.head()?;
    let governor = governing::governor_at(&reader, &index, head.next)?;
    let last = Last::read(&reader, &head)?;
    let boot = boot_entries(&head, verified, &last);
    let noted = reader.newest_note()?.map_or(0, |note| note.checkpoint().root().size.leaves());
    let tree = TreeState { edge, noted: Sequence(noted), algorithm: last.algorithm };
    let index = Arc::new(index);
    // Before the BOOT entry, so that a start that fails here does not write one each time. Clients
    // that connect already are heard once it is sealed.
    let bound = match bound {
        Some(bound) => bound,
        None => Bound::to(&config.server, passed)?,
    };
    let started = Started {
        store,
        reader,
        genesis,
        keys,
        token,
        anchors,
        index,
        governor,
        head,
        tree,
        boot,
        rules,
        bound,
    };
    run(config, notifier, started).await
}

/// Serves reads until the token is there, which was not there at the start. Nothing is written: the
/// BOOT entry, too, takes the token. `None` where the daemon was told to stop before.
async fn wait(
    config: &Config,
    notifier: &Arc<Notifier>,
    found: Found,
    keeper: &Arc<Keeper>,
    bound: &Bound,
    error: TokenError,
) -> Result<Option<Box<Found>>, Fault> {
    let why = chain(&error);
    tracing::warn!(%why, "the token is not there; serving reads until it is");
    let Found { store, reader, index, genesis, keys, token, verified, edge, anchors } = found;
    let head = reader.head()?;
    let governor = governing::governor_at(&reader, &index, head.next)?;
    let algorithm = Last::read(&reader, &head)?.algorithm;
    let socket = listener::again(&bound.socket).map_err(io("keep the socket"))?;
    let sequencer = Arc::new(Sequencer::parked(head, governor, algorithm, why.clone()));
    let (sender, mut back) = oneshot::channel();
    let gauges = sequencer.gauges().clone();
    // Reads are served, so who waits for the service goes on.
    notifier.ready(&format!("reading only; the token is away: {why}"));
    let told = notifier.clone();
    let mut heard = why;
    let failed = move |error: &TokenError| {
        let why = chain(error);
        if why != heard {
            tracing::warn!(%why, "the token is not there yet");
            gauges.set_away(Some(why.clone()));
            told.status(&format!("reading only; the token is away: {why}"));
            heard = why;
        }
    };
    // Nobody listens any more when the daemon was told to stop.
    keeper
        .recover(failed, move |_| {
            let _ = sender.send(());
        })
        .map_err(io("wait for the token"))?;
    let beating = tokio::spawn(beat(notifier.clone(), sequencer.gauges().clone(), keeper.clone()));
    let watching = tokio::spawn(watch_calls(keeper.clone(), hang_timeout(config)));
    let draining = tokio::sync::watch::Sender::new(false);
    let parts = parts(config, &genesis, keeper, &sequencer, Arc::new(index), bound.access, &draining);
    let connections = parts.connections.clone();
    // The one that is waited for, not that of the genesis.
    let service = Arc::new(Service::new(Parts { token: token.clone(), ..parts }));
    let (mut terminate, mut interrupt) = (
        signal(SignalKind::terminate()).map_err(io("listen for SIGTERM"))?,
        signal(SignalKind::interrupt()).map_err(io("listen for SIGINT"))?,
    );
    let mut is_back = false;
    let shutdown = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            arrived = &mut back => is_back = arrived.is_ok(),
        }
        draining.send_replace(true);
    };
    let hash_programs = || sequencer.gauges().governor().standing().rules.uses_exe_hashes();
    let limits = Limits::from(&config.server);
    listener::serve(socket, routes::router(service), limits, connections, hash_programs, shutdown).await;
    watching.abort();
    beating.abort();
    if !is_back {
        keeper.close();
        notifier.stopping("stopping");
        tracing::info!("stopped before the token was there");
        return Ok(None);
    }
    let index = open_index(config, &reader, &|doing| notifier.starting(doing))?;
    Ok(Some(Box::new(Found { store, reader, index, genesis, keys, token, verified, edge, anchors })))
}

/// Keeps the watchdog quiet while nothing can be tried, unless the token's library hangs.
async fn beat(notifier: Arc<Notifier>, gauges: Arc<Gauges>, keeper: Arc<Keeper>) {
    let Some(limit) = notifier.watchdog() else { return };
    loop {
        if keeper.longest_call().is_none_or(|elapsed| elapsed < limit / 2) {
            let why = gauges.token_away().unwrap_or_default();
            notifier.alive(&format!("reading only; the token is away: {why}"));
        }
        tokio::time::sleep(limit / 2).await;
    }
}

fn hang_timeout(config: &Config) -> Duration {
    Duration::from_secs(config.token.hang_timeout_seconds)
}

/// What the routes are given, but for anchors.
fn parts(
    config: &Config,
    genesis: &Genesis,
    keeper: &Arc<Keeper>,
    sequencer: &Arc<Sequencer>,
    index: Arc<Index>,
    access: Access,
    draining: &tokio::sync::watch::Sender<bool>,
) -> Parts {
    Parts {
        origin: genesis.origin.clone(),
        ledger: config.ledger.path.clone(),
        key: genesis.key.clone(),
        token: keeper.identity().unwrap_or_else(|| genesis.token.clone()),
        opening: token_opening(config),
        keeper: keeper.clone(),
        anchors: Arc::new([]),
        policy: Arc::new(Policy::new(&host(config), size(config.limits.entry_bytes))),
        sequencer: sequencer.clone(),
        index,
        budget: Budget::new(size(config.limits.memory_bytes), OWN_BYTES),
        access,
        connections: Arc::default(),
        request_bytes: size(config.limits.request_bytes),
        batch_answer_bytes: size(config.limits.batch_answer_bytes),
        min_free_bytes: config.ledger.min_free_bytes,
        draining: draining.subscribe(),
        idle: config.server.idle_timeout(),
    }
}

fn size(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

struct Started {
    store: Store,
    reader: Reader,
    genesis: Genesis,
    token: Arc<Keeper>,
    anchors: Vec<Checked>,
    index: Arc<Index>,
    governor: Governor,
    keys: Arc<Keyring>,
    head: Head,
    tree: TreeState,
    boot: Vec<Own>,
    rules: Option<Rules>,
    bound: Bound,
}

struct TreeState {
    edge: Edge,
    /// The size of the newest checkpoint.
    noted: Sequence,
    /// How the last entries were signed.
    algorithm: SignatureAlgorithm,
}

/// An entry of the daemon's own: type, category, action and canonical payload.
type Own = (EventType, EventCategory, &'static str, String);

async fn run(config: &Config, notifier: Arc<Notifier>, started: Started) -> Result<(), Fault> {
    let Started {
        store,
        reader,
        genesis,
        keys,
        token,
        anchors,
        index,
        governor,
        head,
        tree,
        boot,
        rules,
        bound,
    } = started;
    let genesis = Arc::new(genesis);
    let policy = Arc::new(Policy::new(&host(config), size(config.limits.entry_bytes)));
    let (fault_sender, mut fault) = oneshot::channel();
    let sequencer = Sequencer::start(Setup {
        origin: genesis.origin.clone(),
        store,
        head,
        edge: tree.edge,
        noted: tree.noted,
        algorithm: tree.algorithm,
        checkpoint_interval: Duration::from_secs(config.signing.checkpoint_interval_seconds),
        token: token.clone(),
        hold_entries: match config.token.on_token_loss {
            OnTokenLoss::Refuse => 0,
            OnTokenLoss::Hold => size(config.token.hold_entries),
        },
        key: keys.newest().unwrap_or(&genesis.key).id(),
        index: index.clone(),
        policy: policy.clone(),
        governor,
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
        append_own(&sequencer, own).await?;
    }
    let algorithm = config.signing.algorithm();
    if algorithm != tree.algorithm {
        let (from, to) = (mode_of(tree.algorithm), mode_of(algorithm));
        let payload = format!(r#"{{"from":"{from}","to":"{to}"}}"#);
        if sequencer.gauges().governor().may_perform(MODE_CHANGE) {
            tracing::info!(from, to, "changing the mode of signing");
            append_own(&sequencer, (EventType::Change, EventCategory::Normal, MODE_CHANGE, payload)).await?;
        } else {
            tracing::warn!(from, to, "the rules ask for approvals to change the mode of signing: propose it");
        }
    }
    if let Some(rules) = rules {
        governing::apply(&sequencer, &config.rules.file, rules).await?;
    }
    let wal = tokio::task::spawn_blocking({
        let (ledger, sequencer) = (config.ledger.path.clone(), sequencer.clone());
        move || tend_wal(&ledger, &sequencer)
    });
    let (stop_anchors, stopped) = mpsc::channel();
    let gauge = |checked: &Checked| Gauge {
        kind: checked.anchor.kind(),
        entries: AtomicU64::new(checked.entries.unwrap_or(0)),
    };
    let gauges: Arc<[Gauge]> = anchors.iter().map(gauge).collect();
    let kept = tokio::task::spawn_blocking({
        let (config, genesis, sequencer) = (config.clone(), genesis.clone(), sequencer.clone());
        let anchors = anchors.into_iter().map(|checked| checked.anchor).collect();
        let gauges = gauges.clone();
        move || anchors::keep(&config, anchors, &gauges, &genesis, &sequencer, &stopped)
    });

    let (stop_publishing, published) = publishing(config, &genesis, &sequencer);

    if let Err(error) = listener::raise_nofile_limit() {
        tracing::warn!(%error, "couldn't raise the limit of open files");
    }
    let draining = tokio::sync::watch::Sender::new(false);
    let parts = parts(config, &genesis, &token, &sequencer, index, bound.access, &draining);
    let connections = parts.connections.clone();
    let service = Arc::new(Service::new(Parts { anchors: gauges, policy, ..parts }));
    let settled = tokio::spawn({
        let (service, mut draining) = (service.clone(), draining.subscribe());
        async move {
            let mut stopping = false;
            while !stopping {
                stopping = tokio::time::timeout(SETTLE_EVERY, draining.wait_for(|stop| *stop)).await.is_ok();
                service.violations.settle(&service.sequencer, stopping).await;
                governing::expire(&service.sequencer).await;
            }
        }
    });
    let watching = tokio::spawn(watch_calls(token.clone(), hang_timeout(config)));
    let mut hangup = signal(SignalKind::hangup()).map_err(io("listen for SIGHUP"))?;
    let reloading = tokio::spawn({
        let (config, sequencer, notifier) = (config.clone(), sequencer.clone(), notifier.clone());
        async move {
            while hangup.recv().await.is_some() {
                tracing::info!("reading the rules again");
                notifier.reloading();
                let applied = match governing::read(&config) {
                    Ok(Some(rules)) => governing::apply(&sequencer, &config.rules.file, rules).await,
                    Ok(None) => Ok(()),
                    Err(fault) => Err(fault),
                };
                match applied {
                    Ok(()) => {
                        let count = sequencer.gauges().committed.load(Ordering::Relaxed);
                        notifier.ready(&watchdog::taking_entries(count));
                    }
                    Err(fault) => {
                        tracing::error!(%fault, "the rules in force stay");
                        notifier.ready(&format!("taking entries; the rules in force stay: {fault}"));
                    }
                }
            }
        }
    });
    let (mut terminate, mut interrupt) = (
        signal(SignalKind::terminate()).map_err(io("listen for SIGTERM"))?,
        signal(SignalKind::interrupt()).map_err(io("listen for SIGINT"))?,
    );
    let count = sequencer.gauges().committed.load(Ordering::Relaxed);
    tracing::info!(socket = %bound.path.display(), entries = head.next.0, "ready");
    notifier.ready(&watchdog::taking_entries(count));
    let watched = notifier.watchdog().map(|limit| {
        let (notifier, sequencer, origin) = (notifier.clone(), sequencer.clone(), genesis.origin.clone());
        tokio::spawn(Watchdog { notifier, origin, token, sequencer }.run(reader, limit))
    });
    let mut reason = "SIGTERM";
    let shutdown = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => reason = "SIGINT",
            _ = &mut fault => reason = "fault",
        }
        tracing::info!(reason, "stopping");
        notifier.stopping("stopping: sealing what was taken");
        draining.send_replace(true);
    };
    let hash_programs = || sequencer.gauges().governor().standing().rules.uses_exe_hashes();
    let limits = Limits::from(&config.server);
    let Bound { socket, path, is_own, .. } = bound;
    let remove = move || {
        if is_own {
            let _ = std::fs::remove_file(&path);
        }
    };
    listener::serve(socket, routes::router(service), limits, connections, hash_programs, shutdown).await;
    reloading.abort();
    watching.abort();
    if let Some(watched) = watched {
        watched.abort();
        let _ = watched.await;
    }
    let _ = settled.await;
    sequencer.stop(reason).await;
    // The checkpoint of the SHUTDOWN entry is published, and goes into the anchors too.
    drop((stop_publishing, stop_anchors));
    let kept = kept.await;
    let _ = (wal.await, published.await);
    remove();
    if let Ok(Err(contradiction)) = kept {
        return Err(Fault::Anchor(contradiction));
    }
    match sequencer.gauges().fault() {
        Some(fault) => Err(Fault::Stopped(fault)),
        None => {
            tracing::info!(entries = sequencer.gauges().committed.load(Ordering::Relaxed), "stopped");
            Ok(())
        }
    }
}

/// The token that has the newest key, which it has to prove.
fn keeper(config: &Config, found: &Found) -> Result<Keeper, Fault> {
    let Identity { serial, model, .. } = found.token.clone();
    let options =
        TokenOptions::configured(&config.token, Some(pin_latch(config)), Some(Expected { serial, model }))?;
    Ok(Keeper::new(options, found.key().clone(), &found.genesis.origin))
}

/// Signs what a stopped daemon had reserved: exactly those entries, with their own key and mode.
fn sign_again(
    store: &mut Store,
    unfinished: &Unfinished,
    edge: &mut Edge,
    pool: &Pool,
    key: KeyId,
) -> Result<(), Fault> {
    if unfinished.key != key || algorithm_of(&unfinished.mode).is_none() {
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
    let signatures = sign(pool, unfinished.signables(edge)?)?;
    failpoint::reach("after-signing-again");
    // A crash before this line leaves the same reservation; its signatures differ, its content not.
    Ok(store.finish(unfinished, &signatures)?)
}

/// Checks the last entries in full and says which. `governor_at` gives the state of governance before them.
pub(super) fn check_tail(
    reader: &Reader,
    genesis: &Genesis,
    governor_at: impl FnOnce(Sequence) -> Result<Governor, Fault>,
) -> Result<(u64, u64), Fault> {
    let count = reader.count()?;
    let from = count.saturating_sub(CHECKED_AT_START);
    let mut expectations = Expectations::trusting(TrustedKeys::only(genesis.key.clone()));
    expectations.after = Some(head_before(reader, from)?);
    if from > 0 {
        let size =
            TreeSize::new(from).ok_or_else(|| StoreError::Damaged(format!("{from} is no tree size")))?;
        let tree = reader.tree(from)?.frontier(size).map_err(StoreError::from)?;
        let governor = governor_at(Sequence(from))?;
        expectations.before = Some(Before { origin: genesis.origin.clone(), tree, governor });
    }
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

/// Holds the tree that is kept against the last entries and the newest checkpoint: what a crash, a
/// bad disk or a hand could have touched is not signed over. Gives its right edge.
pub(super) fn check_tree(
    reader: &Reader,
    genesis: &Genesis,
    keys: &Keyring,
    from: u64,
) -> Result<Edge, Fault> {
    let damaged = |what: String| Fault::Store(StoreError::Damaged(what));
    let count = reader.count()?;
    let sized = |size: u64| TreeSize::new(size).ok_or_else(|| damaged(format!("{size} is no tree size")));
    let mut tree = reader.tree(count)?;
    let edge = tree.edge().map_err(StoreError::from)?;
    let mut grown = tree.frontier(sized(from)?).map_err(StoreError::from)?;
    let mut leaves = Vec::with_capacity(Tile::FULL_BYTES);
    for (sequence, line) in (from..).zip(lines(reader, Sequence(from), Sequence(count))) {
        let line = line?;
        let decoded = canonical::decode(&line).map_err(|fault| damaged(fault.to_string()))?;
        grown.push(decoded.computed_hash).map_err(|full| damaged(full.to_string()))?;
        // The edge is made of nodes alone, so the tiles of leaves are held against the entries too.
        leaves.extend_from_slice(&NodeHash::of_leaf(decoded.computed_hash).0.0);
        if (sequence + 1).is_multiple_of(u64::from(Tile::FULL)) {
            if let Some(tile) = Tile::new(0, sequence >> Tile::HEIGHT, Tile::FULL)
                && !reader.tile(tile)?.ends_with(&leaves)
            {
                return Err(damaged(format!("{} of its tree is not what its entries make", tile.path())));
            }
            leaves.clear();
        }
    }
    if grown.root() != edge.root() {
        return Err(damaged(format!(
            "its tree of {count} entries is not the one that its last entries make"
        )));
    }
    if let Some(note) = reader.newest_note()? {
        let (origin, root) = (note.checkpoint().origin(), note.checkpoint().root());
        note.verify(&keys.signer_of(root.size))
            .map_err(|fault| damaged(format!("its newest checkpoint: {fault}")))?;
        let holds = origin == genesis.origin
            && root.size.leaves() <= count
            && tree.root(root.size).map_err(StoreError::from)? == root;
        if !holds {
            return Err(damaged(format!(
                "its newest checkpoint, of {} entries, is not of its tree",
                root.size
            )));
        }
    }
    Ok(edge)
}

/// What the last entry says of the time before this start.
struct Last {
    /// Its own, or that of the last before what an operator wrote.
    action: String,
    /// How the next entry would be signed if nothing changed.
    algorithm: SignatureAlgorithm,
}

impl Last {
    fn read(reader: &Reader, head: &Head) -> Result<Self, Fault> {
        let damaged = |what: String| StoreError::Damaged(format!("its last entry {what}"));
        let line = reader
            .line(Sequence(head.next.0.saturating_sub(1)))?
            .ok_or_else(|| damaged("is missing".into()))?;
        let entry = canonical::decode(&line.bytes).map_err(|fault| damaged(fault.to_string()))?.entry;
        // What an operator did since does not tell how the daemon ended.
        let mut action = entry.action_type.to_owned();
        let mut at = head.next.0.saturating_sub(1);
        while action == anchors::ACTION_TYPE && at > 0 {
            at -= 1;
            let line = reader.line(Sequence(at))?.ok_or_else(|| damaged("follows none".into()))?;
            let before = canonical::decode(&line.bytes).map_err(|fault| damaged(fault.to_string()))?;
            before.entry.action_type.clone_into(&mut action);
        }
        // A daemon that stopped right after it had changed the mode has signed nothing in it yet.
        let changed = (entry.action_type == MODE_CHANGE)
            .then(|| json::member(entry.action_payload, "to"))
            .flatten()
            .and_then(|mode| algorithm_of(mode.trim_matches('"')));
        Ok(Last { action, algorithm: changed.unwrap_or(entry.signature_algorithm) })
    }
}

/// The BOOT entry, and a word on the clock where it runs behind the ledger.
fn boot_entries(head: &Head, (from, to): (u64, u64), last: &Last) -> Vec<Own> {
    let previous = match last.action.as_str() {
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
    own
}

/// Appends an entry of the daemon's own and waits until it is sealed.
async fn append_own(sequencer: &Sequencer, own: Own) -> Result<(), Fault> {
    let (event_type, category, action, payload) = own;
    match sequencer.perform(Event::own(event_type, category, action, payload)).await {
        Ok(Outcome::Committed { .. }) => Ok(()),
        other => {
            let reason =
                sequencer.gauges().fault().unwrap_or_else(|| format!("{action} was not sealed: {other:?}"));
            Err(Fault::Stopped(reason))
        }
    }
}

/// Ends the process when a call of the library hangs. No thread can be taken out of a library, and
/// C_Finalize would wait for it, so nothing else helps; the next start signs what is reserved.
async fn watch_calls(token: Arc<Keeper>, limit: Duration) {
    loop {
        tokio::time::sleep(limit.min(WATCH_CALLS)).await;
        if let Some(elapsed) = token.longest_call().filter(|elapsed| *elapsed >= limit) {
            tracing::error!(
                seconds = elapsed.as_secs(),
                "a call of the token's library hangs, and only the end of the process ends it"
            );
            // Not `exit`, which runs what the library has left to be run.
            let _ = nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGKILL);
        }
    }
}

/// Publishes for as long as what it returns first is kept.
fn publishing(
    config: &Config,
    genesis: &Genesis,
    sequencer: &Arc<Sequencer>,
) -> (mpsc::Sender<()>, tokio::task::JoinHandle<()>) {
    let (sender, stopped) = mpsc::channel();
    let (ledger, settings) = (config.ledger.path.clone(), config.publish.clone());
    let (origin, sequencer) = (genesis.origin.clone(), sequencer.clone());
    let task = tokio::task::spawn_blocking(move || {
        if settings.directory.as_os_str().is_empty() {
            return;
        }
        publish_continuously(&ledger, &settings, &origin, &sequencer, &stopped);
    });
    (sender, task)
}

/// Publishes what is new at each interval and once more at the end. What fails is logged when it
/// begins to fail and tried again; the ledger does not depend on it.
fn publish_continuously(
    ledger: &Path,
    settings: &config::Publish,
    origin: &str,
    sequencer: &Sequencer,
    stopped: &mpsc::Receiver<()>,
) {
    let directory = settings.directory.display();
    let mut publisher = Publisher::new(&settings.directory);
    let mut failing = None;
    let (mut reader, mut done) = (None, None);
    let mut last = false;
    while !last {
        last = stopped.recv_timeout(Duration::from_secs(settings.interval_seconds))
            == Err(mpsc::RecvTimeoutError::Disconnected);
        // A stop does not wait long: what is left over is published after the next start.
        let until = last.then(|| Instant::now() + LAST_PUBLICATION);
        let stopping = || match until {
            Some(until) => Instant::now() > until,
            None => sequencer.gauges().stopping.load(Ordering::Acquire),
        };
        let keys = sequencer.gauges().governor().standing().keys.keys();
        let trust = Trust { keys: &keys, origin: Some(origin) };
        match publish_once(ledger, &mut reader, &mut publisher, trust, done, &stopping) {
            Ok(published) => {
                if failing.take().is_some() {
                    tracing::info!(%directory, "publishing again");
                }
                if let Some(Published { root, files, .. }) = published {
                    tracing::debug!(entries = root.size.leaves(), files, %directory, "published");
                    done = Some(root.size);
                }
            }
            Err(_) if stopping() => {}
            Err(error) if failing.as_ref() == Some(&error) => {}
            Err(error) => {
                tracing::warn!(%error, %directory, "couldn't publish; trying again");
                failing = Some(error);
            }
        }
    }
}

/// `None` when there is no checkpoint yet, or none but that of the size that is `done`.
fn publish_once(
    ledger: &Path,
    reader: &mut Option<Reader>,
    publisher: &mut Publisher,
    trust: Trust<'_>,
    done: Option<TreeSize>,
    stopping: &dyn Fn() -> bool,
) -> Result<Option<Published>, String> {
    if reader.is_none() {
        *reader = Some(Reader::open(ledger).map_err(|error| error.to_string())?);
    }
    let Some(reader) = reader else { return Ok(None) };
    let newest = reader.newest_note().map_err(|error| error.to_string())?;
    if newest.is_none_or(|note| Some(note.checkpoint().root().size) == done) {
        return Ok(None);
    }
    let fetch = |path: &str, _| {
        if stopping() {
            return Err("the daemon is stopping".to_owned());
        }
        if path == publish::CHECKPOINT {
            let note = reader.newest_note().map_err(|error| error.to_string())?;
            return Ok(note.map(|note| note.as_str().as_bytes().to_vec()));
        }
        match tree::tile_bytes(reader, path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(problem) if problem.code == Code::NotFound => Ok(None),
            Err(problem) => Err(problem.detail),
        }
    };
    publisher.publish(trust, fetch, |_, _| {}).map(Some).map_err(|error| error.to_string())
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
