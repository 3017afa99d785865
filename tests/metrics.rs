//! The figures for Prometheus: in its format to the letter, true, and nothing in them of an entry, a
//! caller or a secret.

#![cfg(feature = "daemon")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use common::{Daemon, ORIGIN, REQUEST, World, inject, request};

/// Samples by name and labels, after each rule of the format was held against the page.
fn scrape(daemon: &Daemon) -> BTreeMap<String, f64> {
    let answer = daemon.get("/metrics");
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let text = answer.text();
    assert!(
        text.is_ascii() && text.ends_with('\n') && !text.contains("\n\n") && !text.contains('\r'),
        "{text}"
    );
    let (mut samples, mut families) = (BTreeMap::new(), BTreeSet::new());
    let (mut helped, mut family) = (String::new(), (String::new(), String::new()));
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, words) = help.split_once(' ').expect("a name and words");
            assert!(families.insert(name.to_owned()), "{name} twice");
            assert!(words.len() > 10 && words.ends_with('.') && !words.contains('\\'), "{line}");
            helped = name.to_owned();
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').expect("a name and a kind");
            assert_eq!(name, helped, "TYPE follows its HELP");
            assert!(["counter", "gauge", "summary"].contains(&kind), "{line}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            family = (name.to_owned(), kind.to_owned());
        } else {
            let (series, value) = line.rsplit_once(' ').expect("a sample");
            let name = series.split('{').next().expect("a name");
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{line}");
            let suffix =
                name.strip_prefix(&family.0).unwrap_or_else(|| panic!("{line} is not below its family"));
            assert!(suffix.is_empty() != (family.1 == "summary"), "{line}");
            if let Some(labels) = series.strip_prefix(name).filter(|labels| !labels.is_empty()) {
                let inner = labels.strip_prefix('{').and_then(|labels| labels.strip_suffix("\"}"));
                for label in inner.expect("labels").split("\",") {
                    let (label, value) = label.split_once("=\"").expect("a label");
                    assert!(["code", "detail", "kind", "version"].contains(&label), "{line}");
                    let free = label == "detail";
                    assert!(!value.is_empty() && !value.contains('"'), "{line}");
                    assert!(
                        free || value.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.".contains(&b)),
                        "{line}"
                    );
                }
            }
            let value: f64 = value.parse().expect("a number");
            assert!(value.is_finite() && value >= 0.0, "{line}");
            assert!(samples.insert(series.to_owned(), value).is_none(), "{series} twice");
        }
    }
    samples
}

fn of(samples: &BTreeMap<String, f64>, name: &str) -> f64 {
    *samples.get(name).unwrap_or_else(|| panic!("no {name}: {samples:#?}"))
}

