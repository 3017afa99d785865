//! The tree on the socket: checkpoints, receipts, consistency, and tiles for whoever publishes them.
//!
//! What is served here was signed before: no read makes the token sign.

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Extension, Path, Query, State};
use axum::http::{HeaderValue, header};
use axum::response::Response;

use super::problem::Problem;
use super::read::{Parameters, find, json_answer, no_reference, parse_number};
use super::service::{Service, internal};
use crate::caller::Peer;
use crate::ledger::canonical;
use crate::ledger::checkpoint::Note;
use crate::ledger::code::Code;
use crate::ledger::entry::Sequence;
use crate::ledger::merkle::{NodeHash, TreeSize};
use crate::ledger::proof::Receipt;
use crate::ledger::tile::Tile;
use crate::store::Reader;

/// `GET /v1/checkpoint`.
pub(super) async fn checkpoint(
    State(service): State<Arc<Service>>,
    Extension(peer): Extension<Arc<Peer>>,
) -> Response {
    let result = async {
        service.check_read(&peer)?;
        service.read(|_, reader| newest(reader)).await
    };
    let result = result.await;
    service.answer(result.map(|note| with_type(note.as_str().to_owned(), TEXT)))
}

/// `GET /v1/entries/{reference}/proof`.
pub(super) async fn proof(
    State(service): State<Arc<Service>>,
    Extension(peer): Extension<Arc<Peer>>,
    reference: Result<Path<String>, PathRejection>,
) -> Response {
    let result = async {
        service.check_read(&peer)?;
        let Path(reference) = reference.map_err(|_| no_reference())?;
        let viewer = peer.clone();
        let prove = move |service: &Service, reader: &Reader| {
            let line = find(service, reader, &viewer, &reference)?;
            let decoded = canonical::decode(&line).map_err(|fault| internal("reading an entry", &fault))?;
            receipt(reader, decoded.entry.sequence_number)
        };
        service.read(prove).await
    };
    let result = result.await;
    service.answer(result.map(|receipt| with_type(receipt.to_string(), TEXT)))
}

/// The receipt for an entry, under the smallest checkpoint that has it: in mode `commit` the one
/// that its signature is of.
pub(super) fn receipt(reader: &Reader, sequence: Sequence) -> Result<Receipt, Problem> {
    let note = reader.note_over(sequence)?.ok_or_else(|| {
        Problem::new(Code::CheckpointPending, format!("no checkpoint has entry {sequence} in it yet"))
    })?;
    let size = note.checkpoint().root().size;
    let path =
        reader.tree(size.leaves())?.inclusion(sequence.0, size).map_err(crate::store::StoreError::from)?;
    Receipt::new(sequence, path, note).map_err(|fault| internal("making a receipt", &fault))
}

/// `GET /v1/consistency`.
pub(super) async fn consistency(
    State(service): State<Arc<Service>>,
    Extension(peer): Extension<Arc<Peer>>,
    Query(parameters): Parameters,
) -> Response {
    let result = async {
        service.check_read(&peer)?;
        let (from, to) = parse_sizes(&parameters)?;
        service.read(move |_, reader| consistent(reader, from, to)).await
    };
    let result = result.await;
    service.answer(result.map(json_answer))
}

fn parse_sizes(parameters: &[(String, String)]) -> Result<(TreeSize, Option<TreeSize>), Problem> {
    let bad = |detail: String| Problem::new(Code::BadParameter, detail);
    let (mut from, mut to) = (None, None);
    for (name, value) in parameters {
        let size = parse_number(value)
            .and_then(TreeSize::new)
            .ok_or_else(|| bad(format!("`{name}` must be a tree size, a number from 0")))?;
        let slot = match name.as_str() {
            "from" => &mut from,
            "to" => &mut to,
            _ => return Err(bad(format!("`{name}` is not a parameter of a consistency proof"))),
        };
        if slot.replace(size).is_some() {
            return Err(bad(format!("`{name}` is given twice")));
        }
    }
    let from = from.ok_or_else(|| bad("`from` is missing: the smaller tree size".into()))?;
    Ok((from, to))
}

fn consistent(reader: &Reader, from: TreeSize, to: Option<TreeSize>) -> Result<String, Problem> {
    let to = match to {
        Some(to) => to,
        None => newest(reader)?.checkpoint().root().size,
    };
    let count = reader.count()?;
    if from > to || to.leaves() > count {
        let detail = format!("`from` must not be over `to`, nor `to` over the {count} entries there are");
        return Err(Problem::new(Code::BadParameter, detail));
    }
    let path = reader.tree(to.leaves())?.consistency(from, to).map_err(crate::store::StoreError::from)?;
    let hashes: Vec<String> = path.iter().map(|NodeHash(hash)| format!("\"{hash}\"")).collect();
    Ok(format!(r#"{{"from":{from},"to":{to},"consistency":[{}]}}"#, hashes.join(",")))
}

/// `GET /v1/tile/{path}`: the tiles of `c2sp.org/tlog-tiles`, and its bundles of entries, which
/// hold the entries' hashes and nothing of their content.
pub(super) async fn tile(
    State(service): State<Arc<Service>>,
    Extension(peer): Extension<Arc<Peer>>,
    path: Result<Path<String>, PathRejection>,
) -> Response {
    let result = async {
        service.check_read(&peer)?;
        let Path(path) = path.map_err(|_| no_tile())?;
        service.read(move |_, reader| tile_bytes(reader, &format!("tile/{path}"))).await
    };
    let result = result.await;
    service.answer(result.map(|bytes| with_type(bytes, "application/octet-stream")))
}

/// The content of the file that a published tree has at `path`; not found unless what is committed
/// fills it.
pub(crate) fn tile_bytes(reader: &Reader, path: &str) -> Result<Vec<u8>, Problem> {
    let count = reader.count()?;
    let size = TreeSize::new(count).unwrap_or(TreeSize::MAX);
    let there = |tile: &Tile| {
        Tile::at(tile.level(), tile.index(), size).is_some_and(|now| tile.width() <= now.width())
    };
    if let Some(tile) = Tile::from_path(path).filter(there) {
        let mut bytes = reader.tile(tile)?;
        bytes.truncate(usize::from(tile.width()) * NodeHash::BYTES);
        return Ok(bytes);
    }
    let tile = Tile::from_entries_path(path).filter(there).ok_or_else(no_tile)?;
    let first = tile.index() << Tile::HEIGHT;
    let hashes = reader.hashes(Sequence(first), Sequence(first + u64::from(tile.width())))?;
    Ok(hashes.iter().flat_map(|hash| [&[0, NodeHash::BYTES as u8], &hash.0[..]].concat()).collect())
}

fn no_tile() -> Problem {
    Problem::new(Code::NotFound, "the tree has no such tile, or not as wide a one")
}

fn newest(reader: &Reader) -> Result<Note, Problem> {
    let none = || Problem::new(Code::CheckpointPending, "there is no checkpoint yet");
    reader.newest_note()?.ok_or_else(none)
}

const TEXT: &str = "text/plain; charset=utf-8";

fn with_type(body: impl Into<axum::body::Body>, media_type: &'static str) -> Response {
    let mut response = Response::new(body.into());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    response
}
