//! Whether this process can do its work, as `grpc.health.v1` tells it.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::Mutex;
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::{HealthReporter, HealthService};

/// What the work depends on, by name, and the status that follows: all services serve, or none does. Cheap to clone.
#[derive(Clone)]
pub struct Health {
    reporter: HealthReporter,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    services: Vec<&'static str>,
    /// What is wrong with each condition; `None` if nothing.
    conditions: BTreeMap<String, Option<String>>,
    serving: bool,
}

impl Default for Health {
    fn default() -> Self {
        Self::new()
    }
}

impl Health {
    /// Without conditions. Nothing serves before the server starts.
    #[must_use]
    pub fn new() -> Self {
        Self {
            reporter: HealthReporter::new(),
            state: Arc::default(),
        }
    }

    /// Says that a condition, such as `follower:namespace`, holds, or why not. A condition counts from the first time
    /// that it is named here.
    pub async fn set(&self, condition: &str, holds: Result<(), String>) {
        let mut state = self.state.lock().await;
        let wrong = holds.err();
        let before = state.conditions.insert(condition.to_owned(), wrong.clone());
        if before.as_ref() != Some(&wrong) {
            if let Some(reason) = &wrong {
                tracing::warn!(condition, reason, "condition does not hold");
            } else {
                tracing::info!(condition, "condition holds");
            }
        }
        self.report(&state).await;
    }

    /// Each condition, and whether it holds.
    pub(crate) async fn conditions(&self) -> Vec<(String, bool)> {
        let state = self.state.lock().await;
        let conditions = state.conditions.iter();
        conditions
            .map(|(name, wrong)| (name.clone(), wrong.is_none()))
            .collect()
    }

    /// What is wrong now, by condition.
    pub async fn wrong(&self) -> BTreeMap<String, String> {
        let state = self.state.lock().await;
        state
            .conditions
            .iter()
            .filter_map(|(name, wrong)| Some((name.clone(), wrong.clone()?)))
            .collect()
    }

    /// The service to mount.
    pub(crate) fn service(&self) -> HealthServer<HealthService> {
        HealthServer::new(HealthService::from_health_reporter(self.reporter.clone()))
    }

    /// Begins to tell the status of these services.
    pub(crate) async fn start(&self, services: &[&'static str]) {
        let mut state = self.state.lock().await;
        state.services = services.to_vec();
        state.serving = true;
        self.report(&state).await;
    }

    /// Nothing serves any more, whatever the conditions.
    pub(crate) async fn stop(&self) {
        let mut state = self.state.lock().await;
        state.serving = false;
        self.report(&state).await;
    }

    /// Ends the streams of those who watch, which would hold up a drain.
    pub(crate) async fn end_watches(&self) {
        let state = self.state.lock().await;
        for service in std::iter::once(&"").chain(&state.services) {
            self.reporter.clone().clear_service_status(service).await;
        }
    }

    async fn report(&self, state: &State) {
        let good = state.serving && state.conditions.values().all(Option::is_none);
        let status = if good {
            ServingStatus::Serving
        } else {
            ServingStatus::NotServing
        };
        for service in std::iter::once(&"").chain(&state.services) {
            self.reporter.set_service_status(service, status).await;
        }
    }
}
