//! A batch streams both ways: each line stands for itself, good lines are sealed and bad ones get
//! their problem in their place, in order, whatever the client does with its side meanwhile. What
//! was acknowledged is in the ledger, and what was submitted is sealed even if nobody waits for it.

#![cfg(feature = "daemon")]

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{Answer, Daemon, REQUEST, World, request};
use serde_json::{Value, json};

const ID: &str = "6f1c2a7e-3b4d-4c5e-8f90-112233445566";
/// `limits.request_bytes` when nothing is configured.
const LINE_BYTES: usize = 1 << 20;

/// The request that says which one it is.
fn numbered(number: usize) -> String {
    REQUEST.replace(r#""action_payload":{}"#, &format!(r#""action_payload":{{"n":{number}}}"#))
}

fn batch(daemon: &Daemon, body: impl AsRef<[u8]>) -> Vec<Value> {
    let answer = daemon.post("/v1/entries:batch", body);
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.header("content-type"), Some("application/x-ndjson"));
    assert!(answer.body.is_empty() || answer.body.ends_with(b"\n"));
    answer.lines()
}

/// Holds `line` to be the acknowledgement of the entry that the ledger has.
fn is_sealed(daemon: &Daemon, line: &Value) -> Value {
    let sequence = line["sequence_number"].as_u64().unwrap_or_else(|| panic!("not sealed: {line}"));
    let entry = daemon.get(&format!("/v1/entries/{sequence}")).json();
    let members = ["sequence_number", "entry_id", "entry_hash", "timestamp", "hsm_signature"];
    assert_eq!(line.as_object().map(serde_json::Map::len), Some(members.len()), "{line}");
    for member in members {
        assert_eq!(line[member], entry[member], "{line}");
    }
    entry
}

fn is_refused(line: &Value, number: u64, status: u16, code: &str) {
    assert_eq!((&line["line"], &line["code"]), (&json!(number), &json!(code)), "{line}");
    assert_eq!(line["status"], status, "{line}");
    assert!(line["detail"].is_string() && line["title"].is_string() && line["type"].is_string(), "{line}");
}

/// A batch that is written and read as it goes.
struct Stream {
    write: UnixStream,
    read: BufReader<UnixStream>,
}

impl Stream {
    fn open(daemon: &Daemon) -> Self {
        let mut write = daemon.connect();
        let head = "POST /v1/entries:batch HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n";
        write.write_all(head.as_bytes()).expect("sent");
        let read = BufReader::new(write.try_clone().expect("a descriptor"));
        Stream { write, read }
    }

