//! One connection, from its first byte to its last.
//!
//! hyper speaks HTTP/1.1; this module adds what hyper does not have: time-outs that know a quiet
//! connection from a slow request from a slow token, problem documents for what never became a
//! request, and an end that lets the client read the answer. It knows nothing of routes.
//!
//! ```text
//!  Idle ──first byte──► Head ──head complete──► Busy ──answer complete──► Idle
//!  idle time-out:       header time-out:        no time-out: the token
//!  closed silently      408                     may take its time
//! ```
//!
//! In any of them a client that leaves our bytes unread for the idle time-out is cut off. A body
//! that pauses is the routes' to notice, by [`body_frame_timeout`].

use std::convert::Infallible;
use std::io;
use std::os::fd::AsFd;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::http::{HeaderValue, Version, header};
use axum::response::IntoResponse;
use http_body_util::BodyExt;
use hyper::Request;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tower::Service;

use super::problem::Problem;
use crate::caller::Peer;
use crate::ledger::code::Code;

/// The largest request head. Ours are under 1 KiB; a query with every filter is under 4 KiB.
pub const HEAD_BYTES: usize = 16 << 10;
/// The most header fields. `curl` sends five.
const HEADER_FIELDS: usize = 64;
/// What hyper buffers each way. With 1,024 connections that is 64 MiB at the very worst, so it
/// is not more; a body is read in pieces of this size, so it is not less.
const BUFFER_BYTES: usize = 32 << 10;
/// How long, and for how much, we go on reading after our last byte, so that a client that is
/// still sending finds the answer and not a reset.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 1 << 20;

/// Number of a connection since the daemon started, in the request's extensions beside `Arc<Peer>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ConnectionId(pub u64);

/// The time-outs of a connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timeouts {
    pub(super) header: Duration,
    pub(super) idle: Duration,
}

/// Serves one connection until it ends or, once `stop` is true, until the request in flight is answered.
pub(super) async fn run(
    stream: UnixStream,
    id: ConnectionId,
    peer: Arc<Peer>,
    router: Router,
    timeouts: Timeouts,
    mut stop: watch::Receiver<bool>,
) {
    let activity = Arc::new(Activity::new());
    let io = TokioIo::new(Io { stream, activity: Arc::clone(&activity), refused: None, at_end: false });
    let in_service = Arc::clone(&activity);
    let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
        in_service.enter(Phase::Busy);
        let extensions = request.extensions_mut();
        extensions.insert(Arc::clone(&peer));
        extensions.insert(id);
        let answer = match check_head(&request) {
            Ok(()) => Ok(router.clone().call(request)),
            Err(problem) => Err(problem),
        };
        let activity = Arc::clone(&in_service);
        async move {
            let answer = match answer {
                Ok(answer) => answer.await?,
                Err(problem) => {
                    let mut answer = problem.into_response();
                    answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
                    answer
                }
            };
            Ok::<_, Infallible>(answer.map(|body| AnswerBody { body, activity }))
        }
    });
    let mut connection = http1::Builder::new()
        // hyper's own would count the time between requests too.
        .header_read_timeout(None)
        // A client may shut down its side and still read. That it hung up is seen in `Io::poll_flush`.
        .half_close(true)
        .max_headers(HEADER_FIELDS)
        .max_header_size(HEAD_BYTES)
        .max_buf_size(BUFFER_BYTES)
        // One buffer a write, which `Io::poll_write` looks at.
        .writev(false)
        .serve_connection(io, service);

    // It never sleeps longer than the shortest time-out, so it is awake before any that begins
    // meanwhile ends, and no request has to set or reset a timer.
    let nap = timeouts.header.min(timeouts.idle);
    let mut watchdog = pin!(sleep(nap));
    let mut stopping = pin!(async move { stop.wait_for(|stop| *stop).await.map(drop) });
    let mut told_to_stop = false;
    let mut was_idle = false;
    let end = loop {
        tokio::select! {
            biased;
            result = &mut connection => break End::Hyper(result),
            () = &mut watchdog => {
                let now = Instant::now();
                match activity.next_deadline(timeouts) {
                    Some((deadline, overdue)) if deadline <= now => break End::Overdue(overdue),
                    deadline => {
                        activity.look_for_hangup.store(true, Relaxed);
                        let latest = now + nap;
                        watchdog.as_mut().reset(deadline.map_or(latest, |(at, _)| at.min(latest)));
                    }
                }
            }
            _ = &mut stopping, if !told_to_stop => {
                told_to_stop = true;
                was_idle = activity.phase() == Phase::Idle;
                Pin::new(&mut connection).graceful_shutdown();
            }
        }
    };

    let io = connection.into_parts().io.into_inner();
    let problem = match &end {
        // A route answered with hyper's very words, which were kept back; say as much.
        End::Hyper(Ok(())) => io.refused.map(|code| Problem::new(code, "the request was refused")),
        // Once a request is under way its answer is hyper's and the routes'.
        End::Hyper(Err(_)) if activity.phase() == Phase::Busy => None,
        End::Hyper(Err(error)) => {
            let known = if error.is_parse_too_large() {
                let detail =
                    format!("a request's head may have {HEAD_BYTES} bytes and {HEADER_FIELDS} fields");
                Some((Code::HeaderTooLarge, detail))
            } else if error.is_parse() {
                Some((Code::MalformedHttp, error.to_string()))
            } else if error.is_incomplete_message() && activity.phase() == Phase::Head {
                Some((Code::MalformedHttp, "the request's head broke off".to_owned()))
            } else {
                None
            };
            known.map(|(code, detail)| Problem::new(code, detail))
        }
        End::Overdue(Overdue::Head) => Some(Problem::new(
            Code::RequestTimeout,
            format!("the request's head did not arrive within {} s", timeouts.header.as_secs_f32()),
        )),
        End::Overdue(Overdue::Idle | Overdue::Unread) => None,
    };
    let answer = problem.map(|problem| problem.to_closing_answer());
    // After an answer the rest of a request may still be on its way: not where the client has
    // closed, and not where nothing had begun.
    let may_send = matches!(end, End::Hyper(Ok(()))) && !io.at_end && !was_idle;
    if answer.is_some() || may_send {
        close(io.stream, answer.as_deref().unwrap_or_default()).await;
    }
}

