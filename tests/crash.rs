//! The daemon dies at any moment: by `kill -9` under load, and at each exact place of a commit.
//! After the next start every acknowledged entry is there, byte for byte, every id was sealed at
//! most once, and what was reserved is sealed as it was reserved.

#![cfg(feature = "daemon")]

mod common;

use std::collections::{HashMap, HashSet};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use attestd::ledger::entry::Sequence;
use attestd::store::Reader;
use common::{Daemon, REQUEST, World, request};
use rusqlite::Connection;
use serde_json::Value;

const KILLS: usize = 56;

/// What clients learned while daemons came and went, by entry id.
#[derive(Default)]
struct Seen {
    /// Every request that was sent under an id.
    asked: HashMap<String, String>,
    /// `entry_id` → what the daemon said of it: whole entries and a batch's acknowledgements.
    acknowledged: HashMap<String, Value>,
}

#[test]
fn killed_again_and_again_under_load_it_loses_and_changes_nothing() {
    let world = World::new();
    let seen = Mutex::new(Seen::default());
    let mut lines: Vec<String> = Vec::new();
    let mut entropy = 0x9e37_79b9_7f4a_7c15_u64;
    for round in 0..KILLS {
        let daemon = world.serve();
        let before = world.audit();
        // What was in the ledger once is there for good, acknowledged or not.
        assert!(before.len() > lines.len() && before.starts_with(&lines), "round {round}");
        hold_acknowledged(&before, &seen);

        entropy = entropy.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let lifetime = Duration::from_millis(20 + (entropy >> 33) % 80);
        let socket = world.socket();
        std::thread::scope(|scope| {
            // Two clients send the same requests under the same ids at the same time.
            for (client, shared) in ["a", "b", "shared", "shared"].into_iter().enumerate() {
                let (socket, seen) = (&socket, &seen);
                scope.spawn(move || append_until_it_dies(socket, seen, round, shared, client));
            }
            let (socket, seen) = (&socket, &seen);
            scope.spawn(move || batches_until_it_dies(socket, seen, round));
            std::thread::sleep(lifetime);
            daemon.kill();
        });
        lines = before;
        if round % 14 == 13 {
            replay(&world.serve(), &seen);
        }
    }
    let daemon = world.serve();
    replay(&daemon, &seen);
    assert!(daemon.stop().success());
    let last = world.audit();
    assert!(last.starts_with(&lines));
    hold_acknowledged(&last, &seen);
    let seen = seen.into_inner().expect("not poisoned");
    println!("{} entries, {} acknowledged, {KILLS} kills", last.len(), seen.acknowledged.len());
    assert!(seen.acknowledged.len() > 2 * KILLS, "there was load: {}", seen.acknowledged.len());
}

fn append_until_it_dies(socket: &Path, seen: &Mutex<Seen>, round: usize, who: &str, client: usize) {
    for number in 0.. {
        // Some have no id of their own.
        let id = (number % 3 != 2).then(|| id_of(&format!("{round}/{who}/{number}")));
        let body = body_of(id.as_deref(), &format!("{who}-{number}"));
        note_asked(seen, id.as_deref(), &body);
        let Some((status, answer)) = post(socket, "/v1/entries", body.as_bytes()) else { return };
        match status {
            200 | 201 => acknowledge(seen, serde_json::from_slice(&answer).expect("a sealed entry")),
            // What a daemon that is dying may say.
            503 => {}
            _ => panic!("client {client}: {status} {}", String::from_utf8_lossy(&answer)),
        }
    }
}

fn batches_until_it_dies(socket: &Path, seen: &Mutex<Seen>, round: usize) {
    for batch in 0.. {
        let bodies: Vec<String> = (0..40)
            .map(|line| {
                let id = id_of(&format!("{round}/batch-{batch}/{line}"));
                let body = body_of(Some(&id), &format!("batch-{batch}-{line}"));
                note_asked(seen, Some(&id), &body);
                body
            })
            .collect();
        let Some(answer) = exchange(socket, "/v1/entries:batch", bodies.join("\n").as_bytes()) else {
            return;
        };
        let whole_lines = answer.rsplit_once('\n').map_or("", |(whole, _)| whole);
        for line in whole_lines.lines().filter(|line| line.starts_with("{\"sequence_number\"")) {
            acknowledge(seen, serde_json::from_str(line).expect("an acknowledgement"));
        }
    }
}

