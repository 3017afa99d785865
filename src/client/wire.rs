//! The connection itself: how it is made, what goes over it, and how it ends.

use std::convert::Infallible;
use std::error::Error as _;
use std::fmt;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream::Stream;
use hyper::body::{Body, Frame, SizeHint};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

use super::ClientError;

/// How long to go on when the listener's backlog is full, which a burst of clients brings about.
const BACKLOG_PATIENCE: Duration = Duration::from_secs(5);

/// Connects and leaves the connection to a task of its own.
pub(super) async fn open(socket: &Path) -> Result<SendRequest<Outgoing>, ClientError> {
    let unreachable = |source| ClientError::Unreachable { socket: socket.to_owned(), source };
    let begun = Instant::now();
    let stream = loop {
        match UnixStream::connect(socket).await {
            Ok(stream) => break stream,
            // EAGAIN from a Unix socket is a full backlog, and no readiness event will tell.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && begun.elapsed() < BACKLOG_PATIENCE => {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Err(error) => return Err(unreachable(error)),
        }
    };
    let (sender, connection) = http1::handshake(TalkFirst::new(stream)).await.map_err(broken)?;
    // It ends with the sender, or with the connection; either way the next request finds out.
    tokio::spawn(async move { drop(connection.await) });
    Ok(sender)
}

/// A failure of the connection, told from an answer that is not HTTP.
pub(super) fn broken(error: hyper::Error) -> ClientError {
    if error.is_parse() {
        return ClientError::Protocol(error.to_string());
    }
    let cause = error.source().and_then(|source| source.downcast_ref::<io::Error>());
    let kind = if error.is_incomplete_message() || error.is_closed() || error.is_canceled() {
        io::ErrorKind::UnexpectedEof
    } else {
        cause.map_or(io::ErrorKind::Other, io::Error::kind)
    };
    ClientError::Io(io::Error::new(kind, error))
}

/// The body of a request.
pub(super) enum Outgoing {
    Whole(Bytes),
    Pieces(Pin<Box<dyn Stream<Item = Bytes> + Send>>),
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match &mut *self {
            Outgoing::Whole(bytes) if bytes.is_empty() => Poll::Ready(None),
            Outgoing::Whole(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Outgoing::Pieces(pieces) => {
                pieces.as_mut().poll_next(cx).map(|piece| piece.map(|p| Ok(Frame::data(p))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Outgoing::Whole(bytes) if bytes.is_empty())
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Outgoing::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Outgoing::Pieces(_) => SizeHint::default(),
        }
    }
}

impl fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Outgoing::Whole(_) => "Whole",
            Outgoing::Pieces(_) => "Pieces",
        })
    }
}

/// A stream on which the client has the first word, and the daemon the last.
///
/// A daemon with a connection too many answers 503 and closes without reading. hyper takes an
/// answer that came before its request for a fault of the peer, and a failed write for the end of
/// everything; either way the reason would be lost. So nothing is read until something was
/// written, and after a broken pipe writing goes on into the void until the answer has been read.
struct TalkFirst {
    stream: TokioIo<UnixStream>,
    spoken: bool,
    reader: Option<Waker>,
}

impl TalkFirst {
    fn new(stream: UnixStream) -> Self {
        TalkFirst { stream: TokioIo::new(stream), spoken: false, reader: None }
    }

    fn written(&mut self, result: Poll<io::Result<usize>>, length: usize) -> Poll<io::Result<usize>> {
        let result = match result {
            Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::BrokenPipe => Poll::Ready(Ok(length)),
            other => other,
        };
        if result.is_ready() && !self.spoken {
            self.spoken = true;
            if let Some(reader) = self.reader.take() {
                reader.wake();
            }
        }
        result
    }
}

impl Read for TalkFirst {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.spoken {
            self.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl Write for TalkFirst {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.written(result, buf.len())
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.written(result, bufs.iter().map(|buf| buf.len()).sum())
    }
}
