//! What the routes share: the parts of the daemon, readers of the ledger, and the one place where
//! an error of theirs becomes a code.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, watch};

use super::budget::Budget;
use super::keys::Opening;
use super::listener::Connections;
use super::metrics::Refusals;
use super::problem::Problem;
use super::rate::Rates;
use super::violation::Violations;
use crate::anchor::Gauge;
use crate::caller::{Access, Peer};
use crate::governance::caller::Admission;
use crate::governance::governor::Governor;
use crate::governance::rules::{self, Verb};
use crate::governance::{Policy, Refusal};
use crate::index::{Index, IndexError};
use crate::ledger::code::Code;
use crate::ledger::entry::EntryView;
use crate::ledger::key::PublicKey;
use crate::ledger::timestamp::Timestamp;
use crate::sequencer::{Refused, Sequencer};
use crate::store::{Reader, StoreError};
use crate::token::{Identity, Keeper};

/// Reads of the ledger that run at once; each may hold about a megabyte.
const READS: usize = 8;

/// Everything a route may use.
pub struct Service {
    /// Whom the ledger belongs to.
    pub origin: String,
    /// The ledger file.
    pub ledger: PathBuf,
    /// The key that the ledger began with.
    pub key: PublicKey,
    /// The token as it was known at the start.
    pub token: Identity,
    /// Where tokens may be found to rotate to.
    pub opening: Opening,
    /// The token of the key that signs, there or not.
    pub keeper: Arc<Keeper>,
    /// How far the anchors have come.
    pub anchors: Arc<[Gauge]>,
    /// Admission.
    pub policy: Arc<Policy>,
    /// How fast callers may append.
    pub rates: Rates,
    /// What was refused lately because it broke an invariant.
    pub violations: Violations,
    /// The single writer.
    pub sequencer: Arc<Sequencer>,
    /// Look-ups.
    pub index: Arc<Index>,
    /// Memory for what clients send.
    pub budget: Budget,
    /// Who may do what.
    pub access: Access,
    /// Connections, for the figures.
    pub connections: Arc<Connections>,
    /// The largest body, and the largest line of a batch.
    pub request_bytes: usize,
    /// Unsent acknowledgements of one batch.
    pub batch_answer_bytes: usize,
    /// Free bytes on the ledger's disk under which the daemon is not ready.
    pub min_free_bytes: u64,
    /// True once the daemon has been told to stop: batches end then.
    pub draining: watch::Receiver<bool>,
    /// How long a body may pause.
    pub idle: Duration,
    /// When the daemon started.
    pub started: Instant,
    /// The same by the wall clock.
    pub started_at: Timestamp,
    /// Requests that were refused since.
    pub refused: Refusals,
    /// A permit for each export under way.
    pub(super) exports: Arc<Semaphore>,
    readers: Mutex<Vec<Reader>>,
    reads: Semaphore,
    /// Held by a verification, of which one runs at a time.
    pub(super) verifying: Mutex<()>,
    /// Held by a measurement, of which one runs at a time.
    pub(super) measuring: Mutex<()>,
}

/// What [`Service::new`] is given.
#[allow(missing_docs, reason = "each is the field of the same name in `Service`")]
pub struct Parts {
    pub origin: String,
    pub ledger: PathBuf,
    pub key: PublicKey,
    pub token: Identity,
    pub opening: Opening,
    pub keeper: Arc<Keeper>,
    pub anchors: Arc<[Gauge]>,
    pub policy: Arc<Policy>,
    pub sequencer: Arc<Sequencer>,
    pub index: Arc<Index>,
    pub budget: Budget,
    pub access: Access,
    pub connections: Arc<Connections>,
    pub request_bytes: usize,
    pub batch_answer_bytes: usize,
    pub min_free_bytes: u64,
    pub draining: watch::Receiver<bool>,
    pub idle: Duration,
}

