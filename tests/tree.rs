//! The tree that a daemon keeps: checkpoints as entries come and when they stop, receipts, both modes
//! of signing and the change between them, and a start that does not sign over what is damaged.

#![cfg(feature = "daemon")]

mod common;

use std::time::{Duration, Instant};

use attestd::ledger::checkpoint::Note;
use attestd::ledger::entry::Sequence;
use attestd::ledger::hash::Digest;
use attestd::ledger::key::PublicKey;
use attestd::ledger::proof::Receipt;
use attestd::store::Reader;
use common::{Daemon, ORIGIN, REQUEST, World, request};
use rusqlite::Connection;
use serde_json::Value;

fn key(world: &World) -> PublicKey {
    let pem = std::fs::read_to_string(world.dir().join("public-key.pem")).expect("readable");
    PublicKey::from_pem(&pem).expect("a key")
}

fn reader(world: &World) -> Reader {
    Reader::open(&world.ledger()).expect("opened")
}

/// The newest checkpoint once it has `size` entries or more.
fn checkpoint_over(daemon: &Daemon, size: u64) -> Note {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let answer = daemon.get("/v1/checkpoint");
        if answer.status == 200 {
            let note = Note::parse(&answer.body).expect("a note");
            if note.checkpoint().root().size.leaves() >= size {
                return note;
            }
        } else {
            answer.problem(503, "checkpoint-pending");
        }
        assert!(Instant::now() < deadline, "no checkpoint over {size} entries comes");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn hash_of(entry: &Value) -> Digest {
    entry["entry_hash"].as_str().and_then(|hex| Digest::from_hex(hex.as_bytes())).expect("a hash")
}

/// Holds a receipt to prove `entry` by the key alone.
fn hold_receipt(world: &World, text: &str, entry: &Value) -> Receipt {
    let receipt = Receipt::parse(text.as_bytes()).expect("a receipt");
    let sequence = Sequence(entry["sequence_number"].as_u64().expect("a number"));
    receipt.verify(sequence, hash_of(entry), &[key(world)]).expect("it holds");
    assert_eq!(receipt.checkpoint().origin(), ORIGIN);
    // Another entry's hash, or a sibling's place, it does not prove.
    assert!(receipt.verify(sequence, Digest([7; 32]), &[key(world)]).is_err());
    receipt
}

#[test]
fn a_checkpoint_follows_the_last_entry_although_no_more_come() {
    let world = World::new();
    let daemon = world.serve();
    let entry = daemon.append(REQUEST);
    let sequence = entry["sequence_number"].as_u64().expect("a number");
    let note = checkpoint_over(&daemon, sequence + 1);
    note.verify(&[key(&world)]).expect("signed");
    let proof = daemon.get(&format!("/v1/entries/{sequence}/proof"));
    assert_eq!(proof.status, 200, "{}", proof.text());
    let receipt = hold_receipt(&world, &proof.text(), &entry);
    let by_id = daemon.get(&format!("/v1/entries/{}/proof", entry["entry_id"].as_str().expect("an id")));
    assert_eq!(by_id.body, proof.body);
    // It stays: nothing is signed while nothing happens.
    std::thread::sleep(Duration::from_millis(2_500));
    assert_eq!(daemon.get("/v1/checkpoint").text(), note.as_str());
    assert_eq!(receipt.note().as_str(), note.as_str());
    assert!(daemon.stop().success());
    // The SHUTDOWN entry is under a checkpoint too.
    let reader = reader(&world);
    let newest = reader.newest_note().expect("readable").expect("there");
    assert_eq!(newest.checkpoint().root().size.leaves(), reader.count().expect("readable"));
}

#[test]
fn an_append_is_answered_with_its_receipt_when_it_asks_for_one() {
    for mode in ["each", "commit"] {
        let world = World::without_ledger();
        world.configure("signing", &format!("mode = \"{mode}\"\ncheckpoint_interval_seconds = 3600"));
        assert!(world.attestd(&["init"]).status.success());
        let daemon = world.serve();
        let id = "00000000-0000-4000-8000-000000000001";
        let body = request(&format!(r#","entry_id":"{id}""#));
        for status in [201, 200] {
            let answer = daemon.post("/v1/entries?receipt=1", &body);
            assert_eq!(answer.status, status, "{}", answer.text());
            let answer = answer.json();
            let line = answer["entry"].as_str().expect("a line");
            assert_eq!(daemon.get(&format!("/v1/entries/{id}")).text(), line);
            let entry = serde_json::from_str(line).expect("JSON");
            hold_receipt(&world, answer["receipt"].as_str().expect("a receipt"), &entry);
        }
        let head = format!(
            "POST /v1/entries HTTP/1.1\r\nhost: x\r\nconnection: close\r\nprefer: wait=5, return=receipt\r\n\
             content-length: {}\r\n\r\n{REQUEST}",
            REQUEST.len()
        );
        let preferred = common::Answer::parse(&daemon.raw(head.as_bytes())).json();
        let entry = serde_json::from_str(preferred["entry"].as_str().expect("a line")).expect("JSON");
        hold_receipt(&world, preferred["receipt"].as_str().expect("a receipt"), &entry);

        assert!(daemon.post("/v1/entries?receipt=0", REQUEST).json()["entry_hash"].is_string());
        for query in ["receipt=2", "receipt", "receipt=1&receipt=1", "proof=1"] {
            daemon.post(&format!("/v1/entries?{query}"), REQUEST).problem(400, "bad-parameter");
        }
    }
}

#[test]
fn without_a_checkpoint_over_it_an_entry_has_no_proof_yet() {
    let world = World::new();
    world.configure("signing", "checkpoint_interval_seconds = 3600");
    let daemon = world.serve();
    let entry = daemon.append(REQUEST);
    let sequence = entry["sequence_number"].as_u64().expect("a number");
    let pending = daemon.get(&format!("/v1/entries/{sequence}/proof"));
    pending.problem(503, "checkpoint-pending");
    assert!(pending.header("retry-after").is_some());
    daemon.get("/v1/entries/999/proof").problem(404, "not-found");
    daemon.get("/v1/entries/-1/proof").problem(400, "bad-parameter");
    daemon.get("/v1/entries/%FF/proof").problem(400, "bad-parameter");
}

#[test]
fn consistency_is_proven_between_any_two_sizes() {
    let world = World::new();
    let daemon = world.serve();
    let batch: Vec<&str> = vec![REQUEST; 700];
    assert_eq!(daemon.post("/v1/entries:batch", batch.join("\n")).lines().len(), 700);
    let note = checkpoint_over(&daemon, 702);
    let to = note.checkpoint().root();
    let offline = reader(&world);
    let mut tree = offline.tree(to.size.leaves()).expect("there");
    for from in [0, 1, 2, 255, 256, 257, 511, 512, 700, to.size.leaves()] {
        let answer = daemon.get(&format!("/v1/consistency?from={from}&to={}", to.size)).json();
        assert_eq!((&answer["from"], &answer["to"]), (&from.into(), &to.size.leaves().into()));
        let path: Vec<_> = answer["consistency"]
            .as_array()
            .expect("an array")
            .iter()
            .map(|hash| Digest::from_hex(hash.as_str().expect("hex").as_bytes()).expect("a hash"))
            .map(attestd::ledger::merkle::NodeHash)
            .collect();
        let size = attestd::ledger::merkle::TreeSize::new(from).expect("a size");
        let root = tree.root(size).expect("readable");
        attestd::ledger::merkle::verify_consistency(&root, &to, &path).expect("consistent");
    }
    for query in ["", "from=2&to=1", "from=0&to=99999", "from=x", "from=1&from=1", "size=1"] {
        daemon.get(&format!("/v1/consistency?{query}")).problem(400, "bad-parameter");
    }
    // Tiles as a publisher reads them.
    let leaves = daemon.get("/v1/tile/0/001").body;
    assert_eq!(leaves.len(), 256 * 32);
    let hashes = offline.hashes(Sequence(256), Sequence(512)).expect("readable");
    let entries: Vec<u8> = hashes.iter().flat_map(|hash| [&[0, 32], &hash.0[..]].concat()).collect();
    assert_eq!(daemon.get("/v1/tile/entries/001").body, entries);
    assert_eq!(daemon.get("/v1/tile/0/002.p/3").body.len(), 3 * 32);
    for path in [
        "0/003",
        "0/002",
        "0/002.p/255",
        "1/000",
        "9/000",
        "0/1",
        "0/x001/000",
        "entries/003",
        "../checkpoint",
    ] {
        daemon.get(&format!("/v1/tile/{path}")).problem(404, "not-found");
    }
}

#[test]
fn the_mode_changes_with_the_configuration_and_the_ledger_says_so() {
    let world = World::new();
    let mut expected = Vec::new();
    let base = std::fs::read_to_string(world.config()).expect("readable");
    for mode in ["each", "commit", "commit", "each"] {
        std::fs::write(world.config(), format!("{base}[signing]\nmode = \"{mode}\"\n")).expect("writable");
        let daemon = world.serve();
        assert_eq!(daemon.get("/v1/stats").json()["signature_mode"], mode);
        let batch: Vec<&str> = vec![REQUEST; 300];
        assert_eq!(daemon.post("/v1/entries:batch", batch.join("\n")).lines().len(), 300);
        let algorithm = daemon.append(REQUEST)["signature_algorithm"].clone();
        expected.push(algorithm.as_str().expect("text").to_owned());
        assert!(daemon.stop().success());
    }
    let (each, commit) = ("ECDSA-P256-SHA256", "TLOG-ECDSA-P256-SHA256");
    assert_eq!(expected, [each, commit, commit, each]);
    let entries: Vec<Value> =
        world.audit().iter().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let changes: Vec<(&Value, &Value)> = entries
        .iter()
        .filter(|entry| entry["action_type"] == "signature.mode")
        .map(|entry| (&entry["action_payload"], &entry["signature_algorithm"]))
        .collect();
    let change = |from: &str, to: &str| serde_json::json!({"from": from, "to": to});
    assert_eq!(
        changes,
        [(&change("each", "commit"), &each.into()), (&change("commit", "each"), &commit.into())]
    );
    let mut algorithm = Value::from(each);
    for entry in &entries {
        assert_eq!(entry["signature_algorithm"], algorithm, "{entry}");
        if entry["action_type"] == "signature.mode" {
            algorithm = if entry["action_payload"]["to"] == "commit" { commit.into() } else { each.into() };
        }
    }
    // One signature for many entries, and it is the checkpoint's.
    let reader = reader(&world);
    let mut signatures = std::collections::HashSet::new();
    let in_common: Vec<&Value> =
        entries.iter().filter(|entry| entry["signature_algorithm"] == commit).collect();
    for entry in &in_common {
        let sequence = Sequence(entry["sequence_number"].as_u64().expect("a number"));
        let note = reader.note_over(sequence).expect("readable").expect("there");
        let verified = note.verify(&[key(&world)]).map(|verified| verified.signature).expect("signed");
        let mut hex = Vec::new();
        verified.write_hex_der(&mut hex);
        assert_eq!(entry["hsm_signature"].as_str().expect("hex").as_bytes(), hex);
        signatures.insert(hex);
    }
    assert!(in_common.len() >= 600 && signatures.len() < in_common.len() / 4, "{}", signatures.len());
}

#[test]
fn what_is_damaged_is_not_signed_over() {
    let world = World::new();
    let daemon = world.serve();
    let batch: Vec<&str> = vec![REQUEST; 2_000];
    assert_eq!(daemon.post("/v1/entries:batch", batch.join("\n")).lines().len(), 2_000);
    assert!(daemon.stop().success());
    let whole = std::fs::read(world.ledger()).expect("readable");
    for (damage, says) in [
        ("UPDATE tiles SET hashes = zeroblob(length(hashes)) WHERE level=0 AND tile=5", "tree"),
        ("UPDATE tiles SET hashes = zeroblob(length(hashes)) WHERE level=1", "tree"),
        ("DELETE FROM tiles WHERE level=0 AND tile=6", "tree"),
        ("UPDATE tiles SET hashes = substr(hashes, 1, 100) WHERE level=1", "tile/1/000"),
        (
            "UPDATE commits SET checkpoint = replace(checkpoint, 'test.', 'tent.') WHERE checkpoint IS NOT NULL",
            "checkpoint",
        ),
        ("UPDATE commits SET checkpoint_signature = zeroblob(64) WHERE checkpoint IS NOT NULL", "checkpoint"),
        ("UPDATE commits SET checkpoint = 'x' WHERE checkpoint IS NOT NULL", "checkpoint"),
    ] {
        std::fs::write(world.ledger(), &whole).expect("writable");
        let connection = Connection::open(world.ledger()).expect("opened");
        assert!(connection.execute(damage, []).expect("changed") > 0, "{damage}");
        drop(connection);
        let output = world.attestd_within(Duration::from_secs(60), &["serve"]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(78), "{damage}: {said}");
        assert!(said.contains(says), "{damage}: {said}");
    }
    std::fs::write(world.ledger(), &whole).expect("writable");
    assert!(world.serve().stop().success());
}

#[test]
fn a_ledger_from_before_the_tree_gets_one_and_goes_on() {
    let world = World::new();
    let daemon = world.serve();
    let batch: Vec<&str> = vec![REQUEST; 600];
    assert_eq!(daemon.post("/v1/entries:batch", batch.join("\n")).lines().len(), 600);
    assert!(daemon.stop().success());
    let count = reader(&world).count().expect("readable");
    let root = reader(&world).tree(count).expect("there").edge().expect("readable").root();
    let connection = Connection::open(world.ledger()).expect("opened");
    connection
        .execute_batch(
            "DROP TABLE tiles; DROP INDEX checkpoints; ALTER TABLE commits DROP COLUMN checkpoint;
             ALTER TABLE commits DROP COLUMN checkpoint_signature; PRAGMA user_version=1;",
        )
        .expect("version 1");
    drop(connection);
    let daemon = world.serve();
    let note = checkpoint_over(&daemon, count + 1);
    note.verify(&[key(&world)]).expect("signed");
    let mut tree = reader(&world);
    assert_eq!(
        tree_root(&mut tree, count),
        (root.size, root.hash),
        "the tree over the old entries is the same"
    );
    assert!(daemon.log().contains("building the tree"), "{}", daemon.log());
    assert!(daemon.stop().success());
    world.audit();
}

fn tree_root(
    reader: &mut Reader,
    size: u64,
) -> (attestd::ledger::merkle::TreeSize, attestd::ledger::merkle::NodeHash) {
    let mut tree = reader.tree(reader.count().expect("readable")).expect("there");
    let root = tree.root(attestd::ledger::merkle::TreeSize::new(size).expect("a size")).expect("readable");
    (root.size, root.hash)
}
