//! Every list that can be turned: both directions have the same rows, whole and page by page, and a filter leaves out
//! what it says.

use std::fmt::Debug;

use e2e::refusal::invalid;
use e2e::user::{OpenedJob, job};
use e2e::{User, World};
use proto::access::v1::Role;
use proto::access::v1::principal::Kind;
use proto::directory::v1 as directory;
use proto::issuer::v1::Stage;

use crate::masks::creates_kubernetes;

/// Three of everything that there are lists of.
struct Scene {
    admin: User,
    group: String,
    workspace: String,
    identity: String,
    team: String,
    bob: User,
}

impl Scene {
    async fn set(world: &World) -> Self {
        let (admin, bob) = (world.admin(), world.user("bob"));
        let group = admin.creates_group("acme").await.id;
        let identity = admin.creates_identity("acme/deployer").await.id;
        let mut workspaces = Vec::new();
        // Made in another order than that of their names.
        for name in ["web", "api", "jobs"] {
            let made = admin.creates_workspace(&format!("acme/{name}")).await.id;
            admin.assigns(&identity, &made).await;
            admin.grants(&bob, Role::Viewer, &made).await;
            workspaces.push(made);
        }
        admin.grants(&bob, Role::Deployer, &group).await;
        let workspace = workspaces.swap_remove(0);
        for name in ["x", "c", "k"] {
            creates_kubernetes(&admin, &format!("acme/{name}")).await;
            admin.creates_group(&format!("to-{name}")).await;
            let path = format!("to-{name}/{name}");
            admin.creates_alias(&path, &identity).await;
        }
        let team = admin.creates_team("crew", &[]).await.id;
        for name in ["zoe", "ann", "max"] {
            admin.adds(&world.user(name), &team).await;
        }
        for stage in [Stage::Plan, Stage::Apply, Stage::Plan] {
            let mut request = job(&workspace);
            request.job.get_or_insert_default().set_stage(stage);
            let opened = admin.asks(request).await.expect("opened");
            let opened = OpenedJob {
                job: opened.job.expect("the job"),
                token: opened.job_token,
            };
            let issued = admin.asks_as(&opened.token, &identity).await;
            issued.expect("issued");
            let none = admin.asks_as(&opened.token, "trn:managed_identity:acme/x");
            none.await.expect_err("it is not assigned");
        }
        Self {
            admin,
            group,
            workspace,
            identity,
            team,
            bob,
        }
    }
}

