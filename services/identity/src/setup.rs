//! Setup instructions as text: JSON, YAML, shell and Terraform configuration. Every value goes through the quotes of its
//! language.

mod terraform;

use std::collections::{BTreeMap, HashMap};

use edge::hierarchy::{Place, identity_audience, identity_type};
use edge::status;
use proto::identity::v1 as pb;
use proto::identity::v1::claim_condition::Condition::{Equals, Glob};
use proto::identity::v1::setup_instructions::Cloud;
use serde::Serialize;
use tonic::Status;

use crate::domain::google::{Provider, ServiceAccount};
use crate::domain::managed_identity::{Configuration, ManagedIdentity};
use crate::domain::setup::{
    USER_PREFIX, pool_condition, pool_principal, provider_arn, user_name, without_scheme,
};
use crate::wire;

/// What the token of an identity says, which its cloud is told to expect.
struct Expected {
    issuer_url: String,
    audience: String,
    /// One, or one for each stage.
    subjects: Vec<String>,
    /// Of the identity, among others in one text.
    name: String,
}

/// What to enter in the identity's cloud; `account` is where the service account is, if it stands for one.
pub(crate) fn instructions(
    issuer_url: &str,
    identity: &ManagedIdentity,
    account: Option<&Place>,
) -> Result<pb::SetupInstructions, Status> {
    let configuration = wire::write_configuration(&identity.configuration);
    let kind = identity_type(Some(&configuration)).map_err(|error| status::internal(&error))?;
    let expected = Expected {
        issuer_url: issuer_url.to_owned(),
        audience: identity_audience(Some(&configuration)).unwrap_or_else(|| kind.to_owned()),
        subjects: identity.token_settings.subjects(identity.id),
        name: identity.id.to_string(),
    };
    let (cloud, terraform) = match &identity.configuration {
        Configuration::Aws { role } => {
            let setup = pb::AwsSetup {
                provider_url: expected.issuer_url.clone(),
                provider_arn: provider_arn(role, issuer_url),
                role_arn: role.to_string(),
                trust_policy: trust_policy(&provider_arn(role, issuer_url), &expected)?,
            };
            (Cloud::Aws(setup), terraform::aws(role, &expected))
        }
        Configuration::Azure { client, tenant, .. } => {
            let setup = pb::AzureSetup {
                client_id: client.to_string(),
                tenant_id: tenant.to_string(),
                federated_credentials: federated_credentials(&expected)?,
            };
            (Cloud::Azure(setup), terraform::azure(client, &expected))
        }
        Configuration::Google {
            provider,
            service_account,
        } => {
            let setup = google(provider, service_account.as_ref(), &expected);
            let terraform = terraform::google(&setup, &expected);
            (Cloud::Google(setup), terraform)
        }
        Configuration::Kubernetes { .. } => {
            let setup = pb::KubernetesSetup {
                user_names: expected.subjects.iter().map(|it| user_name(it)).collect(),
                authentication_configuration: authentication_configuration(&expected),
                role_binding: role_bindings(&expected),
            };
            (Cloud::Kubernetes(setup), terraform::kubernetes(&expected))
        }
        Configuration::Tharsis { account: id } => {
            let policy = policy(&expected);
            let setup = pb::TharsisSetup {
                service_account_id: id.to_string(),
                service_account_trn: account.map(Place::trn).unwrap_or_default(),
                trust_policy_json: json(&PolicyJson::of(&expected))?,
                trust_policy: Some(policy),
            };
            let path = account.map(Place::path).unwrap_or_default();
            (Cloud::Tharsis(setup), terraform::tharsis(&path, &expected))
        }
    };
    Ok(pb::SetupInstructions {
        issuer_url: expected.issuer_url,
        audience: expected.audience,
        subjects: expected.subjects,
        cloud: Some(cloud),
        terraform,
        warnings: vec![],
    })
}

