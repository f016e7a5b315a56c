//! The same request twice is carried out once, and answered alike.

use bed::{eventually, unique_id};
use e2e::refusal::{invalid, not_found, refused};
use e2e::rpc::Rpc;
use e2e::user::{
    assignment, aws_identity, group, group_move, job, limit_update, membership, unassignment,
    workspace, workspace_move,
};
use e2e::{Service, User, World};
use futures::future::join_all;
use proto::access::v1::Role;
use proto::identity::v1 as identity;
use proto::issuer::v1 as issuer;
use proto::namespace::v1 as namespace;
use tonic::Code;

/// Sends a request ten times at once, and once more. All answers are the same, and it wrote `events` events.
async fn is_carried_out_once<R: Rpc>(
    world: &World,
    user: &User,
    request: R,
    events: usize,
) -> R::Answer {
    let before = world.asked_for(R::SERVICE).await.len();
    let outcomes = join_all((0..10).map(|_| user.asks(request.clone()))).await;
    let mut answers: Vec<R::Answer> = outcomes
        .into_iter()
        .map(|outcome| outcome.expect(R::PATH))
        .collect();
    answers.push(user.asks(request).await.expect("it is answered for ever"));
    let first = answers[0].clone();
    assert!(
        answers.iter().all(|answer| *answer == first),
        "{answers:#?}"
    );
    assert_eq!(
        world.asked_for(R::SERVICE).await.len() - before,
        events,
        "{}",
        R::PATH
    );
    first
}

