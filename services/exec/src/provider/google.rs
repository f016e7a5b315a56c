//! Google Cloud: an external account whose token lies in a file (<https://google.aip.dev/auth/4117>).

use proto::identity::v1::GoogleConfiguration;
use serde_json::json;

use super::Place;
use crate::environment::Environment;
use crate::failure::Failure;

/// Terraform's provider and gcloud take these before a file with credentials, and the files.
pub(super) const CREDENTIALS: [&str; 8] = [
    "GOOGLE_CREDENTIALS",
    "GOOGLE_CLOUD_KEYFILE_JSON",
    "GCLOUD_KEYFILE_JSON",
    "GOOGLE_OAUTH_ACCESS_TOKEN",
    "GOOGLE_APPLICATION_CREDENTIALS",
    "CLOUDSDK_AUTH_ACCESS_TOKEN",
    "CLOUDSDK_AUTH_ACCESS_TOKEN_FILE",
    "CLOUDSDK_AUTH_CREDENTIAL_FILE_OVERRIDE",
];

/// What is impersonated with any credentials.
const IMPERSONATED: [&str; 2] = [
    "GOOGLE_IMPERSONATE_SERVICE_ACCOUNT",
    "CLOUDSDK_AUTH_IMPERSONATE_SERVICE_ACCOUNT",
];

pub(super) fn provide(
    place: &Place<'_>,
    google: &GoogleConfiguration,
    environment: &mut Environment,
) -> Result<(), Failure> {
    let settings = place.settings;
    let mut account = json!({
        "type": "external_account",
        "audience": format!("//iam.googleapis.com/{}", google.workload_identity_provider),
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
        "token_url": format!("{}/v1/token", settings.google_sts),
        "credential_source": { "file": place.token_file, "format": { "type": "text" } },
    });
    if !google.service_account.is_empty() {
        account["service_account_impersonation_url"] = json!(format!(
            "{}/v1/projects/-/serviceAccounts/{}:generateAccessToken",
            settings.google_iam_credentials, google.service_account
        ));
        // It would have to impersonate another one. Without it, which one is the job's to say.
        for name in IMPERSONATED {
            environment.unset(name);
        }
    }
    let name = format!("{}.google.json", place.identity.id);
    place.folder.write(&name, &account.to_string())?;
    environment.set("GOOGLE_APPLICATION_CREDENTIALS", place.folder.file(&name));
    // gcloud does not read the other.
    environment.set(
        "CLOUDSDK_AUTH_CREDENTIAL_FILE_OVERRIDE",
        place.folder.file(&name),
    );
    Ok(())
}
