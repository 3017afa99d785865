//! Who acts in the governed ledgers: processes, rules, and the keys of approvers and provers. All
//! secrets are 32 times one byte, and secret to nobody.

use attestd::governance::caller::Peer;
use attestd::governance::key::Key;
use attestd::ledger::hash::{Digest, encode_hex};
use attestd::ledger::json;
use base64ct::{Base64, Encoding};
use ed25519_dalek::Signer as _;
use p256::ecdsa::{Signature, SigningKey};
use p256::pkcs8::{EncodePublicKey, LineEnding};
use sha2::Digest as _;

use super::super::quote;

pub(super) const OPS: u32 = 1000;
pub(super) const DEV: u32 = 1001;
pub(super) const SEALER: u32 = 1002;
pub(super) const READER: u32 = 1003;
/// No rule matches this one.
pub(super) const STRANGER: u32 = 1009;

/// A process of `uid`, with its canonical object.
pub(super) fn peer(uid: u32, caller: Option<&str>) -> (Peer, String) {
    let caller = caller.map_or_else(|| "null".into(), quote);
    let json = format!(
        r#"{{"caller":{caller},"exe":"/usr/bin/agent","exe_sha256":null,"gid":{uid},"groups":[{uid}],"pid":4711,"start_time":"2026-11-25T02:00:00.000000Z","uid":{uid},"unit":null,"user":null}}"#
    );
    (Peer::parse(&json).expect("a peer"), json)
}

/// The name that the rules below have for `uid`.
pub(super) fn caller_of(uid: u32) -> Option<&'static str> {
    match uid {
        OPS => Some("ops"),
        DEV => Some("dev"),
        SEALER => Some("sealer"),
        READER => Some("reader"),
        _ => None,
    }
}

/// A key pair of one of the kinds that may approve and prove.
pub(super) struct Pair {
    pub(super) key: Key,
    kind: &'static str,
    secret: Secret,
    /// FIDO: bit 0 says that somebody touched the key.
    pub(super) flags: u8,
}

enum Secret {
    P256(SigningKey),
    Ed25519(ed25519_dalek::SigningKey),
}

const PEM: &str = "";
const ED25519: &str = "ssh-ed25519";
const P256: &str = "ecdsa-sha2-nistp256";
const SK_ED25519: &str = "sk-ssh-ed25519@openssh.com";

/// Approves as the creator, with a PEM key.
pub(super) fn ann() -> Pair {
    Pair::new(PEM, 0x11)
}

/// Approves as the community, with an SSH key.
pub(super) fn bo() -> Pair {
    Pair::new(ED25519, 0x12)
}

/// Approves as an auditor, with a security key.
pub(super) fn cy() -> Pair {
    Pair::new(SK_ED25519, 0x13)
}

/// Approves as an auditor too, with an SSH key of the other curve; is behind the caller `dev`.
pub(super) fn di() -> Pair {
    Pair::new(P256, 0x14)
}

/// In no rules.
pub(super) fn eve() -> Pair {
    Pair::new(ED25519, 0x1e)
}

/// Proves that tests passed.
pub(super) fn ci() -> Pair {
    Pair::new(ED25519, 0x21)
}

pub(super) fn pair(name: &str) -> Pair {
    match name {
        "ann" => ann(),
        "bo" => bo(),
        "cy" => cy(),
        "di" => di(),
        _ => eve(),
    }
}

/// `ann`'s point in the other format.
pub(super) fn ann_by_ssh() -> Pair {
    Pair::new(P256, 0x11)
}

/// The key that signs the ledger.
pub(super) fn ledgers() -> Pair {
    Pair::new(PEM, 7)
}

fn wire(parts: &[&[u8]]) -> Vec<u8> {
    parts
        .iter()
        .flat_map(|part| [&u32::try_from(part.len()).expect("short").to_be_bytes(), *part].concat())
        .collect()
}

impl Pair {
    fn new(kind: &'static str, seed: u8) -> Self {
        let p256 = SigningKey::from_slice(&[seed; 32]).expect("in range");
        let ed25519 = ed25519_dalek::SigningKey::from_bytes(&[seed; 32]);
        let point = p256.verifying_key().to_sec1_point(false);
        let text = match kind {
            PEM => p256.verifying_key().to_public_key_pem(LineEnding::LF).expect("a key"),
            P256 => ssh_text(kind, &[b"nistp256", point.as_bytes()]),
            ED25519 => ssh_text(kind, &[ed25519.verifying_key().as_bytes()]),
            _ => ssh_text(kind, &[ed25519.verifying_key().as_bytes(), b"ssh:"]),
        };
        let secret = if kind.contains("ed25519") { Secret::Ed25519(ed25519) } else { Secret::P256(p256) };
        Pair { key: Key::parse(&text).expect("a key"), kind, secret, flags: 1 }
    }

    fn raw(&self, message: &[u8]) -> Vec<u8> {
        match &self.secret {
            Secret::Ed25519(secret) => secret.sign(message).to_bytes().to_vec(),
            Secret::P256(secret) => {
                let signature: Signature = secret.sign(message);
                signature.to_bytes().to_vec()
            }
        }
    }

