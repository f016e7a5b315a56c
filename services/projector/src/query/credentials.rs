//! Credentials that jobs were given or refused, and the tokens of service accounts, by time.

use sqlx::{AssertSqlSafe, FromRow, PgPool};
use time::OffsetDateTime;

use super::places::{Query, Rows, Thing, in_ranges};
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

/// Where a value is that credentials are told apart by.
enum Column {
    Of(&'static str),
    /// Of what may have many of them, in many places. A row has the value in one at most.
    OfThing(&'static [&'static str]),
}

impl By {
    fn column(self) -> Column {
        match self {
            Self::Place => Column::Of("place_id"),
            Self::Token => Column::Of("token_id"),
            Self::Key => Column::Of("kid"),
            Self::ManagedIdentity => Column::OfThing(&["managed_identity_id", "source_id"]),
            Self::Job => Column::OfThing(&["job_id"]),
            Self::ServiceAccount => Column::OfThing(&["service_account_id"]),
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
            (Some(_), Some(_)) | (Some([]), None) => return Ok(vec![]),
            (visible, _) => visible,
        };
        // No two have the same token.
        let one = self.by.iter().any(|(by, _)| *by == By::Token);
        let direction = self.direction.word();
        let first = format!("ORDER BY recorded_at {direction}, position {direction} LIMIT $5");
        let filter = self.filter();
        let things = self.things();
        let alternatives: Vec<_> = things
            .iter()
            .map(|things| Rows {
                table: "credentials",
                columns: "credentials.*",
                place: "place_id",
                filter: &filter,
                things,
                first: &first,
                lists: ["$7", "$8"],
            })
            .collect();
        let Query { text, lists } = match visible {
            None => Query::either(alternatives.iter().map(Rows::all).collect()),
            Some(ranges) if one => {
                let within = alternatives.iter().map(|rows| rows.within(ranges));
                Query::either(within.collect())
            }
            Some(ranges) => in_ranges(pool, &alternatives, ranges).await?,
        };
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

    /// The condition that a row is one of those, but for what things it is of.
    fn filter(&self) -> String {
        let behind = self.direction.behind();
        let mut filter = format!(
            "($1::timestamptz IS NULL OR recorded_at >= $1)
             AND ($2::timestamptz IS NULL OR recorded_at < $2)
             AND ($3::timestamptz IS NULL OR (recorded_at, position) {behind} ($3, $4))
             AND ($6::boolean IS NULL OR (expires_at IS NOT NULL) = $6)"
        );
        for (parameter, by, _) in self.parameters() {
            if let Column::Of(column) = by.column() {
                filter = format!("{filter} AND {column} = {parameter}");
            }
        }
        filter
    }

    /// Things of which each of the rows is of all in one of the lists: what may be in either of two columns is looked up
    /// by the index of each.
    fn things(&self) -> Vec<Vec<Thing<'_>>> {
        let mut lists = vec![vec![]];
        for (parameter, by, id) in self.parameters() {
            let Column::OfThing(columns) = by.column() else {
                continue;
            };
            let in_each = lists.iter().flat_map(|list: &Vec<Thing<'_>>| {
                columns.iter().map(|column| {
                    let thing = Thing {
                        column,
                        parameter: parameter.clone(),
                        id,
                    };
                    list.iter().cloned().chain([thing]).collect()
                })
            });
            lists = in_each.collect();
        }
        lists
    }

    /// What takes the values that they have in common, in their order.
    fn parameters(&self) -> impl Iterator<Item = (String, By, &str)> {
        let numbered = (9..).zip(&self.by);
        numbered.map(|(number, (by, value))| (format!("${number}"), *by, *value))
    }
}
