//! The bytes of a whole entry, both ways: the one encoder and the one strict decoder.
//!
//! ```text
//! {"action_hash":"…","action_payload":{…},…,"entry_hash":"…",…,"hsm_signature":"…",…,"timestamp":"…"}
//! ```
//!
//! An entry is one line: RFC 8785 form, all 40 members. The decoder takes the members in the one
//! order that they can have and never re-encodes: the hash is taken over the bytes received, with
//! the members `entry_hash` and `hsm_signature` cut out. Neither knows whether an entry is *true*:
//! that is [`crate::audit`].

use std::borrow::Cow;
use std::ops::Range;

use super::code::Code;
use super::entry::{
    ATTRIBUTION, ActorType, EntryId, EntryView, EventCategory, EventType, ExecutionStatus, MAX_SEVERITY,
    MEMBERS, SCHEMA_VERSION, Sequence, SignatureAlgorithm, is_action_type, is_actor_id,
};
use super::hash::{Digest, write_hex};
use super::json::{self, Fault, Reader};
use super::key::KeyId;
use super::score::{PILLAR_NAMES, Pillars, Score};
use super::timestamp::{self, Timestamp};

/// No entry is larger, whatever a ledger's own limit: it bounds what a verifier holds of a line.
pub const MAX_ENTRY_BYTES: usize = 1 << 20;

/// The longest `hsm_signature`: the DER of two 33-byte integers, in hex.
pub const MAX_SIGNATURE_HEX: usize = 144;

/// An entry without its signature, in canonical form, and where the signature goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsigned {
    /// The line, with an empty `hsm_signature` and no line feed.
    pub line: Vec<u8>,
    /// Byte offset of the (empty) text of `hsm_signature`.
    pub signature_at: usize,
    /// `entry_hash`.
    pub hash: Digest,
}

impl Unsigned {
    /// The sealed line: this one with the text of `hsm_signature` put in.
    #[must_use]
    pub fn seal(&self, signature_hex: &[u8]) -> Vec<u8> {
        seal(&self.line, self.signature_at, signature_hex)
    }
}

/// Puts the text of `hsm_signature` into an unsigned line.
#[must_use]
pub fn seal(line: &[u8], signature_at: usize, signature_hex: &[u8]) -> Vec<u8> {
    let (before, after) = line.split_at(signature_at);
    [before, signature_hex, after].concat()
}

