//! Appending: one entry, or a batch that streams both ways.
//!
//! A request is refused whole or sealed whole. In a batch each line stands for itself: good lines
//! are sealed, a bad line gets its problem in its place.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{Extension, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use hyper::body::Frame;
use tokio::sync::{Notify, mpsc, oneshot, watch};

use super::budget::Lease;
use super::connection::body_frame_timeout;
use super::problem::Problem;
use super::rate::Pace;
use super::service::Service;
use super::violation::Offence;
use crate::caller::Peer;
use crate::governance::approval::ProposalId;
use crate::governance::governor;
use crate::governance::invariant::Violation;
use crate::governance::{Admitted, Refusal};
use crate::ledger::canonical;
use crate::ledger::code::Code;
use crate::ledger::draft::Draft;
use crate::ledger::entry::{EntryId, Sequence};
use crate::ledger::hash::Digest;
use crate::ledger::json;
use crate::sequencer::{Event, Governed, Outcome, Outcomes, Refused, Submission, Ticket, fresh_id, now};
use crate::store::{Line, Reader};

/// What a request takes beside its body: the members that the daemon adds (1.5 KB), its place in the
/// queue, and what the index will be told.
const REQUEST_OVERHEAD: usize = 2_048;
/// How often a batch asks whether there is room in the queue again.
const QUEUE_PAUSE: Duration = Duration::from_millis(20);
/// How long a request waits for its turn at the memory before it is told to come again. A batch
/// holds all that its caller may have for as long as it lasts, but gives it back entry by entry.
const MEMORY_WAIT: Duration = Duration::from_secs(5);
/// How much of a body hyper may have read before we are asked; taken from the budget beforehand.
const BODY_BUFFER: usize = 64 << 10;

/// `POST /v1/entries`.
pub(super) async fn append(
    State(service): State<Arc<Service>>,
    Extension(peer): Extension<Arc<Peer>>,
    request: Request,
) -> Response {
    match append_one(&service, &peer, request).await {
        Ok(answer) => answer,
        Err(problem) => service.refuse(problem),
    }
}

async fn append_one(service: &Arc<Service>, peer: &Arc<Peer>, request: Request) -> Result<Response, Problem> {
    service.check_append(peer)?;
    let receipt = wants_receipt(&request)?;
    let (body, lease) = read_body(service, peer.uid, request).await?;
    let draft = Draft::parse(&body)?;
    drop(body);
    let (admitted, searched) = match check(service, peer, draft).await {
        Ok(Checked::Fresh(admitted, searched, pace)) => {
            if let Some(pace) = pace {
                service.rates.take(&pace).map_err(|wait| too_fast(&pace, wait))?;
            }
            (admitted, searched)
        }
        Ok(Checked::Replay(line)) if receipt => {
            return Ok(with_receipt(service, line, StatusCode::OK, lease).await);
        }
        Ok(Checked::Replay(line)) => return Ok(leased(StatusCode::OK, line.bytes, lease)),
        Err(unfit) => return Err(service.unfit(peer, unfit).await),
    };
    let (ticket, outcome) = oneshot::channel();
    let id = admitted.id();
    service
        .sequencer
        .submit(
            Some(peer.uid),
            vec![Submission {
                event: Event::Append(admitted, peer.clone()),
                ticket: Ticket::Single(ticket),
                searched,
                receipt,
                share: None,
            }],
        )
        .map_err(|(refused, _)| refused)?;
    match outcome.await.unwrap_or(Outcome::Unknown(id)) {
        Outcome::Committed { commit, index, replayed } => {
            let status = if replayed { StatusCode::OK } else { StatusCode::CREATED };
            let sequence = commit.entries()[index].entry.sequence();
            let line = Line { sequence, bytes: commit.line(index), idempotency: None };
            if receipt {
                return Ok(with_receipt(service, line, status, lease).await);
            }
            Ok(leased(status, line.bytes, lease))
        }
        Outcome::Earlier { id, asked } => {
            let line = sealed_earlier(service, id, asked).await?;
            if receipt {
                return Ok(with_receipt(service, line, StatusCode::OK, lease).await);
            }
            Ok(leased(StatusCode::OK, line.bytes, lease))
        }
        Outcome::Held { id, sequence, hash } => {
            Ok(leased(StatusCode::ACCEPTED, held(id, sequence, hash).into_bytes(), lease))
        }
        Outcome::Refused(refused) => Err(refused.into()),
        Outcome::Governed(governed) => Err(service.governed(peer, *governed).await),
        Outcome::Unknown(id) => Err(unknown(id)),
    }
}

