//! Making a ledger, and everything an operator can get wrong before the first entry: each is
//! refused, says how to go on, and leaves nothing behind.

#![cfg(feature = "daemon")]

mod common;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use common::{ORIGIN, REQUEST, World, module};
use serde_json::{Value, json};

fn refused(output: &Output, code: i32, reason: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(said.contains(reason), "{reason:?} is not in {said}");
}

/// `attestd serve` where it must not start, with an end in case it does.
fn serve(world: &World) -> Output {
    let mut command = world.program("timeout");
    command.args(["60", env!("CARGO_BIN_EXE_attestd"), "serve", "--config"]).arg(world.config());
    command.output().expect("timeout runs")
}

/// Replaces `from` in the configuration.
fn edit(world: &World, from: &str, to: &str) {
    let config = std::fs::read_to_string(world.config()).expect("readable");
    assert!(config.contains(from), "{config}");
    std::fs::write(world.config(), config.replace(from, to)).expect("written");
}

fn names(dir: &Path) -> Vec<String> {
    let name = |entry: std::io::Result<std::fs::DirEntry>| entry.expect("read").file_name().into_string();
    let mut names: Vec<String> =
        std::fs::read_dir(dir).expect("listed").map(|entry| name(entry).expect("UTF-8")).collect();
    names.sort();
    names
}

/// Holds that `init` fails and that the directory is as it was.
fn init_refused(world: &World, code: i32, reason: &str) {
    let before = names(world.dir());
    refused(&world.attestd(&["init"]), code, reason);
    assert_eq!(names(world.dir()), before);
}

fn openssl(arguments: &[&str]) -> Vec<u8> {
    let output = Command::new("openssl").args(arguments).output().expect("openssl runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn hex(text: &str) -> Vec<u8> {
    let pairs = text.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).expect("ASCII"));
    pairs.map(|pair| u8::from_str_radix(pair, 16).expect("hex")).collect()
}

#[test]
fn init_touches_nothing_that_exists() {
    let world = World::without_ledger();
    for name in ["ledger.db", "ledger.db-wal", "index.db", "public-key.pem"] {
        let path = world.dir().join(name);
        std::fs::write(&path, "mine").expect("written");
        init_refused(&world, 1, &format!("{name} exists already"));
        assert_eq!(std::fs::read(&path).expect("readable"), b"mine");
        std::fs::remove_file(&path).expect("removed");
        // A link that leads nowhere is something too.
        std::os::unix::fs::symlink("nowhere", &path).expect("linked");
        init_refused(&world, 1, &format!("{name} exists already"));
        std::fs::remove_file(&path).expect("removed");
    }
    assert!(world.attestd(&["init"]).status.success());
    assert_eq!(names(world.dir()), ["attestd.toml", "hsm", "ledger.db", "public-key.pem"]);
    let made = std::fs::read(world.ledger()).expect("readable");
    init_refused(&world, 1, "ledger.db exists already");
    assert_eq!(std::fs::read(world.ledger()).expect("readable"), made);
}

#[test]
fn init_without_its_key_leaves_nothing_behind() {
    let world = World::without_ledger();
    let config = std::fs::read_to_string(world.config()).expect("readable");
    let cases = [
        ("object=attestd-ledger", "object=another", 78, "no EC private key on the token matches"),
        ("token=attestd", "token=another", 1, "no token matches"),
        ("libsofthsm2.so", "libnothing.so", 78, "couldn't load the PKCS#11 library"),
        ("pin_file = \"hsm/pin\"", "", 78, "names no PIN"),
        ("hsm/pin", "hsm/none", 78, "couldn't read the PIN"),
    ];
    for (from, to, code, reason) in cases {
        edit(&world, from, to);
        init_refused(&world, code, reason);
        std::fs::write(world.config(), &config).expect("written");
    }
    let pin = world.dir().join("hsm/pin");
    std::fs::set_permissions(&pin, std::fs::Permissions::from_mode(0o644)).expect("changed");
    init_refused(&world, 78, "has mode 0644");
    std::fs::set_permissions(&pin, std::fs::Permissions::from_mode(0o600)).expect("changed");
    let right = std::fs::read(&pin).expect("readable");
    std::fs::write(&pin, "00000000x").expect("written");
    init_refused(&world, 78, "the token refused the PIN");
    std::fs::write(&pin, right).expect("written");
    assert!(world.attestd(&["init"]).status.success());
}

#[test]
fn a_directory_that_cannot_be_made_is_said() {
    let world = World::without_ledger();
    edit(
        &world,
        "path = \"ledger.db\"",
        "path = \"attestd.toml/ledger.db\"\npublic_key = \"public-key.pem\"",
    );
    init_refused(&world, 1, "attestd.toml");
}

