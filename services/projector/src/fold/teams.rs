//! Teams and who is in them.

use std::collections::HashMap;

use eventlog::{FoldError, RecordedEvent};
use proto::namespace::v1::Event;
use sqlx::PgConnection;
use time::OffsetDateTime;

use super::{Stamps, inapplicable, members};

/// What a batch changes.
#[derive(Default)]
struct Changes<'a> {
    teams: HashMap<String, Team<'a>>,
    deleted: Vec<String>,
    /// By team and principal: since when it is a member; none if it is not.
    members: HashMap<(String, String), Option<OffsetDateTime>>,
}

struct Team<'a> {
    /// The name, and the event that made it; none if that is in an earlier batch.
    made: Option<(String, &'a RecordedEvent)>,
    /// None if it stays.
    description: Option<String>,
    last: &'a RecordedEvent,
}

pub(super) async fn apply(
    connection: &mut PgConnection,
    events: &[RecordedEvent],
) -> Result<(), FoldError> {
    let mut changes = Changes::default();
    for event in events {
        match Event::decode(&event.event_type, &event.payload).map_err(inapplicable(event))? {
            Event::TeamCreated(team) => {
                let row = Team {
                    made: Some((team.name, event)),
                    description: Some(team.description),
                    last: event,
                };
                changes.teams.insert(team.team_id, row);
            }
            Event::TeamUpdated(team) => {
                changes.touch(team.team_id, event).description = Some(team.description);
            }
            Event::TeamMemberAdded(added) => {
                let member = members::principal(event, added.member.as_ref())?;
                changes.touch(added.team_id.clone(), event);
                let since = Some(event.recorded_at);
                changes.members.insert((added.team_id, member), since);
            }
            Event::TeamMemberRemoved(removed) => {
                let member = members::principal(event, removed.member.as_ref())?;
                changes.touch(removed.team_id.clone(), event);
                changes.members.insert((removed.team_id, member), None);
            }
            Event::TeamDeleted(team) => {
                changes.teams.remove(&team.team_id);
                changes.members.retain(|(of, _), _| *of != team.team_id);
                changes.deleted.push(team.team_id);
            }
            _ => {}
        }
    }
    Ok(changes.write(connection).await?)
}

impl<'a> Changes<'a> {
    fn touch(&mut self, id: String, event: &'a RecordedEvent) -> &mut Team<'a> {
        let team = self.teams.entry(id).or_insert(Team {
            made: None,
            description: None,
            last: event,
        });
        team.last = event;
        team
    }

    async fn write(self, connection: &mut PgConnection) -> sqlx::Result<()> {
        if !self.deleted.is_empty() {
            sqlx::query!(
                "WITH left_over AS (DELETE FROM team_members WHERE team_id = ANY($1))
                 DELETE FROM teams WHERE id = ANY($1)",
                &self.deleted
            )
            .execute(&mut *connection)
            .await?;
        }
        let (made, changed): (Vec<_>, Vec<_>) = self
            .teams
            .into_iter()
            .partition(|(_, team)| team.made.is_some());
        insert(connection, made).await?;
        update(connection, changed).await?;
        write_members(connection, self.members).await
    }
}

async fn insert(connection: &mut PgConnection, made: Vec<(String, Team<'_>)>) -> sqlx::Result<()> {
    if made.is_empty() {
        return Ok(());
    }
    let (mut ids, mut names, mut descriptions) = (vec![], vec![], vec![]);
    let mut stamps = Stamps::default();
    for (id, team) in made {
        let Some((name, first)) = team.made else {
            continue;
        };
        ids.push(id);
        names.push(name);
        descriptions.push(team.description.unwrap_or_default());
        stamps.add(first, team.last);
    }
    sqlx::query!(
        "INSERT INTO teams (id, name, description, version, created_at, updated_at)
         SELECT * FROM UNNEST($1::text[], $2::text[], $3::text[], $4::bigint[], $5::timestamptz[], $6::timestamptz[])",
        &ids,
        &names,
        &descriptions,
        &stamps.versions,
        &stamps.created,
        &stamps.updated
    )
    .execute(connection)
    .await?;
    Ok(())
}

async fn update(
    connection: &mut PgConnection,
    changed: Vec<(String, Team<'_>)>,
) -> sqlx::Result<()> {
    if changed.is_empty() {
        return Ok(());
    }
    let (mut ids, mut descriptions) = (vec![], vec![]);
    let mut stamps = Stamps::default();
    for (id, team) in changed {
        ids.push(id);
        descriptions.push(team.description);
        stamps.add(team.last, team.last);
    }
    sqlx::query!(
        "UPDATE teams
         SET description = coalesce(new.description, teams.description), version = new.version,
             updated_at = new.updated_at
         FROM UNNEST($1::text[], $2::text[], $3::bigint[], $4::timestamptz[])
             AS new (id, description, version, updated_at)
         WHERE teams.id = new.id",
        &ids,
        &descriptions as &[Option<String>],
        &stamps.versions,
        &stamps.updated
    )
    .execute(connection)
    .await?;
    Ok(())
}

async fn write_members(
    connection: &mut PgConnection,
    members: HashMap<(String, String), Option<OffsetDateTime>>,
) -> sqlx::Result<()> {
    if members.is_empty() {
        return Ok(());
    }
    let (mut teams, mut principals, mut times) = (vec![], vec![], vec![]);
    let (mut left, mut leavers) = (vec![], vec![]);
    for ((team, principal), since) in members {
        if let Some(since) = since {
            teams.push(team);
            principals.push(principal);
            times.push(since);
        } else {
            left.push(team);
            leavers.push(principal);
        }
    }
    // Who left and came back within a batch has a row from before.
    sqlx::query!(
        "WITH gone AS (
             DELETE FROM team_members USING UNNEST($1::text[], $2::text[]) AS gone (team_id, principal)
             WHERE team_members.team_id = gone.team_id AND team_members.principal = gone.principal
         )
         INSERT INTO team_members (team_id, principal, added_at)
         SELECT * FROM UNNEST($3::text[], $4::text[], $5::timestamptz[])
         ON CONFLICT (team_id, principal) DO UPDATE SET added_at = excluded.added_at",
        &left,
        &leavers,
        &teams,
        &principals,
        &times
    )
    .execute(connection)
    .await?;
    Ok(())
}
