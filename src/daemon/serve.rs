//! Running a ledger: check it, unlock the key, finish what was reserved, say so in a BOOT entry,
//! serve, and say so in a SHUTDOWN entry.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use super::anchors::Checked;
use super::boot::{Last, Own, boot_entries};
use super::genesis::Genesis;
use super::init::write_public_key;
use super::notify::Notifier;
use super::opening::{Absent, Found, Opened, find, finish, keeper, open_index};
use super::publishing::publishing;
use super::watchdog::{self, Watchdog};
use super::{Fault, anchors, governing, host, io, token_opening};
use crate::anchor::Gauge;
use crate::caller::Access;
use crate::config::{self, Config, OnTokenLoss};
use crate::governance::Policy;
use crate::governance::governor::Governor;
use crate::governance::keyring::Keyring;
use crate::governance::rules::Rules;
use crate::index::Index;
use crate::ledger::chain::Head;
use crate::ledger::entry::{EventCategory, EventType, Sequence, SignatureAlgorithm};
use crate::ledger::tile::Edge;
use crate::sequencer::{Event, Gauges, MODE_CHANGE, Outcome, Sequencer, Setup, chain};
use crate::server::budget::Budget;
use crate::server::listener::{self, Limits, Passed};
use crate::server::routes;
use crate::server::service::{Parts, Service};
use crate::store::{Reader, Store, StoreError, mode_of};
use crate::token::{Keeper, SignError, TokenError};

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
