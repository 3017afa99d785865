//! What outsiders get: the tree as files, receipts, and proofs that one checkpoint extends another. A
//! reader of the published tree has a whole one at any time and needs nothing of the daemon but its
//! public key; whatever is wrong with it is found and named.

#![cfg(feature = "daemon")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use attestd::ledger::canonical;
use attestd::ledger::checkpoint::Note;
use attestd::ledger::entry::Sequence;
use attestd::ledger::hash::Digest;
use attestd::ledger::key::PublicKey;
use attestd::ledger::merkle::{NodeHash, verify_consistency};
use attestd::ledger::proof::Receipt;
use common::{Daemon, ORIGIN, REQUEST, World, request};
use serde_json::Value;

fn key(world: &World) -> PublicKey {
    let pem = fs::read_to_string(world.dir().join("public-key.pem")).expect("readable");
    PublicKey::from_pem(&pem).expect("a key")
}

/// Appends `count` entries, and waits until a checkpoint has all of them.
fn grow(daemon: &Daemon, count: usize) -> Note {
    let batch = format!("{REQUEST}\n").repeat(count);
    let answers = daemon.post("/v1/entries:batch", batch).lines();
    let last = answers.last().expect("answers")["sequence_number"].as_u64().expect("sealed");
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let answer = daemon.get("/v1/checkpoint");
        if answer.status == 200 {
            let note = Note::parse(&answer.body).expect("a note");
            if note.checkpoint().root().size.leaves() > last {
                return note;
            }
        }
        assert!(Instant::now() < deadline, "no checkpoint over entry {last}: {}", answer.text());
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[track_caller]
fn ends(output: &Output, code: i32) -> String {
    assert_eq!(output.status.code(), Some(code), "{}{}", stdout(output), stderr(output));
    stdout(output)
}

fn publish(world: &World, dir: &Path) -> Output {
    world.attestctl(&["publish", dir.to_str().expect("UTF-8")])
}

/// `attestctl publish --check`, away from the daemon.
fn check(world: &World, target: &str, more: &[&str]) -> Output {
    let key = world.dir().join("public-key.pem");
    let mut arguments = vec!["publish", "--check", target, "--key", key.to_str().expect("UTF-8")];
    arguments.extend(more);
    let mut command = world.program(env!("CARGO_BIN_EXE_attestctl"));
    command.args(arguments).env("ATTESTD_SOCKET", "/no/such/socket").output().expect("attestctl runs")
}

fn verdict(output: &Output) -> Value {
    serde_json::from_str(&stdout(output)).unwrap_or_else(|_| panic!("{}{}", stdout(output), stderr(output)))
}

fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut open = vec![dir.to_owned()];
    while let Some(next) = open.pop() {
        for entry in fs::read_dir(next).expect("readable") {
            let path = entry.expect("readable").path();
            match path.is_dir() {
                true => open.push(path),
                false => drop(files.insert(path.clone(), fs::read(path).expect("readable"))),
            }
        }
    }
    files
}

/// A static web server that knows nothing of us.
struct Web(Child, String);

/// Python's server behind TLS.
const WITH_TLS: &str = r#"
import functools, http.server, ssl, sys
directory, certificate, key = sys.argv[1:]
handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=directory)
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(certificate, key)
server.socket = context.wrap_socket(server.socket, server_side=True)
print("on port", server.server_port, "with TLS")
server.serve_forever()
"#;

impl Web {
    fn serve(dir: &Path) -> Self {
        let arguments = ["-m", "http.server", "0", "--bind", "127.0.0.1", "--directory"];
        Self::start("http", Command::new("python3").arg("-u").args(arguments).arg(dir))
    }

    fn serve_with_tls(dir: &Path, certificate: &Path, key: &Path) -> Self {
        let mut command = Command::new("python3");
        Self::start("https", command.args(["-u", "-c", WITH_TLS]).args([dir, certificate, key]))
    }

