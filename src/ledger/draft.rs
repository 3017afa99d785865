//! What a client may send: the strict reader of a request, and the vocabulary that is refused.
//!
//! It accepts any spelling of I-JSON and keeps canonical text. It knows nothing of who is calling
//! or of rules: that is [`crate::governance`].
//!
//! ```text
//! {"event_type":"ACTION","action_type":"deploy.start","action_payload":{"to":"v2"},
//!  "execution_status":"SUCCESS","actor_type":"AUTONOMOUS_AGENT"}
//! ```

use super::canonical::{holds_strings, parse_pillars, write_ids};
use super::code::Code;
use super::entry::{
    ActorType, DAEMON_ACTOR, DAEMON_MEMBERS, EntryId, EventCategory, EventType, ExecutionStatus,
    MAX_SEVERITY, MEMBERS, is_action_type, is_actor_id, is_reserved_action_type,
};
use super::hash::Digest;
use super::json::{self, Fault, Place, Reader};
use super::score::Pillars;

/// The members that every request must have.
pub const NEEDED: [&str; 5] =
    ["event_type", "action_type", "action_payload", "execution_status", "actor_type"];

/// The daemon's own actions that a client may propose. Nobody appends them: the daemon performs
/// them when the proposal is sealed.
pub const PROPOSABLE: [&str; 4] = ["key.revoke", "key.rotate", "rules.set", "signature.mode"];

/// A request that was understood. Members that it left out have their defaults.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the members are documented in docs/format.md, once")]
pub struct Draft {
    pub entry_id: Option<EntryId>,
    pub event_type: EventType,
    pub event_category: EventCategory,
    pub severity: u8,
    pub actor_type: ActorType,
    /// What the client claims to be called, if it does.
    pub actor_id: Option<String>,
    /// Canonical object without `peer`.
    pub actor_context: String,
    pub action_type: String,
    pub action_payload: String,
    pub system_state_snapshot: String,
    /// Canonical object of strings without names that begin `attestd.`.
    pub environment: String,
    pub dependencies: Vec<EntryId>,
    /// Canonical array of strings, sorted, without repeats.
    pub required_proofs: String,
    /// Canonical array of objects, as the client gave them.
    pub provided_proofs: String,
    pub required_approvals: u32,
    pub pillars_scores: Option<Pillars>,
    pub k_state: i64,
    pub conflicts_detected: String,
    pub execution_status: ExecutionStatus,
    pub result_data: String,
    pub error_details: String,
    pub rollback_available: bool,
    pub rollback_executed: bool,
    pub rollback_snapshot_hash: Option<Digest>,
}

impl Draft {
    /// Reads one request object.
    ///
    /// # Errors
    /// The first [`Fault`] in reading order; a missing member only when the rest is sound.
    pub fn parse(text: &[u8]) -> Result<Self, Fault> {
        Parser::new(text, Reading::Append)?.request()
    }

    /// Reads what a client proposes: as [`Draft::parse`], but [`PROPOSABLE`] actions are taken.
    ///
    /// # Errors
    /// As [`Draft::parse`].
    pub fn parse_proposal(text: &[u8]) -> Result<Self, Fault> {
        Parser::new(text, Reading::Propose)?.request()
    }

    /// Reads back what [`Draft::to_canonical`] wrote, and nothing else.
    ///
    /// # Errors
    /// As [`Draft::parse`]; [`Code::NotCanonical`] for another spelling.
    pub fn from_canonical(text: &str) -> Result<Self, Fault> {
        let draft = Parser::new(text.as_bytes(), Reading::Stored)?.request()?;
        if draft.to_canonical() == text { Ok(draft) } else { Err(Fault::new(Code::NotCanonical, 0)) }
    }

    /// The canonical object of every member that a client may give, defaults filled in; `entry_id`
    /// and `actor_id` only where they are given.
    #[must_use]
    pub fn to_canonical(&self) -> String {
        json::into_string(self.write(true))
    }