/// Encodes `entry`. Its `entry_hash` is computed and its `hsm_signature` left empty, whatever
/// the view holds there.
#[must_use]
pub fn encode(entry: &EntryView<'_>) -> Unsigned {
    let mut line = Writer { out: Vec::with_capacity(2_048) };
    line.out.push(b'{');
    line.digest("\"action_hash\":\"", entry.action_hash);
    line.text(",\"action_payload\":", entry.action_payload);
    line.text(",\"action_type\":\"", entry.action_type);
    line.text("\",\"actor_context\":", entry.actor_context);
    line.text(",\"actor_id\":", "");
    json::write_string(&entry.actor_id, &mut line.out);
    line.text(",\"actor_type\":\"", entry.actor_type.as_str());
    line.text("\",\"attribution\":\"", ATTRIBUTION);
    line.text("\",\"composite_score\":", "");
    entry.composite_score.write(&mut line.out);
    line.text(",\"conflicts_detected\":", entry.conflicts_detected);
    line.text(",\"dependencies\":", "");
    line.ids(&entry.dependencies);

    let before_hash = line.out.len();
    line.digest(",\"entry_hash\":\"", Digest::ZERO);
    let after_hash = line.out.len();

    line.text(",\"entry_id\":\"", "");
    entry.entry_id.write(&mut line.out);
    line.text("\",\"environment\":", entry.environment);
    line.text(",\"error_details\":", entry.error_details);
    line.text(",\"event_category\":\"", entry.event_category.as_str());
    line.text("\",\"event_type\":\"", entry.event_type.as_str());
    line.text("\",\"execution_status\":\"", entry.execution_status.as_str());
    line.text("\"", "");

    let before_signature = line.out.len();
    line.text(",\"hsm_signature\":\"", "");
    let signature_at = line.out.len();
    line.text("\"", "");
    let after_signature = line.out.len();

    line.number(",\"k_state\":", entry.k_state);
    line.text(",\"pillars_scores\":", "");
    match entry.pillars_scores {
        Some(pillars) => pillars.write(&mut line.out),
        None => line.text("{}", ""),
    }
    line.digest(",\"prev_entry_hash\":\"", entry.prev_entry_hash);
    line.boolean(",\"proofs_valid\":", entry.proofs_valid);
    line.text(",\"provided_proofs\":", entry.provided_proofs);
    line.boolean(",\"quorum_met\":", entry.quorum_met);
    line.text(",\"received_approvals\":", entry.received_approvals);
    line.text(",\"replicas\":", entry.replicas);
    line.number(",\"required_approvals\":", i64::from(entry.required_approvals));
    line.text(",\"required_proofs\":", entry.required_proofs);
    line.text(",\"result_data\":", entry.result_data);
    line.boolean(",\"rollback_available\":", entry.rollback_available);
    line.boolean(",\"rollback_executed\":", entry.rollback_executed);
    match entry.rollback_snapshot_hash {
        Some(hash) => line.digest(",\"rollback_snapshot_hash\":\"", hash),
        None => line.text(",\"rollback_snapshot_hash\":null", ""),
    }
    line.boolean(",\"safety_floor_met\":", entry.safety_floor_met);
    line.text(",\"schema_version\":\"", SCHEMA_VERSION);
    line.number("\",\"sequence_number\":", i64::try_from(entry.sequence_number.0).unwrap_or(i64::MAX));
    line.number(",\"severity\":", i64::from(entry.severity));
    line.text(",\"signature_algorithm\":\"", entry.signature_algorithm.as_str());
    line.digest("\",\"signing_key_id\":\"", entry.signing_key_id.0);
    line.text(",\"system_state_snapshot\":", entry.system_state_snapshot);
    line.text(",\"timestamp\":\"", "");
    entry.timestamp.write(&mut line.out);
    line.text("\"}", "");

    let mut line = line.out;
    let hash = hash_without(&line, before_hash..after_hash, before_signature..after_signature);
    let mut hex = Vec::with_capacity(64);
    write_hex(&hash.0, &mut hex);
    line[after_hash - 65..after_hash - 1].copy_from_slice(&hex);
    Unsigned { line, signature_at, hash }
}

struct Writer {
    out: Vec<u8>,
}

impl Writer {
    fn text(&mut self, name: &str, value: &str) {
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(value.as_bytes());
    }

    fn digest(&mut self, name: &str, value: Digest) {
        self.out.extend_from_slice(name.as_bytes());
        write_hex(&value.0, &mut self.out);
        self.out.push(b'"');
    }

    fn boolean(&mut self, name: &str, value: bool) {
        self.text(name, if value { "true" } else { "false" });
    }

    fn number(&mut self, name: &str, value: i64) {
        self.text(name, &value.to_string());
    }

    fn ids(&mut self, ids: &[EntryId]) {
        write_ids(ids, &mut self.out);
    }
}

/// Appends the canonical array of `ids`.
pub fn write_ids(ids: &[EntryId], out: &mut Vec<u8>) {
    out.push(b'[');
    for (index, id) in ids.iter().enumerate() {
        out.extend_from_slice(if index == 0 { b"\"" } else { b",\"" });
        id.write(out);
        out.push(b'"');
    }
    out.push(b']');
}

/// What the decoder found: the entry, and the hash of the bytes that were decoded.
#[derive(Debug, Clone)]
pub struct Decoded<'a> {
    /// The members.
    pub entry: EntryView<'a>,
    /// SHA-256 of the line without the members `entry_hash` and `hsm_signature`.
    pub computed_hash: Digest,
}