    fn start(scheme: &str, command: &mut Command) -> Self {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("python3 is installed: tests/run does it");
        let mut line = String::new();
        let mut said = BufReader::new(child.stdout.take().expect("piped"));
        said.read_line(&mut line).expect("readable");
        let port = line.split(" port ").nth(1).and_then(|rest| rest.split(' ').next()).expect("a port");
        let url = format!("{scheme}://127.0.0.1:{port}/");
        Web(child, url)
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_published_tree_is_checked_without_the_daemon() {
    let world = World::new();
    let daemon = world.serve();
    let dir = world.dir().join("tree");
    let target = dir.to_str().expect("UTF-8");
    grow(&daemon, 250);
    assert!(ends(&publish(&world, &dir), 0).starts_with("published 25"));
    ends(&check(&world, target, &[]), 0);
    let note = grow(&daemon, 300);
    let size = note.checkpoint().root().size.leaves();
    let again = ends(&world.attestctl(&["publish", target, "--json"]), 0);
    let again: Value = serde_json::from_str(&again).expect("JSON");
    assert_eq!(again["size"], size);
    // Two tiles were filled and one begun, each with its bundle; one level above; the checkpoint.
    assert_eq!(again["files"], 3 * 2 + 1 + 1, "{again}");
    assert!(ends(&publish(&world, &dir), 0).starts_with("nothing to publish"));
    assert_eq!(fs::read(dir.join("checkpoint")).expect("there"), note.as_str().as_bytes());
    assert_eq!(fs::read_dir(dir.join("tile/0")).expect("there").count(), 3, "the filled partial one is gone");

    // Nothing of the content is in it.
    let entry = daemon.get("/v1/entries/5").text();
    let line = canonical::decode(entry.as_bytes()).expect("an entry");
    let bundle = fs::read(dir.join("tile/entries/000")).expect("there");
    assert_eq!(bundle[5 * 34..6 * 34], [&[0, 32], &line.computed_hash.0[..]].concat());
    assert!(!bundle.windows(8).any(|window| window == b"test.run"));

    assert!(daemon.stop().success());
    let web = Web::serve(&dir);
    for target in [target, web.1.as_str()] {
        let found = check(&world, target, &["--origin", ORIGIN]);
        assert!(ends(&found, 0).starts_with("OK: "));
        let found = check(&world, target, &["--json"]);
        ends(&found, 0);
        let found = verdict(&found);
        assert_eq!(found["size"], size);
        assert_eq!(found["origin"], ORIGIN);
        assert_eq!(found["key_id"], key(&world).id().to_string());
        assert_eq!(found["files"], 8);
        assert_eq!(found["unexpected_count"], 0, "{found}");
        let wrong = check(&world, target, &["--origin", "example.com/other"]);
        assert!(ends(&wrong, 1).contains("not of `example.com/other`"));
    }

    // What is wrong is found by either way and named.
    type Spoil = fn(&Path);
    let cases: [(&str, Spoil); 5] = [
        ("tile/0/001 is not the tile", |dir| {
            let mut bytes = fs::read(dir.join("tile/0/001")).expect("there");
            bytes[77] ^= 1;
            fs::write(dir.join("tile/0/001"), bytes).expect("written");
        }),
        ("tile/0/000 is missing", |dir| fs::remove_file(dir.join("tile/0/000")).expect("removed")),
        ("tile/entries/001 has 8703 bytes", |dir| {
            let file = fs::File::options().write(true).open(dir.join("tile/entries/001")).expect("there");
            file.set_len(8_703).expect("cut");
        }),
        ("tile/entries/000: entry 0 is not", |dir| {
            fs::rename(dir.join("tile/entries/001"), dir.join("tile/entries/000")).expect("moved");
        }),
        ("checkpoint: the note has a control character (0x00)", |dir| {
            let note = fs::read(dir.join("checkpoint")).expect("there");
            fs::write(dir.join("checkpoint"), [&note[..], &[0]].concat()).expect("written");
        }),
    ];
    let good = files(&dir);
    for (reason, spoil) in cases {
        spoil(&dir);
        for target in [target, web.1.as_str()] {
            let said = ends(&check(&world, target, &[]), 1);
            assert!(said.contains(reason), "{said}, not {reason}");
        }
        for (path, bytes) in &good {
            fs::write(path, bytes).expect("written");
        }
    }
    fs::write(dir.join("index.html"), "").expect("written");
    let warned = check(&world, target, &[]);
    ends(&warned, 0);
    assert!(stderr(&warned).contains("index.html does not belong there"), "{}", stderr(&warned));
    world.audit();
}

#[test]
fn https_is_trusted_by_the_systems_certificates() {
    let world = World::new();
    let daemon = world.serve();
    grow(&daemon, 300);
    let dir = world.dir().join("tree");
    ends(&publish(&world, &dir), 0);
    let (certificate, key) = (world.dir().join("tls.pem"), world.dir().join("tls.key"));
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "2",
        ])
        .args(["-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE", "-keyout"])
        .args([&key, Path::new("-out"), &certificate])
        .output()
        .expect("openssl runs");
    assert!(made.status.success(), "{}", stderr(&made));
    let web = Web::serve_with_tls(&dir, &certificate, &key);
    let check = |trusted: Option<&Path>| {
        let mut command = world.program(env!("CARGO_BIN_EXE_attestctl"));
        command.args(["publish", "--check", &web.1, "--key"]).arg(world.dir().join("public-key.pem"));
        command.env_remove("SSL_CERT_DIR").env_remove("SSL_CERT_FILE");
        command.envs(trusted.map(|path| ("SSL_CERT_FILE", path)));
        command.output().expect("attestctl runs")
    };
    ends(&check(Some(&certificate)), 0);
    ends(&check(None), 2);
    assert!(daemon.stop().success());
    world.audit();
}

