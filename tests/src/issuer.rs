//! An OIDC issuer for callers, as far as a service that takes its tokens sees it: discovery, keys, and tokens. It has
//! no login: who has its key is everybody.

use std::sync::OnceLock;

use axum::http::header::CACHE_CONTROL;
use axum::routing::get;
use axum::{Json, Router};
use edge::clock;
use jsonwebtoken::jwk::JwkSet;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

use crate::key::SigningKey;

const JWKS: &str = "/jwks";
/// The configured name of the issuer: principals are `dev/alice`.
pub const NAME: &str = "dev";
/// Whom the tokens are for.
pub const AUDIENCE: &str = "tharsis";
/// Seconds that a token holds.
const LIFETIME: i64 = 3_600;

/// The issuer at this URL.
pub fn router(url: &str, key: &SigningKey) -> Router {
    let discovery = json!({
        "issuer": url,
        "jwks_uri": format!("{url}{JWKS}"),
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["RS256"],
        "claims_supported": ["iss", "sub", "aud", "iat", "exp", "jti"],
    });
    let keys = JwkSet {
        keys: vec![key.jwk().clone()],
    };
    let cached = || [(CACHE_CONTROL, "public, max-age=300")];
    Router::new()
        .route(
            "/.well-known/openid-configuration",
            get(async move || (cached(), Json(discovery))),
        )
        .route(JWKS, get(async move || (cached(), Json(keys))))
}

/// An issuer that serves as long as this value lives.
pub struct CallerIssuer {
    url: String,
    _served: AbortOnDropHandle<std::io::Result<()>>,
}

impl CallerIssuer {
    /// Serves on a free port.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        let url = format!("http://{address}");
        let served = axum::serve(listener, router(&url, key()));
        let served = tokio::spawn(async move { served.await });
        Self {
            url,
            _served: AbortOnDropHandle::new(served),
        }
    }

    /// The `iss` of its tokens.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// What `THARSIS_OIDC_ISSUERS` says of it.
    #[must_use]
    pub fn setting(&self) -> String {
        json!([{ "name": NAME, "url": self.url, "audience": AUDIENCE }]).to_string()
    }

    /// The claims of a good token.
    #[must_use]
    pub fn claims(&self, subject: &str) -> Value {
        let now = clock::now().unix_timestamp();
        json!({ "iss": self.url, "sub": subject, "aud": AUDIENCE, "iat": now, "exp": now + LIFETIME })
    }

    /// A token that is taken.
    #[must_use]
    pub fn token(&self, subject: &str) -> String {
        self.sign(&self.claims(subject))
    }

    /// A token with these claims.
    #[must_use]
    pub fn sign(&self, claims: &Value) -> String {
        key().sign(claims).expect("claims can be signed")
    }
}

/// One key for all issuers of a process: making one takes longer than a test.
#[must_use]
pub fn key() -> &'static SigningKey {
    static KEY: OnceLock<SigningKey> = OnceLock::new();
    KEY.get_or_init(|| SigningKey::generate().expect("a key can be made"))
}
