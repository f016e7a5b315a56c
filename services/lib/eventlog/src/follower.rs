//! The follower: another service's log, applied exactly once and in order to tables of this service.
//!
//! The checkpoint moves in the transaction of the rows. Events come off the bus as long as it delivers; a gap, a silent
//! bus or one that is away is healed from the owner's log over gRPC. What can't be applied halts the follower: a
//! skipped event could be a skipped revocation.

use std::future::Future;
use std::sync::Arc;
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
use crate::relay::chain;

/// Events in a transaction at most.
const BATCH: usize = 500;
/// How often the owner is asked where its log ends.
const POLL: Duration = Duration::from_secs(1);
/// The same while the bus does not deliver: then it is all there is.
const POLL_WITHOUT_BUS: Duration = Duration::from_millis(100);
/// For a page of the owner's log.
const PAGE_PATIENCE: Duration = Duration::from_secs(10);
/// Between attempts, while the database or the owner fails.
const RETRY: Duration = Duration::from_millis(200);

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
    /// When everything that the log held was known to be applied.
    pub current_at: Option<Instant>,
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

impl From<FoldError> for FollowError {
    fn from(error: FoldError) -> Self {
        match &error {
            FoldError::Inapplicable { .. } => Self::Halt(Halt::Inapplicable(chain(&error).into())),
            // The database took the statement and refused the data: trying again would be refused again.
            FoldError::Database(sqlx::Error::Database(refusal))
                if refusal
                    .code()
                    .is_some_and(|code| code.starts_with("22") || code.starts_with("23")) =>
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
        let (deliveries, mut delivered) = mpsc::channel(4 * BATCH);
        let connected = watch::Sender::new(false);
        let bus_connected = connected.subscribe();
        let feed = Feed {
            log: self.log,
            bus: self.bus.clone(),
            deliveries,
            progress: self.progress(),
            connected,
        };
        let _feed = AbortOnDropHandle::new(tokio::spawn(feed.run()));
        let (heads, mut polled) = watch::channel(None);
        let poll = poll_owner(
            self.owner.clone(),
            self.log,
            self.progress(),
            bus_connected.clone(),
            heads,
        );
        let _poll = AbortOnDropHandle::new(tokio::spawn(poll));
        let mut seen = u64::MAX;
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            let outcome = tokio::select! {
                1.. = delivered.recv_many(&mut batch, BATCH) => self.take(std::mem::take(&mut batch)).await,
                _ = polled.changed() => {
                    // A bus that brought something since the last look is not silent.
                    let silent = !*bus_connected.borrow() || seen == self.position();
                    let poll = *polled.borrow_and_update();
                    let outcome = match poll {
                        Some(poll) => self.compare_with_owner(poll, silent).await,
                        None => Ok(()),
                    };
                    seen = self.position();
                    outcome
                }
            };
            match outcome {
                Ok(()) => {}
                Err(FollowError::Halt(halt)) => return halt,
                Err(error) => {
                    tracing::warn!(
                        log = self.log,
                        error = chain(&error),
                        "following is held up"
                    );
                    sleep(RETRY).await;
                }
            }
        }
    }

    fn position(&self) -> u64 {
        self.progress.borrow().position
    }

    async fn load_checkpoint(&self) -> Result<(), sqlx::Error> {
        if let Some(Head { epoch, position }) = checkpoint(&self.pool, self.log).await? {
            self.moved_to(epoch, position);
        }
        Ok(())
    }

    /// Applies what came off the bus; on a gap, reads the owner's log instead.
    async fn take(&self, deliveries: Vec<Delivery>) -> Result<(), FollowError> {
        let (known, position) = {
            let progress = self.progress.borrow();
            (progress.epoch, progress.position)
        };
        let mut events: Vec<RecordedEvent> = Vec::with_capacity(deliveries.len());
        for delivery in deliveries {
            match delivery {
                // A feed that began again brings again what is applied, or what waits here already.
                Delivery::Event { epoch, event } if Some(epoch) == known => {
                    if event.position > events.last().map_or(position, |last| last.position) {
                        events.push(event);
                    }
                }
                // The bus is never the truth: the owner knows whether its log was swapped, or the bus brings another's.
                Delivery::Event { .. } | Delivery::Unreadable => return self.heal().await,
            }
        }
        let Some(epoch) = known.filter(|_| !events.is_empty()) else {
            return Ok(());
        };
        match self.apply(epoch, &events).await? {
            Applied::UpToDate => Ok(()),
            Applied::Gap => self.heal().await,
        }
    }

