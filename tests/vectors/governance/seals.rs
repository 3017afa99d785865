//! The lives of proposals: how they are opened, sealed with their outcome, and end.

use attestd::governance::approval::{Decision, ProposalId, Subject};
use attestd::governance::governor::Governor;
use attestd::ledger::code::Code;
use attestd::ledger::entry::{EventType, ExecutionStatus};
use attestd::ledger::hash::Digest;
use attestd::ledger::json;
use attestd::ledger::timestamp::Timestamp;

use super::super::{id, quote};
use super::approvals::{approver, opened, signed};
use super::book::{Book, NOTHING, policy_change, request};
use super::cast::{self, DEV, OPS, READER, SEALER, STRANGER};
use super::{Draft, Lines, Vectors, in_payload};

/// The proposal with the three approvals that it needs.
fn approved() -> (Book, ProposalId) {
    let (mut book, id) = opened();
    book.approve(id, &["ann", "bo", "cy"]);
    (book, id)
}

fn sealed(edit: impl FnOnce(&mut Draft)) -> Lines {
    let (mut book, id) = approved();
    book.seal(id, SEALER, edit);
    book.lines
}

/// A change of policy that `ops` proposes, so that `di` may approve it.
fn opened_by_ops() -> (Book, ProposalId) {
    let mut book = Book::new();
    let mut change = policy_change();
    change.actor_id = None;
    let id = book.open(change, OPS, NOTHING);
    (book, id)
}

/// Changes the items of `received_approvals`.
fn received(draft: &mut Draft, change: impl FnOnce(&mut Vec<String>)) {
    let mut items: Vec<String> =
        json::elements(&draft.text("received_approvals")).map(str::to_owned).collect();
    change(&mut items);
    draft.set("received_approvals", format!("[{}]", items.join(",")));
}

/// The text of a proposal's `expires_at`, moved.
fn expiry(book: &Book, id: ProposalId, micros: i64) -> Timestamp {
    let expires_at = book.governor.proposal(id).expect("open").subject.expires_at;
    Timestamp::from_micros(expires_at.as_micros() + micros)
}

pub(super) fn add(vectors: &mut Vectors) {
    openings(vectors);
    quorums(vectors);
    lists(vectors);
    drafts(vectors);
    endings(vectors);
    midway(vectors);
}

