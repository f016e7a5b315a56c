//! Serving HTTP/1.1 beside gRPC, so that no client holds on to the process: there is a time for sending a request's head,
//! one for taking what is answered, a most of connections, and a drain at the end. A connection on which nothing is asked
//! makes room for a new one: clients keep theirs, and would keep others out.

use std::collections::BTreeMap;
use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, HttpBody as _};
use axum::extract::{ConnectInfo, Extension, Request};
use axum::http::header::{CONNECTION, HOST};
use axum::http::uri::Authority;
use axum::http::{StatusCode, Version};
use axum::middleware::{Next, from_fn};
use axum::response::IntoResponse as _;
use axum::serve::Listener;
use futures::{StreamExt as _, poll, stream};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{Instant, Sleep, sleep, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::files;
use crate::server::DRAIN;

/// How long clients are waited for, and how many.
#[derive(Clone, Copy)]
struct Limits {
    /// For a request's head, and so also for the next request on a connection.
    head: Duration,
    /// Until they take more of an answer.
    answer: Duration,
    /// For an answer that is being written on a connection which makes room, since more of it was taken.
    parting: Duration,
    /// For requests in flight at the end.
    drain: Duration,
    /// More connections wait in the kernel, until one ends, or nothing is asked on one.
    connections: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            head: Duration::from_secs(30),
            answer: Duration::from_secs(30),
            parting: Duration::from_millis(100),
            drain: DRAIN,
            connections: connections(),
        }
    }
}

/// How many connections a listener has at most.
#[must_use]
pub fn connections() -> usize {
    files::connections(1_024)
}

/// Serves until told to stop, then drains: no more connections are taken, and requests in flight have as long to finish as
/// rpcs have. Handlers find the peer's address as [`ConnectInfo`].
pub async fn serve(listener: TcpListener, app: Router, stop: CancellationToken) {
    serve_with(Limits::default(), listener, app, stop).await;
}

async fn serve_with(
    limits: Limits,
    mut listener: TcpListener,
    app: Router,
    stop: CancellationToken,
) {
    let mut connections = JoinSet::new();
    let (room, idle) = (
        Arc::new(Semaphore::new(limits.connections)),
        Idle::default(),
    );
    // A place is looked for when somebody is there to have it.
    let accept = async |listener: &mut TcpListener| {
        let accepted = Listener::accept(listener).await;
        if room.available_permits() == 0 {
            idle.makes_room();
        }
        // Never closed.
        let place = Arc::clone(&room).acquire_owned().await.ok();
        (place, accepted)
    };
    while let Some((place, (stream, peer))) = stop.run_until_cancelled(accept(&mut listener)).await
    {
        let seat = Arc::new(Seat::taken(&idle));
        let app = app.clone().layer(Extension(ConnectInfo(peer)));
        let stream = Impatient::new(stream, limits.answer, &seat);
        connections.spawn(attend(limits, (stream, place), seat, app, stop.clone()));
        while connections.try_join_next().is_some() {}
    }
    drop(listener);
    let drained = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(limits.drain, drained).await.is_err() {
        tracing::warn!("HTTP requests in flight did not finish in time, giving up on them");
    }
}