#[test]
fn what_cannot_be_looked_at_is_told_from_what_is_wrong() {
    let world = World::new();
    let dir = world.dir().join("tree");
    let target = dir.to_str().expect("UTF-8");
    ends(&publish(&world, &dir), 3);
    assert!(!dir.exists());
    ends(&world.attestctl(&["publish", "--check", target]), 2);
    ends(&check(&world, target, &[]), 2);
    ends(&check(&world, "http://127.0.0.1:1/", &[]), 2);
    ends(&check(&world, "https://127.0.0.1:1/", &[]), 2);
    ends(&world.attestctl(&["publish", "http://127.0.0.1:1/"]), 2);

    // Servers that are not what they seem: each answer is the whole of what one says.
    let endless = [&b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n"[..], &[b'x'; 1 << 20]].concat();
    for (answer, code, reason) in [
        (&b"HTTP/1.1 500 X\r\ncontent-length: 0\r\n\r\n"[..], 2, "status 500"),
        (b"HTTP/1.1 404 X\r\ncontent-length: 0\r\n\r\n", 1, "checkpoint is missing"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nshort", 2, "couldn't read checkpoint"),
        (b"not http", 2, "couldn't read checkpoint"),
        (b"", 2, "couldn't read checkpoint"),
        (&endless, 1, "the note is longer than 262144 bytes"),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let url = format!("http://{}/", listener.local_addr().expect("bound"));
        let answer = answer.to_vec();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            let _ = stream.read(&mut [0; 4_096]);
            // The client may have heard enough before all of it is said.
            let _ = stream.write_all(&answer);
        });
        let output = check(&world, &url, &[]);
        ends(&output, code);
        let said = stdout(&output) + &stderr(&output);
        assert!(said.contains(reason), "{said}, not {reason}");
        server.join().expect("served");
    }
}

#[test]
fn another_ledger_is_not_published_over_this_one() {
    let (world, other) = (World::new(), World::new());
    let dir = world.dir().join("tree");
    let daemon = world.serve();
    grow(&daemon, 3);
    ends(&publish(&world, &dir), 0);
    let before = files(&dir);
    let other_daemon = other.serve();
    grow(&other_daemon, 300);
    let refused = publish(&other, &dir);
    ends(&refused, 1);
    assert!(stderr(&refused).contains("the published checkpoint: no signature"), "{}", stderr(&refused));

    grow(&daemon, 300);
    fs::write(dir.join("tile/0/001.p"), "").expect("written");
    let refused = publish(&world, &dir);
    ends(&refused, 1);
    assert!(stderr(&refused).contains("tile/0/001.p is in the way"), "{}", stderr(&refused));
    fs::remove_file(dir.join("tile/0/001.p")).expect("removed");
    assert_eq!(files(&dir), before);
    ends(&publish(&world, &dir), 0);

    ends(&publish(&world, Path::new("/sys/kernel")), 2);
    assert!(daemon.stop().success());
    world.audit();
}

