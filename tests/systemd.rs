//! The daemon as a service: what it tells the service manager, what the watchdog sees, a socket that was
//! made for it, a PIN that shows nowhere, and the units and the package themselves.
//!
//! The last test installs the package under a real systemd, in namespaces of its own, and needs root for
//! it (`tests/systemd/in-namespace`).
#![cfg(feature = "daemon")]

mod common;

use std::fs;
use std::io::{Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::{Answer, REQUEST, World, inject, shim};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// A service manager that only listens.
struct Manager(UnixDatagram);

impl Manager {
    fn at(path: &Path) -> Self {
        Self::on(UnixDatagram::bind(path).expect("bound"))
    }

    fn on(socket: UnixDatagram) -> Self {
        socket.set_read_timeout(Some(Duration::from_millis(100))).expect("a time-out");
        Manager(socket)
    }

    /// The next message, if it comes within `limit`.
    fn hears(&self, limit: Duration) -> Option<String> {
        let deadline = Instant::now() + limit;
        let mut message = [0; 4096];
        while Instant::now() < deadline {
            if let Ok(length) = self.0.recv(&mut message) {
                return Some(String::from_utf8(message[..length].to_vec()).expect("UTF-8"));
            }
        }
        None
    }

    /// The first message with the line `wanted`, and all before it.
    fn hears_of(&self, wanted: &str) -> Vec<String> {
        let mut heard = Vec::new();
        while !heard
            .last()
            .is_some_and(|message: &String| message.lines().any(|line| line.starts_with(wanted)))
        {
            let Some(message) = self.hears(Duration::from_secs(60)) else { panic!("no {wanted}: {heard:?}") };
            heard.push(message);
        }
        heard
    }

    /// All that comes within `time`.
    fn listens(&self, time: Duration) -> Vec<String> {
        let deadline = Instant::now() + time;
        let mut heard = Vec::new();
        while Instant::now() < deadline {
            heard.extend(self.hears(Duration::from_millis(50)));
        }
        heard
    }
}

#[test]
fn the_service_manager_hears_of_start_reload_and_stop() {
    let world = World::new();
    fs::copy(Path::new(ROOT).join("rules.toml"), world.dir().join("rules.toml")).expect("copied");
    let path = world.dir().join("notify");
    let manager = Manager::at(&path);
    let daemon = world.serve_with(|command| {
        command.env("NOTIFY_SOCKET", &path);
    });
    let heard = manager.hears_of("READY=1");
    assert!(
        heard[0].contains("STATUS=checking the ledger") && heard[0].contains("EXTEND_TIMEOUT_USEC="),
        "{heard:?}"
    );
    assert!(heard.iter().any(|message| message.contains("unlocking the key")), "{heard:?}");
    // Genesis and BOOT: the latter is sealed before the daemon is ready.
    assert!(
        heard.last().is_some_and(|last| last.contains("STATUS=taking entries; 2 in the ledger")),
        "{heard:?}"
    );

    daemon.signal("HUP");
    let heard = manager.hears_of("READY=1");
    let reloading = &heard[0];
    assert!(reloading.starts_with("RELOADING=1\nMONOTONIC_USEC="), "{heard:?}");
    let said: u64 = reloading
        .lines()
        .nth(1)
        .and_then(|line| line["MONOTONIC_USEC=".len()..].parse().ok())
        .expect("a number");
    let uptime: f64 = fs::read_to_string("/proc/uptime")
        .expect("readable")
        .split(' ')
        .next()
        .expect("a word")
        .parse()
        .expect("a number");
    // CLOCK_MONOTONIC is the uptime less what was slept through.
    assert!(said > 0 && said as f64 <= (uptime + 1.0) * 1e6, "{said} {uptime}");

    daemon.signal("TERM");
    let heard = manager.hears_of("STOPPING=1");
    assert!(heard.last().is_some_and(|last| last.contains("STATUS=stopping")), "{heard:?}");
    assert!(daemon.stop().success());
    // Nobody asked for a watchdog.
    assert!(manager.listens(Duration::from_millis(200)).iter().all(|message| !message.contains("WATCHDOG")));
    world.audit();
}

#[test]
fn a_socket_without_a_file_is_as_good_and_one_that_is_nobodys_does_no_harm() {
    let world = World::new();
    let name = format!("attestd-test-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).expect("a name");
    let manager = Manager::on(UnixDatagram::bind_addr(&address).expect("bound"));
    let daemon = world.serve_with(|command| {
        command.env("NOTIFY_SOCKET", format!("@{name}"));
    });
    manager.hears_of("READY=1");
    assert!(daemon.stop().success());

    for wrong in ["/nowhere/notify", "vsock:2:1234", "relative", "@", "/", &"/x".repeat(200)] {
        let daemon = world.serve_with(|command| {
            command.env("NOTIFY_SOCKET", wrong).env("WATCHDOG_USEC", "nonsense");
        });
        assert!(
            daemon.log().contains("couldn't reach the service manager") || wrong == "@",
            "{wrong}: {}",
            daemon.log()
        );
        assert!(daemon.stop().success(), "{wrong}");
    }
}

#[test]
fn a_refused_start_is_in_the_status() {
    let world = World::without_ledger();
    let path = world.dir().join("notify");
    let manager = Manager::at(&path);
    let mut command = world.program(env!("CARGO_BIN_EXE_attestd"));
    command.arg("serve").arg("--config").arg(world.config()).env("NOTIFY_SOCKET", &path);
    assert_eq!(command.output().expect("it runs").status.code(), Some(78));
    let heard = manager.hears_of("STATUS=stopped: there is no ledger");
    let last = heard.last().expect("heard");
    assert!(last.contains("what to do: a ledger is only ever made on purpose: `attestd init"), "{last}");
    assert!(!last.contains("READY"), "{heard:?}");
}

/// A daemon on the shim, watched with this limit.
fn watched(world: &World, limit: Duration, manager: &Path) -> common::Daemon {
    world.use_shim();
    world.serve_with(|command| {
        command.env("NOTIFY_SOCKET", manager).env("WATCHDOG_USEC", limit.as_micros().to_string());
    })
}

fn beats(heard: &[String]) -> usize {
    heard.iter().filter(|message| message.starts_with("WATCHDOG=1\n")).count()
}

#[test]
fn the_watchdog_is_fed_while_the_token_signs_and_starves_when_it_hangs() {
    let world = World::new();
    let path = world.dir().join("notify");
    let manager = Manager::at(&path);
    let count = world.dir().join("count");
    let counted = format!("count {}\n", count.display());
    inject(&world.shim_control(), &counted);
    let daemon = watched(&world, Duration::from_secs(1), &path);
    manager.hears_of("READY=1");

    // Idle: it signs, to see whether it can.
    let before = common::shim_count(&count).0;
    let heard = manager.listens(Duration::from_secs(3));
    assert!((5..=7).contains(&beats(&heard)), "{heard:?}\n{}", daemon.log());
    let after = common::shim_count(&count).0;
    assert!((5..=7).contains(&(after - before)), "{before} {after}");
    // What it signs is no entry and no checkpoint, and is kept nowhere.
    assert_eq!(daemon.get("/v1/stats").json()["entries"], 2);

    // An answer is an answer, even if it is an error: the sequencer judges that.
    inject(&world.shim_control(), "return C_Sign CKR_DEVICE_ERROR");
    let heard = manager.listens(Duration::from_secs(2));
    assert!(beats(&heard) >= 3 && heard.iter().any(|message| message.contains("does not sign")), "{heard:?}");

    // The daemon is bringing it back, and comes upon the hang with its next attempt.
    inject(&world.shim_control(), "hang C_Sign");
    manager.hears_of("STATUS=the token does not answer");
    let heard = manager.listens(Duration::from_secs(3));
    assert_eq!(beats(&heard), 0, "{heard:?}");

    inject(&world.shim_control(), "");
    manager.hears_of("WATCHDOG=1");
    assert!(daemon.stop().success());
    world.audit();
}

#[test]
fn a_slow_token_with_much_to_sign_does_not_starve_the_watchdog() {
    let world = World::new();
    let path = world.dir().join("notify");
    let manager = Manager::at(&path);
    // Slower than the looks of the watchdog, so that its probe comes to stand behind the entries.
    inject(&world.shim_control(), "delay C_Sign 600ms serial");
    let daemon = watched(&world, Duration::from_secs(1), &path);
    manager.hears_of("READY=1");
    // A commit of nearly five seconds, in which nothing is committed.
    let lines = format!("{REQUEST}\n").repeat(8);
    let heard = std::thread::scope(|scope| {
        let sent = scope.spawn(|| daemon.post("/v1/entries:batch", lines));
        let heard = manager.listens(Duration::from_secs(4));
        assert_eq!(sent.join().expect("sent").lines().len(), 8);
        heard
    });
    assert!(beats(&heard) >= 3, "{heard:?}");
    inject(&world.shim_control(), "");
    assert!(daemon.stop().success());
}

/// Starts `attestd serve` as systemd does it, on sockets of `listen`: at the first connection.
fn activated(world: &World, listen: &[&str]) -> Child {
    let mut command = world.program("systemd-socket-activate");
    command.args(listen).args(["-E", "SOFTHSM2_CONF"]).arg(env!("CARGO_BIN_EXE_attestd"));
    command.arg("serve").arg("--config").arg(world.config());
    let log = fs::File::create(world.dir().join("activated")).expect("writable");
    command.stderr(log).spawn().expect("systemd-socket-activate runs: tests/run installs it")
}

fn ask(socket: &Path, path: &str) -> Answer {
    let mut stream = UnixStream::connect(socket).expect("somebody listens");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a time-out");
    write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").expect("sent");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("answered");
    Answer::parse(&answer)
}

fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_socket_that_systemd_made_is_used_and_left_where_it_is() {
    let world = World::new();
    // Not the configured one: what was passed counts.
    let socket = world.dir().join("passed.sock");
    let mut child = activated(&world, &["-l", socket.to_str().expect("UTF-8")]);
    let log = || fs::read_to_string(world.dir().join("activated")).expect("readable");
    // The file is there from `bind` on, and refuses until `listen`.
    wait_for("it listens", || log().contains("Listening on"));
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o606)).expect("mode set");
    let inode = fs::metadata(&socket).expect("there").ino();

    // The first client waited for the daemon to come up.
    assert_eq!(ask(&socket, "/livez").status, 200);
    assert_eq!(ask(&socket, "/readyz").status, 200);
    assert!(log().contains("another socket was passed than `server.socket`"), "{}", log());
    assert!(!world.socket().exists(), "it bound another one beside");

    let status = Command::new("kill").args(["-s", "TERM", &child.id().to_string()]).status();
    assert!(status.expect("kill runs").success());
    assert!(child.wait().expect("a child of ours").success(), "{}", log());
    let left = fs::metadata(&socket).expect("the file is systemd's");
    assert_eq!((left.ino(), left.mode() & 0o777), (inode, 0o606));
    world.audit();
}