/// Every id again: what was acknowledged comes back the same, what was not is sealed now, once.
fn replay(daemon: &Daemon, seen: &Mutex<Seen>) {
    let asked: Vec<(String, String)> = seen
        .lock()
        .expect("not poisoned")
        .asked
        .iter()
        .map(|(id, body)| (id.clone(), body.clone()))
        .collect();
    // A client that writes everything before it reads may have 4 MiB of answers.
    for part in asked.chunks(2_000) {
        let bodies: Vec<&str> = part.iter().map(|(_, body)| body.as_str()).collect();
        let answers = daemon.post("/v1/entries:batch", bodies.join("\n")).lines();
        assert_eq!(answers.len(), part.len());
        for ((id, _), answer) in part.iter().zip(answers) {
            assert_eq!(answer["entry_id"], **id, "{answer}");
            acknowledge(seen, answer);
        }
    }
    // One of them as a single append gives the whole entry.
    if let Some((id, body)) = asked.first() {
        let again = daemon.post("/v1/entries", body);
        assert_eq!(again.status, 200, "{}", again.text());
        assert_eq!(again.json(), daemon.get(&format!("/v1/entries/{id}")).json());
    }
}

/// Two acknowledgements of one id must agree in all that both say.
fn acknowledge(seen: &Mutex<Seen>, said: Value) {
    let id = said["entry_id"].as_str().expect("an id").to_owned();
    let mut seen = seen.lock().expect("not poisoned");
    match seen.acknowledged.get(&id) {
        Some(before) => hold_same(before, &said),
        None => drop(seen.acknowledged.insert(id, said)),
    }
}

fn hold_same(one: &Value, other: &Value) {
    let (one, other) = (one.as_object().expect("an object"), other.as_object().expect("an object"));
    let (fewer, more) = if one.len() <= other.len() { (one, other) } else { (other, one) };
    for (name, value) in fewer {
        assert_eq!(Some(value), more.get(name), "{name} of {}", more["entry_id"]);
    }
}

/// Each acknowledged entry stands in the ledger as it was acknowledged, and each id once.
fn hold_acknowledged(lines: &[String], seen: &Mutex<Seen>) {
    let seen = seen.lock().expect("not poisoned");
    let mut ids = HashSet::new();
    let mut found = 0;
    for line in lines {
        let entry: Value = serde_json::from_str(line).expect("JSON");
        let id = entry["entry_id"].as_str().expect("an id").to_owned();
        if let Some(said) = seen.acknowledged.get(&id) {
            hold_same(said, &entry);
            found += 1;
        }
        assert!(ids.insert(id), "an id was sealed twice: {line}");
    }
    assert_eq!(found, seen.acknowledged.len(), "an acknowledged entry is lost");
}

fn note_asked(seen: &Mutex<Seen>, id: Option<&str>, body: &str) {
    if let Some(id) = id {
        seen.lock().expect("not poisoned").asked.insert(id.to_owned(), body.to_owned());
    }
}

fn body_of(id: Option<&str>, note: &str) -> String {
    let id = id.map_or(String::new(), |id| format!(r#","entry_id":"{id}""#));
    request(&format!(r#"{id},"result_data":{{"note":"{note}","filler":"{}"}}"#, "x".repeat(note.len() * 20)))
}

/// A version 4 UUID that is a function of `name`.
fn id_of(name: &str) -> String {
    let hash = attestd::ledger::hash::Digest::of(name.as_bytes());
    let mut bytes: [u8; 16] = hash.0[..16].try_into().expect("16 bytes");
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    uuid::Uuid::from_bytes(bytes).to_string()
}

/// Status and body of a whole answer; none when the daemon died before it was there.
fn post(socket: &Path, path: &str, body: &[u8]) -> Option<(u16, Vec<u8>)> {
    let answer = speak(socket, path, body)?;
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&answer[..end]).to_lowercase();
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let length: usize = head.split("content-length: ").nth(1)?.lines().next()?.parse().ok()?;
    let body = &answer[end + 4..];
    (body.len() == length).then(|| (status, body.to_vec()))
}

/// The body of a streamed answer, as far as it came.
fn exchange(socket: &Path, path: &str, body: &[u8]) -> Option<String> {
    let answer = speak(socket, path, body)?;
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n")?;
    let mut rest = &answer[end + 4..];
    let mut out = Vec::new();
    while let Some(end) = rest.windows(2).position(|window| window == b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..end]).ok()?.trim(), 16).ok()?;
        let chunk = &rest[end + 2..];
        out.extend_from_slice(&chunk[..size.min(chunk.len())]);
        rest = chunk.get(size + 2..).unwrap_or_default();
    }
    String::from_utf8(out).ok()
}

