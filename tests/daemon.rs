//! From a posted event to evidence that an outsider verifies: the daemon's main job, end to end.

#![cfg(feature = "daemon")]

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use common::{Answer, Daemon, ORIGIN, REQUEST, World, request};
use serde_json::{Value, json};

#[test]
fn a_posted_event_becomes_an_entry_that_verifies() {
    let world = World::new();
    let daemon = world.serve();
    let entry = daemon.append(request(r#","actor_id":"agent-7","pillars_scores":{"an_toan":8,"duong_dai":7.5,"tin_vao_so_lieu":9,"han_che_rui_ro":8}"#));
    assert_eq!(entry["sequence_number"], 2);
    assert_eq!(entry["actor_id"], format!("uid:{}/agent-7", nix::unistd::getuid()));
    assert_eq!(entry["composite_score"], 8.125);
    assert_eq!(entry["safety_floor_met"], true);
    assert_eq!(entry["actor_context"]["peer"]["pid"], std::process::id());
    assert!(daemon.stop().success());
    let lines = world.audit();
    let actions: Vec<String> = lines
        .iter()
        .map(|line| serde_json::from_str::<Value>(line).expect("JSON"))
        .map(|entry| entry["action_type"].as_str().expect("a string").to_owned())
        .collect();
    assert_eq!(actions, ["ledger.genesis", "system_initialization", "test.run", "system_shutdown"]);
    assert!(lines[0].contains(ORIGIN));
}

#[test]
fn an_answer_that_cannot_be_written_says_that_the_event_is_sealed() {
    let world = World::new();
    let daemon = world.serve();
    for json in [&[][..], &["--json"]] {
        let mut command = world.program(env!("CARGO_BIN_EXE_attestctl"));
        command.args(["append", "--event-type", "ACTION", "--action-type", "a", "--status", "SUCCESS"]);
        command.args(["--actor-type", "HUMAN"]).args(json);
        let full = std::fs::File::options().write(true).open("/dev/full").expect("there");
        let output = command.stdout(full).output().expect("attestctl runs");
        let said = String::from_utf8_lossy(&output.stderr);
        let last = daemon.get("/v1/stats").json()["entries"].as_u64().expect("a number") - 1;
        assert!(said.contains(&format!("is sealed all the same, as entry {last}")), "{said}");
        assert_eq!(output.status.code(), Some(2), "{said}");
    }
    let output = world.attestctl(&["list", "--actor-id", "nobody"]);
    assert_eq!(
        (output.status.code(), &output.stdout[..], &output.stderr[..]),
        (Some(0), &b""[..], &b"no entries\n"[..])
    );
    assert!(daemon.stop().success());
}

#[test]
fn the_same_request_under_one_id_is_sealed_once() {
    let world = World::new();
    let daemon = world.serve();
    let id = r#","entry_id":"6f1c2a7e-3b4d-4c5e-8f90-112233445566""#;
    let first = daemon.append(request(id));
    let again = daemon.post("/v1/entries", request(id));
    assert_eq!((again.status, again.json()), (200, first));
    daemon.post("/v1/entries", request(&format!("{id},\"severity\":3"))).problem(409, "entry-id-conflict");
    let batch = [request(id), REQUEST.to_owned(), request(id)].join("\n");
    let lines = daemon.post("/v1/entries:batch", batch).lines();
    assert_eq!(lines[0]["sequence_number"], 2);
    assert_eq!(lines[1]["sequence_number"], 3);
    assert_eq!(lines[2], lines[0]);
    assert!(daemon.stop().success());
    assert_eq!(world.audit().len(), 5);
}

#[test]
fn what_the_ledger_says_is_not_for_everybody() {
    use std::os::unix::fs::PermissionsExt;

    let world = World::new();
    let _daemon = world.serve();
    for name in ["ledger.db", "ledger.db-wal", "index.db", "index.db-wal"] {
        let mode = std::fs::metadata(world.dir().join(name)).expect(name).permissions().mode();
        assert_eq!(mode & 0o007, 0, "{name} has mode {mode:o}");
    }
}

/// The entry that a start wrote, the last of its kind.
fn last_boot(lines: &[String]) -> Value {
    let mut boots = lines.iter().rev().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    boots.find(|entry| entry["event_type"] == "BOOT").expect("a BOOT entry")
}

#[test]
fn each_start_says_how_the_last_run_ended() {
    let world = World::new();
    let boot_of = |end: &dyn Fn(Daemon)| {
        let daemon = world.serve();
        let head = daemon.get("/v1/stats").json()["entries"].as_u64().expect("a number") - 2;
        end(daemon);
        let boot = last_boot(&world.audit());
        let payload = &boot["action_payload"];
        assert_eq!((&boot["actor_id"], &boot["actor_type"]), (&json!("attestd"), &json!("SYSTEM")));
        assert_eq!(boot["actor_context"], json!({}), "the daemon has no peer");
        assert_eq!((&payload["invariants_loaded"], &payload["initial_k_state"]), (&json!(7), &json!(1)));
        assert_eq!(payload["version"], env!("CARGO_PKG_VERSION"));
        assert_eq!(payload["head"]["sequence_number"], head);
        payload["previous_shutdown"].as_str().expect("a string").to_owned()
    };
    let stop = |daemon: Daemon| assert!(daemon.stop().success());
    let interrupt = |mut daemon: Daemon| {
        daemon.signal("INT");
        assert!(daemon.child.wait().expect("a child of ours").success());
    };
    assert_eq!(boot_of(&stop), "first");
    assert_eq!(boot_of(&interrupt), "clean");
    assert_eq!(boot_of(&Daemon::kill), "clean");
    let append_and_kill = |daemon: Daemon| {
        daemon.append(REQUEST);
        daemon.kill();
    };
    assert_eq!(boot_of(&append_and_kill), "unclean");
    assert_eq!(boot_of(&stop), "unclean");
    assert_eq!(boot_of(&stop), "clean");
}

#[test]
fn a_second_daemon_is_refused_and_does_no_harm() {
    let world = World::new();
    let daemon = world.serve();
    let output = world.attestd(&["serve"]);
    assert!(!output.status.success());
    assert!(!String::from_utf8_lossy(&output.stderr).is_empty());
    daemon.append(REQUEST);
    assert!(daemon.stop().success());
    assert_eq!(world.audit().len(), 4);
}

#[test]
fn a_stop_under_load_keeps_all_that_was_acknowledged_and_ends_the_ledger() {
    for signal in ["TERM", "INT"] {
        let world = World::new();
        // The batches below never end by themselves.
        world.configure("server", "shutdown_timeout_seconds = 1");
        let mut daemon = world.serve();
        let acknowledged: Vec<Value> = std::thread::scope(|scope| {
            let batches: Vec<_> = (0..3).map(|_| scope.spawn(|| endless_batch(daemon.connect()))).collect();
            let singles: Vec<_> = (0..3).map(|_| scope.spawn(|| endless_singles(daemon.connect()))).collect();
            let deadline = std::time::Instant::now() + Duration::from_secs(60);
            while daemon.get("/v1/stats").json()["appended_since_start"].as_u64() < Some(1_000) {
                assert!(std::time::Instant::now() < deadline, "{}", daemon.log());
                std::thread::sleep(Duration::from_millis(20));
            }
            daemon.signal(signal);
            batches.into_iter().chain(singles).flat_map(|client| client.join().expect("ended")).collect()
        });
        assert!(daemon.child.wait().expect("a child of ours").success(), "{}", daemon.log());
        assert!(!world.socket().exists(), "the socket is gone");
        let lines = world.audit();
        let entries: Vec<Value> =
            lines.iter().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        assert!(acknowledged.len() > 100, "{} were acknowledged", acknowledged.len());
        let mut seen = std::collections::HashSet::new();
        for answer in &acknowledged {
            let sequence = answer["sequence_number"].as_u64().expect("a number") as usize;
            assert!(seen.insert(sequence), "{sequence} was acknowledged twice");
            for member in ["entry_id", "entry_hash", "hsm_signature", "timestamp"] {
                assert_eq!(answer[member], entries[sequence][member]);
            }
        }
        let last = entries.last().expect("entries");
        assert_eq!(
            (&last["event_type"], &last["action_type"]),
            (&json!("SHUTDOWN"), &json!("system_shutdown"))
        );
        assert_eq!(last["action_payload"]["reason"], format!("SIG{signal}"));
        // BOOT and the clients' entries, without genesis and itself.
        assert_eq!(last["action_payload"]["entries_sealed"], entries.len() - 2);
        let shutdowns = entries.iter().filter(|entry| entry["event_type"] == "SHUTDOWN").count();
        assert_eq!(shutdowns, 1);
    }
}

/// Writes and reads one batch until the daemon has no more of it; what it acknowledged.
fn endless_batch(mut stream: UnixStream) -> Vec<Value> {
    let head = "POST /v1/entries:batch HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).expect("sent");
    let read = BufReader::new(stream.try_clone().expect("a descriptor"));
    let piece = format!("{REQUEST}\n").repeat(10);
    let piece = format!("{:x}\r\n{piece}\r\n", piece.len());
    std::thread::scope(|scope| {
        scope.spawn(move || while stream.write_all(piece.as_bytes()).is_ok() {});
        let lines = read.lines().map_while(Result::ok).filter(|line| line.starts_with('{'));
        let mut acknowledged = Vec::new();
        for line in lines {
            // The last of a connection that is cut can be half a line, which is no answer.
            let Ok(answer) = serde_json::from_str::<Value>(&line) else { break };
            match answer["code"].as_str() {
                None => acknowledged.push(answer),
                Some(code) => assert_eq!(code, "shutting-down", "{answer}"),
            }
        }
        acknowledged
    })
}

/// Appends one by one until the daemon takes no more; what it acknowledged.
fn endless_singles(mut stream: UnixStream) -> Vec<Value> {
    let head = format!("POST /v1/entries HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", REQUEST.len());
    let mut acknowledged = Vec::new();
    while stream.write_all(format!("{head}{REQUEST}").as_bytes()).is_ok() {
        let mut first = [0];
        match stream.read(&mut first) {
            Ok(1) => {}
            _ => break,
        }
        let answer = Answer::read(&mut first.as_slice().chain(&mut stream));
        match answer.status {
            201 => acknowledged.push(answer.json()),
            _ => drop(answer.problem(503, "shutting-down")),
        }
    }
    acknowledged
}
