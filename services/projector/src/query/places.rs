//! Rows of a table that says where each of its rows is, of ranges of places.

use sqlx::{AssertSqlSafe, PgPool};

use super::visible::{Range, ends};

/// So many places are asked one by one for their first; among more, the first of all are soon those of one of them.
const ASKED_ONE_BY_ONE: i64 = 2_000;

/// Something that rows are of.
#[derive(Clone)]
pub(super) struct Thing<'a> {
    /// The column that names it.
    pub(super) column: &'a str,
    /// The parameter that takes its id.
    pub(super) parameter: String,
    pub(super) id: &'a str,
}

/// Rows in some order, wherever they are.
pub(super) struct Rows<'a> {
    pub(super) table: &'a str,
    pub(super) columns: &'a str,
    /// The column that names a place.
    pub(super) place: &'a str,
    /// A condition.
    pub(super) filter: &'a str,
    /// What all of them are of; for each there is an index by what [`Rows::there`] makes of it.
    pub(super) things: &'a [Thing<'a>],
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

    /// The rows of each of them, which are given the same lists.
    pub(super) fn either(queries: Vec<Self>) -> Self {
        let texts = queries.iter().map(|query| format!("({})", query.text));
        let text = texts.collect::<Vec<_>>().join(" UNION ALL ");
        let lists = queries.into_iter().next().map(|query| query.lists);
        Self {
            text,
            lists: lists.unwrap_or_default(),
        }
    }
}

/// Those in the ranges, however many places that are, of rows that differ in what things they are of. What is hidden of a
/// thing is not looked at, however much it is: it would take time, by which it would tell of itself.
pub(super) async fn in_ranges(
    pool: &PgPool,
    alternatives: &[Rows<'_>],
    ranges: &[Range],
) -> sqlx::Result<Query> {
    let mut visible = places(pool, ranges).await?;
    if !few(&visible) && alternatives.iter().all(|rows| !rows.things.is_empty()) {
        visible.clear();
        for rows in alternatives {
            visible.extend(rows.places_of_thing(pool, ranges).await?);
        }
        visible.sort_unstable();
        visible.dedup();
    }
    let few = few(&visible);
    let queries = alternatives.iter().map(|rows| {
        if few {
            rows.of_each(visible.clone())
        } else {
            rows.within(ranges)
        }
    });
    Ok(Query::either(queries.collect()))
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
            things,
            first,
            lists: [list, _],
        } = self;
        let there = if things.is_empty() {
            format!("{table}.{place} = place.id")
        } else {
            let there = things.iter().map(|thing| {
                let id = &thing.parameter;
                format!("{} = {id}::text || ' ' || place.id", self.there(thing))
            });
            there.collect::<Vec<_>>().join(" AND ")
        };
        let text = format!(
            "SELECT found.* FROM UNNEST({list}::text[]) AS place (id) CROSS JOIN LATERAL (
                 SELECT {columns} FROM {table} WHERE {there} AND {filter} {first}
             ) found
             {first}"
        );
        Query {
            text,
            lists: [places, vec![]],
        }
    }

    /// The places in the ranges that have rows of the first thing; one more than are asked one by one, if there are so
    /// many. Each is looked at once, however many rows it has.
    async fn places_of_thing(&self, pool: &PgPool, ranges: &[Range]) -> sqlx::Result<Vec<String>> {
        let Self { table, place, .. } = self;
        let Some(thing) = self.things.first() else {
            return Ok(vec![]);
        };
        let there = self.there(thing);
        // What follows on a space.
        let next = |last: &str| {
            format!(
                "SELECT {place} FROM {table} WHERE {there} > $1::text || ' ' || {last} AND {there} < $1::text || '!'
                 ORDER BY {there} LIMIT 1"
            )
        };
        let (from_paths, to_paths) = ends(ranges);
        sqlx::query_scalar(AssertSqlSafe(format!(
            "WITH RECURSIVE of_thing (id) AS (
                 ({first})
                 UNION ALL
                 SELECT ({following}) FROM of_thing WHERE id IS NOT NULL
             )
             SELECT id FROM of_thing WHERE {visible} LIMIT $4",
            first = next("''"),
            following = next("of_thing.id"),
            visible = within("of_thing.id", "$2", "$3"),
        )))
        .bind(thing.id)
        .bind(from_paths)
        .bind(to_paths)
        .bind(ASKED_ONE_BY_ONE + 1)
        .persistent(false)
        .fetch_all(pool)
        .await
    }

    /// What the rows of a thing in a place have in common, as it is indexed. One expression, and not a condition on each of
    /// two columns: for that a plan may take the index of the thing alone, and read what it has elsewhere, where it knows
    /// of few rows only.
    fn there(&self, thing: &Thing<'_>) -> String {
        let Self { table, place, .. } = self;
        format!("({table}.{} || ' ' || {table}.{place})", thing.column)
    }

    fn those(&self, condition: &str, lists: [Vec<String>; 2]) -> Query {
        let Self {
            table,
            columns,
            filter,
            things,
            first,
            ..
        } = self;
        let of = things
            .iter()
            .map(|thing| format!("{table}.{} = {} AND ", thing.column, thing.parameter));
        let of = of.collect::<String>();
        let text =
            format!("SELECT {columns} FROM {table} WHERE {of}{filter} AND {condition} {first}");
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

/// Whether places are asked one by one.
fn few(places: &[String]) -> bool {
    i64::try_from(places.len()).is_ok_and(|count| count <= ASKED_ONE_BY_ONE)
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
