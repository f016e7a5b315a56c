//! What an explanation says is what an issue does.

use std::collections::BTreeSet;

use bed::eventually;
use e2e::refusal::{invalid, not_found, refused};
use e2e::user::{User, access_rule, unassignment, workspace_move};
use e2e::world::Setup;
use e2e::{Service, World, relying_party};
use eventlog::ConsistencyToken;
use proto::access::v1::Role;
use proto::identity::v1 as identity;
use proto::issuer::v1::{self as issuer, Check, Stage};
use proto::namespace::v1 as namespace;
use tonic::Code;

fn question(workspace: &str, identity: &str) -> issuer::ExplainCredentialRequest {
    issuer::ExplainCredentialRequest {
        workspace_id: workspace.to_owned(),
        managed_identity_id: identity.to_owned(),
        stage: Stage::Apply.into(),
        ..Default::default()
    }
}

/// The checks, each with the reason why it does not hold.
fn verdicts(answer: &issuer::ExplainCredentialResponse) -> Vec<(Check, &str)> {
    for finding in &answer.findings {
        assert_eq!(finding.holds, finding.reason.is_empty());
        assert!(!finding.description.is_empty());
    }
    let findings = answer.findings.iter();
    findings
        .map(|finding| (finding.check(), finding.reason.as_str()))
        .collect()
}

async fn asks(
    user: &User,
    request: issuer::ExplainCredentialRequest,
) -> issuer::ExplainCredentialResponse {
    user.asks(request).await.expect("explained")
}

/// A workspace with an identity, a deployer, bob, and a viewer.
struct Scene {
    admin: User,
    bob: User,
    viewer: User,
    web: String,
    deployer: String,
}

