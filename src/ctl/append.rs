//! `attestctl append`: one event, or a batch of them.

use std::fs::File;
use std::io::{self, BufRead, BufReader, IsTerminal as _, Read, Write};
use std::path::Path;
use std::pin::pin;

use bytes::Bytes;
use futures_util::stream;
use indicatif::ProgressBar;
use serde::Deserialize;
use tokio::sync::{mpsc, oneshot};

use super::cli::{Append, Draft};
use super::proof::write_receipt;
use super::text::{count_of, grouped, printable, printable_message};
use super::{Failure, Outcome, connect, print, print_line, progress, unexpected};
use crate::client::{Answer, Appended, ClientError, ProblemDoc};
use crate::ledger::json::{canonicalize, write_string};
use crate::ledger::score::{PILLAR_NAMES, Score};

/// What a batch is read and sent in: large enough to cost little, small beside the daemon's budget.
const PIECE_BYTES: usize = 64 * 1024;
/// Pieces that wait to be sent.
const PIECES_AHEAD: usize = 4;
/// The most that any daemon can be told to take for one request, `limits.request_bytes`.
const EVENT_BYTES: u64 = 16 << 20;
/// Refused lines that are shown one by one; `--json` shows all.
const REFUSALS_SHOWN: u64 = 20;

pub(super) async fn run(socket: &Path, args: &Append) -> Result<Outcome, Failure> {
    if let Some(file) = &args.batch {
        return batch(socket, file, args.json).await;
    }
    let event = match &args.event {
        Some(file) => read_all(file)?,
        None => request(&args.draft)?,
    };
    one(socket, event, args).await
}

/// The members of a sealed entry that the summary shows.
#[derive(Deserialize)]
struct Sealed<'a> {
    sequence_number: u64,
    #[serde(borrow)]
    entry_id: &'a str,
    entry_hash: &'a str,
    timestamp: &'a str,
    signing_key_id: &'a str,
}

async fn one(socket: &Path, event: Vec<u8>, args: &Append) -> Result<Outcome, Failure> {
    let doing = "append the event";
    if let Some(file) = args.receipt.as_ref().filter(|file| file.symlink_metadata().is_ok()) {
        return Err(Failure::Usage(format!("{} exists: nothing was appended", file.display())));
    }
    let mut client = connect(socket, doing).await?;
    let (appended, receipt) = match &args.receipt {
        None => (client.append(event.into()).await.map_err(Failure::daemon(doing))?, None),
        Some(_) => client.append_with_receipt(event.into()).await.map_err(Failure::daemon(doing))?,
    };
    show(&appended, args.json)?;
    // After the entry is shown: it is sealed, whatever becomes of the receipt.
    match (&args.receipt, receipt) {
        (Some(file), Some(receipt)) => write_receipt(file, receipt.as_bytes())?,
        (Some(_), None) => {
            // Not the code of a refusal, nor the one that says to try again: the entry is there.
            let what = "the entry is sealed, but there is no receipt yet: `attestctl proof` gets it later";
            return Err(Failure::Usage(what.into()));
        }
        (None, _) => {}
    }
    Ok(Outcome::Done)
}

fn show(appended: &Appended, json: bool) -> Result<(), Failure> {
    let doing = "append the event";
    let sealed: Sealed<'_> =
        serde_json::from_slice(&appended.line).map_err(|error| unexpected(doing, error.to_string()))?;
    // Whoever repeats an append because its answer could not be written has it twice.
    let told = |result: Result<(), Failure>| {
        result.inspect_err(|_| {
            eprintln!("the event is sealed all the same, as entry {}", sealed.sequence_number);
        })
    };
    if json {
        return told(print_line(&appended.line));
    }
    let heading = if appended.created {
        format!("sealed entry {}", sealed.sequence_number)
    } else {
        format!("entry {} was sealed before: the same id and content", sealed.sequence_number)
    };
    told(print(&format!(
        "{heading}\n  id         {}\n  hash       {}\n  time       {}\n  key        {}\n",
        printable(sealed.entry_id),
        printable(sealed.entry_hash),
        printable(sealed.timestamp),
        printable(sealed.signing_key_id),
    )))
}

