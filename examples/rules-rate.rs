//! How long it takes to judge an event, without rules and with a thousand callers and a thousand
//! actions of which the last ones match.
//!
//!     cargo run --release --example rules-rate

use std::hint::black_box;
use std::time::Instant;

use attestd::governance::caller::Peer;
use attestd::governance::governor::Standing;
use attestd::governance::rules::{InForce, Rules};
use attestd::ledger::draft::Draft;
use attestd::ledger::entry::EntryId;
use attestd::ledger::timestamp::Timestamp;

const ROUNDS: u32 = 20_000;

fn main() {
    let draft = Draft::parse(
        br#"{"event_type":"ACTION","action_type":"work.run","action_payload":{"to":2},"execution_status":"SUCCESS","actor_type":"SYSTEM"}"#,
    )
    .expect("a request");
    let peer = Peer { uid: 5_000, ..Peer::default() };
    let standing = |rules| Standing {
        origin: "o".into(),
        rules,
        attribution_verified: true,
        keys: Default::default(),
        generation: 0,
    };
    let none = standing(InForce::default());
    let many = standing(InForce::new(Some(Rules::from_canonical(&thousand()).expect("rules"))));

    measure("judge, no rules", || none.append(&draft, &peer, EntryId([0; 16]), Timestamp::EPOCH).is_ok());
    measure("judge, 1,000 callers and 1,000 actions", || {
        many.append(&draft, &peer, EntryId([0; 16]), Timestamp::EPOCH).is_ok()
    });
    measure("of which the caller", || many.rules.caller(&peer).is_some());
    measure("of which the action", || many.rules.demand("work.run").approvals == 0);
}

fn measure(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    for _ in 0..ROUNDS {
        assert!(black_box(done()), "{what}");
    }
    println!("{what}: {:.2} µs", start.elapsed().as_secs_f64() * 1e6 / f64::from(ROUNDS));
}

/// The last caller and the last action match; neither asks for anything.
fn thousand() -> String {
    let caller = |n: u32| {
        format!(
            r#"{{"actor_ids":[],"actor_types":[],"clearance":0,"event_types":[],"name":"c{n}","uid":{},"verbs":["append"]}}"#,
            4_001 + n
        )
    };
    let action = |n: u32| {
        let kind = if n == 999 { "work.*".to_owned() } else { format!("work.{n}.*") };
        format!(
            r#"{{"approvals":0,"clearance":0,"lifetime_seconds":60,"proofs":[],"rejection_blocks":true,"roles":[],"type":"{kind}"}}"#
        )
    };
    let (callers, actions): (Vec<_>, Vec<_>) = (0..1_000).map(|n| (caller(n), action(n))).unzip();
    format!(
        r#"{{"actions":[{}],"approvers":[],"callers":[{}],"pillars":{{"floor":"7","weights":{{"an_toan":1,"duong_dai":1,"han_che_rui_ro":1,"tin_vao_so_lieu":1}}}},"provers":[]}}"#,
        actions.join(","),
        callers.join(",")
    )
}
