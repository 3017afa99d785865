//! The single writer: it gives entries their place, has them reserved, signed and committed in
//! that order, and only then answers.
//!
//! ```text
//!  submit ──► gather ──► reserve n+1 ┐ one         ┌─► sign n+1 ──► …
//!                        commit  n   ┘ transaction ┴─► answer n
//! ```
//!
//! One thread owns the head, the tree and the store. While the token signs, the next commit
//! gathers, and it closes when the token is free: a slow token makes larger commits, not a longer
//! queue. The chain needs no signature to go on, so entries are hashed as they come in.
//!
//! In mode `each` every entry is signed, and now and then a checkpoint with them; the next commit is
//! reserved while the one before is signed, so that the token need not wait for the disk. In mode
//! `commit` one checkpoint is signed for all entries of a commit, which closes only when the one
//! before is signed: then it is as large as it can be.
//!
//! After a success every client of the commit has its answer. After a refusal nothing was
//! reserved. After an unknown outcome the reservation is on the disk or it is not; the daemon
//! stops, and the next start signs what it finds.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc as answers, oneshot, watch};

use crate::caller::Peer;
use crate::failpoint;
use crate::governance::governor::{self, Governor};
use crate::governance::keyring::{self, Keyring};
use crate::governance::{Admitted, Policy, Refusal};
use crate::index::{Fact, Index};
use crate::ledger::chain::Head;
use crate::ledger::checkpoint::{Checkpoint, Note};
use crate::ledger::code::Code;
use crate::ledger::draft::Draft;
use crate::ledger::entry::{EntryId, EntryView, EventCategory, EventType, Sequence, SignatureAlgorithm};
use crate::ledger::hash::Digest;
use crate::ledger::json;
use crate::ledger::key::{KeyId, Signable, Signature};
use crate::ledger::tile::Edge;
use crate::ledger::timestamp::Timestamp;
use crate::store::{Committed, Reservation, Reserved, Store, StoreError, algorithm_of};
use crate::token::{Candidate, Keeper, Pool, SignError, TokenError};

/// A commit closes at this many bytes of entries, so that its transaction stays short.
const COMMIT_BYTES: usize = 8 << 20;
/// How many entries may wait, whatever they hold; memory is bounded by the budget of the server.
const QUEUE_ENTRIES: u64 = 65_536;
/// How many callers are known before those are forgotten of whom nothing waits.
const SHARES: usize = 1_024;
/// From how many commits or entries on the pace is believed.
const PACED_COMMITS: u32 = 8;
const PACED_ENTRIES: f64 = 256.0;
/// How far the wall clock may run ahead of the boot clock before an operator must look.
const CLOCK_JUMP: Duration = Duration::from_secs(3_600);
/// A uid that no process has.
const NOBODY: u32 = u32::MAX;
/// The `action_type` of the entry that changes how entries are signed from the next one on.
pub const MODE_CHANGE: &str = "signature.mode";
/// How often the disk's free space is looked at.
const DISK_CHECK: Duration = Duration::from_secs(1);

/// What became of an entry that was submitted.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// It is durable with its signature: the commit and its place in it. `replayed` when the
    /// same request had been submitted before.
    Committed {
        /// The commit.
        commit: Arc<Committed>,
        /// Which of its entries.
        index: usize,
        /// Whether this request only repeated an earlier one.
        replayed: bool,
    },
    /// An entry with this id was committed since the client's side looked it up. Whether it is the
    /// same, by uid and content, is to be looked up again.
    Earlier {
        /// The id.
        id: EntryId,
        /// Who asks, and with what content.
        asked: (u32, Digest),
    },
    /// It was not taken; nothing was recorded.
    Refused(Refused),
    /// Judged again by what stood when its turn came, it may not be recorded.
    Governed(Box<Governed>),
    /// It is durable and has its place, and will be signed when the token is back.
    Held {
        /// `entry_id`.
        id: EntryId,
        /// `sequence_number`.
        sequence: Sequence,
        /// `entry_hash`.
        hash: Digest,
    },
    /// It may be recorded or not: ask by its id.
    Unknown(EntryId),
}

/// What governance refused when its turn came.
#[derive(Debug, Clone)]
pub struct Governed {
    /// Why.
    pub refused: governor::Refused,
    /// What a client had sent.
    pub draft: Option<Draft>,
}

/// Why the sequencer takes nothing at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// Too many entries wait; try again in so many seconds.
    QueueFull {
        /// Seconds.
        retry_after: u64,
    },
    /// The id was used with other content.
    IdConflict,
    /// The id was used by another caller.
    IdTaken,
    /// The disk is below its watermark.
    StorageFull,
    /// The wall clock jumped forward.
    ClockJumped,
    /// The token is away, and nothing, or nothing more, is held for it.
    TokenAway,
    /// The daemon is stopping.
    ShuttingDown,
}

/// Outcomes of lines of one batch, by the number of the line.
pub type Outcomes = Vec<(u64, Outcome)>;

/// Where the outcome goes.
#[derive(Debug)]
pub enum Ticket {
    /// To a client that waits for this one.
    Single(oneshot::Sender<Outcome>),
    /// To a batch, with the number of the line.
    Batch(answers::UnboundedSender<Outcomes>, u64),
    /// To nobody: the daemon's own entries.
    Own,
}

/// What is to become an entry.
pub enum Event {
    /// Of a client, judged beforehand. Should something else stand when its turn comes, it is
    /// judged again for the peer.
    Append(Box<Admitted>, Arc<Peer>),
    /// Made when its turn comes from what stands then, so that of two that exclude each other one
    /// is refused.
    Step(Step),
    /// The last entry that the key signs: it hands over to another.
    Rotate(Box<Rotation>),
}

/// A change of the key.
pub struct Rotation {
    /// The new key.
    pub candidate: Candidate,
    /// Makes the entry, given also the new key's proof.
    pub step: RotationStep,
}

/// Makes a `key.rotate` as a [`Step`] does, given the proof.
pub type RotationStep =
    Box<dyn FnOnce(&Governor, &Policy, Timestamp, &Signature) -> Result<Admitted, governor::Refused> + Send>;

/// Makes an entry for a time. It is called once, on the thread of the sequencer, so it is short.
pub type Step = Box<dyn FnOnce(&Governor, &Policy, Timestamp) -> Result<Admitted, governor::Refused> + Send>;

impl Event {
    /// An entry of the daemon's own. `payload` is a canonical object.
    #[must_use]
    pub fn own(event_type: EventType, category: EventCategory, action: &str, payload: String) -> Self {
        let draft = Draft::own(event_type, category, action, payload);
        Event::Step(Box::new(move |governor, policy, _| {
            Ok(policy.own_under(governor.standing().rules.label(), draft, fresh_id()))
        }))
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Event::Append(admitted, _) => f.debug_tuple("Append").field(&admitted.id()).finish(),
            Event::Step(_) => f.write_str("Step"),
            Event::Rotate(rotation) => f.debug_tuple("Rotate").field(rotation.candidate.key()).finish(),
        }
    }
}

/// A random entry id.
#[must_use]
pub fn fresh_id() -> EntryId {
    EntryId(*uuid::Uuid::new_v4().as_bytes())
}

/// What is to become an entry, and where its outcome goes.
#[derive(Debug)]
pub struct Submission {
    /// The entry, or what makes it.
    pub event: Event,
    /// Where the outcome goes.
    pub ticket: Ticket,
    /// Where the client gave the id: entries before this were searched for it.
    pub searched: u64,
    /// Whether its commit is to end with a checkpoint, because a receipt is wanted.
    pub receipt: bool,
    /// Of the queue, what it takes of the caller's share; [`Sequencer::submit`] says.
    pub share: Option<Share>,
}

/// A place in the queue that counts for a caller, until it is dropped.
#[derive(Debug)]
pub struct Share(Arc<AtomicU64>);

