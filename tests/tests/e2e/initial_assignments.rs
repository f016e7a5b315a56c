//! A workspace that has managed identities from its beginning: one command, and what came of each.

use bed::{eventually, unique_id};
use e2e::refusal::invalid;
use e2e::user::{credential, workspace_with};
use e2e::{Service, User, World};
use prost::Message as _;
use proto::access::v1::Role;
use proto::directory::v1 as directory;
use proto::identity::v1 as identity;
use proto::namespace::v1 as namespace;
use proto::namespace::v1::InitialAssignmentState::{self, Assigned, Pending, Refused};

/// The state and the reason, or the id, of each.
fn outcomes(
    made: &namespace::CreateWorkspaceResponse,
) -> Vec<(&str, InitialAssignmentState, String)> {
    let outcome = |outcome: &namespace::InitialAssignment| match outcome.state() {
        Refused => outcome.reason.clone(),
        _ => outcome.managed_identity_id.clone(),
    };
    made.initial_assignments
        .iter()
        .map(|each| (each.managed_identity.as_str(), each.state(), outcome(each)))
        .collect()
}

fn id(made: &namespace::CreateWorkspaceResponse) -> String {
    let workspace = made.workspace.as_ref().expect("the workspace");
    workspace.id.clone()
}

async fn has(user: &User, made: &namespace::CreateWorkspaceResponse) -> Vec<String> {
    let request = directory::ListWorkspaceManagedIdentitiesRequest {
        workspace_id: id(made),
        consistency_token: made.consistency_token.clone(),
        ..Default::default()
    };
    let listed = user.asks(request).await.expect("listed").managed_identities;
    let ids = listed.into_iter().map(|listed| listed.managed_identity);
    ids.map(|identity| identity.expect("it").id).collect()
}

