//! Memberships.

use sqlx::{AssertSqlSafe, FromRow, PgPool};
use time::OffsetDateTime;

use super::from_above::{self, Source};
use super::visible::{Range, ends, is_within};
use crate::order::{Direction, Order};

/// A membership.
#[derive(FromRow)]
pub(crate) struct MemberRow {
    pub(crate) id: String,
    pub(crate) namespace_id: String,
    pub(crate) principal: String,
    pub(crate) role: i32,
    pub(crate) version: i64,
    pub(crate) created_at: OffsetDateTime,
    pub(crate) updated_at: OffsetDateTime,
    /// How far above the group or workspace asked about it is; 0 for that itself.
    pub(crate) distance: i64,
    /// The nearest membership of the same principal that is nearer; empty if none is.
    pub(crate) overridden_by: String,
}

/// Of a [`MemberRow`], but its distance and what overrides it.
const COLUMNS: &str = "member.id, member.namespace_id, member.principal, member.role, member.version, \
                       member.created_at, member.updated_at";

impl from_above::Row for MemberRow {
    fn key(&self, order: Option<Order>) -> [String; 2] {
        match order {
            Some(order) => [
                order.key(&self.principal, self.created_at, self.updated_at),
                self.id.clone(),
            ],
            None => [self.distance.to_string(), self.principal.clone()],
        }
    }
}

/// Narrowed to a principal and to the number of a role; empty for all.
pub(crate) fn inherited() -> Source {
    Source {
        table: "(SELECT *, principal AS name FROM members) member",
        alias: "member",
        columns: format!(
            "{COLUMNS}, coalesce((
                 SELECT nearer.id FROM UNNEST($1::text[]) WITH ORDINALITY AS below (id, number)
                 JOIN members nearer ON nearer.namespace_id = below.id AND nearer.principal = member.principal
                 WHERE below.number < above.number ORDER BY below.number LIMIT 1
             ), '') AS overridden_by"
        ),
        place: "member.namespace_id",
        condition: "($5 = '' OR principal = $5) AND ($6 = '' OR role::text = $6)".to_owned(),
    }
}

/// A membership, and where it is.
#[derive(FromRow)]
pub(crate) struct PlacedRow {
    #[sqlx(flatten)]
    pub(crate) row: MemberRow,
    /// With a slash behind it.
    pub(crate) path: String,
}

/// Which memberships of a principal are listed, and how.
pub(crate) struct OfPrincipal<'a> {
    pub(crate) principal: &'a str,
    /// The number of a role, as text; empty for all.
    pub(crate) role: &'a str,
    pub(crate) visible: &'a [Range],
    /// By when they were made, as their ids are.
    pub(crate) direction: Direction,
    /// The id of the last row of the page before.
    pub(crate) after: Option<&'a str>,
    pub(crate) limit: i64,
}

pub(crate) async fn of_principal(
    pool: &PgPool,
    list: &OfPrincipal<'_>,
) -> sqlx::Result<Vec<PlacedRow>> {
    if list.visible.is_empty() {
        return Ok(vec![]);
    }
    let (from_paths, to_paths) = ends(list.visible);
    let (direction, behind) = (list.direction.word(), list.direction.behind());
    // A range, and not an equality: of the principal and the id, in this order, only one index has the order. By the id
    // alone, a plan could go through the memberships of all principals.
    sqlx::query_as(AssertSqlSafe(format!(
        "SELECT {COLUMNS}, 0::bigint AS distance, '' AS overridden_by, places.path FROM members member
         JOIN places ON places.id = member.namespace_id AND NOT places.gone
         WHERE member.principal >= $1 AND member.principal <= $1
           AND ($2::text IS NULL OR (member.principal, member.id) {behind} ($1, $2))
           AND ($6 = '' OR member.role::text = $6)
           AND {visible}
         ORDER BY member.principal {direction}, member.id {direction} LIMIT $5",
        visible = is_within("$3", "$4"),
    )))
    .bind(list.principal)
    .bind(list.after)
    .bind(from_paths)
    .bind(to_paths)
    .bind(list.limit)
    .bind(list.role)
    .persistent(false)
    .fetch_all(pool)
    .await
}