impl Scene {
    async fn set(world: &World) -> Self {
        let (admin, bob, viewer) = (world.admin(), world.user("bob"), world.user("viewer"));
        admin.creates_group("acme").await;
        let web = admin.creates_workspace("acme/web").await.id;
        let deployer = admin.creates_identity("acme/deployer").await.id;
        admin.assigns(&deployer, &web).await;
        admin.grants(&bob, Role::Deployer, &web).await;
        admin.grants(&viewer, Role::Viewer, &web).await;
        Self {
            admin,
            bob,
            viewer,
            web,
            deployer,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_check_is_explained() {
    let world = World::start().await;
    let Scene {
        bob,
        viewer,
        web,
        deployer,
        ..
    } = Scene::set(&world).await;
    let before = world.log(Service::Issuer).await.len();

    // For oneself, and for others.
    let bobs = asks(
        &bob,
        question(
            "trn:workspace:acme/web",
            "trn:managed_identity:acme/deployer",
        ),
    )
    .await;
    assert!(bobs.allowed && bobs.revision.starts_with("namespace="));
    assert_eq!(
        (bobs.principal.as_str(), bobs.stage()),
        ("user:dev/bob", Stage::Apply)
    );
    let all_hold = [
        (Check::Role, ""),
        (Check::Assignment, ""),
        (Check::Path, ""),
        (Check::Mask, ""),
        (Check::Rules, ""),
    ];
    assert_eq!(verdicts(&bobs), all_hold);
    let own = asks(&viewer, question(&web, &deployer)).await;
    assert!(!own.allowed);
    assert_eq!(
        verdicts(&own),
        [
            (Check::Role, "PRINCIPAL_NOT_MEMBER"),
            (Check::Assignment, ""),
            (Check::Path, ""),
            (Check::Mask, ""),
            (Check::Rules, ""),
        ]
    );
    for (principal, allowed) in [
        ("user:dev/bob", true),
        ("user:dev/viewer", false),
        ("user:dev/nobody", false),
        ("user:dev/admin", true),
    ] {
        let request = issuer::ExplainCredentialRequest {
            principal: principal.to_owned(),
            ..question(&web, &deployer)
        };
        assert_eq!(asks(&viewer, request).await.allowed, allowed, "{principal}");
    }
    assert_eq!(
        world.log(Service::Issuer).await.len(),
        before,
        "nothing is recorded"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_said_of_a_job_is_what_it_is_told() {
    let world = World::start().await;
    let Scene {
        admin,
        bob,
        viewer,
        web,
        deployer,
    } = Scene::set(&world).await;
    // Of a job: what it would be told itself.
    let job = bob.opens_job(&web).await;
    let of_job = issuer::ExplainCredentialRequest {
        job_id: job.job.id.clone(),
        stage: 0,
        ..question(&web, &deployer)
    };
    assert!(asks(&viewer, of_job.clone()).await.allowed);
    bob.asks_as(&job.token, &deployer).await.expect("issued");
    let token = admin.asks(unassignment(&deployer, &web)).await;
    let token = token.expect("unassigned").consistency_token;
    let finish = issuer::FinishJobRequest::default();
    bob.with_token(&job.token)
        .asks(finish)
        .await
        .expect("finished");
    let request = issuer::ExplainCredentialRequest {
        consistency_token: token,
        ..of_job.clone()
    };
    let refused = asks(&viewer, request).await;
    assert_eq!(
        verdicts(&refused),
        [
            (Check::Job, "JOB_FINISHED"),
            (Check::Role, ""),
            (Check::Assignment, "NOT_ASSIGNED"),
            (Check::Path, ""),
            (Check::Mask, ""),
            (Check::Rules, ""),
        ]
    );
    assert!(!refused.allowed);
}

/// One issuer of two knows of an event before the other does, and both decide on what the database has. Without NATS, they
/// ask the owners for it once a second.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_revision_of_a_credential_is_none_at_which_it_would_be_refused() {
    let mut world = Setup::default().own_nats().start().await;
    let Scene {
        admin,
        web,
        deployer,
        ..
    } = Scene::set(&world).await;
    let job = admin.opens_job(&web).await;
    let sibling = world.runs_another_issuer().await;
    let issuers = [admin.clone(), sibling.for_user(&admin)];
    for issuer in &issuers {
        eventually(async || issuer.asks_as(&job.token, &deployer).await).await;
    }
    world.nats().kill();
    for _ in 0..4 {
        let unassigned = admin.asks(unassignment(&deployer, &web)).await;
        unassigned.expect("unassigned");
        let assigned = admin.assigns(&deployer, &web).await;
        let assigned: ConsistencyToken = assigned.parse().expect("a token");
        let (_, head) = assigned
            .logs()
            .find(|(log, _)| *log == "identity")
            .expect("the log of assignments");
        // Whoever has read the assignment first, each that issues knows that it has.
        for issuer in &issuers {
            let issued = async || issuer.asks_as(&job.token, &deployer).await;
            let issued = eventually(issued).await;
            let token = relying_party::verify(&world.issuer_url(), "aws", &issued.token).await;
            let claims = token.expect("it verifies").claims;
            let revision = claims["tharsis_revision"].as_str().expect("it has one");
            let positions = edge::past::positions(revision);
            let position = positions.expect("positions")["identity"];
            assert!(position >= head.position, "{position} before {head:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_may_not_be_known_is_not_explained() {
    let world = World::start().await;
    let Scene {
        admin,
        bob,
        viewer,
        web,
        deployer,
    } = Scene::set(&world).await;
    let job = bob.opens_job(&web).await;
    let of_job = issuer::ExplainCredentialRequest {
        job_id: job.job.id,
        stage: 0,
        ..question(&web, &deployer)
    };
    // Who may not know of something learns nothing of it.
    not_found(world.user("nobody").asks(question(&web, &deployer)).await);
    admin.creates_group("other").await;
    let foreign = admin.creates_identity("other/deployer").await;
    not_found(viewer.asks(question(&web, &foreign.id)).await);
    // Nor from what is wrong beside it.
    let missing = "trn:managed_identity:other/none";
    let about = async |identity: &str| {
        let request = issuer::ExplainCredentialRequest {
            job_id: "job_01h455vb4pex5vsknk084sn02q".to_owned(),
            ..issuer::ExplainCredentialRequest {
                stage: 0,
                ..question(&web, identity)
            }
        };
        let refusal = viewer.asks(request).await.expect_err("no such job");
        (refusal.code(), refusal.message().to_owned())
    };
    assert_eq!(about(&foreign.trn).await, about(missing).await);
    let answer = asks(&admin, question(&web, &foreign.id)).await;
    assert_eq!(
        verdicts(&answer),
        [
            (Check::Role, ""),
            (Check::Assignment, "NOT_ASSIGNED"),
            (Check::Path, "NOT_INHERITED"),
            (Check::Mask, ""),
            (Check::Rules, ""),
        ]
    );
    let elsewhere = admin.creates_workspace("other/web").await;
    let of_another = issuer::ExplainCredentialRequest {
        workspace_id: elsewhere.id,
        ..of_job.clone()
    };
    not_found(admin.asks(of_another).await);

    invalid(
        viewer
            .asks(issuer::ExplainCredentialRequest {
                stage: 0,
                principal: "bob".to_owned(),
                ..question(&web, "?")
            })
            .await,
        &["managed_identity_id", "stage", "principal"],
    );
    invalid(
        viewer
            .asks(issuer::ExplainCredentialRequest {
                job_id: "?".to_owned(),
                principal: "user:dev/bob".to_owned(),
                ..question(&web, &deployer)
            })
            .await,
        &["stage", "principal", "job_id"],
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_may_not_be_known_any_more_is_not_explained_of_the_past() {
    let world = World::start().await;
    let (admin, viewer) = (world.admin(), world.user("viewer"));
    for path in ["hidden", "hidden/project", "acme"] {
        admin.creates_group(path).await;
    }
    let web = admin.creates_workspace("hidden/project/web").await.id;
    let had = admin.creates_identity("hidden/project/had").await;
    let other = admin.creates_identity("hidden/other").await;
    admin.assigns(&had.id, &web).await;
    admin.restricts(&had.id, &["dev/bob"]).await;
    let then = asks(&admin, question(&web, &had.id)).await.revision;
    admin.moves_workspace(&web, "trn:group:acme").await;
    admin.grants(&viewer, Role::Viewer, "trn:group:acme").await;
    let of_then = |identity: &str| issuer::ExplainCredentialRequest {
        revision: then.clone(),
        ..question(&web, identity)
    };
    // It was inherited; but who never saw the group is not told that it is there.
    not_found(viewer.asks(of_then(&other.id)).await);
    not_found(viewer.asks(of_then(&other.trn)).await);
    // Nor is it told what a workspace had there, and who might have it.
    for named in [&had.id, &had.trn] {
        not_found(viewer.asks(of_then(named)).await);
    }
    let answer = asks(&admin, of_then(&other.trn)).await;
    assert!(format!("{answer:?}").contains("hidden/other"), "{answer:?}");
    assert_eq!(asks(&admin, of_then(&had.id)).await.rules.len(), 1);
    // Who sees the group that it lay in is told.
    admin
        .grants(&viewer, Role::Viewer, "trn:group:hidden/project")
        .await;
    eventually(async || {
        let told = viewer.asks(of_then(&had.id)).await;
        match told {
            Ok(told) if told.rules.len() == 1 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    not_found(viewer.asks(of_then(&other.id)).await);
    // A group that was moved says nothing of where it was, to who sees it where it is; nor does what is gone.
    let inner = admin.creates_group("hidden/inner").await;
    let lost = admin.creates_identity("hidden/inner/lost").await;
    let app = admin.creates_workspace("hidden/inner/app").await.id;
    admin.assigns(&lost.id, &app).await;
    let then = asks(&admin, question(&app, &lost.id)).await.revision;
    let moved = admin.asks(namespace::MoveGroupRequest {
        id: inner.id,
        new_parent_id: "trn:group:acme".to_owned(),
        ..Default::default()
    });
    moved.await.expect("moved");
    let of_then = issuer::ExplainCredentialRequest {
        revision: then,
        ..question(&app, &lost.id)
    };
    not_found(viewer.asks(of_then.clone()).await);
    let deleted = admin.asks(identity::DeleteManagedIdentityRequest {
        id: lost.id,
        force: true,
        ..Default::default()
    });
    let consistency_token = deleted.await.expect("deleted").consistency_token;
    not_found(
        viewer
            .asks(issuer::ExplainCredentialRequest {
                consistency_token,
                ..of_then
            })
            .await,
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_a_past_revision_it_is_what_it_was_then() {
    let world = World::start().await;
    let scene = Scene::set(&world).await;
    let (admin, bob) = (&scene.admin, &scene.bob);
    admin.creates_group("other").await;
    let job = bob.opens_job(&scene.web).await;
    let issued = bob.asks_as(&job.token, &scene.deployer).await;
    let issued = issued.expect("a credential");
    let of_bob = |consistency_token: &str| issuer::ExplainCredentialRequest {
        principal: format!("user:{}", bob.principal()),
        consistency_token: consistency_token.to_owned(),
        ..question(&scene.web, &scene.deployer)
    };
    let mut explained = vec![asks(admin, of_bob(&issued.consistency_token)).await];
    let assignment_holds = |answer: &issuer::ExplainCredentialResponse| {
        let mut findings = answer.findings.iter();
        findings.any(|finding| finding.check() == Check::Assignment && finding.holds)
    };
    // What follows from a change has to have come, or it comes between the answer and its revision.
    let mut look = async |token: String, assigned: bool| {
        let settled = eventually(async || {
            let answer = asks(admin, of_bob(&token)).await;
            if assignment_holds(&answer) == assigned {
                Ok(answer)
            } else {
                Err(format!("{answer:?}"))
            }
        });
        explained.push(settled.await);
    };
    let rule = admin.asks(access_rule(&scene.deployer, &["dev/carol"]));
    let rule = rule.await.expect("made");
    look(rule.consistency_token, true).await;
    let delete = identity::DeleteAccessRuleRequest {
        id: rule.access_rule.expect("the rule").id,
        ..Default::default()
    };
    let deleted = admin.asks(delete).await.expect("deleted");
    look(deleted.consistency_token, true).await;
    let mask = admin.asks(e2e::user::mask(&scene.web)).await.expect("made");
    look(mask.consistency_token, false).await;
    let delete = identity::DeleteMaskRequest {
        id: mask.mask.expect("the mask").id,
        ..Default::default()
    };
    let deleted = admin.asks(delete).await.expect("deleted");
    look(deleted.consistency_token, false).await;
    let again = admin.assigns(&scene.deployer, &scene.web).await;
    look(again, true).await;
    let moved = admin.asks(workspace_move(&scene.web, "trn:group:other"));
    look(moved.await.expect("moved").consistency_token, false).await;
    let allowed = explained.iter().filter(|answer| answer.allowed).count();
    assert_eq!(allowed, 3, "{explained:?}");
    let revisions: BTreeSet<_> = explained.iter().map(|answer| &answer.revision).collect();
    assert_eq!(revisions.len(), explained.len());

    // Whatever has become of it all since.
    let delete = identity::DeleteManagedIdentityRequest {
        id: scene.deployer.clone(),
        force: true,
        ..Default::default()
    };
    let gone = admin.asks(delete).await.expect("deleted").consistency_token;
    not_found(admin.asks(of_bob(&gone)).await);
    for then in &explained {
        let request = issuer::ExplainCredentialRequest {
            revision: then.revision.clone(),
            ..of_bob("")
        };
        assert_eq!(asks(admin, request).await, *then);
    }
    // By what a token says of itself, and the job that it was given to; whether that was alive is left out.
    let verified = relying_party::verify(&world.issuer_url(), "aws", &issued.token).await;
    let claims = verified.expect("a stranger verifies it").claims;
    let revision = claims["tharsis_revision"].as_str().expect("it has one");
    let of_job = issuer::ExplainCredentialRequest {
        workspace_id: scene.web.clone(),
        managed_identity_id: "trn:managed_identity:acme/deployer".to_owned(),
        job_id: job.job.id.clone(),
        revision: revision.to_owned(),
        ..Default::default()
    };
    let then = asks(admin, of_job.clone()).await;
    assert!(then.allowed);
    assert!(
        then.findings
            .iter()
            .all(|finding| finding.check() != Check::Job)
    );
    // Before there was anything; and what is no revision.
    let at = |revision: &str| issuer::ExplainCredentialRequest {
        revision: revision.to_owned(),
        ..of_job.clone()
    };
    not_found(admin.asks(at("namespace=0,identity=0")).await);
    for wrong in [
        "7",
        "namespace=1",
        "namespace=1,identity=x",
        "namespace=1,identity=1,issuer=1",
        "namespace=1,namespace=1,identity=1",
        "namespace=1,identity=-1",
        "namespace=1,identity=1000",
    ] {
        invalid(admin.asks(at(wrong)).await, &["revision"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn administrators_are_told_of_what_is_deleted() {
    let world = World::start().await;
    let Scene {
        admin,
        bob,
        viewer,
        web,
        deployer,
    } = Scene::set(&world).await;
    let job = bob.opens_job(&web).await;
    let issued = bob.asks_as(&job.token, &deployer).await.expect("issued");
    let verified = relying_party::verify(&world.issuer_url(), "aws", &issued.token).await;
    let claims = verified.expect("a stranger verifies it").claims;
    let of_job = |revision: &str| issuer::ExplainCredentialRequest {
        managed_identity_id: deployer.clone(),
        job_id: job.job.id.clone(),
        revision: revision.to_owned(),
        ..Default::default()
    };
    assert!(asks(&admin, of_job("")).await.allowed);
    let token = admin.deletes_group("trn:group:acme").await;
    let now = issuer::ExplainCredentialRequest {
        consistency_token: token,
        ..of_job("")
    };
    refused(
        admin.asks(now).await,
        Code::FailedPrecondition,
        "WORKSPACE_DELETED",
    );
    // As the job was told, and at the revision that its refusal names.
    let told = admin.asks_as(&job.token, &deployer).await;
    refused(told, Code::FailedPrecondition, "WORKSPACE_DELETED");
    let recorded = world.log(Service::Issuer).await.into_iter().rev();
    let mut refusals = recorded.filter_map(|event| {
        match issuer::Event::decode(&event.event_type, &event.payload).expect("an event") {
            issuer::Event::CredentialRefused(refusal) => Some(refusal),
            _ => None,
        }
    });
    let refusal = refusals.next().expect("it is on the record");
    refused(
        admin.asks(of_job(&refusal.revision)).await,
        Code::FailedPrecondition,
        "WORKSPACE_DELETED",
    );
    let revision = claims["tharsis_revision"].as_str().expect("it has one");
    let then = asks(&admin, of_job(revision)).await;
    assert!(then.allowed);
    assert_eq!(then.principal, "user:dev/bob");
    refused(
        viewer.asks(of_job(revision)).await,
        Code::PermissionDenied,
        "PERMISSION_DENIED",
    );
    invalid(admin.asks(question("", &deployer)).await, &["workspace_id"]);
    let unknown = issuer::ExplainCredentialRequest {
        job_id: "job_01h455vb4pex5vsknk084sn02q".to_owned(),
        ..of_job(revision)
    };
    not_found(admin.asks(unknown).await);
}
