//! Reading: entries, lists, keys, figures, health. Nothing here makes the token sign, except the
//! measurement, which only root and the daemon's own user may ask for.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use axum::extract::rejection::PathRejection;
use axum::extract::{Extension, Path, Query, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::append::{leased, take_memory};
use super::problem::Problem;
use super::service::{Service, internal};
use crate::anchor::Gauge;
use crate::caller::Peer;
use crate::governance::governor::Governor;
use crate::index::Filter;
use crate::ledger::canonical;
use crate::ledger::code::Code;
use crate::ledger::entry::{EntryId, EventCategory, EventType, ExecutionStatus, MAX_SEVERITY, Sequence};
use crate::ledger::json::quoted;
use crate::ledger::timestamp::Timestamp;
use crate::sequencer::Refused;
use crate::store::{Reader, mode_of};

pub(super) type Parameters = Query<Vec<(String, String)>>;

/// Entries of a list that does not say how many.
const DEFAULT_LIMIT: usize = 100;
/// The most entries of one page.
const MAX_LIMIT: usize = 1_000;
/// A page ends with the entry that brings it to this many bytes.
const PAGE_BYTES: usize = 1 << 20;
/// By how much that entry may overshoot, as entries are by default.
const MAX_OVERSHOOT: usize = 64 << 10;
/// How long a measurement may take.
const MAX_BENCH_SECONDS: u64 = 60;

pub(super) fn json_answer(body: impl Into<axum::body::Body>) -> Response {
    let mut response = Response::new(body.into());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// `GET /v1/entries/{reference}`.
pub(super) async fn entry(
    State(service): State<Arc<Service>>,
    Extension(peer): Extension<Arc<Peer>>,
    reference: Result<Path<String>, PathRejection>,
) -> Response {
    let result = async {
        service.check_read(&peer)?;
        // What is not UTF-8 behind its percent signs names no entry.
        let Path(reference) = reference.map_err(|_| no_reference())?;
        let viewer = peer.clone();
        let line = service
            .read(move |service, reader| {
                let line = find(service, reader, &viewer, &reference)?;
                let rules = service.governor();
                shown(service, &viewer, &rules, line)
            })
            .await?;
        // One at a time is read by each of a few threads; what waits to be sent is counted.
        let lease = take_memory(&service, peer.uid, line.len()).await?;
        Ok(leased(StatusCode::OK, line, lease))
    };
    let result = result.await;
    service.answer(result)
}

/// The line that `reference` names. Who may not see an entry does not learn which id it has.
pub(super) fn find(
    service: &Service,
    reader: &Reader,
    peer: &Peer,
    reference: &str,
) -> Result<Vec<u8>, Problem> {
    let not_found = || Problem::new(Code::NotFound, format!("there is no entry {reference}"));
    if let Some(id) = EntryId::parse(reference) {
        let sequence = service.index.find(id)?.ok_or_else(not_found)?;
        let line = reader.line(sequence)?.ok_or_else(not_found)?;
        // The index is a copy; the entry itself says whether it is the one.
        let entry = line.check()?.entry;
        let is_it = entry.entry_id == id && service.discloses(peer, &service.governor(), &entry)?;
        return if is_it { Ok(line.bytes) } else { Err(not_found()) };
    }
    let sequence = parse_number(reference).ok_or_else(no_reference)?;
    let line = reader.line(Sequence(sequence))?.ok_or_else(not_found)?;
    line.check()?;
    Ok(line.bytes)
}

/// What `peer` may see of a line: all of it, or that there is an entry, and of what kind. Any other
/// hash, or the id, would let a small payload be guessed.
fn shown(service: &Service, peer: &Peer, governor: &Governor, line: Vec<u8>) -> Result<Vec<u8>, Problem> {
    if governor.standing().rules.is_default() {
        return Ok(line);
    }
    let decoded = canonical::decode(&line).map_err(|fault| internal("reading an entry", &fault))?;
    let entry = decoded.entry;
    if service.discloses(peer, governor, &entry)? {
        return Ok(line);
    }
    Ok(format!(
        r#"{{"entry_hash":"{}","event_category":"{}","event_type":"{}","sequence_number":{},"timestamp":"{}"}}"#,
        entry.entry_hash, entry.event_category, entry.event_type, entry.sequence_number, entry.timestamp
    )
    .into_bytes())
}

pub(super) fn no_reference() -> Problem {
    Problem::new(Code::BadParameter, "an entry is named by its sequence number or by its lower-case UUID")
}

/// A decimal number that a sequence number can be, in its one spelling.
pub(super) fn parse_number(text: &str) -> Option<u64> {
    let canonical = text == "0" || !text.starts_with('0');
    let digits = !text.is_empty() && text.len() <= 16 && text.bytes().all(|b| b.is_ascii_digit());
    if canonical && digits { text.parse().ok() } else { None }
}

/// `GET /v1/entries`.
pub(super) async fn list(
    State(service): State<Arc<Service>>,
    Extension(peer): Extension<Arc<Peer>>,
    Query(parameters): Parameters,
) -> Response {
    let result = async {
        service.check_read(&peer)?;
        let filter = parse_filter(&parameters)?;
        let mut lease = take_memory(&service, peer.uid, PAGE_BYTES + MAX_OVERSHOOT).await?;
        let viewer = peer.clone();
        let page = service.read(move |service, reader| page(service, reader, &viewer, &filter)).await?;
        lease.shrink((PAGE_BYTES + MAX_OVERSHOOT).saturating_sub(page.len()));
        Ok(leased(StatusCode::OK, page, lease))
    };
    let result = result.await;
    service.answer(result)
}

fn page(service: &Service, reader: &Reader, peer: &Peer, filter: &Filter) -> Result<Vec<u8>, Problem> {
    let governor = service.governor();
    let committed = service.sequencer.gauges().committed.load(Ordering::Acquire);
    let found = service.index.list(filter, committed)?;
    let mut out = b"{\"entries\":[".to_vec();
    let mut next = found.next;
    let mut first = true;
    for (index, sequence) in found.sequences.iter().enumerate() {
        let Some(line) = reader.line(*sequence)? else { continue };
        // The index is a copy, not evidence: what it names is held against the signed bytes.
        if !filter.matches(&line.check()?.entry) {
            tracing::error!(%sequence, "the index disagrees with the ledger; delete it and restart");
            continue;
        }
        let shown = shown(service, peer, &governor, line.bytes)?;
        // By what it is found it would be known.
        if filter.looks_inside() && !shown.starts_with(b"{\"action_hash\"") {
            continue;
        }
        if !first {
            out.push(b',');
        }
        first = false;
        out.extend_from_slice(&shown);
        if out.len() >= PAGE_BYTES {
            next = found.sequences.get(index + 1).copied().or(next);
            break;
        }
    }
    out.extend_from_slice(b"],\"next\":");
    match next {
        Some(sequence) => out.extend_from_slice(format!("\"{sequence}\"").as_bytes()),
        None => out.extend_from_slice(b"null"),
    }
    out.push(b'}');
    Ok(out)
}

fn parse_filter(parameters: &[(String, String)]) -> Result<Filter, Problem> {
    let mut filter = Filter { limit: DEFAULT_LIMIT, ..Filter::default() };
    let mut cursor = None;
    let mut seen: Vec<&str> = Vec::new();
    for (name, value) in parameters {
        if seen.contains(&name.as_str()) {
            return Err(bad(name, "is given twice"));
        }
        seen.push(name);
        let number = || parse_number(value).ok_or_else(|| bad(name, "must be a number from 0"));
        let severity = || {
            let severity = value.parse().ok().filter(|severity| *severity <= MAX_SEVERITY);
            severity.ok_or_else(|| bad(name, "must be 0 to 10"))
        };
        let time = || {
            parse_time(value)
                .ok_or_else(|| bad(name, "must be an RFC 3339 time in UTC, such as 2026-01-31T12:00:00Z"))
        };
        match name.as_str() {
            "event_type" => filter.event_type = Some(word(name, value, EventType::parse)?),
            "event_category" => filter.event_category = Some(word(name, value, EventCategory::parse)?),
            "execution_status" => filter.execution_status = Some(word(name, value, ExecutionStatus::parse)?),
            "severity" => filter.severity = Some(severity()?),
            "severity_min" => filter.severity_min = Some(severity()?),
            "actor_id" => filter.actor_id = Some(value.clone()),
            "action_type" => filter.action_type = Some(value.clone()),
            "action_type_prefix" => filter.action_type_prefix = Some(value.clone()),
            "since" => filter.since = Some(time()?),
            "until" => filter.until = Some(time()?),
            "from" => filter.from = number()?,
            "to" => filter.to = Some(number()?),
            "cursor" => {
                cursor = Some(number().map_err(|_| bad(name, "must be a `next` of an earlier page"))?);
            }
            "limit" => {
                let limit = value.parse().ok().filter(|limit| (1..=MAX_LIMIT).contains(limit));
                filter.limit = limit.ok_or_else(|| bad(name, "must be 1 to 1000"))?;
            }
            "order" => match value.as_str() {
                "asc" => filter.ascending = true,
                "desc" => filter.ascending = false,
                _ => return Err(bad(name, "must be asc or desc")),
            },
            _ => return Err(bad(name, "is not a parameter of this list")),
        }
    }
    // A page begins where the one before it stopped looking.
    match cursor {
        Some(cursor) if filter.ascending => filter.from = filter.from.max(cursor),
        Some(cursor) => filter.to = Some(filter.to.map_or(cursor + 1, |to| to.min(cursor + 1))),
        None => {}
    }
    Ok(filter)
}

fn bad(name: &str, what: &str) -> Problem {
    Problem::new(Code::BadParameter, format!("`{name}` {what}"))
}

fn word<T>(name: &str, value: &str, parse: impl Fn(&str) -> Option<T>) -> Result<T, Problem> {
    parse(value).ok_or_else(|| bad(name, &format!("cannot be `{value}`")))
}

fn parse_time(text: &str) -> Option<Timestamp> {
    let instant: jiff::Timestamp = text.parse().ok()?;
    // Ledger time has microseconds; the first of them that is not before the time asked for.
    let below = i64::from(instant.subsec_nanosecond().rem_euclid(1_000) != 0);
    Some(Timestamp::from_micros(instant.as_microsecond() + below))
}

/// `GET /v1/stats`.
pub(super) async fn stats(
    State(service): State<Arc<Service>>,
    Extension(peer): Extension<Arc<Peer>>,
) -> Response {
    if let Err(problem) = service.check_read(&peer) {
        return service.refuse(problem);
    }
    let gauges = service.sequencer.gauges();
    let head = gauges.head();
    let governor = gauges.governor();
    let key = governor.standing().keys.newest().unwrap_or(&service.key).id();
    let ready = readiness(&service).is_ok();
    let anchor = |anchor: &Gauge| {
        let entries = anchor.entries.load(Ordering::Relaxed);
        let lag = head.next.0.saturating_sub(entries);
        format!(r#"{{"kind":"{}","entries":{entries},"lag":{lag}}}"#, anchor.kind)
    };
    let anchors: Vec<String> = service.anchors.iter().map(anchor).collect();
    json_answer(format!(
        r#"{{"origin":{},"version":{},"entries":{},"head":{{"sequence_number":{},"entry_hash":"{}","timestamp":"{}"}},"signature_mode":"{}","key_id":"{}","started_at":"{}","uptime_seconds":{},"queue":{{"entries":{},"bytes":{}}},"connections":{},"memory_bytes":{},"token":{},"anchors":[{}],"ready":{ready},"appended_since_start":{},"refused_since_start":{}}}"#,
        quoted(&service.origin),
        quoted(crate::VERSION),
        head.next,
        head.next.0.saturating_sub(1),
        head.hash,
        head.timestamp,
        mode_of(gauges.algorithm()),
        key,
        service.started_at,
        service.started.elapsed().as_secs(),
        gauges.queued.load(Ordering::Relaxed),
        service.budget.used(),
        service.connections.current(),
        resident_bytes(),
        service.keeper.identity().as_ref().unwrap_or(&service.token).to_json(),
        anchors.join(","),
        gauges.appended.load(Ordering::Relaxed),
        service.refused.total(),
    ))
}

/// Resident memory, from the kernel; 0 where it does not say.
pub(super) fn resident_bytes() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|statm| statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()));
    pages.unwrap_or(0) * rustix::param::page_size() as u64
}

