//! The rules, and the life of a proposal: opened, decided on by approvers, sealed or ended.
//!
//! Each step is an entry, and the answer to it is that entry. A step is judged on the sequencer's
//! thread by what stands when its turn comes, so that of two that exclude each other one is refused.

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Extension, Path, Query, Request, State};
use axum::http::StatusCode;
use axum::response::Response;

use super::append::{check_dependencies, leased, read_body, take_memory};
use super::budget::Lease;
use super::keys;
use super::problem::Problem;
use super::read::Parameters;
use super::service::Service;
use crate::caller::Peer;
use crate::governance::approval::{Decision, ProposalId};
use crate::governance::caller::{Admission, named};
use crate::governance::governor::{self, Governor, Refused};
use crate::governance::keyring;
use crate::governance::proposal::Proposal;
use crate::governance::rules::{self, InForce, Rules, Verb};
use crate::governance::{Policy, Refusal};
use crate::ledger::code::Code;
use crate::ledger::draft::Draft;
use crate::ledger::entry::{EntryId, EventCategory, EventType, ExecutionStatus};
use crate::ledger::json;
use crate::ledger::timestamp::Timestamp;
use crate::sequencer::{Event, Outcome, Step, fresh_id, now};

/// What a page of proposals may take; each holds a draft.
const LIST_BYTES: usize = 4 << 20;

/// `GET /v1/rules`: the rules in force.
pub(super) async fn rules(
    State(service): State<Arc<Service>>,
    Extension(peer): Extension<Arc<Peer>>,
) -> Response {
    let result = async {
        service.check_verb(&peer, Verb::Read)?;
        let governor = service.governor();
        let rules = &governor.standing().rules;
        let mut out = b"{\"hash\":".to_vec();
        json::write_string(rules.label(), &mut out);
        out.extend_from_slice(b",\"rules\":");
        let text = if rules.is_default() { "null".to_owned() } else { rules.to_canonical() };
        out.extend_from_slice(text.as_bytes());
        out.push(b'}');
        let lease = take_memory(&service, peer.uid, out.len()).await?;
        Ok(leased(StatusCode::OK, out, lease))
    };
    let result = result.await;
    service.answer(result)
}

/// `PUT /v1/rules`: sets the rules that the TOML text in the body says, where no approval is needed.
pub(super) async fn set_rules(
    State(service): State<Arc<Service>>,
    Extension(peer): Extension<Arc<Peer>>,
    request: Request,
) -> Response {
    let result = async {
        service.check_verb(&peer, Verb::Administer)?;
        let (body, lease) = read_body(&service, peer.uid, request).await?;
        let text = std::str::from_utf8(&body).map_err(|_| Problem::new(Code::JsonUtf8, "not UTF-8"))?;
        let rules = read_rules(text)?;
        let peer = peer.clone();
        step(&service, Event::Step(set(Some(rules), Some(peer))), lease).await
    };
    let result = result.await;
    service.answer(result)
}

/// Rules from the text of a TOML file, with the host's groups.
///
/// # Errors
/// The first fault, with its line.
pub(crate) fn read_rules(text: &str) -> Result<Rules, rules::Fault> {
    let mut rules = Rules::from_toml(text)?;
    rules.resolve_groups(|name| {
        nix::unistd::Group::from_name(name).ok().flatten().map(|group| group.gid.as_raw())
    })?;
    Ok(rules)
}

/// The entry that puts `rules` in force, for the daemon itself or at the word of `by`.
pub(crate) fn set(rules: Option<Rules>, by: Option<Arc<Peer>>) -> Step {
    Box::new(move |governor, policy, _| {
        if let Some(rules) = &rules {
            governor.check_rules(rules).map_err(Refusal::from)?;
        }
        if !governor.may_perform("rules.set") {
            let detail = "the rules in force ask for approvals: propose `rules.set` with these rules";
            return Err(Refusal::new(Code::QuorumInvariant).because(detail).into());
        }
        let standing = governor.standing();
        let by = by.as_ref().map(|peer| caller(&standing.rules, peer, Some(Verb::Administer))).transpose()?;
        let by = by.as_ref().map(|(actor_id, peer_json)| (actor_id.as_str(), peer_json.as_str()));
        let payload = Governor::set_rules(rules.as_ref(), by);
        let draft = own(EventType::Change, "rules.set", payload);
        Ok(policy.own_under(standing.rules.label(), draft, fresh_id()))
    })
}

