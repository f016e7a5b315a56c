//! Where the clients of each cloud look for credentials.

mod aws;
mod azure;
mod google;
mod kubernetes;
mod tharsis;

use std::path::Path;

use proto::identity::v1::configuration::Type;

use crate::endpoint::Endpoint;
use crate::environment::Environment;
use crate::failure::Failure;
use crate::folder::Folder;
use crate::issuer::Identity;
use crate::messages::say;
use crate::settings::Settings;
use crate::token::Token;

/// Which of [`OF_USERS_TOO`] an environment has from us.
const SET_BY_US: &str = "THARSIS_EXEC_GUARDS";

/// What users set as well, to keep clients from the machine's own login or from another's.
const OF_USERS_TOO: [&str; 4] = [
    "AWS_EC2_METADATA_DISABLED",
    "ARM_USE_CLI",
    "ARM_USE_MSI",
    google::IMPERSONATED_BY_GCLOUD,
];

/// What a provider of credentials works with.
pub(crate) struct Place<'a> {
    pub(crate) identity: &'a Identity,
    pub(crate) token: &'a Token,
    /// The path of the file with the token.
    pub(crate) token_file: String,
    /// Which job it is for.
    pub(crate) job: &'a str,
    pub(crate) settings: &'a Settings,
    pub(crate) folder: &'a Folder,
    /// Where tokens are had on request, if they are.
    pub(crate) endpoint: Option<&'a Endpoint>,
}

/// After how many thirds of its life a token is renewed: what is left of it is for an issuer that is away, and for clients
/// that go on with what they have read.
pub(crate) fn thirds(identity: &Identity) -> u32 {
    match identity.configuration {
        Some(Type::Azure(_)) => azure::THIRDS,
        _ => 2,
    }
}

/// Takes out every credential of an identity's type. So no client goes on as somebody else: not as whom it would take
/// before the identity, and not as whom it would take without one that is refused.
pub(crate) fn withhold(identity: &Identity, environment: &mut Environment) {
    let credentials: &[&'static str] = match &identity.configuration {
        Some(Type::Aws(_)) => &aws::CREDENTIALS,
        Some(Type::Azure(_)) => &azure::CREDENTIALS,
        Some(Type::Google(_)) => &google::CREDENTIALS,
        Some(Type::Kubernetes(_)) => &kubernetes::CREDENTIALS,
        Some(Type::Tharsis(_)) => &tharsis::CREDENTIALS,
        None => &[],
    };
    for name in credentials {
        environment.unset(name);
    }
}

/// Has the clients of an identity that is refused fail: they would look on, for whatever the machine or its user is.
pub(crate) fn close(
    identity: &Identity,
    settings: &Settings,
    folder: &Folder,
    environment: &mut Environment,
) -> Result<(), Failure> {
    // There is none.
    let token_file = folder.file(&identity.token_file());
    match &identity.configuration {
        Some(Type::Aws(_)) => aws::close(identity, settings, folder, environment)?,
        Some(Type::Azure(azure)) => azure::close(&token_file, azure, environment),
        Some(Type::Google(_)) => google::close(token_file, environment),
        Some(Type::Kubernetes(_) | Type::Tharsis(_)) | None => {}
    }
    Ok(())
}

/// Takes out what an earlier environment had from a folder, whatever identity that was for: it may be lost since.
pub(crate) fn take_out_of(
    folder: &Path,
    lookup: &dyn Fn(&str) -> Option<String>,
    environment: &mut Environment,
) {
    let types: [(&str, &[&'static str], &[&'static str]); 5] = [
        (
            "AWS_CONFIG_FILE",
            &aws::CREDENTIALS,
            &[
                "AWS_CONFIG_FILE",
                "AWS_SHARED_CREDENTIALS_FILE",
                "AWS_ROLE_SESSION_NAME",
                "AWS_EC2_METADATA_DISABLED",
            ],
        ),
        (
            "AZURE_FEDERATED_TOKEN_FILE",
            &azure::CREDENTIALS,
            &[
                "ARM_USE_OIDC",
                "ARM_USE_CLI",
                "ARM_USE_MSI",
                "ARM_CLIENT_ID",
                "ARM_TENANT_ID",
                "AZURE_CLIENT_ID",
                "AZURE_TENANT_ID",
            ],
        ),
        (
            "GOOGLE_APPLICATION_CREDENTIALS",
            &google::CREDENTIALS,
            &[google::IMPERSONATED_BY_GCLOUD],
        ),
        ("KUBE_TOKEN_FILE", &kubernetes::CREDENTIALS, &[]),
        (
            "THARSIS_SERVICE_ACCOUNT_TOKEN_FILE",
            &tharsis::CREDENTIALS,
            &[],
        ),
    ];
    let by_us = lookup(SET_BY_US).unwrap_or_default();
    let is_ours = |name: &str| !OF_USERS_TOO.contains(&name) || names(&by_us, name);
    for (file, credentials, others) in types {
        if lookup(file).is_some_and(|file| Path::new(&file).starts_with(folder)) {
            for name in credentials.iter().chain(others) {
                if is_ours(name) {
                    environment.unset(name);
                }
            }
        }
    }
}

