//! The machine around the ledger: who looks, the disk, who can get at the files, and the clock.

use std::fs::Metadata;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use nix::unistd::{Gid, Group, Uid, User};

use super::{Finding, Level, Patient};
use crate::ctl::text::duration;
use crate::sequencer::{free_bytes, now};

/// What systemd-timesyncd leaves once the clock was set by it.
const SYNCHRONIZED: &str = "/run/systemd/timesync/synchronized";
/// What others leave while they run. Whether they have set the clock only they know.
const KEEPERS: [(&str, &str); 4] = [
    ("chronyd", "/run/chrony/chronyd.pid"),
    ("chronyd", "/run/chronyd.pid"),
    ("ntpd", "/run/ntpd.pid"),
    ("openntpd", "/run/ntpd.sock"),
];
/// Nothing of a ledger is older than the daemon itself.
const FIRST_YEAR_MICROS: i64 = 1_735_689_600_000_000;

pub(super) fn uid_of(metadata: &Metadata) -> u32 {
    metadata.uid()
}

pub(super) fn user_name(uid: u32) -> String {
    match User::from_uid(Uid::from_raw(uid)) {
        Ok(Some(user)) => user.name,
        _ => format!("uid {uid}"),
    }
}

fn group_name(gid: u32) -> String {
    match Group::from_gid(Gid::from_raw(gid)) {
        Ok(Some(group)) => group.name,
        _ => format!("gid {gid}"),
    }
}

pub(super) fn user(patient: &Patient<'_>) -> Finding {
    let Patient { uid, owner, .. } = patient;
    match owner {
        None => Finding::ok(
            "user",
            format!("looking as {}; there is no ledger to say whose it is", user_name(*uid)),
        ),
        Some(owner) if owner == uid => {
            Finding::ok("user", format!("looking as {}, whose the ledger is", user_name(*uid)))
        }
        Some(owner) => {
            let owner = user_name(*owner);
            Finding::warning(
                "user",
                format!("looking as {}; the ledger is {owner}'s", user_name(*uid)),
                format!(
                    "for all of it: `setpriv --reuid {owner} --regid {owner} --init-groups attestctl doctor`, with the \
                     daemon stopped for what takes a login"
                ),
            )
        }
    }
}

pub(super) fn disk(patient: &Patient<'_>) -> Vec<Finding> {
    let config = &patient.config.ledger;
    let directory = config.path.parent().filter(|path| !path.as_os_str().is_empty());
    let free = free_bytes(directory.unwrap_or(Path::new(".")));
    let mib = |bytes: u64| format!("{} MiB", bytes >> 20);
    let said = format!("{} free, appends are refused under {}", mib(free), mib(config.min_free_bytes));
    let remedy = "make room, or move the ledger while the daemon is stopped";
    vec![if free < config.min_free_bytes {
        Finding::wrong("disk", said, remedy)
    } else if free / 4 < config.min_free_bytes {
        Finding::warning("disk", said, remedy)
    } else {
        Finding::ok("disk", said)
    }]
}

/// Whether others than the daemon's user and root can change, or read, what they must not.
pub(super) fn access(patient: &Patient<'_>) -> Vec<Finding> {
    let config = patient.config;
    let ledger = &config.ledger.path;
    let mut findings = vec![
        closed(patient, "config_file", patient.config_path, Closed::ForWriting),
        closed(patient, "ledger_file", ledger, Closed::Entirely),
        closed(patient, "ledger_dir", &parent(ledger), Closed::ForWriting),
        closed(patient, "socket_dir", &parent(&config.server.socket), Closed::ForWriting),
    ];
    if !config.rules.file.as_os_str().is_empty() {
        findings.push(closed(patient, "rules_file", &config.rules.file, Closed::ForWriting));
    }
    findings.push(socket(patient));
    findings
}

fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => ".".into(),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Closed {
    ForWriting,
    /// Others should not read it either.
    Entirely,
}

