//! Groups and workspaces.

use sqlx::{AssertSqlSafe, FromRow, PgPool};
use time::OffsetDateTime;

use super::visible::{Range, ends, is_within};
use crate::order::{Direction, Order};

/// Of a [`NamespaceRow`].
const COLUMNS: &str = "namespaces.id, namespaces.kind, namespaces.parent_id, namespaces.name, namespaces.description, \
                       namespaces.max_job_duration, \
                       namespaces.version, namespaces.created_at, namespaces.updated_at";

/// A group or workspace.
#[derive(FromRow)]
pub(crate) struct NamespaceRow {
    pub(crate) id: String,
    pub(crate) kind: String,
    pub(crate) parent_id: String,
    pub(crate) name: String,
    pub(crate) description: String,
    pub(crate) max_job_duration: Option<i64>,
    pub(crate) version: i64,
    pub(crate) created_at: OffsetDateTime,
    pub(crate) updated_at: OffsetDateTime,
}

/// A group or workspace, and where it is.
#[derive(FromRow)]
pub(crate) struct PlacedRow {
    #[sqlx(flatten)]
    pub(crate) row: NamespaceRow,
    /// With a slash behind it.
    pub(crate) path: String,
}

/// Principals that are members somewhere, and where that counts.
#[derive(Default)]
pub(crate) struct Members {
    pub(crate) principals: Vec<String>,
    pub(crate) within: Range,
}

/// Which of the groups and workspaces below a group are listed, and how.
pub(crate) struct Children<'a> {
    /// Empty for the top.
    pub(crate) parent: &'a str,
    /// Only those of which one of these is a member.
    pub(crate) members: Option<&'a Members>,
    /// Empty for both.
    pub(crate) kind: &'a str,
    pub(crate) order: Order,
    /// Sort key and id of the last row of the page before.
    pub(crate) after: Option<(&'a str, &'a str)>,
    pub(crate) limit: i64,
}

pub(crate) async fn children(
    pool: &PgPool,
    children: &Children<'_>,
) -> sqlx::Result<Vec<NamespaceRow>> {
    let (column, direction) = (children.order.column(), children.order.direction());
    // Not "or it does not matter of whom": then each child would be read to ask it.
    let of_members = match children.members {
        Some(_) => {
            "id IN (
                 SELECT namespace_id FROM members JOIN places ON places.id = namespace_id
                 WHERE principal = ANY($3) AND path >= $7 AND path < $8
             )"
        }
        None => "$3::text[] IS NULL AND $7::text IS NULL AND $8::text IS NULL",
    };
    let query = format!(
        "SELECT {COLUMNS} FROM namespaces
         WHERE parent_id = $1 AND ($2 = '' OR kind = $2) AND {of_members} AND {behind}
         ORDER BY {column} {direction}, id {direction} LIMIT $6",
        behind = children.order.behind("namespaces", "$4", "$5"),
    );
    let (key, id) = children.after.unzip();
    sqlx::query_as(AssertSqlSafe(query))
        .bind(children.parent)
        .bind(children.kind)
        .bind(
            children
                .members
                .map(|members| members.principals.as_slice()),
        )
        .bind(key)
        .bind(id)
        .bind(children.limit)
        .bind(children.members.map(|members| members.within.from.as_str()))
        .bind(children.members.map(|members| members.within.to.as_str()))
        .persistent(false)
        .fetch_all(pool)
        .await
}

/// Those of the ids that there are, in any order.
pub(crate) async fn by_ids(pool: &PgPool, ids: &[String]) -> sqlx::Result<Vec<NamespaceRow>> {
    sqlx::query_as(AssertSqlSafe(format!(
        "SELECT {COLUMNS} FROM namespaces WHERE id = ANY($1)"
    )))
    .bind(ids)
    .fetch_all(pool)
    .await
}

/// Which of the workspaces to which an identity is assigned are listed, and how.
pub(crate) struct WithIdentity<'a> {
    pub(crate) identity: &'a str,
    pub(crate) name_contains: &'a str,
    pub(crate) visible: &'a [Range],
    /// By when they were made, as their ids are.
    pub(crate) direction: Direction,
    /// The id of the last row of the page before.
    pub(crate) after: Option<&'a str>,
    pub(crate) limit: i64,
}

pub(crate) async fn with_identity(
    pool: &PgPool,
    list: &WithIdentity<'_>,
) -> sqlx::Result<Vec<PlacedRow>> {
    if list.visible.is_empty() {
        return Ok(vec![]);
    }
    let (from_paths, to_paths) = ends(list.visible);
    let (direction, behind) = (list.direction.word(), list.direction.behind());
    // A range, and not an equality: in this order only one index has them, that of identities.
    sqlx::query_as(AssertSqlSafe(format!(
        "SELECT {COLUMNS}, places.path FROM assignments
         JOIN places ON places.id = assignments.workspace_id AND NOT places.gone
         JOIN namespaces ON namespaces.id = places.id
         WHERE assignments.managed_identity_id >= $1 AND assignments.managed_identity_id <= $1
           AND ($2::text IS NULL OR (assignments.managed_identity_id, assignments.workspace_id) {behind} ($1, $2))
           AND strpos(namespaces.name, $6) > 0
           AND {visible}
         ORDER BY assignments.managed_identity_id {direction}, assignments.workspace_id {direction} LIMIT $5",
        visible = is_within("$3", "$4"),
    )))
    .bind(list.identity)
    .bind(list.after)
    .bind(from_paths)
    .bind(to_paths)
    .bind(list.limit)
    .bind(list.name_contains)
    .persistent(false)
    .fetch_all(pool)
    .await
}
