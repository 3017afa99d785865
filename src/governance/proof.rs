//! Proofs: which are demanded, which are provided, and which of those are valid.
//!
//! ```text
//! {"evidence":{…},"hash":"…","type":"tests","valid":true}
//! {"hash":"…","reason":"no rollback is available","type":"rollback","valid":false}
//! ```
//!
//! Nothing of a client's claim decides `valid`: a built-in proof is computed from the event itself, any
//! other is a signature by a key that the rules name for its type. The auditor reads `type` and
//! `evidence` back from an entry and comes to the same text or says that it does not.

use std::borrow::Cow;

use super::Refusal;
use super::key::Key;
use super::rules::{BUILT_IN_PROOFS, MAX_PROOFS, Object, Rules};
use crate::ledger::code::Code;
use crate::ledger::draft::Draft;
use crate::ledger::entry::{EntryId, EntryView, EventType, ExecutionStatus, is_action_type};
use crate::ledger::hash::Digest;
use crate::ledger::json;
use crate::ledger::score::Pillars;
use crate::ledger::timestamp::Timestamp;

/// The namespace of provers' SSH signatures.
pub const NAMESPACE: &str = "attestd-proof";

/// The member `statement` of every proof statement.
const VERSION: &str = "attestd-proof-v1";

/// What governance judges of an event, from a client's draft or from an entry.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs, reason = "the members are documented in docs/format.md, once")]
pub struct Event<'a> {
    pub action_type: &'a str,
    pub action_hash: Digest,
    pub entry_id: EntryId,
    pub event_type: EventType,
    pub execution_status: ExecutionStatus,
    pub pillars_scores: Option<Pillars>,
    pub k_state: i64,
    pub conflicts_detected: &'a str,
    pub rollback_available: bool,
    pub rollback_executed: bool,
    pub rollback_snapshot_hash: Option<Digest>,
}

impl<'a> Event<'a> {
    /// Of a draft that would become the entry `entry_id`.
    #[must_use]
    pub fn of_draft(draft: &'a Draft, entry_id: EntryId) -> Self {
        Event {
            action_type: &draft.action_type,
            action_hash: Digest::of(draft.action_payload.as_bytes()),
            entry_id,
            event_type: draft.event_type,
            execution_status: draft.execution_status,
            pillars_scores: draft.pillars_scores,
            k_state: draft.k_state,
            conflicts_detected: &draft.conflicts_detected,
            rollback_available: draft.rollback_available,
            rollback_executed: draft.rollback_executed,
            rollback_snapshot_hash: draft.rollback_snapshot_hash,
        }
    }

    /// Of an entry.
    #[must_use]
    pub fn of_entry(entry: &'a EntryView<'_>) -> Self {
        Event {
            action_type: entry.action_type,
            action_hash: entry.action_hash,
            entry_id: entry.entry_id,
            event_type: entry.event_type,
            execution_status: entry.execution_status,
            pillars_scores: entry.pillars_scores,
            k_state: entry.k_state,
            conflicts_detected: entry.conflicts_detected,
            rollback_available: entry.rollback_available,
            rollback_executed: entry.rollback_executed,
            rollback_snapshot_hash: entry.rollback_snapshot_hash,
        }
    }
}

/// What is known beside the event and the rules.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// The ledger.
    pub origin: &'a str,
    /// Whether the last BOOT entry says so.
    pub attribution_verified: bool,
    /// The proposal whose outcome the event is.
    pub proposal_hash: Option<Digest>,
    /// The entry's time; for the daemon, which has none yet, now.
    pub at: Timestamp,
}

/// A proof that somebody provides: its type and the canonical evidence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Provided {
    kind: String,
    evidence: Option<String>,
}

