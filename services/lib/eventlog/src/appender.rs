//! The appender: one task that drains what waits into one transaction.
//!
//! Many commands share one turn at the head row and one commit; a command that is refused never costs its neighbours
//! theirs. What they lean on is read first, and written behind the head row only if nothing has changed since.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use sqlx::error::DatabaseError;
use sqlx::pool::PoolConnection;
use sqlx::{Connection as _, PgConnection, PgPool, Postgres};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;
use uuid::Uuid;

use crate::append::{Append, AppendError, Appended, Guard};
use crate::batch::{CarriedOut, Ground, Verdict};
use crate::event::{NewEvent, StreamId};
use crate::follower::is_for_good;

/// Commands in a transaction at most. Beyond, a batch gains nothing and its last command waits for its first.
const BATCH: usize = 200;
/// Commands that wait at most; beyond, callers wait to be taken in.
const WAITING: usize = 4_096;
/// How often those who were just answered get a turn before the next batch is closed.
const TURNS: usize = 8;
/// For how long the connection is kept for the next batch.
const KEPT: Duration = Duration::from_secs(1);

type Answer = Result<Appended, AppendError>;

struct Waiting {
    append: Append,
    answer: oneshot::Sender<Answer>,
}

pub(crate) struct Appender {
    queue: mpsc::Sender<Waiting>,
}

impl Appender {
    /// Starts the task. It ends when the last handle is gone, after carrying out what waits.
    pub(crate) fn start(pool: PgPool, head: watch::Sender<u64>) -> Self {
        let (queue, waiting) = mpsc::channel(WAITING);
        tokio::spawn(drain(Connection { pool, kept: None }, waiting, head));
        Self { queue }
    }

    pub(crate) async fn append(&self, append: Append) -> Answer {
        let (answer, answered) = oneshot::channel();
        self.queue
            .send(Waiting { append, answer })
            .await
            .map_err(|_| AppendError::Closed)?;
        let lost = |_| AppendError::OutcomeUnknown(Arc::new(sqlx::Error::WorkerCrashed));
        answered.await.map_err(lost)?
    }
}

async fn drain(
    mut connection: Connection,
    mut waiting: mpsc::Receiver<Waiting>,
    head: watch::Sender<u64>,
) {
    let mut batch = Vec::with_capacity(BATCH);
    loop {
        let received = waiting.recv_many(&mut batch, BATCH);
        let received = if connection.kept.is_some() {
            timeout(KEPT, received).await
        } else {
            Ok(received.await)
        };
        match received {
            Ok(0) => break,
            Ok(_) => {}
            Err(_) => {
                connection.kept = None;
                continue;
            }
        }
        // Whoever stopped waiting before its command was begun does not want it any more.
        batch.retain(|command: &Waiting| !command.answer.is_closed());
        let answered = batch.len();
        if let Some(position) = carry_out(&mut connection, std::mem::take(&mut batch)).await {
            head.send_replace(position);
        }
        // Who was just answered and goes on at once comes into the next batch, not into the one after it.
        for _ in 0..TURNS {
            if waiting.len() >= answered {
                break;
            }
            tokio::task::yield_now().await;
        }
    }
}

/// The appender's connection.
struct Connection {
    pool: PgPool,
    /// Of the batch before, if that came through.
    kept: Option<PoolConnection<Postgres>>,
}

impl Connection {
    /// One transaction. After a failure the next one has another connection.
    async fn attempt(&mut self, appends: &[Append]) -> Result<Attempted, AppendError> {
        let connection = match self.kept.take() {
            Some(connection) => connection,
            None => self.pool.acquire().await.map_err(database)?,
        };
        let (connection, attempted) = attempt(&self.pool, connection, appends).await?;
        self.kept = connection;
        Ok(attempted)
    }
}

