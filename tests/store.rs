//! The ledger file as the daemon meets it: what it refuses to open, what it refuses to extend, and
//! what happens when the disk has no room or fails.

#![cfg(feature = "daemon")]

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use common::{Daemon, REQUEST, World, request};
use rusqlite::{Connection, params};
use serde_json::Value;

/// Holds that the daemon does not start, and why.
fn refuses_to_start(world: &World, code: i32, reason: &str) {
    let mut command = world.program("timeout");
    command.args(["60", env!("CARGO_BIN_EXE_attestd"), "serve", "--config"]).arg(world.config());
    refused(&command.output().expect("timeout runs"), code, reason);
}

fn refused(output: &Output, code: i32, reason: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(said.contains(reason), "{reason:?} is not in {said}");
}

/// Changes the ledger file behind the daemon's back.
fn tamper(world: &World, sql: &str) {
    let connection = Connection::open(world.ledger()).expect("opened");
    connection.execute_batch(sql).expect("executed");
}

/// A ledger with `entries` entries of clients.
fn with_entries(entries: usize) -> World {
    let world = World::new();
    let daemon = world.serve();
    let answers = daemon.post("/v1/entries:batch", vec![REQUEST; entries].join("\n")).lines();
    assert!(answers.iter().all(|answer| answer["sequence_number"].is_u64()));
    assert!(daemon.stop().success());
    world
}

/// Flips one bit in the payload of the entry at `sequence`.
fn flip(world: &World, sequence: u64) {
    let connection = Connection::open(world.ledger()).expect("opened");
    let mut body: Vec<u8> = connection
        .query_row("SELECT body FROM entries WHERE sequence=?1", [sequence], |row| row.get(0))
        .expect("there");
    let place = body.windows(8).position(|window| window == b"test.run").expect("its action_type");
    body[place] ^= 1;
    connection
        .execute("UPDATE entries SET body=?2 WHERE sequence=?1", params![sequence, body])
        .expect("done");
}

#[test]
fn a_newer_schema_is_refused() {
    let world = World::new();
    tamper(&world, "PRAGMA user_version=99");
    refuses_to_start(&world, 78, "the ledger has schema version 99, this program knows up to 2");
    refused(&world.attestd(&["verify"]), 78, "schema version 99");
}

#[test]
fn what_is_not_a_ledger_is_refused_and_left_alone() {
    let world = World::without_ledger();
    let text =
        "not a database, but long enough to be taken for the header of one, were it looked at carelessly "
            .repeat(9);
    std::fs::write(world.ledger(), &text).expect("written");
    refuses_to_start(&world, 78, "is not an attestd ledger");
    assert_eq!(std::fs::read_to_string(world.ledger()).expect("readable"), text);

    std::fs::remove_file(world.ledger()).expect("removed");
    tamper(&world, "CREATE TABLE entries (sequence INTEGER PRIMARY KEY)");
    refuses_to_start(&world, 78, "is not an attestd ledger");

    std::fs::write(world.ledger(), "").expect("written");
    refuses_to_start(&world, 78, "is not an attestd ledger");
}

#[test]
fn a_second_daemon_is_refused_by_the_lock() {
    let world = World::new();
    let daemon = world.serve();
    refuses_to_start(&world, 1, "another process holds the lock");
    daemon.append(REQUEST);
    assert!(daemon.stop().success());
    assert_eq!(world.audit().len(), 4);
}

#[test]
#[cfg_attr(not(debug_assertions), ignore = "fail points are in debug builds only")]
fn a_reservation_that_cannot_be_signed_as_it_is_stops_the_start() {
    let world = World::new();
    let mut daemon = world.serve_with(|command| {
        command.env("ATTESTD_CRASH_AT", "after-reserve:3");
    });
    daemon.append(REQUEST);
    daemon.raw(
        format!("POST /v1/entries HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{REQUEST}", REQUEST.len())
            .as_bytes(),
    );
    daemon.child.wait().expect("a child of ours");
    let kept = std::fs::read(world.ledger()).expect("readable");
    let wal = world.dir().join("ledger.db-wal");
    let kept_wal = std::fs::read(&wal).expect("readable");
    let restore = || {
        std::fs::write(world.ledger(), &kept).expect("written");
        std::fs::write(&wal, &kept_wal).expect("written");
        let _ = std::fs::remove_file(world.dir().join("ledger.db-shm"));
    };

    tamper(&world, "UPDATE commits SET mode='later' WHERE signatures IS NULL");
    refuses_to_start(&world, 78, "are reserved for key");
    restore();
    tamper(&world, "UPDATE commits SET mode='commit' WHERE signatures IS NULL");
    refuses_to_start(&world, 78, "it names another mode than its reservation");
    restore();
    // The entry names its key too, and is believed no more than the row.
    tamper(&world, "UPDATE commits SET key_id=zeroblob(32) WHERE signatures IS NULL");
    refuses_to_start(&world, 78, "reserved entry 3: it names another key than its reservation");
    restore();
    flip(&world, 3);
    refuses_to_start(&world, 78, "reserved entry 3: its hash is wrong");
    restore();
    // Whole, with a right hash, but no entry that ever had this place.
    tamper(
        &world,
        "UPDATE entries SET (body, signature_at) = (SELECT body, signature_at FROM entries WHERE sequence=2) WHERE sequence=3",
    );
    refuses_to_start(&world, 78, "reserved entry 3: a sequence number is missing, repeated or out of order");
    restore();
    tamper(&world, "DELETE FROM entries WHERE sequence=3");
    refuses_to_start(&world, 78, "its entries end at 3, its commits at 4");

    restore();
    assert!(world.serve().stop().success());
    assert_eq!(world.audit().len(), 6);
}

