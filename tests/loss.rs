//! A token that goes away while the daemon runs, in all the ways that modules have: nothing that was
//! acknowledged is lost, nothing wrong is stored, and it comes back without a restart.

#![cfg(feature = "daemon")]

mod common;

use std::time::{Duration, Instant};

use common::{Answer, Daemon, REQUEST, World, inject, request};
use serde_json::Value;

fn shimmed(lines: &str) -> World {
    let world = World::new();
    world.use_shim();
    inject(&world.shim_control(), "");
    world.configure("limits", "queue_wait_seconds = 1");
    if !lines.is_empty() {
        world.configure("token", lines);
    }
    world
}

fn wait_for(daemon: &Daemon, what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}: {}", daemon.log());
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn wait_until_ready(daemon: &Daemon) {
    wait_for(daemon, "not ready", || daemon.get("/readyz").status == 200);
}

fn entries(world: &World) -> Vec<Value> {
    world.audit().iter().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn of_type<'a>(entries: &'a [Value], action: &str) -> Vec<&'a Value> {
    entries.iter().filter(|entry| entry["action_type"] == action).collect()
}

#[test]
fn while_it_is_away_entries_are_refused_and_what_was_reserved_is_signed_later() {
    let world = shimmed("");
    let daemon = world.serve();
    daemon.append(REQUEST);
    inject(&world.shim_control(), "return C_Sign CKR_DEVICE_ERROR\n");
    // This one is reserved before anybody knows.
    let unknown = daemon.post("/v1/entries", REQUEST).problem(503, "outcome-unknown");
    let id = unknown["entry_id"].as_str().expect("an id").to_owned();
    for _ in 0..3 {
        let refused = daemon.post("/v1/entries", REQUEST);
        refused.problem(503, "token-unavailable");
        assert!(refused.header("retry-after").is_some());
    }
    let ready = daemon.get("/readyz").problem(503, "token-unavailable");
    assert!(ready["detail"].as_str().is_some_and(|why| why.contains("DeviceError")), "{ready}");
    daemon.get(&format!("/v1/entries/{id}")).problem(404, "not-found");
    assert_eq!(daemon.get("/v1/entries/1").status, 200, "reads go on");
    inject(&world.shim_control(), "");
    wait_until_ready(&daemon);
    wait_for(&daemon, "not signed", || daemon.get(&format!("/v1/entries/{id}")).status == 200);
    daemon.append(REQUEST);
    assert!(daemon.stop().success());
    let entries = entries(&world);
    let recovered = of_type(&entries, "system_recovered");
    let [recovered] = recovered[..] else { panic!("{recovered:?}") };
    assert_eq!(recovered["action_payload"]["refused"], 3);
    assert!(recovered["action_payload"]["reason"].as_str().is_some_and(|why| why.contains("DeviceError")));
    assert!(recovered["action_payload"]["since"].as_str() < recovered["action_payload"]["until"].as_str());
    assert_eq!(of_type(&entries, "test.run").len(), 3);
}

#[test]
fn what_is_held_is_answered_at_once_and_signed_as_it_was_reserved() {
    for mode in ["each", "commit"] {
        let world = shimmed("on_token_loss = \"hold\"\nhold_entries = 20");
        world.configure("signing", &format!("mode = \"{mode}\""));
        let daemon = world.serve();
        daemon.append(REQUEST);
        inject(&world.shim_control(), "return C_Sign CKR_TOKEN_NOT_PRESENT\n");
        let mut held: Vec<Value> = Vec::new();
        while held.len() < 12 {
            let answer = daemon.post("/v1/entries", REQUEST);
            assert_eq!(answer.status, 202, "{}", answer.text());
            held.push(answer.json());
        }
        let lines = daemon.post("/v1/entries:batch", format!("{REQUEST}\n").repeat(20)).lines();
        held.extend(lines.iter().filter(|line| line["status"] == "reserved").cloned());
        let refused = lines.iter().filter(|line| line["code"] == "token-unavailable").count();
        assert!((20..=24).contains(&held.len()) && held.len() + refused == 32, "{} held", held.len());
        for entry in &held {
            assert!(entry.get("hsm_signature").is_none(), "{entry}");
            let path = format!("/v1/entries/{}", entry["sequence_number"]);
            daemon.get(&path).problem(404, "not-found");
        }
        inject(&world.shim_control(), "");
        wait_until_ready(&daemon);
        daemon.append(REQUEST);
        assert!(daemon.stop().success());
        let entries = entries(&world);
        for entry in &held {
            let sealed = &entries[entry["sequence_number"].as_u64().expect("a number") as usize];
            assert_eq!(
                (&sealed["entry_id"], &sealed["entry_hash"]),
                (&entry["entry_id"], &entry["entry_hash"])
            );
        }
        assert_eq!(of_type(&entries, "system_recovered").len(), 1);
    }
}

