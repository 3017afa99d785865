//! SHA-256 and lower-case hex, the only digest and the only spelling of one in the format.
//!
//! With the feature `fast` AWS-LC hashes, without it the `sha2` crate does; a test holds each
//! against the other.

use std::fmt;

/// Length of a SHA-256 digest in bytes.
pub const DIGEST_BYTES: usize = 32;

/// A SHA-256 digest. Its text form is 64 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(pub [u8; DIGEST_BYTES]);

impl Digest {
    /// 32 zero bytes: what entry 0 names as the hash of the entry before it.
    pub const ZERO: Digest = Digest([0; DIGEST_BYTES]);

    /// The digest of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self::of_parts(&[bytes])
    }

    /// The digest of the concatenation of `parts`.
    #[must_use]
    pub fn of_parts(parts: &[&[u8]]) -> Self {
        let mut hasher = Hasher::new();
        for part in parts {
            hasher.update(part);
        }
        hasher.finish()
    }

    /// Reads exactly 64 lower-case hex digits; anything else is `None`.
    #[must_use]
    pub fn from_hex(text: &[u8]) -> Option<Self> {
        let mut digest = [0; DIGEST_BYTES];
        decode_hex_into(text, &mut digest).then_some(Digest(digest))
    }

    /// The 64 lower-case hex digits.
    #[must_use]
    pub fn to_hex(self) -> String {
        encode_hex(&self.0)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

/// An incremental SHA-256.
pub struct Hasher {
    #[cfg(feature = "fast")]
    inner: aws_lc_rs::digest::Context,
    #[cfg(not(feature = "fast"))]
    inner: sha2::Sha256,
}

impl Default for Hasher {
    fn default() -> Self {
        Self::new()
    }
}

impl Hasher {
    /// A hasher that has read nothing.
    #[must_use]
    pub fn new() -> Self {
        #[cfg(feature = "fast")]
        let inner = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
        #[cfg(not(feature = "fast"))]
        let inner = <sha2::Sha256 as sha2::Digest>::new();
        Self { inner }
    }

    /// Reads `bytes`.
    pub fn update(&mut self, bytes: &[u8]) {
        #[cfg(feature = "fast")]
        self.inner.update(bytes);
        #[cfg(not(feature = "fast"))]
        sha2::Digest::update(&mut self.inner, bytes);
    }

    /// The digest of all that was read.
    #[must_use]
    pub fn finish(self) -> Digest {
        let mut digest = [0; DIGEST_BYTES];
        #[cfg(feature = "fast")]
        digest.copy_from_slice(self.inner.finish().as_ref());
        #[cfg(not(feature = "fast"))]
        digest.copy_from_slice(&sha2::Digest::finalize(self.inner));
        Digest(digest)
    }
}

const HEX_DIGITS: &[u8; 16] = b"0123456789abcdef";

/// Appends the lower-case hex of `bytes` to `out`.
pub fn write_hex(bytes: &[u8], out: &mut Vec<u8>) {
    for byte in bytes {
        out.push(HEX_DIGITS[usize::from(byte >> 4)]);
        out.push(HEX_DIGITS[usize::from(byte & 15)]);
    }
}

/// The lower-case hex of `bytes`.
#[must_use]
pub fn encode_hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .flat_map(|b| [b >> 4, b & 15])
        .map(|nibble| char::from(HEX_DIGITS[usize::from(nibble)]))
        .collect()
}

/// Reads lower-case hex of any even length; `None` for anything else.
#[must_use]
pub fn decode_hex(text: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = vec![0; text.len() / 2];
    decode_hex_into(text, &mut bytes).then_some(bytes)
}

/// Fills `out` from exactly twice as many lower-case hex digits; false when `text` is not that.
pub fn decode_hex_into(text: &[u8], out: &mut [u8]) -> bool {
    if text.len() != out.len() * 2 {
        return false;
    }
    for (byte, pair) in out.iter_mut().zip(text.chunks_exact(2)) {
        let (Some(high), Some(low)) = (nibble(pair[0]), nibble(pair[1])) else {
            return false;
        };
        *byte = high << 4 | low;
    }
    true
}

fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_implementations_agree() {
        for length in [0, 1, 55, 56, 63, 64, 65, 1000, 65_537] {
            let bytes: Vec<u8> = (0..length).map(|i| (i * 7 % 251) as u8).collect();
            let reference: [u8; 32] = <sha2::Sha256 as sha2::Digest>::digest(&bytes).into();
            assert_eq!(Digest::of(&bytes).0, reference, "{length} bytes");
            let (head, tail) = bytes.split_at(length / 3);
            assert_eq!(Digest::of_parts(&[head, tail]).0, reference);
        }
    }

    #[test]
    fn hex_is_lower_case_and_of_the_right_length() {
        let digest = Digest::of(b"abc");
        assert_eq!(Digest::from_hex(digest.to_hex().as_bytes()), Some(digest));
        assert_eq!(Digest::from_hex(digest.to_hex().to_uppercase().as_bytes()), None);
        assert_eq!(Digest::from_hex(&digest.to_hex().as_bytes()[1..]), None);
        assert_eq!(decode_hex(b"0g"), None);
        assert_eq!(decode_hex(b"00ff"), Some(vec![0, 255]));
    }
}
