//! Managed identities and where they are assigned.

use sqlx::{AssertSqlSafe, FromRow, PgPool};
use time::OffsetDateTime;

use super::from_above::{self, Source};
use crate::order::Order;

/// A managed identity.
#[derive(FromRow)]
pub(crate) struct IdentityRow {
    pub(crate) id: String,
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
const COLUMNS: &str = "identity.id, identity.group_id, identity.name, identity.description, identity.configuration, \
                       identity.token_settings, identity.version, identity.created_at, identity.updated_at";

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

impl from_above::Row for IdentityRow {
    fn key(&self, order: Option<Order>) -> [String; 2] {
        match order {
            Some(order) => [
                order.key(&self.name, self.created_at, self.updated_at),
                self.id.clone(),
            ],
            None => [self.distance.to_string(), self.name.clone()],
        }
    }
}

/// Those that no mask hides, narrowed to a type and to a text in the name; empty for all.
pub(crate) fn inherited() -> Source {
    Source {
        table: "managed_identities identity",
        alias: "identity",
        columns: COLUMNS.to_owned(),
        place: "identity.group_id",
        condition: format!(
            "($5 = '' OR type = $5) AND strpos(name, $6) > 0 AND {hiding} IS NULL",
            hiding = hiding("$1", "above.number"),
        ),
    }
}

/// An identity that is assigned to a workspace, though its group may not be above it.
#[derive(FromRow)]
pub(crate) struct AssignedRow {
    #[sqlx(flatten)]
    pub(crate) row: IdentityRow,
    /// Of its group.
    pub(crate) path: String,
    /// Whether its group is deleted.
    pub(crate) gone: bool,
    /// What hides it from the workspace; none if its group is not above.
    pub(crate) masked_by: Option<String>,
}

/// The identities assigned to a workspace, by name and id; with `unusable`, those too that are hidden, and those that lie
/// in none of the nodes above, which have a distance of -1. The first of the nodes is the workspace itself.
pub(crate) async fn assigned(
    pool: &PgPool,
    workspace: &str,
    nodes: &[String],
    unusable: bool,
    after: (&str, &str),
    limit: i64,
) -> sqlx::Result<Vec<AssignedRow>> {
    sqlx::query_as(AssertSqlSafe(format!(
        "SELECT {COLUMNS}, coalesce(array_position($2::text[], identity.group_id), 1)::bigint - 2 AS distance,
                  coalesce(places.path, '') AS path, coalesce(places.gone, false) AS gone, {hiding} AS masked_by
           FROM assignments
           JOIN managed_identities identity ON identity.id = assignments.managed_identity_id
           LEFT JOIN places ON places.id = identity.group_id
           WHERE assignments.workspace_id = $1 AND ($6 OR identity.group_id = ANY($2) AND {hiding} IS NULL)
             AND (identity.name, identity.id) > ($3, $4)
           ORDER BY identity.name, identity.id LIMIT $5",
        hiding = hiding("$2", "array_position($2::text[], identity.group_id)"),
    )))
    .bind(workspace)
    .bind(nodes)
    .bind(after.0)
    .bind(after.1)
    .bind(limit)
    .bind(unusable)
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
