use super::*;
use crate::governance::key::{Algorithm, tests::Pair};
use crate::ledger::json;
use crate::ledger::key::PublicKey;

fn key(kind: Algorithm, seed: u8) -> String {
    Pair::new(kind, seed).key.to_text().to_owned()
}

const CALLERS: &str = r#"{"name":"ops","uid":1000,"verbs":["append","propose","seal"]}"#;

/// Rules from loose JSON, brought into canonical order but not spelled out.
fn loose(text: &str) -> Result<Rules, Fault> {
    let canonical = json::canonicalize(text.as_bytes()).expect("JSON");
    // Whatever is missing is filled in by writing, so that tests need not spell out everything.
    let filled = match Rules::from_canonical(&canonical) {
        Err(fault) if fault.code == Code::NotCanonical => toml_like(&canonical)?,
        other => return other,
    };
    Rules::from_canonical(&filled.to_canonical())
}

/// Reads without the demand that everything is spelled out, as TOML is read.
fn toml_like(canonical: &str) -> Result<Rules, Fault> {
    let value = crate::governance::value::Value::from_canonical(canonical)?;
    let rules = super::read::rules(&value)?;
    rules.check()?;
    Ok(rules)
}

fn code(text: &str) -> (Code, String) {
    let fault = loose(text).expect_err(text);
    (fault.code, fault.pointer)
}

