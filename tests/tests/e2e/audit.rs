//! Who did what when: jobs, credentials, and the activity of everything.

use bed::eventually;
use e2e::refusal::{invalid, not_found, refused};
use e2e::{User, World};
use proto::access::v1::Role;
use proto::directory::v1 as directory;
use tonic::Code;

fn of(resource: &str) -> directory::ListActivitiesRequest {
    directory::ListActivitiesRequest {
        resource_id: resource.to_owned(),
        ..Default::default()
    }
}

fn below(group: &str) -> directory::ListActivitiesRequest {
    directory::ListActivitiesRequest {
        include_descendants: true,
        ..of(group)
    }
}

/// All pages, as the events' names.
async fn sees(user: &User, request: directory::ListActivitiesRequest) -> Vec<String> {
    let (mut seen, mut page_token) = (vec![], String::new());
    loop {
        let request = directory::ListActivitiesRequest {
            page_size: 2,
            page_token,
            ..request.clone()
        };
        let page = user.asks(request).await.expect("a page");
        let names = page.activities.iter().map(|activity| {
            let name = activity.event_type.rsplit('.').next();
            name.unwrap_or_default().to_owned()
        });
        seen.extend(names);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return seen;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_issued_is_found_by_what_it_was_issued_for() {
    let world = World::start().await;
    let (admin, bob) = (world.admin(), world.user("bob"));
    admin.creates_group("acme").await;
    let (web, other) = (
        admin.creates_workspace("acme/web").await,
        admin.creates_workspace("acme/other").await,
    );
    let identity = admin.creates_identity("acme/deployer").await;
    let mut issued = Vec::new();
    let mut jobs = Vec::new();
    for workspace in [&web, &other] {
        let token = admin.assigns(&identity.id, &workspace.id).await;
        let job = admin.opens_job(&workspace.id).await;
        let mut request = e2e::user::credential(&identity.id);
        request.consistency_token = token;
        let answer = admin.with_token(&job.token).asks(request).await;
        issued.push(answer.expect("a credential"));
        jobs.push(job.job);
    }
    let consistency_token = issued[1].consistency_token.clone();
    let ids = async |user: &User, request: directory::ListCredentialsRequest| {
        let request = directory::ListCredentialsRequest {
            consistency_token: consistency_token.clone(),
            ..request
        };
        let listed = user.asks(request).await.expect("a page").credentials;
        let ids = listed.into_iter().map(|credential| credential.token_id);
        ids.collect::<Vec<_>>()
    };
    let parent = |id: &str| directory::ListCredentialsRequest {
        parent_id: id.to_owned(),
        ..Default::default()
    };
    let (first, second) = (issued[0].token_id.clone(), issued[1].token_id.clone());
    assert_eq!(
        ids(&admin, parent(&identity.id)).await,
        [second.as_str(), &first]
    );
    assert_eq!(ids(&admin, parent(&web.id)).await, [first.as_str()]);
    assert_eq!(ids(&admin, parent(&jobs[1].id)).await, [second.as_str()]);
    assert_eq!(ids(&admin, parent("")).await, [second.as_str(), &first]);
    let filtered = directory::ListCredentialsRequest {
        job_id: jobs[0].id.clone(),
        ..parent(&identity.id)
    };
    assert_eq!(ids(&admin, filtered).await, [first.as_str()]);
    let by_token = |id: &str| directory::ListCredentialsRequest {
        token_id: id.to_owned(),
        ..Default::default()
    };
    // One page after the other, the newest first; a key signed both.
    let page = directory::ListCredentialsRequest {
        page_size: 1,
        consistency_token: consistency_token.clone(),
        ..parent(&identity.id)
    };
    let newest = admin.asks(page.clone()).await.expect("a page");
    let rest = directory::ListCredentialsRequest {
        page_token: newest.next_page_token,
        ..page
    };
    let oldest = admin.asks(rest).await.expect("a page");
    assert_eq!(oldest.credentials[0].token_id, first);
    assert_eq!(oldest.next_page_token, "");
    let of_key = directory::ListCredentialsRequest {
        kid: newest.credentials[0].kid.clone(),
        start_time: newest.credentials[0].issue_time,
        ..Default::default()
    };
    assert!(ids(&admin, of_key).await.contains(&second));

    // Who sees one workspace sees what was issued there, and nothing beside.
    admin.grants(&bob, Role::Viewer, &web.id).await;
    assert_eq!(ids(&bob, parent(&web.id)).await, [first.as_str()]);
    assert_eq!(ids(&bob, by_token(&first)).await, [first.as_str()]);
    assert_eq!(ids(&bob, by_token(&second)).await, [""; 0]);
    not_found(bob.asks(parent(&identity.id)).await);
    not_found(bob.asks(parent(&jobs[1].id)).await);
    invalid(bob.asks(parent("")).await, &["parent_id"]);
    invalid(admin.asks(parent("trn:group:acme")).await, &["parent_id"]);

    let of_workspace = directory::ListJobsRequest {
        workspace_id: web.id.clone(),
        ..Default::default()
    };
    let listed = bob.asks(of_workspace).await.expect("a page").jobs;
    assert_eq!(listed.len(), 1);
    assert_eq!((&listed[0].id, &listed[0].trn), (&jobs[0].id, &jobs[0].trn));
    assert_eq!(listed[0].principal, jobs[0].principal);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_refused_is_on_the_record_too() {
    let world = World::start().await;
    let admin = world.admin();
    admin.creates_group("acme").await;
    let web = admin.creates_workspace("acme/web").await;
    let identity = admin.creates_identity("acme/deployer").await;
    let job = admin.opens_job(&web.id).await;
    refused(
        admin.asks_as(&job.token, &identity.id).await,
        Code::FailedPrecondition,
        "NOT_ASSIGNED",
    );
    let listed = eventually(async || {
        let request = directory::ListCredentialsRequest {
            parent_id: web.id.clone(),
            ..Default::default()
        };
        let listed = admin.asks(request).await.expect("a page").credentials;
        listed.into_iter().next().ok_or("nothing yet")
    })
    .await;
    assert_eq!(listed.refusal_reasons, ["NOT_ASSIGNED"]);
    assert_eq!(
        (&listed.managed_identity_id, &listed.job_id),
        (&identity.id, &job.job.id)
    );
    assert_eq!((listed.token_id, listed.expire_time), (String::new(), None));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn activity_follows_moves_and_outlives_deletion() {
    let world = World::start().await;
    let (admin, bob, carol) = (world.admin(), world.user("bob"), world.user("carol"));
    for group in ["acme", "acme/team", "other"] {
        admin.creates_group(group).await;
    }
    let web = admin.creates_workspace("acme/team/web").await;
    admin.creates_identity("acme/team/deployer").await;
    admin
        .assigns("trn:managed_identity:acme/team/deployer", &web.id)
        .await;
    admin
        .grants(&bob, Role::Viewer, "trn:group:acme/team")
        .await;
    admin.grants(&carol, Role::Viewer, "trn:group:other").await;

    let of_workspace = ["ManagedIdentityAssigned", "WorkspaceCreated"];
    assert_eq!(sees(&bob, of(&web.id)).await, of_workspace);
    let of_identity = ["ManagedIdentityAssigned", "ManagedIdentityCreated"];
    assert_eq!(
        sees(&bob, of("trn:managed_identity:acme/team/deployer")).await,
        of_identity
    );
    assert_eq!(
        sees(&bob, of("trn:group:acme/team")).await,
        [
            "MembershipCreated",
            "ManagedIdentityCreated",
            "GroupCreated"
        ]
    );
    let all_of_team = [
        "MembershipCreated",
        "ManagedIdentityAssigned",
        "ManagedIdentityCreated",
        "WorkspaceCreated",
        "GroupCreated",
    ];
    assert_eq!(sees(&bob, below("trn:group:acme/team")).await, all_of_team);
    assert_eq!(sees(&bob, of("")).await, all_of_team);
    let filtered = directory::ListActivitiesRequest {
        actor: "user:dev/admin".to_owned(),
        event_type: "tharsis.namespace.v1.WorkspaceCreated".to_owned(),
        ..of("")
    };
    assert_eq!(sees(&bob, filtered).await, ["WorkspaceCreated"]);
    let by_bob = directory::ListActivitiesRequest {
        actor: "user:dev/bob".to_owned(),
        ..of("")
    };
    assert_eq!(sees(&bob, by_bob).await, [""; 0]);
    not_found(bob.asks(below("trn:group:acme")).await);
    assert_eq!(sees(&carol, below("trn:group:other")).await.len(), 3);

    // With the move, who sees the new place sees all that ever happened there.
    admin
        .moves_group("trn:group:acme/team", "trn:group:other")
        .await;
    let moved = sees(&carol, below("trn:group:other")).await;
    assert_eq!(moved.len(), 3 + 5 + 1, "{moved:?}");
    assert!(
        !sees(&admin, below("trn:group:acme"))
            .await
            .contains(&"WorkspaceCreated".to_owned())
    );

    // Deleted, it is seen from above; not by whoever saw only it, nor from a new group of its name.
    admin.deletes_group("trn:group:other/team").await;
    let left = sees(&carol, below("trn:group:other")).await;
    assert!(left.contains(&"GroupDeleted".to_owned()), "{left:?}");
    assert!(left.ends_with(&moved), "{left:?}");
    let affected = directory::ListActivitiesRequest {
        affected_id: web.id.clone(),
        ..of("")
    };
    let of_web = sees(&carol, affected.clone()).await;
    assert_eq!(of_web.last().map(String::as_str), Some("WorkspaceCreated"));
    assert_eq!(sees(&bob, of("")).await, [""; 0]);
    not_found(carol.asks(of(&web.id)).await);
    admin.creates_group("other/team").await;
    admin
        .grants(&bob, Role::Owner, "trn:group:other/team")
        .await;
    assert_eq!(
        sees(&bob, below("trn:group:other/team")).await,
        ["MembershipCreated", "GroupCreated"]
    );
    assert_eq!(sees(&bob, affected).await, [""; 0]);
    let wrong = directory::ListActivitiesRequest {
        actor: "admin".to_owned(),
        affected_id: "x".to_owned(),
        start_time: Some(prost_types::Timestamp {
            seconds: 0,
            nanos: -1,
        }),
        ..of("")
    };
    invalid(
        bob.asks(wrong).await,
        &["start_time", "actor", "affected_id"],
    );
}
