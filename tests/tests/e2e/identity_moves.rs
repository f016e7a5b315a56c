//! Managed identities to another group.

use bed::unique_id;
use e2e::refusal::{invalid, not_found, obstacles, refused};
use e2e::user::{assignment, credential};
use e2e::{Service, User, World};
use proto::access::v1::Role;
use proto::identity::v1::{
    GetManagedIdentityRequest, ManagedIdentity, MoveManagedIdentityRequest,
    MoveManagedIdentityResponse,
};
use proto::issuer::v1::IssueCredentialRequest;
use tonic::{Code, Status};

fn to(group: &str, id: &str) -> MoveManagedIdentityRequest {
    MoveManagedIdentityRequest {
        id: id.to_owned(),
        new_group_id: group.to_owned(),
        ..Default::default()
    }
}

async fn moves(user: &User, id: &str, group: &str) -> Result<MoveManagedIdentityResponse, Status> {
    user.asks(to(group, id)).await
}

async fn get(user: &User, id: &str) -> Result<ManagedIdentity, Status> {
    let request = GetManagedIdentityRequest {
        id: id.to_owned(),
        ..Default::default()
    };
    let got = user.asks(request).await?;
    Ok(got.managed_identity.expect("the identity"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_moved_identity_is_the_same_where_it_is_still_inherited() {
    let world = World::start().await;
    let admin = world.admin();
    for path in ["acme", "acme/team", "acme/other"] {
        admin.creates_group(path).await;
    }
    let web = admin.creates_workspace("acme/team/web").await;
    let identity = admin.creates_identity("acme/team/deployer").await;
    admin.assigns(&identity.id, &web.id).await;
    admin.restricts(&identity.id, &[admin.principal()]).await;
    let job = admin.opens_job(&web.id).await;
    let before = admin.asks_as(&job.token, &identity.id).await;
    before.expect("a credential");

    // Upwards, the workspace inherits it still: same id, same subject, same rules, another name for people.
    let moved = moves(&admin, &identity.id, "trn:group:acme").await;
    let moved = moved.expect("moved");
    let now = moved.managed_identity.expect("the identity");
    assert_eq!(
        (&now.id, now.trn.as_str()),
        (&identity.id, "trn:managed_identity:acme/deployer")
    );
    assert_ne!(now.etag, identity.etag);
    assert_eq!(get(&admin, &now.trn).await.expect("got"), now);
    not_found(get(&admin, &identity.trn).await);
    let request = IssueCredentialRequest {
        consistency_token: moved.consistency_token,
        ..credential(&now.trn)
    };
    let issued = admin.with_token(&job.token).asks(request).await;
    issued.expect("a credential");
    let children = proto::directory::v1::ListManagedIdentitiesRequest {
        group_id: "trn:group:acme".to_owned(),
        ..Default::default()
    };
    let listed = admin
        .asks(children)
        .await
        .expect("listed")
        .managed_identities;
    assert_eq!(listed[0].managed_identity, Some(now.clone()));

    // Sideways, the workspace would lose it.
    let status = refused(
        moves(&admin, &identity.id, "trn:group:acme/other").await,
        Code::FailedPrecondition,
        "ASSIGNMENTS_LOST",
    );
    assert_eq!(
        obstacles(&status),
        [("ASSIGNED".to_owned(), "acme/team/web".to_owned())]
    );
    // And down again it would not.
    let moved = moves(&admin, &now.trn, "trn:group:acme/team").await;
    let back = moved.expect("moved").managed_identity.expect("it");
    assert_eq!(back.trn, identity.trn);
    // The old name is free again.
    admin.creates_identity("acme/deployer").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_of_moves() {
    let world = World::start().await;
    let (admin, bob) = (world.admin(), world.user("bob"));
    for path in ["acme", "acme/team", "acme/other", "hidden"] {
        admin.creates_group(path).await;
    }
    let web = admin.creates_workspace("acme/team/web").await;
    let identity = admin.creates_identity("acme/team/deployer").await;
    admin.creates_identity("acme/other/deployer").await;
    admin
        .grants(&bob, Role::Deployer, "trn:group:acme/team")
        .await;
    admin.grants(&bob, Role::Viewer, "trn:group:acme").await;

    refused(
        moves(&admin, &identity.id, "trn:group:acme/other").await,
        Code::AlreadyExists,
        "NAME_TAKEN",
    );
    refused(
        moves(&admin, &identity.id, "trn:group:acme/team").await,
        Code::FailedPrecondition,
        "SAME_PARENT",
    );
    refused(
        moves(&bob, &identity.id, "trn:group:acme").await,
        Code::PermissionDenied,
        "PERMISSION_DENIED",
    );
    not_found(moves(&bob, &identity.id, "trn:group:hidden").await);
    invalid(moves(&admin, &identity.id, "").await, &["new_group_id"]);
    invalid(
        moves(&admin, &identity.id, &web.id).await,
        &["new_group_id"],
    );
    let stale = MoveManagedIdentityRequest {
        etag: "v9".to_owned(),
        ..to("trn:group:acme", &identity.id)
    };
    refused(admin.asks(stale).await, Code::Aborted, "ETAG_MISMATCH");

    // The same request twice is one move.
    let request = MoveManagedIdentityRequest {
        request_id: unique_id().to_string(),
        ..to("trn:group:acme", &identity.id)
    };
    let first = admin.asks(request.clone()).await.expect("moved");
    let events = world.log(Service::Identity).await.len();
    let again = admin.asks(request).await.expect("moved before");
    assert_eq!(
        first.managed_identity.map(|moved| moved.trn),
        again.managed_identity.map(|moved| moved.trn)
    );
    assert_eq!(world.log(Service::Identity).await.len(), events);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_move_and_an_assignment_at_once_one_sees_the_other() {
    let world = World::start().await;
    let admin = world.admin();
    for path in ["acme", "acme/team", "acme/other"] {
        admin.creates_group(path).await;
    }
    let web = admin.creates_workspace("acme/team/web").await;
    let hasty = admin.in_a_hurry();
    for round in 0..10 {
        let identity = admin.creates_identity(&format!("acme/n{round}")).await;
        let (moved, assigned) = tokio::join!(
            moves(&hasty, &identity.id, "trn:group:acme/other"),
            hasty.asks(assignment(&identity.id, &web.id))
        );
        match (moved, assigned) {
            (Ok(_), assigned) => {
                refused(assigned, Code::FailedPrecondition, "NOT_INHERITED");
            }
            (moved, Ok(_)) => {
                refused(moved, Code::FailedPrecondition, "ASSIGNMENTS_LOST");
                let taken = e2e::user::unassignment(&identity.id, &web.id);
                admin.asks(taken).await.expect("unassigned");
            }
            outcomes => panic!("{outcomes:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_moves_to_one_name_one_wins() {
    let world = World::start().await;
    let admin = world.admin();
    for path in ["acme", "acme/a", "acme/b", "acme/c"] {
        admin.creates_group(path).await;
    }
    let one = admin.creates_identity("acme/a/deployer").await;
    let other = admin.creates_identity("acme/b/deployer").await;
    let (first, second) = tokio::join!(
        moves(&admin, &one.id, "trn:group:acme/c"),
        moves(&admin, &other.id, "trn:group:acme/c")
    );
    assert_ne!(first.is_ok(), second.is_ok(), "{first:?} {second:?}");
    let refusal = first.map(drop).and(second.map(drop));
    refused(refusal, Code::AlreadyExists, "NAME_TAKEN");
}
