//! `attestctl get`: one entry, for a person or to the byte.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::value::RawValue;

use super::cli::Get;
use super::text::{Style, pretty, printable};
use super::{Failure, Outcome, connect, print, print_line, unexpected};
use crate::ledger::entry::EntryId;

/// All members of the schema, in groups that a person would look for.
const GROUPS: &[(&str, &[&str])] = &[
    ("", &["entry_id", "timestamp", "event_category", "severity"]),
    ("Actor", &["actor_type", "actor_id", "actor_context"]),
    ("Action", &["action_type", "execution_status", "action_payload", "result_data", "error_details"]),
    ("Context", &["environment", "system_state_snapshot", "dependencies"]),
    (
        "Governance",
        &[
            "pillars_scores",
            "composite_score",
            "safety_floor_met",
            "k_state",
            "conflicts_detected",
            "required_proofs",
            "provided_proofs",
            "proofs_valid",
            "required_approvals",
            "received_approvals",
            "quorum_met",
        ],
    ),
    ("Rollback", &["rollback_available", "rollback_executed", "rollback_snapshot_hash"]),
    (
        "Seal",
        &[
            "action_hash",
            "prev_entry_hash",
            "entry_hash",
            "signature_algorithm",
            "signing_key_id",
            "hsm_signature",
            "attribution",
            "schema_version",
            "replicas",
        ],
    ),
];

/// The members that make up the heading.
const HEADING: [&str; 2] = ["sequence_number", "event_type"];

/// An object or array of up to so many bytes stays on one line.
const SHORT_JSON_BYTES: usize = 60;

pub(super) async fn run(socket: &Path, args: &Get) -> Result<Outcome, Failure> {
    let reference = reference(&args.reference)?;
    let doing = format!("get entry {reference}");
    let mut client = connect(socket, &doing).await?;
    let line = client.entry(&reference).await.map_err(Failure::daemon(&doing))?;
    if args.json {
        print_line(&line)?;
        return Ok(Outcome::Done);
    }
    let text = std::str::from_utf8(&line).map_err(|error| unexpected(&doing, error.to_string()))?;
    let view = view(text, Style::of_stdout()).map_err(|error| unexpected(&doing, error.to_string()))?;
    print(&view)?;
    Ok(Outcome::Done)
}

/// A sequence number or an entry id in the spelling of the API.
fn reference(text: &str) -> Result<String, Failure> {
    if let Ok(sequence) = text.parse::<u64>() {
        return Ok(sequence.to_string());
    }
    let lower = text.to_ascii_lowercase();
    if EntryId::parse(&lower).is_some() {
        return Ok(lower);
    }
    Err(Failure::Usage(format!(
        "`{text}` is neither a sequence number nor an entry id (a UUID of version 4)"
    )))
}

/// The entry for a person. A member that the schema does not know is shown at the end, not hidden.
fn view(line: &str, style: Style) -> serde_json::Result<String> {
    let mut members: BTreeMap<String, &RawValue> = serde_json::from_str(line)?;
    let heading: Vec<String> =
        HEADING.iter().filter_map(|name| members.remove(*name)).map(|value| shown(value.get(), 0)).collect();
    let mut out = style.bold(&format!("Entry {}", heading.join("  ")));
    out.push('\n');
    groups(members, style, &mut out);
    Ok(out)
}

/// Members of an entry, or of a draft of one, in their groups.
pub(super) fn groups(mut members: BTreeMap<String, &RawValue>, style: Style, out: &mut String) {
    for (title, names) in GROUPS {
        let group: Vec<(String, &RawValue)> =
            names.iter().filter_map(|name| members.remove_entry(*name)).collect();
        section(title, &group, style, out);
    }
    section("Other", &members.into_iter().collect::<Vec<_>>(), style, out);
}

fn section(title: &str, members: &[(String, &RawValue)], style: Style, out: &mut String) {
    if members.is_empty() {
        return;
    }
    if !title.is_empty() {
        out.push('\n');
        out.push_str(&style.bold(title));
        out.push('\n');
    }
    let names: Vec<_> = members.iter().map(|(name, _)| printable(name)).collect();
    let width = names.iter().map(|name| name.len()).max().unwrap_or(0);
    for (name, (_, value)) in names.iter().zip(members) {
        let padding = " ".repeat(width - name.len());
        let value = shown(value.get(), width + 4);
        out.push_str(&format!("  {}{padding}  {value}\n", style.dim(name)));
    }
}

/// A value: a string without its quotes, what is short on one line, what is long laid out.
fn shown(json: &str, indent: usize) -> String {
    if let Ok(text) = serde_json::from_str::<String>(json) {
        return printable(&text).into_owned();
    }
    let laid_out = pretty(json, indent);
    if json.len() > SHORT_JSON_BYTES {
        return laid_out;
    }
    let mut lines = laid_out.lines().map(str::trim_start);
    let mut out = lines.next().unwrap_or_default().to_owned();
    for line in lines {
        if out.ends_with(',') {
            out.push(' ');
        }
        out.push_str(line);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::entry::MEMBERS;

    #[test]
    fn the_groups_hold_every_member_once() {
        let mut names: Vec<&str> =
            GROUPS.iter().flat_map(|(_, names)| names.iter().copied()).chain(HEADING).collect();
        names.sort_unstable();
        assert_eq!(names, MEMBERS);
    }

    #[test]
    fn references_are_numbers_or_ids() {
        assert_eq!(reference("0042").expect("a number"), "42");
        let id = "6f1c2a7e-3b4d-4c5e-8f90-112233445566";
        assert_eq!(reference(&id.to_uppercase()).expect("an id"), id);
        for bad in ["", "-1", "x", "../stats", "6f1c2a7e"] {
            assert!(matches!(reference(bad), Err(Failure::Usage(_))), "{bad}");
        }
    }

    #[test]
    fn an_entry_is_aligned_and_cannot_act_on_the_terminal() {
        let line = "{\"action_payload\":{\"a\":\"a longer text, so that it does not fit on one line\",\"b\":[1,2]},\
            \"actor_id\":\"uid:0/\\u001b[2J\u{202e}x\",\"actor_type\":\"HUMAN\",\"environment\":{\"k\":\"v, w\",\"l\":\"m\"},\
            \"event_type\":\"ACTION\",\"k_state\":1,\"sequence_number\":7,\"zz\\u001b\":null}";
        let expected = "\
Entry 7  ACTION

Actor
  actor_type  HUMAN
  actor_id    uid:0/\\u001b[2J\\u202ex

Action
  action_payload  {
                    \"a\": \"a longer text, so that it does not fit on one line\",
                    \"b\": [
                      1,
                      2
                    ]
                  }

Context
  environment  {\"k\": \"v, w\", \"l\": \"m\"}

Governance
  k_state  1

Other
  zz\\u001b  null
";
        assert_eq!(view(line, Style::plain()).expect("valid"), expected);
    }
}
