//! Public keys, key ids and signatures: P-256, verification only. Nothing in here can sign.
//!
//! A key is named by the SHA-256 of its SPKI DER, which anyone can recompute:
//! `openssl pkey -pubin -in public-key.pem -outform DER | sha256sum`.

use std::fmt;

use p256::ecdsa::{self, VerifyingKey};
use p256::pkcs8::{DecodePublicKey, EncodePublicKey, LineEnding};

use super::checkpoint::Checkpoint;
use super::code::Code;
use super::hash::{Digest, decode_hex, write_hex};

/// The name of a key: SHA-256 of its SPKI DER.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyId(pub Digest);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Text that is not the SPKI PEM of a P-256 public key.
#[derive(Debug, thiserror::Error)]
#[error("not the SPKI PEM (`BEGIN PUBLIC KEY`) of a P-256 public key")]
pub struct NotAPublicKey;

/// A P-256 public key: a point that was checked to be on the curve.
#[derive(Clone)]
pub struct PublicKey {
    key: VerifyingKey,
    der: Vec<u8>,
    id: KeyId,
    #[cfg(feature = "fast")]
    fast: std::sync::Arc<aws_lc_rs::signature::ParsedPublicKey>,
}

impl PublicKey {
    /// Reads SPKI PEM.
    ///
    /// # Errors
    /// When `pem` is anything but one `PUBLIC KEY` block with an uncompressed or compressed P-256
    /// point: text before or after it could name another key to whoever reads the file.
    pub fn from_pem(pem: &str) -> Result<Self, NotAPublicKey> {
        // The decoder skips what stands before the block.
        let pem = pem.trim();
        if !pem.starts_with("-----BEGIN ") {
            return Err(NotAPublicKey);
        }
        let key = VerifyingKey::from_public_key_pem(pem).map_err(|_| NotAPublicKey)?;
        Self::from_verifying_key(key)
    }

    /// Reads a SEC1 point, uncompressed (65 bytes) or compressed (33 bytes).
    ///
    /// # Errors
    /// When the bytes are not a point of the curve.
    pub fn from_sec1(point: &[u8]) -> Result<Self, NotAPublicKey> {
        let key = VerifyingKey::from_sec1_bytes(point).map_err(|_| NotAPublicKey)?;
        Self::from_verifying_key(key)
    }

    fn from_verifying_key(key: VerifyingKey) -> Result<Self, NotAPublicKey> {
        let der = key.to_public_key_der().map_err(|_| NotAPublicKey)?.as_bytes().to_vec();
        let id = KeyId(Digest::of(&der));
        #[cfg(feature = "fast")]
        let fast = {
            use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, ParsedPublicKey};
            let point = key.to_sec1_point(false);
            std::sync::Arc::new(
                ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point.as_bytes())
                    .map_err(|_| NotAPublicKey)?,
            )
        };
        Ok(PublicKey {
            key,
            der,
            id,
            #[cfg(feature = "fast")]
            fast,
        })
    }

    /// SHA-256 of the SPKI DER.
    #[must_use]
    pub fn id(&self) -> KeyId {
        self.id
    }

    /// The SPKI DER, with the point uncompressed.
    #[must_use]
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// The SPKI PEM, as OpenSSL writes it.
    #[must_use]
    pub fn to_pem(&self) -> String {
        self.key.to_public_key_pem(LineEnding::LF).unwrap_or_default()
    }

    /// Whether `signature` is this key's over `message` (ECDSA with SHA-256, FIPS 186-5), with
    /// S in either half.
    #[must_use]
    pub fn verifies(&self, message: &[u8], signature: &Signature) -> bool {
        #[cfg(feature = "fast")]
        return self.fast.verify_sig(message, &signature.0).is_ok();
        #[cfg(not(feature = "fast"))]
        self.verifies_portably(message, signature)
    }

    /// [`PublicKey::verifies`] by the `p256` crate, whatever the features.
    #[must_use]
    pub fn verifies_portably(&self, message: &[u8], signature: &Signature) -> bool {
        use ecdsa::signature::Verifier;
        ecdsa::Signature::from_slice(&signature.0).is_ok_and(|s| self.key.verify(message, &s).is_ok())
    }
}

impl PartialEq for PublicKey {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Eq for PublicKey {}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", self.id)
    }
}

/// A signature as two 32-byte big-endian integers, r then s, each from 1 to n−1.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Signature([u8; 64]);

impl Signature {
    /// Bytes of r and s together.
    pub const BYTES: usize = 64;

    /// Takes r‖s as a token gives it and brings S into the low half. `None` when r or s is out
    /// of range or the length is not 64.
    #[must_use]
    pub fn from_token(raw: &[u8]) -> Option<Self> {
        let signature = ecdsa::Signature::from_slice(raw).ok()?;
        Some(Signature(signature.normalize_s().to_bytes().into()))
    }

    /// Takes r‖s as the store keeps it: in range and with S low, else `None`.
    #[must_use]
    pub fn from_stored(raw: &[u8]) -> Option<Self> {
        let signature = Self::from_token(raw)?;
        (signature.0 == raw).then_some(signature)
    }

