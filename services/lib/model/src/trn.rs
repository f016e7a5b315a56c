//! TRNs: names that people write, `trn:<type>:<path>`.

use std::fmt;
use std::str::FromStr;

use crate::id::{InvalidId, Kind, ResourceId};
use crate::name::Name;

/// A resource by its type and path.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Trn {
    /// The type of the resource.
    pub kind: Kind,
    /// The names of the groups above it, from the top.
    pub parents: Vec<Name>,
    /// What it is called in the last of them.
    pub last: Last,
}

/// The last part of a TRN's path.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Last {
    /// Of a group, workspace, managed identity, service account or team.
    Name(Name),
    /// Of what has no name: a membership, a job, an access rule.
    Id(ResourceId),
}

/// How a request names a resource.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Reference {
    /// By id.
    Id(ResourceId),
    /// By TRN.
    Trn(Trn),
}

/// The text is neither an id nor a TRN.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be an id, such as grp_…, or a TRN, such as trn:group:acme/prod")]
pub struct InvalidReference;

/// The text is neither an id nor a TRN, where one of a resource of this type is wanted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be an id, such as {prefix}_…, or a TRN, such as trn:{0}:{path}", prefix = .0.prefix(), path = example(*.0))]
pub struct InvalidReferenceTo(pub Kind);

/// The path of a resource of this type.
fn example(kind: Kind) -> &'static str {
    match kind {
        Kind::Group => "acme/prod",
        Kind::Workspace => "acme/prod/web",
        Kind::ManagedIdentity => "acme/prod/deployer",
        Kind::ServiceAccount => "acme/prod/ci",
        Kind::Team => "platform",
        Kind::Membership => "acme/prod/mbr_…",
        Kind::Job => "acme/prod/web/job_…",
        Kind::AccessRule => "acme/prod/deployer/rule_…",
        Kind::Mask => "acme/prod/mask_…",
        Kind::SigningKey => "key_…",
    }
}

/// More names than any path has (20), with room for the limit to be raised.
const MAX_SEGMENTS: usize = 64;

impl FromStr for Trn {
    type Err = InvalidReference;

    fn from_str(text: &str) -> Result<Self, InvalidReference> {
        let (kind, path) = text
            .strip_prefix("trn:")
            .and_then(|rest| rest.split_once(':'))
            .ok_or(InvalidReference)?;
        let kind: Kind = kind.parse().map_err(|InvalidId| InvalidReference)?;
        let mut segments: Vec<&str> = path.split('/').take(MAX_SEGMENTS + 1).collect();
        if segments.len() > MAX_SEGMENTS {
            return Err(InvalidReference);
        }
        let last = segments.pop().ok_or(InvalidReference)?;
        let last = match kind {
            Kind::Group
            | Kind::Workspace
            | Kind::ManagedIdentity
            | Kind::ServiceAccount
            | Kind::Team => Last::Name(last.parse().map_err(|_| InvalidReference)?),
            Kind::Membership | Kind::Job | Kind::SigningKey | Kind::AccessRule | Kind::Mask => {
                let id: ResourceId = last.parse().map_err(|InvalidId| InvalidReference)?;
                if id.kind() != kind {
                    return Err(InvalidReference);
                }
                Last::Id(id)
            }
        };
        let parents = segments
            .into_iter()
            .map(str::parse)
            .collect::<Result<_, _>>()
            .map_err(|_| InvalidReference)?;
        Ok(Self {
            kind,
            parents,
            last,
        })
    }
}

impl fmt::Display for Trn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "trn:{}:", self.kind)?;
        for parent in &self.parents {
            write!(f, "{parent}/")?;
        }
        match &self.last {
            Last::Name(name) => name.fmt(f),
            Last::Id(id) => id.fmt(f),
        }
    }
}

impl Reference {
    /// The type of the resource.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Id(id) => id.kind(),
            Self::Trn(trn) => trn.kind,
        }
    }
}

impl FromStr for Reference {
    type Err = InvalidReference;

    fn from_str(text: &str) -> Result<Self, InvalidReference> {
        if text.starts_with("trn:") {
            text.parse().map(Self::Trn)
        } else {
            text.parse()
                .map(Self::Id)
                .map_err(|InvalidId| InvalidReference)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_trn_of_a_thing_without_a_name_ends_in_its_id() {
        let id = crate::JobId::from_uuid(uuid::Uuid::from_u128(7));
        let text = format!("trn:job:acme/web/{id}");
        assert_eq!(text.parse::<Trn>().map(|trn| trn.to_string()), Ok(text));
        assert!(format!("trn:membership:acme/{id}").parse::<Trn>().is_err());
        assert!("trn:job:acme/web/nightly".parse::<Trn>().is_err());
    }

    #[test]
    fn who_names_nothing_is_told_how_what_is_wanted_is_named() {
        assert_eq!(
            InvalidReferenceTo(Kind::ManagedIdentity).to_string(),
            "must be an id, such as mi_…, or a TRN, such as trn:managed_identity:acme/prod/deployer"
        );
    }

    #[test]
    fn bad_references() {
        for text in [
            "",
            "acme",
            "trn:",
            "trn:group:",
            "trn:group:/a",
            "trn:group:a//b",
            "trn:teams:a",
            "grp_",
            "trn:group:A",
        ] {
            assert_eq!(text.parse::<Reference>(), Err(InvalidReference), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_trn_reads_back(names in prop::collection::vec("[a-z0-9]([a-z0-9_-]{0,8}[a-z0-9])?", 1..20)) {
            let text = format!("trn:managed_identity:{}", names.join("/"));
            prop_assert_eq!(text.parse::<Trn>().map(|trn| trn.to_string()), Ok(text));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "(trn:(group|job):)?.{0,64}") {
            let _ = text.parse::<Reference>();
        }
    }
}
