//! Refusals as RFC 9457 problem documents, the one form in which a client hears of an error.
//!
//! ```text
//! {"type":"https://attestd.invalid/problems/wrong-value","title":"a member's value is not one of those allowed",
//!  "status":400,"detail":"…","code":"wrong-value","pointer":"/severity"}
//! ```
//!
//! Which error becomes which code is decided elsewhere; here a code becomes bytes.

use std::fmt::Write;

use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};

use crate::ledger::code::Code;
use crate::ledger::entry::{EntryId, Sequence};
use crate::ledger::json::{Fault, into_string, write_string};

/// The media type of a problem document.
pub const MEDIA_TYPE: &str = "application/problem+json";

/// Most refusals with a 503 are over within a second: a commit ends, a connection closes.
const RETRY_AFTER_SECONDS: u32 = 1;

/// A refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The stable code, which gives status, type and title.
    pub code: Code,
    /// What is wrong with this request, for people.
    pub detail: String,
    /// RFC 6901 pointer to the member that is to blame.
    pub pointer: Option<String>,
    /// The line of a batch, from 1.
    pub line: Option<u64>,
    /// The entry that the refusal is about.
    pub sequence_number: Option<Sequence>,
    /// The id of the entry that the refusal is about.
    pub entry_id: Option<EntryId>,
    /// When it may be worth trying again; every 503 has it.
    pub retry_after_seconds: Option<u32>,
}

impl Problem {
    /// A refusal with nothing but its code and its reason.
    #[must_use]
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Problem {
            code,
            detail: detail.into(),
            pointer: None,
            line: None,
            sequence_number: None,
            entry_id: None,
            retry_after_seconds: (code.status() == 503).then_some(RETRY_AFTER_SECONDS),
        }
    }

    /// The HTTP status. A code that only a verifier uses is a fault of ours in an answer.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    /// The document, on one line, without a line feed.
    #[must_use]
    pub fn to_json(&self) -> String {
        let mut out = Vec::with_capacity(256 + self.detail.len());
        let text = |out: &mut Vec<u8>, name: &str, value: &str| {
            out.extend_from_slice(name.as_bytes());
            write_string(value, out);
        };
        text(&mut out, "{\"type\":", &format!("https://attestd.invalid/problems/{}", self.code));
        text(&mut out, ",\"title\":", self.code.title());
        out.extend_from_slice(format!(",\"status\":{}", self.status().as_u16()).as_bytes());
        text(&mut out, ",\"detail\":", &self.detail);
        text(&mut out, ",\"code\":", self.code.as_str());
        if let Some(pointer) = &self.pointer {
            text(&mut out, ",\"pointer\":", pointer);
        }
        if let Some(line) = self.line {
            out.extend_from_slice(format!(",\"line\":{line}").as_bytes());
        }
        if let Some(sequence) = self.sequence_number {
            out.extend_from_slice(format!(",\"sequence_number\":{sequence}").as_bytes());
        }
        if let Some(id) = self.entry_id {
            out.extend_from_slice(b",\"entry_id\":\"");
            id.write(&mut out);
            out.push(b'"');
        }
        out.push(b'}');
        into_string(out)
    }

    /// The whole HTTP/1.1 answer, after which the connection closes: for a client whose request
    /// never became one.
    #[must_use]
    pub fn to_closing_answer(&self) -> Vec<u8> {
        let (status, body) = (self.status(), self.to_json());
        let mut answer = format!(
            "HTTP/1.1 {} {}\r\ncontent-type: {MEDIA_TYPE}\r\ncontent-length: {}\r\nconnection: close\r\n",
            status.as_u16(),
            status.canonical_reason().unwrap_or_default(),
            body.len()
        );
        if let Some(seconds) = self.retry_after_seconds {
            let _ = write!(answer, "retry-after: {seconds}\r\n");
        }
        answer.push_str("\r\n");
        answer.push_str(&body);
        answer.into_bytes()
    }
}

impl From<Fault> for Problem {
    fn from(fault: Fault) -> Self {
        let detail = fault.to_string();
        let pointer = (!fault.pointer.is_empty()).then_some(fault.pointer);
        Problem { pointer, ..Problem::new(fault.code, detail) }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let media_type = [(CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE))];
        let mut response = (self.status(), media_type, self.to_json()).into_response();
        if let Some(seconds) = self.retry_after_seconds {
            response.headers_mut().insert(RETRY_AFTER, seconds.into());
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::json::{canonicalize, member};

    #[test]
    fn the_document_has_its_members_and_is_json() {
        let fault = canonicalize(br#"{"a":[-0]}"#).expect_err("negative zero");
        let problem = Problem {
            line: Some(3),
            sequence_number: Some(Sequence(7)),
            entry_id: Some(EntryId::from_random([0; 16])),
            ..Problem::from(fault)
        };
        let json = problem.to_json();
        let document = canonicalize(json.as_bytes()).expect("JSON");
        for (name, value) in [
            ("type", "\"https://attestd.invalid/problems/json-negative-zero\""),
            ("status", "400"),
            ("code", "\"json-negative-zero\""),
            ("pointer", "\"/a/0\""),
            ("line", "3"),
            ("sequence_number", "7"),
            ("entry_id", "\"00000000-0000-4000-8000-000000000000\""),
        ] {
            assert_eq!(member(&document, name), Some(value));
        }
        assert!(!json.contains('\n'));
    }

    #[test]
    fn every_503_says_when_to_try_again() {
        for code in Code::ALL {
            let response = Problem::new(*code, "why").into_response();
            let expected = if code.status() == 0 { 500 } else { code.status() };
            assert_eq!(response.status().as_u16(), expected);
            assert_eq!(response.headers().contains_key(RETRY_AFTER), expected == 503, "{code}");
            assert_eq!(response.headers()[CONTENT_TYPE], MEDIA_TYPE);
        }
    }
}