    /// A draft with the five needed members and defaults for the rest.
    #[must_use]
    pub fn new(
        event_type: EventType,
        action_type: &str,
        action_payload: String,
        execution_status: ExecutionStatus,
        actor_type: ActorType,
    ) -> Self {
        Draft {
            entry_id: None,
            event_type,
            event_category: EventCategory::Normal,
            severity: EventCategory::Normal.default_severity(),
            actor_type,
            actor_id: None,
            actor_context: "{}".into(),
            action_type: action_type.into(),
            action_payload,
            system_state_snapshot: "{}".into(),
            environment: "{}".into(),
            dependencies: Vec::new(),
            required_proofs: "[]".into(),
            provided_proofs: "[]".into(),
            required_approvals: 0,
            pillars_scores: None,
            k_state: 1,
            conflicts_detected: "[]".into(),
            execution_status,
            result_data: "null".into(),
            error_details: "null".into(),
            rollback_available: false,
            rollback_executed: false,
            rollback_snapshot_hash: None,
        }
    }

    /// What the daemon does itself. `payload` is a canonical object.
    #[must_use]
    pub fn own(event_type: EventType, category: EventCategory, action_type: &str, payload: String) -> Self {
        Draft {
            event_category: category,
            severity: category.default_severity(),
            ..Draft::new(event_type, action_type, payload, ExecutionStatus::Success, ActorType::System)
        }
    }

    /// The SHA-256 by which "the same content" is judged when an entry id comes again: of the
    /// canonical object of every member that a client may give, defaults filled in, without the id.
    #[must_use]
    pub fn content_hash(&self) -> Digest {
        Digest::of(&self.write(false))
    }

    /// With `ids` the given ids are written and those that were not given left out; without,
    /// `entry_id` never stands and `actor_id` always does.
    fn write(&self, ids: bool) -> Vec<u8> {
        let mut out = Vec::with_capacity(1_024);
        let mut lead: &[u8] = b"{\"";
        let mut member = |name: &str, write: &dyn Fn(&mut Vec<u8>)| {
            out.extend_from_slice(lead);
            lead = b",\"";
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(b"\":");
            write(&mut out);
        };
        let text = |value: &str, out: &mut Vec<u8>| out.extend_from_slice(value.as_bytes());
        member("action_payload", &|out| text(&self.action_payload, out));
        member("action_type", &|out| json::write_string(&self.action_type, out));
        member("actor_context", &|out| text(&self.actor_context, out));
        match &self.actor_id {
            Some(id) => member("actor_id", &|out| json::write_string(id, out)),
            None if ids => {}
            None => member("actor_id", &|out| text("null", out)),
        }
        member("actor_type", &|out| json::write_string(self.actor_type.as_str(), out));
        member("conflicts_detected", &|out| text(&self.conflicts_detected, out));
        member("dependencies", &|out| write_ids(&self.dependencies, out));
        if let Some(id) = self.entry_id.filter(|_| ids) {
            member("entry_id", &|out| json::write_string(&id.to_string(), out));
        }
        member("environment", &|out| text(&self.environment, out));
        member("error_details", &|out| text(&self.error_details, out));
        member("event_category", &|out| json::write_string(self.event_category.as_str(), out));
        member("event_type", &|out| json::write_string(self.event_type.as_str(), out));
        member("execution_status", &|out| json::write_string(self.execution_status.as_str(), out));
        member("k_state", &|out| text(&self.k_state.to_string(), out));
        member("pillars_scores", &|out| match self.pillars_scores {
            Some(pillars) => pillars.write(out),
            None => text("{}", out),
        });
        member("provided_proofs", &|out| text(&self.provided_proofs, out));
        member("required_approvals", &|out| text(&self.required_approvals.to_string(), out));
        member("required_proofs", &|out| text(&self.required_proofs, out));
        member("result_data", &|out| text(&self.result_data, out));
        member("rollback_available", &|out| text(&self.rollback_available.to_string(), out));
        member("rollback_executed", &|out| text(&self.rollback_executed.to_string(), out));
        member("rollback_snapshot_hash", &|out| match self.rollback_snapshot_hash {
            Some(hash) => json::write_string(&hash.to_hex(), out),
            None => text("null", out),
        });
        member("severity", &|out| text(&self.severity.to_string(), out));
        member("system_state_snapshot", &|out| text(&self.system_state_snapshot, out));
        out.push(b'}');
        out
    }
}

