//! Service accounts.

use std::collections::HashMap;

use eventlog::{FoldError, RecordedEvent};
use prost::Message as _;
use proto::identity::v1::{Event, ServiceAccount, TrustPolicy};
use sqlx::PgConnection;

use super::{Stamps, inapplicable};

struct Account<'a> {
    made: Option<Made<'a>>,
    description: String,
    trust_policies: Vec<u8>,
    last: &'a RecordedEvent,
}

/// None if it was made in an earlier batch.
struct Made<'a> {
    group: String,
    name: String,
    event: &'a RecordedEvent,
}

pub(super) async fn apply(
    connection: &mut PgConnection,
    events: &[RecordedEvent],
) -> Result<(), FoldError> {
    let (mut accounts, mut deleted) = (HashMap::new(), vec![]);
    for event in events {
        match Event::decode(&event.event_type, &event.payload).map_err(inapplicable(event))? {
            Event::ServiceAccountCreated(account) => {
                let row = Account {
                    made: Some(Made {
                        group: account.group_id,
                        name: account.name,
                        event,
                    }),
                    description: account.description,
                    trust_policies: bytes(account.trust_policies),
                    last: event,
                };
                accounts.insert(account.service_account_id, row);
            }
            Event::ServiceAccountUpdated(account) => {
                let before: Option<Account<'_>> = accounts.remove(&account.service_account_id);
                let row = Account {
                    made: before.and_then(|before| before.made),
                    description: account.description,
                    trust_policies: bytes(account.trust_policies),
                    last: event,
                };
                accounts.insert(account.service_account_id, row);
            }
            Event::ServiceAccountDeleted(account) => {
                accounts.remove(&account.service_account_id);
                deleted.push(account.service_account_id);
            }
            _ => {}
        }
    }
    // First what is gone: its name may be another's by now.
    if !deleted.is_empty() {
        sqlx::query!("DELETE FROM service_accounts WHERE id = ANY($1)", &deleted)
            .execute(&mut *connection)
            .await?;
    }
    let (made, updated): (Vec<_>, Vec<_>) = accounts
        .into_iter()
        .partition(|(_, account)| account.made.is_some());
    insert(connection, made).await?;
    Ok(update(connection, updated).await?)
}

fn bytes(trust_policies: Vec<TrustPolicy>) -> Vec<u8> {
    let account = ServiceAccount {
        trust_policies,
        ..ServiceAccount::default()
    };
    account.encode_to_vec()
}

async fn insert(
    connection: &mut PgConnection,
    made: Vec<(String, Account<'_>)>,
) -> sqlx::Result<()> {
    if made.is_empty() {
        return Ok(());
    }
    let (mut ids, mut groups, mut names, mut descriptions, mut policies) =
        (vec![], vec![], vec![], vec![], vec![]);
    let mut stamps = Stamps::default();
    for (id, account) in made {
        let Some(made) = account.made else { continue };
        ids.push(id);
        groups.push(made.group);
        names.push(made.name);
        descriptions.push(account.description);
        policies.push(account.trust_policies);
        stamps.add(made.event, account.last);
    }
    sqlx::query!(
        "INSERT INTO service_accounts
             (id, group_id, name, description, trust_policies, version, created_at, updated_at)
         SELECT * FROM UNNEST($1::text[], $2::text[], $3::text[], $4::text[], $5::bytea[], $6::bigint[],
                              $7::timestamptz[], $8::timestamptz[])",
        &ids,
        &groups,
        &names,
        &descriptions,
        &policies,
        &stamps.versions,
        &stamps.created,
        &stamps.updated
    )
    .execute(connection)
    .await?;
    Ok(())
}

async fn update(
    connection: &mut PgConnection,
    updated: Vec<(String, Account<'_>)>,
) -> sqlx::Result<()> {
    if updated.is_empty() {
        return Ok(());
    }
    let (mut ids, mut descriptions, mut policies) = (vec![], vec![], vec![]);
    let mut stamps = Stamps::default();
    for (id, account) in updated {
        ids.push(id);
        descriptions.push(account.description);
        policies.push(account.trust_policies);
        stamps.add(account.last, account.last);
    }
    sqlx::query!(
        "UPDATE service_accounts account
         SET description = new.description, trust_policies = new.trust_policies, version = new.version,
             updated_at = new.updated_at
         FROM UNNEST($1::text[], $2::text[], $3::bytea[], $4::bigint[], $5::timestamptz[])
             AS new (id, description, trust_policies, version, updated_at)
         WHERE account.id = new.id",
        &ids,
        &descriptions,
        &policies,
        &stamps.versions,
        &stamps.updated
    )
    .execute(connection)
    .await?;
    Ok(())
}
