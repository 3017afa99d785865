//! Canonical JSON held against RFC 8785's own vectors and against two crates that others wrote.
//!
//! Where the crates and the RFC differ, the RFC is right. Differences found so far: none in what
//! this program accepts. (It refuses more than they do: numbers beyond ±(2^53−1), `-0`,
//! noncharacters, names that occur twice.)

use attestd::ledger::canonical;
use attestd::ledger::code::Code;
use attestd::ledger::hash::Digest;
use attestd::ledger::json::{self, canonicalize};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use serde_json::Value;

/// RFC 8785, appendix B. What is beyond ±(2^53−1) or is `-0` is refused here.
#[test]
fn numbers_of_appendix_b() {
    let written = [
        (0x0000000000000000, "0"),
        (0x0000000000000001, "5e-324"),
        (0x8000000000000001, "-5e-324"),
        (0x41b3de4355555553, "333333333.3333332"),
        (0x41b3de4355555554, "333333333.33333325"),
        (0x41b3de4355555555, "333333333.3333333"),
        (0x41b3de4355555556, "333333333.3333334"),
        (0x41b3de4355555557, "333333333.33333343"),
        (0x3eb0c6f7a0b5ed8c, "9.999999999999997e-7"),
        (0x3eb0c6f7a0b5ed8d, "0.000001"),
        (0xbecbf647612f3696, "-0.0000033333333333333333"),
        (0x43143ff3c1cb0959, "1424953923781206.2"),
    ];
    for (bits, expected) in written {
        let number = f64::from_bits(bits);
        // The shortest and the longest spelling that mean this double.
        for text in [format!("{number:e}"), format!("{number:.16e}"), expected.to_owned()] {
            assert_eq!(canonicalize(text.as_bytes()).as_deref(), Ok(expected), "{bits:016x} {text}");
        }
    }
    let refused = [
        0x7fefffffffffffffu64,
        0xffefffffffffffff,
        0x4340000000000000,
        0xc340000000000000,
        0x4430000000000000,
        0x44b52d02c7e14af5,
        0x44b52d02c7e14af6,
        0x44b52d02c7e14af7,
        0x444b1ae4d6e2ef4e,
        0x444b1ae4d6e2ef4f,
        0x444b1ae4d6e2ef50,
    ];
    for bits in refused {
        let text = format!("{:e}", f64::from_bits(bits));
        assert_eq!(canonicalize(text.as_bytes()).expect_err(&text).code, Code::JsonNumberRange);
    }
    assert_eq!(canonicalize(b"-0").expect_err("negative zero").code, Code::JsonNegativeZero);
}

/// RFC 8785, §3.2.2 and §3.2.4, without the 1E30 that is refused here.
#[test]
fn example_of_section_3_2() {
    let input = br#"{
        "numbers": [333333333.33333329, 4.50, 2e-3, 0.000000000000000000000000001],
        "string": "\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"\/",
        "literals": [null, true, false]
    }"#;
    let expected = concat!(
        r#"{"literals":[null,true,false],"numbers":[333333333.3333333,4.5,0.002,1e-27],"#,
        r#""string":"€$\u000f\nA'B\"\\\\\"/"}"#
    );
    assert_eq!(canonicalize(input).as_deref(), Ok(expected));
    assert_eq!(canonicalize(b"[1E30]").expect_err("too large").code, Code::JsonNumberRange);
}

/// RFC 8785, §3.2.3: names sort by UTF-16 code units.
#[test]
fn order_of_section_3_2_3() {
    let input = r#"{
        "\u20ac": "Euro Sign", "\r": "Carriage Return", "\ufb33": "Hebrew Letter Dalet With Dagesh",
        "1": "One", "\ud83d\ude00": "Emoji: Grinning Face", "\u0080": "Control",
        "\u00f6": "Latin Small Letter O With Diaeresis"
    }"#;
    let canonical = canonicalize(input.as_bytes()).expect("JSON");
    let names: Vec<String> = json::members(&canonical)
        .map(|(start, end, _)| json::unquote(&canonical.as_bytes()[start..end]))
        .collect();
    assert_eq!(names, ["\r", "1", "\u{80}", "ö", "€", "😀", "\u{fb33}"]);
}

fn number() -> impl Strategy<Value = f64> {
    const MAX: f64 = 9_007_199_254_740_991.0;
    prop_oneof![
        (-9_007_199_254_740_991i64..=9_007_199_254_740_991).prop_map(|n| n as f64),
        -1e6..1e6,
        (-1e6..1e6).prop_map(|n: f64| (n * 100.0).round() / 100.0),
        any::<f64>().prop_filter("in range", |n| n.is_finite() && n.abs() <= MAX),
        any::<f64>().prop_map(|n| if n.is_finite() { n % 1e-5 } else { 0.0 }),
    ]
    .prop_map(|n| if n == 0.0 { 0.0 } else { n })
}