#[test]
fn what_is_no_socket_of_ours_is_refused() {
    let world = World::new();
    let [one, two, datagram] = ["one", "two", "datagram"].map(|name| world.dir().join(name));
    let [one_is, two_is, datagram_is] = [&one, &two, &datagram].map(|path| path.to_str().expect("UTF-8"));
    let name = format!("attestd-passed-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).expect("a name");
    let refused = |listen: &[&str], begin: &dyn Fn(), expected: &str| {
        let mut child = activated(&world, listen);
        let log = || fs::read_to_string(world.dir().join("activated")).expect("readable");
        wait_for("it listens", || log().contains("Listening on"));
        begin();
        assert_eq!(child.wait().expect("a child of ours").code(), Some(78), "{}", log());
        assert!(log().contains("the service manager passed") && log().contains(expected), "{}", log());
        assert!(log().contains("what to do: compare attestd.socket"), "{}", log());
    };
    let connect = || drop(UnixStream::connect(&two).expect("connected"));
    refused(&["-l", one_is, "-l", two_is], &connect, "passed 2 sockets");
    let send = || {
        let socket = UnixDatagram::unbound().expect("a socket");
        socket.send_to(b"x", &datagram).expect("sent");
    };
    refused(&["-d", "-l", datagram_is], &send, "is not a valid unix stream socket");
    let connect = || drop(UnixStream::connect_addr(&address).expect("connected"));
    refused(&["-l", &format!("@{name}")], &connect, "a socket without a path");
    // Meant for another process, which then started us.
    let daemon = world.serve_with(|command| {
        command.env("LISTEN_FDS", "1").env("LISTEN_PID", "1");
    });
    assert!(world.socket().exists());
    assert!(daemon.stop().success());
    assert!(!world.socket().exists(), "its own socket it removes");
}

#[test]
fn the_pin_shows_nowhere() {
    let world = World::new();
    let pin = fs::read_to_string(world.dir().join("hsm/pin")).expect("readable").trim().to_owned();
    let daemon = world.serve_with(|command| {
        command.args(["--log-level", "trace"]);
    });
    daemon.append(REQUEST);
    let has_pin = |bytes: &[u8]| bytes.windows(pin.len()).any(|window| window == pin.as_bytes());

    for path in ["/v1/stats", "/v1/keys", "/readyz", "/v1/entries", "/openapi.json", "/nowhere"] {
        assert!(!has_pin(&daemon.get(path).body), "{path}");
    }
    let processes = Command::new("ps").args(["axeww", "-o", "args"]).output().expect("ps runs").stdout;
    assert!(processes.windows(7).any(|window| window == b"attestd") && !has_pin(&processes));
    // Since the daemon cannot be dumped, root alone may look into it.
    if fs::metadata("/proc/self").expect("there").uid() == 0 {
        search(&PathBuf::from(format!("/proc/{}", daemon.child.id())), &pin);
    } else {
        println!("left out, for want of root: environment, command line and memory of the daemon");
    }

    let log = daemon.log();
    assert!(daemon.stop().success());
    assert!(log.contains("unlocked the key") && !has_pin(log.as_bytes()), "{log}");
    for file in fs::read_dir(world.dir()).expect("readable").flatten().filter(|file| file.path().is_file()) {
        assert!(!has_pin(&fs::read(file.path()).expect("readable")), "{:?}", file.path());
    }

    // Nor does a wrong one, in what is said of it.
    fs::write(world.dir().join("hsm/pin"), "73914628").expect("written");
    let output = world.attestd(&["serve", "--log-level", "trace"]);
    let said = [output.stdout, output.stderr].concat();
    assert_eq!(output.status.code(), Some(78));
    let text = String::from_utf8_lossy(&said);
    assert!(text.contains("refused the PIN") && !text.contains("73914628") && !has_pin(&said), "{text}");
}

fn search(process: &Path, pin: &str) {
    for file in ["environ", "cmdline", "status", "maps"] {
        let content = fs::read(process.join(file)).expect(file);
        assert!(!content.is_empty() && !String::from_utf8_lossy(&content).contains(pin), "{file}");
    }
    let found = memory(process, pin.as_bytes());
    assert!(found.is_empty(), "in the memory of the daemon: {found:?}");
    // That search finds what is there.
    assert!(!memory(process, common::ORIGIN.as_bytes()).is_empty());
}

/// Where in the memory of a process `wanted` is.
fn memory(process: &Path, wanted: &[u8]) -> Vec<String> {
    let maps = fs::read_to_string(process.join("maps")).expect("readable");
    let memory = fs::File::open(process.join("mem")).expect("root may");
    let mut found = Vec::new();
    let mut searched = 0;
    for line in maps.lines().filter(|line| line.contains(" r")) {
        let (from, to) = line.split(' ').next().and_then(|range| range.split_once('-')).expect("a range");
        let [from, to] = [from, to].map(|hex| u64::from_str_radix(hex, 16).expect("an address"));
        let mut content = vec![0; usize::try_from(to - from).expect("it fits")];
        // The kernel's own pages cannot be read.
        if memory.read_exact_at(&mut content, from).is_ok() {
            searched += content.len();
            if content.windows(wanted.len()).any(|window| window == wanted) {
                found.push(line.to_owned());
            }
        }
    }
    assert!(searched > 1 << 20, "{searched} bytes could be read");
    found
}

#[test]
fn a_crash_leaves_no_core() {
    let world = World::new();
    let start = format!(
        "ulimit -c unlimited; exec {} serve --config {}",
        env!("CARGO_BIN_EXE_attestd"),
        world.config().display()
    );
    let mut child = world
        .program("bash")
        .args(["-c", &start])
        .current_dir(world.dir())
        .stderr(Stdio::null())
        .spawn()
        .expect("bash runs");
    wait_for("the daemon", || world.socket().exists());
    let limits = fs::read_to_string(format!("/proc/{}/limits", child.id())).expect("readable");
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).expect("there");
    assert_eq!(core.split_whitespace().filter(|word| *word == "0").count(), 2, "{core}");
    assert!(
        Command::new("kill")
            .args(["-s", "ABRT", &child.id().to_string()])
            .status()
            .expect("kill runs")
            .success()
    );
    let status = child.wait().expect("a child of ours");
    assert!(status.signal() == Some(6) && !status.core_dumped(), "{status}");
}

