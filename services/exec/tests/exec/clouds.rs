//! The clouds' own clients, under `tharsis-exec`, against stand-ins of the clouds.

use std::collections::BTreeMap;
use std::path::Path;

use bed::eventually;
use e2e::clouds::example::{self, CLIENT, SERVICE_ACCOUNT};
use e2e::clouds::{Served, Trust};
use prost_types::Duration;
use proto::identity::v1::UpdateManagedIdentityRequest;
use serde_json::Value;
use tokio::process::Command;

use crate::scene::{Ran, Scene, runs};

const OF_THE_RUNNER: &str = "\
    [default]\nrole_arn = arn:aws:iam::123456789012:role/runner\ncredential_source = Ec2InstanceMetadata\n\
    [profile acme/deployer]\nregion = eu-west-1\n";

const KEYS_OF_THE_RUNNER: &str =
    "[default]\naws_access_key_id = AKIDRUNNER\naws_secret_access_key = hunter2\n";

/// What the owners of the clouds' side would say of the scene's identities.
fn trust(scene: &Scene) -> Trust {
    let identities = [&scene.aws, &scene.azure, &scene.google, &scene.kubernetes];
    let subjects = identities.map(|identity| identity.id.clone());
    example::trust(&scene.world.issuer_url(), &subjects)
}

/// The program with a script that uses the clouds' clients.
fn script(
    scene: &Scene,
    clouds: &Served,
    folder: &Path,
    arguments: &[&str],
    name: &str,
) -> Command {
    let sdks = std::env::var("THARSIS_TEST_SDKS")
        .expect("THARSIS_TEST_SDKS is set: `deploy/dev test` installs the clouds' clients");
    let clusters = folder.join("clusters.yaml");
    let contexts = clouds.addresses().kubeconfig("acme/cluster");
    std::fs::write(&clusters, contexts.to_string()).expect("written");
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/sdks");
    let mut exec = scene.exec(arguments);
    exec.args(["--", "python3"])
        .arg(scripts.join(name))
        .arg(clusters)
        .env("PYTHONPATH", sdks)
        .env("HOME", folder)
        .env("AWS_PROFILE", "of-the-runner")
        .env("AWS_MAX_ATTEMPTS", "1")
        .envs(clouds.addresses().environment());
    exec
}

/// What each client was given, or how it was refused.
async fn clients(scene: &Scene, clouds: &Served, folder: &Path) -> BTreeMap<String, String> {
    let ran = runs(script(scene, clouds, folder, &[], "clouds.py")).await;
    assert_eq!(ran.code, Some(0), "{}{}", ran.out, ran.said);
    outcomes(&ran)
}

fn outcomes(ran: &Ran) -> BTreeMap<String, String> {
    let lines = ran.out.lines().map(|line| {
        let line: Value = serde_json::from_str(line).expect("JSON");
        let text = |field: &str| line[field].as_str().map(str::to_owned);
        let outcome = text("given").or_else(|| text("refused"));
        (
            text("client").expect("a name"),
            outcome.expect("an outcome"),
        )
    });
    lines.collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_gets_what_its_cloud_gives_and_is_refused_as_its_cloud_refuses() {
    let scene = Scene::set().await;
    let folder = tempfile::tempdir().expect("a folder");
    let clouds = Served::start(folder.path()).await;

    // The runner has a configuration, too: what it says of credentials does not count.
    let of_the_runner = folder.path().join(".aws");
    std::fs::create_dir(&of_the_runner).expect("made");
    std::fs::write(of_the_runner.join("config"), OF_THE_RUNNER).expect("written");
    std::fs::write(of_the_runner.join("credentials"), KEYS_OF_THE_RUNNER).expect("written");
    clouds.clouds.trust_only(trust(&scene));
    let outcomes = clients(&scene, &clouds, folder.path()).await;
    let assumed = format!(
        "arn:aws:sts::123456789012:assumed-role/deployer/{}",
        scene.job.job.id
    );
    let user = format!("tharsis:{}", scene.kubernetes.id);
    for (client, wanted) in [
        ("boto3_environment", assumed.as_str()),
        ("boto3_profile", &assumed),
        ("aws_cli", &assumed),
        ("kubernetes_config", &user),
        ("kubernetes_token", "v1.34.0"),
    ] {
        assert_eq!(outcomes[client], wanted, "{client}");
    }
    for (client, whose) in [("azure_identity", CLIENT), ("google_auth", SERVICE_ACCOUNT)] {
        let given = clouds.clouds.whose(&outcomes[client]);
        assert_eq!(
            given.as_deref(),
            Some(whose),
            "{client}: {}",
            outcomes[client]
        );
    }

    // Of another identity.
    let mut other = trust(&scene);
    "mi_other".clone_into(&mut other.aws[0].subject);
    "mi_other".clone_into(&mut other.azure[0].subject);
    "mi_other".clone_into(&mut other.google[0].service_accounts[0].subject);
    "other".clone_into(&mut other.kubernetes[0].audience);
    clouds.clouds.trust_only(other);
    let outcomes = clients(&scene, &clouds, folder.path()).await;
    for (client, words) in [
        ("boto3_environment", "(AccessDenied)"),
        ("boto3_profile", "(AccessDenied)"),
        ("aws_cli", "(AccessDenied)"),
        ("azure_identity", "AADSTS700213"),
        ("google_auth", "PERMISSION_DENIED"),
        ("kubernetes_config", "(401)"),
        ("kubernetes_token", "(401)"),
    ] {
        let outcome = &outcomes[client];
        assert!(outcome.contains(words), "{client}: {outcome}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn azure_s_takes_no_login_of_the_machine_in_place_of_a_refused_identity() {
    let scene = Scene::set().await;
    let folder = tempfile::tempdir().expect("a folder");
    let clouds = Served::start(folder.path()).await;
    scene.admin.restricts(&scene.azure.id, &["dev/bob"]).await;
    let ran = eventually(async || {
        let arguments = ["--skip-refused"];
        let ran = runs(script(
            &scene,
            &clouds,
            folder.path(),
            &arguments,
            "refused.py",
        ));
        let ran = ran.await;
        if ran.said.contains("going on without it") {
            Ok(ran)
        } else {
            Err("the rule is not known to the issuer yet")
        }
    })
    .await;
    assert_eq!(ran.code, Some(0), "{}{}", ran.out, ran.said);
    let outcomes = outcomes(&ran);
    let missing = format!("{}.token", scene.azure.id);
    for client in ["azure_identity", "older"] {
        let outcome = &outcomes[client];
        assert!(outcome.contains(&missing), "{client}: {outcome}");
    }
}

/// Of five minutes and less, Python's client takes no token for good enough.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubernetes_client_goes_on_with_the_next_token() {
    let scene = Scene::set().await;
    let folder = tempfile::tempdir().expect("a folder");
    let clouds = Served::start(folder.path()).await;
    clouds.clouds.trust_only(trust(&scene));
    let mut cluster = scene.kubernetes.clone();
    cluster.token_settings.get_or_insert_default().lifetime = Some(Duration {
        seconds: 60,
        nanos: 0,
    });
    let update = UpdateManagedIdentityRequest {
        managed_identity: Some(cluster),
        ..Default::default()
    };
    scene.admin.asks(update).await.expect("updated");
    let ran = runs(script(
        &scene,
        &clouds,
        folder.path(),
        &["--renew-after", "1"],
        "renewed.py",
    ));
    let ran = ran.await;
    assert_eq!(
        (ran.code, ran.out.as_str()),
        (Some(0), "the next\n"),
        "{}",
        ran.said
    );
}
