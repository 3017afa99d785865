//! While the token is away: what is reserved waits for it, what comes is refused or held.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::{Away, Rotating, Thread};
use crate::ledger::code::Code;
use crate::ledger::entry::{EventCategory, EventType};
use crate::ledger::json::quoted;
use crate::sequencer::{Event, Message, Outcome, Refused, Submission, Ticket, chain};
use crate::token::{Pool, SignError, TokenError};

impl Thread {
    /// A job was not signed. What it was to sign is reserved and stays so; the token is given up, and
    /// brought back on a thread of its own.
    pub(super) fn lose_token(&mut self, job: u64, error: &SignError) {
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
    pub(super) fn seek_token(&mut self, reason: String) {
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
    pub(super) fn regain_token(&mut self, pool: Arc<Pool>) {
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
    pub(super) fn holds(&self) -> bool {
        self.setup.hold_entries > 0
    }

    /// Whether no more entries are held than may be.
    pub(super) fn may_hold(&self) -> bool {
        let held: usize = self.flights.iter().map(|flight| flight.batch.reservation.entries.len()).sum();
        let gathered = self.gathering.as_ref().map_or(0, |batch| batch.reservation.entries.len());
        held + gathered < self.setup.hold_entries
    }

    /// Answers those who wait for entries that are reserved and not signed: as held, or that nobody
    /// knows. The entries are signed all the same.
    pub(super) fn tell_flights(&mut self, held: bool) {
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
    pub(super) fn stop_without_token(&mut self) {
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
}