#[test]
fn what_is_held_outlives_a_crash() {
    let world = shimmed("on_token_loss = \"hold\"");
    let daemon = world.serve();
    inject(&world.shim_control(), "return C_Sign CKR_DEVICE_REMOVED\n");
    let held: Vec<Value> = (0..5).map(|_| daemon.post("/v1/entries", REQUEST).json()).collect();
    daemon.kill();
    inject(&world.shim_control(), "");
    let daemon = world.serve();
    for entry in &held {
        let sealed = daemon.get(&format!("/v1/entries/{}", entry["sequence_number"])).json();
        assert_eq!(sealed["entry_hash"], entry["entry_hash"]);
    }
    assert!(daemon.stop().success());
    world.audit();
}

#[test]
fn signatures_that_are_none_are_never_stored() {
    for forgery in ["short", "garbage", "other-key"] {
        let world = shimmed("");
        let daemon = world.serve();
        inject(&world.shim_control(), &format!("signature {forgery}\n"));
        daemon.post("/v1/entries", REQUEST).problem(503, "outcome-unknown");
        daemon.get("/readyz").problem(503, "token-unavailable");
        inject(&world.shim_control(), "");
        wait_until_ready(&daemon);
        daemon.append(REQUEST);
        assert!(daemon.stop().success());
        assert_eq!(of_type(&entries(&world), "test.run").len(), 2, "{forgery}");
    }
}

#[test]
fn a_stop_while_it_is_away_ends_and_the_next_start_signs() {
    let world = shimmed("");
    let daemon = world.serve();
    inject(&world.shim_control(), "return C_Sign CKR_DEVICE_ERROR\n");
    daemon.post("/v1/entries", REQUEST).problem(503, "outcome-unknown");
    assert!(daemon.stop().success());
    inject(&world.shim_control(), "");
    let daemon = world.serve();
    assert!(daemon.stop().success());
    let entries = entries(&world);
    assert_eq!(of_type(&entries, "test.run").len(), 1);
    let boots = of_type(&entries, "system_initialization");
    assert_eq!(boots.last().expect("a boot")["action_payload"]["previous_shutdown"], "unclean");
}

#[test]
fn a_call_that_hangs_ends_the_process_and_the_next_start_signs() {
    let world = shimmed("hang_timeout_seconds = 1");
    let mut daemon = world.serve();
    inject(&world.shim_control(), "hang C_Sign\n");
    let head =
        format!("POST /v1/entries HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{REQUEST}", REQUEST.len());
    let mut stream = daemon.connect();
    std::io::Write::write_all(&mut stream, head.as_bytes()).expect("sent");
    let status = daemon.child.wait().expect("a child of ours");
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9), "{}", daemon.log());
    assert!(daemon.log().contains("hangs"), "{}", daemon.log());
    inject(&world.shim_control(), "");
    let daemon = world.serve();
    assert!(daemon.stop().success());
    assert_eq!(of_type(&entries(&world), "test.run").len(), 1);
}