/// Who may have written what is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reading {
    Append,
    Propose,
    /// The ledger: its actor ids are those that entries have.
    Stored,
}

struct Parser<'a> {
    reading: Reading,
    reader: Reader<'a>,
    /// One bit for each of `MEMBERS` that was given.
    given: u64,
    /// Canonical text of the value just read, and where it began.
    value: Vec<u8>,
    at: usize,
}

impl<'a> Parser<'a> {
    fn new(text: &'a [u8], reading: Reading) -> Result<Self, Fault> {
        Ok(Parser { reading, reader: Reader::new(text)?, given: 0, value: Vec::new(), at: 0 })
    }

    fn request(&mut self) -> Result<Draft, Fault> {
        let mut draft =
            Draft::new(EventType::Action, "", String::new(), ExecutionStatus::Success, ActorType::System);
        let mut severity = None;
        if self.reader.peek() != Some(b'{') {
            // Not an object; still, what is not JSON at all is refused as such.
            let at = self.reader.position();
            self.reader.value(&mut Vec::new(), 1)?;
            return Err(Fault::new(Code::WrongType, at).because("a request is an object"));
        }
        self.reader.expect(b'{')?;
        if !self.reader.take(b'}') {
            loop {
                self.member(&mut draft, &mut severity)?;
                if self.reader.take(b'}') {
                    break;
                }
                if !self.reader.take(b',') {
                    return Err(self.reader.unexpected("`,` or `}`"));
                }
            }
        }
        self.reader.end()?;
        for name in NEEDED {
            if !self.was_given(name) {
                return Err(Fault::new(Code::MissingMember, self.reader.position()).below(name));
            }
        }
        draft.severity = severity.unwrap_or(draft.event_category.default_severity());
        Ok(draft)
    }

    fn member(&mut self, draft: &mut Draft, severity: &mut Option<u8>) -> Result<(), Fault> {
        if self.reader.peek() != Some(b'"') {
            return Err(self.reader.unexpected("a name in quotes"));
        }
        let name_at = self.reader.position();
        self.value.clear();
        self.reader.string(&mut self.value)?;
        let name = json::unquote(&self.value);
        let Ok(index) = MEMBERS.binary_search(&name.as_str()) else {
            return Err(Fault::new(Code::UnknownMember, name_at).below(&name));
        };
        if self.given & 1 << index != 0 {
            return Err(Fault::new(Code::JsonDuplicateName, name_at).below(&name));
        }
        self.given |= 1 << index;
        if DAEMON_MEMBERS.contains(&MEMBERS[index]) {
            return Err(Fault::new(Code::DaemonMember, name_at).below(&name));
        }
        self.reader.expect(b':')?;
        self.reader.peek();
        self.at = self.reader.position();
        self.value.clear();
        self.reader
            .value(&mut self.value, 2)
            .and_then(|()| self.assign(MEMBERS[index], draft, severity))
            .map_err(|fault| fault.below(&name))
    }

    fn was_given(&self, name: &str) -> bool {
        MEMBERS.binary_search(&name).is_ok_and(|index| self.given & 1 << index != 0)
    }

    fn assign(&mut self, name: &str, draft: &mut Draft, severity: &mut Option<u8>) -> Result<(), Fault> {
        match name {
            "action_payload" => draft.action_payload = self.object()?,
            "action_type" => draft.action_type = self.action_type()?,
            "actor_context" => draft.actor_context = self.actor_context()?,
            "actor_id" => draft.actor_id = Some(self.actor_id()?),
            "actor_type" => draft.actor_type = self.word(ActorType::ALL, ActorType::as_str)?,
            "conflicts_detected" => draft.conflicts_detected = self.array_of('"', "a string")?,
            "dependencies" => draft.dependencies = self.ids()?,
            "entry_id" => draft.entry_id = Some(self.id()?),
            "environment" => draft.environment = self.environment()?,
            "error_details" => draft.error_details = self.object_or_null()?,
            "event_category" => {
                draft.event_category = self.word(EventCategory::ALL, EventCategory::as_str)?;
            }
            "event_type" => draft.event_type = self.event_type()?,
            "execution_status" => {
                draft.execution_status = self.word(ExecutionStatus::ALL, ExecutionStatus::as_str)?;
            }
            "k_state" => draft.k_state = self.integer()?,
            "pillars_scores" => draft.pillars_scores = self.pillars()?,
            "provided_proofs" => draft.provided_proofs = self.array_of('{', "an object")?,
            "required_approvals" => draft.required_approvals = self.count()?,
            "required_proofs" => draft.required_proofs = self.sorted_strings()?,
            "result_data" => draft.result_data = self.object_or_null()?,
            "rollback_available" => draft.rollback_available = self.boolean()?,
            "rollback_executed" => draft.rollback_executed = self.boolean()?,
            "rollback_snapshot_hash" => draft.rollback_snapshot_hash = self.digest_or_null()?,
            "severity" => *severity = Some(self.severity()?),
            "system_state_snapshot" => draft.system_state_snapshot = self.object()?,
            // `member` has refused unknown members and the daemon's own by now.
            _ => return Err(self.fault(Code::UnknownMember)),
        }
        Ok(())
    }

