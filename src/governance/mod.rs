//! Governance: what of a client's claims becomes part of an entry, and with which computed truth.
//!
//! Pure: no I/O, no clock, no randomness, so that the daemon that decides and the auditor who decides
//! again run the same code. In reading order: [`rules`] (who may do what, and what it needs),
//! [`caller`] (which caller a process is), [`key`] (whose signatures count), [`proof`] and
//! [`invariant`] (the judgement of one event), [`approval`] and [`proposal`] (how people agree to
//! one), and [`governor`], which holds all of it over time.
//!
//! Here stands admission. [`Admitted`] can only be made here; what the sequencer takes has passed.

pub mod approval;
pub mod caller;
pub mod governor;
pub mod invariant;
pub mod key;
pub mod keyring;
pub mod proof;
pub mod proposal;
pub mod rules;
mod value;
mod wire;

use std::borrow::Cow;
use std::sync::Arc;

use governor::{Refused, Ruling, Sealing, Standing};
use invariant::Judged;

use crate::ledger::canonical;
use crate::ledger::code::Code;
use crate::ledger::draft::Draft;
use crate::ledger::entry::{
    ActorType, DAEMON_ACTOR, EntryId, EntryView, EventCategory, EventType, Sequence, SignatureAlgorithm,
    is_actor_id,
};
use crate::ledger::hash::Digest;
use crate::ledger::json::{self, Place};
use crate::ledger::key::KeyId;
use crate::ledger::score::Scale;
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

