//! The `issuer` service. See `deploy/dev help` for a set of all services, and the README for the configuration.

use std::net::SocketAddr;

use anyhow::Context as _;
use issuer::{Config, run};
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let config = edge::arguments::none_but(Config::read)?;
    edge::telemetry::init(&config.settings.log)?;
    let stop = edge::shutdown::on_signal()?;
    let listener = bind(config.settings.grpc_listen).await?;
    let http_listener = bind(config.http_listen).await?;
    Ok(run(config, listener, http_listener, stop).await?)
}

async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("can't listen on {address}"))
}
