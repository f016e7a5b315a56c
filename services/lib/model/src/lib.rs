//! The words that every service speaks: ids, names, TRNs, principals, roles, permissions.
//!
//! No I/O, clock, random numbers or wire types in here.

pub mod access;
pub mod access_rule;
pub mod attestation;
pub mod id;
pub mod job_duration;
pub mod limit;
pub mod mask;
pub mod name;
pub mod principal;
pub mod signing_algorithm;
pub mod stage;
pub mod token_settings;
pub mod trn;
pub mod trust;

pub use access::{Permission, Requirement, Role};
pub use access_rule::AccessRule;
pub use id::{
    AccessRuleId, GroupId, JobId, Kind, ManagedIdentityId, MaskId, MembershipId, NamespaceId,
    ResourceId, ServiceAccountId, SigningKeyId, TeamId, WorkspaceId,
};
pub use job_duration::JobDuration;
pub use limit::Limit;
pub use mask::Mask;
pub use name::{Description, Name};
pub use principal::Principal;
pub use signing_algorithm::SigningAlgorithm;
pub use stage::Stage;
pub use token_settings::TokenSettings;
pub use trn::{InvalidReference, InvalidReferenceTo, Reference, Trn};
