//! The ledger's keys as a start finds them, and how the token of the newest is known.

use std::sync::Arc;

use super::Fault;
use super::genesis::{Genesis, token_in};
use crate::evidence::context;
use crate::governance::keyring::Keyring;
use crate::ledger::canonical;
use crate::ledger::entry::{EntryView, Sequence};
use crate::ledger::key::KeyId;
use crate::store::{Reader, StoreError};
use crate::token::{Identity, TokenError};

/// The keys that the ledger's entries name, found without an index. What the auditor would refuse
/// names none: this is for a ledger that is not to be extended, or not yet.
pub(super) fn found(reader: &Reader, genesis: &Genesis) -> Result<Keyring, StoreError> {
    let mut keys = Keyring::of(genesis.key.clone());
    for sequence in context::scan(reader, Sequence(0), Sequence(reader.count()?))? {
        if let Some(line) = reader.line(sequence)?
            && let Ok(decoded) = canonical::decode(&line.bytes)
        {
            follow(&mut keys, &decoded.entry, &genesis.origin);
        }
    }
    Ok(keys)
}

/// Takes over what `entry` changes, where it is sound.
pub(super) fn follow(keys: &mut Keyring, entry: &EntryView<'_>, origin: &str) {
    if entry.is_daemons() && entry.action_type.starts_with("key.") {
        // A change that does not hold changes nothing.
        let _ = keys.follow(entry, origin);
    }
}

/// The token that holds the newest key, as the entry that named the key describes it.
pub(super) fn token_of_newest(
    reader: &Reader,
    keys: &Arc<Keyring>,
    genesis: &Genesis,
) -> Result<Identity, Fault> {
    let first = keys.terms().last().map_or(Sequence(0), |term| term.first);
    let Some(rotation) = first.0.checked_sub(1) else { return Ok(genesis.token.clone()) };
    let damaged = |what: String| Fault::Store(StoreError::Damaged(format!("entry {rotation} {what}")));
    let line = reader.line(Sequence(rotation))?.ok_or_else(|| damaged("is missing".into()))?;
    let decoded = canonical::decode(&line.bytes).map_err(|fault| damaged(fault.to_string()))?;
    token_in(decoded.entry.action_payload).map_err(damaged)
}

/// Says so where a token is refused because the ledger has another key by now.
pub(super) fn explain(error: TokenError, newest: KeyId, changed: bool) -> Fault {
    match error {
        TokenError::OtherToken { expected, found } if changed => {
            Fault::OtherToken { key: newest, expected, found }
        }
        TokenError::OtherKey { expected, found } => Fault::OtherKey { expected, found },
        error => error.into(),
    }
}
