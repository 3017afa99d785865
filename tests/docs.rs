//! The documents, held against the program: an example that does not compute, a table that lacks a
//! row or an option that is described nowhere is a fault like any other.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use attestd::audit::{TrustedKeys, check_entry};
use attestd::bundle::Manifest;
use attestd::ledger::canonical;
use attestd::ledger::code::Code;
use attestd::ledger::entry::{DAEMON_MEMBERS, MEMBERS};
use attestd::ledger::hash::Digest;
use attestd::ledger::json;
use attestd::ledger::key::PublicKey;

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The examples of `docs/format.md`: the fenced block after each `<!-- example: NAME -->`.
fn examples() -> BTreeMap<String, String> {
    let page = read("docs/format.md");
    let mut examples = BTreeMap::new();
    for part in page.split("<!-- example: ").skip(1) {
        let (name, rest) = part.split_once(" -->\n```").expect("a block follows the marker");
        let (_, rest) = rest.split_once('\n').expect("the block's language");
        let (block, _) = rest.split_once("\n```").expect("the block ends");
        examples.insert(name.to_owned(), block.to_owned());
    }
    examples
}

/// The rows of the first table under `heading`, cell by cell, without back quotes.
fn table(page: &str, heading: &str) -> Vec<Vec<String>> {
    let (_, section) = page.split_once(&format!("\n{heading}\n")).expect("the heading is there");
    let rows = section.lines().skip_while(|line| !line.starts_with("|---"));
    rows.skip(1)
        .take_while(|line| line.starts_with('|'))
        .map(|line| line.trim_matches('|').split('|').map(|cell| cell.trim().replace('`', "")).collect())
        .collect()
}

#[test]
fn the_worked_example_computes() {
    let examples = examples();
    let example = |name: &str| examples.get(name).unwrap_or_else(|| panic!("no example {name}")).as_str();
    let entry = example("entry");
    let key = PublicKey::from_pem(example("key")).expect("a key");
    assert_eq!(key.id().to_string(), example("key_id"));

    // Sound as a whole, and so is the genesis before it.
    let keys = TrustedKeys::only(key);
    let view = check_entry(entry.as_bytes(), &keys).expect("the example holds");
    let genesis = check_entry(example("genesis").as_bytes(), &keys).expect("the genesis holds");
    assert_eq!(view.prev_entry_hash, genesis.entry_hash);
    assert_eq!(view.prev_entry_hash.to_hex(), example("prev_entry_hash"));
    assert_eq!(view.composite_score.to_string(), "8.125");

    // Each value that the page shows, from the bytes that it shows.
    assert_eq!(view.action_payload, example("payload"));
    assert_eq!(Digest::of(example("payload").as_bytes()).to_hex(), example("action_hash"));
    let without = |line: &str, name: &str| {
        let value = json::member(line, name).expect("there");
        line.replacen(&format!(",\"{name}\":{value}"), "", 1)
    };
    assert_eq!(without(&without(entry, "entry_hash"), "hsm_signature"), example("hashed"));
    assert_eq!(Digest::of(example("hashed").as_bytes()).to_hex(), example("entry_hash"));
    assert_eq!(view.hsm_signature, example("signature"));
    assert_eq!(canonical::encode(&view).seal(view.hsm_signature.as_bytes()), entry.as_bytes());

    let manifest = Manifest::parse(format!("{}\n", example("manifest")).as_bytes()).expect("a manifest");
    let entries = format!("{}\n{entry}\n", example("genesis"));
    assert_eq!(manifest.files["entries.jsonl"].sha256, Digest::of(entries.as_bytes()));
    assert_eq!(
        manifest.files["public-key.pem"].sha256,
        Digest::of(format!("{}\n", example("key")).as_bytes())
    );
    assert_eq!((manifest.first, manifest.count), (0, 2));
}

