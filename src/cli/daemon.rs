//! The command line of `attestd`.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use super::{ExitCodes, exit_help};
use crate::config::{DEFAULT_PATH, LogLevel};

/// What `attestd` ends with.
pub const EXIT_CODES: ExitCodes = &[
    (0, "done"),
    (1, "failed, refused, or a check did not hold"),
    (2, "wrong usage"),
    (78, "an operator is needed: starting again is no use (missing ledger, wrong key, PIN, configuration)"),
];

/// Turns what happens on this machine into a signed, chained ledger behind a Unix socket.
#[derive(Debug, Parser)]
#[command(name = "attestd", version = crate::VERSION_WITH_COMMIT, after_help = exit_help(EXIT_CODES))]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What the daemon's program does.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a new ledger: entry 0, signed by the token's key, and the public key beside it
    Init {
        /// Where the configuration is.
        #[command(flatten)]
        config: ConfigFile,
        /// The record of the ceremony in which the key was made; it is verified, and the ledger names it for ever
        #[arg(long, value_name = "DIR")]
        ceremony: Option<PathBuf>,
        /// Another ledger that this one follows because that one is not extended any more; it is only read
        #[arg(long, value_name = "LEDGER", requires_all = ["origin", "reason"])]
        successor_of: Option<PathBuf>,
        /// The successor's origin, as the configuration has it
        #[arg(long, value_name = "NEW", requires = "successor_of")]
        origin: Option<String>,
        /// Why there is a successor, which the ledger will say for ever
        #[arg(long, value_name = "TEXT", requires = "successor_of")]
        reason: Option<String>,
        /// A file that was an anchor of the ledger before; may be given again
        #[arg(long, value_name = "FILE", requires = "successor_of")]
        old_anchor: Vec<PathBuf>,
    },
    /// Run the daemon
    Serve {
        /// Where the configuration is.
        #[command(flatten)]
        config: ConfigFile,
        /// Log this and what is more important, whatever the configuration says
        #[arg(long, value_name = "LEVEL", value_parser = parse_level)]
        log_level: Option<LogLevel>,
    },
    /// What shows that the ledger was rolled back
    #[command(subcommand)]
    Anchor(AnchorCommand),
    /// Read the configuration and say what it means, without touching ledger or token
    CheckConfig(ConfigFile),
    /// Write a bundle for auditors from the ledger file; needs neither token, PIN nor daemon
    Export {
        /// Where the configuration is.
        #[command(flatten)]
        config: ConfigFile,
        /// A new or empty directory
        dir: PathBuf,
        /// The first sequence number
        #[arg(long, value_name = "N", default_value_t = 0)]
        from: u64,
        /// The sequence number after the last; by default all
        #[arg(long, value_name = "N")]
        to: Option<u64>,
    },
    /// Check the whole ledger file; needs neither token, PIN nor daemon
    Verify {
        /// Where the configuration is.
        #[command(flatten)]
        config: ConfigFile,
        /// Print the verdict as JSON
        #[arg(long)]
        json: bool,
    },
}

/// `attestd anchor`
#[derive(Debug, Subcommand)]
pub enum AnchorCommand {
    /// Make an anchor that was lost or is new, where all others agree; the daemon must not be running
    Reset {
        /// Where the configuration is.
        #[command(flatten)]
        config: ConfigFile,
        /// Why, which the ledger will say for ever
        #[arg(long, value_name = "TEXT")]
        reason: String,
    },
}

/// Where the configuration is.
#[derive(Debug, Args)]
pub struct ConfigFile {
    /// The configuration
    #[arg(long, value_name = "FILE", default_value = DEFAULT_PATH)]
    pub config: PathBuf,
}

fn parse_level(text: &str) -> Result<LogLevel, String> {
    [LogLevel::Error, LogLevel::Warn, LogLevel::Info, LogLevel::Debug, LogLevel::Trace]
        .into_iter()
        .find(|level| level.as_str() == text)
        .ok_or_else(|| "must be error, warn, info, debug or trace".into())
}
