//! Governance over time: folds entries in order, and judges each by what came before it.
//!
//! The daemon asks it what to write and lets it follow what was written; the auditor lets it follow
//! a ledger that somebody else wrote. Both go through [`Governor::follow`], so a ledger that the
//! daemon wrote is one that the auditor accepts, or both have the same fault. No stored flag is
//! believed: each is computed again and compared.
//!
//! It takes the form, hashes, signature and chain of an entry as checked ([`crate::audit`]).

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::Refusal;
use super::approval::{Approval, Decision, ProposalId, Subject};
use super::caller::{Admission, Peer};
use super::invariant::{Breach, Judged, Quorum, Violation, assess, judge};
use super::proof::{self, Context, Event, Provided};
use super::proposal::{Ending, Given, Party, Proposal};
use super::rules::{APPROVAL_BYTES, BUILT_IN_PROOFS, Demand, InForce, Object, Rules, Verb};
use crate::ledger::code::Code;
use crate::ledger::draft::{Draft, PROPOSABLE};
use crate::ledger::entry::{
    ActorType, DAEMON_ACTOR, EntryId, EntryView, EventType, ExecutionStatus, Sequence,
    is_reserved_action_type,
};
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
}

/// What becomes of a client's event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ruling {
    /// `actor_id`.
    pub actor_id: String,
    /// `peer.caller`.
    pub caller: Option<String>,
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
        Ok(Ruling { actor_id, caller: admission.name().map(str::to_owned), judged })
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
    Key(Option<PublicKey>),
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
    /// Every key that the ledger has had, which no approver may have.
    keys: Vec<PublicKey>,
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
        let standing = Standing { origin: "".into(), rules: InForce::default(), attribution_verified: false };
        Governor { standing, open: BTreeMap::new(), ended: HashMap::new(), keys: Vec::new() }
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
        out.text("rules_hash", &self.standing.rules.label());
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
        // Only where the daemon performs the action does its entry say as whom the sealer acted.
        let actor_id = if performed { Some(admission.actor_id(claimed)?) } else { None };
        let sealer = Party { peer: peer.clone(), actor_id };
        let event = Event::of_draft(&draft, draft.entry_id.unwrap_or(fresh));
        let mut judged = self.judge_seal(proposal, &sealer, &event, &draft.provided_proofs, now)?;
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
        let admission = Admission::of(&self.standing.rules, peer, None)?;
        Ok(admission.actor_id(None).unwrap_or_else(|_| format!("uid:{}", peer.uid)))
    }
}

fn requested_by(actor_id: &str, peer_json: &str) -> String {
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

/// An attempt that broke an invariant, for the VIOLATION entry of the daemon.
#[derive(Debug, Clone)]
pub struct Attempt<'a> {
    /// The offender's canonical `peer`.
    pub peer_json: &'a str,
    /// Whom it claimed to be.
    pub claimed_actor_id: Option<&'a str>,
    /// The id that it gave.
    pub entry_id: Option<EntryId>,
    /// What it asked for.
    pub draft: &'a Draft,
    /// The proposal, where it tried to seal one.
    pub proposal_id: Option<ProposalId>,
    /// How many attempts the entry stands for.
    pub count: u64,
    /// Whether the attempt itself stands in the entry, or its hash alone.
    pub whole: bool,
}

impl Attempt<'_> {
    /// `action_payload` of the `system_violation` entry; `error_details` is
    /// [`Breach::error_details`].
    #[must_use]
    pub fn to_payload(&self) -> String {
        let attempt = self.draft.to_canonical();
        let mut out = Object::new();
        out.raw("attempt", if self.whole { &attempt } else { "null" });
        out.text("attempt_hash", &Digest::of(attempt.as_bytes()).to_hex());
        let or_null = |out: &mut Object, name: &str, value: Option<String>| match value {
            Some(value) => out.text(name, &value),
            None => out.raw(name, "null"),
        };
        or_null(&mut out, "attempted_entry_id", self.entry_id.map(|id| id.to_string()));
        or_null(&mut out, "claimed_actor_id", self.claimed_actor_id.map(str::to_owned));
        out.raw("count", &self.count.to_string());
        out.raw("peer", self.peer_json);
        or_null(&mut out, "proposal_id", self.proposal_id.map(|id| id.to_string()));
        out.into_text()
    }
}

