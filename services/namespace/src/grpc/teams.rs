//! `TeamService`.

use edge::aggregate::{self, Loaded};
use edge::authorization;
use edge::command::{Decision, Mutation};
use edge::hierarchy::{Place, member_key, node_key, team_name_key};
use edge::layer::Call;
use edge::request::etag;
use edge::status::PreconditionViolation;
use edge::violations::Violations;
use edge::{clock, request, status};
use eventlog::{Expected, Guard, StreamAppend};
use model::{
    Description, MembershipId, NamespaceId, Principal, Reference, ResourceId, Role, TeamId,
};
use proto::namespace::v1 as pb;
use proto::namespace::v1::team_service_server::TeamService;
use tonic::{Request, Response, Status};

use super::holdings::{Holding, is_top_level};
use super::{NamespaceRpc, changes, count, encoded, held_prefix, holdings_key, owners_key, stream};
use crate::domain::membership::Membership;
use crate::domain::team::{self, Rejection, State, Team};
use crate::wire;

impl From<Rejection> for Status {
    fn from(rejection: Rejection) -> Self {
        let message = rejection.to_string();
        match rejection {
            Rejection::Missing => status::not_found("the team"),
            Rejection::NameTaken => status::already_exists("NAME_TAKEN", &message),
            Rejection::TooManyMembers => status::failed_precondition(
                "MEMBER_LIMIT",
                &message,
                vec![PreconditionViolation::new("MEMBER_LIMIT", "team", &message)],
            ),
            Rejection::LastOwner(groups) => {
                let groups = groups.iter().map(|group| {
                    PreconditionViolation::new("LAST_OWNER", group, "has no other owner")
                });
                status::failed_precondition("LAST_OWNER", &message, groups.collect())
            }
        }
    }
}

#[tonic::async_trait]
impl TeamService for NamespaceRpc {
    async fn create_team(
        &self,
        request: Request<pb::CreateTeamRequest>,
    ) -> Result<Response<pb::CreateTeamResponse>, Status> {
        let call = Call::of(&request)?;
        let (metadata, _, message) = request.into_parts();
        let wanted = message.team.clone().unwrap_or_default();
        let wire::Named { name, description } = wire::named(
            "team",
            &wanted.name,
            &wanted.description,
            Violations::default(),
        )?;
        let team = Team {
            id: clock::new_id(),
            name,
            description,
        };
        let mutation = Mutation::new(&call, &metadata, &message, |m| {
            [&mut m.request_id, &mut m.consistency_token]
        });
        let answer = |reply: &mut pb::CreateTeamResponse, time| {
            if let Some(team) = &mut reply.team {
                let time = request::timestamp(time);
                (team.create_time, team.update_time) = (Some(time), Some(time));
            }
        };
        self.commands
            .carry_out(
                mutation,
                || self.decide_create_team(team.clone()),
                |reply| &mut reply.consistency_token,
                answer,
            )
            .await
    }

    async fn get_team(
        &self,
        request: Request<pb::GetTeamRequest>,
    ) -> Result<Response<pb::GetTeamResponse>, Status> {
        let call = Call::of(&request)?;
        let found = self.team(&call, "id", &request.get_ref().id).await?;
        Ok(Response::new(pb::GetTeamResponse {
            team: Some(message(&found.loaded.state, &found.loaded)?),
        }))
    }

