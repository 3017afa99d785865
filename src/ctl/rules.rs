//! `attestctl rules`: what rules say, what they would change, and what they would do.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Deserialize;
use serde_json::value::RawValue;

use super::append::{Object, read_all};
use super::cli::{RulesCommand, RulesTest};
use super::proposals::opened;
use super::text::{Style, count_of, printable_message, terminal_width, wrapped};
use super::{Failure, Outcome, connect, print, print_line, unexpected};
use crate::client::{Client, ClientError, decode};
use crate::governance::Refusal;
use crate::governance::caller::Peer;
use crate::governance::governor::{Refused, Ruling, Standing};
use crate::governance::invariant::{Breach, Invariant};
use crate::governance::rules::{Demand, InForce, Rules, diff};
use crate::ledger::code::Code;
use crate::ledger::draft::Draft;
use crate::ledger::entry::EntryId;
use crate::ledger::timestamp::Timestamp;

/// The most that rules can have, as the daemon takes them.
const MAX_RULES_BYTES: u64 = 1 << 20;

pub(super) async fn run(socket: &Path, command: &RulesCommand) -> Result<Outcome, Failure> {
    match command {
        RulesCommand::Check { file } => check(file),
        RulesCommand::Show { json } => show(socket, *json).await,
        RulesCommand::Diff { file, new } => compare(socket, file, new.as_deref()).await,
        RulesCommand::Apply { file, propose, actor_id, actor_type, json } => {
            let proposer = propose.then_some((actor_id.as_deref(), actor_type.as_str()));
            apply(socket, file, proposer, *json).await
        }
        RulesCommand::Test(args) => test(socket, args).await,
    }
}

fn check(file: &Path) -> Result<Outcome, Failure> {
    let (_, rules) = read(file)?;
    explain(&rules)?;
    print(&format!("\n{} is in order: {}\n", file.display(), summary(&rules)))?;
    Ok(Outcome::Done)
}

async fn show(socket: &Path, json: bool) -> Result<Outcome, Failure> {
    let doing = "show the rules";
    let mut client = connect(socket, doing).await?;
    if json {
        print_line(&client.rules().await.map_err(Failure::daemon(doing))?)?;
        return Ok(Outcome::Done);
    }
    let rules = in_force(&mut client, doing).await?;
    explain(&rules)?;
    print(&if rules.is_default() {
        "\nno rules were ever set, so these are the defaults: whoever may connect may append and read\n"
            .into()
    } else {
        format!("\n{}; their hash:\n{}\n", summary(&rules), rules.label())
    })?;
    Ok(Outcome::Done)
}

async fn compare(socket: &Path, file: &Path, new: Option<&Path>) -> Result<Outcome, Failure> {
    let doing = "compare the rules";
    if let Some(new) = new {
        print_changes(&read(file)?.1, &read(new)?.1)?;
    } else {
        let (_, new) = read(file)?;
        let old = in_force(&mut connect(socket, doing).await?, doing).await?;
        print_changes(&old, &new)?;
    }
    Ok(Outcome::Done)
}

async fn apply(
    socket: &Path,
    file: &Path,
    proposer: Option<(Option<&str>, &str)>,
    json: bool,
) -> Result<Outcome, Failure> {
    let doing = "apply the rules";
    let (text, rules) = read(file)?;
    let mut client = connect(socket, doing).await?;
    let error = match client.set_rules(text).await {
        Ok(entry) if json => {
            print_line(&entry)?;
            return Ok(Outcome::Done);
        }
        Ok(entry) => {
            let entry: Sealed = decode(&entry).map_err(Failure::daemon(doing))?;
            print(&format!(
                "these rules are in force after entry {}: {}\n",
                entry.sequence_number,
                summary(&rules)
            ))?;
            return Ok(Outcome::Done);
        }
        Err(error) => error,
    };
    let wants_approvals =
        matches!(&error, ClientError::Refused(problem) if problem.code == Code::QuorumInvariant.as_str());
    let Some((actor_id, actor_type)) = proposer.filter(|_| wants_approvals) else {
        return Err(Failure::daemon(doing)(error));
    };
    let mut draft = Object::new();
    draft.text("event_type", Some("CHANGE"));
    draft.text("action_type", Some("rules.set"));
    draft.raw("action_payload", Some(format!("{{\"rules\":{}}}", rules.to_canonical())));
    draft.text("execution_status", Some("SUCCESS"));
    draft.text("actor_type", Some(actor_type));
    draft.text("actor_id", actor_id);
    let doing = "propose the rules";
    let entry = client.post_json("/v1/proposals", draft.finish()).await.map_err(Failure::daemon(doing))?;
    if !json {
        eprintln!("the rules in force ask for approvals, so these are proposed");
    }
    opened(&mut client, &entry, json).await
}

/// Of a sealed entry, what is told of it.
#[derive(Deserialize)]
struct Sealed {
    sequence_number: u64,
}