#[test]
fn the_daemon_publishes_by_itself() {
    let world = World::new();
    let dir = world.dir().join("www/tree");
    world.configure("publish", "directory = \"www/tree\"\ninterval_seconds = 1");
    let daemon = world.serve();
    grow(&daemon, 300);
    // The parent is missing: said once, and nothing else suffers.
    std::thread::sleep(Duration::from_millis(2_500));
    assert_eq!(daemon.log().matches("couldn't publish").count(), 1, "{}", daemon.log());
    daemon.append(REQUEST);
    fs::create_dir(world.dir().join("www")).expect("made");
    let deadline = Instant::now() + Duration::from_secs(20);
    while !dir.join("checkpoint").exists() {
        assert!(Instant::now() < deadline, "{}", daemon.log());
        std::thread::sleep(Duration::from_millis(50));
    }
    let target = dir.to_str().expect("UTF-8");
    ends(&check(&world, target, &["--origin", ORIGIN]), 0);

    // A reader has a whole tree at any moment, while it grows.
    let reading = Instant::now() + Duration::from_secs(4);
    let mut sizes = Vec::new();
    while Instant::now() < reading {
        daemon.post("/v1/entries:batch", format!("{REQUEST}\n").repeat(100));
        let found = check(&world, target, &["--json"]);
        ends(&found, 0);
        sizes.push(verdict(&found)["size"].as_u64().expect("a size"));
    }
    assert!(sizes.is_sorted() && sizes.first() < sizes.last(), "{sizes:?}");
    let published_at = Instant::now();
    assert!(daemon.stop().success());
    assert!(published_at.elapsed() < Duration::from_secs(20));
    let found = check(&world, target, &["--json"]);
    ends(&found, 0);
    assert_eq!(verdict(&found)["size"], world.audit().len(), "the SHUTDOWN entry is published too");
}

#[test]
fn receipts_and_consistency_verify_without_the_daemon() {
    let world = World::new();
    let daemon = world.serve();
    let keys = [key(&world)];
    let earlier = grow(&daemon, 7);
    let later = grow(&daemon, 300);
    let (from, to) = (earlier.checkpoint().root(), later.checkpoint().root());
    let proof = daemon.get(&format!("/v1/consistency?from={}&to={}", from.size, to.size)).json();
    let path: Vec<NodeHash> = proof["consistency"]
        .as_array()
        .expect("an array")
        .iter()
        .map(|hash| NodeHash(Digest::from_hex(hash.as_str().expect("text").as_bytes()).expect("a hash")))
        .collect();
    verify_consistency(&from, &to, &path).expect("the later one extends the earlier");
    assert!(verify_consistency(&from, &to, &path[1..]).is_err());

    let out = world.dir().join("receipt");
    let file = out.to_str().expect("UTF-8");
    let verify = |reference: &str, receipt: &[u8]| {
        let line = daemon.get(&format!("/v1/entries/{reference}")).body;
        let decoded = canonical::decode(&line).expect("an entry");
        let receipt = Receipt::parse(receipt).expect("a receipt");
        assert_eq!(receipt.checkpoint().origin(), ORIGIN);
        let sequence = decoded.entry.sequence_number;
        receipt.verify(sequence, decoded.computed_hash, &keys).expect("it verifies");
        let other = Digest::of(b"other");
        assert!(receipt.verify(sequence, other, &keys).is_err());
        assert!(receipt.verify(Sequence(sequence.0 + 1), decoded.computed_hash, &keys).is_err());
    };
    let id = daemon.get("/v1/entries/9").json()["entry_id"].as_str().expect("an id").to_owned();
    for reference in ["0", "5", "255", "256", id.as_str()] {
        verify(reference, &daemon.get(&format!("/v1/entries/{reference}/proof")).body);
        verify(reference, ends(&world.attestctl(&["proof", reference]), 0).as_bytes());
        ends(&world.attestctl(&["proof", reference, "--out", file]), 0);
        verify(reference, &fs::read(&out).expect("written"));
        // What is there is not written over.
        ends(&world.attestctl(&["proof", reference, "--out", file]), 2);
        fs::remove_file(&out).expect("removed");
    }
    ends(&world.attestctl(&["proof", "99999"]), 1);

    let options = ["append", "--event-type", "ACTION", "--action-type", "a", "--status", "SUCCESS"];
    let options = [&options[..], &["--actor-type", "SYSTEM", "--json", "--receipt", file]].concat();
    let sealed: Value = serde_json::from_str(&ends(&world.attestctl(&options), 0)).expect("an entry");
    verify(sealed["entry_id"].as_str().expect("an id"), &fs::read(&out).expect("written"));
    let count = daemon.get("/v1/stats").json()["entries"].clone();
    ends(&world.attestctl(&options), 2);
    assert_eq!(
        daemon.get("/v1/stats").json()["entries"],
        count,
        "nothing is appended when it can't be written"
    );

    let answer = daemon.post("/v1/entries?receipt=1", REQUEST);
    assert_eq!(answer.status, 201);
    let line: Value = serde_json::from_str(answer.json()["entry"].as_str().expect("text")).expect("an entry");
    let sequence = line["sequence_number"].to_string();
    verify(&sequence, answer.json()["receipt"].as_str().expect("a receipt").as_bytes());
    assert!(daemon.stop().success());
    world.audit();
}

