//! Approvals as people make them: signed by the real `ssh-keygen` and the real `openssl`, with
//! nothing of ours but the statement's bytes, and verified by the code that the daemon and the
//! auditor share.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use attestd::governance::approval::{Approval, Decision, ProposalId, Subject};
use attestd::governance::rules::Rules;
use attestd::ledger::code::Code;
use attestd::ledger::entry::EntryId;
use attestd::ledger::hash::{Digest, encode_hex};
use attestd::ledger::timestamp::Timestamp;

fn run(program: &str, args: &[&str], dir: &Path) -> Output {
    let output =
        Command::new(program).args(args).current_dir(dir).output().expect("the program is installed");
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

fn quoted(text: &str) -> String {
    serde_json::to_string(text).expect("a string")
}

/// Rules with one approver, `mai`, who signs with `key`.
fn rules(key: &str) -> Rules {
    let text = format!(
        r#"{{"actions":[],"approvers":[{{"actor_ids":[],"callers":[],"name":"mai","public_key":{},"role":"auditor"}}],"callers":[{{"actor_ids":[],"actor_types":[],"clearance":0,"event_types":[],"name":"ops","uid":0,"verbs":["propose","seal"]}}],"pillars":{{"floor":"7","weights":{{"an_toan":1,"duong_dai":1,"han_che_rui_ro":1,"tin_vao_so_lieu":1}}}},"provers":[]}}"#,
        quoted(key)
    );
    Rules::from_canonical(&text).expect("rules")
}

fn subject() -> Subject {
    Subject {
        action_hash: Digest::of(br#"{"to":2}"#),
        action_type: "policy.set".into(),
        expires_at: Timestamp::from_micros(1_795_573_782_000_000),
        origin: "test.example/ledger".into(),
        proposal_hash: Digest::of(b"open"),
        proposal_id: ProposalId(EntryId::from_random([3; 16])),
        rules_hash: "default".into(),
    }
}

/// A folder with the statement that `mai` is to sign, and nothing after its last byte.
fn statement(rules: &Rules) -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().expect("a folder");
    let statement = subject().statement(&rules.approvers()[0], Decision::Approve);
    fs::write(dir.path().join("statement.json"), &statement).expect("written");
    (dir, statement)
}

fn verdict(rules: &Rules, statement: &str, signature: &str) -> Result<Decision, Code> {
    let refused = |refusal: attestd::governance::Refusal| refusal.code;
    let approval = Approval::of(statement, signature, rules.approvers()).map_err(refused)?;
    approval.verify(&subject(), rules.approvers()).map(|(_, decision)| decision).map_err(refused)
}

fn openssl_key() -> (tempfile::TempDir, PathBuf, String) {
    let dir = tempfile::tempdir().expect("a folder");
    run("openssl", &["ecparam", "-genkey", "-name", "prime256v1", "-noout", "-out", "key.pem"], dir.path());
    let public = run("openssl", &["pkey", "-in", "key.pem", "-pubout"], dir.path()).stdout;
    let key = dir.path().join("key.pem");
    (dir, key, String::from_utf8(public).expect("PEM"))
}

/// Whether S of a DER signature is in the high half, by its leading bytes (n/2 is 7FFFFFFF80…).
fn has_high_s(der: &[u8]) -> bool {
    let r_length = usize::from(der[3]);
    let s = &der[4 + r_length + 2..];
    s.len() == 33 || (s.len() == 32 && s > &[0x7F, 0xFF, 0xFF, 0xFF, 0x80][..])
}

#[test]
fn openssl_signs_with_either_s_and_both_count() {
    let (_keys, key, public) = openssl_key();
    let rules = rules(&public);
    let (dir, statement) = statement(&rules);
    let key = key.to_str().expect("UTF-8");
    let (mut high, mut low) = (0, 0);
    // Each half has one chance in two: 64 of one kind would be a broken random generator.
    for _ in 0..64 {
        let der = run("openssl", &["dgst", "-sha256", "-sign", key, "statement.json"], dir.path()).stdout;
        let kind = if has_high_s(&der) { &mut high } else { &mut low };
        *kind += 1;
        assert_eq!(verdict(&rules, &statement, &encode_hex(&der)), Ok(Decision::Approve));
        let mut longer = der.clone();
        longer.push(0);
        assert_eq!(verdict(&rules, &statement, &encode_hex(&longer)), Err(Code::ApprovalSignature));
        if high > 0 && low > 0 {
            break;
        }
    }
    assert!(high > 0 && low > 0, "{high} high, {low} low");
}

#[test]
fn openssl_signs_nothing_else() {
    let (_keys, key, public) = openssl_key();
    let rules = rules(&public);
    let (dir, statement) = statement(&rules);
    let key = key.to_str().expect("UTF-8");
    let sign = |file: &str| run("openssl", &["dgst", "-sha256", "-sign", key, file], dir.path()).stdout;
    fs::write(dir.path().join("with-newline"), format!("{statement}\n")).expect("written");
    assert_eq!(
        verdict(&rules, &statement, &encode_hex(&sign("with-newline"))),
        Err(Code::ApprovalSignature),
        "an editor's line feed"
    );
    let (_others, other, _) = openssl_key();
    let args = ["dgst", "-sha256", "-sign", other.to_str().expect("UTF-8"), "statement.json"];
    let foreign = run("openssl", &args, dir.path()).stdout;
    assert_eq!(verdict(&rules, &statement, &encode_hex(&foreign)), Err(Code::ApprovalSignature));
    let good = encode_hex(&sign("statement.json"));
    for bad in ["", "30", &good.to_uppercase(), &good[..good.len() - 2], &format!("{good}\n")] {
        assert_eq!(verdict(&rules, &statement, bad), Err(Code::ApprovalSignature), "{bad}");
    }
    assert_eq!(verdict(&rules, &statement, &good), Ok(Decision::Approve), "the accepting twin");
}

fn ssh_key(kind: &str) -> (tempfile::TempDir, PathBuf, String) {
    let dir = tempfile::tempdir().expect("a folder");
    run("ssh-keygen", &["-q", "-t", kind, "-N", "", "-C", "mai@laptop", "-f", "key"], dir.path());
    let public = fs::read_to_string(dir.path().join("key.pub")).expect("written");
    let key = dir.path().join("key");
    (dir, key, public)
}

fn ssh_sign(key: &Path, namespace: &str, options: &[&str], dir: &Path) -> String {
    let _ = fs::remove_file(dir.join("statement.json.sig"));
    let mut args = vec!["-Y", "sign", "-f", key.to_str().expect("UTF-8"), "-n", namespace];
    args.extend_from_slice(options);
    args.push("statement.json");
    run("ssh-keygen", &args, dir);
    fs::read_to_string(dir.join("statement.json.sig")).expect("written")
}

#[test]
fn ssh_keygen_signs_with_both_kinds_of_key_and_both_hashes() {
    for kind in ["ed25519", "ecdsa"] {
        let (_keys, key, public) = ssh_key(kind);
        let rules = rules(public.trim_end().strip_suffix(" mai@laptop").expect("the comment"));
        let (dir, statement) = statement(&rules);
        for hash in ["hashalg=sha256", "hashalg=sha512"] {
            let signature = ssh_sign(&key, "attestd-approval", &["-O", hash], dir.path());
            assert_eq!(verdict(&rules, &statement, &signature), Ok(Decision::Approve), "{kind} {hash}");
            assert_eq!(verdict(&rules, &statement, signature.trim_end()), Ok(Decision::Approve));
        }
        let file = ssh_sign(&key, "file", &[], dir.path());
        assert_eq!(verdict(&rules, &statement, &file), Err(Code::ApprovalSignature), "another namespace");
        let (_others, other, _) = ssh_key(kind);
        let foreign = ssh_sign(&other, "attestd-approval", &[], dir.path());
        assert_eq!(verdict(&rules, &statement, &foreign), Err(Code::ApprovalSignature), "another key");
        fs::write(dir.path().join("statement.json"), statement.replace("approve", "reject"))
            .expect("written");
        let no = ssh_sign(&key, "attestd-approval", &[], dir.path());
        assert_eq!(verdict(&rules, &statement, &no), Err(Code::ApprovalSignature), "a no is no yes");
        let rejected = statement.replace("approve", "reject");
        assert_eq!(verdict(&rules, &rejected, &no), Ok(Decision::Reject));
    }
}

#[test]
fn what_we_verify_ssh_keygen_verifies_too() {
    let (_keys, key, public) = ssh_key("ed25519");
    let rules = rules(public.trim_end().strip_suffix(" mai@laptop").expect("the comment"));
    let (dir, statement) = statement(&rules);
    let signature = ssh_sign(&key, "attestd-approval", &[], dir.path());
    let approval = Approval::of(&statement, &signature, rules.approvers()).expect("an approval");
    // From what the ledger keeps, a stranger's tool comes to the same.
    fs::write(dir.path().join("kept.sig"), &approval.signature).expect("written");
    fs::write(dir.path().join("signers"), format!("mai {}\n", rules.approvers()[0].key.to_text()))
        .expect("written");
    let args = ["-Y", "verify", "-f", "signers", "-I", "mai", "-n", "attestd-approval", "-s", "kept.sig"];
    let output = Command::new("ssh-keygen")
        .args(args)
        .current_dir(dir.path())
        .stdin(fs::File::open(dir.path().join("statement.json")).expect("there"))
        .output()
        .expect("runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_key_id_is_what_openssl_and_coreutils_print() {
    let (dir, _key, public) = openssl_key();
    let der = run("openssl", &["pkey", "-in", "key.pem", "-pubout", "-outform", "DER"], dir.path()).stdout;
    assert_eq!(rules(&public).approvers()[0].key.id(), Digest::of(&der));
    let compressed =
        run("openssl", &["ec", "-in", "key.pem", "-pubout", "-conv_form", "compressed"], dir.path()).stdout;
    let compressed = String::from_utf8(compressed).expect("PEM");
    let key = attestd::governance::key::Key::parse(&compressed).expect("a key");
    assert_eq!((key.id(), key.point()), (Digest::of(&der), rules(&public).approvers()[0].key.point()));
}

#[cfg(feature = "daemon")]
#[test]
fn the_example_rules_are_rules() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("rules.toml");
    let text = fs::read_to_string(path).expect("there");
    let rules = Rules::from_toml(&text).unwrap_or_else(|fault| panic!("rules.toml: {fault}"));
    assert_eq!(Rules::from_canonical(&rules.to_canonical()), Ok(rules.clone()));
    assert_eq!(rules.scale(), Rules::default().scale(), "the pillars are the defaults, as it says");
    let demand = rules.demand("policy.set");
    assert_eq!((demand.approvals, demand.roles.len(), demand.proofs.len()), (3, 3, 4));
    assert_eq!(rules.demand("rules.set").approvals, 2);
    assert_eq!(rules.explain().len(), 4 + 3 + 5 + 1 + 1);
}
