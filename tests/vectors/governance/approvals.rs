//! Single approvals: each is an `approval.give` entry, which holds or does not by itself.

use attestd::governance::approval::{Approval, Decision, NAMESPACE, ProposalId, Subject};
use attestd::governance::rules::Approver;
use attestd::ledger::code::Code;
use attestd::ledger::entry::{EntryId, ExecutionStatus};
use attestd::ledger::hash::Digest;
use attestd::ledger::timestamp::Timestamp;

use super::super::quote;
use super::book::{Book, NOTHING, policy_change};
use super::cast::{self, DEV, OPS, Pair, READER, SEALER, STRANGER};
use super::{Lines, Vectors, in_payload};

/// A ledger with one open proposal, `dev`'s change of policy.
pub(super) fn opened() -> (Book, ProposalId) {
    let mut book = Book::new();
    let id = book.open(policy_change(), DEV, NOTHING);
    (book, id)
}

fn given(name: &str, edit: impl FnOnce(&mut super::Draft)) -> Lines {
    let (mut book, id) = opened();
    book.decide(id, name, Decision::Approve, edit);
    book.lines
}

/// An approval of `ann`'s that was changed after it was signed.
fn changed(change: impl FnOnce(&mut Approval)) -> Lines {
    let (mut book, id) = opened();
    let mut approval = book.approval(id, "ann", Decision::Approve);
    change(&mut approval);
    book.record(id, &approval, Decision::Approve, NOTHING);
    book.lines
}

/// An approval of `ann`'s that is soundly signed, over another subject.
fn over(change: impl FnOnce(&mut Subject)) -> Lines {
    let (mut book, id) = opened();
    let proposal = book.governor.proposal(id).expect("open");
    let mut subject = proposal.subject.clone();
    change(&mut subject);
    let approver = proposal.rules.approver("ann").expect("in the rules").clone();
    let approval = signed(&subject.statement(&approver, Decision::Approve), &approver, &cast::ann());
    book.record(id, &approval, Decision::Approve, NOTHING);
    book.lines
}

/// An approval by somebody whom the rules do not have like that, soundly signed.
fn by(approver: &Approver, pair: &Pair) -> Lines {
    let (mut book, id) = opened();
    let statement = book.governor.proposal(id).expect("open").subject.statement(approver, Decision::Approve);
    book.record(id, &signed(&statement, approver, pair), Decision::Approve, NOTHING);
    book.lines
}

/// What `approver` says it signed, signed by `pair`.
pub(super) fn signed(statement: &str, approver: &Approver, pair: &Pair) -> Approval {
    Approval {
        signer: approver.name.clone(),
        role: approver.role.clone(),
        key_id: approver.key.id(),
        algorithm: approver.key.algorithm().as_str().into(),
        statement: statement.into(),
        signature: pair.sign(statement, NAMESPACE),
    }
}

pub(super) fn approver(name: &str, role: &str, pair: &Pair) -> Approver {
    Approver {
        name: name.into(),
        role: role.into(),
        key: pair.key.clone(),
        callers: Vec::new(),
        actor_ids: Vec::new(),
    }
}

pub(super) fn add(vectors: &mut Vectors) {
    signers(vectors);
    statements(vectors);
    signatures(vectors);
    times(vectors);
    recorders(vectors);
}

fn signers(vectors: &mut Vectors) {
    use Code::*;
    vectors.accept("gov-given", "an approval with a PEM key", given("ann", NOTHING));
    vectors.reject("gov-given-unknown", "by somebody whom the rules do not name", ApproverUnknown, {
        by(&approver("eve", "creator", &cast::eve()), &cast::eve())
    });
    vectors.reject("gov-given-other-key", "by an approver with another key", ApproverUnknown, {
        by(&approver("ann", "creator", &cast::eve()), &cast::eve())
    });
    vectors.reject("gov-given-key-again", "by the right point in another format", ApproverUnknown, {
        by(&approver("ann", "creator", &cast::ann_by_ssh()), &cast::ann_by_ssh())
    });
    vectors.reject("gov-given-for-another", "in the name of another approver", ApprovalSignature, {
        by(&approver("ann", "creator", &cast::ann()), &cast::ledgers())
    });
    vectors.reject("gov-given-role", "in a role that the approver does not have", ApprovalRole, {
        by(&approver("ann", "auditor", &cast::ann()), &cast::ann())
    });
    vectors.reject("gov-given-own", "by the proposer", ApprovalOwn, given("di", NOTHING));
    vectors.reject("gov-given-twice", "a second time by one approver", ApproverTwice, {
        let (mut book, id) = opened();
        book.approve(id, &["ann", "ann"]);
        book.lines
    });
    vectors.reject("gov-given-then-rejected", "taken back by a rejection", ApproverTwice, {
        let (mut book, id) = opened();
        book.approve(id, &["ann"]);
        book.decide(id, "ann", Decision::Reject, NOTHING);
        book.lines
    });
}

