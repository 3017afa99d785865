//! What a start says of itself, in BOOT and in what it finds changed.

use super::{Fault, anchors};
use crate::ledger::chain::Head;
use crate::ledger::entry::{EventCategory, EventType, Sequence, SignatureAlgorithm};
use crate::ledger::{canonical, json};
use crate::sequencer::MODE_CHANGE;
use crate::sequencer::now;
use crate::store::{Reader, StoreError, algorithm_of};

/// An entry of the daemon's own: type, category, action and canonical payload.
pub(super) type Own = (EventType, EventCategory, &'static str, String);

/// What the last entry says of the time before this start.
pub(super) struct Last {
    /// Its own, or that of the last before what an operator wrote.
    action: String,
    /// How the next entry would be signed if nothing changed.
    pub(super) algorithm: SignatureAlgorithm,
}

impl Last {
    pub(super) fn read(reader: &Reader, head: &Head) -> Result<Self, Fault> {
        let damaged = |what: String| StoreError::Damaged(format!("its last entry {what}"));
        let line = reader
            .line(Sequence(head.next.0.saturating_sub(1)))?
            .ok_or_else(|| damaged("is missing".into()))?;
        let entry = canonical::decode(&line.bytes).map_err(|fault| damaged(fault.to_string()))?.entry;
        // What an operator did since does not tell how the daemon ended.
        let mut action = entry.action_type.to_owned();
        let mut at = head.next.0.saturating_sub(1);
        while action == anchors::ACTION_TYPE && at > 0 {
            at -= 1;
            let line = reader.line(Sequence(at))?.ok_or_else(|| damaged("follows none".into()))?;
            let before = canonical::decode(&line.bytes).map_err(|fault| damaged(fault.to_string()))?;
            before.entry.action_type.clone_into(&mut action);
        }
        // A daemon that stopped right after it had changed the mode has signed nothing in it yet.
        let changed = (entry.action_type == MODE_CHANGE)
            .then(|| json::member(entry.action_payload, "to"))
            .flatten()
            .and_then(|mode| algorithm_of(mode.trim_matches('"')));
        Ok(Last { action, algorithm: changed.unwrap_or(entry.signature_algorithm) })
    }
}

/// The BOOT entry, and a word on the clock where it runs behind the ledger.
pub(super) fn boot_entries(head: &Head, (from, to): (u64, u64), last: &Last) -> Vec<Own> {
    let previous = match last.action.as_str() {
        "system_shutdown" => "clean",
        _ if head.next == Sequence(1) => "first",
        _ => "unclean",
    };
    let now = now();
    let mut own = Vec::new();
    if now < head.timestamp {
        let behind = head.timestamp.as_micros() - now.as_micros();
        tracing::warn!(behind_micros = behind, "the clock is behind the last entry");
        let payload = format!(r#"{{"behind_microseconds":{behind},"clock":"{now}","found":"behind"}}"#);
        own.push((EventType::Action, EventCategory::Warning, "system_clock", payload));
    }
    let payload = format!(
        r#"{{"attribution_verified":true,"boot_time":"{now}","head":{{"entry_hash":"{}","sequence_number":{to}}},"initial_k_state":1,"invariants_loaded":7,"previous_shutdown":"{previous}","verified_from":{from},"verified_to":{to},"version":"{}"}}"#,
        head.hash,
        crate::VERSION,
    );
    own.push((EventType::Boot, EventCategory::Normal, "system_initialization", payload));
    own
}
