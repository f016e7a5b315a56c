//! Managed identities and where they are assigned.

use sqlx::{AssertSqlSafe, FromRow, PgPool};
use time::OffsetDateTime;

use super::from_above::{self, Source};
use super::visible::{self, Range};
use crate::order::Order;

/// A managed identity.
#[derive(FromRow)]
pub(crate) struct IdentityRow {
    pub(crate) id: String,
    /// Of an alias.
    pub(crate) source_id: Option<String>,
    pub(crate) group_id: String,
    pub(crate) name: String,
    pub(crate) description: String,
    pub(crate) configuration: Vec<u8>,
    pub(crate) token_settings: Vec<u8>,
    pub(crate) version: i64,
    pub(crate) created_at: OffsetDateTime,
    pub(crate) updated_at: OffsetDateTime,
    /// How many groups above the one asked about it was made; 0 for that itself.
    pub(crate) distance: i64,
}

/// Of an [`IdentityRow`], but its distance.
const COLUMNS: &str = "identity.id, identity.source_id, identity.group_id, identity.name, identity.description, \
                       identity.configuration, identity.token_settings, identity.version, identity.created_at, \
                       identity.updated_at";

/// The nearest mask that hides an identity where it is inherited, by the place's ids from there up and where the
/// identity's group is among them, from 1. The same rule as `model::Mask::hides`.
fn hiding(nodes: &str, group: &str) -> String {
    format!(
        "(SELECT masks.id FROM UNNEST({nodes}::text[]) WITH ORDINALITY AS below (id, number)
          JOIN masks ON masks.namespace_id = below.id
          WHERE below.number < {group} AND masks.hides IN (identity.id, identity.type, '*')
            AND strpos(masks.exceptions, ' ' || identity.id) = 0
          ORDER BY below.number, masks.id LIMIT 1)"
    )
}

/// An identity of a group or of one above it.
#[derive(FromRow)]
pub(crate) struct InheritedRow {
    #[sqlx(flatten)]
    pub(crate) row: IdentityRow,
    /// What hides it there.
    pub(crate) masked_by: Option<String>,
}

impl from_above::Row for InheritedRow {
    fn key(&self, order: Option<Order>) -> [String; 2] {
        let row = &self.row;
        match order {
            Some(order) => [
                order.key(&row.name, row.created_at, row.updated_at),
                row.id.clone(),
            ],
            None => [row.distance.to_string(), row.name.clone()],
        }
    }
}

/// Narrowed to a type and to a text in the name; empty for all. Those that a mask hides only if asked for.
pub(crate) fn inherited(masked: bool) -> Source {
    let hiding = hiding("$1", "above.number");
    let visible = if masked {
        String::new()
    } else {
        format!(" AND {hiding} IS NULL")
    };
    Source {
        table: "managed_identities identity",
        alias: "identity",
        columns: format!("{COLUMNS}, {hiding} AS masked_by"),
        place: "identity.group_id",
        condition: format!("($5 = '' OR type = $5) AND strpos(name, $6) > 0{visible}"),
    }
}

/// What a page begins behind, in a list that has rows which the caller may not see.
#[derive(Clone, Copy)]
pub(crate) struct Last<'a> {
    /// What it is sorted by; none if it may not be seen.
    pub(crate) key: Option<&'a str>,
    pub(crate) id: &'a str,
}

/// Whether the caller may see the identity, `shown.seen`: it lies in the ranges, or `besides`.
fn shown(besides: &str, from_paths: &str, to_paths: &str) -> String {
    let within = visible::is_within(from_paths, to_paths);
    format!(
        "LEFT JOIN places ON places.id = identity.group_id
         CROSS JOIN LATERAL (SELECT {besides} OR coalesce(NOT places.gone, false) AND {within} AS seen) shown"
    )
}

/// The order of a list that has rows which the caller may not see: those come last, by their ids. Where they stand says
/// nothing of them then, and neither does a page that is asked for to begin behind whatever somebody thinks of.
fn ordered(order: Order) -> String {
    let (column, direction) = (order.column(), order.direction());
    format!(
        "shown.seen DESC, CASE WHEN shown.seen THEN identity.{column} END {direction},
         CASE WHEN shown.seen THEN identity.id END {direction}, identity.id"
    )
}

/// The condition that a row is behind another one in that order.
fn behind(order: Order, key: &str, id: &str) -> String {
    let seen = order.behind("identity", key, id);
    format!(
        "CASE WHEN shown.seen THEN {seen}
              ELSE {id}::text IS NULL OR {key}::text IS NOT NULL OR identity.id > {id}::text END"
    )
}

/// An identity that is assigned to a workspace, though its group may not be above it, or that it inherits.
#[derive(FromRow)]
pub(crate) struct WorkspaceRow {
    #[sqlx(flatten)]
    pub(crate) row: IdentityRow,
    /// Of its group.
    pub(crate) path: String,
    /// Whether its group is deleted.
    pub(crate) gone: bool,
    /// Whether the caller may see it.
    pub(crate) seen: bool,
    /// What hides it from the workspace; none if its group is not above.
    pub(crate) masked_by: Option<String>,
    /// Whether it is.
    pub(crate) assigned: bool,
}

