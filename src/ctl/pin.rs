//! `attestctl pin`: the latch that keeps a refused PIN from being tried again.

use std::path::Path;

use super::{Failure, Outcome, print};
use crate::config::Config;
use crate::daemon::{next_pin_latch, pin_latch};

/// Opens the latch of the ledger that the configuration names.
pub(super) fn clear(config: &Path) -> Result<Outcome, Failure> {
    let config = Config::load(config).map_err(|error| Failure::Usage(error.to_string()))?;
    let failed = |error: crate::token::LatchError| Failure::Usage(error.to_string());
    let mut cleared = false;
    for latch in [pin_latch(&config), next_pin_latch(&config)] {
        let latched = latch.read().map_err(failed)?;
        cleared |= latch.clear().map_err(failed)?;
        if let Some(latched) = latched {
            print(&format!(
                "cleared: the token with serial \"{}\" had refused the PIN ({})\n",
                super::text::printable(&latched.serial),
                super::text::printable(&latched.refused)
            ))?;
        }
    }
    if !cleared {
        print("there is nothing to clear: no PIN was refused\n")?;
        return Ok(Outcome::Done);
    }
    print("the next start, or a daemon that is waiting for the token, tries the PIN once more\n")?;
    Ok(Outcome::Done)
}