/// Whether the answer is to hold a receipt: `?receipt=1`, or `Prefer: return=receipt` (RFC 7240).
fn wants_receipt(request: &Request) -> Result<bool, Problem> {
    let bad = |detail: &str| Problem::new(Code::BadParameter, detail);
    let preferred = request.headers().get_all("prefer").iter().any(|value| {
        value.to_str().is_ok_and(|value| {
            value.split(',').any(|preference| preference.trim().eq_ignore_ascii_case("return=receipt"))
        })
    });
    match request.uri().query() {
        None | Some("") => Ok(preferred),
        Some("receipt=1") => Ok(true),
        Some("receipt=0") => Ok(false),
        Some(_) => Err(bad("the only parameter of an append is `receipt`, which is 0 or 1")),
    }
}

/// The sealed line with the receipt for it. The entry is sealed, whatever becomes of the receipt:
/// where there is none yet, the line alone is the answer.
async fn with_receipt(service: &Arc<Service>, line: Line, status: StatusCode, lease: Lease) -> Response {
    let sequence = line.sequence;
    let receipt = service.read(move |_, reader| super::tree::receipt(reader, sequence)).await;
    let mut body = b"{\"entry\":".to_vec();
    json::write_string(&String::from_utf8_lossy(&line.bytes), &mut body);
    body.extend_from_slice(b",\"receipt\":");
    match receipt {
        Ok(receipt) => json::write_string(&receipt.to_string(), &mut body),
        Err(_) => body.extend_from_slice(b"null"),
    }
    body.push(b'}');
    leased(status, body, lease)
}

