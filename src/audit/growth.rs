//! The tree over the audited entries, and what it is held against: in mode `commit` the signature
//! of each commit, which is that of the checkpoint with which the commit ended.
//!
//! Workers check entries in any order and hand over a [`Piece`] for each batch; [`Growth::take`]
//! puts the pieces in order and grows the tree. Where the signature that neighbouring entries share
//! changes, a commit has ended, so the text of its checkpoint is known there and then. Verifying
//! is left to the worker that brought the piece, outside the lock.

use std::collections::BTreeMap;

use super::entry::TrustedKeys;
use super::verdict::Fault;
use crate::governance::keyring::Revocation;
use crate::ledger::checkpoint::Checkpoint;
use crate::ledger::code::Code;
use crate::ledger::entry::Sequence;
use crate::ledger::hash::{Digest, Hasher};
use crate::ledger::key::{PublicKey, Signature};
use crate::ledger::merkle::{Frontier, Root, TreeSize, verify_consistency};

/// What a batch adds to the tree.
#[derive(Debug, Default)]
pub(super) struct Piece {
    /// The sequence number of the very first entry, if the batch holds it.
    pub(super) first: Option<Sequence>,
    /// Of each entry that holds, its `entry_hash`.
    pub(super) hashes: Vec<Digest>,
    /// The key that signs them all: a batch ends where it changes.
    pub(super) key: Option<PublicKey>,
    /// Where in `hashes` the way of signing changes, and at 0: from there on each entry's own
    /// signature (`None`), or one that they share.
    pub(super) runs: Vec<(usize, Option<Signature>)>,
    /// The origin, if the batch holds the genesis.
    pub(super) origin: Option<String>,
    /// What its last entry does to the keys, where that is about the tree.
    pub(super) change: Option<KeyChange>,
}

/// What the tree has to do with a change of the keys.
#[derive(Debug)]
pub(super) enum KeyChange {
    /// With this entry the term of a key ends.
    Rotates,
    /// A checkpoint is said to be of the tree that had this size.
    Revokes(Revocation, TreeSize),
}

/// The entries of a commit that have been seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Commit {
    /// The first of them that was read, counted from the first line.
    pub(crate) line: u64,
    /// The signature that they share.
    pub(crate) signature: Signature,
}

/// A commit whose signature is to be verified: its checkpoint is known.
#[derive(Debug)]
pub(super) struct Claim {
    pub(super) commit: Commit,
    checkpoint: Checkpoint,
    key: PublicKey,
}

impl Claim {
    /// Checks the signature.
    pub(super) fn check(&self) -> Result<(), Fault> {
        if self.key.verifies(self.checkpoint.text().as_bytes(), &self.commit.signature) {
            return Ok(());
        }
        let size = self.checkpoint.root().size;
        Err(Fault::new(Code::SignatureInvalid).at("/hsm_signature").because(format!(
            "it should be that of the checkpoint of {size} entries, with which the entry's commit ends"
        )))
    }
}

/// A root that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Passed {
    /// The tree at that size.
    pub(crate) root: Root,
    /// Whether a commit that began before goes on after it.
    pub(crate) within_commit: bool,
}

/// A running hash over the checkpoints that commits ended with, so that a list of them can be
/// compared with a million commits without holding them.
#[derive(Default)]
pub(crate) struct Commits {
    hasher: Hasher,
    count: u64,
}

impl Commits {
    pub(crate) fn add(&mut self, root: Root, signature: &Signature) {
        self.hasher.update(&root.size.leaves().to_be_bytes());
        self.hasher.update(&root.hash.0.0);
        self.hasher.update(signature.as_bytes());
        self.count += 1;
    }

    /// How many there are, and their hash.
    pub(crate) fn finish(self) -> (u64, Digest) {
        (self.count, self.hasher.finish())
    }
}

/// The growing tree.
pub(super) struct Growth {
    tree: Frontier,
    /// The first entry is not the one that follows the tree: there is no telling any root.
    rootless: bool,
    origin: Option<String>,
    /// The line that the next piece begins with, and the pieces that came too early.
    next: u64,
    early: BTreeMap<u64, Piece>,
    /// The commit that the last entries belong to.
    open: Option<Commit>,
    /// The key of the last entries.
    key: PublicKey,
    /// The trees with which the terms of keys ended.
    ends: Vec<Root>,
    /// The sizes asked for, ascending; those from `watched` on are yet to come.
    sizes: Vec<TreeSize>,
    watched: usize,
    passed: Vec<Passed>,
    commits: Commits,
}

/// What is left when all has been taken.
pub(crate) struct Grown {
    /// The tree at the end, where what comes before the first entry was known.
    pub(crate) root: Option<Root>,
    /// The roots that were asked for, as far as the entries go there.
    pub(crate) passed: Vec<Passed>,
    /// The commits that ended, without one that goes on after the end.
    pub(crate) commits: Commits,
    /// The commit that goes on after the end, where that was allowed.
    pub(crate) open: Option<Commit>,
    /// The keys up to the end.
    pub(crate) keys: TrustedKeys,
}

