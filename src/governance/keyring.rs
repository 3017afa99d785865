//! The keys of a ledger over time: each signs from one entry to another, and hands over to the next.
//!
//! ```text
//! entry        0 … 41 │ 42 key.rotate │ 43 key.activate │ 44 … 90
//! signed by    first  │ first         │ second          │ second
//! ```
//!
//! The first key is trusted from outside. Each later one is trusted because the one before it signed
//! the `key.rotate` that names it, and because it proved itself for that very entry. It does not verify
//! what is signed by them ([`crate::audit`] does); the proof in a rotation it does.

use super::Refusal;
use super::governor::{member, text};
use crate::ledger::code::Code;
use crate::ledger::entry::{EntryView, Sequence};
use crate::ledger::hash::Digest;
use crate::ledger::json;
use crate::ledger::key::{KeyId, PublicKey, Signable, Signature};
use crate::ledger::merkle::{NodeHash, Root, TreeSize};

/// The last entry that a key signs; it names the next key.
pub const ROTATE: &str = "key.rotate";
/// The first entry that the next key signs.
pub const ACTIVATE: &str = "key.activate";
/// What says from where on a key of the past is not trusted.
pub const REVOKE: &str = "key.revoke";

/// Which entries a key signs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Term {
    /// The key.
    pub key: PublicKey,
    /// The first entry that it signs.
    pub first: Sequence,
    /// The last one, once there is another key.
    pub last: Option<Sequence>,
    /// What is still trusted of it, if it was revoked.
    pub revoked: Option<Revocation>,
}

/// A key that is not trusted to the end of its term.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revocation {
    /// The entry that says so.
    pub at: Sequence,
    /// Why.
    pub reason: String,
    /// The last checkpoint of the key that is still trusted.
    pub trusted: Root,
    /// What shows that it is of the tree with which the key's term ended (RFC 9162, section 2.1.4).
    pub consistency: Vec<NodeHash>,
}

/// What an entry does to the keys.
#[derive(Debug, Clone)]
pub enum Change {
    /// The next key.
    Rotate(PublicKey),
    /// The next key signs.
    Activate,
    /// A key of the past is trusted no further than this.
    Revoke(KeyId, Revocation),
}

/// The keys of a ledger, in the order of their terms.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Keyring {
    terms: Vec<Term>,
    /// The last of them has not signed its `key.activate` yet.
    waiting: bool,
}

impl Keyring {
    /// The keys of a ledger that begins with `first`.
    #[must_use]
    pub fn of(first: PublicKey) -> Self {
        let term = Term { key: first, first: Sequence(0), last: None, revoked: None };
        Keyring { terms: vec![term], waiting: false }
    }

    /// All keys with their terms, oldest first.
    #[must_use]
    pub fn terms(&self) -> &[Term] {
        &self.terms
    }

    /// All keys, oldest first.
    #[must_use]
    pub fn keys(&self) -> Vec<PublicKey> {
        self.terms.iter().map(|term| term.key.clone()).collect()
    }

    /// The key that signs what comes next; `None` before the genesis.
    #[must_use]
    pub fn newest(&self) -> Option<&PublicKey> {
        self.terms.last().map(|term| &term.key)
    }

