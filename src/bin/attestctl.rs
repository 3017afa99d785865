//! attestctl: appends to, reads and checks the ledger of a running attestd.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use attestd::ctl::{self, cli::Cli};
use clap::Parser as _;

fn main() -> ExitCode {
    ctl::run(&Cli::parse())
}
