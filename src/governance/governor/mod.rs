//! Governance over time: folds entries in order, and judges each by what came before it.
//!
//! The daemon asks it what to write and lets it follow what was written; the auditor lets it follow
//! a ledger that somebody else wrote. Both go through [`Governor::follow`], so a ledger that the
//! daemon wrote is one that the auditor accepts, or both have the same fault. No stored flag is
//! believed: each is computed again and compared.
//!
//! It takes the form, hashes, signature and chain of an entry as checked ([`crate::audit`]).

mod follow;
#[cfg(test)]
mod tests;
mod violation;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

pub use follow::client_of;
pub use violation::Attempt;

use super::Refusal;
use super::approval::{Approval, Decision, ProposalId};
use super::caller::{Admission, Peer};
use super::invariant::{Judged, Quorum, Violation, assess, judge};
use super::keyring::{Change, Keyring};
use super::proof::{self, Context, Event, Provided};
use super::proposal::{Ending, Given, Party, Proposal};
use super::rules::{APPROVAL_BYTES, Demand, InForce, Object, Rules, Verb};
use crate::ledger::code::Code;
use crate::ledger::draft::{Draft, PROPOSABLE};
use crate::ledger::entry::{EntryId, EntryView, ExecutionStatus, Sequence};
use crate::ledger::hash::Digest;
use crate::ledger::json::{self, Place};
use crate::ledger::key::PublicKey;
use crate::ledger::timestamp::Timestamp;

/// Proposals that may be open at once: each holds its draft in memory, and nobody looks through more.
pub const MAX_OPEN: usize = 1_000;

/// What an opening adds to its draft in the `proposal.open` entry, with room to spare.
const OPENING_BYTES: usize = 8 << 10;

/// Why a client's request is not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It is malformed or not allowed. Nothing is recorded.
    #[error(transparent)]
    Plain(#[from] Refusal),
    /// It breaks an invariant, which a VIOLATION entry records.
    #[error(transparent)]
    Violation(#[from] Violation),
}

impl From<Refused> for Refusal {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Plain(refusal) => refusal,
            Refused::Violation(violation) => violation.into(),
        }
    }
}

/// What an event is judged by. Cheap to clone, so that many may judge while one follows.
#[derive(Debug, Clone)]
pub struct Standing {
    /// The ledger.
    pub origin: Arc<str>,
    /// The rules in force.
    pub rules: InForce,
    /// What the last BOOT entry says.
    pub attribution_verified: bool,
    /// The keys that sign the ledger, up to now.
    pub keys: Arc<Keyring>,
    /// Counts the changes of all this: what was judged under another generation has to be judged again.
    pub generation: u64,
}

/// What becomes of a client's event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ruling {
    /// `actor_id`.
    pub actor_id: String,
    /// `peer.caller`.
    pub caller: Option<String>,
    /// How many entries the caller may append in a second, where there is a limit.
    pub entries_per_second: Option<u32>,
    /// The members that governance computes.
    pub judged: Judged,
}

