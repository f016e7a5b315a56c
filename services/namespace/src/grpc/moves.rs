//! Groups and workspaces to another place.
//!
//! Two moves at once never make a loop: the way from the new parent to the top is expected to be the one on which it
//! was decided that the group does not lie on it, and the append checks that where no other append comes between.
//!
//! Nor do they make a path too long. How deep a subtree is, is read by walking it; what is made below meanwhile shows
//! in the group's growth, which counts for each level below it how often something was made there or came there. Only
//! the growth of levels that would come to lie too deep is expected unchanged: whoever makes something there makes the
//! move look again, and everybody else goes on undisturbed. (Kept counts of what lies how deep would spare the walk, and
//! every deletion by force would have to take its subtree's counts off those above, against everybody who makes
//! something there.)

use edge::aggregate::{self, Loaded};
use edge::command::{Decision, Mutation};
use edge::hierarchy::{Node, Place, member_key};
use edge::layer::Call;
use edge::violations::Violations;
use edge::{request, status};
use eventlog::{Expected, Facts, Guard, StreamAppend};
use model::{GroupId, Kind, MembershipId, Permission, Role};
use proto::namespace::v1 as pb;
use tonic::{Request, Response, Status};

use super::{NamespaceRpc, Sibling, add, changes, count, encoded, groups, owners_key, stream};
use crate::domain::{group, membership, workspace};
use crate::wire;

/// The deepest level below a group that there can be, whatever the limit is set to.
const LEVELS: usize = 40;

impl NamespaceRpc {
    pub(super) async fn move_a_group(
        &self,
        request: Request<pb::MoveGroupRequest>,
    ) -> Result<Response<pb::MoveGroupResponse>, Status> {
        let call = Call::of(&request)?;
        let (metadata, _, message) = request.into_parts();
        let mutation = Mutation::new(&call, &metadata, &message, |m| {
            [&mut m.request_id, &mut m.consistency_token]
        });
        let answer = |reply: &mut pb::MoveGroupResponse, time| {
            if let Some(group) = &mut reply.group {
                group.update_time = Some(request::timestamp(time));
            }
        };
        self.commands
            .carry_out(
                mutation,
                || self.decide_move_group(&call, &message),
                |reply| &mut reply.consistency_token,
                answer,
            )
            .await
    }

    pub(super) async fn move_a_workspace(
        &self,
        request: Request<pb::MoveWorkspaceRequest>,
    ) -> Result<Response<pb::MoveWorkspaceResponse>, Status> {
        let call = Call::of(&request)?;
        let (metadata, _, message) = request.into_parts();
        let mutation = Mutation::new(&call, &metadata, &message, |m| {
            [&mut m.request_id, &mut m.consistency_token]
        });
        let answer = |reply: &mut pb::MoveWorkspaceResponse, time| {
            if let Some(workspace) = &mut reply.workspace {
                workspace.update_time = Some(request::timestamp(time));
            }
        };
        self.commands
            .carry_out(
                mutation,
                || self.decide_move_workspace(&call, &message),
                |reply| &mut reply.consistency_token,
                answer,
            )
            .await
    }

