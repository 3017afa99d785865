//! The keys of people and of provers: P-256 as SPKI PEM, or one of four kinds as OpenSSH writes
//! them; and signatures by them, in hex DER or as armoured SSHSIG. Verification only.
//!
//! ```text
//! -----BEGIN PUBLIC KEY-----                       signature: hex DER, either S
//! ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI…           signature: -----BEGIN SSH SIGNATURE-----
//! ```
//!
//! SSHSIG is OpenSSH's PROTOCOL.sshsig, keys and FIDO signatures are its PROTOCOL.u2f. They are read
//! by hand: it is a screenful, and the stable release of `ssh-key` neither looks at the
//! user-presence flag nor shares our generation of the RustCrypto crates. Ed25519 is always verified
//! by `ed25519-dalek`, strictly, whatever the features: two libraries that differ over one odd
//! signature would make two verdicts of one ledger.

use std::fmt;

use base64ct::{Base64, Encoding};

use super::wire::{Wire, write_string};
use crate::ledger::hash::{Digest, decode_hex};
use crate::ledger::key::{PublicKey, Signature};

/// The longest text of a key: `sk-` lines with their application stay below 400 bytes.
pub const MAX_KEY_TEXT: usize = 2_048;

/// The longest text of a signature. An armoured `sk-` SSHSIG takes about 500 bytes.
pub const MAX_SIGNATURE_TEXT: usize = 4_096;

/// How a key signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// Hex DER by a P-256 key that the rules give as PEM.
    EcdsaP256,
    /// SSHSIG by `ssh-ed25519`.
    SshEd25519,
    /// SSHSIG by `ecdsa-sha2-nistp256`.
    SshP256,
    /// SSHSIG by `sk-ssh-ed25519@openssh.com`.
    SshSkEd25519,
    /// SSHSIG by `sk-ecdsa-sha2-nistp256@openssh.com`.
    SshSkP256,
}

impl Algorithm {
    /// The name in an approval.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Algorithm::EcdsaP256 => "ECDSA-P256-SHA256",
            Algorithm::SshEd25519 => "SSHSIG-ED25519",
            Algorithm::SshP256 => "SSHSIG-P256",
            Algorithm::SshSkEd25519 => "SSHSIG-SK-ED25519",
            Algorithm::SshSkP256 => "SSHSIG-SK-P256",
        }
    }

    /// OpenSSH's name of the key's kind.
    fn ssh_name(self) -> Option<&'static str> {
        match self {
            Algorithm::EcdsaP256 => None,
            Algorithm::SshEd25519 => Some("ssh-ed25519"),
            Algorithm::SshP256 => Some("ecdsa-sha2-nistp256"),
            Algorithm::SshSkEd25519 => Some("sk-ssh-ed25519@openssh.com"),
            Algorithm::SshSkP256 => Some("sk-ecdsa-sha2-nistp256@openssh.com"),
        }
    }
}

/// Text that is not a key of one of the five kinds.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotAKey {
    /// Neither PEM nor an OpenSSH line.
    #[error(
        "not a public key: give the SPKI PEM of a P-256 key (`BEGIN PUBLIC KEY`), or an OpenSSH line of kind ssh-ed25519, ecdsa-sha2-nistp256 or their sk- variants"
    )]
    Form,
    /// The wire form says something else than the line, or has bytes too many or too few.
    #[error("an OpenSSH key line whose base64 is not a key of the kind that it names")]
    Wire,
    /// A point that is not on the curve, has another encoding too, or is in a small subgroup.
    #[error("a public key whose point is not a usable one of its curve")]
    Point,
}

