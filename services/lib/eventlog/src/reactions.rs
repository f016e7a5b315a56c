//! What follows from events: when one thing is moved or deleted, what hangs on it ends.
//!
//! Each such event is noted in the transaction that moves the checkpoint past it, and taken up from there: what it may
//! have changed is looked at as it is now, and what has lost its ground is ended by an ordinary command. So it may stop
//! anywhere and begin again, and several processes may do it side by side. Nothing slips through between: a command
//! that leans on what was before the event is either appended before the event is noted, and then seen here, or refused
//! by its guards.

use std::sync::Arc;
use std::time::Duration;

use sqlx::{PgConnection, PgPool};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use crate::event::RecordedEvent;
use crate::follower::{Fold, FoldError, Progress};
use crate::log::{EventLog, LogError};

/// How often to look without being woken: another process may have appended.
const POLL: Duration = Duration::from_secs(1);
/// Between attempts, while something fails.
const RETRY: Duration = Duration::from_millis(200);
/// Events of our own log that are looked through at a time.
const PAGE: u64 = 500;
/// Noted events that are taken up at a time.
const TAKEN_UP: i64 = 100;

/// Why something that follows from an event was not done.
pub type ReactError = Box<dyn std::error::Error + Send + Sync>;

/// What follows from events.
pub trait React: Send + Sync + 'static {
    /// What an event of the log `log` has moved or deleted. `None` if nothing follows from it; an error if this build
    /// can't read it.
    fn concerns(
        &self,
        log: &str,
        event: &RecordedEvent,
    ) -> Result<Option<String>, proto::EventError>;

    /// Ends what lost its ground by an event: once, however often and by however many processes it is called for it.
    fn follow_up(&self, noted: &Noted) -> impl Future<Output = Result<(), ReactError>> + Send;
}

/// An event by which something may have lost what it depends on.
#[derive(Clone, Debug)]
pub struct Noted {
    /// Its id.
    pub event: Uuid,
    /// What was moved or deleted.
    pub resource: String,
    log: String,
    position: i64,
}

/// A fold that notes, besides, from which events something follows.
pub struct Noting<F, R> {
    fold: F,
    react: Arc<R>,
}

impl<F: Fold, R: React> Noting<F, R> {
    /// In the same transaction as `fold`.
    pub fn new(fold: F, react: Arc<R>) -> Self {
        Self { fold, react }
    }
}

impl<F: Fold, R: React> Fold for Noting<F, R> {
    async fn apply(
        &self,
        connection: &mut PgConnection,
        log: &'static str,
        events: &[RecordedEvent],
    ) -> Result<(), FoldError> {
        self.fold.apply(connection, log, events).await?;
        let found = concerned(self.react.as_ref(), log, events).map_err(|(position, error)| {
            FoldError::Inapplicable {
                position,
                reason: error.into(),
            }
        })?;
        Ok(note(connection, log, found).await?)
    }
}

/// Carries out what follows from events.
pub struct Reactions<R> {
    log: EventLog,
    followed: watch::Receiver<Progress>,
    react: Arc<R>,
}

/// Why our own log was not looked through.
#[derive(Debug, thiserror::Error)]
enum LookError {
    #[error(transparent)]
    Log(#[from] LogError),
    #[error("the database failed")]
    Database(#[from] sqlx::Error),
    /// A newer process beside this one wrote it. That one looks after it: passed over here, nobody would.
    #[error("the event at position {position} can't be read")]
    Unreadable {
        position: u64,
        #[source]
        reason: proto::EventError,
    },
}

impl<R: React> Reactions<R> {
    /// From events of this log, and of one that is followed through [`Noting`].
    pub fn new(log: EventLog, followed: watch::Receiver<Progress>, react: Arc<R>) -> Self {
        Self {
            log,
            followed,
            react,
        }
    }

    /// Goes on for ever.
    pub async fn run(mut self) {
        // A replica that is being built tells of things where they are no more.
        let current = |progress: &Progress| progress.current_at.is_some();
        if self.followed.wait_for(current).await.is_err() {
            return;
        }
        let mut own = self.log.watch();
        loop {
            own.mark_unchanged();
            self.followed.mark_unchanged();
            if let Err(error) = self.catch_up().await {
                tracing::warn!(
                    error = error.as_ref() as &dyn std::error::Error,
                    "what follows from an event is held up"
                );
                sleep(RETRY).await;
                continue;
            }
            let woken = async {
                tokio::select! {
                    Ok(()) = own.changed() => {}
                    Ok(()) = self.followed.changed() => {}
                    else => std::future::pending().await,
                }
            };
            let _ = timeout(POLL, woken).await;
        }
    }

    /// Until nothing is left to be done.
    async fn catch_up(&self) -> Result<(), ReactError> {
        self.look_through().await?;
        loop {
            let waiting = waiting(self.log.pool()).await?;
            if waiting.is_empty() {
                return Ok(());
            }
            for noted in waiting {
                self.react.follow_up(&noted).await?;
                noted.done(self.log.pool()).await?;
            }
        }
    }

    /// Notes from which events of our own log something follows, to its end.
    async fn look_through(&self) -> Result<(), LookError> {
        let log = &self.log;
        loop {
            let after = sqlx::query_scalar!("SELECT position FROM looked_through")
                .fetch_one(log.pool())
                .await?;
            let events = log.read(after.cast_unsigned(), PAGE).await?;
            let Some(last) = events.last() else {
                return Ok(());
            };
            let found = concerned(self.react.as_ref(), log.name(), &events)
                .map_err(|(position, reason)| LookError::Unreadable { position, reason })?;
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
                note(&mut transaction, log.name(), found).await?;
                transaction.commit().await?;
            }
        }
    }
}

type Found<'a> = Vec<(&'a RecordedEvent, String)>;

fn concerned<'a>(
    react: &impl React,
    log: &str,
    events: &'a [RecordedEvent],
) -> Result<Found<'a>, (u64, proto::EventError)> {
    let mut found = Vec::new();
    for event in events {
        let resource = react.concerns(log, event);
        let resource = resource.map_err(|error| (event.position, error))?;
        found.extend(resource.map(|resource| (event, resource)));
    }
    Ok(found)
}

async fn note(connection: &mut PgConnection, log: &str, found: Found<'_>) -> sqlx::Result<()> {
    if found.is_empty() {
        return Ok(());
    }
    let positions = found.iter().map(|(event, _)| event.position.cast_signed());
    let positions: Vec<i64> = positions.collect();
    let events: Vec<Uuid> = found.iter().map(|(event, _)| event.id).collect();
    let resources: Vec<String> = found.into_iter().map(|(_, id)| id).collect();
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

/// What waits to be taken up, in order.
async fn waiting(pool: &PgPool) -> sqlx::Result<Vec<Noted>> {
    sqlx::query_as!(
        Noted,
        "SELECT event_id AS event, resource_id AS resource, log, position FROM reactions
         ORDER BY log DESC, position LIMIT $1",
        TAKEN_UP
    )
    .fetch_all(pool)
    .await
}

impl Noted {
    /// Nothing more follows from it.
    async fn done(&self, pool: &PgPool) -> sqlx::Result<()> {
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
