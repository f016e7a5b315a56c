//! A set of verification keys, parsed once, each with the algorithms that it may be used with.

use jsonwebtoken::jwk::{
    AlgorithmParameters, EllipticCurve, Jwk, JwkSet, KeyAlgorithm, KeyOperations, PublicKeyUse,
};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde::Deserialize;

const RSA: &[Algorithm] = &[
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
];

/// The keys of a JWK set that can verify signatures.
#[derive(Debug, Default)]
pub(super) struct KeySet(Vec<Key>);

#[derive(Debug)]
struct Key {
    id: Option<String>,
    algorithms: Vec<Algorithm>,
    public: DecodingKey,
}

/// Why a token can't be verified with a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoKey {
    /// None of it is the token's.
    Unknown,
    /// The token's is not for the token's algorithm.
    OtherAlgorithm,
}

impl KeySet {
    /// Reads a JWK set. A key that is not understood is left out (RFC 7517, section 5).
    pub(super) fn parse(json: &[u8]) -> Result<Self, serde_json::Error> {
        #[derive(Deserialize)]
        struct Document {
            keys: Vec<serde_json::Value>,
        }
        let Document { keys } = serde_json::from_slice(json)?;
        let keys = keys
            .into_iter()
            .filter_map(|key| serde_json::from_value(key).ok())
            .collect();
        Ok(Self::of(&JwkSet { keys }))
    }

    /// The usable keys of a JWK set.
    pub(super) fn of(set: &JwkSet) -> Self {
        Self(set.keys.iter().filter_map(Key::of).collect())
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// The key for a token with this header. Only an only key may go without an id, in the token or in the set.
    pub(super) fn find(
        &self,
        id: Option<&str>,
        algorithm: Algorithm,
    ) -> Result<DecodingKey, NoKey> {
        let only = self.0.len() == 1;
        let matches = |key: &&Key| match (id, key.id.as_deref()) {
            (Some(wanted), Some(has)) => wanted == has,
            (None, _) | (_, None) => only,
        };
        let mut candidates = self.0.iter().filter(matches).peekable();
        if candidates.peek().is_none() {
            return Err(NoKey::Unknown);
        }
        candidates
            .find(|key| key.algorithms.contains(&algorithm))
            .map(|key| key.public.clone())
            .ok_or(NoKey::OtherAlgorithm)
    }
}

impl Key {
    fn of(jwk: &Jwk) -> Option<Self> {
        let signs = jwk
            .common
            .public_key_use
            .as_ref()
            .is_none_or(|usage| *usage == PublicKeyUse::Signature);
        let verifies = jwk
            .common
            .key_operations
            .as_ref()
            .is_none_or(|operations| operations.contains(&KeyOperations::Verify));
        let mut algorithms = algorithms(&jwk.algorithm).to_vec();
        if let Some(declared) = jwk.common.key_algorithm {
            algorithms.retain(|algorithm| KeyAlgorithm::from(*algorithm) == declared);
        }
        if !signs || !verifies || algorithms.is_empty() {
            return None;
        }
        let public = DecodingKey::from_jwk(jwk).ok()?;
        Some(Self {
            id: jwk.common.key_id.clone(),
            algorithms,
            public,
        })
    }
}

/// What a key of this type may be used with: never a symmetric algorithm.
fn algorithms(parameters: &AlgorithmParameters) -> &'static [Algorithm] {
    match parameters {
        AlgorithmParameters::RSA(_) => RSA,
        AlgorithmParameters::EllipticCurve(key) => match key.curve {
            EllipticCurve::P256 => &[Algorithm::ES256],
            EllipticCurve::P384 => &[Algorithm::ES384],
            _ => &[],
        },
        AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => {
            &[Algorithm::EdDSA]
        }
        _ => &[],
    }
}
