//! Managed identities and their assignments to workspaces.

pub mod domain;
mod grpc;
mod reactions;
mod wire;

use std::sync::Arc;

use edge::command::Commands;
use edge::hierarchy::Hierarchy;
use edge::host::{Host, HostError, Peer, Readiness};
use edge::server::Services;
use edge::settings::{Environment, Settings};
use proto::identity::v1::managed_identity_service_server::ManagedIdentityServiceServer;
use sqlx::migrate::Migrator;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use crate::grpc::IdentityRpc;
use crate::reactions::{Follows, Reactions};

/// The tables of the reactions.
pub static MIGRATIONS: Migrator = sqlx::migrate!();

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
    let mut host = Host::connect(config.settings, None, Some(&MIGRATIONS), stop).await?;
    let log = host.open_log("identity").await?;
    let namespace = host
        .follow(Peer::Namespace, Readiness::OnceBegun, Arc::new(Follows))
        .await?;
    let visibility = host.visibility(&[Peer::Projector, Peer::Issuer]);
    let rpc = IdentityRpc::new(
        Commands::new(log, visibility, &["namespace"]),
        Hierarchy::new(host.pool().clone()),
    );
    let reactions = Reactions::new(rpc.clone(), namespace);
    host.beside(reactions.run());
    host.serve(
        listener,
        Services::default().with(ManagedIdentityServiceServer::new(rpc)),
    )
    .await
}
