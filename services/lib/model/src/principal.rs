//! Who acts, and who may hold a membership.

use std::fmt;
use std::str::FromStr;

use crate::{JobId, ResourceId, ServiceAccountId, TeamId};

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
    /// A team: its members act, each as itself, with what the team may.
    Team(TeamId),
    /// A service account, acting with a token that it got for one of an issuer that it trusts.
    ServiceAccount(ServiceAccountId),
    /// A job, acting with its job token.
    Job(JobId),
}

/// The text does not name a user.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be <issuer name>/<subject>, of at most 320 bytes and without control characters")]
pub struct InvalidUser;

/// The text is not a [`Principal`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "must be user:<issuer name>/<subject>, of at most 320 bytes and without control characters, service_account:sa_…, \
     team:team_… or job:job_…"
)]
pub struct InvalidPrincipal;

impl Principal {
    /// Bytes of an issuer name and a subject together; a subject has 255 ASCII characters at most (`OpenID` Connect Core, 2).
    pub const MAX_BYTES: usize = 320;

    /// Reads `<issuer name>/<subject>`, the form that a membership's `user` has.
    pub fn user(text: &str) -> Result<Self, InvalidUser> {
        let (issuer, subject) = text.split_once('/').ok_or(InvalidUser)?;
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
        if valid { Ok(user()) } else { Err(InvalidUser) }
    }

    /// The resource of ours that the principal is; a user is none.
    #[must_use]
    pub fn resource(&self) -> Option<ResourceId> {
        match self {
            Self::User { .. } => None,
            Self::Team(id) => Some((*id).into()),
            Self::ServiceAccount(id) => Some((*id).into()),
            Self::Job(id) => Some((*id).into()),
        }
    }
}

/// `user:dev/alice`, `team:team_…`, `service_account:sa_…`, `job:job_…`.
impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User { issuer, subject } => write!(f, "user:{issuer}/{subject}"),
            Self::Team(id) => write!(f, "team:{id}"),
            Self::ServiceAccount(id) => write!(f, "service_account:{id}"),
            Self::Job(id) => write!(f, "job:{id}"),
        }
    }
}

impl FromStr for Principal {
    type Err = InvalidPrincipal;

    fn from_str(text: &str) -> Result<Self, InvalidPrincipal> {
        match text.split_once(':') {
            Some(("user", user)) => Self::user(user).map_err(|_| InvalidPrincipal),
            Some(("team", id)) => id.parse().map(Self::Team).map_err(|_| InvalidPrincipal),
            Some(("service_account", id)) => id
                .parse()
                .map(Self::ServiceAccount)
                .map_err(|_| InvalidPrincipal),
            Some(("job", id)) => id.parse().map(Self::Job).map_err(|_| InvalidPrincipal),
            _ => Err(InvalidPrincipal),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_an_id_reads_back_as_its_own_type_only() {
        let id = uuid::Uuid::from_u128(7);
        for principal in [
            Principal::Team(TeamId::from_uuid(id)),
            Principal::ServiceAccount(ServiceAccountId::from_uuid(id)),
            Principal::Job(JobId::from_uuid(id)),
        ] {
            let text = principal.to_string();
            assert_eq!(text.parse(), Ok(principal));
            let (_, id) = text.split_once(':').expect("a type and an id");
            for other in ["user", "team", "service_account", "job"] {
                let other = format!("{other}:{id}");
                assert_eq!(other.parse::<Principal>().is_ok(), other == text, "{other}");
            }
        }
    }

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
