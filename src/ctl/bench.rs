//! `attestctl bench`: how fast are this daemon, its token and its disk?
//!
//! The load shares its cores with the daemon and the token, so it must cost little: one thread,
//! requests built once and shared, and answers that are counted, not parsed.

use std::collections::VecDeque;
use std::io::{self, IsTerminal as _};
use std::path::Path;
use std::pin::pin;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::cli::{Bench, Mode};
use super::histogram::Histogram;
use super::text::{Column, Style, Table, grouped, latency, printable_message};
use super::{Failure, Outcome, connect, print, print_line};
use crate::client::{Answer, Client, ClientError, RawRates, decode};

/// The size that a sealed entry of the bench should have in canonical form, the one that
/// docs/performance.md speaks of. An entry whose peer and environment are long comes out larger
/// without any padding; the report gives the size that it had.
const ENTRY_BYTES: usize = 1_570;

/// The raw figures settle within seconds; longer would only keep the token from its work.
const MAX_RAW_SECONDS: u64 = 5;

/// How long a single client rests after a 503 before it tries again.
const REST: Duration = Duration::from_millis(20);

pub(super) async fn run(socket: &Path, args: &Bench) -> Result<Outcome, Failure> {
    let doing = "bench";
    let modes =
        if args.mode.is_empty() { vec![Mode::Alone, Mode::Single, Mode::Batch] } else { args.mode.clone() };
    let mut client = connect(socket, doing).await?;

    tell("measuring the token and the disk");
    let raw = match client.bench(args.seconds.min(MAX_RAW_SECONDS)).await {
        Ok(answer) => Ok(decode::<RawRates>(&answer).map_err(Failure::daemon(doing))?),
        // The rest of the figures are worth having without these.
        Err(ClientError::Refused(problem)) => Err(problem.to_string()),
        Err(error) => return Err(Failure::daemon(doing)(error)),
    };
    let event = Event::sized(&mut client).await.map_err(Failure::daemon(doing))?;
    drop(client);

    let duration = Duration::from_secs(args.seconds);
    let mut phases = Vec::new();
    for mode in modes {
        let (connections, name) = match mode {
            Mode::Alone => (1, "one client alone".to_owned()),
            Mode::Single => (args.clients, format!("single appends, {} clients", args.clients)),
            Mode::Batch => (
                args.batch_connections,
                format!("batches, {} in flight over {}", args.window, args.batch_connections),
            ),
        };
        tell(&name);
        let load = match mode {
            Mode::Alone | Mode::Single => singles(socket, &event.request, connections, duration).await,
            Mode::Batch => batches(socket, &event.request, connections, args.window, duration).await,
        }
        .map_err(Failure::daemon(doing))?;
        phases.push(Phase { mode, name, connections, load });
    }

    let report = Report { event, raw, phases, seconds: args.seconds };
    if args.json {
        if let Err(why) = &report.raw {
            eprintln!("no raw figures: {}", printable_message(why));
        }
        print_line(report.json().to_string().as_bytes())?;
    } else {
        print(&report.table(Style::of_stdout()))?;
    }
    Ok(Outcome::Done)
}

fn tell(doing: &str) {
    if io::stderr().is_terminal() {
        eprintln!("{doing} …");
    }
}

/// The event that is appended over and over.
struct Event {
    request: Bytes,
    /// Exactly, in canonical form, as it was sealed once. A signature's DER varies by 4 digits.
    sealed_bytes: usize,
}

impl Event {
    /// Seals an event without padding to see how large it becomes, then one of the right size.
    async fn sized(client: &mut Client) -> Result<Self, ClientError> {
        let bare = client.append(request(0)).await?.line.len();
        let request = request(ENTRY_BYTES.saturating_sub(bare));
        let sealed_bytes = client.append(request.clone()).await?.line.len();
        Ok(Event { request, sealed_bytes })
    }
}

fn request(padding: usize) -> Bytes {
    let text = format!(
        r#"{{"event_type":"ACTION","severity":1,"actor_type":"AUTONOMOUS_AGENT","actor_id":"bench","action_type":"bench.append","action_payload":{{"note":"{}"}},"execution_status":"SUCCESS"}}"#,
        "x".repeat(padding)
    );
    text.into()
}

/// What came of a phase.
#[derive(Debug, Clone)]
struct Load {
    /// Acknowledged appends, counted within `elapsed`.
    latencies: Histogram,
    refused: u64,
    elapsed: Duration,
}