async fn attend(
    limits: Limits,
    (stream, _place): (Impatient, Option<OwnedSemaphorePermit>),
    seat: Arc<Seat>,
    app: Router,
    stop: CancellationToken,
) {
    let mut builder = Builder::new(TokioExecutor::new()).http1_only();
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head);
    let asked = Arc::clone(&seat);
    let app = app.layer(from_fn(move |request: Request, next: Next| {
        let asked = Arc::clone(&asked);
        async move {
            if !says_whom_it_asks(&request) {
                return (StatusCode::BAD_REQUEST, [(CONNECTION, "close")]).into_response();
            }
            let (request, _busy) = asked.once_it_is_there(request);
            next.run(request).await
        }
    }));
    let service = TowerToHyperService::new(app);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    loop {
        // That a client goes away or dawdles is nothing to report.
        tokio::select! {
            _ = connection.as_mut() => return,
            () = stop.cancelled() => break,
            () = seat.left.notified() => {}
        }
        connection.as_mut().graceful_shutdown();
        // What has come is taken in, and what there is room for is written. Only for the rest of an answer is there time:
        // who comes next waits for it.
        let mut ended = poll!(connection.as_mut()).is_ready();
        let stuck = seat.stuck_since().filter(|_| !ended);
        if let Some(since) = stuck {
            let parting = timeout_at(since + limits.parting, connection.as_mut());
            ended = parting.await.is_ok();
        }
        // A request may have come just now. When it is answered, there is room to make again.
        if ended || !seat.is_busy() {
            return;
        }
    }
    connection.as_mut().graceful_shutdown();
    let _ = connection.await;
}

/// Whether there is one `Host`, as a request must have it (RFC 9112, 3.2): what stands before us may go by another one.
fn says_whom_it_asks(request: &Request) -> bool {
    let mut hosts = request.headers().get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (None, _) => request.version() < Version::HTTP_11,
        (Some(host), None) => {
            let host = host.to_str().unwrap_or("@");
            let authority = host.parse::<Authority>();
            host.is_empty() || authority.is_ok_and(|_| !host.contains('@'))
        }
        (Some(_), Some(_)) => false,
    }
}

/// The connections on which nothing is asked, those first on which nothing has been for longest.
#[derive(Clone, Default)]
struct Idle(Arc<Mutex<Seats>>);

#[derive(Default)]
struct Seats {
    next: u64,
    idle: BTreeMap<u64, Arc<Notify>>,
    /// Somebody waits for the first that becomes idle.
    wanted: bool,
}

impl Idle {
    fn seats(&self) -> MutexGuard<'_, Seats> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has one leave: at once, or as soon as nothing is asked on it.
    fn makes_room(&self) {
        let mut seats = self.seats();
        match seats.idle.pop_first() {
            Some((_, left)) => left.notify_one(),
            None => seats.wanted = true,
        }
    }
}

/// A connection's place among the others. It is idle, or busy for as long as a [`Busy`] is held.
struct Seat {
    among: Idle,
    number: Mutex<Option<u64>>,
    /// Told when it is to make room.
    left: Arc<Notify>,
    /// Since when something of an answer waits to get away.
    stuck: Mutex<Option<Instant>>,
}

/// While something is asked on a connection.
struct Busy(Arc<Seat>);

impl Seat {
    fn taken(among: &Idle) -> Self {
        let seat = Self {
            among: among.clone(),
            number: Mutex::default(),
            left: Arc::default(),
            stuck: Mutex::default(),
        };
        // Who has just come in may not have to go for who comes next.
        seat.among.seats().wanted = false;
        seat.waits();
        seat
    }

    fn number(&self) -> MutexGuard<'_, Option<u64>> {
        self.number.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stuck(&self) -> MutexGuard<'_, Option<Instant>> {
        self.stuck.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stuck_since(&self) -> Option<Instant> {
        *self.stuck()
    }

    fn waits(&self) {
        let mut seats = self.among.seats();
        let number = seats.next;
        seats.next += 1;
        if std::mem::take(&mut seats.wanted) {
            self.left.notify_one();
        } else {
            seats.idle.insert(number, Arc::clone(&self.left));
        }
        *self.number() = Some(number);
    }

    /// Nothing is asked as long as a request has not arrived to its end. Until what comes with it is dropped, the connection
    /// is busy from then on.
    fn once_it_is_there(self: &Arc<Self>, request: Request) -> (Request, Arc<OnceLock<Busy>>) {
        let busy = Arc::new(OnceLock::new());
        let (seat, begun) = (Arc::clone(self), Arc::clone(&busy));
        let begin = move || {
            begun.get_or_init(|| seat.busy());
        };
        if request.body().is_end_stream() {
            begin();
            return (request, busy);
        }
        let request = request.map(|body| {
            let end = stream::poll_fn(move |_| {
                begin();
                Poll::Ready(None)
            });
            Body::from_stream(body.into_data_stream().chain(end))
        });
        (request, busy)
    }

