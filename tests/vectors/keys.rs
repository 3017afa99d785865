//! Ledgers whose key changes, and the ways to forge such a change. Entry 2 hands over from the trusted
//! key to the other one, entry 3 is the first that the other one signs.

use attestd::governance::keyring::Keyring;
use attestd::ledger::code::Code;
use attestd::ledger::entry::Sequence;
use attestd::ledger::hash::{Digest, encode_hex};
use attestd::ledger::merkle::TreeSize;
use attestd::ledger::tile::{Edge, Tile, TileBytes, Tree};
use p256::ecdsa::signature::Signer;
use p256::ecdsa::{Signature, SigningKey};

use super::{
    Draft, ORIGIN, Vector, commits, ledger, make_daemons, other_key, public, quote, sign, trusted_key,
};

type Lines = Vec<Vec<u8>>;

/// Is the ledger's third key.
pub(crate) fn third_key() -> SigningKey {
    SigningKey::from_slice(&[9; 32]).expect("in range")
}

/// What the new key signs in a rotation.
fn proof(origin: &str, old: &SigningKey, new: &SigningKey, at: u64) -> Vec<u8> {
    Keyring::challenge(origin, public(old).id(), public(new).id(), Sequence(at)).message().to_vec()
}

fn rotation(new: &SigningKey, proof: &str) -> String {
    let key = public(new);
    format!(
        r#"{{"key_attributes":{{"always_sensitive":true,"extractable":false,"local":true,"never_extractable":true,"sensitive":true}},"key_id":"{id}","proof":"{proof}","public_key_pem":{pem},"to":{{"key_id":"{id}"}},"token":{{"label":"next","manufacturer":"test","model":"test","serial":"1"}}}}"#,
        id = key.id(),
        pem = quote(&key.to_pem()),
    )
}

fn rotate(draft: &mut Draft, old: &SigningKey, new: &SigningKey, at: u64) {
    let proof = sign(new, &proof(ORIGIN, old, new, at));
    make_daemons(draft, "CHANGE", "key.rotate", rotation(new, &proof));
}

