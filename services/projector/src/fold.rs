//! Events into the read models: a batch is reduced to what it changes, then written with a few statements.

mod activities;
mod credentials;
mod identities;
mod masks;
mod members;
mod namespaces;
mod places;
mod service_accounts;
mod teams;

use edge::hierarchy;
use eventlog::{Fold, FoldError, RecordedEvent};
use sqlx::PgConnection;
use time::OffsetDateTime;

/// Folds every log into the directory.
pub struct Directory;

impl Fold for Directory {
    async fn apply(
        &self,
        connection: &mut PgConnection,
        log: &'static str,
        events: &[RecordedEvent],
    ) -> Result<(), FoldError> {
        let mut facts = hierarchy::changes(log, events)?;
        // Nothing is decided here: facts serve only to know who may see what.
        facts.retain(|(key, _)| hierarchy::is_of_the_hierarchy(key));
        activities::apply(connection, log, events).await?;
        match log {
            "namespace" => {
                namespaces::apply(connection, events).await?;
                places::apply(connection, events).await?;
                members::apply(connection, events).await?;
                teams::apply(connection, events).await?;
            }
            "identity" => {
                identities::apply(connection, events).await?;
                masks::apply(connection, events).await?;
                service_accounts::apply(connection, events).await?;
            }
            "issuer" => facts.append(&mut credentials::apply(connection, events).await?),
            _ => {}
        }
        Ok(eventlog::write_facts(connection, log, &facts).await?)
    }
}

/// When a row's aggregate was made and changed last, and where its stream stands.
#[derive(Default)]
struct Stamps {
    versions: Vec<i64>,
    created: Vec<OffsetDateTime>,
    updated: Vec<OffsetDateTime>,
}

impl Stamps {
    /// Those of one row, by the first and the last of the events that made it what it is.
    fn add(&mut self, first: &RecordedEvent, last: &RecordedEvent) {
        self.versions.push(last.version.cast_signed());
        self.created.push(first.recorded_at);
        self.updated.push(last.recorded_at);
    }
}

fn inapplicable(event: &RecordedEvent) -> impl FnOnce(proto::EventError) -> FoldError + '_ {
    |error| FoldError::Inapplicable {
        position: event.position,
        reason: error.into(),
    }
}