    fn busy(self: &Arc<Self>) -> Busy {
        let number = self.number().take();
        let is_to_go =
            number.is_some_and(|number| self.among.seats().idle.remove(&number).is_none());
        // Another one has to make the room that this one was to make.
        if is_to_go {
            self.among.makes_room();
        }
        Busy(Arc::clone(self))
    }

    fn is_busy(&self) -> bool {
        self.number().is_none()
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.waits();
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let number = self.number().take();
        number.map(|number| self.among.seats().idle.remove(&number));
    }
}

/// A connection that fails if nothing of what is written gets away for too long.
struct Impatient {
    stream: TcpStream,
    patience: Duration,
    /// Is told.
    seat: Arc<Seat>,
    /// While something waits to get away.
    waiting: Option<Pin<Box<Sleep>>>,
}

impl Impatient {
    fn new(stream: TcpStream, patience: Duration, seat: &Arc<Seat>) -> Self {
        Self {
            stream,
            patience,
            seat: Arc::clone(seat),
            waiting: None,
        }
    }

    fn in_time<T>(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.waiting = None;
            *self.seat.stuck() = None;
            return written;
        }
        let patience = self.patience;
        self.seat.stuck().get_or_insert_with(Instant::now);
        let waiting = self
            .waiting
            .get_or_insert_with(|| Box::pin(sleep(patience)));
        waiting
            .as_mut()
            .poll(context)
            .map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Impatient {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, into)
    }
}

