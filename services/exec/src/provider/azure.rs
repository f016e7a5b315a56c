//! Microsoft Azure: `AzureRM`, `AzureAD` and their kin read `ARM_…`, the SDKs' workload identity credential `AZURE_…`.
//!
//! `ARM_OIDC_TOKEN` stays unset: it would be of another time than the file as soon as the token is renewed, and the
//! providers refuse two that differ.

use proto::identity::v1::AzureConfiguration;

use super::Place;
use crate::environment::Environment;

/// The SDKs go on for minutes with what they have read: for ten in Python and Go, for five in JavaScript. At the usual 15
/// minutes of a token's life, what is renewed after five of them always holds for ten more.
pub(super) const THIRDS: u32 = 1;

/// Clients take these before a federated token, or refuse one with them, and its files.
pub(super) const CREDENTIALS: [&str; 17] = [
    "ARM_OIDC_TOKEN",
    "ARM_OIDC_TOKEN_FILE_PATH",
    "ARM_OIDC_REQUEST_TOKEN",
    "ARM_OIDC_REQUEST_URL",
    "ARM_ADO_PIPELINE_SERVICE_CONNECTION_ID",
    "ARM_OIDC_AZURE_SERVICE_CONNECTION_ID",
    "ARM_CLIENT_ID_FILE_PATH",
    "ARM_CLIENT_SECRET",
    "ARM_CLIENT_SECRET_FILE_PATH",
    "ARM_CLIENT_CERTIFICATE",
    "ARM_CLIENT_CERTIFICATE_PATH",
    "AZURE_CLIENT_SECRET",
    "AZURE_CLIENT_CERTIFICATE_PATH",
    "AZURE_USERNAME",
    "AZURE_PASSWORD",
    "AZURE_FEDERATED_TOKEN_FILE",
    // Which of their credentials the SDKs take.
    "AZURE_TOKEN_CREDENTIALS",
];

/// Has the clients look for a token that does not come.
pub(super) fn close(token_file: &str, azure: &AzureConfiguration, environment: &mut Environment) {
    environment.set("AZURE_TOKEN_CREDENTIALS", "WorkloadIdentityCredential");
    // Without these, the credential that is to fail is passed over.
    environment.set("AZURE_CLIENT_ID", &azure.client_id);
    environment.set("AZURE_TENANT_ID", &azure.tenant_id);
    environment.set("AZURE_FEDERATED_TOKEN_FILE", token_file);
    // Older SDKs know nothing of the first, and may pass a missing token over; at a missing certificate, of which they make
    // their first credential, they stop.
    environment.set("AZURE_CLIENT_CERTIFICATE_PATH", token_file);
    environment.set("ARM_USE_OIDC", "true");
    environment.set("ARM_OIDC_TOKEN_FILE_PATH", token_file);
    environment.set("ARM_USE_CLI", "false");
    environment.set("ARM_USE_MSI", "false");
}

pub(super) fn provide(
    place: &Place<'_>,
    azure: &AzureConfiguration,
    environment: &mut Environment,
) {
    for (client, tenant) in [
        ("ARM_CLIENT_ID", "ARM_TENANT_ID"),
        ("AZURE_CLIENT_ID", "AZURE_TENANT_ID"),
    ] {
        environment.set(client, &azure.client_id);
        environment.set(tenant, &azure.tenant_id);
    }
    environment.set("AZURE_FEDERATED_TOKEN_FILE", &place.token_file);
    environment.set("ARM_USE_OIDC", "true");
    // Of both, the providers would take the file.
    if let Some(endpoint) = place.endpoint {
        environment.set("ARM_OIDC_REQUEST_URL", endpoint.url(place.identity));
        environment.set("ARM_OIDC_REQUEST_TOKEN", endpoint.secret());
    } else {
        environment.set("ARM_OIDC_TOKEN_FILE_PATH", &place.token_file);
    }
}
