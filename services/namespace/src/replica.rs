//! What is known here of the identities' log: which service accounts there are, because they hold memberships.

use edge::hierarchy::{changes, is_of_service_accounts};
use eventlog::{Fold, FoldError, RecordedEvent};
use sqlx::PgConnection;

/// Keeps the facts of service accounts.
pub(crate) struct ServiceAccounts;

impl Fold for ServiceAccounts {
    async fn apply(
        &self,
        connection: &mut PgConnection,
        log: &'static str,
        events: &[RecordedEvent],
    ) -> Result<(), FoldError> {
        let mut facts = changes(log, events)?;
        facts.retain(|(key, _)| is_of_service_accounts(key));
        Ok(eventlog::replicate_facts(connection, log, &facts).await?)
    }
}
