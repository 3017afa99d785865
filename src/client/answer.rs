//! What the daemon answers, as types: problems, acknowledgements, pages, verdicts and figures.

use std::fmt;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use super::ClientError;

/// What a daemon's refusal says (RFC 9457).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ProblemDoc {
    /// The stable code, see [`crate::ledger::code::Code`].
    pub code: String,
    /// What the code means, in a few words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What it was this time.
    #[serde(default)]
    pub detail: Option<String>,
    /// RFC 6901 pointer into the request, where there is a place.
    #[serde(default)]
    pub pointer: Option<String>,
    /// The line of a batch, from 1.
    #[serde(default)]
    pub line: Option<u64>,
    /// The entry that it is about.
    #[serde(default)]
    pub sequence_number: Option<u64>,
    /// The id of the entry that it is about.
    #[serde(default)]
    pub entry_id: Option<String>,
    /// Seconds after which another try makes sense, from `Retry-After`.
    #[serde(skip)]
    pub retry_after: Option<u64>,
}

impl ProblemDoc {
    /// Whether it may be done later: 503 and 507.
    #[must_use]
    pub fn is_for_now(&self) -> bool {
        matches!(self.status, 503 | 507)
    }
}

impl fmt::Display for ProblemDoc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Many details begin with the title, to be whole sentences by themselves.
        match self.detail.as_deref() {
            Some(detail) if detail.starts_with(&self.title) => f.write_str(detail)?,
            Some(detail) => write!(f, "{}: {detail}", self.title)?,
            None => f.write_str(&self.title)?,
        }
        match self.pointer.as_deref() {
            None | Some("") => write!(f, " ({})", self.code),
            Some(pointer) => write!(f, " ({} at {pointer})", self.code),
        }
    }
}

/// A sealed entry of a batch, in short.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Acknowledgement {
    /// Its place in the ledger.
    pub sequence_number: u64,
    /// Its id.
    pub entry_id: String,
    /// Its hash in lower-case hex.
    pub entry_hash: String,
    /// When it was sealed, RFC 3339.
    pub timestamp: String,
    /// The signature in lower-case hex.
    pub hsm_signature: String,
}

/// The daemon's answer to one line of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It is durable and signed.
    Sealed(Acknowledgement),
    /// It was not recorded.
    Refused(ProblemDoc),
}

impl Answer {
    /// Reads one line of the answer to a batch.
    ///
    /// # Errors
    /// [`ClientError::Protocol`] when it is neither an acknowledgement nor a problem.
    pub fn parse(line: &[u8]) -> Result<Self, ClientError> {
        if let Ok(sealed) = serde_json::from_slice(line) {
            return Ok(Answer::Sealed(sealed));
        }
        decode(line).map(Answer::Refused)
    }
}

/// A sealed entry with its receipt: both as text, so that their bytes are what was hashed and signed.
#[derive(Debug, Deserialize)]
pub(super) struct Receipted {
    pub(super) entry: String,
    pub(super) receipt: Option<String>,
}

/// A page of entries.
#[derive(Debug, Deserialize)]
pub struct Page {
    /// The entries, each exactly as the daemon wrote it.
    pub entries: Vec<Box<RawValue>>,
    /// Where the next page begins; `None` after the last one.
    pub next: Option<String>,
}

/// What `GET /v1/stats` says. A member that a daemon of another version leaves out has its default.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "the members are documented in docs/api.md, once")]
pub struct Stats {
    pub origin: String,
    pub version: String,
    pub entries: u64,
    pub head: Option<Head>,
    pub signature_mode: String,
    pub key_id: String,
    pub uptime_seconds: f64,
    pub started_at: String,
    pub queue: Queue,
    pub connections: u64,
    pub memory_bytes: u64,
    pub token: Option<Token>,
    pub anchors: Vec<Anchor>,
    pub ready: bool,
    pub appended_since_start: u64,
    pub refused_since_start: u64,
}

/// The last entry.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[allow(missing_docs, reason = "the members are documented in docs/api.md, once")]
pub struct Head {
    pub sequence_number: u64,
    pub entry_hash: String,
    pub timestamp: String,
}

/// What an anchor knows of.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "the members are documented in docs/api.md, once")]
pub struct Anchor {
    pub kind: String,
    pub entries: u64,
    pub lag: u64,
}

/// What waits to be sealed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "the members are documented in docs/api.md, once")]
pub struct Queue {
    pub entries: u64,
    pub bytes: u64,
}

/// The token that holds the key.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "the members are documented in docs/api.md, once")]
pub struct Token {
    pub manufacturer: String,
    pub model: String,
    pub serial: String,
    pub label: String,
}

/// What `POST /v1/bench` measured: the token and the disk without the daemon's own work.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct RawRates {
    /// Signatures a second on one session.
    pub sign_1_per_second: f64,
    /// Signatures a second on all sessions together.
    pub sign_n_per_second: f64,
    /// How many sessions the daemon signs on.
    pub sessions: u64,
    /// fdatasync calls a second beside the ledger.
    pub fdatasync_per_second: f64,
    /// Median time of one signature in microseconds.
    pub sign_p50_us: f64,
    /// Median time of one fdatasync in microseconds.
    pub fdatasync_p50_us: f64,
}

/// Reads the JSON text of an answer.
///
/// # Errors
/// [`ClientError::Protocol`] when it is something else.
pub fn decode<T: DeserializeOwned>(text: &[u8]) -> Result<T, ClientError> {
    serde_json::from_slice(text).map_err(|error| ClientError::Protocol(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_say_what_where_and_which_code() {
        let text = br#"{"type":"https://attestd.invalid/problems/unknown-member","title":"a member that the schema does not have",
            "status":400,"detail":"`colour`","code":"unknown-member","pointer":"/colour","line":3}"#;
        let problem: ProblemDoc = decode(text).expect("a problem");
        assert_eq!(
            problem.to_string(),
            "a member that the schema does not have: `colour` (unknown-member at /colour)"
        );
        assert_eq!((problem.status, problem.line, &problem.entry_id), (400, Some(3), &None));
        let whole = ProblemDoc { detail: Some(format!("{} at byte 7", problem.title)), ..problem };
        assert_eq!(
            whole.to_string(),
            "a member that the schema does not have at byte 7 (unknown-member at /colour)"
        );
    }

    #[test]
    fn a_batch_line_is_sealed_or_refused_or_a_fault_of_the_peer() {
        let sealed =
            br#"{"sequence_number":4,"entry_id":"i","entry_hash":"h","timestamp":"t","hsm_signature":"s"}"#;
        assert!(matches!(Answer::parse(sealed), Ok(Answer::Sealed(a)) if a.sequence_number == 4));
        let refused = br#"{"title":"t","status":400,"code":"json-syntax","line":9}"#;
        assert!(matches!(Answer::parse(refused), Ok(Answer::Refused(p)) if p.line == Some(9)));
        assert!(matches!(Answer::parse(b"{}"), Err(ClientError::Protocol(_))));
    }
}