/// <https://docs.aws.amazon.com/IAM/latest/UserGuide/id_roles_create_for-idp_oidc.html>
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Policy<'a> {
    version: &'a str,
    statement: [Statement<'a>; 1],
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Statement<'a> {
    effect: &'a str,
    principal: Federated<'a>,
    action: &'a str,
    condition: Condition<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Federated<'a> {
    federated: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Condition<'a> {
    string_equals: BTreeMap<String, OneOrMany<'a>>,
}

/// What a policy compares with: a list matches if one of it does.
#[derive(Serialize)]
#[serde(untagged)]
enum OneOrMany<'a> {
    One(&'a str),
    Many(&'a [String]),
}

fn trust_policy(provider: &str, expected: &Expected) -> Result<String, Status> {
    let issuer = without_scheme(&expected.issuer_url);
    let subject = match expected.subjects.as_slice() {
        [subject] => OneOrMany::One(subject),
        subjects => OneOrMany::Many(subjects),
    };
    json(&Policy {
        version: "2012-10-17",
        statement: [Statement {
            effect: "Allow",
            principal: Federated {
                federated: provider,
            },
            action: "sts:AssumeRoleWithWebIdentity",
            condition: Condition {
                string_equals: BTreeMap::from([
                    (format!("{issuer}:aud"), OneOrMany::One(&expected.audience)),
                    (format!("{issuer}:sub"), subject),
                ]),
            },
        }],
    })
}

/// <https://learn.microsoft.com/en-us/graph/api/resources/federatedidentitycredential>
#[derive(Serialize)]
struct FederatedCredential<'a> {
    name: &'a str,
    issuer: &'a str,
    subject: &'a str,
    audiences: [&'a str; 1],
}

fn federated_credentials(expected: &Expected) -> Result<Vec<pb::AzureFederatedCredential>, Status> {
    let credential = |subject: &String| {
        let name = resource_name(subject);
        let parameters = json(&FederatedCredential {
            name: &name,
            issuer: &expected.issuer_url,
            subject,
            audiences: [&expected.audience],
        })?;
        Ok(pb::AzureFederatedCredential {
            name,
            subject: subject.clone(),
            parameters,
        })
    };
    expected.subjects.iter().map(credential).collect()
}

/// A subject as a name in Azure, Kubernetes and Terraform: none of them takes a colon.
fn resource_name(subject: &str) -> String {
    subject.replace(':', "-")
}

fn json(value: &impl Serialize) -> Result<String, Status> {
    serde_json::to_string_pretty(value).map_err(|error| status::internal(&error))
}

/// What a service account of ours has to trust.
fn policy(expected: &Expected) -> pb::TrustPolicy {
    pb::TrustPolicy {
        issuer: expected.issuer_url.clone(),
        audience: expected.audience.clone(),
        claims: vec![pb::ClaimCondition {
            claim: SUBJECT.to_owned(),
            condition: Some(match expected.subjects.as_slice() {
                [subject] => Equals(subject.clone()),
                _ => Glob(expected.any_stage()),
            }),
        }],
        // Our keys say it themselves, and an identity may change it.
        signing_algorithm: String::new(),
    }
}

const SUBJECT: &str = "sub";

impl Expected {
    /// Every subject of the identity, where there is one for each stage.
    fn any_stage(&self) -> String {
        format!("{}:*", self.name)
    }
}

/// [`pb::TrustPolicy`] as JSON has it.
#[derive(Serialize)]
struct PolicyJson<'a> {
    issuer: &'a str,
    audience: &'a str,
    claims: [ClaimJson<'a>; 1],
}

#[derive(Serialize)]
struct ClaimJson<'a> {
    claim: &'a str,
    #[serde(flatten)]
    condition: ConditionJson,
}

#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum ConditionJson {
    Equals(String),
    Glob(String),
}

impl<'a> PolicyJson<'a> {
    fn of(expected: &'a Expected) -> Self {
        Self {
            issuer: &expected.issuer_url,
            audience: &expected.audience,
            claims: [ClaimJson {
                claim: SUBJECT,
                condition: match expected.subjects.as_slice() {
                    [subject] => ConditionJson::Equals(subject.clone()),
                    _ => ConditionJson::Glob(expected.any_stage()),
                },
            }],
        }
    }
}

