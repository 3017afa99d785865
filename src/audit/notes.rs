//! Checkpoints, held against the tree that the entries make.

use super::entry::TrustedKeys;
use super::growth::{Commit, Commits, Grown};
use super::verdict::{CheckpointSeen, Fault, Verdict};
use crate::governance::keyring::Revocation;
use crate::ledger::checkpoint::{Note, NoteFault};
use crate::ledger::code::Code;
use crate::ledger::key::Signature;
use crate::ledger::merkle::{NodeHash, Root, TreeSize, verify_consistency};

/// Reads and verifies a note: it is of `origin` (if that is known) and signed by the key in force at its size.
pub(crate) fn read_note(
    note: &[u8],
    origin: Option<&str>,
    keys: &TrustedKeys,
) -> Result<(Note, Signature), Fault> {
    let note = Note::parse(note).map_err(|fault| note_fault(&fault))?;
    let signature = verify_note(&note, origin, keys)?;
    Ok((note, signature))
}

/// Verifies a note: it is of `origin` (if that is known) and signed by the key in force at its size.
fn verify_note(note: &Note, origin: Option<&str>, keys: &TrustedKeys) -> Result<Signature, Fault> {
    let found = note.checkpoint().origin();
    if let Some(origin) = origin.filter(|origin| *origin != found) {
        return Err(Fault::new(Code::Origin).because(format!("a checkpoint of `{found}`, not of `{origin}`")));
    }
    let size = note.checkpoint().root().size;
    let key = keys.keyring().at_size(size).map_or(keys.first(), |term| &term.key);
    Ok(note.verify(std::slice::from_ref(key)).map_err(|fault| note_fault(&fault))?.signature)
}

/// Refuses a checkpoint that its key made, or may have made, when it was not to be trusted any more.
fn check_unrevoked(root: Root, keys: &TrustedKeys) -> Result<(), Fault> {
    let term = keys.keyring().at_size(root.size);
    match term.and_then(|term| term.revoked.as_ref()).filter(|revoked| root.size > revoked.trusted.size) {
        None => Ok(()),
        Some(Revocation { at, trusted, .. }) => Err(Fault::new(Code::KeyRevoked).because(format!(
            "entry {at} says that its key is trusted up to the checkpoint of {} entries; this is of {}",
            trusted.size, root.size
        ))),
    }
}

/// What a refused note is called.
pub(super) fn note_fault(fault: &NoteFault) -> Fault {
    let code = match fault {
        NoteFault::UnknownKey
        | NoteFault::DuplicateSignature
        | NoteFault::SignatureEncoding(_)
        | NoteFault::Signature => Code::NoteSignature,
        _ => Code::Note,
    };
    Fault::new(code).because(fault)
}

/// Holds the newest checkpoint against the tree. `path` is the proof between the end of the entries
/// and the checkpoint, where the entries do not reach from one to the other. Says what it found.
pub(crate) fn check_newest(
    root: Root,
    grown: &Grown,
    path: Option<&[NodeHash]>,
    verdict: &mut Verdict,
    keys: &TrustedKeys,
) -> Result<(), Fault> {
    check_unrevoked(root, keys)?;
    let Some(end) = grown.root else {
        return Err(Fault::new(Code::TreeProof).because("the tree before the first entry is not known"));
    };
    match grown.passed.iter().find(|passed| passed.root.size == root.size) {
        Some(passed) if passed.root != root => return Err(another_tree(root.size)),
        Some(passed) if passed.within_commit => {
            return Err(Fault::new(Code::CheckpointMissing).because(format!(
                "there is a checkpoint of {} entries, within a commit that a later one signs",
                root.size
            )));
        }
        Some(_) if path.is_some_and(|path| !path.is_empty()) => {
            return Err(Fault::new(Code::TreeProof).because("a consistency proof where none is needed"));
        }
        Some(_) => {}
        None => {
            let path = path.ok_or_else(|| {
                Fault::new(Code::Truncated).because(format!(
                    "the checkpoint covers {} entries, those here end at {}, and no proof is given",
                    root.size, end.size
                ))
            })?;
            let (earlier, later) = if end.size < root.size { (end, root) } else { (root, end) };
            verify_consistency(&earlier, &later, path).map_err(|fault| {
                Fault::new(Code::TreeProof)
                    .because(format!("that the entries and the checkpoint are of one tree: {fault}"))
            })?;
        }
    }
    verdict.checkpoint = Some(CheckpointSeen::from(root));
    verdict
        .checked
        .push(format!("the newest checkpoint, of {} entries, is signed and of this tree", root.size));
    if let Some(unanchored) = verdict.last.filter(|last| *last >= root.size.leaves()) {
        let first = root.size.leaves().max(verdict.first.unwrap_or(0));
        verdict.not_checked.push(format!(
            "tail-unanchored: no checkpoint covers entries {first} to {unanchored}, the newest is of {} entries",
            root.size
        ));
    }
    Ok(())
}