#[test]
fn the_genesis_says_what_the_ledger_is() {
    let world = World::new();
    let key_id = public_key_id(&world);
    let serial = uri_serial(&world);
    let lines = world.audit();
    assert_eq!(lines.len(), 1);
    let genesis: Value = serde_json::from_str(&lines[0]).expect("JSON");
    let pem = std::fs::read_to_string(world.dir().join("public-key.pem")).expect("readable");
    assert_eq!(
        genesis["action_payload"],
        json!({
            "ceremony": null,
            "key_attributes": {
                "always_sensitive": true, "extractable": false, "local": true,
                "never_extractable": true, "sensitive": true,
            },
            "key_id": key_id,
            "origin": ORIGIN,
            "predecessor": null,
            "public_key_pem": pem,
            "rules": null,
            "signature_mode": "each",
            "token": {
                "label": "attestd", "manufacturer": "SoftHSM project", "model": "SoftHSM v2",
                "serial": serial,
            },
        })
    );
    let expected = json!({
        "sequence_number": 0, "event_type": "CHANGE", "event_category": "NORMAL", "severity": 0,
        "action_type": "ledger.genesis", "actor_type": "SYSTEM", "actor_id": "attestd",
        "actor_context": {}, "execution_status": "SUCCESS", "prev_entry_hash": "0".repeat(64),
        "signing_key_id": key_id, "signature_algorithm": "ECDSA-P256-SHA256",
        "attribution": "alpha_prime_omega", "schema_version": "1.0.0", "replicas": [],
        "required_proofs": [], "provided_proofs": [], "required_approvals": 0,
        "received_approvals": [], "quorum_met": true, "proofs_valid": true, "k_state": 1,
        "dependencies": [], "result_data": null, "error_details": null,
    });
    for (name, value) in expected.as_object().expect("an object") {
        assert_eq!(genesis[name], *value, "{name}");
    }
    assert_eq!(genesis.as_object().expect("an object").len(), 40);
    let environment = genesis["environment"].as_object().expect("an object");
    let given: Vec<&str> = environment.keys().map(String::as_str).collect();
    assert_eq!(given, ["attestd.boot_id", "attestd.host", "attestd.rules", "attestd.version"]);
    assert_eq!(environment["attestd.rules"], "default");
}

/// The key's id as a stranger computes it: `openssl pkey -pubin -outform DER | sha256sum`.
fn public_key_id(world: &World) -> String {
    let pem = world.dir().join("public-key.pem");
    let der = world.dir().join("key.der");
    let (pem, der) = (pem.to_str().expect("UTF-8"), der.to_str().expect("UTF-8"));
    openssl(&["pkey", "-pubin", "-in", pem, "-outform", "DER", "-out", der]);
    assert_eq!(openssl(&["pkey", "-pubin", "-in", pem]), std::fs::read(pem).expect("readable"));
    let sum = Command::new("sha256sum").arg(der).output().expect("sha256sum runs").stdout;
    std::fs::remove_file(der).expect("removed");
    String::from_utf8(sum[..64].to_vec()).expect("hex")
}

fn uri_serial(world: &World) -> String {
    let config = std::fs::read_to_string(world.config()).expect("readable");
    let rest = config.split("serial=").nth(1).expect("a serial");
    rest.split(';').next().expect("its end").to_owned()
}

#[test]
fn openssl_verifies_what_the_token_signed() {
    let world = World::new();
    let daemon = world.serve();
    daemon.append(REQUEST);
    assert!(daemon.stop().success());
    let path = |name: &str| world.dir().join(name).to_str().expect("UTF-8").to_owned();
    for line in world.audit() {
        let entry: Value = serde_json::from_str(&line).expect("JSON");
        let text = |name: &str| entry[name].as_str().expect("a string").to_owned();
        std::fs::write(path("message"), hex(&text("entry_hash"))).expect("written");
        std::fs::write(path("signature"), hex(&text("hsm_signature"))).expect("written");
        let (key, signature, message) = (path("public-key.pem"), path("signature"), path("message"));
        let said = openssl(&["dgst", "-sha256", "-verify", &key, "-signature", &signature, &message]);
        assert_eq!(String::from_utf8_lossy(&said), "Verified OK\n");
    }
}

#[test]
fn without_a_ledger_the_daemon_does_not_start() {
    let world = World::without_ledger();
    for output in [serve(&world), world.attestd(&["verify"]), world.attestd(&["export", "/nowhere"])] {
        refused(&output, 78, "there is no ledger at");
        refused(&output, 78, "attestd init");
    }
    assert!(!world.ledger().exists());
    // One whose making was interrupted is no ledger either.
    assert!(world.attestd(&["init"]).status.success());
    let connection = rusqlite::Connection::open(world.ledger()).expect("opened");
    connection.execute_batch("DELETE FROM entries; DELETE FROM commits").expect("done");
    drop(connection);
    refused(&serve(&world), 78, "has no entry");
}