const SUBJECT_MAPPING: (&str, &str) = ("google.subject", "assertion.sub");
const WORKLOAD_IDENTITY_USER: &str = "roles/iam.workloadIdentityUser";

fn google(
    provider: &Provider,
    service_account: Option<&ServiceAccount>,
    expected: &Expected,
) -> pb::GoogleSetup {
    let service_account = service_account.map(ToString::to_string).unwrap_or_default();
    let role = if service_account.is_empty() {
        ""
    } else {
        WORKLOAD_IDENTITY_USER
    };
    let (attribute, claim) = SUBJECT_MAPPING;
    let mut setup = pb::GoogleSetup {
        project: provider.project().to_owned(),
        pool: provider.pool().to_owned(),
        provider: provider.id().to_owned(),
        attribute_mapping: HashMap::from([(attribute.to_owned(), claim.to_owned())]),
        attribute_condition: pool_condition(&expected.subjects),
        principals: expected
            .subjects
            .iter()
            .map(|subject| pool_principal(provider, subject))
            .collect(),
        service_account,
        role: role.to_owned(),
        commands: String::new(),
    };
    setup.commands = gcloud(&setup, expected);
    setup
}

/// <https://cloud.google.com/iam/docs/workload-identity-federation-with-other-providers>
fn gcloud(setup: &pb::GoogleSetup, expected: &Expected) -> String {
    let (attribute, claim) = SUBJECT_MAPPING;
    let provider = format!(
        "gcloud iam workload-identity-pools providers create-oidc {provider} \\\n    \
         --project={project} --location=global --workload-identity-pool={pool} \\\n    \
         --issuer-uri={issuer} \\\n    \
         --allowed-audiences={audience} \\\n    \
         --attribute-mapping={mapping} \\\n    \
         --attribute-condition={condition}\n",
        provider = shell(&setup.provider),
        project = shell(&setup.project),
        pool = shell(&setup.pool),
        issuer = shell(&expected.issuer_url),
        audience = shell(&expected.audience),
        mapping = shell(&format!("{attribute}={claim}")),
        condition = shell(&setup.attribute_condition),
    );
    if setup.service_account.is_empty() {
        return provider;
    }
    let binding = |principal: &String| {
        format!(
            "gcloud iam service-accounts add-iam-policy-binding {account} \\\n    \
                 --role={role} \\\n    \
                 --member={member}\n",
            account = shell(&setup.service_account),
            role = shell(&setup.role),
            member = shell(principal),
        )
    };
    let bindings: String = setup.principals.iter().map(binding).collect();
    format!("{provider}{bindings}")
}

