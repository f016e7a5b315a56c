//! What relying parties read over HTTP: `OpenID` discovery and the key set. From memory, so the database may be away. And
//! where tokens are exchanged.

mod token;

use std::collections::BTreeSet;
use std::convert::Infallible;

use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Router, middleware};
use edge::http1;
use futures::stream;
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
) {
    tracing::info!(address = ?listener.local_addr().ok(), issuer, "serving discovery");
    let published = Published {
        discovery: document(issuer).to_string().into(),
        keys,
    };
    http1::serve(listener, app(issuer, published, rpc), stop).await;
}

/// Under the path of the issuer's URL, where relying parties look, and at the root, where a proxy may have taken it away.
fn app(issuer: &str, published: Published, rpc: IssuerRpc) -> Router {
    let exchange = post(token::exchange)
        .layer(DefaultBodyLimit::max(token::MAX_REQUEST))
        .layer(middleware::from_fn_with_state(rpc.clone(), token::admit))
        .with_state(rpc);
    BTreeSet::from(["", path(issuer)])
        .into_iter()
        // What a path is made of in a URL is no pattern here.
        .fold(Router::new().without_v07_checks(), |app, base| {
            app.route(
                &format!("{base}/.well-known/openid-configuration"),
                get(discovery),
            )
            .route(&format!("{base}/oauth/discovery/keys"), get(key_set))
            .route(&format!("{base}/token"), exchange.clone())
        })
        .fallback(token::not_found)
        .method_not_allowed_fallback(token::not_allowed)
        .with_state(published)
}

/// Of a URL: empty, or `/` and something.
fn path(url: &str) -> &str {
    let authority = url.split_once("://").map_or(url, |(_, rest)| rest);
    authority
        .find('/')
        .map_or("", |start| authority[start..].trim_end_matches('/'))
}

/// `OpenID` Connect Discovery 1.0, 3. Our tokens are not had by logging in, and nothing is served at the authorization
/// endpoint; but there are clients that refuse a document without one, or with one that is no https URL.
fn document(issuer: &str) -> serde_json::Value {
    serde_json::json!({
        "issuer": issuer,
        "jwks_uri": format!("{}/oauth/discovery/keys", issuer.trim_end_matches('/')),
        "authorization_endpoint": format!("{}/authorize", issuer.trim_end_matches('/')),
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
    let max_age = published.keys.max_age();
    answer(&headers, max_age, &etag, published.discovery)
}

async fn key_set(State(published): State<Published>, headers: HeaderMap) -> Response {
    // First: however long it takes until the set is read, it is no older then.
    let max_age = published.keys.max_age();
    let keys = published.keys.key_set();
    answer(&headers, max_age, &keys.etag, keys.body)
}

/// What the caller has already is not sent again (RFC 9110, 13.1.2).
fn answer(headers: &HeaderMap, max_age: u64, etag: &str, body: Bytes) -> Response {
    let known = headers
        .get_all(IF_NONE_MATCH)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|given| given.trim().trim_start_matches("W/"))
        .any(|given| given == etag || given == "*");
    let cache_control = format!("public, max-age={max_age}");
    let headers = [(CACHE_CONTROL, cache_control.as_str()), (ETAG, etag)];
    if known {
        // Of no length that is known here: an answer to HEAD would be given one, which must be that of the whole (RFC 9110,
        // 8.6).
        let nothing = Body::from_stream(stream::empty::<Result<Bytes, Infallible>>());
        (StatusCode::NOT_MODIFIED, headers, nothing).into_response()
    } else {
        (headers, [(CONTENT_TYPE, "application/json")], body).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_endpoints_are_below_the_issuer() {
        for issuer in ["https://example.com/oidc", "https://example.com/oidc/"] {
            let document = document(issuer);
            for (endpoint, path) in [
                ("authorization_endpoint", "authorize"),
                ("token_endpoint", "token"),
                ("jwks_uri", "oauth/discovery/keys"),
            ] {
                let expected = format!("https://example.com/oidc/{path}");
                assert_eq!(document[endpoint], expected, "{issuer}");
            }
        }
    }

    #[test]
    fn the_path_of_an_issuer() {
        for (url, expected) in [
            ("https://example.com", ""),
            ("https://example.com:8443", ""),
            ("http://[::1]:7105", ""),
            ("https://example.com/oidc/tharsis", "/oidc/tharsis"),
            ("https://example.com/:a/*b", "/:a/*b"),
        ] {
            assert_eq!(path(url), expected, "{url}");
        }
    }
}
