//! `attestctl approve`: shows a person what is proposed, and signs exactly that.
//!
//! The statement is made here, never taken from the daemon: of the draft that is shown, of the rules
//! in force, and of the entry that opened the proposal, whose hash is computed again. So a daemon
//! that shows one thing and has another one signed gets no signature.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::path::Path;

use super::append::Object;
use super::cli::Approve;
use super::pen::{Pen, read_signature, read_statement, write_statement};
use super::proposals::{Found, View, described, fetch, resolve, told};
use super::rules::{in_force, origin};
use super::text::printable;
use super::{Failure, Outcome, connect, print, unexpected};
use crate::client::{Client, Query};
use crate::governance::approval::{Decision, NAMESPACE, ProposalId, Subject};
use crate::governance::key::Key;
use crate::governance::rules::{Approver, InForce};
use crate::ledger::canonical;
use crate::ledger::draft::Draft;
use crate::ledger::entry::EntryId;
use crate::ledger::hash::Digest;
use crate::ledger::json;
use crate::ledger::timestamp::Timestamp;

pub(super) async fn run(socket: &Path, args: &Approve) -> Result<Outcome, Failure> {
    let decision = if args.reject { Decision::Reject } else { Decision::Approve };
    let doing = format!("{} the proposal {}", decision.as_str(), args.id);
    let signs = args.key.is_some() || args.token.is_some() || args.ssh.is_some();
    let asks = signs && !args.yes;
    // First what can fail without the daemon, and a login to a token last of that.
    let brought = args.signature.as_deref().map(read_signature).transpose()?;
    if asks && !io::stdin().is_terminal() {
        let what = "standard input is no terminal to ask on: --yes signs without asking";
        return Err(Failure::Usage(what.into()));
    }
    let pen = Pen::of(args)?;

    let mut client = connect(socket, &doing).await?;
    let id = resolve(&mut client, &args.id, &doing).await?;
    let view = fetch(&mut client, id, &doing).await?.open(id)?;
    let rules = in_force(&mut client, &doing).await?;
    let subject = subject(&mut client, id, &view, &doing).await?;
    let text = described(&view, Some(&rules), &doing)?;
    let text = format!("{text}\nLedger  {}\n", printable(&subject.origin));
    // Nobody is asked about what was not shown.
    match (args.json, asks) {
        (false, _) => print(&text).map_err(unseen)?,
        (true, true) => eprint!("{text}"),
        (true, false) => {}
    }
    // A person may take longer than a connection lasts.
    drop(client);

    let (statement, signature) = if let Some(mut pen) = pen {
        let approver = approver(&rules, &view, args.signer.as_deref(), Some(&pen.key))?;
        if asks && !confirmed(decision, approver)? {
            return Err(Failure::Check("nothing was signed".into()));
        }
        let statement = subject.statement(approver, decision);
        let signature = pen.sign(&statement)?;
        check(approver, &statement, &signature)?;
        (statement, signature)
    } else if let Some(signature) = brought {
        let given = args.statement.as_deref().map(read_statement).transpose()?;
        let statement = signed(&subject, &rules, args, decision, given.as_deref(), &signature)?;
        (statement, signature)
    } else {
        let approver = approver(&rules, &view, args.signer.as_deref(), None)?;
        return write_out(args, &subject.statement(approver, decision));
    };

    let mut request = Object::new();
    request.text("signature", Some(&signature));
    request.text("statement", Some(&statement));
    let mut client = connect(socket, &doing).await?;
    let entry = client
        .post_json(&format!("/v1/proposals/{id}/approvals"), request.finish())
        .await
        .map_err(Failure::daemon(&doing))?;
    let past = match decision {
        Decision::Approve => "approved",
        Decision::Reject => "rejected",
    };
    let before = if args.json { "" } else { "\n" };
    let outcome = told(&entry, &format!("{before}{past} the proposal {id}"), args.json)?;
    if !args.json {
        print(&what_next(&mut client, id, &doing).await)?;
    }
    Ok(outcome)
}

/// A reader who went away has not seen enough here: nothing is signed, and that is no success.
fn unseen(failure: Failure) -> Failure {
    match failure {
        Failure::Output(source) => Failure::local("show the proposal, so nothing is signed", source),
        other => other,
    }
}

