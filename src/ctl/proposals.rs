//! `attestctl propose`, `proposals`, `seal` and `withdraw`: the life of a governed change, but for
//! the approvals themselves, which are [`super::approve`]'s.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::append::{Object, read_all};
use super::cli::{Proposals, Propose, Seal, Withdraw};
use super::get;
use super::rules::{changes, in_force, now};
use super::text::{Column, Style, Table, count_of, duration, printable, printable_message, terminal_width};
use super::{Failure, Outcome, connect, print, print_line, unexpected};
use crate::client::{Client, ClientError, decode};
use crate::governance::rules::{InForce, Rules};
use crate::ledger::draft::{Draft, NEEDED};
use crate::ledger::entry::EntryId;
use crate::ledger::hash::Digest;
use crate::ledger::json::{self, canonicalize};
use crate::ledger::timestamp::Timestamp;

/// Narrower than this there is no room for whole ids beside the rest.
const WIDTH_WITH_IDS: usize = 90;

/// A proposal that is open, as the daemon tells it.
#[derive(Debug, Deserialize)]
pub(super) struct View {
    pub(super) proposal_id: String,
    pub(super) action_type: String,
    pub(super) actor_id: Option<String>,
    pub(super) opened_at: String,
    pub(super) expires_at: String,
    pub(super) proposal_hash: String,
    pub(super) rules_hash: String,
    pub(super) required_approvals: u32,
    pub(super) counted_approvals: u64,
    pub(super) missing_roles: Vec<String>,
    pub(super) quorum_met: bool,
    pub(super) approvals: Vec<Given>,
    pub(super) draft: Box<RawValue>,
}

/// A decision of an approver's.
#[derive(Debug, Deserialize)]
pub(super) struct Given {
    pub(super) signer: String,
    role: String,
    decision: String,
    timestamp: String,
    counts: bool,
}

/// What has become of a proposal.
pub(super) enum Found {
    Open(Box<View>),
    /// How it ended, in a word.
    Ended(String),
}

impl Found {
    fn read(answer: &[u8]) -> Result<Self, ClientError> {
        #[derive(Deserialize)]
        struct State {
            state: String,
        }
        let State { state } = decode(answer)?;
        if state == "open" { decode(answer).map(Found::Open) } else { Ok(Found::Ended(state)) }
    }

    /// The proposal, where it is still open.
    pub(super) fn open(self, id: EntryId) -> Result<View, Failure> {
        match self {
            Found::Open(view) => Ok(*view),
            Found::Ended(how) => Err(Failure::Check(ended(id, &how))),
        }
    }
}

fn ended(id: EntryId, how: &str) -> String {
    let how = if how == "expired" { "has expired".into() } else { format!("was {how}") };
    format!("the proposal {id} {how}")
}

impl View {
    /// The canonical draft, which must be one.
    pub(super) fn draft(&self, doing: &str) -> Result<(String, Draft), Failure> {
        let text = canonicalize(self.draft.get().as_bytes());
        let text = text.map_err(|fault| unexpected(doing, format!("the draft: {fault}")))?;
        let draft =
            Draft::from_canonical(&text).map_err(|fault| unexpected(doing, format!("the draft: {fault}")))?;
        if draft.action_type != self.action_type || draft.actor_id != self.actor_id {
            return Err(unexpected(doing, "the proposal says something else than its draft"));
        }
        Ok((text, draft))
    }

    /// How many approvals there are, of how many.
    pub(super) fn standing(&self) -> String {
        let mut text = format!("{} of {}", self.counted_approvals, self.required_approvals);
        if self.quorum_met {
            text += ", enough";
        } else if !self.missing_roles.is_empty() {
            text += &format!(", missing: {}", self.missing_roles.join(", "));
        }
        text
    }
}

/// The time from now until a moment.
fn left(until: &str) -> String {
    match Timestamp::parse(until.as_bytes()) {
        None => printable(until).into_owned(),
        Some(until) if until <= now() => "over".into(),
        Some(until) => duration((until.as_micros() - now().as_micros()) as f64 / 1e6),
    }
}