/// Appends the batch and answers each command. Returns where the log ends now, if something was appended.
async fn carry_out(connection: &mut Connection, batch: Vec<Waiting>) -> Option<u64> {
    if batch.is_empty() {
        return None;
    }
    let (appends, answers): (Vec<_>, Vec<_>) = batch
        .into_iter()
        .map(|one| (one.append, one.answer))
        .unzip();
    let (mut end, mut verdicts) = (None, Vec::new());
    match connection.attempt(&appends).await {
        Ok((position, all)) => (end, verdicts) = (position, all),
        // The database refused a row, not the connection: one command is to blame, and only that one shall fail.
        Err(AppendError::Database(error)) if appends.len() > 1 && is_refusal(&error) => {
            for append in &appends {
                match connection.attempt(std::slice::from_ref(append)).await {
                    Ok((position, mut one)) => {
                        end = position.or(end);
                        verdicts.append(&mut one);
                    }
                    Err(error) => verdicts.push(Err(error)),
                }
            }
        }
        Err(error) => verdicts.resize_with(appends.len(), || Err(error.clone())),
    }
    for (answer, verdict) in answers.into_iter().zip(verdicts) {
        // A caller that stopped waiting meanwhile is answered by its retry.
        let _ = answer.send(verdict);
    }
    end
}

fn is_refusal(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(DatabaseError::code);
    code.is_some_and(|code| is_for_good(&code))
}

fn database(error: sqlx::Error) -> AppendError {
    AppendError::Database(Arc::new(error))
}

/// Where the log ends now, if something was appended, and each command's answer.
type Attempted = (Option<u64>, Vec<Answer>);

/// Gives the connection back if it is fit for another batch. The error is for the whole batch, which then was not
/// appended.
async fn attempt(
    pool: &PgPool,
    mut connection: PoolConnection<Postgres>,
    appends: &[Append],
) -> Result<(Option<PoolConnection<Postgres>>, Attempted), AppendError> {
    // Mostly nobody comes between reading and writing. Then nothing is locked in the meantime, and two round trips are
    // all that it takes.
    let ground = read_ground(&mut connection, appends).await;
    let plan = Plan::of(ground.map_err(database)?, appends);
    if plan.changes_nothing() {
        return Ok((Some(connection), plan.outcome()));
    }
    match write(&mut connection, &plan).await {
        Ok(true) => return Ok((Some(connection), plan.outcome())),
        Ok(false) => {}
        Err(error) if is_refusal(&error) => return Err(database(error)),
        Err(error) => {
            drop(connection);
            return Ok((None, settle(pool, plan, error).await?));
        }
    }
    // Someone did, and might again: behind the locked head row nobody can.
    let mut transaction = connection.begin().await.map_err(database)?;
    sqlx::query!("SELECT position FROM log_head FOR UPDATE")
        .fetch_one(&mut *transaction)
        .await
        .map_err(database)?;
    let ground = read_ground(&mut transaction, appends).await;
    let plan = Plan::of(ground.map_err(database)?, appends);
    if plan.changes_nothing() {
        transaction.rollback().await.map_err(database)?;
        return Ok((Some(connection), plan.outcome()));
    }
    if !write(&mut transaction, &plan).await.map_err(database)? {
        return Err(database(sqlx::Error::RowNotFound));
    }
    if let Err(error) = transaction.commit().await {
        // Its transaction may still hold the head row.
        drop(connection);
        return Ok((None, settle(pool, plan, error).await?));
    }
    Ok((Some(connection), plan.outcome()))
}

/// After a write whose answer was lost: were it still on its way, it would come too late behind another revision; and
/// then its first event is there or not.
async fn settle(pool: &PgPool, plan: Plan, error: sqlx::Error) -> Result<Attempted, AppendError> {
    let Some(first_event) = plan.rows.event_ids.first() else {
        // Whether they are remembered or not, these commands changed nothing.
        return Err(database(error));
    };
    let error = Arc::new(error);
    let unknown = |_| AppendError::OutcomeUnknown(Arc::clone(&error));
    sqlx::query!("UPDATE log_head SET revision = revision + 1")
        .execute(pool)
        .await
        .map_err(unknown)?;
    let found = sqlx::query_scalar!(
        "SELECT event_id FROM events WHERE position = $1",
        plan.rows.positions.first()
    )
    .fetch_optional(pool)
    .await
    .map_err(unknown)?;
    if found.as_ref() == Some(first_event) {
        Ok(plan.outcome())
    } else {
        Err(AppendError::Database(error))
    }
}

