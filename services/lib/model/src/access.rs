//! Roles and permissions.

use std::fmt;
use std::str::FromStr;

/// What a member may do, each role including those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Sees.
    Viewer,
    /// Changes workspaces and managed identities, opens jobs.
    Deployer,
    /// Changes groups and memberships too.
    Owner,
}

/// The text is not a [`Role`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a role")]
pub struct InvalidRole;

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Viewer => "viewer",
            Self::Deployer => "deployer",
            Self::Owner => "owner",
        })
    }
}

impl FromStr for Role {
    type Err = InvalidRole;

    fn from_str(text: &str) -> Result<Self, InvalidRole> {
        match text {
            "viewer" => Ok(Self::Viewer),
            "deployer" => Ok(Self::Deployer),
            "owner" => Ok(Self::Owner),
            _ => Err(InvalidRole),
        }
    }
}

/// What an rpc needs its caller to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(
    missing_docs,
    reason = "the contract `tharsis.access.v1.Permission` describes each"
)]
pub enum Permission {
    Anyone,
    Authenticated,
    EventsRead,
    Job,
    Administrator,
    GroupView,
    GroupCreate,
    GroupDelete,
    GroupUpdate,
    WorkspaceView,
    WorkspaceCreate,
    WorkspaceUpdate,
    WorkspaceDelete,
    MembershipView,
    MembershipCreate,
    MembershipUpdate,
    MembershipDelete,
    ManagedIdentityView,
    ManagedIdentityCreate,
    ManagedIdentityUpdate,
    ManagedIdentityDelete,
    JobOpen,
    JobView,
    JobUpdate,
    MaskView,
    MaskCreate,
    MaskDelete,
    ServiceAccountView,
    ServiceAccountCreate,
    ServiceAccountUpdate,
    ServiceAccountDelete,
    ActivityView,
    CredentialView,
}

/// From where a permission comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Requirement {
    /// Nothing, not even a token.
    Nothing,
    /// A valid token.
    Token,
    /// The configuration of the service.
    EventReader,
    /// A job token.
    JobToken,
    /// The configuration of the service: an administrator.
    Administrator,
    /// This role, or one above, on the resource.
    Role(Role),
}

impl Permission {
    /// What a caller needs to hold the permission. The seed document gives managed identities to deployers.
    #[must_use]
    pub fn requirement(self) -> Requirement {
        use Requirement::{EventReader, JobToken, Nothing, Token};
        match self {
            Self::Anyone => Nothing,
            Self::Authenticated => Token,
            Self::EventsRead => EventReader,
            Self::Job => JobToken,
            Self::Administrator => Requirement::Administrator,
            Self::GroupView
            | Self::WorkspaceView
            | Self::MembershipView
            | Self::ManagedIdentityView
            | Self::MaskView
            | Self::ServiceAccountView
            | Self::JobView
            | Self::ActivityView
            | Self::CredentialView => Requirement::Role(Role::Viewer),
            Self::WorkspaceCreate
            | Self::WorkspaceUpdate
            | Self::WorkspaceDelete
            | Self::ManagedIdentityCreate
            | Self::ManagedIdentityUpdate
            | Self::ManagedIdentityDelete
            | Self::JobOpen
            | Self::JobUpdate => Requirement::Role(Role::Deployer),
            Self::GroupCreate
            | Self::GroupDelete
            | Self::GroupUpdate
            | Self::MembershipCreate
            | Self::MembershipUpdate
            | Self::MembershipDelete
            | Self::MaskCreate
            | Self::MaskDelete
            | Self::ServiceAccountCreate
            | Self::ServiceAccountUpdate
            | Self::ServiceAccountDelete => Requirement::Role(Role::Owner),
        }
    }
}
