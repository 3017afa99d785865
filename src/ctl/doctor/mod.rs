//! `attestctl doctor`: looks at everything that a ledger needs, and says of each whether it is in order
//! and what to do where it is not.
//!
//! ```text
//! ok       schema       version 2
//! wrong    pin          the PIN file /etc/attestd/pin has mode 0644, so others than its owner can use it: …
//! ```
//!
//! It changes nothing, save that `--append` appends a test event. Where a daemon runs it does not log in to
//! the token and takes the daemon's word for that; and it connects to no socket behind which there is no
//! daemon, because a service manager would start one.

mod host;
mod ledger;
mod live;
mod token;

use std::path::Path;

use serde::Serialize;

use super::cli::Doctor;
use super::text::{Style, printable_message, terminal_width, wrapped};
use super::{Failure, Outcome, print, print_line, spinner};
use crate::client::DEFAULT_SOCKET;
use crate::config::Config;
use crate::daemon::Fault;
use crate::daemon::checkup::Examined;

/// How something stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    Ok,
    /// It works, or could not be looked at, and somebody should know.
    Warning,
    Wrong,
}

/// What was found of one thing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Finding {
    /// A name for programs, which stays.
    what: &'static str,
    level: Level,
    said: String,
    /// What to do.
    remedy: Option<String>,
}

impl Finding {
    fn ok(what: &'static str, said: impl Into<String>) -> Self {
        Finding { what, level: Level::Ok, said: said.into(), remedy: None }
    }

    fn warning(what: &'static str, said: impl Into<String>, remedy: impl Into<String>) -> Self {
        Finding { what, level: Level::Warning, said: said.into(), remedy: Some(remedy.into()) }
    }

    fn wrong(what: &'static str, said: impl Into<String>, remedy: impl Into<String>) -> Self {
        Finding { what, level: Level::Wrong, said: said.into(), remedy: Some(remedy.into()) }
    }

    /// A fault of the daemon's as a finding, with the remedy that it knows.
    fn fault(what: &'static str, fault: &Fault) -> Self {
        let remedy = fault.remedy().unwrap_or_else(|| commonly(what).to_owned());
        Finding { what, level: Level::Wrong, said: fault.to_string(), remedy: Some(remedy) }
    }
}

/// What mostly helps where nothing better is known.
fn commonly(what: &str) -> &'static str {
    match what {
        "pin" | "latch" => "\"The PIN\" in docs/operations.md says where it can be kept, and how",
        "key" => "check `token.uri`: `pkcs11-tool --module M --login -O` lists what is on the token",
        "module" | "token" | "flags" | "login" | "sign" => {
            "look at the token by its own tools; plug it in again; its vendor knows what the answer means"
        }
        "ledger" | "schema" | "integrity" | "entries" | "reserved" => {
            "leave the file as it is, and look at its disk and at who can write to it"
        }
        _ => "see \"When it refuses or stops\" in docs/operations.md",
    }
}

/// What is examined, and what is known of it before anything is.
struct Patient<'a> {
    config: &'a Config,
    config_path: &'a Path,
    ledger: Result<Examined, Fault>,
    /// Whose the ledger is, who therefore is the daemon's user.
    owner: Option<u32>,
    /// Who looks.
    uid: u32,
    presence: live::Presence,
}

impl Patient<'_> {
    /// Whether what is made here would be the daemon's.
    fn is_daemons_user(&self) -> bool {
        self.owner.is_none_or(|owner| owner == self.uid)
    }
}

