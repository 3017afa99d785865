//! Who is calling, by the kernel's word.
//!
//! uid, gid and pid are those that the kernel noted when the client connected. The rest is read
//! from `/proc/PID`, and holds only while the process with that number is the one that
//! connected: a pidfd says so after everything was read. Otherwise the rest is null, never
//! another process's. Nothing in here takes the client's own word for anything.
//!
//! ```text
//! {"caller":null,"exe":"/usr/bin/curl","exe_sha256":null,"gid":1000,"groups":[1000,27],"pid":4711,
//!  "start_time":"2026-11-25T02:29:42.120000Z","uid":1000,"unit":"deploy.service","user":"ann"}
//! ```
//!
//! A process can start another program, or give its connection to another process, after it has
//! connected: `exe` and `unit` narrow a uid, they do not replace it.

mod program;

use std::collections::HashMap;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{Gid, Uid, User};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::governance::caller::Peer as Kernel;
use crate::ledger::hash::Digest;
use crate::ledger::json;
use crate::ledger::timestamp::Timestamp;
use program::Program;

/// How long a uid keeps its name: looking it up can cost a round trip to a directory service.
const NAMES_LAST: Duration = Duration::from_secs(60);

/// Units of the system manager that have processes (systemd.unit(5)).
const UNIT_KINDS: [&str; 5] = ["service", "scope", "socket", "mount", "swap"];

/// The process at the other end of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Effective uid when it connected.
    pub uid: u32,
    /// Effective gid when it connected.
    pub gid: u32,
    /// Process number when it connected; `None` when it is in a pid namespace that we do not see.
    pub pid: Option<u32>,
    /// The uid's name.
    pub user: Option<String>,
    /// Supplementary groups.
    pub groups: Option<Vec<u32>>,
    /// When the process started, to 10 ms. Derived from the boot clock and from the difference of
    /// wall clock and boot clock when the daemon first asked, so a process keeps its start time
    /// for as long as the daemon runs, whatever is done to the wall clock.
    pub start_time: Option<Timestamp>,
    /// The program, as a path in the daemon's own view; ` (deleted)` at its end is the kernel's.
    pub exe: Option<String>,
    /// The program's SHA-256, where it was asked for.
    pub exe_sha256: Option<Digest>,
    /// The unit of the system manager that it runs in.
    pub unit: Option<String>,
    json: String,
    kernel: Kernel,
}

impl Peer {
    /// Reads all there is to know about the other end of `socket`, a connected Unix socket.
    /// It takes some 50 µs, but a name that is not cached can take as long as its directory
    /// service does: not for an async thread.
    ///
    /// # Errors
    /// When the kernel does not even say who connected.
    pub fn read(socket: &impl AsFd, hash_program: bool) -> Result<Self, Errno> {
        let credentials = getsockopt(&socket.as_fd(), sockopt::PeerCredentials)?;
        let pidfd = match getsockopt(&socket.as_fd(), sockopt::PeerPidfd) {
            Ok(pidfd) => Pidfd::Connected(pidfd),
            // Linux before 6.5.
            Err(Errno::ENOPROTOOPT | Errno::EINVAL) => Pidfd::Unknown,
            // The process is gone, or there is no descriptor left.
            Err(_) => Pidfd::Gone,
        };
        let process = (credentials.pid(), pidfd);
        Ok(Self::describe(credentials.uid(), credentials.gid(), process, hash_program))
    }