fn speak(socket: &Path, path: &str, body: &[u8]) -> Option<Vec<u8>> {
    let mut stream = UnixStream::connect(socket).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(60))).ok()?;
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(&[head.as_bytes(), body].concat()).ok()?;
    let mut answer = Vec::new();
    // A daemon that dies resets the connection; what came before counts.
    let _ = stream.read_to_end(&mut answer);
    Some(answer)
}

/// What a daemon that dies at a place leaves behind.
#[derive(Debug, PartialEq)]
enum Left {
    /// Nothing of the entry.
    Nothing,
    /// The entry, reserved.
    Reserved,
    /// The entry, sealed.
    Sealed,
}

#[test]
#[cfg_attr(not(debug_assertions), ignore = "fail points are in debug builds only")]
fn dying_before_the_reserve_leaves_nothing() {
    die_while_appending("before-reserve", &Left::Nothing);
}

#[test]
#[cfg_attr(not(debug_assertions), ignore = "fail points are in debug builds only")]
fn dying_after_the_reserve_signs_the_same_entry_later() {
    die_while_appending("after-reserve", &Left::Reserved);
}

#[test]
#[cfg_attr(not(debug_assertions), ignore = "fail points are in debug builds only")]
fn dying_after_signing_signs_the_same_entry_again() {
    die_while_appending("after-sign", &Left::Reserved);
}

#[test]
#[cfg_attr(not(debug_assertions), ignore = "fail points are in debug builds only")]
fn dying_after_the_commit_keeps_an_entry_that_nobody_heard_of() {
    die_while_appending("after-commit", &Left::Sealed);
}

/// The daemon dies at `place` while the third of its clients' entries is there.
fn die_while_appending(place: &str, left: &Left) {
    let world = World::new();
    let mut daemon = world.serve_with(|command| {
        // The BOOT entry gets there first.
        command.env("ATTESTD_CRASH_AT", format!("{place}:4"));
    });
    let sealed = [daemon.append(REQUEST), daemon.append(REQUEST)];
    let id = id_of(place);
    let fatal = body_of(Some(&id), place);
    assert_eq!(post(&world.socket(), "/v1/entries", fatal.as_bytes()), None);
    assert_eq!(daemon.child.wait().expect("a child of ours").signal(), Some(nix::libc::SIGABRT));

    let reserved = reserved_bodies(&world);
    let reader = Reader::open(&world.ledger()).expect("readable");
    let readable = if *left == Left::Sealed { 5 } else { 4 };
    assert_eq!(reader.count().expect("readable"), readable);
    assert_eq!(reader.line(Sequence(4)).expect("readable").is_some(), *left == Left::Sealed);
    assert_eq!(reserved.len(), usize::from(*left == Left::Reserved));
    // Evidence can be taken before anybody starts the daemon again, and has what is sealed.
    assert_eq!(world.audit().len() as u64, readable);

    hold_after_restart(&world, &reserved, &sealed);
    let daemon = world.serve();
    let again = daemon.post("/v1/entries", &fatal);
    assert_eq!(again.status, if *left == Left::Nothing { 201 } else { 200 }, "{}", again.text());
    assert_eq!(daemon.post("/v1/entries", &fatal).body, again.body);
    daemon.kill();
    let lines = world.audit();
    assert_eq!(lines.iter().filter(|line| line.contains(&id)).count(), 1);
}

#[test]
#[cfg_attr(not(debug_assertions), ignore = "fail points are in debug builds only")]
fn dying_while_it_signs_again_signs_the_same_entries_the_next_time() {
    let world = World::new();
    let mut daemon = world.serve_with(|command| {
        command.env("ATTESTD_CRASH_AT", "after-reserve:3");
    });
    let sealed = daemon.append(REQUEST);
    let batch = vec![REQUEST; 20].join("\n");
    exchange(&world.socket(), "/v1/entries:batch", batch.as_bytes());
    daemon.child.wait().expect("a child of ours");
    let reserved = reserved_bodies(&world);
    assert!(!reserved.is_empty());
    for _ in 0..2 {
        let mut command = world.program(env!("CARGO_BIN_EXE_attestd"));
        command.arg("serve").arg("--config").arg(world.config());
        let output = command.env("ATTESTD_CRASH_AT", "after-signing-again").output().expect("attestd runs");
        assert_eq!(output.status.signal(), Some(nix::libc::SIGABRT));
        assert_eq!(reserved_bodies(&world), reserved);
        assert_eq!(Reader::open(&world.ledger()).and_then(|reader| reader.count()).expect("readable"), 3);
    }
    hold_after_restart(&world, &reserved, &[sealed]);
}

