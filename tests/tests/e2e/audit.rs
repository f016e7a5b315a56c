//! Who did what when: jobs, credentials, and the activity of everything.

use bed::eventually;
use e2e::foreign::ForeignIssuer;
use e2e::refusal::{invalid, not_found, refused};
use e2e::{User, World};
use proto::access::v1::Role;
use proto::directory::v1 as directory;
use proto::identity::v1 as identity;
use proto::issuer::v1::{self as issuer, Stage};
use proto::namespace::v1 as namespace;
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
    not_found(bob.asks(parent("trn:group:acme")).await);
    assert_eq!(ids(&bob, parent("")).await, [first.as_str()]);
    assert_eq!(
        ids(&admin, parent("trn:group:acme")).await,
        [second.as_str(), &first]
    );

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
async fn jobs_are_listed_with_all_that_was_said_when_they_were_opened() {
    let world = World::start().await;
    let (admin, bob, alice) = (world.admin(), world.user("bob"), world.user("alice"));
    admin.creates_group("acme").await;
    let web = admin.creates_workspace("acme/web").await;
    for user in [&bob, &alice] {
        admin.grants(user, Role::Deployer, &web.id).await;
    }
    let open = issuer::Job {
        workspace_id: web.id.clone(),
        stage: Stage::Apply.into(),
        principal: "user:dev/alice".to_owned(),
        heartbeat_timeout: Some(prost_types::Duration {
            seconds: 90,
            nanos: 500_000_000,
        }),
        module: Some(issuer::Module {
            source: "acme/network/aws 1.2.3".to_owned(),
            digest: "ab".repeat(32),
            attestations: vec![],
        }),
        ..Default::default()
    };
    let opened = bob.asks(issuer::OpenJobRequest {
        job: Some(open.clone()),
        ..Default::default()
    });
    let opened = opened.await.expect("a job is opened");
    let of_workspace = directory::ListJobsRequest {
        workspace_id: web.id,
        consistency_token: opened.consistency_token,
        ..Default::default()
    };
    let listed = alice.asks(of_workspace).await.expect("a page").jobs;
    let job = opened.job.expect("the job");
    assert_eq!(
        (&job.opener, &job.module),
        (&"user:dev/bob".to_owned(), &open.module)
    );
    let as_opened = issuer::Job {
        state: issuer::JobState::Unspecified.into(),
        create_time: listed[0].create_time,
        ..job
    };
    assert_eq!(listed, [as_opened]);
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

/// An identity's credential, issued to a job of a workspace and refused to it, and a service account.
struct Scene {
    admin: User,
    workspace: String,
    identity: String,
    job: String,
    account: String,
    kid: String,
    /// Behind both.
    consistency_token: String,
}

impl Scene {
    /// Below the group `acme`.
    async fn set(world: &World) -> Self {
        let admin = world.admin();
        admin.creates_group("acme").await;
        admin.creates_group("acme/team").await;
        let workspace = admin.creates_workspace("acme/team/web").await.id;
        let identity = admin.creates_identity("acme/deployer").await.id;
        let ci = ForeignIssuer::start().await;
        let made = admin.asks(ci.trusted_by("acme/team/ci", "repo:*")).await;
        let account = made.expect("made").service_account.expect("it").id;
        let exchange = issuer::ExchangeTokenRequest {
            service_account_id: account.clone(),
            subject_token: ci.token("repo:acme/web"),
            ..Default::default()
        };
        admin.asks(exchange).await.expect("exchanged");
        let job = admin.opens_job(&workspace).await;
        let ask = async |consistency_token: String| {
            let request = issuer::IssueCredentialRequest {
                consistency_token,
                ..e2e::user::credential(&identity)
            };
            admin.with_token(&job.token).asks(request).await
        };
        refused(
            ask(String::new()).await,
            Code::FailedPrecondition,
            "NOT_ASSIGNED",
        );
        let assigned = admin.assigns(&identity, &workspace).await;
        let issued = ask(assigned).await.expect("issued");
        let header = jsonwebtoken::decode_header(&issued.token).expect("a token");
        Self {
            workspace,
            identity,
            job: job.job.id,
            account,
            kid: header.kid.expect("a kid"),
            consistency_token: issued.consistency_token,
            admin,
        }
    }

    /// Each way to ask for the credentials of the job's workspace and identity, whether or not they are still there.
    fn filters(&self) -> [directory::ListCredentialsRequest; 4] {
        let all = || directory::ListCredentialsRequest {
            consistency_token: self.consistency_token.clone(),
            ..Default::default()
        };
        [
            directory::ListCredentialsRequest {
                workspace_id: self.workspace.clone(),
                ..all()
            },
            directory::ListCredentialsRequest {
                managed_identity_id: self.identity.clone(),
                ..all()
            },
            directory::ListCredentialsRequest {
                job_id: self.job.clone(),
                ..all()
            },
            directory::ListCredentialsRequest {
                workspace_id: self.workspace.clone(),
                job_id: self.job.clone(),
                managed_identity_id: self.identity.clone(),
                ..all()
            },
        ]
    }

    /// Who may see it sees both, and each of them by what came of it; who may not, none.
    async fn is_seen(&self, user: &User, sees: bool) {
        let outcomes = async |request: directory::ListCredentialsRequest| {
            let listed = user.asks(request).await.expect("a page").credentials;
            for credential in &listed {
                assert_eq!(credential.stage(), Stage::Apply);
                assert!(credential.revision.starts_with("namespace="));
            }
            let outcomes = listed.into_iter().map(|row| row.refusal_reasons.concat());
            outcomes.collect::<Vec<_>>()
        };
        let (issued, refused) = ("", "NOT_ASSIGNED");
        for request in self.filters() {
            let with = |outcome: directory::CredentialOutcome| directory::ListCredentialsRequest {
                outcome: outcome.into(),
                ..request.clone()
            };
            let by_key = directory::ListCredentialsRequest {
                kid: self.kid.clone(),
                ..request.clone()
            };
            for (asked, found) in [
                (request.clone(), &[issued, refused][..]),
                (with(directory::CredentialOutcome::Issued), &[issued]),
                (with(directory::CredentialOutcome::Refused), &[refused]),
                (by_key, &[issued]),
            ] {
                let wanted = found.iter().filter(|_| sees).map(ToString::to_string);
                let wanted: Vec<_> = wanted.collect();
                assert_eq!(outcomes(asked).await, wanted, "{request:?}");
            }
        }
        let others = |kid: &str, account: &str| directory::ListCredentialsRequest {
            kid: kid.to_owned(),
            service_account_id: account.to_owned(),
            consistency_token: self.consistency_token.clone(),
            ..Default::default()
        };
        for (request, found) in [(others("", &self.account), 1), (others(&self.kid, ""), 2)] {
            let listed = user
                .asks(request.clone())
                .await
                .expect("a page")
                .credentials;
            assert_eq!(listed.len(), if sees { found } else { 0 }, "{request:?}");
        }
        let of_workspace = directory::ListJobsRequest {
            workspace_id: self.workspace.clone(),
            ..Default::default()
        };
        if sees {
            let jobs = user.asks(of_workspace).await.expect("a page").jobs;
            assert_eq!(jobs.len(), 1);
            assert_eq!(jobs[0].id, self.job);
        } else {
            not_found(user.asks(of_workspace).await);
        }
        let jobs = user.asks(directory::ListJobsRequest::default()).await;
        assert_eq!(jobs.expect("a page").jobs.len(), usize::from(sees));
    }

    /// By the group above, everything below is found: two credentials, a service account's token, and a job.
    async fn is_below(&self, group: &str, user: &User) {
        let below = directory::ListCredentialsRequest {
            parent_id: group.to_owned(),
            consistency_token: self.consistency_token.clone(),
            ..Default::default()
        };
        let listed = user.asks(below.clone()).await.expect("a page").credentials;
        assert_eq!(listed.len(), 3, "{listed:?}");
        let of_workspace = directory::ListCredentialsRequest {
            workspace_id: self.workspace.clone(),
            ..below
        };
        let listed = user.asks(of_workspace).await.expect("a page").credentials;
        assert_eq!(listed.len(), 2, "{listed:?}");
        let below = directory::ListJobsRequest {
            parent_id: group.to_owned(),
            ..Default::default()
        };
        let listed = user.asks(below).await.expect("a page").jobs;
        assert_eq!(listed.len(), 1, "{listed:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_deleted_is_on_the_record_still() {
    let world = World::start().await;
    let scene = Scene::set(&world).await;
    let admin = &scene.admin;
    let [owner, inside, outsider] = ["owner", "inside", "outsider"].map(|name| world.user(name));
    admin.grants(&owner, Role::Owner, "trn:group:acme").await;
    let team = "trn:group:acme/team";
    admin.grants(&inside, Role::Owner, team).await;
    admin.creates_group("other").await;
    admin
        .grants(&outsider, Role::Owner, "trn:group:other")
        .await;
    for (user, sees) in [
        (admin, true),
        (&owner, true),
        (&inside, true),
        (&outsider, false),
    ] {
        scene.is_seen(user, sees).await;
    }
    for user in [admin, &owner] {
        scene.is_below("trn:group:acme", user).await;
    }
    scene.is_below(team, &inside).await;

    // First what they were issued for, and then where.
    let delete = identity::DeleteServiceAccountRequest {
        id: scene.account.clone(),
        ..Default::default()
    };
    admin.asks(delete).await.expect("deleted");
    let delete = identity::DeleteManagedIdentityRequest {
        id: scene.identity.clone(),
        force: true,
        ..Default::default()
    };
    admin.asks(delete).await.expect("deleted");
    let delete = namespace::DeleteWorkspaceRequest {
        id: scene.workspace.clone(),
        ..Default::default()
    };
    admin.asks(delete).await.expect("deleted");
    for (user, sees) in [
        (admin, true),
        (&owner, true),
        (&inside, true),
        (&outsider, false),
    ] {
        scene.is_seen(user, sees).await;
    }
    scene.is_below(team, &inside).await;
    let gone = directory::ListJobsRequest {
        workspace_id: "trn:workspace:acme/team/web".to_owned(),
        ..Default::default()
    };
    not_found(admin.asks(gone).await);

    admin.deletes_group(team).await;
    // Its members see nothing of it any more, and nor do those of a new one of its name.
    admin.creates_group("acme/team").await;
    admin.grants(&inside, Role::Owner, team).await;
    for (user, sees) in [
        (admin, true),
        (&owner, true),
        (&inside, false),
        (&outsider, false),
    ] {
        scene.is_seen(user, sees).await;
    }
    scene.is_below("trn:group:acme", &owner).await;
    admin.deletes_group("trn:group:acme").await;
    for (user, sees) in [(admin, true), (&owner, false), (&outsider, false)] {
        scene.is_seen(user, sees).await;
    }
}

/// A nanosecond later: before whatever else is recorded, in microseconds.
fn right_after(time: prost_types::Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp {
        nanos: time.nanos + 1,
        ..time
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn times_part_what_is_recorded_before_from_what_is_recorded_later() {
    let world = World::start().await;
    let scene = Scene::set(&world).await;
    let admin = &scene.admin;
    let jobs = |start, end| directory::ListJobsRequest {
        start_time: start,
        end_time: end,
        ..Default::default()
    };
    let listed = admin.asks(jobs(None, None)).await.expect("a page").jobs;
    let opened = listed[0].create_time.expect("a time");
    let later = Some(right_after(opened));
    for (request, found) in [
        (jobs(Some(opened), None), 1),
        (jobs(later, None), 0),
        (jobs(None, Some(opened)), 0),
        (jobs(None, later), 1),
    ] {
        let listed = admin.asks(request.clone()).await.expect("a page").jobs;
        assert_eq!(listed.len(), found, "{request:?}");
    }

    let credentials = |start, end| directory::ListCredentialsRequest {
        workspace_id: scene.workspace.clone(),
        consistency_token: scene.consistency_token.clone(),
        start_time: start,
        end_time: end,
        ..Default::default()
    };
    let all = admin.asks(credentials(None, None)).await;
    let all = all.expect("a page").credentials;
    let [issued, refused] = all.as_slice() else {
        panic!("two: {all:?}")
    };
    let [at_issue, at_refusal] = [issued, refused].map(|row| row.record_time.expect("a time"));
    let (issued, refused) = (issued.position, refused.position);
    for (request, found) in [
        (credentials(Some(opened), None), &[issued, refused][..]),
        (credentials(Some(at_refusal), None), &[issued, refused]),
        (credentials(Some(right_after(at_refusal)), None), &[issued]),
        (credentials(Some(at_issue), None), &[issued]),
        (credentials(Some(right_after(at_issue)), None), &[]),
        (credentials(None, Some(opened)), &[]),
        (credentials(None, Some(at_refusal)), &[]),
        (credentials(None, Some(right_after(at_refusal))), &[refused]),
        (credentials(None, Some(at_issue)), &[refused]),
    ] {
        let listed = admin.asks(request.clone()).await.expect("a page");
        let positions = listed.credentials.iter().map(|row| row.position);
        let positions: Vec<_> = positions.collect();
        assert_eq!(positions, found, "{request:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_accounts_token_is_found_from_when_it_was_recorded() {
    let world = World::start().await;
    let scene = Scene::set(&world).await;
    let tokens = |start| directory::ListCredentialsRequest {
        service_account_id: scene.account.clone(),
        consistency_token: scene.consistency_token.clone(),
        start_time: start,
        ..Default::default()
    };
    let listed = scene.admin.asks(tokens(None)).await.expect("a page");
    let recorded = listed.credentials[0].record_time.expect("a time");
    for (start, found) in [(recorded, 1), (right_after(recorded), 0)] {
        let listed = scene.admin.asks(tokens(Some(start))).await;
        let listed = listed.expect("a page").credentials;
        assert_eq!(listed.len(), found, "{start:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_requests_for_what_was_issued() {
    let world = World::start().await;
    let admin = world.admin();
    let group = admin.creates_group("acme").await;
    let web = admin.creates_workspace("acme/web").await;
    let wrong = directory::ListCredentialsRequest {
        managed_identity_id: "trn:managed_identity:acme/deployer".to_owned(),
        job_id: web.id.clone(),
        workspace_id: group.id.clone(),
        service_account_id: "x".to_owned(),
        ..Default::default()
    };
    invalid(
        admin.asks(wrong).await,
        &[
            "managed_identity_id",
            "job_id",
            "workspace_id",
            "service_account_id",
        ],
    );
    let jobs = |parent_id: &str, workspace_id: &str| directory::ListJobsRequest {
        parent_id: parent_id.to_owned(),
        workspace_id: workspace_id.to_owned(),
        ..Default::default()
    };
    invalid(
        admin.asks(jobs(&group.id, &web.id)).await,
        &["workspace_id"],
    );
    invalid(admin.asks(jobs("", &group.id)).await, &["workspace_id"]);
    invalid(admin.asks(jobs("", "?")).await, &["workspace_id"]);
    let identity = admin.creates_identity("acme/deployer").await;
    invalid(admin.asks(jobs(&identity.id, "")).await, &["parent_id"]);
    not_found(admin.asks(jobs("", "ws_01h455vb4pex5vsknk084sn02q")).await);
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_our_services_did_is_found_and_of_rules_nothing_is_said_that_is_not_so() {
    let world = World::start().await;
    let admin = world.admin();
    for path in ["acme", "acme/team", "other"] {
        admin.creates_group(path).await;
    }
    let web = admin.creates_workspace("acme/team/web").await.id;
    let deployer = admin.creates_identity("acme/deployer").await.id;
    let rule = admin.restricts(&deployer, &["dev/bob"]).await.id;
    admin.assigns(&deployer, &web).await;
    admin
        .moves_group("trn:group:acme/team", "trn:group:other")
        .await;
    let by = |actor: &str| directory::ListActivitiesRequest {
        actor: actor.to_owned(),
        ..Default::default()
    };
    eventually(async || {
        let did = sees(&admin, by("service:identity")).await;
        if did == ["ManagedIdentityUnassigned"] {
            Ok(())
        } else {
            Err(format!("{did:?}"))
        }
    })
    .await;
    for wrong in ["service:", "service:none", "dev/alice"] {
        invalid(admin.asks(by(wrong)).await, &["actor"]);
    }
    // It is on the record of its identity.
    invalid(admin.asks(of(&rule)).await, &["resource_id"]);
    let affected = directory::ListActivitiesRequest {
        affected_id: rule,
        ..Default::default()
    };
    invalid(admin.asks(affected).await, &["affected_id"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_is_on_the_record_of_the_place_that_was_left_too() {
    let world = World::start().await;
    let (admin, bob, carol) = (world.admin(), world.user("bob"), world.user("carol"));
    for path in [
        "acme",
        "acme/team",
        "acme/team/inner",
        "other",
        "other/team",
    ] {
        admin.creates_group(path).await;
    }
    let group = async |path: &str| {
        let request = namespace::GetGroupRequest {
            id: format!("trn:group:{path}"),
            ..Default::default()
        };
        let got = admin.asks(request).await.expect("got");
        got.group.expect("the group").id
    };
    let (left, entered) = (group("acme/team").await, group("other/team").await);
    let inner = group("acme/team/inner").await;
    let web = admin.creates_workspace("acme/team/web").await.id;
    let deployer = admin.creates_identity("acme/team/deployer").await.id;
    admin.grants(&bob, Role::Viewer, "trn:group:acme").await;
    admin.grants(&carol, Role::Viewer, "trn:group:other").await;

    let request = identity::MoveManagedIdentityRequest {
        id: deployer.clone(),
        new_group_id: entered.clone(),
        ..Default::default()
    };
    admin.asks(request).await.expect("moved");
    admin.moves_workspace(&web, &entered).await;
    admin.moves_group(&inner, &entered).await;

    // Each with where it happened, as far as whoever asks may know.
    let moves = async |user: &User, request: directory::ListActivitiesRequest| {
        let listed = user.asks(request).await.expect("a page").activities;
        let moves = listed.into_iter().rev();
        let moves = moves.filter(|activity| activity.event_type.ends_with("Moved"));
        let moves = moves.map(|activity| (activity.resource_id, activity.namespace_id));
        moves.collect::<Vec<_>>()
    };
    let things = [&deployer, &web, &inner];
    let from_the_old = things.map(|thing| (thing.clone(), left.clone()));
    let from_the_new = [&entered, &web, &inner];
    let from_the_new = things.into_iter().zip(from_the_new);
    let from_the_new: Vec<_> = from_the_new.map(|(a, b)| (a.clone(), b.clone())).collect();
    eventually(async || match moves(&admin, of("")).await.len() {
        0..3 => Err("not all yet"),
        _ => Ok(()),
    })
    .await;
    for user in [&admin, &bob] {
        assert_eq!(moves(user, of(&left)).await, from_the_old);
        assert_eq!(moves(user, below("trn:group:acme")).await, from_the_old);
    }
    assert_eq!(moves(&bob, of("")).await, from_the_old);
    for user in [&admin, &carol] {
        assert_eq!(moves(user, below("trn:group:other")).await, from_the_new);
        assert_eq!(moves(user, of("")).await, from_the_new);
    }
    not_found(carol.asks(of(&left)).await);
    not_found(bob.asks(of(&entered)).await);
    for (number, thing) in things.into_iter().enumerate() {
        let affected = || directory::ListActivitiesRequest {
            affected_id: thing.clone(),
            ..Default::default()
        };
        assert_eq!(moves(&bob, affected()).await, from_the_old[number..=number]);
        for user in [&admin, &carol] {
            assert_eq!(moves(user, affected()).await, from_the_new[number..=number]);
        }
    }

    // Who sees both sees it once, however the pages are cut.
    admin.grants(&bob, Role::Viewer, "trn:group:other").await;
    eventually(async || {
        let seen = moves(&bob, of("")).await;
        if seen == from_the_new {
            Ok(())
        } else {
            Err(format!("{seen:?}"))
        }
    })
    .await;
    let seen = sees(&bob, of("")).await;
    let moved = seen.iter().filter(|name| name.ends_with("Moved"));
    assert_eq!(moved.count(), 3, "{seen:?}");
}