/// In the quotes of a POSIX shell.
fn shell(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// In the double quotes of YAML, of which JSON's strings are a part (YAML 1.2, 1.3).
fn yaml(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// <https://kubernetes.io/docs/reference/access-authn-authz/authentication/#using-authentication-configuration>: clusters
/// of 1.30 and newer take this version.
fn authentication_configuration(expected: &Expected) -> String {
    format!(
        "apiVersion: apiserver.config.k8s.io/v1beta1\n\
         kind: AuthenticationConfiguration\n\
         jwt:\n\
         - issuer:\n    \
             url: {issuer}\n    \
             audiences:\n    \
             - {audience}\n  \
           claimMappings:\n    \
             username:\n      \
               claim: sub\n      \
               prefix: {prefix}\n",
        issuer = yaml(&expected.issuer_url),
        audience = yaml(&expected.audience),
        prefix = yaml(USER_PREFIX),
    )
}

/// What a binding gives, until somebody chooses.
const EXAMPLE_ROLE: &str = "edit";

fn role_bindings(expected: &Expected) -> String {
    let bindings = expected.subjects.iter().map(|it| role_binding(it));
    bindings.collect::<Vec<_>>().join("---\n")
}

fn role_binding(subject: &str) -> String {
    let user = yaml(&user_name(subject));
    format!(
        "apiVersion: rbac.authorization.k8s.io/v1\n\
         kind: ClusterRoleBinding\n\
         metadata:\n  \
           name: {user}\n\
         subjects:\n\
         - apiGroup: rbac.authorization.k8s.io\n  \
           kind: User\n  \
           name: {user}\n\
         roleRef:\n  \
           apiGroup: rbac.authorization.k8s.io\n  \
           kind: ClusterRole\n  \
           # An example: choose what the jobs need.\n  \
           name: {EXAMPLE_ROLE}\n"
    )
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;
    use std::path::Path;

    use model::TokenSettings;
    use model::token_settings::SubjectMode;

    use super::*;

    const ISSUER: &str = "https://tharsis.example.com/oidc";

    fn identity(configuration: Configuration, subject: SubjectMode) -> ManagedIdentity {
        ManagedIdentity {
            id: model::ManagedIdentityId::from_uuid(uuid::Uuid::from_u128(1)),
            group: model::GroupId::from_uuid(uuid::Uuid::from_u128(2)),
            name: "deployer".parse().expect("a name"),
            description: model::Description::default(),
            configuration,
            token_settings: TokenSettings {
                subject,
                ..TokenSettings::default()
            },
        }
    }

    fn google(service_account: Option<&str>) -> Configuration {
        let provider =
            "projects/123456789012/locations/global/workloadIdentityPools/tharsis/providers/main";
        Configuration::Google {
            provider: provider.parse().expect("a provider"),
            service_account: service_account.map(|email| email.parse().expect("an email")),
        }
    }

    /// As the hierarchy would have it.
    fn account() -> Place {
        use edge::hierarchy::Node;
        let node = |id: model::ResourceId, name: &str| Node {
            id,
            name: name.to_owned(),
        };
        let group = model::GroupId::from_uuid(uuid::Uuid::from_u128(2));
        Place {
            nodes: vec![node(account_id().into(), "ci"), node(group.into(), "acme")],
            role: None,
            granted_by: vec![],
            grants: vec![],
        }
    }

    fn account_id() -> model::ServiceAccountId {
        model::ServiceAccountId::from_uuid(uuid::Uuid::from_u128(3))
    }

    fn said(configuration: Configuration, subject: SubjectMode) -> pb::SetupInstructions {
        let account = account();
        let identity = identity(configuration, subject);
        instructions(ISSUER, &identity, Some(&account)).expect("instructions")
    }

    /// Each configuration with each way to name the subject.
    fn all() -> Vec<(String, pb::SetupInstructions)> {
        let mut all = Vec::new();
        for (name, configuration) in configurations() {
            let by_stage = said(configuration.clone(), SubjectMode::IdentityAndStage);
            all.push((format!("{name}_by_stage"), by_stage));
            all.push((name.to_owned(), said(configuration, SubjectMode::Identity)));
        }
        all
    }

    fn configurations() -> [(&'static str, Configuration); 6] {
        let aws = "arn:aws-us-gov:iam::123456789012:role/team/Deployer+x";
        let guid = |digit: char| {
            let guid = "11111111-2222-3333-4444-555555555555".replace('1', &digit.to_string());
            guid.parse().expect("a GUID")
        };
        [
            (
                "aws",
                Configuration::Aws {
                    role: aws.parse().expect("an arn"),
                },
            ),
            (
                "azure",
                Configuration::Azure {
                    client: guid('1'),
                    tenant: guid('6'),
                    // What Terraform would read as its own is not.
                    audience: "api://${x}%{y}\"'\\".parse().expect("an audience"),
                },
            ),
            ("google", google(None)),
            (
                "google_service_account",
                google(Some("deployer@acme.iam.gserviceaccount.com")),
            ),
            (
                "kubernetes",
                Configuration::Kubernetes {
                    audience: "prod.example.com".parse().expect("an audience"),
                },
            ),
            (
                "tharsis",
                Configuration::Tharsis {
                    account: account_id(),
                },
            ),
        ]
    }

    /// Every field, the ready texts under headings.
    fn shown(instructions: &pb::SetupInstructions) -> String {
        let mut text = format!(
            "issuer_url: {}\naudience: {}\nsubjects: {}\n",
            instructions.issuer_url,
            instructions.audience,
            instructions.subjects.join(", ")
        );
        let mut show = |fields: &[(&str, &str)]| {
            for (name, value) in fields {
                let between = if value.contains('\n') { "\n" } else { " " };
                writeln!(text, "\n{name}:{between}{value}").expect("a string takes text");
            }
        };
        match instructions.cloud.as_ref().expect("a cloud") {
            Cloud::Aws(aws) => show(&[
                ("provider_url", &aws.provider_url),
                ("provider_arn", &aws.provider_arn),
                ("role_arn", &aws.role_arn),
                ("trust_policy", &aws.trust_policy),
            ]),
            Cloud::Azure(azure) => {
                show(&[
                    ("client_id", &azure.client_id),
                    ("tenant_id", &azure.tenant_id),
                ]);
                for credential in &azure.federated_credentials {
                    show(&[
                        ("name", &credential.name),
                        ("subject", &credential.subject),
                        ("parameters", &credential.parameters),
                    ]);
                }
            }
            Cloud::Google(google) => show(&[
                ("project", &google.project),
                ("pool", &google.pool),
                ("provider", &google.provider),
                (
                    "attribute_mapping",
                    &format!("{:?}", google.attribute_mapping),
                ),
                ("attribute_condition", &google.attribute_condition),
                ("principals", &google.principals.join("\n")),
                ("service_account", &google.service_account),
                ("role", &google.role),
                ("commands", &google.commands),
            ]),
            Cloud::Kubernetes(kubernetes) => show(&[
                ("user_names", &kubernetes.user_names.join("\n")),
                (
                    "authentication_configuration",
                    &kubernetes.authentication_configuration,
                ),
                ("role_binding", &kubernetes.role_binding),
            ]),
            Cloud::Tharsis(tharsis) => show(&[
                ("service_account_id", &tharsis.service_account_id),
                ("service_account_trn", &tharsis.service_account_trn),
                ("trust_policy", &format!("{:?}", tharsis.trust_policy)),
                ("trust_policy_json", &tharsis.trust_policy_json),
            ]),
        }
        show(&[("terraform", &instructions.terraform)]);
        text
    }

    #[test]
    fn what_is_said_for_each_cloud_is_as_the_golden_files_say() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/setup");
        for (name, said) in all() {
            let said = shown(&said);
            let path = folder.join(format!("{name}.txt"));
            if std::env::var_os("UPDATE_GOLDEN").is_some() {
                std::fs::write(&path, &said).expect("the golden file can be written");
            }
            let meant = std::fs::read_to_string(&path).unwrap_or_default();
            assert_eq!(said, meant, "{name}; if this is meant: UPDATE_GOLDEN=1");
        }
    }

    #[test]
    fn the_json_reads_as_json() {
        for (name, said) in all() {
            let documents = match said.cloud.expect("a cloud") {
                Cloud::Aws(aws) => vec![aws.trust_policy],
                Cloud::Azure(azure) => azure
                    .federated_credentials
                    .into_iter()
                    .map(|credential| credential.parameters)
                    .collect(),
                Cloud::Tharsis(tharsis) => vec![tharsis.trust_policy_json],
                Cloud::Google(_) | Cloud::Kubernetes(_) => vec![],
            };
            for document in documents {
                let read: serde_json::Value = serde_json::from_str(&document).expect(&name);
                assert!(read.is_object(), "{name}");
            }
        }
    }

    #[test]
    fn a_shell_reads_what_was_quoted() {
        assert_eq!(shell("a'b $c"), r"'a'\''b $c'");
    }
}
