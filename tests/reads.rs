//! What was sealed is found again: by its number, by its id, and by what it says, the same through
//! every way of asking and after the index was lost, since the index is a copy and the ledger is not.
//!
//! A list is held against a model that filters the entries themselves.

#![cfg(feature = "daemon")]

mod common;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use attestd::ledger::hash::Digest;
use attestd::ledger::key::PublicKey;
use common::{Answer, Daemon, ORIGIN, REQUEST, World, request};
use serde_json::{Value, json};

const EVENT_TYPES: [&str; 4] = ["ACTION", "DECISION", "VIOLATION", "CHANGE"];
const CATEGORIES: [&str; 4] = ["NORMAL", "WARNING", "ERROR", "CRITICAL"];
const STATUSES: [&str; 4] = ["SUCCESS", "FAILED", "BLOCKED", "ROLLED_BACK"];
const ACTIONS: [&str; 7] = ["deploy", "deploy.start", "deploy.stop", "deploz", "a/b:c", "z", "Deploy.start"];
const ACTORS: [&str; 4] = ["agent-1", "agent-10", "müller & söhne", "%2f+"];

/// Numbers that look random and are the same in every run (splitmix64).
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % end
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len() as u64) as usize]
    }
}

/// Appends `count` different events in batches, so that ledger time goes on between them.
fn populate(daemon: &Daemon, random: &mut Random, count: usize) {
    let events: Vec<String> = (0..count)
        .map(|_| {
            let mut event = json!({
                "event_type": random.of(&EVENT_TYPES), "event_category": random.of(&CATEGORIES),
                "execution_status": random.of(&STATUSES), "action_type": random.of(&ACTIONS),
                "actor_type": "SYSTEM", "action_payload": {"n": random.below(1 << 40)},
            });
            if random.below(3) > 0 {
                event["severity"] = json!(random.below(11));
            }
            if random.below(4) > 0 {
                event["actor_id"] = json!(random.of(&ACTORS));
            }
            event.to_string()
        })
        .collect();
    for piece in events.chunks(25) {
        let answer = daemon.post("/v1/entries:batch", piece.join("\n"));
        assert!(answer.lines().iter().all(|line| line["sequence_number"].is_u64()), "{}", answer.text());
    }
}

/// Every page from `query` on, until there is no next.
fn list(daemon: &Daemon, query: &str) -> Vec<Value> {
    let mut entries = Vec::new();
    let mut cursor = String::new();
    loop {
        let answer = daemon.get(&format!("/v1/entries?{query}{cursor}"));
        assert_eq!(answer.status, 200, "{query}: {}", answer.text());
        let mut page = answer.json();
        let members: Vec<_> = page.as_object().expect("an object").keys().cloned().collect();
        assert_eq!(members, ["entries", "next"]);
        entries.append(page["entries"].as_array_mut().expect("an array"));
        match &page["next"] {
            Value::Null => return entries,
            Value::String(next) => cursor = format!("&cursor={next}"),
            other => panic!("{other} is no cursor"),
        }
    }
}

fn numbers(entries: &[Value]) -> Vec<u64> {
    entries.iter().map(|entry| entry["sequence_number"].as_u64().expect("a number")).collect()
}

fn encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

/// A query and whether an entry matches it.
type Condition = (String, Box<dyn Fn(&Value) -> bool>);

fn equals(name: &'static str, value: &str) -> Condition {
    let (query, value) = (format!("{name}={}", encoded(value)), json!(value));
    (query, Box::new(move |entry| entry[name] == value))
}