/// Rules from a file, with the groups of this host, and the text as it stands there.
fn read(file: &Path) -> Result<(String, Rules), Failure> {
    let mut text = String::new();
    File::open(file)
        .and_then(|opened| opened.take(MAX_RULES_BYTES + 1).read_to_string(&mut text))
        .map_err(|source| Failure::local(format!("read {}", file.display()), source))?;
    if text.len() as u64 > MAX_RULES_BYTES {
        let what = format!("{}: rules have at most {MAX_RULES_BYTES} bytes", file.display());
        return Err(Failure::Check(what));
    }
    let rules = Rules::from_toml(&text).and_then(|mut rules| {
        rules.resolve_groups(|name| {
            nix::unistd::Group::from_name(name).ok().flatten().map(|group| group.gid.as_raw())
        })?;
        Ok(rules)
    });
    let rules = rules.map_err(|fault| {
        let line = fault.line.map_or_else(String::new, |line| format!("{line}:"));
        let place = if fault.pointer.is_empty() { "" } else { &format!(" ({})", fault.pointer) };
        Failure::Check(format!("{}:{line} {}{place}", file.display(), fault.detail))
    })?;
    Ok((text, rules))
}

#[derive(Deserialize)]
struct Told {
    hash: String,
    rules: Box<RawValue>,
}

/// The rules in force. That they are those of the hash by which entries name them is checked.
pub(super) async fn in_force(client: &mut Client, doing: &str) -> Result<InForce, Failure> {
    let answer = client.rules().await.map_err(Failure::daemon(doing))?;
    let told: Told = decode(&answer).map_err(Failure::daemon(doing))?;
    let rules = match told.rules.get() {
        "null" => None,
        text => Some(Rules::from_canonical(text).map_err(|fault| unexpected(doing, fault.to_string()))?),
    };
    let rules = InForce::new(rules);
    if rules.label() != told.hash {
        return Err(unexpected(doing, "the rules are not those of the hash that comes with them"));
    }
    Ok(rules)
}

fn explain(rules: &Rules) -> Result<(), Failure> {
    let width = terminal_width();
    let lines: Vec<String> =
        rules.explain().iter().map(|line| wrapped(&printable_message(line), width, 2)).collect();
    print(&format!("{}\n", lines.join("\n")))
}

fn summary(rules: &Rules) -> String {
    let count = |count: usize, one| count_of(count as u64, one, &format!("{one}s"));
    format!(
        "{}, {}, {}, {}",
        count(rules.callers().len(), "caller"),
        count(rules.approvers().len(), "approver"),
        count(rules.actions().len(), "action"),
        count(rules.provers().len(), "prover")
    )
}

fn print_changes(old: &Rules, new: &Rules) -> Result<(), Failure> {
    let lines = changes(old, new, Style::of_stdout(), terminal_width());
    print(&format!("{}\n", lines.join("\n")))
}

/// What changes from `old` to `new`, as lines for a person.
pub(super) fn changes(old: &Rules, new: &Rules, style: Style, width: Option<usize>) -> Vec<String> {
    let lines = diff(old, new);
    if lines.is_empty() {
        let nothing = if old == new { "nothing changes" } else { "nothing changes but the order" };
        return vec![nothing.into()];
    }
    let paint = |line: &String| {
        let shown = wrapped(&printable_message(line), width, 2);
        match line.as_bytes() {
            [b'-', ..] => style.bad(&shown),
            [b'+', ..] => style.good(&shown),
            _ => shown,
        }
    };
    lines.iter().map(paint).collect()
}

async fn test(socket: &Path, args: &RulesTest) -> Result<Outcome, Failure> {
    let doing = "try the rules";
    let event = read_all(&args.event)?;
    let (rules, origin) = match &args.rules {
        Some(file) => (InForce::new(Some(read(file)?.1)), args.origin.clone().unwrap_or_default()),
        None => {
            let mut client = connect(socket, doing).await?;
            (in_force(&mut client, doing).await?, origin(&mut client, doing).await?)
        }
    };
    let Some(caller) = rules.callers().iter().find(|caller| caller.name == args.caller) else {
        let names: Vec<&str> = rules.callers().iter().map(|caller| caller.name.as_str()).collect();
        let names = if names.is_empty() { "none at all".into() } else { names.join(", ") };
        let what = format!("the rules have no caller `{}`; there is {names}", args.caller);
        return Err(Failure::Usage(what));
    };
    let draft = match Draft::parse(&event) {
        Ok(draft) => draft,
        Err(fault) => {
            print(&format!(
                "it would be refused, without an entry: {}\n",
                printable_message(&fault.to_string())
            ))?;
            return Ok(Outcome::Wrong);
        }
    };
    let peer = caller.example();
    let standing = Standing {
        origin: origin.into(),
        rules,
        attribution_verified: true,
        keys: Arc::default(),
        generation: 0,
    };
    let id = draft.entry_id.unwrap_or(EntryId([0; 16]));
    let verdict = standing.append(&draft, &peer, id, now());
    let (text, outcome) = tell(&standing.rules, &args.caller, &peer, &draft, verdict);
    print(&text)?;
    Ok(outcome)
}