#[test]
fn the_figures_are_true() {
    let world = World::without_ledger();
    world.configure("anchor", "file = \"anchor\"");
    assert!(world.attestd(&["init"]).status.success());
    let daemon = world.serve();
    let before = scrape(&daemon);
    for _ in 0..5 {
        daemon.append(REQUEST);
    }
    daemon.post("/v1/entries", request(r#","severity":11"#)).problem(400, "wrong-value");
    let two_bad = format!("{REQUEST}\n{{}}\n\n{{}}\n");
    assert_eq!(daemon.post("/v1/entries:batch", two_bad).lines().len(), 3);
    daemon.get("/nowhere").problem(404, "not-found");
    let broken = request(r#","k_state":2"#);
    for _ in 0..3 {
        assert_eq!(daemon.post("/v1/entries", &broken).status, 422);
    }
    // In mode `each` the first checkpoint comes a moment after the entries.
    let deadline = Instant::now() + Duration::from_secs(30);
    while !scrape(&daemon).contains_key("attestd_checkpoint_entries") {
        assert!(Instant::now() < deadline, "no checkpoint");
        std::thread::sleep(Duration::from_millis(50));
    }
    let after = scrape(&daemon);
    let grew = |name: &str| of(&after, name) - before.get(name).copied().unwrap_or(0.0);
    assert_eq!(grew("attestd_entries_committed_total"), 7.0, "six of ours, one violation");
    assert_eq!(grew("attestd_ledger_entries"), 7.0);
    assert_eq!(grew("attestd_refused_total{code=\"wrong-value\"}"), 1.0);
    assert_eq!(grew("attestd_refused_total{code=\"missing-member\"}"), 2.0);
    assert_eq!(grew("attestd_refused_total{code=\"not-found\"}"), 1.0);
    assert_eq!(grew("attestd_refused_total{code=\"invariant-5-k1-state\"}"), 3.0);
    assert_eq!(grew("attestd_violations_total"), 3.0);
    assert!(grew("attestd_commit_seconds_count") >= 6.0 && grew("attestd_commit_seconds_sum") > 0.0);
    assert!(grew("attestd_sign_seconds_count") >= 6.0 && grew("attestd_sign_seconds_sum") > 0.0);
    let refused: f64 = after
        .iter()
        .filter(|(name, _)| name.starts_with("attestd_refused_total"))
        .map(|(_, count)| count)
        .sum();
    assert_eq!(daemon.get("/v1/stats").json()["refused_since_start"].as_f64(), Some(refused));
    for (name, value) in [
        ("attestd_ready", 1.0),
        ("attestd_token_up", 1.0),
        ("attestd_token_away_seconds", 0.0),
        ("attestd_token_losses_total", 0.0),
        ("attestd_clock_jumped", 0.0),
        ("attestd_proposals_open", 0.0),
        ("attestd_queue_entries", 0.0),
        ("attestd_connections", 1.0),
        ("attestd_memory_limit_bytes", 33_554_432.0),
    ] {
        assert_eq!(of(&after, name), value, "{name}");
    }
    assert!(of(&after, "attestd_checkpoint_entries") >= 2.0);
    assert!(after.contains_key("attestd_anchor_lag_entries{kind=\"file\"}"));
    assert!(of(&after, "attestd_resident_memory_bytes") > 1e6);
    assert_eq!(of(&after, &format!("attestd_build_info{{version=\"{}\"}}", env!("CARGO_PKG_VERSION"))), 1.0);

    // Nothing of anybody's.
    let text = daemon.get("/metrics").text();
    let pin = std::fs::read_to_string(world.dir().join("hsm/pin")).expect("readable");
    let entry = daemon.get("/v1/entries/2").json();
    let key = daemon.get("/v1/keys").json()["keys"][0]["key_id"].as_str().expect("text").to_owned();
    for secret in [pin.trim(), ORIGIN, "uid", &key, entry["entry_id"].as_str().expect("text")] {
        assert!(!text.contains(secret), "{secret}: {text}");
    }
    assert!(daemon.stop().success());
    world.audit();
}

#[test]
fn a_token_that_goes_and_comes_is_seen() {
    let world = World::new();
    world.use_shim();
    inject(&world.shim_control(), "");
    let daemon = world.serve();
    inject(&world.shim_control(), "return C_Sign CKR_DEVICE_ERROR\n");
    daemon.post("/v1/entries", REQUEST).problem(503, "outcome-unknown");
    let away = scrape(&daemon);
    assert_eq!((of(&away, "attestd_token_up"), of(&away, "attestd_ready")), (0.0, 0.0));
    assert_eq!(of(&away, "attestd_token_losses_total"), 1.0);
    let why = away.keys().find(|series| series.starts_with("attestd_not_ready{")).expect("why");
    assert!(
        why.starts_with("attestd_not_ready{code=\"token-unavailable\",detail=\"the token is away: "),
        "{why}"
    );
    assert!(why.contains("C_Sign: DeviceError"), "in the module's words: {why}");
    std::thread::sleep(Duration::from_millis(300));
    let longer = of(&scrape(&daemon), "attestd_token_away_seconds");
    assert!(longer >= 0.3 + of(&away, "attestd_token_away_seconds"), "{longer}");
    inject(&world.shim_control(), "");
    let deadline = Instant::now() + Duration::from_secs(60);
    while of(&scrape(&daemon), "attestd_token_up") == 0.0 {
        assert!(Instant::now() < deadline, "{}", daemon.log());
        std::thread::sleep(Duration::from_millis(20));
    }
    let back = scrape(&daemon);
    assert_eq!(
        (of(&back, "attestd_token_away_seconds"), of(&back, "attestd_token_losses_total")),
        (0.0, 1.0)
    );
    assert!(!back.keys().any(|series| series.starts_with("attestd_not_ready")));
    assert!(daemon.stop().success());
    world.audit();
}

#[test]
fn who_may_do_nothing_may_still_look() {
    let world = World::new();
    let rules = "[[callers]]\nname = \"nobody else\"\nuid = 4711\nverbs = [\"append\"]\n";
    std::fs::write(world.dir().join("rules.toml"), rules).expect("written");
    world.configure("rules", "file = \"rules.toml\"");
    let daemon = world.serve();
    daemon.get("/v1/stats").problem(403, "caller-not-allowed");
    assert_eq!(of(&scrape(&daemon), "attestd_token_up"), 1.0);
    assert!(daemon.stop().success());
    world.audit();
}
