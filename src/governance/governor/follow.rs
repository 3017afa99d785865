//! What was written: each entry judged by what came before it.

use super::{
    Governor, MAX_OPEN, Refused, Standing, Step, asked, check_withdrawal, decision_entry, exactly, member,
    member_id, proposal_id, read_rules, text, unnamed_actor, without,
};
use std::sync::Arc;

use crate::governance::Refusal;
use crate::governance::approval::{Approval, Decision, ProposalId, Subject};
use crate::governance::caller::{Admission, Peer};
use crate::governance::invariant::{Judged, Quorum, assess, judge};
use crate::governance::keyring::{Change, Keyring};
use crate::governance::proof::{self, Event, Provided};
use crate::governance::proposal::{Ending, Given, Party, Proposal};
use crate::governance::rules::{BUILT_IN_PROOFS, Demand, Verb};
use crate::ledger::code::Code;
use crate::ledger::draft::{Draft, PROPOSABLE};
use crate::ledger::entry::{
    ActorType, DAEMON_ACTOR, EntryId, EntryView, EventType, ExecutionStatus, Sequence,
    is_reserved_action_type,
};
use crate::ledger::hash::Digest;
use crate::ledger::json;
use crate::ledger::key::PublicKey;
use crate::ledger::timestamp::Timestamp;

/// The process that a client's entry names, where nothing in the entry is the daemon's alone.
///
/// # Errors
/// [`Code::PeerMissing`], [`Code::ReservedByClient`], or as [`Peer::parse`].
pub fn client_of(entry: &EntryView<'_>) -> Result<Peer, Refusal> {
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
    Ok(peer)
}

impl Standing {
    /// Judges an entry that changes nothing, which is one for which [`Governor::concerns`] does not
    /// hold. Many can so be judged at once, each under what stood when it was written.
    ///
    /// # Errors
    /// The first [`Refusal`]; its pointer leads into the entry.
    pub fn check(&self, entry: &EntryView<'_>) -> Result<(), Refusal> {
        self.check_label(entry)?;
        self.keys.check_turn(entry)?;
        self.check_appended(entry)
    }

    fn check_label(&self, entry: &EntryView<'_>) -> Result<(), Refusal> {
        let named = json::member(entry.environment, "attestd.rules")
            .ok_or_else(|| Refusal::new(Code::MissingMember).at("/environment/attestd.rules"))?;
        let named = named.strip_prefix('"').and_then(|named| named.strip_suffix('"'));
        if named == Some(self.rules.label()) {
            Ok(())
        } else {
            Err(Refusal::new(Code::RulesInForce).at("/environment/attestd.rules"))
        }
    }

    fn check_appended(&self, entry: &EntryView<'_>) -> Result<(), Refusal> {
        let peer = client_of(entry)?;
        let admission = self.admit(&peer, Some(Verb::Append), "/actor_context/peer")?;
        admission.check_kinds(entry.actor_type, entry.event_type)?;
        admission.check_actor_id(&entry.actor_id)?;
        let demand = self.rules.demand(entry.action_type);
        check_asked(entry, &demand)?;
        self.check_judged(entry, demand)
    }

