//! The relay: the log's events onto its JetStream stream, so that sequence == position.
//!
//! The stream's tail is the cursor. Every publish names the sequence before it, so two relays can't hurt each other,
//! and whatever NATS loses from the tail is filled again with the same sequences. It names the message before it too:
//! were something else stored in place of a position, the position behind it would still have the right sequence before
//! it, and would hide the hole. For the same reason each read of the log, or of what was appended here just now, begins
//! at the last event published.
//!
//! Servers before 2.15 know the last message's id after a restart only where the message is younger than the stream's
//! duplicate window, and refuse then whatever names one. Once the tail is seen to be what the log holds there, the first
//! message behind it goes without.

use std::collections::BTreeSet;
use std::time::Duration;

use async_nats::HeaderValue;
use async_nats::jetstream::context::{
    CreateStreamErrorKind, GetStreamError, GetStreamErrorKind, PublishError, PublishErrorKind,
    UpdateStreamError,
};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::{Config, LastRawMessageErrorKind, Stream};
use async_nats::jetstream::{Context, ErrorCode};
use futures::stream::FuturesOrdered;
use futures::{FutureExt as _, StreamExt as _};
use serde_json::{Map, Value};
use sqlx::PgConnection;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use crate::bus::{self, Bus, BusError};
use crate::event::RecordedEvent;
use crate::log::{self, EventLog, LogError};

/// Events read, or sent, at a time.
const PAGE: usize = 500;
/// Pages that wait to be published.
const AHEAD: usize = 2;
/// With so many publishes that have no acknowledgement yet, no further page is sent.
const IN_FLIGHT: usize = 2_000;
/// How often the log is looked at without being told of an append: another process may have made it.
const POLL: Duration = Duration::from_millis(50);
/// From one page to the next, where events come one after the other: those that come meanwhile cost one read.
const PACE: Duration = Duration::from_millis(4);
/// How often an idle relay looks whether the stream still ends where it left it: nothing else would tell.
const LOOK: Duration = Duration::from_secs(1);
/// How long the database may take for a page. A connection to one that vanished would be waited on for minutes.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between attempts, while NATS is away.
const RETRY: Duration = Duration::from_millis(250);

/// How the relay is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RelayState {
    /// The last position known to be in the stream.
    pub published: u64,
    /// Why it stands still, until it is seen to go on; or what the stream lacks that it goes on with.
    pub problem: Option<String>,
    /// What it found in the stream that the log, of the same epoch, does not hold: it stands until the stream is seen to
    /// agree, whatever else is a problem meanwhile.
    pub contradiction: Option<String>,
}

/// Publishes one log. Any number may run side by side.
pub struct Relay {
    log: EventLog,
    bus: Bus,
    state: watch::Sender<RelayState>,
}

#[derive(Debug, thiserror::Error)]
enum RelayError {
    #[error(transparent)]
    Bus(#[from] BusError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error("a publish was not acknowledged")]
    Publish(#[from] PublishError),
    #[error("position {position} was stored as sequence {sequence}")]
    OutOfStep { position: u64, sequence: u64 },
    #[error(
        "the stream {stream} ends at {sequence}, but the log at {position}: {}; {}",
        RESTORED,
        REFILLED
    )]
    StreamAhead {
        stream: String,
        sequence: u64,
        position: u64,
    },
    #[error(
        "the stream {stream} holds a log of epoch {found}, ours is {epoch}; delete the stream and it is filled again"
    )]
    ForeignEpoch {
        stream: String,
        found: String,
        epoch: Uuid,
    },
    #[error(
        "the stream {stream} holds another event at {position} than the log: {}; {}",
        RESTORED,
        REFILLED
    )]
    Diverged { stream: String, position: u64 },
    #[error(
        "the stream {stream} is not as it is to be ({differs}), and NATS does not change that; where it can't be as \
         THARSIS_NATS_REPLICAS says, change that; else delete the stream and it is filled again from the log"
    )]
    NotOurs {
        stream: String,
        differs: String,
        #[source]
        refused: UpdateStreamError,
    },
    #[error(
        "the database holds a log of epoch {found}, ours was {epoch}: start this service again"
    )]
    Swapped { found: Uuid, epoch: Uuid },
    #[error(
        "the stream {stream} lacks {missing} positions before its end, and begins at {first}; delete the stream and it is \
         filled again from the log"
    )]
    Incomplete {
        stream: String,
        missing: u64,
        first: u64,
    },
    #[error("the stream ended at {published}, and now at {tail}: its tail is lost")]
    TailLost { published: u64, tail: u64 },
    #[error("the database has not answered for {} s", PATIENCE.as_secs())]
    Silent,
    #[error("reading or publishing ended without a word")]
    HalfGone,
}

