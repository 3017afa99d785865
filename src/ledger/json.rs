//! Strict I-JSON (RFC 7493) in, canonical JSON (RFC 8785) out, in one pass and without a tree.
//!
//! The reader refuses what two programs could understand differently: duplicate names, lone
//! surrogates, noncharacters, invalid UTF-8, `-0`, and numbers that a double cannot carry. What
//! it accepts it writes out in canonical form; it changes spelling, never a value. It knows
//! nothing of the members of an entry: that is [`super::draft`] and [`super::canonical`].
//!
//! ```
//! use attestd::ledger::json::canonicalize;
//! assert_eq!(canonicalize(br#" {"b": 1.50, "a": "\u0041"} "#).unwrap(), r#"{"a":"A","b":1.5}"#);
//! assert_eq!(canonicalize(br#"{"a":1,"\u0061":2}"#).unwrap_err().to_string(),
//!            "a name occurs twice in one object at byte 7 (/a)");
//! ```

use std::cmp::Ordering;
use std::fmt;

use super::code::Code;

/// How deep arrays and objects may be nested, the outermost value being 1. Deep enough for any
/// real event; shallow enough that a recursive reader in any language survives it.
pub const MAX_DEPTH: usize = 32;

/// The largest magnitude of a number: beyond it a double no longer tells neighbours apart.
const MAX_SAFE: f64 = 9_007_199_254_740_991.0;
const MAX_SAFE_DIGITS: &[u8] = b"9007199254740991";

/// 17 significant digits identify every double; more of them would be dropped silently.
const MAX_SIGNIFICANT_DIGITS: usize = 17;

/// What is wrong with a text, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Fault {
    /// The stable code.
    pub code: Code,
    /// Offset in bytes from the start of the text.
    pub at: usize,
    /// RFC 6901 pointer to the place, empty for the whole text.
    pub pointer: String,
    /// What was expected or found, where the code alone does not say it.
    pub detail: Option<String>,
}

impl Fault {
    /// A fault at byte `at`.
    #[must_use]
    pub fn new(code: Code, at: usize) -> Self {
        Fault { code, at, pointer: String::new(), detail: None }
    }

    /// The same fault with an explanation.
    #[must_use]
    pub fn because(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// The same fault, one level further out, below the member or element `token`.
    #[must_use]
    pub fn below(mut self, token: &str) -> Self {
        let escaped = token.replace('~', "~0").replace('/', "~1");
        self.pointer = format!("/{escaped}{}", self.pointer);
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.code.title())?;
        if let Some(detail) = &self.detail {
            write!(f, ": {detail}")?;
        }
        write!(f, " at byte {}", self.at)?;
        if !self.pointer.is_empty() {
            write!(f, " ({})", self.pointer)?;
        }
        Ok(())
    }
}

/// The canonical form of one JSON text.
///
/// # Errors
/// The first [`Fault`] that makes the text something other than I-JSON.
pub fn canonicalize(text: &[u8]) -> Result<String, Fault> {
    let mut reader = Reader::new(text)?;
    let mut out = Vec::with_capacity(text.len());
    reader.value(&mut out, 1)?;
    reader.end()?;
    Ok(into_string(out))
}

/// Canonical output consists of runs of a text that was checked to be UTF-8, of escapes and of
/// encoded characters, so this never takes the lossy path.
pub(crate) fn into_string(out: Vec<u8>) -> String {
    String::from_utf8(out).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())
}

/// One member of an object in the output: where its quoted name and its value lie.
#[derive(Clone, Copy)]
struct Member {
    start: usize,
    name_end: usize,
    end: usize,
    /// Where the name stood in the input, for the message.
    at: usize,
}

/// A reader over one JSON text, which it has checked to be UTF-8.
pub struct Reader<'a> {
    text: &'a [u8],
    pos: usize,
    /// Members of all objects that are open; each object uses the tail from where it began.
    members: Vec<Member>,
    /// Where an object whose members were out of order is put together again.
    scratch: Vec<u8>,
}

