//! Who calls, by the bearer JWT of a configured OIDC issuer, of a service account, or, at the issuer service, of one of its
//! own jobs. What callers may do is not decided here.

mod issuer;
mod keys;
mod networks;
mod outbound;
mod own;
mod remote;
#[cfg(test)]
mod tests;
mod token;
mod trusted;

use std::collections::BTreeSet;
use std::sync::Arc;

use http::HeaderMap;
use http::header::AUTHORIZATION;
use model::Principal;
use tonic::Status;

pub use self::issuer::{InvalidIssuer, Issuer};
pub use self::networks::{InvalidNetwork, Networks};
pub use self::outbound::ClientError;
pub use self::own::{OwnKeys, leaned_on, revoked_key, service_audience};
pub use self::trusted::{TrustedIssuers, Verified};

use self::keys::{Candidate, NoKey, Wanted};
use self::outbound::Outbound;
use self::own::{JOB_TOKEN, Own, SERVICE_ACCOUNT_TOKEN};
use self::remote::{Bounds, RemoteKeys};
use self::token::{ACCESS_TOKEN, MAX_TOKEN};
use crate::caller::Caller;
use crate::status;

/// How to come by another token of the set's own issuer.
const RENEW: &str = "get a new one: for a job by the same OpenJob with its request_id, for a service account by exchange";

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
    #[error(
        "the token is not a JWT that is taken: three parts in base64url, no claim or header parameter twice, and alg in \
         its header, but no crit, b64, enc or zip; send the issuer's token as it is"
    )]
    Malformed,
    /// Nobody whose tokens are taken.
    #[error(
        "the token's issuer is not one whose tokens are taken here; get a token from a configured issuer"
    )]
    IssuerUnknown,
    /// A symmetric algorithm, none, or one that does not belong to the key.
    #[error(
        "the token's algorithm is refused; RS, PS, ES256, ES384 or EdDSA is taken, as its key says, and a trust policy \
         that names one"
    )]
    AlgorithmRefused,
    /// The issuer has no such key.
    #[error(
        "the token names no key that is among those of its issuer, which is asked for them once in 10 s at most; try \
         again then, or get a new token"
    )]
    KeyUnknown,
    /// The set's own issuer has no such key.
    #[error(
        "the token's key is not, or not any more, among those of our own issuer, which every service has looked up within \
         the last 5 s; {RENEW}"
    )]
    OwnKeyUnknown,
    /// The set's own issuer does not stand by the key any more.
    #[error("the key that signed the token was revoked; {RENEW}")]
    KeyRevoked,
    /// Nobody says what the key is for.
    #[error(
        "the token's key does not say its algorithm (alg), nor does a trust policy for its issuer; have the issuer \
         publish it, or the service account's owner set the policy's signing_algorithm"
    )]
    KeyWithoutAlgorithm,
    /// An RSA key that could be broken.
    #[error(
        "the token's key is an RSA key of less than 2048 bits; have the issuer sign with a longer one"
    )]
    KeyTooShort,
    /// A key that is none.
    #[error(
        "the token's key can't be used: RSA keys of 2048 to 8192 bits with an odd exponent, and points of P-256, P-384 \
         and Ed25519 in full length are taken; have the issuer publish it so"
    )]
    KeyUnusable,
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
    /// A token that is for something else.
    #[error(
        "the token's type is not taken here; to call, send one of a configured issuer (JWT or {ACCESS_TOKEN}), a job's \
         ({JOB_TOKEN}) or a service account's ({SERVICE_ACCOUNT_TOKEN}), to exchange, one that says who you are (JWT)"
    )]
    TypeRefused,
    /// The issuer's keys were never seen, or too long ago.
    #[error(
        "the keys of the issuer {issuer} can't be fetched: {why}; try again, or have the issuer mended"
    )]
    IssuerUnavailable {
        /// The configured name; the URL of one that is not configured.
        issuer: String,
        /// What is the matter with it.
        why: String,
    },
}

