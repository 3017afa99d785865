//! What the daemon writes in its own name: rules, violations, and nothing that is not its own.

use attestd::governance::governor::Attempt;
use attestd::governance::invariant::{Breach, Invariant};
use attestd::ledger::code::Code;
use attestd::ledger::draft::Draft as Request;
use attestd::ledger::entry::{ActorType, EventCategory, EventType, ExecutionStatus};
use attestd::ledger::hash::Digest;

use super::super::quote;
use super::book::{Book, NOTHING, request, scores};
use super::cast::{self, OPS, Pair, READER, SEALER, STRANGER};
use super::{Draft, Lines, Vectors, in_payload};

pub(super) fn add(vectors: &mut Vectors) {
    contents(vectors);
    changes(vectors);
    sealed_rules(vectors);
    own(vectors);
    violations(vectors);
}

/// Whom a caller makes the daemon write for.
fn by(uid: u32, caller: Option<&str>, actor_id: &str) -> String {
    format!(r#"{{"actor_id":{},"peer":{}}}"#, quote(actor_id), cast::peer(uid, caller).1)
}

/// Rules put in force over none, without anybody's approval.
fn set(rules: &str) -> Lines {
    let mut book = Book::with("null");
    book.own(EventType::Change, "rules.set", format!(r#"{{"rules":{rules}}}"#), NOTHING);
    book.lines
}

fn contents(vectors: &mut Vectors) {
    use Code::*;
    vectors.accept("gov-genesis-rules", "rules from the genesis on", Book::with(&cast::rules()).lines);
    let with = |name: &'static str, pair: Pair| {
        let mut approvers = cast::approvers();
        approvers.push((name, "auditor", "[]", pair));
        cast::rules_with(&approvers)
    };
    vectors.reject("gov-genesis-one-key", "two names for one key", RulesSharedKey, {
        Book::with(&with("eve", cast::bo())).lines
    });
    vectors.reject("gov-genesis-one-point", "two names for one point", RulesSharedKey, {
        Book::with(&with("eve", cast::ann_by_ssh())).lines
    });
    vectors.reject("gov-genesis-ledgers-key", "an approver with the ledger's key", RulesSharedKey, {
        Book::with(&with("eve", cast::ledgers())).lines
    });
    vectors.reject("gov-genesis-one-name", "one name for two keys", Rules, {
        Book::with(&with("ann", cast::eve())).lines
    });
    vectors.reject("gov-genesis-unmeetable", "more approvals than there are approvers", RulesUnmeetable, {
        Book::with(&cast::rules().replace("\"approvals\":3", "\"approvals\":5")).lines
    });
    vectors.reject("gov-genesis-unknown", "rules with a strange member", Rules, {
        Book::with(&cast::rules().replace("{\"actions\"", "{\"abc\":[],\"actions\"")).lines
    });
    vectors.accept("gov-set", "rules put in force where there were none", set(&cast::rules()));
    vectors.reject("gov-set-one-key", "two names for one key", RulesSharedKey, {
        set(&with("eve", cast::bo()))
    });
    vectors.reject("gov-set-ledgers-key", "an approver with the ledger's key", RulesSharedKey, {
        set(&with("eve", cast::ledgers()))
    });
    vectors.reject("gov-set-nothing", "no rules", MissingMember, {
        let mut book = Book::with("null");
        book.own(EventType::Change, "rules.set", "{}".into(), NOTHING);
        book.lines
    });
    vectors.accept("gov-set-followed", "an event under new rules", {
        let mut book = Book::with("null");
        book.own(EventType::Change, "rules.set", format!(r#"{{"rules":{}}}"#, cast::rules()), NOTHING);
        book.append(request("ACTION", "free.x", "SUCCESS", ""), OPS, NOTHING);
        book.lines
    });
    vectors.reject("gov-set-unfollowed", "an event that goes on under the old rules", RulesInForce, {
        let mut book = Book::with("null");
        let mut after = book.clone();
        after.own(EventType::Change, "rules.set", format!(r#"{{"rules":{}}}"#, cast::rules()), NOTHING);
        book.append(request("ACTION", "free.x", "SUCCESS", ""), OPS, NOTHING);
        let late = String::from_utf8(book.lines.remove(1)).expect("UTF-8");
        after.append(request("ACTION", "free.x", "SUCCESS", ""), OPS, |d| {
            for name in ["environment", "actor_context"] {
                let (_, rest) = late.split_once(&format!("\"{name}\":")).expect("a member");
                let next = if name == "environment" { ",\"error_details\"" } else { ",\"actor_id\"" };
                d.set(name, rest.split(next).next().expect("a value"));
            }
        });
        after.lines
    });
}

/// Fewer approvers, which is what somebody would like to have.
fn weaker() -> String {
    cast::rules()
        .replace("\"approvals\":3", "\"approvals\":2")
        .replace(r#"["auditor","community","creator"]"#, r#"["community","creator"]"#)
}

fn changes(vectors: &mut Vectors) {
    use Code::*;
    let set_by = |by: &str, edit: &dyn Fn(&mut Draft)| {
        let free = cast::rules().replace("rules.set", "rules.get");
        let mut book = Book::with(&free);
        let payload = format!(r#"{{"requested_by":{by},"rules":{}}}"#, cast::rules());
        book.own(EventType::Change, "rules.set", payload, edit);
        book.lines
    };
    vectors.accept("gov-set-by-ops", "changed by a caller that administers, where that is enough", {
        set_by(&by(OPS, Some("ops"), "uid:1000"), &NOTHING)
    });
    vectors.reject("gov-set-by-reader", "changed by a caller without the verb", CallerNotAllowed, {
        set_by(&by(READER, Some("reader"), "uid:1003"), &NOTHING)
    });
    vectors.reject("gov-set-by-stranger", "changed by a stranger", CallerNotAllowed, {
        set_by(&by(STRANGER, None, "uid:1009"), &NOTHING)
    });
    vectors.reject("gov-set-caller", "changed by a caller of another name", CallerRule, {
        set_by(&by(OPS, Some("late"), "uid:1000"), &NOTHING)
    });
    vectors.reject("gov-set-actor", "changed as an actor that the caller is not", WrongValue, {
        set_by(&by(OPS, Some("ops"), "uid:1001"), &NOTHING)
    });
    vectors.reject("gov-set-by-client", "a client's change of rules", ReservedByClient, {
        set_by(&by(OPS, Some("ops"), "uid:1000"), &|d| {
            d.set("actor_context", format!(r#"{{"peer":{}}}"#, cast::peer(OPS, Some("ops")).1));
            d.set("actor_id", r#""uid:1000""#);
        })
    });
    vectors.reject("gov-set-as-action", "a change of rules that is no CHANGE", WrongValue, {
        set_by(&by(OPS, Some("ops"), "uid:1000"), &|d| d.set("event_type", r#""ACTION""#))
    });
}

fn proposed() -> (Book, attestd::governance::approval::ProposalId) {
    let mut book = Book::new();
    let mut change = request("CHANGE", "rules.set", "SUCCESS", "");
    change.action_payload = format!(r#"{{"rules":{}}}"#, weaker());
    let id = book.open(change, OPS, NOTHING);
    (book, id)
}

fn sealed_rules(vectors: &mut Vectors) {
    use Code::*;
    let sealed = |edit: &dyn Fn(&mut Draft)| {
        let (mut book, id) = proposed();
        book.approve(id, &["ann"]);
        book.seal(id, SEALER, edit);
        book.lines
    };
    vectors.accept("gov-rules-sealed", "rules changed by a proposal, and an event under them", {
        let (mut book, id) = proposed();
        book.approve(id, &["ann"]);
        book.seal(id, SEALER, NOTHING);
        book.append(request("ACTION", "free.x", "SUCCESS", ""), OPS, NOTHING);
        book.lines
    });
    vectors.reject(
        "gov-rules-unapproved",
        "rules changed without the approvals they ask",
        QuorumInvariant,
        {
            let mut book = Book::new();
            let payload = format!(r#"{{"rules":{}}}"#, weaker());
            book.own(EventType::Change, "rules.set", payload, |d| {
                d.set("required_approvals", "1");
                d.set("quorum_met", "false");
            });
            book.lines
        },
    );
    vectors.reject("gov-rules-unasked", "rules changed as if nothing were asked", RequiredApprovals, {
        let mut book = Book::new();
        let payload = format!(r#"{{"rules":{}}}"#, weaker());
        book.own(EventType::Change, "rules.set", payload, NOTHING);
        book.lines
    });
    vectors.reject("gov-rules-blocked", "rules changed without approvals, as BLOCKED", WrongValue, {
        let mut book = Book::new();
        let payload = format!(r#"{{"rules":{}}}"#, weaker());
        book.own(EventType::Change, "rules.set", payload, |d| {
            d.set("required_approvals", "1");
            d.set("quorum_met", "false");
            d.set("execution_status", r#""BLOCKED""#);
        });
        book.lines
    });
    vectors.reject("gov-mode-blocked", "the mode changed without approvals, as BLOCKED", WrongValue, {
        let mut book = Book::new();
        book.own(EventType::Change, "signature.mode", r#"{"from":"each","to":"commit"}"#.into(), |d| {
            d.set("required_approvals", "1");
            d.set("quorum_met", "false");
            d.set("execution_status", r#""BLOCKED""#);
        });
        book.lines
    });
    vectors.reject("gov-rules-short-blocked", "rules sealed one approval short, as BLOCKED", WrongValue, {
        let (mut book, id) = proposed();
        let mut approved = book.clone();
        approved.approve(id, &["ann"]);
        let sealing = approved.sealing(id, ExecutionStatus::Success, SEALER);
        book.write(&sealing, |d| {
            let ids = d.text("dependencies");
            let (first, _) = ids.split_once(',').expect("two");
            d.set("dependencies", format!("{first}]"));
            d.set("received_approvals", "[]");
            d.set("quorum_met", "false");
            d.set("execution_status", r#""BLOCKED""#);
        });
        book.lines
    });
    vectors.reject("gov-rules-failed", "rules sealed as FAILED", WrongValue, {
        sealed(&|d| d.set("execution_status", r#""FAILED""#))
    });
    vectors.reject("gov-rules-other-content", "other rules than those proposed", ProposalDraft, {
        sealed(&|d| in_payload(d, "\"floor\":\"7\"", "\"floor\":\"1\""))
    });
    vectors.reject("gov-rules-sealer", "sealed by a caller without the verb", CallerNotAllowed, {
        sealed(&|d| {
            let from = by(SEALER, Some("sealer"), "uid:1002");
            in_payload(d, &from, &by(READER, Some("reader"), "uid:1003"));
        })
    });
    vectors.reject("gov-rules-sealer-actor", "sealed as an actor that the caller is not", WrongValue, {
        sealed(&|d| in_payload(d, "\"uid:1002\"", "\"uid:1000\""))
    });
    vectors.reject("gov-rules-nobody", "sealed by nobody", MissingMember, {
        sealed(&|d| {
            in_payload(d, &format!(",\"requested_by\":{}", by(SEALER, Some("sealer"), "uid:1002")), "");
        })
    });
    vectors.reject("gov-rules-without-proposal", "approvals without a proposal", ReceivedApprovals, {
        sealed(&|d| {
            let payload = d.text("action_payload");
            let (_, rest) = payload.split_once("\"proposal_id\":").expect("a member");
            let id = rest.split(',').next().expect("an id");
            in_payload(d, &format!("\"proposal_id\":{id},"), "");
            // Somebody who could do it alone if the rules let anybody.
            in_payload(d, &by(SEALER, Some("sealer"), "uid:1002"), &by(OPS, Some("ops"), "uid:1000"));
        })
    });
}

fn own(vectors: &mut Vectors) {
    use Code::*;
    let clock = |edit: &dyn Fn(&mut Draft)| {
        let mut book = Book::new();
        book.own(EventType::Action, "system_clock", r#"{"found":"behind"}"#.into(), edit);
        book.lines
    };
    vectors.accept("gov-clock", "an entry of the daemon's own", clock(&NOTHING));
    vectors.reject("gov-clock-approved", "the daemon's own, with an approval", ReceivedApprovals, {
        clock(&|d| d.set("received_approvals", r#"[{"signer":"ann"}]"#))
    });
    vectors.reject("gov-clock-required", "the daemon's own, that requires an approval", Quorum, {
        clock(&|d| d.set("required_approvals", "1"))
    });
    vectors.reject("gov-clock-proved", "the daemon's own, with a proof", ProvidedProofs, {
        clock(&|d| d.set("provided_proofs", r#"[{"type":"pillars"}]"#))
    });
    vectors.reject("gov-clock-context", "the daemon's own, with a context", WrongValue, {
        clock(&|d| d.set("actor_context", r#"{"a":1}"#))
    });
    vectors.reject("gov-daemon-acts", "a governed action in the daemon's name", WrongValue, {
        clock(&|d| d.set("action_type", r#""policy.set""#))
    });
    vectors.reject("gov-daemon-acts-freely", "any client's action in the daemon's name", WrongValue, {
        clock(&|d| d.set("action_type", r#""free.x""#))
    });
    vectors.reject("gov-boot-as-action", "a boot that is no BOOT", WrongValue, {
        clock(&|d| {
            d.set("action_type", r#""system_initialization""#);
            d.payload(r#"{"attribution_verified":true,"version":"0.1.0"}"#);
        })
    });
    vectors.reject("gov-violation-as-clock", "a VIOLATION that is none", WrongValue, {
        clock(&|d| d.set("event_type", r#""VIOLATION""#))
    });
    vectors.reject("gov-step-unknown", "a step that proposals do not have", GovernanceUnavailable, {
        clock(&|d| {
            d.set("event_type", r#""DECISION""#);
            d.set("action_type", r#""proposal.amend""#);
        })
    });
}

fn violation(payload: String, breach: Breach, edit: &dyn Fn(&mut Draft)) -> Lines {
    let mut book = Book::new();
    book.own_draft(blocked(payload, breach), edit);
    book.lines
}

fn blocked(payload: String, breach: Breach) -> Request {
    let mut draft = Request::new(
        EventType::Violation,
        "system_violation",
        payload,
        ExecutionStatus::Blocked,
        ActorType::System,
    );
    draft.event_category = EventCategory::Error;
    draft.severity = EventCategory::Error.default_severity();
    draft.error_details = breach.error_details();
    draft
}

fn attempt(request: &Request, whole: bool) -> String {
    let (_, peer_json) = cast::peer(OPS, Some("ops"));
    Attempt {
        peer_json: &peer_json,
        claimed_actor_id: None,
        entry_id: None,
        draft: request,
        proposal_id: None,
        count: 1,
        whole,
    }
    .to_payload()
}

fn violations(vectors: &mut Vectors) {
    use Code::*;
    let floor = Breach::Invariant(Invariant::SafetyFloor);
    let low = request("ACTION", "free.x", "SUCCESS", &scores("6.2"));
    let whole = || attempt(&low, true);
    let low_with = |edit: &dyn Fn(&mut Draft)| violation(whole(), floor, edit);
    vectors.accept("gov-violation-hash", "an attempt of which only the hash is kept", {
        violation(attempt(&low, false), floor, &NOTHING)
    });
    vectors.reject("gov-violation-no-hash", "an attempt of which nothing is kept", ViolationReason, {
        let hash = Digest::of(low.to_canonical().as_bytes()).to_hex();
        violation(attempt(&low, false), floor, &|d| in_payload(d, &hash, "unknown"))
    });
    vectors.reject("gov-violation-proposal", "of a seal of what is no proposal", ViolationReason, {
        violation(attempt(&low, false), floor, &|d| {
            in_payload(d, "\"proposal_id\":null", "\"proposal_id\":\"unknown\"");
        })
    });
    vectors.accept("gov-violation", "an attempt under the floor", low_with(&NOTHING));
    vectors.reject("gov-violation-reason", "of another invariant", ViolationReason, {
        violation(whole(), Breach::Invariant(Invariant::K1State), &NOTHING)
    });
    vectors.reject("gov-violation-nothing", "an attempt that breaks nothing", ViolationReason, {
        let fine = request("ACTION", "free.x", "SUCCESS", &scores("8"));
        violation(attempt(&fine, true), floor, &NOTHING)
    });
    vectors.reject("gov-violation-not-allowed", "an attempt that nobody had to record", ViolationReason, {
        let (_, ops) = cast::peer(OPS, Some("ops"));
        low_with(&|d| in_payload(d, &ops, &cast::peer(READER, Some("reader")).1))
    });
    vectors.reject("gov-violation-attempt-hash", "the hash of another attempt", ViolationReason, {
        let hash = Digest::of(low.to_canonical().as_bytes()).to_hex();
        low_with(&|d| in_payload(d, &hash, &Digest::of(b"{}").to_hex()))
    });
    vectors.reject("gov-violation-count", "no attempt at all", ViolationReason, {
        low_with(&|d| in_payload(d, "\"count\":1", "\"count\":0"))
    });
    vectors.reject("gov-violation-claim", "another actor than the attempt's", ViolationReason, {
        low_with(&|d| in_payload(d, "\"claimed_actor_id\":null", "\"claimed_actor_id\":\"mai\""))
    });
    vectors.reject("gov-violation-words", "a reason in other words", ViolationReason, {
        low_with(&|d| d.replace("error_details", "do not do it", "do it"))
    });
    vectors.reject("gov-violation-success", "a violation that is SUCCESS", ViolationReason, {
        low_with(&|d| d.set("execution_status", r#""SUCCESS""#))
    });
    vectors.reject("gov-violation-action", "a violation that is an ACTION", WrongValue, {
        low_with(&|d| d.set("event_type", r#""ACTION""#))
    });
    vectors.reject("gov-violation-stranger", "an attempt by nobody whom the rules know", CallerNotAllowed, {
        let (_, ops) = cast::peer(OPS, Some("ops"));
        low_with(&|d| in_payload(d, &ops, &cast::peer(STRANGER, None).1))
    });
    vectors.reject("gov-violation-by-client", "a client's, posing as the daemon", ReservedByClient, {
        low_with(&|d| {
            d.set("actor_context", format!(r#"{{"peer":{}}}"#, cast::peer(OPS, Some("ops")).1));
            d.set("actor_id", r#""uid:1000""#);
        })
    });
    vectors.reject("gov-violation-as-daemon", "a client's, by the daemon's name", ReservedByClient, {
        low_with(&|d| {
            d.set("actor_context", format!(r#"{{"peer":{}}}"#, cast::peer(OPS, Some("ops")).1));
        })
    });
}
