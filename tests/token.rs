//! The token, as the daemon uses it, on a real SoftHSM: which tokens and keys are taken, which
//! PIN files are, that a refused PIN is never tried twice, and that what is signed is what was
//! asked for, in order, whatever happens to the sessions meanwhile.
//!
//! A library is initialised once in a process and reads `SOFTHSM2_CONF` then, so each test runs
//! again as a process of its own, beside a token of its own.
#![cfg(feature = "daemon")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

use attestd::ledger::hash::Digest;
use attestd::ledger::key::{Signable, Signature};
use attestd::token::{
    Expected, PinError, PinSource, Pool, SignError, Token, TokenError, TokenOptions, TokenUri,
};
use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};

const ORIGIN: &str = "test.example/ledger";
const MODULE: &str = "/usr/lib/softhsm/libsofthsm2.so";
const URI: &str = "pkcs11:token=attestd;object=attestd-ledger;type=private";

#[test]
fn the_key_is_found_by_any_of_its_names() {
    with_token("the_key_is_found_by_any_of_its_names", |dir| {
        let printed = fs::read_to_string(dir.join("uri")).expect("the script printed it");
        let serial = printed.split(['=', ';']).nth(3).expect("a serial").to_owned();
        let mut keys = Vec::new();
        for uri in [
            printed.trim(),
            URI,
            "pkcs11:token=attestd;id=%01",
            &format!("pkcs11:serial={serial};object=attestd-ledger"),
            &format!("pkcs11:serial={serial};id=%01;manufacturer=SoftHSM%20project;model=SoftHSM%20v2"),
        ] {
            let mut token = Token::open(&options(dir, uri)).expect("opened");
            token.prove_possession(ORIGIN).expect("proven");
            assert_eq!(token.identity().label, "attestd");
            assert_eq!(token.identity().serial, serial);
            assert_eq!(token.identity().model, "SoftHSM v2");
            assert!(token.library().ends_with(" 2.6"), "{}", token.library());
            keys.push(token.public_key().clone());
        }
        assert!(keys.iter().all(|key| *key == keys[0]));
    });
}

#[test]
fn the_key_never_left_the_token() {
    with_token("the_key_never_left_the_token", |dir| {
        let token = Token::open(&options(dir, URI)).expect("opened");
        let attributes = token.key_attributes();
        assert_eq!(attributes.sensitive, Some(true));
        assert_eq!(attributes.always_sensitive, Some(true));
        assert_eq!(attributes.extractable, Some(false));
        assert_eq!(attributes.never_extractable, Some(true));
        assert_eq!(attributes.local, Some(true));
    });
}

#[test]
fn a_name_that_matches_nothing_lists_what_is_there() {
    with_token("a_name_that_matches_nothing_lists_what_is_there", |dir| {
        let error = refused(&options(dir, "pkcs11:token=other;object=attestd-ledger"));
        assert!(matches!(&error, TokenError::NoToken { .. }) && !error.needs_operator(), "{error}");
        let text = error.to_string();
        assert!(text.contains("token=other") && text.contains("\"attestd\" (serial \""), "{text}");

        let error = refused(&options(dir, "pkcs11:token=attestd;object=other"));
        assert!(matches!(error, TokenError::NoKey { .. }), "{error}");
        let error = refused(&options(dir, "pkcs11:token=attestd;object=attestd-ledger;id=%02"));
        assert!(matches!(error, TokenError::NoKey { .. }), "{error}");
        let mut without = options(dir, URI);
        without.module = "/nowhere/libp11.so".into();
        assert!(matches!(refused(&without), TokenError::Module { .. }));
    });
}

