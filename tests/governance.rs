//! Governance through the socket: rules from a file, refusals that are recorded, and the life of
//! proposals. Every ledger ends before the auditor's tool, which comes to each decision again.

#![cfg(feature = "daemon")]

mod common;

use std::fs;

use common::{Answer, Daemon, REQUEST, World, request};
use p256::ecdsa::SigningKey;
use p256::ecdsa::signature::Signer as _;
use p256::pkcs8::{EncodePublicKey as _, LineEnding};
use serde_json::{Value, json};

/// People with a key each: name, role, and what the secret is made of.
const PEOPLE: [(&str, &str, u8); 3] =
    [("mai", "creator", 1), ("minh", "community", 2), ("lan", "auditor", 3)];

fn secret(byte: u8) -> SigningKey {
    SigningKey::from_slice(&[byte; 32]).expect("a scalar")
}

/// Rules under which the process that runs the tests may do everything.
fn rules(more: &str) -> String {
    let uid = nix::unistd::Uid::effective();
    let mut text = format!(
        "[[callers]]\nname = \"tests\"\nuid = {uid}\nclearance = 10\n\
         verbs = [\"append\", \"read\", \"propose\", \"seal\", \"administer\"]\n"
    );
    for (name, role, byte) in PEOPLE {
        let pem = secret(byte).verifying_key().to_public_key_pem(LineEnding::LF).expect("a key");
        text += &format!("[[approvers]]\nname = \"{name}\"\nrole = \"{role}\"\npublic_key = '''{pem}'''\n");
    }
    text + more
}

const POLICY: &str = "[[actions]]\ntype = \"policy.*\"\napprovals = 3\nroles = [\"creator\", \"community\", \"auditor\"]\n\
                      proofs = [\"safety_floor\", \"rollback\", \"k1_state\", \"pillars\"]\n";

/// A world with rules in force from the first start on.
fn governed(more: &str) -> World {
    let world = World::new();
    fs::write(world.dir().join("rules.toml"), rules(more)).expect("writable");
    world.configure("rules", "file = \"rules.toml\"");
    world
}

fn policy_change() -> Value {
    json!({
        "event_type": "CHANGE", "event_category": "WARNING", "action_type": "policy.update",
        "action_payload": {"policy": "deploy-window", "from": "22:00-04:00", "to": "20:00-06:00"},
        "execution_status": "SUCCESS", "actor_type": "HUMAN", "actor_id": "ops",
        "pillars_scores": {"an_toan": 9, "duong_dai": 8.5, "tin_vao_so_lieu": 8, "han_che_rui_ro": 9.25},
        "rollback_available": true, "rollback_snapshot_hash": "5a".repeat(32),
    })
}

/// Opens a proposal; its id.
fn open(daemon: &Daemon, draft: &Value) -> String {
    let answer = daemon.post("/v1/proposals", draft.to_string());
    assert_eq!(answer.status, 201, "{}", answer.text());
    let entry = answer.json();
    assert_eq!(entry["action_type"], "proposal.open");
    entry["action_payload"]["proposal_id"].as_str().expect("an id").to_owned()
}

/// The answer to a decision that the approver `name` signs.
fn decide(daemon: &Daemon, id: &str, name: &str, decision: &str) -> Answer {
    let path = format!("/v1/proposals/{id}/statement?signer={name}&decision={decision}");
    let statement = daemon.get(&path);
    assert_eq!(statement.status, 200, "{}", statement.text());
    post_decision(daemon, id, name, &statement.text())
}

fn post_decision(daemon: &Daemon, id: &str, name: &str, statement: &str) -> Answer {
    let byte = PEOPLE.iter().find(|person| person.0 == name).expect("a person").2;
    let signature: p256::ecdsa::Signature = secret(byte).sign(statement.as_bytes());
    let hex: String = signature.to_der().as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    let body = json!({"statement": statement, "signature": hex}).to_string();
    daemon.post(&format!("/v1/proposals/{id}/approvals"), body)
}

fn approve(daemon: &Daemon, id: &str, names: &[&str]) {
    for name in names {
        let answer = decide(daemon, id, name, "approve");
        assert_eq!(answer.status, 201, "{}", answer.text());
        assert_eq!(answer.json()["action_type"], "approval.give");
    }
}

fn seal(daemon: &Daemon, id: &str, outcome: Value) -> Answer {
    daemon.post(&format!("/v1/proposals/{id}/seal"), outcome.to_string())
}

fn success() -> Value {
    json!({"execution_status": "SUCCESS", "result_data": {"applied": true}})
}

