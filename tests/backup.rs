//! A backup: taken while the daemon works it is the ledger of one moment, good as evidence and to begin a
//! successor from, and never a ledger to go on with.

#![cfg(feature = "daemon")]

mod common;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use attestd::ledger::hash::Digest;
use common::{ORIGIN, REQUEST, World};
use serde_json::Value;

fn backup(world: &World, to: &str, arguments: &[&str]) -> std::process::Output {
    let (config, dir) = (world.config(), world.dir().join(to));
    let paths = [config.to_str().expect("UTF-8"), dir.to_str().expect("UTF-8")];
    world.attestctl(&[&["backup", "--config", paths[0], paths[1]], arguments].concat())
}

fn manifest(dir: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(dir.join("manifest.json")).expect("readable")).expect("JSON")
}

/// A configuration of its own for the copy, so that the daemon's tools look at that.
fn configured(world: &World, dir: &Path) -> std::path::PathBuf {
    let config = std::fs::read_to_string(world.config()).expect("readable");
    let config = config.replace("path = \"ledger.db\"", &format!("path = \"{}/ledger.db\"", dir.display()));
    let path = world.dir().join("copy.toml");
    std::fs::write(&path, config).expect("writable");
    path
}

#[test]
fn a_copy_taken_under_load_is_the_ledger_of_one_moment() {
    let world = World::new();
    let daemon = world.serve();
    let batch = format!("{REQUEST}\n").repeat(2_000);
    assert_eq!(daemon.post("/v1/entries:batch", &batch).lines().len(), 2_000);
    let (first, second) = std::thread::scope(|scope| {
        let copying = scope.spawn(|| (backup(&world, "first", &[]), backup(&world, "second", &["--json"])));
        while !copying.is_finished() {
            daemon.append(REQUEST);
            daemon.post("/v1/entries:batch", format!("{REQUEST}\n").repeat(50));
        }
        copying.join().expect("copied")
    });
    assert!(first.status.success(), "{}", String::from_utf8_lossy(&first.stderr));
    assert!(second.status.success(), "{}", String::from_utf8_lossy(&second.stderr));
    let said = String::from_utf8(first.stdout).expect("UTF-8");
    assert!(said.contains("Never put it back as the ledger") && said.contains(ORIGIN), "{said}");
    assert!(daemon.stop().success());
    let all = world.audit();

    let counts = ["first", "second"].map(|name| {
        let dir = world.dir().join(name);
        let manifest = manifest(&dir);
        let bytes = std::fs::read(dir.join("ledger.db")).expect("readable");
        let file = &manifest["files"]["ledger.db"];
        assert_eq!(file["bytes"], bytes.len());
        assert_eq!(file["sha256"], Digest::of(&bytes).to_hex());
        let mode = |path: &Path| std::fs::metadata(path).expect("there").permissions().mode() & 0o777;
        assert_eq!(
            [mode(&dir), mode(&dir.join("ledger.db")), mode(&dir.join("manifest.json"))],
            [0o700, 0o600, 0o600]
        );
        let names: Vec<_> =
            std::fs::read_dir(&dir).expect("listed").map(|entry| entry.expect("one").file_name()).collect();
        assert_eq!(names.len(), 2, "{names:?}");
        let entries = manifest["entries"].as_u64().expect("a number") as usize;
        let last: Value = serde_json::from_str(&all[entries - 1]).expect("JSON");
        assert_eq!(manifest["head_hash"], last["entry_hash"]);
        assert!(manifest["checkpoint"].as_str().is_some_and(|note| note.starts_with(&format!("{ORIGIN}\n"))));

        // The offline tools work on it as on the ledger.
        let config = configured(&world, &dir);
        let attestd = |arguments: &[&str]| {
            let mut command = world.program(env!("CARGO_BIN_EXE_attestd"));
            command.args(arguments).arg("--config").arg(&config).output().expect("attestd runs")
        };
        let verdict = attestd(&["verify", "--json"]);
        assert!(verdict.status.success(), "{}", String::from_utf8_lossy(&verdict.stdout));
        let verdict: Value = serde_json::from_slice(&verdict.stdout).expect("JSON");
        assert_eq!(verdict["count"], entries);
        let bundle = world.dir().join(format!("{name}-bundle"));
        assert!(attestd(&["export", bundle.to_str().expect("UTF-8")]).status.success());
        let verified = Command::new(env!("CARGO_BIN_EXE_attest-verify"))
            .args([bundle.as_path(), Path::new("--key"), &world.dir().join("public-key.pem")])
            .output()
            .expect("attest-verify runs");
        assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stdout));
        entries
    });
    assert!(
        counts[0] >= 2_001 && counts[0] <= counts[1] && counts[1] <= all.len(),
        "{counts:?} of {}",
        all.len()
    );
    let printed: Value = serde_json::from_slice(&second.stdout).expect("JSON");
    assert_eq!(printed, manifest(&world.dir().join("second")));
}

#[test]
fn a_copy_that_is_put_back_is_refused_by_the_anchor() {
    let world = World::without_ledger();
    world.configure("anchor", "file = \"anchor\"");
    assert!(world.attestd(&["init"]).status.success());
    assert!(backup(&world, "copy", &[]).status.success());
    let daemon = world.serve();
    daemon.append(REQUEST);
    assert!(daemon.stop().success());
    let newest = std::fs::read(world.ledger()).expect("readable");
    for suffix in ["-wal", "-shm"] {
        let _ = std::fs::remove_file(world.dir().join(format!("ledger.db{suffix}")));
    }
    std::fs::copy(world.dir().join("copy/ledger.db"), world.ledger()).expect("copied");
    std::fs::remove_file(world.dir().join("index.db")).expect("removed");
    let refused = world.attestd(&["serve"]);
    assert_eq!(refused.status.code(), Some(78));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("an old copy was put back"));
    std::fs::write(world.ledger(), newest).expect("written");
    assert!(world.serve().stop().success());
    world.audit();
}

#[test]
fn what_is_there_is_not_touched_and_what_cannot_be_copied_is_said() {
    let world = World::new();
    let full = world.dir().join("full");
    std::fs::create_dir(&full).expect("made");
    std::fs::write(full.join("something"), "else").expect("written");
    let refused = backup(&world, "full", &[]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("is not empty"));
    assert_eq!(std::fs::read_dir(&full).expect("listed").count(), 1);
    // An empty one is taken.
    std::fs::create_dir(world.dir().join("empty")).expect("made");
    assert!(backup(&world, "empty", &[]).status.success());
    assert_eq!(backup(&world, "no/such/parent", &[]).status.code(), Some(2));
    world.configure("ledger", "min_free_bytes = 1125899906842624");
    let refused = backup(&world, "large", &[]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("min_free_bytes"));
    std::fs::write(world.ledger(), b"\0\xffnot a database").expect("written");
    let refused = backup(&world, "none", &[]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("not an attestd ledger"));
}