#[test]
fn a_key_that_is_not_the_one_is_refused() {
    with_token("a_key_that_is_not_the_one_is_refused", |dir| {
        let make = |kind, label, id| {
            let made = ["--keypairgen", "--usage-sign", "--key-type", kind, "--label", label, "--id", id];
            pkcs11_tool(dir, &made);
        };
        make("EC:secp384r1", "p384", "02");
        assert!(matches!(refused(&options(dir, "pkcs11:token=attestd;object=p384")), TokenError::NotP256));
        make("rsa:1024", "rsa", "03");
        assert!(matches!(refused(&options(dir, "pkcs11:token=attestd;id=%03")), TokenError::NoKey { .. }));
        make("EC:prime256v1", "bare", "04");
        let bare = options(dir, "pkcs11:token=attestd;object=bare");
        assert!(Token::open(&bare).is_ok());
        pkcs11_tool(dir, &["--delete-object", "--type", "pubkey", "--id", "04"]);
        assert!(matches!(refused(&bare), TokenError::NoPublicKey));

        make("EC:prime256v1", "attestd-ledger", "05");
        assert!(matches!(refused(&options(dir, URI)), TokenError::SeveralKeys { count: 2, .. }));
        assert!(Token::open(&options(dir, &format!("{URI};id=%01"))).is_ok());
    });
}

#[test]
fn a_token_that_is_not_the_one_or_not_ready_is_refused() {
    with_token("a_token_that_is_not_the_one_or_not_ready_is_refused", |dir| {
        pkcs11_tool(dir, &["--init-token", "--slot-index", "1", "--label", "raw", "--so-pin", "12345678"]);
        let error = refused(&options(dir, "pkcs11:token=raw;id=%01"));
        assert!(matches!(error, TokenError::PinNotInitialised) && error.needs_operator(), "{error}");
        pkcs11_tool(
            dir,
            &["--init-token", "--slot-index", "2", "--label", "attestd", "--so-pin", "12345678"],
        );
        let error = refused(&options(dir, URI));
        assert!(matches!(&error, TokenError::SeveralTokens { found, .. } if found.len() == 2), "{error}");
    });
}

#[test]
fn another_token_is_refused_before_it_sees_the_pin() {
    with_token("another_token_is_refused_before_it_sees_the_pin", |dir| {
        let mut options = options(dir, URI);
        options.expected = Some(Expected { serial: "0123456789abcdef".into(), model: "SoftHSM v2".into() });
        // If it came to a login, the error would be about this file.
        options.pin = PinSource::File(dir.join("absent"));
        let error = refused(&options);
        assert!(matches!(error, TokenError::OtherToken { .. }) && error.needs_operator(), "{error}");
    });
}

#[test]
fn a_pin_file_that_others_can_read_is_refused() {
    with_token("a_pin_file_that_others_can_read_is_refused", |dir| {
        let options = options(dir, URI);
        fs::set_permissions(dir.join("pin"), fs::Permissions::from_mode(0o644)).expect("mode set");
        let error = refused(&options);
        assert!(matches!(error, TokenError::Pin(PinError::Mode { mode: 0o644, .. })), "{error}");
    });
}

#[test]
fn a_wrong_pin_is_told_from_other_failures() {
    with_token("a_wrong_pin_is_told_from_other_failures", |dir| {
        fs::write(dir.join("pin"), "wrong-pin\n").expect("written");
        let error = refused(&options(dir, URI));
        assert!(matches!(error, TokenError::PinRefused(RvError::PinIncorrect)), "{error}");
        assert!(error.needs_operator());
        assert!(!error.to_string().contains("wrong-pin"));
    });
}

#[test]
fn what_is_signed_verifies_and_keeps_its_order() {
    with_token("what_is_signed_verifies_and_keeps_its_order", |dir| {
        let token = Token::open(&options(dir, URI)).expect("opened");
        let key = token.public_key().clone();
        let pool = Pool::start(token).expect("started");
        assert_eq!(pool.sessions(), 2);

        // All calls at once, so that they meet in the queue.
        let calls: Vec<Vec<Signable>> =
            [500, 1, 0, 37, 2].iter().enumerate().map(|(call, &n)| entries(call, n)).collect();
        let (report, reports) = mpsc::channel();
        for (call, messages) in calls.iter().enumerate() {
            let report = report.clone();
            let done = move |result| report.send((call, result)).expect("heard");
            pool.sign(messages.clone(), Box::new(done));
        }
        drop(report);
        let mut answered = 0;
        for (call, result) in reports {
            let signatures: Vec<Signature> = result.expect("signed");
            assert_eq!(signatures.len(), calls[call].len());
            for (message, signature) in calls[call].iter().zip(&signatures) {
                assert!(key.verifies_portably(message.message(), signature));
                // Only low S reads back.
                assert_eq!(Signature::from_stored(signature.as_bytes()), Some(*signature));
            }
            answered += 1;
        }
        assert_eq!(answered, calls.len());
    });
}

