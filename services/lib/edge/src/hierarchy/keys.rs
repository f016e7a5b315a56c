//! The scheme of the keys, and what some of them hold.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use model::trust::TrustPolicy;
use model::{Limit, Principal};
use prost::Message as _;
use proto::identity;

use crate::trust;

/// The key of what stands above a resource, and its name: `<parent id>/<name>`. A thing without it does not exist.
#[must_use]
pub fn node_key(id: impl std::fmt::Display) -> String {
    format!("node/{id}")
}

/// The key of the group or workspace of a name in a group; at the top, the parent is empty.
#[must_use]
pub fn name_key(parent: &str, name: &str) -> String {
    format!("name/{parent}/{name}")
}

/// The key of the managed identity of a name in a group.
#[must_use]
pub fn identity_name_key(group: &str, name: &str) -> String {
    format!("identity-name/{group}/{name}")
}

/// The key of the service account of a name in a group.
#[must_use]
pub fn service_account_name_key(group: &str, name: &str) -> String {
    format!("{SERVICE_ACCOUNT_NAMES}{group}/{name}")
}

/// Whether a fact says that a service account exists, or what it is called.
#[must_use]
pub fn is_of_service_accounts(key: &str) -> bool {
    key.starts_with("node/sa_") || key.starts_with(SERVICE_ACCOUNT_NAMES)
}

/// The key of the team of a name. Teams belong to no group.
#[must_use]
pub fn team_name_key(name: &str) -> String {
    format!("{TEAM_NAME}/{name}")
}

/// The key of a principal's membership in a group or workspace: `<role>/<membership id>`.
#[must_use]
pub fn member_key(namespace: impl std::fmt::Display, principal: &Principal) -> String {
    format!("member/{namespace}/{principal}")
}

/// The key of a managed identity's type: `aws`.
#[must_use]
pub fn identity_type_key(id: impl std::fmt::Display) -> String {
    format!("{IDENTITY_TYPE}{id}")
}

/// The key of the audience that a managed identity's cloud expects, where that is not its type's word.
#[must_use]
pub fn identity_audience_key(id: impl std::fmt::Display) -> String {
    format!("identity-audience/{id}")
}

/// The key of what a managed identity's tokens are like, where that is not the default.
#[must_use]
pub fn token_settings_key(id: impl std::fmt::Display) -> String {
    format!("token-settings/{id}")
}

/// The key of a managed identity's configuration: the message, encoded, in base64.
#[must_use]
pub fn identity_configuration_key(id: impl std::fmt::Display) -> String {
    format!("identity-configuration/{id}")
}

/// The configuration that such a fact holds. `None` if it is not one.
#[must_use]
pub fn read_configuration(fact: &str) -> Option<identity::v1::Configuration> {
    let encoded = STANDARD_NO_PAD.decode(fact).ok()?;
    identity::v1::Configuration::decode(encoded.as_slice()).ok()
}

/// The key of which tokens a service account trusts: a message with its policies, encoded, in base64.
#[must_use]
pub fn trust_key(id: impl std::fmt::Display) -> String {
    format!("trust/{id}")
}

/// The policies that such a fact holds. `None` if it is not one.
#[must_use]
pub fn read_trust(fact: &str) -> Option<Vec<TrustPolicy>> {
    let encoded = STANDARD_NO_PAD.decode(fact).ok()?;
    let account = identity::v1::ServiceAccount::decode(encoded.as_slice()).ok()?;
    trust::policies(&account.trust_policies)
}

/// The key that says that a managed identity is assigned to a workspace.
#[must_use]
pub fn assignment_key(
    workspace: impl std::fmt::Display,
    identity: impl std::fmt::Display,
) -> String {
    format!("assignment/{workspace}/{identity}")
}

/// The key of a limit that is not its default any more.
#[must_use]
pub fn limit_key(limit: Limit) -> String {
    format!("limit/{limit}")
}

/// The key of how long the jobs of a workspace may live at most, where the workspace says so: seconds.
#[must_use]
pub fn max_job_duration_key(workspace: impl std::fmt::Display) -> String {
    format!("max-job-duration/{workspace}")
}

/// The keys of the types of managed identities start so.
pub const IDENTITY_TYPE: &str = "identity-type/";
/// The keys of everything assigned start so, followed by the workspace.
pub const ASSIGNMENTS: &str = "assignment/";
/// The keys of the names of managed identities start so, followed by the group.
pub const IDENTITY_NAMES: &str = "identity-name/";
/// The keys of the names of service accounts start so, followed by the group.
pub const SERVICE_ACCOUNT_NAMES: &str = "service-account-name/";
/// The keys of the members of everything start so, followed by the group or workspace.
pub const MEMBERS: &str = "member/";
pub(super) const TEAM_NAME: &str = "team-name/";

/// Whether a fact is of those that a [`Hierarchy`] is read from.
#[must_use]
pub fn is_of_the_hierarchy(key: &str) -> bool {
    [
        "node/",
        "name/",
        "identity-name/",
        SERVICE_ACCOUNT_NAMES,
        TEAM_NAME,
        "member/",
        "team-of/",
    ]
    .iter()
    .any(|prefix| key.starts_with(prefix))
}