/// What comes first: an issuer whose log goes on in its old epoch has back for good what was revoked since the backup.
const RESTORED: &str = "if the database was restored from a backup, first stop the service and give its log a new epoch \
                        (README, \"Restoring a database from a backup\")";
const REFILLED: &str = "then delete the stream, and it is filled again from the log";

impl RelayError {
    /// Whether the stream holds what the log, of the same epoch, does not.
    fn is_contradiction(&self) -> bool {
        matches!(self, Self::StreamAhead { .. } | Self::Diverged { .. })
    }

    /// Whether the stream did not end before what was published: servers look at that first, and tell of a duplicate
    /// only then.
    fn is_wrong_last_sequence(&self) -> bool {
        matches!(self, Self::Publish(error) if error.kind() == PublishErrorKind::WrongLastSequence)
    }

    /// Whether the last message, of the right sequence, has another id than what was published, or one that the server
    /// does not remember.
    fn is_wrong_last_message(&self) -> bool {
        matches!(self, Self::Publish(error) if error.kind() == PublishErrorKind::WrongLastMessageId)
    }
}

impl Relay {
    /// A relay of this log.
    #[must_use]
    pub fn new(log: EventLog, bus: Bus) -> Self {
        Self {
            log,
            bus,
            state: watch::Sender::default(),
        }
    }

