//! The life of signing keys: nobody who keeps to the headers ever meets a token of a key that he does not know.

use std::collections::BTreeSet;
use std::time::Duration;

use bed::{eventually, unique_id};
use e2e::foreign::trusting;
use e2e::refusal::{invalid, not_found, reason, refused};
use e2e::relying_party::CachingParty;
use e2e::user::{self, OpenedJob, User, aws_identity, job};
use e2e::world::{KeyTimes, Setup};
use e2e::{Service, World, relying_party};
use jsonwebtoken::Algorithm;
use proto::identity::v1 as identity;
use proto::issuer::v1::{self as issuer, SigningKey, SigningKeyState};
use reqwest::StatusCode;
use tonic::Code;

const FAST: KeyTimes = KeyTimes {
    max_age: 1,
    clock_skew: 1,
    rotation: 1,
};

/// A workspace with an identity; answers with the identity's id and the workspace's.
async fn workspace(admin: &User) -> (String, String) {
    admin.creates_group("acme").await;
    let web = admin.creates_workspace("acme/web").await;
    let deployer = admin.creates_identity("acme/deployer").await;
    admin.assigns(&deployer.id, &web.id).await;
    (deployer.id, web.id)
}

/// Opens a job that is over soon, and so are its credentials.
async fn opens_short_job(user: &User, workspace: &str, seconds: i64) -> OpenedJob {
    let mut request = job(workspace);
    request.job.get_or_insert_default().max_duration =
        Some(prost_types::Duration { seconds, nanos: 0 });
    let opened = user.asks(request).await.expect("a job is opened");
    OpenedJob {
        job: opened.job.expect("the job"),
        token: opened.job_token,
    }
}

/// Those of RS256.
async fn keys(admin: &User) -> Vec<SigningKey> {
    keys_for(admin, "RS256").await
}

async fn keys_for(admin: &User, algorithm: &str) -> Vec<SigningKey> {
    let request = issuer::ListSigningKeysRequest {
        algorithm: algorithm.to_owned(),
        ..Default::default()
    };
    admin.asks(request).await.expect("listed").signing_keys
}

async fn in_state(admin: &User, state: SigningKeyState) -> Vec<SigningKey> {
    let mut keys = keys(admin).await;
    keys.retain(|key| key.state() == state);
    keys
}

async fn key(admin: &User, id: &str) -> SigningKey {
    let request = issuer::GetSigningKeyRequest {
        id: id.to_owned(),
        ..Default::default()
    };
    let got = admin.asks(request).await.expect("it is there");
    got.signing_key.expect("the key")
}

/// The active key and the next one, once there are both.
async fn both(admin: &User) -> (SigningKey, SigningKey) {
    eventually(async || {
        let active = in_state(admin, SigningKeyState::Active).await.pop();
        let next = in_state(admin, SigningKeyState::Published).await.pop();
        active.zip(next).ok_or("there is no next one yet")
    })
    .await
}

/// Waits until an issuer that was just started knows how old its replica is. It gives the job no credential meanwhile,
/// and here none at all.
async fn follows(user: &User, job_token: &str, identity: &str) {
    let unknown = identity.replacen("mi_0", "mi_1", 1);
    eventually(async || {
        let status = user
            .asks_as(job_token, &unknown)
            .await
            .expect_err("unknown");
        let follows = status.code() == Code::NotFound;
        follows.then_some(()).ok_or(status)
    })
    .await;
}

fn now() -> i64 {
    edge::clock::now().unix_timestamp()
}

fn kid(token: &str) -> String {
    let header = jsonwebtoken::decode_header(token).expect("a token");
    header.kid.expect("a kid")
}

fn rotation(request_id: &str) -> issuer::RotateSigningKeyRequest {
    issuer::RotateSigningKeyRequest {
        request_id: request_id.to_owned(),
        ..Default::default()
    }
}

fn revocation(id: &str) -> issuer::RevokeSigningKeyRequest {
    issuer::RevokeSigningKeyRequest {
        id: id.to_owned(),
        reason: "leaked".to_owned(),
        ..Default::default()
    }
}

/// Changes nothing.
async fn tries_to_revoke(admin: &User, id: &str) -> issuer::RevokeSigningKeyResponse {
    let only_tried = issuer::RevokeSigningKeyRequest {
        validate_only: true,
        ..revocation(id)
    };
    let tried = admin.asks(only_tried).await.expect("it would be revoked");
    assert!(!tried.planned_events.is_empty());
    tried
}

