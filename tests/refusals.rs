//! What bad input gets: a request that is not taken is answered with a problem document that names
//! what is wrong and where, leaves nothing in the ledger, and costs the next client nothing.
//!
//! All of it goes as raw bytes over the real socket. Each refusal has a twin that is one step away
//! and is taken, so that a daemon that refuses everything does not pass.

#![cfg(feature = "daemon")]

mod common;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use attestd::ledger::code::Code;
use attestd::ledger::draft::NEEDED;
use attestd::ledger::entry::{DAEMON_MEMBERS, MEMBERS};
use common::{Answer, Daemon, REQUEST, World, request};
use serde_json::{Value, json};

const ID: &str = "6f1c2a7e-3b4d-4c5e-8f90-112233445566";
/// `limits.entry_bytes` and `limits.request_bytes` when nothing is configured.
const ENTRY_BYTES: usize = 64 << 10;
const REQUEST_BYTES: usize = 1 << 20;

/// Holds `body` to be refused with `code` at `pointer`.
fn refused(daemon: &Daemon, body: impl AsRef<[u8]>, status: u16, code: &str, pointer: &str) -> Value {
    let body = body.as_ref();
    let answer = daemon.post("/v1/entries", body);
    let shown = String::from_utf8_lossy(&body[..body.len().min(300)]).into_owned();
    assert_eq!(
        (answer.status, answer.json()["code"].as_str()),
        (status, Some(code)),
        "{shown}: {}",
        answer.text()
    );
    let problem = answer.problem(status, code);
    assert_eq!(problem["pointer"].as_str().unwrap_or_default(), pointer, "{shown}: {problem}");
    problem
}