    fn describe(uid: u32, gid: u32, process: (i32, Pidfd), hash_program: bool) -> Self {
        let (pid, pidfd) = process;
        let process = match pidfd {
            _ if pid <= 0 => None,
            Pidfd::Connected(pidfd) => Process::read(pid, hash_program).filter(|_| is_alive(&pidfd)),
            // The number may have been given to another process before we asked, and no call of
            // this kernel's tells. From here on it is at least one process throughout.
            Pidfd::Unknown => Pid::from_raw(pid)
                .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok())
                .and_then(|pidfd| Process::read(pid, hash_program).filter(|_| is_alive(&pidfd)))
                .filter(|process| process.uid == uid),
            Pidfd::Gone => None,
        };
        let mut peer = Peer {
            uid,
            gid,
            pid: u32::try_from(pid).ok().filter(|pid| *pid > 0),
            user: user_name(uid),
            groups: None,
            start_time: None,
            exe: None,
            exe_sha256: None,
            unit: None,
            json: String::new(),
            kernel: Kernel::default(),
        };
        if let Some(process) = process {
            // A process that became somebody else since it connected has somebody else's groups.
            let unchanged = process.uid == uid && process.gid == gid;
            peer.groups = Some(process.groups).filter(|_| unchanged);
            peer.start_time = Some(start_time(process.start_ticks));
            peer.exe = process.program.path;
            peer.exe_sha256 = process.program.sha256;
            peer.unit = process.unit;
        }
        peer.json = peer.write_json();
        peer.kernel = Kernel {
            uid: peer.uid,
            gid: Some(peer.gid),
            groups: peer.groups.clone(),
            user: peer.user.clone(),
            unit: peer.unit.clone(),
            exe: peer.exe.clone(),
            exe_sha256: peer.exe_sha256,
            caller: None,
        };
        peer
    }

    /// The same as rules see it.
    #[must_use]
    pub fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    /// The canonical JSON object that an entry has as `actor_context.peer`.
    #[must_use]
    pub fn to_json(&self) -> &str {
        &self.json
    }

    fn write_json(&self) -> String {
        let text = |value: &Option<String>| {
            let mut out = Vec::new();
            match value {
                Some(value) => json::write_string(value, &mut out),
                None => out.extend_from_slice(b"null"),
            }
            json::into_string(out)
        };
        let groups = self.groups.as_ref().map_or("null".into(), |groups| {
            format!("[{}]", groups.iter().map(u32::to_string).collect::<Vec<_>>().join(","))
        });
        format!(
            r#"{{"caller":null,"exe":{},"exe_sha256":{},"gid":{},"groups":{groups},"pid":{},"start_time":{},"uid":{},"unit":{},"user":{}}}"#,
            text(&self.exe),
            text(&self.exe_sha256.map(Digest::to_hex)),
            self.gid,
            self.pid.map_or("null".into(), |pid| pid.to_string()),
            text(&self.start_time.map(|time| time.to_string())),
            self.uid,
            text(&self.unit),
            text(&self.user),
        )
    }
}

/// Who may do what, until rules say more: root, the daemon's own user, and the members of the
/// socket's group may append and read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// The effective uid of this process.
    pub daemon_uid: u32,
    /// The group that owns the socket.
    pub socket_gid: u32,
}

impl Access {
    /// Whether `peer` may append entries.
    #[must_use]
    pub fn may_append(&self, peer: &Peer) -> bool {
        self.may_administer(peer)
            || peer.gid == self.socket_gid
            || peer.groups.as_ref().is_some_and(|groups| groups.contains(&self.socket_gid))
    }

    /// Whether `peer` may read entries: whoever may append.
    #[must_use]
    pub fn may_read(&self, peer: &Peer) -> bool {
        self.may_append(peer)
    }

    /// Whether `peer` may do what costs the other callers something: root and the daemon's own user.
    #[must_use]
    pub fn may_administer(&self, peer: &Peer) -> bool {
        peer.uid == 0 || peer.uid == self.daemon_uid
    }
}

enum Pidfd {
    /// Of the process that connected, whatever has its number now.
    Connected(OwnedFd),
    /// The kernel has none to give.
    Unknown,
    Gone,
}

/// A pidfd becomes readable when its process has exited; until then its number is taken.
fn is_alive(pidfd: &OwnedFd) -> bool {
    let mut polled = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    poll(&mut polled, PollTimeout::ZERO) == Ok(0)
}

/// What `/proc/PID` says.
#[derive(Debug, PartialEq, Eq)]
struct Process {
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
    start_ticks: u64,
    program: Program,
    unit: Option<String>,
}

