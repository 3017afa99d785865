//! Tells the service manager that the daemon works, after it was seen to work: the token signed, and
//! the ledger was read. A token or a disk that hangs so ends the daemon, by the watchdog of systemd.
//!
//! A token that *answers* with an error is no reason to end: the sequencer sees to that.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio::time::MissedTickBehavior;

use super::notify::Notifier;
use crate::ledger::entry::Sequence;
use crate::ledger::key::Signable;
use crate::sequencer::Sequencer;
use crate::store::{Reader, StoreError};
use crate::token::{Keeper, Pool, SignError};

/// Looks so many times, while a signature is waited for, whether others were made meanwhile.
const LOOKS: u32 = 8;

/// What is looked at.
pub(super) struct Watchdog {
    pub(super) notifier: Arc<Notifier>,
    pub(super) origin: String,
    pub(super) token: Arc<Keeper>,
    pub(super) sequencer: Arc<Sequencer>,
}

impl Watchdog {
    /// Looks twice in each `limit`, for as long as this is polled.
    pub(super) async fn run(self, mut reader: Reader, limit: Duration) {
        let period = limit / 2;
        let mut beat = tokio::time::interval(period);
        // A look that took long is no reason to look twice at once.
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut signed = self.signed();
        loop {
            beat.tick().await;
            let token = match self.token.pool() {
                Some(pool) => self.token_signs(&pool, signed, period).await,
                // It is being brought back, and no call of that hangs.
                None if self.token.longest_call().is_none_or(|elapsed| elapsed < period) => Ok(()),
                None => {
                    self.notifier.status("the token does not answer");
                    continue;
                }
            };
            signed = self.signed();
            // On a thread that may block: where it never comes back, nor do we.
            let read = tokio::task::spawn_blocking(move || {
                let read = last_entry(&reader);
                (reader, read)
            });
            let store;
            (reader, store) = match read.await {
                Ok(looked) => looked,
                Err(error) => return tracing::error!(%error, "the watchdog ends"),
            };
            match (token, store) {
                (Ok(()), Ok(())) => self.notifier.alive(&self.status()),
                (Err(error), Ok(())) => {
                    tracing::warn!(%error, "the token could not sign a probe");
                    self.notifier.alive(&format!("the token does not sign: {error}"));
                    self.sequencer.probe_failed(error);
                }
                (_, Err(error)) => {
                    tracing::error!(%error, "the ledger can't be read");
                    self.notifier.status(&format!("the ledger can't be read: {error}"));
                }
            }
        }
    }

    fn signed(&self) -> Option<u64> {
        self.token.pool().map(|pool| pool.signed())
    }

    fn status(&self) -> String {
        if let Some(why) = self.sequencer.gauges().token_away() {
            return format!("the token is away: {why}");
        }
        taking_entries(self.sequencer.gauges().committed.load(Ordering::Relaxed))
    }

    /// Whether the token has signed since it had made `before` signatures; if not, it is made to. Does
    /// not come back while the token is silent.
    async fn token_signs(&self, pool: &Pool, before: Option<u64>, period: Duration) -> Result<(), SignError> {
        if Some(pool.signed()) != before {
            return Ok(());
        }
        let (report, mut answer) = oneshot::channel();
        let nonce = uuid::Uuid::new_v4().simple().to_string();
        let probe = Signable::purpose("health", &self.origin, &nonce);
        let done = move |signed: Result<_, SignError>| {
            // Nobody listens any more when entries were signed first.
            let _ = report.send(signed.map(drop));
        };
        pool.sign(vec![probe], Box::new(done));
        let asked = Instant::now();
        let mut told = false;
        loop {
            match tokio::time::timeout(period / LOOKS, &mut answer).await {
                Ok(answer) => return answer.unwrap_or(Err(SignError::Panicked)),
                // The probe stands behind entries of which a slow token has many minutes.
                Err(_) if Some(pool.signed()) != before => return Ok(()),
                Err(_) if told || asked.elapsed() < period => {}
                Err(_) => {
                    told = true;
                    tracing::error!(seconds = asked.elapsed().as_secs(), "the token does not answer");
                    self.notifier.status("the token does not answer");
                }
            }
        }
    }
}

/// What `systemctl status` says of a daemon that works.
pub(super) fn taking_entries(count: u64) -> String {
    format!("taking entries; {count} in the ledger")
}

fn last_entry(reader: &Reader) -> Result<(), StoreError> {
    let last = reader.count()?.saturating_sub(1);
    match reader.line(Sequence(last))? {
        Some(_) => Ok(()),
        None => Err(StoreError::Damaged(format!("entry {last} is missing"))),
    }
}
