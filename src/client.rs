//! The client of the daemon's socket: HTTP/1.1 over one Unix connection that is kept alive.
//!
//! It carries bytes and reports what the daemon said; it knows nothing of terminals, and it never
//! sends a request twice once a byte of it may have arrived. The command line, the load generator
//! and the tests all use it.
//!
//! ```no_run
//! # async fn example() -> Result<(), attestd::client::ClientError> {
//! use attestd::client::{Client, DEFAULT_SOCKET};
//! let mut client = Client::connect(DEFAULT_SOCKET.as_ref()).await?;
//! let entry = client.entry("0").await?;
//! println!("{}", String::from_utf8_lossy(&entry));
//! # Ok(())
//! # }
//! ```

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use futures_util::stream::Stream;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper::{Method, Request, Response, StatusCode, header};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

mod answer;
mod wire;

use answer::Receipted;
pub use answer::{Acknowledgement, Answer, Head, Page, ProblemDoc, Queue, RawRates, Stats, Token, decode};
use wire::{Outgoing, broken, open};

/// Where the daemon listens unless it is told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/attestd/attestd.sock";

/// The largest answer that is held in memory: a page of 1,000 entries of 64 KiB, and as much again.
const MAX_ANSWER_BYTES: usize = 128 << 20;

/// The longest acknowledgement or problem of a batch; a longer one is not the daemon's.
const MAX_ANSWER_LINE_BYTES: usize = 1 << 20;

/// How long a connection is good for before its first request: well under the daemon's patience
/// for a request head, because until then nobody looks whether it was closed.
const FIRST_REQUEST_WITHIN: Duration = Duration::from_secs(1);

/// Why there is no answer, or not the one that was hoped for.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is no connection to be had. Nothing was sent.
    #[error("no connection to {socket}")]
    Unreachable {
        /// The socket that was tried.
        socket: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The daemon will not do it, now or later.
    #[error("{0}")]
    Refused(Box<ProblemDoc>),
    /// The daemon cannot do it at the moment (503, 507).
    #[error("{0}")]
    Unavailable(Box<ProblemDoc>),
    /// What came back is not what the API promises.
    #[error("unexpected answer: {0}")]
    Protocol(String),
    /// The connection broke off. What was sent may or may not have taken effect.
    #[error("the connection broke off")]
    Io(#[source] io::Error),
}

/// What an append came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Appended {
    /// False when the same entry had been sealed before and this is the stored answer.
    pub created: bool,
    /// The sealed entry in canonical form, without a line feed.
    pub line: Bytes,
}

/// The query part of a request, percent-encoded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query(String);

impl Query {
    /// RFC 3986 §2.3: what stands for itself.
    const ESCAPED: &'static AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

    /// An empty query.
    #[must_use]
    pub fn new() -> Self {
        Query::default()
    }

    /// The query with `name=value` added; `name` stands for itself.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl fmt::Display) -> Self {
        self.0.push(if self.0.is_empty() { '?' } else { '&' });
        self.0.push_str(name);
        self.0.push('=');
        self.0.extend(utf8_percent_encode(&value.to_string(), Self::ESCAPED));
        self
    }

    /// The query with `name=value` added where there is a value.
    #[must_use]
    pub fn with_some<T: fmt::Display>(self, name: &str, value: Option<T>) -> Self {
        match value {
            Some(value) => self.with(name, value),
            None => self,
        }
    }

    /// The text, with its question mark, or nothing at all.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// One connection to the daemon. Requests go one after the other; for more at a time, make more.
#[derive(Debug)]
pub struct Client {
    socket: PathBuf,
    sender: SendRequest<Outgoing>,
    /// When the connection was made, until its first request.
    unused_since: Option<Instant>,
}

impl Client {
    /// Connects. A connection that the daemon closes while it is idle is made again when it is
    /// next needed.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`].
    pub async fn connect(socket: &Path) -> Result<Self, ClientError> {
        let sender = open(socket).await?;
        Ok(Client { socket: socket.to_owned(), sender, unused_since: Some(Instant::now()) })
    }

    /// Appends the request object `event` as it stands.
    ///
    /// # Errors
    /// Any [`ClientError`]. After [`ClientError::Io`] the entry may or may not be sealed; only an
    /// `entry_id` in it makes another try safe.
    pub async fn append(&mut self, event: Bytes) -> Result<Appended, ClientError> {
        let request = post("/v1/entries", "application/json", Outgoing::Whole(event))?;
        let response = self.send(request).await?;
        let created = response.status() == StatusCode::CREATED;
        Ok(Appended { created, line: collect(response).await? })
    }

