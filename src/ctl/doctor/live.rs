//! The daemon: whether one runs on the ledger, in what, and what it says of itself.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::{Finding, Patient};
use crate::caller::unit;
use crate::client::{Client, ClientError};
use crate::store::{KeptOut, StoreError, keep_out};

/// The smallest event that says what it is.
const EVENT: &str = r#"{"event_type":"ACTION","action_type":"doctor.test","action_payload":{"by":"attestctl doctor --append"},"execution_status":"SUCCESS","actor_type":"SYSTEM"}"#;

/// Whether a daemon runs on the ledger.
pub(super) enum Presence {
    /// None does, and none begins to for as long as this is kept: with a wrong PIN two logins at a time would use
    /// up two tries.
    Away(#[allow(dead_code, reason = "it is there to be kept")] KeptOut),
    /// One does, with this process number where that is known.
    Here(Option<u32>),
    /// It can't be told.
    Unknown(String),
}

impl Presence {
    pub(super) fn of(ledger: &Path) -> Self {
        match keep_out(ledger) {
            Ok(kept) => Presence::Away(kept),
            Err(StoreError::Locked(lock)) => {
                let inode = lock.metadata().map(|metadata| metadata.ino()).unwrap_or(0);
                let locks = std::fs::read_to_string("/proc/locks").unwrap_or_default();
                Presence::Here(holder(&locks, inode))
            }
            Err(error) => Presence::Unknown(error.to_string()),
        }
    }

    pub(super) fn is_away(&self) -> bool {
        matches!(self, Presence::Away(_))
    }

    pub(super) fn is_present(&self) -> bool {
        matches!(self, Presence::Here(_))
    }
}

/// Who holds the lock on the file `inode`, from proc_locks(5).
fn holder(locks: &str, inode: u64) -> Option<u32> {
    locks.lines().find_map(|line| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let [_, "FLOCK", _, "WRITE", pid, file, ..] = words[..] else { return None };
        let is_it = file.rsplit(':').next().and_then(|inode| inode.parse().ok()) == Some(inode);
        pid.parse().ok().filter(|pid| is_it && *pid > 0)
    })
}

pub(super) async fn look(patient: &Patient<'_>, socket: &Path) -> Vec<Finding> {
    let pid = match &patient.presence {
        Presence::Here(pid) => *pid,
        Presence::Away(_) => {
            return vec![Finding::warning(
                "daemon",
                "does not run on this ledger",
                "`systemctl start attestd`, or `systemctl status attestd` to see why it ended",
            )];
        }
        Presence::Unknown(why) => {
            return vec![Finding::warning(
                "daemon",
                format!("whether one runs can't be told: {why}"),
                "run the doctor as the daemon's user",
            )];
        }
    };
    let mut findings = vec![word(pid, socket).await];
    findings.extend(pid.map(surroundings).unwrap_or_default());
    findings
}

/// What the daemon says of itself.
async fn word(pid: Option<u32>, socket: &Path) -> Finding {
    let runs = match pid {
        Some(pid) => format!("runs as process {pid}"),
        None => "runs".to_owned(),
    };
    let ready = match Client::connect(socket).await {
        Ok(mut client) => client.get_json("/readyz").await.map(drop),
        Err(error) => Err(error),
    };
    match ready {
        Ok(()) => Finding::ok("daemon", format!("{runs} and takes entries")),
        Err(ClientError::Refused(problem) | ClientError::Unavailable(problem)) => Finding::wrong(
            "daemon",
            format!("{runs} and takes no entries: {problem}"),
            match problem.code.as_str() {
                "token-unavailable" => "see `token`; it comes back by itself once the token does",
                "clock-jumped" => "see that the clock is right, then `attestctl clock confirm`",
                "storage-full" => "make room on the ledger's disk",
                "queue-full" => "wait; the token is slower than the clients",
                _ => "its log says more: `journalctl -u attestd`",
            },
        ),
        Err(error) => Finding::wrong(
            "daemon",
            format!("{runs}, but {}", crate::sequencer::chain(&error)),
            "does it listen on another socket? Compare `server.socket`, --socket and ATTESTD_SOCKET; else its log says more",
        ),
    }
}

/// In what it runs, as the kernel and the service manager have it.
fn surroundings(pid: u32) -> Vec<Finding> {
    let read = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
    let cgroup = read("cgroup");
    let unit = unit(&cgroup).filter(|unit| unit.ends_with(".service"));
    let mut findings = vec![match unit {
        Some(unit) => Finding::ok("unit", format!("it is {unit} of the system's service manager")),
        None => Finding::warning(
            "unit",
            "it is no service of systemd's: nobody starts it again, and nothing confines it",
            "use attestd.service, or see that something like it does both",
        ),
    }];
    findings.push(sandbox(&read("status"), &read("uid_map")));
    if let Some(unit) = unit {
        findings.extend(managed(unit));
    }
    findings
}

