//! The key ceremony: a real one on a real (SoftHSM) token with real witnesses, every fraud on what it
//! leaves behind, and everything that can stop it. A record that was touched is refused, with a code
//! that says how; the same record untouched is accepted.

#![cfg(feature = "daemon")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use attestd::ceremony::device::Device;
use attestd::ceremony::plan::Plan;
use attestd::ceremony::transcript::{
    Attributes, Begin, Closed, FORMAT, FactoryPin, Fingerprint, Generated, KeySeen, Line, LogIn, Object,
    Objects, Outcome, Possession, Step, TokenSeen, Transcript, closing, possession,
};
use attestd::ceremony::{FaultCode, Record, verify, words};
use attestd::daemon::Fault;
use attestd::daemon::ceremony::Ceremony;
use attestd::ledger::hash::{Digest, encode_hex};
use attestd::ledger::key::{PublicKey, Signable, Signature};
use attestd::ledger::timestamp::Timestamp;
use attestd::token::Identity;
use p256::ecdsa::SigningKey;
use p256::ecdsa::signature::Signer as _;
use serde_json::Value;

const ORIGIN: &str = "test.example/ledger";

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn run(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().expect("it runs")
}

fn must(output: Output) -> Output {
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    output
}

// --- A ceremony that was held ---------------------------------------------------------------------

/// What `softhsm/ceremony` leaves.
struct Held {
    dir: tempfile::TempDir,
    said: String,
}

impl Held {
    fn new(arguments: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let programs = Path::new(env!("CARGO_BIN_EXE_attestctl")).parent().expect("a directory");
        let output = must(run(Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/softhsm/ceremony"))
            .arg(dir.path())
            .arg("--bin")
            .arg(programs)
            .args(["--origin", ORIGIN])
            .args(arguments)));
        Held { said: text(&output.stdout) + &text(&output.stderr), dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn record(&self) -> PathBuf {
        self.path("plan.ceremony")
    }

    fn program(&self, path: &str) -> Command {
        let mut command = Command::new(path);
        command.current_dir(self.dir.path()).env("SOFTHSM2_CONF", self.path("hsm/softhsm2.conf"));
        command
    }

    fn attestctl(&self, arguments: &[&str]) -> Output {
        run(self.program(env!("CARGO_BIN_EXE_attestctl")).args(arguments))
    }

    fn attestd(&self, arguments: &[&str]) -> Output {
        run(self.program(env!("CARGO_BIN_EXE_attestd")).args(arguments))
    }

    /// The verdict on the record and the exit code; a rehearsal will do.
    fn verdict(&self) -> (Value, i32) {
        let record = self.record();
        let output =
            self.attestctl(&["ceremony", "verify", "--rehearsal", "--json", record.to_str().expect("UTF-8")]);
        let verdict = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}{}", text(&output.stdout), text(&output.stderr)));
        (verdict, output.status.code().expect("an exit code"))
    }

    fn pin(&self) -> String {
        fs::read_to_string(self.path("hsm/pin")).expect("readable")
    }

    fn edit_plan(&self, from: &str, to: &str) {
        let plan = fs::read_to_string(self.path("plan.toml")).expect("readable");
        assert!(plan.contains(from), "{plan}");
        fs::write(self.path("plan.toml"), plan.replacen(from, to, 1)).expect("written");
    }

    /// Runs the plan once more, into `again.ceremony`.
    fn again(&self, arguments: &[&str]) -> Output {
        let base = ["ceremony", "run", "plan.toml", "--yes", "--dir", "again.ceremony"];
        self.attestctl(&[&base[..], arguments].concat())
    }

    fn again_is_refused(&self, exit: i32, reason: &str) {
        let output = self.again(&[]);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(exit), "{said}");
        assert!(said.contains(reason), "{reason:?} is not in {said}");
        assert!(!(text(&output.stdout) + &said).contains(&self.pin()), "the PIN is on the screen");
    }
}

fn every_file(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).expect("listed") {
        let path = entry.expect("read").path();
        if path.is_dir() { files.extend(every_file(&path)) } else { files.push(path) }
    }
    files
}