#[test]
fn a_flipped_bit_in_the_last_entries_stops_the_start() {
    let world = with_entries(20);
    flip(&world, 11);
    refuses_to_start(&world, 78, "the ledger's last entries do not hold: entry 11:");
    refuses_to_start(&world, 78, "do not repair or extend it");
}

#[test]
fn a_flipped_bit_further_back_is_found_by_a_verification() {
    let world = with_entries(1_100);
    flip(&world, 5);
    let daemon = world.serve();
    let verdict = daemon.post("/v1/verify", "").json();
    assert_eq!(
        (&verdict["ok"], &verdict["fault"]["sequence_number"]),
        (&false.into(), &5.into()),
        "{verdict}"
    );
    let output = world.attestd(&["verify"]);
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stdout));
    let output = world.attestd(&["verify", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let verdict: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(verdict["fault"]["sequence_number"], 5);
    assert!(daemon.stop().success());
}

#[test]
fn what_was_changed_is_not_given_out_as_sealed() {
    let world = with_entries(1_100);
    let daemon = world.serve();
    let id = daemon.get("/v1/entries/5").json()["entry_id"].as_str().expect("a string").to_owned();
    let paths = [
        "/v1/entries/5".to_owned(),
        format!("/v1/entries/{id}"),
        "/v1/entries/5/proof".to_owned(),
        "/v1/entries?from=0&to=9".to_owned(),
        "/v1/tile/entries/000".to_owned(),
    ];
    let refused = || {
        for path in &paths {
            daemon.get(path).problem(500, "internal");
        }
        assert!(daemon.log().contains("entry 5"), "{}", daemon.log());
    };
    assert!(paths.iter().all(|path| daemon.get(path).status == 200));
    flip(&world, 5);
    refused();
    // A whole entry, but of another place.
    tamper(
        &world,
        "UPDATE entries SET (body, signature_at) = (SELECT body, signature_at FROM entries WHERE sequence=6) \
         WHERE sequence=5",
    );
    refused();
    tamper(&world, "UPDATE entries SET body=x'00', signature_at=0 WHERE sequence=5");
    refused();
    assert_eq!(daemon.get("/v1/entries/4").status, 200);
    assert!(daemon.stop().success());
}

#[test]
fn a_verification_names_the_entry_that_is_missing() {
    let world = with_entries(1_200);
    tamper(&world, "DELETE FROM entries WHERE sequence=100");
    let output = world.attestd(&["verify", "--json"]);
    let verdict: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert!(verdict.to_string().contains("entry 100 is missing"), "{verdict}");
    assert_eq!((output.status.code(), &verdict["count"]), (Some(1), &100.into()), "{verdict}");
}

#[test]
fn entries_and_commits_that_end_apart_are_an_operators_matter() {
    let world = with_entries(20);
    let last = "(SELECT max(sequence) FROM entries)";
    tamper(
        &world,
        &format!(
            "INSERT INTO entries SELECT sequence + 1, signature_at, body, caller, content FROM entries WHERE sequence={last}"
        ),
    );
    refuses_to_start(&world, 78, "the ledger is damaged: its entries end at 24, its commits at 23");
    tamper(&world, &format!("DELETE FROM entries WHERE sequence={last}"));
    tamper(&world, "DELETE FROM commits WHERE first=(SELECT max(first) FROM commits)");
    refuses_to_start(&world, 78, "the ledger is damaged: its entries end at 23, its commits at 22");
}

#[test]
fn a_broken_page_or_value_is_an_operators_matter() {
    let world = with_entries(20);
    tamper(&world, "PRAGMA wal_checkpoint(TRUNCATE); UPDATE commits SET bytes=-5");
    refuses_to_start(&world, 78, "the ledger is damaged");
    tamper(&world, "PRAGMA wal_checkpoint(TRUNCATE)");
    let mut bytes = std::fs::read(world.ledger()).expect("readable");
    bytes[8_192..].fill(0x5A);
    std::fs::write(world.ledger(), bytes).expect("writable");
    refuses_to_start(&world, 78, "the ledger is damaged");
}

#[test]
fn a_missing_index_cannot_be_built_from_a_damaged_ledger() {
    let world = with_entries(1_100);
    let connection = Connection::open(world.ledger()).expect("opened");
    connection.execute("UPDATE entries SET body=x'7b7d', signature_at=0 WHERE sequence=5", []).expect("done");
    drop(connection);
    std::fs::remove_file(world.dir().join("index.db")).expect("removed");
    refuses_to_start(&world, 78, "entry 5");
}

#[test]
fn below_the_watermark_only_the_daemon_writes() {
    let world = World::new();
    world.configure("ledger", "min_free_bytes = 1125899906842624");
    let daemon = world.serve();
    daemon.post("/v1/entries", REQUEST).problem(507, "storage-full");
    let id = r#","entry_id":"6f1c2a7e-3b4d-4c5e-8f90-112233445566""#;
    let lines =
        daemon.post("/v1/entries:batch", [request(id), REQUEST.into(), request(id)].join("\n")).lines();
    assert_eq!(lines.len(), 3);
    assert!(lines.iter().all(|line| line["code"] == "storage-full"), "{lines:?}");
    assert_eq!(daemon.get("/v1/stats").json()["queue"]["entries"], 0);
    assert!(daemon.stop().success());
    let actions: Vec<String> = actions(&world.audit());
    assert_eq!(actions, ["ledger.genesis", "system_initialization", "system_shutdown"]);
}

fn actions(lines: &[String]) -> Vec<String> {
    let action = |line: &String| -> Value { serde_json::from_str(line).expect("JSON") };
    lines.iter().map(|line| action(line)["action_type"].as_str().expect("a string").to_owned()).collect()
}

/// A file system of two megabytes, unmounted in the end.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: PathBuf) -> Option<Self> {
        std::fs::create_dir(&at).expect("made");
        let status =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=2m", "attestd-test"]).arg(&at).status();
        status.is_ok_and(|status| status.success()).then_some(SmallDisk(at))
    }

    /// Leaves no room at all.
    fn fill(&self) {
        use std::io::Write;
        let mut balloon =
            std::fs::File::options().create(true).append(true).open(self.balloon()).expect("opened");
        for size in [65_536, 4_096, 1] {
            while balloon.write_all(&vec![b'.'; size]).is_ok() {}
        }
    }

    fn free(&self) {
        std::fs::remove_file(self.balloon()).expect("removed");
    }

    fn balloon(&self) -> PathBuf {
        self.0.join("balloon")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// Appends until a client is refused for want of room, and gives what was sealed.
fn append_until_full(daemon: &Daemon) -> Vec<Value> {
    let body = request(&format!(r#","result_data":{{"filler":"{}"}}"#, "x".repeat(20_000)));
    let mut sealed = Vec::new();
    loop {
        assert!(sealed.len() < 2_000, "the disk does not get full");
        let answer = daemon.post("/v1/entries", &body);
        if answer.status != 201 {
            answer.problem(507, "storage-full");
            return sealed;
        }
        sealed.push(answer.json());
    }
}

#[test]
fn a_full_disk_refuses_and_loses_nothing() {
    let world = World::without_ledger();
    let Some(disk) = SmallDisk::mount(world.dir().join("disk")) else {
        println!("skipped: no file system can be mounted here (not root, or a container without the right)");
        return;
    };
    let config = std::fs::read_to_string(world.config()).expect("readable");
    let config = config.replace(
        "path = \"ledger.db\"\n",
        "path = \"disk/ledger.db\"\npublic_key = \"public-key.pem\"\nmin_free_bytes = 0\n",
    );
    std::fs::write(world.config(), config).expect("written");
    assert!(world.attestd(&["init"]).status.success());
    let daemon = world.serve();
    let mut sealed = vec![daemon.append(REQUEST)];
    disk.fill();
    sealed.extend(append_until_full(&daemon));
    // Reading goes on, and what is in the ledger already is known.
    let last = sealed.last().expect("one");
    assert_eq!(daemon.get(&format!("/v1/entries/{}", last["sequence_number"])).json(), *last);
    assert_eq!(daemon.get("/v1/stats").json()["queue"]["entries"], 0);
    for _ in 0..3 {
        daemon.post("/v1/entries", REQUEST).problem(507, "storage-full");
    }

    disk.free();
    let deadline = Instant::now() + Duration::from_secs(10);
    let after = loop {
        let answer = daemon.post("/v1/entries", REQUEST);
        if answer.status == 201 {
            break answer.json();
        }
        answer.problem(507, "storage-full");
        assert!(Instant::now() < deadline, "it does not notice that there is room again");
        std::thread::sleep(Duration::from_millis(100));
    };
    assert_eq!(after["sequence_number"].as_u64(), last["sequence_number"].as_u64().map(|n| n + 1));
    sealed.push(after);
    // The index, which is on the same disk, has caught up with the ledger.
    let listed = daemon.get("/v1/entries?action_type=test.run&order=asc&limit=1000").json();
    assert_eq!(listed["entries"].as_array().map(Vec::as_slice), Some(&sealed[..]));

    // A daemon that stops on a full disk can't say so in the ledger, but stops.
    disk.fill();
    sealed.extend(append_until_full(&daemon));
    let _ = daemon.stop();
    hold_sealed(&world, &sealed);
    // And one that finds no room for its BOOT entry does not serve. (The stop gave some back: the
    // WAL went into the file.)
    disk.fill();
    refuses_to_start(&world, 1, "disk");
    disk.free();
    assert!(world.serve().stop().success());
    hold_sealed(&world, &sealed);
}

fn hold_sealed(world: &World, sealed: &[Value]) {
    let lines = world.audit();
    for entry in sealed {
        let line = &lines[entry["sequence_number"].as_u64().expect("a number") as usize];
        assert_eq!(serde_json::from_str::<Value>(line).expect("JSON"), *entry);
    }
}

/// Starts the daemon with `prepare`, appends until it stops, and holds the rest.
fn stops_on_a_fault(prepare: impl FnOnce(&World, &mut Command), fault: &str) {
    let world = World::new();
    let mut daemon = world.serve_with(|command| prepare(&world, command));
    let body = request(&format!(r#","result_data":{{"filler":"{}"}}"#, "x".repeat(20_000)));
    let mut sealed = Vec::new();
    let unknown = loop {
        assert!(sealed.len() < 2_000, "nothing fails");
        let answer = daemon.post("/v1/entries", &body);
        if answer.status != 201 {
            break answer.problem(503, "outcome-unknown");
        }
        sealed.push(answer.json());
    };
    let id = unknown["entry_id"].as_str().expect("the id to ask with");
    let status = daemon.child.wait().expect("a child of ours");
    assert_eq!(status.code(), Some(1), "{}", daemon.log());
    assert!(daemon.log().contains(fault), "{fault:?} is not in {}", daemon.log());

    hold_sealed(&world, &sealed);
    let daemon = world.serve();
    // Sealed or not: now it can be known.
    let found = daemon.get(&format!("/v1/entries/{id}")).status;
    assert!(found == 200 || found == 404);
    daemon.append(REQUEST);
    assert!(daemon.stop().success());
    hold_sealed(&world, &sealed);
}

#[test]
fn a_write_that_fails_stops_the_daemon() {
    // A limit on the size of files makes writes fail with EFBIG, where SIGXFSZ is ignored.
    let limited = |_: &World, command: &mut Command| {
        run_by(
            command,
            Command::new("bash").args(["-c", "trap '' XFSZ; ulimit -f 2048; exec \"$@\"", "bash"]),
        );
    };
    stops_on_a_fault(limited, "disk I/O error");
}

#[test]
fn an_fsync_that_fails_stops_the_daemon() {
    let works =
        Command::new("strace").args(["-f", "true"]).output().is_ok_and(|output| output.status.success());
    if !works {
        println!("skipped: strace is not installed, or may not trace here");
        return;
    }
    let failing = |world: &World, command: &mut Command| {
        let inject = ["-e", "trace=fdatasync,fsync", "-e", "inject=fdatasync,fsync:error=EIO:when=30+"];
        run_by(command, Command::new("strace").arg("-fo").arg(world.dir().join("trace")).args(inject));
    };
    stops_on_a_fault(failing, "disk I/O error");
}

/// Has `runner` run what `command` would have run, in the same surroundings.
fn run_by(command: &mut Command, runner: &mut Command) {
    runner.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        runner.env(name, value.unwrap_or_default());
    }
    // The harness's log, which lies beside the configuration; a `Command` does not tell where its
    // output goes.
    let config = Path::new(command.get_args().last().expect("the configuration"));
    let log = std::fs::File::options().append(true).open(config.with_file_name("log")).expect("opened");
    runner.stdin(std::process::Stdio::null()).stderr(log);
    std::mem::swap(command, runner);
}
