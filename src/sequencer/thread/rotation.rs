//! The change of the key, between the number of its entry and the first signature of the new one.

use std::sync::atomic::Ordering;

use super::{Rotating, Thread};
use crate::failpoint;
use crate::governance::keyring::Keyring;
use crate::governance::{Refusal, keyring};
use crate::ledger::code::Code;
use crate::ledger::entry::{EventCategory, EventType, Sequence};
use crate::ledger::key::Signature;
use crate::sequencer::{Event, Message, Outcome, Rotation, Submission, Ticket, chain};
use crate::token::{Candidate, SignError};

impl Thread {
    /// Asks the new key for its proof for the number that comes next.
    pub(super) fn challenge(&mut self) {
        let Some(Rotating { rotation, .. }) = &self.rotating else { return };
        let Some(pool) = rotation.candidate.pool() else { return };
        let (at, messages) = (self.head.next, self.messages.clone());
        let text = Keyring::challenge(&self.setup.origin, self.setup.key, rotation.candidate.key().id(), at);
        let proven = move |proof| drop(messages.send(Message::Proven(at, proof)));
        pool.sign(vec![text], Box::new(proven));
    }

    /// Places the `key.rotate`, in a commit of its own.
    pub(super) fn rotate(&mut self, at: Sequence, proof: Result<Vec<Signature>, SignError>) {
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
    pub(super) fn change_key(&mut self, candidate: Candidate) {
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
    pub(super) fn activate(&mut self) {
        let terms = self.governor.standing().keys.clone();
        let mut newest = terms.terms().iter().rev().map(|term| term.key.id());
        let (Some(new), Some(old)) = (newest.next(), newest.next()) else { return };
        let payload = format!(r#"{{"key_id":"{new}","previous_key_id":"{old}"}}"#);
        let event = Event::own(EventType::Change, EventCategory::Normal, keyring::ACTIVATE, payload);
        self.gauges.queued.fetch_add(1, Ordering::AcqRel);
        self.place(Submission { event, ticket: Ticket::Own, searched: 0, receipt: false, share: None });
    }
}
