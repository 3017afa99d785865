//! VIOLATION entries: what the daemon writes of an attempt, and whether the reason holds.

use super::{Governor, Refused, exactly, string};
use crate::governance::Refusal;
use crate::governance::approval::ProposalId;
use crate::governance::caller::Peer;
use crate::governance::invariant::Breach;
use crate::governance::rules::Object;
use crate::ledger::code::Code;
use crate::ledger::draft::Draft;
use crate::ledger::entry::{EntryId, EntryView, ExecutionStatus};
use crate::ledger::hash::Digest;
use crate::ledger::json;

/// An attempt that broke an invariant, for the VIOLATION entry of the daemon.
#[derive(Debug, Clone)]
pub struct Attempt<'a> {
    /// The offender's canonical `peer`.
    pub peer_json: &'a str,
    /// Whom it claimed to be.
    pub claimed_actor_id: Option<&'a str>,
    /// The id that it gave.
    pub entry_id: Option<EntryId>,
    /// What it asked for.
    pub draft: &'a Draft,
    /// The proposal, where it tried to seal one.
    pub proposal_id: Option<ProposalId>,
    /// How many attempts the entry stands for.
    pub count: u64,
    /// Whether the attempt itself stands in the entry, or its hash alone.
    pub whole: bool,
}

impl Attempt<'_> {
    /// `action_payload` of the `system_violation` entry; `error_details` is
    /// [`Breach::error_details`].
    #[must_use]
    pub fn to_payload(&self) -> String {
        let attempt = self.draft.to_canonical();
        let mut out = Object::new();
        out.raw("attempt", if self.whole { &attempt } else { "null" });
        out.text("attempt_hash", &Digest::of(attempt.as_bytes()).to_hex());
        let or_null = |out: &mut Object, name: &str, value: Option<String>| match value {
            Some(value) => out.text(name, &value),
            None => out.raw(name, "null"),
        };
        or_null(&mut out, "attempted_entry_id", self.entry_id.map(|id| id.to_string()));
        or_null(&mut out, "claimed_actor_id", self.claimed_actor_id.map(str::to_owned));
        out.raw("count", &self.count.to_string());
        out.raw("peer", self.peer_json);
        or_null(&mut out, "proposal_id", self.proposal_id.map(|id| id.to_string()));
        out.into_text()
    }
}

impl Governor {
    /// Checks the reason of a VIOLATION entry: where the attempt stands in it, by judging it again.
    pub(super) fn check_violation(&self, entry: &EntryView<'_>) -> Result<(), Refusal> {
        let wrong = |pointer: &str, detail: &str| {
            Err(Refusal::new(Code::ViolationReason).at(pointer.to_owned()).because(detail))
        };
        if entry.execution_status != ExecutionStatus::Blocked {
            return wrong("/execution_status", "a violation is BLOCKED");
        }
        let Some(breach) = Breach::all().find(|breach| breach.error_details() == entry.error_details) else {
            return wrong("/error_details", "is not one of the eight reasons that there are");
        };
        let names = [
            "attempt",
            "attempt_hash",
            "attempted_entry_id",
            "claimed_actor_id",
            "count",
            "peer",
            "proposal_id",
        ];
        let Some([attempt, hash, entry_id, claimed, count, peer, proposal]) =
            exactly(entry.action_payload, names)
        else {
            return wrong("/action_payload", &format!("must be exactly {}", names.join(", ")));
        };
        if count.parse::<u64>().map_or(true, |count| count == 0) {
            return wrong("/action_payload/count", "must be how many attempts there were");
        }
        let peer = Peer::parse(peer).map_err(|refusal| refusal.below("/action_payload/peer"))?;
        // Whoever is no caller is refused without an entry.
        self.standing.admit(&peer, None, "/action_payload/peer")?;
        if Digest::from_hex(json::unquote(hash.as_bytes()).as_bytes()).is_none() {
            return wrong("/action_payload/attempt_hash", "must be a SHA-256");
        }
        if proposal != "null" && string(proposal).and_then(|text| EntryId::parse(&text)).is_none() {
            return wrong("/action_payload/proposal_id", "must be the id of a proposal, or null");
        }
        if attempt == "null" {
            return Ok(());
        }
        if json::unquote(hash.as_bytes()) != Digest::of(attempt.as_bytes()).to_hex() {
            return wrong("/action_payload/attempt_hash", "is not the hash of the attempt");
        }
        // A seal is judged by a proposal that is gone when the entry is read.
        if proposal != "null" {
            return Ok(());
        }
        let draft = match Draft::from_canonical(attempt) {
            Ok(draft) => draft,
            Err(fault) => return wrong("/action_payload/attempt", &fault.to_string()),
        };
        if draft.actor_id != string(claimed) || draft.entry_id.map(|id| id.to_string()) != string(entry_id) {
            return wrong("/action_payload", "the ids are not those of the attempt");
        }
        let id = draft.entry_id.unwrap_or(EntryId([0; 16]));
        match self.standing.attempt(&draft, &peer, id, entry.timestamp) {
            Err(Refused::Violation(violation)) if violation.breach == breach => Ok(()),
            Err(Refused::Violation(violation)) => {
                wrong("/error_details", &format!("the attempt breaks something else: {violation}"))
            }
            Err(Refused::Plain(refusal)) => wrong(
                "/action_payload/attempt",
                &format!("it would have been refused without an entry: {refusal}"),
            ),
            Ok(_) => wrong("/action_payload/attempt", "it breaks nothing"),
        }
    }
}