/// The answer for an entry that waits for the token.
pub(super) fn held(id: EntryId, sequence: Sequence, hash: Digest) -> String {
    format!(r#"{{"entry_id":"{id}","sequence_number":{sequence},"entry_hash":"{hash}","status":"reserved"}}"#)
}

fn too_fast(pace: &Pace, wait: Duration) -> Problem {
    let detail =
        format!("the rules let the caller `{}` append {} entries a second", pace.caller, pace.per_second);
    let mut problem = Problem::new(Code::RateLimited, detail);
    problem.retry_after_seconds = Some(wait.as_secs_f64().ceil() as u32);
    problem
}

pub(super) fn unknown(id: EntryId) -> Problem {
    let mut problem = Problem::new(
        Code::OutcomeUnknown,
        "the daemon stopped before the entry was known to be sealed; ask for it by its id",
    );
    problem.entry_id = Some(id);
    problem
}

/// Reads the whole body, for which room is taken beforehand.
pub(super) async fn read_body(
    service: &Service,
    uid: u32,
    request: Request,
) -> Result<(Vec<u8>, Lease), Problem> {
    let mut body = request.into_body();
    let limit = service.request_bytes;
    let too_large = || Problem::new(Code::RequestTooLarge, format!("a request body may have {limit} bytes"));
    let announced = body.size_hint().exact();
    if announced.is_some_and(|bytes| bytes > limit as u64) {
        return Err(too_large());
    }
    let first = announced.map_or(BODY_BUFFER, |bytes| bytes as usize) + REQUEST_OVERHEAD;
    let mut lease = take_memory(service, uid, first).await?;
    let mut bytes = Vec::with_capacity(announced.unwrap_or(0) as usize);
    while let Some(frame) = body_frame_timeout(&mut body, service.idle).await? {
        if bytes.len() + frame.len() > limit {
            return Err(too_large());
        }
        if announced.is_none() && !lease.grow(frame.len()) {
            lease.absorb(take_memory(service, uid, frame.len()).await?);
        }
        bytes.extend_from_slice(&frame);
    }
    Ok((bytes, lease))
}

/// Takes `bytes` of the budget for the caller `uid`, in its turn.
pub(super) async fn take_memory(service: &Service, uid: u32, bytes: usize) -> Result<Lease, Problem> {
    let taken = tokio::time::timeout(MEMORY_WAIT, service.budget.take(uid, bytes)).await;
    taken.ok().flatten().ok_or_else(|| {
        Problem::new(Code::MemoryBudget, "the daemon has no room for the request at the moment")
    })
}

/// JSON that holds its memory until it is sent.
pub(super) fn leased(status: StatusCode, line: Vec<u8>, lease: Lease) -> Response {
    let body = Body::new(Leased { bytes: Some(line.into()), _lease: lease });
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// An answer that gives its memory back when it has been sent.
struct Leased {
    bytes: Option<Bytes>,
    _lease: Lease,
}

impl HttpBody for Leased {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.bytes.take().map(|bytes| Ok(Frame::data(bytes))))
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        hyper::body::SizeHint::with_exact(self.bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
    }
}

/// What the client's side of the checks found.
enum Checked {
    /// It may be submitted; entries before the number were searched for its id.
    Fresh(Box<Admitted>, u64, Option<Pace>),
    /// The same request was sealed before.
    Replay(Line),
}

/// Why something is not submitted.
enum Unfit {
    Problem(Problem),
    /// It breaks an invariant.
    Violation(Box<(Draft, Violation)>),
}

impl<T: Into<Problem>> From<T> for Unfit {
    fn from(problem: T) -> Self {
        Unfit::Problem(problem.into())
    }
}

/// Admission, and the look-ups that need the disk: the id if the client gave one, and dependencies.
async fn check(service: &Arc<Service>, peer: &Arc<Peer>, draft: Draft) -> Result<Checked, Unfit> {
    if draft.entry_id.is_none() && draft.dependencies.is_empty() {
        return admit(service, peer, draft).map(|(admitted, pace)| Checked::Fresh(admitted, 0, pace));
    }
    let peer = peer.clone();
    service.read(move |service, reader| Ok(check_in_ledger(service, reader, &peer, draft))).await?
}

fn check_in_ledger(service: &Service, reader: &Reader, peer: &Peer, draft: Draft) -> Result<Checked, Unfit> {
    let searched = service.index.indexed();
    // What was sealed before is answered before it is judged: the rules may have changed since.
    if let Some(id) = draft.entry_id
        && let Some(sequence) = service.index.find(id)?
        && let Some(line) = reader.line(sequence)?
    {
        let asked = Some((peer.uid, draft.content_hash()));
        return Ok(replay(line, peer.uid, asked).map(Checked::Replay)?);
    }
    check_dependencies(service, &draft.dependencies)?;
    let (admitted, pace) = admit(service, peer, draft)?;
    Ok(Checked::Fresh(admitted, searched, pace))
}

/// Refuses ids that are not in the ledger.
pub(super) fn check_dependencies(service: &Service, dependencies: &[EntryId]) -> Result<(), Problem> {
    for (index, id) in dependencies.iter().enumerate() {
        if service.index.find(*id)?.is_none() {
            let mut problem =
                Problem::new(Code::UnknownDependency, format!("there is no entry {id} in the ledger"));
            problem.pointer = Some(format!("/dependencies/{index}"));
            return Err(problem);
        }
    }
    Ok(())
}

fn admit(service: &Service, peer: &Peer, draft: Draft) -> Result<(Box<Admitted>, Option<Pace>), Unfit> {
    let governor = service.sequencer.gauges().governor();
    let standing = governor.standing();
    let fresh = fresh_id();
    let id = draft.entry_id.unwrap_or(fresh);
    match standing.append(&draft, peer.kernel(), id, now()) {
        Ok(ruling) => {
            let pace = ruling.caller.as_ref().zip(ruling.entries_per_second);
            let pace = pace.map(|(caller, per_second)| Pace { caller: caller.clone(), per_second });
            let json = peer.to_json();
            let admitted = service.policy.admit_ruled(standing, draft, ruling, peer.uid, json, fresh)?;
            Ok((Box::new(admitted), pace))
        }
        Err(governor::Refused::Plain(refusal)) => Err(refusal.into()),
        Err(governor::Refused::Violation(violation)) => Err(Unfit::Violation(Box::new((draft, violation)))),
    }
}

/// The entry that was sealed under an id since it was looked up.
async fn sealed_earlier(service: &Arc<Service>, id: EntryId, asked: (u32, Digest)) -> Result<Line, Problem> {
    let read = move |service: &Service, reader: &Reader| {
        let line = service.index.find(id)?.map(|sequence| reader.line(sequence)).transpose()?.flatten();
        line.map_or_else(|| Err(unknown(id)), |line| replay(line, asked.0, Some(asked)))
    };
    service.read(read).await
}

/// The id is in the ledger: whose is it, and is it the same content?
fn replay(line: Line, uid: u32, asked: Option<(u32, Digest)>) -> Result<Line, Problem> {
    match line.idempotency {
        Some((owner, _)) if owner != uid => Err(Refused::IdTaken.into()),
        Some(_) if line.idempotency == asked => Ok(line),
        Some(_) => Err(Refused::IdConflict.into()),
        // The daemon made that id, for an entry of this caller or of another.
        None if caller_of(&line.bytes) == Some(uid) => Err(Refused::IdConflict.into()),
        None => Err(Refused::IdTaken.into()),
    }
}

fn caller_of(line: &[u8]) -> Option<u32> {
    let entry = canonical::decode(line).ok()?.entry;
    let peer = json::member(entry.actor_context, "peer")?;
    json::member(peer, "uid")?.parse().ok()
}

/// `POST /v1/entries:batch`.
pub(super) async fn append_batch(
    State(service): State<Arc<Service>>,
    Extension(peer): Extension<Arc<Peer>>,
    request: Request,
) -> Response {
    if let Err(problem) = service.check_append(&peer) {
        return service.refuse(problem);
    }
    let lease = match take_memory(&service, peer.uid, BODY_BUFFER).await {
        Ok(lease) => lease,
        Err(problem) => return service.refuse(problem),
    };
    let (answers, receiver) = mpsc::unbounded_channel();
    let sent = Arc::new(Sent::default());
    let batch = Batch {
        outcomes: mpsc::unbounded_channel(),
        answers,
        sent: sent.clone(),
        unsent: 0,
        lease,
        slots: VecDeque::new(),
        first: 1,
        lines: 0,
        line: Vec::new(),
        skipping: false,
        service,
        peer,
    };
    tokio::spawn(batch.run(request.into_body()));
    let mut response = Response::new(Body::new(Answers { receiver, sent }));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    response
}

/// Bytes of answers that hyper has taken since the batch looked.
#[derive(Default)]
struct Sent {
    bytes: AtomicUsize,
    wake: Notify,
    /// What the last answers hold of the budget, once the batch has done its part.
    rest: Mutex<Option<Lease>>,
}

/// The body of a batch's answer.
struct Answers {
    receiver: mpsc::UnboundedReceiver<Bytes>,
    sent: Arc<Sent>,
}

impl HttpBody for Answers {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.receiver.poll_recv(context).map(|bytes| {
            bytes.map(|bytes| {
                self.sent.bytes.fetch_add(bytes.len(), Ordering::AcqRel);
                self.sent.wake.notify_one();
                Ok(Frame::data(bytes))
            })
        })
    }
}

