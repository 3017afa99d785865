//! Every call of the token's library that fails, with every code that libraries give: what becomes of
//! an entry meanwhile, and that the daemon goes on without a restart. The matrix is printed, and is the
//! one of docs/token-faults.md. And tokens that are really taken away.

#![cfg(feature = "daemon")]

mod common;

use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{Answer, Daemon, REQUEST, World, inject, module};
use serde_json::Value;

/// What a signature needs when nothing is wrong.
const SIGNING: [&str; 2] = ["C_SignInit", "C_Sign"];
/// What is called besides when a token is brought back.
const RECOVERING: [&str; 11] = [
    "C_Initialize",
    "C_GetSlotList",
    "C_GetTokenInfo",
    "C_GetInfo",
    "C_OpenSession",
    "C_GetSessionInfo",
    "C_Login",
    "C_FindObjectsInit",
    "C_FindObjects",
    "C_GetAttributeValue",
    "C_Finalize",
];
const CODES: [&str; 15] = [
    "CKR_SESSION_HANDLE_INVALID",
    "CKR_SESSION_CLOSED",
    "CKR_OBJECT_HANDLE_INVALID",
    "CKR_KEY_HANDLE_INVALID",
    "CKR_USER_NOT_LOGGED_IN",
    "CKR_DEVICE_REMOVED",
    "CKR_TOKEN_NOT_PRESENT",
    "CKR_DEVICE_ERROR",
    "CKR_DEVICE_MEMORY",
    "CKR_FUNCTION_FAILED",
    "CKR_GENERAL_ERROR",
    "CKR_CRYPTOKI_NOT_INITIALIZED",
    "CKR_OPERATION_ACTIVE",
    "CKR_HOST_MEMORY",
    "CKR_FUNCTION_CANCELED",
];

fn wait_until_ready(daemon: &Daemon) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while daemon.get("/readyz").status != 200 {
        assert!(Instant::now() < deadline, "{}", daemon.log());
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn entries(world: &World) -> Vec<Value> {
    world.audit().iter().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// What becomes of an append while `lines` are in force once: signed in a new session of the same
/// token, or after the token was given up and brought back.
fn outcome(world: &World, daemon: &Daemon, lines: &str) -> &'static str {
    let recoveries = || daemon.log().matches("the token is back").count();
    let before = recoveries();
    inject(&world.shim_control(), lines);
    let answer = daemon.post("/v1/entries", REQUEST);
    assert_eq!(answer.status, 201, "{lines}: {}\n{}", answer.text(), daemon.log());
    inject(&world.shim_control(), "");
    wait_until_ready(daemon);
    match recoveries() - before {
        0 => "retried",
        _ => "recovered",
    }
}

#[test]
fn every_code_of_every_call_is_lived_through_without_a_restart() {
    let world = World::new();
    world.use_shim();
    inject(&world.shim_control(), "");
    let daemon = world.serve();
    let mut rows: BTreeMap<String, Vec<&'static str>> = BTreeMap::new();
    let mut appended = 0;
    for code in CODES {
        for call in SIGNING {
            let outcome = outcome(&world, &daemon, &format!("return {call} {code} count 1\n"));
            rows.entry(code.to_owned()).or_default().push(outcome);
            appended += 1;
        }
    }
    // A lost token that is not back at once: each call of coming back fails once.
    for call in RECOVERING {
        for code in ["CKR_DEVICE_ERROR", "CKR_TOKEN_NOT_PRESENT", "CKR_SESSION_HANDLE_INVALID"] {
            let lines = format!("return C_Sign CKR_DEVICE_ERROR count 1\nreturn {call} {code} count 1\n");
            assert_eq!(outcome(&world, &daemon, &lines), "recovered", "{call} {code}");
            appended += 1;
        }
    }
    assert!(daemon.stop().success());
    let sealed = entries(&world).iter().filter(|entry| entry["action_type"] == "test.run").count();
    assert_eq!(sealed, appended, "each entry once");

    let mut table =
        format!("| code | {} |\n|---|---|---|\n", SIGNING.map(|call| format!("`{call}`")).join(" | "));
    for code in CODES {
        table += &format!("| `{code}` | {} |\n", rows[code].join(" | "));
    }
    println!("{table}");
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/token-faults.md"));
    assert!(page.expect("readable").contains(&table), "docs/token-faults.md should have\n{table}");
}

#[test]
fn another_token_under_the_same_name_signs_nothing() {
    let world = World::new();
    world.configure("limits", "queue_wait_seconds = 1");
    let output = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/softhsm/make-token"))
        .arg(world.dir().join("other"))
        .output()
        .expect("softhsm/make-token runs");
    assert!(output.status.success());
    // By its label alone, as somebody would write it by hand.
    let config = std::fs::read_to_string(world.config()).expect("readable");
    let (before, serial) = config.split_once(";serial=").expect("a serial");
    let rest = &serial[serial.find(';').expect("more of the URI")..];
    std::fs::write(world.config(), format!("{before}{rest}")).expect("writable");
    let daemon = world.serve();
    daemon.append(REQUEST);
    let (tokens, away) = (world.dir().join("hsm/tokens"), world.dir().join("hsm/away"));
    std::fs::rename(&tokens, &away).expect("moved");
    std::fs::rename(world.dir().join("other/tokens"), &tokens).expect("moved");
    // SoftHSM notices with the next call.
    daemon.post("/v1/entries", REQUEST).problem(503, "outcome-unknown");
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let ready = daemon.get("/readyz").problem(503, "token-unavailable");
        if ready["detail"].as_str().is_some_and(|why| why.contains("expected the token with serial")) {
            break;
        }
        assert!(Instant::now() < deadline, "{ready}");
        std::thread::sleep(Duration::from_millis(20));
    }
    std::fs::rename(&tokens, world.dir().join("other/tokens")).expect("moved");
    std::fs::rename(&away, &tokens).expect("moved");
    wait_until_ready(&daemon);
    daemon.append(REQUEST);
    assert!(daemon.stop().success());
    assert_eq!(entries(&world).iter().filter(|entry| entry["action_type"] == "test.run").count(), 3);
}

