//! What relying parties read over HTTP: `OpenID` discovery and the key set. From memory, so the database may be away. And
//! where tokens are exchanged.

mod token;

use std::net::SocketAddr;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use model::SigningAlgorithm;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::IssuerRpc;
use crate::keys::Keys;
use crate::signing::entity_tag;

#[derive(Clone)]
struct Published {
    discovery: Bytes,
    keys: Keys,
}

/// Serves until told to stop. `issuer` is the `iss` of every token, byte for byte.
pub async fn serve(
    listener: TcpListener,
    issuer: &str,
    keys: Keys,
    rpc: IssuerRpc,
    stop: CancellationToken,
) -> std::io::Result<()> {
    tracing::info!(address = ?listener.local_addr().ok(), issuer, "serving discovery");
    let exchange = Router::new()
        .route("/token", post(token::exchange))
        .layer(DefaultBodyLimit::max(token::MAX_REQUEST))
        .with_state(rpc);
    let app = Router::new()
        .route("/.well-known/openid-configuration", get(discovery))
        .route("/oauth/discovery/keys", get(key_set))
        .with_state(Published {
            discovery: document(issuer).to_string().into(),
            keys,
        })
        .merge(exchange)
        .into_make_service_with_connect_info::<SocketAddr>();
    axum::serve(listener, app)
        .with_graceful_shutdown(stop.cancelled_owned())
        .await
}

/// `OpenID` Connect Discovery 1.0, 3. There is no authorization endpoint: our tokens are not had by logging in.
fn document(issuer: &str) -> serde_json::Value {
    serde_json::json!({
        "issuer": issuer,
        "jwks_uri": format!("{}/oauth/discovery/keys", issuer.trim_end_matches('/')),
        "token_endpoint": format!("{}/token", issuer.trim_end_matches('/')),
        "token_endpoint_auth_methods_supported": ["none"],
        "grant_types_supported": [token::GRANT_TYPE],
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": SigningAlgorithm::ALL.map(SigningAlgorithm::as_str),
        "scopes_supported": ["openid"],
        "claims_supported": [
            "iss", "sub", "aud", "iat", "nbf", "exp", "jti",
            "tharsis_job_id", "tharsis_stage", "tharsis_workspace_id", "tharsis_workspace_path", "tharsis_group_path", "tharsis_revision",
        ],
    })
}

async fn discovery(State(published): State<Published>, headers: HeaderMap) -> Response {
    let etag = entity_tag(&published.discovery);
    published.answer(&headers, &etag, published.discovery.clone())
}

async fn key_set(State(published): State<Published>, headers: HeaderMap) -> Response {
    let keys = published.keys.key_set();
    published.answer(&headers, &keys.etag, keys.body)
}

impl Published {
    /// What the caller has already is not sent again (RFC 9110, 13.1.2).
    fn answer(&self, headers: &HeaderMap, etag: &str, body: Bytes) -> Response {
        let known = headers
            .get_all(IF_NONE_MATCH)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .map(|given| given.trim().trim_start_matches("W/"))
            .any(|given| given == etag || given == "*");
        let cache_control = format!("public, max-age={}", self.keys.max_age());
        let headers = [(CACHE_CONTROL, cache_control.as_str()), (ETAG, etag)];
        if known {
            (StatusCode::NOT_MODIFIED, headers).into_response()
        } else {
            (headers, [(CONTENT_TYPE, "application/json")], body).into_response()
        }
    }
}
