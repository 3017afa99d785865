//! What can be said of one entry by itself: its bytes, hashes, signature, and what the daemon must
//! have computed or set in it. It needs no other entry, so entries are checked in parallel.

use super::verdict::Fault;
use crate::ledger::canonical;
use crate::ledger::code::Code;
use crate::ledger::entry::{
    DAEMON_ACTOR, EntryView, EventType, Sequence, SignatureAlgorithm, is_reserved_action_type,
};
use crate::ledger::hash::Digest;
use crate::ledger::json;
use crate::ledger::key::{KeyId, PublicKey, Signature, is_origin};
use crate::ledger::score::Scale;
use crate::ledger::timestamp::Timestamp;

/// The `action_type` of entry 0.
pub const GENESIS: &str = "ledger.genesis";

/// The members of `environment` that every entry has.
const ENVIRONMENT: [&str; 4] = ["attestd.boot_id", "attestd.host", "attestd.rules", "attestd.version"];

/// The only `attestd.rules` that this version can judge by.
const DEFAULT_RULES: &str = "\"default\"";

/// Reserved action types whose entries change what is demanded or who is trusted. This version
/// cannot follow them, so it refuses them rather than go on under the old rules or key.
const UNJUDGED: [&str; 5] = ["key.", "rules.", "signature.", "proposal.", "approval."];

/// The one of them that it can follow: the way of signing changes.
const MODE_CHANGE: &str = "signature.mode";

/// The keys that are trusted from outside the ledger.
#[derive(Debug, Clone)]
pub struct TrustedKeys {
    first: PublicKey,
}

impl TrustedKeys {
    /// Trusts `key` alone, as the ledger's first.
    #[must_use]
    pub fn only(key: PublicKey) -> Self {
        TrustedKeys { first: key }
    }

    /// The ledger's first key, which its genesis must name.
    #[must_use]
    pub fn first(&self) -> &PublicKey {
        &self.first
    }

    fn named(&self, id: KeyId) -> Option<&PublicKey> {
        (self.first.id() == id).then_some(&self.first)
    }
}

/// Decodes one line (without its line feed) and checks everything that needs no other entry:
/// canonical form, hashes, signature, scores, governance and who may write what. An entry 0 must
/// be a genesis that names the first of `keys`, and no other entry may be a genesis.
///
/// Of an entry that a checkpoint signs ([`SignatureAlgorithm::TreeP256`]) the signature is only
/// known to be one when it is read: the checkpoint's text takes the whole tree.
///
/// # Errors
/// The first [`Fault`]: what was tampered with comes before what was sealed wrongly.
pub fn check_entry<'a>(line: &'a [u8], keys: &TrustedKeys) -> Result<EntryView<'a>, Fault> {
    let entry = check_unsigned(line, keys)?;
    shared_signature(&entry)?;
    Ok(entry)
}

/// [`check_entry`], but for the signature that an entry shares with others, which is not looked at.
pub(super) fn check_unsigned<'a>(line: &'a [u8], keys: &TrustedKeys) -> Result<EntryView<'a>, Fault> {
    let decoded = canonical::decode(line)?;
    let entry = decoded.entry;
    if decoded.computed_hash != entry.entry_hash {
        return Err(Fault::new(Code::EntryHashMismatch)
            .at("/entry_hash")
            .because(format!("the entry hashes to {}", decoded.computed_hash)));
    }
    if Digest::of(entry.action_payload.as_bytes()) != entry.action_hash {
        return Err(Fault::new(Code::ActionHash).at("/action_hash"));
    }
    check_signature(&entry, keys)?;
    check_scores(&entry)?;
    check_governance(&entry)?;
    check_author(&entry)?;
    check_environment(&entry)?;
    if entry.is_daemons() && entry.action_type == MODE_CHANGE {
        mode_after(&entry)?;
    }
    if entry.sequence_number == Sequence(0) {
        check_genesis(&entry, keys)?;
    } else if entry.action_type == GENESIS {
        return Err(Fault::new(Code::Genesis).at("/action_type").because("a genesis that is not entry 0"));
    }
    Ok(entry)
}

