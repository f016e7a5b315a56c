//! Tokens of issuers that trust policies name: verified, and not asked what they open.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use eventlog::Guard;
use model::trust::{self, TrustPolicy};
use serde_json::Value;
use time::OffsetDateTime;

use super::AuthenticationError;
use super::keys::{Candidate, Wanted};
use super::networks::Networks;
use super::outbound::{ClientError, Outbound};
use super::own::{LocalKeys, OwnKeys, not_revoked, ours};
use super::remote::{Bounds, RemoteKeys};
use super::token::{self, ACCESS_TOKEN, Claims, Header, MAX_TOKEN};

/// Issuers whose keys are kept; beyond, one is forgotten of whoever has most of them.
const REMEMBERED: usize = 256;

/// Verifies the tokens of issuers that somebody trusts. Fetches an issuer's keys for the first of its tokens.
pub struct TrustedIssuers {
    outbound: Outbound,
    own: String,
    own_keys: LocalKeys,
    issuers: Mutex<HashMap<String, Remembered>>,
}

struct Remembered {
    keys: Arc<RemoteKeys>,
    asked: Instant,
    /// On whose behalf, among those that are above all others.
    of: BTreeSet<String>,
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
    /// Its `alg`, with which it is signed.
    pub algorithm: String,
    /// Whether the key that it verifies with says that algorithm itself.
    pub declared: bool,
    /// Whether it is said to be an access token, and so no ID token.
    pub access_token: bool,
    /// Its `jti`, if it has one.
    pub token_id: Option<String>,
    /// Its `exp`.
    pub expires: OffsetDateTime,
    /// All that it says in texts, numbers and truth values.
    pub claims: trust::Claims,
    /// Of a token of our own: that its key is not revoked.
    pub leans_on: Option<Guard>,
}

/// What a policy asks for is not told to whoever has a token of the issuer.
fn without_policy(error: AuthenticationError) -> AuthenticationError {
    match error {
        AuthenticationError::AudienceWrong { .. } => AuthenticationError::AudienceWrong {
            expected: "the one that the service account's trust policy names".to_owned(),
        },
        other => other,
    }
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

    /// Verifies a token as the policies of its issuer ask. Without any, the issuer is not trusted, and nothing is fetched.
    /// `of` is on whose behalf it is, and what is above that, each above the one before: what one trusts may keep nobody
    /// else waiting, and makes nothing forgotten that is another one's.
    pub async fn verify(
        &self,
        token: &str,
        policies: &[TrustPolicy],
        of: &[&str],
    ) -> Result<Verified, AuthenticationError> {
        if token.len() > MAX_TOKEN {
            return Err(AuthenticationError::TooLarge);
        }
        let header = token::header(token)?;
        let issuer = token::issuer(token)?;
        let mut policies = policies.to_vec();
        policies.retain(|policy| policy.issuer.as_str() == issuer);
        if policies.is_empty() {
            return Err(AuthenticationError::IssuerUnknown);
        }
        self.check_type(&issuer, &header)?;
        // If its key says so, or a policy.
        policies.retain(|policy| policy.is_signed_with(header.algorithm(), true));
        if policies.is_empty() {
            return Err(AuthenticationError::AlgorithmRefused);
        }
        let wanted = Wanted {
            declared: policies
                .iter()
                .all(|policy| policy.signing_algorithm.is_none()),
            ..Wanted::by(&header)
        };
        let audiences: Vec<_> = policies
            .iter()
            .map(|policy| policy.audience.to_string())
            .collect();
        let verify = |found: &[Candidate]| {
            let verified = token::verify(token, &header, found, &issuer, &audiences);
            let (claims, key) = verified.map_err(without_policy)?;
            read(&header, &claims, key)
        };
        if issuer == self.own {
            let found = self.own_keys.now().find(wanted);
            let mut verified = verify(&found.map_err(|error| ours(error.into()))?)?;
            verified.leans_on = Some(not_revoked(&header)?);
            Ok(verified)
        } else {
            let highest = of.last().copied().unwrap_or_default();
            let keys = self.keys_of(&issuer, highest);
            keys.verify(wanted, of, verify).await
        }
    }

    /// What says who someone is. Of our own, those for clouds: one that calls us is not to be had for another one.
    fn check_type(&self, issuer: &str, header: &Header) -> Result<(), AuthenticationError> {
        let calls_us = issuer == self.own && header.is_of_type(ACCESS_TOKEN);
        if header.says_who() && !calls_us {
            Ok(())
        } else {
            Err(AuthenticationError::TypeRefused)
        }
    }

    pub(super) fn keys_of(&self, issuer: &str, of: &str) -> Arc<RemoteKeys> {
        let mut issuers = self.issuers.lock().unwrap_or_else(PoisonError::into_inner);
        if issuers.len() >= REMEMBERED && !issuers.contains_key(issuer) {
            forget_one(&mut issuers);
        }
        let remembered = issuers.entry(issuer.to_owned()).or_insert_with(|| {
            let keys = RemoteKeys::new(issuer, issuer, self.outbound.clone(), Bounds::FOREIGN);
            Remembered {
                keys: Arc::new(keys),
                asked: Instant::now(),
                of: BTreeSet::new(),
            }
        });
        remembered.asked = Instant::now();
        remembered.of.insert(of.to_owned());
        Arc::clone(&remembered.keys)
    }
}

/// One of whoever has most of them, and nobody else who has less: who names many issuers so takes the place of their own.
/// Of these one without usable keys, if there is; rather one that is not being asked for them; the one that was least lately
/// asked for.
fn forget_one(issuers: &mut HashMap<String, Remembered>) {
    let mut counts: HashMap<&str, usize> = HashMap::new();
    for of in issuers.values().flat_map(|remembered| &remembered.of) {
        *counts.entry(of).or_default() += 1;
    }
    let rank = |(_, remembered): &(&String, &Remembered)| {
        let Remembered { keys, asked, of } = remembered;
        let least = of.iter().filter_map(|of| counts.get(of.as_str())).min();
        let (usable, in_flight) = (keys.has_usable_keys(), keys.is_in_flight());
        (Reverse(least), usable, in_flight, *asked)
    };
    let first = issuers.iter().min_by_key(rank);
    if let Some(first) = first.map(|(issuer, _)| issuer.clone()) {
        issuers.remove(&first);
    }
}

fn read(
    header: &Header,
    claims: &Claims,
    key: &Candidate,
) -> Result<Verified, AuthenticationError> {
    let subject = token::text(claims, "sub")?;
    if !trust::is_plain(subject) {
        return Err(AuthenticationError::ClaimInvalid("sub"));
    }
    Ok(Verified {
        issuer: token::text(claims, "iss")?.to_owned(),
        subject: subject.to_owned(),
        audiences: audiences(claims.get("aud")),
        algorithm: header.algorithm().to_owned(),
        declared: key.declared,
        access_token: header.is_of_type(ACCESS_TOKEN),
        token_id: claims.get("jti").and_then(plain),
        expires: expiry(claims).ok_or(AuthenticationError::ClaimInvalid("exp"))?,
        claims: claims
            .iter()
            .filter_map(|(name, value)| Some((name.clone(), plain(value)?)))
            .filter(|(_, said)| trust::is_plain(said))
            .collect(),
        leans_on: None,
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
