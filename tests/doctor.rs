//! The doctor: on a world in order it has nothing to say but that, each fault has its line with what
//! to do, and looking changes nothing and disturbs nobody.

#![cfg(feature = "daemon")]

mod common;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Output;

use common::{REQUEST, World};
use serde_json::{Value, json};

fn doctor(world: &World, arguments: &[&str]) -> Output {
    let config = world.config();
    let all = [&["doctor", "--config", config.to_str().expect("UTF-8")], arguments].concat();
    world.attestctl(&all)
}

/// What `--json` says, with the exit code.
fn report(world: &World, arguments: &[&str]) -> (Value, i32) {
    let output = doctor(world, &[&["--json"], arguments].concat());
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let report: Value = serde_json::from_str(&text)
        .unwrap_or_else(|error| panic!("{error}: {text}{}", String::from_utf8_lossy(&output.stderr)));
    assert!(!text.contains(&pin(world)), "the PIN is never said: {text}");
    (report, output.status.code().expect("it ended"))
}

fn pin(world: &World) -> String {
    let read = std::fs::read_to_string(world.dir().join("hsm/pin")).unwrap_or_default();
    if read.trim().is_empty() { "there is none".into() } else { read.trim().to_owned() }
}

/// `what level` of each finding, but for those that are the machine's and not the world's.
fn outline(report: &Value) -> Vec<String> {
    let findings = report["findings"].as_array().expect("an array");
    let of = |finding: &Value, name: &str| finding[name].as_str().expect("text").to_owned();
    let outline = findings.iter().filter(|finding| {
        !["clock", "unit", "sandbox", "watchdog", "credentials"].contains(&of(finding, "what").as_str())
    });
    outline.map(|finding| format!("{} {}", of(finding, "what"), of(finding, "level"))).collect()
}

fn finding<'a>(report: &'a Value, what: &str) -> &'a Value {
    let findings = report["findings"].as_array().expect("an array");
    findings
        .iter()
        .find(|finding| finding["what"] == what)
        .unwrap_or_else(|| panic!("nothing of {what}: {report}"))
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("set");
}

fn in_order() -> World {
    let world = World::without_ledger();
    world.configure("anchor", "file = \"anchor\"\ntoken = true");
    assert!(world.attestd(&["init"]).status.success());
    set_mode(&world.config(), 0o644);
    set_mode(&world.ledger(), 0o600);
    world
}

const LOOKED_AT: [&str; 17] = [
    "user ok",
    "sqlite ok",
    "ledger ok",
    "schema ok",
    "integrity ok",
    "entries ok",
    "anchor ok",
    "rules ok",
    "disk ok",
    "config_file ok",
    "ledger_file ok",
    "ledger_dir ok",
    "socket_dir ok",
    "socket ok",
    "daemon ok",
    "pin ok",
    "latch ok",
];

#[test]
fn a_world_in_order_with_its_daemon() {
    let world = in_order();
    let daemon = world.serve();
    daemon.append(REQUEST);
    let (report, code) = report(&world, &[]);
    let rest =
        ["module_file ok", "module ok", "token ok", "flags ok", "mechanism ok", "ec_point ok", "login ok"];
    assert_eq!(outline(&report), [&LOOKED_AT[..], &rest].concat(), "{report:#}");
    assert_eq!((code, &report["ok"], &report["caller"]), (0, &json!(true), &Value::Null));
    let said = finding(&report, "daemon")["said"].as_str().expect("text");
    assert_eq!(said, format!("runs as process {} and takes entries", daemon.child.id()));
    assert!(finding(&report, "login")["said"].as_str().is_some_and(|said| said.starts_with("not logged in")));
    assert!(daemon.stop().success());
    assert!(!world.audit().iter().any(|line| line.contains("doctor.test")), "nothing was appended");
}

#[test]
fn a_world_in_order_without_its_daemon() {
    let world = in_order();
    assert!(world.serve().stop().success());
    let before = std::fs::read(world.ledger()).expect("readable");
    let (report, code) = report(&world, &[]);
    let rest = [
        "module_file ok",
        "module ok",
        "token ok",
        "flags ok",
        "mechanism ok",
        "login ok",
        "ec_point ok",
        "attributes ok",
        "key ok",
        "sign ok",
        "anchor ok",
    ];
    let all: Vec<&str> =
        LOOKED_AT.iter().map(|line| if *line == "daemon ok" { "daemon warning" } else { line }).collect();
    assert_eq!(outline(&report), [&all[..], &rest].concat(), "{report:#}");
    assert_eq!((code, &report["ok"]), (0, &json!(true)), "a warning is nothing wrong");
    assert_eq!(std::fs::read(world.ledger()).expect("readable"), before, "looking changes nothing");
    assert!(!world.dir().join("pin-latch").exists());
    assert!(world.serve().stop().success());
    world.audit();
}

