//! attest-verify: the auditor's tool. It needs a bundle and a public key that came another way,
//! and no daemon, token or network.

#![forbid(unsafe_code)]

use std::io::{IsTerminal, Read, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use attestd::audit::{Expectations, TrustedKeys, Verdict};
use attestd::bundle::Bundle;
use attestd::ledger::checkpoint::{MAX_NOTE_BYTES, Note};
use attestd::ledger::hash::Digest;
use attestd::ledger::key::{PublicKey, is_origin};
use clap::{Args, Parser};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A PEM file is no larger than this; what is, is not one.
const MAX_PEM_BYTES: usize = 64 << 10;

const EXIT_CODES: &str = "\
Exit codes:
  0  everything that was checked holds
  1  something is wrong; the first fault is named by entry and code
  2  it could not look: a file cannot be read, or the command line is wrong

The key must have come to you another way than the bundle. The key inside the bundle is never
trusted. Entries are checked on all cores in flat memory; for long ledgers entry ids are sorted in
a nameless temporary file in TMPDIR (about 25 bytes for each entry and dependency).";

/// Verifies an exported attestd ledger with nothing but a public key.
#[derive(Parser)]
#[command(version, after_help = EXIT_CODES)]
struct Cli {
    // Subcommands can join later: with `args_conflicts_with_subcommands` a bare BUNDLE goes on working.
    #[command(flatten)]
    verify: Verify,
}

#[derive(Args)]
struct Verify {
    /// The bundle: a directory, or a tar as the daemon exports it.
    bundle: PathBuf,
    /// The public key to trust, as PEM (`BEGIN PUBLIC KEY`).
    #[arg(long, value_name = "PEM")]
    key: PathBuf,
    /// The origin that the ledger must have.
    #[arg(long, value_name = "NAME", value_parser = origin)]
    origin: Option<String>,
    /// The entry_hash that entry 0 must have.
    #[arg(long, value_name = "HASH", value_parser = hash)]
    genesis: Option<Digest>,
    /// A checkpoint that you saw before (a signed note): the ledger must extend it.
    #[arg(long, value_name = "FILE")]
    known_checkpoint: Option<PathBuf>,
    /// Print the verdict as one JSON object.
    #[arg(long)]
    json: bool,
    /// Print nothing; the exit code says it.
    #[arg(long, short, conflicts_with = "json")]
    quiet: bool,
    /// Threads that verify; as many as there are cores if not given.
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
}

fn main() -> ExitCode {
    let arguments = Cli::parse().verify;
    match verify(&arguments).and_then(|verdict| report(&arguments, &verdict).map(|()| verdict.ok)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(problem) => {
            eprintln!("attest-verify: {problem}");
            ExitCode::from(2)
        }
    }
}

fn verify(arguments: &Verify) -> Result<Verdict, String> {
    let key = read_key(&arguments.key)?;
    let unreadable = |error| format!("couldn't read {}: {error}", arguments.bundle.display());
    let bundle = Bundle::open(&arguments.bundle).map_err(unreadable)?;
    let known = arguments.known_checkpoint.as_deref().map(read_known).transpose()?;
    let expectations = Expectations {
        known,
        origin: arguments.origin.clone(),
        genesis: arguments.genesis,
        threads: arguments.threads,
        ..Expectations::trusting(TrustedKeys::only(key))
    };
    let bar = progress_bar(bundle.bytes(), arguments.quiet);
    let verdict = bundle.verify(&expectations, |bytes| bar.inc(bytes)).map_err(unreadable);
    bar.finish_and_clear();
    verdict
}

fn read_key(path: &Path) -> Result<PublicKey, String> {
    let pem = read_small(path, MAX_PEM_BYTES)?;
    let pem = String::from_utf8(pem).map_err(|_| format!("{} is no PEM file", path.display()))?;
    PublicKey::from_pem(&pem).map_err(|error| format!("{}: {error}", path.display()))
}

fn read_known(path: &Path) -> Result<Note, String> {
    let note = read_small(path, MAX_NOTE_BYTES)?;
    Note::parse(&note).map_err(|fault| format!("{} is no checkpoint: {fault}", path.display()))
}

/// A file of at most `limit` bytes.
fn read_small(path: &Path, limit: usize) -> Result<Vec<u8>, String> {
    let unreadable = |error| format!("couldn't read {}: {error}", path.display());
    let mut content = Vec::new();
    let file = std::fs::File::open(path).map_err(unreadable)?;
    file.take(limit as u64 + 1).read_to_end(&mut content).map_err(unreadable)?;
    if content.len() > limit {
        return Err(format!("{} is larger than {limit} bytes", path.display()));
    }
    Ok(content)
}

/// On a terminal only: elsewhere nobody watches.
fn progress_bar(bytes: u64, quiet: bool) -> ProgressBar {
    if quiet || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target(Some(bytes), ProgressDrawTarget::stderr());
    let style = "verifying {wide_bar} {bytes}/{total_bytes}, {binary_bytes_per_sec}, {eta} left";
    match ProgressStyle::with_template(style) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

fn report(arguments: &Verify, verdict: &Verdict) -> Result<(), String> {
    if arguments.quiet {
        return Ok(());
    }
    let text = if arguments.json {
        serde_json::to_string(verdict).map_err(|error| error.to_string())? + "\n"
    } else {
        verdict.to_string()
    };
    std::io::stdout().write_all(text.as_bytes()).map_err(|error| format!("couldn't write: {error}"))
}

fn origin(text: &str) -> Result<String, String> {
    if is_origin(text) { Ok(text.into()) } else { Err("no ledger can have this origin".into()) }
}

fn hash(text: &str) -> Result<Digest, String> {
    Digest::from_hex(text.as_bytes()).ok_or_else(|| "must be 64 lower-case hex digits".into())
}
