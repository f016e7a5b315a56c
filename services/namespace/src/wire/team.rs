//! Teams between the domain and the wire.

use edge::hierarchy;
use edge::violations::Violations;
use eventlog::RecordedEvent;
use model::Principal;
use proto::access::v1 as access;
use proto::namespace::v1::{self as pb, Event};

use super::{Unreadable, decode, foreign, parse};
use crate::domain::team::{self, Team};

pub(crate) fn read(recorded: &RecordedEvent) -> Result<team::Event, Unreadable> {
    let member = |member: Option<&access::Principal>| {
        hierarchy::principal(member).ok_or(Unreadable::Field("member"))
    };
    match decode(recorded)? {
        Event::TeamCreated(event) => Ok(team::Event::Created(Team {
            id: parse("team id", &event.team_id)?,
            name: parse("name", &event.name)?,
            description: parse("description", &event.description)?,
        })),
        Event::TeamUpdated(event) => Ok(team::Event::Described(
            parse("team id", &event.team_id)?,
            parse("description", &event.description)?,
        )),
        Event::TeamDeleted(event) => Ok(team::Event::Deleted(
            parse("team id", &event.team_id)?,
            parse("name", &event.name)?,
        )),
        Event::TeamMemberAdded(event) => Ok(team::Event::Added(
            parse("team id", &event.team_id)?,
            member(event.member.as_ref())?,
        )),
        Event::TeamMemberRemoved(event) => Ok(team::Event::Removed(
            parse("team id", &event.team_id)?,
            member(event.member.as_ref())?,
        )),
        event => Err(foreign(&event)),
    }
}

pub(crate) fn write(event: &team::Event) -> Event {
    match event {
        team::Event::Created(team) => Event::TeamCreated(pb::TeamCreated {
            team_id: team.id.to_string(),
            name: team.name.to_string(),
            description: team.description.to_string(),
        }),
        team::Event::Described(id, description) => Event::TeamUpdated(pb::TeamUpdated {
            team_id: id.to_string(),
            description: description.to_string(),
        }),
        team::Event::Added(id, member) => Event::TeamMemberAdded(pb::TeamMemberAdded {
            team_id: id.to_string(),
            member: Some(hierarchy::wire_principal(member)),
        }),
        team::Event::Removed(id, member) => Event::TeamMemberRemoved(pb::TeamMemberRemoved {
            team_id: id.to_string(),
            member: Some(hierarchy::wire_principal(member)),
        }),
        team::Event::Deleted(id, name) => Event::TeamDeleted(pb::TeamDeleted {
            team_id: id.to_string(),
            name: name.to_string(),
        }),
    }
}

/// The user that a request names.
pub(crate) fn user(text: &str) -> Result<Principal, Violations> {
    Principal::user(text).map_err(|error| Violations::of("user", error))
}

/// A team as callers see it. Times and etag are filled in by whoever knows them.
pub(crate) fn message(team: &Team, members: usize) -> pb::Team {
    pb::Team {
        id: team.id.to_string(),
        trn: format!("trn:team:{}", team.name),
        name: team.name.to_string(),
        description: team.description.to_string(),
        member_count: i32::try_from(members).unwrap_or(i32::MAX),
        ..pb::Team::default()
    }
}
