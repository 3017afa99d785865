//! The entry: HAIOS attestation schema 1.0.0, its types and its vocabulary.
//!
//! This module says what the 40 members *are*; [`super::canonical`] says which bytes they have
//! and [`super::draft`] which of them a client may send.

use std::borrow::Cow;
use std::fmt;

use super::hash::Digest;
use super::key::KeyId;
use super::score::{Pillars, Score};
use super::timestamp::Timestamp;

/// The value of `schema_version`.
pub const SCHEMA_VERSION: &str = "1.0.0";
/// The value of `attribution`.
pub const ATTRIBUTION: &str = "alpha_prime_omega";
/// The `actor_id` of the daemon's own entries; their `actor_type` is `SYSTEM`.
pub const DAEMON_ACTOR: &str = "attestd";

/// The 40 members in canonical order (RFC 8785; all names are ASCII).
pub const MEMBERS: [&str; 40] = [
    "action_hash",
    "action_payload",
    "action_type",
    "actor_context",
    "actor_id",
    "actor_type",
    "attribution",
    "composite_score",
    "conflicts_detected",
    "dependencies",
    "entry_hash",
    "entry_id",
    "environment",
    "error_details",
    "event_category",
    "event_type",
    "execution_status",
    "hsm_signature",
    "k_state",
    "pillars_scores",
    "prev_entry_hash",
    "proofs_valid",
    "provided_proofs",
    "quorum_met",
    "received_approvals",
    "replicas",
    "required_approvals",
    "required_proofs",
    "result_data",
    "rollback_available",
    "rollback_executed",
    "rollback_snapshot_hash",
    "safety_floor_met",
    "schema_version",
    "sequence_number",
    "severity",
    "signature_algorithm",
    "signing_key_id",
    "system_state_snapshot",
    "timestamp",
];

/// The members that only the daemon sets. A client that sends one is refused by its name.
pub const DAEMON_MEMBERS: [&str; 16] = [
    "action_hash",
    "attribution",
    "composite_score",
    "entry_hash",
    "hsm_signature",
    "prev_entry_hash",
    "proofs_valid",
    "quorum_met",
    "received_approvals",
    "replicas",
    "safety_floor_met",
    "schema_version",
    "sequence_number",
    "signature_algorithm",
    "signing_key_id",
    "timestamp",
];

/// An enum whose values have one spelling each, in the JSON, on the command line and in queries.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($variant:ident = $word:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name { $(#[doc = concat!("`", $word, "`")] $variant),* }

        impl $name {
            /// Every value, in the order of the schema.
            pub const ALL: &'static [$name] = &[$($name::$variant),*];

            /// The one spelling.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $($name::$variant => $word),* }
            }

            /// Reads the one spelling.
            #[must_use]
            pub fn parse(text: &str) -> Option<Self> {
                match text { $($word => Some($name::$variant),)* _ => None }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

words!(
    /// What kind of thing happened.
    EventType {
        Action = "ACTION", Decision = "DECISION", Violation = "VIOLATION", Change = "CHANGE",
        Boot = "BOOT", Shutdown = "SHUTDOWN",
    }
);

impl EventType {
    /// Whether only the daemon writes such entries, for itself.
    #[must_use]
    pub fn is_reserved(self) -> bool {
        matches!(self, EventType::Boot | EventType::Shutdown)
    }
}

words!(
    /// How bad it is.
    EventCategory { Normal = "NORMAL", Warning = "WARNING", Error = "ERROR", Critical = "CRITICAL" }
);

impl EventCategory {
    /// The severity of an event that does not give its own.
    #[must_use]
    pub fn default_severity(self) -> u8 {
        match self {
            EventCategory::Normal => 0,
            EventCategory::Warning => 4,
            EventCategory::Error => 7,
            EventCategory::Critical => 9,
        }
    }
}

words!(
    /// What kind of actor did it.
    ActorType {
        Human = "HUMAN", AutonomousAgent = "AUTONOMOUS_AGENT", System = "SYSTEM", External = "EXTERNAL",
    }
);

words!(
    /// How it ended.
    ExecutionStatus {
        Success = "SUCCESS", Failed = "FAILED", Blocked = "BLOCKED", RolledBack = "ROLLED_BACK",
    }
);

words!(
    /// What `hsm_signature` is over: the entry itself, or the checkpoint with which its commit ended.
    SignatureAlgorithm {
        EntryP256 = "ECDSA-P256-SHA256",
        TreeP256 = "TLOG-ECDSA-P256-SHA256",
    }
);

/// The highest `severity`.
pub const MAX_SEVERITY: u8 = 10;

/// A position in the ledger, dense from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sequence(pub u64);

impl Sequence {
    /// The position after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Sequence(self.0 + 1)
    }
}

impl fmt::Display for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A UUID of version 4 (RFC 9562), written in lower case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryId(pub [u8; 16]);

impl EntryId {
    /// Reads `xxxxxxxx-xxxx-4xxx-[89ab]xxx-xxxxxxxxxxxx` in lower case; anything else is `None`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.as_bytes();
        if text.len() != 36 || [8, 13, 18, 23].iter().any(|at| text[*at] != b'-') {
            return None;
        }
        let mut digits = [0; 32];
        let mut count = 0;
        for (at, byte) in text.iter().enumerate() {
            if ![8, 13, 18, 23].contains(&at) {
                digits[count] = *byte;
                count += 1;
            }
        }
        let mut id = [0; 16];
        let valid = super::hash::decode_hex_into(&digits, &mut id) && id[6] >> 4 == 4 && id[8] >> 6 == 0b10;
        valid.then_some(EntryId(id))
    }

    /// Makes an id of 16 random bytes, of which six bits are overwritten by version and variant.
    #[must_use]
    pub fn from_random(mut bytes: [u8; 16]) -> Self {
        bytes[6] = bytes[6] & 0x0F | 0x40;
        bytes[8] = bytes[8] & 0x3F | 0x80;
        EntryId(bytes)
    }

    /// Appends the text form.
    pub fn write(self, out: &mut Vec<u8>) {
        for (index, byte) in self.0.iter().enumerate() {
            if matches!(index, 4 | 6 | 8 | 10) {
                out.push(b'-');
            }
            super::hash::write_hex(&[*byte], out);
        }
    }
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = Vec::with_capacity(36);
        self.write(&mut text);
        f.write_str(&String::from_utf8_lossy(&text))
    }
}