impl Provided {
    /// Reads a canonical array of `provided_proofs`, a client's or an entry's, sorted by type. What it says
    /// of `hash`, `valid` and `reason` is dropped: it is computed.
    ///
    /// # Errors
    /// [`Code::WrongType`], [`Code::WrongValue`] or [`Code::UnknownMember`].
    pub fn parse(array: &str) -> Result<Vec<Self>, Refusal> {
        let at = |index: usize, name: &str| format!("/provided_proofs/{index}{name}");
        let mut proofs: Vec<Provided> = Vec::new();
        for (index, element) in json::elements(array).enumerate() {
            if index == MAX_PROOFS {
                return Err(Refusal::new(Code::WrongValue)
                    .at("/provided_proofs")
                    .because(&format!("at most {MAX_PROOFS} proofs are taken")));
            }
            if !element.starts_with('{') {
                return Err(Refusal::new(Code::WrongType).at(at(index, "")).because("must be an object"));
            }
            let (mut kind, mut evidence) = (None, None);
            for (start, name_end, end) in json::members(element) {
                let value = &element[name_end + 1..end];
                match &element[start + 1..name_end - 1] {
                    "type" => kind = Some(json::unquote(value.as_bytes())).filter(|_| value.starts_with('"')),
                    "evidence" => evidence = Some(value.to_owned()),
                    "hash" | "valid" | "reason" => {}
                    name => return Err(Refusal::new(Code::UnknownMember).at(at(index, &format!("/{name}")))),
                }
            }
            let kind = kind.filter(|kind| is_action_type(kind)).ok_or_else(|| {
                Refusal::new(Code::WrongValue)
                    .at(at(index, "/type"))
                    .because("must be 1 to 128 of A-Z a-z 0-9 _ . : / -")
            })?;
            if proofs.iter().any(|proof| proof.kind == kind) {
                return Err(Refusal::new(Code::WrongValue)
                    .at(at(index, "/type"))
                    .because("there is one proof of a type at most"));
            }
            proofs.push(Provided { kind, evidence });
        }
        proofs.sort_by(|a, b| a.kind.cmp(&b.kind));
        Ok(proofs)
    }
}

/// Reads a canonical array of `required_proofs`, which is sorted and has no repeats.
///
/// # Errors
/// [`Code::WrongValue`].
pub fn required(array: &str) -> Result<Vec<String>, Refusal> {
    let names: Vec<String> = json::elements(array).map(|element| json::unquote(element.as_bytes())).collect();
    if names.len() > MAX_PROOFS || names.iter().any(|name| !is_action_type(name)) {
        return Err(Refusal::new(Code::WrongValue)
            .at("/required_proofs")
            .because(&format!("at most {MAX_PROOFS} proof types of 1 to 128 of A-Z a-z 0-9 _ . : / -")));
    }
    Ok(names)
}

/// Proofs that were decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decided {
    /// The canonical array for `provided_proofs`, sorted by type.
    pub text: Cow<'static, str>,
    /// The required types that are not provided or not valid, sorted, with the reason.
    pub failed: Vec<(String, &'static str)>,
    /// Until when all that is valid stays so.
    pub not_after: Option<Timestamp>,
}

/// Decides on every proof that is provided, and on every built-in one that is required.
#[must_use]
pub fn decide(
    event: &Event<'_>,
    required: &[String],
    provided: Vec<Provided>,
    quorum_met: bool,
    rules: &Rules,
    context: &Context<'_>,
) -> Decided {
    let mut proofs = provided;
    for name in required {
        if BUILT_IN_PROOFS.contains(&name.as_str()) && !proofs.iter().any(|proof| proof.kind == *name) {
            proofs.push(Provided { kind: name.clone(), evidence: None });
        }
    }
    proofs.sort_by(|a, b| a.kind.cmp(&b.kind));

    let mut decided = Decided { text: Cow::Borrowed("[]"), failed: Vec::new(), not_after: None };
    let mut text = String::new();
    let mut valid: Vec<&str> = Vec::new();
    for proof in &proofs {
        let verdict = match built_in(&proof.kind, event, quorum_met, rules, context) {
            Some(verdict) => verdict.map(|()| None),
            None => external(proof, event, rules, context).map(Some),
        };
        match verdict {
            Ok(expires_at) => {
                valid.push(&proof.kind);
                // The first moment at which it no longer holds is `expires_at` itself.
                let last = expires_at.map(|end| Timestamp::from_micros(end.as_micros() - 1));
                decided.not_after = [decided.not_after, last].into_iter().flatten().min();
            }
            Err(reason) if required.contains(&proof.kind) => {
                decided.failed.push((proof.kind.clone(), reason));
            }
            Err(_) => {}
        }
        if !text.is_empty() {
            text.push(',');
        }
        text.push_str(&item(proof, verdict.err()));
    }
    if !text.is_empty() {
        decided.text = format!("[{text}]").into();
    }
    for name in required {
        if !proofs.iter().any(|proof| proof.kind == *name) {
            decided.failed.push((name.clone(), "it is not provided"));
        }
    }
    decided.failed.sort();
    decided
}

