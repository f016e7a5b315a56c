//! A group, a workspace, an identity, a job, a credential: what each on the outside sees of it.

use async_nats::jetstream::message::StreamMessage;
use e2e::world::Event;
use e2e::{Service, World, relying_party};
use prost::Message as _;
use proto::issuer::v1 as issuer;
use serde_json::Value;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_gets_a_token_that_a_stranger_verifies_and_the_audit_knows() {
    let world = World::start().await;
    let alice = world.user("alice");
    let acme = world.admin().creates_group("acme").await;
    world
        .admin()
        .grants(&alice, proto::access::v1::Role::Owner, &acme.id)
        .await;
    alice.creates_group("acme/prod").await;
    let web = alice.creates_workspace("acme/prod/web").await;
    let deployer = alice.creates_identity("acme/deployer").await;
    alice.assigns(&deployer.trn, &web.trn).await;
    let opened = alice.opens_job(&web.trn).await;
    assert_eq!(opened.job.principal, "user:dev/alice");
    let issued = alice
        .asks_as(&opened.token, &deployer.trn)
        .await
        .expect("a credential");

    let issuer_url = world.issuer_url();
    let verified = relying_party::verify(&issuer_url, "aws", &issued.token)
        .await
        .expect("it verifies");
    assert_eq!(verified.header.alg, jsonwebtoken::Algorithm::RS256);
    let claims = &verified.claims;
    let seconds = |claim: &str| claims[claim].as_i64().expect("a NumericDate");
    for (claim, wanted) in [
        ("iss", issuer_url.as_str()),
        ("sub", &deployer.id),
        ("aud", "aws"),
        ("jti", &issued.token_id),
        ("tharsis_job_id", &opened.job.id),
        ("tharsis_stage", "apply"),
        ("tharsis_workspace_id", &web.id),
        ("tharsis_workspace_path", "acme/prod/web"),
        ("tharsis_group_path", "acme/prod"),
    ] {
        assert_eq!(claims[claim], Value::from(wanted), "{claim}");
    }
    assert_eq!(
        (seconds("nbf"), seconds("exp") - seconds("iat")),
        (seconds("iat"), 900)
    );
    assert_eq!(
        issued.expire_time.map(|time| time.seconds),
        Some(seconds("exp"))
    );
    // The job's own token is not for clouds: its audience is the issuer.
    assert!(
        relying_party::verify(&issuer_url, "aws", &opened.token)
            .await
            .is_err()
    );

    let audit = world.log(Service::Issuer).await;
    let audited = audit.last().expect("an event");
    assert_eq!(audited.event_type, "tharsis.issuer.v1.CredentialIssued");
    let recorded = issuer::CredentialIssued::decode(audited.payload.as_slice()).expect("an event");
    assert_eq!(
        [
            recorded.token_id,
            recorded.subject,
            recorded.job_id,
            recorded.workspace_id,
            recorded.audience,
            recorded.kid
        ],
        [
            issued.token_id,
            deployer.id,
            opened.job.id.clone(),
            web.id,
            "aws".to_owned(),
            verified.header.kid.expect("a kid")
        ]
    );
    assert!(
        audited.metadata.contains(&format!("job:{}", opened.job.id)),
        "{}",
        audited.metadata
    );
    for service in Service::WITH_LOG {
        holds_what_the_log_holds(&world, service).await;
    }
    no_secret_in_events(&world, &[&issued.token, &opened.token, alice.token()]).await;
}

/// The stream of a log, with CloudEvents headers, each event at the sequence that is its position.
pub(crate) async fn holds_what_the_log_holds(world: &World, service: Service) {
    let log = world.log(service).await;
    let stream = world.stream(service).await;
    assert_eq!(log.len(), stream.len(), "{service:?}");
    for ((event, message), expected) in log.iter().zip(&stream).zip(1..) {
        assert_eq!((event.position, message.sequence), (expected, expected));
        assert_eq!(message.payload, event.payload);
        check_headers(service, event, message);
    }
}

fn check_headers(service: Service, event: &Event, message: &StreamMessage) {
    let header = |name: &str| {
        message
            .headers
            .get(name)
            .unwrap_or_else(|| panic!("no header {name}"))
            .as_str()
            .to_owned()
    };
    assert_eq!(header("ce-specversion"), "1.0");
    assert_eq!(
        header("ce-source"),
        format!("urn:tharsis:{}", service.name())
    );
    assert_eq!(header("ce-type"), event.event_type);
    assert_eq!(header("ce-subject"), event.stream_id);
    assert_eq!(header("ce-position"), event.position.to_string());
    assert_eq!(header("content-type"), "application/protobuf");
    assert_eq!(header("ce-id"), header("Nats-Msg-Id"));
    for present in ["ce-time", "ce-epoch", "ce-actor"] {
        assert!(!header(present).is_empty());
    }
    let (aggregate, id) = event.stream_id.split_once('/').expect("aggregate/id");
    let name = event.event_type.rsplit('.').next().expect("a name");
    let subject = format!(".{}.{aggregate}.{id}.{name}", service.name());
    assert!(
        message.subject.as_str().ends_with(&subject),
        "{}",
        message.subject
    );
}

/// Neither a token, nor a signature, nor anything of a private key is in any event.
async fn no_secret_in_events(world: &World, tokens: &[&str]) {
    let mut secrets: Vec<Vec<u8>> = Vec::new();
    for token in tokens {
        let parts: Vec<&str> = token.split('.').collect();
        assert_eq!(parts.len(), 3);
        // The header is public, and the same in every token.
        secrets.extend(parts[1..].iter().map(|part| part.as_bytes().to_vec()));
    }
    let sealed: Vec<Vec<u8>> = sqlx::query_scalar("SELECT sealed FROM signing_keys")
        .fetch_all(world.database(Service::Issuer).pool())
        .await
        .expect("the keys can be read");
    assert!(!sealed.is_empty());
    secrets.extend(sealed);
    // The private members of a JWK (RFC 7518, 6.3.2), in case someone writes the whole key.
    let private = [
        "\"d\":",
        "\"p\":",
        "\"q\":",
        "\"dp\":",
        "\"dq\":",
        "\"qi\":",
        "PRIVATE KEY",
    ];
    secrets.extend(private.map(|member| member.as_bytes().to_vec()));
    for service in Service::WITH_LOG {
        for event in world.log(service).await {
            for bytes in [&event.payload[..], event.metadata.as_bytes()] {
                for secret in &secrets {
                    let found = bytes.windows(secret.len()).any(|window| window == secret);
                    assert!(!found, "a secret is in {service:?} {}", event.position);
                }
            }
        }
    }
}
