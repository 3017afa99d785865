//! Whether there is room for more.

use std::time::{Duration, Instant};

use super::Setup;

/// How often the disk's free space is looked at.
const DISK_CHECK: Duration = Duration::from_secs(1);

/// What an unprivileged process may still write to the file system of `path`; everything where
/// the system does not say.
#[must_use]
pub fn free_bytes(path: &std::path::Path) -> u64 {
    nix::sys::statvfs::statvfs(path).map_or(u64::MAX, |stat| stat.blocks_available() * stat.fragment_size())
}

/// Free space on the ledger's disk, looked at now and then.
#[derive(Default)]
pub(super) struct Disk {
    checked: Option<Instant>,
    /// As it was seen last.
    pub(super) full: bool,
}

impl Disk {
    /// How long until it is looked at again.
    pub(super) fn pause(&self) -> Duration {
        self.checked.map_or(Duration::ZERO, |checked| DISK_CHECK.saturating_sub(checked.elapsed()))
    }

    pub(super) fn is_full(&mut self, setup: &Setup) -> bool {
        if self.checked.is_none_or(|checked| checked.elapsed() >= DISK_CHECK) {
            self.checked = Some(Instant::now());
            self.full = free_bytes(setup.store.path()) < setup.min_free_bytes;
        }
        self.full
    }
}
