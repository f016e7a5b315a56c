//! The `identity` service. See `deploy/dev help` for a set of all services, and the README for the configuration.

use anyhow::Context as _;
use identity::{Config, run};
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let config = edge::arguments::none_but(Config::read)?;
    edge::telemetry::init(&config.settings.log)?;
    let stop = edge::shutdown::on_signal()?;
    let address = config.settings.grpc_listen;
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("can't listen on {address}"))?;
    Ok(run(config, listener, stop).await?)
}
