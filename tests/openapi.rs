//! `openapi.json` is what programs are told, so it has to be what the daemon does: the same routes,
//! the same codes, and real answers that fit the schemas that it names for them.

#![cfg(feature = "daemon")]

mod common;

use std::collections::BTreeSet;

use attestd::ledger::code::Code;
use attestd::ledger::draft::NEEDED;
use attestd::ledger::entry::{DAEMON_MEMBERS, MEMBERS};
use attestd::server::routes::ROUTES;
use common::{Daemon, REQUEST, World, request};
use serde_json::{Value, json};

fn document() -> Value {
    serde_json::from_str(include_str!("../src/server/openapi.json")).expect("JSON")
}

/// Each operation: method, path and what the document says of it.
fn operations(document: &Value) -> Vec<(String, String, &Value)> {
    let paths = document["paths"].as_object().expect("an object");
    let of_path = |(path, methods): (&String, &'_ Value)| {
        let methods = methods.as_object().expect("an object").keys();
        methods.map(|method| (method.to_uppercase(), path.clone())).collect::<Vec<_>>()
    };
    paths
        .iter()
        .flat_map(of_path)
        .map(|(method, path)| {
            let operation = &document["paths"][&path][method.to_lowercase()];
            (method, path, operation)
        })
        .collect()
}

#[test]
fn its_routes_are_the_routers() {
    let document = document();
    let described: BTreeSet<(String, String)> =
        operations(&document).into_iter().map(|(method, path, _)| (method, path)).collect();
    let routed: BTreeSet<(String, String)> =
        ROUTES.iter().map(|(method, path)| ((*method).to_owned(), (*path).to_owned())).collect();
    assert_eq!(described, routed);

    let world = World::new();
    let daemon = world.serve();
    assert_eq!(daemon.get("/openapi.json").json(), document);
    let concrete = |path: &str| path.replace("{reference}", "0").replace("{path}", "entries/000.p/1");
    for (method, path) in ROUTES {
        let answer = daemon.send(method, &concrete(path), b"");
        assert!(![404, 405].contains(&answer.status), "{method} {path}: {}", answer.text());
        // What is answered is what is described: the status, and its media type.
        let responses = &document["paths"][path][method.to_lowercase()]["responses"];
        let response = resolve(&document, &responses[answer.status.to_string()]);
        let media_type = answer.header("content-type").expect("a media type");
        assert!(
            !response["content"][media_type].is_null(),
            "{method} {path}: {} {media_type}",
            answer.status
        );
    }
    for (method, path) in ROUTES {
        for other in ["GET", "POST", "PUT", "DELETE"] {
            if other != method && !ROUTES.contains(&(other, path)) {
                let answer = daemon.send(other, &concrete(path), b"");
                answer.problem(405, "method-not-allowed");
            }
        }
    }
    assert!(daemon.stop().success());
    world.audit();
}

#[test]
fn its_parameters_are_those_that_are_taken() {
    let document = document();
    let world = World::new();
    let daemon = world.serve();
    for (method, path, operation) in operations(&document) {
        let parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
        for parameter in parameters.iter().filter(|parameter| parameter["in"] == "query") {
            // Of a proposal; tests/governance.rs has one.
            if path.contains("{id}") {
                continue;
            }
            let (name, schema) = (parameter["name"].as_str().expect("a name"), &parameter["schema"]);
            let values = match (&schema["enum"], schema["type"].as_str(), name) {
                (Value::Array(words), _, _) => {
                    words.iter().map(|word| word.as_str().expect("a word").to_owned()).collect()
                }
                // A measurement takes its time.
                (_, _, "seconds") => continue,
                (_, Some("integer"), _) => ["minimum", "maximum"]
                    .iter()
                    .filter_map(|bound| schema[bound].as_u64().map(|bound| bound.to_string()))
                    .collect(),
                _ if schema["format"] == "date-time" => vec!["2026-01-31T12:00:00Z".to_owned()],
                _ => vec!["1".to_owned()],
            };
            let body = if (method.as_str(), path.as_str()) == ("POST", "/v1/entries") { REQUEST } else { "" };
            // What is required goes along.
            let with = if (path.as_str(), name) == ("/v1/consistency", "to") { "from=0&" } else { "" };
            for value in values {
                let answer = daemon.send(&method, &format!("{path}?{with}{name}={value}"), body.as_bytes());
                assert!([200, 201].contains(&answer.status), "{path}?{name}={value}: {}", answer.text());
            }
            let below = schema["minimum"].as_i64().map(|least| least - 1);
            let above = schema["maximum"].as_i64().map(|most| most + 1);
            for bad in below.into_iter().chain(above) {
                let answer = daemon.send(&method, &format!("{path}?{with}{name}={bad}"), body.as_bytes());
                answer.problem(400, "bad-parameter");
            }
        }
    }
    assert!(daemon.stop().success());
    world.audit();
}