    fn fault(&self, code: Code) -> Fault {
        Fault::new(code, self.at)
    }

    fn wrong_type(&self, kind: &str) -> Fault {
        self.fault(Code::WrongType).because(format!("must be {kind}"))
    }

    fn text(&mut self, first: u8, kind: &str) -> Result<String, Fault> {
        if self.value.first() != Some(&first) {
            return Err(self.wrong_type(kind));
        }
        Ok(json::into_string(std::mem::take(&mut self.value)))
    }

    fn object(&mut self) -> Result<String, Fault> {
        self.text(b'{', "an object")
    }

    fn object_or_null(&mut self) -> Result<String, Fault> {
        if self.value == b"null" { Ok("null".into()) } else { self.text(b'{', "an object or null") }
    }

    fn array_of(&mut self, first: char, kind: &str) -> Result<String, Fault> {
        let array = self.text(b'[', "an array")?;
        let stray = json::elements(&array).position(|element| !element.starts_with(first));
        match stray {
            None => Ok(array),
            Some(index) => Err(self.wrong_type(kind).below(&index.to_string())),
        }
    }

    fn string(&mut self) -> Result<String, Fault> {
        if self.value.first() != Some(&b'"') {
            return Err(self.wrong_type("a string"));
        }
        Ok(json::unquote(&self.value))
    }

    fn word<T: Copy>(&mut self, all: &[T], as_str: fn(T) -> &'static str) -> Result<T, Fault> {
        let text = self.string()?;
        all.iter().copied().find(|value| as_str(*value) == text).ok_or_else(|| {
            let allowed: Vec<_> = all.iter().map(|value| as_str(*value)).collect();
            self.fault(Code::WrongValue).because(format!("must be one of {}", allowed.join(", ")))
        })
    }

    fn event_type(&mut self) -> Result<EventType, Fault> {
        let event_type = self.word(EventType::ALL, EventType::as_str)?;
        if event_type.is_reserved() { Err(self.fault(Code::ReservedEventType)) } else { Ok(event_type) }
    }

    fn action_type(&mut self) -> Result<String, Fault> {
        let text = self.string()?;
        if !is_action_type(&text) {
            return Err(self.fault(Code::WrongValue).because("must be 1 to 128 of A-Z a-z 0-9 _ . : / -"));
        }
        let proposable = self.reading != Reading::Append && PROPOSABLE.contains(&text.as_str());
        if is_reserved_action_type(&text) && !proposable {
            return Err(self.fault(Code::ReservedActionType));
        }
        Ok(text)
    }

    fn actor_id(&mut self) -> Result<String, Fault> {
        let text = self.string()?;
        if !is_actor_id(&text) {
            return Err(self
                .fault(Code::WrongValue)
                .because("must be 1 to 256 bytes without control or bidirectional characters"));
        }
        let reserved = text == DAEMON_ACTOR || (text.starts_with("uid:") && self.reading != Reading::Stored);
        if reserved { Err(self.fault(Code::ReservedActorId)) } else { Ok(text) }
    }

    fn actor_context(&mut self) -> Result<String, Fault> {
        let object = self.object()?;
        match json::place_of(&object, "peer") {
            Place::Taken => Err(self.fault(Code::ReservedName).below("peer")),
            Place::Free(_) => Ok(object),
        }
    }