    /// Reads the ledger's own form: lower-case hex of minimal DER with S in the low half.
    ///
    /// # Errors
    /// [`Code::SignatureEncoding`] or [`Code::SignatureHighS`].
    pub fn from_hex_der(text: &[u8]) -> Result<Self, Code> {
        Self::from_der(&decode_hex(text).ok_or(Code::SignatureEncoding)?)
    }

    /// Reads minimal DER with S in the low half.
    ///
    /// # Errors
    /// [`Code::SignatureEncoding`] or [`Code::SignatureHighS`].
    pub fn from_der(der: &[u8]) -> Result<Self, Code> {
        let signature = minimal_der(der)?;
        if signature.normalize_s() != signature {
            return Err(Code::SignatureHighS);
        }
        Ok(Signature(signature.to_bytes().into()))
    }

    /// Reads minimal DER with S in either half, as `openssl` and cards make it, and brings S into
    /// the low half. Only for signatures that are not the ledger's own.
    ///
    /// # Errors
    /// [`Code::SignatureEncoding`].
    pub fn from_foreign_der(der: &[u8]) -> Result<Self, Code> {
        Ok(Signature(minimal_der(der)?.normalize_s().to_bytes().into()))
    }

    /// r‖s.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 64] {
        &self.0
    }

    /// The minimal DER `ECDSA-Sig-Value` (RFC 3279 §2.2.3), 8 to 72 bytes.
    #[must_use]
    pub fn to_der(&self) -> Vec<u8> {
        let mut der = Vec::with_capacity(72);
        der.extend_from_slice(&[0x30, 0]);
        for integer in self.0.chunks_exact(32) {
            let zeros = integer.iter().take_while(|b| **b == 0).count();
            let digits = &integer[zeros..];
            let pad = usize::from(digits.first().is_some_and(|b| b & 0x80 != 0));
            der.extend_from_slice(&[0x02, (digits.len() + pad) as u8]);
            der.extend_from_slice(&[0][..pad]);
            der.extend_from_slice(digits);
        }
        der[1] = (der.len() - 2) as u8;
        der
    }

    /// Appends the lower-case hex of the DER form.
    pub fn write_hex_der(&self, out: &mut Vec<u8>) {
        write_hex(&self.to_der(), out);
    }
}

fn minimal_der(der: &[u8]) -> Result<ecdsa::Signature, Code> {
    let signature = ecdsa::Signature::from_der(der).map_err(|_| Code::SignatureEncoding)?;
    // One value, one encoding: what does not come back the same was not minimal.
    if signature.to_der().as_bytes() == der { Ok(signature) } else { Err(Code::SignatureEncoding) }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signature({})", super::hash::encode_hex(&self.0))
    }
}

/// What the token may be asked to sign. The kinds cannot be taken for one another: an entry is
/// exactly 32 bytes and a checkpoint at least 49, and a purpose text begins `attestd-<purpose>-v1`,
/// which no origin, and so no checkpoint, does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Signable {
    /// An entry, by the 32 raw bytes of its `entry_hash`.
    Entry(Digest),
    /// A checkpoint, by its note text.
    Checkpoint(Checkpoint),
    /// Everything else: `attestd-<purpose>-v1\n<origin>\n<rest>`.
    Purpose(String),
}

impl Signable {
    /// A text for `purpose` (lower-case letters) of the ledger `origin`.
    #[must_use]
    pub fn purpose(purpose: &str, origin: &str, rest: &str) -> Self {
        Signable::Purpose(format!("attestd-{purpose}-v1\n{origin}\n{rest}"))
    }

    /// The message, over which ECDSA with SHA-256 is computed.
    #[must_use]
    pub fn message(&self) -> &[u8] {
        match self {
            Signable::Entry(hash) => &hash.0,
            Signable::Checkpoint(checkpoint) => checkpoint.text().as_bytes(),
            Signable::Purpose(text) => text.as_bytes(),
        }
    }

    /// The 32 bytes that the token is handed.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of(self.message())
    }
}