#[test]
fn the_whole_ceremony_runs_unattended_and_its_ledger_names_it() {
    let held = Held::new(&[]);
    let (verdict, exit) = held.verdict();
    assert_eq!((exit, &verdict["ok"], &verdict["rehearsal"]), (0, &true.into(), &true.into()), "{verdict}");
    assert_eq!(verdict["origin"], ORIGIN);
    let signed: Vec<_> =
        verdict["witnesses"].as_array().expect("a list").iter().map(|w| (&w["name"], &w["signed"])).collect();
    let yes = true.into();
    assert_eq!(signed, [(&"binh".into(), &yes), (&"lan".into(), &yes), (&"an".into(), &yes)]);

    // The hash is one that anybody computes.
    let transcript = held.record().join("transcript.jsonl");
    let sum = must(run(Command::new("sha256sum").arg(&transcript))).stdout;
    assert_eq!(text(&sum[..64]), verdict["hash"].as_str().expect("a hash"));
    let pem = held.record().join("public-key.pem");
    let der = must(run(Command::new("openssl").args(["pkey", "-pubin", "-outform", "DER", "-in"]).arg(&pem)))
        .stdout;
    assert_eq!(Digest::of(&der).to_hex(), verdict["key_id"].as_str().expect("an id"));
    assert!(held.said.contains("OpenSSL"), "a second implementation");

    // The fingerprint was told in words, and the last four are those of the last four bytes.
    let id = Digest::of(&der);
    assert!(
        held.said.contains(&format!("{}   {}", encode_hex(&id.0[28..]), words(&id.0)[28..].join(" "))),
        "{}",
        held.said
    );

    // The ledger names the ceremony, and an auditor finds it sound.
    must(held.attestd(&["export", "--config", "attestd.toml", "bundle"]));
    must(run(held.program(env!("CARGO_BIN_EXE_attest-verify")).args(["bundle", "--key"]).arg(&pem)));
    let entries = fs::read_to_string(held.path("bundle/entries.jsonl")).expect("readable");
    let genesis: Value = serde_json::from_str(entries.lines().next().expect("a line")).expect("JSON");
    let ceremony = &genesis["action_payload"]["ceremony"];
    assert_eq!(ceremony["hash"], verdict["hash"]);
    assert_eq!(ceremony["plan_sha256"], verdict["plan_sha256"]);
    assert_eq!(ceremony["rehearsal"], true);
    assert_eq!(ceremony["witnesses"][1]["name"], "lan");

    // No PIN in anything that was kept or shown.
    let pin = held.pin();
    assert!(!held.said.contains(&pin));
    for file in every_file(&held.record()) {
        let content = fs::read(&file).expect("readable");
        assert!(!content.windows(pin.len()).any(|window| window == pin.as_bytes()), "{}", file.display());
    }
    for file in every_file(&held.path("bundle")) {
        assert!(!text(&fs::read(&file).expect("readable")).contains(&pin), "{}", file.display());
    }
}

#[test]
fn a_rehearsal_never_counts_as_a_ceremony() {
    let held = Held::new(&[]);
    let record = held.record();
    let record = record.to_str().expect("UTF-8");
    let output = held.attestctl(&["ceremony", "verify", record]);
    let said = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.starts_with("REHEARSAL: all holds, but this was no ceremony\n"), "{said}");
    let output = held.attestctl(&["ceremony", "verify", record, "--json"]);
    let verdict: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((&verdict["ok"], &verdict["fault"]["code"]), (&false.into(), &"rehearsal".into()));
    let output = held.attestctl(&["ceremony", "verify", record, "--rehearsal"]);
    assert!(output.status.success());
    assert!(
        text(&output.stdout).starts_with("REHEARSAL: all holds, and none of it makes a key for real use\n")
    );

    // SoftHSM is a place for rehearsals whatever the plan says.
    held.edit_plan("rehearsal = true", "rehearsal = false");
    held.edit_plan("object=attestd-ledger;id=%01", "object=second;id=%02");
    must(held.again(&[]));
    must(run(held.program("cp").args(["-r", "again.ceremony", "x"])));
    let verdict = held.attestctl(&["ceremony", "verify", "again.ceremony", "--json"]).stdout;
    let verdict: Value = serde_json::from_slice(&verdict).expect("JSON");
    assert_eq!(verdict["rehearsal"], true, "{verdict}");
}

