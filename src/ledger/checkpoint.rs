//! Checkpoints: the ledger's signed word for how long it is and what it holds, in the form of
//! `c2sp.org/tlog-checkpoint` within `c2sp.org/signed-note`, with ECDSA signatures (type 0x02).
//!
//! ```text
//! example.com/ledger                                origin
//! 20852163                                          tree size
//! CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=      root hash
//!
//! — example.com/ledger wNI9ajBFAiEA…                name, base64(key id ‖ DER signature)
//! ```
//!
//! A note that parses is the one spelling of what it says, byte for byte, so that a note can be
//! compared, stored and signed as text. Parsing says nothing about signatures: [`Note::verify`] does.

use std::fmt;

use base64ct::{Base64, Encoding};

use super::code::Code;
use super::hash::{DIGEST_BYTES, Digest};
use super::key::{KeyId, PublicKey, Signature, is_origin};
use super::merkle::{NodeHash, Root, TreeSize};

/// Bytes of a note at most: sixteen post-quantum cosignatures of 5 kB, which a verifier must
/// expect, and as much room again.
pub const MAX_NOTE_BYTES: usize = 256 * 1024;
/// Signature lines of a note at most. The specification wants 16 to be accepted.
pub const MAX_SIGNATURES: usize = 64;

/// What a checkpoint says: which ledger, how many entries, which root. It is kept as its text,
/// which is what is signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    text: String,
    origin_bytes: usize,
    root: Root,
}

impl Checkpoint {
    /// The checkpoint of `root` in the ledger `origin`.
    ///
    /// # Errors
    /// [`NoteFault::Origin`] or [`NoteFault::EmptyRoot`].
    pub fn new(origin: &str, root: Root) -> Result<Self, NoteFault> {
        if !is_origin(origin) {
            return Err(NoteFault::Origin);
        }
        if root.size == TreeSize::EMPTY && root != Root::EMPTY {
            return Err(NoteFault::EmptyRoot);
        }
        let text = format!("{origin}\n{}\n{}\n", root.size, encode_hash(root.hash));
        Ok(Checkpoint { text, origin_bytes: origin.len(), root })
    }

    /// Reads a note's text: three lines, nothing more. (The specification allows extension lines;
    /// this ledger has none, and nobody would look after what they say.)
    ///
    /// # Errors
    /// When it is not what [`Checkpoint::text`] gives for some checkpoint.
    pub fn parse(text: &str) -> Result<Self, NoteFault> {
        let lines = text.strip_suffix('\n').ok_or(NoteFault::FinalNewline)?;
        let mut lines = lines.split('\n');
        let mut line = || match lines.next() {
            Some("") => Err(NoteFault::BlankLine),
            Some(line) => Ok(line),
            None => Err(NoteFault::MissingLine),
        };
        let (origin, size, hash) = (line()?, line()?, line()?);
        match line() {
            Err(NoteFault::MissingLine) => {}
            Err(fault) => return Err(fault),
            Ok(_) => return Err(NoteFault::ExtensionLine),
        }
        let size = parse_decimal(size).map_err(NoteFault::Size)?;
        let size = TreeSize::new(size).ok_or(NoteFault::Size(DecimalFault::TooLarge))?;
        let hash = decode_hash(hash).ok_or(NoteFault::RootHash)?;
        Checkpoint::new(origin, Root { size, hash })
    }

    /// The text that is signed, with its last newline: at least 49 bytes.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Which ledger.
    #[must_use]
    pub fn origin(&self) -> &str {
        &self.text[..self.origin_bytes]
    }

    /// How many entries, and the root hash of the tree over them.
    #[must_use]
    pub fn root(&self) -> Root {
        self.root
    }
}

/// A checkpoint with its signature lines, of which some are the ledger's own and others may be
/// witnesses'. It is kept as it was received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    note: String,
    checkpoint: Checkpoint,
    lines: Vec<SignatureLine>,
}

