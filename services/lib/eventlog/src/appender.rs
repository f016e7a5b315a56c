//! The appender: one task that drains what waits into one transaction.
//!
//! Many commands share one head lock and one commit; a command that is refused never costs its neighbours theirs.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use sqlx::error::DatabaseError;
use sqlx::{PgConnection, PgPool};
use tokio::sync::{mpsc, oneshot, watch};
use uuid::Uuid;

use crate::append::{Append, AppendError, Appended, Guard};
use crate::batch::{CarriedOut, Ground, Verdict};
use crate::event::{NewEvent, StreamId};
use crate::follower::is_for_good;

/// Commands in a transaction at most. Beyond, a batch gains nothing and its last command waits for its first.
const BATCH: usize = 200;
/// Commands that wait at most; beyond, callers wait to be taken in.
const WAITING: usize = 4_096;

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
        let (queue, mut waiting) = mpsc::channel(WAITING);
        tokio::spawn(async move {
            let mut batch = Vec::with_capacity(BATCH);
            while waiting.recv_many(&mut batch, BATCH).await > 0 {
                // Whoever stopped waiting before its command was begun does not want it any more.
                batch.retain(|command: &Waiting| !command.answer.is_closed());
                if let Some(position) = carry_out(&pool, std::mem::take(&mut batch)).await {
                    head.send_replace(position);
                }
            }
        });
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