#[test]
fn every_fraud_on_the_record_has_its_code() {
    let held = Held::new(&[]);
    let before = Record::read(&held.record()).expect("readable");
    let lines: Vec<Vec<u8>> =
        before.transcript.split_inclusive(|b| *b == b'\n').map(<[u8]>::to_vec).collect();
    assert_eq!(lines.len(), 11);
    let transcript = |change: &dyn Fn(&mut Vec<Vec<u8>>)| {
        let mut lines = lines.clone();
        change(&mut lines);
        lines.concat()
    };
    let in_line = |at: usize, from: &str, to: &str| {
        transcript(&|lines| {
            let line = text(&lines[at]);
            assert!(line.contains(from), "{line}");
            lines[at] = line.replacen(from, to, 1).into_bytes();
        })
    };
    let write = |file: &str, bytes: &[u8]| fs::write(held.record().join(file), bytes).expect("written");
    let accepted = || {
        let (verdict, exit) = held.verdict();
        assert_eq!((exit, &verdict["ok"]), (0, &true.into()), "{verdict}");
    };
    let refused = |file: &str, bytes: &[u8], code: &str, line: Option<u64>| {
        accepted();
        let path = held.record().join(file);
        let whole = fs::read(&path).ok();
        write(file, bytes);
        let (verdict, exit) = held.verdict();
        assert_eq!((exit, &verdict["ok"]), (1, &false.into()), "{file}: {verdict}");
        assert_eq!(verdict["fault"]["code"], code, "{verdict}");
        assert_eq!(verdict["fault"]["line"].as_u64(), line, "{verdict}");
        match whole {
            Some(whole) => write(file, &whole),
            None => fs::remove_file(path).expect("removed"),
        }
    };

    let t = "transcript.jsonl";
    // A line changed: it hashes to something else than the next names, or than was signed.
    refused(t, &in_line(5, "\"extractable\":false", "\"extractable\":true"), "chain-broken", Some(7));
    refused(t, &in_line(0, "Mai Tran", "Mai Than"), "chain-broken", Some(2));
    refused(t, &in_line(9, "\"hex\":\"", "\"hex\":\"0"), "chain-broken", Some(11));
    refused(t, &in_line(10, "\"at\":\"2", "\"at\":\"3"), "closing-signature", Some(11));
    refused(t, &in_line(10, "\"signature\":\"30", "\"signature\":\"31"), "closing-signature", Some(11));
    refused(t, &in_line(4, "\"curve\":", "\"curve\": "), "line-malformed", Some(5));
    refused(t, &in_line(10, "{\"signature\":", "{\"a\":1,\"signature\":"), "line-malformed", Some(11));
    refused(t, &in_line(10, "\"prev\":\"", "\"Prev\":\""), "line-malformed", Some(11));
    // Swapped, dropped, appended, cut.
    refused(t, &transcript(&|lines| lines.swap(3, 6)), "chain-broken", Some(4));
    refused(t, &transcript(&|lines| drop(lines.remove(8))), "chain-broken", Some(9));
    refused(t, &transcript(&|lines| drop(lines.remove(0))), "chain-broken", Some(1));
    refused(t, &transcript(&|lines| drop(lines.pop())), "not-closed", None);
    refused(t, &transcript(&|lines| lines.push(lines[10].clone())), "chain-broken", Some(12));
    let mut more: Line = serde_json::from_slice(&lines[10]).expect("a line");
    (more.number, more.prev) = (11, Digest::of(&lines[10][..lines[10].len() - 1]).to_hex());
    let more = format!("{}\n", more.to_canonical()).into_bytes();
    refused(t, &transcript(&|lines| lines.push(more.clone())), "after-close", Some(12));
    refused(t, &before.transcript[..before.transcript.len() - 1], "line-malformed", None);
    refused(t, &[&before.transcript[..], b"\n"].concat(), "line-malformed", Some(12));
    refused(t, b"", "file-missing", None);
    refused(t, b"\xff\xfe\n", "line-malformed", Some(1));

    // Another plan, another key.
    let plan = text(&before.plan);
    refused("plan.toml", plan.replace("the customer", "a customer").as_bytes(), "plan-hash", None);
    refused("plan.toml", format!("{plan}\n").as_bytes(), "plan-hash", None);
    refused("plan.toml", b"", "file-missing", None);
    let other = fs::read(held.path("people/lan.pub")).expect("readable");
    refused("public-key.pem", b"", "file-missing", None);
    refused("public-key.pem", &other, "public-key-differs", None);
    refused("public-key.pem", b"-----BEGIN PUBLIC KEY-----\n", "public-key-differs", None);
    for (key, exit) in [("people/lan.pub", 1), ("plan.ceremony/public-key.pem", 0), ("people/binh.pub", 2)] {
        let args = ["ceremony", "verify", "plan.ceremony", "--rehearsal", "--json", "--key", key];
        let output = held.attestctl(&args);
        assert_eq!(output.status.code(), Some(exit), "{key}: {}", text(&output.stderr));
        assert_eq!(text(&output.stdout).contains("\"other-key\""), exit == 1);
    }

    // Witnesses.
    let signature = |name: &str| before.signatures[name].clone();
    for name in ["binh", "lan", "an"] {
        let file = format!("witnesses/{name}.sig");
        fs::remove_file(held.record().join(&file)).expect("removed");
        let (verdict, exit) = held.verdict();
        assert_eq!((exit, &verdict["fault"]["code"]), (1, &"witness-missing".into()), "{verdict}");
        write(&file, &signature(name));
        refused(&file, b"", "witness-signature", None);
    }
    refused("witnesses/lan.sig", &signature("an"), "witness-signature", None);
    refused("witnesses/an.sig", &signature("lan"), "witness-signature", None);
    refused("witnesses/binh.sig", &signature("lan"), "witness-signature", None);
    refused("witnesses/lan.sig", &signature("binh"), "witness-signature", None);
    refused("witnesses/binh2.sig", &signature("binh"), "witness-unknown", None);
    refused("witnesses/note.txt", b"hello", "witness-unknown", None);
    let upper = text(&signature("lan")).to_uppercase();
    refused("witnesses/lan.sig", upper.as_bytes(), "witness-signature", None);
    refused("witnesses/lan.sig", &[&signature("lan")[..], b"\n"].concat(), "witness-signature", None);
    // The right key for another purpose, and for another text.
    let sign = |namespace: &str, file: &str| {
        let mut command = Command::new("ssh-keygen");
        command.args(["-q", "-Y", "sign", "-n", namespace, "-f"]).arg(held.path("people/binh"));
        command.stdin(fs::File::open(held.record().join(file)).expect("readable"));
        must(command.output().expect("it runs")).stdout
    };
    refused("witnesses/binh.sig", &sign("file", "closing.txt"), "witness-signature", None);
    refused("witnesses/binh.sig", &sign("attestd-ceremony", "plan.toml"), "witness-signature", None);
    write("witnesses/binh.sig", &sign("attestd-ceremony", "closing.txt"));
    accepted();

    // What can't be looked at is no verdict.
    for args in [&["ceremony", "verify", "nowhere"][..], &["ceremony", "verify", "plan.toml"]] {
        assert_eq!(held.attestctl(args).status.code(), Some(2), "{args:?}");
    }
    fs::remove_file(held.record().join("plan.toml")).expect("removed");
    fs::create_dir(held.record().join("plan.toml")).expect("made");
    assert_eq!(held.attestctl(&["ceremony", "verify", "plan.ceremony"]).status.code(), Some(2));
}

/// How `name` signs `record` by hand, as a shell does it.
fn sign_by_hand(held: &Held, record: &str, name: &str) {
    let script = "openssl dgst -sha256 -sign people/NAME.pem RECORD/closing.txt | od -An -v -tx1 | tr -d ' \\n' \
                  > RECORD/witnesses/NAME.sig";
    let script = script.replace("NAME", name).replace("RECORD", record);
    must(run(Command::new("bash").arg("-c").arg(script).current_dir(held.dir.path())));
}