fn activate(draft: &mut Draft, old: &SigningKey, new: &SigningKey) {
    let (old, new) = (public(old).id(), public(new).id());
    let payload = format!(r#"{{"key_id":"{new}","previous_key_id":"{old}"}}"#);
    make_daemons(draft, "CHANGE", "key.activate", payload);
}

fn revoke(draft: &mut Draft, key: &SigningKey, size: u64) {
    let (root, path) = shown(size);
    revoke_with(draft, key, size, &root, &path);
}

fn revoke_with(draft: &mut Draft, key: &SigningKey, size: u64, root: &str, path: &str) {
    let payload = format!(
        r#"{{"checkpoint":{{"root":"{root}","size":{size}}},"consistency":{path},"key_id":"{}","reason":"it was left in a taxi"}}"#,
        public(key).id()
    );
    make_daemons(draft, "CHANGE", "key.revoke", payload);
}

/// The root of the first `size` entries, and the proof that those of the first key begin with them.
fn shown(size: u64) -> (String, String) {
    let lines = rotated(3, |_| {});
    let mut edge = Edge::new();
    let tiles: Vec<TileBytes> = edge.extend(lines.iter().map(|line| hash_of(line))).expect("room");
    let read = |tile: Tile| tiles.iter().find(|t| t.tile == tile).map(|t| t.bytes.clone()).ok_or(());
    let sized = |size: u64| TreeSize::new(size).expect("a size");
    let mut tree = Tree::new(sized(3), read);
    if !(1..=3).contains(&size) {
        return ("ab".repeat(32), "[]".into());
    }
    let path = tree.consistency(sized(size), sized(3)).expect("a proof");
    let path: Vec<String> = path.iter().map(|hash| format!("\"{hash}\"")).collect();
    (tree.root(sized(size)).expect("a root").hash.to_string(), format!("[{}]", path.join(",")))
}

fn hash_of(line: &[u8]) -> Digest {
    let entry: serde_json::Value = serde_json::from_slice(line).expect("JSON");
    Digest::from_hex(entry["entry_hash"].as_str().expect("a hash").as_bytes()).expect("hex")
}

fn by(draft: &mut Draft, key: &SigningKey) {
    draft.set("signing_key_id", quote(&public(key).id().to_string()));
    draft.key = key.clone();
}

/// The sound beginning of all of these.
fn hand_over(sequence: u64, draft: &mut Draft) {
    match sequence {
        2 => rotate(draft, &trusted_key(), &other_key(), 2),
        3 => activate(draft, &trusted_key(), &other_key()),
        _ => {}
    }
    if sequence > 2 {
        by(draft, &other_key());
    }
}

/// A ledger of `count` entries that is sound but for the last one, to which `edit` is done.
fn rotated(count: u64, edit: impl Fn(&mut Draft)) -> Lines {
    ledger(count, |sequence, draft| {
        hand_over(sequence, draft);
        if sequence + 1 == count {
            edit(draft);
        }
    })
}

/// One that ends in a rotation of which something is put in the place of something else.
fn spoiled(from: &str, to: &str) -> Lines {
    rotated(3, |draft| {
        let payload = draft.text("action_payload");
        assert!(payload.contains(from), "no {from} in {payload}");
        draft.payload(payload.replacen(from, to, 1));
    })
}

/// One that ends in a rotation with another proof.
fn proven(by: &SigningKey, message: &[u8]) -> Lines {
    rotated(3, |draft| draft.payload(rotation(&other_key(), &sign(by, message))))
}

pub(super) fn all() -> Vec<Vector> {
    let mut all = Vec::new();
    let mut accept = |name, about, lines| {
        all.push(Vector { name, about, lines, expect: None, twin: "" });
    };
    let back = |sequence: u64, draft: &mut Draft| {
        hand_over(sequence, draft);
        match sequence {
            5 => rotate(draft, &other_key(), &third_key(), 5),
            6 => activate(draft, &other_key(), &third_key()),
            _ => {}
        }
        if sequence > 5 {
            by(draft, &third_key());
        }
    };
    accept("keys-rotated", "from one key to another", rotated(5, |_| {}));
    accept("keys-rotated-last", "a rotation that is not completed yet", rotated(3, |_| {}));
    accept("keys-activated-last", "a rotation that is", rotated(4, |_| {}));
    accept("keys-rotated-twice", "three keys", ledger(8, back));
    accept(
        "keys-rotated-commits",
        "from one key to another in mode commit",
        commits(6, 0, &[1, 3, 4], hand_over),
    );
    accept("keys-revoked", "the key before is not trusted to its end", {
        rotated(6, |draft| revoke(draft, &trusted_key(), 2))
    });
    accept("keys-revoked-to-its-end", "the key before is trusted to its end, and no further", {
        rotated(6, |draft| revoke(draft, &trusted_key(), 3))
    });

    let mut reject = |sequence, name, about, code, twin, lines| {
        all.push(Vector { name, about, lines, expect: Some((code, Some(sequence))), twin });
    };
    use Code::*;
    let (trusted, other) = (trusted_key(), other_key());
    let plain = "keys-rotated";
    reject(4, "keys-old-again", "the old key signs on", KeyRange, plain, rotated(5, |d| by(d, &trusted)));
    reject(1, "keys-new-early", "the new key signs before it is one", UnknownKey, "keys-rotated", {
        ledger(5, |sequence, draft| {
            hand_over(sequence, draft);
            if sequence == 1 {
                by(draft, &other_key());
            }
        })
    });
    reject(4, "keys-old-as-new", "the old key under the new one's id", SignatureInvalid, plain, {
        rotated(5, |d| d.key = trusted.clone())
    });
    reject(4, "keys-new-as-old", "the new key under the old one's id", KeyRange, plain, {
        rotated(5, |d| d.set("signing_key_id", quote(&public(&trusted).id().to_string())))
    });
    reject(
        4,
        "keys-unknown",
        "a key that nobody named",
        UnknownKey,
        plain,
        rotated(5, |d| by(d, &third_key())),
    );
    let last = "keys-rotated-last";
    reject(2, "keys-rotated-by-new", "a rotation that the new key signs", UnknownKey, last, {
        rotated(3, |d| by(d, &other))
    });
    reject(
        2,
        "keys-rotated-as-old",
        "a rotation that the new key signs in the old one's name",
        SignatureInvalid,
        last,
        rotated(3, |d| d.key = other.clone()),
    );

    let done = "keys-activated-last";
    reject(3, "keys-not-activated", "a client's entry after a rotation", KeyActivation, done, {
        ledger(
            4,
            |sequence, draft| {
                if sequence == 3 { by(draft, &other_key()) } else { hand_over(sequence, draft) }
            },
        )
    });
    reject(3, "keys-not-activated-boot", "a boot after a rotation", KeyActivation, done, {
        rotated(4, |d| make_daemons(d, "BOOT", "system_initialization", r#"{"version":"0.1.0"}"#))
    });
    reject(3, "keys-rotated-at-once", "a rotation after a rotation", KeyActivation, done, {
        rotated(4, |d| rotate(d, &other_key(), &third_key(), 3))
    });
    reject(3, "keys-activated-by-old", "the old key activates the new one", KeyRange, done, {
        rotated(4, |d| by(d, &trusted))
    });
    reject(3, "keys-activated-other", "another key is activated", KeyChange, done, {
        rotated(4, |d| activate(d, &trusted_key(), &third_key()))
    });
    reject(3, "keys-activated-after-other", "after another key", KeyChange, done, {
        rotated(4, |d| activate(d, &third_key(), &other_key()))
    });
    reject(3, "keys-activated-type", "an ACTION that activates", WrongValue, done, {
        rotated(4, |d| d.set("event_type", r#""ACTION""#))
    });
    reject(4, "keys-activated-twice", "activated again", KeyActivation, plain, {
        rotated(5, |d| activate(d, &trusted_key(), &other_key()))
    });
    reject(1, "keys-activated-alone", "activated without a rotation", KeyActivation, "plain", {
        ledger(2, |sequence, draft| {
            if sequence == 1 {
                activate(draft, &other_key(), &trusted_key());
            }
        })
    });
    reject(4, "keys-other-change", "a change of keys that nobody knows", KeyChange, plain, {
        rotated(5, |d| make_daemons(d, "CHANGE", "key.lend", "{}"))
    });

    let sound = proof(ORIGIN, &trusted, &other, 2);
    reject(
        2,
        "keys-proof-by-old",
        "the old key proves the new one",
        KeyProof,
        last,
        proven(&trusted, &sound),
    );
    reject(
        2,
        "keys-proof-by-third",
        "another key proves the new one",
        KeyProof,
        last,
        proven(&third_key(), &sound),
    );
    reject(2, "keys-proof-place", "a proof for another sequence number", KeyProof, last, {
        proven(&other, &proof(ORIGIN, &trusted, &other, 3))
    });
    reject(2, "keys-proof-origin", "a proof for another ledger", KeyProof, last, {
        proven(&other, &proof("vectors.example/other", &trusted, &other, 2))
    });
    reject(2, "keys-proof-old", "a proof that it follows another key", KeyProof, last, {
        proven(&other, &proof(ORIGIN, &third_key(), &other, 2))
    });
    reject(2, "keys-proof-new", "a proof of another key", KeyProof, last, {
        proven(&other, &proof(ORIGIN, &trusted, &third_key(), 2))
    });
    reject(2, "keys-proof-possession", "a proof for another purpose", KeyProof, last, {
        let text = String::from_utf8(sound.clone()).expect("UTF-8").replace("-rotate-", "-possession-");
        proven(&other, text.as_bytes())
    });
    reject(2, "keys-proof-high", "a proof with S in the high half", SignatureHighS, last, {
        rotated(3, |d| {
            let signature: Signature = other.sign(&sound);
            let (r, s) = signature.normalize_s().split_scalars();
            let high = Signature::from_scalars(r, -*s).expect("in range");
            d.payload(rotation(&other, &encode_hex(high.to_der().as_bytes())));
        })
    });
    reject(2, "keys-proof-empty", "an empty proof", SignatureEncoding, last, {
        rotated(3, |d| d.payload(rotation(&other, "")))
    });
    reject(2, "keys-proof-missing", "no proof", KeyChange, last, spoiled("\"proof\"", "\"poof\""));

    reject(2, "keys-rotated-to-same", "to the key that there is", KeyReused, last, {
        rotated(3, |d| rotate(d, &trusted, &trusted, 2))
    });
    reject(5, "keys-rotated-back", "to the key before", KeyReused, "keys-rotated-twice", {
        rotated(6, |d| rotate(d, &other, &trusted, 5))
    });
    let (other_id, third_id) = (public(&other).id().to_string(), public(&third_key()).id().to_string());
    reject(2, "keys-rotated-id", "the id of another key", KeyChange, last, spoiled(&other_id, &third_id));
    reject(2, "keys-rotated-unasked", "to a key that nobody asked for", KeyChange, last, {
        spoiled(&format!("\"to\":{{\"key_id\":\"{other_id}"), &format!("\"to\":{{\"key_id\":\"{third_id}"))
    });
    reject(
        2,
        "keys-rotated-to-nothing",
        "without what was asked for",
        KeyChange,
        last,
        spoiled("\"to\":", "\"tn\":"),
    );
    reject(2, "keys-rotated-pem", "a PEM that is spelt otherwise", KeyChange, last, {
        spoiled("-----END PUBLIC KEY-----\\n", "-----END PUBLIC KEY-----")
    });
    reject(
        2,
        "keys-rotated-token",
        "without a word on the token",
        KeyChange,
        last,
        spoiled("\"serial\"", "\"serian\""),
    );
    reject(2, "keys-rotated-attributes", "an attribute in quotes", KeyChange, last, {
        spoiled("\"extractable\":false", "\"extractable\":\"false\"")
    });

    let revoked = "keys-revoked";
    reject(5, "keys-revoked-in-force", "the key that signs this", KeyChange, revoked, {
        rotated(6, |d| revoke(d, &other, 5))
    });
    reject(5, "keys-revoked-unknown", "a key that was never the ledger's", UnknownKey, revoked, {
        rotated(6, |d| revoke(d, &third_key(), 2))
    });
    reject(5, "keys-revoked-beyond", "trusted beyond its last checkpoint", KeyChange, revoked, {
        rotated(6, |d| revoke(d, &trusted, 4))
    });
    reject(5, "keys-revoked-nothing", "trusted up to the empty tree", KeyChange, revoked, {
        rotated(6, |d| revoke(d, &trusted, 0))
    });
    reject(5, "keys-revoked-reason", "no reason", KeyChange, revoked, {
        rotated(6, |d| {
            revoke(d, &trusted, 2);
            let payload = d.text("action_payload").replace("it was left in a taxi", "");
            d.payload(payload);
        })
    });
    reject(5, "keys-revoked-root", "a checkpoint of another tree", KeyChange, revoked, {
        rotated(6, |d| revoke_with(d, &trusted, 2, &"ab".repeat(32), &shown(2).1))
    });
    reject(
        5,
        "keys-revoked-unshown",
        "a checkpoint that nothing shows to be of the tree",
        KeyChange,
        revoked,
        rotated(6, |d| revoke_with(d, &trusted, 2, &shown(2).0, "[]")),
    );
    reject(5, "keys-revoked-proof", "no proof", KeyChange, revoked, {
        rotated(6, |d| revoke_with(d, &trusted, 2, &shown(2).0, "null"))
    });
    reject(6, "keys-revoked-twice", "revoked again", KeyChange, revoked, {
        ledger(7, |sequence, draft| {
            hand_over(sequence, draft);
            if sequence > 4 {
                revoke(draft, &trusted, 2);
            }
        })
    });
    reject(6, "keys-revoked-signs", "the revoked key signs", KeyRange, revoked, {
        ledger(7, |sequence, draft| {
            hand_over(sequence, draft);
            match sequence {
                5 => revoke(draft, &trusted, 2),
                6 => by(draft, &trusted),
                _ => {}
            }
        })
    });

    let shared = "keys-rotated-commits";
    reject(1, "keys-commit-goes-on", "a commit that ends under the new key", SignatureInvalid, shared, {
        commits(6, 0, &[1, 4], hand_over)
    });
    reject(
        1,
        "keys-commit-by-new",
        "the rotation's commit is signed by the new key",
        SignatureInvalid,
        shared,
        {
            commits(6, 0, &[1, 3, 4], |sequence, draft| {
                hand_over(sequence, draft);
                draft.key = if sequence > 0 { other_key() } else { trusted_key() };
            })
        },
    );
    reject(4, "keys-commit-by-old", "a later commit is signed by the old key", SignatureInvalid, shared, {
        commits(6, 0, &[1, 3, 4], |sequence, draft| {
            hand_over(sequence, draft);
            if sequence > 3 {
                draft.key = trusted_key();
            }
        })
    });
    all
}
