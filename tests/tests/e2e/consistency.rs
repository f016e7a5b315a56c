//! Read your writes: tokens, deadlines, and the default wait.

use std::time::Duration;

use bed::unique_id;
use e2e::refusal::{invalid, obstacles, refused};
use e2e::user::{aws_identity, group, job, workspace};
use e2e::{Service, User, World};
use eventlog::{ConsistencyToken, Head};
use proto::directory::v1 as directory;
use proto::eventlog::v1 as eventlog_api;
use proto::identity::v1 as identity;
use proto::issuer::v1 as issuer;
use proto::namespace::v1 as namespace;
use sqlx::{Postgres, Transaction};
use tonic::{Code, Response, Status};

/// Holds up the projector's following of one log, until it is dropped.
async fn hold_up<'a>(world: &World, log: &str) -> Transaction<'a, Postgres> {
    let pool = world.database(Service::Projector).pool();
    let mut transaction = pool.begin().await.expect("a transaction");
    let locked = sqlx::query("SELECT FROM directory_v10.checkpoints WHERE log = $1 FOR UPDATE")
        .bind(log)
        .execute(&mut *transaction)
        .await
        .expect("the checkpoint can be locked");
    assert_eq!(
        locked.rows_affected(),
        1,
        "nothing of {log} was followed yet"
    );
    transaction
}

fn children(group_id: &str, consistency_token: &str) -> directory::ListChildrenRequest {
    directory::ListChildrenRequest {
        group_id: group_id.to_owned(),
        consistency_token: consistency_token.to_owned(),
        ..Default::default()
    }
}