/// A line of the batch whose answer has not been handed to the client's side.
enum Slot {
    /// Submitted; so many bytes of the budget are its own.
    Waiting { cost: usize },
    /// Its answer, with a line feed; as many bytes of the budget are its own.
    Answered(Vec<u8>),
}

/// Why a batch ends before its last line.
enum End {
    /// The client has gone, or leaves its answers unread.
    Gone,
    /// The daemon is stopping.
    Draining,
}

struct Batch {
    service: Arc<Service>,
    peer: Arc<Peer>,
    outcomes: (mpsc::UnboundedSender<Outcomes>, mpsc::UnboundedReceiver<Outcomes>),
    answers: mpsc::UnboundedSender<Bytes>,
    sent: Arc<Sent>,
    /// Bytes of answers that hyper has not taken yet; part of the lease.
    unsent: usize,
    /// Covers the buffer, the lines that wait, and all answers that hyper has not taken.
    lease: Lease,
    /// From line `first` on.
    slots: VecDeque<Slot>,
    first: u64,
    /// Lines read so far, blank ones too.
    lines: u64,
    /// The beginning of a line whose end has not come.
    line: Vec<u8>,
    /// The rest of an overlong line is passed over.
    skipping: bool,
}

impl Batch {
    /// Reads, submits and answers until the client has no more and everything is answered.
    async fn run(mut self, mut body: Body) {
        let mut reading = true;
        let mut draining = self.service.draining.clone();
        loop {
            self.settle_sent();
            if !reading && self.slots.is_empty() {
                *self.sent.rest.lock().unwrap_or_else(PoisonError::into_inner) = Some(self.lease);
                return;
            }
            let may_read = reading && self.unsent < self.service.batch_answer_bytes;
            let idle = self.service.idle;
            tokio::select! {
                biased;
                Some(outcomes) = self.outcomes.1.recv() => self.take_outcomes(outcomes).await,
                frame = body_frame_timeout(&mut body, idle), if may_read => match frame {
                    Ok(Some(frame)) => match self.take_frame(&frame).await {
                        Ok(()) => {}
                        Err(End::Gone) => return,
                        Err(End::Draining) => {
                            reading = false;
                            self.refuse_line(self.lines, Refused::ShuttingDown.into());
                        }
                    },
                    Ok(None) => {
                        reading = false;
                        match self.take_last_line().await {
                            Ok(()) => {}
                            Err(End::Gone) => return,
                            Err(End::Draining) => {
                                self.refuse_line(self.lines, Refused::ShuttingDown.into());
                            }
                        }
                    }
                    Err(problem) => {
                        reading = false;
                        self.lines += 1;
                        self.refuse_line(self.lines, problem);
                    }
                },
                // What has been read is sealed and answered; a batch without end must not hold up the stop.
                () = until_draining(&mut draining), if reading => {
                    reading = false;
                    self.lines += 1;
                    self.refuse_line(self.lines, Refused::ShuttingDown.into());
                }
                () = self.sent.wake.notified() => {}
                // The client has gone. What it has submitted is sealed all the same.
                () = self.answers.closed() => return,
                // Nothing moves: the client leaves its answers unread. What was sealed stays sealed.
                () = tokio::time::sleep(idle), if reading && !may_read => return,
            }
            self.send_answers();
        }
    }