/// What HTTP asks of a request's head that hyper leaves to us: one `Host` (RFC 9112 §3.2), and no
/// coding of the body that would have to be taken off before anybody could read it.
fn check_head<B>(request: &Request<B>) -> Result<(), Problem> {
    let malformed = |detail: &str| Err(Problem::new(Code::MalformedHttp, detail));
    let hosts = request.headers().get_all(header::HOST).iter().count();
    if hosts > 1 || hosts == 0 && request.version() == Version::HTTP_11 {
        return malformed("a request has one `Host`, whatever it says");
    }
    let plain = |name, codings: &[&str]| {
        request.headers().get_all(name).iter().all(|value| {
            value.to_str().is_ok_and(|value| codings.iter().any(|c| value.trim().eq_ignore_ascii_case(c)))
        })
    };
    if !plain(header::TRANSFER_ENCODING, &["chunked", "identity"]) {
        return malformed("no `Transfer-Encoding` but `chunked` is taken");
    }
    if !plain(header::CONTENT_ENCODING, &["identity"]) {
        return malformed("no `Content-Encoding` is taken: send the body as it is");
    }
    Ok(())
}

/// Sends a last `answer` and closes so that the client can read it: nothing that the client still
/// sends may find the socket gone before that.
pub(super) async fn close(mut stream: UnixStream, answer: &[u8]) {
    let farewell = async {
        stream.write_all(answer).await?;
        stream.shutdown().await?;
        let mut rest = [0; 4096];
        let mut seen = 0;
        while seen < LINGER_BYTES {
            match stream.read(&mut rest).await? {
                0 => break,
                n => seen += n,
            }
        }
        Ok::<_, io::Error>(())
    };
    // A client that is gone by now has what it wanted.
    let _ = timeout(LINGER, farewell).await;
}