/// Which of a workspace's identities are listed, and how.
pub(crate) struct OfWorkspace<'a> {
    pub(crate) workspace: &'a str,
    /// From the workspace up.
    pub(crate) nodes: &'a [String],
    /// What else the caller sees; needed only for those that lie in none of the nodes above.
    pub(crate) visible: &'a [Range],
    /// Those too that are hidden, and those assigned that lie in none of the nodes above.
    pub(crate) unusable: bool,
    /// Those too that are inherited only.
    pub(crate) unassigned: bool,
    /// Only of this type; empty for all.
    pub(crate) kind: &'a str,
    /// Only those whose name holds this.
    pub(crate) name_contains: &'a str,
    pub(crate) order: Order,
    pub(crate) after: Option<Last<'a>>,
    pub(crate) limit: i64,
}

/// The identities of a workspace. Those that lie in none of the nodes above have a distance of -1.
pub(crate) async fn of_workspace(
    pool: &PgPool,
    list: &OfWorkspace<'_>,
) -> sqlx::Result<Vec<WorkspaceRow>> {
    let (from_paths, to_paths) = visible::ends(list.visible);
    let order = list.order;
    sqlx::query_as(AssertSqlSafe(format!(
        "WITH found (id, assigned) AS (
               SELECT managed_identity_id, true FROM assignments WHERE workspace_id = $1
               UNION ALL
               SELECT inherited.id, false
               FROM UNNEST($2::text[]) WITH ORDINALITY AS above (id, number), LATERAL (
                   SELECT identity.id FROM managed_identities identity
                   WHERE identity.group_id = above.id AND {behind_seen} AND {narrowed}
                     AND ($6 OR {hiding_above} IS NULL)
                     AND NOT EXISTS (
                         SELECT FROM assignments WHERE workspace_id = $1 AND managed_identity_id = identity.id
                     )
                   ORDER BY identity.{column} {direction}, identity.id {direction} LIMIT $5
               ) inherited
               WHERE $7
           )
           SELECT {COLUMNS}, coalesce(array_position($2::text[], identity.group_id), 1)::bigint - 2 AS distance,
                  coalesce(places.path, '') AS path, coalesce(places.gone, false) AS gone, shown.seen,
                  {hiding} AS masked_by, found.assigned
           FROM found
           JOIN managed_identities identity ON identity.id = found.id
           {shown}
           WHERE ($6 OR identity.group_id = ANY($2) AND {hiding} IS NULL)
             AND {behind} AND CASE WHEN shown.seen THEN {narrowed} ELSE $8 = '' AND $9 = '' END
           ORDER BY {ordered} LIMIT $5",
        hiding_above = hiding("$2", "above.number"),
        hiding = hiding("$2", "array_position($2::text[], identity.group_id)"),
        behind_seen = order.behind("identity", "$3", "$4"),
        behind = behind(order, "$3", "$4"),
        narrowed = "($8 = '' OR identity.type = $8) AND strpos(identity.name, $9) > 0",
        column = order.column(),
        direction = order.direction(),
        shown = shown("identity.group_id = ANY($2)", "$10", "$11"),
        ordered = ordered(order),
    )))
    .bind(list.workspace)
    .bind(list.nodes)
    .bind(list.after.and_then(|last| last.key))
    .bind(list.after.map(|last| last.id))
    .bind(list.limit)
    .bind(list.unusable)
    .bind(list.unassigned)
    .bind(list.kind)
    .bind(list.name_contains)
    .bind(from_paths)
    .bind(to_paths)
    .persistent(false)
    .fetch_all(pool)
    .await
}

/// Those of the ids that there are, in any order, at a distance of 0.
pub(crate) async fn by_ids(pool: &PgPool, ids: &[String]) -> sqlx::Result<Vec<IdentityRow>> {
    sqlx::query_as(AssertSqlSafe(format!(
        "SELECT {COLUMNS}, 0::bigint AS distance FROM managed_identities identity WHERE id = ANY($1)"
    )))
    .bind(ids)
    .fetch_all(pool)
    .await
}

/// An alias, and where it is.
#[derive(FromRow)]
pub(crate) struct AliasRow {
    #[sqlx(flatten)]
    pub(crate) row: IdentityRow,
    /// Of its group.
    pub(crate) path: String,
    /// Whether the caller may see it.
    pub(crate) seen: bool,
}

/// The aliases of an identity, for a caller who sees so much.
pub(crate) async fn aliases(
    pool: &PgPool,
    source: &str,
    visible: &[Range],
    order: Order,
    after: Option<Last<'_>>,
    limit: i64,
) -> sqlx::Result<Vec<AliasRow>> {
    let (from_paths, to_paths) = visible::ends(visible);
    sqlx::query_as(AssertSqlSafe(format!(
        "SELECT {COLUMNS}, 0::bigint AS distance, coalesce(places.path, '') AS path, shown.seen
         FROM managed_identities identity {shown}
         WHERE identity.source_id = $1 AND {behind}
         ORDER BY {ordered} LIMIT $4",
        shown = shown("false", "$5", "$6"),
        behind = behind(order, "$2", "$3"),
        ordered = ordered(order),
    )))
    .bind(source)
    .bind(after.and_then(|last| last.key))
    .bind(after.map(|last| last.id))
    .bind(limit)
    .bind(from_paths)
    .bind(to_paths)
    .persistent(false)
    .fetch_all(pool)
    .await
}
