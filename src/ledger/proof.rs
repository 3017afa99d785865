//! Receipts: that an entry is in the ledger, in a file that verifies alone, in the form of
//! `c2sp.org/tlog-proof@v1`.
//!
//! ```text
//! c2sp.org/tlog-proof@v1
//! index 73894                                       the entry's sequence number
//! gSKyXoYZUgZ6jduWYrkDOARinOMGJveXjgMkBTcdPlQ=      its path: the leaf's sibling first,
//! B95lDa8R83lS8n0eG+o0buTxRKQTYFi//1U8anccXmA=      the root's child last
//!
//! example.com/ledger                                the checkpoint, as it is
//! …
//! ```
//!
//! A receipt shows that an entry's hash is under the checkpoint's root, and who signed that. It
//! does not look at the entry itself: that its bytes have this hash is for the caller to check.

use std::fmt;

use super::checkpoint::{
    Checkpoint, DecimalFault, MAX_NOTE_BYTES, Note, NoteFault, Verified, decode_hash, encode_hash,
    parse_decimal,
};
use super::entry::Sequence;
use super::hash::Digest;
use super::key::PublicKey;
use super::merkle::{NodeHash, PathFault, check_inclusion_length, verify_inclusion};

/// The first line, which names the format.
pub const FORMAT: &str = "c2sp.org/tlog-proof@v1";
/// Hashes of a path at most: what 2^63−1 leaves need.
const MAX_PATH: usize = 63;
/// Bytes of a receipt at most: the longest path and note, each hash 45 bytes with its newline.
pub const MAX_RECEIPT_BYTES: usize = 64 + MAX_PATH * 45 + MAX_NOTE_BYTES;

/// A receipt whose path is as long as its index and checkpoint demand. Nothing in it was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    sequence: Sequence,
    path: Vec<NodeHash>,
    note: Note,
}

impl Receipt {
    /// The receipt of entry `sequence` by its path in the tree of the checkpoint.
    ///
    /// # Errors
    /// [`ReceiptFault::Path`] when the entry is not below the checkpoint's size, or the path is too
    /// short or too long.
    pub fn new(sequence: Sequence, path: Vec<NodeHash>, note: Note) -> Result<Self, ReceiptFault> {
        check_inclusion_length(sequence.0, note.checkpoint().root().size, path.len())?;
        Ok(Receipt { sequence, path, note })
    }

    /// Reads exactly what `to_string` gives.
    ///
    /// # Errors
    /// When `receipt` is anything else. A receipt with an `extra` line is refused by that name: the
    /// line is nobody's word, and this ledger's receipts need none.
    pub fn parse(receipt: &[u8]) -> Result<Self, ReceiptFault> {
        if receipt.len() > MAX_RECEIPT_BYTES {
            return Err(ReceiptFault::TooLong);
        }
        let mut rest = str::from_utf8(receipt).map_err(|_| ReceiptFault::NotUtf8)?;
        let mut line = || {
            let (line, after) = rest.split_once('\n').ok_or(ReceiptFault::NoCheckpoint)?;
            rest = after;
            Ok::<_, ReceiptFault>(line)
        };
        if line() != Ok(FORMAT) {
            return Err(ReceiptFault::Format);
        }
        let index = line()?;
        if index.starts_with("extra") {
            return Err(ReceiptFault::Extra);
        }
        let index = index.strip_prefix("index ").ok_or(ReceiptFault::NoIndex)?;
        let sequence = Sequence(parse_decimal(index).map_err(ReceiptFault::Index)?);
        let mut path = Vec::new();
        loop {
            match line()? {
                "" => break,
                _ if path.len() == MAX_PATH => return Err(ReceiptFault::PathTooLong),
                hash => path.push(decode_hash(hash).ok_or(ReceiptFault::Hash { number: path.len() + 1 })?),
            }
        }
        Self::new(sequence, path, Note::parse(rest.as_bytes())?)
    }

    /// Which entry it is of.
    #[must_use]
    pub fn sequence(&self) -> Sequence {
        self.sequence
    }

    /// From the leaf's sibling to the root's child.
    #[must_use]
    pub fn path(&self) -> &[NodeHash] {
        &self.path
    }