/// A line of a note: `— <name> base64(<key id> ‖ <signature>)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignatureLine {
    /// The key's name: not empty, without Unicode spaces and plus signs.
    pub name: String,
    /// Which key, and which kind of signature.
    pub key_id: NoteKeyId,
    /// The signature, of whatever kind; at least one byte.
    pub signature: Vec<u8>,
}

/// The four bytes by which a signed note names a key beside its name: for keys of type 0x02 the first
/// four of SHA-256 of the SPKI DER, and so of [`KeyId`].
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct NoteKeyId(pub [u8; 4]);

impl From<KeyId> for NoteKeyId {
    fn from(KeyId(Digest([a, b, c, d, ..])): KeyId) -> Self {
        NoteKeyId([a, b, c, d])
    }
}

impl fmt::Display for NoteKeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", u32::from_be_bytes(self.0))
    }
}

impl fmt::Debug for NoteKeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NoteKeyId({self})")
    }
}

/// What a note was verified with.
#[derive(Debug, Clone, Copy)]
pub struct Verified<'k> {
    /// The key, one of those that were trusted.
    pub key: &'k PublicKey,
    /// Its signature. In mode `commit` it is also the `hsm_signature` of the entries that the
    /// checkpoint sealed.
    pub signature: Signature,
}

impl Note {
    /// `checkpoint` with the ledger's signature by the key `key`. Whether the signature is that
    /// key's, [`Note::verify`] tells.
    #[must_use]
    pub fn new(checkpoint: Checkpoint, key: KeyId, signature: &Signature) -> Self {
        let line = SignatureLine {
            name: checkpoint.origin().to_owned(),
            key_id: key.into(),
            signature: signature.to_der(),
        };
        let note = format!("{}\n{line}\n", checkpoint.text());
        Note { note, checkpoint, lines: vec![line] }
    }

    /// Reads a signed note that holds a checkpoint. No signature is checked.
    ///
    /// # Errors
    /// When `note` is not the one spelling of a checkpoint of ours with signature lines, or too long.
    pub fn parse(note: &[u8]) -> Result<Self, NoteFault> {
        if note.len() > MAX_NOTE_BYTES {
            return Err(NoteFault::TooLong);
        }
        let note = str::from_utf8(note).map_err(|_| NoteFault::NotUtf8)?;
        if let Some(character) = note.bytes().find(|byte| *byte < b' ' && *byte != b'\n') {
            return Err(NoteFault::ControlCharacter(character));
        }
        if !note.ends_with('\n') {
            return Err(NoteFault::FinalNewline);
        }
        // The last empty line parts the text from the signatures.
        let blank = note.rfind("\n\n").ok_or(NoteFault::NoSignature)?;
        let (text, signatures) = (&note[..=blank], &note[blank + 2..]);
        let checkpoint = Checkpoint::parse(text)?;
        let lines = signatures
            .split_terminator('\n')
            .take(MAX_SIGNATURES + 1)
            .map(|line| SignatureLine::parse(line).ok_or(NoteFault::SignatureLine))
            .collect::<Result<Vec<_>, _>>()?;
        match lines.len() {
            0 => Err(NoteFault::NoSignature),
            1..=MAX_SIGNATURES => Ok(Note { note: note.to_owned(), checkpoint, lines }),
            _ => Err(NoteFault::TooManySignatures),
        }
    }

