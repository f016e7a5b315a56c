//! Service accounts.

use sqlx::FromRow;
use time::OffsetDateTime;

use super::from_above::{self, Source};
use crate::order::Order;

/// A service account.
#[derive(FromRow)]
pub(crate) struct AccountRow {
    pub(crate) id: String,
    pub(crate) group_id: String,
    pub(crate) name: String,
    pub(crate) description: String,
    pub(crate) trust_policies: Vec<u8>,
    pub(crate) version: i64,
    pub(crate) created_at: OffsetDateTime,
    pub(crate) updated_at: OffsetDateTime,
    /// How many groups above the one asked about it was made; 0 for that itself.
    pub(crate) distance: i64,
}

impl from_above::Row for AccountRow {
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

/// Narrowed to a text in the name; empty for all.
pub(crate) fn inherited() -> Source {
    Source {
        table: "service_accounts account",
        alias: "account",
        columns: "account.id, account.group_id, account.name, account.description, account.trust_policies, \
                  account.version, account.created_at, account.updated_at"
            .to_owned(),
        place: "account.group_id",
        condition: "$5 = '' AND strpos(name, $6) > 0".to_owned(),
    }
}
