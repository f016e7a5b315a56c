//! Signing keys: made once, parsed once, and tokens signed with them.

use std::fmt;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::encoding::{AsDer as _, Pkcs8V1Der};
use aws_lc_rs::error::{KeyRejected, Unspecified};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::{KeyPair as _, RSA_PKCS1_SHA256};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::Jwk;
use serde::Serialize;

/// An RSA-2048 key for RS256, parsed: parsing costs more than signing.
pub struct SigningKey {
    pair: KeyPair,
    kid: String,
    jwk: serde_json::Value,
}

/// A key can't be made, read or used.
#[derive(Debug, thiserror::Error)]
pub enum SigningError {
    /// The provider failed.
    #[error("the crypto provider failed")]
    Provider,
    /// The stored key is none.
    #[error("the stored signing key can't be read: {0}")]
    Stored(KeyRejected),
    /// The claims can't be written as JSON.
    #[error("the claims can't be encoded")]
    Claims(#[from] serde_json::Error),
}

impl From<Unspecified> for SigningError {
    fn from(_: Unspecified) -> Self {
        Self::Provider
    }
}

/// What a token is, by its header's `typ`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenType {
    /// For a cloud.
    Credential,
    /// For our own rpcs (RFC 9068), of a job: no cloud's token ever passes for one.
    Access,
    /// For our own rpcs, of a service account: neither passes for the other.
    ServiceAccount,
}

#[derive(Serialize)]
struct Header<'a> {
    alg: &'static str,
    kid: &'a str,
    typ: &'static str,
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey")
            .field("kid", &self.kid)
            .finish_non_exhaustive()
    }
}

impl SigningKey {
    /// Makes a key.
    pub fn generate() -> Result<Self, SigningError> {
        Ok(Self::of(KeyPair::generate(KeySize::Rsa2048)?))
    }

    /// Reads a key from PKCS #8.
    pub fn from_pkcs8(der: &[u8]) -> Result<Self, SigningError> {
        Ok(Self::of(
            KeyPair::from_pkcs8(der).map_err(SigningError::Stored)?,
        ))
    }

    fn of(pair: KeyPair) -> Self {
        let public = pair.public_key();
        let n = URL_SAFE_NO_PAD.encode(public.modulus().big_endian_without_leading_zero());
        let e = URL_SAFE_NO_PAD.encode(public.exponent().big_endian_without_leading_zero());
        // RFC 7638, 3: the required members, in lexicographic order, without white space.
        let thumbprint = format!(r#"{{"e":"{e}","kty":"RSA","n":"{n}"}}"#);
        let kid = URL_SAFE_NO_PAD.encode(digest(&SHA256, thumbprint.as_bytes()));
        let jwk = serde_json::json!({ "kty": "RSA", "use": "sig", "alg": "RS256", "kid": kid, "n": n, "e": e });
        Self { pair, kid, jwk }
    }

    /// The private half, as PKCS #8.
    pub fn to_pkcs8(&self) -> Result<Vec<u8>, SigningError> {
        let der: Pkcs8V1Der<'_> = self.pair.as_der()?;
        Ok(der.as_ref().to_vec())
    }

    /// The RFC 7638 thumbprint.
    #[must_use]
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// The public half (RFC 7517).
    #[must_use]
    pub fn public_jwk(&self) -> &serde_json::Value {
        &self.jwk
    }

    /// The public half, for verifying.
    pub fn verifying_jwk(&self) -> Result<Jwk, SigningError> {
        Ok(serde_json::from_value(self.jwk.clone())?)
    }

    /// A JWT (RFC 7519), signed with RS256. Takes about 0.4 ms of one core.
    pub fn sign(
        &self,
        token_type: TokenType,
        claims: &impl Serialize,
    ) -> Result<String, SigningError> {
        let typ = match token_type {
            TokenType::Credential => "JWT",
            TokenType::Access => "at+jwt",
            TokenType::ServiceAccount => "sa+jwt",
        };
        let header = serde_json::to_vec(&Header {
            alg: "RS256",
            kid: &self.kid,
            typ,
        })?;
        let mut token = URL_SAFE_NO_PAD.encode(header);
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(serde_json::to_vec(claims)?, &mut token);
        let mut signature = vec![0; self.pair.public_modulus_len()];
        self.pair.sign(
            &RSA_PKCS1_SHA256,
            &SystemRandom::new(),
            token.as_bytes(),
            &mut signature,
        )?;
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(signature, &mut token);
        Ok(token)
    }
}

/// A strong entity tag (RFC 9110, 8.8.3): of the same bytes in every process.
#[must_use]
pub fn entity_tag(body: &[u8]) -> String {
    let digest = digest(&SHA256, body);
    format!("\"{}\"", URL_SAFE_NO_PAD.encode(digest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode};

    #[test]
    fn a_key_survives_storage_and_its_tokens_verify() {
        let made = SigningKey::generate().expect("a key");
        let read = SigningKey::from_pkcs8(&made.to_pkcs8().expect("der")).expect("a key");
        assert_eq!(made.kid(), read.kid());
        let token = read.sign(
            TokenType::Credential,
            &serde_json::json!({ "sub": "x", "exp": 4_000_000_000_u64 }),
        );
        let key = DecodingKey::from_jwk(&made.verifying_jwk().expect("jwk")).expect("a key");
        let decoded = decode::<serde_json::Value>(
            &token.expect("signed"),
            &key,
            &Validation::new(Algorithm::RS256),
        );
        assert_eq!(
            decoded.expect("verified").header.kid.as_deref(),
            Some(made.kid())
        );
    }

    #[test]
    fn the_thumbprint_is_that_of_the_rfc() {
        let key = SigningKey::generate().expect("a key");
        let jwk = key.verifying_jwk().expect("jwk");
        let thumbprint = jwk.thumbprint(jsonwebtoken::jwk::ThumbprintHash::SHA256);
        assert_eq!(thumbprint.ok().as_deref(), Some(key.kid()));
    }
}
