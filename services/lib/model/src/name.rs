//! Names of groups, workspaces and managed identities, and their descriptions.

use std::fmt;
use std::str::FromStr;

/// 1–64 of digits, lowercase letters, `-` and `_`, the last two neither first nor last.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(String);

/// The text is not a [`Name`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "must be 1 to 64 digits, lowercase letters, - and _, and neither start nor end with - or _"
)]
pub struct InvalidName;

impl Name {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let bytes = text.as_bytes();
        let valid = (1..=64).contains(&bytes.len())
            && bytes
                .iter()
                .all(|byte| alphanumeric(byte) || matches!(byte, b'-' | b'_'))
            && bytes.first().is_some_and(alphanumeric)
            && bytes.last().is_some_and(alphanumeric);
        if valid {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidName)
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Free text of at most [`Description::MAX_BYTES`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Description(String);

/// The text is too long for a [`Description`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be at most {} bytes", Description::MAX_BYTES)]
pub struct InvalidDescription;

impl Description {
    /// Bytes of UTF-8.
    pub const MAX_BYTES: usize = 1024;

    /// The description as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Description {
    type Err = InvalidDescription;

    fn from_str(text: &str) -> Result<Self, InvalidDescription> {
        if text.len() <= Self::MAX_BYTES {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidDescription)
        }
    }
}

impl fmt::Display for Description {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["a", "0", "a-b", "a_b", "a--b", &"a".repeat(64)] {
            assert!(good.parse::<Name>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "-a",
            "a-",
            "_a",
            "a_",
            "A",
            "a b",
            "a/b",
            "a.b",
            "ä",
            "a\0",
            &"a".repeat(65),
        ] {
            assert_eq!(bad.parse::<Name>(), Err(InvalidName), "{bad}");
        }
    }
}
