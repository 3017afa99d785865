//! A part of a governed ledger is judged by what came before it: rules that changed twice, and a proposal in
//! the middle of its life. The export shows what is needed for that and no more, and without any one of those
//! entries the auditor does not take the part.

#![cfg(feature = "daemon")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use attestd::bundle::{Manifest, Measure, PROOFS, Proofs};
use attestd::ledger::hash::{Digest, encode_hex};
use common::{Daemon, REQUEST, World};
use p256::ecdsa::signature::Signer as _;
use p256::ecdsa::{Signature, SigningKey};
use p256::pkcs8::{EncodePublicKey as _, LineEnding};
use serde_json::{Value, json};

fn key(name: &str) -> SigningKey {
    SigningKey::from_slice(&[name.as_bytes()[0]; 32]).expect("in range")
}

fn rules(floor: &str) -> String {
    let uid = nix::unistd::getuid();
    let approver = |name: &str| {
        let pem = key(name).verifying_key().to_public_key_pem(LineEnding::LF).expect("a key");
        format!("[[approvers]]\nname = \"{name}\"\nrole = \"auditor\"\npublic_key = '''{pem}'''\n")
    };
    format!(
        r#"
        [[callers]]
        name = "me"
        uid = {uid}
        verbs = ["administer", "append", "propose", "read", "seal"]
        [[actions]]
        type = "risky.*"
        approvals = 2
        proofs = ["attribution_intact"]
        [[actions]]
        type = "rules.set"
        approvals = 1
        [pillars]
        floor = "{floor}"
        {}{}
        "#,
        approver("ann"),
        approver("bob"),
    )
}

fn propose(daemon: &Daemon, action: &str, payload: &Value) -> String {
    let draft = json!({"event_type": "CHANGE", "action_type": action, "action_payload": payload,
        "execution_status": "SUCCESS", "actor_type": "SYSTEM"});
    let answer = daemon.post("/v1/proposals", draft.to_string());
    assert_eq!(answer.status, 201, "{}", answer.text());
    answer.json()["action_payload"]["proposal_id"].as_str().expect("an id").to_owned()
}

fn approve(daemon: &Daemon, id: &str, name: &str) {
    let statement = daemon.get(&format!("/v1/proposals/{id}/statement?signer={name}")).text();
    let signature: Signature = key(name).sign(statement.as_bytes());
    let body = json!({"statement": statement, "signature": encode_hex(signature.to_der().as_bytes())});
    let answer = daemon.post(&format!("/v1/proposals/{id}/approvals"), body.to_string());
    assert_eq!(answer.status, 201, "{}", answer.text());
}

fn seal(daemon: &Daemon, id: &str, status: &str) -> common::Answer {
    daemon.post(&format!("/v1/proposals/{id}/seal"), json!({"execution_status": status}).to_string())
}

/// The bundle's verdict, from the real program.
fn verdict(world: &World, bundle: &Path) -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_attest-verify"))
        .arg(bundle)
        .arg("--json")
        .arg("--key")
        .arg(world.dir().join("public-key.pem"))
        .output()
        .expect("attest-verify runs");
    serde_json::from_slice(&output.stdout).expect("a verdict")
}

fn context(bundle: &Path) -> (Proofs, Vec<String>) {
    let proofs = Proofs::parse(&fs::read(bundle.join(PROOFS)).expect("readable")).expect("proofs");
    let action = |entry: &str| {
        let entry: Value = serde_json::from_str(entry).expect("JSON");
        entry["action_type"].as_str().expect("a type").to_owned()
    };
    let actions = proofs.context.iter().map(|context| action(&context.entry)).collect();
    (proofs, actions)
}

/// Puts other proofs into a bundle whose manifest agrees.
fn replace(bundle: &Path, proofs: &Proofs) {
    let text = proofs.to_line();
    let path = bundle.join("manifest.json");
    let mut manifest = Manifest::parse(&fs::read(&path).expect("readable")).expect("a manifest");
    let measure = Measure { sha256: Digest::of(text.as_bytes()), bytes: text.len() as u64 };
    manifest.files.insert(PROOFS.into(), measure);
    fs::write(bundle.join(PROOFS), text).expect("written");
    fs::write(path, manifest.to_line()).expect("written");
}

