//! The ledger's keys: which there are, and their change at an administrator's word or as was approved.
//!
//! The new token is opened and proves itself before the sequencer hears of it, so a rotation that cannot
//! be done costs no entry and holds nobody up.

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Extension, Path, Request, State};
use axum::response::Response;

use super::append::read_body;
use super::govern::{Members, caller, own, step};
use super::problem::Problem;
use super::read::json_answer;
use super::service::{Service, internal};
use crate::anchor;
use crate::caller::Peer;
use crate::config;
use crate::governance::governor::Governor;
use crate::governance::keyring::{REVOKE, ROTATE, Term};
use crate::governance::rules::Verb;
use crate::governance::{Admitted, Policy, Refusal, governor};
use crate::ledger::code::Code;
use crate::ledger::entry::EventType;
use crate::ledger::hash::Digest;
use crate::ledger::json::{self, quoted};
use crate::ledger::key::{KeyId, Signature};
use crate::ledger::merkle::TreeSize;
use crate::ledger::timestamp::Timestamp;
use crate::sequencer::{Event, Refused, Rotation, RotationStep, Step, fresh_id};
use crate::store::{Reader, StoreError};
use crate::token::{Candidate, Latch, TokenOptions};

/// Where tokens may be found to rotate to.
pub struct Opening {
    /// What the configuration says of the token that there is.
    pub token: config::Token,
    /// Of the tokens that are rotated to. Its PIN is another one, so it must not stop the one in use.
    pub latch: Latch,
    /// Whether an anchor is kept on the token.
    pub anchored: bool,
}

impl Opening {
    /// What is to be opened for `to`, a canonical object. Modules are code, so only those that the
    /// configuration names are loaded.
    fn options(&self, to: &str) -> Result<TokenOptions, Problem> {
        let text = |name: &str| {
            let value = json::member(to, name).filter(|value| value.starts_with('"'));
            value.map(|value| json::unquote(value.as_bytes()))
        };
        let at = |name: &str, detail: String| {
            let mut problem = Problem::new(Code::KeyChange, detail);
            problem.pointer = Some(format!("/to/{name}"));
            problem
        };
        let mut token = self.token.clone();
        token.uri = text("uri").ok_or_else(|| at("uri", "must be the pkcs11: URI of the new key".into()))?;
        if let Some(module) = text("module") {
            token.module = module.into();
        }
        if let Some(name) = text("pin_credential") {
            (token.pin_credential, token.pin_file) = (name, Default::default());
        } else if let Some(path) = text("pin_file") {
            if !path.starts_with('/') {
                return Err(at("pin_file", "must be an absolute path".into()));
            }
            (token.pin_file, token.pin_credential) = (path.into(), String::new());
        }
        let options = TokenOptions::configured(&token, Some(self.latch.clone()), None)
            .map_err(|fault| at("uri", fault.to_string()))?;
        let known = std::iter::once(&self.token.module).chain(&self.token.other_modules);
        if !known.into_iter().any(|known| *known == options.module) {
            let detail = format!(
                "the module {} is not named in the configuration (token.other_modules)",
                options.module.display()
            );
            return Err(at("module", detail));
        }
        Ok(options)
    }
}