impl Load {
    fn new() -> Self {
        Load { latencies: Histogram::new(), refused: 0, elapsed: Duration::ZERO }
    }

    fn per_second(&self) -> f64 {
        if self.elapsed.is_zero() { 0.0 } else { self.latencies.count() as f64 / self.elapsed.as_secs_f64() }
    }
}

/// Each of `connections` clients appends one event at a time.
async fn singles(
    socket: &Path,
    event: &Bytes,
    connections: u32,
    duration: Duration,
) -> Result<Load, ClientError> {
    let clients = connect_all(socket, connections).await?;
    let mut tasks = JoinSet::new();
    let begun = Instant::now();
    for mut client in clients {
        let event = event.clone();
        tasks.spawn(async move {
            let mut load = Load::new();
            loop {
                let sent = Instant::now();
                if sent - begun >= duration {
                    return Ok(load);
                }
                match client.append(event.clone()).await {
                    Ok(_) => load.latencies.record(sent.elapsed(), 1),
                    Err(ClientError::Unavailable(_)) => {
                        load.refused += 1;
                        tokio::time::sleep(REST).await;
                    }
                    Err(error) => return Err(error),
                }
            }
        });
    }
    // The last appends of all clients end a little after the time is up, and count.
    let mut total = gather(tasks).await?;
    total.elapsed = begun.elapsed();
    Ok(total)
}

/// Over each connection goes one batch, with its share of `window` under way at any time.
async fn batches(
    socket: &Path,
    event: &Bytes,
    connections: u32,
    window: u32,
    duration: Duration,
) -> Result<Load, ClientError> {
    let share = (window / connections).max(1) as usize;
    // Any number of lines is a slice of this.
    let lines = Bytes::from([event, &b"\n"[..]].concat().repeat(share));
    let clients = connect_all(socket, connections).await?;
    let mut tasks = JoinSet::new();
    let begun = Instant::now();
    for client in clients {
        tasks.spawn(batch(client, lines.clone(), event.len() + 1, share, begun + duration));
    }
    let mut total = gather(tasks).await?;
    total.elapsed = duration;
    Ok(total)
}

/// Keeps `window` lines under way until `deadline`: as many as were answered are sent again.
async fn batch(
    mut client: Client,
    lines: Bytes,
    line_bytes: usize,
    window: usize,
    deadline: Instant,
) -> Result<Load, ClientError> {
    let mut load = Load::new();
    // Unbounded, and yet bounded by the window.
    let (pieces, mut sent) = mpsc::unbounded_channel();
    let mut under_way = VecDeque::from([(Instant::now(), window)]);
    // The other side lives as long as the answers do; once it is gone they end.
    let _ = pieces.send(lines.slice(..window * line_bytes));
    let mut pieces = Some(pieces);
    let mut answers = client.append_batch(stream::poll_fn(move |cx| pin!(&mut sent).poll_recv(cx))).await?;
    while let Some(first) = answers.next().await? {
        let now = Instant::now();
        let mut answered = 0;
        let mut line = Some(first);
        while let Some(answer) = line {
            let sealed = is_sealed(&answer)?;
            let sent_at = take_one(&mut under_way)
                .ok_or_else(|| ClientError::Protocol("more answers than lines".into()))?;
            // What comes in after the time is up is sealed, but not part of the measurement.
            if now < deadline && sealed {
                load.latencies.record(now - sent_at, 1);
            }
            load.refused += u64::from(!sealed);
            answered += 1;
            line = if answers.has_next() { answers.next().await? } else { None };
        }
        if now >= deadline {
            pieces = None;
        } else if let Some(pieces) = &pieces {
            under_way.push_back((now, answered));
            let _ = pieces.send(lines.slice(..answered * line_bytes));
        }
    }
    if under_way.is_empty() {
        Ok(load)
    } else {
        Err(ClientError::Protocol("the answers ended before the batch did".into()))
    }
}

/// When the oldest line under way was sent.
fn take_one(under_way: &mut VecDeque<(Instant, usize)>) -> Option<Instant> {
    let (sent, count) = under_way.front_mut()?;
    let sent = *sent;
    *count -= 1;
    if *count == 0 {
        under_way.pop_front();
    }
    Some(sent)
}

