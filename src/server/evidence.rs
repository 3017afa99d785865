//! Evidence in bulk: a bundle for auditors as a tar, and the daemon's check of its own ledger.
//!
//! Both run beside the commit path, on a connection of their own to the ledger file.

use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{Extension, Query, State};
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::Response;
use futures_util::stream;
use tokio::sync::mpsc;

use super::problem::Problem;
use super::read::{Parameters, json_answer, parse_number};
use super::service::{Service, internal};
use crate::bundle::TarWriter;
use crate::caller::Peer;
use crate::evidence::{self, Extract, Unplanned, lines};
use crate::ledger::code::Code;
use crate::ledger::entry::Sequence;
use crate::store::Reader;

/// How much of an export is handed to the connection at once, and how many such pieces may wait:
/// a client that reads slowly holds 256 KiB.
const PIECE_BYTES: usize = 64 << 10;
const PIECES: usize = 4;
/// Exports at once: each has a thread, and with its connection to the ledger about 4 MiB.
pub(super) const EXPORTS: usize = 4;

/// `GET /v1/export`.
pub(super) async fn export(
    State(service): State<Arc<Service>>,
    Extension(peer): Extension<Arc<Peer>>,
    Query(parameters): Parameters,
) -> Response {
    let result = async {
        service.check_read(&peer)?;
        service.check_sees_all(&peer)?;
        let (from, to) = parse_range(&parameters)?;
        let permit = service.exports.clone().try_acquire_owned().map_err(|_| {
            Problem::new(Code::MemoryBudget, format!("{EXPORTS} exports are under way already"))
        })?;
        let ledger = service.ledger.clone();
        let (sender, receiver) = mpsc::channel(PIECES);
        let planning = service.clone();
        let (reader, extract) = tokio::task::spawn_blocking(move || plan(&planning, &ledger, from, to))
            .await
            .unwrap_or_else(|error| Err(internal("an export", &error)))?;
        let count = extract.to - extract.from;
        // A thread of its own: an export lasts as long as its reader likes.
        std::thread::Builder::new()
            .name("export".into())
            .spawn(move || {
                let _permit = permit;
                if let Err(error) = write(&reader, extract, &sender) {
                    tracing::warn!(%error, "an export broke off");
                    // The client must not take what it has for the whole.
                    let _ = sender.blocking_send(Err(error));
                }
            })
            .map_err(|error| internal("an export", &error))?;
        let body = Body::from_stream(stream::unfold(receiver, |mut receiver| async move {
            receiver.recv().await.map(|piece| (piece, receiver))
        }));
        let mut response = Response::new(body);
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-tar"));
        headers.insert(HeaderName::from_static("attestd-entries"), HeaderValue::from(count));
        Ok(response)
    };
    result.await.unwrap_or_else(|problem| service.refuse(problem))
}

fn parse_range(parameters: &[(String, String)]) -> Result<(u64, Option<u64>), Problem> {
    let (mut from, mut to) = (None, None);
    for (name, value) in parameters {
        let number = parse_number(value)
            .ok_or_else(|| Problem::new(Code::BadParameter, format!("`{name}` must be a number from 0")))?;
        let slot = match name.as_str() {
            "from" => &mut from,
            "to" => &mut to,
            _ => {
                let detail = format!("`{name}` is not a parameter of an export");
                return Err(Problem::new(Code::BadParameter, detail));
            }
        };
        if slot.replace(number).is_some() {
            return Err(Problem::new(Code::BadParameter, format!("`{name}` is given twice")));
        }
    }
    Ok((from.unwrap_or(0), to))
}

/// What the export will hold: its range within what is committed now, and how large its files are,
/// which a tar has to say first.
fn plan(service: &Service, ledger: &Path, from: u64, to: Option<u64>) -> Result<(Reader, Extract), Problem> {
    let reader = Reader::open(ledger)?;
    let steps = || {
        let end = from.min(reader.count()?);
        service.index.steps(Sequence(end)).map_err(Problem::from)
    };
    let governor = service.governor();
    let keys = &governor.standing().keys;
    let extract = Extract::plan(&reader, &service.origin, keys, from, to, steps);
    let extract = extract.map_err(|unplanned| match unplanned {
        Unplanned::NoCheckpoint => Problem::new(
            Code::CheckpointPending,
            "there is no checkpoint yet that covers what the bundle needs",
        ),
        Unplanned::ContextTooLarge => Problem::new(
            Code::BadParameter,
            "what this range needs from before it is too large: let it begin earlier, or at 0",
        ),
        Unplanned::Store(error) => error.into(),
        Unplanned::Steps(problem) => problem,
    })?;
    Ok((reader, extract))
}

fn write(reader: &Reader, extract: Extract, sender: &mpsc::Sender<io::Result<Bytes>>) -> io::Result<()> {
    let unreadable = |error: &dyn std::fmt::Display| io::Error::other(error.to_string());
    let out = Pieces { sender, piece: Vec::with_capacity(PIECE_BYTES) };
    let (from, to) = (Sequence(extract.from), Sequence(extract.to));
    let mut tar = TarWriter::new(out, extract.contents, extract.sizes)?;
    for line in lines(reader, from, to) {
        tar.append(&line.map_err(|error| unreadable(&error))?)?;
    }
    let mut outcome = Ok(());
    let read = reader.notes_of(from, to, |note| {
        outcome = std::mem::replace(&mut outcome, Ok(())).and_then(|()| tar.append_checkpoint(&note));
        Ok(())
    });
    read.map_err(|error| unreadable(&error))?;
    outcome?;
    tar.finish()?.flush()
}

/// Hands what is written to the connection, piece by piece.
struct Pieces<'a> {
    sender: &'a mpsc::Sender<io::Result<Bytes>>,
    piece: Vec<u8>,
}

impl Write for Pieces<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.piece.extend_from_slice(bytes);
        if self.piece.len() >= PIECE_BYTES {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let piece = std::mem::replace(&mut self.piece, Vec::with_capacity(PIECE_BYTES));
        if piece.is_empty() {
            return Ok(());
        }
        self.sender.blocking_send(Ok(piece.into())).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// `POST /v1/verify`.
pub(super) async fn verify(
    State(service): State<Arc<Service>>,
    Extension(peer): Extension<Arc<Peer>>,
) -> Response {
    if let Err(problem) = service.check_read(&peer) {
        return service.refuse(problem);
    }
    let verifying = service.clone();
    let verdict = tokio::task::spawn_blocking(move || {
        let busy = || Problem::new(Code::Busy, "the ledger is being verified already");
        let _one = verifying.verifying.try_lock().map_err(|_| busy())?;
        let reader = Reader::open(&verifying.ledger)?;
        let count = reader.count()?;
        let keys = verifying.governor().standing().keys.clone();
        let first =
            keys.terms().first().ok_or_else(|| Problem::new(Code::Internal, "the ledger has no key"))?;
        evidence::verify(&reader, &verifying.origin, &first.key, count, |_| {})
            .map_err(|error| internal("a verification", &error))
    });
    let verdict = verdict.await.unwrap_or_else(|error| Err(internal("a verification", &error)));
    match verdict.map(|verdict| serde_json::to_string(&verdict)) {
        Ok(Ok(json)) => json_answer(json),
        Ok(Err(error)) => service.refuse(internal("a verification", &error)),
        Err(problem) => service.refuse(problem),
    }
}
