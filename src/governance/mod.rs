//! Admission: what of a client's claims becomes part of an entry, and with which computed truth.
//!
//! Pure: no I/O, no clock, no randomness. It judges by the documented default rules: scores are
//! weighed equally against a floor of 7, and an event that asks for proofs or approvals is refused,
//! because nothing here could tell whether they are met.
//!
//! [`Admitted`] can only be made here; what the sequencer takes has passed.

pub mod approval;
pub mod caller;
pub mod invariant;
pub mod key;
pub mod proof;
pub mod proposal;
pub mod rules;
mod value;
mod wire;

use std::borrow::Cow;
use std::sync::Arc;

use crate::ledger::canonical;
use crate::ledger::code::Code;
use crate::ledger::draft::Draft;
use crate::ledger::entry::{
    ActorType, DAEMON_ACTOR, EntryId, EntryView, EventCategory, EventType, ExecutionStatus, Sequence,
    SignatureAlgorithm, is_actor_id,
};
use crate::ledger::hash::Digest;
use crate::ledger::json::{self, Place};
use crate::ledger::key::KeyId;
use crate::ledger::score::{Scale, Score};
use crate::ledger::timestamp::Timestamp;

/// Why a well-formed request is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct Refusal {
    /// The stable code.
    pub code: Code,
    /// RFC 6901 pointer into the request or entry, empty for the whole of it.
    pub pointer: String,
    /// What would have to change.
    pub detail: String,
}

impl Refusal {
    /// A refusal of the whole, for the reason that `code` gives.
    #[must_use]
    pub fn new(code: Code) -> Self {
        Refusal { code, pointer: String::new(), detail: code.title().into() }
    }

    /// The same refusal, at the place that `pointer` names.
    #[must_use]
    pub fn at(mut self, pointer: impl Into<String>) -> Self {
        self.pointer = pointer.into();
        self
    }

    /// The same refusal, of something that stands at `pointer`.
    #[must_use]
    pub fn below(mut self, pointer: &str) -> Self {
        self.pointer.insert_str(0, pointer);
        self
    }

    /// The same refusal with an explanation.
    #[must_use]
    pub fn because(mut self, detail: &str) -> Self {
        detail.clone_into(&mut self.detail);
        self
    }
}

/// What the daemon says of itself in every entry.
#[derive(Debug, Clone)]
pub struct Host {
    /// `attestd.version`.
    pub version: String,
    /// `attestd.host`.
    pub host: String,
    /// `attestd.boot_id`.
    pub boot_id: String,
    /// The configured replica URLs.
    pub replicas: Vec<String>,
}

/// The rules in force and the daemon's own part of every entry.
#[derive(Debug)]
pub struct Policy {
    scale: Scale,
    /// Canonical members, without braces, of the daemon's part of `environment`.
    environment: String,
    replicas: Arc<str>,
    max_entry_bytes: usize,
    empty_entry_bytes: usize,
}

/// Who is calling, by the kernel's word.
#[derive(Debug, Clone, Copy)]
pub struct Caller<'a> {
    /// The user id, which is what an entry id belongs to.
    pub uid: u32,
    /// The canonical object that becomes `actor_context.peer`.
    pub peer: &'a str,
}

impl Policy {
    /// The default rules for a daemon on `host`; entries over `max_entry_bytes` are refused.
    #[must_use]
    pub fn new(host: &Host, max_entry_bytes: usize) -> Self {
        let mut environment = Vec::new();
        for (name, value) in [
            ("attestd.boot_id", host.boot_id.as_str()),
            ("attestd.host", &host.host),
            ("attestd.rules", "default"),
            ("attestd.version", &host.version),
        ] {
            if !environment.is_empty() {
                environment.push(b',');
            }
            json::write_string(name, &mut environment);
            environment.push(b':');
            json::write_string(value, &mut environment);
        }
        let mut replicas = vec![b'['];
        for (index, url) in host.replicas.iter().enumerate() {
            if index > 0 {
                replicas.push(b',');
            }
            json::write_string(url, &mut replicas);
        }
        replicas.push(b']');
        let mut policy = Policy {
            scale: Scale::default(),
            environment: json::into_string(environment),
            replicas: json::into_string(replicas).into(),
            max_entry_bytes,
            empty_entry_bytes: 0,
        };
        let empty = policy.own(EventType::Action, EventCategory::Normal, "", "{}".into(), EntryId([0; 16]));
        policy.empty_entry_bytes =
            canonical::encode(&empty.view()).line.len() + canonical::MAX_SIGNATURE_HEX + SMALL_MEMBERS
                - variable_bytes(&empty);
        policy
    }

