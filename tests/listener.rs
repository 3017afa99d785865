//! What the socket does with clients that are slow, broken, too many, or gone: each gets an answer
//! that says what is wrong, or a close, and none of them costs the others anything.

#![cfg(feature = "daemon")]

use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use attestd::caller::Peer;
use attestd::config;
use attestd::server::connection::{ConnectionId, body_frame_timeout};
use attestd::server::listener::{BindError, Connections, Limits, bind, raise_nofile_limit, serve};
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Router};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

const HELLO: &str = "GET / HTTP/1.1\r\nhost: x\r\n\r\n";
const BYE: &str = "GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
const BIG: usize = 8 << 20;

struct Server {
    _folder: tempfile::TempDir,
    path: PathBuf,
    connections: Arc<Connections>,
    /// Set when a handler of `/slow` was dropped before its end.
    slow_was_dropped: Arc<AtomicBool>,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

/// Time-outs that a test can wait for.
fn hasty() -> Limits {
    Limits { header_timeout: Duration::from_millis(200), idle_timeout: Duration::from_millis(600), ..roomy() }
}

fn roomy() -> Limits {
    Limits::from(&config::Server::default())
}

impl Server {
    fn start(limits: Limits) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("s");
        let config = config::Server { socket: path.clone(), ..config::Server::default() };
        let (listener, _) = bind(&config).expect("bound");
        let connections = Arc::new(Connections::default());
        let slow_was_dropped = Arc::default();
        let router = router(Arc::clone(&slow_was_dropped));
        let (stop, stopped) = oneshot::channel();
        let shutdown = async { stopped.await.unwrap_or(()) };
        let task =
            tokio::spawn(serve(listener, router, limits, Arc::clone(&connections), || false, shutdown));
        Server { _folder: folder, path, connections, slow_was_dropped, stop: Some(stop), task }
    }

    async fn connect(&self) -> UnixStream {
        UnixStream::connect(&self.path).await.expect("connected")
    }

    /// Sends `bytes` on a new connection.
    async fn begin(&self, bytes: impl AsRef<[u8]>) -> UnixStream {
        let mut stream = self.connect().await;
        // A server that has seen enough may close its side first.
        let _ = stream.write_all(bytes.as_ref()).await;
        stream
    }

    /// Sends `bytes` on a new connection and reads until it is closed.
    async fn talk(&self, bytes: impl AsRef<[u8]>) -> String {
        read_all(&mut self.begin(bytes).await).await
    }

    /// A connection that was used and is idle.
    async fn used(&self) -> UnixStream {
        let mut stream = self.begin(HELLO).await;
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\nok") {
            answer.push(stream.read_u8().await.expect("more"));
        }
        stream
    }

    async fn is_well(&self) {
        let answer = self.talk(BYE).await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\r\n\r\nok"), "{answer}");
        self.empties().await;
    }

    async fn empties(&self) {
        for _ in 0..500 {
            if self.connections.current() == 0 {
                return;
            }
            sleep(Duration::from_millis(10)).await;
        }
        panic!("{} connections are left", self.connections.current());
    }

    fn stop(&mut self) {
        self.stop.take().and_then(|stop| stop.send(()).ok()).expect("running");
    }
}

async fn read_all(stream: &mut UnixStream) -> String {
    let mut answer = Vec::new();
    let _ = timeout(Duration::from_secs(10), stream.read_to_end(&mut answer)).await.expect("closed in time");
    String::from_utf8(answer).expect("text")
}