/// The request object of an event that was given by options.
fn request(draft: &Draft) -> Result<Vec<u8>, Failure> {
    let mut object = Object::new();
    object.text("event_type", draft.event_type.as_deref());
    object.text("action_type", draft.action_type.as_deref());
    object.text("execution_status", draft.execution_status.as_deref());
    object.text("actor_type", draft.actor_type.as_deref());
    object.text("actor_id", draft.actor_id.as_deref());
    object.text("event_category", draft.event_category.as_deref());
    object.text("entry_id", draft.entry_id.as_deref());
    object.text("rollback_snapshot_hash", draft.rollback_snapshot_hash.as_deref());
    object.raw("severity", draft.severity);
    object.raw("k_state", draft.k_state);
    object.raw("required_approvals", draft.required_approvals);
    object.raw("rollback_available", draft.rollback_available.then_some(true));
    object.raw("rollback_executed", draft.rollback_executed.then_some(true));
    object.json("action_payload", "--payload", Some(&draft.action_payload))?;
    object.json("actor_context", "--actor-context", draft.actor_context.as_deref())?;
    object.json(
        "system_state_snapshot",
        "--system-state-snapshot",
        draft.system_state_snapshot.as_deref(),
    )?;
    object.json("provided_proofs", "--provided-proofs", draft.provided_proofs.as_deref())?;
    object.json("result_data", "--result", draft.result_data.as_deref())?;
    object.json("error_details", "--error", draft.error_details.as_deref())?;
    object.texts("dependencies", &draft.dependencies);
    object.texts("conflicts_detected", &draft.conflicts_detected);
    object.texts("required_proofs", &draft.required_proofs);
    if !draft.environment.is_empty() {
        let mut environment = Object::new();
        for (key, value) in &draft.environment {
            environment.text(key, Some(value));
        }
        object.raw("environment", Some(environment.finish()));
    }
    if !draft.pillars_scores.is_empty() {
        object.raw("pillars_scores", Some(pillars(&draft.pillars_scores)?));
    }
    Ok(object.finish().into_bytes())
}

fn pillars(scores: &[(String, String)]) -> Result<String, Failure> {
    let mut object = Object::new();
    for (name, score) in scores {
        if !PILLAR_NAMES.contains(&name.as_str()) {
            let names = PILLAR_NAMES.join(", ");
            return Err(Failure::Usage(format!("--pillars: no pillar is called `{name}`, they are {names}")));
        }
        let canonical =
            canonicalize(score.as_bytes()).ok().filter(|text| Score::from_canonical(text).is_some());
        let Some(score) = canonical else {
            let what =
                format!("--pillars: {name} must be from 0 to 10 with at most four decimals, not `{score}`");
            return Err(Failure::Usage(what));
        };
        object.raw(name, Some(score));
    }
    Ok(object.finish())
}

/// A JSON object in the making. A name that is given twice stays twice: the daemon refuses it
/// better than this side could.
pub(super) struct Object(Vec<u8>);

impl Object {
    pub(super) fn new() -> Self {
        Object(vec![b'{'])
    }

    fn name(&mut self, name: &str) {
        if self.0.len() > 1 {
            self.0.push(b',');
        }
        write_string(name, &mut self.0);
        self.0.push(b':');
    }

    pub(super) fn text(&mut self, name: &str, text: Option<&str>) {
        if let Some(text) = text {
            self.name(name);
            write_string(text, &mut self.0);
        }
    }

    fn texts(&mut self, name: &str, texts: &[String]) {
        if texts.is_empty() {
            return;
        }
        self.name(name);
        for (index, text) in texts.iter().enumerate() {
            self.0.push(if index == 0 { b'[' } else { b',' });
            write_string(text, &mut self.0);
        }
        self.0.push(b']');
    }

    pub(super) fn raw(&mut self, name: &str, json: Option<impl std::fmt::Display>) {
        if let Some(json) = json {
            self.name(name);
            self.0.extend_from_slice(json.to_string().as_bytes());
        }
    }

    /// JSON from an option. It is checked here, so that the fault is told at its place in what
    /// the user wrote.
    pub(super) fn json(&mut self, name: &str, option: &str, given: Option<&str>) -> Result<(), Failure> {
        let Some(given) = given else { return Ok(()) };
        let text = match given.strip_prefix('@') {
            Some(file) => read_all(Path::new(file))?,
            None => given.as_bytes().to_vec(),
        };
        let canonical = canonicalize(&text).map_err(|fault| Failure::Usage(format!("{option}: {fault}")))?;
        self.raw(name, Some(canonical));
        Ok(())
    }

