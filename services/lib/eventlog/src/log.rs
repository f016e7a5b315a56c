//! The log: append, read, head.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::{Stream, TryStreamExt as _};
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::types::Json;
use sqlx::{PgExecutor, PgPool};
use time::OffsetDateTime;
use tokio::sync::watch;
use uuid::Uuid;

use crate::append::{Append, AppendError, Appended};
use crate::appender::Appender;
use crate::event::{Metadata, RecordedEvent, StreamId};
use crate::facts::Facts;
use crate::recent::Recent;

/// The tables of the log. A service's own migrations go beside them, with versions from 1000.
pub static MIGRATIONS: Migrator = sqlx::migrate!();

/// Brings a service's database up to date: the log's tables, then the service's own.
pub async fn migrate(pool: &PgPool, own: Option<&Migrator>) -> Result<(), MigrateError> {
    for migrations in std::iter::once(&MIGRATIONS).chain(own) {
        let mut migrator = Migrator::with_migrations(migrations.iter().cloned().collect());
        // Both write into one ledger, and an older binary beside a newer one meets migrations that it does not know.
        migrator.set_ignore_missing(true);
        migrator.run(pool).await?;
    }
    Ok(())
}

/// Where a log ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Made with the database.
    pub epoch: Uuid,
    /// Of the last event; 0 for an empty log.
    pub position: u64,
}

/// A command that was carried out before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Carried {
    /// A digest of that request's content.
    pub fingerprint: Vec<u8>,
    /// Where its events stand.
    pub appended: Appended,
}

/// Why the log could not be read.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The database failed.
    #[error("the database failed")]
    Database(#[from] sqlx::Error),
}

/// A service's own log. Cheap to clone.
#[derive(Clone)]
pub struct EventLog {
    name: &'static str,
    pool: PgPool,
    appender: Arc<Appender>,
    head: watch::Receiver<u64>,
    recent: Arc<Recent>,
    epoch: Uuid,
}

impl EventLog {
    /// Opens the log of the service `name`, whose database has been migrated.
    pub async fn open(name: &'static str, pool: PgPool) -> Result<Self, LogError> {
        let head = read_head(&pool).await?;
        let (moved, watched) = watch::channel(head.position);
        let recent = Arc::new(Recent::default());
        let appender = Appender::start(pool.clone(), moved, Arc::clone(&recent));
        Ok(Self {
            name,
            pool,
            appender: Arc::new(appender),
            head: watched,
            recent,
            epoch: head.epoch,
        })
    }

    /// The same log, but with the facts that lie elsewhere: for asking, not for deciding what is appended.
    #[must_use]
    pub fn with_facts_of(&self, pool: PgPool) -> Self {
        Self {
            pool,
            ..self.clone()
        }
    }

    /// The service's name: `namespace`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Made with the database.
    #[must_use]
    pub fn epoch(&self) -> Uuid {
        self.epoch
    }

    /// The database that holds the log.
    #[must_use]
    pub fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// Appends one command's events; durable once this returns. A caller that stops waiting leaves it open whether
    /// the events are appended.
    pub async fn append(&self, append: Append) -> Result<Appended, AppendError> {
        self.appender.append(append).await
    }

    /// Where the log ends.
    pub async fn head(&self) -> Result<Head, LogError> {
        Ok(read_head(&self.pool).await?)
    }

    /// The time, by the database's clock: that of its events.
    pub async fn now(&self) -> Result<OffsetDateTime, LogError> {
        let now = sqlx::query_scalar!(r#"SELECT clock_timestamp() AS "now!""#);
        Ok(now.fetch_one(&self.pool).await?)
    }

    /// The id of the event at a position, if there is one.
    pub async fn event_id(&self, position: u64) -> Result<Option<Uuid>, LogError> {
        let id = sqlx::query_scalar!(
            "SELECT event_id FROM events WHERE position = $1",
            signed(position)
        );
        Ok(id.fetch_optional(&self.pool).await?)
    }

    /// Told the new position after each append of this process.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.head.clone()
    }

    pub(crate) fn recent(&self) -> &Recent {
        &self.recent
    }

    /// Up to `limit` events behind a position, in order.
    pub async fn read(&self, after: u64, limit: u64) -> Result<Vec<RecordedEvent>, LogError> {
        read(&self.pool, after, limit).await
    }

    /// All events of a stream, in order; none if there is no such stream.
    pub async fn stream(&self, stream_id: &StreamId) -> Result<Vec<RecordedEvent>, LogError> {
        let events: Vec<_> = self
            .stream_rows(stream_id)
            .map_ok(RecordedEvent::from)
            .try_collect()
            .await?;
        Ok(events)
    }

    /// When the first event of a stream was recorded; `None` if there is no such stream.
    pub async fn stream_begun(
        &self,
        stream_id: &StreamId,
    ) -> Result<Option<OffsetDateTime>, LogError> {
        let recorded_at = sqlx::query_scalar!(
            "SELECT recorded_at FROM events WHERE stream_id = $1 AND version = 1",
            stream_id.as_str()
        );
        Ok(recorded_at.fetch_optional(&self.pool).await?)
    }

