//! The appender: one task that drains what waits into one transaction.
//!
//! Many commands share one turn at the head row and one commit; a command that is refused never costs its neighbours
//! theirs. What they lean on is read first, and written behind the head row only if nothing has changed since. What was
//! read and written is remembered: where nobody else writes, the next batch that leans on the same need not read.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use sqlx::error::DatabaseError;
use sqlx::pool::PoolConnection;
use sqlx::types::Json;
use sqlx::{Connection as _, PgConnection, PgPool, Postgres};
use time::OffsetDateTime;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;
use uuid::Uuid;

use crate::append::{Append, AppendError, Appended, Guard};
use crate::batch::{CarriedOut, Changes, Ground, Place, Verdict};
use crate::event::{Metadata, NewEvent, RecordedEvent, StreamId};
use crate::follower::{in_time, is_for_good};
use crate::recent::Recent;

/// Commands in a transaction at most. Beyond, a batch gains nothing and its last command waits for its first.
const BATCH: usize = 200;
/// Commands that wait at most; beyond, callers wait to be taken in.
const WAITING: usize = 4_096;
/// How often those who were just answered get a turn before the next batch is closed.
const TURNS: usize = 8;
/// For how long the connection is kept for the next batch, with what is remembered.
const KEPT: Duration = Duration::from_secs(1);
/// The time of an outcome that nothing was written for.
const NEVER: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;
/// Bytes that are remembered at most; beyond, all is forgotten.
const REMEMBERED: usize = 16 << 20;
/// So many batches read again what they lean on after somebody else came between: who did is likely to do it again.
const WARY: u32 = 16;

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
    pub(crate) fn start(pool: PgPool, head: watch::Sender<u64>, recent: Arc<Recent>) -> Self {
        let (queue, waiting) = mpsc::channel(WAITING);
        let connection = Connection {
            pool,
            recent,
            kept: None,
            wary: 0,
        };
        tokio::spawn(drain(connection, waiting, head));
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
    /// Told of what it appended.
    recent: Arc<Recent>,
    /// Of the batch before, if that came through.
    kept: Option<Kept>,
    /// For so many batches nothing is remembered.
    wary: u32,
}

/// A connection that has just carried out a batch.
struct Kept {
    connection: PoolConnection<Postgres>,
    /// What is known of the log since. It lives no longer than the connection, which ends when a database is put back to an
    /// earlier state.
    ground: Option<Ground>,
}

impl Connection {
    /// One transaction. After a failure the next one has another connection. The error is for the whole batch, which then
    /// was not appended.
    async fn attempt(&mut self, appends: &[Append]) -> Result<Attempted, AppendError> {
        let (mut connection, mut remembered) = if let Some(kept) = self.kept.take() {
            (kept.connection, kept.ground)
        } else {
            self.recent.begin_anew();
            (self.pool.acquire().await.map_err(database)?, None)
        };
        // Where all is known, one round trip is all that it takes. What was known was so if it could be written on: for
        // refusals alone it is read again.
        if let Some(ground) = remembered.take_if(|ground| ground.covers(appends)) {
            let plan = Plan::of(&ground, appends);
            if !plan.changes_nothing() {
                match self.write(connection, ground, plan).await? {
                    Ok(attempted) => return Ok(attempted),
                    Err(overtaken) => connection = overtaken,
                }
            }
        }
        // Mostly nobody comes between reading and writing. Then nothing is locked in the meantime, and two round trips are
        // all that it takes.
        let ground = in_time(read_ground(&mut connection, appends)).await;
        let mut ground = ground.map_err(database)?;
        if let Some(mut known) = remembered.filter(|known| known.revision == ground.revision) {
            known.extend(ground);
            ground = known;
        }
        let plan = Plan::of(&ground, appends);
        if plan.changes_nothing() {
            let attempted = plan.outcome(ground.epoch, NEVER);
            self.keep(connection, ground);
            return Ok(attempted);
        }
        match self.write(connection, ground, plan).await? {
            Ok(attempted) => return Ok(attempted),
            Err(overtaken) => connection = overtaken,
        }
        // Someone did, and might again: behind the locked head row nobody can.
        let mut transaction = in_time(connection.begin()).await.map_err(database)?;
        let head = sqlx::query!("SELECT position FROM log_head FOR UPDATE");
        let head = in_time(head.fetch_one(&mut *transaction)).await;
        head.map_err(database)?;
        let ground = in_time(read_ground(&mut transaction, appends)).await;
        let mut ground = ground.map_err(database)?;
        let mut plan = Plan::of(&ground, appends);
        if plan.changes_nothing() {
            in_time(transaction.rollback()).await.map_err(database)?;
            let attempted = plan.outcome(ground.epoch, NEVER);
            self.keep(connection, ground);
            return Ok(attempted);
        }
        let written = in_time(write(&mut transaction, &ground, &plan)).await;
        let written = written.map_err(database)?;
        let Written { revision, now } =
            written.ok_or_else(|| database(sqlx::Error::RowNotFound))?;
        if let Err(error) = in_time(transaction.commit()).await {
            // Its transaction may still hold the head row.
            drop(connection);
            return settle(&self.pool, ground.epoch, plan, error).await;
        }
        self.recent.add(plan.rows.recorded(now));
        ground.change(&plan.changes, revision);
        let attempted = plan.outcome(ground.epoch, now);
        self.keep(connection, ground);
        Ok(attempted)
    }

