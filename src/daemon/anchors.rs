//! The anchors that the configuration names: checked at the start, kept up while the daemon runs,
//! and made anew on an operator's word.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::genesis::Genesis;
use super::init::seal;
use super::opening::{Absent, Opened, open};
use super::{Fault, check_reason, governing, host};
use crate::anchor::{self, Anchor, AnchorError, Contradiction, Gauge, Ledger, Standing, UpdateError};
use crate::config::Config;
use crate::governance::Policy;
use crate::ledger::checkpoint::{Checkpoint, Note};
use crate::ledger::draft::Draft;
use crate::ledger::entry::{EventCategory, EventType};
use crate::ledger::json::quoted;
use crate::sequencer::{Sequencer, fresh_id, now};
use crate::store::{Reader, Reservation, Reserved};
use crate::token::Keeper;

/// The `action_type` of the entry that says that an anchor was made anew.
pub const ACTION_TYPE: &str = "ledger.anchor";
/// How long until an anchor that could not be written is tried again, at most.
const RETRY: Duration = Duration::from_secs(60);

/// The anchors that can be looked at before the token is.
pub(super) fn off_token(config: &Config) -> Vec<Anchor> {
    let file = &config.anchor.file;
    if file.as_os_str().is_empty() { Vec::new() } else { vec![Anchor::File(file.clone())] }
}

/// The anchors on the token.
pub(super) fn on_token(config: &Config, token: &Arc<Keeper>) -> Vec<Anchor> {
    if config.anchor.token { vec![Anchor::on_token(token.clone(), &config.origin)] } else { Vec::new() }
}

/// An anchor that does not contradict the ledger, and the entries that it knows of; none where it is
/// not there.
pub(super) struct Checked {
    pub(super) anchor: Anchor,
    pub(super) entries: Option<u64>,
}

/// Refuses a ledger that one of `anchors` contradicts.
pub(super) fn check(anchors: Vec<Anchor>, ledger: Ledger<'_>) -> Result<Vec<Checked>, Fault> {
    let check = |anchor: Anchor| match anchor::judge(&anchor, ledger)?.0 {
        Standing::Agrees { entries, lag } => {
            tracing::info!("{anchor} agrees with the ledger, {lag} entries behind it");
            Ok(Checked { anchor, entries: Some(entries) })
        }
        Standing::Missing => Ok(Checked { anchor, entries: None }),
        standing => Err(Fault::Anchor(Contradiction { anchor, standing })),
    };
    anchors.into_iter().map(check).collect()
}

/// An anchor that is kept up.
struct Kept {
    anchor: Anchor,
    interval: Duration,
    /// When it is written again, if there is something new.
    due: Instant,
    failing: bool,
}

/// Keeps `anchors` up until `stopped` says that there is nothing more to come, and brings them all
/// up to date once more then. `gauges` are theirs, in the same order.
///
/// # Errors
/// When the daemon must stop, which the sequencer was told then.
pub(super) fn keep(
    config: &Config,
    anchors: Vec<Anchor>,
    gauges: &[Gauge],
    genesis: &Genesis,
    sequencer: &Sequencer,
    stopped: &mpsc::Receiver<()>,
) -> Result<(), Contradiction> {
    let started = Instant::now();
    let kept = |anchor: Anchor| {
        let interval = Duration::from_secs(match anchor {
            Anchor::File(_) => config.anchor.file_interval_seconds,
            Anchor::Token { .. } => config.anchor.token_interval_seconds,
        });
        // Not at once: a daemon that starts again and again would wear the token out.
        Kept { anchor, interval, due: started + interval, failing: false }
    };
    let mut anchors: Vec<Kept> = anchors.into_iter().map(kept).collect();
    let Some(tick) = anchors.iter().map(|kept| kept.interval / 4).min() else { return Ok(()) };
    let notes = sequencer.notes();
    let reader = match Reader::open(&config.ledger.path) {
        Ok(reader) => reader,
        Err(error) => {
            sequencer.fail(format!("the anchors can't be kept up: {error}"));
            return Ok(());
        }
    };
    let mut last = false;
    while !last {
        last = stopped.recv_timeout(tick) == Err(RecvTimeoutError::Disconnected);
        let Some(note) = notes.borrow().clone() else { continue };
        let entries = note.checkpoint().root().size.leaves();
        let keys = sequencer.gauges().governor().standing().keys.clone();
        let ledger = Ledger { origin: &genesis.origin, keys: &keys, reader: &reader };
        for (kept, gauge) in anchors.iter_mut().zip(gauges) {
            let known = gauge.entries.load(Ordering::Relaxed);
            if known >= entries || (!last && Instant::now() < kept.due) {
                continue;
            }
            match anchor::update(&kept.anchor, &note, ledger) {
                Ok(()) => {
                    tracing::debug!(entries, "{} is up to date", kept.anchor);
                    if std::mem::take(&mut kept.failing) {
                        tracing::info!(entries, "{} is up to date again", kept.anchor);
                    }
                    gauge.entries.store(entries, Ordering::Relaxed);
                    kept.due = Instant::now() + kept.interval;
                }
                Err(UpdateError::Contradicted(contradiction)) => {
                    sequencer.fail(contradiction.to_string());
                    return Err(contradiction);
                }
                Err(error) => {
                    if !std::mem::replace(&mut kept.failing, true) {
                        tracing::warn!(%error, lag = entries - known, "couldn't bring {} up to date; trying again", kept.anchor);
                    }
                    kept.due = Instant::now() + kept.interval.min(RETRY);
                }
            }
        }
    }
    Ok(())
}

