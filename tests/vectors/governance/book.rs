//! A governed ledger in the making: what is sound in it the library decides and writes, and one
//! entry at the end may have a defect put in before it is hashed and signed.

use attestd::governance::approval::{Approval, Decision, NAMESPACE, ProposalId};
use attestd::governance::caller::named;
use attestd::governance::governor::{Governor, Outcome, Refused};
use attestd::governance::{Admitted, Host, Policy, Refusal};
use attestd::ledger::canonical;
use attestd::ledger::chain::Head;
use attestd::ledger::draft::Draft;
use attestd::ledger::entry::{ActorType, EntryId, EventType, ExecutionStatus, SignatureAlgorithm};
use attestd::ledger::json;
use attestd::ledger::timestamp::Timestamp;

use super::super::{self as vectors, Draft as Sealable, genesis_payload, public, trusted_key};
use super::ORIGIN;
use super::cast::{self, DEV, OPS};

pub(super) const NOTHING: fn(&mut Sealable) = |_| {};

#[derive(Clone)]
pub(super) struct Book {
    pub(super) governor: Governor,
    pub(super) now: Timestamp,
    head: Head,
    ids: u64,
    followed: Result<(), Refusal>,
    pub(super) lines: Vec<Vec<u8>>,
}

fn policy() -> Policy {
    let host = Host {
        version: "0.1.0".into(),
        host: "test".into(),
        boot_id: "9a6f6f0e-3c0e-4b34-9f0e-000000000000".into(),
        replicas: Vec::new(),
    };
    Policy::new(&host, 65_536)
}

pub(super) fn refused(refused: Refused) -> Refusal {
    refused.into()
}

impl Book {
    /// A genesis with `rules` (or null), and a boot.
    pub(super) fn with(rules: &str) -> Self {
        let mut book = Book {
            governor: Governor::new(),
            now: Timestamp::parse(b"2026-11-25T03:00:00.000000Z").expect("a time"),
            head: Head::EMPTY,
            ids: 0,
            followed: Ok(()),
            lines: Vec::new(),
        };
        let genesis =
            genesis_payload(&trusted_key(), ORIGIN).replace("\"rules\":null", &format!("\"rules\":{rules}"));
        book.own(EventType::Change, "ledger.genesis", genesis, NOTHING);
        book
    }

    /// The rules of the cast in force since the genesis, and a boot that verified the attribution.
    pub(super) fn new() -> Self {
        Self::booted(true)
    }

