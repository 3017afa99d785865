//! What a new ledger says of the one that it follows: a ledger that was rolled back, that forked or
//! that lost its key is not extended any more.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Fault;
use super::check_reason;
use super::genesis::Genesis;
use super::keys;
use super::offline::read_genesis;
use crate::anchor::Anchor;
use crate::evidence::lines;
use crate::governance::keyring::Keyring;
use crate::ledger::canonical;
use crate::ledger::checkpoint::Note;
use crate::ledger::entry::Sequence;
use crate::ledger::hash::Digest;
use crate::ledger::json::quoted;
use crate::ledger::merkle::{Frontier, Root};
use crate::store::{Reader, StoreError};
use crate::token::Keeper;

/// A ledger that another is to follow. It is only read.
#[derive(Debug)]
pub struct Predecessor {
    genesis: Genesis,
    keys: Keyring,
    /// The newest that is known, from the ledger or an anchor of it.
    note: Option<Note>,
    /// What the ledger has.
    kept: Root,
    unsealed: Vec<Vec<u8>>,
    reason: String,
}

impl Predecessor {
    /// Reads the ledger at `path` and those of its anchors that are files.
    ///
    /// # Errors
    /// When it can't be read, or one of its anchors is not there or not its own.
    pub fn read(path: &Path, anchors: &[PathBuf], reason: &str) -> Result<Self, Fault> {
        check_reason(reason)?;
        let reader = Reader::open(path)?;
        let genesis = read_genesis(path, &reader)?;
        let mut frontier = Frontier::new();
        let mut keys = Keyring::of(genesis.key.clone());
        for line in lines(&reader, Sequence(0), Sequence(reader.count()?)) {
            let line = line?;
            let damaged = |what: &dyn std::fmt::Display| {
                StoreError::Damaged(format!("entry {}: {what}", frontier.size()))
            };
            let decoded = canonical::decode(&line).map_err(|fault| damaged(&fault))?;
            keys::follow(&mut keys, &decoded.entry, &genesis.origin);
            frontier.push(decoded.computed_hash).map_err(|full| StoreError::Damaged(full.to_string()))?;
        }
        let mut predecessor = Predecessor {
            note: reader.newest_note()?,
            unsealed: reader.unsealed()?,
            kept: frontier.root(),
            reason: reason.to_owned(),
            keys,
            genesis,
        };
        for path in anchors {
            if !predecessor.heed(&Anchor::File(path.clone()))? {
                return Err(Fault::NotItsAnchor(path.clone()));
            }
        }
        Ok(predecessor)
    }

    /// Whom it belonged to.
    #[must_use]
    pub fn origin(&self) -> &str {
        &self.genesis.origin
    }

    /// Looks whether the token has an anchor of it.
    pub(super) fn heed_token(&mut self, token: &Arc<Keeper>) -> Result<(), Fault> {
        let anchor = Anchor::on_token(token.clone(), self.origin());
        self.heed(&anchor).map(drop)
    }

    /// Takes what `anchor` holds for the newest note, if it is. Whether it is the ledger's.
    fn heed(&mut self, anchor: &Anchor) -> Result<bool, Fault> {
        let Some(note) = anchor.read()? else { return Ok(false) };
        if note.checkpoint().origin() != self.origin()
            || note.verify(&self.keys.signer_of(note.checkpoint().root().size)).is_err()
        {
            return Ok(false);
        }
        let size = |note: &Note| note.checkpoint().root().size;
        // Of two notes of one size the anchor's says more: that there was a fork.
        if self.note.as_ref().is_none_or(|known| size(known) <= size(&note)) {
            self.note = Some(note);
        }
        Ok(true)
    }

    /// The entries that were reserved and never signed, one a line, without signatures.
    #[must_use]
    pub fn unsealed(&self) -> Vec<u8> {
        self.unsealed.iter().flat_map(|line| [line, &b"\n"[..]].concat()).collect()
    }

    /// The canonical member `predecessor` of entry 0.
    #[must_use]
    pub(super) fn member(&self) -> String {
        format!(
            r#"{{"note":{},"origin":{},"reason":{},"root":"{}","size":{},"unsealed":{{"count":{},"sha256":"{}"}}}}"#,
            self.note.as_ref().map_or_else(|| "null".into(), |note| quoted(note.as_str())),
            quoted(self.origin()),
            quoted(&self.reason),
            self.kept.hash,
            self.kept.size,
            self.unsealed.len(),
            Digest::of(&self.unsealed()),
        )
    }
}
