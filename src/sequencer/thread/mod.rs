//! The thread that owns head, tree and store.
//!
//! It takes one message after the other ([`Thread::run`]). An entry gets its place in [`place`], and
//! is written in [`commit`]; [`away`] and [`rotation`] are what may come in between.

mod away;
mod commit;
mod place;
mod rotation;

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use crate::failpoint;
use crate::governance::Admitted;
use crate::governance::governor::Governor;
use crate::index::Fact;
use crate::ledger::chain::Head;
use crate::ledger::code::Code;
use crate::ledger::entry::{EntryId, EventCategory, EventType, Sequence, SignatureAlgorithm};
use crate::ledger::hash::Digest;
use crate::ledger::json::quoted;
use crate::ledger::key::{KeyId, Signature};
use crate::ledger::tile::Edge;
use crate::ledger::timestamp::Timestamp;
use crate::sequencer::disk::Disk;
use crate::sequencer::gauges::Gauges;
use crate::sequencer::{
    Event, Message, Outcome, Outcomes, Refused, Rotation, Setup, Share, Submission, Ticket,
};
use crate::store::Reservation;
use crate::token::{Candidate, Pool};

/// A commit closes at this many bytes of entries, so that its transaction stays short.
const COMMIT_BYTES: usize = 8 << 20;

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

pub(super) struct Thread {
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
    pub(super) fn new(setup: Setup, gauges: Arc<Gauges>, messages: Sender<Message>) -> Self {
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
            disk: Disk::default(),
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

    pub(super) fn run(mut self, inbox: &Receiver<Message>) {
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

    fn note_fault(&self, code: Code, fault: String) {
        self.gauges.fault.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert((code, fault));
    }

    fn waiting(&self) -> u64 {
        let batches = self.gathering.iter().chain(self.flights.iter().map(|flight| &flight.batch));
        let placed: usize = batches.map(|batch| batch.reservation.entries.len()).sum();
        (placed + self.overflow.len()) as u64
    }

    /// Whether `event` can have a place only when nothing else gathers.
    fn is_alone(event: &Event) -> bool {
        matches!(event, Event::Rotate(_))
    }

    fn refuse(&self, ticket: Ticket, refused: Refused) {
        self.answer(vec![(ticket, Outcome::Refused(refused))]);
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
        let mut together: Option<(mpsc::UnboundedSender<Outcomes>, Outcomes)> = None;
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