#[test]
fn its_codes_and_members_are_the_programs() {
    let document = document();
    let codes: Vec<&str> =
        Code::ALL.iter().filter(|code| code.status() != 0).map(|code| code.as_str()).collect();
    let schemas = &document["components"]["schemas"];
    assert_eq!(schemas["Problem"]["properties"]["code"]["enum"], json!(codes));
    let statuses: BTreeSet<u16> =
        Code::ALL.iter().map(|code| code.status()).filter(|status| *status != 0).collect();
    for (method, path, operation) in operations(&document) {
        let responses = operation["responses"].as_object().expect("an object");
        assert!(responses.contains_key("default"), "{method} {path}");
        for status in responses.keys().filter_map(|status| status.parse::<u16>().ok()) {
            assert!([200, 201].contains(&status) || statuses.contains(&status), "{method} {path} {status}");
        }
    }
    let names = |schema: &Value, list: &str| -> BTreeSet<String> {
        match &schema[list] {
            Value::Array(names) => {
                names.iter().map(|name| name.as_str().expect("a name").to_owned()).collect()
            }
            properties => properties.as_object().expect("an object").keys().cloned().collect(),
        }
    };
    let all: BTreeSet<String> = MEMBERS.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(names(&schemas["Entry"], "required"), all);
    assert_eq!(names(&schemas["Entry"], "properties"), all);
    let clients = all.into_iter().filter(|name| !DAEMON_MEMBERS.contains(&name.as_str())).collect();
    assert_eq!(names(&schemas["Request"], "properties"), clients);
    assert_eq!(
        names(&schemas["Request"], "required"),
        NEEDED.iter().map(|name| (*name).to_owned()).collect()
    );
}