    pub(super) fn finish(mut self) -> String {
        self.0.push(b'}');
        // Made of strings and canonical JSON only.
        String::from_utf8_lossy(&self.0).into_owned()
    }
}

pub(super) fn read_all(file: &Path) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    source(file)
        .and_then(|source| source.take(EVENT_BYTES + 1).read_to_end(&mut bytes))
        .map_err(cannot_read(file))?;
    if bytes.len() as u64 > EVENT_BYTES {
        let name = file.display();
        return Err(Failure::Usage(format!("{name} holds more than {EVENT_BYTES} bytes, which is no event")));
    }
    Ok(bytes)
}

/// The file, or standard input for `-`.
fn source(file: &Path) -> io::Result<Box<dyn Read + Send>> {
    if file == Path::new("-") { Ok(Box::new(io::stdin())) } else { Ok(Box::new(File::open(file)?)) }
}

fn cannot_read(file: &Path) -> impl FnOnce(io::Error) -> Failure {
    let name = if file == Path::new("-") { "standard input".into() } else { file.display().to_string() };
    move |source| Failure::local(format!("read {name}"), source)
}

/// What has become of a batch.
#[derive(Debug, Default)]
struct Tally {
    sealed: u64,
    refused: u64,
    /// Of those, what the daemon could not do for now.
    unavailable: u64,
    /// The lowest and the highest sequence number; other callers' entries may lie between.
    range: Option<(u64, u64)>,
}

async fn batch(socket: &Path, file: &Path, json: bool) -> Result<Outcome, Failure> {
    let doing = "append the batch";
    let total = if io::stderr().is_terminal() { count_lines(file) } else { None };
    let input = source(file).map_err(cannot_read(file))?;
    let mut client = connect(socket, doing).await?;

    let (pieces, mut sent) = mpsc::channel(PIECES_AHEAD);
    let (fed, mut was_fed) = oneshot::channel();
    // A thread of its own, not one of the runtime's: at the end nobody waits for one that is
    // stuck in a read of standard input.
    std::thread::spawn(move || {
        let result = feed(input, &pieces);
        // Before `pieces` is dropped: when the daemon sees the end, this is known.
        let _ = fed.send(result);
    });
    let body = stream::poll_fn(move |cx| pin!(&mut sent).poll_recv(cx));

    let bar = progress(total, "sealing");
    let mut tally = Tally::default();
    let broke = answers(&mut client, body, json, &bar, &mut tally).await.err();
    bar.finish_and_clear();

    if tally.refused > REFUSALS_SHOWN && !json {
        eprintln!("  … and {} more", grouped(tally.refused - REFUSALS_SHOWN));
    }
    eprintln!("{}", summary(&tally));
    if let Some(failure) = broke {
        return Err(failure);
    }
    let answered = tally.sealed + tally.refused;
    match was_fed.try_recv() {
        Ok(Ok(lines)) if lines == answered => {}
        Ok(Ok(lines)) => {
            let what = format!("{answered} answers to {lines} lines");
            return Err(unexpected(doing, what));
        }
        Ok(Err(error)) => return Err(cannot_read(file)(error)),
        Err(_) => return Err(unexpected(doing, "it ended before the batch did")),
    }
    Ok(outcome(&tally))
}

/// As a single append of each line would end, where all end alike.
fn outcome(tally: &Tally) -> Outcome {
    match (tally.sealed, tally.refused) {
        (_, 0) => Outcome::Done,
        (0, refused) if refused == tally.unavailable => Outcome::NotReady,
        (0, _) => Outcome::Wrong,
        _ => Outcome::PartlyRefused,
    }
}

