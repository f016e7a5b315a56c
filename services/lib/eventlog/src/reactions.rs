//! What follows from events: when one thing is moved or deleted, what hangs on it ends.
//!
//! Each such event is noted in the transaction that moves the checkpoint past it, and taken up from there: what it may
//! have changed is looked at as it is now, and what has lost its ground is ended by an ordinary command. So it may stop
//! anywhere and begin again, and several processes may do it side by side. Nothing slips through between: a command
//! that leans on what was before the event is either appended before the event is noted, and then seen here, or refused
//! by its guards.
//!
//! What is looked at as it is now need be looked at once, however many events tell of it: what is noted is taken up by
//! resource, all of it that is noted by then. A few resources at the same time, and one that fails again later, so that
//! none stands before the others for long.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use sqlx::{PgConnection, PgPool};
use tokio::sync::{Notify, watch};
use tokio::task::{self, JoinError, JoinSet};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use uuid::Uuid;

use crate::event::RecordedEvent;
use crate::follower::{Fold, FoldError, Progress};
use crate::log::{EventLog, LogError};

/// How often to look without being woken: another process may have appended.
const POLL: Duration = Duration::from_secs(1);
/// Between attempts, while something fails; twice as long after each of the same resource.
const RETRY: Duration = Duration::from_millis(200);
/// Between two of the same resource at most.
const LONGEST_RETRY: Duration = Duration::from_secs(30);
/// Events of our own log that are looked through at a time.
const PAGE: u64 = 500;
/// Resources that are looked up at a time, in the order of their turns.
const IN_TURN: i64 = 100;
/// Resources that are taken up at the same time.
const AT_ONCE: usize = 4;

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

    /// Ends what lost its ground by events: once, however often and by however many processes it is called for them.
    fn follow_up(&self, noted: &Noted) -> impl Future<Output = Result<(), ReactError>> + Send;
}

/// Events by which something may have lost what it depends on.
#[derive(Clone, Debug)]
pub struct Noted {
    /// The event's id; of several, one that stands for all of them. It is another one with each event that comes to them:
    /// what was ended by it is ended again, if it came back meanwhile and one more event took its ground away.
    pub event: Uuid,
    /// What was moved or deleted.
    pub resource: String,
    events: Vec<Uuid>,
    logs: Vec<String>,
    positions: Vec<i64>,
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
    waiting: watch::Sender<u64>,
}

/// Whose turn it is.
#[derive(Default)]
struct Turns {
    /// Resources that come next.
    next: VecDeque<Noted>,
    /// The others that were looked up and are not done.
    passes: JoinSet<Result<(), ReactError>>,
    at_work: HashMap<task::Id, String>,
    failed: HashMap<String, Failed>,
}

/// A resource that is tried again.
struct Failed {
    pause: Duration,
    until: Instant,
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
            waiting: watch::Sender::default(),
        }
    }

    /// How many noted events wait until all that follows from them is done.
    #[must_use]
    pub fn waiting(&self) -> watch::Receiver<u64> {
        self.waiting.subscribe()
    }

    /// Goes on for ever.
    pub async fn run(self) {
        tokio::join!(self.carry_out(), self.count());
    }

    async fn carry_out(&self) {
        // A replica that is being built tells of things where they are no more.
        let current = |progress: &Progress| progress.current_at.is_some();
        if self.followed.clone().wait_for(current).await.is_ok() {
            let found = Notify::new();
            tokio::join!(self.look(&found), self.take_turns(&found));
        }
    }

    async fn count(&self) {
        loop {
            let waiting = sqlx::query_scalar!(r#"SELECT count(*) AS "waiting!" FROM reactions"#);
            if let Ok(waiting) = waiting.fetch_one(self.log.pool()).await {
                self.waiting.send_replace(waiting.cast_unsigned());
            }
            sleep(POLL).await;
        }
    }

    /// Looks through our own log, and tells when something was found.
    async fn look(&self, found: &Notify) {
        let mut own = self.log.watch();
        loop {
            own.mark_unchanged();
            if let Err(error) = self.look_through(found).await {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "our own log is not looked through"
                );
                sleep(RETRY).await;
                continue;
            }
            if let Ok(Err(_)) = timeout(POLL, own.changed()).await {
                sleep(POLL).await;
            }
        }
    }

    /// Takes up what is noted.
    async fn take_turns(&self, found: &Notify) {
        let mut followed = self.followed.clone();
        let mut turns = Turns::default();
        loop {
            followed.mark_unchanged();
            if let Err(error) = self.take_up(&mut turns).await {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "what follows from events is not looked up"
                );
                sleep(RETRY).await;
                continue;
            }
            let look_again_at = turns.look_again_at();
            tokio::select! {
                Some(ended) = turns.passes.join_next_with_id() => turns.ended(ended),
                Ok(()) = followed.changed() => {}
                () = found.notified() => {}
                () = sleep_until(look_again_at) => {}
            }
        }
    }

    /// As many resources as may be taken up now.
    async fn take_up(&self, turns: &mut Turns) -> sqlx::Result<()> {
        if turns.next.is_empty() && turns.at_work.len() < AT_ONCE {
            turns.next = waiting(self.log.pool(), &turns.not_now()).await?.into();
        }
        while turns.at_work.len() < AT_ONCE
            && let Some(noted) = turns.next.pop_front()
        {
            let resource = noted.resource.clone();
            let (react, pool) = (Arc::clone(&self.react), self.log.pool().clone());
            // A task by itself: what it holds, as a connection, must not wait for the next look.
            let pass = turns.passes.spawn(async move {
                react.follow_up(&noted).await?;
                Ok(noted.done(&pool).await?)
            });
            turns.at_work.insert(pass.id(), resource);
        }
        Ok(())
    }

    /// Notes from which events of our own log something follows, to its end.
    async fn look_through(&self, noted: &Notify) -> Result<(), LookError> {
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
                noted.notify_one();
            }
        }
    }
}

