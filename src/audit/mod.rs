//! The whole-ledger check. Start-up, `attestd verify`, `POST /v1/verify`, the tests and the
//! auditor's tool all call this one.
//!
//! [`check_entry`] says what can be said of one entry alone; [`audit`] drives it over a stream of
//! lines on all cores and adds what entries say of each other: sequence, chain, time, unique ids
//! and dependencies. Memory stays flat however long the ledger is. It does not know where lines
//! come from: that is [`crate::bundle`], or the daemon's store.

mod entry;
mod growth;
mod ids;
mod notes;
mod receipt;
mod verdict;

use std::io;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use memchr::memmem;

pub(crate) use entry::origin_of;
pub use entry::{GENESIS, TrustedKeys, check_entry};
pub(crate) use growth::Grown;
pub(crate) use notes::{Notes, check_known, check_newest, read_note};
pub use receipt::{ReceiptVerdict, verify_receipt};
pub use verdict::{CheckpointSeen, Fault, Verdict};

use crate::governance::Refusal;
use crate::governance::governor::{Governor, Standing};
use crate::governance::keyring::{self, Keyring, Revocation, Term};
use crate::ledger::canonical;
use crate::ledger::chain::Head;
use crate::ledger::checkpoint::Note;
use crate::ledger::code::Code;
use crate::ledger::entry::{EntryView, Sequence, SignatureAlgorithm};
use crate::ledger::hash::Digest;
use crate::ledger::merkle::{Frontier, TreeSize};
use growth::{Growth, KeyChange, Piece};
use ids::{Ids, Mention};

/// More threads only wait for each other.
const MAX_THREADS: usize = 256;
/// A batch is closed at this many entries (about 10 ms of work, so that locks cost nothing) or
/// bytes (so that a few batches in flight stay small beside their lines of up to 1 MiB).
const BATCH_ENTRIES: usize = 128;
const BATCH_BYTES: usize = 256 << 10;

/// What the auditor knows beforehand, and how hard to work.
#[derive(Debug, Clone)]
pub struct Expectations {
    /// Whom to believe.
    pub keys: TrustedKeys,
    /// What the first entry must follow: [`Head::EMPTY`] for a whole ledger, the head before it
    /// for a tail, `None` where the first entry itself says where it begins.
    pub after: Option<Head>,
    /// The ledger before the first entry, where that is not entry 0. Without it a range has no root,
    /// and entries that a checkpoint signs cannot be checked.
    pub before: Option<Before>,
    /// The origin that the ledger must have.
    pub origin: Option<String>,
    /// The `entry_hash` that entry 0 must have.
    pub genesis: Option<Digest>,
    /// A checkpoint that was seen before: the ledger must extend it.
    pub known: Option<Note>,
    /// Threads that verify; `None` for one on each core.
    pub threads: Option<NonZeroUsize>,
}

impl Expectations {
    /// Nothing but trust in `keys`.
    #[must_use]
    pub fn trusting(keys: TrustedKeys) -> Self {
        Expectations {
            keys,
            after: None,
            before: None,
            origin: None,
            genesis: None,
            known: None,
            threads: None,
        }
    }
}

/// The ledger before the first entry of a range.
#[derive(Debug, Clone)]
pub struct Before {
    /// Whose it is.
    pub origin: String,
    /// The tree over its entries.
    pub tree: Frontier,
    /// By what its entries let the next one be judged.
    pub governor: Governor,
}

