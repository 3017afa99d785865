//! `attestctl list`: entries that match, as a table or as lines of JSON.

use std::borrow::Cow;
use std::io::{self, Write};
use std::path::Path;

use jiff::tz::TimeZone;
use serde::Deserialize;

use super::cli::{List, Order};
use super::text::{Column, Style, Table, printable, terminal_width};
use super::{Failure, Outcome, connect, unexpected};
use crate::client::Query;
use crate::ledger::timestamp::Timestamp;

/// Entries asked for at a time; the daemon gives no more than 1,000.
const PAGE_ENTRIES: u64 = 200;

pub(super) async fn run(socket: &Path, args: &List) -> Result<Outcome, Failure> {
    let doing = "list entries";
    let mut client = connect(socket, doing).await?;
    let filters = filters(args);
    let mut shown = 0;
    let mut left = if args.all { u64::MAX } else { args.limit };
    let mut cursor: Option<String> = None;
    let mut table = table();
    let style = Style::of_stdout();
    let mut out = io::BufWriter::new(io::stdout());
    while left > 0 {
        let query =
            filters.clone().with("limit", left.min(PAGE_ENTRIES)).with_some("cursor", cursor.as_deref());
        let page = client.list(&query).await.map_err(Failure::daemon(doing))?;
        let taken = page.entries.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let entries = &page.entries[..taken];
        left -= taken as u64;
        shown += taken;
        if args.json {
            for entry in entries {
                out.write_all(entry.get().as_bytes())?;
                out.write_all(b"\n")?;
            }
        } else if !entries.is_empty() {
            let rows: Result<Vec<_>, _> = entries.iter().map(|entry| row(entry.get())).collect();
            let rows = rows.map_err(|error| unexpected(doing, error.to_string()))?;
            let mut text = String::new();
            table.render(&rows, style, &mut text);
            out.write_all(text.as_bytes())?;
        }
        out.flush()?;
        // A page may be empty although there is a next one: the daemon bounds its work, not ours.
        match page.next {
            Some(next) if cursor.as_deref() == Some(&next) => {
                return Err(unexpected(doing, "the same page again"));
            }
            Some(next) => cursor = Some(next),
            None => break,
        }
    }
    if !args.json {
        if shown == 0 {
            eprintln!("no entries");
        } else if let Some(note) = left_out(terminal_width()) {
            eprintln!("{note}");
        }
    }
    Ok(Outcome::Done)
}

fn filters(args: &List) -> Query {
    Query::new()
        .with_some("event_type", args.event_type.as_deref())
        .with_some("event_category", args.event_category.as_deref())
        .with_some("actor_id", args.actor_id.as_deref())
        .with_some("action_type", args.action_type.as_deref())
        .with_some("action_type_prefix", args.action_type_prefix.as_deref())
        .with_some("execution_status", args.execution_status.as_deref())
        .with_some("severity", args.severity)
        .with_some("severity_min", args.severity_min)
        .with_some("since", args.since.as_deref())
        .with_some("until", args.until.as_deref())
        .with_some("from", args.from)
        .with_some("to", args.to)
        .with("order", if args.order == Order::Asc { "asc" } else { "desc" })
}

/// Reads a point in time as people write it, and gives it as the API wants it.
pub(super) fn instant(text: &str) -> Result<String, String> {
    let instant = match text.parse::<jiff::Timestamp>() {
        Ok(instant) => instant,
        Err(_) => {
            let span: jiff::Span = text
                .trim_end_matches(" ago")
                .parse()
                .map_err(|_| "expected an RFC 3339 timestamp or a span such as 90m, 24h or 7d".to_owned())?;
            let now = jiff::Timestamp::now().to_zoned_datetime(TimeZone::UTC);
            now.checked_sub(span.abs()).map_err(|error| error.to_string())?.timestamp()
        }
    };
    Ok(Timestamp::from_micros(instant.as_microsecond()).to_string())
}

/// Narrower than this there is no room for ids; the sequence number names the entry as well.
const WIDTH_WITH_IDS: usize = 100;

/// What a narrow terminal does not show.
fn left_out(terminal: Option<usize>) -> Option<String> {
    terminal.filter(|width| *width < WIDTH_WITH_IDS).map(|width| {
        format!("the ids are left out in {width} columns: `attestctl get SEQ` and `list --json` have them")
    })
}