    /// [`Client::append`] with the entry's receipt, which is `None` when the daemon has none yet:
    /// the entry is sealed all the same.
    ///
    /// # Errors
    /// As [`Client::append`].
    pub async fn append_with_receipt(
        &mut self,
        event: Bytes,
    ) -> Result<(Appended, Option<String>), ClientError> {
        let request = post("/v1/entries?receipt=1", "application/json", Outgoing::Whole(event))?;
        let response = self.send(request).await?;
        let created = response.status() == StatusCode::CREATED;
        let Receipted { entry, receipt } = decode(&collect(response).await?)?;
        Ok((Appended { created, line: entry.into() }, receipt))
    }

    /// Appends a batch. `lines` yields NDJSON in pieces of any size; it is read while the answers
    /// come in, so it must not wait for them unless it has yielded what they answer. When it
    /// ends, so does the batch.
    ///
    /// # Errors
    /// Any [`ClientError`] that came before the first answer.
    pub async fn append_batch<S>(&mut self, lines: S) -> Result<Answers<'_>, ClientError>
    where
        S: Stream<Item = Bytes> + Send + 'static,
    {
        let body = Outgoing::Pieces(Box::pin(lines));
        let response = self.send(post("/v1/entries:batch", "application/x-ndjson", body)?).await?;
        Ok(Answers {
            body: response.into_body(),
            partial: BytesMut::new(),
            lines: VecDeque::new(),
            client: PhantomData,
        })
    }

    /// The canonical line of the entry `reference`: a sequence number or an id.
    ///
    /// # Errors
    /// Any [`ClientError`]; an entry that is not there is [`ClientError::Refused`].
    pub async fn entry(&mut self, reference: &str) -> Result<Bytes, ClientError> {
        let encoded = utf8_percent_encode(reference, Query::ESCAPED);
        self.get_json(&format!("/v1/entries/{encoded}")).await
    }

    /// The receipt of the entry `reference`, a tlog-proof.
    ///
    /// # Errors
    /// Any [`ClientError`]; where no checkpoint has the entry yet, [`ClientError::Unavailable`].
    pub async fn proof(&mut self, reference: &str) -> Result<Bytes, ClientError> {
        let encoded = utf8_percent_encode(reference, Query::ESCAPED);
        self.get_json(&format!("/v1/entries/{encoded}/proof")).await
    }