    fn settle_sent(&mut self) {
        let sent = self.sent.bytes.swap(0, Ordering::AcqRel);
        self.unsent -= sent;
        self.lease.shrink(sent);
    }

    async fn take_frame(&mut self, frame: &[u8]) -> Result<(), End> {
        let mut submissions = Vec::new();
        let mut rest = frame;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let (head, tail) = rest.split_at(end);
            rest = &tail[1..];
            if self.line.is_empty() && !self.skipping && head.len() <= self.service.request_bytes {
                self.take_line(head, &mut submissions).await?;
            } else {
                self.extend_line(head);
                self.end_line(&mut submissions).await?;
            }
        }
        self.extend_line(rest);
        self.submit(submissions).await
    }

    fn extend_line(&mut self, part: &[u8]) {
        if self.skipping {
            return;
        }
        if self.line.len() + part.len() > self.service.request_bytes {
            self.skipping = true;
            self.line = Vec::new();
        } else {
            self.line.extend_from_slice(part);
        }
    }

    async fn end_line(&mut self, submissions: &mut Vec<Submission>) -> Result<(), End> {
        let line = std::mem::take(&mut self.line);
        if std::mem::take(&mut self.skipping) {
            self.lines += 1;
            let limit = self.service.request_bytes;
            let detail = format!("a line of a batch may have {limit} bytes");
            self.answer_fresh(Problem::new(Code::RequestTooLarge, detail), submissions).await
        } else {
            self.take_line(&line, submissions).await
        }
    }

    async fn take_last_line(&mut self) -> Result<(), End> {
        let mut submissions = Vec::new();
        if !self.line.is_empty() || self.skipping {
            self.end_line(&mut submissions).await?;
        }
        self.submit(submissions).await
    }

    async fn take_line(&mut self, line: &[u8], submissions: &mut Vec<Submission>) -> Result<(), End> {
        self.lines += 1;
        let number = self.lines;
        if line.iter().all(u8::is_ascii_whitespace) {
            return Ok(());
        }
        let checked = match Draft::parse(line) {
            Ok(draft) => check(&self.service, &self.peer, draft).await,
            Err(fault) => Err(fault.into()),
        };
        if let Err(Unfit::Violation(_)) = checked {
            // What stands before it in the batch stands before it in the ledger.
            self.submit(std::mem::take(submissions)).await?;
        }
        match checked {
            Ok(Checked::Fresh(admitted, searched, pace)) => {
                if let Some(wait) = pace.map(|pace| self.service.rates.charge(&pace)).filter(|w| !w.is_zero())
                {
                    self.pause(wait, submissions).await?;
                }
                let cost = line.len() + REQUEST_OVERHEAD;
                self.make_room(cost, submissions).await?;
                self.place(number, Slot::Waiting { cost });
                let ticket = Ticket::Batch(self.outcomes.0.clone(), number);
                let event = Event::Append(admitted, self.peer.clone());
                submissions.push(Submission { event, ticket, searched, receipt: false, share: None });
                Ok(())
            }
            Ok(Checked::Replay(line)) => {
                let acknowledgement = acknowledgement_of(&line.bytes);
                self.make_room(acknowledgement.len(), submissions).await?;
                self.place(number, Slot::Answered(acknowledgement));
                Ok(())
            }
            Err(unfit) => {
                let problem = self.service.unfit(&self.peer, unfit).await;
                self.answer_fresh(problem, submissions).await
            }
        }
    }

    /// Reads on after `wait`; what was read before is submitted and answered meanwhile.
    async fn pause(&mut self, wait: Duration, submissions: &mut Vec<Submission>) -> Result<(), End> {
        self.submit(std::mem::take(submissions)).await?;
        let until = tokio::time::Instant::now() + wait;
        let mut draining = self.service.draining.clone();
        loop {
            self.send_answers();
            self.settle_sent();
            tokio::select! {
                biased;
                Some(outcomes) = self.outcomes.1.recv() => self.take_outcomes(outcomes).await,
                () = self.answers.closed() => return Err(End::Gone),
                () = until_draining(&mut draining) => return Err(End::Draining),
                () = tokio::time::sleep_until(until) => return Ok(()),
            }
        }
    }

    /// Refuses the line that was just read. Short bad lines make long answers, so there must be room
    /// for these before more is read.
    async fn answer_fresh(&mut self, problem: Problem, submissions: &mut Vec<Submission>) -> Result<(), End> {
        let answer = self.refusal(self.lines, problem);
        self.make_room(answer.len(), submissions).await?;
        self.place(self.lines, Slot::Answered(answer));
        Ok(())
    }

    /// Takes `cost` from the budget. When there is none left, what was read so far is submitted
    /// and answered first. What the other batches of this caller hold may be what is waited for, so
    /// none waits longer than a connection may be idle.
    async fn make_room(&mut self, cost: usize, submissions: &mut Vec<Submission>) -> Result<(), End> {
        if self.lease.grow(cost) {
            return Ok(());
        }
        let submissions = std::mem::take(submissions);
        self.submit(submissions).await?;
        let (budget, uid) = (self.service.budget.clone(), self.peer.uid);
        let mut draining = self.service.draining.clone();
        loop {
            self.send_answers();
            self.settle_sent();
            if self.lease.grow(cost) {
                return Ok(());
            }
            tokio::select! {
                biased;
                Some(outcomes) = self.outcomes.1.recv() => self.take_outcomes(outcomes).await,
                () = self.sent.wake.notified() => {}
                more = budget.take(uid, cost) => {
                    if let Some(more) = more {
                        self.lease.absorb(more);
                        return Ok(());
                    }
                    return Err(End::Gone);
                }
                () = self.answers.closed() => return Err(End::Gone),
                () = until_draining(&mut draining) => return Err(End::Draining),
                () = tokio::time::sleep(self.service.idle) => return Err(End::Gone),
            }
        }
    }

    /// Submits in order; waits, and so stops reading, while the queue is full.
    async fn submit(&mut self, submissions: Vec<Submission>) -> Result<(), End> {
        if submissions.is_empty() {
            return Ok(());
        }
        let mut waiting = submissions;
        loop {
            match self.service.sequencer.submit(Some(self.peer.uid), waiting) {
                Ok(()) => return Ok(()),
                Err((Refused::QueueFull { .. }, returned)) => waiting = returned,
                Err((refused, returned)) => {
                    self.refuse_all(returned, refused);
                    return Ok(());
                }
            }
            if self.answers.is_closed() {
                return Err(End::Gone);
            }
            tokio::time::sleep(QUEUE_PAUSE).await;
            while let Ok(outcomes) = self.outcomes.1.try_recv() {
                self.take_outcomes(outcomes).await;
            }
            self.send_answers();
            self.settle_sent();
        }
    }

    fn refuse_all(&mut self, submissions: Vec<Submission>, refused: Refused) {
        for submission in submissions {
            if let Ticket::Batch(_, line) = submission.ticket {
                self.refuse_line(line, refused.into());
            }
        }
    }

    async fn take_outcomes(&mut self, outcomes: Outcomes) {
        for (line, outcome) in outcomes {
            match outcome {
                Outcome::Committed { commit, index, .. } => {
                    let mut acknowledgement = Vec::with_capacity(448);
                    commit.write_acknowledgement(index, &mut acknowledgement);
                    self.answer_line(line, acknowledgement);
                }
                Outcome::Earlier { id, asked } => match sealed_earlier(&self.service, id, asked).await {
                    Ok(sealed) => self.answer_line(line, acknowledgement_of(&sealed.bytes)),
                    Err(problem) => self.refuse_line(line, problem),
                },
                Outcome::Held { id, sequence, hash } => {
                    self.answer_line(line, format!("{}\n", held(id, sequence, hash)).into_bytes());
                }
                Outcome::Refused(refused) => self.refuse_line(line, refused.into()),
                Outcome::Governed(governed) => {
                    let problem = self.service.governed(&self.peer, *governed).await;
                    self.refuse_line(line, problem);
                }
                Outcome::Unknown(id) => self.refuse_line(line, unknown(id)),
            }
        }
    }

    fn refuse_line(&mut self, line: u64, problem: Problem) {
        let answer = self.refusal(line, problem);
        self.answer_line(line, answer);
    }

    fn refusal(&self, line: u64, mut problem: Problem) -> Vec<u8> {
        self.service.refused.count(problem.code);
        problem.line = Some(line);
        let mut answer = problem.to_json().into_bytes();
        answer.push(b'\n');
        answer
    }

    /// Puts its answer in the place of a line that waited, and gives back what the answer does not
    /// need of what the line held. It needs less, but for the one line with which a batch ends.
    fn answer_line(&mut self, line: u64, answer: Vec<u8>) {
        let held = match self.slots.get((line - self.first) as usize) {
            Some(Slot::Waiting { cost }) => *cost,
            Some(Slot::Answered(_)) | None => 0,
        };
        match held.checked_sub(answer.len()) {
            Some(spare) => self.lease.shrink(spare),
            None => self.lease.force_grow(answer.len() - held),
        }
        self.place(line, Slot::Answered(answer));
    }

    fn place(&mut self, line: u64, slot: Slot) {
        let index = (line - self.first) as usize;
        // Blank lines have no answer; their places are empty ones.
        while self.slots.len() <= index {
            self.slots.push_back(Slot::Answered(Vec::new()));
        }
        self.slots[index] = slot;
    }

    /// Hands on the answers that no earlier line is still waiting before.
    fn send_answers(&mut self) {
        let mut out = Vec::new();
        while let Some(Slot::Answered(answer)) = self.slots.front() {
            out.extend_from_slice(answer);
            self.slots.pop_front();
            self.first += 1;
        }
        if !out.is_empty() {
            self.unsent += out.len();
            // Fails only when the client has gone, which `run` sees.
            let _ = self.answers.send(out.into());
        }
    }
}