/// Tells an acknowledgement from a problem without parsing it. A refusal for good ends the bench;
/// one that would pass is counted.
fn is_sealed(answer: &[u8]) -> Result<bool, ClientError> {
    let member = &b"\"hsm_signature\":"[..];
    if answer.starts_with(b"{\"") && answer.windows(member.len()).any(|window| window == member) {
        return Ok(true);
    }
    match Answer::parse(answer)? {
        Answer::Refused(problem) if matches!(problem.status, 503 | 507) => Ok(false),
        Answer::Refused(problem) => Err(ClientError::Refused(Box::new(problem))),
        Answer::Sealed(_) => Ok(true),
    }
}

async fn connect_all(socket: &Path, connections: u32) -> Result<Vec<Client>, ClientError> {
    let mut clients = Vec::new();
    for _ in 0..connections {
        clients.push(Client::connect(socket).await?);
    }
    Ok(clients)
}

async fn gather(mut tasks: JoinSet<Result<Load, ClientError>>) -> Result<Load, ClientError> {
    let mut total = Load::new();
    while let Some(task) = tasks.join_next().await {
        let load = task.map_err(|panicked| ClientError::Io(io::Error::other(panicked)))??;
        total.latencies.merge(&load.latencies);
        total.refused += load.refused;
    }
    Ok(total)
}

struct Phase {
    mode: Mode,
    name: String,
    connections: u32,
    load: Load,
}

struct Report {
    event: Event,
    /// Or why there are none.
    raw: Result<RawRates, String>,
    phases: Vec<Phase>,
    seconds: u64,
}

impl Report {
    /// A phase beside the raw figures: throughput as a part of the raw signing rate on all
    /// sessions; of one client alone the median as a multiple of a signature and two fdatasyncs.
    fn ratio(&self, phase: &Phase) -> Option<f64> {
        let raw = self.raw.as_ref().ok()?;
        let ratio = match phase.mode {
            Mode::Alone => {
                phase.load.latencies.quantile(0.5) as f64 / (raw.sign_p50_us + 2.0 * raw.fdatasync_p50_us)
            }
            Mode::Single | Mode::Batch => phase.load.per_second() / raw.sign_n_per_second,
        };
        ratio.is_finite().then_some(ratio)
    }

    fn table(&self, style: Style) -> String {
        let mut out = format!(
            "An entry is {} bytes in canonical form, its request {}; each phase took {} s.\n\n",
            grouped(self.event.sealed_bytes as u64),
            grouped(self.event.request.len() as u64),
            self.seconds
        );
        let text = |title| Column { title, right: false, least: None };
        let number = |title| Column { title, right: true, least: None };
        let mut table = Table::new(
            vec![
                text(""),
                number("PER SECOND"),
                number("P50"),
                number("P99"),
                number("MAX"),
                number("REFUSED"),
                text("RATIO"),
            ],
            None,
        );
        let rate = |per_second: f64| grouped(per_second.round().max(0.0) as u64);
        let mut rows = Vec::new();
        if let Ok(raw) = &self.raw {
            let mut row = |name: String, per_second, p50: Option<f64>| {
                let p50 = p50.map(latency).unwrap_or_default();
                let rest = std::iter::repeat_n(String::new(), 4);
                rows.push([name, rate(per_second), p50].into_iter().chain(rest).collect());
            };
            row("raw C_Sign, 1 session".into(), raw.sign_1_per_second, Some(raw.sign_p50_us));
            row(format!("raw C_Sign, {} sessions", raw.sessions), raw.sign_n_per_second, None);
            row("raw fdatasync".into(), raw.fdatasync_per_second, Some(raw.fdatasync_p50_us));
        }
        for phase in &self.phases {
            let latencies = &phase.load.latencies;
            let of = match phase.mode {
                Mode::Alone => "× (raw sign + 2 fdatasync), p50",
                Mode::Single | Mode::Batch => "of raw C_Sign, all sessions",
            };
            rows.push(vec![
                phase.name.clone(),
                rate(phase.load.per_second()),
                latency(latencies.quantile(0.5) as f64),
                latency(latencies.quantile(0.99) as f64),
                latency(latencies.max() as f64),
                grouped(phase.load.refused),
                self.ratio(phase).map(|ratio| format!("{ratio:.2} {of}")).unwrap_or_default(),
            ]);
        }
        table.render(&rows, style, &mut out);
        if let Err(reason) = &self.raw {
            out.push_str(&format!("\nNo raw figures, and so no ratios: {}\n", printable_message(reason)));
        }
        out
    }

