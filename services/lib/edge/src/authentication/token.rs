//! A JWT: its parts, and whether it verifies with a key.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::{Map, Value};

use super::AuthenticationError;

/// Bytes of a token; larger ones are not looked at.
pub(super) const MAX_TOKEN: usize = 16 << 10;
/// Seconds by which clocks may differ.
const LEEWAY: u64 = 30;

/// What a verified token says.
pub(super) type Claims = Map<String, Value>;

#[derive(Deserialize)]
pub(super) struct Header {
    alg: String,
    pub(super) kid: Option<String>,
    pub(super) typ: Option<String>,
    crit: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct UnverifiedClaims {
    iss: String,
}

impl Header {
    /// Whether `typ` is this (RFC 7515, section 4.1.9: of any case, and `application/` may be left out).
    pub(super) fn is_of_type(&self, name: &str) -> bool {
        self.typ.as_deref().is_some_and(|typ| {
            let short = typ
                .split_at_checked("application/".len())
                .filter(|(start, _)| start.eq_ignore_ascii_case("application/"))
                .map_or(typ, |(_, rest)| rest);
            short.eq_ignore_ascii_case(name)
        })
    }
}

/// What a token says of its key and type.
pub(super) fn header(token: &str) -> Result<(Header, Algorithm), AuthenticationError> {
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

/// Whose a token says to be, before it is verified.
pub(super) fn issuer(token: &str) -> Result<String, AuthenticationError> {
    part(token, 1).map(|claims: UnverifiedClaims| claims.iss)
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

/// What a token says, if it is of this issuer, for one of these audiences, and holds now.
pub(super) fn verify(
    token: &str,
    key: &DecodingKey,
    algorithm: Algorithm,
    issuer: &str,
    audiences: &[String],
) -> Result<Claims, AuthenticationError> {
    let mut validation = Validation::new(algorithm);
    validation.leeway = LEEWAY;
    validation.validate_nbf = true;
    validation.set_issuer(&[issuer]);
    validation.set_audience(audiences);
    validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
    let verified = jsonwebtoken::decode::<Claims>(token, key, &validation);
    let claims = verified
        .map_err(|error| refusal(error.kind(), audiences))?
        .claims;
    if text(&claims, "iss")? != issuer {
        return Err(AuthenticationError::IssuerUnknown);
    }
    text(&claims, "sub")?;
    Ok(claims)
}

/// A claim that must be a text.
pub(super) fn text<'a>(
    claims: &'a Claims,
    name: &'static str,
) -> Result<&'a str, AuthenticationError> {
    let text = claims.get(name).and_then(Value::as_str);
    text.ok_or(AuthenticationError::ClaimInvalid(name))
}

fn refusal(error: &ErrorKind, audiences: &[String]) -> AuthenticationError {
    use AuthenticationError as E;
    match error {
        ErrorKind::ExpiredSignature => E::Expired,
        ErrorKind::ImmatureSignature => E::NotYetValid,
        ErrorKind::InvalidAudience => E::AudienceWrong {
            expected: audiences.join(" or "),
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
        // `sub` is the one of the claims that are read there which may be of no other type.
        ErrorKind::Json(_) => E::ClaimInvalid("sub"),
        _ => E::Malformed,
    }
}