fn statements(vectors: &mut Vectors) {
    use Code::*;
    vectors.twin = "gov-given";
    vectors.reject("gov-given-payload", "for another payload", ApprovalOtherAction, {
        over(|subject| subject.action_hash = Digest::of(br#"{"to":3}"#))
    });
    vectors.reject("gov-given-action", "for another action", ApprovalOtherAction, {
        over(|subject| subject.action_type = "policy.get".into())
    });
    vectors.reject("gov-given-ledger", "for another ledger", ApprovalOtherLedger, {
        over(|subject| subject.origin = "other.example/ledger".into())
    });
    vectors.reject("gov-given-proposal", "for another proposal", ApprovalOtherProposal, {
        over(|subject| subject.proposal_id = ProposalId(EntryId::from_random([9; 16])))
    });
    vectors.reject("gov-given-opening", "for another opening of the proposal", ApprovalOtherProposal, {
        over(|subject| subject.proposal_hash = Digest::of(b"another opening"))
    });
    vectors.reject("gov-given-rules", "under other rules", RulesInForce, {
        over(|subject| subject.rules_hash = "default".into())
    });
    vectors.reject("gov-given-expiry", "until another time", ApprovalOtherProposal, {
        over(|subject| {
            subject.expires_at = Timestamp::from_micros(subject.expires_at.as_micros() + 1);
        })
    });
    let respelled = |from: &str, to: &str| {
        let (mut book, id) = opened();
        let sound = book.approval(id, "ann", Decision::Approve);
        let statement = sound.statement.replacen(from, to, 1);
        assert_ne!(statement, sound.statement, "{from}");
        let approval = Approval { signature: cast::ann().sign(&statement, NAMESPACE), statement, ..sound };
        book.record(id, &approval, Decision::Approve, NOTHING);
        book.lines
    };
    vectors.reject("gov-given-space", "over a statement with a space", ApprovalMalformed, {
        respelled("\":\"", "\": \"")
    });
    vectors.reject("gov-given-more", "over a statement that says more", ApprovalMalformed, {
        respelled("\"}", "\",\"zeal\":\"\"}")
    });
    vectors.reject("gov-given-version", "over a statement of another version", ApprovalMalformed, {
        respelled("attestd-approval-v1", "attestd-approval-v2")
    });
    vectors.reject("gov-given-feed", "over a statement with a line feed", ApprovalMalformed, {
        respelled("-v1\"}", "-v1\"}\n")
    });
    vectors.reject("gov-given-undecided", "over a statement that does not decide", ApprovalMalformed, {
        respelled("\"approve\"", "\"maybe\"")
    });
    vectors.reject("gov-given-as-rejection", "recorded as a rejection", ApprovalMalformed, {
        given("ann", |d| d.set("action_type", r#""approval.reject""#))
    });
    vectors.reject("gov-given-as-action", "recorded as an ACTION", WrongValue, {
        given("ann", |d| d.set("event_type", r#""ACTION""#))
    });
    vectors.reject("gov-given-failed", "recorded as FAILED", WrongValue, {
        given("ann", |d| d.set("execution_status", r#""FAILED""#))
    });
    vectors.accept("gov-rejected", "a rejection", {
        let (mut book, id) = opened();
        book.decide(id, "ann", Decision::Reject, NOTHING);
        book.lines
    });
    vectors.reject("gov-rejected-as-approval", "a rejection recorded as an approval", ApprovalMalformed, {
        let (mut book, id) = opened();
        book.decide(id, "ann", Decision::Reject, |d| d.set("action_type", r#""approval.give""#));
        book.lines
    });
}

fn signatures(vectors: &mut Vectors) {
    use Code::*;
    vectors.twin = "gov-given";
    vectors.reject("gov-signature-flipped", "one bit of the signature", ApprovalSignature, {
        changed(|approval| {
            let at = approval.signature.len() - 1;
            let last = if approval.signature.ends_with('0') { "1" } else { "0" };
            approval.signature.replace_range(at.., last);
        })
    });
    vectors.reject("gov-signature-empty", "no signature", ApprovalSignature, {
        changed(|approval| approval.signature.clear())
    });
    vectors.reject("gov-signature-upper", "upper-case hex", ApprovalSignature, {
        changed(|approval| approval.signature = approval.signature.to_uppercase())
    });
    vectors.reject("gov-signature-trailing", "a byte behind it", ApprovalSignature, {
        changed(|approval| approval.signature.push_str("00"))
    });
    vectors.reject("gov-signature-label", "under another algorithm's name", ApprovalMalformed, {
        changed(|approval| approval.algorithm = "SSHSIG-P256".into())
    });
    vectors.reject("gov-signature-lifted", "of a rejection of the same", ApprovalSignature, {
        let (mut book, id) = opened();
        let rejection = book.approval(id, "ann", Decision::Reject);
        let approval =
            Approval { signature: rejection.signature, ..book.approval(id, "ann", Decision::Approve) };
        book.record(id, &approval, Decision::Approve, NOTHING);
        book.lines
    });
    vectors.accept("gov-signature-high-s", "an approver's S may be in the high half", {
        changed(|approval| approval.signature = cast::ann().sign_high(&approval.statement))
    });
    let resigned = |name: &'static str, sign: fn(&str) -> String| {
        let (mut book, id) = opened();
        let mut approval = book.approval(id, name, Decision::Approve);
        approval.signature = sign(&approval.statement);
        book.record(id, &approval, Decision::Approve, NOTHING);
        book.lines
    };
    vectors.accept("gov-given-ssh", "an approval with an SSH key", given("bo", NOTHING));
    vectors.reject("gov-sshsig-namespace", "an SSH signature for another purpose", ApprovalSignature, {
        resigned("bo", |statement| cast::bo().sign(statement, "file"))
    });
    vectors.reject("gov-sshsig-other-key", "an SSH signature by another key", ApprovalSignature, {
        resigned("bo", |statement| cast::eve().sign(statement, NAMESPACE))
    });
    vectors.reject("gov-sshsig-crlf", "an SSH signature with CRLF", ApprovalSignature, {
        resigned("bo", |statement| cast::bo().sign(statement, NAMESPACE).replace('\n', "\r\n"))
    });
    vectors.accept("gov-given-touched", "an approval with a security key", given("cy", NOTHING));
    vectors.reject("gov-given-untouched", "a security key that nobody touched", ApprovalSignature, {
        resigned("cy", |statement| {
            let mut pair = cast::cy();
            pair.flags = 4;
            pair.sign(statement, NAMESPACE)
        })
    });
}

fn times(vectors: &mut Vectors) {
    use Code::*;
    let at = |micros: i64| {
        let (mut book, id) = opened();
        let expires_at = book.governor.proposal(id).expect("open").subject.expires_at;
        let time = Timestamp::from_micros(expires_at.as_micros() + micros);
        book.decide(id, "ann", Decision::Approve, |d| d.set("timestamp", quote(&time.to_string())));
        book.lines
    };
    vectors.accept("gov-given-last-moment", "an approval a microsecond before the expiry", at(-1));
    vectors.reject("gov-given-at-expiry", "at the very time of expiry", ProposalExpired, at(0));
    vectors.reject("gov-given-late", "a second after the expiry", ProposalExpired, at(1_000_000));
    let after = |end: fn(&mut Book, ProposalId)| {
        let (mut book, id) = opened();
        book.approve(id, &["ann", "bo"]);
        let late = book.approval(id, "cy", Decision::Approve);
        end(&mut book, id);
        book.record(id, &late, Decision::Approve, NOTHING);
        book.lines
    };
    vectors.twin = "gov-sealed";
    vectors.reject("gov-given-after-rejection", "an approval after a rejection", ProposalClosed, {
        after(|book, id| {
            // Of another approver whose word counts.
            let rejection = book.approval(id, "cy", Decision::Reject);
            book.record(id, &rejection, Decision::Reject, NOTHING);
        })
    });
    vectors.reject("gov-given-after-withdrawal", "an approval after the withdrawal", ProposalClosed, {
        after(|book, id| book.withdraw(id, NOTHING))
    });
    vectors.reject("gov-given-after-seal", "an approval after the seal", ProposalClosed, {
        after(|book, id| {
            let blocked = book.sealing(id, ExecutionStatus::Blocked, SEALER);
            book.write(&blocked, NOTHING);
        })
    });
    vectors.reject("gov-given-to-nothing", "an approval of a proposal that is none", ProposalUnknown, {
        let (mut book, id) = opened();
        let approval = book.approval(id, "ann", Decision::Approve);
        book.record(ProposalId(EntryId::from_random([9; 16])), &approval, Decision::Approve, NOTHING);
        book.lines
    });
}

/// Who brought an approval is recorded, and has to be a caller.
fn recorders(vectors: &mut Vectors) {
    use Code::*;
    vectors.twin = "gov-given";
    let brought = |actor: &str, uid: u32, caller: Option<&str>| {
        let (_, ops) = cast::peer(OPS, Some("ops"));
        let (_, other) = cast::peer(uid, caller);
        let from = format!(r#"{{"actor_id":"uid:{OPS}","peer":{ops}}}"#);
        let to = format!(r#"{{"actor_id":"{actor}","peer":{other}}}"#);
        given("ann", |d| in_payload(d, &from, &to))
    };
    vectors.accept("gov-given-by-reader", "brought by a caller without a verb for it", {
        brought("uid:1003", READER, Some("reader"))
    });
    vectors.reject("gov-given-by-stranger", "brought by nobody whom the rules know", CallerNotAllowed, {
        brought("uid:1009", STRANGER, None)
    });
    vectors.reject("gov-given-caller", "brought by a caller of another name", CallerRule, {
        brought("uid:1003", READER, Some("ops"))
    });
    vectors.reject("gov-given-actor", "brought by an actor that the caller is not", WrongValue, {
        brought("mai", READER, Some("reader"))
    });
    vectors.reject("gov-given-unasked", "brought by nobody", ApprovalMalformed, {
        let (_, ops) = cast::peer(OPS, Some("ops"));
        given("ann", |d| {
            in_payload(d, &format!(r#","requested_by":{{"actor_id":"uid:{OPS}","peer":{ops}}}"#), "");
        })
    });
}