async fn until_draining(draining: &mut watch::Receiver<bool>) {
    // Fails only when the sender is gone, and then there is nothing left to wait for either.
    let _ = draining.wait_for(|draining| *draining).await;
}

/// What a batch client gets for an entry that was sealed before.
fn acknowledgement_of(line: &[u8]) -> Vec<u8> {
    match canonical::decode(line) {
        Ok(decoded) => {
            let entry = decoded.entry;
            format!(
                "{{\"sequence_number\":{},\"entry_id\":\"{}\",\"entry_hash\":\"{}\",\"timestamp\":\"{}\",\"hsm_signature\":\"{}\"}}\n",
                entry.sequence_number, entry.entry_id, entry.entry_hash, entry.timestamp, entry.hsm_signature
            )
            .into_bytes()
        }
        Err(fault) => {
            let problem = super::service::internal("reading a sealed entry", &fault);
            format!("{}\n", problem.to_json()).into_bytes()
        }
    }
}

impl Service {
    /// The answer to what the sequencer would not record.
    async fn governed(&self, peer: &Arc<Peer>, governed: Governed) -> Problem {
        match (governed.refused, governed.draft) {
            (governor::Refused::Violation(violation), Some(draft)) => {
                self.violation(peer, draft, None, violation).await
            }
            (refused, _) => Refusal::from(refused).into(),
        }
    }

    async fn unfit(&self, peer: &Arc<Peer>, unfit: Unfit) -> Problem {
        match unfit {
            Unfit::Problem(problem) => problem,
            Unfit::Violation(unfit) => {
                let (draft, violation) = *unfit;
                self.violation(peer, draft, None, violation).await
            }
        }
    }

    /// Has a violation recorded, and gives the answer to it.
    pub(super) async fn violation(
        &self,
        peer: &Arc<Peer>,
        draft: Draft,
        proposal_id: Option<ProposalId>,
        violation: Violation,
    ) -> Problem {
        let offence = Offence { peer: peer.clone(), draft, proposal_id, violation };
        self.violations.record(&self.sequencer, self.policy.max_entry_bytes(), offence).await
    }

    /// The answer, or the refusal, which is counted.
    pub(super) fn answer(&self, result: Result<Response, Problem>) -> Response {
        result.unwrap_or_else(|problem| self.refuse(problem))
    }

    /// Counts and answers a refusal.
    pub(super) fn refuse(&self, problem: Problem) -> Response {
        self.refused.count(problem.code);
        problem.into_response()
    }
}
