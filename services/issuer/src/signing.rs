//! Signing keys: made once, parsed once, and tokens signed with them.

use std::fmt;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::encoding::{AsDer as _, Pkcs8V1Der};
use aws_lc_rs::error::{KeyRejected, Unspecified};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, RSA_PKCS1_SHA256,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::Jwk;
use model::SigningAlgorithm;
use serde::Serialize;

/// A key, parsed: parsing costs more than signing.
pub struct SigningKey {
    pair: Pair,
    kid: String,
    jwk: serde_json::Value,
}

enum Pair {
    /// RSA-2048, for RS256.
    Rsa(KeyPair),
    /// On P-256, for ES256.
    Ecdsa(EcdsaKeyPair),
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
    pub fn generate(algorithm: SigningAlgorithm) -> Result<Self, SigningError> {
        Ok(match algorithm {
            SigningAlgorithm::Rs256 => Self::rsa(KeyPair::generate(KeySize::Rsa2048)?),
            SigningAlgorithm::Es256 => {
                Self::ecdsa(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING)?)
            }
        })
    }

    /// Reads a key for an algorithm from PKCS #8.
    pub fn from_pkcs8(algorithm: SigningAlgorithm, der: &[u8]) -> Result<Self, SigningError> {
        let key = match algorithm {
            SigningAlgorithm::Rs256 => KeyPair::from_pkcs8(der).map(Self::rsa),
            SigningAlgorithm::Es256 => {
                EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der).map(Self::ecdsa)
            }
        };
        key.map_err(SigningError::Stored)
    }

    fn rsa(pair: KeyPair) -> Self {
        let public = pair.public_key();
        let n = URL_SAFE_NO_PAD.encode(public.modulus().big_endian_without_leading_zero());
        let e = URL_SAFE_NO_PAD.encode(public.exponent().big_endian_without_leading_zero());
        // RFC 7638, 3: the required members, in lexicographic order, without white space.
        let kid = thumbprint(&format!(r#"{{"e":"{e}","kty":"RSA","n":"{n}"}}"#));
        let jwk = serde_json::json!({ "kty": "RSA", "use": "sig", "alg": "RS256", "kid": kid, "n": n, "e": e });
        let pair = Pair::Rsa(pair);
        Self { pair, kid, jwk }
    }

    fn ecdsa(pair: EcdsaKeyPair) -> Self {
        // SEC 1, 2.3.3: a 4, then both coordinates, each as long as the field's numbers.
        let point = pair.public_key().as_ref();
        let (x, y) = point.get(1..).unwrap_or_default().split_at(P256);
        let [x, y] = [x, y].map(|coordinate| URL_SAFE_NO_PAD.encode(coordinate));
        let kid = thumbprint(&format!(
            r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#
        ));
        let jwk = serde_json::json!({
            "kty": "EC", "use": "sig", "alg": "ES256", "kid": kid, "crv": "P-256", "x": x, "y": y,
        });
        let pair = Pair::Ecdsa(pair);
        Self { pair, kid, jwk }
    }

    /// What it signs with.
    #[must_use]
    pub fn algorithm(&self) -> SigningAlgorithm {
        match self.pair {
            Pair::Rsa(_) => SigningAlgorithm::Rs256,
            Pair::Ecdsa(_) => SigningAlgorithm::Es256,
        }
    }

    /// The private half, as PKCS #8.
    pub fn to_pkcs8(&self) -> Result<Vec<u8>, SigningError> {
        Ok(match &self.pair {
            Pair::Rsa(pair) => {
                let der: Pkcs8V1Der<'_> = pair.as_der()?;
                der.as_ref().to_vec()
            }
            Pair::Ecdsa(pair) => pair.to_pkcs8v1()?.as_ref().to_vec(),
        })
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

    /// A JWT (RFC 7519). Takes most of the time that a credential takes, with RS256 some tenths of a millisecond.
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
            alg: self.algorithm().as_str(),
            kid: &self.kid,
            typ,
        })?;
        let mut token = URL_SAFE_NO_PAD.encode(header);
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(serde_json::to_vec(claims)?, &mut token);
        let signature = self.signature(token.as_bytes())?;
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(signature, &mut token);
        Ok(token)
    }

    fn signature(&self, message: &[u8]) -> Result<Vec<u8>, SigningError> {
        let random = SystemRandom::new();
        Ok(match &self.pair {
            Pair::Rsa(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature)?;
                signature
            }
            Pair::Ecdsa(pair) => pair.sign(&random, message)?.as_ref().to_vec(),
        })
    }
}

/// Bytes of a coordinate of a point on P-256.
const P256: usize = 32;

fn thumbprint(members: &str) -> String {
    URL_SAFE_NO_PAD.encode(digest(&SHA256, members.as_bytes()))
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
        for (algorithm, verified_with) in [
            (SigningAlgorithm::Rs256, Algorithm::RS256),
            (SigningAlgorithm::Es256, Algorithm::ES256),
        ] {
            let made = SigningKey::generate(algorithm).expect("a key");
            let der = made.to_pkcs8().expect("der");
            let read = SigningKey::from_pkcs8(algorithm, &der).expect("a key");
            assert_eq!((made.kid(), made.algorithm()), (read.kid(), algorithm));
            let token = read.sign(
                TokenType::Credential,
                &serde_json::json!({ "sub": "x", "exp": 4_000_000_000_u64 }),
            );
            let key = DecodingKey::from_jwk(&made.verifying_jwk().expect("jwk")).expect("a key");
            let decoded = decode::<serde_json::Value>(
                &token.expect("signed"),
                &key,
                &Validation::new(verified_with),
            );
            assert_eq!(
                decoded.expect("verified").header.kid.as_deref(),
                Some(made.kid())
            );
            let others = SigningAlgorithm::ALL.into_iter();
            for other in others.filter(|other| *other != algorithm) {
                assert!(SigningKey::from_pkcs8(other, &der).is_err());
            }
        }
    }

    #[test]
    fn the_thumbprint_is_that_of_the_rfc() {
        for algorithm in SigningAlgorithm::ALL {
            let key = SigningKey::generate(algorithm).expect("a key");
            let jwk = key.verifying_jwk().expect("jwk");
            let thumbprint = jwk.thumbprint(jsonwebtoken::jwk::ThumbprintHash::SHA256);
            assert_eq!(thumbprint.ok().as_deref(), Some(key.kid()));
        }
    }
}