    /// The signed checkpoint.
    #[must_use]
    pub fn note(&self) -> &Note {
        &self.note
    }

    /// What the note says, if it is to be believed.
    #[must_use]
    pub fn checkpoint(&self) -> &Checkpoint {
        self.note.checkpoint()
    }

    /// Checks that entry `sequence` with this `entry_hash` is in the tree of the checkpoint, and that
    /// one of `keys` signed that (see [`Note::verify`]). The origin is the caller's to compare.
    ///
    /// # Errors
    /// When any of that does not hold.
    pub fn verify<'k>(
        &self,
        sequence: Sequence,
        entry_hash: Digest,
        keys: &'k [PublicKey],
    ) -> Result<Verified<'k>, ReceiptFault> {
        if sequence != self.sequence {
            return Err(ReceiptFault::AnotherEntry { expected: sequence, found: self.sequence });
        }
        let verified = self.note.verify(keys)?;
        verify_inclusion(entry_hash, self.sequence.0, &self.path, &self.checkpoint().root())?;
        Ok(verified)
    }
}

impl fmt::Display for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{FORMAT}\nindex {}\n", self.sequence)?;
        for hash in &self.path {
            writeln!(f, "{}", encode_hash(*hash))?;
        }
        write!(f, "\n{}", self.note.as_str())
    }
}