fn sandbox(status: &str, uid_map: &str) -> Finding {
    let of = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
    // With users of its own it would know no caller: each is 65534 to it.
    if uid_map != std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default() {
        return Finding::wrong(
            "sandbox",
            "it has another view of user ids than this program: callers are not who they seem to it",
            "PrivateUsers= must stay off for it; if it runs in a container, run the doctor in there",
        );
    }
    let (privileges, filter, capabilities) = (of("NoNewPrivs"), of("Seccomp"), of("CapEff"));
    let is_confined = privileges == Some("1") && filter == Some("2");
    let said = format!(
        "new privileges {}, system calls {}, capabilities {}",
        if privileges == Some("1") { "forbidden" } else { "possible" },
        if filter == Some("2") { "filtered" } else { "unfiltered" },
        capabilities.unwrap_or("unknown")
    );
    if is_confined {
        Finding::ok("sandbox", said)
    } else {
        Finding::warning(
            "sandbox",
            said,
            "the module of the token runs in it: use the unit that came with it, `systemctl cat attestd.service`",
        )
    }
}

/// What the service manager is told to do for it.
fn managed(unit: &str) -> Vec<Finding> {
    let asked = ["WatchdogUSec", "LoadCredential", "LoadCredentialEncrypted", "MemorySwapMax"];
    let output = Command::new("systemctl").args(["show", "--property", &asked.join(","), unit]).output();
    match output {
        Ok(output) if output.status.success() => settings(&String::from_utf8_lossy(&output.stdout)),
        _ => vec![Finding::warning(
            "watchdog",
            "systemctl did not say",
            "look yourself: `systemctl show attestd`",
        )],
    }
}

fn settings(shown: &str) -> Vec<Finding> {
    let of = |name: &str| {
        let values = shown.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        values.filter(|value| !value.is_empty()).map(str::to_owned).collect::<Vec<String>>()
    };
    let watchdog = of("WatchdogUSec").join(" ");
    let credentials: Vec<String> = [of("LoadCredential"), of("LoadCredentialEncrypted")]
        .concat()
        .iter()
        // Its name; where it lies is nobody's business here.
        .filter_map(|credential| credential.split([':', ' ']).next().map(str::to_owned))
        .collect();
    vec![
        if matches!(watchdog.as_str(), "" | "0" | "infinity") {
            Finding::warning(
                "watchdog",
                "none: a token or a disk that hangs is not noticed",
                "set WatchdogSec=60",
            )
        } else {
            Finding::ok("watchdog", format!("every {watchdog}"))
        },
        if credentials.is_empty() {
            Finding::ok("credentials", "none are passed to it")
        } else {
            Finding::ok("credentials", credentials.join(", "))
        },
    ]
}

/// Appends a test event: what came of it, and what the ledger now says of this process.
pub(super) async fn append(socket: &Path) -> (Finding, Option<Value>) {
    let appended = match Client::connect(socket).await {
        Ok(mut client) => client.append(EVENT.as_bytes().into()).await,
        Err(error) => Err(error),
    };
    match appended {
        Ok(appended) => {
            let entry: Value = serde_json::from_slice(&appended.line).unwrap_or_default();
            let said = format!(
                "entry {} is sealed, as {}; it stays in the ledger",
                entry["sequence_number"],
                entry["actor_id"].as_str().unwrap_or_default()
            );
            (Finding::ok("append", said), Some(entry["actor_context"]["peer"].clone()))
        }
        Err(error) => {
            let remedy = match &error {
                ClientError::Refused(problem) if problem.code == "caller-not-allowed" => {
                    "as whom this runs, the rules or the socket's group let nobody append: `attestctl rules show`"
                }
                ClientError::Unreachable { .. } => "is the daemon running, and is this its socket?",
                _ => "see `daemon`",
            };
            (Finding::wrong("append", crate::sequencer::chain(&error), remedy), None)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ctl::doctor::Level;

    #[test]
    fn the_holder_of_a_lock_is_found_by_its_file() {
        let locks = "1: POSIX  ADVISORY  WRITE 70 00:1f:4711 0 EOF\n2: FLOCK  ADVISORY  WRITE 71 08:01:4712 0 EOF\n\
                     3: FLOCK  ADVISORY  WRITE 72 08:01:4711 0 EOF\n3: -> FLOCK  ADVISORY  WRITE 73 08:01:4711 0 EOF\n";
        assert_eq!(holder(locks, 4711), Some(72));
        assert_eq!(holder(locks, 4712), Some(71));
        assert_eq!(holder(locks, 471), None);
        assert_eq!(holder("4: FLOCK  ADVISORY  WRITE -1 08:01:5 0 EOF\n", 5), None);
    }

    #[test]
    fn what_the_service_manager_says_is_read() {
        let shown = "WatchdogUSec=1min\nLoadCredential=\nLoadCredentialEncrypted=attestd.pin:/etc/credstore.encrypted/attestd.pin\n";
        let said: Vec<_> = settings(shown).into_iter().map(|found| (found.level, found.said)).collect();
        assert_eq!(said, [(Level::Ok, "every 1min".to_owned()), (Level::Ok, "attestd.pin".to_owned())]);
        assert_eq!(settings("WatchdogUSec=infinity\n")[0].level, Level::Warning);
    }

    #[test]
    fn the_sandbox_is_the_kernels_word() {
        let map = std::fs::read_to_string("/proc/self/uid_map").expect("readable");
        let status = "Name:\tattestd\nNoNewPrivs:\t1\nSeccomp:\t2\nCapEff:\t0000000000000000\n";
        assert_eq!(sandbox(status, &map).level, Level::Ok);
        assert_eq!(sandbox("NoNewPrivs:\t1\nSeccomp:\t0\n", &map).level, Level::Warning);
        assert_eq!(sandbox(status, "         0       1000          1\n").level, Level::Wrong);
    }
}
