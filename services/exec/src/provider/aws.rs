//! Amazon Web Services: the web identity provider of the SDKs
//! (<https://docs.aws.amazon.com/sdkref/latest/guide/feature-assume-role-credentials.html>).

use std::fmt::Write as _;

use proto::identity::v1::AwsConfiguration;

use super::Place;
use crate::environment::Environment;
use crate::failure::Failure;

/// Every client takes these before a web identity.
const BEFORE_US: [&str; 3] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
];

pub(super) fn provide(
    place: &Place<'_>,
    aws: &AwsConfiguration,
    environment: &mut Environment,
) -> Result<(), Failure> {
    const CONFIG: &str = "aws-config";
    place.folder.write(CONFIG, &config(place, aws)?)?;
    for name in BEFORE_US {
        environment.unset(name);
    }
    environment.set("AWS_ROLE_ARN", &aws.role_arn);
    environment.set("AWS_WEB_IDENTITY_TOKEN_FILE", &place.token_file);
    // CloudTrail shows it: so the job is found from what was done.
    environment.set("AWS_ROLE_SESSION_NAME", place.job);
    environment.set("AWS_CONFIG_FILE", place.folder.file(CONFIG));
    Ok(())
}

/// What the file of before says, whose regions and endpoints still hold, and the profile.
fn config(place: &Place<'_>, aws: &AwsConfiguration) -> Result<String, Failure> {
    const OURS: &str = "# Of tharsis-exec:";
    let mut text = String::new();
    if let Some(before) = place.settings.aws_config_file.as_deref() {
        let found = std::fs::read_to_string(before).map_err(|source| {
            let what = format!("AWS_CONFIG_FILE={}", before.display());
            Failure::file(&what, source)
        })?;
        // It may be one that we wrote.
        let theirs = found.split(OURS).next().unwrap_or_default().trim_end();
        if !theirs.is_empty() {
            text = format!("{theirs}\n\n");
        }
    }
    // Writing to a string does not fail.
    let _ = writeln!(
        text,
        "{OURS}\n[profile {}]\nrole_arn = {}\nweb_identity_token_file = {}\nrole_session_name = {}",
        place.identity.path, aws.role_arn, place.token_file, place.job
    );
    Ok(text)
}
