//! The published tree, kept while the daemon runs.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use super::genesis::Genesis;
use crate::config::Config;
use crate::ledger::code::Code;
use crate::ledger::merkle::TreeSize;
use crate::publish::{Published, Publisher, Trust};
use crate::sequencer::Sequencer;
use crate::server::tree;
use crate::store::Reader;
use crate::{config, publish};

/// How long a stop may wait for the last publication, of which there is little to do.
const LAST_PUBLICATION: Duration = Duration::from_secs(5);

/// Publishes for as long as what it returns first is kept.
pub(super) fn publishing(
    config: &Config,
    genesis: &Genesis,
    sequencer: &Arc<Sequencer>,
) -> (mpsc::Sender<()>, tokio::task::JoinHandle<()>) {
    let (sender, stopped) = mpsc::channel();
    let (ledger, settings) = (config.ledger.path.clone(), config.publish.clone());
    let (origin, sequencer) = (genesis.origin.clone(), sequencer.clone());
    let task = tokio::task::spawn_blocking(move || {
        if settings.directory.as_os_str().is_empty() {
            return;
        }
        publish_continuously(&ledger, &settings, &origin, &sequencer, &stopped);
    });
    (sender, task)
}

/// Publishes what is new at each interval and once more at the end. What fails is logged when it
/// begins to fail and tried again; the ledger does not depend on it.
fn publish_continuously(
    ledger: &Path,
    settings: &config::Publish,
    origin: &str,
    sequencer: &Sequencer,
    stopped: &mpsc::Receiver<()>,
) {
    let directory = settings.directory.display();
    let mut publisher = Publisher::new(&settings.directory);
    let mut failing = None;
    let (mut reader, mut done) = (None, None);
    let mut last = false;
    while !last {
        last = stopped.recv_timeout(Duration::from_secs(settings.interval_seconds))
            == Err(mpsc::RecvTimeoutError::Disconnected);
        // A stop does not wait long: what is left over is published after the next start.
        let until = last.then(|| Instant::now() + LAST_PUBLICATION);
        let stopping = || match until {
            Some(until) => Instant::now() > until,
            None => sequencer.gauges().stopping.load(Ordering::Acquire),
        };
        let keys = sequencer.gauges().governor().standing().keys.keys();
        let trust = Trust { keys: &keys, origin: Some(origin) };
        match publish_once(ledger, &mut reader, &mut publisher, trust, done, &stopping) {
            Ok(published) => {
                if failing.take().is_some() {
                    tracing::info!(%directory, "publishing again");
                }
                if let Some(Published { root, files, .. }) = published {
                    tracing::debug!(entries = root.size.leaves(), files, %directory, "published");
                    done = Some(root.size);
                }
            }
            Err(_) if stopping() => {}
            Err(error) if failing.as_ref() == Some(&error) => {}
            Err(error) => {
                tracing::warn!(%error, %directory, "couldn't publish; trying again");
                failing = Some(error);
            }
        }
    }
}

/// `None` when there is no checkpoint yet, or none but that of the size that is `done`.
fn publish_once(
    ledger: &Path,
    reader: &mut Option<Reader>,
    publisher: &mut Publisher,
    trust: Trust<'_>,
    done: Option<TreeSize>,
    stopping: &dyn Fn() -> bool,
) -> Result<Option<Published>, String> {
    if reader.is_none() {
        *reader = Some(Reader::open(ledger).map_err(|error| error.to_string())?);
    }
    let Some(reader) = reader else { return Ok(None) };
    let newest = reader.newest_note().map_err(|error| error.to_string())?;
    if newest.is_none_or(|note| Some(note.checkpoint().root().size) == done) {
        return Ok(None);
    }
    let fetch = |path: &str, _| {
        if stopping() {
            return Err("the daemon is stopping".to_owned());
        }
        if path == publish::CHECKPOINT {
            let note = reader.newest_note().map_err(|error| error.to_string())?;
            return Ok(note.map(|note| note.as_str().as_bytes().to_vec()));
        }
        match tree::tile_bytes(reader, path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(problem) if problem.code == Code::NotFound => Ok(None),
            Err(problem) => Err(problem.detail),
        }
    };
    publisher.publish(trust, fetch, |_, _| {}).map(Some).map_err(|error| error.to_string())
}
