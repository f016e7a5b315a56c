//! An issuer that trust policies name, as CI systems are one: its tokens say what a test likes, and its documents are as
//! good or as bad as the test wants them.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse as _, Response};
use edge::clock;
use futures::{StreamExt as _, stream};
use proto::identity::v1 as identity;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::task::AbortOnDropHandle;

use crate::issuer::key;
use crate::user::{self, trust};

/// Where discovery is.
pub const DISCOVERY: &str = "/.well-known/openid-configuration";
/// Where the keys are.
pub const KEYS: &str = "/jwks";

/// What is served at a path.
#[derive(Clone, Debug)]
pub enum Document {
    /// This.
    Json(Value),
    /// This, which may be kept for so many seconds.
    Kept(Value, u32),
    /// This, for each permit once.
    Held(Value, Arc<Semaphore>),
    /// As many bytes of it.
    Huge(usize),
    /// The word that it is elsewhere.
    Moved(String),
    /// A failure.
    Failure,
    /// Nothing, ever.
    Silence,
    /// A kilobyte after the other, without an end.
    Endless,
    /// A byte now and then, without an end.
    Drip,
}

/// An issuer that serves as long as this value lives.
pub struct ForeignIssuer {
    url: String,
    documents: Arc<Mutex<BTreeMap<String, Document>>>,
    fetches: Arc<AtomicUsize>,
    _served: AbortOnDropHandle<std::io::Result<()>>,
}

impl ForeignIssuer {
    /// A good one, on a free port.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port is free");
        let url = format!("http://{}", listener.local_addr().expect("it is bound"));
        let discovery = json!({ "issuer": url, "jwks_uri": format!("{url}{KEYS}") });
        let documents = [
            (DISCOVERY, Document::Json(discovery)),
            (KEYS, Document::Json(json!({ "keys": [key().jwk()] }))),
        ];
        let documents = documents.map(|(path, document)| (path.to_owned(), document));
        let documents = Arc::new(Mutex::new(BTreeMap::from(documents)));
        let fetches = Arc::new(AtomicUsize::new(0));
        let (served, counted) = (Arc::clone(&documents), Arc::clone(&fetches));
        let app = Router::new().fallback(move |uri: Uri| {
            counted.fetch_add(1, Ordering::SeqCst);
            let documents = served.lock().unwrap_or_else(PoisonError::into_inner);
            answer(documents.get(uri.path()).cloned())
        });
        let served = axum::serve(listener, app);
        let served = tokio::spawn(async move { served.await });
        Self {
            url,
            documents,
            fetches,
            _served: AbortOnDropHandle::new(served),
        }
    }

    /// The `iss` of its tokens.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Serves something else at a path.
    pub fn serves(&self, path: &str, document: Document) {
        let mut documents = self
            .documents
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        documents.insert(path.to_owned(), document);
    }

    /// How often anything was asked of it.
    #[must_use]
    pub fn fetches(&self) -> usize {
        self.fetches.load(Ordering::SeqCst)
    }

    /// The claims of a good token.
    #[must_use]
    pub fn claims(&self, subject: &str) -> Value {
        claims(&self.url, subject)
    }

    /// A token that is taken where its subject is trusted.
    #[must_use]
    pub fn token(&self, subject: &str) -> String {
        key()
            .sign(&self.claims(subject))
            .expect("claims can be signed")
    }

    /// The request that makes a service account which trusts subjects of this issuer like this one.
    #[must_use]
    pub fn trusted_by(&self, path: &str, subject: &str) -> identity::CreateServiceAccountRequest {
        trusting(path, &self.url, subject)
    }
}

/// The claims of a good token of this issuer.
#[must_use]
pub fn claims(issuer: &str, subject: &str) -> Value {
    let now = clock::now().unix_timestamp();
    let token_id = clock::new_uuid().to_string();
    json!({
        "iss": issuer, "sub": subject, "aud": "tharsis", "iat": now, "exp": now + 3_600, "jti": token_id,
        "environment": "prod", "run": 7,
    })
}

/// The request that makes a service account which trusts subjects of an issuer like this one.
#[must_use]
pub fn trusting(path: &str, issuer: &str, subject: &str) -> identity::CreateServiceAccountRequest {
    let mut request = user::service_account(path);
    request
        .service_account
        .get_or_insert_default()
        .trust_policies = vec![trust(issuer, subject)];
    request
}

async fn answer(document: Option<Document>) -> Response {
    match document {
        Some(Document::Json(json)) => axum::Json(json).into_response(),
        Some(Document::Kept(json, seconds)) => {
            let max_age = format!("public, max-age={seconds}");
            ([(header::CACHE_CONTROL, max_age)], axum::Json(json)).into_response()
        }
        Some(Document::Held(json, permits)) => {
            permits.acquire().await.expect("open").forget();
            axum::Json(json).into_response()
        }
        Some(Document::Huge(bytes)) => json!("x".repeat(bytes)).to_string().into_response(),
        Some(Document::Moved(to)) => (StatusCode::FOUND, [(header::LOCATION, to)]).into_response(),
        Some(Document::Failure) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        Some(Document::Silence) => std::future::pending().await,
        Some(Document::Endless) => streamed(1 << 10, Duration::ZERO),
        Some(Document::Drip) => streamed(1, Duration::from_millis(100)),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

/// In chunks, so that nothing says how long it is.
fn streamed(bytes: usize, pause: Duration) -> Response {
    let chunks = stream::repeat(bytes).then(move |bytes| async move {
        tokio::time::sleep(pause).await;
        Ok::<_, Infallible>("x".repeat(bytes))
    });
    Body::from_stream(chunks).into_response()
}
