//! What the daemon's token module makes of a token that is slow, fails or lies: SoftHSM behind
//! `tests/shim`. And what a slow token does to the daemon.
//!
//! A library is initialised once in a process and reads its environment then, so each test of the
//! module runs again as a process of its own, beside a token of its own.
#![cfg(feature = "daemon")]

mod common;

use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use attestd::ledger::canonical;
use attestd::ledger::entry::Sequence;
use attestd::ledger::hash::Digest;
use attestd::ledger::key::{PublicKey, Signable, Signature};
use attestd::store::Reader;
use attestd::token::{PinSource, Pool, SignError, Token, TokenError, TokenOptions, TokenUri};
use common::{REQUEST, World, inject, shim};
use cryptoki::error::{Error, RvError};
use serde_json::Value;

#[test]
fn without_a_fault_it_is_the_token_behind_it() {
    with_token("without_a_fault_it_is_the_token_behind_it", |token| {
        let (pool, key) = token.pool(2);
        let messages = entries(100);
        let signatures = sign(&pool, &messages).expect("signed");
        assert_eq!(signatures.len(), 100);
        for (message, signature) in messages.iter().zip(&signatures) {
            assert!(key.verifies_portably(message.message(), signature));
        }
    });
}

#[test]
fn a_slow_token_takes_its_time_and_makes_one_signature_at_a_time() {
    with_token("a_slow_token_takes_its_time_and_makes_one_signature_at_a_time", |token| {
        let (pool, _) = token.pool(2);
        let count = token.dir.join("count");
        let counted = format!("count {}", count.display());
        let time = |lines: &str| {
            token.inject(&format!("{lines}\n{counted}"));
            let begun = Instant::now();
            assert_eq!(sign(&pool, &entries(6)).expect("signed").len(), 6);
            begun.elapsed().as_millis()
        };
        // Two sessions side by side make three rounds; one at a time they make six.
        assert!(time("delay C_Sign 50ms") >= 150);
        assert!(time("delay C_Sign 50ms serial") >= 300);
        assert!(time("") < 300);
        let (calls, busy) = common::shim_count(&count);
        assert_eq!(calls, 18);
        assert!(busy >= 600_000, "{busy}");
    });
}

#[test]
fn every_code_comes_through_by_name_or_number() {
    with_token("every_code_comes_through_by_name_or_number", |token| {
        let (pool, _) = token.pool(1);
        for (named, code) in [
            ("CKR_DEVICE_ERROR", RvError::DeviceError),
            ("0x32", RvError::DeviceRemoved),
            ("5", RvError::GeneralError),
            ("CKR_FUNCTION_FAILED", RvError::FunctionFailed),
        ] {
            token.inject(&format!("return C_Sign {named}"));
            match sign(&pool, &entries(3)) {
                Err(SignError::Call(Error::Pkcs11(returned, _))) => assert_eq!(returned, code),
                other => panic!("{named}: {other:?}"),
            }
        }
        token.inject("");
        assert_eq!(sign(&pool, &entries(3)).expect("signed").len(), 3);
        // A session that went stale is replaced, once.
        token.inject("return C_Sign CKR_SESSION_HANDLE_INVALID count 1");
        assert_eq!(sign(&pool, &entries(3)).expect("signed").len(), 3);
        token.inject("return C_Sign CKR_SESSION_HANDLE_INVALID");
        let result = sign(&pool, &entries(3));
        assert!(matches!(result, Err(SignError::Call(Error::Pkcs11(RvError::SessionHandleInvalid, _)))));
    });
}

#[test]
fn any_function_can_fail() {
    with_token("any_function_can_fail", |token| {
        let refused = |line: &str| {
            token.inject(line);
            Token::open(&token.options(1)).err().expect(line)
        };
        for line in [
            "return C_Initialize CKR_GENERAL_ERROR",
            "return C_GetSlotList CKR_DEVICE_ERROR",
            "return C_OpenSession CKR_SESSION_COUNT",
            "return C_FindObjectsInit CKR_DEVICE_REMOVED",
        ] {
            let error = refused(line);
            assert!(matches!(error, TokenError::Call { .. }) && !error.needs_operator(), "{line}: {error}");
        }
        let error = refused("return C_Login CKR_PIN_LOCKED");
        assert!(matches!(error, TokenError::PinRefused(RvError::PinLocked)), "{error}");
        token.inject("");
        assert!(Token::open(&token.options(1)).is_ok());
    });
}

#[test]
fn what_is_no_signature_of_the_key_is_never_taken_for_one() {
    with_token("what_is_no_signature_of_the_key_is_never_taken_for_one", |token| {
        let (pool, _) = token.pool(2);
        token.inject("signature short");
        assert!(matches!(sign(&pool, &entries(5)), Err(SignError::Malformed { bytes: 63 })));
        for lie in ["signature garbage", "signature other-key"] {
            token.inject(lie);
            let result = sign(&pool, &entries(5));
            assert!(matches!(result, Err(SignError::DoesNotVerify)), "{lie}: {result:?}");
        }
        // One lie among many signatures is found, and none of the call counts.
        token.inject("signature other-key count 1");
        assert!(matches!(sign(&pool, &entries(50)), Err(SignError::DoesNotVerify)));
        assert_eq!(sign(&pool, &entries(50)).expect("signed").len(), 50);
        drop(pool);
        token.inject("signature garbage");
        let mut opened = Token::open(&token.options(1)).expect("opening signs nothing");
        assert!(matches!(opened.prove_possession("test.example/ledger"), Err(TokenError::NotPossessed(_))));
    });
}

