//! A token that locks its PIN as hardware does, which SoftHSM does not: Kryoptic, whose module the
//! environment variable `ATTESTD_TEST_KRYOPTIC` names. `tests/make-kryoptic` builds it, `tests/run` does both.
//!
//! Kryoptic takes ten wrong PINs in a row, and tells the last ones by flags. What is left is counted by using
//! it up, after which the file that the token is gets its old content back.

#![cfg(feature = "daemon")]

mod common;

use std::fs;
use std::path::PathBuf;
use std::process::Output;
use std::time::Instant;

use common::{REQUEST, World};
use serde_json::Value;

const WRONG: &str = "not the PIN";

#[test]
fn a_hundred_starts_with_a_wrong_pin_use_up_one_try() {
    let Some(held) = Held::new("a hundred starts with a wrong PIN") else { return };
    assert_eq!(held.tries_left(), 10);
    fs::write(held.pin_file(), WRONG).expect("writable");
    let begun = Instant::now();
    for _ in 0..100 {
        held.start_is_refused("PinIncorrect");
    }
    println!("a hundred starts took {:?}", begun.elapsed());
    assert_eq!(held.tries_left(), 9);

    // Nor does the doctor try it, and the right PIN is not tried either before somebody says so.
    assert_ne!(held.attestctl(&["doctor"]).status.code(), Some(0));
    fs::write(held.pin_file(), &held.pin).expect("writable");
    held.start_is_refused("PinIncorrect");
    assert_eq!(held.tries_left(), 9);

    let cleared = held.attestctl(&["pin", "clear"]);
    assert!(cleared.status.success(), "{}", said(&cleared));
    held.serves();
    assert_eq!(held.tries_left(), 10);
}

#[test]
fn the_last_try_is_never_used_up() {
    let Some(held) = Held::new("the last try") else { return };
    for _ in 0..9 {
        assert!(held.log_in(WRONG).contains("CKR_PIN_INCORRECT"));
    }
    for _ in 0..3 {
        held.start_is_refused("one more wrong PIN would lock the token");
    }
    assert_eq!(held.tries_left(), 1);
    // As the manual says: once by the token's own tools. No latch was closed.
    assert_eq!(held.log_in(&held.pin), "");
    held.serves();

    for _ in 0..10 {
        held.log_in(WRONG);
    }
    held.start_is_refused("the token's user PIN is locked");
}

/// A ledger whose key is on a token of Kryoptic's.
struct Held {
    world: World,
    module: PathBuf,
    /// The right one.
    pin: String,
}

impl Held {
    /// `None`, and a word on the terminal, where there is no module.
    fn new(what: &str) -> Option<Self> {
        let Some(module) = std::env::var_os("ATTESTD_TEST_KRYOPTIC").map(PathBuf::from) else {
            println!("left out: {what}. ATTESTD_TEST_KRYOPTIC names no module, see tests/make-kryoptic");
            return None;
        };
        let world = World::without_ledger_on(&module, |dir| {
            // The PKCS#11 slot, and the file that is the token in it.
            let slot =
                format!("[[slots]]\nslot = 1\ndbtype = \"sqlite\"\ndbargs = {:?}\n", dir.join("token.sql"));
            fs::write(dir.join("kryoptic.conf"), slot).expect("writable");
        });
        let init = world.attestd(&["init"]);
        assert!(init.status.success(), "{}", said(&init));
        let pin = fs::read_to_string(world.dir().join("hsm/pin")).expect("readable");
        let held = Held { world, module, pin };
        held.serves();
        Some(held)
    }

    fn pin_file(&self) -> PathBuf {
        self.world.dir().join("hsm/pin")
    }

    /// The daemon starts, seals an event, stops, and its ledger holds.
    fn serves(&self) {
        let daemon = self.world.serve();
        let sealed = daemon.append(REQUEST);
        let stats = daemon.get("/v1/stats").json();
        assert_eq!(stats["token"]["manufacturer"], "Kryoptic Project", "{stats}");
        assert!(daemon.stop().success());
        let entries = self.world.audit();
        let number = sealed["sequence_number"].as_u64().expect("a number") as usize;
        assert_eq!(serde_json::from_str::<Value>(&entries[number]).expect("JSON"), sealed);
    }

    fn start_is_refused(&self, reason: &str) {
        let output = self.world.attestd_within(std::time::Duration::from_secs(20), &["serve"]);
        let said = said(&output);
        assert!(output.status.code() == Some(78) && said.contains(reason), "{}: {said}", output.status);
    }

    fn attestctl(&self, arguments: &[&str]) -> Output {
        let config = self.world.config();
        self.world.attestctl(&[arguments, &["--config", config.to_str().expect("UTF-8")]].concat())
    }

    /// How many wrong PINs lock the token. It has as many left afterwards.
    fn tries_left(&self) -> usize {
        let token = self.world.dir().join("token.sql");
        let kept = fs::read(&token).expect("readable");
        let tries = (1..=20).find(|_| self.log_in(WRONG).contains("CKR_PIN_LOCKED"));
        fs::write(&token, kept).expect("writable");
        tries.expect("it locks")
    }

    /// Logs in by a tool that is not ours; the error, if any.
    fn log_in(&self, pin: &str) -> String {
        let mut tool = self.world.program("pkcs11-tool");
        tool.arg("--module").arg(&self.module).args([
            "--token-label",
            "attestd",
            "--list-objects",
            "--login",
        ]);
        let output = tool.args(["--pin", pin]).output().expect("pkcs11-tool runs");
        let errors = String::from_utf8_lossy(&output.stderr);
        let failed = errors.lines().find(|line| line.contains("C_Login failed")).map(str::to_owned);
        assert_eq!(output.status.success(), failed.is_none(), "{errors}");
        failed.unwrap_or_default()
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
