//! Whoever is moved away from an identity loses it, what is deleted takes along what hangs on it, and a workspace gets the
//! identities that it is made with.

use edge::hierarchy::{ASSIGNMENTS, IDENTITY_NAMES, SERVICE_ACCOUNT_NAMES};
use edge::masks::MASKS;
use edge::{aliases, status};
use eventlog::{Noted, React, ReactError, RecordedEvent};
use futures::{StreamExt as _, stream};
use model::{ManagedIdentityId, ResourceId, WorkspaceId};
use proto::EventError;
use tonic::Status;

use crate::grpc::{IdentityRpc, assigned_to_prefix};

/// Commands at a time, of each resource that is taken up: they share the appender's batches.
const AT_ONCE: usize = 8;

/// What follows here from events of `namespace` and of our own.
///
/// For another kind of dependant: say in `concerns` by which events it may lose its ground, and in `follow_up` how it
/// is found and what ends it.
pub(crate) struct Dependants(pub(crate) IdentityRpc);

/// What hangs on something that was moved or deleted.
enum Dependant {
    Assignment(WorkspaceId, ManagedIdentityId),
    Identity(ManagedIdentityId),
    ServiceAccount(model::ServiceAccountId),
    AccessRules(ManagedIdentityId),
    Mask(model::MaskId),
    InitialAssignments(WorkspaceId),
}

impl React for Dependants {
    fn concerns(&self, log: &str, event: &RecordedEvent) -> Result<Option<String>, EventError> {
        let (event_type, payload) = (event.event_type.as_str(), event.payload.as_ref());
        Ok(match log {
            "namespace" => of_namespace(proto::namespace::v1::Event::decode(event_type, payload)?),
            "identity" => of_identity(proto::identity::v1::Event::decode(event_type, payload)?),
            _ => None,
        })
    }

    async fn follow_up(&self, noted: &Noted) -> Result<(), ReactError> {
        let dependants = self.dependants(noted.resource.parse()?).await?;
        let ended = stream::iter(dependants).map(|dependant| self.end(noted, dependant));
        // One that fails does not hold up the rest.
        let ended: Vec<_> = ended.buffer_unordered(AT_ONCE).collect().await;
        Ok(ended.into_iter().collect::<Result<_, _>>()?)
    }
}

/// What an event of `namespace` has moved or deleted, of that on which something hangs here.
fn of_namespace(event: proto::namespace::v1::Event) -> Option<String> {
    use proto::namespace::v1::Event;
    match event {
        Event::GroupMoved(event) => Some(event.group_id),
        Event::GroupDeleted(event) => Some(event.group_id),
        Event::WorkspaceMoved(event) => Some(event.workspace_id),
        Event::WorkspaceDeleted(event) => Some(event.workspace_id),
        Event::WorkspaceCreated(event) => event.initial_assignments.map(|_| event.workspace_id),
        // A rule goes on naming a team that is gone: without the name it would admit others, and the id never comes back.
        Event::TeamDeleted(_)
        | Event::TeamCreated(_)
        | Event::TeamUpdated(_)
        | Event::TeamMemberAdded(_)
        | Event::TeamMemberRemoved(_)
        | Event::GroupCreated(_)
        | Event::GroupUpdated(_)
        | Event::WorkspaceUpdated(_)
        | Event::MembershipCreated(_)
        | Event::MembershipUpdated(_)
        | Event::MembershipDeleted(_)
        | Event::LimitChanged(_) => None,
    }
}

/// What an event of our own has deleted, moved or hidden, of that on which something hangs here.
fn of_identity(event: proto::identity::v1::Event) -> Option<String> {
    use proto::identity::v1::Event;
    match event {
        Event::ManagedIdentityDeleted(event) => Some(event.managed_identity_id),
        Event::ManagedIdentityAliasDeleted(event) => Some(event.managed_identity_id),
        // No workspace loses its way to it, for that is refused; but a mask may lie between now.
        Event::ManagedIdentityMoved(event) => Some(event.managed_identity_id),
        Event::MaskCreated(event) => Some(event.namespace_id),
        Event::ManagedIdentityCreated(_)
        | Event::ManagedIdentityAliasCreated(_)
        | Event::ManagedIdentityUpdated(_)
        | Event::MaskDeleted(_)
        | Event::ManagedIdentityAssigned(_)
        | Event::ManagedIdentityUnassigned(_)
        | Event::InitialAssignmentsDecided(_)
        | Event::AccessRuleCreated(_)
        | Event::AccessRuleUpdated(_)
        | Event::AccessRuleDeleted(_)
        | Event::ServiceAccountCreated(_)
        | Event::ServiceAccountUpdated(_)
        | Event::ServiceAccountDeleted(_) => None,
    }
}