/// Why a receipt is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReceiptFault {
    /// Over [`MAX_RECEIPT_BYTES`].
    #[error("the receipt is longer than {MAX_RECEIPT_BYTES} bytes")]
    TooLong,
    /// Not text.
    #[error("the receipt is not UTF-8")]
    NotUtf8,
    /// Not this format or not this version of it.
    #[error("the first line is not `{FORMAT}`")]
    Format,
    /// There is an `extra` line.
    #[error("the receipt has an `extra` line, which nothing vouches for")]
    Extra,
    /// The second line is not the index.
    #[error("the second line is not `index <number>`")]
    NoIndex,
    /// The index is not a number.
    #[error("the index {0}")]
    Index(DecimalFault),
    /// A line of the path is not a hash.
    #[error("hash {number} of the path is not 32 bytes of canonical base64")]
    Hash {
        /// Counted from 1.
        number: usize,
    },
    /// More hashes than any tree needs.
    #[error("the path has more than {MAX_PATH} hashes")]
    PathTooLong,
    /// It ends before the empty line.
    #[error("the receipt ends before its checkpoint")]
    NoCheckpoint,
    /// The checkpoint's note is refused.
    #[error("the checkpoint is refused: {0}")]
    Note(#[from] NoteFault),
    /// It is another entry's.
    #[error("the receipt is of entry {found}, not of {expected}")]
    AnotherEntry {
        /// The entry's.
        expected: Sequence,
        /// The receipt's.
        found: Sequence,
    },
    /// The path does not prove that the entry is in the tree.
    #[error("the entry is not shown to be under the checkpoint: {0}")]
    Path(#[from] PathFault),
}

#[cfg(test)]
mod tests {
    use super::super::key::Signature;
    use super::super::merkle::{Root, TreeSize};
    use super::super::tile::{Edge, Tile, TileBytes, Tree};
    use super::*;
    use p256::ecdsa::{self, SigningKey, signature::Signer};
    use proptest::prelude::*;

    const SIZE: u64 = 300;

    fn entry(n: u64) -> Digest {
        Digest::of(&n.to_be_bytes())
    }

    fn tiles() -> (Root, Vec<TileBytes>) {
        let mut edge = Edge::new();
        let tiles = edge.extend((0..SIZE as usize).map(|n| entry(n as u64))).expect("room");
        (edge.root(), tiles)
    }

    fn key() -> (SigningKey, PublicKey) {
        let key = SigningKey::from_slice(&[7; 32]).expect("in range");
        let public =
            PublicKey::from_sec1(key.verifying_key().to_sec1_point(false).as_bytes()).expect("on the curve");
        (key, public)
    }

    fn signed(root: Root) -> Note {
        let (key, public) = key();
        let checkpoint = Checkpoint::new("example.com/ledger", root).expect("well-formed");
        let raw: ecdsa::Signature = key.sign(checkpoint.text().as_bytes());
        Note::new(checkpoint, public.id(), &Signature::from_token(&raw.to_bytes()).expect("in range"))
    }

    fn path(sequence: u64) -> Vec<NodeHash> {
        let (root, tiles) = tiles();
        let read = |tile: Tile| tiles.iter().find(|t| t.tile == tile).map(|t| t.bytes.clone()).ok_or(());
        Tree::new(root.size, read).inclusion(sequence, root.size).expect("tiles")
    }

    fn receipt(sequence: u64) -> Receipt {
        Receipt::new(Sequence(sequence), path(sequence), signed(tiles().0)).expect("well-formed")
    }

    #[test]
    fn a_receipt_is_written_read_and_verified() {
        let keys = [key().1];
        for sequence in [0, 1, 255, 256, 299] {
            let receipt = receipt(sequence);
            let text = receipt.to_string();
            assert_eq!(Receipt::parse(text.as_bytes()), Ok(receipt.clone()));
            let verified = receipt.verify(Sequence(sequence), entry(sequence), &keys).expect("good");
            assert_eq!(verified.key, &keys[0]);
        }
        let mut alone = Edge::new();
        alone.extend([entry(0)].into_iter()).expect("room");
        let alone = Receipt::new(Sequence(0), Vec::new(), signed(alone.root())).expect("well-formed");
        assert!(alone.to_string().starts_with("c2sp.org/tlog-proof@v1\nindex 0\n\nexample.com/ledger\n1\n"));
        assert_eq!(Receipt::parse(alone.to_string().as_bytes()), Ok(alone.clone()));
        assert!(alone.verify(Sequence(0), entry(0), &keys).is_ok());
    }

    #[test]
    fn every_other_spelling_is_refused_with_its_reason() {
        use ReceiptFault as F;
        let good = receipt(299).to_string();
        let lines: Vec<&str> = good.lines().collect();
        let count = path(299).len();
        let change = |from: &str, to: &str| good.replacen(from, to, 1);
        let with_path = |path: &[&str]| {
            format!("{FORMAT}\nindex 299\n{}\n\n{}", path.join("\n"), signed(tiles().0).as_str())
        };
        let hashes = &lines[2..2 + count];
        let length = |found| F::Path(PathFault::Length { expected: count, found });
        let size = tiles().0.size;
        use DecimalFault::{LeadingZero, NotDecimal, TooLarge};
        let cases = [
            ("nothing", String::new(), F::Format),
            ("another version", change("@v1", "@v2"), F::Format),
            ("byte order mark", format!("\u{feff}{good}"), F::Format),
            ("CRLF", good.replace('\n', "\r\n"), F::Format),
            ("a line in front", format!("\n{good}"), F::Format),
            ("extra", change("\nindex", "\nextra AAAA\nindex"), F::Extra),
            ("no index", change("index 299\n", ""), F::NoIndex),
            ("index without a number", change("index 299", "index"), F::NoIndex),
            ("empty index", change("index 299", "index "), F::Index(NotDecimal)),
            ("two spaces", change("index 299", "index  299"), F::Index(NotDecimal)),
            ("space after", change("index 299", "index 299 "), F::Index(NotDecimal)),
            ("leading zero", change("index 299", "index 0299"), F::Index(LeadingZero)),
            ("index 2^63", change("index 299", "index 9223372036854775808"), F::Index(TooLarge)),
            (
                "index over size",
                change("index 299", "index 300"),
                F::Path(PathFault::Index { index: 300, size }),
            ),
            ("path too short", with_path(&hashes[1..]), length(count - 1)),
            ("path too long", with_path(&[hashes, &hashes[..1]].concat()), length(count + 1)),
            ("path far too long", with_path(&[hashes[0]; 64]), F::PathTooLong),
            ("63 hashes", with_path(&[hashes[0]; 63]), length(63)),
            ("a hash without padding", with_path(&[&hashes[0][..43]]), F::Hash { number: 1 }),
            ("a hash in hex", with_path(&[hashes[0], &entry(0).to_hex()]), F::Hash { number: 2 }),
            ("a hash with a space", change(hashes[0], &format!("{} ", hashes[0])), F::Hash { number: 1 }),
            ("two blank lines", change("\n\n", "\n\n\n"), F::Note(NoteFault::BlankLine)),
            (
                "no note",
                good[..good.find("\n\n").expect("a blank line") + 2].into(),
                F::Note(NoteFault::FinalNewline),
            ),
            ("cut in the path", lines[..4].join("\n"), F::NoCheckpoint),
            ("missing final newline", good.trim_end().into(), F::Note(NoteFault::FinalNewline)),
            ("more after it", format!("{good}x\n"), F::Note(NoteFault::SignatureLine)),
            ("too long", format!("{good}{}", " ".repeat(MAX_RECEIPT_BYTES)), F::TooLong),
        ];
        for (name, receipt, fault) in cases {
            assert_eq!(Receipt::parse(receipt.as_bytes()).map(|_| ()), Err(fault), "{name}");
        }
        assert_eq!(Receipt::parse(b"\xff"), Err(F::NotUtf8));
    }

    #[test]
    fn what_does_not_hold_is_refused() {
        use ReceiptFault as F;
        let (_, known) = key();
        let keys = [known];
        let good = receipt(257);
        let root = tiles().0;
        let mut swapped = path(257);
        swapped.swap(0, 1);
        let swapped = Receipt::new(Sequence(257), swapped, signed(root)).expect("well-formed");
        let elsewhere = Receipt::new(Sequence(256), path(257), signed(root)).expect("well-formed");
        let other_root = Root { size: root.size, hash: NodeHash(entry(0)) };
        let other_tree = Receipt::new(Sequence(257), path(257), signed(other_root)).expect("well-formed");
        // A note whose root was exchanged after it was signed.
        let text = good.to_string().replace(&encode_hash(root.hash), &encode_hash(other_root.hash));
        let altered = Receipt::parse(text.as_bytes()).expect("well-formed");
        let not_there = Err(F::Path(PathFault::Root));
        let cases = [
            ("another entry's hash", &good, 257, entry(256), not_there),
            ("a leaf hash for an entry hash", &good, 257, NodeHash::of_leaf(entry(257)).0, not_there),
            ("swapped siblings", &swapped, 257, entry(257), not_there),
            ("the neighbour's index", &elsewhere, 256, entry(257), not_there),
            ("another tree", &other_tree, 257, entry(257), not_there),
            ("an altered note", &altered, 257, entry(257), Err(F::Note(NoteFault::Signature))),
            (
                "another sequence number",
                &good,
                256,
                entry(257),
                Err(F::AnotherEntry { expected: Sequence(256), found: Sequence(257) }),
            ),
        ];
        for (name, receipt, sequence, entry_hash, expected) in cases {
            assert_eq!(receipt.verify(Sequence(sequence), entry_hash, &keys).map(|_| ()), expected, "{name}");
        }
        assert_eq!(
            good.verify(Sequence(257), entry(257), &[]).map(|_| ()),
            Err(F::Note(NoteFault::UnknownKey))
        );
        assert!(good.verify(Sequence(257), entry(257), &keys).is_ok());
        let early = Root { size: TreeSize::new(257).expect("below 2^63"), hash: root.hash };
        assert_eq!(
            Receipt::new(Sequence(257), path(257), signed(early)),
            Err(F::Path(PathFault::Index { index: 257, size: early.size }))
        );
    }

    proptest! {
        #[test]
        fn a_receipt_has_one_spelling(
            at in any::<prop::sample::Index>(),
            put in prop::sample::select(vec!["", "\n", "\n\n", " ", "=", "0", "A", "+", "\r"]),
        ) {
            let mut receipt = receipt(299).to_string().into_bytes();
            let at = at.index(receipt.len());
            receipt.splice(at..at + 1, put.bytes());
            if let Ok(parsed) = Receipt::parse(&receipt) {
                prop_assert_eq!(parsed.to_string().into_bytes(), receipt);
            }
        }
    }
}