/// The next piece of a request's body; `None` at its end.
///
/// # Errors
/// `request-timeout` when nothing comes for `limit`, `body-incomplete` when the body breaks off
/// or is not framed as HTTP demands.
pub async fn body_frame_timeout(body: &mut Body, limit: Duration) -> Result<Option<Bytes>, Problem> {
    loop {
        let frame = timeout(limit, body.frame()).await.map_err(|_| {
            let waited = limit.as_secs_f32();
            Problem::new(Code::RequestTimeout, format!("nothing of the body arrived for {waited} s"))
        })?;
        match frame {
            None => return Ok(None),
            Some(Ok(frame)) => {
                // Trailers say nothing that we want to know.
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
            Some(Err(error)) => {
                return Err(Problem::new(Code::BodyIncomplete, format!("couldn't read the body: {error}")));
            }
        }
    }
}

enum End {
    Hyper(hyper::Result<()>),
    Overdue(Overdue),
}

/// Which deadline has passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Overdue {
    Head,
    Idle,
    /// The client does not read.
    Unread,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Idle,
    Head,
    Busy,
}

/// What a connection is doing, since when. Shared by the parts of one task: hyper owns the
/// stream, the service and the answer's body, and the watchdog looks on. The atomics are only
/// there because the task moves between threads.
struct Activity {
    opened: Instant,
    /// Milliseconds since `opened`, shifted left by two, and the phase that then began.
    phase: AtomicU64,
    /// Milliseconds since `opened` at which the client's buffer was full, plus one; 0 when it is not.
    unread_since: AtomicU64,
    /// The watchdog wants to know whether the client is still there.
    look_for_hangup: AtomicBool,
}

impl Activity {
    fn new() -> Self {
        Activity {
            opened: Instant::now(),
            phase: AtomicU64::new(Phase::Idle as u64),
            unread_since: AtomicU64::new(0),
            look_for_hangup: AtomicBool::new(false),
        }
    }

    fn now(&self) -> u64 {
        self.opened.elapsed().as_millis() as u64
    }

    fn enter(&self, phase: Phase) {
        // Nobody asks how long it has been busy, so no clock is read for it.
        let since = if phase == Phase::Busy { 0 } else { self.now() };
        self.phase.store(since << 2 | phase as u64, Relaxed);
    }

    fn phase(&self) -> Phase {
        match self.phase.load(Relaxed) & 3 {
            0 => Phase::Idle,
            1 => Phase::Head,
            _ => Phase::Busy,
        }
    }

    fn next_deadline(&self, timeouts: Timeouts) -> Option<(Instant, Overdue)> {
        let at = |millis: u64, limit| self.opened + Duration::from_millis(millis) + limit;
        let since = self.phase.load(Relaxed) >> 2;
        let by_phase = match self.phase() {
            Phase::Idle => Some((at(since, timeouts.idle), Overdue::Idle)),
            Phase::Head => Some((at(since, timeouts.header), Overdue::Head)),
            Phase::Busy => None,
        };
        let unread = self.unread_since.load(Relaxed).checked_sub(1);
        match (by_phase, unread.map(|since| (at(since, timeouts.idle), Overdue::Unread))) {
            // Until the last answer is read, no other can be given.
            (Some((deadline, _)), Some((unread, _))) => Some((deadline.min(unread), Overdue::Unread)),
            (one, other) => one.or(other),
        }
    }
}

/// The stream, with an eye on what passes.
struct Io {
    stream: UnixStream,
    activity: Arc<Activity>,
    /// hyper wanted to answer by itself, with an empty body, that it did not understand.
    refused: Option<Code>,
    /// The client has shut down its side.
    at_end: bool,
}

