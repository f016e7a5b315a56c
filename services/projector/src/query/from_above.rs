//! What a group or workspace has of its own and from above: managed identities, service accounts, memberships.

use std::hash::Hash;

use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, FromRow, PgPool};
use tonic::Status;

use crate::order::{By, Order};
use crate::page::Page;

/// Where such things are kept: parts of a query, in which `above.id` is the place that a thing is of, `above.number` how
/// far up that is, from 1, `$1` all of the places, and `$5` and `$6` what the list is narrowed to.
pub(crate) struct Source {
    /// With `id`, `name`, `created_at` and `updated_at`, and with the alias.
    pub(crate) table: &'static str,
    pub(crate) alias: &'static str,
    /// Those of a row, but its distance.
    pub(crate) columns: String,
    /// The column with the id of the place.
    pub(crate) place: &'static str,
    /// Which of them are listed.
    pub(crate) condition: String,
}

/// Which list of them.
pub(crate) struct List<'a> {
    /// The ids of the places, the nearest first.
    pub(crate) places: &'a [String],
    /// See [`Source::condition`].
    pub(crate) narrowed_to: [&'a str; 2],
    /// The nearest first, then by name, if nothing else is asked.
    pub(crate) order: Option<Order>,
}

/// A row with its `distance`: how many places above the one asked about it is; 0 for that itself.
pub(crate) trait Row: for<'r> FromRow<'r, PgRow> + Send + Unpin {
    /// What a page token says of it, in an order.
    fn key(&self, order: Option<Order>) -> [String; 2];
}

/// That a row is behind a distance and a name, where the nearest come first.
const NEAREST_BEHIND: &str = "above.number - 1 >= coalesce($2::text::bigint, 0) \
                              AND name > CASE above.number - 1 WHEN $2::text::bigint THEN $3::text ELSE '' END";

impl List<'_> {
    /// The page that a request asks for. `query` is everything else that it asks.
    pub(crate) fn page(
        order: Option<Order>,
        (size, token): (i32, &str),
        query: &impl Hash,
    ) -> Result<Page, Status> {
        let page = Page::read(size, token, &(query, order), 2)?;
        let is_key = |key: &str| match order {
            Some(order) => order.has_key(key),
            None => key.parse::<i64>().is_ok(),
        };
        match page.after.as_deref() {
            Some([key, _]) if !is_key(key) => Err(Page::wrong_token().into_status()),
            _ => Ok(page),
        }
    }
}

/// The rows of a page, and the token of the next one.
pub(crate) async fn list<R: Row>(
    pool: &PgPool,
    source: &Source,
    list: &List<'_>,
    page: &Page,
) -> sqlx::Result<(Vec<R>, String)> {
    let Source {
        table,
        alias,
        columns,
        place,
        condition,
    } = source;
    let (key, id) = match page.after.as_deref() {
        Some([key, id]) => (Some(key), Some(id)),
        _ => (None, None),
    };
    let (behind, nearest, order) = match list.order {
        None => (NEAREST_BEHIND.to_owned(), "above.number, ", Order::BY_NAME),
        Some(order) => (order.behind(alias, "$2", "$3"), "", order),
    };
    let (column, direction) = (order.column(), order.direction());
    // Names differ within a place, and are all that their index holds.
    let within = match order.by {
        By::Name => format!("name {direction}"),
        By::CreateTime | By::UpdateTime => format!("{column} {direction}, id {direction}"),
    };
    let mut rows: Vec<R> = sqlx::query_as(AssertSqlSafe(format!(
        "SELECT {columns}, above.number - 1 AS distance
           FROM UNNEST($1::text[]) WITH ORDINALITY AS above (id, number),
           LATERAL (
               SELECT * FROM {table} WHERE {place} = above.id AND {behind} AND {condition}
               ORDER BY {within} LIMIT $4
           ) {alias}
           ORDER BY {nearest}{alias}.{column} {direction}, {alias}.id {direction} LIMIT $4",
    )))
    .bind(list.places)
    .bind(key)
    .bind(id)
    .bind(page.limit())
    .bind(list.narrowed_to[0])
    .bind(list.narrowed_to[1])
    .persistent(false)
    .fetch_all(pool)
    .await?;
    let next = page.cut(&mut rows, |row| row.key(list.order).to_vec());
    Ok((rows, next))
}