impl<'a> Reader<'a> {
    /// A reader at the start of `text`.
    ///
    /// # Errors
    /// When `text` is not UTF-8 or begins with a byte order mark.
    pub fn new(text: &'a [u8]) -> Result<Self, Fault> {
        if let Err(error) = std::str::from_utf8(text) {
            return Err(Fault::new(Code::JsonUtf8, error.valid_up_to()));
        }
        if text.starts_with(b"\xEF\xBB\xBF") {
            return Err(Fault::new(Code::JsonByteOrderMark, 0));
        }
        Ok(Reader { text, pos: 0, members: Vec::new(), scratch: Vec::new() })
    }

    /// The byte offset of the next byte to read.
    #[must_use]
    pub fn position(&self) -> usize {
        self.pos
    }

    /// Goes on `count` bytes, which the caller has looked at.
    pub(super) fn advance(&mut self, count: usize) {
        self.pos += count;
    }

    /// Skips white space and looks at the next byte.
    pub fn peek(&mut self) -> Option<u8> {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.text.get(self.pos) {
            self.pos += 1;
        }
        self.text.get(self.pos).copied()
    }

    /// Takes the punctuation `byte`.
    ///
    /// # Errors
    /// When something else comes next.
    pub fn expect(&mut self, byte: u8) -> Result<(), Fault> {
        if self.take(byte) { Ok(()) } else { Err(self.unexpected(&format!("`{}`", char::from(byte)))) }
    }

    /// Takes the punctuation `byte` if it comes next.
    pub fn take(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.pos += usize::from(found);
        found
    }

    /// Takes the end of the text.
    ///
    /// # Errors
    /// When something other than white space is left.
    pub fn end(&mut self) -> Result<(), Fault> {
        match self.peek() {
            None => Ok(()),
            Some(_) => Err(Fault::new(Code::JsonTrailing, self.pos)),
        }
    }

    /// The fault of finding something other than `wanted` here.
    #[must_use]
    pub fn unexpected(&mut self, wanted: &str) -> Fault {
        match self.peek() {
            None => Fault::new(Code::JsonTruncated, self.pos).because(format!("expected {wanted}")),
            Some(_) => Fault::new(Code::JsonSyntax, self.pos).because(format!("expected {wanted}")),
        }
    }

    /// Reads any value, appending its canonical form to `out`. `depth` is the depth of the value
    /// itself, should it be an array or an object.
    ///
    /// # Errors
    /// The first fault in the value. What was appended by then is of no use.
    pub fn value(&mut self, out: &mut Vec<u8>, depth: usize) -> Result<(), Fault> {
        match self.peek() {
            Some(b'{') => self.object(out, depth),
            Some(b'[') => self.array(out, depth),
            Some(b'"') => self.string(out),
            Some(b'-' | b'0'..=b'9') => self.number(out),
            Some(b't') => self.literal(b"true", out),
            Some(b'f') => self.literal(b"false", out),
            Some(b'n') => self.literal(b"null", out),
            _ => Err(self.unexpected("a value")),
        }
    }

    fn literal(&mut self, word: &[u8], out: &mut Vec<u8>) -> Result<(), Fault> {
        let rest = &self.text[self.pos..];
        if rest.starts_with(word) {
            self.pos += word.len();
            out.extend_from_slice(word);
            return Ok(());
        }
        let code = if word.starts_with(rest) { Code::JsonTruncated } else { Code::JsonSyntax };
        Err(Fault::new(code, self.pos).because("expected a value"))
    }

    fn enter(&self, depth: usize) -> Result<(), Fault> {
        if depth > MAX_DEPTH { Err(Fault::new(Code::JsonDepth, self.pos)) } else { Ok(()) }
    }

    fn array(&mut self, out: &mut Vec<u8>, depth: usize) -> Result<(), Fault> {
        self.enter(depth)?;
        self.expect(b'[')?;
        out.push(b'[');
        if !self.take(b']') {
            let mut index = 0usize;
            loop {
                self.value(out, depth + 1).map_err(|f| f.below(&index.to_string()))?;
                if self.take(b']') {
                    break;
                }
                if !self.take(b',') {
                    return Err(self.unexpected("`,` or `]`"));
                }
                out.push(b',');
                index += 1;
            }
        }
        out.push(b']');
        Ok(())
    }

