//! Calling another service, with this service's own token.

use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use http::header::AUTHORIZATION;
use http::{HeaderValue, Uri};
use tonic::body::Body;
use tonic::transport::{ClientTlsConfig, Endpoint, Error};
use tower::Service;

use crate::status;

/// Bytes that may be under way: pages of an event log are larger than HTTP/2's 64 KiB.
const WINDOW: u32 = 2 << 20;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A peer that is silently gone is noticed within this and [`KEEPALIVE_TIMEOUT`].
const KEEPALIVE: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection to another service, made at the first use and again when it breaks. Cheap to clone.
#[derive(Clone)]
pub struct Channel {
    inner: tonic::transport::Channel,
    token: ServiceToken,
}

impl Channel {
    /// To the service at this address.
    pub fn to(address: &Uri, token: ServiceToken) -> Result<Self, Error> {
        let endpoint = Endpoint::from(address.clone())
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(2 * WINDOW)
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true);
        let endpoint = if address.scheme_str() == Some("https") {
            endpoint.tls_config(ClientTlsConfig::new().with_enabled_roots())?
        } else {
            endpoint
        };
        Ok(Self {
            inner: endpoint.connect_lazy(),
            token,
        })
    }
}

impl Service<http::Request<Body>> for Channel {
    type Response = http::Response<Body>;
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        match self.token.header() {
            Ok(header) => {
                request.headers_mut().insert(AUTHORIZATION, header);
                Box::pin(self.inner.call(request))
            }
            Err(error) => {
                let message = "this service has no token for its peers at the moment; try again";
                let status = status::logged(
                    &error,
                    status::unavailable("SERVICE_TOKEN_UNREADABLE", message),
                );
                Box::pin(async move { Ok(status.into_http()) })
            }
        }
    }
}

/// The bearer token that a service presents to the others, in a file that someone else renews. Cheap to clone.
#[derive(Clone)]
pub struct ServiceToken(Arc<TokenFile>);

struct TokenFile {
    path: PathBuf,
    read: Mutex<Option<Read>>,
}

struct Read {
    modified: SystemTime,
    bytes: u64,
    header: HeaderValue,
}

/// The service token can't be read.
#[derive(Debug, thiserror::Error)]
pub enum UnreadableToken {
    /// The file can't be read.
    #[error("{path} can't be read")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file holds no token.
    #[error("{path} holds no token")]
    Malformed {
        /// The file.
        path: PathBuf,
    },
}

impl ServiceToken {
    /// In this file, looked at again at each use.
    #[must_use]
    pub fn in_file(path: PathBuf) -> Self {
        Self(Arc::new(TokenFile {
            path,
            read: Mutex::default(),
        }))
    }

    /// The `authorization` header.
    pub fn header(&self) -> Result<HeaderValue, UnreadableToken> {
        let TokenFile { path, read } = &*self.0;
        let unreadable = |source| UnreadableToken::File {
            path: path.clone(),
            source,
        };
        let metadata = std::fs::metadata(path).map_err(unreadable)?;
        let modified = metadata.modified().map_err(unreadable)?;
        let bytes = metadata.len();
        let mut cached = read.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(read) = cached
            .as_ref()
            .filter(|read| read.modified == modified && read.bytes == bytes)
        {
            return Ok(read.header.clone());
        }
        let malformed = || UnreadableToken::Malformed { path: path.clone() };
        let text = std::fs::read_to_string(path).map_err(unreadable)?;
        let token = text.trim();
        if token.is_empty() {
            return Err(malformed());
        }
        let mut header =
            HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| malformed())?;
        header.set_sensitive(true);
        *cached = Some(Read {
            modified,
            bytes,
            header: header.clone(),
        });
        Ok(header)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_renewed_token_is_used_at_once() {
        let folder = std::env::temp_dir().join(format!("edge-{}", crate::clock::new_uuid()));
        std::fs::create_dir(&folder).expect("a folder");
        let path = folder.join("token");
        let token = ServiceToken::in_file(path.clone());
        assert!(matches!(token.header(), Err(UnreadableToken::File { .. })));
        std::fs::write(&path, "one\n").expect("written");
        assert_eq!(token.header().expect("a token"), "Bearer one");
        std::fs::write(&path, "second\n").expect("written");
        assert_eq!(token.header().expect("a token"), "Bearer second");
        std::fs::write(&path, " \n").expect("written");
        assert!(matches!(
            token.header(),
            Err(UnreadableToken::Malformed { .. })
        ));
        std::fs::remove_dir_all(&folder).expect("removed");
    }
}
