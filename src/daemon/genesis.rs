//! Entry 0: what it holds, and what is read back from it at every start.

use crate::ledger::canonical;
use crate::ledger::json::{self, quoted};
use crate::ledger::key::{PublicKey, is_origin};
use crate::store::Line;
use crate::token::{Identity, KeyAttributes};

/// The `action_type` of entry 0.
pub const ACTION_TYPE: &str = "ledger.genesis";

/// What a start needs to know of entry 0.
#[derive(Debug)]
pub struct Genesis {
    /// Whom the ledger belongs to.
    pub origin: String,
    /// The key that it was begun with.
    pub key: PublicKey,
    /// The token that held it.
    pub token: Identity,
}

impl Genesis {
    /// Reads entry 0.
    ///
    /// # Errors
    /// In words, what is wrong with it.
    pub fn read(line: &Line) -> Result<Self, String> {
        let decoded = canonical::decode(&line.bytes).map_err(|fault| format!("entry 0: {fault}"))?;
        let entry = decoded.entry;
        if entry.action_type != ACTION_TYPE {
            return Err(format!("entry 0 is a {}, not a {ACTION_TYPE}", entry.action_type));
        }
        let payload = entry.action_payload;
        let text = |object: &str, name: &str| text(object, name).map_err(|what| format!("entry 0 {what}"));
        let key =
            PublicKey::from_pem(&text(payload, "public_key_pem")?).map_err(|error| error.to_string())?;
        if key.id() != entry.signing_key_id {
            return Err("entry 0 is signed by another key than it names".into());
        }
        let token = token_in(payload).map_err(|what| format!("entry 0 {what}"))?;
        Ok(Genesis { origin: text(payload, "origin")?, key, token })
    }
}

/// The token that the payload of an entry describes; an error is in words that follow the entry.
pub(super) fn token_in(payload: &str) -> Result<Identity, String> {
    let token = json::member(payload, "token").filter(|token| token.starts_with('{'));
    let token = token.ok_or("has no token")?;
    Ok(Identity {
        manufacturer: text(token, "manufacturer")?,
        model: text(token, "model")?,
        serial: text(token, "serial")?,
        label: text(token, "label")?,
    })
}

fn text(object: &str, name: &str) -> Result<String, String> {
    json::member(object, name)
        .filter(|text| text.starts_with('"'))
        .map(|text| json::unquote(text.as_bytes()))
        .ok_or(format!("has no {name}"))
}

/// The canonical payload of entry 0; `predecessor` is canonical, too.
#[must_use]
pub fn payload(
    origin: &str,
    key: &PublicKey,
    token: &Identity,
    attributes: &KeyAttributes,
    mode: &str,
    ceremony: Option<&str>,
    predecessor: Option<&str>,
) -> String {
    debug_assert!(is_origin(origin));
    format!(
        r#"{{"ceremony":{},"key_attributes":{},"key_id":"{}","origin":{},"predecessor":{},"public_key_pem":{},"rules":null,"signature_mode":"{mode}","token":{}}}"#,
        ceremony.unwrap_or("null"),
        attributes.to_json(),
        key.id(),
        quoted(origin),
        predecessor.unwrap_or("null"),
        quoted(&key.to_pem()),
        token.to_json()
    )
}