    /// All events of some streams, all of one moment, in order.
    pub async fn streams(&self, stream_ids: &[StreamId]) -> Result<Vec<RecordedEvent>, LogError> {
        let ids: Vec<&str> = stream_ids.iter().map(StreamId::as_str).collect();
        let rows = sqlx::query_as!(
            EventRow,
            r#"SELECT position, stream_id, version, event_id, event_type, payload, recorded_at,
                      metadata AS "metadata: Json<Metadata>"
               FROM events WHERE stream_id = ANY($1) ORDER BY position"#,
            &ids as &[&str]
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(rows.into_iter().map(RecordedEvent::from).collect())
    }

    fn stream_rows<'a>(
        &'a self,
        stream_id: &'a StreamId,
    ) -> impl Stream<Item = sqlx::Result<EventRow>> + Send + 'a {
        sqlx::query_as!(
            EventRow,
            r#"SELECT position, stream_id, version, event_id, event_type, payload, recorded_at,
                      metadata AS "metadata: Json<Metadata>"
               FROM events WHERE stream_id = $1 ORDER BY version"#,
            stream_id.as_str()
        )
        .fetch(&self.pool)
    }

    /// Those of the facts that there are.
    pub async fn facts(&self, keys: &[String]) -> Result<Facts, LogError> {
        Ok(Facts::read(&self.pool, keys).await?)
    }

    /// The same, and how far each log has been followed that they replicate, all of one moment.
    pub async fn facts_at_checkpoints(
        &self,
        keys: &[String],
    ) -> Result<(Facts, BTreeMap<String, u64>), LogError> {
        Ok(Facts::read_at_checkpoints(&self.pool, keys).await?)
    }

    /// The keys of the facts that start with a prefix, in order.
    pub async fn fact_keys(&self, prefix: &str) -> Result<Vec<String>, LogError> {
        // Keys are compared byte by byte, and none holds a byte as high as this.
        let end = format!("{prefix}\u{10ffff}");
        let keys = sqlx::query_scalar!(
            "SELECT key FROM facts WHERE key >= $1 AND key < $2 ORDER BY key",
            prefix,
            end
        );
        Ok(keys.fetch_all(&self.pool).await?)
    }

    /// Whether a stream holds an event of this type behind the one at this position, which is of the stream too.
    pub async fn has_happened_since(
        &self,
        stream_id: &StreamId,
        position: u64,
        event_type: &str,
    ) -> Result<bool, LogError> {
        let happened = sqlx::query_scalar!(
            r#"SELECT EXISTS (
                   SELECT FROM events
                   WHERE stream_id = $1 AND event_type = $3
                     AND version > (SELECT version FROM events WHERE position = $2)
               ) AS "happened!""#,
            stream_id.as_str(),
            position.cast_signed(),
            event_type
        );
        Ok(happened.fetch_one(&self.pool).await?)
    }

    /// What was answered to a command, if it was carried out.
    pub async fn carried_out(&self, command_id: Uuid) -> Result<Option<Carried>, LogError> {
        let row = sqlx::query!(
            "SELECT fingerprint, first_position, last_position, reply, recorded_at FROM commands WHERE command_id = $1",
            command_id
        )
        .fetch_optional(&self.pool)
        .await?;
        Ok(row.map(|row| Carried {
            fingerprint: row.fingerprint,
            appended: Appended {
                epoch: self.epoch,
                first: row.first_position.cast_unsigned(),
                last: row.last_position.cast_unsigned(),
                recorded_at: row.recorded_at,
                replayed: Some(row.reply),
            },
        }))
    }
}

/// Up to `limit` events behind a position, in order.
pub(crate) async fn read(
    database: impl PgExecutor<'_>,
    after: u64,
    limit: u64,
) -> Result<Vec<RecordedEvent>, LogError> {
    let rows = sqlx::query_as!(
        EventRow,
        r#"SELECT position, stream_id, version, event_id, event_type, payload, recorded_at,
                  metadata AS "metadata: Json<Metadata>"
           FROM events WHERE position > $1 ORDER BY position LIMIT $2"#,
        signed(after),
        signed(limit)
    )
    .fetch_all(database)
    .await?;
    Ok(rows.into_iter().map(RecordedEvent::from).collect())
}

async fn read_head(pool: &PgPool) -> sqlx::Result<Head> {
    let row = sqlx::query!("SELECT epoch, position FROM log_head")
        .fetch_one(pool)
        .await?;
    Ok(Head {
        epoch: row.epoch,
        position: row.position.cast_unsigned(),
    })
}

/// A limit or position as PostgreSQL takes it. Past `i64::MAX` there is nothing.
pub(crate) fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

struct EventRow {
    position: i64,
    stream_id: String,
    version: i64,
    event_id: Uuid,
    event_type: String,
    payload: Vec<u8>,
    metadata: Json<Metadata>,
    recorded_at: time::OffsetDateTime,
}

impl From<EventRow> for RecordedEvent {
    fn from(row: EventRow) -> Self {
        Self {
            position: row.position.cast_unsigned(),
            stream_id: row.stream_id,
            version: row.version.cast_unsigned(),
            id: row.event_id,
            event_type: row.event_type,
            payload: row.payload.into(),
            metadata: row.metadata.0,
            recorded_at: row.recorded_at,
        }
    }
}
