//! Jobs, by time.

use sqlx::{AssertSqlSafe, FromRow, PgPool};
use time::OffsetDateTime;

use super::places::{Query, Rows, in_ranges};
use super::visible::Range;
use crate::order::Direction;

/// A job.
#[derive(FromRow)]
pub(crate) struct JobRow {
    pub(crate) id: String,
    pub(crate) workspace_id: String,
    pub(crate) stage: i32,
    pub(crate) principal: String,
    /// Empty if nobody else opened it.
    pub(crate) opener: String,
    pub(crate) created_at: OffsetDateTime,
    pub(crate) expires_at: Option<OffsetDateTime>,
    /// A `google.protobuf.Duration`.
    pub(crate) heartbeat_timeout: Vec<u8>,
    /// A `Module`.
    pub(crate) module: Option<Vec<u8>>,
    /// With a slash behind it. None if it is gone.
    pub(crate) workspace_path: Option<String>,
}

/// Of which workspaces the jobs are.
pub(crate) enum Of {
    /// Of all, whoever sees them.
    All,
    /// Of those in ranges of places, which the caller may see.
    Ranges(Vec<Range>),
    /// Of this one, which the caller may see.
    Workspace(String),
}

/// Which jobs are listed, and how.
pub(crate) struct Jobs<'a> {
    pub(crate) of: Of,
    /// The number of a stage; 0 for all.
    pub(crate) stage: i32,
    /// Empty for all.
    pub(crate) principal: &'a str,
    pub(crate) start: Option<OffsetDateTime>,
    pub(crate) end: Option<OffsetDateTime>,
    pub(crate) direction: Direction,
    /// Time and id of the last row of the page before.
    pub(crate) after: Option<(OffsetDateTime, &'a str)>,
    pub(crate) limit: i64,
}

impl Jobs<'_> {
    pub(crate) async fn list(self, pool: &PgPool) -> sqlx::Result<Vec<JobRow>> {
        let (direction, behind) = (self.direction.word(), self.direction.behind());
        let filter = format!(
            "($1 = 0 OR stage = $1)
             AND ($2::timestamptz IS NULL OR (created_at, id) {behind} ($2, $3))
             AND ($5 = '' OR principal = $5)
             AND ($6::timestamptz IS NULL OR created_at >= $6)
             AND ($7::timestamptz IS NULL OR created_at < $7)"
        );
        let first = format!("ORDER BY created_at {direction}, id {direction} LIMIT $4");
        let rows = Rows {
            table: "jobs",
            columns: "jobs.*",
            place: "workspace_id",
            filter: &filter,
            things: &[],
            first: &first,
            lists: ["$8", "$9"],
        };
        let Query { text, lists } = match self.of {
            Of::All => rows.all(),
            Of::Ranges(ranges) => in_ranges(pool, &[rows], &ranges).await?,
            Of::Workspace(id) => rows.of_each(vec![id]),
        };
        let (at, id) = self.after.unzip();
        let [one, other] = lists;
        // PostgreSQL wants the type of each parameter.
        sqlx::query_as(AssertSqlSafe(format!(
            "WITH parameters AS (SELECT $8::text[], $9::text[])
             SELECT listed.*, (
                 SELECT path FROM places WHERE places.id = listed.workspace_id AND NOT gone
             ) AS workspace_path
             FROM ({text}) listed
             {first}"
        )))
        .bind(self.stage)
        .bind(at)
        .bind(id)
        .bind(self.limit)
        .bind(self.principal)
        .bind(self.start)
        .bind(self.end)
        .bind(one)
        .bind(other)
        .persistent(false)
        .fetch_all(pool)
        .await
    }
}
