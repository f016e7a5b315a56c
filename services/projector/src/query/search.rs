//! Finding groups, workspaces and identities by name and path.
//!
//! Most texts are found soon by looking through the paths in order, and what a caller may see is often little: so that is
//! what is tried first, and bounded. Where it does not fill a page, what is looked for is rare, and the index of
//! substrings leads to it. Both answer with the same rows in the same order.

use sqlx::{AssertSqlSafe, FromRow, PgPool};

use super::visible::{Range, ends};
use crate::grams;

/// How many places are looked through before the index of substrings is asked.
const LOOKED_THROUGH: i64 = 1_000;
/// What beginning with another range costs, counted in places.
const RANGE: i64 = 20;

/// What is looked for.
pub(crate) struct Search<'a> {
    /// In which places, in order.
    pub(crate) ranges: &'a [Range],
    /// In lower case; of the characters that paths have.
    pub(crate) text: &'a str,
    /// Whether the name or the path must begin with it.
    pub(crate) prefix: bool,
    /// Of this kind of namespace, or type of identity; empty for all.
    pub(crate) kind: &'a str,
    /// The path, and the name of an identity in it, of the last row of the page before.
    pub(crate) after: (&'a str, &'a str),
    /// Rows.
    pub(crate) limit: i64,
}

/// What was found.
#[derive(Debug, FromRow)]
pub(crate) struct Hit {
    pub(crate) id: String,
    /// Of the group or workspace, or of the identity's group; with a slash behind it.
    pub(crate) path: String,
    /// Of an identity.
    pub(crate) name: String,
}

/// A hit of the places that were looked through, if there is one.
#[derive(FromRow)]
struct Looked {
    /// How many were.
    places: i64,
    id: Option<String>,
    path: Option<String>,
    name: Option<String>,
}

/// What is searched, as far as the queries differ. `hit` names the columns of a row among `places` and what it is joined
/// with; `whole` is the path that the text is looked for in, `own` the name.
struct Subject {
    from: &'static str,
    /// The same of the places that are looked through: each leads to its own, for there are few of them.
    looked_through: &'static str,
    id: &'static str,
    whole: &'static str,
    own: &'static str,
    /// The name among the sort keys.
    name: &'static str,
    kind: &'static str,
}

const NAMESPACES: Subject = Subject {
    from: "places",
    looked_through: "looked_through places",
    id: "places.id",
    whole: "left(places.path, -1)",
    own: "places.name",
    name: "''::text",
    kind: "places.kind",
};

const IDENTITIES: Subject = Subject {
    from: "places JOIN managed_identities identity ON identity.group_id = places.id",
    looked_through: "looked_through places CROSS JOIN LATERAL (
                     SELECT * FROM managed_identities WHERE group_id = places.id ORDER BY name
                 ) identity",
    id: "identity.id",
    whole: "places.path || identity.name",
    own: "identity.name",
    name: "identity.name",
    kind: "identity.type",
};

pub(crate) async fn namespaces(pool: &PgPool, search: &Search<'_>) -> sqlx::Result<Vec<Hit>> {
    search.find(pool, &NAMESPACES).await
}

pub(crate) async fn identities(pool: &PgPool, search: &Search<'_>) -> sqlx::Result<Vec<Hit>> {
    search.find(pool, &IDENTITIES).await
}

