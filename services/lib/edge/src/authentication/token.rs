//! A JWT: its parts, and whether it verifies with a key.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, Validation};
use serde::de::{Error as _, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use super::AuthenticationError;
use super::keys::Candidate;
use crate::clock;

/// Bytes of a token; larger ones are not looked at.
pub(super) const MAX_TOKEN: usize = 16 << 10;
/// Seconds by which clocks may differ.
const LEEWAY: u32 = 30;

/// What no JWT that is taken has in its header: an extension that must be understood and is not (RFC 7515, section 4.1.11),
/// a payload that is not encoded (RFC 7797, section 7), and what only an encrypted token has (RFC 7516, section 4.1).
const NOT_OF_A_JWT: [&str; 4] = ["crit", "b64", "enc", "zip"];

/// The `typ` of an access token (RFC 9068, section 2.1).
pub(super) const ACCESS_TOKEN: &str = "at+jwt";

/// What a verified token says.
pub(super) type Claims = Map<String, Value>;

/// What a token says of its key and type.
pub(super) struct Header {
    alg: String,
    pub(super) algorithm: Algorithm,
    pub(super) kid: Option<String>,
    typ: Option<String>,
}

impl Header {
    /// The name of its algorithm.
    pub(super) fn algorithm(&self) -> &str {
        &self.alg
    }

    /// Whether it is made to say who someone is, or not said to be something else (RFC 8725, section 3.11).
    pub(super) fn says_who(&self) -> bool {
        self.typ.is_none() || self.is_of_type("JWT") || self.is_of_type(ACCESS_TOKEN)
    }

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

/// What a token says of its key and type, if its algorithm is one that there are public keys for.
pub(super) fn header(token: &str) -> Result<Header, AuthenticationError> {
    if token.split('.').count() != 3 {
        return Err(AuthenticationError::Malformed);
    }
    let mut header = object(token, 0)?;
    if NOT_OF_A_JWT.iter().any(|name| header.contains_key(*name)) {
        return Err(AuthenticationError::Malformed);
    }
    let mut text = |name: &str| match header.remove(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(AuthenticationError::Malformed),
    };
    let alg = text("alg")?.ok_or(AuthenticationError::Malformed)?;
    let algorithm = alg
        .parse()
        .ok()
        .filter(|algorithm| {
            use Algorithm::{HS256, HS384, HS512};
            !matches!(algorithm, HS256 | HS384 | HS512)
        })
        .ok_or(AuthenticationError::AlgorithmRefused)?;
    Ok(Header {
        kid: text("kid")?,
        typ: text("typ")?,
        alg,
        algorithm,
    })
}

/// Whose a token says to be, before it is verified.
pub(super) fn issuer(token: &str) -> Result<String, AuthenticationError> {
    let claims = object(token, 1)?;
    text(&claims, "iss").map(str::to_owned)
}

/// A JSON object of which no member comes twice: of two, others might read the other one (RFC 7515, section 4; RFC 7519,
/// section 4).
struct Object(Map<String, Value>);

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;

        impl<'de> Visitor<'de> for Members {
            type Value = Object;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Object, A::Error> {
                let mut members = Map::new();
                while let Some((name, value)) = access.next_entry::<String, Value>()? {
                    if members.contains_key(&name) {
                        return Err(A::Error::custom("a member comes twice"));
                    }
                    members.insert(name, value);
                }
                Ok(Object(members))
            }
        }

        deserializer.deserialize_map(Members)
    }
}

fn object(token: &str, index: usize) -> Result<Map<String, Value>, AuthenticationError> {
    let part = token.split('.').nth(index);
    let json = part.and_then(|part| URL_SAFE_NO_PAD.decode(part).ok());
    let object = json.and_then(|json| serde_json::from_slice(&json).ok());
    let Object(members) = object.ok_or(AuthenticationError::Malformed)?;
    Ok(members)
}

/// What a token says, and the key that it verifies with, if it is of this issuer, for one of these audiences, and holds
/// now.
pub(super) fn verify<'a>(
    token: &str,
    header: &Header,
    candidates: &'a [Candidate],
    issuer: &str,
    audiences: &[String],
) -> Result<(Claims, &'a Candidate), AuthenticationError> {
    let claims = object(token, 1)?;
    check_types(&claims)?;
    let mut validation = Validation::new(header.algorithm);
    validation.leeway = LEEWAY.into();
    validation.validate_nbf = true;
    validation.set_issuer(&[issuer]);
    validation.set_audience(audiences);
    validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
    for candidate in candidates {
        match jsonwebtoken::decode::<IgnoredAny>(token, &candidate.public, &validation) {
            Ok(_) if is_of_the_future(&claims) => return Err(AuthenticationError::NotYetValid),
            Ok(_) => return Ok((claims, candidate)),
            Err(error) => match error.kind() {
                ErrorKind::InvalidSignature => {}
                kind => return Err(refusal(kind, audiences)),
            },
        }
    }
    Err(AuthenticationError::SignatureInvalid)
}

/// That what is said of the token itself is of its type (RFC 7519, section 4.1). What must be said is asked for later.
fn check_types(claims: &Claims) -> Result<(), AuthenticationError> {
    for name in ["exp", "nbf", "iat", "iss", "sub", "aud", "jti"] {
        let is_right = |value: &Value| match (name, value) {
            ("exp" | "nbf" | "iat", _) => value.is_number(),
            ("aud", Value::Array(all)) => all.iter().all(Value::is_string),
            _ => value.is_string(),
        };
        if claims.get(name).is_some_and(|value| !is_right(value)) {
            return Err(AuthenticationError::ClaimInvalid(name));
        }
    }
    Ok(())
}

fn is_of_the_future(claims: &Claims) -> bool {
    #[expect(
        clippy::cast_precision_loss,
        reason = "for the next hundred million years there is none"
    )]
    let now = clock::now().unix_timestamp() as f64;
    let issued = claims.get("iat").and_then(Value::as_f64);
    issued.is_some_and(|issued| issued > now + f64::from(LEEWAY))
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
        ErrorKind::MissingRequiredClaim(claim) | ErrorKind::InvalidClaimFormat(claim) => {
            let known = ["exp", "nbf", "aud", "iss", "sub"];
            E::ClaimInvalid(
                known
                    .into_iter()
                    .find(|name| name == claim)
                    .unwrap_or("exp"),
            )
        }
        _ => E::Malformed,
    }
}
