//! TLS for clients that take nothing less, with a certificate of our own.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_rustls::server::TlsStream;

/// For a handshake.
const PATIENCE: Duration = Duration::from_secs(2);

/// A certificate for this machine alone, and its key.
pub struct Certificate(CertifiedKey<rcgen::KeyPair>);

impl Certificate {
    /// Makes one.
    pub fn make() -> Result<Self> {
        let names = ["127.0.0.1", "localhost"].map(str::to_owned);
        Ok(Self(generate_simple_self_signed(names)?))
    }

    /// What clients must trust.
    #[must_use]
    pub fn pem(&self) -> String {
        self.0.cert.pem()
    }

    /// Takes connections with it.
    pub fn listen(&self, listener: TcpListener) -> Result<TlsListener> {
        let key = PrivateKeyDer::Pkcs8(self.0.signing_key.serialize_der().into());
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![self.0.cert.der().clone()], key)?;
        Ok(TlsListener {
            listener,
            acceptor: TlsAcceptor::from(Arc::new(config)),
            handshakes: JoinSet::new(),
        })
    }
}

/// A listener whose connections are encrypted.
pub struct TlsListener {
    listener: TcpListener,
    acceptor: TlsAcceptor,
    /// Each by itself: whoever connects and says nothing must not keep the others waiting.
    handshakes: JoinSet<Option<(TlsStream<TcpStream>, SocketAddr)>>,
}

impl axum::serve::Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            tokio::select! {
                (stream, address) = axum::serve::Listener::accept(&mut self.listener) => {
                    let handshake = timeout(PATIENCE, self.acceptor.accept(stream));
                    self.handshakes.spawn(async move {
                        let stream = handshake.await.ok()?.ok()?;
                        Some((stream, address))
                    });
                }
                Some(done) = self.handshakes.join_next() => {
                    if let Ok(Some(encrypted)) = done {
                        return encrypted;
                    }
                }
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::routing::get;
    use futures::future::join_all;
    use tokio_util::task::AbortOnDropHandle;

    use super::*;

    #[tokio::test]
    async fn who_connects_and_says_nothing_keeps_nobody_waiting() {
        let certificate = Certificate::make().expect("a certificate");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("it is bound");
        let app = Router::new().route("/", get(async || "hello"));
        let served = axum::serve(certificate.listen(listener).expect("it listens"), app);
        let _served = AbortOnDropHandle::new(tokio::spawn(async move { served.await }));
        let _silent = join_all((0..32).map(|_| TcpStream::connect(address))).await;
        let trusted = reqwest::Certificate::from_pem(certificate.pem().as_bytes());
        let client = reqwest::Client::builder()
            .tls_certs_only([trusted.expect("a certificate")])
            // One after the other, they would have twice as long.
            .timeout(16 * PATIENCE)
            .build()
            .expect("a client");
        let answer = client.get(format!("https://{address}/")).send().await;
        assert_eq!(answer.expect("an answer").status(), 200);
    }
}
