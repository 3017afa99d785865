//! What keeps the daemon's memory, where a PIN is for a moment and the token's module may hold more,
//! out of files.

use std::io;

use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};

/// From here on a crash leaves no core dump, neither a file nor one for a program that collects them,
/// and only root can look into the process.
///
/// # Errors
/// What the system said.
pub fn forbid_core_dumps() -> io::Result<()> {
    // The limit does not hold for a program that collects dumps, being dumpable does for both.
    prctl::set_dumpable(false)?;
    Ok(setrlimit(Resource::RLIMIT_CORE, 0, 0)?)
}
