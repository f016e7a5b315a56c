//! With which algorithm tokens are signed.

use std::fmt;
use std::str::FromStr;

/// An algorithm for signatures, by its name of RFC 7518, 3.1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SigningAlgorithm {
    /// RSASSA-PKCS1-v1_5 with SHA-256, which every cloud takes.
    #[default]
    Rs256,
    /// ECDSA on P-256 with SHA-256: shorter, and signed in a fraction of the time.
    Es256,
}

/// The text is not the name of a [`SigningAlgorithm`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be RS256 or ES256")]
pub struct InvalidSigningAlgorithm;

impl SigningAlgorithm {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Rs256, Self::Es256];

    /// Its name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rs256 => "RS256",
            Self::Es256 => "ES256",
        }
    }
}

impl fmt::Display for SigningAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for SigningAlgorithm {
    type Err = InvalidSigningAlgorithm;

    fn from_str(text: &str) -> Result<Self, InvalidSigningAlgorithm> {
        let found = Self::ALL.into_iter().find(|known| known.as_str() == text);
        found.ok_or(InvalidSigningAlgorithm)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reads_back() {
        for algorithm in SigningAlgorithm::ALL {
            assert_eq!(algorithm.to_string().parse(), Ok(algorithm));
        }
        assert_eq!(
            "none".parse::<SigningAlgorithm>(),
            Err(InvalidSigningAlgorithm)
        );
    }
}