impl Standing {
    /// Judges an event that `peer` appends as the entry `id`, at about `now`.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn append(&self, draft: &Draft, peer: &Peer, id: EntryId, now: Timestamp) -> Result<Ruling, Refused> {
        let admission = Admission::of(&self.rules, peer, Some(Verb::Append))?;
        self.rule(draft, &admission, id, now)
    }

    /// Judges an event again that a VIOLATION entry is to record: one that `peer` wanted to append or
    /// to propose, which breaks the same.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn attempt(
        &self,
        draft: &Draft,
        peer: &Peer,
        id: EntryId,
        now: Timestamp,
    ) -> Result<Ruling, Refused> {
        let admission = Admission::of(&self.rules, peer, Some(Verb::Append))
            .or_else(|_| Admission::of(&self.rules, peer, Some(Verb::Propose)))?;
        self.rule(draft, &admission, id, now)
    }

    fn rule(
        &self,
        draft: &Draft,
        admission: &Admission<'_>,
        id: EntryId,
        now: Timestamp,
    ) -> Result<Ruling, Refused> {
        admission.check_kinds(draft.actor_type, draft.event_type)?;
        let actor_id = admission.actor_id(draft.actor_id.as_deref())?;
        let demand = self.demand(draft)?;
        let judged = judge(
            &Event::of_draft(draft, id),
            &demand,
            Provided::parse(&draft.provided_proofs)?,
            Quorum::none(&demand),
            &self.rules,
            &self.context(now, None),
        )?;
        let entries_per_second = admission.rule.and_then(|rule| rule.entries_per_second);
        Ok(Ruling { actor_id, caller: admission.name().map(str::to_owned), entries_per_second, judged })
    }

    /// All that is asked of what a draft says: by the rules and by itself.
    fn demand(&self, draft: &Draft) -> Result<Demand, Refusal> {
        let mut demand = self.rules.demand(&draft.action_type);
        demand.join(&asked(&draft.required_proofs, draft.required_approvals)?);
        Ok(demand)
    }

    fn context(&self, at: Timestamp, proposal_hash: Option<Digest>) -> Context<'_> {
        Context { origin: &self.origin, attribution_verified: self.attribution_verified, proposal_hash, at }
    }
}

fn asked(required_proofs: &str, approvals: u32) -> Result<Demand, Refusal> {
    Ok(Demand::asked(proof::required(required_proofs)?, approvals))
}

/// The outcome with which a proposal is sealed; the only members that a sealer sets.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the members are documented in docs/format.md, once")]
pub struct Outcome {
    pub execution_status: ExecutionStatus,
    pub result_data: String,
    pub error_details: String,
    pub rollback_executed: bool,
}

/// A proposal that may be sealed, and the entry that it becomes.
#[derive(Debug, Clone)]
pub struct Sealing {
    /// The draft with the outcome in it and, as `dependencies`, all that the entry depends on.
    /// `actor_id` is the proposer's, or `None` for an action that the daemon performs itself.
    pub draft: Draft,
    /// The members that governance computes.
    pub judged: Judged,
    /// `peer.caller` of the sealer.
    pub caller: Option<String>,
    /// The proposal.
    pub proposal_id: ProposalId,
    /// Whom the sealer acts as, where the daemon performs the action itself.
    pub sealer: Option<String>,
}

impl Sealing {
    /// The payload of an action that the daemon performs itself: what was approved, and who sealed
    /// it. `None` where the entry is the client's. `peer_json` is the sealer's, with its caller.
    #[must_use]
    pub fn payload(&self, peer_json: &str) -> Option<String> {
        let by = requested_by(self.sealer.as_deref()?, peer_json);
        let members = [
            ("proposal_id", format!("\"proposal_id\":\"{}\"", self.proposal_id)),
            ("requested_by", format!("\"requested_by\":{by}")),
        ];
        let mut payload = self.draft.action_payload.clone();
        for (name, member) in members {
            // An opening refuses payloads that have these names already.
            if let Place::Free(at) = json::place_of(&payload, name) {
                payload = json::insert_members(&payload, at, &member);
            }
        }
        Some(payload)
    }
}

/// What an entry changes.
enum Step {
    Nothing,
    Genesis { origin: String, rules: InForce, key: Option<PublicKey> },
    Boot { attribution_verified: bool },
    Rules(InForce),
    Key(Sequence, Change),
    Open(Box<Proposal>),
    Give(ProposalId, Box<Given>),
    End(ProposalId, Ending),
    Both(Box<Step>, Box<Step>),
}

/// The state of governance after some entry.
#[derive(Debug, Clone)]
pub struct Governor {
    standing: Standing,
    open: BTreeMap<ProposalId, Proposal>,
    /// Of what has ended only this is kept.
    ended: HashMap<ProposalId, Ending>,
}