// What was written.
impl Governor {
    /// Judges `entry` by what came before it and takes over what it changes. On an error nothing
    /// is changed.
    ///
    /// Only entries for which [`Governor::concerns`] holds change anything, so a state can be built
    /// from those alone.
    ///
    /// # Errors
    /// The first [`Refusal`]; its pointer leads into the entry.
    pub fn follow(&mut self, entry: &EntryView<'_>) -> Result<(), Refusal> {
        let step = self.check(entry)?;
        self.take(step);
        Ok(())
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Nothing => {}
            Step::Genesis { origin, rules, key } => {
                self.standing.origin = origin.into();
                self.standing.rules = rules;
                self.keys.extend(key);
            }
            Step::Boot { attribution_verified } => self.standing.attribution_verified = attribution_verified,
            Step::Rules(rules) => self.standing.rules = rules,
            Step::Key(key) => self.keys.extend(key),
            Step::Open(proposal) => drop(self.open.insert(proposal.id(), *proposal)),
            Step::Give(id, given) => {
                let ending = self.open.get_mut(&id).and_then(|proposal| proposal.record(*given));
                if let Some(ending) = ending {
                    self.take(Step::End(id, ending));
                }
            }
            Step::End(id, ending) => {
                self.open.remove(&id);
                self.ended.insert(id, ending);
            }
            Step::Both(first, second) => {
                self.take(*first);
                self.take(*second);
            }
        }
    }

    fn check(&self, entry: &EntryView<'_>) -> Result<Step, Refusal> {
        let mut label = Vec::new();
        json::write_string(&self.standing.rules.label(), &mut label);
        match json::member(entry.environment, "attestd.rules") {
            None => return Err(Refusal::new(Code::MissingMember).at("/environment/attestd.rules")),
            Some(named) if named.as_bytes() != label => {
                return Err(Refusal::new(Code::RulesInForce).at("/environment/attestd.rules"));
            }
            Some(_) => {}
        }
        if entry.is_daemons() { self.check_own(entry) } else { self.check_clients(entry) }
    }

    fn check_clients(&self, entry: &EntryView<'_>) -> Result<Step, Refusal> {
        let Some(peer) = json::member(entry.actor_context, "peer") else {
            return Err(Refusal::new(Code::PeerMissing).at("/actor_context/peer"));
        };
        let peer = Peer::parse(peer).map_err(|refusal| refusal.below("/actor_context/peer"))?;
        if entry.event_type.is_reserved() {
            return Err(Refusal::new(Code::ReservedByClient).at("/event_type"));
        }
        if is_reserved_action_type(entry.action_type) {
            return Err(Refusal::new(Code::ReservedByClient).at("/action_type"));
        }
        if entry.actor_id == DAEMON_ACTOR {
            return Err(Refusal::new(Code::ReservedByClient).at("/actor_id"));
        }
        if entry.received_approvals != "[]" {
            let id = self.proposal_of(entry.received_approvals)?;
            self.check_seal(entry, id, &Party { peer, actor_id: None }, "/actor_context/peer")?;
            return Ok(Step::End(id, Ending::Sealed));
        }
        let admission = self.admit(&peer, Some(Verb::Append), "/actor_context/peer")?;
        admission.check_kinds(entry.actor_type, entry.event_type)?;
        admission.check_actor_id(&entry.actor_id)?;
        let rules = &self.standing.rules;
        let demand = rules.demand(entry.action_type);
        check_asked(entry, &demand)?;
        self.check_judged(entry, demand)?;
        Ok(Step::Nothing)
    }

    /// The caller that `peer` is, which must be the one that it says.
    fn admit<'a>(
        &'a self,
        peer: &'a Peer,
        verb: Option<Verb>,
        pointer: &str,
    ) -> Result<Admission<'a>, Refusal> {
        let admission =
            Admission::of(&self.standing.rules, peer, verb).map_err(|refusal| refusal.at(pointer))?;
        if admission.name() != peer.caller.as_deref() {
            let detail = format!("the rules make it {}", admission.name().unwrap_or("no caller"));
            return Err(Refusal::new(Code::CallerRule).at(format!("{pointer}/caller")).because(&detail));
        }
        Ok(admission)
    }

    /// Judges an entry that came without a proposal. What it asks beyond `demand` is its own.
    fn check_judged(&self, entry: &EntryView<'_>, mut demand: Demand) -> Result<(), Refusal> {
        demand.join(&asked(entry.required_proofs, entry.required_approvals)?);
        let quorum = Quorum::none(&demand);
        let (judged, violation) = assess(
            &Event::of_entry(entry),
            &demand,
            Provided::parse(entry.provided_proofs)?,
            quorum,
            &self.standing.rules,
            &self.standing.context(entry.timestamp, None),
        );
        compare(entry, &judged)?;
        violation.map_or(Ok(()), |violation| Err(violation.into()))
    }

    /// Checks that `entry` is what the proposal `id` becomes when `sealer` seals it.
    fn check_seal(
        &self,
        entry: &EntryView<'_>,
        id: ProposalId,
        sealer: &Party,
        pointer: &str,
    ) -> Result<(), Refusal> {
        self.admit(&sealer.peer, Some(Verb::Seal), pointer)?;
        let proposal = self.proposal(id)?;
        if proposal.is_over(entry.timestamp) {
            return Err(Refusal::new(Code::ProposalExpired).at("/timestamp"));
        }
        check_drafted(entry, &proposal.draft)?;
        let rules = &self.standing.rules;
        let quorum = proposal.quorum(rules, sealer);
        if quorum.received != entry.received_approvals {
            return Err(self.diagnose_received(entry.received_approvals, proposal, sealer));
        }
        if *entry.dependencies != *proposal.dependencies(rules, sealer) {
            return Err(Refusal::new(Code::ProposalDraft)
                .at("/dependencies")
                .because("must be those of the draft, the opening, and the approvals that count"));
        }
        check_asked(entry, &proposal.demand_now(rules))?;
        let event = Event::of_entry(entry);
        let provided = &proposal.draft.provided_proofs;
        let (judged, violation) = self.assess_seal(proposal, sealer, &event, provided, entry.timestamp)?;
        compare(entry, &judged)?;
        violation.map_or(Ok(()), |violation| Err(violation.into()))
    }

    /// The proposal whose approvals these are, by the first of them.
    fn proposal_of(&self, received: &str) -> Result<ProposalId, Refusal> {
        let malformed = || Refusal::new(Code::ApprovalMalformed).at("/received_approvals/0");
        let first = json::elements(received).next().filter(|item| item.starts_with('{'));
        let statement = first
            .and_then(|item| json::member(item, "statement"))
            .map(|text| json::unquote(text.as_bytes()))
            .filter(|text| text.starts_with('{') && json::canonicalize(text.as_bytes()).is_ok())
            .ok_or_else(malformed)?;
        member_id(&statement, "proposal_id").map(ProposalId).ok_or_else(malformed)
    }

    /// Why approvals that an entry received are not those that the ledger holds.
    fn diagnose_received(&self, received: &str, proposal: &Proposal, sealer: &Party) -> Refusal {
        let mut signers: Vec<String> = Vec::new();
        for (index, item) in json::elements(received).enumerate() {
            let at = format!("/received_approvals/{index}");
            // Without its last member, the time, the item is an approval.
            let approval = json::member(item, "timestamp")
                .and_then(|time| item.strip_suffix(&format!(",\"timestamp\":{time}}}")))
                .map(|rest| format!("{rest}}}"));
            let verdict = match approval.map(|text| Approval::parse(&text)) {
                None => Err(Refusal::new(Code::ApprovalMalformed)),
                Some(Err(refusal)) => Err(refusal),
                Some(Ok(approval)) => approval
                    .verify(&proposal.subject, proposal.rules.approvers())
                    .map(|(approver, _)| approver.name.clone()),
            };
            match verdict {
                Err(refusal) => return refusal.below(&at),
                Ok(signer) if signers.contains(&signer) => {
                    return Refusal::new(Code::ApproverTwice).at(at);
                }
                Ok(signer) => signers.push(signer),
            }
        }
        let counted = proposal.counted(&self.standing.rules, sealer);
        let strange = signers.iter().position(|signer| {
            let given = proposal.given.iter().any(|given| given.approval.signer == *signer);
            given && !counted.iter().any(|given| given.approval.signer == *signer)
        });
        match strange {
            Some(index) => Refusal::new(Code::ApprovalOwn)
                .at(format!("/received_approvals/{index}"))
                .because("the approver seals it, or is no longer named by the rules"),
            None => Refusal::new(Code::ReceivedApprovals)
                .at("/received_approvals")
                .because("must be the approvals that the ledger holds and that count, in order"),
        }
    }

    fn check_own(&self, entry: &EntryView<'_>) -> Result<Step, Refusal> {
        let payload = entry.action_payload;
        let of_type = |event_type: EventType| {
            if entry.event_type == event_type {
                Ok(())
            } else {
                Err(Refusal::new(Code::WrongValue)
                    .at("/event_type")
                    .because(&format!("must be {event_type}")))
            }
        };
        match entry.action_type {
            "rules.set" | "key.rotate" | "key.revoke" | "signature.mode" => {
                of_type(EventType::Change)?;
                return self.check_performed(entry);
            }
            _ => self.check_ungoverned(entry)?,
        }
        match entry.action_type {
            "ledger.genesis" => self.check_genesis(entry),
            "system_initialization" => {
                let attribution_verified = json::member(payload, "attribution_verified") == Some("true");
                Ok(Step::Boot { attribution_verified })
            }
            "system_violation" => {
                of_type(EventType::Violation)?;
                self.check_violation(entry)?;
                Ok(Step::Nothing)
            }
            "proposal.open" => of_type(EventType::Decision).and_then(|()| self.check_open(entry)),
            "approval.give" | "approval.reject" => {
                of_type(EventType::Decision).and_then(|()| self.check_given(entry))
            }
            "proposal.withdraw" => of_type(EventType::Decision).and_then(|()| self.check_withdraw(entry)),
            "proposal.expire" => of_type(EventType::Decision).and_then(|()| self.check_expire(entry)),
            other
                if other.starts_with("proposal.")
                    || other.starts_with("approval.")
                    || other.starts_with("rules.") =>
            {
                Err(Refusal::new(Code::GovernanceUnavailable)
                    .at("/action_type")
                    .because("this program knows no such step of governance"))
            }
            _ => Ok(Step::Nothing),
        }
    }

    /// The daemon's own entries need nothing and have nothing.
    fn check_ungoverned(&self, entry: &EntryView<'_>) -> Result<(), Refusal> {
        if entry.required_proofs != "[]" || entry.provided_proofs != "[]" {
            return Err(Refusal::new(Code::ProvidedProofs)
                .at("/provided_proofs")
                .because("an entry of the daemon's own has no proofs"));
        }
        self.check_judged(entry, Demand::default())
    }

    fn check_genesis(&self, entry: &EntryView<'_>) -> Result<Step, Refusal> {
        if entry.sequence_number != Sequence(0) {
            return Err(Refusal::new(Code::Genesis)
                .at("/action_type")
                .because("a genesis that is not entry 0"));
        }
        let payload = entry.action_payload;
        let pointer = "/action_payload/rules";
        let rules = member(payload, "rules").ok_or_else(|| Refusal::new(Code::Genesis).at(pointer))?;
        let key = text(payload, "public_key_pem").and_then(|pem| PublicKey::from_pem(&pem).ok());
        let keys: Vec<PublicKey> = key.iter().cloned().collect();
        Ok(Step::Genesis {
            origin: text(payload, "origin")
                .ok_or_else(|| Refusal::new(Code::Genesis).at("/action_payload/origin"))?,
            rules: read_rules(rules, &keys, pointer)?,
            key,
        })
    }

    /// An action that the daemon performs, of its own (no approval is demanded then) or because a
    /// proposal was sealed.
    fn check_performed(&self, entry: &EntryView<'_>) -> Result<Step, Refusal> {
        let payload = entry.action_payload;
        let requested_by = member(payload, "requested_by").map(|by| self.party(by)).transpose()?;
        let step = match entry.action_type {
            "rules.set" => {
                let pointer = "/action_payload/rules";
                let rules =
                    member(payload, "rules").ok_or_else(|| Refusal::new(Code::MissingMember).at(pointer))?;
                Step::Rules(read_rules(rules, &self.keys, pointer)?)
            }
            "key.rotate" => {
                Step::Key(text(payload, "public_key_pem").and_then(|pem| PublicKey::from_pem(&pem).ok()))
            }
            _ => Step::Nothing,
        };
        let Some(proposal) = member(payload, "proposal_id").filter(|value| *value != "null") else {
            if let Some(party) = &requested_by {
                self.admit(&party.peer, Some(Verb::Administer), "/action_payload/requested_by/peer")?;
            }
            if entry.received_approvals != "[]" {
                return Err(Refusal::new(Code::ReceivedApprovals)
                    .at("/received_approvals")
                    .because("approvals without a proposal"));
            }
            let demand = self.standing.rules.demand(entry.action_type);
            check_asked(entry, &demand)?;
            self.check_judged(entry, demand)?;
            return Ok(step);
        };
        let pointer = "/action_payload/proposal_id";
        let id = EntryId::parse(&json::unquote(proposal.as_bytes()))
            .map(ProposalId)
            .ok_or_else(|| Refusal::new(Code::WrongValue).at(pointer))?;
        let sealer = requested_by
            .ok_or_else(|| Refusal::new(Code::MissingMember).at("/action_payload/requested_by"))?;
        self.check_seal(entry, id, &sealer, "/action_payload/requested_by/peer")?;
        Ok(Step::Both(Box::new(step), Box::new(Step::End(id, Ending::Sealed))))
    }

    /// `requested_by`: who made the daemon write an entry.
    fn party(&self, object: &str) -> Result<Party, Refusal> {
        let at = "/action_payload/requested_by";
        let [actor_id, peer] = exactly(object, ["actor_id", "peer"]).ok_or_else(|| {
            Refusal::new(Code::WrongType).at(at).because("must be exactly actor_id and peer")
        })?;
        let peer = Peer::parse(peer).map_err(|refusal| refusal.below(&format!("{at}/peer")))?;
        if !actor_id.starts_with('"') {
            return Err(Refusal::new(Code::WrongType).at(format!("{at}/actor_id")));
        }
        Ok(Party { peer, actor_id: Some(json::unquote(actor_id.as_bytes())) })
    }

    fn check_open(&self, entry: &EntryView<'_>) -> Result<Step, Refusal> {
        let malformed = |name: &str, detail: &str| {
            Refusal::new(Code::ProposalMalformed).at(format!("/action_payload/{name}")).because(detail)
        };
        let [draft, expires_at, id, by, rules_hash] = exactly(
            entry.action_payload,
            ["draft", "expires_at", "proposal_id", "requested_by", "rules_hash"],
        )
        .ok_or_else(|| {
            malformed("", "must be exactly draft, expires_at, proposal_id, requested_by and rules_hash")
        })?;
        let label = self.standing.rules.label();
        if rules_hash.strip_prefix('"').and_then(|hash| hash.strip_suffix('"')) != Some(&label) {
            return Err(Refusal::new(Code::RulesInForce).at("/action_payload/rules_hash"));
        }
        let id = EntryId::parse(&json::unquote(id.as_bytes()))
            .map(ProposalId)
            .ok_or_else(|| malformed("proposal_id", "must be a UUID of version 4"))?;
        if self.open.contains_key(&id) || self.ended.contains_key(&id) {
            return Err(malformed("proposal_id", "another proposal has this id"));
        }
        let draft = Draft::from_canonical(draft).map_err(|fault| malformed("draft", &fault.to_string()))?;
        let proposer = self.party(by)?;
        let at = "/action_payload/requested_by";
        let admission = self.admit(&proposer.peer, Some(Verb::Propose), &format!("{at}/peer"))?;
        let actor_id = proposer.actor_id.clone().unwrap_or_default();
        admission.check_actor_id(&actor_id).map_err(|refusal| refusal.below(at))?;
        if draft.actor_id.as_ref() != Some(&actor_id) {
            return Err(malformed("draft/actor_id", "must be that of the proposer"));
        }
        let demand = self.check_opening(&draft, &proposer, entry.timestamp)?;
        let expires_at = Timestamp::parse(json::unquote(expires_at.as_bytes()).as_bytes())
            .ok_or_else(|| malformed("expires_at", "must be a time"))?;
        let lifetime = i64::from(demand.lifetime_seconds) * 1_000_000;
        let latest = Timestamp::from_micros(entry.timestamp.as_micros().saturating_add(lifetime));
        if expires_at <= entry.timestamp || expires_at > latest {
            return Err(Refusal::new(Code::ProposalExpiry).at("/action_payload/expires_at"));
        }
        let subject = Subject {
            action_hash: Digest::of(draft.action_payload.as_bytes()),
            action_type: draft.action_type.clone(),
            expires_at,
            origin: self.standing.origin.to_string(),
            proposal_hash: entry.entry_hash,
            proposal_id: id,
            rules_hash: label,
        };
        Ok(Step::Open(Box::new(Proposal {
            subject,
            open_entry: entry.entry_id,
            opened_at: entry.timestamp,
            draft,
            rules: self.standing.rules.clone(),
            demand,
            proposer,
            given: Vec::new(),
        })))
    }

    /// Whether what is proposed could ever be sealed, and what it needs.
    fn check_opening(&self, draft: &Draft, proposer: &Party, at: Timestamp) -> Result<Demand, Refusal> {
        let rules = &self.standing.rules;
        let admission = Admission::of(rules, &proposer.peer, Some(Verb::Propose))?;
        admission.check_kinds(draft.actor_type, draft.event_type)?;
        let malformed = |pointer: &str, detail: &str| {
            Err(Refusal::new(Code::ProposalMalformed).at(pointer).because(detail))
        };
        let performed = PROPOSABLE.contains(&draft.action_type.as_str());
        if performed && draft.event_type != EventType::Change {
            return malformed("/event_type", "an action of the daemon's is a CHANGE");
        }
        if performed
            && ["proposal_id", "requested_by"]
                .iter()
                .any(|name| member(&draft.action_payload, name).is_some())
        {
            return malformed("/action_payload", "`proposal_id` and `requested_by` are the daemon's");
        }
        if draft.action_type == "rules.set" {
            match member(&draft.action_payload, "rules") {
                Some(proposed) => drop(read_rules(proposed, &self.keys, "/action_payload/rules")?),
                None => return malformed("/action_payload/rules", "the rules that are proposed are missing"),
            }
        }
        let mut demand = self.standing.demand(draft)?;
        if demand.approvals == 0 && !performed {
            return Err(Refusal::new(Code::ProposalNotNeeded));
        }
        let free: Vec<&str> = rules
            .approvers()
            .iter()
            .filter(|approver| {
                let caller = rules.caller(&proposer.peer);
                !approver.is_party(caller, proposer.peer.uid, proposer.actor_id.as_deref())
            })
            .map(|approver| approver.role.as_str())
            .collect();
        if !demand.is_met_by(&free) {
            let detail = format!(
                "{} approvals are needed, and too few approvers other than the proposer could give them",
                demand.approvals
            );
            return Err(Refusal::new(Code::RulesUnmeetable).because(&detail));
        }
        // A prover may sign for the proposal's hash, which exists only from now on: it is judged
        // when the proposal is sealed. What the draft itself breaks is refused at once.
        let all = std::mem::take(&mut demand.proofs);
        demand.proofs = all.iter().filter(|kind| BUILT_IN_PROOFS.contains(&kind.as_str())).cloned().collect();
        let provided = Provided::parse(&draft.provided_proofs)?;
        let quorum = Quorum { received: "[]".into(), met: true };
        let event = Event::of_draft(draft, draft.entry_id.unwrap_or(EntryId([0; 16])));
        judge(&event, &demand, provided, quorum, rules, &self.standing.context(at, None))
            .map_err(Refusal::from)?;
        demand.proofs = all;
        Ok(demand)
    }

    fn check_given(&self, entry: &EntryView<'_>) -> Result<Step, Refusal> {
        let [approval, id, by] = exactly(entry.action_payload, ["approval", "proposal_id", "requested_by"])
            .ok_or_else(|| {
            Refusal::new(Code::ApprovalMalformed)
                .at("/action_payload")
                .because("must be exactly approval, proposal_id and requested_by")
        })?;
        let party = self.party(by)?;
        self.admit(&party.peer, None, "/action_payload/requested_by/peer")?;
        let id = proposal_id(id)?;
        let at = "/action_payload/approval";
        let approval = Approval::parse(approval).map_err(|refusal| refusal.below(at))?;
        let decision =
            self.proposal(id)?.decide(&approval, entry.timestamp).map_err(|refusal| refusal.below(at))?;
        if decision_entry(decision) != entry.action_type {
            return Err(Refusal::new(Code::ApprovalMalformed)
                .at("/action_type")
                .because("says something else than was signed"));
        }
        let given = Given { approval, decision, entry_id: entry.entry_id, at: entry.timestamp };
        Ok(Step::Give(id, Box::new(given)))
    }

    fn check_withdraw(&self, entry: &EntryView<'_>) -> Result<Step, Refusal> {
        let [id, _reason, by] = exactly(entry.action_payload, ["proposal_id", "reason", "requested_by"])
            .ok_or_else(|| {
                Refusal::new(Code::ProposalMalformed)
                    .at("/action_payload")
                    .because("must be exactly proposal_id, reason and requested_by")
            })?;
        let party = self.party(by)?;
        let at = "/action_payload/requested_by";
        let admission = self.admit(&party.peer, None, &format!("{at}/peer"))?;
        admission
            .check_actor_id(party.actor_id.as_deref().unwrap_or_default())
            .map_err(|refusal| refusal.below(at))?;
        let id = proposal_id(id)?;
        check_withdrawal(self.proposal(id)?, &party, &admission, entry.timestamp)?;
        Ok(Step::End(id, Ending::Withdrawn))
    }

    fn check_expire(&self, entry: &EntryView<'_>) -> Result<Step, Refusal> {
        let [id, _reason] = exactly(entry.action_payload, ["proposal_id", "reason"]).ok_or_else(|| {
            Refusal::new(Code::ProposalMalformed)
                .at("/action_payload")
                .because("must be exactly proposal_id and reason")
        })?;
        let id = proposal_id(id)?;
        if self.proposal(id)?.is_over(entry.timestamp) {
            Ok(Step::End(id, Ending::Expired))
        } else {
            Err(Refusal::new(Code::ProposalExpiry).at("/timestamp"))
        }
    }

    /// Checks the reason of a VIOLATION entry: where the attempt stands in it, by judging it again.
    fn check_violation(&self, entry: &EntryView<'_>) -> Result<(), Refusal> {
        let wrong = |pointer: &str, detail: &str| {
            Err(Refusal::new(Code::ViolationReason).at(pointer.to_owned()).because(detail))
        };
        if entry.execution_status != ExecutionStatus::Blocked {
            return wrong("/execution_status", "a violation is BLOCKED");
        }
        let Some(breach) = Breach::all().find(|breach| breach.error_details() == entry.error_details) else {
            return wrong("/error_details", "is not one of the eight reasons that there are");
        };
        let names = [
            "attempt",
            "attempt_hash",
            "attempted_entry_id",
            "claimed_actor_id",
            "count",
            "peer",
            "proposal_id",
        ];
        let Some([attempt, hash, entry_id, claimed, count, peer, proposal]) =
            exactly(entry.action_payload, names)
        else {
            return wrong("/action_payload", &format!("must be exactly {}", names.join(", ")));
        };
        if count.parse::<u64>().map_or(true, |count| count == 0) {
            return wrong("/action_payload/count", "must be how many attempts there were");
        }
        let peer = Peer::parse(peer).map_err(|refusal| refusal.below("/action_payload/peer"))?;
        if attempt == "null" {
            return Ok(());
        }
        if json::unquote(hash.as_bytes()) != Digest::of(attempt.as_bytes()).to_hex() {
            return wrong("/action_payload/attempt_hash", "is not the hash of the attempt");
        }
        // A seal is judged by a proposal that is gone when the entry is read.
        if proposal != "null" {
            return Ok(());
        }
        let draft = match Draft::from_canonical(attempt) {
            Ok(draft) => draft,
            Err(fault) => return wrong("/action_payload/attempt", &fault.to_string()),
        };
        if draft.actor_id != string(claimed) || draft.entry_id.map(|id| id.to_string()) != string(entry_id) {
            return wrong("/action_payload", "the ids are not those of the attempt");
        }
        let id = draft.entry_id.unwrap_or(EntryId([0; 16]));
        match self.standing.append(&draft, &peer, id, entry.timestamp) {
            Err(Refused::Violation(violation)) if violation.breach == breach => Ok(()),
            Err(Refused::Violation(violation)) => {
                wrong("/error_details", &format!("the attempt breaks something else: {violation}"))
            }
            Err(Refused::Plain(refusal)) => wrong(
                "/action_payload/attempt",
                &format!("it would have been refused without an entry: {refusal}"),
            ),
            Ok(_) => wrong("/action_payload/attempt", "it breaks nothing"),
        }
    }
}