/// Stops the daemon; the entries, which the auditor's tool accepts.
fn audited(world: &World, daemon: Daemon) -> Vec<Value> {
    let log = daemon.log();
    assert!(daemon.stop().success(), "{log}");
    world.audit().iter().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[test]
fn rules_of_the_file_are_in_force_from_the_entry_after_the_one_that_sets_them() {
    let world = governed("");
    let daemon = world.serve();
    let entry = daemon.append(REQUEST);
    let set = daemon.get("/v1/entries/2").json();
    assert_eq!(set["action_type"], "rules.set");
    assert_eq!(set["environment"]["attestd.rules"], "default");
    assert_eq!(entry["actor_context"]["peer"]["caller"], "tests");
    let hash = &entry["environment"]["attestd.rules"];
    assert_eq!(
        daemon.get("/v1/rules").json(),
        json!({"hash": hash, "rules": set["action_payload"]["rules"]})
    );
    drop(daemon);
    // The same file again sets nothing.
    let daemon = world.serve();
    assert_eq!(&daemon.append(REQUEST)["environment"]["attestd.rules"], hash);
    let entries = audited(&world, daemon);
    assert_eq!(entries.iter().filter(|entry| entry["action_type"] == "rules.set").count(), 1);
}

#[test]
fn a_file_that_holds_no_rules_keeps_the_daemon_from_starting_and_names_the_line() {
    let world = governed("[[actions]]\ntype = \"a.*\"\nproof = [\"pillars\"]\n");
    let output = world.attestd_within(std::time::Duration::from_secs(20), &["serve"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(78), "{said}");
    let line = rules("").lines().count() + 3;
    assert!(said.contains("rules.toml") && said.contains(&format!("line {line}")), "{said}");
    world.configure("rules", "");
    let config = fs::read_to_string(world.config()).expect("readable").replace("file = \"rules.toml\"", "");
    fs::write(world.config(), config).expect("writable");
    let daemon = world.serve();
    // Nothing was written by the start that failed.
    assert_eq!(audited(&world, daemon).len(), 3);
}

#[test]
fn sighup_takes_the_file_again_but_not_where_approvals_are_asked_for() {
    let world = governed("");
    let daemon = world.serve();
    let in_force = |daemon: &Daemon| daemon.get("/v1/rules").json()["hash"].as_str().map(str::to_owned);
    let wait_for_change = |before: &Option<String>| {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while in_force(&daemon) == *before {
            assert!(std::time::Instant::now() < deadline, "{}", daemon.log());
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        in_force(&daemon)
    };
    let first = in_force(&daemon);
    let guarded = "[[actions]]\ntype = \"rules.*\"\napprovals = 2\n";
    fs::write(world.dir().join("rules.toml"), rules(guarded)).expect("writable");
    daemon.signal("HUP");
    let second = wait_for_change(&first);
    for text in [rules(""), "nonsense".into()] {
        let before = daemon.log().len();
        fs::write(world.dir().join("rules.toml"), &text).expect("writable");
        daemon.signal("HUP");
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while !daemon.log()[before..].contains("the rules in force stay") {
            assert!(std::time::Instant::now() < deadline, "{}", daemon.log());
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        assert_eq!(in_force(&daemon), second);
    }
    daemon.send("PUT", "/v1/rules", rules("").as_bytes()).problem(422, "invariant-6-quorum");
    // The way on is a proposal.
    let canonical = attestd::governance::rules::Rules::from_toml(&rules("")).expect("rules").to_canonical();
    let draft = json!({
        "event_type": "CHANGE", "action_type": "rules.set", "execution_status": "SUCCESS", "actor_type": "HUMAN",
        "action_payload": {"rules": serde_json::from_str::<Value>(&canonical).expect("JSON")},
    });
    let id = open(&daemon, &draft);
    approve(&daemon, &id, &["mai"]);
    seal(&daemon, &id, success()).problem(422, "invariant-6-quorum");
    approve(&daemon, &id, &["lan"]);
    let sealed = seal(&daemon, &id, success());
    assert_eq!(sealed.status, 201, "{}", sealed.text());
    assert_eq!(sealed.json()["received_approvals"].as_array().map(Vec::len), Some(2));
    assert_eq!(in_force(&daemon), first);
    // Now nothing is asked for any more, so an administrator sets them alone.
    let set = daemon.send("PUT", "/v1/rules", rules(guarded).as_bytes());
    assert_eq!(set.status, 201, "{}", set.text());
    assert_eq!(set.json()["action_payload"]["requested_by"]["peer"]["caller"], "tests");
    assert_eq!(in_force(&daemon), second);
    audited(&world, daemon);
}

#[test]
fn a_change_that_needs_three_people_is_sealed_once_they_agree() {
    let world = governed(POLICY);
    let daemon = world.serve();
    let refused = daemon.post("/v1/entries", policy_change().to_string()).problem(422, "invariant-6-quorum");
    let violation = daemon.get(&format!("/v1/entries/{}", refused["sequence_number"])).json();
    assert_eq!(violation["error_details"]["violated_invariant"], "INVARIANT_6_QUORUM");
    let id = open(&daemon, &policy_change());
    let view = daemon.get(&format!("/v1/proposals/{id}")).json();
    assert_eq!((&view["state"], &view["required_approvals"]), (&json!("open"), &json!(3)));
    assert_eq!(view["missing_roles"], json!(["auditor", "community", "creator"]));
    approve(&daemon, &id, &["mai", "minh"]);
    decide(&daemon, &id, "mai", "approve").problem(409, "approver-twice");
    seal(&daemon, &id, success()).problem(422, "invariant-6-quorum");
    approve(&daemon, &id, &["lan"]);
    let listed = daemon.get("/v1/proposals").json();
    assert_eq!(listed["proposals"][0]["quorum_met"], true);
    let statement = format!("/v1/proposals/{id}/statement");
    for query in
        ["", "?signer=mai&signer=mai", "?decision=approve", "?signer=mai&decision=perhaps", "?signer=mai&x=1"]
    {
        daemon.get(&format!("{statement}{query}")).problem(400, "bad-parameter");
    }
    daemon.get(&format!("{statement}?signer=nobody")).problem(422, "approver-unknown");
    daemon.get("/v1/proposals/1").problem(400, "bad-parameter");
    daemon.get("/v1/proposals/6f1c2a7e-3b4d-4c5e-8f90-112233445566").problem(404, "proposal-unknown");
    let sealed = seal(&daemon, &id, success()).json();
    assert_eq!(sealed["action_payload"], policy_change()["action_payload"]);
    assert_eq!((&sealed["quorum_met"], &sealed["proofs_valid"]), (&json!(true), &json!(true)));
    assert_eq!(sealed["required_proofs"], json!(["k1_state", "pillars", "rollback", "safety_floor"]));
    assert_eq!(sealed["received_approvals"].as_array().map(Vec::len), Some(3));
    assert_eq!(sealed["dependencies"].as_array().map(Vec::len), Some(4));
    seal(&daemon, &id, success()).problem(409, "proposal-closed");
    assert_eq!(
        daemon.get(&format!("/v1/proposals/{id}")).json(),
        json!({"proposal_id": id, "state": "sealed"})
    );
    audited(&world, daemon);
}

#[test]
fn proposals_outlive_restarts_crashes_and_the_loss_of_the_index() {
    let world = governed(POLICY);
    let daemon = world.serve();
    let (agreed, dropped) = (open(&daemon, &policy_change()), open(&daemon, &policy_change()));
    approve(&daemon, &agreed, &["mai"]);
    assert_eq!(decide(&daemon, &dropped, "minh", "reject").status, 201);
    daemon.kill();
    let daemon = world.serve();
    approve(&daemon, &agreed, &["minh"]);
    daemon.kill();
    for suffix in ["", "-wal", "-shm"] {
        let _ = fs::remove_file(world.dir().join(format!("index.db{suffix}")));
    }
    let daemon = world.serve();
    decide(&daemon, &agreed, "mai", "approve").problem(409, "approver-twice");
    approve(&daemon, &agreed, &["lan"]);
    assert_eq!(daemon.get(&format!("/v1/proposals/{dropped}")).json()["state"], "rejected");
    seal(&daemon, &dropped, success()).problem(409, "proposal-closed");
    assert_eq!(seal(&daemon, &agreed, success()).status, 201);
    audited(&world, daemon);
}

#[test]
fn of_acts_at_the_same_time_one_has_its_way() {
    let world = governed("[[actions]]\ntype = \"policy.*\"\napprovals = 1\n");
    let daemon = world.serve();
    let many = |act: &(dyn Fn() -> u16 + Sync)| -> Vec<u16> {
        std::thread::scope(|scope| {
            let acts: Vec<_> = (0..8).map(|_| scope.spawn(act)).collect();
            acts.into_iter().map(|act| act.join().expect("no panic")).collect()
        })
    };
    let counted = |statuses: &[u16], wanted| statuses.iter().filter(|status| **status == wanted).count();
    for _ in 0..4 {
        let id = open(&daemon, &policy_change());
        let statement = daemon.get(&format!("/v1/proposals/{id}/statement?signer=mai")).text();
        let given = many(&|| post_decision(&daemon, &id, "mai", &statement).status);
        assert_eq!((counted(&given, 201), counted(&given, 409)), (1, 7), "{given:?}");
        let sealed = many(&|| seal(&daemon, &id, success()).status);
        assert_eq!((counted(&sealed, 201), counted(&sealed, 409)), (1, 7), "{sealed:?}");
    }
    audited(&world, daemon);
}

#[test]
fn a_proposal_ends_when_its_time_is_over() {
    let world = governed("[[actions]]\ntype = \"policy.*\"\napprovals = 1\nlifetime_seconds = 1\n");
    let daemon = world.serve();
    let id = open(&daemon, &policy_change());
    approve(&daemon, &id, &["mai"]);
    let path = format!("/v1/proposals/{id}");
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while daemon.get(&path).json()["state"] == "open" {
        assert!(std::time::Instant::now() < deadline, "{}", daemon.log());
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    assert_eq!(daemon.get(&path).json()["state"], "expired");
    seal(&daemon, &id, success()).problem(409, "proposal-closed");
    let entries = audited(&world, daemon);
    assert_eq!(entries.iter().filter(|entry| entry["action_type"] == "proposal.expire").count(), 1);
}

#[test]
fn the_proposer_may_withdraw() {
    let world = governed(POLICY);
    let daemon = world.serve();
    let id = open(&daemon, &policy_change());
    let withdraw = |body: Value| daemon.post(&format!("/v1/proposals/{id}/withdraw"), body.to_string());
    withdraw(json!({})).problem(400, "missing-member");
    withdraw(json!({"reason": 1})).problem(400, "wrong-type");
    withdraw(json!({"reason": "x", "colour": 1})).problem(400, "unknown-member");
    assert_eq!(withdraw(json!({"reason": "a better one comes"})).status, 201);
    withdraw(json!({"reason": "again"})).problem(409, "proposal-closed");
    audited(&world, daemon);
}

#[test]
fn a_flood_of_violations_becomes_one_entry_that_counts() {
    let world = World::new();
    let daemon = world.serve();
    let bad = request(r#","required_approvals":1"#);
    let body = format!("{bad}\n").repeat(1_000);
    let lines = daemon.post("/v1/entries:batch", &body).lines();
    assert_eq!(lines.len(), 1_000);
    for (line, number) in lines.iter().zip(1..) {
        assert_eq!((&line["code"], &line["line"]), (&json!("invariant-6-quorum"), &json!(number)));
        assert_eq!(line["sequence_number"], 2, "all name the entry that records the first");
    }
    let entries = audited(&world, daemon);
    let violations: Vec<&Value> = entries.iter().filter(|e| e["event_type"] == "VIOLATION").collect();
    let counts: Vec<&Value> = violations.iter().map(|entry| &entry["action_payload"]["count"]).collect();
    assert_eq!(counts, [&json!(1), &json!(999)]);
    assert!(violations[0]["action_payload"]["attempt"].is_object());
    assert!(violations[1]["action_payload"]["attempt"].is_null());
}

#[test]
fn the_six_shapes_that_the_schema_was_made_for() {
    let world = governed(POLICY);
    let daemon = world.serve();
    let scores = |a: f64, b: f64, c: f64, d: f64| json!({"an_toan": a, "duong_dai": b, "tin_vao_so_lieu": c, "han_che_rui_ro": d});

    // An autonomous task that changed files.
    let task = daemon.append(
        json!({
            "event_type": "ACTION", "action_type": "task.refactor", "execution_status": "SUCCESS",
            "actor_type": "AUTONOMOUS_AGENT", "actor_id": "agent/refactor-7",
            "action_payload": {"task": "split the parser", "files": ["src/parse.rs", "src/lex.rs"], "risk_score": 2.25},
            "pillars_scores": scores(9.0, 8.5, 9.25, 8.0), "rollback_available": true,
            "rollback_snapshot_hash": "1f".repeat(32), "result_data": {"tests": 412, "failed": 0},
            "required_proofs": ["pillars", "safety_floor"],
        })
        .to_string(),
    );
    assert_eq!((&task["composite_score"], &task["safety_floor_met"]), (&json!(8.6875), &json!(true)));
    assert_eq!(task["proofs_valid"], true);

    // A decision to skip a step, with reasons and an impact assessment.
    let decision = daemon.append(
        json!({
            "event_type": "DECISION", "action_type": "pipeline.skip_step", "execution_status": "SUCCESS",
            "actor_type": "AUTONOMOUS_AGENT", "actor_id": "agent/release",
            "action_payload": {"step": "load-test", "reasons": ["no change on the request path"],
                "impact_assessment": {"level": "low", "affected": ["reports"]}},
            "dependencies": [task["entry_id"]], "pillars_scores": scores(7.5, 7.0, 8.0, 7.25),
        })
        .to_string(),
    );
    assert_eq!(decision["composite_score"], 7.4375);

    // A blocked attempt under the safety floor, recorded by whoever blocked it; claimed as done it
    // is a violation.
    let mut attempt = json!({
        "event_type": "ACTION", "event_category": "ERROR", "action_type": "db.migrate", "execution_status": "BLOCKED",
        "actor_type": "AUTONOMOUS_AGENT", "actor_id": "agent/db", "action_payload": {"tables": ["users"]},
        "pillars_scores": scores(6.0, 6.4, 6.2, 6.2), "error_details": {"floor": 7.0, "score": 6.2},
    });
    let blocked = daemon.append(attempt.to_string());
    assert_eq!((&blocked["composite_score"], &blocked["safety_floor_met"]), (&json!(6.2), &json!(false)));
    attempt["execution_status"] = json!("SUCCESS");
    let refused = daemon.post("/v1/entries", attempt.to_string()).problem(422, "invariant-2-safety-floor");
    let violation = daemon.get(&format!("/v1/entries/{}", refused["sequence_number"])).json();
    assert_eq!(violation["error_details"]["violated_invariant"], "INVARIANT_2_SAFETY_FLOOR");
    assert_eq!(violation["action_payload"]["claimed_actor_id"], "agent/db");

    // A policy change that three people approve.
    let id = open(&daemon, &policy_change());
    approve(&daemon, &id, &["minh", "lan", "mai"]);
    let sealed = seal(&daemon, &id, success()).json();
    let signers: Vec<&Value> =
        sealed["received_approvals"].as_array().expect("approvals").iter().map(|a| &a["signer"]).collect();
    assert_eq!(signers, [&json!("minh"), &json!("lan"), &json!("mai")]);

    // Boot with the attribution checked, and shutdown.
    let entries = audited(&world, daemon);
    let boot = &entries[1];
    assert_eq!(
        (&boot["event_type"], &boot["action_payload"]["attribution_verified"]),
        (&json!("BOOT"), &json!(true))
    );
    assert_eq!(boot["action_payload"]["invariants_loaded"], 7);
    let last = entries.last().expect("an entry");
    assert_eq!((&last["event_type"], &last["action_type"]), (&json!("SHUTDOWN"), &json!("system_shutdown")));
    assert_eq!(last["action_payload"]["entries_sealed"].as_u64(), Some(entries.len() as u64 - 2));
}

#[test]
fn a_caller_does_what_its_rule_lets_it_and_nothing_else() {
    let uid = nix::unistd::Uid::effective();
    let world = World::new();
    let daemon = world.serve();
    let rule = |verbs: &str, more: &str| {
        format!("[[callers]]\nname = \"one\"\nuid = {uid}\nverbs = [{verbs}]\n{more}\n")
    };
    let set = |text: &str| {
        let answer = daemon.send("PUT", "/v1/rules", text.as_bytes());
        assert_eq!(answer.status, 201, "{}", answer.text());
    };
    set(&rule(
        "\"append\", \"administer\"",
        "actor_ids = [\"robot\"]\nactor_types = [\"SYSTEM\"]\nevent_types = [\"ACTION\"]",
    ));
    assert_eq!(daemon.append(REQUEST)["actor_id"], "robot");
    daemon.get("/v1/entries").problem(403, "caller-not-allowed");
    daemon.get("/v1/rules").problem(403, "caller-not-allowed");
    daemon.post("/v1/proposals", REQUEST).problem(403, "caller-not-allowed");
    let with = |name: &str, value: &str| {
        let mut request: Value = serde_json::from_str(REQUEST).expect("JSON");
        request[name] = json!(value);
        daemon.post("/v1/entries", request.to_string())
    };
    with("actor_id", "other").problem(403, "actor-not-allowed");
    with("actor_type", "HUMAN").problem(403, "actor-not-allowed");
    with("event_type", "DECISION").problem(403, "actor-not-allowed");
    // An executable that nobody runs, and a unit that this is not: no caller at all.
    set(&(rule("\"append\"", "exe = \"/nonexistent\"")
        + &rule("\"administer\"", "").replace("\"one\"", "\"two\"")));
    daemon.post("/v1/entries", REQUEST).problem(403, "caller-not-allowed");
    let bad = daemon
        .send("PUT", "/v1/rules", b"[[callers]]\nname = \"x\"\nuid = 0\ncolour = 1\n")
        .problem(422, "rules");
    assert_eq!(bad["line"], 4, "{bad}");
    daemon.send("PUT", "/v1/rules", b"\xFF").problem(400, "json-utf8");
    audited(&world, daemon);
}

#[test]
fn the_mode_of_signing_changes_by_proposal_too() {
    let world = governed("[[actions]]\ntype = \"signature.*\"\napprovals = 1\n");
    let daemon = world.serve();
    let change = |from: &str, to: &str| {
        json!({
            "event_type": "CHANGE", "action_type": "signature.mode", "execution_status": "SUCCESS",
            "actor_type": "HUMAN", "action_payload": {"from": from, "to": to},
        })
    };
    let id = open(&daemon, &change("commit", "each"));
    approve(&daemon, &id, &["mai"]);
    seal(&daemon, &id, success()).problem(422, "proposal-malformed");
    let id = open(&daemon, &change("each", "commit"));
    approve(&daemon, &id, &["mai"]);
    assert_eq!(seal(&daemon, &id, success()).json()["signature_algorithm"], "ECDSA-P256-SHA256");
    assert_eq!(daemon.append(REQUEST)["signature_algorithm"], "TLOG-ECDSA-P256-SHA256");
    assert_eq!(daemon.get("/v1/stats").json()["signature_mode"], "commit");
    audited(&world, daemon);
}

#[test]
fn who_lacks_the_clearance_sees_that_there_is_an_entry_and_no_more() {
    let uid = nix::unistd::Uid::effective();
    let world = World::new();
    // attestctl is another program, so it can be another caller.
    let text = format!(
        "[[callers]]\nname = \"clerk\"\nuid = {uid}\nexe = \"{}\"\nverbs = [\"read\"]\n\
         [[callers]]\nname = \"chief\"\nuid = {uid}\nclearance = 5\n\
         verbs = [\"append\", \"read\", \"propose\", \"seal\", \"administer\"]\n\
         [[approvers]]\nname = \"a\"\nrole = \"r\"\npublic_key = '''{}'''\n\
         [[actions]]\ntype = \"personnel.*\"\nclearance = 5\n[[actions]]\ntype = \"personnel.fire\"\napprovals = 1\n",
        env!("CARGO_BIN_EXE_attestctl"),
        secret(1).verifying_key().to_public_key_pem(LineEnding::LF).expect("a key"),
    );
    fs::write(world.dir().join("rules.toml"), text).expect("writable");
    world.configure("rules", "file = \"rules.toml\"");
    let daemon = world.serve();
    let hidden = daemon.append(request("").replace("test.run", "personnel.hire"));
    let open = daemon.append(REQUEST);
    let fire = request("").replace("test.run", "personnel.fire");
    let violation =
        daemon.post("/v1/entries", &fire).problem(422, "invariant-6-quorum")["sequence_number"].clone();
    let proposal = daemon.post("/v1/proposals", &fire).json();
    let see = |reference: &Value| {
        let reference = reference.as_str().map_or_else(|| reference.to_string(), str::to_owned);
        world.attestctl(&["get", "--json", &reference])
    };
    let seen = |reference: &Value| -> Value {
        let output = see(reference);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("JSON")
    };
    assert_eq!(seen(&open["sequence_number"]), open);
    assert_eq!(seen(&open["entry_id"]), open);
    for entry in [&hidden, &daemon.get(&format!("/v1/entries/{violation}")).json(), &proposal] {
        let names = ["entry_hash", "event_category", "event_type", "sequence_number", "timestamp"];
        let expected: serde_json::Map<String, Value> =
            names.iter().map(|name| ((*name).to_owned(), entry[*name].clone())).collect();
        assert_eq!(seen(&entry["sequence_number"]), Value::Object(expected));
        // Not even the id can be tried out.
        assert_eq!(see(&entry["entry_id"]).status.code(), Some(1), "{}", entry["action_type"]);
        assert_eq!(
            daemon.get(&format!("/v1/entries/{}", entry["entry_id"].as_str().expect("an id"))).json(),
            *entry
        );
    }
    let listed = |arguments: &[&str]| {
        let output = world.attestctl(&[&["list", "--json"], arguments].concat());
        String::from_utf8(output.stdout).expect("UTF-8").lines().count()
    };
    assert_eq!(listed(&["--action-type", "personnel.hire"]), 0);
    assert_eq!(listed(&["--action-type", "test.run"]), 1);
    assert_eq!(listed(&[]), 7);
    let receipt = world.dir().join("receipt");
    let receipt = receipt.to_str().expect("UTF-8");
    let by_id = hidden["entry_id"].as_str().expect("an id");
    assert_eq!(world.attestctl(&["proof", by_id, "--out", receipt]).status.code(), Some(1));
    let id = proposal["action_payload"]["proposal_id"].as_str().expect("an id");
    assert_eq!(daemon.get("/v1/proposals").json()["proposals"][0]["proposal_id"], id);
    // Evidence with gaps is none.
    let bundle = world.dir().join("bundle");
    let output = world.attestctl(&["export", bundle.to_str().expect("UTF-8")]);
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(daemon.get("/v1/export").status, 200);
    audited(&world, daemon);
}

#[test]
fn a_caller_appends_no_faster_than_its_rule_lets_it() {
    let uid = nix::unistd::Uid::effective();
    let world = World::new();
    let text = format!(
        "[[callers]]\nname = \"slow\"\nuid = {uid}\nverbs = [\"append\", \"read\"]\nentries_per_second = 20\n"
    );
    fs::write(world.dir().join("rules.toml"), text).expect("writable");
    world.configure("rules", "file = \"rules.toml\"");
    let daemon = world.serve();
    let mut stream = daemon.connect();
    let mut refused = 0;
    let mut taken = 0;
    while refused == 0 {
        use std::io::Write as _;
        let head = format!(
            "POST /v1/entries HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{REQUEST}",
            REQUEST.len()
        );
        stream.write_all(head.as_bytes()).expect("sent");
        let answer = Answer::read(&mut stream);
        if answer.status == 201 {
            taken += 1;
            assert!(taken < 10_000, "never refused");
        } else {
            answer.problem(429, "rate-limited");
            assert_eq!(answer.header("retry-after"), Some("1"));
            refused += 1;
        }
    }
    assert!(taken >= 20, "a second's worth comes at once: {taken}");
    // A batch is read more slowly, and loses nothing.
    let started = std::time::Instant::now();
    let lines = daemon.post("/v1/entries:batch", format!("{REQUEST}\n").repeat(30)).lines();
    assert!(lines.iter().all(|line| line["sequence_number"].is_u64()), "{lines:?}");
    assert!(started.elapsed() >= std::time::Duration::from_secs(1), "30 entries at 20 a second");
    audited(&world, daemon);
}

#[test]
fn one_caller_fills_half_of_the_queue_of_a_slow_token() {
    let world = World::new();
    world.use_shim();
    common::inject(&world.shim_control(), "delay C_Sign 20ms serial\n");
    world.configure("limits", "queue_wait_seconds = 2");
    let daemon = world.serve();
    // Until it is known how slow the token is.
    for _ in 0..16 {
        daemon.append(REQUEST);
    }
    let statuses: Vec<Answer> = std::thread::scope(|scope| {
        let appends: Vec<_> = (0..160).map(|_| scope.spawn(|| daemon.post("/v1/entries", REQUEST))).collect();
        appends.into_iter().map(|append| append.join().expect("no panic")).collect()
    });
    let (taken, refused): (Vec<&Answer>, Vec<&Answer>) =
        statuses.iter().partition(|answer| answer.status == 201);
    for answer in &refused {
        answer.problem(503, "queue-full");
        assert!(answer.header("retry-after").is_some());
    }
    // One second of the two is about 50 entries, where signatures take 20 ms each; those that were
    // answered meanwhile make it more.
    assert!(!refused.is_empty() && taken.len() >= 25, "{} taken, {} refused", taken.len(), refused.len());
    audited(&world, daemon);
}

/// Runs attestctl's smallest append as another caller would.
fn appends(world: &World, program: &mut std::process::Command) -> bool {
    let output = program
        .env("ATTESTD_SOCKET", world.socket())
        .args(["append", "--event-type", "ACTION", "--action-type", "a.b", "--status", "SUCCESS"])
        .args(["--actor-type", "SYSTEM"])
        .output()
        .expect("the program runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() || said.contains("caller-not-allowed"), "{said}");
    output.status.success()
}

#[test]
fn a_program_is_told_by_its_bytes_and_by_where_it_is_for_the_daemon() {
    use std::process::Command;
    let uid = nix::unistd::Uid::effective();
    let ctl = env!("CARGO_BIN_EXE_attestctl");
    let world = World::new();
    let daemon = world.serve();
    let copy = world.dir().join("attestctl");
    fs::copy(ctl, &copy).expect("copied");
    let other = world.dir().join("other");
    fs::copy(ctl, &other).expect("copied");
    // Not the same bytes, though it does the same.
    fs::OpenOptions::new()
        .append(true)
        .open(&other)
        .and_then(|mut file| std::io::Write::write_all(&mut file, b"\0"))
        .expect("longer");
    let hash = attestd::ledger::hash::Digest::of(&fs::read(ctl).expect("readable"));
    let put = |rule: &str| {
        let text = format!(
            "[[callers]]\nname = \"program\"\nuid = {uid}\nverbs = [\"append\"]\n{rule}\n\
             [[callers]]\nname = \"tests\"\nuid = {uid}\nverbs = [\"administer\"]\n"
        );
        let answer = daemon.send("PUT", "/v1/rules", text.as_bytes());
        assert_eq!(answer.status, 201, "{}", answer.text());
    };
    let run = |path: &std::path::Path| appends(&world, &mut Command::new(path));
    put(&format!("exe_sha256 = \"{hash}\""));
    assert!(run(&copy) && run(std::path::Path::new(ctl)), "wherever it lies");
    assert!(!run(&other));
    put(&format!("exe = \"{}\"", copy.display()));
    assert!(run(&copy) && !run(&other) && !run(std::path::Path::new(ctl)));
    // In a mount namespace of its own a process can put another program under the name.
    let mut unshare = Command::new("unshare");
    if !uid.is_root() {
        unshare.arg("--map-root-user");
    }
    let script = format!("mount --bind {} {1} && exec {1} \"$@\"", other.display(), copy.display());
    unshare.args(["--mount", "--propagation", "private", "sh", "-c", &script, "sh"]);
    assert!(!appends(&world, &mut unshare));
    assert!(run(&copy), "outside of it nothing has changed");
    // An executable alone is no caller: anybody can run it.
    let alone = format!("[[callers]]\nname = \"x\"\nexe = \"{ctl}\"\nverbs = [\"append\"]\n");
    daemon.send("PUT", "/v1/rules", alone.as_bytes()).problem(422, "rules");
    let entries = audited(&world, daemon);
    let by_hash = entries.iter().find(|entry| entry["action_type"] == "a.b").expect("appended");
    assert_eq!(by_hash["actor_context"]["peer"]["exe_sha256"], hash.to_hex());
}

#[test]
fn a_seal_at_the_last_moment_is_a_seal_or_too_late_and_never_both() {
    let world = governed("[[actions]]\ntype = \"policy.*\"\napprovals = 1\nlifetime_seconds = 1\n");
    let daemon = world.serve();
    let mut endings = Vec::new();
    for round in 0..6_u64 {
        let id = open(&daemon, &policy_change());
        approve(&daemon, &id, &["mai"]);
        // From well before to well after the end of its second.
        std::thread::sleep(std::time::Duration::from_millis(700 + round * 100));
        let statuses: Vec<u16> = std::thread::scope(|scope| {
            let seals: Vec<_> =
                (0..8).map(|_| scope.spawn(|| seal(&daemon, &id, success()).status)).collect();
            seals.into_iter().map(|seal| seal.join().expect("no panic")).collect()
        });
        let sealed = statuses.iter().filter(|status| **status == 201).count();
        assert!(sealed <= 1 && statuses.iter().all(|status| [201, 409].contains(status)), "{statuses:?}");
        endings.push((id, sealed == 1));
    }
    assert!(endings.iter().any(|(_, sealed)| *sealed) && endings.iter().any(|(_, sealed)| !sealed));
    for (id, sealed) in endings {
        let path = format!("/v1/proposals/{id}");
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while daemon.get(&path).json()["state"] == "open" {
            assert!(std::time::Instant::now() < deadline, "{}", daemon.log());
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        assert_eq!(daemon.get(&path).json()["state"], if sealed { "sealed" } else { "expired" });
    }
    audited(&world, daemon);
}

#[test]
fn an_id_that_a_proposal_gives_is_used_once() {
    const ID: &str = "6f1c2a7e-3b4d-4c5e-8f90-112233445566";
    let world = governed("[[actions]]\ntype = \"policy.*\"\napprovals = 1\n");
    let daemon = world.serve();
    let mut draft = policy_change();
    draft["entry_id"] = json!(ID);
    let ids = [open(&daemon, &draft), open(&daemon, &draft)];
    for id in &ids {
        approve(&daemon, id, &["mai"]);
    }
    assert_eq!(seal(&daemon, &ids[0], success()).json()["entry_id"], ID);
    seal(&daemon, &ids[1], success()).problem(409, "entry-id-taken");
    daemon.post("/v1/proposals", draft.to_string()).problem(409, "entry-id-taken");
    daemon.post("/v1/entries", request(&format!(r#","entry_id":"{ID}""#))).problem(409, "entry-id-conflict");
    audited(&world, daemon);
}

#[test]
fn what_an_operator_writes_is_under_the_rules_in_force_too() {
    let world = governed("");
    let daemon = world.serve();
    assert!(daemon.stop().success());
    world.configure("anchor", "file = \"anchor\"");
    let output = world
        .program(env!("CARGO_BIN_EXE_attestd"))
        .args(["anchor", "reset", "--reason", "a new one", "--config"])
        .arg(world.config())
        .output()
        .expect("attestd runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let daemon = world.serve();
    daemon.append(REQUEST);
    let entries = audited(&world, daemon);
    let anchor = entries.iter().find(|entry| entry["action_type"] == "ledger.anchor").expect("written");
    assert_ne!(anchor["environment"]["attestd.rules"], "default");
}

#[test]
fn a_provers_signature_makes_a_proof_and_nothing_else_does() {
    let pem = secret(9).verifying_key().to_public_key_pem(LineEnding::LF).expect("a key");
    let world = governed(&format!(
        "[[actions]]\ntype = \"deploy.*\"\nproofs = [\"tests\"]\n\
         [[provers]]\nname = \"ci\"\nproof = \"tests\"\npublic_key = '''{pem}'''\n"
    ));
    let daemon = world.serve();
    let payload = json!({"service": "billing"});
    let action_hash = attestd::ledger::hash::Digest::of(payload.to_string().as_bytes()).to_hex();
    let key = attestd::ledger::key::PublicKey::from_pem(&pem).expect("a key");
    let deploy = |id: &str, signer: u8, change: &dyn Fn(&mut Value)| {
        let mut statement = json!({
            "action_hash": action_hash, "action_type": "deploy.start", "expires_at": "2099-01-01T00:00:00.000000Z",
            "origin": common::ORIGIN, "proof_type": "tests", "prover": "ci", "statement": "attestd-proof-v1",
            "subject": id,
        });
        change(&mut statement);
        let statement = statement.to_string();
        let signature: p256::ecdsa::Signature = secret(signer).sign(statement.as_bytes());
        let hex: String = signature.to_der().as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        let evidence = json!({
            "algorithm": "ECDSA-P256-SHA256", "key_id": key.id().to_string(), "signature": hex,
            "statement": statement,
        });
        let event = json!({
            "entry_id": id, "event_type": "ACTION", "action_type": "deploy.start", "action_payload": payload,
            "execution_status": "SUCCESS", "actor_type": "SYSTEM",
            "provided_proofs": [{"type": "tests", "evidence": evidence}],
        });
        daemon.post("/v1/entries", event.to_string())
    };
    let same = |_: &mut Value| {};
    let sealed = deploy("6f1c2a7e-3b4d-4c5e-8f90-112233445566", 9, &same);
    assert_eq!(sealed.status, 201, "{}", sealed.text());
    let sealed = sealed.json();
    assert_eq!((&sealed["proofs_valid"], &sealed["required_proofs"]), (&json!(true), &json!(["tests"])));
    assert_eq!(sealed["provided_proofs"][0]["valid"], true);
    let other = "6f1c2a7e-3b4d-4c5e-8f90-112233445567";
    deploy(other, 8, &same).problem(422, "proof-failed");
    let wrong: [(&str, &str); 5] = [
        ("subject", "6f1c2a7e-3b4d-4c5e-8f90-112233445566"),
        ("origin", "other.example/ledger"),
        ("action_type", "deploy.stop"),
        ("expires_at", "2020-01-01T00:00:00.000000Z"),
        ("prover", "somebody"),
    ];
    for (name, value) in wrong {
        deploy(other, 9, &|statement| statement[name] = json!(value)).problem(422, "proof-failed");
    }
    daemon.post("/v1/entries", request("").replace("test.run", "deploy.start")).problem(422, "proof-failed");
    audited(&world, daemon);
}

/// Not a test by itself, but a process that sends a request and becomes another program at once.
#[test]
fn sends_a_request_and_becomes_attestctl() {
    use std::io::Write as _;
    use std::os::unix::process::CommandExt as _;
    let Some(socket) = std::env::var_os("ATTESTD_TEST_BECOME") else { return };
    let mut stream = std::os::unix::net::UnixStream::connect(socket).expect("connected");
    let head =
        format!("POST /v1/entries HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{REQUEST}", REQUEST.len());
    stream.write_all(head.as_bytes()).expect("sent");
    // The connection stays open as the standard input of the program that the rule names.
    let error = std::process::Command::new(env!("CARGO_BIN_EXE_attestctl"))
        .args(["completions", "bash"])
        .stdin(std::os::fd::OwnedFd::from(stream))
        .exec();
    panic!("{error}");
}

#[test]
fn what_a_process_becomes_after_it_has_connected_gets_it_nothing_that_its_user_has_not() {
    let uid = nix::unistd::Uid::effective();
    let world = World::new();
    // The program is the right one in the end, and the user never.
    let text = format!(
        "[[callers]]\nname = \"service\"\nuid = {}\nexe = \"{}\"\nverbs = [\"append\"]\n\
         [[callers]]\nname = \"tests\"\nuid = {uid}\nverbs = [\"read\", \"administer\"]\n",
        uid.as_raw() + 1,
        env!("CARGO_BIN_EXE_attestctl"),
    );
    fs::write(world.dir().join("rules.toml"), text).expect("writable");
    world.configure("rules", "file = \"rules.toml\"");
    let daemon = world.serve();
    let before = daemon.get("/v1/stats").json()["refused_since_start"].as_u64().expect("a number");
    for _ in 0..20 {
        let status = std::process::Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "sends_a_request_and_becomes_attestctl"])
            .env("ATTESTD_TEST_BECOME", world.socket())
            .stdout(std::process::Stdio::null())
            .status();
        assert!(status.expect("it runs").success());
    }
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while daemon.get("/v1/stats").json()["refused_since_start"].as_u64() < Some(before + 20) {
        assert!(std::time::Instant::now() < deadline, "{}", daemon.log());
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    assert!(audited(&world, daemon).iter().all(|entry| entry["action_type"] != "test.run"));
}
