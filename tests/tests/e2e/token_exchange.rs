//! Tokens of other issuers, exchanged for those of service accounts.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use e2e::foreign::{Document, ForeignIssuer, KEYS, claims, trusting};
use e2e::issuer::key;
use e2e::refusal::{invalid, not_found, refused};
use e2e::user::{self, credential, membership, trust};
use e2e::world::{KeyTimes, Setup};
use e2e::{Service, User, World, relying_party};
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use model::{Principal, ServiceAccountId};
use prost::Message as _;
use proto::access::v1 as access;
use proto::access::v1::Role;
use proto::directory::v1 as directory;
use proto::eventlog::v1 as eventlog;
use proto::identity::v1 as identity;
use proto::issuer::v1 as issuer;
use reqwest::header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER};
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tonic::Code;

const GRANT_TYPE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
const JWT: &str = "urn:ietf:params:oauth:token-type:jwt";
const ACCESS_TOKEN: &str = "urn:ietf:params:oauth:token-type:access_token";
const ID_TOKEN: &str = "urn:ietf:params:oauth:token-type:id_token";
const FORM: &str = "application/x-www-form-urlencoded";
const SUBJECT: &str = "repo:acme/web";

/// What the token endpoint answers.
#[derive(Debug)]
pub(crate) struct Answer {
    status: u16,
    cache_control: String,
    pub(crate) body: Value,
}

impl Answer {
    #[track_caller]
    pub(crate) fn token(&self) -> String {
        assert_eq!(self.status, 200, "{self:?}");
        self.body["access_token"]
            .as_str()
            .expect("a token")
            .to_owned()
    }

    fn said(&self) -> (u16, &str, &str) {
        let text = |name: &str| self.body[name].as_str().unwrap_or_default();
        (self.status, text("error"), text("reason"))
    }
}

async fn posts(world: &World, content_type: &str, body: String) -> Answer {
    let request = reqwest::Client::new()
        .post(format!("{}/token", world.issuer_url()))
        .header(CONTENT_TYPE, content_type)
        .body(body);
    let answer = request.send().await.expect("it answers");
    let cache_control = answer.headers()[CACHE_CONTROL].to_str().expect("text");
    Answer {
        status: answer.status().as_u16(),
        cache_control: cache_control.to_owned(),
        body: answer.json().await.expect("JSON"),
    }
}

fn form(pairs: &[(&str, &str)]) -> String {
    let url = reqwest::Url::parse_with_params("http://x", pairs).expect("a URL");
    url.query().expect("a query").to_owned()
}

/// As `curl` does it.
pub(crate) async fn exchanges(world: &World, account: &str, token: &str) -> Answer {
    exchanges_as(world, account, token, JWT).await
}

async fn exchanges_as(world: &World, account: &str, token: &str, token_type: &str) -> Answer {
    let pairs = [
        ("grant_type", GRANT_TYPE),
        ("audience", account),
        ("subject_token", token),
        ("subject_token_type", token_type),
    ];
    posts(world, FORM, form(&pairs)).await
}

fn exchange(account: &str, token: &str) -> issuer::ExchangeTokenRequest {
    issuer::ExchangeTokenRequest {
        service_account_id: account.to_owned(),
        subject_token: token.to_owned(),
        ..Default::default()
    }
}

async fn makes(
    admin: &User,
    request: identity::CreateServiceAccountRequest,
) -> identity::ServiceAccount {
    let made = admin.asks(request).await.expect("made");
    made.service_account.expect("the service account")
}

async fn gives(admin: &User, account: &identity::ServiceAccount, role: Role, place: &str) {
    let mut request = membership("", role, place);
    request.membership.get_or_insert_default().principal = Some(access::Principal {
        kind: Some(access::principal::Kind::ServiceAccount(account.id.clone())),
    });
    admin.asks(request).await.expect("a member");
}

async fn trusts(admin: &User, account: &str, policies: Vec<identity::TrustPolicy>) -> String {
    let request = identity::UpdateServiceAccountRequest {
        service_account: Some(identity::ServiceAccount {
            id: account.to_owned(),
            trust_policies: policies,
            ..Default::default()
        }),
        update_mask: Some(prost_types::FieldMask {
            paths: vec!["trust_policies".to_owned()],
        }),
        ..Default::default()
    };
    admin
        .asks(request)
        .await
        .expect("changed")
        .consistency_token
}

fn part(token: &str, index: usize) -> Value {
    let part = token.split('.').nth(index).expect("a part");
    let json = URL_SAFE_NO_PAD.decode(part).expect("base64");
    serde_json::from_slice(&json).expect("JSON")
}

