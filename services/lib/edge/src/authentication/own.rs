//! The tokens of the set's own issuer: of its jobs, which call the issuer, and of service accounts, which call every
//! service.

use std::sync::{Arc, Mutex, PoisonError};

use jsonwebtoken::jwk::JwkSet;
use jsonwebtoken::{Algorithm, DecodingKey};
use model::Principal;
use tokio::sync::watch;

use super::AuthenticationError;
use super::keys::KeySet;
use super::outbound::Outbound;
use super::remote::RemoteKeys;
use super::token::{self, Header};
use crate::caller::Caller;

/// The `typ` of a job token (RFC 9068, section 2.1). It tells one from the credentials that the issuer signs with the
/// same keys for clouds.
pub(super) const JOB_TOKEN: &str = "at+jwt";
/// The `typ` of a service account's token.
pub(super) const SERVICE_ACCOUNT_TOKEN: &str = "sa+jwt";

/// The `aud` of the tokens of service accounts: the services that the issuer belongs to.
#[must_use]
pub fn service_audience(issuer: &str) -> String {
    format!("{issuer}/services")
}

/// The keys of the issuer in whose process this runs.
#[derive(Clone, Debug)]
pub struct OwnKeys {
    /// The URL of the issuer: the `iss` of its tokens and the `aud` of its jobs', byte for byte.
    pub issuer: String,
    /// The public keys, as they are now.
    pub keys: watch::Receiver<JwkSet>,
}

/// Verifies the tokens of the set's own issuer.
pub(super) struct Own {
    issuer: String,
    source: Source,
}

enum Source {
    /// In the issuer, where jobs call too.
    Here(LocalKeys),
    Published(RemoteKeys),
}

impl Own {
    pub(super) fn here(keys: OwnKeys) -> Self {
        let OwnKeys { issuer, keys } = keys;
        Self {
            issuer,
            source: Source::Here(LocalKeys::new(keys)),
        }
    }

    pub(super) fn published(issuer: String, outbound: Outbound) -> Self {
        let keys = RemoteKeys::new("tharsis", &issuer, outbound);
        Self {
            issuer,
            source: Source::Published(keys),
        }
    }

    /// Whether a token of this issuer and type is looked at here. Where jobs do not call, theirs is one of an issuer that
    /// is not known.
    pub(super) fn takes(&self, issuer: &str, header: &Header) -> bool {
        let here = matches!(self.source, Source::Here(_));
        issuer == self.issuer && (here || header.is_of_type(SERVICE_ACCOUNT_TOKEN))
    }

    pub(super) async fn authenticate(
        &self,
        token: &str,
        header: &Header,
        algorithm: Algorithm,
    ) -> Result<Caller, AuthenticationError> {
        let principal = if header.is_of_type(SERVICE_ACCOUNT_TOKEN) {
            let audience = service_audience(&self.issuer);
            let subject = self.subject(token, header, algorithm, &audience).await?;
            subject.parse().map(Principal::ServiceAccount)
        } else if header.is_of_type(JOB_TOKEN) {
            let subject = self.subject(token, header, algorithm, &self.issuer).await?;
            subject.parse().map(Principal::Job)
        } else {
            return Err(AuthenticationError::TypeRefused);
        };
        Ok(Caller {
            principal: principal.map_err(|_| AuthenticationError::ClaimInvalid("sub"))?,
            administrator: false,
            event_reader: false,
        })
    }

    async fn subject(
        &self,
        token: &str,
        header: &Header,
        algorithm: Algorithm,
        audience: &str,
    ) -> Result<String, AuthenticationError> {
        let key = match &self.source {
            Source::Here(keys) => keys.find(header.kid.as_deref(), algorithm)?,
            Source::Published(keys) => keys.find(header.kid.as_deref(), algorithm).await?,
        };
        let audiences = [audience.to_owned()];
        let claims = token::verify(token, &key, algorithm, &self.issuer, &audiences)?;
        token::text(&claims, "sub").map(str::to_owned)
    }
}

/// Keys that another task of this process keeps up to date.
pub(super) struct LocalKeys(Mutex<Parsed>);

struct Parsed {
    source: watch::Receiver<JwkSet>,
    keys: Arc<KeySet>,
}

impl LocalKeys {
    pub(super) fn new(mut source: watch::Receiver<JwkSet>) -> Self {
        let keys = Arc::new(KeySet::of(&source.borrow_and_update()));
        Self(Mutex::new(Parsed { source, keys }))
    }

    pub(super) fn find(
        &self,
        id: Option<&str>,
        algorithm: Algorithm,
    ) -> Result<DecodingKey, AuthenticationError> {
        Ok(self.now().find(id, algorithm)?)
    }

    fn now(&self) -> Arc<KeySet> {
        let mut parsed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = parsed.source.has_changed().unwrap_or(false);
        if changed {
            let keys = KeySet::of(&parsed.source.borrow_and_update());
            parsed.keys = Arc::new(keys);
        }
        Arc::clone(&parsed.keys)
    }
}
