//! Between the domain and the wire: requests into commands, events and resources into messages.

pub(crate) mod team;

use edge::hierarchy::{self, Place, wire_principal};
use edge::holder::Holder;
use edge::violations::Violations;
use eventlog::RecordedEvent;
use model::job_duration::InvalidJobDuration;
use model::{Description, GroupId, JobDuration, Limit, Name, NamespaceId, Role, WorkspaceId};
use proto::EventError;
use proto::access::v1 as access;
use proto::namespace::v1::{self as pb, Event};
use tonic::Status;

use crate::domain::workspace::MaxJobDuration;
use crate::domain::{group, limit, membership, workspace};

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

fn parse_parent(text: &str) -> Result<Option<GroupId>, Unreadable> {
    (!text.is_empty())
        .then(|| parse("parent id", text))
        .transpose()
}

fn parent_text(parent: Option<GroupId>) -> String {
    parent.map(|id| id.to_string()).unwrap_or_default()
}

pub(crate) fn read_group(recorded: &RecordedEvent) -> Result<group::Event, Unreadable> {
    let group = |id: &str, parent: &str, name: &str, description: &str| {
        Ok::<_, Unreadable>(group::Group {
            id: parse("group id", id)?,
            parent: parse_parent(parent)?,
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
        Event::GroupUpdated(event) => Ok(group::Event::Updated {
            id: parse("group id", &event.group_id)?,
            description: parse("description", &event.description)?,
        }),
        Event::GroupMoved(event) => Ok(group::Event::Moved {
            id: parse("group id", &event.group_id)?,
            from: parse_parent(&event.old_parent_id)?,
            to: parse_parent(&event.new_parent_id)?,
            name: parse("name", &event.name)?,
        }),
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
            parent_id: parent_text(group.parent),
            name: group.name.to_string(),
            description: group.description.to_string(),
        }),
        group::Event::Updated { id, description } => Event::GroupUpdated(pb::GroupUpdated {
            group_id: id.to_string(),
            description: description.to_string(),
        }),
        group::Event::Moved { id, from, to, name } => Event::GroupMoved(pb::GroupMoved {
            group_id: id.to_string(),
            old_parent_id: parent_text(*from),
            new_parent_id: parent_text(*to),
            name: name.to_string(),
        }),
        group::Event::Deleted(group) => Event::GroupDeleted(pb::GroupDeleted {
            group_id: group.id.to_string(),
            parent_id: parent_text(group.parent),
            name: group.name.to_string(),
        }),
    }
}

pub(crate) fn read_workspace(recorded: &RecordedEvent) -> Result<workspace::Event, Unreadable> {
    match decode(recorded)? {
        Event::WorkspaceCreated(event) => Ok(workspace::Event::Created(workspace::Workspace {
            id: parse("workspace id", &event.workspace_id)?,
            group: parse("group id", &event.group_id)?,
            name: parse("name", &event.name)?,
            description: parse("description", &event.description)?,
            max_job_duration: recorded_duration(event.max_job_duration.as_ref())?,
        })),
        Event::WorkspaceUpdated(event) => Ok(workspace::Event::Updated {
            id: parse("workspace id", &event.workspace_id)?,
            description: parse("description", &event.description)?,
            max_job_duration: recorded_duration(event.max_job_duration.as_ref())?,
        }),
        Event::WorkspaceMoved(event) => Ok(workspace::Event::Moved {
            id: parse("workspace id", &event.workspace_id)?,
            from: parse("group id", &event.old_group_id)?,
            to: parse("group id", &event.new_group_id)?,
            name: parse("name", &event.name)?,
        }),
        Event::WorkspaceDeleted(event) => Ok(workspace::Event::Deleted(workspace::Workspace {
            id: parse("workspace id", &event.workspace_id)?,
            group: parse("group id", &event.group_id)?,
            name: parse("name", &event.name)?,
            description: Description::default(),
            max_job_duration: None,
        })),
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
            max_job_duration: workspace.max_job_duration.map(duration_message),
            initial_assignments: None,
        }),
        workspace::Event::Updated {
            id,
            description,
            max_job_duration,
        } => Event::WorkspaceUpdated(pb::WorkspaceUpdated {
            workspace_id: id.to_string(),
            description: description.to_string(),
            max_job_duration: max_job_duration.map(duration_message),
        }),
        workspace::Event::Moved { id, from, to, name } => {
            Event::WorkspaceMoved(pb::WorkspaceMoved {
                workspace_id: id.to_string(),
                old_group_id: from.to_string(),
                new_group_id: to.to_string(),
                name: name.to_string(),
            })
        }
        workspace::Event::Deleted(workspace) => Event::WorkspaceDeleted(pb::WorkspaceDeleted {
            workspace_id: workspace.id.to_string(),
            group_id: workspace.group.to_string(),
            name: workspace.name.to_string(),
        }),
    }
}

