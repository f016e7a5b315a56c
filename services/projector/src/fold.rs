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

use std::borrow::Cow;

use edge::{hierarchy, texts};
use eventlog::{Fold, FoldError, RecordedEvent};
use prost::Message as _;
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
        let events = &*writable(events);
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

/// The events without what PostgreSQL keeps in no text. One that holds it is in its log for ever, and must not halt us.
fn writable(events: &[RecordedEvent]) -> Cow<'_, [RecordedEvent]> {
    let stripped = |event: &RecordedEvent| {
        // Texts are encoded as they are, and few events hold any such byte.
        if !event.payload.contains(&0) {
            return None;
        }
        // What can't be decoded is refused where it is applied.
        let mut message = activities::decode(event).ok()?;
        if texts::with_nul(&message).is_empty() {
            return None;
        }
        texts::strip_nul(&mut message);
        Some(RecordedEvent {
            payload: message.encode_to_vec().into(),
            ..event.clone()
        })
    };
    let mut writable = Cow::Borrowed(events);
    for (number, event) in events.iter().enumerate() {
        if let Some(stripped) = stripped(event) {
            writable.to_mut()[number] = stripped;
        }
    }
    writable
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
