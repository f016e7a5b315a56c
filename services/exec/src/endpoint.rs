//! Tokens on request, as the runner of GitHub Actions gives them out
//! (<https://docs.github.com/en/actions/reference/security/oidc>): on loopback, to who knows a secret.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use axum::Router;
use axum::extract::{Path, State};
use axum::http::header::{AUTHORIZATION, CACHE_CONTROL};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse as _, Json, Response};
use axum::routing::get;
use axum::serve::Listener;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::{AbortHandle, JoinSet, yield_now};

use crate::failure::Failure;
use crate::folder::Folder;
use crate::issuer::Identity;

/// Connections at once. Anybody on this machine may connect, and as many as there may be files would keep the tokens from
/// being renewed; so who has been there for longest makes room for who comes next.
const MOST: usize = 16;
/// For a request's head.
const HEAD: Duration = Duration::from_secs(5);

/// Answers nobody before it serves.
pub(crate) struct Endpoint {
    listener: TcpListener,
    address: String,
    secret: String,
}

struct Served {
    secret: String,
    /// Of each identity, the id and the file with its token.
    tokens: Vec<(String, PathBuf)>,
}

impl Endpoint {
    pub(crate) async fn open() -> Result<Self, Failure> {
        let opened = async {
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            let address = listener.local_addr()?.to_string();
            Ok((listener, address))
        };
        let (listener, address) = opened
            .await
            .map_err(|source| Failure::file("no port on loopback", source))?;
        let mut secret = [0; 32];
        SystemRandom::new()
            .fill(&mut secret)
            .map_err(|_| Failure::file("no random numbers", ErrorKind::Other.into()))?;
        Ok(Self {
            listener,
            address,
            secret: URL_SAFE_NO_PAD.encode(secret),
        })
    }

    /// Where an identity's token is had.
    pub(crate) fn url(&self, identity: &Identity) -> String {
        format!("http://{}/{}", self.address, identity.id)
    }

    /// The bearer token of who asks.
    pub(crate) fn secret(&self) -> &str {
        &self.secret
    }

    /// Answers with what the files in the folder hold, until it is dropped.
    pub(crate) async fn serve(self, folder: &Folder, identities: &[Identity]) -> Infallible {
        let token = |identity: &Identity| {
            let file = folder.file(&identity.token_file());
            (identity.id.clone(), file.into())
        };
        let served = Served {
            secret: format!("Bearer {}", self.secret),
            tokens: identities.iter().map(token).collect(),
        };
        let app = Router::new()
            .route("/{identity}", get(answer))
            .with_state(Arc::new(served));
        let mut http = Builder::new(TokioExecutor::new()).http1_only();
        http.http1()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD)
            // Who asks seldom has no need to stay.
            .keep_alive(false);
        let mut listener = self.listener;
        let (mut connections, mut open) = (JoinSet::new(), VecDeque::<AbortHandle>::new());
        loop {
            let (stream, _) = Listener::accept(&mut listener).await;
            let (http, app) = (http.clone(), TowerToHyperService::new(app.clone()));
            open.push_back(connections.spawn(async move {
                // That a client goes away is nothing to report.
                let _ = http.serve_connection(TokioIo::new(stream), app).await;
            }));
            // What has been asked already is answered, before anybody has to leave.
            yield_now().await;
            while connections.try_join_next().is_some() {}
            open.retain(|connection| !connection.is_finished());
            if open.len() > MOST
                && let Some(longest) = open.pop_front()
            {
                longest.abort();
            }
        }
    }
}

async fn answer(
    State(served): State<Arc<Served>>,
    Path(identity): Path<String>,
    headers: HeaderMap,
) -> Response {
    let given = headers
        .get(AUTHORIZATION)
        .map_or(&[][..], HeaderValue::as_bytes);
    if verify_slices_are_equal(given, served.secret.as_bytes()).is_err() {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let Some((_, file)) = served.tokens.iter().find(|(id, _)| *id == identity) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    // At once, as it is written: it is small, and near.
    match std::fs::read_to_string(file) {
        Ok(token) => {
            let body = json!({ "count": token.len(), "value": token });
            ([(CACHE_CONTROL, "no-store")], Json(body)).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use bed::eventually;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;

    use super::*;

    /// Those that are still open, and on which nothing was answered.
    fn open(streams: &[TcpStream]) -> usize {
        let is_open = |stream: &&TcpStream| {
            let read = stream.try_read(&mut [0]);
            read.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
        };
        streams.iter().filter(is_open).count()
    }

    #[tokio::test]
    async fn who_asks_nothing_makes_room_for_who_asks() {
        let folder = Folder::temporary().expect("a folder");
        let identities = [Identity {
            id: "mi_1".to_owned(),
            path: "acme/deployer".to_owned(),
            configuration: None,
        }];
        folder.write("mi_1.token", "the-token").expect("written");
        let endpoint = Endpoint::open().await.expect("a port");
        let (address, secret) = (endpoint.address.clone(), endpoint.secret.clone());
        let asking = async {
            let mut idle = Vec::new();
            for _ in 0..MOST * 4 {
                let stream = TcpStream::connect(&address).await;
                idle.push(stream.expect("connected"));
            }
            let mut stream = TcpStream::connect(&address).await.expect("connected");
            let request = format!(
                "GET /mi_1?audience=x HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {secret}\r\n\r\n"
            );
            let sent = stream.write_all(request.as_bytes()).await;
            sent.expect("sent");
            let mut answer = String::new();
            let read = stream.read_to_string(&mut answer).await;
            read.expect("an answer, and the end");
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
            assert!(
                answer.ends_with(r#"{"count":9,"value":"the-token"}"#),
                "{answer}"
            );
            eventually(async || match open(&idle) {
                few if few <= MOST => Ok(()),
                many => Err(format!("{many} are open")),
            })
            .await;
        };
        tokio::select! {
            never = endpoint.serve(&folder, &identities) => match never {},
            () = asking => {}
        }
    }
}