/// How many tokens there are on each page of two.
async fn pages_of_live_tokens(admin: &User, key: &str) -> Vec<usize> {
    let mut request = issuer::ListLiveTokensRequest {
        signing_key_id: key.to_owned(),
        page_size: 2,
        ..Default::default()
    };
    let mut sizes = Vec::new();
    loop {
        let page = admin.asks(request.clone()).await.expect("a page");
        sizes.push(page.live_tokens.len());
        if page.next_page_token.is_empty() {
            return sizes;
        }
        request.page_token = page.next_page_token;
    }
}

/// Two issuers on one database rotate as fast as they may, both issue, and each token is shown to relying parties that
/// read the keys of the one and of the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_notices_that_keys_rotate() {
    let world = Setup::default().keys(FAST).start().await;
    let admin = world.admin();
    let (deployer, web) = workspace(&admin).await;
    let sibling = world.runs_another_issuer().await;
    let other = sibling.for_user(&admin);
    let mut parties = [
        CachingParty::of(&world.issuer_url(), &world.issuer_url())
            .await
            .expect("keys"),
        CachingParty::of(&world.issuer_url(), &sibling.url)
            .await
            .expect("keys"),
    ];
    let long = admin.opens_job(&web).await;
    follows(&other, &long.token, &deployer).await;
    let mut seen = BTreeSet::new();
    let mut held = vec![admin.asks_as(&long.token, &deployer).await.expect("issued")];
    while seen.len() < 6 {
        let short = opens_short_job(&admin, &web, 5).await;
        for user in [&admin, &other] {
            // The job's token may be older than the key that signs now, and come from the other issuer.
            let issued = user.asks_as(&short.token, &deployer).await.expect("issued");
            seen.insert(kid(&issued.token));
            held.push(issued);
        }
        held.retain(|issued| issued.expire_time.is_some_and(|end| end.seconds > now()));
        for party in &mut parties {
            for issued in &held {
                if issued.expire_time.is_some_and(|end| end.seconds > now()) {
                    let verified = party.verify("aws", &issued.token).await;
                    verified.expect("it verifies");
                }
            }
            assert!(party.known() <= 6, "a handful: {}", party.known());
        }
    }
    // A token of the first key still opens the issuer's door.
    let issued = other.asks_as(&long.token, &deployer).await.expect("issued");
    assert_ne!(kid(&issued.token), kid(&long.token));
    // Each signed only once everybody had to know it, and one at a time.
    let mut keys = keys(&admin).await;
    keys.reverse();
    let time = |given: &Option<prost_types::Timestamp>| {
        given
            .map(|time| (time.seconds, time.nanos))
            .unwrap_or_default()
    };
    for pair in keys.windows(2) {
        let [before, after] = pair else { continue };
        // The last one may wait for another to leave the key set.
        let Some(published) = after.publish_time else {
            continue;
        };
        let ready = published.seconds + 2;
        assert!(after.ready_time.is_none_or(|time| time.seconds >= ready));
        if after.activate_time.is_some() {
            assert!(time(&after.activate_time) >= time(&after.ready_time));
            assert_eq!(time(&before.retire_time), time(&after.activate_time));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_stays_until_its_last_token_has_expired() {
    let slow = KeyTimes {
        rotation: 3_600,
        ..FAST
    };
    let world = Setup::default().keys(slow).start().await;
    let admin = world.admin();
    let (deployer, web) = workspace(&admin).await;
    let long = admin.opens_job(&web).await;
    let short = opens_short_job(&admin, &web, 4).await;
    let (first, next) = both(&admin).await;
    let issued = admin
        .asks_as(&short.token, &deployer)
        .await
        .expect("issued");
    assert_eq!(kid(&issued.token), first.kid);
    // The next one has just been published: it is asked for once, and takes over when it may.
    let asked = unique_id().to_string();
    let mut answers = Vec::new();
    for request in [rotation(&asked), rotation(&asked), rotation("")] {
        answers.push(admin.asks(request).await.expect("asked for").signing_key);
    }
    assert_eq!(answers[0], answers[1]);
    eventually(async || {
        let now = key(&admin, &next.id).await;
        let active = now.state() == SigningKeyState::Active;
        active.then_some(()).ok_or(format!("{now:?}"))
    })
    .await;
    let retiring = key(&admin, &first.trn).await;
    assert_eq!(retiring.state(), SigningKeyState::Retiring);
    let gone = eventually(async || {
        let now = key(&admin, &first.id).await;
        let gone = now.state() == SigningKeyState::Gone;
        gone.then_some(now.clone()).ok_or(format!("{now:?}"))
    })
    .await;
    let expired = issued.expire_time.expect("an end").seconds;
    assert!(gone.remove_time.expect("a time").seconds > expired);
    let mut party = eventually(async || {
        let url = world.issuer_url();
        let mut party = CachingParty::of(&url, &url).await.expect("keys");
        let verified = party.verify("aws", &issued.token).await;
        verified
            .err()
            .map(|_| party)
            .ok_or("the key is still there")
    })
    .await;
    // A job that lives on is still known by the token of then.
    assert_eq!(kid(&long.token), first.kid);
    let issued = admin.asks_as(&long.token, &deployer).await.expect("issued");
    assert_ne!(kid(&issued.token), first.kid);
    party
        .verify("aws", &issued.token)
        .await
        .expect("it verifies");
    // What signs no more is not kept.
    let kept: Vec<String> = sqlx::query_scalar("SELECT kid FROM signing_keys")
        .fetch_all(world.database(Service::Issuer).pool())
        .await
        .expect("the keys can be read");
    assert!(!kept.contains(&first.kid));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_key_is_out_at_once_and_its_tokens_are_known() {
    let world = World::start().await;
    let admin = world.admin();
    let (deployer, web) = workspace(&admin).await;
    let request = issuer::OpenJobRequest {
        request_id: unique_id().to_string(),
        ..job(&web)
    };
    let opened = admin.asks(request.clone()).await.expect("opened");
    let sibling = world.runs_another_issuer().await;
    let other = sibling.for_user(&admin);
    follows(&other, &opened.job_token, &deployer).await;
    let mut issued = BTreeSet::new();
    for user in [&admin, &other, &admin] {
        let credential = user
            .asks_as(&opened.job_token, &deployer)
            .await
            .expect("issued");
        issued.insert(credential.token_id);
    }
    let (active, next) = both(&admin).await;

    // Tried only, it says what would be at stake.
    let tried = tries_to_revoke(&admin, &active.id).await;
    assert_eq!(tried.managed_identity_ids, [deployer.as_str()]);

    let revoke = issuer::RevokeSigningKeyRequest {
        request_id: unique_id().to_string(),
        ..revocation(&active.id)
    };
    let answer = admin.asks(revoke.clone()).await.expect("revoked");
    let revoked = answer.signing_key.clone().expect("the key");
    assert_eq!(
        (revoked.state(), revoked.revoke_reason.as_str()),
        (SigningKeyState::Revoked, "leaked")
    );
    // Relying parties knew the next one already.
    let signs = answer.active_signing_key.expect("another key");
    assert_eq!(
        (&signs.id, signs.state()),
        (&next.id, SigningKeyState::Active)
    );
    assert_eq!(tried.live_tokens, answer.live_tokens);
    let listed: BTreeSet<_> = answer
        .live_tokens
        .iter()
        .map(|token| token.token_id.clone())
        .collect();
    assert_eq!(listed, issued);
    for token in &answer.live_tokens {
        assert_eq!(
            [
                &token.managed_identity_id,
                &token.workspace_id,
                &token.job_id
            ],
            [&deployer, &web, &opened.job.as_ref().expect("the job").id]
        );
    }
    assert_eq!(answer.next_page_token, "");
    // Whose they are, each once.
    assert_eq!(
        (&answer.managed_identity_ids, &answer.workspace_ids),
        (&vec![deployer.clone()], &vec![web.clone()])
    );
    assert_eq!(answer.service_account_ids, [""; 0]);
    let again = admin.asks(revoke).await.expect("answered alike");
    assert_eq!(
        (again.signing_key, again.live_tokens),
        (answer.signing_key, answer.live_tokens)
    );
    admin
        .asks(revocation(&active.id))
        .await
        .expect("nothing to change");

    // By pages, from any of the issuers.
    assert_eq!(pages_of_live_tokens(&other, &active.trn).await, [2, 1]);

    // At the issuer that was asked at once, at the other one as soon as it has looked.
    let published = async |base: &str| {
        let keys = reqwest::get(format!("{base}/oauth/discovery/keys")).await;
        keys.expect("an answer").text().await.expect("keys")
    };
    assert!(!published(&world.issuer_url()).await.contains(&active.kid));
    refused(
        admin.asks_as(&opened.job_token, &deployer).await,
        Code::Unauthenticated,
        "TOKEN_KEY_UNKNOWN",
    );
    eventually(async || {
        let there = published(&sibling.url).await.contains(&active.kid);
        (!there).then_some(()).ok_or("it is still there")
    })
    .await;
    refused(
        other.asks_as(&opened.job_token, &deployer).await,
        Code::Unauthenticated,
        "TOKEN_KEY_UNKNOWN",
    );
    // The dispatcher gets a good token for the same job.
    let reopened = admin.asks(request).await.expect("answered again");
    assert_eq!(reopened.job, opened.job);
    for user in [&admin, &other] {
        let credential = user
            .asks_as(&reopened.job_token, &deployer)
            .await
            .expect("issued");
        assert_eq!(kid(&credential.token), next.kid);
    }
}

/// An alias's token names its source, and what another key has signed may have been had with a token of the one that leaked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_are_named_whom_a_revoked_key_has_opened_something() {
    let slow = KeyTimes {
        rotation: 3_600,
        ..FAST
    };
    let world = Setup::default().keys(slow).start().await;
    let admin = world.admin();
    let (source, _) = workspace(&admin).await;
    admin.creates_group("borrower").await;
    let alias = admin.creates_alias("borrower/shared", &source).await.id;
    let web = admin.creates_workspace("borrower/web").await.id;
    admin.assigns(&alias, &web).await;
    let mut account = trusting("acme/ci", &world.issuer_url(), &source);
    let wanted = account.service_account.get_or_insert_default();
    "aws".clone_into(&mut wanted.trust_policies[0].audience);
    let made = admin.asks(account).await.expect("made");
    let account = made.service_account.expect("the service account").id;
    let (first, next) = both(&admin).await;
    let job = admin.opens_job(&web).await;
    let credential = eventually(async || admin.asks_as(&job.token, &alias).await).await;
    admin.asks(rotation("")).await.expect("asked for");
    eventually(async || {
        let now = key(&admin, &next.id).await;
        let active = now.state() == SigningKeyState::Active;
        active.then_some(()).ok_or(format!("{now:?}"))
    })
    .await;
    let later = eventually(async || {
        let later = admin.asks_as(&job.token, &alias).await;
        let later = later.map_err(|status| status.to_string())?;
        let changed = kid(&later.token) == next.kid;
        changed.then_some(later).ok_or("the old key".to_owned())
    })
    .await;
    let exchange = issuer::ExchangeTokenRequest {
        service_account_id: account.clone(),
        subject_token: credential.token.clone(),
        ..Default::default()
    };
    let exchanged = admin.asks(exchange.clone()).await.expect("exchanged");
    let further = issuer::ExchangeTokenRequest {
        subject_token: later.token.clone(),
        ..exchange
    };
    let exchanged_further = admin.asks(further.clone()).await.expect("exchanged");

    let revoked = admin.asks(revocation(&first.id)).await.expect("revoked");
    let listed: BTreeSet<_> = revoked
        .live_tokens
        .iter()
        .map(|token| [&token.token_id, &token.kid, &token.subject].map(String::as_str))
        .collect();
    let expected = [
        [&credential.token_id, &first.kid, &source],
        [&later.token_id, &next.kid, &source],
        [&exchanged.token_id, &next.kid, &account],
        [&exchanged_further.token_id, &next.kid, &account],
    ];
    for token in expected {
        let token = token.map(String::as_str);
        assert!(listed.contains(&token), "{token:?} is not in {listed:?}");
    }
    let mut identities = [alias, source];
    identities.sort();
    assert_eq!(revoked.managed_identity_ids, identities);
    assert_eq!(revoked.service_account_ids, [account]);
    // What was had with it opens nothing more.
    let outcome = admin.asks(further).await;
    refused(outcome, Code::Unauthenticated, "TOKEN_KEY_REVOKED");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_token_is_signed_with_a_revoked_key_by_any_issuer() {
    let world = World::start().await;
    let admin = world.admin();
    let (deployer, web) = workspace(&admin).await;
    let sibling = world.runs_another_issuer().await;
    let other = sibling.for_user(&admin);
    for _ in 0..3 {
        let (active, _) = both(&admin).await;
        // The other issuer may not have looked yet; what it knows of jobs' tokens is its own affair here.
        admin.asks(revocation(&active.id)).await.expect("revoked");
        let job = admin.opens_job(&web).await;
        let issued = eventually(async || other.asks_as(&job.token, &deployer).await).await;
        assert_ne!(kid(&issued.token), active.kid);
    }
}

/// Whatever the other issuer, which may not have looked yet, knows of the keys.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_of_a_revoked_key_opens_nothing_at_any_issuer() {
    let world = World::start().await;
    let admin = world.admin();
    let (deployer, web) = workspace(&admin).await;
    let mut account = trusting("acme/ci", &world.issuer_url(), &deployer);
    let wanted = account.service_account.get_or_insert_default();
    "aws".clone_into(&mut wanted.trust_policies[0].audience);
    let made = admin.asks(account).await.expect("made");
    let account = made.service_account.expect("the service account").id;
    let sibling = world.runs_another_issuer().await;
    let other = sibling.for_user(&admin);
    let mut reasons = BTreeSet::new();
    for _ in 0..5 {
        let (active, _) = both(&admin).await;
        let job = eventually(async || {
            let job = admin.opens_job(&web).await;
            let known = other.asks_as(&job.token, &deployer).await;
            known.map(|issued| (issued.token, other.with_token(&job.token)))
        });
        let (credential, job) = job.await;
        let repeated = issuer::HeartbeatJobRequest {
            request_id: unique_id().to_string(),
            ..Default::default()
        };
        job.asks(repeated.clone()).await.expect("alive");
        let exchange = issuer::ExchangeTokenRequest {
            service_account_id: account.clone(),
            subject_token: credential,
            ..Default::default()
        };
        let exchanged = other.asks(exchange.clone()).await;
        exchanged.expect("exchanged");
        let revoked = admin.in_a_hurry().asks(revocation(&active.id)).await;
        let consistency_token = revoked.expect("revoked").consistency_token;
        let all = issuer::IssueCredentialsRequest { consistency_token };
        let unknown = deployer.replacen("mi_0", "mi_1", 1);
        let refusals = tokio::join!(
            async { job.asks(user::credential(&deployer)).await.map(drop) },
            async { job.asks(user::credential(&unknown)).await.map(drop) },
            async { job.asks(all).await.map(drop) },
            async {
                job.asks(issuer::HeartbeatJobRequest::default())
                    .await
                    .map(drop)
            },
            async { job.asks(repeated).await.map(drop) },
            async { other.asks(exchange).await.map(drop) },
        );
        let (one, none, each, alive, again, exchanged) = refusals;
        for (what, outcome) in [
            ("one", one),
            ("none", none),
            ("each", each),
            ("alive", alive),
            ("again", again),
            ("exchanged", exchanged),
        ] {
            let refusal = outcome.expect_err(what);
            assert_eq!(refusal.code(), Code::Unauthenticated, "{what}: {refusal}");
            reasons.insert(reason(&refusal));
        }
    }
    // Once it has looked, it only knows that the key is not there.
    let known = ["TOKEN_KEY_REVOKED", "TOKEN_KEY_UNKNOWN"];
    reasons.retain(|reason| !known.contains(&reason.as_str()));
    assert!(reasons.is_empty(), "{reasons:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_a_token_of_a_revoked_key_is_told_so() {
    let world = World::start().await;
    let admin = world.admin();
    let (deployer, web) = workspace(&admin).await;
    let job = admin.opens_job(&web).await;
    eventually(async || admin.asks_as(&job.token, &deployer).await).await;
    // As another issuer leaves it, before this one has looked.
    let revoked = "WITH revoked AS (INSERT INTO facts (key, value) VALUES ($1, ''))
         UPDATE log_head SET revision = revision + 1";
    sqlx::query(revoked)
        .bind(format!("signing-key/revoked/{}", kid(&job.token)))
        .execute(world.database(Service::Issuer).pool())
        .await
        .expect("revoked");
    let of_job = admin.with_token(&job.token);
    let issued = of_job.asks(user::credential(&deployer)).await;
    let alive = of_job.asks(issuer::HeartbeatJobRequest::default()).await;
    for outcome in [issued.map(drop), alive.map(drop)] {
        let refusal = refused(outcome, Code::Unauthenticated, "TOKEN_KEY_REVOKED");
        assert!(refusal.message().contains("same OpenJob"), "{refusal}");
    }
}

/// What is remembered of a job would do for its credentials, and what is known of the logs that are followed is young.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_issuer_that_can_not_look_at_its_keys_issues_nothing() {
    let world = Setup::default().staleness_bound(2).start().await;
    let admin = world.admin();
    let (deployer, web) = workspace(&admin).await;
    let job = admin.opens_job(&web).await;
    eventually(async || admin.asks_as(&job.token, &deployer).await).await;
    let mut held = world.database(Service::Issuer).pool().begin().await;
    let held = held.as_mut().expect("a transaction");
    sqlx::query("LOCK TABLE facts IN ACCESS EXCLUSIVE MODE")
        .execute(&mut **held)
        .await
        .expect("the lock");
    let hasty = admin.within(Duration::from_secs(2));
    let refusal = eventually(async || {
        let issued = hasty.asks_as(&job.token, &deployer).await;
        let status = issued.err().ok_or("it is still issued")?;
        let told = status.message().contains("signing keys");
        told.then_some(()).ok_or("it is not said why")
    });
    refusal.await;
    sqlx::query("ROLLBACK")
        .execute(&mut **held)
        .await
        .expect("no lock");
    eventually(async || admin.asks_as(&job.token, &deployer).await).await;
}

/// Right after a revocation there is no next key yet, and the next revocation makes one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_keys_that_are_used_are_kept() {
    let world = World::start().await;
    let admin = world.admin();
    let mut active = both(&admin).await.0.id;
    for _ in 0..3 {
        let revoked = admin.asks(revocation(&active)).await.expect("revoked");
        active = revoked.active_signing_key.expect("another key").id;
        tries_to_revoke(&admin, &active).await;
        // Of several at once, those that come second find that it is revoked already.
        let (one, other) = tokio::join!(
            admin.asks(revocation(&active)),
            admin.asks(revocation(&active))
        );
        let [signs, same] = [one, other].map(|answer| {
            let signs = answer.expect("revoked").active_signing_key;
            signs.expect("another key").id
        });
        assert_eq!(signs, same);
        active = signs;
    }
    eventually(async || {
        let kept: BTreeSet<String> = sqlx::query_scalar("SELECT kid FROM signing_keys")
            .fetch_all(world.database(Service::Issuer).pool())
            .await
            .expect("the keys can be read")
            .into_iter()
            .collect();
        let mut used = BTreeSet::new();
        for algorithm in ["RS256", "ES256"] {
            let keys = keys_for(&admin, algorithm).await.into_iter();
            let used_yet = keys.filter(|key| {
                [
                    SigningKeyState::Prepared,
                    SigningKeyState::Published,
                    SigningKeyState::Active,
                ]
                .contains(&key.state())
            });
            used.extend(used_yet.map(|key| key.kid));
        }
        let same = kept == used;
        same.then_some(())
            .ok_or(format!("{kept:?}, and {used:?} used"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_key_set_is_sent_once() {
    let world = World::start().await;
    both(&world.admin()).await;
    let client = reqwest::Client::new();
    for path in [".well-known/openid-configuration", "oauth/discovery/keys"] {
        let url = format!("{}/{path}", world.issuer_url());
        let get = async |etag: &str| {
            let request = client.get(&url).header("if-none-match", etag);
            request.send().await.expect("an answer")
        };
        let first = get("\"other\"").await;
        assert_eq!(first.status(), StatusCode::OK);
        assert_eq!(first.headers()["cache-control"], "public, max-age=300");
        assert_eq!(first.headers()["content-type"], "application/json");
        let etag = first.headers()["etag"].to_str().expect("text").to_owned();
        assert!(!first.bytes().await.expect("a body").is_empty());
        for known in [
            etag.clone(),
            format!("W/{etag}"),
            format!("\"x\", {etag}"),
            "*".to_owned(),
        ] {
            let again = get(&known).await;
            assert_eq!(again.status(), StatusCode::NOT_MODIFIED, "{known}");
            assert_eq!(again.headers()["etag"], etag.as_str());
            assert!(again.bytes().await.expect("a body").is_empty());
        }
    }
}

/// What the README has done with a database that was restored from a backup, in which any key may be one that was revoked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_new_epoch_of_the_log_every_key_ends() {
    let mut world = World::start().await;
    let admin = world.admin();
    let (deployer, web) = workspace(&admin).await;
    let request = issuer::OpenJobRequest {
        request_id: unique_id().to_string(),
        ..job(&web)
    };
    let opened = admin.asks(request.clone()).await.expect("opened");
    let (active, next) = both(&admin).await;
    world.stops(Service::Issuer).await;
    sqlx::query("UPDATE log_head SET epoch = gen_random_uuid()")
        .execute(world.database(Service::Issuer).pool())
        .await
        .expect("a new epoch");
    world.starts(Service::Issuer).await;
    let hurried = admin.in_a_hurry();
    let reopened = eventually(async || hurried.asks(request.clone()).await).await;
    assert_eq!(reopened.job, opened.job);
    let issued = eventually(async || admin.asks_as(&reopened.job_token, &deployer).await).await;
    let signs = kid(&issued.token);
    assert!(![&active.kid, &next.kid].contains(&&signs), "{signs}");
    let url = world.issuer_url();
    let verified = relying_party::verify(&url, "aws", &issued.token).await;
    verified.expect("a stranger verifies it");
    refused(
        admin.asks_as(&opened.job_token, &deployer).await,
        Code::Unauthenticated,
        "TOKEN_KEY_UNKNOWN",
    );
    for before in [active, next] {
        let now = key(&admin, &before.id).await;
        assert_eq!(now.state(), SigningKeyState::Revoked);
        assert!(now.revoke_reason.contains("backup"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_key_encryption_key_can_be_changed() {
    let mut world = World::start().await;
    let admin = world.admin();
    let (deployer, web) = workspace(&admin).await;
    let (active, _) = both(&admin).await;
    let sealed = async |world: &World| -> Vec<u8> {
        sqlx::query_scalar("SELECT sealed FROM signing_keys WHERE kid = $1")
            .bind(&active.kid)
            .fetch_one(world.database(Service::Issuer).pool())
            .await
            .expect("the key can be read")
    };
    let old = sealed(&world).await;
    world.stops(Service::Issuer).await;
    let (first, second) = (
        "//79/Pv6+fj39vX08/Lx8O/u7ezr6uno5+bl5OPi4eA=",
        "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
    );
    world.writes("key-encryption-key", &format!("{first}\n{second}\n"));
    world.starts(Service::Issuer).await;
    world.is_serving(Service::Issuer).await;
    let new = sealed(&world).await;
    assert_ne!(new, old);
    world.stops(Service::Issuer).await;
    world.writes("key-encryption-key", first);
    world.starts(Service::Issuer).await;
    world.is_serving(Service::Issuer).await;
    assert_eq!(sealed(&world).await, new);
    let job = admin.opens_job(&web).await;
    let issued = eventually(async || admin.asks_as(&job.token, &deployer).await).await;
    assert_eq!(kid(&issued.token), active.kid);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_requests_for_keys() {
    let world = World::start().await;
    let admin = world.admin();
    let (active, next) = both(&admin).await;
    for wrong in [
        "",
        "?",
        "grp_01h455vb4pex5vsknk084sn02q",
        "trn:signing_key:a/b",
    ] {
        let get = issuer::GetSigningKeyRequest {
            id: wrong.to_owned(),
            ..Default::default()
        };
        invalid(admin.asks(get).await, &["id"]);
        let tokens = issuer::ListLiveTokensRequest {
            signing_key_id: wrong.to_owned(),
            ..Default::default()
        };
        invalid(admin.asks(tokens).await, &["signing_key_id"]);
        let revoke = issuer::RevokeSigningKeyRequest {
            reason: "x".repeat(1_025),
            ..revocation(wrong)
        };
        invalid(admin.asks(revoke).await, &["id", "reason"]);
    }
    let unknown = "key_01h455vb4pex5vsknk084sn02q";
    not_found(admin.asks(revocation(unknown)).await);
    let get = issuer::GetSigningKeyRequest {
        id: unknown.to_owned(),
        ..Default::default()
    };
    not_found(admin.asks(get).await);
    invalid(admin.asks(rotation("x")).await, &["request_id"]);
    let page = |page_size, page_token: &str| issuer::ListSigningKeysRequest {
        page_size,
        page_token: page_token.to_owned(),
        algorithm: "RS256".to_owned(),
        ..Default::default()
    };
    invalid(admin.asks(page(-1, "")).await, &["page_size"]);
    invalid(admin.asks(page(1, "x")).await, &["page_token"]);
    let first = admin.asks(page(1, "")).await.expect("a page");
    let second = admin
        .asks(page(1, &first.next_page_token))
        .await
        .expect("a page");
    let ids = |page: &issuer::ListSigningKeysResponse| page.signing_keys[0].id.clone();
    assert_eq!([ids(&first), ids(&second)], [next.id, active.id]);
    assert_eq!(second.next_page_token, "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_algorithm_has_keys_of_its_own() {
    let world = World::start().await;
    let admin = world.admin();
    let (rs256, web) = workspace(&admin).await;
    let mut request = aws_identity("acme/short");
    let wanted = request.managed_identity.get_or_insert_default();
    wanted.configuration = Some(identity::Configuration {
        r#type: Some(identity::configuration::Type::Kubernetes(
            identity::KubernetesConfiguration::default(),
        )),
    });
    wanted.token_settings = Some(identity::TokenSettings {
        signing_algorithm: identity::SigningAlgorithm::Es256.into(),
        ..Default::default()
    });
    let made = admin.asks(request.clone()).await.expect("made");
    let es256 = made.managed_identity.expect("the identity").id;
    let token = admin.assigns(&es256, &web).await;
    let job = admin.opens_job(&web).await;
    let url = world.issuer_url();
    let mut kids = BTreeSet::new();
    // One for each, in one command: each is signed as its identity says, and both verify.
    let asker = admin.with_token(&job.token);
    let issued = asker.asks(issuer::IssueCredentialsRequest {
        consistency_token: token,
    });
    for credential in issued.await.expect("issued").credentials {
        let expected = if credential.managed_identity_id == es256 {
            Algorithm::ES256
        } else {
            assert_eq!(credential.managed_identity_id, rs256);
            Algorithm::RS256
        };
        let verified = relying_party::verify(&url, &credential.audience, &credential.token).await;
        let verified = verified.expect("a stranger verifies it");
        assert_eq!(verified.header.alg, expected);
        assert_eq!(verified.claims["sub"], credential.managed_identity_id);
        kids.insert(verified.header.kid);
    }
    assert_eq!(kids.len(), 2);
    let discovery = reqwest::get(format!("{url}/.well-known/openid-configuration")).await;
    let discovery: serde_json::Value = discovery.expect("got").json().await.expect("JSON");
    assert_eq!(
        discovery["id_token_signing_alg_values_supported"],
        serde_json::json!(["RS256", "ES256"])
    );

    // Asked for at once, the next key signs when it may; the other algorithm's goes on.
    let active = async |algorithm: &str| {
        let mut keys = keys_for(&admin, algorithm).await;
        keys.retain(|key| key.state() == SigningKeyState::Active);
        assert!(keys.iter().all(|key| key.algorithm == algorithm));
        keys.pop().expect("one signs")
    };
    let (rsa, ecdsa) = (active("RS256").await, active("ES256").await);
    let rotated = admin.asks(issuer::RotateSigningKeyRequest {
        algorithm: "ES256".to_owned(),
        ..Default::default()
    });
    let rotated = rotated.await.expect("asked for").signing_key;
    let rotated = rotated.expect("the key");
    assert_eq!((&rotated.id, rotated.rotation_requested), (&ecdsa.id, true));
    assert_eq!(active("RS256").await, rsa);
    // Revoked, another one of its algorithm signs, and nothing else changes.
    let revoked = admin.asks(revocation(&ecdsa.id)).await.expect("revoked");
    let signs = revoked.active_signing_key.expect("one signs");
    assert_eq!(signs.algorithm, "ES256");
    assert_eq!(revoked.live_tokens.len(), 1);
    assert_eq!(active("RS256").await, rsa);
    let issued = admin.asks_as(&job.token, &es256).await.expect("issued");
    assert_eq!(kid(&issued.token), signs.kid);
    let verified = relying_party::verify(&url, "kubernetes", &issued.token).await;
    verified.expect("a stranger verifies it");

    // Azure takes RS256 only, and a number that stands for none is none.
    let wanted = request.managed_identity.get_or_insert_default();
    "azure".clone_into(&mut wanted.name);
    wanted.configuration = Some(identity::Configuration {
        r#type: Some(identity::configuration::Type::Azure(
            identity::AzureConfiguration {
                client_id: "00000000-0000-0000-0000-000000000001".to_owned(),
                tenant_id: "00000000-0000-0000-0000-000000000002".to_owned(),
                ..Default::default()
            },
        )),
    });
    let wrong = ["managed_identity.token_settings.signing_algorithm"];
    invalid(admin.asks(request.clone()).await, &wrong);
    let wanted = request.managed_identity.get_or_insert_default();
    wanted
        .token_settings
        .get_or_insert_default()
        .signing_algorithm = 9;
    invalid(admin.asks(request).await, &wrong);
    let unknown = issuer::RotateSigningKeyRequest {
        algorithm: "none".to_owned(),
        ..Default::default()
    };
    invalid(admin.asks(unknown).await, &["algorithm"]);
}
