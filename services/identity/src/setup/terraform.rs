//! The setup of each cloud as Terraform configuration. What belongs to one identity is named by its id, so that the texts
//! of several identities go into one configuration.

use proto::identity::v1 as pb;

use super::{EXAMPLE_ROLE, Expected, SUBJECT_MAPPING, resource_name};
use crate::domain::aws::RoleArn;
use crate::domain::azure::Guid;
use crate::domain::setup::{user_name, without_scheme};

/// In the quotes of the configuration language, in which `${` and `%{` begin a template
/// (<https://developer.hashicorp.com/terraform/language/expressions/strings>).
fn quoted(text: &str) -> String {
    let text = serde_json::Value::from(text).to_string();
    text.replace("${", "$${").replace("%{", "%%{")
}

fn list(texts: &[String]) -> String {
    let texts: Vec<String> = texts.iter().map(|text| quoted(text)).collect();
    format!("[{}]", texts.join(", "))
}

pub(super) fn aws(role: &RoleArn, expected: &Expected) -> String {
    let issuer = without_scheme(&expected.issuer_url);
    let (path, name) = role.path_and_name();
    format!(
        r#"# One for each account: where the account has it, use that one.
resource "aws_iam_openid_connect_provider" "tharsis" {{
  url            = {url}
  client_id_list = [{audience}]
}}

data "aws_iam_policy_document" "{subject}" {{
  statement {{
    actions = ["sts:AssumeRoleWithWebIdentity"]

    principals {{
      type        = "Federated"
      identifiers = [aws_iam_openid_connect_provider.tharsis.arn]
    }}

    condition {{
      test     = "StringEquals"
      variable = {aud}
      values   = [{audience}]
    }}

    condition {{
      test     = "StringEquals"
      variable = {sub}
      values   = {subjects}
    }}
  }}
}}

resource "aws_iam_role" "{subject}" {{
  path               = {path}
  name               = {name}
  assume_role_policy = data.aws_iam_policy_document.{subject}.json
}}
"#,
        url = quoted(&expected.issuer_url),
        audience = quoted(&expected.audience),
        subject = expected.name,
        subjects = list(&expected.subjects),
        aud = quoted(&format!("{issuer}:aud")),
        sub = quoted(&format!("{issuer}:sub")),
        path = quoted(path),
        name = quoted(name),
    )
}

pub(super) fn azure(client: &Guid, expected: &Expected) -> String {
    let application = format!(
        r#"data "azuread_application" "{name}" {{
  client_id = {client}
}}
"#,
        name = expected.name,
        client = quoted(&client.to_string()),
    );
    let credential = |subject: &String| {
        format!(
            r#"
resource "azuread_application_federated_identity_credential" "{name}" {{
  application_id = data.azuread_application.{application}.id
  display_name   = "{name}"
  issuer         = {issuer}
  subject        = "{subject}"
  audiences      = [{audience}]
}}
"#,
            name = resource_name(subject),
            application = expected.name,
            issuer = quoted(&expected.issuer_url),
            audience = quoted(&expected.audience),
        )
    };
    let credentials: String = expected.subjects.iter().map(credential).collect();
    format!("{application}{credentials}")
}

pub(super) fn google(setup: &pb::GoogleSetup, expected: &Expected) -> String {
    let (attribute, claim) = SUBJECT_MAPPING;
    let provider = format!(
        r#"# One for all identities that use it: their subjects belong into the list of the condition.
resource "google_iam_workload_identity_pool_provider" "{subject}" {{
  project                            = {project}
  workload_identity_pool_id          = {pool}
  workload_identity_pool_provider_id = {id}
  attribute_mapping                  = {{ {attribute} = {claim} }}
  attribute_condition                = {condition}

  oidc {{
    issuer_uri        = {issuer}
    allowed_audiences = [{audience}]
  }}
}}
"#,
        subject = expected.name,
        project = quoted(&setup.project),
        pool = quoted(&setup.pool),
        id = quoted(&setup.provider),
        attribute = quoted(attribute),
        claim = quoted(claim),
        condition = quoted(&setup.attribute_condition),
        issuer = quoted(&expected.issuer_url),
        audience = quoted(&expected.audience),
    );
    let bound = expected.subjects.iter().zip(&setup.principals);
    let bindings: Vec<String> = bound
        .map(|(subject, principal)| binding(setup, subject, principal))
        .collect();
    let bindings = bindings.join("\n");
    if setup.service_account.is_empty() {
        format!("{provider}\n# Give the roles that the jobs need to:\n{bindings}")
    } else {
        format!("{provider}\n{bindings}")
    }
}

fn binding(setup: &pb::GoogleSetup, subject: &str, principal: &str) -> String {
    let member = quoted(principal);
    if setup.service_account.is_empty() {
        return format!("# member = {member}\n");
    }
    format!(
        r#"resource "google_service_account_iam_member" "{name}" {{
  service_account_id = {account}
  role               = {role}
  member             = {member}
}}
"#,
        name = resource_name(subject),
        account = quoted(&format!(
            "projects/-/serviceAccounts/{}",
            setup.service_account
        )),
        role = quoted(&setup.role),
    )
}

pub(super) fn kubernetes(expected: &Expected) -> String {
    let bindings = expected.subjects.iter().map(|it| cluster_role_binding(it));
    let bindings: Vec<String> = bindings.collect();
    format!(
        "# The API server's authentication configuration is a file beside it; this is the binding.\n{}",
        bindings.join("\n")
    )
}

fn cluster_role_binding(subject: &str) -> String {
    format!(
        r#"resource "kubernetes_cluster_role_binding_v1" "{name}" {{
  metadata {{
    name = {user}
  }}

  subject {{
    api_group = "rbac.authorization.k8s.io"
    kind      = "User"
    name      = {user}
  }}

  role_ref {{
    api_group = "rbac.authorization.k8s.io"
    kind      = "ClusterRole"
    # An example: choose what the jobs need.
    name      = "{EXAMPLE_ROLE}"
  }}
}}
"#,
        name = resource_name(subject),
        user = quoted(&user_name(subject)),
    )
}

pub(super) fn tharsis(account_path: &str, expected: &Expected) -> String {
    let (group, name) = account_path.rsplit_once('/').unwrap_or(("", account_path));
    // The provider's claims are compared as they are: a policy for each subject.
    let policy = |subject: &String| {
        format!(
            r"    {{
      issuer       = {issuer}
      bound_claims = {{
        aud = {audience}
        sub = {sub}
      }}
    }}",
            issuer = quoted(&expected.issuer_url),
            audience = quoted(&expected.audience),
            sub = quoted(subject),
        )
    };
    let policies: Vec<String> = expected.subjects.iter().map(policy).collect();
    format!(
        r#"# One for each service account: where it is managed already, add what is in the list to its own.
resource "tharsis_service_account" "{subject}" {{
  group_path  = {group}
  name        = {name}
  description = {description}

  oidc_trust_policies = [
{policies}
  ]
}}
"#,
        subject = expected.name,
        group = quoted(group),
        name = quoted(name),
        description = quoted(&format!("Trusts {}.", expected.name)),
        policies = policies.join(",\n"),
    )
}