/// A condition of any kind. Times and numbers are those of entries, where off-by-ones live.
fn condition(kind: u64, random: &mut Random, all: &[Value]) -> Condition {
    let entry = &all[random.below(all.len() as u64) as usize];
    let at = entry["sequence_number"].as_u64().expect("a number");
    let time = entry["timestamp"].as_str().expect("a string").to_owned();
    match kind {
        0 => equals(
            "event_type",
            random.of(&["ACTION", "DECISION", "VIOLATION", "CHANGE", "BOOT", "SHUTDOWN"]),
        ),
        1 => equals("event_category", random.of(&CATEGORIES)),
        2 => equals("execution_status", random.of(&STATUSES)),
        3 => {
            let severity = random.below(11);
            (format!("severity={severity}"), Box::new(move |entry| entry["severity"] == severity))
        }
        4 => {
            let least = random.below(11);
            let matches =
                move |entry: &Value| entry["severity"].as_u64().is_some_and(|severity| severity >= least);
            (format!("severity_min={least}"), Box::new(matches))
        }
        5 => equals("actor_id", entry["actor_id"].as_str().expect("a string")),
        6 => equals("action_type", random.of(&ACTIONS)),
        7 => {
            let prefix = random.of(&["", "d", "deploy", "deploy.", "deploy.start", "system_", "D", "zz"]);
            let matches = |prefix: &'static str| {
                move |entry: &Value| {
                    entry["action_type"].as_str().is_some_and(|action| action.starts_with(prefix))
                }
            };
            (format!("action_type_prefix={prefix}"), Box::new(matches(prefix)))
        }
        // One spelling has one length, so times compare as text.
        8 => {
            let query = format!("since={}", encoded(&time));
            (query, Box::new(move |entry| entry["timestamp"].as_str() >= Some(&time)))
        }
        9 => {
            let query = format!("until={}", encoded(&time));
            (query, Box::new(move |entry| entry["timestamp"].as_str() < Some(&time)))
        }
        10 => (format!("from={at}"), Box::new(move |entry| entry["sequence_number"].as_u64() >= Some(at))),
        _ => (format!("to={at}"), Box::new(move |entry| entry["sequence_number"].as_u64() < Some(at))),
    }
}

const KINDS: u64 = 12;

/// Holds lists of all kinds to be what the model says.
fn lists_agree(daemon: &Daemon, all: &[Value], random: &mut Random, combinations: usize) {
    let end = all.len();
    let mut found = 0;
    for round in 0..combinations {
        // Each kind by itself first, then two to four together.
        let mut kinds = BTreeSet::from([round as u64 % KINDS]);
        if round as u64 >= KINDS {
            let more = 1 + random.below(3);
            kinds.extend((0..more).map(|_| random.below(KINDS)));
        }
        let conditions: Vec<Condition> = kinds.iter().map(|kind| condition(*kind, random, all)).collect();
        let mut query: Vec<&str> = conditions.iter().map(|(query, _)| query.as_str()).collect();
        let order = random.of(&["", "order=desc", "order=asc"]);
        let limit = format!("limit={}", random.of(&[1, 2, 7, 100, 1_000]).max(if end > 400 { 7 } else { 1 }));
        query.extend([order, &limit]);
        // So that what comes later does not matter.
        let bound = format!("to={end}");
        if !kinds.contains(&11) {
            query.push(&bound);
        }
        let query = query.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("&");
        let mut expected: Vec<&Value> =
            all.iter().filter(|entry| conditions.iter().all(|(_, matches)| matches(entry))).collect();
        if order != "order=asc" {
            expected.reverse();
        }
        let listed = list(daemon, &query);
        assert_eq!(listed.iter().collect::<Vec<_>>(), expected, "{query}");
        found += usize::from(!listed.is_empty());
    }
    assert!(found > combinations / 3, "most of them found nothing: {found} of {combinations}");
}

fn entries(daemon: &Daemon) -> Vec<Value> {
    let all = list(daemon, "order=asc&limit=1000");
    assert_eq!(numbers(&all), (0..all.len() as u64).collect::<Vec<_>>());
    all
}

#[test]
fn entries_are_found_by_number_by_id_and_by_what_they_say() {
    let world = World::new();
    let daemon = world.serve();
    let mut random = Random(1);
    populate(&daemon, &mut random, 300);
    let all = entries(&daemon);
    assert_eq!(all.len(), 302);
    lists_agree(&daemon, &all, &mut random, 150);

    let mut lines = Vec::new();
    for entry in &all {
        let by_number = daemon.get(&format!("/v1/entries/{}", entry["sequence_number"]));
        let by_id = daemon.get(&format!("/v1/entries/{}", entry["entry_id"].as_str().expect("a string")));
        assert_eq!((by_number.status, by_id.status), (200, 200));
        assert_eq!(by_number.header("content-type"), Some("application/json"));
        assert_eq!(by_number.body, by_id.body);
        assert_eq!(by_number.json(), *entry);
        lines.push(by_number.text());
    }
    // By default the newest hundred, newest first.
    let page = daemon.get("/v1/entries").json();
    let newest: Vec<u64> = (202..302).rev().collect();
    assert_eq!(
        (numbers(page["entries"].as_array().expect("an array")), &page["next"]),
        (newest, &json!("201"))
    );
    // What nobody ever said is nowhere, and no fault.
    for query in [
        "actor_id=nobody",
        "action_type=never",
        "action_type_prefix=never",
        "since=9999-01-01T00:00:00Z",
        "actor_id=%00",
        "actor_id=%ff",
        "action_type_prefix=%7f",
        "until=1970-01-01T00:00:00Z",
        "from=302",
        "to=0",
        "from=7&to=7",
        "from=9&to=3",
        "severity=3&severity_min=4",
        "action_type=deploy&action_type_prefix=deploy.",
    ] {
        assert_eq!(list(&daemon, query), Vec::<Value>::new(), "{query}");
    }
    // Another zone's spelling of a time is the same time.
    let boot = all[1]["timestamp"].as_str().expect("a string");
    let since = format!("since={}&limit=1000&order=asc", encoded(&boot.replace('Z', "+00:00")));
    assert_eq!(list(&daemon, &since)[0], all[1]);

    assert!(daemon.stop().success());
    let audited = world.audit();
    assert_eq!(audited[..302], lines, "what is answered is what is sealed, byte by byte");
}