#[test]
fn its_words_are_for_people() {
    let world = in_order();
    let sound = String::from_utf8(doctor(&world, &[]).stdout).expect("UTF-8");
    assert!(
        sound.contains("\nok       ec_point     in a DER OCTET STRING, as the standard has it\n"),
        "{sound}"
    );
    set_mode(&world.dir().join("hsm/pin"), 0o644);
    let output = doctor(&world, &[]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let dir = world.dir().display().to_string();
    let line = |what: &str| {
        let found = text.lines().find(|line| line.split_whitespace().nth(1) == Some(what));
        found.unwrap_or_else(|| panic!("nothing of {what}:\n{text}")).replace(&dir, "DIR")
    };
    assert_eq!(line("schema"), "ok       schema       version 2");
    assert_eq!(line("ledger"), "ok       ledger       DIR/ledger.db, of test.example/ledger, with 1 entry");
    assert_eq!(
        line("pin"),
        "wrong    pin          the PIN file DIR/hsm/pin has mode 0644, so others than its owner can use it: chmod 600 DIR/hsm/pin"
    );
    assert_eq!(line("ec_point"), "ok       ec_point     not to be seen without a login");
    assert!(text.contains("\n                      → "), "{text}");
    let summary = text.lines().last().expect("a line");
    assert!(summary.starts_with("1 wrong, ") && summary.ends_with(" in order"), "{summary}");
}

/// How a world is broken, and the line that comes of it.
type Fault = (&'static str, fn(&World), &'static str, &'static str, &'static str);

fn rewrite(world: &World, from: &str, to: &str) {
    let config = std::fs::read_to_string(world.config()).expect("readable");
    assert!(config.contains(from), "{config}");
    std::fs::write(world.config(), config.replace(from, to)).expect("writable");
}

fn sql(world: &World, text: &str) {
    let connection = rusqlite::Connection::open(world.ledger()).expect("opened");
    assert_eq!(connection.execute(text, []).expect("executed"), 1, "{text}");
}

#[test]
fn each_fault_has_its_line() {
    let faults: &[Fault] = &[
        (
            "pin gone",
            |world| std::fs::remove_file(world.dir().join("hsm/pin")).expect("removed"),
            "pin",
            "wrong",
            "No such file",
        ),
        (
            "pin empty",
            |world| std::fs::write(world.dir().join("hsm/pin"), "\n").expect("written"),
            "pin",
            "wrong",
            "is empty",
        ),
        (
            "pin refused before",
            |world| {
                let latched = r#"{"refused":"PinIncorrect","serial":"7","state":"refused"}"#;
                std::fs::write(world.dir().join("pin-latch"), latched).expect("written");
            },
            "latch",
            "wrong",
            "PinIncorrect",
        ),
        (
            "pin wrong",
            |world| std::fs::write(world.dir().join("hsm/pin"), "987654321").expect("written"),
            "login",
            "wrong",
            "refused the PIN",
        ),
        (
            "credential",
            |world| rewrite(world, "pin_file = \"hsm/pin\"", "pin_credential = \"attestd.pin\""),
            "pin",
            "warning",
            "CREDENTIALS_DIRECTORY is not set",
        ),
        (
            "module",
            |world| rewrite(world, &common::module().display().to_string(), "/nowhere/libnone.so"),
            "module",
            "wrong",
            "/nowhere/libnone.so",
        ),
        ("token", |world| rewrite(world, "token=", "token=another-"), "token", "wrong", "no token"),
        ("key", |world| rewrite(world, "object=", "object=another-"), "key", "wrong", "no EC private key"),
        (
            "no ledger",
            |world| std::fs::remove_file(world.ledger()).expect("removed"),
            "ledger",
            "wrong",
            "there is no ledger",
        ),
        (
            "no database",
            |world| std::fs::write(world.ledger(), "no database".repeat(500)).expect("written"),
            "ledger",
            "wrong",
            "is not an attestd ledger",
        ),
        (
            "origin",
            |world| rewrite(world, "test.example/ledger", "test.example/other"),
            "ledger",
            "wrong",
            "belongs to the origin",
        ),
        (
            "an entry changed",
            |world| {
                sql(
                    world,
                    "UPDATE entries SET body = CAST(replace(body, 'ledger.genesis', 'ledger.Genesis') AS BLOB) WHERE sequence = 0",
                );
            },
            "ledger",
            "wrong",
            "entry 0",
        ),
        (
            "a later entry changed",
            |world| {
                let daemon = world.serve();
                daemon.append(REQUEST);
                assert!(daemon.stop().success());
                sql(
                    world,
                    "UPDATE entries SET body = CAST(replace(body, 'test.run', 'test.fun') AS BLOB) WHERE sequence = 2",
                );
            },
            "entries",
            "wrong",
            "entry 2",
        ),
        (
            "the file is torn",
            |world| {
                let mut bytes = std::fs::read(world.ledger()).expect("readable");
                // The second page on: headers of b-trees.
                for page in (4_096..bytes.len()).step_by(4_096) {
                    bytes[page] ^= 0x55;
                }
                std::fs::write(world.ledger(), bytes).expect("written");
            },
            "ledger",
            "wrong",
            "malformed",
        ),
        (
            "no anchor configured",
            |world| rewrite(world, "file = \"anchor\"\ntoken = true", ""),
            "anchor",
            "warning",
            "none is configured",
        ),
        (
            "anchor gone",
            |world| std::fs::remove_file(world.dir().join("anchor")).expect("removed"),
            "anchor",
            "wrong",
            "is missing",
        ),
        (
            "ledger put back",
            |world| {
                let old = std::fs::read(world.ledger()).expect("readable");
                let daemon = world.serve();
                daemon.append(REQUEST);
                assert!(daemon.stop().success());
                for suffix in ["-wal", "-shm"] {
                    let _ = std::fs::remove_file(world.dir().join(format!("ledger.db{suffix}")));
                }
                std::fs::write(world.ledger(), old).expect("written");
            },
            "anchor",
            "wrong",
            "it was cut, or an old copy was put back",
        ),
        (
            "disk",
            |world| world.configure("ledger", "min_free_bytes = 1125899906842624"),
            "disk",
            "wrong",
            "appends are refused under",
        ),
        ("directory", |world| set_mode(world.dir(), 0o777), "ledger_dir", "wrong", "others can change it"),
        (
            "config_file",
            |world| set_mode(&world.config(), 0o666),
            "config_file",
            "wrong",
            "others can change it",
        ),
        (
            "readable ledger",
            |world| {
                set_mode(world.dir(), 0o711);
                set_mode(&world.ledger(), 0o644);
            },
            "ledger_file",
            "warning",
            "can read the entries",
        ),
        (
            "socket",
            |world| std::fs::write(world.socket(), "").expect("written"),
            "socket",
            "wrong",
            "is not a socket",
        ),
        (
            "rules malformed",
            |world| {
                std::fs::write(world.dir().join("rules.toml"), "colour = 1\n").expect("written");
                world.configure("rules", "file = \"rules.toml\"");
            },
            "rules",
            "wrong",
            "rules.toml",
        ),
        (
            "rules of the file not in force",
            |world| {
                let rules = "[[callers]]\nname = \"root\"\nuid = 0\nverbs = [\"append\"]\n";
                std::fs::write(world.dir().join("rules.toml"), rules).expect("written");
                world.configure("rules", "file = \"rules.toml\"");
            },
            "rules",
            "warning",
            "holds others",
        ),
    ];
    for (name, damage, what, level, fragment) in faults {
        let world = in_order();
        damage(&world);
        let (report, code) = report(&world, &[]);
        let findings = report["findings"].as_array().expect("an array");
        let found = findings.iter().find(|finding| finding["what"] == *what && finding["level"] == *level);
        let found = found.unwrap_or_else(|| panic!("{name}: no {what} {level}: {report:#}"));
        assert!(found["said"].as_str().is_some_and(|said| said.contains(fragment)), "{name}: {found}");
        assert!(found["remedy"].as_str().is_some_and(|remedy| !remedy.is_empty()), "{name}: {found}");
        assert_eq!(code, i32::from(*level == "wrong"), "{name}: {report:#}");
    }
}

#[test]
fn a_pin_that_was_refused_is_not_tried_again() {
    let world = in_order();
    let right = std::fs::read(world.dir().join("hsm/pin")).expect("readable");
    std::fs::write(world.dir().join("hsm/pin"), "987654321").expect("written");
    assert_eq!(finding(&report(&world, &[]).0, "login")["level"], "wrong");
    for _ in 0..3 {
        let (again, code) = report(&world, &[]);
        assert_eq!((code, &finding(&again, "latch")["level"]), (1, &json!("wrong")));
        assert!(
            finding(&again, "login")["said"].as_str().is_some_and(|said| said.starts_with("not logged in"))
        );
    }
    assert_eq!(world.attestd(&["serve"]).status.code(), Some(78), "nor by the daemon");
    std::fs::write(world.dir().join("hsm/pin"), right).expect("written");
    let config = world.config();
    assert!(world.attestctl(&["pin", "clear", "--config", config.to_str().expect("UTF-8")]).status.success());
    // The token still knows of the wrong one, and with the next wrong one something might lock.
    let careful = report(&world, &[]).0;
    assert_eq!(
        (&finding(&careful, "flags")["level"], &finding(&careful, "login")["level"]),
        (&json!("warning"), &json!("warning"))
    );
    assert!(world.serve().stop().success());
    assert_eq!(finding(&report(&world, &[]).0, "sign")["level"], "ok");
}

#[test]
fn a_token_that_hangs_or_goes_is_said() {
    let world = World::new();
    world.use_shim();
    world.configure("token", "hang_timeout_seconds = 1");
    common::inject(&world.shim_control(), "hang C_Sign\n");
    let (hangs, code) = report(&world, &[]);
    let said = hangs["findings"].as_array().expect("an array").last().expect("one").clone();
    assert_eq!((code, &said["what"]), (1, &json!("token")), "{said}");
    assert!(said["said"].as_str().is_some_and(|said| said.contains("has not ended within 1 s")), "{said}");
    common::inject(&world.shim_control(), "return C_Sign CKR_DEVICE_ERROR\n");
    let (fails, code) = report(&world, &[]);
    assert_eq!((code, &finding(&fails, "sign")["level"]), (1, &json!("wrong")));
    assert!(
        finding(&fails, "sign")["said"].as_str().is_some_and(|said| said.contains("DeviceError")),
        "{fails}"
    );
}

#[test]
fn a_daemon_that_takes_no_entries_says_why() {
    let world = World::new();
    world.use_shim();
    common::inject(&world.shim_control(), "");
    let daemon = world.serve();
    common::inject(&world.shim_control(), "return C_Sign CKR_DEVICE_ERROR\n");
    daemon.post("/v1/entries", REQUEST).problem(503, "outcome-unknown");
    let (report, code) = report(&world, &[]);
    let said = finding(&report, "daemon");
    assert_eq!((code, &said["level"]), (1, &json!("wrong")), "{said}");
    assert!(said["said"].as_str().is_some_and(|said| said.contains("DeviceError")), "{said}");
}

#[test]
fn a_test_event_shows_what_the_kernel_says_of_the_caller() {
    let world = World::new();
    let daemon = world.serve();
    let (report, code) = report(&world, &["--append"]);
    assert_eq!(code, 0, "{report:#}");
    let peer = &report["caller"];
    let uid = nix::unistd::geteuid().as_raw();
    assert_eq!((&peer["uid"], &peer["caller"]), (&json!(uid), &Value::Null));
    assert!(peer["exe"].as_str().is_some_and(|exe| exe.ends_with("/attestctl")), "{peer}");
    assert!(peer.get("groups").is_some() && peer.get("unit").is_some());
    let text = String::from_utf8(doctor(&world, &["--append"]).stdout).expect("UTF-8");
    assert!(
        text.contains(&format!("\n  uid         {uid}\n")) && text.contains("\n  exe         "),
        "{text}"
    );
    assert!(daemon.stop().success());
    let entries = world.audit();
    assert_eq!(entries.iter().filter(|line| line.contains("\"action_type\":\"doctor.test\"")).count(), 2);
    // Nobody there to append to.
    let (report, code) = self::report(&world, &["--append"]);
    assert_eq!((code, &finding(&report, "append")["level"]), (1, &json!("wrong")));
}

#[test]
fn the_daemon_goes_on_undisturbed() {
    let world = in_order();
    let daemon = world.serve();
    std::thread::scope(|scope| {
        let looking = scope.spawn(|| (0..3).map(|_| report(&world, &[]).1).collect::<Vec<_>>());
        while !looking.is_finished() {
            daemon.append(REQUEST);
        }
        assert_eq!(looking.join().expect("looked"), [0, 0, 0]);
    });
    assert!(daemon.stop().success());
    world.audit();
}

#[test]
fn without_a_configuration_it_could_not_look() {
    let world = World::without_ledger();
    rewrite(&world, "origin = ", "colour = ");
    let output = doctor(&world, &[]);
    assert_eq!((output.status.code(), output.stdout.is_empty()), (Some(2), true));
    assert!(String::from_utf8_lossy(&output.stderr).contains("attestd.toml"));
}
