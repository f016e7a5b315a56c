//! Who calls, by the bearer JWT of a configured OIDC issuer, or, at the issuer service, of one of its own jobs. What
//! callers may do is not decided here.

mod issuer;
mod keys;
mod remote;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::jwk::JwkSet;
use jsonwebtoken::{Algorithm, Validation};
use model::Principal;
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use tokio::sync::watch;
use tonic::Status;

pub use self::issuer::{InvalidIssuer, Issuer};
pub use self::remote::ClientError;

use self::keys::{KeySet, NoKey};
use self::remote::RemoteKeys;
use crate::caller::Caller;
use crate::status;

/// Bytes of a token; larger ones are not looked at.
const MAX_TOKEN: usize = 16 << 10;
/// Seconds by which clocks may differ.
const LEEWAY: u64 = 30;
/// The `typ` of a job token (RFC 9068, section 2.1). It tells one from the credentials that the issuer signs with the
/// same keys for clouds.
const JOB_TOKEN_TYPE: &str = "at+jwt";

/// Why a caller is not known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthenticationError {
    /// No `authorization` header.
    #[error("there is no token; send one as `authorization: Bearer <token>`")]
    Missing,
    /// More than one `authorization` header, or one of another kind.
    #[error(
        "the authorization header is not understood; send exactly one, `authorization: Bearer <token>`"
    )]
    HeaderInvalid,
    /// Longer than any token that is taken.
    #[error("the token is longer than {MAX_TOKEN} bytes; ask for one with fewer claims")]
    TooLarge,
    /// Not a JWT.
    #[error("the token is not a JWT in compact form; send the issuer's token as it is")]
    Malformed,
    /// Nobody whose tokens are taken.
    #[error(
        "the token's issuer is not one whose tokens are taken here; get a token from a configured issuer"
    )]
    IssuerUnknown,
    /// A symmetric algorithm, none, or one that does not belong to the key.
    #[error(
        "the token's algorithm is refused; RS, PS, ES256, ES384 or EdDSA is taken, as its key says"
    )]
    AlgorithmRefused,
    /// The issuer has no such key.
    #[error("the token's key is not among those of its issuer; get a new token")]
    KeyUnknown,
    /// Forged, damaged, or by another key.
    #[error("the token's signature does not verify; get a new token")]
    SignatureInvalid,
    /// Past its `exp`.
    #[error("the token has expired; get a new one")]
    Expired,
    /// Before its `nbf`.
    #[error("the token is not valid yet; check the clocks")]
    NotYetValid,
    /// For someone else.
    #[error("the token is for another audience; get one for {expected}")]
    AudienceWrong {
        /// The audience that is taken.
        expected: String,
    },
    /// A claim is missing or not usable.
    #[error("the token's claim {0} is missing or malformed; get a token that has it")]
    ClaimInvalid(&'static str),
    /// A token of the issuer's that is not for calling it.
    #[error(
        "the token is of type other than {JOB_TOKEN_TYPE}; send the job token, not a credential"
    )]
    TypeRefused,
    /// The issuer's keys were never seen.
    #[error("the keys of the issuer {issuer} can't be fetched at the moment; try again")]
    IssuerUnavailable {
        /// The configured name.
        issuer: String,
    },
}

impl AuthenticationError {
    fn reason(&self) -> &'static str {
        match self {
            Self::Missing => "TOKEN_MISSING",
            Self::HeaderInvalid => "AUTHORIZATION_HEADER_INVALID",
            Self::TooLarge => "TOKEN_TOO_LARGE",
            Self::Malformed => "TOKEN_MALFORMED",
            Self::IssuerUnknown => "TOKEN_ISSUER_UNKNOWN",
            Self::AlgorithmRefused => "TOKEN_ALGORITHM_REFUSED",
            Self::KeyUnknown => "TOKEN_KEY_UNKNOWN",
            Self::SignatureInvalid => "TOKEN_SIGNATURE_INVALID",
            Self::Expired => "TOKEN_EXPIRED",
            Self::NotYetValid => "TOKEN_NOT_YET_VALID",
            Self::AudienceWrong { .. } => "TOKEN_AUDIENCE_WRONG",
            Self::ClaimInvalid(_) => "TOKEN_CLAIM_INVALID",
            Self::TypeRefused => "TOKEN_TYPE_REFUSED",
            Self::IssuerUnavailable { .. } => "TOKEN_ISSUER_UNAVAILABLE",
        }
    }
}

