//! Tokens of issuers that trust policies name: verified, and not asked what they open.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use model::trust;
use serde_json::Value;
use time::OffsetDateTime;

use super::AuthenticationError;
use super::networks::Networks;
use super::outbound::{ClientError, Outbound};
use super::own::{JOB_TOKEN, LocalKeys, OwnKeys};
use super::remote::RemoteKeys;
use super::token::{self, Claims, Header, MAX_TOKEN};

/// Issuers whose keys are kept; beyond, all are forgotten, and fetched again when they are asked for.
const REMEMBERED: usize = 256;

/// Verifies the tokens of issuers that somebody trusts. Fetches an issuer's keys for the first of its tokens.
pub struct TrustedIssuers {
    outbound: Outbound,
    own: String,
    own_keys: LocalKeys,
    issuers: Mutex<HashMap<String, Arc<RemoteKeys>>>,
}

/// A token that verifies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Its `iss`.
    pub issuer: String,
    /// Its `sub`.
    pub subject: String,
    /// Its `aud`: all of them.
    pub audiences: Vec<String>,
    /// Its `jti`, if it has one.
    pub token_id: Option<String>,
    /// Its `exp`.
    pub expires: OffsetDateTime,
    /// All that it says in texts, numbers and truth values.
    pub claims: trust::Claims,
}

impl TrustedIssuers {
    /// At public addresses and in these networks. The tokens that the set's own issuer signs for clouds are verified with
    /// its own keys.
    pub fn new(networks: Networks, own: OwnKeys) -> Result<Self, ClientError> {
        Ok(Self {
            outbound: Outbound::guarded(networks)?,
            own: own.issuer,
            own_keys: LocalKeys::new(own.keys),
            issuers: Mutex::default(),
        })
    }

    /// Verifies a token for one of the audiences that are asked of its issuer. Without any, the issuer is not trusted,
    /// and nothing is fetched.
    pub async fn verify(
        &self,
        token: &str,
        audiences: impl Fn(&str) -> Vec<String>,
    ) -> Result<Verified, AuthenticationError> {
        if token.len() > MAX_TOKEN {
            return Err(AuthenticationError::TooLarge);
        }
        let (header, algorithm) = token::header(token)?;
        let issuer = token::issuer(token)?;
        let audiences = audiences(&issuer);
        if audiences.is_empty() {
            return Err(AuthenticationError::IssuerUnknown);
        }
        self.check_type(&issuer, &header)?;
        let id = header.kid.as_deref();
        let key = if issuer == self.own {
            self.own_keys.find(id, algorithm)?
        } else {
            self.keys_of(&issuer).find(id, algorithm).await?
        };
        let claims = token::verify(token, &key, algorithm, &issuer, &audiences)?;
        read(&claims)
    }

    /// What is made to say who someone is, or is not said to be something else (RFC 8725, section 3.11). Of our own, those
    /// for clouds: one that calls us is not to be had for another one.
    fn check_type(&self, issuer: &str, header: &Header) -> Result<(), AuthenticationError> {
        let known = header.typ.is_none() || header.is_of_type("JWT");
        if known || issuer != self.own && header.is_of_type(JOB_TOKEN) {
            Ok(())
        } else {
            Err(AuthenticationError::TypeRefused)
        }
    }

    fn keys_of(&self, issuer: &str) -> Arc<RemoteKeys> {
        let mut issuers = self.issuers.lock().unwrap_or_else(PoisonError::into_inner);
        if issuers.len() >= REMEMBERED && !issuers.contains_key(issuer) {
            issuers.clear();
        }
        let keys = issuers.entry(issuer.to_owned()).or_insert_with(|| {
            let keys = RemoteKeys::new(issuer, issuer, self.outbound.clone());
            Arc::new(keys)
        });
        Arc::clone(keys)
    }
}

fn read(claims: &Claims) -> Result<Verified, AuthenticationError> {
    Ok(Verified {
        issuer: token::text(claims, "iss")?.to_owned(),
        subject: token::text(claims, "sub")?.to_owned(),
        audiences: audiences(claims.get("aud")),
        token_id: claims.get("jti").and_then(plain),
        expires: expiry(claims).ok_or(AuthenticationError::ClaimInvalid("exp"))?,
        claims: claims
            .iter()
            .filter_map(|(name, value)| Some((name.clone(), plain(value)?)))
            .collect(),
    })
}

/// One text, or several (RFC 7519, section 4.1.3).
fn audiences(claim: Option<&Value>) -> Vec<String> {
    let several = claim.and_then(Value::as_array).map(Vec::as_slice);
    let all = several.unwrap_or(claim.map_or(&[], std::slice::from_ref));
    all.iter()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect()
}

/// Seconds, maybe with a fraction (RFC 7519, section 2), which is left out. Later than any time that there is, the last.
fn expiry(claims: &Claims) -> Option<OffsetDateTime> {
    let seconds = claims
        .get("exp")?
        .as_f64()
        .filter(|seconds| *seconds >= 0.0)?;
    let last = time::PrimitiveDateTime::MAX.assume_utc();
    #[expect(
        clippy::cast_possible_truncation,
        reason = "it saturates, and the last time is earlier"
    )]
    let whole = seconds as i64;
    Some(OffsetDateTime::from_unix_timestamp(whole).unwrap_or(last))
}

fn plain(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(truth) => Some(truth.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}
