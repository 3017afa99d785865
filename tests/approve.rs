//! Governance from the side of the people in it: rules that somebody applies, changes that somebody
//! proposes, and approvals by the keys that people have: a PEM file, an SSH key, a token of their
//! own, or a machine that never sees the daemon. All of it through the real `attestctl`,
//! `ssh-keygen`, `openssl` and a second SoftHSM token, and none of it signs what was not shown.

#![cfg(feature = "daemon")]

mod common;

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{Answer, Daemon, World, module};
use serde_json::Value;

/// An event that needs three approvals, with something in it that would act on a terminal.
const POLICY: &str = r#"{"event_type":"CHANGE","action_type":"policy.set","action_payload":{"policy":"retention","days":90,"note":"seven\u001b[2Jyears"},"execution_status":"SUCCESS","actor_type":"HUMAN","pillars_scores":{"an_toan":8,"duong_dai":8,"tin_vao_so_lieu":8,"han_che_rui_ro":8},"rollback_available":true,"rollback_snapshot_hash":"0000000000000000000000000000000000000000000000000000000000000001"}"#;

fn run(program: &str, args: &[&str], dir: &Path) -> Vec<u8> {
    let output =
        Command::new(program).args(args).current_dir(dir).output().expect("the program is installed");
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// Three people with a key each, and a daemon whose rules name them.
struct People {
    world: World,
    daemon: Daemon,
    rules: String,
}

impl People {
    /// The keys and the rules; no rules are set.
    fn new() -> Self {
        let world = World::new();
        let dir = world.dir();
        run("openssl", &["ecparam", "-genkey", "-name", "prime256v1", "-out", "mai.pem"], dir);
        let mai = run("openssl", &["pkey", "-in", "mai.pem", "-pubout"], dir);
        run("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-C", "minh@laptop", "-f", "minh"], dir);
        let minh = fs::read_to_string(dir.join("minh.pub")).expect("written");
        let lan = token(dir);
        let uid = fs::metadata(dir).expect("there").uid();
        let rules = format!(
            r#"[[callers]]
name = "me"
uid = {uid}
verbs = ["append", "read", "propose", "seal", "administer"]
clearance = 10

[[approvers]]
name = "mai"
role = "creator"
public_key = """
{}"""

[[approvers]]
name = "minh"
role = "community"
public_key = "{}"

[[approvers]]
name = "lan"
role = "auditor"
public_key = """
{}"""

[[actions]]
type = "policy.*"
approvals = 3
roles = ["creator", "community", "auditor"]
proofs = ["safety_floor", "rollback", "k1_state", "pillars"]

[[actions]]
type = "rules.*"
approvals = 2
roles = ["creator"]
"#,
            String::from_utf8(mai).expect("PEM"),
            minh.trim_end(),
            lan
        );
        fs::write(dir.join("rules.toml"), &rules).expect("written");
        fs::write(dir.join("policy.json"), POLICY).expect("written");
        let daemon = world.serve();
        People { world, daemon, rules }
    }

    /// The same with the rules in force.
    fn governed() -> Self {
        let people = Self::new();
        people.ctl(0, &["rules", "apply", "rules.toml"]);
        people
    }

    fn command(&self) -> Command {
        let mut command = self.world.program(env!("CARGO_BIN_EXE_attestctl"));
        command
            .current_dir(self.world.dir())
            .env("SOFTHSM2_CONF", self.world.dir().join("lan/softhsm2.conf"))
            .env_remove("SSH_AUTH_SOCK");
        command
    }

    /// Runs attestctl, which has to end with `code`; standard output and error.
    #[track_caller]
    fn ctl(&self, code: i32, args: &[&str]) -> (String, String) {
        ended(self.command().args(args).output().expect("attestctl runs"), code, args)
    }

    /// Proposes [`POLICY`]; the id.
    fn propose(&self) -> String {
        let (entry, _) = self.ctl(0, &["propose", "--event", "policy.json", "--json"]);
        let entry: Value = serde_json::from_str(&entry).expect("JSON");
        assert_eq!(entry["action_type"], "proposal.open");
        entry["action_payload"]["proposal_id"].as_str().expect("an id").to_owned()
    }

    fn lan_uri(&self) -> String {
        fs::read_to_string(self.path("lan/uri")).expect("written").trim().to_owned()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.world.dir().join(name)
    }

    fn approve_with_token(&self, code: i32, id: &str) -> (String, String) {
        let (uri, library) = (self.lan_uri(), module());
        let library = library.to_str().expect("UTF-8");
        let how = ["--token", &uri, "--module", library, "--pin-file", "lan/pin", "--yes"];
        self.ctl(code, &[&["approve", id], &how[..]].concat())
    }

    fn entries(&self) -> u64 {
        self.daemon.get("/v1/stats").json()["entries"].as_u64().expect("a number")
    }

    /// Stops the daemon and has the ledger judged as an auditor does it.
    fn audit(self) -> Vec<Value> {
        assert!(self.daemon.stop().success());
        let lines = self.world.audit();
        lines.iter().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }
}