    /// Told of each change.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<RelayState> {
        self.state.subscribe()
    }

    /// Publishes until told to stop. On any error it begins again from the stream's tail, and at once where another relay
    /// was quicker, or the server may not remember the last message's id.
    pub async fn run(self, stop: CancellationToken) {
        let session = async {
            // The position behind which that was so: refused there again, it is something else.
            let mut forgotten = None;
            loop {
                let Err(error) = self.publish_from_tail(forgotten).await;
                if error.is_wrong_last_message() {
                    let last = Some(self.state.borrow().published);
                    if std::mem::replace(&mut forgotten, last) != last {
                        continue;
                    }
                }
                if error.is_wrong_last_sequence() && self.is_overtaken().await.unwrap_or(false) {
                    continue;
                }
                self.report(&error);
                tokio::time::sleep(RETRY).await;
            }
        };
        Box::pin(stop.run_until_cancelled(session)).await;
    }

    fn report(&self, error: &RelayError) {
        let problem = chain(error);
        self.state.send_if_modified(|state| {
            if state.problem.as_ref() == Some(&problem) {
                return false;
            }
            if error.is_contradiction() {
                tracing::error!(log = self.log.name(), %problem, "the stream contradicts the log");
                state.contradiction = Some(problem.clone());
            } else {
                tracing::warn!(log = self.log.name(), %problem, "relay begins again from the stream's tail");
            }
            state.problem = Some(problem);
            true
        });
    }

    /// Whether the stream has come further than we knew.
    async fn is_overtaken(&self) -> Result<bool, RelayError> {
        let stream = self.stream(&self.bus.jetstream()?).await?;
        Ok(stream.cached_info().state.last_sequence > self.state.borrow().published)
    }

    /// The stream agrees with the log. Whether it can be published to is not known yet: a problem of another kind stands
    /// until it is, so that one that stays is told once.
    fn agrees(&self, published: u64) {
        self.state.send_if_modified(|state| {
            let contradicted = state.contradiction.take().is_some();
            if contradicted {
                state.problem = None;
            }
            std::mem::replace(&mut state.published, published) != published || contradicted
        });
    }

    /// It publishes, also where the stream lacks something before its end: that no relay brings back, and followers have
    /// it from the log's owner.
    fn goes_on(&self, published: u64, incomplete: Option<&RelayError>) {
        let problem = incomplete.map(ToString::to_string);
        self.state.send_if_modified(|state| {
            let new = RelayState {
                published,
                problem,
                contradiction: None,
            };
            if let Some(problem) = &new.problem
                && state.problem != new.problem
            {
                tracing::warn!(log = self.log.name(), %problem, "the stream is not whole");
            }
            let changed = *state != new;
            *state = new;
            changed
        });
    }

    /// The first message names the one before it, unless that is at the position whose id is `forgotten`.
    async fn publish_from_tail(
        &self,
        forgotten: Option<u64>,
    ) -> Result<std::convert::Infallible, RelayError> {
        let context = self.bus.jetstream()?;
        let stream = self.stream(&context).await?;
        let Tail {
            sequence: tail,
            event_id,
            mut incomplete,
        } = self.tail(&stream).await?;
        self.put_right(&context, &stream.cached_info().config)
            .await?;
        self.agrees(tail);
        let (pages, mut messages) = mpsc::channel(AHEAD);
        let named = event_id.filter(|_| forgotten != Some(tail));
        let (log, bus) = (self.log.clone(), self.bus.clone());
        let reader = read(log, bus, tail, event_id, named, pages);
        let reader = AbortOnDropHandle::new(tokio::spawn(reader));
        let publisher = async {
            let mut acknowledgements = FuturesOrdered::new();
            let mut published = tail;
            let mut look = tokio::time::interval_at(Instant::now() + LOOK, LOOK);
            look.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    biased;
                    Some(acknowledged) = acknowledgements.next(), if !acknowledgements.is_empty() => {
                        published = acknowledged?;
                        // Under load many are there at once: who watches is told once.
                        while let Some(Some(acknowledged)) = acknowledgements.next().now_or_never() {
                            published = acknowledged?;
                        }
                        self.goes_on(published, incomplete.as_ref());
                    }
                    page = messages.recv(), if acknowledgements.len() < IN_FLIGHT => {
                        for Outgoing { position, subject, message } in page.ok_or(RelayError::HalfGone)? {
                            let sent = context.send_publish(subject, message).await?;
                            acknowledgements.push_back(async move {
                                let sequence = sent.await?.sequence;
                                if sequence == position {
                                    Ok(position)
                                } else {
                                    Err(RelayError::OutOfStep { position, sequence })
                                }
                            });
                        }
                    }
                    _ = look.tick(), if acknowledgements.is_empty() => {
                        let now = self.tail(&self.stream(&context).await?).await?;
                        let tail = now.sequence;
                        if tail < published {
                            return Err(RelayError::TailLost { published, tail });
                        }
                        incomplete = now.incomplete;
                        self.goes_on(published, incomplete.as_ref());
                    }
                }
            }
        };
        tokio::select! {
            failed = publisher => failed,
            failed = reader => failed.unwrap_or(Err(RelayError::HalfGone)),
        }
    }

    /// The stream, which is made if there is none.
    async fn stream(&self, context: &Context) -> Result<Stream, RelayError> {
        let config = self.bus.stream_config(self.log.name());
        Ok(match context.get_stream(&config.name).await {
            Err(error) if is_missing(&error) => match context.create_stream(&config).await {
                // Another relay was quicker.
                Err(error) if matches!(error.kind(), CreateStreamErrorKind::JetStream(ref e) if e.error_code() == ErrorCode::STREAM_NAME_EXIST) => {
                    context
                        .get_stream(&config.name)
                        .await
                        .map_err(BusError::jetstream)?
                }
                created => created.map_err(BusError::jetstream)?,
            },
            found => found.map_err(BusError::jetstream)?,
        })
    }

    /// Has a stream that was made otherwise, by an older version or somebody else, keep what it is given.
    async fn put_right(&self, context: &Context, found: &Config) -> Result<(), RelayError> {
        let config = self.bus.put_right(self.log.name(), found);
        if config == *found {
            return Ok(());
        }
        let differs = differences(found, &config);
        match context.update_stream(&config).await {
            Ok(_) => {
                tracing::info!(stream = config.name, differs, "the stream is put right");
                Ok(())
            }
            Err(refused) if matches!(refused.kind(), CreateStreamErrorKind::JetStream(_)) => {
                Err(RelayError::NotOurs {
                    stream: config.name,
                    differs,
                    refused,
                })
            }
            Err(error) => Err(BusError::jetstream(error).into()),
        }
    }

    /// Where the stream ends, which is ours and holds there what the log holds.
    async fn tail(&self, stream: &Stream) -> Result<Tail, RelayError> {
        let epoch = self.log.epoch();
        let head = self.log.head().await?;
        if head.epoch != epoch {
            let found = head.epoch;
            return Err(RelayError::Swapped { found, epoch });
        }
        let state = &stream.cached_info().state;
        let sequence = state.last_sequence;
        if sequence == 0 {
            return Ok(Tail::default());
        }
        // The last message tells whose log it is. Only where nothing is retained is there nothing to tell; an answer
        // that fails to come must not pass for that.
        let last = match stream.get_raw_message(sequence).await {
            Ok(last) => Some(last),
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => None,
            Err(error) => return Err(BusError::jetstream(error).into()),
        };
        let header = |name: &str| {
            let headers = last.as_ref().map(|last| &last.headers)?;
            Some(headers.get(name).map_or("none", HeaderValue::as_str))
        };
        if let Some(found) = header("ce-epoch").filter(|found| *found != epoch.to_string()) {
            return Err(RelayError::ForeignEpoch {
                found: found.to_owned(),
                stream: self.bus.stream_name(self.log.name()),
                epoch,
            });
        }
        if sequence > head.position {
            return Err(RelayError::StreamAhead {
                stream: self.bus.stream_name(self.log.name()),
                sequence,
                position: head.position,
            });
        }
        let event_id = self.log.event_id(sequence).await?;
        if header("ce-id").is_some_and(|found| event_id.is_none_or(|id| id.to_string() != found)) {
            return Err(RelayError::Diverged {
                stream: self.bus.stream_name(self.log.name()),
                position: sequence,
            });
        }
        Ok(Tail {
            sequence,
            event_id: event_id.filter(|_| last.is_some()),
            incomplete: (state.messages < sequence).then(|| RelayError::Incomplete {
                stream: self.bus.stream_name(self.log.name()),
                missing: sequence - state.messages,
                first: state.first_sequence,
            }),
        })
    }
}