/// The whole job, in a hurry: each step with nothing but the token of the one before. Ends with the workspace and the
/// last token.
async fn main_job(user: &User, name: &str) -> (String, String) {
    let hasty = user.in_a_hurry();
    let made = hasty.asks(group(name)).await.expect("a group");
    let request = namespace::CreateWorkspaceRequest {
        consistency_token: made.consistency_token,
        ..workspace(&format!("{name}/web"))
    };
    let made = hasty.asks(request).await.expect("a workspace");
    let web = made.workspace.expect("the workspace");
    let request = identity::CreateManagedIdentityRequest {
        consistency_token: made.consistency_token,
        ..aws_identity(&format!("{name}/deployer"))
    };
    let made = hasty.asks(request).await.expect("an identity");
    let deployer = made.managed_identity.expect("the identity");
    let request = identity::AssignManagedIdentityRequest {
        consistency_token: made.consistency_token,
        ..e2e::user::assignment(&deployer.id, &web.id)
    };
    let assigned = hasty.asks(request).await.expect("assigned");
    let request = issuer::OpenJobRequest {
        consistency_token: assigned.consistency_token,
        ..job(&web.id)
    };
    let opened = hasty.asks(request).await.expect("a job");
    let request = issuer::IssueCredentialRequest {
        consistency_token: opened.consistency_token,
        ..e2e::user::credential(&deployer.id)
    };
    let issued = hasty.with_token(&opened.job_token).asks(request).await;
    (web.id, issued.expect("a credential").consistency_token)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_takes_a_caller_through_all_services() {
    let world = World::start().await;
    let admin = world.admin();
    for round in 0..10 {
        let (web, token) = main_job(&admin, &format!("acme{round}")).await;
        let request = directory::ListWorkspaceManagedIdentitiesRequest {
            workspace_id: web,
            consistency_token: token,
            ..Default::default()
        };
        let listed = admin.asks(request).await.expect("listed");
        assert_eq!(listed.managed_identities.len(), 1);
    }
}

/// An answer leans on all that its service had followed: its token asks for that too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_holds_what_the_answer_leaned_on() {
    let world = World::start().await;
    let admin = world.admin();
    admin.creates_group("first").await;
    let held = hold_up(&world, "namespace").await;
    let (web, token) = main_job(&admin, "acme").await;
    let list = directory::ListWorkspaceManagedIdentitiesRequest {
        workspace_id: web,
        consistency_token: token,
        ..Default::default()
    };
    let hasty = admin.within(Duration::from_secs(3));
    refused(
        hasty.asks(list.clone()).await,
        Code::DeadlineExceeded,
        "CONSISTENCY_TOKEN_NOT_REACHED",
    );
    held.rollback().await.expect("let go");
    let listed = admin.asks(list).await.expect("listed");
    assert_eq!(listed.managed_identities.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_is_waited_for_and_refused_clearly() {
    let world = World::start().await;
    let admin = world.admin();
    admin.creates_group("first").await;
    let held = hold_up(&world, "namespace").await;
    let made = admin
        .in_a_hurry()
        .asks(group("acme"))
        .await
        .expect("a group");
    let token = made.consistency_token;
    // Not there yet: a read that waits for it gets it once it is.
    let waiting = tokio::spawn({
        let (admin, token) = (admin.clone(), token.clone());
        async move { admin.asks(children("trn:group:acme", &token)).await }
    });
    let hasty = admin.within(Duration::from_secs(3));
    let status = refused(
        hasty.asks(children("trn:group:acme", &token)).await,
        Code::DeadlineExceeded,
        "CONSISTENCY_TOKEN_NOT_REACHED",
    );
    assert!(status.message().contains("namespace"), "{status:?}");
    assert!(!waiting.is_finished());
    held.rollback().await.expect("let go");
    waiting.await.expect("no panic").expect("it is there");

    // Any service that has it, or has no need of it, answers.
    for service in Service::ALL {
        let request = eventlog_api::AwaitRequest {
            consistency_token: token.clone(),
        };
        admin.calls(service, request).await.expect("reached");
    }
    // Of a log that is no more, and of none.
    let foreign = Head {
        epoch: unique_id(),
        position: 1,
    };
    let foreign = ConsistencyToken::of("namespace", foreign).to_string();
    for service in Service::ALL {
        for (token, code) in [
            (foreign.as_str(), Code::FailedPrecondition),
            ("garbage", Code::InvalidArgument),
        ] {
            let request = eventlog_api::AwaitRequest {
                consistency_token: token.to_owned(),
            };
            let outcome = admin
                .calls(service, request)
                .await
                .map(Response::into_inner);
            if code == Code::InvalidArgument {
                invalid(outcome, &["consistency_token"]);
            } else {
                let reason = "CONSISTENCY_TOKEN_OTHER_EPOCH";
                let refusal = refused(outcome, code, reason);
                let obstacle = (reason.to_owned(), "namespace".to_owned());
                assert_eq!(obstacles(&refusal), [obstacle]);
            }
        }
    }
    // Further than the log goes: the deadline is all that ends it.
    let token: ConsistencyToken = token.parse().expect("a token");
    let (_, head) = token.logs().next().expect("a log");
    let beyond = Head {
        position: head.position + 1_000,
        ..head
    };
    let beyond = ConsistencyToken::of("namespace", beyond).to_string();
    let hasty = admin.within(Duration::from_secs(3));
    for service in [Service::Identity, Service::Issuer, Service::Projector] {
        let request = eventlog_api::AwaitRequest {
            consistency_token: beyond.clone(),
        };
        let outcome = hasty
            .calls(service, request)
            .await
            .map(Response::into_inner);
        refused(
            outcome,
            Code::DeadlineExceeded,
            "CONSISTENCY_TOKEN_NOT_REACHED",
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mutation_is_answered_once_it_is_visible_or_when_its_wait_is_over() {
    let mut world = World::start().await;
    let admin = world.admin();
    let visible = |outcome: &Result<Response<namespace::CreateGroupResponse>, Status>| {
        let response = outcome.as_ref().expect("a group");
        let value = response.metadata().get("tharsis-visible");
        value.map(|value| value.to_str().expect("text").to_owned())
    };
    for round in 0..5 {
        let name = format!("acme{round}");
        let made = admin.calls(Service::Namespace, group(&name)).await;
        assert_eq!(visible(&made).as_deref(), Some("true"));
        assert!(admin.lists_children("").await.contains(&name));
    }
    let hasty = admin
        .in_a_hurry()
        .calls(Service::Namespace, group("hasty"))
        .await;
    assert_eq!(visible(&hasty), None);

    world.stops(Service::Projector).await;
    let made = admin
        .saying("tharsis-wait", "1s")
        .calls(Service::Namespace, group("later"))
        .await;
    assert_eq!(visible(&made).as_deref(), Some("false"));
    let odd = admin
        .saying("tharsis-wait", "long")
        .calls(Service::Namespace, group("never"))
        .await;
    invalid(odd.map(Response::into_inner), &["tharsis-wait"]);
    world.starts(Service::Projector).await;
    world.is_serving(Service::Projector).await;
    // Built up to the end before it serves: what was missed is there.
    let listed = admin.lists_children("").await;
    assert!(listed.contains(&"later".to_owned()), "{listed:?}");
}