#[test]
fn under_load_a_token_that_comes_and_goes_loses_nothing() {
    let world = shimmed("");
    let daemon = world.serve();
    let over = std::sync::atomic::AtomicBool::new(false);
    let acknowledged: Vec<Value> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let mut sealed = Vec::new();
                    while !over.load(std::sync::atomic::Ordering::Relaxed) {
                        let answer: Answer = daemon.post("/v1/entries", REQUEST);
                        match answer.status {
                            201 => sealed.push(answer.json()),
                            503 => std::thread::sleep(Duration::from_millis(5)),
                            other => panic!("{other}: {}", answer.text()),
                        }
                    }
                    sealed
                })
            })
            .collect();
        for fault in
            ["CKR_DEVICE_ERROR", "CKR_GENERAL_ERROR", "CKR_SESSION_HANDLE_INVALID", "CKR_DEVICE_MEMORY"]
        {
            std::thread::sleep(Duration::from_millis(150));
            inject(&world.shim_control(), &format!("return C_Sign {fault}\n"));
            std::thread::sleep(Duration::from_millis(150));
            inject(&world.shim_control(), "");
            wait_until_ready(&daemon);
        }
        std::thread::sleep(Duration::from_millis(150));
        over.store(true, std::sync::atomic::Ordering::Relaxed);
        clients.into_iter().flat_map(|client| client.join().expect("no panic")).collect()
    });
    assert!(daemon.stop().success());
    let entries = entries(&world);
    assert!(acknowledged.len() > 20, "{}", acknowledged.len());
    for entry in &acknowledged {
        assert_eq!(entry, &entries[entry["sequence_number"].as_u64().expect("a number") as usize]);
    }
}

#[test]
fn a_hundred_starts_try_a_refused_pin_once() {
    let world = shimmed("");
    let logins = world.dir().join("logins");
    let note = format!("note C_Login {}\n", logins.display());
    let start = || world.attestd_within(Duration::from_secs(20), &["serve"]);
    inject(&world.shim_control(), &format!("{note}return C_Login CKR_PIN_INCORRECT\n"));
    let begun = Instant::now();
    for _ in 0..100 {
        let output = start();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(78), "{said}");
        assert!(said.contains("PinIncorrect") && said.contains("attestctl pin clear"), "{said}");
    }
    println!("a hundred starts took {:?}", begun.elapsed());
    let tried = || std::fs::read_to_string(&logins).expect("noted").lines().count();
    assert_eq!(tried(), 1);
    inject(&world.shim_control(), &note);
    assert_eq!(start().status.code(), Some(78), "even when it would be right now");
    assert_eq!(tried(), 1);
    let config = world.config();
    let clear = || world.attestctl(&["pin", "clear", "--config", config.to_str().expect("UTF-8")]);
    assert!(clear().status.success());
    let again = clear();
    assert!(
        again.status.success() && String::from_utf8_lossy(&again.stdout).contains("nothing"),
        "{again:?}"
    );
    let daemon = world.serve();
    daemon.append(request(""));
    assert!(daemon.stop().success());
    assert_eq!(tried(), 2);
    world.audit();
    assert!(!world.dir().join("pin-latch").exists());
}

#[test]
fn away_at_the_start_the_ledger_is_read_and_boot_is_written_when_it_comes() {
    let world = shimmed("");
    let daemon = world.serve();
    let first = daemon.append(REQUEST);
    inject(&world.shim_control(), "return C_Sign CKR_DEVICE_ERROR\n");
    // Reserved, for the token to sign when it is there at last.
    daemon.post("/v1/entries", REQUEST).problem(503, "outcome-unknown");
    daemon.kill();
    // No token in any slot.
    inject(&world.shim_control(), "return C_GetSlotList CKR_DEVICE_ERROR\n");
    let daemon = world.serve();
    assert_eq!(daemon.get(&format!("/v1/entries/{}", first["sequence_number"])).json(), first);
    assert_eq!(daemon.get("/v1/entries").json()["entries"].as_array().map(Vec::len), Some(3));
    daemon.post("/v1/entries", REQUEST).problem(503, "token-unavailable");
    let ready = daemon.get("/readyz").problem(503, "token-unavailable");
    assert!(ready["detail"].as_str().is_some_and(|why| why.contains("DeviceError")), "{ready}");
    assert_eq!(daemon.get("/livez").status, 200);
    // A stop while it waits writes nothing.
    assert!(daemon.stop().success());
    let daemon = world.serve();
    inject(&world.shim_control(), "");
    wait_until_ready(&daemon);
    daemon.append(REQUEST);
    assert!(daemon.stop().success());
    let entries = entries(&world);
    let actions: Vec<&str> =
        entries.iter().map(|entry| entry["action_type"].as_str().expect("text")).collect();
    assert_eq!(
        actions,
        [
            "ledger.genesis",
            "system_initialization",
            "test.run",
            "test.run",
            "system_initialization",
            "test.run",
            "system_shutdown"
        ]
    );
}