/// The name of the daemon's ledger.
pub(super) async fn origin(client: &mut Client, doing: &str) -> Result<String, Failure> {
    #[derive(Deserialize)]
    struct Keys {
        origin: String,
    }
    let keys: Keys = client.keys().await.and_then(|keys| decode(&keys)).map_err(Failure::daemon(doing))?;
    Ok(keys.origin)
}

pub(super) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_micros(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}

fn tell(
    rules: &InForce,
    name: &str,
    peer: &Peer,
    draft: &Draft,
    verdict: Result<Ruling, Refused>,
) -> (String, Outcome) {
    let width = terminal_width();
    let mut out = String::new();
    let mut line = |name: &str, text: &str| {
        out.push_str(&wrapped(&format!("  {name:<10} {}", printable_message(text)), width, 13));
        out.push('\n');
    };
    let mut demand = rules.demand(&draft.action_type);
    demand.join(&Demand::asked(Vec::new(), draft.required_approvals));
    let (heading, outcome) = match verdict {
        Ok(ruling) => {
            line("as", &format!("`{}`", ruling.actor_id));
            line("proofs", &proofs(&ruling.judged.provided_proofs, &demand_proofs(&ruling)));
            if draft.pillars_scores.is_some() {
                let side = if ruling.judged.safety_floor_met { "not under" } else { "under" };
                let score = ruling.judged.composite_score;
                line("score", &format!("{score}, {side} the floor of {}", rules.scale().floor));
            }
            line("approvals", &approvals(&demand));
            let recorded = if ruling.judged.proofs_valid && ruling.judged.quorum_met {
                "it would be sealed"
            } else {
                "it would be sealed as what it is: an event that was not done, or not in order"
            };
            (recorded.to_owned(), Outcome::Done)
        }
        Err(Refused::Plain(refusal)) => {
            line("why", &with_place(&refusal));
            ("it would be refused, without an entry".to_owned(), Outcome::Wrong)
        }
        Err(Refused::Violation(violation)) => {
            let broken = match violation.breach {
                Breach::Invariant(invariant) => invariant.as_str(),
                Breach::Proof => "a required proof",
            };
            line("why", &with_place(&Refusal::from(violation.clone())));
            if violation.breach == Breach::Invariant(Invariant::Quorum) {
                line("needs", &approvals(&demand));
            }
            line("instead", violation.breach.remediation());
            let heading = format!("it would be refused, and the attempt recorded as a VIOLATION: {broken}");
            (heading, Outcome::Wrong)
        }
    };
    if let Some(first) = rules.caller(peer).filter(|first| first.name != name) {
        line(
            "note",
            &format!("`{}` stands first and matches such a process, too: it is judged as that", first.name),
        );
    }
    (format!("{heading}\n{out}"), outcome)
}

fn with_place(refusal: &Refusal) -> String {
    let place = if refusal.pointer.is_empty() { String::new() } else { format!(" at {}", refusal.pointer) };
    format!("{} ({}{place})", refusal.detail, refusal.code.as_str())
}

fn demand_proofs(ruling: &Ruling) -> Vec<String> {
    serde_json::from_str(&ruling.judged.required_proofs).unwrap_or_default()
}

/// Each proof that is provided or required, and whether it is valid.
fn proofs(provided: &str, required: &[String]) -> String {
    #[derive(Deserialize)]
    struct Proof {
        r#type: String,
        valid: bool,
        reason: Option<String>,
    }
    let provided: Vec<Proof> = serde_json::from_str(provided).unwrap_or_default();
    let mut texts: Vec<String> = provided
        .iter()
        .map(|proof| match (proof.valid, &proof.reason) {
            (true, _) => format!("{} is valid", proof.r#type),
            (false, None) => format!("{} is not valid", proof.r#type),
            (false, Some(reason)) => format!("{} is not valid ({reason})", proof.r#type),
        })
        .collect();
    let missing = required.iter().filter(|kind| !provided.iter().any(|proof| proof.r#type == **kind));
    texts.extend(missing.map(|kind| format!("{kind} is missing")));
    if texts.is_empty() { "none needed".into() } else { texts.join("; ") }
}

fn approvals(demand: &Demand) -> String {
    if demand.approvals == 0 {
        return "none needed".into();
    }
    let roles = match demand.roles.as_slice() {
        [] => String::new(),
        roles => format!(", as {}", roles.join(", ")),
    };
    let within = super::text::duration(f64::from(demand.lifetime_seconds));
    format!("{}{roles}, within {within}", count_of(demand.approvals.into(), "approval", "approvals"))
}
