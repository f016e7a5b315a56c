//! What Kubernetes accepts.

use std::fmt;
use std::str::FromStr;

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
    fn audiences() {
        assert_eq!(
            "".parse::<KubernetesAudience>()
                .map(|audience| audience.to_string()),
            Ok("kubernetes".to_owned())
        );
        assert!("prod-1.example.com".parse::<KubernetesAudience>().is_ok());
        assert!("a".repeat(100).parse::<KubernetesAudience>().is_ok());
        for bad in ["https://prod", "with space", "ümlaut", &"a".repeat(101)] {
            assert_eq!(
                bad.parse::<KubernetesAudience>(),
                Err(InvalidKubernetesAudience),
                "{bad}"
            );
        }
    }
}