impl AsyncWrite for Impatient {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.in_time(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, parts);
        self.in_time(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Bytes;
    use axum::http::Uri;
    use axum::routing::{get, post};
    use std::convert::Infallible;
    use std::future::pending;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::sync::Notify;
    use tokio::task::JoinHandle;

    use super::*;

    const LONG: Duration = Duration::from_hours(1);
    const SHORT: Duration = Duration::from_millis(50);
    const UNLIMITED: Limits = Limits {
        head: LONG,
        answer: LONG,
        parting: LONG,
        drain: LONG,
        connections: Semaphore::MAX_PERMITS,
    };

    async fn served(limits: Limits, app: Router) -> (TcpStream, CancellationToken, JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let stop = CancellationToken::new();
        let served = tokio::spawn(serve_with(limits, listener, app, stop.clone()));
        let client = TcpStream::connect(address).await.expect("connected");
        (client, stop, served)
    }

    async fn says(client: &mut TcpStream, request: &str) {
        client.write_all(request.as_bytes()).await.expect("sent");
    }

    #[tokio::test]
    async fn what_is_asked_before_the_end_is_answered() {
        let (asked, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (asking, going_on) = (Arc::clone(&asked), Arc::clone(&go_on));
        let handler = async move || {
            asking.notify_one();
            going_on.notified().await;
            "done"
        };
        let limits = UNLIMITED;
        let app = Router::new().route("/", get(handler));
        let (mut client, stop, served) = served(limits, app).await;
        says(&mut client, "GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
        asked.notified().await;
        stop.cancel();
        go_on.notify_one();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.expect("text");
        assert!(answer.ends_with("done"), "{answer}");
        served.await.expect("it ends");
    }

    #[tokio::test]
    async fn a_request_that_does_not_end_does_not_keep_the_process() {
        let asked = Arc::new(Notify::new());
        let asking = Arc::clone(&asked);
        let handler = async move || {
            asking.notify_one();
            pending::<()>().await;
        };
        let limits = Limits {
            drain: SHORT,
            ..UNLIMITED
        };
        let app = Router::new().route("/", post(handler));
        let (mut client, stop, served) = served(limits, app).await;
        let head = "POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n";
        says(&mut client, head).await;
        asked.notified().await;
        stop.cancel();
        served.await.expect("it ends");
        let read = client.read(&mut [0; 1]).await;
        assert!(!read.is_ok_and(|read| read > 0), "nothing is answered");
    }

    /// Told when it goes.
    struct Told(Arc<Notify>);

    impl Drop for Told {
        fn drop(&mut self) {
            self.0.notify_one();
        }
    }

    #[tokio::test]
    async fn an_answer_that_nobody_takes_is_given_up() {
        let given_up = Arc::new(Notify::new());
        let told = Arc::clone(&given_up);
        let handler = async move || {
            let told = Told(told);
            let endless = stream::repeat_with(move || {
                let _held = &told;
                Ok::<_, Infallible>(Bytes::from_static(&[0; 16_384]))
            });
            Body::from_stream(endless)
        };
        let limits = Limits {
            answer: SHORT,
            ..UNLIMITED
        };
        let app = Router::new().route("/", get(handler));
        let (mut client, _stop, _served) = served(limits, app).await;
        says(&mut client, "GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
        tokio::time::timeout(Duration::from_secs(30), given_up.notified())
            .await
            .expect("the answer is given up");
    }

    async fn asks(client: &mut TcpStream, path: &str) {
        says(client, &format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n")).await;
    }

    async fn is_answered(client: &mut TcpStream) -> bool {
        let read = client.read(&mut [0; 4_096]).await;
        read.is_ok_and(|read| read > 0)
    }

    const ONE: Limits = Limits {
        connections: 1,
        ..UNLIMITED
    };

    #[tokio::test]
    async fn more_connections_than_may_be_busy_wait() {
        let (asked, go_on) = (Arc::new(Mutex::new(vec![])), Arc::new(Notify::new()));
        let (asking, going_on, began) = (
            Arc::clone(&asked),
            Arc::clone(&go_on),
            Arc::new(Notify::new()),
        );
        let beginning = Arc::clone(&began);
        let handler = async move |uri: Uri| {
            let path = uri.to_string();
            asking.lock().expect("no holder panics").push(path.clone());
            if path == "/first" {
                beginning.notify_one();
                going_on.notified().await;
            }
        };
        let app = Router::new().fallback(handler);
        let (mut first, _stop, _served) = served(ONE, app).await;
        let address = first.peer_addr().expect("an address");
        asks(&mut first, "/first").await;
        began.notified().await;
        let mut second = TcpStream::connect(address).await.expect("connected");
        asks(&mut second, "/second").await;
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert_eq!(*asked.lock().expect("no holder panics"), ["/first"]);
        // It is the first that becomes idle.
        go_on.notify_one();
        assert!(is_answered(&mut first).await);
        assert!(is_answered(&mut second).await);
        assert!(!is_answered(&mut first).await, "it has made room");
    }

    #[tokio::test]
    async fn a_connection_on_which_nothing_is_asked_makes_room() {
        let app = || Router::new().fallback(async |_: Bytes| {});
        // Nothing yet, a head that does not end, a body that does not, and a request that was answered.
        for (start, answered) in [
            ("", false),
            ("GET / HT", false),
            (
                "POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nhalf",
                false,
            ),
            ("GET / HTTP/1.1\r\nhost: x\r\n\r\n", true),
        ] {
            let (mut first, _stop, _served) = served(ONE, app()).await;
            let address = first.peer_addr().expect("an address");
            says(&mut first, start).await;
            assert!(!answered || is_answered(&mut first).await, "{start}");
            for _ in 0..3 {
                let mut next = TcpStream::connect(address).await.expect("connected");
                asks(&mut next, "/").await;
                assert!(is_answered(&mut next).await, "{start}");
                assert!(!is_answered(&mut first).await, "{start}: it has made room");
                first = next;
            }
        }
    }

    #[tokio::test]
    async fn a_head_that_does_not_come_is_not_waited_for() {
        let limits = Limits {
            head: SHORT,
            ..UNLIMITED
        };
        for start in ["", "GET / HT"] {
            let (mut client, _stop, _served) = served(limits, Router::new()).await;
            says(&mut client, start).await;
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.expect("the end");
        }
    }

    const FEW: Limits = Limits {
        connections: 4,
        ..UNLIMITED
    };

    #[tokio::test]
    async fn who_begins_to_ask_and_does_not_end_keeps_nobody_out() {
        let app = || Router::new().fallback(async |_: Bytes| {});
        for start in [
            "",
            "GET / HT",
            "POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nhalf",
        ] {
            let (mut first, _stop, _served) = served(FEW, app()).await;
            let address = first.peer_addr().expect("an address");
            says(&mut first, start).await;
            let mut slow = vec![first];
            for _ in 0..11 * FEW.connections {
                let mut next = TcpStream::connect(address).await.expect("connected");
                says(&mut next, start).await;
                slow.push(next);
            }
            let mut good = TcpStream::connect(address).await.expect("connected");
            asks(&mut good, "/").await;
            let answered = is_answered(&mut good);
            let answered = tokio::time::timeout(Duration::from_secs(30), answered).await;
            assert_eq!(answered, Ok(true), "{start}");
        }
    }

    /// More than gets away while nobody takes it.
    const MUCH: usize = 32 << 20;

    #[tokio::test]
    async fn what_is_being_written_gets_away_before_room_is_made() {
        let app = Router::new()
            .route("/", get(async || {}))
            .route("/much", get(async || vec![b'x'; MUCH]));
        let (mut first, _stop, _served) = served(ONE, app).await;
        let address = first.peer_addr().expect("an address");
        asks(&mut first, "/much").await;
        assert!(is_answered(&mut first).await);
        let mut next = TcpStream::connect(address).await.expect("connected");
        asks(&mut next, "/").await;
        let mut rest = vec![];
        first.read_to_end(&mut rest).await.expect("the end");
        assert!(rest.len() > MUCH - 4_096, "{} bytes", rest.len());
        assert!(is_answered(&mut next).await);
    }

    #[tokio::test]
    async fn an_answer_that_nobody_takes_makes_room() {
        let limits = Limits {
            parting: SHORT,
            ..ONE
        };
        let app = Router::new()
            .route("/", get(async || {}))
            .route("/much", get(async || vec![b'x'; MUCH]));
        let (mut first, _stop, _served) = served(limits, app).await;
        let address = first.peer_addr().expect("an address");
        asks(&mut first, "/much").await;
        assert!(is_answered(&mut first).await);
        let mut next = TcpStream::connect(address).await.expect("connected");
        asks(&mut next, "/").await;
        assert!(is_answered(&mut next).await);
    }

    #[tokio::test]
    async fn a_request_says_whom_it_asks() {
        for (head, status) in [
            ("HTTP/1.1\r\nhost: x", "200"),
            ("HTTP/1.1\r\nhost: [::1]:8080", "200"),
            ("HTTP/1.1\r\nhost:", "200"),
            ("HTTP/1.0\r\nx: y", "200"),
            ("HTTP/1.1\r\nx: y", "400"),
            ("HTTP/1.1\r\nhost: x\r\nhost: x", "400"),
            ("HTTP/1.0\r\nhost: x\r\nhost: y", "400"),
            ("HTTP/1.1\r\nhost: x/y", "400"),
            ("HTTP/1.1\r\nhost: a@x", "400"),
            ("HTTP/1.1\r\nhost: x y", "400"),
            ("HTTP/1.1\r\nhost: \u{e9}", "400"),
        ] {
            let app = Router::new().route("/", get(async || {}));
            let (mut client, _stop, _served) = served(UNLIMITED, app).await;
            says(
                &mut client,
                &format!("GET / {head}\r\nconnection: close\r\n\r\n"),
            )
            .await;
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.expect("text");
            assert_eq!(answer.get(9..12), Some(status), "{head}: {answer}");
        }
    }
}
