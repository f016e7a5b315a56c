//! Jobs, the credentials that they were given, and the tokens of service accounts, by time.

use sqlx::{AssertSqlSafe, FromRow, PgPool};
use time::OffsetDateTime;

use super::visible::{Range, ends};
use crate::order::Direction;

/// A job.
#[derive(FromRow)]
pub(crate) struct JobRow {
    pub(crate) id: String,
    pub(crate) workspace_id: String,
    pub(crate) stage: i32,
    pub(crate) principal: String,
    pub(crate) created_at: OffsetDateTime,
    pub(crate) expires_at: Option<OffsetDateTime>,
}

/// Which jobs of a workspace are listed, and how.
pub(crate) struct Jobs<'a> {
    pub(crate) workspace: &'a str,
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

pub(crate) async fn jobs(pool: &PgPool, list: &Jobs<'_>) -> sqlx::Result<Vec<JobRow>> {
    let (at, id) = list.after.unzip();
    let (direction, behind) = (list.direction.word(), list.direction.behind());
    sqlx::query_as(AssertSqlSafe(format!(
        "SELECT id, workspace_id, stage, principal, created_at, expires_at FROM jobs
         WHERE workspace_id = $1 AND ($2 = 0 OR stage = $2)
           AND ($3::timestamptz IS NULL OR (created_at, id) {behind} ($3, $4))
           AND ($6 = '' OR principal = $6)
           AND ($7::timestamptz IS NULL OR created_at >= $7)
           AND ($8::timestamptz IS NULL OR created_at < $8)
         ORDER BY created_at {direction}, id {direction} LIMIT $5"
    )))
    .bind(list.workspace)
    .bind(list.stage)
    .bind(at)
    .bind(id)
    .bind(list.limit)
    .bind(list.principal)
    .bind(list.start)
    .bind(list.end)
    .persistent(false)
    .fetch_all(pool)
    .await
}

/// A credential.
#[derive(FromRow)]
pub(crate) struct CredentialRow {
    pub(crate) position: i64,
    pub(crate) token_id: String,
    pub(crate) job_id: String,
    pub(crate) workspace_id: String,
    pub(crate) managed_identity_id: String,
    pub(crate) subject: String,
    pub(crate) audience: String,
    pub(crate) kid: String,
    pub(crate) issued_at: OffsetDateTime,
    pub(crate) expires_at: Option<OffsetDateTime>,
    /// With commas between.
    pub(crate) reasons: String,
    pub(crate) service_account_id: Option<String>,
}

/// Which credentials are listed.
#[derive(Default)]
pub(crate) struct Credentials<'a> {
    pub(crate) workspace: Option<&'a str>,
    pub(crate) managed_identity: Option<&'a str>,
    pub(crate) job: Option<&'a str>,
    pub(crate) token: Option<&'a str>,
    pub(crate) kid: Option<&'a str>,
    pub(crate) service_account: Option<&'a str>,
    /// An identity and a job that the request asks for beside.
    pub(crate) filters: [Option<&'a str>; 2],
    pub(crate) start: Option<OffsetDateTime>,
    pub(crate) end: Option<OffsetDateTime>,
    /// Only of places within these, unless everything is visible.
    pub(crate) visible: Option<&'a [Range]>,
    /// Only issued ones, or only refused ones.
    pub(crate) issued: Option<bool>,
    pub(crate) direction: Direction,
    /// Time and position of the last row of the page before.
    pub(crate) after: Option<(OffsetDateTime, i64)>,
    pub(crate) limit: i64,
}

pub(crate) async fn credentials(
    pool: &PgPool,
    list: &Credentials<'_>,
) -> sqlx::Result<Vec<CredentialRow>> {
    let (from_paths, to_paths) = ends(list.visible.unwrap_or_default());
    let (at, position) = list.after.unzip();
    let (direction, behind) = (list.direction.word(), list.direction.behind());
    let [identity, job] = list.filters;
    let query = format!(
        "SELECT position, token_id, job_id, workspace_id, managed_identity_id, subject, audience, kid, issued_at, expires_at, reasons,
                service_account_id
         FROM credentials
         WHERE ($1::text IS NULL OR workspace_id = $1)
           AND ($2::text IS NULL OR managed_identity_id = $2)
           AND ($3::text IS NULL OR job_id = $3)
           AND ($4::text IS NULL OR token_id = $4)
           AND ($5::text IS NULL OR kid = $5)
           AND ($6::timestamptz IS NULL OR issued_at >= $6)
           AND ($7::timestamptz IS NULL OR issued_at < $7)
           AND ($8::timestamptz IS NULL OR (issued_at, position) {behind} ($8, $9))
           AND ($10::text IS NULL OR managed_identity_id = $10)
           AND ($11::text IS NULL OR job_id = $11)
           AND ($12 OR {visible})
           AND ($16::text IS NULL OR service_account_id = $16)
           AND ($17::boolean IS NULL OR (expires_at IS NOT NULL) = $17)
         ORDER BY issued_at {direction}, position {direction} LIMIT $15",
        visible = within("place_id", "$13", "$14"),
    );
    sqlx::query_as(AssertSqlSafe(query))
        .bind(list.workspace)
        .bind(list.managed_identity)
        .bind(list.job)
        .bind(list.token)
        .bind(list.kid)
        .bind(list.start)
        .bind(list.end)
        .bind(at)
        .bind(position)
        .bind(identity)
        .bind(job)
        .bind(list.visible.is_none())
        .bind(from_paths)
        .bind(to_paths)
        .bind(list.limit)
        .bind(list.service_account)
        .bind(list.issued)
        .persistent(false)
        .fetch_all(pool)
        .await
}

/// The condition that a place, which may be gone, lies in one of the ranges. Asked of each row by itself: rows come in
/// order, and only so many are wanted.
pub(super) fn within(place: &str, from_paths: &str, to_paths: &str) -> String {
    format!(
        "coalesce((
             SELECT bool_or(places.path >= from_path AND places.path < to_path)
             FROM places, UNNEST({from_paths}::text[], {to_paths}::text[]) AS visible (from_path, to_path)
             WHERE places.id = {place}
         ), false)"
    )
}