#[test]
fn paging_gives_every_entry_once_while_others_append() {
    let world = World::new();
    let daemon = world.serve();
    populate(&daemon, &mut Random(2), 100);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..8 {
                populate(&daemon, &mut Random(3 + round), 50);
            }
            done.store(true, Ordering::Release);
        });
        let mut rounds = 0;
        while !done.load(Ordering::Acquire) || rounds == 0 {
            let before = daemon.get("/v1/stats").json()["entries"].as_u64().expect("a number");
            let up = numbers(&list(&daemon, "order=asc&limit=23"));
            assert_eq!(up, (0..up.len() as u64).collect::<Vec<_>>());
            assert!(up.len() as u64 >= before);
            let down = numbers(&list(&daemon, "limit=23"));
            assert_eq!(down, (0..down.len() as u64).rev().collect::<Vec<_>>());
            assert!(down.len() >= up.len());
            rounds += 1;
        }
    });
    // Read your own write, by every way there is.
    for _ in 0..20 {
        let entry = daemon.append(REQUEST);
        let id = entry["entry_id"].as_str().expect("a string");
        assert_eq!(daemon.get(&format!("/v1/entries/{id}")).json(), entry);
        assert_eq!(daemon.get("/v1/entries?limit=1").json()["entries"][0], entry);
    }
    assert!(daemon.stop().success());
    assert_eq!(world.audit().len(), 3 + 500 + 20);
}

fn change(database: &std::path::Path, sql: &str) {
    let connection = rusqlite::Connection::open(database).expect("opened");
    assert!(connection.execute(sql, []).expect("changed") > 0, "{sql}");
}

