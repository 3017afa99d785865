//! What can be said of one entry by itself: its bytes, hashes and signature, and what the daemon
//! must have set in it. It needs no other entry, so entries are checked in parallel. What the rules
//! say of it is [`crate::governance::governor`]'s.

use std::sync::Arc;

use super::verdict::Fault;
use crate::governance::governor::client_of;
use crate::governance::keyring::Keyring;
use crate::ledger::canonical;
use crate::ledger::code::Code;
use crate::ledger::entry::{EntryView, EventType, Sequence, SignatureAlgorithm};
use crate::ledger::hash::Digest;
use crate::ledger::json;
use crate::ledger::key::{PublicKey, Signature, is_origin};

/// The `action_type` of entry 0.
pub const GENESIS: &str = "ledger.genesis";

/// The members of `environment` that every entry has.
const ENVIRONMENT: [&str; 4] = ["attestd.boot_id", "attestd.host", "attestd.rules", "attestd.version"];

/// The `action_type` of the entry with which the way of signing changes.
const MODE_CHANGE: &str = "signature.mode";

/// The keys that are trusted: the first from outside the ledger, and each later one because the one
/// before it handed over to it.
#[derive(Debug, Clone)]
pub struct TrustedKeys {
    first: PublicKey,
    keys: Arc<Keyring>,
}

impl TrustedKeys {
    /// Trusts `key` alone, as the ledger's first.
    #[must_use]
    pub fn only(key: PublicKey) -> Self {
        TrustedKeys { keys: Arc::new(Keyring::of(key.clone())), first: key }
    }

    /// Trusts all that followed from the first key up to some entry. `None` where there is none yet.
    #[must_use]
    pub fn following(keys: &Arc<Keyring>) -> Option<Self> {
        keys.terms().first().map(|term| TrustedKeys { first: term.key.clone(), keys: keys.clone() })
    }

    /// The ledger's first key, which its genesis must name.
    #[must_use]
    pub fn first(&self) -> &PublicKey {
        &self.first
    }

    /// All of them, with their terms.
    #[must_use]
    pub fn keyring(&self) -> &Arc<Keyring> {
        &self.keys
    }
}

/// Decodes one line (without its line feed) and checks everything that needs no other entry:
/// canonical form, hashes, signature, and that no client has what is the daemon's. An entry 0 must
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
    if !entry.is_daemons() {
        client_of(&entry)?;
    }
    Ok(entry)
}

/// [`check_entry`], but for who may have written it, which the rules in force say, and for the signature that an entry shares with others, which is not looked at.
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
    let key = keys.keys.signer(entry.signing_key_id, entry.sequence_number)?;
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

fn check_environment(entry: &EntryView<'_>) -> Result<(), Fault> {
    for name in ENVIRONMENT {
        if json::member(entry.environment, name).is_none() {
            return Err(Fault::new(Code::MissingMember).at(format!("/environment/{name}")));
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
    if json::member(payload, "rules").is_none() {
        return wrong("rules", "must be there");
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
