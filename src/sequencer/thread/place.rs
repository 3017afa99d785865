//! Giving an entry its place: in whose order, and by whose judgement.

use std::sync::atomic::Ordering;

use super::{Batch, Pending, Rotating, Thread};
use crate::governance::governor::Governor;
use crate::governance::keyring;
use crate::governance::{Admitted, Refusal, governor};
use crate::index::Fact;
use crate::ledger::code::Code;
use crate::ledger::entry::{EntryId, EntryView, Sequence, SignatureAlgorithm};
use crate::ledger::hash::Digest;
use crate::ledger::json;
use crate::ledger::timestamp::Timestamp;
use crate::sequencer::{Event, Governed, MODE_CHANGE, NOBODY, Outcome, Refused, Share, Submission, Ticket};
use crate::store::{Reserved, algorithm_of};

impl Thread {
    /// Gives a submission its place in the gathering commit, or lets it wait for the next.
    pub(super) fn admit(&mut self, submission: Submission) {
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

    pub(super) fn place(&mut self, submission: Submission) {
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
        // Checkpoints of a key that was revoked may not be trusted any more: the new key's comes with that.
        batch.receipt |= receipt || admitted.view().action_type == keyring::REVOKE;
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

    pub(super) fn place_overflow(&mut self) {
        while !self.is_gathering_full() {
            let gathers = self.gathering.is_some();
            let next = self.overflow.pop_front_if(|next| !(gathers && Self::is_alone(&next.event)));
            let Some(submission) = next else { return };
            self.place(submission);
        }
    }
}

impl<T: Into<governor::Refused>> From<T> for Box<Governed> {
    fn from(refused: T) -> Self {
        Box::new(Governed { refused: refused.into(), draft: None })
    }
}

/// What is known of an id that comes again.
enum Known {
    Pending { uid: u32, content: Digest, sequence: Sequence },
    Committed,
}