impl AsyncRead for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        self.at_end = buf.filled().len() == before;
        if !self.at_end && self.activity.phase() == Phase::Idle {
            self.activity.enter(Phase::Head);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Io {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        // Where nothing is being served, hyper's own refusal can stand at the end, perhaps
        // behind the rest of the answer before. It is kept back for `run` to put a better one.
        let own = if self.activity.phase() == Phase::Busy { None } else { automatic_refusal(buf) };
        let (end, code) = own.map_or((buf.len(), None), |(start, code)| (start, Some(code)));
        if end == 0 {
            self.refused = code;
            return Poll::Ready(Ok(buf.len()));
        }
        let written = Pin::new(&mut self.stream).poll_write(cx, &buf[..end]);
        let activity = &*self.activity;
        match written {
            Poll::Pending if activity.unread_since.load(Relaxed) == 0 => {
                activity.unread_since.store(activity.now() + 1, Relaxed);
            }
            Poll::Ready(Ok(_)) => {
                activity.unread_since.store(0, Relaxed);
                // The rest of an answer whose body hyper has already: idle begins at its end.
                if activity.phase() == Phase::Idle {
                    activity.enter(Phase::Idle);
                }
            }
            Poll::Pending | Poll::Ready(Err(_)) => {}
        }
        written
    }

    /// hyper calls this each time it is polled, whatever it waits for, so this is where a
    /// client that hung up in the middle of a long request is noticed.
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.activity.look_for_hangup.load(Relaxed) {
            self.activity.look_for_hangup.store(false, Relaxed);
            // POLLHUP of a Unix stream socket: both sides are shut down, so no answer can arrive.
            let mut polled = [PollFd::new(self.stream.as_fd(), PollFlags::empty())];
            let _ = poll(&mut polled, PollTimeout::ZERO);
            if polled[0].revents().is_some_and(|events| events.contains(PollFlags::POLLHUP)) {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Not yet: [`run`] may have something to say.
    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Where the answer begins, at the end of `buf`, that hyper gives by itself to what it does not
/// understand, and which code it means. No route answers with one of these and an empty body.
fn automatic_refusal(buf: &[u8]) -> Option<(usize, Code)> {
    /// Status line, `connection`, `content-length` and `date` together are shorter.
    const LONGEST: usize = 192;
    if !buf.ends_with(b"\r\n\r\n") {
        return None;
    }
    let tail = &buf[buf.len().saturating_sub(LONGEST)..];
    let at = tail.windows(7).rposition(|window| window == b"HTTP/1.")?;
    let head = &tail[at..];
    let has = |line: &[u8]| head.windows(line.len()).any(|window| window == line);
    let code = match head.get(8..13)? {
        b" 400 " | b" 414 " => Code::MalformedHttp,
        b" 431 " => Code::HeaderTooLarge,
        _ => return None,
    };
    let is_whole = head.windows(4).position(|window| window == b"\r\n\r\n") == Some(head.len() - 4);
    let is_own = is_whole && has(b"\r\ncontent-length: 0\r\n") && has(b"\r\nconnection: close\r\n");
    is_own.then_some((buf.len() - head.len(), code))
}

/// An answer's body, whose end makes the connection idle.
struct AnswerBody {
    body: Body,
    activity: Arc<Activity>,
}

impl HttpBody for AnswerBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for AnswerBody {
    fn drop(&mut self) {
        self.activity.enter(Phase::Idle);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_hypers_own_refusal_is_taken_for_it() {
        let own = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\ndate: Wed, 25 Nov 2026 02:48:46 GMT\r\n\r\n";
        assert_eq!(automatic_refusal(own), Some((0, Code::HeaderTooLarge)));
        let behind = [b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}".as_slice(), own].concat();
        assert_eq!(automatic_refusal(&behind), Some((behind.len() - own.len(), Code::HeaderTooLarge)));
        for other in [
            b"HTTP/1.1 400 Bad Request\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}".as_slice(),
            b"HTTP/1.1 400 Bad Request\r\ncontent-length: 4\r\nconnection: close\r\n\r\n\r\n\r\n",
            b"HTTP/1.1 404 Not Found\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
            b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n",
            b"0\r\n\r\n",
            b"",
        ] {
            assert_eq!(automatic_refusal(other), None, "{}", String::from_utf8_lossy(other));
        }
    }

    #[test]
    fn each_phase_has_its_deadline() {
        let timeouts = Timeouts { header: Duration::from_secs(5), idle: Duration::from_secs(60) };
        let activity = Activity::new();
        let overdue = |activity: &Activity| activity.next_deadline(timeouts).map(|(_, overdue)| overdue);
        assert_eq!(overdue(&activity), Some(Overdue::Idle));
        activity.enter(Phase::Head);
        assert_eq!(overdue(&activity), Some(Overdue::Head));
        activity.enter(Phase::Busy);
        assert_eq!(overdue(&activity), None);
        activity.unread_since.store(1, Relaxed);
        assert_eq!(overdue(&activity), Some(Overdue::Unread));
    }
}
