//! What an audit comes to: the verdict, for programs (JSON) and for people (plain words).

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::entry::TrustedKeys;
use crate::governance::Refusal;
use crate::ledger::code::Code;
use crate::ledger::json;
use crate::ledger::merkle::Root;

/// One thing that is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// What, as a stable code.
    #[serde(serialize_with = "as_text", deserialize_with = "from_text")]
    pub code: Code,
    /// The entry that stands, or should stand, at the place.
    pub sequence_number: Option<u64>,
    /// The line of `entries.jsonl`, from 1; of any other source the how-manieth entry it gave.
    pub line: Option<u64>,
    /// The file of the bundle.
    pub file: Option<String>,
    /// RFC 6901 pointer into the entry.
    pub pointer: Option<String>,
    /// What was found, in plain words. It may quote what was read.
    pub detail: String,
}

impl Fault {
    /// A fault without a place.
    #[must_use]
    pub fn new(code: Code) -> Self {
        Fault {
            code,
            sequence_number: None,
            line: None,
            file: None,
            pointer: None,
            detail: code.title().into(),
        }
    }

    /// The same fault, at the member that `pointer` names.
    #[must_use]
    pub fn at(mut self, pointer: impl Into<String>) -> Self {
        self.pointer = Some(pointer.into());
        self
    }

    /// The same fault with an explanation.
    #[must_use]
    pub fn because(mut self, detail: impl fmt::Display) -> Self {
        self.detail = format!("{}: {detail}", self.code.title());
        self
    }

    /// The same fault, in `file`.
    #[must_use]
    pub fn within(mut self, file: &str) -> Self {
        self.file = Some(file.into());
        self
    }
}

impl From<json::Fault> for Fault {
    fn from(fault: json::Fault) -> Self {
        let detail = fault.to_string();
        let pointer = Some(fault.pointer).filter(|pointer| !pointer.is_empty());
        Fault { pointer, detail, ..Fault::new(fault.code) }
    }
}

impl From<Refusal> for Fault {
    fn from(refusal: Refusal) -> Self {
        let pointer = Some(refusal.pointer).filter(|pointer| !pointer.is_empty());
        let fault = Fault { pointer, ..Fault::new(refusal.code) };
        if refusal.detail == refusal.code.title() { fault } else { fault.because(refusal.detail) }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.detail, self.code)
    }
}

fn as_text<S: Serializer>(code: &Code, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(code.as_str())
}

fn from_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Code, D::Error> {
    let text = String::deserialize(deserializer)?;
    Code::parse(&text).ok_or_else(|| serde::de::Error::custom(format!("unknown code {text}")))
}

/// The outcome of an audit. Its JSON form is what `attest-verify --json` prints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Whether everything that was checked holds.
    pub ok: bool,
    /// The ledger's name: the genesis says it, or else the manifest.
    pub origin: Option<String>,
    /// The sequence number of the first entry.
    pub first: Option<u64>,
    /// How many entries hold, from the first on.
    pub count: u64,
    /// The sequence number of the last of those.
    pub last: Option<u64>,
    /// `entry_hash` of the last entry, when all of them hold.
    pub head_hash: Option<String>,
    /// The ledger's newest checkpoint, if it holds.
    pub checkpoint: Option<CheckpointSeen>,
    /// The key that was trusted.
    pub key_id: Option<String>,
    /// What was checked, in plain words.
    pub checked: Vec<String>,
    /// What was not, in plain words.
    pub not_checked: Vec<String>,
    /// The first fault.
    pub fault: Option<Fault>,
}

/// A checkpoint that was verified.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointSeen {
    /// How many entries it covers.
    pub size: u64,
    /// The root hash of the tree over them, in lower-case hex.
    pub root: String,
}

impl From<Root> for CheckpointSeen {
    fn from(root: Root) -> Self {
        CheckpointSeen { size: root.size.leaves(), root: root.hash.to_string() }
    }
}

