//! Memberships end with who holds them, with where they are held, and those of service accounts where their group is not
//! above any more.

use edge::hierarchy::MEMBERS;
use edge::status;
use eventlog::{Noted, React, ReactError, RecordedEvent};
use futures::{StreamExt as _, stream};
use model::{MembershipId, Principal, ResourceId};
use proto::EventError;
use tonic::Status;

use crate::grpc::{NamespaceRpc, membership_of};

/// Commands at a time, of each resource that is taken up: they share the appender's batches.
const AT_ONCE: usize = 8;

/// What follows here from events of `identity` and of our own.
pub(crate) struct Memberships(pub(crate) NamespaceRpc);

impl React for Memberships {
    fn concerns(&self, log: &str, event: &RecordedEvent) -> Result<Option<String>, EventError> {
        let (event_type, payload) = (event.event_type.as_str(), event.payload.as_ref());
        Ok(match log {
            "identity" => of_identity(proto::identity::v1::Event::decode(event_type, payload)?),
            "namespace" => of_namespace(proto::namespace::v1::Event::decode(event_type, payload)?),
            _ => None,
        })
    }

    async fn follow_up(&self, noted: &Noted) -> Result<(), ReactError> {
        let ids = self.memberships(noted.resource.parse()?).await?;
        let ended = stream::iter(ids).map(|id| async move {
            let decide = || self.0.decide_end_membership(id);
            let commands = self.0.commands();
            commands
                .react(noted.event, &id.to_string(), None, decide)
                .await
        });
        // One that fails does not hold up the rest.
        let ended: Vec<_> = ended.buffer_unordered(AT_ONCE).collect().await;
        Ok(ended.into_iter().collect::<Result<_, _>>()?)
    }
}

/// What an event of `identity` has deleted, if it may have held memberships.
fn of_identity(event: proto::identity::v1::Event) -> Option<String> {
    use proto::identity::v1::Event;
    match event {
        Event::ServiceAccountDeleted(event) => Some(event.service_account_id),
        Event::ManagedIdentityCreated(_)
        | Event::ManagedIdentityUpdated(_)
        | Event::ManagedIdentityMoved(_)
        | Event::ManagedIdentityDeleted(_)
        | Event::ManagedIdentityAliasCreated(_)
        | Event::ManagedIdentityAliasDeleted(_)
        | Event::ManagedIdentityAssigned(_)
        | Event::ManagedIdentityUnassigned(_)
        | Event::InitialAssignmentsDecided(_)
        | Event::AccessRuleCreated(_)
        | Event::MaskCreated(_)
        | Event::MaskDeleted(_)
        | Event::AccessRuleUpdated(_)
        | Event::AccessRuleDeleted(_)
        | Event::ServiceAccountCreated(_)
        | Event::ServiceAccountUpdated(_) => None,
    }
}

/// What an event of our own has deleted or moved, if memberships may have lost their ground there. A team's end in its own append.
fn of_namespace(event: proto::namespace::v1::Event) -> Option<String> {
    use proto::namespace::v1::Event;
    match event {
        Event::GroupDeleted(event) => Some(event.group_id),
        Event::GroupMoved(event) => Some(event.group_id),
        Event::WorkspaceDeleted(event) => Some(event.workspace_id),
        Event::WorkspaceMoved(event) => Some(event.workspace_id),
        Event::GroupCreated(_)
        | Event::GroupUpdated(_)
        | Event::WorkspaceCreated(_)
        | Event::WorkspaceUpdated(_)
        | Event::MembershipCreated(_)
        | Event::MembershipUpdated(_)
        | Event::MembershipDeleted(_)
        | Event::TeamCreated(_)
        | Event::TeamUpdated(_)
        | Event::TeamDeleted(_)
        | Event::TeamMemberAdded(_)
        | Event::TeamMemberRemoved(_)
        | Event::LimitChanged(_) => None,
    }
}

impl Memberships {
    async fn memberships(&self, resource: ResourceId) -> Result<Vec<MembershipId>, Status> {
        match resource {
            ResourceId::Group(_) | ResourceId::Workspace(_) => {
                let members = self.0.hierarchy().facts_below(resource, MEMBERS).await;
                let members = members.map_err(|error| status::database(&error))?;
                // Where something was moved, the others' go on.
                let is_gone = !self.0.exists(resource).await?;
                let ending = members
                    .iter()
                    .filter(|(member, _)| is_gone || is_of_service_account(member));
                Ok(ending.filter_map(|(_, held)| membership_of(held)).collect())
            }
            ResourceId::ServiceAccount(id) => {
                self.0.memberships_of(&Principal::ServiceAccount(id)).await
            }
            // Noted by a newer process beside this one, which knows what follows from it.
            other => Err(Status::unimplemented(format!("what follows from {other}"))),
        }
    }
}

/// Whether a service account holds the membership of such a key.
fn is_of_service_account(member: &str) -> bool {
    let held = member
        .strip_prefix(MEMBERS)
        .and_then(|key| key.split_once('/'));
    let principal = held.and_then(|(_, principal)| principal.parse().ok());
    matches!(principal, Some(Principal::ServiceAccount(_)))
}