/// Why a source of lines stops: it cannot be read, or what it holds is wrong.
#[derive(Debug, thiserror::Error)]
pub enum Interruption {
    /// Nothing can be said of what could not be read.
    #[error(transparent)]
    Unreadable(#[from] io::Error),
    /// What was read is no line of a ledger.
    #[error("{0}")]
    Faulty(Fault),
}

impl From<Fault> for Interruption {
    fn from(fault: Fault) -> Self {
        Interruption::Faulty(fault)
    }
}

/// Checks `lines` (without line feeds), all of them or up to the first fault, which is the one
/// with the smallest line even where several are found. The last entry must be the end of its commit.
///
/// # Errors
/// When a line could not be read, or when the temporary file for ids could not be used. Then
/// there is no verdict.
pub fn audit<E: Into<Interruption>>(
    lines: impl IntoIterator<Item = Result<Vec<u8>, E>>,
    expectations: &Expectations,
) -> io::Result<Verdict> {
    let sizes = expectations.known.iter().map(|note| note.checkpoint().root().size).collect();
    let (mut verdict, grown) = rebuild(lines, expectations, sizes, false)?;
    if let (Some(known), Some(grown)) = (&expectations.known, grown)
        && let Err(fault) = check_known(known, &grown, None, &mut verdict, &grown.keys)
    {
        verdict.fail(fault);
    }
    Ok(verdict)
}

/// [`audit`] that also gives the tree which the entries make, with its roots at `sizes`, unless
/// there is a fault. What is known of a checkpoint seen before is not looked at. If the last commit
/// `may_go_on` after the last entry, its signature is left to the caller.
pub(crate) fn rebuild<E: Into<Interruption>>(
    lines: impl IntoIterator<Item = Result<Vec<u8>, E>>,
    expectations: &Expectations,
    sizes: Vec<TreeSize>,
    may_go_on: bool,
) -> io::Result<(Verdict, Option<Grown>)> {
    let threads = expectations
        .threads
        .or_else(|| std::thread::available_parallelism().ok())
        .map_or(1, NonZeroUsize::get)
        .min(MAX_THREADS);
    let (origin, tree) = match &expectations.before {
        Some(before) => (Some(before.origin.clone()), before.tree.clone()),
        None => (None, Frontier::new()),
    };
    let audit = Audit {
        expectations,
        growth: Mutex::new(Growth::new(tree, origin, expectations.keys.first().clone(), sizes)),
        findings: Mutex::new(Findings {
            ids: Ids::new(),
            opening: None,
            keys: None,
            end: None,
            open: None,
            fault: None,
            failure: None,
        }),
        first_fault: AtomicU64::new(u64::MAX),
    };
    // One batch waits for each thread. The receiver belongs to the workers alone: should they all
    // die, sending fails instead of waiting for ever.
    let (sender, receiver) = sync_channel(threads);
    let receiver = Arc::new(Mutex::new(receiver));
    std::thread::scope(|scope| {
        for number in 0..threads {
            let receiver = Arc::clone(&receiver);
            let audit = &audit;
            let spawned = std::thread::Builder::new().spawn_scoped(scope, move || audit.work(&receiver));
            match spawned {
                Ok(_) => {}
                // Those that there are do the work.
                Err(_) if number > 0 => break,
                Err(error) => return Err(error),
            }
        }
        drop(receiver);
        audit.read(lines, sender);
        Ok(())
    })?;
    audit.finish(may_go_on)
}

/// Lines that follow each other.
struct Batch {
    /// Which line the first is, from 0.
    start: u64,
    /// The line before the first, from which a worker learns what the first must follow.
    before: Option<Vec<u8>>,
    lines: Vec<Vec<u8>>,
    bytes: usize,
    /// By what the lines are judged that change nothing; `None` where that is not known.
    standing: Option<Standing>,
    /// By whom they must be signed.
    keys: TrustedKeys,
    /// What became of those that could change something, by their place among the lines.
    followed: Vec<(usize, Option<Refusal>)>,
}

impl Batch {
    /// Without a standing, or one that knows no key yet, nothing but what is `trusted` is trusted.
    fn new(start: u64, before: Option<Vec<u8>>, standing: Option<Standing>, trusted: &TrustedKeys) -> Self {
        let keys = standing.as_ref().and_then(|standing| TrustedKeys::following(&standing.keys));
        let keys = keys.unwrap_or_else(|| trusted.clone());
        let lines = Vec::with_capacity(BATCH_ENTRIES);
        Batch { start, before, lines, bytes: 0, standing, keys, followed: Vec::new() }
    }