    /// Reads an object, appending its canonical form: members sorted by the UTF-16 code units of
    /// their names (RFC 8785 §3.2.3).
    ///
    /// # Errors
    /// As [`Reader::value`].
    pub fn object(&mut self, out: &mut Vec<u8>, depth: usize) -> Result<(), Fault> {
        self.enter(depth)?;
        self.expect(b'{')?;
        let first = self.members.len();
        let result = self.object_members(out, depth, first);
        self.members.truncate(first);
        result
    }

    fn object_members(&mut self, out: &mut Vec<u8>, depth: usize, first: usize) -> Result<(), Fault> {
        out.push(b'{');
        let body = out.len();
        let mut in_order = true;
        if !self.take(b'}') {
            loop {
                let start = out.len();
                if self.peek() != Some(b'"') {
                    return Err(self.unexpected("a name in quotes"));
                }
                let at = self.pos;
                self.string(out)?;
                let name_end = out.len();
                self.expect(b':')?;
                out.push(b':');
                if let Err(fault) = self.value(out, depth + 1) {
                    return Err(fault.below(&unquote(&out[start..name_end])));
                }
                let member = Member { start, name_end, end: out.len(), at };
                if let Some(last) = self.members[first..].last() {
                    in_order &= name_order(out, last, &member) == Ordering::Less;
                }
                self.members.push(member);
                if self.take(b'}') {
                    break;
                }
                if !self.take(b',') {
                    return Err(self.unexpected("`,` or `}`"));
                }
                out.push(b',');
            }
        }
        if !in_order {
            self.sort_members(out, body, first)?;
        }
        out.push(b'}');
        Ok(())
    }

    fn sort_members(&mut self, out: &mut Vec<u8>, body: usize, first: usize) -> Result<(), Fault> {
        let members = &mut self.members[first..];
        members.sort_by(|a, b| name_order(out, a, b));
        if let Some(pair) = members.windows(2).find(|pair| name_order(out, &pair[0], &pair[1]).is_eq()) {
            let name = unquote(&out[pair[1].start..pair[1].name_end]);
            return Err(Fault::new(Code::JsonDuplicateName, pair[0].at.max(pair[1].at)).below(&name));
        }
        self.scratch.clear();
        for (index, member) in members.iter().enumerate() {
            if index > 0 {
                self.scratch.push(b',');
            }
            self.scratch.extend_from_slice(&out[member.start..member.end]);
        }
        out.truncate(body);
        out.extend_from_slice(&self.scratch);
        Ok(())
    }

    /// Reads a string, appending its canonical form, quotes included.
    ///
    /// # Errors
    /// As [`Reader::value`]; also when something other than a string comes next.
    pub fn string(&mut self, out: &mut Vec<u8>) -> Result<(), Fault> {
        self.expect(b'"')?;
        out.push(b'"');
        let mut run = self.pos;
        loop {
            match self.text.get(self.pos) {
                Some(b'"') => {
                    out.extend_from_slice(&self.text[run..self.pos]);
                    out.push(b'"');
                    self.pos += 1;
                    return Ok(());
                }
                Some(b'\\') => {
                    out.extend_from_slice(&self.text[run..self.pos]);
                    self.escape(out)?;
                    run = self.pos;
                }
                Some(0..=0x1F) => {
                    return Err(Fault::new(Code::JsonSyntax, self.pos)
                        .because("a control character in a string must be escaped"));
                }
                Some(0xEF..) => self.pos += self.upper_planes()?,
                Some(_) => self.pos += 1,
                None => {
                    return Err(Fault::new(Code::JsonTruncated, self.pos).because("a string is not closed"));
                }
            }
        }
    }