fn item(proof: &Provided, reason: Option<&str>) -> String {
    let mut out = Object::new();
    if let Some(evidence) = &proof.evidence {
        out.raw("evidence", evidence);
    }
    // Where there is no evidence, that is what is hashed.
    out.text("hash", &Digest::of(proof.evidence.as_deref().unwrap_or("null").as_bytes()).to_hex());
    if let Some(reason) = reason {
        out.text("reason", reason);
    }
    out.text("type", &proof.kind);
    out.raw("valid", if reason.is_none() { "true" } else { "false" });
    out.into_text()
}

/// The verdict on a built-in type; `None` for any other.
fn built_in(
    kind: &str,
    event: &Event<'_>,
    quorum_met: bool,
    rules: &Rules,
    context: &Context<'_>,
) -> Option<Result<(), &'static str>> {
    let unless = |wrong: bool, reason: &'static str| if wrong { Err(reason) } else { Ok(()) };
    Some(match kind {
        "attribution_intact" => {
            unless(!context.attribution_verified, "the last boot did not verify the attribution")
        }
        // An entry that is in the ledger stands in its chain; a broken one is nobody's to record.
        "chain" => Ok(()),
        "k1_state" => unless(event.k_state != 1, "k_state is not 1")
            .and_then(|()| unless(event.conflicts_detected != "[]", "conflicts were detected")),
        "pillars" => unless(event.pillars_scores.is_none(), "the four scores are not given"),
        "quorum" => unless(!quorum_met, "the approvals are not enough"),
        "rollback" => unless(!event.rollback_available, "no rollback is available")
            .and_then(|()| unless(event.rollback_snapshot_hash.is_none(), "there is no snapshot hash")),
        "safety_floor" => {
            unless(event.pillars_scores.is_none(), "the four scores are not given").and_then(|()| {
                let (_, met) = rules.scale().judge(event.pillars_scores);
                unless(!met, "the composite score is under the floor")
            })
        }
        _ => return None,
    })
}

/// Verifies a proof by a prover's key and gives the time at which it ceases to hold.
fn external(
    proof: &Provided,
    event: &Event<'_>,
    rules: &Rules,
    context: &Context<'_>,
) -> Result<Timestamp, &'static str> {
    let mut provers = rules.provers().iter().filter(|prover| prover.proof == proof.kind).peekable();
    if provers.peek().is_none() {
        return Err("the rules name no prover for this type");
    }
    let evidence = proof.evidence.as_deref().ok_or("there is no evidence")?;
    let [algorithm, key_id, signature, statement] =
        strings(evidence, ["algorithm", "key_id", "signature", "statement"])
            .ok_or("the evidence is not exactly algorithm, key_id, signature and statement")?;
    let prover = provers
        .find(|prover| prover.key.id().to_hex() == key_id)
        .ok_or("the key is not one that the rules name for this type")?;
    if algorithm != prover.key.algorithm().as_str() {
        return Err("the algorithm is not that of the key");
    }
    let [action_hash, action_type, expires_at, origin, proof_type, name, version, subject] = strings(
        &statement,
        [
            "action_hash",
            "action_type",
            "expires_at",
            "origin",
            "proof_type",
            "prover",
            "statement",
            "subject",
        ],
    )
    .filter(|_| json::canonicalize(statement.as_bytes()).is_ok_and(|canonical| canonical == statement))
    .ok_or("the statement is not canonical JSON of exactly the eight strings")?;
    if version != VERSION || proof_type != proof.kind || name != prover.name {
        return Err("the statement is of another kind, proof type or prover");
    }
    if origin != context.origin {
        return Err("the statement is for another ledger");
    }
    if action_hash != event.action_hash.to_hex() || action_type != event.action_type {
        return Err("the statement is for another action");
    }
    let is_subject = subject == event.entry_id.to_string()
        || context.proposal_hash.is_some_and(|hash| subject == hash.to_hex());
    if !is_subject {
        return Err("the statement is for another entry or proposal");
    }
    let expires_at = Timestamp::parse(expires_at.as_bytes()).ok_or("the statement has no time of expiry")?;
    if context.at >= expires_at {
        return Err("the statement has expired");
    }
    match prover.key.verify(statement.as_bytes(), &signature, NAMESPACE) {
        Ok(()) => Ok(expires_at),
        Err(_) => Err("the signature does not verify"),
    }
}