/// Whether `origin` may name a ledger: 1 to 255 bytes of printable ASCII without spaces or `+`,
/// not beginning `{` or `attestd-`, which would make a checkpoint look like another kind of
/// message. (A C2SP signed note forbids spaces and plus signs in key names.)
#[must_use]
pub fn is_origin(origin: &str) -> bool {
    (1..=255).contains(&origin.len())
        && origin.bytes().all(|b| b.is_ascii_graphic() && b != b'+')
        && !origin.starts_with('{')
        && !origin.starts_with("attestd-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pem_file_holds_its_block_and_nothing_else() {
        let pem = "-----BEGIN PUBLIC KEY-----\n\
            MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEaxfR8uEsQkf4vOblY6RA8ncDfYEt\n\
            6zOg9KE5RdiYwpZP40Li/hp/m47n60p8D54WK84zV2sxXs7LtkBoN79R9Q==\n\
            -----END PUBLIC KEY-----\n";
        assert!(PublicKey::from_pem(pem).is_ok());
        assert!(PublicKey::from_pem(&format!("\n{pem}\n")).is_ok());
        for other in [format!("the key of x:\n{pem}"), format!("{pem}more"), format!("{pem}{pem}")] {
            assert!(PublicKey::from_pem(&other).is_err(), "{other}");
        }
    }
    use p256::ecdsa::{SigningKey, signature::Signer};

    fn pair() -> (SigningKey, PublicKey) {
        let key = SigningKey::from_slice(&[7; 32]).expect("in range");
        let public = PublicKey::from_verifying_key(*key.verifying_key()).expect("on the curve");
        (key, public)
    }

    #[test]
    fn both_implementations_agree_on_good_and_bad_signatures() {
        let (key, public) = pair();
        for n in 0..64u8 {
            let message = [n; 32];
            let raw: ecdsa::Signature = key.sign(&message);
            let signature = Signature::from_token(&raw.to_bytes()).expect("in range");
            assert!(public.verifies(&message, &signature));
            assert!(public.verifies_portably(&message, &signature));
            let mut flipped = *signature.as_bytes();
            flipped[usize::from(n)] ^= 1;
            if let Some(flipped) = Signature::from_token(&flipped) {
                assert!(!public.verifies(&message, &flipped));
                assert!(!public.verifies_portably(&message, &flipped));
            }
            assert!(!public.verifies(b"another message", &signature));
        }
    }

    #[test]
    fn der_is_minimal_and_reads_back() {
        let (key, _) = pair();
        for n in 0..=255u8 {
            let raw: ecdsa::Signature = key.sign(&[n]);
            let signature = Signature::from_token(&raw.to_bytes()).expect("in range");
            assert_eq!(signature.to_der(), raw.normalize_s().to_der().as_bytes());
            let mut hex = Vec::new();
            signature.write_hex_der(&mut hex);
            assert_eq!(Signature::from_hex_der(&hex), Ok(signature));
            assert_eq!(Signature::from_stored(signature.as_bytes()), Some(signature));
        }
        let mut small = [0; 64];
        (small[31], small[63]) = (1, 0x80);
        let small = Signature::from_token(&small).expect("in range");
        assert_eq!(small.to_der(), [0x30, 7, 2, 1, 1, 2, 2, 0, 0x80]);
    }

    #[test]
    fn other_encodings_are_refused() {
        let (key, _) = pair();
        let raw: ecdsa::Signature = key.sign(b"x");
        let low = raw.normalize_s();
        let (r, s) = low.split_scalars();
        let high = ecdsa::Signature::from_scalars(r, -*s).expect("in range");
        let hex = |bytes: &[u8]| super::super::hash::encode_hex(bytes).into_bytes();
        assert_eq!(Signature::from_hex_der(&hex(high.to_der().as_bytes())), Err(Code::SignatureHighS));
        assert_eq!(Signature::from_stored(&high.to_bytes()), None);
        let foreign = Signature::from_foreign_der(high.to_der().as_bytes()).expect("either S");
        assert_eq!(foreign.to_der(), low.to_der().as_bytes());
        let good = low.to_der();
        let mut trailing = good.as_bytes().to_vec();
        trailing.push(0);
        let mut padded = vec![0x30, 0, 0x02, 0x22, 0, 0];
        padded.extend_from_slice(&[1; 32]);
        padded.extend_from_slice(&[0x02, 0x20]);
        padded.extend_from_slice(&[1; 32]);
        padded[1] = (padded.len() - 2) as u8;
        for bytes in [&trailing[..], &padded, &low.to_bytes(), &[], &[0x30, 6, 2, 1, 0, 2, 1, 1]] {
            assert_eq!(Signature::from_hex_der(&hex(bytes)), Err(Code::SignatureEncoding));
        }
        let upper = hex(good.as_bytes()).to_ascii_uppercase();
        assert_eq!(Signature::from_hex_der(&upper), Err(Code::SignatureEncoding));
    }

    /// The key that Rekor publishes for its P-256 log; its signed notes carry the key id c0d23d6a.
    #[test]
    fn key_id_is_that_of_openssl_and_of_the_ecosystem() {
        let pem = "-----BEGIN PUBLIC KEY-----\n\
            MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE2G2Y+2tabdTV5BcGiBIx0a9fAFwr\n\
            kBbmLSGtks4L3qX6yYY0zufBnhC8Ur/iy55GhWP/9A/bY2LhC30M9+RYtw==\n\
            -----END PUBLIC KEY-----\n";
        let key = PublicKey::from_pem(pem).expect("a P-256 key");
        assert!(key.id().to_string().starts_with("c0d23d6a"), "{}", key.id());
        assert_eq!(key.to_pem(), pem);
    }

    #[test]
    fn origins() {
        for good in ["example.com/ledger", "a", "log.example#1"] {
            assert!(is_origin(good), "{good}");
        }
        let long = "x".repeat(256);
        for bad in ["", "{x", "attestd-x", "a b", "a+b", "a\nb", "ä", long.as_str()] {
            assert!(!is_origin(bad), "{bad}");
        }
    }
}
