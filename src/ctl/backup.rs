//! `attestctl backup`: a copy of the ledger file for evidence, and for a successor to begin from.
//!
//! ```text
//! DIR/ledger.db      the ledger at one moment, page by page
//! DIR/manifest.json  what it is, with its size and hash; without it the copy is not whole
//! ```

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

use super::cli::Backup;
use super::text::{count_of, grouped, printable};
use super::{Failure, Outcome, print, print_line, progress};
use crate::config::Config;
use crate::daemon::checkup::Examined;
use crate::ledger::hash::{Hasher, encode_hex};
use crate::sequencer::{free_bytes, now};
use crate::store::Copied;

const LEDGER: &str = "ledger.db";
const MANIFEST: &str = "manifest.json";
/// What a person or a program that finds the copy must know.
const PURPOSE: &str = "evidence, and what a successor begins from; never to be put back as the ledger";
/// Read and hashed at a time.
const PIECE_BYTES: usize = 1 << 20;

pub(super) fn run(args: &Backup) -> Result<Outcome, Failure> {
    let config = Config::load(&args.config).map_err(|error| Failure::Usage(error.to_string()))?;
    let ledger = Examined::open(&config.ledger.path).map_err(|fault| Failure::Usage(fault.to_string()))?;
    let dir = args.dir.as_path();
    make(dir)?;
    check_room(dir, &config)?;
    let writing = |source| Failure::local(format!("write the backup {}", dir.display()), source);

    let unborn = dir.join("ledger.db.unborn");
    let bar = progress(Some(0), "copying");
    let copied = ledger
        .reader()
        .copy(&unborn, |done, of| {
            bar.set_length(of);
            bar.set_position(done);
        })
        .map_err(|error| {
            Failure::Usage(format!("couldn't back up {}: {error}", config.ledger.path.display()))
        })?;
    bar.finish_and_clear();
    let (bytes, sha256) = hash(&unborn).map_err(writing)?;
    fs::rename(&unborn, dir.join(LEDGER)).map_err(writing)?;
    let manifest = manifest(ledger.origin(), &copied, bytes, &sha256);
    write_durably(dir, manifest.as_bytes()).map_err(writing)?;

    if args.json {
        print_line(manifest.trim_end().as_bytes())?;
    } else {
        print(&words(ledger.origin(), dir, &copied, bytes, &sha256))?;
    }
    Ok(Outcome::Done)
}

/// Takes a directory that is new or empty.
fn make(dir: &Path) -> Result<(), Failure> {
    let failed = |source| Failure::local(format!("make {}", dir.display()), source);
    match fs::DirBuilder::new().mode(0o700).create(dir) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            match fs::read_dir(dir).map_err(failed)?.next() {
                None => Ok(()),
                Some(_) => Err(Failure::Usage(format!("{} is not empty: nothing was copied", dir.display()))),
            }
        }
        Err(error) => Err(failed(error)),
    }
}

/// A copy must not take the room that the daemon needs, should it be on the same disk.
fn check_room(dir: &Path, config: &Config) -> Result<(), Failure> {
    let needed = fs::metadata(&config.ledger.path).map_or(0, |metadata| metadata.len());
    let free = free_bytes(dir);
    if free < needed.saturating_add(config.ledger.min_free_bytes) {
        return Err(Failure::Usage(format!(
            "{} has {} bytes free; the copy takes {} and must leave {} (`ledger.min_free_bytes`)",
            dir.display(),
            grouped(free),
            grouped(needed),
            grouped(config.ledger.min_free_bytes)
        )));
    }
    Ok(())
}

fn hash(path: &Path) -> io::Result<(u64, String)> {
    let mut file = File::open(path)?;
    let mut hasher = Hasher::new();
    let mut piece = vec![0; PIECE_BYTES];
    let mut bytes = 0;
    loop {
        match file.read(&mut piece)? {
            0 => return Ok((bytes, encode_hex(&hasher.finish().0))),
            read => {
                hasher.update(&piece[..read]);
                bytes += read as u64;
            }
        }
    }
}

fn manifest(origin: &str, copied: &Copied, bytes: u64, sha256: &str) -> String {
    let manifest = serde_json::json!({
        "format": "attestd-backup/1",
        "purpose": PURPOSE,
        "origin": origin,
        "entries": copied.head.next.0,
        "head_hash": copied.head.hash.to_hex(),
        "reserved": copied.reserved,
        "checkpoint": copied.note.as_ref().map(|note| note.as_str()),
        "made_at": now().to_string(),
        "version": crate::VERSION,
        "files": { LEDGER: { "bytes": bytes, "sha256": sha256 } },
    });
    format!("{manifest}\n")
}

/// The copy's name first, then the manifest: where there is one, the copy is whole.
fn write_durably(dir: &Path, manifest: &[u8]) -> io::Result<()> {
    let directory = File::open(dir)?;
    directory.sync_all()?;
    let unborn = dir.join("manifest.json.unborn");
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(&unborn)?;
    file.write_all(manifest)?;
    file.sync_all()?;
    fs::rename(&unborn, dir.join(MANIFEST))?;
    directory.sync_all()
}

fn words(origin: &str, dir: &Path, copied: &Copied, bytes: u64, sha256: &str) -> String {
    let mut out = format!(
        "copied {} of {} to {}\n  {LEDGER}   {} bytes, SHA-256 {sha256}\n",
        count_of(copied.head.next.0, "entry", "entries"),
        printable(origin),
        printable(&dir.display().to_string()),
        grouped(bytes)
    );
    let checkpoint = match &copied.note {
        Some(note) => {
            let size = note.checkpoint().root().size.leaves();
            format!("over {}, in {MANIFEST}", count_of(size, "entry", "entries"))
        }
        None => "none yet".to_owned(),
    };
    out.push_str(&format!("  checkpoint  {checkpoint}\n"));
    if copied.reserved > 0 {
        out.push_str(&format!("  reserved    {} more, not signed yet\n", grouped(copied.reserved)));
    }
    out.push_str(
        "This is evidence, and what a successor begins from. Never put it back as the ledger: what was acknowledged since\n\
         would be lost, and anchors refuse it.\n",
    );
    out
}