/// Whether `text` may be an `action_type`: 1 to 128 of `[A-Za-z0-9_.:/-]`.
#[must_use]
pub fn is_action_type(text: &str) -> bool {
    (1..=128).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.:/-".contains(&b))
}

/// Whether only the daemon writes entries of this `action_type`.
#[must_use]
pub fn is_reserved_action_type(text: &str) -> bool {
    ["ledger.", "key.", "rules.", "signature.", "proposal.", "approval.", "system_"]
        .iter()
        .any(|prefix| text.starts_with(prefix))
}

/// Whether `text` may be an `actor_id`: 1 to 256 bytes without control or bidirectional
/// characters, which would let one id be displayed as another.
#[must_use]
pub fn is_actor_id(text: &str) -> bool {
    let hidden = |c: char| {
        c.is_control()
            || matches!(c, '\u{61C}' | '\u{200E}' | '\u{200F}' | '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}')
    };
    (1..=256).contains(&text.len()) && !text.chars().any(hidden)
}

/// All members of an entry that can differ, borrowed. `attribution` and `schema_version` have one
/// value each. JSON members hold canonical text: an object, an array, or `null` where the schema
/// allows it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the members are documented in docs/format.md, once")]
pub struct EntryView<'a> {
    pub action_hash: Digest,
    pub action_payload: &'a str,
    pub action_type: &'a str,
    pub actor_context: &'a str,
    pub actor_id: Cow<'a, str>,
    pub actor_type: ActorType,
    pub composite_score: Score,
    pub conflicts_detected: &'a str,
    pub dependencies: Cow<'a, [EntryId]>,
    pub entry_hash: Digest,
    pub entry_id: EntryId,
    pub environment: &'a str,
    pub error_details: &'a str,
    pub event_category: EventCategory,
    pub event_type: EventType,
    pub execution_status: ExecutionStatus,
    /// The text of the member, lower-case hex in any entry that is signed.
    pub hsm_signature: &'a str,
    pub k_state: i64,
    pub pillars_scores: Option<Pillars>,
    pub prev_entry_hash: Digest,
    pub proofs_valid: bool,
    pub provided_proofs: &'a str,
    pub quorum_met: bool,
    pub received_approvals: &'a str,
    pub replicas: &'a str,
    pub required_approvals: u32,
    pub required_proofs: &'a str,
    pub result_data: &'a str,
    pub rollback_available: bool,
    pub rollback_executed: bool,
    pub rollback_snapshot_hash: Option<Digest>,
    pub safety_floor_met: bool,
    pub sequence_number: Sequence,
    pub severity: u8,
    pub signature_algorithm: SignatureAlgorithm,
    pub signing_key_id: KeyId,
    pub system_state_snapshot: &'a str,
    pub timestamp: Timestamp,
}

impl EntryView<'_> {
    /// Whether this is an entry of the daemon's own, by actor and by the absence of a caller.
    #[must_use]
    pub fn is_daemons(&self) -> bool {
        self.actor_type == ActorType::System
            && self.actor_id == DAEMON_ACTOR
            && super::json::member(self.actor_context, "peer").is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_forty_and_in_canonical_order() {
        assert!(MEMBERS.is_sorted());
        assert_eq!(MEMBERS.len(), 40);
    }

    #[test]
    fn entry_ids_are_lower_case_version_4() {
        let text = "6f1c2a7e-3b4d-4c5e-8f90-112233445566";
        assert_eq!(EntryId::parse(text).expect("valid").to_string(), text);
        for bad in [
            "6F1C2A7E-3b4d-4c5e-8f90-112233445566",
            "6f1c2a7e-3b4d-1c5e-8f90-112233445566",
            "6f1c2a7e-3b4d-4c5e-cf90-112233445566",
            "6f1c2a7e3b4d4c5e8f90112233445566",
            "6f1c2a7e-3b4d-4c5e-8f90-11223344556",
            "{6f1c2a7e-3b4d-4c5e-8f90-11223344556",
        ] {
            assert_eq!(EntryId::parse(bad), None, "{bad}");
        }
        assert!(EntryId::parse(&EntryId::from_random([0xFF; 16]).to_string()).is_some());
    }

    #[test]
    fn actor_ids_show_what_they_are() {
        assert!(is_actor_id("agent-7/é \"q\" \\"));
        for bad in ["", "a\nb", "a\u{7f}", "a\u{202E}b", "\u{2066}", "a\u{85}", &"x".repeat(257)] {
            assert!(!is_actor_id(bad), "{bad:?}");
        }
    }

    #[test]
    fn reserved_names_are_reserved_whole() {
        for reserved in ["ledger.genesis", "key.x", "system_boot", "approval.give"] {
            assert!(is_reserved_action_type(reserved), "{reserved}");
        }
        for free in ["deploy.start", "ledgers.x", "keyring", "System_boot"] {
            assert!(!is_reserved_action_type(free), "{free}");
        }
    }
}
