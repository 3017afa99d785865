//! Reserving, signing and committing, in this order.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::{Batch, Flight, Thread, Waiting, depth};
use crate::failpoint;
use crate::governance::governor::Governor;
use crate::index::Fact;
use crate::ledger::chain::Head;
use crate::ledger::checkpoint::Checkpoint;
use crate::ledger::code::Code;
use crate::ledger::entry::{EntryId, SignatureAlgorithm};
use crate::ledger::key::Signable;
use crate::sequencer::{Event, Message, Outcome, Refused, Submission};
use crate::store::{Committed, StoreError};

/// From how many commits or entries on the pace is believed.
const PACED_COMMITS: u32 = 8;
const PACED_ENTRIES: f64 = 256.0;

impl Thread {
    /// Takes each step that can be taken now.
    pub(super) fn advance(&mut self) -> Result<(), String> {
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

    pub(super) fn checkpoint(&self) -> Result<Checkpoint, String> {
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
    pub(super) fn sign(&mut self, batch: Batch) {
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
    pub(super) fn hand_over(&mut self, signables: Vec<Signable>) -> u64 {
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

    /// Takes back a batch that was never reserved: its numbers are given again. Clients hear
    /// `refused`; the daemon's own entries in it wait for their turn once more, for there is room
    /// kept for them.
    pub(super) fn withdraw(&mut self, mut batch: Batch, refused: Refused) {
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
    pub(super) fn drop_unreserved(&mut self, batch: Batch, refused: Refused) {
        (self.head, self.governor) = batch.before;
        // What it would have changed is the last that it holds, so nothing else has changed it.
        (self.switch, self.next) = (None, None);
        for reserved in &batch.reservation.entries {
            self.pending.remove(&reserved.entry.id());
        }
        let refusals = batch.tickets.into_iter().map(|(_, ticket, ..)| (ticket, Outcome::Refused(refused)));
        self.answer(refusals.collect());
    }
}
