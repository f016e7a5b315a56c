//! Attestations of what a job runs: in-toto statements (<https://github.com/in-toto/attestation>) about a module.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// Which attestations of its module a job has to have one of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModuleAttestation {
    /// By one of which it has to be signed. At least one.
    pub public_keys: BTreeSet<PublicKey>,
    /// What it has to say; nothing: anything.
    pub predicate_type: Option<PredicateType>,
}

/// An attestation that a job has, of the very module that it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attested {
    /// What it says.
    pub predicate_type: PredicateType,
    /// The keys, of those that somebody asks for, with which it is signed.
    pub signed_by: BTreeSet<PublicKey>,
}

impl ModuleAttestation {
    /// Whether one of them is such an attestation.
    #[must_use]
    pub fn holds(&self, attestations: &[Attested]) -> bool {
        attestations.iter().any(|attested| {
            let says = self.predicate_type.as_ref();
            says.is_none_or(|says| *says == attested.predicate_type)
                && !self.public_keys.is_disjoint(&attested.signed_by)
        })
    }
}

/// A key with which attestations are signed: a DER-encoded X.509 `SubjectPublicKeyInfo`, in base64.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PublicKey(String);

/// The type of an in-toto predicate, a URI: `https://slsa.dev/provenance/v1`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PredicateType(String);

/// The SHA-256 of a module's package: 64 hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModuleDigest(String);

/// The text is not what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAttestation {
    /// Not a [`PublicKey`].
    #[error("must be a public key in base64")]
    PublicKey,
    /// Not a [`PredicateType`].
    #[error(
        "must be a URI of at most {} bytes, such as https://slsa.dev/provenance/v1",
        PredicateType::MAX_BYTES
    )]
    PredicateType,
    /// Not a [`ModuleDigest`].
    #[error("must be a SHA-256, 64 hexadecimal digits in lower case")]
    ModuleDigest,
}

impl PublicKey {
    /// An RSA key of 8192 bits has 1,400 or so.
    const MAX_BYTES: usize = 2_048;
}

impl PredicateType {
    /// The longest.
    pub const MAX_BYTES: usize = 256;
}

impl FromStr for PublicKey {
    type Err = InvalidAttestation;

    fn from_str(text: &str) -> Result<Self, InvalidAttestation> {
        let base64 = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=');
        let fits = (1..=Self::MAX_BYTES).contains(&text.len());
        if fits && text.bytes().all(base64) {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidAttestation::PublicKey)
        }
    }
}

impl FromStr for PredicateType {
    type Err = InvalidAttestation;

    fn from_str(text: &str) -> Result<Self, InvalidAttestation> {
        let fits =
            text.len() <= Self::MAX_BYTES && text.bytes().all(|byte| byte.is_ascii_graphic());
        let scheme = text.split_once(':').map_or("", |(scheme, _)| scheme);
        let absolute = scheme.starts_with(|first: char| first.is_ascii_alphabetic());
        if fits && absolute {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidAttestation::PredicateType)
        }
    }
}

impl FromStr for ModuleDigest {
    type Err = InvalidAttestation;

    fn from_str(text: &str) -> Result<Self, InvalidAttestation> {
        let hexadecimal = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if text.len() == 64 && text.bytes().all(hexadecimal) {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidAttestation::ModuleDigest)
        }
    }
}

macro_rules! text {
    ($($name:ident)*) => {$(
        impl $name {
            /// As text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    )*};
}

text!(PublicKey PredicateType ModuleDigest);

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> PublicKey {
        text.parse().expect("a key")
    }

    fn predicate(name: &str) -> PredicateType {
        format!("https://example.com/{name}")
            .parse()
            .expect("a URI")
    }

    #[test]
    fn one_attestation_must_say_it_and_be_signed_by_one_of_the_keys() {
        let attested = [
            Attested {
                predicate_type: predicate("scan"),
                signed_by: [key("aaaa")].into(),
            },
            Attested {
                predicate_type: predicate("review"),
                signed_by: [key("bbbb")].into(),
            },
        ];
        let holds = |keys: &[&str], says: Option<&str>| {
            let wanted = ModuleAttestation {
                public_keys: keys.iter().map(|text| key(text)).collect(),
                predicate_type: says.map(predicate),
            };
            wanted.holds(&attested)
        };
        assert!(holds(&["aaaa"], None));
        assert!(holds(&["cccc", "bbbb"], Some("review")));
        // It is said, but not by whom it should be; and signed, but says something else.
        assert!(!holds(&["aaaa"], Some("review")));
        assert!(!holds(&["cccc"], None));
        let anything = ModuleAttestation {
            public_keys: [key("aaaa")].into(),
            predicate_type: None,
        };
        assert!(!anything.holds(&[]));
    }

    #[test]
    fn only_what_fits_is_taken() {
        for (text, taken) in [
            ("https://slsa.dev/provenance/v1", true),
            ("urn:scan", true),
            ("scan", false),
            ("", false),
            (":", false),
            ("a: b", false),
            ("a:\n", false),
        ] {
            assert_eq!(text.parse::<PredicateType>().is_ok(), taken, "{text:?}");
        }
        assert!(
            format!("a:{}", "b".repeat(254))
                .parse::<PredicateType>()
                .is_ok()
        );
        assert!(
            format!("a:{}", "b".repeat(255))
                .parse::<PredicateType>()
                .is_err()
        );
        for text in ["", "a b", "a\n", "-"] {
            assert!(text.parse::<PublicKey>().is_err(), "{text:?}");
        }
        assert!("0a".repeat(32).parse::<ModuleDigest>().is_ok());
        for text in ["0A".repeat(32), "0a".repeat(31), "0g".repeat(32)] {
            assert!(text.parse::<ModuleDigest>().is_err(), "{text:?}");
        }
    }
}
