//! What is taken out of a ledger as evidence, and the check of all of it.
//!
//! Read from the file alone: no token, no index and no daemon is needed, and one may be running. In
//! reading order: [`lines`], [`Extract`] (the range of a bundle, with the proofs that it needs),
//! [`context`] (the entries from before a range by which an auditor judges it) and [`verify`].

pub(crate) mod context;

use std::collections::BTreeSet;
use std::io;

use self::context::TooLarge;
use crate::audit::{self, Expectations, Interruption, Notes, TrustedKeys, Verdict};
use crate::bundle::{Contents, Context, Proofs, Sizes, checkpoint_line};
use crate::governance::keyring::{Keyring, Term};
use crate::ledger::chain::Head;
use crate::ledger::entry::Sequence;
use crate::ledger::key::PublicKey;
use crate::ledger::merkle::TreeSize;
use crate::store::{Reader, StoreError};

/// Entries are read in pieces of about this size.
pub(crate) const PIECE_BYTES: usize = 1 << 20;

/// The committed lines of a range, read piece by piece.
pub(crate) fn lines(
    reader: &Reader,
    from: Sequence,
    to: Sequence,
) -> impl Iterator<Item = Result<Vec<u8>, Unreadable>> + '_ {
    let mut next = from;
    let mut piece = Vec::new().into_iter();
    let mut failed = false;
    std::iter::from_fn(move || {
        if failed {
            return None;
        }
        if piece.len() == 0 && next < to {
            match reader.lines(next, to, PIECE_BYTES) {
                Ok(lines) => piece = lines.into_iter(),
                Err(error) => {
                    failed = true;
                    return Some(Err(Unreadable(error)));
                }
            }
        }
        let line = piece.next()?;
        next = line.sequence.next();
        Some(Ok(line.bytes))
    })
}

/// The ledger file could not be read to the end of the range.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct Unreadable(StoreError);

impl From<Unreadable> for StoreError {
    fn from(unreadable: Unreadable) -> Self {
        unreadable.0
    }
}

impl From<Unreadable> for Interruption {
    fn from(unreadable: Unreadable) -> Self {
        match unreadable.0 {
            // A ledger that contradicts itself is a finding, not a failure to look.
            StoreError::Damaged(what) => Interruption::Faulty(
                audit::Fault::new(crate::ledger::code::Code::BundleFile).within("the ledger").because(what),
            ),
            other => Interruption::Unreadable(io::Error::other(other.to_string())),
        }
    }
}

/// What a bundle of a range will hold.
#[derive(Debug)]
pub(crate) struct Extract {
    pub(crate) contents: Contents,
    /// The range, within what is committed.
    pub(crate) from: u64,
    pub(crate) to: u64,
    pub(crate) sizes: Sizes,
}

/// Why a bundle can't be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unplanned<E> {
    /// There is no checkpoint yet, or none that covers what the range needs from before it.
    #[error("no checkpoint covers what the bundle needs")]
    NoCheckpoint,
    /// What the range needs from before it is over the limit.
    #[error("what the range needs from before it is too large")]
    ContextTooLarge,
    /// The ledger can't be read.
    #[error(transparent)]
    Store(StoreError),
    /// The steps before the range can't be had.
    #[error("couldn't find what the range needs")]
    Steps(E),
}

impl<E> From<StoreError> for Unplanned<E> {
    fn from(error: StoreError) -> Self {
        Unplanned::Store(error)
    }
}

