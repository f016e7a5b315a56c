//! What is known here of the identities' log: which service accounts there are, because they hold memberships; what came
//! of the identities that workspaces were made with; and what is assigned where and hidden where, to tell which workspaces
//! would lose an identity.

use edge::assignments::is_of_assignments;
use edge::hierarchy::{changes, is_of_service_accounts};
use edge::initial_assignments::is_of_decisions;
use eventlog::{Fold, FoldError, RecordedEvent};
use sqlx::PgConnection;

/// Keeps those facts.
pub(crate) struct Replica;

impl Fold for Replica {
    async fn apply(
        &self,
        connection: &mut PgConnection,
        log: &'static str,
        events: &[RecordedEvent],
    ) -> Result<(), FoldError> {
        let mut facts = changes(log, events)?;
        facts.retain(|(key, _)| {
            is_of_service_accounts(key) || is_of_decisions(key) || is_of_assignments(key)
        });
        Ok(eventlog::replicate_facts(connection, log, &facts).await?)
    }
}