/// Appends the batch and answers each command. Returns where the log ends now, if something was appended.
async fn carry_out(pool: &PgPool, batch: Vec<Waiting>) -> Option<u64> {
    if batch.is_empty() {
        return None;
    }
    let (appends, answers): (Vec<_>, Vec<_>) = batch
        .into_iter()
        .map(|one| (one.append, one.answer))
        .unzip();
    let (mut end, mut verdicts) = (None, Vec::new());
    match attempt(pool, &appends).await {
        Ok((position, all)) => (end, verdicts) = (position, all),
        // The database refused a row, not the connection: one command is to blame, and only that one shall fail.
        Err(AppendError::Database(error)) if appends.len() > 1 && is_refusal(&error) => {
            for append in &appends {
                match attempt(pool, std::slice::from_ref(append)).await {
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

/// One transaction. The outer error is for the whole batch, which then was not appended.
async fn attempt(
    pool: &PgPool,
    appends: &[Append],
) -> Result<(Option<u64>, Vec<Answer>), AppendError> {
    let database = |error| AppendError::Database(Arc::new(error));
    let mut transaction = pool.begin().await.map_err(database)?;
    let mut ground = lock_head(&mut transaction).await.map_err(database)?;
    read_ground(&mut transaction, appends, &mut ground)
        .await
        .map_err(database)?;
    let before = ground.clone();
    let mut rows = Rows::default();
    let verdicts: Vec<Answer> = appends
        .iter()
        .map(|append| match ground.place(append) {
            Verdict::Place {
                appended,
                first_versions,
            } => {
                rows.add(append, &appended, &first_versions);
                Ok(appended)
            }
            Verdict::Replay(appended) => Ok(appended),
            Verdict::Refuse(error) => Err(error),
        })
        .collect();
    if rows.event_ids.is_empty() && rows.command_ids.is_empty() {
        return Ok((None, verdicts));
    }
    let first_event = rows.event_ids.first().copied();
    write(&mut transaction, rows, &before, &ground)
        .await
        .map_err(database)?;
    match (transaction.commit().await, first_event) {
        (Ok(()), _) => {}
        (Err(error), Some(first_event)) => {
            settle(pool, before.position + 1, first_event, error).await?;
        }
        // Whether they are remembered or not, these commands changed nothing.
        (Err(error), None) => return Err(database(error)),
    }
    Ok((first_event.map(|_| ground.position), verdicts))
}

/// After a commit whose answer was lost: the head lock waits for that transaction to end, and then its first event
/// is there or not.
async fn settle(
    pool: &PgPool,
    position: u64,
    event_id: Uuid,
    error: sqlx::Error,
) -> Result<(), AppendError> {
    let error = Arc::new(error);
    let unknown = |_| AppendError::OutcomeUnknown(Arc::clone(&error));
    let mut transaction = pool.begin().await.map_err(unknown)?;
    lock_head(&mut transaction).await.map_err(unknown)?;
    let found = sqlx::query_scalar!(
        "SELECT event_id FROM events WHERE position = $1",
        position.cast_signed()
    )
    .fetch_optional(&mut *transaction)
    .await
    .map_err(unknown)?;
    if found == Some(event_id) {
        Ok(())
    } else {
        Err(AppendError::Database(error))
    }
}

async fn lock_head(connection: &mut PgConnection) -> sqlx::Result<Ground> {
    // The outer select runs once the row is locked: its clock is later than that of every append before.
    let head = sqlx::query!(
        r#"WITH head AS MATERIALIZED (SELECT epoch, position FROM log_head FOR UPDATE)
           SELECT epoch, position, clock_timestamp() AS "now!" FROM head"#
    )
    .fetch_one(connection)
    .await?;
    Ok(Ground {
        epoch: head.epoch,
        position: head.position.cast_unsigned(),
        now: head.now,
        versions: HashMap::new(),
        facts: HashMap::new(),
        commands: HashMap::new(),
    })
}

/// Reads what the batch leans on. Behind the head lock: a statement sees what was committed before it began.
async fn read_ground(
    connection: &mut PgConnection,
    appends: &[Append],
    ground: &mut Ground,
) -> sqlx::Result<()> {
    let streams: HashSet<&StreamId> = appends
        .iter()
        .flat_map(|append| &append.streams)
        .map(|stream| &stream.stream_id)
        .collect();
    let streams: Vec<String> = streams
        .into_iter()
        .map(|stream| stream.as_str().to_owned())
        .collect();
    let rows = sqlx::query!(
        r#"SELECT wanted.stream_id AS "stream_id!", stands.version AS "version!"
           FROM UNNEST($1::text[]) AS wanted (stream_id),
           LATERAL (SELECT version FROM events WHERE stream_id = wanted.stream_id ORDER BY version DESC LIMIT 1) stands"#,
        &streams
    )
    .fetch_all(&mut *connection)
    .await?;
    let versions: HashMap<String, u64> = rows
        .into_iter()
        .map(|row| (row.stream_id, row.version.cast_unsigned()))
        .collect();
    for stream in appends.iter().flat_map(|append| &append.streams) {
        if let Some(version) = versions.get(stream.stream_id.as_str()) {
            ground.versions.insert(stream.stream_id.clone(), *version);
        }
    }
    let keys: HashSet<&str> = appends
        .iter()
        .flat_map(|append| &append.guards)
        .map(Guard::key)
        .collect();
    if !keys.is_empty() {
        let keys: Vec<String> = keys.into_iter().map(str::to_owned).collect();
        let rows = sqlx::query!("SELECT key, value FROM facts WHERE key = ANY($1)", &keys)
            .fetch_all(&mut *connection)
            .await?;
        ground.facts = rows.into_iter().map(|row| (row.key, row.value)).collect();
    }
    let commands: Vec<Uuid> = appends
        .iter()
        .filter_map(|append| append.command.as_ref())
        .map(|command| command.id)
        .collect();
    if !commands.is_empty() {
        let rows = sqlx::query!(
            "SELECT command_id, fingerprint, first_position, last_position, recorded_at, reply
             FROM commands WHERE command_id = ANY($1)",
            &commands
        )
        .fetch_all(connection)
        .await?;
        for row in rows {
            let carried_out = CarriedOut {
                fingerprint: row.fingerprint,
                first: row.first_position.cast_unsigned(),
                last: row.last_position.cast_unsigned(),
                recorded_at: row.recorded_at,
                reply: row.reply,
            };
            ground.commands.insert(row.command_id, carried_out);
        }
    }
    Ok(())
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

/// Writes everything in one round trip.
async fn write(
    connection: &mut PgConnection,
    rows: Rows,
    before: &Ground,
    after: &Ground,
) -> sqlx::Result<()> {
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
    sqlx::query!(
        "WITH appended AS (
             INSERT INTO events
                 (position, stream_id, version, event_id, event_type, payload, metadata, recorded_at)
             SELECT *, $17::timestamptz FROM UNNEST
                 ($1::bigint[], $2::text[], $3::bigint[], $4::uuid[], $5::text[], $6::bytea[], $7::jsonb[])
         ), carried_out AS (
             INSERT INTO commands (command_id, fingerprint, first_position, last_position, reply, recorded_at)
             SELECT *, $17 FROM UNNEST($8::uuid[], $9::bytea[], $10::bigint[], $11::bigint[], $12::bytea[])
         ), gone AS (
             DELETE FROM facts WHERE key = ANY($13)
         ), changed AS (
             INSERT INTO facts (key, value) SELECT * FROM UNNEST($14::text[], $15::text[])
             ON CONFLICT (key) DO UPDATE SET value = excluded.value
         )
         UPDATE log_head SET position = $16",
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
        after.now
    )
    .execute(connection)
    .await?;
    Ok(())
}