/// What every statement about the proposal holds, none of it on the daemon's word alone but the
/// name of its ledger, which is shown.
async fn subject(client: &mut Client, id: EntryId, view: &View, doing: &str) -> Result<Subject, Failure> {
    let wrong = |what: &str| Failure::Check(format!("{what}: nothing is signed"));
    let (draft, read) = view.draft(doing)?;
    if view.proposal_id != id.to_string() {
        return Err(wrong("the daemon shows another proposal than was asked for"));
    }
    let hash = Digest::from_hex(view.proposal_hash.as_bytes());
    let expires_at = Timestamp::parse(view.expires_at.as_bytes());
    let (Some(proposal_hash), Some(expires_at)) = (hash, expires_at) else {
        return Err(unexpected(doing, "a proposal without its hash or its end"));
    };
    let opening = opening(client, view, doing).await?;
    check_opening(&opening, view, &draft).map_err(|what| wrong(&what))?;
    Ok(Subject {
        action_hash: action_hash(&read),
        action_type: read.action_type,
        expires_at,
        origin: origin(client, doing).await?,
        proposal_hash,
        proposal_id: ProposalId(id),
        rules_hash: view.rules_hash.clone(),
    })
}

fn action_hash(draft: &Draft) -> Digest {
    Digest::of(draft.action_payload.as_bytes())
}

/// The canonical line of the entry that opened the proposal.
async fn opening(client: &mut Client, view: &View, doing: &str) -> Result<String, Failure> {
    let at = Timestamp::parse(view.opened_at.as_bytes())
        .ok_or_else(|| unexpected(doing, "a proposal that was opened at no time"))?;
    // Entries can share a moment, a few of them.
    let mut query = Query::new()
        .with("action_type", "proposal.open")
        .with("since", at)
        .with("until", Timestamp::from_micros(at.as_micros() + 1))
        .with("order", "asc");
    let first = query.clone();
    loop {
        let page = client.list(&query).await.map_err(Failure::daemon(doing))?;
        let hash = format!("\"entry_hash\":\"{}\"", view.proposal_hash);
        if let Some(entry) = page.entries.iter().find(|entry| entry.get().contains(&hash)) {
            return Ok(entry.get().to_owned());
        }
        match page.next {
            Some(next) => query = first.clone().with("cursor", next),
            None => {
                let what = "the ledger shows no entry that opened the proposal: nothing is signed";
                return Err(Failure::Check(what.into()));
            }
        }
    }
}

/// Checks that `line` is the entry of the hash that is signed, and that it opened what is shown.
fn check_opening(line: &str, view: &View, draft: &str) -> Result<(), String> {
    let decoded =
        canonical::decode(line.as_bytes()).map_err(|fault| format!("the entry that opened it: {fault}"))?;
    let entry = &decoded.entry;
    if decoded.computed_hash.to_hex() != view.proposal_hash || decoded.computed_hash != entry.entry_hash {
        return Err("the entry that opened the proposal has another hash".into());
    }
    if entry.action_type != "proposal.open" || !entry.is_daemons() {
        return Err("the hash is not of an entry that opens a proposal".into());
    }
    let text =
        |name: &str| json::member(entry.action_payload, name).map(|value| json::unquote(value.as_bytes()));
    let same = json::member(entry.action_payload, "draft") == Some(draft)
        && text("proposal_id").as_ref() == Some(&view.proposal_id)
        && text("expires_at").as_ref() == Some(&view.expires_at)
        && text("rules_hash").as_ref() == Some(&view.rules_hash);
    if same { Ok(()) } else { Err("what the ledger holds is not what the daemon shows as proposed".into()) }
}