impl Default for Governor {
    fn default() -> Self {
        Self::new()
    }
}

// What the daemon asks before it writes.
impl Governor {
    /// Before the first entry.
    #[must_use]
    pub fn new() -> Self {
        let standing = Standing {
            origin: "".into(),
            rules: InForce::default(),
            attribution_verified: false,
            keys: Arc::default(),
            generation: 0,
        };
        Governor { standing, open: BTreeMap::new(), ended: HashMap::new() }
    }

    /// What events are judged by now.
    #[must_use]
    pub fn standing(&self) -> &Standing {
        &self.standing
    }

    /// The proposals that are open, by id.
    pub fn open_proposals(&self) -> impl Iterator<Item = &Proposal> {
        self.open.values()
    }

    /// A proposal that is open.
    ///
    /// # Errors
    /// [`Code::ProposalClosed`] or [`Code::ProposalUnknown`].
    pub fn proposal(&self, id: ProposalId) -> Result<&Proposal, Refusal> {
        match (self.open.get(&id), self.ended.get(&id)) {
            (Some(proposal), _) => Ok(proposal),
            (None, Some(ending)) => Err(Refusal::new(Code::ProposalClosed)
                .because(&format!("the proposal was {} already", ending.as_str()))),
            (None, None) => Err(Refusal::new(Code::ProposalUnknown)),
        }
    }

    /// How a proposal ended, if it has.
    #[must_use]
    pub fn ending(&self, id: ProposalId) -> Option<Ending> {
        self.ended.get(&id).copied()
    }

