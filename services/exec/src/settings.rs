//! What the environment says. All that is wrong with it is told at once.

use std::path::{Path, PathBuf};

use http::Uri;

use crate::failure::Failure;
use crate::job_token::JobToken;

/// Where Google exchanges tokens, and where it gives out a service account's.
const GOOGLE_STS: &str = "https://sts.googleapis.com";
const GOOGLE_IAM_CREDENTIALS: &str = "https://iamcredentials.googleapis.com";

/// What the program is told.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) issuer: Uri,
    pub(crate) job_token: JobToken,
    pub(crate) folder: Option<PathBuf>,
    pub(crate) google_sts: String,
    pub(crate) google_iam_credentials: String,
    /// Those that AWS's clients would read without us, if they are there.
    pub(crate) aws_config_file: Option<PathBuf>,
    pub(crate) aws_credentials_file: Option<PathBuf>,
}

impl Settings {
    pub(crate) fn read(lookup: &dyn Fn(&str) -> Option<String>) -> Result<Self, Failure> {
        let given = |name: &str| lookup(name).filter(|value| !value.trim().is_empty());
        let mut wrong = Vec::new();
        // Of a path, nothing would be asked; a password would be in every message that names the issuer.
        let issuer = given("THARSIS_ISSUER_GRPC_URL")
            .and_then(|url| address(&url))
            .filter(|url| url.path() == "/" && url.query().is_none())
            .filter(|url| {
                !url.authority()
                    .is_some_and(|host| host.as_str().contains('@'))
            });
        if issuer.is_none() {
            wrong.push(
                "THARSIS_ISSUER_GRPC_URL must be the issuer's http(s)://host:port".to_owned(),
            );
        }
        let job_token = match (given("THARSIS_JOB_TOKEN"), given("THARSIS_JOB_TOKEN_FILE")) {
            (Some(token), None) => Some(JobToken::Given(token.trim().to_owned())),
            (None, Some(path)) => Some(JobToken::in_file(path.into())),
            (None, None) => {
                wrong.push(
                    "there is no job token: THARSIS_JOB_TOKEN or THARSIS_JOB_TOKEN_FILE must be set, \
                     to what OpenJob answered with"
                        .to_owned(),
                );
                None
            }
            (Some(_), Some(_)) => {
                wrong.push(
                    "only one of THARSIS_JOB_TOKEN and THARSIS_JOB_TOKEN_FILE may be set"
                        .to_owned(),
                );
                None
            }
        };
        let mut google = |name: &str, public: &str| {
            let Some(url) = given(name) else {
                return public.to_owned();
            };
            if address(&url).is_none() {
                wrong.push(format!("{name} must be http(s)://host, as {public}"));
            }
            url.trim_end_matches('/').to_owned()
        };
        let google_sts = google("THARSIS_EXEC_GOOGLE_STS_URL", GOOGLE_STS);
        let google_iam_credentials = google(
            "THARSIS_EXEC_GOOGLE_IAM_CREDENTIALS_URL",
            GOOGLE_IAM_CREDENTIALS,
        );
        let home = given("HOME").map(PathBuf::from);
        let folder = given("THARSIS_EXEC_FOLDER").map(PathBuf::from);
        // It would be another one for who goes elsewhere.
        if folder.as_ref().is_some_and(|folder| folder.is_relative()) {
            wrong.push("THARSIS_EXEC_FOLDER must be an absolute path".to_owned());
        }
        // Of ours, in a folder that was removed since.
        let is_lost = |path: &Path| {
            let folder = folder.as_deref();
            folder.is_some_and(|folder| path.starts_with(folder)) && !path.exists()
        };
        let of_aws = |variable: &str, usual: &str| {
            let named = given(variable).map(|path| below_home(path, home.as_deref()));
            let usual = || home.as_ref().map(|home| home.join(usual));
            named.filter(|path| !is_lost(path)).or_else(usual)
        };
        let aws_config_file = of_aws("AWS_CONFIG_FILE", ".aws/config");
        let aws_credentials_file = of_aws("AWS_SHARED_CREDENTIALS_FILE", ".aws/credentials");
        match (issuer, job_token) {
            (Some(issuer), Some(job_token)) if wrong.is_empty() => Ok(Self {
                issuer,
                job_token,
                folder,
                google_sts,
                google_iam_credentials,
                aws_config_file,
                aws_credentials_file,
            }),
            _ => Err(Failure::Usage(wrong)),
        }
    }
}