fn export(world: &World, from: u64) -> PathBuf {
    let bundle = world.dir().join("part");
    let output = world.attestd(&["export", bundle.to_str().expect("UTF-8"), "--from", &from.to_string()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    bundle
}

/// A ledger with all of it, and where the part begins.
fn lived(world: &World) -> (Daemon, u64) {
    let daemon = world.serve();
    assert_eq!(daemon.send("PUT", "/v1/rules", rules("7").as_bytes()).status, 201);
    let risky = propose(&daemon, "risky.x", &json!({}));
    approve(&daemon, &risky, "ann");
    let dead = propose(&daemon, "risky.y", &json!({}));
    approve(&daemon, &dead, "ann");
    let answer =
        daemon.post(&format!("/v1/proposals/{dead}/withdraw"), json!({"reason": "a mistake"}).to_string());
    assert_eq!(answer.status, 201, "{}", answer.text());

    let mut new: Value = daemon.get("/v1/rules").json()["rules"].clone();
    new["pillars"]["floor"] = json!("8");
    let change = propose(&daemon, "rules.set", &json!({"rules": new}));
    seal(&daemon, &change, "BLOCKED").problem(400, "wrong-value");
    approve(&daemon, &change, "bob");
    let answer = seal(&daemon, &change, "SUCCESS");
    assert_eq!(answer.status, 201, "{}", answer.text());
    let low = json!({"event_type": "CHANGE", "action_type": "risky.z", "action_payload": {}, "k_state": 2,
        "execution_status": "SUCCESS", "actor_type": "SYSTEM"});
    let refused = daemon.post("/v1/proposals", low.to_string()).problem(422, "invariant-5-k1-state");
    assert!(refused["sequence_number"].is_u64(), "it is recorded: {refused}");
    assert!(daemon.stop().success());

    let daemon = world.serve();
    let from = daemon.append(REQUEST)["sequence_number"].as_u64().expect("a number");
    approve(&daemon, &risky, "bob");
    let answer = seal(&daemon, &risky, "SUCCESS");
    assert_eq!(answer.status, 201, "{}", answer.text());
    daemon.append(REQUEST);
    (daemon, from)
}

#[test]
fn a_part_shows_what_it_is_judged_by_and_nothing_of_it_can_be_left_out() {
    let world = World::new();
    let (daemon, from) = lived(&world);

    // While the daemon runs, as soon as a checkpoint covers what comes before the part.
    let deadline = Instant::now() + Duration::from_secs(20);
    let streamed = loop {
        let answer = daemon.get(&format!("/v1/export?from={from}"));
        if answer.status == 200 {
            break answer.body;
        }
        answer.problem(503, "checkpoint-pending");
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(20));
    };
    let tar = world.dir().join("part.tar");
    fs::write(&tar, streamed).expect("written");
    let found = verdict(&world, &tar);
    assert_eq!(found["ok"], true, "{found}");
    assert!(daemon.stop().success());

    // Without the daemon, and with the same result.
    let bundle = export(&world, from);
    let found = verdict(&world, &bundle);
    assert_eq!((&found["ok"], &found["first"]), (&json!(true), &json!(from)), "{found}");
    let (proofs, actions) = context(&bundle);
    assert_eq!(
        actions,
        [
            "ledger.genesis",
            "system_initialization",
            "rules.set",
            "proposal.open",
            "approval.give",
            "proposal.open",
            "approval.give",
            "rules.set",
            "system_initialization",
        ],
        "the proposal that was withdrawn is not needed"
    );

    for (at, action) in actions.iter().enumerate() {
        let mut without = proofs.clone();
        without.context.remove(at);
        replace(&bundle, &without);
        let code = verdict(&world, &bundle)["fault"]["code"].as_str().unwrap_or("none").to_owned();
        let expected = match action.as_str() {
            "ledger.genesis" => "tree-proof",
            "rules.set" => "rules-in-force",
            "proposal.open" => "proposal-unknown",
            "approval.give" => "received-approvals",
            // An earlier boot says the same of the attribution; that it is not the last cannot be seen.
            _ => "none",
        };
        // Without any boot nobody has verified the attribution when the first proposal is opened.
        let expected = if at == 1 { "invariant-1-attribution" } else { expected };
        assert_eq!(code, expected, "without {action} at {at}");
    }
    replace(&bundle, &proofs);
    assert_eq!(verdict(&world, &bundle)["ok"], true);
    world.audit();
}