pub(super) async fn run(socket: &Path, args: &Doctor) -> Result<Outcome, Failure> {
    let config = Config::load(&args.config).map_err(|error| Failure::Usage(error.to_string()))?;
    let bar = spinner("looking");
    let owner = std::fs::metadata(&config.ledger.path).ok().map(|metadata| host::uid_of(&metadata));
    let patient = Patient {
        ledger: Examined::open(&config.ledger.path),
        presence: live::Presence::of(&config.ledger.path),
        config: &config,
        config_path: &args.config,
        owner,
        uid: nix::unistd::geteuid().as_raw(),
    };
    // The default of the option is not better than the configuration.
    let socket = if socket == Path::new(DEFAULT_SOCKET) { &config.server.socket } else { socket };
    let mut findings = vec![host::user(&patient)];
    findings.extend(ledger::look(&patient));
    findings.extend(host::disk(&patient));
    findings.extend(host::access(&patient));
    findings.push(host::clock(&patient));
    findings.extend(live::look(&patient, socket).await);
    findings.extend(token::look(&patient));
    let mut caller = None;
    if args.append {
        let (finding, peer) = live::append(socket).await;
        findings.push(finding);
        caller = peer;
    }
    bar.finish_and_clear();
    let is_wrong = findings.iter().any(|finding| finding.level == Level::Wrong);
    if args.json {
        let report = serde_json::json!({ "ok": !is_wrong, "findings": findings, "caller": caller });
        print_line(report.to_string().as_bytes())?;
    } else {
        print(&words(&findings, caller.as_ref(), Style::of_stdout(), terminal_width()))?;
    }
    Ok(if is_wrong { Outcome::Wrong } else { Outcome::Done })
}

const LEVEL_WIDTH: usize = 9;
const WHAT_WIDTH: usize = 13;

fn words(
    findings: &[Finding],
    caller: Option<&serde_json::Value>,
    style: Style,
    width: Option<usize>,
) -> String {
    let indent = LEVEL_WIDTH + WHAT_WIDTH;
    let room = width.map(|width| width.saturating_sub(indent).max(20));
    let mut out = String::new();
    for Finding { what, level, said, remedy } in findings {
        let level = match level {
            Level::Ok => style.good(&format!("{:<LEVEL_WIDTH$}", "ok")),
            Level::Warning => style.bold(&format!("{:<LEVEL_WIDTH$}", "warning")),
            Level::Wrong => style.bad(&format!("{:<LEVEL_WIDTH$}", "wrong")),
        };
        let said = wrapped(&printable_message(said), room, indent);
        out.push_str(&format!("{level}{what:<WHAT_WIDTH$}{said}\n"));
        if let Some(remedy) = remedy {
            let remedy = wrapped(&format!("→ {}", printable_message(remedy)), room, indent + 2);
            out.push_str(&format!("{:indent$}{remedy}\n", ""));
        }
    }
    if let Some(caller) = caller {
        out.push_str("\nwhat the kernel said of the caller, as the ledger has it:\n");
        for (name, value) in caller.as_object().into_iter().flatten() {
            let value = match value.as_str() {
                Some(text) => text.to_owned(),
                None => value.to_string(),
            };
            out.push_str(&format!("  {name:<12}{}\n", printable_message(&value)));
        }
    }
    let count = |level| findings.iter().filter(|finding| finding.level == level).count();
    let (warnings, wrong) = (count(Level::Warning), count(Level::Wrong));
    let summary = format!("{wrong} wrong, {warnings} to be looked at, {} in order", count(Level::Ok));
    out.push_str(&format!("\n{}\n", if wrong > 0 { style.bad(&summary) } else { style.bold(&summary) }));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_finding_is_a_line_and_what_to_do_is_below_it() {
        let findings = [
            Finding::ok("schema", "version 2"),
            Finding::warning("anchor", "none is configured", "set `anchor.file`"),
            Finding::wrong("pin", "evil \u{1b}[2J", "chmod"),
        ];
        let peer = serde_json::json!({ "uid": 7, "exe": "/bin/a\u{202e}", "unit": null });
        assert_eq!(
            words(&findings, Some(&peer), Style::plain(), None),
            "ok       schema       version 2\n\
             warning  anchor       none is configured\n                      → set `anchor.file`\n\
             wrong    pin          evil \\u001b[2J\n                      → chmod\n\
             \nwhat the kernel said of the caller, as the ledger has it:\n  exe         /bin/a\\u202e\n  uid         7\n  unit        null\n\
             \n1 wrong, 1 to be looked at, 1 in order\n"
        );
    }
}
