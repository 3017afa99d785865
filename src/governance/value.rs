//! A small tree that both spellings of the rules are read from: TOML, which a person writes, and
//! canonical JSON, which the ledger keeps. It knows where each value stands, so that a message can
//! name the place, and it knows nothing of rules.

use crate::ledger::code::Code;
use crate::ledger::json;

use super::rules::Fault;

/// The largest text of rules. A thousand callers and approvers take less than a third of it.
pub(super) const MAX_BYTES: usize = 1 << 20;

/// A value and the line on which it stands, where lines mean something.
#[derive(Debug)]
pub(super) struct Value {
    pub(super) line: Option<usize>,
    pub(super) kind: Kind,
}

#[derive(Debug)]
pub(super) enum Kind {
    Null,
    Boolean(bool),
    Integer(i64),
    /// The digits as they stand, so that no float is ever made of them.
    Decimal(String),
    Text(String),
    List(Vec<Value>),
    Table(Vec<Member>),
    /// A date, or a number beyond 64 bits, which JSON does not have.
    #[cfg(feature = "daemon")]
    Other(&'static str),
}

#[derive(Debug)]
pub(super) struct Member {
    name: String,
    line: Option<usize>,
    value: Value,
}

impl Value {
    /// Reads canonical JSON.
    pub(super) fn from_canonical(text: &str) -> Result<Self, Fault> {
        if text.len() > MAX_BYTES {
            return Err(Fault::new(Code::EntryTooLarge, "the rules are over 1 MiB"));
        }
        match json::canonicalize(text.as_bytes()) {
            Ok(canonical) if canonical == text => Ok(Value { line: None, kind: canonical_kind(text) }),
            Ok(_) => Err(Fault::new(Code::NotCanonical, "the rules are not in canonical form")),
            Err(fault) => Err(Fault::new(fault.code, &fault.to_string())),
        }
    }

    /// Reads TOML.
    #[cfg(feature = "daemon")]
    pub(super) fn from_toml(text: &str) -> Result<Self, Fault> {
        if text.len() > MAX_BYTES {
            return Err(Fault::new(Code::EntryTooLarge, "the rules are over 1 MiB"));
        }
        let lines = Lines::of(text);
        let table = toml::de::DeTable::parse(text).map_err(|error| {
            let mut fault = Fault::new(Code::Rules, error.message());
            fault.line = error.span().map(|span| lines.at(span.start));
            fault
        })?;
        let line = lines.at(table.span().start);
        Ok(Value { line: Some(line), kind: lines.table(table.get_ref()) })
    }

    pub(super) fn kind_name(&self) -> &'static str {
        match self.kind {
            Kind::Null => "null",
            Kind::Boolean(_) => "a boolean",
            Kind::Integer(_) => "an integer",
            Kind::Decimal(_) => "a number with decimals",
            Kind::Text(_) => "a string",
            Kind::List(_) => "a list",
            Kind::Table(_) => "a table",
            #[cfg(feature = "daemon")]
            Kind::Other(name) => name,
        }
    }
}

fn canonical_kind(text: &str) -> Kind {
    match text.as_bytes().first() {
        Some(b'{') => Kind::Table(
            json::members(text)
                .map(|(start, name_end, end)| Member {
                    name: json::unquote(&text.as_bytes()[start..name_end]),
                    line: None,
                    value: Value { line: None, kind: canonical_kind(&text[name_end + 1..end]) },
                })
                .collect(),
        ),
        Some(b'[') => {
            Kind::List(json::elements(text).map(|e| Value { line: None, kind: canonical_kind(e) }).collect())
        }
        Some(b'"') => Kind::Text(json::unquote(text.as_bytes())),
        Some(b't') => Kind::Boolean(true),
        Some(b'f') => Kind::Boolean(false),
        Some(b'n') | None => Kind::Null,
        Some(_) => text.parse().map_or_else(|_| Kind::Decimal(text.into()), Kind::Integer),
    }
}

/// Where the lines of a text begin.
#[cfg(feature = "daemon")]
struct Lines(Vec<usize>);

#[cfg(feature = "daemon")]
impl Lines {
    fn of(text: &str) -> Self {
        Lines(text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at).collect())
    }

    fn at(&self, offset: usize) -> usize {
        1 + self.0.partition_point(|end| *end < offset)
    }

    fn table(&self, table: &toml::de::DeTable<'_>) -> Kind {
        let members = table.iter().map(|(name, value)| Member {
            name: name.get_ref().to_string(),
            line: Some(self.at(name.span().start)),
            value: self.value(value),
        });
        Kind::Table(members.collect())
    }

    fn value(&self, value: &toml::Spanned<toml::de::DeValue<'_>>) -> Value {
        use toml::de::DeValue;
        let kind = match value.get_ref() {
            DeValue::String(text) => Kind::Text(text.to_string()),
            DeValue::Integer(integer) => i64::from_str_radix(integer.as_str(), integer.radix())
                .map_or(Kind::Other("a number out of range"), Kind::Integer),
            DeValue::Float(float) => Kind::Decimal(float.as_str().to_owned()),
            DeValue::Boolean(boolean) => Kind::Boolean(*boolean),
            DeValue::Datetime(_) => Kind::Other("a date"),
            DeValue::Array(array) => Kind::List(array.iter().map(|element| self.value(element)).collect()),
            DeValue::Table(table) => self.table(table),
        };
        Value { line: Some(self.at(value.span().start)), kind }
    }
}

