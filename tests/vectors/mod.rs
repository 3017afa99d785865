//! The vectors: small ledgers, sound and unsound, sealed with a fixed test key.
//!
//! `index.json` says of each NAME.jsonl which fault a verifier must find first, or null where it
//! must accept. A defect is put in *before* hashing and signing wherever that is possible, so that
//! only the check aimed at can catch it; `twin` names the vector that is the same without it.
//!
//! This file is the generator, written without the crate's encoder so that it holds that, too; that of
//! the governed ledgers is [`governance`], that of changes of keys [`keys`].
//! `BLESS=1 cargo test --test verify` writes the files anew.

mod governance;
pub(crate) mod keys;

use attestd::ledger::checkpoint::{Checkpoint, Note};
use attestd::ledger::code::Code;
use attestd::ledger::hash::{Digest, encode_hex};
use attestd::ledger::key::PublicKey;
use attestd::ledger::merkle::{Frontier, Root};
use p256::ecdsa::signature::Signer;
use p256::ecdsa::signature::hazmat::PrehashSigner;
use p256::ecdsa::{Signature, SigningKey};
use p256::pkcs8::{EncodePublicKey, LineEnding};

pub(crate) const ORIGIN: &str = "vectors.example/ledger";

pub(crate) struct Vector {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    pub(crate) lines: Vec<Vec<u8>>,
    /// What must be found, at which sequence number. A first line that is no entry has none.
    pub(crate) expect: Option<(Code, Option<u64>)>,
    pub(crate) twin: &'static str,
}

/// Signs everything that is sound. Its secret is 32 times 0x07 and secret to nobody.
pub(crate) fn trusted_key() -> SigningKey {
    SigningKey::from_slice(&[7; 32]).expect("in range")
}

pub(crate) fn other_key() -> SigningKey {
    SigningKey::from_slice(&[8; 32]).expect("in range")
}

pub(crate) fn public(key: &SigningKey) -> PublicKey {
    let pem = key.verifying_key().to_public_key_pem(LineEnding::LF).expect("a key");
    PublicKey::from_pem(&pem).expect("a key")
}

/// How an entry is signed: from the key and the 32 bytes of its hash to the text of `hsm_signature`.
type Sign = fn(&SigningKey, &[u8]) -> String;

/// An entry before it is sealed: names and raw text of the members, in the order of the output.
#[derive(Clone)]
pub(crate) struct Draft {
    pub(crate) members: Vec<(String, Vec<u8>)>,
    pub(crate) before: &'static [u8],
    pub(crate) after: &'static [u8],
    pub(crate) key: SigningKey,
    pub(crate) sign: Sign,
    /// What `entry_hash` says instead of the truth, and what is signed then.
    pub(crate) hash: Option<Digest>,
}

impl Draft {
    pub(crate) fn set(&mut self, name: &str, text: impl AsRef<[u8]>) {
        let member = self.members.iter_mut().find(|(n, _)| n == name).expect("a member");
        member.1 = text.as_ref().to_vec();
    }

    pub(crate) fn text(&self, name: &str) -> String {
        let (_, text) = self.members.iter().find(|(n, _)| n == name).expect("a member");
        String::from_utf8(text.clone()).expect("UTF-8")
    }

    /// Sets the payload and the hash that belongs to it.
    pub(crate) fn payload(&mut self, text: impl AsRef<[u8]>) {
        self.set("action_hash", quote(&Digest::of(text.as_ref()).to_hex()));
        self.set("action_payload", text);
    }

    fn remove(&mut self, name: &str) {
        self.members.retain(|(n, _)| n != name);
    }

    fn replace(&mut self, name: &str, from: &str, to: &str) {
        let text = self.text(name);
        assert!(text.contains(from), "{name} has no {from}");
        self.set(name, text.replacen(from, to, 1));
    }

    fn seal(mut self) -> (Vec<u8>, Digest) {
        let hash = self.hash.unwrap_or_else(|| {
            let hashed = self.members.iter().filter(|(n, _)| n != "entry_hash" && n != "hsm_signature");
            Digest::of(&self.join(hashed))
        });
        let signature = (self.sign)(&self.key, &hash.0);
        self.set("entry_hash", quote(&hash.to_hex()));
        self.set("hsm_signature", quote(&signature));
        (self.join(self.members.iter()), hash)
    }

    fn join<'a>(&'a self, members: impl Iterator<Item = &'a (String, Vec<u8>)>) -> Vec<u8> {
        let mut out = [self.before, b"{"].concat();
        for (index, (name, text)) in members.enumerate() {
            out.extend_from_slice(if index == 0 { b"" } else { b"," });
            out.extend_from_slice(quote(name).as_bytes());
            out.push(b':');
            out.extend_from_slice(text);
        }
        [&out, &b"}"[..], self.after].concat()
    }
}

pub(crate) fn quote(text: &str) -> String {
    serde_json::to_string(text).expect("a string")
}

pub(crate) fn id(n: u64) -> String {
    quote(&format!("00000000-0000-4000-8000-{n:012x}"))
}

fn sign(key: &SigningKey, hash: &[u8]) -> String {
    let signature: Signature = key.sign(hash);
    encode_hex(signature.normalize_s().to_der().as_bytes())
}

const PEER: &str = r#"{"peer":{"caller":null,"exe":"/usr/bin/agent","exe_sha256":null,"gid":1000,"groups":[27,1000],"pid":4711,"start_time":"2026-11-25T02:00:00.000000Z","uid":1000,"unit":null,"user":"ann"}}"#;

