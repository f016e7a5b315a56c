//! What every service does alike: reflection, health, and knowing its callers.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use e2e::refusal::refused;
use e2e::{Service, World, issuer};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use prost_reflect::DescriptorPool;
use proto::eventlog::v1::AwaitRequest;
use proto::issuer::v1::OpenJobRequest;
use proto::namespace::v1::GetGroupRequest;
use serde_json::{Value, json};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Code, Request, Response};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_prost::ProstCodec;

/// What a service serves beside health and reflection.
fn served(service: Service) -> Vec<String> {
    let pool = DescriptorPool::decode(proto::DESCRIPTORS).expect("the descriptors");
    let own = match service {
        Service::Projector => "tharsis.directory.v1".to_owned(),
        _ => format!("tharsis.{}.v1", service.name()),
    };
    let of_package = pool.services().filter(|found| found.package_name() == own);
    let mut names: Vec<_> = of_package
        .map(|found| found.full_name().to_owned())
        .collect();
    assert!(!names.is_empty(), "{own} has no services");
    names.push("tharsis.eventlog.v1.ConsistencyService".to_owned());
    if service != Service::Projector {
        names.push("tharsis.eventlog.v1.EventLogService".to_owned());
    }
    names.sort_unstable();
    names
}

/// The services that reflection lists, and whether it knows a symbol, by one version of it.
macro_rules! reflected {
    ($version:ident, $world:expr, $service:expr, $symbol:expr) => {{
        use tonic_reflection::pb::$version::ServerReflectionRequest;
        use tonic_reflection::pb::$version::server_reflection_client::ServerReflectionClient;
        use tonic_reflection::pb::$version::server_reflection_request::MessageRequest;
        use tonic_reflection::pb::$version::server_reflection_response::MessageResponse;

        let mut client = ServerReflectionClient::new($world.stranger().channel($service));
        let ask = |message_request| ServerReflectionRequest {
            host: String::new(),
            message_request: Some(message_request),
        };
        let requests = [
            ask(MessageRequest::ListServices(String::new())),
            ask(MessageRequest::FileContainingSymbol($symbol.to_owned())),
        ];
        let answers = client
            .server_reflection_info(futures::stream::iter(requests))
            .await
            .expect("reflection");
        let mut answers = answers.into_inner();
        let (mut names, mut files) = (Vec::new(), 0);
        while let Some(answer) = answers.message().await.expect("an answer") {
            match answer.message_response {
                Some(MessageResponse::ListServicesResponse(list)) => {
                    names.extend(list.service.into_iter().map(|service| service.name));
                }
                Some(MessageResponse::FileDescriptorResponse(found)) => {
                    files += found.file_descriptor_proto.len()
                }
                other => panic!("{other:?}"),
            }
        }
        names.retain(|name| name.starts_with("tharsis."));
        names.sort_unstable();
        (names, files > 0)
    }};
}

fn group() -> GetGroupRequest {
    GetGroupRequest {
        id: "trn:group:nope".to_owned(),
        ..Default::default()
    }
}