/// `GET /livez`.
pub(super) async fn livez() -> Response {
    json_answer(r#"{"status":"ok"}"#)
}

/// `GET /readyz`.
pub(super) async fn readyz(State(service): State<Arc<Service>>) -> Response {
    match readiness(&service) {
        Ok(()) => json_answer(r#"{"status":"ready"}"#),
        Err(problem) => problem.into_response(),
    }
}

pub(super) fn readiness(service: &Service) -> Result<(), Problem> {
    let gauges = service.sequencer.gauges();
    if let Some(code) = gauges.fault_code() {
        return Err(stopped(code));
    }
    if let Some(why) = gauges.token_away() {
        return Err(Problem::new(Code::TokenUnavailable, format!("the token is away: {why}")));
    }
    if crate::sequencer::free_bytes(&service.ledger) < service.min_free_bytes {
        return Err(Refused::StorageFull.into());
    }
    if gauges.clock.jumped().is_some() {
        return Err(Refused::ClockJumped.into());
    }
    service.sequencer.room().map_err(Problem::from)
}

/// Why nothing is taken any more. Anyone may ask, so what exactly it was is in the log only.
fn stopped(code: Code) -> Problem {
    let why = match code {
        Code::TokenUnavailable => "the token can't sign",
        Code::StorageFull => "the ledger's disk is full",
        _ => "something failed",
    };
    Problem::new(code, format!("the daemon is stopping because {why}; its log says more"))
}

/// `POST /v1/bench`.
pub(super) async fn bench(
    State(service): State<Arc<Service>>,
    Extension(peer): Extension<Arc<Peer>>,
    Query(parameters): Parameters,
) -> Response {
    let result = async {
        service.check_administer(&peer)?;
        let mut seconds = 2;
        for (name, value) in &parameters {
            let known = (name == "seconds").then(|| value.parse().ok()).flatten();
            seconds = known
                .filter(|seconds| (1..=MAX_BENCH_SECONDS).contains(seconds))
                .ok_or_else(|| bad(name, "must be `seconds`, 1 to 60"))?;
        }
        let measuring = service.clone();
        tokio::task::spawn_blocking(move || measure(&measuring, Duration::from_secs(seconds)))
            .await
            .unwrap_or_else(|error| Err(internal("a measurement", &error)))
    };
    let result = result.await;
    service.answer(result.map(json_answer))
}

fn measure(service: &Service, each: Duration) -> Result<String, Problem> {
    let busy =
        || Problem::new(Code::Busy, "entries are waiting or another measurement runs; try when it is quiet");
    let _one = service.measuring.try_lock().map_err(|_| busy())?;
    if service.sequencer.gauges().queued.load(Ordering::Acquire) > 0 {
        return Err(busy());
    }
    let pool = service.keeper.pool().ok_or(Refused::TokenAway)?;
    let sessions = pool.sessions();
    let sign = |sessions: usize| {
        pool.bench(sessions, each, &service.origin)
            .map_err(|error| internal("the token's measurement", &error))
    };
    let (one, all) = (sign(1)?, sign(sessions)?);
    let (syncs, sync_p50) =
        measure_syncs(service, each).map_err(|error| internal("the disk's measurement", &error))?;
    Ok(format!(
        r#"{{"sign_1_per_second":{:.1},"sign_n_per_second":{:.1},"sessions":{sessions},"fdatasync_per_second":{syncs:.1},"sign_p50_us":{:.1},"fdatasync_p50_us":{sync_p50:.1}}}"#,
        one.per_second, all.per_second, one.p50_us
    ))
}

/// Appends pages to a file beside the ledger and syncs after each, as the WAL does.
fn measure_syncs(service: &Service, duration: Duration) -> std::io::Result<(f64, f64)> {
    let path = service.ledger.with_added_extension("bench");
    let file = File::options().write(true).create(true).truncate(true).open(&path)?;
    std::fs::remove_file(&path)?;
    let page = [0x5A; 8_192];
    let mut micros = Vec::new();
    let start = Instant::now();
    while start.elapsed() < duration {
        let before = Instant::now();
        // Over the same few places, so that the file does not grow without end.
        file.write_all_at(&page, (micros.len() as u64 % 1_024) * page.len() as u64)?;
        file.sync_data()?;
        micros.push(before.elapsed().as_secs_f64() * 1e6);
    }
    let rate = micros.len() as f64 / start.elapsed().as_secs_f64();
    micros.sort_by(f64::total_cmp);
    Ok((rate, micros[micros.len() / 2]))
}

/// `GET /openapi.json`.
pub(super) async fn openapi() -> Response {
    json_answer(include_str!("openapi.json"))
}

/// Any other path.
pub(super) async fn not_found(State(service): State<Arc<Service>>) -> Response {
    service.refuse(Problem::new(Code::NotFound, "there is no such path; see GET /openapi.json"))
}

/// A path of ours with a method that it does not take.
pub(super) async fn method_not_allowed(State(service): State<Arc<Service>>) -> Response {
    service.refuse(Problem::new(
        Code::MethodNotAllowed,
        "this path does not take this method; see GET /openapi.json",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(query: &[(&str, &str)]) -> Result<Filter, Problem> {
        let parameters: Vec<_> = query.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        parse_filter(&parameters)
    }

    #[test]
    fn parameters_are_strict() {
        for bad in [
            [("event_type", "action")],
            [("severity", "11")],
            [("severity", "-1")],
            [("limit", "0")],
            [("limit", "1001")],
            [("order", "up")],
            [("from", "01")],
            [("from", "+1")],
            [("from", "")],
            [("to", "99999999999999999")],
            [("since", "yesterday")],
            [("cursor", "x")],
            [("colour", "red")],
        ] {
            assert_eq!(parse(&bad).expect_err("refused").code, Code::BadParameter, "{bad:?}");
        }
        assert!(parse(&[("limit", "5"), ("limit", "6")]).is_err());
    }

    #[test]
    fn a_fault_has_its_own_code_and_a_plain_sentence() {
        let said = |code| (stopped(code).status().as_u16(), stopped(code).detail);
        assert_eq!(
            [Code::TokenUnavailable, Code::StorageFull, Code::Internal].map(said),
            [(503, "the token can't sign"), (507, "the ledger's disk is full"), (500, "something failed")]
                .map(|(status, why)| (
                    status,
                    format!("the daemon is stopping because {why}; its log says more")
                ))
        );
    }

    #[test]
    fn a_cursor_goes_on_in_the_order_asked_for() {
        let filter = parse(&[("cursor", "7"), ("order", "asc"), ("from", "3")]).expect("valid");
        assert_eq!((filter.from, filter.to), (7, None));
        let filter = parse(&[("cursor", "7"), ("to", "20")]).expect("valid");
        assert_eq!((filter.from, filter.to), (0, Some(8)));
    }
}
