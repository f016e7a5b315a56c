//! Managed identities and where they are assigned.

use sqlx::PgPool;
use time::OffsetDateTime;

/// A managed identity.
pub(crate) struct IdentityRow {
    pub(crate) id: String,
    pub(crate) group_id: String,
    pub(crate) name: String,
    pub(crate) description: String,
    pub(crate) configuration: Vec<u8>,
    pub(crate) version: i64,
    pub(crate) created_at: OffsetDateTime,
    pub(crate) updated_at: OffsetDateTime,
    /// How many groups above the one asked about it was made; 0 for that itself.
    pub(crate) distance: i64,
}

/// The identities of groups, in the order of the groups, then by name; behind a distance and name.
pub(crate) async fn of_groups(
    pool: &PgPool,
    groups: &[String],
    after: (i64, &str),
    limit: i64,
) -> sqlx::Result<Vec<IdentityRow>> {
    sqlx::query_as!(
        IdentityRow,
        r#"SELECT identity.id, identity.group_id, identity.name, identity.description, identity.configuration,
                  identity.version, identity.created_at, identity.updated_at,
                  above.number - 1 AS "distance!"
           FROM UNNEST($1::text[]) WITH ORDINALITY AS above (group_id, number),
           LATERAL (
               SELECT * FROM managed_identities
               WHERE managed_identities.group_id = above.group_id AND (above.number - 1, name) > ($2, $3)
               ORDER BY name LIMIT $4
           ) identity
           ORDER BY above.number, identity.name LIMIT $4"#,
        groups,
        after.0,
        after.1,
        limit
    )
    .fetch_all(pool)
    .await
}

/// The identities assigned to a workspace that lie in one of the groups, by name and id.
pub(crate) async fn assigned(
    pool: &PgPool,
    workspace: &str,
    groups: &[String],
    after: (&str, &str),
    limit: i64,
) -> sqlx::Result<Vec<IdentityRow>> {
    sqlx::query_as!(
        IdentityRow,
        r#"SELECT identity.id, identity.group_id, identity.name, identity.description, identity.configuration,
                  identity.version, identity.created_at, identity.updated_at,
                  array_position($2::text[], identity.group_id)::bigint AS "distance!"
           FROM assignments
           JOIN managed_identities identity ON identity.id = assignments.managed_identity_id
           WHERE assignments.workspace_id = $1 AND identity.group_id = ANY($2)
             AND (identity.name, identity.id) > ($3, $4)
           ORDER BY identity.name, identity.id LIMIT $5"#,
        workspace,
        groups,
        after.0,
        after.1,
        limit
    )
    .fetch_all(pool)
    .await
}