fn closed(patient: &Patient<'_>, what: &'static str, path: &Path, closed: Closed) -> Finding {
    let metadata = match path.metadata() {
        Ok(metadata) => metadata,
        Err(error) => {
            return Finding::warning(
                what,
                format!("couldn't look at {}: {error}", path.display()),
                "make it, or run the doctor as somebody who can see it",
            );
        }
    };
    let (mode, uid) = (metadata.mode() & 0o7777, metadata.uid());
    let said = format!(
        "{}: mode {mode:04o}, owner {}:{}",
        path.display(),
        user_name(uid),
        group_name(metadata.gid())
    );
    // Of a directory like /tmp nobody can take away what is another's.
    let is_sticky = metadata.is_dir() && mode & 0o1000 != 0;
    if uid != 0 && Some(uid) != patient.owner && patient.owner.is_some() {
        Finding::wrong(
            what,
            format!("{said}: neither root's nor the daemon's user's, so somebody else can change it"),
            format!("chown root {}", path.display()),
        )
    } else if mode & 0o022 != 0 && !is_sticky {
        Finding::wrong(
            what,
            format!("{said}: others can change it"),
            format!("chmod go-w {}", path.display()),
        )
    } else if closed == Closed::Entirely && mode & 0o007 != 0 && parent_lets_in(path) {
        Finding::warning(
            what,
            format!("{said}: every user of this machine can read the entries, whatever the rules say"),
            format!("chmod o= {}*", path.display()),
        )
    } else {
        Finding::ok(what, said)
    }
}

fn parent_lets_in(path: &Path) -> bool {
    parent(path).metadata().is_ok_and(|metadata| metadata.mode() & 0o001 != 0)
}

fn socket(patient: &Patient<'_>) -> Finding {
    let server = &patient.config.server;
    let path = server.socket.display();
    let metadata = match server.socket.symlink_metadata() {
        Ok(metadata) => metadata,
        Err(_) if patient.presence.is_away() => {
            return Finding::ok(
                "socket",
                format!("{path} is not there: no daemon runs, and none is started by a client"),
            );
        }
        Err(error) => {
            return Finding::warning(
                "socket",
                format!("couldn't look at {path}: {error}"),
                "does the daemon, or attestd.socket, use another path? Compare `server.socket` with `systemctl cat attestd.socket`",
            );
        }
    };
    if !metadata.file_type().is_socket() {
        return Finding::wrong(
            "socket",
            format!("{path} is not a socket"),
            "find out what it is, and move it away or set `server.socket` to another path",
        );
    }
    let mode = metadata.mode() & 0o777;
    let group = group_name(metadata.gid());
    let said = format!("{path}: mode {mode:04o}, owner {}:{group}", user_name(metadata.uid()));
    if mode & !server.socket_mode != 0 {
        return Finding {
            level: if mode & !server.socket_mode & 0o002 != 0 { Level::Wrong } else { Level::Warning },
            ..Finding::warning(
                "socket",
                format!("{said}: it lets in more than `server.socket_mode` ({:04o})", server.socket_mode),
                "who made it? For one of systemd's see SocketMode= in `systemctl cat attestd.socket`; else restart the daemon",
            )
        };
    }
    if !server.socket_group.is_empty() && server.socket_group != group {
        return Finding::warning(
            "socket",
            format!("{said}; `server.socket_group` is {}", server.socket_group),
            "for one of systemd's see SocketGroup= in `systemctl cat attestd.socket`; else restart the daemon",
        );
    }
    Finding::ok("socket", said)
}

pub(super) fn clock(patient: &Patient<'_>) -> Finding {
    let now = now();
    let last = patient.ledger.as_ref().ok().and_then(|ledger| ledger.last_written().ok());
    if now.as_micros() < FIRST_YEAR_MICROS {
        return Finding::wrong(
            "clock",
            format!("it says {now}"),
            "set the clock, and see that it keeps time",
        );
    }
    if let Some(last) = last.filter(|last| now < *last) {
        let behind = (last.as_micros() - now.as_micros()) as f64 / 1e6;
        return Finding::wrong(
            "clock",
            format!("it says {now}, which is {} before the last entry ({last})", duration(behind)),
            "find out which of them is right. Until the clock has caught up entries get the last one's time",
        );
    }
    let mut said = format!("it says {now}");
    if let Some(last) = last {
        let ago = (now.as_micros() - last.as_micros()) as f64 / 1e6;
        said.push_str(&format!(", the last entry is {} old", duration(ago)));
    }
    if Path::new(SYNCHRONIZED).exists() {
        return Finding::ok("clock", format!("{said}; systemd-timesyncd has set it"));
    }
    match KEEPERS.iter().find(|(_, trace)| Path::new(trace).exists()) {
        Some((keeper, _)) => Finding::ok(
            "clock",
            format!("{said}; {keeper} runs, whether it has set the clock is not known here"),
        ),
        None => Finding::warning(
            "clock",
            format!("{said}; nothing was found that keeps it right"),
            "run chrony or systemd-timesyncd: ledger time is this clock's",
        ),
    }
}