/// The origin that a checked genesis names.
pub(crate) fn origin_of(genesis: &EntryView<'_>) -> Option<String> {
    text(genesis.action_payload, "origin")
}

fn check_signature(entry: &EntryView<'_>, keys: &TrustedKeys) -> Result<(), Fault> {
    let Some(key) = keys.named(entry.signing_key_id) else {
        return Err(Fault::new(Code::UnknownKey)
            .at("/signing_key_id")
            .because(format!("the entry names key {}", entry.signing_key_id)));
    };
    match entry.signature_algorithm {
        SignatureAlgorithm::EntryP256 if key.verifies(&entry.entry_hash.0, &signature_of(entry)?) => Ok(()),
        SignatureAlgorithm::EntryP256 => Err(Fault::new(Code::SignatureInvalid).at("/hsm_signature")),
        SignatureAlgorithm::TreeP256 => Ok(()),
    }
}

/// The signature that the entry shares with the others of its commit; `None` if it has its own.
pub(super) fn shared_signature(entry: &EntryView<'_>) -> Result<Option<Signature>, Fault> {
    match entry.signature_algorithm {
        SignatureAlgorithm::EntryP256 => Ok(None),
        SignatureAlgorithm::TreeP256 => signature_of(entry).map(Some),
    }
}

fn signature_of(entry: &EntryView<'_>) -> Result<Signature, Fault> {
    Signature::from_hex_der(entry.hsm_signature.as_bytes())
        .map_err(|code| Fault::new(code).at("/hsm_signature"))
}

/// How the entry after this checked one must be signed.
///
/// # Errors
/// [`Code::SignatureMode`] when it is a change of mode that does not say from what to what, or
/// is not signed in the mode that it leaves.
pub(super) fn mode_after(entry: &EntryView<'_>) -> Result<SignatureAlgorithm, Fault> {
    let own = entry.signature_algorithm;
    if !entry.is_daemons() || entry.action_type != MODE_CHANGE {
        return Ok(own);
    }
    let wrong =
        |at: &str, detail: &str| Err(Fault::new(Code::SignatureMode).at(at.to_owned()).because(detail));
    if entry.event_type != EventType::Change {
        return wrong("/event_type", "must be CHANGE");
    }
    let mode = |name| text(entry.action_payload, name).and_then(|mode| algorithm_of(&mode));
    match (mode("from"), mode("to")) {
        (Some(from), _) if from != own => {
            wrong("/action_payload/from", "the entry must be signed in the mode that it leaves")
        }
        (Some(from), Some(to)) if from != to => Ok(to),
        (None, _) => wrong("/action_payload/from", "must be `each` or `commit`"),
        (Some(_), _) => wrong("/action_payload/to", "must be the other one of `each` and `commit`"),
    }
}

/// The algorithm of the entries of a mode.
fn algorithm_of(mode: &str) -> Option<SignatureAlgorithm> {
    match mode {
        "each" => Some(SignatureAlgorithm::EntryP256),
        "commit" => Some(SignatureAlgorithm::TreeP256),
        _ => None,
    }
}

fn check_scores(entry: &EntryView<'_>) -> Result<(), Fault> {
    let (composite, met) = Scale::default().judge(entry.pillars_scores);
    if composite != entry.composite_score {
        return Err(Fault::new(Code::CompositeScore)
            .at("/composite_score")
            .because(format!("the pillars make {composite}")));
    }
    if met != entry.safety_floor_met {
        return Err(Fault::new(Code::SafetyFloor).at("/safety_floor_met"));
    }
    Ok(())
}