    /// Decides on a client's request. `fresh` is the entry id if the client gave none.
    ///
    /// # Errors
    /// A [`Refusal`]; nothing is recorded then.
    pub fn admit(&self, draft: Draft, caller: Caller<'_>, fresh: EntryId) -> Result<Admitted, Refusal> {
        self.refuse_ungovernable(&draft)?;
        let actor_id = match &draft.actor_id {
            None => format!("uid:{}", caller.uid),
            Some(claimed) => format!("uid:{}/{claimed}", caller.uid),
        };
        // The entry has to be one that every reader takes, so the limit holds for what is stored.
        if !is_actor_id(&actor_id) {
            let detail = format!(
                "would be stored as `uid:{}/…` in {} bytes; an actor id has at most 256",
                caller.uid,
                actor_id.len()
            );
            return Err(refusal(Code::WrongValue, "/actor_id", &detail));
        }
        let content = draft.entry_id.map(|_| draft.content_hash());
        let actor_context = match json::place_of(&draft.actor_context, "peer") {
            Place::Free(at) => {
                json::insert_members(&draft.actor_context, at, &format!("\"peer\":{}", caller.peer))
            }
            Place::Taken => {
                return Err(refusal(Code::ReservedName, "/actor_context/peer", "`peer` is the daemon's"));
            }
        };
        let admitted =
            self.complete(draft, fresh, actor_id, actor_context, Origin { uid: Some(caller.uid), content });
        let bytes = self.empty_entry_bytes + variable_bytes(&admitted);
        if bytes > self.max_entry_bytes {
            return Err(refusal(
                Code::EntryTooLarge,
                "",
                &format!(
                    "the entry would take {bytes} bytes in canonical form; the limit is {}",
                    self.max_entry_bytes
                ),
            ));
        }
        Ok(admitted)
    }

    /// An entry of the daemon's own. `payload` is a canonical object.
    #[must_use]
    pub fn own(
        &self,
        event_type: EventType,
        category: EventCategory,
        action_type: &str,
        payload: String,
        id: EntryId,
    ) -> Admitted {
        let mut draft =
            Draft::new(event_type, action_type, payload, ExecutionStatus::Success, ActorType::System);
        draft.event_category = category;
        draft.severity = category.default_severity();
        self.complete(draft, id, DAEMON_ACTOR.into(), "{}".into(), Origin { uid: None, content: None })
    }

    fn refuse_ungovernable(&self, draft: &Draft) -> Result<(), Refusal> {
        let asked = [
            ("/required_proofs", draft.required_proofs != "[]"),
            ("/provided_proofs", draft.provided_proofs != "[]"),
            ("/required_approvals", draft.required_approvals != 0),
        ];
        match asked.iter().find(|(_, asked)| *asked) {
            None => Ok(()),
            Some((pointer, _)) => Err(refusal(
                Code::GovernanceUnavailable,
                pointer,
                "this daemon has no rules by which proofs or approvals could be judged; leave the member out",
            )),
        }
    }

    fn complete(
        &self,
        draft: Draft,
        fresh: EntryId,
        actor_id: String,
        actor_context: String,
        origin: Origin,
    ) -> Admitted {
        // No client's name begins `attestd.`, so ours stand together at one place.
        let environment = match json::place_of(&draft.environment, "attestd.") {
            Place::Free(at) => json::insert_members(&draft.environment, at, &self.environment),
            Place::Taken => draft.environment.clone(),
        };
        let (composite_score, safety_floor_met) = self.scale.judge(draft.pillars_scores);
        Admitted {
            id: draft.entry_id.unwrap_or(fresh),
            action_hash: Digest::of(draft.action_payload.as_bytes()),
            actor_id,
            actor_context,
            environment,
            composite_score,
            safety_floor_met,
            replicas: self.replicas.clone(),
            draft,
            origin,
        }
    }
}

fn refusal(code: Code, pointer: &str, detail: &str) -> Refusal {
    Refusal::new(code).at(pointer).because(detail)
}

