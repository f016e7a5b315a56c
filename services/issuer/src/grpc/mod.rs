//! The rpcs: parse, locate, load, decide, append, convert.

mod admission;
mod credentials;
mod current;
pub(crate) mod exchange;
mod explain;
mod ground;
mod job_facts;
mod job_identities;
mod jobs;
mod refusals;
mod signing_keys;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use edge::authentication::TrustedIssuers;
use edge::command::Commands;
use edge::hierarchy::Hierarchy;
use edge::rate::PeerRates;
use eventlog::{Owner, Progress};
use model::Principal;
use tokio::sync::{Semaphore, watch};

use self::admission::Admission;
use self::ground::Grounds;
use self::refusals::Recorded;
use crate::keys::Keys;

/// Serves jobs, credentials, signing keys, and tokens of service accounts.
#[derive(Clone)]
pub struct IssuerRpc {
    shared: Arc<Shared>,
    grounds: Arc<Grounds>,
    recorded: Arc<Recorded>,
    /// How far the replica was found to have come, by log in the order of [`Shared::replica`].
    reached: Arc<[AtomicU64]>,
    /// One at a time looks at the past: that reads whole logs.
    past: Arc<Semaphore>,
    /// How many exchange tokens at once.
    admission: Arc<Admission>,
}

/// What the rpcs work with.
pub struct Shared {
    /// Appends to the issuer's log.
    pub commands: Commands,
    /// The replica of the hierarchy and the identities.
    pub hierarchy: Hierarchy,
    /// The signing keys.
    pub keys: Keys,
    /// Owners everywhere, by configuration.
    pub administrators: BTreeSet<Principal>,
    /// The `iss` of every token, byte for byte.
    pub issuer: String,
    /// How far the replica has come, by log.
    pub replica: Vec<(&'static str, watch::Receiver<Progress>)>,
    /// Who has the logs that it replicates.
    pub owners: Vec<(&'static str, Owner)>,
    /// How old the replica may be for a credential to be issued on it.
    pub staleness_bound: Duration,
    /// Whose tokens service accounts stand for.
    pub trusted: TrustedIssuers,
    /// How often those may ask who have no token of ours.
    pub peer_rates: PeerRates,
}

impl IssuerRpc {
    /// On these.
    #[must_use]
    pub fn new(shared: Shared) -> Self {
        Self {
            reached: shared.replica.iter().map(|_| AtomicU64::new(0)).collect(),
            shared: Arc::new(shared),
            grounds: Arc::default(),
            recorded: Arc::default(),
            past: Arc::new(Semaphore::new(1)),
            admission: Arc::default(),
        }
    }
}
