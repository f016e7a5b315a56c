//! What the tokens of an identity are like: how long they live, and whether their subject tells the stage.

use bed::unique_id;
use e2e::refusal::{invalid, refused};
use e2e::user::{OpenedJob, aws_identity, credential, job};
use e2e::{User, World, relying_party};
use prost_types::{Duration, FieldMask};
use proto::identity::v1 as identity;
use proto::identity::v1::{SubjectMode, TokenSettings};
use proto::issuer::v1::Stage;
use serde_json::Value;
use tonic::Code;

fn settings(seconds: i64, mode: SubjectMode) -> TokenSettings {
    TokenSettings {
        lifetime: Some(Duration { seconds, nanos: 0 }),
        subject_mode: mode.into(),
        signing_algorithm: identity::SigningAlgorithm::Rs256.into(),
    }
}

fn update(
    of: &identity::ManagedIdentity,
    paths: &[&str],
) -> identity::UpdateManagedIdentityRequest {
    let paths = paths.iter().map(ToString::to_string).collect();
    identity::UpdateManagedIdentityRequest {
        managed_identity: Some(of.clone()),
        update_mask: Some(FieldMask { paths }),
        request_id: unique_id().to_string(),
        ..Default::default()
    }
}

async fn opens(user: &User, workspace: &str, stage: Stage) -> OpenedJob {
    let mut request = job(workspace);
    request.job.get_or_insert_default().set_stage(stage);
    let opened = user.asks(request).await.expect("a job is opened");
    OpenedJob {
        job: opened.job.expect("the job"),
        token: opened.job_token,
    }
}

/// What a relying party reads in the token that the job gets now.
async fn claims(world: &World, job: &OpenedJob, identity: &str) -> Value {
    let asker = world.admin().with_token(&job.token);
    let issued = asker.asks(credential(identity)).await.expect("issued");
    let verified = relying_party::verify(&world.issuer_url(), "aws", &issued.token).await;
    verified.expect("a stranger verifies it").claims
}

fn lifetime(claims: &Value) -> i64 {
    let time = |claim: &str| claims[claim].as_i64().expect(claim);
    time("exp") - time("iat")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_lives_and_is_named_as_its_identity_says() {
    let world = World::start().await;
    let admin = world.admin();
    admin.creates_group("acme").await;
    let web = admin.creates_workspace("acme/web").await;
    let mut request = aws_identity("acme/deployer");
    let wanted = request.managed_identity.get_or_insert_default();
    wanted.token_settings = Some(settings(120, SubjectMode::IdentityAndStage));
    let made = admin.asks(request).await.expect("made");
    let made = made.managed_identity.expect("an identity");
    assert_eq!(
        made.token_settings,
        Some(settings(120, SubjectMode::IdentityAndStage))
    );
    admin.assigns(&made.id, &web.id).await;
    let [plan, apply] = [Stage::Plan, Stage::Apply];
    let (plan, apply) = (
        opens(&admin, &web.id, plan).await,
        opens(&admin, &web.id, apply).await,
    );
    for (job, stage) in [(&plan, "plan"), (&apply, "apply")] {
        let claims = claims(&world, job, &made.id).await;
        assert_eq!(claims["sub"], format!("{}:{stage}", made.id));
        assert_eq!(lifetime(&claims), 120);
    }

    // A change counts from the next token on; what a request does not name stays.
    let wanted = identity::ManagedIdentity {
        token_settings: Some(settings(3_600, SubjectMode::Identity)),
        description: "ignored".to_owned(),
        ..made.clone()
    };
    let updated = admin.asks(update(&wanted, &["token_settings"])).await;
    let updated = updated.expect("updated").managed_identity.expect("it");
    assert_eq!(updated.description, made.description);
    let claims_now = claims(&world, &plan, &made.id).await;
    assert_eq!(claims_now["sub"], made.id);
    assert_eq!(lifetime(&claims_now), 3_600);

    // Who knows nothing of token settings changes the rest.
    let unaware = identity::ManagedIdentity {
        token_settings: None,
        description: "new".to_owned(),
        etag: String::new(),
        ..updated.clone()
    };
    let request = identity::UpdateManagedIdentityRequest {
        update_mask: None,
        ..update(&unaware, &[])
    };
    let after = admin.asks(request).await.expect("updated");
    let after = after.managed_identity.expect("it");
    assert_eq!(after.description, "new");
    assert_eq!(after.token_settings, updated.token_settings);
    // Named and not given, they are as in the beginning.
    let reset = admin.asks(update(&unaware, &["token_settings"])).await;
    let reset = reset.expect("updated").managed_identity.expect("it");
    assert_eq!(
        reset.token_settings,
        Some(settings(900, SubjectMode::Identity))
    );
    assert_eq!(lifetime(&claims(&world, &plan, &made.id).await), 900);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_settings_are_named() {
    let world = World::start().await;
    let admin = world.admin();
    admin.creates_group("acme").await;
    for seconds in [0, 59, 3_601, -900] {
        let mut request = aws_identity("acme/deployer");
        let wanted = request.managed_identity.get_or_insert_default();
        wanted.token_settings = Some(settings(seconds, SubjectMode::Identity));
        let wrong = ["managed_identity.token_settings.lifetime"];
        invalid(admin.asks(request).await, &wrong);
    }
    let mut request = aws_identity("acme/deployer");
    let wanted = request.managed_identity.get_or_insert_default();
    wanted.token_settings = Some(TokenSettings {
        lifetime: Some(Duration {
            seconds: 900,
            nanos: 1,
        }),
        subject_mode: 7,
        ..Default::default()
    });
    let wrong = [
        "managed_identity.token_settings.subject_mode",
        "managed_identity.token_settings.lifetime",
    ];
    invalid(admin.asks(request).await, &wrong);
    let made = admin.creates_identity("acme/deployer").await;
    let stale = identity::ManagedIdentity {
        etag: "v7".to_owned(),
        ..made
    };
    refused(
        admin.asks(update(&stale, &["token_settings"])).await,
        Code::Aborted,
        "ETAG_MISMATCH",
    );
}