/// Nothing that needs a judgement of proofs or approvals is accepted, and where nothing is
/// demanded the entry must say so.
fn check_governance(entry: &EntryView<'_>) -> Result<(), Fault> {
    let unjudged = |pointer| {
        Err(Fault::new(Code::GovernanceUnavailable)
            .at(pointer)
            .because("this program cannot judge proofs, approvals and rules"))
    };
    let arrays = [
        (entry.required_proofs, "/required_proofs"),
        (entry.provided_proofs, "/provided_proofs"),
        (entry.received_approvals, "/received_approvals"),
    ];
    if let Some((_, pointer)) = arrays.iter().find(|(array, _)| *array != "[]") {
        return unjudged(*pointer);
    }
    if entry.required_approvals != 0 {
        return unjudged("/required_approvals");
    }
    if !entry.proofs_valid {
        return Err(Fault::new(Code::ProofsValid).at("/proofs_valid").because("nothing was required"));
    }
    if !entry.quorum_met {
        return Err(Fault::new(Code::Quorum).at("/quorum_met").because("nothing was required"));
    }
    let followed = entry.action_type == MODE_CHANGE;
    if entry.is_daemons() && !followed && UNJUDGED.iter().any(|prefix| entry.action_type.starts_with(prefix))
    {
        return unjudged("/action_type");
    }
    Ok(())
}

/// Either the daemon's own entry, or a client's with the kernel's word on it and nothing that is
/// the daemon's.
fn check_author(entry: &EntryView<'_>) -> Result<(), Fault> {
    if entry.is_daemons() {
        return Ok(());
    }
    let Some(peer) = json::member(entry.actor_context, "peer") else {
        return Err(Fault::new(Code::PeerMissing).at("/actor_context/peer"));
    };
    let uid = check_peer(peer)?;
    if entry.event_type.is_reserved() {
        return Err(Fault::new(Code::ReservedByClient).at("/event_type"));
    }
    if is_reserved_action_type(entry.action_type) {
        return Err(Fault::new(Code::ReservedByClient).at("/action_type"));
    }
    if entry.actor_id == DAEMON_ACTOR {
        return Err(Fault::new(Code::ReservedByClient).at("/actor_id"));
    }
    let own = format!("uid:{uid}");
    match entry.actor_id.strip_prefix(&own) {
        Some("") => Ok(()),
        Some(rest) if rest.starts_with('/') => Ok(()),
        _ => Err(Fault::new(Code::WrongValue)
            .at("/actor_id")
            .because(format!("without rules a caller with uid {uid} is `{own}` or `{own}/…`"))),
    }
}

type IsAllowed = fn(&str) -> bool;

/// The members of `peer` in canonical order, and what each may be beside null.
const PEER: [(&str, IsAllowed); 10] = [
    ("caller", is_text),
    ("exe", is_text),
    ("exe_sha256", |value| quoted(value).is_some_and(|hex| Digest::from_hex(hex.as_bytes()).is_some())),
    ("gid", is_id),
    ("groups", |value| value.starts_with('[') && json::elements(value).all(is_id)),
    ("pid", |value| value.parse::<i32>().is_ok_and(|pid| pid >= 0)),
    ("start_time", |value| quoted(value).is_some_and(|time| Timestamp::parse(time.as_bytes()).is_some())),
    ("uid", is_id),
    ("unit", is_text),
    ("user", is_text),
];

/// Checks the shape of `peer` and gives its uid, which alone may not be null.
fn check_peer(peer: &str) -> Result<u32, Fault> {
    if !peer.starts_with('{') {
        return Err(Fault::new(Code::WrongType).at("/actor_context/peer").because("must be an object"));
    }
    let mut uid = None;
    let mut members = json::members(peer);
    for (name, allowed) in PEER {
        let value = match members.next() {
            Some((start, name_end, end)) if &peer[start + 1..name_end - 1] == name => {
                &peer[name_end + 1..end]
            }
            _ => return Err(strange_member(peer)),
        };
        if name == "uid" {
            uid = value.parse().ok();
        }
        if !allowed(value) && (value != "null" || name == "uid") {
            return Err(Fault::new(Code::WrongType).at(format!("/actor_context/peer/{name}")));
        }
    }
    match uid {
        Some(uid) if members.next().is_none() => Ok(uid),
        _ => Err(strange_member(peer)),
    }
}

/// Why the members of `peer` are not those of [`PEER`].
fn strange_member(peer: &str) -> Fault {
    let names: Vec<String> =
        json::members(peer).map(|(start, end, _)| json::unquote(&peer.as_bytes()[start..end])).collect();
    let unknown = names.iter().find(|name| !PEER.iter().any(|(known, _)| known == name));
    let missing = PEER.iter().find(|(known, _)| !names.iter().any(|name| name == known));
    let (code, name) = match (unknown, missing) {
        (Some(unknown), _) => (Code::UnknownMember, unknown.as_str()),
        (None, missing) => (Code::MissingMember, missing.map_or("", |(known, _)| known)),
    };
    let escaped = name.replace('~', "~0").replace('/', "~1");
    Fault::new(code).at(format!("/actor_context/peer/{escaped}"))
}