impl Verdict {
    /// The verdict over what nobody has looked at yet.
    pub(crate) fn unseen(keys: &TrustedKeys) -> Self {
        Verdict {
            ok: true,
            origin: None,
            first: None,
            count: 0,
            last: None,
            head_hash: None,
            checkpoint: None,
            key_id: Some(keys.first().id().to_string()),
            checked: Vec::new(),
            not_checked: vec!["anything: the entries were not looked at".into()],
            fault: None,
        }
    }

    /// Makes `fault` the verdict, unless there is an earlier one.
    pub(crate) fn fail(&mut self, fault: Fault) {
        self.ok = false;
        self.fault.get_or_insert(fault);
    }
}

/// A report for people. The first line begins `VERIFIED` or `NOT VERIFIED`. What was read from the
/// ledger is shown without control characters, so that it cannot write on the reader's terminal.
impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let origin = self.origin.as_deref().unwrap_or("a ledger of unknown origin");
        write_report(f, origin, self.fault.as_ref())?;
        if let (Some(first), Some(last)) = (self.first, self.last) {
            writeln!(f, "\nEntries that hold: {} ({first} to {last})", self.count)?;
        }
        if let Some(hash) = &self.head_hash {
            writeln!(f, "Hash of the last:  {hash}")?;
        }
        if let Some(checkpoint) = &self.checkpoint {
            writeln!(f, "Checkpoint:        {} entries, root {}", checkpoint.size, checkpoint.root)?;
        }
        if let Some(key) = &self.key_id {
            writeln!(f, "Trusted key:       {key}")?;
        }
        write_lists(f, &self.checked, &self.not_checked)
    }
}

/// How a report begins: on what, whether that holds, and if not, why.
pub(super) fn write_report(f: &mut fmt::Formatter<'_>, title: &str, fault: Option<&Fault>) -> fmt::Result {
    match fault {
        None => writeln!(f, "VERIFIED: {}", printable(title)),
        Some(fault) => {
            writeln!(f, "NOT VERIFIED: {} ({})", fault.code.title(), fault.code)?;
            write_fault(fault, f)
        }
    }
}

/// How a report ends.
pub(super) fn write_lists(
    f: &mut fmt::Formatter<'_>,
    checked: &[String],
    not_checked: &[String],
) -> fmt::Result {
    for (title, list) in [("Checked", checked), ("Not checked", not_checked)] {
        if !list.is_empty() {
            writeln!(f, "\n{title}:")?;
        }
        for line in list {
            writeln!(f, "  - {}", printable(line))?;
        }
    }
    Ok(())
}

fn write_fault(fault: &Fault, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    write!(f, "\nFirst fault: ")?;
    match (fault.sequence_number, fault.line) {
        (Some(sequence), Some(line)) => write!(f, "entry {sequence} (line {line})")?,
        (None, Some(line)) => write!(f, "line {line}")?,
        (Some(sequence), None) => write!(f, "entry {sequence}")?,
        (None, None) => write!(f, "the whole")?,
    }
    if let Some(file) = &fault.file {
        write!(f, " of {}", printable(file))?;
    }
    if let Some(pointer) = &fault.pointer {
        write!(f, ", at {}", printable(pointer))?;
    }
    writeln!(f, "\n  {}", printable(&fault.detail))?;
    writeln!(f, "  What it may mean: {}", meaning(fault.code))
}

