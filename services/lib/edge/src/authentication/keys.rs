//! A set of verification keys, parsed once, each with the algorithms that it may be used with.

use std::ops::RangeInclusive;

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

/// Of the modulus of an RSA key: at least (RFC 7518, 3.3), and as many as are reckoned with.
const RSA_BITS: RangeInclusive<usize> = 2_048..=8_192;
/// Of its exponent, at most.
const EXPONENT_BITS: usize = 33;
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
    /// Why it is left out for what it is, and known so that whoever shows a token of it is told.
    unfit: Option<NoKey>,
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
    /// Nothing can be verified with the token's.
    Unusable,
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
            } else if let Some(unfit) = key.unfit {
                missing = unfit;
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
        let public = match &jwk.algorithm {
            AlgorithmParameters::RSA(key) => {
                DecodingKey::from_rsa_raw_components(&number(&key.n)?, &number(&key.e)?)
            }
            _ => DecodingKey::from_jwk(jwk).ok()?,
        };
        Some(Self {
            id: jwk.common.key_id.clone(),
            algorithms,
            declared: declared.is_some(),
            unfit: unfit(&jwk.algorithm),
            public,
        })
    }
}

/// Why nobody's tokens are verified with a key of these parameters.
fn unfit(parameters: &AlgorithmParameters) -> Option<NoKey> {
    let has_bytes = |text: &str, bytes: usize| {
        let decoded = URL_SAFE_NO_PAD.decode(text);
        decoded.is_ok_and(|decoded| decoded.len() == bytes)
    };
    let usable = match parameters {
        AlgorithmParameters::RSA(key) => {
            let [modulus, exponent] = [&key.n, &key.e].map(|text| number(text).unwrap_or_default());
            if bits(&modulus) < *RSA_BITS.start() {
                return Some(NoKey::Short);
            }
            let is_odd = |number: &[u8]| number.last().is_some_and(|last| last % 2 == 1);
            RSA_BITS.contains(&bits(&modulus))
                && (2..=EXPONENT_BITS).contains(&bits(&exponent))
                && is_odd(&modulus)
                && is_odd(&exponent)
        }
        AlgorithmParameters::EllipticCurve(key) => {
            let bytes = if key.curve == EllipticCurve::P256 {
                32
            } else {
                48
            };
            has_bytes(&key.x, bytes) && has_bytes(&key.y, bytes)
        }
        AlgorithmParameters::OctetKeyPair(key) => has_bytes(&key.x, 32),
        _ => false,
    };
    (!usable).then_some(NoKey::Unusable)
}

/// A number of a JWK. No zeros should stand in front (RFC 7518, 6.3.1.1), but there are libraries that write them.
fn number(text: &str) -> Option<Vec<u8>> {
    let decoded = URL_SAFE_NO_PAD.decode(text).ok()?;
    Some(decoded.into_iter().skip_while(|byte| *byte == 0).collect())
}

fn bits(number: &[u8]) -> usize {
    let unused = number.first().map_or(0, |byte| byte.leading_zeros());
    number.len() * 8 - unused as usize
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
