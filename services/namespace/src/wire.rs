//! Between the domain and the wire: requests into commands, events and resources into messages.

use edge::hierarchy::{self, Place};
use edge::violations::Violations;
use eventlog::RecordedEvent;
use model::{Description, GroupId, Name, NamespaceId, Principal, Role, WorkspaceId};
use proto::EventError;
use proto::access::v1 as access;
use proto::namespace::v1::{self as pb, Event};
use tonic::Status;

use crate::domain::{group, membership, workspace};

/// A recorded event of ours does not read as one.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unreadable {
    #[error(transparent)]
    Event(#[from] EventError),
    #[error("the event's {0} is malformed")]
    Field(&'static str),
    #[error("the event {0} is of another aggregate")]
    Foreign(String),
}

fn parse<T: std::str::FromStr>(field: &'static str, text: &str) -> Result<T, Unreadable> {
    text.parse().map_err(|_| Unreadable::Field(field))
}

fn foreign(event: &Event) -> Unreadable {
    Unreadable::Foreign(event.event_type().to_owned())
}

fn decode(recorded: &RecordedEvent) -> Result<Event, Unreadable> {
    Ok(Event::decode(&recorded.event_type, &recorded.payload)?)
}

pub(crate) fn read_group(recorded: &RecordedEvent) -> Result<group::Event, Unreadable> {
    let group = |id: &str, parent: &str, name: &str, description: &str| {
        Ok::<_, Unreadable>(group::Group {
            id: parse("group id", id)?,
            parent: (!parent.is_empty())
                .then(|| parse("parent id", parent))
                .transpose()?,
            name: parse("name", name)?,
            description: parse("description", description)?,
        })
    };
    match decode(recorded)? {
        Event::GroupCreated(event) => group(
            &event.group_id,
            &event.parent_id,
            &event.name,
            &event.description,
        )
        .map(group::Event::Created),
        Event::GroupDeleted(event) => {
            group(&event.group_id, &event.parent_id, &event.name, "").map(group::Event::Deleted)
        }
        event => Err(foreign(&event)),
    }
}

pub(crate) fn write_group(event: &group::Event) -> Event {
    match event {
        group::Event::Created(group) => Event::GroupCreated(pb::GroupCreated {
            group_id: group.id.to_string(),
            parent_id: group.parent.map(|id| id.to_string()).unwrap_or_default(),
            name: group.name.to_string(),
            description: group.description.to_string(),
        }),
        group::Event::Deleted(group) => Event::GroupDeleted(pb::GroupDeleted {
            group_id: group.id.to_string(),
            parent_id: group.parent.map(|id| id.to_string()).unwrap_or_default(),
            name: group.name.to_string(),
        }),
    }
}

pub(crate) fn read_workspace(recorded: &RecordedEvent) -> Result<workspace::Event, Unreadable> {
    let workspace = |id: &str, group: &str, name: &str, description: &str| {
        Ok::<_, Unreadable>(workspace::Workspace {
            id: parse("workspace id", id)?,
            group: parse("group id", group)?,
            name: parse("name", name)?,
            description: parse("description", description)?,
        })
    };
    match decode(recorded)? {
        Event::WorkspaceCreated(event) => workspace(
            &event.workspace_id,
            &event.group_id,
            &event.name,
            &event.description,
        )
        .map(workspace::Event::Created),
        Event::WorkspaceDeleted(event) => {
            workspace(&event.workspace_id, &event.group_id, &event.name, "")
                .map(workspace::Event::Deleted)
        }
        event => Err(foreign(&event)),
    }
}

pub(crate) fn write_workspace(event: &workspace::Event) -> Event {
    match event {
        workspace::Event::Created(workspace) => Event::WorkspaceCreated(pb::WorkspaceCreated {
            workspace_id: workspace.id.to_string(),
            group_id: workspace.group.to_string(),
            name: workspace.name.to_string(),
            description: workspace.description.to_string(),
        }),
        workspace::Event::Deleted(workspace) => Event::WorkspaceDeleted(pb::WorkspaceDeleted {
            workspace_id: workspace.id.to_string(),
            group_id: workspace.group.to_string(),
            name: workspace.name.to_string(),
        }),
    }
}

pub(crate) fn read_membership(recorded: &RecordedEvent) -> Result<membership::Event, Unreadable> {
    let principal = |principal: Option<&access::Principal>| {
        hierarchy::principal(principal).ok_or(Unreadable::Field("principal"))
    };
    let namespace = |id: &str| {
        let id: model::ResourceId = parse("namespace id", id)?;
        NamespaceId::try_from(id).map_err(|_| Unreadable::Field("namespace id"))
    };
    let role = |role| hierarchy::role(role).ok_or(Unreadable::Field("role"));
    match decode(recorded)? {
        Event::MembershipCreated(event) => Ok(membership::Event::Created(membership::Membership {
            id: parse("membership id", &event.membership_id)?,
            namespace: namespace(&event.namespace_id)?,
            principal: principal(event.principal.as_ref())?,
            role: role(event.role())?,
        })),
        Event::MembershipUpdated(event) => {
            Ok(membership::Event::RoleChanged(membership::Membership {
                id: parse("membership id", &event.membership_id)?,
                namespace: namespace(&event.namespace_id)?,
                principal: principal(event.principal.as_ref())?,
                role: role(event.role())?,
            }))
        }
        Event::MembershipDeleted(event) => Ok(membership::Event::Deleted(membership::Membership {
            id: parse("membership id", &event.membership_id)?,
            namespace: namespace(&event.namespace_id)?,
            principal: principal(event.principal.as_ref())?,
            // What it was plays no role any more.
            role: Role::Viewer,
        })),
        event => Err(foreign(&event)),
    }
}

pub(crate) fn write_membership(event: &membership::Event) -> Event {
    match event {
        membership::Event::Created(membership) => Event::MembershipCreated(pb::MembershipCreated {
            membership_id: membership.id.to_string(),
            namespace_id: membership.namespace.to_string(),
            principal: Some(principal(&membership.principal)),
            role: role(membership.role).into(),
        }),
        membership::Event::RoleChanged(membership) => {
            Event::MembershipUpdated(pb::MembershipUpdated {
                membership_id: membership.id.to_string(),
                namespace_id: membership.namespace.to_string(),
                principal: Some(principal(&membership.principal)),
                role: role(membership.role).into(),
            })
        }
        membership::Event::Deleted(membership) => Event::MembershipDeleted(pb::MembershipDeleted {
            membership_id: membership.id.to_string(),
            namespace_id: membership.namespace.to_string(),
            principal: Some(principal(&membership.principal)),
        }),
    }
}

fn principal(principal: &Principal) -> access::Principal {
    let kind = match principal {
        Principal::User { issuer, subject } => {
            Some(access::principal::Kind::User(format!("{issuer}/{subject}")))
        }
        // A job never holds a membership: no request can name one.
        Principal::Job(_) => None,
    };
    access::Principal { kind }
}

fn role(role: Role) -> access::Role {
    match role {
        Role::Viewer => access::Role::Viewer,
        Role::Deployer => access::Role::Deployer,
        Role::Owner => access::Role::Owner,
    }
}

/// What a request says of a group or workspace to be made.
pub(crate) struct Named {
    pub(crate) name: Name,
    pub(crate) description: Description,
}

/// Reads the name and description below the field `of`.
pub(crate) fn named(of: &str, name: &str, description: &str) -> Result<Named, Status> {
    let mut violations = Violations::default();
    let name = violations.check(&format!("{of}.name"), name.parse());
    let description = violations.check(&format!("{of}.description"), description.parse());
    Ok(violations.finish(|| {
        Some(Named {
            name: name?,
            description: description?,
        })
    })?)
}

/// Who gets which role, as a request says.
pub(crate) fn member(membership: &pb::Membership) -> Result<(Principal, Role), Status> {
    let mut violations = Violations::default();
    let principal = match membership
        .principal
        .as_ref()
        .and_then(|principal| principal.kind.as_ref())
    {
        Some(access::principal::Kind::User(user)) => {
            violations.check("membership.principal.user", Principal::user(user))
        }
        None => {
            violations.add("membership.principal", "must be set");
            None
        }
    };
    let role = wanted_role(membership, &mut violations);
    Ok(violations.finish(|| Some((principal?, role?)))?)
}

/// The role that a request asks for.
pub(crate) fn wanted_role(
    membership: &pb::Membership,
    violations: &mut Violations,
) -> Option<Role> {
    let role = access::Role::try_from(membership.role)
        .ok()
        .and_then(hierarchy::role);
    if role.is_none() {
        violations.add(
            "membership.role",
            "must be ROLE_VIEWER, ROLE_DEPLOYER or ROLE_OWNER",
        );
    }
    role
}

/// A group as callers see it. Times and etag are filled in by whoever knows them.
pub(crate) fn group_message(id: GroupId, parent_path: &str, group: &group::Group) -> pb::Group {
    let path = joined(parent_path, &group.name);
    pb::Group {
        id: id.to_string(),
        trn: format!("trn:group:{path}"),
        parent_id: group.parent.map(|id| id.to_string()).unwrap_or_default(),
        name: group.name.to_string(),
        description: group.description.to_string(),
        path,
        ..pb::Group::default()
    }
}

/// A workspace as callers see it. Times and etag are filled in by whoever knows them.
pub(crate) fn workspace_message(
    id: WorkspaceId,
    group_path: &str,
    workspace: &workspace::Workspace,
) -> pb::Workspace {
    let path = joined(group_path, &workspace.name);
    pb::Workspace {
        id: id.to_string(),
        trn: format!("trn:workspace:{path}"),
        group_id: workspace.group.to_string(),
        name: workspace.name.to_string(),
        description: workspace.description.to_string(),
        path,
        ..pb::Workspace::default()
    }
}

/// A membership as callers see it. Times and etag are filled in by whoever knows them.
pub(crate) fn membership_message(
    namespace: &str,
    membership: &membership::Membership,
) -> pb::Membership {
    pb::Membership {
        id: membership.id.to_string(),
        trn: format!("trn:membership:{namespace}/{}", membership.id),
        namespace_id: membership.namespace.to_string(),
        principal: Some(principal(&membership.principal)),
        role: role(membership.role).into(),
        ..pb::Membership::default()
    }
}

fn joined(parent: &str, name: &Name) -> String {
    if parent.is_empty() {
        name.to_string()
    } else {
        format!("{parent}/{name}")
    }
}

/// The path of what a place lies in.
pub(crate) fn parent_path(place: &Place) -> String {
    let path = place.path();
    path.rsplit_once('/')
        .map(|(parent, _)| parent.to_owned())
        .unwrap_or_default()
}
