//! The transcript: one canonical JSON line a step, each naming the SHA-256 of the line before it.
//!
//! ```text
//! {"at":"2026-11-25T…Z","detail":{…},"number":3,"outcome":"done","prev":"ab…","step":"objects-before"}
//! ```
//!
//! The hash of a line is that of its bytes without the line feed, and line 0 names 64 zeros. The
//! last line, `close`, holds the new key's signature over [`closing`], in which the hash of the line
//! before it stands. The hash of the whole file is what a genesis names.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::device::Device;
use super::plan::Terms;
use crate::ledger::hash::Digest;
use crate::ledger::json;
use crate::ledger::key::{KeyId, Signable};
use crate::ledger::timestamp::Timestamp;

/// The format's name, in the first line.
pub const FORMAT: &str = "attestd-ceremony/1";
/// The longest transcript that is read: a token with thousands of objects, twice.
pub const MAX_TRANSCRIPT_BYTES: usize = 16 << 20;

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// When the step ended, in UTC by the clock of the machine at the table.
    pub at: String,
    /// Its place, from 0.
    pub number: u64,
    /// How it ended.
    pub outcome: Outcome,
    /// SHA-256 of the line before, in hex.
    pub prev: String,
    /// What was done.
    #[serde(flatten)]
    pub step: Step,
}

/// How a step ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// As it should.
    Done,
    /// It was not called for.
    Skipped,
    /// It did not, and the ceremony ended with it.
    Failed,
}

/// What was done, with what there is to say of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "step", content = "detail", rename_all = "kebab-case")]
pub enum Step {
    /// Who does what, on which terms.
    Begin(Begin),
    /// The token as it says it is, and fit.
    Token(TokenSeen),
    /// Logged in.
    LogIn(LogIn),
    /// What was on it.
    ObjectsBefore(Objects),
    /// The key was made on it.
    Generate(Generated),
    /// What it says of the key.
    Attributes(KeySeen),
    /// What is on it now.
    ObjectsAfter(Objects),
    /// The key signed a nonce.
    Possession(Possession),
    /// The PIN that the manual prints does not open it.
    FactoryPin(FactoryPin),
    /// What was read aloud.
    Fingerprint(Fingerprint),
    /// The end, signed.
    Close(Closed),
    /// What failed, and why; the last line of a ceremony that came to nothing.
    Failed(Failure),
}

impl Step {
    /// The step's name, as the line has it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Step::Begin(_) => "begin",
            Step::Token(_) => "token",
            Step::LogIn(_) => "log-in",
            Step::ObjectsBefore(_) => "objects-before",
            Step::Generate(_) => "generate",
            Step::Attributes(_) => "attributes",
            Step::ObjectsAfter(_) => "objects-after",
            Step::Possession(_) => "possession",
            Step::FactoryPin(_) => "factory-pin",
            Step::Fingerprint(_) => "fingerprint",
            Step::Close(_) => "close",
            Step::Failed(_) => "failed",
        }
    }
}

/// Detail of `begin`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begin {
    /// [`FORMAT`].
    pub format: String,
    /// SHA-256 of the plan file.
    pub plan_sha256: String,
    /// The program that ran the ceremony, with its version.
    pub program: String,
    /// What of the plan binds.
    pub terms: Terms,
}

/// Detail of `token`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenSeen {
    /// What it says it is.
    pub device: Device,
    /// What could not be told, in plain words.
    pub notes: Vec<String>,
    /// Whether all of this is a rehearsal: by the plan, or because the token is a program.
    pub rehearsal: bool,
}

/// Detail of `log-in`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogIn {
    /// Where the PIN came from: `file` or `terminal`.
    pub pin: String,
}

/// Detail of `objects-before` and `objects-after`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Objects {
    /// Everything that the user sees, sorted.
    pub objects: Vec<Object>,
}

/// One object on the token.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Object {
    /// `private-key`, `public-key`, `certificate`, `data`, `secret-key`, or a number.
    pub class: String,
    /// `CKA_ID` in hex, where it has one.
    pub id: Option<String>,
    /// `CKA_LABEL`, where it has one.
    pub label: Option<String>,
}

/// Detail of `generate`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Generated {
    /// `P-256`.
    pub curve: String,
    /// `CKA_ID` in hex.
    pub id: String,
    /// `CKA_LABEL`.
    pub label: String,
    /// `CKM_EC_KEY_PAIR_GEN`.
    pub mechanism: String,
}

/// Detail of `attributes`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeySeen {
    /// What the token says of the private key.
    pub attributes: Attributes,
    /// SHA-256 of the SPKI DER.
    pub key_id: String,
    /// The public key.
    pub public_key_pem: String,
}

/// What a token says of a private key; `None` is what it did not say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "each is CKA_ and its name")]
pub struct Attributes {
    pub always_sensitive: Option<bool>,
    pub decrypt: Option<bool>,
    pub derive: Option<bool>,
    pub extractable: Option<bool>,
    pub local: Option<bool>,
    pub never_extractable: Option<bool>,
    pub private: Option<bool>,
    pub sensitive: Option<bool>,
    pub sign: Option<bool>,
    pub sign_recover: Option<bool>,
    pub token: Option<bool>,
    pub unwrap: Option<bool>,
}