/// As whom `peer` acts, and its canonical object with its caller.
pub(super) fn caller(rules: &InForce, peer: &Peer, verb: Option<Verb>) -> Result<(String, String), Refusal> {
    let admission = Admission::of(rules, peer.kernel(), verb)?;
    let actor_id = admission.actor_id(None).unwrap_or_else(|_| format!("uid:{}", peer.uid));
    Ok((actor_id, named(peer.to_json(), admission.name()).into_owned()))
}

pub(super) fn own(event_type: EventType, action: &str, payload: String) -> Draft {
    Draft::own(event_type, EventCategory::Normal, action, payload)
}

/// Has an event written and answers with its entry.
pub(super) async fn step(service: &Service, event: Event, lease: Lease) -> Result<Response, Problem> {
    let line = perform(service, event).await?.map_err(|refused| Problem::from(Refusal::from(refused)))?;
    Ok(leased(StatusCode::CREATED, line, lease))
}

/// Has an event written; gives the line of its entry, or why governance refused it.
pub(super) async fn perform(service: &Service, event: Event) -> Result<Result<Vec<u8>, Refused>, Problem> {
    match service.sequencer.perform(event).await? {
        Outcome::Committed { commit, index, .. } => Ok(Ok(commit.line(index))),
        Outcome::Governed(governed) => Ok(Err(governed.refused)),
        Outcome::Held { id, sequence, hash } => Ok(Ok(super::append::held(id, sequence, hash).into_bytes())),
        Outcome::Refused(refused) => Err(refused.into()),
        Outcome::Earlier { id, .. } | Outcome::Unknown(id) => Err(super::append::unknown(id)),
    }
}

/// `POST /v1/proposals`.
pub(super) async fn open(
    State(service): State<Arc<Service>>,
    Extension(peer): Extension<Arc<Peer>>,
    request: Request,
) -> Response {
    let result = async {
        service.check_verb(&peer, Verb::Propose)?;
        let (body, lease) = read_body(&service, peer.uid, request).await?;
        let draft = Draft::parse_proposal(&body)?;
        drop(body);
        keys::check_proposed(&service, &draft.action_type, &draft.action_payload).await?;
        let (dependencies, given) = (draft.dependencies.clone(), draft.entry_id);
        service
            .read(move |service, _| {
                check_dependencies(service, &dependencies)?;
                match given.map(|id| service.index.find(id)).transpose()?.flatten() {
                    Some(_) => Err(crate::sequencer::Refused::IdTaken.into()),
                    None => Ok(()),
                }
            })
            .await?;
        let id = ProposalId(fresh_id());
        let peer = peer.clone();
        let attempt = draft.clone();
        let offender = peer.clone();
        let opening: Step = Box::new(move |governor, policy, now| {
            let rules = &governor.standing().rules;
            let (_, peer_json) = caller(rules, &peer, Some(Verb::Propose))?;
            // The rules have a limit of their own, by which they are proposed, too.
            let limit = if draft.action_type == "rules.set" {
                crate::ledger::canonical::MAX_ENTRY_BYTES
            } else {
                policy.max_entry_bytes()
            };
            let payload = governor.open(draft, peer.kernel(), &peer_json, id, now, limit)?;
            Ok(policy.own_under(
                rules.label(),
                own(EventType::Decision, "proposal.open", payload),
                fresh_id(),
            ))
        });
        match perform(&service, Event::Step(opening)).await? {
            Ok(line) => Ok(leased(StatusCode::CREATED, line, lease)),
            Err(Refused::Plain(refusal)) => Err(refusal.into()),
            Err(Refused::Violation(violation)) => {
                Err(service.violation(&offender, attempt, None, violation).await)
            }
        }
    };
    let result = result.await;
    service.answer(result)
}

/// `POST /v1/proposals/{id}/approvals`: brings the signature of an approver, of either decision.
pub(super) async fn decide(
    State(service): State<Arc<Service>>,
    Extension(peer): Extension<Arc<Peer>>,
    id: Result<Path<String>, PathRejection>,
    request: Request,
) -> Response {
    let result = async {
        service.check_verb(&peer, None)?;
        let id = proposal_id(id)?;
        let (body, lease) = read_body(&service, peer.uid, request).await?;
        let members = Members::parse(&body, &["signature", "statement"])?;
        let (statement, signature) = (members.text("statement")?, members.text("signature")?);
        // What does not verify does not cost the sequencer's time.
        let governor = service.governor();
        let (_, peer_json) = caller(&governor.standing().rules, &peer, None)?;
        governor.decide(id, &statement, &signature, peer.kernel(), &peer_json, now())?;
        let peer = peer.clone();
        let deciding: Step = Box::new(move |governor, policy, now| {
            let rules = &governor.standing().rules;
            let (_, peer_json) = caller(rules, &peer, None)?;
            let (action, payload) =
                governor.decide(id, &statement, &signature, peer.kernel(), &peer_json, now)?;
            Ok(policy.own_under(rules.label(), own(EventType::Decision, action, payload), fresh_id()))
        });
        step(&service, Event::Step(deciding), lease).await
    };
    let result = result.await;
    service.answer(result)
}