/// Decodes one line (without its line feed), which must be the canonical form of an entry.
///
/// # Errors
/// The [`Fault`] that makes the line something else: JSON faults first, then `not-canonical`,
/// `unknown-member`, `missing-member`, then what is wrong with a value, in canonical order.
pub fn decode(line: &[u8]) -> Result<Decoded<'_>, Fault> {
    if line.len() > MAX_ENTRY_BYTES {
        return Err(Fault::new(Code::EntryTooLarge, MAX_ENTRY_BYTES));
    }
    Cursor::new(line).and_then(Cursor::entry).map_err(|fault| diagnose(line, fault))
}

fn hash_without(line: &[u8], entry_hash: Range<usize>, signature: Range<usize>) -> Digest {
    Digest::of_parts(&[
        &line[..entry_hash.start],
        &line[entry_hash.end..signature.start],
        &line[signature.end..],
    ])
}

/// The decoder stops at the first byte that is not the only one possible; this finds out why.
fn diagnose(line: &[u8], fault: Fault) -> Fault {
    let canonical = match json::canonicalize(line) {
        Ok(canonical) => canonical,
        Err(json_fault) => return json_fault,
    };
    if canonical.as_bytes() != line {
        let at = canonical.bytes().zip(line).take_while(|(a, b)| a == *b).count();
        return Fault::new(Code::NotCanonical, at);
    }
    if !canonical.starts_with('{') {
        return Fault::new(Code::WrongType, 0).because("an entry is an object");
    }
    let names: Vec<String> =
        json::members(&canonical).map(|(start, end, _)| json::unquote(&line[start..end])).collect();
    if let Some(unknown) = names.iter().find(|name| !MEMBERS.contains(&name.as_str())) {
        return Fault::new(Code::UnknownMember, 0).below(unknown);
    }
    if let Some(missing) = MEMBERS.iter().find(|member| !names.iter().any(|name| name == *member)) {
        return Fault::new(Code::MissingMember, line.len()).below(missing);
    }
    fault
}

struct Cursor<'a> {
    line: &'a str,
    reader: Reader<'a>,
    scratch: Vec<u8>,
}

impl<'a> Cursor<'a> {
    fn new(line: &'a [u8]) -> Result<Self, Fault> {
        let reader = Reader::new(line)?;
        let line = std::str::from_utf8(line).map_err(|e| Fault::new(Code::JsonUtf8, e.valid_up_to()))?;
        Ok(Cursor { line, reader, scratch: Vec::new() })
    }

