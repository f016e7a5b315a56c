//! What the clouds were told to trust, as their owners would tell them in each cloud's own terms.

use serde::{Deserialize, Serialize};

/// Of all clouds.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Trust {
    /// IAM roles, each with its trust policy.
    pub aws: Vec<Role>,
    /// Federated credentials of applications.
    pub azure: Vec<FederatedCredential>,
    /// Providers of workload identity pools.
    pub google: Vec<Provider>,
    /// The clusters behind the API server.
    pub kubernetes: Vec<Cluster>,
}

/// A role that a token's bearer may assume. Its account has an OIDC provider for the issuer and the audience.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Role {
    /// `arn:aws:iam::<account>:role/<name>`.
    pub arn: String,
    /// The provider's URL.
    pub issuer: String,
    /// The provider's client id.
    pub audience: String,
    /// The `…:sub` of the trust policy's condition.
    pub subject: String,
}

/// A federated credential of an application.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct FederatedCredential {
    /// The directory.
    pub tenant_id: String,
    /// The application.
    pub client_id: String,
    /// Compared exactly, as are the others.
    pub issuer: String,
    /// The token's `sub`.
    pub subject: String,
    /// The token's `aud`.
    pub audience: String,
}

/// A provider of a workload identity pool, which takes its own name as audience.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Provider {
    /// `projects/…/locations/global/workloadIdentityPools/…/providers/…`.
    pub name: String,
    /// Whose tokens it takes.
    pub issuer: String,
    /// The service accounts that principals of the pool may impersonate.
    pub service_accounts: Vec<ServiceAccount>,
}

/// A service account, and who has the workload identity user's role on it.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct ServiceAccount {
    /// `name@project.iam.gserviceaccount.com`.
    pub email: String,
    /// The subject of the pool's principal.
    pub subject: String,
}

/// A cluster's authentication configuration.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Cluster {
    /// `--oidc-issuer-url`.
    pub issuer: String,
    /// `--oidc-client-id`.
    pub audience: String,
}

impl Trust {
    pub(super) fn extend(&mut self, more: Self) {
        self.aws.extend(more.aws);
        self.azure.extend(more.azure);
        self.google.extend(more.google);
        self.kubernetes.extend(more.kubernetes);
    }
}