/// What a batch comes to on what it leans on.
struct Plan {
    before: Ground,
    after: Ground,
    rows: Rows,
    verdicts: Vec<Answer>,
}

impl Plan {
    fn of(before: Ground, appends: &[Append]) -> Self {
        let (mut after, mut rows) = (before.clone(), Rows::default());
        let verdicts = appends.iter().map(|append| match after.place(append) {
            Verdict::Place {
                appended,
                first_versions,
            } => {
                rows.add(append, &appended, &first_versions);
                Ok(appended)
            }
            Verdict::Replay(appended) => Ok(appended),
            Verdict::Refuse(error) => Err(error),
        });
        let verdicts = verdicts.collect();
        Self {
            before,
            after,
            rows,
            verdicts,
        }
    }

    fn changes_nothing(&self) -> bool {
        self.rows.event_ids.is_empty() && self.rows.command_ids.is_empty()
    }

    fn outcome(self) -> Attempted {
        let appended = !self.rows.event_ids.is_empty();
        (appended.then_some(self.after.position), self.verdicts)
    }
}

/// Reads what the batch leans on, all of one moment.
async fn read_ground(connection: &mut PgConnection, appends: &[Append]) -> sqlx::Result<Ground> {
    let streams: BTreeSet<&StreamId> = appends
        .iter()
        .flat_map(|append| &append.streams)
        .map(|stream| &stream.stream_id)
        .collect();
    let keys: BTreeSet<&str> = appends
        .iter()
        .flat_map(|append| &append.guards)
        .map(Guard::key)
        .collect();
    let stream_ids: Vec<String> = streams.iter().map(|id| id.as_str().to_owned()).collect();
    let keys: Vec<String> = keys.into_iter().map(str::to_owned).collect();
    let commands = appends.iter().filter_map(|append| append.command.as_ref());
    let commands: Vec<Uuid> = commands.map(|command| command.id).collect();
    let found = sqlx::query!(
        r#"SELECT epoch, position, revision, clock_timestamp() AS "now!",
                  ARRAY(SELECT coalesce((SELECT max(version) FROM events WHERE stream_id = wanted.id), 0)
                        FROM UNNEST($1::text[]) WITH ORDINALITY AS wanted (id, place) ORDER BY place) AS "versions!",
                  ARRAY(SELECT (SELECT value FROM facts WHERE key = wanted.key)
                        FROM UNNEST($2::text[]) WITH ORDINALITY AS wanted (key, place) ORDER BY place)
                      AS "fact_values!: Vec<Option<String>>",
                  ARRAY(SELECT command_id FROM commands WHERE command_id = ANY($3)) AS "carried_out!"
           FROM log_head"#,
        &stream_ids,
        &keys,
        &commands
    )
    .fetch_one(&mut *connection)
    .await?;
    let versions = found.versions.into_iter().map(i64::cast_unsigned);
    let facts = keys.into_iter().zip(found.fact_values);
    Ok(Ground {
        epoch: found.epoch,
        position: found.position.cast_unsigned(),
        revision: found.revision,
        now: found.now,
        versions: streams.into_iter().cloned().zip(versions).collect(),
        facts: facts
            .filter_map(|(key, value)| Some((key, value?)))
            .collect(),
        commands: carried_out(connection, found.carried_out).await?,
    })
}

/// What became of commands of earlier appends.
async fn carried_out(
    connection: &mut PgConnection,
    commands: Vec<Uuid>,
) -> sqlx::Result<HashMap<Uuid, CarriedOut>> {
    if commands.is_empty() {
        return Ok(HashMap::new());
    }
    let rows = sqlx::query!(
        "SELECT command_id, fingerprint, first_position, last_position, recorded_at, reply
         FROM commands WHERE command_id = ANY($1)",
        &commands
    )
    .fetch_all(connection)
    .await?;
    let found = rows.into_iter().map(|row| {
        let carried_out = CarriedOut {
            fingerprint: row.fingerprint,
            first: row.first_position.cast_unsigned(),
            last: row.last_position.cast_unsigned(),
            recorded_at: row.recorded_at,
            reply: row.reply,
        };
        (row.command_id, carried_out)
    });
    Ok(found.collect())
}