    /// One page of the entries that match. A page can hold fewer than its limit, or none, although
    /// there is a next one.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn list(&mut self, query: &Query) -> Result<Page, ClientError> {
        decode(&self.get_json(&format!("/v1/entries{}", query.as_str())).await?)
    }

    /// Starts an export; `query` may hold `from` and `to`.
    ///
    /// # Errors
    /// Any [`ClientError`] that came before the first byte.
    pub async fn export(&mut self, query: &Query) -> Result<Export<'_>, ClientError> {
        let response = self.send(get(&format!("/v1/export{}", query.as_str()))?).await?;
        let entries = number_header(&response, "attestd-entries");
        Ok(Export { entries, body: response.into_body(), client: PhantomData })
    }

    /// Has the daemon check its whole ledger: the JSON text of a [`crate::audit::Verdict`]. Takes as long as it takes.
    ///
    /// # Errors
    /// Any [`ClientError`]. A verdict that something is wrong is not an error.
    pub async fn verify(&mut self) -> Result<Bytes, ClientError> {
        self.post_empty("/v1/verify").await
    }

    /// The JSON text of the daemon's [`Stats`].
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn stats(&mut self) -> Result<Bytes, ClientError> {
        self.get_json("/v1/stats").await
    }

    /// Has the daemon measure its token and disk for `seconds`: the JSON text of [`RawRates`].
    ///
    /// # Errors
    /// Any [`ClientError`]; only root and the daemon's own user may, and only while it is idle.
    pub async fn bench(&mut self, seconds: u64) -> Result<Bytes, ClientError> {
        self.post_empty(&format!("/v1/bench{}", Query::new().with("seconds", seconds).as_str())).await
    }

    /// The JSON text of the ledger's keys.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn keys(&mut self) -> Result<Bytes, ClientError> {
        self.get_json("/v1/keys").await
    }

    /// The body of what `path` (with its query) answers to a GET.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn get_json(&mut self, path: &str) -> Result<Bytes, ClientError> {
        collect(self.send(get(path)?).await?).await
    }

    /// The body of what `path` answers to a POST of the JSON text `body`.
    ///
    /// # Errors
    /// Any [`ClientError`]. After [`ClientError::Io`] it may or may not have taken effect.
    pub async fn post_json(&mut self, path: &str, body: impl Into<Bytes>) -> Result<Bytes, ClientError> {
        let request = post(path, "application/json", Outgoing::Whole(body.into()))?;
        collect(self.send(request).await?).await
    }

    /// The JSON text of the rules in force: `hash`, and `rules` in canonical form.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn rules(&mut self) -> Result<Bytes, ClientError> {
        self.get_json("/v1/rules").await
    }

    /// Sets the rules that the TOML text `rules` says; the sealed entry, as for [`Client::append`].
    ///
    /// # Errors
    /// As [`Client::post_json`].
    pub async fn set_rules(&mut self, rules: impl Into<Bytes>) -> Result<Bytes, ClientError> {
        let request = request(Method::PUT, "/v1/rules")
            .header(header::CONTENT_TYPE, header::HeaderValue::from_static("application/toml"))
            .body(Outgoing::Whole(rules.into()))
            .map_err(malformed)?;
        collect(self.send(request).await?).await
    }

    async fn post_empty(&mut self, path: &str) -> Result<Bytes, ClientError> {
        let request = post(path, "application/json", Outgoing::Whole(Bytes::new()))?;
        collect(self.send(request).await?).await
    }

    /// Sends a request and waits for the head of a successful answer.
    async fn send(&mut self, request: Request<Outgoing>) -> Result<Response<Incoming>, ClientError> {
        let unused_since = self.unused_since.take();
        let stale = unused_since.is_some_and(|since| since.elapsed() > FIRST_REQUEST_WITHIN);
        if stale || self.sender.ready().await.is_err() {
            self.sender = open(&self.socket).await?;
        }
        // The daemon may close a kept connection at the moment of the next request. A read is
        // asked again (RFC 9110 §9.2.2); of an append nobody knows whether it arrived.
        let read = (request.method() == Method::GET && unused_since.is_none()).then(|| request.uri().clone());
        let response = match (self.exchange(request).await, read) {
            (Err(ClientError::Io(_)), Some(uri)) => {
                self.sender = open(&self.socket).await?;
                self.exchange(get(&uri.to_string())?).await?
            }
            (result, _) => result?,
        };
        if response.status().is_success() { Ok(response) } else { Err(refusal(response).await) }
    }

    async fn exchange(&mut self, request: Request<Outgoing>) -> Result<Response<Incoming>, ClientError> {
        let mut unsent = match self.sender.try_send_request(request).await {
            Ok(response) => return Ok(response),
            Err(unsent) => unsent,
        };
        // The request comes back only when not a byte of it was written, so the daemon cannot
        // have seen it and sending it anew is safe.
        let Some(request) = unsent.take_message() else {
            return Err(broken(unsent.into_error()));
        };
        self.sender = open(&self.socket).await?;
        self.sender.send_request(request).await.map_err(broken)
    }
}

/// The answers to a batch, in the order of its lines.
#[derive(Debug)]
pub struct Answers<'a> {
    body: Incoming,
    /// The beginning of a line whose end has not come yet.
    partial: BytesMut,
    lines: VecDeque<Bytes>,
    client: PhantomData<&'a mut Client>,
}

impl Answers<'_> {
    /// The next answer, for [`Answer::parse`], or `None` after the last one.
    ///
    /// # Errors
    /// [`ClientError::Io`] when the connection broke off: what was answered is sealed, the rest
    /// may or may not be.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        loop {
            if let Some(line) = self.lines.pop_front() {
                return Ok(Some(line));
            }
            let Some(chunk) = next_chunk(&mut self.body).await? else {
                let rest = self.partial.split().freeze();
                return Ok(Some(rest).filter(|rest| !rest.is_empty()));
            };
            self.split(chunk)?;
        }
    }

    /// Whether another answer has come in already, so that [`Answers::next`] will not wait.
    #[must_use]
    pub fn has_next(&self) -> bool {
        !self.lines.is_empty()
    }

    /// Takes complete lines off `chunk` without copying, but for the one that began earlier.
    fn split(&mut self, mut chunk: Bytes) -> Result<(), ClientError> {
        while let Some(end) = chunk.iter().position(|b| *b == b'\n') {
            let mut line = chunk.split_to(end);
            chunk.advance(1);
            if !self.partial.is_empty() {
                self.partial.extend_from_slice(&line);
                line = self.partial.split().freeze();
            }
            if !line.is_empty() {
                self.lines.push_back(line);
            }
        }
        if self.partial.len() + chunk.len() > MAX_ANSWER_LINE_BYTES {
            return Err(ClientError::Protocol("a line of the answer is too long".into()));
        }
        self.partial.extend_from_slice(&chunk);
        Ok(())
    }
}