    /// The proposals whose time is over at `now`, for `proposal.expire` entries.
    pub fn expired(&self, now: Timestamp) -> impl Iterator<Item = ProposalId> + '_ {
        self.open.values().filter(move |proposal| proposal.is_over(now)).map(Proposal::id)
    }

    /// Whether `entry` may change the state, so that the next one must wait for it to be followed.
    #[must_use]
    pub fn concerns(entry: &EntryView<'_>) -> bool {
        entry.is_daemons() || entry.received_approvals != "[]"
    }

    /// Whether `entry` is of a kind that changes the state, so that the state can be built from those
    /// entries alone.
    #[must_use]
    pub fn changes(entry: &EntryView<'_>) -> bool {
        const KINDS: [&str; 7] = [
            "ledger.genesis",
            "system_initialization",
            "rules.",
            "key.",
            "proposal.",
            "approval.",
            "signature.",
        ];
        entry.received_approvals != "[]"
            || (KINDS.iter().any(|kind| entry.action_type.starts_with(kind)) && entry.is_daemons())
    }

    /// Whether rules that were read may become those in force: that no key of theirs is the ledger's.
    ///
    /// # Errors
    /// [`Code::RulesSharedKey`].
    pub fn check_rules(&self, rules: &Rules) -> Result<(), super::rules::Fault> {
        rules.check_ledger_keys(&self.standing.keys.keys())
    }

    /// Whether the daemon may perform `action_type` of its own accord or at an administrator's word;
    /// else it has to be proposed.
    #[must_use]
    pub fn may_perform(&self, action_type: &str) -> bool {
        let demand = self.standing.rules.demand(action_type);
        demand.approvals == 0 && demand.proofs.is_empty()
    }

    /// The payload of a `rules.set` entry that needs no proposal. `by` is the actor id and the
    /// canonical peer, with its caller, of whoever asked for it.
    #[must_use]
    pub fn set_rules(rules: Option<&Rules>, by: Option<(&str, &str)>) -> String {
        let mut out = Object::new();
        if let Some((actor_id, peer_json)) = by {
            out.raw("requested_by", &requested_by(actor_id, peer_json));
        }
        out.raw("rules", &rules.map_or_else(|| "null".into(), Rules::to_canonical));
        out.into_text()
    }

    /// The payload of the `proposal.open` entry for what `peer` proposes. `peer_json` is the
    /// canonical object, with `caller` filled in.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn open(
        &self,
        mut draft: Draft,
        peer: &Peer,
        peer_json: &str,
        id: ProposalId,
        now: Timestamp,
        max_entry_bytes: usize,
    ) -> Result<String, Refused> {
        if self.open.len() >= MAX_OPEN {
            let detail = format!("{MAX_OPEN} proposals are open: wait until some are sealed or expire");
            return Err(Refusal::new(Code::Busy).because(&detail).into());
        }
        let admission = Admission::of(&self.standing.rules, peer, Some(Verb::Propose))?;
        let actor_id = admission.actor_id(draft.actor_id.as_deref())?;
        draft.actor_id = Some(actor_id.clone());
        let demand = self.standing.demand(&draft)?;
        let lifetime = i64::from(demand.lifetime_seconds) * 1_000_000;
        let expires_at = Timestamp::from_micros(now.as_micros().saturating_add(lifetime));
        let text = draft.to_canonical();
        let room = text.len() + OPENING_BYTES + demand.approvals as usize * APPROVAL_BYTES;
        if room > max_entry_bytes {
            let detail = format!(
                "with its approvals the entry could take {room} bytes; the limit is {max_entry_bytes}"
            );
            return Err(Refusal::new(Code::EntryTooLarge).because(&detail).into());
        }
        let party = Party { peer: peer.clone(), actor_id: Some(actor_id.clone()) };
        self.check_opening(&draft, &party, now)?;
        let mut out = Object::new();
        out.raw("draft", &text);
        out.text("expires_at", &expires_at.to_string());
        out.text("proposal_id", &id.to_string());
        out.raw("requested_by", &requested_by(&actor_id, peer_json));
        out.text("rules_hash", self.standing.rules.label());
        Ok(out.into_text())
    }

    /// The `action_type` and payload of the entry for a signature that `peer` brings: `approval.give`
    /// or `approval.reject`, as was signed.
    ///
    /// # Errors
    /// As [`Governor::proposal`], [`Approval::of`] and [`Proposal::decide`].
    pub fn decide(
        &self,
        id: ProposalId,
        statement: &str,
        signature: &str,
        peer: &Peer,
        peer_json: &str,
        now: Timestamp,
    ) -> Result<(&'static str, String), Refusal> {
        let actor_id = self.any_actor(peer)?;
        let proposal = self.proposal(id)?;
        let approval = Approval::of(statement, signature, proposal.rules.approvers())?;
        let decision = proposal.decide(&approval, now)?;
        let mut out = Object::new();
        out.raw("approval", &approval.to_canonical(None));
        out.text("proposal_id", &id.to_string());
        out.raw("requested_by", &requested_by(&actor_id, peer_json));
        Ok((decision_entry(decision), out.into_text()))
    }

    /// The payload of the `proposal.withdraw` entry.
    ///
    /// # Errors
    /// As [`Governor::proposal`]; [`Code::CallerNotAllowed`], [`Code::ProposalExpired`].
    pub fn withdraw(
        &self,
        id: ProposalId,
        reason: &str,
        claimed: Option<&str>,
        peer: &Peer,
        peer_json: &str,
        now: Timestamp,
    ) -> Result<String, Refusal> {
        let admission = Admission::of(&self.standing.rules, peer, None)?;
        let actor_id = admission.actor_id(claimed)?;
        let proposal = self.proposal(id)?;
        let mut peer = peer.clone();
        peer.caller = admission.name().map(str::to_owned);
        let party = Party { peer: peer.clone(), actor_id: Some(actor_id.clone()) };
        check_withdrawal(proposal, &party, &Admission { peer: &peer, rule: admission.rule }, now)?;
        let mut out = Object::new();
        out.text("proposal_id", &id.to_string());
        out.text("reason", reason);
        out.raw("requested_by", &requested_by(&actor_id, peer_json));
        Ok(out.into_text())
    }

    /// The payload of the `proposal.expire` entry.
    #[must_use]
    pub fn expire(id: ProposalId) -> String {
        let mut out = Object::new();
        out.text("proposal_id", &id.to_string());
        out.text("reason", "its time is over");
        out.into_text()
    }

    /// The entry that a proposal becomes when `peer` seals it with `outcome`.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn seal(
        &self,
        id: ProposalId,
        outcome: Outcome,
        claimed: Option<&str>,
        peer: &Peer,
        fresh: EntryId,
        now: Timestamp,
    ) -> Result<Sealing, Refused> {
        let admission = Admission::of(&self.standing.rules, peer, Some(Verb::Seal))?;
        let proposal = self.proposal(id)?;
        if proposal.is_over(now) {
            return Err(Refusal::new(Code::ProposalExpired).into());
        }
        let mut draft = proposal.draft.clone();
        draft.execution_status = outcome.execution_status;
        draft.result_data = outcome.result_data;
        draft.error_details = outcome.error_details;
        draft.rollback_executed = outcome.rollback_executed;
        let performed = PROPOSABLE.contains(&draft.action_type.as_str());
        if performed && draft.execution_status != ExecutionStatus::Success {
            return Err(Refusal::new(Code::WrongValue)
                .at("/execution_status")
                .because("the daemon performs it itself: it is sealed as SUCCESS, or withdrawn")
                .into());
        }
        // Only where the daemon performs the action does its entry say as whom the sealer acted.
        let actor_id = if performed { Some(admission.actor_id(claimed)?) } else { None };
        let sealer = Party { peer: peer.clone(), actor_id };
        let event = Event::of_draft(&draft, draft.entry_id.unwrap_or(fresh));
        let mut judged = self.judge_seal(proposal, &sealer, &event, &draft.provided_proofs, now)?;
        // Its approvals are what shows an entry to be a seal.
        if !performed && judged.received_approvals == "[]" {
            return Err(Refusal::new(Code::QuorumInvariant)
                .because("nobody whose word counts has approved it: withdraw it instead")
                .into());
        }
        let last = Timestamp::from_micros(proposal.subject.expires_at.as_micros() - 1);
        judged.not_after = judged.not_after.map_or(Some(last), |at| Some(at.min(last)));
        draft.dependencies = proposal.dependencies(&self.standing.rules, &sealer);
        if performed {
            draft.actor_id = None;
        }
        Ok(Sealing {
            draft,
            judged,
            caller: admission.name().map(str::to_owned),
            proposal_id: id,
            sealer: sealer.actor_id,
        })
    }

    fn judge_seal(
        &self,
        proposal: &Proposal,
        sealer: &Party,
        event: &Event<'_>,
        provided: &str,
        at: Timestamp,
    ) -> Result<Judged, Refused> {
        let (judged, violation) = self.assess_seal(proposal, sealer, event, provided, at)?;
        violation.map_or(Ok(judged), |violation| Err(violation.into()))
    }

    /// Judges by the rules in force; what the rules at opening forbid is forbidden too.
    fn assess_seal(
        &self,
        proposal: &Proposal,
        sealer: &Party,
        event: &Event<'_>,
        provided: &str,
        at: Timestamp,
    ) -> Result<(Judged, Option<Violation>), Refusal> {
        let rules = &self.standing.rules;
        let quorum = proposal.quorum(rules, sealer);
        let context = self.standing.context(at, Some(proposal.subject.proposal_hash));
        let provided = Provided::parse(provided)?;
        let opening =
            judge(event, &proposal.demand, provided.clone(), quorum.clone(), &proposal.rules, &context);
        let (judged, violation) =
            assess(event, &proposal.demand_now(rules), provided, quorum, rules, &context);
        Ok((judged, violation.or(opening.err())))
    }

    /// The actor for an act that carries somebody else's signature: the caller needs no verb, and no
    /// name where the rules leave it several.
    fn any_actor(&self, peer: &Peer) -> Result<String, Refusal> {
        Ok(unnamed_actor(&Admission::of(&self.standing.rules, peer, None)?))
    }
}

