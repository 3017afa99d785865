//! How a command that failed tells so: what was being done, what was said, and what to do now.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use nix::unistd::{Gid, Group};

use super::text::printable_message;
use crate::client::{ClientError, ProblemDoc};

/// Why a command did not end as it should.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The daemon refused, could not, or was not there.
    Daemon { doing: String, source: ClientError },
    /// Something on this side could not be read or written.
    Local { doing: String, source: io::Error },
    /// What was asked for makes no sense.
    Usage(String),
    /// Something that was received does not hold.
    Check(String),
    /// A ceremony that ended before its end, and what is to be done with what is left of it.
    Ceremony { what: String, advice: String },
    /// Standard output is gone.
    Output(io::Error),
}

impl From<io::Error> for Failure {
    /// Only for what is written to standard output; anything else wants [`Failure::local`].
    fn from(source: io::Error) -> Self {
        Failure::Output(source)
    }
}

impl Failure {
    /// Turns a client's error into the failure of `doing` something.
    pub(crate) fn daemon(doing: impl Into<String>) -> impl FnOnce(ClientError) -> Failure {
        |source| Failure::Daemon { doing: doing.into(), source }
    }

    pub(crate) fn local(doing: impl Into<String>, source: io::Error) -> Self {
        Failure::Local { doing: doing.into(), source }
    }

    /// Tells the user, and gives the exit code.
    pub(crate) fn report(&self) -> u8 {
        // Whoever closed our output (`| head`) has seen enough, and needs no message.
        if matches!(self, Failure::Output(error) if error.kind() == io::ErrorKind::BrokenPipe) {
            return 0;
        }
        eprintln!("attestctl: {}", printable_message(&self.message()));
        if let Some(remedy) = self.remedy() {
            eprintln!("  {}", printable_message(&remedy));
        }
        self.exit_code()
    }

    fn exit_code(&self) -> u8 {
        match self {
            Failure::Check(_) | Failure::Ceremony { .. } => 1,
            Failure::Local { .. } | Failure::Usage(_) | Failure::Output(_) => 2,
            Failure::Daemon { source, .. } => match source {
                ClientError::Refused(_) => 1,
                ClientError::Protocol(_) => 2,
                ClientError::Unreachable { .. } | ClientError::Io(_) => 3,
                ClientError::Unavailable(_) => 4,
            },
        }
    }

    fn message(&self) -> String {
        match self {
            Failure::Daemon { doing, source } => match source {
                ClientError::Unreachable { source: cause, .. } => {
                    format!("couldn't {doing}: {source}: {}", plain(cause))
                }
                ClientError::Io(_) => {
                    format!("couldn't {doing}: the daemon closed the connection before it had answered")
                }
                _ => format!("couldn't {doing}: {source}"),
            },
            Failure::Local { doing, source } => format!("couldn't {doing}: {}", plain(source)),
            Failure::Usage(what) | Failure::Check(what) | Failure::Ceremony { what, .. } => what.clone(),
            Failure::Output(source) => format!("couldn't write to standard output: {}", plain(source)),
        }
    }

    fn remedy(&self) -> Option<String> {
        let source = match self {
            Failure::Daemon { source, .. } => source,
            Failure::Ceremony { advice, .. } => return Some(advice.clone()),
            _ => return None,
        };
        match source {
            ClientError::Unreachable { socket, source } => Some(reach(socket, source)),
            ClientError::Refused(problem) | ClientError::Unavailable(problem) => remedy(problem),
            ClientError::Protocol(_) => {
                Some("is this attestd's socket, and attestctl of the same version?".into())
            }
            ClientError::Io(_) => Some(
                "what was sent may or may not be recorded; its log says more: `journalctl -u attestd`".into(),
            ),
        }
    }
}

/// An error without the number that the standard library puts behind it.
fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut chars = text.chars();
    chars.next().map(|first| first.to_lowercase().chain(chars).collect()).unwrap_or_default()
}

