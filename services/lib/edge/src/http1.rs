//! Serving HTTP/1.1 beside gRPC, so that no client holds on to the process: there is a time for sending a request's head,
//! one for taking what is answered, a most of connections, and a drain at the end.

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::extract::{ConnectInfo, Extension};
use axum::serve::Listener;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{Sleep, sleep};
use tokio_util::sync::CancellationToken;

use crate::server::DRAIN;

/// How long clients are waited for, and how many.
#[derive(Clone, Copy)]
struct Limits {
    /// For a request's head, and so also for the next request on a connection.
    head: Duration,
    /// Until they take more of an answer.
    answer: Duration,
    /// For requests in flight at the end.
    drain: Duration,
    /// More connections wait in the kernel, until one ends.
    connections: usize,
}

const LIMITS: Limits = Limits {
    head: Duration::from_secs(30),
    answer: Duration::from_secs(30),
    drain: DRAIN,
    connections: 1_024,
};

/// Serves until told to stop, then drains: no more connections are taken, and requests in flight have as long to finish as
/// rpcs have. Handlers find the peer's address as [`ConnectInfo`].
pub async fn serve(listener: TcpListener, app: Router, stop: CancellationToken) {
    serve_with(LIMITS, listener, app, stop).await;
}

async fn serve_with(
    limits: Limits,
    mut listener: TcpListener,
    app: Router,
    stop: CancellationToken,
) {
    let mut connections = JoinSet::new();
    let room = Arc::new(Semaphore::new(limits.connections));
    let accept = async |listener: &mut TcpListener| {
        // Never closed.
        let place = Arc::clone(&room).acquire_owned().await.ok();
        (place, Listener::accept(listener).await)
    };
    while let Some((place, (stream, peer))) = stop.run_until_cancelled(accept(&mut listener)).await
    {
        let app = app.clone().layer(Extension(ConnectInfo(peer)));
        let stream = Impatient::new(stream, limits.answer);
        connections.spawn(attend(limits, (stream, place), app, stop.clone()));
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
    app: Router,
    stop: CancellationToken,
) {
    let mut builder = Builder::new(TokioExecutor::new()).http1_only();
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head);
    let service = TowerToHyperService::new(app);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let ended = stop.run_until_cancelled(connection.as_mut()).await;
    // That a client goes away or dawdles is nothing to report.
    if ended.is_none() {
        connection.as_mut().graceful_shutdown();
        let _ = connection.await;
    }
}

/// A connection that fails if nothing of what is written gets away for too long.
struct Impatient {
    stream: TcpStream,
    patience: Duration,
    /// While something waits to get away.
    waiting: Option<Pin<Box<Sleep>>>,
}

impl Impatient {
    fn new(stream: TcpStream, patience: Duration) -> Self {
        Self {
            stream,
            patience,
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
            return written;
        }
        let patience = self.patience;
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
    use std::convert::Infallible;
    use std::future::pending;
    use std::sync::Mutex;

    use axum::body::{Body, Bytes};
    use axum::http::Uri;
    use axum::routing::{get, post};
    use futures::stream;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::sync::Notify;
    use tokio::task::JoinHandle;

    use super::*;

    const LONG: Duration = Duration::from_hours(1);
    const SHORT: Duration = Duration::from_millis(50);
    const UNLIMITED: Limits = Limits {
        head: LONG,
        answer: LONG,
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

    #[tokio::test]
    async fn more_connections_than_there_may_be_wait() {
        let limits = Limits {
            connections: 1,
            ..UNLIMITED
        };
        let asked = Arc::new(Mutex::new(vec![]));
        let asking = Arc::clone(&asked);
        let handler = async move |uri: Uri| {
            asking
                .lock()
                .expect("no holder panics")
                .push(uri.to_string());
        };
        let app = Router::new().fallback(handler);
        let (mut first, _stop, _served) = served(limits, app).await;
        let address = first.peer_addr().expect("an address");
        let ask = async |client: &mut TcpStream, path: &str| {
            says(client, &format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n")).await;
        };
        ask(&mut first, "/first").await;
        assert!(first.read(&mut [0; 4_096]).await.is_ok_and(|read| read > 0));
        let mut second = TcpStream::connect(address).await.expect("connected");
        ask(&mut second, "/second").await;
        for _ in 0..100 {
            ask(&mut first, "/first").await;
            assert!(first.read(&mut [0; 4_096]).await.is_ok_and(|read| read > 0));
        }
        assert!(
            !asked
                .lock()
                .expect("no holder panics")
                .contains(&"/second".to_owned())
        );
        drop(first);
        assert!(
            second
                .read(&mut [0; 4_096])
                .await
                .is_ok_and(|read| read > 0)
        );
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
}
