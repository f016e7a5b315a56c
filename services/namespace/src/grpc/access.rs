//! What a principal may do in a group or workspace, and whom requests name as principals.

use edge::authorization::{find, permissions};
use edge::hierarchy::{Place, wire_principal};
use edge::layer::Call;
use edge::roles::Grant;
use edge::status;
use edge::status::PreconditionViolation;
use edge::violations::Violations;
use eventlog::Guard;
use model::{NamespaceId, Principal, ResourceId, Role};
use proto::namespace::v1 as pb;
use tonic::Status;

use super::NamespaceRpc;
use crate::wire::{self, Holder};

/// Who is named, and what must hold for there to be such a principal.
pub(super) struct Known {
    pub(super) principal: Principal,
    pub(super) guards: Vec<Guard>,
    /// As the request names it: what is hidden is refused in the words in which what does not exist is.
    named: String,
    /// Where it is in the hierarchy, if it is a resource itself.
    place: Option<Place>,
}

impl Known {
    /// Whether it may become a member here. A service account may where its group is, and below: whoever has that group
    /// decides over it, and so over what is done in its name.
    pub(super) fn may_join(&self, namespace: &Place) -> Result<(), Status> {
        let (Principal::ServiceAccount(_), Some(place)) = (&self.principal, &self.place) else {
            return Ok(());
        };
        if place
            .parent()
            .is_some_and(|group| namespace.is_within(group))
        {
            return Ok(());
        }
        // What lies elsewhere, its owner may not even know of.
        if place.role.is_none() {
            return Err(status::not_found(&self.named));
        }
        let message =
            "a service account becomes a member of its own group and of what lies below that only";
        let obstacle = PreconditionViolation::new("NOT_INHERITED", place.path(), message);
        Err(status::failed_precondition(
            "NOT_INHERITED",
            message,
            vec![obstacle],
        ))
    }
}

impl NamespaceRpc {
    /// The principal that a request names, if there is such a one.
    pub(super) async fn principal(&self, call: &Call, named: &Holder) -> Result<Known, Status> {
        let (reference, text) = match named {
            Holder::Resource { reference, text } => (reference, text),
            Holder::User(user) => {
                return Ok(Known {
                    principal: user.clone(),
                    guards: vec![],
                    named: String::new(),
                    place: None,
                });
            }
        };
        let place = find(&self.hierarchy, reference, &call.caller).await?;
        let place = place.ok_or_else(|| status::not_found(text))?;
        let principal = match place.id() {
            ResourceId::Team(id) => Principal::Team(id),
            ResourceId::ServiceAccount(id) => Principal::ServiceAccount(id),
            _ => return Err(status::not_found(text)),
        };
        Ok(Known {
            principal,
            guards: place.existence(),
            named: text.clone(),
            place: Some(place),
        })
    }

    pub(super) async fn access(
        &self,
        call: &Call,
        message: &pb::GetAccessRequest,
    ) -> Result<pb::GetAccessResponse, Status> {
        let place = call.place()?;
        let namespace = NamespaceId::try_from(place.id()).map_err(|_| {
            Violations::of("namespace_id", "must name a group or a workspace").into_status()
        })?;
        let principal = match wire::asked(message)? {
            None => call.caller.principal.clone(),
            Some(named) => {
                let known = self.principal(call, &named).await?;
                let hidden = known
                    .place
                    .as_ref()
                    .is_some_and(|place| place.role.is_none());
                let held = self.locate(namespace, &known.principal).await?;
                // A service account that has nothing to do with this place is not shown by it.
                if matches!(known.principal, Principal::ServiceAccount(_))
                    && hidden
                    && held.grants.is_empty()
                {
                    return Err(status::not_found(&known.named));
                }
                known.principal
            }
        };
        let held = self.locate(namespace, &principal).await?;
        let administrator = self.administrators.contains(&principal);
        let role = if administrator {
            Some(Role::Owner)
        } else {
            held.role
        };
        Ok(pb::GetAccessResponse {
            principal: Some(wire_principal(&principal)),
            role: role.map(wire::role).unwrap_or_default().into(),
            permissions: role
                .map(permissions)
                .unwrap_or_default()
                .into_iter()
                .map(i32::from)
                .collect(),
            grants: held
                .grants
                .iter()
                .map(|grant| message_of(grant, &held))
                .collect(),
            administrator,
        })
    }

    async fn locate(&self, namespace: NamespaceId, of: &Principal) -> Result<Place, Status> {
        let place = self.hierarchy.locate(namespace.into(), of).await;
        let place = place.map_err(|error| status::database(&error))?;
        place.ok_or_else(|| status::not_found(&namespace.to_string()))
    }
}

fn message_of(grant: &Grant, place: &Place) -> pb::AccessGrant {
    pb::AccessGrant {
        membership_id: grant.membership.to_string(),
        namespace_id: place.nodes[grant.at].id.to_string(),
        namespace_path: place.path_of(grant.at),
        role: wire::role(grant.role).into(),
        team_id: grant.team.map(|team| team.to_string()).unwrap_or_default(),
    }
}