#[test]
fn a_ledger_that_is_behind_its_index_is_not_extended() {
    let world = World::new();
    let daemon = world.serve();
    for _ in 0..5 {
        daemon.append(REQUEST);
    }
    assert!(daemon.stop().success());
    let whole = std::fs::read(world.ledger()).expect("readable");
    change(&world.ledger(), "DELETE FROM commits WHERE first > 4");
    change(&world.ledger(), "DELETE FROM entries WHERE sequence > 4");
    let output = world.attestd_within(Duration::from_secs(60), &["serve"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(78), "{said}");
    assert!(said.contains("has seen entry 7") && said.contains("5 entries"), "{said}");
    std::fs::write(world.ledger(), whole).expect("writable");
    assert!(world.serve().stop().success());
    world.audit();
}

#[test]
fn an_index_that_was_lost_is_built_again() {
    let world = World::new();
    let daemon = world.serve();
    let mut random = Random(4);
    populate(&daemon, &mut random, 150);
    let id = "6f1c2a7e-3b4d-4c5e-8f90-112233445566";
    let with_id = request(&format!(r#","entry_id":"{id}""#));
    let sealed = daemon.append(&with_id);
    let all = entries(&daemon);
    assert!(daemon.stop().success());

    let other = World::new();
    assert!(other.serve().stop().success());
    let index = world.dir().join("index.db");
    let files = || ["", "-wal", "-shm"].map(|suffix| world.dir().join(format!("index.db{suffix}")));
    let damages: [(&str, &dyn Fn()); 10] = [
        ("kept", &|| {}),
        ("deleted", &|| files().iter().for_each(|file| drop(std::fs::remove_file(file)))),
        ("empty", &|| std::fs::write(&index, "").expect("writable")),
        ("not a database", &|| std::fs::write(&index, "not a database".repeat(1_000)).expect("writable")),
        ("cut", &|| {
            let bytes = std::fs::read(&index).expect("readable");
            std::fs::write(&index, &bytes[..bytes.len() / 2]).expect("writable");
        }),
        ("overwritten in its second half", &|| {
            let mut bytes = std::fs::read(&index).expect("readable");
            let half = bytes.len() / 2;
            bytes[half..].fill(0xAA);
            std::fs::write(&index, bytes).expect("writable");
        }),
        ("without an id", &|| change(&index, "DELETE FROM ids WHERE sequence = 151")),
        ("without a fact", &|| change(&index, "DELETE FROM facts WHERE sequence = 7")),
        ("another ledger's", &|| {
            std::fs::copy(other.dir().join("index.db"), &index).expect("copied");
        }),
        ("the ledger itself", &|| {
            std::fs::copy(world.ledger(), &index).expect("copied");
        }),
    ];
    for (what, damage) in damages {
        eprintln!("the index is {what}");
        damage();
        let daemon = world.serve();
        lists_agree(&daemon, &all, &mut random, 30);
        for entry in all.iter().step_by(10) {
            let id = entry["entry_id"].as_str().expect("a string");
            assert_eq!(daemon.get(&format!("/v1/entries/{id}")).json(), *entry);
        }
        // An id is known after a restart, too.
        let again = daemon.post("/v1/entries", &with_id);
        assert_eq!((again.status, again.json()), (200, sealed.clone()));
        let replay = &daemon.post("/v1/entries:batch", &with_id).lines()[0];
        assert_eq!(replay["entry_hash"], sealed["entry_hash"]);
        let depends = daemon.append(request(&format!(r#","dependencies":["{id}"]"#)));
        assert_eq!(depends["dependencies"], json!([id]));
        assert!(daemon.stop().success());
    }
    assert_eq!(world.audit().len(), all.len() + 1 + 10 * 3);
}

#[test]
fn keys_figures_and_health_say_what_is() {
    let world = World::new();
    let daemon = world.serve();
    let pem = std::fs::read_to_string(world.dir().join("public-key.pem")).expect("readable");
    let key = PublicKey::from_pem(&pem).expect("a key");
    let entry = daemon.append(REQUEST);
    daemon.post("/v1/entries", "{}").problem(400, "missing-member");

    let keys = daemon.get("/v1/keys").json();
    let genesis = daemon.get("/v1/entries/0").json();
    assert_eq!(keys["origin"], ORIGIN);
    assert_eq!(keys["keys"].as_array().map(Vec::len), Some(1));
    let only = &keys["keys"][0];
    assert_eq!(only["key_id"], key.id().to_string());
    assert_eq!(only["key_id"], Digest::of(key.der()).to_hex());
    assert_eq!(only["key_id"], entry["signing_key_id"]);
    assert_eq!(only["public_key_pem"], pem);
    assert_eq!((&only["first"], &only["last"]), (&json!(0), &Value::Null));
    assert_eq!(only["token"]["label"], "attestd");
    assert_eq!(genesis["action_payload"]["token"]["serial"], only["token"]["serial"]);

    let stats = daemon.get("/v1/stats").json();
    for (name, value) in [
        ("origin", json!(ORIGIN)),
        ("version", json!(env!("CARGO_PKG_VERSION"))),
        ("entries", json!(3)),
        ("signature_mode", json!("each")),
        ("key_id", only["key_id"].clone()),
        ("queue", json!({"entries": 0, "bytes": 0})),
        ("token", only["token"].clone()),
        ("ready", json!(true)),
        // BOOT and ours.
        ("appended_since_start", json!(2)),
        ("refused_since_start", json!(1)),
    ] {
        assert_eq!(stats[name], value, "{name}");
    }
    for name in ["sequence_number", "entry_hash", "timestamp"] {
        assert_eq!(stats["head"][name], entry[name]);
    }
    assert!(
        stats["memory_bytes"].as_u64().is_some_and(|bytes| (1 << 20..100 << 20).contains(&bytes)),
        "{stats}"
    );
    // This one, and those before it that are not seen off yet.
    assert!(
        stats["connections"].as_u64().is_some_and(|connections| (1..10).contains(&connections)),
        "{stats}"
    );
    assert!(stats["uptime_seconds"].as_u64().is_some_and(|seconds| seconds < 60));
    assert!(stats["started_at"].as_str() < entry["timestamp"].as_str());
    assert_eq!(daemon.get("/livez").json(), json!({"status": "ok"}));
    assert_eq!(daemon.get("/readyz").json(), json!({"status": "ready"}));
    assert!(daemon.stop().success());
    world.audit();
}

#[test]
fn an_export_is_the_ledger_and_any_part_of_it() {
    let world = World::new();
    let daemon = world.serve();
    populate(&daemon, &mut Random(5), 200);
    let all: Vec<String> = (0..202).map(|n| daemon.get(&format!("/v1/entries/{n}")).text()).collect();
    for (query, from, to) in [
        ("", 0, 202),
        ("?from=0&to=1", 0, 1),
        ("?from=7&to=100", 7, 100),
        ("?from=199", 199, 202),
        ("?to=5000", 0, 202),
        ("?from=9&to=3", 9, 9),
        ("?from=5000", 202, 202),
    ] {
        let answer = covered(|| daemon.get(&format!("/v1/export{query}")));
        assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/x-tar")));
        assert_eq!(answer.header("attestd-entries"), Some((to - from).to_string().as_str()));
        let dir = world.dir().join(format!("bundle-{from}-{to}-{}", query.len()));
        let manifest = attestd::bundle::unpack(answer.body.as_slice(), &dir, |_, _| {}).expect("a bundle");
        assert_eq!((manifest.origin.as_str(), manifest.count), (ORIGIN, (to - from) as u64));
        let read = |name: &str| std::fs::read_to_string(dir.join(name)).expect("readable");
        let expected: String = all[from..to].iter().map(|line| format!("{line}\n")).collect();
        assert_eq!(read("entries.jsonl"), expected, "{query}");
        let pem = std::fs::read_to_string(world.dir().join("public-key.pem")).expect("readable");
        assert_eq!(read("public-key.pem"), pem);
        if from < to {
            verifies(&world, &dir);
        }
    }
    assert!(daemon.stop().success());
    world.audit();
}

/// Asks again until a checkpoint covers what the answer needs.
fn covered(ask: impl Fn() -> Answer) -> Answer {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let answer = ask();
        if answer.status != 503 || Instant::now() > deadline {
            return answer;
        }
        answer.problem(503, "checkpoint-pending");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// As the auditor does it.
fn verifies(world: &World, bundle: &Path) {
    let output = Command::new(env!("CARGO_BIN_EXE_attest-verify"))
        .arg(bundle)
        .arg("--key")
        .arg(world.dir().join("public-key.pem"))
        .output()
        .expect("attest-verify runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn the_daemon_checks_its_own_ledger_and_measures_its_token() {
    let world = World::new();
    let daemon = world.serve();
    populate(&daemon, &mut Random(6), 100);
    let verdict = daemon.post("/v1/verify", "").json();
    let head = daemon.get("/v1/stats").json()["head"].clone();
    assert_eq!((&verdict["ok"], &verdict["fault"]), (&json!(true), &Value::Null), "{verdict}");
    assert_eq!(
        (&verdict["first"], &verdict["count"], &verdict["last"]),
        (&json!(0), &json!(102), &json!(101))
    );
    assert_eq!((&verdict["origin"], &verdict["head_hash"]), (&json!(ORIGIN), &head["entry_hash"]));
    // While entries come, and by several at once: one of them looks, the others are told so.
    std::thread::scope(|scope| {
        scope.spawn(|| populate(&daemon, &mut Random(7), 200));
        let checks: Vec<_> = (0..4).map(|_| scope.spawn(|| daemon.post("/v1/verify", ""))).collect();
        let mut verified = 0;
        for check in checks {
            let answer = check.join().expect("answered");
            match answer.status {
                200 => {
                    assert_eq!(answer.json()["ok"], true, "{}", answer.text());
                    verified += 1;
                }
                _ => drop(answer.problem(409, "busy")),
            }
        }
        assert!(verified > 0);
    });

    let mut bench = daemon.post("/v1/bench?seconds=1", "");
    for _ in 0..50 {
        if bench.status == 200 {
            break;
        }
        bench.problem(409, "busy");
        std::thread::sleep(Duration::from_millis(100));
        bench = daemon.post("/v1/bench?seconds=1", "");
    }
    let figures = bench.json();
    assert_eq!(figures["sessions"], 2);
    for name in
        ["sign_1_per_second", "sign_n_per_second", "fdatasync_per_second", "sign_p50_us", "fdatasync_p50_us"]
    {
        assert!(figures[name].as_f64().is_some_and(|figure| figure > 0.0), "{figures}");
    }
    assert!(daemon.stop().success());
    assert_eq!(world.audit().len(), 303, "measuring leaves nothing in the ledger");
}
