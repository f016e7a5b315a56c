//! What each rpc needs, read from the contract, and whether a caller has it.

use std::collections::HashMap;
use std::sync::Arc;

use model::{GroupId, Permission, Principal, Reference, Requirement, ResourceId, Role};
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, Value};
use proto::access::v1 as access;
use tonic::Status;
use uuid::Uuid;

use crate::caller::Caller;
use crate::hierarchy::{Hierarchy, Place};
use crate::layer::Call;
use crate::violations::Violations;
use crate::{naming, status};

/// What an rpc needs.
#[derive(Clone, Debug)]
pub(crate) struct Rule {
    pub(crate) permission: Permission,
    /// The path of the request field that names the resource; empty if there is none.
    pub(crate) resource: String,
    /// The rpc's service: `GroupService`.
    pub(crate) service: String,
    pub(crate) top_level: access::TopLevel,
    pub(crate) input: MessageDescriptor,
}

/// The contract can't be enforced.
#[derive(Debug, thiserror::Error)]
pub enum InvalidContract {
    /// The descriptors can't be read.
    #[error("the contract's descriptors can't be read")]
    Descriptors(#[from] prost_reflect::DescriptorError),
    /// An rpc declares no access.
    #[error("{0} declares no access")]
    Undeclared(String),
}

/// The rules of every rpc in the contract, by path: `/tharsis.namespace.v1.GroupService/GetGroup`.
pub(crate) fn rules() -> Result<HashMap<String, Arc<Rule>>, InvalidContract> {
    let pool = DescriptorPool::decode(proto::DESCRIPTORS)?;
    let undeclared = |name: &str| InvalidContract::Undeclared(name.to_owned());
    let option = pool
        .get_extension_by_name("tharsis.access.v1.access")
        .ok_or_else(|| undeclared("access"))?;
    let mut rules = HashMap::new();
    for method in pool
        .services()
        .flat_map(|service| service.methods().collect::<Vec<_>>())
    {
        let options = method.options();
        let value = options.get_extension(&option);
        let access = value
            .as_message()
            .and_then(|message| message.transcode_to::<access::Access>().ok());
        let access = access.ok_or_else(|| undeclared(method.full_name()))?;
        let rule = Rule {
            permission: permission(access.permission())
                .ok_or_else(|| undeclared(method.full_name()))?,
            top_level: access.top_level(),
            resource: access.resource,
            service: method.parent_service().name().to_owned(),
            input: method.input(),
        };
        let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
        rules.insert(path, Arc::new(rule));
    }
    Ok(rules)
}

/// Permissions have smaller numbers than this.
const NUMBERS: i32 = 1_000;

fn permission(permission: access::Permission) -> Option<Permission> {
    use access::Permission as Wire;
    Some(match permission {
        Wire::Unspecified => return None,
        Wire::Anyone => Permission::Anyone,
        Wire::Authenticated => Permission::Authenticated,
        Wire::EventsRead => Permission::EventsRead,
        Wire::Job => Permission::Job,
        Wire::Administrator => Permission::Administrator,
        Wire::GroupView => Permission::GroupView,
        Wire::GroupCreate => Permission::GroupCreate,
        Wire::GroupDelete => Permission::GroupDelete,
        Wire::GroupUpdate => Permission::GroupUpdate,
        Wire::WorkspaceView => Permission::WorkspaceView,
        Wire::WorkspaceCreate => Permission::WorkspaceCreate,
        Wire::WorkspaceUpdate => Permission::WorkspaceUpdate,
        Wire::WorkspaceDelete => Permission::WorkspaceDelete,
        Wire::MembershipView => Permission::MembershipView,
        Wire::MembershipCreate => Permission::MembershipCreate,
        Wire::MembershipUpdate => Permission::MembershipUpdate,
        Wire::MembershipDelete => Permission::MembershipDelete,
        Wire::ManagedIdentityView => Permission::ManagedIdentityView,
        Wire::ManagedIdentityCreate => Permission::ManagedIdentityCreate,
        Wire::ManagedIdentityUpdate => Permission::ManagedIdentityUpdate,
        Wire::ManagedIdentityDelete => Permission::ManagedIdentityDelete,
        Wire::JobOpen => Permission::JobOpen,
        Wire::JobView => Permission::JobView,
        Wire::MaskView => Permission::MaskView,
        Wire::MaskCreate => Permission::MaskCreate,
        Wire::MaskDelete => Permission::MaskDelete,
        Wire::ServiceAccountView => Permission::ServiceAccountView,
        Wire::ServiceAccountCreate => Permission::ServiceAccountCreate,
        Wire::ServiceAccountUpdate => Permission::ServiceAccountUpdate,
        Wire::ServiceAccountDelete => Permission::ServiceAccountDelete,
        Wire::JobUpdate => Permission::JobUpdate,
        Wire::ActivityView => Permission::ActivityView,
        Wire::CredentialView => Permission::CredentialView,
    })
}

/// What a role lets its holder do.
#[must_use]
pub fn permissions(role: Role) -> Vec<access::Permission> {
    let held = |wire: &access::Permission| {
        let requirement = permission(*wire).map(Permission::requirement);
        matches!(requirement, Some(Requirement::Role(needed)) if needed <= role)
    };
    (0..NUMBERS)
        .filter_map(|number| access::Permission::try_from(number).ok())
        .filter(held)
        .collect()
}

/// The text in a request's field, by its path; empty where something on the way is not set.
pub(crate) fn field(message: &DynamicMessage, path: &str) -> String {
    let (name, inner) = path.split_once('.').unwrap_or((path, ""));
    match message.get_field_by_name(name).as_deref() {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Message(message)) if !inner.is_empty() => field(message, inner),
        _ => String::new(),
    }
}

