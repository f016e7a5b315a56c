//! Serving HTTP/1.1 beside gRPC, so that no client holds on to the process: there is a time for sending a request's head,
//! and a drain at the end.

use std::pin::pin;
use std::time::Duration;

use axum::Router;
use axum::extract::{ConnectInfo, Extension};
use axum::serve::Listener;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::server::DRAIN;

/// How long clients are waited for.
#[derive(Clone, Copy)]
struct Patience {
    /// For a request's head, and so also for the next request on a connection.
    head: Duration,
    /// For requests in flight at the end.
    drain: Duration,
}

const PATIENCE: Patience = Patience {
    head: Duration::from_secs(30),
    drain: DRAIN,
};

/// Serves until told to stop, then drains: no more connections are taken, and requests in flight have as long to finish as
/// rpcs have. Handlers find the peer's address as [`ConnectInfo`].
pub async fn serve(listener: TcpListener, app: Router, stop: CancellationToken) {
    serve_with(PATIENCE, listener, app, stop).await;
}

async fn serve_with(
    patience: Patience,
    mut listener: TcpListener,
    app: Router,
    stop: CancellationToken,
) {
    let mut connections = JoinSet::new();
    while let Some((stream, peer)) = stop
        .run_until_cancelled(Listener::accept(&mut listener))
        .await
    {
        let app = app.clone().layer(Extension(ConnectInfo(peer)));
        connections.spawn(attend(patience, stream, app, stop.clone()));
        while connections.try_join_next().is_some() {}
    }
    drop(listener);
    let drained = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(patience.drain, drained).await.is_err() {
        tracing::warn!("HTTP requests in flight did not finish in time, giving up on them");
    }
}

async fn attend(patience: Patience, stream: TcpStream, app: Router, stop: CancellationToken) {
    let mut builder = Builder::new(TokioExecutor::new()).http1_only();
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(patience.head);
    let service = TowerToHyperService::new(app);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let ended = stop.run_until_cancelled(connection.as_mut()).await;
    // That a client goes away or dawdles is nothing to report.
    if ended.is_none() {
        connection.as_mut().graceful_shutdown();
        let _ = connection.await;
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::sync::Arc;

    use axum::routing::{get, post};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::sync::Notify;
    use tokio::task::JoinHandle;

    use super::*;

    const LONG: Duration = Duration::from_hours(1);
    const SHORT: Duration = Duration::from_millis(50);

    async fn served(
        patience: Patience,
        app: Router,
    ) -> (TcpStream, CancellationToken, JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let stop = CancellationToken::new();
        let served = tokio::spawn(serve_with(patience, listener, app, stop.clone()));
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
        let patience = Patience {
            head: LONG,
            drain: LONG,
        };
        let app = Router::new().route("/", get(handler));
        let (mut client, stop, served) = served(patience, app).await;
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
        let patience = Patience {
            head: LONG,
            drain: SHORT,
        };
        let app = Router::new().route("/", post(handler));
        let (mut client, stop, served) = served(patience, app).await;
        let head = "POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n";
        says(&mut client, head).await;
        asked.notified().await;
        stop.cancel();
        served.await.expect("it ends");
        let read = client.read(&mut [0; 1]).await;
        assert!(!read.is_ok_and(|read| read > 0), "nothing is answered");
    }

    #[tokio::test]
    async fn a_head_that_does_not_come_is_not_waited_for() {
        let patience = Patience {
            head: SHORT,
            drain: LONG,
        };
        for start in ["", "GET / HT"] {
            let (mut client, _stop, _served) = served(patience, Router::new()).await;
            says(&mut client, start).await;
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.expect("the end");
        }
    }
}
