//! `attestd`: the daemon.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use attestd::cli::daemon::{AnchorCommand, Arguments, Command};
use attestd::config::{Config, LogLevel};
use attestd::daemon::{
    Fault, anchors, ceremony::Ceremony, hygiene, init, notify::Notifier, offline::Offline, serve,
    successor::Predecessor,
};
use attestd::server::listener;
use clap::Parser as _;
use indicatif::{ProgressBar, ProgressStyle};

fn main() -> ExitCode {
    if let Err(error) = hygiene::forbid_core_dumps() {
        eprintln!("attestd: a crash may leave a core dump: {error}");
    }
    let result = match Arguments::parse().command {
        Command::Init { config, ceremony, successor_of, origin, reason, old_anchor } => {
            let successor = successor_of.map(|ledger| Successor {
                ledger,
                origin: origin.unwrap_or_default(),
                reason: reason.unwrap_or_default(),
                anchors: old_anchor,
            });
            make(&config.config, ceremony.as_deref(), successor)
        }
        Command::Anchor(AnchorCommand::Reset { config, reason }) => reset(&config.config, &reason),
        Command::Serve { config, log_level } => run(&config.config, log_level),
        Command::CheckConfig(file) => check(&file.config),
        Command::Export { config, dir, from, to } => export(&config.config, &dir, from, to),
        Command::Verify { config, json } => verify(&config.config, json),
    };
    result.unwrap_or_else(|fault| {
        eprintln!("attestd: {fault}");
        if let Some(remedy) = fault.remedy() {
            eprintln!("  what to do: {remedy}");
        }
        ExitCode::from(fault.exit_code())
    })
}

/// What `init` is told of the ledger before.
struct Successor {
    ledger: PathBuf,
    origin: String,
    reason: String,
    anchors: Vec<PathBuf>,
}

fn make(config: &Path, ceremony: Option<&Path>, successor: Option<Successor>) -> Result<ExitCode, Fault> {
    let config = Config::load(config)?;
    let ceremony = ceremony.map(Ceremony::read).transpose()?;
    let mut predecessor = None;
    if let Some(Successor { ledger, origin, reason, anchors }) = successor {
        let before = Predecessor::read(&ledger, &anchors, &reason)?;
        if origin != config.origin || origin == before.origin() {
            let before = before.origin().to_owned();
            return Err(Fault::SuccessorOrigin { config: config.origin, asked: origin, before });
        }
        predecessor = Some(before);
    }
    let made = init::init(&config, ceremony.as_ref(), predecessor)?;
    let ceremony = match made.rehearsal {
        None => "none: the genesis says so",
        Some(true) => "a REHEARSAL: the genesis says so",
        Some(false) => "verified, and named in the genesis",
    };
    say(&format!(
        "Made the ledger of {}.\n\n  ledger       {}\n  public key   {}\n  key id       {}\n  token        {}\n  ceremony     {}\n  genesis      {}\n\n\
         Give the public key and the genesis hash to whoever is to verify this ledger,\n\
         by a way of your own: an auditor must not have to take them from this machine.\n\
         Then run `attestd serve`.\n",
        config.origin,
        made.ledger.display(),
        made.public_key.display(),
        made.key,
        made.token,
        ceremony,
        made.genesis
    ));
    Ok(ExitCode::SUCCESS)
}

fn reset(config: &Path, reason: &str) -> Result<ExitCode, Fault> {
    let config = Config::load(config)?;
    start_log(LogLevel::Warn);
    for anchor in anchors::reset(&config, reason)? {
        say(&format!("Made {anchor}. The ledger says so, and why.\n"));
    }
    Ok(ExitCode::SUCCESS)
}

fn run(config: &Path, log_level: Option<LogLevel>) -> Result<ExitCode, Fault> {
    let config = Config::load(config);
    start_log(log_level.or(config.as_ref().ok().map(|config| config.log_level)).unwrap_or_default());
    let notifier = Arc::new(Notifier::from_environment());
    let served = config.map_err(Fault::from).and_then(|config| {
        tracing::info!(version = attestd::VERSION_WITH_COMMIT, origin = config.origin, "starting");
        serve::serve(&config, notifier.clone())
    });
    if let Err(fault) = &served {
        // What `systemctl status` goes on showing when nothing runs any more.
        let remedy = fault.remedy().map_or_else(String::new, |remedy| format!("; what to do: {remedy}"));
        notifier.status(&format!("stopped: {fault}{remedy}"));
    }
    served.map(|()| ExitCode::SUCCESS)
}

fn check(path: &Path) -> Result<ExitCode, Fault> {
    let config = Config::load(path)?;
    listener::socket_group(&config.server)?;
    say(&format!(
        "{} is a valid configuration.\n\n  origin       {}\n  ledger       {}\n  index        {}\n  public key   {}\n  \
         token        {}\n  module       {}\n  socket       {} (mode {:04o}{})\n  mode         each\n  log level    {}\n",
        path.display(),
        config.origin,
        config.ledger.path.display(),
        config.ledger.index.display(),
        config.ledger.public_key.display(),
        config.token.uri,
        config.token.module.display(),
        config.server.socket.display(),
        config.server.socket_mode,
        if config.server.socket_group.is_empty() {
            String::new()
        } else {
            format!(", group {}", config.server.socket_group)
        },
        config.log_level.as_str(),
    ));
    Ok(ExitCode::SUCCESS)
}

fn export(config: &Path, dir: &Path, from: u64, to: Option<u64>) -> Result<ExitCode, Fault> {
    let ledger = Offline::open(&Config::load(config)?.ledger.path)?;
    let to = to.unwrap_or(ledger.count());
    let bar = progress_bar(to.min(ledger.count()).saturating_sub(from));
    let written = ledger.export(dir, from, to, |done| bar.set_position(done))?;
    bar.finish_and_clear();
    say(&format!(
        "Wrote {written} entries to {}. Verify them with a key that you trust:\n  attest-verify {} --key public-key.pem\n",
        dir.display(),
        dir.display()
    ));
    Ok(ExitCode::SUCCESS)
}

fn verify(config: &Path, json: bool) -> Result<ExitCode, Fault> {
    let ledger = Offline::open(&Config::load(config)?.ledger.path)?;
    let bar = progress_bar(ledger.count());
    let verdict = ledger.verify(|done| {
        if done % 256 == 0 {
            bar.set_position(done);
        }
    })?;
    bar.finish_and_clear();
    if json {
        say(&format!("{}\n", serde_json::to_string(&verdict).unwrap_or_default()));
    } else {
        say(&verdict.to_string());
    }
    Ok(if verdict.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Prints; a reader that has gone, such as `head`, is no fault.
fn say(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

fn progress_bar(entries: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style =
        ProgressStyle::with_template("{bar:40} {human_pos}/{human_len} entries, {per_sec}, {eta} left");
    ProgressBar::new(entries).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// To standard error: journald reads it, and adds the time itself.
fn start_log(level: LogLevel) {
    let level = match level {
        LogLevel::Error => tracing::Level::ERROR,
        LogLevel::Warn => tracing::Level::WARN,
        LogLevel::Info => tracing::Level::INFO,
        LogLevel::Debug => tracing::Level::DEBUG,
        LogLevel::Trace => tracing::Level::TRACE,
    };
    let log = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_target(false)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    if std::env::var_os("JOURNAL_STREAM").is_some() { log.without_time().init() } else { log.init() }
}
