//! A set of verification keys, parsed once, each with the algorithms that it may be used with.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::{
    AlgorithmParameters, EllipticCurve, Jwk, JwkSet, KeyAlgorithm, KeyOperations, PublicKeyUse,
};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde::Deserialize;

use super::token::Header;

const RSA: &[Algorithm] = &[
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
];

/// Of the modulus of an RSA key, at least (RFC 7518, 3.3).
const RSA_BITS: usize = 2_048;
/// Keys with the same id that are tried at most: a set with more is no one's who changes keys, and costs as it likes.
const SAME_ID: usize = 4;

/// The keys of a JWK set that can verify signatures.
#[derive(Debug, Default)]
pub(super) struct KeySet(Vec<Key>);

#[derive(Debug)]
struct Key {
    id: Option<String>,
    algorithms: Vec<Algorithm>,
    /// Whether it says its algorithm itself.
    declared: bool,
    /// Left out for what it is, and known so that whoever shows a token of it is told.
    short: bool,
    public: DecodingKey,
}

/// What the key of a token must be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted<'a> {
    /// The `kid` of the token.
    pub(super) id: Option<&'a str>,
    /// The `alg` of the token.
    pub(super) algorithm: Algorithm,
    /// Whether the key has to say that algorithm itself, or may be used with any of its type.
    pub(super) declared: bool,
}

impl<'a> Wanted<'a> {
    /// By a token with this header.
    pub(super) fn by(header: &'a Header) -> Self {
        Self {
            id: header.kid.as_deref(),
            algorithm: header.algorithm,
            declared: false,
        }
    }
}

/// A key that may be the token's.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub(super) public: DecodingKey,
    pub(super) declared: bool,
}

/// Why a token can't be verified with a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoKey {
    /// None of it is the token's.
    Unknown,
    /// The token's is not for the token's algorithm.
    OtherAlgorithm,
    /// The token's does not say for which algorithm it is.
    NoAlgorithm,
    /// The token's could be broken.
    Short,
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

    /// The keys that a token may be verified with: several if they have the same id. Only an only key may go without an
    /// id, in the token or in the set.
    pub(super) fn find(&self, wanted: Wanted<'_>) -> Result<Vec<Candidate>, NoKey> {
        let only = self.0.len() == 1;
        let is_named = |key: &&Key| match (wanted.id, key.id.as_deref()) {
            (Some(wanted), Some(has)) => wanted == has,
            (None, _) | (_, None) => only,
        };
        let (mut found, mut missing) = (vec![], NoKey::Unknown);
        for key in self.0.iter().filter(is_named) {
            if !key.algorithms.contains(&wanted.algorithm) {
                missing = NoKey::OtherAlgorithm;
            } else if key.short {
                missing = NoKey::Short;
            } else if wanted.declared && !key.declared {
                missing = NoKey::NoAlgorithm;
            } else if found.len() < SAME_ID {
                found.push(Candidate {
                    public: key.public.clone(),
                    declared: key.declared,
                });
            }
        }
        if found.is_empty() {
            Err(missing)
        } else {
            Ok(found)
        }
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
        let declared = jwk.common.key_algorithm;
        if let Some(declared) = declared {
            algorithms.retain(|algorithm| KeyAlgorithm::from(*algorithm) == declared);
        }
        if !signs || !verifies || algorithms.is_empty() {
            return None;
        }
        let public = DecodingKey::from_jwk(jwk).ok()?;
        Some(Self {
            id: jwk.common.key_id.clone(),
            algorithms,
            declared: declared.is_some(),
            short: is_short(&jwk.algorithm),
            public,
        })
    }
}

fn is_short(parameters: &AlgorithmParameters) -> bool {
    let AlgorithmParameters::RSA(key) = parameters else {
        return false;
    };
    let modulus = URL_SAFE_NO_PAD.decode(&key.n).unwrap_or_default();
    let zeros = modulus.iter().take_while(|byte| **byte == 0).count();
    let modulus = &modulus[zeros..];
    let unused = modulus.first().map_or(0, |byte| byte.leading_zeros());
    modulus.len() * 8 - (unused as usize) < RSA_BITS
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