/// What a fault tells a reader who does not know the format.
fn meaning(code: Code) -> &'static str {
    match code {
        Code::EntryHashMismatch | Code::ActionHash => "the entry was changed after it was sealed",
        Code::SignatureInvalid | Code::SignatureEncoding | Code::SignatureHighS => {
            "the entry was not sealed by the trusted key, or its signature was changed"
        }
        Code::UnknownKey | Code::GenesisKey => {
            "another key sealed this ledger: it is another ledger than you think, or it was made anew"
        }
        Code::KeyRange | Code::KeyActivation | Code::KeyChange | Code::KeyReused | Code::KeyProof => {
            "the key did not change the way a ledger's key changes: somebody may have put in a key of his own"
        }
        Code::KeyRevoked => "whoever has a key that is not trusted any more may have made this checkpoint",
        Code::Sequence | Code::ChainBroken => {
            "entries were removed, inserted, repeated or reordered, or come from another ledger"
        }
        Code::SignatureMode => {
            "whoever sealed it did not keep the ledger's own rule of how entries are signed"
        }
        Code::Truncated => "entries were cut off at the end, or the bundle is not what an export makes",
        Code::Rollback => "an older copy of the ledger was put in the place of the one that you knew",
        Code::Fork => {
            "there are two histories of this ledger, both signed: somebody has been shown another one"
        }
        Code::KnownUnshown => {
            "nothing bad: export a range that goes from before the known checkpoint to after it"
        }
        Code::CheckpointRoot | Code::CheckpointOrder | Code::CheckpointMissing => {
            "the ledger's word on what it holds does not fit the entries: they were changed, or it forked"
        }
        Code::NoteSignature => "the checkpoint was not made with the trusted key, or was changed",
        Code::Receipt | Code::TreeProof => "the proof is of something else, or was changed",
        Code::TimestampOrder => "whoever sealed it did not keep the ledger's own rule of time",
        Code::Genesis | Code::GenesisHash | Code::Origin => {
            "it does not begin as this ledger must: another ledger, or one that was made anew"
        }
        Code::DuplicateEntryId
        | Code::Dependency
        | Code::CompositeScore
        | Code::SafetyFloor
        | Code::ProofsValid
        | Code::Quorum
        | Code::ReservedByClient
        | Code::PeerMissing => {
            "the key sealed what no sound attestd seals: the daemon or the use of its key is in doubt"
        }
        Code::GovernanceUnavailable | Code::SchemaVersion | Code::SignatureAlgorithm => {
            "it needs a newer version of this program to be judged; until then it is not verified"
        }
        Code::Manifest | Code::BundleFile | Code::Empty => {
            "the bundle is incomplete, was changed in transit, or was not made by an export"
        }
        _ => "the bytes were changed after they were written, or no sound attestd wrote them",
    }
}

/// `text` with control and bidirectional characters escaped.
fn printable(text: &str) -> String {
    let hidden = |c: char| {
        c.is_control()
            || matches!(c, '\u{61C}' | '\u{200E}' | '\u{200F}' | '\u{2028}'..='\u{202E}' | '\u{2066}'..='\u{2069}')
    };
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        if hidden(character) { shown.extend(character.escape_unicode()) } else { shown.push(character) }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_read_cannot_write_on_the_terminal() {
        let fault = Fault::new(Code::UnknownMember).at("/\u{1b}[2J\u{202e}x").because("é");
        let pem = "-----BEGIN PUBLIC KEY-----\n\
            MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE2G2Y+2tabdTV5BcGiBIx0a9fAFwr\n\
            kBbmLSGtks4L3qX6yYY0zufBnhC8Ur/iy55GhWP/9A/bY2LhC30M9+RYtw==\n\
            -----END PUBLIC KEY-----\n";
        let key = crate::ledger::key::PublicKey::from_pem(pem).expect("a key");
        let mut verdict = Verdict::unseen(&TrustedKeys::only(key));
        assert!(verdict.to_string().starts_with("VERIFIED"));
        verdict.fail(fault);
        verdict.fail(Fault::new(Code::Empty));
        let text = verdict.to_string();
        assert!(text.starts_with("NOT VERIFIED: ") && text.contains("(unknown-member)"), "{text}");
        assert!(text.contains("/\\u{1b}[2J\\u{202e}x") && text.contains('é'), "{text}");
    }
}