#[test]
fn who_signs_by_hand_does_so_afterwards() {
    let held = Held::new(&["--hand-unsigned"]);
    assert!(held.said.contains("Still to sign, by hand:\n\n  an (the customer)\n"), "{}", held.said);
    assert!(!held.said.contains("  lan (security)\n    bring"), "{}", held.said);
    let (verdict, exit) = held.verdict();
    assert_eq!((exit, &verdict["fault"]["code"]), (1, &"witness-missing".into()));
    assert_eq!(verdict["witnesses"][2]["signed"], false);
    // The command that was printed, as it was printed.
    let command = held.said.lines().find_map(|line| line.trim().strip_prefix("run     ")).expect("a command");
    let command = command.replace("KEY", "../people/an.pem");
    must(run(Command::new("bash").arg("-c").arg(command).current_dir(held.record())));
    let from = held.record().join("an.sig");
    fs::rename(from, held.record().join("witnesses/an.sig")).expect("moved");
    let (verdict, exit) = held.verdict();
    assert_eq!((exit, &verdict["ok"]), (0, &true.into()), "{verdict}");
}

// --- What stops it --------------------------------------------------------------------------------

/// A plan for a second key on the same token.
fn second_key(held: &Held) {
    held.edit_plan("object=attestd-ledger;id=%01", "object=second;id=%02");
}

#[test]
fn a_key_that_is_there_already_is_not_made_again() {
    let held = Held::new(&["--hand-unsigned"]);
    held.again_is_refused(1, "`objects-before`: there is a private-key with this id or label");
    let record = Record::read(&held.path("again.ceremony")).expect("readable");
    assert!(text(&record.transcript).lines().last().expect("a line").contains("\"outcome\":\"failed\""));
    let output = held.attestctl(&["ceremony", "verify", "again.ceremony", "--rehearsal", "--json"]);
    let verdict: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(verdict["fault"]["code"], "step-failed", "{verdict}");
    // What an attempt left is kept.
    held.again_is_refused(2, "again.ceremony is not empty");
}

#[test]
fn a_factory_pin_that_opens_the_token_ends_it() {
    let held = Held::new(&["--hand-unsigned"]);
    second_key(&held);
    held.edit_plan("0001password", &held.pin());
    let output = held.again(&[]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("`factory-pin`: the token opens with its factory PIN"), "{said}");
    assert!(said.contains("and destroy it before"), "{said}");
    let output = held.attestctl(&["ceremony", "verify", "again.ceremony", "--rehearsal", "--json"]);
    let verdict: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(verdict["fault"]["code"], "step-failed", "{verdict}");
}

