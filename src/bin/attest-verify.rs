//! attest-verify: the auditor's tool. It needs a bundle and a public key that came another way,
//! and no daemon, token or network.

#![forbid(unsafe_code)]

use std::io::{IsTerminal, Read, Write};
use std::path::Path;
use std::process::ExitCode;

use attestd::audit::{Expectations, TrustedKeys, Verdict, verify_receipt};
use attestd::bundle::Bundle;
use attestd::cli::auditor::{Cli, Command, Compare, ReceiptArguments, Verify};
use attestd::ledger::canonical::MAX_ENTRY_BYTES;
use attestd::ledger::checkpoint::{MAX_NOTE_BYTES, Note};
use attestd::ledger::key::PublicKey;
use attestd::ledger::proof::MAX_RECEIPT_BYTES;
use clap::Parser as _;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A PEM file is no larger than this; what is, is not one.
const MAX_PEM_BYTES: usize = 64 << 10;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match (&cli.command, &cli.verify) {
        (Some(Command::Receipt(arguments)), _) => receipt(arguments),
        (Some(Command::Compare(arguments)), _) => compare(arguments),
        (None, Some(arguments)) => {
            verify(arguments).and_then(|verdict| report(arguments, &verdict).map(|()| verdict.ok))
        }
        (None, None) => Err("name a bundle; `attest-verify --help` says how".into()),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(problem) => {
            eprintln!("attest-verify: {problem}");
            ExitCode::from(2)
        }
    }
}

fn receipt(arguments: &ReceiptArguments) -> Result<bool, String> {
    let keys = arguments.key.iter().map(|path| read_key(path)).collect::<Result<Vec<_>, _>>()?;
    let mut entry = read_small(&arguments.entry, MAX_ENTRY_BYTES + 1)?;
    if entry.last() == Some(&b'\n') {
        entry.pop();
    }
    let proof = read_small(&arguments.proof, MAX_RECEIPT_BYTES)?;
    let verdict = verify_receipt(&entry, &proof, &keys, arguments.origin.as_deref());
    let text = if arguments.json {
        serde_json::to_string(&verdict).map_err(|error| error.to_string())? + "\n"
    } else {
        verdict.to_string()
    };
    print(&text)?;
    Ok(verdict.ok)
}

/// One side of a comparison: what it says, and the bundle that shows more, if it is one.
struct Side {
    note: Note,
    bundle: Option<(Bundle, PublicKey)>,
}

fn read_side(path: &Path) -> Result<Side, String> {
    let unreadable = |error: &dyn std::fmt::Display| format!("couldn't read {}: {error}", path.display());
    let head = if path.is_dir() { Vec::new() } else { read_small(path, MAX_NOTE_BYTES).unwrap_or_default() };
    if let Ok(note) = Note::parse(&head) {
        return Ok(Side { note, bundle: None });
    }
    let mut bundle = Bundle::open(path).map_err(|error| unreadable(&error))?;
    let (note, key) = bundle.claims().map_err(|error| unreadable(&error))?;
    Ok(Side { note, bundle: Some((bundle, key)) })
}

fn compare(arguments: &Compare) -> Result<bool, String> {
    let (a, b) = (read_side(&arguments.a)?, read_side(&arguments.b)?);
    let own = a.bundle.as_ref().or(b.bundle.as_ref()).map(|(_, key)| key.clone());
    let key = match &arguments.key {
        Some(path) => read_key(path)?,
        None => own.ok_or("two checkpoints need a --key")?,
    };
    for (side, path) in [(&a, &arguments.a), (&b, &arguments.b)] {
        if let Err(fault) = side.note.verify(std::slice::from_ref(&key)) {
            eprintln!("attest-verify: the checkpoint of {}: {fault}", path.display());
            return Ok(false);
        }
    }
    if a.note.checkpoint().origin() != b.note.checkpoint().origin() {
        return Err(format!(
            "these are of two ledgers, {} and {}",
            a.note.checkpoint().origin(),
            b.note.checkpoint().origin()
        ));
    }
    let size = |side: &Side| side.note.checkpoint().root().size;
    let notes = [a.note.clone(), b.note.clone()];
    let ((small, _), (large, path)) = if size(&a) <= size(&b) {
        ((a, &arguments.a), (b, &arguments.b))
    } else {
        ((b, &arguments.b), (a, &arguments.a))
    };
    let wanted = small.note.checkpoint().root();
    let found = if size(&large) == wanted.size {
        large.note.checkpoint().root()
    } else {
        let (bundle, _) =
            large.bundle.ok_or("two checkpoints of different sizes: give the bundle of the larger")?;
        let expectations = Expectations::trusting(TrustedKeys::only(key));
        let (verdict, roots) = bundle
            .verify_with_roots(&expectations, &[wanted.size], |_| {})
            .map_err(|error| format!("couldn't read {}: {error}", path.display()))?;
        if !verdict.ok {
            print(&format!("{} does not hold:\n{verdict}", path.display()))?;
            return Ok(false);
        }
        let root = roots.into_iter().find(|root| root.size == wanted.size);
        root.ok_or_else(|| format!("{} does not reach over entry {}", path.display(), wanted.size))?
    };
    if found == wanted {
        print(&format!("CONSISTENT: both have the same first {} entries\n", wanted.size))?;
        return Ok(true);
    }
    for (note, name) in notes.iter().zip(["fork-a.checkpoint", "fork-b.checkpoint"]) {
        let path = arguments.evidence.join(name);
        std::fs::File::create_new(&path)
            .and_then(|mut file| file.write_all(note.as_str().as_bytes()))
            .map_err(|error| format!("couldn't write {}: {error}", path.display()))?;
    }
    print(&format!(
        "FORK: of the first {} entries one has the root {}, the other {}.\nThe two signed checkpoints are in \
         {}: fork-a.checkpoint, fork-b.checkpoint\n",
        wanted.size,
        wanted.hash,
        found.hash,
        arguments.evidence.display()
    ))?;
    Ok(false)
}

fn print(text: &str) -> Result<(), String> {
    std::io::stdout().write_all(text.as_bytes()).map_err(|error| format!("couldn't write: {error}"))
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
    print(&text)
}
