//! Changes of the ledger's key under rules: by an administrator, by approval, and never to the key of an
//! approver.

use attestd::governance::keyring::Keyring;
use attestd::ledger::code::Code;
use attestd::ledger::draft::Draft as Request;
use attestd::ledger::entry::EventType;
use p256::ecdsa::SigningKey;

use super::super::{keys, other_key, public, quote, sign, trusted_key};
use super::book::{Book, NOTHING, request};
use super::cast::{self, DEV, OPS, SEALER};
use super::{Lines, ORIGIN, Vectors};

pub(super) fn add(vectors: &mut Vectors) {
    use Code::*;
    vectors.accept("gov-rotated", "an administrator rotates, where nothing has to be approved", {
        let mut book = Book::new();
        rotate(&mut book, &other_key(), OPS);
        activate(&mut book, &other_key());
        book.lines
    });
    vectors.reject("gov-rotated-to-approver", "to the key of an approver", RulesSharedKey, {
        let mut book = Book::new();
        rotate(&mut book, &SigningKey::from_slice(&[0x11; 32]).expect("in range"), OPS);
        book.lines
    });
    vectors.reject("gov-rotated-to-ssh-approver", "to the point of an approver's SSH key", RulesSharedKey, {
        let mut book = Book::new();
        rotate(&mut book, &SigningKey::from_slice(&[0x14; 32]).expect("in range"), OPS);
        book.lines
    });
    vectors.reject("gov-rotated-by-sealer", "by somebody who does not administer", CallerNotAllowed, {
        let mut book = Book::new();
        rotate(&mut book, &other_key(), SEALER);
        book.lines
    });
    vectors.reject(
        "gov-rotated-unapproved",
        "without the approvals that the rules ask for",
        RequiredApprovals,
        {
            let mut book = governed();
            rotate(&mut book, &other_key(), OPS);
            book.lines
        },
    );

    vectors.accept("gov-rotation-sealed", "an approved rotation", {
        let mut book = governed();
        sealed(&mut book, |_| {});
        activate(&mut book, &other_key());
        book.lines
    });
    vectors.reject("gov-rotation-to-another", "to another key than was approved", KeyChange, {
        sealed_lines(|payload| {
            let new = keys::third_key();
            *payload = found(payload, &new);
        })
    });
    vectors.reject("gov-rotation-elsewhere", "from another place than was approved", ProposalDraft, {
        sealed_lines(|payload| *payload = payload.replace("object=next", "object=evil"))
    });
    vectors.reject("gov-rotation-proof", "with a proof for another place", KeyProof, {
        sealed_lines(|payload| {
            let wrong = proof(&other_key(), 99);
            let from = payload.find("\"proof\":\"").expect("a proof") + 9;
            let to = from + payload[from..].find('"').expect("an end");
            payload.replace_range(from..to, &wrong);
        })
    });
}

fn sealed_lines(spoil: impl FnOnce(&mut String)) -> Lines {
    let mut book = governed();
    sealed(&mut book, spoil);
    book.lines
}

/// Where the creator must approve of changes of the key.
fn governed() -> Book {
    let rules = cast::rules().replace("\"type\":\"rules.set\"", "\"type\":\"key.*\"");
    let mut book = Book::with(&rules);
    book.own(
        EventType::Boot,
        "system_initialization",
        r#"{"attribution_verified":true,"version":"0.1.0"}"#.into(),
        NOTHING,
    );
    book
}

/// The proof for the next entry, or for the one `at`.
fn proof(new: &SigningKey, at: u64) -> String {
    let challenge = Keyring::challenge(
        ORIGIN,
        public(&trusted_key()).id(),
        public(new).id(),
        attestd::ledger::entry::Sequence(at),
    );
    sign(new, challenge.message())
}

/// What the daemon adds to what was asked for, in a payload that may have it already.
fn found(payload: &str, new: &SigningKey) -> String {
    let mut value: serde_json::Value = serde_json::from_str(payload).expect("JSON");
    let at = value["at"].take().as_u64();
    let key = public(new);
    value["key_id"] = key.id().to_string().into();
    value["public_key_pem"] = key.to_pem().into();
    if let Some(at) = at {
        value["proof"] = proof(new, at).into();
    }
    value.as_object_mut().expect("an object").remove("at");
    canonical(&value)
}

fn canonical(value: &serde_json::Value) -> String {
    attestd::ledger::json::canonicalize(value.to_string().as_bytes()).expect("JSON")
}

fn payload(new: &SigningKey, at: u64, more: &str) -> String {
    let id = public(new).id();
    let text = format!(
        r#"{{"at":{at},"key_attributes":{{"always_sensitive":true,"extractable":false,"local":true,"never_extractable":true,"sensitive":true}},"to":{{"key_id":"{id}","uri":"pkcs11:token=next;object=next"}},"token":{{"label":"next","manufacturer":"test","model":"test","serial":"1"}}{more}}}"#
    );
    found(&text, new)
}

fn rotate(book: &mut Book, new: &SigningKey, uid: u32) {
    let (_, peer) = book.caller(uid);
    let by = format!(r#","requested_by":{{"actor_id":"uid:{uid}","peer":{peer}}}"#);
    let payload = payload(new, book.lines.len() as u64, &by);
    book.own(EventType::Change, "key.rotate", payload, NOTHING);
}

fn activate(book: &mut Book, new: &SigningKey) {
    let (old, id) = (public(&trusted_key()).id(), public(new).id());
    let payload = format!(r#"{{"key_id":"{id}","previous_key_id":"{old}"}}"#);
    book.own(EventType::Change, "key.activate", payload, |draft| {
        draft.set("signing_key_id", quote(&id.to_string()));
        draft.key = new.clone();
    });
}

/// An approved rotation to the other key, of which `spoil` may change the payload before it is sealed.
fn sealed(book: &mut Book, spoil: impl FnOnce(&mut String)) {
    let id = public(&other_key()).id();
    let mut draft: Request = request("CHANGE", "key.rotate", "SUCCESS", r#","actor_id":"dev/1""#);
    draft.action_payload = format!(r#"{{"to":{{"key_id":"{id}","uri":"pkcs11:token=next;object=next"}}}}"#);
    let proposal = book.open(draft, DEV, NOTHING);
    book.approve(proposal, &["ann"]);
    let at = book.lines.len() as u64;
    book.seal(proposal, OPS, |draft| {
        let mut value: serde_json::Value = serde_json::from_str(&draft.text("action_payload")).expect("JSON");
        let whole: serde_json::Value = serde_json::from_str(&payload(&other_key(), at, "")).expect("JSON");
        for (name, member) in whole.as_object().expect("an object") {
            value[name] = member.clone();
        }
        let mut text = canonical(&value);
        spoil(&mut text);
        draft.payload(text);
    });
}