fn table() -> Table {
    let column = |title, right, least| Column { title, right, least };
    let terminal = terminal_width();
    let mut columns = vec![
        column("SEQ", true, None),
        column("TIME", false, None),
        column("TYPE", false, None),
        column("CATEGORY", false, None),
        column("ACTOR", false, Some(8)),
        column("ACTION", false, Some(8)),
        column("STATUS", false, None),
    ];
    if terminal.is_none_or(|width| width >= WIDTH_WITH_IDS) {
        columns.push(column("ID", false, Some(9)));
    }
    Table::new(columns, terminal)
}

/// The members that the table shows. A reader without the clearance for an entry is not told all
/// of them.
#[derive(Deserialize)]
struct Row<'a> {
    sequence_number: u64,
    #[serde(borrow)]
    timestamp: Cow<'a, str>,
    #[serde(borrow)]
    event_type: Cow<'a, str>,
    #[serde(borrow)]
    event_category: Cow<'a, str>,
    #[serde(borrow, default)]
    actor_id: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    action_type: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    execution_status: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    entry_id: Option<Cow<'a, str>>,
}

fn row(entry: &str) -> serde_json::Result<Vec<String>> {
    let row: Row<'_> = serde_json::from_str(entry)?;
    let some =
        |text: Option<Cow<'_, str>>| text.map_or_else(|| "-".into(), |text| printable(&text).into_owned());
    // To the second: the fraction is in `get` and in --json.
    let time = printable(&row.timestamp);
    let time = time.split_once('.').map_or(time.to_string(), |(seconds, _)| format!("{seconds}Z"));
    Ok(vec![
        row.sequence_number.to_string(),
        time,
        printable(&row.event_type).into_owned(),
        printable(&row.event_category).into_owned(),
        some(row.actor_id),
        some(row.action_type),
        some(row.execution_status),
        some(row.entry_id),
    ])
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::ctl::cli::{Cli, Command};

    #[test]
    fn every_filter_reaches_the_daemon_under_its_name() {
        let args = [
            "attestctl",
            "list",
            "--event-type",
            "action",
            "--category",
            "error",
            "--actor-id",
            "uid:0/é",
            "--action-type-prefix",
            "deploy.",
            "--status",
            "failed",
            "--severity-min",
            "3",
            "--since",
            "2026-11-25T02:00:00+01:00",
            "--until",
            "2026-11-26T00:00:00.5Z",
            "--from",
            "3",
            "--to",
            "9",
            "--order",
            "asc",
        ];
        let Command::List(list) = Cli::try_parse_from(args).expect("valid").command else { panic!("list") };
        assert_eq!(
            filters(&list).as_str(),
            "?event_type=ACTION&event_category=ERROR&actor_id=uid%3A0%2F%C3%A9&action_type_prefix=deploy.\
             &execution_status=FAILED&severity_min=3&since=2026-11-25T01%3A00%3A00.000000Z\
             &until=2026-11-26T00%3A00%3A00.500000Z&from=3&to=9&order=asc"
        );
    }

    #[test]
    fn a_column_that_is_left_out_is_named() {
        assert_eq!([None, Some(WIDTH_WITH_IDS)].map(left_out), [None, None]);
        assert!(
            left_out(Some(79)).is_some_and(|note| note.starts_with("the ids are left out in 79 columns"))
        );
    }

    #[test]
    fn spans_are_counted_back_from_now() {
        let now = jiff::Timestamp::now().as_microsecond();
        let day_ago = instant("1d").expect("a span");
        let day_ago = Timestamp::parse(day_ago.as_bytes()).expect("canonical").as_micros();
        assert!((86_399_000_000..86_410_000_000).contains(&(now - day_ago)));
        assert!(instant("yesterday").is_err());
    }

    #[test]
    fn a_row_shows_what_there_is_and_nothing_that_acts() {
        let entry = "{\"action_type\":\"deploy.start\",\"actor_id\":\"uid:7/\u{202e}\\u001b[31m\",\
            \"entry_id\":\"i\",\"event_category\":\"NORMAL\",\"event_type\":\"ACTION\",\"execution_status\":\"SUCCESS\",\
            \"sequence_number\":5,\"timestamp\":\"2026-11-25T02:29:42.000123Z\"}";
        let cells = row(entry).expect("an entry");
        assert_eq!(
            cells,
            [
                "5",
                "2026-11-25T02:29:42Z",
                "ACTION",
                "NORMAL",
                "uid:7/\\u202e\\u001b[31m",
                "deploy.start",
                "SUCCESS",
                "i"
            ]
        );
        let redacted = r#"{"entry_hash":"h","event_category":"NORMAL","event_type":"ACTION","sequence_number":5,"timestamp":"t"}"#;
        assert_eq!(row(redacted).expect("an entry")[4..], ["-", "-", "-", "-"]);
    }
}