/// A message that is ready to be published.
struct Outgoing {
    position: u64,
    subject: String,
    message: PublishMessage,
}

/// Sends on what stands behind a position, page by page, as it comes, while what was read before is published: from
/// memory where it was appended here just now, or from the log. `known` is the event's id there, if it is known, and `named`
/// the one that the next message names. Ends only with an error.
async fn read(
    log: EventLog,
    bus: Bus,
    mut after: u64,
    mut known: Option<Uuid>,
    mut named: Option<Uuid>,
    pages: mpsc::Sender<Vec<Outgoing>>,
) -> Result<std::convert::Infallible, RelayError> {
    let mut head = log.watch();
    // The pool would ask a connection that lies idle whether it lives, before each page.
    let mut connection = log.pool().acquire().await.map_err(LogError::from)?;
    // Whether another process may have appended something.
    let mut suspicious = true;
    loop {
        // Seen before reading, so that an append during the read wakes us again.
        head.mark_unchanged();
        let begun = Instant::now();
        let recent = known.and_then(|known| log.recent().take(after, known));
        let recent = recent.filter(|events| !(events.is_empty() && suspicious));
        let (page, is_last) = if let Some(page) = recent {
            (page, true)
        } else {
            let page = read_page(&mut connection, after, known).await?;
            let page = page.ok_or_else(|| RelayError::Diverged {
                stream: bus.stream_name(log.name()),
                position: after,
            })?;
            // A full one has one less behind the event that it begins with.
            let is_last = page.len() + 1 < PAGE;
            (page, is_last)
        };
        let is_empty = page.is_empty();
        if !is_empty {
            let messages = page.into_iter().map(|event| {
                (after, known) = (event.position, Some(event.id));
                outgoing(&log, &bus, &event, named.replace(event.id))
            });
            // Memory holds more than a page, and while one is sent no acknowledgement is looked at.
            let mut messages = messages.peekable();
            while messages.peek().is_some() {
                let page = messages.by_ref().take(PAGE).collect();
                if pages.send(page).await.is_err() {
                    return Err(RelayError::HalfGone);
                }
            }
        }
        if is_last {
            let told = tokio::time::timeout(POLL, head.changed()).await;
            suspicious = !matches!(told, Ok(Ok(())));
            if let Ok(Err(_)) = told {
                // Nobody tells of appends any more: another process may still make some.
                tokio::time::sleep(POLL).await;
            }
            if !is_empty {
                tokio::time::sleep_until(begun + PACE).await;
            }
        }
    }
}

