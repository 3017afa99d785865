//! `attestctl status`: how the daemon is doing.

use std::path::Path;

use super::cli::Status;
use super::text::{Style, count_of, duration, grouped, printable, printable_message};
use super::{Failure, Outcome, connect, print, print_line};
use crate::client::{ClientError, ProblemDoc, Stats, decode};

pub(super) async fn run(socket: &Path, args: &Status) -> Result<Outcome, Failure> {
    let doing = "ask for the daemon's status";
    let mut client = connect(socket, doing).await?;
    let answer = client.stats().await.map_err(Failure::daemon(doing))?;
    let not_ready = match client.get_json("/readyz").await {
        Ok(_) => None,
        Err(ClientError::Unavailable(problem) | ClientError::Refused(problem)) => Some(problem),
        Err(error) => return Err(Failure::daemon(doing)(error)),
    };
    if args.json {
        let stats = String::from_utf8_lossy(&answer);
        let ready = match &not_ready {
            None => serde_json::json!({ "status": "ready" }),
            Some(problem) => {
                serde_json::json!({ "status": "not-ready", "code": problem.code, "detail": problem.detail })
            }
        };
        print_line(format!("{{\"stats\":{},\"ready\":{ready}}}", stats.trim()).as_bytes())?;
    } else {
        let stats: Stats = decode(&answer).map_err(Failure::daemon(doing))?;
        print(&words(&stats, not_ready.as_deref(), Style::of_stdout()))?;
    }
    Ok(if not_ready.is_none() { Outcome::Done } else { Outcome::NotReady })
}

fn words(stats: &Stats, not_ready: Option<&ProblemDoc>, style: Style) -> String {
    let mut out = format!("{}\n", style.bold(&printable(&stats.origin)));
    let mut line = |name: &str, value: String| {
        out.push_str(&format!("  {}  {value}\n", style.dim(&format!("{name:<11}"))));
    };
    match not_ready {
        None => line("ready", style.good("yes")),
        Some(problem) => {
            line("ready", style.bad(&format!("no: {}", printable_message(&problem.to_string()))));
        }
    }
    line("version", printable(&stats.version).into_owned());
    line("up", format!("{} (since {})", duration(stats.uptime_seconds), printable(&stats.started_at)));
    line("entries", grouped(stats.entries));
    if let Some(head) = &stats.head {
        line("head", format!("{} of {}", head.sequence_number, printable(&head.timestamp)));
        line("head hash", printable(&head.entry_hash).into_owned());
    }
    line("key", format!("{} (mode {})", printable(&stats.key_id), printable(&stats.signature_mode)));
    if let Some(token) = &stats.token {
        let parts = [&token.manufacturer, &token.model].map(|part| printable(part).into_owned());
        let [label, serial] = [&token.label, &token.serial].map(|part| printable(part).into_owned());
        line("token", format!("{}, serial {serial}, label {label}", parts.join(" ")));
    }
    for anchor in &stats.anchors {
        let kind = printable(&anchor.kind);
        let known = count_of(anchor.entries, "entry", "entries");
        line("anchor", format!("{kind}, knows of {known}, {} came after", grouped(anchor.lag)));
    }
    let since_start = format!("{} refused since start", grouped(stats.refused_since_start));
    line("appended", format!("{}, {since_start}", grouped(stats.appended_since_start)));
    line(
        "queue",
        format!(
            "{}, {} bytes",
            count_of(stats.queue.entries, "entry", "entries"),
            grouped(stats.queue.bytes)
        ),
    );
    line("connections", grouped(stats.connections));
    line("memory", format!("{:.1} MiB", stats.memory_bytes as f64 / f64::from(1 << 20)));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_of_another_version_is_still_shown() {
        let text = br#"{"origin":"o","version":"9","entries":12345,"uptime_seconds":61,"started_at":"t","memory_bytes":12582912,
            "head":{"sequence_number":12344,"entry_hash":"h","timestamp":"u"},"something":{"new":1},
            "anchors":[{"kind":"file","entries":12000,"lag":345}]}"#;
        let stats: Stats = decode(text).expect("stats");
        let out = words(&stats, None, Style::plain());
        for part in [
            "ready        yes",
            "entries      12,345",
            "head         12344 of u",
            "up           1 min 1 s",
            "12.0 MiB",
            "anchor       file, knows of 12,000 entries, 345 came after",
        ] {
            assert!(out.contains(part), "{part} in\n{out}");
        }
    }
}
