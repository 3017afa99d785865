//! One budget of memory for everything that a client makes the daemon hold, shared fairly
//! between callers.
//!
//! Bytes are reserved *before* they are read, as a [`Lease`] that gives them back when it is
//! dropped. What is held is never revoked. The budget counts bytes; it allocates none of them.
//!
//! With *k* callers holding something, each may have 1/(k+1) of what is not reserved for the
//! daemon: one alone gets half, and there is always room for the next to come. A caller that
//! holds nothing gets one lease in as soon as there is room for it, so however many callers
//! there are, a large request of one of them comes to its turn.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// The budget. Clones share it.
#[derive(Clone)]
pub struct Budget(Arc<Shared>);

struct Shared {
    /// What clients may hold together, in bytes.
    for_clients: usize,
    /// What clients and daemon may hold together, in bytes.
    total: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    used_by_clients: usize,
    used_by_daemon: usize,
    /// Those who hold or wait, in no order. There are few, so they are looked up by walking.
    callers: Vec<Caller>,
    /// How many of them hold something.
    holding: usize,
    /// The oldest request that its own caller's share allows waits for room: newcomers must not
    /// take that room away in small pieces for ever.
    room_is_promised: bool,
    next_ticket: u64,
}

struct Caller {
    uid: u32,
    held: usize,
    waiting: VecDeque<Waiter>,
}

struct Waiter {
    /// Smaller came earlier.
    ticket: u64,
    bytes: usize,
    grant: oneshot::Sender<Lease>,
}

enum Verdict {
    Fits,
    /// The caller has its share: others may go first.
    OverShare,
    /// There is no room at all.
    Full,
}

impl Budget {
    /// A budget of `total` bytes, of which clients never get the last `reserved_for_daemon`.
    #[must_use]
    pub fn new(total: usize, reserved_for_daemon: usize) -> Self {
        let for_clients = total.saturating_sub(reserved_for_daemon);
        Budget(Arc::new(Shared { for_clients, total, state: Mutex::default() }))
    }

    /// Takes `bytes` for the caller `uid` if that can be done at once and nobody is before it.
    #[must_use]
    pub fn try_take(&self, uid: u32, bytes: usize) -> Option<Lease> {
        let mut state = self.lock();
        let queued =
            state.room_is_promised || state.callers.iter().any(|c| c.uid == uid && !c.waiting.is_empty());
        if queued || !matches!(state.judge(uid, bytes, &self.0), Verdict::Fits) {
            return None;
        }
        Some(state.grant(uid, bytes, self))
    }

    /// Takes `bytes` for the caller `uid`, waiting for its turn: first come, first served, but
    /// for callers that have their share already. Dropping the future leaves the queue.
    /// `None`, at once, when it is more than one caller could ever hold.
    pub async fn take(&self, uid: u32, bytes: usize) -> Option<Lease> {
        if let Some(lease) = self.try_take(uid, bytes) {
            return Some(lease);
        }
        if bytes > self.0.for_clients / 2 {
            return None;
        }
        let granted = {
            let (grant, granted) = oneshot::channel();
            let mut state = self.lock();
            let ticket = state.next_ticket;
            state.next_ticket += 1;
            state.caller(uid).waiting.push_back(Waiter { ticket, bytes, grant });
            granted
        };
        // Room may have come free between the two locks, and when this future is dropped what
        // it kept others from may be theirs. A lease that was granted but not yet seen is
        // dropped with the channel.
        self.serve_queue();
        let leave = ServeOnDrop(self);
        let lease = granted.await.ok();
        std::mem::forget(leave);
        lease
    }

    /// Takes `bytes` for the daemon itself, which may use all that there is.
    #[must_use]
    pub fn try_take_for_daemon(&self, bytes: usize) -> Option<Lease> {
        let mut state = self.lock();
        if state.used() + bytes > self.0.total {
            return None;
        }
        state.used_by_daemon += bytes;
        Some(Lease { budget: self.clone(), holder: Holder::Daemon, bytes })
    }

