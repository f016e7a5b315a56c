//! The rpcs: parse, locate, load, decide, append, convert.

mod access_rules;
mod aliases;
mod assignments;
mod configuration;
mod initial_assignments;
mod managed_identities;
mod masks;
mod moves;
mod preview;
mod service_accounts;
mod setup;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use edge::command::Commands;
use edge::hierarchy::{Hierarchy, Place, sets};
use eventlog::{Facts, Guard};
use model::{Principal, ResourceId};
use proto::identity::v1 as pb;
use proto::identity::v1::Event;
use proto::identity::v1::managed_identity_service_server::ManagedIdentityService;
use tonic::{Request, Response, Status};

/// Serves managed identities, their assignments, and service accounts.
#[derive(Clone)]
pub struct IdentityRpc {
    commands: Commands,
    hierarchy: Hierarchy,
    /// The `iss` of the tokens.
    issuer_url: String,
    administrators: Arc<BTreeSet<Principal>>,
}

impl IdentityRpc {
    /// On this log and the facts beside it, for tokens of this issuer.
    #[must_use]
    pub fn new(
        commands: Commands,
        hierarchy: Hierarchy,
        issuer_url: String,
        administrators: BTreeSet<Principal>,
    ) -> Self {
        Self {
            commands,
            hierarchy,
            issuer_url,
            administrators: Arc::new(administrators),
        }
    }

    /// Carries out its commands.
    pub(crate) fn commands(&self) -> &Commands {
        &self.commands
    }

    /// Reads its facts.
    pub(crate) fn hierarchy(&self) -> &Hierarchy {
        &self.hierarchy
    }

    /// The place of a resource, whoever asks. `None` if it does not exist.
    async fn way_up(&self, id: ResourceId) -> Result<Option<Place>, Status> {
        let place = self.hierarchy.way_up(id).await;
        place.map_err(|error| edge::status::database(&error))
    }

    /// Whether something exists: it, and all that is above it.
    async fn exists(&self, id: ResourceId) -> Result<bool, Status> {
        Ok(self.way_up(id).await?.is_some())
    }

    async fn facts(&self, keys: &[String]) -> Result<Facts, Status> {
        self.commands
            .log()
            .facts(keys)
            .await
            .map_err(|error| edge::status::log(&error))
    }
}

#[tonic::async_trait]
impl ManagedIdentityService for IdentityRpc {
    async fn create_managed_identity(
        &self,
        request: Request<pb::CreateManagedIdentityRequest>,
    ) -> Result<Response<pb::CreateManagedIdentityResponse>, Status> {
        self.create(request).await
    }

    async fn get_managed_identity(
        &self,
        request: Request<pb::GetManagedIdentityRequest>,
    ) -> Result<Response<pb::GetManagedIdentityResponse>, Status> {
        self.get(request).await
    }

    async fn get_setup_instructions(
        &self,
        request: Request<pb::GetSetupInstructionsRequest>,
    ) -> Result<Response<pb::GetSetupInstructionsResponse>, Status> {
        self.setup(request).await
    }

    async fn update_managed_identity(
        &self,
        request: Request<pb::UpdateManagedIdentityRequest>,
    ) -> Result<Response<pb::UpdateManagedIdentityResponse>, Status> {
        self.update(request).await
    }

    async fn move_managed_identity(
        &self,
        request: Request<pb::MoveManagedIdentityRequest>,
    ) -> Result<Response<pb::MoveManagedIdentityResponse>, Status> {
        self.move_an_identity(request).await
    }

    async fn delete_managed_identity(
        &self,
        request: Request<pb::DeleteManagedIdentityRequest>,
    ) -> Result<Response<pb::DeleteManagedIdentityResponse>, Status> {
        self.delete(request).await
    }

    async fn create_managed_identity_alias(
        &self,
        request: Request<pb::CreateManagedIdentityAliasRequest>,
    ) -> Result<Response<pb::CreateManagedIdentityAliasResponse>, Status> {
        self.create_alias(request).await
    }

    async fn delete_managed_identity_alias(
        &self,
        request: Request<pb::DeleteManagedIdentityAliasRequest>,
    ) -> Result<Response<pb::DeleteManagedIdentityAliasResponse>, Status> {
        self.delete_alias(request).await
    }

    async fn assign_managed_identity(
        &self,
        request: Request<pb::AssignManagedIdentityRequest>,
    ) -> Result<Response<pb::AssignManagedIdentityResponse>, Status> {
        self.assign(request).await
    }

    async fn unassign_managed_identity(
        &self,
        request: Request<pb::UnassignManagedIdentityRequest>,
    ) -> Result<Response<pb::UnassignManagedIdentityResponse>, Status> {
        self.unassign(request).await
    }
}

/// The key of the count of a group's managed identities.
fn siblings_key(group: impl fmt::Display) -> String {
    format!("managed-identities/{group}")
}

/// The key of the count of a managed identity's aliases.
fn aliases_key(source: impl fmt::Display) -> String {
    format!("alias-count/{source}")
}

/// The key of the count of a managed identity's assignments.
fn assignments_key(identity: impl fmt::Display) -> String {
    format!("assignments/{identity}")
}

/// The keys of the workspaces that have a managed identity start so.
pub(crate) fn assigned_to_prefix(identity: impl fmt::Display) -> String {
    format!("assigned-to/{identity}/")
}

fn count(facts: &Facts, key: &str) -> i64 {
    facts
        .get(key)
        .and_then(|count| count.parse().ok())
        .unwrap_or(0)
}

/// What the events change in the facts.
fn changes(events: &[Event]) -> Result<Vec<Guard>, Status> {
    let mut guards = Vec::new();
    for event in events {
        let changes = edge::hierarchy::identity_changes(event)
            .map_err(|error| edge::status::internal(&error))?;
        guards.extend(sets(changes));
    }
    Ok(guards)
}

fn encoded(events: Vec<Event>) -> impl Iterator<Item = (&'static str, Vec<u8>)> {
    events
        .into_iter()
        .map(|event| (event.event_type(), event.encode()))
}
