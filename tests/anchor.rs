//! What happens when somebody takes the ledger back, cuts it, swaps it, or runs two of it: the
//! anchors say so, the daemon does not extend what contradicts them, and an operator has a way on.

#![cfg(feature = "daemon")]

mod common;

use std::path::PathBuf;
use std::process::Output;
use std::time::{Duration, Instant};

use attestd::ledger::canonical;
use attestd::ledger::checkpoint::Note;
use attestd::ledger::entry::Sequence;
use attestd::ledger::hash::Digest;
use attestd::store::Reader;
use common::{Daemon, ORIGIN, REQUEST, World, inject, module};
use serde_json::Value;

const NEVER: &str = "token_interval_seconds = 604800";

/// A ledger with the anchors that `lines` configure.
fn anchored(lines: &str) -> World {
    let world = World::without_ledger();
    world.configure("anchor", lines);
    let output = world.attestd(&["init"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    world
}

fn with_file() -> World {
    anchored("file = \"anchor\"")
}

fn anchor(world: &World) -> PathBuf {
    world.dir().join("anchor")
}

fn anchored_entries(world: &World) -> u64 {
    let note = Note::parse(&std::fs::read(anchor(world)).expect("readable")).expect("a note");
    note.checkpoint().root().size.leaves()
}

fn entries(world: &World) -> u64 {
    Reader::open(&world.ledger()).and_then(|reader| reader.count()).expect("readable")
}

/// Runs the daemon for `count` entries and stops it.
fn run(world: &World, count: usize) {
    let daemon = world.serve();
    for _ in 0..count {
        daemon.append(REQUEST);
    }
    assert!(daemon.stop().success());
}

/// `attestd serve` where it must not start, with an end in case it does.
fn serve(world: &World) -> Output {
    let mut command = world.program("timeout");
    command.args(["60", env!("CARGO_BIN_EXE_attestd"), "serve", "--config"]).arg(world.config());
    command.output().expect("timeout runs")
}

/// Holds that the ledger is refused, is as it was, and can still be exported.
fn refused(world: &World, reasons: &[&str]) {
    let before = entries(world);
    let output = serve(world);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(78), "{said}");
    for reason in reasons.iter().chain(&["the ledger is not extended", "what to do: "]) {
        assert!(said.contains(reason), "{reason:?} is not in {said}");
    }
    assert_eq!(entries(world), before);
    world.audit();
}

fn reset(world: &World) -> Output {
    reset_because(world, "the disk of the anchor died")
}

fn reset_because(world: &World, reason: &str) -> Output {
    let mut command = world.program(env!("CARGO_BIN_EXE_attestd"));
    command.args(["anchor", "reset", "--reason", reason, "--config"]).arg(world.config());
    command.output().expect("attestd runs")
}

fn failed(output: &Output, code: i32, reason: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(said.contains(reason), "{reason:?} is not in {said}");
}

/// A copy of files of the world, which is not running, to be put back later.
struct Copy(Vec<(PathBuf, Option<Vec<u8>>)>);

impl Copy {
    fn of(world: &World, names: &[&str]) -> Self {
        let copy = |name: &&str| (world.dir().join(name), std::fs::read(world.dir().join(name)).ok());
        Copy(names.iter().map(copy).collect())
    }

    /// With the index, which by itself shows that its ledger was longer.
    fn ledger(world: &World) -> Self {
        let files =
            ["ledger.db", "ledger.db-wal", "ledger.db-shm", "index.db", "index.db-wal", "index.db-shm"];
        Copy::of(world, &files)
    }

    fn put_back(&self) {
        for (path, bytes) in &self.0 {
            match bytes {
                Some(bytes) => std::fs::write(path, bytes).expect("written"),
                None => drop(std::fs::remove_file(path)),
            }
        }
    }
}

fn json_lines(world: &World) -> Vec<Value> {
    world.audit().iter().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn pkcs11_tool(world: &World, arguments: &[&str]) -> Output {
    let mut tool = world.program("pkcs11-tool");
    tool.arg("--module").arg(module()).args(["--token-label", "attestd", "--login", "--pin", "env:PIN"]);
    tool.env("PIN", std::fs::read_to_string(world.dir().join("hsm/pin")).expect("readable"));
    tool.args(arguments).output().expect("pkcs11-tool runs")
}

fn object() -> String {
    format!("attestd anchor {ORIGIN}")
}

/// What the token holds.
fn token_note(world: &World) -> Note {
    let file = world.dir().join("object");
    let label = object();
    let name = file.to_str().expect("UTF-8");
    let read = ["--read-object", "--type", "data", "--label", &label, "--output-file", name];
    let output = pkcs11_tool(world, &read);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Note::parse(&std::fs::read(file).expect("read")).expect("a note")
}

fn token_objects(world: &World) -> usize {
    let output = pkcs11_tool(world, &["--list-objects", "--type", "data"]);
    String::from_utf8_lossy(&output.stdout).matches("Data object").count()
}

#[test]
fn a_file_is_made_with_the_ledger_and_kept_up_with_it() {
    let world = with_file();
    assert_eq!(anchored_entries(&world), 1);
    let daemon = world.serve();
    assert!(daemon.log().contains("agrees with the ledger, 0 entries behind it"), "{}", daemon.log());
    daemon.append(REQUEST);
    let deadline = Instant::now() + Duration::from_secs(30);
    while anchored_entries(&world) < 3 {
        assert!(Instant::now() < deadline, "the anchor stays at {}", anchored_entries(&world));
        std::thread::sleep(Duration::from_millis(20));
    }
    let stats = || daemon.get("/v1/stats").json()["anchors"].take();
    let current = serde_json::json!([{"kind": "file", "entries": 3, "lag": 0}]);
    while stats() != current {
        assert!(Instant::now() < deadline, "{}", stats());
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(daemon.stop().success());
    assert_eq!(anchored_entries(&world), 4, "the SHUTDOWN entry is anchored too");
    let newest = Reader::open(&world.ledger()).and_then(|reader| reader.newest_note()).expect("readable");
    let held = std::fs::read(anchor(&world)).expect("readable");
    assert_eq!(newest.expect("there").as_str().as_bytes(), held);
    // After a kill it lags, which is said and no reason to refuse.
    let daemon = world.serve();
    for _ in 0..5 {
        daemon.append(REQUEST);
    }
    daemon.kill();
    run(&world, 0);
    assert_eq!(anchored_entries(&world), entries(&world));
}

#[test]
fn an_old_copy_of_the_ledger_is_refused() {
    let world = with_file();
    run(&world, 1);
    let old = Copy::ledger(&world);
    run(&world, 1);
    let new = Copy::ledger(&world);
    old.put_back();
    refused(&world, &["knows of 7 signed entries, the ledger has 4", "--successor-of"]);
    failed(&reset(&world), 78, "knows of 7 signed entries");
    new.put_back();
    run(&world, 0);
}

#[test]
fn a_tail_that_was_cut_is_missed() {
    let world = with_file();
    run(&world, 3);
    let connection = rusqlite::Connection::open(world.ledger()).expect("opened");
    for cut in ["DELETE FROM commits WHERE first >= 4", "DELETE FROM entries WHERE sequence >= 4"] {
        assert!(connection.execute(cut, []).expect("cut") > 0);
    }
    drop(connection);
    assert_eq!(entries(&world), 4);
    refused(&world, &["knows of 6 signed entries, the ledger has 4"]);
}

#[test]
fn a_fork_in_place_of_the_ledger_is_seen() {
    let world = with_file();
    run(&world, 1);
    let both = (Copy::ledger(&world), Copy::of(&world, &["anchor"]));
    run(&world, 1);
    let anchor = Copy::of(&world, &["anchor"]);
    both.0.put_back();
    both.1.put_back();
    // Whoever takes back the ledger and all its anchors is not seen; here the other branch grows.
    run(&world, 5);
    anchor.put_back();
    refused(&world, &["knows of 7 entries that are not those of this ledger", "keep both ledgers"]);
}

#[test]
fn what_an_old_anchor_does_not_see_lies_within_the_lag_that_is_printed() {
    let world = with_file();
    run(&world, 1);
    let anchor = Copy::of(&world, &["anchor"]);
    let lag = |world: &World| {
        std::fs::remove_file(world.dir().join("log")).expect("a log");
        let daemon = world.serve();
        let log = daemon.log();
        daemon.kill();
        let (_, after) = log.split_once("agrees with the ledger, ").expect("it is said");
        after.split(' ').next().and_then(|lag| lag.parse::<u64>().ok()).expect("a number")
    };
    let then = entries(&world);
    run(&world, 1);
    let middle = Copy::ledger(&world);
    run(&world, 4);
    anchor.put_back();
    assert_eq!(lag(&world), entries(&world) - then - 1, "the start itself has added one");
    // With the ledger taken back to any point since, the same anchor sees nothing: it said so.
    middle.put_back();
    anchor.put_back();
    assert_eq!(lag(&world), 3);
}

#[test]
fn a_lost_anchor_is_made_again_on_an_operators_word() {
    let world = with_file();
    run(&world, 1);
    failed(&reset(&world), 1, "no anchor is missing");
    std::fs::remove_file(anchor(&world)).expect("removed");
    refused(&world, &["is missing", "attestd anchor reset"]);
    failed(&reset_because(&world, ""), 1, "a reason is");
    failed(&reset_because(&world, "a\nb"), 1, "a reason is");
    assert_eq!(entries(&world), 4);
    let before = Reader::open(&world.ledger())
        .and_then(|reader| reader.tree(4)?.edge().map_err(Into::into))
        .expect("readable");
    let output = reset(&world);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!((anchored_entries(&world), entries(&world)), (5, 5));
    let daemon = world.serve();
    failed(&reset(&world), 1, "another process holds the lock");
    assert!(daemon.stop().success());

    let entries = json_lines(&world);
    let (made, boot) = (&entries[4], &entries[5]);
    assert_eq!((&made["event_type"], &made["action_type"]), (&"CHANGE".into(), &"ledger.anchor".into()));
    let payload = serde_json::json!({
        "anchor": "file", "reason": "the disk of the anchor died", "root": before.root().hash.to_string(), "size": 4,
    });
    assert_eq!(made["action_payload"], payload);
    assert_eq!(boot["action_payload"]["previous_shutdown"], "clean");
}

/// What the operator makes the ledger say stands under the rules in force, as everything else.
#[test]
fn an_anchor_is_made_again_under_rules() {
    let world = with_file();
    let daemon = world.serve();
    let rules = format!(
        "[[callers]]\nname = \"me\"\nuid = {}\nverbs = [\"administer\", \"append\", \"read\"]\n",
        nix::unistd::getuid()
    );
    assert_eq!(daemon.send("PUT", "/v1/rules", rules.as_bytes()).status, 201);
    assert!(daemon.stop().success());
    std::fs::remove_file(anchor(&world)).expect("removed");
    let output = reset(&world);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    run(&world, 1);
    world.audit();
}

#[test]
fn an_anchor_that_is_added_later_has_to_be_made() {
    let world = World::new();
    failed(&reset(&world), 78, "the configuration names no anchor");
    run(&world, 1);
    world.configure("anchor", "file = \"anchor\"\ntoken = true");
    refused(&world, &["anchor is missing"]);
    assert!(reset(&world).status.success());
    let added: Vec<Value> = json_lines(&world).split_off(4);
    let kinds: Vec<&Value> = added.iter().map(|entry| &entry["action_payload"]["anchor"]).collect();
    assert_eq!(kinds, ["file", "token"]);
    run(&world, 1);
    assert_eq!(token_note(&world).checkpoint().root().size.leaves(), entries(&world));
}

#[test]
fn two_copies_that_run_at_once_do_not_both_go_on() {
    let world = anchored("file = \"anchor\"\nfile_interval_seconds = 3");
    run(&world, 1);
    let config = std::fs::read_to_string(world.config()).expect("readable");
    let config = config.replace("\"ledger.db\"", "\"copy/ledger.db\"").replace("attestd.sock", "copy.sock");
    std::fs::write(world.dir().join("copy.toml"), config).expect("written");
    std::fs::create_dir(world.dir().join("copy")).expect("made");
    std::fs::copy(world.ledger(), world.dir().join("copy/ledger.db")).expect("copied");

    let mut original = world.serve();
    let log = std::fs::File::create(world.dir().join("copy.log")).expect("writable");
    let mut command = world.program(env!("CARGO_BIN_EXE_attestd"));
    command.args(["serve", "--config"]).arg(world.dir().join("copy.toml")).stderr(log);
    let mut copy = Killed(command.spawn().expect("started"));
    let deadline = Instant::now() + Duration::from_secs(60);
    let (status, log) = loop {
        if let Some(status) = original.child.try_wait().expect("a child of ours") {
            break (status, original.log());
        }
        if let Some(status) = copy.0.try_wait().expect("a child of ours") {
            break (status, std::fs::read_to_string(world.dir().join("copy.log")).expect("readable"));
        }
        assert!(Instant::now() < deadline, "both go on");
        std::thread::sleep(Duration::from_millis(20));
    };
    assert_eq!(status.code(), Some(78), "{log}");
    assert!(log.contains("two copies of it were run") && log.contains("what to do: "), "{log}");
}

struct Killed(std::process::Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn what_is_in_the_place_of_the_anchor_is_refused_by_name() {
    let world = with_file();
    run(&world, 1);
    let right = std::fs::read(anchor(&world)).expect("readable");
    let text = String::from_utf8(right.clone()).expect("UTF-8");
    let mut flipped = right.clone();
    let at = right.len() - 10;
    flipped[at] = if flipped[at] == b'A' { b'B' } else { b'A' };
    let other = text.replace(ORIGIN, "other.example/ledger");
    let longer = [&right[..], b"\n"].concat();
    let cases: [(&[u8], &str); 6] = [
        (b"", "it is not a checkpoint"),
        (b"\0\xff garbage", "it is not a checkpoint"),
        (&right[..right.len() - 1], "it is not a checkpoint"),
        (&longer, "it is not a checkpoint"),
        (&flipped, "is not signed by the ledger's key"),
        (other.as_bytes(), "belongs to the ledger of other.example"),
    ];
    for (bytes, reason) in cases {
        std::fs::write(anchor(&world), bytes).expect("written");
        refused(&world, &[reason, anchor(&world).to_str().expect("UTF-8")]);
        // A reset is for what is not there.
        failed(&reset(&world), 78, reason);
        assert_eq!(std::fs::read(anchor(&world)).expect("readable"), bytes);
    }
    std::fs::write(anchor(&world), right).expect("written");
    run(&world, 0);
}

#[test]
fn a_daemon_whose_anchor_is_swapped_under_it_stops() {
    let world = with_file();
    let daemon = world.serve();
    std::fs::write(anchor(&world), "garbage").expect("written");
    let mut daemon: Daemon = daemon;
    daemon.append(REQUEST);
    let status = daemon.child.wait().expect("a child of ours");
    assert_eq!(status.code(), Some(78), "{}", daemon.log());
    assert!(daemon.log().contains("it is not a checkpoint"), "{}", daemon.log());
    assert_eq!(std::fs::read(anchor(&world)).expect("readable"), b"garbage");
}

#[test]
fn the_token_keeps_one_object_and_sees_what_the_file_was_made_to_forget() {
    let world = anchored("file = \"anchor\"\ntoken = true");
    assert_eq!(token_note(&world).checkpoint().root().size.leaves(), 1);
    run(&world, 1);
    let old = (Copy::ledger(&world), Copy::of(&world, &["anchor"]));
    run(&world, 1);
    assert_eq!(token_note(&world).checkpoint().root().size.leaves(), 7);
    assert_eq!(token_objects(&world), 1, "the old one is destroyed");
    old.0.put_back();
    old.1.put_back();
    refused(&world, &["the anchor on the token", "knows of 7 signed entries, the ledger has 4"]);
    // Nor does losing the file help.
    std::fs::remove_file(anchor(&world)).expect("removed");
    failed(&reset(&world), 78, "the anchor on the token");
    assert_eq!(entries(&world), 4);
    assert!(!anchor(&world).exists());
}

#[test]
fn an_object_that_was_deleted_is_missed_and_made_again() {
    let world = anchored("token = true");
    run(&world, 1);
    let label = object();
    let output = pkcs11_tool(&world, &["--delete-object", "--type", "data", "--label", &label]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    refused(&world, &["the anchor on the token", "is missing"]);
    assert!(reset(&world).status.success());
    run(&world, 1);
    assert_eq!(token_note(&world).checkpoint().root().size.leaves(), entries(&world));
}

#[test]
fn what_the_token_does_not_see_lies_within_its_interval() {
    let world = anchored(&format!("token = true\n{NEVER}"));
    let daemon = world.serve();
    for _ in 0..3 {
        daemon.append(REQUEST);
    }
    std::thread::sleep(Duration::from_millis(1_500));
    assert_eq!(token_note(&world).checkpoint().root().size.leaves(), 1, "flash wears out");
    daemon.kill();
    let daemon = world.serve();
    assert!(daemon.log().contains("4 entries behind it"), "{}", daemon.log());
    assert_eq!(
        daemon.get("/v1/stats").json()["anchors"],
        serde_json::json!([{"kind": "token", "entries": 1, "lag": 5}])
    );
    assert!(daemon.stop().success());
    assert_eq!(token_note(&world).checkpoint().root().size.leaves(), entries(&world));
}

#[test]
fn a_token_that_keeps_no_objects_says_so_and_no_ledger_is_made() {
    let world = World::without_ledger();
    world.use_shim();
    world.configure("anchor", "file = \"anchor\"\ntoken = true");
    for code in ["CKR_TEMPLATE_INCONSISTENT", "CKR_FUNCTION_NOT_SUPPORTED", "CKR_ATTRIBUTE_VALUE_INVALID"] {
        inject(&world.shim_control(), &format!("return C_CreateObject {code}"));
        failed(&world.attestd(&["init"]), 1, "the token keeps no data objects: C_CreateObject: ");
        assert!(!world.ledger().exists() && !anchor(&world).exists());
    }
    inject(&world.shim_control(), "");
    assert!(world.attestd(&["init"]).status.success());
    // Of this origin there was one before, even where all its files are gone.
    for name in ["ledger.db", "public-key.pem", "anchor"] {
        std::fs::remove_file(world.dir().join(name)).expect("removed");
    }
    failed(&world.attestd(&["init"]), 1, "a ledger of this origin was made before");
}

#[test]
fn a_token_that_fails_to_write_is_tried_again() {
    let world = World::without_ledger();
    world.use_shim();
    world.configure("anchor", "token = true\ntoken_interval_seconds = 1");
    assert!(world.attestd(&["init"]).status.success());
    let daemon = world.serve();
    let wait_for = |text: &str| {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !daemon.log().contains(text) {
            assert!(Instant::now() < deadline, "{}", daemon.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    inject(&world.shim_control(), "return C_CreateObject CKR_DEVICE_ERROR");
    daemon.append(REQUEST);
    wait_for("trying again");
    daemon.append(REQUEST);
    inject(&world.shim_control(), "");
    wait_for("is up to date again");
    assert!(daemon.stop().success());
    assert_eq!(token_objects(&world), 1);
}

#[test]
fn a_successor_says_what_it_follows_and_what_was_never_signed() {
    let world = with_file();
    run(&world, 1);
    let old = Copy::ledger(&world);
    run(&world, 1);
    let newest = std::fs::read_to_string(anchor(&world)).expect("readable");
    old.put_back();
    // The copy was run by itself for a moment, and died with an entry reserved and never signed.
    std::fs::rename(anchor(&world), world.dir().join("lost")).expect("moved");
    let mut command = world.program(env!("CARGO_BIN_EXE_attestd"));
    command.args(["serve", "--config"]).arg(without_anchor(&world)).env("ATTESTD_CRASH_AT", "after-reserve");
    assert!(!command.output().expect("attestd runs").status.success());
    std::fs::rename(world.dir().join("lost"), anchor(&world)).expect("moved");
    assert_eq!(entries(&world), 4);
    let next = Next::of(&world);
    let before = std::fs::read(world.ledger()).expect("readable");
    let ledger = world.ledger();
    let ledger = ledger.to_str().expect("UTF-8");
    let init = |origin: &str, reason: &str, anchor: &str| {
        let arguments =
            ["--successor-of", ledger, "--origin", origin, "--reason", reason, "--old-anchor", anchor];
        next.attestd("init", &arguments)
    };
    let anchor = anchor(&world);
    let anchor = anchor.to_str().expect("UTF-8");
    failed(&init(ORIGIN, "rolled back", anchor), 1, "a successor has an origin of its own");
    failed(&init("third.example/ledger", "rolled back", anchor), 1, "a successor has an origin of its own");
    failed(&init("next.example/ledger", "", anchor), 1, "a reason is");
    failed(&init("next.example/ledger", "rolled back", "/nowhere"), 1, "/nowhere is no anchor");
    failed(&next.attestd("init", &["--successor-of", ledger]), 2, "--origin");
    assert!(!next.dir.join("ledger.db").exists());
    let output = init("next.example/ledger", "rolled back", anchor);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(std::fs::read(world.ledger()).expect("readable"), before, "the old ledger is only read");

    let reader = Reader::open(&next.dir.join("ledger.db")).expect("opened");
    let line = reader.line(Sequence(0)).expect("readable").expect("entry 0");
    let genesis: Value = serde_json::from_slice(&line.bytes).expect("JSON");
    let predecessor = &genesis["action_payload"]["predecessor"];
    let kept = Reader::open(&world.ledger())
        .and_then(|reader| reader.tree(4)?.edge().map_err(Into::into))
        .expect("readable")
        .root();
    let unsealed = std::fs::read(next.dir.join("unsealed.jsonl")).expect("written");
    assert_eq!(unsealed.iter().filter(|byte| **byte == b'\n').count(), 1);
    let boot = canonical::decode(unsealed.trim_ascii_end()).expect("an entry").entry;
    assert_eq!(
        (boot.sequence_number.0, boot.action_type, boot.hsm_signature),
        (4, "system_initialization", "")
    );
    let expected = serde_json::json!({
        "note": newest, "origin": ORIGIN, "reason": "rolled back", "root": kept.hash.to_string(), "size": 4,
        "unsealed": {"count": 1, "sha256": Digest::of(&unsealed).to_hex()},
    });
    assert_eq!(*predecessor, expected);
}

#[test]
fn a_successor_finds_the_anchor_on_the_token_by_itself() {
    let world = anchored("token = true");
    run(&world, 1);
    let old = Copy::ledger(&world);
    run(&world, 1);
    let newest = token_note(&world);
    old.put_back();
    let next = Next::of(&world);
    let ledger = world.ledger();
    let ledger = ledger.to_str().expect("UTF-8");
    let successor = ["--successor-of", ledger, "--origin", "next.example/ledger", "--reason", "rolled back"];
    let output = next.attestd("init", &successor);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let reader = Reader::open(&next.dir.join("ledger.db")).expect("opened");
    let line = reader.line(Sequence(0)).expect("readable").expect("entry 0");
    let genesis: Value = serde_json::from_slice(&line.bytes).expect("JSON");
    assert_eq!(genesis["action_payload"]["predecessor"]["note"], newest.as_str());
    assert_eq!(genesis["action_payload"]["predecessor"]["size"], 4);
    assert_eq!(token_objects(&world), 2, "each ledger has its own");
}

/// The same configuration without anchors.
fn without_anchor(world: &World) -> PathBuf {
    let config = std::fs::read_to_string(world.config()).expect("readable");
    let path = world.dir().join("without.toml");
    std::fs::write(&path, config.replace("file = \"anchor\"", "")).expect("written");
    path
}

/// A configuration of a successor, beside the ledger before and with the same token.
struct Next<'a> {
    world: &'a World,
    dir: PathBuf,
}

impl<'a> Next<'a> {
    fn of(world: &'a World) -> Self {
        let dir = world.dir().join("next");
        std::fs::create_dir(&dir).expect("made");
        let config = std::fs::read_to_string(world.config()).expect("readable");
        let config = config.replace(ORIGIN, "next.example/ledger").replace("hsm/pin", "../hsm/pin");
        std::fs::write(dir.join("attestd.toml"), config).expect("written");
        Next { world, dir }
    }

    fn attestd(&self, command: &str, arguments: &[&str]) -> Output {
        let mut program = self.world.program(env!("CARGO_BIN_EXE_attestd"));
        program.arg(command).arg("--config").arg(self.dir.join("attestd.toml")).args(arguments);
        program.output().expect("attestd runs")
    }
}