impl Attributes {
    /// Each with its name and what it must be.
    #[must_use]
    pub fn wanted(&self) -> [(&'static str, Option<bool>, bool); 12] {
        [
            ("sensitive", self.sensitive, true),
            ("extractable", self.extractable, false),
            ("always_sensitive", self.always_sensitive, true),
            ("never_extractable", self.never_extractable, true),
            ("local", self.local, true),
            ("private", self.private, true),
            ("token", self.token, true),
            ("sign", self.sign, true),
            ("sign_recover", self.sign_recover, false),
            ("decrypt", self.decrypt, false),
            ("unwrap", self.unwrap, false),
            ("derive", self.derive, false),
        ]
    }

    /// Holds the key to be what was ordered, and gives the names of what the token did not say.
    ///
    /// # Errors
    /// The first attribute that is otherwise. `sensitive` and `extractable` must be said.
    pub fn check(&self) -> Result<Vec<&'static str>, String> {
        let mut unsaid = Vec::new();
        for (name, found, wanted) in self.wanted() {
            match found {
                Some(found) if found == wanted => {}
                Some(found) => return Err(format!("the private key's {name} is {found}, not {wanted}")),
                None if matches!(name, "sensitive" | "extractable") => {
                    return Err(format!("the token does not say whether the private key is {name}"));
                }
                None => unsaid.push(name),
            }
        }
        Ok(unsaid)
    }
}

/// Detail of `possession`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Possession {
    /// Chosen by the program for this.
    pub nonce: String,
    /// Over [`possession`], in hex DER with its S low.
    pub signature: String,
    /// The implementations that found it good, with their versions; two at least.
    pub verified_by: Vec<String>,
}

/// Detail of `factory-pin`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FactoryPin {
    /// What the token answered; null where it was not tried.
    pub answer: Option<String>,
    /// Whether the right PIN worked at once after it; null where it was not tried.
    pub right_pin_works: Option<bool>,
}

/// Detail of `fingerprint`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// The key's id, [`KeySeen::key_id`].
    pub hex: String,
    /// The same in words.
    pub words: Vec<String>,
}

/// Detail of `close`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Closed {
    /// Over [`closing`], in hex DER with its S low.
    pub signature: String,
}

/// Detail of `failed`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The step that failed.
    pub during: String,
    /// Why, in plain words.
    pub reason: String,
}

/// What the new key signs to show that it is there.
#[must_use]
pub fn possession(origin: &str, nonce: &str) -> Signable {
    Signable::purpose("ceremony", origin, &format!("possession\n{nonce}"))
}

/// What the new key and the witnesses sign at the end, without a line feed after its last line.
///
/// ```text
/// attestd-ceremony-v1
/// ledger.example.org/build-7
/// closing
/// rehearsal
/// key 5d2c…
/// plan 90ab…
/// head 3f1e…
/// at 2026-11-25T14:38:27.010278Z
/// ```
///
/// `at` is the time of the line `close`, `head` is the hash of the transcript's last line before `close`; the fourth line is `rehearsal` or
/// `ceremony`, so that nobody signs the one for the other.
#[must_use]
pub fn closing(
    origin: &str,
    rehearsal: bool,
    key: KeyId,
    plan: Digest,
    head: Digest,
    at: Timestamp,
) -> Signable {
    let kind = if rehearsal { "rehearsal" } else { "ceremony" };
    let rest = format!("closing\n{kind}\nkey {key}\nplan {plan}\nhead {head}\nat {at}");
    Signable::purpose("ceremony", origin, &rest)
}

/// A transcript that is being written.
#[derive(Clone)]
pub struct Transcript {
    text: Vec<u8>,
    head: Digest,
    next: u64,
    last: Timestamp,
}

impl Default for Transcript {
    fn default() -> Self {
        Transcript { text: Vec::new(), head: Digest::ZERO, next: 0, last: Timestamp::EPOCH }
    }
}

impl Transcript {
    /// The time that a line gets at `now`: that of the line before, where the clock was set back.
    #[must_use]
    pub fn time(&self, now: Timestamp) -> Timestamp {
        now.max(self.last)
    }

    /// Adds a line, and gives it with its line feed.
    pub fn add(&mut self, at: Timestamp, outcome: Outcome, step: Step) -> &[u8] {
        self.last = at;
        let line = Line { at: at.to_string(), number: self.next, outcome, prev: self.head.to_hex(), step };
        let start = self.text.len();
        self.text.extend_from_slice(line.to_canonical().as_bytes());
        self.head = Digest::of(&self.text[start..]);
        self.next += 1;
        self.text.push(b'\n');
        &self.text[start..]
    }

    /// The hash of the last line.
    #[must_use]
    pub fn head(&self) -> Digest {
        self.head
    }

    /// All lines.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.text
    }
}

impl fmt::Debug for Transcript {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Transcript({} lines, head {})", self.next, self.head)
    }
}

impl Line {
    /// The line without its line feed.
    #[must_use]
    pub fn to_canonical(&self) -> String {
        let text = serde_json::to_string(self).expect("a line has nothing that JSON lacks");
        // A name or label beyond I-JSON (a noncharacter) cannot be: both come through `printable`.
        json::canonicalize(text.as_bytes()).unwrap_or(text)
    }
}

/// A text of the token's in what I-JSON can hold.
#[must_use]
pub fn printable(text: &str) -> String {
    let is_noncharacter = |c: char| {
        let code = u32::from(c);
        code & 0xFFFE == 0xFFFE || (0xFDD0..=0xFDEF).contains(&code)
    };
    text.chars().map(|c| if is_noncharacter(c) { char::REPLACEMENT_CHARACTER } else { c }).collect()
}