/// Notes for the next time what the user has not set so himself.
pub(crate) fn note(lookup: &dyn Fn(&str) -> Option<String>, environment: &mut Environment) {
    let before = lookup(SET_BY_US).unwrap_or_default();
    let is_ours = |name: &&str| {
        let set = environment.get(name);
        set.is_some() && (set != lookup(name).as_deref() || names(&before, name))
    };
    let ours: Vec<_> = OF_USERS_TOO.into_iter().filter(is_ours).collect();
    if ours.is_empty() {
        environment.unset(SET_BY_US);
    } else {
        environment.set(SET_BY_US, ours.join(" "));
    }
}

fn names(list: &str, name: &str) -> bool {
    list.split(' ').any(|listed| listed == name)
}

/// Writes a token, be it the first one or the next, wherever clients read it.
pub(crate) fn write(identity: &Identity, token: &Token, folder: &Folder) -> Result<(), Failure> {
    if let Some(Type::Kubernetes(_)) = identity.configuration {
        kubernetes::write(identity, token, folder)?;
    }
    folder.write(&identity.token_file(), token.text())
}

/// Writes the tokens, and what the clients have to know besides.
pub(crate) fn provide(
    tokens: &[(Identity, Token)],
    job: &str,
    settings: &Settings,
    folder: &Folder,
    endpoint: Option<&Endpoint>,
    environment: &mut Environment,
) -> Result<(), Failure> {
    for (identity, token) in tokens {
        write(identity, token, folder)?;
        let place = Place {
            identity,
            token,
            token_file: folder.file(&identity.token_file()),
            job,
            settings,
            folder,
            endpoint,
        };
        match &identity.configuration {
            Some(Type::Aws(aws)) => aws::provide(&place, aws, environment)?,
            Some(Type::Azure(azure)) => azure::provide(&place, azure, environment),
            Some(Type::Google(google)) => google::provide(&place, google, environment)?,
            Some(Type::Kubernetes(_)) => kubernetes::provide(&place, environment)?,
            Some(Type::Tharsis(tharsis)) => tharsis::provide(&place, tharsis, environment),
            None => say(&format!(
                "{} is of a type that this version does not know: its token is in {}, and that is all",
                identity.path, place.token_file
            )),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use proto::identity::v1 as pb;
    use serde_json::Value;
    use tokio::time::Instant;

    use super::*;

    fn settings() -> Settings {
        let lookup = |name: &str| match name {
            "THARSIS_ISSUER_GRPC_URL" => Some("http://127.0.0.1:7103".to_owned()),
            "THARSIS_JOB_TOKEN" => Some("job-token".to_owned()),
            _ => None,
        };
        Settings::read(&lookup).expect("right")
    }

    fn token() -> Token {
        let claims = URL_SAFE_NO_PAD.encode(r#"{"iat":1,"exp":901}"#);
        Token::read(format!("e30.{claims}.c2ln"), Instant::now()).expect("a token")
    }

    fn identity(configuration: Type) -> Identity {
        Identity {
            id: "mi_1".to_owned(),
            path: "acme/deployer".to_owned(),
            configuration: Some(configuration),
        }
    }

    fn provided(settings: &Settings, folder: &Folder, configuration: Type) -> Environment {
        let identity = identity(configuration);
        let mut environment = Environment::default();
        withhold(&identity, &mut environment);
        let tokens = [(identity, token())];
        provide(&tokens, "job_1", settings, folder, None, &mut environment).expect("provided");
        let written = std::fs::read_to_string(folder.file("mi_1.token")).expect("the token");
        assert_eq!(written, token().text());
        environment
    }

    #[track_caller]
    fn takes_out(environment: &Environment, names: &[&str]) {
        let exports = environment.exports();
        for name in names {
            assert!(exports.contains(&format!("unset {name}\n")), "{exports}");
        }
    }

    fn json(folder: &Folder, name: &str) -> Value {
        let text = std::fs::read_to_string(folder.file(name)).expect("the file");
        serde_json::from_str(&text).expect("JSON")
    }

    #[test]
    fn aws() {
        let folder = Folder::temporary().expect("a folder");
        let before = folder.file("before");
        std::fs::write(&before, "[default]\nregion = eu-central-1").expect("written");
        let settings = Settings {
            aws_config_file: Some(before.into()),
            ..settings()
        };
        let role_arn = "arn:aws:iam::123456789012:role/deployer".to_owned();
        let aws = Type::Aws(pb::AwsConfiguration { role_arn });
        let environment = provided(&settings, &folder, aws.clone());
        let token_file = folder.file("mi_1.token");
        for (name, value) in [
            (
                "AWS_ROLE_ARN",
                Some("arn:aws:iam::123456789012:role/deployer"),
            ),
            ("AWS_WEB_IDENTITY_TOKEN_FILE", Some(token_file.as_str())),
            ("AWS_ROLE_SESSION_NAME", Some("job_1")),
            ("AWS_ACCESS_KEY_ID", None),
        ] {
            assert_eq!(environment.get(name), value, "{name}");
        }
        takes_out(
            &environment,
            &["AWS_ACCESS_KEY", "AWS_PROFILE", "AWS_BEARER_TOKEN_BEDROCK"],
        );
        let read = || std::fs::read_to_string(folder.file("aws-config")).expect("the file");
        let config = read();
        assert_eq!(
            config,
            format!(
                "[default]\nregion = eu-central-1\n\n# Of tharsis-exec:\n[profile acme/deployer]\n\
                 role_arn = arn:aws:iam::123456789012:role/deployer\n\
                 web_identity_token_file = {token_file}\nrole_session_name = job_1\n"
            )
        );
        // Again, with our own file as the one of before.
        let settings = Settings {
            aws_config_file: Some(folder.file("aws-config").into()),
            ..settings
        };
        let identity = identity(aws.clone());
        withhold(&identity, &mut Environment::default());
        assert_eq!(read(), config, "it is there until there is a new one");
        provided(&settings, &folder, aws);
        assert_eq!(read(), config);
    }

    #[test]
    fn azure() {
        let folder = Folder::temporary().expect("a folder");
        let configuration = pb::AzureConfiguration {
            client_id: "client".to_owned(),
            tenant_id: "tenant".to_owned(),
            ..Default::default()
        };
        let environment = provided(&settings(), &folder, Type::Azure(configuration));
        let token_file = folder.file("mi_1.token");
        for (name, value) in [
            ("ARM_USE_OIDC", Some("true")),
            ("ARM_CLIENT_ID", Some("client")),
            ("ARM_TENANT_ID", Some("tenant")),
            ("ARM_OIDC_TOKEN_FILE_PATH", Some(token_file.as_str())),
            ("ARM_OIDC_TOKEN", None),
            ("AZURE_CLIENT_ID", Some("client")),
            ("AZURE_TENANT_ID", Some("tenant")),
            ("AZURE_FEDERATED_TOKEN_FILE", Some(token_file.as_str())),
            ("AZURE_CLIENT_SECRET", None),
        ] {
            assert_eq!(environment.get(name), value, "{name}");
        }
        takes_out(
            &environment,
            &[
                "ARM_CLIENT_SECRET",
                "ARM_CLIENT_ID_FILE_PATH",
                "ARM_OIDC_REQUEST_URL",
                "AZURE_TOKEN_CREDENTIALS",
            ],
        );
        let exports = environment.exports();
        assert!(!exports.contains("AZURE_AUTHORITY_HOST"), "{exports}");
    }

    #[test]
    fn what_is_refused_leads_nowhere() {
        let folder = Folder::temporary().expect("a folder");
        let mut environment = Environment::default();
        let azure = pb::AzureConfiguration {
            client_id: "client".to_owned(),
            ..Default::default()
        };
        for (id, configuration) in [
            ("mi_aws", Type::Aws(pb::AwsConfiguration::default())),
            ("mi_azure", Type::Azure(azure)),
            (
                "mi_google",
                Type::Google(pb::GoogleConfiguration::default()),
            ),
        ] {
            let identity = Identity {
                id: id.to_owned(),
                path: "acme/deployer".to_owned(),
                configuration: Some(configuration),
            };
            withhold(&identity, &mut environment);
            close(&identity, &settings(), &folder, &mut environment).expect("closed");
        }
        let (azure, google) = (
            folder.file("mi_azure.token"),
            folder.file("mi_google.token"),
        );
        for (name, value) in [
            ("AWS_EC2_METADATA_DISABLED", "true"),
            ("AZURE_FEDERATED_TOKEN_FILE", &azure),
            ("AZURE_TOKEN_CREDENTIALS", "WorkloadIdentityCredential"),
            ("AZURE_CLIENT_CERTIFICATE_PATH", &azure),
            ("AZURE_CLIENT_ID", "client"),
            ("ARM_USE_MSI", "false"),
            ("GOOGLE_APPLICATION_CREDENTIALS", &google),
            ("CLOUDSDK_AUTH_ACCESS_TOKEN_FILE", ""),
            ("CLOUDSDK_AUTH_IMPERSONATE_SERVICE_ACCOUNT", ""),
        ] {
            assert_eq!(environment.get(name), Some(value), "{name}");
        }
        assert!(!Path::new(&azure).exists() && !Path::new(&google).exists());
    }

    #[test]
    fn what_the_user_has_set_himself_stays_the_next_time() {
        let folder = Folder::temporary().expect("a folder");
        let file = folder.file("file");
        let mut shell = vec![
            ("AWS_CONFIG_FILE", file.as_str()),
            ("AZURE_FEDERATED_TOKEN_FILE", &file),
            ("GOOGLE_APPLICATION_CREDENTIALS", &file),
            ("ARM_USE_MSI", "false"),
        ];
        let lookup = |shell: &[(&str, &str)], name: &str| {
            let found = shell.iter().find(|(variable, _)| *variable == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        let mut closed = Environment::default();
        for name in ["AWS_EC2_METADATA_DISABLED", "ARM_USE_CLI", "ARM_USE_MSI"] {
            closed.set(name, "false");
        }
        closed.set("CLOUDSDK_AUTH_IMPERSONATE_SERVICE_ACCOUNT", "");
        note(&|name| lookup(&shell, name), &mut closed);
        let by_us = closed.get(SET_BY_US).expect("it is noted");

        let mut next = Environment::default();
        take_out_of(folder.path(), &|name| lookup(&shell, name), &mut next);
        let exports = next.exports();
        for name in OF_USERS_TOO {
            assert!(!exports.contains(name), "not by us: {exports}");
        }
        takes_out(&next, &["ARM_USE_OIDC", "CLOUDSDK_AUTH_ACCESS_TOKEN_FILE"]);
        shell.push((SET_BY_US, by_us));
        take_out_of(folder.path(), &|name| lookup(&shell, name), &mut next);
        takes_out(
            &next,
            &[
                "AWS_EC2_METADATA_DISABLED",
                "ARM_USE_CLI",
                "CLOUDSDK_AUTH_IMPERSONATE_SERVICE_ACCOUNT",
            ],
        );
        let exports = next.exports();
        assert!(!exports.contains("ARM_USE_MSI"), "{exports}");
        note(&|name| lookup(&shell, name), &mut next);
        takes_out(&next, &[SET_BY_US]);
    }

    #[test]
    fn google() {
        let folder = Folder::temporary().expect("a folder");
        let provider = "projects/1/locations/global/workloadIdentityPools/pool/providers/main";
        let mut configuration = pb::GoogleConfiguration {
            workload_identity_provider: provider.to_owned(),
            service_account: "deployer@acme.iam.gserviceaccount.com".to_owned(),
        };
        let environment = provided(&settings(), &folder, Type::Google(configuration.clone()));
        for name in [
            "GOOGLE_APPLICATION_CREDENTIALS",
            "CLOUDSDK_AUTH_CREDENTIAL_FILE_OVERRIDE",
        ] {
            let file = folder.file("mi_1.google.json");
            assert_eq!(environment.get(name), Some(file.as_str()), "{name}");
        }
        takes_out(&environment, &["GOOGLE_IMPERSONATE_SERVICE_ACCOUNT"]);
        for name in [
            "CLOUDSDK_AUTH_ACCESS_TOKEN_FILE",
            "CLOUDSDK_AUTH_IMPERSONATE_SERVICE_ACCOUNT",
        ] {
            assert_eq!(environment.get(name), Some(""), "{name}");
        }
        let account = json(&folder, "mi_1.google.json");
        assert_eq!(account["type"], "external_account");
        assert_eq!(
            account["audience"],
            format!("//iam.googleapis.com/{provider}")
        );
        assert_eq!(account["token_url"], "https://sts.googleapis.com/v1/token");
        assert_eq!(
            account["service_account_impersonation_url"],
            "https://iamcredentials.googleapis.com/v1/projects/-/serviceAccounts/deployer@acme.iam.gserviceaccount.com:generateAccessToken"
        );
        assert_eq!(
            account["credential_source"]["file"],
            folder.file("mi_1.token")
        );
        configuration.service_account.clear();
        let environment = provided(&settings(), &folder, Type::Google(configuration));
        let account = json(&folder, "mi_1.google.json");
        assert!(account.get("service_account_impersonation_url").is_none());
        assert_eq!(environment.get("CLOUDSDK_AUTH_ACCESS_TOKEN_FILE"), Some(""));
        let exports = environment.exports();
        assert!(!exports.contains("IMPERSONATE"), "{exports}");
    }

    #[test]
    fn kubernetes() {
        let folder = Folder::temporary().expect("a folder");
        let configuration = Type::Kubernetes(pb::KubernetesConfiguration::default());
        let environment = provided(&settings(), &folder, configuration);
        let token_file = folder.file("mi_1.token");
        let kubeconfig = folder.file("kubeconfig");
        for (name, value) in [
            ("KUBE_TOKEN", token().text()),
            ("KUBE_TOKEN_FILE", &token_file),
            ("THARSIS_KUBECONFIG", &kubeconfig),
        ] {
            assert_eq!(environment.get(name), Some(value), "{name}");
        }
        takes_out(&environment, &["KUBE_USER", "KUBE_CLIENT_CERT_DATA"]);
        let kubeconfig = json(&folder, "kubeconfig");
        assert_eq!(kubeconfig["users"][0]["name"], "acme/deployer");
        let plugin = &kubeconfig["users"][0]["user"]["exec"];
        assert_eq!(plugin["command"], "cat");
        assert_eq!(plugin["args"][0], folder.file("mi_1.kubernetes.json"));
        let credential = json(&folder, "mi_1.kubernetes.json");
        assert_eq!(credential["apiVersion"], plugin["apiVersion"]);
        let status = &credential["status"];
        assert_eq!(status["token"], token().text());
        assert_eq!(status["expirationTimestamp"], "1970-01-01T00:13:31Z");
    }

    #[test]
    fn tharsis() {
        let folder = Folder::temporary().expect("a folder");
        let configuration = Type::Tharsis(pb::TharsisConfiguration {
            service_account_id: "sa_1".to_owned(),
        });
        let environment = provided(&settings(), &folder, configuration);
        let token_file = folder.file("mi_1.token");
        for (name, value) in [
            ("THARSIS_SERVICE_ACCOUNT_ID", "sa_1"),
            ("THARSIS_SERVICE_ACCOUNT_TOKEN", token().text()),
            ("THARSIS_SERVICE_ACCOUNT_TOKEN_FILE", &token_file),
        ] {
            assert_eq!(environment.get(name), Some(value), "{name}");
        }
        takes_out(&environment, &["THARSIS_SERVICE_ACCOUNT_PATH"]);
    }
}
