//! The follower: another service's log, applied exactly once and in order to tables of this service.
//!
//! The checkpoint moves in the transaction of the rows. Events come off the bus as long as it delivers; a gap, a silent
//! bus or one that is away is healed from the owner's log over gRPC. What can't be applied halts the follower: a
//! skipped event could be a skipped revocation.

use std::future::Future;
use std::io::ErrorKind;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::{StreamExt as _, pin_mut};
use sqlx::{PgConnection, PgPool};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use crate::bus::Bus;
use crate::event::RecordedEvent;
use crate::feed::{Delivery, Feed};
use crate::log::Head;
use crate::owner::{Owner, OwnerError};
use crate::pace::{BATCH, Pace};
use crate::relay::chain;

/// Pages of the owner's log that wait to be applied.
const AHEAD: usize = 2;
/// How often the owner is asked where its log ends. What the bus holds back is noticed at the second look: within a
/// second, by which a revocation has to be known.
const POLL: Duration = Duration::from_millis(400);
/// The same while the bus does not deliver: then it is all there is.
const POLL_WITHOUT_BUS: Duration = Duration::from_millis(100);
/// For a page of the owner's log.
const PAGE_PATIENCE: Duration = Duration::from_secs(10);
/// Between attempts, while the database or the owner fails.
const RETRY: Duration = Duration::from_millis(200);
/// For a transaction, longer than any lock is waited for. A database that vanished would be waited for until TCP gives up.
const DATABASE_PATIENCE: Duration = Duration::from_secs(35);

/// What a follower does with the events.
pub trait Fold: Send + Sync + 'static {
    /// Applies events of the log `log`, in order, in the transaction that moves the checkpoint.
    fn apply(
        &self,
        connection: &mut PgConnection,
        log: &'static str,
        events: &[RecordedEvent],
    ) -> impl Future<Output = Result<(), FoldError>> + Send;
}

/// Why events were not applied.
#[derive(Debug, thiserror::Error)]
pub enum FoldError {
    /// This build can't decode or apply the event.
    #[error("the event at position {position} can't be applied")]
    Inapplicable {
        /// Where it stands.
        position: u64,
        /// What is wrong with it.
        #[source]
        reason: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The database failed.
    #[error("the database failed")]
    Database(#[from] sqlx::Error),
}

/// Why a follower stands still until someone looks after it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Halt {
    /// The log is another one than we followed so far.
    #[error("the log has epoch {found}, but {known} was followed so far: its database was swapped")]
    Epoch {
        /// Of our checkpoint.
        known: Uuid,
        /// Of the log.
        found: Uuid,
    },
    /// The log ends before our checkpoint.
    #[error(
        "the log ends at {head}, but was followed up to {checkpoint}: its database was restored from a backup"
    )]
    WentBack {
        /// Where the log ends.
        head: u64,
        /// How far we came.
        checkpoint: u64,
    },
    /// The log holds another event at our checkpoint: it went back, and grew again.
    #[error(
        "the log holds another event at {position} than was followed: its database was restored from a backup"
    )]
    Diverged {
        /// Where.
        position: u64,
    },
    /// An event can't be decoded or applied.
    #[error("{0}")]
    Inapplicable(Arc<str>),
}

/// How far a follower came.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Progress {
    /// Of the log, once it is known.
    pub epoch: Option<Uuid>,
    /// The last position applied.
    pub position: u64,
    /// The id of the event there.
    pub event_id: Option<Uuid>,
    /// When everything that the log held was known to be applied.
    pub current_at: Option<Instant>,
    /// Where the owner has said that its log ends, and when it was asked, while not all of that is applied.
    pub ahead: Option<(u64, Instant)>,
    /// Since when events are there that the database has not taken, and none since.
    pub held_up_since: Option<Instant>,
    /// Set if the follower stands still for good.
    pub halted: Option<Halt>,
}

/// Follows one log. Any number may run side by side on one database.
pub struct Follower<F> {
    log: &'static str,
    pool: PgPool,
    bus: Bus,
    owner: Owner,
    fold: Arc<F>,
    pace: Mutex<Pace>,
    progress: watch::Sender<Progress>,
}

