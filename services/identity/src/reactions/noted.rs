//! The events from which something follows, noted until it has been done.

use edge::hierarchy::Replica;
use eventlog::{EventLog, Fold, FoldError, LogError, RecordedEvent};
use model::ResourceId;
use proto::{identity, namespace};
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

/// Events of our own log that are looked through at a time.
const PAGE: u64 = 500;
/// Noted events that are taken up at a time.
const TAKEN_UP: i64 = 100;

/// An event by which something may have lost what it depends on.
#[derive(Clone, Debug)]
pub(super) struct Noted {
    /// Its id.
    pub(super) event: Uuid,
    /// What was moved or deleted.
    pub(super) resource: ResourceId,
    log: String,
    position: i64,
}

/// Keeps the replica of `namespace`, and notes from which of its events something follows.
pub(crate) struct Follows;

impl Fold for Follows {
    async fn apply(
        &self,
        connection: &mut PgConnection,
        log: &'static str,
        events: &[RecordedEvent],
    ) -> Result<(), FoldError> {
        Replica.apply(connection, log, events).await?;
        let mut resources = Vec::new();
        for event in events {
            let moved = of_namespace(event).map_err(|error| FoldError::Inapplicable {
                position: event.position,
                reason: error.into(),
            })?;
            resources.extend(moved.map(|resource| (event, resource)));
        }
        Ok(note(connection, log, resources).await?)
    }
}

/// What an event of `namespace` has moved or deleted.
fn of_namespace(event: &RecordedEvent) -> Result<Option<String>, proto::EventError> {
    use namespace::v1::Event;
    Ok(match Event::decode(&event.event_type, &event.payload)? {
        Event::GroupMoved(event) => Some(event.group_id),
        Event::GroupDeleted(event) => Some(event.group_id),
        Event::WorkspaceMoved(event) => Some(event.workspace_id),
        Event::WorkspaceDeleted(event) => Some(event.workspace_id),
        Event::GroupCreated(_)
        | Event::GroupUpdated(_)
        | Event::WorkspaceCreated(_)
        | Event::WorkspaceUpdated(_)
        | Event::MembershipCreated(_)
        | Event::MembershipUpdated(_)
        | Event::MembershipDeleted(_)
        | Event::LimitChanged(_) => None,
    })
}

/// What an event of our own has deleted.
fn of_identity(event: &RecordedEvent) -> Result<Option<String>, proto::EventError> {
    use identity::v1::Event;
    Ok(match Event::decode(&event.event_type, &event.payload)? {
        Event::ManagedIdentityDeleted(event) => Some(event.managed_identity_id),
        Event::ManagedIdentityCreated(_)
        | Event::ManagedIdentityUpdated(_)
        | Event::ManagedIdentityAssigned(_)
        | Event::ManagedIdentityUnassigned(_) => None,
    })
}

async fn note(
    connection: &mut PgConnection,
    log: &str,
    resources: Vec<(&RecordedEvent, String)>,
) -> sqlx::Result<()> {
    if resources.is_empty() {
        return Ok(());
    }
    let positions: Vec<i64> = resources
        .iter()
        .map(|(event, _)| event.position.cast_signed())
        .collect();
    let events: Vec<Uuid> = resources.iter().map(|(event, _)| event.id).collect();
    let resources: Vec<String> = resources.into_iter().map(|(_, id)| id).collect();
    // Where a log is followed from its beginning again, what was noted before is noted anew.
    sqlx::query!(
        "INSERT INTO reactions (log, position, event_id, resource_id)
         SELECT $1, * FROM UNNEST($2::bigint[], $3::uuid[], $4::text[])
         ON CONFLICT (log, position) DO UPDATE SET event_id = excluded.event_id, resource_id = excluded.resource_id",
        log,
        &positions,
        &events,
        &resources
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Why our own log was not looked through.
#[derive(Debug, thiserror::Error)]
pub(super) enum LookError {
    /// It can't be read.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The database failed.
    #[error("the database failed")]
    Database(#[from] sqlx::Error),
    /// A newer process beside this one wrote it. That one looks after it: passed over here, nobody would.
    #[error("the event at position {position} can't be read")]
    Unreadable {
        /// Where it stands.
        position: u64,
        /// What is wrong with it.
        #[source]
        reason: proto::EventError,
    },
}

/// Notes from which events of our own log something follows, to its end.
pub(super) async fn look_through(log: &EventLog) -> Result<(), LookError> {
    loop {
        let after = sqlx::query_scalar!("SELECT position FROM looked_through")
            .fetch_one(log.pool())
            .await?;
        let events = log.read(after.cast_unsigned(), PAGE).await?;
        let Some(last) = events.last() else {
            return Ok(());
        };
        let mut resources = Vec::new();
        for event in &events {
            let position = event.position;
            let deleted =
                of_identity(event).map_err(|reason| LookError::Unreadable { position, reason })?;
            resources.extend(deleted.map(|resource| (event, resource)));
        }
        let mut transaction = log.pool().begin().await?;
        // Another process may have looked through the same: whoever moves the position notes what was found.
        let moved = sqlx::query!(
            "UPDATE looked_through SET position = $2 WHERE position = $1",
            after,
            last.position.cast_signed()
        )
        .execute(&mut *transaction)
        .await?;
        if moved.rows_affected() > 0 {
            note(&mut transaction, log.name(), resources).await?;
            transaction.commit().await?;
        }
    }
}

/// What waits to be taken up, in order.
pub(super) async fn waiting(pool: &PgPool) -> sqlx::Result<Vec<Noted>> {
    let rows = sqlx::query!(
        "SELECT log, position, event_id, resource_id FROM reactions ORDER BY log DESC, position LIMIT $1",
        TAKEN_UP
    )
    .fetch_all(pool)
    .await?;
    let noted = rows.into_iter().map(|row| {
        let resource = row.resource_id.parse();
        Ok(Noted {
            event: row.event_id,
            resource: resource
                .map_err(|error: model::id::InvalidId| sqlx::Error::Decode(error.into()))?,
            log: row.log,
            position: row.position,
        })
    });
    noted.collect()
}

impl Noted {
    /// Nothing more follows from it.
    pub(super) async fn done(&self, pool: &PgPool) -> sqlx::Result<()> {
        sqlx::query!(
            "DELETE FROM reactions WHERE log = $1 AND position = $2 AND event_id = $3",
            self.log,
            self.position,
            self.event
        )
        .execute(pool)
        .await?;
        Ok(())
    }
}