#[test]
fn a_pool_that_is_dropped_finishes_what_was_asked_and_lets_go_of_the_token() {
    with_token("a_pool_that_is_dropped_finishes_what_was_asked_and_lets_go_of_the_token", |dir| {
        // Keeps the library in memory, where it stays initialised unless it was finalized.
        let library = Pkcs11::new(MODULE).expect("loaded");
        for round in 0..3 {
            let slots = library.get_slots_with_token();
            assert!(matches!(slots, Err(Error::Pkcs11(RvError::CryptokiNotInitialized, _))));
            let pool = Pool::start(Token::open(&options(dir, URI)).expect("opened")).expect("started");
            let (report, reports) = mpsc::channel();
            pool.sign(entries(round, 64), Box::new(move |result| report.send(result).expect("heard")));
            drop(pool);
            assert_eq!(reports.try_recv().expect("done was called").expect("signed").len(), 64);
        }
    });
}

#[test]
fn a_panic_in_the_answer_costs_no_thread() {
    with_token("a_panic_in_the_answer_costs_no_thread", |dir| {
        let pool = Pool::start(Token::open(&options(dir, URI)).expect("opened")).expect("started");
        for round in 0..4 {
            pool.sign(entries(round, 1), Box::new(|_| panic!("this one is part of the test")));
        }
        assert_eq!(sign(&pool, entries(9, 20)).expect("signed").len(), 20);
    });
}

#[test]
fn a_lost_login_is_renewed_and_signing_goes_on() {
    with_token("a_lost_login_is_renewed_and_signing_goes_on", |dir| {
        for sessions in [1, 2] {
            let mut options = options(dir, URI);
            options.sessions = sessions;
            let pool = Pool::start(Token::open(&options).expect("opened")).expect("started");
            for round in 0..3 {
                assert_eq!(sign(&pool, entries(round, 50)).expect("signed").len(), 50);
                log_out();
            }
        }
    });
}

#[test]
fn a_session_that_is_gone_is_replaced() {
    with_token("a_session_that_is_gone_is_replaced", |dir| {
        let mut options = options(dir, URI);
        options.sessions = 1;
        let pool = Pool::start(Token::open(&options).expect("opened")).expect("started");
        let library = Pkcs11::new(MODULE).expect("loaded already");
        for round in 0..3 {
            assert_eq!(sign(&pool, entries(round, 5)).expect("signed").len(), 5);
            // All sessions and handles are gone, and their numbers begin anew.
            library.clone().finalize().expect("finalized");
            library.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)).expect("initialised");
        }
    });
}

#[test]
fn a_refused_pin_is_not_tried_again() {
    with_token("a_refused_pin_is_not_tried_again", |dir| {
        let pool = Pool::start(Token::open(&options(dir, URI)).expect("opened")).expect("started");
        let right = fs::read(dir.join("pin")).expect("read");
        fs::write(dir.join("pin"), "wrong-pin").expect("written");
        log_out();
        assert!(is_pin_refusal(sign(&pool, entries(0, 20))));
        // A second try would succeed now, so that it fails shows that there was none.
        fs::write(dir.join("pin"), right).expect("written");
        assert!(is_pin_refusal(sign(&pool, entries(1, 20))));
        assert!(is_pin_refusal(sign(&pool, entries(2, 1))));
    });
}