/// By how much the words, `k_state` and `rollback_snapshot_hash` can be longer than in an empty
/// entry. Counted always, so that an entry's size never depends on its place or its signature.
const SMALL_MEMBERS: usize = 128;

/// Bytes of the members whose length depends on the event.
fn variable_bytes(admitted: &Admitted) -> usize {
    let view = admitted.view();
    let mut actor_id = Vec::new();
    json::write_string(&view.actor_id, &mut actor_id);
    let mut scores = Vec::new();
    view.composite_score.write(&mut scores);
    if let Some(pillars) = view.pillars_scores {
        pillars.write(&mut scores);
    }
    [
        view.action_payload.len(),
        view.action_type.len(),
        view.actor_context.len(),
        actor_id.len(),
        scores.len(),
        view.conflicts_detected.len(),
        (view.dependencies.len() * 39).saturating_sub(1),
        view.environment.len(),
        view.error_details.len(),
        view.provided_proofs.len(),
        view.required_proofs.len(),
        view.result_data.len(),
        view.system_state_snapshot.len(),
    ]
    .iter()
    .sum()
}

/// Where an admitted entry comes from: a caller, or the daemon itself.
#[derive(Debug, Clone, Copy)]
struct Origin {
    uid: Option<u32>,
    content: Option<Digest>,
}

/// An event that may become an entry. Only [`Policy`] makes one.
#[derive(Debug, Clone)]
pub struct Admitted {
    draft: Draft,
    id: EntryId,
    actor_id: String,
    actor_context: String,
    environment: String,
    action_hash: Digest,
    composite_score: Score,
    safety_floor_met: bool,
    replicas: Arc<str>,
    origin: Origin,
}

impl Admitted {
    /// `entry_id`, the client's or a fresh one.
    #[must_use]
    pub fn id(&self) -> EntryId {
        self.id
    }

    /// Where the client gave the id: by whom, and the hash of the content that it gave with it.
    #[must_use]
    pub fn idempotency(&self) -> Option<(u32, Digest)> {
        self.origin.uid.zip(self.origin.content)
    }

    /// Whether the daemon itself is the actor.
    #[must_use]
    pub fn is_own(&self) -> bool {
        self.origin.uid.is_none()
    }

    /// The entries that this one depends on.
    #[must_use]
    pub fn dependencies(&self) -> &[EntryId] {
        &self.draft.dependencies
    }

    /// About how many bytes it holds.
    #[must_use]
    pub fn bytes(&self) -> usize {
        1_536 + variable_bytes(self)
    }