#[test]
fn what_the_tree_has_not_is_refused_with_a_reason() {
    let world = World::new();
    world.configure("signing", "checkpoint_interval_seconds = 3600");
    let daemon = world.serve();
    let get = |path: &str| {
        let head = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        common::Answer::parse(&daemon.raw(head.as_bytes()))
    };
    let last = daemon.append(REQUEST)["sequence_number"].to_string();
    let pending = get(&format!("/v1/entries/{last}/proof"));
    pending.problem(503, "checkpoint-pending");
    assert_eq!(pending.header("retry-after"), Some("1"));
    ends(&world.attestctl(&["proof", &last]), 4);

    for path in ["/v1/entries/999/proof", "/v1/entries/00000000-0000-4000-8000-000000000000/proof"] {
        get(path).problem(404, "not-found");
    }
    for tile in [
        "0/000",
        "0/000.p/0",
        "0/000.p/00",
        "0/000.p/01",
        "0/000.p/255",
        "0/000.p/256",
        "0/000.p/65537",
        "0/000.p/-1",
        "0/000.p/+1",
        "0/0",
        "0/00",
        "0/0000",
        "0/x000/000.p/1",
        "0/001.p/1",
        "0/%30%30%30.p/",
        "1/000.p/1",
        "8/000.p/1",
        "00/000.p/1",
        "-1/000.p/1",
        "256/000.p/1",
        "entries/000",
        "entries/000.p/0",
        "entries/0/000.p/1",
        "entries/x001/x234/067",
        "0/000.p/1/",
        "0//000.p/1",
        "../checkpoint",
        "%2e%2e/checkpoint",
        "0/x999/x999/x999/x999/x999/x999/x999/999",
        "0/000.p/1%00",
        "%ff",
    ] {
        let answer = get(&format!("/v1/tile/{tile}"));
        assert!([400, 404].contains(&answer.status), "{tile}: {}", answer.text());
        assert_eq!(answer.problem(404, "not-found")["status"], 404, "{tile}");
    }
    for query in [
        "",
        "?",
        "?from=",
        "?from=-1",
        "?from=01",
        "?from=+1",
        "?from=1.0",
        "?from=9223372036854775808",
        "?from=99999999999999999999",
        "?from=1&from=1",
        "?to=1",
        "?from=2&to=1",
        "?from=0&to=9999",
        "?from=9999",
        "?from=0&size=1",
        "?from=%ff",
    ] {
        let answer = get(&format!("/v1/consistency{query}"));
        assert!(answer.status == 400 || answer.status == 503, "{query}: {}", answer.text());
        if !["?from=9999"].contains(&query) {
            answer.problem(400, "bad-parameter");
        }
    }
    for query in ["receipt=2", "receipt=", "receipt=1&receipt=1", "receipts=1", "receipt=01"] {
        daemon.post(&format!("/v1/entries?{query}"), request("")).problem(400, "bad-parameter");
    }
    assert!(daemon.stop().success());
    world.audit();
}