impl Share {
    fn of(count: &Arc<AtomicU64>) -> Self {
        count.fetch_add(1, Ordering::AcqRel);
        Share(count.clone())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// What the sequencer is told.
enum Message {
    Submit(Vec<Submission>),
    /// What became of a job of signing, by its number.
    Signed(u64, Result<Vec<Signature>, SignError>),
    /// The token is there again.
    Back(Arc<Pool>),
    /// The new key's proof that it takes over with the entry of this number.
    Proven(Sequence, Result<Vec<Signature>, SignError>),
    /// Stop, and say why: something beside the sequencer found that it must not go on.
    Fault(String),
    /// Seal what waits and a last entry, then stop.
    Stop {
        reason: String,
        done: oneshot::Sender<()>,
    },
}

/// Figures that others may read at any time.
#[derive(Debug, Default)]
pub struct Gauges {
    /// Entries that are committed.
    pub committed: AtomicU64,
    /// Entries submitted and not answered.
    pub queued: AtomicU64,
    /// Nanoseconds that one entry takes while many wait.
    nanos_per_entry: AtomicU64,
    /// Entries committed since the start.
    pub appended: AtomicU64,
    /// Whether no more entries are taken.
    pub stopping: AtomicBool,
    /// Set once when the daemon must stop.
    fault: Mutex<Option<(Code, String)>>,
    head: Mutex<Option<Head>>,
    /// Since when and why the token is away, in words, while it is.
    away: Mutex<Option<(Instant, String)>>,
    /// How often it went away since the start.
    pub losses: AtomicU64,
    /// What the token took for what a commit needs signed.
    pub signing: Timing,
    /// What a durable transaction took.
    pub writing: Timing,
    /// Entries refused since it is.
    refused_away: AtomicU64,
    /// Whether entries are signed by the checkpoints that end commits.
    is_by_tree: AtomicBool,
    governor: Mutex<Arc<Governor>>,
    /// What entries get their time from.
    pub clock: Clock,
    /// The newest signed checkpoint since the start.
    note: watch::Sender<Option<Arc<Note>>>,
}

impl Gauges {
    /// What the next entry follows, among committed entries.
    #[must_use]
    pub fn head(&self) -> Head {
        self.head.lock().unwrap_or_else(PoisonError::into_inner).unwrap_or(Head::EMPTY)
    }

    /// How entries are signed now.
    #[must_use]
    pub fn algorithm(&self) -> SignatureAlgorithm {
        match self.is_by_tree.load(Ordering::Acquire) {
            false => SignatureAlgorithm::EntryP256,
            true => SignatureAlgorithm::TreeP256,
        }
    }

    fn set_algorithm(&self, algorithm: SignatureAlgorithm) {
        self.is_by_tree.store(algorithm == SignatureAlgorithm::TreeP256, Ordering::Release);
    }

    /// The state of governance after the committed entries.
    #[must_use]
    pub fn governor(&self) -> Arc<Governor> {
        self.governor.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Why the token is away, in words, while it is.
    #[must_use]
    pub fn token_away(&self) -> Option<String> {
        self.away.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(|(_, why)| why.clone())
    }

    /// For how long it has been.
    #[must_use]
    pub fn away_for(&self) -> Option<Duration> {
        self.away.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(|(since, _)| since.elapsed())
    }

    pub(crate) fn set_away(&self, why: Option<String>) {
        let mut away = self.away.lock().unwrap_or_else(PoisonError::into_inner);
        let since = away.as_ref().map_or_else(Instant::now, |(since, _)| *since);
        *away = why.map(|why| (since, why));
    }

    /// How many entries the newest signed checkpoint covers, where one was signed since the start.
    #[must_use]
    pub fn noted(&self) -> Option<u64> {
        self.note.borrow().as_ref().map(|note| note.checkpoint().root().size.leaves())
    }

    /// As what clients hear of [`Gauges::fault`], whose text is for the log.
    #[must_use]
    pub fn fault_code(&self) -> Option<Code> {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(|(code, _)| *code)
    }

    /// Why the sequencer stopped, if it did because of a fault.
    #[must_use]
    pub fn fault(&self) -> Option<String> {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).clone().map(|(_, fault)| fault)
    }
}

/// How often something was done, and how long that took together.
#[derive(Debug, Default)]
pub struct Timing {
    count: AtomicU64,
    nanos: AtomicU64,
}

impl Timing {
    fn add(&self, took: Duration) {
        self.nanos.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    /// How often, and how long.
    #[must_use]
    pub fn read(&self) -> (u64, Duration) {
        let count = self.count.load(Ordering::Relaxed);
        (count, Duration::from_nanos(self.nanos.load(Ordering::Relaxed)))
    }
}

/// What the sequencer is told at its start.
pub struct Setup {
    /// Whom the ledger belongs to, as its checkpoints say.
    pub origin: String,
    /// The ledger, with nothing reserved.
    pub store: Store,
    /// What the first entry follows.
    pub head: Head,
    /// The tree over the entries before it.
    pub edge: Edge,
    /// The size of the newest signed checkpoint.
    pub noted: Sequence,
    /// How the last entries were signed.
    pub algorithm: SignatureAlgorithm,
    /// In mode `each`, how often a checkpoint is made when there are new entries.
    pub checkpoint_interval: Duration,
    /// The token, which is there.
    pub token: Arc<Keeper>,
    /// How many entries are held while it is away; none: they are refused.
    pub hold_entries: usize,
    /// The key that they sign with.
    pub key: KeyId,
    /// The index.
    pub index: Arc<Index>,
    /// Admission.
    pub policy: Arc<Policy>,
    /// The state of governance after all entries that are there.
    pub governor: Governor,
    /// The most entries in one commit.
    pub commit_entries: usize,
    /// The longest expected wait before new entries are refused.
    pub queue_wait: Duration,
    /// Free bytes on the ledger's disk under which entries are refused.
    pub min_free_bytes: u64,
    /// Called once when the daemon must stop because of a fault.
    pub on_fault: Box<dyn FnOnce() + Send>,
}

/// The handle by which the server submits entries.
#[derive(Debug)]
pub struct Sequencer {
    messages: Sender<Message>,
    gauges: Arc<Gauges>,
    queue_wait: Duration,
    /// How many entries of each caller wait.
    shares: Mutex<HashMap<u32, Arc<AtomicU64>>>,
    /// It takes nothing, because the token has not been there yet.
    parked: bool,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
}

impl Sequencer {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the operating system has no thread to give.
    pub fn start(setup: Setup) -> std::io::Result<Self> {
        let (messages, inbox) = mpsc::channel();
        let gauges = Arc::new(Gauges::default());
        *gauges.governor.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(setup.governor.clone());
        gauges.committed.store(setup.head.next.0, Ordering::Release);
        *gauges.head.lock().unwrap_or_else(PoisonError::into_inner) = Some(setup.head);
        gauges.set_algorithm(setup.algorithm);
        let queue_wait = setup.queue_wait;
        let thread = std::thread::Builder::new().name("sequencer".into()).spawn({
            let (gauges, messages) = (gauges.clone(), messages.clone());
            move || Thread::new(setup, gauges, messages).run(&inbox)
        })?;
        Ok(Sequencer {
            messages,
            gauges,
            queue_wait,
            shares: Mutex::default(),
            parked: false,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// One that takes nothing: for a ledger that is read while its token is away from the start.
    #[must_use]
    pub fn parked(head: Head, governor: Governor, algorithm: SignatureAlgorithm, why: String) -> Self {
        let gauges = Gauges::default();
        gauges.committed.store(head.next.0, Ordering::Release);
        *gauges.head.lock().unwrap_or_else(PoisonError::into_inner) = Some(head);
        *gauges.governor.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(governor);
        gauges.set_algorithm(algorithm);
        gauges.set_away(Some(why));
        Sequencer {
            // Nobody hears what is sent, and nothing is.
            messages: mpsc::channel().0,
            gauges: Arc::new(gauges),
            queue_wait: Duration::ZERO,
            shares: Mutex::default(),
            parked: true,
            thread: Mutex::new(None),
        }
    }

    /// The figures.
    #[must_use]
    pub fn gauges(&self) -> &Arc<Gauges> {
        &self.gauges
    }

    /// Hands over entries of clients of the user `uid`, or of the daemon's own. Each ticket gets its
    /// outcome unless this refuses them all.
    ///
    /// # Errors
    /// When the queue, or the half of it that one caller may fill, is full, or the daemon is stopping;
    /// nothing was taken then, and the submissions come back.
    pub fn submit(
        &self,
        uid: Option<u32>,
        mut submissions: Vec<Submission>,
    ) -> Result<(), (Refused, Vec<Submission>)> {
        if self.gauges.stopping.load(Ordering::Acquire) {
            return Err((Refused::ShuttingDown, submissions));
        }
        if self.parked {
            self.gauges.refused_away.fetch_add(submissions.len() as u64, Ordering::Relaxed);
            return Err((Refused::TokenAway, submissions));
        }
        if let Some(uid) = uid {
            let share = self.share(uid);
            if let Some(retry_after) = self.too_long(share.load(Ordering::Acquire).saturating_mul(2)) {
                return Err((Refused::QueueFull { retry_after }, submissions));
            }
            submissions.iter_mut().for_each(|submission| submission.share = Some(Share::of(&share)));
        }
        let count = submissions.len() as u64;
        let queued = self.gauges.queued.fetch_add(count, Ordering::AcqRel);
        if let Some(retry_after) = self.too_long(queued) {
            self.gauges.queued.fetch_sub(count, Ordering::AcqRel);
            submissions.iter_mut().for_each(|submission| submission.share = None);
            return Err((Refused::QueueFull { retry_after }, submissions));
        }
        self.messages.send(Message::Submit(submissions)).map_err(|returned| match returned.0 {
            Message::Submit(submissions) => (Refused::ShuttingDown, submissions),
            Message::Signed(..)
            | Message::Back(_)
            | Message::Proven(..)
            | Message::Fault(_)
            | Message::Stop { .. } => (Refused::ShuttingDown, Vec::new()),
        })
    }

    fn share(&self, uid: u32) -> Arc<AtomicU64> {
        let mut shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        if shares.len() >= SHARES && !shares.contains_key(&uid) {
            shares.retain(|_, count| Arc::strong_count(count) > 1);
        }
        shares.entry(uid).or_default().clone()
    }

    /// Has one entry written that is made when its turn comes.
    ///
    /// # Errors
    /// As [`Sequencer::submit`].
    pub async fn perform(&self, event: Event) -> Result<Outcome, Refused> {
        let (ticket, outcome) = oneshot::channel();
        let ticket = Ticket::Single(ticket);
        let submission = Submission { event, ticket, searched: 0, receipt: false, share: None };
        self.submit(None, vec![submission]).map_err(|(refused, _)| refused)?;
        // The thread ends without an answer only when it stops.
        outcome.await.map_err(|_| Refused::ShuttingDown)
    }

    /// Whether entries would be taken now.
    ///
    /// # Errors
    /// Why not.
    pub fn room(&self) -> Result<(), Refused> {
        if self.gauges.stopping.load(Ordering::Acquire) {
            return Err(Refused::ShuttingDown);
        }
        match self.too_long(self.gauges.queued.load(Ordering::Acquire)) {
            Some(retry_after) => Err(Refused::QueueFull { retry_after }),
            None => Ok(()),
        }
    }

    /// Seconds after which to try again, if what waits already would take too long.
    fn too_long(&self, queued: u64) -> Option<u64> {
        let nanos = queued.saturating_mul(self.gauges.nanos_per_entry.load(Ordering::Relaxed));
        let expected = Duration::from_nanos(nanos);
        let full = queued >= QUEUE_ENTRIES || expected > self.queue_wait;
        full.then(|| (expected.as_secs() / 2).clamp(1, 60))
    }

    /// The newest checkpoint that was signed since the start, as it changes.
    #[must_use]
    pub fn notes(&self) -> watch::Receiver<Option<Arc<Note>>> {
        self.gauges.note.subscribe()
    }

    /// Says that the token did not sign what somebody else asked for, so that it is brought back before an
    /// entry needs it.
    pub fn probe_failed(&self, error: SignError) {
        // No job has this number. Fails only when it has stopped already.
        let _ = self.messages.send(Message::Signed(0, Err(error)));
    }

    /// Has the sequencer stop as it does on a fault of its own, without a SHUTDOWN entry.
    pub fn fail(&self, fault: String) {
        // Fails only when it has stopped already.
        let _ = self.messages.send(Message::Fault(fault));
    }

    /// Seals what was taken and a SHUTDOWN entry that gives `reason`, and ends the thread.
    pub async fn stop(&self, reason: &str) {
        self.gauges.stopping.store(true, Ordering::Release);
        let (done, wait) = oneshot::channel();
        if self.messages.send(Message::Stop { reason: reason.to_owned(), done }).is_ok() {
            let _ = wait.await;
        }
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }
}

/// An entry that has its place but is not committed, for ids that come again meanwhile.
struct Pending {
    uid: u32,
    content: Digest,
    sequence: Sequence,
}

/// Who waits for which entry of a commit, whether it repeats an earlier request, and what it takes of
/// its caller's share.
type Waiting = (usize, Ticket, bool, Option<Share>);

/// Entries of one commit, and who waits for them: tickets by index, repeats behind.
struct Batch {
    reservation: Reservation,
    tickets: Vec<Waiting>,
    /// What the index will be told.
    facts: Vec<Fact>,
    /// The daemon's own among the entries, by index, should they have to be placed again.
    own: Vec<(usize, Admitted)>,
    bytes: usize,
    /// What stood before, should the reservation fail.
    before: (Head, Arc<Governor>),
    /// What stands once it is committed, where its entries change it.
    governor: Option<Arc<Governor>>,
    /// Whether it is to end with a checkpoint in any mode.
    receipt: bool,
}

/// A commit that is reserved and on its way through the token.
struct Flight {
    job: u64,
    batch: Batch,
    /// Once they are there.
    signatures: Option<Vec<Signature>>,
}

/// Since when the token is away.
struct Away {
    since: Timestamp,
    began: Instant,
    reason: String,
    /// Those whose entries were reserved when it went have heard that nobody knows when they are signed.
    told: bool,
}

/// A change of the key that waits for the new key's proof. Nothing gets a place meanwhile.
struct Rotating {
    rotation: Rotation,
    ticket: Ticket,
    share: Option<Share>,
}

struct Thread {
    setup: Setup,
    gauges: Arc<Gauges>,
    messages: Sender<Message>,
    head: Head,
    /// The state of governance after the entries that have a place.
    governor: Arc<Governor>,
    /// Submissions for which the gathering commit has no room.
    overflow: VecDeque<Submission>,
    gathering: Option<Batch>,
    /// Oldest first; they are committed in this order.
    flights: VecDeque<Flight>,
    jobs: u64,
    /// The token's workers; none while it is away.
    pool: Option<Arc<Pool>>,
    away: Option<Away>,
    /// How what gathers will be signed, and what is to become of that.
    algorithm: SignatureAlgorithm,
    switch: Option<SignatureAlgorithm>,
    rotating: Option<Rotating>,
    /// The key after a `key.rotate` that has its place, which takes effect once that is committed.
    next: Option<Candidate>,
    /// The tree over all that was reserved.
    edge: Edge,
    /// The size of the newest checkpoint that is signed or being signed, and since when.
    noted: (Sequence, Instant),
    pending: HashMap<EntryId, Pending>,
    stop: Option<(String, oneshot::Sender<()>)>,
    last_commit: Instant,
    /// Seconds of work and entries, of lately.
    pace: (f64, f64),
    /// Commits measured.
    paced: u32,
    disk: Disk,
    sealed_since_start: u64,
}

impl Thread {
    fn new(setup: Setup, gauges: Arc<Gauges>, messages: Sender<Message>) -> Self {
        Thread {
            head: setup.head,
            governor: gauges.governor(),
            pool: setup.token.pool(),
            away: None,
            edge: setup.edge.clone(),
            algorithm: setup.algorithm,
            switch: None,
            rotating: None,
            next: None,
            noted: (setup.noted, Instant::now()),
            disk: Disk { checked: None, full: false },
            setup,
            gauges,
            messages,
            overflow: VecDeque::new(),
            gathering: None,
            flights: VecDeque::new(),
            jobs: 0,
            pending: HashMap::new(),
            stop: None,
            last_commit: Instant::now(),
            pace: (0.0, 0.0),
            paced: 0,
            sealed_since_start: 0,
        }
    }

    fn run(mut self, inbox: &Receiver<Message>) {
        // A daemon that stopped after it had changed the key has not said so with the new one yet.
        if self.governor.standing().keys.is_waiting() {
            self.activate();
            if let Err(fault) = self.advance() {
                return self.fail(inbox, &fault);
            }
        }
        loop {
            match self.next_wake() {
                None => match inbox.recv() {
                    Ok(message) => self.take(message),
                    Err(_) => return,
                },
                Some(wait) => match inbox.recv_timeout(wait) {
                    Ok(message) => self.take(message),
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return,
                },
            }
            // What has come meanwhile joins the same commit.
            while let Ok(message) = inbox.try_recv() {
                self.take(message);
            }
            if let Err(fault) = self.advance() {
                self.fail(inbox, &fault);
                return;
            }
            if self.stop.is_some() && self.pool.is_none() {
                self.stop_without_token();
                return;
            }
            if self.stop.is_some() && self.is_idle() {
                if let Some((_, done)) = self.stop.take() {
                    let _ = done.send(());
                }
                return;
            }
        }
    }

    fn is_idle(&self) -> bool {
        self.overflow.is_empty()
            && self.gathering.is_none()
            && self.flights.is_empty()
            && self.rotating.is_none()
            && self.next.is_none()
    }

    /// How long until something is to be done although nothing comes.
    fn next_wake(&self) -> Option<Duration> {
        let waiting = self.away.as_ref().filter(|away| !away.told);
        let answer = waiting.map(|away| self.setup.queue_wait.saturating_sub(away.began.elapsed()));
        answer.or_else(|| self.next_checkpoint())
    }

    /// How long until the entries that are there get a checkpoint although no more come; `None`
    /// where something will happen anyway.
    fn next_checkpoint(&self) -> Option<Duration> {
        let wanted = self.is_idle() && self.noted.0 < self.head.next && self.pool.is_some();
        let pause = if self.disk.full { self.disk.pause() } else { Duration::ZERO };
        wanted.then(|| self.setup.checkpoint_interval.saturating_sub(self.noted.1.elapsed()).max(pause))
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Submit(submissions) => {
                for submission in submissions {
                    // Sent by one who looked just before the stop: nothing follows the SHUTDOWN entry.
                    if self.stop.is_some() {
                        self.refuse(submission.ticket, Refused::ShuttingDown);
                    } else {
                        self.admit(submission);
                    }
                }
            }
            Message::Signed(job, Ok(signatures)) => {
                failpoint::reach("after-sign");
                if let Some(flight) = self.flights.iter_mut().find(|flight| flight.job == job) {
                    flight.signatures = Some(signatures);
                }
            }
            Message::Signed(job, Err(error)) => self.lose_token(job, &error),
            Message::Back(pool) => self.regain_token(pool),
            Message::Proven(at, proof) => self.rotate(at, proof),
            Message::Fault(fault) => self.note_fault(Code::Internal, fault),
            Message::Stop { reason, done } => {
                let payload = format!(
                    "{{\"entries_sealed\":{},\"reason\":{}}}",
                    self.sealed_since_start + self.waiting(),
                    quoted(&reason)
                );
                let event =
                    Event::own(EventType::Shutdown, EventCategory::Normal, "system_shutdown", payload);
                self.gauges.queued.fetch_add(1, Ordering::AcqRel);
                // The last entry is under a checkpoint too.
                let ticket = Ticket::Own;
                self.admit(Submission { event, ticket, searched: 0, receipt: true, share: None });
                self.stop = Some((reason, done));
            }
        }
    }

    /// A job was not signed. What it was to sign is reserved and stays so; the token is given up, and
    /// brought back on a thread of its own.
    fn lose_token(&mut self, job: u64, error: &SignError) {
        if job > 0
            && let Some(flight) = self.flights.iter_mut().find(|flight| flight.job == job)
        {
            flight.job = 0;
        }
        // Others sign with its sessions no more once this is dropped.
        if self.pool.take().is_none() {
            return;
        }
        let reason = chain(error);
        tracing::error!(%reason, "the token can't sign; bringing it back");
        // The library is started anew, and the new token with it: the old one comes first.
        if let Some(Rotating { ticket, .. }) = self.rotating.take() {
            self.refuse(ticket, Refused::TokenAway);
        }
        if let Some(candidate) = &mut self.next {
            candidate.close();
        }
        self.seek_token(reason);
    }

    /// Has the token brought back on a thread of its own.
    fn seek_token(&mut self, reason: String) {
        let since = self.gauges.clock.now().unwrap_or(self.head.timestamp);
        self.gauges.refused_away.store(0, Ordering::Relaxed);
        self.gauges.losses.fetch_add(1, Ordering::Relaxed);
        self.gauges.set_away(Some(reason.clone()));
        self.away = Some(Away { since, began: Instant::now(), reason, told: false });
        if self.holds() {
            self.tell_flights(true);
        } else if let Some(batch) = self.gathering.take() {
            self.withdraw(batch, Refused::TokenAway);
        }
        let (gauges, messages) = (self.gauges.clone(), self.messages.clone());
        let mut heard = String::new();
        let failed = move |error: &TokenError| {
            let why = chain(error);
            if why != heard {
                tracing::warn!(%why, "the token is not back yet");
                gauges.set_away(Some(why.clone()));
                heard = why;
            }
        };
        // The sequencer only ends first when the daemon stops.
        let back = move |pool| drop(messages.send(Message::Back(pool)));
        if let Err(error) = self.setup.token.recover(failed, back) {
            self.note_fault(Code::TokenUnavailable, format!("no thread to bring the token back: {error}"));
        }
    }

    /// The token is there: what was reserved is signed first, in order, and then it is said what was.
    fn regain_token(&mut self, pool: Arc<Pool>) {
        self.pool = Some(pool);
        self.gauges.set_away(None);
        let unsigned: Vec<usize> =
            (0..self.flights.len()).filter(|index| self.flights[*index].signatures.is_none()).collect();
        for index in unsigned {
            let signables = self.flights[index].batch.reservation.signables();
            self.flights[index].job = self.hand_over(signables);
        }
        let Some(away) = self.away.take() else { return };
        let until = self.gauges.clock.now().unwrap_or(self.head.timestamp);
        let refused = self.gauges.refused_away.swap(0, Ordering::Relaxed);
        tracing::info!(since = %away.since, refused, "the token is back");
        let payload = format!(
            r#"{{"reason":{},"refused":{refused},"since":"{}","until":"{until}"}}"#,
            quoted(&away.reason),
            away.since
        );
        let event = Event::own(EventType::Action, EventCategory::Warning, "system_recovered", payload);
        self.gauges.queued.fetch_add(1, Ordering::AcqRel);
        self.admit(Submission { event, ticket: Ticket::Own, searched: 0, receipt: false, share: None });
    }

    /// Whether entries are held while the token is away.
    fn holds(&self) -> bool {
        self.setup.hold_entries > 0
    }

    /// Whether no more entries are held than may be.
    fn may_hold(&self) -> bool {
        let held: usize = self.flights.iter().map(|flight| flight.batch.reservation.entries.len()).sum();
        let gathered = self.gathering.as_ref().map_or(0, |batch| batch.reservation.entries.len());
        held + gathered < self.setup.hold_entries
    }

    /// Answers those who wait for entries that are reserved and not signed: as held, or that nobody
    /// knows. The entries are signed all the same.
    fn tell_flights(&mut self, held: bool) {
        let mut outcomes = Vec::new();
        for flight in self.flights.iter_mut().filter(|flight| flight.signatures.is_none()) {
            for (index, ticket, ..) in std::mem::take(&mut flight.batch.tickets) {
                let entry = &flight.batch.reservation.entries[index].entry;
                let (id, sequence, hash) = (entry.id(), entry.sequence(), entry.hash());
                let outcome = if held { Outcome::Held { id, sequence, hash } } else { Outcome::Unknown(id) };
                outcomes.push((ticket, outcome));
            }
        }
        self.answer(outcomes);
    }

    /// Ends while the token is away. What is reserved is signed after the next start, which finds that
    /// there is no SHUTDOWN entry.
    fn stop_without_token(&mut self) {
        tracing::warn!("stopping without the token: what is reserved is signed after the next start");
        self.setup.token.close();
        self.tell_flights(false);
        if let Some(batch) = self.gathering.take() {
            self.drop_unreserved(batch, Refused::ShuttingDown);
        }
        for submission in std::mem::take(&mut self.overflow) {
            self.refuse(submission.ticket, Refused::ShuttingDown);
        }
        if let Some((_, done)) = self.stop.take() {
            let _ = done.send(());
        }
    }

    fn note_fault(&self, code: Code, fault: String) {
        self.gauges.fault.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert((code, fault));
    }

    fn waiting(&self) -> u64 {
        let batches = self.gathering.iter().chain(self.flights.iter().map(|flight| &flight.batch));
        let placed: usize = batches.map(|batch| batch.reservation.entries.len()).sum();
        (placed + self.overflow.len()) as u64
    }

    /// Gives a submission its place in the gathering commit, or lets it wait for the next.
    fn admit(&mut self, submission: Submission) {
        let is_own = matches!(submission.ticket, Ticket::Own);
        if self.pool.is_none() && !is_own && !(self.holds() && self.may_hold()) {
            self.gauges.refused_away.fetch_add(1, Ordering::Relaxed);
            return self.refuse(submission.ticket, Refused::TokenAway);
        }
        let waits = self.gathering.is_some() && Self::is_alone(&submission.event);
        if waits || self.is_gathering_full() || !self.overflow.is_empty() {
            self.overflow.push_back(submission);
        } else {
            self.place(submission);
        }
    }

    /// Asks the new key for its proof for the number that comes next.
    fn challenge(&mut self) {
        let Some(Rotating { rotation, .. }) = &self.rotating else { return };
        let Some(pool) = rotation.candidate.pool() else { return };
        let (at, messages) = (self.head.next, self.messages.clone());
        let text = Keyring::challenge(&self.setup.origin, self.setup.key, rotation.candidate.key().id(), at);
        let proven = move |proof| drop(messages.send(Message::Proven(at, proof)));
        pool.sign(vec![text], Box::new(proven));
    }

    /// Places the `key.rotate`, in a commit of its own.
    fn rotate(&mut self, at: Sequence, proof: Result<Vec<Signature>, SignError>) {
        if self.rotating.is_some() && at != self.head.next {
            // What was gathered before found no room, so the number is another one.
            return self.challenge();
        }
        let Some(Rotating { rotation: Rotation { candidate, step }, ticket, share }) = self.rotating.take()
        else {
            return;
        };
        let proof = proof.map(|proofs| proofs.first().copied());
        let Ok(Some(proof)) = proof else {
            let why = proof.err().map_or_else(String::new, |error| chain(&error));
            tracing::warn!(%why, "the new token did not prove its key");
            let refusal = Refusal::new(Code::TokenUnavailable).because(&format!("the new token: {why}"));
            return self.answer(vec![(ticket, Outcome::Governed(refusal.into()))]);
        };
        let event = Event::Step(Box::new(move |governor, policy, now| step(governor, policy, now, &proof)));
        // With it goes the last checkpoint that the old key signs.
        self.place(Submission { event, ticket, searched: 0, receipt: true, share });
        if self.governor.standing().keys.is_waiting() {
            self.next = Some(candidate);
        }
    }

    /// From here on the new key signs: the `key.rotate` is committed, and nothing else is reserved.
    fn change_key(&mut self, candidate: Candidate) {
        failpoint::reach("after-rotate");
        self.setup.key = candidate.key().id();
        tracing::info!(key = %self.setup.key, token = %candidate.identity(), "the ledger has a new key");
        self.pool = None;
        self.pool = self.setup.token.replace(candidate);
        if self.pool.is_none() {
            self.seek_token("the token of the new key has to be opened once more".into());
        }
        self.activate();
    }

    /// Places the first entry that the new key signs.
    fn activate(&mut self) {
        let terms = self.governor.standing().keys.clone();
        let mut newest = terms.terms().iter().rev().map(|term| term.key.id());
        let (Some(new), Some(old)) = (newest.next(), newest.next()) else { return };
        let payload = format!(r#"{{"key_id":"{new}","previous_key_id":"{old}"}}"#);
        let event = Event::own(EventType::Change, EventCategory::Normal, keyring::ACTIVATE, payload);
        self.gauges.queued.fetch_add(1, Ordering::AcqRel);
        self.place(Submission { event, ticket: Ticket::Own, searched: 0, receipt: false, share: None });
    }

    /// Whether `event` can have a place only when nothing else gathers.
    fn is_alone(event: &Event) -> bool {
        matches!(event, Event::Rotate(_))
    }

    fn place(&mut self, submission: Submission) {
        let Submission { event, ticket, searched, receipt, share } = submission;
        let event = match event {
            Event::Rotate(rotation) => {
                self.rotating = Some(Rotating { rotation: *rotation, ticket, share });
                return self.challenge();
            }
            event => event,
        };
        if let Event::Append(admitted, _) = &event
            && let Some((uid, content)) = admitted.idempotency()
            && let Some(known) = self.known(admitted, searched)
        {
            return self.repeat(admitted.id(), (uid, content), known, (ticket, share));
        }
        let is_own = matches!(event, Event::Step(_));
        let now = match self.gauges.clock.now() {
            Some(now) => now.max(self.head.timestamp),
            None if is_own => self.head.timestamp,
            None => return self.refuse(ticket, Refused::ClockJumped),
        };
        let judged = self.judge(event, now).and_then(|admitted| {
            let mut head = self.head;
            let entry = head.extend(admitted.view(), now, self.algorithm, self.setup.key);
            let mut view = admitted.view();
            (view.sequence_number, view.timestamp) = (entry.sequence(), entry.timestamp());
            view.entry_hash = entry.hash();
            // What the auditor would refuse is refused before it has a place.
            if is_own && admitted.has_given_id() && self.is_taken(admitted.id()) {
                return Err(Refusal::new(Code::EntryIdTaken).at("/entry_id").into());
            }
            let switch = self.switch_by(&view)?;
            let governor = if Governor::concerns(&view) { self.governor.followed(&view)? } else { None };
            Ok((admitted, entry, head, governor, switch))
        });
        let (admitted, entry, head, governor, switch) = match judged {
            Ok(judged) => judged,
            Err(governed) => {
                if matches!(ticket, Ticket::Own) {
                    tracing::error!(refused = %governed.refused, "an entry of the daemon's own was not written");
                }
                return self.answer(vec![(ticket, Outcome::Governed(governed))]);
            }
        };
        let before = (std::mem::replace(&mut self.head, head), self.governor.clone());
        self.switch = switch.or(self.switch);
        if let Some((uid, content)) = admitted.idempotency() {
            self.pending.insert(entry.id(), Pending { uid, content, sequence: entry.sequence() });
        } else if admitted.has_given_id() {
            // Of no content that could be sent again, so whoever gives the id is refused.
            self.pending.insert(
                entry.id(),
                Pending { uid: NOBODY, content: Digest::ZERO, sequence: entry.sequence() },
            );
        }
        let (key, algorithm) = (self.setup.key, self.algorithm);
        let batch = self.gathering.get_or_insert_with(|| Batch::new(before, key, algorithm));
        if let Some(governor) = governor {
            self.governor = governor.clone();
            batch.governor = Some(governor);
        }
        batch.receipt |= receipt;
        batch.bytes += entry.unsigned().line.len();
        let index = batch.reservation.entries.len();
        batch.tickets.push((index, ticket, false, share));
        batch.facts.push(Fact::of(&admitted.view(), entry.sequence(), entry.timestamp(), entry.hash()));
        batch.reservation.entries.push(Reserved { entry, idempotency: admitted.idempotency() });
        if is_own {
            batch.own.push((index, admitted));
        }
    }

    /// How entries are signed after `entry`, where it changes that.
    fn switch_by(&self, entry: &EntryView<'_>) -> Result<Option<SignatureAlgorithm>, governor::Refused> {
        if entry.action_type != MODE_CHANGE || !entry.is_daemons() {
            return Ok(None);
        }
        let mode = |name| {
            let value = json::member(entry.action_payload, name)?;
            algorithm_of(value.strip_prefix('"')?.strip_suffix('"')?)
        };
        match (mode("from"), mode("to")) {
            (Some(from), Some(to)) if from == self.algorithm && to != from => Ok(Some(to)),
            _ => Err(Refusal::new(Code::ProposalMalformed)
                .at("/action_payload")
                .because("must say `from` what mode that is now, `to` which other one")
                .into()),
        }
    }

    /// What is to become an entry at `now`, judged by what stands then.
    fn judge(&self, event: Event, now: Timestamp) -> Result<Admitted, Box<Governed>> {
        let standing = self.governor.standing();
        let (admitted, peer) = match event {
            Event::Step(step) => {
                return step(&self.governor, &self.setup.policy, now).map_err(Into::into);
            }
            Event::Rotate(_) => return Err(Refusal::new(Code::Internal).into()),
            Event::Append(admitted, peer) => (admitted, peer),
        };
        let stands = admitted.generation() == Some(standing.generation)
            && admitted.not_after().is_none_or(|last| now <= last);
        if stands {
            return Ok(*admitted);
        }
        let id = admitted.id();
        let draft = admitted.into_draft();
        match standing.append(&draft, peer.kernel(), id, now) {
            Ok(ruling) => self
                .setup
                .policy
                .admit_ruled(standing, draft, ruling, peer.uid, peer.to_json(), id)
                .map_err(Into::into),
            Err(refused) => Err(Box::new(Governed { refused, draft: Some(draft) })),
        }
    }

    /// Whether the id of `admitted` is pending, or was committed after the client's side looked.
    fn known(&self, admitted: &Admitted, searched: u64) -> Option<Known> {
        let id = admitted.id();
        if let Some(pending) = self.pending.get(&id) {
            return Some(Known::Pending {
                uid: pending.uid,
                content: pending.content,
                sequence: pending.sequence,
            });
        }
        // The look-up saw all that was committed then. What was committed since is in memory,
        // unless the index has moved on; then it is looked up once more.
        let found = match self.setup.index.recent(id) {
            Some(sequence) => Some(sequence),
            None if self.setup.index.indexed() > searched => match self.setup.index.find(id) {
                Ok(found) => found,
                // It can't be said that the id is new, so the entry is not sealed a second time:
                // the client's side looks once more and answers with what it meets.
                Err(error) => {
                    tracing::error!(%error, %id, "couldn't look up an id that came again");
                    return Some(Known::Committed);
                }
            },
            None => None,
        };
        found.map(|_| Known::Committed)
    }

    /// Whether the id that a proposal gives was used since it was opened, or can't be looked up.
    fn is_taken(&self, id: EntryId) -> bool {
        self.pending.contains_key(&id) || !matches!(self.setup.index.find(id), Ok(None))
    }

    fn repeat(&mut self, id: EntryId, asked: (u32, Digest), known: Known, waiting: (Ticket, Option<Share>)) {
        let (ticket, share) = waiting;
        let (uid, content) = asked;
        match known {
            Known::Pending { uid: owner, .. } if owner != uid => self.refuse(ticket, Refused::IdTaken),
            Known::Pending { content: first, .. } if first != content => {
                self.refuse(ticket, Refused::IdConflict);
            }
            Known::Pending { sequence, .. } => {
                let flying = self.flights.iter_mut().map(|flight| &mut flight.batch);
                for batch in self.gathering.iter_mut().chain(flying) {
                    let first = batch.reservation.first.0;
                    if let Some(index) = sequence.0.checked_sub(first)
                        && index < batch.reservation.entries.len() as u64
                    {
                        batch.tickets.push((index as usize, ticket, true, share));
                        return;
                    }
                }
            }
            Known::Committed => self.answer(vec![(ticket, Outcome::Earlier { id, asked })]),
        }
    }

    fn refuse(&self, ticket: Ticket, refused: Refused) {
        self.answer(vec![(ticket, Outcome::Refused(refused))]);
    }

    /// Takes each step that can be taken now.
    fn advance(&mut self) -> Result<(), String> {
        if let Some(fault) = self.gauges.fault() {
            return Err(fault);
        }
        loop {
            if let Some(algorithm) =
                self.switch.take_if(|_| self.flights.is_empty() && self.gathering.is_none())
            {
                self.algorithm = algorithm;
                self.gauges.set_algorithm(algorithm);
            }
            if let Some(candidate) =
                self.next.take_if(|_| self.flights.is_empty() && self.gathering.is_none())
            {
                self.change_key(candidate);
            }
            self.place_overflow();
            if let Some(away) = &mut self.away
                && !away.told
                && away.began.elapsed() >= self.setup.queue_wait
            {
                away.told = true;
                self.tell_flights(false);
            }
            let signed = self.flights.pop_front_if(|flight| flight.signatures.is_some());
            let has_room = self.pool.is_none() || self.flights.len() < depth(self.algorithm);
            let reserve = if has_room { self.gathering.take() } else { None };
            let (reserve, withdrawn) = match reserve {
                Some(batch) if self.disk.is_full(&self.setup) && !batch.is_own() => {
                    self.withdraw(batch, Refused::StorageFull);
                    (None, true)
                }
                other => (other, false),
            };
            if signed.is_none() && reserve.is_none() {
                // The daemon's own entries among those withdrawn go on.
                if withdrawn {
                    continue;
                }
                let due = self.is_idle() && self.next_checkpoint() == Some(Duration::ZERO);
                if due && !self.disk.is_full(&self.setup) {
                    self.sign_checkpoint()?;
                }
                return Ok(());
            }
            self.write(signed, reserve)?;
            if let Some(fault) = self.gauges.fault() {
                return Err(fault);
            }
        }
    }

    /// Gives the entries that were gathered their place in the tree.
    fn grow(&mut self, batch: &mut Batch) -> Result<(), String> {
        let reservation = &mut batch.reservation;
        let hashes = reservation.entries.iter().map(|reserved| reserved.entry.hash());
        reservation.tiles = self.edge.extend(hashes).map_err(|full| full.to_string())?;
        let due = batch.receipt || self.noted.1.elapsed() >= self.setup.checkpoint_interval;
        if due || reservation.algorithm == SignatureAlgorithm::TreeP256 {
            reservation.checkpoint = Some(self.checkpoint()?);
        }
        Ok(())
    }

    fn checkpoint(&self) -> Result<Checkpoint, String> {
        Checkpoint::new(&self.setup.origin, self.edge.root()).map_err(|fault| fault.to_string())
    }

    /// Signs the tree as it is. Its entries are committed, so nothing needs to be reserved: after a
    /// crash here the next start makes a checkpoint of a larger tree.
    fn sign_checkpoint(&mut self) -> Result<(), String> {
        let before = (self.head, self.governor.clone());
        let mut batch = Batch::new(before, self.setup.key, self.algorithm);
        batch.reservation.checkpoint = Some(self.checkpoint()?);
        self.sign(batch);
        Ok(())
    }

    /// One durable transaction: what was signed is committed, what was gathered is reserved.
    fn write(&mut self, signed: Option<Flight>, mut reserve: Option<Batch>) -> Result<(), String> {
        let (signed, tickets, facts, governor) = match signed {
            Some(Flight { batch, signatures, .. }) => {
                let signed = (batch.reservation, signatures.unwrap_or_default());
                (Some(signed), batch.tickets, batch.facts, batch.governor)
            }
            None => (None, Vec::new(), Vec::new(), None),
        };
        let edge = self.edge.clone();
        if let Some(batch) = &mut reserve {
            self.grow(batch)?;
        }
        let unanswered: Vec<EntryId> = signed
            .iter()
            .flat_map(|(reservation, _)| reservation.entries.iter().map(|reserved| reserved.entry.id()))
            .collect();
        if reserve.is_some() {
            failpoint::reach("before-reserve");
        }
        let began = Instant::now();
        let (committed, result) = self.setup.store.write(signed, reserve.as_ref().map(|b| &b.reservation));
        self.gauges.writing.add(began.elapsed());
        let outcome = match (committed, &result) {
            (Some(committed), _) => {
                failpoint::reach("after-commit");
                self.conclude(&committed, facts, tickets, governor);
                Ok(())
            }
            (None, Err(_)) if !unanswered.is_empty() => {
                let unknown = tickets
                    .into_iter()
                    .map(|(index, ticket, ..)| (ticket, Outcome::Unknown(unanswered[index])))
                    .collect();
                self.answer(unknown);
                Err(())
            }
            (None, _) => Ok(()),
        };
        match (result, reserve) {
            (Ok(()), Some(batch)) => {
                failpoint::reach("after-reserve");
                self.sign(batch);
                Ok(())
            }
            (Ok(()), None) => Ok(()),
            (Err(StoreError::Full(source)), Some(batch)) if outcome.is_ok() && !batch.activates() => {
                self.edge = edge;
                tracing::warn!(%source, "the disk is full; refusing entries");
                self.disk.full = true;
                if batch.is_own() {
                    // Not even these find room, so trying again at once is no use.
                    tracing::error!("an entry of the daemon's own is lost: the disk is full");
                    self.drop_unreserved(batch, Refused::StorageFull);
                } else {
                    self.withdraw(batch, Refused::StorageFull);
                }
                Ok(())
            }
            (Err(error), reserve) => {
                // Reserved or not, nobody knows; it is answered like what is.
                self.flights.extend(reserve.map(|batch| Flight { job: 0, batch, signatures: None }));
                let code = if error.is_full() { Code::StorageFull } else { Code::Internal };
                self.note_fault(code, error.to_string());
                Err(error.to_string())
            }
        }
    }

    /// From here on the entries of the commit are visible, and their clients hear of them.
    fn conclude(
        &mut self,
        committed: &Arc<Committed>,
        facts: Vec<Fact>,
        tickets: Vec<Waiting>,
        governor: Option<Arc<Governor>>,
    ) {
        if let Err(error) = self.setup.index.note(facts)
            && self.stop.is_none()
        {
            // A restart builds what is missing; without it nobody could tell for long which ids
            // were used. The clients of this commit are answered before we stop.
            self.note_fault(Code::Internal, format!("the index can't be written: {error}"));
        }
        let count = committed.entries().len() as u64;
        self.sealed_since_start += count;
        self.gauges.committed.store(committed.end().0, Ordering::Release);
        self.gauges.appended.fetch_add(count, Ordering::Relaxed);
        if let Some(last) = committed.entries().last() {
            let head =
                Head { next: committed.end(), hash: last.entry.hash(), timestamp: last.entry.timestamp() };
            *self.gauges.head.lock().unwrap_or_else(PoisonError::into_inner) = Some(head);
        }
        if let Some(governor) = governor {
            *self.gauges.governor.lock().unwrap_or_else(PoisonError::into_inner) = governor;
        }
        if let Some(note) = committed.note() {
            self.gauges.note.send_replace(Some(Arc::new(note)));
        }
        if !self.pending.is_empty() {
            for reserved in committed.entries() {
                self.pending.remove(&reserved.entry.id());
            }
        }
        if count > 0 {
            self.measure(count, committed.algorithm());
        }
        let outcomes = tickets
            .into_iter()
            .map(|(index, ticket, replayed, _)| {
                (ticket, Outcome::Committed { commit: committed.clone(), index, replayed })
            })
            .collect();
        self.answer(outcomes);
    }

    /// The time an entry takes when many wait, of about the last four commits. Sums, because a commit
    /// of one entry that waited behind a large one says little; and in mode `commit` the time of a
    /// commit is that of one signature, of which as many entries have their part as can.
    fn measure(&mut self, entries: u64, algorithm: SignatureAlgorithm) {
        let entries = match algorithm {
            SignatureAlgorithm::EntryP256 => entries as f64,
            SignatureAlgorithm::TreeP256 => self.setup.commit_entries as f64,
        };
        let (time, count) = &mut self.pace;
        *time = *time * 0.75 + self.last_commit.elapsed().as_secs_f64();
        *count = *count * 0.75 + entries;
        self.last_commit = Instant::now();
        // The first commits of a start say more of the disk's and the scheduler's mood than of the
        // token's pace; until more is known, the memory that there is bounds the queue.
        self.paced += 1;
        if self.paced >= PACED_COMMITS || *count >= PACED_ENTRIES {
            self.gauges.nanos_per_entry.store((*time / *count * 1e9) as u64, Ordering::Relaxed);
        }
    }

    /// Has a commit signed that is reserved, now or when the token is back.
    fn sign(&mut self, batch: Batch) {
        let signables = batch.reservation.signables();
        if batch.reservation.checkpoint.is_some() {
            self.noted = (batch.reservation.end(), Instant::now());
        }
        if self.flights.is_empty() {
            self.last_commit = Instant::now();
        }
        let job = self.hand_over(signables);
        self.flights.push_back(Flight { job, batch, signatures: None });
        if self.pool.is_none() {
            self.tell_flights(true);
        }
    }

    /// Hands messages to the token, if it is there; the number of the job, 0 for none.
    fn hand_over(&mut self, signables: Vec<Signable>) -> u64 {
        let Some(pool) = &self.pool else { return 0 };
        self.jobs += 1;
        let (job, messages) = (self.jobs, self.messages.clone());
        let (gauges, began) = (self.gauges.clone(), Instant::now());
        pool.sign(
            signables,
            Box::new(move |result| {
                if result.is_ok() {
                    gauges.signing.add(began.elapsed());
                }
                // The sequencer only ends first when the daemon stops on a fault.
                let _ = messages.send(Message::Signed(job, result));
            }),
        );
        job
    }

    fn place_overflow(&mut self) {
        while !self.is_gathering_full() {
            let gathers = self.gathering.is_some();
            let next = self.overflow.pop_front_if(|next| !(gathers && Self::is_alone(&next.event)));
            let Some(submission) = next else { return };
            self.place(submission);
        }
    }

    fn is_gathering_full(&self) -> bool {
        // What comes after a change of the mode or of the key waits until nothing is reserved in the old
        // one, and a change of the key has a number that nobody else gets meanwhile.
        let changes = self.switch.is_some() || self.next.is_some();
        if self.rotating.is_some() || (changes && (self.gathering.is_some() || !self.flights.is_empty())) {
            return true;
        }
        // What is not held waits for the token.
        if self.pool.is_none() && !self.holds() {
            return true;
        }
        self.gathering.as_ref().is_some_and(|batch| {
            batch.reservation.entries.len() >= self.setup.commit_entries || batch.bytes >= COMMIT_BYTES
        })
    }

    /// Takes back a batch that was never reserved: its numbers are given again. Clients hear
    /// `refused`; the daemon's own entries in it wait for their turn once more, for there is room
    /// kept for them.
    fn withdraw(&mut self, mut batch: Batch, refused: Refused) {
        // A change of the key is proven for this number and by a token that may go now: not again.
        if self.next.is_some() {
            return self.drop_unreserved(batch, refused);
        }
        for (index, admitted) in std::mem::take(&mut batch.own).into_iter().rev() {
            if let Some(at) = batch.tickets.iter().position(|(of, ..)| *of == index) {
                let (_, ticket, _, share) = batch.tickets.remove(at);
                self.overflow.push_front(Submission {
                    event: Event::Step(Box::new(|_, _, _| Ok(admitted))),
                    ticket,
                    searched: 0,
                    receipt: batch.receipt,
                    share,
                });
            }
        }
        self.drop_unreserved(batch, refused);
    }

    /// The same, but all of it is refused.
    fn drop_unreserved(&mut self, batch: Batch, refused: Refused) {
        (self.head, self.governor) = batch.before;
        // What it would have changed is the last that it holds, so nothing else has changed it.
        (self.switch, self.next) = (None, None);
        for reserved in &batch.reservation.entries {
            self.pending.remove(&reserved.entry.id());
        }
        let refusals = batch.tickets.into_iter().map(|(_, ticket, ..)| (ticket, Outcome::Refused(refused)));
        self.answer(refusals.collect());
    }

    /// Everything that was reserved has an unknown outcome; everything else was not taken.
    fn fail(mut self, inbox: &Receiver<Message>, fault: &str) {
        tracing::error!(fault, "stopping");
        self.gauges.stopping.store(true, Ordering::Release);
        self.note_fault(Code::Internal, fault.to_owned());
        for Flight { batch, .. } in std::mem::take(&mut self.flights) {
            let ids: Vec<EntryId> = batch.reservation.entries.iter().map(|r| r.entry.id()).collect();
            let unknown = batch
                .tickets
                .into_iter()
                .map(|(index, ticket, ..)| (ticket, Outcome::Unknown(ids[index])))
                .collect();
            self.answer(unknown);
        }
        if let Some(batch) = self.gathering.take() {
            self.drop_unreserved(batch, Refused::ShuttingDown);
        }
        if let Some(Rotating { ticket, .. }) = self.rotating.take() {
            self.refuse(ticket, Refused::ShuttingDown);
        }
        // A batch waits for each of its lines, so none may be left without an answer.
        let unread = inbox.try_iter().filter_map(|message| match message {
            Message::Submit(submissions) => Some(submissions),
            Message::Signed(..)
            | Message::Back(_)
            | Message::Proven(..)
            | Message::Fault(_)
            | Message::Stop { .. } => None,
        });
        for submission in std::mem::take(&mut self.overflow).into_iter().chain(unread.flatten()) {
            self.refuse(submission.ticket, Refused::ShuttingDown);
        }
        (self.setup.on_fault)();
    }

    /// Hands out outcomes, those of one batch together.
    fn answer(&self, outcomes: Vec<(Ticket, Outcome)>) {
        self.gauges.queued.fetch_sub(outcomes.len() as u64, Ordering::AcqRel);
        let mut together: Option<(answers::UnboundedSender<Outcomes>, Outcomes)> = None;
        for (ticket, outcome) in outcomes {
            match ticket {
                // A client that has gone does not take its entry back.
                Ticket::Single(waiting) => drop(waiting.send(outcome)),
                Ticket::Own => {}
                Ticket::Batch(batch, line) => match &mut together {
                    Some((same, lines)) if same.same_channel(&batch) => lines.push((line, outcome)),
                    _ => {
                        if let Some((done, lines)) = together.replace((batch, vec![(line, outcome)])) {
                            let _ = done.send(lines);
                        }
                    }
                },
            }
        }
        if let Some((done, lines)) = together {
            let _ = done.send(lines);
        }
    }
}

impl<T: Into<governor::Refused>> From<T> for Box<Governed> {
    fn from(refused: T) -> Self {
        Box::new(Governed { refused: refused.into(), draft: None })
    }
}

/// How many commits may be reserved and not committed. With a second one in mode `each` the token
/// goes on while the disk writes; in mode `commit` it would only make commits smaller.
fn depth(algorithm: SignatureAlgorithm) -> usize {
    match algorithm {
        SignatureAlgorithm::EntryP256 => 2,
        SignatureAlgorithm::TreeP256 => 1,
    }
}

impl Batch {
    fn new(before: (Head, Arc<Governor>), key: KeyId, algorithm: SignatureAlgorithm) -> Self {
        Batch {
            reservation: Reservation {
                first: before.0.next,
                key,
                algorithm,
                entries: Vec::new(),
                tiles: Vec::new(),
                checkpoint: None,
            },
            tickets: Vec::new(),
            facts: Vec::new(),
            own: Vec::new(),
            bytes: 0,
            before,
            governor: None,
            receipt: false,
        }
    }

    /// Whether it begins with a `key.activate`, without which nothing can be written.
    fn activates(&self) -> bool {
        self.before.1.standing().keys.is_waiting()
    }

    fn is_own(&self) -> bool {
        self.own.len() == self.reservation.entries.len()
    }
}

/// What is known of an id that comes again.
enum Known {
    Pending { uid: u32, content: Digest, sequence: Sequence },
    Committed,
}

/// An error and what caused it, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

fn quoted(text: &str) -> String {
    let mut out = Vec::new();
    json::write_string(text, &mut out);
    String::from_utf8_lossy(&out).into_owned()
}

/// The wall clock, held against the boot clock, which nobody sets.
#[derive(Debug)]
pub struct Clock {
    /// Wall clock less boot clock, in nanoseconds, at the start or when an operator looked last.
    offset: AtomicI64,
}

/// By how much the wall clock jumped forward, more than [`CLOCK_JUMP`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Jump {
    /// How far, in microseconds.
    pub micros: i64,
    /// What the wall clock says.
    pub clock: Timestamp,
    offset: i64,
}

impl Default for Clock {
    fn default() -> Self {
        Clock { offset: AtomicI64::new(present_offset()) }
    }
}

impl Clock {
    /// The time, or none when the wall clock has jumped.
    fn now(&self) -> Option<Timestamp> {
        if self.jumped().is_some() { None } else { Some(now()) }
    }

    /// Whether the wall clock has jumped, and how far. When it is set back that is over.
    #[must_use]
    pub fn jumped(&self) -> Option<Jump> {
        let offset = present_offset();
        let ahead = offset.saturating_sub(self.offset.load(Ordering::Acquire));
        let has_jumped = i128::from(ahead) > CLOCK_JUMP.as_nanos() as i128;
        has_jumped.then(|| Jump { micros: ahead / 1_000, clock: now(), offset })
    }

    /// Takes the wall clock to be right after `jump`, and no further.
    pub fn accept(&self, jump: Jump) {
        self.offset.store(jump.offset, Ordering::Release);
    }
}

fn present_offset() -> i64 {
    // Nanoseconds in 64 bits reach into the year 2262; what is beyond is a jump.
    i64::try_from(wall_nanos() - boot_nanos()).unwrap_or(i64::MAX)
}

fn wall_nanos() -> i128 {
    nanos(nix::time::ClockId::CLOCK_REALTIME) + failpoint::clock_set_nanos()
}

fn boot_nanos() -> i128 {
    nanos(nix::time::ClockId::CLOCK_BOOTTIME)
}

fn nanos(clock: nix::time::ClockId) -> i128 {
    // Both clocks exist on every Linux that has pidfds; a clock that can't be read stands still.
    nix::time::clock_gettime(clock)
        .map_or(0, |time| i128::from(time.tv_sec()) * 1_000_000_000 + i128::from(time.tv_nsec()))
}

/// The present time as the ledger writes it.
#[must_use]
pub fn now() -> Timestamp {
    Timestamp::from_micros(i64::try_from(wall_nanos() / 1_000).unwrap_or(i64::MAX))
}

/// What an unprivileged process may still write to the file system of `path`; everything where
/// the system does not say.
#[must_use]
pub fn free_bytes(path: &std::path::Path) -> u64 {
    nix::sys::statvfs::statvfs(path).map_or(u64::MAX, |stat| stat.blocks_available() * stat.fragment_size())
}

/// Free space on the ledger's disk, looked at now and then.
struct Disk {
    checked: Option<Instant>,
    full: bool,
}

impl Disk {
    /// How long until it is looked at again.
    fn pause(&self) -> Duration {
        self.checked.map_or(Duration::ZERO, |checked| DISK_CHECK.saturating_sub(checked.elapsed()))
    }

    fn is_full(&mut self, setup: &Setup) -> bool {
        if self.checked.is_none_or(|checked| checked.elapsed() >= DISK_CHECK) {
            self.checked = Some(Instant::now());
            self.full = free_bytes(setup.store.path()) < setup.min_free_bytes;
        }
        self.full
    }
}
