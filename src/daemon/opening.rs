//! Opening a ledger to extend it: what there is must hold, agree with its anchors, and have the token that it names.
//!
//! ```text
//! find (without the token) ──► keeper.open ──► finish (anchors on the token, then what a crash left)
//! ```

use std::num::NonZeroUsize;
use std::sync::Arc;

use super::anchors::Checked;
use super::boot::Last;
use super::genesis::Genesis;
use super::init::sign;
use super::offline::read_genesis;
use super::{Fault, anchors, governing, io, keys, pin_latch};
use crate::anchor::{Contradiction, Standing};
use crate::audit::{Before, Expectations, TrustedKeys};
use crate::config::Config;
use crate::evidence::lines;
use crate::governance::governor::Governor;
use crate::governance::keyring::Keyring;
use crate::index::{Index, IndexError};
use crate::ledger::canonical;
use crate::ledger::chain::Head;
use crate::ledger::entry::{Sequence, SignatureAlgorithm};
use crate::ledger::key::{KeyId, PublicKey};
use crate::ledger::merkle::{NodeHash, TreeSize};
use crate::ledger::tile::{Edge, Tile};
use crate::store::{Reader, Store, StoreError, Unfinished, algorithm_of};
use crate::token::{Expected, Identity, Keeper, Pool, TokenError, TokenOptions};
use crate::{anchor, audit, failpoint};

/// How many of the last entries a start checks in full: what a crash could have touched, and
/// little enough that a start takes the same time at any length.
const CHECKED_AT_START: u64 = 1_024;

/// A ledger that holds, with nothing left unsigned and its key unlocked.
pub(super) struct Opened {
    pub(super) store: Store,
    pub(super) reader: Reader,
    pub(super) index: Index,
    pub(super) genesis: Genesis,
    /// The keys, of which the token has the newest.
    pub(super) keys: Arc<Keyring>,
    /// Which entries were checked in full.
    pub(super) verified: (u64, u64),
    pub(super) edge: Edge,
    pub(super) pool: Arc<Pool>,
    pub(super) token: Arc<Keeper>,
    /// All that are configured.
    pub(super) anchors: Vec<Checked>,
    /// How the next entry would be signed if nothing changed.
    pub(super) algorithm: SignatureAlgorithm,
}

/// What is to become of an anchor that is not there.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Absent {
    /// The ledger is refused.
    Refused,
    /// It is to be made.
    Given,
}

impl Absent {
    fn refuse(self, anchors: &[Checked]) -> Result<(), Fault> {
        let missing = anchors.iter().find(|checked| checked.entries.is_none());
        match missing.filter(|_| self == Absent::Refused) {
            Some(Checked { anchor, .. }) => {
                Err(Fault::Anchor(Contradiction { anchor: anchor.clone(), standing: Standing::Missing }))
            }
            None => Ok(()),
        }
    }
}

/// A ledger that holds as far as that can be said without its token.
pub(super) struct Found {
    pub(super) store: Store,
    pub(super) reader: Reader,
    pub(super) index: Index,
    pub(super) genesis: Genesis,
    pub(super) keys: Arc<Keyring>,
    /// The one that has the newest key.
    pub(super) token: Identity,
    pub(super) verified: (u64, u64),
    pub(super) edge: Edge,
    pub(super) anchors: Vec<Checked>,
}

impl Found {
    /// The key that signs what comes next.
    pub(super) fn key(&self) -> &PublicKey {
        self.keys.newest().unwrap_or(&self.genesis.key)
    }

    pub(super) fn explain(&self, error: TokenError) -> Fault {
        keys::explain(error, self.key().id(), self.keys.terms().len() > 1)
    }
}

/// Opens the ledger to extend it, where it and its anchors hold. What is refused without the token is
/// refused before the token is touched; what an anchor says, before anything is signed.
/// `progress` hears of what may take minutes.
pub(super) fn open(config: &Config, absent: Absent, progress: Progress<'_>) -> Result<Opened, Fault> {
    let found = find(config, absent, progress)?;
    let keeper = Arc::new(keeper(config, &found)?);
    let pool = keeper.open().map_err(|error| found.explain(error))?;
    finish(config, absent, found, &pool, keeper, progress)
}

/// Hears in words what is being done.
pub(super) type Progress<'a> = &'a dyn Fn(&str);

pub(super) fn open_index(
    config: &Config,
    reader: &Reader,
    progress: Progress<'_>,
) -> Result<Index, IndexError> {
    Index::open(&config.ledger.index, reader, |indexed| {
        progress(&format!("building the index: {indexed} entries"));
        tracing::info!(indexed, "building the index");
    })
}

