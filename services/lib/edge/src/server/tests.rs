//! With real connections.

use std::sync::Arc;

use proto::eventlog::v1::consistency_service_client::ConsistencyServiceClient;
use proto::eventlog::v1::consistency_service_server::{
    ConsistencyService, ConsistencyServiceServer,
};
use proto::eventlog::v1::{AwaitRequest, AwaitResponse};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tower::layer::util::Identity;

use super::*;

const SERVICE: &str = "tharsis.eventlog.v1.ConsistencyService";

/// Answers once it is told to.
#[derive(Clone, Default)]
struct Slow {
    entered: Arc<Notify>,
    finish: Arc<Notify>,
}

#[tonic::async_trait]
impl ConsistencyService for Slow {
    async fn r#await(
        &self,
        _: tonic::Request<AwaitRequest>,
    ) -> Result<tonic::Response<AwaitResponse>, Status> {
        self.entered.notify_one();
        self.finish.notified().await;
        Ok(tonic::Response::new(AwaitResponse {}))
    }
}

struct Running {
    channel: Channel,
    health: Health,
    stop: CancellationToken,
    served: JoinHandle<Result<(), ServeError>>,
    slow: Slow,
    endpoint: Endpoint,
}

async fn running() -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let endpoint = Endpoint::from_shared(format!(
        "http://{}",
        listener.local_addr().expect("an address")
    ))
    .expect("a URL");
    let (health, stop, slow) = (Health::new(), CancellationToken::new(), Slow::default());
    let services = Services::default().with(ConsistencyServiceServer::new(slow.clone()));
    let served = tokio::spawn(serve(
        listener,
        services,
        RpcLayer::default(),
        Identity::new(),
        health.clone(),
        stop.clone(),
    ));
    let channel = endpoint.connect().await.expect("a connection");
    Running {
        channel,
        health,
        stop,
        served,
        slow,
        endpoint,
    }
}

async fn status(channel: &Channel, service: &str) -> ServingStatus {
    let request = HealthCheckRequest {
        service: service.to_owned(),
    };
    HealthClient::new(channel.clone())
        .check(request)
        .await
        .expect("checked")
        .into_inner()
        .status()
}

#[tokio::test]
async fn health_follows_the_conditions() {
    let running = running().await;
    for service in ["", SERVICE] {
        assert_eq!(
            status(&running.channel, service).await,
            ServingStatus::Serving
        );
    }
    running
        .health
        .set("follower:namespace", Err("halted".into()))
        .await;
    running.health.set("relay", Ok(())).await;
    for service in ["", SERVICE] {
        assert_eq!(
            status(&running.channel, service).await,
            ServingStatus::NotServing
        );
    }
    assert_eq!(running.health.wrong().await["follower:namespace"], "halted");
    running.health.set("follower:namespace", Ok(())).await;
    assert_eq!(
        status(&running.channel, SERVICE).await,
        ServingStatus::Serving
    );
    let unknown = HealthClient::new(running.channel)
        .check(HealthCheckRequest {
            service: "x".into(),
        })
        .await;
    assert_eq!(unknown.expect_err("unknown").code(), Code::NotFound);
}

#[tokio::test]
async fn rpcs_in_flight_finish_and_new_connections_are_refused() {
    let running = running().await;
    let mut watch = HealthClient::new(running.channel.clone())
        .watch(HealthCheckRequest {
            service: String::new(),
        })
        .await
        .expect("watching")
        .into_inner();
    assert_eq!(
        watch
            .message()
            .await
            .expect("a status")
            .map(|status| status.status()),
        Some(ServingStatus::Serving)
    );
    let mut client = ConsistencyServiceClient::new(running.channel.clone());
    let call = tokio::spawn(async move { client.r#await(AwaitRequest::default()).await });
    running.slow.entered.notified().await;

    running.stop.cancel();
    assert_eq!(
        watch
            .message()
            .await
            .expect("a status")
            .map(|status| status.status()),
        Some(ServingStatus::NotServing)
    );
    let end = tokio::time::timeout(DRAIN, watch.message())
        .await
        .expect("an end before the drain's");
    assert!(end.expect("no error").is_none());
    assert!(running.endpoint.connect().await.is_err());
    assert!(!running.served.is_finished());
    running.slow.finish.notify_one();
    assert!(call.await.expect("no panic").is_ok());
    drop(running.channel);
    running.served.await.expect("no panic").expect("served");
}

#[tokio::test]
async fn reflection_lists_what_is_served_here() {
    let expected = [HEALTH, REFLECTION[0], REFLECTION[1], SERVICE];
    let running = running().await;
    macro_rules! listed {
        ($version:ident) => {{
            use tonic_reflection::pb::$version::server_reflection_client::ServerReflectionClient;
            use tonic_reflection::pb::$version::server_reflection_request::MessageRequest;
            use tonic_reflection::pb::$version::server_reflection_response::MessageResponse;
            let ask = |message| tonic_reflection::pb::$version::ServerReflectionRequest {
                host: String::new(),
                message_request: Some(message),
            };
            let requests = [
                ask(MessageRequest::ListServices(String::new())),
                ask(MessageRequest::FileContainingSymbol(
                    "tharsis.eventlog.v1.ConsistencyService.Await".into(),
                )),
                ask(MessageRequest::FileByFilename(
                    "google/protobuf/descriptor.proto".into(),
                )),
            ];
            let mut client = ServerReflectionClient::new(running.channel.clone());
            let answers = client
                .server_reflection_info(futures::stream::iter(requests))
                .await
                .expect("answered");
            let mut answers = answers.into_inner();
            let first = answers
                .message()
                .await
                .expect("an answer")
                .and_then(|answer| answer.message_response);
            let Some(MessageResponse::ListServicesResponse(list)) = first else {
                panic!("no list: {first:?}")
            };
            for _ in 0..2 {
                let file = answers
                    .message()
                    .await
                    .expect("an answer")
                    .and_then(|answer| answer.message_response);
                assert!(
                    matches!(file, Some(MessageResponse::FileDescriptorResponse(_))),
                    "{file:?}"
                );
            }
            let mut names: Vec<String> = list
                .service
                .into_iter()
                .map(|service| service.name)
                .collect();
            names.sort();
            names
        }};
    }
    assert_eq!(listed!(v1), expected);
    assert_eq!(listed!(v1alpha), expected);
}

#[tokio::test]
async fn an_oversized_token_reaches_the_layer_that_says_so() {
    let running = running().await;
    let mut request = tonic::Request::new(AwaitRequest::default());
    let token = format!("Bearer {}", "x".repeat(20 << 10));
    request
        .metadata_mut()
        .insert("authorization", token.parse().expect("metadata"));
    running.slow.finish.notify_one();
    assert!(
        ConsistencyServiceClient::new(running.channel)
            .r#await(request)
            .await
            .is_ok()
    );
}