    /// Bytes that are held now.
    #[must_use]
    pub fn used(&self) -> usize {
        self.lock().used()
    }

    /// Bytes that there are.
    #[must_use]
    pub fn total(&self) -> usize {
        self.0.total
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held, and the counts are right between any two statements.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve_queue(&self) {
        // A grant whose receiver is gone comes back as a lease, whose drop takes the lock.
        let mut unwanted = Vec::new();
        self.lock().serve_queue(self, &mut unwanted);
    }
}

impl State {
    fn used(&self) -> usize {
        self.used_by_clients + self.used_by_daemon
    }

    fn caller(&mut self, uid: u32) -> &mut Caller {
        let at = self.callers.iter().position(|c| c.uid == uid).unwrap_or_else(|| {
            self.callers.push(Caller { uid, held: 0, waiting: VecDeque::new() });
            self.callers.len() - 1
        });
        &mut self.callers[at]
    }

    fn judge(&self, uid: u32, bytes: usize, shared: &Shared) -> Verdict {
        let held = self.callers.iter().find(|c| c.uid == uid).map_or(0, |c| c.held);
        let callers = self.holding + usize::from(held == 0);
        let share = shared.for_clients / (callers + 1);
        let fair = held + bytes <= share || (held == 0 && bytes <= shared.for_clients / 2);
        if !fair {
            Verdict::OverShare
        } else if self.used_by_clients + bytes > shared.for_clients || self.used() + bytes > shared.total {
            Verdict::Full
        } else {
            Verdict::Fits
        }
    }

    fn grant(&mut self, uid: u32, bytes: usize, budget: &Budget) -> Lease {
        self.used_by_clients += bytes;
        let caller = self.caller(uid);
        let begins = caller.held == 0 && bytes > 0;
        caller.held += bytes;
        self.holding += usize::from(begins);
        Lease { budget: budget.clone(), holder: Holder::Client(uid), bytes }
    }

    fn give_back(&mut self, uid: u32, bytes: usize) {
        self.used_by_clients -= bytes;
        let caller = self.caller(uid);
        caller.held -= bytes;
        let ends = caller.held == 0;
        self.holding -= usize::from(ends);
    }

    /// Grants what can be granted, the oldest first, until one must wait for room.
    fn serve_queue(&mut self, budget: &Budget, unwanted: &mut Vec<Lease>) {
        self.room_is_promised = false;
        let mut passed_over = 0;
        loop {
            // The front of each caller's queue, oldest first. Those up to `passed_over` were
            // looked at in this round and had their share.
            let oldest = self
                .callers
                .iter_mut()
                .filter_map(|caller| {
                    while caller.waiting.front().is_some_and(|w| w.grant.is_closed()) {
                        caller.waiting.pop_front();
                    }
                    caller.waiting.front().map(|w| (w.ticket, w.bytes, caller.uid))
                })
                .filter(|(ticket, _, _)| *ticket >= passed_over)
                .min();
            let Some((ticket, bytes, uid)) = oldest else { break };
            match self.judge(uid, bytes, &budget.0) {
                Verdict::Full => {
                    self.room_is_promised = true;
                    break;
                }
                Verdict::OverShare => passed_over = ticket + 1,
                Verdict::Fits => {
                    let lease = self.grant(uid, bytes, budget);
                    if let Some(waiter) = self.caller(uid).waiting.pop_front() {
                        unwanted.extend(waiter.grant.send(lease).err());
                    }
                }
            }
        }
        self.callers.retain(|caller| caller.held > 0 || !caller.waiting.is_empty());
    }
}

struct ServeOnDrop<'a>(&'a Budget);

impl Drop for ServeOnDrop<'_> {
    fn drop(&mut self) {
        self.0.serve_queue();
    }
}

#[derive(Clone, Copy)]
enum Holder {
    Client(u32),
    Daemon,
}

/// Bytes of the budget, given back when dropped.
#[must_use]
pub struct Lease {
    budget: Budget,
    holder: Holder,
    bytes: usize,
}