fn another_tree(size: TreeSize) -> Fault {
    Fault::new(Code::CheckpointRoot).because(format!("the checkpoint of {size} entries has another root"))
}

/// Checks that the ledger extends a checkpoint that was seen before. `newest` is its newest one.
pub(crate) fn check_known(
    known: &Note,
    grown: &Grown,
    newest: Option<Root>,
    verdict: &mut Verdict,
    keys: &TrustedKeys,
) -> Result<(), Fault> {
    let of_known = |fault: Fault| fault.within("the known checkpoint");
    verify_note(known, verdict.origin.as_deref(), keys).map_err(of_known)?;
    let known = known.checkpoint().root();
    check_unrevoked(known, keys).map_err(of_known)?;
    let end = grown.root.map_or(TreeSize::EMPTY, |root| root.size);
    let passed = grown.passed.iter().map(|passed| passed.root);
    let ours = passed.chain(newest).find(|ours| ours.size == known.size);
    match ours {
        Some(ours) if ours == known => {}
        Some(ours) => {
            return Err(Fault::new(Code::Fork).because(format!(
                "of {} entries the known checkpoint has the root {}, this ledger {}",
                known.size, known.hash, ours.hash
            )));
        }
        None if grown.root.is_some()
            && end.max(newest.map_or(TreeSize::EMPTY, |newest| newest.size)) < known.size =>
        {
            return Err(Fault::new(Code::Rollback)
                .because(format!("it had {} entries, and now there are {end}", known.size)));
        }
        None => {
            return Err(Fault::new(Code::KnownUnshown)
                .because(format!("it would have to reach over entry {}", known.size)));
        }
    }
    verdict.checked.push(format!("the ledger extends the known checkpoint of {} entries", known.size));
    Ok(())
}

/// The checkpoints that entries refer to, one after the other.
#[derive(Default)]
pub(crate) struct Notes {
    /// Those within the entries, to be compared with what the entries made.
    commits: Commits,
    last: Option<(Root, Signature)>,
}

impl Notes {
    /// Takes the next one. Those up to `end` must be of commits that ended.
    pub(crate) fn add(
        &mut self,
        note: &[u8],
        origin: Option<&str>,
        keys: &TrustedKeys,
        end: TreeSize,
    ) -> Result<(), Fault> {
        let (note, signature) = read_note(note, origin, keys)?;
        let root = note.checkpoint().root();
        if let Some((last, _)) = self.last
            && root.size <= last.size
        {
            return Err(Fault::new(Code::CheckpointOrder)
                .because(format!("one of {} entries after one of {}", root.size, last.size)));
        }
        if let Some((last, _)) = self.last.filter(|(last, _)| last.size > end) {
            return Err(Fault::new(Code::CheckpointMissing)
                .because(format!("no entry refers to one after that of {} entries", last.size)));
        }
        if root.size <= end {
            self.commits.add(root, &signature);
        }
        self.last = Some((root, signature));
        Ok(())
    }

    /// Holds them against the entries. `path` is the proof between the end of the entries and the
    /// checkpoint of the commit that goes on after it.
    pub(crate) fn finish(self, grown: Grown, path: Option<&[NodeHash]>) -> Result<(), Fault> {
        let missing = |detail: String| Fault::new(Code::CheckpointMissing).because(detail);
        let end = grown.root.unwrap_or(Root::EMPTY);
        let beyond = self.last.filter(|(root, _)| root.size > end.size);
        match (grown.open, beyond) {
            (None, None) => {}
            (None, Some((root, _))) => {
                return Err(missing(format!("no entry refers to the one of {} entries", root.size)));
            }
            (Some(_), None) => return Err(missing("that of the last entries is not there".into())),
            (Some(Commit { signature, .. }), Some((root, found))) => {
                if signature != found {
                    return Err(missing("the last one is not that which signs the last entries".into()));
                }
                verify_consistency(&end, &root, path.unwrap_or_default()).map_err(|fault| {
                    Fault::new(Code::TreeProof)
                        .because(format!("that the last entries are under their checkpoint: {fault}"))
                })?;
            }
        }
        let (found, found_hash) = self.commits.finish();
        let (made, made_hash) = grown.commits.finish();
        if found != made {
            return Err(missing(format!("there are {found} where the entries refer to {made}")));
        }
        if found_hash != made_hash {
            return Err(Fault::new(Code::CheckpointRoot)
                .because("one of them is of another tree, or is not the one that signs its entries"));
        }
        Ok(())
    }
}