    /// Reads on where the owner's log goes on and nothing else brings it.
    async fn compare_with_owner(&self, poll: Poll, silent: bool) -> Result<(), FollowError> {
        let Poll {
            asked_at,
            checkpoint,
            head: Head {
                epoch,
                position: head,
            },
        } = poll;
        self.check_epoch(epoch)?;
        if head < checkpoint {
            return Err(Halt::WentBack { head, checkpoint }.into());
        }
        if self.position() < head && silent {
            self.heal().await?;
        }
        if self.position() >= head {
            self.progress.send_modify(|progress| {
                progress.epoch = Some(epoch);
                progress.current_at = Some(asked_at);
            });
        }
        Ok(())
    }

    /// Applies the owner's log from the checkpoint on.
    async fn heal(&self) -> Result<(), FollowError> {
        let pages = self.owner.read(self.position()).await?;
        pin_mut!(pages);
        let stalled = |_| tonic::Status::deadline_exceeded("the owner stopped sending events");
        while let Some(page) = timeout(PAGE_PATIENCE, pages.next())
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

    /// Applies those of the events that lie behind the checkpoint.
    async fn apply(&self, epoch: Uuid, events: &[RecordedEvent]) -> Result<Applied, FollowError> {
        match self.transact(epoch, events).await {
            // One event is to blame. Those before it are applied: a revocation may be among them.
            Err(FollowError::Halt(Halt::Inapplicable(_))) if events.len() > 1 => {
                for event in events {
                    if let Applied::Gap = self.transact(epoch, std::slice::from_ref(event)).await? {
                        return Ok(Applied::Gap);
                    }
                }
                Ok(Applied::UpToDate)
            }
            outcome => outcome,
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
        sqlx::query!(
            "INSERT INTO checkpoints (log, epoch, position) VALUES ($1, $2, 0) ON CONFLICT (log) DO NOTHING",
            self.log,
            epoch
        )
        .execute(&mut *transaction)
        .await?;
        let checkpoint = sqlx::query!(
            "SELECT epoch, position FROM checkpoints WHERE log = $1 FOR UPDATE",
            self.log
        )
        .fetch_one(&mut *transaction)
        .await?;
        if checkpoint.epoch != epoch {
            return Err(Halt::Epoch {
                known: checkpoint.epoch,
                found: epoch,
            }
            .into());
        }
        let position = checkpoint.position.cast_unsigned();
        let new = &events[events.partition_point(|event| event.position <= position)..];
        let Some(last) = new.last().map(|event| event.position) else {
            self.moved_to(epoch, position);
            return Ok(Applied::UpToDate);
        };
        if !(position + 1..)
            .zip(new)
            .all(|(expected, event)| event.position == expected)
        {
            return Ok(Applied::Gap);
        }
        self.fold.apply(&mut transaction, self.log, new).await?;
        sqlx::query!(
            "UPDATE checkpoints SET position = $2 WHERE log = $1",
            self.log,
            last.cast_signed()
        )
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        self.moved_to(epoch, last);
        Ok(Applied::UpToDate)
    }

    fn moved_to(&self, epoch: Uuid, position: u64) {
        self.progress.send_modify(|progress| {
            progress.epoch = Some(epoch);
            progress.position = position;
        });
    }
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
    head: Head,
}

/// Asks the owner for ever; a task of its own, so that an owner that is slow or away never holds up the bus.
async fn poll_owner(
    owner: Owner,
    log: &'static str,
    progress: watch::Receiver<Progress>,
    mut bus_connected: watch::Receiver<bool>,
    heads: watch::Sender<Option<Poll>>,
) {
    let mut answering = true;
    loop {
        let (asked_at, checkpoint) = (Instant::now(), progress.borrow().position);
        match owner.head().await {
            Ok(head) => {
                heads.send_replace(Some(Poll {
                    asked_at,
                    checkpoint,
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