/// Why a signature is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotVerified {
    /// Not in the one form that signatures of this kind have.
    #[error("the signature is not {0}")]
    Form(&'static str),
    /// An SSHSIG for something else.
    #[error("the SSH signature is for another namespace than `{0}`")]
    Namespace(&'static str),
    /// An SSHSIG that holds another key than the rules name.
    #[error("the SSH signature is by another key than the rules name")]
    OtherKey,
    /// A security key that signed although nobody touched it.
    #[error("nobody touched the security key (the user-presence flag is not set)")]
    NotPresent,
    /// The mathematics say no.
    #[error("the signature does not verify")]
    Wrong,
}

#[derive(Clone)]
enum Point {
    P256(PublicKey),
    Ed25519(ed25519_dalek::VerifyingKey),
}

/// A public key of a person or a prover.
#[derive(Clone)]
pub struct Key {
    algorithm: Algorithm,
    point: Point,
    /// SSH wire form; empty for PEM.
    blob: Vec<u8>,
    /// What a security key calls the site that it signs for; empty for others.
    application: Vec<u8>,
    text: String,
    id: Digest,
}

impl Key {
    /// Reads SPKI PEM or one OpenSSH public key line (a comment at its end is dropped).
    ///
    /// # Errors
    /// [`NotAKey`].
    pub fn parse(text: &str) -> Result<Self, NotAKey> {
        if text.len() > MAX_KEY_TEXT {
            return Err(NotAKey::Form);
        }
        if text.trim_start().starts_with("-----BEGIN") {
            return PublicKey::from_pem(text.trim_start()).map(Self::from_p256).map_err(|_| NotAKey::Form);
        }
        let mut words = text.trim().splitn(3, ' ');
        let (name, base64) = words.next().zip(words.next()).ok_or(NotAKey::Form)?;
        // A line break would hide a second key from whoever reads the rules.
        if words.next().is_some_and(|comment| comment.chars().any(char::is_control)) {
            return Err(NotAKey::Form);
        }
        let kinds =
            [Algorithm::SshEd25519, Algorithm::SshP256, Algorithm::SshSkEd25519, Algorithm::SshSkP256];
        let algorithm = kinds.into_iter().find(|kind| kind.ssh_name() == Some(name)).ok_or(NotAKey::Form)?;
        let blob = Base64::decode_vec(base64).map_err(|_| NotAKey::Wire)?;
        Self::from_blob(algorithm, name, blob)
    }

    fn from_p256(key: PublicKey) -> Self {
        Key {
            algorithm: Algorithm::EcdsaP256,
            text: key.to_pem(),
            id: key.id().0,
            point: Point::P256(key),
            blob: Vec::new(),
            application: Vec::new(),
        }
    }

    fn from_blob(algorithm: Algorithm, name: &str, blob: Vec<u8>) -> Result<Self, NotAKey> {
        let (point, application) = read_blob(algorithm, name, &blob).ok_or(NotAKey::Wire)?;
        let point = match algorithm {
            Algorithm::SshEd25519 | Algorithm::SshSkEd25519 => {
                let bytes = <&[u8; 32]>::try_from(point).map_err(|_| NotAKey::Wire)?;
                let key = ed25519_dalek::VerifyingKey::from_bytes(bytes).map_err(|_| NotAKey::Point)?;
                // One point, one encoding: else one key could stand in the rules twice.
                let canonical = key.to_edwards().compress().to_bytes() == *bytes;
                if key.is_weak() || !canonical {
                    return Err(NotAKey::Point);
                }
                Point::Ed25519(key)
            }
            _ if point.len() != 65 => return Err(NotAKey::Wire),
            _ => Point::P256(PublicKey::from_sec1(point).map_err(|_| NotAKey::Point)?),
        };
        Ok(Key {
            algorithm,
            point,
            application: application.to_vec(),
            text: format!("{name} {}", Base64::encode_string(&blob)),
            id: Digest::of(&blob),
            blob,
        })
    }

    /// How it signs.
    #[must_use]
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// SHA-256 of the SPKI DER (PEM) or of the wire blob (SSH).
    #[must_use]
    pub fn id(&self) -> Digest {
        self.id
    }

    /// The one text that the ledger keeps: PEM as OpenSSL writes it, or the line without comment.
    #[must_use]
    pub fn to_text(&self) -> &str {
        &self.text
    }

    /// What is equal for two texts of one key: the curve and the point, without format, security
    /// key's application or encoding.
    #[must_use]
    pub fn point(&self) -> Vec<u8> {
        match &self.point {
            Point::P256(key) => key.der().to_vec(),
            Point::Ed25519(key) => key.to_bytes().to_vec(),
        }
    }

    /// Whether it is the P-256 key `other`, in whatever format.
    #[must_use]
    pub fn is(&self, other: &PublicKey) -> bool {
        matches!(&self.point, Point::P256(key) if key == other)
    }

    /// Verifies the text of a signature over `message`: hex DER, or armoured SSHSIG whose
    /// namespace has to be `namespace`.
    ///
    /// # Errors
    /// [`NotVerified`].
    pub fn verify(
        &self,
        message: &[u8],
        signature: &str,
        namespace: &'static str,
    ) -> Result<(), NotVerified> {
        match (&self.algorithm, &self.point) {
            (Algorithm::EcdsaP256, Point::P256(key)) => {
                let form = NotVerified::Form("lower-case hex of minimal DER with r and s in range");
                let der = Some(signature)
                    .filter(|text| text.len() <= MAX_SIGNATURE_TEXT)
                    .and_then(|text| decode_hex(text.as_bytes()))
                    .ok_or(form)?;
                let signature = Signature::from_foreign_der(&der).map_err(|_| form)?;
                if key.verifies(message, &signature) { Ok(()) } else { Err(NotVerified::Wrong) }
            }
            _ => self.verify_sshsig(message, signature, namespace),
        }
    }

    fn verify_sshsig(
        &self,
        message: &[u8],
        armour: &str,
        namespace: &'static str,
    ) -> Result<(), NotVerified> {
        let form = NotVerified::Form("an armoured SSH signature (`ssh-keygen -Y sign`)");
        let blob = unarmour(armour).ok_or(form)?;
        let sig = SshSig::read(&blob).ok_or(form)?;
        if sig.namespace != namespace.as_bytes() {
            return Err(NotVerified::Namespace(namespace));
        }
        if sig.public_key != self.blob {
            return Err(NotVerified::OtherKey);
        }
        let signed = sig.signed_data(message).ok_or(form)?;
        let mut wire = Wire(sig.signature);
        let name = wire.string().ok_or(form)?;
        if Some(name) != self.algorithm.ssh_name().map(str::as_bytes) {
            return Err(form);
        }
        let inner = wire.string().ok_or(form)?;
        let signed = if matches!(self.algorithm, Algorithm::SshSkEd25519 | Algorithm::SshSkP256) {
            let rest = wire.bytes(5).ok_or(form)?;
            // FIDO: bit 0 of the flags says that a person was there.
            if rest[0] & 1 == 0 {
                return Err(NotVerified::NotPresent);
            }
            let (application, data) = (Digest::of(&self.application), Digest::of(&signed));
            [&application.0[..], rest, &data.0].concat()
        } else {
            signed
        };
        wire.end().ok_or(form)?;
        let verified = match &self.point {
            Point::Ed25519(key) => {
                let bytes = <&[u8; 64]>::try_from(inner).map_err(|_| form)?;
                key.verify_strict(&signed, &ed25519_dalek::Signature::from_bytes(bytes)).is_ok()
            }
            Point::P256(key) => {
                let mut wire = Wire(inner);
                let (r, s) = wire.scalar().zip(wire.scalar()).ok_or(form)?;
                wire.end().ok_or(form)?;
                let signature = Signature::from_token(&[r, s].concat()).ok_or(form)?;
                key.verifies(&signed, &signature)
            }
        };
        if verified { Ok(()) } else { Err(NotVerified::Wrong) }
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Key {}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({} {})", self.algorithm.as_str(), self.id)
    }
}

/// The point and the application (empty but for security keys) of a public key blob.
fn read_blob<'a>(algorithm: Algorithm, name: &str, blob: &'a [u8]) -> Option<(&'a [u8], &'a [u8])> {
    let mut wire = Wire(blob);
    if wire.string()? != name.as_bytes() {
        return None;
    }
    if matches!(algorithm, Algorithm::SshP256 | Algorithm::SshSkP256) && wire.string()? != b"nistp256" {
        return None;
    }
    let point = wire.string()?;
    let application = match algorithm {
        Algorithm::SshSkEd25519 | Algorithm::SshSkP256 => wire.string()?,
        _ => &[],
    };
    wire.end()?;
    Some((point, application))
}