    /// Whether the next entry must be the `key.activate` of the newest key.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        self.waiting
    }

    /// The term of the key in force at an entry.
    #[must_use]
    pub fn at(&self, sequence: Sequence) -> Option<&Term> {
        self.terms.iter().rev().find(|term| term.first <= sequence)
    }

    /// The term of the key that signs checkpoints of this size, which is the key of the last entry in them.
    #[must_use]
    pub fn at_size(&self, size: TreeSize) -> Option<&Term> {
        self.at(Sequence(size.leaves().saturating_sub(1)))
    }

    /// The key that signs checkpoints of this size, as those take it who verify notes.
    #[must_use]
    pub fn signer_of(&self, size: TreeSize) -> Vec<PublicKey> {
        self.at_size(size).map(|term| term.key.clone()).into_iter().collect()
    }

    fn term_of(&self, id: KeyId) -> Option<&Term> {
        self.terms.iter().find(|term| term.key.id() == id)
    }

    /// The key `id`, if it is in force at `sequence`.
    ///
    /// # Errors
    /// [`Code::UnknownKey`] for one that the ledger never had, [`Code::KeyRange`] for one that does not
    /// sign there.
    pub fn signer(&self, id: KeyId, sequence: Sequence) -> Result<&PublicKey, Refusal> {
        if let Some(term) = self.at(sequence).filter(|term| term.key.id() == id) {
            return Ok(&term.key);
        }
        let at = |code| Refusal::new(code).at("/signing_key_id");
        Err(match self.term_of(id) {
            None => at(Code::UnknownKey).because(&format!("the entry names key {id}")),
            Some(Term { first, last: Some(last), .. }) => {
                at(Code::KeyRange).because(&format!("key {id} signs entries {first} to {last}"))
            }
            Some(Term { first, .. }) => {
                at(Code::KeyRange).because(&format!("key {id} signs from entry {first} on"))
            }
        })
    }

    /// What the new key signs to show that it takes over from `old` with the entry `sequence`.
    #[must_use]
    pub fn challenge(origin: &str, old: KeyId, new: KeyId, sequence: Sequence) -> Signable {
        Signable::purpose("rotate", origin, &format!("{old}\n{new}\n{sequence}"))
    }

    /// What `entry`, one of the daemon's, does to the keys of the ledger `origin`; `None` for nothing.
    ///
    /// # Errors
    /// The first [`Refusal`]; its pointer leads into the entry.
    pub fn check(&self, entry: &EntryView<'_>, origin: &str) -> Result<Option<Change>, Refusal> {
        self.check_turn(entry)?;
        match entry.action_type {
            ROTATE => self.check_rotate(entry, origin).map(Some),
            ACTIVATE => self.check_activate(entry).map(Some),
            REVOKE => self.check_revoke(entry).map(Some),
            other if other.starts_with("key.") => Err(Refusal::new(Code::KeyChange)
                .at("/action_type")
                .because("this program knows no such change of keys")),
            _ => Ok(None),
        }
    }

    /// That after a `key.rotate` comes its `key.activate`, and nowhere else.
    ///
    /// # Errors
    /// [`Code::KeyActivation`].
    pub fn check_turn(&self, entry: &EntryView<'_>) -> Result<(), Refusal> {
        let activates = entry.is_daemons() && entry.action_type == ACTIVATE;
        match (self.waiting, activates) {
            (true, false) => Err(Refusal::new(Code::KeyActivation)
                .at("/action_type")
                .because("the entry after a `key.rotate` must be `key.activate`")),
            (false, true) => Err(Refusal::new(Code::KeyActivation)
                .at("/action_type")
                .because("there was no `key.rotate` before it")),
            _ => Ok(()),
        }
    }

    /// What an opening may propose for `action_type`: all but what only the daemon can know.
    ///
    /// # Errors
    /// [`Code::KeyChange`] or [`Code::KeyReused`]; the pointer leads into the payload.
    pub fn check_proposed(&self, action_type: &str, payload: &str) -> Result<(), Refusal> {
        match action_type {
            ROTATE => {
                for name in ["key_attributes", "key_id", "proof", "public_key_pem", "token"] {
                    if member(payload, name).is_some() {
                        return Err(malformed(name, "is for the daemon to find out: name the key in `to`"));
                    }
                }
                let key = target(payload)?;
                self.check_fresh(key, "/action_payload/to/key_id")
            }
            REVOKE if member(payload, "consistency").is_some() => {
                Err(malformed("consistency", "is for the daemon to find out"))
            }
            REVOKE => self.read_revocation(payload, Sequence(u64::MAX)).map(drop),
            _ => Ok(()),
        }
    }

    /// That the ledger never had the key `id`.
    ///
    /// # Errors
    /// [`Code::KeyReused`].
    pub fn check_fresh(&self, id: KeyId, pointer: &str) -> Result<(), Refusal> {
        match self.term_of(id) {
            None => Ok(()),
            Some(term) if term.last.is_none() => {
                Err(Refusal::new(Code::KeyReused).at(pointer).because("it is the key in force"))
            }
            Some(_) => {
                Err(Refusal::new(Code::KeyReused).at(pointer).because("it was the ledger's key before"))
            }
        }
    }

    fn check_rotate(&self, entry: &EntryView<'_>, origin: &str) -> Result<Change, Refusal> {
        let payload = entry.action_payload;
        let key = text(payload, "public_key_pem")
            .and_then(|pem| PublicKey::from_pem(&pem).ok().filter(|key| key.to_pem() == pem))
            .ok_or_else(|| malformed("public_key_pem", "must be the PEM of a P-256 key"))?;
        if key_id(payload) != Some(key.id()) {
            return Err(malformed("key_id", "must be that of `public_key_pem`"));
        }
        if target(payload)? != key.id() {
            return Err(malformed("to/key_id", "another key was asked for"));
        }
        check_described(payload)?;
        self.check_fresh(key.id(), "/action_payload/key_id")?;
        let proof = text(payload, "proof").ok_or_else(|| malformed("proof", "must be a signature"))?;
        let at_proof = |code| Refusal::new(code).at("/action_payload/proof");
        let proof = Signature::from_hex_der(proof.as_bytes()).map_err(at_proof)?;
        let old = self.newest().ok_or_else(|| Refusal::new(Code::KeyChange))?;
        let challenge = Self::challenge(origin, old.id(), key.id(), entry.sequence_number);
        if !key.verifies(challenge.message(), &proof) {
            return Err(at_proof(Code::KeyProof));
        }
        Ok(Change::Rotate(key))
    }

    fn check_activate(&self, entry: &EntryView<'_>) -> Result<Change, Refusal> {
        let mut newest = self.terms.iter().rev().map(|term| term.key.id());
        let (new, old) = (newest.next(), newest.next());
        if key_id(entry.action_payload) != new {
            return Err(malformed("key_id", "must be that of the key that the `key.rotate` names"));
        }
        if id_of(entry.action_payload, "previous_key_id") != old {
            return Err(malformed("previous_key_id", "must be that of the key before"));
        }
        Ok(Change::Activate)
    }

    fn check_revoke(&self, entry: &EntryView<'_>) -> Result<Change, Refusal> {
        let payload = entry.action_payload;
        let (id, mut revocation) = self.read_revocation(payload, entry.sequence_number)?;
        revocation.consistency = member(payload, "consistency")
            .filter(|list| list.starts_with('['))
            .and_then(|list| json::elements(list).map(hash_of).collect())
            .ok_or_else(|| malformed("consistency", "must be a list of hashes"))?;
        Ok(Change::Revoke(id, revocation))
    }

    /// What a sound `key.revoke` says that is still trusted, and the size of the tree with which that
    /// key's term ended.
    #[must_use]
    pub fn revoked_by(&self, entry: &EntryView<'_>) -> Option<(Revocation, TreeSize)> {
        let Ok(Change::Revoke(id, revocation)) = self.check_revoke(entry) else { return None };
        let end = self.term_of(id)?.last?.0 + 1;
        Some((revocation, TreeSize::new(end)?))
    }

    fn read_revocation(&self, payload: &str, at: Sequence) -> Result<(KeyId, Revocation), Refusal> {
        let id = key_id(payload).ok_or_else(|| malformed("key_id", "must be the id of a key"))?;
        let term = self.term_of(id).ok_or_else(|| {
            Refusal::new(Code::UnknownKey)
                .at("/action_payload/key_id")
                .because("it was never the ledger's key")
        })?;
        if term.revoked.is_some() {
            return Err(malformed("key_id", "it was revoked before"));
        }
        let Some(last) = term.last else {
            return Err(malformed("key_id", "it is the key in force: rotate to another one first"));
        };
        let reason = text(payload, "reason")
            .filter(|reason| !reason.is_empty())
            .ok_or_else(|| malformed("reason", "must say why"))?;
        let checkpoint = member(payload, "checkpoint").unwrap_or_default();
        let size = member(checkpoint, "size")
            .and_then(|size| size.parse().ok())
            .and_then(TreeSize::new)
            .filter(|size| size.leaves() > term.first.0 && size.leaves() <= last.0 + 1)
            .ok_or_else(|| {
                let (first, last) = (term.first.0 + 1, last.0 + 1);
                malformed("checkpoint/size", &format!("its checkpoints have {first} to {last} entries"))
            })?;
        let hash = text(checkpoint, "root")
            .and_then(|root| Digest::from_hex(root.as_bytes()))
            .ok_or_else(|| malformed("checkpoint/root", "must be 64 lower-case hex digits"))?;
        let trusted = Root { size, hash: NodeHash(hash) };
        Ok((id, Revocation { at, reason, trusted, consistency: Vec::new() }))
    }

    /// Takes over what the entry `at` changes.
    pub fn take(&mut self, at: Sequence, change: Change) {
        match change {
            Change::Rotate(key) => {
                if let Some(term) = self.terms.last_mut() {
                    term.last = Some(at);
                }
                self.terms.push(Term { key, first: Sequence(at.0 + 1), last: None, revoked: None });
                self.waiting = true;
            }
            Change::Activate => self.waiting = false,
            Change::Revoke(id, revocation) => {
                if let Some(term) = self.terms.iter_mut().find(|term| term.key.id() == id) {
                    term.revoked = Some(revocation);
                }
            }
        }
    }

    /// [`Keyring::check`] and [`Keyring::take`]: for a row of entries of which only those that change
    /// the keys are at hand.
    ///
    /// # Errors
    /// As [`Keyring::check`]; nothing is changed then.
    pub fn follow(&mut self, entry: &EntryView<'_>, origin: &str) -> Result<(), Refusal> {
        if let Some(change) = self.check(entry, origin)? {
            self.take(entry.sequence_number, change);
        }
        Ok(())
    }
}

