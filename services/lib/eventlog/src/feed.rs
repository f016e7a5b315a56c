//! The feed: a log's events off the bus, for a follower. It connects again for ever, and promises nothing: what it
//! misses, the follower heals from the owner.

use std::time::Duration;

use async_nats::jetstream::consumer::pull;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy};
use futures::StreamExt as _;
use tokio::sync::{mpsc, watch};
use uuid::Uuid;

use crate::bus::{self, Bus, BusError};
use crate::event::RecordedEvent;
use crate::follower::Progress;
use crate::relay::chain;

/// Between attempts, while NATS or the stream is away.
const RETRY: Duration = Duration::from_millis(250);
/// The server says that it is there this often when nothing happens; missing it ends the session.
const HEARTBEAT: Duration = Duration::from_millis(500);
/// Messages in a pull.
const PULL: usize = 2_000;
/// So far behind what was applied already, it is not worth reading through.
const BEHIND: u64 = 2 * PULL as u64;

/// What came off the bus.
pub(crate) enum Delivery {
    Event {
        epoch: Uuid,
        event: RecordedEvent,
    },
    /// Something that no relay of ours published, or that lies at another place than it says.
    Unreadable,
}

pub(crate) struct Feed {
    pub(crate) log: &'static str,
    pub(crate) bus: Bus,
    pub(crate) deliveries: mpsc::Sender<Delivery>,
    pub(crate) progress: watch::Receiver<Progress>,
    /// Whether the bus delivers at the moment.
    pub(crate) connected: watch::Sender<bool>,
}

impl Feed {
    /// Delivers until the follower is gone.
    pub(crate) async fn run(self) {
        let mut problem = String::new();
        loop {
            match self.deliver().await {
                Ok(()) => return,
                Err(error) => {
                    self.connected.send_replace(false);
                    let error = chain(&error);
                    if problem != error {
                        tracing::warn!(
                            log = self.log,
                            error,
                            "the bus is silent, following the owner"
                        );
                        problem = error;
                    }
                }
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn deliver(&self) -> Result<(), BusError> {
        let context = self.bus.jetstream()?;
        // From the event at the checkpoint, which the follower compares with the one that it applied.
        let start = self.progress.borrow().position.max(1);
        let config = pull::Config {
            deliver_policy: DeliverPolicy::ByStartSequence {
                start_sequence: start,
            },
            ack_policy: AckPolicy::None,
            memory_storage: true,
            num_replicas: 1,
            inactive_threshold: Duration::from_secs(30),
            ..pull::Config::default()
        };
        let stream = self.bus.stream_name(self.log);
        let consumer = context
            .create_consumer_on_stream(config, &stream)
            .await
            .map_err(BusError::jetstream)?;
        let granted = &consumer.cached_info().config;
        if granted.deliver_policy
            != (DeliverPolicy::ByStartSequence {
                start_sequence: start,
            })
            || granted.ack_policy != AckPolicy::None
            || !granted.filter_subject.is_empty()
            || !granted.filter_subjects.is_empty()
        {
            return Err(BusError::jetstream(
                "the server made another consumer than was asked for",
            ));
        }
        let mut messages = consumer
            .stream()
            .max_messages_per_batch(PULL)
            .heartbeat(HEARTBEAT)
            .expires(Duration::from_secs(5))
            .messages()
            .await
            .map_err(BusError::jetstream)?;
        if !self.connected.send_replace(true) {
            tracing::info!(log = self.log, start, "following the bus");
        }
        while let Some(message) = messages.next().await {
            let message = message.map_err(BusError::jetstream)?;
            let sequence = message.info().map_err(BusError::JetStream)?.stream_sequence;
            if sequence + BEHIND < self.progress.borrow().position {
                return Err(BusError::jetstream(
                    "the owner's log was quicker, going on behind it",
                ));
            }
            let read = message
                .headers
                .as_ref()
                .and_then(|headers| bus::read(headers, message.payload.clone()));
            let delivery = match read {
                Some((epoch, event)) if event.position == sequence => {
                    Delivery::Event { epoch, event }
                }
                _ => Delivery::Unreadable,
            };
            if self.deliveries.send(delivery).await.is_err() {
                return Ok(());
            }
        }
        Err(BusError::jetstream("the subscription ended"))
    }
}