/// A token behind a socket, as `p11-kit server` makes one; its group is killed when it is dropped.
struct Remote(Child);

impl Remote {
    fn start(world: &World, socket: &Path) -> Self {
        let _ = std::fs::remove_file(socket);
        let child = Command::new("p11-kit")
            .args(["server", "--foreground", "--name"])
            .arg(socket)
            .arg("--provider")
            .arg(module())
            .arg("pkcs11:token=attestd")
            .env("SOFTHSM2_CONF", world.dir().join("hsm/softhsm2.conf"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .expect("p11-kit is installed: tests/run does it");
        let deadline = Instant::now() + Duration::from_secs(20);
        while UnixStream::connect(socket).is_err() {
            assert!(Instant::now() < deadline, "no socket of p11-kit's");
            std::thread::sleep(Duration::from_millis(5));
        }
        Remote(child)
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        // Each client has a process of its own there, so the whole group goes.
        let group = nix::unistd::Pid::from_raw(-i32::try_from(self.0.id()).expect("a pid"));
        let _ = nix::sys::signal::kill(group, nix::sys::signal::Signal::SIGKILL);
        let _ = self.0.wait();
    }
}

fn client_module() -> PathBuf {
    let found = std::fs::read_dir("/usr/lib")
        .expect("readable")
        .flatten()
        .map(|directory| directory.path().join("pkcs11/p11-kit-client.so"))
        .chain([PathBuf::from("/usr/lib64/pkcs11/p11-kit-client.so")])
        .find(|path| path.exists());
    found.expect("p11-kit-modules is installed: tests/run does it")
}

#[test]
fn a_remote_token_that_is_killed_under_load_and_comes_back_loses_nothing() {
    let world = World::new();
    let socket = world.dir().join("p11");
    let config = std::fs::read_to_string(world.config()).expect("readable");
    let config = config.replace(&module().display().to_string(), &client_module().display().to_string());
    std::fs::write(world.config(), config).expect("writable");
    let mut remote = Some(Remote::start(&world, &socket));
    let daemon = world.serve_with(|command| {
        command.env("P11_KIT_SERVER_ADDRESS", format!("unix:path={}", socket.display()));
    });
    wait_until_ready(&daemon);
    let over = AtomicBool::new(false);
    let acknowledged: Vec<Value> = std::thread::scope(|scope| {
        let client = || {
            let mut sealed = Vec::new();
            while !over.load(Ordering::Relaxed) {
                let answer: Answer = daemon.post("/v1/entries", REQUEST);
                match answer.status {
                    201 => sealed.push(answer.json()),
                    503 => std::thread::sleep(Duration::from_millis(5)),
                    other => panic!("{other}: {}", answer.text()),
                }
            }
            sealed
        };
        let clients: Vec<_> = (0..4).map(|_| scope.spawn(client)).collect();
        for _ in 0..3 {
            std::thread::sleep(Duration::from_millis(300));
            drop(remote.take());
            let deadline = Instant::now() + Duration::from_secs(30);
            while daemon.get("/readyz").status == 200 {
                assert!(Instant::now() < deadline, "nobody noticed: {}", daemon.log());
                std::thread::sleep(Duration::from_millis(5));
            }
            std::thread::sleep(Duration::from_millis(300));
            remote = Some(Remote::start(&world, &socket));
            wait_until_ready(&daemon);
        }
        std::thread::sleep(Duration::from_millis(300));
        over.store(true, Ordering::Relaxed);
        clients.into_iter().flat_map(|client| client.join().expect("no panic")).collect()
    });
    let log = daemon.log();
    assert!(daemon.stop().success(), "{log}");
    drop(remote);
    let entries = entries(&world);
    assert!(acknowledged.len() > 20, "{}", acknowledged.len());
    for entry in &acknowledged {
        assert_eq!(entry, &entries[entry["sequence_number"].as_u64().expect("a number") as usize]);
    }
    let recovered = entries.iter().filter(|entry| entry["action_type"] == "system_recovered").count();
    assert_eq!(recovered, 3);
}