/// The request with `value`, as it stands, in its payload.
fn with_payload(value: &[u8]) -> Vec<u8> {
    let (before, after) = REQUEST.split_once(r#""action_payload":{}"#).expect("a payload");
    [before.as_bytes(), br#""action_payload":{"x":"#, value, b"}", after.as_bytes()].concat()
}

/// The request with one member set to `value`.
fn with_member(name: &str, value: Value) -> String {
    let mut request: Value = serde_json::from_str(REQUEST).expect("JSON");
    request[name] = value;
    request.to_string()
}

/// Stops the daemon and holds the ledger to contain so many entries of clients.
fn ends_with(world: &World, daemon: Daemon, taken: usize) {
    assert!(daemon.stop().success());
    assert_eq!(world.audit().len(), 3 + taken, "genesis, BOOT, SHUTDOWN, and what was taken");
}

#[test]
fn json_that_two_programs_could_read_differently_is_refused() {
    let world = World::new();
    let daemon = world.serve();
    let deep = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels)).into_bytes();
    let inside: Vec<(&[u8], &str)> = vec![
        (b"nul", "json-syntax"),
        (b"True", "json-syntax"),
        (b"NaN", "json-syntax"),
        (b"01", "json-syntax"),
        (b"+1", "json-syntax"),
        (b".5", "json-syntax"),
        (b"1.", "json-syntax"),
        (b"1e", "json-syntax"),
        (b"0x10", "json-syntax"),
        (b"'a'", "json-syntax"),
        (b"\"\\q\"", "json-syntax"),
        (b"\"\\u12g4\"", "json-syntax"),
        (b"\"a\tb\"", "json-syntax"),
        (b"[1,]", "json-syntax"),
        (b"{\"a\":1,}", "json-syntax"),
        (b"{a:1}", "json-syntax"),
        (b"{\"a\" 1}", "json-syntax"),
        (b"1 /* one */", "json-syntax"),
        (b"\"\\ud800\"", "json-lone-surrogate"),
        (b"\"\\udc00\"", "json-lone-surrogate"),
        (b"\"\\ud800\\u0041\"", "json-lone-surrogate"),
        (b"\"\\ud800\\ud800\"", "json-lone-surrogate"),
        (b"\"\\uffff\"", "json-noncharacter"),
        (b"\"\\ufdd0\"", "json-noncharacter"),
        (b"\"\\ud83f\\udffe\"", "json-noncharacter"),
        (b"\"\xEF\xBF\xBE\"", "json-noncharacter"),
        (b"9007199254740992", "json-number-range"),
        (b"-9007199254740992", "json-number-range"),
        (b"9007199254740991.5", "json-number-range"),
        (b"1e16", "json-number-range"),
        (b"1e400", "json-number-range"),
        (b"0.123456789012345678", "json-number-digits"),
        (b"1e-400", "json-number-underflow"),
        (b"-0", "json-negative-zero"),
        (b"-0.0", "json-negative-zero"),
        (b"-0e5", "json-negative-zero"),
    ];
    let mut seen = BTreeSet::new();
    for (value, code) in inside {
        seen.insert(code.to_owned());
        let problem = daemon.post("/v1/entries", with_payload(value)).problem(400, code);
        let pointer = problem["pointer"].as_str().unwrap_or_default();
        assert!(pointer.starts_with("/action_payload"), "{problem}");
    }
    let mut refused = |body: Vec<u8>, code: &str, pointer: &str| {
        seen.insert(code.to_owned());
        refused(&daemon, body, 400, code, pointer);
    };
    let duplicate = |text: &str| with_payload(text.as_bytes());
    refused(duplicate(r#"{"a":1,"a":1}"#), "json-duplicate-name", "/action_payload/x/a");
    refused(duplicate(r#"[0,{"b":1,"c":2,"\u0062":1}]"#), "json-duplicate-name", "/action_payload/x/1/b");
    refused(request(r#","k_state":1,"k_\u0073tate":1"#).into(), "json-duplicate-name", "/k_state");
    refused(request(r#","event_type":"ACTION""#).into(), "json-duplicate-name", "/event_type");
    for bad in [b"\"\xFF\"".as_slice(), b"\"\xC0\xAF\"", b"\"\xED\xA0\x80\"", b"\"\xF4\x90\x80\x80\""] {
        refused(with_payload(bad), "json-utf8", "");
    }
    refused([b"\xEF\xBB\xBF", REQUEST.as_bytes()].concat(), "json-byte-order-mark", "");
    refused(format!("{REQUEST}x").into(), "json-trailing", "");
    refused(format!("{REQUEST}{REQUEST}").into(), "json-trailing", "");
    let at = format!("/action_payload/x{}", "/0".repeat(30));
    refused(with_payload(&deep(31)), "json-depth", &at);
    // However early it ends, it ends too early.
    for end in 0..REQUEST.len() {
        daemon.post("/v1/entries", &REQUEST[..end]).problem(400, "json-truncated");
    }
    for other in ["[]", "null", "true", "7", "\"x\"", " [ ] "] {
        refused(other.into(), "wrong-type", "");
    }
    for code in Code::ALL.iter().map(|code| code.as_str()).filter(|code| code.starts_with("json-")) {
        assert!(code == "json-truncated" || seen.contains(code), "{code} is not covered");
    }

    let taken: [&[u8]; 9] = [
        b"9007199254740991",
        b"-9007199254740991",
        b"0.12345678901234567",
        b"5e-324",
        b"0",
        b"\"\\ud83d\\ude00\"",
        b"\"\xEF\xBF\xBD\"",
        b"{\"a\":1,\"A\":2,\"\":3}",
        &deep(30),
    ];
    for value in taken {
        daemon.append(with_payload(value));
    }
    daemon.append(format!(" \r\n\t{REQUEST} \r\n"));
    ends_with(&world, daemon, taken.len() + 1);
}

#[test]
fn each_member_is_held_to_its_type() {
    let world = World::new();
    let daemon = world.serve();
    let samples = [json!(null), json!(true), json!(7), json!(1.5), json!("x"), json!([]), json!({})];
    let kind = |value: &Value| match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_i64() => "integer",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    for name in MEMBERS.iter().filter(|name| !DAEMON_MEMBERS.contains(name)) {
        let allowed: &[&str] = match *name {
            "severity" | "required_approvals" | "k_state" => &["integer"],
            "dependencies" | "required_proofs" | "provided_proofs" | "conflicts_detected" => &["array"],
            "actor_context"
            | "action_payload"
            | "system_state_snapshot"
            | "environment"
            | "pillars_scores" => &["object"],
            "result_data" | "error_details" => &["object", "null"],
            "rollback_available" | "rollback_executed" => &["boolean"],
            "rollback_snapshot_hash" => &["string", "null"],
            _ => &["string"],
        };
        for value in samples.iter().filter(|value| !allowed.contains(&kind(value))) {
            let pointer = format!("/{name}");
            refused(&daemon, with_member(name, value.clone()), 400, "wrong-type", &pointer);
        }
    }
    for (name, value, place) in [
        ("dependencies", json!([7]), "/0"),
        ("conflicts_detected", json!(["a", {}]), "/1"),
        ("required_proofs", json!([null]), "/0"),
        ("provided_proofs", json!([{}, "a"]), "/1"),
        ("environment", json!({"a": "b", "x/y~z": 1}), "/x~1y~0z"),
    ] {
        refused(&daemon, with_member(name, value), 400, "wrong-type", &format!("/{name}{place}"));
    }
    ends_with(&world, daemon, 0);
}

#[test]
fn each_member_is_held_to_its_values() {
    let world = World::new();
    let daemon = world.serve();
    let text = |length: usize| "x".repeat(length);
    let pillars =
        |score: Value| json!({"an_toan": score, "duong_dai": 1, "tin_vao_so_lieu": 1, "han_che_rui_ro": 1});
    // An actor id is stored behind the caller's uid, and has to fit there.
    let longest = 256 - format!("uid:{}/", nix::unistd::geteuid()).len();
    let wrong = [
        ("event_type", json!("EVENT")),
        ("event_type", json!("action")),
        ("event_category", json!("normal")),
        ("event_category", json!("")),
        ("actor_type", json!("ROBOT")),
        ("execution_status", json!("DONE")),
        ("execution_status", json!("SUCCESS ")),
        ("severity", json!(11)),
        ("severity", json!(-1)),
        ("severity", json!(256)),
        ("severity", json!(1_000_000_000_000_000_i64)),
        ("required_approvals", json!(-1)),
        ("required_approvals", json!(4_294_967_296_i64)),
        ("entry_id", json!("")),
        ("entry_id", json!("6F1C2A7E-3b4d-4c5e-8f90-112233445566")),
        ("entry_id", json!("6f1c2a7e-3b4d-1c5e-8f90-112233445566")),
        ("entry_id", json!("6f1c2a7e-3b4d-4c5e-7f90-112233445566")),
        ("entry_id", json!("6f1c2a7e3b4d4c5e8f90112233445566")),
        ("entry_id", json!("{6f1c2a7e-3b4d-4c5e-8f90-112233445566}")),
        ("actor_id", json!("")),
        ("actor_id", json!(text(257))),
        ("actor_id", json!(text(longest + 1))),
        ("actor_id", json!("a\u{7}b")),
        ("actor_id", json!("a\u{85}b")),
        ("actor_id", json!("a\u{202e}b")),
        ("actor_id", json!("a\u{2066}b")),
        ("action_type", json!("")),
        ("action_type", json!(text(129))),
        ("action_type", json!("a b")),
        ("action_type", json!("á")),
        ("rollback_snapshot_hash", json!("")),
        ("rollback_snapshot_hash", json!("ab".repeat(31))),
        ("rollback_snapshot_hash", json!("AB".repeat(32))),
        ("pillars_scores", pillars(json!(10.0001))),
        ("pillars_scores", pillars(json!(-0.0001))),
        ("pillars_scores", pillars(json!(1.00001))),
        ("pillars_scores", pillars(json!("7"))),
        ("pillars_scores", pillars(json!(null))),
    ];
    for (name, value) in wrong {
        refused(&daemon, with_member(name, value), 400, "wrong-value", &format!("/{name}"));
    }
    refused(&daemon, with_member("dependencies", json!([ID, "x"])), 400, "wrong-value", "/dependencies/1");
    let mut scores = json!({});
    for name in ["an_toan", "duong_dai", "tin_vao_so_lieu"] {
        scores[name] = json!(8);
        let body = with_member("pillars_scores", scores.clone());
        refused(&daemon, body, 400, "pillars-incomplete", "/pillars_scores");
    }
    scores["safety"] = json!(8);
    refused(&daemon, with_member("pillars_scores", scores), 400, "unknown-member", "/pillars_scores");

    let taken = [
        ("severity", json!(10)),
        ("severity", json!(0)),
        ("k_state", json!(-9_007_199_254_740_991_i64)),
        ("required_approvals", json!(0)),
        ("actor_id", json!(text(longest))),
        ("actor_id", json!("a b/ü 😀")),
        ("action_type", json!(format!("{}aZ0_.:/-", text(120)))),
        ("rollback_snapshot_hash", json!("ab".repeat(32))),
        ("pillars_scores", pillars(json!(10))),
        ("pillars_scores", pillars(json!(0.0001))),
        ("pillars_scores", json!({})),
    ];
    for (name, value) in taken.clone() {
        let mut request: Value = serde_json::from_str(&with_member(name, value)).expect("JSON");
        // A success would have to be over the floor, and in state K1.
        request["execution_status"] = json!("BLOCKED");
        daemon.append(request.to_string());
    }
    // What was sealed at the edge of what is allowed is what a start takes, too.
    assert!(daemon.stop().success());
    let daemon = world.serve();
    assert!(daemon.stop().success());
    assert_eq!(world.audit().len(), 5 + taken.len());
}

#[test]
fn members_that_are_missing_unknown_or_the_daemons_are_refused_by_name() {
    let world = World::new();
    let daemon = world.serve();
    for name in NEEDED {
        let mut value: Value = serde_json::from_str(REQUEST).expect("JSON");
        value.as_object_mut().expect("an object").remove(name);
        refused(&daemon, value.to_string(), 400, "missing-member", &format!("/{name}"));
    }
    for name in DAEMON_MEMBERS {
        refused(&daemon, with_member(name, Value::Null), 400, "daemon-member", &format!("/{name}"));
        let escaped = format!(r#","\u{:04x}{}":null"#, name.as_bytes()[0], &name[1..]);
        refused(&daemon, request(&escaped), 400, "daemon-member", &format!("/{name}"));
    }
    for (name, pointer) in
        [("colour", "/colour"), ("a/b~c", "/a~1b~0c"), ("", "/"), ("Severity", "/Severity")]
    {
        refused(&daemon, with_member(name, json!(1)), 400, "unknown-member", pointer);
    }
    ends_with(&world, daemon, 0);
}

#[test]
fn what_is_the_daemons_to_say_is_refused_to_every_client() {
    let world = World::new();
    let daemon = world.serve();
    for event_type in ["BOOT", "SHUTDOWN"] {
        let body = with_member("event_type", json!(event_type));
        refused(&daemon, body, 400, "reserved-event-type", "/event_type");
    }
    for prefix in ["ledger.", "key.", "rules.", "signature.", "proposal.", "approval.", "system_"] {
        for action_type in [prefix.to_owned(), format!("{prefix}x")] {
            let body = with_member("action_type", json!(action_type));
            refused(&daemon, body, 400, "reserved-action-type", "/action_type");
        }
    }
    for actor in ["attestd", "uid:", "uid:0", "uid:0/x"] {
        refused(&daemon, with_member("actor_id", json!(actor)), 400, "reserved-actor-id", "/actor_id");
    }
    for (extra, pointer) in [
        (r#","actor_context":{"peer":{}}"#, "/actor_context/peer"),
        (r#","actor_context":{"a":1,"\u0070eer":null}"#, "/actor_context/peer"),
        (r#","environment":{"attestd.host":"mine"}"#, "/environment/attestd.host"),
        (r#","environment":{"a":"b","attestd\u002e":"mine"}"#, "/environment/attestd."),
    ] {
        refused(&daemon, request(extra), 400, "reserved-name", pointer);
    }
    let taken = [
        ("action_type", json!("ledgers.x")),
        ("action_type", json!("system")),
        ("actor_id", json!("attestd2")),
        ("actor_id", json!("root/uid:0")),
        ("actor_context", json!({"peers": 1, "x": {"peer": 1}, "Peer": 1})),
        ("environment", json!({"attestd": "a", "attestdx": "b", "z": "c"})),
    ];
    for (name, value) in taken.clone() {
        let entry = daemon.append(with_member(name, value));
        assert_eq!(entry["actor_context"]["peer"]["pid"], std::process::id(), "the kernel's word");
        assert_eq!(entry["environment"]["attestd.rules"], "default");
    }
    ends_with(&world, daemon, taken.len());
}

#[test]
fn proofs_approvals_and_dependencies_that_are_not_there_are_refused() {
    let world = World::new();
    let daemon = world.serve();
    for (name, value, code, pointer) in [
        ("required_proofs", json!(["pillars"]), "invariant-4-pillars", "/required_proofs"),
        ("required_approvals", json!(1), "invariant-6-quorum", "/action_type"),
        ("required_proofs", json!(["audit"]), "proof-failed", "/required_proofs"),
    ] {
        let problem = refused(&daemon, with_member(name, value.clone()), 422, code, pointer);
        let recorded = daemon.get(&format!("/v1/entries/{}", problem["sequence_number"])).json();
        assert_eq!(recorded["event_type"], "VIOLATION");
        assert_eq!(recorded["action_payload"]["attempt"][name], value);
        assert_eq!(recorded["action_payload"]["peer"]["pid"], std::process::id());
    }
    let known = daemon.append(request(
        r#","required_proofs":[],"provided_proofs":[],"required_approvals":0,"dependencies":[]"#,
    ));
    let genesis = daemon.get("/v1/entries/0").json();
    let on = |ids: &[&Value]| with_member("dependencies", json!(ids));
    let unknown = json!(ID);
    refused(&daemon, on(&[&unknown]), 422, "unknown-dependency", "/dependencies/0");
    refused(&daemon, on(&[&known["entry_id"], &unknown]), 422, "unknown-dependency", "/dependencies/1");
    // An entry is not in the ledger before it is.
    let itself = request(&format!(r#","entry_id":"{ID}","dependencies":["{ID}"]"#));
    refused(&daemon, itself, 422, "unknown-dependency", "/dependencies/0");
    let entry = daemon.append(on(&[&known["entry_id"], &genesis["entry_id"]]));
    assert_eq!(entry["dependencies"], json!([known["entry_id"], genesis["entry_id"]]));
    // Beside two of the client's, the three violations.
    ends_with(&world, daemon, 2 + 3);
}

#[test]
fn what_is_too_large_is_refused_and_what_just_fits_is_taken() {
    let world = World::new();
    let daemon = world.serve();
    let sized = |bytes: usize| with_payload(format!("\"{}\"", "y".repeat(bytes)).as_bytes());
    let problem = refused(&daemon, sized(ENTRY_BYTES), 413, "entry-too-large", "");
    let detail = problem["detail"].as_str().expect("a string");
    let would_take: usize = detail.split(' ').find_map(|word| word.parse().ok()).expect("a size");
    let fits = ENTRY_BYTES - (would_take - ENTRY_BYTES);
    refused(&daemon, sized(fits + 1), 413, "entry-too-large", "");
    let answer = daemon.post("/v1/entries", sized(fits));
    assert_eq!(answer.status, 201, "{}", answer.text());
    assert!((ENTRY_BYTES - 512..=ENTRY_BYTES).contains(&answer.body.len()), "{}", answer.body.len());

    let padded = |bytes: usize| format!("{REQUEST}{}", " ".repeat(bytes - REQUEST.len()));
    daemon.append(padded(REQUEST_BYTES));
    refused(&daemon, padded(REQUEST_BYTES + 1), 413, "request-too-large", "");
    let chunked = |body: &str| {
        let head =
            "POST /v1/entries HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n";
        let mut bytes = head.as_bytes().to_vec();
        for piece in body.as_bytes().chunks(60_000) {
            bytes.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
            bytes.extend_from_slice(piece);
            bytes.extend_from_slice(b"\r\n");
        }
        bytes.extend_from_slice(b"0\r\n\r\n");
        Answer::parse(&daemon.raw(&bytes))
    };
    assert_eq!(chunked(&padded(REQUEST_BYTES)).status, 201);
    chunked(&padded(REQUEST_BYTES + 1)).problem(413, "request-too-large");
    // Announced, it is refused before it is sent.
    let head = "POST /v1/entries HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999\r\n\r\n";
    Answer::parse(&daemon.raw(head.as_bytes())).problem(413, "request-too-large");
    ends_with(&world, daemon, 3);
}

#[test]
fn what_is_not_http_or_breaks_off_is_told_so() {
    let world = World::new();
    let daemon = world.serve();
    let problem = |bytes: &[u8], status: u16, code: &str| {
        let answer = daemon.raw(bytes);
        assert!(answer.starts_with(b"HTTP/1.1 "), "{:?} got {:?}", String::from_utf8_lossy(bytes), answer);
        Answer::parse(&answer).problem(status, code);
    };
    let not_http: [&[u8]; 12] = [
        b"garbage\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /livez HTTP/9.9\r\n\r\n",
        b"GET /livez\r\n\r\n",
        b"GET  HTTP/1.1\r\nhost: x\r\n\r\n",
        b"G\x01T /livez HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nbad header: x\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nhost: \x00\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nhost",
        b"POST /v1/entries HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
        b"POST /v1/entries HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n{}",
    ];
    for bytes in not_http {
        problem(bytes, 400, "malformed-http");
    }
    let long = format!("GET /livez HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n", "y".repeat(17 << 10));
    problem(long.as_bytes(), 431, "header-too-large");
    let many = format!("GET /livez HTTP/1.1\r\nhost: x\r\n{}\r\n", "x: y\r\n".repeat(100));
    problem(many.as_bytes(), 431, "header-too-large");
    let post = "POST /v1/entries HTTP/1.1\r\nhost: x\r\n";
    for rest in [
        format!("content-length: {}\r\n\r\n{}", REQUEST.len() + 1, REQUEST),
        format!("transfer-encoding: chunked\r\n\r\n{:x}\r\n{REQUEST}\r\n", REQUEST.len()),
        format!("transfer-encoding: chunked\r\n\r\n{:x}\r\n{REQUEST}", REQUEST.len()),
        "transfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n".to_owned(),
    ] {
        problem(format!("{post}{rest}").as_bytes(), 400, "body-incomplete");
    }
    // A client that has nothing to say is no fault.
    assert_eq!(daemon.raw(b""), b"");
    ends_with(&world, daemon, 0);
}

#[test]
fn paths_methods_and_parameters_that_do_not_exist_are_refused() {
    let world = World::new();
    let daemon = world.serve();
    let entry = daemon.append(REQUEST);
    for path in
        ["/", "/v1", "/v1/entries/", "/v1/entries/0/receipt", "/v2/entries", "/v1/ENTRIES", "/v1/entries:x"]
    {
        daemon.get(path).problem(404, "not-found");
    }
    for path in ["/v1/entries/3", "/v1/entries/9007199254740991", &format!("/v1/entries/{ID}")] {
        daemon.get(path).problem(404, "not-found");
    }
    for (method, path, allowed) in [
        ("DELETE", "/v1/entries/0", "get"),
        ("PUT", "/v1/entries", "post"),
        ("GET", "/v1/entries:batch", "post"),
        ("POST", "/livez", "get"),
        ("GET", "/v1/verify", "post"),
        ("PATCH", "/openapi.json", "get"),
        ("BREW", "/v1/stats", "get"),
    ] {
        let answer = daemon.send(method, path, b"");
        answer.problem(405, "method-not-allowed");
        // RFC 9110 §15.5.6
        assert!(answer.header("allow").is_some_and(|allow| allow.contains(allowed)), "{}", answer.head);
    }
    let upper = format!("/v1/entries/{}", entry["entry_id"].as_str().expect("a string").to_uppercase());
    for path in [
        upper.as_str(),
        "/v1/entries/-1",
        "/v1/entries/01",
        "/v1/entries/1.0",
        "/v1/entries/99999999999999999999",
        "/v1/entries/%20",
        "/v1/entries/%ff",
        "/v1/entries?colour=red",
        "/v1/entries?limit=0",
        "/v1/entries?limit=1001",
        "/v1/entries?limit=",
        "/v1/entries?limit=5&limit=5",
        "/v1/entries?order=up",
        "/v1/entries?event_type=action",
        "/v1/entries?event_category=FATAL",
        "/v1/entries?execution_status=DONE",
        "/v1/entries?severity=11",
        "/v1/entries?severity_min=-1",
        "/v1/entries?since=yesterday",
        "/v1/entries?since=2026-01-31",
        "/v1/entries?until=2026-01-31T12:00:00",
        "/v1/entries?from=01",
        "/v1/entries?to=x",
        "/v1/entries?cursor=first",
        "/v1/export?from=x",
        "/v1/export?to=-1",
        "/v1/export?limit=1",
    ] {
        daemon.get(path).problem(400, "bad-parameter");
    }
    for query in ["seconds=0", "seconds=61", "seconds=x", "minutes=1"] {
        daemon.post(&format!("/v1/bench?{query}"), "").problem(400, "bad-parameter");
    }
    ends_with(&world, daemon, 1);
}

#[test]
fn an_entry_id_is_used_once_and_by_one_caller() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("only root can be another user: skipped");
        return;
    }
    let world = World::without_ledger();
    world.configure("server", "socket_mode = \"0666\"\nsocket_group = \"nogroup\"");
    assert!(world.attestd(&["init"]).status.success());
    let daemon = world.serve();
    let nobody = Stranger::new(&world, 65_534, 65_534);
    let with_id = |id: &str, extra: &str| request(&format!(r#","entry_id":"{id}"{extra}"#));
    let mine = daemon.append(with_id(ID, ""));
    let answer = daemon.post("/v1/entries", with_id(ID, ""));
    assert_eq!((answer.status, answer.json()), (200, mine.clone()), "a repeat");
    daemon.post("/v1/entries", with_id(ID, r#","severity":3"#)).problem(409, "entry-id-conflict");
    // The same words from another caller are no repeat, and tell it nothing.
    for extra in ["", r#","severity":3"#] {
        let problem = nobody.post("/v1/entries", &with_id(ID, extra)).problem(409, "entry-id-taken");
        assert!(problem.get("sequence_number").is_none() && problem.get("entry_id").is_none(), "{problem}");
    }
    // An id that the daemon made is nobody's to use.
    let made = daemon.append(REQUEST)["entry_id"].as_str().expect("a string").to_owned();
    daemon.post("/v1/entries", with_id(&made, "")).problem(409, "entry-id-conflict");
    nobody.post("/v1/entries", &with_id(&made, "")).problem(409, "entry-id-taken");
    let boot = daemon.get("/v1/entries/1").json()["entry_id"].as_str().expect("a string").to_owned();
    daemon.post("/v1/entries", with_id(&boot, "")).problem(409, "entry-id-taken");

    let other = "7f1c2a7e-3b4d-4c5e-8f90-112233445566";
    let theirs = nobody.post("/v1/entries", &with_id(other, r#","actor_id":"bot""#));
    assert_eq!(theirs.status, 201, "{}", theirs.text());
    let theirs = theirs.json();
    assert_eq!(theirs["actor_id"], "uid:65534/bot");
    let peer = &theirs["actor_context"]["peer"];
    assert_eq!(
        (&peer["uid"], &peer["gid"], &peer["user"]),
        (&json!(65_534), &json!(65_534), &json!("nobody"))
    );
    daemon.post("/v1/entries", with_id(other, r#","actor_id":"bot""#)).problem(409, "entry-id-taken");
    ends_with(&world, daemon, 3);
}

#[test]
fn a_caller_outside_the_sockets_group_may_do_nothing() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("only root can be another user: skipped");
        return;
    }
    let world = World::without_ledger();
    world.configure("server", "socket_mode = \"0666\"\nsocket_group = \"nogroup\"");
    assert!(world.attestd(&["init"]).status.success());
    let daemon = world.serve();
    let outsider = Stranger::new(&world, 65_533, 65_533);
    for (method, path, body) in [
        ("POST", "/v1/entries", REQUEST),
        ("POST", "/v1/entries:batch", REQUEST),
        ("GET", "/v1/entries", ""),
        ("GET", "/v1/entries/0", ""),
        ("GET", "/v1/entries/999", ""),
        ("GET", "/v1/keys", ""),
        ("GET", "/v1/stats", ""),
        ("GET", "/v1/export", ""),
        ("POST", "/v1/verify", ""),
        ("POST", "/v1/bench?seconds=1", ""),
    ] {
        outsider.send(method, path, body).problem(403, "caller-not-allowed");
    }
    assert_eq!(outsider.send("GET", "/livez", "").status, 200, "that it lives is no secret");

    // A member by its own group, and one by a supplementary group; neither may measure.
    let member = Stranger::new(&world, 65_533, 65_534);
    let supplementary = Stranger { groups: Some(65_534), ..Stranger::new(&world, 65_533, 65_533) };
    for stranger in [&member, &supplementary] {
        let entry = stranger.post("/v1/entries", REQUEST);
        assert_eq!(entry.status, 201, "{}", entry.text());
        assert_eq!(stranger.send("GET", "/v1/entries/0", "").status, 200);
        stranger.post("/v1/bench?seconds=1", "").problem(403, "caller-not-allowed");
    }
    ends_with(&world, daemon, 2);
}

#[test]
fn slow_clients_are_told_and_closed_and_hold_up_nobody() {
    let world = World::new();
    world.configure("server", "header_timeout_seconds = 1\nidle_timeout_seconds = 2");
    let daemon = world.serve();
    let begin = |bytes: &str| {
        let mut stream = daemon.connect();
        stream.write_all(bytes.as_bytes()).expect("sent");
        (Instant::now(), stream)
    };
    let post = format!("POST /v1/entries HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", REQUEST.len());
    let head = begin("GET /livez HTTP/1.1\r\nhost");
    let body = begin(&format!("{post}{}", &REQUEST[..20]));
    let quiet = begin("");
    let mut used = begin("GET /livez HTTP/1.1\r\nhost: x\r\n\r\n");
    assert_eq!(Answer::read(&mut used.1).status, 200);
    // One that sends its body in small pieces is slow, not stuck.
    let mut patient = begin(&post);
    for piece in REQUEST.as_bytes().chunks(REQUEST.len() / 4) {
        std::thread::sleep(Duration::from_millis(700));
        patient.1.write_all(piece).expect("sent");
    }
    assert_eq!(Answer::read(&mut patient.1).status, 201);

    let rest = |(since, mut stream): (Instant, UnixStream)| {
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("closed in order");
        assert!(since.elapsed() < Duration::from_secs(30));
        answer
    };
    Answer::parse(&rest(head)).problem(408, "request-timeout");
    Answer::parse(&rest(body)).problem(408, "request-timeout");
    assert_eq!(rest(quiet), b"", "nothing was asked, so nothing is said");
    assert_eq!(rest(used), b"");

    // Clients that go away: in the head, in the body, before the answer.
    drop(begin("GET /livez HT"));
    drop(begin(&format!("{post}{}", &REQUEST[..50])));
    drop(begin(&format!("{post}{REQUEST}")));
    daemon.append(REQUEST);
    assert!(daemon.stop().success());
    // The last of the three had said all: hanging up takes no entry back, if it was read.
    assert!((5..=6).contains(&world.audit().len()));
}

#[test]
fn requests_that_come_at_once_are_answered_in_order() {
    let world = World::new();
    let daemon = world.serve();
    let post = |body: &str| {
        format!("POST /v1/entries HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len())
    };
    let mut stream = daemon.connect();
    let all = [
        post(REQUEST),
        post("{}"),
        "GET /v1/entries/2 HTTP/1.1\r\nhost: x\r\n\r\n".to_owned(),
        "GET /nowhere HTTP/1.1\r\nhost: x\r\n\r\n".to_owned(),
        post(REQUEST),
        "GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".to_owned(),
    ];
    stream.write_all(all.concat().as_bytes()).expect("sent");
    let first = Answer::read(&mut stream);
    assert_eq!(first.status, 201);
    Answer::read(&mut stream).problem(400, "missing-member");
    let read = Answer::read(&mut stream);
    assert_eq!((read.status, read.body), (200, first.body));
    Answer::read(&mut stream).problem(404, "not-found");
    assert_eq!(Answer::read(&mut stream).json()["sequence_number"], 3);
    assert_eq!(Answer::read(&mut stream).status, 200);
    assert_eq!(stream.read(&mut [0]).expect("closed in order"), 0);
    ends_with(&world, daemon, 2);
}

#[test]
fn two_thousand_connections_are_each_served_or_told_that_there_are_too_many() {
    attestd::server::listener::raise_nofile_limit().expect("a limit");
    let world = World::new();
    let daemon = world.serve();
    let ask =
        format!("POST /v1/entries HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{REQUEST}", REQUEST.len());
    let mut streams: Vec<UnixStream> = (0..2_000).map(|_| daemon.connect()).collect();
    for stream in &mut streams {
        // One that was refused may be closed already.
        let _ = stream.write_all(ask.as_bytes());
    }
    let mut served = 0;
    for stream in &mut streams {
        let answer = Answer::read(stream);
        match answer.status {
            201 => served += 1,
            _ => {
                answer.problem(503, "too-many-connections");
                assert_eq!(answer.header("retry-after"), Some("1"));
            }
        }
    }
    // All are open until here. One caller may have 512, a few of which those that asked whether
    // the daemon is ready may still have held.
    assert!((500..=512).contains(&served), "{served}");
    drop(streams);
    let deadline = Instant::now() + Duration::from_secs(20);
    while Answer::parse(&daemon.raw(b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")).status
        != 200
    {
        assert!(Instant::now() < deadline, "the daemon is still full");
        std::thread::sleep(Duration::from_millis(20));
    }
    daemon.append(REQUEST);
    ends_with(&world, daemon, served + 1);
}

#[test]
fn requests_for_which_there_is_no_memory_are_told_to_come_again() {
    let world = World::new();
    world.configure(
        "limits",
        "memory_bytes = 4_194_304\nrequest_bytes = 1_048_576\nbatch_answer_bytes = 1_048_576",
    );
    let daemon = world.serve();
    let padded = format!("{REQUEST}{}", " ".repeat((1 << 20) - REQUEST.len()));
    let head = format!("POST /v1/entries HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", padded.len());
    // Room is taken when a body is announced. One caller alone has half of three megabytes.
    let mut first = daemon.connect();
    first.write_all(head.as_bytes()).expect("sent");
    first.write_all(&padded.as_bytes()[..100]).expect("sent");
    let deadline = Instant::now() + Duration::from_secs(20);
    let answer = loop {
        let answer = daemon.post("/v1/entries", &padded);
        if answer.status == 503 || Instant::now() > deadline {
            break answer;
        }
    };
    answer.problem(503, "memory-budget");
    assert!(answer.header("retry-after").is_some());
    // What is small still fits, and so does the first when it goes on.
    daemon.append(REQUEST);
    first.write_all(&padded.as_bytes()[100..]).expect("sent");
    assert_eq!(Answer::read(&mut first).status, 201);
    drop(first);

    // Many large ones at once: each is taken or told so, and nothing is left behind.
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let posts: Vec<_> =
            (0..16).map(|_| scope.spawn(|| daemon.post("/v1/entries", &padded).status)).collect();
        posts.into_iter().map(|post| post.join().expect("answered")).collect()
    });
    assert!(statuses.iter().all(|status| [201, 503].contains(status)), "{statuses:?}");
    assert!(statuses.contains(&201), "{statuses:?}");
    let deadline = Instant::now() + Duration::from_secs(10);
    while daemon.get("/v1/stats").json()["queue"]["bytes"] != 0 {
        assert!(Instant::now() < deadline, "memory is given back");
    }
    daemon.append(&padded);
    assert!(daemon.stop().success());
    world.audit();
}

#[test]
fn a_disk_below_its_watermark_takes_no_entries_but_the_daemons_own() {
    let world = World::new();
    world.configure("ledger", "min_free_bytes = 1_125_899_906_842_624");
    let daemon = world.serve();
    daemon.post("/v1/entries", REQUEST).problem(507, "storage-full");
    let lines = daemon.post("/v1/entries:batch", format!("{REQUEST}\n\n{REQUEST}")).lines();
    for (line, number) in lines.iter().zip([1, 3]) {
        assert_eq!((&line["code"], &line["line"]), (&json!("storage-full"), &json!(number)), "{line}");
    }
    assert_eq!(lines.len(), 2);
    assert_eq!(daemon.get("/v1/entries/1").json()["event_type"], "BOOT", "reads go on");
    ends_with(&world, daemon, 0);
}

/// A client of another user: this program, run again as that user.
struct Stranger<'a> {
    world: &'a World,
    uid: u32,
    gid: u32,
    groups: Option<u32>,
}

impl<'a> Stranger<'a> {
    fn new(world: &'a World, uid: u32, gid: u32) -> Self {
        // Where this program was built may be closed to others.
        let program = world.dir().join("client");
        if !program.exists() {
            std::fs::copy(std::env::current_exe().expect("a path"), &program).expect("copied");
        }
        for path in [world.dir(), &program] {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o711 | 0o044)).expect("ours");
        }
        Stranger { world, uid, gid, groups: None }
    }

    fn post(&self, path: &str, body: &str) -> Answer {
        self.send("POST", path, body)
    }

    fn send(&self, method: &str, path: &str, body: &str) -> Answer {
        let head = format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n");
        let request = format!("{head}content-length: {}\r\n\r\n{body}", body.len());
        let mut child = Command::new("setpriv")
            .args(["--reuid", &self.uid.to_string(), "--regid", &self.gid.to_string()])
            .arg(self.groups.map_or("--clear-groups".into(), |gid| format!("--groups={gid}")))
            .arg(self.world.dir().join("client"))
            .args(["--exact", "says_what_it_is_told", "--nocapture"])
            .env("ATTESTD_TEST_SOCKET", self.world.socket())
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("setpriv runs");
        child.stdin.take().expect("a pipe").write_all(request.as_bytes()).expect("sent");
        let output = child.wait_with_output().expect("it ran");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Answer::parse(&output.stderr)
    }
}

/// Not a test by itself, but the client that [`Stranger`] runs.
#[test]
fn says_what_it_is_told() {
    let Some(socket) = std::env::var_os("ATTESTD_TEST_SOCKET") else { return };
    let (mut request, mut answer) = (Vec::new(), Vec::new());
    std::io::stdin().read_to_end(&mut request).expect("read");
    let mut stream = UnixStream::connect(socket).expect("the daemon listens");
    stream.write_all(&request).expect("sent");
    stream.shutdown(Shutdown::Write).expect("open");
    stream.read_to_end(&mut answer).expect("answered");
    std::io::stderr().write_all(&answer).expect("written");
}
