//! What a caller is told who only asks what would come of a request.

use bed::unique_id;
use e2e::refusal::{invalid, refused};
use e2e::rpc::Rpc;
use e2e::user::{aws_identity, credential, group, job};
use e2e::{Service, User, World};
use prost::Message;
use prost_types::Any;
use proto::access::v1::Role;
use proto::identity::v1 as identity;
use proto::namespace::v1 as namespace;
use tonic::{Code, Status};

fn types(planned: &[Any]) -> Vec<&str> {
    let types = planned.iter().map(|event| event.type_url.as_str());
    types
        .map(|name| name.strip_prefix("type.googleapis.com/").unwrap_or(name))
        .collect()
}

/// Nothing is appended, whatever is answered.
async fn tries<R: Rpc>(world: &World, user: &User, request: R) -> Result<R::Answer, Status> {
    let before = world.log(R::SERVICE).await.len();
    let outcome = user.asks(request).await;
    assert_eq!(world.log(R::SERVICE).await.len(), before, "{}", R::PATH);
    outcome
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_tried_is_told_and_not_done() {
    let world = World::start().await;
    let admin = world.admin();
    let wanted = namespace::CreateGroupRequest {
        validate_only: true,
        request_id: unique_id().to_string(),
        ..group("acme")
    };
    let answer = tries(&world, &admin, wanted.clone())
        .await
        .expect("allowed");
    assert_eq!(
        types(&answer.planned_events),
        [
            "tharsis.namespace.v1.GroupCreated",
            "tharsis.namespace.v1.MembershipCreated"
        ]
    );
    let event = namespace::GroupCreated::decode(answer.planned_events[0].value.as_slice());
    assert_eq!(event.map(|event| event.name), Ok("acme".to_owned()));
    assert_eq!(
        answer.group.map(|group| group.path),
        Some("acme".to_owned())
    );

    // The same request id is still free for the request itself.
    let request = namespace::CreateGroupRequest {
        validate_only: false,
        ..wanted.clone()
    };
    let made = admin.asks(request).await.expect("made");
    assert_eq!(made.planned_events, []);
    // And then it is answered with what became of that.
    let tried = tries(&world, &admin, wanted).await;
    assert_eq!(tried.expect("answered as then"), made);
    refused(
        admin.asks(group("acme")).await,
        Code::AlreadyExists,
        "NAME_TAKEN",
    );

    let path = made.group.expect("the group");
    let delete = namespace::DeleteGroupRequest {
        id: path.id,
        validate_only: true,
        ..Default::default()
    };
    let answer = tries(&world, &admin, delete).await.expect("allowed");
    assert_eq!(
        types(&answer.planned_events),
        ["tharsis.namespace.v1.GroupDeleted"]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_would_be_refused_is_refused() {
    let world = World::start().await;
    let admin = world.admin();
    let acme = admin.creates_group("acme").await;
    let viewer = world.user("victor");
    admin.grants(&viewer, Role::Viewer, &acme.id).await;
    let wanted = identity::CreateManagedIdentityRequest {
        validate_only: true,
        ..aws_identity("acme/deployer")
    };
    refused(
        tries(&world, &viewer, wanted.clone()).await,
        Code::PermissionDenied,
        "PERMISSION_DENIED",
    );
    let mut wrong = wanted;
    wrong.managed_identity.get_or_insert_default().name = "-".to_owned();
    invalid(
        tries(&world, &admin, wrong).await,
        &["managed_identity.name"],
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_was_tried_has_no_token() {
    let world = World::start().await;
    let admin = world.admin();
    admin.creates_group("acme").await;
    let web = admin.creates_workspace("acme/web").await;
    admin.creates_identity("acme/deployer").await;
    let mut wanted = job(&web.id);
    wanted.validate_only = true;
    let answer = tries(&world, &admin, wanted).await.expect("allowed");
    assert_eq!(
        types(&answer.planned_events),
        ["tharsis.issuer.v1.JobOpened"]
    );
    assert_eq!(answer.job_token, "");
    let nobody = admin.with_token(&answer.job_token);
    let outcome = tries(
        &world,
        &nobody,
        credential("trn:managed_identity:acme/deployer"),
    );
    assert_eq!(
        outcome.await.map_err(|status| status.code()),
        Err(Code::Unauthenticated)
    );
    let log = world.log(Service::Issuer).await;
    let mut others = log
        .iter()
        .filter(|event| !event.event_type.contains("SigningKey"));
    assert_eq!(others.next().map(|event| &event.event_type), None);
}