async fn issued(world: &World) -> Vec<issuer::ServiceAccountTokenIssued> {
    let events = world.log(Service::Issuer).await.into_iter();
    let issued =
        events.filter(|event| event.event_type == "tharsis.issuer.v1.ServiceAccountTokenIssued");
    issued
        .map(|event| {
            let payload = event.payload.as_slice();
            issuer::ServiceAccountTokenIssued::decode(payload).expect("an event")
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ci_job_calls_every_service_as_its_service_account() {
    let (world, ci) = tokio::join!(World::start(), ForeignIssuer::start());
    let admin = world.admin();
    let acme = admin.creates_group("acme").await;
    let account = makes(&admin, ci.trusted_by("acme/ci", "repo:acme/*")).await;
    gives(&admin, &account, Role::Deployer, &acme.id).await;
    let shown = ci.token(SUBJECT);

    let answer = exchanges(&world, &account.trn, &shown).await;
    let token = answer.token();
    assert_eq!(answer.cache_control, "no-store");
    assert_eq!(answer.body["token_type"], "Bearer");
    assert_eq!(answer.body["issued_token_type"], ACCESS_TOKEN);
    assert_eq!(answer.body["expires_in"], 900);
    let audience = format!("{}/services", world.issuer_url());
    let verified = relying_party::verify(&world.issuer_url(), &audience, &token).await;
    let claims = verified.expect("it verifies").claims;
    assert_eq!(claims["sub"], account.id.as_str());
    assert_eq!(part(&token, 0)["typ"], "sa+jwt");
    let seconds = |name: &str| claims[name].as_i64().expect("seconds");
    assert_eq!(seconds("exp") - seconds("iat"), 900);

    let as_ci = world.stranger().with_token(&token);
    let web = as_ci.creates_workspace("acme/web").await;
    let deployer = as_ci.creates_identity("acme/deployer").await;
    as_ci.assigns(&deployer.id, &web.id).await;
    let opened = as_ci.opens_job(&web.id).await;
    assert_eq!(
        opened.job.principal,
        format!("service_account:{}", account.id)
    );
    assert_eq!(as_ci.lists_children("trn:group:acme").await, ["web"]);
    as_ci
        .asks_as(&opened.token, &deployer.id)
        .await
        .expect("its job gets a credential");
    // What it is no member of, it may not.
    not_found(as_ci.asks(user::workspace("other/web")).await);

    // The same over gRPC, without any token but the one that is exchanged.
    let stranger = world.stranger();
    let second = stranger.asks(exchange(&account.id, &shown)).await;
    let second = second.expect("exchanged");
    let claims_of_second = part(&second.token, 1);
    assert_eq!(claims_of_second["jti"], second.token_id.as_str());
    let expires = second.expire_time.expect("a time").seconds;
    assert_eq!(claims_of_second["exp"], expires);

    let events = issued(&world).await;
    let [first, other] = events.as_slice() else {
        panic!("two events: {events:?}")
    };
    assert_eq!(claims["jti"], first.token_id.as_str());
    assert_eq!(other.token_id, second.token_id);
    assert_eq!(first.service_account_id, account.id);
    assert_eq!(first.group_id, acme.id);
    assert_eq!(
        (first.subject_issuer.as_str(), first.subject.as_str()),
        (ci.url(), SUBJECT)
    );
    assert_eq!(first.subject_audience, "tharsis");
    assert_eq!(first.subject_token_id_sha256.len(), 64);
    let admitted: Vec<_> = first
        .claims
        .iter()
        .map(|said| (said.claim.as_str(), said.value.as_str()))
        .collect();
    assert_eq!(admitted, [("sub", SUBJECT)]);
    // No part of either token is kept.
    for event in world.log(Service::Issuer).await {
        let text = String::from_utf8_lossy(&event.payload).into_owned();
        for secret in [&shown, &token, &second.token] {
            let signature = secret.rsplit('.').next().expect("a signature");
            assert!(!text.contains(signature), "{}", event.event_type);
        }
    }
    let of_account = directory::ListCredentialsRequest {
        parent_id: account.trn.clone(),
        consistency_token: second.consistency_token.clone(),
        ..Default::default()
    };
    let listed = as_ci.asks(of_account.clone()).await.expect("credentials");
    let ids = listed.credentials.iter();
    let ids: Vec<_> = ids.map(|token| token.token_id.as_str()).collect();
    assert_eq!(ids, [second.token_id.as_str(), first.token_id.as_str()]);
    for token in &listed.credentials {
        assert_eq!(token.service_account_id, account.id);
        assert_eq!(token.subject, account.id);
        assert_eq!((&token.audience, &token.kid), (&first.audience, &first.kid));
    }
    let mallory = world.user("mallory");
    not_found(mallory.asks(of_account).await);
    for (who, seen) in [(&as_ci, 1), (&mallory, 0)] {
        let by_token = directory::ListCredentialsRequest {
            token_id: first.token_id.clone(),
            ..Default::default()
        };
        let listed = who.asks(by_token).await.expect("credentials").credentials;
        assert_eq!(listed.len(), seen);
    }
    let owner_sees = directory::ListActivitiesRequest {
        resource_id: acme.id.clone(),
        consistency_token: second.consistency_token,
        ..Default::default()
    };
    let activities = admin.asks(owner_sees).await.expect("activities").activities;
    let actor = Principal::ServiceAccount(account.id.parse::<ServiceAccountId>().expect("an id"));
    assert!(activities.iter().any(|activity| {
        activity.event_type == "tharsis.issuer.v1.ServiceAccountTokenIssued"
            && activity.actor == actor.to_string()
    }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_never_outlives_the_one_it_was_exchanged_for() {
    let (world, ci) = tokio::join!(World::start(), ForeignIssuer::start());
    let admin = world.admin();
    admin.creates_group("acme").await;
    let account = makes(&admin, ci.trusted_by("acme/ci", "repo:acme/*")).await;
    for (lifetime, least, most) in [(100_000, 900, 900), (60, 50, 60)] {
        let mut claims = ci.claims(SUBJECT);
        let now = edge::clock::now().unix_timestamp();
        claims["exp"] = (now + lifetime).into();
        let token = key().sign(&claims).expect("signed");
        let answer = exchanges(&world, &account.id, &token).await;
        let expires_in = answer.body["expires_in"].as_i64().expect("seconds");
        assert!((least..=most).contains(&expires_in), "{expires_in}");
        assert!(part(&answer.token(), 1)["exp"].as_i64() <= claims["exp"].as_i64());
    }
    // Within the clocks' leeway it verifies, but there is nothing left of it.
    let mut claims = ci.claims(SUBJECT);
    claims["exp"] = (edge::clock::now().unix_timestamp() - 5).into();
    let token = key().sign(&claims).expect("signed");
    let answer = exchanges(&world, &account.id, &token).await;
    assert_eq!(answer.said(), (400, "invalid_request", "TOKEN_EXPIRED"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_kind_of_token_passes_for_another() {
    let (world, ci) = tokio::join!(World::start(), ForeignIssuer::start());
    let admin = world.admin();
    let acme = admin.creates_group("acme").await;
    let web = admin.creates_workspace("acme/web").await;
    let deployer = admin.creates_identity("acme/deployer").await;
    admin.assigns(&deployer.id, &web.id).await;
    let opened = admin.opens_job(&web.id).await;
    let issued = admin.asks_as(&opened.token, &deployer.id).await;
    let credential_of_job = issued.expect("a credential").token;
    let account = makes(&admin, ci.trusted_by("acme/ci", "repo:acme/*")).await;
    gives(&admin, &account, Role::Owner, &acme.id).await;
    let token = exchanges(&world, &account.id, &ci.token(SUBJECT))
        .await
        .token();

    // A service account is no job, and its token no cloud's.
    let as_ci = world.stranger().with_token(&token);
    refused(
        as_ci.asks(credential(&deployer.id)).await,
        Code::PermissionDenied,
        "PERMISSION_DENIED",
    );
    for audience in ["tharsis", "aws", world.issuer_url().as_str()] {
        let verified = relying_party::verify(&world.issuer_url(), audience, &token).await;
        assert!(verified.is_err(), "{audience}");
    }
    // No service takes a credential or the other issuer's token from a caller; only the issuer takes a job's.
    let await_request = eventlog::AwaitRequest::default();
    for service in Service::ALL {
        as_ci
            .calls(service, await_request.clone())
            .await
            .expect("a service account calls all of them");
        for other in [&credential_of_job, &ci.token(SUBJECT)] {
            let caller = admin.with_token(other);
            let status = caller.calls(service, await_request.clone()).await;
            assert_eq!(status.expect_err("refused").code(), Code::Unauthenticated);
        }
        let job = admin.with_token(&opened.token);
        let outcome = job.calls(service, await_request.clone()).await;
        assert_eq!(outcome.is_ok(), service == Service::Issuer, "{service:?}");
    }
    // Nor is a token that calls us exchanged for another one, whatever a policy says.
    let audience = format!("{}/services", world.issuer_url());
    let policy = |audience: &str, subject: &str| identity::TrustPolicy {
        audience: audience.to_owned(),
        ..trust(&world.issuer_url(), subject)
    };
    let policies = vec![
        policy(&audience, "sa_*"),
        policy(&world.issuer_url(), "job_*"),
        policy("aws", &deployer.id),
    ];
    trusts(&admin, &account.id, policies).await;
    for ours in [&token, &opened.token] {
        let answer = exchanges(&world, &account.id, ours).await;
        assert_eq!(
            answer.said(),
            (400, "invalid_request", "TOKEN_TYPE_REFUSED")
        );
    }
    // A credential says who someone is.
    exchanges(&world, &account.id, &credential_of_job)
        .await
        .token();
}

/// A workspace with identities that stand for a service account, which trusts their tokens.
struct OwnTrust {
    account: identity::ServiceAccount,
    workspace: String,
    source: identity::ManagedIdentity,
    alias: identity::ManagedIdentity,
}

impl OwnTrust {
    async fn of(world: &World, settings: identity::TokenSettings) -> Self {
        let admin = world.admin();
        for path in ["acme", "partner"] {
            admin.creates_group(path).await;
        }
        let account = admin.creates_service_account("acme/ci").await;
        let tharsis = identity::TharsisConfiguration {
            service_account_id: account.id.clone(),
        };
        let mut request = user::aws_identity("acme/as-ci");
        let wanted = request.managed_identity.get_or_insert_default();
        wanted.token_settings = Some(settings);
        wanted.configuration = Some(identity::Configuration {
            r#type: Some(identity::configuration::Type::Tharsis(tharsis)),
        });
        let made = admin.asks(request).await.expect("made");
        let source = made.managed_identity.expect("the identity");
        let policy = trust(&world.issuer_url(), &format!("{}*", source.id));
        trusts(&admin, &account.id, vec![policy]).await;
        Self {
            account,
            workspace: admin.creates_workspace("partner/web").await.id,
            alias: admin.creates_alias("partner/as-ci", &source.id).await,
            source,
        }
    }

    /// The credential that a job of the workspace gets.
    async fn credential(&self, admin: &User, identity: &str, workspace: &str) -> (String, String) {
        let opened = admin.opens_job(workspace).await;
        let issued = admin.asks_as(&opened.token, identity).await;
        (opened.job.id, issued.expect("a credential").token)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_credential_of_ours_is_exchanged_while_its_job_would_get_it() {
    let world = World::start().await;
    let admin = world.admin();
    let own = OwnTrust::of(&world, identity::TokenSettings::default()).await;
    let refused = async |token: &str, reason: &str| {
        let answer = exchanges(&world, &own.account.id, token).await;
        assert_eq!(answer.said(), (400, "invalid_request", reason));
    };
    let acme = admin.creates_workspace("acme/web").await.id;
    for (identity, workspace) in [(&own.source, &acme), (&own.alias, &own.workspace)] {
        admin.assigns(&identity.id, workspace).await;
        let (job, token) = own.credential(&admin, &identity.id, workspace).await;
        exchanges(&world, &own.account.id, &token).await.token();

        let cancel = issuer::CancelJobRequest {
            id: job,
            ..Default::default()
        };
        admin.asks(cancel).await.expect("cancelled");
        refused(&token, "JOB_CANCELLED").await;

        let (_, token) = own.credential(&admin, &identity.id, workspace).await;
        exchanges(&world, &own.account.id, &token).await.token();
        let rule = admin
            .restricts(&own.source.id, &["dev/somebody-else"])
            .await;
        refused(&token, "RULES_REFUSED").await;
        let delete = identity::DeleteAccessRuleRequest {
            id: rule.id,
            ..Default::default()
        };
        admin.asks(delete).await.expect("deleted");
        exchanges(&world, &own.account.id, &token).await.token();
    }
    // What ends an assignment: by hand, and by a mask.
    let (_, of_source) = own.credential(&admin, &own.source.id, &acme).await;
    let (_, of_alias) = own.credential(&admin, &own.alias.id, &own.workspace).await;
    let unassign = user::unassignment(&own.source.id, &acme);
    admin.asks(unassign).await.expect("unassigned");
    refused(&of_source, "NOT_ASSIGNED").await;
    exchanges(&world, &own.account.id, &of_alias).await.token();
    admin.assigns(&own.source.id, &acme).await;
    exchanges(&world, &own.account.id, &of_source).await.token();
    admin.masks(&acme).await;
    let answer = exchanges(&world, &own.account.id, &of_source).await;
    // The mask ends the assignment too, a moment later.
    let (status, error, reason) = answer.said();
    assert_eq!((status, error), (400, "invalid_request"));
    assert!(["MASKED", "NOT_ASSIGNED"].contains(&reason), "{answer:?}");
    let unassign = user::unassignment(&own.alias.id, &own.workspace);
    admin.asks(unassign).await.expect("unassigned");
    let answer = exchanges(&world, &own.account.id, &of_alias).await;
    assert_eq!(answer.said().0, 400, "{answer:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_credential_of_what_was_moved_away_from_the_account_is_not_exchanged() {
    let world = World::start().await;
    let admin = world.admin();
    for path in ["top", "top/acme", "other"] {
        admin.creates_group(path).await;
    }
    let account = admin.creates_service_account("top/ci").await;
    let tharsis = identity::TharsisConfiguration {
        service_account_id: account.id.clone(),
    };
    let mut request = user::aws_identity("top/acme/as-ci");
    let wanted = request.managed_identity.get_or_insert_default();
    wanted.configuration = Some(identity::Configuration {
        r#type: Some(identity::configuration::Type::Tharsis(tharsis)),
    });
    let made = admin.asks(request).await.expect("made");
    let source = made.managed_identity.expect("the identity").id;
    trusts(
        &admin,
        &account.id,
        vec![trust(&world.issuer_url(), &source)],
    )
    .await;
    let web = admin.creates_workspace("top/acme/web").await.id;
    admin.assigns(&source, &web).await;
    let job = admin.opens_job(&web).await;
    let token = admin
        .asks_as(&job.token, &source)
        .await
        .expect("issued")
        .token;
    exchanges(&world, &account.id, &token).await.token();

    admin
        .moves_group("trn:group:top/acme", "trn:group:other")
        .await;
    bed::eventually(async || {
        let answer = exchanges(&world, &account.id, &token).await;
        match answer.said() {
            (400, "invalid_request", "SERVICE_ACCOUNT_OUT_OF_REACH") => Ok(()),
            _ => Err(format!("{answer:?}")),
        }
    })
    .await;
}

/// What the trust policy asks for is said of now, and not of when the credential was issued.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_credential_that_would_say_something_else_now_is_not_exchanged() {
    let world = World::start().await;
    let admin = world.admin();
    for path in ["acme", "acme/prod", "acme/dev", "acme/dev/below"] {
        admin.creates_group(path).await;
    }
    let account = admin.creates_service_account("acme/ci").await;
    let mut request = user::aws_identity("acme/as-ci");
    let wanted = request.managed_identity.get_or_insert_default();
    wanted.configuration = Some(in_cluster("tharsis"));
    wanted.token_settings = Some(lives(3_600));
    let made = admin.asks(request).await.expect("made");
    let source = made.managed_identity.expect("the identity");
    let trusted = trust(&world.issuer_url(), &format!("{}*", source.id));
    trusts(&admin, &account.id, vec![trusted]).await;
    let web = admin.creates_workspace("acme/prod/web").await.id;
    admin.assigns(&source.id, &web).await;
    let job = admin.opens_job(&web).await;

    let gets = async || admin.asks_as(&job.token, &source.id).await.expect("issued");
    let outdated = async |token: &str| {
        bed::eventually(async || {
            let answer = exchanges(&world, &account.id, token).await;
            match answer.said() {
                (400, "invalid_request", "CREDENTIAL_OUTDATED") => Ok(()),
                _ => Err(format!("{answer:?}")),
            }
        })
        .await;
    };
    let set = async |path: &str, changed: identity::ManagedIdentity| {
        let request = identity::UpdateManagedIdentityRequest {
            managed_identity: Some(identity::ManagedIdentity {
                id: source.id.clone(),
                ..changed
            }),
            update_mask: Some(prost_types::FieldMask {
                paths: vec![path.to_owned()],
            }),
            ..Default::default()
        };
        admin.asks(request).await.expect("changed");
    };
    let token = gets().await.token;
    exchanges(&world, &account.id, &token).await.token();
    admin.moves_workspace(&web, "trn:group:acme/dev").await;
    outdated(&token).await;

    let token = gets().await.token;
    exchanges(&world, &account.id, &token).await.token();
    admin
        .moves_group("trn:group:acme/dev", "trn:group:acme/prod")
        .await;
    outdated(&token).await;

    let token = gets().await.token;
    exchanges(&world, &account.id, &token).await.token();
    let by_stage = identity::TokenSettings {
        subject_mode: identity::SubjectMode::IdentityAndStage.into(),
        ..lives(3_600)
    };
    let settings = |settings| identity::ManagedIdentity {
        token_settings: Some(settings),
        ..Default::default()
    };
    set("token_settings", settings(by_stage)).await;
    outdated(&token).await;

    let token = gets().await.token;
    let lived = exchanges(&world, &account.id, &token).await.token();
    let lifetime = |token: &str| {
        let time = |claim| part(token, 1)[claim].as_i64().expect("a time");
        time("exp") - time("iat")
    };
    assert_eq!(lifetime(&lived), 900);
    let shorter = identity::TokenSettings {
        lifetime: lives(300).lifetime,
        ..by_stage
    };
    set("token_settings", settings(shorter)).await;
    bed::eventually(async || {
        let lived = exchanges(&world, &account.id, &token).await.token();
        (lifetime(&lived) <= 300).then_some(()).ok_or(lived)
    })
    .await;

    let configuration = identity::ManagedIdentity {
        configuration: Some(in_cluster("kubernetes")),
        ..Default::default()
    };
    set("configuration", configuration).await;
    outdated(&token).await;
}

fn lives(seconds: i64) -> identity::TokenSettings {
    identity::TokenSettings {
        lifetime: Some(prost_types::Duration { seconds, nanos: 0 }),
        ..Default::default()
    }
}

fn in_cluster(audience: &str) -> identity::Configuration {
    let kubernetes = identity::KubernetesConfiguration {
        audience: audience.to_owned(),
    };
    identity::Configuration {
        r#type: Some(identity::configuration::Type::Kubernetes(kubernetes)),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_credential_of_ours_is_exchanged_whatever_it_is_signed_with() {
    let world = World::start().await;
    let admin = world.admin();
    let settings = identity::TokenSettings {
        signing_algorithm: identity::SigningAlgorithm::Es256.into(),
        subject_mode: identity::SubjectMode::IdentityAndStage.into(),
        ..Default::default()
    };
    let own = OwnTrust::of(&world, settings).await;
    admin.assigns(&own.alias.id, &own.workspace).await;
    let (_, token) = own.credential(&admin, &own.alias.id, &own.workspace).await;
    assert_eq!(part(&token, 0)["alg"], "ES256");
    exchanges(&world, &own.account.id, &token).await.token();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_access_token_is_no_id_token() {
    let (world, ci) = tokio::join!(World::start(), ForeignIssuer::start());
    let admin = world.admin();
    admin.creates_group("acme").await;
    let account = makes(&admin, ci.trusted_by("acme/ci", "repo:acme/*"))
        .await
        .id;
    let of_type = |typ: &str| {
        let mut header = key().header();
        header["typ"] = typ.into();
        key().sign_as(&header, &ci.claims(SUBJECT)).expect("signed")
    };
    for (typ, token_type) in [
        ("JWT", JWT),
        ("JWT", ID_TOKEN),
        ("JWT", ACCESS_TOKEN),
        ("at+jwt", JWT),
        ("at+jwt", ACCESS_TOKEN),
    ] {
        let answer = exchanges_as(&world, &account, &of_type(typ), token_type).await;
        answer.token();
    }
    let answer = exchanges_as(&world, &account, &of_type("at+jwt"), ID_TOKEN).await;
    assert_eq!(
        answer.said(),
        (400, "invalid_request", "TOKEN_TYPE_REFUSED")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_service_account_trusts_counts_at_once() {
    let (world, ci) = tokio::join!(World::start(), ForeignIssuer::start());
    let (admin, stranger) = (world.admin(), world.stranger());
    let acme = admin.creates_group("acme").await;
    let account = makes(&admin, ci.trusted_by("acme/ci", "repo:acme/*")).await;
    gives(&admin, &account, Role::Viewer, &acme.id).await;
    let hasty = admin.in_a_hurry();
    let asks_after = async |token: String| {
        let request = issuer::ExchangeTokenRequest {
            consistency_token: token,
            ..exchange(&account.id, &ci.token(SUBJECT))
        };
        stranger.asks(request).await
    };
    let first = asks_after(String::new()).await.expect("exchanged");
    let as_ci = stranger.with_token(&first.token);
    as_ci.lists_children(&acme.id).await;

    for round in 0..5 {
        let other = trust(ci.url(), "repo:other/*");
        let changed = trusts(&hasty, &account.id, vec![other]).await;
        refused(
            asks_after(changed).await,
            Code::Unauthenticated,
            "TOKEN_NOT_ADMITTED",
        );
        let elsewhere = trust(&format!("{}/", ci.url()), "repo:acme/*");
        let changed = trusts(&hasty, &account.id, vec![elsewhere]).await;
        not_found(asks_after(changed).await);
        let again = trust(ci.url(), &format!("repo:acme/*eb{}", "*".repeat(round)));
        let changed = trusts(&hasty, &account.id, vec![again]).await;
        asks_after(changed).await.expect("exchanged");
    }
    let delete = identity::DeleteServiceAccountRequest {
        id: account.id.clone(),
        ..Default::default()
    };
    let deleted = hasty.asks(delete).await.expect("deleted");
    let consistency_token = deleted.consistency_token;
    not_found(asks_after(consistency_token.clone()).await);
    // What it was given before opens nothing any more.
    let list = directory::ListChildrenRequest {
        group_id: acme.id.clone(),
        consistency_token,
        ..Default::default()
    };
    not_found(as_ci.asks(list).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_its_group_it_is_gone() {
    let (world, ci) = tokio::join!(World::start(), ForeignIssuer::start());
    let admin = world.admin();
    let acme = admin.creates_group("acme").await;
    let account = makes(&admin, ci.trusted_by("acme/ci", "repo:acme/*")).await;
    let token = exchanges(&world, &account.id, &ci.token(SUBJECT)).await;
    let as_ci = world.stranger().with_token(&token.token());
    let teams = directory::ListTeamsRequest::default();
    as_ci.asks(teams.clone()).await.expect("a caller");
    admin.deletes_group(&acme.id).await;
    let answer = exchanges(&world, &account.id, &ci.token(SUBJECT)).await;
    assert_eq!(answer.said(), (400, "invalid_target", "RESOURCE_NOT_FOUND"));
    // Nor does the token that it had open what every caller may see.
    refused(
        as_ci.asks(teams).await,
        Code::Unauthenticated,
        "SERVICE_ACCOUNT_GONE",
    );
    let job = issuer::GetJobRequest {
        id: "job_01h455vb4pex5vsknk084sn02q".to_owned(),
        ..Default::default()
    };
    not_found(as_ci.asks(job).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_issuer_that_nobody_trusts_is_not_asked_for_anything() {
    let (world, ci) = tokio::join!(World::start(), ForeignIssuer::start());
    let (admin, stranger) = (world.admin(), world.stranger());
    admin.creates_group("acme").await;
    let account = makes(
        &admin,
        trusting("acme/ci", "https://ci.example.com", "repo:*"),
    )
    .await;
    makes(&admin, ci.trusted_by("acme/other", "repo:acme/*")).await;
    let token = ci.token(SUBJECT);
    let hidden = stranger.asks(exchange(&account.trn, &token)).await;
    let missing = stranger
        .asks(exchange("trn:service_account:acme/no", &token))
        .await;
    let (hidden, missing) = (hidden.expect_err("refused"), missing.expect_err("refused"));
    // Which of the two it is, is not told.
    assert_eq!(
        hidden.message(),
        missing.message().replace("acme/no", "acme/ci")
    );
    not_found(Err::<(), _>(hidden));
    // Nor by what is no token, or none that is ever taken.
    admin.creates_service_account("acme/alone").await;
    let unsigned = format!("{}.e30.", URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#));
    let nobodys = key().sign(&json!({"sub": SUBJECT})).expect("signed");
    for (bad, reason) in [
        ("a.b.c", "TOKEN_MALFORMED"),
        (unsigned.as_str(), "TOKEN_ALGORITHM_REFUSED"),
        (nobodys.as_str(), "TOKEN_CLAIM_INVALID"),
        (&"x".repeat(17 << 10), "TOKEN_TOO_LARGE"),
    ] {
        for account in ["acme/ci", "acme/alone", "acme/no"] {
            let account = format!("trn:service_account:{account}");
            let outcome = stranger.asks(exchange(&account, bad)).await;
            refused(outcome, Code::Unauthenticated, reason);
        }
    }
    for almost in [format!("{}/", ci.url()), ci.url().to_uppercase()] {
        let token = key().sign(&claims(&almost, SUBJECT)).expect("signed");
        not_found(
            stranger
                .asks(exchange("trn:service_account:acme/other", &token))
                .await,
        );
    }
    assert_eq!(ci.fetches(), 0);
    // Nor for its keys again with each token.
    for _ in 0..5 {
        exchanges(&world, "trn:service_account:acme/other", &token)
            .await
            .token();
    }
    assert_eq!(ci.fetches(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_issuer_may_take_longer_for_its_keys_than_a_replica_may_be_old() {
    let setup = Setup::default().staleness_bound(2);
    let (world, ci) = tokio::join!(setup.start(), ForeignIssuer::start());
    let admin = world.admin();
    admin.creates_group("acme").await;
    let account = makes(&admin, ci.trusted_by("acme/ci", "repo:acme/*"))
        .await
        .id;
    let (gate, keys) = (Arc::new(Semaphore::new(0)), json!({"keys": [key().jwk()]}));
    ci.serves(KEYS, Document::Held(keys, Arc::clone(&gate)));
    let token = ci.token(SUBJECT);
    let exchanged = exchanges(&world, &account, &token);
    let slow = async {
        bed::eventually(async || (ci.fetches() == 2).then_some(()).ok_or("not asked")).await;
        // What it takes: longer than the bound.
        tokio::time::sleep(Duration::from_secs(3)).await;
        gate.add_permits(1);
    };
    let (answer, ()) = tokio::join!(exchanged, slow);
    answer.token();
    assert_eq!(issued(&world).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_so_many_wait_for_the_issuers_that_one_group_trusts() {
    let (world, ci) = tokio::join!(World::start(), ForeignIssuer::start());
    let admin = world.admin();
    admin.creates_group("acme").await;
    let account = makes(&admin, ci.trusted_by("acme/ci", "repo:acme/*"))
        .await
        .id;
    let (gate, keys) = (Arc::new(Semaphore::new(0)), json!({"keys": [key().jwk()]}));
    ci.serves(KEYS, Document::Held(keys, Arc::clone(&gate)));
    let (client, token) = (reqwest::Client::new(), ci.token(SUBJECT));
    let asked = (0..129).map(|_| {
        let pairs = [
            ("grant_type", GRANT_TYPE),
            ("audience", account.as_str()),
            ("subject_token", token.as_str()),
            ("subject_token_type", JWT),
        ];
        let request = client.post(format!("{}/token", world.issuer_url()));
        request.header(CONTENT_TYPE, FORM).body(form(&pairs)).send()
    });
    let mut asked: FuturesUnordered<_> = asked.collect();
    let busy = asked.next().await.expect("one").expect("it answers");
    assert_eq!(busy.status().as_u16(), 503);
    assert!(busy.headers().contains_key(RETRY_AFTER));
    let busy: Value = busy.json().await.expect("JSON");
    assert_eq!(busy["reason"], "EXCHANGE_BUSY");
    gate.add_permits(1);
    let others: Vec<_> = asked.collect().await;
    let mut others = others.iter().flatten();
    assert!(others.any(|other| other.status().as_u16() == 200));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trust_that_ends_while_keys_are_fetched_opens_nothing() {
    let (world, ci) = tokio::join!(World::start(), ForeignIssuer::start());
    let admin = world.admin();
    admin.creates_group("acme").await;
    let account = makes(&admin, ci.trusted_by("acme/ci", "repo:acme/*"))
        .await
        .id;
    let (gate, keys) = (Arc::new(Semaphore::new(0)), json!({"keys": [key().jwk()]}));
    ci.serves(KEYS, Document::Held(keys, Arc::clone(&gate)));
    let stranger = world.stranger();
    let exchanged = stranger.asks(exchange(&account, &ci.token(SUBJECT)));
    let ended = async {
        bed::eventually(async || (ci.fetches() == 2).then_some(()).ok_or("not asked")).await;
        let consistency_token = trusts(&admin, &account, vec![]).await;
        // The issuer knows it.
        let known = issuer::ExchangeTokenRequest {
            consistency_token,
            ..exchange(&account, &ci.token(SUBJECT))
        };
        not_found(stranger.asks(known).await);
        gate.add_permits(1);
    };
    let (outcome, ()) = tokio::join!(exchanged, ended);
    not_found(outcome);
    assert_eq!(issued(&world).await, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_with_a_request_is_said() {
    let world = World::start().await;
    let stranger = world.stranger();
    let account = "trn:service_account:acme/ci";
    invalid(
        stranger.asks(exchange("", "")).await,
        &["subject_token", "service_account_id"],
    );
    for wrong in ["ci", "trn:group:acme", "dev/alice"] {
        invalid(
            stranger.asks(exchange(wrong, "a.b.c")).await,
            &["service_account_id"],
        );
    }
    // A caller's own token changes nothing, even one that is none.
    let token = key().sign(&claims("https://ci.example.com", SUBJECT));
    let token = token.expect("signed");
    for caller in [world.admin(), stranger.with_token("nonsense")] {
        not_found(caller.asks(exchange(account, &token)).await);
    }
    let good = [
        ("grant_type", GRANT_TYPE),
        ("audience", account),
        ("subject_token", token.as_str()),
        ("subject_token_type", JWT),
    ];
    let with = |name: &'static str, value: &'static str| {
        let kept = good.into_iter().filter(|(given, _)| *given != name);
        form(&kept.chain([(name, value)]).collect::<Vec<_>>())
    };
    for (content_type, body, error) in [
        (FORM, form(&good), "invalid_target"),
        ("application/json", form(&good), "invalid_request"),
        (FORM, String::new(), "invalid_request"),
        (
            FORM,
            with("grant_type", "password"),
            "unsupported_grant_type",
        ),
        (FORM, with("audience", "nonsense"), "invalid_target"),
        (FORM, with("subject_token", "a.b.c"), "invalid_request"),
        (FORM, with("scope", "openid"), "invalid_scope"),
        (FORM, "x".repeat(1 << 20), "invalid_request"),
    ] {
        let answer = posts(&world, content_type, body).await;
        assert_eq!(answer.said().0, 400, "{answer:?}");
        assert_eq!(answer.said().1, error, "{answer:?}");
        assert_eq!(answer.cache_control, "no-store");
        assert!(answer.body["error_description"].is_string());
    }
    let discovery = format!("{}/.well-known/openid-configuration", world.issuer_url());
    let discovery: Value = reqwest::get(discovery)
        .await
        .expect("it answers")
        .json()
        .await
        .expect("JSON");
    assert_eq!(
        discovery["token_endpoint"],
        format!("{}/token", world.issuer_url())
    );
    assert_eq!(discovery["grant_types_supported"], json!([GRANT_TYPE]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_at_once_get_a_token_each() {
    let (world, ci) = tokio::join!(World::start(), ForeignIssuer::start());
    let admin = world.admin();
    admin.creates_group("acme").await;
    let account = makes(&admin, ci.trusted_by("acme/ci", "repo:acme/*")).await;
    let token = ci.token(SUBJECT);
    let ask = || exchanges(&world, &account.id, &token);
    let (one, other) = tokio::join!(ask(), ask());
    assert_ne!(one.token(), other.token());
    assert_eq!(issued(&world).await.len(), 2);
    // Both found the keys with one fetch of them.
    assert_eq!(ci.fetches(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_revoked_key_has_signed_is_listed_and_refused() {
    let (world, ci) = tokio::join!(World::start(), ForeignIssuer::start());
    let admin = world.admin();
    let acme = admin.creates_group("acme").await;
    let web = admin.creates_workspace("acme/web").await;
    let account = makes(&admin, ci.trusted_by("acme/ci", "repo:acme/*")).await;
    gives(&admin, &account, Role::Deployer, &acme.id).await;
    let token = exchanges(&world, &account.id, &ci.token(SUBJECT))
        .await
        .token();
    let as_ci = world.stranger().with_token(&token);
    let lives = as_ci.opens_job(&web.id).await.job.id;
    let finished = as_ci.opens_job(&web.id).await;
    let as_job = admin.with_token(&finished.token);
    let over = as_job.asks(issuer::FinishJobRequest::default()).await;
    over.expect("finished");
    admin.opens_job(&web.id).await;
    let keys = admin.asks(issuer::ListSigningKeysRequest::default()).await;
    let keys = keys.expect("keys").signing_keys;
    let signs = keys
        .iter()
        .find(|key| part(&token, 0)["kid"] == key.kid.as_str());
    let revoke = issuer::RevokeSigningKeyRequest {
        id: signs.expect("its key").id.clone(),
        reason: "leaked".to_owned(),
        ..Default::default()
    };
    // Once the next key may sign.
    let revoked = bed::eventually(async || admin.asks(revoke.clone()).await).await;
    let [live] = revoked.live_tokens.as_slice() else {
        panic!("one token: {revoked:?}")
    };
    assert_eq!(part(&token, 1)["jti"], live.token_id.as_str());
    assert_eq!(live.service_account_id, account.id);
    // Its jobs live on.
    assert_eq!(revoked.job_ids, [lives]);
    assert_eq!(revoked.workspace_ids, [web.id]);
    let status = as_ci
        .calls(Service::Issuer, eventlog::AwaitRequest::default())
        .await;
    refused(status, Code::Unauthenticated, "TOKEN_KEY_UNKNOWN");
    let token = exchanges(&world, &account.id, &ci.token(SUBJECT))
        .await
        .token();
    // The others fetch a key that they don't know.
    for service in Service::ALL {
        let as_ci = world.stranger().with_token(&token);
        let outcome = as_ci
            .calls(service, eventlog::AwaitRequest::default())
            .await;
        outcome.expect("a token of the next key");
    }
}

/// A job may be given its token again for a token of another key than the one that it was opened with: whoever has that
/// key may have the job's token too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_that_were_asked_for_again_with_a_token_of_a_revoked_key_are_listed() {
    // The next key signs as soon as that is asked for.
    let keys = KeyTimes {
        max_age: 1,
        clock_skew: 1,
        rotation: 3_600,
    };
    let (world, ci) = tokio::join!(Setup::default().keys(keys).start(), ForeignIssuer::start());
    let admin = world.admin();
    let acme = admin.creates_group("acme").await;
    let web = admin.creates_workspace("acme/web").await;
    let account = makes(&admin, ci.trusted_by("acme/ci", "repo:acme/*")).await;
    gives(&admin, &account, Role::Deployer, &acme.id).await;
    let as_ci = async || {
        let answer = exchanges(&world, &account.id, &ci.token(SUBJECT)).await;
        let token = answer.token();
        let kid = part(&token, 0)["kid"].as_str().map(str::to_owned);
        (world.stranger().with_token(&token), kid.expect("a kid"))
    };
    let rotates = async |before: &str| {
        let rotate = issuer::RotateSigningKeyRequest::default();
        admin.asks(rotate).await.expect("asked for");
        bed::eventually(async || {
            let (user, kid) = as_ci().await;
            if kid == before {
                Err("it signs still")
            } else {
                Ok((user, kid))
            }
        })
        .await
    };
    let revokes = async |kid: &str, validate_only| {
        let keys = admin.asks(issuer::ListSigningKeysRequest::default()).await;
        let keys = keys.expect("keys").signing_keys;
        let key = keys.into_iter().find(|key| key.kid == kid);
        let revoke = issuer::RevokeSigningKeyRequest {
            id: key.expect("its key").id,
            reason: "leaked".to_owned(),
            validate_only,
            ..Default::default()
        };
        admin.asks(revoke).await.expect("revoked")
    };
    let request = issuer::OpenJobRequest {
        request_id: bed::unique_id().to_string(),
        ..user::job(&web.id)
    };
    let (first, first_kid) = as_ci().await;
    let opened = first.asks(request.clone()).await.expect("opened");
    first.asks(request.clone()).await.expect("of the same key");
    let id = opened.job.clone().expect("the job").id;
    let (second, second_kid) = rotates(&first_kid).await;
    assert_eq!(
        revokes(&second_kid, true).await.job_ids,
        <[&str; 0]>::default()
    );
    let tried = issuer::OpenJobRequest {
        validate_only: true,
        ..request.clone()
    };
    let tried = second.asks(tried).await.expect("it may be done");
    let planned: Vec<_> = tried
        .planned_events
        .iter()
        .map(|any| &any.type_url)
        .collect();
    assert_eq!(
        planned,
        ["type.googleapis.com/tharsis.issuer.v1.JobTokenRepeated"]
    );
    let repeats = (0..5).map(|_| second.asks(request.clone()));
    for again in futures::future::join_all(repeats).await {
        assert_eq!(again.expect("it lives").job, opened.job);
    }
    second.asks(request.clone()).await.expect("it lives");
    let log = world.log(Service::Issuer).await;
    let repeated = log.iter().filter_map(|event| {
        let is_repeated = event.event_type.ends_with(".JobTokenRepeated");
        is_repeated.then(|| issuer::JobTokenRepeated::decode(event.payload.as_slice()))
    });
    let [repeated] = <[_; 1]>::try_from(repeated.collect::<Vec<_>>()).expect("once");
    let repeated = repeated.expect("an event");
    assert_eq!(
        [
            &repeated.job_id,
            &repeated.workspace_id,
            &repeated.opener_token_kid
        ],
        [&id, &web.id, &second_kid]
    );
    let (_, third_kid) = rotates(&second_kid).await;
    assert_eq!(revokes(&second_kid, false).await.job_ids, [id.as_str()]);
    assert_eq!(revokes(&first_kid, false).await.job_ids, [id.as_str()]);
    assert_eq!(
        revokes(&third_kid, true).await.job_ids,
        <[&str; 0]>::default()
    );
    let status = second.asks(request).await;
    refused(status, Code::Unauthenticated, "TOKEN_KEY_UNKNOWN");
}
