//! `GET /metrics`: the daemon's figures for Prometheus, in its text format 0.0.4.
//!
//! ```text
//! # HELP attestd_token_up Whether the token can sign, 1 or 0.
//! # TYPE attestd_token_up gauge
//! attestd_token_up 1
//! ```
//!
//! As for `/readyz` who can connect may ask: nothing in here is of an entry or of a caller. Everything is
//! read from memory, save the disk's room.

use std::fmt::{Display, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::Response;

use super::problem::Problem;
use super::read::{readiness, resident_bytes};
use super::service::Service;
use crate::ledger::code::Code;
use crate::sequencer::{Timing, free_bytes};

const MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
const MAX_DETAIL_CHARS: usize = 256;

/// How often each code was the answer.
pub struct Refusals([AtomicU64; Code::ALL.len()]);

impl Default for Refusals {
    fn default() -> Self {
        Refusals([const { AtomicU64::new(0) }; Code::ALL.len()])
    }
}

impl Refusals {
    pub(super) fn count(&self, code: Code) {
        self.0[code as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// All of them.
    pub(super) fn total(&self) -> u64 {
        self.0.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }

    fn counted(&self) -> impl Iterator<Item = (Code, u64)> {
        let counts = Code::ALL.iter().map(|code| (*code, self.0[*code as usize].load(Ordering::Relaxed)));
        counts.filter(|(_, count)| *count > 0)
    }
}

/// `GET /metrics`.
pub(super) async fn metrics(State(service): State<Arc<Service>>) -> Response {
    let mut response = Response::new(page(&service).into());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
    response
}

fn page(service: &Service) -> String {
    let gauges = service.sequencer.gauges();
    let head = gauges.head();
    let mut page = Page::default();
    page.family("attestd_build_info", "gauge", "Always 1; the label is the daemon's version.");
    page.labelled("attestd_build_info", "version", crate::VERSION, 1);
    let started = service.started_at.as_micros() as f64 / 1e6;
    page.gauge("attestd_start_time_seconds", "When the daemon started, by the wall clock.", started);
    let ready = readiness(service);
    page.gauge("attestd_ready", "Whether an entry would be taken now, 1 or 0.", u8::from(ready.is_ok()));
    page.family("attestd_not_ready", "gauge", "Why not, in words, where that is so; always 1.");
    if let Err(Problem { code, detail, .. }) = ready {
        page.line(format_args!(
            "attestd_not_ready{{code=\"{}\",detail=\"{}\"}} 1",
            code.as_str(),
            escaped(&detail)
        ));
    }

    page.gauge("attestd_ledger_entries", "Entries in the ledger.", head.next);
    page.counter(
        "attestd_entries_committed_total",
        "Entries that became durable with their signature since the start, the daemon's own included.",
        gauges.appended.load(Ordering::Relaxed),
    );
    page.family(
        "attestd_refused_total",
        "counter",
        "Requests and lines of batches that were refused since the start, by code; docs/format.md says what each is.",
    );
    for (code, count) in service.refused.counted() {
        page.labelled("attestd_refused_total", "code", code.as_str(), count);
    }
    page.counter(
        "attestd_violations_total",
        "Attempts since the start that broke an invariant, those that were folded into one entry included.",
        service.violations.count(),
    );
    page.gauge(
        "attestd_proposals_open",
        "Proposals that wait for approvals or for their seal.",
        gauges.governor().open_proposals().count(),
    );
    if let Some(entries) = gauges.noted() {
        page.gauge("attestd_checkpoint_entries", "Entries under the newest signed checkpoint.", entries);
    }

    page.gauge(
        "attestd_queue_entries",
        "Entries taken and not yet answered.",
        gauges.queued.load(Ordering::Relaxed),
    );
    page.gauge(
        "attestd_memory_used_bytes",
        "Of the memory budget for requests and answers, what is in use.",
        service.budget.used(),
    );
    page.gauge(
        "attestd_memory_limit_bytes",
        "The memory budget for requests and answers.",
        service.budget.total(),
    );
    page.gauge(
        "attestd_resident_memory_bytes",
        "Memory of the process, as the kernel counts it.",
        resident_bytes(),
    );
    page.gauge("attestd_connections", "Connections that are being served.", service.connections.current());
    page.counter(
        "attestd_connections_refused_total",
        "Connections that were one too many since the start.",
        service.connections.refused(),
    );

    page.summary(
        "attestd_sign_seconds",
        "From handing what a commit needs signed to the token until all of it is signed.",
        &gauges.signing,
    );
    page.summary(
        "attestd_commit_seconds",
        "Of a durable transaction, which commits what was signed and reserves what comes next.",
        &gauges.writing,
    );

    let away = gauges.away_for();
    page.gauge("attestd_token_up", "Whether the token can sign, 1 or 0.", u8::from(away.is_none()));
    page.gauge(
        "attestd_token_away_seconds",
        "For how long the token has been away; 0 while it is there.",
        away.unwrap_or_default().as_secs_f64(),
    );
    page.counter(
        "attestd_token_losses_total",
        "How often the token went away since the start.",
        gauges.losses.load(Ordering::Relaxed),
    );

    if !service.anchors.is_empty() {
        page.family(
            "attestd_anchor_lag_entries",
            "gauge",
            "Entries that came after what the anchor knows of: if they were lost, it would not be seen.",
        );
        for anchor in service.anchors.iter() {
            let lag = head.next.0.saturating_sub(anchor.entries.load(Ordering::Relaxed));
            page.labelled("attestd_anchor_lag_entries", "kind", anchor.kind, lag);
        }
    }
    page.gauge("attestd_disk_free_bytes", "Room on the ledger's disk.", free_bytes(&service.ledger));
    page.gauge(
        "attestd_disk_min_free_bytes",
        "Under this much room entries are refused.",
        service.min_free_bytes,
    );
    page.gauge(
        "attestd_clock_jumped",
        "Whether the wall clock jumped forward and no operator has confirmed it, 1 or 0; entries are refused then.",
        u8::from(gauges.clock.jumped().is_some()),
    );
    page.0
}

/// `text` as the value of a label. What a module says may be long, and each text is a series of its own.
fn escaped(text: &str) -> String {
    let mut out = String::new();
    for character in text.chars().take(MAX_DETAIL_CHARS) {
        match character {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            character => out.push(character),
        }
    }
    out
}

#[derive(Default)]
struct Page(String);

impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        self.line(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}"));
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.family(name, "gauge", help);
        self.line(format_args!("{name} {value}"));
    }

    fn counter(&mut self, name: &str, help: &str, value: impl Display) {
        self.family(name, "counter", help);
        self.line(format_args!("{name} {value}"));
    }

    /// Without quantiles: sum and count give the mean over any time, at no cost.
    fn summary(&mut self, name: &str, help: &str, timing: &Timing) {
        let (count, total) = timing.read();
        self.family(name, "summary", help);
        self.line(format_args!("{name}_sum {}\n{name}_count {count}", Duration::as_secs_f64(&total)));
    }

    /// `value` is one of ours, without anything that would have to be escaped.
    fn labelled(&mut self, name: &str, label: &str, value: &str, sample: impl Display) {
        self.line(format_args!("{name}{{{label}=\"{value}\"}} {sample}"));
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "{line}");
    }
}
