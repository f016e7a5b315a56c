//! Managed identities to another group.

use edge::authorization::locate;
use edge::command::{Decision, Mutation};
use edge::hierarchy::{Place, identity_name_key, limit_key};
use edge::layer::Call;
use edge::violations::Violations;
use edge::{aggregate, limits, request, status};
use eventlog::{Expected, Facts, Guard};
use model::{GroupId, Limit, ManagedIdentityId, Permission, ResourceId};
use proto::identity::v1 as pb;
use tonic::{Request, Response, Status};

use super::managed_identities::{NAMED, message, stream};
use super::{
    IdentityRpc, assigned_to_prefix, assignments_key, changes, count, encoded, siblings_key,
};
use crate::domain::managed_identity::{self, Rejection, State};
use crate::wire;

impl IdentityRpc {
    pub(super) async fn move_an_identity(
        &self,
        request: Request<pb::MoveManagedIdentityRequest>,
    ) -> Result<Response<pb::MoveManagedIdentityResponse>, Status> {
        let call = Call::of(&request)?;
        let (metadata, _, message) = request.into_parts();
        let mutation = Mutation::new(&call, &metadata, &message, |m| {
            [&mut m.request_id, &mut m.consistency_token]
        });
        let answer = |reply: &mut pb::MoveManagedIdentityResponse, time| {
            if let Some(identity) = &mut reply.managed_identity {
                identity.update_time = Some(request::timestamp(time));
            }
        };
        self.commands
            .carry_out(
                mutation,
                || self.decide_move(&call, &message),
                |reply| &mut reply.consistency_token,
                answer,
            )
            .await
    }

    async fn decide_move(
        &self,
        call: &Call,
        asked: &pb::MoveManagedIdentityRequest,
    ) -> Result<Decision<pb::MoveManagedIdentityResponse>, Status> {
        let place = call
            .relocate(&self.hierarchy)
            .await?
            .ok_or(Rejection::Missing)?;
        let (id, loaded) = self.load("id", &place).await?;
        loaded.check_etag("etag", &asked.etag)?;
        let identity = match &loaded.state {
            State::Live(identity) => identity,
            State::Alias(alias) => return Err(Rejection::IsAlias(alias.source).into()),
            State::Absent | State::Deleted => return Err(Rejection::Missing.into()),
        };
        let (to, group) = self.new_group(call, &asked.new_group_id).await?;
        let name = identity_name_key(&to.to_string(), identity.name.as_str());
        let (siblings, limit) = (siblings_key(to), Limit::GroupManagedIdentities);
        let keys = [name.clone(), siblings.clone(), limit_key(limit)];
        let facts = self.facts(&keys).await?;
        let max_siblings = limits::value(&facts, limit);
        let (losing, assigned) = self.losing(call, id, &group).await?;
        let (account_within_reach, of_account) = self
            .account_within_reach(call, &identity.configuration, &group)
            .await?;
        let command = managed_identity::Command::Move {
            to,
            name_taken: facts.get(&name).is_some(),
            siblings: count(&facts, &siblings),
            max_siblings,
            account_within_reach,
            losing,
        };
        let events = managed_identity::decide(&loaded.state, command)?;
        let mut after = loaded.clone();
        for event in &events {
            managed_identity::evolve(&mut after.state, event);
            after.version += 1;
        }
        let mut guards = [place.guards(), group.guards(), assigned, of_account].concat();
        guards.push(limits::unchanged(&facts, limit));
        guards.extend(changes_group(identity.group, name, siblings, max_siblings));
        let State::Live(moved) = &after.state else {
            return Err(Rejection::Missing.into());
        };
        let ending = self.ending_by_move(call, id, to).await?;
        let gained = self.gained_by_move(call, id, (identity.group, to)).await?;
        let reply = pb::MoveManagedIdentityResponse {
            managed_identity: Some(message(&group.path(), moved, &after)),
            ending_assignments: ending.assignments,
            ending_assignment_count: ending.count,
            gained_identities: gained.identities,
            gained_identity_count: gained.count,
            ..Default::default()
        };
        let events: Vec<_> = events.iter().map(wire::write_identity).collect();
        guards.extend(changes(&events)?);
        let streams = aggregate::append(
            stream(id),
            Expected::Version(loaded.version),
            encoded(events),
        );
        Ok(Decision {
            streams: streams.into_iter().collect(),
            guards,
            reply,
        })
    }

    async fn new_group(&self, call: &Call, named: &str) -> Result<(GroupId, Place), Status> {
        const FIELD: &str = "new_group_id";
        let create = Permission::ManagedIdentityCreate;
        let place = call
            .permitted(&self.hierarchy, create, FIELD, named)
            .await?;
        let id = GroupId::try_from(place.id())
            .map_err(|_| Violations::of(FIELD, "must name a group").into_status())?;
        Ok((id, place))
    }

    /// Workspaces that have the identity and would not inherit it from a group, a few of them; and that no
    /// other workspace has it when the append is made.
    async fn losing(
        &self,
        call: &Call,
        id: ManagedIdentityId,
        group: &Place,
    ) -> Result<(Vec<String>, Vec<Guard>), Status> {
        let assignments = assignments_key(id);
        let before = self.facts(std::slice::from_ref(&assignments)).await?;
        let prefix = assigned_to_prefix(id);
        let keys = self.commands.log().fact_keys(&prefix).await;
        let keys = keys.map_err(|error| status::log(&error))?;
        let mut paths = Vec::new();
        for key in &keys {
            let workspace = key.strip_prefix(&prefix).map(str::parse::<ResourceId>);
            let Some(Ok(workspace)) = workspace else {
                continue;
            };
            let place = locate(&self.hierarchy, workspace, &call.caller).await?;
            paths.extend(
                place
                    .filter(|place| !place.is_within(group.id()))
                    .map(|place| place.shown()),
            );
            if paths.len() == NAMED {
                break;
            }
        }
        Ok((paths, still_assigned(&before, assignments, keys)))
    }
}

/// As many have it as before, and the same ones.
fn still_assigned(before: &Facts, assignments: String, keys: Vec<String>) -> Vec<Guard> {
    let same = keys.into_iter().map(|key| Guard::Expect {
        key,
        value: Some(String::new()),
    });
    let as_many = Guard::Expect {
        value: before.get(&assignments).map(str::to_owned),
        key: assignments,
    };
    same.chain([as_many]).collect()
}

/// One identity less in the old group, one more in the new one, where nobody takes its name.
fn changes_group(from: GroupId, name: String, siblings: String, max_siblings: i64) -> [Guard; 3] {
    [
        Guard::Expect {
            key: name,
            value: None,
        },
        Guard::Count {
            key: siblings_key(from),
            by: -1,
            min: 0,
            max: i64::MAX,
        },
        Guard::Count {
            key: siblings,
            by: 1,
            min: 0,
            max: max_siblings,
        },
    ]
}
