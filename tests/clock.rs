//! A wall clock that jumps: entries are refused until it is set back or an operator confirms it, the
//! ledger says who did, and its time never goes back.

#![cfg(feature = "daemon")]

mod common;

use std::time::Duration;

use common::{Answer, Daemon, REQUEST, World};
use serde_json::{Value, json};

const DAY: i64 = 86_400;

fn set(world: &World, seconds: i64) {
    let file = world.dir().join("clock");
    std::fs::write(file.with_extension("next"), seconds.to_string()).expect("written");
    std::fs::rename(file.with_extension("next"), file).expect("renamed");
}

fn serve(world: &World) -> Daemon {
    let file = world.dir().join("clock");
    world.serve_with(|command| {
        command.env("ATTESTD_CLOCK_SET", file);
    })
}

fn entries(world: &World) -> Vec<Value> {
    world.audit().iter().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn time(entry: &Value) -> jiff::Timestamp {
    entry["timestamp"].as_str().expect("text").parse().expect("a time")
}

#[test]
fn after_a_jump_nothing_is_taken_until_an_operator_confirms_the_clock() {
    let world = World::new();
    let daemon = serve(&world);
    let before = daemon.append(REQUEST);
    set(&world, DAY);
    for _ in 0..2 {
        let refused = daemon.post("/v1/entries", REQUEST);
        refused.problem(503, "clock-jumped");
        assert_eq!(refused.header("retry-after"), Some("1"));
    }
    let lines = daemon.post("/v1/entries:batch", format!("{REQUEST}\n\n{REQUEST}\n")).lines();
    let said: Vec<_> = lines.iter().map(|line| (&line["code"], &line["line"])).collect();
    assert_eq!(said, [(&json!("clock-jumped"), &json!(1)), (&json!("clock-jumped"), &json!(3))]);
    daemon.get("/readyz").problem(503, "clock-jumped");
    assert_eq!(daemon.get("/v1/entries/1").status, 200, "reads go on");

    let answer = daemon.post("/v1/clock:confirm", "");
    assert_eq!(answer.status, 201, "{}", answer.text());
    let confirmed = answer.json();
    assert_eq!(confirmed["action_type"], "system_clock");
    assert_eq!(
        (&confirmed["event_type"], &confirmed["event_category"]),
        (&json!("ACTION"), &json!("WARNING"))
    );
    assert_eq!(confirmed["timestamp"], before["timestamp"], "the new time begins after it");
    let payload = &confirmed["action_payload"];
    assert_eq!(payload["found"], "jumped");
    let jumped = payload["jumped_microseconds"].as_i64().expect("a number");
    assert!((DAY * 1_000_000 - jumped).abs() < 5_000_000, "{jumped}");
    assert_eq!(payload["requested_by"]["peer"]["uid"], nix::unistd::geteuid().as_raw());
    assert!(confirmed["actor_context"].get("peer").is_none(), "the entry is the daemon's own");

    let after = daemon.append(REQUEST);
    let ahead = time(&after).duration_since(time(&before)).as_secs();
    assert!((DAY..DAY + 60).contains(&ahead), "{ahead}");
    assert_eq!(daemon.get("/readyz").status, 200);
    let again = daemon.post("/v1/clock:confirm", "");
    assert_eq!((again.status, again.json()), (200, json!({ "status": "in-step" })));
    // Set back, it is behind the ledger, whose time stands still until it has caught up.
    set(&world, 0);
    let behind = daemon.append(REQUEST);
    assert!(
        time(&behind) >= time(&after)
            && time(&behind).duration_since(time(&after)) < jiff::SignedDuration::from_secs(5)
    );
    assert!(daemon.stop().success());
    let entries = entries(&world);
    assert_eq!(entries.iter().filter(|entry| entry["action_type"] == "system_clock").count(), 1);
    assert!(entries.is_sorted_by_key(time));
}

#[test]
fn a_clock_that_is_set_back_needs_no_word() {
    let world = World::new();
    let daemon = serve(&world);
    set(&world, 3_590);
    daemon.append(REQUEST);
    set(&world, 3_700);
    daemon.post("/v1/entries", REQUEST).problem(503, "clock-jumped");
    set(&world, 0);
    daemon.append(REQUEST);
    assert!(daemon.stop().success());
    assert!(!entries(&world).iter().any(|entry| entry["action_type"] == "system_clock"));
}

#[test]
fn a_second_jump_wants_a_second_word_and_a_stop_does_not() {
    let world = World::new();
    let daemon = serve(&world);
    for jump in 1..=2 {
        set(&world, jump * DAY);
        daemon.post("/v1/entries", REQUEST).problem(503, "clock-jumped");
        assert_eq!(daemon.post("/v1/clock:confirm", "").status, 201);
        daemon.append(REQUEST);
    }
    set(&world, 3 * DAY);
    daemon.post("/v1/entries", REQUEST).problem(503, "clock-jumped");
    assert!(daemon.stop().success(), "its own last entry is written");
    // What the clock says at a start is taken.
    let daemon = serve(&world);
    daemon.append(REQUEST);
    assert!(daemon.stop().success());
    assert_eq!(entries(&world).iter().filter(|entry| entry["action_type"] == "system_clock").count(), 2);
}

#[test]
fn only_who_may_administer_confirms_it() {
    let world = World::new();
    let rules = "[[callers]]\nname = \"nobody else\"\nuid = 4711\nverbs = [\"append\", \"read\", \"administer\"]\nactor_ids = [\"x\"]\nactor_types = [\"SYSTEM\"]\nevent_types = [\"ACTION\"]\n";
    std::fs::write(world.dir().join("rules.toml"), rules).expect("written");
    world.configure("rules", "file = \"rules.toml\"");
    let daemon = serve(&world);
    set(&world, DAY);
    daemon.post("/v1/clock:confirm", "").problem(403, "caller-not-allowed");
    daemon.get("/readyz").problem(503, "clock-jumped");
    set(&world, 0);
    assert!(daemon.stop().success());
    world.audit();
}

#[test]
fn it_is_confirmed_from_the_command_line() {
    let world = World::new();
    let daemon = serve(&world);
    let confirm = |arguments: &[&str]| {
        let output = world.attestctl(&[&["clock", "confirm"], arguments].concat());
        (output.status.code(), String::from_utf8(output.stdout).expect("UTF-8"))
    };
    let nothing = "there is nothing to confirm: the clock has not jumped, or was confirmed already\n";
    assert_eq!(confirm(&[]), (Some(0), nothing.to_owned()));
    set(&world, 2 * DAY + 7_260);
    assert_eq!(world.attestctl(&["status"]).status.code(), Some(4));
    let (code, said) = confirm(&[]);
    assert_eq!(code, Some(0));
    assert!(said.starts_with("confirmed: the clock jumped forward by 2 d 2 h and said 20"), "{said}");
    assert!(said.ends_with("; entry 2 says so\n"), "{said}");
    assert_eq!(confirm(&["--json"]).1, "{\"status\":\"in-step\"}\n");
    assert!(daemon.stop().success());
    world.audit();
}

/// Whole requests and odd ones, byte for byte, while the clock has jumped.
#[test]
fn raw_requests_to_a_daemon_whose_clock_jumped() {
    let world = World::new();
    let daemon = serve(&world);
    set(&world, DAY);
    let cases: &[(&[u8], u16, Option<&str>)] = &[
        (b"POST /v1/clock:confirm HTTP/1.1\r\n\r\n", 400, Some("http")),
        (
            b"GET /v1/clock:confirm HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
            405,
            Some("method-not-allowed"),
        ),
        (
            b"POST /v1/clock HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
            404,
            Some("not-found"),
        ),
        (
            b"POST /v1/clock:confirm/ HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
            404,
            Some("not-found"),
        ),
        (
            b"POST /v1/entries HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 3\r\n\r\n\xff{}",
            400,
            None,
        ),
        (b"GET /readyz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", 503, Some("clock-jumped")),
    ];
    for (bytes, status, code) in cases {
        let answer = Answer::parse(&daemon.raw(bytes));
        let sent = String::from_utf8_lossy(bytes);
        // What lacks a host may be taken: HTTP says it should not be, nothing depends on it.
        if *code == Some("http") {
            assert!([201, 400].contains(&answer.status), "{sent}: {}", answer.text());
            set(&world, 2 * DAY);
            continue;
        }
        assert_eq!(answer.status, *status, "{sent}: {}", answer.text());
        if let Some(code) = code {
            answer.problem(*status, code);
        }
    }
    // A refused entry, as it is on the wire.
    let request = format!(
        "POST /v1/entries HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{REQUEST}",
        REQUEST.len()
    );
    let answer = String::from_utf8(daemon.raw(request.as_bytes())).expect("UTF-8");
    assert!(answer.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{answer}");
    assert!(answer.to_lowercase().contains("\r\nretry-after: 1\r\n"), "{answer}");
    assert!(
        answer.contains(r#""code":"clock-jumped""#) && answer.contains("`attestctl clock confirm`"),
        "{answer}"
    );
    // A body that says something else changes nothing.
    let confirm = b"POST /v1/clock:confirm HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 4\r\n\r\n\xff\0{}";
    assert_eq!(Answer::parse(&daemon.raw(confirm)).status, 201);
    std::thread::sleep(Duration::from_millis(10));
    daemon.append(REQUEST);
    assert!(daemon.stop().success());
    world.audit();
}