async fn answers<S>(
    client: &mut crate::client::Client,
    body: S,
    json: bool,
    bar: &ProgressBar,
    tally: &mut Tally,
) -> Result<(), Failure>
where
    S: stream::Stream<Item = Bytes> + Send + 'static,
{
    let daemon = |error: ClientError| Failure::daemon("append the batch")(error);
    let mut answers = client.append_batch(body).await.map_err(daemon)?;
    let mut out = io::BufWriter::new(io::stdout());
    while let Some(line) = answers.next().await.map_err(daemon)? {
        if json {
            out.write_all(&line)?;
            out.write_all(b"\n")?;
            // Whoever reads along gets an answer as soon as there is no other to go with it.
            if !answers.has_next() {
                out.flush()?;
            }
        }
        match Answer::parse(&line).map_err(daemon)? {
            Answer::Sealed(sealed) => {
                let at = sealed.sequence_number;
                tally.sealed += 1;
                let (low, high) = tally.range.unwrap_or((at, at));
                tally.range = Some((low.min(at), high.max(at)));
            }
            Answer::Refused(problem) => {
                tally.refused += 1;
                tally.unavailable += u64::from(problem.is_for_now());
                if tally.refused <= REFUSALS_SHOWN {
                    bar.suspend(|| eprintln!("{}", refused(&problem)));
                }
            }
        }
        bar.inc(1);
    }
    Ok(out.flush()?)
}

fn refused(problem: &ProblemDoc) -> String {
    let line = problem.line.map_or_else(|| "?".into(), |line| line.to_string());
    printable_message(&format!("line {line}: {problem}"))
}

fn summary(tally: &Tally) -> String {
    let mut text = format!("{} sealed", count_of(tally.sealed, "event", "events"));
    match tally.range {
        Some((only, last)) if only == last => text += &format!(" (sequence number {only})"),
        Some((first, last)) => text += &format!(" (sequence numbers {first} to {last})"),
        None => {}
    }
    if tally.refused > 0 {
        text += &format!(", {} refused", grouped(tally.refused));
    }
    text
}

