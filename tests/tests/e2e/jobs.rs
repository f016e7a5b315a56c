//! The life of jobs, on whose behalf they run, and what is on the record of them.

use bed::{eventually, unique_id};
use e2e::clouds::example;
use e2e::refusal::{invalid, not_found, obstacles, reason, refused};
use e2e::user::{OpenedJob, User, access_rule, job, membership, unassignment};
use e2e::{Service, World, relying_party};
use prost::Message as _;
use proto::access::v1::Role;
use proto::identity::v1 as identity;
use proto::issuer::v1::{self as issuer, JobState};
use proto::namespace::v1 as namespace;
use tonic::{Code, Status};

/// A workspace with an AWS identity; answers with the identity's id and the workspace's.
async fn workspace(admin: &User) -> (String, String) {
    admin.creates_group("acme").await;
    let web = admin.creates_workspace("acme/web").await;
    let deployer = admin.creates_identity("acme/deployer").await;
    admin.assigns(&deployer.id, &web.id).await;
    (deployer.id, web.id)
}

fn seconds(seconds: i64) -> prost_types::Duration {
    prost_types::Duration { seconds, nanos: 0 }
}

async fn opens(user: &User, request: issuer::OpenJobRequest) -> Result<OpenedJob, Status> {
    let opened = user.asks(request).await?;
    Ok(OpenedJob {
        job: opened.job.expect("the job"),
        token: opened.job_token,
    })
}

async fn state(user: &User, job: &OpenedJob) -> JobState {
    let request = issuer::GetJobRequest {
        id: job.job.id.clone(),
        ..Default::default()
    };
    let got = user.asks(request).await.expect("it is there");
    got.job.expect("the job").state()
}

fn cancellation(job: &OpenedJob) -> issuer::CancelJobRequest {
    issuer::CancelJobRequest {
        id: job.job.id.clone(),
        ..Default::default()
    }
}

fn on_behalf(workspace: &str, principal: &str) -> issuer::OpenJobRequest {
    let mut request = job(workspace);
    principal.clone_into(&mut request.job.get_or_insert_default().principal);
    request
}