/// The units as they will lie on a machine, in a directory where systemd-analyze finds the program.
fn units() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    for entry in fs::read_dir(Path::new(ROOT).join("systemd")).expect("readable").flatten() {
        let path = entry.path();
        if path
            .extension()
            .is_some_and(|kind| ["service", "socket", "timer"].iter().any(|unit| kind == *unit))
        {
            let text = fs::read_to_string(&path).expect("readable");
            let text = text.replace("/usr/bin/attestd", env!("CARGO_BIN_EXE_attestd"));
            fs::write(dir.path().join(entry.file_name()), text).expect("written");
        }
    }
    dir
}

fn analyze(units: &Path, arguments: &[&str]) -> Output {
    Command::new("systemd-analyze")
        .args(arguments)
        .env("SYSTEMD_UNIT_PATH", format!("{}:", units.display()))
        .env("SYSTEMD_LOG_LEVEL", "notice")
        .output()
        .expect("systemd-analyze runs: tests/run installs it")
}

#[test]
fn the_units_are_what_systemd_takes_and_as_tight_as_the_page_says() {
    let page = fs::read_to_string(Path::new(ROOT).join("docs/operations.md")).expect("readable");
    // `| drop-in | score | …`
    let promised = |name: &str| -> f64 {
        let rows = page.lines().filter_map(|line| line.strip_prefix(&format!("| `{name}` | ")));
        rows.filter_map(|row| row.split(' ').next()?.parse().ok()).next().unwrap_or_else(|| panic!("{name}"))
    };
    let version = analyze(Path::new(ROOT), &["--version"]).stdout;
    let is_252 = version.starts_with(b"systemd 252 ");
    let dir = units();
    let check = |name: &str, unit: &str| {
        let output = analyze(dir.path(), &["verify", "--man=no", unit]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.trim().is_empty(), "{name}: {said}");
        if unit.ends_with(".service") {
            let output = analyze(dir.path(), &["security", "--offline=true", "--no-pager", unit]);
            let said = String::from_utf8_lossy(&output.stdout);
            let line = said.lines().find(|line| line.contains("Overall exposure level")).expect("a score");
            println!("{name}: {line}");
            let score = line.split_whitespace().find_map(|word| word.parse::<f64>().ok()).expect("a number");
            // Another version of systemd looks at other things.
            let most = if is_252 { promised(name) } else { promised(name).max(1.5) };
            assert!(score <= most, "{name}: {score} is more than {most}");
        }
    };
    for unit in ["attestd.service", "attestd.socket", "attestd-verify.service", "attestd-verify.timer"] {
        check(unit, unit);
    }
    assert!(promised("attestd.service") <= 1.5);
    let drop_ins = fs::read_dir(Path::new(ROOT).join("systemd/drop-ins")).expect("readable").flatten();
    let names: Vec<String> = drop_ins.map(|entry| entry.file_name().into_string().expect("UTF-8")).collect();
    assert!(names.len() >= 3);
    for name in names {
        let here = dir.path().join("attestd.service.d");
        fs::create_dir_all(&here).expect("a directory");
        fs::copy(Path::new(ROOT).join("systemd/drop-ins").join(&name), here.join(&name)).expect("copied");
        check(&name, "attestd.service");
        fs::remove_dir_all(&here).expect("removed");
    }
}