    fn environment(&mut self) -> Result<String, Fault> {
        let object = self.object()?;
        holds_strings(&object, self.at)?;
        for (start, name_end, _) in json::members(&object) {
            let name = json::unquote(&object.as_bytes()[start..name_end]);
            if name.starts_with("attestd.") {
                return Err(self.fault(Code::ReservedName).below(&name));
            }
        }
        Ok(object)
    }

    fn id(&mut self) -> Result<EntryId, Fault> {
        let text = self.string()?;
        EntryId::parse(&text)
            .ok_or_else(|| self.fault(Code::WrongValue).because("must be a UUID of version 4 in lower case"))
    }

    fn ids(&mut self) -> Result<Vec<EntryId>, Fault> {
        let array = self.array_of('"', "a string")?;
        json::elements(&array)
            .enumerate()
            .map(|(index, element)| {
                EntryId::parse(element.trim_matches('"')).ok_or_else(|| {
                    self.fault(Code::WrongValue)
                        .because("must be a UUID of version 4 in lower case")
                        .below(&index.to_string())
                })
            })
            .collect()
    }

    fn sorted_strings(&mut self) -> Result<String, Fault> {
        let array = self.array_of('"', "a string")?;
        let mut names: Vec<String> = json::elements(&array).map(|e| json::unquote(e.as_bytes())).collect();
        names.sort_unstable();
        names.dedup();
        let mut out = vec![b'['];
        for (index, name) in names.iter().enumerate() {
            if index > 0 {
                out.push(b',');
            }
            json::write_string(name, &mut out);
        }
        out.push(b']');
        Ok(json::into_string(out))
    }

    fn boolean(&mut self) -> Result<bool, Fault> {
        match self.value.as_slice() {
            b"true" => Ok(true),
            b"false" => Ok(false),
            _ => Err(self.wrong_type("true or false")),
        }
    }

    fn integer(&mut self) -> Result<i64, Fault> {
        let text = String::from_utf8_lossy(&self.value);
        text.parse().map_err(|_| self.wrong_type("an integer"))
    }

    fn count(&mut self) -> Result<u32, Fault> {
        let value = self.integer()?;
        u32::try_from(value).map_err(|_| self.fault(Code::WrongValue).because("must be 0 to 4294967295"))
    }

    fn severity(&mut self) -> Result<u8, Fault> {
        let value = self.integer()?;
        let severity = u8::try_from(value).ok().filter(|severity| *severity <= MAX_SEVERITY);
        severity.ok_or_else(|| self.fault(Code::WrongValue).because("must be 0 to 10"))
    }

    fn digest_or_null(&mut self) -> Result<Option<Digest>, Fault> {
        if self.value == b"null" {
            return Ok(None);
        }
        let text = self.string()?;
        Digest::from_hex(text.as_bytes())
            .map(Some)
            .ok_or_else(|| self.fault(Code::WrongValue).because("must be 64 lower-case hex digits or null"))
    }