/// The blob inside the armour. One spelling of line ends and base64, so that what was checked
/// is what is stored; the final line feed may be missing.
fn unarmour(text: &str) -> Option<Vec<u8>> {
    if text.len() > MAX_SIGNATURE_TEXT {
        return None;
    }
    let body = text.strip_prefix("-----BEGIN SSH SIGNATURE-----\n")?;
    let body = body.strip_suffix('\n').unwrap_or(body).strip_suffix("\n-----END SSH SIGNATURE-----")?;
    Base64::decode_vec(&body.split('\n').collect::<String>()).ok()
}

/// PROTOCOL.sshsig, version 1.
struct SshSig<'a> {
    public_key: &'a [u8],
    namespace: &'a [u8],
    reserved: &'a [u8],
    hash: &'a [u8],
    signature: &'a [u8],
}

const MAGIC: &[u8; 6] = b"SSHSIG";

impl<'a> SshSig<'a> {
    fn read(blob: &'a [u8]) -> Option<Self> {
        let mut wire = Wire(blob);
        if wire.bytes(MAGIC.len())? != MAGIC || wire.u32()? != 1 {
            return None;
        }
        let sig = SshSig {
            public_key: wire.string()?,
            namespace: wire.string()?,
            reserved: wire.string()?,
            hash: wire.string()?,
            signature: wire.string()?,
        };
        wire.end()?;
        Some(sig)
    }