impl Dependants {
    async fn dependants(&self, resource: ResourceId) -> Result<Vec<Dependant>, Status> {
        match resource {
            ResourceId::Group(_) | ResourceId::Workspace(_) => {
                let assignments = self.below(resource, ASSIGNMENTS).await?;
                let identities = self.below(resource, IDENTITY_NAMES).await?;
                let accounts = self.below(resource, SERVICE_ACCOUNT_NAMES).await?;
                let masks = self.below(resource, MASKS).await?;
                let assignments = assignments.iter().filter_map(|(key, _)| assignment(key));
                let masks = masks.iter().filter_map(|(key, _)| mask(key));
                let identities = identities.iter().filter_map(|(_, id)| id.parse().ok());
                let accounts = accounts.iter().filter_map(|(_, id)| id.parse().ok());
                let initially = WorkspaceId::try_from(resource).ok();
                Ok(assignments
                    .chain(initially.map(Dependant::InitialAssignments))
                    .chain(identities.map(Dependant::Identity))
                    .chain(accounts.map(Dependant::ServiceAccount))
                    .chain(masks)
                    .collect())
            }
            ResourceId::ManagedIdentity(identity) => {
                let prefix = assigned_to_prefix(identity);
                let keys = self.0.commands().log().fact_keys(&prefix).await;
                let keys = keys.map_err(|error| status::log(&error))?;
                let workspaces = keys
                    .iter()
                    .filter_map(|key| key.strip_prefix(&prefix)?.parse().ok());
                let aliases = aliases::of(self.0.commands().log(), identity).await?;
                Ok(workspaces
                    .map(|workspace| Dependant::Assignment(workspace, identity))
                    .chain(aliases.into_iter().map(Dependant::Identity))
                    .chain([Dependant::AccessRules(identity)])
                    .collect())
            }
            // Noted by a newer process beside this one, which knows what follows from it.
            other => Err(Status::unimplemented(format!("what follows from {other}"))),
        }
    }

    async fn below(
        &self,
        resource: ResourceId,
        prefix: &str,
    ) -> Result<Vec<(String, String)>, Status> {
        let facts = self.0.hierarchy().facts_below(resource, prefix).await;
        facts.map_err(|error| status::database(&error))
    }

    /// Ends it, if it has lost its ground.
    async fn end(&self, noted: &Noted, dependant: Dependant) -> Result<(), Status> {
        let rpc = &self.0;
        let commands = rpc.commands();
        match dependant {
            Dependant::Assignment(workspace, identity) => {
                let target = format!("{workspace}/{identity}");
                let decide = || rpc.decide_end(workspace, identity);
                commands.react(noted.event, &target, None, decide).await
            }
            Dependant::Identity(id) => {
                let decide = || rpc.decide_delete_with_ground(id);
                commands
                    .react(noted.event, &id.to_string(), None, decide)
                    .await
            }
            Dependant::ServiceAccount(id) => {
                let decide = || rpc.decide_delete_account_with_group(id);
                commands
                    .react(noted.event, &id.to_string(), None, decide)
                    .await
            }
            Dependant::Mask(id) => {
                let decide = || rpc.decide_delete_mask_with_namespace(id);
                commands
                    .react(noted.event, &id.to_string(), None, decide)
                    .await
            }
            Dependant::InitialAssignments(workspace) => {
                let Some(requested) = rpc.initially_requested(workspace).await? else {
                    return Ok(());
                };
                let decide = || rpc.decide_initial_assignments(workspace, &requested);
                let target = "initial assignments";
                let actor = Some(&requested.by);
                commands.react(noted.event, target, actor, decide).await
            }
            Dependant::AccessRules(identity) => {
                let decide = || rpc.decide_delete_rules(identity);
                commands
                    .react(noted.event, "access rules", None, decide)
                    .await
            }
        }
    }
}

/// The workspace and the identity of an assignment's key.
fn assignment(key: &str) -> Option<Dependant> {
    let (workspace, identity) = key.strip_prefix(ASSIGNMENTS)?.split_once('/')?;
    Some(Dependant::Assignment(
        workspace.parse().ok()?,
        identity.parse().ok()?,
    ))
}

/// The mask of such a key.
fn mask(key: &str) -> Option<Dependant> {
    let (_, id) = key.strip_prefix(MASKS)?.split_once('/')?;
    Some(Dependant::Mask(id.parse().ok()?))
}
