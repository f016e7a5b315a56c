//! Who gets a credential, and who no longer does.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bed::eventually;
use e2e::refusal::{not_found, reason, refused};
use e2e::user::{OpenedJob, access_rule, credential, job, mask, membership, unassignment};
use e2e::world::Setup;
use e2e::{Service, User, World};
use proto::access::v1::Role;
use proto::identity::v1 as identity;
use proto::issuer::v1 as issuer;
use proto::namespace::v1 as namespace;
use tokio::task::JoinSet;
use tonic::{Code, Status};

/// What a job needs: everything below a group of its own.
struct Scene {
    group: namespace::Group,
    workspace: namespace::Workspace,
    identity: identity::ManagedIdentity,
    membership: namespace::Membership,
    job: OpenedJob,
}

impl Scene {
    /// In the group `name`, which holds nothing else.
    async fn set(admin: &User, name: &str) -> Self {
        let group = admin.creates_group(name).await;
        let workspace = admin.creates_workspace(&format!("{name}/web")).await;
        let identity = admin.creates_identity(&format!("{name}/deployer")).await;
        admin.assigns(&identity.id, &workspace.id).await;
        // On behalf of somebody whose role can be lost.
        let worker = membership("dev/worker", Role::Deployer, &group.id);
        let made = admin.asks(worker).await.expect("a membership is made");
        let mut request = job(&workspace.id);
        let wanted = request.job.get_or_insert_default();
        "user:dev/worker".clone_into(&mut wanted.principal);
        let opened = admin.asks(request).await.expect("a job is opened");
        let job = OpenedJob {
            job: opened.job.expect("the job"),
            token: opened.job_token,
        };
        Self {
            group,
            workspace,
            identity,
            membership: made.membership.expect("the membership"),
            job,
        }
    }

    async fn gets_credential(
        &self,
        user: &User,
        consistency_token: &str,
    ) -> Result<issuer::IssueCredentialResponse, Status> {
        let request = issuer::IssueCredentialRequest {
            consistency_token: consistency_token.to_owned(),
            ..credential(&self.identity.id)
        };
        user.with_token(&self.job.token).asks(request).await
    }
}

/// How an identity is taken from a job.
#[derive(Clone, Copy, Debug)]
enum Revocation {
    Unassigned,
    WorkspaceDeleted,
    GroupDeleted,
    IdentityDeleted,
    MembershipLost,
    RuleMade,
    Masked,
    JobCancelled,
}

impl Revocation {
    const ALL: [Self; 8] = [
        Self::Unassigned,
        Self::WorkspaceDeleted,
        Self::GroupDeleted,
        Self::IdentityDeleted,
        Self::MembershipLost,
        Self::RuleMade,
        Self::Masked,
        Self::JobCancelled,
    ];

    /// Answers with the consistency token.
    async fn happens(self, user: &User, scene: &Scene) -> String {
        match self {
            Self::Unassigned => {
                let request = unassignment(&scene.identity.id, &scene.workspace.id);
                user.asks(request)
                    .await
                    .expect("unassigned")
                    .consistency_token
            }
            Self::WorkspaceDeleted => {
                let request = namespace::DeleteWorkspaceRequest {
                    id: scene.workspace.id.clone(),
                    ..Default::default()
                };
                user.asks(request).await.expect("deleted").consistency_token
            }
            Self::GroupDeleted => user.deletes_group(&scene.group.id).await,
            Self::IdentityDeleted => {
                let request = identity::DeleteManagedIdentityRequest {
                    id: scene.identity.id.clone(),
                    force: true,
                    ..Default::default()
                };
                user.asks(request).await.expect("deleted").consistency_token
            }
            Self::MembershipLost => {
                let request = namespace::DeleteMembershipRequest {
                    id: scene.membership.id.clone(),
                    ..Default::default()
                };
                user.asks(request).await.expect("deleted").consistency_token
            }
            Self::RuleMade => {
                let request = access_rule(&scene.identity.id, &["dev/somebody-else"]);
                user.asks(request).await.expect("made").consistency_token
            }
            Self::Masked => {
                let request = mask(&scene.workspace.id);
                user.asks(request).await.expect("made").consistency_token
            }
            Self::JobCancelled => {
                let request = issuer::CancelJobRequest {
                    id: scene.job.job.id.clone(),
                    ..Default::default()
                };
                user.asks(request)
                    .await
                    .expect("cancelled")
                    .consistency_token
            }
        }
    }

    /// Whether this is what a job is answered from then on.
    fn refuses_with(self, status: &Status) -> bool {
        let reason = reason(status);
        // The assignment ends too, a moment later; and of a deletion in another log, that may be seen first.
        let ends = matches!(
            self,
            Self::Masked | Self::WorkspaceDeleted | Self::GroupDeleted
        );
        let has_ended = ends && reason == "NOT_ASSIGNED";
        has_ended || (status.code(), reason.as_str()) == self.refusal()
    }