/// The actor of a caller that names none.
fn unnamed_actor(admission: &Admission<'_>) -> String {
    admission.actor_id(None).unwrap_or_else(|_| format!("uid:{}", admission.peer.uid))
}

/// The member `requested_by` of what a caller had the daemon write: as whom it acted, and its canonical
/// `peer` with its caller.
#[must_use]
pub fn requested_by(actor_id: &str, peer_json: &str) -> String {
    let mut out = Object::new();
    out.text("actor_id", actor_id);
    out.raw("peer", peer_json);
    out.into_text()
}

fn decision_entry(decision: Decision) -> &'static str {
    match decision {
        Decision::Approve => "approval.give",
        Decision::Reject => "approval.reject",
    }
}

fn check_withdrawal(
    proposal: &Proposal,
    party: &Party,
    admission: &Admission<'_>,
    at: Timestamp,
) -> Result<(), Refusal> {
    if proposal.is_over(at) {
        return Err(Refusal::new(Code::ProposalExpired));
    }
    if proposal.may_withdraw(party, admission) {
        Ok(())
    } else {
        Err(Refusal::new(Code::CallerNotAllowed)
            .because("a proposal is withdrawn by its proposer, or by somebody who administers"))
    }
}

/// The rules in a payload, `null` being the default.
fn read_rules(value: &str, keys: &[PublicKey], pointer: &str) -> Result<InForce, Refusal> {
    if value == "null" {
        return Ok(InForce::default());
    }
    let read = Rules::from_canonical(value).and_then(|rules| rules.check_ledger_keys(keys).map(|()| rules));
    match read {
        Ok(rules) => Ok(InForce::new(Some(rules))),
        Err(fault) => {
            Err(Refusal::new(fault.code).at(format!("{pointer}{}", fault.pointer)).because(&fault.detail))
        }
    }
}

