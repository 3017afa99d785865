//! The command line of `attest-verify`.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use super::{ExitCodes, exit_help};
use crate::ledger::hash::Digest;
use crate::ledger::key::is_origin;

/// What `attest-verify` ends with.
pub const EXIT_CODES: ExitCodes = &[
    (0, "everything that was checked holds"),
    (1, "something is wrong; the first fault is named by entry and code"),
    (2, "it could not look: a file cannot be read, or the command line is wrong"),
];

fn help() -> String {
    format!(
        "{}\n\n\
The key must have come to you another way than the bundle. The key inside the bundle is never\n\
trusted. Entries are checked on all cores in flat memory; for long ledgers entry ids are sorted in\n\
a nameless temporary file in TMPDIR (about 25 bytes for each entry and dependency).",
        exit_help(EXIT_CODES)
    )
}

/// Verifies an exported attestd ledger with nothing but a public key.
#[derive(Debug, Parser)]
#[command(name = "attest-verify", version, after_help = help(), args_conflicts_with_subcommands = true)]
#[command(subcommand_negates_reqs = true)]
pub struct Cli {
    /// What else than a bundle to verify.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The bundle to verify.
    #[command(flatten)]
    pub verify: Option<Verify>,
}

/// What can be verified but a bundle.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Verifies one entry with its receipt.
    Receipt(ReceiptArguments),
    /// Finds whether two bundles or checkpoints are of one history of a ledger.
    Compare(Compare),
}

/// `attest-verify receipt`
#[derive(Debug, Args)]
pub struct ReceiptArguments {
    /// The entry, as the daemon gives it.
    #[arg(long, value_name = "JSON")]
    pub entry: PathBuf,
    /// Its receipt (a `tlog-proof`).
    #[arg(long, value_name = "FILE")]
    pub proof: PathBuf,
    /// A public key to trust, as PEM. May be given more than once.
    #[arg(long, value_name = "PEM", required = true)]
    pub key: Vec<PathBuf>,
    /// The origin that the ledger must have.
    #[arg(long, value_name = "NAME", value_parser = origin)]
    pub origin: Option<String>,
    /// Print the verdict as one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// `attest-verify compare`
#[derive(Debug, Args)]
pub struct Compare {
    /// A bundle, or a checkpoint (a signed note).
    pub a: PathBuf,
    /// Another.
    pub b: PathBuf,
    /// The public key to trust, as PEM. Without it the first bundle's own key is taken.
    #[arg(long, value_name = "PEM")]
    pub key: Option<PathBuf>,
    /// Where the two signed notes are written if they contradict each other.
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub evidence: PathBuf,
}

/// `attest-verify BUNDLE`
#[derive(Debug, Args)]
pub struct Verify {
    /// The bundle: a directory, or a tar as the daemon exports it.
    pub bundle: PathBuf,
    /// The public key to trust, as PEM (`BEGIN PUBLIC KEY`).
    #[arg(long, value_name = "PEM")]
    pub key: PathBuf,
    /// The origin that the ledger must have.
    #[arg(long, value_name = "NAME", value_parser = origin)]
    pub origin: Option<String>,
    /// The entry_hash that entry 0 must have.
    #[arg(long, value_name = "HASH", value_parser = hash)]
    pub genesis: Option<Digest>,
    /// A checkpoint that you saw before (a signed note): the ledger must extend it.
    #[arg(long, value_name = "FILE")]
    pub known_checkpoint: Option<PathBuf>,
    /// Print the verdict as one JSON object.
    #[arg(long)]
    pub json: bool,
    /// Print nothing; the exit code says it.
    #[arg(long, short, conflicts_with = "json")]
    pub quiet: bool,
    /// Threads that verify; as many as there are cores if not given.
    #[arg(long, value_name = "N")]
    pub threads: Option<NonZeroUsize>,
}

fn origin(text: &str) -> Result<String, String> {
    if is_origin(text) { Ok(text.into()) } else { Err("no ledger can have this origin".into()) }
}

fn hash(text: &str) -> Result<Digest, String> {
    Digest::from_hex(text.as_bytes()).ok_or_else(|| "must be 64 lower-case hex digits".into())
}