#[test]
fn the_bench_measures_the_sessions_that_it_was_asked_to() {
    with_token("the_bench_measures_the_sessions_that_it_was_asked_to", |dir| {
        let pool = Pool::start(Token::open(&options(dir, URI)).expect("opened")).expect("started");
        for sessions in [1, 2] {
            let figures = pool.bench(sessions, Duration::from_millis(50), ORIGIN).expect("measured");
            assert!(figures.per_second > 10.0 && figures.p50_us > 0.0, "{figures:?}");
        }
        for asked in [0, 3] {
            let result = pool.bench(asked, Duration::ZERO, ORIGIN);
            assert!(matches!(result, Err(SignError::Sessions { available: 2, .. })));
        }
    });
}

#[test]
fn a_token_is_not_made_over_another() {
    let dir = tempfile::tempdir().expect("a folder");
    make_token(dir.path());
    let before = fs::read(dir.path().join("pin")).expect("read");
    let again = script().arg(dir.path()).output().expect("run");
    assert!(!again.status.success());
    assert!(String::from_utf8_lossy(&again.stderr).contains("has a token already"));
    assert_eq!(fs::read(dir.path().join("pin")).expect("read"), before);
}

/// Runs `test`, which must be the test of this name, in a process of its own with a new token.
fn with_token(name: &str, test: impl FnOnce(&Path)) {
    if let Some(dir) = std::env::var_os("ATTESTD_TEST_TOKEN") {
        return test(Path::new(&dir));
    }
    let dir = tempfile::tempdir().expect("a folder");
    make_token(dir.path());
    let output = Command::new(std::env::current_exe().expect("this program"))
        .args([name, "--exact", "--nocapture"])
        .env("ATTESTD_TEST_TOKEN", dir.path())
        .env("SOFTHSM2_CONF", dir.path().join("softhsm2.conf"))
        .output()
        .expect("run");
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

fn make_token(dir: &Path) {
    let output = script().arg(dir).output().expect("run");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    fs::write(dir.join("uri"), output.stdout).expect("written");
}

fn script() -> Command {
    Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/softhsm/make-token"))
}

/// Changes the token with OpenSC's tool, logged in save where it makes a token.
fn pkcs11_tool(dir: &Path, args: &[&str]) {
    let mut tool = Command::new("pkcs11-tool");
    tool.args(["--module", MODULE]).args(args);
    if args[0] != "--init-token" {
        tool.args(["--token-label", "attestd", "--login", "--pin", "env:PIN"])
            .env("PIN", fs::read_to_string(dir.join("pin")).expect("read"));
    }
    let output = tool.output().expect("run");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn options(dir: &Path, uri: &str) -> TokenOptions {
    TokenOptions {
        latch: None,
        module: PathBuf::from(MODULE),
        uri: TokenUri::parse(uri).expect("a good URI"),
        pin: PinSource::File(dir.join("pin")),
        sessions: 2,
        expected: None,
    }
}

fn refused(options: &TokenOptions) -> TokenError {
    Token::open(options).err().expect("refused")
}

fn entries(call: usize, count: usize) -> Vec<Signable> {
    (0..count).map(|n| Signable::Entry(Digest::of(format!("{call}.{n}").as_bytes()))).collect()
}

fn sign(pool: &Pool, messages: Vec<Signable>) -> Result<Vec<Signature>, SignError> {
    let (report, reports) = mpsc::channel();
    pool.sign(messages, Box::new(move |result| report.send(result).expect("heard")));
    reports.recv_timeout(Duration::from_secs(30)).expect("done was called")
}

fn is_pin_refusal(result: Result<Vec<Signature>, SignError>) -> bool {
    match result {
        Err(SignError::Session(error)) => matches!(*error, TokenError::PinRefused(RvError::PinIncorrect)),
        _ => false,
    }
}

/// Logs the whole process out behind the pool's back, as the token does when it is reset.
fn log_out() {
    let library = Pkcs11::new(MODULE).expect("loaded already");
    let slot = library.get_slots_with_initialized_token().expect("listed")[0];
    library.open_ro_session(slot).expect("a session").logout().expect("logged out");
}