#[test]
fn a_token_that_hangs_is_waited_for() {
    with_token("a_token_that_hangs_is_waited_for", |token| {
        let (pool, _) = token.pool(1);
        token.inject("hang C_Sign");
        let (report, reports) = mpsc::channel();
        pool.sign(entries(1), Box::new(move |result| report.send(result).expect("heard")));
        assert!(reports.recv_timeout(Duration::from_millis(300)).is_err());
        token.inject("");
        let signed = reports.recv_timeout(Duration::from_secs(10)).expect("done was called");
        assert_eq!(signed.expect("signed").len(), 1);
    });
}

#[test]
fn a_control_file_that_makes_no_sense_ends_the_process() {
    for line in
        ["dely C_Sign 71ms", "delay C_Sing 71ms", "return C_Sign CKR_NOTHING", "signature", "delay C_Sign 71"]
    {
        let world = World::without_ledger();
        world.use_shim();
        inject(&world.shim_control(), line);
        let output = world.attestd(&["init"]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(&format!("pkcs11-shim: {line}")), "{said}");
    }
}

/// What a token of 14 signatures a second costs is a wait, not a rate.
#[test]
fn in_mode_commit_a_slow_token_takes_many_entries_with_few_signatures() {
    let world = World::new();
    world.use_shim();
    world.configure("signing", "mode = \"commit\"");
    let daemon = world.serve();
    let count = world.dir().join("count");
    inject(&world.shim_control(), &format!("delay C_Sign 71ms serial\ncount {}", count.display()));
    daemon.append(REQUEST);
    let (before, _) = common::shim_count(&count);
    let begun = Instant::now();
    let acknowledged = daemon.post("/v1/entries:batch", format!("{REQUEST}\n").repeat(2_000)).lines();
    let elapsed = begun.elapsed();
    let (after, _) = common::shim_count(&count);
    assert_eq!(acknowledged.len(), 2_000);
    assert!(after - before <= 10, "{} signatures", after - before);
    // Each by itself would take 142 s.
    assert!(elapsed >= Duration::from_millis(71) && elapsed < Duration::from_secs(30), "{elapsed:?}");
    assert!(daemon.stop().success());

    let bundle = world.dir().join("bundle");
    assert!(world.attestd(&["export", bundle.to_str().expect("UTF-8")]).status.success());
    let lines = std::fs::read_to_string(bundle.join("entries.jsonl")).expect("readable");
    let lines: Vec<&str> = lines.lines().collect();
    let pem = std::fs::read_to_string(bundle.join("public-key.pem")).expect("readable");
    let keys = [PublicKey::from_pem(&pem).expect("a key")];
    let ledger = Reader::open(&world.ledger()).expect("opened");
    for answer in acknowledged {
        let sequence = answer["sequence_number"].as_u64().expect("a number");
        let line = lines[sequence as usize];
        let decoded = canonical::decode(line.as_bytes()).expect("canonical");
        assert_eq!(decoded.computed_hash, decoded.entry.entry_hash);
        let entry: Value = serde_json::from_str(line).expect("JSON");
        for member in ["entry_id", "entry_hash", "hsm_signature", "timestamp"] {
            assert_eq!(answer[member], entry[member]);
        }
        let note = ledger.note_over(Sequence(sequence)).expect("readable").expect("a checkpoint");
        let signature = note.verify(&keys).expect("the ledger's").signature.to_der();
        let hex: String = signature.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(entry["hsm_signature"], hex, "{sequence}");
    }
}

/// A token behind the shim.
struct Faulty<'a> {
    dir: &'a Path,
}

impl Faulty<'_> {
    fn inject(&self, lines: &str) {
        inject(&self.dir.join("shim.control"), lines);
    }

    fn options(&self, sessions: usize) -> TokenOptions {
        TokenOptions {
            latch: None,
            module: PathBuf::from(std::env::var_os("ATTESTD_TEST_SHIM").expect("the test gave it")),
            uri: TokenUri::parse("pkcs11:token=attestd;object=attestd-ledger").expect("a good URI"),
            pin: PinSource::File(self.dir.join("hsm/pin")),
            sessions,
            expected: None,
        }
    }

    fn pool(&self, sessions: usize) -> (Pool, PublicKey) {
        let token = Token::open(&self.options(sessions)).expect("opened");
        let key = token.public_key().clone();
        (Pool::start(token).expect("started"), key)
    }
}

/// Runs `test`, which must be the test of this name, in a process of its own with a new token.
fn with_token(name: &str, test: impl FnOnce(Faulty<'_>)) {
    if let Some(dir) = std::env::var_os("ATTESTD_TEST_TOKEN") {
        return test(Faulty { dir: Path::new(&dir) });
    }
    let world = World::without_ledger();
    let test = std::env::current_exe().expect("this program");
    let output = world
        .program(test.to_str().expect("UTF-8"))
        .args([name, "--exact", "--nocapture"])
        .env("ATTESTD_TEST_TOKEN", world.dir())
        .env("ATTESTD_TEST_SHIM", shim())
        .output()
        .expect("run");
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

fn entries(count: usize) -> Vec<Signable> {
    (0..count).map(|n| Signable::Entry(Digest::of(&n.to_be_bytes()))).collect()
}

fn sign(pool: &Pool, messages: &[Signable]) -> Result<Vec<Signature>, SignError> {
    let (report, reports) = mpsc::channel();
    pool.sign(messages.to_vec(), Box::new(move |result| report.send(result).expect("heard")));
    reports.recv_timeout(Duration::from_secs(30)).expect("done was called")
}