/// Checks that an entry asks no less than `demand`.
fn check_asked(entry: &EntryView<'_>, demand: &Demand) -> Result<(), Refusal> {
    let required = proof::required(entry.required_proofs)?;
    if let Some(missing) = demand.proofs.iter().find(|kind| !required.contains(kind)) {
        let detail = format!("the rules demand the proof `{missing}`");
        return Err(Refusal::new(Code::RequiredProofs).at("/required_proofs").because(&detail));
    }
    if entry.required_approvals < demand.approvals {
        let detail = format!("{} approvals are demanded", demand.approvals);
        return Err(Refusal::new(Code::RequiredApprovals).at("/required_approvals").because(&detail));
    }
    Ok(())
}

/// Compares what an entry says with what it was judged to be.
fn compare(entry: &EntryView<'_>, judged: &Judged) -> Result<(), Refusal> {
    let differs = |code, pointer: &str, truth: String| Err(Refusal::new(code).at(pointer).because(&truth));
    if entry.composite_score != judged.composite_score {
        let truth = format!("the pillars make {}", judged.composite_score);
        return differs(Code::CompositeScore, "/composite_score", truth);
    }
    if entry.safety_floor_met != judged.safety_floor_met {
        return differs(Code::SafetyFloor, "/safety_floor_met", format!("it is {}", judged.safety_floor_met));
    }
    if entry.required_proofs != judged.required_proofs {
        let truth = format!("must be {}", judged.required_proofs);
        return differs(Code::RequiredProofs, "/required_proofs", truth);
    }
    if entry.provided_proofs != judged.provided_proofs {
        let truth = "the proofs come to something else".to_owned();
        return differs(Code::ProvidedProofs, "/provided_proofs", truth);
    }
    if entry.proofs_valid != judged.proofs_valid {
        return differs(Code::ProofsValid, "/proofs_valid", format!("it is {}", judged.proofs_valid));
    }
    if entry.required_approvals != judged.required_approvals {
        let truth = format!("must be {}", judged.required_approvals);
        return differs(Code::RequiredApprovals, "/required_approvals", truth);
    }
    if entry.received_approvals != judged.received_approvals {
        let truth = "no such approvals are known".to_owned();
        return differs(Code::ReceivedApprovals, "/received_approvals", truth);
    }
    if entry.quorum_met != judged.quorum_met {
        return differs(Code::Quorum, "/quorum_met", format!("it is {}", judged.quorum_met));
    }
    Ok(())
}

