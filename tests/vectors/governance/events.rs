//! Clients' own events under rules: scores, invariants, proofs, and who may name what.

use attestd::governance::proof::{self, Event};
use attestd::ledger::code::Code;
use attestd::ledger::draft::Draft as Request;
use attestd::ledger::entry::EntryId;
use attestd::ledger::hash::Digest;
use attestd::ledger::timestamp::Timestamp;

use super::super::quote;
use super::book::{Book, NOTHING, request, scores, snapshot};
use super::cast::{self, DEV, OPS, Pair, READER, SEALER, STRANGER};
use super::{Draft, Lines, Vectors};

fn appended(draft: Request, uid: u32, edit: impl FnOnce(&mut Draft)) -> Lines {
    let mut book = Book::new();
    book.append(draft, uid, edit);
    book.lines
}

fn ops(action: &str, status: &str, extra: &str, edit: impl FnOnce(&mut Draft)) -> Lines {
    appended(request("ACTION", action, status, extra), OPS, edit)
}

/// Says that it went well, whatever it was before.
fn succeed(draft: &mut Draft) {
    draft.set("execution_status", r#""SUCCESS""#);
}

fn set_peer(draft: &mut Draft, uid: u32, caller: Option<&str>) {
    draft.set("actor_context", format!(r#"{{"peer":{}}}"#, cast::peer(uid, caller).1));
}

pub(super) fn add(vectors: &mut Vectors) {
    invariants(vectors);
    proofs(vectors);
    provers(vectors);
    callers(vectors);
}

fn invariants(vectors: &mut Vectors) {
    use Code::*;
    vectors.accept("gov-low-failed", "under the floor, and FAILED", {
        ops("free.x", "FAILED", &scores("6.2"), NOTHING)
    });
    vectors.reject("gov-low-success", "under the floor, and SUCCESS", SafetyFloorInvariant, {
        ops("free.x", "FAILED", &scores("6.2"), succeed)
    });
    vectors.reject("gov-low-met", "under the floor, said to be over it", SafetyFloor, {
        ops("free.x", "FAILED", &scores("6.2"), |d| {
            succeed(d);
            d.set("safety_floor_met", "true");
        })
    });
    vectors.accept("gov-k2-blocked", "in state K2, and BLOCKED", {
        ops("free.x", "BLOCKED", r#","k_state":2"#, NOTHING)
    });
    vectors.reject("gov-k2-success", "in state K2, and SUCCESS", K1StateInvariant, {
        ops("free.x", "BLOCKED", r#","k_state":2"#, succeed)
    });
    vectors.reject("gov-conflicts-success", "with conflicts, and SUCCESS", K1StateInvariant, {
        ops("free.x", "BLOCKED", r#","conflicts_detected":["x"]"#, succeed)
    });
    let undone = |extra: &str| snapshot() + r#","rollback_executed":true"# + extra;
    vectors.accept("gov-rolled-back", "a rollback to a snapshot", {
        ops("free.x", "ROLLED_BACK", &undone(""), NOTHING)
    });
    vectors.reject("gov-rolled-back-to-nothing", "a rollback to nothing", RollbackInvariant, {
        ops("free.x", "ROLLED_BACK", &undone(""), |d| d.set("rollback_snapshot_hash", "null"))
    });
    vectors.reject("gov-rolled-back-success", "a rollback called SUCCESS", RollbackInvariant, {
        ops("free.x", "ROLLED_BACK", &undone(""), succeed)
    });
    vectors.accept("gov-not-done", "what needs approvals, BLOCKED", ops("risky.x", "BLOCKED", "", NOTHING));
    vectors.reject("gov-direct", "what needs approvals, appended", QuorumInvariant, {
        ops("risky.x", "BLOCKED", "", succeed)
    });
    vectors.reject("gov-direct-claimed", "what needs approvals, said to have them", Quorum, {
        ops("risky.x", "BLOCKED", "", |d| {
            succeed(d);
            d.set("quorum_met", "true");
        })
    });
    vectors.reject("gov-direct-lowered", "what needs approvals, said to need none", RequiredApprovals, {
        ops("risky.x", "BLOCKED", "", |d| {
            succeed(d);
            d.set("quorum_met", "true");
            d.set("required_approvals", "0");
        })
    });
    vectors.reject("gov-direct-rolled-back", "what needs approvals, done and undone", QuorumInvariant, {
        ops("risky.x", "BLOCKED", "", |d| d.set("execution_status", r#""ROLLED_BACK""#))
    });
}

fn proofs(vectors: &mut Vectors) {
    use Code::*;
    vectors.accept("gov-deployed", "with the proof that the rules demand", {
        ops("deploy.x", "SUCCESS", &snapshot(), NOTHING)
    });
    vectors.reject("gov-unproven", "the required proof is left out", RequiredProofs, {
        ops("deploy.x", "SUCCESS", &snapshot(), |d| {
            d.set("required_proofs", "[]");
            d.set("provided_proofs", "[]");
        })
    });
    vectors.reject("gov-unprovided", "the required proof is not provided", ProvidedProofs, {
        ops("deploy.x", "SUCCESS", &snapshot(), |d| d.set("provided_proofs", "[]"))
    });
    vectors.reject("gov-proof-denied", "a valid proof said to be invalid", ProvidedProofs, {
        ops("deploy.x", "SUCCESS", &snapshot(), |d| d.replace("provided_proofs", "true", "false"))
    });
    vectors.reject("gov-proof-hash", "a proof with another hash", ProvidedProofs, {
        ops("deploy.x", "SUCCESS", &snapshot(), |d| {
            d.replace("provided_proofs", &Digest::of(b"null").to_hex(), &Digest::of(b"{}").to_hex());
        })
    });
    vectors.reject("gov-proofs-denied", "valid proofs, said not to be", ProofsValid, {
        ops("deploy.x", "SUCCESS", &snapshot(), |d| d.set("proofs_valid", "false"))
    });
    vectors.accept("gov-deploy-failed", "without the required proof, and FAILED", {
        ops("deploy.x", "FAILED", "", NOTHING)
    });
    vectors.reject("gov-deploy-success", "without a rollback, and SUCCESS", RollbackInvariant, {
        ops("deploy.x", "FAILED", "", succeed)
    });
    vectors.reject("gov-deploy-claimed", "without a rollback, said to be there", ProvidedProofs, {
        ops("deploy.x", "FAILED", "", |d| {
            succeed(d);
            let proofs = d.text("provided_proofs");
            let (_, rest) = proofs.split_once("\"reason\"").expect("a reason");
            let (reason, _) = rest.split_once("\"type\"").expect("a type");
            d.replace("provided_proofs", &format!("\"reason\"{reason}"), "");
            d.replace("provided_proofs", "false", "true");
            d.set("proofs_valid", "true");
        })
    });
    vectors.accept("gov-unscored-failed", "without the scores that are needed, and FAILED", {
        ops("scored.x", "FAILED", "", NOTHING)
    });
    vectors.reject("gov-unscored-success", "without the scores that are needed", PillarsInvariant, {
        ops("scored.x", "FAILED", "", succeed)
    });
    let booted = |verified: bool, status: &str, edit: fn(&mut Draft)| {
        let mut book = Book::booted(verified);
        book.append(request("ACTION", "booted.x", status, ""), OPS, edit);
        book.lines
    };
    vectors.accept("gov-attribution", "after a boot that verified the attribution", {
        booted(true, "SUCCESS", NOTHING)
    });
    vectors.reject("gov-attribution-unverified", "after a boot that did not", AttributionInvariant, {
        booted(false, "FAILED", succeed)
    });
}

/// The id that the next entry of a fresh book has.
fn next_id() -> EntryId {
    Book::new().id()
}

struct Proof<'a> {
    pair: Pair,
    action: &'a str,
    payload: &'a str,
    origin: &'a str,
    prover: &'a str,
    subject: String,
    expires_at: &'a [u8],
}

impl Proof<'_> {
    fn sound() -> Self {
        Proof {
            pair: cast::ci(),
            action: "tested.x",
            payload: r#"{"to":2}"#,
            origin: super::ORIGIN,
            prover: "ci",
            subject: next_id().to_string(),
            expires_at: b"2026-11-25T04:00:00.000000Z",
        }
    }

    fn evidence(&self) -> String {
        let mut request = request("ACTION", self.action, "SUCCESS", "");
        request.action_payload = self.payload.into();
        let event = Event::of_draft(&request, next_id());
        let expires_at = Timestamp::parse(self.expires_at).expect("a time");
        let statement =
            proof::statement(&event, self.origin, "tests", self.prover, &self.subject, expires_at);
        proof::evidence(&self.pair.key, &statement, &self.pair.sign(&statement, proof::NAMESPACE))
    }
}

/// The proofs of an entry that says so of `evidence`, in its own words.
fn provided(evidence: &str, reason: Option<&str>) -> String {
    let reason = reason.map(|reason| format!("\"reason\":{},", quote(reason))).unwrap_or_default();
    format!(
        r#"[{{"evidence":{evidence},"hash":"{}",{reason}"type":"tests","valid":{}}}]"#,
        Digest::of(evidence.as_bytes()),
        reason.is_empty()
    )
}

fn provers(vectors: &mut Vectors) {
    use Code::*;
    let proved = |evidence: &str, edit: &dyn Fn(&mut Draft)| {
        let extra = format!(r#","provided_proofs":[{{"evidence":{evidence},"type":"tests"}}]"#);
        ops("tested.x", "FAILED", &extra, edit)
    };
    vectors.accept(
        "gov-proved",
        "proved by a prover of the rules",
        proved(&Proof::sound().evidence(), &succeed),
    );
    // Each says of itself that it is valid.
    let claimed = |change: &dyn Fn(&mut Proof<'_>)| {
        let mut proof = Proof::sound();
        change(&mut proof);
        let evidence = proof.evidence();
        proved(&evidence, &|d| {
            succeed(d);
            d.set("provided_proofs", provided(&evidence, None));
            d.set("proofs_valid", "true");
        })
    };
    vectors.reject("gov-prover-key", "proved with a key that the rules do not name", ProvidedProofs, {
        claimed(&|proof| proof.pair = cast::eve())
    });
    vectors.reject("gov-prover-origin", "proved for another ledger", ProvidedProofs, {
        claimed(&|proof| proof.origin = "other.example/ledger")
    });
    vectors.reject("gov-prover-subject", "proved for another entry", ProvidedProofs, {
        claimed(&|proof| proof.subject = EntryId::from_random([9; 16]).to_string())
    });
    vectors.reject("gov-prover-action", "proved for another action", ProvidedProofs, {
        claimed(&|proof| proof.action = "tested.y")
    });
    vectors.reject("gov-prover-payload", "proved for another payload", ProvidedProofs, {
        claimed(&|proof| proof.payload = r#"{"to":3}"#)
    });
    vectors.reject("gov-prover-name", "proved in another prover's name", ProvidedProofs, {
        claimed(&|proof| proof.prover = "cd")
    });
    vectors.reject("gov-prover-expired", "proved until the very time of the entry", ProvidedProofs, {
        claimed(&|proof| proof.expires_at = b"2026-11-25T03:00:02.000000Z")
    });
    vectors.reject("gov-prover-forged", "proved with a signature by another", ProvidedProofs, {
        let sound = Proof::sound();
        let evidence = sound.evidence();
        let forged = Proof { pair: cast::eve(), ..sound }.evidence();
        let signature = |text: &str| {
            let (_, rest) = text.split_once("\"signature\":").expect("a member");
            rest.split(",\"statement\"").next().expect("a value").to_owned()
        };
        let evidence = evidence.replace(&signature(&evidence), &signature(&forged));
        proved(&evidence, &|d| {
            succeed(d);
            d.set("provided_proofs", provided(&evidence, None));
            d.set("proofs_valid", "true");
        })
    });
    vectors.reject("gov-prover-none", "not proved at all, and SUCCESS", ProofFailed, {
        ops("tested.x", "FAILED", "", succeed)
    });
    vectors.reject("gov-prover-honest", "not proved, and said so, and SUCCESS", ProofFailed, {
        let mut proof = Proof::sound();
        proof.origin = "other.example/ledger";
        proved(&proof.evidence(), &succeed)
    });
}

fn callers(vectors: &mut Vectors) {
    use Code::*;
    let dev = |edit: &dyn Fn(&mut Draft)| {
        appended(request("ACTION", "free.x", "SUCCESS", r#","actor_id":"dev/1""#), DEV, edit)
    };
    vectors.accept("gov-appended", "by a caller of the rules", dev(&NOTHING));
    vectors.reject("gov-caller-none", "by nobody whom the rules know", CallerNotAllowed, {
        dev(&|d| set_peer(d, STRANGER, None))
    });
    vectors.reject("gov-caller-invented", "by a stranger called dev", CallerNotAllowed, {
        dev(&|d| set_peer(d, STRANGER, Some("dev")))
    });
    vectors.reject("gov-caller-second", "by the second caller that matches", CallerRule, {
        dev(&|d| set_peer(d, DEV, Some("late")))
    });
    vectors.reject("gov-caller-unsaid", "by a caller that is not named", CallerRule, {
        dev(&|d| set_peer(d, DEV, None))
    });
    vectors.reject("gov-verb", "by a caller that may only seal", CallerNotAllowed, {
        dev(&|d| set_peer(d, SEALER, Some("sealer")))
    });
    vectors.reject("gov-verb-read", "by a caller that may only read", CallerNotAllowed, {
        dev(&|d| set_peer(d, READER, Some("reader")))
    });
    vectors.reject("gov-actor", "as an actor that the caller may not be", ActorNotAllowed, {
        dev(&|d| d.set("actor_id", r#""devil""#))
    });
    vectors.reject("gov-actor-uid", "as a uid that the rules do not give", ActorNotAllowed, {
        dev(&|d| d.set("actor_id", r#""uid:1001""#))
    });
    vectors.reject("gov-actor-type", "as a kind of actor that the caller is not", ActorNotAllowed, {
        dev(&|d| d.set("actor_type", r#""HUMAN""#))
    });
    vectors.reject("gov-event-type", "a kind of event that is not the caller's", ActorNotAllowed, {
        dev(&|d| d.set("event_type", r#""VIOLATION""#))
    });
    vectors.reject("gov-rules-other", "under rules that are not in force", RulesInForce, {
        dev(&|d| {
            let rules = d.text("environment");
            let (_, rest) = rules.split_once("\"attestd.rules\":\"").expect("a name");
            d.replace("environment", &rest[..64], &Digest::of(b"rules").to_hex());
        })
    });
    vectors.reject("gov-rules-default", "under the default rules", RulesInForce, {
        dev(&|d| {
            let rules = d.text("environment");
            let (_, rest) = rules.split_once("\"attestd.rules\":\"").expect("a name");
            d.replace("environment", &rest[..64], "default");
        })
    });
}