/// `POST /v1/proposals/{id}/withdraw`.
pub(super) async fn withdraw(
    State(service): State<Arc<Service>>,
    Extension(peer): Extension<Arc<Peer>>,
    id: Result<Path<String>, PathRejection>,
    request: Request,
) -> Response {
    let result = async {
        service.check_verb(&peer, None)?;
        let id = proposal_id(id)?;
        let (body, lease) = read_body(&service, peer.uid, request).await?;
        let members = Members::parse(&body, &["actor_id", "reason"])?;
        let (reason, claimed) = (members.text("reason")?, members.optional_text("actor_id")?);
        let peer = peer.clone();
        let withdrawing: Step = Box::new(move |governor, policy, now| {
            let rules = &governor.standing().rules;
            let (_, peer_json) = caller(rules, &peer, None)?;
            let payload =
                governor.withdraw(id, &reason, claimed.as_deref(), peer.kernel(), &peer_json, now)?;
            let draft = own(EventType::Decision, "proposal.withdraw", payload);
            Ok(policy.own_under(rules.label(), draft, fresh_id()))
        });
        step(&service, Event::Step(withdrawing), lease).await
    };
    let result = result.await;
    service.answer(result)
}

/// `POST /v1/proposals/{id}/seal`.
pub(super) async fn seal(
    State(service): State<Arc<Service>>,
    Extension(peer): Extension<Arc<Peer>>,
    id: Result<Path<String>, PathRejection>,
    request: Request,
) -> Response {
    let result = async {
        service.check_verb(&peer, Verb::Seal)?;
        let id = proposal_id(id)?;
        let (body, lease) = read_body(&service, peer.uid, request).await?;
        let members = Members::parse(
            &body,
            &["actor_id", "error_details", "execution_status", "result_data", "rollback_executed"],
        )?;
        let outcome = members.outcome()?;
        let claimed = members.optional_text("actor_id")?;
        let mut attempt = service.governor().proposal(id)?.draft.clone();
        attempt.execution_status = outcome.execution_status;
        attempt.result_data.clone_from(&outcome.result_data);
        attempt.error_details.clone_from(&outcome.error_details);
        attempt.rollback_executed = outcome.rollback_executed;
        let (sealer, offender) = (peer.clone(), peer.clone());
        let rotates = attempt.action_type == keyring::ROTATE;
        // Nobody has a token opened for what could not be sealed.
        let trial = outcome.clone();
        let governor = service.governor();
        let possible = governor.seal(id, trial, claimed.as_deref(), peer.kernel(), fresh_id(), now());
        let seal = move |governor: &Governor, policy: &Policy, now: Timestamp, found: Vec<keys::Found>| {
            let standing = governor.standing();
            let (_, peer_json) = caller(&standing.rules, &sealer, Some(Verb::Seal))?;
            let fresh = fresh_id();
            let sealing = governor.seal(id, outcome, claimed.as_deref(), sealer.kernel(), fresh, now)?;
            let payload = sealing.payload(&peer_json).map(|payload| keys::with_members(&payload, &found));
            let payload = payload.transpose()?;
            Ok(policy.admit_sealed(standing, sealing, payload, sealer.to_json(), fresh)?)
        };
        let event = if rotates && possible.is_ok() {
            keys::sealing(&service, &attempt.action_payload, seal).await?
        } else {
            let found = match attempt.action_type.as_str() {
                keyring::REVOKE => keys::revoking(&service, &attempt.action_payload).await?,
                _ => Vec::new(),
            };
            Event::Step(Box::new(move |governor, policy, now| seal(governor, policy, now, found)))
        };
        match perform(&service, event).await? {
            Ok(line) => Ok(leased(StatusCode::CREATED, line, lease)),
            Err(Refused::Plain(refusal)) => Err(refusal.into()),
            Err(Refused::Violation(violation)) => {
                Err(service.violation(&offender, attempt, Some(id), violation).await)
            }
        }
    };
    let result = result.await;
    service.answer(result)
}

