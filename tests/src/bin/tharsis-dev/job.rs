//! `tharsis-dev job`: a job whose workspace has an identity of each type, which the stand-ins of the clouds trust.

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use e2e::clouds::{Cluster, FederatedCredential, Provider, Role, ServiceAccount, Trust};
use e2e::{User, user};
use edge::clock;
use proto::identity::v1 as identity;
use proto::identity::v1::configuration::Type;
use serde_json::json;

use crate::clouds::Clouds;
use crate::set::Set;
use crate::token;

const ROLE: &str = "arn:aws:iam::123456789012:role/deployer";
const CLIENT: &str = "11111111-2222-3333-4444-555555555555";
const TENANT: &str = "66666666-7777-8888-9999-aaaaaaaaaaaa";
const AZURE_AUDIENCE: &str = "api://AzureADTokenExchange";
const PROVIDER: &str =
    "projects/123456789012/locations/global/workloadIdentityPools/tharsis/providers/main";
const SERVICE_ACCOUNT: &str = "deployer@acme.iam.gserviceaccount.com";
const KUBERNETES_AUDIENCE: &str = "kubernetes";

/// Where the set is, and the stand-ins.
#[derive(clap::Args)]
pub(crate) struct Job {
    #[command(flatten)]
    caller: token::Arguments,
    #[command(flatten)]
    set: Set,
    #[command(flatten)]
    clouds: Clouds,
    /// The `iss` of the set's tokens.
    #[arg(
        long,
        env = "THARSIS_ISSUER_URL",
        default_value = "http://127.0.0.1:7105"
    )]
    issuer_url: String,
    /// The kubeconfig to write, with a context for the job's user.
    #[arg(long, env = "THARSIS_DEV_CLUSTERS")]
    clusters: PathBuf,
}

pub(crate) async fn run(arguments: Job) -> Result<()> {
    let caller = token::token(&arguments.caller)?;
    let caller = User::new(arguments.set.connect().await?, String::new(), caller);
    let random = clock::new_uuid().simple().to_string();
    let group = format!("job-{}", &random[20..]);
    caller.asks(user::group(&group)).await?;
    let workspace = caller
        .asks(user::workspace(&format!("{group}/web")))
        .await?;
    let workspace = workspace.workspace.context("the answer has no workspace")?;
    let mut subjects = Vec::new();
    for (name, configuration) in identities() {
        subjects.push(
            registers(
                &caller,
                &workspace.id,
                &format!("{group}/{name}"),
                configuration,
            )
            .await?,
        );
    }
    let opened = caller.asks(user::job(&workspace.id)).await?;
    let addresses = arguments.clouds.addresses();
    let told = reqwest::Client::new()
        .post(addresses.trust())
        .json(&trust(&arguments.issuer_url, &subjects))
        .send();
    let told = told
        .await
        .context("the stand-ins of the clouds don't answer; is the set up?")?;
    told.error_for_status()?;
    let contexts = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "main",
        "clusters": [{ "name": "main", "cluster": { "server": addresses.kubernetes() } }],
        "contexts": [{ "name": "main", "context": { "cluster": "main", "user": format!("{group}/cluster") } }],
    });
    std::fs::write(&arguments.clusters, contexts.to_string())
        .with_context(|| format!("{} can't be written", arguments.clusters.display()))?;
    let mut out = std::io::stdout().lock();
    let mut variables = addresses.environment();
    variables.push(("THARSIS_ISSUER_GRPC_URL", arguments.set.issuer_grpc.clone()));
    variables.push(("THARSIS_JOB_TOKEN", opened.job_token));
    variables.push(("KUBE_HOST", addresses.kubernetes()));
    variables.push((
        "THARSIS_DEV_CLUSTERS",
        arguments.clusters.display().to_string(),
    ));
    for (name, value) in variables {
        writeln!(out, "export {name}='{value}'")?;
    }
    Ok(())
}

fn identities() -> [(&'static str, Type); 4] {
    let aws = identity::AwsConfiguration {
        role_arn: ROLE.to_owned(),
    };
    let azure = identity::AzureConfiguration {
        client_id: CLIENT.to_owned(),
        tenant_id: TENANT.to_owned(),
        audience: AZURE_AUDIENCE.to_owned(),
    };
    let google = identity::GoogleConfiguration {
        workload_identity_provider: PROVIDER.to_owned(),
        service_account: SERVICE_ACCOUNT.to_owned(),
    };
    let kubernetes = identity::KubernetesConfiguration {
        audience: KUBERNETES_AUDIENCE.to_owned(),
    };
    [
        ("deployer", Type::Aws(aws)),
        ("application", Type::Azure(azure)),
        ("workload", Type::Google(google)),
        ("cluster", Type::Kubernetes(kubernetes)),
    ]
}

/// Makes an identity, and assigns it; answers with its id, the subject of its tokens.
async fn registers(
    caller: &User,
    workspace: &str,
    path: &str,
    configuration: Type,
) -> Result<String> {
    let mut request = user::aws_identity(path);
    let wanted = request.managed_identity.get_or_insert_default();
    wanted.configuration = Some(identity::Configuration {
        r#type: Some(configuration),
    });
    let made = caller.asks(request).await?.managed_identity;
    let made = made.context("the answer has no managed identity")?;
    caller.asks(user::assignment(&made.id, workspace)).await?;
    Ok(made.id)
}

/// What the owners of the clouds' side would say, in the order of the identities.
fn trust(issuer: &str, subjects: &[String]) -> Trust {
    let subject = |at: usize| subjects.get(at).cloned().unwrap_or_default();
    let issuer = issuer.to_owned();
    Trust {
        aws: vec![Role {
            arn: ROLE.to_owned(),
            issuer: issuer.clone(),
            audience: "aws".to_owned(),
            subject: subject(0),
        }],
        azure: vec![FederatedCredential {
            tenant_id: TENANT.to_owned(),
            client_id: CLIENT.to_owned(),
            issuer: issuer.clone(),
            subject: subject(1),
            audience: AZURE_AUDIENCE.to_owned(),
        }],
        google: vec![Provider {
            name: PROVIDER.to_owned(),
            issuer: issuer.clone(),
            service_accounts: vec![ServiceAccount {
                email: SERVICE_ACCOUNT.to_owned(),
                subject: subject(2),
            }],
        }],
        kubernetes: vec![Cluster {
            issuer,
            audience: KUBERNETES_AUDIENCE.to_owned(),
        }],
    }
}
