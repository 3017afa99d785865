//! What a part of a ledger needs from before it: the entries by which an auditor judges what is in it.
//!
//! These are the genesis, every entry that changed rules, keys or the way of signing, with the proposal
//! and the approvals that it was sealed by, the boots under which those were judged, the last boot, and all
//! that was written of the proposals that are still open where the part begins. What has ended
//! otherwise is left out: without its opening nothing can be sealed by it.

use std::collections::{BTreeMap, BTreeSet};

use super::lines;
use crate::audit::may_concern;
use crate::governance::approval::ProposalId;
use crate::governance::governor::Governor;
use crate::ledger::canonical;
use crate::ledger::entry::{EntryId, EntryView, Sequence};
use crate::ledger::json;
use crate::store::{Reader, StoreError};

/// The lines of a context have no more bytes: the exporter and the verifier hold them in memory, several
/// times over. A thousand open proposals of usual size take an eighth of it.
pub(crate) const MAX_BYTES: usize = 16 << 20;

/// The context is larger than [`MAX_BYTES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooLarge;

/// The entries from `start` on and before `end` that can change the state of governance, found without
/// an index.
pub(crate) fn scan(reader: &Reader, start: Sequence, end: Sequence) -> Result<Vec<Sequence>, StoreError> {
    let mut steps = Vec::new();
    for line in lines(reader, start, end) {
        let line = line.map_err(StoreError::from)?;
        if may_concern(&line)
            && let Ok(decoded) = canonical::decode(&line)
            && Governor::changes(&decoded.entry)
        {
            steps.push(decoded.entry.sequence_number);
        }
    }
    Ok(steps)
}

/// The lines that a range needs which begins after `steps`, which are all that [`Governor::changes`]
/// before it, in order.
pub(crate) fn needed(
    reader: &Reader,
    steps: &[Sequence],
) -> Result<Result<Vec<(Sequence, String)>, TooLarge>, StoreError> {
    let mut choice = Choice::default();
    for sequence in steps {
        let line = text_of(reader, *sequence)?;
        match canonical::decode(line.as_bytes()) {
            Ok(decoded) => choice.see(&decoded.entry, *sequence),
            // It is for the auditor to find out.
            Err(_) => drop(choice.kept.insert(*sequence)),
        }
    }
    let (mut needed, mut bytes) = (Vec::new(), 0);
    for sequence in choice.finish() {
        let line = text_of(reader, sequence)?;
        bytes += line.len();
        if bytes > MAX_BYTES {
            return Ok(Err(TooLarge));
        }
        needed.push((sequence, line));
    }
    Ok(Ok(needed))
}

pub(super) fn text_of(reader: &Reader, sequence: Sequence) -> Result<String, StoreError> {
    let damaged = |what: &str| StoreError::Damaged(format!("entry {sequence} {what}"));
    let line = reader.line(sequence)?.ok_or_else(|| damaged("is missing"))?;
    String::from_utf8(line.bytes).map_err(|_| damaged("is not UTF-8"))
}

#[derive(Default)]
struct Choice {
    governor: Governor,
    /// Something was refused: from there on all is kept, so that the auditor finds it, too.
    lost: bool,
    kept: BTreeSet<Sequence>,
    last_boot: Option<Sequence>,
    /// What was written of each open proposal, after the boot under which it was opened.
    lives: BTreeMap<ProposalId, Vec<Sequence>>,
}

impl Choice {
    fn see(&mut self, entry: &EntryView<'_>, sequence: Sequence) {
        self.lost |= self.governor.follow(entry).is_err();
        if self.lost {
            self.kept.insert(sequence);
            return;
        }
        let of_proposal = || proposal_of(entry.action_payload);
        match entry.action_type {
            _ if !entry.is_daemons() => {}
            "system_initialization" => self.last_boot = Some(sequence),
            "proposal.open" => {
                if let Some(id) = of_proposal() {
                    self.lives.insert(id, self.last_boot.into_iter().chain([sequence]).collect());
                }
            }
            action if action.starts_with("approval.") => {
                if let Some(life) = of_proposal().and_then(|id| self.lives.get_mut(&id)) {
                    life.push(sequence);
                }
            }
            action if action.starts_with("proposal.") => {}
            // Rules, keys, the way of signing, and the genesis.
            _ => {
                self.kept.extend(self.last_boot.into_iter().chain([sequence]));
                self.kept.extend(of_proposal().and_then(|id| self.lives.remove(&id)).into_iter().flatten());
            }
        }
        let governor = &self.governor;
        self.lives.retain(|id, _| governor.ending(*id).is_none());
    }

    fn finish(mut self) -> BTreeSet<Sequence> {
        self.kept.extend(self.last_boot);
        self.kept.extend(self.lives.into_values().flatten());
        self.kept
    }
}

/// The proposal that a payload is about.
fn proposal_of(payload: &str) -> Option<ProposalId> {
    let id = json::member(payload, "proposal_id").filter(|id| id.starts_with('"'))?;
    EntryId::parse(&json::unquote(id.as_bytes())).map(ProposalId)
}