    async fn decide_move_group(
        &self,
        call: &Call,
        message: &pb::MoveGroupRequest,
    ) -> Result<Decision<pb::MoveGroupResponse>, Status> {
        let place = call
            .relocate(&self.hierarchy)
            .await?
            .ok_or(group::Rejection::Missing)?;
        let (id, loaded) = self.load_group("id", &place).await?;
        loaded.check_etag("etag", &message.etag)?;
        let group::State::Live(group) = &loaded.state else {
            return Err(group::Rejection::Missing.into());
        };
        let above = self.new_parent(call, &message.new_parent_id).await?;
        let to = above
            .as_ref()
            .map(|place| new_group("new_parent_id", place));
        let to = to.transpose()?;
        let growth = self.growth(id).await?;
        let height = self.height(id).await?;
        let room = self
            .room(Sibling::Group, above.as_ref(), &group.name, height)
            .await?;
        let command = group::Command::Move {
            to,
            into_itself: above
                .as_ref()
                .is_some_and(|above| above.is_within(id.into())),
            destination: room.destination,
        };
        let events = group::decide(&loaded.state, command)?;
        let mut after = loaded.clone();
        for event in &events {
            group::evolve(&mut after.state, event);
            after.version += 1;
        }
        let too_deep = (room.destination.max_depth + 1 + height)
            .saturating_sub(room.destination.depth)
            .max(1);
        let mut guards = place.guards();
        guards.extend(room.guards);
        guards.extend(unchanged(&growth, id, too_deep));
        guards.extend(leaves(Sibling::Group, &place));
        if let Some(above) = &above {
            // As deep as it can be: what is made below it at the same moment counts there too.
            guards.extend(grows(&above.nodes, 1..=LEVELS));
        }
        let events: Vec<_> = events.iter().map(wire::write_group).collect();
        guards.extend(changes(&events)?);
        let append = aggregate::append(
            stream("group", id),
            Expected::Version(loaded.version),
            encoded(events),
        );
        let mut streams: Vec<_> = append.into_iter().collect();
        if above.is_none() {
            let (owner, owner_guards) = self.owner_at_the_top(call, id).await?;
            streams.extend(owner);
            guards.extend(owner_guards);
        }
        let ending = self.ending_by_move(call, &place, above.as_ref()).await?;
        let gained = self.gained_by_move(call, &place, above.as_ref()).await?;
        let path = above.map(|above| above.path()).unwrap_or_default();
        Ok(Decision {
            streams,
            guards,
            reply: pb::MoveGroupResponse {
                group: groups::message(id, &path, &after),
                ending_assignments: ending.assignments,
                ending_assignment_count: ending.count,
                gained_identities: gained.identities,
                gained_identity_count: gained.count,
                ..Default::default()
            },
        })
    }

    async fn decide_move_workspace(
        &self,
        call: &Call,
        message: &pb::MoveWorkspaceRequest,
    ) -> Result<Decision<pb::MoveWorkspaceResponse>, Status> {
        let place = call
            .relocate(&self.hierarchy)
            .await?
            .ok_or(workspace::Rejection::Missing)?;
        let (id, loaded) = self.load_workspace("id", &place).await?;
        loaded.check_etag("etag", &message.etag)?;
        let workspace::State::Live(workspace) = &loaded.state else {
            return Err(workspace::Rejection::Missing.into());
        };
        let (field, needed) = ("new_group_id", Permission::WorkspaceCreate);
        let above = call
            .permitted(&self.hierarchy, needed, field, &message.new_group_id)
            .await?;
        let to = new_group(field, &above)?;
        let room = self
            .room(Sibling::Workspace, Some(&above), &workspace.name, 0)
            .await?;
        let command = workspace::Command::Move {
            to,
            destination: room.destination,
        };
        let events = workspace::decide(&loaded.state, command)?;
        let mut after = loaded.clone();
        for event in &events {
            workspace::evolve(&mut after.state, event);
            after.version += 1;
        }
        let mut guards = place.guards();
        guards.extend(room.guards);
        guards.extend(leaves(Sibling::Workspace, &place));
        guards.extend(grows(&above.nodes, 1..=1));
        let events: Vec<_> = events.iter().map(wire::write_workspace).collect();
        guards.extend(changes(&events)?);
        let streams = aggregate::append(
            stream("workspace", id),
            Expected::Version(loaded.version),
            encoded(events),
        );
        let ending = self.ending_by_move(call, &place, Some(&above)).await?;
        let gained = self.gained_by_move(call, &place, Some(&above)).await?;
        Ok(Decision {
            streams: streams.into_iter().collect(),
            guards,
            reply: pb::MoveWorkspaceResponse {
                workspace: super::workspaces::message(id, &above.path(), &after),
                ending_assignments: ending.assignments,
                ending_assignment_count: ending.count,
                gained_identities: gained.identities,
                gained_identity_count: gained.count,
                ..Default::default()
            },
        })
    }

    /// The group that a group is to lie in; the top is for administrators.
    async fn new_parent(&self, call: &Call, named: &str) -> Result<Option<Place>, Status> {
        let needed = Permission::GroupCreate;
        if !named.is_empty() {
            let place = call.permitted(&self.hierarchy, needed, "new_parent_id", named);
            return place.await.map(Some);
        }
        if call.caller.administrator {
            Ok(None)
        } else {
            Err(status::denied_at_the_top(needed, "new_parent_id"))
        }
    }