#[test]
fn the_worked_example_computes_with_openssl_alone() {
    let examples = examples();
    let dir = tempfile::tempdir().expect("a directory");
    fs::write(dir.path().join("entry.json"), &examples["entry"]).expect("written");
    fs::write(dir.path().join("key.pem"), format!("{}\n", examples["key"])).expect("written");
    let script = format!("set -euo pipefail\n{}", examples["openssl"]);
    let output = std::process::Command::new("bash")
        .args(["-c", &script])
        .current_dir(dir.path())
        .output()
        .expect("bash runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8(output.stdout).expect("UTF-8");
    assert_eq!(said, format!("Verified OK\n{}\n", examples["key_id"]));
}

#[test]
fn the_tables_are_those_of_the_program() {
    let page = read("docs/format.md");
    let members = table(&page, "## The entry");
    let names: Vec<&str> = members.iter().map(|row| row[0].as_str()).collect();
    assert_eq!(names, MEMBERS, "the members, in canonical order");
    for row in &members {
        assert_eq!(
            row[2] == "D",
            DAEMON_MEMBERS.contains(&row[0].as_str()),
            "{} is set by {}",
            row[0],
            row[2]
        );
    }

    let codes = table(&page, "## Codes");
    assert_eq!(codes.len(), Code::ALL.len());
    for (row, code) in codes.iter().zip(Code::ALL) {
        assert_eq!(row[0], code.as_str(), "in the order of the program");
        let status = match code.status() {
            0 => "–".to_owned(),
            status => status.to_string(),
        };
        assert_eq!(row[1], status, "{code}");
        assert!(code.status() != 0 || row[2] != "–", "{code}: neither daemon nor verifier says it");
        assert_eq!(row[3], code.title().replace('`', ""), "{code}");
        assert!(!row[4].is_empty(), "{code}: when?");
    }
}

#[test]
fn links_between_documents_lead_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let pages = fs::read_dir(root.join("docs")).expect("there").map(|entry| entry.expect("readable").path());
    for page in pages.chain([root.join("README.md"), root.join("CHANGELOG.md")]) {
        let text = fs::read_to_string(&page).expect("readable");
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = target.split('#').next().unwrap_or_default();
            if target.is_empty() || target.contains("://") {
                continue;
            }
            let path = page.parent().expect("a folder").join(target);
            assert!(path.exists(), "{} links to {target}", page.display());
        }
    }
}

#[test]
fn every_option_is_explained_to_the_operator() {
    let page = read("docs/operations.md");
    let mut section = String::new();
    let mut options = 0;
    for line in read("attestd.toml").lines() {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            section = format!("{name}.");
        }
        // An option or its default, not prose: `name = …` or `#name = …`.
        let line = line.strip_prefix('#').unwrap_or(line);
        let Some((name, _)) = line.split_once(" = ") else { continue };
        if name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_') {
            options += 1;
            assert!(page.contains(&format!("\n| `{section}{name}` |")), "{section}{name} is not explained");
        }
    }
    assert!(options > 20, "the configuration was not read");
}

#[cfg(feature = "daemon")]
#[test]
fn every_route_is_in_the_api_page() {
    let page = read("docs/api.md");
    for (method, path) in attestd::server::routes::ROUTES {
        assert!(page.contains(&format!("## `{method} {path}")), "{method} {path} is not described");
    }
    let openapi: serde_json::Value = serde_json::from_str(&read("src/server/openapi.json")).expect("JSON");
    for parameter in openapi["paths"]["/v1/entries"]["get"]["parameters"].as_array().expect("an array") {
        let name = parameter["name"].as_str().expect("a string");
        assert!(page.contains(&format!("| `{name}` |")), "the parameter {name} is not described");
    }
}

#[cfg(feature = "daemon")]
#[test]
fn attestctls_exit_codes_are_those_of_the_api_page() {
    let page = read("docs/api.md");
    for (code, _) in attestd::ctl::cli::EXIT_CODES {
        assert!(page.contains(&format!("\n| {code} |")), "exit code {code} is not described");
    }
}