/// The approver called `name`, or the one whose key `key` is; both where both are given.
fn approver<'a>(
    rules: &'a InForce,
    view: &View,
    name: Option<&str>,
    key: Option<&Key>,
) -> Result<&'a Approver, Failure> {
    let approver = match (name, key) {
        (Some(name), _) => rules
            .approver(name)
            .ok_or_else(|| Failure::Check(format!("the rules in force have no approver `{name}`")))?,
        (None, Some(key)) => {
            rules.approvers().iter().find(|approver| approver.key.point() == key.point()).ok_or_else(
                || Failure::Check(format!("no approver of the rules in force has the key {}", key.id())),
            )?
        }
        (None, None) => return Err(Failure::Usage("--signer is needed".into())),
    };
    if let Some(key) = key {
        if approver.key.point() != key.point() {
            return Err(Failure::Check(format!("the rules give `{}` another key", approver.name)));
        }
        // One point, but two forms of signature.
        if approver.key != *key {
            let form = approver.key.algorithm().as_str();
            let what = format!("the rules name this key of `{}` as one of {form}", approver.name);
            return Err(Failure::Check(what));
        }
    }
    if view.approvals.iter().any(|given| given.signer == approver.name) {
        return Err(Failure::Check(format!(
            "`{}` has decided on it already, and that is final",
            approver.name
        )));
    }
    Ok(approver)
}

/// Whether the person says yes; on standard error, so that standard output has what was asked for.
fn confirmed(decision: Decision, approver: &Approver) -> Result<bool, Failure> {
    let what = match decision {
        Decision::Approve => "Approve",
        Decision::Reject => "Reject",
    };
    eprint!("\n{what} this as `{}` ({})? [y/N] ", printable(&approver.name), printable(&approver.role));
    io::stderr().flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).map_err(|source| Failure::local("read the answer", source))?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn check(approver: &Approver, statement: &str, signature: &str) -> Result<(), Failure> {
    approver.key.verify(statement.as_bytes(), signature, NAMESPACE).map_err(|why| {
        Failure::Check(format!("the signature is none by `{}`: {why}; nothing was sent", approver.name))
    })
}

/// The statement that `signature` is over: the one that was brought, or else the signer's, or else
/// that of the approver whose key verifies it.
fn signed(
    subject: &Subject,
    rules: &InForce,
    args: &Approve,
    decision: Decision,
    given: Option<&str>,
    signature: &str,
) -> Result<String, Failure> {
    let mut candidates = rules
        .approvers()
        .iter()
        .filter(|approver| args.signer.as_ref().is_none_or(|name| approver.name == *name))
        .map(|approver| (approver, subject.statement(approver, decision)));
    if let Some(given) = given {
        let (approver, statement) =
            candidates.find(|(_, statement)| statement == given).ok_or_else(|| {
                let word = decision.as_str();
                let what = format!(
                    "the statement is not the one to {word} what is shown, for any approver that is meant"
                );
                Failure::Check(what)
            })?;
        check(approver, &statement, signature)?;
        return Ok(statement);
    }
    if let Some(name) = &args.signer {
        let (approver, statement) = candidates
            .next()
            .ok_or_else(|| Failure::Check(format!("the rules in force have no approver `{name}`")))?;
        check(approver, &statement, signature)?;
        return Ok(statement);
    }
    candidates
        .find(|(approver, statement)| approver.key.verify(statement.as_bytes(), signature, NAMESPACE).is_ok())
        .map(|(_, statement)| statement)
        .ok_or_else(|| {
            let word = decision.as_str();
            Failure::Check(format!("the signature is of no approver's statement to {word} what is shown"))
        })
}

fn write_out(args: &Approve, statement: &str) -> Result<Outcome, Failure> {
    let Some(file) = &args.statement_out else {
        return Err(Failure::Usage("nothing to sign with".into()));
    };
    write_statement(file, statement)?;
    if !args.json {
        let name = file.display();
        eprintln!("\n{name} holds the bytes to sign, for example with one of");
        eprintln!("  ssh-keygen -Y sign -n {NAMESPACE} -f KEY {name}");
        eprintln!("  openssl dgst -sha256 -sign KEY.pem -out {name}.sig {name}");
        eprintln!("and then: attestctl approve {} --signature {name}.sig", args.id);
    }
    Ok(Outcome::Done)
}

/// Where the proposal stands after a decision. It is recorded, whatever becomes of this.
async fn what_next(client: &mut Client, id: EntryId, doing: &str) -> String {
    match fetch(client, id, doing).await {
        Ok(Found::Open(view)) => {
            let mut text = format!("  approvals  {}\n", printable(&view.standing()));
            if view.quorum_met {
                text += &format!("it can be sealed: attestctl seal {id} --status SUCCESS\n");
            }
            text
        }
        _ => String::new(),
    }
}