/// Whether a request's field is there and true.
pub(crate) fn is_set(message: &DynamicMessage, name: &str) -> bool {
    let value = message.get_field_by_name(name);
    value.and_then(|value| value.as_bool()).unwrap_or_default()
}

impl Rule {
    /// Whether the caller has what the rpc needs. Answers with the place of the resource, if it names one.
    pub(crate) async fn authorize(
        &self,
        caller: &Caller,
        hierarchy: &Hierarchy,
        request: &DynamicMessage,
    ) -> Result<Option<Place>, Status> {
        let requirement = self.permission.requirement();
        // Who is gone has no role anywhere.
        if !matches!(requirement, Requirement::Nothing | Requirement::Role(_)) {
            refuse_who_is_gone(caller, hierarchy).await?;
        }
        let allowed = match requirement {
            Requirement::Role(role) => {
                return self
                    .authorize_on_resource(role, caller, hierarchy, request)
                    .await;
            }
            Requirement::Nothing | Requirement::Token => true,
            Requirement::EventReader => caller.event_reader || caller.administrator,
            Requirement::JobToken => matches!(caller.principal, Principal::Job(_)),
            Requirement::Administrator => caller.administrator,
        };
        if allowed {
            Ok(None)
        } else {
            Err(status::permission_denied(self.permission, "this service"))
        }
    }

    async fn authorize_on_resource(
        &self,
        role: Role,
        caller: &Caller,
        hierarchy: &Hierarchy,
        request: &DynamicMessage,
    ) -> Result<Option<Place>, Status> {
        let text = field(request, &self.resource);
        if text.is_empty() {
            return match self.top_level {
                access::TopLevel::Anyone => Ok(None),
                access::TopLevel::Administrators if caller.administrator => Ok(None),
                access::TopLevel::Administrators => {
                    Err(status::denied_at_the_top(self.permission, &self.resource))
                }
                access::TopLevel::Unspecified => Err(Violations::of(
                    &self.resource,
                    "must be set, to an id or a TRN",
                )
                .into_status()),
            };
        }
        let reference = naming::reference_of(&self.service, &self.resource, &text)?;
        let place = find(hierarchy, &reference, caller)
            .await?
            .ok_or_else(|| status::not_found(&text))?;
        permit(self.permission, role, &place, &text)?;
        Ok(Some(place))
    }
}