fn reach(socket: &Path, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            // The directory may hide the socket, and with it the name of the group.
            let group = std::fs::metadata(socket)
                .ok()
                .and_then(|meta| Group::from_gid(Gid::from_raw(meta.gid())).ok().flatten())
                .map_or_else(|| "GROUP".to_owned(), |group| group.name);
            format!(
                "only members of the socket's group may connect: `sudo usermod -aG {group} $USER`, then log in again"
            )
        }
        io::ErrorKind::NotFound => {
            "is the daemon running (`systemctl status attestd`)? another socket: --socket or ATTESTD_SOCKET"
                .into()
        }
        _ => "is the daemon running? `systemctl status attestd`".into(),
    }
}

/// What to do about a refusal, where the daemon's words do not say it themselves.
fn remedy(problem: &ProblemDoc) -> Option<String> {
    let text = match problem.code.as_str() {
        "outcome-unknown" => {
            let id = problem.entry_id.as_deref()?;
            return Some(format!("ask again later: `attestctl get {id}`"));
        }
        "caller-not-allowed" => {
            "without rules run it as a member of the socket's group, as the daemon's user, or as root; with rules as one of their callers"
        }
        "invariant-6-quorum" => {
            "propose it with `attestctl propose` (rules: `attestctl rules apply --propose`), have it approved, and seal it"
        }
        "token-unavailable" => "nothing was recorded; look at `attestctl status` and `journalctl -u attestd`",
        "storage-full" => "nothing was recorded; make room on the ledger's disk",
        "clock-jumped" => {
            "see whether the clock is right; if it is, `attestctl clock confirm`, else set it right"
        }
        "entry-id-conflict" => "`attestctl get` with that id shows what was recorded under it",
        "internal" => "the log says more: `journalctl -u attestd`",
        _ => {
            return problem.retry_after.map(|seconds| format!("try again in {seconds} s"));
        }
    };
    Some(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(code: &str) -> Box<ProblemDoc> {
        Box::new(ProblemDoc {
            code: code.into(),
            title: "the title".into(),
            status: 400,
            detail: Some("evil \u{1b}[2J".into()),
            pointer: Some("/a".into()),
            line: None,
            sequence_number: None,
            entry_id: Some("the-id".into()),
            retry_after: Some(7),
        })
    }

    #[test]
    fn each_failure_has_its_exit_code() {
        let daemon = |source| Failure::daemon("append")(source);
        let gone = || io::Error::from(io::ErrorKind::NotFound);
        let cases = [
            (daemon(ClientError::Refused(problem("x"))), 1),
            (Failure::Check("no".into()), 1),
            (Failure::Usage("no".into()), 2),
            (Failure::local("read", gone()), 2),
            (daemon(ClientError::Unreachable { socket: "/nowhere".into(), source: gone() }), 3),
            (daemon(ClientError::Io(gone())), 3),
            (daemon(ClientError::Unavailable(problem("queue-full"))), 4),
            (Failure::Output(io::ErrorKind::BrokenPipe.into()), 0),
        ];
        for (failure, code) in cases {
            assert_eq!(failure.report(), code, "{failure:?}");
        }
    }

    #[test]
    fn a_refusal_says_what_was_done_what_was_said_and_what_to_do() {
        let failure = Failure::daemon("append the event")(ClientError::Unavailable(problem("queue-full")));
        assert_eq!(
            printable_message(&failure.message()),
            "couldn't append the event: the title: evil \\u001b[2J (queue-full at /a)"
        );
        assert_eq!(failure.remedy().as_deref(), Some("try again in 7 s"));
        let failure = Failure::daemon("append")(ClientError::Unavailable(problem("outcome-unknown")));
        assert_eq!(failure.remedy().as_deref(), Some("ask again later: `attestctl get the-id`"));
    }

    #[test]
    fn an_unreachable_daemon_is_named_by_its_socket() {
        let source = io::Error::from_raw_os_error(2);
        let failure =
            Failure::daemon("append")(ClientError::Unreachable { socket: "/no/sock".into(), source });
        assert_eq!(
            failure.message(),
            "couldn't append: no connection to /no/sock: no such file or directory"
        );
        assert!(failure.remedy().is_some_and(|remedy| remedy.contains("systemctl status attestd")));
    }
}