    /// What `openssl dgst -sha256 -sign` or `ssh-keygen -Y sign` make.
    pub(super) fn sign(&self, message: &str, namespace: &str) -> String {
        if self.kind == PEM {
            let signature = Signature::from_slice(&self.raw(message.as_bytes())).expect("a signature");
            return encode_hex(signature.normalize_s().to_der().as_bytes());
        }
        let hash = sha2::Sha512::digest(message.as_bytes());
        let framed = [&b"SSHSIG"[..], &wire(&[namespace.as_bytes(), b"", b"sha512", &hash])].concat();
        let tail = [self.flags, 0, 0, 0, 9];
        let signature = match self.kind {
            SK_ED25519 => {
                let signed = [&Digest::of(b"ssh:").0[..], &tail, &Digest::of(&framed).0].concat();
                [&wire(&[self.kind.as_bytes(), &self.raw(&signed)])[..], &tail].concat()
            }
            P256 => {
                let raw = self.raw(&framed);
                let scalars = [super::super::trim(&raw[..32]), super::super::trim(&raw[32..])];
                wire(&[self.kind.as_bytes(), &wire(&[&scalars[0], &scalars[1]])])
            }
            _ => wire(&[self.kind.as_bytes(), &self.raw(&framed)]),
        };
        let (_, blob) = self.key.to_text().split_once(' ').expect("two words");
        let blob = Base64::decode_vec(blob).expect("Base64");
        let parts = wire(&[&blob, namespace.as_bytes(), b"", b"sha512", &signature]);
        let base64 = Base64::encode_string(&[&b"SSHSIG"[..], &1u32.to_be_bytes(), &parts].concat());
        let lines: Vec<&str> =
            base64.as_bytes().chunks(70).map(|line| std::str::from_utf8(line).expect("ASCII")).collect();
        format!("-----BEGIN SSH SIGNATURE-----\n{}\n-----END SSH SIGNATURE-----\n", lines.join("\n"))
    }

    /// An ECDSA signature with S in the high half, as some cards and programs make it.
    pub(super) fn sign_high(&self, message: &str) -> String {
        let low = Signature::from_slice(&self.raw(message.as_bytes())).expect("a signature").normalize_s();
        let (r, s) = low.split_scalars();
        encode_hex(Signature::from_scalars(r, -*s).expect("in range").to_der().as_bytes())
    }
}

fn ssh_text(kind: &str, parts: &[&[u8]]) -> String {
    let blob = [wire(&[kind.as_bytes()]), wire(parts)].concat();
    format!("{kind} {}", Base64::encode_string(&blob))
}

fn approver(name: &str, role: &str, callers: &str, key: &Key) -> String {
    format!(
        r#"{{"actor_ids":[],"callers":{callers},"name":"{name}","public_key":{},"role":"{role}"}}"#,
        quote(key.to_text())
    )
}

fn caller(name: &str, uid: u32, narrowed: &str, verbs: &str) -> String {
    let rest =
        if narrowed.is_empty() { r#""actor_ids":[],"actor_types":[],"event_types":[]"# } else { narrowed };
    format!(r#"{{"clearance":0,"name":"{name}","uid":{uid},"verbs":{verbs},{rest}}}"#)
}

fn action(kind: &str, approvals: u32, roles: &str, proofs: &str, blocks: bool) -> String {
    format!(
        r#"{{"approvals":{approvals},"clearance":0,"lifetime_seconds":60,"proofs":{proofs},"rejection_blocks":{blocks},"roles":{roles},"type":"{kind}"}}"#
    )
}

/// The canonical rules that the governed ledgers have in force, with another list of approvers if
/// one is given.
pub(super) fn rules_with(approvers: &[(&str, &str, &str, Pair)]) -> String {
    let approvers: Vec<String> = approvers
        .iter()
        .map(|(name, role, callers, pair)| approver(name, role, callers, &pair.key))
        .collect();
    let narrow =
        r#""actor_ids":["dev","dev/*"],"actor_types":["AUTONOMOUS_AGENT"],"event_types":["ACTION","CHANGE"]"#;
    let callers = [
        caller("ops", OPS, "", r#"["administer","append","propose","read","seal"]"#),
        caller("dev", DEV, narrow, r#"["append","propose","seal"]"#),
        // Never the first that matches.
        caller("late", DEV, "", r#"["administer","append","propose","read","seal"]"#),
        caller("sealer", SEALER, "", r#"["seal"]"#),
        caller("reader", READER, "", r#"["read"]"#),
    ];
    let actions = [
        action(
            "policy.*",
            3,
            r#"["auditor","community","creator"]"#,
            r#"["k1_state","pillars","rollback","safety_floor"]"#,
            true,
        ),
        action("risky.*", 2, "[]", "[]", false),
        action("deploy.*", 0, "[]", r#"["rollback"]"#, true),
        action("scored.*", 0, "[]", r#"["pillars"]"#, true),
        action("tested.*", 0, "[]", r#"["tests"]"#, true),
        action("booted.*", 0, "[]", r#"["attribution_intact"]"#, true),
        action("rules.set", 1, r#"["creator"]"#, "[]", true),
        action("signature.*", 1, r#"["creator"]"#, "[]", true),
    ];
    let prover = format!(r#"{{"name":"ci","proof":"tests","public_key":{}}}"#, quote(ci().key.to_text()));
    let text = format!(
        r#"{{"actions":[{}],"approvers":[{}],"callers":[{}],"pillars":{{"floor":"7","weights":{{"an_toan":1,"duong_dai":1,"han_che_rui_ro":1,"tin_vao_so_lieu":1}}}},"provers":[{prover}]}}"#,
        actions.join(","),
        approvers.join(","),
        callers.join(","),
    );
    json::canonicalize(text.as_bytes()).expect("JSON")
}

pub(super) fn approvers() -> Vec<(&'static str, &'static str, &'static str, Pair)> {
    vec![
        ("ann", "creator", "[]", ann()),
        ("bo", "community", "[]", bo()),
        ("cy", "auditor", "[]", cy()),
        ("di", "auditor", r#"["dev"]"#, di()),
    ]
}

pub(super) fn rules() -> String {
    rules_with(&approvers())
}
