//! Who acts, and who may hold a membership.

use std::fmt;
use std::str::FromStr;

use crate::JobId;

/// Someone whom a token names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Principal {
    /// A subject of a configured OIDC issuer. The issuer is part of the name, because two issuers may both know an
    /// `alice`.
    User {
        /// The issuer's configured name: `dev`.
        issuer: String,
        /// The `sub` of its tokens: `alice`.
        subject: String,
    },
    /// A job, acting with its job token.
    Job(JobId),
}

/// The text is not a [`Principal`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be <issuer name>/<subject>, of at most 320 bytes and without control characters")]
pub struct InvalidPrincipal;

impl Principal {
    /// Bytes of an issuer name and a subject together; a subject has 255 ASCII characters at most (`OpenID` Connect Core, 2).
    pub const MAX_BYTES: usize = 320;

    /// Reads `<issuer name>/<subject>`, the form that a membership's `user` has.
    pub fn user(text: &str) -> Result<Self, InvalidPrincipal> {
        let (issuer, subject) = text.split_once('/').ok_or(InvalidPrincipal)?;
        let issuer_valid = !issuer.is_empty()
            && issuer
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
        let valid = issuer_valid
            && !subject.is_empty()
            && text.len() <= Self::MAX_BYTES
            && !text.chars().any(char::is_control);
        let user = || Self::User {
            issuer: issuer.to_owned(),
            subject: subject.to_owned(),
        };
        if valid {
            Ok(user())
        } else {
            Err(InvalidPrincipal)
        }
    }
}

/// `user:dev/alice`, `job:job_…`.
impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User { issuer, subject } => write!(f, "user:{issuer}/{subject}"),
            Self::Job(id) => write!(f, "job:{id}"),
        }
    }
}

impl FromStr for Principal {
    type Err = InvalidPrincipal;

    fn from_str(text: &str) -> Result<Self, InvalidPrincipal> {
        match text.split_once(':') {
            Some(("user", user)) => Self::user(user),
            Some(("job", id)) => id.parse().map(Self::Job).map_err(|_| InvalidPrincipal),
            _ => Err(InvalidPrincipal),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_reads_back() {
        for text in ["user:dev/alice", "user:corp-sso/a/b:c", "user:x/é"] {
            assert_eq!(
                text.parse::<Principal>()
                    .map(|principal| principal.to_string()),
                Ok(text.to_owned())
            );
        }
        for text in [
            "",
            "alice",
            "user:alice",
            "user:/alice",
            "user:dev/",
            "user:Dev/alice",
            "user:dev/a\nb",
            "team:x",
        ] {
            assert_eq!(text.parse::<Principal>(), Err(InvalidPrincipal), "{text}");
        }
    }
}