impl Process {
    fn read(pid: i32, hash_program: bool) -> Option<Self> {
        let file = |name: &str| fs::read(format!("/proc/{pid}/{name}")).ok();
        let start_ticks = start_ticks(&file("stat")?)?;
        let (uid, gid, groups) = identity(&file("status")?)?;
        let program = Program::read(pid, hash_program);
        let cgroup = file("cgroup").and_then(|text| String::from_utf8(text).ok());
        let unit = cgroup.as_deref().and_then(unit).map(str::to_owned);
        Some(Process { uid, gid, groups, start_ticks, program, unit })
    }
}

/// Whether strict I-JSON can carry `text`: a file name can hold a noncharacter.
fn is_recordable(text: &str) -> bool {
    let mut quoted = Vec::new();
    json::write_string(text, &mut quoted);
    json::canonicalize(&quoted).is_ok()
}

/// Field 22 of proc_pid_stat(5). The second, the command's name in parentheses, can hold
/// anything, so fields are counted from the last parenthesis.
fn start_ticks(stat: &[u8]) -> Option<u64> {
    let name_end = stat.iter().rposition(|b| *b == b')')?;
    let rest = std::str::from_utf8(&stat[name_end + 1..]).ok()?;
    rest.split_ascii_whitespace().nth(22 - 3)?.parse().ok()
}

/// Effective uid, effective gid and supplementary groups from proc_pid_status(5). The lines
/// begin with tabs only after their names, and a command's name has its line feeds escaped.
fn identity(status: &[u8]) -> Option<(u32, u32, Vec<u32>)> {
    let status = String::from_utf8_lossy(status);
    let line = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
    let effective = |name| line(name)?.split_ascii_whitespace().nth(1)?.parse().ok();
    let groups = line("Groups:")?.split_ascii_whitespace().map(|g| g.parse().ok()).collect::<Option<_>>()?;
    Some((effective("Uid:")?, effective("Gid:")?, groups))
}

/// The system manager's unit from proc_pid_cgroup(5): as systemd itself does it, the first
/// component below the slices. What lies further down is up to the unit, and what lies below
/// `user@N.service` is up to the user, whose manager is not the system's.
pub(crate) fn unit(cgroup: &str) -> Option<&str> {
    let path =
        |hierarchy: &str| cgroup.lines().find_map(|line| line.split_once(hierarchy).map(|(_, path)| path));
    let path = path(":name=systemd:").or_else(|| cgroup.lines().find_map(|line| line.strip_prefix("0::")))?;
    let unit = path.strip_prefix('/')?.split('/').find(|component| !component.ends_with(".slice"))?;
    // systemd puts an underscore before what could be taken for a file of the cgroup's own.
    let unit = unit.strip_prefix('_').unwrap_or(unit);
    let (name, kind) = unit.rsplit_once('.')?;
    let is_unit = UNIT_KINDS.contains(&kind)
        && !name.is_empty()
        && unit.len() < 256
        && unit.bytes().all(|b| b.is_ascii_alphanumeric() || b":-_.\\@".contains(&b));
    (is_unit && !unit.starts_with("user@")).then_some(unit)
}

fn start_time(ticks: u64) -> Timestamp {
    static BOOT_MICROS: OnceLock<i64> = OnceLock::new();
    static TICKS_PER_SECOND: OnceLock<i64> = OnceLock::new();
    let boot = *BOOT_MICROS.get_or_init(|| {
        let micros =
            |clock| clock_gettime(clock).map_or(0, |time| time.tv_sec() * 1_000_000 + time.tv_nsec() / 1_000);
        micros(ClockId::CLOCK_REALTIME) - micros(ClockId::CLOCK_BOOTTIME)
    });
    let per_second = *TICKS_PER_SECOND
        .get_or_init(|| i64::try_from(rustix::param::clock_ticks_per_second()).unwrap_or(100).max(1));
    let since_boot = i64::try_from(ticks).unwrap_or(i64::MAX).saturating_mul(1_000_000 / per_second);
    // No finer than a tick: the digits below would look like knowledge.
    let micros = boot.saturating_add(since_boot);
    Timestamp::from_micros(micros - micros.rem_euclid(10_000))
}