    /// What the key signed: never the message itself, but its hash in a frame.
    fn signed_data(&self, message: &[u8]) -> Option<Vec<u8>> {
        use sha2::Digest as _;
        let hash = match self.hash {
            b"sha256" => Digest::of(message).0.to_vec(),
            b"sha512" => sha2::Sha512::digest(message).to_vec(),
            _ => return None,
        };
        let mut signed = MAGIC.to_vec();
        for part in [self.namespace, self.reserved, self.hash, &hash] {
            write_string(part, &mut signed);
        }
        Some(signed)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use ed25519_dalek::Signer as _;

    /// A signer of each kind, made without any program.
    pub(in super::super) struct Pair {
        pub(in super::super) key: Key,
        secret: Secret,
        pub(in super::super) flags: u8,
    }

    enum Secret {
        P256(p256::ecdsa::SigningKey),
        Ed25519(ed25519_dalek::SigningKey),
    }

    impl Pair {
        pub(in super::super) fn new(algorithm: Algorithm, seed: u8) -> Self {
            let p256 = p256::ecdsa::SigningKey::from_slice(&[seed; 32]).expect("in range");
            let ed25519 = ed25519_dalek::SigningKey::from_bytes(&[seed; 32]);
            let p256_point = p256.verifying_key().to_sec1_point(false).as_bytes().to_vec();
            let Some(name) = algorithm.ssh_name() else {
                let key = Key::from_p256(PublicKey::from_sec1(&p256_point).expect("on the curve"));
                return Pair { key, secret: Secret::P256(p256), flags: 0 };
            };
            let mut blob = Vec::new();
            write_string(name.as_bytes(), &mut blob);
            let secret = if name.contains("ed25519") {
                write_string(ed25519.verifying_key().as_bytes(), &mut blob);
                Secret::Ed25519(ed25519)
            } else {
                write_string(b"nistp256", &mut blob);
                write_string(&p256_point, &mut blob);
                Secret::P256(p256)
            };
            if name.starts_with("sk-") {
                write_string(b"ssh:", &mut blob);
            }
            let line = format!("{name} {} a comment", Base64::encode_string(&blob));
            Pair { key: Key::parse(&line).expect("a key"), secret, flags: 1 }
        }

        pub(in super::super) fn sign(&self, message: &[u8], namespace: &str) -> String {
            self.sign_hashed(message, namespace, "sha512")
        }

        fn sign_hashed(&self, message: &[u8], namespace: &str, hash: &str) -> String {
            let Some(name) = self.key.algorithm.ssh_name() else {
                let Secret::P256(secret) = &self.secret else { unreachable!("PEM is P-256") };
                let signature: p256::ecdsa::Signature = secret.sign(message);
                return crate::ledger::hash::encode_hex(signature.to_der().as_bytes());
            };
            let sig = SshSig {
                public_key: &self.key.blob,
                namespace: namespace.as_bytes(),
                reserved: b"",
                hash: hash.as_bytes(),
                signature: b"",
            };
            let mut signed = sig.signed_data(message).unwrap_or_else(|| message.to_vec());
            let tail = [self.flags, 0, 0, 0, 9];
            let is_sk = name.starts_with("sk-");
            if is_sk {
                let parts = [&Digest::of(b"ssh:").0[..], &tail, &Digest::of(&signed).0];
                signed = parts.concat();
            }
            let inner = match &self.secret {
                Secret::Ed25519(secret) => secret.sign(&signed).to_bytes().to_vec(),
                Secret::P256(secret) => {
                    let signature: p256::ecdsa::Signature = secret.sign(&signed);
                    let mut inner = Vec::new();
                    for scalar in signature.to_bytes().chunks(32) {
                        let zeros = scalar.iter().take_while(|b| **b == 0).count();
                        let mut digits = scalar[zeros..].to_vec();
                        if digits[0] & 0x80 != 0 {
                            digits.insert(0, 0);
                        }
                        write_string(&digits, &mut inner);
                    }
                    inner
                }
            };
            let mut signature = Vec::new();
            write_string(name.as_bytes(), &mut signature);
            write_string(&inner, &mut signature);
            if is_sk {
                signature.extend_from_slice(&tail);
            }
            let mut blob = MAGIC.to_vec();
            blob.extend_from_slice(&1u32.to_be_bytes());
            for part in [&self.key.blob[..], namespace.as_bytes(), b"", hash.as_bytes(), &signature] {
                write_string(part, &mut blob);
            }
            armour(&blob)
        }
    }

    fn armour(blob: &[u8]) -> String {
        let base64 = Base64::encode_string(blob);
        let lines: Vec<&str> =
            base64.as_bytes().chunks(70).map(|l| std::str::from_utf8(l).expect("ASCII")).collect();
        format!("-----BEGIN SSH SIGNATURE-----\n{}\n-----END SSH SIGNATURE-----\n", lines.join("\n"))
    }

    const KINDS: [Algorithm; 5] = [
        Algorithm::EcdsaP256,
        Algorithm::SshEd25519,
        Algorithm::SshP256,
        Algorithm::SshSkEd25519,
        Algorithm::SshSkP256,
    ];

    #[test]
    fn every_kind_verifies_its_own_and_nothing_else() {
        for kind in KINDS {
            let pair = Pair::new(kind, 7);
            assert_eq!(Key::parse(pair.key.to_text()).as_ref(), Ok(&pair.key));
            let signature = pair.sign(b"message", "attestd-approval");
            let verify =
                |key: &Key, message: &[u8], text: &str| key.verify(message, text, "attestd-approval");
            assert_eq!(verify(&pair.key, b"message", &signature), Ok(()), "{kind:?}");
            assert_eq!(verify(&pair.key, b"messagf", &signature), Err(NotVerified::Wrong));
            for other in KINDS {
                if other != kind {
                    assert!(verify(&Pair::new(other, 7).key, b"message", &signature).is_err(), "{other:?}");
                }
            }
            assert!(verify(&Pair::new(kind, 8).key, b"message", &signature).is_err());
        }
    }

    #[test]
    fn sshsig_is_for_one_namespace_and_two_hashes() {
        let pair = Pair::new(Algorithm::SshEd25519, 7);
        for hash in ["sha256", "sha512"] {
            let signature = pair.sign_hashed(b"m", "attestd-approval", hash);
            assert_eq!(pair.key.verify(b"m", &signature, "attestd-approval"), Ok(()));
            assert_eq!(
                pair.key.verify(b"m", &signature, "attestd-proof"),
                Err(NotVerified::Namespace("attestd-proof"))
            );
        }
        let signature = pair.sign_hashed(b"m", "attestd-approval", "sha1");
        assert!(matches!(pair.key.verify(b"m", &signature, "attestd-approval"), Err(NotVerified::Form(_))));
    }

    #[test]
    fn a_security_key_that_nobody_touched_is_refused() {
        for kind in [Algorithm::SshSkEd25519, Algorithm::SshSkP256] {
            let mut pair = Pair::new(kind, 7);
            for (flags, expected) in
                [(0, Err(NotVerified::NotPresent)), (4, Err(NotVerified::NotPresent)), (5, Ok(()))]
            {
                pair.flags = flags;
                let signature = pair.sign(b"m", "n");
                assert_eq!(pair.key.verify(b"m", &signature, "n"), expected, "{kind:?} {flags}");
            }
        }
    }

    #[test]
    fn damaged_signatures_are_refused_and_never_panic() {
        for kind in KINDS {
            let pair = Pair::new(kind, 7);
            let signature = pair.sign(b"m", "n");
            for at in 0..signature.len() {
                for replacement in [0, b'\n', b'=', b'A'] {
                    let mut bytes = signature.clone().into_bytes();
                    if bytes[at] == replacement {
                        continue;
                    }
                    bytes[at] = replacement;
                    let text = String::from_utf8(bytes).expect("ASCII");
                    if text.trim_end() != signature.trim_end() && !text.ends_with("-----A") {
                        let verdict = pair.key.verify(b"m", &text, "n");
                        assert!(verdict.is_err(), "{kind:?}: {text}");
                    }
                }
                assert!(at + 1 == signature.len() || pair.key.verify(b"m", &signature[..at], "n").is_err());
            }
        }
    }

    #[test]
    fn a_key_text_is_one_key() {
        let line = Pair::new(Algorithm::SshEd25519, 7).key.to_text().to_owned();
        let (name, base64) = line.split_once(' ').expect("two words");
        assert_eq!(Key::parse(&format!("{line} me@host\n")).expect("a comment").to_text(), line);
        for (bad, why) in [
            (String::new(), NotAKey::Form),
            (format!("ssh-rsa {base64}"), NotAKey::Form),
            (format!("sk-ssh-ed25519@openssh.com {base64}"), NotAKey::Wire),
            (format!("{name} {base64} x\n{line}"), NotAKey::Form),
            (format!("{name} {}", &base64[..base64.len() - 4]), NotAKey::Wire),
            (format!("{name} {base64}AAAA"), NotAKey::Wire),
            (format!("{line} {}", "x".repeat(MAX_KEY_TEXT)), NotAKey::Form),
            ("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n".into(), NotAKey::Form),
        ] {
            assert_eq!(Key::parse(&bad), Err(why), "{bad}");
        }
        let mut blob = Vec::new();
        write_string(b"ssh-ed25519", &mut blob);
        let mut identity = [0; 32];
        identity[0] = 1;
        write_string(&identity, &mut blob);
        let weak = format!("ssh-ed25519 {}", Base64::encode_string(&blob));
        assert_eq!(Key::parse(&weak), Err(NotAKey::Point), "the neutral point signs everything");
    }

    #[test]
    fn one_point_in_three_formats_is_one_point() {
        let point = |kind| Pair::new(kind, 7).key.point();
        assert_eq!(point(Algorithm::EcdsaP256), point(Algorithm::SshP256));
        assert_eq!(point(Algorithm::SshP256), point(Algorithm::SshSkP256));
        assert_eq!(point(Algorithm::SshEd25519), point(Algorithm::SshSkEd25519));
        let ids: std::collections::HashSet<_> = KINDS.map(|kind| Pair::new(kind, 7).key.id()).into();
        assert_eq!(ids.len(), 5);
    }
}
