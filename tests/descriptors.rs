//! A daemon that has run out of descriptors goes on when there are some again. In a file of its
//! own, since the limit holds for the whole process.

#![cfg(feature = "daemon")]

use std::sync::Arc;
use std::time::Duration;

use attestd::config;
use attestd::server::listener::{Connections, Limits, bind, raise_nofile_limit, serve};
use axum::Router;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};

#[tokio::test(flavor = "multi_thread")]
async fn accepting_goes_on_when_there_are_descriptors_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = config::Server { socket: folder.path().join("s"), ..config::Server::default() };
    let (listener, _) = bind(&config).expect("bound");
    let connections = Arc::new(Connections::default());
    let router = Router::new().route("/", axum::routing::get(|| async { "ok" }));
    let limits = Limits::from(&config);
    let mut clients = Vec::new();
    for _ in 0..20 {
        clients.push(UnixStream::connect(&config.socket).await.expect("in the backlog"));
    }
    let open = std::fs::read_dir("/proc/self/fd").expect("listed").count() as u64;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    setrlimit(Resource::RLIMIT_NOFILE, open + 5, hard).expect("lowered");
    tokio::spawn(serve(listener, router, limits, Arc::clone(&connections), || false, std::future::pending()));
    sleep(Duration::from_millis(200)).await;
    assert!((1..20).contains(&connections.current()), "the rest waits in the backlog");

    assert_eq!(raise_nofile_limit().expect("raised"), hard);
    for mut client in clients {
        client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.expect("sent");
        let mut answer = String::new();
        let reading = client.read_to_string(&mut answer);
        timeout(Duration::from_secs(10), reading).await.expect("answered").expect("read");
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
}
