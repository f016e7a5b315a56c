//! Managed identities and where they are assigned.

use sqlx::{AssertSqlSafe, FromRow, PgPool};
use time::OffsetDateTime;

use super::from_above::{self, Source};
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

/// An identity that is assigned to a workspace, though its group may not be above it, or that it inherits.
#[derive(FromRow)]
pub(crate) struct WorkspaceRow {
    #[sqlx(flatten)]
    pub(crate) row: IdentityRow,
    /// Of its group.
    pub(crate) path: String,
    /// Whether its group is deleted.
    pub(crate) gone: bool,
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
    /// Those too that are hidden, and those assigned that lie in none of the nodes above.
    pub(crate) unusable: bool,
    /// Those too that are inherited only.
    pub(crate) unassigned: bool,
    /// Only of this type; empty for all.
    pub(crate) kind: &'a str,
    /// Only those whose name holds this.
    pub(crate) name_contains: &'a str,
    pub(crate) order: Order,
    /// Sort key and id of the last row of the page before.
    pub(crate) after: Option<(&'a str, &'a str)>,
    pub(crate) limit: i64,
}

/// The identities of a workspace. Those that lie in none of the nodes above have a distance of -1.
pub(crate) async fn of_workspace(
    pool: &PgPool,
    list: &OfWorkspace<'_>,
) -> sqlx::Result<Vec<WorkspaceRow>> {
    let (key, id) = list.after.unzip();
    sqlx::query_as(AssertSqlSafe(format!(
        "WITH found (id, assigned) AS (
               SELECT managed_identity_id, true FROM assignments WHERE workspace_id = $1
               UNION ALL
               SELECT inherited.id, false
               FROM UNNEST($2::text[]) WITH ORDINALITY AS above (id, number), LATERAL (
                   SELECT identity.id FROM managed_identities identity
                   WHERE identity.group_id = above.id AND {behind} AND {narrowed}
                     AND ($6 OR {hiding_above} IS NULL)
                     AND NOT EXISTS (
                         SELECT FROM assignments WHERE workspace_id = $1 AND managed_identity_id = identity.id
                     )
                   ORDER BY {ordered} LIMIT $5
               ) inherited
               WHERE $7
           )
           SELECT {COLUMNS}, coalesce(array_position($2::text[], identity.group_id), 1)::bigint - 2 AS distance,
                  coalesce(places.path, '') AS path, coalesce(places.gone, false) AS gone, {hiding} AS masked_by,
                  found.assigned
           FROM found
           JOIN managed_identities identity ON identity.id = found.id
           LEFT JOIN places ON places.id = identity.group_id
           WHERE ($6 OR identity.group_id = ANY($2) AND {hiding} IS NULL)
             AND {behind} AND {narrowed}
           ORDER BY {ordered} LIMIT $5",
        hiding_above = hiding("$2", "above.number"),
        hiding = hiding("$2", "array_position($2::text[], identity.group_id)"),
        behind = list.order.behind("identity", "$3", "$4"),
        narrowed = "($8 = '' OR identity.type = $8) AND strpos(identity.name, $9) > 0",
        ordered = ordered(list.order),
    )))
    .bind(list.workspace)
    .bind(list.nodes)
    .bind(key)
    .bind(id)
    .bind(list.limit)
    .bind(list.unusable)
    .bind(list.unassigned)
    .bind(list.kind)
    .bind(list.name_contains)
    .persistent(false)
    .fetch_all(pool)
    .await
}

fn ordered(order: Order) -> String {
    let (column, direction) = (order.column(), order.direction());
    format!("identity.{column} {direction}, identity.id {direction}")
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

/// An identity that is assigned to a workspace, or is an alias of another one, at a distance of 0.
pub(crate) async fn of(pool: &PgPool, of: &str, id: &str) -> sqlx::Result<Option<IdentityRow>> {
    sqlx::query_as(AssertSqlSafe(format!(
        "SELECT {COLUMNS}, 0::bigint AS distance FROM managed_identities identity
         WHERE id = $2 AND (
             source_id = $1
             OR EXISTS (SELECT FROM assignments WHERE workspace_id = $1 AND managed_identity_id = $2)
         )"
    )))
    .bind(of)
    .bind(id)
    .persistent(false)
    .fetch_optional(pool)
    .await
}

/// An alias, and where it is.
#[derive(FromRow)]
pub(crate) struct AliasRow {
    #[sqlx(flatten)]
    pub(crate) row: IdentityRow,
    /// Of its group.
    pub(crate) path: String,
    /// Whether its group is deleted.
    pub(crate) gone: bool,
}

/// The aliases of an identity, behind a sort key and an id.
pub(crate) async fn aliases(
    pool: &PgPool,
    source: &str,
    order: Order,
    after: Option<(&str, &str)>,
    limit: i64,
) -> sqlx::Result<Vec<AliasRow>> {
    let (key, id) = after.unzip();
    sqlx::query_as(AssertSqlSafe(format!(
        "SELECT {COLUMNS}, 0::bigint AS distance, coalesce(places.path, '') AS path, coalesce(places.gone, false) AS gone
         FROM managed_identities identity LEFT JOIN places ON places.id = identity.group_id
         WHERE identity.source_id = $1 AND {behind}
         ORDER BY {ordered} LIMIT $4",
        behind = order.behind("identity", "$2", "$3"),
        ordered = ordered(order),
    )))
    .bind(source)
    .bind(key)
    .bind(id)
    .bind(limit)
    .persistent(false)
    .fetch_all(pool)
    .await
}
