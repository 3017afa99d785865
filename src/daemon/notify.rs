//! What the service manager is told of the daemon, as sd_notify(3) has it.
//!
//! It sends datagrams of `NAME=value` lines to the socket that `NOTIFY_SOCKET` names, and nothing
//! where there is none. It decides nothing: [`super::serve`] says what has happened, and
//! [`super::watchdog`] whether the daemon is alive.
//!
//! ```text
//! READY=1
//! STATUS=taking entries; 1204 in the ledger
//! ```

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// How long a service manager that does not read may hold us up.
const SEND_WITHIN: Duration = Duration::from_secs(2);
/// What a start that goes on asks for each time; it says so more often than that.
const MORE_TIME: Duration = Duration::from_secs(120);

/// The way to the service manager, where there is one.
#[derive(Debug, Default)]
pub struct Notifier {
    socket: Option<UnixDatagram>,
    watchdog: Option<Duration>,
}

impl Notifier {
    /// To whom `NOTIFY_SOCKET` names, watched as `WATCHDOG_USEC` and `WATCHDOG_PID` say. What cannot be
    /// used is logged and left: the daemon runs without.
    #[must_use]
    pub fn from_environment() -> Self {
        let socket = std::env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()).and_then(|name| {
            connect(&name)
                .inspect_err(
                    |error| tracing::warn!(%error, socket = ?name, "couldn't reach the service manager"),
                )
                .ok()
        });
        let number = |name| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
        let is_ours = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let watchdog = number("WATCHDOG_USEC").filter(|usec| *usec > 0 && is_ours);
        Notifier { socket, watchdog: watchdog.map(Duration::from_micros) }
    }

    /// How often the service manager wants to hear [`Notifier::alive`], at least.
    #[must_use]
    pub fn watchdog(&self) -> Option<Duration> {
        self.watchdog.filter(|_| self.socket.is_some())
    }

    /// What the daemon is doing, in plain words for `systemctl status`.
    pub fn status(&self, status: &str) {
        self.send(&format!("STATUS={}", one_line(status)));
    }

    /// The start is still at work, at `status`.
    pub fn starting(&self, status: &str) {
        self.send(&format!("EXTEND_TIMEOUT_USEC={}\nSTATUS={}", MORE_TIME.as_micros(), one_line(status)));
    }

    /// The daemon does all that it is there for: after the start, and after a reload.
    pub fn ready(&self, status: &str) {
        self.send(&format!("READY=1\nSTATUS={}", one_line(status)));
    }

    /// The configuration is being read again, until [`Notifier::ready`].
    pub fn reloading(&self) {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default();
        self.send(&format!(
            "RELOADING=1\nMONOTONIC_USEC={}\nSTATUS=reading the rules again",
            now.as_micros()
        ));
    }

    /// The daemon is about to end.
    pub fn stopping(&self, status: &str) {
        self.send(&format!("STOPPING=1\nSTATUS={}", one_line(status)));
    }

    /// The daemon was found to work.
    pub fn alive(&self, status: &str) {
        self.send(&format!("WATCHDOG=1\nSTATUS={}", one_line(status)));
    }

    fn send(&self, message: &str) {
        let Some(socket) = &self.socket else { return };
        if let Err(error) = socket.send(message.as_bytes()) {
            tracing::warn!(%error, "couldn't tell the service manager");
        }
    }
}

/// `name` is a path, or with `@` in front a name without a file.
fn connect(name: &OsStr) -> io::Result<UnixDatagram> {
    let address = match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        [b'/', ..] => SocketAddr::from_pathname(name)?,
        _ => return Err(io::Error::new(io::ErrorKind::Unsupported, "neither a path nor an abstract name")),
    };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    socket.set_write_timeout(Some(SEND_WITHIN))?;
    Ok(socket)
}

/// A line feed would begin a line of the protocol.
fn one_line(text: &str) -> String {
    text.replace(char::is_control, " ")
}
