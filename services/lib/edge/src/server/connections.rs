//! The connections of a gRPC server, so that nobody who merely connects keeps others out: a client has to begin, and when
//! all places are taken, somebody goes for whoever comes next.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use http::Extensions;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::{Connected, TcpConnectInfo};

use crate::files;

/// Bytes that a client begins with (RFC 9113, section 3.4). From then on h2 answers, and keepalive watches.
const PREFACE: usize = 24;

/// How long clients are waited for, and how many.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    /// For what a client begins with.
    pub(super) preface: Duration,
    /// More make others go.
    pub(super) connections: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            preface: Duration::from_secs(10),
            connections: files::connections(4_096),
        }
    }
}

/// The places for connections.
pub(super) struct Places {
    limits: Limits,
    free: Arc<Semaphore>,
    /// Of the connections, and of some that have ended.
    seats: Mutex<Vec<Arc<Seat>>>,
}

/// A connection's place among the others.
#[derive(Debug)]
struct Seat {
    /// It has ended, or is to make room.
    left: CancellationToken,
    standing: Mutex<Standing>,
}

#[derive(Clone, Copy, Debug)]
struct Standing {
    /// Its client has begun.
    begun: bool,
    /// In flight.
    rpcs: usize,
    /// When it came, its client began, or an rpc began or ended, whatever was last.
    since: Instant,
}

impl Places {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            free: Arc::new(Semaphore::new(limits.connections)),
            seats: Mutex::default(),
        }
    }

    /// Once there is room, which is made at once.
    pub(super) async fn take(&self, stream: TcpStream) -> Seated {
        if self.free.available_permits() == 0 {
            self.make_room();
        }
        // Never closed.
        let place = Arc::clone(&self.free).acquire_owned().await.ok();
        let seat = Arc::new(Seat {
            left: CancellationToken::new(),
            standing: Mutex::new(Standing {
                begun: false,
                rpcs: 0,
                since: Instant::now(),
            }),
        });
        let mut seats = self.seats();
        seats.retain(|seat| !seat.left.is_cancelled());
        seats.push(Arc::clone(&seat));
        Seated {
            stream,
            _place: place,
            left: Box::pin(seat.left.clone().cancelled_owned()),
            seat,
            missing: PREFACE,
            patience: Box::pin(sleep(self.limits.preface)),
        }
    }

    /// Of those whose clients have not begun, the one goes that came first, if there are many of them; some are left,
    /// since a good one needs a moment. Else the one goes on which nothing has been asked for longest. If something is
    /// asked on all, it may be by clients that never let an rpc end: the one goes then on which none has begun or ended
    /// for longest.
    fn make_room(&self) {
        let seats = self.seats();
        let staying = seats.iter().filter(|seat| !seat.left.is_cancelled());
        let staying = staying.map(|seat| (*seat.standing(), seat));
        let (begun, not_begun): (Vec<_>, Vec<_>) = staying.partition(|(now, _)| now.begun);
        let many = not_begun.len() > self.limits.connections / 4;
        let candidates = if many || begun.is_empty() {
            not_begun
        } else {
            begun
        };
        let leaving = candidates
            .iter()
            .min_by_key(|(now, _)| (now.rpcs > 0, now.since));
        if let Some((_, seat)) = leaving {
            seat.left.cancel();
        }
    }

    fn seats(&self) -> MutexGuard<'_, Vec<Arc<Seat>>> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seat {
    fn standing(&self) -> MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changes(&self, change: impl FnOnce(&mut Standing)) {
        let mut standing = self.standing();
        change(&mut standing);
        standing.since = Instant::now();
    }
}

/// A connection that has a place, for as long as its client is willing to begin and nobody else needs it more.
pub(super) struct Seated {
    stream: TcpStream,
    _place: Option<OwnedSemaphorePermit>,
    seat: Arc<Seat>,
    left: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Bytes of what the client begins with.
    missing: usize,
    patience: Pin<Box<Sleep>>,
}

impl Seated {
    /// It fails once it is to make room. Waiting to write is no reason to stay either.
    fn stays(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        match self.left.as_mut().poll(context) {
            Poll::Ready(()) => Err(self.ends("it makes room for another one")),
            Poll::Pending => Ok(()),
        }
    }

    fn ends(&self, reason: &'static str) -> io::Error {
        let peer = self.stream.peer_addr().ok();
        tracing::debug!(?peer, reason, "a connection is ended");
        io::Error::other(reason)
    }
}

impl Drop for Seated {
    fn drop(&mut self) {
        self.seat.left.cancel();
    }
}

impl AsyncRead for Seated {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.stays(context)?;
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if self.missing > 0 {
            self.missing = self.missing.saturating_sub(buffer.filled().len() - before);
            if self.missing == 0 {
                self.seat.changes(|now| now.begun = true);
            } else if read.is_pending() && self.patience.as_mut().poll(context).is_ready() {
                return Poll::Ready(Err(self.ends("its client has not begun in time")));
            }
        }
        read
    }
}

impl AsyncWrite for Seated {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.stays(context)?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// What an rpc brings from its connection.
#[derive(Clone, Debug)]
pub(super) struct Came {
    from: TcpConnectInfo,
    on: Arc<Seat>,
}

impl Connected for Seated {
    type ConnectInfo = Came;

    fn connect_info(&self) -> Came {
        Came {
            from: self.stream.connect_info(),
            on: Arc::clone(&self.seat),
        }
    }
}

/// While an rpc is in flight on a connection.
#[derive(Debug)]
pub(crate) struct Busy(Arc<Seat>);

impl Busy {
    /// With the rpc's request, in which the peer's address is left as handlers look for it.
    pub(crate) fn with(request: &mut Extensions) -> Option<Self> {
        let Came { from, on } = request.remove()?;
        request.insert(from);
        on.changes(|now| now.rpcs += 1);
        Some(Self(on))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.changes(|now| now.rpcs -= 1);
    }
}