impl Service {
    /// Puts the parts together.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        Service {
            origin: parts.origin,
            ledger: parts.ledger,
            key: parts.key,
            token: parts.token,
            opening: parts.opening,
            keeper: parts.keeper,
            anchors: parts.anchors,
            policy: parts.policy,
            rates: Rates::default(),
            violations: Violations::default(),
            sequencer: parts.sequencer,
            index: parts.index,
            budget: parts.budget,
            access: parts.access,
            connections: parts.connections,
            request_bytes: parts.request_bytes,
            batch_answer_bytes: parts.batch_answer_bytes,
            min_free_bytes: parts.min_free_bytes,
            draining: parts.draining,
            idle: parts.idle,
            started: Instant::now(),
            started_at: crate::sequencer::now(),
            refused: Refusals::default(),
            exports: Arc::new(Semaphore::new(super::evidence::EXPORTS)),
            readers: Mutex::default(),
            reads: Semaphore::new(READS),
            verifying: Mutex::default(),
            measuring: Mutex::default(),
        }
    }

    /// The state of governance after the committed entries.
    pub(super) fn governor(&self) -> Arc<Governor> {
        self.sequencer.gauges().governor()
    }

    /// Refuses a caller that may not do `verb`; without one, a caller that may do nothing at all. The
    /// rules in force say so, or where there are none the socket's group.
    pub(super) fn check_verb(&self, peer: &Peer, verb: impl Into<Option<Verb>>) -> Result<(), Problem> {
        let verb = verb.into();
        let governor = self.governor();
        let rules = &governor.standing().rules;
        if !rules.is_default() {
            return Ok(Admission::of(rules, peer.kernel(), verb).map(drop)?);
        }
        match verb {
            Some(Verb::Administer) if !self.access.may_administer(peer) => {
                Err(not_allowed(peer, "administer"))
            }
            _ if self.access.may_append(peer) => Ok(()),
            verb => Err(not_allowed(peer, verb.map_or("do anything", Verb::as_str))),
        }
    }

    /// Refuses a caller that may do none of `verbs`.
    pub(super) fn check_any(&self, peer: &Peer, verbs: &[Verb]) -> Result<(), Problem> {
        let mut refused = Ok(());
        for verb in verbs {
            refused = self.check_verb(peer, *verb);
            if refused.is_ok() {
                break;
            }
        }
        refused
    }

    /// Refuses a caller that may not append.
    pub(super) fn check_append(&self, peer: &Peer) -> Result<(), Problem> {
        self.check_verb(peer, Verb::Append)
    }

    /// Refuses a caller that may not read.
    pub(super) fn check_read(&self, peer: &Peer) -> Result<(), Problem> {
        self.check_verb(peer, Verb::Read)
    }

    /// Whether `peer` may see all of `entry`.
    pub(super) fn discloses(
        &self,
        peer: &Peer,
        governor: &Governor,
        entry: &EntryView<'_>,
    ) -> Result<bool, Problem> {
        let rules = &governor.standing().rules;
        let admission = Admission::of(rules, peer.kernel(), None)?;
        Ok(admission.rule.is_none_or(|rule| rule.clearance >= rules.clearance_of(entry)))
    }

    /// Refuses a caller that may not see every entry in full: evidence with gaps is none.
    pub(super) fn check_sees_all(&self, peer: &Peer) -> Result<(), Problem> {
        let governor = self.governor();
        let rules = &governor.standing().rules;
        let admission = Admission::of(rules, peer.kernel(), None)?;
        if admission.rule.is_none_or(|rule| rule.clearance >= rules.highest_clearance()) {
            Ok(())
        } else {
            let detail = format!("an export takes a clearance of {}", rules.highest_clearance());
            Err(Problem::new(Code::CallerNotAllowed, detail))
        }
    }

    /// Refuses a caller that may not do what costs the others something.
    pub(super) fn check_administer(&self, peer: &Peer) -> Result<(), Problem> {
        if self.access.may_administer(peer) { Ok(()) } else { Err(not_allowed(peer, "do this")) }
    }

    /// Reads the ledger on a thread that may wait for the disk.
    pub(super) async fn read<T: Send + 'static>(
        self: &Arc<Self>,
        read: impl FnOnce(&Service, &Reader) -> Result<T, Problem> + Send + 'static,
    ) -> Result<T, Problem> {
        let service = self.clone();
        let _permit = self.reads.acquire().await;
        tokio::task::spawn_blocking(move || service.read_here(read))
            .await
            .unwrap_or_else(|error| Err(internal("a read", &error)))
    }

    /// Reads the ledger on this thread.
    pub(super) fn read_here<T>(
        &self,
        read: impl FnOnce(&Service, &Reader) -> Result<T, Problem>,
    ) -> Result<T, Problem> {
        let kept = self.readers.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let reader = match kept {
            Some(reader) => reader,
            None => Reader::open(&self.ledger)?,
        };
        let result = read(self, &reader);
        self.readers.lock().unwrap_or_else(PoisonError::into_inner).push(reader);
        result
    }
}