/// A table that is being read: each member is taken once, and what is left over was unknown.
pub(super) struct Table<'a> {
    pointer: String,
    line: Option<usize>,
    members: &'a [Member],
    taken: Vec<bool>,
}

impl<'a> Table<'a> {
    pub(super) fn of(value: &'a Value, pointer: &str) -> Result<Self, Fault> {
        let Kind::Table(members) = &value.kind else {
            return Err(wrong_kind(value, pointer, "a table"));
        };
        Ok(Table { pointer: pointer.into(), line: value.line, members, taken: vec![false; members.len()] })
    }

    pub(super) fn take(&mut self, name: &str) -> Option<(&'a Value, String)> {
        let index = self.members.iter().position(|member| member.name == name)?;
        self.taken[index] = true;
        Some((&self.members[index].value, format!("{}/{name}", self.pointer)))
    }

    /// A fault about this table as a whole.
    pub(super) fn fault(&self, code: Code, detail: &str) -> Fault {
        Fault::new(code, detail).at(&self.pointer, self.line)
    }

    pub(super) fn need<T>(&self, name: &str, value: Option<T>) -> Result<T, Fault> {
        value.ok_or_else(|| self.fault(Code::Rules, &format!("`{name}` is missing")))
    }

    /// Refuses what was not taken. `known` is named in the message.
    pub(super) fn end(self, known: &str) -> Result<(), Fault> {
        match self.members.iter().zip(&self.taken).find(|(_, taken)| !**taken) {
            None => Ok(()),
            Some((member, _)) => {
                let pointer = format!("{}/{}", self.pointer, member.name);
                let detail = format!("there is no `{}` here; known are {known}", shown(&member.name));
                Err(Fault::new(Code::Rules, &detail).at(&pointer, member.line))
            }
        }
    }

    pub(super) fn text(&mut self, name: &str) -> Result<Option<String>, Fault> {
        self.take(name).map(|(value, pointer)| text(value, &pointer)).transpose()
    }

    pub(super) fn boolean(&mut self, name: &str) -> Result<Option<bool>, Fault> {
        self.take(name)
            .map(|(value, pointer)| match value.kind {
                Kind::Boolean(boolean) => Ok(boolean),
                _ => Err(wrong_kind(value, &pointer, "true or false")),
            })
            .transpose()
    }

    /// An integer from `low` to `high`.
    pub(super) fn integer(&mut self, name: &str, low: u32, high: u32) -> Result<Option<u32>, Fault> {
        self.take(name)
            .map(|(value, pointer)| {
                let Kind::Integer(integer) = value.kind else {
                    return Err(wrong_kind(value, &pointer, "an integer"));
                };
                u32::try_from(integer).ok().filter(|n| (low..=high).contains(n)).ok_or_else(|| {
                    Fault::new(Code::Rules, &format!("must be {low} to {high}, not {integer}"))
                        .at(&pointer, value.line)
                })
            })
            .transpose()
    }

    /// A list, each of its elements read by `read`; empty when it is not there.
    pub(super) fn list<T>(
        &mut self,
        name: &str,
        limit: usize,
        mut read: impl FnMut(&Value, &str) -> Result<T, Fault>,
    ) -> Result<Vec<T>, Fault> {
        let Some((value, pointer)) = self.take(name) else {
            return Ok(Vec::new());
        };
        let Kind::List(elements) = &value.kind else {
            return Err(wrong_kind(value, &pointer, "a list"));
        };
        if elements.len() > limit {
            let detail = format!("at most {limit} are allowed, not {}", elements.len());
            return Err(Fault::new(Code::Rules, &detail).at(&pointer, value.line));
        }
        elements.iter().enumerate().map(|(index, e)| read(e, &format!("{pointer}/{index}"))).collect()
    }
}

pub(super) fn text(value: &Value, pointer: &str) -> Result<String, Fault> {
    match &value.kind {
        Kind::Text(text) => Ok(text.clone()),
        _ => Err(wrong_kind(value, pointer, "a string")),
    }
}

pub(super) fn wrong_kind(value: &Value, pointer: &str, wanted: &str) -> Fault {
    let detail = format!("must be {wanted}, not {}", value.kind_name());
    Fault::new(Code::Rules, &detail).at(pointer, value.line)
}

/// `text` as it may stand in a message: short, and nothing that a terminal would obey.
pub(super) fn shown(text: &str) -> String {
    let mut shown: String = text.chars().take(64).flat_map(char::escape_debug).collect();
    if text.chars().count() > 64 {
        shown.push('…');
    }
    shown
}