#[derive(Debug, thiserror::Error)]
enum FollowError {
    #[error("halted")]
    Halt(#[from] Halt),
    #[error(transparent)]
    Fold(FoldError),
    #[error(transparent)]
    Owner(#[from] OwnerError),
    #[error("the database failed")]
    Database(#[from] sqlx::Error),
}

impl FollowError {
    /// Whether it is the end of the database's time.
    fn is_late(&self) -> bool {
        matches!(self, Self::Database(sqlx::Error::Io(error)) if error.kind() == ErrorKind::TimedOut)
    }
}

impl From<FoldError> for FollowError {
    fn from(error: FoldError) -> Self {
        match &error {
            FoldError::Inapplicable { .. } => Self::Halt(Halt::Inapplicable(chain(&error).into())),
            FoldError::Database(sqlx::Error::Database(refusal))
                if refusal.code().is_some_and(|code| is_for_good(&code)) =>
            {
                Self::Halt(Halt::Inapplicable(chain(&error).into()))
            }
            FoldError::Database(sqlx::Error::Decode(_) | sqlx::Error::Encode(_)) => {
                Self::Halt(Halt::Inapplicable(chain(&error).into()))
            }
            FoldError::Database(_) => Self::Fold(error),
        }
    }
}

/// Whether the database took the statement and refused what it says, so that trying again would be refused again: by
/// the class of the SQLSTATE (<https://www.postgresql.org/docs/current/errcodes-appendix.html>), for cardinality, data,
/// constraints, schema, limits and `RAISE`.
pub(crate) fn is_for_good(sqlstate: &str) -> bool {
    ["21", "22", "23", "42", "54", "P0"]
        .iter()
        .any(|class| sqlstate.starts_with(class))
}

/// What a transaction did with the events that it was given.
enum Applied {
    UpToDate,
    /// Something is missing between the checkpoint and them.
    Gap,
}

impl<F: Fold> Follower<F> {
    /// Follows the log of the service `log` into this database.
    pub fn new(log: &'static str, pool: PgPool, bus: Bus, owner: Owner, fold: Arc<F>) -> Self {
        Self {
            log,
            pool,
            bus,
            owner,
            fold,
            pace: Mutex::new(Pace::new(DATABASE_PATIENCE)),
            progress: watch::Sender::default(),
        }
    }

    /// Told of each change.
    #[must_use]
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// Follows until told to stop.
    pub async fn run(self, stop: CancellationToken) {
        let follow = async {
            let halt = self.follow().await;
            tracing::error!(log = self.log, reason = %halt, "follower halted");
            self.progress
                .send_modify(|progress| progress.halted = Some(halt));
            // A halted follower goes on saying so until the process ends.
            std::future::pending::<()>().await;
        };
        stop.run_until_cancelled(follow).await;
    }

    async fn follow(&self) -> Halt {
        while let Err(error) = self.load_checkpoint().await {
            tracing::warn!(
                log = self.log,
                error = chain(&error),
                "the checkpoint can't be read"
            );
            sleep(RETRY).await;
        }
        let connected = watch::Sender::new(false);
        let (mut delivered, mut _feed) = self.feed(&connected);
        let (heads, mut polled) = watch::channel(None);
        let poll = poll_owner(
            self.owner.clone(),
            self.log,
            self.progress.clone(),
            connected.subscribe(),
            heads,
        );
        let _poll = AbortOnDropHandle::new(tokio::spawn(poll));
        let mut batch = Vec::with_capacity(BATCH);
        let mut before = None;
        let mut pending: Option<Poll> = None;
        loop {
            let outcome = tokio::select! {
                1.. = delivered.recv_many(&mut batch, BATCH) => self.take(std::mem::take(&mut batch)).await,
                _ = polled.changed() => {
                    let poll = *polled.borrow_and_update();
                    // A bus that brought something since the last look is not silent.
                    let silent = !*connected.borrow() || before == Some(self.position());
                    let outcome = match poll {
                        Some(poll) => self.compare_with_owner(poll, silent, &mut pending).await,
                        None => Ok(()),
                    };
                    before = Some(self.position());
                    outcome
                }
            };
            match outcome {
                Ok(()) => self.settle(&mut pending),
                Err(FollowError::Halt(halt)) => return halt,
                Err(error) => {
                    tracing::warn!(
                        log = self.log,
                        error = chain(&error),
                        "following is held up"
                    );
                    sleep(RETRY).await;
                    // What the bus brought is gone with the failure, and the owner may be away: it is brought again.
                    if matches!(error, FollowError::Fold(_) | FollowError::Database(_)) {
                        let (again, task) = self.feed(&connected);
                        (delivered, _feed) = (again, task);
                    }
                }
            }
        }
    }

    /// Starts to bring events off the bus, from the checkpoint on.
    fn feed(
        &self,
        connected: &watch::Sender<bool>,
    ) -> (mpsc::Receiver<Delivery>, AbortOnDropHandle<()>) {
        let (deliveries, delivered) = mpsc::channel(4 * BATCH);
        let feed = Feed {
            log: self.log,
            bus: self.bus.clone(),
            deliveries,
            progress: self.progress(),
            connected: connected.clone(),
        };
        (delivered, AbortOnDropHandle::new(tokio::spawn(feed.run())))
    }

    fn position(&self) -> u64 {
        self.progress.borrow().position
    }

    async fn load_checkpoint(&self) -> Result<(), sqlx::Error> {
        let row = sqlx::query!(
            "SELECT epoch, position, event_id FROM checkpoints WHERE log = $1",
            self.log
        );
        let row = in_time(row.fetch_optional(&self.pool)).await?;
        if let Some(row) = row {
            self.moved_to(row.epoch, row.position.cast_unsigned(), row.event_id);
        }
        Ok(())
    }

    /// Applies what came off the bus, as far as nothing is missing in it; then reads the owner's log.
    async fn take(&self, deliveries: Vec<Delivery>) -> Result<(), FollowError> {
        let (known, position) = {
            let progress = self.progress.borrow();
            (progress.epoch, progress.position)
        };
        let mut events: Vec<RecordedEvent> = Vec::with_capacity(deliveries.len());
        let mut whole = true;
        for delivery in deliveries {
            match delivery {
                Delivery::Event { epoch, event } if Some(epoch) == known => {
                    // The event at the checkpoint itself shows whether this is still the log that was followed.
                    let next = events.last().map_or(position, |last| last.position + 1);
                    // A feed that began again brings again what is applied, or what waits here already.
                    if event.position < next {
                        continue;
                    }
                    whole = event.position == next
                        || (events.is_empty() && event.position == position + 1);
                    if whole {
                        events.push(event);
                    }
                }
                // The bus is never the truth: the owner knows whether its log was swapped, or the bus brings another's.
                Delivery::Event { .. } | Delivery::Unreadable => whole = false,
            }
            if !whole {
                break;
            }
        }
        if let Some(epoch) = known.filter(|_| !events.is_empty()) {
            whole &= matches!(self.apply(epoch, &events).await?, Applied::UpToDate);
        }
        if whole { Ok(()) } else { self.heal().await }
    }

    /// Reads on where the owner's log goes on and nothing else brings it.
    async fn compare_with_owner(
        &self,
        poll: Poll,
        silent: bool,
        pending: &mut Option<Poll>,
    ) -> Result<(), FollowError> {
        // The database may have gone back under us: what it holds is what was applied, not what we remember.
        self.load_checkpoint().await?;
        let (head, checkpoint) = (poll.head.position, poll.checkpoint);
        self.check_epoch(poll.head.epoch)?;
        if head < checkpoint {
            return Err(Halt::WentBack { head, checkpoint }.into());
        }
        if poll.diverged {
            let position = checkpoint;
            return Err(Halt::Diverged { position }.into());
        }
        // Under steady appends no answer is ever the end any more when it arrives: the oldest one that was not reached
        // yet tells how current we are. If the look before is still not reached, the bus delivers, but too late.
        if self.position() >= head {
            *pending = Some(poll);
        } else {
            let late = pending.is_some();
            pending.get_or_insert(poll);
            if silent || late {
                self.heal().await?;
            }
        }
        Ok(())
    }

    /// Says how current we are, once we have come to where the owner's log was known to end.
    fn settle(&self, pending: &mut Option<Poll>) {
        if let Some(poll) = pending.take_if(|poll| self.position() >= poll.head.position) {
            self.progress.send_modify(|progress| {
                progress.epoch = Some(poll.head.epoch);
                progress.current_at = Some(poll.asked_at);
                progress.held_up_since = None;
            });
        }
    }

    /// Applies the owner's log from the checkpoint on. The event at the checkpoint comes along, and is compared.
    async fn heal(&self) -> Result<(), FollowError> {
        let read = self.owner.read(self.position().saturating_sub(1)).await?;
        // Read and decoded while the pages before are applied.
        let (ahead, mut pages) = mpsc::channel(AHEAD);
        let _reading = AbortOnDropHandle::new(tokio::spawn(async move {
            pin_mut!(read);
            while let Some(page) = read.next().await {
                if ahead.send(page).await.is_err() {
                    break;
                }
            }
        }));
        let stalled = |_| tonic::Status::deadline_exceeded("the owner stopped sending events");
        while let Some(page) = timeout(PAGE_PATIENCE, pages.recv())
            .await
            .map_err(stalled)
            .map_err(OwnerError::from)?
        {
            let (epoch, events) = page?;
            self.check_epoch(epoch)?;
            if let Applied::Gap = self.apply(epoch, &events).await? {
                return Err(OwnerError::Malformed("log: a position is missing").into());
            }
        }
        Ok(())
    }

    fn check_epoch(&self, found: Uuid) -> Result<(), Halt> {
        match self.progress.borrow().epoch {
            Some(known) if known != found => Err(Halt::Epoch { known, found }),
            _ => Ok(()),
        }
    }

    fn pace(&self) -> MutexGuard<'_, Pace> {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Applies those of the events that lie behind the checkpoint, as many at a time as there is time for.
    async fn apply(&self, epoch: Uuid, events: &[RecordedEvent]) -> Result<Applied, FollowError> {
        let mut rest = events;
        let mut one_by_one = false;
        loop {
            let (most, patience) = {
                let pace = self.pace();
                (if one_by_one { 1 } else { pace.events }, pace.patience)
            };
            let (now, later) = rest.split_at(rest.len().min(most));
            let (before, begun) = (self.position(), Instant::now());
            match within(patience, self.transact(epoch, now)).await {
                // One event is to blame. Those before it are applied: a revocation may be among them.
                Err(FollowError::Halt(Halt::Inapplicable(_))) if now.len() > 1 => one_by_one = true,
                Ok(Applied::UpToDate) => {
                    if self.position() > before {
                        self.pace().applied(begun.elapsed());
                    }
                    if later.is_empty() {
                        return Ok(Applied::UpToDate);
                    }
                    rest = later;
                }
                outcome => {
                    if outcome.as_ref().is_err_and(FollowError::is_late) {
                        self.pace().slower(now.len());
                    }
                    if outcome.is_err() {
                        self.is_held_up(begun);
                    }
                    return outcome;
                }
            }
        }
    }

    /// Applies those of the events that lie behind the checkpoint, and moves it, in one transaction.
    async fn transact(
        &self,
        epoch: Uuid,
        events: &[RecordedEvent],
    ) -> Result<Applied, FollowError> {
        let mut transaction = self.pool.begin().await?;
        // Another process may follow into the same database: who holds the row is the one who moves it.
        let checkpoint = loop {
            let held = sqlx::query!(
                "SELECT epoch, position, event_id FROM checkpoints WHERE log = $1 FOR UPDATE",
                self.log
            );
            if let Some(checkpoint) = held.fetch_optional(&mut *transaction).await? {
                break checkpoint;
            }
            sqlx::query!(
                "INSERT INTO checkpoints (log, epoch, position) VALUES ($1, $2, 0) ON CONFLICT (log) DO NOTHING",
                self.log,
                epoch
            )
            .execute(&mut *transaction)
            .await?;
        };
        if checkpoint.epoch != epoch {
            return Err(Halt::Epoch {
                known: checkpoint.epoch,
                found: epoch,
            }
            .into());
        }
        let position = checkpoint.position.cast_unsigned();
        let (old, new) =
            events.split_at(events.partition_point(|event| event.position <= position));
        if let (Some(old), Some(known)) = (old.last(), checkpoint.event_id)
            && old.position == position
            && old.id != known
        {
            return Err(Halt::Diverged { position }.into());
        }
        let Some(last) = new.last() else {
            self.moved_to(epoch, position, checkpoint.event_id);
            return Ok(Applied::UpToDate);
        };
        if !(position + 1..)
            .zip(new)
            .all(|(expected, event)| event.position == expected)
        {
            self.moved_to(epoch, position, checkpoint.event_id);
            return Ok(Applied::Gap);
        }
        self.fold.apply(&mut transaction, self.log, new).await?;
        sqlx::query!(
            "UPDATE checkpoints SET position = $2, event_id = $3 WHERE log = $1",
            self.log,
            last.position.cast_signed(),
            last.id
        )
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        self.moved_to(epoch, last.position, Some(last.id));
        Ok(Applied::UpToDate)
    }

    fn is_held_up(&self, since: Instant) {
        self.progress.send_if_modified(|progress| {
            let first = progress.held_up_since.is_none();
            progress.held_up_since.get_or_insert(since);
            first
        });
    }

    fn moved_to(&self, epoch: Uuid, position: u64, event_id: Option<Uuid>) {
        self.progress.send_if_modified(|progress| {
            let moved = (progress.epoch, progress.position) != (Some(epoch), position);
            // What the database lost is not known any more.
            progress.current_at = progress
                .current_at
                .filter(|_| position >= progress.position);
            progress.held_up_since = progress
                .held_up_since
                .filter(|_| position <= progress.position);
            progress.ahead = progress.ahead.filter(|(head, _)| position < *head);
            progress.epoch = Some(epoch);
            progress.position = position;
            progress.event_id = event_id;
            moved
        });
    }
}

/// What the database says, unless it takes too long.
pub(crate) async fn in_time<T, E: From<sqlx::Error>>(
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    within(DATABASE_PATIENCE, work).await
}

async fn within<T, E: From<sqlx::Error>>(
    patience: Duration,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let late = |_| sqlx::Error::Io(ErrorKind::TimedOut.into());
    timeout(patience, work).await.map_err(late)?
}

/// How far this database has followed a log; none if it never began.
pub async fn checkpoint(pool: &PgPool, log: &str) -> Result<Option<Head>, sqlx::Error> {
    let row = sqlx::query!(
        "SELECT epoch, position FROM checkpoints WHERE log = $1",
        log
    )
    .fetch_optional(pool)
    .await?;
    Ok(row.map(|row| Head {
        epoch: row.epoch,
        position: row.position.cast_unsigned(),
    }))
}

/// What the owner said of its log's end.
#[derive(Clone, Copy)]
struct Poll {
    asked_at: Instant,
    /// How far we had come when we asked.
    checkpoint: u64,
    /// Whether the owner has another event there.
    diverged: bool,
    head: Head,
}

/// Asks the owner for ever; a task of its own, so that an owner that is slow or away never holds up the bus, and a database
/// that does not take what is there never keeps anybody from knowing of it.
async fn poll_owner(
    owner: Owner,
    log: &'static str,
    progress: watch::Sender<Progress>,
    mut bus_connected: watch::Receiver<bool>,
    heads: watch::Sender<Option<Poll>>,
) {
    let mut answering = true;
    loop {
        let asked_at = Instant::now();
        let (checkpoint, known) = {
            let progress = progress.borrow();
            (progress.position, progress.event_id)
        };
        match owner.head(checkpoint).await {
            Ok((head, there)) => {
                progress.send_if_modified(|progress| {
                    let further = head.position > progress.position && progress.ahead.is_none();
                    if further {
                        progress.ahead = Some((head.position, asked_at));
                    }
                    further
                });
                heads.send_replace(Some(Poll {
                    asked_at,
                    checkpoint,
                    diverged: known
                        .zip(there)
                        .is_some_and(|(known, there)| known != there),
                    head,
                }));
                answering = true;
            }
            Err(error) if answering => {
                tracing::warn!(
                    log,
                    error = chain(&error),
                    "the owner of the log does not answer"
                );
                answering = false;
            }
            Err(_) => {}
        }
        let on_bus = *bus_connected.borrow_and_update();
        let pause = if on_bus { POLL } else { POLL_WITHOUT_BUS };
        // A bus that goes away is a reason to ask at once.
        if let Ok(Err(_)) = timeout(pause, bus_connected.changed()).await {
            // The feed is no more.
            sleep(pause).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use bed::{Database, eventually, unique_id, unique_name};
    use time::OffsetDateTime;
    use tonic::transport::Endpoint;

    use super::*;
    use crate::bus::Settings;
    use crate::event::Metadata;

    const PATIENCE: Duration = Duration::from_millis(250);

    /// Takes for ever for several of these, and long for one.
    struct Laborious(u64);

    impl Fold for Laborious {
        async fn apply(
            &self,
            _connection: &mut PgConnection,
            _log: &'static str,
            events: &[RecordedEvent],
        ) -> Result<(), FoldError> {
            if events.iter().any(|event| event.position == self.0) {
                if events.len() > 1 {
                    std::future::pending::<()>().await;
                }
                sleep(3 * PATIENCE).await;
            }
            Ok(())
        }
    }

    async fn follower(database: &Database, fold: Laborious) -> Follower<Laborious> {
        crate::migrate(database.pool(), None).await.expect("tables");
        let nowhere = Settings {
            url: "nats://127.0.0.1:1".to_owned(),
            credentials: None,
            prefix: unique_name(),
            replicas: 1,
        };
        let bus = Bus::connect(nowhere).await.expect("an address");
        let owner = Owner::new(Endpoint::from_static("http://127.0.0.1:1").connect_lazy());
        let pool = database.another_pool(4);
        let mut follower = Follower::new("test", pool, bus, owner, Arc::new(fold));
        follower.pace = Mutex::new(Pace::new(PATIENCE));
        follower
    }

    fn events(positions: std::ops::RangeInclusive<u64>) -> Vec<RecordedEvent> {
        let event = |position| RecordedEvent {
            position,
            stream_id: "thing/a".to_owned(),
            version: position,
            id: unique_id(),
            event_type: "tharsis.test.v1.Happened".to_owned(),
            payload: bytes::Bytes::new(),
            metadata: Metadata::default(),
            recorded_at: OffsetDateTime::UNIX_EPOCH,
        };
        positions.map(event).collect()
    }

    #[tokio::test]
    async fn what_takes_too_long_is_applied_in_smaller_parts_and_at_last_alone_with_more_time() {
        let database = Database::create().await;
        let follower = follower(&database, Laborious(7)).await;
        let (epoch, events) = (unique_id(), events(1..=20));
        // As the owner's log is read: from the event at the checkpoint on.
        eventually(async || {
            let known = follower.position().saturating_sub(1);
            let page = &events[usize::try_from(known).expect("small")..];
            follower.apply(epoch, page).await.map_err(|error| {
                assert!(error.is_late(), "{error:?}");
                let progress = follower.progress.borrow();
                assert!(progress.held_up_since.is_some(), "{progress:?}");
                progress.position
            })
        })
        .await;
        let progress = follower.progress.borrow();
        assert_eq!((progress.position, progress.held_up_since), (20, None));
    }
}
