//! Managed identities and their assignments to workspaces; service accounts.

pub mod domain;
mod grpc;
mod wire;

use std::sync::Arc;

use edge::command::Commands;
use edge::hierarchy::{Hierarchy, Replica};
use edge::host::{Host, HostError, Peer, Readiness};
use edge::server::Services;
use edge::settings::{Environment, Settings};
use proto::identity::v1::managed_identity_service_server::ManagedIdentityServiceServer;
use proto::identity::v1::service_account_service_server::ServiceAccountServiceServer;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use crate::grpc::IdentityRpc;

/// What the service is told.
#[derive(Clone, Debug)]
pub struct Config {
    /// What every service is told.
    pub settings: Settings,
}

impl Config {
    /// Reads it. `None` if something is wrong with it, which is then noted.
    pub fn read(environment: &mut Environment<'_>) -> Option<Self> {
        Some(Self {
            settings: Settings::read(environment)?,
        })
    }
}

/// Serves until told to stop.
pub async fn run(
    config: Config,
    listener: TcpListener,
    stop: CancellationToken,
) -> Result<(), HostError> {
    let mut host = Host::connect(config.settings, None, None, stop).await?;
    let log = host.open_log("identity").await?;
    host.follow(Peer::Namespace, Readiness::OnceBegun, Arc::new(Replica))
        .await?;
    let visibility = host.visibility(&[Peer::Projector, Peer::Issuer, Peer::Namespace]);
    let rpc = IdentityRpc::new(
        Commands::new(log, visibility, &["namespace"]),
        Hierarchy::new(host.pool().clone()),
    );
    host.serve(
        listener,
        Services::default()
            .with(ManagedIdentityServiceServer::new(rpc.clone()))
            .with(ServiceAccountServiceServer::new(rpc)),
    )
    .await
}
