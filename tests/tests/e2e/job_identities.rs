//! What a job is told of the identities that its workspace has.

use bed::eventually;
use e2e::refusal::{invalid, refused};
use e2e::user::{aws, job, membership, unassignment};
use e2e::{Service, User, World};
use proto::access::v1::Role;
use proto::identity::v1 as identity;
use proto::identity::v1::configuration::Type;
use proto::issuer::v1 as issuer;
use proto::namespace::v1 as namespace;
use tonic::{Code, Status};

async fn lists(
    job: &User,
    consistency_token: &str,
) -> Result<Vec<issuer::JobManagedIdentity>, Status> {
    let request = issuer::ListJobManagedIdentitiesRequest {
        consistency_token: consistency_token.to_owned(),
    };
    Ok(job.asks(request).await?.managed_identities)
}

/// The paths of what the job has.
async fn has(job: &User, consistency_token: &str) -> Vec<String> {
    let listed = lists(job, consistency_token).await.expect("listed");
    listed.into_iter().map(|identity| identity.path).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_has_what_its_workspace_has() {
    let world = World::start().await;
    let admin = world.admin();
    let hasty = admin.in_a_hurry();
    admin.creates_group("acme").await;
    admin.creates_group("acme/prod").await;
    let web = admin.creates_workspace("acme/prod/web").await;
    let other = admin.creates_workspace("acme/prod/other").await;
    let opened = admin.opens_job(&web.id).await;
    let job = admin.with_token(&opened.token);
    assert_eq!(has(&job, "").await, Vec::<String>::new());

    let deployer = admin.creates_identity("acme/deployer").await;
    let kubernetes = Type::Kubernetes(identity::KubernetesConfiguration::default());
    let cluster = admin.registers("acme/prod/cluster", kubernetes).await;
    admin.creates_identity("acme/unassigned").await;
    admin.assigns(&deployer.id, &other.id).await;
    admin.assigns(&cluster.id, &web.id).await;
    let assigned = hasty.assigns(&deployer.id, &web.id).await;
    let request = issuer::ListJobManagedIdentitiesRequest {
        consistency_token: assigned,
    };
    let listed = job.asks(request).await.expect("listed");
    assert_eq!(
        (listed.job_id, listed.workspace_id),
        (opened.job.id.clone(), web.id.clone())
    );
    let told = |identity: &identity::ManagedIdentity, path: &str| issuer::JobManagedIdentity {
        id: identity.id.clone(),
        trn: identity.trn.clone(),
        path: path.to_owned(),
        configuration: identity.configuration.clone(),
    };
    assert_eq!(
        listed.managed_identities,
        [
            told(&deployer, "acme/deployer"),
            told(&cluster, "acme/prod/cluster")
        ]
    );

    // It is told what is so now.
    let role = aws("arn:aws:iam::123456789012:role/another");
    let update = identity::UpdateManagedIdentityRequest {
        managed_identity: Some(identity::ManagedIdentity {
            id: deployer.id.clone(),
            configuration: Some(role.clone()),
            ..Default::default()
        }),
        update_mask: Some(prost_types::FieldMask {
            paths: vec!["configuration".to_owned()],
        }),
        ..Default::default()
    };
    let updated = hasty.asks(update).await.expect("updated");
    let listed = lists(&job, &updated.consistency_token)
        .await
        .expect("listed");
    assert_eq!(listed[0].configuration, Some(role));
    let unassigned = hasty.asks(unassignment(&deployer.id, &web.id)).await;
    let unassigned = unassigned.expect("unassigned").consistency_token;
    assert_eq!(has(&job, &unassigned).await, ["acme/prod/cluster"]);
    let delete = identity::DeleteManagedIdentityRequest {
        id: cluster.id.clone(),
        force: true,
        ..Default::default()
    };
    let deleted = hasty.asks(delete).await.expect("deleted");
    assert_eq!(
        has(&job, &deleted.consistency_token).await,
        Vec::<String>::new()
    );
    // And what is told is no secret of the log's.
    let audit = world.log(Service::Issuer).await;
    assert!(
        audit
            .iter()
            .all(|event| !event.event_type.ends_with("CredentialIssued"))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_job_that_goes_on_is_told() {
    let world = World::start().await;
    let admin = world.admin();
    admin.creates_group("acme").await;
    let web = admin.creates_workspace("acme/web").await;
    let opened = admin.opens_job(&web.id).await;
    invalid(
        lists(&admin.with_token(&opened.token), "?").await,
        &["consistency_token"],
    );
    refused(
        lists(&admin, "").await,
        Code::PermissionDenied,
        "PERMISSION_DENIED",
    );

    let mut request = job(&web.id);
    request.job.get_or_insert_default().max_duration = Some(prost_types::Duration {
        seconds: 1,
        nanos: 0,
    });
    let short = admin.asks(request).await.expect("opened");
    let short = admin.with_token(&short.job_token);
    let status = eventually(async || match lists(&short, "").await {
        Ok(_) => Err("it is not over yet"),
        Err(status) => Ok(status),
    })
    .await;
    refused(Err::<(), _>(status), Code::FailedPrecondition, "JOB_OVER");

    let delete = namespace::DeleteWorkspaceRequest {
        id: web.id.clone(),
        ..Default::default()
    };
    admin.asks(delete).await.expect("deleted");
    refused(
        lists(&admin.with_token(&opened.token), "").await,
        Code::FailedPrecondition,
        "WORKSPACE_DELETED",
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nor_is_one_whose_principal_may_nothing_there_any_more() {
    let world = World::start().await;
    let (admin, bob) = (world.admin().in_a_hurry(), world.user("bob"));
    admin.creates_group("acme").await;
    let web = admin.creates_workspace("acme/web").await;
    let made = admin.asks(membership("dev/bob", Role::Deployer, "trn:group:acme"));
    let made = made.await.expect("made");
    let mut request = job(&web.id);
    request.consistency_token = made.consistency_token;
    let opened = bob.asks(request).await.expect("opened");
    let of_bob = admin.with_token(&opened.job_token);
    assert_eq!(has(&of_bob, "").await, Vec::<String>::new());

    let delete = namespace::DeleteMembershipRequest {
        id: made.membership.expect("the membership").id,
        ..Default::default()
    };
    let deleted = admin.asks(delete).await.expect("deleted");
    refused(
        lists(&of_bob, &deleted.consistency_token).await,
        Code::FailedPrecondition,
        "PRINCIPAL_NOT_MEMBER",
    );
}