    /// Noncharacters live in U+FDD0..U+FDEF and in the last two places of every plane, all of
    /// which have a lead byte of 0xEF or more.
    fn upper_planes(&self) -> Result<usize, Fault> {
        let rest = &self.text[self.pos..];
        let bad = match *rest {
            [0xEF, 0xB7, 0x90..=0xAF, ..] | [0xEF, 0xBF, 0xBE | 0xBF, ..] => true,
            [0xF0..=0xF4, second, 0xBF, 0xBE | 0xBF, ..] => second & 0x0F == 0x0F,
            _ => false,
        };
        if bad {
            return Err(Fault::new(Code::JsonNoncharacter, self.pos));
        }
        Ok(if rest[0] == 0xEF { 3 } else { 4 })
    }

    fn escape(&mut self, out: &mut Vec<u8>) -> Result<(), Fault> {
        let at = self.pos;
        self.pos += 2;
        let plain = match self.text.get(at + 1) {
            Some(b'"') => '"',
            Some(b'\\') => '\\',
            Some(b'/') => '/',
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{C}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => self.unicode_escape(at)?,
            Some(_) => return Err(Fault::new(Code::JsonSyntax, at).because("no such escape")),
            None => return Err(Fault::new(Code::JsonTruncated, at).because("a string is not closed")),
        };
        write_char(plain, out);
        Ok(())
    }

    fn unicode_escape(&mut self, at: usize) -> Result<char, Fault> {
        let unit = self.code_unit(at)?;
        let code_point = match unit {
            0xD800..=0xDBFF => {
                if !self.text[self.pos..].starts_with(b"\\u") {
                    return Err(Fault::new(Code::JsonLoneSurrogate, at));
                }
                self.pos += 2;
                let low = self.code_unit(at)?;
                if !(0xDC00..=0xDFFF).contains(&low) {
                    return Err(Fault::new(Code::JsonLoneSurrogate, at));
                }
                0x1_0000 + ((unit - 0xD800) << 10) + (low - 0xDC00)
            }
            _ => unit,
        };
        let character = char::from_u32(code_point).ok_or_else(|| Fault::new(Code::JsonLoneSurrogate, at))?;
        if code_point & 0xFFFE == 0xFFFE || (0xFDD0..=0xFDEF).contains(&code_point) {
            return Err(Fault::new(Code::JsonNoncharacter, at));
        }
        Ok(character)
    }

    fn code_unit(&mut self, at: usize) -> Result<u32, Fault> {
        let mut unit = 0;
        for _ in 0..4 {
            let digit = match self.text.get(self.pos) {
                Some(byte) => char::from(*byte).to_digit(16),
                None => return Err(Fault::new(Code::JsonTruncated, at).because("a string is not closed")),
            };
            let Some(digit) = digit else {
                return Err(Fault::new(Code::JsonSyntax, at).because("\\u wants four hex digits"));
            };
            unit = unit << 4 | digit;
            self.pos += 1;
        }
        Ok(unit)
    }

    /// Reads a number, appending its canonical form (RFC 8785 §3.2.2.3, ECMAScript's
    /// `Number::toString`).
    ///
    /// # Errors
    /// As [`Reader::value`]; also when something other than a number comes next.
    pub fn number(&mut self, out: &mut Vec<u8>) -> Result<(), Fault> {
        self.peek();
        let start = self.pos;
        let negative = self.take_here(b'-');
        let whole = self.digits();
        if whole == 0 {
            return Err(self.unexpected("a digit"));
        }
        if whole > 1 && self.text[self.pos - whole] == b'0' {
            return Err(Fault::new(Code::JsonSyntax, start).because("a number must not begin with 0"));
        }
        let mut plain_integer = true;
        if self.take_here(b'.') {
            plain_integer = false;
            if self.digits() == 0 {
                return Err(self.unexpected("a digit after the decimal point"));
            }
        }
        if self.take_here(b'e') || self.take_here(b'E') {
            plain_integer = false;
            let _sign = self.take_here(b'+') || self.take_here(b'-');
            if self.digits() == 0 {
                return Err(self.unexpected("a digit in the exponent"));
            }
        }
        let literal = &self.text[start..self.pos];
        // Up to 15 digits are exact as they stand; a lone zero must have no sign.
        if plain_integer && whole <= 15 && literal != b"-0" {
            out.extend_from_slice(literal);
            return Ok(());
        }
        write_double(literal, negative, out).map_err(|code| Fault::new(code, start))
    }