impl Lease {
    /// How many.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes `more`, if the caller's share and the budget allow it at once; else changes nothing.
    /// Who holds something goes before those who wait: it is what frees the memory.
    #[must_use]
    pub fn grow(&mut self, more: usize) -> bool {
        let mut state = self.budget.lock();
        let added = match self.holder {
            Holder::Daemon if state.used() + more <= self.budget.0.total => {
                state.used_by_daemon += more;
                None
            }
            Holder::Client(uid) if matches!(state.judge(uid, more, &self.budget.0), Verdict::Fits) => {
                Some(state.grant(uid, more, &self.budget))
            }
            Holder::Daemon | Holder::Client(_) => return false,
        };
        drop(state);
        self.bytes += more;
        if let Some(mut added) = added {
            // Both are this lease now.
            added.bytes = 0;
        }
        true
    }

    /// Takes `more` even where there is no room: for what exists already and only has to be counted.
    pub fn force_grow(&mut self, more: usize) {
        let mut state = self.budget.lock();
        match self.holder {
            Holder::Daemon => state.used_by_daemon += more,
            Holder::Client(uid) => state.grant(uid, more, &self.budget).bytes = 0,
        }
        drop(state);
        self.bytes += more;
    }

    /// Takes over what `other`, a lease of the same holder, has.
    pub fn absorb(&mut self, mut other: Lease) {
        self.bytes += std::mem::take(&mut other.bytes);
    }

    /// Gives `less` back, at most all of it.
    pub fn shrink(&mut self, less: usize) {
        drop(self.split(less));
    }