impl Turns {
    /// The resources that are not to be taken up now.
    fn not_now(&mut self) -> Vec<String> {
        let now = Instant::now();
        // Another process may have done what failed here: then nothing will tell.
        self.failed
            .retain(|_, failed| now < failed.until + LONGEST_RETRY);
        let failed = self.failed.iter().filter(|(_, failed)| now < failed.until);
        let failed = failed.map(|(resource, _)| resource);
        self.at_work.values().chain(failed).cloned().collect()
    }

    /// Without being woken.
    fn look_again_at(&self) -> Instant {
        let now = Instant::now();
        let again = self.failed.values().map(|failed| failed.until);
        let again = again.filter(|until| now < *until);
        again.chain([now + POLL]).min().unwrap_or(now)
    }

    fn ended(&mut self, ended: Result<(task::Id, Result<(), ReactError>), JoinError>) {
        let (pass, outcome) =
            ended.unwrap_or_else(|panicked| (panicked.id(), Err(panicked.into())));
        let Some(resource) = self.at_work.remove(&pass) else {
            return;
        };
        let Err(error) = outcome else {
            self.failed.remove(&resource);
            return;
        };
        tracing::warn!(
            resource,
            error = error.as_ref() as &dyn std::error::Error,
            "what follows from events is held up"
        );
        let before = self.failed.get(&resource);
        let pause = before.map_or(RETRY, |failed| LONGEST_RETRY.min(2 * failed.pause));
        let until = Instant::now() + pause;
        self.failed.insert(resource, Failed { pause, until });
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

/// What waits to be taken up, besides these resources: first the first of each log, so that neither waits for the other.
async fn waiting(pool: &PgPool, besides: &[String]) -> sqlx::Result<Vec<Noted>> {
    let rows = sqlx::query!(
        r#"SELECT resource_id AS "resource!",
                  array_agg(event_id ORDER BY log, position) AS "events!",
                  array_agg(log ORDER BY log, position) AS "logs!",
                  array_agg(position ORDER BY log, position) AS "positions!"
           FROM (
               SELECT *, row_number() OVER (PARTITION BY log ORDER BY position) AS turn
               FROM reactions WHERE resource_id <> ALL($1)
           ) waiting
           GROUP BY resource_id ORDER BY min(turn), resource_id LIMIT $2"#,
        besides,
        IN_TURN
    )
    .fetch_all(pool)
    .await?;
    let noted = rows.into_iter().filter_map(|row| {
        let events = row.events.iter().copied();
        Some(Noted {
            event: events.reduce(|all, next| Uuid::new_v5(&all, next.as_bytes()))?,
            resource: row.resource,
            events: row.events,
            logs: row.logs,
            positions: row.positions,
        })
    });
    Ok(noted.collect())
}

impl Noted {
    /// Nothing more follows from them.
    async fn done(&self, pool: &PgPool) -> sqlx::Result<()> {
        sqlx::query!(
            "DELETE FROM reactions USING UNNEST($1::text[], $2::bigint[], $3::uuid[]) AS done (log, position, event_id)
             WHERE reactions.log = done.log AND reactions.position = done.position AND reactions.event_id = done.event_id",
            &self.logs,
            &self.positions,
            &self.events
        )
        .execute(pool)
        .await?;
        Ok(())
    }
}