    fn pillars(&mut self) -> Result<Option<Pillars>, Fault> {
        let object = self.object()?;
        parse_pillars(&object).map_err(|code| match code {
            Code::WrongValue => self
                .fault(code)
                .because("each score must be a number from 0 to 10 with at most four decimals"),
            Code::UnknownMember => self.fault(code).because("not one of the four pillars"),
            other => self.fault(other),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = r#"{"event_type":"ACTION","action_type":"a.b","action_payload":{},"execution_status":"SUCCESS","actor_type":"SYSTEM"}"#;

    fn with(extra: &str) -> Result<Draft, Fault> {
        Draft::parse(format!("{},{extra}}}", &MINIMAL[..MINIMAL.len() - 1]).as_bytes())
    }

    #[test]
    fn defaults_are_filled_in() {
        let draft = Draft::parse(MINIMAL.as_bytes()).expect("valid");
        let expected =
            Draft::new(EventType::Action, "a.b", "{}".into(), ExecutionStatus::Success, ActorType::System);
        assert_eq!(draft, expected);
        let severities = [("NORMAL", 0), ("WARNING", 4), ("ERROR", 7), ("CRITICAL", 9)];
        for (category, severity) in severities {
            let draft = with(&format!(r#""event_category":"{category}""#)).expect("valid");
            assert_eq!(draft.severity, severity);
            let draft = with(&format!(r#""severity":1,"event_category":"{category}""#)).expect("valid");
            assert_eq!(draft.severity, 1);
        }
    }

    #[test]
    fn a_draft_reads_back_from_its_canonical_form() {
        let full = with(
            r#""entry_id":"6f1c2a7e-3b4d-4c5e-8f90-112233445566","actor_id":"a","k_state":2,"required_proofs":["b","a"],"pillars_scores":{"an_toan":1,"duong_dai":2,"han_che_rui_ro":3,"tin_vao_so_lieu":4.5}"#,
        );
        for draft in [full.expect("valid"), Draft::parse(MINIMAL.as_bytes()).expect("valid")] {
            let text = draft.to_canonical();
            assert_eq!(json::canonicalize(text.as_bytes()).as_deref(), Ok(text.as_str()));
            assert_eq!(Draft::from_canonical(&text), Ok(draft));
            let shorter = text.replacen(r#""conflicts_detected":[],"#, "", 1);
            assert_eq!(Draft::from_canonical(&shorter).expect_err("not whole").code, Code::NotCanonical);
        }
    }

    #[test]
    fn four_of_the_daemons_actions_can_be_proposed() {
        let request = |action| MINIMAL.replace("a.b", action);
        for action in PROPOSABLE {
            assert_eq!(
                Draft::parse(request(action).as_bytes()).expect_err(action).code,
                Code::ReservedActionType
            );
            assert!(Draft::parse_proposal(request(action).as_bytes()).is_ok(), "{action}");
        }
        for action in ["key.activate", "rules.get", "proposal.open", "system_x"] {
            assert!(Draft::parse_proposal(request(action).as_bytes()).is_err(), "{action}");
        }
        let uid = with(r#""actor_id":"uid:1""#).expect_err("reserved");
        assert_eq!(uid.code, Code::ReservedActorId);
    }

    #[test]
    fn each_needed_member_is_needed() {
        for name in NEEDED {
            let mut value: serde_json::Value = serde_json::from_str(MINIMAL).expect("JSON");
            value.as_object_mut().expect("an object").remove(name);
            let fault = Draft::parse(value.to_string().as_bytes()).expect_err(name);
            assert_eq!((fault.code, fault.pointer), (Code::MissingMember, format!("/{name}")));
        }
    }

    #[test]
    fn each_member_of_the_daemon_is_refused_by_name() {
        for name in DAEMON_MEMBERS {
            let fault = with(&format!(r#""{name}":null"#)).expect_err(name);
            assert_eq!((fault.code, fault.pointer), (Code::DaemonMember, format!("/{name}")));
        }
    }

    #[test]
    fn values_are_refused_with_code_and_place() {
        let cases = [
            (r#""unknown":1"#, Code::UnknownMember, "/unknown"),
            (r#""k_state":1,"k_\u0073tate":1"#, Code::JsonDuplicateName, "/k_state"),
            (r#""event_category":"normal""#, Code::WrongValue, "/event_category"),
            (r#""event_category":7"#, Code::WrongType, "/event_category"),
            (r#""severity":11"#, Code::WrongValue, "/severity"),
            (r#""severity":-1"#, Code::WrongValue, "/severity"),
            (r#""severity":1.5"#, Code::WrongType, "/severity"),
            (r#""severity":null"#, Code::WrongType, "/severity"),
            (r#""entry_id":"6F1C2A7E-3b4d-4c5e-8f90-112233445566""#, Code::WrongValue, "/entry_id"),
            (r#""entry_id":null"#, Code::WrongType, "/entry_id"),
            (r#""actor_id":"uid:0""#, Code::ReservedActorId, "/actor_id"),
            (r#""actor_id":"attestd""#, Code::ReservedActorId, "/actor_id"),
            (r#""actor_id":"a\u202eb""#, Code::WrongValue, "/actor_id"),
            (r#""actor_id":"""#, Code::WrongValue, "/actor_id"),
            (r#""actor_context":{"peer":{}}"#, Code::ReservedName, "/actor_context/peer"),
            (r#""actor_context":{"\u0070eer":{}}"#, Code::ReservedName, "/actor_context/peer"),
            (r#""actor_context":[]"#, Code::WrongType, "/actor_context"),
            (r#""environment":{"attestd.x":"1"}"#, Code::ReservedName, "/environment/attestd.x"),
            (r#""environment":{"x":1}"#, Code::WrongType, "/environment/x"),
            (r#""dependencies":["x"]"#, Code::WrongValue, "/dependencies/0"),
            (r#""dependencies":[1]"#, Code::WrongType, "/dependencies/0"),
            (r#""conflicts_detected":["a",{}]"#, Code::WrongType, "/conflicts_detected/1"),
            (r#""provided_proofs":["a"]"#, Code::WrongType, "/provided_proofs/0"),
            (r#""required_approvals":-1"#, Code::WrongValue, "/required_approvals"),
            (r#""required_proofs":{}"#, Code::WrongType, "/required_proofs"),
            (r#""pillars_scores":{"an_toan":5}"#, Code::PillarsIncomplete, "/pillars_scores"),
            (r#""pillars_scores":{"safety":5}"#, Code::UnknownMember, "/pillars_scores"),
            (r#""result_data":[]"#, Code::WrongType, "/result_data"),
            (r#""rollback_available":"yes""#, Code::WrongType, "/rollback_available"),
            (r#""rollback_snapshot_hash":"AB""#, Code::WrongValue, "/rollback_snapshot_hash"),
            (r#""system_state_snapshot":null"#, Code::WrongType, "/system_state_snapshot"),
            (r#""result_data":{"x":[-0]}"#, Code::JsonNegativeZero, "/result_data/x/0"),
        ];
        for (extra, code, pointer) in cases {
            let fault = with(extra).expect_err(extra);
            assert_eq!((fault.code, fault.pointer.as_str()), (code, pointer), "{extra}: {fault}");
        }
        for (from, to, code) in [
            ("ACTION", "BOOT", Code::ReservedEventType),
            ("ACTION", "SHUTDOWN", Code::ReservedEventType),
            ("a.b", "system_x", Code::ReservedActionType),
            ("a.b", "ledger.genesis", Code::ReservedActionType),
            ("a.b", "a b", Code::WrongValue),
            ("{}", "[]", Code::WrongType),
        ] {
            let fault = Draft::parse(MINIMAL.replacen(from, to, 1).as_bytes()).expect_err(to);
            assert_eq!(fault.code, code, "{to}");
        }
        assert_eq!(Draft::parse(b"[]").expect_err("array").code, Code::WrongType);
        assert_eq!(Draft::parse(b"[").expect_err("cut").code, Code::JsonTruncated);
        assert_eq!(Draft::parse(format!("{MINIMAL}x").as_bytes()).expect_err("x").code, Code::JsonTrailing);
    }

    #[test]
    fn content_is_the_same_in_any_spelling_and_differs_by_any_member() {
        let plain = Draft::parse(MINIMAL.as_bytes()).expect("valid").content_hash();
        assert_eq!(
            with(r#""severity":0.0,"entry_id":"6f1c2a7e-3b4d-4c5e-8f90-112233445566""#)
                .expect("valid")
                .content_hash(),
            plain
        );
        for extra in [
            r#""severity":1"#,
            r#""actor_id":"x""#,
            r#""k_state":2"#,
            r#""result_data":{}"#,
            r#""environment":{"a":"b"}"#,
            r#""required_proofs":["x"]"#,
            r#""rollback_executed":true"#,
            r#""dependencies":["6f1c2a7e-3b4d-4c5e-8f90-112233445566"]"#,
            r#""pillars_scores":{"an_toan":1,"duong_dai":1,"han_che_rui_ro":1,"tin_vao_so_lieu":1}"#,
        ] {
            assert_ne!(with(extra).expect(extra).content_hash(), plain, "{extra}");
        }
    }

    #[test]
    fn required_proofs_are_sorted_without_repeats() {
        let draft = with(r#""required_proofs":["b","a","b"]"#).expect("valid");
        assert_eq!(draft.required_proofs, r#"["a","b"]"#);
    }
}