    /// Makes a lease of its own of `bytes`, at most all of it.
    pub fn split(&mut self, bytes: usize) -> Lease {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        Lease { budget: self.budget.clone(), holder: self.holder, bytes }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.bytes == 0 {
            return;
        }
        let mut unwanted = Vec::new();
        let mut state = self.budget.lock();
        match self.holder {
            Holder::Client(uid) => state.give_back(uid, self.bytes),
            Holder::Daemon => state.used_by_daemon -= self.bytes,
        }
        state.serve_queue(&self.budget, &mut unwanted);
        drop(state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;
    use std::time::Duration;

    const ANN: u32 = 1;
    const BOB: u32 = 2;
    const CY: u32 = 3;

    /// Polls once; whoever is not granted at once waits.
    async fn waits(future: impl Future<Output = Option<Lease>>) -> bool {
        tokio::time::timeout(Duration::from_millis(5), future).await.is_err()
    }

    #[test]
    fn shares_shrink_as_callers_come_and_nothing_is_revoked() {
        let budget = Budget::new(1300, 100);
        let ann = budget.try_take(ANN, 600).expect("half for one alone");
        assert!(budget.try_take(ANN, 1).is_none());
        let bob = budget.try_take(BOB, 400).expect("a third for the second");
        assert!(budget.try_take(BOB, 1).is_none());
        assert_eq!((ann.bytes(), budget.used()), (600, 1000));
        let cy = budget.try_take(CY, 200).expect("what is left");
        assert!(budget.try_take(4, 1).is_none(), "the reserve is not for clients");
        let own = budget.try_take_for_daemon(100).expect("the reserve");
        assert!(budget.try_take_for_daemon(1).is_none());
        drop((ann, bob, cy, own));
        assert_eq!(budget.used(), 0);
        assert!(budget.try_take(ANN, 600).is_some());
    }

    #[test]
    fn leases_grow_shrink_and_split() {
        let budget = Budget::new(1000, 0);
        let mut lease = budget.try_take(ANN, 100).expect("room");
        assert!(lease.grow(400));
        assert!(!lease.grow(1));
        let part = lease.split(200);
        assert_eq!((lease.bytes(), part.bytes(), budget.used()), (300, 200, 500));
        lease.shrink(300);
        assert_eq!(budget.used(), 200);
        assert!(lease.grow(1), "an empty lease grows too");
        drop(lease);
        drop(part);
        assert_eq!(budget.used(), 0);
        assert!(budget.lock().callers.is_empty() && budget.lock().holding == 0);
    }

    #[tokio::test]
    async fn who_waits_is_served_in_order_when_room_comes_free() {
        let budget = Budget::new(1000, 0);
        let held = budget.take(ANN, 500).await.expect("half");
        let (first, second) = (budget.take(ANN, 300), budget.take(ANN, 300));
        let (mut first, mut second) = (pin!(first), pin!(second));
        assert!(waits(&mut first).await && waits(&mut second).await);
        assert!(budget.try_take(ANN, 1).is_none(), "not before those who wait");
        drop(held);
        let granted = first.await.expect("granted");
        assert!(waits(&mut second).await, "over the share still");
        drop(granted);
        assert_eq!(second.await.expect("granted").bytes(), 300);
        assert_eq!(budget.used(), 0);
    }

    #[tokio::test]
    async fn a_caller_over_its_share_does_not_hold_up_another() {
        let budget = Budget::new(1200, 0);
        let _held = budget.take(ANN, 600).await.expect("half");
        let mut greedy = pin!(budget.take(ANN, 100));
        assert!(waits(&mut greedy).await);
        assert!(budget.try_take(BOB, 400).is_some());
    }

    #[tokio::test]
    async fn room_for_a_large_request_is_not_nibbled_away() {
        let budget = Budget::new(1200, 0);
        let ann = budget.take(ANN, 600).await.expect("half");
        let bob = budget.take(BOB, 400).await.expect("a third");
        let mut large = pin!(budget.take(CY, 300));
        assert!(waits(&mut large).await);
        assert!(budget.try_take(4, 10).is_none(), "the room is promised");
        drop(bob);
        assert_eq!(large.await.expect("granted").bytes(), 300);
        drop(ann);
    }

    #[tokio::test]
    async fn leaving_the_queue_lets_the_next_one_in() {
        let budget = Budget::new(1200, 0);
        let _ann = budget.take(ANN, 600).await.expect("half");
        let _bob = budget.take(BOB, 400).await.expect("a third");
        let mut small = pin!(budget.take(4, 100));
        {
            let mut large = pin!(budget.take(CY, 300));
            assert!(waits(&mut large).await);
            assert!(waits(&mut small).await, "behind the large one");
        }
        assert_eq!(small.await.expect("granted").bytes(), 100);
    }

    #[tokio::test]
    async fn a_grant_that_nobody_takes_goes_back() {
        let budget = Budget::new(1000, 0);
        let held = budget.take(ANN, 500).await.expect("half");
        {
            let mut waiting = pin!(budget.take(ANN, 400));
            assert!(waits(&mut waiting).await);
            drop(held);
            assert_eq!(budget.used(), 400);
        }
        assert_eq!(budget.used(), 0);
    }

    #[tokio::test]
    async fn more_than_anybody_could_hold_is_refused_at_once() {
        let budget = Budget::new(1000, 100);
        assert!(budget.take(ANN, 451).await.is_none());
        assert!(budget.take(ANN, 450).await.is_some());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn under_contention_everybody_gets_through_and_all_is_given_back() {
        let budget = Budget::new(100_000, 1_000);
        let tasks: Vec<_> = (0..64u32)
            .map(|n| {
                let budget = budget.clone();
                tokio::spawn(async move {
                    for round in 0..200usize {
                        let bytes = 1 + (n as usize * 7919 + round * 104_729) % 40_000;
                        let wish = budget.take(n % 5, bytes);
                        if round % 7 == 0 {
                            let _ = tokio::time::timeout(Duration::from_micros(50), wish).await;
                        } else {
                            let mut lease = wish.await.expect("possible");
                            lease.shrink(bytes / 2);
                            tokio::task::yield_now().await;
                        }
                        assert!(budget.used() <= 99_000);
                    }
                })
            })
            .collect();
        for task in tasks {
            tokio::time::timeout(Duration::from_secs(30), task)
                .await
                .expect("nobody starves")
                .expect("no panic");
        }
        assert_eq!(budget.used(), 0);
    }
}