    fn send(&mut self, piece: impl AsRef<[u8]>) -> std::io::Result<()> {
        let piece = piece.as_ref();
        self.write.write_all(&[format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat())
    }

    fn end(&mut self) {
        self.write.write_all(b"0\r\n\r\n").expect("sent");
    }

    /// The next line of the answer that is JSON, past head and framing.
    fn line(&mut self) -> Value {
        let mut line = String::new();
        loop {
            line.clear();
            assert_ne!(self.read.read_line(&mut line).expect("an answer"), 0, "the answer ended");
            if line.starts_with('{') {
                return serde_json::from_str(&line).expect("JSON");
            }
        }
    }

    /// All that is left, as an answer's lines.
    fn rest(mut self) -> Vec<Value> {
        let mut rest = Vec::new();
        self.read.read_to_end(&mut rest).expect("closed in order");
        String::from_utf8(rest)
            .expect("text")
            .lines()
            .filter(|line| line.starts_with('{'))
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect()
    }
}

/// The payload numbers of the sealed entries of clients, in the ledger's order.
fn sealed_numbers(lines: &[String]) -> Vec<u64> {
    let payload =
        |line: &String| serde_json::from_str::<Value>(line).expect("JSON")["action_payload"]["n"].as_u64();
    lines.iter().filter_map(payload).collect()
}

#[test]
fn each_line_is_answered_in_its_place() {
    let world = World::new();
    let daemon = world.serve();
    let good = numbered(7);
    let unknown = request(r#","colour":1"#);
    let cases: [(&[u8], u16, &str); 9] = [
        (&good.as_bytes()[..40], 400, "json-truncated"),
        (unknown.as_bytes(), 400, "unknown-member"),
        (b"\xFF", 400, "json-utf8"),
        (b"[]", 400, "wrong-type"),
        (b"\xEF\xBB\xBF{}", 400, "json-byte-order-mark"),
        (b"{}{}", 400, "json-trailing"),
        (b"\0", 400, "json-syntax"),
        (b"{\"event_type\":\"BOOT\"}", 400, "reserved-event-type"),
        (br#"{"required_approvals":1,"event_type":"ACTION","action_type":"a","action_payload":{},"execution_status":"SUCCESS","actor_type":"SYSTEM"}"#, 422, "invariant-6-quorum"),
    ];
    let mut body = Vec::new();
    for (bad, _, _) in cases {
        for line in [bad, good.as_bytes()] {
            body.extend_from_slice(line);
            body.push(b'\n');
        }
    }
    let lines = batch(&daemon, &body);
    assert_eq!(lines.len(), 2 * cases.len());
    for (index, (_, status, code)) in cases.into_iter().enumerate() {
        is_refused(&lines[2 * index], 2 * index as u64 + 1, status, code);
        let entry = is_sealed(&daemon, &lines[2 * index + 1]);
        // The last bad one breaks an invariant, which the ledger records before it is answered.
        let violations = usize::from(code == "invariant-6-quorum");
        assert_eq!(entry["sequence_number"], 2 + index + violations);
    }
    assert_eq!(lines[2 * cases.len() - 2]["sequence_number"], 1 + cases.len());
    assert_eq!(lines[2]["pointer"], "/colour");
    assert!(daemon.stop().success());
    assert_eq!(sealed_numbers(&world.audit()).len(), cases.len());
}

#[test]
fn lines_may_end_in_any_usual_way() {
    let world = World::new();
    let daemon = world.serve();
    for empty in ["", "\n", "\r\n", "\n  \n\t\r\n"] {
        assert_eq!(batch(&daemon, empty), Vec::<Value>::new(), "{empty:?}");
    }
    // Blank lines count, but have no answer; the last line needs no end.
    let lines = batch(&daemon, format!("{REQUEST}\r\n\n \t \nx\r\n\n{REQUEST}\n\ny"));
    assert_eq!(lines.len(), 4);
    is_sealed(&daemon, &lines[0]);
    is_refused(&lines[1], 4, 400, "json-syntax");
    is_sealed(&daemon, &lines[2]);
    is_refused(&lines[3], 8, 400, "json-syntax");

    // However the bytes are cut.
    let text = format!("{REQUEST}\r\nx\n\n{REQUEST}");
    let mut stream = Stream::open(&daemon);
    for byte in text.as_bytes() {
        stream.send([*byte]).expect("sent");
    }
    stream.end();
    let lines = stream.rest();
    assert_eq!(lines.len(), 3);
    is_sealed(&daemon, &lines[0]);
    is_refused(&lines[1], 2, 400, "json-syntax");
    is_sealed(&daemon, &lines[2]);
    assert!(daemon.stop().success());
    assert_eq!(world.audit().len(), 3 + 4);
}

#[test]
fn an_overlong_line_is_passed_over() {
    let world = World::new();
    let daemon = world.serve();
    let padded = |bytes: usize| format!("{REQUEST}{}", " ".repeat(bytes - REQUEST.len()));
    let (fits, long, huge) = (padded(LINE_BYTES), padded(LINE_BYTES + 1), "x".repeat(3 * LINE_BYTES));
    let lines = batch(&daemon, [&fits, &long, REQUEST, &huge, REQUEST, &huge].join("\n"));
    assert_eq!(lines.len(), 6);
    for at in [0, 2, 4] {
        is_sealed(&daemon, &lines[at]);
    }
    for at in [1, 3, 5] {
        is_refused(&lines[at], at as u64 + 1, 413, "request-too-large");
    }
    assert!(daemon.stop().success());
    assert_eq!(world.audit().len(), 3 + 3);
}

#[test]
fn an_id_that_comes_twice_is_sealed_once() {
    let world = World::new();
    let daemon = world.serve();
    let with_id = |extra: &str| request(&format!(r#","entry_id":"{ID}"{extra}"#));
    let one = with_id("");
    let other = with_id(r#","severity":3"#);
    let after = request(&format!(r#","dependencies":["{ID}"]"#));
    let body = [&one, &one, &other, &after, &one].map(String::as_str).join("\n");
    let lines = batch(&daemon, &body);
    is_sealed(&daemon, &lines[0]);
    assert_eq!((&lines[1], &lines[4]), (&lines[0], &lines[0]));
    is_refused(&lines[2], 3, 409, "entry-id-conflict");
    // The first line is not in the ledger before the batch was submitted.
    is_refused(&lines[3], 4, 422, "unknown-dependency");
    let again = batch(&daemon, &body);
    assert_eq!((&again[0], &again[1], &again[4]), (&lines[0], &lines[0], &lines[0]));
    is_refused(&again[2], 3, 409, "entry-id-conflict");
    is_sealed(&daemon, &again[3]);

    // The same request by many at once is one entry.
    let request = request(r#","entry_id":"7f1c2a7e-3b4d-4c5e-8f90-112233445566""#);
    let answers: Vec<Value> = std::thread::scope(|scope| {
        let single = || {
            let answer = daemon.post("/v1/entries", &request);
            assert!([200, 201].contains(&answer.status), "{}", answer.text());
            (usize::from(answer.status == 201), answer.json()["entry_hash"].clone())
        };
        let in_batch = || (0, batch(&daemon, [request.as_str(); 5].join("\n"))[4]["entry_hash"].clone());
        let threads: Vec<_> = (0..8).flat_map(|_| [scope.spawn(single), scope.spawn(in_batch)]).collect();
        let answers: Vec<_> = threads.into_iter().map(|thread| thread.join().expect("answered")).collect();
        assert!(answers.iter().map(|(created, _)| created).sum::<usize>() <= 1);
        answers.into_iter().map(|(_, hash)| hash).collect()
    });
    assert!(answers.iter().all(|hash| hash.is_string() && *hash == answers[0]), "{answers:?}");
    assert!(daemon.stop().success());
    assert_eq!(world.audit().len(), 3 + 3);
}

#[test]
fn answers_come_while_the_batch_goes_on() {
    let world = World::new();
    let daemon = world.serve();
    let mut stream = Stream::open(&daemon);
    let mut before = daemon.get("/v1/entries/0").json()["entry_id"].clone();
    for number in 0..5 {
        // Each waits for the answer to the one before, and depends on it.
        let line = request(&format!(r#","dependencies":[{before}]"#));
        stream.send(format!("{line}\n")).expect("sent");
        let answer = stream.line();
        assert_eq!(answer["sequence_number"], 2 + number);
        before = answer["entry_id"].clone();
    }
    stream.end();
    assert_eq!(stream.rest(), Vec::<Value>::new());
    assert!(daemon.stop().success());
    assert_eq!(world.audit().len(), 3 + 5);
}

#[test]
fn batches_side_by_side_each_get_their_own_answers_in_order() {
    let world = World::new();
    let daemon = world.serve();
    let sequences: Vec<u64> = std::thread::scope(|scope| {
        let send = |client: usize| {
            let body: Vec<String> = (0..300).map(|n| numbered(1_000 * client + n)).collect();
            let lines = batch(&daemon, body.join("\n"));
            assert_eq!(lines.len(), body.len());
            let mine: Vec<u64> =
                lines.iter().map(|l| l["sequence_number"].as_u64().expect("sealed")).collect();
            assert!(mine.is_sorted());
            for at in [0, 150, 299] {
                assert_eq!(is_sealed(&daemon, &lines[at])["action_payload"]["n"], 1_000 * client + at);
            }
            mine
        };
        let clients: Vec<_> = (0..6).map(|client| scope.spawn(move || send(client))).collect();
        clients.into_iter().flat_map(|client| client.join().expect("answered")).collect()
    });
    let mut all = sequences;
    all.sort_unstable();
    assert_eq!(all, (2..2 + 1_800).collect::<Vec<u64>>());
    assert!(daemon.stop().success());
    assert_eq!(world.audit().len(), 3 + 1_800);
}

#[test]
fn a_batch_that_breaks_off_or_pauses_is_sealed_as_far_as_it_came() {
    let world = World::new();
    world.configure("server", "idle_timeout_seconds = 1");
    let daemon = world.serve();
    // In the middle of a line, and behind one.
    for (tail, taken) in [(&REQUEST[..30], 2), ("\n", 3)] {
        let mut stream = Stream::open(&daemon);
        stream.send(format!("{REQUEST}\n{REQUEST}\n")).expect("sent");
        if taken == 3 {
            stream.send(REQUEST).expect("sent");
        }
        stream.send(tail).expect("sent");
        stream.write.shutdown(std::net::Shutdown::Write).expect("open");
        let lines = stream.rest();
        assert_eq!(lines.len(), taken + 1, "{lines:?}");
        lines[..taken].iter().for_each(|line| drop(is_sealed(&daemon, line)));
        is_refused(&lines[taken], taken as u64 + 1, 400, "body-incomplete");
    }
    let mut paused = Stream::open(&daemon);
    paused.send(format!("{REQUEST}\n{}", &REQUEST[..30])).expect("sent");
    let lines = paused.rest();
    is_sealed(&daemon, &lines[0]);
    is_refused(&lines[1], 2, 408, "request-timeout");
    assert!(daemon.stop().success());
    assert_eq!(world.audit().len(), 3 + 6);
}

#[test]
fn what_a_client_submitted_before_it_hung_up_is_sealed() {
    let world = World::new();
    let daemon = world.serve();
    let mut acknowledged = Vec::new();
    for client in 0..5 {
        let mut stream = Stream::open(&daemon);
        for number in 0..200 {
            stream.send(format!("{}\n", numbered(1_000 * client + number))).expect("sent");
        }
        // Some hear of a few of their entries first, some of none.
        for _ in 0..10 * client {
            acknowledged.push(stream.line());
        }
        drop(stream);
    }
    let lines: Vec<Value> = batch(&daemon, numbered(9_999));
    is_sealed(&daemon, &lines[0]);
    assert!(daemon.stop().success());
    let ledger = world.audit();
    for line in acknowledged {
        let entry: Value =
            serde_json::from_str(&ledger[line["sequence_number"].as_u64().expect("sealed") as usize])
                .expect("JSON");
        assert_eq!(entry["entry_hash"], line["entry_hash"]);
    }
    // Of each client a first part, in order and without a gap.
    let numbers = sealed_numbers(&ledger);
    for client in 0..5 {
        let of_client = numbers.iter().copied().filter(|number| number / 1_000 == client);
        assert!(
            of_client.enumerate().all(|(at, number)| number == 1_000 * client + at as u64),
            "{numbers:?}"
        );
    }
}

#[test]
fn a_client_may_write_everything_before_it_reads() {
    const LINES: usize = 20_000;
    let world = World::new();
    // By default it would be about 10,000.
    world.configure("limits", "memory_bytes = 67_108_864\nbatch_answer_bytes = 16_777_216");
    let daemon = world.serve();
    let body: String = (0..LINES).map(|number| numbered(number) + "\n").collect();
    let lines = batch(&daemon, &body);
    assert_eq!(lines.len(), LINES);
    assert!(lines.iter().enumerate().all(|(at, line)| line["sequence_number"] == 2 + at));
    assert_eq!(daemon.get("/v1/stats").json()["queue"], json!({"entries": 0, "bytes": 0}));
    assert!(daemon.stop().success());
    let numbers = sealed_numbers(&world.audit());
    assert_eq!(numbers, (0..LINES as u64).collect::<Vec<_>>());
}

#[test]
fn a_client_that_never_reads_is_cut_off_and_what_was_sealed_stays() {
    let world = World::new();
    world.configure("server", "idle_timeout_seconds = 1");
    world.configure("limits", "batch_answer_bytes = 65_536");
    let daemon = world.serve();
    let mut stream = Stream::open(&daemon);
    stream.write.set_write_timeout(Some(Duration::from_secs(30))).expect("a timeout");
    let since = Instant::now();
    let mut number = 0;
    let error = loop {
        assert!(number < 100_000, "it is never cut off");
        match stream.send(format!("{}\n", numbered(number))) {
            Ok(()) => number += 1,
            Err(error) => break error,
        }
    };
    let cut_off = [std::io::ErrorKind::BrokenPipe, std::io::ErrorKind::ConnectionReset];
    assert!(cut_off.contains(&error.kind()), "{error}");
    assert!(since.elapsed() < Duration::from_secs(25));
    // What it left behind holds up nobody, and costs no memory.
    assert_eq!(
        Answer::parse(&daemon.raw(b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")).status,
        200
    );
    daemon.append(REQUEST);
    let deadline = Instant::now() + Duration::from_secs(10);
    while daemon.get("/v1/stats").json()["queue"]["bytes"] != 0 {
        assert!(Instant::now() < deadline, "memory is given back");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(daemon.stop().success());
    let numbers = sealed_numbers(&world.audit());
    assert!(!numbers.is_empty() && numbers.iter().enumerate().all(|(at, number)| *number == at as u64));
}

/// Batches that fill all memory that their caller may have, read nothing, and go.
#[test]
fn batches_that_are_left_behind_give_their_memory_back() {
    let world = World::new();
    world.configure("limits", "memory_bytes = 4_194_304\nbatch_answer_bytes = 1_048_576");
    let daemon = world.serve();
    let bad = "x\n".repeat(8_000);
    let good = format!("{REQUEST}\n").repeat(20);
    let streams: Vec<UnixStream> = (0..24)
        .map(|_| {
            let mut stream = daemon.connect();
            stream.set_write_timeout(Some(Duration::from_millis(200))).expect("a timeout");
            let head = "POST /v1/entries:batch HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n";
            stream.write_all(head.as_bytes()).expect("sent");
            for piece in [&bad, &bad, &good] {
                // Once there is no room, the daemon stops reading.
                let _ = write!(stream, "{:x}\r\n{piece}\r\n", piece.len());
            }
            stream
        })
        .collect();
    std::thread::sleep(Duration::from_millis(500));
    let bytes = daemon.get("/v1/stats").json()["queue"]["bytes"].as_u64().expect("a number");
    assert!(bytes <= 4_194_304, "{bytes} bytes are held");
    drop(streams);
    let deadline = Instant::now() + Duration::from_secs(10);
    while daemon.get("/v1/stats").json()["queue"]["bytes"] != 0 {
        assert!(Instant::now() < deadline, "memory is given back: {}", daemon.get("/v1/stats").text());
        std::thread::sleep(Duration::from_millis(20));
    }
    daemon.append(REQUEST);
    assert!(daemon.stop().success());
    world.audit();
}

/// Reads that nobody takes are counted too, and there are only so many exports at once.
#[test]
fn answers_that_are_not_read_are_bounded() {
    let world = World::new();
    let daemon = world.serve();
    let filler = "y".repeat(1_000);
    let body = REQUEST.replace("{}", &format!(r#"{{"filler":"{filler}"}}"#));
    assert_eq!(batch(&daemon, vec![body; 2_000].join("\n")).len(), 2_000);
    let ask = |path: &str| {
        let mut stream = daemon.connect();
        write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").expect("sent");
        stream
    };
    let lists: Vec<UnixStream> = (0..100).map(|_| ask("/v1/entries?limit=1000")).collect();
    let exports: Vec<UnixStream> = (0..20).map(|_| ask("/v1/export")).collect();
    std::thread::sleep(Duration::from_secs(1));
    let stats = daemon.get("/v1/stats").json();
    assert!(stats["queue"]["bytes"].as_u64().is_some_and(|bytes| bytes <= 32 << 20), "{stats}");
    assert!(stats["memory_bytes"].as_u64().is_some_and(|bytes| bytes < 100 << 20), "{stats}");
    daemon.get("/v1/export").problem(503, "memory-budget");
    drop((lists, exports));
    let deadline = Instant::now() + Duration::from_secs(10);
    while daemon.get("/v1/export").status != 200 {
        assert!(Instant::now() < deadline, "an export's place comes free");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(daemon.stop().success());
}

#[test]
fn a_batch_leaves_room_for_its_callers_other_requests() {
    let world = World::new();
    let daemon = world.serve();
    let done = AtomicBool::new(false);
    let in_batch: usize = std::thread::scope(|scope| {
        let batch = scope.spawn(|| {
            let mut stream = Stream::open(&daemon);
            let mut write = stream.write.try_clone().expect("a descriptor");
            let piece = format!("{REQUEST}\n").repeat(100);
            let chunk = format!("{:x}\r\n{piece}\r\n", piece.len());
            let done = &done;
            let writer = scope.spawn(move || {
                let mut lines = 0;
                while !done.load(Ordering::Acquire) {
                    write.write_all(chunk.as_bytes()).expect("sent");
                    lines += 100;
                }
                write.write_all(b"0\r\n\r\n").expect("sent");
                lines
            });
            let mut sealed = 0;
            while !done.load(Ordering::Acquire) {
                assert!(stream.line()["sequence_number"].is_u64());
                sealed += 1;
            }
            sealed += stream.rest().iter().filter(|line| line["sequence_number"].is_u64()).count();
            let lines: usize = writer.join().expect("written");
            assert_eq!(sealed, lines);
            sealed
        });
        // The batch takes all the memory that its caller may have.
        std::thread::sleep(Duration::from_millis(300));
        let singles: Vec<u16> = (0..3).map(|_| daemon.post("/v1/entries", REQUEST).status).collect();
        let other = self::batch(&daemon, [REQUEST; 20].join("\n"));
        done.store(true, Ordering::Release);
        assert_eq!(other.iter().filter(|line| line["sequence_number"].is_u64()).count(), 20);
        assert_eq!(singles, [201; 3]);
        batch.join().expect("ended")
    });
    assert!(daemon.stop().success());
    assert_eq!(world.audit().len(), 3 + 23 + in_batch);
}
