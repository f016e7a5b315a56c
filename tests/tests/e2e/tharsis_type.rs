//! Identities that stand for a service account of ours: which one, and that it can be told to trust them.

use e2e::refusal::{invalid, not_found, refused};
use e2e::user::{self, aws, aws_identity, credential};
use e2e::{User, World, relying_party};
use model::trust::Claims;
use proto::access::v1::principal::Kind;
use proto::access::v1::{Principal, Role};
use proto::identity::v1::configuration::Type;
use proto::identity::v1::setup_instructions::Cloud;
use proto::identity::v1::{
    Configuration, CreateManagedIdentityRequest, DeleteServiceAccountRequest,
    GetSetupInstructionsRequest, ManagedIdentity, MoveManagedIdentityRequest, ServiceAccount,
    SetupInstructions, TharsisConfiguration, UpdateManagedIdentityRequest,
    UpdateServiceAccountRequest,
};
use proto::issuer::v1::ExchangeTokenRequest;
use tonic::{Code, Status};

const FIELD: &str = "managed_identity.configuration.tharsis.service_account_id";

fn standing_for(account: &str) -> Configuration {
    let tharsis = TharsisConfiguration {
        service_account_id: account.to_owned(),
    };
    Configuration {
        r#type: Some(Type::Tharsis(tharsis)),
    }
}

fn identity(path: &str, account: &str) -> CreateManagedIdentityRequest {
    let mut request = aws_identity(path);
    request
        .managed_identity
        .get_or_insert_default()
        .configuration = Some(standing_for(account));
    request
}

fn update(id: &str, configuration: Configuration) -> UpdateManagedIdentityRequest {
    UpdateManagedIdentityRequest {
        managed_identity: Some(ManagedIdentity {
            id: id.to_owned(),
            configuration: Some(configuration),
            ..Default::default()
        }),
        update_mask: Some(prost_types::FieldMask {
            paths: vec!["configuration".to_owned()],
        }),
        ..Default::default()
    }
}

async fn makes(
    user: &User,
    path: &str,
    account: &ServiceAccount,
) -> Result<ManagedIdentity, Status> {
    let made = user.asks(identity(path, &account.id)).await?;
    Ok(made.managed_identity.expect("the identity"))
}

async fn setup(user: &User, identity: &ManagedIdentity) -> SetupInstructions {
    let request = GetSetupInstructionsRequest {
        id: identity.id.clone(),
        ..Default::default()
    };
    let said = user.asks(request).await.expect("instructions");
    said.setup_instructions.expect("instructions")
}