    /// The note, byte for byte.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.note
    }

    /// What it says, if it is to be believed.
    #[must_use]
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// The signature lines in their order.
    #[must_use]
    pub fn lines(&self) -> &[SignatureLine] {
        &self.lines
    }

    /// Checks the ledger's own signature: there is a line by one of `keys` under the name of the
    /// origin, and every such line verifies. Other lines are not looked at, even where they share the
    /// name or the key id (but not both) with one of these.
    ///
    /// The caller says which origin it expects, and by its choice of `keys` which may have signed a
    /// checkpoint of this size.
    ///
    /// # Errors
    /// [`NoteFault::UnknownKey`], [`NoteFault::DuplicateSignature`], [`NoteFault::SignatureEncoding`] or
    /// [`NoteFault::Signature`].
    pub fn verify<'k>(&self, keys: &'k [PublicKey]) -> Result<Verified<'k>, NoteFault> {
        let mut verified = None;
        let mut seen = Vec::new();
        for line in self.lines.iter().filter(|line| line.name == self.checkpoint.origin()) {
            // Two trusted keys of one key id are next to impossible, but no reason to refuse.
            let mut known = keys.iter().filter(|key| NoteKeyId::from(key.id()) == line.key_id).peekable();
            if known.peek().is_none() {
                continue;
            }
            if seen.contains(&line.key_id) {
                return Err(NoteFault::DuplicateSignature);
            }
            seen.push(line.key_id);
            let signature = Signature::from_der(&line.signature).map_err(NoteFault::SignatureEncoding)?;
            let key = known
                .find(|key| key.verifies(self.checkpoint.text().as_bytes(), &signature))
                .ok_or(NoteFault::Signature)?;
            verified.get_or_insert(Verified { key, signature });
        }
        verified.ok_or(NoteFault::UnknownKey)
    }
}

impl SignatureLine {
    fn parse(line: &str) -> Option<Self> {
        let (name, signature) = line.strip_prefix("— ")?.split_once(' ')?;
        if name.is_empty() || name.contains(|c: char| c.is_whitespace() || c == '+') {
            return None;
        }
        let bytes = decode_base64(signature)?;
        let (key_id, signature) = bytes.split_first_chunk()?;
        (!signature.is_empty()).then(|| SignatureLine {
            name: name.to_owned(),
            key_id: NoteKeyId(*key_id),
            signature: signature.to_vec(),
        })
    }
}

impl fmt::Display for SignatureLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = [&self.key_id.0, self.signature.as_slice()].concat();
        write!(f, "— {} {}", self.name, Base64::encode_string(&bytes))
    }
}

/// Why a note is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoteFault {
    /// Over [`MAX_NOTE_BYTES`].
    #[error("the note is longer than {MAX_NOTE_BYTES} bytes")]
    TooLong,
    /// Not text.
    #[error("the note is not UTF-8")]
    NotUtf8,
    /// A carriage return, a tab, a zero byte or the like.
    #[error("the note has a control character (0x{0:02x})")]
    ControlCharacter(u8),
    /// The last line is not ended.
    #[error("the note doesn't end in a newline")]
    FinalNewline,
    /// Fewer than three lines of text.
    #[error("the checkpoint has fewer than three lines")]
    MissingLine,
    /// An empty line too many.
    #[error("the checkpoint has an empty line")]
    BlankLine,
    /// A fourth line of text.
    #[error("the checkpoint has an extension line")]
    ExtensionLine,
    /// The first line cannot name a ledger.
    #[error("the checkpoint's first line is not an origin")]
    Origin,
    /// The second line is not a size.
    #[error("the tree size {0}")]
    Size(DecimalFault),
    /// The third line is not 32 bytes.
    #[error("the root hash is not 32 bytes of canonical base64")]
    RootHash,
    /// Size 0 has one root.
    #[error("the root hash is not that of an empty tree")]
    EmptyRoot,
    /// No empty line, or nothing after it.
    #[error("the note has no signature line")]
    NoSignature,
    /// A line after the empty line that is not `— <name> <base64>`.
    #[error("a line is not `— <key name> <base64 of key id and signature>`")]
    SignatureLine,
    /// Over [`MAX_SIGNATURES`].
    #[error("the note has more than {MAX_SIGNATURES} signature lines")]
    TooManySignatures,
    /// No line under the origin's name by a trusted key.
    #[error("no signature of the origin is by a trusted key")]
    UnknownKey,
    /// Two lines by one trusted key.
    #[error("a trusted key has two signature lines")]
    DuplicateSignature,
    /// A trusted key's line holds something else than a signature of the right form.
    #[error("a trusted key's signature is malformed: {}", .0.title())]
    SignatureEncoding(Code),
    /// A trusted key's line does not verify.
    #[error("a trusted key's signature doesn't verify")]
    Signature,
}