impl From<rules::Fault> for Refusal {
    fn from(fault: rules::Fault) -> Self {
        Refusal { code: fault.code, pointer: fault.pointer, detail: fault.detail }
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

/// The daemon's own part of every entry, and the limit of its size.
#[derive(Debug)]
pub struct Policy {
    /// Canonical members, without braces, of the daemon's part of `environment`: what stands before
    /// and what after the name of the rules in force.
    environment: [String; 2],
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
        let text = |value: &str| {
            let mut out = Vec::new();
            json::write_string(value, &mut out);
            json::into_string(out)
        };
        let environment = [
            format!(
                r#""attestd.boot_id":{},"attestd.host":{},"attestd.rules":""#,
                text(&host.boot_id),
                text(&host.host)
            ),
            format!(r#"","attestd.version":{}"#, text(&host.version)),
        ];
        let mut replicas = vec![b'['];
        for (index, url) in host.replicas.iter().enumerate() {
            if index > 0 {
                replicas.push(b',');
            }
            json::write_string(url, &mut replicas);
        }
        replicas.push(b']');
        let mut policy = Policy {
            environment,
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

    /// Decides on a client's request without rules: what asks for proofs or approvals is refused.
    /// `fresh` is the entry id if the client gave none.
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
        let judged = ungoverned(&draft);
        let author = Author {
            actor_id,
            actor_context: with_peer(&draft.actor_context, caller.peer)?,
            origin: Origin { uid: Some(caller.uid), content },
        };
        self.fitting(self.complete(draft, fresh, author, judged, "default"))
    }

    /// Decides on a client's request by the rules in force. `peer_json` is the canonical object of
    /// `peer` without a caller, `fresh` the entry id if the client gave none, and `now` about the
    /// time that the entry will have.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn admit_under(
        &self,
        standing: &Standing,
        draft: Draft,
        peer: &caller::Peer,
        peer_json: &str,
        fresh: EntryId,
        now: Timestamp,
    ) -> Result<Admitted, Refused> {
        let ruling = standing.append(&draft, peer, draft.entry_id.unwrap_or(fresh), now)?;
        Ok(self.admit_ruled(standing, draft, ruling, peer.uid, peer_json, fresh)?)
    }

    /// The entry of a client's request for which [`Standing::append`] gave the `ruling`.
    ///
    /// # Errors
    /// [`Code::ReservedName`] or [`Code::EntryTooLarge`].
    pub fn admit_ruled(
        &self,
        standing: &Standing,
        draft: Draft,
        ruling: Ruling,
        uid: u32,
        peer_json: &str,
        fresh: EntryId,
    ) -> Result<Admitted, Refusal> {
        let peer_json = caller::named(peer_json, ruling.caller.as_deref());
        let author = Author {
            actor_id: ruling.actor_id,
            actor_context: with_peer(&draft.actor_context, &peer_json)?,
            origin: Origin { uid: Some(uid), content: draft.entry_id.map(|_| draft.content_hash()) },
        };
        let admitted = self.complete(draft, fresh, author, ruling.judged, standing.rules.label());
        self.fitting(admitted.judged_in(standing))
    }

    /// The entry of a proposal that `peer` seals. `payload` is that of an action which the daemon
    /// performs itself ([`Sealing::payload`] and whatever it adds), else `None`.
    ///
    /// # Errors
    /// [`Code::EntryTooLarge`], which an opening makes sure does not happen.
    pub fn admit_sealed(
        &self,
        standing: &Standing,
        sealing: Sealing,
        payload: Option<String>,
        peer_json: &str,
        fresh: EntryId,
    ) -> Result<Admitted, Refusal> {
        let Sealing { mut draft, judged, caller, .. } = sealing;
        let author = match (payload, draft.actor_id.take()) {
            (None, Some(actor_id)) => Author {
                actor_id,
                actor_context: with_peer(&draft.actor_context, &caller::named(peer_json, caller.as_deref()))?,
                origin: Origin { uid: None, content: None },
            },
            (payload, _) => {
                draft.action_payload = payload.unwrap_or(draft.action_payload);
                draft.actor_type = ActorType::System;
                Author::daemon()
            }
        };
        let admitted = self.complete(draft, fresh, author, judged, standing.rules.label());
        self.fitting(admitted.judged_in(standing))
    }

    fn fitting(&self, admitted: Admitted) -> Result<Admitted, Refusal> {
        // The rules and what is performed have a limit of their own, by which they were proposed.
        let limit = if admitted.is_own() { canonical::MAX_ENTRY_BYTES } else { self.max_entry_bytes };
        let bytes = self.empty_entry_bytes + variable_bytes(&admitted);
        if bytes > limit {
            let detail =
                format!("the entry would take {bytes} bytes in canonical form; the limit is {limit}");
            return Err(refusal(Code::EntryTooLarge, "", &detail));
        }
        Ok(admitted)
    }

    /// An entry of the daemon's own under the default rules. `payload` is a canonical object.
    #[must_use]
    pub fn own(
        &self,
        event_type: EventType,
        category: EventCategory,
        action_type: &str,
        payload: String,
        id: EntryId,
    ) -> Admitted {
        self.own_under("default", Draft::own(event_type, category, action_type, payload), id)
    }

    /// An entry of the daemon's own while the rules that entries call `label` are in force.
    #[must_use]
    pub fn own_under(&self, label: &str, draft: Draft, id: EntryId) -> Admitted {
        let judged = ungoverned(&draft);
        self.complete(draft, id, Author::daemon(), judged, label)
    }

    /// The most that an entry may have.
    #[must_use]
    pub fn max_entry_bytes(&self) -> usize {
        self.max_entry_bytes
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
        author: Author,
        judged: Judged,
        label: &str,
    ) -> Admitted {
        let [before, after] = &self.environment;
        // No client's name begins `attestd.`, so ours stand together at one place.
        let environment = match json::place_of(&draft.environment, "attestd.") {
            Place::Free(_) if draft.environment == "{}" => ["{", before, label, after, "}"].concat(),
            Place::Free(at) => {
                json::insert_members(&draft.environment, at, &[before.as_str(), label, after].concat())
            }
            Place::Taken => draft.environment.clone(),
        };
        Admitted {
            id: draft.entry_id.unwrap_or(fresh),
            action_hash: Digest::of(draft.action_payload.as_bytes()),
            environment,
            replicas: self.replicas.clone(),
            judged,
            author,
            draft,
            generation: None,
        }
    }
}

/// What an event comes to that needs nothing.
fn ungoverned(draft: &Draft) -> Judged {
    let (composite_score, safety_floor_met) = Scale::default().judge(draft.pillars_scores);
    Judged {
        required_proofs: "[]".into(),
        provided_proofs: "[]".into(),
        proofs_valid: true,
        required_approvals: 0,
        received_approvals: "[]".into(),
        quorum_met: true,
        composite_score,
        safety_floor_met,
        not_after: None,
    }
}

fn with_peer(actor_context: &str, peer: &str) -> Result<String, Refusal> {
    match json::place_of(actor_context, "peer") {
        Place::Free(at) => Ok(json::insert_members(actor_context, at, &format!("\"peer\":{peer}"))),
        Place::Taken => Err(refusal(Code::ReservedName, "/actor_context/peer", "`peer` is the daemon's")),
    }
}

fn refusal(code: Code, pointer: &str, detail: &str) -> Refusal {
    Refusal::new(code).at(pointer).because(detail)
}

/// By how much the words, `k_state`, `required_approvals` and `rollback_snapshot_hash` can be longer than in an empty
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
        view.received_approvals.len(),
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

/// Who an entry is by.
#[derive(Debug, Clone)]
struct Author {
    actor_id: String,
    actor_context: String,
    origin: Origin,
}

impl Author {
    fn daemon() -> Self {
        Author {
            actor_id: DAEMON_ACTOR.into(),
            actor_context: "{}".into(),
            origin: Origin { uid: None, content: None },
        }
    }
}

/// An event that may become an entry. Only [`Policy`] makes one.
#[derive(Debug, Clone)]
pub struct Admitted {
    draft: Draft,
    id: EntryId,
    author: Author,
    environment: String,
    action_hash: Digest,
    judged: Judged,
    replicas: Arc<str>,
    generation: Option<u64>,
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
        self.author.origin.uid.zip(self.author.origin.content)
    }

    /// Whether a client gave the id, with its request or its proposal.
    #[must_use]
    pub fn has_given_id(&self) -> bool {
        self.draft.entry_id.is_some()
    }

    /// Whether the daemon itself is the actor.
    #[must_use]
    pub fn is_own(&self) -> bool {
        self.author.actor_id == DAEMON_ACTOR
    }

    fn judged_in(mut self, standing: &Standing) -> Self {
        self.generation = Some(standing.generation);
        self
    }

    /// The [`Standing::generation`] in which it was judged. In another it has to be judged again;
    /// `None` where it was judged by no rules.
    #[must_use]
    pub fn generation(&self) -> Option<u64> {
        self.generation
    }

    /// The last time that the entry may have: later, what it was judged by has expired.
    #[must_use]
    pub fn not_after(&self) -> Option<Timestamp> {
        self.judged.not_after
    }

    /// The entries that this one depends on.
    #[must_use]
    pub fn dependencies(&self) -> &[EntryId] {
        &self.draft.dependencies
    }

    /// What the client sent.
    #[must_use]
    pub fn into_draft(self) -> Draft {
        self.draft
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
            actor_context: &self.author.actor_context,
            actor_id: Cow::Borrowed(&self.author.actor_id),
            actor_type: draft.actor_type,
            composite_score: self.judged.composite_score,
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
            proofs_valid: self.judged.proofs_valid,
            provided_proofs: &self.judged.provided_proofs,
            quorum_met: self.judged.quorum_met,
            received_approvals: &self.judged.received_approvals,
            replicas: &self.replicas,
            required_approvals: self.judged.required_approvals,
            required_proofs: &self.judged.required_proofs,
            result_data: &draft.result_data,
            rollback_available: draft.rollback_available,
            rollback_executed: draft.rollback_executed,
            rollback_snapshot_hash: draft.rollback_snapshot_hash,
            safety_floor_met: self.judged.safety_floor_met,
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
