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

mod clock;
mod disk;
mod gauges;
mod thread;

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc as answers, oneshot, watch};

use crate::caller::Peer;
use crate::governance::governor::{self, Governor};
use crate::governance::{Admitted, Policy};
use crate::index::Index;
use crate::ledger::chain::Head;
use crate::ledger::checkpoint::Note;
use crate::ledger::draft::Draft;
use crate::ledger::entry::{EntryId, EventCategory, EventType, Sequence, SignatureAlgorithm};
use crate::ledger::hash::Digest;
use crate::ledger::key::{KeyId, Signature};
use crate::ledger::tile::Edge;
use crate::ledger::timestamp::Timestamp;
use crate::store::{Committed, Store};
use crate::token::{Candidate, Keeper, Pool, SignError};

pub use self::clock::{Clock, Jump, now};
pub use self::disk::free_bytes;
pub use self::gauges::{Gauges, Timing};
use self::thread::Thread;

/// How many entries may wait, whatever they hold; memory is bounded by the budget of the server.
const QUEUE_ENTRIES: u64 = 65_536;
/// How many callers are known before those are forgotten of whom nothing waits.
const SHARES: usize = 1_024;
/// A uid that no process has.
const NOBODY: u32 = u32::MAX;
/// The `action_type` of the entry that changes how entries are signed from the next one on.
pub const MODE_CHANGE: &str = "signature.mode";

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