#[test]
fn real_answers_fit_their_schemas() {
    let document = document();
    let world = World::new();
    let daemon = world.serve();
    let fits = |name: &str, value: &Value| {
        let schema = &document["components"]["schemas"][name];
        assert!(!schema.is_null(), "there is no schema {name}");
        if let Err(fault) = check(&document, schema, value) {
            panic!("{name}{fault}: {value}");
        }
    };
    let full = full_request(&daemon);
    let bad = request(r#","severity":11"#);
    for body in [REQUEST, &full, &bad] {
        let value = serde_json::from_str(body).expect("JSON");
        let schema = &document["components"]["schemas"]["Request"];
        assert_eq!(
            check(&document, schema, &value).is_ok(),
            body != bad,
            "the schema refuses what the daemon does"
        );
    }
    fits("Entry", &daemon.append(REQUEST));
    fits("Entry", &daemon.append(&full));
    let again = daemon.post("/v1/entries", &full);
    assert_eq!(again.status, 200);
    fits("Entry", &again.json());
    fits("Problem", &daemon.post("/v1/entries", &bad).problem(400, "wrong-value"));
    fits("Problem", &daemon.get("/v1/entries/999").problem(404, "not-found"));
    let lines = daemon.post("/v1/entries:batch", format!("{REQUEST}\n{bad}\n{full}")).lines();
    fits("Acknowledgement", &lines[0]);
    fits("Problem", &lines[1]);
    fits("Acknowledgement", &lines[2]);
    let receipted = daemon.post("/v1/entries?receipt=1", REQUEST).json();
    fits("Receipted", &receipted);
    fits("Entry", &serde_json::from_str(receipted["entry"].as_str().expect("text")).expect("an entry"));
    fits("RulesInForce", &daemon.get("/v1/rules").json());
    let proposed = daemon.post("/v1/proposals", request(r#","required_approvals":0"#));
    fits("Problem", &proposed.problem(422, "proposal-not-needed"));
    fits("Proposals", &daemon.get("/v1/proposals").json());
    fits("Consistency", &daemon.get("/v1/consistency?from=1").json());
    fits("Page", &daemon.get("/v1/entries").json());
    fits("Page", &daemon.get("/v1/entries?limit=1").json());
    fits("Keys", &daemon.get("/v1/keys").json());
    fits("Stats", &daemon.get("/v1/stats").json());
    fits("Verdict", &daemon.post("/v1/verify", "").json());
    fits("Bench", &daemon.post("/v1/bench?seconds=1", "").json());
    fits("Status", &daemon.get("/livez").json());
    fits("Status", &daemon.get("/readyz").json());
    assert!(daemon.stop().success());
    world.audit();
}

/// A request that has every member that a client may give.
fn full_request(daemon: &Daemon) -> String {
    let genesis = daemon.get("/v1/entries/0").json()["entry_id"].clone();
    let full = json!({
        "entry_id": "6f1c2a7e-3b4d-4c5e-8f90-112233445566", "event_type": "DECISION",
        "event_category": "CRITICAL", "severity": 10, "actor_type": "AUTONOMOUS_AGENT", "actor_id": "agent",
        "actor_context": {"a": 1}, "action_type": "a.b", "action_payload": {"x": [1.5, null]},
        "system_state_snapshot": {"up": true}, "environment": {"region": "r"}, "dependencies": [genesis],
        "required_proofs": [], "provided_proofs": [], "required_approvals": 0,
        "pillars_scores": {"an_toan": 7.0001, "duong_dai": 8, "tin_vao_so_lieu": 9.5, "han_che_rui_ro": 10},
        "k_state": 1, "conflicts_detected": [], "execution_status": "ROLLED_BACK",
        "result_data": {"r": 1}, "error_details": {"e": 1}, "rollback_available": true,
        "rollback_executed": true, "rollback_snapshot_hash": "ab".repeat(32),
    });
    assert_eq!(full.as_object().map(serde_json::Map::len), Some(MEMBERS.len() - DAEMON_MEMBERS.len()));
    full.to_string()
}

fn resolve<'a>(document: &'a Value, schema: &'a Value) -> &'a Value {
    match schema["$ref"].as_str() {
        Some(reference) => document.pointer(reference.trim_start_matches('#')).expect("it exists"),
        None => schema,
    }
}

/// Holds `value` against the part of JSON Schema that the document uses; any other keyword is an
/// error, so that nothing in it goes unchecked. The error is a place and what is wrong there.
fn check(document: &Value, schema: &Value, value: &Value) -> Result<(), String> {
    let schema = resolve(document, schema);
    for (keyword, rule) in schema.as_object().expect("a schema") {
        let holds = match keyword.as_str() {
            "description" | "default" => true,
            "type" => {
                let mut types = rule.as_array().cloned().unwrap_or_else(|| vec![rule.clone()]).into_iter();
                types.any(|name| is_type(value, name.as_str().expect("a type")))
            }
            "enum" => rule.as_array().expect("a list").contains(value),
            "const" => rule == value,
            "minimum" => value.as_f64() >= rule.as_f64(),
            "maximum" => value.as_f64() <= rule.as_f64(),
            "multipleOf" => {
                let times = value.as_f64().expect("a number") / rule.as_f64().expect("a number");
                (times - times.round()).abs() < 1e-6
            }
            "minLength" => value.as_str().map(|text| text.chars().count() as u64) >= rule.as_u64(),
            "maxLength" => value.as_str().map(|text| text.chars().count() as u64) <= rule.as_u64(),
            "maxItems" => value.as_array().map(|items| items.len() as u64) <= rule.as_u64(),
            "pattern" => value.as_str().is_none_or(|text| matches(rule.as_str().expect("a pattern"), text)),
            "format" => match (rule.as_str(), value.as_str()) {
                (Some("date-time"), Some(text)) => {
                    attestd::ledger::timestamp::Timestamp::parse(text.as_bytes()).is_some()
                }
                (Some("uri"), Some(text)) => text.starts_with("https://"),
                other => panic!("unknown format {other:?}"),
            },
            "required" => {
                let names = rule.as_array().expect("a list");
                value.is_null()
                    || names.iter().all(|name| value.get(name.as_str().expect("a name")).is_some())
            }
            "properties" => {
                for (name, schema) in rule.as_object().expect("an object") {
                    if let Some(value) = value.get(name) {
                        check(document, schema, value).map_err(|fault| format!("/{name}{fault}"))?;
                    }
                }
                true
            }
            "additionalProperties" => {
                for (name, value) in value.as_object().into_iter().flatten() {
                    match (schema["properties"].get(name), rule) {
                        (None, Value::Bool(false)) => return Err(format!(": {name} is not in the schema")),
                        (None, rule) if rule.is_object() => {
                            check(document, rule, value).map_err(|fault| format!("/{name}{fault}"))?;
                        }
                        _ => {}
                    }
                }
                true
            }
            "items" => {
                for (index, value) in value.as_array().into_iter().flatten().enumerate() {
                    check(document, rule, value).map_err(|fault| format!("/{index}{fault}"))?;
                }
                true
            }
            other => panic!("the schema uses `{other}`, which this test does not check"),
        };
        if !holds {
            return Err(format!(": not {keyword} {rule}"));
        }
    }
    Ok(())
}

fn is_type(value: &Value, name: &str) -> bool {
    match name {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("{other} is no type"),
    }
}

/// Matches `^…$` of plain characters and `[classes]`, each perhaps with `{n}` or `{n,m}`, where no
/// choice has ever to be taken back.
fn matches(pattern: &str, text: &str) -> bool {
    let mut rest = pattern.strip_prefix('^').and_then(|p| p.strip_suffix('$')).expect("an anchored pattern");
    let mut text = text.chars().peekable();
    while let Some(first) = rest.chars().next() {
        let class;
        if first == '[' {
            let end = rest.find(']').expect("a closed class");
            class = &rest[1..end];
            rest = &rest[end + 1..];
        } else {
            class = &rest[..first.len_utf8()];
            rest = &rest[first.len_utf8()..];
        }
        let (mut least, mut most) = (1, 1);
        if let Some((count, after)) = rest.strip_prefix('{').and_then(|rest| rest.split_once('}')) {
            let (low, high) = count.split_once(',').unwrap_or((count, count));
            (least, most) = (low.parse().expect("a number"), high.parse().expect("a number"));
            rest = after;
        }
        let count = (0..most).take_while(|_| text.next_if(|c| is_in(class, *c)).is_some()).count();
        if count < least {
            return false;
        }
    }
    text.next().is_none()
}

fn is_in(class: &str, wanted: char) -> bool {
    let class: Vec<char> = class.chars().collect();
    let ranges = class.windows(3).filter(|window| window[1] == '-');
    class.contains(&wanted) || ranges.into_iter().any(|range| (range[0]..=range[2]).contains(&wanted))
}

#[test]
fn the_patterns_are_matched_as_they_are_meant() {
    for (pattern, text, expected) in [
        ("^[0-9a-f]{4}-4[89ab]$", "12ef-4a", true),
        ("^[0-9a-f]{4}-4[89ab]$", "12eF-4a", false),
        ("^[0-9a-f]{4}-4[89ab]$", "12ef-47", false),
        ("^[0-9a-f]{4}-4[89ab]$", "12ef-4ab", false),
        ("^[A-Za-z0-9_.:/-]{1,5}$", "aZ.:-", true),
        ("^[A-Za-z0-9_.:/-]{1,5}$", "", false),
        ("^[A-Za-z0-9_.:/-]{1,5}$", "abcdef", false),
        ("^[A-Za-z0-9_.:/-]{1,5}$", "a b", false),
    ] {
        assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
    }
}