    fn take_here(&mut self, byte: u8) -> bool {
        let found = self.text.get(self.pos) == Some(&byte);
        self.pos += usize::from(found);
        found
    }

    fn digits(&mut self) -> usize {
        let start = self.pos;
        while let Some(b'0'..=b'9') = self.text.get(self.pos) {
            self.pos += 1;
        }
        self.pos - start
    }
}

fn write_double(literal: &[u8], negative: bool, out: &mut Vec<u8>) -> Result<(), Code> {
    let mantissa = literal.split(|b| matches!(b, b'e' | b'E')).next().unwrap_or(literal);
    let significant: Vec<u8> =
        mantissa.iter().copied().filter(u8::is_ascii_digit).skip_while(|b| *b == b'0').collect();
    let trailing = significant.iter().rev().take_while(|b| **b == b'0').count();
    let significant = &significant[..significant.len() - trailing];
    let value: f64 =
        std::str::from_utf8(literal).ok().and_then(|t| t.parse().ok()).ok_or(Code::JsonSyntax)?;
    let magnitude = value.abs();
    if magnitude > MAX_SAFE || (magnitude == MAX_SAFE && significant != MAX_SAFE_DIGITS) {
        return Err(Code::JsonNumberRange);
    }
    if significant.is_empty() && negative {
        return Err(Code::JsonNegativeZero);
    }
    if significant.len() > MAX_SIGNIFICANT_DIGITS {
        return Err(Code::JsonNumberDigits);
    }
    if magnitude == 0.0 && !significant.is_empty() {
        return Err(Code::JsonNumberUnderflow);
    }
    out.extend_from_slice(ryu_js::Buffer::new().format_finite(value).as_bytes());
    Ok(())
}

/// The canonical JSON string of `text`.
#[must_use]
pub fn quoted(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len() + 2);
    write_string(text, &mut out);
    into_string(out)
}

/// Appends the canonical quoted form of `text`.
pub fn write_string(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    if text.bytes().all(|b| b >= 0x20 && b != b'"' && b != b'\\') {
        out.extend_from_slice(text.as_bytes());
    } else {
        for character in text.chars() {
            write_char(character, out);
        }
    }
    out.push(b'"');
}

/// Appends a character as it stands inside a canonical string (RFC 8785 §3.2.2.2).
fn write_char(character: char, out: &mut Vec<u8>) {
    let short = match character {
        '"' => b'"',
        '\\' => b'\\',
        '\u{8}' => b'b',
        '\u{C}' => b'f',
        '\n' => b'n',
        '\r' => b'r',
        '\t' => b't',
        '\0'..='\u{1F}' => {
            out.extend_from_slice(format!("\\u{:04x}", u32::from(character)).as_bytes());
            return;
        }
        _ => {
            out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
            return;
        }
    };
    out.extend_from_slice(&[b'\\', short]);
}

/// The characters of a canonical quoted string.
#[must_use]
pub fn unquote(quoted: &[u8]) -> String {
    let inner = quoted.strip_prefix(b"\"").and_then(|q| q.strip_suffix(b"\"")).unwrap_or(quoted);
    let inner = String::from_utf8_lossy(inner);
    if !inner.contains('\\') {
        return inner.into_owned();
    }
    let mut plain = String::with_capacity(inner.len());
    let mut rest = inner.chars();
    while let Some(character) = rest.next() {
        if character != '\\' {
            plain.push(character);
            continue;
        }
        match rest.next() {
            Some('b') => plain.push('\u{8}'),
            Some('f') => plain.push('\u{C}'),
            Some('n') => plain.push('\n'),
            Some('r') => plain.push('\r'),
            Some('t') => plain.push('\t'),
            Some('u') => {
                let digits: String = rest.by_ref().take(4).collect();
                plain.extend(u32::from_str_radix(&digits, 16).ok().and_then(char::from_u32));
            }
            Some(other) => plain.push(other),
            None => {}
        }
    }
    plain
}

