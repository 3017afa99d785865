//! The socket: how it comes into being, and who gets a connection.
//!
//! It counts connections in all and by caller. One too many is told so and closed, so that a
//! client can tell a full daemon from a dead one. What happens on a connection is
//! [`super::connection`]'s.

use std::collections::HashMap;
use std::io;
use std::os::fd::AsFd as _;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr};
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::{Gid, Uid};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{debug, error, info, warn};

use super::connection::{self, ConnectionId, Timeouts};
use super::problem::Problem;
use crate::caller::{Access, Peer, group};
use crate::config;
use crate::ledger::code::Code;

/// Connections that the kernel holds until we accept them; it caps the number at
/// `net.core.somaxconn`. A client that finds the backlog full fails or hangs instead of being
/// told, so this is several times the connections that we serve.
const BACKLOG: i32 = 4096;

/// Connections too many that are seen off with patience at once. Each holds a descriptor for
/// up to a second, so beyond this number they are answered and closed without waiting.
const REFUSALS: usize = 256;

/// Between two attempts when there is no descriptor left: other connections must end first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody answers on it.
    #[error("another daemon listens on {}", .0.display())]
    InUse(PathBuf),
    /// What is there is nobody's socket, and not ours to remove.
    #[error("{} exists and is not a socket", .0.display())]
    NotASocket(PathBuf),
    /// `server.socket_group` names nobody.
    #[error("there is no group {0:?}, which server.socket_group names")]
    UnknownGroup(String),
    /// The system refused.
    #[error("couldn't {action} {}: {source}", path.display())]
    System {
        /// What was being done.
        action: &'static str,
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Makes the socket as `config` describes it, and tells who it lets in. A socket that a dead
/// daemon left is replaced; anything else in its place is left alone. At no moment can somebody
/// connect whom `socket_mode` and `socket_group` keep out.
///
/// # Errors
/// [`BindError`]; nothing was made then, or what was made is a socket on which nobody listens.
pub fn bind(config: &config::Server) -> Result<(UnixListener, Access), BindError> {
    let path = config.socket.as_path();
    let failed =
        |action| move |source: io::Error| BindError::System { action, path: path.to_owned(), source };
    let group = socket_group(config)?;
    make_way(path)?;

    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = nix::sys::socket::socket(AddressFamily::Unix, SockType::Stream, flags, None)
        .map_err(|e| failed("make the socket")(e.into()))?;
    // Linux gives the file the mode that the socket had, less the umask (unix(7) does not say,
    // `unix_bind_bsd` does): the file is private from its first moment, and connecting needs
    // `listen`, which comes last.
    fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR).map_err(|e| failed("restrict")(e.into()))?;
    let address = UnixAddr::new(path).map_err(|e| failed("use the path")(e.into()))?;
    nix::sys::socket::bind(socket.as_raw_fd(), &address).map_err(|e| failed("bind")(e.into()))?;
    nix::unistd::chown(path, None, group).map_err(|e| failed("set the group of")(e.into()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(config.socket_mode))
        .map_err(failed("set the mode of"))?;
    let socket_gid = std::fs::symlink_metadata(path).map_err(failed("look at"))?.gid();
    Backlog::new(BACKLOG)
        .and_then(|backlog| nix::sys::socket::listen(&socket, backlog))
        .map_err(|e| failed("listen on")(e.into()))?;
    let listener = UnixListener::from_std(socket.into()).map_err(failed("listen on"))?;
    Ok((listener, Access { daemon_uid: Uid::effective().as_raw(), socket_gid }))
}

/// Another listener on the same socket, for when the first is done.
///
/// # Errors
/// When there is no descriptor left.
pub fn again(listener: &UnixListener) -> io::Result<UnixListener> {
    let socket = listener.as_fd().try_clone_to_owned()?;
    UnixListener::from_std(socket.into())
}

/// The group that is to own the socket; `None` for the daemon's own.
///
/// # Errors
/// [`BindError::UnknownGroup`].
pub fn socket_group(config: &config::Server) -> Result<Option<Gid>, BindError> {
    match config.socket_group.as_str() {
        "" => Ok(None),
        name => group(name).map(Some).ok_or_else(|| BindError::UnknownGroup(name.to_owned())),
    }
}

/// Removes a socket on which nobody listens any more.
fn make_way(path: &Path) -> Result<(), BindError> {
    let failed =
        |action| move |source: io::Error| BindError::System { action, path: path.to_owned(), source };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("look at")(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(BindError::NotASocket(path.to_owned()));
        }
        Ok(_) => {}
    }
    match BlockingStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(failed("remove the stale socket"))
        }
        Ok(_) => Err(BindError::InUse(path.to_owned())),
        Err(error) => Err(failed("find out who listens on")(error)),
    }
}

/// Raises the soft limit of open descriptors to the hard one, and returns it. The soft limit is
/// low for the sake of programs that use select(2), which we do not.
///
/// # Errors
/// What the system said.
pub fn raise_nofile_limit() -> io::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(hard)
}

/// The limits of connections, all from `[server]`.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at once.
    pub max_connections: usize,
    /// Connections at once of one uid.
    pub max_connections_per_caller: usize,
    /// From the first byte of a request's head to its last.
    pub header_timeout: Duration,
    /// Between requests, and for an answer that the client does not read.
    pub idle_timeout: Duration,
    /// For requests in flight, after being told to stop.
    pub shutdown_timeout: Duration,
}

impl From<&config::Server> for Limits {
    fn from(config: &config::Server) -> Self {
        let count = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        Limits {
            max_connections: count(config.max_connections),
            max_connections_per_caller: count(config.max_connections_per_caller),
            header_timeout: Duration::from_secs(config.header_timeout_seconds),
            idle_timeout: Duration::from_secs(config.idle_timeout_seconds),
            shutdown_timeout: Duration::from_secs(config.shutdown_timeout_seconds),
        }
    }
}

