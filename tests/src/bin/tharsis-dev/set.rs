//! Where the services of a running set are.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use e2e::Service;
use tonic::transport::Channel;

/// The gRPC addresses. `deploy/dev` says them by the environment.
#[derive(clap::Args)]
pub(crate) struct Set {
    /// The namespace service.
    #[arg(
        long,
        env = "THARSIS_NAMESPACE_URL",
        default_value = "http://127.0.0.1:7101"
    )]
    namespace: String,
    /// The identity service.
    #[arg(
        long,
        env = "THARSIS_IDENTITY_URL",
        default_value = "http://127.0.0.1:7102"
    )]
    identity: String,
    /// The issuer service.
    #[arg(
        long,
        env = "THARSIS_ISSUER_GRPC_URL",
        default_value = "http://127.0.0.1:7103"
    )]
    pub(crate) issuer_grpc: String,
}

impl Set {
    /// A connection to each.
    pub(crate) async fn connect(&self) -> Result<Arc<BTreeMap<Service, Channel>>> {
        let mut channels = BTreeMap::new();
        for (service, address) in [
            (Service::Namespace, &self.namespace),
            (Service::Identity, &self.identity),
            (Service::Issuer, &self.issuer_grpc),
        ] {
            let channel = Channel::from_shared(address.clone())?.connect().await;
            let channel =
                channel.with_context(|| format!("{address} does not answer; is the set up?"))?;
            channels.insert(service, channel);
        }
        Ok(Arc::new(channels))
    }
}
