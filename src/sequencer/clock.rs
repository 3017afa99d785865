//! The time that entries get, and whether it may be believed.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use crate::failpoint;
use crate::ledger::timestamp::Timestamp;

/// How far the wall clock may run ahead of the boot clock before an operator must look.
const CLOCK_JUMP: Duration = Duration::from_secs(3_600);

/// The wall clock, held against the boot clock, which nobody sets.
#[derive(Debug)]
pub struct Clock {
    /// Wall clock less boot clock, in nanoseconds, at the start or when an operator looked last.
    offset: AtomicI64,
}

/// By how much the wall clock jumped forward, more than [`CLOCK_JUMP`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Jump {
    /// How far, in microseconds.
    pub micros: i64,
    /// What the wall clock says.
    pub clock: Timestamp,
    offset: i64,
}

impl Default for Clock {
    fn default() -> Self {
        Clock { offset: AtomicI64::new(present_offset()) }
    }
}

impl Clock {
    /// The time, or none when the wall clock has jumped.
    pub(super) fn now(&self) -> Option<Timestamp> {
        if self.jumped().is_some() { None } else { Some(now()) }
    }

    /// Whether the wall clock has jumped, and how far. When it is set back that is over.
    #[must_use]
    pub fn jumped(&self) -> Option<Jump> {
        let offset = present_offset();
        let ahead = offset.saturating_sub(self.offset.load(Ordering::Acquire));
        let has_jumped = i128::from(ahead) > CLOCK_JUMP.as_nanos() as i128;
        has_jumped.then(|| Jump { micros: ahead / 1_000, clock: now(), offset })
    }

    /// Takes the wall clock to be right after `jump`, and no further.
    pub fn accept(&self, jump: Jump) {
        self.offset.store(jump.offset, Ordering::Release);
    }
}

fn present_offset() -> i64 {
    // Nanoseconds in 64 bits reach into the year 2262; what is beyond is a jump.
    i64::try_from(wall_nanos() - boot_nanos()).unwrap_or(i64::MAX)
}

fn wall_nanos() -> i128 {
    nanos(nix::time::ClockId::CLOCK_REALTIME) + failpoint::clock_set_nanos()
}

fn boot_nanos() -> i128 {
    nanos(nix::time::ClockId::CLOCK_BOOTTIME)
}

fn nanos(clock: nix::time::ClockId) -> i128 {
    // Both clocks exist on every Linux that has pidfds; a clock that can't be read stands still.
    nix::time::clock_gettime(clock)
        .map_or(0, |time| i128::from(time.tv_sec()) * 1_000_000_000 + i128::from(time.tv_nsec()))
}

/// The present time as the ledger writes it.
#[must_use]
pub fn now() -> Timestamp {
    Timestamp::from_micros(i64::try_from(wall_nanos() / 1_000).unwrap_or(i64::MAX))
}
