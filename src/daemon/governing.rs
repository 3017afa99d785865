//! What the daemon does for governance of its own accord: it puts the rules of a file in force, and
//! ends proposals whose time is over.

use std::path::Path;

use super::{Fault, io};
use crate::config::Config;
use crate::governance::Refusal;
use crate::governance::governor::{Governor, Refused};
use crate::governance::rules::{MAX_RULES_BYTES, Rules};
use crate::index::Index;
use crate::ledger::canonical;
use crate::ledger::code::Code;
use crate::ledger::draft::Draft;
use crate::ledger::entry::{EventCategory, EventType, Sequence};
use crate::sequencer::{Event, Outcome, Sequencer, Step, fresh_id, now};
use crate::server::govern;
use crate::store::{Reader, StoreError};

/// The state of governance after the entries before `end`, built from those that change it.
///
/// # Errors
/// When the ledger or its index can't be read, or an entry is not what governance lets be.
pub fn governor_at(reader: &Reader, index: &Index, end: Sequence) -> Result<Governor, Fault> {
    follow(reader, &index.steps(end)?)
}

/// The state of governance after `steps`.
pub(super) fn follow(reader: &Reader, steps: &[Sequence]) -> Result<Governor, Fault> {
    let mut governor = Governor::new();
    for sequence in steps {
        let damaged = |what: String| StoreError::Damaged(format!("entry {sequence} {what}"));
        let line = reader.line(*sequence)?.ok_or_else(|| damaged("is missing".into()))?;
        let decoded = canonical::decode(&line.bytes).map_err(|fault| damaged(fault.to_string()))?;
        governor.follow(&decoded.entry).map_err(|refusal| damaged(refusal.to_string()))?;
    }
    Ok(governor)
}

/// The rules of the configured file; `None` where none is configured.
///
/// # Errors
/// When the file can't be read or does not hold rules.
pub fn read(config: &Config) -> Result<Option<Rules>, Fault> {
    let path = &config.rules.file;
    if path.as_os_str().is_empty() { Ok(None) } else { read_file(path).map(Some) }
}

fn read_file(path: &Path) -> Result<Rules, Fault> {
    use std::io::Read;
    let doing = || io(format!("read the rules {}", path.display()));
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(doing())?;
    // One byte more shows that there is too much.
    file.take(MAX_RULES_BYTES as u64 + 1).read_to_string(&mut text).map_err(doing())?;
    govern::read_rules(&text).map_err(|fault| Fault::Rules { path: path.to_owned(), fault })
}

/// Puts `rules` in force, where they are not yet and the rules in force let the daemon.
///
/// # Errors
/// When the rules can't be in force here, or the entry could not be written.
pub async fn apply(sequencer: &Sequencer, path: &Path, rules: Rules) -> Result<(), Fault> {
    let governor = sequencer.gauges().governor();
    let hash = rules.hash().to_hex();
    if governor.standing().rules.label() == hash {
        return Ok(());
    }
    match write(sequencer, govern::set(Some(rules), None)).await? {
        Ok(()) => {
            tracing::info!(%hash, "the rules of the file are in force");
            Ok(())
        }
        Err(Refused::Plain(refusal)) if refusal.code == Code::QuorumInvariant => {
            tracing::warn!(
                file = %path.display(),
                "the file holds other rules than those in force, which ask for approvals: propose them; \
                 the rules in force stay"
            );
            Ok(())
        }
        Err(refused) => {
            let Refusal { code, pointer, detail } = refused.into();
            let fault = crate::governance::rules::Fault { code, line: None, pointer, detail };
            Err(Fault::Rules { path: path.to_owned(), fault })
        }
    }
}

/// Ends the proposals whose time is over.
pub async fn expire(sequencer: &Sequencer) {
    let governor = sequencer.gauges().governor();
    for id in governor.expired(now()) {
        let expiring: Step = Box::new(move |governor, policy, now| {
            // Sealed, or ended otherwise, at the last moment.
            if !governor.proposal(id)?.is_over(now) {
                return Err(Refusal::new(Code::ProposalExpiry).into());
            }
            let payload = Governor::expire(id);
            let draft = Draft::own(EventType::Decision, EventCategory::Normal, "proposal.expire", payload);
            Ok(policy.own_under(governor.standing().rules.label(), draft, fresh_id()))
        });
        match write(sequencer, expiring).await {
            Ok(Ok(())) => tracing::info!(proposal = %id, "expired"),
            Ok(Err(refused)) => tracing::debug!(proposal = %id, %refused, "not expired"),
            Err(fault) => tracing::warn!(proposal = %id, %fault, "couldn't expire; trying again"),
        }
    }
}

async fn write(sequencer: &Sequencer, step: Step) -> Result<Result<(), Refused>, Fault> {
    match sequencer.perform(Event::Step(step)).await {
        Ok(Outcome::Committed { .. }) => Ok(Ok(())),
        Ok(Outcome::Governed(governed)) => Ok(Err(governed.refused)),
        other => Err(Fault::Stopped(sequencer.gauges().fault().unwrap_or_else(|| format!("{other:?}")))),
    }
}
