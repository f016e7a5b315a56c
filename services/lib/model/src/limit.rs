//! Limits that administrators set: how much there may be of what.

use std::fmt;
use std::str::FromStr;

/// What is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Limit {
    /// Names in a path, workspaces included.
    NamespaceDepth,
    /// Subgroups of a group.
    GroupSubgroups,
    /// Workspaces of a group.
    GroupWorkspaces,
    /// Managed identities of a group.
    GroupManagedIdentities,
    /// Service accounts of a group.
    GroupServiceAccounts,
    /// Aliases of a managed identity.
    ManagedIdentityAliases,
}

/// The text is not the id of a [`Limit`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be one of: {}", Limit::ALL.map(Limit::as_str).join(", "))]
pub struct InvalidLimit;

impl Limit {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::NamespaceDepth,
        Self::GroupSubgroups,
        Self::GroupWorkspaces,
        Self::GroupManagedIdentities,
        Self::GroupServiceAccounts,
        Self::ManagedIdentityAliases,
    ];
    /// The least that any may be: none of them keeps everybody from everything.
    pub const MIN: i64 = 1;

    /// Its id.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NamespaceDepth => "namespace_depth",
            Self::GroupSubgroups => "group_subgroups",
            Self::GroupWorkspaces => "group_workspaces",
            Self::GroupManagedIdentities => "group_managed_identities",
            Self::GroupServiceAccounts => "group_service_accounts",
            Self::ManagedIdentityAliases => "managed_identity_aliases",
        }
    }

    /// What it limits, in words.
    #[must_use]
    pub fn description(self) -> &'static str {
        match self {
            Self::NamespaceDepth => "names in the path of a group or workspace",
            Self::GroupSubgroups => "subgroups of a group",
            Self::GroupWorkspaces => "workspaces of a group",
            Self::GroupManagedIdentities => "managed identities of a group, aliases included",
            Self::GroupServiceAccounts => "service accounts of a group",
            Self::ManagedIdentityAliases => "aliases of a managed identity",
        }
    }

    /// Until somebody changes it.
    #[must_use]
    pub const fn default_value(self) -> i64 {
        match self {
            Self::NamespaceDepth => 20,
            Self::GroupSubgroups
            | Self::GroupWorkspaces
            | Self::GroupManagedIdentities
            | Self::GroupServiceAccounts
            | Self::ManagedIdentityAliases => 1_000,
        }
    }

    /// The most that it may be. A path has to be read in one go, and to fit into a TRN.
    #[must_use]
    pub const fn max_value(self) -> i64 {
        match self {
            Self::NamespaceDepth => 40,
            Self::GroupSubgroups
            | Self::GroupWorkspaces
            | Self::GroupManagedIdentities
            | Self::GroupServiceAccounts
            | Self::ManagedIdentityAliases => 10_000,
        }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Limit {
    type Err = InvalidLimit;

    fn from_str(text: &str) -> Result<Self, InvalidLimit> {
        let found = Self::ALL.into_iter().find(|limit| limit.as_str() == text);
        found.ok_or(InvalidLimit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reads_back_and_has_a_default_within_its_bounds() {
        for limit in Limit::ALL {
            assert_eq!(limit.to_string().parse(), Ok(limit));
            assert!((Limit::MIN..=limit.max_value()).contains(&limit.default_value()));
        }
        assert_eq!("depth".parse::<Limit>(), Err(InvalidLimit));
    }
}
