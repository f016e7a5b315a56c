//! `GroupService`.

use edge::aggregate::{self, Loaded};
use edge::command::{Decision, Mutation};
use edge::hierarchy::Place;
use edge::layer::Call;
use edge::request::etag;
use edge::violations::Violations;
use edge::{clock, request, status};
use eventlog::{Expected, Guard};
use model::{Description, GroupId, MembershipId, NamespaceId, Role};
use proto::namespace::v1 as pb;
use proto::namespace::v1::group_service_server::GroupService;
use tonic::{Request, Response, Status};

use super::moves::grows;
use super::{
    NamespaceRpc, Sibling, add, changes, count, encoded, obstacle, owners_key, stream,
    subgroups_key, workspaces_key,
};
use crate::domain::{group, membership};
use crate::wire;

impl From<group::Rejection> for Status {
    fn from(rejection: group::Rejection) -> Self {
        use group::Rejection;
        let message = rejection.to_string();
        match rejection {
            Rejection::Missing => status::not_found("the group"),
            Rejection::NoRoom(reason) => Sibling::Group.refused(reason),
            Rejection::SameParent => obstacle("SAME_PARENT", "group", &message),
            Rejection::IntoItself => obstacle("MOVE_INTO_ITSELF", "group", &message),
            Rejection::NotEmpty { .. } => obstacle("GROUP_NOT_EMPTY", "group", &message),
        }
    }
}

#[tonic::async_trait]
impl GroupService for NamespaceRpc {
    async fn create_group(
        &self,
        request: Request<pb::CreateGroupRequest>,
    ) -> Result<Response<pb::CreateGroupResponse>, Status> {
        let call = Call::of(&request)?;
        let (metadata, _, message) = request.into_parts();
        let wanted = message.group.clone().unwrap_or_default();
        let wire::Named { name, description } = wire::named(
            "group",
            &wanted.name,
            &wanted.description,
            Violations::default(),
        )?;
        let id = clock::new_id();
        let decide = || async {
            let parent = call
                .place
                .is_some()
                .then(|| call.id("group.parent_id", "group"));
            let (name, description) = (name.clone(), description.clone());
            let group = group::Group {
                id,
                parent: parent.transpose()?,
                name,
                description,
            };
            self.decide_create(&call, group).await
        };
        let mutation = Mutation::new(&call, &metadata, &message, |m| {
            [&mut m.request_id, &mut m.consistency_token]
        });
        let answer = |reply: &mut pb::CreateGroupResponse, time| {
            if let Some(group) = &mut reply.group {
                (group.create_time, group.update_time) = (
                    Some(request::timestamp(time)),
                    Some(request::timestamp(time)),
                );
            }
        };
        self.commands
            .carry_out(
                mutation,
                decide,
                |reply| &mut reply.consistency_token,
                answer,
            )
            .await
    }

    async fn get_group(
        &self,
        request: Request<pb::GetGroupRequest>,
    ) -> Result<Response<pb::GetGroupResponse>, Status> {
        let call = Call::of(&request)?;
        let place = call.place()?;
        let (id, loaded) = self.load_group("id", place).await?;
        let group = message(id, &wire::parent_path(place), &loaded);
        let group = group.ok_or(group::Rejection::Missing)?;
        Ok(Response::new(pb::GetGroupResponse { group: Some(group) }))
    }

    async fn update_group(
        &self,
        request: Request<pb::UpdateGroupRequest>,
    ) -> Result<Response<pb::UpdateGroupResponse>, Status> {
        let call = Call::of(&request)?;
        let (metadata, _, message) = request.into_parts();
        let wanted = message.group.clone().unwrap_or_default();
        let mut violations = Violations::default();
        violations.merge(request::update_mask(
            message.update_mask.as_ref(),
            &["description"],
        ));
        let description = violations.check("group.description", wanted.description.parse());
        let description = violations.finish(|| description)?;
        let mutation = Mutation::new(&call, &metadata, &message, |m| {
            [&mut m.request_id, &mut m.consistency_token]
        });
        let answer = |reply: &mut pb::UpdateGroupResponse, time| {
            if let Some(group) = &mut reply.group {
                group.update_time = Some(request::timestamp(time));
            }
        };
        self.commands
            .carry_out(
                mutation,
                || self.decide_update_group(&call, &wanted.etag, &description),
                |reply| &mut reply.consistency_token,
                answer,
            )
            .await
    }

    async fn move_group(
        &self,
        request: Request<pb::MoveGroupRequest>,
    ) -> Result<Response<pb::MoveGroupResponse>, Status> {
        self.move_a_group(request).await
    }

    async fn delete_group(
        &self,
        request: Request<pb::DeleteGroupRequest>,
    ) -> Result<Response<pb::DeleteGroupResponse>, Status> {
        let call = Call::of(&request)?;
        let (metadata, _, message) = request.into_parts();
        let mutation = Mutation::new(&call, &metadata, &message, |m| {
            [&mut m.request_id, &mut m.consistency_token]
        });
        let decide = || self.decide_delete(&call, &message.etag, message.force);
        self.commands
            .carry_out(
                mutation,
                decide,
                |reply| &mut reply.consistency_token,
                |_, _| {},
            )
            .await
    }
}

impl NamespaceRpc {
    pub(super) async fn load_group(
        &self,
        field: &str,
        place: &Place,
    ) -> Result<(GroupId, Loaded<group::State>), Status> {
        let id = GroupId::try_from(place.id())
            .map_err(|_| Violations::of(field, "must name a group").into_status())?;
        let stream = stream("group", id);
        Ok((
            id,
            aggregate::load(
                self.commands.log(),
                &stream,
                wire::read_group,
                group::evolve,
            )
            .await?,
        ))
    }