/// The proposal that `text` names: by its id, or by a beginning that only one open proposal has.
pub(super) async fn resolve(client: &mut Client, text: &str, doing: &str) -> Result<EntryId, Failure> {
    let lower = text.to_ascii_lowercase();
    if let Some(id) = EntryId::parse(&lower) {
        return Ok(id);
    }
    // As short as people write it, yet not so short that it is a slip.
    if lower.len() < 4 || !lower.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-') {
        return Err(Failure::Usage(format!(
            "`{text}` is not the id of a proposal, nor four digits of it or more"
        )));
    }
    let (views, _) = list(client, doing).await?;
    let mut matching = views.iter().filter(|view| view.proposal_id.starts_with(&lower));
    match (matching.next(), matching.next()) {
        (Some(view), None) => {
            EntryId::parse(&view.proposal_id).ok_or_else(|| unexpected(doing, "a proposal without an id"))
        }
        (None, _) => Err(Failure::Check(format!("no open proposal begins `{lower}`"))),
        (Some(_), Some(_)) => Err(Failure::Check(format!("more than one open proposal begins `{lower}`"))),
    }
}

pub(super) async fn fetch(client: &mut Client, id: EntryId, doing: &str) -> Result<Found, Failure> {
    let answer = client.get_json(&format!("/v1/proposals/{id}")).await.map_err(Failure::daemon(doing))?;
    Found::read(&answer).map_err(Failure::daemon(doing))
}

async fn list(client: &mut Client, doing: &str) -> Result<(Vec<View>, bool), Failure> {
    #[derive(Deserialize)]
    struct List {
        proposals: Vec<View>,
        truncated: bool,
    }
    let answer = client.get_json("/v1/proposals").await.map_err(Failure::daemon(doing))?;
    let list: List = decode(&answer).map_err(Failure::daemon(doing))?;
    Ok((list.proposals, list.truncated))
}

pub(super) async fn run(socket: &Path, args: &Proposals) -> Result<Outcome, Failure> {
    let Some(id) = &args.id else {
        return all(socket, args.json).await;
    };
    let doing = format!("show the proposal {id}");
    let mut client = connect(socket, &doing).await?;
    let id = resolve(&mut client, id, &doing).await?;
    if args.json {
        let answer =
            client.get_json(&format!("/v1/proposals/{id}")).await.map_err(Failure::daemon(&doing))?;
        print_line(&answer)?;
        return Ok(Outcome::Done);
    }
    match fetch(&mut client, id, &doing).await? {
        Found::Ended(how) => print(&format!("{}\n", printable_message(&ended(id, &how))))?,
        Found::Open(view) => {
            // Who may not read the rules sees the rest all the same.
            let rules = in_force(&mut client, &doing).await.ok();
            print(&described(&view, rules.as_ref(), &doing)?)?;
        }
    }
    Ok(Outcome::Done)
}

async fn all(socket: &Path, json: bool) -> Result<Outcome, Failure> {
    let doing = "list the proposals";
    let mut client = connect(socket, doing).await?;
    if json {
        print_line(&client.get_json("/v1/proposals").await.map_err(Failure::daemon(doing))?)?;
        return Ok(Outcome::Done);
    }
    let (mut views, truncated) = list(&mut client, doing).await?;
    if views.is_empty() {
        eprintln!("no open proposals");
        return Ok(Outcome::Done);
    }
    views.sort_by(|a, b| a.expires_at.cmp(&b.expires_at));
    let column = |title, right, least| Column { title, right, least };
    let terminal = terminal_width();
    // The beginning of an id will do, but where there is room it can be copied whole.
    let least = terminal.filter(|width| *width < WIDTH_WITH_IDS).map(|_| 9);
    let columns = vec![
        column("ID", false, least),
        column("ACTION", false, Some(8)),
        column("BY", false, Some(6)),
        column("HAVE", true, None),
        column("MISSING", false, Some(7)),
        column("LEFT", true, None),
    ];
    let mut out = String::new();
    let rows: Vec<Vec<String>> = views.iter().map(row).collect();
    Table::new(columns, terminal).render(&rows, Style::of_stdout(), &mut out);
    print(&out)?;
    if truncated {
        eprintln!("there are more than fit into one answer");
    }
    Ok(Outcome::Done)
}