/// The key that was asked for.
fn target(payload: &str) -> Result<KeyId, Refusal> {
    let to = member(payload, "to").unwrap_or_default();
    key_id(to).ok_or_else(|| malformed("to/key_id", "must be the id of the new key"))
}

/// What the token said of itself and of the key.
fn check_described(payload: &str) -> Result<(), Refusal> {
    let token = member(payload, "token").unwrap_or_default();
    for name in ["label", "manufacturer", "model", "serial"] {
        if text(token, name).is_none() {
            return Err(malformed(&format!("token/{name}"), "must be a string"));
        }
    }
    let attributes = member(payload, "key_attributes").unwrap_or_default();
    for name in ["always_sensitive", "extractable", "local", "never_extractable", "sensitive"] {
        if !matches!(member(attributes, name), Some("true" | "false" | "null")) {
            return Err(malformed(&format!("key_attributes/{name}"), "must be true, false or null"));
        }
    }
    Ok(())
}

fn hash_of(value: &str) -> Option<NodeHash> {
    let text = value.strip_prefix('"')?.strip_suffix('"')?;
    Digest::from_hex(text.as_bytes()).map(NodeHash)
}

fn key_id(object: &str) -> Option<KeyId> {
    id_of(object, "key_id")
}

fn id_of(object: &str, name: &str) -> Option<KeyId> {
    Digest::from_hex(text(object, name)?.as_bytes()).map(KeyId)
}

fn malformed(name: &str, detail: &str) -> Refusal {
    Refusal::new(Code::KeyChange).at(format!("/action_payload/{name}")).because(detail)
}
