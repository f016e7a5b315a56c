//! Credentials that jobs were given or refused, and the tokens of service accounts, by time.

use sqlx::{AssertSqlSafe, FromRow, PgPool};
use time::OffsetDateTime;

use super::places::Rows;
use super::visible::{Range, sees};
use crate::order::Direction;

/// A credential.
#[derive(FromRow)]
pub(crate) struct CredentialRow {
    pub(crate) position: i64,
    pub(crate) recorded_at: OffsetDateTime,
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
    /// The one that a job named, or whose alias that is.
    ManagedIdentity,
    Job,
    ServiceAccount,
    Token,
    Key,
}

impl By {
    /// Of which a row has the value in one at most.
    fn columns(self) -> &'static [&'static str] {
        match self {
            Self::Place => &["place_id"],
            Self::ManagedIdentity => &["managed_identity_id", "source_id"],
            Self::Job => &["job_id"],
            Self::ServiceAccount => &["service_account_id"],
            Self::Token => &["token_id"],
            Self::Key => &["kid"],
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
        let place = self.by.iter().find(|(by, _)| *by == By::Place);
        let visible = match (self.visible, place) {
            // They are all there.
            (Some(ranges), Some((_, place))) if sees(pool, ranges, place).await? => None,
            (Some(_), Some(_)) => return Ok(vec![]),
            (visible, _) => visible,
        };
        // A key signs for everybody; whatever else they have in common has an index that leaves few of them.
        let few = self.by.iter().any(|(by, _)| *by != By::Key);
        let direction = self.direction.word();
        let first = format!("ORDER BY recorded_at {direction}, position {direction} LIMIT $5");
        let (mut texts, mut lists) = (Vec::new(), [vec![], vec![]]);
        for filter in self.filters() {
            let rows = Rows {
                table: "credentials",
                columns: "credentials.*",
                place: "place_id",
                filter: &filter,
                first: &first,
                lists: ["$7", "$8"],
            };
            let query = match visible {
                None => rows.all(),
                Some(ranges) if few => rows.within(ranges),
                Some(ranges) => rows.in_ranges(pool, ranges).await?,
            };
            texts.push(format!("({})", query.text));
            // The same each time: they are of places.
            lists = query.lists;
        }
        let text = texts.join(" UNION ALL ");
        let (at, position) = self.after.unzip();
        let [one, other] = lists;
        // PostgreSQL wants the type of each parameter.
        let typed = format!(
            "WITH parameters AS (SELECT $7::text[], $8::text[]) SELECT * FROM ({text}) listed {first}"
        );
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

    /// Conditions of which each of the rows fulfils one: what may be in either of two columns is looked up by the index of
    /// each.
    fn filters(&self) -> Vec<String> {
        let behind = self.direction.behind();
        let mut filters = vec![format!(
            "($1::timestamptz IS NULL OR recorded_at >= $1)
             AND ($2::timestamptz IS NULL OR recorded_at < $2)
             AND ($3::timestamptz IS NULL OR (recorded_at, position) {behind} ($3, $4))
             AND ($6::boolean IS NULL OR (expires_at IS NOT NULL) = $6)"
        )];
        for (number, (by, _)) in (9..).zip(&self.by) {
            let in_each = filters.iter().flat_map(|filter| {
                let columns = by.columns().iter();
                columns.map(move |column| format!("{filter} AND {column} = ${number}"))
            });
            filters = in_each.collect();
        }
        filters
    }
}
