//! The seven invariants, and the judgement of an event by them.
//!
//! An event that breaks one is not recorded as claimed: the caller gets a refusal, and the ledger
//! a VIOLATION entry of the daemon's, whose reason the auditor comes to again from the attempt.

use std::borrow::Cow;
use std::fmt;

use super::proof::{self, Context, Event, Provided};
use super::rules::{Demand, Object, Rules, text_array};
use crate::ledger::code::Code;
use crate::ledger::entry::{EventType, ExecutionStatus};
use crate::ledger::score::Score;
use crate::ledger::timestamp::Timestamp;

/// What holds of every entry. The number is part of the name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Invariant {
    /// 1: the attribution is what it was at the last boot.
    Attribution,
    /// 2: nothing scored under the floor claims SUCCESS.
    SafetyFloor,
    /// 3: a rollback had something to go back to, and is called one.
    Rollback,
    /// 4: what needs scores has all four.
    Pillars,
    /// 5: nothing but a violation or a blocked event happens outside state K1.
    K1State,
    /// 6: what needs approvals has them.
    Quorum,
    /// 7: the chain is whole.
    Chain,
}

impl Invariant {
    /// All seven, in order.
    pub const ALL: [Invariant; 7] = [
        Invariant::Attribution,
        Invariant::SafetyFloor,
        Invariant::Rollback,
        Invariant::Pillars,
        Invariant::K1State,
        Invariant::Quorum,
        Invariant::Chain,
    ];

    /// The name in `violated_invariant`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Invariant::Attribution => "INVARIANT_1_ATTRIBUTION",
            Invariant::SafetyFloor => "INVARIANT_2_SAFETY_FLOOR",
            Invariant::Rollback => "INVARIANT_3_ROLLBACK",
            Invariant::Pillars => "INVARIANT_4_PILLARS",
            Invariant::K1State => "INVARIANT_5_K1_STATE",
            Invariant::Quorum => "INVARIANT_6_QUORUM",
            Invariant::Chain => "INVARIANT_7_CHAIN",
        }
    }

    /// The one that a required built-in proof stands for.
    fn of_proof(kind: &str) -> Option<Self> {
        Some(match kind {
            "attribution_intact" => Invariant::Attribution,
            "safety_floor" => Invariant::SafetyFloor,
            "rollback" => Invariant::Rollback,
            "pillars" => Invariant::Pillars,
            "k1_state" => Invariant::K1State,
            "quorum" => Invariant::Quorum,
            "chain" => Invariant::Chain,
            _ => return None,
        })
    }
}

/// Which of the few ways an event was wrong in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Breach {
    /// An invariant.
    Invariant(Invariant),
    /// A required proof of a type that is not built in.
    Proof,
}

impl Breach {
    /// All eight.
    pub fn all() -> impl Iterator<Item = Breach> {
        Invariant::ALL.into_iter().map(Breach::Invariant).chain([Breach::Proof])
    }

    /// `violation_type`.
    #[must_use]
    pub fn violation_type(self) -> &'static str {
        match self {
            Breach::Invariant(Invariant::Attribution) => "attribution_not_verified",
            Breach::Invariant(Invariant::SafetyFloor) => "safety_floor_not_met",
            Breach::Invariant(Invariant::Rollback) => "rollback_not_sound",
            Breach::Invariant(Invariant::Pillars) => "pillars_missing",
            Breach::Invariant(Invariant::K1State) => "k1_state_left",
            Breach::Invariant(Invariant::Quorum) => "quorum_not_met",
            Breach::Invariant(Invariant::Chain) => "chain_broken",
            Breach::Proof => "required_proof_failed",
        }
    }

    /// `remediation`: what the caller could do instead.
    #[must_use]
    pub fn remediation(self) -> &'static str {
        match self {
            Breach::Invariant(Invariant::Attribution) => {
                "have an operator look at why the last boot did not verify the attribution"
            }
            Breach::Invariant(Invariant::SafetyFloor) => {
                "do not do it, and record it as BLOCKED; or raise the scores above the floor"
            }
            Breach::Invariant(Invariant::Rollback) => {
                "give the hash of a snapshot to go back to, and record a rollback as ROLLED_BACK"
            }
            Breach::Invariant(Invariant::Pillars) => "give all four pillar scores",
            Breach::Invariant(Invariant::K1State) => {
                "resolve the conflicts and return to state K1, or record the event as BLOCKED"
            }
            Breach::Invariant(Invariant::Quorum) => {
                "propose it, have it approved, and seal it with its outcome"
            }
            Breach::Invariant(Invariant::Chain) => "have an operator verify the ledger",
            Breach::Proof => "provide a valid proof by a prover that the rules name",
        }
    }

    /// The stable code of the refusal.
    #[must_use]
    pub fn code(self) -> Code {
        match self {
            Breach::Invariant(Invariant::Attribution) => Code::AttributionInvariant,
            Breach::Invariant(Invariant::SafetyFloor) => Code::SafetyFloorInvariant,
            Breach::Invariant(Invariant::Rollback) => Code::RollbackInvariant,
            Breach::Invariant(Invariant::Pillars) => Code::PillarsInvariant,
            Breach::Invariant(Invariant::K1State) => Code::K1StateInvariant,
            Breach::Invariant(Invariant::Quorum) => Code::QuorumInvariant,
            Breach::Invariant(Invariant::Chain) => Code::ChainInvariant,
            Breach::Proof => Code::ProofFailed,
        }
    }

    /// `error_details` of the VIOLATION entry.
    #[must_use]
    pub fn error_details(self) -> String {
        let mut out = Object::new();
        out.text("remediation", self.remediation());
        match self {
            Breach::Invariant(invariant) => out.text("violated_invariant", invariant.as_str()),
            Breach::Proof => out.raw("violated_invariant", "null"),
        }
        out.text("violation_type", self.violation_type());
        out.into_text()
    }
}