fn approver(name: &str, role: &str, key: &str, extra: &str) -> String {
    let mut quoted = Vec::new();
    json::write_string(key, &mut quoted);
    let key = String::from_utf8(quoted).expect("UTF-8");
    format!(r#"{{"name":"{name}","role":"{role}","public_key":{key}{extra}}}"#)
}

fn with_approvers(approvers: &[String], actions: &str) -> String {
    format!(r#"{{"callers":[{CALLERS}],"approvers":[{}],"actions":[{actions}]}}"#, approvers.join(","))
}

fn three() -> Vec<String> {
    vec![
        approver("a", "creator", &key(Algorithm::EcdsaP256, 1), ""),
        approver("b", "community", &key(Algorithm::SshEd25519, 2), ""),
        approver("c", "auditor", &key(Algorithm::SshSkP256, 3), ""),
    ]
}

#[test]
fn one_text_for_one_set_of_rules() {
    let rules = loose(&with_approvers(
        &three(),
        r#"{"type":"policy.*","approvals":3,"roles":["creator","community","auditor"],"proofs":["rollback","pillars"]}"#,
    ))
    .expect("rules");
    let text = rules.to_canonical();
    assert_eq!(json::canonicalize(text.as_bytes()).as_deref(), Ok(text.as_str()));
    assert_eq!(Rules::from_canonical(&text), Ok(rules.clone()));
    assert_eq!(rules.hash(), Digest::of(text.as_bytes()));
    let left_out = text.replace(r#""clearance":0,"#, "");
    assert_eq!(Rules::from_canonical(&left_out).expect_err("not spelled out").code, Code::NotCanonical);
    let unsorted = text.replace(r#"["pillars","rollback"]"#, r#"["rollback","pillars"]"#);
    assert_eq!(Rules::from_canonical(&unsorted).expect_err("not sorted").code, Code::NotCanonical);
    let spaced = text.replace(':', ": ");
    assert_eq!(Rules::from_canonical(&spaced).expect_err("spaces").code, Code::NotCanonical);
}

#[test]
fn the_default_weighs_equally_and_asks_for_nothing() {
    let rules = InForce::default();
    assert_eq!(rules.label(), "default");
    assert_eq!((rules.demand("a.b"), rules.scale()), (Demand::default(), Scale::default()));
    assert_ne!(InForce::new(Some(Rules::default())).label(), "default");
}

#[test]
fn two_names_never_share_a_key() {
    for (one, other) in [
        (Algorithm::EcdsaP256, Algorithm::SshP256),
        (Algorithm::SshP256, Algorithm::SshSkP256),
        (Algorithm::SshEd25519, Algorithm::SshSkEd25519),
        (Algorithm::EcdsaP256, Algorithm::EcdsaP256),
    ] {
        let approvers = [approver("a", "x", &key(one, 7), ""), approver("b", "x", &key(other, 7), "")];
        let fault = code(&with_approvers(&approvers, ""));
        assert_eq!(fault, (Code::RulesSharedKey, "/approvers/1/public_key".into()), "{one:?} {other:?}");
    }
    let rules = loose(&with_approvers(&three(), "")).expect("rules");
    let ledgers = PublicKey::from_pem(&key(Algorithm::EcdsaP256, 1)).expect("PEM");
    assert_eq!(rules.check_ledger_keys(&[ledgers]).expect_err("the ledger's").code, Code::RulesSharedKey);
    let other = PublicKey::from_pem(&key(Algorithm::EcdsaP256, 9)).expect("PEM");
    assert_eq!(rules.check_ledger_keys(&[other]), Ok(()));
}

#[test]
fn demands_that_nobody_could_meet_are_refused() {
    for action in [
        r#"{"type":"x","approvals":4}"#,
        r#"{"type":"x","roles":["auditor","auditor"]}"#,
        r#"{"type":"x","roles":["judge"]}"#,
        r#"{"type":"x","proofs":["tests"]}"#,
    ] {
        assert_eq!(code(&with_approvers(&three(), action)).0, Code::RulesUnmeetable, "{action}");
    }
    // Each can be met alone, not both at once.
    let mut callers_own = three();
    callers_own[2] = approver("c", "auditor", &key(Algorithm::SshSkP256, 3), r#","callers":["ops"]"#);
    assert_eq!(
        code(&with_approvers(&callers_own, r#"{"type":"x","approvals":3}"#)).0,
        Code::RulesUnmeetable,
        "the only proposer is one of the three"
    );
    loose(&with_approvers(&callers_own, r#"{"type":"x","approvals":2}"#)).expect("two are left");
    let mute = with_approvers(&three(), r#"{"type":"x","approvals":1}"#).replace(r#""propose","#, "");
    assert_eq!(code(&mute).0, Code::RulesUnmeetable, "nobody may propose");
}

#[test]
fn what_contradicts_itself_is_refused_at_its_place() {
    let caller = |members: &str| format!(r#"{{"callers":[{{"name":"x","verbs":["read"]{members}}}]}}"#);
    let cases = [
        ("{}".to_owned(), Code::RulesUnmeetable, ""),
        (caller(""), Code::Rules, "/callers/0"),
        (caller(r#","exe":"/bin/sh""#), Code::Rules, "/callers/0"),
        (caller(&format!(r#","exe_sha256":"{}""#, "0".repeat(64))), Code::Rules, "/callers/0"),
        (caller(r#","uid":4294967295"#), Code::Rules, "/callers/0/uid"),
        (caller(r#","uid":-1"#), Code::Rules, "/callers/0/uid"),
        (caller(r#","uid":"0""#), Code::Rules, "/callers/0/uid"),
        (caller(r#","uid":1,"exe":"bin/sh""#), Code::Rules, "/callers/0/exe"),
        (caller(r#","uid":1,"exe":"/bin/../sh""#), Code::Rules, "/callers/0/exe"),
        (caller(r#","unit":"user@1000.service""#), Code::Rules, "/callers/0/unit"),
        (caller(r#","unit":"user@1000.service/app.slice/x.service""#), Code::Rules, "/callers/0/unit"),
        (caller(r#","unit":"deploy""#), Code::Rules, "/callers/0/unit"),
        (caller(r#","uid":1,"actor_ids":["attestd"]"#), Code::Rules, "/callers/0/actor_ids/0"),
        (caller(r#","uid":1,"actor_ids":["uid:0"]"#), Code::Rules, "/callers/0/actor_ids/0"),
        (caller(r#","uid":1,"actor_ids":["a*b"]"#), Code::Rules, "/callers/0/actor_ids/0"),
        (caller(r#","uid":1,"event_types":["BOOT"]"#), Code::Rules, "/callers/0/event_types/0"),
        (caller(r#","uid":1,"clearance":11"#), Code::Rules, "/callers/0/clearance"),
        (caller(r#","uid":1,"colour":"red""#), Code::Rules, "/callers/0/colour"),
        (r#"{"callers":[{"name":"x","uid":1,"verbs":[]}]}"#.into(), Code::Rules, "/callers/0"),
        (r#"{"callers":[{"name":"x","uid":1,"verbs":["fly"]}]}"#.into(), Code::Rules, "/callers/0/verbs/0"),
        (format!(r#"{{"callers":[{CALLERS},{CALLERS}]}}"#), Code::Rules, "/callers/1/name"),
        (with_approvers(&three(), r#"{"type":"a*b"}"#), Code::Rules, "/actions/0/type"),
        (with_approvers(&three(), r#"{"type":"x","approvals":17}"#), Code::Rules, "/actions/0/approvals"),
        (
            with_approvers(&three(), r#"{"type":"x","lifetime_seconds":0}"#),
            Code::Rules,
            "/actions/0/lifetime_seconds",
        ),
        (
            format!(r#"{{"callers":[{CALLERS}],"pillars":{{"weights":{{"an_toan":0}}}}}}"#),
            Code::Rules,
            "/pillars/weights/an_toan",
        ),
        (
            format!(r#"{{"callers":[{CALLERS}],"pillars":{{"floor":"7.00001"}}}}"#),
            Code::Rules,
            "/pillars/floor",
        ),
        (format!(r#"{{"callers":[{CALLERS}],"pillars":{{"floor":"10.1"}}}}"#), Code::Rules, "/pillars/floor"),
        (format!(r#"{{"callers":[{CALLERS}],"pillars":{{"floor":"-1"}}}}"#), Code::Rules, "/pillars/floor"),
        (
            with_approvers(
                &[approver("a", "x", &key(Algorithm::EcdsaP256, 1), r#","callers":["nobody"]"#)],
                "",
            ),
            Code::Rules,
            "/approvers/0/callers",
        ),
        (
            with_approvers(&[approver("a", "x", "ssh-rsa AAAA", "")], ""),
            Code::Rules,
            "/approvers/0/public_key",
        ),
    ];
    for (text, expected, pointer) in cases {
        assert_eq!(code(&text), (expected, pointer.to_owned()), "{text}");
    }
}

#[test]
fn all_matching_rules_apply_joined() {
    let rules = loose(&with_approvers(
        &three(),
        r#"{"type":"*","proofs":["k1_state"]},
           {"type":"policy.*","approvals":1,"roles":["auditor"],"lifetime_seconds":60,"clearance":3,"rejection_blocks":false},
           {"type":"policy.safety","approvals":2,"roles":["creator"],"lifetime_seconds":600,"proofs":["pillars"]}"#,
    ))
    .expect("rules");
    let demand = rules.demand("policy.safety");
    assert_eq!(demand.proofs, ["k1_state", "pillars"]);
    assert_eq!(
        (demand.approvals, demand.roles.as_slice()),
        (2, &["auditor".to_owned(), "creator".into()][..])
    );
    assert_eq!((demand.lifetime_seconds, demand.clearance, demand.rejection_blocks), (60, 3, true));
    assert!(
        demand.is_met_by(&["creator", "auditor"]) && demand.is_met_by(&["auditor", "community", "creator"])
    );
    assert!(!demand.is_met_by(&["auditor", "community"]) && !demand.is_met_by(&["creator", "creator"]));
    assert!(!rules.demand("policy.x").rejection_blocks);
    assert_eq!(rules.demand("Policy.safety").proofs, ["k1_state"], "case matters");
}

#[test]
fn patterns() {
    let pattern = |text| Pattern::parse(text).expect("a pattern");
    assert!(pattern("a.*").matches("a.b") && !pattern("a.*").matches("a") && !pattern("a").matches("a.b"));
    for bad in ["", "a*b", "**", "*a"] {
        assert_eq!(Pattern::parse(bad), None, "{bad}");
    }
    let overlaps = |a, b| pattern(a).overlaps(&pattern(b)) && pattern(b).overlaps(&pattern(a));
    assert!(overlaps("a*", "ab*") && overlaps("*", "x") && overlaps("x", "x"));
    assert!(!overlaps("a*", "b*") && !overlaps("x", "y") && !overlaps("ab*", "a"));
}

#[test]
fn groups_are_looked_up_once() {
    let text = format!(r#"{{"callers":[{}]}}"#, CALLERS.replace(r#""uid":1000"#, r#""group":"staff""#));
    let mut rules = loose(&text).expect("rules");
    assert_eq!(
        rules.clone().resolve_groups(|_| None).expect_err("no such group").pointer,
        "/callers/0/group"
    );
    rules.resolve_groups(|name| (name == "staff").then_some(50)).expect("found");
    assert_eq!(rules.callers()[0].gid, Some(50));
    assert!(rules.resolve_groups(|_| Some(51)).is_err(), "the group has another gid now");
    assert_eq!(Rules::from_canonical(&rules.to_canonical()), Ok(rules));
}

#[test]
fn a_change_is_told_in_plain_words() {
    let old = loose(&with_approvers(&three(), r#"{"type":"x","approvals":2}"#)).expect("rules");
    let new = loose(&with_approvers(&three(), r#"{"type":"x","approvals":1,"lifetime_seconds":3600}"#))
        .expect("rules");
    assert_eq!(
        diff(&old, &new),
        [
            "- action `x` needs 2 approvals within 7 days (one rejection ends it)",
            "+ action `x` needs 1 approval within 1 hour (one rejection ends it)"
        ]
    );
    assert_eq!(diff(&old, &old), Vec::<String>::new());
}

proptest::proptest! {
    #[test]
    fn changed_rules_are_refused_or_have_their_one_text(at: proptest::sample::Index, byte in 0x20..0x7Fu8) {
        let text = loose(&with_approvers(&three(), r#"{"type":"x","approvals":2}"#)).expect("rules").to_canonical();
        let mut bytes = text.into_bytes();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let changed = String::from_utf8(bytes).expect("ASCII");
        if let Ok(rules) = Rules::from_canonical(&changed) {
            proptest::prop_assert_eq!(rules.to_canonical(), changed);
            proptest::prop_assert!(!rules.explain().is_empty());
        }
    }
}

#[cfg(feature = "daemon")]
mod toml_text {
    use super::*;

    #[test]
    fn faults_have_their_line() {
        let caller = "[[callers]]\nname = \"x\"\nuid = 1\nverbs = [\"read\"]\n";
        let cases = [
            (format!("{caller}\n[pillars]\nfloor = 7.0\ncolour = 1\n"), 8),
            (format!("{caller}clearence = 1\n"), 5),
            (format!("{caller}exe = 'sh'\n"), 5),
            ("callers = 1\n".into(), 1),
            (format!("{caller}name = \"y\"\n"), 5),
            (format!("{caller}[pillars]\nfloor = inf\n"), 6),
            (format!("{caller}[pillars]\nfloor = 1979-05-27\n"), 6),
            (format!("{caller}[pillars.weights]\nan_toan = 99999999999999999999\n"), 6),
        ];
        for (text, line) in cases {
            let fault = Rules::from_toml(&text).expect_err(&text);
            assert_eq!(fault.line, Some(line), "{text}\n{fault}");
        }
        let large = format!("# {}\n{caller}", "x".repeat(1 << 20));
        assert_eq!(Rules::from_toml(&large).expect_err("large").code, Code::EntryTooLarge);
    }

    #[test]
    fn a_number_in_toml_is_a_decimal_in_json() {
        let text = |floor| {
            format!("[[callers]]\nname = 'x'\nuid = 0x10\nverbs = ['read']\n[pillars]\nfloor = {floor}\n")
        };
        for (floor, expected) in
            [("7", "7"), ("7.0", "7"), ("6.25", "6.25"), ("'6.5'", "6.5"), ("0.0001", "0.0001")]
        {
            let rules = Rules::from_toml(&text(floor)).expect(floor);
            assert_eq!(rules.scale().floor.to_string(), expected);
            assert!(rules.to_canonical().contains(&format!("\"floor\":\"{expected}\"")));
            assert_eq!(rules.callers()[0].uid, Some(16));
        }
        for floor in ["7.00001", "7e0", "+7.0", "10.5", "07.5"] {
            assert!(Rules::from_toml(&text(floor)).is_err(), "{floor}");
        }
    }

    #[test]
    fn a_name_that_json_could_not_carry_is_refused() {
        let text = "[[callers]]\nname = \"x\\uFFFF\"\nuid = 1\nverbs = ['read']\n";
        assert_eq!(Rules::from_toml(text).expect_err("a noncharacter").code, Code::Rules);
    }
}
