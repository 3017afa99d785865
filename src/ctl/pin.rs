//! `attestctl pin`: the latch that keeps a refused PIN from being tried again.

use std::path::Path;

use super::{Failure, Outcome, print};
use crate::config::Config;
use crate::daemon::pin_latch;

/// Opens the latch of the ledger that the configuration names.
pub(super) fn clear(config: &Path) -> Result<Outcome, Failure> {
    let config = Config::load(config).map_err(|error| Failure::Usage(error.to_string()))?;
    let latch = pin_latch(&config);
    let failed = |error: crate::token::LatchError| Failure::Usage(error.to_string());
    let latched = latch.read().map_err(failed)?;
    if !latch.clear().map_err(failed)? {
        print("there is nothing to clear: no PIN was refused\n")?;
        return Ok(Outcome::Done);
    }
    if let Some(latched) = latched {
        print(&format!(
            "cleared: the token with serial \"{}\" had refused the PIN ({})\n",
            super::text::printable(&latched.serial),
            super::text::printable(&latched.refused)
        ))?;
    }
    print("the next start, or a daemon that is waiting for the token, tries the PIN once more\n")?;
    Ok(Outcome::Done)
}
