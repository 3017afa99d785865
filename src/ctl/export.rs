//! `attestctl export`: a bundle for an auditor.

use std::io::{self, Read};
use std::path::Path;

use bytes::{Buf, Bytes};
use tokio::sync::mpsc;

use super::cli::Export;
use super::text::{count_of, printable, printable_message};
use super::{Failure, Outcome, connect, print, progress};
use crate::audit::Interruption;
use crate::bundle::{self, unpack};
use crate::client::Query;

/// Pieces of the tar that wait to be written.
const PIECES_AHEAD: usize = 16;

pub(super) async fn run(socket: &Path, args: &Export) -> Result<Outcome, Failure> {
    let doing = "export";
    let mut client = connect(socket, doing).await?;
    let query = Query::new().with_some("from", args.from).with_some("to", args.to);
    let mut export = client.export(&query).await.map_err(Failure::daemon(doing))?;

    let bar = progress(export.entries, "exporting");
    let (pieces, received) = mpsc::channel(PIECES_AHEAD);
    let dir = args.dir.clone();
    let writer = tokio::task::spawn_blocking({
        let bar = bar.clone();
        move || {
            let pieces = Pieces { received, current: Bytes::new() };
            unpack(pieces, &dir, |name, piece| {
                if name == bundle::ENTRIES {
                    bar.inc(piece.iter().filter(|byte| **byte == b'\n').count() as u64);
                }
            })
        }
    });
    let broke = loop {
        match export.chunk().await {
            Ok(Some(piece)) => {
                // The writer is gone when it has found a fault, which it tells below.
                if pieces.send(Ok(piece)).await.is_err() {
                    break None;
                }
            }
            Ok(None) => break None,
            Err(error) => {
                // Dropped without this, the channel would look like the proper end.
                let _ = pieces.send(Err(io::ErrorKind::UnexpectedEof.into())).await;
                break Some(error);
            }
        }
    };
    drop(pieces);
    let unpacked = writer.await;
    bar.finish_and_clear();
    if let Some(error) = broke {
        return Err(Failure::daemon(doing)(error));
    }
    let manifest = match unpacked {
        Ok(unpacked) => unpacked.map_err(|interruption| failure(interruption, &args.dir))?,
        Err(panicked) => return Err(Failure::local(doing, io::Error::other(panicked))),
    };

    let range = match manifest.count.checked_sub(1) {
        Some(more) => format!(", {} to {}", manifest.first, manifest.first.saturating_add(more)),
        None => String::new(),
    };
    let dir = args.dir.display();
    print(&format!(
        "exported {}{range}, of {} to {dir}\n\
         Give the directory to the auditor, and the public key by another way. To check it:\n  \
         attest-verify {dir} --key trusted.pem\n",
        count_of(manifest.count, "entry", "entries"),
        printable(&manifest.origin),
    ))?;
    Ok(Outcome::Done)
}

fn failure(interruption: Interruption, dir: &Path) -> Failure {
    let dir = dir.display();
    match interruption {
        Interruption::Unreadable(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            Failure::Usage(format!("{dir} exists and is not an empty directory: name another, or empty it"))
        }
        Interruption::Unreadable(error) => Failure::local(format!("write to {dir}"), error),
        Interruption::Faulty(fault) => {
            Failure::Check(printable_message(&format!("couldn't export: {fault}")))
        }
    }
}

/// What the connection receives, for a reader on another thread.
struct Pieces {
    received: mpsc::Receiver<io::Result<Bytes>>,
    current: Bytes,
}

impl Read for Pieces {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.received.blocking_recv() {
                Some(piece) => self.current = piece?,
                None => return Ok(0),
            }
        }
        let length = buf.len().min(self.current.len());
        self.current.copy_to_slice(&mut buf[..length]);
        Ok(length)
    }
}