/// `GET /v1/proposals`: those that are open.
pub(super) async fn list(
    State(service): State<Arc<Service>>,
    Extension(peer): Extension<Arc<Peer>>,
) -> Response {
    let result = async {
        service.check_any(&peer, &[Verb::Read, Verb::Propose, Verb::Seal])?;
        let governor = service.governor();
        let rules = &governor.standing().rules;
        let mut lease = take_memory(&service, peer.uid, LIST_BYTES).await?;
        let admission = Admission::of(rules, peer.kernel(), None)?;
        let mut out = b"{\"proposals\":[".to_vec();
        let mut more = false;
        for proposal in governor.open_proposals() {
            if !admission.discloses(rules, &proposal.draft.action_type) {
                continue;
            }
            let view = view(proposal, rules);
            if out.len() + view.len() > LIST_BYTES - 64 {
                more = true;
                break;
            }
            if !out.ends_with(b"[") {
                out.push(b',');
            }
            out.extend_from_slice(view.as_bytes());
        }
        out.extend_from_slice(format!("],\"truncated\":{more}}}").as_bytes());
        lease.shrink(LIST_BYTES - out.len());
        Ok(leased(StatusCode::OK, out, lease))
    };
    let result = result.await;
    service.answer(result)
}

/// `GET /v1/proposals/{id}`.
pub(super) async fn show(
    State(service): State<Arc<Service>>,
    Extension(peer): Extension<Arc<Peer>>,
    id: Result<Path<String>, PathRejection>,
) -> Response {
    let result = async {
        service.check_any(&peer, &[Verb::Read, Verb::Propose, Verb::Seal])?;
        let id = proposal_id(id)?;
        let governor = service.governor();
        let out = match governor.ending(id) {
            Some(ending) => format!(r#"{{"proposal_id":"{id}","state":"{}"}}"#, ending.as_str()),
            None => view(disclosed(&governor, &peer, id)?, &governor.standing().rules),
        };
        let lease = take_memory(&service, peer.uid, out.len()).await?;
        Ok(leased(StatusCode::OK, out.into_bytes(), lease))
    };
    let result = result.await;
    service.answer(result)
}

/// `GET /v1/proposals/{id}/statement?signer=&decision=`: the very bytes that an approver signs.
pub(super) async fn statement(
    State(service): State<Arc<Service>>,
    Extension(peer): Extension<Arc<Peer>>,
    id: Result<Path<String>, PathRejection>,
    Query(parameters): Parameters,
) -> Response {
    let result = async {
        service.check_any(&peer, &[Verb::Read, Verb::Propose, Verb::Seal])?;
        let bad = |detail: &str| Problem::new(Code::BadParameter, detail);
        let id = proposal_id(id)?;
        let (mut signer, mut decision) = (None, None);
        for (name, value) in &parameters {
            let seen = match name.as_str() {
                "signer" => &mut signer,
                "decision" => &mut decision,
                _ => return Err(bad(&format!("there is no parameter `{name}`"))),
            };
            if seen.replace(value.as_str()).is_some() {
                return Err(bad(&format!("`{name}` is given twice")));
            }
        }
        let decision = match decision {
            None | Some("approve") => Decision::Approve,
            Some("reject") => Decision::Reject,
            Some(_) => return Err(bad("`decision` is approve or reject")),
        };
        let signer = signer.ok_or_else(|| bad("`signer` is needed"))?;
        let governor = service.governor();
        let proposal = disclosed(&governor, &peer, id)?;
        let approver = proposal.rules.approver(signer).ok_or_else(|| Refusal::new(Code::ApproverUnknown))?;
        let out = proposal.subject.statement(approver, decision);
        let lease = take_memory(&service, peer.uid, out.len()).await?;
        Ok(leased(StatusCode::OK, out.into_bytes(), lease))
    };
    let result = result.await;
    service.answer(result)
}

/// Whoever may not see a proposal hears that there is none.
fn disclosed<'a>(governor: &'a Governor, peer: &Peer, id: ProposalId) -> Result<&'a Proposal, Problem> {
    let proposal = governor.proposal(id)?;
    let rules = &governor.standing().rules;
    if Admission::of(rules, peer.kernel(), None)?.discloses(rules, &proposal.draft.action_type) {
        Ok(proposal)
    } else {
        Err(Refusal::new(Code::ProposalUnknown).into())
    }
}

fn proposal_id(path: Result<Path<String>, PathRejection>) -> Result<ProposalId, Problem> {
    path.ok()
        .and_then(|Path(text)| EntryId::parse(&text))
        .map(ProposalId)
        .ok_or_else(|| Problem::new(Code::BadParameter, "a proposal is named by a lower-case UUID"))
}