/// Sends everything of `input` on and counts the lines that the daemon will answer. Stops early,
/// without an error, when nobody listens any more.
fn feed(mut input: impl Read, pieces: &mpsc::Sender<Bytes>) -> io::Result<u64> {
    let mut lines = LineCount::default();
    loop {
        let mut piece = vec![0; PIECE_BYTES];
        let length = match input.read(&mut piece) {
            Ok(0) => return Ok(lines.finish()),
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        piece.truncate(length);
        lines.count(&piece);
        if pieces.blocking_send(piece.into()).is_err() {
            return Ok(lines.finish());
        }
    }
}

/// Counts lines that hold something, over pieces of any size.
#[derive(Debug, Default)]
struct LineCount {
    lines: u64,
    filled: bool,
}

impl LineCount {
    fn count(&mut self, piece: &[u8]) {
        let mut rest = piece.split(|b| *b == b'\n').peekable();
        while let Some(part) = rest.next() {
            self.filled |= part.iter().any(|b| !b.is_ascii_whitespace());
            if rest.peek().is_some() {
                self.lines += u64::from(std::mem::take(&mut self.filled));
            }
        }
    }

    fn finish(&self) -> u64 {
        self.lines + u64::from(self.filled)
    }
}

/// The lines of a regular file, for the progress bar; not known for anything that is read once.
fn count_lines(file: &Path) -> Option<u64> {
    let file = File::open(file).ok()?;
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut reader = BufReader::with_capacity(PIECE_BYTES, file);
    let mut lines = LineCount::default();
    loop {
        let piece = reader.fill_buf().ok()?;
        if piece.is_empty() {
            return Some(lines.finish());
        }
        lines.count(piece);
        let length = piece.len();
        reader.consume(length);
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::ctl::cli::{Cli, Command};
    use crate::ledger::entry::{DAEMON_MEMBERS, MEMBERS};

    fn draft(args: &[&str]) -> Draft {
        let base =
            ["attestctl", "append", "--event-type", "ACTION", "--action-type", "a", "--status", "SUCCESS"];
        let args = base.iter().chain(&["--actor-type", "HUMAN"]).chain(args);
        let Command::Append(append) = Cli::try_parse_from(args).expect("valid").command else {
            panic!("append");
        };
        append.draft
    }

    #[test]
    fn the_options_cover_every_member_that_a_client_may_send() {
        let id = "6f1c2a7e-3b4d-4c5e-8f90-112233445566";
        let draft = draft(&[
            "--actor-id",
            "x",
            "--actor-context",
            "{\"a\":1}",
            "--payload",
            "{\"n\":1.50}",
            "--category",
            "error",
            "--severity",
            "8",
            "--entry-id",
            id,
            "--environment",
            "K=V=W",
            "--environment",
            "é=\"",
            "--depends-on",
            id,
            "--system-state-snapshot",
            "{}",
            "--pillars",
            "an_toan=8,duong_dai=7.50",
            "--k-state",
            "-1",
            "--conflict",
            "c",
            "--require-proof",
            "pillars",
            "--provided-proofs",
            "[]",
            "--required-approvals",
            "2",
            "--result",
            "null",
            "--error",
            "{}",
            "--rollback-available",
            "--rollback-executed",
            "--rollback-snapshot-hash",
            "00",
        ]);
        let text = String::from_utf8(request(&draft).expect("valid")).expect("UTF-8");
        let object: serde_json::Map<String, serde_json::Value> =
            serde_json::from_str(&text).expect("an object");
        let names: Vec<&str> = object.keys().map(String::as_str).collect();
        let expected: Vec<&str> =
            MEMBERS.iter().copied().filter(|name| !DAEMON_MEMBERS.contains(name)).collect();
        assert_eq!(names, expected);
        assert!(text.contains(r#""environment":{"K":"V=W","é":"\""}"#), "{text}");
        assert!(text.contains(r#""pillars_scores":{"an_toan":8,"duong_dai":7.5}"#), "{text}");
        assert!(text.contains(r#""action_payload":{"n":1.5}"#), "{text}");
    }

    #[test]
    fn what_is_left_out_is_not_sent() {
        let text = String::from_utf8(request(&draft(&[])).expect("valid")).expect("UTF-8");
        assert_eq!(
            text,
            r#"{"event_type":"ACTION","action_type":"a","execution_status":"SUCCESS","actor_type":"HUMAN","action_payload":{}}"#
        );
    }

    #[test]
    fn faults_of_an_option_are_told_at_their_place() {
        let fails = |args: &[&str]| match request(&draft(args)) {
            Err(Failure::Usage(what)) => what,
            other => panic!("{args:?} gave {other:?}"),
        };
        assert_eq!(fails(&["--payload", "{\"a\":-0}"]), "--payload: negative zero at byte 5 (/a)");
        assert!(fails(&["--payload", "1},\"x\":{"]).contains("something follows"));
        assert!(fails(&["--pillars", "speed=3"]).contains("no pillar is called `speed`"));
        assert!(fails(&["--pillars", "an_toan=10.5"]).contains("from 0 to 10"));
        assert!(matches!(request(&draft(&["--payload", "@/no/such/file"])), Err(Failure::Local { .. })));
        assert!(fails(&["--payload", "@/dev/zero"]).contains("more than 16777216 bytes"));
    }

    #[test]
    fn lines_are_counted_across_pieces_and_blank_ones_are_not() {
        let text = b"{}\n\n {}\r\n \t\r\n{}";
        for size in 1..=text.len() {
            let mut lines = LineCount::default();
            text.chunks(size).for_each(|piece| lines.count(piece));
            assert_eq!(lines.finish(), 3, "pieces of {size}");
        }
        assert_eq!(LineCount::default().finish(), 0);
    }

    #[test]
    fn a_batch_of_which_nothing_could_be_taken_for_now_ends_like_a_single_append() {
        let ends = |sealed, refused, unavailable| {
            outcome(&Tally { sealed, refused, unavailable, range: None }).exit_code()
        };
        assert_eq!([ends(0, 0, 0), ends(2, 0, 0)], [0, 0]);
        assert_eq!([ends(0, 3, 3), ends(0, 3, 2), ends(0, 3, 0)], [4, 1, 1]);
        assert_eq!([ends(1, 3, 3), ends(1, 3, 0)], [5, 5]);
    }

    #[test]
    fn a_summary_reads_like_a_sentence() {
        let tally = Tally { sealed: 1, range: Some((7, 7)), ..Tally::default() };
        assert_eq!(summary(&tally), "1 event sealed (sequence number 7)");
        let tally = Tally { sealed: 1_200, refused: 3, range: Some((7, 1_300)), ..Tally::default() };
        assert_eq!(summary(&tally), "1,200 events sealed (sequence numbers 7 to 1300), 3 refused");
        assert_eq!(summary(&Tally::default()), "0 events sealed");
    }
}
