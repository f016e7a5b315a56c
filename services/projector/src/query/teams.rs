//! Teams and who is in them.

use sqlx::{AssertSqlSafe, FromRow, PgPool};
use time::OffsetDateTime;

use crate::order::{Direction, Order};

/// A team.
#[derive(FromRow)]
pub(crate) struct TeamRow {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) description: String,
    pub(crate) member_count: i64,
    pub(crate) version: i64,
    pub(crate) created_at: OffsetDateTime,
    pub(crate) updated_at: OffsetDateTime,
}

/// Which teams are listed, and how.
pub(crate) struct Teams<'a> {
    /// Only those whose name holds this.
    pub(crate) name_contains: &'a str,
    /// Only those of which this principal is a member.
    pub(crate) member: Option<&'a str>,
    pub(crate) order: Order,
    /// Sort key and id of the last row of the page before.
    pub(crate) after: Option<(&'a str, &'a str)>,
    pub(crate) limit: i64,
}

pub(crate) async fn teams(pool: &PgPool, teams: &Teams<'_>) -> sqlx::Result<Vec<TeamRow>> {
    let (column, direction) = (teams.order.column(), teams.order.direction());
    let (key, id) = teams.after.unzip();
    // Not "or there is no member": then every team would be read to ask it.
    let of_member = match teams.member {
        Some(_) => "id IN (SELECT team_id FROM team_members WHERE principal = $2)",
        None => "$2::text IS NULL",
    };
    sqlx::query_as(AssertSqlSafe(format!(
        "SELECT id, name, description, version, created_at, updated_at,
                (SELECT count(*) FROM team_members WHERE team_id = teams.id) AS member_count
         FROM teams
         WHERE strpos(name, $1) > 0 AND {of_member} AND {behind}
         ORDER BY {column} {direction}, id {direction} LIMIT $5",
        behind = teams.order.behind("teams", "$3", "$4"),
    )))
    .bind(teams.name_contains)
    .bind(teams.member)
    .bind(key)
    .bind(id)
    .bind(teams.limit)
    .persistent(false)
    .fetch_all(pool)
    .await
}

/// A principal in a team.
#[derive(FromRow)]
pub(crate) struct TeamMemberRow {
    pub(crate) principal: String,
    pub(crate) added_at: OffsetDateTime,
}

/// Which of a team's members are listed, and how.
pub(crate) struct Members<'a> {
    pub(crate) team: &'a str,
    /// Only those whose name, behind `user:`, holds this.
    pub(crate) user_contains: &'a str,
    /// By when they were added, and not by their name.
    pub(crate) by_time: bool,
    pub(crate) direction: Direction,
    /// Of the last row of the page before.
    pub(crate) after: Option<(OffsetDateTime, &'a str)>,
    pub(crate) limit: i64,
}

pub(crate) async fn members(
    pool: &PgPool,
    members: &Members<'_>,
) -> sqlx::Result<Vec<TeamMemberRow>> {
    let (direction, behind) = (members.direction.word(), members.direction.behind());
    let (keys, order, parameters) = if members.by_time {
        (
            "(added_at, principal)",
            format!("added_at {direction}, principal {direction}"),
            "($2::timestamptz, $3)",
        )
    } else {
        ("principal", format!("principal {direction}"), "$3")
    };
    let (at, principal) = members.after.unzip();
    sqlx::query_as(AssertSqlSafe(format!(
        "SELECT principal, added_at FROM team_members
         WHERE team_id = $1 AND ($2::timestamptz IS NULL OR {keys} {behind} {parameters}) AND strpos(substr(principal, 6), $4) > 0
         ORDER BY {order} LIMIT $5"
    )))
    .bind(members.team)
    .bind(at)
    .bind(principal)
    .bind(members.user_contains)
    .bind(members.limit)
    .persistent(false)
    .fetch_all(pool)
    .await
}
