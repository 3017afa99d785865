//! A world for tests: a real SoftHSM token, a real ledger, the real programs, the real socket.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part")]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

pub const ORIGIN: &str = "test.example/ledger";

/// The smallest request that is taken.
pub const REQUEST: &str = r#"{"event_type":"ACTION","action_type":"test.run","action_payload":{},"execution_status":"SUCCESS","actor_type":"SYSTEM"}"#;

/// A request with more members: `extra` begins with a comma.
pub fn request(extra: &str) -> String {
    format!("{}{extra}}}", &REQUEST[..REQUEST.len() - 1])
}

/// A directory with a token of its own and a configuration.
pub struct World {
    dir: tempfile::TempDir,
}

impl World {
    /// A token and a configuration, no ledger.
    pub fn without_ledger() -> Self {
        Self::without_ledger_on(&module(), |_| {})
    }

    /// The same with a token of `module`, which may want something in the directory beforehand.
    pub fn without_ledger_on(module: &Path, prepare: impl FnOnce(&Path)) -> Self {
        let world = World { dir: tempfile::tempdir().expect("a temporary directory") };
        prepare(world.dir());
        let output = world
            .program(concat!(env!("CARGO_MANIFEST_DIR"), "/softhsm/make-token"))
            .arg(world.dir().join("hsm"))
            .arg("--module")
            .arg(module)
            .output()
            .expect("softhsm/make-token runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let uri = String::from_utf8(output.stdout).expect("UTF-8");
        let config = format!(
            "origin = \"{ORIGIN}\"\n[ledger]\npath = \"ledger.db\"\n[token]\nmodule = \"{}\"\nuri = \"{}\"\npin_file = \"hsm/pin\"\n[server]\nsocket = \"attestd.sock\"\n",
            module.display(),
            uri.trim()
        );
        std::fs::write(world.config(), config).expect("writable");
        world
    }

    /// A token, a configuration and a ledger with its genesis.
    pub fn new() -> Self {
        let world = Self::without_ledger();
        let output = world.attestd(&["init"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        world
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn config(&self) -> PathBuf {
        self.dir().join("attestd.toml")
    }

    pub fn socket(&self) -> PathBuf {
        self.dir().join("attestd.sock")
    }

    pub fn ledger(&self) -> PathBuf {
        self.dir().join("ledger.db")
    }

    /// Adds `lines` to the section `[section]` of the configuration.
    pub fn configure(&self, section: &str, lines: &str) {
        let config = std::fs::read_to_string(self.config()).expect("readable");
        let header = format!("[{section}]\n");
        let config = match config.contains(&header) {
            true => config.replacen(&header, &format!("{header}{lines}\n"), 1),
            false => format!("{config}{header}{lines}\n"),
        };
        std::fs::write(self.config(), config).expect("writable");
    }

    /// Puts the shim between the daemon and the token from now on.
    pub fn use_shim(&self) {
        let config = std::fs::read_to_string(self.config()).expect("readable");
        let config = config.replace(&module().display().to_string(), &shim().display().to_string());
        std::fs::write(self.config(), config).expect("writable");
    }

    /// What the shim does.
    pub fn shim_control(&self) -> PathBuf {
        self.dir().join("shim.control")
    }

    /// A program of ours, with the token's environment.
    pub fn program(&self, path: &str) -> Command {
        let mut command = Command::new(path);
        command
            .env("SOFTHSM2_CONF", self.dir().join("hsm/softhsm2.conf"))
            .env("KRYOPTIC_CONF", self.dir().join("kryoptic.conf"))
            .env("PKCS11_SHIM_MODULE", module())
            .env("PKCS11_SHIM_CONTROL", self.shim_control())
            .env("ATTESTD_SOCKET", self.socket())
            .stdin(Stdio::null());
        command
    }

    /// Runs `attestd COMMAND --config … REST`.
    pub fn attestd(&self, arguments: &[&str]) -> Output {
        let mut command = self.program(env!("CARGO_BIN_EXE_attestd"));
        command.arg(arguments[0]).arg("--config").arg(self.config()).args(&arguments[1..]);
        command.output().expect("attestd runs")
    }

    /// The same for a command that should end by itself and might not.
    pub fn attestd_within(&self, limit: Duration, arguments: &[&str]) -> Output {
        let mut command = self.program("timeout");
        command.arg(limit.as_secs().to_string()).arg(env!("CARGO_BIN_EXE_attestd"));
        command.arg(arguments[0]).arg("--config").arg(self.config()).args(&arguments[1..]);
        command.output().expect("timeout runs")
    }

    pub fn attestctl(&self, arguments: &[&str]) -> Output {
        self.program(env!("CARGO_BIN_EXE_attestctl")).args(arguments).output().expect("attestctl runs")
    }

    /// Starts the daemon and waits until it is ready.
    pub fn serve(&self) -> Daemon {
        self.serve_with(|_| {})
    }

    /// The same, with a last word on how it is started.
    pub fn serve_with(&self, prepare: impl FnOnce(&mut Command)) -> Daemon {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.dir().join("log"))
            .expect("writable");
        let mut command = self.program(env!("CARGO_BIN_EXE_attestd"));
        command.arg("serve").arg("--config").arg(self.config()).stderr(log);
        prepare(&mut command);
        let child = command.spawn().expect("attestd starts");
        let mut daemon = Daemon { child, socket: self.socket(), log: self.dir().join("log") };
        daemon.wait_until_alive();
        daemon
    }

    /// The whole ledger, exported and verified as an auditor does it; its lines.
    pub fn audit(&self) -> Vec<String> {
        let bundle = tempfile::tempdir_in(self.dir()).expect("a directory").path().join("bundle");
        std::fs::create_dir_all(&bundle).expect("a directory");
        let output = self.attestd(&["export", bundle.to_str().expect("UTF-8")]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let key = self.dir().join("public-key.pem");
        let output = Command::new(env!("CARGO_BIN_EXE_attest-verify"))
            .args([&bundle, Path::new("--origin"), Path::new(ORIGIN), Path::new("--key"), &key])
            .output()
            .expect("attest-verify runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        let lines = std::fs::read_to_string(bundle.join("entries.jsonl")).expect("readable");
        lines.lines().map(str::to_owned).collect()
    }
}

/// The SoftHSM module, wherever the distribution put it.
pub fn module() -> PathBuf {
    [
        "/usr/lib/softhsm/libsofthsm2.so",
        "/usr/lib64/pkcs11/libsofthsm2.so",
        "/usr/local/lib/softhsm/libsofthsm2.so",
    ]
    .iter()
    .map(PathBuf::from)
    .find(|path| path.exists())
    .expect("SoftHSM2 is installed: tests/run does it")
}

/// The module that injects faults (`tests/shim/lib.rs`), built beside this test.
pub fn shim() -> PathBuf {
    static BUILT: std::sync::OnceLock<PathBuf> = std::sync::OnceLock::new();
    let build = || {
        // target/PROFILE/deps/TEST
        let test = std::env::current_exe().expect("this program");
        let profile = test.ancestors().nth(2).expect("cargo's directories");
        let name = profile.file_name().and_then(|name| name.to_str()).expect("UTF-8");
        let output = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--locked", "--example", "pkcs11-shim"])
            .args(["--profile", if name == "debug" { "dev" } else { name }])
            .arg("--target-dir")
            .arg(profile.parent().expect("cargo's directories"))
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .expect("cargo runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        profile.join("examples/libpkcs11_shim.so")
    };
    BUILT.get_or_init(build).clone()
}

/// Has the shim do what `lines` say from the next call on.
pub fn inject(control: &Path, lines: &str) {
    let next = control.with_extension("next");
    std::fs::write(&next, lines).expect("writable");
    std::fs::rename(next, control).expect("renamed");
}

/// The calls of C_Sign and the microseconds in them, as the shim has counted them.
pub fn shim_count(path: &Path) -> (u64, u64) {
    let text = std::fs::read_to_string(path).expect("counted");
    let words: Vec<&str> = text.split_whitespace().collect();
    let [_, calls, _, busy] = words[..] else { panic!("{text:?}") };
    (calls.parse().expect("a number"), busy.parse().expect("a number"))
}

/// A running daemon, killed when dropped.
pub struct Daemon {
    pub child: Child,
    socket: PathBuf,
    log: PathBuf,
}

impl Daemon {
    /// Until it answers: not until it is ready, which it is not where the disk is full.
    fn wait_until_alive(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(status) = self.child.try_wait().expect("a child of ours") {
                panic!("attestd ended with {status}:\n{}", self.log());
            }
            if UnixStream::connect(&self.socket).is_ok() && self.get("/livez").status == 200 {
                return;
            }
            assert!(Instant::now() < deadline, "attestd does not answer:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.socket).expect("the daemon listens");
        stream.set_read_timeout(Some(Duration::from_secs(120))).expect("a timeout");
        stream
    }

    /// Sends `bytes`, shuts down the write side, and reads all that comes back.
    pub fn raw(&self, bytes: &[u8]) -> Vec<u8> {
        let mut stream = self.connect();
        // The daemon may answer and close before it has read everything.
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        answer
    }

    pub fn send(&self, method: &str, path: &str, body: &[u8]) -> Answer {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        Answer::parse(&self.raw(&[head.as_bytes(), body].concat()))
    }

    pub fn get(&self, path: &str) -> Answer {
        self.send("GET", path, b"")
    }

    pub fn post(&self, path: &str, body: impl AsRef<[u8]>) -> Answer {
        self.send("POST", path, body.as_ref())
    }

    /// Appends and returns the sealed entry.
    pub fn append(&self, body: impl AsRef<[u8]>) -> Value {
        let answer = self.post("/v1/entries", body);
        assert_eq!(answer.status, 201, "{}", answer.text());
        answer.json()
    }

    pub fn signal(&self, signal: &str) {
        let status = Command::new("kill").args(["-s", signal, &self.child.id().to_string()]).status();
        assert!(status.expect("kill runs").success());
    }

    /// SIGTERM, and the exit status.
    pub fn stop(mut self) -> ExitStatus {
        self.signal("TERM");
        self.child.wait().expect("a child of ours")
    }

    /// SIGKILL.
    pub fn kill(mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("a child of ours");
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An HTTP answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// Lower-case, one a line.
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn parse(bytes: &[u8]) -> Self {
        let end = bytes.windows(4).position(|w| w == b"\r\n\r\n");
        let end = end.unwrap_or_else(|| panic!("no HTTP answer: {:?}", String::from_utf8_lossy(bytes)));
        let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).expect("a status");
        let body = &bytes[end + 4..];
        let body = if head.contains("transfer-encoding: chunked") { dechunk(body) } else { body.to_vec() };
        Answer { status, head, body }
    }

    /// Reads one answer of a connection that goes on.
    pub fn read(stream: &mut impl Read) -> Self {
        let mut bytes = Vec::new();
        let mut take = |bytes: &mut Vec<u8>, is_whole: &dyn Fn(&[u8]) -> bool| {
            let mut byte = [0];
            while !is_whole(bytes) {
                stream.read_exact(&mut byte).unwrap_or_else(|error| panic!("{error} after {bytes:?}"));
                bytes.push(byte[0]);
            }
        };
        take(&mut bytes, &|bytes| bytes.ends_with(b"\r\n\r\n"));
        let head = bytes.len();
        let answer = Answer::parse(&bytes);
        if answer.head.contains("transfer-encoding: chunked") {
            take(&mut bytes, &|bytes| bytes[head..].ends_with(b"0\r\n\r\n"));
        } else {
            let length = answer.header("content-length").and_then(|length| length.parse().ok());
            let whole = head + length.unwrap_or(0);
            take(&mut bytes, &|bytes| bytes.len() >= whole);
        }
        Answer::parse(&bytes)
    }

    /// The value of the header field `name`, in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }

    /// Holds this to be a problem document with that code, and gives it.
    pub fn problem(&self, status: u16, code: &str) -> Value {
        assert_eq!(self.status, status, "{}", self.text());
        assert!(self.head.contains("content-type: application/problem+json"), "{}", self.head);
        let problem = self.json();
        assert_eq!(problem["code"], code, "{problem}");
        assert_eq!(problem["status"], status, "{problem}");
        for member in ["type", "title", "detail"] {
            assert!(problem[member].as_str().is_some_and(|text| !text.is_empty()), "{problem}");
        }
        problem
    }

    /// The lines of an NDJSON answer.
    pub fn lines(&self) -> Vec<Value> {
        self.text().lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }
}

fn dechunk(mut body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    while let Some(end) = body.windows(2).position(|w| w == b"\r\n") {
        let size =
            std::str::from_utf8(&body[..end]).ok().and_then(|s| usize::from_str_radix(s.trim(), 16).ok());
        let size = size.expect("a chunk size");
        if size == 0 {
            break;
        }
        out.extend_from_slice(&body[end + 2..end + 2 + size]);
        body = &body[end + 2 + size + 2..];
    }
    out
}