/// A service account's token outlives it, by minutes.
async fn refuse_who_is_gone(caller: &Caller, hierarchy: &Hierarchy) -> Result<(), Status> {
    let Principal::ServiceAccount(id) = caller.principal else {
        return Ok(());
    };
    let place = hierarchy.way_up(id.into()).await;
    match place.map_err(|error| status::database(&error))? {
        Some(_) => Ok(()),
        None => Err(status::unauthenticated(
            "SERVICE_ACCOUNT_GONE",
            "the token's service account does not exist any more",
        )),
    }
}

fn permit(permission: Permission, role: Role, place: &Place, named: &str) -> Result<(), Status> {
    match place.role {
        Some(held) if held >= role => Ok(()),
        Some(_) => Err(status::permission_denied(permission, named)),
        // Who has no role here may not know that it exists.
        None => Err(status::not_found(named)),
    }
}

impl Call {
    /// The place that the access layer found, as it is now, if the caller still has what the rpc needs there: for
    /// deciding, and for deciding again.
    pub async fn relocate(&self, hierarchy: &Hierarchy) -> Result<Option<Place>, Status> {
        let Some(before) = &self.place else {
            return Ok(None);
        };
        let named = before.trn();
        let place = locate(hierarchy, before.id(), &self.caller).await?;
        let place = place.ok_or_else(|| status::not_found(&named))?;
        if let Requirement::Role(role) = self.permission.requirement() {
            permit(self.permission, role, &place, &named)?;
        }
        Ok(Some(place))
    }

    /// The place that another field of the request names, if the caller has this permission there too.
    pub async fn permitted(
        &self,
        hierarchy: &Hierarchy,
        permission: Permission,
        field: &str,
        named: &str,
    ) -> Result<Place, Status> {
        let reference = naming::reference(field, named)?;
        let place = find(hierarchy, &reference, &self.caller).await?;
        let place = place.ok_or_else(|| status::not_found(named))?;
        if let Requirement::Role(role) = permission.requirement() {
            permit(permission, role, &place, named)?;
        }
        Ok(place)
    }
}

/// The place that a reference names, with the caller's role there; an administrator is an owner everywhere.
pub async fn find(
    hierarchy: &Hierarchy,
    reference: &Reference,
    caller: &Caller,
) -> Result<Option<Place>, Status> {
    let database = |error: sqlx::Error| status::database(&error);
    let id = hierarchy.resolve(reference).await.map_err(database)?;
    // Where there is nothing, something that can't be is looked for: how long it takes must not tell what is hidden.
    let nothing = || GroupId::from_uuid(Uuid::nil()).into();
    let place = locate(hierarchy, id.unwrap_or_else(nothing), caller).await?;
    Ok(place.filter(|place| match reference {
        Reference::Id(_) => true,
        Reference::Trn(trn) => place.trn() == trn.to_string(),
    }))
}

/// The place of an id, with the caller's role there; an administrator is an owner everywhere.
pub async fn locate(
    hierarchy: &Hierarchy,
    id: ResourceId,
    caller: &Caller,
) -> Result<Option<Place>, Status> {
    let place = hierarchy
        .locate(id, &caller.principal)
        .await
        .map_err(|error| status::database(&error))?;
    Ok(place.map(|mut place| {
        if caller.administrator {
            (place.role, place.granted_by) = (Some(Role::Owner), vec![]);
        }
        place
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_role_may_what_those_before_it_may_and_the_owner_all_that_a_role_gives() {
        let [viewer, deployer, owner] =
            [Role::Viewer, Role::Deployer, Role::Owner].map(permissions);
        assert!(
            viewer
                .iter()
                .all(|permission| deployer.contains(permission))
        );
        assert!(deployer.iter().all(|permission| owner.contains(permission)));
        let pool = DescriptorPool::decode(proto::DESCRIPTORS).expect("the descriptors");
        let all = pool
            .get_enum_by_name("tharsis.access.v1.Permission")
            .expect("permissions");
        let by_role = all.values().filter_map(|value| {
            let wire = access::Permission::try_from(value.number()).ok()?;
            let requirement = permission(wire)?.requirement();
            matches!(requirement, Requirement::Role(_)).then_some(wire)
        });
        assert_eq!(owner, by_role.collect::<Vec<_>>());
    }
}