fn request_id() -> String {
    unique_id().to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_request_is_carried_out_once() {
    let world = World::start().await;
    let admin = world.admin();
    let request = namespace::CreateGroupRequest {
        request_id: request_id(),
        ..group("acme")
    };
    // The group, and the membership of its owner.
    let acme = is_carried_out_once(&world, &admin, request, 2)
        .await
        .group
        .expect("a group");
    let request = namespace::CreateWorkspaceRequest {
        request_id: request_id(),
        ..workspace("acme/web")
    };
    let web = is_carried_out_once(&world, &admin, request, 1)
        .await
        .workspace
        .expect("a workspace");
    let request = namespace::CreateMembershipRequest {
        request_id: request_id(),
        ..membership("dev/bob", Role::Viewer, &acme.id)
    };
    let bobs = is_carried_out_once(&world, &admin, request, 1)
        .await
        .membership
        .expect("a membership");
    let request = namespace::UpdateMembershipRequest {
        membership: Some(namespace::Membership {
            role: Role::Deployer.into(),
            ..bobs.clone()
        }),
        request_id: request_id(),
        ..Default::default()
    };
    is_carried_out_once(&world, &admin, request, 1).await;
    let request = identity::CreateManagedIdentityRequest {
        request_id: request_id(),
        ..aws_identity("acme/deployer")
    };
    let deployer = is_carried_out_once(&world, &admin, request, 1)
        .await
        .managed_identity
        .expect("an identity");
    let request = identity::UpdateManagedIdentityRequest {
        managed_identity: Some(identity::ManagedIdentity {
            description: "new".to_owned(),
            ..deployer.clone()
        }),
        request_id: request_id(),
        ..Default::default()
    };
    is_carried_out_once(&world, &admin, request, 1).await;
    let request = identity::AssignManagedIdentityRequest {
        request_id: request_id(),
        ..e2e::user::assignment(&deployer.trn, &web.trn)
    };
    is_carried_out_once(&world, &admin, request, 1).await;
    let request = proto::issuer::v1::OpenJobRequest {
        request_id: request_id(),
        ..job(&web.id)
    };
    let opened = is_carried_out_once(&world, &admin, request, 1).await;
    // The one token that they all got is good.
    admin
        .asks_as(&opened.job_token, &deployer.id)
        .await
        .expect("a credential");
    let request = identity::UnassignManagedIdentityRequest {
        request_id: request_id(),
        ..unassignment(&deployer.id, &web.id)
    };
    is_carried_out_once(&world, &admin, request, 1).await;
    let request = identity::DeleteManagedIdentityRequest {
        id: deployer.trn,
        request_id: request_id(),
        ..Default::default()
    };
    is_carried_out_once(&world, &admin, request, 1).await;
    let request = namespace::DeleteMembershipRequest {
        id: bobs.trn,
        request_id: request_id(),
        ..Default::default()
    };
    is_carried_out_once(&world, &admin, request, 1).await;
    let request = namespace::DeleteWorkspaceRequest {
        id: web.trn,
        request_id: request_id(),
        ..Default::default()
    };
    is_carried_out_once(&world, &admin, request, 1).await;
    let request = namespace::DeleteGroupRequest {
        id: acme.trn,
        request_id: request_id(),
        ..Default::default()
    };
    is_carried_out_once(&world, &admin, request, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_update_or_move_is_carried_out_once() {
    let world = World::start().await;
    let admin = world.admin();
    let acme = admin.creates_group("acme").await;
    let web = admin.creates_workspace("acme/web").await;
    let request = namespace::CreateGroupRequest {
        request_id: request_id(),
        ..group("acme/team")
    };
    let team = is_carried_out_once(&world, &admin, request, 1)
        .await
        .group
        .expect("a group");
    let request = namespace::UpdateGroupRequest {
        group: Some(namespace::Group {
            description: "new".to_owned(),
            ..team.clone()
        }),
        request_id: request_id(),
        ..Default::default()
    };
    is_carried_out_once(&world, &admin, request, 1).await;
    let request = namespace::UpdateWorkspaceRequest {
        workspace: Some(namespace::Workspace {
            description: "new".to_owned(),
            ..web.clone()
        }),
        request_id: request_id(),
        ..Default::default()
    };
    is_carried_out_once(&world, &admin, request, 1).await;
    let request = namespace::MoveWorkspaceRequest {
        request_id: request_id(),
        ..workspace_move(&web.trn, &team.id)
    };
    is_carried_out_once(&world, &admin, request, 1).await;
    // The group and the membership of its owner, where it has none of its own.
    let request = namespace::MoveGroupRequest {
        request_id: request_id(),
        ..group_move(&team.trn, "")
    };
    is_carried_out_once(&world, &admin, request, 2).await;
    // Whatever has come since, the first answer stays.
    admin.moves_group(&team.id, &acme.id).await;
    let request = namespace::UpdateLimitRequest {
        request_id: request_id(),
        ..limit_update("group_workspaces", 7)
    };
    is_carried_out_once(&world, &admin, request, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_id_is_for_one_request_of_one_caller() {
    let world = World::start().await;
    let (admin, bob) = (world.admin(), world.user("bob"));
    let acme = admin.creates_group("acme").await;
    admin.grants(&bob, Role::Owner, &acme.id).await;
    let id = request_id();
    let with_id = |path: &str| namespace::CreateGroupRequest {
        request_id: id.clone(),
        ..group(path)
    };
    let first = admin
        .asks(with_id("acme/a"))
        .await
        .expect("made")
        .group
        .expect("a group");

    // Another content, and another rpc, is another request.
    refused(
        admin.asks(with_id("acme/b")).await,
        Code::AlreadyExists,
        "REQUEST_ID_REUSED",
    );
    let other = namespace::CreateWorkspaceRequest {
        request_id: id.clone(),
        ..workspace("acme/a")
    };
    refused(
        admin.asks(other).await,
        Code::AlreadyExists,
        "REQUEST_ID_REUSED",
    );
    // A consistency token is no part of the content: a client that retries may know more by then.
    let again = namespace::CreateGroupRequest {
        consistency_token: admin
            .asks(with_id("acme/a"))
            .await
            .expect("repeated")
            .consistency_token,
        ..with_id("acme/a")
    };
    assert_eq!(
        admin.asks(again).await.expect("repeated").group,
        Some(first.clone())
    );
    // Another service, and another caller, know nothing of it.
    let elsewhere = identity::CreateManagedIdentityRequest {
        request_id: id.clone(),
        ..aws_identity("acme/x")
    };
    admin.asks(elsewhere).await.expect("made");
    let bobs = bob
        .asks(with_id("acme/b"))
        .await
        .expect("made")
        .group
        .expect("a group");
    assert_ne!(first.id, bobs.id);
    refused(
        bob.asks(with_id("acme/a")).await,
        Code::AlreadyExists,
        "REQUEST_ID_REUSED",
    );

    // What was refused may be repeated, and then counts.
    let later = namespace::CreateGroupRequest {
        request_id: request_id(),
        ..group("acme/later/x")
    };
    assert!(admin.asks(later.clone()).await.is_err());
    admin.creates_group("acme/later").await;
    admin.asks(later).await.expect("made");
    // Without an id each request is its own.
    refused(
        admin.asks(group("acme/a")).await,
        Code::AlreadyExists,
        "NAME_TAKEN",
    );
    for bad in ["1", "00000000-0000-0000-0000-000000000000"] {
        let request = namespace::CreateGroupRequest {
            request_id: bad.to_owned(),
            ..group("acme/bad")
        };
        invalid(admin.asks(request).await, &["request_id"]);
    }
    // Answered as then, even when the thing is gone since; but only to its own caller.
    admin.deletes_group(&acme.id).await;
    assert_eq!(
        admin.asks(with_id("acme/a")).await.expect("repeated").group,
        Some(first)
    );
    assert!(world.user("eve").asks(with_id("acme/a")).await.is_err());
    assert_eq!(
        world
            .asked_for(Service::Namespace)
            .await
            .last()
            .expect("events")
            .event_type,
        "tharsis.namespace.v1.GroupDeleted"
    );
}

/// A `request_id` that was used answers for the request that it was used for, and for nothing else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_used_request_id_lets_nobody_do_or_try_what_they_may_not() {
    let world = World::start().await;
    let (admin, bob) = (world.admin(), world.user("bob"));
    let acme = admin.creates_group("acme").await;
    admin.creates_group("hidden").await;
    admin.grants(&bob, Role::Deployer, &acme.id).await;
    let id = request_id();
    let made = namespace::CreateWorkspaceRequest {
        request_id: id.clone(),
        ..workspace("acme/web")
    };
    let web = bob.asks(made.clone()).await.expect("made").workspace;
    let web = web.expect("it").id;
    let opened = issuer::OpenJobRequest {
        request_id: id.clone(),
        ..job(&web)
    };
    eventually(async || bob.asks(opened.clone()).await).await;
    let denied =
        |answer: Result<_, _>| refused(answer, Code::PermissionDenied, "PERMISSION_DENIED");
    for validate_only in [false, true] {
        let request_id = id.clone();
        let top = namespace::CreateGroupRequest {
            request_id: request_id.clone(),
            validate_only,
            ..group("top")
        };
        denied(bob.asks(top).await.map(drop));
        let member = namespace::CreateMembershipRequest {
            request_id: request_id.clone(),
            validate_only,
            ..membership("dev/bob", Role::Owner, &acme.id)
        };
        denied(bob.asks(member).await.map(drop));
        let elsewhere = namespace::CreateWorkspaceRequest {
            request_id: request_id.clone(),
            validate_only,
            ..workspace("hidden/web")
        };
        not_found(bob.asks(elsewhere).await);
        let rotation = issuer::RotateSigningKeyRequest {
            request_id,
            validate_only,
            ..Default::default()
        };
        denied(bob.asks(rotation).await.map(drop));
    }
    // The request itself is answered as then, also to who may not do it any more, and to who only asks.
    admin.deletes_group(&acme.id).await;
    let again = bob.asks(made.clone()).await.expect("answered as then");
    assert_eq!(again.workspace.expect("it").id, web);
    let tried = namespace::CreateWorkspaceRequest {
        validate_only: true,
        ..made.clone()
    };
    let tried = bob.asks(tried).await.expect("answered as then");
    assert_eq!(tried.workspace.expect("it").id, web);
    let another = namespace::CreateWorkspaceRequest {
        validate_only: true,
        request_id: id,
        ..workspace("acme/other")
    };
    not_found(bob.asks(another).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_tried_with_a_used_request_id_is_answered_as_it_would_be() {
    let world = World::start().await;
    let admin = world.admin();
    let with_id = |path: &str, id: &str, validate_only| namespace::CreateGroupRequest {
        request_id: id.to_owned(),
        validate_only,
        ..group(path)
    };
    let id = request_id();
    // What is only tried uses no id up.
    let tried = admin.asks(with_id("other", &id, true)).await;
    assert!(!tried.expect("valid").planned_events.is_empty());
    let made = admin.asks(with_id("acme", &id, false)).await.expect("made");
    let before = world.log(Service::Namespace).await.len();
    for validate_only in [false, true] {
        let same = admin.asks(with_id("acme", &id, validate_only)).await;
        assert_eq!(same.expect("answered as then"), made, "{validate_only}");
        refused(
            admin.asks(with_id("other", &id, validate_only)).await,
            Code::AlreadyExists,
            "REQUEST_ID_REUSED",
        );
    }
    assert_eq!(world.log(Service::Namespace).await.len(), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_had_nothing_to_change_changes_nothing_when_it_comes_again() {
    let world = World::start().await;
    let admin = world.admin();
    admin.creates_group("acme").await;
    let web = admin.creates_workspace("acme/web").await;
    let deployer = admin.creates_identity("acme/deployer").await;
    admin.assigns(&deployer.id, &web.id).await;
    let late = identity::AssignManagedIdentityRequest {
        request_id: request_id(),
        ..assignment(&deployer.id, &web.id)
    };
    let first = admin.asks(late.clone()).await.expect("it is so already");
    admin
        .asks(unassignment(&deployer.id, &web.id))
        .await
        .expect("unassigned");
    let before = world.log(Service::Identity).await.len();
    // Sent again by a client whose answer was lost, it must not undo what came between.
    let again = admin.asks(late).await.expect("it is answered as then");
    assert_eq!(again, first);
    assert_eq!(world.log(Service::Identity).await.len(), before);
}