    fn entry(mut self) -> Result<Decoded<'a>, Fault> {
        self.literal("{")?;
        let action_hash = self.member("action_hash", Self::digest)?;
        let action_payload = self.next_member("action_payload", Self::object)?;
        let action_type = self.next_member("action_type", Self::action_type)?;
        let actor_context = self.next_member("actor_context", Self::object)?;
        let actor_id = self.next_member("actor_id", Self::actor_id)?;
        let actor_type = self.next_member("actor_type", |c| c.word(ActorType::parse))?;
        self.next_member("attribution", |c| c.constant(ATTRIBUTION, Code::WrongValue))?;
        let composite_score = self.next_member("composite_score", Self::score)?;
        let conflicts_detected = self.next_member("conflicts_detected", Self::strings)?;
        let dependencies = self.next_member("dependencies", Self::ids)?;
        let before_hash = self.reader.position();
        let entry_hash = self.next_member("entry_hash", Self::digest)?;
        let after_hash = self.reader.position();
        let entry_id = self.next_member("entry_id", |c| c.word(EntryId::parse))?;
        let environment = self.next_member("environment", Self::object_of_strings)?;
        let error_details = self.next_member("error_details", Self::object_or_null)?;
        let event_category = self.next_member("event_category", |c| c.word(EventCategory::parse))?;
        let event_type = self.next_member("event_type", |c| c.word(EventType::parse))?;
        let execution_status = self.next_member("execution_status", |c| c.word(ExecutionStatus::parse))?;
        let before_signature = self.reader.position();
        let hsm_signature = self.next_member("hsm_signature", Self::plain)?;
        let after_signature = self.reader.position();
        let k_state = self.next_member("k_state", Self::integer)?;
        let pillars_scores = self.next_member("pillars_scores", Self::pillars)?;
        let prev_entry_hash = self.next_member("prev_entry_hash", Self::digest)?;
        let proofs_valid = self.next_member("proofs_valid", Self::boolean)?;
        let provided_proofs = self.next_member("provided_proofs", Self::objects)?;
        let quorum_met = self.next_member("quorum_met", Self::boolean)?;
        let received_approvals = self.next_member("received_approvals", Self::objects_of_strings)?;
        let replicas = self.next_member("replicas", Self::strings)?;
        let required_approvals = self.next_member("required_approvals", Self::small)?;
        let required_proofs = self.next_member("required_proofs", Self::sorted_strings)?;
        let result_data = self.next_member("result_data", Self::object_or_null)?;
        let rollback_available = self.next_member("rollback_available", Self::boolean)?;
        let rollback_executed = self.next_member("rollback_executed", Self::boolean)?;
        let rollback_snapshot_hash = self.next_member("rollback_snapshot_hash", Self::digest_or_null)?;
        let safety_floor_met = self.next_member("safety_floor_met", Self::boolean)?;
        self.next_member("schema_version", |c| c.constant(SCHEMA_VERSION, Code::SchemaVersion))?;
        let sequence_number = self.next_member("sequence_number", Self::sequence)?;
        let severity = self.next_member("severity", Self::severity)?;
        let signature_algorithm = self.next_member("signature_algorithm", Self::algorithm)?;
        let signing_key_id = KeyId(self.next_member("signing_key_id", Self::digest)?);
        let system_state_snapshot = self.next_member("system_state_snapshot", Self::object)?;
        let timestamp = self.next_member("timestamp", Self::timestamp)?;
        self.literal("}")?;
        if !self.rest().is_empty() {
            return Err(self.fault(Code::NotCanonical));
        }

