//! Credentials that jobs were given or refused, and the tokens of service accounts, by time.

use sqlx::{AssertSqlSafe, FromRow, PgPool};
use time::OffsetDateTime;

use super::places::{Query, Rows};
use super::visible::{Range, sees};
use crate::order::Direction;

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
    pub(crate) stage: i32,
    pub(crate) revision: String,
    pub(crate) requested_identity: String,
}

/// What credentials are told apart by.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum By {
    /// Of a workspace, or of the group of a service account.
    Place,
    ManagedIdentity,
    Job,
    ServiceAccount,
    Token,
    Key,
}

impl By {
    fn column(self) -> &'static str {
        match self {
            Self::Place => "place_id",
            Self::ManagedIdentity => "managed_identity_id",
            Self::Job => "job_id",
            Self::ServiceAccount => "service_account_id",
            Self::Token => "token_id",
            Self::Key => "kid",
        }
    }
}

/// Which credentials are listed.
pub(crate) struct Credentials<'a> {
    /// What they have in common.
    pub(crate) by: Vec<(By, &'a str)>,
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

impl Credentials<'_> {
    pub(crate) async fn list(&self, pool: &PgPool) -> sqlx::Result<Vec<CredentialRow>> {
        let (direction, behind) = (self.direction.word(), self.direction.behind());
        let by = (9..).zip(&self.by);
        let by = by.map(|(number, (by, _))| format!(" AND {} = ${number}", by.column()));
        let filter = format!(
            "($1::timestamptz IS NULL OR issued_at >= $1)
             AND ($2::timestamptz IS NULL OR issued_at < $2)
             AND ($3::timestamptz IS NULL OR (issued_at, position) {behind} ($3, $4))
             AND ($6::boolean IS NULL OR (expires_at IS NOT NULL) = $6)
             {}",
            by.collect::<Vec<_>>().concat()
        );
        let first = format!("ORDER BY issued_at {direction}, position {direction} LIMIT $5");
        let rows = Rows {
            table: "credentials",
            columns: "credentials.*",
            place: "place_id",
            filter: &filter,
            first: &first,
            lists: ["$7", "$8"],
        };
        let place = self.by.iter().find(|(by, _)| *by == By::Place);
        let visible = match (self.visible, place) {
            // They are all there.
            (Some(ranges), Some((_, place))) if sees(pool, ranges, place).await? => None,
            (Some(_), Some(_)) => return Ok(vec![]),
            (visible, _) => visible,
        };
        // A key signs for everybody; whatever else they have in common has an index that leaves few of them.
        let few = self.by.iter().any(|(by, _)| *by != By::Key);
        let Query { text, lists } = match visible {
            None => rows.all(),
            Some(ranges) if few => rows.within(ranges),
            Some(ranges) => rows.in_ranges(pool, ranges).await?,
        };
        let (at, position) = self.after.unzip();
        let [one, other] = lists;
        // PostgreSQL wants the type of each parameter.
        let typed = format!("WITH parameters AS (SELECT $7::text[], $8::text[]) {text}");
        let mut query = sqlx::query_as(AssertSqlSafe(typed))
            .bind(self.start)
            .bind(self.end)
            .bind(at)
            .bind(position)
            .bind(self.limit)
            .bind(self.issued)
            .bind(one)
            .bind(other);
        for (_, value) in &self.by {
            query = query.bind(value);
        }
        query.persistent(false).fetch_all(pool).await
    }
}