/// The values of an object that has exactly the string members `names`, given in canonical order.
fn strings<const N: usize>(object: &str, names: [&str; N]) -> Option<[String; N]> {
    if !object.starts_with('{') || json::canonicalize(object.as_bytes()).is_err() {
        return None;
    }
    let mut members = json::members(object);
    let mut values = Vec::with_capacity(N);
    for name in names {
        let (start, name_end, end) = members.next()?;
        let value = object.get(name_end + 1..end)?;
        if object.get(start + 1..name_end - 1)? != name || !value.starts_with('"') {
            return None;
        }
        values.push(json::unquote(value.as_bytes()));
    }
    if members.next().is_some() { None } else { values.try_into().ok() }
}

/// The bytes that a prover signs.
#[must_use]
pub fn statement(
    event: &Event<'_>,
    origin: &str,
    proof_type: &str,
    prover: &str,
    subject: &str,
    expires_at: Timestamp,
) -> String {
    let mut out = Object::new();
    out.text("action_hash", &event.action_hash.to_hex());
    out.text("action_type", event.action_type);
    out.text("expires_at", &expires_at.to_string());
    out.text("origin", origin);
    out.text("proof_type", proof_type);
    out.text("prover", prover);
    out.text("statement", VERSION);
    out.text("subject", subject);
    out.into_text()
}