fn name_order(out: &[u8], a: &Member, b: &Member) -> Ordering {
    quoted_order(&out[a.start..a.name_end], &out[b.start..b.name_end])
}

/// Compares two canonical quoted names by the UTF-16 code units of what they stand for.
fn quoted_order(a: &[u8], b: &[u8]) -> Ordering {
    // Bytes order as UTF-16 does unless there are escapes, or characters beyond the surrogates
    // (lead byte 0xEE and up), which UTF-16 sorts after the supplementary planes' surrogates.
    let plain = |name: &[u8]| name.iter().all(|b| *b < 0xEE && *b != b'\\');
    if plain(a) && plain(b) {
        return a[1..a.len() - 1].cmp(&b[1..b.len() - 1]);
    }
    unquote(a).encode_utf16().cmp(unquote(b).encode_utf16())
}

/// A place in a canonical object where a member could stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// There is a member of that name.
    Taken,
    /// Byte offset at which the member would be inserted: after `{`, after a member or before one.
    Free(usize),
}

/// Where the member `name` (free of escapes, ASCII) stands or would stand in `object`, the
/// canonical form of an object.
#[must_use]
pub fn place_of(object: &str, name: &str) -> Place {
    let quoted = format!("\"{name}\"");
    for (start, name_end, _) in members(object) {
        match quoted_order(&object.as_bytes()[start..name_end], quoted.as_bytes()) {
            Ordering::Less => {}
            Ordering::Equal => return Place::Taken,
            Ordering::Greater => return Place::Free(start),
        }
    }
    Place::Free(object.len() - 1)
}

/// Inserts canonical `members` text (without braces) into a canonical object at `at`, which
/// [`place_of`] gave.
#[must_use]
pub fn insert_members(object: &str, at: usize, members: &str) -> String {
    let (before, after) = object.split_at(at);
    let lead = if before == "{" {
        ""
    } else if after == "}" {
        ","
    } else {
        ""
    };
    let trail = if after == "}" { "" } else { "," };
    format!("{before}{lead}{members}{trail}{after}")
}

/// The members of a canonical object as byte offsets `(start, end of the quoted name, end)`.
pub fn members(object: &str) -> impl Iterator<Item = (usize, usize, usize)> + '_ {
    let text = object.as_bytes();
    let mut pos = 1;
    std::iter::from_fn(move || {
        if text.get(pos) == Some(&b',') {
            pos += 1;
        }
        if text.get(pos) != Some(&b'"') {
            return None;
        }
        let start = pos;
        let name_end = skip_string(text, start);
        pos = skip_value(text, name_end + 1);
        Some((start, name_end, pos))
    })
}

/// The canonical text of the member `name` of the canonical `object`.
#[must_use]
pub fn member<'a>(object: &'a str, name: &str) -> Option<&'a str> {
    members(object)
        .find(|(start, name_end, _)| unquote(&object.as_bytes()[*start..*name_end]) == name)
        .map(|(_, name_end, end)| &object[name_end + 1..end])
}

/// The elements of a canonical array, as canonical text.
pub fn elements(array: &str) -> impl Iterator<Item = &str> + '_ {
    let text = array.as_bytes();
    let mut pos = 1;
    std::iter::from_fn(move || {
        if matches!(text.get(pos), None | Some(b']')) {
            return None;
        }
        let start = pos;
        let end = skip_value(text, start);
        pos = end + 1;
        array.get(start..end)
    })
}

fn skip_string(text: &[u8], start: usize) -> usize {
    let mut pos = start + 1;
    while let Some(byte) = text.get(pos) {
        match byte {
            b'"' => return pos + 1,
            b'\\' => pos += 2,
            _ => pos += 1,
        }
    }
    text.len()
}

