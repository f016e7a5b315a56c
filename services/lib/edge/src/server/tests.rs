//! With real connections.

use std::sync::Arc;

use futures::{StreamExt as _, stream};
use prost_reflect::DescriptorPool;
use proto::eventlog::v1::consistency_service_client::ConsistencyServiceClient;
use proto::eventlog::v1::consistency_service_server::{
    ConsistencyService, ConsistencyServiceServer,
};
use proto::eventlog::v1::{AwaitRequest, AwaitResponse};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};
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
        request: tonic::Request<AwaitRequest>,
    ) -> Result<tonic::Response<AwaitResponse>, Status> {
        assert!(request.remote_addr().is_some(), "whom to count is known");
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
    running_with(Limits::default()).await
}

async fn running_with(limits: Limits) -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let endpoint = Endpoint::from_shared(format!(
        "http://{}",
        listener.local_addr().expect("an address")
    ))
    .expect("a URL");
    let (health, stop, slow) = (Health::new(), CancellationToken::new(), Slow::default());
    let services = Services::default().with(ConsistencyServiceServer::new(slow.clone()));
    let served = tokio::spawn(serve_with(
        limits,
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

/// One that asks this, and never ends.
async fn reflected(
    channel: Channel,
    request: ServerReflectionRequest,
) -> Streaming<ServerReflectionResponse> {
    let requests = stream::iter([request]).chain(stream::pending());
    let answers = ServerReflectionClient::new(channel)
        .server_reflection_info(requests)
        .await;
    answers.expect("reflection").into_inner()
}

fn lists_services() -> ServerReflectionRequest {
    ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    }
}

#[tokio::test]
async fn few_reflections_are_held_at_once() {
    let running = running().await;
    let mut held = vec![];
    for _ in 0..=REFLECTIONS {
        held.push(reflected(running.channel.clone(), lists_services()).await);
    }
    let whole = async {
        while held[0].message().await?.is_some() {}
        Ok(())
    };
    let whole = tokio::time::timeout(Duration::from_secs(30), whole).await;
    let made_room: Status = whole.expect("an end").expect_err("it made room");
    assert_eq!(made_room.code(), Code::Unavailable);
    let answer = held[1].message().await.expect("an answer");
    assert!(answer.is_some());
    drop(held);
    assert_eq!(status(&running.channel, "").await, ServingStatus::Serving);
}

#[tokio::test]
async fn what_reflection_repeats_is_short() {
    let running = running().await;
    let mut request = lists_services();
    request.host = "x".repeat(5 << 10);
    let mut answers = reflected(running.channel.clone(), request).await;
    let answer = answers.message().await;
    assert!(!matches!(answer, Ok(Some(_))), "{answer:?}");
    for file in DescriptorPool::decode(proto::DESCRIPTORS)
        .expect("the descriptors")
        .files()
    {
        assert!(file.name().len() < 512, "{}", file.name());
    }
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

/// A frame of HTTP/2 (RFC 9113, section 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a short payload");
    let head = [
        &length.to_be_bytes()[1..],
        &[kind, flags],
        &stream.to_be_bytes(),
    ]
    .concat();
    [&head, payload].concat()
}

#[tokio::test]
async fn callers_that_give_up_cost_their_neighbours_nothing() {
    const DATA: u8 = 0;
    const HEADERS: u8 = 1;
    const RST_STREAM: u8 = 3;
    const SETTINGS: u8 = 4;
    const GOAWAY: u8 = 7;
    const END_STREAM: u8 = 1;
    const END_HEADERS: u8 = 4;
    const CANCEL: [u8; 4] = [0, 0, 0, 8];
    let running = running().await;
    let address = running
        .endpoint
        .uri()
        .authority()
        .expect("an address")
        .as_str();
    let literal = |index: &[u8], text: &str| {
        let length = u8::try_from(text.len()).expect("a short text");
        [index, &[length], text.as_bytes()].concat()
    };
    // POST, http, and the rest as literals (RFC 7541, section 6.2.2, and its static table).
    let headers = [
        vec![0x83, 0x86],
        literal(&[0x04], "/grpc.health.v1.Health/Check"),
        literal(&[0x01], address),
        literal(&[0x0f, 0x10], "application/grpc"),
    ]
    .concat();
    let mut sent = BEGINNING.to_vec();
    sent.extend(frame(SETTINGS, 0, 0, &[]));
    let mut streams = (1..).step_by(2);
    for stream in streams.by_ref().take(MAX_CANCELLED - 1) {
        sent.extend(frame(HEADERS, END_HEADERS, stream, &headers));
        sent.extend(frame(RST_STREAM, 0, stream, &CANCEL));
    }
    let patient = streams.next().expect("another stream");
    sent.extend(frame(HEADERS, END_HEADERS, patient, &headers));
    sent.extend(frame(DATA, END_STREAM, patient, &[0; 5]));
    let mut connection = TcpStream::connect(address).await.expect("a connection");
    let (mut answers, mut requests) = connection.split();
    // Both at once: neither side waits for the other to read.
    let answered = async {
        loop {
            let mut head = [0; 9];
            answers.read_exact(&mut head).await.expect("another frame");
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let mut payload = vec![0; length as usize];
            answers.read_exact(&mut payload).await.expect("all of it");
            let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
            assert_ne!(head[3], GOAWAY, "{}", String::from_utf8_lossy(&payload));
            if stream == patient && head[3] == HEADERS && head[4] & END_STREAM != 0 {
                break;
            }
        }
    };
    let (sent, ()) = tokio::join!(requests.write_all(&sent), answered);
    sent.expect("all is taken");
}

const UNLIMITED: Limits = Limits {
    preface: Duration::from_hours(1),
    connections: 1_024,
};
const BEGINNING: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

impl Running {
    /// A connection on which this has been said.
    async fn said(&self, bytes: &[u8]) -> TcpStream {
        let address = self.endpoint.uri().authority().expect("an address");
        let connected = TcpStream::connect(address.as_str()).await;
        let mut connection = connected.expect("a connection");
        connection.write_all(bytes).await.expect("sent");
        connection
    }

    /// A connection whose client has begun.
    async fn begun(&self) -> TcpStream {
        let mut connection = self.said(&[BEGINNING, &frame(4, 0, 0, &[])].concat()).await;
        assert!(answers(&mut connection).await);
        connection
    }

    /// Has the slow rpc begin.
    async fn asked(&self, channel: Channel) -> JoinHandle<Result<(), Status>> {
        let mut client = ConsistencyServiceClient::new(channel);
        let call = async move { client.r#await(AwaitRequest::default()).await.map(|_| ()) };
        let call = tokio::spawn(call);
        self.slow.entered.notified().await;
        call
    }
}

/// Whether a ping is answered, or the connection has ended.
async fn answers(connection: &mut TcpStream) -> bool {
    const PING: u8 = 6;
    const ACK: u8 = 1;
    let pinged = async {
        connection.write_all(&frame(PING, 0, 0, &[7; 8])).await?;
        loop {
            let mut head = [0; 9];
            connection.read_exact(&mut head).await?;
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let mut payload = vec![0; length as usize];
            connection.read_exact(&mut payload).await?;
            if (head[3], head[4], &payload[..]) == (PING, ACK, &[7; 8]) {
                return Ok::<_, std::io::Error>(());
            }
        }
    };
    let pinged = tokio::time::timeout(Duration::from_secs(30), pinged).await;
    pinged.expect("an answer or an end").is_ok()
}

/// Waits for the connection's end.
async fn ends(connection: &mut TcpStream) {
    let mut rest = vec![];
    let ended = connection.read_to_end(&mut rest);
    let ended = tokio::time::timeout(Duration::from_secs(30), ended).await;
    assert!(ended.is_ok(), "it is kept");
}

#[tokio::test]
async fn a_connection_on_which_nothing_begins_is_ended() {
    let limits = Limits {
        preface: Duration::from_millis(50),
        ..UNLIMITED
    };
    let running = running_with(limits).await;
    for start in [&b""[..], b"PRI * HT"] {
        let mut connection = running.said(start).await;
        ends(&mut connection).await;
    }
}

#[tokio::test]
async fn who_does_not_begin_keeps_nobody_out() {
    let few = Limits {
        connections: 8,
        ..UNLIMITED
    };
    for start in [&b""[..], b"PRI * HT"] {
        let running = running_with(few).await;
        let mut good = running.begun().await;
        let mut silent = vec![];
        for _ in 0..11 * few.connections {
            silent.push(running.said(start).await);
        }
        let _another = running.begun().await;
        assert!(answers(&mut good).await, "it has begun, others have not");
        ends(&mut silent[0]).await;
    }
}

#[tokio::test]
async fn a_connection_on_which_nothing_is_asked_makes_room() {
    let few = Limits {
        connections: 3,
        ..UNLIMITED
    };
    let running = running_with(few).await;
    let call = running.asked(running.channel.clone()).await;
    let (mut idle, mut later) = (running.begun().await, running.begun().await);
    let _next = running.begun().await;
    ends(&mut idle).await;
    assert!(answers(&mut later).await, "another one was idle for longer");
    running.slow.finish.notify_one();
    let answered = call.await.expect("no panic");
    assert!(answered.is_ok(), "{answered:?}");
}

#[tokio::test]
async fn who_always_asks_keeps_nobody_out() {
    let few = Limits {
        connections: 2,
        ..UNLIMITED
    };
    let running = running_with(few).await;
    let first = running.asked(running.channel.clone()).await;
    let channel = running.endpoint.connect().await.expect("a connection");
    let second = running.asked(channel).await;
    let _next = running.begun().await;
    assert!(first.await.expect("no panic").is_err());
    // The first may still wait.
    running.slow.finish.notify_one();
    running.slow.finish.notify_one();
    assert!(second.await.expect("no panic").is_ok());
}