/// A proposal as people and programs look at it.
fn view(proposal: &Proposal, rules: &InForce) -> String {
    let demand = proposal.demand_now(rules);
    let nobody = crate::governance::proposal::Party {
        // A uid that nobody has: approvals are counted before it is known who seals.
        peer: crate::governance::caller::Peer { uid: u32::MAX, ..Default::default() },
        actor_id: None,
    };
    let counted = proposal.counted(rules, &nobody);
    let roles: Vec<&str> = counted.iter().map(|given| given.approval.role.as_str()).collect();
    let given: Vec<serde_json::Value> = proposal
        .given
        .iter()
        .map(|given| {
            serde_json::json!({
                "signer": given.approval.signer, "role": given.approval.role,
                "key_id": given.approval.key_id.to_string(), "decision": given.decision.as_str(),
                "entry_id": given.entry_id.to_string(), "timestamp": given.at.to_string(),
                "counts": counted.iter().any(|one| one.entry_id == given.entry_id),
            })
        })
        .collect();
    let draft = serde_json::value::RawValue::from_string(proposal.draft.to_canonical());
    serde_json::json!({
        "proposal_id": proposal.id().to_string(),
        "state": "open",
        "action_type": proposal.draft.action_type,
        "actor_id": proposal.draft.actor_id,
        "opened_at": proposal.opened_at.to_string(),
        "expires_at": proposal.subject.expires_at.to_string(),
        "proposal_hash": proposal.subject.proposal_hash.to_hex(),
        "rules_hash": proposal.subject.rules_hash,
        "required_approvals": demand.approvals,
        "counted_approvals": counted.len(),
        "missing_roles": demand.missing_roles(&roles),
        "quorum_met": proposal.quorum(rules, &nobody).met,
        "approvals": given,
        "draft": draft.ok(),
    })
    .to_string()
}

/// The members of a small request.
pub(super) struct Members {
    text: String,
}

impl Members {
    pub(super) fn parse(body: &[u8], known: &[&str]) -> Result<Self, Problem> {
        let text = json::canonicalize(body)?;
        let at = |code, name: &str| {
            let mut problem = Problem::new(code, code.title());
            problem.pointer = Some(format!("/{name}"));
            problem
        };
        if !text.starts_with('{') {
            return Err(Problem::new(Code::WrongType, "the request must be an object"));
        }
        for (start, end, _) in json::members(&text) {
            let name = json::unquote(&text.as_bytes()[start..end]);
            if !known.contains(&name.as_str()) {
                return Err(at(Code::UnknownMember, &name.replace('~', "~0").replace('/', "~1")));
            }
        }
        Ok(Members { text })
    }

    pub(super) fn at(code: Code, name: &str) -> Problem {
        let mut problem = Problem::new(code, code.title());
        problem.pointer = Some(format!("/{name}"));
        problem
    }

    fn optional_text(&self, name: &str) -> Result<Option<String>, Problem> {
        match json::member(&self.text, name) {
            None => Ok(None),
            Some(value) if value.starts_with('"') => Ok(Some(json::unquote(value.as_bytes()))),
            Some(_) => Err(Self::at(Code::WrongType, name)),
        }
    }

    pub(super) fn text(&self, name: &str) -> Result<String, Problem> {
        self.optional_text(name)?.ok_or_else(|| Self::at(Code::MissingMember, name))
    }

    pub(super) fn number(&self, name: &str) -> Result<Option<u64>, Problem> {
        let number = |value: &str| value.parse().map_err(|_| Self::at(Code::WrongType, name));
        json::member(&self.text, name).map(number).transpose()
    }

    pub(super) fn object(&self, name: &str) -> Result<String, Problem> {
        match json::member(&self.text, name) {
            None => Ok("null".into()),
            Some(value) if value == "null" || value.starts_with('{') => Ok(value.to_owned()),
            Some(_) => Err(Self::at(Code::WrongType, name)),
        }
    }

    fn outcome(&self) -> Result<governor::Outcome, Problem> {
        let status = self.text("execution_status")?;
        let execution_status =
            ExecutionStatus::parse(&status).ok_or_else(|| Self::at(Code::WrongValue, "execution_status"))?;
        let rollback_executed = match json::member(&self.text, "rollback_executed") {
            None | Some("false") => false,
            Some("true") => true,
            Some(_) => return Err(Self::at(Code::WrongType, "rollback_executed")),
        };
        Ok(governor::Outcome {
            execution_status,
            result_data: self.object("result_data")?,
            error_details: self.object("error_details")?,
            rollback_executed,
        })
    }
}
