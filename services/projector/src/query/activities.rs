//! Who did what when, by time.

use sqlx::{AssertSqlSafe, FromRow, PgPool};
use time::OffsetDateTime;

use super::places::{Query, Rows, Thing, in_ranges, within};
use super::visible::{Range, ends};
use crate::order::Direction;

/// Something that somebody did.
#[derive(FromRow)]
pub(crate) struct ActivityRow {
    pub(crate) id: i64,
    pub(crate) at: OffsetDateTime,
    pub(crate) actor: String,
    pub(crate) event_type: String,
    pub(crate) resource_id: String,
    pub(crate) place_id: String,
    pub(crate) managed_identity_id: Option<String>,
}

/// What the activities are of.
pub(crate) enum Of<'a> {
    /// All, whoever sees them.
    Everything,
    /// What happened in ranges of places, which the caller may see.
    Ranges(&'a [Range]),
    /// What happened right in a place, which the caller may see.
    Place(&'a str),
    /// What happened to a thing, or a managed identity is about, where the caller may see it.
    Thing(&'a str, &'a [Range]),
}

/// Which activities are listed; what is empty or none filters nothing.
pub(crate) struct Activities<'a> {
    pub(crate) actor: &'a str,
    pub(crate) event_type: &'a str,
    pub(crate) affected: &'a str,
    pub(crate) start: Option<OffsetDateTime>,
    pub(crate) end: Option<OffsetDateTime>,
    pub(crate) direction: Direction,
    /// Time and number of the last row of the page before.
    pub(crate) after: Option<(OffsetDateTime, i64)>,
    pub(crate) limit: i64,
}

const COLUMNS: &str = "activities.id, activities.at, activities.actor, activities.event_type, activities.resource_id, \
                       activities.place_id, activities.managed_identity_id";
/// The condition that a row is the first of its event; only moves have a second.
const FIRST: &str = "activities.moved_to IS NULL";
/// The parameters that take what is visible.
const VISIBLE: [&str; 2] = ["$12", "$13"];

/// The condition that a row is the first visible one of its event: each event is listed once, and nobody learns from it of
/// a place that is hidden.
fn first_visible() -> String {
    let [from_paths, to_paths] = VISIBLE;
    let there = within("activities.moved_to", from_paths, to_paths);
    format!("({FIRST} OR NOT {there})")
}

impl Activities<'_> {
    fn filter(&self) -> String {
        format!(
            "($1 = '' OR activities.actor = $1)
             AND ($2 = '' OR activities.event_type = $2)
             AND ($3 = '' OR activities.resource_id = $3 OR activities.managed_identity_id = $3)
             AND ($4::timestamptz IS NULL OR activities.at >= $4)
             AND ($5::timestamptz IS NULL OR activities.at < $5)
             AND ($6::timestamptz IS NULL OR (activities.at, activities.id) {} ($6, $7))",
            self.direction.behind()
        )
    }

    fn first(&self) -> String {
        let direction = self.direction.word();
        format!("ORDER BY at {direction}, id {direction} LIMIT $8")
    }

    pub(crate) async fn list(&self, pool: &PgPool, of: &Of<'_>) -> sqlx::Result<Vec<ActivityRow>> {
        let (filter, first) = (self.filter(), self.first());
        match *of {
            Of::Ranges([]) | Of::Thing(_, []) => Ok(vec![]),
            Of::Everything if !self.affected.is_empty() => self.affecting(pool, None).await,
            Of::Ranges(ranges) if !self.affected.is_empty() => {
                self.affecting(pool, Some(ranges)).await
            }
            Of::Everything => {
                let query =
                    format!("SELECT {COLUMNS} FROM activities WHERE {FIRST} AND {filter} {first}");
                self.ask(pool, Query::of(query), &[], "").await
            }
            Of::Ranges(ranges) => self.of_ranges(pool, ranges).await,
            Of::Place(id) => {
                let query = format!(
                    "SELECT {COLUMNS} FROM activities WHERE place_id = $11 AND {filter} {first}"
                );
                self.ask(pool, Query::of(query), &[], id).await
            }
            Of::Thing(id, visible) => self.of_thing(pool, id, Some(visible)).await,
        }
    }

    /// What affected what they are narrowed to.
    async fn affecting(
        &self,
        pool: &PgPool,
        visible: Option<&[Range]>,
    ) -> sqlx::Result<Vec<ActivityRow>> {
        // Not by the filter too: for that a plan may read what is hidden.
        let narrowed_by_index = Self {
            affected: "",
            ..*self
        };
        narrowed_by_index
            .of_thing(pool, self.affected, visible)
            .await
    }

    /// By the thing's own index, and by that of the identities that other things are about.
    async fn of_thing(
        &self,
        pool: &PgPool,
        id: &str,
        visible: Option<&[Range]>,
    ) -> sqlx::Result<Vec<ActivityRow>> {
        let of = ["resource_id", "managed_identity_id"].map(|column| {
            [Thing {
                column,
                parameter: "$11".to_owned(),
                id,
            }]
        });
        let things = of.each_ref().map(<[_; 1]>::as_slice);
        self.placed(pool, &things, id, visible).await
    }

    async fn of_ranges(&self, pool: &PgPool, ranges: &[Range]) -> sqlx::Result<Vec<ActivityRow>> {
        self.placed(pool, &[&[]], "", Some(ranges)).await
    }

    async fn placed(
        &self,
        pool: &PgPool,
        of: &[&[Thing<'_>]],
        id: &str,
        visible: Option<&[Range]>,
    ) -> sqlx::Result<Vec<ActivityRow>> {
        let shown = visible.map_or_else(|| FIRST.to_owned(), |_| first_visible());
        let filter = format!("{} AND {shown}", self.filter());
        let first = self.first();
        let rows = of.iter().map(|things| Rows {
            table: "activities",
            columns: COLUMNS,
            place: "place_id",
            filter: &filter,
            things,
            first: &first,
            lists: ["$9", "$10"],
        });
        let rows: Vec<_> = rows.collect();
        let Query { text, lists } = match visible {
            None => Query::either(rows.iter().map(Rows::all).collect()),
            Some(ranges) => in_ranges(pool, &rows, ranges).await?,
        };
        let text = format!("SELECT * FROM ({text}) either {first}");
        let query = Query { text, lists };
        self.ask(pool, query, visible.unwrap_or_default(), id).await
    }

    /// The parameters of the filters, then the query's lists, an id and what is visible, each of which it may leave out.
    async fn ask(
        &self,
        pool: &PgPool,
        query: Query,
        visible: &[Range],
        id: &str,
    ) -> sqlx::Result<Vec<ActivityRow>> {
        let (at, number) = self.after.unzip();
        // PostgreSQL wants the type of each parameter.
        let typed = format!(
            "WITH parameters AS (SELECT $9::text[], $10::text[], $11::text, $12::text[], $13::text[]) {}",
            query.text
        );
        let [one, other] = query.lists;
        let (from_paths, to_paths) = ends(visible);
        sqlx::query_as(AssertSqlSafe(typed))
            .bind(self.actor)
            .bind(self.event_type)
            .bind(self.affected)
            .bind(self.start)
            .bind(self.end)
            .bind(at)
            .bind(number)
            .bind(self.limit)
            .bind(one)
            .bind(other)
            .bind(id)
            .bind(from_paths)
            .bind(to_paths)
            .persistent(false)
            .fetch_all(pool)
            .await
    }
}
