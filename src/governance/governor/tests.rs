//! A ledger in miniature: real entries, chained by the real head, written by what the governor
//! says and followed by it. Each refusal has a twin that is accepted.

use proptest::prelude::*;

use super::*;
use crate::governance::invariant::{Breach, Invariant};
use crate::governance::key::{Algorithm, tests::Pair};
use crate::governance::{Admitted, Host, Policy, caller};
use crate::ledger::chain::Head;
use crate::ledger::entry::{ActorType, EventCategory, EventType, SignatureAlgorithm};
use crate::ledger::hash::decode_hex;
use crate::ledger::key::{KeyId, Signature};

const ORIGIN: &str = "test.example/ledger";

/// A process of `uid`, as it is and as JSON without its caller.
fn peer(uid: u32) -> (Peer, String) {
    let json = format!(
        r#"{{"caller":null,"exe":null,"exe_sha256":null,"gid":{uid},"groups":null,"pid":7,"start_time":null,"uid":{uid},"unit":null,"user":null}}"#
    );
    (Peer::parse(&json).expect("a peer"), json)
}

const OPS: u32 = 1000;
const DEV: u32 = 1001;
const SEALER: u32 = 1002;
const STRANGER: u32 = 1003;

/// a: creator, b: community, c: auditor, d: auditor too, and the one behind the caller `dev`.
fn pairs() -> [(&'static str, Pair); 4] {
    [
        ("a", Pair::new(Algorithm::EcdsaP256, 1)),
        ("b", Pair::new(Algorithm::SshEd25519, 2)),
        ("c", Pair::new(Algorithm::SshSkP256, 3)),
        ("d", Pair::new(Algorithm::SshP256, 4)),
    ]
}

fn quoted(text: &str) -> String {
    let mut out = Vec::new();
    json::write_string(text, &mut out);
    String::from_utf8(out).expect("UTF-8")
}

fn rules_text(actions: &str) -> String {
    let roles = ["creator", "community", "auditor", "auditor"];
    let approvers: Vec<String> = pairs()
        .iter()
        .zip(roles)
        .map(|((name, pair), role)| {
            let callers = if *name == "d" { r#"["dev"]"# } else { "[]" };
            format!(
                r#"{{"actor_ids":[],"callers":{callers},"name":"{name}","public_key":{},"role":"{role}"}}"#,
                quoted(pair.key.to_text())
            )
        })
        .collect();
    let caller = |name: &str, uid: u32, ids: &str, verbs: &str| {
        format!(
            r#"{{"actor_ids":{ids},"actor_types":[],"clearance":0,"event_types":[],"name":"{name}","uid":{uid},"verbs":{verbs}}}"#
        )
    };
    let callers = [
        caller("ops", OPS, "[]", r#"["administer","append","propose","read","seal"]"#),
        caller("dev", DEV, r#"["dev/*","dev"]"#, r#"["append","propose"]"#),
        caller("sealer", SEALER, "[]", r#"["seal"]"#),
    ];
    format!(
        r#"{{"actions":[{actions}],"approvers":[{}],"callers":[{}],"pillars":{{"floor":"7","weights":{{"an_toan":1,"duong_dai":1,"han_che_rui_ro":1,"tin_vao_so_lieu":1}}}},"provers":[]}}"#,
        approvers.join(","),
        callers.join(",")
    )
}

fn action(kind: &str, approvals: u32, roles: &str, proofs: &str, blocks: bool) -> String {
    format!(
        r#"{{"approvals":{approvals},"clearance":0,"lifetime_seconds":1000,"proofs":{proofs},"rejection_blocks":{blocks},"roles":{roles},"type":"{kind}"}}"#
    )
}

fn actions() -> String {
    [
        action(
            "policy.*",
            3,
            r#"["auditor","community","creator"]"#,
            r#"["k1_state","pillars","rollback","safety_floor"]"#,
            true,
        ),
        action("deploy.*", 0, "[]", r#"["rollback"]"#, true),
        action("risky.*", 2, "[]", "[]", false),
        action("rules.set", 1, r#"["creator"]"#, "[]", true),
    ]
    .join(",")
}

struct Book {
    governor: Governor,
    head: Head,
    policy: Policy,
    now: i64,
    ids: u64,
}

impl Book {
    /// A ledger with a genesis, a boot, and rules in force.
    fn new() -> Self {
        let mut book = Self::without_rules();
        book.write_own(EventType::Change, "rules.set", format!(r#"{{"rules":{}}}"#, rules_text(&actions())))
            .expect("the first rules need nobody");
        book
    }

    fn without_rules() -> Self {
        let host = Host { version: "0".into(), host: "h".into(), boot_id: "b".into(), replicas: Vec::new() };
        let mut book = Book {
            governor: Governor::new(),
            head: Head::EMPTY,
            policy: Policy::new(&host, 65_536),
            now: 1_000_000_000_000_000,
            ids: 0,
        };
        let key = quoted(Pair::new(Algorithm::EcdsaP256, 7).key.to_text());
        let genesis = format!(r#"{{"origin":"{ORIGIN}","public_key_pem":{key},"rules":null}}"#);
        book.write_own(EventType::Change, "ledger.genesis", genesis).expect("a genesis");
        let boot = r#"{"attribution_verified":true}"#.to_owned();
        book.write_own(EventType::Boot, "system_initialization", boot).expect("a boot");
        book
    }

    fn now(&self) -> Timestamp {
        Timestamp::from_micros(self.now)
    }

    fn id(&mut self) -> EntryId {
        self.ids += 1;
        let mut bytes = [0; 16];
        bytes[8..].copy_from_slice(&self.ids.to_be_bytes());
        EntryId::from_random(bytes)
    }

    /// Writes an entry if the governor follows it.
    fn write(&mut self, mut view: EntryView<'_>) -> Result<(), Refusal> {
        let mut head = self.head;
        let (sequence, previous) = (head.next, head.hash);
        let now = self.now();
        let entry = head.extend(view.clone(), now, SignatureAlgorithm::EntryP256, KeyId(Digest::ZERO));
        (view.sequence_number, view.prev_entry_hash) = (sequence, previous);
        (view.timestamp, view.entry_hash) = (entry.timestamp(), head.hash);
        self.governor.follow(&view)?;
        self.head = head;
        self.now += 1;
        Ok(())
    }

    fn write_own(
        &mut self,
        event_type: EventType,
        action_type: &str,
        payload: String,
    ) -> Result<(), Refusal> {
        let draft = Draft::new(event_type, action_type, payload, ExecutionStatus::Success, ActorType::System);
        let id = self.id();
        let label = self.governor.standing().rules.label();
        let admitted = self.policy.own_under(label, draft, id);
        self.write(admitted.view())
    }

    fn admit(&mut self, draft: Draft, uid: u32) -> Result<Admitted, Refused> {
        let fresh = self.id();
        let (peer, json) = peer(uid);
        self.policy.admit_under(self.governor.standing(), draft, &peer, &json, fresh, self.now())
    }

    fn named(&self, uid: u32) -> (Peer, String) {
        let (mut peer, json) = peer(uid);
        peer.caller = self.governor.standing().rules.caller(&peer).map(|rule| rule.name.clone());
        let json = caller::named(&json, peer.caller.as_deref());
        (peer, json.into_owned())
    }

    fn open(&mut self, draft: Draft, uid: u32) -> Result<ProposalId, Refused> {
        let id = ProposalId(self.id());
        let (peer, json) = self.named(uid);
        let payload = self.governor.open(draft, &peer, &json, id, self.now(), 65_536)?;
        self.write_own(EventType::Decision, "proposal.open", payload)?;
        Ok(id)
    }

    fn statement(&self, id: ProposalId, name: &str, decision: Decision) -> (String, String) {
        let proposal = self.governor.proposal(id).expect("open");
        let approver = proposal.rules.approver(name).expect("named");
        let statement = proposal.subject.statement(approver, decision);
        let (_, pair) = pairs().into_iter().find(|(who, _)| *who == name).expect("one of the four");
        let signature = pair.sign(statement.as_bytes(), crate::governance::approval::NAMESPACE);
        (statement, signature)
    }

    fn decide(&mut self, id: ProposalId, name: &str, decision: Decision) -> Result<(), Refusal> {
        self.governor.proposal(id)?;
        let (statement, signature) = self.statement(id, name, decision);
        let (peer, json) = self.named(OPS);
        let (action, payload) = self.governor.decide(id, &statement, &signature, &peer, &json, self.now())?;
        self.write_own(EventType::Decision, action, payload)
    }

    fn sealing(&mut self, id: ProposalId, status: ExecutionStatus, uid: u32) -> Result<Admitted, Refused> {
        let outcome = Outcome {
            execution_status: status,
            result_data: r#"{"done":true}"#.into(),
            error_details: "null".into(),
            rollback_executed: false,
        };
        let fresh = self.id();
        let (peer, json) = peer(uid);
        let sealing = self.governor.seal(id, outcome, None, &peer, fresh, self.now())?;
        let named = caller::named(&json, sealing.caller.as_deref());
        let payload = sealing.payload(&named);
        Ok(self.policy.admit_sealed(self.governor.standing(), sealing, payload, &json, fresh)?)
    }

    fn seal(&mut self, id: ProposalId, uid: u32) -> Result<(), Refused> {
        let admitted = self.sealing(id, ExecutionStatus::Success, uid)?;
        Ok(self.write(admitted.view())?)
    }
}

fn draft(action_type: &str, extra: &str) -> Draft {
    let text = format!(
        r#"{{"event_type":"CHANGE","action_type":"{action_type}","action_payload":{{"to":2}},"execution_status":"SUCCESS","actor_type":"AUTONOMOUS_AGENT"{extra}}}"#
    );
    Draft::parse_proposal(text.as_bytes()).expect("valid")
}

fn scores(score: &str) -> String {
    format!(
        r#","pillars_scores":{{"an_toan":{score},"duong_dai":{score},"han_che_rui_ro":{score},"tin_vao_so_lieu":{score}}}"#
    )
}

fn policy_draft() -> Draft {
    let hash = "ab".repeat(32);
    draft(
        "policy.set",
        &format!(r#"{},"rollback_available":true,"rollback_snapshot_hash":"{hash}""#, scores("8")),
    )
}

fn code<T: std::fmt::Debug, E: Into<Refusal>>(result: Result<T, E>) -> Code {
    let refusal: Refusal = result.expect_err("refused").into();
    refusal.code
}

#[test]
fn a_policy_change_is_proposed_approved_and_sealed_once() {
    let mut book = Book::new();
    assert_eq!(code(book.open(draft("free.x", ""), DEV)), Code::ActorNotAllowed, "dev has several actor ids");
    let id = approved_as(&mut book, "dev/1");
    let admitted = book.sealing(id, ExecutionStatus::Success, SEALER).expect("sealed");
    let view = admitted.view();
    assert_eq!((view.actor_id.as_ref(), view.required_approvals, view.quorum_met), ("dev/1", 3, true));
    assert_eq!(json::elements(view.received_approvals).count(), 3);
    assert_eq!(view.dependencies.len(), 4);
    assert_eq!(view.required_proofs, r#"["k1_state","pillars","rollback","safety_floor"]"#);
    assert!(view.proofs_valid && view.safety_floor_met);
    assert_eq!(admitted.not_after().map(|at| at.as_micros() + 1), {
        let expires_at = book.governor.proposal(id).expect("open").subject.expires_at;
        Some(expires_at.as_micros())
    });
    book.write(view.clone()).expect("followed");
    assert_eq!(book.governor.ending(id), Some(Ending::Sealed));
    assert_eq!(code(book.write(view)), Code::ProposalClosed, "once");
    assert_eq!(code(book.seal(id, SEALER)), Code::ProposalClosed);
}

/// A policy change of `dev`'s with three approvals, ready to be sealed.
fn approved_as(book: &mut Book, actor_id: &str) -> ProposalId {
    let mut draft = policy_draft();
    draft.actor_id = Some(actor_id.into());
    let id = book.open(draft, DEV).map_err(Refusal::from).expect("opened");
    for name in ["a", "b", "c"] {
        book.decide(id, name, Decision::Approve).expect("approved");
    }
    id
}

#[test]
fn one_approval_short_is_not_enough() {
    let mut book = Book::new();
    let mut draft = policy_draft();
    draft.actor_id = Some("dev".into());
    let id = book.open(draft, DEV).map_err(Refusal::from).expect("opened");
    book.decide(id, "a", Decision::Approve).expect("approved");
    book.decide(id, "b", Decision::Approve).expect("approved");
    assert_eq!(code(book.seal(id, SEALER)), Code::QuorumInvariant);
    let blocked = book.sealing(id, ExecutionStatus::Blocked, SEALER).expect("nothing was done");
    assert!(!blocked.view().quorum_met);
    let mut lied = blocked.view();
    lied.quorum_met = true;
    assert_eq!(code(book.write(lied)), Code::Quorum);
    let mut done = blocked.view();
    done.execution_status = ExecutionStatus::Failed;
    assert_eq!(code(book.write(done)), Code::QuorumInvariant);
    book.decide(id, "c", Decision::Approve).expect("approved");
    assert_eq!(code(book.write(blocked.view())), Code::ReceivedApprovals, "an approval was left out");
    book.seal(id, SEALER).map_err(Refusal::from).expect("sealed");
}

/// What was blocked needs no approvals, and what the daemon performs would happen all the same.
#[test]
fn what_the_daemon_performs_is_sealed_as_done_or_not_at_all() {
    let mut book = Book::new();
    let mut change = draft("rules.set", "");
    change.action_payload = format!(r#"{{"rules":{}}}"#, rules_text(&action("free.*", 0, "[]", "[]", true)));
    let id = book.open(change, OPS).map_err(Refusal::from).expect("opened");
    for status in [ExecutionStatus::Blocked, ExecutionStatus::Failed, ExecutionStatus::RolledBack] {
        assert_eq!(code(book.sealing(id, status, SEALER)), Code::WrongValue, "{status}");
    }
    assert_eq!(code(book.sealing(id, ExecutionStatus::Success, SEALER)), Code::QuorumInvariant);
    book.decide(id, "a", Decision::Approve).expect("approved");
    book.seal(id, SEALER).map_err(Refusal::from).expect("sealed");
}

#[test]
fn what_nobody_approved_is_withdrawn_and_not_sealed() {
    let mut book = Book::new();
    let mut draft = policy_draft();
    draft.actor_id = Some("dev".into());
    let id = book.open(draft, DEV).map_err(Refusal::from).expect("opened");
    assert_eq!(code(book.sealing(id, ExecutionStatus::Blocked, SEALER)), Code::QuorumInvariant);
    book.decide(id, "a", Decision::Approve).expect("approved");
    book.sealing(id, ExecutionStatus::Blocked, SEALER).expect("nothing was done");
}

#[test]
fn an_approver_counts_once_and_not_for_itself() {
    let mut book = Book::new();
    let mut draft = policy_draft();
    draft.actor_id = Some("dev".into());
    let id = book.open(draft.clone(), DEV).map_err(Refusal::from).expect("opened");
    assert_eq!(code(book.decide(id, "d", Decision::Approve)), Code::ApprovalOwn);
    book.decide(id, "a", Decision::Approve).expect("approved");
    for decision in [Decision::Approve, Decision::Reject] {
        assert_eq!(code(book.decide(id, "a", decision)), Code::ApproverTwice, "the first word is final");
    }
    // From another proposer, d may.
    draft.actor_id = None;
    let other = book.open(draft, OPS).map_err(Refusal::from).expect("opened");
    book.decide(other, "d", Decision::Approve).expect("approved");
}

#[test]
fn an_approval_is_for_one_proposal() {
    let mut book = Book::new();
    let mut draft = policy_draft();
    draft.actor_id = Some("dev".into());
    let (one, two) = (book.open(draft.clone(), DEV), book.open(draft, DEV));
    let (one, two) = (one.expect("opened"), two.expect("opened"));
    let (statement, signature) = book.statement(one, "a", Decision::Approve);
    let (peer, json) = book.named(OPS);
    let lifted = book.governor.decide(two, &statement, &signature, &peer, &json, book.now());
    assert_eq!(code(lifted), Code::ApprovalOtherProposal);
    // And written by a daemon that did not look:
    let (_, payload) =
        book.governor.decide(one, &statement, &signature, &peer, &json, book.now()).expect("good");
    let forged = payload.replacen(
        &format!(r#""proposal_id":"{one}","requested_by""#),
        &format!(r#""proposal_id":"{two}","requested_by""#),
        1,
    );
    assert_ne!(forged, payload);
    assert_eq!(
        code(book.write_own(EventType::Decision, "approval.give", forged)),
        Code::ApprovalOtherProposal
    );
    assert_eq!(
        code(book.write_own(EventType::Decision, "approval.reject", payload.clone())),
        Code::ApprovalMalformed
    );
    let broken = payload.replacen(r#""signature":"30"#, r#""signature":"31"#, 1);
    assert_eq!(code(book.write_own(EventType::Decision, "approval.give", broken)), Code::ApprovalSignature);
    assert_eq!(code(book.write_own(EventType::Change, "approval.give", payload.clone())), Code::WrongValue);
    book.write_own(EventType::Decision, "approval.give", payload).expect("the accepting twin");
}

#[test]
fn no_byte_of_an_approval_can_be_another() {
    let mut book = Book::new();
    let id = book.open(draft("risky.run", r#","actor_id":"dev""#), DEV).expect("opened");
    let (peer, json) = book.named(OPS);
    for name in ["a", "b", "c"] {
        let (statement, signature) = book.statement(id, name, Decision::Approve);
        let (_, payload) =
            book.governor.decide(id, &statement, &signature, &peer, &json, book.now()).expect("good");
        let length = payload.find(r#","proposal_id""#).expect("after the approval");
        for at in 0..length {
            for byte in *b"5e\\" {
                let mut changed = payload.clone().into_bytes();
                changed[at] = byte;
                let changed = String::from_utf8(changed).expect("ASCII");
                // What is no canonical JSON never gets as far as the governor.
                if changed == payload || json::canonicalize(changed.as_bytes()).as_ref() != Ok(&changed) {
                    continue;
                }
                let written = book.write_own(EventType::Decision, "approval.give", changed.clone());
                assert!(written.is_err(), "{changed}");
            }
        }
        book.write_own(EventType::Decision, "approval.give", payload).expect("the accepting twin");
    }
}

#[test]
fn time_is_the_ledgers() {
    let mut book = Book::new();
    let id = approved_as(&mut book, "dev");
    let expires_at = book.governor.proposal(id).expect("open").subject.expires_at;
    let early = Governor::expire(id);
    assert_eq!(code(book.write_own(EventType::Decision, "proposal.expire", early)), Code::ProposalExpiry);
    let sealed = book.sealing(id, ExecutionStatus::Success, SEALER).expect("in time");
    let late = book.statement(id, "d", Decision::Approve);
    book.now = expires_at.as_micros();
    assert_eq!(code(book.write(sealed.view())), Code::ProposalExpired, "admitted before, sealed after");
    assert_eq!(code(book.seal(id, SEALER)), Code::ProposalExpired);
    let (peer, json) = book.named(OPS);
    assert_eq!(
        code(book.governor.decide(id, &late.0, &late.1, &peer, &json, book.now())),
        Code::ProposalExpired
    );
    assert_eq!(book.governor.expired(book.now()).collect::<Vec<_>>(), [id]);
    book.write_own(EventType::Decision, "proposal.expire", Governor::expire(id)).expect("expired");
    assert_eq!(book.governor.ending(id), Some(Ending::Expired));

    let mut book = Book::new();
    let id = approved_as(&mut book, "dev");
    book.now = expires_at.as_micros() - 1;
    book.seal(id, SEALER).map_err(Refusal::from).expect("the last moment");
}

#[test]
fn a_seal_is_what_was_proposed() {
    let mut book = Book::new();
    let id = approved_as(&mut book, "dev/1");
    let sealed = book.sealing(id, ExecutionStatus::Success, SEALER).expect("sealed");
    type Change = fn(&mut EntryView<'_>);
    let changes: [(Change, Code, &str); 16] = [
        (
            |e| (e.action_payload, e.action_hash) = (r#"{"to":3}"#, Digest::ZERO),
            Code::ProposalDraft,
            "/action_payload",
        ),
        (|e| e.action_type = "policy.get", Code::ProposalDraft, "/action_type"),
        (|e| e.actor_id = "dev/2".into(), Code::ProposalDraft, "/actor_id"),
        (|e| e.k_state = 2, Code::ProposalDraft, "/k_state"),
        (|e| e.severity = 3, Code::ProposalDraft, "/severity"),
        (|e| e.system_state_snapshot = r#"{"a":1}"#, Code::ProposalDraft, "/system_state_snapshot"),
        (|e| e.dependencies.to_mut().truncate(3), Code::ProposalDraft, "/dependencies"),
        (|e| e.required_approvals = 2, Code::RequiredApprovals, "/required_approvals"),
        (|e| e.required_approvals = 4, Code::RequiredApprovals, "/required_approvals"),
        (
            |e| e.required_proofs = r#"["k1_state","pillars","safety_floor"]"#,
            Code::RequiredProofs,
            "/required_proofs",
        ),
        (|e| e.provided_proofs = "[]", Code::ProvidedProofs, "/provided_proofs"),
        (|e| e.proofs_valid = false, Code::ProofsValid, "/proofs_valid"),
        (|e| e.quorum_met = false, Code::Quorum, "/quorum_met"),
        (|e| e.safety_floor_met = false, Code::SafetyFloor, "/safety_floor_met"),
        (|e| e.composite_score = crate::ledger::score::Score::MAX, Code::CompositeScore, "/composite_score"),
        (|e| e.rollback_snapshot_hash = None, Code::ProposalDraft, "/rollback_snapshot_hash"),
    ];
    for (change, expected, pointer) in changes {
        let mut view = sealed.view();
        change(&mut view);
        view.action_hash = Digest::of(view.action_payload.as_bytes());
        let refusal = book.write(view).expect_err(pointer);
        assert_eq!((refusal.code, refusal.pointer.as_str()), (expected, pointer));
    }
    let mut failed = sealed.view();
    (failed.execution_status, failed.result_data) = (ExecutionStatus::Failed, "null");
    failed.error_details = r#"{"why":"x"}"#;
    book.write(failed).expect("the outcome is the sealer's to say");
}

#[test]
fn received_approvals_are_those_of_the_ledger() {
    let mut book = Book::new();
    let id = approved_as(&mut book, "dev/1");
    let other = approved_as(&mut book, "dev/1");
    let sealed = book.sealing(id, ExecutionStatus::Success, SEALER).expect("sealed");
    let others = book.sealing(other, ExecutionStatus::Success, SEALER).expect("sealed");
    let items: Vec<&str> = json::elements(&sealed.judged.received_approvals).collect();
    let foreign: Vec<&str> = json::elements(&others.judged.received_approvals).collect();
    let forged = items[0].replacen(r#""signature":"30"#, r#""signature":"31"#, 1);
    let role = items[0].replacen(r#""role":"creator""#, r#""role":"auditor""#, 1);
    let cases = [
        (vec![items[0], items[1]], Code::ReceivedApprovals),
        (vec![items[1], items[0], items[2]], Code::ReceivedApprovals),
        (vec![items[0], items[0], items[2]], Code::ApproverTwice),
        (vec![items[0], items[1], foreign[2]], Code::ApprovalOtherProposal),
        (vec![&forged, items[1], items[2]], Code::ApprovalSignature),
        (vec![&role, items[1], items[2]], Code::ApprovalRole),
        (vec![items[0], items[1], "{}"], Code::ApprovalMalformed),
    ];
    for (items, expected) in cases {
        let received = format!("[{}]", items.join(","));
        let mut view = sealed.view();
        view.received_approvals = &received;
        assert_eq!(code(book.write(view)), expected, "{received}");
    }
    book.write(sealed.view()).expect("the accepting twin");
}

#[test]
fn nobody_approves_what_it_seals() {
    let mut book = Book::new();
    // `c` is the sealer's as soon as the rules say so, and they are looked at when sealing.
    let id = approved_as(&mut book, "dev");
    let mut changed = rules_text(&actions());
    changed = changed.replacen(r#""callers":[],"name":"c""#, r#""callers":["sealer"],"name":"c""#, 1);
    set_rules(&mut book, &changed);
    assert_eq!(code(book.seal(id, SEALER)), Code::QuorumInvariant);
    book.seal(id, OPS).map_err(Refusal::from).expect("somebody else may");
}

/// Sets rules by a proposal that `a` approves.
fn set_rules(book: &mut Book, rules: &str) {
    let id = propose_rules(book, rules);
    book.decide(id, "a", Decision::Approve).expect("approved");
    book.seal(id, OPS).map_err(Refusal::from).expect("sealed");
    assert_eq!(book.governor.standing().rules.label(), Digest::of(rules.as_bytes()).to_hex());
}

fn propose_rules(book: &mut Book, rules: &str) -> ProposalId {
    let mut proposed = draft("rules.set", "");
    proposed.action_payload = format!(r#"{{"rules":{rules}}}"#);
    book.open(proposed, OPS).map_err(Refusal::from).expect("opened")
}

#[test]
fn rules_that_ask_for_approval_are_changed_by_approval_only() {
    let mut book = Book::new();
    let lower = rules_text(&action("policy.*", 1, "[]", "[]", true));
    let payload = format!(r#"{{"rules":{lower}}}"#);
    assert_eq!(code(book.write_own(EventType::Change, "rules.set", payload)), Code::RequiredApprovals);
    assert_eq!(
        code(book.write_own(EventType::Change, "rules.set", r#"{"rules":null}"#.into())),
        Code::RequiredApprovals
    );
    let id = propose_rules(&mut book, &lower);
    assert_eq!(code(book.seal(id, OPS)), Code::QuorumInvariant);
    book.decide(id, "a", Decision::Approve).expect("approved");
    let sealed = book.sealing(id, ExecutionStatus::Success, OPS).expect("sealed");
    let view = sealed.view();
    assert!(view.is_daemons() && view.action_type == "rules.set");
    assert!(view.action_payload.contains(r#""requested_by":{"actor_id":"uid:1000","peer":{"caller":"ops""#));
    let mut other = view.clone();
    let swapped = view.action_payload.replacen(r#""approvals":1"#, r#""approvals":2"#, 1);
    (other.action_payload, other.action_hash) = (&swapped, Digest::of(swapped.as_bytes()));
    assert_eq!(code(book.write(other)), Code::ProposalDraft, "other rules than were approved");
    book.write(view).expect("the accepting twin");
    assert_eq!(book.governor.standing().rules.demand("policy.x").approvals, 1);
    assert_eq!(book.governor.ending(id), Some(Ending::Sealed));
}

#[test]
fn rules_that_ask_nobody_are_set_by_an_administrator_or_by_a_proposal_without_approvals() {
    let mut book = Book::new();
    let open = rules_text(&action("policy.*", 1, "[]", "[]", true));
    set_rules(&mut book, &open);
    assert!(book.governor.may_perform("rules.set"));
    let rules = Rules::from_canonical(&open).expect("rules");
    let set = |book: &mut Book, uid| {
        let (_, json) = book.named(uid);
        let payload = Governor::set_rules(Some(&rules), Some((&format!("uid:{uid}"), &json)));
        assert_eq!(json::canonicalize(payload.as_bytes()).as_deref(), Ok(payload.as_str()));
        book.write_own(EventType::Change, "rules.set", payload)
    };
    assert_eq!(code(set(&mut book, SEALER)), Code::CallerNotAllowed, "it does not administer");
    set(&mut book, OPS).expect("an administrator");
    let id = propose_rules(&mut book, &rules_text(""));
    book.seal(id, OPS).map_err(Refusal::from).expect("nothing was asked");
    book.write_own(EventType::Change, "rules.set", Governor::set_rules(None, None))
        .expect("back to the default");
    assert!(book.governor.standing().rules.is_default());
}

#[test]
fn the_ledger_never_shares_a_key_with_an_approver() {
    let mut book = Book::new();
    let rotate = |book: &mut Book, seed| {
        let (old, new) = (Pair::new(Algorithm::EcdsaP256, 7), Pair::new(Algorithm::EcdsaP256, seed));
        let id = |pair: &Pair| PublicKey::from_pem(pair.key.to_text()).expect("a key").id();
        let challenge = Keyring::challenge(ORIGIN, id(&old), id(&new), book.head.next);
        let proof = Signature::from_foreign_der(
            &decode_hex(new.sign(challenge.message(), "").as_bytes()).expect("hex"),
        )
        .expect("a signature");
        let mut hex = Vec::new();
        proof.write_hex_der(&mut hex);
        let payload = format!(
            r#"{{"key_attributes":{{"always_sensitive":null,"extractable":null,"local":null,"never_extractable":null,"sensitive":null}},"key_id":"{id}","proof":"{proof}","public_key_pem":{pem},"to":{{"key_id":"{id}"}},"token":{{"label":"","manufacturer":"","model":"","serial":""}}}}"#,
            id = id(&new),
            proof = json::into_string(hex),
            pem = quoted(new.key.to_text()),
        );
        book.write_own(EventType::Change, "key.rotate", payload)
    };
    for approvers in [1, 3, 4] {
        let refused = rotate(&mut book, approvers);
        assert_eq!(code(refused), Code::RulesSharedKey, "{approvers}: in whatever format");
    }
    rotate(&mut book, 50).expect("nobody's");
    let id =
        |seed| PublicKey::from_pem(Pair::new(Algorithm::EcdsaP256, seed).key.to_text()).expect("a key").id();
    let payload = format!(r#"{{"key_id":"{}","previous_key_id":"{}"}}"#, id(50), id(7));
    book.write_own(EventType::Change, "key.activate", payload).expect("the new key's first");
    let new = Pair::new(Algorithm::SshP256, 50).key.to_text().to_owned();
    let shared = rules_text(&actions()).replacen(&quoted(pairs()[1].1.key.to_text()), &quoted(&new), 1);
    let mut proposed = draft("rules.set", "");
    proposed.action_payload = format!(r#"{{"rules":{shared}}}"#);
    assert_eq!(code(book.open(proposed, OPS)), Code::RulesSharedKey);
}

#[test]
fn a_threshold_raised_meanwhile_holds_for_the_seal() {
    let mut book = Book::new();
    let mut risky = draft("risky.run", "");
    risky.actor_id = Some("dev".into());
    let id = book.open(risky, DEV).map_err(Refusal::from).expect("opened");
    book.decide(id, "a", Decision::Approve).expect("approved");
    book.decide(id, "b", Decision::Approve).expect("approved");
    let ready = book.sealing(id, ExecutionStatus::Success, SEALER).expect("two of two");
    let three = [action("risky.*", 3, "[]", "[]", false), action("rules.set", 1, "[]", "[]", true)].join(",");
    set_rules(&mut book, &rules_text(&three));
    assert_eq!(code(book.write(ready.view())), Code::RulesInForce, "judged by rules of before");
    assert_ne!(ready.generation(), Some(book.governor.standing().generation), "which can be told");
    assert_eq!(code(book.seal(id, SEALER)), Code::QuorumInvariant);
    book.decide(id, "c", Decision::Approve).expect("approved");
    book.seal(id, SEALER).map_err(Refusal::from).expect("three of three");

    // Lowered, it still is what it was at opening.
    let mut book = Book::new();
    let mut risky = draft("risky.run", "");
    risky.actor_id = Some("dev".into());
    let id = book.open(risky, DEV).map_err(Refusal::from).expect("opened");
    book.decide(id, "a", Decision::Approve).expect("approved");
    set_rules(&mut book, &rules_text(&action("rules.set", 1, "[]", "[]", true)));
    assert_eq!(code(book.seal(id, SEALER)), Code::QuorumInvariant);
    book.decide(id, "b", Decision::Approve).expect("by the rules at opening");
    book.seal(id, SEALER).map_err(Refusal::from).expect("two of two");
}

#[test]
fn an_approver_whom_the_rules_no_longer_name_does_not_count() {
    let mut book = Book::new();
    let id = approved_as(&mut book, "dev");
    let text = rules_text(&actions());
    let key = quoted(pairs()[2].1.key.to_text());
    let replaced = text.replacen(&key, &quoted(Pair::new(Algorithm::SshEd25519, 9).key.to_text()), 1);
    set_rules(&mut book, &replaced);
    assert_eq!(code(book.seal(id, SEALER)), Code::QuorumInvariant);
}

#[test]
fn one_rejection_ends_it_where_the_rules_say_so() {
    let mut book = Book::new();
    let mut draft_policy = policy_draft();
    draft_policy.actor_id = Some("dev".into());
    let id = book.open(draft_policy, DEV).map_err(Refusal::from).expect("opened");
    book.decide(id, "c", Decision::Reject).expect("rejected");
    assert_eq!(book.governor.ending(id), Some(Ending::Rejected));
    assert_eq!(code(book.decide(id, "a", Decision::Approve)), Code::ProposalClosed);

    let mut risky = draft("risky.run", "");
    risky.actor_id = Some("dev".into());
    let id = book.open(risky, DEV).map_err(Refusal::from).expect("opened");
    book.decide(id, "c", Decision::Reject).expect("rejected");
    book.decide(id, "a", Decision::Approve).expect("approved");
    book.decide(id, "b", Decision::Approve).expect("approved");
    book.seal(id, SEALER).map_err(Refusal::from).expect("a rejection does not block it");
}

#[test]
fn only_the_proposer_or_an_administrator_withdraws() {
    let mut book = Book::new();
    let withdraw = |book: &mut Book, id, uid, claimed: Option<&str>| {
        let (peer, json) = book.named(uid);
        let payload = book.governor.withdraw(id, "changed my mind", claimed, &peer, &json, book.now())?;
        book.write_own(EventType::Decision, "proposal.withdraw", payload)
    };
    let id = approved_as(&mut book, "dev/1");
    assert_eq!(code(withdraw(&mut book, id, SEALER, None)), Code::CallerNotAllowed);
    assert_eq!(code(withdraw(&mut book, id, DEV, Some("dev/2"))), Code::CallerNotAllowed);
    assert_eq!(code(withdraw(&mut book, id, STRANGER, None)), Code::CallerNotAllowed);
    withdraw(&mut book, id, DEV, Some("dev/1")).expect("its own");
    assert_eq!(book.governor.ending(id), Some(Ending::Withdrawn));
    let id = approved_as(&mut book, "dev/1");
    withdraw(&mut book, id, OPS, None).expect("an administrator");
}

#[test]
fn a_proposal_that_could_never_be_sealed_is_not_opened() {
    let mut book = Book::new();
    let open = |book: &mut Book, draft: Draft| code(book.open(draft, OPS));
    assert_eq!(open(&mut book, draft("free.x", "")), Code::ProposalNotNeeded);
    assert_eq!(open(&mut book, draft("free.x", r#","required_approvals":5"#)), Code::RulesUnmeetable);
    let low = draft("policy.set", &scores("6.2"));
    assert_eq!(open(&mut book, low), Code::SafetyFloorInvariant);
    assert_eq!(open(&mut book, draft("policy.set", "")), Code::SafetyFloorInvariant);
    let mut rules = draft("rules.set", "");
    rules.action_payload = r#"{"rules":{}}"#.into();
    assert_eq!(open(&mut book, rules), Code::RulesUnmeetable);
    assert_eq!(code(book.open(policy_draft(), SEALER)), Code::CallerNotAllowed);
    assert_eq!(code(book.open(policy_draft(), STRANGER)), Code::CallerNotAllowed);
    let mut large = policy_draft();
    large.action_payload = format!(r#"{{"x":"{}"}}"#, "y".repeat(50_000));
    assert_eq!(open(&mut book, large), Code::EntryTooLarge, "no room for three approvals");
    // A client may ask for approvals that no rule demands.
    book.open(draft("free.x", r#","required_approvals":2"#), OPS).expect("opened");
}

#[test]
fn an_opening_is_checked_whole() {
    let mut book = Book::new();
    let (peer, json) = book.named(OPS);
    let id = ProposalId(book.id());
    let payload =
        book.governor.open(policy_draft(), &peer, &json, id, book.now(), 65_536).expect("a payload");
    let label = book.governor.standing().rules.label();
    let cases = [
        (payload.replacen(label, &"0".repeat(64), 1), Code::RulesInForce),
        (
            payload.replacen(r#""actor_id":"uid:1000""#, r#""actor_id":"uid:1001""#, 1),
            Code::ProposalMalformed,
        ),
        (payload.replace(r#""actor_id":"uid:1000""#, r#""actor_id":"uid:1001""#), Code::WrongValue),
        (payload.replacen(r#""caller":"ops""#, r#""caller":"dev""#, 1), Code::CallerRule),
        (payload.replacen(r#""uid":1000"#, r#""uid":1003"#, 1), Code::CallerNotAllowed),
        (payload.replacen(r#""k_state":1,"#, "", 1), Code::ProposalMalformed),
        (payload.replacen(r#""expires_at":"2001"#, r#""expires_at":"2002"#, 1), Code::ProposalExpiry),
        (payload.replacen(r#""expires_at":"2001"#, r#""expires_at":"2000"#, 1), Code::ProposalExpiry),
        (payload.replacen(r#""draft""#, r#""a":1,"draft""#, 1), Code::ProposalMalformed),
    ];
    for (bad, expected) in cases {
        assert_ne!(bad, payload);
        assert_eq!(
            code(book.write_own(EventType::Decision, "proposal.open", bad.clone())),
            expected,
            "{bad}"
        );
    }
    book.write_own(EventType::Decision, "proposal.open", payload.clone()).expect("the accepting twin");
    assert_eq!(
        code(book.write_own(EventType::Decision, "proposal.open", payload)),
        Code::ProposalMalformed,
        "an id is given out once"
    );
}

#[test]
fn an_append_is_judged_by_the_rules_in_force() {
    let mut book = Book::new();
    let direct = |book: &mut Book, action: &str, extra: &str| book.admit(draft(action, extra), OPS);
    assert_eq!(code(direct(&mut book, "policy.set", "")), Code::SafetyFloorInvariant);
    assert_eq!(code(direct(&mut book, "risky.run", "")), Code::QuorumInvariant);
    assert_eq!(code(direct(&mut book, "free.x", r#","required_approvals":1"#)), Code::QuorumInvariant);
    assert_eq!(code(direct(&mut book, "free.x", r#","required_proofs":["tests"]"#)), Code::ProofFailed);
    assert_eq!(
        code(direct(&mut book, "free.x", r#","required_proofs":["quorum","rollback"]"#)),
        Code::RollbackInvariant
    );
    assert_eq!(code(direct(&mut book, "free.x", &scores("6.2"))), Code::SafetyFloorInvariant);
    assert_eq!(code(direct(&mut book, "free.x", r#","k_state":2"#)), Code::K1StateInvariant);
    assert_eq!(code(direct(&mut book, "free.x", r#","rollback_executed":true"#)), Code::RollbackInvariant);
    assert_eq!(code(book.admit(draft("free.x", ""), STRANGER)), Code::CallerNotAllowed);
    assert_eq!(code(book.admit(draft("free.x", ""), SEALER)), Code::CallerNotAllowed);
    let blocked = format!(r#"{},"required_approvals":2"#, scores("6.2"));
    let mut low = draft("deploy.x", &blocked);
    low.execution_status = ExecutionStatus::Blocked;
    let admitted = book.admit(low, OPS).expect("what was blocked is recorded");
    let view = admitted.view();
    assert_eq!((view.proofs_valid, view.quorum_met, view.safety_floor_met), (false, false, false));
    assert_eq!(view.required_proofs, r#"["rollback"]"#);
    book.write(view).expect("followed");
}

#[test]
fn a_clients_entry_is_recomputed_whole() {
    let mut book = Book::new();
    let extra = format!(
        r#"{},"rollback_available":true,"rollback_snapshot_hash":"{}","actor_id":"dev/7""#,
        scores("8"),
        "ab".repeat(32)
    );
    let admitted = book.admit(draft("deploy.x", &extra), DEV).expect("admitted");
    let context = admitted.author.actor_context.clone();
    let other_caller = context.replacen(r#""caller":"dev""#, r#""caller":"ops""#, 1);
    let stranger = context.replacen("1001", "1003", 2);
    let rules = admitted.environment.replacen(book.governor.standing().rules.label(), "default", 1);
    let approvals = r#"[{"statement":"{}"}]"#;
    type Change<'a> = Box<dyn Fn(&mut EntryView<'a>) + 'a>;
    let changes: Vec<(Change<'_>, Code)> = vec![
        (Box::new(|e| e.actor_context = "{}"), Code::PeerMissing),
        (Box::new(|e| e.actor_context = &other_caller), Code::CallerRule),
        (Box::new(|e| e.actor_context = &stranger), Code::CallerNotAllowed),
        (Box::new(|e| e.actor_id = "other".into()), Code::ActorNotAllowed),
        (Box::new(|e| e.actor_id = "attestd".into()), Code::ReservedByClient),
        (Box::new(|e| e.action_type = "rules.set"), Code::ReservedByClient),
        (Box::new(|e| e.event_type = EventType::Boot), Code::ReservedByClient),
        (Box::new(|e| e.environment = &rules), Code::RulesInForce),
        (Box::new(|e| e.required_proofs = "[]"), Code::RequiredProofs),
        (Box::new(|e| e.required_proofs = r#"["k1_state","rollback"]"#), Code::ProvidedProofs),
        (Box::new(|e| e.provided_proofs = "[]"), Code::ProvidedProofs),
        (Box::new(|e| e.proofs_valid = false), Code::ProofsValid),
        (Box::new(|e| e.quorum_met = false), Code::Quorum),
        (Box::new(|e| e.safety_floor_met = false), Code::SafetyFloor),
        (Box::new(|e| e.received_approvals = approvals), Code::ApprovalMalformed),
        (Box::new(|e| e.k_state = 2), Code::K1StateInvariant),
        (Box::new(|e| e.rollback_executed = true), Code::RollbackInvariant),
    ];
    for (index, (change, expected)) in changes.iter().enumerate() {
        let mut view = admitted.view();
        change(&mut view);
        assert_eq!(code(book.write(view)), *expected, "change {index}");
    }
    book.write(admitted.view()).expect("the accepting twin");
}

#[test]
fn an_entry_that_claims_success_under_the_floor_is_refused_even_if_it_says_so() {
    let mut book = Book::new();
    let mut low = draft("free.x", &scores("6.2"));
    low.execution_status = ExecutionStatus::Failed;
    let admitted = book.admit(low, OPS).expect("admitted");
    let mut view = admitted.view();
    view.execution_status = ExecutionStatus::Success;
    assert_eq!(code(book.write(view)), Code::SafetyFloorInvariant);
    book.write(admitted.view()).expect("the accepting twin");
}

#[test]
fn attribution_is_what_the_last_boot_found() {
    let mut book = Book::new();
    let asks = || draft("free.x", r#","required_proofs":["attestation","attribution_intact"]"#);
    let asks_one = || draft("free.x", r#","required_proofs":["attribution_intact"]"#);
    assert_eq!(code(book.admit(asks(), OPS)), Code::ProofFailed);
    book.admit(asks_one(), OPS).expect("verified");
    let boot = r#"{"attribution_verified":false}"#.to_owned();
    book.write_own(EventType::Boot, "system_initialization", boot).expect("a boot");
    assert_eq!(code(book.admit(asks(), OPS)), Code::AttributionInvariant, "the lowest number first");
}

#[test]
fn a_violation_says_why_and_the_why_is_computed_again() {
    let mut book = Book::new();
    let offender =
        draft("deploy.x", r#","actor_id":"dev/1","entry_id":"6f1c2a7e-3b4d-4c5e-8f90-112233445566""#);
    let Err(Refused::Violation(violation)) = book.admit(offender.clone(), DEV) else {
        panic!("breaks invariant 3");
    };
    assert_eq!(violation.breach, Breach::Invariant(Invariant::Rollback));
    let (_, json) = book.named(DEV);
    let attempt = Attempt {
        peer_json: &json,
        claimed_actor_id: offender.actor_id.as_deref(),
        entry_id: offender.entry_id,
        draft: &offender,
        proposal_id: None,
        count: 1,
        whole: true,
    };
    let write = |book: &mut Book, payload: String, details: String| {
        let mut draft = Draft::new(
            EventType::Violation,
            "system_violation",
            payload,
            ExecutionStatus::Blocked,
            ActorType::System,
        );
        draft.event_category = EventCategory::Critical;
        draft.error_details = details;
        let id = book.id();
        let label = book.governor.standing().rules.label();
        let admitted = book.policy.own_under(label, draft, id);
        book.write(admitted.view())
    };
    let details = violation.breach.error_details();
    let payload = attempt.to_payload();
    assert_eq!(json::canonicalize(payload.as_bytes()).as_deref(), Ok(payload.as_str()));
    let quorum = Breach::Invariant(Invariant::Quorum).error_details();
    let sound = payload.replacen(r#""rollback_available":false"#, r#""rollback_available":true"#, 1);
    for (bad_payload, bad_details) in [
        (payload.clone(), quorum),
        (payload.clone(), details.replacen("INVARIANT_3", "INVARIANT_4", 1)),
        (payload.clone(), "null".into()),
        (sound, details.clone()),
        (payload.replacen(r#""count":1"#, r#""count":0"#, 1), details.clone()),
        (
            payload.replacen(r#""claimed_actor_id":"dev/1""#, r#""claimed_actor_id":"dev/2""#, 1),
            details.clone(),
        ),
        (payload.replacen(r#"deploy.x"#, "free.x", 1), details.clone()),
    ] {
        assert_eq!(
            code(write(&mut book, bad_payload.clone(), bad_details)),
            Code::ViolationReason,
            "{bad_payload}"
        );
    }
    write(&mut book, payload, details.clone()).expect("the accepting twin");
    let folded = Attempt { count: 900, whole: false, ..attempt }.to_payload();
    write(&mut book, folded, details).expect("a flood, counted");
}

/// What somebody tries to propose is judged as if it were appended, which that caller may not.
#[test]
fn an_opening_that_breaks_an_invariant_is_a_violation_too() {
    let mut book = Book::without_rules();
    let rules = rules_text(&actions()).replace(r#"["append","propose"]"#, r#"["propose"]"#);
    book.write_own(EventType::Change, "rules.set", format!(r#"{{"rules":{rules}}}"#)).expect("set");
    let mut low = policy_draft();
    low.actor_id = Some("dev".into());
    low.k_state = 2;
    let Err(Refused::Violation(violation)) = book.open(low.clone(), DEV) else {
        panic!("breaks invariant 5");
    };
    let (_, json) = book.named(DEV);
    let payload = Attempt {
        peer_json: &json,
        claimed_actor_id: Some("dev"),
        entry_id: None,
        draft: &low,
        proposal_id: None,
        count: 1,
        whole: true,
    }
    .to_payload();
    let blocked = ExecutionStatus::Blocked;
    let mut draft = Draft::new(EventType::Violation, "system_violation", payload, blocked, ActorType::System);
    draft.error_details = violation.breach.error_details();
    let id = book.id();
    let admitted = book.policy.own_under(book.governor.standing().rules.label(), draft, id);
    book.write(admitted.view()).expect("the same comes of it");
}

#[test]
fn without_rules_nothing_changes_but_what_is_built_in() {
    let mut book = Book::without_rules();
    let admitted =
        book.admit(draft("a.b", r#","required_proofs":["k1_state"],"actor_id":"x""#), 5).expect("admitted");
    let view = admitted.view();
    assert_eq!(view.actor_id, "uid:5/x");
    assert!(view.provided_proofs.contains(r#""type":"k1_state","valid":true"#));
    assert!(json::member(view.environment, "attestd.rules") == Some("\"default\""));
    book.write(view).expect("followed");
    assert_eq!(code(book.admit(draft("a.b", r#","required_approvals":1"#), 5)), Code::QuorumInvariant);
    let never = book.open(draft("a.b", r#","required_approvals":1"#), 5);
    assert_eq!(code(never), Code::RulesUnmeetable, "nobody could approve");
}

#[test]
fn the_state_is_that_of_the_entries_that_concern_it() {
    let mut book = Book::new();
    let id = approved_as(&mut book, "dev/1");
    let admitted = book.admit(draft("free.x", ""), OPS).expect("admitted");
    assert!(!Governor::concerns(&admitted.view()));
    let sealed = book.sealing(id, ExecutionStatus::Success, SEALER).expect("sealed");
    assert!(Governor::concerns(&sealed.view()));
}

// The model: what a person would say about one proposal, without entries, keys or rules.

#[derive(Debug, Clone, Copy)]
enum Op {
    Decide { approver: usize, approve: bool },
    Withdraw,
    Expire,
    Seal,
    Wait,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (0..4usize, prop::bool::weighted(0.85)).prop_map(|(approver, approve)| Op::Decide { approver, approve }),
        1 => Just(Op::Withdraw),
        1 => Just(Op::Expire),
        3 => Just(Op::Seal),
        1 => Just(Op::Wait),
    ]
}

#[derive(Default)]
struct Model {
    decided: Vec<usize>,
    yes: Vec<usize>,
    over: bool,
    ended: Option<Ending>,
}

impl Model {
    /// Whether `op` goes through. Approver 3 is the proposer's own.
    fn step(&mut self, op: Op, blocking: bool) -> bool {
        if let Op::Wait = op {
            self.over = true;
            return true;
        }
        if self.ended.is_some() || (self.over != matches!(op, Op::Expire)) {
            return false;
        }
        match op {
            Op::Decide { approver: 3, .. } => false,
            Op::Decide { approver, approve } => {
                if self.decided.contains(&approver) {
                    return false;
                }
                self.decided.push(approver);
                if approve {
                    self.yes.push(approver);
                } else if blocking {
                    self.ended = Some(Ending::Rejected);
                }
                true
            }
            Op::Seal => {
                // Two of anybody, or all three roles.
                let met = self.yes.len() >= if blocking { 3 } else { 2 };
                if met {
                    self.ended = Some(Ending::Sealed);
                }
                met
            }
            Op::Withdraw | Op::Expire => {
                self.ended = Some(if let Op::Expire = op { Ending::Expired } else { Ending::Withdrawn });
                true
            }
            Op::Wait => true,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn no_payload_makes_it_panic(at: prop::sample::Index, byte: u8, cut: bool) {
        let mut book = Book::new();
        let (peer, json) = book.named(OPS);
        let id = ProposalId(book.id());
        let payload =
            book.governor.open(policy_draft(), &peer, &json, id, book.now(), 65_536).expect("a payload");
        let mut bytes = payload.into_bytes();
        let at = at.index(bytes.len());
        if cut {
            bytes.remove(at);
        } else {
            bytes[at] = byte;
        }
        if let Ok(changed) = json::canonicalize(&bytes)
            && changed.starts_with('{')
        {
            for action in ["proposal.open", "approval.give", "proposal.withdraw", "rules.set", "system_violation"] {
                let _ = book.write_own(EventType::Decision, action, changed.clone());
            }
        }
    }

    #[test]
    fn random_operations_go_as_the_model_says(ops in prop::collection::vec(op(), 1..14), blocking: bool) {
        let mut book = Book::new();
        let mut proposed = if blocking { policy_draft() } else { draft("risky.run", "") };
        proposed.actor_id = Some("dev".into());
        let id = book.open(proposed, DEV).map_err(Refusal::from).expect("opened");
        let expires_at = book.governor.proposal(id).expect("open").subject.expires_at;
        let mut model = Model::default();
        for op in ops {
            let done = match op {
                Op::Decide { approver, approve } => {
                    let decision = if approve { Decision::Approve } else { Decision::Reject };
                    book.decide(id, ["a", "b", "c", "d"][approver], decision).is_ok()
                }
                Op::Withdraw => {
                    let (peer, json) = book.named(DEV);
                    let payload = book.governor.withdraw(id, "", Some("dev"), &peer, &json, book.now());
                    payload.and_then(|p| book.write_own(EventType::Decision, "proposal.withdraw", p)).is_ok()
                }
                Op::Expire => {
                    let payload = Governor::expire(id);
                    book.write_own(EventType::Decision, "proposal.expire", payload).is_ok()
                }
                Op::Seal => book.seal(id, SEALER).is_ok(),
                Op::Wait => {
                    book.now = book.now.max(expires_at.as_micros());
                    true
                }
            };
            prop_assert_eq!(done, model.step(op, blocking), "{:?}", op);
            prop_assert_eq!(book.governor.ending(id), model.ended);
            prop_assert_eq!(book.governor.proposal(id).is_ok(), model.ended.is_none());
        }
    }
}
