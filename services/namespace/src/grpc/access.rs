//! What a principal may do in a group or workspace, and who may become a member there.

use edge::authorization::permissions;
use edge::hierarchy::{Place, wire_principal};
use edge::holder::Known;
use edge::layer::Call;
use edge::roles::Grant;
use edge::status;
use edge::status::PreconditionViolation;
use edge::violations::Violations;
use model::{NamespaceId, Principal, Role};
use proto::namespace::v1 as pb;
use tonic::Status;

use super::NamespaceRpc;
use crate::wire;

/// Whether somebody may become a member here. A service account may where its group is, and below: whoever has that group
/// decides over it, and so over what is done in its name.
pub(super) fn may_join(known: &Known, namespace: &Place) -> Result<(), Status> {
    let (Principal::ServiceAccount(_), Some(place)) = (&known.principal, &known.place) else {
        return Ok(());
    };
    if namespace.is_in_reach_of(place) {
        return Ok(());
    }
    // What lies elsewhere, its owner may not even know of.
    if known.is_hidden() {
        return Err(status::not_found(&known.named));
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

impl NamespaceRpc {
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
                let known = named.find(&self.hierarchy, &call.caller).await?;
                let held = self.locate(namespace, &known.principal).await?;
                // A service account that has nothing to do with this place is not shown by it.
                if known.is_hidden() && held.grants.is_empty() {
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