    fn refusal(self) -> (Code, &'static str) {
        match self {
            Self::RuleMade => (Code::FailedPrecondition, "RULES_REFUSED"),
            Self::Masked => (Code::FailedPrecondition, "MASKED"),
            Self::Unassigned => (Code::FailedPrecondition, "NOT_ASSIGNED"),
            Self::MembershipLost => (Code::FailedPrecondition, "PRINCIPAL_NOT_MEMBER"),
            Self::JobCancelled => (Code::FailedPrecondition, "JOB_CANCELLED"),
            Self::WorkspaceDeleted | Self::GroupDeleted | Self::IdentityDeleted => {
                (Code::NotFound, "RESOURCE_NOT_FOUND")
            }
        }
    }
}

/// While jobs ask without pause, the identity is taken from them. No request that began after the revoking rpc had
/// answered, and presents its consistency token, gets a credential.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_revoked_is_not_issued_any_more() {
    let world = World::start().await;
    // The token alone has to do it, not the wait for visibility.
    let admin = world.admin();
    let hasty = admin.in_a_hurry();
    for revocation in Revocation::ALL {
        for round in 0..2 {
            let name = format!("{revocation:?}{round}").to_ascii_lowercase();
            let scene = Arc::new(Scene::set(&admin, &name).await);
            let revoked: Arc<Mutex<String>> = Arc::default();
            let enough = Arc::new(AtomicBool::new(false));
            let mut askers = JoinSet::new();
            for _ in 0..3 {
                let (scene, revoked, enough, admin) = (
                    Arc::clone(&scene),
                    Arc::clone(&revoked),
                    Arc::clone(&enough),
                    admin.clone(),
                );
                askers.spawn(async move {
                    let (mut before, mut after) = (0, vec![]);
                    while !enough.load(Ordering::Relaxed) {
                        let token = revoked.lock().expect("not poisoned").clone();
                        let outcome = scene.gets_credential(&admin, &token).await;
                        if token.is_empty() {
                            before += usize::from(outcome.is_ok());
                        } else {
                            after.push(outcome);
                            if after.len() == 3 {
                                break;
                            }
                        }
                    }
                    (before, after)
                });
            }
            // Some have been issued, and are in full flow.
            eventually(async || {
                let audit = world.log(Service::Issuer).await;
                let issued = audit
                    .iter()
                    .filter(|event| event.stream_id.ends_with(&scene.job.job.id))
                    .count();
                if issued > 6 {
                    Ok(())
                } else {
                    Err(format!("{issued} were issued"))
                }
            })
            .await;
            let token = revocation.happens(&hasty, &scene).await;
            *revoked.lock().expect("not poisoned") = token;
            let outcomes = askers.join_all().await;
            enough.store(true, Ordering::Relaxed);
            assert!(outcomes.iter().map(|(before, _)| before).sum::<usize>() > 0);
            for outcome in outcomes.into_iter().flat_map(|(_, after)| after) {
                let status = outcome.expect_err("it was revoked");
                let refused = revocation.refuses_with(&status);
                assert!(refused, "{revocation:?}: {status:?}");
            }
        }
    }
}

/// Without a consistency token it takes a moment, and no longer while NATS is away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_revoked_is_refused_soon_without_a_token_too() {
    let mut world = Setup::default().own_nats().start().await;
    let admin = world.admin();
    let hasty = admin.in_a_hurry();
    let mut scenes = Vec::new();
    for nats in ["up", "down"] {
        for revocation in Revocation::ALL {
            let name = format!("{revocation:?}-{nats}").to_ascii_lowercase();
            let scene = Scene::set(&admin, &name).await;
            eventually(async || scene.gets_credential(&admin, "").await).await;
            scenes.push(scene);
        }
    }
    let mut scenes = scenes.into_iter();
    for nats in ["up", "down"] {
        if nats == "down" {
            world.nats().kill();
        }
        let mut moments = Vec::new();
        for (revocation, scene) in Revocation::ALL.into_iter().zip(&mut scenes) {
            revocation.happens(&hasty, &scene).await;
            let revoked = Instant::now();
            let status = eventually(async || {
                let issued = scene.gets_credential(&admin, "").await;
                issued.err().ok_or("it is still issued")
            })
            .await;
            moments.push(revoked.elapsed());
            let refused = revocation.refuses_with(&status);
            assert!(refused, "{revocation:?}: {status:?}");
        }
        // One alone may be late on a busy machine.
        moments.sort();
        let usual = moments[moments.len() / 2];
        assert!(usual < Duration::from_secs(1), "NATS {nats}: {moments:?}");
    }
}

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