/// A bundle on its way, as a tar.
#[derive(Debug)]
pub struct Export<'a> {
    /// How many entries it holds, where the daemon said so.
    pub entries: Option<u64>,
    body: Incoming,
    client: PhantomData<&'a mut Client>,
}

impl Export<'_> {
    /// The next piece, or `None` after the last one.
    ///
    /// # Errors
    /// [`ClientError::Io`] when it broke off.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, ClientError> {
        next_chunk(&mut self.body).await
    }
}

fn get(path: &str) -> Result<Request<Outgoing>, ClientError> {
    request(Method::GET, path).body(Outgoing::Whole(Bytes::new())).map_err(malformed)
}

fn post(path: &str, media_type: &'static str, body: Outgoing) -> Result<Request<Outgoing>, ClientError> {
    request(Method::POST, path)
        .header(header::CONTENT_TYPE, header::HeaderValue::from_static(media_type))
        .body(body)
        .map_err(malformed)
}

fn request(method: Method, path: &str) -> hyper::http::request::Builder {
    Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, header::HeaderValue::from_static("attestd"))
}

/// Only a path that a caller made up can be at fault here.
fn malformed(error: hyper::http::Error) -> ClientError {
    ClientError::Io(io::Error::new(io::ErrorKind::InvalidInput, error))
}

async fn next_chunk(body: &mut Incoming) -> Result<Option<Bytes>, ClientError> {
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.map_err(broken)?.into_data() {
            return Ok(Some(data));
        }
    }
    Ok(None)
}

async fn collect(response: Response<Incoming>) -> Result<Bytes, ClientError> {
    match Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) => match error.downcast::<hyper::Error>() {
            Ok(error) => Err(broken(*error)),
            Err(error) => Err(ClientError::Protocol(error.to_string())),
        },
    }
}

/// What an answer other than a success means.
async fn refusal(response: Response<Incoming>) -> ClientError {
    let status = response.status();
    let retry_after = number_header(&response, header::RETRY_AFTER.as_str());
    let body = match collect(response).await {
        Ok(body) => body,
        Err(error) => return error,
    };
    let Ok(mut problem) = decode::<ProblemDoc>(&body) else {
        return ClientError::Protocol(format!("status {status} without a problem document"));
    };
    problem.retry_after = retry_after;
    match status {
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::INSUFFICIENT_STORAGE => {
            ClientError::Unavailable(Box::new(problem))
        }
        _ => ClientError::Refused(Box::new(problem)),
    }
}