        let computed_hash =
            hash_without(self.line.as_bytes(), before_hash..after_hash, before_signature..after_signature);
        let entry = EntryView {
            action_hash,
            action_payload,
            action_type,
            actor_context,
            actor_id,
            actor_type,
            composite_score,
            conflicts_detected,
            dependencies: Cow::Owned(dependencies),
            entry_hash,
            entry_id,
            environment,
            error_details,
            event_category,
            event_type,
            execution_status,
            hsm_signature,
            k_state,
            pillars_scores,
            prev_entry_hash,
            proofs_valid,
            provided_proofs,
            quorum_met,
            received_approvals,
            replicas,
            required_approvals,
            required_proofs,
            result_data,
            rollback_available,
            rollback_executed,
            rollback_snapshot_hash,
            safety_floor_met,
            sequence_number,
            severity,
            signature_algorithm,
            signing_key_id,
            system_state_snapshot,
            timestamp,
        };
        Ok(Decoded { entry, computed_hash })
    }

    fn next_member<T>(
        &mut self,
        name: &str,
        value: impl FnOnce(&mut Self) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        self.literal(",")?;
        self.member(name, value)
    }

    fn member<T>(
        &mut self,
        name: &str,
        value: impl FnOnce(&mut Self) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        self.literal("\"")?;
        self.literal(name)?;
        self.literal("\":")?;
        value(self).map_err(|fault| fault.below(name))
    }

    fn rest(&self) -> &'a str {
        // A position is always just behind ASCII, so the slice begins at a character.
        self.line.get(self.reader.position()..).unwrap_or_default()
    }

    fn fault(&self, code: Code) -> Fault {
        Fault::new(code, self.reader.position())
    }

    fn literal(&mut self, text: &str) -> Result<(), Fault> {
        if !self.rest().starts_with(text) {
            return Err(self.fault(Code::NotCanonical));
        }
        self.reader.advance(text.len());
        Ok(())
    }

    /// Any value, which must stand there in canonical form.
    fn value(&mut self) -> Result<&'a str, Fault> {
        let start = self.reader.position();
        self.scratch.clear();
        self.reader.value(&mut self.scratch, 2)?;
        let text = self.line.get(start..self.reader.position()).unwrap_or_default();
        if text.as_bytes() == self.scratch { Ok(text) } else { Err(Fault::new(Code::NotCanonical, start)) }
    }

    fn value_beginning(&mut self, first: char, kind: &str) -> Result<&'a str, Fault> {
        if !self.rest().starts_with(first) {
            return Err(self.fault(Code::WrongType).because(format!("must be {kind}")));
        }
        self.value()
    }

    fn object(&mut self) -> Result<&'a str, Fault> {
        self.value_beginning('{', "an object")
    }

    fn array(&mut self) -> Result<&'a str, Fault> {
        self.value_beginning('[', "an array")
    }

    fn object_or_null(&mut self) -> Result<&'a str, Fault> {
        if self.rest().starts_with('n') { self.value() } else { self.object() }
    }

    fn object_of_strings(&mut self) -> Result<&'a str, Fault> {
        let at = self.reader.position();
        let object = self.object()?;
        holds_strings(object, at)?;
        Ok(object)
    }

    fn array_of(&mut self, first: char, kind: &str) -> Result<&'a str, Fault> {
        let at = self.reader.position();
        let array = self.array()?;
        match json::elements(array).position(|element| !element.starts_with(first)) {
            None => Ok(array),
            Some(index) => Err(Fault::new(Code::WrongType, at)
                .because(format!("must be {kind}"))
                .below(&index.to_string())),
        }
    }

    fn strings(&mut self) -> Result<&'a str, Fault> {
        self.array_of('"', "a string")
    }

    fn objects(&mut self) -> Result<&'a str, Fault> {
        self.array_of('{', "an object")
    }

    fn objects_of_strings(&mut self) -> Result<&'a str, Fault> {
        let at = self.reader.position();
        let array = self.objects()?;
        for (index, object) in json::elements(array).enumerate() {
            holds_strings(object, at).map_err(|fault| fault.below(&index.to_string()))?;
        }
        Ok(array)
    }

    fn sorted_strings(&mut self) -> Result<&'a str, Fault> {
        let at = self.reader.position();
        let array = self.strings()?;
        let names: Vec<String> = json::elements(array).map(|e| json::unquote(e.as_bytes())).collect();
        if names.windows(2).all(|pair| pair[0] < pair[1]) {
            return Ok(array);
        }
        Err(Fault::new(Code::WrongValue, at).because("must be sorted, without repeats"))
    }

    fn quoted(&mut self) -> Result<&'a str, Fault> {
        self.value_beginning('"', "a string")
    }

    /// A string without escapes.
    fn plain(&mut self) -> Result<&'a str, Fault> {
        let at = self.reader.position();
        let quoted = self.quoted()?;
        let inner = &quoted[1..quoted.len() - 1];
        if inner.contains('\\') { Err(Fault::new(Code::WrongValue, at)) } else { Ok(inner) }
    }

    fn word<T>(&mut self, parse: impl Fn(&str) -> Option<T>) -> Result<T, Fault> {
        let at = self.reader.position();
        parse(self.plain()?).ok_or_else(|| Fault::new(Code::WrongValue, at))
    }

    fn constant(&mut self, value: &str, code: Code) -> Result<(), Fault> {
        let at = self.reader.position();
        if self.plain()? == value {
            return Ok(());
        }
        Err(Fault::new(code, at).because(format!("must be `{value}`")))
    }

    fn action_type(&mut self) -> Result<&'a str, Fault> {
        let at = self.reader.position();
        let text = self.plain()?;
        if is_action_type(text) { Ok(text) } else { Err(Fault::new(Code::WrongValue, at)) }
    }

    fn actor_id(&mut self) -> Result<Cow<'a, str>, Fault> {
        let at = self.reader.position();
        let quoted = self.quoted()?;
        let text = if quoted.contains('\\') {
            Cow::Owned(json::unquote(quoted.as_bytes()))
        } else {
            Cow::Borrowed(&quoted[1..quoted.len() - 1])
        };
        if is_actor_id(&text) { Ok(text) } else { Err(Fault::new(Code::WrongValue, at)) }
    }

    fn ids(&mut self) -> Result<Vec<EntryId>, Fault> {
        let at = self.reader.position();
        let array = self.strings()?;
        json::elements(array)
            .enumerate()
            .map(|(index, element)| {
                EntryId::parse(element.trim_matches('"'))
                    .ok_or_else(|| Fault::new(Code::WrongValue, at).below(&index.to_string()))
            })
            .collect()
    }

    fn digest(&mut self) -> Result<Digest, Fault> {
        self.word(|text| Digest::from_hex(text.as_bytes()))
    }

    fn digest_or_null(&mut self) -> Result<Option<Digest>, Fault> {
        if self.rest().starts_with('n') { self.value().map(|_| None) } else { self.digest().map(Some) }
    }

    fn algorithm(&mut self) -> Result<SignatureAlgorithm, Fault> {
        let at = self.reader.position();
        SignatureAlgorithm::parse(self.plain()?).ok_or_else(|| Fault::new(Code::SignatureAlgorithm, at))
    }

    fn timestamp(&mut self) -> Result<Timestamp, Fault> {
        debug_assert_eq!(timestamp::TEXT_BYTES, 27);
        self.word(|text| Timestamp::parse(text.as_bytes()))
    }

    fn boolean(&mut self) -> Result<bool, Fault> {
        match self.rest() {
            rest if rest.starts_with("true") => self.literal("true").map(|()| true),
            rest if rest.starts_with("false") => self.literal("false").map(|()| false),
            _ => Err(self.fault(Code::WrongType).because("must be true or false")),
        }
    }

    fn number(&mut self) -> Result<&'a str, Fault> {
        if !self.rest().starts_with(|c: char| c == '-' || c.is_ascii_digit()) {
            return Err(self.fault(Code::WrongType).because("must be a number"));
        }
        self.value()
    }

    fn integer(&mut self) -> Result<i64, Fault> {
        let at = self.reader.position();
        self.number()?.parse().map_err(|_| Fault::new(Code::WrongType, at).because("must be an integer"))
    }

    fn small(&mut self) -> Result<u32, Fault> {
        let at = self.reader.position();
        u32::try_from(self.integer()?).map_err(|_| Fault::new(Code::WrongValue, at))
    }

    fn severity(&mut self) -> Result<u8, Fault> {
        let at = self.reader.position();
        let value = u8::try_from(self.integer()?).ok().filter(|severity| *severity <= MAX_SEVERITY);
        value.ok_or_else(|| Fault::new(Code::WrongValue, at).because("must be 0 to 10"))
    }

    fn sequence(&mut self) -> Result<Sequence, Fault> {
        let at = self.reader.position();
        u64::try_from(self.integer()?).map(Sequence).map_err(|_| Fault::new(Code::WrongValue, at))
    }

    fn score(&mut self) -> Result<Score, Fault> {
        let at = self.reader.position();
        Score::from_canonical(self.number()?).ok_or_else(|| {
            Fault::new(Code::WrongValue, at).because("must be 0 to 10 with at most four decimals")
        })
    }

    fn pillars(&mut self) -> Result<Option<Pillars>, Fault> {
        if self.rest().starts_with("{}") {
            return self.literal("{}").map(|()| None);
        }
        let at = self.reader.position();
        let object = self.object()?;
        parse_pillars(object).map_err(|code| Fault::new(code, at))
    }
}

