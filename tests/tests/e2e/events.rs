//! Real bytes of every event type ever written: what is in a log stays readable for ever. A file here is written once,
//! and never again. Where a type has got more fields since, its earlier bytes are in `<type>.1.bin`, and so on.

use std::collections::BTreeMap;

use e2e::Service;
use e2e::foreign::{ForeignIssuer, trusting};
use e2e::user::{User, unassignment};
use e2e::world::{KeyTimes, Setup};
use proto::access::v1::Role;
use proto::{access, identity, issuer, namespace};

use crate::golden;

/// Every type that there is.
fn types() -> impl Iterator<Item = &'static str> {
    [
        namespace::v1::Event::TYPES,
        identity::v1::Event::TYPES,
        issuer::v1::Event::TYPES,
    ]
    .into_iter()
    .flatten()
    .copied()
}

/// Decodes an event, and encodes it again.
fn recoded(event_type: &str, payload: &[u8]) -> Result<Vec<u8>, proto::EventError> {
    if event_type.starts_with("tharsis.namespace.") {
        namespace::v1::Event::decode(event_type, payload).map(|event| event.encode())
    } else if event_type.starts_with("tharsis.identity.") {
        identity::v1::Event::decode(event_type, payload).map(|event| event.encode())
    } else {
        issuer::v1::Event::decode(event_type, payload).map(|event| event.encode())
    }
}

