//! The tokens of the set's own issuer: of its jobs, which call the issuer, and of service accounts, which call every
//! service.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aws_lc_rs::digest::{SHA256, digest};
use eventlog::Guard;
use jsonwebtoken::jwk::JwkSet;
use model::Principal;
use serde_json::Value;
use tokio::sync::watch;

use super::AuthenticationError;
use super::keys::{Candidate, KeySet, Wanted};
use super::outbound::Outbound;
use super::remote::{Bounds, RemoteKeys};
use super::token::{self, ACCESS_TOKEN, Header};
use crate::caller::Caller;
use crate::clock;

/// The `typ` of a job token. It tells one from the credentials that the issuer signs with the same keys for clouds.
pub(super) const JOB_TOKEN: &str = ACCESS_TOKEN;
/// The `typ` of a service account's token.
pub(super) const SERVICE_ACCOUNT_TOKEN: &str = "sa+jwt";

/// The `aud` of the tokens of service accounts: the services that the issuer belongs to.
#[must_use]
pub fn service_audience(issuer: &str) -> String {
    format!("{issuer}/services")
}

/// The key of the fact that there is of one of the issuer's signing keys, by its `kid`, once it is revoked: as long as
/// somebody may show a token of it.
#[must_use]
pub fn revoked_key(kid: &str) -> String {
    format!("{REVOKED}{kid}")
}

const REVOKED: &str = "signing-key/revoked/";

/// Which key it is of which a guard says that it is not revoked.
#[must_use]
pub fn leaned_on(guard: &Guard) -> Option<&str> {
    guard.key().strip_prefix(REVOKED)
}

/// That the key of one of the issuer's tokens is not revoked.
pub(super) fn not_revoked(header: &Header) -> Result<Guard, AuthenticationError> {
    // All of them are named.
    let kid = header.kid.as_deref();
    let key = kid
        .map(revoked_key)
        .ok_or(AuthenticationError::OwnKeyUnknown)?;
    Ok(Guard::Expect { key, value: None })
}

/// Of a token that is our own issuer's: nobody has to be asked for its keys.
pub(super) fn ours(error: AuthenticationError) -> AuthenticationError {
    match error {
        AuthenticationError::KeyUnknown => AuthenticationError::OwnKeyUnknown,
        other => other,
    }
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
        let keys = RemoteKeys::new("tharsis", &issuer, outbound, Bounds::OWN);
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

    /// Who showed this very token before, while the keys are the same and it has not expired. The hot path of the issuer: a
    /// job shows the same token with each request.
    pub(super) fn known(&self, token: &str) -> Option<Caller> {
        match &self.source {
            Source::Here(keys) => keys.known(&token_digest(token)),
            Source::Published(_) => None,
        }
    }

    pub(super) async fn authenticate(
        &self,
        token: &str,
        header: &Header,
    ) -> Result<Caller, AuthenticationError> {
        let (audience, read): (_, fn(&str) -> Option<Principal>) =
            if header.is_of_type(SERVICE_ACCOUNT_TOKEN) {
                let account = |subject: &str| subject.parse().ok().map(Principal::ServiceAccount);
                (service_audience(&self.issuer), account)
            } else if header.is_of_type(JOB_TOKEN) {
                let job = |subject: &str| subject.parse().ok().map(Principal::Job);
                (self.issuer.clone(), job)
            } else {
                return Err(AuthenticationError::TypeRefused);
            };
        let wanted = Wanted::by(header);
        let verify = |found: &[Candidate]| {
            let audiences = std::slice::from_ref(&audience);
            let (claims, _) = token::verify(token, header, found, &self.issuer, audiences)?;
            let principal = read(token::text(&claims, "sub")?);
            let principal = principal.ok_or(AuthenticationError::ClaimInvalid("sub"))?;
            Ok::<_, AuthenticationError>((principal, claims))
        };
        match &self.source {
            Source::Here(keys) => {
                let set = keys.now();
                let found = set.find(wanted).map_err(|error| ours(error.into()))?;
                let (principal, claims) = verify(&found)?;
                let caller = caller(principal, Some(not_revoked(header)?));
                if let Some(expires) = claims.get("exp").and_then(Value::as_i64) {
                    keys.remember(&set, token_digest(token), &caller, expires);
                }
                Ok(caller)
            }
            Source::Published(keys) => {
                let verified = keys.verify(wanted, &[&self.issuer], verify).await;
                let (principal, _) = verified.map_err(ours)?;
                Ok(caller(principal, None))
            }
        }
    }
}

fn caller(principal: Principal, leans_on: Option<Guard>) -> Caller {
    Caller {
        principal,
        administrator: false,
        event_reader: false,
        leans_on,
    }
}

/// Tokens that are remembered at most; beyond, all are forgotten.
const REMEMBERED: usize = 10_000;

/// Stands for a token in memory, where the token itself would be one that can be used.
pub(super) type TokenDigest = [u8; 32];

fn token_digest(token: &str) -> TokenDigest {
    let mut bytes = TokenDigest::default();
    bytes.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
    bytes
}

/// Keys that another task of this process keeps up to date, and what was verified with them.
pub(super) struct LocalKeys(Mutex<Parsed>);

struct Parsed {
    source: watch::Receiver<JwkSet>,
    keys: Arc<KeySet>,
    /// The tokens that verified with these keys, whose they are, and their `exp`.
    verified: HashMap<TokenDigest, (Caller, i64)>,
}

impl LocalKeys {
    pub(super) fn new(mut source: watch::Receiver<JwkSet>) -> Self {
        let keys = Arc::new(KeySet::of(&source.borrow_and_update()));
        Self(Mutex::new(Parsed {
            source,
            keys,
            verified: HashMap::new(),
        }))
    }

    pub(super) fn now(&self) -> Arc<KeySet> {
        Arc::clone(&self.parsed().keys)
    }

    /// Whose a token is that verified with the keys as they are now, and has not expired.
    pub(super) fn known(&self, token: &TokenDigest) -> Option<Caller> {
        let parsed = self.parsed();
        let (caller, expires) = parsed.verified.get(token)?;
        (clock::now().unix_timestamp() < *expires).then(|| caller.clone())
    }

    /// If the keys are still those that the token verified with.
    pub(super) fn remember(
        &self,
        keys: &Arc<KeySet>,
        token: TokenDigest,
        caller: &Caller,
        expires: i64,
    ) {
        let mut parsed = self.parsed();
        if !Arc::ptr_eq(&parsed.keys, keys) {
            return;
        }
        if parsed.verified.len() >= REMEMBERED {
            parsed.verified.clear();
        }
        parsed.verified.insert(token, (caller.clone(), expires));
    }

    /// As of now: with other keys nothing has been verified yet.
    fn parsed(&self) -> MutexGuard<'_, Parsed> {
        let mut parsed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = parsed.source.has_changed().unwrap_or(false);
        if changed {
            let keys = KeySet::of(&parsed.source.borrow_and_update());
            (parsed.keys, parsed.verified) = (Arc::new(keys), HashMap::new());
        }
        parsed
    }
}