/// Reads the canonical `pillars_scores` object: all four or none.
///
/// # Errors
/// [`Code::UnknownMember`], [`Code::PillarsIncomplete`], or [`Code::WrongValue`] for a score that
/// is not a number from 0 to 10 with at most four decimals.
pub fn parse_pillars(object: &str) -> Result<Option<Pillars>, Code> {
    let names: Vec<&str> = json::members(object).map(|(start, end, _)| &object[start + 1..end - 1]).collect();
    if names.iter().any(|name| !PILLAR_NAMES.contains(name)) {
        return Err(Code::UnknownMember);
    }
    match names.len() {
        0 => return Ok(None),
        4 => {}
        _ => return Err(Code::PillarsIncomplete),
    }
    let mut scores = [Score::ZERO; 4];
    for (score, name) in scores.iter_mut().zip(PILLAR_NAMES) {
        let text = json::member(object, name).ok_or(Code::PillarsIncomplete)?;
        *score = Score::from_canonical(text).ok_or(Code::WrongValue)?;
    }
    Ok(Some(Pillars(scores)))
}

/// Checks that every member of a canonical object is a string.
pub(crate) fn holds_strings(object: &str, at: usize) -> Result<(), Fault> {
    for (start, name_end, end) in json::members(object) {
        if !object[name_end + 1..end].starts_with('"') {
            let name = json::unquote(&object.as_bytes()[start..name_end]);
            return Err(Fault::new(Code::WrongType, at).because("must be a string").below(&name));
        }
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn sample() -> EntryView<'static> {
        EntryView {
            action_hash: Digest::of(r#"{"a":"é\n","n":1.5}"#.as_bytes()),
            action_payload: r#"{"a":"é\n","n":1.5}"#,
            action_type: "deploy.start",
            actor_context: r#"{"peer":{"uid":1000}}"#,
            actor_id: Cow::Borrowed("uid:1000/agent \"seven\""),
            actor_type: ActorType::AutonomousAgent,
            composite_score: Score::from_canonical("8.125").expect("a score"),
            conflicts_detected: r#"["x"]"#,
            dependencies: Cow::Owned(vec![EntryId::from_random([1; 16])]),
            entry_hash: Digest::ZERO,
            entry_id: EntryId::from_random([2; 16]),
            environment: r#"{"attestd.version":"0.1.0"}"#,
            error_details: "null",
            event_category: EventCategory::Warning,
            event_type: EventType::Action,
            execution_status: ExecutionStatus::Success,
            hsm_signature: "",
            k_state: -1,
            pillars_scores: Some(Pillars(
                ["7", "8.5", "9", "8"].map(|text| Score::from_canonical(text).expect("a score")),
            )),
            prev_entry_hash: Digest::of(b"before"),
            proofs_valid: true,
            provided_proofs: "[]",
            quorum_met: true,
            received_approvals: "[]",
            replicas: r#"["https://mirror.example"]"#,
            required_approvals: 0,
            required_proofs: "[]",
            result_data: r#"{"ok":true}"#,
            rollback_available: true,
            rollback_executed: false,
            rollback_snapshot_hash: Some(Digest::of(b"snapshot")),
            safety_floor_met: true,
            sequence_number: Sequence(42),
            severity: 4,
            signature_algorithm: SignatureAlgorithm::EntryP256,
            signing_key_id: KeyId(Digest::of(b"key")),
            system_state_snapshot: "{}",
            timestamp: Timestamp::from_micros(1_795_573_782_000_123),
        }
    }

    #[test]
    fn what_is_encoded_decodes_to_the_same_and_is_canonical() {
        let unsigned = encode(&sample());
        let line = unsigned.seal(b"3006020101020101");
        let decoded = decode(&line).expect("an entry");
        let mut expected = sample();
        expected.entry_hash = unsigned.hash;
        expected.hsm_signature = "3006020101020101";
        assert_eq!(decoded.entry, expected);
        assert_eq!(decoded.computed_hash, unsigned.hash);
        assert_eq!(json::canonicalize(&line).expect("JSON").as_bytes(), line);
    }

    /// The hash is defined over the canonical form without two members; a generic JSON library
    /// and a JCS crate must come to the same.
    #[test]
    fn the_hash_is_that_of_the_canonical_form_without_hash_and_signature() {
        let unsigned = encode(&sample());
        let mut value: serde_json::Value = serde_json::from_slice(&unsigned.line).expect("JSON");
        let object = value.as_object_mut().expect("an object");
        object.remove("entry_hash");
        object.remove("hsm_signature");
        let canonical = serde_json_canonicalizer::to_vec(&value).expect("canonical");
        assert_eq!(Digest::of(&canonical), unsigned.hash);
    }

    #[test]
    fn every_byte_counts() {
        let line = encode(&sample()).seal(b"00");
        for at in 0..line.len() {
            let mut changed = line.clone();
            changed[at] ^= 1;
            if let Ok(decoded) = decode(&changed) {
                let same = decoded.computed_hash == decoded.entry.entry_hash;
                let signature_differs = decoded.entry.hsm_signature != "00";
                assert!(!same || signature_differs, "byte {at} does not count");
            }
        }
    }

    #[test]
    fn faults_are_named() {
        let line = String::from_utf8(encode(&sample()).seal(b"00")).expect("UTF-8");
        let cases = [
            ("{\"action_hash\"", "{ \"action_hash\"", Code::NotCanonical, ""),
            ("1.5", "1.50", Code::NotCanonical, ""),
            ("\"k_state\":-1", "\"k_state\":-0", Code::JsonNegativeZero, "/k_state"),
            ("\"k_state\":-1", "\"k_state\":1.5", Code::WrongType, "/k_state"),
            ("\"k_state\":-1,", "", Code::MissingMember, "/k_state"),
            ("\"k_state\":-1", "\"k_state\":-1,\"k_stato\":1", Code::UnknownMember, "/k_stato"),
            ("\"severity\":4", "\"severity\":11", Code::WrongValue, "/severity"),
            ("\"severity\":4", "\"severity\":null", Code::WrongType, "/severity"),
            ("WARNING", "WARNIN", Code::WrongValue, "/event_category"),
            (
                "\"schema_version\":\"1.0.0\"",
                "\"schema_version\":\"1.0.1\"",
                Code::SchemaVersion,
                "/schema_version",
            ),
            ("ECDSA-P256-SHA256", "ECDSA-P384-SHA384", Code::SignatureAlgorithm, "/signature_algorithm"),
            (
                "\"conflicts_detected\":[\"x\"]",
                "\"conflicts_detected\":[1]",
                Code::WrongType,
                "/conflicts_detected/0",
            ),
            (
                "{\"attestd.version\":\"0.1.0\"}",
                "{\"attestd.version\":1}",
                Code::WrongType,
                "/environment/attestd.version",
            ),
            ("\"an_toan\":7,", "", Code::PillarsIncomplete, "/pillars_scores"),
            (
                "\"required_proofs\":[]",
                "\"required_proofs\":[\"b\",\"a\"]",
                Code::WrongValue,
                "/required_proofs",
            ),
            ("alpha_prime_omega", "alpha_prime_omegb", Code::WrongValue, "/attribution"),
        ];
        for (from, to, code, pointer) in cases {
            assert!(line.contains(from), "{from}");
            let fault = decode(line.replacen(from, to, 1).as_bytes()).expect_err(to);
            assert_eq!((fault.code, fault.pointer.as_str()), (code, pointer), "{to}: {fault}");
        }
        assert_eq!(decode(format!("{line} ").as_bytes()).expect_err("blank").code, Code::NotCanonical);
        assert_eq!(decode(format!("{line}x").as_bytes()).expect_err("more").code, Code::JsonTrailing);
        assert_eq!(decode(b"[]").expect_err("array").code, Code::WrongType);
        assert_eq!(decode(b"").expect_err("empty").code, Code::JsonTruncated);
        assert_eq!(decode(&line.as_bytes()[..300]).expect_err("cut").code, Code::JsonTruncated);
    }
}