fn job() -> OpenJobRequest {
    e2e::user::job("trn:workspace:acme/nope")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_get_reflection_and_health_and_nothing_else() {
    let world = World::start().await;
    let stranger = world.stranger();
    for service in Service::ALL {
        let names = served(service);
        let symbol = names[0].as_str();
        let expected = (names.clone(), true);
        assert_eq!(reflected!(v1, world, service, symbol), expected);
        assert_eq!(reflected!(v1alpha, world, service, symbol), expected);
        let mut health = HealthClient::new(stranger.channel(service));
        for name in names.iter().map(String::as_str).chain([""]) {
            let request = HealthCheckRequest {
                service: name.to_owned(),
            };
            let answer = health.check(request).await.expect("an answer");
            assert_eq!(answer.get_ref().status(), ServingStatus::Serving, "{name}");
        }
        let nobody = HealthCheckRequest {
            service: "nobody".to_owned(),
        };
        assert_eq!(
            health.check(nobody).await.expect_err("nobody").code(),
            Code::NotFound
        );

        for path in [
            "/tharsis.namespace.v1.GroupService/Nope",
            "/tharsis.Nope/Nope",
            "/nope.Nope/Nope",
        ] {
            let mut grpc = tonic::client::Grpc::new(stranger.channel(service));
            grpc.ready().await.expect("connected");
            let codec = ProstCodec::<AwaitRequest, AwaitRequest>::default();
            let answer = grpc
                .unary(
                    Request::new(AwaitRequest::default()),
                    PathAndQuery::from_static(path),
                    codec,
                )
                .await;
            let refusal = refused(answer, Code::Unimplemented, "NOT_SERVED");
            assert!(refusal.message().contains(path), "{refusal}");
        }
        // Nor is anything looked for that another service has.
        let elsewhere = match service {
            Service::Issuer => world.admin().calls(service, group()).await.map(drop),
            _ => world.admin().calls(service, job()).await.map(drop),
        };
        let refusal = refused(elsewhere, Code::Unimplemented, "NOT_SERVED");
        assert!(refusal.message().contains("another service"), "{refusal}");
        let status = refused(
            stranger
                .calls(service, AwaitRequest::default())
                .await
                .map(Response::into_inner),
            Code::Unauthenticated,
            "TOKEN_MISSING",
        );
        assert!(
            status.message().contains("authorization: Bearer"),
            "{status:?}"
        );
    }
}

/// With its signature, by whoever makes it.
fn unsigned(header: &Value, claims: &Value) -> String {
    let part = |json: &Value| URL_SAFE_NO_PAD.encode(json.to_string());
    format!("{}.{}.", part(header), part(claims))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_good_tokens_are_taken() {
    let world = World::start().await;
    let callers = world.callers();
    let with = |changes: &Value| {
        let mut claims = callers.claims("alice");
        for (claim, value) in changes.as_object().expect("claims") {
            claims[claim] = value.clone();
        }
        claims
    };
    let kid = issuer::key().jwk().common.key_id.clone();
    // The classic: the public key as the secret of a symmetric signature.
    let public = serde_json::to_vec(issuer::key().jwk()).expect("JSON");
    let symmetric = Header {
        kid: kid.clone(),
        ..Header::new(Algorithm::HS256)
    };
    let symmetric = jsonwebtoken::encode(
        &symmetric,
        &with(&json!({})),
        &EncodingKey::from_secret(&public),
    )
    .expect("signed");
    let good = callers.token("alice");
    let (message, signature) = good.rsplit_once('.').expect("a signature");
    let other = if signature.starts_with('A') { "B" } else { "A" };
    let (header, claims) = message.split_once('.').expect("a header");
    let admins = URL_SAFE_NO_PAD.encode(with(&json!({ "sub": "admin" })).to_string());
    assert_ne!(claims, admins);
    let bad = [
        (
            callers.sign(&with(&json!({ "exp": 1_000_000_000 }))),
            "TOKEN_EXPIRED",
        ),
        (
            callers.sign(&with(&json!({ "nbf": 4_000_000_000_u64 }))),
            "TOKEN_NOT_YET_VALID",
        ),
        (
            callers.sign(&with(&json!({ "aud": "aws" }))),
            "TOKEN_AUDIENCE_WRONG",
        ),
        (
            callers.sign(&with(&json!({ "iss": "http://127.0.0.1:1" }))),
            "TOKEN_ISSUER_UNKNOWN",
        ),
        (
            callers.sign(&with(&json!({ "sub": "a\nb" }))),
            "TOKEN_CLAIM_INVALID",
        ),
        (
            unsigned(&json!({ "alg": "none", "kid": kid }), &with(&json!({}))),
            "TOKEN_ALGORITHM_REFUSED",
        ),
        (symmetric, "TOKEN_ALGORITHM_REFUSED"),
        (
            format!("{message}.{other}{}", &signature[1..]),
            "TOKEN_SIGNATURE_INVALID",
        ),
        (
            format!("{header}.{admins}.{signature}"),
            "TOKEN_SIGNATURE_INVALID",
        ),
        ("alice".to_owned(), "TOKEN_MALFORMED"),
    ];
    for service in Service::ALL {
        for (token, reason) in &bad {
            let user = world
                .stranger()
                .with_token(token)
                .within(Duration::from_secs(10));
            let outcome = user.calls(service, AwaitRequest::default()).await;
            refused(
                outcome.map(Response::into_inner),
                Code::Unauthenticated,
                reason,
            );
        }
        let alice = world.user("alice");
        alice
            .calls(service, AwaitRequest::default())
            .await
            .expect("a good one");
    }
}