impl Search<'_> {
    async fn find(&self, pool: &PgPool, subject: &Subject) -> sqlx::Result<Vec<Hit>> {
        let (mut hits, mut left) = (Vec::new(), LOOKED_THROUGH);
        for range in self.ranges {
            if left <= 0 {
                return self.ask_index(pool, subject).await;
            }
            let wanted = self.limit - i64::try_from(hits.len()).unwrap_or(self.limit);
            let looked = self
                .look_through(pool, subject, range, left, wanted)
                .await?;
            let count = looked.first().map_or(0, |row| row.places);
            let ended = count < left;
            left -= count + RANGE;
            hits.extend(looked.into_iter().filter_map(Looked::hit));
            if i64::try_from(hits.len()).is_ok_and(|found| found >= self.limit) {
                return Ok(hits);
            }
            if !ended {
                return self.ask_index(pool, subject).await;
            }
        }
        Ok(hits)
    }

    /// The hits among the first places of a range that can have one behind the last page, and how many those are.
    async fn look_through(
        &self,
        pool: &PgPool,
        subject: &Subject,
        range: &Range,
        places: i64,
        limit: i64,
    ) -> sqlx::Result<Vec<Looked>> {
        let Subject {
            looked_through: from,
            id,
            name,
            kind,
            ..
        } = subject;
        let matches = subject.matches(self.prefix);
        // In a place that was on the last page there may be more identities.
        let query = format!(
            "WITH looked_through AS MATERIALIZED (
                 SELECT id, kind, name, path FROM places
                 WHERE NOT gone AND path >= $1 AND path < $2 AND path >= $3
                 ORDER BY path LIMIT $4
             )
             SELECT counted.places, hit.id, hit.path, hit.name
             FROM (SELECT count(*) AS places FROM looked_through) counted
             LEFT JOIN (
                 SELECT {id} AS id, places.path, {name} AS name FROM {from}
                 WHERE (places.path, {name}) > ($3, $5) AND ($6 = '' OR {kind} = $6) AND {matches}
                 ORDER BY places.path, {name} LIMIT $8
             ) hit ON true
             ORDER BY hit.path, hit.name"
        )
        .replace("$text", "$7");
        let (path, name) = self.after;
        sqlx::query_as(AssertSqlSafe(query))
            .bind(&range.from)
            .bind(&range.to)
            .bind(path)
            .bind(places)
            .bind(name)
            .bind(self.kind)
            .bind(self.text)
            .bind(limit)
            // Planned anew for each request: what is rare and what is not depends on it.
            .persistent(false)
            .fetch_all(pool)
            .await
    }

    /// The hits by the index of substrings. What ends in the name of a place is in the path of everything below it: so
    /// the names lead to ranges of places, and in each of them the first hits are enough.
    async fn ask_index(&self, pool: &PgPool, subject: &Subject) -> sqlx::Result<Vec<Hit>> {
        let Subject {
            from,
            id,
            name,
            kind,
            ..
        } = subject;
        let matches = subject.matches(self.prefix);
        let hits = format!(
            "SELECT {id} AS id, places.path, {name} AS name FROM {from}
             WHERE NOT places.gone AND places.path >= within.from_path AND places.path < within.to_path
               AND places.path >= $3 AND (places.path, {name}) > ($3, $4)
               AND ($5 = '' OR {kind} = $5) AND {matches}
             ORDER BY places.path, {name} LIMIT $7"
        );
        let query = format!(
            "WITH typed AS (SELECT $8::integer[], $9::text, $10::text, $11::integer[], $12::text),
             visible AS (
                 SELECT from_path COLLATE \"C\" AS from_path, to_path COLLATE \"C\" AS to_path
                 FROM UNNEST($1::text[], $2::text[]) AS visible (from_path, to_path)
             ),
             within AS ({within})
             SELECT DISTINCT hit.path, hit.name, hit.id FROM (
                 SELECT hit.* FROM within CROSS JOIN LATERAL ({hits}) hit
                 {by_name}
             ) hit
             ORDER BY hit.path, hit.name LIMIT $7",
            within = match (self.last_names(), self.prefix) {
                ((_, ""), _) => VISIBLE,
                (_, true) => BEGINNING,
                (("", _), false) => HOLDING,
                (_, false) => HOLDING_BELOW,
            },
            by_name = self.by_name(subject),
        )
        .replace("$text", "$6");
        let (from_paths, to_paths) = ends(self.ranges);
        let (path, name) = self.after;
        let (above, last) = self.last_names();
        let beginning = Range::beginning_with(self.text);
        sqlx::query_as(AssertSqlSafe(query))
            .bind(from_paths)
            .bind(to_paths)
            .bind(path)
            .bind(name)
            .bind(self.kind)
            .bind(self.text)
            .bind(self.limit)
            .bind(grams::of_text(last))
            .bind(beginning.from)
            .bind(beginning.to)
            .bind(grams::of_text(above))
            .bind(last)
            .persistent(false)
            .fetch_all(pool)
            .await
    }

    /// The last two of the names that the text touches: what completes the text has a name that holds the last one, below
    /// one that holds the other. Empty, where there is none.
    fn last_names(&self) -> (&str, &str) {
        let mut names = self.text.trim_end_matches('/').rsplit('/');
        let last = names.next().unwrap_or_default();
        (names.next().unwrap_or_default(), last)
    }

    /// Hits by the own name, which no range of places leads to.
    fn by_name(&self, subject: &Subject) -> String {
        let Subject {
            from,
            id,
            name,
            kind,
            own,
            ..
        } = subject;
        let table = own.split('.').next().unwrap_or_default();
        let ranges_are_enough = table == "places" && !self.prefix;
        let (above, last) = self.last_names();
        if ranges_are_enough || last.is_empty() {
            return String::new();
        }
        let matches = subject.matches(self.prefix);
        let in_group = if table == "places" || above.is_empty() || self.text.ends_with('/') {
            ""
        } else {
            "AND places.grams @> $11::integer[]"
        };
        format!(
            "UNION ALL (
                 SELECT {id} AS id, places.path, {name} AS name FROM {from}
                 WHERE NOT places.gone AND {table}.grams @> $8::integer[] {in_group}
                   AND (places.path, {name}) > ($3, $4) AND ($5 = '' OR {kind} = $5) AND {matches}
                   AND EXISTS (SELECT FROM visible WHERE places.path >= from_path AND places.path < to_path)
                 ORDER BY places.path, {name} LIMIT $7
             )"
        )
    }
}