async fn creates_kubernetes(user: &User, path: &str) -> identity::ManagedIdentity {
    let mut request = e2e::user::aws_identity(path);
    let wanted = request.managed_identity.get_or_insert_default();
    wanted.configuration = Some(identity::Configuration {
        r#type: Some(identity::configuration::Type::Kubernetes(
            identity::KubernetesConfiguration::default(),
        )),
    });
    let made = user.asks(request).await.expect("made");
    made.managed_identity.expect("an identity")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_workspace_is_ready_to_go_with_one_command() {
    let world = World::start().await;
    let (admin, dan) = (world.admin(), world.user("dan"));
    for path in ["acme", "acme/team"] {
        let made = admin.creates_group(path).await;
        admin.grants(&dan, Role::Deployer, &made.id).await;
    }
    let aws = admin.creates_identity("acme/aws").await;
    let other = creates_kubernetes(&admin, "acme/team/other").await;
    let mut request = workspace_with(
        "acme/team/web",
        &["trn:managed_identity:acme/aws", &other.id],
    );
    request.request_id = unique_id().to_string();
    let made = dan.asks(request.clone()).await.expect("made");
    assert_eq!(
        outcomes(&made),
        [
            ("trn:managed_identity:acme/aws", Assigned, aws.id.clone()),
            (&other.id, Assigned, other.id.clone()),
        ]
    );
    assert_eq!(has(&dan, &made).await.len(), 2);
    let job = dan.opens_job(&id(&made)).await;
    let job = dan.with_token(&job.token);
    for identity in [&aws, &other] {
        job.asks(credential(&identity.id)).await.expect("a token");
    }
    // The same request tells the same, and nothing is assigned twice.
    let log = world.log(Service::Identity).await;
    let again = dan.asks(request).await.expect("the same");
    assert_eq!(again.workspace, made.workspace);
    assert_eq!(again.initial_assignments, made.initial_assignments);
    assert_eq!(world.log(Service::Identity).await.len(), log.len());
    // It was done in the name of who made the workspace.
    let of_dan = log.iter().rev().take(3);
    let of_dan = of_dan.filter(|event| event.metadata.contains("user:dev/dan"));
    assert_eq!(of_dan.count(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_refused_is_named_and_says_why() {
    let world = World::start().await;
    let (admin, dan) = (world.admin(), world.user("dan"));
    let mut groups = Vec::new();
    for path in ["acme", "acme/team", "acme/beside", "foreign"] {
        groups.push(admin.creates_group(path).await);
    }
    admin.grants(&dan, Role::Deployer, &groups[0].id).await;
    let first = admin.creates_identity("acme/first").await;
    let second = admin.creates_identity("acme/second").await;
    let beside = admin.creates_identity("acme/beside/it").await;
    let foreign = admin.creates_identity("foreign/it").await;
    let hidden = creates_kubernetes(&admin, "acme/hidden").await;
    let mut mask = e2e::user::mask(&groups[1].id);
    mask.mask.get_or_insert_default().hidden =
        Some(identity::mask::Hidden::ManagedIdentityId(hidden.id.clone()));
    admin.asks(mask).await.expect("masked");
    let named = [
        "trn:managed_identity:acme/none",
        &first.id,
        "trn:managed_identity:acme/first",
        &second.id,
        &beside.id,
        &foreign.id,
        &hidden.id,
    ];
    let request = workspace_with("acme/team/web", &named);
    let made = dan.asks(request).await.expect("made");
    let refused = |named, reason: &str| (named, Refused, reason.to_owned());
    assert_eq!(
        outcomes(&made),
        [
            refused("trn:managed_identity:acme/none", "RESOURCE_NOT_FOUND"),
            (first.id.as_str(), Assigned, first.id.clone()),
            // It is the same one.
            (
                "trn:managed_identity:acme/first",
                Assigned,
                first.id.clone()
            ),
            refused(&second.id, "TYPE_TAKEN"),
            refused(&beside.id, "NOT_INHERITED"),
            // Of which he may not even know.
            refused(&foreign.id, "RESOURCE_NOT_FOUND"),
            refused(&hidden.id, "MASKED"),
        ]
    );
    let mut refused = made.initial_assignments.iter();
    assert!(refused.all(|each| (each.state() == Assigned) == each.message.is_empty()));
    assert_eq!(has(&dan, &made).await, [first.id]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_names_are_said_before_anything_is_made() {
    let world = World::start().await;
    let admin = world.admin();
    let acme = admin.creates_group("acme").await;
    let aws = admin.creates_identity("acme/aws").await;
    let names = ["it", &aws.id, &acme.id, &aws.id, ""];
    invalid(
        admin.asks(workspace_with("acme/web", &names)).await,
        &[
            "managed_identity_ids[0]",
            "managed_identity_ids[2]",
            "managed_identity_ids[3]",
            "managed_identity_ids[4]",
        ],
    );
    let many: Vec<String> = (0..21)
        .map(|n| format!("trn:managed_identity:acme/i{n}"))
        .collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    invalid(
        admin.asks(workspace_with("acme/web", &many)).await,
        &["managed_identity_ids"],
    );
    // Tried, it says what would be appended, and nothing is.
    let mut request = workspace_with("acme/web", &[&aws.id]);
    request.validate_only = true;
    let before = world.log(Service::Namespace).await.len();
    let tried = admin.asks(request.clone()).await.expect("it would be made");
    assert_eq!(tried.planned_events.len(), 1);
    let planned = namespace::WorkspaceCreated::decode(tried.planned_events[0].value.as_slice());
    let initial = planned
        .expect("the event")
        .initial_assignments
        .expect("asked for");
    assert_eq!(initial.managed_identities, [aws.id]);
    assert_eq!(world.log(Service::Namespace).await.len(), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_could_not_be_decided_at_once_is_decided_by_the_rights_of_then() {
    let mut world = World::start().await;
    let (admin, dan) = (world.admin(), world.user("dan"));
    let acme = admin.creates_group("acme").await;
    let dans = admin.grants(&dan, Role::Deployer, &acme.id).await;
    let aws = admin.creates_identity("acme/aws").await;
    world.stops(Service::Identity).await;
    let mut requests = Vec::new();
    for (user, path) in [(&dan, "acme/web"), (&admin, "acme/api")] {
        let mut request = workspace_with(path, &[&aws.id]);
        request.request_id = unique_id().to_string();
        let made = user.in_a_hurry().asks(request.clone()).await.expect("made");
        assert_eq!(outcomes(&made), [(aws.id.as_str(), Pending, String::new())]);
        requests.push((user.clone(), request));
    }
    admin
        .in_a_hurry()
        .asks(namespace::DeleteMembershipRequest {
            id: dans.id,
            ..Default::default()
        })
        .await
        .expect("deleted");
    world.starts(Service::Identity).await;
    world.is_serving(Service::Identity).await;
    let mut told = Vec::new();
    for (user, request) in requests {
        let made = eventually(async || {
            let made = user.asks(request.clone()).await.expect("it was made");
            let pending = outcomes(&made)
                .iter()
                .any(|(_, state, _)| *state == Pending);
            if pending {
                return Err(format!("{made:?}"));
            }
            Ok(made)
        })
        .await;
        told.extend(
            outcomes(&made)
                .into_iter()
                .map(|(_, state, what)| (state, what)),
        );
    }
    assert_eq!(
        told,
        [
            (Refused, "RESOURCE_NOT_FOUND".to_owned()),
            (Assigned, aws.id)
        ]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_workspace_that_is_gone_nothing_is_waited_for() {
    let mut world = World::start().await;
    let admin = world.admin();
    admin.creates_group("acme").await;
    let team = admin.creates_group("acme/team").await;
    let aws = admin.creates_identity("acme/aws").await;
    let mut request = workspace_with("acme/web", &[&aws.id]);
    request.request_id = unique_id().to_string();
    let made = admin.asks(request.clone()).await.expect("made");
    assert_eq!(outcomes(&made), [(&*aws.id, Assigned, aws.id.clone())]);
    admin
        .asks(namespace::DeleteWorkspaceRequest {
            id: id(&made),
            ..Default::default()
        })
        .await
        .expect("deleted");
    // One that goes with its group, before anything is decided.
    world.stops(Service::Identity).await;
    let hasty = admin.in_a_hurry();
    let mut with_group = workspace_with("acme/team/web", &[&aws.id]);
    with_group.request_id = unique_id().to_string();
    let made = hasty.asks(with_group.clone()).await.expect("made");
    assert_eq!(outcomes(&made), [(&*aws.id, Pending, String::new())]);
    hasty.deletes_group(&team.id).await;
    for request in [request, with_group] {
        let made = hasty.asks(request).await.expect("it was made");
        let gone = "RESOURCE_NOT_FOUND".to_owned();
        assert_eq!(outcomes(&made), [(&*aws.id, Refused, gone)]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_workspace_that_is_made_is_answered_whatever_can_be_read_of_it() {
    let mut world = World::start().await;
    let admin = world.admin();
    admin.creates_group("acme").await;
    let aws = admin.creates_identity("acme/aws").await;
    world.stops(Service::Identity).await;
    let before = world.log(Service::Namespace).await.len();
    let made = tokio::spawn({
        let (admin, request) = (admin.clone(), workspace_with("acme/web", &[&aws.id]));
        async move { admin.calls(Service::Namespace, request).await }
    });
    eventually(async || match world.log(Service::Namespace).await.len() {
        end if end > before => Ok(()),
        end => Err(format!("the log ends at {end}")),
    })
    .await;
    sqlx::raw_sql("ALTER TABLE checkpoints RENAME TO elsewhere")
        .execute(world.database(Service::Namespace).pool())
        .await
        .expect("it is there");
    let made = made.await.expect("it does not panic").expect("it was made");
    let visible = made.metadata().get("tharsis-visible");
    assert_eq!(
        visible.and_then(|visible| visible.to_str().ok()),
        Some("false")
    );
    assert_eq!(
        outcomes(made.get_ref()),
        [(&*aws.id, Pending, String::new())]
    );
}
