//! TLS for clients that take nothing less, with a certificate of our own.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_rustls::server::TlsStream;

/// For a handshake: whoever connects and says nothing must not keep the others waiting for long.
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
        })
    }
}

/// A listener whose connections are encrypted.
pub struct TlsListener {
    listener: TcpListener,
    acceptor: TlsAcceptor,
}

impl axum::serve::Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let (stream, address) = axum::serve::Listener::accept(&mut self.listener).await;
            if let Ok(Ok(stream)) = timeout(PATIENCE, self.acceptor.accept(stream)).await {
                return (stream, address);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}
