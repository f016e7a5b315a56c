//! What every cloud does with a token before it looks at what it says: the keys that the issuer's discovery names, the
//! signature, the time.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::jwk::{Jwk, JwkSet};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde::Deserialize;
use serde_json::Value;

use crate::relying_party::max_age;

/// What a token says, verified or not.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Claims {
    pub(super) iss: String,
    pub(super) sub: String,
    pub(super) aud: Audience,
}

/// RFC 7519, 4.1.3.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Audience {
    One(String),
    Many(Vec<String>),
}

/// Why a token is not one of the issuer's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wrong {
    Malformed,
    Algorithm,
    /// The issuer's keys can't be had.
    Keys,
    /// The issuer does not publish the key.
    Key,
    Signature,
    NotInTime,
}

/// Keeps the keys of the issuers, by their URL, for as long as it may, and asks again for a key that it does not know.
#[derive(Default)]
pub(super) struct Verifier {
    client: reqwest::Client,
    kept: Mutex<HashMap<String, Kept>>,
}

struct Kept {
    keys: JwkSet,
    until: Instant,
}

impl Audience {
    pub(super) fn names(&self, wanted: &str) -> bool {
        match self {
            Self::One(audience) => audience == wanted,
            Self::Many(audiences) => audiences.iter().any(|audience| audience == wanted),
        }
    }
}

/// What the token says, for finding who may have issued it. It is not verified yet.
pub(super) fn unverified(token: &str) -> Result<Claims, Wrong> {
    let claims = token.split('.').nth(1).ok_or(Wrong::Malformed)?;
    let claims = URL_SAFE_NO_PAD
        .decode(claims)
        .map_err(|_| Wrong::Malformed)?;
    serde_json::from_slice(&claims).map_err(|_| Wrong::Malformed)
}

impl Verifier {
    /// What the token says, if this issuer signed it with one of these algorithms, and its time is now.
    pub(super) async fn verify(
        &self,
        token: &str,
        issuer: &str,
        algorithms: &[Algorithm],
    ) -> Result<Claims, Wrong> {
        let header = jsonwebtoken::decode_header(token).map_err(|_| Wrong::Malformed)?;
        if !algorithms.contains(&header.alg) {
            return Err(Wrong::Algorithm);
        }
        let key = self
            .key(issuer, header.kid.as_deref().ok_or(Wrong::Key)?)
            .await?;
        let key = DecodingKey::from_jwk(&key).map_err(|_| Wrong::Keys)?;
        let mut validation = Validation::new(header.alg);
        validation.set_issuer(&[issuer]);
        validation.set_required_spec_claims(&["iss", "sub", "aud", "exp"]);
        validation.validate_aud = false;
        validation.validate_nbf = true;
        let decoded = jsonwebtoken::decode::<Claims>(token, &key, &validation);
        decoded
            .map(|decoded| decoded.claims)
            .map_err(|error| match error.kind() {
                ErrorKind::ExpiredSignature | ErrorKind::ImmatureSignature => Wrong::NotInTime,
                ErrorKind::InvalidSignature => Wrong::Signature,
                _ => Wrong::Malformed,
            })
    }

    async fn key(&self, issuer: &str, kid: &str) -> Result<Jwk, Wrong> {
        let known = || {
            let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            let fresh = kept
                .get(issuer)
                .filter(|kept| Instant::now() < kept.until)?;
            fresh.keys.find(kid).cloned()
        };
        if let Some(key) = known() {
            return Ok(key);
        }
        let fetched = self.fetch(issuer).await.ok_or(Wrong::Keys)?;
        let key = fetched.keys.find(kid).cloned();
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.insert(issuer.to_owned(), fetched);
        key.ok_or(Wrong::Key)
    }

    async fn fetch(&self, issuer: &str) -> Option<Kept> {
        let get = async |url: &str| {
            let answer = self.client.get(url).send().await.ok()?;
            answer.error_for_status().ok()
        };
        let discovery = get(&format!("{issuer}/.well-known/openid-configuration")).await?;
        let discovery: Value = discovery.json().await.ok()?;
        if discovery["issuer"] != issuer {
            return None;
        }
        let asked = Instant::now();
        let keys = get(discovery["jwks_uri"].as_str()?).await?;
        let until = asked + max_age(&keys).unwrap_or_default();
        let keys = keys.json().await.ok()?;
        Some(Kept { keys, until })
    }
}