/// What a list has in an order: whole, and the same page by page.
macro_rules! listed {
    ($user:expr, $request:expr, $rows:ident) => {{
        let whole = $user.asks($request).await.expect("listed");
        assert_eq!(whole.next_page_token, "");
        let (mut by_page, mut page_token) = (vec![], String::new());
        loop {
            let mut request = $request;
            (request.page_size, request.page_token) = (1, page_token);
            let page = $user.asks(request).await.expect("listed");
            by_page.extend(page.$rows);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        assert_eq!(by_page, whole.$rows);
        whole.$rows
    }};
}

/// The rows of a list in an order that it has, which are the same the other way round; it refuses others.
macro_rules! turned {
    ($user:expr, $request:expr, $rows:ident, $order:expr) => {{
        let ordered = |order_by: &str| {
            let mut request = $request.clone();
            order_by.clone_into(&mut request.order_by);
            request
        };
        let rows = listed!($user, ordered($order), $rows);
        let down = listed!($user, ordered(&format!("{} desc", $order)), $rows);
        reversed(&rows, &down);
        invalid($user.asks(ordered("colour")).await, &["order_by"]);
        invalid($user.asks(ordered("desc")).await, &["order_by"]);
        rows
    }};
}

#[track_caller]
fn reversed<T: Debug + PartialEq>(rows: &[T], down: &[T]) {
    assert!(rows.len() > 2, "{rows:?}");
    assert!(rows.iter().eq(down.iter().rev()), "{rows:?} {down:?}");
}

fn names(listed: &[directory::DirectoryManagedIdentity]) -> Vec<&str> {
    let identities = listed.iter().map(|listed| &listed.managed_identity);
    let names = identities.map(|identity| identity.as_ref().map_or("", |found| &found.name));
    names.collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn identities_and_where_they_are() {
    let world = World::start().await;
    let scene = Scene::set(&world).await;
    let admin = &scene.admin;
    let of_workspace = directory::ListWorkspaceManagedIdentitiesRequest {
        workspace_id: scene.workspace.clone(),
        include_unassigned: true,
        ..Default::default()
    };
    let rows = turned!(admin, of_workspace, managed_identities, "name");
    assert_eq!(names(&rows), ["c", "deployer", "k", "x"]);
    let rows = turned!(admin, of_workspace, managed_identities, "create_time");
    assert_eq!(names(&rows), ["deployer", "x", "c", "k"]);
    turned!(admin, of_workspace, managed_identities, "update_time");
    let mut narrowed = of_workspace.clone();
    "kubernetes".clone_into(&mut narrowed.r#type);
    let rows = listed!(admin, narrowed.clone(), managed_identities);
    assert_eq!(names(&rows), ["c", "k", "x"]);
    "K".clone_into(&mut narrowed.name_contains);
    let rows = listed!(admin, narrowed.clone(), managed_identities);
    assert_eq!(names(&rows), ["k"]);
    "cloud".clone_into(&mut narrowed.r#type);
    invalid(admin.asks(narrowed).await, &["type"]);

    let aliases = directory::ListManagedIdentityAliasesRequest {
        managed_identity_id: scene.identity.clone(),
        ..Default::default()
    };
    let rows = turned!(admin, aliases, aliases, "name");
    assert_eq!(names(&rows), ["c", "k", "x"]);
    let rows = turned!(admin, aliases, aliases, "create_time");
    assert_eq!(names(&rows), ["x", "c", "k"]);

    let workspaces = directory::ListManagedIdentityWorkspacesRequest {
        managed_identity_id: scene.identity.clone(),
        ..Default::default()
    };
    let rows = turned!(admin, workspaces, workspaces, "create_time");
    let found: Vec<_> = rows.iter().map(|row| row.name.as_str()).collect();
    assert_eq!(found, ["web", "api", "jobs"]);
    let narrowed = directory::ListManagedIdentityWorkspacesRequest {
        name_contains: "B".to_owned(),
        ..workspaces
    };
    let rows = listed!(admin, narrowed.clone(), workspaces);
    let found: Vec<_> = rows.iter().map(|row| row.name.as_str()).collect();
    assert_eq!(found, ["web", "jobs"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn people_and_what_they_may() {
    let world = World::start().await;
    let scene = Scene::set(&world).await;
    let admin = &scene.admin;
    let members = directory::ListTeamMembersRequest {
        team_id: scene.team.clone(),
        ..Default::default()
    };
    let users = |rows: &[directory::TeamMember]| {
        let users = rows.iter().map(|row| row.user.clone());
        users.collect::<Vec<_>>()
    };
    let rows = turned!(admin, members, members, "user");
    assert_eq!(users(&rows), ["dev/ann", "dev/max", "dev/zoe"]);
    let rows = turned!(admin, members, members, "add_time");
    assert_eq!(users(&rows), ["dev/zoe", "dev/ann", "dev/max"]);
    let narrowed = directory::ListTeamMembersRequest {
        user_contains: "/a".to_owned(),
        ..members
    };
    let rows = listed!(admin, narrowed.clone(), members);
    assert_eq!(users(&rows), ["dev/ann"]);

    let held = directory::ListPrincipalMembershipsRequest {
        principal: Some(proto::access::v1::Principal {
            kind: Some(Kind::User(scene.bob.principal().to_owned())),
        }),
        ..Default::default()
    };
    let rows = turned!(admin, held, memberships, "create_time");
    assert_eq!(rows[3].namespace_path, "acme");
    let narrowed = directory::ListPrincipalMembershipsRequest {
        role: Role::Deployer.into(),
        ..held
    };
    let rows = listed!(admin, narrowed.clone(), memberships);
    assert_eq!(rows.len(), 1);
    let wrong = directory::ListPrincipalMembershipsRequest {
        role: 99,
        ..narrowed
    };
    invalid(admin.asks(wrong).await, &["role"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_happened() {
    let world = World::start().await;
    let scene = Scene::set(&world).await;
    let admin = &scene.admin;
    let jobs = directory::ListJobsRequest {
        workspace_id: scene.workspace.clone(),
        ..Default::default()
    };
    let rows = turned!(admin, jobs, jobs, "create_time");
    let newest_first = listed!(admin, jobs.clone(), jobs);
    reversed(&rows, &newest_first);
    let narrowed = directory::ListJobsRequest {
        stage: Stage::Plan.into(),
        principal: rows[0].principal.clone(),
        start_time: rows[1].create_time,
        ..jobs.clone()
    };
    let found = listed!(admin, narrowed.clone(), jobs);
    assert_eq!(found, rows[2..]);
    let before = directory::ListJobsRequest {
        end_time: rows[1].create_time,
        ..jobs.clone()
    };
    assert_eq!(listed!(admin, before.clone(), jobs), rows[..1]);
    let wrong = directory::ListJobsRequest {
        stage: 99,
        principal: "bob".to_owned(),
        ..jobs
    };
    invalid(admin.asks(wrong).await, &["stage", "principal"]);

    let credentials = directory::ListCredentialsRequest {
        parent_id: scene.workspace.clone(),
        ..Default::default()
    };
    let rows = turned!(admin, credentials, credentials, "issue_time");
    assert_eq!(rows.len(), 6);
    let newest_first = listed!(admin, credentials.clone(), credentials);
    reversed(&rows, &newest_first);
    for (outcome, refused) in [
        (directory::CredentialOutcome::Issued, false),
        (directory::CredentialOutcome::Refused, true),
    ] {
        let narrowed = directory::ListCredentialsRequest {
            outcome: outcome.into(),
            ..credentials.clone()
        };
        let found = listed!(admin, narrowed.clone(), credentials);
        assert_eq!(found.len(), 3);
        assert!(
            found
                .iter()
                .all(|row| row.refusal_reasons.is_empty() != refused)
        );
    }
    let wrong = directory::ListCredentialsRequest {
        outcome: 99,
        ..credentials
    };
    invalid(admin.asks(wrong).await, &["outcome"]);

    for activities in [
        directory::ListActivitiesRequest::default(),
        directory::ListActivitiesRequest {
            resource_id: scene.workspace.clone(),
            ..Default::default()
        },
        directory::ListActivitiesRequest {
            resource_id: scene.identity.clone(),
            ..Default::default()
        },
        directory::ListActivitiesRequest {
            resource_id: scene.group.clone(),
            include_descendants: true,
            ..Default::default()
        },
    ] {
        let activities = directory::ListActivitiesRequest {
            page_size: 100,
            ..activities
        };
        let rows = turned!(admin, activities, activities, "time");
        let newest_first = listed!(admin, activities.clone(), activities);
        reversed(&rows, &newest_first);
        let mine = turned!(scene.bob, activities, activities, "time");
        assert!(mine.len() <= rows.len());
    }
}
