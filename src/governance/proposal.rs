//! The life of a proposal: opened, decided on by approvers, and ended once.
//!
//! ```text
//!           approval.give, approval.reject (not blocking)
//!                  ┌──┐
//! proposal.open ─► open ─► sealed      the governed entry, before `expires_at`, with a quorum
//!                   ├────► rejected    approval.reject where the rules let one rejection block
//!                   ├────► withdrawn   proposal.withdraw
//!                   └────► expired     proposal.expire, from `expires_at` on
//! ```
//!
//! Every step is a ledger entry and time is the entries' own, so that the daemon rebuilds and the
//! auditor recomputes the same state. It reads no entries: that is [`super::governor`].

use std::collections::HashSet;

use super::Refusal;
use super::approval::{Approval, Decision, ProposalId, Subject};
use super::caller::{Admission, Peer};
use super::invariant::Quorum;
use super::rules::{Demand, InForce};
use crate::ledger::code::Code;
use crate::ledger::draft::Draft;
use crate::ledger::entry::EntryId;
use crate::ledger::timestamp::Timestamp;

/// How a proposal ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ending {
    /// It was carried out.
    Sealed,
    /// An approver said no.
    Rejected,
    /// Its proposer took it back.
    Withdrawn,
    /// Its time was over.
    Expired,
}

impl Ending {
    /// In a word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Ending::Sealed => "sealed",
            Ending::Rejected => "rejected",
            Ending::Withdrawn => "withdrawn",
            Ending::Expired => "expired",
        }
    }
}

/// A process and the actor it acted as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Party {
    /// The process, by the kernel's word.
    pub peer: Peer,
    /// The actor, where it is recorded.
    pub actor_id: Option<String>,
}

impl Party {
    /// Whether it is the approver that `rules` call `name`.
    fn is_approver(&self, name: &str, rules: &InForce) -> bool {
        let caller = rules.caller(&self.peer);
        rules.approver(name).is_some_and(|a| a.is_party(caller, self.peer.uid, self.actor_id.as_deref()))
    }
}

/// A decision that was recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Given {
    /// What was signed.
    pub approval: Approval,
    /// Yes or no.
    pub decision: Decision,
    /// The entry that records it.
    pub entry_id: EntryId,
    /// That entry's time.
    pub at: Timestamp,
}

/// A proposal that is open.
#[derive(Debug, Clone)]
pub struct Proposal {
    /// What approvers sign about it.
    pub subject: Subject,
    /// The entry that opened it.
    pub open_entry: EntryId,
    /// That entry's time.
    pub opened_at: Timestamp,
    /// What is proposed.
    pub draft: Draft,
    /// The rules in force when it was opened.
    pub rules: InForce,
    /// What they and the proposer ask.
    pub demand: Demand,
    /// Who proposed.
    pub proposer: Party,
    /// What was decided, in order.
    pub given: Vec<Given>,
}

impl Proposal {
    /// Its name.
    #[must_use]
    pub fn id(&self) -> ProposalId {
        self.subject.proposal_id
    }

    /// Whether an entry of time `at` comes too late for it.
    #[must_use]
    pub fn is_over(&self, at: Timestamp) -> bool {
        at >= self.subject.expires_at
    }

    /// Decides whether an approval (or rejection) that an entry of time `at` records counts.
    ///
    /// # Errors
    /// [`Code::ProposalExpired`], [`Code::ApproverTwice`], [`Code::ApprovalOwn`], or as
    /// [`Approval::verify`].
    pub fn decide(&self, approval: &Approval, at: Timestamp) -> Result<Decision, Refusal> {
        if self.is_over(at) {
            return Err(Refusal::new(Code::ProposalExpired));
        }
        let (approver, decision) = approval.verify(&self.subject, self.rules.approvers())?;
        if self.given.iter().any(|given| given.approval.signer == approver.name) {
            return Err(Refusal::new(Code::ApproverTwice).at("/signer"));
        }
        if self.proposer.is_approver(&approver.name, &self.rules) {
            return Err(Refusal::new(Code::ApprovalOwn).at("/signer").because("the approver proposed it"));
        }
        Ok(decision)
    }

    /// Records a decision that [`Proposal::decide`] let pass, and says whether it ends the proposal.
    #[must_use]
    pub fn record(&mut self, given: Given) -> Option<Ending> {
        let ends = given.decision == Decision::Reject && self.demand.rejection_blocks;
        self.given.push(given);
        ends.then_some(Ending::Rejected)
    }

    /// The approvals that count if `sealer` seals while `now` is in force: by approvers whom both
    /// sets of rules name with that key and role, and who neither propose nor seal.
    #[must_use]
    pub fn counted(&self, now: &InForce, sealer: &Party) -> Vec<&Given> {
        let mut keys = HashSet::new();
        let counts = |given: &&Given| {
            let approval = &given.approval;
            let still = now
                .approver(&approval.signer)
                .filter(|approver| approver.key.id() == approval.key_id && approver.role == approval.role);
            let is_own = |party: &Party| {
                party.is_approver(&approval.signer, &self.rules) || party.is_approver(&approval.signer, now)
            };
            given.decision == Decision::Approve
                && still.is_some_and(|approver| keys.insert(approver.key.point()))
                && !is_own(&self.proposer)
                && !is_own(sealer)
        };
        self.given.iter().filter(counts).collect()
    }

    /// What a seal has to satisfy: the rules at opening and those in force now.
    #[must_use]
    pub fn demand_now(&self, now: &InForce) -> Demand {
        let mut demand = self.demand.clone();
        demand.join(&now.demand(&self.draft.action_type));
        demand
    }

    /// The quorum for a seal by `sealer` while `now` is in force.
    #[must_use]
    pub fn quorum(&self, now: &InForce, sealer: &Party) -> Quorum {
        let counted = self.counted(now, sealer);
        let items: Vec<String> =
            counted.iter().map(|given| given.approval.to_canonical(Some(given.at))).collect();
        let roles: Vec<&str> = counted.iter().map(|given| given.approval.role.as_str()).collect();
        let demand = self.demand_now(now);
        let rejected =
            demand.rejection_blocks && self.given.iter().any(|given| given.decision == Decision::Reject);
        Quorum {
            received: format!("[{}]", items.join(",")).into(),
            met: !rejected && demand.is_met_by(&roles),
        }
    }

    /// What the sealed entry depends on: what the draft does, the opening, the approvals that count.
    #[must_use]
    pub fn dependencies(&self, now: &InForce, sealer: &Party) -> Vec<EntryId> {
        let mut ids = self.draft.dependencies.clone();
        ids.push(self.open_entry);
        ids.extend(self.counted(now, sealer).iter().map(|given| given.entry_id));
        ids
    }

    /// Whether `party` may withdraw it: its proposer, or somebody who administers.
    #[must_use]
    pub fn may_withdraw(&self, party: &Party, admission: &Admission<'_>) -> bool {
        let administers = admission.rule.is_some_and(|rule| rule.may(super::rules::Verb::Administer));
        let is_proposer = party.peer.uid == self.proposer.peer.uid
            && party.peer.caller == self.proposer.peer.caller
            && party.actor_id == self.proposer.actor_id;
        administers || is_proposer
    }
}