/// Makes the anchors that are missing, where all others and the ledger itself agree, and has the
/// ledger say so. The daemon must not be running.
///
/// # Errors
/// When nothing is missing, or an anchor contradicts the ledger, or the ledger can't be opened or
/// the key can't be used.
pub fn reset(config: &Config, reason: &str) -> Result<Vec<Anchor>, Fault> {
    check_reason(reason)?;
    if config.anchor.file.as_os_str().is_empty() && !config.anchor.token {
        return Err(Fault::NoAnchor);
    }
    let opened = open(config, Absent::Given, &|_| {})?;
    let Opened {
        mut store,
        reader,
        index,
        genesis,
        keys,
        mut edge,
        pool,
        token: _token,
        anchors,
        algorithm,
        ..
    } = opened;
    if keys.is_waiting() {
        return Err(Fault::NotActivated);
    }
    let key = keys.newest().unwrap_or(&genesis.key).id();
    let (there, missing): (Vec<Checked>, Vec<Checked>) =
        anchors.into_iter().partition(|checked| checked.entries.is_some());
    let missing: Vec<Anchor> = missing.into_iter().map(|checked| checked.anchor).collect();
    if missing.is_empty() {
        return Err(Fault::NothingMissing);
    }
    let limit = usize::try_from(config.limits.entry_bytes).unwrap_or(usize::MAX);
    let policy = Policy::new(&host(config), limit);
    let mut head = reader.head()?;
    let governor = governing::governor_at(&reader, &index, head.next)?;
    let label = governor.standing().rules.label();
    let (first, before) = (head.next, edge.root());
    let mut extend = |anchor: &Anchor| {
        let payload = format!(
            r#"{{"anchor":"{}","reason":{},"root":"{}","size":{}}}"#,
            anchor.kind(),
            quoted(reason),
            before.hash,
            before.size,
        );
        let draft = Draft::own(EventType::Change, EventCategory::Normal, ACTION_TYPE, payload);
        let admitted = policy.own_under(label, draft, fresh_id());
        let entry = head.extend(admitted.view(), now(), algorithm, key);
        Reserved { entry, idempotency: None }
    };
    let entries: Vec<Reserved> = missing.iter().map(&mut extend).collect();
    let stopped = |what: &dyn std::fmt::Display| Fault::Stopped(what.to_string());
    let tiles =
        edge.extend(entries.iter().map(|reserved| reserved.entry.hash())).map_err(|full| stopped(&full))?;
    let checkpoint = Checkpoint::new(&genesis.origin, edge.root()).map_err(|fault| stopped(&fault))?;
    let reservation = Reservation { first, key, algorithm, entries, tiles, checkpoint: Some(checkpoint) };
    let note = seal(&mut store, reservation, &pool)?;
    for anchor in &missing {
        anchor.write(&note)?;
    }
    let ledger = Ledger { origin: &genesis.origin, keys: &keys, reader: &reader };
    for Checked { anchor, .. } in &there {
        match anchor::update(anchor, &note, ledger) {
            Ok(()) => {}
            Err(UpdateError::Contradicted(contradiction)) => return Err(Fault::Anchor(contradiction)),
            Err(UpdateError::Anchor(error)) => return Err(error.into()),
            Err(UpdateError::Ledger(error)) => return Err(error.into()),
        }
    }
    Ok(missing)
}

/// The anchors of a ledger in the making. They are taken away again unless it is made.
pub(super) struct Planted(Vec<Anchor>);

impl Planted {
    /// Refuses where there is one already: a ledger of this name was made before.
    pub(super) fn none_yet(anchors: &[Anchor]) -> Result<Self, Fault> {
        for anchor in anchors {
            match anchor.read() {
                Ok(None) => {}
                Ok(Some(_)) | Err(AnchorError::Malformed(_)) => {
                    return Err(Fault::AnchorTaken(anchor.clone()));
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Planted(Vec::new()))
    }

    pub(super) fn plant(&mut self, anchor: Anchor, note: &Note) -> Result<(), Fault> {
        let written = anchor.write(note);
        // Also when it failed: the file may be there all the same.
        self.0.push(anchor);
        Ok(written?)
    }

    /// The ledger is made.
    pub(super) fn stay(mut self) {
        self.0.clear();
    }
}

impl Drop for Planted {
    fn drop(&mut self) {
        for anchor in &self.0 {
            // One that can't be taken away makes the next `init` say so.
            let _ = anchor.remove();
        }
    }
}