fn check_environment(entry: &EntryView<'_>) -> Result<(), Fault> {
    for name in ENVIRONMENT {
        let Some(value) = json::member(entry.environment, name) else {
            return Err(Fault::new(Code::MissingMember).at(format!("/environment/{name}")));
        };
        if name == "attestd.rules" && value != DEFAULT_RULES {
            return Err(Fault::new(Code::GovernanceUnavailable)
                .at(format!("/environment/{name}"))
                .because("this program knows the default rules only"));
        }
    }
    Ok(())
}

fn check_genesis(entry: &EntryView<'_>, keys: &TrustedKeys) -> Result<(), Fault> {
    if !entry.is_daemons() || entry.event_type != EventType::Change || entry.action_type != GENESIS {
        let detail = "entry 0 must be the daemon's CHANGE `ledger.genesis`";
        return Err(Fault::new(Code::Genesis).because(detail));
    }
    let payload = entry.action_payload;
    let wrong = |name: &str, detail: &str| {
        Err(Fault::new(Code::Genesis).at(format!("/action_payload/{name}")).because(detail))
    };
    if !text(payload, "origin").is_some_and(|origin| is_origin(&origin)) {
        return wrong("origin", "must be an origin");
    }
    let token = json::member(payload, "token").unwrap_or_default();
    for name in ["label", "manufacturer", "model", "serial"] {
        if text(token, name).is_none() {
            return wrong(&format!("token/{name}"), "must be a string");
        }
    }
    let attributes = json::member(payload, "key_attributes").unwrap_or_default();
    for name in ["always_sensitive", "extractable", "local", "never_extractable", "sensitive"] {
        if !matches!(json::member(attributes, name), Some("true" | "false" | "null")) {
            return wrong(&format!("key_attributes/{name}"), "must be true, false or null");
        }
    }
    match text(payload, "signature_mode").and_then(|mode| algorithm_of(&mode)) {
        Some(algorithm) if algorithm == entry.signature_algorithm => {}
        Some(_) => {
            return Err(Fault::new(Code::SignatureMode)
                .at("/action_payload/signature_mode")
                .because("the genesis is signed in another mode"));
        }
        None => return wrong("signature_mode", "must be `each` or `commit`"),
    }
    for name in ["ceremony", "predecessor"] {
        if !json::member(payload, name).is_some_and(|value| value == "null" || value.starts_with('{')) {
            return wrong(name, "must be an object or null");
        }
    }
    match json::member(payload, "rules") {
        Some("null") => {}
        Some(_) => {
            return Err(Fault::new(Code::GovernanceUnavailable)
                .at("/action_payload/rules")
                .because("this program knows the default rules only"));
        }
        None => return wrong("rules", "must be there"),
    }
    let trusted = keys.first();
    let named = text(payload, "public_key_pem").and_then(|pem| PublicKey::from_pem(&pem).ok());
    if named.as_ref() != Some(trusted) {
        return Err(Fault::new(Code::GenesisKey).at("/action_payload/public_key_pem"));
    }
    if text(payload, "key_id") != Some(trusted.id().to_string()) {
        return Err(Fault::new(Code::GenesisKey).at("/action_payload/key_id"));
    }
    Ok(())
}

/// The string member `name` of a canonical object; `object` may be anything.
fn text(object: &str, name: &str) -> Option<String> {
    let value = object.starts_with('{').then(|| json::member(object, name))??;
    quoted(value).map(|_| json::unquote(value.as_bytes()))
}

/// What stands between the quotes of a canonical string.
fn quoted(value: &str) -> Option<&str> {
    value.strip_prefix('"')?.strip_suffix('"')
}

fn is_text(value: &str) -> bool {
    value.starts_with('"')
}

fn is_id(value: &str) -> bool {
    value.parse::<u32>().is_ok()
}
