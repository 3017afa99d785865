//! The ledger's key is changed while the daemon runs: to another token, to another key on the same
//! one, under load, with approvals, and with the daemon dying at each place on the way. What comes of it
//! is verified as an auditor does it, who was given the first key and nothing else.

#![cfg(feature = "daemon")]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::{Answer, Daemon, REQUEST, World, inject, module};
use p256::ecdsa::SigningKey;
use p256::ecdsa::signature::Signer as _;
use p256::pkcs8::{EncodePublicKey as _, LineEnding};
use serde_json::{Value, json};

const NEXT_PIN: &str = "83920174";

/// Where a key is, and its PIN.
#[derive(Clone)]
struct Place {
    uri: String,
    pin_file: PathBuf,
}

fn run(command: &mut Command) -> String {
    let output = command.output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    said
}

fn pkcs11_tool(world: &World, pin: &str, arguments: &[&str]) {
    let mut command = world.program("pkcs11-tool");
    command.arg("--module").arg(module()).args(arguments).args(["--login", "--pin", "env:PIN"]);
    run(command.env("PIN", pin).args([
        "--keypairgen",
        "--key-type",
        "EC:prime256v1",
        "--sensitive",
        "--usage-sign",
    ]));
}

/// A second token in the same library, with a key.
fn next_token(world: &World) -> Place {
    let mut init = world.program("softhsm2-util");
    init.args(["--init-token", "--free", "--label", "next", "--so-pin", "12345678", "--pin", NEXT_PIN]);
    run(&mut init);
    pkcs11_tool(world, NEXT_PIN, &["--token-label", "next", "--id", "07", "--label", "next-key"]);
    let pin_file = world.dir().join("next-pin");
    fs::write(&pin_file, NEXT_PIN).expect("writable");
    fs::set_permissions(&pin_file, fs::Permissions::from_mode(0o600)).expect("ours");
    Place { uri: "pkcs11:token=next;object=next-key".into(), pin_file }
}

/// A second key on the token that there is.
fn next_key(world: &World) -> Place {
    let pin_file = world.dir().join("hsm/pin");
    let pin = fs::read_to_string(&pin_file).expect("a PIN");
    pkcs11_tool(world, pin.trim(), &["--token-label", "attestd", "--id", "07", "--label", "second"]);
    Place { uri: "pkcs11:token=attestd;object=second".into(), pin_file }
}

/// Names the key at `place` in the configuration, as an operator does after a rotation.
fn name(world: &World, place: &Place) {
    let config = fs::read_to_string(world.config()).expect("readable");
    let lines = config.lines().map(|line| match line.split(" = ").next() {
        Some("uri") => format!("uri = \"{}\"", place.uri),
        Some("pin_file") => format!("pin_file = \"{}\"", place.pin_file.display()),
        _ => line.to_owned(),
    });
    fs::write(world.config(), lines.collect::<Vec<_>>().join("\n") + "\n").expect("writable");
}

fn to(place: &Place) -> Value {
    json!({ "uri": place.uri, "pin_file": place.pin_file })
}

fn rotate(daemon: &Daemon, place: &Place) -> Value {
    let answer = daemon.post("/v1/keys:rotate", json!({ "to": to(place) }).to_string());
    assert_eq!(answer.status, 201, "{}\n{}", answer.text(), daemon.log());
    answer.json()
}