fn row(view: &View) -> Vec<String> {
    let missing = match (view.quorum_met, view.missing_roles.as_slice()) {
        (true, _) => "-".into(),
        (false, []) if view.counted_approvals < u64::from(view.required_approvals) => "anybody".into(),
        (false, []) => "rejected".into(),
        (false, roles) => printable(&roles.join(", ")).into_owned(),
    };
    vec![
        printable(&view.proposal_id).into_owned(),
        printable(&view.action_type).into_owned(),
        printable(view.actor_id.as_deref().unwrap_or("-")).into_owned(),
        format!("{}/{}", view.counted_approvals, view.required_approvals),
        missing,
        left(&view.expires_at),
    ]
}

/// A proposal in full, for a person who has to say yes or no to it.
pub(super) fn described(view: &View, rules: Option<&InForce>, doing: &str) -> Result<String, Failure> {
    let style = Style::of_stdout();
    let (text, draft) = view.draft(doing)?;
    let mut out = style.bold(&format!("Proposal {}", printable(&view.proposal_id)));
    out.push('\n');
    let mut line = |name: &str, text: &str| {
        out.push_str(&format!("  {}  {}\n", style.dim(&format!("{name:<13}")), printable(text)));
    };
    line("event_type", draft.event_type.as_str());
    line("proposed by", view.actor_id.as_deref().unwrap_or("-"));
    line("opened", &view.opened_at);
    line("expires", &format!("{} (left: {})", view.expires_at, left(&view.expires_at)));
    line("approvals", &view.standing());
    for given in &view.approvals {
        let counts = if given.decision == "approve" && !given.counts { ", which does not count" } else { "" };
        let what = format!("by {} as {} at {}{counts}", given.signer, given.role, given.timestamp);
        line(if given.decision == "approve" { "  approved" } else { "  rejected" }, &what);
    }
    let changed = rules.is_some_and(|rules| rules.label() != view.rules_hash);
    let since = if changed { ", not those in force now: both must be satisfied" } else { "" };
    line("rules_hash", &format!("{}{since}", view.rules_hash));
    line("proposal_hash", &view.proposal_hash);
    line("action_hash", &Digest::of(draft.action_payload.as_bytes()).to_hex());
    let defaults = defaults_of(&draft);
    let read = |text| serde_json::from_str::<BTreeMap<String, &RawValue>>(text);
    let (mut members, defaults) = read(&text)
        .and_then(|members| Ok((members, read(&defaults)?)))
        .map_err(|error| unexpected(doing, error.to_string()))?;
    members.retain(|name, value| {
        NEEDED.contains(&name.as_str())
            || defaults.get(name).is_none_or(|default| default.get() != value.get())
    });
    members.remove("event_type");
    get::groups(members, style, &mut out);
    out.push_str(&style.dim("\nAll other members are empty or have the default of the schema.\n"));
    if let (Some(rules), "rules.set") = (rules, draft.action_type.as_str())
        && let Some(proposed) = json::member(&draft.action_payload, "rules")
    {
        let proposed =
            Rules::from_canonical(proposed).map_err(|fault| unexpected(doing, fault.to_string()))?;
        out.push_str(&format!("\n{}\n", style.bold("Against the rules in force")));
        let width = terminal_width().map(|width| width.saturating_sub(2));
        for line in changes(rules, &proposed, style, width).iter().flat_map(|line| line.lines()) {
            out.push_str(&format!("  {line}\n"));
        }
    }
    Ok(out)
}

/// The canonical draft that has the needed members of `draft` and defaults for the rest.
fn defaults_of(draft: &Draft) -> String {
    let payload = draft.action_payload.clone();
    let (event, status) = (draft.event_type, draft.execution_status);
    Draft::new(event, &draft.action_type, payload, status, draft.actor_type).to_canonical()
}

pub(super) async fn propose(socket: &Path, args: &Propose) -> Result<Outcome, Failure> {
    let doing = "propose it";
    let event = read_all(&args.event)?;
    let mut client = connect(socket, doing).await?;
    let entry = client.post_json("/v1/proposals", event).await.map_err(Failure::daemon(doing))?;
    opened(&mut client, &entry, args.json).await
}