    /// How many levels lie below a group.
    async fn height(&self, group: GroupId) -> Result<usize, Status> {
        let below = self.hierarchy.below(group.into()).await;
        let below = below.map_err(|error| status::database(&error))?;
        Ok(below.iter().map(|(_, level)| *level).max().unwrap_or(0))
    }

    async fn growth(&self, group: GroupId) -> Result<Facts, Status> {
        let keys: Vec<_> = (1..=LEVELS).map(|level| growth_key(group, level)).collect();
        self.facts(&keys).await
    }

    /// Whoever brings a group without an owner of its own to the top becomes its owner: nobody else could make one.
    async fn owner_at_the_top(
        &self,
        call: &Call,
        group: GroupId,
    ) -> Result<(Option<StreamAppend>, Vec<Guard>), Status> {
        let (owners, member) = (owners_key(group), member_key(group, &call.caller.principal));
        let facts = self.facts(&[owners.clone(), member.clone()]).await?;
        if count(&facts, &owners) > 0 {
            return Ok((None, vec![add(owners, 0, 1, i64::MAX)]));
        }
        let held = facts.get(&member).and_then(|held| held.split_once('/'));
        let Some((_, held)) = held else {
            let (append, mut guards) = groups::first_owner(call, group)?;
            guards.insert(
                0,
                Guard::Expect {
                    key: member,
                    value: None,
                },
            );
            return Ok((append, guards));
        };
        let id = held.parse::<MembershipId>();
        let id = id.map_err(|error| status::internal(&error))?;
        let stream = stream("membership", id);
        let (read, evolve) = (wire::read_membership, membership::evolve);
        let loaded: Loaded<membership::State> =
            aggregate::load(self.commands.log(), &stream, read, evolve).await?;
        let command = membership::Command::ChangeRole {
            role: Role::Owner,
            last_owner: false,
        };
        let events = membership::decide(&loaded.state, command)?;
        let events: Vec<_> = events.iter().map(wire::write_membership).collect();
        let mut guards = changes(&events)?;
        guards.push(add(owners, 1, 1, i64::MAX));
        let expected = Expected::Version(loaded.version);
        Ok((aggregate::append(stream, expected, encoded(events)), guards))
    }
}

/// The group that something is to lie in.
fn new_group(field: &str, place: &Place) -> Result<GroupId, Status> {
    GroupId::try_from(place.id())
        .map_err(|_| Violations::of(field, format!("must name a {}", Kind::Group)).into_status())
}

/// One less of its kind in the group that it leaves.
fn leaves(kind: Sibling, place: &Place) -> Option<Guard> {
    let group = place.parent()?;
    Some(add(kind.count_key(group), -1, 0, i64::MAX))
}

/// The key of how often something was made, or came, this many levels below a group.
fn growth_key(group: impl std::fmt::Display, level: usize) -> String {
    format!("growth/{group}/{level}")
}

/// Something was made, or came, at these levels below the first of the groups, each of which lies in the next.
pub(super) fn grows(
    groups: &[Node],
    levels: std::ops::RangeInclusive<usize>,
) -> impl Iterator<Item = Guard> {
    groups.iter().enumerate().flat_map(move |(up, group)| {
        let levels = levels.clone().map(move |level| level + up);
        levels
            .take_while(|level| *level <= LEVELS)
            .map(|level| add(growth_key(group.id, level), 1, 0, i64::MAX))
    })
}

/// Nothing was made since at this level below the group, or deeper.
fn unchanged(growth: &Facts, group: GroupId, level: usize) -> impl Iterator<Item = Guard> {
    (level..=LEVELS).map(move |level| {
        let key = growth_key(group, level);
        let value = growth.get(&key).map(str::to_owned);
        Guard::Expect { key, value }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_limit_is_set_past_the_deepest_level() {
        let deepest = model::Limit::NamespaceDepth.max_value();
        assert_eq!(i64::try_from(LEVELS), Ok(deepest));
    }
}