/// What an event broke, and how.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct Violation {
    /// Which.
    pub breach: Breach,
    /// RFC 6901 pointer into the event.
    pub pointer: &'static str,
    /// What was found.
    pub detail: String,
}

impl From<Violation> for super::Refusal {
    fn from(violation: Violation) -> Self {
        super::Refusal::new(violation.breach.code()).at(violation.pointer).because(&violation.detail)
    }
}

/// The approvals that an event has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quorum {
    /// The canonical array for `received_approvals`.
    pub received: Cow<'static, str>,
    /// Whether they are enough for all that is asked.
    pub met: bool,
}

impl Quorum {
    /// That of an event that came without a proposal.
    #[must_use]
    pub fn none(demand: &Demand) -> Self {
        Quorum { received: Cow::Borrowed("[]"), met: demand.approvals == 0 }
    }
}

/// The members that governance computes.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the members are documented in docs/format.md, once")]
pub struct Judged {
    pub required_proofs: Cow<'static, str>,
    pub provided_proofs: Cow<'static, str>,
    pub proofs_valid: bool,
    pub required_approvals: u32,
    pub received_approvals: Cow<'static, str>,
    pub quorum_met: bool,
    pub composite_score: Score,
    pub safety_floor_met: bool,
    /// The last moment at which the judgement still holds, where proofs or proposals expire: the
    /// entry's own timestamp must not be later.
    pub not_after: Option<Timestamp>,
}

/// Judges an event by `rules`. `demand` is all that is asked of it, by the rules and by whoever
/// made it.
///
/// # Errors
/// The [`Violation`] with the lowest number, an unnumbered one last.
pub fn judge(
    event: &Event<'_>,
    demand: &Demand,
    provided: Vec<Provided>,
    quorum: Quorum,
    rules: &Rules,
    context: &Context<'_>,
) -> Result<Judged, Violation> {
    let (judged, violation) = assess(event, demand, provided, quorum, rules, context);
    violation.map_or(Ok(judged), Err)
}

/// What the members of the event's entry would be, and what forbids that it is recorded.
pub(super) fn assess(
    event: &Event<'_>,
    demand: &Demand,
    provided: Vec<Provided>,
    quorum: Quorum,
    rules: &Rules,
    context: &Context<'_>,
) -> (Judged, Option<Violation>) {
    let (composite_score, safety_floor_met) = rules.scale().judge(event.pillars_scores);
    let decided = proof::decide(event, &demand.proofs, provided, quorum.met, rules, context);
    let success = event.execution_status == ExecutionStatus::Success;
    let blocked = event.execution_status == ExecutionStatus::Blocked;
    let mut found: Vec<Violation> = Vec::new();
    // Written out only where it is needed: this is judged for every event.
    let mut breaks = |wrong: bool, invariant, pointer, detail: fmt::Arguments<'_>| {
        if wrong {
            let detail = detail.to_string();
            found.push(Violation { breach: Breach::Invariant(invariant), pointer, detail });
        }
    };
    breaks(
        success && event.pillars_scores.is_some() && !safety_floor_met,
        Invariant::SafetyFloor,
        "/pillars_scores",
        format_args!(
            "claims SUCCESS with a composite score of {composite_score} under the floor of {}",
            rules.scale().floor
        ),
    );
    breaks(
        event.rollback_executed && event.rollback_snapshot_hash.is_none(),
        Invariant::Rollback,
        "/rollback_snapshot_hash",
        format_args!("a rollback was executed without a snapshot to go back to"),
    );
    breaks(
        event.rollback_executed && event.execution_status != ExecutionStatus::RolledBack,
        Invariant::Rollback,
        "/execution_status",
        format_args!("a rollback was executed, so the status must be ROLLED_BACK"),
    );
    let may_leave_k1 = blocked || event.event_type == EventType::Violation;
    breaks(
        event.k_state != 1 && !may_leave_k1,
        Invariant::K1State,
        "/k_state",
        format_args!("only a VIOLATION or a BLOCKED event may be in another state than K1"),
    );
    breaks(
        event.conflicts_detected != "[]" && !may_leave_k1,
        Invariant::K1State,
        "/conflicts_detected",
        format_args!("only a VIOLATION or a BLOCKED event may have conflicts"),
    );
    // What was blocked was not done, so nobody had to approve it.
    breaks(
        demand.approvals > 0 && !quorum.met && !blocked,
        Invariant::Quorum,
        "/action_type",
        format_args!("needs {} approvals, so it has to be proposed", demand.approvals),
    );
    if success {
        found.extend(decided.failed.iter().map(|(kind, reason)| Violation {
            breach: Invariant::of_proof(kind).map_or(Breach::Proof, Breach::Invariant),
            pointer: "/required_proofs",
            detail: format!("claims SUCCESS, but the required proof `{kind}` is not valid: {reason}"),
        }));
    }
    // Stable: of two with one number the one that was looked for first.
    let number = |violation: &Violation| match violation.breach {
        Breach::Invariant(invariant) => (0, Some(invariant)),
        Breach::Proof => (1, None),
    };
    let violation = found.into_iter().min_by_key(number);
    let judged = Judged {
        required_proofs: if demand.proofs.is_empty() {
            Cow::Borrowed("[]")
        } else {
            text_array(demand.proofs.iter().map(String::as_str)).into()
        },
        proofs_valid: decided.failed.is_empty(),
        provided_proofs: decided.text,
        required_approvals: demand.approvals,
        received_approvals: quorum.received,
        quorum_met: quorum.met,
        composite_score,
        safety_floor_met,
        not_after: decided.not_after,
    };
    (judged, violation)
}