    pub(super) fn booted(verified: bool) -> Self {
        let mut book = Self::with(&cast::rules());
        let payload = format!(r#"{{"attribution_verified":{verified},"version":"0.1.0"}}"#);
        book.own(EventType::Boot, "system_initialization", payload, NOTHING);
        book
    }

    pub(super) fn id(&mut self) -> EntryId {
        self.ids += 1;
        EntryId::parse(&format!("00000000-0000-4000-8000-{:012x}", self.ids)).expect("an id")
    }

    /// Writes an entry, sound or not, and the governor follows it as far as it does. Nothing comes
    /// after one that it refuses.
    pub(super) fn write(&mut self, admitted: &Admitted, edit: impl FnOnce(&mut Sealable)) {
        assert_eq!(self.followed, Ok(()), "the defect is in the last entry");
        let entry = self.head.extend(
            admitted.view(),
            self.now,
            SignatureAlgorithm::EntryP256,
            public(&trusted_key()).id(),
        );
        let text = String::from_utf8(entry.unsigned().seal(b"")).expect("UTF-8");
        let members = json::members(&text)
            .map(|(start, name_end, end)| {
                let name = json::unquote(&text.as_bytes()[start..name_end]);
                (name, text.as_bytes()[name_end + 1..end].to_vec())
            })
            .collect();
        let mut sealable = Sealable {
            members,
            before: b"",
            after: b"",
            key: trusted_key(),
            sign: vectors::sign,
            hash: None,
        };
        edit(&mut sealable);
        let (line, _) = sealable.seal();
        let decoded = canonical::decode(&line).expect("its form is no defect here");
        self.head = Head::after(&decoded.entry);
        self.followed = self.governor.follow(&decoded.entry);
        self.lines.push(line);
        self.now = Timestamp::from_micros(self.now.as_micros() + 1_000_000);
    }

    /// An entry of the daemon's own.
    pub(super) fn own(
        &mut self,
        event_type: EventType,
        action: &str,
        payload: String,
        edit: impl FnOnce(&mut Sealable),
    ) {
        let draft = Draft::new(event_type, action, payload, ExecutionStatus::Success, ActorType::System);
        self.own_draft(draft, edit);
    }

    pub(super) fn own_draft(&mut self, draft: Draft, edit: impl FnOnce(&mut Sealable)) {
        let id = self.id();
        let admitted = policy().own_under(&self.governor.standing().rules.label(), draft, id);
        self.write(&admitted, edit);
    }

    /// A client's entry.
    pub(super) fn append(&mut self, draft: Draft, uid: u32, edit: impl FnOnce(&mut Sealable)) {
        let id = self.id();
        let (peer, json) = cast::peer(uid, None);
        let admitted = policy()
            .admit_under(self.governor.standing(), draft, &peer, &json, id, self.now)
            .map_err(refused)
            .expect("sound before the edit");
        self.write(&admitted, edit);
    }

    /// A process as the rules name it.
    pub(super) fn caller(&self, uid: u32) -> (attestd::governance::caller::Peer, String) {
        let default = self.governor.standing().rules.is_default();
        cast::peer(uid, cast::caller_of(uid).filter(|_| !default))
    }

    pub(super) fn open(&mut self, draft: Draft, uid: u32, edit: impl FnOnce(&mut Sealable)) -> ProposalId {
        let id = ProposalId(self.id());
        let (peer, json) = self.caller(uid);
        let payload = self
            .governor
            .open(draft, &peer, &json, id, self.now, 65_536)
            .map_err(refused)
            .expect("sound before the edit");
        self.own(EventType::Decision, "proposal.open", payload, edit);
        id
    }

    /// A sound approval by `name`, or a rejection.
    pub(super) fn approval(&self, id: ProposalId, name: &str, decision: Decision) -> Approval {
        let proposal = self.governor.proposal(id).expect("open");
        let approver = proposal.rules.approver(name).expect("in the rules");
        let statement = proposal.subject.statement(approver, decision);
        let signature = cast::pair(name).sign(&statement, NAMESPACE);
        Approval::of(&statement, &signature, proposal.rules.approvers()).expect("an approval")
    }

    pub(super) fn decide(
        &mut self,
        id: ProposalId,
        name: &str,
        decision: Decision,
        edit: impl FnOnce(&mut Sealable),
    ) {
        let approval = self.approval(id, name, decision);
        self.record(id, &approval, decision, edit);
    }

    /// Records an approval, whatever it is worth.
    pub(super) fn record(
        &mut self,
        id: ProposalId,
        approval: &Approval,
        decision: Decision,
        edit: impl FnOnce(&mut Sealable),
    ) {
        let (_, json) = self.caller(OPS);
        let payload = format!(
            r#"{{"approval":{},"proposal_id":"{id}","requested_by":{{"actor_id":"uid:{OPS}","peer":{json}}}}}"#,
            approval.to_canonical(None)
        );
        let action = match decision {
            Decision::Approve => "approval.give",
            Decision::Reject => "approval.reject",
        };
        self.own(EventType::Decision, action, payload, edit);
    }

    pub(super) fn approve(&mut self, id: ProposalId, names: &[&str]) {
        for name in names {
            self.decide(id, name, Decision::Approve, NOTHING);
        }
    }

    /// What a proposal becomes when `uid` seals it now.
    pub(super) fn sealing(&mut self, id: ProposalId, status: ExecutionStatus, uid: u32) -> Admitted {
        let outcome = Outcome {
            execution_status: status,
            result_data: r#"{"done":true}"#.into(),
            error_details: "null".into(),
            rollback_executed: false,
        };
        let fresh = self.id();
        let (peer, json) = cast::peer(uid, None);
        let sealing = self
            .governor
            .seal(id, outcome, None, &peer, fresh, self.now)
            .map_err(refused)
            .expect("sound before the edit");
        let payload = sealing.payload(&named(&json, sealing.caller.as_deref()));
        policy().admit_sealed(self.governor.standing(), sealing, payload, &json, fresh).expect("it fits")
    }

    pub(super) fn seal(&mut self, id: ProposalId, uid: u32, edit: impl FnOnce(&mut Sealable)) {
        let sealing = self.sealing(id, ExecutionStatus::Success, uid);
        self.write(&sealing, edit);
    }

    pub(super) fn withdraw(&mut self, id: ProposalId, edit: impl FnOnce(&mut Sealable)) {
        let (peer, json) = self.caller(DEV);
        let payload = self
            .governor
            .withdraw(id, "a mistake", Some("dev/1"), &peer, &json, self.now)
            .expect("sound before the edit");
        self.own(EventType::Decision, "proposal.withdraw", payload, edit);
    }
}

/// A client's request.
pub(super) fn request(event_type: &str, action: &str, status: &str, extra: &str) -> Draft {
    let text = format!(
        r#"{{"event_type":"{event_type}","action_type":"{action}","action_payload":{{"to":2}},"execution_status":"{status}","actor_type":"AUTONOMOUS_AGENT"{extra}}}"#
    );
    Draft::parse_proposal(text.as_bytes()).expect("a request")
}

pub(super) fn scores(score: &str) -> String {
    format!(
        r#","pillars_scores":{{"an_toan":{score},"duong_dai":{score},"han_che_rui_ro":{score},"tin_vao_so_lieu":{score}}}"#
    )
}

pub(super) fn snapshot() -> String {
    format!(r#","rollback_available":true,"rollback_snapshot_hash":"{}""#, "ab".repeat(32))
}

/// A change of policy that `dev` proposes.
pub(super) fn policy_change() -> Draft {
    let extra =
        format!(r#"{},"actor_id":"dev/1","environment":{{"region":"eu"}}"#, scores("8") + &snapshot());
    request("CHANGE", "policy.set", "SUCCESS", &extra)
}
