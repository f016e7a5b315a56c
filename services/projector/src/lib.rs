//! The read models, and the queries over them.

mod activity;
pub mod fold;
mod grams;
mod grpc;
pub mod order;
pub mod page;
mod query;

use std::sync::Arc;

use edge::host::{Host, HostError, Peer, Readiness};
use edge::server::Services;
use edge::settings::{Environment, Settings};
use proto::directory::v1::audit_service_server::AuditServiceServer;
use proto::directory::v1::directory_service_server::DirectoryServiceServer;
use sqlx::migrate::Migrator;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::fold::Directory;
pub use crate::grpc::DirectoryRpc;

/// The tables of the read models.
pub static MIGRATIONS: Migrator = sqlx::migrate!();

/// The schema of this version of the read models. A change of what the events mean to them takes a new one: it is built
/// from the logs beside the old one, which the processes of the older build go on serving, and takes over once the
/// newer processes are healthy.
pub const SCHEMA: &str = "directory_v10";

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
            settings: Settings::read(environment, Peer::Projector)?,
        })
    }
}

/// Serves until told to stop.
pub async fn run(
    config: Config,
    listener: TcpListener,
    stop: CancellationToken,
) -> Result<(), HostError> {
    let mut host = Host::connect(config.settings, Some(SCHEMA), Some(&MIGRATIONS), stop).await?;
    let fold = Arc::new(Directory);
    host.follow(Peer::Namespace, Readiness::OnceCurrent, Arc::clone(&fold))
        .await?;
    host.follow(Peer::Identity, Readiness::OnceCurrent, Arc::clone(&fold))
        .await?;
    host.follow(Peer::Issuer, Readiness::OnceCurrent, fold)
        .await?;
    let rpc = DirectoryRpc::new(host.queries().clone());
    host.serve(
        listener,
        Services::default()
            .with(DirectoryServiceServer::new(rpc.clone()))
            .with(AuditServiceServer::new(rpc)),
    )
    .await
}
