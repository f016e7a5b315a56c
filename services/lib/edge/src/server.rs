//! Serving gRPC: the services, with health and reflection beside them, limits, and a drain at the end.

pub(crate) mod connections;
mod served;

use std::convert::Infallible;
use std::time::Duration;

use futures::TryStreamExt as _;
use http::{Request, Response};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::service::Routes;
use tonic::transport::server::TcpIncoming;
use tower::{Layer, Service};

use self::connections::{Limits, Places};
use self::served::Served;
use crate::frames::OneBuffer;
use crate::guests::{Guests, Open};
use crate::health::Health;
use crate::rpc::{MAX_DURATION, RpcLayer};

/// How long rpcs in flight have to finish.
pub(crate) const DRAIN: Duration = Duration::from_secs(10);
/// Rpcs at once on a connection; more wait at the client.
const MAX_STREAMS: u32 = 256;
/// Rpcs that are cancelled before they are begun, on a connection at once; with more, it ends, and with it the rpcs of
/// everybody else on it. Short deadlines under load cancel in bursts, and behind a proxy those of many callers.
const MAX_CANCELLED: usize = 4 * MAX_STREAMS as usize;
/// A client that is silently gone is noticed within this and [`KEEPALIVE_TIMEOUT`].
const KEEPALIVE: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Room for the largest token that is taken, so that a larger one is refused with a reason.
const MAX_HEADERS: u32 = 64 << 10;
/// Bytes of a request to health and reflection, which repeats it in its answer: names. The access layer limits all others.
const MAX_REQUEST: usize = 4 << 10;
/// Rpcs of reflection at once, of which each may hold a few answers as large as the contract's largest file.
const REFLECTIONS: usize = 64;
/// Rpcs of health at once: a client may watch on each connection.
const HEALTH_RPCS: usize = 4_096;

const HEALTH: &str = "grpc.health.v1.Health";
const REFLECTION: [&str; 2] = [
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
];

/// The services of a server.
#[derive(Clone, Debug, Default)]
pub struct Services {
    routes: Routes,
    names: Vec<&'static str>,
}

/// Serving failed.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The descriptors are not those of a contract.
    #[error("reflection can't be set up")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// The connection handling failed.
    #[error("the gRPC server failed")]
    Transport(#[from] tonic::transport::Error),
}

impl Services {
    /// With this service too.
    #[must_use]
    pub fn with<S>(mut self, service: S) -> Self
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>
            + NamedService
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send + 'static,
    {
        self.names.push(S::NAME);
        self.routes = self.routes.add_service(service);
        self
    }

    /// With health and reflection: v1, and v1alpha for older clients.
    fn with_standard_services(
        self,
        health: &Health,
    ) -> Result<Routes, tonic_reflection::server::Error> {
        let reflection = || {
            let builder = tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
                .register_encoded_file_descriptor_set(tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET)
                .register_encoded_file_descriptor_set(
                    tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
                );
            // Only what is served here, though the descriptors are of the whole contract.
            let names = self.names.iter().copied().chain([HEALTH]).chain(REFLECTION);
            names.fold(
                builder,
                tonic_reflection::server::Builder::with_service_name,
            )
        };
        let health = health.service().max_decoding_message_size(MAX_REQUEST);
        let v1 = reflection().build_v1()?;
        let v1 = v1.max_decoding_message_size(MAX_REQUEST);
        let v1alpha = reflection().build_v1alpha()?;
        let v1alpha = v1alpha.max_decoding_message_size(MAX_REQUEST);
        let reflecting = Guests::new(REFLECTIONS);
        Ok(self
            .routes
            .add_service(Open::new(Guests::new(HEALTH_RPCS), health))
            .add_service(Open::new(reflecting.clone(), v1))
            .add_service(Open::new(reflecting, v1alpha)))
    }
}

/// Serves until told to stop, then drains: health says so, no more connections are taken, rpcs in flight have
/// [`DRAIN`] to finish. What is still going on then ends with the process.
pub async fn serve<L>(
    listener: TcpListener,
    services: Services,
    rpcs: RpcLayer,
    layer: L,
    health: Health,
    stop: CancellationToken,
) -> Result<(), ServeError>
where
    L: Layer<Routes>,
    L::Service: Service<Request<Body>, Response = Response<Body>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    <L::Service as Service<Request<Body>>>::Future: Send + 'static,
{
    let limits = Limits::default();
    serve_with(limits, listener, services, rpcs, layer, health, stop).await
}

async fn serve_with<L>(
    limits: Limits,
    listener: TcpListener,
    services: Services,
    rpcs: RpcLayer,
    layer: L,
    health: Health,
    stop: CancellationToken,
) -> Result<(), ServeError>
where
    L: Layer<Routes>,
    L::Service: Service<Request<Body>, Response = Response<Body>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    <L::Service as Service<Request<Body>>>::Future: Send + 'static,
{
    let names = services.names.clone();
    let all = names.iter().copied().chain([HEALTH]).chain(REFLECTION);
    let routes = services.with_standard_services(&health)?.prepare();
    let service = rpcs.layer(Served::new(all, layer.layer(routes)));
    let places = Places::new(limits);
    let incoming = TcpIncoming::from(listener)
        .with_nodelay(Some(true))
        .and_then(async |stream| Ok(OneBuffer(places.take(stream).await)));
    health.start(&names).await;
    let stopped = async {
        stop.cancelled().await;
        health.stop().await;
    };
    let serving = tonic::transport::Server::builder()
        .max_concurrent_streams(MAX_STREAMS)
        .http2_max_pending_accept_reset_streams(Some(MAX_CANCELLED))
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .http2_max_header_list_size(MAX_HEADERS)
        .timeout(MAX_DURATION)
        .serve_with_incoming_shutdown(service, incoming, stopped);
    let too_late = async {
        stop.cancelled().await;
        health.stop().await;
        health.end_watches().await;
        tokio::time::sleep(DRAIN).await;
    };
    tokio::select! {
        served = serving => served?,
        () = too_late => tracing::warn!("rpcs in flight did not finish in time, giving up on them"),
    }
    Ok(())
}

#[cfg(test)]
mod tests;