    async fn decide_create(
        &self,
        call: &Call,
        group: group::Group,
    ) -> Result<Decision<pb::CreateGroupResponse>, Status> {
        let parent = call.relocate(&self.hierarchy).await?;
        let room = self
            .room(Sibling::Group, parent.as_ref(), &group.name, 0)
            .await?;
        let command = group::Command::Create {
            group: group.clone(),
            destination: room.destination,
        };
        let events: Vec<_> = group::decide(&group::State::Absent, command)?
            .iter()
            .map(wire::write_group)
            .collect();
        let mut guards = room.guards;
        if let Some(parent) = &parent {
            guards.extend(grows(&parent.nodes, 1..=1));
        }
        guards.extend(changes(&events)?);
        let mut reply = wire::group_message(
            group.id,
            &parent.map(|place| place.path()).unwrap_or_default(),
            &group,
        );
        reply.etag = etag(events.len() as u64);
        let mut streams: Vec<_> = aggregate::append(
            stream("group", group.id),
            Expected::Version(0),
            encoded(events),
        )
        .into_iter()
        .collect();
        if group.parent.is_none() {
            let (owner, owner_guards) = first_owner(call, group.id)?;
            streams.extend(owner);
            guards.extend(owner_guards);
        }
        Ok(Decision {
            streams,
            guards,
            reply: pb::CreateGroupResponse {
                group: Some(reply),
                ..Default::default()
            },
        })
    }

    async fn decide_update_group(
        &self,
        call: &Call,
        given_etag: &str,
        description: &Description,
    ) -> Result<Decision<pb::UpdateGroupResponse>, Status> {
        let place = call
            .relocate(&self.hierarchy)
            .await?
            .ok_or(group::Rejection::Missing)?;
        let (id, loaded) = self.load_group("group.id", &place).await?;
        loaded.check_etag("group.etag", given_etag)?;
        let command = group::Command::Update {
            description: Some(description.clone()),
        };
        let events = group::decide(&loaded.state, command)?;
        let mut after = loaded.clone();
        for event in &events {
            group::evolve(&mut after.state, event);
            after.version += 1;
        }
        let events: Vec<_> = events.iter().map(wire::write_group).collect();
        let mut guards = place.guards();
        guards.extend(changes(&events)?);
        let streams = aggregate::append(
            stream("group", id),
            Expected::Version(loaded.version),
            encoded(events),
        );
        Ok(Decision {
            streams: streams.into_iter().collect(),
            guards,
            reply: pb::UpdateGroupResponse {
                group: message(id, &wire::parent_path(&place), &after),
                ..Default::default()
            },
        })
    }

    async fn decide_delete(
        &self,
        call: &Call,
        given_etag: &str,
        force: bool,
    ) -> Result<Decision<pb::DeleteGroupResponse>, Status> {
        let place = call
            .relocate(&self.hierarchy)
            .await?
            .ok_or(group::Rejection::Missing)?;
        let (id, loaded) = self.load_group("id", &place).await?;
        loaded.check_etag("etag", given_etag)?;
        let (subgroups, workspaces) = (subgroups_key(id), workspaces_key(id));
        let facts = self.facts(&[subgroups.clone(), workspaces.clone()]).await?;
        let command = group::Command::Delete {
            subgroups: count(&facts, &subgroups),
            workspaces: count(&facts, &workspaces),
            force,
        };
        let events: Vec<_> = group::decide(&loaded.state, command)?
            .iter()
            .map(wire::write_group)
            .collect();
        let mut guards = place.guards();
        for key in [subgroups, workspaces] {
            guards.push(if force {
                Guard::Set { key, value: None }
            } else {
                add(key, 0, 0, 0)
            });
        }
        guards.push(Guard::Set {
            key: owners_key(id),
            value: None,
        });
        if let Some(parent) = place.parent() {
            guards.push(add(subgroups_key(parent), -1, 0, i64::MAX));
        }
        guards.extend(changes(&events)?);
        let streams = aggregate::append(
            stream("group", id),
            Expected::Version(loaded.version),
            encoded(events),
        );
        let ending = self.ending_by_deletion(call, &place).await?;
        Ok(Decision {
            streams: streams.into_iter().collect(),
            guards,
            reply: pb::DeleteGroupResponse {
                ending_assignments: ending.assignments,
                ending_assignment_count: ending.count,
                ..Default::default()
            },
        })
    }
}

/// A group as callers see it; none if it does not exist.
pub(super) fn message(
    id: GroupId,
    parent_path: &str,
    loaded: &Loaded<group::State>,
) -> Option<pb::Group> {
    let group::State::Live(group) = &loaded.state else {
        return None;
    };
    Some(pb::Group {
        etag: loaded.etag(),
        create_time: loaded.create_time.map(request::timestamp),
        update_time: loaded.update_time.map(request::timestamp),
        ..wire::group_message(id, parent_path, group)
    })
}

/// Who makes a top-level group owns it.
pub(super) fn first_owner(
    call: &Call,
    group: GroupId,
) -> Result<(Option<eventlog::StreamAppend>, Vec<Guard>), Status> {
    let id: MembershipId = clock::new_id();
    let membership = membership::Membership {
        id,
        namespace: NamespaceId::Group(group),
        principal: call.caller.principal.clone(),
        role: Role::Owner,
    };
    let command = membership::Command::Create {
        membership,
        exists: false,
    };
    let events: Vec<_> = membership::decide(&membership::State::Absent, command)?
        .iter()
        .map(wire::write_membership)
        .collect();
    let mut guards = changes(&events)?;
    guards.push(add(owners_key(group), 1, 1, i64::MAX));
    Ok((
        aggregate::append(
            stream("membership", id),
            Expected::Version(0),
            encoded(events),
        ),
        guards,
    ))
}
