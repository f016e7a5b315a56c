//! What Azure accepts.

use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

/// A GUID of an application or a tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guid(Uuid);

/// The text is not a [`Guid`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be a GUID: 12345678-90ab-cdef-1234-567890abcdef")]
pub struct InvalidGuid;

impl FromStr for Guid {
    type Err = InvalidGuid;

    fn from_str(text: &str) -> Result<Self, InvalidGuid> {
        // With hyphens and nothing around it: the other forms, Azure's tools don't take.
        if text.len() != uuid::fmt::Hyphenated::LENGTH {
            return Err(InvalidGuid);
        }
        let guid = Uuid::try_parse(text).map_err(|_| InvalidGuid)?;
        if guid.is_nil() {
            Err(InvalidGuid)
        } else {
            Ok(Self(guid))
        }
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
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
            "00000000-0000-0000-0000-000000000000",
        ] {
            assert_eq!(bad.parse::<Guid>(), Err(InvalidGuid), "{bad}");
        }
    }
}