/// Why text is not a number as checkpoints and receipts write it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecimalFault {
    /// Empty, signed, spaced, or in other digits.
    #[error("is not decimal")]
    NotDecimal,
    /// A leading zero that is not the whole number.
    #[error("has a leading zero")]
    LeadingZero,
    /// 2^63 or more.
    #[error("is over 2^63-1")]
    TooLarge,
}

/// Reads 0 to 2^63−1 without leading zeros.
pub(super) fn parse_decimal(text: &str) -> Result<u64, DecimalFault> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(DecimalFault::NotDecimal);
    }
    if text.len() > 1 && text.starts_with('0') {
        return Err(DecimalFault::LeadingZero);
    }
    match text.parse() {
        Ok(number) if number <= TreeSize::MAX.leaves() => Ok(number),
        _ => Err(DecimalFault::TooLarge),
    }
}

/// The base64 (RFC 4648 §4) of a hash: 44 characters.
pub(super) fn encode_hash(hash: NodeHash) -> String {
    Base64::encode_string(&hash.0.0)
}

/// Reads what [`encode_hash`] gives, and nothing else.
pub(super) fn decode_hash(text: &str) -> Option<NodeHash> {
    let bytes: [u8; DIGEST_BYTES] = decode_base64(text)?.try_into().ok()?;
    Some(NodeHash(Digest(bytes)))
}