/// How many connections there are.
#[derive(Debug, Default)]
pub struct Connections {
    by_caller: Mutex<HashMap<u32, usize>>,
    current: AtomicUsize,
    refusing: AtomicUsize,
    refused: AtomicUsize,
}

impl Connections {
    /// Connections that are being served.
    #[must_use]
    pub fn current(&self) -> usize {
        self.current.load(Relaxed)
    }

    /// Connections that were one too many, since the start.
    #[must_use]
    pub fn refused(&self) -> usize {
        self.refused.load(Relaxed)
    }

    fn admit(self: &Arc<Self>, uid: u32, limits: &Limits) -> Result<Slot, Problem> {
        let mut by_caller = self.by_caller.lock().unwrap_or_else(PoisonError::into_inner);
        let total: usize = self.current.load(Relaxed);
        let own = by_caller.get(&uid).copied().unwrap_or(0);
        let too_many = if total >= limits.max_connections {
            format!("all {} connections are in use", limits.max_connections)
        } else if own >= limits.max_connections_per_caller {
            format!("uid {uid} has {own} connections open, which is all that one caller may have")
        } else {
            by_caller.insert(uid, own + 1);
            self.current.store(total + 1, Relaxed);
            return Ok(Slot { connections: Arc::clone(self), uid });
        };
        Err(Problem::new(Code::TooManyConnections, too_many))
    }
}

/// A place among the connections.
struct Slot {
    connections: Arc<Connections>,
    uid: u32,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut by_caller = self.connections.by_caller.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = by_caller.get_mut(&self.uid) {
            *own -= 1;
            if *own == 0 {
                by_caller.remove(&self.uid);
            }
        }
        self.connections.current.fetch_sub(1, Relaxed);
    }
}

/// Serves `router` on `listener` until `shutdown` is ready; then accepts no more, lets requests
/// in flight be answered for at most `limits.shutdown_timeout`, and drops what is left.
/// Whether callers' programs are hashed is asked for each connection.
/// Every request has `Arc<Peer>` and [`ConnectionId`] in its extensions.
pub async fn serve(
    listener: UnixListener,
    router: Router,
    limits: Limits,
    connections: Arc<Connections>,
    hash_programs: impl Fn() -> bool,
    shutdown: impl Future<Output = ()>,
) {
    let (stop, stopped) = watch::channel(false);
    let timeouts = Timeouts { header: limits.header_timeout, idle: limits.idle_timeout };
    let mut tasks = JoinSet::new();
    let mut next_id = 0;
    let mut accepting = true;
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut shutdown => break,
            Some(ended) = tasks.join_next() => {
                report(ended);
                continue;
            }
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                if std::mem::replace(&mut accepting, false) {
                    error!(%error, "couldn't accept a connection; trying again");
                }
                tokio::select! {
                    () = &mut shutdown => break,
                    () = tokio::time::sleep(ACCEPT_PAUSE) => continue,
                }
            }
        };
        if !std::mem::replace(&mut accepting, true) {
            info!("accepting connections again");
        }
        let uid = match stream.peer_cred() {
            Ok(credentials) => credentials.uid(),
            Err(error) => {
                warn!(%error, "a connection without credentials");
                continue;
            }
        };
        match connections.admit(uid, &limits) {
            Ok(slot) => {
                let id = ConnectionId(next_id);
                next_id += 1;
                let (router, stopped) = (router.clone(), stopped.clone());
                let hash = hash_programs();
                tasks.spawn(async move {
                    let _slot = slot;
                    if let Some((stream, peer)) = read_peer(stream, hash).await {
                        connection::run(stream, id, Arc::new(peer), router, timeouts, stopped).await;
                    }
                });
            }
            Err(problem) => {
                debug!(uid, problem.detail, "refused a connection");
                refuse(stream, &problem, &connections, &mut tasks);
            }
        }
    }

    drop(listener);
    let _ = stop.send(true);
    let finish = async {
        while let Some(ended) = tasks.join_next().await {
            report(ended);
        }
    };
    if tokio::time::timeout(limits.shutdown_timeout, finish).await.is_err() {
        warn!(connections = connections.current(), "closing connections whose requests are not answered yet");
        tasks.shutdown().await;
    }
}

/// Reads who is there, on a thread that may block: `/proc` does not, but the name of a user can
/// come from a directory service.
async fn read_peer(stream: UnixStream, hash_program: bool) -> Option<(UnixStream, Peer)> {
    let reading = tokio::task::spawn_blocking(move || {
        let peer = Peer::read(&stream, hash_program);
        (stream, peer)
    });
    match reading.await {
        Ok((stream, Ok(peer))) => Some((stream, peer)),
        Ok((_, Err(error))) => {
            warn!(%error, "couldn't read who connected");
            None
        }
        Err(error) => {
            report(Err(error));
            None
        }
    }
}

/// Tells a client that it is one too many. It has not said anything yet, so its buffer is empty
/// and the answer goes out at once.
fn refuse(stream: UnixStream, problem: &Problem, connections: &Arc<Connections>, tasks: &mut JoinSet<()>) {
    connections.refused.fetch_add(1, Relaxed);
    let answer = problem.to_closing_answer();
    if connections.refusing.load(Relaxed) < REFUSALS {
        connections.refusing.fetch_add(1, Relaxed);
        let connections = Arc::clone(connections);
        tasks.spawn(async move {
            connection::close(stream, &answer).await;
            connections.refusing.fetch_sub(1, Relaxed);
        });
    } else {
        let _ = stream.try_write(&answer);
    }
}

fn report(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        error!(%error, "a connection's task panicked");
    }
}