impl Growth {
    /// Begins with the tree over what comes before the first entry, its origin where it is known, and
    /// the key that signs.
    pub(super) fn new(
        tree: Frontier,
        origin: Option<String>,
        key: PublicKey,
        mut sizes: Vec<TreeSize>,
    ) -> Self {
        sizes.retain(|size| *size >= tree.size());
        sizes.sort_unstable();
        sizes.dedup();
        Growth {
            tree,
            rootless: false,
            origin,
            next: 0,
            early: BTreeMap::new(),
            open: None,
            key,
            ends: Vec::new(),
            sizes,
            watched: 0,
            passed: Vec::new(),
            commits: Commits::default(),
        }
    }

    /// Takes the piece that begins with `line`, and every one that waited for it. What it gives is
    /// to be checked.
    ///
    /// # Errors
    /// The line that no tree can have, and why.
    pub(super) fn take(&mut self, line: u64, piece: Piece) -> Result<Vec<Claim>, (u64, Fault)> {
        self.early.insert(line, piece);
        let mut claims = Vec::new();
        while let Some(piece) = self.early.remove(&self.next) {
            self.grow(piece, &mut claims)?;
        }
        Ok(claims)
    }

    fn grow(&mut self, piece: Piece, claims: &mut Vec<Claim>) -> Result<(), (u64, Fault)> {
        self.origin = self.origin.take().or(piece.origin);
        self.rootless |= piece.first.is_some_and(|first| first.0 != self.tree.size().leaves());
        if self.rootless {
            let shared = piece.runs.iter().find(|(_, signature)| signature.is_some());
            return match shared {
                Some((index, _)) => Err((
                    self.next + *index as u64,
                    Fault::new(Code::TreeProof)
                        .at("/hsm_signature")
                        .because("without the tree before the first entry it can't be checked"),
                )),
                None => {
                    self.next += piece.hashes.len() as u64;
                    Ok(())
                }
            };
        }
        // No commit goes on under another key.
        if let Some(key) = piece.key.filter(|key| *key != self.key) {
            claims.extend(self.close()?);
            self.key = key;
        }
        let mut runs = piece.runs.iter().peekable();
        for (index, hash) in piece.hashes.iter().enumerate() {
            if let Some((_, signature)) = runs.next_if(|(start, _)| *start == index)
                && self.open.map(|commit| commit.signature) != *signature
            {
                claims.extend(self.close()?);
                self.open = signature.map(|signature| Commit { line: self.next, signature });
            }
            self.watch();
            self.tree.push(*hash).map_err(|full| (self.next, Fault::new(Code::Sequence).because(full)))?;
            self.next += 1;
        }
        match piece.change {
            None => {}
            Some(KeyChange::Rotates) => self.ends.push(self.tree.root()),
            Some(KeyChange::Revokes(Revocation { trusted, consistency, .. }, size)) => {
                // Where a range begins after that tree, there is nothing to hold it against.
                if let Some(end) = self.ends.iter().find(|end| end.size == size) {
                    verify_consistency(&trusted, end, &consistency).map_err(|fault| {
                        let fault = Fault::new(Code::KeyChange).at("/action_payload/consistency").because(
                            format!("that the checkpoint which is still trusted is of this tree: {fault}"),
                        );
                        (self.next - 1, fault)
                    })?;
                }
            }
        }
        Ok(())
    }

    /// Notes the root if the size is one that was asked for. Whatever comes next is known to come.
    fn watch(&mut self) {
        if !self.rootless && self.sizes.get(self.watched) == Some(&self.tree.size()) {
            let within_commit = self.open.is_some_and(|commit| commit.line < self.next);
            self.passed.push(Passed { root: self.tree.root(), within_commit });
            self.watched += 1;
        }
    }

    /// Ends the commit at hand.
    fn close(&mut self) -> Result<Option<Claim>, (u64, Fault)> {
        let Some(commit) = self.open.take() else { return Ok(None) };
        let origin = self.origin.as_deref().unwrap_or_default();
        let root = self.tree.root();
        let checkpoint = Checkpoint::new(origin, root).map_err(|fault| {
            (commit.line, Fault::new(Code::SignatureInvalid).at("/hsm_signature").because(fault))
        })?;
        self.commits.add(root, &commit.signature);
        Ok(Some(Claim { commit, checkpoint, key: self.key.clone() }))
    }

    /// The commit that the last entries belong to, if it has not ended before them.
    pub(super) fn open(&self) -> Option<Commit> {
        self.open
    }

    /// Ends the last commit, unless it may go on after the last entry.
    pub(super) fn finish(
        mut self,
        may_go_on: bool,
        keys: TrustedKeys,
    ) -> Result<(Grown, Option<Claim>), (u64, Fault)> {
        let open = self.open.filter(|_| may_go_on);
        let claim = if open.is_some() { None } else { self.close()? };
        self.watch();
        let root = (!self.rootless).then(|| self.tree.root());
        Ok((Grown { root, passed: self.passed, commits: self.commits, open, keys }, claim))
    }
}
