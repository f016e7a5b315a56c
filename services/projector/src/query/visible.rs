//! What a caller may see, as ranges of paths.

use edge::hierarchy::{Hierarchy, Place};
use edge::layer::Call;
use model::Principal;
use sqlx::{AssertSqlSafe, PgPool};

/// Behind every path.
const END: char = '\x7f';

/// A place and everything below.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Range {
    /// The first path.
    pub(crate) from: String,
    /// Behind the last one.
    pub(crate) to: String,
}

impl Range {
    /// Of a place.
    pub(crate) fn of(place: &Place) -> Self {
        Self::below(&place.path())
    }

    fn below(path: &str) -> Self {
        Self {
            from: format!("{path}/"),
            // What follows on a slash.
            to: format!("{path}0"),
        }
    }

    fn everything() -> Self {
        Self {
            from: String::new(),
            to: END.to_string(),
        }
    }

    /// Of whatever begins with a text.
    pub(crate) fn beginning_with(text: &str) -> Self {
        Self {
            from: text.to_owned(),
            to: format!("{text}{END}"),
        }
    }
}

/// The ends of ranges, as queries take them.
pub(crate) fn ends(ranges: &[Range]) -> (Vec<String>, Vec<String>) {
    let ends = ranges
        .iter()
        .map(|range| (range.from.clone(), range.to.clone()));
    ends.unzip()
}

/// The condition that a row of `places` lies in one of the ranges. Asked of each row by itself, and not as a join of which
/// a plan could think that it leaves few rows: rows come in order, and only so many are wanted.
pub(crate) fn is_within(from_paths: &str, to_paths: &str) -> String {
    format!(
        "coalesce((
             SELECT bool_or(places.path >= from_path AND places.path < to_path)
             FROM UNNEST({from_paths}::text[], {to_paths}::text[]) AS visible (from_path, to_path)
         ), false)"
    )
}

/// As whom the caller sees what members see: itself and its teams.
pub(crate) async fn principals(pool: &PgPool, call: &Call) -> sqlx::Result<Vec<String>> {
    let hierarchy = Hierarchy::new(pool.clone());
    let principals = hierarchy.acts_as(&call.caller.principal).await?;
    Ok(principals.iter().map(ToString::to_string).collect())
}

/// Where the caller's memberships count. Those of a service account that are not below its group give no role, though they
/// may not have ended yet after a move. `None` if it is gone.
pub(crate) async fn reach(pool: &PgPool, call: &Call) -> sqlx::Result<Option<Range>> {
    let Principal::ServiceAccount(account) = &call.caller.principal else {
        return Ok(Some(Range::everything()));
    };
    let hierarchy = Hierarchy::new(pool.clone());
    let account = hierarchy.way_up((*account).into()).await?;
    let group = account.and_then(|account| account.above());
    Ok(group.as_ref().map(Range::of))
}

/// All that the caller may see: what lies below its memberships, for each of them lets one see. In the order of the
/// paths, none within another.
pub(crate) async fn to(pool: &PgPool, call: &Call) -> sqlx::Result<Vec<Range>> {
    if call.caller.administrator {
        return Ok(vec![Range::everything()]);
    }
    let Some(reach) = reach(pool, call).await? else {
        return Ok(vec![]);
    };
    let paths = sqlx::query_scalar!(
        "SELECT places.path FROM members JOIN places ON places.id = members.namespace_id
         WHERE members.principal = ANY($1) AND NOT places.gone AND places.path >= $2 AND places.path < $3
         ORDER BY places.path",
        &principals(pool, call).await?,
        reach.from,
        reach.to
    )
    .fetch_all(pool)
    .await?;
    let mut ranges: Vec<Range> = Vec::new();
    for path in paths {
        let within = ranges.last().is_some_and(|last| path < last.to);
        if !within {
            ranges.push(Range::below(path.trim_end_matches('/')));
        }
    }
    Ok(ranges)
}

/// Whether a place, which may be gone, lies in one of the ranges.
pub(crate) async fn sees(pool: &PgPool, ranges: &[Range], place: &str) -> sqlx::Result<bool> {
    let (from_paths, to_paths) = ends(ranges);
    sqlx::query_scalar(AssertSqlSafe(format!(
        "SELECT EXISTS (SELECT FROM places WHERE id = $1 AND {})",
        is_within("$2", "$3")
    )))
    .bind(place)
    .bind(from_paths)
    .bind(to_paths)
    .fetch_one(pool)
    .await
}
