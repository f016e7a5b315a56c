//! What may change of groups and workspaces.

use e2e::World;
use e2e::refusal::{invalid, not_found, refused};
use e2e::user::{child_name, job, workspace};
use proto::access::v1::Role;
use proto::directory::v1 as directory;
use proto::issuer::v1 as issuer;
use proto::namespace::v1 as namespace;
use tonic::Code;

fn update_group(group: &namespace::Group) -> namespace::UpdateGroupRequest {
    namespace::UpdateGroupRequest {
        group: Some(group.clone()),
        ..Default::default()
    }
}

fn update_workspace(workspace: &namespace::Workspace) -> namespace::UpdateWorkspaceRequest {
    namespace::UpdateWorkspaceRequest {
        workspace: Some(workspace.clone()),
        ..Default::default()
    }
}

fn mask(path: &str) -> prost_types::FieldMask {
    prost_types::FieldMask {
        paths: vec![path.to_owned()],
    }
}

fn seconds(seconds: i64) -> prost_types::Duration {
    prost_types::Duration { seconds, nanos: 0 }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_description_changes_for_the_version_that_was_seen() {
    let world = World::start().await;
    let (admin, bob) = (world.admin(), world.user("bob"));
    admin.creates_group("acme").await;
    let team = admin.creates_group("acme/team").await;
    admin.grants(&bob, Role::Deployer, &team.id).await;
    let described = namespace::Group {
        description: "who deploys".to_owned(),
        // Neither of these changes, and without a mask they may be there.
        name: "other".to_owned(),
        ..team.clone()
    };
    refused(
        bob.asks(update_group(&described)).await,
        Code::PermissionDenied,
        "PERMISSION_DENIED",
    );
    not_found(world.user("eve").asks(update_group(&described)).await);
    let (one, other) = tokio::join!(
        admin.asks(update_group(&described)),
        admin.asks(update_group(&described))
    );
    let (won, lost) = if one.is_ok() {
        (one, other)
    } else {
        (other, one)
    };
    refused(lost, Code::Aborted, "ETAG_MISMATCH");
    let now = won.expect("changed").group.expect("the group");
    assert_eq!(
        (now.description.as_str(), now.name.as_str()),
        ("who deploys", "team")
    );
    assert_ne!(now.etag, team.etag);
    // The log and the read models tell the same, etag and times too.
    let get = namespace::GetGroupRequest {
        id: team.id.clone(),
        ..Default::default()
    };
    assert_eq!(admin.asks(get).await.expect("it").group, Some(now.clone()));
    let list = directory::ListChildrenRequest {
        group_id: "trn:group:acme".to_owned(),
        ..Default::default()
    };
    let listed = admin.asks(list).await.expect("listed").children;
    assert_eq!(
        listed[0].kind,
        Some(directory::child::Kind::Group(now.clone()))
    );
    let request = namespace::UpdateGroupRequest {
        update_mask: Some(mask("name")),
        ..update_group(&now)
    };
    invalid(admin.asks(request).await, &["update_mask"]);
    let long = namespace::Group {
        description: "x".repeat(1_025),
        ..now
    };
    invalid(
        admin.asks(update_group(&long)).await,
        &["group.description"],
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_live_as_long_as_their_workspace_allows() {
    let world = World::start().await;
    let (admin, bob) = (world.admin(), world.user("bob"));
    admin.creates_group("acme").await;
    let mut request = workspace("acme/web");
    request.workspace.get_or_insert_default().max_job_duration = Some(seconds(3_600));
    let made = admin.asks(request.clone()).await.expect("made");
    let web = made.workspace.expect("a workspace");
    assert_eq!(web.max_job_duration, Some(seconds(3_600)));
    for bad in [0, -1, 86_401] {
        request.workspace.get_or_insert_default().max_job_duration = Some(seconds(bad));
        invalid(
            admin.asks(request.clone()).await,
            &["workspace.max_job_duration"],
        );
    }
    admin.grants(&bob, Role::Deployer, &web.id).await;

    // The default and the most that a job may ask for.
    assert_eq!(life(&bob.opens_job(&web.id).await.job), 3_600);
    let of = |duration| {
        let mut request = job(&web.id);
        request.job.get_or_insert_default().max_duration = duration;
        request
    };
    let opened = bob.asks(of(Some(seconds(60)))).await.expect("opened");
    assert_eq!(life(&opened.job.expect("a job")), 60);
    invalid(
        bob.asks(of(Some(seconds(3_601)))).await,
        &["job.max_duration"],
    );

    // A deployer changes it, and nothing else with it.
    let shorter = namespace::UpdateWorkspaceRequest {
        update_mask: Some(mask("max_job_duration")),
        ..update_workspace(&namespace::Workspace {
            max_job_duration: Some(seconds(60)),
            description: "not this".to_owned(),
            ..web.clone()
        })
    };
    let updated = bob.asks(shorter).await.expect("changed").workspace;
    let updated = updated.expect("the workspace");
    assert_eq!(
        (updated.max_job_duration, updated.description.as_str()),
        (Some(seconds(60)), "")
    );
    invalid(bob.asks(of(Some(seconds(61)))).await, &["job.max_duration"]);
    assert_eq!(life(&bob.opens_job(&web.id).await.job), 60);
    refused(
        bob.asks(update_workspace(&web)).await,
        Code::Aborted,
        "ETAG_MISMATCH",
    );
    let list = directory::ListChildrenRequest {
        group_id: "trn:group:acme".to_owned(),
        ..Default::default()
    };
    let listed = admin.asks(list).await.expect("listed").children;
    assert_eq!(child_name(&listed[0]), "web");
    assert_eq!(
        listed[0].kind,
        Some(directory::child::Kind::Workspace(updated.clone()))
    );

    // Taken away, jobs live as long as any.
    let any = namespace::Workspace {
        max_job_duration: None,
        ..updated
    };
    bob.asks(update_workspace(&any)).await.expect("changed");
    assert_eq!(life(&bob.opens_job(&web.id).await.job), 12 * 3_600);
    bob.asks(of(Some(seconds(86_400)))).await.expect("opened");
    let fraction = namespace::Workspace {
        max_job_duration: Some(prost_types::Duration {
            seconds: 1,
            nanos: 1,
        }),
        etag: String::new(),
        ..any
    };
    invalid(
        bob.asks(update_workspace(&fraction)).await,
        &["workspace.max_job_duration"],
    );
}

/// In seconds, but for what opening it took.
fn life(job: &issuer::Job) -> i64 {
    let (opened, expires) = (
        job.create_time.expect("a time"),
        job.expire_time.expect("a time"),
    );
    // The end was counted from the moment before the job was recorded, and cut to a second.
    let life = expires.seconds - opened.seconds;
    (life..=life + 2)
        .find(|life| life % 60 == 0)
        .unwrap_or(life)
}
