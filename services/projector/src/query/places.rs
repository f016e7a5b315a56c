//! Rows of a table that says where each of its rows is, of ranges of places.

use sqlx::PgPool;

use super::visible::{Range, ends};

/// So many places are asked one by one for their first; among more, the first of all are soon those of one of them.
const ASKED_ONE_BY_ONE: i64 = 2_000;

/// Rows in some order, wherever they are.
pub(super) struct Rows<'a> {
    pub(super) table: &'a str,
    pub(super) columns: &'a str,
    /// The column that names a place.
    pub(super) place: &'a str,
    /// A condition.
    pub(super) filter: &'a str,
    /// In which order, and how many.
    pub(super) first: &'a str,
    /// The parameters that take the lists of the query.
    pub(super) lists: [&'a str; 2],
}

/// A query, and what it is to be given as its lists, each of which it may leave out.
pub(super) struct Query {
    pub(super) text: String,
    pub(super) lists: [Vec<String>; 2],
}

impl Query {
    /// One without lists.
    pub(super) fn of(text: String) -> Self {
        Self {
            text,
            lists: [vec![], vec![]],
        }
    }
}

impl Rows<'_> {
    pub(super) fn all(&self) -> Query {
        self.those("true", [vec![], vec![]])
    }

    /// Those within the ranges. Each row is looked at: for rows that come by an index of few, or are soon found.
    pub(super) fn within(&self, ranges: &[Range]) -> Query {
        let [from_paths, to_paths] = self.lists;
        let place = format!("{}.{}", self.table, self.place);
        let (from, to) = ends(ranges);
        self.those(&within(&place, from_paths, to_paths), [from, to])
    }

    /// Those of places, which are asked one by one.
    pub(super) fn of_each(&self, places: Vec<String>) -> Query {
        let Self {
            table,
            columns,
            place,
            filter,
            first,
            lists: [list, _],
        } = self;
        let text = format!(
            "SELECT found.* FROM UNNEST({list}::text[]) AS place (id) CROSS JOIN LATERAL (
                 SELECT {columns} FROM {table} WHERE {table}.{place} = place.id AND {filter} {first}
             ) found
             {first}"
        );
        Query {
            text,
            lists: [places, vec![]],
        }
    }

    /// Those in the ranges, however many places that are.
    pub(super) async fn in_ranges(&self, pool: &PgPool, ranges: &[Range]) -> sqlx::Result<Query> {
        let places = places(pool, ranges).await?;
        let few = i64::try_from(places.len()).is_ok_and(|count| count <= ASKED_ONE_BY_ONE);
        Ok(if few {
            self.of_each(places)
        } else {
            self.within(ranges)
        })
    }

    fn those(&self, condition: &str, lists: [Vec<String>; 2]) -> Query {
        let Self {
            table,
            columns,
            filter,
            first,
            ..
        } = self;
        let text = format!("SELECT {columns} FROM {table} WHERE {filter} AND {condition} {first}");
        Query { text, lists }
    }
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

/// The places in the ranges, gone ones too; one more than are asked one by one, if there are so many.
async fn places(pool: &PgPool, ranges: &[Range]) -> sqlx::Result<Vec<String>> {
    let (from_paths, to_paths) = ends(ranges);
    sqlx::query_scalar(
        "SELECT place.id FROM UNNEST($1::text[], $2::text[]) AS visible (from_path, to_path)
         CROSS JOIN LATERAL (
             (SELECT id FROM places WHERE NOT gone AND path >= from_path AND path < to_path ORDER BY path LIMIT $3)
             UNION ALL
             (SELECT id FROM places WHERE gone AND path >= from_path AND path < to_path ORDER BY path LIMIT $3)
         ) place
         LIMIT $3",
    )
    .bind(from_paths)
    .bind(to_paths)
    .bind(ASKED_ONE_BY_ONE + 1)
    .persistent(false)
    .fetch_all(pool)
    .await
}