/// A canonical object without the members whose names `drop` says.
fn without(object: &str, drop: impl Fn(&str) -> bool) -> String {
    let kept: Vec<&str> = json::members(object)
        .filter(|(start, name_end, _)| !drop(&json::unquote(&object.as_bytes()[*start..*name_end])))
        .map(|(start, _, end)| &object[start..end])
        .collect();
    format!("{{{}}}", kept.join(","))
}

/// The values of a canonical object that has exactly the members `names`, in canonical order.
fn exactly<'a, const N: usize>(object: &'a str, names: [&str; N]) -> Option<[&'a str; N]> {
    let mut members = object.starts_with('{').then(|| json::members(object))?;
    let mut values = [""; N];
    for (value, name) in values.iter_mut().zip(names) {
        let (start, name_end, end) = members.next()?;
        if &object[start + 1..name_end - 1] != name {
            return None;
        }
        *value = &object[name_end + 1..end];
    }
    if members.next().is_some() { None } else { Some(values) }
}

pub(super) fn member<'a>(object: &'a str, name: &str) -> Option<&'a str> {
    object.starts_with('{').then(|| json::member(object, name))?
}

pub(super) fn text(object: &str, name: &str) -> Option<String> {
    string(member(object, name)?)
}

fn string(value: &str) -> Option<String> {
    value.starts_with('"').then(|| json::unquote(value.as_bytes()))
}

fn member_id(object: &str, name: &str) -> Option<EntryId> {
    EntryId::parse(&text(object, name)?)
}

fn proposal_id(value: &str) -> Result<ProposalId, Refusal> {
    string(value)
        .and_then(|text| EntryId::parse(&text))
        .map(ProposalId)
        .ok_or_else(|| Refusal::new(Code::ProposalMalformed).at("/action_payload/proposal_id"))
}