fn router(slow_was_dropped: Arc<AtomicBool>) -> Router {
    struct Unfinished(Arc<AtomicBool>);
    impl Drop for Unfinished {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    let echo = |mut body: Body| async move {
        let mut all = Vec::new();
        loop {
            match body_frame_timeout(&mut body, Duration::from_millis(300)).await {
                Ok(Some(piece)) => all.extend_from_slice(&piece),
                Ok(None) => return Response::new(Body::from(all)),
                Err(problem) => return problem.into_response(),
            }
        }
    };
    let slow = || async move {
        let unfinished = Unfinished(slow_was_dropped);
        sleep(Duration::from_millis(1500)).await;
        std::mem::forget(unfinished);
        "done"
    };
    let peer = |Extension(peer): Extension<Arc<Peer>>, Extension(id): Extension<ConnectionId>| async move {
        format!("{} {}", id.0, peer.to_json())
    };
    Router::new()
        .route("/", get(|| async { "ok" }))
        .route("/echo", post(echo))
        .route("/early", post(|| async { "enough" }))
        .route("/slow", get(slow))
        .route("/peer", get(peer))
        .route("/big", get(|| async { vec![b'x'; BIG] }))
}

/// Holds `answer` to be the problem document `code` with `status`, and the last thing said.
fn is_problem(answer: &str, status: u16, code: &str) {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {answer:?}"));
    assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    assert!(head.contains("\r\ncontent-type: application/problem+json"), "{answer}");
    assert!(head.contains(&format!("\r\ncontent-length: {}", body.len())), "{answer}");
    assert!(head.contains("\r\nconnection: close"), "{answer}");
    assert!(body.contains(&format!("\"status\":{status},")), "{answer}");
    assert!(body.contains(&format!("\"code\":\"{code}\"")), "{answer}");
    attestd::ledger::json::canonicalize(body.as_bytes()).expect("one JSON text");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_http_is_answered_with_a_problem() {
    let server = Server::start(roomy());
    let cases: &[&[u8]] = &[
        b"garbage\r\n\r\n",
        b"\x00\x01\x02\x03\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a TLS hello\r\n\r\n",
        b"{\"event_type\":\"ACTION\"}\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET / HTTP/2.0\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/1.1\r\nbad header\r\n\r\n",
        b"GET / HTTP/1.1\r\na: b\x00c\r\n\r\n",
        b"GET / HTTP/1.1\r\na: b\rc: d\r\n\r\n",
        b"GET / HTTP/1.1\r\n folded: x\r\n\r\n",
        b"GET / HTTP/1.1\r\na : b\r\n\r\n",
        b"G\x00T / HTTP/1.1\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\n\r\n",
        b"POST /echo HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
        b"POST /echo HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
        b"POST /echo HTTP/1.1\r\ntransfer-encoding: gzip\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\nhost: x\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-encoding: gzip\r\ncontent-length: 2\r\n\r\nhi",
        b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-encoding: identity, br\r\ncontent-length: 2\r\n\r\nhi",
    ];
    for case in cases {
        println!("{:?}", String::from_utf8_lossy(case));
        is_problem(&server.talk(case).await, 400, "malformed-http");
    }
    server.is_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_is_too_large_is_431() {
    let server = Server::start(roomy());
    let fields = "a: b\r\n".repeat(65);
    is_problem(&server.talk(format!("GET / HTTP/1.1\r\n{fields}\r\n")).await, 431, "header-too-large");
    for size in [16 << 10, 20 << 10, 1 << 20] {
        let long = "x".repeat(size);
        is_problem(
            &server.talk(format!("GET / HTTP/1.1\r\na: {long}\r\n\r\n")).await,
            431,
            "header-too-large",
        );
        is_problem(
            &server.talk(format!("GET /{long} HTTP/1.1\r\nhost: x\r\n\r\n")).await,
            431,
            "header-too-large",
        );
        is_problem(&server.talk(&long).await, 431, "header-too-large");
    }
    let fields = "a: b\r\n".repeat(62);
    let answer = server.talk(format!("GET / HTTP/1.1\r\nhost: x\r\n{fields}connection: close\r\n\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "64 fields are not too many: {answer}");
    server.is_well().await;
}

/// RFC 9112 §2.2 lets a server take a bare line feed for the end of a line, as hyper does. There
/// is no proxy in front of a Unix socket that could see other lines; what matters is that no
/// byte of a body is ever taken for a head.
#[tokio::test(flavor = "multi_thread")]
async fn bare_line_feeds_do_not_make_a_second_request() {
    let server = Server::start(roomy());
    let answer = server.talk("GET / HTTP/1.1\nhost: x\nconnection: close\n\n").await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let inner = "\n\nGET /peer HTTP/1.1\n\n";
    let head = format!(
        "POST /echo HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        inner.len()
    );
    let answer = server.talk(head + inner).await;
    assert!(answer.ends_with(inner) && answer.matches("HTTP/1.1 200").count() == 1, "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_behind_good_requests_leaves_their_answers_whole() {
    let server = Server::start(roomy());
    let echo = "POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\nhi";
    let answer = server.talk(format!("{HELLO}{echo}{HELLO}garbage\r\n\r\n")).await;
    let answers: Vec<_> = answer.splitn(5, "HTTP/1.1 ").skip(1).collect();
    assert_eq!(answers.len(), 4, "{answer}");
    for (answer, body) in answers.iter().zip(["ok", "hi", "ok"]) {
        assert!(answer.starts_with("200 ") && answer.ends_with(&format!("\r\n\r\n{body}")), "{answer}");
    }
    is_problem(&format!("HTTP/1.1 {}", answers[3]), 400, "malformed-http");
    server.is_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_head_is_408_however_it_trickles() {
    let server = Server::start(hasty());
    let begun = Instant::now();
    let mut stream = server.connect().await;
    let (mut reader, mut writer) = stream.split();
    let trickle = async {
        loop {
            let _ = writer.write_all(b"G").await;
            sleep(Duration::from_millis(40)).await;
        }
    };
    let mut answer = String::new();
    tokio::select! {
        read = reader.read_to_string(&mut answer) => drop(read.expect("text")),
        () = trickle => {}
    }
    is_problem(&answer, 408, "request-timeout");
    assert!((150..900).contains(&begun.elapsed().as_millis()), "{:?}", begun.elapsed());

    // On a connection that was used before and idle for longer than a head may take, too.
    let mut stream = server.used().await;
    sleep(Duration::from_millis(300)).await;
    stream.write_all(b"GET /").await.expect("still open");
    is_problem(&read_all(&mut stream).await, 408, "request-timeout");
    drop(stream);
    server.empties().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quiet_connection_is_closed_without_a_word() {
    let server = Server::start(hasty());
    let begun = Instant::now();
    assert_eq!(server.talk("").await, "");
    assert!((500..1500).contains(&begun.elapsed().as_millis()), "{:?}", begun.elapsed());
    let begun = Instant::now();
    assert_eq!(read_all(&mut server.used().await).await, "");
    assert!((500..1500).contains(&begun.elapsed().as_millis()), "{:?}", begun.elapsed());
    server.empties().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_handler_is_waited_for_unless_the_client_is_gone() {
    let server = Server::start(hasty());
    let answer = server.talk("GET /slow HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    assert!(answer.ends_with("\r\n\r\ndone"), "{answer}");
    let mut stream = server.begin("GET /slow HTTP/1.1\r\nhost: x\r\n\r\n").await;
    stream.shutdown().await.expect("no more to say");
    assert!(read_all(&mut stream).await.ends_with("\r\n\r\ndone"), "half a close is not a hang-up");

    assert!(!server.slow_was_dropped.load(Ordering::SeqCst));
    let stream = server.begin("GET /slow HTTP/1.1\r\nhost: x\r\n\r\n").await;
    sleep(Duration::from_millis(100)).await;
    drop(stream);
    server.empties().await;
    assert!(server.slow_was_dropped.load(Ordering::SeqCst));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_pauses_or_breaks_off_is_told_so() {
    let server = Server::start(hasty());
    let head = "POST /echo HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 10\r\n\r\nabc";
    is_problem(&server.talk(head).await, 408, "request-timeout");
    let mut stream = server.begin(head).await;
    stream.shutdown().await.expect("no more to say");
    is_problem(&read_all(&mut stream).await, 400, "body-incomplete");
    let bad_chunk =
        "POST /echo HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n";
    is_problem(&server.talk(bad_chunk).await, 400, "body-incomplete");
    let chunks = "3\r\nabc\r\n0\r\ntrailer: x\r\n\r\n";
    let good = "POST /echo HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n";
    assert!(server.talk(format!("{good}{chunks}")).await.ends_with("\r\n\r\nabc"));
    let asking = "POST /echo HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\nconnection: close\r\ncontent-length: 3\r\n\r\nabc";
    let answer = server.talk(asking).await;
    assert!(
        answer.starts_with("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 ") && answer.ends_with("\r\n\r\nabc")
    );
    server.is_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_hang_up_are_forgotten() {
    let server = Server::start(roomy());
    let body = "POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nabc";
    for beginning in ["", "G", "GET / HTTP/1.1\r\nho", body, HELLO] {
        for _ in 0..20 {
            drop(server.begin(beginning).await);
        }
    }
    let mut stream = server.begin("GET / HTT").await;
    stream.shutdown().await.expect("no more to say");
    is_problem(&read_all(&mut stream).await, 400, "malformed-http");
    drop(stream);
    server.is_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_read_is_cut_off_and_who_reads_slowly_is_not() {
    let server = Server::start(hasty());
    let request = "GET /big HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    let mut stalled = server.begin(request).await;
    let mut slow = server.begin(request).await;
    let mut read = 0;
    let mut piece = vec![0; BIG / 8];
    for _ in 0..8 {
        sleep(Duration::from_millis(200)).await;
        read += slow.read_exact(&mut piece).await.expect("it goes on");
    }
    read += slow.read_to_end(&mut Vec::new()).await.expect("to its end");
    assert!(read > BIG);
    assert!(read_all(&mut stalled).await.len() < BIG, "cut off after 600 ms");
    drop((stalled, slow));
    server.empties().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_early_answer_reaches_a_client_that_is_still_sending() {
    let server = Server::start(roomy());
    let mut stream = server.begin("POST /early HTTP/1.1\r\nhost: x\r\ncontent-length: 900000\r\n\r\n").await;
    sleep(Duration::from_millis(100)).await;
    stream.write_all(&vec![b'x'; 900_000]).await.expect("the daemon still takes it");
    assert!(read_all(&mut stream).await.ends_with("\r\n\r\nenough"));
    drop(stream);
    server.empties().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_connection_too_many_is_answered_503() {
    let server = Server::start(Limits { max_connections_per_caller: 3, ..roomy() });
    let held = (server.used().await, server.used().await, server.used().await);
    assert_eq!(server.connections.current(), 3);
    let answer = server.talk(HELLO).await;
    is_problem(&answer, 503, "too-many-connections");
    assert!(answer.contains("\r\nretry-after: 1\r\n"), "{answer}");
    assert_eq!(server.connections.refused(), 1);
    drop(held);
    server.empties().await;
    server.is_well().await;
    let server = Server::start(Limits { max_connections: 0, ..roomy() });
    is_problem(&server.talk(HELLO).await, 503, "too-many-connections");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_thousand_connections_at_once_are_all_answered() {
    if raise_nofile_limit().expect("a limit") < 6_000 {
        eprintln!("skipped: too few descriptors for both ends of 2,000 connections");
        return;
    }
    let server = Server::start(roomy());
    let mut streams = Vec::new();
    for _ in 0..2_000 {
        streams.push(server.connect().await);
    }
    let talk = |mut stream: UnixStream| async move {
        let _ = stream.write_all(BYE.as_bytes()).await;
        read_all(&mut stream).await
    };
    let clients: Vec<_> = streams.into_iter().map(|stream| tokio::spawn(talk(stream))).collect();
    let (mut served, mut refused) = (0, 0);
    for client in clients {
        let answer = client.await.expect("answered");
        if answer.starts_with("HTTP/1.1 200 ") {
            served += 1;
        } else {
            is_problem(&answer, 503, "too-many-connections");
            refused += 1;
        }
    }
    println!("{served} served, {refused} refused");
    assert!(served >= 512, "{served} served");
    server.is_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_knows_its_peer() {
    let server = Server::start(roomy());
    let answer = server.talk("GET /peer HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    let exe = std::env::current_exe().expect("exe");
    assert!(answer.contains(&format!("\"exe\":\"{}\"", exe.display())), "{answer}");
    assert!(answer.contains(&format!("\"pid\":{}", std::process::id())), "{answer}");
    assert!(answer.contains(&format!("\"uid\":{}", nix::unistd::Uid::effective())), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_answers_what_is_in_flight_and_closes_the_rest() {
    let mut server = Server::start(roomy());
    let mut idle = server.used().await;
    let mut busy = server.begin("GET /slow HTTP/1.1\r\nhost: x\r\n\r\n").await;
    let mut silent = server.connect().await;
    sleep(Duration::from_millis(100)).await;
    let begun = Instant::now();
    server.stop();
    assert_eq!(read_all(&mut idle).await, "");
    assert_eq!(read_all(&mut silent).await, "");
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    let answer = read_all(&mut busy).await;
    assert!(answer.ends_with("\r\n\r\ndone") && answer.contains("\r\nconnection: close\r\n"), "{answer}");
    assert!(UnixStream::connect(&server.path).await.is_err());
    drop((idle, busy, silent));
    timeout(Duration::from_secs(5), &mut server.task).await.expect("ends").expect("no panic");
    assert_eq!(server.connections.current(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_does_not_wait_for_ever() {
    let mut server = Server::start(Limits { shutdown_timeout: Duration::from_millis(200), ..roomy() });
    let mut busy = server.begin("GET /slow HTTP/1.1\r\nhost: x\r\n\r\n").await;
    sleep(Duration::from_millis(100)).await;
    server.stop();
    timeout(Duration::from_secs(1), &mut server.task).await.expect("ends").expect("no panic");
    assert_eq!(read_all(&mut busy).await, "");
    assert_eq!(server.connections.current(), 0);
}

#[tokio::test]
async fn the_socket_has_its_mode_and_replaces_only_a_dead_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("s");
    let config = config::Server { socket: socket.clone(), socket_mode: 0o600, ..config::Server::default() };
    let (listener, access) = bind(&config).expect("bound");
    let metadata = std::fs::metadata(&socket).expect("there");
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o7777, 0o600);
    assert_eq!(access.daemon_uid, nix::unistd::Uid::effective().as_raw());
    assert!(matches!(bind(&config), Err(BindError::InUse(_))));
    drop(listener);
    let wide = config::Server { socket_mode: 0o666, ..config.clone() };
    drop(bind(&wide).expect("the stale one is replaced"));
    let mode = std::fs::metadata(&socket).expect("there").permissions().mode();
    assert_eq!(mode & 0o7777, 0o666, "whatever the umask");
    let nobody = config::Server { socket_group: "no-such-group".into(), ..config.clone() };
    assert!(matches!(bind(&nobody), Err(BindError::UnknownGroup(_))));
    let file = folder.path().join("file");
    std::fs::write(&file, "precious").expect("written");
    let on_file = config::Server { socket: file.clone(), ..config.clone() };
    assert!(matches!(bind(&on_file), Err(BindError::NotASocket(_))));
    assert_eq!(std::fs::read_to_string(&file).expect("left alone"), "precious");
    let nowhere = config::Server { socket: folder.path().join("no/s"), ..config };
    assert!(matches!(bind(&nowhere), Err(BindError::System { .. })));
}