impl Extract {
    /// Plans a bundle of the entries from `from` up to but not including `to`, or all there are.
    /// `steps` gives the entries before `from` that can change the state of governance.
    pub(crate) fn plan<E>(
        reader: &Reader,
        origin: &str,
        keys: &Keyring,
        from: u64,
        to: Option<u64>,
        steps: impl FnOnce() -> Result<Vec<Sequence>, E>,
    ) -> Result<Self, Unplanned<E>> {
        let count = reader.count()?;
        let Some(checkpoint) = reader.newest_note()? else { return Err(Unplanned::NoCheckpoint) };
        let newest = checkpoint.checkpoint().root().size;
        // The checkpoint may be of a commit that came in between.
        let count = count.max(newest.leaves());
        let to = to.unwrap_or(count).min(count);
        let from = from.min(to);
        let sized = |size: u64| {
            TreeSize::new(size).ok_or_else(|| StoreError::Damaged(format!("{size} is no tree size")))
        };
        let (start, end) = (sized(from)?, sized(to)?);

        let (mut bytes, mut last) = (0, end);
        reader.notes_of(Sequence(from), Sequence(to), |note| {
            bytes += checkpoint_line(&note).len() as u64;
            last = note.checkpoint().root().size;
            Ok(())
        })?;
        let sizes = Sizes {
            entries: reader.bytes_before(Sequence(to))? - reader.bytes_before(Sequence(from))?,
            checkpoints: bytes,
        };

        let proofs = if start > TreeSize::EMPTY || end < newest {
            let mut tree = reader.tree(count.max(last.leaves()))?;
            let tree_read = |error| Unplanned::Store(StoreError::from(error));
            let reached = start <= newest && newest <= end;
            let mut proofs = Proofs {
                left: tree.frontier(start).map_err(tree_read)?.peaks().to_vec(),
                consistency: if reached {
                    Vec::new()
                } else {
                    tree.consistency(end.min(newest), end.max(newest)).map_err(tree_read)?
                },
                commit: if last > end { Some(tree.consistency(end, last).map_err(tree_read)?) } else { None },
                context: Vec::new(),
            };
            if start > TreeSize::EMPTY {
                let steps = steps().map_err(Unplanned::Steps)?;
                let needed =
                    context::needed(reader, &steps)?.map_err(|TooLarge| Unplanned::ContextTooLarge)?;
                for (sequence, entry) in needed {
                    if sequence.0 >= newest.leaves() {
                        return Err(Unplanned::NoCheckpoint);
                    }
                    let path = tree.inclusion(sequence.0, newest).map_err(tree_read)?;
                    proofs.context.push(Context { entry, index: sequence.0, path });
                }
            }
            // By these the newest checkpoint is judged.
            for sequence in key_entries(keys).filter(|sequence| (to..newest.leaves()).contains(sequence)) {
                let path = tree.inclusion(sequence, newest).map_err(tree_read)?;
                let entry = context::text_of(reader, Sequence(sequence))?;
                proofs.context.push(Context { entry, index: sequence, path });
            }
            Some(proofs)
        } else {
            None
        };
        let Some(Term { key, .. }) = keys.terms().first() else { return Err(Unplanned::NoCheckpoint) };
        let contents =
            Contents { origin: origin.to_owned(), key: key.clone(), first: from, checkpoint, proofs };
        Ok(Extract { contents, from, to, sizes })
    }
}

/// The entries that changed the keys, in order.
fn key_entries(keys: &Keyring) -> impl Iterator<Item = u64> {
    let terms = keys.terms();
    let rotations = terms.iter().skip(1).map(|term| term.first.0 - 1);
    let pending = usize::from(keys.is_waiting());
    let activations = terms.iter().skip(1).rev().skip(pending).map(|term| term.first.0);
    let revocations = terms.iter().filter_map(|term| term.revoked.as_ref().map(|revoked| revoked.at.0));
    let entries: BTreeSet<u64> = rotations.chain(activations).chain(revocations).collect();
    entries.into_iter()
}

/// Checks the first `count` entries, and the checkpoints that the ledger keeps of them.
pub(crate) fn verify(
    reader: &Reader,
    origin: &str,
    key: &PublicKey,
    count: u64,
    mut progress: impl FnMut(u64),
) -> Result<Verdict, NotVerified> {
    let mut expectations = Expectations::trusting(TrustedKeys::only(key.clone()));
    expectations.after = Some(Head::EMPTY);
    let newest = reader.newest_note()?;
    // What was committed since `count` was read is under the newest checkpoint, if that is newer.
    let newest_size = newest.as_ref().map_or(TreeSize::EMPTY, |note| note.checkpoint().root().size);
    let count = count.max(newest_size.leaves());
    let mut read = 0;
    let lines = lines(reader, Sequence(0), Sequence(count)).inspect(|_| {
        read += 1;
        progress(read);
    });
    let (mut verdict, grown) = audit::rebuild(lines, &expectations, vec![newest_size], false)?;
    let (Some(grown), true) = (grown, verdict.ok) else { return Ok(verdict) };
    let Some(newest) = newest else {
        verdict.not_checked.push("checkpoints: the ledger has none yet".into());
        return Ok(verdict);
    };

    let origin = Some(origin);
    let end = TreeSize::new(count).unwrap_or(TreeSize::MAX);
    let mut outcome =
        audit::read_note(newest.as_str().as_bytes(), origin, &grown.keys).and_then(|(note, _)| {
            audit::check_newest(note.checkpoint().root(), &grown, None, &mut verdict, &grown.keys)
        });
    let mut notes = Notes::default();
    reader.notes_of(Sequence(0), Sequence(count), |note| {
        if outcome.is_ok() {
            outcome = notes.add(note.as_str().as_bytes(), origin, &grown.keys, end);
        }
        Ok(())
    })?;
    if let Err(fault) = outcome.and_then(|()| notes.finish(grown, None)) {
        verdict.fail(fault.within("the ledger's checkpoints"));
    }
    Ok(verdict)
}

/// The ledger could not be read to be checked, so nothing is said of it.
#[derive(Debug, thiserror::Error)]
pub enum NotVerified {
    /// What is read beside the entries.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The entries.
    #[error("couldn't read the ledger to check it")]
    Entries(#[from] io::Error),
}