impl From<AuthenticationError> for Status {
    fn from(error: AuthenticationError) -> Self {
        let message = error.to_string();
        match error {
            AuthenticationError::IssuerUnavailable { .. } => {
                status::unavailable(error.reason(), &message)
            }
            _ => status::unauthenticated(error.reason(), &message),
        }
    }
}

impl From<NoKey> for AuthenticationError {
    fn from(error: NoKey) -> Self {
        match error {
            NoKey::Unknown => Self::KeyUnknown,
            NoKey::OtherAlgorithm => Self::AlgorithmRefused,
        }
    }
}

/// The tokens of an issuer service's own jobs: `typ` is `at+jwt`, `aud` the issuer's URL, `sub` the job's id.
#[derive(Clone, Debug)]
pub struct JobTokens {
    /// The URL of the issuer: `iss` and `aud`, byte for byte.
    pub issuer: String,
    /// The public keys, as they are now.
    pub keys: watch::Receiver<JwkSet>,
}

/// Knows callers by their tokens. Cheap to clone.
#[derive(Clone)]
pub struct Authenticator {
    trusted: Arc<Trusted>,
    jobs: Option<Arc<Jobs>>,
}

struct Trusted {
    issuers: Vec<(Issuer, RemoteKeys)>,
    administrators: BTreeSet<Principal>,
    event_readers: BTreeSet<Principal>,
}

struct Jobs {
    issuer: String,
    keys: Mutex<JobKeys>,
}

struct JobKeys {
    source: watch::Receiver<JwkSet>,
    parsed: Arc<KeySet>,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    typ: Option<String>,
    crit: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct UnverifiedClaims {
    iss: String,
}

#[derive(Deserialize)]
struct Claims {
    iss: String,
    sub: String,
}

impl Authenticator {
    /// Takes the tokens of these issuers. Fetches nothing before the first token comes.
    pub fn new(
        issuers: Vec<Issuer>,
        administrators: BTreeSet<Principal>,
        event_readers: BTreeSet<Principal>,
    ) -> Result<Self, ClientError> {
        let client = remote::client()?;
        let with_keys = |issuer: Issuer| {
            let keys = RemoteKeys::new(&issuer, client.clone());
            (issuer, keys)
        };
        let issuers = issuers.into_iter().map(with_keys).collect();
        Ok(Self {
            trusted: Arc::new(Trusted {
                issuers,
                administrators,
                event_readers,
            }),
            jobs: None,
        })
    }

    /// Takes the tokens of this issuer's jobs too.
    #[must_use]
    pub fn with_job_tokens(mut self, tokens: JobTokens) -> Self {
        let JobTokens { issuer, mut keys } = tokens;
        let parsed = Arc::new(KeySet::of(&keys.borrow_and_update()));
        self.jobs = Some(Arc::new(Jobs {
            issuer,
            keys: Mutex::new(JobKeys {
                source: keys,
                parsed,
            }),
        }));
        self
    }

    /// Who made a request, by its headers.
    pub async fn authenticate(&self, headers: &HeaderMap) -> Result<Caller, AuthenticationError> {
        let token = bearer(headers)?;
        let (header, algorithm) = header(token)?;
        let UnverifiedClaims { iss } = part(token, 1)?;
        if let Some(jobs) = self.jobs.as_ref().filter(|jobs| jobs.issuer == iss) {
            return jobs.authenticate(token, &header, algorithm);
        }
        let (issuer, keys) = self
            .trusted
            .issuers
            .iter()
            .find(|(issuer, _)| issuer.url == iss)
            .ok_or(AuthenticationError::IssuerUnknown)?;
        let key = keys.find(header.kid.as_deref(), algorithm).await?;
        let claims = verify(token, &key, algorithm, &issuer.url, &issuer.audience)?;
        // Through the parser, for a subject with control characters must not get into events and logs.
        let principal = Principal::user(&format!("{}/{}", issuer.name, claims.sub))
            .map_err(|_| AuthenticationError::ClaimInvalid("sub"))?;
        Ok(Caller {
            administrator: self.trusted.administrators.contains(&principal),
            event_reader: self.trusted.event_readers.contains(&principal),
            principal,
        })
    }
}

impl Jobs {
    fn authenticate(
        &self,
        token: &str,
        header: &Header,
        algorithm: Algorithm,
    ) -> Result<Caller, AuthenticationError> {
        if !header
            .typ
            .as_deref()
            .is_some_and(|typ| typ.eq_ignore_ascii_case(JOB_TOKEN_TYPE))
        {
            return Err(AuthenticationError::TypeRefused);
        }
        let keys = self.keys();
        let key = keys.find(header.kid.as_deref(), algorithm)?;
        let claims = verify(token, &key, algorithm, &self.issuer, &self.issuer)?;
        let job = claims
            .sub
            .parse()
            .map_err(|_| AuthenticationError::ClaimInvalid("sub"))?;
        Ok(Caller {
            principal: Principal::Job(job),
            administrator: false,
            event_reader: false,
        })
    }

