//! What relying parties read over HTTP: `OpenID` discovery and the key set.

use axum::Router;
use axum::extract::State;
use axum::http::header::CACHE_CONTROL;
use axum::response::{IntoResponse, Json};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::keys::Keys;

/// Seconds that relying parties may keep what they read.
const MAX_AGE: &str = "public, max-age=300";

#[derive(Clone)]
struct Published {
    discovery: serde_json::Value,
    keys: Keys,
}

/// Serves until told to stop. `issuer` is the `iss` of every token, byte for byte.
pub async fn serve(
    listener: TcpListener,
    issuer: &str,
    keys: Keys,
    stop: CancellationToken,
) -> std::io::Result<()> {
    tracing::info!(address = ?listener.local_addr().ok(), issuer, "serving discovery");
    let app = Router::new()
        .route("/.well-known/openid-configuration", get(discovery))
        .route("/oauth/discovery/keys", get(key_set))
        .with_state(Published {
            discovery: document(issuer),
            keys,
        });
    axum::serve(listener, app)
        .with_graceful_shutdown(stop.cancelled_owned())
        .await
}

/// `OpenID` Connect Discovery 1.0, 3. There is no authorization endpoint: our tokens are not had by logging in.
fn document(issuer: &str) -> serde_json::Value {
    serde_json::json!({
        "issuer": issuer,
        "jwks_uri": format!("{}/oauth/discovery/keys", issuer.trim_end_matches('/')),
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["RS256"],
        "scopes_supported": ["openid"],
        "claims_supported": [
            "iss", "sub", "aud", "iat", "nbf", "exp", "jti",
            "tharsis_job_id", "tharsis_stage", "tharsis_workspace_id", "tharsis_workspace_path", "tharsis_group_path",
        ],
    })
}

async fn discovery(State(published): State<Published>) -> impl IntoResponse {
    ([(CACHE_CONTROL, MAX_AGE)], Json(published.discovery))
}

async fn key_set(State(published): State<Published>) -> impl IntoResponse {
    let keys = published.keys.published();
    let keys = keys.borrow().clone();
    ([(CACHE_CONTROL, MAX_AGE)], Json(keys))
}