pub(super) fn find(config: &Config, absent: Absent, progress: Progress<'_>) -> Result<Found, Fault> {
    let ledger = &config.ledger.path;
    if ledger.symlink_metadata().is_err() {
        return Err(Fault::NoLedger(ledger.clone()));
    }
    let store = Store::open(ledger, &mut |done, of| {
        progress(&format!("building the tree of the ledger, once: {done} of {of} entries"));
        if done.is_multiple_of(1 << 18) || done == of {
            tracing::info!(done, of, "building the tree, once");
        }
    })?;
    let reader = Reader::open(ledger)?;
    if reader.count()? == 0 {
        return Err(Fault::Unborn(ledger.clone()));
    }
    let genesis = read_genesis(ledger, &reader)?;
    if genesis.origin != config.origin {
        return Err(Fault::OtherOrigin { ledger: genesis.origin, config: config.origin.clone() });
    }
    let index = match open_index(config, &reader, progress) {
        Ok(index) => index,
        Err(error) => {
            // An anchor knows more of what is gone than the index does.
            let keys = &keys::found(&reader, &genesis)?;
            let ledger = anchor::Ledger { origin: &genesis.origin, keys, reader: &reader };
            absent.refuse(&anchors::check(anchors::off_token(config), ledger)?)?;
            return Err(error.into());
        }
    };
    let verified = check_tail(&reader, &genesis, |end| governing::governor_at(&reader, &index, end))?;
    let keys = keys_now(&reader, &index)?;
    let edge = check_tree(&reader, &genesis, &keys, verified.0)?;
    let ledger = anchor::Ledger { origin: &genesis.origin, keys: &keys, reader: &reader };
    let anchors = anchors::check(anchors::off_token(config), ledger)?;
    absent.refuse(&anchors)?;
    let token = keys::token_of_newest(&reader, &keys, &genesis)?;
    Ok(Found { store, reader, index, genesis, keys, token, verified, edge, anchors })
}

fn keys_now(reader: &Reader, index: &Index) -> Result<Arc<Keyring>, Fault> {
    Ok(governing::governor_at(reader, index, Sequence(reader.count()?))?.standing().keys.clone())
}

/// The rest, with the token: its anchor, and what a stopped daemon had reserved.
pub(super) fn finish(
    config: &Config,
    absent: Absent,
    found: Found,
    pool: &Arc<Pool>,
    token: Arc<Keeper>,
    progress: Progress<'_>,
) -> Result<Opened, Fault> {
    let key = found.key().id();
    let Found {
        mut store, reader, mut index, genesis, mut keys, mut verified, mut edge, mut anchors, ..
    } = found;
    let ledger = anchor::Ledger { origin: &genesis.origin, keys: &keys, reader: &reader };
    anchors.extend(anchors::check(anchors::on_token(config, &token), ledger)?);
    absent.refuse(&anchors)?;
    while let Some(found) = store.unfinished(reader.head()?)? {
        sign_again(&mut store, &found, &mut edge, pool, key)?;
        drop(index);
        index = open_index(config, &reader, progress)?;
        verified = check_tail(&reader, &genesis, |end| governing::governor_at(&reader, &index, end))?;
    }
    keys = keys_now(&reader, &index)?;
    // The last thing that was reserved may have been the change of the key.
    if let Some(newest) = keys.newest().filter(|newest| newest.id() != key) {
        return Err(Fault::OtherKey { expected: newest.id(), found: key });
    }
    let algorithm = Last::read(&reader, &reader.head()?)?.algorithm;
    let pool = pool.clone();
    Ok(Opened { store, reader, index, genesis, keys, verified, edge, pool, token, anchors, algorithm })
}

/// The token that has the newest key, which it has to prove.
pub(super) fn keeper(config: &Config, found: &Found) -> Result<Keeper, Fault> {
    let Identity { serial, model, .. } = found.token.clone();
    let options =
        TokenOptions::configured(&config.token, Some(pin_latch(config)), Some(Expected { serial, model }))?;
    Ok(Keeper::new(options, found.key().clone(), &found.genesis.origin))
}

/// Signs what a stopped daemon had reserved: exactly those entries, with their own key and mode.
fn sign_again(
    store: &mut Store,
    unfinished: &Unfinished,
    edge: &mut Edge,
    pool: &Pool,
    key: KeyId,
) -> Result<(), Fault> {
    if unfinished.key != key || algorithm_of(&unfinished.mode).is_none() {
        return Err(Fault::OtherReservation {
            first: unfinished.first.0,
            key: unfinished.key,
            mode: unfinished.mode.clone(),
        });
    }
    tracing::warn!(
        first = unfinished.first.0,
        count = unfinished.hashes.len(),
        "signing entries that were reserved"
    );
    let signatures = sign(pool, unfinished.signables(edge)?)?;
    failpoint::reach("after-signing-again");
    // A crash before this line leaves the same reservation; its signatures differ, its content not.
    Ok(store.finish(unfinished, &signatures)?)
}