#[track_caller]
fn ended(output: Output, code: i32, args: &[&str]) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("UTF-8");
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "attestctl {args:?}\n{out}\n{err}");
    (out, err)
}

/// A second token, of an approver's own, in `dir/lan`; the PEM of its key.
fn token(dir: &Path) -> String {
    let uri = run(
        concat!(env!("CARGO_MANIFEST_DIR"), "/softhsm/make-token"),
        &["lan", "--label", "lan", "--object", "approvals"],
        dir,
    );
    fs::write(dir.join("lan/uri"), uri).expect("written");
    let output = Command::new("pkcs11-tool")
        .args(["--module", module().to_str().expect("UTF-8"), "--token-label", "lan"])
        .args(["--read-object", "--type", "pubkey", "--id", "01", "--output-file", "lan.der"])
        .args(["--login", "--pin", "env:PIN"])
        .env("PIN", fs::read_to_string(dir.join("lan/pin")).expect("written").trim())
        .env("SOFTHSM2_CONF", dir.join("lan/softhsm2.conf"))
        .current_dir(dir)
        .output()
        .expect("pkcs11-tool runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let pem = run("openssl", &["pkey", "-pubin", "-inform", "DER", "-in", "lan.der", "-pubout"], dir);
    String::from_utf8(pem).expect("PEM")
}

/// An ssh-agent that has taken over a key: the file of it is gone.
struct Agent {
    child: Child,
    socket: PathBuf,
}

impl Agent {
    fn with(key: &Path) -> Self {
        let socket = key.with_extension("agent");
        let child = Command::new("ssh-agent").arg("-D").arg("-a").arg(&socket).stdout(Stdio::null()).spawn();
        let agent = Agent { child: child.expect("ssh-agent runs"), socket };
        let deadline = Instant::now() + Duration::from_secs(20);
        while UnixStream::connect(&agent.socket).is_err() {
            assert!(Instant::now() < deadline, "ssh-agent does not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
        let mut add = Command::new("ssh-add");
        add.arg("-q").arg(key).env("SSH_AUTH_SOCK", &agent.socket);
        assert!(add.status().expect("ssh-add runs").success());
        fs::remove_file(key).expect("removed");
        agent
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[track_caller]
fn holds(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "`{part}` is not in\n{text}");
    }
}

#[test]
fn a_policy_is_approved_by_file_agent_and_token_and_sealed() {
    let people = People::governed();
    let (_, err) = people.ctl(1, &["append", "--event", "policy.json"]);
    holds(&err, &["invariant-6-quorum", "attestctl propose"]);

    let (out, _) = people.ctl(0, &["propose", "--event", "policy.json"]);
    holds(&out, &["proposed as ", "0 of 3, missing: auditor, community, creator", "left: 6 d 23 h"]);
    let id = out.split_whitespace().nth(2).expect("an id").to_owned();
    let (out, _) = people.ctl(0, &["proposals"]);
    holds(&out, &[&id, "policy.set", "0/3", "auditor, community, creator", "6 d 23 h"]);

    // Named by its beginning, as people do.
    let (out, _) = people.ctl(0, &["approve", &id[..8], "--key", "mai.pem", "--yes"]);
    holds(
        &out,
        &["\"note\": \"seven\\u001b[2Jyears\"", "test.example/ledger", "1 of 3, missing: auditor, community"],
    );
    assert!(!out.contains('\u{1b}'), "{out}");
    let agent = Agent::with(&people.path("minh"));
    let mut command = people.command();
    command.env("SSH_AUTH_SOCK", &agent.socket);
    let args = ["approve", &id, "--ssh", "minh.pub", "--signer", "minh", "--yes"];
    let (out, _) = ended(command.args(args).output().expect("attestctl runs"), 0, &args);
    holds(&out, &["2 of 3, missing: auditor"]);
    drop(agent);
    let (out, _) = people.approve_with_token(0, &id);
    holds(&out, &["3 of 3, enough", &format!("attestctl seal {id}")]);
    let (out, _) = people.ctl(0, &["proposals", &id]);
    holds(&out, &["approved", "by mai as creator", "by minh as community", "by lan as auditor"]);

    let seal = ["seal", &id, "--status", "success", "--result", r#"{"rows":12}"#];
    let (out, _) = people.ctl(0, &seal);
    holds(&out, &["sealed the proposal", "with       3 approvals"]);
    let (_, err) = people.ctl(1, &seal);
    holds(&err, &["proposal-closed"]);
    let (out, _) = people.ctl(0, &["proposals", &id]);
    assert_eq!(out, format!("the proposal {id} was sealed\n"));

    let entries = people.audit();
    let sealed = entries.iter().find(|entry| entry["action_type"] == "policy.set").expect("sealed");
    assert_eq!((&sealed["quorum_met"], &sealed["proofs_valid"]), (&true.into(), &true.into()));
    assert_eq!(sealed["result_data"]["rows"], 12);
    let mut algorithms: Vec<&str> = sealed["received_approvals"]
        .as_array()
        .expect("approvals")
        .iter()
        .map(|approval| approval["algorithm"].as_str().expect("a name"))
        .collect();
    algorithms.sort_unstable();
    assert_eq!(algorithms, ["ECDSA-P256-SHA256", "ECDSA-P256-SHA256", "SSHSIG-ED25519"]);
}

#[test]
fn approvals_are_signed_where_no_daemon_is() {
    let people = People::governed();
    let id = people.propose();
    let elsewhere = tempfile::tempdir().expect("a folder");
    let out = |name: &str| elsewhere.path().join(name).to_str().expect("UTF-8").to_owned();

    // openssl, and no word on which signature it is.
    let (text, err) = people.ctl(0, &["approve", &id, "--signer", "mai", "--statement-out", &out("m.json")]);
    holds(&text, &["\"policy\": \"retention\""]);
    holds(&err, &["openssl dgst", "ssh-keygen -Y sign -n attestd-approval"]);
    let statement = fs::read_to_string(out("m.json")).expect("written");
    assert!(statement.starts_with("{\"action_hash\":\"") && statement.ends_with("-v1\"}"), "{statement}");
    let key = people.path("mai.pem");
    let key = key.to_str().expect("UTF-8");
    run("openssl", &["dgst", "-sha256", "-sign", key, "-out", "m.sig", "m.json"], elsewhere.path());
    let (text, _) = people.ctl(0, &["approve", &id, "--signature", &out("m.sig")]);
    holds(&text, &["1 of 3, missing: auditor, community"]);

    // ssh-keygen, with the statement brought back beside it.
    people.ctl(0, &["approve", &id, "--signer", "minh", "--statement-out", &out("s.json"), "--json"]);
    let key = people.path("minh");
    let sign = ["-Y", "sign", "-n", "attestd-approval", "-f", key.to_str().expect("UTF-8"), "s.json"];
    run("ssh-keygen", &sign, elsewhere.path());
    let (signature, file) = (out("s.json.sig"), out("s.json"));
    let bring = ["approve", &id, "--signature", &signature, "--statement"];

    // What does not belong together is seen here, and the daemon is not troubled.
    let before = people.entries();
    let (_, err) = people.ctl(1, &[&bring[..], &[&out("m.json")]].concat());
    holds(&err, &["the signature is none by `mai`"]);
    fs::write(out("edited.json"), format!("{}\n", fs::read_to_string(&file).expect("there")))
        .expect("written");
    let (_, err) = people.ctl(1, &[&bring[..], &[&out("edited.json")]].concat());
    holds(&err, &["the statement is not the one to approve what is shown"]);
    let (_, err) = people.ctl(1, &["approve", &id, "--reject", "--signature", &signature]);
    holds(&err, &["of no approver's statement to reject"]);
    let (_, err) = people.ctl(2, &["approve", &id, "--signer", "minh", "--statement-out", &file]);
    holds(&err, &["file exists"]);
    assert_eq!(people.entries(), before);

    let (text, _) = people.ctl(0, &[&bring[..], &[&file]].concat());
    holds(&text, &["2 of 3, missing: auditor"]);
    people.approve_with_token(0, &id);
    people.ctl(0, &["seal", &id, "--status", "SUCCESS"]);
    let entries = people.audit();
    assert!(entries.iter().any(|entry| entry["action_type"] == "policy.set"));
}

#[test]
fn nothing_is_signed_by_a_slip() {
    let people = People::governed();
    let id = people.propose();
    let before = people.entries();
    let approve = |code, rest: &[&str]| people.ctl(code, &[&["approve", &id], rest].concat()).1;

    holds(&approve(2, &["--key", "mai.pem"]), &["no terminal", "--yes"]);
    run("openssl", &["ecparam", "-genkey", "-name", "prime256v1", "-out", "other.pem"], people.world.dir());
    holds(&approve(1, &["--key", "other.pem", "--yes"]), &["no approver of the rules in force has the key"]);
    holds(&approve(1, &["--key", "mai.pem", "--signer", "lan", "--yes"]), &["give `lan` another key"]);
    holds(&approve(1, &["--key", "mai.pem", "--signer", "eve", "--yes"]), &["no approver `eve`"]);
    holds(&approve(2, &["--key", "minh", "--yes"]), &["no PEM of a private key"]);
    holds(&approve(2, &["--key", "nowhere.pem", "--yes"]), &["no such file"]);
    run(
        "openssl",
        &["pkey", "-in", "mai.pem", "-aes128", "-passout", "pass:x", "-out", "locked.pem"],
        people.world.dir(),
    );
    holds(&approve(2, &["--key", "locked.pem", "--yes"]), &["encrypted", "--statement-out"]);
    let uri = people.lan_uri();
    holds(&approve(2, &["--token", &uri, "--yes"]), &["--module"]);
    let library = module();
    let library = library.to_str().expect("UTF-8");
    holds(&approve(2, &["--token", &uri, "--module", library, "--yes"]), &["--pin-file"]);
    let stranger = ["--token", "pkcs11:token=nobody;object=x", "--module", library, "--pin-file", "lan/pin"];
    holds(&approve(2, &[&stranger[..], &["--yes"]].concat()), &["no token matches"]);
    fs::write(people.path("lan/wrong"), "00000000").expect("written");
    fs::set_permissions(people.path("lan/wrong"), fs::Permissions::from_mode(0o600)).expect("set");
    let wrong = ["--token", &uri, "--module", library, "--pin-file", "lan/wrong", "--yes"];
    holds(&approve(2, &wrong), &["refused the PIN", "not tried again"]);
    // ssh-keygen says why, on the same terminal.
    fs::rename(people.path("minh"), people.path("away")).expect("renamed");
    holds(&approve(2, &["--ssh", "minh.pub", "--yes"]), &["ssh-keygen made no signature"]);
    let nowhere = ["--socket", "/nowhere/attestd.sock", "approve", &id, "--key", "mai.pem", "--yes"];
    holds(&people.ctl(3, &nowhere).1, &["no connection to /nowhere/attestd.sock"]);
    let mut unread = people.command();
    unread
        .args(["approve", &id, "--key", "mai.pem", "--yes"])
        .stdout(fs::File::create("/dev/full").expect("there"));
    let (_, err) = ended(unread.output().expect("attestctl runs"), 2, &["approve", "> /dev/full"]);
    holds(&err, &["so nothing is signed"]);
    holds(&people.ctl(2, &["approve", "x", "--key", "mai.pem", "--yes"]).1, &["not the id of a proposal"]);
    let unknown = "00000000-0000-4000-8000-000000000000";
    holds(&people.ctl(1, &["approve", unknown, "--key", "mai.pem", "--yes"]).1, &["proposal-unknown"]);
    assert_eq!(people.entries(), before, "nothing of that was recorded");

    approve(0, &["--key", "mai.pem", "--yes"]);
    holds(&approve(1, &["--key", "mai.pem", "--yes"]), &["`mai` has decided on it already"]);
    holds(&approve(1, &["--key", "mai.pem", "--reject", "--yes"]), &["that is final"]);
    let (_, err) = people.ctl(1, &["seal", &id, "--status", "SUCCESS"]);
    holds(&err, &["invariant-6-quorum"]);
    people.audit();
}

#[test]
fn who_is_asked_has_seen_it_and_has_to_say_yes() {
    let people = People::governed();
    let id = people.propose();
    // util-linux' `script` gives it a terminal.
    let answer = |keys: &str, json: &str| {
        let command = format!("{} approve {id} --key mai.pem{json}", env!("CARGO_BIN_EXE_attestctl"));
        let mut script = people.world.program("script");
        script.args(["--quiet", "--return", "--command", &command, "/dev/null"]).stdin(Stdio::piped());
        let mut child =
            script.current_dir(people.world.dir()).stdout(Stdio::piped()).spawn().expect("script runs");
        child.stdin.take().expect("piped").write_all(keys.as_bytes()).expect("writable");
        let output = child.wait_with_output().expect("ended");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        holds(&text, &["\"days\": 90", "Approve this as `mai` (creator)? [y/N]"]);
        (output.status.code(), text)
    };
    let before = people.entries();
    for (keys, json) in [("\n", ""), ("n\n", ""), ("yy\n", ""), ("\u{4}", ""), ("no\n", " --json")] {
        let (code, text) = answer(keys, json);
        assert_eq!(code, Some(1), "{keys:?}: {text}");
        holds(&text, &["nothing was signed"]);
    }
    assert_eq!(people.entries(), before);
    assert_eq!(answer("y\n", "").0, Some(0));
    assert_eq!(people.entries(), before + 1);
    people.audit();
}

#[test]
fn a_no_ends_a_proposal_and_so_does_its_proposer() {
    let people = People::governed();
    let (rejected, withdrawn) = (people.propose(), people.propose());
    let (out, _) = people.ctl(0, &["approve", &rejected, "--reject", "--ssh", "minh.pub", "--yes"]);
    holds(&out, &["rejected the proposal"]);
    let (out, _) = people.ctl(0, &["withdraw", &withdrawn, "--reason", "another one is better"]);
    holds(&out, &["withdrew the proposal"]);
    for (id, how) in [(&rejected, "rejected"), (&withdrawn, "withdrawn")] {
        let (out, _) = people.ctl(0, &["proposals", id]);
        assert_eq!(out, format!("the proposal {id} was {how}\n"));
        let (_, err) = people.ctl(1, &["approve", id, "--key", "mai.pem", "--yes"]);
        holds(&err, &[&format!("the proposal {id} was {how}")]);
    }
    let (out, err) = people.ctl(0, &["proposals"]);
    assert_eq!((out.as_str(), err.as_str()), ("", "no open proposals\n"));
    people.audit();
}

#[test]
fn rules_are_checked_applied_proposed_and_explained() {
    let people = People::new();
    let write = |name: &str, text: &str| fs::write(people.path(name), text).expect("written");

    let (out, _) = people.ctl(0, &["rules", "check", "rules.toml"]);
    holds(&out, &["caller `me` (uid", "rules.toml is in order: 1 caller, 3 approvers, 2 actions, 0 provers"]);
    write("bad.toml", &people.rules.replace("clearance = 10", "clearence = 10"));
    let (_, err) = people.ctl(1, &["rules", "check", "bad.toml"]);
    holds(&err, &["bad.toml:5: ", "clearence"]);
    write("bytes.toml", "");
    fs::write(people.path("bytes.toml"), b"\xff\xfe").expect("written");
    people.ctl(2, &["rules", "check", "bytes.toml"]);
    people.ctl(2, &["rules", "check", "nowhere.toml"]);
    people.ctl(1, &["rules", "apply", "bad.toml"]);

    let (out, _) = people.ctl(0, &["rules", "show"]);
    holds(&out, &["no rules were ever set"]);
    let (out, _) = people.ctl(0, &["rules", "apply", "rules.toml"]);
    holds(&out, &["these rules are in force after entry"]);
    let (out, _) = people.ctl(0, &["rules", "show"]);
    holds(&out, &["action `policy.*` needs 3 approvals", "their hash:\n"]);
    let (out, _) = people.ctl(0, &["rules", "diff", "rules.toml"]);
    assert_eq!(out, "nothing changes\n");

    // Now they ask for approvals themselves.
    write("new.toml", &people.rules.replace("approvals = 3", "approvals = 3\nlifetime_seconds = 3600"));
    let (out, _) = people.ctl(0, &["rules", "diff", "new.toml"]);
    holds(&out, &["- action `policy.*`", "within 7 days", "+ action `policy.*`", "within 1 hour"]);
    let (offline, _) = people.ctl(0, &["--socket", "/nowhere", "rules", "diff", "rules.toml", "new.toml"]);
    assert_eq!(offline, out);
    let (_, err) = people.ctl(1, &["rules", "apply", "new.toml"]);
    holds(&err, &["invariant-6-quorum", "attestctl rules apply --propose"]);
    let (out, err) = people.ctl(0, &["rules", "apply", "new.toml", "--propose"]);
    holds(&err, &["so these are proposed"]);
    holds(&out, &["0 of 2, missing: creator"]);
    let id = out.split_whitespace().nth(2).expect("an id").to_owned();
    let (out, _) = people.ctl(0, &["approve", &id, "--key", "mai.pem", "--yes"]);
    holds(&out, &["Against the rules in force", "  + action `policy.*`"]);
    people.ctl(0, &["approve", &id, "--ssh", "minh", "--yes"]);
    people.ctl(0, &["seal", &id, "--status", "SUCCESS"]);
    let (out, _) = people.ctl(0, &["rules", "diff", "new.toml"]);
    assert_eq!(out, "nothing changes\n");
    people.audit();
}

#[test]
fn rules_are_tried_out_without_a_trace() {
    let people = People::governed();
    let before = people.entries();
    let test = |code, event: &str, rest: &[&str]| {
        fs::write(people.path("event.json"), event).expect("written");
        people.ctl(code, &[&["rules", "test", "--event", "event.json", "--as", "me"], rest].concat())
    };
    let (out, _) = test(1, POLICY, &[]);
    holds(
        &out,
        &[
            "recorded as a VIOLATION: INVARIANT_6_QUORUM",
            "3 approvals, as auditor, community, creator, within 7 d",
            "instead",
        ],
    );
    let (out, _) = test(0, common::REQUEST, &[]);
    holds(
        &out,
        &["it would be sealed\n", "proofs     none needed", "  approvals  none needed", "  as         `uid:"],
    );
    let blocked = POLICY.replace("SUCCESS", "BLOCKED");
    let (out, _) = test(0, &blocked, &[]);
    holds(
        &out,
        &["pillars is valid; rollback is valid; safety_floor is valid", "8, not under the floor of 7"],
    );
    let (out, _) = test(1, &POLICY.replace("\"an_toan\":8", "\"an_toan\":1"), &["--rules", "rules.toml"]);
    holds(&out, &["INVARIANT_2_SAFETY_FLOOR", "composite score of 6.25 under the floor of 7"]);
    let (out, _) = test(1, &common::request(r#","colour":"red""#), &[]);
    holds(&out, &["refused, without an entry", "colour"]);
    let (_, err) = people.ctl(2, &["rules", "test", "--event", "event.json", "--as", "eve"]);
    holds(&err, &["no caller `eve`; there is me"]);

    // A caller that another one stands before.
    let shadowed = people.rules.replacen(
        "[[approvers]]",
        "[[callers]]\nname = \"other\"\nuid = 4242\nverbs = [\"read\"]\n\n[[callers]]\nname = \"late\"\nuid = 4242\nunit = \"x.service\"\nverbs = [\"append\"]\n\n[[approvers]]",
        1,
    );
    fs::write(people.path("shadowed.toml"), shadowed).expect("written");
    fs::write(people.path("event.json"), common::REQUEST).expect("written");
    let args = [
        "--socket",
        "/nowhere",
        "rules",
        "test",
        "--event",
        "event.json",
        "--as",
        "late",
        "--rules",
        "shadowed.toml",
    ];
    let (out, _) = people.ctl(1, &args);
    holds(&out, &["do not let the caller `other` append", "`other` stands first"]);

    assert_eq!(people.entries(), before);
    people.audit();
}

/// Stands between attestctl and the daemon, changes what comes back, and notes what was posted.
fn liar(people: &People, name: &str, change: impl Fn(&str, String) -> String + Send + 'static) -> Liar {
    let path = people.path(name);
    let listener = UnixListener::bind(&path).expect("bound");
    let posted = Arc::new(Mutex::new(Vec::new()));
    let (seen, daemon) = (posted.clone(), people.world.socket());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a client");
            let mut reader = BufReader::new(stream.try_clone().expect("cloned"));
            let (mut head, mut length) = (String::new(), 0);
            while !head.ends_with("\r\n\r\n") {
                let start = head.len();
                if reader.read_line(&mut head).expect("readable") == 0 {
                    break;
                }
                let line = head[start..].to_lowercase();
                length = line
                    .strip_prefix("content-length:")
                    .map_or(length, |n| n.trim().parse().expect("a number"));
            }
            if head.is_empty() {
                continue;
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).expect("readable");
            if head.starts_with("POST") {
                seen.lock().expect("whole").push(String::from_utf8_lossy(&body).into_owned());
            }
            let head = head.replacen("\r\n", "\r\nconnection: close\r\n", 1);
            let mut upstream = UnixStream::connect(&daemon).expect("the daemon listens");
            upstream.write_all(&[head.as_bytes(), &body].concat()).expect("writable");
            let mut answer = Vec::new();
            upstream.read_to_end(&mut answer).expect("readable");
            let answer = Answer::parse(&answer);
            let text = change(head.lines().next().unwrap_or_default(), answer.text());
            let kind = answer.header("content-type").unwrap_or("application/json");
            let answer = format!(
                "HTTP/1.1 {} X\r\ncontent-type: {kind}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{text}",
                answer.status,
                text.len()
            );
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    Liar { path, posted }
}

struct Liar {
    path: PathBuf,
    posted: Arc<Mutex<Vec<String>>>,
}

#[test]
fn what_is_shown_is_what_is_signed_whatever_the_daemon_says() {
    let people = People::governed();
    let (id, other) = (people.propose(), people.propose());
    let of = |id: &str, name: &str| {
        let view = people.daemon.get(&format!("/v1/proposals/{id}")).json();
        view[name].as_str().expect("a string").to_owned()
    };
    let swaps = ["proposal_hash", "opened_at"].map(|name| (of(&id, name), of(&other, name)));
    let approve = |liar: &Liar| {
        let socket = liar.path.to_str().expect("UTF-8");
        let args = ["--socket", socket, "approve", &id, "--key", "mai.pem", "--yes"];
        people.command().args(args).output().expect("attestctl runs")
    };
    type Lie = Box<dyn Fn(&str, String) -> String + Send>;
    let in_view = |from: &'static str, to: &'static str| -> Lie {
        Box::new(move |head, text| if head.contains("/proposals/") { text.replace(from, to) } else { text })
    };
    // Another proposal, of the same action.
    let swapped = move |head: &str, text: String| {
        let swap = |text: String, (own, foreign): &(String, String)| text.replace(own, foreign);
        if head.contains("/proposals/") { swaps.iter().fold(text, swap) } else { text }
    };
    let lies: [(&str, Lie, &str); 7] = [
        ("payload", in_view("\"days\":90", "\"days\":1"), "not what the daemon shows"),
        ("everywhere", Box::new(|_, text| text.replace("\"days\":90", "\"days\":1")), "another hash"),
        ("severity", in_view("\"severity\":0", "\"severity\":9"), "not what the daemon shows"),
        (
            "type",
            in_view(
                "\"action_type\":\"policy.set\",\"actor_id\"",
                "\"action_type\":\"policy.get\",\"actor_id\"",
            ),
            "something else than its draft",
        ),
        ("hash", Box::new(swapped), "not what the daemon shows"),
        ("label", in_view("\"rules_hash\":\"", "\"rules_hash\":\"00"), "not what the daemon shows"),
        (
            "silence",
            Box::new(|head, text| {
                if head.contains("/v1/entries") { r#"{"entries":[],"next":null}"#.into() } else { text }
            }),
            "no entry that opened the proposal",
        ),
    ];
    for (name, lie, expected) in lies {
        let liar = liar(&people, name, lie);
        let output = approve(&liar);
        assert!(matches!(output.status.code(), Some(1 | 2)), "{name}: {output:?}");
        holds(&String::from_utf8_lossy(&output.stderr), &[expected]);
        assert!(liar.posted.lock().expect("whole").is_empty(), "{name}: nothing may be sent");
    }
    // Through the same pipe, and nothing changed, it works.
    let honest = liar(&people, "honest", |_, text| text);
    assert!(approve(&honest).status.success());
    assert_eq!(honest.posted.lock().expect("whole").len(), 1);
    people.audit();
}
