//! Managed identities, their access rules, and their assignments to workspaces; masks; service accounts.

pub mod domain;
mod grpc;
mod reactions;
mod setup;
mod wire;

use std::sync::Arc;

use edge::command::Commands;
use edge::hierarchy::{Hierarchy, Replica};
use edge::host::{Host, HostError, Peer, Readiness};
use edge::server::Services;
use edge::settings::{Environment, Settings};
use eventlog::{Noting, Reactions};
use proto::identity::v1::access_rule_service_server::AccessRuleServiceServer;
use proto::identity::v1::managed_identity_service_server::ManagedIdentityServiceServer;
use proto::identity::v1::mask_service_server::MaskServiceServer;
use proto::identity::v1::service_account_service_server::ServiceAccountServiceServer;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use crate::grpc::IdentityRpc;
use crate::reactions::Dependants;

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
            settings: Settings::read(environment, Peer::Identity)?,
        })
    }
}

/// Serves until told to stop.
pub async fn run(
    config: Config,
    listener: TcpListener,
    stop: CancellationToken,
) -> Result<(), HostError> {
    let issuer_url = config.settings.issuer_url.clone();
    let administrators = config.settings.administrators.clone();
    let mut host = Host::connect(config.settings, None, None, stop).await?;
    let log = host.open_log("identity").await?;
    let visibility = host.visibility(&[Peer::Projector, Peer::Issuer, Peer::Namespace])?;
    let rpc = IdentityRpc::new(
        Commands::new(log.clone(), visibility, &["namespace"]),
        Hierarchy::new(host.pool().clone()),
        issuer_url,
        administrators,
    );
    let dependants = Arc::new(Dependants(rpc.clone()));
    let noting = Arc::new(Noting::new(Replica, Arc::clone(&dependants)));
    let namespace = host
        .follow(Peer::Namespace, Readiness::OnceBegun, noting)
        .await?;
    host.react(Reactions::new(log, namespace, dependants));
    host.serve(
        listener,
        Services::default()
            .with(ManagedIdentityServiceServer::new(rpc.clone()))
            .with(AccessRuleServiceServer::new(rpc.clone()))
            .with(MaskServiceServer::new(rpc.clone()))
            .with(ServiceAccountServiceServer::new(rpc)),
    )
    .await
}
