//! attestctl: the commands, what they print, and how they end.
//!
//! Standard output carries what was asked for and nothing else; progress, summaries of batches
//! and errors go to standard error. What an entry or the daemon says is escaped before it is
//! shown to a person; `--json` gives bytes as they came.

use std::fmt;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::CommandFactory as _;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

use crate::client::{Client, ClientError};

mod append;
mod approve;
mod backup;
mod bench;
mod ceremony;
pub mod cli;
mod clock;
mod doctor;
mod export;
mod failure;
mod get;
mod histogram;
mod key;
mod list;
pub mod pages;
mod pen;
mod pin;
mod proof;
mod proposals;
mod publish;
mod rules;
mod status;
mod text;
mod verify;

use failure::Failure;

/// How a command ended that found out what it wanted to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Done,
    /// Something that was looked at does not hold.
    Wrong,
    /// The daemon is there but cannot append.
    NotReady,
    PartlyRefused,
}

impl Outcome {
    fn exit_code(self) -> u8 {
        match self {
            Outcome::Done => 0,
            Outcome::Wrong => 1,
            Outcome::NotReady => 4,
            Outcome::PartlyRefused => 5,
        }
    }
}

/// Runs attestctl.
#[must_use]
pub fn run(cli: &cli::Cli) -> ExitCode {
    // One thread is enough for a client, and leaves the other cores to the daemon.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(command(cli)),
        Err(source) => Err(Failure::local("start", source)),
    };
    match result {
        Ok(outcome) => ExitCode::from(outcome.exit_code()),
        Err(failure) => ExitCode::from(failure.report()),
    }
}

async fn command(cli: &cli::Cli) -> Result<Outcome, Failure> {
    let socket = cli.socket.as_path();
    match &cli.command {
        cli::Command::Append(args) => append::run(socket, args).await,
        cli::Command::Get(args) => get::run(socket, args).await,
        cli::Command::List(args) => list::run(socket, args).await,
        cli::Command::Export(args) => export::run(socket, args).await,
        cli::Command::Proof(args) => proof::run(socket, args).await,
        cli::Command::Publish(args) => publish::run(socket, args).await,
        cli::Command::Rules(args) => rules::run(socket, &args.command).await,
        cli::Command::Propose(args) => proposals::propose(socket, args).await,
        cli::Command::Proposals(args) => proposals::run(socket, args).await,
        cli::Command::Approve(args) => approve::run(socket, args).await,
        cli::Command::Seal(args) => proposals::seal(socket, args).await,
        cli::Command::Withdraw(args) => proposals::withdraw(socket, args).await,
        cli::Command::Verify(args) => verify::run(socket, args).await,
        cli::Command::Status(args) => status::run(socket, args).await,
        cli::Command::Bench(args) => bench::run(socket, args).await,
        cli::Command::Key(args) => key::run(socket, &args.command).await,
        cli::Command::Backup(args) => backup::run(args),
        cli::Command::Clock(cli::Clock::Confirm { json }) => clock::confirm(socket, *json).await,
        cli::Command::Doctor(args) => doctor::run(socket, args).await,
        cli::Command::Pin(cli::Pin { command: cli::PinCommand::Clear { config } }) => pin::clear(config),
        cli::Command::Ceremony(cli::Ceremony::Run(args)) => ceremony::run(args),
        cli::Command::Ceremony(cli::Ceremony::Verify(args)) => ceremony::check(args),
        cli::Command::Completions { shell } => {
            pages::completions(cli::Cli::command(), *shell, &mut io::stdout().lock())?;
            Ok(Outcome::Done)
        }
        cli::Command::Man { dir: Some(dir) } => {
            pages::all_pages(dir).map_err(|source| {
                Failure::local(format!("write manual pages to {}", dir.display()), source)
            })?;
            Ok(Outcome::Done)
        }
        cli::Command::Man { dir: None } => {
            pages::man_page(cli::Cli::command(), cli::EXIT_CODES, &mut io::stdout().lock())?;
            Ok(Outcome::Done)
        }
    }
}

/// Connects, or says what could not be done.
async fn connect(socket: &Path, doing: &str) -> Result<Client, Failure> {
    Client::connect(socket).await.map_err(Failure::daemon(doing))
}

/// Writes `text` and a line feed to standard output.
fn print_line(text: &[u8]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(text)?;
    out.write_all(b"\n")?;
    Ok(out.flush()?)
}

/// Writes `text` to standard output.
fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

/// A bar (a spinner where the total is not known) on standard error, invisible unless that is a
/// terminal.
fn progress(total: Option<u64>, doing: &'static str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr_with_hz(10));
    let template = match total {
        Some(_) => "{msg} {wide_bar} {human_pos}/{human_len} ({rate}, {eta} left)",
        None => "{spinner} {msg} {human_pos} ({rate}, {elapsed})",
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.with_key("rate", |state: &ProgressState, out: &mut dyn fmt::Write| {
            let rate = text::grouped(state.per_sec().round().max(0.0) as u64);
            // A bar that cannot be drawn stops nothing.
            let _ = write!(out, "{rate}/s");
        }));
    }
    bar.set_message(doing);
    bar
}

/// A spinner for a wait of unknown length.
fn spinner(doing: &'static str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(10));
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
        bar.set_style(style);
    }
    bar.set_message(doing);
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

/// An answer of the daemon's that is not what the API promises.
fn unexpected(doing: &str, what: impl Into<String>) -> Failure {
    Failure::daemon(doing)(ClientError::Protocol(what.into()))
}
