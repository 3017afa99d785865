//! VIOLATION entries: an attempt that breaks an invariant is refused, and the ledger says so.
//!
//! The first of a caller in a while is written whole. What follows of the same kind is counted and
//! written as one entry, so that a flood of refusals fills neither the disk nor the token's time.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::problem::Problem;
use crate::caller::Peer;
use crate::governance::Refusal;
use crate::governance::approval::ProposalId;
use crate::governance::caller::{Admission, named};
use crate::governance::governor::{Attempt, Governor, Refused};
use crate::governance::invariant::{Breach, Violation};
use crate::ledger::code::Code;
use crate::ledger::draft::Draft;
use crate::ledger::entry::{EventCategory, EventType, ExecutionStatus, Sequence};
use crate::sequencer::{Event, Outcome, Sequencer, Step, fresh_id};

/// For so long after a violation that was written whole the like of it is only counted.
const FOLDED_FOR: Duration = Duration::from_secs(60);
/// Callers and kinds that are told apart at once; a host has far fewer callers.
const KINDS: usize = 4_096;
/// What a VIOLATION entry holds beside the attempt.
const OVERHEAD_BYTES: usize = 8 << 10;

/// An attempt that broke an invariant.
#[derive(Debug, Clone)]
pub struct Offence {
    /// Who tried.
    pub peer: Arc<Peer>,
    /// What: with its outcome, where it was to seal a proposal.
    pub draft: Draft,
    /// The proposal that it was to seal.
    pub proposal_id: Option<ProposalId>,
    /// What it breaks.
    pub violation: Violation,
}

/// Of which kind a violation is: whose, and what it breaks.
type Kind = (u32, Option<String>, Breach);

struct Fold {
    since: Instant,
    /// Where the first is written.
    first: Option<Sequence>,
    /// How many came after it, and the last of them.
    more: Option<(u64, Offence)>,
}

/// What was refused lately.
#[derive(Default)]
pub struct Violations {
    folds: Mutex<HashMap<Kind, Fold>>,
    count: AtomicU64,
}

impl Violations {
    /// How many there were since the start.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Has the offence recorded, and gives the answer to whoever committed it.
    pub async fn record(&self, sequencer: &Sequencer, entry_bytes: usize, offence: Offence) -> Problem {
        self.count.fetch_add(1, Ordering::Relaxed);
        let mut problem = Problem::from(Refusal::from(offence.violation.clone()));
        let caller = caller_of(&sequencer.gauges().governor(), &offence.peer);
        let kind = (offence.peer.uid, caller, offence.violation.breach);
        {
            let mut folds = self.folds.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(fold) = folds.get_mut(&kind) {
                problem.sequence_number = fold.first;
                let count = fold.more.as_ref().map_or(0, |(count, _)| *count) + 1;
                fold.more = Some((count, offence));
                return problem;
            }
            tracing::warn!(uid = kind.0, caller = kind.1, violation = %offence.violation, "refused a violation");
            if folds.len() >= KINDS {
                return problem;
            }
            folds.insert(kind.clone(), Fold { since: Instant::now(), first: None, more: None });
        }
        let whole = offence.draft.to_canonical().len() + OVERHEAD_BYTES <= entry_bytes;
        problem.sequence_number = write(sequencer, first(offence, whole)).await;
        let mut folds = self.folds.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(fold) = folds.get_mut(&kind) {
            fold.first = problem.sequence_number;
        }
        problem
    }

    /// Writes what was counted long enough, or all of it.
    pub async fn settle(&self, sequencer: &Sequencer, all: bool) {
        let over: Vec<(u64, Offence)> = {
            let mut folds = self.folds.lock().unwrap_or_else(PoisonError::into_inner);
            let over = folds.extract_if(|_, fold| all || fold.since.elapsed() >= FOLDED_FOR);
            over.filter_map(|(_, fold)| fold.more).collect()
        };
        for (count, offence) in over {
            tracing::warn!(uid = offence.peer.uid, count, violation = %offence.violation, "refused more of them");
            if write(sequencer, counted(offence, count)).await.is_none() {
                tracing::error!(count, "refused violations could not be recorded");
            }
        }
    }
}

fn caller_of(governor: &Governor, peer: &Peer) -> Option<String> {
    let admission = Admission::of(&governor.standing().rules, peer.kernel(), None).ok()?;
    admission.name().map(str::to_owned)
}

/// Where the entry stands once it is sealed.
async fn write(sequencer: &Sequencer, step: Step) -> Option<Sequence> {
    match sequencer.perform(Event::Step(step)).await.ok()? {
        Outcome::Committed { commit, index, .. } => Some(commit.entries()[index].entry.sequence()),
        Outcome::Held { sequence, .. } => Some(sequence),
        Outcome::Earlier { .. } | Outcome::Refused(_) | Outcome::Governed(_) | Outcome::Unknown(_) => None,
    }
}

/// The entry of one offence, which is judged once more: the auditor does so at the entry's place.
fn first(offence: Offence, whole: bool) -> Step {
    Box::new(move |governor, policy, now| {
        let mut violation = offence.violation.clone();
        if offence.proposal_id.is_none() {
            let id = offence.draft.entry_id.unwrap_or_else(fresh_id);
            match governor.standing().attempt(&offence.draft, offence.peer.kernel(), id, now) {
                Err(Refused::Violation(now)) => violation = now,
                Err(refused) => return Err(refused),
                Ok(_) => return Err(Refusal::new(Code::ViolationReason).into()),
            }
        }
        let draft = draft(governor, &offence, violation.breach, 1, whole);
        Ok(policy.own_under(governor.standing().rules.label(), draft, fresh_id()))
    })
}

fn counted(offence: Offence, count: u64) -> Step {
    Box::new(move |governor, policy, _| {
        let draft = draft(governor, &offence, offence.violation.breach, count, false);
        Ok(policy.own_under(governor.standing().rules.label(), draft, fresh_id()))
    })
}

fn draft(governor: &Governor, offence: &Offence, breach: Breach, count: u64, whole: bool) -> Draft {
    let peer_json = named(offence.peer.to_json(), caller_of(governor, &offence.peer).as_deref());
    let payload = Attempt {
        peer_json: &peer_json,
        claimed_actor_id: offence.draft.actor_id.as_deref(),
        entry_id: offence.draft.entry_id,
        draft: &offence.draft,
        proposal_id: offence.proposal_id,
        count,
        whole,
    }
    .to_payload();
    let mut draft = Draft::own(EventType::Violation, EventCategory::Error, "system_violation", payload);
    draft.execution_status = ExecutionStatus::Blocked;
    draft.error_details = breach.error_details();
    draft
}