    /// The entry without its place in the chain and its signature, which `Head::extend` sets.
    #[must_use]
    pub fn view(&self) -> EntryView<'_> {
        let draft = &self.draft;
        EntryView {
            action_hash: self.action_hash,
            action_payload: &draft.action_payload,
            action_type: &draft.action_type,
            actor_context: &self.actor_context,
            actor_id: Cow::Borrowed(&self.actor_id),
            actor_type: draft.actor_type,
            composite_score: self.composite_score,
            conflicts_detected: &draft.conflicts_detected,
            dependencies: Cow::Borrowed(&draft.dependencies),
            entry_hash: Digest::ZERO,
            entry_id: self.id,
            environment: &self.environment,
            error_details: &draft.error_details,
            event_category: draft.event_category,
            event_type: draft.event_type,
            execution_status: draft.execution_status,
            hsm_signature: "",
            k_state: draft.k_state,
            pillars_scores: draft.pillars_scores,
            prev_entry_hash: Digest::ZERO,
            // Nothing is required, so nothing is missing: `admit` refuses whatever asks for more.
            proofs_valid: true,
            provided_proofs: "[]",
            quorum_met: true,
            received_approvals: "[]",
            replicas: &self.replicas,
            required_approvals: 0,
            required_proofs: "[]",
            result_data: &draft.result_data,
            rollback_available: draft.rollback_available,
            rollback_executed: draft.rollback_executed,
            rollback_snapshot_hash: draft.rollback_snapshot_hash,
            safety_floor_met: self.safety_floor_met,
            // The largest of each, so that the size is judged without knowing the place.
            sequence_number: Sequence(i64::MAX as u64),
            severity: draft.severity,
            signature_algorithm: SignatureAlgorithm::EntryP256,
            signing_key_id: KeyId(Digest::ZERO),
            system_state_snapshot: &draft.system_state_snapshot,
            timestamp: Timestamp::MAX,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRESH: EntryId = EntryId([9; 16]);
    const CALLER: Caller<'static> = Caller { uid: 1000, peer: r#"{"uid":1000}"# };

    fn policy(limit: usize) -> Policy {
        let host = Host {
            version: "0.1.0".into(),
            host: "box \"one\"".into(),
            boot_id: "b".into(),
            replicas: vec!["https://a.example".into()],
        };
        Policy::new(&host, limit)
    }

    fn draft(extra: &str) -> Draft {
        let text = format!(
            r#"{{"event_type":"ACTION","action_type":"a.b","action_payload":{{}},"execution_status":"SUCCESS","actor_type":"SYSTEM"{extra}}}"#
        );
        Draft::parse(text.as_bytes()).expect("valid")
    }

    #[test]
    fn the_callers_uid_is_the_actor() {
        let admit = |extra: &str| policy(65_536).admit(draft(extra), CALLER, FRESH).expect("admitted");
        assert_eq!(admit("").view().actor_id, "uid:1000");
        assert_eq!(admit(r#","actor_id":"agent""#).view().actor_id, "uid:1000/agent");
        assert_eq!(admit("").view().actor_context, r#"{"peer":{"uid":1000}}"#);
        let around = admit(r#","actor_context":{"z":1,"a":2}"#);
        assert_eq!(around.view().actor_context, r#"{"a":2,"peer":{"uid":1000},"z":1}"#);
    }

    #[test]
    fn an_actor_id_has_room_for_the_callers_uid() {
        let admit = |length: usize| {
            let draft = draft(&format!(r#","actor_id":"{}""#, "x".repeat(length)));
            policy(65_536).admit(draft, CALLER, FRESH)
        };
        let longest = 256 - "uid:1000/".len();
        assert_eq!(admit(longest).expect("fits").view().actor_id.len(), 256);
        let refusal = admit(longest + 1).expect_err("too long");
        assert_eq!((refusal.code, refusal.pointer.as_str()), (Code::WrongValue, "/actor_id"));
    }

    #[test]
    fn the_daemons_environment_is_added_in_order() {
        let admitted = policy(65_536)
            .admit(draft(r#","environment":{"z":"1","ATT":"2"}"#), CALLER, FRESH)
            .expect("admitted");
        let environment = admitted.view().environment.to_owned();
        assert_eq!(json::canonicalize(environment.as_bytes()).expect("JSON"), environment);
        assert_eq!(json::member(&environment, "attestd.rules"), Some("\"default\""));
        assert_eq!(json::members(&environment).count(), 6);
    }

    #[test]
    fn proofs_and_approvals_are_refused_until_they_can_be_judged() {
        for (extra, pointer) in [
            (r#","required_proofs":["pillars"]"#, "/required_proofs"),
            (r#","provided_proofs":[{}]"#, "/provided_proofs"),
            (r#","required_approvals":1"#, "/required_approvals"),
        ] {
            let refusal = policy(65_536).admit(draft(extra), CALLER, FRESH).expect_err(extra);
            assert_eq!((refusal.code, refusal.pointer.as_str()), (Code::GovernanceUnavailable, pointer));
        }
    }

    #[test]
    fn the_size_limit_counts_the_whole_sealed_entry() {
        let text = format!(
            r#","result_data":{{"x":"{}"}},"actor_id":"a\"b","dependencies":["6f1c2a7e-3b4d-4c5e-8f90-112233445566"],"pillars_scores":{{"an_toan":1.5,"duong_dai":1,"han_che_rui_ro":1,"tin_vao_so_lieu":1}}"#,
            "y".repeat(1_000)
        );
        let admitted = policy(65_536).admit(draft(&text), CALLER, FRESH).expect("fits");
        let sealed = canonical::encode(&admitted.view()).seal(&[b'0'; canonical::MAX_SIGNATURE_HEX]).len();
        let fits = |limit: usize| policy(limit).admit(draft(&text), CALLER, FRESH);
        // Two more where the empty object and array of an empty entry give way.
        assert!(fits(sealed + SMALL_MEMBERS + 2).is_ok());
        assert_eq!(fits(sealed - 1).expect_err("too large").code, Code::EntryTooLarge);
    }
}