    fn keys(&self) -> Arc<KeySet> {
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = keys.source.has_changed().unwrap_or(false);
        if changed {
            let parsed = KeySet::of(&keys.source.borrow_and_update());
            keys.parsed = Arc::new(parsed);
        }
        Arc::clone(&keys.parsed)
    }
}

/// The token of the one `authorization` header. The scheme's case does not matter (RFC 9110, section 11.1).
fn bearer(headers: &HeaderMap) -> Result<&str, AuthenticationError> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let value = values.next().ok_or(AuthenticationError::Missing)?;
    if values.next().is_some() {
        return Err(AuthenticationError::HeaderInvalid);
    }
    let text = value
        .to_str()
        .map_err(|_| AuthenticationError::HeaderInvalid)?;
    let (scheme, token) = text
        .split_once(' ')
        .ok_or(AuthenticationError::HeaderInvalid)?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(AuthenticationError::HeaderInvalid);
    }
    match token.trim() {
        "" => Err(AuthenticationError::Missing),
        token if token.len() > MAX_TOKEN => Err(AuthenticationError::TooLarge),
        token => Ok(token),
    }
}

fn header(token: &str) -> Result<(Header, Algorithm), AuthenticationError> {
    if token.split('.').count() != 3 {
        return Err(AuthenticationError::Malformed);
    }
    let header: Header = part(token, 0)?;
    if header.crit.is_some() {
        // An extension that must be understood and is not (RFC 7515, section 4.1.11).
        return Err(AuthenticationError::Malformed);
    }
    let algorithm = header
        .alg
        .parse()
        .map_err(|_| AuthenticationError::AlgorithmRefused)?;
    Ok((header, algorithm))
}

fn part<T: DeserializeOwned>(token: &str, index: usize) -> Result<T, AuthenticationError> {
    let part = token
        .split('.')
        .nth(index)
        .ok_or(AuthenticationError::Malformed)?;
    let json = URL_SAFE_NO_PAD
        .decode(part)
        .map_err(|_| AuthenticationError::Malformed)?;
    serde_json::from_slice(&json).map_err(|_| match index {
        0 => AuthenticationError::Malformed,
        _ => AuthenticationError::ClaimInvalid("iss"),
    })
}

fn verify(
    token: &str,
    key: &jsonwebtoken::DecodingKey,
    algorithm: Algorithm,
    issuer: &str,
    audience: &str,
) -> Result<Claims, AuthenticationError> {
    let mut validation = Validation::new(algorithm);
    validation.leeway = LEEWAY;
    validation.validate_nbf = true;
    validation.set_issuer(&[issuer]);
    validation.set_audience(&[audience]);
    validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
    let verified = jsonwebtoken::decode::<Claims>(token, key, &validation);
    let claims = verified
        .map_err(|error| refusal(error.kind(), audience))?
        .claims;
    if claims.iss != issuer {
        return Err(AuthenticationError::IssuerUnknown);
    }
    Ok(claims)
}

fn refusal(error: &ErrorKind, audience: &str) -> AuthenticationError {
    use AuthenticationError as E;
    match error {
        ErrorKind::ExpiredSignature => E::Expired,
        ErrorKind::ImmatureSignature => E::NotYetValid,
        ErrorKind::InvalidAudience => E::AudienceWrong {
            expected: audience.to_owned(),
        },
        ErrorKind::InvalidIssuer => E::IssuerUnknown,
        ErrorKind::InvalidAlgorithm | ErrorKind::UnsupportedAlgorithm => E::AlgorithmRefused,
        ErrorKind::InvalidSignature => E::SignatureInvalid,
        ErrorKind::MissingRequiredClaim(claim) | ErrorKind::InvalidClaimFormat(claim) => {
            let known = ["exp", "nbf", "aud", "iss", "sub"];
            E::ClaimInvalid(
                known
                    .into_iter()
                    .find(|name| name == claim)
                    .unwrap_or("exp"),
            )
        }
        // `sub` is the one of the claims read that is not checked before.
        ErrorKind::Json(_) => E::ClaimInvalid("sub"),
        _ => E::Malformed,
    }
}