/// Tells of a proposal that `entry` has opened.
pub(super) async fn opened(client: &mut Client, entry: &[u8], json: bool) -> Result<Outcome, Failure> {
    #[derive(Deserialize)]
    struct Opening {
        sequence_number: u64,
        action_payload: Payload,
    }
    #[derive(Deserialize)]
    struct Payload {
        proposal_id: String,
        expires_at: String,
    }
    let doing = "tell of the proposal";
    if json {
        print_line(entry)?;
        return Ok(Outcome::Done);
    }
    let opening: Opening = decode(entry).map_err(Failure::daemon(doing))?;
    let Payload { proposal_id, expires_at } = opening.action_payload;
    let mut out = format!(
        "proposed as {} (entry {})\n  until      {} (left: {})\n",
        printable(&proposal_id),
        opening.sequence_number,
        printable(&expires_at),
        left(&expires_at)
    );
    // It is open, whether or not more can be told of it.
    let id = EntryId::parse(&proposal_id).ok_or_else(|| unexpected(doing, "a proposal without an id"))?;
    if let Ok(Found::Open(view)) = fetch(client, id, doing).await {
        out.push_str(&format!("  approvals  {}\n", printable(&view.standing())));
    }
    print(&out)?;
    Ok(Outcome::Done)
}

pub(super) async fn seal(socket: &Path, args: &Seal) -> Result<Outcome, Failure> {
    let doing = format!("seal the proposal {}", args.id);
    let mut outcome = Object::new();
    outcome.text("execution_status", Some(&args.execution_status));
    outcome.json("result_data", "--result", args.result_data.as_deref())?;
    outcome.json("error_details", "--error", args.error_details.as_deref())?;
    outcome.raw("rollback_executed", args.rollback_executed.then_some(true));
    outcome.text("actor_id", args.actor_id.as_deref());
    let mut client = connect(socket, &doing).await?;
    let id = resolve(&mut client, &args.id, &doing).await?;
    let entry = client
        .post_json(&format!("/v1/proposals/{id}/seal"), outcome.finish())
        .await
        .map_err(Failure::daemon(&doing))?;
    told(&entry, &format!("sealed the proposal {id}"), args.json)
}

pub(super) async fn withdraw(socket: &Path, args: &Withdraw) -> Result<Outcome, Failure> {
    let doing = format!("withdraw the proposal {}", args.id);
    let mut request = Object::new();
    request.text("reason", Some(&args.reason));
    request.text("actor_id", args.actor_id.as_deref());
    let mut client = connect(socket, &doing).await?;
    let id = resolve(&mut client, &args.id, &doing).await?;
    let entry = client
        .post_json(&format!("/v1/proposals/{id}/withdraw"), request.finish())
        .await
        .map_err(Failure::daemon(&doing))?;
    told(&entry, &format!("withdrew the proposal {id}"), args.json)
}

/// Tells of a step that is the sealed `entry`.
pub(super) fn told(entry: &[u8], what: &str, json: bool) -> Result<Outcome, Failure> {
    #[derive(Deserialize)]
    struct Sealed {
        sequence_number: u64,
        entry_id: String,
        entry_hash: String,
        #[serde(default)]
        received_approvals: Vec<serde::de::IgnoredAny>,
    }
    let sealed: Sealed = decode(entry).map_err(Failure::daemon("tell of the entry"))?;
    // Whoever repeats it because its answer could not be written is refused.
    let recorded = |result: Result<(), Failure>| {
        result.inspect_err(|_| eprintln!("it is recorded all the same, as entry {}", sealed.sequence_number))
    };
    if json {
        recorded(print_line(entry))?;
        return Ok(Outcome::Done);
    }
    let mut out = format!(
        "{what}: entry {}\n  id         {}\n  hash       {}\n",
        sealed.sequence_number,
        printable(&sealed.entry_id),
        printable(&sealed.entry_hash)
    );
    if !sealed.received_approvals.is_empty() {
        let count = count_of(sealed.received_approvals.len() as u64, "approval", "approvals");
        out.push_str(&format!("  with       {count}\n"));
    }
    recorded(print(&out))?;
    Ok(Outcome::Done)
}