    /// The caller that `peer` is, which must be the one that it says.
    pub(super) fn admit<'a>(
        &'a self,
        peer: &'a Peer,
        verb: Option<Verb>,
        pointer: &str,
    ) -> Result<Admission<'a>, Refusal> {
        let admission = Admission::of(&self.rules, peer, verb).map_err(|refusal| refusal.at(pointer))?;
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
            &self.rules,
            &self.context(entry.timestamp, None),
        );
        compare(entry, &judged)?;
        violation.map_or(Ok(()), |violation| Err(violation.into()))
    }
}

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

    /// What stands after `entry`, as [`Governor::follow`] would have it; `None` where it changes
    /// nothing.
    ///
    /// # Errors
    /// As [`Governor::follow`].
    pub fn followed(&self, entry: &EntryView<'_>) -> Result<Option<Arc<Self>>, Refusal> {
        match self.check(entry)? {
            Step::Nothing => Ok(None),
            step => {
                let mut after = self.clone();
                after.take(step);
                Ok(Some(Arc::new(after)))
            }
        }
    }

    fn take(&mut self, step: Step) {
        if matches!(step, Step::Genesis { .. } | Step::Boot { .. } | Step::Rules(_) | Step::Key(..)) {
            self.standing.generation += 1;
        }
        match step {
            Step::Nothing => {}
            Step::Genesis { origin, rules, key } => {
                self.standing.origin = origin.into();
                self.standing.rules = rules;
                self.standing.keys = Arc::new(key.map(Keyring::of).unwrap_or_default());
            }
            Step::Boot { attribution_verified } => self.standing.attribution_verified = attribution_verified,
            Step::Rules(rules) => self.standing.rules = rules,
            Step::Key(at, change) => Arc::make_mut(&mut self.standing.keys).take(at, change),
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
        self.standing.check_label(entry)?;
        self.standing.keys.check_turn(entry)?;
        if entry.is_daemons() {
            return self.check_own(entry);
        }
        if entry.received_approvals == "[]" {
            self.standing.check_appended(entry)?;
            return Ok(Step::Nothing);
        }
        let peer = client_of(entry)?;
        let id = self.proposal_of(entry.received_approvals)?;
        self.check_seal(entry, id, &Party { peer, actor_id: None }, "/actor_context/peer")?;
        Ok(Step::End(id, Ending::Sealed))
    }

    /// Checks that `entry` is what the proposal `id` becomes when `sealer` seals it.
    fn check_seal(
        &self,
        entry: &EntryView<'_>,
        id: ProposalId,
        sealer: &Party,
        pointer: &str,
    ) -> Result<(), Refusal> {
        self.standing.admit(&sealer.peer, Some(Verb::Seal), pointer)?;
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
            .filter(|text| {
                text.starts_with('{') && json::canonicalize(text.as_bytes()).is_ok_and(|c| c == *text)
            })
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
        let rules = &self.standing.rules;
        let counted = proposal.counted(rules, sealer);
        let uncounted = proposal.given.iter().find_map(|given| {
            let approval = &given.approval;
            let index = signers.iter().position(|signer| *signer == approval.signer)?;
            let counts = counted.iter().any(|counted| counted.approval.signer == approval.signer);
            (given.decision == Decision::Approve && !counts).then_some((index, approval))
        });
        let Some((index, approval)) = uncounted else {
            return Refusal::new(Code::ReceivedApprovals)
                .at("/received_approvals")
                .because("must be the approvals that the ledger holds and that count, in order");
        };
        let at = format!("/received_approvals/{index}");
        let still = rules.approver(&approval.signer);
        if still.is_some_and(|still| still.key.id() == approval.key_id && still.role == approval.role) {
            Refusal::new(Code::ApprovalOwn).at(at).because("the approver proposed it or seals it")
        } else {
            Refusal::new(Code::ApproverUnknown)
                .at(at)
                .because("the rules in force no longer name the approver with this key and role")
        }
    }

    fn check_own(&self, entry: &EntryView<'_>) -> Result<Step, Refusal> {
        check_own_form(entry)?;
        if PROPOSABLE.contains(&entry.action_type) {
            return self.check_performed(entry);
        }
        self.check_ungoverned(entry)?;
        match entry.action_type {
            "ledger.genesis" => self.check_genesis(entry),
            "system_initialization" => {
                let verified = json::member(entry.action_payload, "attribution_verified");
                Ok(Step::Boot { attribution_verified: verified == Some("true") })
            }
            "system_violation" => self.check_violation(entry).map(|()| Step::Nothing),
            "proposal.open" => self.check_open(entry),
            "approval.give" | "approval.reject" => self.check_given(entry),
            "proposal.withdraw" => self.check_withdraw(entry),
            "proposal.expire" => self.check_expire(entry),
            other if other.starts_with("key.") => self.check_keys(entry),
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

    /// What becomes of the keys.
    fn check_keys(&self, entry: &EntryView<'_>) -> Result<Step, Refusal> {
        let Some(change) = self.standing.keys.check(entry, &self.standing.origin)? else {
            return Ok(Step::Nothing);
        };
        if let Change::Rotate(key) = &change {
            self.standing.rules.check_ledger_keys(std::slice::from_ref(key)).map_err(|fault| {
                Refusal::new(fault.code).at("/action_payload/public_key_pem").because(&fault.detail)
            })?;
        }
        Ok(Step::Key(entry.sequence_number, change))
    }

    /// The daemon's own entries need nothing and have nothing.
    fn check_ungoverned(&self, entry: &EntryView<'_>) -> Result<(), Refusal> {
        if entry.required_proofs != "[]" || entry.provided_proofs != "[]" {
            return Err(Refusal::new(Code::ProvidedProofs)
                .at("/provided_proofs")
                .because("an entry of the daemon's own has no proofs"));
        }
        self.standing.check_judged(entry, Demand::default())
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
        let at = "/action_payload/requested_by";
        let requested_by = member(payload, "requested_by").map(|by| self.party(by)).transpose()?;
        let step = match entry.action_type {
            "rules.set" => {
                let pointer = "/action_payload/rules";
                let rules =
                    member(payload, "rules").ok_or_else(|| Refusal::new(Code::MissingMember).at(pointer))?;
                Step::Rules(read_rules(rules, &self.standing.keys.keys(), pointer)?)
            }
            _ => self.check_keys(entry)?,
        };
        let Some(proposal) = member(payload, "proposal_id").filter(|value| *value != "null") else {
            if let Some(party) = &requested_by {
                let admission =
                    self.standing.admit(&party.peer, Some(Verb::Administer), &format!("{at}/peer"))?;
                check_actor(&admission, party).map_err(|refusal| refusal.below(at))?;
            }
            if entry.received_approvals != "[]" {
                return Err(Refusal::new(Code::ReceivedApprovals)
                    .at("/received_approvals")
                    .because("approvals without a proposal"));
            }
            let demand = self.standing.rules.demand(entry.action_type);
            check_asked(entry, &demand)?;
            self.standing.check_judged(entry, demand)?;
            return Ok(step);
        };
        let pointer = "/action_payload/proposal_id";
        let id = EntryId::parse(&json::unquote(proposal.as_bytes()))
            .map(ProposalId)
            .ok_or_else(|| Refusal::new(Code::WrongValue).at(pointer))?;
        let sealer = requested_by.ok_or_else(|| Refusal::new(Code::MissingMember).at(at))?;
        // Under another name an approver could seal what it approved.
        self.standing
            .admit(&sealer.peer, Some(Verb::Seal), &format!("{at}/peer"))?
            .check_actor_id(sealer.actor_id.as_deref().unwrap_or_default())
            .map_err(|refusal| refusal.below(at))?;
        self.check_seal(entry, id, &sealer, &format!("{at}/peer"))?;
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
        if rules_hash.strip_prefix('"').and_then(|hash| hash.strip_suffix('"')) != Some(label) {
            return Err(Refusal::new(Code::RulesInForce).at("/action_payload/rules_hash"));
        }
        let id = EntryId::parse(&json::unquote(id.as_bytes()))
            .map(ProposalId)
            .ok_or_else(|| malformed("proposal_id", "must be a UUID of version 4"))?;
        if self.open.contains_key(&id) || self.ended.contains_key(&id) {
            return Err(malformed("proposal_id", "another proposal has this id"));
        }
        if self.open.len() >= MAX_OPEN {
            return Err(malformed("proposal_id", &format!("{MAX_OPEN} proposals are open already")));
        }
        let draft = Draft::from_canonical(draft).map_err(|fault| malformed("draft", &fault.to_string()))?;
        let proposer = self.party(by)?;
        let at = "/action_payload/requested_by";
        let admission = self.standing.admit(&proposer.peer, Some(Verb::Propose), &format!("{at}/peer"))?;
        let actor_id = proposer.actor_id.clone().unwrap_or_default();
        admission.check_actor_id(&actor_id).map_err(|refusal| refusal.below(at))?;
        if draft.actor_id.as_ref() != Some(&actor_id) {
            return Err(malformed("draft/actor_id", "must be that of the proposer"));
        }
        let demand = self.check_opening(&draft, &proposer, entry.timestamp).map_err(Refusal::from)?;
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
            rules_hash: label.into(),
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
    pub(super) fn check_opening(
        &self,
        draft: &Draft,
        proposer: &Party,
        at: Timestamp,
    ) -> Result<Demand, Refused> {
        let rules = &self.standing.rules;
        let admission = Admission::of(rules, &proposer.peer, Some(Verb::Propose))?;
        admission.check_kinds(draft.actor_type, draft.event_type)?;
        let malformed = |pointer: &str, detail: &str| {
            Err(Refusal::new(Code::ProposalMalformed).at(pointer).because(detail).into())
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
                Some(proposed) => {
                    drop(read_rules(proposed, &self.standing.keys.keys(), "/action_payload/rules")?);
                }
                None => return malformed("/action_payload/rules", "the rules that are proposed are missing"),
            }
        }
        self.standing.keys.check_proposed(&draft.action_type, &draft.action_payload)?;
        let mut demand = self.standing.demand(draft)?;
        if demand.approvals == 0 && !performed {
            return Err(Refusal::new(Code::ProposalNotNeeded).into());
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
            return Err(Refusal::new(Code::RulesUnmeetable).because(&detail).into());
        }
        // A prover may sign for the proposal's hash, which exists only from now on: it is judged
        // when the proposal is sealed. What the draft itself breaks is refused at once.
        let all = std::mem::take(&mut demand.proofs);
        demand.proofs = all.iter().filter(|kind| BUILT_IN_PROOFS.contains(&kind.as_str())).cloned().collect();
        let provided = Provided::parse(&draft.provided_proofs)?;
        let quorum = Quorum { received: "[]".into(), met: true };
        let event = Event::of_draft(draft, draft.entry_id.unwrap_or(EntryId([0; 16])));
        judge(&event, &demand, provided, quorum, rules, &self.standing.context(at, None))?;
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
        let at = "/action_payload/requested_by";
        let admission = self.standing.admit(&party.peer, None, &format!("{at}/peer"))?;
        check_actor(&admission, &party).map_err(|refusal| refusal.below(at))?;
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
        let [id, reason, by] = exactly(entry.action_payload, ["proposal_id", "reason", "requested_by"])
            .ok_or_else(|| {
                Refusal::new(Code::ProposalMalformed)
                    .at("/action_payload")
                    .because("must be exactly proposal_id, reason and requested_by")
            })?;
        check_reason(reason)?;
        let party = self.party(by)?;
        let at = "/action_payload/requested_by";
        let admission = self.standing.admit(&party.peer, None, &format!("{at}/peer"))?;
        admission
            .check_actor_id(party.actor_id.as_deref().unwrap_or_default())
            .map_err(|refusal| refusal.below(at))?;
        let id = proposal_id(id)?;
        check_withdrawal(self.proposal(id)?, &party, &admission, entry.timestamp)?;
        Ok(Step::End(id, Ending::Withdrawn))
    }

    fn check_expire(&self, entry: &EntryView<'_>) -> Result<Step, Refusal> {
        let [id, reason] = exactly(entry.action_payload, ["proposal_id", "reason"]).ok_or_else(|| {
            Refusal::new(Code::ProposalMalformed)
                .at("/action_payload")
                .because("must be exactly proposal_id and reason")
        })?;
        check_reason(reason)?;
        let id = proposal_id(id)?;
        if self.proposal(id)?.is_over(entry.timestamp) {
            Ok(Step::End(id, Ending::Expired))
        } else {
            Err(Refusal::new(Code::ProposalExpiry).at("/timestamp"))
        }
    }
}

/// Checks what holds of every entry of the daemon's own: what it does by itself is nothing that
/// clients do, has no context, and is only written when it is done.
fn check_own_form(entry: &EntryView<'_>) -> Result<(), Refusal> {
    let wrong = |pointer: &str, detail: &str| Err(Refusal::new(Code::WrongValue).at(pointer).because(detail));
    if !is_reserved_action_type(entry.action_type) {
        return wrong("/action_type", "is not an action of the daemon's own");
    }
    let (prefix, _) = entry.action_type.split_at(entry.action_type.find(['.', '_']).unwrap_or_default());
    let event_type = match (entry.action_type, prefix) {
        ("system_initialization", _) => EventType::Boot,
        ("system_shutdown", _) => EventType::Shutdown,
        ("system_violation", _) => EventType::Violation,
        (_, "system") => EventType::Action,
        (_, "proposal" | "approval") => EventType::Decision,
        _ => EventType::Change,
    };
    if entry.event_type != event_type {
        return wrong("/event_type", &format!("must be {event_type}"));
    }
    if entry.actor_context != "{}" {
        return wrong("/actor_context", "the daemon's own entries have none");
    }
    // Of a violation its own check says what it must be.
    let is_done = entry.execution_status == ExecutionStatus::Success;
    if !is_done && entry.action_type != "system_violation" {
        return wrong("/execution_status", "what the daemon does by itself is SUCCESS, or not written");
    }
    Ok(())
}

/// Checks as whom a caller made the daemon write: as an actor that it may be, or where the rules give it
/// several and it named none, as its uid.
fn check_actor(admission: &Admission<'_>, party: &Party) -> Result<(), Refusal> {
    let actor_id = party.actor_id.as_deref().unwrap_or_default();
    if actor_id == unnamed_actor(admission) { Ok(()) } else { admission.check_actor_id(actor_id) }
}

fn check_reason(reason: &str) -> Result<(), Refusal> {
    if reason.starts_with('"') {
        Ok(())
    } else {
        Err(Refusal::new(Code::ProposalMalformed).at("/action_payload/reason").because("must be a string"))
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