#[test]
fn another_origin_is_refused() {
    let world = World::new();
    edit(&world, ORIGIN, "test.example/other");
    refused(&serve(&world), 78, &format!("the ledger belongs to the origin {ORIGIN}"));
}

#[test]
fn a_wrong_pin_is_an_operators_matter() {
    let world = World::new();
    std::fs::write(world.dir().join("hsm/pin"), "00000000x").expect("written");
    let output = serve(&world);
    refused(&output, 78, "the token refused the PIN");
    refused(&output, 78, "attestctl pin clear");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!said.contains("00000000x"), "{said}");
}

#[test]
fn another_token_is_refused_before_a_login() {
    let world = World::new();
    let other = world.dir().join("other");
    let output = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/softhsm/make-token"))
        .arg(&other)
        .args(["--label", "other"])
        .output()
        .expect("softhsm/make-token runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let uri = String::from_utf8(output.stdout).expect("UTF-8");
    for token in std::fs::read_dir(other.join("tokens")).expect("listed") {
        let token = token.expect("read");
        let to = world.dir().join("hsm/tokens").join(token.file_name());
        std::fs::rename(token.path(), to).expect("moved");
    }
    // The PIN file is that of the first token: a login would be refused for that.
    let config = std::fs::read_to_string(world.config()).expect("readable");
    let old = config.split("uri = \"").nth(1).and_then(|rest| rest.split('"').next()).expect("a URI");
    edit(&world, old, uri.trim());
    let output = serve(&world);
    refused(&output, 78, "expected the token with serial");
    refused(&output, 78, "connect the token with which the ledger was begun");
}

#[test]
fn a_configuration_is_checked_without_touching_anything() {
    let world = World::without_ledger();
    std::fs::remove_dir_all(world.dir().join("hsm")).expect("removed");
    let output = world.attestd(&["check-config"]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && said.contains("is a valid configuration"), "{said}");
    assert!(said.contains(ORIGIN) && said.contains(module().to_str().expect("UTF-8")), "{said}");

    world.configure("server", "soket = \"x\"");
    refused(&world.attestd(&["check-config"]), 78, "attestd.toml:9: option `soket`, column 1: unknown field");
    refused(&serve(&world), 78, "unknown field `soket`");
    std::fs::remove_file(world.config()).expect("removed");
    refused(&world.attestd(&["check-config"]), 78, "attestd.toml");
}

#[test]
fn a_socket_that_cannot_be_made_is_an_operators_matter() {
    let world = World::new();
    std::fs::write(world.socket(), "not a socket").expect("writable");
    refused(&serve(&world), 78, "exists and is not a socket");
    world.configure("server", "socket_group = \"no-such-group\"");
    refused(&world.attestd(&["check-config"]), 78, "there is no group \"no-such-group\"");
}

#[test]
fn the_version_names_the_commit() {
    let output = Command::new(env!("CARGO_BIN_EXE_attestd")).arg("--version").output().expect("attestd runs");
    let said = String::from_utf8(output.stdout).expect("UTF-8");
    let commit = said.trim().strip_prefix(concat!("attestd ", env!("CARGO_PKG_VERSION"), " ("));
    let commit = commit.and_then(|rest| rest.strip_suffix(')')).expect("a commit");
    let is_commit = commit.len() == 12 && commit.bytes().all(|byte| byte.is_ascii_hexdigit());
    assert!(is_commit || commit == "unknown commit", "{said}");
    let usage = Command::new(env!("CARGO_BIN_EXE_attestd")).arg("sirve").output().expect("attestd runs");
    assert_eq!(usage.status.code(), Some(2));
}

#[test]
fn evidence_is_there_while_the_daemon_runs_and_without_its_token() {
    let world = World::new();
    let daemon = world.serve();
    daemon.append(REQUEST);
    assert_eq!(world.audit().len(), 3);
    assert!(world.attestd(&["verify"]).status.success());
    assert!(daemon.stop().success());
    std::fs::rename(world.dir().join("hsm"), world.dir().join("moved")).expect("moved");
    assert!(world.attestd(&["verify"]).status.success());
    let lines = world.audit();
    assert_eq!(lines.len(), 4);
    // The daemon says what is missing, and writes nothing.
    let daemon = world.serve();
    daemon.get("/readyz").problem(503, "token-unavailable");
    assert_eq!(daemon.get("/v1/entries/0").status, 200);
    assert!(daemon.stop().success());
    assert_eq!(world.audit(), lines);
}