/// A sound client's entry.
fn client(sequence: u64) -> Draft {
    let zeros = quote(&Digest::ZERO.to_hex());
    let payload = r#"{"to":"v2"}"#;
    let action_hash = quote(&Digest::of(payload.as_bytes()).to_hex());
    let (id, key) = (id(sequence), quote(&public(&trusted_key()).id().to_string()));
    let timestamp = quote(&format!("2026-11-25T03:00:{sequence:02}.000000Z"));
    let sequence = sequence.to_string();
    let environment = concat!(
        r#"{"attestd.boot_id":"9a6f6f0e-3c0e-4b34-9f0e-000000000000","attestd.host":"test","#,
        r#""attestd.rules":"default","attestd.version":"0.1.0"}"#
    );
    let members = [
        ("action_hash", action_hash.as_str()),
        ("action_payload", payload),
        ("action_type", r#""deploy.start""#),
        ("actor_context", PEER),
        ("actor_id", r#""uid:1000/agent""#),
        ("actor_type", r#""AUTONOMOUS_AGENT""#),
        ("attribution", r#""alpha_prime_omega""#),
        ("composite_score", "0"),
        ("conflicts_detected", "[]"),
        ("dependencies", "[]"),
        ("entry_hash", ""),
        ("entry_id", &id),
        ("environment", environment),
        ("error_details", "null"),
        ("event_category", r#""NORMAL""#),
        ("event_type", r#""ACTION""#),
        ("execution_status", r#""SUCCESS""#),
        ("hsm_signature", ""),
        ("k_state", "1"),
        ("pillars_scores", "{}"),
        ("prev_entry_hash", &zeros),
        ("proofs_valid", "true"),
        ("provided_proofs", "[]"),
        ("quorum_met", "true"),
        ("received_approvals", "[]"),
        ("replicas", "[]"),
        ("required_approvals", "0"),
        ("required_proofs", "[]"),
        ("result_data", "null"),
        ("rollback_available", "false"),
        ("rollback_executed", "false"),
        ("rollback_snapshot_hash", "null"),
        ("safety_floor_met", "false"),
        ("schema_version", r#""1.0.0""#),
        ("sequence_number", &sequence),
        ("severity", "0"),
        ("signature_algorithm", r#""ECDSA-P256-SHA256""#),
        ("signing_key_id", &key),
        ("system_state_snapshot", "{}"),
        ("timestamp", &timestamp),
    ];
    Draft {
        members: members.iter().map(|(name, text)| ((*name).into(), text.as_bytes().to_vec())).collect(),
        before: b"",
        after: b"",
        key: trusted_key(),
        sign,
        hash: None,
    }
}

fn make_daemons(draft: &mut Draft, event_type: &str, action_type: &str, payload: impl AsRef<[u8]>) {
    draft.set("actor_context", "{}");
    draft.set("actor_id", r#""attestd""#);
    draft.set("actor_type", r#""SYSTEM""#);
    draft.set("event_type", quote(event_type));
    draft.set("action_type", quote(action_type));
    draft.payload(payload);
}

fn genesis_payload(key: &SigningKey, origin: &str) -> String {
    let key = public(key);
    format!(
        r#"{{"ceremony":null,"key_attributes":{{"always_sensitive":true,"extractable":false,"local":true,"never_extractable":true,"sensitive":true}},"key_id":"{}","origin":"{origin}","predecessor":null,"public_key_pem":{},"rules":null,"signature_mode":"each","token":{{"label":"test","manufacturer":"test","model":"test","serial":"0"}}}}"#,
        key.id(),
        quote(&key.to_pem()),
    )
}

/// Seals `count` entries, each after `edit` has had it: the genesis, then clients' entries.
pub(crate) fn ledger(count: u64, edit: impl Fn(u64, &mut Draft)) -> Vec<Vec<u8>> {
    let mut previous = Digest::ZERO;
    let mut lines = Vec::new();
    for sequence in 0..count {
        let mut draft = client(sequence);
        if sequence == 0 {
            make_daemons(&mut draft, "CHANGE", "ledger.genesis", genesis_payload(&trusted_key(), ORIGIN));
        }
        draft.set("prev_entry_hash", quote(&previous.to_hex()));
        edit(sequence, &mut draft);
        let (line, hash) = draft.seal();
        previous = hash;
        lines.push(line);
    }
    lines
}

/// Seals `count` entries in mode `commit`, each after `edit` has had it; a commit ends before each
/// of `ends` and after the last. From `from` on, before which the mode is `each`.
pub(crate) fn commits(count: u64, from: u64, ends: &[u64], edit: impl Fn(u64, &mut Draft)) -> Vec<Vec<u8>> {
    let (mut previous, mut tree) = (Digest::ZERO, Frontier::new());
    let (mut lines, mut open) = (Vec::new(), Vec::new());
    for sequence in 0..count {
        let mut draft = client(sequence);
        if sequence == 0 {
            let payload = genesis_payload(&trusted_key(), ORIGIN);
            let mode = if from == 0 { "\"commit\"" } else { "\"each\"" };
            make_daemons(&mut draft, "CHANGE", "ledger.genesis", payload.replace("\"each\"", mode));
        }
        draft.set("prev_entry_hash", quote(&previous.to_hex()));
        let shares = sequence >= from;
        if shares {
            draft.set("signature_algorithm", r#""TLOG-ECDSA-P256-SHA256""#);
        }
        edit(sequence, &mut draft);
        let (line, hash) = draft.clone().seal();
        previous = hash;
        tree.push(hash).expect("room");
        if !shares {
            lines.push(line);
            continue;
        }
        draft.set("entry_hash", quote(&hash.to_hex()));
        open.push(draft);
        if ends.contains(&(sequence + 1)) || sequence + 1 == count {
            let checkpoint = Checkpoint::new(ORIGIN, tree.root()).expect("well-formed");
            let key = &open.last().expect("the entry at hand").key;
            let signature = sign(key, checkpoint.text().as_bytes());
            for mut draft in open.drain(..) {
                draft.set("hsm_signature", quote(&signature));
                lines.push(draft.join(draft.members.iter()));
            }
        }
    }
    lines
}

/// A checkpoint of `root`, signed by `key` in the name of `origin`.
pub(crate) fn note(root: Root, key: &SigningKey, origin: &str) -> Note {
    let checkpoint = Checkpoint::new(origin, root).expect("well-formed");
    let signature: Signature = key.sign(checkpoint.text().as_bytes());
    let signature = attestd::ledger::key::Signature::from_token(&signature.to_bytes()).expect("in range");
    Note::new(checkpoint, public(key).id(), &signature)
}

/// A ledger of a genesis and one entry that was edited.
fn second(edit: impl Fn(&mut Draft)) -> Vec<Vec<u8>> {
    ledger(2, |sequence, draft| {
        if sequence == 1 {
            edit(draft);
        }
    })
}

fn genesis(edit: impl Fn(&mut Draft)) -> Vec<Vec<u8>> {
    ledger(1, |_, draft| edit(draft))
}

/// A sound ledger with something of everything.
pub(crate) fn sound() -> Vec<Vec<u8>> {
    ledger(6, |sequence, draft| match sequence {
        1 => make_daemons(draft, "BOOT", "system_initialization", r#"{"version":"0.1.0"}"#),
        2 => draft.payload("{\"list\":[1,2.5,\"é\\n\",null],\"nested\":{\"a\":{},\"b\":[]}}"),
        3 => {
            draft.set("pillars_scores", SCORES);
            draft.set("composite_score", "8.125");
            draft.set("safety_floor_met", "true");
        }
        4 => draft.set("dependencies", format!("[{},{}]", id(2), id(0))),
        5 => make_daemons(draft, "SHUTDOWN", "system_shutdown", r#"{"reason":"SIGTERM"}"#),
        _ => {}
    })
}

const SCORES: &str = r#"{"an_toan":7,"duong_dai":8.5,"han_che_rui_ro":9,"tin_vao_so_lieu":8}"#;
const NEAR_FLOOR: &str = r#"{"an_toan":7,"duong_dai":7,"han_che_rui_ro":7,"tin_vao_so_lieu":6.9998}"#;

fn payload(text: impl AsRef<[u8]>) -> Vec<Vec<u8>> {
    second(|draft| draft.payload(&text))
}

fn member(name: &str, text: &str) -> Vec<Vec<u8>> {
    second(|draft| draft.set(name, text))
}

fn signed(sign: Sign) -> Vec<Vec<u8>> {
    second(|draft| draft.sign = sign)
}

fn nested(depth: usize) -> String {
    // The entry is 1 deep and the payload 2.
    format!("{{\"a\":{}{}}}", "[".repeat(depth - 2), "]".repeat(depth - 2))
}

fn changed(mut lines: Vec<Vec<u8>>, at: usize, from: &str, to: &str) -> Vec<Vec<u8>> {
    let text = String::from_utf8(lines[at].clone()).expect("UTF-8");
    assert!(text.contains(from), "{from}");
    lines[at] = text.replacen(from, to, 1).into_bytes();
    lines
}

fn der(integers: [&[u8]; 2]) -> String {
    let body: Vec<u8> = integers.iter().flat_map(|i| [&[2, i.len() as u8], *i].concat()).collect();
    encode_hex(&[&[0x30, body.len() as u8], &body[..]].concat())
}

/// The order of the curve's group, big-endian, as a positive DER integer.
const N: [u8; 33] = [
    0, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xBC, 0xE6, 0xFA,
    0xAD, 0xA7, 0x17, 0x9E, 0x84, 0xF3, 0xB9, 0xCA, 0xC2, 0xFC, 0x63, 0x25, 0x51,
];

pub(crate) fn all() -> Vec<Vector> {
    let mut all = Vec::new();
    let mut accept = |name, about, lines| {
        all.push(Vector { name, about, lines, expect: None, twin: "" });
    };
    accept("plain", "a genesis and a client's entry", second(|_| {}));
    accept("everything", "daemon's entries, scores, dependencies, nested payloads", sound());
    accept(
        "commits",
        "mode commit: commits of one, three and two entries",
        commits(6, 0, &[1, 4], |_, _| {}),
    );
    accept("mode-changed", "from mode each to mode commit", {
        commits(4, 2, &[], |sequence, draft| {
            if sequence == 1 {
                make_daemons(draft, "CHANGE", "signature.mode", r#"{"from":"each","to":"commit"}"#);
            }
        })
    });
    accept(
        "integer-at-the-edge",
        "2^53-1 and its negative",
        payload("{\"a\":[9007199254740991,-9007199254740991]}"),
    );
    accept("number-smallest", "the smallest double", payload("{\"a\":5e-324}"));
    accept("number-17-digits", "17 significant digits", payload("{\"a\":0.12345678901234568}"));
    accept("string-pair", "a surrogate pair's character", payload("{\"a\":\"😀\"}"));
    accept("string-replacement", "U+FFFD is a character", payload("{\"a\":\"\u{FFFD}\"}"));
    accept("string-escapes", "escapes as RFC 8785 writes them", payload(r#"{"a":"\u001f\b\f\n\r\t\"\\/"}"#));
    accept("string-nfc", "composed", payload("{\"a\":\"\u{e9}\"}"));
    accept("string-nfd", "decomposed", payload("{\"a\":\"e\u{301}\"}"));
    accept("order-utf16", "names by UTF-16 code units", payload("{\"😀\":1,\"\u{FB33}\":2}"));
    accept("depth-32", "as deep as allowed", payload(nested(32)));
    accept("scored", "pillars, composite and floor", {
        second(|d| {
            d.set("pillars_scores", SCORES);
            d.set("composite_score", "8.125");
            d.set("safety_floor_met", "true");
        })
    });
    accept("scored-near-floor", "a mean that only rounds up to the floor does not meet it", {
        second(|d| {
            d.set("pillars_scores", NEAR_FLOOR);
            d.set("composite_score", "7");
            d.set("execution_status", r#""FAILED""#);
        })
    });
    accept("actor-bare-uid", "a client without a name of its own", member("actor_id", r#""uid:1000""#));
    accept("peer-unknown", "of the peer only the uid is known", {
        let peer = r#"{"peer":{"caller":null,"exe":null,"exe_sha256":null,"gid":null,"groups":null,"pid":null,"start_time":null,"uid":1000,"unit":null,"user":null}}"#;
        member("actor_context", peer)
    });
    accept("context-beside-peer", "a client's own context beside the peer", {
        second(|d| d.replace("actor_context", "{\"peer\"", "{\"a\":1,\"peer\""))
    });
    accept("time-equal", "two entries at one time", member("timestamp", r#""2026-11-25T03:00:00.000000Z""#));
    accept("dependency", "on an earlier entry", member("dependencies", &format!("[{}]", id(0))));
    accept("three", "three entries", ledger(3, |_, _| {}));
    accept("genesis-alone", "nothing but a genesis", genesis(|_| {}));
    accept("key-attributes-unknown", "attributes that the module did not tell", {
        genesis(|d| {
            let payload = d.text("action_payload").replace("\"local\":true", "\"local\":null");
            d.payload(payload);
        })
    });
    accept("genesis-says-more", "unknown members in the genesis's payload", {
        genesis(|d| {
            let payload = d.text("action_payload").replace("{\"ceremony\"", "{\"a\":1,\"ceremony\"");
            d.payload(payload);
        })
    });

    let mut at = |sequence: Option<u64>, name, about, code, twin, lines| {
        all.push(Vector { name, about, lines, expect: Some((code, sequence)), twin });
    };
    reject_json(&mut |name, about, code, twin, lines| at(Some(1), name, about, code, twin, lines));
    reject_entries(&mut |name, about, code, twin, lines| at(Some(1), name, about, code, twin, lines));
    reject_signatures(&mut |name, about, code, twin, lines| at(Some(1), name, about, code, twin, lines));
    reject_chains(&mut at);
    all.extend(governance::all());
    all.extend(keys::all());
    all
}

type Reject<'a> = &'a mut dyn FnMut(&'static str, &'static str, Code, &'static str, Vec<Vec<u8>>);

fn reject_json(reject: Reject<'_>) {
    use Code::*;
    let plain = "plain";
    reject("name-twice", "a name twice", JsonDuplicateName, plain, payload(r#"{"a":1,"a":1}"#));
    reject(
        "name-twice-nested",
        "further down",
        JsonDuplicateName,
        plain,
        payload(r#"{"x":[{"a":1,"a":2}]}"#),
    );
    reject("name-twice-escaped", "escaped once", JsonDuplicateName, plain, payload(r#"{"a":1,"\u0061":2}"#));
    reject("member-twice", "a member of the entry twice", JsonDuplicateName, plain, {
        second(|d| d.members.insert(36, ("severity".into(), b"0".to_vec())))
    });
    reject("lone-surrogate", "half a pair", JsonLoneSurrogate, "string-pair", payload(r#"{"a":"\ud83d"}"#));
    reject("surrogates-reversed", "low before high", JsonLoneSurrogate, "string-pair", {
        payload(r#"{"a":"\ude00\ud83d"}"#)
    });
    reject("noncharacter", "U+FFFF", JsonNoncharacter, "string-replacement", payload("{\"a\":\"\u{FFFF}\"}"));
    reject("utf8-invalid", "a stray continuation byte", JsonUtf8, "string-nfc", payload(b"{\"a\":\"\x80\"}"));
    reject(
        "utf8-overlong",
        "an overlong form of /",
        JsonUtf8,
        "string-nfc",
        payload(b"{\"a\":\"\xC0\xAF\"}"),
    );
    reject(
        "utf8-surrogate",
        "a surrogate in UTF-8",
        JsonUtf8,
        "string-pair",
        payload(b"{\"a\":\"\xED\xA0\x80\"}"),
    );
    reject(
        "byte-order-mark",
        "at the start",
        JsonByteOrderMark,
        plain,
        second(|d| d.before = b"\xEF\xBB\xBF"),
    );
    reject("trailing-byte", "something after the entry", JsonTrailing, plain, second(|d| d.after = b"0"));
    reject("trailing-space", "white space after it", NotCanonical, plain, second(|d| d.after = b" "));
    reject("leading-space", "white space before it", NotCanonical, plain, second(|d| d.before = b" "));
    reject("space-inside", "white space in it", NotCanonical, plain, member("k_state", " 1"));
    reject("carriage-return", "a line that ends in CRLF", LineEnding, plain, second(|d| d.after = b"\r"));
    reject("nul-byte", "a NUL in a string", JsonSyntax, plain, payload(b"{\"a\":\"\0\"}"));
    reject("not-json", "text", JsonSyntax, plain, vec![ledger(1, |_, _| {}).remove(0), b"entry".to_vec()]);
    reject(
        "empty-line",
        "an empty line",
        LineEnding,
        plain,
        vec![ledger(1, |_, _| {}).remove(0), Vec::new()],
    );
    reject("array", "an array", WrongType, plain, vec![ledger(1, |_, _| {}).remove(0), b"[]".to_vec()]);
    reject("line-cut", "half an entry", JsonTruncated, plain, {
        let mut lines = second(|_| {});
        lines[1].truncate(700);
        lines
    });
    reject(
        "integer-2-53",
        "2^53",
        JsonNumberRange,
        "integer-at-the-edge",
        payload("{\"a\":9007199254740992}"),
    );
    reject(
        "integer-2-53-1",
        "2^53+1",
        JsonNumberRange,
        "integer-at-the-edge",
        payload("{\"a\":9007199254740993}"),
    );
    reject("number-1e400", "an infinity", JsonNumberRange, "integer-at-the-edge", payload("{\"a\":1e400}"));
    reject(
        "number-1e-400",
        "becomes zero",
        JsonNumberUnderflow,
        "number-smallest",
        payload("{\"a\":1e-400}"),
    );
    reject("number-18-digits", "18 digits", JsonNumberDigits, "number-17-digits", {
        payload("{\"a\":0.123456789012345678}")
    });
    reject("negative-zero", "-0", JsonNegativeZero, "integer-at-the-edge", payload("{\"a\":-0}"));
    reject("number-1.0", "1.0 for 1", NotCanonical, plain, payload("{\"a\":1.0}"));
    reject("number-1e3", "1e3 for 1000", NotCanonical, plain, payload("{\"a\":1e3}"));
    reject("number-leading-zero", "01", JsonSyntax, plain, payload("{\"a\":01}"));
    reject(
        "order-code-points",
        "code-point order",
        NotCanonical,
        "order-utf16",
        payload("{\"\u{FB33}\":2,\"😀\":1}"),
    );
    reject("order-members", "two members swapped", NotCanonical, plain, second(|d| d.members.swap(33, 34)));
    reject("escaped-letter", "an escape too many", NotCanonical, plain, payload(r#"{"a":"\u0041"}"#));
    reject("escaped-slash", "an escaped slash", NotCanonical, "string-escapes", payload(r#"{"a":"\/"}"#));
    reject("escaped-upper", "upper-case hex", NotCanonical, "string-escapes", payload(r#"{"a":"\u001F"}"#));
    reject("escaped-long", "a long form", NotCanonical, "string-escapes", payload(r#"{"a":"\u000a"}"#));
    reject("nfc-to-nfd", "normalised on the way", EntryHashMismatch, "string-nfc", {
        changed(payload("{\"a\":\"\u{e9}\"}"), 1, "\u{e9}", "e\u{301}")
    });
    reject("depth-33", "one too deep", JsonDepth, "depth-32", payload(nested(33)));
    reject("depth-bomb", "far too deep", JsonDepth, "depth-32", payload(nested(4_000)));
}

fn reject_entries(reject: Reject<'_>) {
    use Code::*;
    let plain = "plain";
    reject("member-unknown", "a 41st member", UnknownMember, plain, {
        second(|d| d.members.push(("zeal".into(), b"1".to_vec())))
    });
    reject("member-missing", "39 members", MissingMember, plain, second(|d| d.remove("severity")));
    reject(
        "null-absent",
        "absent where null is due",
        MissingMember,
        plain,
        second(|d| d.remove("result_data")),
    );
    reject("null-for-number", "null where a number is due", WrongType, plain, member("severity", "null"));
    reject("null-for-array", "null where an array is due", WrongType, plain, member("replicas", "null"));
    reject("number-as-string", "a number in quotes", WrongType, plain, member("k_state", "\"1\""));
    reject("fraction", "a fraction where an integer is due", WrongType, plain, member("k_state", "1.5"));
    reject("boolean-as-number", "0 for false", WrongType, plain, member("rollback_executed", "0"));
    reject("enum-event-type", "no such event type", WrongValue, plain, member("event_type", r#""ACTIONS""#));
    reject("enum-case", "lower case", WrongValue, plain, member("event_category", r#""normal""#));
    reject("enum-actor-type", "no such actor type", WrongValue, plain, member("actor_type", r#""ROBOT""#));
    reject("enum-status", "no such status", WrongValue, plain, member("execution_status", r#""DONE""#));
    reject("schema-version", "a later schema", SchemaVersion, plain, member("schema_version", r#""1.0.1""#));
    reject("attribution", "another attribution", WrongValue, plain, member("attribution", r#""alpha""#));
    reject("severity-11", "over the range", WrongValue, plain, member("severity", "11"));
    reject("sequence-negative", "below zero", WrongValue, plain, member("sequence_number", "-1"));
    reject("hash-upper", "upper-case hex", WrongValue, plain, {
        second(|d| d.set("action_hash", d.text("action_hash").to_uppercase()))
    });
    reject("id-version-1", "a UUID of version 1", WrongValue, plain, {
        member("entry_id", r#""00000000-0000-1000-8000-000000000001""#)
    });
    reject("id-upper", "an upper-case UUID", WrongValue, plain, {
        member("entry_id", r#""A0000000-0000-4000-8000-000000000001""#)
    });
    reject(
        "time-milliseconds",
        "three digits",
        WrongValue,
        plain,
        member("timestamp", r#""2026-11-25T03:00:01.000Z""#),
    );
    reject("time-offset", "an offset for Z", WrongValue, plain, {
        member("timestamp", r#""2026-11-25T03:00:01.000000+00:00""#)
    });
    reject(
        "time-leap",
        "a leap second",
        WrongValue,
        plain,
        member("timestamp", r#""2026-12-31T23:59:60.000000Z""#),
    );
    reject("actor-bidi", "a bidirectional override", WrongValue, plain, {
        member("actor_id", "\"uid:1000/\u{202E}tnega\"")
    });
    reject("action-type-space", "a space", WrongValue, plain, member("action_type", r#""deploy start""#));
    reject("proofs-unsorted", "unsorted", WrongValue, plain, member("required_proofs", r#"["b","a"]"#));
    reject("environment-number", "not a string", WrongType, plain, {
        second(|d| d.replace("environment", "\"test\"", "1"))
    });
    reject("environment-version", "no attestd.version", MissingMember, plain, {
        second(|d| d.replace("environment", ",\"attestd.version\":\"0.1.0\"", ""))
    });
    reject("environment-rules", "rules that are not in force", RulesInForce, plain, {
        second(|d| d.replace("environment", "default", &Digest::of(b"rules").to_hex()))
    });
    reject("pillars-three", "three of four", PillarsIncomplete, "scored", {
        member("pillars_scores", r#"{"an_toan":7,"duong_dai":8.5,"han_che_rui_ro":9}"#)
    });
    reject("pillar-range", "over 10", WrongValue, "scored", {
        member("pillars_scores", &SCORES.replace("8.5", "10.0001"))
    });
    reject("pillar-digits", "five decimals", WrongValue, "scored", {
        member("pillars_scores", &SCORES.replace("8.5", "8.50001"))
    });
    reject("action-hash", "the hash of another payload", ActionHash, plain, {
        second(|d| d.set("action_hash", quote(&Digest::of(b"{}").to_hex())))
    });
    reject("entry-hash", "the signed hash is not the entry's", EntryHashMismatch, plain, {
        second(|d| d.hash = Some(Digest::of(b"another entry")))
    });
    reject("changed-later", "a value changed after sealing", EntryHashMismatch, plain, {
        changed(second(|_| {}), 1, "\"severity\":0", "\"severity\":1")
    });
    reject("composite", "a better composite", CompositeScore, "scored", {
        second(|d| {
            d.set("pillars_scores", SCORES);
            d.set("composite_score", "8.1251");
            d.set("safety_floor_met", "true");
        })
    });
    reject(
        "composite-unscored",
        "a composite without scores",
        CompositeScore,
        plain,
        member("composite_score", "9"),
    );
    reject("floor", "a floor met by rounding", SafetyFloor, "scored-near-floor", {
        second(|d| {
            d.set("pillars_scores", NEAR_FLOOR);
            d.set("composite_score", "7");
            d.set("execution_status", r#""FAILED""#);
            d.set("safety_floor_met", "true");
        })
    });
    reject(
        "floor-unscored",
        "a floor met without scores",
        SafetyFloor,
        plain,
        member("safety_floor_met", "true"),
    );
    reject(
        "proofs-valid",
        "false though none was required",
        ProofsValid,
        plain,
        member("proofs_valid", "false"),
    );
    reject("quorum-met", "false though none was required", Quorum, plain, member("quorum_met", "false"));
    reject("proofs-required", "a required proof is not provided", ProvidedProofs, plain, {
        member("required_proofs", r#"["pillars"]"#)
    });
    reject("proofs-provided", "a proof by a prover that no rules name", ProvidedProofs, plain, {
        member("provided_proofs", r#"[{"type":"x"}]"#)
    });
    reject("approvals-required", "an approval is required and none there", Quorum, plain, {
        member("required_approvals", "1")
    });
    reject("approvals-received", "an approval that is none", ApprovalMalformed, plain, {
        member("received_approvals", r#"[{"signer":"x"}]"#)
    });
    reject("peer-missing", "a client without a peer", PeerMissing, plain, member("actor_context", "{}"));
    reject(
        "peer-null",
        "a peer of null",
        WrongType,
        "peer-unknown",
        member("actor_context", r#"{"peer":null}"#),
    );
    reject("peer-null-uid", "a peer without uid", WrongType, "peer-unknown", {
        second(|d| d.replace("actor_context", "\"uid\":1000", "\"uid\":null"))
    });
    reject("peer-text-uid", "a uid in quotes", WrongType, plain, {
        second(|d| d.replace("actor_context", "\"uid\":1000", "\"uid\":\"1000\""))
    });
    reject("peer-short", "a peer without unit", MissingMember, plain, {
        second(|d| d.replace("actor_context", "\"unit\":null,", ""))
    });
    reject("peer-long", "a peer with more", UnknownMember, plain, {
        second(|d| d.replace("actor_context", "\"user\":\"ann\"", "\"user\":\"ann\",\"zone\":1"))
    });
    reject("actor-other-uid", "another's uid", WrongValue, plain, member("actor_id", r#""uid:1001/agent""#));
    reject("actor-longer-uid", "a uid that begins alike", WrongValue, "actor-bare-uid", {
        member("actor_id", r#""uid:10001""#)
    });
    reject(
        "actor-free",
        "a name without uid",
        WrongValue,
        "actor-bare-uid",
        member("actor_id", r#""agent""#),
    );
    reject("client-as-daemon", "a client by the daemon's name", ReservedByClient, plain, {
        second(|d| {
            d.set("actor_id", r#""attestd""#);
            d.set("actor_type", r#""SYSTEM""#);
        })
    });
    reject(
        "client-boots",
        "a client's BOOT",
        ReservedByClient,
        "everything",
        member("event_type", r#""BOOT""#),
    );
    reject("client-rotates", "a client's key.rotate", ReservedByClient, plain, {
        member("action_type", r#""key.rotate""#)
    });
    reject("client-system", "a client's system_recovered", ReservedByClient, plain, {
        member("action_type", r#""system_recovered""#)
    });
    reject("human-as-daemon", "the daemon's name without peer, but a human", PeerMissing, "everything", {
        second(|d| {
            make_daemons(d, "ACTION", "system_clock", "{}");
            d.set("actor_type", r#""HUMAN""#);
        })
    });
    reject("rules-set", "a change of the rules without rules", MissingMember, "everything", {
        second(|d| make_daemons(d, "CHANGE", "rules.set", "{}"))
    });
    reject("key-rotate", "a rotation that names no key", KeyChange, "everything", {
        second(|d| make_daemons(d, "CHANGE", "key.rotate", "{}"))
    });
}

fn reject_signatures(reject: Reject<'_>) {
    use Code::*;
    let plain = "plain";
    reject("signature-flipped", "one bit of r", SignatureInvalid, plain, {
        signed(|key, hash| {
            let mut text = sign(key, hash).into_bytes();
            text[20] = if text[20] == b'0' { b'1' } else { b'0' };
            String::from_utf8(text).expect("hex")
        })
    });
    reject("signature-empty", "none", SignatureEncoding, plain, signed(|_, _| String::new()));
    reject("signature-not-hex", "base64", SignatureEncoding, plain, signed(|_, _| "MEUCIQ==".into()));
    reject(
        "signature-upper",
        "upper-case hex",
        SignatureEncoding,
        plain,
        signed(|k, h| sign(k, h).to_uppercase()),
    );
    reject("signature-raw", "r and s without DER", SignatureEncoding, plain, {
        signed(|key, hash| {
            let signature: Signature = key.sign(hash);
            encode_hex(&signature.normalize_s().to_bytes())
        })
    });
    reject("signature-padded", "a zero too many before r", SignatureEncoding, plain, {
        signed(|key, hash| {
            let signature: Signature = key.sign(hash);
            let bytes = signature.normalize_s().to_bytes();
            let (r, s) = (trim(&bytes[..32]), trim(&bytes[32..]));
            der([&[&[0], &r[..]].concat(), &s])
        })
    });
    reject("signature-long-length", "a length in two bytes", SignatureEncoding, plain, {
        signed(|key, hash| sign(key, hash).replacen("30", "3081", 1))
    });
    reject(
        "signature-trailing",
        "a byte behind it",
        SignatureEncoding,
        plain,
        signed(|k, h| sign(k, h) + "00"),
    );
    reject("signature-r-zero", "r is 0", SignatureEncoding, plain, signed(|_, _| der([&[0], &[1]])));
    reject("signature-s-zero", "s is 0", SignatureEncoding, plain, signed(|_, _| der([&[1], &[0]])));
    reject("signature-r-n", "r is n", SignatureEncoding, plain, signed(|_, _| der([&N, &[1]])));
    reject("signature-s-n", "s is n", SignatureEncoding, plain, signed(|_, _| der([&[1], &N])));
    reject(
        "signature-negative",
        "r is negative",
        SignatureEncoding,
        plain,
        signed(|_, _| der([&[0x81], &[1]])),
    );
    reject("signature-high-s", "S in the high half", SignatureHighS, plain, {
        signed(|key, hash| {
            let signature: Signature = key.sign(hash);
            let (r, s) = signature.normalize_s().split_scalars();
            encode_hex(Signature::from_scalars(r, -*s).expect("in range").to_der().as_bytes())
        })
    });
    reject("signature-of-hex", "over the hash's hex", SignatureInvalid, plain, {
        signed(|key, hash| sign(key, encode_hex(hash).as_bytes()))
    });
    reject("signature-prehashed", "the hash taken as digest", SignatureInvalid, plain, {
        signed(|key, hash| {
            let signature: Signature = key.sign_prehash(hash).expect("32 bytes");
            encode_hex(signature.normalize_s().to_der().as_bytes())
        })
    });
    reject("signature-lifted", "another entry's", SignatureInvalid, plain, {
        signed(|key, _| sign(key, &Digest::of(b"another entry").0))
    });
    reject("signature-of-purpose", "one over a bench text", SignatureInvalid, plain, {
        signed(|key, _| sign(key, b"attestd-bench-v1\nvectors.example/ledger\n0"))
    });
    reject("algorithm", "another label", SignatureMode, plain, {
        member("signature_algorithm", r#""TLOG-ECDSA-P256-SHA256""#)
    });
    reject("algorithm-unknown", "an unknown label", SignatureAlgorithm, plain, {
        member("signature_algorithm", r#""ED25519""#)
    });
    reject("key-other", "another key under its own id", UnknownKey, plain, {
        second(|d| {
            d.key = other_key();
            d.set("signing_key_id", quote(&public(&other_key()).id().to_string()));
        })
    });
    reject(
        "key-posing",
        "another key under the trusted id",
        SignatureInvalid,
        plain,
        second(|d| d.key = other_key()),
    );
    reject("key-wrong-id", "the trusted key under another id", UnknownKey, plain, {
        second(|d| d.set("signing_key_id", quote(&public(&other_key()).id().to_string())))
    });
}

type RejectAt<'a> =
    &'a mut dyn FnMut(Option<u64>, &'static str, &'static str, Code, &'static str, Vec<Vec<u8>>);

fn reject_chains(reject: RejectAt<'_>) {
    use Code::*;
    let (plain, three, alone) = ("plain", "three", "genesis-alone");
    let sound = || ledger(3, |_, _| {});
    let edited = |at: u64, edit: fn(&mut Draft)| {
        ledger(3, |sequence, draft| {
            if sequence == at {
                edit(draft);
            }
        })
    };
    let spoiled = |from: &str, to: &str| {
        genesis(|d| {
            let payload = d.text("action_payload");
            assert!(payload.contains(from), "{from}");
            d.payload(payload.replacen(from, to, 1));
        })
    };
    reject(Some(1), "prev-wrong", "prev_entry_hash of nothing", ChainBroken, plain, {
        member("prev_entry_hash", &quote(&Digest::of(b"nothing").to_hex()))
    });
    reject(Some(2), "prev-skips", "prev_entry_hash of the one before the last", ChainBroken, three, {
        let genesis = sound().remove(0);
        let text = String::from_utf8(genesis).expect("UTF-8");
        let (_, rest) = text.split_once("\"entry_hash\":").expect("a member");
        let hash = rest[..66].to_owned();
        ledger(3, |sequence, draft| {
            if sequence == 2 {
                draft.set("prev_entry_hash", &hash);
            }
        })
    });
    let order = |order: &[usize]| {
        let lines = sound();
        order.iter().map(|at| lines[*at].clone()).collect::<Vec<_>>()
    };
    reject(Some(1), "swapped", "two entries swapped", Sequence, three, order(&[0, 2, 1]));
    reject(Some(1), "deleted", "an entry deleted", Sequence, three, order(&[0, 2]));
    reject(Some(2), "repeated", "an entry repeated", Sequence, three, order(&[0, 1, 1, 2]));
    reject(Some(1), "genesis-repeated", "the genesis repeated", Sequence, three, order(&[0, 0, 1, 2]));
    reject(Some(2), "gap", "a sequence number left out", Sequence, three, {
        edited(2, |d| d.set("sequence_number", "3"))
    });
    reject(Some(1), "sequence-twice", "a sequence number used twice", Sequence, plain, {
        ledger(2, |sequence, draft| {
            if sequence == 1 {
                make_daemons(draft, "CHANGE", "ledger.genesis", genesis_payload(&trusted_key(), ORIGIN));
                draft.set("sequence_number", "0");
            }
        })
    });
    let foreign = || {
        ledger(3, |sequence, draft| {
            if sequence == 0 {
                draft.payload(genesis_payload(&trusted_key(), "other.example"));
            }
        })
    };
    reject(Some(1), "spliced", "the tail of another ledger of the same key", ChainBroken, three, {
        [&sound()[..1], &foreign()[1..]].concat()
    });
    reject(Some(1), "inserted", "an entry of another ledger in between", ChainBroken, three, {
        [&sound()[..1], &foreign()[1..2], &sound()[1..]].concat()
    });
    reject(Some(2), "time-back", "a microsecond back", TimestampOrder, "time-equal", {
        edited(2, |d| d.set("timestamp", r#""2026-11-25T03:00:00.999999Z""#))
    });
    reject(Some(2), "genesis-second", "a second genesis", Genesis, three, {
        edited(2, |d| make_daemons(d, "CHANGE", "ledger.genesis", genesis_payload(&trusted_key(), ORIGIN)))
    });
    reject(Some(0), "genesis-missing", "a client's entry 0", Genesis, alone, vec![client(0).seal().0]);
    reject(Some(0), "genesis-by-client", "a client's genesis", Genesis, alone, {
        genesis(|d| {
            d.set("actor_context", PEER);
            d.set("actor_id", r#""uid:1000""#);
        })
    });
    reject(Some(0), "genesis-event", "a genesis that is no CHANGE", Genesis, alone, {
        genesis(|d| d.set("event_type", r#""ACTION""#))
    });
    reject(Some(0), "genesis-after", "a genesis with something before it", ChainBroken, alone, {
        genesis(|d| d.set("prev_entry_hash", quote(&Digest::of(b"before").to_hex())))
    });
    reject(
        Some(0),
        "genesis-origin",
        "an origin with a space",
        Genesis,
        alone,
        spoiled("vectors.", "vec tors."),
    );
    reject(Some(0), "genesis-origin-missing", "no origin", Genesis, alone, {
        spoiled(&format!("\"origin\":\"{ORIGIN}\","), "")
    });
    reject(Some(0), "genesis-token", "no serial", Genesis, alone, spoiled(",\"serial\":\"0\"", ""));
    reject(Some(0), "genesis-attributes", "an attribute in quotes", Genesis, alone, {
        spoiled("\"local\":true", "\"local\":\"true\"")
    });
    reject(Some(0), "genesis-mode", "an unknown mode", Genesis, alone, spoiled("\"each\"", "\"both\""));
    reject(Some(0), "genesis-mode-other", "a mode in which it is not signed", SignatureMode, alone, {
        spoiled("\"each\"", "\"commit\"")
    });
    reject_commits(reject);
    reject(Some(0), "genesis-rules", "rules without callers", RulesUnmeetable, alone, {
        spoiled("\"rules\":null", "\"rules\":{}")
    });
    reject(
        Some(0),
        "genesis-rules-missing",
        "no word on rules",
        Genesis,
        alone,
        spoiled("\"rules\":null,", ""),
    );
    reject(Some(0), "genesis-predecessor", "a predecessor in quotes", Genesis, alone, {
        spoiled("\"predecessor\":null", "\"predecessor\":\"x\"")
    });
    reject(Some(0), "genesis-key-id", "the id of another key", GenesisKey, alone, {
        spoiled(&public(&trusted_key()).id().to_string(), &public(&other_key()).id().to_string())
    });
    reject(Some(0), "genesis-key-pem", "another key", GenesisKey, alone, {
        genesis(|d| {
            let pem = quote(&public(&other_key()).to_pem());
            let payload = d.text("action_payload").replace(&quote(&public(&trusted_key()).to_pem()), &pem);
            d.payload(payload);
        })
    });
    reject(Some(0), "key-from-the-log", "a ledger that vouches for its own key", UnknownKey, alone, {
        genesis(|d| {
            d.payload(genesis_payload(&other_key(), ORIGIN));
            d.key = other_key();
            d.set("signing_key_id", quote(&public(&other_key()).id().to_string()));
        })
    });
    reject(
        Some(2),
        "id-twice",
        "an entry id twice",
        DuplicateEntryId,
        three,
        edited(2, |d| d.set("entry_id", id(1))),
    );
    reject(Some(1), "depends-on-itself", "a dependency on itself", Dependency, "dependency", {
        edited(1, |d| d.set("dependencies", format!("[{}]", id(1))))
    });
    reject(Some(1), "depends-on-later", "a dependency on a later entry", Dependency, "dependency", {
        edited(1, |d| d.set("dependencies", format!("[{}]", id(2))))
    });
    reject(Some(2), "depends-on-nothing", "a dependency on no entry", Dependency, "dependency", {
        edited(2, |d| d.set("dependencies", format!("[{},{}]", id(0), id(99))))
    });
    reject(
        Some(1),
        "id-fault-first",
        "an early dependency hides behind a later chain fault",
        Dependency,
        three,
        {
            let mut lines = edited(1, |d| d.set("dependencies", format!("[{}]", id(77))));
            lines.push(sound()[1].clone());
            lines
        },
    );
    reject(
        Some(2),
        "chain-fault-first",
        "an early chain fault before a later id fault",
        TimestampOrder,
        three,
        {
            ledger(4, |sequence, draft| match sequence {
                2 => draft.set("timestamp", r#""2026-11-25T03:00:00.000000Z""#),
                3 => draft.set("entry_id", id(1)),
                _ => {}
            })
        },
    );
    reject(None, "first-line-no-entry", "nothing in the first line is an entry", JsonSyntax, alone, {
        vec![b"entries".to_vec(), ledger(1, |_, _| {}).remove(0)]
    });
}

fn reject_commits(reject: RejectAt<'_>) {
    use Code::*;
    let sound = || commits(6, 0, &[1, 4], |_, _| {});
    let signature = |line: &[u8]| {
        let text = String::from_utf8(line.to_vec()).expect("UTF-8");
        let (_, rest) = text.split_once("\"hsm_signature\":\"").expect("a member");
        rest.split('"').next().expect("a value").to_owned()
    };
    let lifted = |to: &[usize], from: usize| {
        let mut lines = sound();
        let with = signature(&lines[from]);
        for at in to {
            let own = signature(&lines[*at]);
            lines = changed(lines, *at, &own, &with);
        }
        lines
    };
    reject(
        Some(1),
        "commit-not-the-smallest",
        "the signature of a later checkpoint",
        SignatureInvalid,
        "commits",
        lifted(&[1], 4),
    );
    reject(
        Some(0),
        "commit-earlier",
        "the signature of an earlier checkpoint",
        SignatureInvalid,
        "commits",
        lifted(&[1, 2, 3], 0),
    );
    reject(Some(4), "commit-cut", "an unfinished commit", SignatureInvalid, "commits", sound()[..5].to_vec());
    reject(Some(1), "commit-flipped", "one bit of r", SignatureInvalid, "commits", {
        let own = signature(&sound()[1]);
        let other = own.chars().enumerate().map(|(at, c)| match (at, c) {
            (20, '0') => '1',
            (20, _) => '0',
            (_, c) => c,
        });
        let other: String = other.collect();
        (1..4).fold(sound(), |lines, at| changed(lines, at, &own, &other))
    });
    reject(Some(2), "commit-empty", "no signature", SignatureEncoding, "commits", {
        let own = signature(&sound()[2]);
        changed(sound(), 2, &own, "")
    });
    let mode = |at: u64, payload: &'static str, from: u64| {
        commits(4, from, &[], move |sequence, draft| {
            if sequence == at {
                make_daemons(draft, "CHANGE", "signature.mode", payload);
            }
        })
    };
    reject(
        Some(2),
        "mode-unsaid",
        "a change of mode that no entry announces",
        SignatureMode,
        "mode-changed",
        commits(4, 2, &[], |_, _| {}),
    );
    reject(
        Some(2),
        "mode-not-followed",
        "an announced mode that is not used",
        SignatureMode,
        "mode-changed",
        mode(1, r#"{"from":"each","to":"commit"}"#, 9),
    );
    reject(
        Some(2),
        "mode-early",
        "the new mode in the announcement itself",
        SignatureMode,
        "mode-changed",
        mode(2, r#"{"from":"each","to":"commit"}"#, 2),
    );
    reject(Some(1), "mode-same", "from a mode to itself", SignatureMode, "mode-changed", {
        mode(1, r#"{"from":"each","to":"each"}"#, 9)
    });
    reject(Some(1), "mode-unknown", "to an unknown mode", SignatureMode, "mode-changed", {
        mode(1, r#"{"from":"each","to":"both"}"#, 2)
    });
    reject(Some(1), "mode-by-client", "a client's change of mode", ReservedByClient, "mode-changed", {
        commits(4, 2, &[], |sequence, draft| {
            if sequence == 1 {
                draft.set("action_type", r#""signature.mode""#);
                draft.payload(r#"{"from":"each","to":"commit"}"#);
            }
        })
    });
}

/// A big-endian integer as the content of a minimal DER INTEGER.
fn trim(integer: &[u8]) -> Vec<u8> {
    let zeros = integer.iter().take_while(|byte| **byte == 0).count();
    let digits = &integer[zeros..];
    let pad: &[u8] = if digits[0] & 0x80 == 0 { &[] } else { &[0] };
    [pad, digits].concat()
}