/// Checks the last entries in full and says which. `governor_at` gives the state of governance before them.
pub(super) fn check_tail(
    reader: &Reader,
    genesis: &Genesis,
    governor_at: impl FnOnce(Sequence) -> Result<Governor, Fault>,
) -> Result<(u64, u64), Fault> {
    let count = reader.count()?;
    let from = count.saturating_sub(CHECKED_AT_START);
    let mut expectations = Expectations::trusting(TrustedKeys::only(genesis.key.clone()));
    expectations.after = Some(head_before(reader, from)?);
    if from > 0 {
        let size =
            TreeSize::new(from).ok_or_else(|| StoreError::Damaged(format!("{from} is no tree size")))?;
        let tree = reader.tree(from)?.frontier(size).map_err(StoreError::from)?;
        let governor = governor_at(Sequence(from))?;
        expectations.before = Some(Before { origin: genesis.origin.clone(), tree, governor });
    }
    expectations.threads = NonZeroUsize::new(2);
    let verdict = audit::audit(lines(reader, Sequence(from), Sequence(count)), &expectations)
        .map_err(io("check the last entries"))?;
    match verdict.fault {
        Some(fault) => Err(Fault::Tail(fault)),
        None => Ok((from, count - 1)),
    }
}

fn head_before(reader: &Reader, sequence: u64) -> Result<Head, Fault> {
    let Some(before) = sequence.checked_sub(1) else { return Ok(Head::EMPTY) };
    let damaged = |what: String| StoreError::Damaged(format!("entry {before} {what}"));
    let line = reader.line(Sequence(before))?.ok_or_else(|| damaged("is missing".into()))?;
    let decoded = canonical::decode(&line.bytes).map_err(|fault| damaged(fault.to_string()))?;
    Ok(Head::after(&decoded.entry))
}

/// Holds the tree that is kept against the last entries and the newest checkpoint: what a crash, a
/// bad disk or a hand could have touched is not signed over. Gives its right edge.
pub(super) fn check_tree(
    reader: &Reader,
    genesis: &Genesis,
    keys: &Keyring,
    from: u64,
) -> Result<Edge, Fault> {
    let damaged = |what: String| Fault::Store(StoreError::Damaged(what));
    let count = reader.count()?;
    let sized = |size: u64| TreeSize::new(size).ok_or_else(|| damaged(format!("{size} is no tree size")));
    let mut tree = reader.tree(count)?;
    let edge = tree.edge().map_err(StoreError::from)?;
    let mut grown = tree.frontier(sized(from)?).map_err(StoreError::from)?;
    let mut leaves = Vec::with_capacity(Tile::FULL_BYTES);
    for (sequence, line) in (from..).zip(lines(reader, Sequence(from), Sequence(count))) {
        let line = line?;
        let decoded = canonical::decode(&line).map_err(|fault| damaged(fault.to_string()))?;
        grown.push(decoded.computed_hash).map_err(|full| damaged(full.to_string()))?;
        // The edge is made of nodes alone, so the tiles of leaves are held against the entries too.
        leaves.extend_from_slice(&NodeHash::of_leaf(decoded.computed_hash).0.0);
        if (sequence + 1).is_multiple_of(u64::from(Tile::FULL)) {
            if let Some(tile) = Tile::new(0, sequence >> Tile::HEIGHT, Tile::FULL)
                && !reader.tile(tile)?.ends_with(&leaves)
            {
                return Err(damaged(format!("{} of its tree is not what its entries make", tile.path())));
            }
            leaves.clear();
        }
    }
    if grown.root() != edge.root() {
        return Err(damaged(format!(
            "its tree of {count} entries is not the one that its last entries make"
        )));
    }
    if let Some(note) = reader.newest_note()? {
        let (origin, root) = (note.checkpoint().origin(), note.checkpoint().root());
        note.verify(&keys.signer_of(root.size))
            .map_err(|fault| damaged(format!("its newest checkpoint: {fault}")))?;
        let holds = origin == genesis.origin
            && root.size.leaves() <= count
            && tree.root(root.size).map_err(StoreError::from)? == root;
        if !holds {
            return Err(damaged(format!(
                "its newest checkpoint, of {} entries, is not of its tree",
                root.size
            )));
        }
    }
    Ok(edge)
}