/// The ranges of places whose paths hold the text: below each that completes it, and what is visible of where it is
/// complete already.
const HOLDING: &str =
    "SELECT places.path AS from_path, left(places.path, -1) || '0' AS to_path FROM places
     WHERE NOT places.gone AND places.grams @> $8::integer[] AND strpos(places.path, $text) > 0
       AND EXISTS (SELECT FROM visible WHERE places.path >= from_path AND places.path < to_path)
     UNION ALL
     SELECT from_path, to_path FROM visible WHERE strpos(from_path, $text) > 0";

/// The same of a text with a whole name before the last: whichever of the two names is rarer leads to the other.
const HOLDING_BELOW: &str = "SELECT places.path AS from_path, left(places.path, -1) || '0' AS to_path
     FROM places above
     JOIN namespaces ON namespaces.parent_id = above.id AND namespaces.name >= $12 AND namespaces.name < $12 || '~'
     JOIN places ON places.id = namespaces.id
     WHERE NOT above.gone AND above.grams @> $11::integer[]
       AND NOT places.gone AND places.grams @> $8::integer[] AND strpos(places.path, $text) > 0
       AND EXISTS (SELECT FROM visible WHERE places.path >= from_path AND places.path < to_path)
     UNION ALL
     SELECT from_path, to_path FROM visible WHERE strpos(from_path, $text) > 0";

/// The ranges of places whose paths begin with the text, as far as they are visible.
const BEGINNING: &str = "SELECT greatest(from_path, $9::text) AS from_path, least(to_path, $10::text) AS to_path FROM visible
     WHERE greatest(from_path, $9::text) < least(to_path, $10::text)";

/// For a text without a name.
const VISIBLE: &str = "SELECT from_path, to_path FROM visible";

impl Subject {
    fn matches(&self, prefix: bool) -> String {
        let Self { whole, own, .. } = self;
        if prefix {
            format!("(starts_with({whole}, $text) OR starts_with({own}, $text))")
        } else {
            format!("strpos({whole}, $text) > 0")
        }
    }
}

impl Looked {
    fn hit(self) -> Option<Hit> {
        Some(Hit {
            id: self.id?,
            path: self.path?,
            name: self.name?,
        })
    }
}