fn corpus() -> BTreeMap<String, Vec<u8>> {
    let files = std::fs::read_dir(golden::path("events")).expect("the corpus");
    let read = |file: std::io::Result<std::fs::DirEntry>| {
        let path = file.expect("a file").path();
        let event_type = path.file_stem()?.to_str()?.to_owned();
        Some((event_type, std::fs::read(path).expect("it can be read")))
    };
    files.filter_map(read).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_ever_written_reads_as_it_was_meant() {
    if golden::is_updated() {
        write_what_is_missing().await;
    }
    let corpus = corpus();
    let missing: Vec<_> = types()
        .filter(|event_type| !corpus.contains_key(*event_type))
        .collect();
    assert!(
        missing.is_empty(),
        "not in tests/golden/events (UPDATE_GOLDEN=1 adds them): {missing:?}"
    );
    for (name, payload) in corpus {
        assert!(!payload.is_empty(), "{name}");
        let event_type = name.trim_end_matches(|of_file: char| !of_file.is_alphabetic());
        let again =
            recoded(event_type, &payload).unwrap_or_else(|error| panic!("{event_type}: {error}"));
        assert_eq!(again, payload, "{name} has lost or changed a field");
    }
}

async fn write_what_is_missing() {
    let corpus = corpus();
    if types().all(|event_type| corpus.contains_key(event_type)) {
        return;
    }
    let keys = KeyTimes {
        max_age: 1,
        clock_skew: 1,
        rotation: 3600,
    };
    let world = Setup::default().keys(keys).start().await;
    make_keys_live(&world.admin()).await;
    make_each_happen(&world.admin(), &world.user("bob"), &world.issuer_url()).await;
    for service in Service::WITH_LOG {
        // The last of a type has the most in it.
        for event in world.log(service).await.into_iter().rev() {
            let path = golden::path("events").join(format!("{}.bin", event.event_type));
            if !path.exists() {
                std::fs::write(path, &event.payload).expect("the file can be written");
            }
        }
    }
}

/// A whole life of a signing key, and the early end of another one.
async fn make_keys_live(admin: &User) {
    let rotate = issuer::v1::RotateSigningKeyRequest::default();
    let rotated = admin.asks(rotate).await.expect("asked for");
    let first = rotated.signing_key.expect("the key").id;
    let request = issuer::v1::GetSigningKeyRequest {
        id: first.clone(),
        ..Default::default()
    };
    bed::eventually(async || {
        let key = admin.asks(request.clone()).await.expect("it is there");
        let key = key.signing_key.expect("the key");
        let gone = key.state() == issuer::v1::SigningKeyState::Gone;
        gone.then_some(()).ok_or(format!("{key:?}"))
    })
    .await;
    let revoke = issuer::v1::RevokeSigningKeyRequest {
        id: first,
        reason: "Somebody has it".to_owned(),
        ..Default::default()
    };
    admin.asks(revoke).await.expect("revoked");
}

async fn membership_happens(admin: &User, made: namespace::v1::Membership) {
    let change = namespace::v1::UpdateMembershipRequest {
        membership: Some(namespace::v1::Membership {
            role: Role::Deployer.into(),
            ..made.clone()
        }),
        ..Default::default()
    };
    admin.asks(change).await.expect("changed");
    let delete = namespace::v1::DeleteMembershipRequest {
        id: made.id,
        ..Default::default()
    };
    admin.asks(delete).await.expect("deleted");
}

async fn masks_happen(admin: &User, workspace: &str, identity: &str) {
    let mut request = e2e::user::mask(workspace);
    let mask = request.mask.get_or_insert_default();
    mask.hidden = Some(identity::v1::mask::Hidden::Type("azure".to_owned()));
    mask.exception_ids.push(identity.to_owned());
    let mask = admin.asks(request).await.expect("made").mask;
    let delete = identity::v1::DeleteMaskRequest {
        id: mask.expect("the mask").id,
        ..Default::default()
    };
    admin.asks(delete).await.expect("deleted");
}

/// Each with every field set.
async fn make_each_happen(admin: &User, bob: &User, issuer: &str) {
    make_teams_happen(admin, bob).await;
    make_service_accounts_happen(admin).await;
    admin.creates_group("acme").await;
    let mut request = e2e::user::group("acme/team");
    "Those who deploy".clone_into(&mut request.group.get_or_insert_default().description);
    let team = admin
        .asks(request)
        .await
        .expect("made")
        .group
        .expect("a group");
    let mut request = e2e::user::workspace_with(
        "acme/team/with",
        &[
            "trn:managed_identity:acme/team/first",
            "trn:managed_identity:acme/team/none",
        ],
    );
    admin.creates_identity("acme/team/first").await;
    admin.asks(request.clone()).await.expect("made");
    request = e2e::user::workspace("acme/team/web");
    "The front".clone_into(&mut request.workspace.get_or_insert_default().description);
    request.workspace.get_or_insert_default().max_job_duration = Some(prost_types::Duration {
        seconds: 3_600,
        nanos: 0,
    });
    let web = admin
        .asks(request)
        .await
        .expect("made")
        .workspace
        .expect("a workspace");
    let bobs = admin.grants(bob, Role::Viewer, &team.id).await;
    membership_happens(admin, bobs).await;
    let mut request = e2e::user::aws_identity("acme/team/deployer");
    "Deploys".clone_into(&mut request.managed_identity.get_or_insert_default().description);
    let deployer = admin
        .asks(request)
        .await
        .expect("made")
        .managed_identity
        .expect("an identity");
    let change = identity::v1::UpdateManagedIdentityRequest {
        managed_identity: Some(identity::v1::ManagedIdentity {
            description: "Deploys it all".to_owned(),
            ..deployer.clone()
        }),
        ..Default::default()
    };
    admin.asks(change).await.expect("changed");
    rules_happen(admin, bob, &deployer.id).await;
    aliases_happen(admin, &deployer.id).await;
    admin.assigns(&deployer.id, &web.id).await;
    masks_happen(admin, &web.id, &deployer.id).await;
    let opened = admin.opens_job(&web.id).await;
    credential_is_exchanged(admin, issuer, &opened.token, &deployer.id).await;
    let job = admin.with_token(&opened.token);
    job.asks(issuer::v1::HeartbeatJobRequest::default())
        .await
        .expect("alive");
    job.asks(issuer::v1::FinishJobRequest::default())
        .await
        .expect("finished");
    // One that says which identity, and one that says what was named.
    for named in [&deployer.id, "trn:managed_identity:acme/team/none"] {
        let refused = admin.asks_as(&opened.token, named).await;
        refused.expect_err("it is over, or there is none");
    }
    let cancel = issuer::v1::CancelJobRequest {
        id: admin.opens_job(&web.id).await.job.id,
        ..Default::default()
    };
    admin.asks(cancel).await.expect("cancelled");
    job_token_is_repeated(admin, &web.id).await;
    admin
        .asks(unassignment(&deployer.id, &web.id))
        .await
        .expect("unassigned");
    let to_acme = identity::v1::MoveManagedIdentityRequest {
        id: deployer.id.clone(),
        new_group_id: "trn:group:acme".to_owned(),
        ..Default::default()
    };
    admin.asks(to_acme).await.expect("moved");
    let delete = identity::v1::DeleteManagedIdentityRequest {
        id: deployer.id,
        ..Default::default()
    };
    admin.asks(delete).await.expect("deleted");
    move_things(admin, &team, &web).await;
    let delete = namespace::v1::DeleteWorkspaceRequest {
        id: web.id,
        ..Default::default()
    };
    admin.asks(delete).await.expect("deleted");
    admin.deletes_group(&team.id).await;
}

/// Away and back, so that each is where it was.
async fn move_things(admin: &User, team: &namespace::v1::Group, web: &namespace::v1::Workspace) {
    let acme = "trn:group:acme";
    let change = namespace::v1::UpdateGroupRequest {
        group: Some(namespace::v1::Group {
            description: "Those who run".to_owned(),
            ..team.clone()
        }),
        ..Default::default()
    };
    admin.asks(change).await.expect("changed");
    let change = namespace::v1::UpdateWorkspaceRequest {
        workspace: Some(namespace::v1::Workspace {
            description: "The back".to_owned(),
            ..web.clone()
        }),
        ..Default::default()
    };
    admin.asks(change).await.expect("changed");
    admin.creates_group("acme/other").await;
    admin.moves_workspace(&web.id, "trn:group:acme/other").await;
    admin.moves_workspace(&web.id, &team.id).await;
    admin.moves_group(&team.id, "trn:group:acme/other").await;
    admin.moves_group(&team.id, acme).await;
    admin.sets_limit("group_subgroups", 10).await;
}

async fn aliases_happen(admin: &User, source: &str) {
    let group = admin.creates_group("borrowers").await;
    let alias = admin.creates_alias("borrowers/deployer", source).await;
    let delete = identity::v1::DeleteManagedIdentityAliasRequest {
        id: alias.id,
        ..Default::default()
    };
    admin.asks(delete).await.expect("deleted");
    admin.deletes_group(&group.id).await;
}

async fn rules_happen(admin: &User, bob: &User, identity: &str) {
    let rule = admin
        .restricts(identity, &[admin.principal(), bob.principal()])
        .await;
    let change = identity::v1::UpdateAccessRuleRequest {
        access_rule: Some(identity::v1::AccessRule {
            condition: Some(e2e::user::eligible(&[admin.principal()])),
            ..rule.clone()
        }),
        ..Default::default()
    };
    admin.asks(change).await.expect("changed");
    let delete = identity::v1::DeleteAccessRuleRequest {
        id: rule.id,
        ..Default::default()
    };
    admin.asks(delete).await.expect("deleted");
}

async fn make_teams_happen(admin: &User, bob: &User) {
    let mut request = e2e::user::team("platform");
    "Those who run it".clone_into(&mut request.team.get_or_insert_default().description);
    let made = admin.asks(request).await.expect("made");
    let team = made.team.expect("a team");
    let change = namespace::v1::UpdateTeamRequest {
        team: Some(namespace::v1::Team {
            id: team.id.clone(),
            description: "Those who run it all".to_owned(),
            ..Default::default()
        }),
        ..Default::default()
    };
    admin.asks(change).await.expect("changed");
    admin.adds(bob, &team.id).await;
    let delete = namespace::v1::DeleteTeamRequest {
        id: team.id,
        ..Default::default()
    };
    admin.asks(delete).await.expect("deleted");
}

async fn make_service_accounts_happen(admin: &User) {
    let group = admin.creates_group("builders").await;
    let mut request = e2e::user::service_account("builders/ci");
    let wanted = request.service_account.get_or_insert_default();
    "Builds".clone_into(&mut wanted.description);
    "RS256".clone_into(&mut wanted.trust_policies[0].signing_algorithm);
    wanted.trust_policies[0]
        .claims
        .push(identity::v1::ClaimCondition {
            claim: "environment".to_owned(),
            condition: Some(identity::v1::claim_condition::Condition::Equals(
                "prod".to_owned(),
            )),
        });
    let made = admin.asks(request).await.expect("made");
    let account = made.service_account.expect("a service account");
    tokens_are_exchanged(admin).await;
    let change = identity::v1::UpdateServiceAccountRequest {
        service_account: Some(identity::v1::ServiceAccount {
            description: "Builds it all".to_owned(),
            ..account.clone()
        }),
        ..Default::default()
    };
    admin.asks(change).await.expect("changed");
    let delete = identity::v1::DeleteServiceAccountRequest {
        id: account.id,
        ..Default::default()
    };
    admin.asks(delete).await.expect("deleted");
    admin.deletes_group(&group.id).await;
}

/// With a token of another key than the one that the job was opened with.
async fn job_token_is_repeated(admin: &User, workspace: &str) {
    let ci = ForeignIssuer::start().await;
    let made = admin.asks(ci.trusted_by("acme/team/dispatcher", "repo:*"));
    let account = made.await.expect("made").service_account.expect("it").id;
    let mut member = e2e::user::membership("", Role::Deployer, workspace);
    member.membership.get_or_insert_default().principal = Some(access::v1::Principal {
        kind: Some(access::v1::principal::Kind::ServiceAccount(account.clone())),
    });
    admin.asks(member).await.expect("a member");
    let exchanged = async || {
        let exchange = issuer::v1::ExchangeTokenRequest {
            service_account_id: account.clone(),
            subject_token: ci.token("repo:acme/web"),
            ..Default::default()
        };
        admin.asks(exchange).await.expect("exchanged").token
    };
    let request = issuer::v1::OpenJobRequest {
        request_id: bed::unique_id().to_string(),
        ..e2e::user::job(workspace)
    };
    let first = exchanged().await;
    let opened = admin.with_token(&first).asks(request.clone()).await;
    opened.expect("opened");
    let rotate = issuer::v1::RotateSigningKeyRequest::default();
    admin.asks(rotate).await.expect("asked for");
    // The header names the key.
    let next = bed::eventually(async || {
        let token = exchanged().await;
        let is_next = token.split('.').next() != first.split('.').next();
        is_next.then_some(token).ok_or("the first key still signs")
    });
    let again = admin.with_token(&next.await).asks(request).await;
    again.expect("it lives");
}

/// Of our own.
async fn credential_is_exchanged(admin: &User, issuer: &str, job_token: &str, identity: &str) {
    let credential = admin.asks_as(job_token, identity).await;
    let mut account = trusting("acme/team/ci", issuer, identity);
    let wanted = account.service_account.get_or_insert_default();
    "aws".clone_into(&mut wanted.trust_policies[0].audience);
    let made = admin.asks(account).await.expect("made");
    let exchange = issuer::v1::ExchangeTokenRequest {
        service_account_id: made.service_account.expect("it").id,
        subject_token: credential.expect("a credential").token,
        ..Default::default()
    };
    admin.asks(exchange).await.expect("exchanged");
}

async fn tokens_are_exchanged(admin: &User) {
    let ci = ForeignIssuer::start().await;
    let made = admin.asks(ci.trusted_by("builders/other", "repo:*")).await;
    let account = made.expect("made").service_account.expect("it");
    let exchange = issuer::v1::ExchangeTokenRequest {
        service_account_id: account.id,
        subject_token: ci.token("repo:acme/web"),
        ..Default::default()
    };
    admin.asks(exchange).await.expect("exchanged");
}