/// The end of the value that begins at `pos` of a canonical text.
fn skip_value(text: &[u8], mut pos: usize) -> usize {
    let mut depth = 0usize;
    while let Some(byte) = text.get(pos) {
        match byte {
            b'"' => {
                pos = skip_string(text, pos);
                if depth == 0 {
                    return pos;
                }
                continue;
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' if depth == 0 => return pos,
            b'}' | b']' => {
                depth -= 1;
                if depth == 0 {
                    return pos + 1;
                }
            }
            b',' if depth == 0 => return pos,
            _ => {}
        }
        pos += 1;
    }
    pos
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(text: &[u8]) -> Code {
        canonicalize(text).expect_err(&String::from_utf8_lossy(text)).code
    }

    #[test]
    fn faults_have_their_own_codes() {
        let cases: &[(&[u8], Code)] = &[
            (b"", Code::JsonTruncated),
            (b"{", Code::JsonTruncated),
            (b"{\"a\":", Code::JsonTruncated),
            (b"\"abc", Code::JsonTruncated),
            (b"tru", Code::JsonTruncated),
            (b"trux", Code::JsonSyntax),
            (b"{a:1}", Code::JsonSyntax),
            (b"[1,]", Code::JsonSyntax),
            (b"{\"a\":1,}", Code::JsonSyntax),
            (b"01", Code::JsonSyntax),
            (b"+1", Code::JsonSyntax),
            (b".5", Code::JsonSyntax),
            (b"1.", Code::JsonTruncated),
            (b"1.e5", Code::JsonSyntax),
            (b"NaN", Code::JsonSyntax),
            (b"'a'", Code::JsonSyntax),
            (b"\"\x01\"", Code::JsonSyntax),
            (b"\"\\x41\"", Code::JsonSyntax),
            (b"\"\\u00g0\"", Code::JsonSyntax),
            (b"1 2", Code::JsonTrailing),
            (b"{}}", Code::JsonTrailing),
            (b"\"\xff\"", Code::JsonUtf8),
            (b"\"\xed\xa0\x80\"", Code::JsonUtf8),
            (b"\xef\xbb\xbf{}", Code::JsonByteOrderMark),
            (b"{\"a\":1,\"a\":1}", Code::JsonDuplicateName),
            (b"{\"b\":0,\"a\":1,\"\\u0061\":1}", Code::JsonDuplicateName),
            (b"{\"x\":{\"a\":1,\"b\":2,\"a\":1}}", Code::JsonDuplicateName),
            (b"\"\\ud800\"", Code::JsonLoneSurrogate),
            (b"\"\\udc00\"", Code::JsonLoneSurrogate),
            (b"\"\\ud800\\u0041\"", Code::JsonLoneSurrogate),
            (b"\"\\ud800x\"", Code::JsonLoneSurrogate),
            (b"\"\\ufffe\"", Code::JsonNoncharacter),
            (b"\"\\uffff\"", Code::JsonNoncharacter),
            (b"\"\\ufdd0\"", Code::JsonNoncharacter),
            (b"\"\\ud83f\\udffe\"", Code::JsonNoncharacter),
            ("\"\u{FDEF}\"".as_bytes(), Code::JsonNoncharacter),
            ("\"\u{FFFF}\"".as_bytes(), Code::JsonNoncharacter),
            ("\"\u{1FFFE}\"".as_bytes(), Code::JsonNoncharacter),
            ("\"\u{10FFFF}\"".as_bytes(), Code::JsonNoncharacter),
            (b"9007199254740992", Code::JsonNumberRange),
            (b"-9007199254740992", Code::JsonNumberRange),
            (b"9007199254740993", Code::JsonNumberRange),
            (b"9007199254740991.4", Code::JsonNumberRange),
            (b"9.007199254740992e15", Code::JsonNumberRange),
            (b"1e16", Code::JsonNumberRange),
            (b"1e400", Code::JsonNumberRange),
            (b"-0", Code::JsonNegativeZero),
            (b"-0.0", Code::JsonNegativeZero),
            (b"-0e9", Code::JsonNegativeZero),
            (b"1e-400", Code::JsonNumberUnderflow),
            (b"-1e-400", Code::JsonNumberUnderflow),
            (b"0.123456789012345678", Code::JsonNumberDigits),
            (b"1.00000000000000000001", Code::JsonNumberDigits),
        ];
        for (text, expected) in cases {
            assert_eq!(code(text), *expected, "{}", String::from_utf8_lossy(text));
        }
    }

    #[test]
    fn what_is_allowed_is_only_respelled() {
        let cases = [
            (" [ 1 , 2 ] ", "[1,2]"),
            ("1.0", "1"),
            ("1e2", "100"),
            ("0.0", "0"),
            ("0e5", "0"),
            ("1E-7", "1e-7"),
            ("0.000001", "0.000001"),
            ("5e-324", "5e-324"),
            ("9007199254740991", "9007199254740991"),
            ("-9007199254740991.000", "-9007199254740991"),
            ("1.5000000000000000000000", "1.5"),
            ("0.30000000000000004", "0.30000000000000004"),
            (r#""\u20ac\/\u000f\n\"\\\ud83d\ude00""#, "\"€/\\u000f\\n\\\"\\\\😀\""),
            (r#"{"b":[],"a":{}}"#, r#"{"a":{},"b":[]}"#),
            ("\"\u{7f}\u{2028}\u{FFFD}\"", "\"\u{7f}\u{2028}\u{FFFD}\""),
        ];
        for (text, expected) in cases {
            assert_eq!(canonicalize(text.as_bytes()).expect(text), expected);
            assert_eq!(canonicalize(expected.as_bytes()).expect(expected), expected);
        }
    }

    /// RFC 8785 §3.2.3: a supplementary character sorts before U+FB33, unlike in UTF-8.
    #[test]
    fn names_sort_by_utf16_code_units() {
        let text = r#"{"\u20ac":"Euro Sign","\r":"Carriage Return","\ufb33":"Hebrew Letter Dalet With Dagesh","1":"One","\ud83d\ude00":"Emoji: Grinning Face","\u0080":"Control","\u00f6":"Latin Small Letter O With Diaeresis"}"#;
        let canonical = canonicalize(text.as_bytes()).expect("valid");
        let order = ["Carriage", "One", "Control", "Latin", "Euro", "Emoji", "Hebrew"];
        let places: Vec<_> = order.iter().map(|word| canonical.find(word).expect("kept")).collect();
        assert!(places.is_sorted(), "{canonical}");
    }

    #[test]
    fn depth_is_counted_from_the_outermost_value() {
        let nested = |depth: usize| [vec![b'['; depth], vec![b']'; depth]].concat();
        assert!(canonicalize(&nested(MAX_DEPTH)).is_ok());
        assert_eq!(code(&nested(MAX_DEPTH + 1)), Code::JsonDepth);
        assert_eq!(code(&vec![b'['; 1_000_000]), Code::JsonDepth);
    }

    #[test]
    fn the_pointer_names_the_place() {
        let fault = canonicalize(br#"{"a":[0,{"b/c~d":-0}]}"#).expect_err("negative zero");
        assert_eq!((fault.pointer.as_str(), fault.at), ("/a/1/b~1c~0d", 17));
    }

    #[test]
    fn elements_are_found() {
        let found: Vec<_> = elements(r#"[1,"a,]",[2,[3]],{"x":"}"},null]"#).collect();
        assert_eq!(found, ["1", "\"a,]\"", "[2,[3]]", "{\"x\":\"}\"}", "null"]);
        assert_eq!(elements("[]").count(), 0);
    }

    #[test]
    fn members_are_found_and_inserted_in_order() {
        let object = r#"{"a":"}\"","c":{"x":[1,2]},"e":3}"#;
        assert_eq!(member(object, "c"), Some(r#"{"x":[1,2]}"#));
        assert_eq!(member(object, "a"), Some(r#""}\"""#));
        assert_eq!(member(object, "x"), None);
        assert_eq!(place_of(object, "c"), Place::Taken);
        for (name, object) in [("b", object), ("0", object), ("z", object), ("peer", "{}")] {
            let Place::Free(at) = place_of(object, name) else { panic!("{name} is free") };
            let extended = insert_members(object, at, &format!("\"{name}\":null"));
            assert_eq!(canonicalize(extended.as_bytes()).expect("valid"), extended);
            assert_eq!(member(&extended, name), Some("null"));
        }
    }
}