/// The refusals on the record.
async fn refusals(world: &World) -> Vec<issuer::CredentialRefused> {
    let log = world.log(Service::Issuer).await;
    let refused = log
        .iter()
        .filter(|event| event.event_type == "tharsis.issuer.v1.CredentialRefused");
    refused
        .map(|event| issuer::CredentialRefused::decode(event.payload.as_slice()).expect("an event"))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_came_to_its_end_gets_nothing_more() {
    let world = World::start().await;
    let (admin, viewer) = (world.admin(), world.user("viewer"));
    let (deployer, web) = workspace(&admin).await;
    admin.grants(&viewer, Role::Viewer, &web).await;
    let finishes = admin.opens_job(&web).await;
    let cancelled = admin.opens_job(&web).await;
    let bystander = admin.opens_job(&web).await;
    for job in [&finishes, &cancelled] {
        admin.asks_as(&job.token, &deployer).await.expect("issued");
        assert_eq!(state(&viewer, job).await, JobState::Open);
    }

    let finish = issuer::FinishJobRequest {
        request_id: unique_id().to_string(),
        ..Default::default()
    };
    let job = admin.with_token(&finishes.token);
    let (one, other) = tokio::join!(job.asks(finish.clone()), job.asks(finish.clone()));
    assert_eq!(one.expect("finished"), other.expect("answered alike"));
    job.asks(issuer::FinishJobRequest::default())
        .await
        .expect("nothing to change");
    refused(
        admin.asks_as(&finishes.token, &deployer).await,
        Code::FailedPrecondition,
        "JOB_FINISHED",
    );
    assert_eq!(state(&viewer, &finishes).await, JobState::Finished);
    refused(
        admin.asks(cancellation(&finishes)).await,
        Code::FailedPrecondition,
        "JOB_FINISHED",
    );

    refused(
        viewer.asks(cancellation(&cancelled)).await,
        Code::PermissionDenied,
        "PERMISSION_DENIED",
    );
    not_found(world.user("nobody").asks(cancellation(&cancelled)).await);
    let answer = admin
        .asks(cancellation(&cancelled))
        .await
        .expect("cancelled");
    let stopped = answer.job.expect("the job");
    assert_eq!(stopped.state(), JobState::Cancelled);
    assert_eq!(stopped.create_time, cancelled.job.create_time);
    admin
        .asks(cancellation(&cancelled))
        .await
        .expect("nothing to change");
    let job = admin.with_token(&cancelled.token);
    for outcome in [
        job.asks(issuer::HeartbeatJobRequest::default())
            .await
            .map(drop),
        job.asks(issuer::FinishJobRequest::default())
            .await
            .map(drop),
        job.asks(issuer::IssueCredentialsRequest::default())
            .await
            .map(drop),
        admin.asks_as(&cancelled.token, &deployer).await.map(drop),
    ] {
        refused(outcome, Code::FailedPrecondition, "JOB_CANCELLED");
    }
    let events = world.log(Service::Issuer).await;
    let ends = events.iter().filter(|event| {
        event.event_type.ends_with(".JobFinished") || event.event_type.ends_with(".JobCancelled")
    });
    assert_eq!(ends.count(), 2);
    // Nobody else's business.
    admin
        .asks_as(&bystander.token, &deployer)
        .await
        .expect("issued");
    not_found(
        admin
            .asks(issuer::CancelJobRequest {
                id: "job_01h455vb4pex5vsknk084sn02q".to_owned(),
                ..Default::default()
            })
            .await,
    );
    invalid(
        admin.asks(issuer::CancelJobRequest::default()).await,
        &["id"],
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_sent_heartbeats_is_missed() {
    let world = World::start().await;
    let admin = world.admin();
    let (deployer, web) = workspace(&admin).await;
    let mut request = job(&web);
    request.job.get_or_insert_default().heartbeat_timeout = Some(seconds(2));
    let beating = opens(&admin, request.clone()).await.expect("opened");
    let quiet = opens(&admin, request.clone()).await.expect("opened");
    let job = admin.with_token(&beating.token);
    let heartbeat = issuer::HeartbeatJobRequest::default;
    let first = job.asks(heartbeat()).await.expect("alive");
    assert!(first.silent_time.is_some());
    assert_eq!(first.expire_time, beating.job.expire_time);
    // As long as it is heard of, it gets credentials, long after its first heartbeat.
    let mut last = first.clone();
    while last.silent_time.map(|time| time.seconds) < first.silent_time.map(|time| time.seconds + 3)
    {
        last = job.asks(heartbeat()).await.expect("alive");
        admin
            .asks_as(&beating.token, &deployer)
            .await
            .expect("issued");
    }
    let recorded = world.log(Service::Issuer).await;
    let recorded = recorded
        .iter()
        .filter(|event| event.event_type.ends_with(".JobHeartbeatReceived"));
    assert!(recorded.count() < 20, "not each of them");
    eventually(async || {
        let now = state(&admin, &beating).await;
        let silent = now == JobState::Silent;
        silent.then_some(()).ok_or(now.as_str_name())
    })
    .await;
    for outcome in [
        admin.asks_as(&beating.token, &deployer).await.map(drop),
        job.asks(heartbeat()).await.map(drop),
    ] {
        refused(outcome, Code::FailedPrecondition, "JOB_SILENT");
    }
    // It never sent any, and needs not.
    admin
        .asks_as(&quiet.token, &deployer)
        .await
        .expect("issued");
    assert_eq!(state(&admin, &quiet).await, JobState::Open);

    let wanted = request.job.get_or_insert_default();
    wanted.heartbeat_timeout = Some(seconds(3_601));
    "job:job_01h455vb4pex5vsknk084sn02q".clone_into(&mut wanted.principal);
    invalid(
        admin.asks(request).await,
        &["job.heartbeat_timeout", "job.principal"],
    );

    // A part of a second counts as a whole, and what is no duration is none.
    let timeout = |seconds, nanos| {
        let mut request = e2e::user::job(&web);
        let timeout = Some(prost_types::Duration { seconds, nanos });
        request.job.get_or_insert_default().heartbeat_timeout = timeout;
        request
    };
    let opened = opens(&admin, timeout(1, 900_000_000)).await;
    let opened = opened.expect("opened").job;
    assert_eq!(opened.heartbeat_timeout, Some(seconds(2)));
    for (seconds, nanos) in [(5, -999), (5, 2_000_000_000), (0, 999_999_999), (3_600, 1)] {
        let refusal = admin.asks(timeout(seconds, nanos)).await;
        invalid(refusal, &["job.heartbeat_timeout"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_runs_on_behalf_of_who_could_open_it() {
    let world = World::start().await;
    let (admin, bob, viewer) = (world.admin(), world.user("bob"), world.user("viewer"));
    let dispatcher = world.user("dispatcher");
    let (deployer, web) = workspace(&admin).await;
    let acme = "trn:group:acme";
    admin.grants(&dispatcher, Role::Deployer, acme).await;
    admin.grants(&viewer, Role::Viewer, acme).await;
    for principal in ["user:dev/bob", "user:dev/viewer"] {
        refused(
            opens(&dispatcher, on_behalf(&web, principal)).await,
            Code::FailedPrecondition,
            "PRINCIPAL_NOT_MEMBER",
        );
    }
    refused(
        opens(&viewer, on_behalf(&web, "user:dev/dispatcher")).await,
        Code::PermissionDenied,
        "PERMISSION_DENIED",
    );
    let bobs = admin.grants(&bob, Role::Deployer, acme).await;
    let opened = opens(&dispatcher, on_behalf(&web, "user:dev/bob"))
        .await
        .expect("opened");
    assert_eq!(opened.job.principal, "user:dev/bob");
    // An administrator by configuration is no member, and counts.
    let of_admin = opens(&dispatcher, on_behalf(&web, "user:dev/admin"))
        .await
        .expect("opened");
    for job in [&opened, &of_admin] {
        dispatcher
            .asks_as(&job.token, &deployer)
            .await
            .expect("issued");
    }
    // What counts is bob's role, at the moment of each issue.
    let demoted = namespace::UpdateMembershipRequest {
        membership: Some(namespace::Membership {
            role: Role::Viewer.into(),
            ..bobs.clone()
        }),
        ..Default::default()
    };
    let token = admin
        .asks(demoted)
        .await
        .expect("changed")
        .consistency_token;
    let request = issuer::IssueCredentialRequest {
        managed_identity_id: deployer.clone(),
        consistency_token: token,
    };
    let asked = dispatcher.with_token(&opened.token);
    refused(
        asked.asks(request.clone()).await,
        Code::FailedPrecondition,
        "PRINCIPAL_NOT_MEMBER",
    );
    let nearer = membership("dev/bob", Role::Deployer, &web);
    let token = admin.asks(nearer).await.expect("granted").consistency_token;
    let request = issuer::IssueCredentialRequest {
        consistency_token: token,
        ..request
    };
    asked.asks(request).await.expect("issued again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_are_on_the_record_once() {
    let world = World::start().await;
    let admin = world.admin();
    let (deployer, web) = workspace(&admin).await;
    let spare = admin.creates_identity("acme/spare").await.id;
    admin.creates_group("other").await;
    let foreign = admin.creates_identity("other/deployer").await.id;
    let opened = admin.opens_job(&web).await;
    let missing = [
        "mi_01h455vb4pex5vsknk084sn02q",
        "trn:managed_identity:acme/none",
    ];
    for _ in 0..5 {
        let refusal = admin.asks_as(&opened.token, &spare).await;
        refused(refusal, Code::FailedPrecondition, "NOT_ASSIGNED");
        not_found(admin.asks_as(&opened.token, &foreign).await);
        for missing in missing {
            not_found(admin.asks_as(&opened.token, missing).await);
        }
        // Not a question that could be decided.
        invalid(
            admin.asks_as(&opened.token, "?").await,
            &["managed_identity_id"],
        );
    }
    let finish = issuer::FinishJobRequest::default();
    let job = admin.with_token(&opened.token);
    job.asks(finish).await.expect("finished");
    for _ in 0..5 {
        let refusal = admin.asks_as(&opened.token, &deployer).await;
        refused(refusal, Code::FailedPrecondition, "JOB_FINISHED");
    }
    let recorded = refusals(&world).await;
    let known: Vec<_> = recorded
        .iter()
        .map(|refusal| {
            (
                refusal.managed_identity_id.as_str(),
                refusal.requested_identity.as_str(),
                refusal.reasons.join(","),
            )
        })
        .collect();
    let wanted = [
        (spare.as_str(), "", "NOT_ASSIGNED"),
        // Like those: who reads the record of the workspace may not know of it either.
        ("", &foreign, "IDENTITY_NOT_FOUND"),
        ("", missing[0], "IDENTITY_NOT_FOUND"),
        ("", missing[1], "IDENTITY_NOT_FOUND"),
        (&deployer, "", "JOB_FINISHED"),
    ];
    assert_eq!(
        known,
        wanted.map(|(id, named, reasons)| (id, named, reasons.to_owned()))
    );
    for refusal in recorded {
        assert_eq!(refusal.stage(), opened.job.stage());
        assert!(refusal.revision.starts_with("namespace="), "{refusal:?}");
        assert_eq!(
            (refusal.job_id, refusal.workspace_id),
            (opened.job.id.clone(), web.clone())
        );
        assert!(refusal.refuse_time.is_some());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_decision_is_on_the_record() {
    let world = World::start().await;
    let admin = world.admin();
    let (deployer, web) = workspace(&admin).await;
    let opened = admin.opens_job(&web).await;
    for _ in 0..2 {
        let unassigned = admin.asks(unassignment(&deployer, &web)).await;
        let request = issuer::IssueCredentialRequest {
            consistency_token: unassigned.expect("unassigned").consistency_token,
            ..e2e::user::credential(&deployer)
        };
        refused(
            admin.with_token(&opened.token).asks(request).await,
            Code::FailedPrecondition,
            "NOT_ASSIGNED",
        );
        let request = issuer::IssueCredentialRequest {
            consistency_token: admin.assigns(&deployer, &web).await,
            ..e2e::user::credential(&deployer)
        };
        let issued = admin.with_token(&opened.token).asks(request).await;
        issued.expect("issued");
    }
    let log = world.log(Service::Issuer).await;
    let decisions = log.iter().filter_map(|event| {
        let (_, name) = event.event_type.rsplit_once(".Credential")?;
        Some(name)
    });
    assert_eq!(
        decisions.collect::<Vec<_>>(),
        ["Refused", "Issued", "Refused", "Issued"]
    );
    let last = log.last().expect("an event");
    let issued = issuer::CredentialIssued::decode(last.payload.as_slice());
    assert_eq!(issued.expect("an event").stage(), opened.job.stage());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_reason_is_told() {
    let world = World::start().await;
    let admin = world.admin();
    let (deployer, web) = workspace(&admin).await;
    let opened = admin.opens_job(&web).await;
    admin.restricts(&deployer, &["dev/somebody-else"]).await;
    let unassigned = admin.asks(unassignment(&deployer, &web)).await;
    let request = issuer::IssueCredentialRequest {
        consistency_token: unassigned.expect("unassigned").consistency_token,
        ..e2e::user::credential(&deployer)
    };
    let status = admin.with_token(&opened.token).asks(request).await;
    let status = status.expect_err("refused");
    let told: Vec<_> = obstacles(&status)
        .into_iter()
        .map(|(what, _)| what)
        .collect();
    assert_eq!(told, ["NOT_ASSIGNED", "RULES_REFUSED"]);
    assert_eq!(reason(&status), "NOT_ASSIGNED");
    let recorded = refusals(&world).await;
    assert_eq!(recorded[0].reasons, told);
    // At that revision, the explanation says the same.
    let explain = issuer::ExplainCredentialRequest {
        workspace_id: web,
        managed_identity_id: deployer,
        job_id: opened.job.id,
        revision: recorded[0].revision.clone(),
        ..Default::default()
    };
    let explained = admin.asks(explain).await.expect("explained").findings;
    let explained = explained.into_iter().map(|finding| finding.reason);
    let explained: Vec<_> = explained.filter(|reason| !reason.is_empty()).collect();
    assert_eq!(explained, told);
}

/// There is nothing to be refused for, and the job is refused all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_is_over_is_refused_with_nothing_assigned_too() {
    let world = World::start().await;
    let admin = world.admin();
    let worker = world.user("worker");
    admin.creates_group("acme").await;
    let web = admin.creates_workspace("acme/web").await.id;
    let gone = admin.creates_workspace("acme/gone").await.id;
    let works = admin.grants(&worker, Role::Deployer, &web).await;
    let of_worker = opens(&admin, on_behalf(&web, "user:dev/worker")).await;
    let of_worker = of_worker.expect("opened");
    let (finished, lost) = (admin.opens_job(&web).await, admin.opens_job(&gone).await);
    let all = |token: &str| {
        let request = issuer::IssueCredentialsRequest::default();
        let job = admin.with_token(token);
        async move { job.asks(request).await }
    };
    for job in [&of_worker, &finished, &lost] {
        let answer = all(&job.token).await.expect("there are none");
        assert_eq!((answer.credentials, answer.refusals), (vec![], vec![]));
    }
    let finish = issuer::FinishJobRequest::default();
    let finisher = admin.with_token(&finished.token);
    finisher.asks(finish).await.expect("finished");
    let delete = namespace::DeleteMembershipRequest {
        id: works.id,
        ..Default::default()
    };
    admin.asks(delete).await.expect("deleted");
    let delete = namespace::DeleteWorkspaceRequest {
        id: gone.clone(),
        ..Default::default()
    };
    admin.asks(delete).await.expect("deleted");
    for (job, code, reason) in [
        (&finished, Code::FailedPrecondition, "JOB_FINISHED"),
        (&of_worker, Code::FailedPrecondition, "PRINCIPAL_NOT_MEMBER"),
        (&lost, Code::FailedPrecondition, "WORKSPACE_DELETED"),
    ] {
        // Without a token of the change, it takes a moment.
        let status = eventually(async || all(&job.token).await.err().ok_or("not yet")).await;
        refused(Err::<(), _>(status), code, reason);
    }
    let recorded = refusals(&world).await;
    let recorded = recorded
        .iter()
        .map(|refusal| (refusal.workspace_id.as_str(), refusal.reasons.join(",")));
    let wanted = [
        (web.as_str(), "JOB_FINISHED"),
        (&web, "PRINCIPAL_NOT_MEMBER"),
        (&gone, "WORKSPACE_DELETED"),
    ];
    assert_eq!(
        recorded.collect::<Vec<_>>(),
        wanted.map(|(id, reason)| (id, reason.to_owned()))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_credentials_of_a_workspace_come_at_once() {
    let world = World::start().await;
    let admin = world.admin();
    let (deployer, web) = workspace(&admin).await;
    let opened = admin.opens_job(&web).await;
    let mut request = e2e::user::aws_identity("acme/cluster");
    let kubernetes = identity::KubernetesConfiguration {
        audience: "cluster".to_owned(),
    };
    let kind = identity::configuration::Type::Kubernetes(kubernetes);
    request
        .managed_identity
        .get_or_insert_default()
        .configuration = Some(identity::Configuration { r#type: Some(kind) });
    let made = admin.asks(request).await.expect("made");
    let cluster = made.managed_identity.expect("the identity").id;
    admin.assigns(&cluster, &web).await;
    let job = admin.with_token(&opened.token);
    let before = world.log(Service::Issuer).await.len();
    let answer = job
        .asks(issuer::IssueCredentialsRequest::default())
        .await
        .expect("issued");
    assert_eq!(answer.refusals, []);
    let mut ids: Vec<_> = answer
        .credentials
        .iter()
        .map(|credential| credential.managed_identity_id.clone())
        .collect();
    ids.sort();
    let mut wanted = [deployer, cluster];
    wanted.sort();
    assert_eq!(ids, wanted);
    for credential in &answer.credentials {
        let verified =
            relying_party::verify(&world.issuer_url(), &credential.audience, &credential.token)
                .await
                .expect("it verifies");
        assert_eq!(
            verified.claims["sub"],
            credential.managed_identity_id.as_str()
        );
        assert_eq!(verified.claims["jti"], credential.token_id.as_str());
        let revision = verified.claims["tharsis_revision"]
            .as_str()
            .expect("a text");
        assert!(revision.starts_with("namespace=") && revision.contains(",identity="));
    }
    let audit = &world.log(Service::Issuer).await[before..];
    let audited: Vec<_> = audit
        .iter()
        .map(|event| {
            issuer::CredentialIssued::decode(event.payload.as_slice())
                .expect("an event")
                .token_id
        })
        .collect();
    let issued: Vec<_> = answer
        .credentials
        .iter()
        .map(|issued| issued.token_id.clone())
        .collect();
    assert_eq!(audited, issued);
}

/// What is assigned, and what of it is refused, is that of each request, however much is remembered from the one before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_asks_for_all_again_gets_what_is_assigned_by_then() {
    let world = World::start().await;
    let admin = world.admin();
    admin.creates_group("acme").await;
    let web = admin.creates_workspace("acme/web").await.id;
    let mut made = vec![];
    // A workspace has one of a type.
    for (name, configuration) in example::identities() {
        let path = format!("acme/{name}");
        made.push(admin.registers(&path, configuration).await.id);
    }
    let [first, second, third, ..] = made.as_slice() else {
        panic!("three types: {made:?}");
    };
    admin.assigns(first, &web).await;
    let opened = admin.opens_job(&web).await;
    let job = admin.with_token(&opened.token);
    let asks = async |consistency_token: &str| {
        let all = issuer::IssueCredentialsRequest {
            consistency_token: consistency_token.to_owned(),
        };
        let answer = job.asks(all).await?;
        let issued = answer.credentials.into_iter();
        let mut issued: Vec<_> = issued.map(|it| it.managed_identity_id).collect();
        issued.sort();
        let refusals = answer.refusals.into_iter();
        let refusals: Vec<_> = refusals
            .map(|it| (it.managed_identity_id, it.reasons.join(",")))
            .collect();
        Ok::<_, Status>((issued, refusals))
    };
    let only = |identities: &[String]| {
        let mut ids = identities.to_vec();
        ids.sort();
        (ids, vec![])
    };
    for _ in 0..2 {
        assert_eq!(asks("").await.expect("issued"), only(&made[..1]));
    }
    for count in [2, 3] {
        let token = admin.assigns(&made[count - 1], &web).await;
        for _ in 0..2 {
            assert_eq!(asks(&token).await.expect("issued"), only(&made[..count]));
        }
    }
    let taken = admin.asks(unassignment(first, &web)).await;
    let token = taken.expect("unassigned").consistency_token;
    assert_eq!(asks(&token).await.expect("issued"), only(&made[1..3]));
    let rule = admin.asks(access_rule(second, &["dev/nobody"])).await;
    let token = rule.expect("made").consistency_token;
    let rules = vec![(second.clone(), "RULES_REFUSED".to_owned())];
    for _ in 0..2 {
        let answer = asks(&token).await.expect("issued");
        assert_eq!(answer, (vec![third.clone()], rules.clone()));
    }
    let delete = identity::DeleteManagedIdentityRequest {
        id: second.clone(),
        force: true,
        ..Default::default()
    };
    let deleted = admin.asks(delete).await.expect("deleted");
    for _ in 0..2 {
        let answer = asks(&deleted.consistency_token).await;
        assert_eq!(answer.expect("issued"), only(&made[2..3]));
    }
    admin.asks(cancellation(&opened)).await.expect("cancelled");
    refused(asks("").await, Code::FailedPrecondition, "JOB_CANCELLED");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_remembered_for_all_does_not_outlive_membership_or_workspace() {
    let world = World::start().await;
    let admin = world.admin();
    let (_, web) = workspace(&admin).await;
    let worker = world.user("worker");
    let works = admin.grants(&worker, Role::Deployer, &web).await.id;
    let of_worker = opens(&admin, on_behalf(&web, "user:dev/worker")).await;
    let of_worker = of_worker.expect("opened").token;
    let of_admin = admin.opens_job(&web).await.token;
    let asks = async |job: &str, consistency_token: &str| {
        let all = issuer::IssueCredentialsRequest {
            consistency_token: consistency_token.to_owned(),
        };
        admin.with_token(job).asks(all).await
    };
    for job in [&of_worker, &of_admin, &of_worker, &of_admin] {
        let answer = asks(job, "").await.expect("issued");
        assert_eq!((answer.credentials.len(), answer.refusals), (1, vec![]));
    }
    let delete = namespace::DeleteMembershipRequest {
        id: works,
        ..Default::default()
    };
    let deleted = admin.asks(delete).await.expect("deleted");
    let answer = asks(&of_worker, &deleted.consistency_token).await;
    refused(answer, Code::FailedPrecondition, "PRINCIPAL_NOT_MEMBER");
    let answer = asks(&of_admin, &deleted.consistency_token).await;
    assert_eq!(answer.expect("issued").credentials.len(), 1);
    let delete = namespace::DeleteWorkspaceRequest {
        id: web,
        ..Default::default()
    };
    let deleted = admin.asks(delete).await.expect("deleted");
    refused(
        asks(&of_admin, &deleted.consistency_token).await,
        Code::FailedPrecondition,
        "WORKSPACE_DELETED",
    );
    // Whoever runs it is told, and may end it.
    let heartbeat = issuer::HeartbeatJobRequest {
        consistency_token: deleted.consistency_token,
        ..Default::default()
    };
    refused(
        admin.with_token(&of_admin).asks(heartbeat).await,
        Code::FailedPrecondition,
        "WORKSPACE_DELETED",
    );
    let finish = issuer::FinishJobRequest::default();
    let finished = admin.with_token(&of_admin).asks(finish).await;
    finished.expect("finished");
}

/// A repeated request gets a token as long as a new one would.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_request_gets_no_token_for_what_may_not_be_done_any_more() {
    let world = World::start().await;
    let admin = world.admin();
    let (_, web) = workspace(&admin).await;
    let worker = world.user("worker");
    let works = admin.grants(&worker, Role::Deployer, &web).await.id;
    let with_id = |request| issuer::OpenJobRequest {
        request_id: unique_id().to_string(),
        ..request
    };
    let of_worker = with_id(on_behalf(&web, "user:dev/worker"));
    let requests = [
        &of_worker,
        &with_id(job(&web)),
        &with_id(job(&web)),
        &with_id(job(&web)),
    ];
    let mut jobs = vec![];
    for request in requests {
        let opened = opens(&admin, request.clone()).await.expect("opened");
        let again = opens(&admin, request.clone()).await.expect("it lives");
        assert_eq!(again.job, opened.job);
        jobs.push(opened);
    }
    let delete = namespace::DeleteMembershipRequest {
        id: works,
        ..Default::default()
    };
    let deleted = admin.asks(delete).await.expect("deleted");
    let finish = issuer::FinishJobRequest::default();
    let finished = admin.with_token(&jobs[1].token).asks(finish).await;
    finished.expect("finished");
    admin.asks(cancellation(&jobs[2])).await.expect("cancelled");
    let reasons = ["PRINCIPAL_NOT_MEMBER", "JOB_FINISHED", "JOB_CANCELLED"];
    for (request, reason) in requests.into_iter().zip(reasons) {
        for validate_only in [false, true] {
            let again = issuer::OpenJobRequest {
                consistency_token: deleted.consistency_token.clone(),
                validate_only,
                ..request.clone()
            };
            refused(admin.asks(again).await, Code::FailedPrecondition, reason);
        }
    }
    opens(&admin, requests[3].clone()).await.expect("it lives");
    let delete = namespace::DeleteWorkspaceRequest {
        id: web,
        ..Default::default()
    };
    let deleted = admin.asks(delete).await.expect("deleted");
    let again = issuer::OpenJobRequest {
        consistency_token: deleted.consistency_token,
        ..requests[3].clone()
    };
    not_found(admin.asks(again).await);
}

/// Where another workspace has its place by now, it is still the workspace of the job that counts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_request_gets_no_token_for_a_workspace_that_was_moved_out_of_reach() {
    let world = World::start().await;
    let (admin, alice) = (world.admin(), world.user("alice"));
    let (_, web) = workspace(&admin).await;
    admin.creates_group("other").await;
    admin.grants(&alice, Role::Deployer, "trn:group:acme").await;
    let request = issuer::OpenJobRequest {
        request_id: unique_id().to_string(),
        ..job("trn:workspace:acme/web")
    };
    opens(&alice, request.clone()).await.expect("opened");
    admin.moves_workspace(&web, "trn:group:other").await;
    let request_workspace = e2e::user::workspace("acme/web");
    let made = admin.asks(request_workspace).await.expect("made");
    let again = issuer::OpenJobRequest {
        consistency_token: made.consistency_token,
        ..request
    };
    not_found(alice.asks(again).await);
}