#[test]
fn what_the_plan_says_must_be_there() {
    let held = Held::new(&["--hand-unsigned"]);
    second_key(&held);
    let plan = fs::read_to_string(held.path("plan.toml")).expect("readable");
    let attempt = |from: &str, to: &str, exit: i32, reason: &str| {
        held.edit_plan(from, to);
        held.again_is_refused(exit, reason);
        let _ = fs::remove_dir_all(held.path("again.ceremony"));
        fs::write(held.path("plan.toml"), &plan).expect("written");
    };
    attempt("token=attestd", "token=another", 1, "`token`: no token matches");
    attempt("hsm/pin", "hsm/nothing", 1, "`log-in`: couldn't read the PIN");
    attempt("hsm/pin", "plan.toml", 1, "which is no PIN");
    attempt("backup", "backups", 2, "plan.toml: line 4: option `backups`, column 1: unknown field");
    attempt("libsofthsm2.so", "libnothing.so", 1, "`token`: couldn't load the PKCS#11 library");
    // Nobody to ask, nothing begun.
    let output = held.attestctl(&["ceremony", "run", "plan.toml", "--dir", "again.ceremony"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("give --yes"));
    let output = must(held.again(&["--dry-run"]));
    assert!(text(&output.stdout).contains("label second, id 02"));
    assert!(!held.path("again.ceremony").exists());

    // A witness who cannot sign here does it by hand: the key is made.
    held.edit_plan("people/lan.pem", "people/an.pem");
    held.again_is_refused(1, "witness `lan` has not signed");
    for name in ["lan", "an"] {
        sign_by_hand(&held, "again.ceremony", name);
    }
    must(held.attestctl(&["ceremony", "verify", "again.ceremony", "--rehearsal"]));
}

#[test]
fn a_wrong_pin_is_tried_once_and_written_down() {
    let held = Held::new(&["--hand-unsigned"]);
    let right = held.pin();
    second_key(&held);
    fs::write(held.path("hsm/pin"), "00000000x").expect("written");
    held.again_is_refused(1, "`log-in`: the token refused the PIN");
    fs::remove_dir_all(held.path("again.ceremony")).expect("removed");
    fs::write(held.path("hsm/pin"), right).expect("written");
    // The token counts, and no wrong PIN is tried on it on purpose until the right one was given.
    held.again_is_refused(1, "the token says user_pin_count_low, so no wrong PIN is tried on it");
    fs::remove_dir_all(held.path("again.ceremony")).expect("removed");
    held.edit_plan("factory_pin = \"0001password\"\n", "");
    must(held.again(&[]));
    assert!(
        fs::read_to_string(held.path("again.ceremony/transcript.jsonl"))
            .expect("readable")
            .contains("\"outcome\":\"skipped\"")
    );
}

#[test]
fn the_pin_is_asked_for_without_an_echo() {
    use std::io::{Read as _, Write as _};
    let held = Held::new(&["--hand-unsigned"]);
    second_key(&held);
    held.edit_plan("pin_file = \"hsm/pin\"\n", "");
    let pin = held.pin();
    // `script` gives it a terminal; both logins ask.
    let command =
        concat!(env!("CARGO_BIN_EXE_attestctl"), " ceremony run plan.toml --yes --dir again.ceremony");
    let mut child = held
        .program("script")
        .args(["-qec", command, "/dev/null"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("script runs");
    let mut terminal = child.stdin.take().expect("piped");
    let mut screen = child.stdout.take().expect("piped");
    let mut shown = Vec::new();
    for prompts in 1..=2 {
        while text(&shown).matches("PIN of the token: ").count() < prompts {
            let mut byte = [0];
            screen.read_exact(&mut byte).unwrap_or_else(|error| panic!("{error}: {}", text(&shown)));
            shown.push(byte[0]);
        }
        terminal.write_all(format!("{pin}\r").as_bytes()).expect("typed");
    }
    let _ = screen.read_to_end(&mut shown);
    assert!(child.wait().expect("it ends").success(), "{}", text(&shown));
    assert!(!text(&shown).contains(&pin), "{}", text(&shown));
    assert!(text(&shown).contains("PIN from a terminal"));
}

#[test]
fn a_token_that_misbehaves_ends_it_and_the_record_says_where() {
    let held = Held::new(&["--hand-unsigned"]);
    second_key(&held);
    held.edit_plan(&common::module().display().to_string(), &common::shim().display().to_string());
    let plan = fs::read_to_string(held.path("plan.toml")).expect("readable");
    let attempt = |key: u8, faults: &str| {
        fs::write(held.path("plan.toml"), plan.replace("second;id=%02", &format!("key{key};id=%0{key}")))
            .expect("written");
        fs::write(held.path("control"), faults).expect("written");
        let _ = fs::remove_dir_all(held.path("again.ceremony"));
        let mut command = held.program(env!("CARGO_BIN_EXE_attestctl"));
        command.args(["ceremony", "run", "plan.toml", "--yes", "--dir", "again.ceremony"]);
        command.env("PKCS11_SHIM_MODULE", common::module()).env("PKCS11_SHIM_CONTROL", held.path("control"));
        run(&mut command)
    };
    for (key, faults, step, leaves_a_key) in [
        (3, "return C_GetTokenInfo CKR_DEVICE_ERROR", "token", false),
        (3, "return C_Login CKR_DEVICE_ERROR", "log-in", false),
        (3, "return C_FindObjectsInit CKR_DEVICE_ERROR", "objects-before", false),
        (3, "return C_GenerateKeyPair CKR_DEVICE_ERROR", "generate", true),
        (3, "signature garbage", "possession", true),
        (4, "signature other-key", "possession", true),
        (5, "signature short", "possession", true),
        (6, "return C_Logout CKR_DEVICE_ERROR", "factory-pin", true),
    ] {
        let output = attempt(key, faults);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{faults}: {said}");
        assert!(said.contains(&format!("the ceremony came to nothing, at `{step}`: ")), "{faults}: {said}");
        assert_eq!(said.contains("destroy it before the next attempt"), leaves_a_key, "{faults}: {said}");
        let record = Record::read(&held.path("again.ceremony")).expect("readable");
        let fault = verify(&record, None, true).fault.expect("a fault");
        assert_eq!(fault.code, FaultCode::StepFailed, "{faults}: {fault:?}");
        assert!(fault.detail.starts_with(&format!("the ceremony failed: {step}: ")), "{faults}: {fault:?}");
    }
    must(attempt(7, ""));
}

#[test]
fn a_ceremony_goes_on_although_nobody_reads_the_screen() {
    let held = Held::new(&["--hand-unsigned"]);
    second_key(&held);
    let command = concat!(
        "set -o pipefail; ",
        env!("CARGO_BIN_EXE_attestctl"),
        " ceremony run plan.toml --yes --dir again.ceremony | head -n 20"
    );
    must(run(held.program("bash").args(["-c", command])));
    sign_by_hand(&held, "again.ceremony", "an");
    must(held.attestctl(&["ceremony", "verify", "again.ceremony", "--rehearsal"]));
}

// --- Beginning a ledger with it -------------------------------------------------------------------

#[test]
fn a_ledger_begins_only_with_the_ceremony_of_its_key() {
    let held = Held::new(&[]);
    let config = fs::read_to_string(held.path("attestd.toml")).expect("readable").replace(
        "path = \"ledger.db\"",
        "path = \"second.db\"\nindex = \"second.index\"\npublic_key = \"second.pem\"",
    );
    let configure = |config: &str| fs::write(held.path("attestd.toml"), config).expect("written");
    configure(&config);
    let init = |record: &str| held.attestd(&["init", "--config", "attestd.toml", "--ceremony", record]);
    let refused = |output: Output, reason: &str| {
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(reason), "{reason:?} is not in {said}");
        assert!(!held.path("second.db").exists());
    };
    refused(init("nowhere"), "couldn't judge the ceremony");
    let transcript = held.record().join("transcript.jsonl");
    let whole = fs::read_to_string(&transcript).expect("readable");
    fs::write(&transcript, whole.replacen("Mai Tran", "Mai Than", 1)).expect("written");
    refused(init("plan.ceremony"), "the ceremony does not hold");
    fs::write(&transcript, &whole).expect("written");
    configure(&config.replace(ORIGIN, "other.example/ledger"));
    refused(init("plan.ceremony"), "the ceremony was for the origin test.example/ledger");
    configure(&config);

    second_key(&held);
    must(held.again(&[]));
    refused(init("again.ceremony"), "a witness has not signed");
    sign_by_hand(&held, "again.ceremony", "an");
    refused(init("again.ceremony"), "the ceremony made key");
    must(init("plan.ceremony"));
}

// --- Frauds by whoever holds the key --------------------------------------------------------------

/// A record that somebody with the key could forge, every part of it open to change before it is signed.
struct Forged {
    key: SigningKey,
    witnesses: Vec<SigningKey>,
    plan: String,
    begin: Begin,
    token: TokenSeen,
    before: Vec<Object>,
    after: Vec<Object>,
    generated: Generated,
    seen: KeySeen,
    possession: Possession,
    factory_pin: FactoryPin,
    fingerprint: Fingerprint,
    /// A last word on the steps and their order.
    rearrange: fn(&mut Vec<(Outcome, Step)>),
    /// As what the end is signed.
    rehearsal: bool,
}

fn public(key: &SigningKey) -> PublicKey {
    PublicKey::from_sec1(key.verifying_key().to_sec1_point(false).as_bytes()).expect("on the curve")
}

fn sign(key: &SigningKey, message: &Signable) -> String {
    let raw: p256::ecdsa::Signature = key.sign(message.message());
    encode_hex(&Signature::from_token(&raw.to_bytes()).expect("in range").to_der())
}

impl Forged {
    /// One of a YubiHSM 2, with nothing wrong.
    fn new() -> Self {
        Self::of_keys(&[9; 32], &[[1; 32], [2; 32]])
    }

    fn of_keys(key: &[u8; 32], witnesses: &[[u8; 32]]) -> Self {
        let signing_key = |bytes: &[u8; 32]| SigningKey::from_slice(bytes).expect("in range");
        let key = signing_key(key);
        let witnesses: Vec<_> = witnesses.iter().map(signing_key).collect();
        let mut plan = format!(
            "origin = \"{ORIGIN}\"\nrehearsal = false\nbackup = \"none\"\n[token]\nmodule = \"m.so\"\n\
             uri = \"pkcs11:serial=0042;object=ledger;id=%01\"\nfactory_pin = \"0001password\"\n\
             [[people]]\nname = \"Mai\"\nrole = \"operator\"\n"
        );
        for (index, witness) in witnesses.iter().enumerate() {
            let pem = public(witness).to_pem();
            plan += &format!("[[witnesses]]\nname = \"w{index}\"\nrole = \"audit\"\nsigns = \"by-hand\"\n");
            plan += &format!("public_key = '''\n{pem}'''\n");
        }
        let object = |class: &str, id: &str| Object {
            class: class.into(),
            id: Some(id.into()),
            label: Some("ledger".into()),
        };
        let before = vec![object("certificate", "07"), object("data", "07")];
        let made = [object("private-key", "01"), object("public-key", "01")];
        let id = public(&key).id();
        let nonce = "0".repeat(32);
        Forged {
            begin: Begin {
                format: FORMAT.into(),
                plan_sha256: Digest::of(plan.as_bytes()).to_hex(),
                program: "a forger".into(),
                terms: Plan::parse(&plan, Path::new("")).expect("a plan").terms,
            },
            token: TokenSeen {
                device: Device {
                    flags: vec!["token_initialized".into()],
                    firmware: "2.144".into(),
                    hardware: "2.144".into(),
                    label: "YubiHSM".into(),
                    library: "YubiHSM PKCS#11 Library 2.40".into(),
                    manufacturer: "Yubico (www.yubico.com)".into(),
                    model: "YubiHSM".into(),
                    serial: "0042".into(),
                },
                notes: vec![],
                rehearsal: false,
            },
            after: [&before[..], &made].concat(),
            before,
            generated: Generated {
                curve: "P-256".into(),
                id: "01".into(),
                label: "ledger".into(),
                mechanism: "CKM_EC_KEY_PAIR_GEN".into(),
            },
            seen: KeySeen {
                attributes: Attributes {
                    always_sensitive: Some(true),
                    extractable: Some(false),
                    local: Some(true),
                    never_extractable: Some(true),
                    private: Some(true),
                    sensitive: Some(true),
                    sign: Some(true),
                    token: Some(true),
                    ..Attributes::default()
                },
                key_id: id.to_string(),
                public_key_pem: public(&key).to_pem(),
            },
            possession: Possession {
                signature: sign(&key, &possession(ORIGIN, &nonce)),
                nonce,
                verified_by: vec!["one".into(), "another".into()],
            },
            factory_pin: FactoryPin {
                answer: Some("C_Login: PinIncorrect".into()),
                right_pin_works: Some(true),
            },
            fingerprint: Fingerprint {
                hex: id.to_string(),
                words: words(&id.0.0).into_iter().map(str::to_owned).collect(),
            },
            rearrange: |_| {},
            rehearsal: false,
            plan,
            witnesses,
            key,
        }
    }

    fn record(&self) -> Record {
        let steps = [
            Step::Begin(self.begin.clone()),
            Step::Token(self.token.clone()),
            Step::LogIn(LogIn { pin: "terminal".into() }),
            Step::ObjectsBefore(Objects { objects: self.before.clone() }),
            Step::Generate(self.generated.clone()),
            Step::Attributes(self.seen.clone()),
            Step::ObjectsAfter(Objects { objects: self.after.clone() }),
            Step::Possession(self.possession.clone()),
            Step::FactoryPin(self.factory_pin.clone()),
            Step::Fingerprint(self.fingerprint.clone()),
        ];
        let mut steps = steps.map(|step| (Outcome::Done, step)).to_vec();
        (self.rearrange)(&mut steps);
        let mut transcript = Transcript::default();
        for (later, (outcome, step)) in (0..).zip(steps) {
            transcript.add(Timestamp::from_micros(1_795_573_782_000_000 + later), outcome, step);
        }
        let at = Timestamp::from_micros(1_795_573_783_000_000);
        let plan = Digest::of(self.plan.as_bytes());
        let end = closing(ORIGIN, self.rehearsal, public(&self.key).id(), plan, transcript.head(), at);
        transcript.add(at, Outcome::Done, Step::Close(Closed { signature: sign(&self.key, &end) }));
        let signature =
            |(index, witness): (usize, &SigningKey)| (format!("w{index}"), sign(witness, &end).into_bytes());
        Record {
            plan: self.plan.clone().into_bytes(),
            public_key: public(&self.key).to_pem().into_bytes(),
            transcript: transcript.as_bytes().to_vec(),
            signatures: self.witnesses.iter().enumerate().map(signature).collect(),
            strays: Vec::new(),
        }
    }
}

fn code(record: &Record) -> Option<FaultCode> {
    let verdict = verify(record, None, false);
    assert_eq!(verdict.ok, verdict.fault.is_none());
    verdict.fault.map(|fault| fault.code)
}

#[test]
fn a_forger_with_the_key_is_held_to_the_rules() {
    use FaultCode as C;
    type Change = fn(&mut Forged);

    let verdict = verify(&Forged::new().record(), None, false);
    assert!(verdict.ok, "{verdict}");
    assert_eq!(verdict.rehearsal, Some(false));
    assert!(verdict.to_string().starts_with("CEREMONY: all holds\n"), "{verdict}");
    let frauds: &[(C, Change)] = &[
        (C::OtherFormat, |f| f.begin.format = "attestd-ceremony/2".into()),
        (C::PlanHash, |f| f.begin.plan_sha256 = Digest::ZERO.to_hex()),
        (C::PlanHash, |f| f.plan += "\n"),
        (C::PlanTerms, |f| f.begin.terms.backup = "two copies".into()),
        (C::PlanTerms, |f| drop(f.begin.terms.witnesses.pop())),
        (C::PlanTerms, |f| {
            f.begin.terms.witnesses[1].public_key = f.begin.terms.witnesses[0].public_key.clone();
        }),
        (C::PlanTerms, |f| f.begin.terms.witnesses[1].name = "w0".into()),
        (C::PlanTerms, |f| f.begin.terms.tests_factory_pin = false),
        (C::TokenUnfit, |f| f.token.device.firmware = "2.46".into()),
        (C::TokenUnfit, |f| f.token.device.model = "YubiKey YK5".into()),
        (C::TokenUnfit, |f| f.token.device.flags = vec!["user_pin_count_low".into()]),
        (C::RehearsalUnmarked, |f| f.token.device.manufacturer = "SoftHSM project".into()),
        (C::RehearsalUnmarked, |f| f.token.rehearsal = true),
        (C::KeyOrdered, |f| f.generated.id = "02".into()),
        (C::KeyOrdered, |f| f.generated.label = "ledgers".into()),
        (C::KeyOrdered, |f| f.generated.curve = "P-384".into()),
        (C::KeyAttributes, |f| f.seen.attributes.extractable = Some(true)),
        (C::KeyAttributes, |f| f.seen.attributes.extractable = None),
        (C::KeyAttributes, |f| f.seen.attributes.sensitive = Some(false)),
        (C::KeyAttributes, |f| f.seen.attributes.never_extractable = Some(false)),
        (C::KeyAttributes, |f| f.seen.attributes.always_sensitive = Some(false)),
        (C::KeyAttributes, |f| f.seen.attributes.local = Some(false)),
        (C::KeyAttributes, |f| f.seen.attributes.decrypt = Some(true)),
        (C::PublicKeyDiffers, |f| f.seen.key_id = Digest::ZERO.to_hex()),
        (C::PublicKeyDiffers, |f| f.seen.public_key_pem.push('\n')),
        (C::ObjectsDiffer, |f| drop(f.after.pop())),
        (C::ObjectsDiffer, |f| f.after.push(f.before[0].clone())),
        (C::ObjectsDiffer, |f| drop(f.after.remove(0))),
        (C::ObjectsDiffer, |f| f.after[0].id = None),
        (C::NotPossessed, |f| f.possession.nonce = "1".repeat(32)),
        (C::NotPossessed, |f| drop(f.possession.verified_by.pop())),
        (C::NotPossessed, |f| f.possession.signature.truncate(20)),
        (C::FactoryPin, |f| f.factory_pin = FactoryPin { answer: None, right_pin_works: None }),
        (C::FactoryPin, |f| f.factory_pin.right_pin_works = Some(false)),
        (C::FingerprintDiffers, |f| f.fingerprint.words.swap(0, 2)),
        (C::FingerprintDiffers, |f| f.fingerprint.hex = Digest::ZERO.to_hex()),
        (C::ClosingSignature, |f| f.rehearsal = true),
        (C::StepFailed, |f| f.rearrange = |steps| steps[5].0 = Outcome::Failed),
        (C::StepFailed, |f| f.rearrange = |steps| steps[3].0 = Outcome::Skipped),
        (C::StepOrder, |f| f.rearrange = |steps| steps.swap(2, 3)),
        (C::StepOrder, |f| f.rearrange = |steps| drop(steps.remove(7))),
        (C::StepOrder, |f| f.rearrange = |steps| steps.insert(4, steps[4].clone())),
        (C::WitnessMissing, |f| drop(f.witnesses.pop())),
        (C::WitnessSignature, |f| f.witnesses.swap(0, 1)),
        (C::WitnessUnknown, |f| f.witnesses.push(f.key.clone())),
    ];
    for (index, (expected, change)) in frauds.iter().enumerate() {
        let mut forged = Forged::new();
        change(&mut forged);
        assert_eq!(code(&forged.record()), Some(*expected), "fraud {index}");
    }
    // What the token does not say is no fault, but is said.
    let mut quiet = Forged::new();
    quiet.seen.attributes.local = None;
    let verdict = verify(&quiet.record(), None, false);
    assert!(verdict.ok && verdict.not_checked.iter().any(|said| said.contains("local")), "{verdict}");
}

#[test]
fn the_new_key_is_nobodys_witness() {
    assert_eq!(code(&Forged::of_keys(&[9; 32], &[[1; 32], [9; 32]]).record()), Some(FaultCode::WitnessIsKey));
    assert_eq!(code(&Forged::of_keys(&[9; 32], &[[1; 32], [3; 32]]).record()), None);
}

#[test]
fn time_does_not_go_back() {
    let forged = Forged::new();
    let at = Timestamp::from_micros;
    let mut transcript = Transcript::default();
    transcript.add(at(1_795_573_782_000_000), Outcome::Done, Step::Begin(forged.begin.clone()));
    transcript.add(at(1_795_573_781_999_999), Outcome::Done, Step::Token(forged.token.clone()));
    let record = Record { transcript: transcript.as_bytes().to_vec(), ..forged.record() };
    assert_eq!(code(&record), Some(FaultCode::TimeBack));
    assert_eq!(transcript.time(at(0)), at(1_795_573_781_999_999), "a clock set back stands still");
}

#[test]
fn a_rehearsal_is_no_beginning_on_a_real_token() {
    let held = |rehearsal: bool| {
        let mut forged = Forged::new();
        if rehearsal {
            forged.plan = forged.plan.replace("rehearsal = false", "rehearsal = true");
            forged.begin.plan_sha256 = Digest::of(forged.plan.as_bytes()).to_hex();
            forged.begin.terms.rehearsal = true;
            (forged.token.rehearsal, forged.rehearsal) = (true, true);
        }
        let record = forged.record();
        let dir = tempfile::tempdir().expect("a directory");
        fs::create_dir(dir.path().join("witnesses")).expect("made");
        let write = |name: &str, bytes: &[u8]| fs::write(dir.path().join(name), bytes).expect("written");
        write("plan.toml", &record.plan);
        write("public-key.pem", &record.public_key);
        write("transcript.jsonl", &record.transcript);
        for (name, signature) in &record.signatures {
            write(&format!("witnesses/{name}.sig"), signature);
        }
        (Ceremony::read(dir.path()).expect("it holds"), public(&forged.key))
    };
    let token = |manufacturer: &str| Identity {
        manufacturer: manufacturer.into(),
        model: "YubiHSM".into(),
        serial: "0042".into(),
        label: "YubiHSM".into(),
    };
    let yubico = token("Yubico (www.yubico.com)");
    let (rehearsal, key) = held(true);
    assert!(matches!(rehearsal.check(ORIGIN, &key, &yubico), Err(Fault::OnlyRehearsed)));
    assert!(rehearsal.check(ORIGIN, &key, &token("SoftHSM project")).is_ok());
    let (ceremony, key) = held(false);
    assert!(ceremony.check(ORIGIN, &key, &yubico).is_ok());
    assert!(matches!(ceremony.check("other.example", &key, &yubico), Err(Fault::CeremonyOrigin { .. })));
}

// --- The page -------------------------------------------------------------------------------------

#[test]
fn the_runbook_has_every_code_every_step_and_a_plan_that_is_one() {
    let page =
        fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/ceremony.md")).expect("readable");
    let (_, table) = page.split_once("\n| code | what it means |\n|---|---|\n").expect("the table of codes");
    let rows: Vec<&str> = table.lines().take_while(|line| line.starts_with('|')).collect();
    let wanted: Vec<String> =
        FaultCode::ALL.iter().map(|code| format!("| `{code}` | {} |", code.title())).collect();
    assert_eq!(rows, wanted, "{}", wanted.join("\n"));
    for line in text(&Forged::new().record().transcript).lines() {
        let line: Line = serde_json::from_str(line).expect("a line");
        assert!(page.contains(&format!("| `{}` |", line.step.name())), "{}", line.step.name());
    }
    let (_, plan) = page.split_once("```toml\n").expect("a plan");
    let (plan, _) = plan.split_once("\n```").expect("its end");
    let plan = Plan::parse(plan, Path::new("")).unwrap_or_else(|error| panic!("{error}"));
    assert!(!plan.terms.rehearsal);
}