    /// What governance says of the entry that stands at the place `index`.
    fn judge(&mut self, index: usize, entry: &EntryView<'_>) -> Result<(), Refusal> {
        let Some(standing) = &self.standing else { return Ok(()) };
        if !Governor::concerns(entry) {
            return standing.check(entry);
        }
        match self.followed.iter_mut().find(|(at, _)| *at == index) {
            Some((_, refusal)) => refusal.take().map_or(Ok(()), Err),
            // It is not the daemon's, and what it holds as approvals is not even a list of objects.
            None => Err(Refusal::new(Code::ApprovalMalformed).at("/received_approvals")),
        }
    }
}

/// Whether the line may hold an entry for which [`Governor::concerns`] holds. Some for which it does
/// not look so too, because of what stands deep inside them; that only costs time.
pub(crate) fn may_concern(line: &[u8]) -> bool {
    // Canonical bytes spell a member in one way only.
    memmem::find(line, br#""actor_id":"attestd","#).is_some()
        || memmem::find(line, br#""received_approvals":[{"#).is_some()
}

struct Audit<'a> {
    expectations: &'a Expectations,
    growth: Mutex<Growth>,
    findings: Mutex<Findings>,
    /// The smallest line known to be faulty: nothing from there on needs to be looked at.
    first_fault: AtomicU64,
}

struct Findings {
    ids: Ids,
    opening: Option<Opening>,
    /// The keys after the last line, once all are read and where they were followed.
    keys: Option<TrustedKeys>,
    /// The last line that holds, and the head after it.
    end: Option<(u64, Head)>,
    /// The line with which a commit begins that has not ended before the fault.
    open: Option<u64>,
    fault: Option<(u64, Fault)>,
    failure: Option<io::Error>,
}

/// What the first entry says.
struct Opening {
    first: Sequence,
    /// Of a genesis.
    origin: Option<String>,
}

impl Audit<'_> {
    /// Hands out batches until the source ends, something is wrong, or nobody takes them. What
    /// changes the state of governance is judged here, where lines come one after the other; a batch
    /// ends where the others begin to be judged by something else.
    fn read<E: Into<Interruption>>(
        &self,
        lines: impl IntoIterator<Item = Result<Vec<u8>, E>>,
        sender: SyncSender<Batch>,
    ) {
        let trusted = &self.expectations.keys;
        let mut governor = self.expectations.before.as_ref().map(|before| before.governor.clone());
        let standing = |governor: &Option<Governor>| governor.as_ref().map(|g| g.standing().clone());
        let mut batch = Batch::new(0, None, standing(&governor), trusted);
        for line in lines {
            let line = match line.map_err(Into::into) {
                Ok(line) => line,
                Err(Interruption::Unreadable(error)) => {
                    self.findings().failure = Some(error);
                    return;
                }
                Err(Interruption::Faulty(fault)) => {
                    self.blame(&mut self.findings(), batch.start + batch.lines.len() as u64, fault);
                    break;
                }
            };
            let mut refused = false;
            if may_concern(&line)
                && let Ok(decoded) = canonical::decode(&line)
                && Governor::concerns(&decoded.entry)
            {
                let is_first = batch.start == 0 && batch.lines.is_empty();
                if is_first && governor.is_none() && decoded.entry.sequence_number == Sequence(0) {
                    governor = Some(Governor::new());
                    batch.standing = standing(&governor);
                }
                if let Some(governor) = &mut governor {
                    let refusal = governor.follow(&decoded.entry).err();
                    refused = refusal.is_some();
                    batch.followed.push((batch.lines.len(), refusal));
                }
            }
            batch.bytes += line.len();
            batch.lines.push(line);
            // From a refusal on nobody knows by what to judge, and nobody needs to.
            if refused {
                break;
            }
            let generation = governor.as_ref().map(|governor| governor.standing().generation);
            if batch.lines.len() >= BATCH_ENTRIES
                || batch.bytes >= BATCH_BYTES
                || generation != batch.standing.as_ref().map(|standing| standing.generation)
            {
                let start = batch.start + batch.lines.len() as u64;
                let next = Batch::new(start, batch.lines.last().cloned(), standing(&governor), trusted);
                let full = std::mem::replace(&mut batch, next);
                if self.is_over(full.start) || sender.send(full).is_err() {
                    return;
                }
            }
        }
        let keys = governor.as_ref().and_then(|governor| TrustedKeys::following(&governor.standing().keys));
        self.findings().keys = keys;
        // Nobody listens only when all workers died, and then their panic is passed on.
        let _ = sender.send(batch);
    }

    fn work(&self, receiver: &Mutex<Receiver<Batch>>) {
        loop {
            let batch = receiver.lock().unwrap_or_else(PoisonError::into_inner).recv();
            match batch {
                Ok(batch) if self.is_over(batch.start) => {}
                Ok(batch) => self.check(batch),
                Err(_) => return,
            }
        }
    }

    /// Whether the verdict no longer depends on `line`.
    fn is_over(&self, line: u64) -> bool {
        self.first_fault.load(Ordering::Relaxed) <= line
    }

    fn check(&self, mut batch: Batch) {
        // If the line before is no entry, the batch that it is in says so, and that comes first.
        let mut place = match &batch.before {
            Some(line) => canonical::decode(line).ok().map(|decoded| Place::after(&decoded.entry)),
            None => self.expectations.after.map(|head| Place { head, algorithm: None }),
        };
        let mut mentions = Vec::with_capacity(batch.lines.len());
        let mut piece = Piece {
            hashes: Vec::with_capacity(batch.lines.len()),
            key: batch.keys.keyring().newest().cloned(),
            ..Piece::default()
        };
        let mut signed_as = None;
        let mut opening = None;
        let mut fault = None;
        let lines = std::mem::take(&mut batch.lines);
        for (index, text) in lines.iter().enumerate() {
            let line = batch.start + index as u64;
            let checked = entry::check_unsigned(text, &batch.keys).and_then(|entry| {
                let next = follow(place, &entry)?;
                if line == 0 {
                    opening = Some(self.open(&entry)?);
                }
                batch.judge(index, &entry)?;
                // Most entries share the signature of the one before: then there is nothing to read.
                let signed_now = (entry.signature_algorithm, entry.hsm_signature);
                let own = entry.signature_algorithm == SignatureAlgorithm::EntryP256;
                let same = match signed_as {
                    Some((SignatureAlgorithm::EntryP256, _)) => own,
                    signed_as => signed_as == Some(signed_now),
                };
                if !same {
                    piece.runs.push((piece.hashes.len(), entry::shared_signature(&entry)?));
                    signed_as = Some(signed_now);
                }
                Ok((entry, next))
            });
            match checked {
                Ok((entry, next)) => {
                    place = Some(next);
                    piece.change = key_change(&entry, batch.keys.keyring());
                    piece.hashes.push(entry.entry_hash);
                    mentions.extend(entry.dependencies.iter().map(|id| Mention {
                        id: *id,
                        line,
                        own: false,
                    }));
                    mentions.push(Mention { id: entry.entry_id, line, own: true });
                }
                Err(mut found) => {
                    // Where nobody knows where the first entry should stand, its own word names the place.
                    let claimed = canonical::decode(text).ok().filter(|_| line == 0);
                    found.sequence_number = claimed.map(|decoded| decoded.entry.sequence_number.0);
                    fault = Some((line, found));
                    break;
                }
            }
        }
        if let Some(opening) = &opening {
            piece.first = Some(opening.first);
            piece.origin = opening.origin.clone();
        }
        let held = fault.as_ref().map_or(batch.start + lines.len() as u64, |(line, _)| *line);
        {
            let mut findings = self.findings();
            findings.opening = findings.opening.take().or(opening);
            if held > batch.start && findings.end.is_none_or(|(line, _)| line < held) {
                findings.end = place.map(|place| (held, place.head));
            }
            if let Some((line, fault)) = fault {
                self.blame(&mut findings, line, fault);
            }
            if let Err(error) = findings.ids.extend(mentions) {
                findings.failure = Some(error);
                self.first_fault.store(0, Ordering::Relaxed);
            }
        }
        self.grow(batch.start, piece);
    }

    /// Adds the entries to the tree, and checks the signatures of the commits that end by that.
    fn grow(&self, line: u64, piece: Piece) {
        let taken = self.growth.lock().unwrap_or_else(PoisonError::into_inner).take(line, piece);
        match taken {
            Ok(claims) => claims.iter().for_each(|claim| self.settle(claim)),
            Err((line, fault)) => self.blame(&mut self.findings(), line, fault),
        }
    }

    fn settle(&self, claim: &growth::Claim) {
        if self.is_over(claim.commit.line) {
            return;
        }
        if let Err(fault) = claim.check() {
            self.blame(&mut self.findings(), claim.commit.line, fault);
        }
    }

    /// What it all comes to, when all lines were read.
    fn finish(mut self, may_go_on: bool) -> io::Result<(Verdict, Option<Grown>)> {
        let none = Growth::new(Frontier::new(), None, self.expectations.keys.first().clone(), Vec::new());
        let growth = std::mem::replace(&mut self.growth, Mutex::new(none));
        let growth = growth.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut grown = None;
        let keys = self.findings().keys.clone().unwrap_or_else(|| self.expectations.keys.clone());
        if self.first_fault.load(Ordering::Relaxed) == u64::MAX {
            match growth.finish(may_go_on, keys.clone()) {
                Ok((all, claim)) => {
                    claim.iter().for_each(|claim| self.settle(claim));
                    grown = Some(all);
                }
                Err((line, fault)) => self.blame(&mut self.findings(), line, fault),
            }
        } else {
            self.findings().open = growth.open().map(|commit| commit.line);
        }
        let findings = self.findings.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut verdict = findings.verdict(self.expectations)?;
        if verdict.fault.is_none() {
            describe_keys(&mut verdict, keys.keyring());
        }
        Ok((verdict, grown))
    }

    /// Checks the first entry against what was known beforehand.
    fn open(&self, entry: &EntryView<'_>) -> Result<Opening, Fault> {
        let first = entry.sequence_number;
        let origin = if first == Sequence(0) { entry::origin_of(entry) } else { None };
        if let (Some(origin), Some(expected)) = (&origin, &self.expectations.origin)
            && origin != expected
        {
            return Err(Fault::new(Code::Origin)
                .at("/action_payload/origin")
                .because(format!("`{origin}` instead of `{expected}`")));
        }
        if let Some(before) = &self.expectations.before
            && before.tree.size().leaves() != first.0
        {
            return Err(Fault::new(Code::Sequence)
                .at("/sequence_number")
                .because(format!("{first} where {} should stand", before.tree.size())));
        }
        if let Some(expected) = self.expectations.genesis
            && self.expectations.before.is_none()
        {
            if first != Sequence(0) {
                return Err(Fault::new(Code::GenesisHash).because("the genesis is not in this range"));
            }
            if entry.entry_hash != expected {
                return Err(Fault::new(Code::GenesisHash).at("/entry_hash"));
            }
        }
        Ok(Opening { first, origin })
    }

    fn blame(&self, findings: &mut Findings, line: u64, fault: Fault) {
        if findings.fault.as_ref().is_none_or(|(earliest, _)| line < *earliest) {
            findings.fault = Some((line, fault));
            self.first_fault.fetch_min(line, Ordering::Relaxed);
        }
    }

    fn findings(&self) -> MutexGuard<'_, Findings> {
        self.findings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the next entry must follow.
#[derive(Debug, Clone, Copy)]
struct Place {
    head: Head,
    /// How it must be signed, where that is known.
    algorithm: Option<SignatureAlgorithm>,
}

impl Place {
    /// The one after `entry`. (One that announces a change of mode wrongly has its own fault.)
    fn after(entry: &EntryView<'_>) -> Self {
        Place { head: Head::after(entry), algorithm: entry::mode_after(entry).ok() }
    }
}

/// The place after `entry`, which must follow `place`. Where nothing is known of what came before,
/// entry 0 follows the empty ledger, and any other entry begins a range.
fn follow(place: Option<Place>, entry: &EntryView<'_>) -> Result<Place, Fault> {
    let Place { mut head, algorithm } = match place {
        Some(place) => place,
        None if entry.sequence_number == Sequence(0) => Place { head: Head::EMPTY, algorithm: None },
        None => return Ok(Place::after(entry)),
    };
    let expected = head;
    head.follow(entry).map_err(|code| match code {
        Code::Sequence => Fault::new(code)
            .at("/sequence_number")
            .because(format!("{} where {} should stand", entry.sequence_number, expected.next)),
        Code::ChainBroken => Fault::new(code).at("/prev_entry_hash"),
        code => Fault::new(code).at("/timestamp"),
    })?;
    match algorithm {
        Some(algorithm) if algorithm != entry.signature_algorithm => Err(Fault::new(Code::SignatureMode)
            .at("/signature_algorithm")
            .because(format!("{} where {algorithm} is due", entry.signature_algorithm))),
        _ => Ok(Place::after(entry)),
    }
}

impl Findings {
    fn verdict(mut self, expectations: &Expectations) -> io::Result<Verdict> {
        if let Some(error) = self.failure {
            return Err(error);
        }
        let whole = self.opening.as_ref().is_some_and(|opening| opening.first == Sequence(0));
        if let Some((line, code, id)) = self.ids.judge(whole)?
            && self.fault.as_ref().is_none_or(|(earliest, _)| line < *earliest)
        {
            let pointer = if code == Code::Dependency { "/dependencies" } else { "/entry_id" };
            self.fault = Some((line, Fault::new(code).at(pointer).because(id)));
        }
        let first = self.opening.as_ref().map(|opening| opening.first.0);
        let expected = expectations.after.map(|head| head.next.0);
        let fault = match (self.fault, self.end) {
            (Some((line, fault)), _) => Some(Fault {
                sequence_number: expected.or(first).map(|first| first + line).or(fault.sequence_number),
                line: Some(line + 1),
                ..fault
            }),
            (None, None) => Some(Fault::new(Code::Empty)),
            (None, Some(_)) => None,
        };
        let count = match &fault {
            Some(fault) => fault.line.map_or(0, |line| line - 1),
            None => self.end.map_or(0, |(count, _)| count),
        };
        let head = self.end.filter(|_| fault.is_none()).map(|(_, head)| head.hash.to_hex());
        // What an unfinished commit holds is signed by a checkpoint that nobody could compute.
        let unsigned = self.open.filter(|open| *open < count).zip(first);
        let mut verdict = Verdict {
            ok: fault.is_none(),
            origin: self.opening.and_then(|opening| opening.origin),
            first,
            count,
            checkpoint: None,
            last: first.filter(|_| count > 0).map(|first| first + count - 1),
            head_hash: head,
            not_checked: Vec::new(),
            fault,
            ..Verdict::unseen(&expectations.keys)
        };
        describe(&mut verdict, expectations);
        if let (Some((open, first)), Some(last)) = (unsigned, verdict.last) {
            verdict.not_checked.push(format!(
                "the signature over entries {} to {last}: the fault comes before the end of their commit",
                first + open
            ));
        }
        Ok(verdict)
    }
}

fn key_change(entry: &EntryView<'_>, keys: &Keyring) -> Option<KeyChange> {
    match entry.action_type {
        _ if !entry.is_daemons() => None,
        keyring::ROTATE => Some(KeyChange::Rotates),
        keyring::REVOKE => keys.revoked_by(entry).map(|(revoked, end)| KeyChange::Revokes(revoked, end)),
        _ => None,
    }
}

/// Says who signed what, where that is more than one key.
fn describe_keys(verdict: &mut Verdict, keys: &Keyring) {
    let (mut before, mut after) = (None, None);
    for term in keys.terms() {
        let Term { key, first, last, revoked } = term;
        if let Some(before) = before {
            verdict.checked.push(format!(
                "key {} was named by the key before it, {before}, in entry {}, and proved itself for it",
                key.id(),
                first.0 - 1
            ));
        }
        before = Some(key.id());
        if let (Some(Revocation { at, trusted, .. }), Some(last)) = (revoked, last) {
            let (id, size) = (key.id(), trusted.size);
            if size.leaves() > last.0 {
                verdict
                    .checked
                    .push(format!("entry {at} revokes key {id}, and leaves trusted all that it signed"));
            } else {
                verdict.not_checked.push(format!(
                    "who signed entries {size} to {last}: entry {at} says that their key, {id}, is trusted up to its \
                     checkpoint of {size} entries, and only checkpoints of later keys speak for them"
                ));
                verdict.not_checked.push(format!(
                    "whether the key after {id} is the ledger's: entry {last}, which names it, is one of these, so compare \
                     that key, or a later checkpoint, with what you know from elsewhere"
                ));
            }
            if verdict.first.is_some_and(|begin| begin > last.0) {
                verdict.not_checked.push(format!(
                    "that the checkpoint of {size} entries which entry {at} names is of this tree"
                ));
            }
        }
        after = Some(first);
    }
    if let (true, Some(first)) = (keys.is_waiting(), after) {
        verdict.not_checked.push(format!("that the newest key signs: its first entry would be {first}"));
    }
}

/// Says in plain words what the entries that hold were held against, and what they were not.
fn describe(verdict: &mut Verdict, expectations: &Expectations) {
    let whole = verdict.first == Some(0);
    let checked = &mut verdict.checked;
    if let (Some(first), Some(last)) = (verdict.first, verdict.last) {
        checked.push(format!(
            "entries {first} to {last}: each is the canonical form of an entry of schema 1.0.0, with the hashes \
             that its bytes have"
        ));
        checked.push(
            "each is signed by the key in force at it, by itself or by the checkpoint with which its commit ended"
                .into(),
        );
        checked.push(
            "each has the next sequence number, names the hash of the one before, and is not earlier than it"
                .into(),
        );
        if whole || expectations.before.is_some() {
            checked.push(
                "each was judged again by the rules in force at it: caller, scores, safety floor, proofs, approvals \
                 and quorum"
                    .into(),
            );
        }
        // Ids are judged up to the fault too, so this holds for the entries before it.
        checked.push(if whole {
            "no entry id occurs twice, and dependencies name earlier entries".into()
        } else {
            "no entry id occurs twice in this range".into()
        });
    }
    if let (true, Some(origin)) = (whole, &verdict.origin) {
        checked.push(format!("entry 0 is the genesis of {origin} and names the trusted key"));
        if expectations.origin.is_some() {
            checked.push("the origin is the expected one".into());
        }
        if expectations.genesis.is_some() {
            checked.push("the genesis is the expected one".into());
        }
    }
    if let (Some(head), Some(first)) = (expectations.after, verdict.first)
        && first > 0
    {
        checked.push(format!("entry {first} follows the known head {}", head.hash));
    }

    let not_checked = &mut verdict.not_checked;
    if let (false, Some(first)) = (whole, verdict.first) {
        if expectations.before.is_none() {
            not_checked.push(
                "the genesis, and with it the origin and the rules by which entries are judged: this is a part \
                 of a ledger"
                    .into(),
            );
        }
        if expectations.after.is_none() {
            not_checked.push(format!("that entry {first} follows what came before it"));
        }
        not_checked.push("ids and dependencies that lie outside this range".into());
        if expectations.before.is_some() {
            not_checked.push(
                "that proposals had not ended before this range, and that the boot shown is the last before it".into(),
            );
        }
    }
    if verdict.fault.as_ref().is_some_and(|fault| fault.line.is_some()) {
        not_checked.push("anything from the first fault on".into());
    }
    not_checked.push(
        match &expectations.known {
            None => {
                "completeness and uniqueness: without a checkpoint known from elsewhere, entries may be missing \
                 at the end, and another ledger with the same beginning may exist"
            }
            Some(_) => {
                "completeness and uniqueness after the known checkpoint: entries may be missing at the end, and \
                 another ledger that extends that checkpoint too may exist"
            }
        }
        .into(),
    );
    if expectations.origin.is_none() {
        not_checked.push("whether this is the ledger that you mean: no origin was given to expect".into());
    }
    if expectations.genesis.is_none() {
        not_checked.push("whether the ledger was made anew: no genesis hash was given to expect".into());
    }
    not_checked.push("whether a key was revoked in an entry that is not among these".into());
    not_checked.push(
        "that the keys exist in their tokens only: genesis and rotations say what the tokens said of it, which a \
         verifier cannot see"
            .into(),
    );
    not_checked.push("whether what was recorded is true, and whether everything was recorded".into());
}
