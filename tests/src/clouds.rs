//! Stand-ins for the endpoints at which clouds exchange our tokens for their own credentials. Each verifies a token as
//! its cloud does, with nothing but the issuer's discovery and keys and what it was told to trust, and refuses with the
//! cloud's own codes. What they give out opens nothing but themselves.

mod answer;
mod aws;
mod azure;
pub mod example;
mod google;
mod kubernetes;
mod tls;
mod trust;
mod verifier;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::State;
use axum::routing::post;
use axum::{Json, Router};
use edge::clock;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

pub use self::tls::Certificate;
pub use self::trust::{Cluster, FederatedCredential, Provider, Role, ServiceAccount, Trust};
use self::verifier::Verifier;

/// All of them, with what they were told and what they gave out. Cheap to clone.
#[derive(Clone, Default)]
pub struct Clouds(Arc<Inner>);

#[derive(Default)]
struct Inner {
    verifier: Verifier,
    trust: Mutex<Trust>,
    /// Who has which credential of theirs.
    given: Mutex<HashMap<String, String>>,
}

impl Clouds {
    /// From now on they trust this too.
    pub fn trust(&self, more: Trust) {
        let mut trust = self.0.trust.lock().unwrap_or_else(PoisonError::into_inner);
        trust.extend(more);
    }

    /// From now on they trust this alone.
    pub fn trust_only(&self, trust: Trust) {
        *self.0.trust.lock().unwrap_or_else(PoisonError::into_inner) = trust;
    }

    /// Who has this credential of theirs: `arn:aws:sts::…`, the email of a service account, ….
    #[must_use]
    pub fn whose(&self, credential: &str) -> Option<String> {
        let given = self.0.given.lock().unwrap_or_else(PoisonError::into_inner);
        given.get(credential).cloned()
    }

    fn trusted<T>(&self, find: impl FnOnce(&Trust) -> T) -> T {
        find(&self.0.trust.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn verifier(&self) -> &Verifier {
        &self.0.verifier
    }

    /// A new credential.
    fn give(&self, to: &str) -> String {
        let credential = clock::new_uuid().simple().to_string();
        let mut given = self.0.given.lock().unwrap_or_else(PoisonError::into_inner);
        given.insert(credential.clone(), to.to_owned());
        credential
    }

    /// Their endpoints: below `/aws`, `/google`, `/kubernetes`, and Azure's at the root, because MSAL takes the first part
    /// of an authority's path for the tenant; and `POST /trust`, which tells them to trust more, for whoever sets them up.
    pub fn router(&self) -> Router {
        Router::new()
            .route("/trust", post(told))
            .merge(aws::router())
            .merge(azure::router())
            .nest("/google", google::router())
            .nest("/kubernetes", kubernetes::router())
            .with_state(self.clone())
    }
}

async fn told(State(clouds): State<Clouds>, Json(trust): Json<Trust>) {
    clouds.trust(trust);
}

/// The stand-ins as servers, as long as this value lives.
pub struct Served {
    /// What they know.
    pub clouds: Clouds,
    addresses: Addresses,
    _serving: [AbortOnDropHandle<std::io::Result<()>>; 2],
}

/// Where the stand-ins are.
#[derive(Clone, Debug)]
pub struct Addresses {
    http: SocketAddr,
    https: SocketAddr,
    certificate: PathBuf,
}

impl Served {
    /// On these listeners; Azure's clients take no authority but by TLS, and trust the certificate, which is written to
    /// the file.
    pub fn on(http: TcpListener, https: TcpListener, file: &Path) -> anyhow::Result<Self> {
        let clouds = Clouds::default();
        let certificate = Certificate::make()?;
        std::fs::write(file, certificate.pem())?;
        let addresses = Addresses {
            http: http.local_addr()?,
            https: https.local_addr()?,
            certificate: file.to_owned(),
        };
        let plain = axum::serve(http, clouds.router());
        let encrypted = axum::serve(certificate.listen(https)?, clouds.router());
        Ok(Self {
            clouds,
            addresses,
            _serving: [
                AbortOnDropHandle::new(tokio::spawn(async move { plain.await })),
                AbortOnDropHandle::new(tokio::spawn(async move { encrypted.await })),
            ],
        })
    }

    /// On free ports.
    pub async fn start(folder: &Path) -> Self {
        let listen = async || TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let (http, https) = tokio::join!(listen(), listen());
        Self::on(http, https, &folder.join("clouds.pem")).expect("they serve")
    }

    /// Where they are.
    #[must_use]
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }
}

impl Addresses {
    /// Those of stand-ins that run elsewhere.
    #[must_use]
    pub fn new(http: SocketAddr, https: SocketAddr, certificate: PathBuf) -> Self {
        Self {
            http,
            https,
            certificate,
        }
    }

    /// `POST`ed to, they trust more.
    #[must_use]
    pub fn trust(&self) -> String {
        format!("http://{}/trust", self.http)
    }

    /// The cluster's API server, with TLS: clients written in Go send a token nowhere else.
    #[must_use]
    pub fn kubernetes(&self) -> String {
        format!("https://{}/kubernetes", self.https)
    }

    /// The file with the certificate that clients must trust.
    #[must_use]
    pub fn certificate(&self) -> &Path {
        &self.certificate
    }

    /// A kubeconfig with the cluster, and a context for a user whom another file knows.
    #[must_use]
    pub fn kubeconfig(&self, user: &str) -> Value {
        json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "main",
            "clusters": [{ "name": "main", "cluster": {
                "server": self.kubernetes(),
                "certificate-authority": self.certificate,
            } }],
            "contexts": [{ "name": "main", "context": { "cluster": "main", "user": user } }],
        })
    }

    /// Sends the clouds' clients to the stand-ins: variables that the SDKs read, and `tharsis-exec`.
    #[must_use]
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        let Self {
            http,
            https,
            certificate,
        } = self;
        vec![
            ("AWS_ENDPOINT_URL_STS", format!("http://{http}/aws")),
            ("AWS_REGION", "eu-central-1".to_owned()),
            ("AWS_DEFAULT_REGION", "eu-central-1".to_owned()),
            ("AWS_EC2_METADATA_DISABLED", "true".to_owned()),
            ("AZURE_AUTHORITY_HOST", format!("https://{https}")),
            ("REQUESTS_CA_BUNDLE", certificate.display().to_string()),
            ("NODE_EXTRA_CA_CERTS", certificate.display().to_string()),
            (
                "THARSIS_EXEC_GOOGLE_STS_URL",
                format!("http://{http}/google"),
            ),
            (
                "THARSIS_EXEC_GOOGLE_IAM_CREDENTIALS_URL",
                format!("http://{http}/google"),
            ),
        ]
    }
}
