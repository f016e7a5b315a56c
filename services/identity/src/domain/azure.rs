//! What Azure accepts.

use std::fmt;
use std::str::FromStr;

/// The GUID of an application or a tenant, in lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guid(String);

/// The text is not a [`Guid`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be a GUID: 12345678-90ab-cdef-1234-567890abcdef")]
pub struct InvalidGuid;

/// The digits between the hyphens (RFC 9562, section 4).
const GROUPS: [usize; 5] = [8, 4, 4, 4, 12];

impl FromStr for Guid {
    type Err = InvalidGuid;

    fn from_str(text: &str) -> Result<Self, InvalidGuid> {
        let groups: Vec<&str> = text.split('-').collect();
        let valid = groups.iter().map(|group| group.len()).eq(GROUPS)
            && groups.concat().bytes().all(|byte| byte.is_ascii_hexdigit());
        // All zeros is what stands where nothing was filled in.
        let nil = groups.concat().bytes().all(|byte| byte == b'0');
        if valid && !nil {
            Ok(Self(text.to_ascii_lowercase()))
        } else {
            Err(InvalidGuid)
        }
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guids() {
        let good = "12345678-90AB-cdef-1234-567890abcdef";
        assert_eq!(
            good.parse::<Guid>().map(|guid| guid.to_string()),
            Ok(good.to_lowercase())
        );
        for bad in [
            "",
            "1234567890abcdef1234567890abcdef",
            "{12345678-90ab-cdef-1234-567890abcdef}",
            "12345678-90ab-cdef-1234-567890abcdeg",
            "12345678-90ab-cdef-1234-567890abcdef-",
            "1234567890ab--cdef-1234-567890abcdef",
            "00000000-0000-0000-0000-000000000000",
        ] {
            assert_eq!(bad.parse::<Guid>(), Err(InvalidGuid), "{bad}");
        }
    }

    #[test]
    fn audiences() {
        assert_eq!(
            "".parse::<AzureAudience>()
                .map(|audience| audience.to_string()),
            Ok("api://AzureADTokenExchange".to_owned())
        );
        assert!("api://tharsis".parse::<AzureAudience>().is_ok());
        assert!("a".repeat(600).parse::<AzureAudience>().is_ok());
        for bad in ["with space", "ümlaut", "a\0", &"a".repeat(601)] {
            assert_eq!(
                bad.parse::<AzureAudience>(),
                Err(InvalidAzureAudience),
                "{bad}"
            );
        }
    }
}