/// AWS's clients expand a `~` themselves.
fn below_home(path: String, home: Option<&Path>) -> PathBuf {
    match (path.strip_prefix("~/"), home) {
        (Some(below), Some(home)) => home.join(below),
        _ => path.into(),
    }
}

fn address(text: &str) -> Option<Uri> {
    let uri: Uri = text.trim().parse().ok()?;
    let known = matches!(uri.scheme_str(), Some("http" | "https"));
    let authority = uri.authority()?;
    // One that is out of range is no port, and stays with the host.
    let is_host = authority.as_str().rsplit('@').next() == Some(authority.host());
    (known && (authority.port().is_some() || is_host)).then_some(uri)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Settings, String> {
        let lookup = |name: &str| {
            let found = variables.iter().find(|(variable, _)| *variable == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        Settings::read(&lookup).map_err(|failure| failure.to_string())
    }

    const ISSUER: (&str, &str) = ("THARSIS_ISSUER_GRPC_URL", "http://127.0.0.1:7103");

    #[test]
    fn all_that_is_wrong_is_told_at_once_and_no_secret() {
        let told = read(&[
            ("THARSIS_EXEC_GOOGLE_STS_URL", "sts"),
            ("THARSIS_EXEC_FOLDER", "tokens"),
        ]);
        let told = told.expect_err("wrong");
        for variable in [
            "THARSIS_ISSUER_GRPC_URL",
            "THARSIS_JOB_TOKEN",
            "THARSIS_EXEC_GOOGLE_STS_URL",
            "THARSIS_EXEC_FOLDER",
        ] {
            assert!(told.contains(variable), "{told}");
        }
        let both = [
            ISSUER,
            ("THARSIS_JOB_TOKEN", "hunter2"),
            ("THARSIS_JOB_TOKEN_FILE", "/token"),
        ];
        let told = read(&both).expect_err("wrong");
        assert!(
            told.contains("only one") && !told.contains("hunter2"),
            "{told}"
        );
        let settings = read(&[ISSUER, ("THARSIS_JOB_TOKEN", "hunter2\n")]).expect("right");
        assert!(!format!("{settings:?}").contains("hunter2"));
        assert_eq!(settings.google_sts, GOOGLE_STS);
    }

    #[test]
    fn the_issuer_is_a_host_and_nothing_below_it() {
        for (url, right) in [
            ("http://127.0.0.1:7103", true),
            ("https://issuer.example:443/", true),
            ("http://127.0.0.1:7103/v1", false),
            ("http://127.0.0.1:7103/?v=1", false),
            ("127.0.0.1:7103", false),
            ("http://127.0.0.1:71030", false),
            ("http://[::1]:7103", true),
            ("https://issuer.example", true),
            ("http://alice:hunter2@127.0.0.1:7103", false),
            ("http://alice@127.0.0.1:7103", false),
        ] {
            let issuer = ("THARSIS_ISSUER_GRPC_URL", url);
            let told = read(&[issuer, ("THARSIS_JOB_TOKEN", "hunter2")]);
            assert_eq!(told.is_ok(), right, "{url}");
            let told = told.err().unwrap_or_default();
            assert!(!told.contains("hunter2"), "{told}");
        }
    }

    #[test]
    fn the_aws_config_file_is_the_one_that_aws_s_clients_read() {
        let home = ("HOME", "/home/alice");
        for (variables, wanted) in [
            (&[][..], None),
            (&[home], Some("/home/alice/.aws/config")),
            (
                &[home, ("AWS_CONFIG_FILE", "~/aws")],
                Some("/home/alice/aws"),
            ),
            (&[home, ("AWS_CONFIG_FILE", "/etc/aws")], Some("/etc/aws")),
            (
                &[
                    home,
                    ("THARSIS_EXEC_FOLDER", "/gone"),
                    ("AWS_CONFIG_FILE", "/gone/aws-config"),
                ],
                Some("/home/alice/.aws/config"),
            ),
        ] {
            let job = [ISSUER, ("THARSIS_JOB_TOKEN", "hunter2")];
            let settings = read(&[&job, variables].concat()).expect("right");
            let file = settings.aws_config_file;
            assert_eq!(file.as_deref(), wanted.map(Path::new), "{variables:?}");
        }
    }
}