    fn json(&self) -> serde_json::Value {
        let raw = self.raw.as_ref().ok().map(|raw| {
            serde_json::json!({
                "sign_1_per_second": raw.sign_1_per_second,
                "sign_n_per_second": raw.sign_n_per_second,
                "sessions": raw.sessions,
                "fdatasync_per_second": raw.fdatasync_per_second,
                "sign_p50_us": raw.sign_p50_us,
                "fdatasync_p50_us": raw.fdatasync_p50_us,
            })
        });
        let phase = |mode: Mode| {
            self.phases.iter().find(|phase| phase.mode == mode).map(|phase| {
                let latencies = &phase.load.latencies;
                serde_json::json!({
                    "connections": phase.connections,
                    "appended": latencies.count(),
                    "refused": phase.load.refused,
                    "per_second": phase.load.per_second(),
                    "p50_us": latencies.quantile(0.5),
                    "p99_us": latencies.quantile(0.99),
                    "max_us": latencies.max(),
                    "ratio": self.ratio(phase),
                })
            })
        };
        serde_json::json!({
            "entry_bytes": self.event.sealed_bytes,
            "request_bytes": self.event.request.len(),
            "seconds": self.seconds,
            "raw": raw,
            "alone": phase(Mode::Alone),
            "single": phase(Mode::Single),
            "batch": phase(Mode::Batch),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(raw: Result<RawRates, String>) -> Report {
        let mut load = Load { elapsed: Duration::from_secs(2), ..Load::new() };
        load.latencies.record(Duration::from_micros(1_000), 2_000);
        let phase = |mode, name: &str| Phase { mode, name: name.into(), connections: 1, load: load.clone() };
        Report {
            event: Event { request: request(0), sealed_bytes: 1_570 },
            raw,
            phases: vec![phase(Mode::Alone, "alone"), phase(Mode::Batch, "batches")],
            seconds: 2,
        }
    }

    fn raw() -> RawRates {
        RawRates {
            sign_1_per_second: 1_000.0,
            sign_n_per_second: 2_000.0,
            sessions: 2,
            fdatasync_per_second: 2_500.0,
            sign_p50_us: 100.0,
            fdatasync_p50_us: 200.0,
        }
    }

    #[test]
    fn ratios_compare_with_the_raw_figures() {
        let report = report(Ok(raw()));
        let json = report.json();
        assert_eq!(json["alone"]["ratio"], 2.0, "1,000 µs to 100 + 2 × 200");
        assert_eq!(json["batch"]["ratio"], 0.5, "1,000 a second to 2,000");
        assert_eq!((&json["single"], &json["batch"]["p99_us"]), (&serde_json::Value::Null, &1_000.into()));
        let table = report.table(Style::plain());
        assert!(table.contains("2.00 × (raw sign + 2 fdatasync), p50"), "{table}");
        assert!(table.contains("raw C_Sign, 2 sessions       2,000"), "{table}");
    }

    #[test]
    fn without_raw_figures_there_are_no_ratios() {
        let report = report(Err("only root may".into()));
        assert_eq!(report.json()["batch"]["ratio"], serde_json::Value::Null);
        assert!(report.table(Style::plain()).contains("no ratios: only root may"));
    }

    #[test]
    fn the_padding_is_exact_and_the_request_is_json() {
        assert_eq!(request(100).len(), request(0).len() + 100);
        assert!(crate::ledger::json::canonicalize(&request(3)).is_ok());
    }

    #[test]
    fn answers_are_told_apart_cheaply() {
        assert!(is_sealed(br#"{"sequence_number":1,"hsm_signature":"30"}"#).expect("sealed"));
        assert!(!is_sealed(br#"{"code":"queue-full","title":"t","status":503}"#).expect("refused for now"));
        assert!(matches!(
            is_sealed(br#"{"code":"caller-not-allowed","title":"t","status":403}"#),
            Err(ClientError::Refused(_))
        ));
        assert!(is_sealed(b"hsm_signature").is_err());
    }

    #[test]
    fn send_times_are_taken_oldest_first() {
        let first = Instant::now();
        let second = first + Duration::from_secs(1);
        let mut under_way = VecDeque::from([(first, 2), (second, 1)]);
        let taken: Vec<_> = std::iter::from_fn(|| take_one(&mut under_way)).collect();
        assert_eq!(taken, [first, first, second]);
    }
}
