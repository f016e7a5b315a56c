//! Who gets a credential, and who no longer does.

use bed::eventually;
use e2e::refusal::{invalid, not_found, reason, refused};
use e2e::user::{credential, job, unassignment};
use e2e::world::Setup;
use e2e::{Service, World};
use proto::access::v1::Role;
use proto::issuer::v1 as issuer;
use tonic::Code;

use crate::revocations::Scene;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_jobs_own_token_gets_its_credentials() {
    let world = World::start().await;
    let admin = world.admin();
    let scene = Scene::set(&admin, "acme").await;
    let other = Scene::set(&admin, "other").await;
    let credential_of_the_job = scene
        .gets_credential(&admin, "")
        .await
        .expect("a credential")
        .token;

    // Another job does not even learn that the identity exists.
    not_found(admin.asks_as(&other.job.token, &scene.identity.id).await);
    not_found(admin.asks_as(&other.job.token, &scene.identity.trn).await);
    // Nor whether anything else does: what is no identity is refused alike, there or not.
    for named in ["trn:group:other", "trn:group:nowhere"] {
        invalid(
            admin.asks_as(&scene.job.token, named).await,
            &["managed_identity_id"],
        );
    }
    // A credential for a cloud is no key to ours.
    refused(
        admin
            .asks_as(&credential_of_the_job, &scene.identity.id)
            .await,
        Code::Unauthenticated,
        "TOKEN_TYPE_REFUSED",
    );
    // Nor is a person's token, an administrator's included.
    refused(
        admin.asks(credential(&scene.identity.id)).await,
        Code::PermissionDenied,
        "PERMISSION_DENIED",
    );
    // An inherited identity that is not assigned is known, and refused.
    let spare = admin.creates_identity("acme/spare").await;
    refused(
        admin.asks_as(&scene.job.token, &spare.id).await,
        Code::FailedPrecondition,
        "NOT_ASSIGNED",
    );

    // The job's token opens nothing else.
    let job = admin.with_token(&scene.job.token);
    let get = issuer::GetJobRequest {
        id: scene.job.job.id.clone(),
        ..Default::default()
    };
    not_found(job.asks(get).await);
    not_found(job.asks(e2e::user::job(&scene.workspace.id)).await);
    for service in [Service::Namespace, Service::Identity, Service::Projector] {
        let outcome = job
            .calls(service, proto::eventlog::v1::AwaitRequest::default())
            .await;
        let status = outcome.expect_err("no token of theirs");
        assert_eq!(
            (status.code(), reason(&status).as_str()),
            (Code::Unauthenticated, "TOKEN_ISSUER_UNKNOWN")
        );
    }
    let head = proto::eventlog::v1::GetHeadRequest::default();
    refused(
        job.calls(Service::Issuer, head).await,
        Code::PermissionDenied,
        "PERMISSION_DENIED",
    );
    // A membership of the job's name would not make it a user.
    let owner = e2e::user::membership(
        &format!("dev/{}", scene.job.job.id),
        Role::Owner,
        &scene.group.id,
    );
    admin.asks(owner).await.expect("a membership");
    let get = issuer::GetJobRequest {
        id: scene.job.job.id.clone(),
        ..Default::default()
    };
    not_found(job.asks(get).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_is_over_gets_nothing() {
    let world = World::start().await;
    let admin = world.admin();
    let scene = Scene::set(&admin, "acme").await;
    let mut request = job(&scene.workspace.id);
    let wanted = request.job.as_mut().expect("a job");
    wanted.max_duration = Some(prost_types::Duration {
        seconds: 1,
        nanos: 0,
    });
    let opened = admin.asks(request).await.expect("opened");
    let expires = opened.job.and_then(|job| job.expire_time).expect("an end");
    let mut lifetimes = Vec::new();
    // The token itself is taken for the leeway of clocks longer: it is the job's end that counts.
    let status =
        eventually(
            async || match admin.asks_as(&opened.job_token, &scene.identity.id).await {
                Ok(issued) => {
                    lifetimes.push(issued.expire_time);
                    Err("it is not over yet")
                }
                Err(status) => Ok(status),
            },
        )
        .await;
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::FailedPrecondition, "JOB_OVER")
    );
    assert!(
        lifetimes.iter().all(|end| *end == Some(expires)),
        "no token outlives its job"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_issuer_that_does_not_know_better_refuses() {
    let mut world = Setup::default().staleness_bound(2).start().await;
    let admin = world.admin();
    let scene = Scene::set(&admin, "acme").await;
    scene
        .gets_credential(&admin, "")
        .await
        .expect("a credential");
    world.stops(Service::Namespace).await;
    eventually(async || {
        let outcome = scene.gets_credential(&admin, "").await;
        let status = outcome.err().ok_or("it is not stale yet")?;
        assert_eq!(
            (status.code(), reason(&status).as_str()),
            (Code::Unavailable, "REPLICA_STALE"),
            "{status:?}"
        );
        // On a busy machine the other log may be late for a moment too.
        let of_namespace = status.message().contains("namespace");
        of_namespace.then_some(()).ok_or("another log is stale")
    })
    .await;
    world.starts(Service::Namespace).await;
    eventually(async || scene.gets_credential(&admin, "").await).await;
}

/// What another process has issued meanwhile counts: the record must not end with that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_after_an_issue_is_on_the_record_whoever_issued() {
    let world = World::start().await;
    let sibling = world.runs_another_issuer().await;
    let admin = world.admin();
    let scene = Scene::set(&admin, "acme").await;
    let (identity, workspace) = (&scene.identity.id, &scene.workspace.id);
    let here = admin.with_token(&scene.job.token);
    let there = sibling.for_user(&here);
    let asked = |token: &str| issuer::IssueCredentialRequest {
        consistency_token: token.to_owned(),
        ..credential(identity)
    };
    for _ in 0..2 {
        let taken = admin.asks(unassignment(identity, workspace)).await;
        let taken = taken.expect("unassigned").consistency_token;
        for _ in 0..3 {
            let refusal = here.asks(asked(&taken)).await;
            refused(refusal, Code::FailedPrecondition, "NOT_ASSIGNED");
        }
        let given = admin.assigns(identity, workspace).await;
        there.asks(asked(&given)).await.expect("issued");
    }
    let recorded = world.log(Service::Issuer).await;
    let recorded = recorded
        .iter()
        .filter(|event| event.stream_id.ends_with(&scene.job.job.id))
        .map(|event| event.event_type.rsplit('.').next().unwrap_or_default());
    assert_eq!(
        recorded.collect::<Vec<_>>(),
        [
            "JobOpened",
            "CredentialRefused",
            "CredentialIssued",
            "CredentialRefused",
            "CredentialIssued"
        ]
    );
}

/// By our clock a token would hold when nobody means it to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_clocks_disagree_nothing_is_issued() {
    let mut world = World::start().await;
    let admin = world.admin();
    let scene = Scene::set(&admin, "acme").await;
    let issued = scene.gets_credential(&admin, "").await;
    issued.expect("issued");
    // Whoever connects from now on finds a clock that can be set.
    world.stops(Service::Issuer).await;
    let pool = world.database(Service::Issuer).pool().clone();
    let clock = "CREATE TABLE clock AS SELECT interval '0' AS wrong_by;
         GRANT SELECT ON clock TO PUBLIC;
         CREATE FUNCTION public.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE
             AS 'SELECT pg_catalog.clock_timestamp() + wrong_by FROM public.clock';
         DO $$ BEGIN
             EXECUTE format('ALTER DATABASE %I SET search_path = public, pg_catalog', current_database());
         END $$";
    let made = sqlx::raw_sql(clock).execute(&pool).await;
    made.expect("a clock");
    world.starts(Service::Issuer).await;
    eventually(async || scene.gets_credential(&admin, "").await).await;
    let sets = async |wrong_by: &str| {
        let set = sqlx::query("UPDATE clock SET wrong_by = $1::text::interval").bind(wrong_by);
        set.execute(&pool).await.expect("the clock is set");
    };
    for wrong_by in ["-1 hour", "1 hour"] {
        sets(wrong_by).await;
        // Also the first ones, before the issuer has looked at the clock.
        let opened = admin.asks(job(&scene.workspace.id)).await;
        refused(opened, Code::Unavailable, "CLOCK_OFF");
        for _ in 0..2 {
            let refusal = scene.gets_credential(&admin, "").await;
            refused(refusal, Code::Unavailable, "CLOCK_OFF");
        }
        eventually(async || {
            let opened = admin.asks(job(&scene.workspace.id)).await;
            let refusal = opened.err().ok_or("it is opened")?;
            (reason(&refusal) == "CLOCK_OFF")
                .then_some(())
                .ok_or("something else")
        })
        .await;
        sets("0").await;
        eventually(async || scene.gets_credential(&admin, "").await).await;
    }
}