fn not_allowed(peer: &Peer, what: &str) -> Problem {
    let user = peer.user.as_deref().map_or(String::new(), |name| format!(" ({name})"));
    Problem::new(Code::CallerNotAllowed, format!("uid {}{user} may not {what}", peer.uid))
}

/// A fault of ours: the log says what, the client only that.
pub(super) fn internal(doing: &str, error: &dyn std::error::Error) -> Problem {
    tracing::error!(doing, %error, "internal fault");
    Problem::new(Code::Internal, format!("{doing} failed; the daemon's log says why"))
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Full(_) => Problem::new(Code::StorageFull, "the disk is full"),
            StoreError::Missing(_)
            | StoreError::Exists(_)
            | StoreError::NotALedger(_)
            | StoreError::Newer { .. }
            | StoreError::Locked(_)
            | StoreError::OldSqlite(_)
            | StoreError::Damaged(_)
            | StoreError::Sqlite { .. }
            | StoreError::Io { .. } => internal("reading the ledger", &error),
        }
    }
}

impl From<IndexError> for Problem {
    fn from(error: IndexError) -> Self {
        internal("looking up the index", &error)
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let mut problem = Problem::new(refusal.code, refusal.detail);
        problem.pointer = (!refusal.pointer.is_empty()).then(|| refusal.pointer.to_owned());
        problem
    }
}

impl From<rules::Fault> for Problem {
    fn from(fault: rules::Fault) -> Self {
        let mut problem = Problem::new(fault.code, fault.to_string());
        problem.line = fault.line.map(|line| line as u64);
        problem.pointer = (!fault.pointer.is_empty()).then_some(fault.pointer);
        problem
    }
}

impl From<Refused> for Problem {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::QueueFull { retry_after } => {
                let mut problem = Problem::new(
                    Code::QueueFull,
                    "more entries wait for the token than it can sign in the time configured",
                );
                problem.retry_after_seconds = u32::try_from(retry_after).ok();
                problem
            }
            Refused::IdConflict => {
                Problem::new(Code::EntryIdConflict, "this entry id was used before, with other content")
            }
            Refused::IdTaken => Problem::new(Code::EntryIdTaken, "this entry id is not yours to use"),
            Refused::StorageFull => {
                Problem::new(Code::StorageFull, "the ledger's disk has less room than its watermark")
            }
            Refused::ClockJumped => Problem::new(
                Code::ClockJumped,
                "the clock jumped forward by over an hour: set it right, or have an administrator confirm it by \
                 `attestctl clock confirm`",
            ),
            Refused::TokenAway => Problem::new(
                Code::TokenUnavailable,
                "the token is away, so nothing was recorded; `/readyz` says why",
            ),
            Refused::ShuttingDown => Problem::new(Code::ShuttingDown, "the daemon is stopping"),
        }
    }
}