/// A world in which checkpoints come when they are wanted, and no sooner.
fn world(mode: &str) -> World {
    let world = World::without_ledger();
    world.configure("signing", &format!("mode = \"{mode}\"\ncheckpoint_interval_seconds = 60"));
    let output = world.attestd(&["init"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    world
}

fn audited(world: &World) -> Vec<Value> {
    world.audit().iter().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// The daemon's refusal to start.
fn refused(world: &World) -> String {
    let output = world.attestd_within(Duration::from_secs(30), &["serve"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(78), "{said}");
    said
}

/// Where the key changes in `entries`, which are of two keys and otherwise sound.
fn check_change(entries: &[Value]) -> usize {
    let of = |action: &str| {
        let found: Vec<usize> =
            (0..entries.len()).filter(|at| entries[*at]["action_type"] == action).collect();
        assert_eq!(found.len(), 1, "{action}");
        found[0]
    };
    let (rotated, activated) = (of("key.rotate"), of("key.activate"));
    assert_eq!(rotated + 1, activated);
    let new = &entries[rotated]["action_payload"]["key_id"];
    for (at, entry) in entries.iter().enumerate() {
        let old = &entries[0]["signing_key_id"];
        assert_eq!(&entry["signing_key_id"], if at <= rotated { old } else { new }, "entry {at}");
    }
    rotated
}

#[test]
fn another_token_takes_over_and_only_it_starts_the_daemon_again() {
    for mode in ["each", "commit"] {
        let world = world(mode);
        let next = next_token(&world);
        let daemon = world.serve();
        daemon.append(REQUEST);
        let old = daemon.get("/v1/checkpoint");
        let pin_file = next.pin_file.to_str().expect("UTF-8");
        let output = world.attestctl(&["key", "rotate", "--to", &next.uri, "--pin-file", pin_file]);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
        assert!(said.contains("configuration"), "{said}");
        daemon.append(REQUEST);
        let keys = daemon.get("/v1/keys").json();
        assert_eq!(keys["keys"][0]["last"], 3, "{keys}");
        assert_eq!((&keys["keys"][1]["first"], &keys["keys"][1]["last"]), (&json!(4), &Value::Null));
        assert_eq!(keys["keys"][1]["token"]["label"], "next");
        assert_eq!(daemon.get("/v1/stats").json()["key_id"], keys["keys"][1]["key_id"]);
        assert_eq!(daemon.get("/v1/stats").json()["token"]["label"], "next");
        let listed = String::from_utf8(world.attestctl(&["key", "list"]).stdout).expect("UTF-8");
        assert!(listed.contains("entries 0 to 3") && listed.contains("entries 4 and on"), "{listed}");
        assert_eq!(daemon.post("/v1/verify", "").json()["ok"], true);
        assert!(daemon.stop().success(), "{mode}");
        assert_eq!(check_change(&audited(&world)), 3);

        let said = refused(&world);
        assert!(said.contains("since it was changed") && said.contains("token.uri"), "{said}");
        name(&world, &next);
        let daemon = world.serve();
        daemon.append(REQUEST);
        assert!(daemon.stop().success());
        let entries = audited(&world);
        assert_eq!(entries.last().expect("entries")["action_type"], "system_shutdown");
        check_change(&entries);
        parts_hold(&world, entries.len(), &old);
    }
}

/// Each part of the ledger holds for whoever has the first key, and extends what was seen before.
fn parts_hold(world: &World, count: usize, seen: &Answer) {
    let known = world.dir().join("known");
    let size: usize = seen.text().lines().nth(1).and_then(|size| size.parse().ok()).unwrap_or(usize::MAX);
    fs::write(&known, &seen.body).expect("writable");
    for (from, to) in [(0, 2), (0, 4), (0, 5), (1, 3), (2, 5), (4, 6), (5, count), (0, count)] {
        let bundle = world.dir().join(format!("part-{from}-{to}"));
        let shows = from == 0 && to >= size;
        let (from, to) = (from.to_string(), to.to_string());
        let output =
            world.attestd(&["export", "--from", &from, "--to", &to, bundle.to_str().expect("UTF-8")]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let mut verify = Command::new(env!("CARGO_BIN_EXE_attest-verify"));
        verify.arg(&bundle).arg("--key").arg(world.dir().join("public-key.pem"));
        if shows {
            verify.arg("--known-checkpoint").arg(&known);
        }
        run(&mut verify);
        fs::remove_dir_all(&bundle).expect("ours");
    }
}

#[test]
fn another_key_on_the_same_token_takes_over() {
    for mode in ["each", "commit"] {
        let world = world(mode);
        let next = next_key(&world);
        let daemon = world.serve();
        daemon.append(REQUEST);
        rotate(&daemon, &next);
        daemon.append(REQUEST);
        assert!(daemon.stop().success());
        check_change(&audited(&world));
        let said = refused(&world);
        assert!(said.contains("the token has key"), "{said}");
        name(&world, &next);
        let daemon = world.serve();
        daemon.append(REQUEST);
        assert!(daemon.stop().success());
        check_change(&audited(&world));
    }
}

#[test]
fn a_change_under_load_loses_nothing_and_nothing_is_signed_by_the_wrong_key() {
    for mode in ["each", "commit"] {
        let world = world(mode);
        let next = next_token(&world);
        let daemon = world.serve();
        let done = AtomicBool::new(false);
        let appended: usize = std::thread::scope(|scope| {
            let clients: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        let mut count = 0;
                        while !done.load(Ordering::Relaxed) {
                            daemon.append(REQUEST);
                            count += 1;
                        }
                        count
                    })
                })
                .collect();
            std::thread::sleep(Duration::from_millis(200));
            rotate(&daemon, &next);
            std::thread::sleep(Duration::from_millis(200));
            done.store(true, Ordering::Relaxed);
            clients.into_iter().map(|client| client.join().expect("no panic")).sum()
        });
        assert!(daemon.stop().success());
        let entries = audited(&world);
        let rotated = check_change(&entries);
        let runs = entries.iter().filter(|entry| entry["action_type"] == "test.run").count();
        assert_eq!(runs, appended, "{mode}");
        assert!(rotated > 4 && rotated + 5 < entries.len(), "there was load on both sides: {rotated}");
    }
}

#[test]
fn a_daemon_that_dies_on_the_way_is_started_with_the_key_that_is_due() {
    for mode in ["each", "commit"] {
        // The first commit is BOOT, the second the rotation, the third begins with the activation.
        for (place, old_starts, old_finishes) in [
            ("before-reserve:2", true, false),
            ("after-reserve:2", false, true),
            ("after-sign:2", false, true),
            ("after-commit:2", false, false),
            ("after-rotate:1", false, false),
            ("before-reserve:3", false, false),
            ("after-reserve:3", false, false),
            ("after-sign:3", false, false),
            ("after-commit:3", false, false),
        ] {
            let world = world(mode);
            let next = next_token(&world);
            let daemon = world.serve_with(|command| {
                command.env("ATTESTD_CRASH_AT", place);
            });
            let body = json!({ "to": to(&next) }).to_string();
            let request = format!(
                "POST /v1/keys:rotate HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            );
            daemon.raw(request.as_bytes());
            let mut daemon = daemon;
            let deadline = std::time::Instant::now() + Duration::from_secs(20);
            while daemon.child.try_wait().expect("a child of ours").is_none() {
                assert!(std::time::Instant::now() < deadline, "{mode} {place}: it does not die");
                std::thread::sleep(Duration::from_millis(10));
            }
            drop(daemon);
            if old_starts {
                let daemon = world.serve();
                daemon.append(REQUEST);
                rotate(&daemon, &next);
                assert!(daemon.stop().success());
            } else {
                if old_finishes {
                    // What is reserved is the old key's to sign.
                    name(&world, &next);
                    refused(&world);
                    name(
                        &world,
                        &Place {
                            uri: "pkcs11:token=attestd;object=attestd-ledger".into(),
                            pin_file: world.dir().join("hsm/pin"),
                        },
                    );
                }
                let said = refused(&world);
                assert!(said.contains("the ledger's key is"), "{mode} {place}: {said}");
            }
            name(&world, &next);
            let daemon = world.serve();
            daemon.append(REQUEST);
            assert!(daemon.stop().success(), "{mode} {place}");
            let entries = audited(&world);
            let rotated = check_change(&entries);
            assert_eq!(rotated, if old_starts { 4 } else { 2 }, "{mode} {place}");
        }
    }
}

#[test]
fn what_cannot_be_rotated_to_is_refused_and_the_key_stays() {
    let world = world("each");
    let next = next_token(&world);
    let own = next_key(&world);
    let daemon = world.serve();
    let post = |body: Value| daemon.post("/v1/keys:rotate", body.to_string());
    post(json!({})).problem(400, "missing-member");
    post(json!({ "to": {} })).problem(422, "key-change");
    post(json!({ "to": 7 })).problem(400, "wrong-type");
    post(json!({ "to": { "uri": "pkcs11:token=next", "pin": "1234" } })).problem(400, "unknown-member");
    post(json!({ "to": { "uri": "http://next" } })).problem(422, "key-change");
    post(json!({ "to": { "uri": next.uri, "pin_file": "next-pin" } })).problem(422, "key-change");
    post(json!({ "to": { "uri": next.uri, "module": "/tmp/evil.so" } })).problem(422, "key-change");
    let smuggled = format!("{}?module-path=/tmp/evil.so", next.uri);
    post(json!({ "to": { "uri": smuggled } })).problem(422, "key-change");
    post(json!({ "to": { "uri": "pkcs11:token=none;object=x" } })).problem(503, "token-unavailable");
    let mut other = to(&next);
    other["key_id"] = "ab".repeat(32).into();
    post(json!({ "to": other })).problem(422, "key-change");
    let in_use = "pkcs11:token=attestd;object=attestd-ledger";
    post(json!({ "to": { "uri": in_use } })).problem(409, "key-reused");
    // A wrong PIN is tried once, and does not touch that of the token in use.
    fs::write(&next.pin_file, "00000000").expect("writable");
    let refused = post(json!({ "to": to(&next) }));
    refused.problem(503, "token-unavailable");
    let latched = post(json!({ "to": to(&next) })).problem(503, "token-unavailable");
    assert!(latched["detail"].as_str().expect("words").contains("it is not tried again"), "{latched}");
    fs::write(&next.pin_file, NEXT_PIN).expect("writable");
    let config = world.config();
    run(world.program(env!("CARGO_BIN_EXE_attestctl")).args(["pin", "clear", "--config"]).arg(&config));
    daemon.append(REQUEST);

    let first = daemon.get("/v1/keys").json()["keys"][0]["key_id"].as_str().expect("an id").to_owned();
    let revoke = |id: &str, body: Value| daemon.post(&format!("/v1/keys/{id}/revoke"), body.to_string());
    let in_force = revoke(&first, json!({ "reason": "lost" })).problem(422, "key-change");
    assert!(
        in_force["detail"].as_str().is_some_and(|said| said.contains("rotate to another one first")),
        "{in_force}"
    );
    rotate(&daemon, &next);
    revoke(&first, json!({})).problem(400, "missing-member");
    revoke(&first, json!({ "reason": "lost", "size": 0 })).problem(422, "key-change");
    revoke(&first, json!({ "reason": "lost", "size": 5 })).problem(422, "key-change");
    revoke("xyz", json!({ "reason": "lost" })).problem(400, "bad-parameter");
    revoke(&"ab".repeat(32), json!({ "reason": "lost" })).problem(404, "not-found");
    let output = world.attestctl(&["key", "revoke", &first, "--reason", "left in a taxi", "--size", "2"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // At once: the last checkpoint of the first key, which all would hang on, is not trusted any more.
    let checked = world.attestd(&["verify"]);
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
    revoke(&first, json!({ "reason": "again" })).problem(422, "key-change");
    // Back to a key of the past there is no way.
    let back = json!({ "uri": in_use, "pin_file": own.pin_file });
    post(json!({ "to": back })).problem(409, "key-reused");
    let keys = daemon.get("/v1/keys").json();
    assert_eq!(keys["keys"][0]["revoked"]["size"], 2, "{keys}");
    rotate(&daemon, &own);
    let second = keys["keys"][1]["key_id"].as_str().expect("an id").to_owned();
    assert_eq!(revoke(&second, json!({ "reason": "worn" })).status, 201);
    daemon.append(REQUEST);
    assert!(daemon.stop().success());
    let entries = audited(&world);
    assert_eq!(entries.iter().filter(|entry| entry["action_type"] == "key.rotate").count(), 2);
    // Of the first key what came after the checkpoint is in doubt; of the second nothing is.
    let verdict: Value =
        serde_json::from_slice(&world.attestd(&["verify", "--json"]).stdout).expect("a verdict");
    let said = |list: &str, words: &str| {
        let lines = verdict[list].as_array().expect("a list").iter().filter_map(Value::as_str);
        lines.filter(|line| line.contains(words)).map(str::to_owned).collect::<Vec<_>>()
    };
    let doubted = said("not_checked", "who signed entries");
    assert!(doubted.len() == 1 && doubted[0].contains(&first), "{verdict:#}");
    assert_eq!(
        said("checked", &format!("revokes key {second}, and leaves trusted all")).len(),
        1,
        "{verdict:#}"
    );
}

fn approver() -> SigningKey {
    SigningKey::from_slice(&[1; 32]).expect("a scalar")
}

/// Has the draft approved by the one who must, and sealed.
fn seal(daemon: &Daemon, draft: &Value) -> Answer {
    let opened = daemon.post("/v1/proposals", draft.to_string());
    assert_eq!(opened.status, 201, "{}", opened.text());
    let id = opened.json()["action_payload"]["proposal_id"].as_str().expect("an id").to_owned();
    let outcome = json!({ "execution_status": "SUCCESS" }).to_string();
    daemon.post(&format!("/v1/proposals/{id}/seal"), &outcome).problem(422, "invariant-6-quorum");
    let statement = daemon.get(&format!("/v1/proposals/{id}/statement?signer=mai")).text();
    let signature: p256::ecdsa::Signature = approver().sign(statement.as_bytes());
    let hex: String = signature.to_der().as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    let approval = json!({ "statement": statement, "signature": hex }).to_string();
    assert_eq!(daemon.post(&format!("/v1/proposals/{id}/approvals"), approval).status, 201);
    daemon.post(&format!("/v1/proposals/{id}/seal"), &outcome)
}

#[test]
fn where_the_rules_ask_for_approvals_what_was_approved_is_what_is_done() {
    let world = world("each");
    let next = next_token(&world);
    let uid = nix::unistd::Uid::effective();
    let pem = approver().verifying_key().to_public_key_pem(LineEnding::LF).expect("a key");
    let rules = format!(
        "[[callers]]\nname = \"tests\"\nuid = {uid}\n\
         verbs = [\"append\", \"read\", \"propose\", \"seal\", \"administer\"]\n\
         [[approvers]]\nname = \"mai\"\nrole = \"creator\"\npublic_key = '''{pem}'''\n\
         [[actions]]\ntype = \"key.*\"\napprovals = 1\n"
    );
    fs::write(world.dir().join("rules.toml"), rules).expect("writable");
    world.configure("rules", "file = \"rules.toml\"");
    let daemon = world.serve();
    let alone = daemon.post("/v1/keys:rotate", json!({ "to": to(&next) }).to_string());
    alone.problem(422, "invariant-6-quorum");

    let draft = |action: &str, payload: Value| {
        json!({
            "event_type": "CHANGE", "action_type": action, "action_payload": payload,
            "execution_status": "SUCCESS", "actor_type": "HUMAN",
        })
    };
    // Approvers sign for a key, not for a place where some key is found.
    let propose = |payload: Value| daemon.post("/v1/proposals", draft("key.rotate", payload).to_string());
    propose(json!({ "to": to(&next) })).problem(422, "key-change");
    let mut wrong = to(&next);
    wrong["key_id"] = "ab".repeat(32).into();
    propose(json!({ "to": wrong, "proof": "00" })).problem(422, "key-change");
    seal(&daemon, &draft("key.rotate", json!({ "to": wrong }))).problem(422, "key-change");

    let output = run(world
        .program("pkcs11-tool")
        .arg("--module")
        .arg(module())
        .args(["--token-label", "next", "--read-object", "--type", "pubkey", "--id", "07"])
        .args(["--output-file", "next.der"])
        .current_dir(world.dir()));
    let sum = run(Command::new("sha256sum").arg(world.dir().join("next.der")));
    let key_id = sum.split(' ').next().expect("a hash").to_owned();
    let mut right = to(&next);
    right["key_id"] = key_id.clone().into();
    let sealed = seal(&daemon, &draft("key.rotate", json!({ "to": right })));
    assert_eq!(sealed.status, 201, "{output}{}", sealed.text());
    let sealed = sealed.json();
    assert_eq!(sealed["action_payload"]["key_id"], key_id);
    assert_eq!(sealed["received_approvals"].as_array().expect("approvals").len(), 1);
    daemon.append(REQUEST);

    let first = daemon.get("/v1/keys").json()["keys"][0].clone();
    let id = first["key_id"].as_str().expect("an id");
    daemon.post(&format!("/v1/keys/{id}/revoke"), r#"{"reason":"lost"}"#).problem(422, "invariant-6-quorum");
    let payload =
        |root: &str| json!({ "key_id": id, "reason": "lost", "checkpoint": { "root": root, "size": 2 } });
    let other_root = draft("key.revoke", payload(&"ab".repeat(32)));
    let refused = daemon.post("/v1/proposals", other_root.to_string()).problem(422, "key-change");
    let detail = refused["detail"].as_str().expect("words");
    let root = detail.split("the root is ").nth(1).expect("what is right");
    let sealed = seal(&daemon, &draft("key.revoke", payload(root)));
    assert_eq!(sealed.status, 201, "{}", sealed.text());
    assert!(daemon.stop().success());
    check_change(&audited(&world));
}

#[test]
fn a_key_that_is_gone_for_good_ends_in_a_successor_that_keeps_what_was_reserved() {
    let world = world("each");
    let next = next_token(&world);
    let daemon = world.serve();
    rotate(&daemon, &next);
    assert!(daemon.stop().success());
    name(&world, &next);
    // The first commit is BOOT, the second the append.
    let daemon = world.serve_with(|command| {
        command.env("ATTESTD_CRASH_AT", "after-reserve:2");
    });
    let request = format!(
        "POST /v1/entries HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{REQUEST}",
        REQUEST.len()
    );
    daemon.raw(request.as_bytes());
    drop(daemon);
    run(world.program("softhsm2-util").args(["--delete-token", "--token", "next"]));
    let said = String::from_utf8_lossy(&world.attestd_within(Duration::from_secs(30), &["serve"]).stderr)
        .into_owned();
    assert!(said.contains("no token matches"), "{said}");

    let successor = world.dir().join("successor");
    fs::create_dir(&successor).expect("a directory");
    let old = fs::read_to_string(world.config()).expect("readable");
    let config = old
        .replace(common::ORIGIN, "test.example/successor")
        .replace("path = \"ledger.db\"", "path = \"successor/ledger.db\"");
    fs::write(world.config(), config).expect("writable");
    name(
        &world,
        &Place {
            uri: "pkcs11:token=attestd;object=attestd-ledger".into(),
            pin_file: world.dir().join("hsm/pin"),
        },
    );
    let ledger = world.ledger();
    let output = world.attestd(&[
        "init",
        "--successor-of",
        ledger.to_str().expect("UTF-8"),
        "--origin",
        "test.example/successor",
        "--reason",
        "the token fell into the sea",
    ]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let unsealed = fs::read_to_string(successor.join("unsealed.jsonl")).expect("exported");
    assert_eq!(unsealed.lines().count(), 1);
    let entry: Value = serde_json::from_str(unsealed.trim()).expect("JSON");
    assert_eq!(entry["action_type"], "test.run");
}

#[test]
fn the_anchors_go_with_the_key() {
    let world = World::without_ledger();
    world.configure(
        "anchor",
        "file = \"anchor\"\nfile_interval_seconds = 1\ntoken = true\ntoken_interval_seconds = 1",
    );
    let output = world.attestd(&["init"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let next = next_token(&world);
    let daemon = world.serve();
    rotate(&daemon, &next);
    daemon.append(REQUEST);
    let current = || {
        let anchors = daemon.get("/v1/stats").json()["anchors"].clone();
        anchors.as_array().expect("anchors").iter().all(|anchor| anchor["entries"].as_u64() >= Some(5))
    };
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while !current() {
        assert!(std::time::Instant::now() < deadline, "{}", daemon.log());
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(daemon.stop().success());
    name(&world, &next);
    let daemon = world.serve();
    daemon.append(REQUEST);
    assert!(daemon.stop().success());
    check_change(&audited(&world));
}

#[test]
fn the_old_token_may_go_away_after_the_rotation() {
    let world = world("each");
    let next = next_token(&world);
    let daemon = world.serve();
    rotate(&daemon, &next);
    daemon.append(REQUEST);
    run(world.program("softhsm2-util").args(["--delete-token", "--token", "attestd"]));
    daemon.append(REQUEST);
    assert!(daemon.stop().success());
    name(&world, &next);
    let daemon = world.serve();
    daemon.append(REQUEST);
    assert!(daemon.stop().success());
    check_change(&audited(&world));
}

#[test]
fn a_token_lost_before_it_signed_the_change_comes_back_signs_it_and_hands_over() {
    let world = world("each");
    world.use_shim();
    inject(&world.shim_control(), "");
    world.configure("limits", "queue_wait_seconds = 1");
    let next = next_token(&world);
    let count = world.dir().join("signed");
    inject(&world.shim_control(), &format!("count {}\n", count.display()));
    let daemon = world.serve();
    daemon.append(REQUEST);
    let (before, _) = common::shim_count(&count);
    inject(&world.shim_control(), &format!("delay C_Sign 400ms serial\ncount {}\n", count.display()));
    let answer = std::thread::scope(|scope| {
        let rotating = scope.spawn(|| daemon.post("/v1/keys:rotate", json!({ "to": to(&next) }).to_string()));
        // The new key signs twice, to show that it is there and for the change. What comes then is the old
        // one's to sign: the entry and the last checkpoint.
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        while common::shim_count(&count).0 < before + 2 {
            assert!(std::time::Instant::now() < deadline, "{}", daemon.log());
            std::thread::sleep(Duration::from_millis(5));
        }
        inject(&world.shim_control(), "return C_Sign CKR_DEVICE_ERROR\n");
        rotating.join().expect("no panic")
    });
    answer.problem(503, "outcome-unknown");
    daemon.get("/readyz").problem(503, "token-unavailable");
    inject(&world.shim_control(), "");
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    while daemon.get("/readyz").status != 200
        || daemon.get("/v1/keys").json()["keys"].as_array().map(Vec::len) != Some(2)
    {
        assert!(std::time::Instant::now() < deadline, "{}", daemon.log());
        std::thread::sleep(Duration::from_millis(20));
    }
    // The new key's token is looked for once more.
    let mut answer = daemon.post("/v1/entries", REQUEST);
    while answer.status == 503 && std::time::Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(50));
        answer = daemon.post("/v1/entries", REQUEST);
    }
    assert_eq!(answer.status, 201, "{}\n{}", answer.text(), daemon.log());
    assert!(daemon.stop().success());
    let entries = audited(&world);
    check_change(&entries);
    let reasons: Vec<&str> = entries
        .iter()
        .filter(|entry| entry["action_type"] == "system_recovered")
        .filter_map(|entry| entry["action_payload"]["reason"].as_str())
        .collect();
    assert!(
        reasons.len() == 2 && reasons[0].contains("DeviceError") && reasons[1].contains("opened once more"),
        "{reasons:?}"
    );
}