    /// Writes the batch, if the ground is still so; gives the connection back if somebody else came between.
    async fn write(
        &mut self,
        mut connection: PoolConnection<Postgres>,
        mut ground: Ground,
        mut plan: Plan,
    ) -> Result<Result<Attempted, PoolConnection<Postgres>>, AppendError> {
        match in_time(write(&mut connection, &ground, &plan)).await {
            Ok(Some(Written { revision, now })) => {
                self.recent.add(plan.rows.recorded(now));
                ground.change(&plan.changes, revision);
                let attempted = plan.outcome(ground.epoch, now);
                self.keep(connection, ground);
                Ok(Ok(attempted))
            }
            Ok(None) => {
                self.wary = WARY;
                Ok(Err(connection))
            }
            Err(error) if is_refusal(&error) => Err(database(error)),
            Err(error) => {
                drop(connection);
                let attempted = settle(&self.pool, ground.epoch, plan, error).await?;
                Ok(Ok(attempted))
            }
        }
    }

    /// For the next batch.
    fn keep(&mut self, connection: PoolConnection<Postgres>, ground: Ground) {
        self.wary = self.wary.saturating_sub(1);
        let ground = Some(ground).filter(|ground| self.wary == 0 && ground.size <= REMEMBERED);
        self.kept = Some(Kept { connection, ground });
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

/// After a write whose answer was lost: were it still on its way, it would come too late behind another revision; and
/// then its first event is there or not.
async fn settle(
    pool: &PgPool,
    epoch: Uuid,
    plan: Plan,
    error: sqlx::Error,
) -> Result<Attempted, AppendError> {
    let Some(first_event) = plan.rows.event_ids.first() else {
        // Whether they are remembered or not, these commands changed nothing.
        return Err(database(error));
    };
    let error = Arc::new(error);
    let unknown = |_| AppendError::OutcomeUnknown(Arc::clone(&error));
    let fence = sqlx::query!("UPDATE log_head SET revision = revision + 1");
    in_time(fence.execute(pool)).await.map_err(unknown)?;
    let found = sqlx::query!(
        "SELECT event_id, recorded_at FROM events WHERE position = $1",
        plan.rows.positions.first()
    );
    let found = in_time(found.fetch_optional(pool)).await;
    let found = found.map_err(unknown)?;
    match found {
        Some(event) if event.event_id == *first_event => Ok(plan.outcome(epoch, event.recorded_at)),
        Some(_) | None => Err(AppendError::Database(error)),
    }
}

/// What a batch comes to on what it leans on.
struct Plan {
    changes: Changes,
    rows: Rows,
    verdicts: Vec<Verdict>,
    /// The commands that are new, as far as the ground tells.
    new_commands: Vec<Uuid>,
}

impl Plan {
    fn of(ground: &Ground, appends: &[Append]) -> Self {
        let (mut changes, mut rows) = (Changes::on(ground), Rows::default());
        let verdicts = appends.iter().map(|append| {
            let verdict = changes.place(ground, append);
            if let Verdict::Place(place) = &verdict {
                rows.add(append, place);
            }
            verdict
        });
        let verdicts = verdicts.collect();
        let commands = appends.iter().filter_map(|append| append.command.as_ref());
        let ids = commands.map(|command| command.id);
        Self {
            changes,
            rows,
            verdicts,
            new_commands: ids.filter(|id| !ground.commands.contains_key(id)).collect(),
        }
    }

    fn changes_nothing(&self) -> bool {
        self.rows.event_ids.is_empty() && self.rows.command_ids.is_empty()
    }

    /// What to answer, if what there is to write was recorded at this time.
    fn outcome(self, epoch: Uuid, now: OffsetDateTime) -> Attempted {
        let appended = !self.rows.event_ids.is_empty();
        let answers = self.verdicts.into_iter().map(|verdict| {
            let (first, last, recorded_at, replayed) = match verdict {
                Verdict::Place(place) => (place.first, place.last, None, None),
                Verdict::Replay(CarriedOut {
                    first,
                    last,
                    recorded_at,
                    reply,
                    ..
                }) => (first, last, recorded_at, Some(reply)),
                Verdict::Refuse(error) => return Err(error),
            };
            Ok(Appended {
                epoch,
                first,
                last,
                recorded_at: recorded_at.unwrap_or(now),
                replayed,
            })
        });
        (appended.then_some(self.changes.position), answers.collect())
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
        .flat_map(Append::all_guards)
        .map(Guard::key)
        .collect();
    let stream_ids: Vec<String> = streams.iter().map(|id| id.as_str().to_owned()).collect();
    let keys: Vec<String> = keys.into_iter().map(str::to_owned).collect();
    let commands = appends.iter().filter_map(|append| append.command.as_ref());
    let commands: Vec<Uuid> = commands.map(|command| command.id).collect();
    let found = sqlx::query!(
        r#"SELECT epoch, position, revision,
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
    let mut ground = Ground::at(found.epoch, found.position.cast_unsigned(), found.revision);
    ground.tell(
        streams.into_iter().cloned().zip(versions),
        keys.into_iter().zip(found.fact_values),
    );
    ground.commands = carried_out(connection, found.carried_out).await?;
    Ok(ground)
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
            recorded_at: Some(row.recorded_at),
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
    metadata: Vec<Json<Metadata>>,
    command_ids: Vec<Uuid>,
    fingerprints: Vec<Vec<u8>>,
    firsts: Vec<i64>,
    lasts: Vec<i64>,
    replies: Vec<Vec<u8>>,
}

impl Rows {
    fn add(&mut self, append: &Append, place: &Place) {
        let mut position = place.first;
        for (stream, first_version) in append.streams.iter().zip(&place.first_versions) {
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
                self.metadata.push(Json(append.metadata.clone()));
                position += 1;
            }
        }
        if let Some(command) = &append.command {
            self.command_ids.push(command.id);
            self.fingerprints.push(command.fingerprint.clone());
            self.firsts.push(place.first.cast_signed());
            self.lasts.push(place.last.cast_signed());
            self.replies.push(command.reply.clone());
        }
    }

    /// The events, as the log holds them now. All that goes into them is gone from here then, but for their ids.
    fn recorded(&mut self, recorded_at: OffsetDateTime) -> Vec<RecordedEvent> {
        let (positions, versions) = (self.positions.iter(), self.versions.iter());
        let columns = positions
            .zip(self.stream_ids.drain(..))
            .zip(versions)
            .zip(&self.event_ids)
            .zip(self.event_types.drain(..))
            .zip(self.payloads.drain(..))
            .zip(self.metadata.drain(..));
        let events = columns.map(|row| {
            let ((((((position, stream_id), version), id), event_type), payload), metadata) = row;
            RecordedEvent {
                position: position.cast_unsigned(),
                stream_id,
                version: version.cast_unsigned(),
                id: *id,
                event_type,
                payload: payload.into(),
                metadata: metadata.0,
                recorded_at,
            }
        });
        events.collect()
    }
}

/// What was written.
struct Written {
    /// Of the log, after it.
    revision: i64,
    /// When it was recorded: behind the head row, so that times follow positions.
    now: OffsetDateTime,
}

/// Writes everything in one statement, if nothing has changed since the revision of the ground, and none of the commands
/// was carried out before that it does not know of: also one that is refused would be answered as it was then.
async fn write(
    connection: &mut PgConnection,
    ground: &Ground,
    plan: &Plan,
) -> sqlx::Result<Option<Written>> {
    let Plan {
        changes,
        rows,
        new_commands,
        ..
    } = plan;
    // Whoever waited here for another append finds another revision. A macro, as sqlx checks literals only.
    macro_rules! appending {
        (unless $carried_out:literal, and $also:literal $(, $argument:expr)*) => {
            sqlx::query_as!(
                Written,
                r#"WITH head AS (
                     UPDATE log_head SET position = $8, revision = revision + 1
                     WHERE revision = $9"# + $carried_out + r#"
                     RETURNING revision, clock_timestamp() AS now
                 ), appended AS (
                     INSERT INTO events
                         (position, stream_id, version, event_id, event_type, payload, metadata, recorded_at)
                     SELECT new.*, head.now FROM head, UNNEST
                         ($1::bigint[], $2::text[], $3::bigint[], $4::uuid[], $5::text[], $6::bytea[], $7::jsonb[]) AS new
                 )"# + $also + r#"
                 SELECT revision AS "revision!", now AS "now!" FROM head"#,
                &rows.positions,
                &rows.stream_ids,
                &rows.versions,
                &rows.event_ids,
                &rows.event_types,
                &rows.payloads,
                &rows.metadata as &[Json<Metadata>],
                changes.position.cast_signed(),
                ground.revision
                $(, $argument)*
            )
        };
    }
    let changed = |(key, value): &(&String, &Option<String>)| ground.facts.get(*key) != Some(value);
    let (gone, set): (Vec<_>, Vec<_>) = changes
        .facts
        .iter()
        .filter(changed)
        .partition(|(_, value)| value.is_none());
    if new_commands.is_empty() && gone.is_empty() && set.is_empty() {
        // As credentials are: PostgreSQL need not set up what they don't have.
        let events = appending!(unless "", and "");
        return events.fetch_optional(connection).await;
    }
    let gone: Vec<&str> = gone.into_iter().map(|(key, _)| key.as_str()).collect();
    let set = set.into_iter();
    let (keys, values): (Vec<&str>, Vec<&str>) = set
        .filter_map(|(key, value)| Some((key.as_str(), value.as_deref()?)))
        .unzip();
    let all = appending!(
        unless " AND NOT EXISTS (SELECT FROM commands WHERE command_id = ANY($10))",
        and ", carried_out AS (
             INSERT INTO commands (command_id, fingerprint, first_position, last_position, reply, recorded_at)
             SELECT new.*, head.now
             FROM head, UNNEST($11::uuid[], $12::bytea[], $13::bigint[], $14::bigint[], $15::bytea[]) AS new
         ), gone AS (
             DELETE FROM facts WHERE key = ANY($16) AND EXISTS (SELECT FROM head)
         ), changed AS (
             INSERT INTO facts (key, value)
             SELECT new.* FROM head, UNNEST($17::text[], $18::text[]) AS new
             ON CONFLICT (key) DO UPDATE SET value = excluded.value
         )",
        new_commands,
        &rows.command_ids,
        &rows.fingerprints,
        &rows.firsts,
        &rows.lasts,
        &rows.replies,
        &gone as &[&str],
        &keys as &[&str],
        &values as &[&str]
    );
    all.fetch_optional(connection).await
}
