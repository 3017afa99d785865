//! What the sequencer shows of itself while it works.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::clock::Clock;
use crate::governance::governor::Governor;
use crate::ledger::chain::Head;
use crate::ledger::checkpoint::Note;
use crate::ledger::code::Code;
use crate::ledger::entry::SignatureAlgorithm;

/// Figures that others may read at any time.
#[derive(Debug, Default)]
pub struct Gauges {
    /// Entries that are committed.
    pub committed: AtomicU64,
    /// Entries submitted and not answered.
    pub queued: AtomicU64,
    /// Nanoseconds that one entry takes while many wait.
    pub(super) nanos_per_entry: AtomicU64,
    /// Entries committed since the start.
    pub appended: AtomicU64,
    /// Whether no more entries are taken.
    pub stopping: AtomicBool,
    /// Set once when the daemon must stop.
    pub(super) fault: Mutex<Option<(Code, String)>>,
    pub(super) head: Mutex<Option<Head>>,
    /// Since when and why the token is away, in words, while it is.
    pub(super) away: Mutex<Option<(Instant, String)>>,
    /// How often it went away since the start.
    pub losses: AtomicU64,
    /// What the token took for what a commit needs signed.
    pub signing: Timing,
    /// What a durable transaction took.
    pub writing: Timing,
    /// Entries refused since it is.
    pub(super) refused_away: AtomicU64,
    /// Whether entries are signed by the checkpoints that end commits.
    pub(super) is_by_tree: AtomicBool,
    pub(super) governor: Mutex<Arc<Governor>>,
    /// What entries get their time from.
    pub clock: Clock,
    /// The newest signed checkpoint since the start.
    pub(super) note: watch::Sender<Option<Arc<Note>>>,
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

    pub(super) fn set_algorithm(&self, algorithm: SignatureAlgorithm) {
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
    pub(super) fn add(&self, took: Duration) {
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