fn number_header(response: &Response<Incoming>, name: &str) -> Option<u64> {
    response.headers().get(name)?.to_str().ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_percent_encoded() {
        let query =
            Query::new().with("actor_id", "uid:0/a b&c=d").with_some("to", None::<u64>).with("from", 7);
        assert_eq!(query.as_str(), "?actor_id=uid%3A0%2Fa%20b%26c%3Dd&from=7");
        assert_eq!(Query::new().as_str(), "");
    }

    // The peers below are scripts of raw bytes: what the daemon does at its worst, which a real
    // one cannot be made to do on purpose.

    const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";

    /// Runs `script` with a listening socket on a thread of its own.
    fn peer<F>(script: F) -> (tempfile::TempDir, PathBuf, std::thread::JoinHandle<()>)
    where
        F: FnOnce(std::os::unix::net::UnixListener) + Send + 'static,
    {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("sock");
        let listener = std::os::unix::net::UnixListener::bind(&path).expect("bound");
        (dir, path, std::thread::spawn(move || script(listener)))
    }

    /// Reads until `end` has come in.
    fn read_until(stream: &mut impl io::Read, end: &[u8]) -> Vec<u8> {
        let mut seen = Vec::new();
        let mut piece = [0; 4096];
        while !seen.windows(end.len()).any(|window| window == end) {
            match stream.read(&mut piece).expect("readable") {
                0 => break,
                length => seen.extend_from_slice(&piece[..length]),
            }
        }
        seen
    }

    #[tokio::test]
    async fn a_refusal_that_comes_before_the_request_is_heard() {
        let (_dir, path, peer) = peer(|listener| {
            for _ in 0..2 {
                let (mut stream, _) = listener.accept().expect("a client");
                let body = r#"{"title":"t","status":503,"code":"too-many-connections"}"#;
                let head = "HTTP/1.1 503 X\r\nconnection: close\r\nretry-after: 2";
                io::Write::write_all(
                    &mut stream,
                    format!("{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).as_bytes(),
                )
                .expect("writable");
            }
        });
        for pause in [0, 100] {
            let mut client = Client::connect(&path).await.expect("connected");
            tokio::time::sleep(Duration::from_millis(pause)).await;
            let error = client.append(Bytes::from_static(b"{}")).await.expect_err("refused");
            assert!(
                matches!(&error, ClientError::Unavailable(p) if p.code == "too-many-connections" && p.retry_after == Some(2)),
                "{error:?} after {pause} ms"
            );
        }
        peer.join().expect("the script ran");
    }

    #[tokio::test]
    async fn a_kept_connection_that_was_closed_is_made_again() {
        let (_dir, path, peer) = peer(|listener| {
            for _ in 0..2 {
                let (mut stream, _) = listener.accept().expect("a client");
                read_until(&mut stream, b"{\"n\":");
                io::Write::write_all(&mut stream, OK).expect("writable");
            }
        });
        let mut client = Client::connect(&path).await.expect("connected");
        client.append(Bytes::from_static(b"{\"n\":1}")).await.expect("answered");
        tokio::time::sleep(Duration::from_millis(50)).await;
        client.append(Bytes::from_static(b"{\"n\":2}")).await.expect("answered over a new connection");
        peer.join().expect("the script ran");
    }

    #[tokio::test]
    async fn an_append_that_may_have_arrived_is_not_sent_again() {
        let (_dir, path, peer) = peer(|listener| {
            let (mut stream, _) = listener.accept().expect("a client");
            read_until(&mut stream, b"{}");
            drop(stream);
            listener.set_nonblocking(true).expect("set");
            std::thread::sleep(Duration::from_millis(200));
            assert!(listener.accept().is_err(), "the client came again");
        });
        let mut client = Client::connect(&path).await.expect("connected");
        let error = client.append(Bytes::from_static(b"{}")).await.expect_err("broken");
        assert!(matches!(error, ClientError::Io(_)), "{error:?}");
        peer.join().expect("the script ran");
    }

    #[tokio::test]
    async fn a_batch_flows_both_ways_at_once() {
        // Far more than the buffers of a socket hold: had either side to wait for the other to
        // be done, this would stand still.
        const LINES: usize = 20_000;
        let (_dir, path, peer) = peer(|listener| {
            let (mut stream, _) = listener.accept().expect("a client");
            let mut answer = stream.try_clone().expect("cloned");
            let mut seen = read_until(&mut stream, b"\r\n\r\n");
            io::Write::write_all(&mut answer, b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n")
                .expect("writable");
            let mut lines = 0;
            let mut piece = [0; 4096];
            // The chunks' own framing has no `#`.
            loop {
                for _ in seen.iter().filter(|b| **b == b'#') {
                    lines += 1;
                    let line = format!("{{\"padding\":\"{}\",\"line\":{lines}}}\n", "x".repeat(100));
                    // In two writes, so that lines are split.
                    let (a, b) = line.as_bytes().split_at(line.len() / 2);
                    io::Write::write_all(&mut answer, a).expect("writable");
                    io::Write::write_all(&mut answer, b).expect("writable");
                }
                // The script ends here, and with it the answer: nothing more may come in.
                if lines == LINES {
                    return;
                }
                let length = io::Read::read(&mut stream, &mut piece).expect("readable");
                seen = piece[..length].to_vec();
            }
        });
        let mut client = Client::connect(&path).await.expect("connected");
        let line = Bytes::from(["#".to_owned(), "y".repeat(200), "\n".to_owned()].concat());
        let lines = futures_util::stream::iter(std::iter::repeat_n(line, LINES));
        let mut answers = client.append_batch(lines).await.expect("begun");
        let mut count = 0;
        while let Some(answer) = answers.next().await.expect("an answer") {
            count += 1;
            assert!(answer.ends_with(format!(",\"line\":{count}}}").as_bytes()), "{answer:?}");
        }
        assert_eq!(count, LINES);
        peer.join().expect("the script ran");
    }
}
