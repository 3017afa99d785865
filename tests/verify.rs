//! The auditor's tool as an auditor meets it: the real program, a bundle on disk, a key that came
//! another way. What must be refused is refused with the code that says why, whatever else is
//! sound about it, and what cannot be read is not called wrong.

#[path = "vectors/mod.rs"]
mod vectors;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use attestd::bundle::{
    Contents, Context, DirectoryWriter, FILES, Proofs, Sizes, TarWriter, checkpoint_line, unpack,
};
use attestd::ledger::checkpoint::{Checkpoint, Note};
use attestd::ledger::entry::Sequence;
use attestd::ledger::hash::Digest;
use attestd::ledger::key::Signature;
use attestd::ledger::merkle::{Frontier, Root, TreeSize};
use attestd::ledger::proof::Receipt;
use attestd::ledger::tile::{Edge, Tile, TileBytes, Tree};
use p256::ecdsa::SigningKey;
use proptest::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;
use vectors::{ORIGIN, ledger, other_key, public, sound, trusted_key};

/// A folder with the trusted key and room for bundles.
struct Desk {
    dir: TempDir,
}

impl Desk {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        fs::write(dir.path().join("trusted.pem"), public(&trusted_key()).to_pem()).expect("written");
        Desk { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Lays out a bundle whose files agree with each other, whatever the entries are.
    fn bundle(&self, name: &str, entries: &[u8], first: u64, count: usize) -> PathBuf {
        self.lay_out(name, &files(entries), first, count)
    }

    /// Lays out files, and a manifest that names them.
    fn lay_out(&self, name: &str, files: &[(&'static str, Vec<u8>)], first: u64, count: usize) -> PathBuf {
        let dir = self.path(name);
        fs::create_dir(&dir).expect("a folder");
        for (name, content) in files {
            fs::write(dir.join(name), content).expect("written");
        }
        fs::write(dir.join("manifest.json"), manifest(files, first, count)).expect("written");
        dir
    }

    /// A part of a ledger, with what ties it to the checkpoint of its first `size` entries.
    fn part(&self, name: &str, lines: &[Vec<u8>], range: std::ops::Range<usize>, size: usize) -> PathBuf {
        let files = part_files(lines, range.clone(), size);
        self.lay_out(name, &files, range.start as u64, range.len())
    }

    fn tar(&self, name: &str, lines: &[Vec<u8>]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, tar(lines)).expect("written");
        path
    }

    fn run(&self, bundle: &Path, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_attest-verify"))
            .arg(bundle)
            .arg("--key")
            .arg(self.path("trusted.pem"))
            .args(arguments)
            .output()
            .expect("the program runs")
    }

    /// Runs with `--json` and checks that exit code and verdict agree.
    fn verdict(&self, bundle: &Path, arguments: &[&str]) -> Value {
        let output = self.run(bundle, &[arguments, &["--json"]].concat());
        let verdict: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
        let ok = verdict["ok"].as_bool().expect("a boolean");
        assert_eq!(output.status.code(), Some(i32::from(!ok)), "{verdict}");
        assert_eq!(ok, verdict["fault"].is_null(), "{verdict}");
        assert!(!verdict["not_checked"].as_array().expect("an array").is_empty());
        verdict
    }

    fn code(&self, bundle: &Path, arguments: &[&str]) -> String {
        code(&self.verdict(bundle, arguments))
    }
}

fn code(verdict: &Value) -> String {
    verdict["fault"]["code"].as_str().unwrap_or("").into()
}

fn manifest(files: &[(&'static str, Vec<u8>)], first: u64, count: usize) -> String {
    let mut files: Vec<String> = files
        .iter()
        .map(|(name, bytes)| {
            format!(r#""{name}":{{"bytes":{},"sha256":"{}"}}"#, bytes.len(), Digest::of(bytes))
        })
        .collect();
    files.sort();
    let files = files.join(",");
    format!(
        r#"{{"count":{count},"files":{{{files}}},"first":{first},"format":"attestd-bundle/1","origin":"{ORIGIN}"}}"#,
    ) + "\n"
}

fn jsonl(lines: &[Vec<u8>]) -> Vec<u8> {
    lines.iter().flat_map(|line| [line, &b"\n"[..]].concat()).collect()
}

/// What an entry says of its hash and signature; nothing if it says nothing.
fn claims(line: &[u8]) -> Option<(Digest, Option<Signature>)> {
    let entry: Value = serde_json::from_slice(line).ok()?;
    let hash = Digest::from_hex(entry["entry_hash"].as_str()?.as_bytes())?;
    let signature = Signature::from_hex_der(entry["hsm_signature"].as_str()?.as_bytes()).ok();
    let shared = entry["signature_algorithm"] == "TLOG-ECDSA-P256-SHA256";
    Some((hash, signature.filter(|_| shared)))
}

fn hash_of(line: &[u8]) -> Digest {
    claims(line).map_or(Digest::ZERO, |(hash, _)| hash)
}

/// The key that an entry names; the trusted one where it names none of those here.
fn key_of(line: &[u8]) -> SigningKey {
    let entry: Value = serde_json::from_slice(line).unwrap_or_default();
    let names = |key: &SigningKey| entry["signing_key_id"] == public(key).id().to_string();
    [other_key(), vectors::keys::third_key()].into_iter().find(names).unwrap_or_else(trusted_key)
}

fn root_of(lines: &[Vec<u8>]) -> Root {
    let mut tree = Frontier::new();
    lines.iter().for_each(|line| tree.push(hash_of(line)).expect("room"));
    tree.root()
}

/// The checkpoints with which the commits of a ledger ended, by what the entries say.
fn notes_of(lines: &[Vec<u8>]) -> Vec<Note> {
    let shared = |at: usize| lines.get(at).and_then(|line| claims(line)).and_then(|(_, shared)| shared);
    let ends = (0..lines.len()).filter(|at| shared(*at).is_some() && shared(*at) != shared(at + 1));
    ends.map(|at| {
        let checkpoint = Checkpoint::new(ORIGIN, root_of(&lines[..=at])).expect("well-formed");
        Note::new(checkpoint, public(&key_of(&lines[at])).id(), &shared(at).expect("a signature"))
    })
    .collect()
}

/// The files of a whole bundle but the manifest, in the order of the tar.
fn files(entries: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let lines: Vec<Vec<u8>> = entries.split(|byte| *byte == b'\n').map(Into::into).collect();
    let lines = &lines[..lines.len() - usize::from(lines.last().is_some_and(Vec::is_empty))];
    let notes: String = notes_of(lines).iter().map(checkpoint_line).collect();
    let newest =
        vectors::note(root_of(lines), &lines.last().map_or_else(trusted_key, |line| key_of(line)), ORIGIN);
    vec![
        ("entries.jsonl", entries.to_vec()),
        ("public-key.pem", public(&trusted_key()).to_pem().into_bytes()),
        ("checkpoint", newest.as_str().into()),
        ("checkpoints.jsonl", notes.into_bytes()),
    ]
}

/// The proofs of a range of a ledger whose newest checkpoint has `size` entries, and the
/// checkpoints that the range refers to.
fn proofs(lines: &[Vec<u8>], range: &std::ops::Range<usize>, size: usize) -> (Proofs, Vec<Note>) {
    let sized = |size: usize| TreeSize::new(size as u64).expect("a size");
    let mut edge = Edge::new();
    let tiles: Vec<TileBytes> = edge.extend(lines.iter().map(|line| hash_of(line))).expect("room");
    let read = |tile: Tile| tiles.iter().find(|t| t.tile == tile).map(|t| t.bytes.clone()).ok_or(());
    let mut tree = Tree::new(sized(lines.len()), read);
    let (start, end, size) = (sized(range.start), sized(range.end), sized(size));
    let mut notes = notes_of(lines);
    let sizes: Vec<TreeSize> = notes.iter().map(|note| note.checkpoint().root().size).collect();
    let first = sizes.iter().position(|size| *size > start).unwrap_or(notes.len());
    let last = sizes.iter().position(|size| *size >= end).map_or(notes.len(), |at| at + 1);
    // What signs entries by themselves is no checkpoint.
    let shares = claims(&lines[range.end - 1]).is_some_and(|(_, shared)| shared.is_some());
    let last = if shares { last } else { sizes.iter().filter(|size| **size <= end).count() };
    notes = notes.drain(first.min(last)..last).collect();
    let beyond = notes.last().map(|note| note.checkpoint().root().size).filter(|size| *size > end);
    let reached = start <= size && size <= end;
    let proofs = Proofs {
        left: tree.frontier(start).expect("a frontier").peaks().to_vec(),
        consistency: if reached {
            Vec::new()
        } else {
            tree.consistency(end.min(size), end.max(size)).expect("a proof")
        },
        commit: beyond.map(|beyond| tree.consistency(end, beyond).expect("a proof")),
        context: if range.start == 0 {
            Vec::new()
        } else {
            let entry = String::from_utf8(lines[0].clone()).expect("UTF-8");
            vec![Context { entry, index: 0, path: tree.inclusion(0, size).expect("a path") }]
        },
    };
    (proofs, notes)
}

fn part_files(lines: &[Vec<u8>], range: std::ops::Range<usize>, size: usize) -> Vec<(&'static str, Vec<u8>)> {
    let (proofs, notes) = proofs(lines, &range, size);
    let newest = vectors::note(root_of(&lines[..size]), &key_of(&lines[size - 1]), ORIGIN);
    vec![
        ("entries.jsonl", jsonl(&lines[range])),
        ("public-key.pem", public(&trusted_key()).to_pem().into_bytes()),
        ("checkpoint", newest.as_str().into()),
        ("checkpoints.jsonl", notes.iter().map(checkpoint_line).collect::<String>().into_bytes()),
        ("proofs.json", proofs.to_line().into_bytes()),
    ]
}

fn contents(lines: &[Vec<u8>]) -> Contents {
    Contents {
        origin: ORIGIN.into(),
        key: public(&trusted_key()),
        first: 0,
        checkpoint: vectors::note(root_of(lines), &key_of(&lines[lines.len() - 1]), ORIGIN),
        proofs: None,
    }
}

fn tar(lines: &[Vec<u8>]) -> Vec<u8> {
    let notes = notes_of(lines);
    let sizes = Sizes {
        entries: jsonl(lines).len() as u64,
        checkpoints: notes.iter().map(|note| checkpoint_line(note).len() as u64).sum(),
    };
    let mut writer = TarWriter::new(Vec::new(), contents(lines), sizes).expect("written");
    lines.iter().for_each(|line| writer.append(line).expect("written"));
    notes.iter().for_each(|note| writer.append_checkpoint(note).expect("written"));
    writer.finish().expect("written")
}

#[test]
fn the_vectors_are_those_that_the_generator_makes() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors");
    let bless = std::env::var_os("BLESS").is_some();
    let check = |name: &str, content: &[u8]| {
        let path = dir.join(name);
        if bless {
            fs::write(&path, content).expect("written");
        }
        assert!(
            fs::read(&path).is_ok_and(|found| found == content),
            "{name} differs: BLESS=1 writes it anew"
        );
    };
    let all = vectors::all();
    let mut index = Vec::new();
    for vector in &all {
        check(&format!("{}.jsonl", vector.name), &jsonl(&vector.lines));
        let expect =
            vector.expect.map(|(code, sequence)| json!({"code": code.as_str(), "sequence_number": sequence}));
        let twin = (!vector.twin.is_empty()).then_some(vector.twin);
        index.push(
            json!({"name": vector.name, "about": vector.about, "expect": expect, "twin": twin}).to_string(),
        );
    }
    check("index.json", format!("[\n{}\n]\n", index.join(",\n")).as_bytes());
    check("trusted.pem", public(&trusted_key()).to_pem().as_bytes());
    let files = fs::read_dir(&dir).expect("a folder").count();
    assert_eq!(files, all.len() + 5, "files that no vector has");
}

#[test]
fn every_vector_gets_its_verdict_as_directory_and_as_tar() {
    let desk = Desk::new();
    let all = vectors::all();
    for vector in &all {
        let name = vector.name;
        let lines = &vector.lines;
        let directory = desk.verdict(&desk.bundle(name, &jsonl(lines), 0, lines.len()), &[]);
        let tar = desk.verdict(&desk.tar(&format!("{name}.tar"), lines), &[]);
        assert_eq!(directory, tar, "{name}");
        let fault = &directory["fault"];
        let Some((code, sequence)) = vector.expect else {
            assert_eq!(*fault, Value::Null, "{name}");
            assert_eq!(directory["origin"], ORIGIN, "{name}");
            assert_eq!(directory["count"], lines.len(), "{name}");
            continue;
        };
        assert_eq!(
            (&fault["code"], &fault["sequence_number"]),
            (&json!(code.as_str()), &json!(sequence)),
            "{name}: {fault}"
        );
        let line = sequence.unwrap_or(0) + 1;
        assert_eq!((&fault["line"], &directory["count"]), (&json!(line), &json!(line - 1)), "{name}");
        let twin = all.iter().find(|other| other.name == vector.twin);
        assert!(twin.is_some_and(|twin| twin.expect.is_none()), "{name} has no accepting twin");
    }
}

#[test]
fn trust_comes_from_the_key_that_is_given() {
    let desk = Desk::new();
    let lines = sound();
    let bundle = desk.bundle("bundle", &jsonl(&lines), 0, lines.len());
    fs::write(desk.path("trusted.pem"), public(&other_key()).to_pem()).expect("written");
    assert_eq!(desk.code(&bundle, &[]), "unknown-key");
    // The bundle's own key counts for nothing, but it must be the genesis's.
    fs::write(desk.path("trusted.pem"), public(&trusted_key()).to_pem()).expect("written");
    let pem = public(&other_key()).to_pem();
    fs::write(bundle.join("public-key.pem"), &pem).expect("written");
    assert_eq!(desk.code(&bundle, &[]), "bundle-file");
    let mut files = files(&jsonl(&lines));
    files[1].1 = pem.into_bytes();
    fs::write(bundle.join("manifest.json"), manifest(&files, 0, lines.len())).expect("written");
    assert_eq!(desk.code(&bundle, &[]), "genesis-key");
}

#[test]
fn expectations_are_held_against_the_genesis() {
    let desk = Desk::new();
    let lines = sound();
    let bundle = desk.bundle("bundle", &jsonl(&lines), 0, lines.len());
    let genesis: Value = serde_json::from_slice(&lines[0]).expect("JSON");
    let hash = genesis["entry_hash"].as_str().expect("a hash");
    let verdict = desk.verdict(&bundle, &["--origin", ORIGIN, "--genesis", hash]);
    let last: Value = serde_json::from_slice(&lines[5]).expect("JSON");
    assert_eq!(verdict["head_hash"], last["entry_hash"]);
    assert_eq!((&verdict["first"], &verdict["last"]), (&json!(0), &json!(5)));
    assert_eq!(desk.code(&bundle, &["--origin", "other.example"]), "origin");
    assert_eq!(desk.code(&bundle, &["--genesis", &Digest::ZERO.to_hex()]), "genesis-hash");
}

#[test]
fn a_range_is_verified_and_what_it_cannot_show_is_said() {
    let desk = Desk::new();
    let lines = sound();
    let bundle = desk.part("part", &lines, 2..5, 6);
    let verdict = desk.verdict(&bundle, &[]);
    assert_eq!(
        (&verdict["first"], &verdict["last"], &verdict["origin"], &verdict["checkpoint"]["size"]),
        (&json!(2), &json!(4), &json!(ORIGIN), &json!(6)),
        "{verdict}"
    );
    let said = verdict["not_checked"].to_string();
    assert!(said.contains("outside this range"), "{said}");
    let genesis = hash_of(&lines[0]).to_hex();
    assert_eq!(desk.code(&bundle, &["--genesis", &genesis, "--origin", ORIGIN]), "");
    assert_eq!(desk.code(&bundle, &["--genesis", &Digest::ZERO.to_hex()]), "genesis-hash");
    assert_eq!(desk.code(&bundle, &["--origin", "other.example"]), "origin");
    // A dependency on what comes later in the range is wrong wherever the range begins.
    let lines = ledger(4, |sequence, draft| {
        if sequence == 2 {
            draft.set("dependencies", format!("[{},{}]", vectors::id(0), vectors::id(3)));
        }
    });
    let verdict = desk.verdict(&desk.part("later", &lines, 1..4, 4), &[]);
    assert_eq!((code(&verdict).as_str(), &verdict["fault"]["sequence_number"]), ("dependency", &json!(2)));
}

/// Every range of a ledger of both modes verifies, wherever the newest checkpoint lies.
#[test]
fn any_range_verifies_with_its_proofs() {
    let desk = Desk::new();
    let lines = vectors::commits(9, 0, &[1, 4, 5], |_, _| {});
    let single = ledger(9, |_, _| {});
    for (mode, lines, sizes) in [("commit", &lines, [9, 9, 9]), ("each", &single, [9, 6, 3])] {
        for (from, to) in (0..9).flat_map(|from| (from + 1..=9).map(move |to| (from, to))) {
            for size in sizes {
                if from == 0 && to >= size {
                    continue;
                }
                let name = format!("{mode}-{from}-{to}-{size}");
                let dir = desk.path(&name);
                if dir.exists() {
                    continue;
                }
                let verdict = desk.verdict(&desk.part(&name, lines, from..to, size), &[]);
                assert_eq!(verdict["ok"], true, "{name}: {verdict}");
                let unanchored = verdict["not_checked"].to_string().contains("\"tail-unanchored: ");
                assert_eq!(unanchored, to > size, "{name}");
            }
        }
    }
}

/// A receipt verifies alone, and what it does not show it says.
#[test]
fn a_receipt_is_verified_offline() {
    let desk = Desk::new();
    let lines = vectors::commits(6, 0, &[1, 4], |_, _| {});
    let receipt = |size: usize, sequence: u64, path: &dyn Fn(&mut String)| {
        let (proofs, _) = proofs(&lines, &(5..6), size);
        let note = vectors::note(root_of(&lines[..size]), &trusted_key(), ORIGIN);
        let receipt = Receipt::new(Sequence(0), proofs.context[0].path.clone(), note).expect("well-formed");
        let mut text = receipt.to_string().replace("index 0", &format!("index {sequence}"));
        path(&mut text);
        fs::write(desk.path("receipt"), text).expect("written");
    };
    fs::write(desk.path("entry"), &lines[0]).expect("written");
    let run = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_attest-verify"))
            .current_dir(desk.dir.path())
            .args(["receipt", "--entry", "entry", "--proof", "receipt", "--key", "trusted.pem", "--json"])
            .args(arguments)
            .output()
            .expect("the program runs");
        let verdict: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(output.status.code(), Some(i32::from(verdict["ok"] == false)), "{verdict}");
        verdict
    };
    receipt(6, 0, &|_| {});
    let verdict = run(&[]);
    assert_eq!((&verdict["ok"], &verdict["checkpoint"]["size"]), (&json!(true), &json!(6)), "{verdict}");
    let said = verdict["not_checked"].to_string();
    assert!(said.contains("hsm_signature") && said.contains("no origin was given"), "{said}");
    assert_eq!(run(&["--origin", ORIGIN])["ok"], true);
    assert_eq!(code(&run(&["--origin", "other.example"])), "origin");
    type Spoil<'a> = &'a dyn Fn(&mut String);
    let cases: [(Spoil<'_>, u64, &str); 6] = [
        (&|_| {}, 1, "receipt"),
        (&|_| {}, 6, "tree-proof"),
        (&|text| *text = text.replacen("index 0", "index 00", 1), 0, "receipt"),
        (&|text| *text = text.replacen("\n\n", "\n\n\n", 1), 0, "note"),
        (&|text| *text = text.replacen("\n6\n", "\n5\n", 1), 0, "note-signature"),
        (&|text| *text = text.replacen("index 0", "index 9223372036854775808", 1), 0, "receipt"),
    ];
    for (number, (spoil, sequence, expected)) in cases.into_iter().enumerate() {
        receipt(6, sequence, spoil);
        assert_eq!(code(&run(&[])), expected, "case {number}");
    }
}

/// Whatever is wrong with a checkpoint, it is refused by name.
#[test]
fn bad_checkpoints_are_refused() {
    let desk = Desk::new();
    let lines = vectors::commits(6, 0, &[1, 4], |_, _| {});
    let sound = files(&jsonl(&lines));
    let newest = String::from_utf8(sound[2].1.clone()).expect("UTF-8");
    let notes: Vec<String> = notes_of(&lines).iter().map(checkpoint_line).collect();
    let root = root_of(&lines);
    let other = vectors::note(root, &other_key(), ORIGIN).as_str().to_owned();
    let elsewhere = vectors::note(root, &trusted_key(), "other.example").as_str().to_owned();
    let smaller = Root { size: root.size, ..root_of(&lines[..5]) };
    let forged = vectors::note(smaller, &trusted_key(), ORIGIN);
    let within = vectors::note(root_of(&lines[..3]), &trusted_key(), ORIGIN).as_str().to_owned();
    let earlier = vectors::note(root_of(&lines[..4]), &trusted_key(), ORIGIN).as_str().to_owned();
    let cases: Vec<(&str, usize, String, &str)> = vec![
        ("key", 2, other, "note-signature"),
        ("origin", 2, elsewhere, "origin"),
        ("name", 2, newest.replace(&format!("— {ORIGIN}"), "— other.example"), "note-signature"),
        ("blank", 2, newest.replacen("\n\n", "\n\n\n", 1), "note"),
        ("zeros", 2, newest.replacen("\n6\n", "\n06\n", 1), "note"),
        ("huge", 2, newest.replacen("\n6\n", "\n9223372036854775808\n", 1), "note"),
        ("size", 2, newest.replacen("\n6\n", "\n7\n", 1), "note-signature"),
        ("empty", 2, String::new(), "note"),
        ("root", 2, forged.as_str().into(), "checkpoint-root"),
        ("within", 2, within, "checkpoint-missing"),
        ("earlier", 2, earlier, ""),
        ("missing", 3, notes[..2].concat(), "checkpoint-missing"),
        ("none", 3, String::new(), "checkpoint-missing"),
        ("middle", 3, [&notes[0][..], &notes[2]].concat(), "checkpoint-missing"),
        ("twice", 3, [&notes[0][..], &notes[1], &notes[1], &notes[2]].concat(), "checkpoint-order"),
        ("order", 3, [&notes[1][..], &notes[0], &notes[2]].concat(), "checkpoint-order"),
        ("more", 3, notes.concat() + &checkpoint_line(&forged), "checkpoint-order"),
        ("not-json", 3, newest.clone(), "note"),
    ];
    for (name, file, content, expected) in cases {
        let mut files = sound.clone();
        files[file].1 = content.into_bytes();
        assert_eq!(desk.code(&desk.lay_out(name, &files, 0, 6), &[]), expected, "{name}");
    }
    let mut files = part_files(&lines, 2..5, 6);
    let proofs = String::from_utf8(files[4].1.clone()).expect("UTF-8");
    assert!(proofs.contains("\"commit\":["), "{proofs}");
    for (name, content) in
        [("garbage", "{}\n".into()), ("cut", proofs.replacen("\"left\":[\"", "\"left\":[\"0", 1))]
    {
        files[4].1 = content.into_bytes();
        assert_eq!(desk.code(&desk.lay_out(name, &files, 2, 3), &[]), "tree-proof", "{name}");
    }
    let cut = [&files[..4]].concat();
    assert_eq!(desk.code(&desk.lay_out("no-proofs", &cut, 2, 3), &[]), "tree-proof");
}

/// What was seen before must be in what is seen now.
#[test]
fn a_known_checkpoint_shows_rollback_truncation_and_fork() {
    let desk = Desk::new();
    let lines = ledger(6, |_, _| {});
    let whole = desk.bundle("whole", &jsonl(&lines), 0, 6);
    let known = |name: &str, root: Root| {
        let path = desk.path(name);
        fs::write(&path, vectors::note(root, &trusted_key(), ORIGIN).as_str()).expect("written");
        path.to_str().expect("UTF-8").to_owned()
    };
    let foreign = ledger(6, |sequence, draft| {
        if sequence == 3 {
            draft.payload("{}");
        }
    });
    let (four, six) = (known("four", root_of(&lines[..4])), known("six", root_of(&lines)));
    let fork = known("fork", root_of(&foreign[..5]));
    let code = |bundle: &Path, known: &str| desk.code(bundle, &["--known-checkpoint", known]);
    assert_eq!((code(&whole, &four), code(&whole, &six)), (String::new(), String::new()));
    assert_eq!(code(&whole, &fork), "fork");
    let older = desk.bundle("older", &jsonl(&lines[..5]), 0, 5);
    assert_eq!(code(&older, &six), "rollback");
    assert_eq!(code(&desk.part("part", &lines, 0..3, 6), &four), "known-unshown");
    let mut cut = files(&jsonl(&lines));
    cut[0].1 = jsonl(&lines[..5]);
    assert_eq!(code(&desk.lay_out("cut", &cut, 0, 5), &four), "truncated");

    let run = |a: &Path, b: &str| {
        Command::new(env!("CARGO_BIN_EXE_attest-verify"))
            .args([
                "compare".as_ref(),
                a.as_os_str(),
                b.as_ref(),
                "--evidence".as_ref(),
                desk.dir.path().as_os_str(),
            ])
            .output()
            .expect("the program runs")
            .status
            .code()
    };
    assert_eq!(run(&whole, &four), Some(0));
    assert_eq!(run(&whole, &fork), Some(1));
    assert!(desk.path("fork-a.checkpoint").exists() && desk.path("fork-b.checkpoint").exists());
    assert_eq!(run(Path::new(&six), &four), Some(2));
}

/// Nothing inside a ledger shows that its end was cut off, so the verdict has to say so.
#[test]
fn a_cut_tail_is_accepted_and_completeness_is_not_claimed() {
    let desk = Desk::new();
    let lines = &sound()[..3];
    let verdict = desk.verdict(&desk.bundle("cut", &jsonl(lines), 0, 3), &[]);
    assert!(verdict["ok"] == true && verdict["not_checked"].to_string().contains("completeness"));
}

#[test]
fn the_manifest_must_be_what_the_files_are() {
    let desk = Desk::new();
    let lines = sound();
    let entries = jsonl(&lines);
    let bundle = desk.bundle("bundle", &entries, 0, lines.len());
    let sound = fs::read_to_string(bundle.join("manifest.json")).expect("read");
    let entries_hash = Digest::of(&entries).to_hex();
    let cases = [
        ("\"count\":6", "\"count\":5", "manifest"),
        ("\"count\":6", "\"count\":6.0", "manifest"),
        ("\"count\":6", "\"count\":-6", "manifest"),
        ("\"first\":0", "\"first\":1", "manifest"),
        ("\"first\":0,", "", "manifest"),
        (ORIGIN, "other.example", "manifest"),
        ("bundle/1", "bundle/2", "manifest"),
        ("{\"count\"", "{\"a\":1,\"count\"", "manifest"),
        ("{\"count\"", "{ \"count\"", "manifest"),
        ("\"files\":{", "\"files\":{\"README\":{},", "manifest"),
        ("\"bytes\":", "\"blocks\":1,\"bytes\":", "manifest"),
        ("}\n", "}", "manifest"),
        ("}\n", "}\n\n", "manifest"),
        ("}\n", "}\r\n", "manifest"),
        (&entries_hash, &Digest::ZERO.to_hex(), "bundle-file"),
        (&entries_hash, &entries_hash.to_uppercase(), "manifest"),
        (&format!("\"bytes\":{}", entries.len()), "\"bytes\":1", "bundle-file"),
        ("\"public-key.pem\"", "\"proofs.json\"", "manifest"),
    ];
    assert_eq!(desk.code(&bundle, &[]), "");
    for (from, to, expected) in cases {
        assert!(sound.contains(from), "{from}");
        fs::write(bundle.join("manifest.json"), sound.replacen(from, to, 1)).expect("written");
        assert_eq!(desk.code(&bundle, &[]), expected, "{from} -> {to}");
    }
    for text in ["", "\n", "[]\n", "{}\n", "null\n", "\u{feff}{}\n"] {
        fs::write(bundle.join("manifest.json"), text).expect("written");
        assert_eq!(desk.code(&bundle, &[]), "manifest", "{text:?}");
    }
    fs::write(bundle.join("manifest.json"), vec![b' '; 5_000_000]).expect("written");
    assert_eq!(desk.code(&bundle, &[]), "bundle-file");
}

#[test]
fn strange_files_are_refused() {
    let desk = Desk::new();
    let lines = sound();
    let entries = jsonl(&lines);
    let spoil = |name: &str, spoil: &dyn Fn(&Path)| {
        let bundle = desk.bundle(name, &entries, 0, lines.len());
        spoil(&bundle);
        let verdict = desk.verdict(&bundle, &[]);
        assert_eq!(code(&verdict), "bundle-file", "{name}");
        verdict["fault"]["file"].as_str().expect("a file").to_owned()
    };
    for file in FILES.into_iter().filter(|file| *file != "proofs.json") {
        let missing = spoil(&format!("no-{file}"), &|dir| fs::remove_file(dir.join(file)).expect("removed"));
        assert_eq!(missing, file);
        spoil(&format!("linked-{file}"), &|dir| {
            let elsewhere = desk.path(&format!("elsewhere-{file}"));
            fs::rename(dir.join(file), &elsewhere).expect("moved");
            std::os::unix::fs::symlink(&elsewhere, dir.join(file)).expect("linked");
        });
    }
    for name in ["README", ".entries.jsonl.partial", "Entries.jsonl", "checkpoint.txt"] {
        assert_eq!(spoil(name, &|dir| fs::write(dir.join(name), "").expect("written")), name);
    }
    spoil("folder", &|dir| fs::create_dir(dir.join("more")).expect("a folder"));
    spoil("pipe", &|dir| {
        fs::remove_file(dir.join("public-key.pem")).expect("removed");
        assert!(Command::new("mkfifo").arg(dir.join("public-key.pem")).status().expect("runs").success());
    });
    let empty = desk.path("empty");
    fs::create_dir(&empty).expect("a folder");
    assert_eq!(desk.code(&empty, &[]), "bundle-file");
}

#[test]
fn strange_tars_are_refused() {
    let desk = Desk::new();
    let lines = sound();
    let sound = tar(&lines);
    let key = public(&trusted_key()).to_pem();
    let entries = jsonl(&lines);
    let files = files(&entries);
    let manifest = manifest(&files, 0, lines.len());
    let build = |files: &[(&str, tar::EntryType, &[u8])]| {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, kind, content) in files {
            let mut header = tar::Header::new_ustar();
            header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
            header.set_entry_type(*kind);
            header.set_size(content.len() as u64);
            header.set_cksum();
            builder.append(&header, *content).expect("written");
        }
        builder.into_inner().expect("written")
    };
    use tar::EntryType::{Directory, Link, Regular, Symlink, XHeader};
    let e = ("entries.jsonl", Regular, &entries[..]);
    let k = ("public-key.pem", Regular, key.as_bytes());
    let c = ("checkpoint", Regular, &files[2].1[..]);
    let n = ("checkpoints.jsonl", Regular, &files[3].1[..]);
    let p = ("proofs.json", Regular, &b"{}\n"[..]);
    let m = ("manifest.json", Regular, manifest.as_bytes());
    let mut at_end = sound.clone();
    at_end.extend_from_slice(b"x");
    let mut hidden = sound.clone();
    let padding = 512 + entries.len();
    assert_eq!(hidden[padding], 0);
    hidden[padding] = b'x';
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("nothing", Vec::new()),
        ("zeros", vec![0; 10_240]),
        ("text", b"this is no tar".repeat(100)),
        ("no-entries", build(&[k, c, n, m])),
        ("no-key", build(&[e, c, n, m])),
        ("no-checkpoint", build(&[e, k, n, m])),
        ("no-checkpoints", build(&[e, k, c, m])),
        ("no-manifest", build(&[e, k, c, n])),
        ("order", build(&[k, e, c, n, m])),
        ("proofs-first", build(&[e, k, c, p, n, m])),
        ("proofs-last", build(&[e, k, c, n, m, p])),
        ("twice", build(&[e, e, k, c, n, m])),
        ("two-manifests", build(&[e, k, c, n, m, m])),
        ("more", build(&[e, k, c, n, m, ("README", Regular, b"x")])),
        ("absolute", build(&[("/entries.jsonl", Regular, &entries), k, c, n, m])),
        ("dotted", build(&[("./entries.jsonl", Regular, &entries), k, c, n, m])),
        ("climbing", build(&[e, k, c, n, m, ("../x", Regular, b"x")])),
        ("folder", build(&[("bundle/", Directory, b""), e, k, c, n, m])),
        ("symlink", build(&[("entries.jsonl", Symlink, b""), k, c, n, m])),
        ("hard-link", build(&[e, ("public-key.pem", Link, b""), c, n, m])),
        ("extended", build(&[("entries.jsonl", XHeader, b"19 path=entries.js\n"), e, k, c, n, m])),
        ("at-end", at_end),
        ("hidden", hidden),
    ];
    assert_eq!(build(&[e, k, c, n, m]).len(), sound.len());
    let path = desk.path("a.tar");
    for (name, bytes) in cases {
        fs::write(&path, bytes).expect("written");
        assert_eq!(desk.code(&path, &[]), "bundle-file", "{name}");
    }
    // A tar that breaks off, wherever it does, is no bundle.
    for at in (0..sound.len() - 1_023).step_by(997) {
        fs::write(&path, &sound[..at]).expect("written");
        assert_ne!(desk.code(&path, &[]), "", "cut at {at}");
    }
    // GNU tar fills up with more zeros than needed.
    fs::write(&path, [&sound[..], &[0; 9_000]].concat()).expect("written");
    assert_eq!(desk.code(&path, &[]), "");
    fs::write(&path, build(&[e, k, c, n, m])).expect("written");
    assert_eq!(desk.code(&path, &[]), "");
}

/// What `tar` makes of an unpacked bundle is one again, when the files are named in order.
#[test]
fn a_tar_by_tar_is_as_good() {
    let desk = Desk::new();
    let lines = sound();
    let dir = desk.bundle("bundle", &jsonl(&lines), 0, lines.len());
    for format in ["ustar", "gnu"] {
        let path = desk.path(format);
        let made = Command::new("tar")
            .args(["--format", format, "-C"])
            .args([&dir, Path::new("-cf"), &path])
            .args(FILES.into_iter().filter(|file| *file != "proofs.json"))
            .status();
        assert!(made.expect("tar runs").success());
        assert_eq!(desk.verdict(&path, &[]), desk.verdict(&dir, &[]), "{format}");
    }
}

#[test]
fn lines_end_in_one_line_feed() {
    let desk = Desk::new();
    let lines = sound();
    let whole = jsonl(&lines);
    let cases: [(&str, Vec<u8>, usize, &str, Value); 5] = [
        ("no-last", whole[..whole.len() - 1].to_vec(), 6, "line-ending", json!(5)),
        (
            "crlf",
            jsonl(&lines[..1])
                .iter()
                .flat_map(|b| if *b == b'\n' { vec![13, 10] } else { vec![*b] })
                .collect(),
            1,
            "line-ending",
            Value::Null,
        ),
        ("blank-last", [&whole[..], b"\n"].concat(), 6, "line-ending", json!(6)),
        ("nul-last", [&whole[..], b"\0"].concat(), 6, "line-ending", json!(6)),
        ("empty", Vec::new(), 0, "empty", Value::Null),
    ];
    for (name, entries, count, expected, sequence) in cases {
        let verdict = desk.verdict(&desk.bundle(name, &entries, 0, count), &[]);
        assert_eq!(code(&verdict), expected, "{name}");
        assert_eq!(verdict["fault"]["sequence_number"], sequence, "{name}");
    }
}

/// Runs under a limit of 64 MiB of data over inputs larger than that.
#[test]
fn memory_is_bounded_whatever_is_read() {
    let desk = Desk::new();
    let limited = |bundle: &Path| {
        let output = Command::new("sh")
            .args(["-c", "ulimit -d 65536; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_attest-verify")])
            .arg(bundle)
            .arg("--key")
            .arg(desk.path("trusted.pem"))
            .args(["--json", "--threads", "4"])
            .output()
            .expect("the program runs");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        serde_json::from_slice::<Value>(&output.stdout).unwrap_or_else(|_| panic!("{text}"))
    };
    let large = "x".repeat(500_000);
    let lines = ledger(300, |sequence, draft| {
        if sequence > 0 {
            draft.payload(format!("{{\"a\":\"{large}\"}}"));
        }
        draft.set("timestamp", r#""2026-11-25T03:00:00.000000Z""#);
    });
    let verdict = limited(&desk.bundle("large", &jsonl(&lines), 0, lines.len()));
    assert_eq!((&verdict["ok"], &verdict["count"]), (&json!(true), &json!(300)), "{verdict}");

    let endless = [jsonl(&lines[..2]), vec![b'{'; 150_000_000]].concat();
    let verdict = limited(&desk.bundle("endless", &endless, 0, 2));
    assert_eq!(code(&verdict), "entry-too-large");
    assert_eq!(verdict["fault"]["sequence_number"], 2);
}

#[test]
fn an_entry_may_have_a_mebibyte_and_no_byte_more() {
    let desk = Desk::new();
    let of_size = |size: usize| {
        let with = |length: usize| {
            ledger(2, |sequence, draft| {
                if sequence == 1 {
                    draft.payload(format!("{{\"a\":\"{}\"}}", "x".repeat(length)));
                }
            })
        };
        // The DER of a signature varies by a few bytes, so the length is found by trying.
        let short = with(0)[1].len();
        (0..32)
            .map(|slack| with(size - short + 4 - slack))
            .find(|lines| lines[1].len() == size)
            .expect("some length fits")
    };
    let fits = of_size(1 << 20);
    assert_eq!(desk.code(&desk.bundle("fits", &jsonl(&fits), 0, 2), &[]), "");
    let over = of_size((1 << 20) + 1);
    assert_eq!(desk.code(&desk.bundle("over", &jsonl(&over), 0, 2), &[]), "entry-too-large");
}

/// A ledger of several batches of 128.
fn batches() -> Vec<Vec<u8>> {
    ledger(600, |_, draft| draft.set("timestamp", r#""2026-11-25T03:00:00.000000Z""#))
}

/// With several faults in a ledger of many batches the earliest is named, whichever thread comes
/// upon which first.
#[test]
fn the_first_fault_is_named() {
    let desk = Desk::new();
    // At the ends of neighbouring batches, so that threads come upon them in either order.
    for (number, at) in [[127, 128], [128, 383], [5, 599], [0, 130]].into_iter().enumerate() {
        let mut lines = batches();
        for at in at {
            let text = String::from_utf8(lines[at].clone()).expect("UTF-8");
            lines[at] = text.replace("\"severity\":0", "\"severity\":1").into_bytes();
        }
        let bundle = desk.bundle(&format!("bundle-{number}"), &jsonl(&lines), 0, lines.len());
        for threads in ["1", "2", "7"] {
            let verdict = desk.verdict(&bundle, &["--threads", threads]);
            assert_eq!(verdict["fault"]["sequence_number"], at[0], "{threads} threads");
            assert_eq!(verdict["count"], at[0]);
        }
    }
    // Ids are judged at the end, and still only an earlier fault of theirs counts.
    for (number, (broken, twice, expected)) in
        [(127, 129, "entry-hash"), (300, 129, "duplicate-entry-id")].into_iter().enumerate()
    {
        let mut lines = ledger(600, |sequence, draft| {
            draft.set("timestamp", r#""2026-11-25T03:00:00.000000Z""#);
            if sequence == twice {
                draft.set("entry_id", vectors::id(1));
            }
        });
        let text = String::from_utf8(lines[broken].clone()).expect("UTF-8");
        lines[broken] = text.replace("\"severity\":0", "\"severity\":1").into_bytes();
        let bundle = desk.bundle(&format!("ids-{number}"), &jsonl(&lines), 0, lines.len());
        for threads in ["1", "2", "7"] {
            assert_eq!(desk.code(&bundle, &["--threads", threads]), expected, "{threads} threads");
        }
    }
}

/// Batches are checked apart from each other; the chain must hold across their borders.
#[test]
fn the_chain_is_checked_between_batches() {
    let desk = Desk::new();
    let lines = batches();
    for at in [127, 128, 129, 256] {
        let mut lines = lines.clone();
        lines.remove(at);
        let verdict = desk.verdict(&desk.bundle(&format!("without-{at}"), &jsonl(&lines), 0, 599), &[]);
        assert_eq!((code(&verdict).as_str(), &verdict["fault"]["sequence_number"]), ("sequence", &json!(at)));
    }
    let other = ledger(600, |sequence, draft| {
        draft.set("timestamp", r#""2026-11-25T03:00:00.000000Z""#);
        if sequence > 0 {
            draft.payload("{}");
        }
    });
    let spliced = [&lines[..128], &other[128..]].concat();
    let verdict = desk.verdict(&desk.bundle("spliced", &jsonl(&spliced), 0, 600), &[]);
    assert_eq!((code(&verdict).as_str(), &verdict["fault"]["sequence_number"]), ("chain", &json!(128)));
}

#[test]
fn what_cannot_be_looked_at_is_not_called_wrong() {
    let desk = Desk::new();
    let lines = sound();
    let bundle = desk.bundle("bundle", &jsonl(&lines), 0, lines.len());
    let exit = |bundle: &Path, arguments: &[&str]| desk.run(bundle, arguments).status.code();
    assert_eq!(exit(&bundle, &[]), Some(0));
    assert_eq!(exit(&desk.path("nothing"), &[]), Some(2));
    assert_eq!(exit(&bundle, &["--origin", "{bad"]), Some(2));
    assert_eq!(exit(&bundle, &["--genesis", "abc"]), Some(2));
    assert_eq!(exit(&bundle, &["--threads", "0"]), Some(2));
    assert_eq!(exit(&bundle, &["--unknown"]), Some(2));
    let key = |text: &str| {
        fs::write(desk.path("trusted.pem"), text).expect("written");
        exit(&bundle, &[])
    };
    let pem = public(&trusted_key()).to_pem();
    assert_eq!(key(""), Some(2));
    assert_eq!(key(&pem.replace("PUBLIC", "PRIVATE")), Some(2));
    assert_eq!(key(&pem[..pem.len() - 40]), Some(2));
    // A key of another curve (P-384), and a point that is not on the curve.
    assert_eq!(key(P384), Some(2));
    assert_eq!(key(OFF_CURVE), Some(2));
    assert_eq!(key(&pem), Some(0));
    fs::remove_file(desk.path("trusted.pem")).expect("removed");
    assert_eq!(exit(&bundle, &[]), Some(2));
}

const P384: &str = "-----BEGIN PUBLIC KEY-----\n\
    MHYwEAYHKoZIzj0CAQYFK4EEACIDYgAE5aB44U9He3pYq83bhPfq8+hqEcxrOf9d\n\
    PU5PxkHgkeA/a8Km7sppFfOtsSzXcqmXPKXKDuxhkYMgghJ+TKqssPLhomB5JN0s\n\
    o0B1wA0hxokttdkV8EvR1pnkBntIuqSK\n\
    -----END PUBLIC KEY-----\n";

/// The trusted key with one bit of y changed.
const OFF_CURVE: &str = "-----BEGIN PUBLIC KEY-----\n\
    MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEHhhTL9R1TALzBB2cdc6zO4P/2BrH\n\
    zk/ogsyxyYvFiW6kbDEcTi/0DdlqNlPm5FRF0y3+SG7O11x6kMahiIHAog==\n\
    -----END PUBLIC KEY-----\n";

#[test]
fn people_get_the_verdict_first_and_the_help_tells_exit_codes() {
    let desk = Desk::new();
    let lines = sound();
    let text = |bundle: &Path, arguments: &[&str]| {
        let output = desk.run(bundle, arguments);
        assert!(output.stderr.is_empty(), "no bar where nobody watches");
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    let good = desk.bundle("good", &jsonl(&lines), 0, lines.len());
    let report = text(&good, &[]);
    assert!(report.starts_with(&format!("VERIFIED: {ORIGIN}\n")), "{report}");
    assert!(report.contains("Not checked:") && report.contains("completeness"), "{report}");
    assert_eq!(text(&good, &["--quiet"]), "");

    let mut swapped = lines.clone();
    swapped.swap(3, 4);
    let bad = desk.bundle("bad", &jsonl(&swapped), 0, lines.len());
    let report = text(&bad, &[]);
    assert!(report.starts_with("NOT VERIFIED: "), "{report}");
    assert!(
        report.contains("entry 3 (line 4) of entries.jsonl") && report.contains("(sequence)"),
        "{report}"
    );
    assert!(report.contains("What it may mean:"), "{report}");
    assert_eq!((text(&bad, &["-q"]).as_str(), desk.run(&bad, &["-q"]).status.code()), ("", Some(1)));

    let help = text(&good, &["--help"]);
    assert!(["Exit codes:", "  0  ", "  1  ", "  2  "].iter().all(|part| help.contains(part)), "{help}");
}

/// What the daemon streams, the client unpacks, and the writer of directories writes are the same.
#[test]
fn writers_agree() {
    let desk = Desk::new();
    let lines = vectors::commits(6, 0, &[2], |_, _| {});
    let dir = desk.path("written");
    let mut writer = DirectoryWriter::create(&dir, contents(&lines)).expect("a new folder");
    lines.iter().for_each(|line| writer.append(line).expect("written"));
    notes_of(&lines).iter().for_each(|note| writer.append_checkpoint(note).expect("written"));
    assert!(!dir.join("manifest.json").exists());
    let manifest = writer.finish().expect("written");
    let unpacked = desk.path("unpacked");
    let mut bytes = 0;
    let from_tar =
        unpack(&tar(&lines)[..], &unpacked, |_, piece| bytes += piece.len() as u64).expect("a bundle");
    assert_eq!(from_tar, manifest);
    assert!(bytes > 0);
    let by_hand = desk.bundle("by-hand", &jsonl(&lines), 0, lines.len());
    for file in FILES.into_iter().filter(|file| *file != "proofs.json") {
        let expected = fs::read(by_hand.join(file)).expect("read");
        assert_eq!(fs::read(dir.join(file)).expect("read"), expected, "{file}");
        assert_eq!(fs::read(unpacked.join(file)).expect("read"), expected, "{file}");
    }
    assert!(desk.verdict(&dir, &[])["ok"] == true);

    let taken = DirectoryWriter::create(&dir, contents(&lines)).err().expect("refused");
    assert_eq!(taken.kind(), std::io::ErrorKind::AlreadyExists);
    let writer = |entries, checkpoints| {
        TarWriter::new(Vec::new(), contents(&lines), Sizes { entries, checkpoints }).expect("written")
    };
    assert!(writer(1, 0).append(b"xx").is_err());
    assert!(writer(1, 0).finish().is_err());
    assert!(writer(0, 1).finish().is_err());
    assert!(writer(0, 1).append_checkpoint(&contents(&lines).checkpoint).is_err());
    // What breaks off leaves nothing behind, and an empty directory as it was.
    let (broken, empty) = (desk.path("broken"), desk.path("empty"));
    fs::create_dir(&empty).expect("a directory");
    for dir in [&broken, &empty] {
        assert!(unpack(&tar(&lines)[..5_000], dir, |_, _| {}).is_err());
    }
    assert!(!broken.exists());
    assert_eq!(fs::read_dir(&empty).expect("still there").count(), 0);
    assert!(!desk.path("broken").join("manifest.json").exists());
}

#[derive(Debug, Clone)]
enum Damage {
    Flip(usize, u8),
    Drop(usize),
    Repeat(usize),
    Swap(usize, usize),
}

fn damage(lines: usize) -> impl Strategy<Value = Damage> {
    prop_oneof![
        4 => (any::<usize>(), 0..8u8).prop_map(|(at, bit)| Damage::Flip(at, bit)),
        // All but the last: a cut tail cannot be seen.
        1 => (0..lines - 1).prop_map(Damage::Drop),
        1 => (0..lines).prop_map(Damage::Repeat),
        1 => (0..lines, 1..lines).prop_map(move |(a, by)| Damage::Swap(a, (a + by) % lines)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whoever changes anything, and makes the files agree with each other again, is found out.
    #[test]
    fn no_damage_goes_unseen(damage in damage(6)) {
        let desk = Desk::new();
        let mut lines = sound();
        let mut entries = None;
        match damage {
            Damage::Flip(at, bit) => {
                let mut bytes = jsonl(&lines);
                let at = at % bytes.len();
                bytes[at] ^= 1 << bit;
                entries = Some(bytes);
            }
            Damage::Drop(at) => drop(lines.remove(at)),
            Damage::Repeat(at) => lines.insert(at, lines[at].clone()),
            Damage::Swap(a, b) => lines.swap(a, b),
        }
        let entries = entries.unwrap_or_else(|| jsonl(&lines));
        let bundle = desk.bundle("bundle", &entries, 0, lines.len());
        let output = desk.run(&bundle, &["--quiet"]);
        prop_assert_eq!(output.status.code(), Some(1));
    }

    #[test]
    fn no_flipped_bit_of_a_file_goes_unseen(file in 0..6usize, at in any::<usize>(), bit in 0..8u8) {
        let desk = Desk::new();
        let lines = vectors::commits(6, 0, &[2], |_, _| {});
        let bundle = desk.bundle("bundle", &jsonl(&lines), 0, lines.len());
        let tar = desk.tar("bundle.tar", &lines);
        let (path, bundle) = match FILES.into_iter().filter(|file| *file != "proofs.json").nth(file) {
            Some(name) => (bundle.join(name), bundle),
            None => (tar.clone(), tar),
        };
        let mut bytes = fs::read(&path).expect("read");
        let at = at % bytes.len();
        bytes[at] ^= 1 << bit;
        fs::write(&path, bytes).expect("written");
        prop_assert_eq!(desk.run(&bundle, &["--quiet"]).status.code(), Some(1));
    }
}

/// The ledger of an accepted vector.
fn lines_of(name: &str) -> Vec<Vec<u8>> {
    let vector = vectors::all().into_iter().find(|vector| vector.name == name).expect("a vector");
    assert!(vector.expect.is_none());
    vector.lines
}

/// Entries from outside a range, under the checkpoint of all.
fn context(lines: &[Vec<u8>], indices: &[usize]) -> Vec<Context> {
    let mut edge = Edge::new();
    let tiles: Vec<TileBytes> = edge.extend(lines.iter().map(|line| hash_of(line))).expect("room");
    let read = |tile: Tile| tiles.iter().find(|t| t.tile == tile).map(|t| t.bytes.clone()).ok_or(());
    let size = TreeSize::new(lines.len() as u64).expect("a size");
    let mut tree = Tree::new(size, read);
    let entry = |index: usize| String::from_utf8(lines[index].clone()).expect("UTF-8");
    indices
        .iter()
        .map(|index| Context {
            entry: entry(*index),
            index: *index as u64,
            path: tree.inclusion(*index as u64, size).expect("a path"),
        })
        .collect()
}

#[test]
fn a_checkpoint_is_of_the_key_that_signed_the_last_entry_in_it() {
    let desk = Desk::new();
    let (rotated, revoked) = (lines_of("keys-rotated"), lines_of("keys-revoked"));
    let newest = |name: &str, lines: &[Vec<u8>], size: usize, key: &SigningKey| {
        let mut files = files(&jsonl(lines));
        files[2].1 = vectors::note(root_of(&lines[..size]), key, ORIGIN).as_str().into();
        desk.code(&desk.lay_out(name, &files, 0, lines.len()), &[])
    };
    let (trusted, other) = (trusted_key(), other_key());
    assert_eq!(newest("by-new", &rotated, 5, &other), "");
    assert_eq!(newest("by-old", &rotated, 5, &trusted), "note-signature");
    assert_eq!(newest("of-old", &rotated, 3, &trusted), "", "it ends with the rotation");
    assert_eq!(newest("of-old-by-new", &rotated, 3, &other), "note-signature");
    assert_eq!(newest("of-activation-by-old", &rotated, 4, &trusted), "note-signature");
    assert_eq!(newest("still-trusted", &revoked, 2, &trusted), "");
    assert_eq!(newest("not-any-more", &revoked, 3, &trusted), "key-revoked");

    let known = |name: &str, lines: &[Vec<u8>], size: usize, key: &SigningKey| {
        let path = desk.path(&format!("{name}.note"));
        fs::write(&path, vectors::note(root_of(&lines[..size]), key, ORIGIN).as_str()).expect("written");
        let bundle = desk.bundle(name, &jsonl(lines), 0, lines.len());
        desk.code(&bundle, &["--known-checkpoint", path.to_str().expect("UTF-8")])
    };
    assert_eq!(known("known", &rotated, 3, &trusted), "");
    assert_eq!(known("known-new", &rotated, 4, &other), "");
    assert_eq!(known("known-by-new", &rotated, 3, &other), "note-signature");
    assert_eq!(known("known-by-old", &rotated, 4, &trusted), "note-signature");
    assert_eq!(known("known-trusted", &revoked, 2, &trusted), "");
    assert_eq!(known("known-revoked", &revoked, 3, &trusted), "key-revoked");
}

#[test]
fn a_part_shows_the_keys_by_which_it_is_judged() {
    let desk = Desk::new();
    let lines = lines_of("keys-revoked");
    let part = |name: &str, range: std::ops::Range<usize>, indices: &[usize]| {
        let (mut proofs, notes) = proofs(&lines, &range, lines.len());
        assert!(notes.is_empty(), "mode each");
        proofs.context = context(&lines, indices);
        let mut files = part_files(&lines, range.clone(), lines.len());
        files[4].1 = proofs.to_line().into_bytes();
        desk.verdict(&desk.lay_out(name, &files, range.start as u64, range.len()), &[])
    };
    for (name, range, indices, expected) in [
        ("after", 4..6, &[0, 2, 3][..], ""),
        ("after-by-genesis-alone", 4..6, &[0], "unknown-key"),
        ("after-not-activated", 4..6, &[0, 2], "key-activation"),
        ("after-not-rotated", 4..6, &[0, 3], "unknown-key"),
        ("across", 2..4, &[0, 5], ""),
        ("to-the-rotation", 1..3, &[0, 3, 5], ""),
        ("to-the-rotation-alone", 1..3, &[0], "key-activation"),
        ("before", 0..2, &[2, 3, 5], ""),
        ("before-unrevoked", 0..2, &[2, 3], ""),
        ("before-alone", 0..2, &[], "note-signature"),
        ("before-rotated", 0..2, &[2], "key-activation"),
        ("before-activated", 0..2, &[3], "unknown-key"),
        ("between", 3..5, &[0, 2, 5], ""),
    ] {
        let verdict = part(name, range, indices);
        assert_eq!(code(&verdict), expected, "{name}: {verdict}");
    }
    let said = part("said", 4..6, &[0, 2, 3]).to_string();
    assert!(said.contains("was named by the key before it"), "{said}");
    assert!(said.contains("is trusted up to its checkpoint of 2 entries"), "{said}");
}
