//! One identity of each type, and what the owners of the clouds' side would say of them.

use proto::identity::v1 as identity;
use proto::identity::v1::configuration::Type;

use super::{Cluster, FederatedCredential, Provider, Role, ServiceAccount, Trust};

/// The IAM role.
pub const ROLE: &str = "arn:aws:iam::123456789012:role/deployer";
/// The application, and the directory that it is in.
pub const CLIENT: &str = "11111111-2222-3333-4444-555555555555";
/// The directory.
pub const TENANT: &str = "66666666-7777-8888-9999-aaaaaaaaaaaa";
/// The workload identity pool's provider.
pub const PROVIDER: &str =
    "projects/123456789012/locations/global/workloadIdentityPools/tharsis/providers/main";
/// The service account.
pub const SERVICE_ACCOUNT: &str = "deployer@acme.iam.gserviceaccount.com";
const AZURE_AUDIENCE: &str = "api://AzureADTokenExchange";
const KUBERNETES_AUDIENCE: &str = "kubernetes";

/// A name for each, and its configuration.
#[must_use]
pub fn identities() -> [(&'static str, Type); 4] {
    let aws = identity::AwsConfiguration {
        role_arn: ROLE.to_owned(),
    };
    let azure = identity::AzureConfiguration {
        client_id: CLIENT.to_owned(),
        tenant_id: TENANT.to_owned(),
        audience: AZURE_AUDIENCE.to_owned(),
    };
    let google = identity::GoogleConfiguration {
        workload_identity_provider: PROVIDER.to_owned(),
        service_account: SERVICE_ACCOUNT.to_owned(),
    };
    let kubernetes = identity::KubernetesConfiguration {
        audience: KUBERNETES_AUDIENCE.to_owned(),
    };
    [
        ("deployer", Type::Aws(aws)),
        ("application", Type::Azure(azure)),
        ("workload", Type::Google(google)),
        ("cluster", Type::Kubernetes(kubernetes)),
    ]
}

/// Trust in the tokens of the identities with these ids, in their order.
#[must_use]
pub fn trust(issuer: &str, subjects: &[String; 4]) -> Trust {
    let issuer = issuer.to_owned();
    let [aws, azure, google, _] = subjects.clone();
    Trust {
        aws: vec![Role {
            arn: ROLE.to_owned(),
            issuer: issuer.clone(),
            audience: "aws".to_owned(),
            subject: aws,
        }],
        azure: vec![FederatedCredential {
            tenant_id: TENANT.to_owned(),
            client_id: CLIENT.to_owned(),
            issuer: issuer.clone(),
            subject: azure,
            audience: AZURE_AUDIENCE.to_owned(),
        }],
        google: vec![Provider {
            name: PROVIDER.to_owned(),
            issuer: issuer.clone(),
            service_accounts: vec![ServiceAccount {
                email: SERVICE_ACCOUNT.to_owned(),
                subject: google,
            }],
        }],
        kubernetes: vec![Cluster {
            issuer,
            audience: KUBERNETES_AUDIENCE.to_owned(),
        }],
    }
}
