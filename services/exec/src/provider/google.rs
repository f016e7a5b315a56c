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

/// Who is impersonated with any credentials: by Terraform's provider, and by gcloud.
const IMPERSONATED: &str = "GOOGLE_IMPERSONATE_SERVICE_ACCOUNT";
pub(super) const IMPERSONATED_BY_GCLOUD: &str = "CLOUDSDK_AUTH_IMPERSONATE_SERVICE_ACCOUNT";

/// gcloud takes the first of these places: an access token's file, and then the other; each in the environment, where it
/// may be empty, before its own configuration, where it may be the runner's.
fn lead(file: String, environment: &mut Environment) {
    environment.set("CLOUDSDK_AUTH_ACCESS_TOKEN_FILE", "");
    environment.set("CLOUDSDK_AUTH_CREDENTIAL_FILE_OVERRIDE", file.as_str());
    // gcloud does not read this one, and the others only this.
    environment.set("GOOGLE_APPLICATION_CREDENTIALS", file);
}

/// Has the clients look for a file that does not come.
pub(super) fn close(file: String, environment: &mut Environment) {
    lead(file, environment);
    environment.set(IMPERSONATED_BY_GCLOUD, "");
}

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
        environment.unset(IMPERSONATED);
        environment.set(IMPERSONATED_BY_GCLOUD, "");
    }
    let name = format!("{}.google.json", place.identity.id);
    place.folder.write(&name, &account.to_string())?;
    lead(place.folder.file(&name), environment);
    Ok(())
}