/// `GET /v1/keys`.
pub(super) async fn list(
    State(service): State<Arc<Service>>,
    Extension(peer): Extension<Arc<Peer>>,
) -> Response {
    let result = async {
        service.check_read(&peer)?;
        let governor = service.governor();
        service
            .read(move |service, reader| {
                let terms = governor.standing().keys.terms();
                let keys: Result<Vec<String>, Problem> =
                    terms.iter().map(|term| describe(reader, term)).collect();
                Ok(format!(r#"{{"origin":{},"keys":[{}]}}"#, quoted(&service.origin), keys?.join(",")))
            })
            .await
    };
    match result.await {
        Ok(keys) => json_answer(keys),
        Err(problem) => service.refuse(problem),
    }
}

fn describe(reader: &Reader, Term { key, first, last, revoked }: &Term) -> Result<String, Problem> {
    // The genesis describes the first one, and the rotation before it any other.
    let named = crate::ledger::entry::Sequence(first.0.saturating_sub(1));
    let damaged = || Problem::from(StoreError::Damaged(format!("entry {named} describes no token")));
    let line = reader.line(named)?.ok_or_else(damaged)?;
    let decoded = crate::ledger::canonical::decode(&line.bytes).map_err(|_| damaged())?;
    let token = json::member(decoded.entry.action_payload, "token").ok_or_else(damaged)?;
    let last = last.map_or_else(|| "null".into(), |last| last.to_string());
    let revoked = revoked.as_ref().map_or_else(
        || "null".into(),
        |revoked| {
            format!(
                r#"{{"at":{},"reason":{},"root":"{}","size":{}}}"#,
                revoked.at,
                quoted(&revoked.reason),
                revoked.trusted.hash,
                revoked.trusted.size
            )
        },
    );
    Ok(format!(
        r#"{{"key_id":"{}","public_key_pem":{},"first":{first},"last":{last},"revoked":{revoked},"token":{token}}}"#,
        key.id(),
        quoted(&key.to_pem()),
    ))
}

/// `POST /v1/keys:rotate`: hands over to another key, where no approval is needed.
pub(super) async fn rotate(
    State(service): State<Arc<Service>>,
    Extension(peer): Extension<Arc<Peer>>,
    request: Request,
) -> Response {
    let result = async {
        service.check_verb(&peer, Verb::Administer)?;
        let (body, lease) = read_body(&service, peer.uid, request).await?;
        let to = Members::parse(&body, &["to"])?.object("to")?;
        if to == "null" {
            return Err(Members::at(Code::MissingMember, "to"));
        }
        check_names(&to)?;
        check_ungoverned(&service.governor(), ROTATE)?;
        let candidate = open(&service, &to).await?;
        let peer = peer.clone();
        let id = candidate.key().id();
        let to = if json::member(&to, "key_id").is_some() {
            to
        } else {
            with_members(&to, &[("key_id", format!("\"{id}\""))])?
        };
        let make = move |governor: &Governor, policy: &Policy, _: Timestamp, found: Vec<Found>| {
            check_ungoverned(governor, ROTATE)?;
            let rules = &governor.standing().rules;
            let (actor_id, peer_json) = caller(rules, &peer, Some(Verb::Administer))?;
            let payload = format!(
                r#"{{"requested_by":{{"actor_id":{},"peer":{peer_json}}},"to":{to}}}"#,
                quoted(&actor_id)
            );
            let payload = with_members(&payload, &found)?;
            Ok(policy.own_under(rules.label(), own(EventType::Change, ROTATE, payload), fresh_id()))
        };
        let event = rotation(candidate, make);
        step(&service, event, lease).await
    };
    let result = result.await;
    service.answer(result)
}

/// `POST /v1/keys/{id}/revoke`: says from where on a key of the past is not trusted, where no approval
/// is needed.
pub(super) async fn revoke(
    State(service): State<Arc<Service>>,
    Extension(peer): Extension<Arc<Peer>>,
    id: Result<Path<String>, PathRejection>,
    request: Request,
) -> Response {
    let result = async {
        service.check_verb(&peer, Verb::Administer)?;
        let id =
            id.ok().and_then(|Path(text)| Digest::from_hex(text.as_bytes())).map(KeyId).ok_or_else(|| {
                Problem::new(Code::BadParameter, "a key is named by 64 lower-case hex digits")
            })?;
        let (body, lease) = read_body(&service, peer.uid, request).await?;
        let members = Members::parse(&body, &["reason", "size"])?;
        let (reason, size) = (members.text("reason")?, members.number("size")?);
        let governor = service.governor();
        check_ungoverned(&governor, REVOKE)?;
        let term = governor.standing().keys.terms().iter().find(|term| term.key.id() == id).cloned();
        let term = term.ok_or_else(|| Problem::new(Code::NotFound, "the ledger never had this key"))?;
        let Some(last) = term.last else {
            return Err(Problem::new(Code::KeyChange, "it is the key in force: rotate to another one first"));
        };
        let end = last.0 + 1;
        // Where nothing is said, all that it signed stays trusted.
        let size = size.unwrap_or(end);
        let (root, found) = service
            .read(move |_, reader| Ok((root_at(reader, size)?, consistency(reader, size, end)?)))
            .await?;
        let peer = peer.clone();
        let make: Step = Box::new(move |governor, policy, _| {
            check_ungoverned(governor, REVOKE)?;
            let rules = &governor.standing().rules;
            let (actor_id, peer_json) = caller(rules, &peer, Some(Verb::Administer))?;
            let payload = format!(
                r#"{{"checkpoint":{{"root":"{root}","size":{size}}},"key_id":"{id}","reason":{},"requested_by":{{"actor_id":{},"peer":{peer_json}}}}}"#,
                quoted(&reason),
                quoted(&actor_id),
            );
            let payload = with_members(&payload, &[found])?;
            Ok(policy.own_under(rules.label(), own(EventType::Change, REVOKE, payload), fresh_id()))
        });
        step(&service, Event::Step(make), lease).await
    };
    let result = result.await;
    service.answer(result)
}

/// Whether what is proposed could be done here: the daemon says so before people sign for it.
pub(super) async fn check_proposed(
    service: &Arc<Service>,
    action: &str,
    payload: &str,
) -> Result<(), Problem> {
    match action {
        ROTATE => {
            let to = json::member(payload, "to").unwrap_or("{}").to_owned();
            check_names(&to)?;
            service.opening.options(&to).map(drop)
        }
        REVOKE => {
            service.governor().standing().keys.check_proposed(action, payload)?;
            let checkpoint = json::member(payload, "checkpoint").unwrap_or("{}").to_owned();
            let size =
                json::member(&checkpoint, "size").and_then(|size| size.parse().ok()).unwrap_or(u64::MAX);
            let root = service.read(move |_, reader| root_at(reader, size)).await?;
            if json::member(&checkpoint, "root") == Some(&format!("\"{root}\"")) {
                return Ok(());
            }
            let mut problem = Problem::new(Code::KeyChange, format!("of {size} entries the root is {root}"));
            problem.pointer = Some("/action_payload/checkpoint/root".into());
            Err(problem)
        }
        _ => Ok(()),
    }
}

/// The event that hands over to `candidate` as the proposal that `seal` seals says.
pub(super) async fn sealing(
    service: &Arc<Service>,
    payload: &str,
    seal: impl FnOnce(&Governor, &Policy, Timestamp, Vec<Found>) -> Result<Admitted, governor::Refused>
    + Send
    + 'static,
) -> Result<Event, Problem> {
    let to = json::member(payload, "to").unwrap_or("{}").to_owned();
    Ok(rotation(open(service, &to).await?, seal))
}

/// What the daemon adds to a `key.revoke` that was approved.
pub(super) async fn revoking(service: &Arc<Service>, payload: &str) -> Result<Vec<Found>, Problem> {
    let text = |name: &str| json::member(payload, name).map(|value| json::unquote(value.as_bytes()));
    let governor = service.governor();
    let id = text("key_id");
    let term = governor.standing().keys.terms().iter().find(|term| Some(term.key.id().to_string()) == id);
    let Some(end) = term.and_then(|term| term.last).map(|last| last.0 + 1) else { return Ok(Vec::new()) };
    let size = json::member(payload, "checkpoint").and_then(|checkpoint| json::member(checkpoint, "size"));
    let size = size.and_then(|size| size.parse().ok()).unwrap_or(end);
    service.read(move |_, reader| Ok(vec![consistency(reader, size, end)?])).await
}

/// A member of the payload that only the daemon knows: name and canonical value.
pub(super) type Found = (&'static str, String);

fn rotation(
    candidate: Candidate,
    make: impl FnOnce(&Governor, &Policy, Timestamp, Vec<Found>) -> Result<Admitted, governor::Refused>
    + Send
    + 'static,
) -> Event {
    let key = candidate.key().clone();
    let (token, attributes) = (candidate.identity().to_json(), candidate.key_attributes().to_json());
    let step: RotationStep = Box::new(move |governor, policy, now, proof: &Signature| {
        let mut hex = Vec::new();
        proof.write_hex_der(&mut hex);
        let found = vec![
            ("key_attributes", attributes),
            ("key_id", format!("\"{}\"", key.id())),
            ("proof", format!("\"{}\"", json::into_string(hex))),
            ("public_key_pem", quoted(&key.to_pem())),
            ("token", token),
        ];
        make(governor, policy, now, found)
    });
    Event::Rotate(Box::new(Rotation { candidate, step }))
}

/// Opens the token that `to` names and has it prove itself; it must have the key that `to` names, if
/// it names one.
async fn open(service: &Arc<Service>, to: &str) -> Result<Candidate, Problem> {
    if service.keeper.pool().is_none() {
        return Err(Refused::TokenAway.into());
    }
    let options = service.opening.options(to)?;
    let opening = service.clone();
    let opened = tokio::task::spawn_blocking(move || opening.keeper.candidate(options)).await;
    let candidate = opened.map_err(|error| internal("opening the new token", &error))?.map_err(|error| {
        tracing::warn!(%error, "couldn't open the token to rotate to");
        Problem::new(Code::TokenUnavailable, format!("the new token: {error}"))
    })?;
    let found = candidate.key().id();
    let asked = json::member(to, "key_id").map(|id| json::unquote(id.as_bytes()));
    if let Some(asked) = asked.filter(|asked| *asked != found.to_string()) {
        let mut problem = Problem::new(Code::KeyChange, format!("the token has key {found}, not {asked}"));
        problem.pointer = Some("/to/key_id".into());
        return Err(problem);
    }
    service.governor().standing().keys.check_fresh(found, "/to")?;
    if !service.opening.anchored {
        return Ok(candidate);
    }
    // Once the token is the ledger's, one without an anchor would stop the daemon.
    service
        .read(move |service, reader| {
            let keys = service.governor().standing().keys.clone();
            let ledger = anchor::Ledger { origin: &service.origin, keys: &keys, reader };
            if let (Some(note), Some(pool)) = (reader.newest_note()?, candidate.pool()) {
                anchor::plant(pool, &note, ledger)
                    .map_err(|why| Problem::new(Code::TokenUnavailable, format!("the new token: {why}")))?;
            }
            Ok(candidate)
        })
        .await
}

/// `to` has no members but those that are understood.
fn check_names(to: &str) -> Result<(), Problem> {
    Members::parse(to.as_bytes(), &["key_id", "module", "pin_credential", "pin_file", "uri"]).map(drop)
}

fn check_ungoverned(governor: &Governor, action: &str) -> Result<(), Refusal> {
    if governor.may_perform(action) {
        return Ok(());
    }
    let detail = format!("the rules in force ask for approvals: propose `{action}`");
    Err(Refusal::new(Code::QuorumInvariant).because(&detail))
}

fn root_at(reader: &Reader, size: u64) -> Result<String, Problem> {
    let count = reader.count()?;
    let size = TreeSize::new(size).filter(|size| size.leaves() <= count).ok_or_else(|| {
        Problem::new(
            Code::KeyChange,
            format!("`size` must be that of a checkpoint of the key; there are {count} entries"),
        )
    })?;
    Ok(reader.tree(count)?.root(size).map_err(StoreError::from)?.hash.to_string())
}

/// That the tree of `size` entries is the beginning of that of `end`.
fn consistency(reader: &Reader, size: u64, end: u64) -> Result<Found, Problem> {
    let sized = |size: u64| TreeSize::new(size).filter(|size| (1..=end).contains(&size.leaves()));
    // What is out of range the keyring refuses, in words.
    let (Some(size), Some(end)) = (sized(size), sized(end)) else { return Ok(("consistency", "[]".into())) };
    let path = reader.tree(end.leaves())?.consistency(size, end).map_err(StoreError::from)?;
    let hashes: Vec<String> = path.iter().map(|hash| format!("\"{hash}\"")).collect();
    Ok(("consistency", format!("[{}]", hashes.join(","))))
}

/// A canonical object with more members.
pub(super) fn with_members(object: &str, members: &[Found]) -> Result<String, Refusal> {
    if members.is_empty() {
        return Ok(object.to_owned());
    }
    let open = object.strip_suffix('}').unwrap_or(object);
    let more: Vec<String> = members.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
    let comma = if open == "{" { "" } else { "," };
    let text = format!("{open}{comma}{}}}", more.join(","));
    json::canonicalize(text.as_bytes())
        .map_err(|fault| Refusal::new(Code::KeyChange).because(&fault.to_string()))
}