impl AuthenticationError {
    /// The word for it, which stays the same.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Missing => "TOKEN_MISSING",
            Self::HeaderInvalid => "AUTHORIZATION_HEADER_INVALID",
            Self::TooLarge => "TOKEN_TOO_LARGE",
            Self::Malformed => "TOKEN_MALFORMED",
            Self::IssuerUnknown => "TOKEN_ISSUER_UNKNOWN",
            Self::AlgorithmRefused => "TOKEN_ALGORITHM_REFUSED",
            Self::KeyUnknown | Self::OwnKeyUnknown => "TOKEN_KEY_UNKNOWN",
            Self::KeyRevoked => "TOKEN_KEY_REVOKED",
            Self::KeyWithoutAlgorithm => "TOKEN_KEY_WITHOUT_ALGORITHM",
            Self::KeyTooShort => "TOKEN_KEY_TOO_SHORT",
            Self::KeyUnusable => "TOKEN_KEY_UNUSABLE",
            Self::SignatureInvalid => "TOKEN_SIGNATURE_INVALID",
            Self::Expired => "TOKEN_EXPIRED",
            Self::NotYetValid => "TOKEN_NOT_YET_VALID",
            Self::AudienceWrong { .. } => "TOKEN_AUDIENCE_WRONG",
            Self::ClaimInvalid(_) => "TOKEN_CLAIM_INVALID",
            Self::TypeRefused => "TOKEN_TYPE_REFUSED",
            Self::IssuerUnavailable { .. } => "TOKEN_ISSUER_UNAVAILABLE",
        }
    }

    /// Whether the token might be taken if its issuer had other keys.
    fn is_of_the_key(&self) -> bool {
        matches!(
            self,
            Self::AlgorithmRefused
                | Self::KeyUnknown
                | Self::KeyWithoutAlgorithm
                | Self::KeyTooShort
                | Self::KeyUnusable
                | Self::SignatureInvalid
        )
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
            NoKey::NoAlgorithm => Self::KeyWithoutAlgorithm,
            NoKey::Short => Self::KeyTooShort,
            NoKey::Unusable => Self::KeyUnusable,
        }
    }
}

/// Whose a token says to be, before anything of it is verified: what can't be a token is refused.
pub fn named_issuer(token: &str) -> Result<String, AuthenticationError> {
    if token.len() > MAX_TOKEN {
        return Err(AuthenticationError::TooLarge);
    }
    token::header(token)?;
    token::issuer(token)
}

/// Knows callers by their tokens. Cheap to clone.
#[derive(Clone)]
pub struct Authenticator {
    trusted: Arc<Trusted>,
    own: Option<Arc<Own>>,
}

struct Trusted {
    issuers: Vec<(Issuer, RemoteKeys)>,
    administrators: BTreeSet<Principal>,
    event_readers: BTreeSet<Principal>,
    outbound: Outbound,
}

impl Authenticator {
    /// Takes the tokens of these issuers. Fetches nothing before the first token comes.
    pub fn new(
        issuers: Vec<Issuer>,
        administrators: BTreeSet<Principal>,
        event_readers: BTreeSet<Principal>,
    ) -> Result<Self, ClientError> {
        let outbound = Outbound::anywhere()?;
        let with_keys = |issuer: Issuer| {
            let keys = RemoteKeys::new(
                &issuer.name,
                &issuer.url,
                outbound.clone(),
                Bounds::CONFIGURED,
            );
            (issuer, keys)
        };
        let issuers = issuers.into_iter().map(with_keys).collect();
        Ok(Self {
            trusted: Arc::new(Trusted {
                issuers,
                administrators,
                event_readers,
                outbound,
            }),
            own: None,
        })
    }

    /// In the issuer itself: takes the tokens of its jobs and of service accounts too.
    #[must_use]
    pub fn of_own_issuer(mut self, keys: OwnKeys) -> Self {
        self.own = Some(Arc::new(Own::here(keys)));
        self
    }

    /// In any other service: takes the tokens of service accounts too, which the issuer at this URL signs.
    #[must_use]
    pub fn with_service_accounts(mut self, issuer: String) -> Self {
        let own = Own::published(issuer, self.trusted.outbound.clone());
        self.own = Some(Arc::new(own));
        self
    }

    /// Who made a request, by its headers.
    pub async fn authenticate(&self, headers: &HeaderMap) -> Result<Caller, AuthenticationError> {
        let token = bearer(headers)?;
        if let Some(caller) = self.own.as_ref().and_then(|own| own.known(token)) {
            return Ok(caller);
        }
        let header = token::header(token)?;
        let iss = token::issuer(token)?;
        if let Some(own) = self.own.as_ref().filter(|own| own.takes(&iss, &header)) {
            return own.authenticate(token, &header).await;
        }
        let (issuer, keys) = self
            .trusted
            .issuers
            .iter()
            .find(|(issuer, _)| issuer.url == iss)
            .ok_or(AuthenticationError::IssuerUnknown)?;
        if !header.says_who() {
            return Err(AuthenticationError::TypeRefused);
        }
        // The operator knows these issuers, whose keys may be without `alg` (RFC 7517, section 4.4).
        let audiences = std::slice::from_ref(&issuer.audience);
        let verify = |found: &[Candidate]| {
            let (claims, _) = token::verify(token, &header, found, &issuer.url, audiences)?;
            Ok(claims)
        };
        let wanted = Wanted::by(&header);
        let claims = keys.verify(wanted, &[&issuer.name], verify).await?;
        // Through the parser, for a subject with control characters must not get into events and logs.
        let subject = token::text(&claims, "sub")?;
        let principal = Principal::user(&format!("{}/{subject}", issuer.name))
            .map_err(|_| AuthenticationError::ClaimInvalid("sub"))?;
        Ok(Caller {
            administrator: self.trusted.administrators.contains(&principal),
            event_reader: self.trusted.event_readers.contains(&principal),
            principal,
            leans_on: None,
        })
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
