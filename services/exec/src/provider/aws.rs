//! Amazon Web Services: the web identity provider of the SDKs
//! (<https://docs.aws.amazon.com/sdkref/latest/guide/feature-assume-role-credentials.html>).

use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;

use proto::identity::v1::AwsConfiguration;

use super::Place;
use crate::environment::Environment;
use crate::failure::Failure;
use crate::folder::Folder;
use crate::issuer::Identity;
use crate::messages::say;
use crate::settings::Settings;

/// Clients take keys, of either spelling, and a profile's role before a web identity; for Bedrock, its bearer token.
pub(super) const CREDENTIALS: [&str; 14] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_ACCESS_KEY",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SECRET_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_PROFILE",
    "AWS_DEFAULT_PROFILE",
    "AWS_ROLE_ARN",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "AWS_BEARER_TOKEN_BEDROCK",
];

/// Some clients take these of the default profile before a web identity of the environment.
const OF_A_PROFILE: [&str; 14] = [
    "aws_access_key_id",
    "aws_secret_access_key",
    "aws_session_token",
    "role_arn",
    "source_profile",
    "credential_source",
    "credential_process",
    "web_identity_token_file",
    "sso_session",
    "sso_account_id",
    "sso_role_name",
    "sso_start_url",
    "sso_region",
    "login_session",
];

/// The names of our files in the folder.
pub(super) const CONFIG: &str = "aws-config";
pub(super) const SHARED_CREDENTIALS: &str = "aws-credentials";

/// What is below was written by us.
const OURS: &str = "# Of tharsis-exec:";

/// Has the clients read what the files of before say of other things than who they are, and of our profile what is given:
/// each file is written once, for it may be read meanwhile.
fn lead(
    identity: &Identity,
    profile: &str,
    settings: &Settings,
    folder: &Folder,
    environment: &mut Environment,
) -> Result<(), Failure> {
    for (variable, before, name, ours) in [
        (
            "AWS_CONFIG_FILE",
            &settings.aws_config_file,
            CONFIG,
            profile,
        ),
        (
            "AWS_SHARED_CREDENTIALS_FILE",
            &settings.aws_credentials_file,
            SHARED_CREDENTIALS,
            "",
        ),
    ] {
        let mut content = theirs(before.as_deref(), &identity.path)?;
        if !content.is_empty() && !ours.is_empty() {
            content.push('\n');
        }
        content.push_str(ours);
        folder.write(name, &content)?;
        environment.set(variable, folder.file(name));
    }
    Ok(())
}

/// Has the clients find nothing, and not ask the machine.
pub(super) fn close(
    identity: &Identity,
    settings: &Settings,
    folder: &Folder,
    environment: &mut Environment,
) -> Result<(), Failure> {
    environment.set("AWS_EC2_METADATA_DISABLED", "true");
    lead(identity, "", settings, folder, environment)
}

pub(super) fn provide(
    place: &Place<'_>,
    aws: &AwsConfiguration,
    environment: &mut Environment,
) -> Result<(), Failure> {
    let profile = format!(
        "{OURS}\n[profile {}]\nrole_arn = {}\nweb_identity_token_file = {}\nrole_session_name = {}\n",
        place.identity.path, aws.role_arn, place.token_file, place.job
    );
    let (settings, folder) = (place.settings, place.folder);
    lead(place.identity, &profile, settings, folder, environment)?;
    environment.set("AWS_ROLE_ARN", &aws.role_arn);
    environment.set("AWS_WEB_IDENTITY_TOKEN_FILE", &place.token_file);
    // CloudTrail shows it: so the job is found from what was done.
    environment.set("AWS_ROLE_SESSION_NAME", place.job);
    Ok(())
}

/// What is still good of a file of before; of one that is not there, or can't be read, nothing, as for the clients, nor of a
/// device, as `/dev/null`.
fn theirs(before: Option<&Path>, ours: &str) -> Result<String, Failure> {
    let kind = |path: &Path| Some(path.metadata().ok()?.file_type());
    let found = before.and_then(|path| Some((path, kind(path)?)));
    let Some((before, kind)) = found.filter(|(_, kind)| !kind.is_char_device()) else {
        return Ok(String::new());
    };
    if kind.is_fifo() {
        // Who writes it may never come.
        let what = format!("AWS's configuration in {} is a pipe", before.display());
        return Err(Failure::Usage(vec![what]));
    }
    let found = std::fs::read(before).unwrap_or_else(|error| {
        let file = before.display();
        say(&format!(
            "going on without AWS's configuration in {file}: {error}"
        ));
        Vec::new()
    });
    // What is no text is in a comment or a name: no client needs it.
    let mut good = still_good(&String::from_utf8_lossy(&found), ours);
    if !good.is_empty() {
        good.push('\n');
    }
    Ok(good)
}

/// The regions and endpoints of a file, and its profiles; not what we wrote there, nor a profile of our name, with which
/// botocore would refuse the file, nor the credentials of the default profile.
fn still_good(file: &str, ours: &str) -> String {
    let theirs = file.split(OURS).next().unwrap_or_default();
    let (mut profile, mut left_out) = ("", false);
    let mut kept = Vec::new();
    for line in theirs.lines() {
        let heading = profile_of(line);
        profile = heading.unwrap_or(profile);
        let key = line.split(['=', ':']).next().unwrap_or_default();
        let key = key.trim().to_ascii_lowercase();
        // An indented line goes on with the value above; but some clients read a key there.
        let goes_on = heading.is_none() && line.starts_with([' ', '\t']);
        left_out = profile == ours
            || (profile == "default" && OF_A_PROFILE.contains(&key.as_str()))
            || (goes_on && left_out);
        if !left_out {
            kept.push(line);
        }
    }
    kept.join("\n").trim_end().to_owned()
}

/// The name in the heading of a profile, or of another section; as the client reads it that takes the most for one.
fn profile_of(line: &str) -> Option<&str> {
    let line = line.trim_start_matches('\u{feff}').trim_start();
    let heading = line.strip_prefix('[')?.split(']').next()?.trim();
    let name = match heading.split_once(char::is_whitespace) {
        Some(("profile", name)) => name,
        _ => heading,
    };
    Some(name.trim().trim_matches(['"', '\'']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_of_before_gives_no_credentials_in_place_of_ours() {
        let file = "[default]\nregion = eu-central-1\nrole_arn = arn:of:the:runner\ncredential_source = Environment\n\
                    sso_start_url = https://runner\nSSO_REGION: eu-west-1\nlogin_session = of:the:runner\n\
                    s3 =\n  max_concurrent_requests = 20\n\n\
                    [profile \"acme/deployer\"]\nregion = eu-west-1\n\n\
                    [profile other]\nrole_arn = arn:of:another\n\n\
                    # Of tharsis-exec:\n[profile acme/deployer]\nrole_arn = arn:ours\n";
        assert_eq!(
            still_good(file, "acme/deployer"),
            "[default]\nregion = eu-central-1\ns3 =\n  max_concurrent_requests = 20\n\n\
             [profile other]\nrole_arn = arn:of:another"
        );
        assert_eq!(still_good("", "acme/deployer"), "");
        for heading in [
            "  [default]",
            "\u{feff}[default]",
            "[profile\tdefault]",
            "\t[ profile  default ]",
        ] {
            let file = format!(
                "{heading}\nregion = eu-west-1\ncredential_process = /bin/runner\n  --flag\n  aws_access_key_id = AKIA\n"
            );
            let good = format!("{heading}\nregion = eu-west-1");
            assert_eq!(still_good(&file, "acme/deployer"), good);
        }
    }
}