/// The canonical evidence of a proof that `key` signed.
#[must_use]
pub fn evidence(key: &Key, statement: &str, signature: &str) -> String {
    let mut out = Object::new();
    out.text("algorithm", key.algorithm().as_str());
    out.text("key_id", &key.id().to_hex());
    out.text("signature", signature);
    out.text("statement", statement);
    out.into_text()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::governance::key::{Algorithm, tests::Pair};
    use crate::governance::rules::Prover;
    use crate::ledger::score::{SCALE, Score};

    const ID: EntryId = EntryId([0x44; 16]);
    const AT: Timestamp = Timestamp::EPOCH;

    fn event() -> Event<'static> {
        Event {
            action_type: "deploy.start",
            action_hash: Digest::of(b"{}"),
            entry_id: ID,
            event_type: EventType::Action,
            execution_status: ExecutionStatus::Success,
            pillars_scores: None,
            k_state: 1,
            conflicts_detected: "[]",
            rollback_available: false,
            rollback_executed: false,
            rollback_snapshot_hash: None,
        }
    }

    const CONTEXT: Context<'static> =
        Context { origin: "o", attribution_verified: false, proposal_hash: None, at: AT };

    fn all(units: u32) -> Option<Pillars> {
        Some(Pillars([Score::from_units(units).expect("in range"); 4]))
    }

    /// Whether the proof `kind` of the event is valid, asked as a required one.
    fn holds(kind: &str, event: &Event<'_>, context: &Context<'_>, quorum: bool) -> bool {
        let decided = decide(event, &[kind.to_owned()], Vec::new(), quorum, &Rules::default(), context);
        assert_eq!(json::canonicalize(decided.text.as_bytes()).as_deref(), Ok(&*decided.text));
        assert_eq!(decided.text.contains("\"valid\":true"), decided.failed.is_empty());
        decided.failed.is_empty()
    }

    #[test]
    fn built_in_proofs_are_computed_from_the_event() {
        let plain = event();
        let check = |kind: &str, event: Event<'_>| holds(kind, &event, &CONTEXT, false);
        assert!(!check("pillars", plain) && check("pillars", Event { pillars_scores: all(0), ..plain }));
        assert!(!check("safety_floor", plain));
        assert!(check("safety_floor", Event { pillars_scores: all(7 * SCALE), ..plain }));
        assert!(!check("safety_floor", Event { pillars_scores: all(7 * SCALE - 1), ..plain }));
        assert!(check("k1_state", plain) && !check("k1_state", Event { k_state: 2, ..plain }));
        assert!(!check("k1_state", Event { conflicts_detected: "[\"x\"]", ..plain }));
        let available = Event { rollback_available: true, ..plain };
        assert!(!check("rollback", plain) && !check("rollback", available));
        assert!(check("rollback", Event { rollback_snapshot_hash: Some(Digest::ZERO), ..available }));
        assert!(!check("attribution_intact", plain) && !check("quorum", plain));
        let verified = Context { attribution_verified: true, ..CONTEXT };
        assert!(
            holds("attribution_intact", &plain, &verified, false) && holds("quorum", &plain, &CONTEXT, true)
        );
        assert!(!check("tests", plain), "nothing else is built in");
    }

    #[test]
    fn what_a_client_claims_of_a_proof_is_dropped() {
        let provided = Provided::parse(r#"[{"hash":"0","reason":"x","type":"rollback","valid":true}]"#);
        let decided = decide(&event(), &[], provided.expect("read"), true, &Rules::default(), &CONTEXT);
        let hash = Digest::of(b"null");
        assert_eq!(
            decided.text,
            format!(
                r#"[{{"hash":"{hash}","reason":"no rollback is available","type":"rollback","valid":false}}]"#
            )
        );
        assert_eq!(decided.failed, [], "nobody required it");
        let again = Provided::parse(&decided.text).expect("read");
        assert_eq!(decide(&event(), &[], again, true, &Rules::default(), &CONTEXT), decided);
    }

    #[test]
    fn malformed_proofs_are_refused_at_their_place() {
        let twice = r#"[{"type":"a"},{"type":"a"}]"#;
        for (array, code, pointer) in [
            ("[1]", Code::WrongType, "/provided_proofs/0"),
            ("[{}]", Code::WrongValue, "/provided_proofs/0/type"),
            (r#"[{"type":1}]"#, Code::WrongValue, "/provided_proofs/0/type"),
            (r#"[{"type":"a b"}]"#, Code::WrongValue, "/provided_proofs/0/type"),
            (r#"[{"colour":1,"type":"a"}]"#, Code::UnknownMember, "/provided_proofs/0/colour"),
            (twice, Code::WrongValue, "/provided_proofs/1/type"),
        ] {
            let refusal = Provided::parse(array).expect_err(array);
            assert_eq!((refusal.code, refusal.pointer.as_str()), (code, pointer), "{array}");
        }
        let many = format!("[{}]", vec!["{\"type\":\"a\"}"; MAX_PROOFS + 1].join(","));
        assert!(Provided::parse(&many).is_err());
        assert!(required("[\"a b\"]").is_err());
    }

    fn rules(pair: &Pair) -> Rules {
        let prover = Prover { name: "ci".into(), proof: "tests".into(), key: pair.key.clone() };
        Rules { provers: vec![prover], ..Rules::default() }
    }

    #[test]
    fn a_prover_proves_one_action_of_one_entry_for_a_while() {
        let end = Timestamp::from_micros(1_000);
        for kind in [Algorithm::EcdsaP256, Algorithm::SshEd25519] {
            let pair = Pair::new(kind, 5);
            let verdict = |statement: &str, event: &Event<'_>, context: &Context<'_>| {
                let signature = pair.sign(statement.as_bytes(), NAMESPACE);
                let evidence = evidence(&pair.key, statement, &signature);
                let provided = Provided::parse(&format!(r#"[{{"evidence":{evidence},"type":"tests"}}]"#));
                let required = ["tests".to_owned()];
                let decided = decide(event, &required, provided.expect("read"), true, &rules(&pair), context);
                assert_eq!(decided.not_after.is_some(), decided.failed.is_empty());
                decided.failed.first().map(|(_, reason)| *reason)
            };
            let good = statement(&event(), "o", "tests", "ci", &ID.to_string(), end);
            assert_eq!(verdict(&good, &event(), &CONTEXT), None);
            let last = Context { at: Timestamp::from_micros(999), ..CONTEXT };
            assert_eq!(verdict(&good, &event(), &last), None);
            assert_eq!(
                verdict(&good, &event(), &Context { at: end, ..CONTEXT }),
                Some("the statement has expired")
            );
            assert_eq!(
                verdict(&good, &event(), &Context { origin: "p", ..CONTEXT }),
                Some("the statement is for another ledger")
            );
            let other = Event { action_hash: Digest::ZERO, ..event() };
            assert_eq!(verdict(&good, &other, &CONTEXT), Some("the statement is for another action"));
            let other = Event { entry_id: EntryId([0x45; 16]), ..event() };
            assert_eq!(
                verdict(&good, &other, &CONTEXT),
                Some("the statement is for another entry or proposal")
            );
            let hash = Digest::of(b"open");
            let proposed = statement(&event(), "o", "tests", "ci", &hash.to_hex(), end);
            let sealing = Context { proposal_hash: Some(hash), ..CONTEXT };
            assert_eq!(verdict(&proposed, &event(), &sealing), None);
            assert!(verdict(&proposed, &event(), &CONTEXT).is_some());
            for bad in [
                statement(&event(), "o", "lint", "ci", &ID.to_string(), end),
                statement(&event(), "o", "tests", "other", &ID.to_string(), end),
                good.replace(':', ": "),
                good.replace('}', ",\"z\":\"\"}"),
                "{}".into(),
                "}{".into(),
            ] {
                assert!(verdict(&bad, &event(), &CONTEXT).is_some(), "{bad}");
            }
        }
    }

    #[test]
    fn evidence_by_a_key_that_the_rules_do_not_name_is_none() {
        let (named, other) = (Pair::new(Algorithm::SshEd25519, 5), Pair::new(Algorithm::SshEd25519, 6));
        let text = statement(&event(), "o", "tests", "ci", &ID.to_string(), Timestamp::MAX);
        let good = evidence(&named.key, &text, &named.sign(text.as_bytes(), NAMESPACE));
        let reason = |evidence: &str, rules: &Rules| {
            let provided =
                Provided::parse(&format!(r#"[{{"evidence":{evidence},"type":"tests"}}]"#)).expect("read");
            decide(&event(), &["tests".into()], provided, true, rules, &CONTEXT)
                .failed
                .first()
                .map(|(_, r)| *r)
        };
        assert_eq!(reason(&good, &rules(&named)), None);
        assert_eq!(reason(&good, &Rules::default()), Some("the rules name no prover for this type"));
        let stolen = evidence(&other.key, &text, &other.sign(text.as_bytes(), NAMESPACE));
        assert_eq!(
            reason(&stolen, &rules(&named)),
            Some("the key is not one that the rules name for this type")
        );
        let forged = evidence(&named.key, &text, &other.sign(text.as_bytes(), NAMESPACE));
        assert_eq!(reason(&forged, &rules(&named)), Some("the signature does not verify"));
        for bad in ["null", "1", "{}", r#"{"algorithm":1,"key_id":1,"signature":1,"statement":1}"#] {
            assert!(reason(bad, &rules(&named)).is_some(), "{bad}");
        }
    }
}
