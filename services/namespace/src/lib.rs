//! Groups, workspaces, memberships and teams: the hierarchy, and who has which role where; and the limits.

pub mod domain;
mod grpc;
mod reactions;
mod replica;
mod wire;

use std::sync::Arc;

use edge::command::Commands;
use edge::hierarchy::Hierarchy;
use edge::host::{Host, HostError, Peer, Readiness};
use edge::server::Services;
use edge::settings::{Environment, Settings};
use eventlog::{Noting, Reactions};
use proto::namespace::v1::group_service_server::GroupServiceServer;
use proto::namespace::v1::limit_service_server::LimitServiceServer;
use proto::namespace::v1::membership_service_server::MembershipServiceServer;
use proto::namespace::v1::team_service_server::TeamServiceServer;
use proto::namespace::v1::workspace_service_server::WorkspaceServiceServer;
use sqlx::migrate::Migrator;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use crate::grpc::NamespaceRpc;
use crate::reactions::Memberships;
use crate::replica::Replica;

/// What belongs to this service in its database beside the log.
static MIGRATIONS: Migrator = sqlx::migrate!();

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
            settings: Settings::read(environment, Peer::Namespace)?,
        })
    }
}

/// Serves until told to stop.
pub async fn run(
    config: Config,
    listener: TcpListener,
    stop: CancellationToken,
) -> Result<(), HostError> {
    let administrators = config.settings.administrators.clone();
    let mut host = Host::connect(config.settings, None, Some(&MIGRATIONS), stop).await?;
    let log = host.open_log("namespace").await?;
    let visibility = host.visibility(&[Peer::Projector, Peer::Identity, Peer::Issuer])?;
    let rpc = NamespaceRpc::new(
        Commands::new(log.clone(), visibility, &["identity"]),
        Hierarchy::new(host.pool().clone()),
        administrators,
    );
    let memberships = Arc::new(Memberships(rpc.clone()));
    let noting = Arc::new(Noting::new(Replica, Arc::clone(&memberships)));
    let identity = host
        .follow(Peer::Identity, Readiness::OnceBegun, noting)
        .await?;
    host.react(Reactions::new(log, identity.clone(), memberships));
    let rpc = rpc.following(identity);
    let services = Services::default()
        .with(GroupServiceServer::new(rpc.clone()))
        .with(WorkspaceServiceServer::new(rpc.clone()))
        .with(MembershipServiceServer::new(rpc.clone()))
        .with(LimitServiceServer::new(rpc.clone()))
        .with(TeamServiceServer::new(rpc));
    host.serve(listener, services).await
}