fn openings(vectors: &mut Vectors) {
    use Code::*;
    let open = |edit: &dyn Fn(&mut Draft)| {
        let mut book = Book::new();
        book.open(policy_change(), DEV, edit);
        book.lines
    };
    let dev = || cast::peer(DEV, Some("dev")).1;
    vectors.accept("gov-opened", "a proposal", open(&NOTHING));
    vectors.reject("gov-opened-rules", "under rules that are not in force", RulesInForce, {
        open(&|d| {
            let payload = d.text("action_payload");
            let (_, hash) = payload.split_once("\"rules_hash\":").expect("a member");
            in_payload(d, &format!("\"rules_hash\":{hash}"), "\"rules_hash\":\"default\"}");
        })
    });
    vectors.reject("gov-opened-for-long", "for a microsecond longer than allowed", ProposalExpiry, {
        open(&|d| in_payload(d, "03:01:02.000000Z", "03:01:02.000001Z"))
    });
    vectors.reject("gov-opened-over", "for no time at all", ProposalExpiry, {
        open(&|d| in_payload(d, "03:01:02.000000Z", "03:00:02.000000Z"))
    });
    vectors.reject("gov-opened-actor", "for another actor than the proposer", ProposalMalformed, {
        open(&|d| in_payload(d, r#""actor_id":"dev/1""#, r#""actor_id":"dev/2""#))
    });
    vectors.reject("gov-opened-actor-not-its", "as an actor that the caller may not be", ActorNotAllowed, {
        open(&|d| {
            let payload = d.text("action_payload").replace("dev/1", "mai");
            d.payload(payload);
        })
    });
    vectors.reject("gov-opened-unlisted", "by a caller without the verb", CallerNotAllowed, {
        open(&|d| in_payload(d, &dev(), &cast::peer(SEALER, Some("sealer")).1))
    });
    vectors.reject("gov-opened-stranger", "by nobody whom the rules know", CallerNotAllowed, {
        open(&|d| in_payload(d, &dev(), &cast::peer(STRANGER, None).1))
    });
    vectors.reject("gov-opened-caller", "by the second caller that matches", CallerRule, {
        open(&|d| in_payload(d, &dev(), &cast::peer(DEV, Some("late")).1))
    });
    vectors.reject("gov-opened-floor", "of what is under the floor", SafetyFloorInvariant, {
        open(&|d| {
            let payload = d.text("action_payload").replacen("\"an_toan\":8", "\"an_toan\":1", 1);
            d.payload(payload);
        })
    });
    vectors.reject("gov-opened-needless", "of what needs no approvals", ProposalNotNeeded, {
        open(&|d| in_payload(d, "policy.set", "free.set"))
    });
    vectors.reject("gov-opened-spelling", "of a draft in another spelling", ProposalMalformed, {
        open(&|d| in_payload(d, r#""severity":0,"#, ""))
    });
    vectors.reject("gov-opened-again", "with the id of another proposal", ProposalMalformed, {
        let mut book = Book::new();
        let first = book.open(policy_change(), DEV, NOTHING);
        book.open(policy_change(), DEV, |d| {
            in_payload(
                d,
                "\"proposal_id\":\"00000000-0000-4000-8000-000000000005\"",
                &format!("\"proposal_id\":\"{first}\""),
            );
        });
        book.lines
    });
}

fn quorums(vectors: &mut Vectors) {
    use Code::*;
    vectors.accept("gov-sealed-blocked", "one approval short, but nothing was done", {
        let (mut book, id) = opened();
        book.approve(id, &["ann", "bo"]);
        let blocked = book.sealing(id, ExecutionStatus::Blocked, SEALER);
        book.write(&blocked, NOTHING);
        book.lines
    });
    let short = |edit: fn(&mut Draft)| {
        let (mut book, id) = opened();
        book.approve(id, &["ann", "bo"]);
        let blocked = book.sealing(id, ExecutionStatus::Blocked, SEALER);
        book.write(&blocked, edit);
        book.lines
    };
    vectors.reject("gov-short", "one approval short", QuorumInvariant, {
        short(|d| d.set("execution_status", r#""SUCCESS""#))
    });
    vectors.reject("gov-short-failed", "one approval short, and it failed", QuorumInvariant, {
        short(|d| d.set("execution_status", r#""FAILED""#))
    });
    vectors.reject("gov-short-claimed", "one approval short, said to be enough", Quorum, {
        short(|d| {
            d.set("execution_status", r#""SUCCESS""#);
            d.set("quorum_met", "true");
        })
    });
    vectors.reject("gov-short-lowered", "one approval short of a lowered number", RequiredApprovals, {
        short(|d| {
            d.set("execution_status", r#""SUCCESS""#);
            d.set("quorum_met", "true");
            d.set("required_approvals", "2");
        })
    });
    vectors.accept("gov-sealed-by-ops-di", "an auditor who neither proposes nor seals", {
        let (mut book, id) = opened_by_ops();
        book.approve(id, &["ann", "bo", "di"]);
        book.seal(id, SEALER, NOTHING);
        book.lines
    });
    vectors.reject("gov-roles", "enough approvals, but one role missing", QuorumInvariant, {
        let (mut book, id) = opened_by_ops();
        book.approve(id, &["ann", "cy", "di"]);
        let blocked = book.sealing(id, ExecutionStatus::Blocked, SEALER);
        book.write(&blocked, |d| d.set("execution_status", r#""SUCCESS""#));
        book.lines
    });
    vectors.reject("gov-sealer-approves", "an approver who seals", ApprovalOwn, {
        let (mut book, id) = opened_by_ops();
        book.approve(id, &["ann", "bo", "di"]);
        book.seal(id, SEALER, |d| {
            d.set("actor_context", format!(r#"{{"peer":{}}}"#, cast::peer(DEV, Some("dev")).1));
        });
        book.lines
    });
    vectors.accept("gov-sealed", "proposed, approved by three, sealed", sealed(|_| {}));
    vectors.reject("gov-quorum-denied", "met, but said not to be", Quorum, {
        sealed(|d| d.set("quorum_met", "false"))
    });
    vectors.reject("gov-threshold-lowered", "two approvals required", RequiredApprovals, {
        sealed(|d| d.set("required_approvals", "2"))
    });
    vectors.reject("gov-threshold-raised", "four approvals required", RequiredApprovals, {
        sealed(|d| d.set("required_approvals", "4"))
    });
    vectors.reject("gov-proofs-lowered", "a required proof left out", RequiredProofs, {
        sealed(|d| d.replace("required_proofs", r#""rollback","#, ""))
    });
    vectors.reject("gov-proofs-raised", "a proof that nobody demanded", RequiredProofs, {
        sealed(|d| d.replace("required_proofs", r#""rollback","#, r#""quorum","rollback","#))
    });
    vectors.reject("gov-sealed-without-verb", "by a caller without the verb", CallerNotAllowed, {
        sealed(|d| {
            d.set("actor_context", format!(r#"{{"peer":{}}}"#, cast::peer(READER, Some("reader")).1));
        })
    });
    vectors.reject("gov-sealed-by-stranger", "by nobody whom the rules know", CallerNotAllowed, {
        sealed(|d| d.set("actor_context", format!(r#"{{"peer":{}}}"#, cast::peer(STRANGER, None).1)))
    });
    vectors.reject("gov-sealed-caller", "by a caller of another name", CallerRule, {
        sealed(|d| {
            d.set("actor_context", format!(r#"{{"peer":{}}}"#, cast::peer(SEALER, Some("ops")).1));
        })
    });
    vectors.accept("gov-risky", "one rejection that does not block", {
        let mut book = Book::new();
        let id = book.open(request("ACTION", "risky.x", "SUCCESS", r#","actor_id":"dev""#), DEV, NOTHING);
        book.decide(id, "cy", Decision::Reject, NOTHING);
        book.approve(id, &["ann", "bo"]);
        book.seal(id, SEALER, NOTHING);
        book.lines
    });
    vectors.reject("gov-risky-rejection-counted", "a rejection among the approvals", ReceivedApprovals, {
        let mut book = Book::new();
        let id = book.open(request("ACTION", "risky.x", "SUCCESS", r#","actor_id":"dev""#), DEV, NOTHING);
        let rejection = book.approval(id, "cy", Decision::Reject);
        let item = rejection.to_canonical(Some(book.now));
        book.decide(id, "cy", Decision::Reject, NOTHING);
        book.approve(id, &["ann", "bo"]);
        book.seal(id, SEALER, |d| received(d, |items| items.insert(0, item)));
        book.lines
    });
}

fn lists(vectors: &mut Vectors) {
    use Code::*;
    vectors.twin = "gov-sealed";
    vectors.reject("gov-received-reordered", "two approvals swapped", ReceivedApprovals, {
        sealed(|d| received(d, |items| items.swap(0, 1)))
    });
    vectors.reject("gov-received-time", "an approval at another time", ReceivedApprovals, {
        sealed(|d| received(d, |items| items[0] = items[0].replacen("03:00:03", "03:00:02", 1)))
    });
    vectors.reject("gov-received-twice", "one approval twice", ApproverTwice, {
        sealed(|d| received(d, |items| items[1] = items[0].clone()))
    });
    vectors.reject("gov-received-malformed", "an approval without its role", ApprovalMalformed, {
        sealed(|d| received(d, |items| items[0] = items[0].replacen("\"role\":\"creator\",", "", 1)))
    });
    vectors.reject("gov-received-none", "none of the approvals that there are", QuorumInvariant, {
        sealed(|d| {
            // As `ops` itself might append it: a proposal without its approvals is none.
            d.set("received_approvals", "[]");
            d.set("quorum_met", "false");
            d.set("actor_context", format!(r#"{{"peer":{}}}"#, cast::peer(DEV, Some("dev")).1));
        })
    });
    let invented = |make: &dyn Fn(&Book, ProposalId) -> String| {
        let (mut book, id) = approved();
        let item = make(&book, id);
        book.seal(id, SEALER, |d| received(d, |items| items.push(item)));
        book.lines
    };
    vectors.reject("gov-received-invented", "an approval by nobody in the rules", ApproverUnknown, {
        invented(&|book, id| {
            let eve = approver("eve", "auditor", &cast::eve());
            let subject = &book.governor.proposal(id).expect("open").subject;
            let statement = subject.statement(&eve, Decision::Approve);
            signed(&statement, &eve, &cast::eve()).to_canonical(Some(book.now))
        })
    });
    vectors.reject("gov-received-unrecorded", "an approval that no entry records", ReceivedApprovals, {
        invented(&|book, id| book.approval(id, "di", Decision::Approve).to_canonical(Some(book.now)))
    });
    let replaced = |change: &dyn Fn(&mut Subject)| {
        let (mut book, id) = approved();
        let proposal = book.governor.proposal(id).expect("open");
        let mut subject = proposal.subject.clone();
        change(&mut subject);
        let ann = proposal.rules.approver("ann").expect("in the rules").clone();
        let at = proposal.given[0].at;
        let item = signed(&subject.statement(&ann, Decision::Approve), &ann, &cast::ann());
        book.seal(id, SEALER, |d| received(d, |items| items[0] = item.to_canonical(Some(at))));
        book.lines
    };
    vectors.reject("gov-received-payload", "an approval for another payload", ApprovalOtherAction, {
        replaced(&|subject| subject.action_hash = Digest::of(br#"{"to":3}"#))
    });
    vectors.reject("gov-received-ledger", "an approval for another ledger", ApprovalOtherLedger, {
        replaced(&|subject| subject.origin = "other.example/ledger".into())
    });
    vectors.reject("gov-received-opening", "an approval for another opening", ApprovalOtherProposal, {
        replaced(&|subject| subject.proposal_hash = Digest::of(b"another opening"))
    });
    vectors.reject("gov-received-flipped", "a signature with one bit flipped", ApprovalSignature, {
        let (mut book, id) = approved();
        let mut approval = book.governor.proposal(id).expect("open").given[0].approval.clone();
        let last = if approval.signature.ends_with('0') { "1" } else { "0" };
        approval.signature.replace_range(approval.signature.len() - 1.., last);
        let at = book.governor.proposal(id).expect("open").given[0].at;
        book.seal(id, SEALER, |d| received(d, |items| items[0] = approval.to_canonical(Some(at))));
        book.lines
    });
    vectors.reject(
        "gov-received-resigned",
        "a sound signature other than the recorded one",
        ReceivedApprovals,
        {
            let (mut book, id) = approved();
            let given = book.governor.proposal(id).expect("open").given[0].clone();
            let mut approval = given.approval;
            approval.signature = cast::ann().sign_high(&approval.statement);
            book.seal(id, SEALER, |d| received(d, |items| items[0] = approval.to_canonical(Some(given.at))));
            book.lines
        },
    );
    vectors.accept("gov-sealed-four", "one approval more than needed", {
        let (mut book, id) = opened_by_ops();
        book.approve(id, &["ann", "bo", "cy", "di"]);
        book.seal(id, SEALER, NOTHING);
        book.lines
    });
    vectors.reject("gov-received-dropped", "one of them dropped, still enough", ReceivedApprovals, {
        let (mut book, id) = opened_by_ops();
        book.approve(id, &["ann", "bo", "cy", "di"]);
        book.seal(id, SEALER, |d| received(d, |items| drop(items.pop())));
        book.lines
    });
}

fn drafts(vectors: &mut Vectors) {
    use Code::*;
    vectors.twin = "gov-sealed";
    let mut differs = |name, about, member: &'static str, text: &str| {
        vectors.reject(name, about, ProposalDraft, sealed(|d| d.set(member, text)));
    };
    differs("gov-draft-actor", "another actor", "actor_id", r#""dev/2""#);
    differs("gov-draft-actor-type", "another kind of actor", "actor_type", r#""HUMAN""#);
    differs("gov-draft-severity", "another severity", "severity", "1");
    differs("gov-draft-category", "another category", "event_category", r#""WARNING""#);
    differs("gov-draft-event", "another kind of event", "event_type", r#""ACTION""#);
    differs("gov-draft-action", "another action", "action_type", r#""policy.get""#);
    differs("gov-draft-free-action", "an action that needs nothing", "action_type", r#""free.set""#);
    differs("gov-draft-state", "another state", "system_state_snapshot", r#"{"load":1}"#);
    differs("gov-draft-rollback", "no rollback", "rollback_available", "false");
    differs("gov-draft-conflicts", "a conflict", "conflicts_detected", r#"["x"]"#);
    differs("gov-draft-k", "another state k", "k_state", "2");
    vectors.reject("gov-draft-payload", "another payload", ProposalDraft, {
        sealed(|d| d.payload(r#"{"to":3}"#))
    });
    vectors.reject("gov-draft-environment", "another environment", ProposalDraft, {
        sealed(|d| d.replace("environment", r#""region":"eu""#, r#""region":"us""#))
    });
    vectors.reject("gov-draft-context", "another context", ProposalDraft, {
        sealed(|d| d.replace("actor_context", "{\"peer\"", "{\"a\":1,\"peer\""))
    });
    vectors.reject("gov-draft-snapshot", "another snapshot", ProposalDraft, {
        sealed(|d| d.replace("rollback_snapshot_hash", "abab", "abac"))
    });
    vectors.reject("gov-draft-scores", "better scores", ProposalDraft, {
        sealed(|d| {
            let scores = d.text("pillars_scores").replace('8', "9");
            d.set("pillars_scores", scores);
            d.set("composite_score", "9");
        })
    });
    let depends = |change: fn(&mut Vec<String>)| {
        sealed(|d| {
            let mut ids: Vec<String> = json::elements(&d.text("dependencies")).map(str::to_owned).collect();
            change(&mut ids);
            d.set("dependencies", format!("[{}]", ids.join(",")));
        })
    };
    vectors.reject(
        "gov-depends-less",
        "not on the opening",
        ProposalDraft,
        depends(|ids| drop(ids.remove(0))),
    );
    vectors.reject("gov-depends-more", "on the genesis too", ProposalDraft, depends(|ids| ids.push(id(1))));
    vectors.reject("gov-depends-order", "in another order", ProposalDraft, depends(|ids| ids.swap(1, 2)));
}

fn endings(vectors: &mut Vectors) {
    use Code::*;
    let at = |micros: i64| {
        let (mut book, id) = approved();
        let time = expiry(&book, id, micros);
        book.seal(id, SEALER, |d| d.set("timestamp", quote(&time.to_string())));
        book.lines
    };
    vectors.accept("gov-sealed-last-moment", "sealed a microsecond before the expiry", at(-1));
    vectors.reject("gov-sealed-at-expiry", "sealed at the very time of expiry", ProposalExpired, at(0));
    vectors.reject("gov-sealed-late", "sealed a second after the expiry", ProposalExpired, at(1_000_000));

    // The seal is made while the proposal is open, and written when it is not.
    let ended = |end: fn(&mut Book, ProposalId)| {
        let (mut book, id) = opened_by_ops();
        book.approve(id, &["ann", "bo", "cy"]);
        let sealing = book.sealing(id, ExecutionStatus::Success, SEALER);
        end(&mut book, id);
        book.write(&sealing, |d| d.set("entry_id", super::super::id(99)));
        book.lines
    };
    vectors.twin = "gov-sealed";
    vectors.reject("gov-sealed-twice", "sealed a second time", ProposalClosed, {
        ended(|book, id| book.seal(id, SEALER, NOTHING))
    });
    vectors.reject("gov-sealed-rejected", "sealed after a rejection", ProposalClosed, {
        ended(|book, id| book.decide(id, "di", Decision::Reject, NOTHING))
    });
    vectors.reject("gov-sealed-withdrawn", "sealed after the withdrawal", ProposalClosed, {
        ended(|book, id| {
            let (peer, json) = book.caller(OPS);
            let payload =
                book.governor.withdraw(id, "x", None, &peer, &json, book.now).expect("its proposer's");
            book.own(EventType::Decision, "proposal.withdraw", payload, NOTHING);
        })
    });
    vectors.reject("gov-sealed-unopened", "what nobody proposed", ProposalUnknown, {
        let (mut book, id) = approved();
        let sealing = book.sealing(id, ExecutionStatus::Success, SEALER);
        let mut other = Book::new();
        other.write(&sealing, NOTHING);
        other.lines
    });

    vectors.accept("gov-withdrawn", "withdrawn by its proposer", {
        let (mut book, id) = opened();
        book.withdraw(id, NOTHING);
        book.lines
    });
    let withdrawn = |actor: &str, uid: u32, caller: Option<&str>| {
        let (mut book, id) = opened();
        let to = cast::peer(uid, caller).1;
        book.withdraw(id, |d| {
            in_payload(d, "\"dev/1\"", &quote(actor));
            in_payload(d, &cast::peer(DEV, Some("dev")).1, &to);
        });
        book.lines
    };
    vectors.reject("gov-withdrawn-other", "withdrawn by somebody else", CallerNotAllowed, {
        withdrawn("uid:1002", SEALER, Some("sealer"))
    });
    vectors.reject("gov-withdrawn-stranger", "withdrawn by a stranger", CallerNotAllowed, {
        withdrawn("uid:1009", STRANGER, None)
    });
    vectors.reject("gov-withdrawn-actor", "withdrawn by the proposer as another actor", CallerNotAllowed, {
        withdrawn("dev/2", DEV, Some("dev"))
    });
    vectors.reject("gov-withdrawn-late", "withdrawn after its time", ProposalExpired, {
        let (mut book, id) = opened();
        let time = expiry(&book, id, 0);
        book.withdraw(id, |d| d.set("timestamp", quote(&time.to_string())));
        book.lines
    });
    vectors.accept("gov-withdrawn-by-ops", "withdrawn by one who administers", {
        withdrawn("uid:1000", OPS, Some("ops"))
    });

    let expired = |micros: i64| {
        let (mut book, id) = opened();
        book.now = expiry(&book, id, micros);
        book.own(EventType::Decision, "proposal.expire", Governor::expire(id), NOTHING);
        book.lines
    };
    vectors.accept("gov-expired", "expired at its time", expired(0));
    vectors.reject("gov-expired-early", "expired a microsecond early", ProposalExpiry, expired(-1));
    vectors.reject("gov-expired-twice", "expired twice", ProposalClosed, {
        let (mut book, id) = opened();
        book.now = expiry(&book, id, 0);
        for _ in 0..2 {
            book.own(EventType::Decision, "proposal.expire", Governor::expire(id), NOTHING);
        }
        book.lines
    });
}

/// A proposal is sealed under other rules than it was opened under: both hold.
fn midway(vectors: &mut Vectors) {
    use Code::*;
    let changed = |rules: String, edit: &dyn Fn(&mut Draft)| {
        let (mut book, id) = opened_by_ops();
        book.approve(id, &["ann", "bo", "cy"]);
        let before = book.governor.standing().rules.label();
        let sealing = book.sealing(id, ExecutionStatus::Success, SEALER);
        let mut change = request("CHANGE", "rules.set", "SUCCESS", "");
        change.action_payload = format!(r#"{{"rules":{rules}}}"#);
        let set = book.open(change, OPS, NOTHING);
        book.approve(set, &["ann"]);
        book.seal(set, SEALER, NOTHING);
        let now = book.governor.standing().rules.label();
        book.write(&sealing, |d| {
            d.replace("environment", &before, &now);
            edit(d);
        });
        book.lines
    };
    let rules = cast::rules;
    vectors.accept("gov-midway", "the rules change on the way, and it holds under both", {
        changed(rules().replace("\"floor\":\"7\"", "\"floor\":\"8\""), &NOTHING)
    });
    vectors.reject("gov-midway-old-rules", "sealed under the rules of its opening", RulesInForce, {
        let old = {
            let (book, _) = opened_by_ops();
            book.governor.standing().rules.label()
        };
        changed(rules().replace("\"floor\":\"7\"", "\"floor\":\"8\""), &|d| {
            let environment = d.text("environment");
            let (_, rest) = environment.split_once("\"attestd.rules\":\"").expect("a name");
            d.replace("environment", &rest[..64], &old);
        })
    });
    vectors.reject("gov-midway-floor", "the floor was raised on the way", SafetyFloor, {
        changed(rules().replace("\"floor\":\"7\"", "\"floor\":\"8.1\""), &NOTHING)
    });
    vectors.reject("gov-midway-more", "more approvals are asked now", RequiredApprovals, {
        changed(rules().replace("\"approvals\":3", "\"approvals\":4"), &NOTHING)
    });
    vectors.reject(
        "gov-midway-fewer",
        "fewer approvals are asked now, but not at the opening",
        RequiredApprovals,
        {
            let fewer = rules()
                .replace("\"approvals\":3", "\"approvals\":2")
                .replace(r#"["auditor","community","creator"]"#, r#"["community","creator"]"#);
            changed(fewer, &|d| d.set("required_approvals", "2"))
        },
    );
    vectors.reject("gov-midway-removed", "an approver is no longer in the rules", ApproverUnknown, {
        let mut approvers = cast::approvers();
        approvers[1] = ("eve", "community", "[]", cast::eve());
        changed(cast::rules_with(&approvers), &NOTHING)
    });
    vectors.reject("gov-midway-new-key", "an approver has another key now", ApproverUnknown, {
        let mut approvers = cast::approvers();
        approvers[1] = ("bo", "community", "[]", cast::eve());
        changed(cast::rules_with(&approvers), &NOTHING)
    });
}
