//! Google Cloud: an external account whose token lies in a file (<https://google.aip.dev/auth/4117>).

use proto::identity::v1::GoogleConfiguration;
use serde_json::json;

use super::Place;
use crate::environment::Environment;
use crate::failure::Failure;

/// Terraform's provider takes these before `GOOGLE_APPLICATION_CREDENTIALS`.
const BEFORE_US: [&str; 6] = [
    "GOOGLE_CREDENTIALS",
    "GOOGLE_CLOUD_KEYFILE_JSON",
    "GCLOUD_KEYFILE_JSON",
    "GOOGLE_OAUTH_ACCESS_TOKEN",
    "GOOGLE_IMPERSONATE_SERVICE_ACCOUNT",
    "CLOUDSDK_AUTH_ACCESS_TOKEN",
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
    }
    let name = format!("{}.google.json", place.identity.id);
    place.folder.write(&name, &account.to_string())?;
    for name in BEFORE_US {
        environment.unset(name);
    }
    environment.set("GOOGLE_APPLICATION_CREDENTIALS", place.folder.file(&name));
    Ok(())
}
