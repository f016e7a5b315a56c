//! `tharsis-dev job`: a job whose workspace has an identity of each type, which the stand-ins of the clouds trust.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use e2e::clouds::example::{identities, trust};
use e2e::{User, user};
use edge::clock;
use proto::identity::v1 as identity;
use proto::identity::v1::configuration::Type;

use crate::clouds::Clouds;
use crate::set::Set;
use crate::token;

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
    /// Beside it, with the job's group in its name, is the kubeconfig that is written, with a context for the job's user.
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
    let mut subjects = <[String; 4]>::default();
    for (subject, (name, configuration)) in subjects.iter_mut().zip(identities()) {
        let path = format!("{group}/{name}");
        *subject = registers(&caller, &workspace.id, &path, configuration).await?;
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
    let contexts = addresses.kubeconfig(&format!("{group}/cluster"));
    let clusters = of_group(&arguments.clusters, &group);
    std::fs::write(&clusters, contexts.to_string())
        .with_context(|| format!("{} can't be written", clusters.display()))?;
    let mut out = std::io::stdout().lock();
    let mut variables = addresses.environment();
    variables.push(("THARSIS_ISSUER_GRPC_URL", arguments.set.issuer_grpc.clone()));
    variables.push(("THARSIS_JOB_TOKEN", opened.job_token));
    variables.push(("KUBE_HOST", addresses.kubernetes()));
    let certificate = std::fs::read_to_string(addresses.certificate())
        .with_context(|| format!("{} can't be read", addresses.certificate().display()))?;
    variables.push(("KUBE_CLUSTER_CA_CERT_DATA", certificate));
    variables.push(("THARSIS_DEV_CLUSTERS", clusters.display().to_string()));
    for (name, value) in variables {
        writeln!(out, "export {name}={}", quoted(&value))?;
    }
    Ok(())
}

/// Each job's shell goes on with its own user, however many jobs there are.
fn of_group(clusters: &Path, group: &str) -> PathBuf {
    clusters.with_file_name(format!("clusters-{group}.yaml"))
}

/// As a shell reads it.
fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\'', r"'\''"))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_job_writes_over_the_clusters_of_another() {
        let clusters = Path::new("/set/run/clusters.yaml");
        let of = |group| of_group(clusters, group);
        assert_eq!(of("job-1"), Path::new("/set/run/clusters-job-1.yaml"));
        assert_ne!(of("job-1"), of("job-2"));
    }

    #[test]
    fn a_shell_reads_the_value_and_nothing_else() {
        assert_eq!(quoted("/home/o'neil/$(x)"), r"'/home/o'\''neil/$(x)'");
    }
}