/// The package of the programs that were built beside this test.
fn package(out: &Path) -> PathBuf {
    let profile = PathBuf::from(env!("CARGO_BIN_EXE_attestd"));
    let profile = profile.parent().expect("cargo's directory");
    let output = Command::new(Path::new(ROOT).join("systemd/package"))
        .arg("--target")
        .arg(profile.parent().expect("cargo's directory"))
        .arg("--profile")
        .arg(profile.file_name().expect("a name"))
        .arg(out)
        .output()
        .expect("systemd/package runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8").trim().into()
}

fn dpkg_deb(arguments: &[&str], package: &Path) -> String {
    let output = Command::new("dpkg-deb").args(arguments).arg(package).output().expect("dpkg-deb runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

#[test]
fn the_package_holds_what_a_machine_needs_and_nothing_of_anybodys() {
    let out = tempfile::tempdir().expect("a directory");
    let package = package(out.path());
    let field = |name: &str| {
        dpkg_deb(&["-f"], &package)
            .lines()
            .find_map(|line| line.strip_prefix(name).map(str::to_owned))
            .expect(name)
    };
    assert_eq!(field("Package: "), "attestd");
    assert!(field("Version: ").starts_with(env!("CARGO_PKG_VERSION")));
    assert!(field("Depends: ").contains("libc6 (>= 2.") && field("Depends: ").contains("systemd"));

    let listing = dpkg_deb(&["-c"], &package);
    let files: Vec<(&str, &str, &str)> = listing
        .lines()
        .map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            (words[5].trim_start_matches('.'), words[0], words[1])
        })
        .collect();
    for (path, mode) in [
        ("/usr/bin/attestd", "-rwxr-xr-x"),
        ("/usr/bin/attestctl", "-rwxr-xr-x"),
        ("/usr/bin/attest-verify", "-rwxr-xr-x"),
        ("/usr/lib/systemd/system/attestd.service", "-rw-r--r--"),
        ("/usr/lib/systemd/system/attestd.socket", "-rw-r--r--"),
        ("/usr/lib/systemd/system/attestd-verify.service", "-rw-r--r--"),
        ("/usr/lib/systemd/system/attestd-verify.timer", "-rw-r--r--"),
        ("/usr/lib/sysusers.d/attestd.conf", "-rw-r--r--"),
        ("/usr/lib/tmpfiles.d/attestd.conf", "-rw-r--r--"),
        ("/usr/share/attestd/drop-ins/network-token.conf", "-rw-r--r--"),
        ("/usr/share/attestd/drop-ins/caller-exe.conf", "-rw-r--r--"),
        ("/usr/share/attestd/drop-ins/usb-token.conf", "-rw-r--r--"),
        ("/usr/share/doc/attestd/examples/70-attestd.rules", "-rw-r--r--"),
        ("/usr/share/doc/attestd/operations.md", "-rw-r--r--"),
        ("/usr/share/doc/attestd/copyright", "-rw-r--r--"),
        ("/usr/share/doc/attestd/LICENSE-MIT", "-rw-r--r--"),
        ("/usr/share/doc/attestd/LICENSE-APACHE", "-rw-r--r--"),
        ("/usr/share/man/man1/attestctl.1.gz", "-rw-r--r--"),
        ("/usr/share/man/man1/attestd-serve.1.gz", "-rw-r--r--"),
        ("/usr/share/man/man1/attest-verify.1.gz", "-rw-r--r--"),
        ("/etc/attestd/attestd.toml", "-rw-r--r--"),
    ] {
        assert!(files.contains(&(path, mode, "root/root")), "{path}\n{listing}");
    }
    assert!(files.iter().all(|(_, _, owner)| *owner == "root/root"), "{listing}");
    // Nothing that the package would own lies where the ledger will, or it would go with the package.
    assert!(
        !files.iter().any(|(path, ..)| path.starts_with("/var") || path.starts_with("/run")),
        "{listing}"
    );

    let control = out.path().join("control");
    let status =
        Command::new("dpkg-deb").arg("-e").arg(&package).arg(&control).status().expect("dpkg-deb runs");
    assert!(status.success());
    assert_eq!(
        fs::read_to_string(control.join("conffiles")).expect("readable"),
        "/etc/attestd/attestd.toml\n"
    );
    for script in ["postinst", "prerm", "postrm"] {
        let checked = Command::new("sh").arg("-n").arg(control.join(script)).status().expect("sh runs");
        assert!(checked.success(), "{script}");
        let text = fs::read_to_string(control.join(script)).expect("readable");
        assert!(!text.contains("rm "), "{script} removes something");
    }
}

/// Installed, begun, served, watched, reloaded, verified and purged under a real systemd: what the unit's
/// restrictions leave of the kernel's word on callers can be seen only there.
#[test]
fn the_package_lives_under_a_real_systemd() {
    let out = tempfile::tempdir().expect("a directory");
    let package = package(out.path());
    let scripts = Path::new(ROOT).join("tests/systemd");
    let output = Command::new("timeout")
        .args(["--kill-after=5", "300"])
        .arg(scripts.join("in-namespace"))
        .arg(scripts.join("installed"))
        .args([&package, &shim()])
        .current_dir(ROOT)
        .stdin(Stdio::null())
        .output()
        .expect("timeout runs");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    if output.status.code() == Some(125) {
        println!("left out: {said}");
        return;
    }
    assert!(output.status.success(), "{said}");
    println!("{said}");
}