/// What the log holds behind a position. `None` if it does not hold there what we know.
async fn read_page(
    connection: &mut PgConnection,
    after: u64,
    known: Option<Uuid>,
) -> Result<Option<Vec<RecordedEvent>>, RelayError> {
    let page = log::read(connection, after.saturating_sub(1), PAGE as u64);
    let page = tokio::time::timeout(PATIENCE, page).await;
    let mut page = page.map_err(|_| RelayError::Silent)??;
    if after > 0 {
        let there = page.first().filter(|event| event.position == after);
        if there.is_none_or(|event| known.is_some_and(|known| known != event.id)) {
            return Ok(None);
        }
        page.remove(0);
    }
    Ok(Some(page))
}

fn outgoing(log: &EventLog, bus: &Bus, event: &RecordedEvent, previous: Option<Uuid>) -> Outgoing {
    let message = PublishMessage::build()
        .payload(event.payload.clone())
        .headers(bus::headers(log.name(), log.epoch(), event))
        .expected_last_sequence(event.position - 1);
    Outgoing {
        position: event.position,
        subject: bus.subject(log.name(), event),
        message: match previous {
            Some(id) => message.expected_last_message_id(id.to_string()),
            None => message,
        },
    }
}

/// Where the stream ends.
#[derive(Default)]
struct Tail {
    /// 0 for an empty stream.
    sequence: u64,
    /// Of the message there, if it is retained.
    event_id: Option<Uuid>,
    /// What is missing before.
    incomplete: Option<RelayError>,
}

/// What is not as it is to be: `max_msgs is 5 and not -1, …`.
fn differences(found: &Config, right: &Config) -> String {
    let fields = |config| serde_json::to_value(config).unwrap_or_default();
    let (found, right) = (fields(found), fields(right));
    let names = [&found, &right].into_iter().filter_map(Value::as_object);
    let names: BTreeSet<&String> = names.flat_map(Map::keys).collect();
    let differing = names
        .into_iter()
        .filter(|name| found[*name] != right[*name])
        .map(|name| format!("{name} is {} and not {}", found[name], right[name]));
    differing.collect::<Vec<_>>().join(", ")
}

fn is_missing(error: &GetStreamError) -> bool {
    matches!(error.kind(), GetStreamErrorKind::JetStream(ref error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND)
}

/// An error with its causes.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
