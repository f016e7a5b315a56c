//! Tokens on request, as the runner of GitHub Actions gives them out
//! (<https://docs.github.com/en/actions/reference/security/oidc>): on loopback, to who knows a secret.

use std::convert::Infallible;
use std::future::pending;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use axum::Router;
use axum::extract::{Path, State};
use axum::http::header::{AUTHORIZATION, CACHE_CONTROL};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse as _, Json, Response};
use axum::routing::get;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;
use tokio::net::TcpListener;

use crate::failure::Failure;
use crate::folder::Folder;
use crate::issuer::Identity;
use crate::messages::say;

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
        if let Err(error) = axum::serve(self.listener, app).await {
            say(&format!("tokens are not given out any more: {error}"));
        }
        pending().await
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
    match tokio::fs::read_to_string(file).await {
        Ok(token) => {
            let body = json!({ "count": token.len(), "value": token });
            ([(CACHE_CONTROL, "no-store")], Json(body)).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