fn text() -> impl Strategy<Value = String> {
    let character = prop_oneof![
        4 => proptest::char::range(' ', '~'),
        2 => any::<char>(),
        1 => proptest::char::range('\0', '\u{1F}'),
        1 => proptest::sample::select(vec!['"', '\\', '/', '\u{7f}', 'é', '\u{E000}', '\u{FB33}', '😀', '\u{2028}']),
    ];
    let noncharacter = |c: char| u32::from(c) & 0xFFFE == 0xFFFE || ('\u{FDD0}'..='\u{FDEF}').contains(&c);
    vec(character, 0..8)
        .prop_map(move |characters| characters.into_iter().filter(|c| !noncharacter(*c)).collect())
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        number().prop_map(Value::from),
        (-9_007_199_254_740_991i64..=9_007_199_254_740_991).prop_map(Value::from),
        text().prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 64, 6, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..6).prop_map(Value::from),
            btree_map(text(), inner, 0..6).prop_map(|members| members.into_iter().collect()),
        ]
    })
}

fn object() -> impl Strategy<Value = Value> {
    btree_map(text(), value(), 0..6).prop_map(|members| members.into_iter().collect())
}

/// Another spelling of the same value: every other character of every string escaped, white space
/// everywhere, members in reverse.
fn respell(value: &Value, out: &mut String) {
    match value {
        Value::Array(elements) => {
            out.push_str("[ ");
            for (index, element) in elements.iter().enumerate() {
                out.push_str(if index == 0 { "" } else { "\t,\n" });
                respell(element, out);
            }
            out.push(']');
        }
        Value::Object(members) => {
            out.push('{');
            for (index, (name, member)) in members.iter().rev().enumerate() {
                out.push_str(if index == 0 { "\r\n" } else { " , " });
                respell(&Value::from(name.as_str()), out);
                out.push_str(" : ");
                respell(member, out);
            }
            out.push_str(" }");
        }
        Value::String(text) => {
            out.push('"');
            for (index, character) in text.chars().enumerate() {
                if index % 2 == 0 || character < ' ' || matches!(character, '"' | '\\') {
                    for unit in character.encode_utf16(&mut [0; 2]) {
                        out.push_str(&format!("\\u{unit:04X}"));
                    }
                } else {
                    out.push(character);
                }
            }
            out.push('"');
        }
        Value::Number(number) => match (number.as_i64(), number.as_f64()) {
            (None, Some(number)) => out.push_str(&format!("{number:e}")),
            _ => out.push_str(&number.to_string()),
        },
        Value::Null | Value::Bool(_) => out.push_str(&value.to_string()),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn values_are_written_as_others_write_them(value in value()) {
        let ours = canonicalize(value.to_string().as_bytes()).expect("I-JSON");
        prop_assert_eq!(&ours, &serde_json_canonicalizer::to_string(&value).expect("canonical"));
        prop_assert_eq!(&ours, &serde_jcs::to_string(&value).expect("canonical"));
        // Canonical form is a fixed point, and does not depend on the spelling.
        prop_assert_eq!(&canonicalize(ours.as_bytes()).expect("I-JSON"), &ours);
        let mut respelt = String::new();
        respell(&value, &mut respelt);
        prop_assert_eq!(&canonicalize(respelt.as_bytes()).expect("I-JSON"), &ours);
    }

    /// Whole entries: what the one encoder writes is what a generic library and a JCS crate make
    /// of the same members, hash and all, and the one decoder takes it.
    #[test]
    fn entries_are_written_as_others_write_them(
        payload in object(),
        context in object(),
        snapshot in object(),
        name in text(),
        conflicts in vec(text(), 0..3),
        k_state in -9i64..9,
    ) {
        let template = include_bytes!("vectors/everything.jsonl");
        let line = template.split(|b| *b == b'\n').next().expect("a line");
        let mut entry: Value = serde_json::from_slice(line).expect("JSON");
        let canonical_text = |value: &Value| canonicalize(value.to_string().as_bytes()).expect("I-JSON");
        let (payload_text, context_text) = (canonical_text(&payload), canonical_text(&context));
        let (snapshot_text, conflicts_text) = (canonical_text(&snapshot), canonical_text(&conflicts.clone().into()));
        let actor = format!("uid:0/{}", name.chars().filter(|c| c.is_alphanumeric()).collect::<String>());

        let decoded = canonical::decode(line).expect("an entry");
        let mut view = decoded.entry;
        view.action_payload = &payload_text;
        view.action_hash = Digest::of(payload_text.as_bytes());
        view.actor_context = &context_text;
        view.system_state_snapshot = &snapshot_text;
        view.conflicts_detected = &conflicts_text;
        view.actor_id = actor.as_str().into();
        view.k_state = k_state;
        let ours = canonical::encode(&view);

        entry["action_payload"] = payload;
        entry["action_hash"] = view.action_hash.to_hex().into();
        entry["actor_context"] = context;
        entry["system_state_snapshot"] = snapshot;
        entry["conflicts_detected"] = conflicts.into();
        entry["actor_id"] = actor.as_str().into();
        entry["k_state"] = k_state.into();
        let members = entry.as_object_mut().expect("an object");
        members.remove("entry_hash");
        members.remove("hsm_signature");
        let hash = Digest::of(&serde_json_canonicalizer::to_vec(&entry).expect("canonical"));
        prop_assert_eq!(ours.hash, hash);
        entry["entry_hash"] = hash.to_hex().into();
        entry["hsm_signature"] = "00".into();
        let sealed = ours.seal(b"00");
        prop_assert_eq!(&sealed, &serde_jcs::to_vec(&entry).expect("canonical"));
        let again = canonical::decode(&sealed).expect("an entry");
        prop_assert_eq!(again.computed_hash, hash);
    }
}
