//! The word of an operator that the wall clock is right after it jumped forward.
//!
//! Entries are refused from a jump on, so that a clock gone wrong does not put the ledger's time into the
//! future, from which it could not come back. The word is an entry itself, with the time of the last one; only
//! once that is sealed is the clock taken.

use std::sync::Arc;

use axum::extract::{Extension, State};
use axum::http::StatusCode;
use axum::response::Response;

use super::append::{leased, take_memory};
use super::govern::{caller, perform};
use super::problem::Problem;
use super::read::json_answer;
use super::service::Service;
use crate::caller::Peer;
use crate::governance::Refusal;
use crate::governance::governor::requested_by;
use crate::governance::rules::Verb;
use crate::ledger::draft::Draft;
use crate::ledger::entry::{EventCategory, EventType};
use crate::sequencer::{Event, Jump, Step, fresh_id};

/// Room for the entry, which holds little more than who asked.
const ANSWER_BYTES: usize = 16 << 10;

/// `POST /v1/clock:confirm`.
pub(super) async fn confirm(
    State(service): State<Arc<Service>>,
    Extension(peer): Extension<Arc<Peer>>,
) -> Response {
    let result = async {
        service.check_verb(&peer, Verb::Administer)?;
        let clock = &service.sequencer.gauges().clock;
        let Some(jump) = clock.jumped() else {
            return Ok(json_answer(r#"{"status":"in-step"}"#));
        };
        let lease = take_memory(&service, peer.uid, ANSWER_BYTES).await?;
        let by = peer.clone();
        let line = perform(&service, Event::Step(confirmed(jump, by))).await?;
        let line = line.map_err(|refused| Problem::from(Refusal::from(refused)))?;
        // A jump that came after this one was looked at is not confirmed with it.
        clock.accept(jump);
        tracing::warn!(jumped_micros = jump.micros, uid = peer.uid, "the clock is confirmed after it jumped");
        Ok(leased(StatusCode::CREATED, line, lease))
    };
    let result = result.await;
    service.answer(result)
}

fn confirmed(jump: Jump, by: Arc<Peer>) -> Step {
    Box::new(move |governor, policy, _| {
        let rules = &governor.standing().rules;
        let (actor_id, peer_json) = caller(rules, &by, Some(Verb::Administer))?;
        let payload = format!(
            r#"{{"clock":"{}","found":"jumped","jumped_microseconds":{},"requested_by":{}}}"#,
            jump.clock,
            jump.micros,
            requested_by(&actor_id, &peer_json)
        );
        let draft = Draft::own(EventType::Action, EventCategory::Warning, "system_clock", payload);
        Ok(policy.own_under(rules.label(), draft, fresh_id()))
    })
}