/// Checks that a sealed entry is the draft, but for the outcome and the daemon's own members.
fn check_drafted(entry: &EntryView<'_>, draft: &Draft) -> Result<(), Refusal> {
    let performed = PROPOSABLE.contains(&draft.action_type.as_str());
    let payload = if performed {
        // The daemon adds what it did; what was approved stands there unchanged.
        json::members(&draft.action_payload).all(|(start, name_end, end)| {
            let name = json::unquote(&draft.action_payload.as_bytes()[start..name_end]);
            json::member(entry.action_payload, &name) == Some(&draft.action_payload[name_end + 1..end])
        })
    } else {
        entry.action_payload == draft.action_payload
    };
    let actor = if performed {
        entry.actor_type == ActorType::System && entry.actor_id == DAEMON_ACTOR
    } else {
        entry.actor_type == draft.actor_type && draft.actor_id.as_deref() == Some(&entry.actor_id)
    };
    let context = performed || without(entry.actor_context, |name| name == "peer") == draft.actor_context;
    let same = [
        (draft.entry_id.is_none_or(|id| id == entry.entry_id), "/entry_id"),
        (entry.event_type == draft.event_type, "/event_type"),
        (entry.event_category == draft.event_category, "/event_category"),
        (entry.severity == draft.severity, "/severity"),
        (actor, "/actor_id"),
        (context, "/actor_context"),
        (entry.action_type == draft.action_type, "/action_type"),
        (payload, "/action_payload"),
        (entry.system_state_snapshot == draft.system_state_snapshot, "/system_state_snapshot"),
        (
            without(entry.environment, |name| name.starts_with("attestd.")) == draft.environment,
            "/environment",
        ),
        (entry.pillars_scores == draft.pillars_scores, "/pillars_scores"),
        (entry.k_state == draft.k_state, "/k_state"),
        (entry.conflicts_detected == draft.conflicts_detected, "/conflicts_detected"),
        (entry.rollback_available == draft.rollback_available, "/rollback_available"),
        (entry.rollback_snapshot_hash == draft.rollback_snapshot_hash, "/rollback_snapshot_hash"),
    ];
    match same.iter().find(|(same, _)| !same) {
        None => Ok(()),
        Some((_, pointer)) => Err(Refusal::new(Code::ProposalDraft).at(*pointer)),
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

fn member<'a>(object: &'a str, name: &str) -> Option<&'a str> {
    object.starts_with('{').then(|| json::member(object, name))?
}

fn text(object: &str, name: &str) -> Option<String> {
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