    async fn update_team(
        &self,
        request: Request<pb::UpdateTeamRequest>,
    ) -> Result<Response<pb::UpdateTeamResponse>, Status> {
        let call = Call::of(&request)?;
        let (metadata, _, message) = request.into_parts();
        let wanted = message.team.clone().unwrap_or_default();
        let mut violations = Violations::default();
        violations.merge(request::update_mask(
            message.update_mask.as_ref(),
            &["description"],
        ));
        let description = violations.check("team.description", wanted.description.parse());
        let description: Description = violations.finish(|| description)?;
        let mutation = Mutation::new(&call, &metadata, &message, |m| {
            [&mut m.request_id, &mut m.consistency_token]
        });
        let decide = || async {
            let found = self.team(&call, "team.id", &wanted.id).await?;
            found.loaded.check_etag("team.etag", &wanted.etag)?;
            let (part, guards, team) =
                found.change(team::Command::Describe(description.clone()))?;
            let reply = pb::UpdateTeamResponse {
                team: Some(team),
                ..Default::default()
            };
            Ok(decision(part, guards, reply))
        };
        let answer = |reply: &mut pb::UpdateTeamResponse, time| {
            if let Some(team) = &mut reply.team {
                team.update_time = Some(request::timestamp(time));
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

    async fn delete_team(
        &self,
        request: Request<pb::DeleteTeamRequest>,
    ) -> Result<Response<pb::DeleteTeamResponse>, Status> {
        let call = Call::of(&request)?;
        let (metadata, _, message) = request.into_parts();
        let mutation = Mutation::new(&call, &metadata, &message, |m| {
            [&mut m.request_id, &mut m.consistency_token]
        });
        self.commands
            .carry_out(
                mutation,
                || self.decide_delete_team(&call, &message),
                |reply| &mut reply.consistency_token,
                |_, _| {},
            )
            .await
    }

    async fn add_team_member(
        &self,
        request: Request<pb::AddTeamMemberRequest>,
    ) -> Result<Response<pb::AddTeamMemberResponse>, Status> {
        let call = Call::of(&request)?;
        let (metadata, _, message) = request.into_parts();
        let user = wire::team::user(&message.user)?;
        let mutation = Mutation::new(&call, &metadata, &message, |m| {
            [&mut m.request_id, &mut m.consistency_token]
        });
        let decide = || async {
            let found = self.team(&call, "team_id", &message.team_id).await?;
            let (part, guards, team) = found.change(team::Command::Add(user.clone()))?;
            let reply = pb::AddTeamMemberResponse {
                team: Some(team),
                ..Default::default()
            };
            Ok(decision(part, guards, reply))
        };
        let answer = |reply: &mut pb::AddTeamMemberResponse, time| {
            if let Some(team) = &mut reply.team {
                team.update_time = Some(request::timestamp(time));
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

    async fn remove_team_member(
        &self,
        request: Request<pb::RemoveTeamMemberRequest>,
    ) -> Result<Response<pb::RemoveTeamMemberResponse>, Status> {
        let call = Call::of(&request)?;
        let (metadata, _, message) = request.into_parts();
        let user = wire::team::user(&message.user)?;
        let mutation = Mutation::new(&call, &metadata, &message, |m| {
            [&mut m.request_id, &mut m.consistency_token]
        });
        let decide = || async {
            let found = self.team(&call, "team_id", &message.team_id).await?;
            let (part, guards, team) = found.change(team::Command::Remove(user.clone()))?;
            let reply = pb::RemoveTeamMemberResponse {
                team: Some(team),
                ..Default::default()
            };
            Ok(decision(part, guards, reply))
        };
        let answer = |reply: &mut pb::RemoveTeamMemberResponse, time| {
            if let Some(team) = &mut reply.team {
                team.update_time = Some(request::timestamp(time));
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
}

/// A team that exists.
struct Found {
    id: TeamId,
    place: Place,
    loaded: Loaded<State>,
}

impl Found {
    /// What a command changes in the team's own stream, and the team as it is then.
    fn change(
        &self,
        command: team::Command,
    ) -> Result<(Option<StreamAppend>, Vec<Guard>, pb::Team), Status> {
        let events = team::decide(&self.loaded.state, command)?;
        let mut after = self.loaded.state.clone();
        events
            .iter()
            .for_each(|event| team::evolve(&mut after, event));
        let mut team = message(&after, &self.loaded)?;
        team.etag = etag(self.loaded.version + events.len() as u64);
        let (part, guards) = self.append(&events)?;
        Ok((part, guards, team))
    }

    fn append(&self, events: &[team::Event]) -> Result<(Option<StreamAppend>, Vec<Guard>), Status> {
        let events: Vec<_> = events.iter().map(wire::team::write).collect();
        let mut guards = self.place.guards();
        guards.extend(changes(&events)?);
        let expected = Expected::Version(self.loaded.version);
        Ok((
            aggregate::append(stream("team", self.id), expected, encoded(events)),
            guards,
        ))
    }
}

impl NamespaceRpc {
    async fn team(&self, call: &Call, field: &str, named: &str) -> Result<Found, Status> {
        let wrong = || Violations::of(field, "must be the id or the TRN of a team").into_status();
        let reference: Reference = named.parse().map_err(|_| wrong())?;
        if reference.kind() != model::Kind::Team {
            return Err(wrong());
        }
        let place = authorization::find(&self.hierarchy, &reference, &call.caller).await?;
        let place = place.ok_or_else(|| status::not_found(named))?;
        let id = TeamId::try_from(place.id()).map_err(|_| wrong())?;
        let log = self.commands.log();
        let loaded =
            aggregate::load(log, &stream("team", id), wire::team::read, team::evolve).await?;
        Ok(Found { id, place, loaded })
    }

    async fn decide_create_team(
        &self,
        team: Team,
    ) -> Result<Decision<pb::CreateTeamResponse>, Status> {
        let name = team_name_key(team.name.as_str());
        let facts = self.facts(std::slice::from_ref(&name)).await?;
        let command = team::Command::Create {
            team: team.clone(),
            name_taken: facts.get(&name).is_some(),
        };
        let events = team::decide(&State::Absent, command)?;
        let events: Vec<_> = events.iter().map(wire::team::write).collect();
        let mut guards = vec![Guard::Expect {
            key: name,
            value: None,
        }];
        guards.extend(changes(&events)?);
        let mut reply = wire::team::message(&team, 0);
        reply.etag = etag(events.len() as u64);
        let part = aggregate::append(
            stream("team", team.id),
            Expected::Version(0),
            encoded(events),
        );
        let reply = pb::CreateTeamResponse {
            team: Some(reply),
            ..Default::default()
        };
        Ok(decision(part, guards, reply))
    }

    /// The team and what it holds end in one append: no moment and no failure leaves memberships of nobody.
    async fn decide_delete_team(
        &self,
        call: &Call,
        request: &pb::DeleteTeamRequest,
    ) -> Result<Decision<pb::DeleteTeamResponse>, Status> {
        let found = self.team(call, "id", &request.id).await?;
        found.loaded.check_etag("etag", &request.etag)?;
        let (holdings, mut guards) = self.holdings(found.id).await?;
        let sole = holdings.iter().filter(|holding| holding.last_owner);
        let command = team::Command::Delete {
            last_owner_of: sole.filter_map(Holding::group_name).collect(),
        };
        let events = team::decide(&found.loaded.state, command)?;
        let (part, of_team) = found.append(&events)?;
        let mut streams: Vec<_> = part.into_iter().collect();
        guards.extend(of_team);
        for holding in &holdings {
            let (part, of_membership) = holding.end()?;
            streams.extend(part);
            guards.extend(of_membership);
        }
        guards.push(Guard::Set {
            key: holdings_key(found.id),
            value: None,
        });
        Ok(Decision {
            streams,
            guards,
            reply: pb::DeleteTeamResponse::default(),
        })
    }

    /// The memberships that a team holds, and that these are all.
    async fn holdings(&self, team: TeamId) -> Result<(Vec<Holding>, Vec<Guard>), Status> {
        // Counted first: what is made meanwhile changes the count, and the append refuses.
        let total = holdings_key(team);
        let counted = self.facts(std::slice::from_ref(&total)).await?;
        let holder = Principal::Team(team);
        let prefix = held_prefix(&holder);
        let held = self.commands.log().fact_keys(&prefix).await;
        let held = held.map_err(|error| status::log(&error))?;
        let places = held
            .iter()
            .filter_map(|key| key.strip_prefix(&prefix)?.parse().ok())
            .filter_map(|id: ResourceId| NamespaceId::try_from(id).ok());
        let places: Vec<NamespaceId> = places.collect();
        let keys: Vec<String> = places
            .iter()
            .flat_map(|id| [member_key(id, &holder), node_key(id), owners_key(id)])
            .collect();
        let facts = self.facts(&keys).await?;
        let holding = |namespace: NamespaceId| {
            let (role, id) = facts
                .get(&member_key(namespace, &holder))?
                .split_once('/')?;
            let (role, id): (Role, MembershipId) = (role.parse().ok()?, id.parse().ok()?);
            let node = facts.get(&node_key(namespace)).map(str::to_owned);
            let owned = role == Role::Owner && is_top_level(namespace, node.as_deref());
            Some(Holding {
                last_owner: owned && count(&facts, &owners_key(namespace)) <= 1,
                membership: Membership {
                    id,
                    namespace,
                    principal: holder.clone(),
                    role,
                },
                node,
            })
        };
        let guard = Guard::Expect {
            value: counted.get(&total).map(str::to_owned),
            key: total,
        };
        Ok((
            places.into_iter().filter_map(holding).collect(),
            vec![guard],
        ))
    }
}

fn decision<R>(part: Option<StreamAppend>, guards: Vec<Guard>, reply: R) -> Decision<R> {
    Decision {
        streams: part.into_iter().collect(),
        guards,
        reply,
    }
}

fn message(state: &State, loaded: &Loaded<State>) -> Result<pb::Team, Status> {
    let State::Live { team, members } = state else {
        return Err(Rejection::Missing.into());
    };
    Ok(pb::Team {
        etag: loaded.etag(),
        create_time: loaded.create_time.map(request::timestamp),
        update_time: loaded.update_time.map(request::timestamp),
        ..wire::team::message(team, members.len())
    })
}
