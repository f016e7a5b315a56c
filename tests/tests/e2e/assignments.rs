//! Which workspace has which identity.

use e2e::refusal::{invalid, not_found, obstacles, reason, refused};
use e2e::user::{assignment, credential, unassignment};
use e2e::{Service, User, World};
use futures::future::join_all;
use proto::access::v1::Role;
use proto::directory::v1 as directory;
use proto::identity::v1 as identity;
use proto::issuer::v1 as issuer;
use tonic::Code;

fn delete(id: &str, force: bool) -> identity::DeleteManagedIdentityRequest {
    identity::DeleteManagedIdentityRequest {
        id: id.to_owned(),
        force,
        ..Default::default()
    }
}

/// The names of the identities that a workspace has, by the directory.
async fn assigned(user: &User, workspace: &str) -> Vec<String> {
    let request = directory::ListWorkspaceManagedIdentitiesRequest {
        workspace_id: workspace.to_owned(),
        ..Default::default()
    };
    let listed = user.asks(request).await.expect("listed").managed_identities;
    let name =
        |listed: directory::DirectoryManagedIdentity| listed.managed_identity.expect("it").name;
    listed.into_iter().map(name).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_workspace_has_what_it_inherits_and_one_of_a_type() {
    let world = World::start().await;
    let (admin, bob) = (world.admin(), world.user("bob"));
    for path in ["acme", "acme/team", "acme/other"] {
        admin.creates_group(path).await;
    }
    let web = admin.creates_workspace("acme/team/web").await;
    let above = admin.creates_identity("acme/above").await;
    let own = admin.creates_identity("acme/team/own").await;
    let beside = admin.creates_identity("acme/other/beside").await;
    admin
        .grants(&bob, Role::Deployer, "trn:group:acme/team")
        .await;

    // Known to who may see it, and unknown to who may not.
    refused(
        admin.asks(assignment(&beside.id, &web.id)).await,
        Code::FailedPrecondition,
        "NOT_INHERITED",
    );
    not_found(bob.asks(assignment(&beside.id, &web.id)).await);
    not_found(bob.asks(assignment(&beside.trn, &web.id)).await);
    // An inherited one is bob's to assign, though he has no role where it was made.
    bob.assigns(&above.trn, &web.trn).await;
    let before = world.log(Service::Identity).await.len();
    bob.assigns(&above.id, &web.id).await;
    assert_eq!(
        world.log(Service::Identity).await.len(),
        before,
        "it is so already"
    );
    let status = refused(
        bob.asks(assignment(&own.id, &web.id)).await,
        Code::FailedPrecondition,
        "TYPE_TAKEN",
    );
    assert_eq!(
        obstacles(&status),
        [("TYPE_TAKEN".to_owned(), above.id.clone())]
    );
    bob.asks(unassignment(&above.id, &web.id))
        .await
        .expect("unassigned");
    refused(
        bob.asks(unassignment(&above.id, &web.id)).await,
        Code::FailedPrecondition,
        "NOT_ASSIGNED",
    );
    bob.assigns(&own.id, &web.id).await;
    assert_eq!(assigned(&bob, &web.id).await, ["own"]);
    // One that was deleted makes room; by id it could be taken away still.
    admin.asks(delete(&own.id, true)).await.expect("deleted");
    assert!(assigned(&bob, &web.id).await.is_empty());
    bob.assigns(&above.id, &web.id).await;
    assert_eq!(assigned(&bob, &web.id).await, ["above"]);
    not_found(bob.asks(unassignment(&own.id, &web.id)).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_hidden_is_answered_like_what_does_not_exist() {
    let world = World::start().await;
    let (admin, bob) = (world.admin(), world.user("bob"));
    let hidden = admin.creates_group("hidden").await;
    let api = admin.creates_workspace("hidden/api").await;
    let identity = admin.creates_identity("hidden/deployer").await;
    let account = admin.creates_service_account("hidden/ci").await;
    admin.creates_group("acme").await;
    let web = admin.creates_workspace("acme/web").await.id;
    admin.grants(&bob, Role::Deployer, &web).await;
    for named in [&identity.trn, &identity.id, "trn:managed_identity:acme/no"] {
        not_found(bob.asks(assignment(named, &web)).await);
        not_found(bob.asks(unassignment(named, &web)).await);
    }
    for named in [
        &hidden.trn,
        &hidden.id,
        &api.trn,
        &api.id,
        &account.trn,
        &account.id,
        "trn:group:no",
        "trn:workspace:hidden/no",
        "trn:service_account:hidden/no",
    ] {
        let field = ["managed_identity_id"];
        invalid(bob.asks(assignment(named, &web)).await, &field);
        invalid(bob.asks(unassignment(named, &web)).await, &field);
    }
    // Who sees it is told what is in the way.
    admin.grants(&bob, Role::Viewer, &hidden.id).await;
    refused(
        bob.asks(unassignment(&identity.trn, &web)).await,
        Code::FailedPrecondition,
        "NOT_ASSIGNED",
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_at_once_one_wins() {
    let world = World::start().await;
    let admin = world.admin();
    admin.creates_group("acme").await;
    let web = admin.creates_workspace("acme/web").await;
    let identities = join_all(["a", "b", "c"].map(|name| {
        let admin = admin.clone();
        async move { admin.creates_identity(&format!("acme/{name}")).await }
    }))
    .await;
    let hasty = admin.in_a_hurry();
    for _ in 0..10 {
        let all = identities
            .iter()
            .map(|identity| hasty.asks(assignment(&identity.id, &web.id)));
        let outcomes = join_all(all).await;
        let mut winners = Vec::new();
        for (outcome, identity) in outcomes.into_iter().zip(&identities) {
            match outcome {
                Ok(_) => winners.push(identity),
                Err(status) => {
                    refused::<()>(Err(status), Code::FailedPrecondition, "TYPE_TAKEN");
                }
            }
        }
        assert_eq!(winners.len(), 1);
        assert_eq!(
            {
                admin
                    .asks(assignment(&winners[0].id, &web.id))
                    .await
                    .expect("it has it");
                assigned(&admin, &web.id).await
            },
            [winners[0].name.as_str()]
        );
        hasty
            .asks(unassignment(&winners[0].id, &web.id))
            .await
            .expect("unassigned");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_deleted_while_being_assigned_is_not_issued_for() {
    let world = World::start().await;
    let admin = world.admin();
    admin.creates_group("acme").await;
    let web = admin.creates_workspace("acme/web").await;
    let opened = admin.opens_job(&web.id).await;
    let hasty = admin.in_a_hurry();
    for round in 0..10 {
        let force = round % 2 == 0;
        let identity = admin.creates_identity(&format!("acme/n{round}")).await;
        let (deleted, taken) = tokio::join!(
            hasty.asks(delete(&identity.id, force)),
            hasty.asks(assignment(&identity.id, &web.id))
        );
        let token = match (&deleted, &taken) {
            // Assigned first: without force it stays, and with force it goes all the same.
            (Err(status), Ok(_)) if !force && reason(status) == "MANAGED_IDENTITY_ASSIGNED" => {
                admin
                    .asks(delete(&identity.id, true))
                    .await
                    .expect("deleted")
                    .consistency_token
            }
            (Ok(deleted), Ok(_)) if force => deleted.consistency_token.clone(),
            (Ok(deleted), Err(status)) if status.code() == Code::NotFound => {
                deleted.consistency_token.clone()
            }
            outcomes => panic!("{outcomes:?}"),
        };
        let request = issuer::IssueCredentialRequest {
            consistency_token: token.clone(),
            ..credential(&identity.id)
        };
        not_found(hasty.with_token(&opened.token).asks(request).await);
        let request = directory::ListWorkspaceManagedIdentitiesRequest {
            workspace_id: web.id.clone(),
            consistency_token: token,
            ..Default::default()
        };
        assert!(
            admin
                .asks(request)
                .await
                .expect("listed")
                .managed_identities
                .is_empty()
        );
    }
}