/// The event that a workspace is made, with identities that it is to have.
pub(crate) fn with(event: Event, assignments: Option<pb::InitialAssignments>) -> Event {
    match event {
        Event::WorkspaceCreated(event) => Event::WorkspaceCreated(pb::WorkspaceCreated {
            initial_assignments: assignments,
            ..event
        }),
        other => other,
    }
}

fn duration(duration: &prost_types::Duration) -> Result<JobDuration, InvalidJobDuration> {
    if duration.nanos == 0 {
        JobDuration::from_seconds(duration.seconds)
    } else {
        Err(InvalidJobDuration)
    }
}

fn duration_message(duration: JobDuration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: duration.seconds(),
        nanos: 0,
    }
}

fn recorded_duration(
    given: Option<&prost_types::Duration>,
) -> Result<Option<JobDuration>, Unreadable> {
    let read = given.map(duration).transpose();
    read.map_err(|_| Unreadable::Field("maximum job duration"))
}

/// How long the jobs of a workspace may live, as a request says.
pub(crate) fn max_job_duration(
    workspace: &pb::Workspace,
    violations: &mut Violations,
) -> Option<MaxJobDuration> {
    let given = workspace.max_job_duration.as_ref();
    let wanted = given.map(duration).transpose().map(MaxJobDuration);
    violations.check("workspace.max_job_duration", wanted)
}

pub(crate) fn read_limit(recorded: &RecordedEvent) -> Result<limit::Changed, Unreadable> {
    match decode(recorded)? {
        Event::LimitChanged(event) => Ok(limit::Changed {
            limit: parse("limit id", &event.limit_id)?,
            value: event.value,
        }),
        event => Err(foreign(&event)),
    }
}

pub(crate) fn write_limit(event: &limit::Changed) -> Event {
    Event::LimitChanged(pb::LimitChanged {
        limit_id: event.limit.to_string(),
        value: event.value,
    })
}

/// A limit as callers see it. Time and etag are filled in by whoever knows them.
pub(crate) fn limit_message(limit: Limit, state: limit::State) -> pb::Limit {
    pb::Limit {
        id: limit.to_string(),
        value: state.value(limit),
        description: limit.description().to_owned(),
        default_value: limit.default_value(),
        min_value: Limit::MIN,
        max_value: limit.max_value(),
        ..pb::Limit::default()
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
            principal: Some(wire_principal(&membership.principal)),
            role: role(membership.role).into(),
        }),
        membership::Event::RoleChanged(membership) => {
            Event::MembershipUpdated(pb::MembershipUpdated {
                membership_id: membership.id.to_string(),
                namespace_id: membership.namespace.to_string(),
                principal: Some(wire_principal(&membership.principal)),
                role: role(membership.role).into(),
            })
        }
        membership::Event::Deleted(membership) => Event::MembershipDeleted(pb::MembershipDeleted {
            membership_id: membership.id.to_string(),
            namespace_id: membership.namespace.to_string(),
            principal: Some(wire_principal(&membership.principal)),
        }),
    }
}

pub(crate) fn role(role: Role) -> access::Role {
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
pub(crate) fn named(
    of: &str,
    name: &str,
    description: &str,
    mut violations: Violations,
) -> Result<Named, Status> {
    let name = violations.check(&format!("{of}.name"), name.parse());
    let description = violations.check(&format!("{of}.description"), description.parse());
    Ok(violations.finish(|| {
        Some(Named {
            name: name?,
            description: description?,
        })
    })?)
}

/// Whose access a request asks about; `None`: the caller's.
pub(crate) fn asked(request: &pb::GetAccessRequest) -> Result<Option<Holder>, Status> {
    let mut violations = Violations::default();
    let named = match &request.principal {
        None => return Ok(None),
        Some(principal) => violations.nested("principal", Holder::read(principal)),
    };
    Ok(violations.finish(|| Some(named))?)
}

/// Who gets which role, as a request says.
pub(crate) fn member(membership: &pb::Membership) -> Result<(Holder, Role), Status> {
    let mut violations = Violations::default();
    let given = membership.principal.as_ref();
    let given = given.filter(|principal| principal.kind.is_some());
    let given = violations.required("membership.principal", given);
    let principal =
        given.and_then(|given| violations.nested("membership.principal", Holder::read(given)));
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
        parent_id: parent_text(group.parent),
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
        max_job_duration: workspace.max_job_duration.map(duration_message),
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
        principal: Some(wire_principal(&membership.principal)),
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