fn user_name(uid: u32) -> Option<String> {
    type Names = HashMap<u32, (Instant, Option<String>)>;
    static NAMES: OnceLock<Mutex<Names>> = OnceLock::new();
    let names = || NAMES.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
    let now = Instant::now();
    if let Some((asked, name)) = names().get(&uid).filter(|(asked, _)| now - *asked < NAMES_LAST) {
        let _ = asked;
        return name.clone();
    }
    // Without the lock: a directory service that hangs holds up this caller alone.
    let user = User::from_uid(Uid::from_raw(uid)).ok().flatten();
    let name = user.map(|user| user.name).filter(|name| is_recordable(name));
    let mut names = names();
    names.retain(|_, (asked, _)| now.saturating_duration_since(*asked) < NAMES_LAST);
    names.insert(uid, (now, name.clone()));
    name
}

/// The group called `name`.
pub(crate) fn group(name: &str) -> Option<Gid> {
    nix::unistd::Group::from_name(name).ok().flatten().map(|group| group.gid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::process::{Command, Stdio};

    fn own(pidfd: Pidfd) -> Peer {
        let pid = i32::try_from(std::process::id()).expect("a pid");
        Peer::describe(Uid::effective().as_raw(), Gid::effective().as_raw(), (pid, pidfd), false)
    }

    #[test]
    fn a_connected_process_is_known_by_the_kernels_word() {
        let (here, _there) = UnixStream::pair().expect("a pair");
        let peer = Peer::read(&here, false).expect("credentials");
        assert_eq!(peer.pid, Some(std::process::id()));
        assert_eq!(peer.uid, Uid::effective().as_raw());
        assert_eq!(peer.exe, std::env::current_exe().expect("exe").to_str().map(str::to_owned));
        assert!(peer.groups.is_some());
        let now =
            i64::try_from(std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_micros()).expect("fits");
        let age = now - peer.start_time.expect("read").as_micros();
        assert!((-20_000..600_000_000).contains(&age), "{age}");
        assert_eq!(json::canonicalize(peer.to_json().as_bytes()).as_deref(), Ok(peer.to_json()));
        let names: Vec<_> =
            json::members(peer.to_json()).map(|(start, end, _)| &peer.to_json()[start..end]).collect();
        let expected =
            ["caller", "exe", "exe_sha256", "gid", "groups", "pid", "start_time", "uid", "unit", "user"];
        assert_eq!(names, expected.map(|name| format!("\"{name}\"")));
        assert_eq!(own(Pidfd::Unknown), peer, "a kernel without SO_PEERPIDFD says the same");
    }

    /// Not a test by itself, but a process that connects and exits, for the next one.
    #[test]
    fn connects_and_exits() {
        if let Some(path) = std::env::var_os("ATTESTD_TEST_CONNECT_TO") {
            UnixStream::connect(path).expect("connected");
        }
    }

    #[test]
    fn a_process_that_is_gone_leaves_only_its_numbers() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("s");
        let listener = UnixListener::bind(&path).expect("bound");
        let mut child = Command::new(std::env::current_exe().expect("exe"))
            .args(["--exact", "caller::tests::connects_and_exits"])
            .env("ATTESTD_TEST_CONNECT_TO", &path)
            .stdout(Stdio::null())
            .spawn()
            .expect("started");
        let (socket, _) = listener.accept().expect("accepted");
        let alive = Peer::read(&socket, false).expect("credentials");
        assert!(child.wait().expect("ran").success());
        let peer = Peer::read(&socket, false).expect("credentials");
        assert_eq!((peer.pid, peer.uid), (Some(child.id()), alive.uid));
        assert_eq!((peer.exe, peer.start_time, peer.groups, peer.unit), (None, None, None, None));
    }

    #[test]
    fn unknown_pids_and_gone_processes_are_null() {
        let peer = Peer::describe(4_000_000_000, 7, (0, Pidfd::Unknown), false);
        assert_eq!(
            peer.to_json(),
            r#"{"caller":null,"exe":null,"exe_sha256":null,"gid":7,"groups":null,"pid":null,"start_time":null,"uid":4000000000,"unit":null,"user":null}"#
        );
        assert_eq!(own(Pidfd::Gone).exe, None);
        let pid = i32::try_from(std::process::id()).expect("a pid");
        let other = Peer::describe(4_000_000_000, 7, (pid, Pidfd::Unknown), false);
        assert_eq!((other.exe, other.groups), (None, None), "another user's process");
    }

    #[test]
    fn a_process_that_changed_its_user_has_no_groups() {
        let (here, _there) = UnixStream::pair().expect("a pair");
        let pidfd = getsockopt(&here, sockopt::PeerPidfd).map_or(Pidfd::Gone, Pidfd::Connected);
        let pid = i32::try_from(std::process::id()).expect("a pid");
        let peer = Peer::describe(4_000_000_000, 7, (pid, pidfd), false);
        assert_eq!(peer.groups, None);
        assert!(!Access { daemon_uid: 1, socket_gid: Gid::effective().as_raw() }.may_append(&peer));
    }

    #[test]
    fn the_commands_name_cannot_shift_the_fields() {
        let stat = b"42 (a) R 1 (b c) S 1 42 42 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 987654 1 2 3";
        assert_eq!(start_ticks(stat), Some(987_654));
        assert_eq!(start_ticks(b"42 (a) S 1"), None);
        let status = b"Name:\tx\\nUid:\t9\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t27 1000 \n";
        assert_eq!(identity(status), Some((2, 6, vec![27, 1000])));
        assert_eq!(identity(b"Uid:\t1\t2\nGid:\t5\t6\nGroups:\t\n"), Some((2, 6, vec![])));
    }

    #[test]
    fn units_are_the_system_managers() {
        let cases = [
            ("0::/system.slice/deploy.service\n", Some("deploy.service")),
            ("0::/system.slice/deploy.service/sub/evil.service\n", Some("deploy.service")),
            ("0::/system.slice/system-getty.slice/getty@tty1.service\n", Some("getty@tty1.service")),
            ("0::/system.slice/docker-0abc.scope\n", Some("docker-0abc.scope")),
            ("0::/init.scope\n", Some("init.scope")),
            ("0::/user.slice/user-1000.slice/session-3.scope\n", Some("session-3.scope")),
            ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/deploy.service\n", None),
            ("0::/user.slice/user-1000.slice/user@1000.service\n", None),
            ("1:name=systemd:/system.slice/old.service\n0::/\n", Some("old.service")),
            ("2:cpu:/system.slice/x.service\n0::/\n", None),
            ("0::/system.slice\n", None),
            ("0::/../other.service\n", None),
            ("0::/lxc/box/system.slice/x.service\n", None),
            ("0::/system.slice/we ird.service\n", None),
            ("0::/system.slice/_cpu.service\n", Some("cpu.service")),
            ("", None),
        ];
        for (cgroup, expected) in cases {
            assert_eq!(unit(cgroup), expected, "{cgroup}");
        }
    }

    #[test]
    fn members_of_the_sockets_group_root_and_the_daemon_have_access() {
        let access = Access { daemon_uid: 900, socket_gid: 50 };
        let peer = |uid, gid, groups: Option<&[u32]>| Peer {
            groups: groups.map(<[u32]>::to_vec),
            ..Peer::describe(uid, gid, (0, Pidfd::Gone), false)
        };
        assert!(access.may_append(&peer(0, 0, None)) && access.may_read(&peer(900, 900, None)));
        assert!(access.may_append(&peer(1000, 50, None)) && access.may_append(&peer(1000, 1, Some(&[50]))));
        assert!(!access.may_append(&peer(1000, 1, Some(&[51]))) && !access.may_read(&peer(1000, 1, None)));
        assert!(!access.may_administer(&peer(1000, 50, None)) && access.may_administer(&peer(900, 1, None)));
    }
}