/// The batch's rows, by column.
#[derive(Default)]
struct Rows {
    positions: Vec<i64>,
    stream_ids: Vec<String>,
    versions: Vec<i64>,
    event_ids: Vec<Uuid>,
    event_types: Vec<String>,
    payloads: Vec<Vec<u8>>,
    metadata: Vec<serde_json::Value>,
    command_ids: Vec<Uuid>,
    fingerprints: Vec<Vec<u8>>,
    firsts: Vec<i64>,
    lasts: Vec<i64>,
    replies: Vec<Vec<u8>>,
}

impl Rows {
    fn add(&mut self, append: &Append, appended: &Appended, first_versions: &[u64]) {
        let metadata = serde_json::json!(append.metadata);
        let mut position = appended.first;
        for (stream, first_version) in append.streams.iter().zip(first_versions) {
            for (version, event) in (*first_version..).zip(&stream.events) {
                let NewEvent {
                    id,
                    event_type,
                    payload,
                } = event;
                self.positions.push(position.cast_signed());
                self.stream_ids.push(stream.stream_id.as_str().to_owned());
                self.versions.push(version.cast_signed());
                self.event_ids.push(*id);
                self.event_types.push((*event_type).to_owned());
                self.payloads.push(payload.clone());
                self.metadata.push(metadata.clone());
                position += 1;
            }
        }
        if let Some(command) = &append.command {
            self.command_ids.push(command.id);
            self.fingerprints.push(command.fingerprint.clone());
            self.firsts.push(appended.first.cast_signed());
            self.lasts.push(appended.last.cast_signed());
            self.replies.push(command.reply.clone());
        }
    }
}

/// Writes everything in one statement, if nothing has changed since the ground was read. Answers whether it did.
async fn write(connection: &mut PgConnection, plan: &Plan) -> sqlx::Result<bool> {
    let Plan {
        before,
        after,
        rows,
        ..
    } = plan;
    let gone: Vec<String> = before
        .facts
        .keys()
        .filter(|key| !after.facts.contains_key(*key))
        .cloned()
        .collect();
    let (keys, values): (Vec<String>, Vec<String>) = after
        .facts
        .iter()
        .filter(|(key, value)| before.facts.get(*key) != Some(*value))
        .map(|(key, value)| (key.clone(), value.clone()))
        .unzip();
    // Whoever waited here for another append finds another revision.
    let heads = sqlx::query_scalar!(
        r#"WITH head AS (
             UPDATE log_head SET position = $16, revision = revision + 1 WHERE revision = $18 RETURNING revision
         ), appended AS (
             INSERT INTO events
                 (position, stream_id, version, event_id, event_type, payload, metadata, recorded_at)
             SELECT *, $17::timestamptz FROM UNNEST
                 ($1::bigint[], $2::text[], $3::bigint[], $4::uuid[], $5::text[], $6::bytea[], $7::jsonb[])
             WHERE EXISTS (SELECT FROM head)
         ), carried_out AS (
             INSERT INTO commands (command_id, fingerprint, first_position, last_position, reply, recorded_at)
             SELECT *, $17 FROM UNNEST($8::uuid[], $9::bytea[], $10::bigint[], $11::bigint[], $12::bytea[])
             WHERE EXISTS (SELECT FROM head)
         ), gone AS (
             DELETE FROM facts WHERE key = ANY($13) AND EXISTS (SELECT FROM head)
         ), changed AS (
             INSERT INTO facts (key, value)
             SELECT * FROM UNNEST($14::text[], $15::text[]) WHERE EXISTS (SELECT FROM head)
             ON CONFLICT (key) DO UPDATE SET value = excluded.value
         )
         SELECT count(*) AS "count!" FROM head"#,
        &rows.positions,
        &rows.stream_ids,
        &rows.versions,
        &rows.event_ids,
        &rows.event_types,
        &rows.payloads,
        &rows.metadata,
        &rows.command_ids,
        &rows.fingerprints,
        &rows.firsts,
        &rows.lasts,
        &rows.replies,
        &gone,
        &keys,
        &values,
        after.position.cast_signed(),
        after.now,
        before.revision
    )
    .fetch_one(connection)
    .await?;
    Ok(heads == 1)
}