/// Padded, and with no bits set that carry nothing.
fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let bytes = Base64::decode_vec(text).ok()?;
    (Base64::encode_string(&bytes) == text).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use p256::ecdsa::{self, SigningKey, signature::Signer};
    use proptest::prelude::*;

    const ORIGIN: &str = "example.com/ledger";
    /// `printf root | openssl dgst -sha256 -binary | base64`
    const ROOT: &str = "SBNJTRN+FjG7owHVrKtue7eqdM4RhdRWVl71HXN2d7I=";

    fn pair(seed: u8) -> (SigningKey, PublicKey) {
        let key = SigningKey::from_slice(&[seed; 32]).expect("in range");
        let public =
            PublicKey::from_sec1(key.verifying_key().to_sec1_point(false).as_bytes()).expect("on the curve");
        (key, public)
    }

    fn sign(key: &SigningKey, text: &str) -> Signature {
        let raw: ecdsa::Signature = key.sign(text.as_bytes());
        Signature::from_token(&raw.to_bytes()).expect("in range")
    }

    fn checkpoint() -> Checkpoint {
        let size = TreeSize::new(70_000).expect("below 2^63");
        Checkpoint::new(ORIGIN, Root { size, hash: NodeHash(Digest::of(b"root")) }).expect("well-formed")
    }

    fn note(seed: u8) -> Note {
        let (key, public) = pair(seed);
        let checkpoint = checkpoint();
        let signature = sign(&key, checkpoint.text());
        Note::new(checkpoint, public.id(), &signature)
    }

    fn line(name: &str, key_id: [u8; 4], signature: &[u8]) -> String {
        let line =
            SignatureLine { name: name.into(), key_id: NoteKeyId(key_id), signature: signature.into() };
        format!("{line}\n")
    }

    #[test]
    fn a_note_is_written_read_and_verified() {
        let (note, (_, key)) = (note(7), pair(7));
        assert_eq!(Note::parse(note.as_str().as_bytes()), Ok(note.clone()));
        let text = format!("example.com/ledger\n70000\n{ROOT}\n");
        assert_eq!(note.checkpoint().text(), text);
        assert!(note.as_str().starts_with(&format!("{text}\n— example.com/ledger ")), "{}", note.as_str());
        assert_eq!(note.checkpoint().origin(), ORIGIN);
        assert_eq!(note.checkpoint().root().size.leaves(), 70_000);
        let keys = [pair(8).1, key];
        let verified = note.verify(&keys).expect("good");
        assert_eq!(verified.key, &keys[1]);
        assert_eq!(verified.signature.to_der(), note.lines()[0].signature);
        assert!(keys[1].id().to_string().starts_with(&note.lines()[0].key_id.to_string()));
    }

    #[test]
    fn sizes_from_none_to_the_largest() {
        let (shortest, max) = (Checkpoint::new("a", Root::EMPTY).expect("well-formed"), TreeSize::MAX);
        assert_eq!(shortest.text().len(), 49);
        assert_eq!(Checkpoint::parse(shortest.text()), Ok(shortest));
        let largest =
            Checkpoint::new("a", Root { size: max, hash: NodeHash::EMPTY_ROOT }).expect("well-formed");
        assert!(largest.text().contains("\n9223372036854775807\n"));
        assert_eq!(Checkpoint::parse(largest.text()), Ok(largest));
        let wrong = Root { size: TreeSize::EMPTY, hash: NodeHash(Digest::ZERO) };
        assert_eq!(Checkpoint::new("a", wrong), Err(NoteFault::EmptyRoot));
        for origin in ["", "a b", "a+b", "attestd-x-v1", "{", "a\nb", "\u{feff}a"] {
            assert_eq!(Checkpoint::new(origin, Root::EMPTY), Err(NoteFault::Origin), "{origin:?}");
        }
    }

    #[test]
    fn every_other_spelling_is_refused_with_its_reason() {
        let good = note(7);
        let text = good.as_str();
        let change = |from: &str, to: &str| {
            assert_eq!(text.matches(from).count(), 1, "{from:?}");
            text.replace(from, to)
        };
        let size = |to: &str| change("\n70000\n", &format!("\n{to}\n"));
        let root = |to: &str| change(ROOT, to);
        let signed = |to: &str| format!("{}\n{to}", good.checkpoint().text());
        let no_names = |name: &str| signed(&line(name, [1; 4], &[1]));
        let empty_root = "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";
        let one = line("a", [1; 4], &[1]);
        use DecimalFault::{LeadingZero, NotDecimal, TooLarge};
        use NoteFault as F;
        let cases: Vec<(&str, String, NoteFault)> = vec![
            ("nothing", String::new(), F::FinalNewline),
            ("missing final newline", text.trim_end().into(), F::FinalNewline),
            ("CRLF", text.replace('\n', "\r\n"), F::ControlCharacter(b'\r')),
            ("a tab", change("\n70000\n", "\n70000\t\n"), F::ControlCharacter(b'\t')),
            ("a zero byte", change("\n70000\n", "\n70000\0\n"), F::ControlCharacter(0)),
            ("extra blank line at the end", format!("{text}\n"), F::BlankLine),
            ("extra blank line before the signatures", change("\n\n", "\n\n\n"), F::BlankLine),
            ("extra blank line in front", format!("\n{text}"), F::BlankLine),
            ("blank line in the text", size("70000\n"), F::BlankLine),
            ("blank line between signatures", format!("{text}\n{one}"), F::BlankLine),
            ("no blank line", change("\n\n", "\n"), F::NoSignature),
            ("no signature", good.checkpoint().text().into(), F::NoSignature),
            ("no signature after the blank line", signed(""), F::NoSignature),
            ("two lines", change("\n70000\n", "\n"), F::MissingLine),
            ("an extension line", change("\n\n", "\nextension\n\n"), F::ExtensionLine),
            ("an extension line before a blank one", change("\n\n", "\nextension\n\n\n"), F::ExtensionLine),
            ("byte order mark", format!("\u{feff}{text}"), F::Origin),
            ("origin of another kind of message", text.replace(ORIGIN, "attestd-x-v1"), F::Origin),
            ("origin with a space", text.replacen(ORIGIN, "example.com ledger", 1), F::Origin),
            ("origin with a plus", text.replacen(ORIGIN, "example.com+ledger", 1), F::Origin),
            ("leading zero", size("070000"), F::Size(LeadingZero)),
            ("two zeros", size("00"), F::Size(LeadingZero)),
            ("negative", size("-1"), F::Size(NotDecimal)),
            ("plus sign", size("+1"), F::Size(NotDecimal)),
            ("hex", size("0x1"), F::Size(NotDecimal)),
            ("space before", size(" 1"), F::Size(NotDecimal)),
            ("space after", size("1 "), F::Size(NotDecimal)),
            ("other digits", size("١"), F::Size(NotDecimal)),
            ("size 2^63", size("9223372036854775808"), F::Size(TooLarge)),
            ("size 2^64", size("18446744073709551616"), F::Size(TooLarge)),
            ("size 0 with a root", size("0"), F::EmptyRoot),
            ("root without padding", root(&ROOT[..43]), F::RootHash),
            ("root with a loose bit", root(&ROOT.replace("I=", "J=")), F::RootHash),
            ("root in the other alphabet", root(&ROOT.replace('+', "-")), F::RootHash),
            ("root of 33 bytes", root(&ROOT.replace('=', "A")), F::RootHash),
            ("root of 31 bytes", root(&ROOT.replace("d7I=", "dw==")), F::RootHash),
            ("root in hex", root(&Digest::of(b"root").to_hex()), F::RootHash),
            ("root with a space", root(&format!("{empty_root} ")), F::RootHash),
            ("a hyphen for the dash", change("— ", "- "), F::SignatureLine),
            ("an en dash", change("— ", "– "), F::SignatureLine),
            ("two spaces", change("— ", "—  "), F::SignatureLine),
            ("no space", change("— ", "—"), F::SignatureLine),
            ("empty name", no_names(""), F::SignatureLine),
            ("name with a plus", no_names("a+b"), F::SignatureLine),
            ("name with a no-break space", no_names("a\u{a0}b"), F::SignatureLine),
            ("name with a line separator", no_names("a\u{2028}b"), F::SignatureLine),
            ("name with a space", no_names("a b"), F::SignatureLine),
            ("no base64", signed("— a\n"), F::SignatureLine),
            ("empty base64", signed("— a \n"), F::SignatureLine),
            ("space at the end", signed("— a AQEBAQE= \n"), F::SignatureLine),
            ("loose bits", signed("— a AQEBAQF=\n"), F::SignatureLine),
            ("no padding", signed("— a AQEBAQE\n"), F::SignatureLine),
            ("key id alone", signed("— a AQEBAQ==\n"), F::SignatureLine),
            ("key id too short", signed("— a AQEB\n"), F::SignatureLine),
            ("text after the signatures", format!("{text}more\n"), F::SignatureLine),
            ("too many signatures", signed(&one.repeat(MAX_SIGNATURES + 1)), F::TooManySignatures),
            ("too long", format!("{text}{}", line("a", [1; 4], &vec![1; MAX_NOTE_BYTES])), F::TooLong),
        ];
        for (name, note, fault) in cases {
            assert_eq!(Note::parse(note.as_bytes()).map(|_| ()), Err(fault), "{name}");
        }
        assert_eq!(Note::parse(b"a\xff\n"), Err(F::NotUtf8));
        // The accepting twins of those made up here.
        for twin in [
            signed("— a AQEBAQE=\n"),
            no_names("ä"),
            size("7"),
            root(empty_root),
            signed(&one.repeat(MAX_SIGNATURES)),
        ] {
            assert_eq!(Note::parse(twin.as_bytes()).expect("well-formed").as_str(), twin);
        }
    }

    #[test]
    fn only_the_ledgers_own_signatures_count_and_all_of_them_do() {
        let (good, other) = (note(7), note(8));
        let (key, other_key) = (pair(7).1, pair(8).1);
        let id = NoteKeyId::from(key.id()).0;
        let der = &good.lines()[0].signature;
        let text = good.checkpoint().text();
        let own = line(ORIGIN, id, der);
        let another = line(ORIGIN, NoteKeyId::from(other_key.id()).0, &other.lines()[0].signature);
        let witness = line("witness.example/w", [9; 4], &[4; 72]);
        let high_s = {
            let (r, s) = ecdsa::Signature::from_der(der).expect("DER").split_scalars();
            ecdsa::Signature::from_scalars(r, -*s).expect("in range").to_der().as_bytes().to_vec()
        };
        let elsewhere = {
            let size = TreeSize::new(1).expect("below 2^63");
            let checkpoint = Checkpoint::new(ORIGIN, Root { size, hash: NodeHash(Digest::of(b"root")) });
            sign(&pair(7).0, checkpoint.expect("well-formed").text()).to_der()
        };
        use NoteFault as F;
        let not_der = Err(F::SignatureEncoding(Code::SignatureEncoding));
        let cases: Vec<(&str, String, Result<(), NoteFault>)> = vec![
            ("own", own.clone(), Ok(())),
            ("own after a witness's", format!("{witness}{own}"), Ok(())),
            ("a witness's twice", format!("{own}{witness}{witness}"), Ok(())),
            ("own and that of a key unknown here", format!("{another}{own}"), Ok(())),
            ("own, and its key id under another name", format!("{own}{}", line("witness", id, &[0])), Ok(())),
            ("own, and its name with another key id", format!("{own}{}", line(ORIGIN, [9; 4], der)), Ok(())),
            ("the witness's alone", witness.clone(), Err(F::UnknownKey)),
            ("wrong key id", line(ORIGIN, [9; 4], der), Err(F::UnknownKey)),
            ("a name that is not the origin", line("example.com/ledger2", id, der), Err(F::UnknownKey)),
            ("own twice", own.repeat(2), Err(F::DuplicateSignature)),
            (
                "own, then a bad one",
                format!("{own}{}", line(ORIGIN, id, &elsewhere)),
                Err(F::DuplicateSignature),
            ),
            ("of another checkpoint", line(ORIGIN, id, &elsewhere), Err(F::Signature)),
            (
                "another key's under this key's id",
                line(ORIGIN, id, &other.lines()[0].signature),
                Err(F::Signature),
            ),
            ("raw for DER", line(ORIGIN, id, &[1; 64]), not_der),
            (
                "DER with a byte too many",
                line(ORIGIN, id, &[der, &[0][..]].concat()),
                Err(F::SignatureEncoding(Code::SignatureEncoding)),
            ),
            ("high S", line(ORIGIN, id, &high_s), Err(F::SignatureEncoding(Code::SignatureHighS))),
        ];
        let keys = [key];
        for (name, lines, expected) in cases {
            let note = Note::parse(format!("{text}\n{lines}").as_bytes()).expect(name);
            assert_eq!(note.verify(&keys).map(|_| ()), expected, "{name}");
        }
        let both = [pair(7).1, other_key];
        let broken = format!("{text}\n{own}{}", line(ORIGIN, NoteKeyId::from(both[1].id()).0, &elsewhere));
        let broken = Note::parse(broken.as_bytes()).expect("well-formed");
        assert!(broken.verify(&keys).is_ok());
        assert_eq!(broken.verify(&both).map(|_| ()), Err(F::Signature), "a known key's line fails");
        assert_eq!(broken.verify(&[]).map(|_| ()), Err(F::UnknownKey));
    }

    proptest! {
        /// What parses is put together again from its parts, byte for byte.
        #[test]
        fn a_note_has_one_spelling(
            at in any::<prop::sample::Index>(),
            cut in 0usize..3,
            put in prop::sample::select(vec!["", "\n", "\n\n", " ", "=", "0", "A", "— ", "\r", "é"]),
        ) {
            let note = note(7).note;
            let mut start = at.index(note.len());
            while !note.is_char_boundary(start) {
                start -= 1;
            }
            let rest: String = note[start..].chars().skip(cut).collect();
            let changed = format!("{}{put}{rest}", &note[..start]);
            if let Ok(note) = Note::parse(changed.as_bytes()) {
                let checkpoint = Checkpoint::new(note.checkpoint().origin(), note.checkpoint().root());
                prop_assert_eq!(&checkpoint, &Ok(note.checkpoint().clone()));
                let lines: String = note.lines().iter().map(|line| format!("{line}\n")).collect();
                prop_assert_eq!(format!("{}\n{lines}", note.checkpoint().text()), changed);
            }
        }
    }
}
