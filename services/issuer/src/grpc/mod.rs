//! The rpcs: parse, locate, load, decide, append, convert.

mod credentials;
mod ground;
mod job_identities;
mod jobs;
mod signing_keys;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use edge::command::Commands;
use edge::hierarchy::Hierarchy;
use eventlog::Progress;
use tokio::sync::watch;

use self::ground::Grounds;
use crate::keys::Keys;

/// Serves jobs, credentials and signing keys.
#[derive(Clone)]
pub struct IssuerRpc {
    shared: Arc<Shared>,
    grounds: Arc<Grounds>,
}

/// What the rpcs work with.
pub struct Shared {
    /// Appends to the issuer's log.
    pub commands: Commands,
    /// The replica of the hierarchy and the identities.
    pub hierarchy: Hierarchy,
    /// The signing keys.
    pub keys: Keys,
    /// The `iss` of every token, byte for byte.
    pub issuer: String,
    /// How far the replica has come, by log.
    pub replica: Vec<(&'static str, watch::Receiver<Progress>)>,
    /// How old the replica may be for a credential to be issued on it.
    pub staleness_bound: Duration,
}

impl IssuerRpc {
    /// On these.
    #[must_use]
    pub fn new(shared: Shared) -> Self {
        Self {
            shared: Arc::new(shared),
            grounds: Arc::default(),
        }
    }
}

/// The key of what the issuer has to know of a job: `<stage>/<unix time of its end>`.
fn job_key(id: impl fmt::Display) -> String {
    format!("job/{id}")
}
