//! What clouds expect as audience of a token, where they leave the choice to their users.

use std::fmt;
use std::str::FromStr;

/// The audience of an Azure federated credential
/// (<https://learn.microsoft.com/en-us/graph/api/resources/federatedidentitycredentials-overview>).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AzureAudience(String);

/// The text is not an [`AzureAudience`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "must be at most 600 printable ASCII characters without a space; empty means {DEFAULT_AZURE}"
)]
pub struct InvalidAzureAudience;

const DEFAULT_AZURE: &str = "api://AzureADTokenExchange";

impl FromStr for AzureAudience {
    type Err = InvalidAzureAudience;

    fn from_str(text: &str) -> Result<Self, InvalidAzureAudience> {
        if text.is_empty() {
            return Ok(Self(DEFAULT_AZURE.to_owned()));
        }
        if text.len() <= 600 && text.bytes().all(|byte| byte.is_ascii_graphic()) {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidAzureAudience)
        }
    }
}

impl fmt::Display for AzureAudience {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The audience that a cluster's API server takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KubernetesAudience(String);

/// The text is not a [`KubernetesAudience`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be at most 100 letters, digits, - and .; empty means {DEFAULT_KUBERNETES}")]
pub struct InvalidKubernetesAudience;

const DEFAULT_KUBERNETES: &str = "kubernetes";

impl FromStr for KubernetesAudience {
    type Err = InvalidKubernetesAudience;

    fn from_str(text: &str) -> Result<Self, InvalidKubernetesAudience> {
        if text.is_empty() {
            return Ok(Self(DEFAULT_KUBERNETES.to_owned()));
        }
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-.".contains(&byte);
        if text.len() <= 100 && text.bytes().all(allowed) {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidKubernetesAudience)
        }
    }
}

impl fmt::Display for KubernetesAudience {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_is_the_default() {
        let azure = ""
            .parse::<AzureAudience>()
            .map(|audience| audience.to_string());
        assert_eq!(azure, Ok("api://AzureADTokenExchange".to_owned()));
        let kubernetes = ""
            .parse::<KubernetesAudience>()
            .map(|audience| audience.to_string());
        assert_eq!(kubernetes, Ok("kubernetes".to_owned()));
    }

    #[test]
    fn audiences() {
        for (text, azure, kubernetes) in [
            ("sts.example.com", true, true),
            ("api://AzureADTokenExchange", true, false),
            ("with space", false, false),
            ("ümlaut", false, false),
            (&"a".repeat(100), true, true),
            (&"a".repeat(101), true, false),
            (&"a".repeat(600), true, false),
            (&"a".repeat(601), false, false),
        ] {
            assert_eq!(text.parse::<AzureAudience>().is_ok(), azure, "{text}");
            assert_eq!(
                text.parse::<KubernetesAudience>().is_ok(),
                kubernetes,
                "{text}"
            );
        }
    }
}