fn deletion(account: &ServiceAccount) -> DeleteServiceAccountRequest {
    DeleteServiceAccountRequest {
        id: account.id.clone(),
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_account_admits_the_tokens_that_it_is_told_to_trust() {
    let world = World::start().await;
    let alice = world.admin();
    for path in ["acme", "acme/team"] {
        alice.creates_group(path).await;
    }
    let web = alice.creates_workspace("acme/team/web").await;
    let account = alice.creates_service_account("acme/ci").await;
    // Of a group above, by its TRN; kept is the id, which never changes.
    let made = alice.asks(identity("acme/team/as-ci", &account.trn)).await;
    let made = made.expect("it is made");
    assert!(made.warnings.is_empty(), "{:?}", made.warnings);
    let as_ci = made.managed_identity.expect("the identity");
    assert_eq!(as_ci.configuration, Some(standing_for(&account.id)));
    let other = makes(&alice, "acme/other", &account)
        .await
        .expect("it is made");
    alice.assigns(&as_ci.id, &web.id).await;

    let said = setup(&alice, &as_ci).await;
    assert_eq!(said.audience, "tharsis");
    assert_eq!(said.subjects, [as_ci.id.as_str()]);
    assert!(said.warnings.is_empty(), "{:?}", said.warnings);
    let Some(Cloud::Tharsis(tharsis)) = said.cloud else {
        panic!("instructions for a service account: {said:?}")
    };
    assert_eq!(tharsis.service_account_trn, account.trn);
    // What it says is what the account takes, in its list of policies.
    let policy = tharsis.trust_policy.expect("a policy");
    let trusting = UpdateServiceAccountRequest {
        service_account: Some(ServiceAccount {
            id: account.id.clone(),
            trust_policies: vec![policy],
            ..Default::default()
        }),
        update_mask: Some(prost_types::FieldMask {
            paths: vec!["trust_policies".to_owned()],
        }),
        ..Default::default()
    };
    let trusting = alice.asks(trusting).await.expect("it is taken");
    let kept = trusting.service_account.expect("it").trust_policies;
    let policies = edge::trust::policies(&kept).expect("policies");

    let job = alice.with_token(&alice.opens_job(&web.id).await.token);
    let issued = job.asks(credential(&as_ci.id)).await.expect("a credential");
    let verified = relying_party::verify(&world.issuer_url(), "tharsis", &issued.token).await;
    let token = verified.expect("it verifies").claims;
    let admits = |subject: &str| {
        let claims = Claims::from([("sub".to_owned(), subject.to_owned())]);
        let issuer = token["iss"].as_str().expect("an issuer");
        policies[0].admits(issuer, &["tharsis".to_owned()], &claims)
    };
    assert!(admits(token["sub"].as_str().expect("a subject")));
    // No other identity of ours gets in, not even one that stands for the same account.
    assert!(!admits(&other.id));
    // The credential is exchanged for a token with which the job's Terraform calls us as the account.
    let exchange = |account: &str| ExchangeTokenRequest {
        service_account_id: account.to_owned(),
        subject_token: issued.token.clone(),
        ..Default::default()
    };
    let exchanged = world.stranger().asks(exchange(&account.trn)).await;
    let as_account = alice.with_token(&exchanged.expect("exchanged").token);
    not_found(as_account.asks(user::workspace("acme/team/x")).await);
    let mut member = user::membership("", Role::Deployer, "trn:group:acme/team");
    member.membership.get_or_insert_default().principal = Some(Principal {
        kind: Some(Kind::ServiceAccount(account.id.clone())),
    });
    alice.asks(member).await.expect("a member");
    as_account.creates_workspace("acme/team/x").await;
    // Its subject is that of one identity: no other account takes it.
    let elsewhere = alice.creates_service_account("acme/elsewhere").await;
    not_found(world.stranger().asks(exchange(&elsewhere.id)).await);

    alice.asks(deletion(&account)).await.expect("deleted");
    let said = setup(&alice, &as_ci).await;
    assert!(said.warnings[0].contains("does not exist"), "{said:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_account_is_of_the_group_or_of_one_above() {
    let world = World::start().await;
    let (alice, bob) = (world.admin(), world.user("bob"));
    for path in ["acme", "acme/team", "other"] {
        alice.creates_group(path).await;
    }
    let above = alice.creates_service_account("acme/ci").await;
    let own = alice.creates_service_account("acme/team/ci").await;
    let elsewhere = alice.creates_service_account("other/ci").await;
    alice
        .grants(&bob, Role::Deployer, "trn:group:acme/team")
        .await;

    for wrong in ["", "ci", "trn:group:acme", &something_else(&alice).await] {
        invalid(alice.asks(identity("acme/x", wrong)).await, &[FIELD]);
    }
    not_found(
        alice
            .asks(identity("acme/x", "trn:service_account:acme/nope"))
            .await,
    );
    for account in [&own, &elsewhere] {
        refused(
            makes(&alice, "acme/x", account).await,
            Code::FailedPrecondition,
            "SERVICE_ACCOUNT_OUT_OF_REACH",
        );
    }
    // What is above is inherited, and so known; what is elsewhere is not.
    makes(&bob, "acme/team/of-above", &above)
        .await
        .expect("made");
    not_found(makes(&bob, "acme/team/x", &elsewhere).await);
    let of_own = makes(&bob, "acme/team/of-own", &own).await.expect("made");

    // An update, and a move, keep it so.
    refused(
        alice
            .asks(update(&of_own.id, standing_for(&elsewhere.id)))
            .await,
        Code::FailedPrecondition,
        "SERVICE_ACCOUNT_OUT_OF_REACH",
    );
    let to_acme = MoveManagedIdentityRequest {
        id: of_own.id.clone(),
        new_group_id: "trn:group:acme".to_owned(),
        ..Default::default()
    };
    refused(
        alice.asks(to_acme.clone()).await,
        Code::FailedPrecondition,
        "SERVICE_ACCOUNT_OUT_OF_REACH",
    );
    let updated = alice
        .asks(update(&of_own.id, standing_for(&above.trn)))
        .await;
    let updated = updated.expect("updated").managed_identity.expect("it");
    assert_eq!(updated.configuration, Some(standing_for(&above.id)));
    alice.asks(to_acme).await.expect("moved");
    // Its type is for ever.
    let role = aws("arn:aws:iam::123456789012:role/deployer");
    invalid(
        alice.asks(update(&of_own.id, role)).await,
        &["managed_identity.configuration"],
    );
}

/// The id of something that is no service account.
async fn something_else(alice: &User) -> String {
    alice.creates_identity("acme/deployer").await.id
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_that_goes_meanwhile_is_not_chosen() {
    let world = World::start().await;
    let alice = world.admin();
    alice.creates_group("acme").await;
    let hasty = alice.in_a_hurry();
    for round in 0..10 {
        let account = alice
            .creates_service_account(&format!("acme/ci{round}"))
            .await;
        let path = format!("acme/as-ci{round}");
        let (deleted, made) = tokio::join!(
            hasty.asks(deletion(&account)),
            makes(&hasty, &path, &account)
        );
        deleted.expect("nothing keeps it");
        if made.is_err() {
            not_found(made);
        }
        not_found(makes(&alice, &format!("acme/late{round}"), &account).await);
    }
    // Asked again, what was made once is answered alike, though the account is gone.
    let account = alice.creates_service_account("acme/ci").await;
    let request = CreateManagedIdentityRequest {
        request_id: "6f2b1f0e-9d5c-4c53-8a55-6d1f3a0c7e21".to_owned(),
        ..identity("acme/as-ci", &account.trn)
    };
    let first = alice.asks(request.clone()).await.expect("made");
    alice.asks(deletion(&account)).await.expect("deleted");
    let again = alice.asks(request).await.expect("answered");
    assert_eq!(first.managed_identity, again.managed_identity);
}