#[test]
#[cfg_attr(not(debug_assertions), ignore = "fail points are in debug builds only")]
fn dying_before_the_first_boot_entry_is_sealed_is_mended_like_any_other() {
    let world = World::new();
    let mut command = world.program(env!("CARGO_BIN_EXE_attestd"));
    command.arg("serve").arg("--config").arg(world.config()).env("ATTESTD_CRASH_AT", "after-sign");
    assert_eq!(command.output().expect("attestd runs").status.signal(), Some(nix::libc::SIGABRT));
    let reserved = reserved_bodies(&world);
    assert!(reserved[0].contains(r#""previous_shutdown":"first""#), "{}", reserved[0]);
    hold_after_restart(&world, &reserved, &[]);
}

#[test]
#[cfg_attr(not(debug_assertions), ignore = "fail points are in debug builds only")]
fn dying_within_an_index_write_leaves_an_index_that_is_completed() {
    let world = World::new();
    let mut daemon = world.serve_with(|command| {
        command.env("ATTESTD_CRASH_AT", "within-index-write:3");
    });
    let mut sealed = Vec::new();
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut number = 0;
    while daemon.child.try_wait().expect("a child of ours").is_none() {
        assert!(Instant::now() < deadline, "it does not die");
        number += 1;
        let body = body_of(Some(&id_of(&format!("index-{number}"))), "index");
        if let Some((201, entry)) = post(&world.socket(), "/v1/entries", body.as_bytes()) {
            sealed.push(serde_json::from_slice::<Value>(&entry).expect("JSON"));
        }
        // The index writes when nothing has come for a while.
        std::thread::sleep(Duration::from_millis(100 * (number % 8)));
    }
    assert!(sealed.len() >= 2);
    hold_after_restart(&world, &[], &sealed);
    let daemon = world.serve();
    for entry in &sealed {
        let id = entry["entry_id"].as_str().expect("an id");
        assert_eq!(daemon.get(&format!("/v1/entries/{id}")).json(), *entry);
    }
    let listed = daemon.get("/v1/entries?action_type=test.run&order=asc&limit=1000").json();
    assert_eq!(listed["entries"].as_array().expect("an array")[..sealed.len()], sealed[..]);
}

/// Starts, stops and audits: what was acknowledged is unchanged, what was reserved is sealed as it
/// was, and the BOOT entry says how the last life ended.
fn hold_after_restart(world: &World, reserved: &[String], sealed: &[Value]) {
    let before = world.audit();
    let daemon = world.serve();
    assert!(daemon.stop().success());
    assert_eq!(reserved_bodies(world), Vec::<String>::new());
    let lines = world.audit();
    assert!(lines.starts_with(&before));
    for (body, line) in reserved.iter().zip(&lines[before.len()..]) {
        assert_eq!(*body, without_signature(line));
    }
    let entries: Vec<Value> = lines.iter().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    for entry in sealed {
        assert_eq!(entries[entry["sequence_number"].as_u64().expect("a number") as usize], *entry);
    }
    let boot = &entries[before.len() + reserved.len()];
    assert_eq!(boot["action_type"], "system_initialization");
    assert_eq!(boot["action_payload"]["previous_shutdown"], "unclean");
    assert_eq!(boot["action_payload"]["verified_to"], before.len() + reserved.len() - 1);
}

/// The reserved entries as they stand in the file. Read from a copy: who opens the ledger itself
/// as its only user moves its WAL.
fn reserved_bodies(world: &World) -> Vec<String> {
    let copy = tempfile::tempdir_in(world.dir()).expect("a directory");
    for suffix in ["", "-wal"] {
        let from = world.dir().join(format!("ledger.db{suffix}"));
        if from.exists() {
            std::fs::copy(from, copy.path().join(format!("ledger.db{suffix}"))).expect("copied");
        }
    }
    let connection = Connection::open(copy.path().join("ledger.db")).expect("opened");
    let mut select = connection
        .prepare(
            "SELECT body FROM entries JOIN commits ON sequence >= first AND sequence < first + count \
             WHERE signatures IS NULL ORDER BY sequence",
        )
        .expect("prepared");
    let bodies = select.query_map([], |row| row.get::<_, Vec<u8>>(0)).expect("queried");
    bodies.map(|body| String::from_utf8(body.expect("a blob")).expect("UTF-8")).collect()
}

fn without_signature(line: &str) -> String {
    let begin = line.find(r#""hsm_signature":""#).expect("a signature") + r#""hsm_signature":""#.len();
    let end = begin + line[begin..].find('"').expect("an end");
    format!("{}{}", &line[..begin], &line[end..])
}
