//! Groups and workspaces.

use sqlx::PgPool;
use time::OffsetDateTime;

/// A group or workspace.
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

/// What is right below a group, by name.
pub(crate) async fn children(
    pool: &PgPool,
    parent: &str,
    after: &str,
    limit: i64,
) -> sqlx::Result<Vec<NamespaceRow>> {
    sqlx::query_as!(
        NamespaceRow,
        "SELECT id, kind, parent_id, name, description, max_job_duration, version, created_at, updated_at
         FROM namespaces WHERE parent_id = $1 AND name > $2 ORDER BY name LIMIT $3",
        parent,
        after,
        limit
    )
    .fetch_all(pool)
    .await
}

/// The top-level groups of which one of the principals is a member, by name.
pub(crate) async fn top_level_of(
    pool: &PgPool,
    principals: &[String],
    after: &str,
    limit: i64,
) -> sqlx::Result<Vec<NamespaceRow>> {
    sqlx::query_as!(
        NamespaceRow,
        "SELECT id, kind, parent_id, name, description, max_job_duration, version, created_at, updated_at
         FROM namespaces
         WHERE parent_id = '' AND name > $1
           AND EXISTS (SELECT FROM UNNEST($2::text[]) AS of (principal)
                       WHERE (SELECT key FROM facts WHERE key = 'member/' || id || '/' || principal) IS NOT NULL)
         ORDER BY name LIMIT $3",
        after,
        principals,
        limit
    )
    .fetch_all(pool)
    .await
}
