//! The relay: a filled log into an empty stream, against the same messages published by someone who has them ready,
//! plainly, and under the same conditions.

use std::time::{Duration, Instant};

use async_nats::HeaderMap;
use async_nats::jetstream::{self, message::PublishMessage, stream};
use bed::{Database, shared_nats_url, unique_id, unique_name};
use bytes::Bytes;
use eventlog::bus::{Bus, Settings};
use eventlog::{Append, EventLog, Expected, Metadata, NewEvent, Relay, StreamAppend, StreamId};
use futures::TryStreamExt as _;
use futures::stream::{FuturesOrdered, FuturesUnordered};
use tokio_util::sync::CancellationToken;

use crate::report::{Row, report};

const LOG: &str = "bench";
/// As the relay has it.
const IN_FLIGHT: usize = 2_000;
const PAYLOAD: &[u8] =
    b"\x0a\x1bgrp_01hz3x8v4ye2nrkq3w5m7p9t\x12\x12acme/prod/deployer\x1a\x0euser:dev/alice";

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Rounds; each relays, and publishes plainly, the whole log.
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// In the log.
    #[arg(long, default_value_t = 50_000)]
    events: u32,
}

struct Message {
    id: String,
    subject: String,
    headers: HeaderMap,
    payload: Bytes,
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let database = Database::create().await;
    eventlog::migrate(database.pool(), None).await?;
    let log = EventLog::open(LOG, database.another_pool(4)).await?;
    fill(&log, arguments.events).await?;
    let context = jetstream::new(async_nats::connect(shared_nats_url()).await?);
    let (mut relayed, mut published, mut guarded) = (Vec::new(), Vec::new(), Vec::new());
    let mut messages = Vec::new();
    for round in 1..=arguments.rounds {
        let prefix = unique_name();
        let stream = format!("{prefix}_{LOG}").to_ascii_uppercase();
        let time = relay(&log, &prefix, arguments.events).await?;
        relayed.push(f64::from(arguments.events) / time.as_secs_f64());
        if messages.is_empty() {
            messages = read(&context, &stream, arguments.events).await?;
        }
        context.delete_stream(stream).await?;
        let rate = |time: Duration| f64::from(arguments.events) / time.as_secs_f64();
        published.push(rate(publish(&context, &messages, false).await?));
        guarded.push(rate(publish(&context, &messages, true).await?));
        let of = |rates: &[f64]| rates.last().copied().unwrap_or_default();
        eprintln!(
            "round {round}: relay {:.0}, plain publish {:.0}, naming what is before {:.0} events/s",
            of(&relayed),
            of(&published),
            of(&guarded)
        );
    }
    let row = Row::new("relay", "events/s", &relayed)
        .against("plain pipelined publish", &published, Some(0.8))
        .against("naming what is before", &guarded, None);
    report("relay", &[row])
}

async fn fill(log: &EventLog, events: u32) -> anyhow::Result<()> {
    let mut appends = FuturesUnordered::new();
    for _ in 0..events {
        let id = unique_id();
        let append = Append {
            streams: vec![StreamAppend {
                stream_id: StreamId::new("thing", id.simple()),
                expected: Expected::Any,
                events: vec![NewEvent {
                    id,
                    event_type: "tharsis.bench.v1.Happened",
                    payload: PAYLOAD.to_vec(),
                }],
            }],
            metadata: Metadata {
                actor: "user:dev/alice".to_owned(),
                traceparent: None,
            },
            ..Append::default()
        };
        appends.push(log.append(append));
        if appends.len() >= 1_000 {
            appends.try_next().await?;
        }
    }
    appends.try_collect::<Vec<_>>().await?;
    Ok(())
}

async fn relay(log: &EventLog, prefix: &str, events: u32) -> anyhow::Result<Duration> {
    let settings = Settings {
        url: shared_nats_url(),
        credentials: None,
        prefix: prefix.to_owned(),
        replicas: 1,
    };
    let relay = Relay::new(log.clone(), Bus::connect(settings).await?);
    let (mut state, stop) = (relay.state(), CancellationToken::new());
    let task = tokio::spawn(relay.run(stop.clone()));
    // From the first acknowledgement seen, so that neither side's connecting counts.
    let from = state.wait_for(|state| state.published > 0).await?.published;
    let start = Instant::now();
    state
        .wait_for(|state| state.published >= u64::from(events))
        .await?;
    let time = start.elapsed();
    stop.cancel();
    task.await?;
    let share = f64::from(events) / (f64::from(events) - f64::from(u32::try_from(from)?));
    Ok(time.mul_f64(share))
}

/// What the relay published, less what it expects of the stream.
async fn read(
    context: &jetstream::Context,
    stream: &str,
    events: u32,
) -> anyhow::Result<Vec<Message>> {
    let stream = context.get_stream(stream).await?;
    let config = jetstream::consumer::pull::OrderedConfig::default();
    let mut delivered = stream.create_consumer(config).await?.messages().await?;
    let mut messages = Vec::new();
    while messages.len() < events as usize {
        let Some(message) = delivered.try_next().await? else {
            break;
        };
        let mut headers = HeaderMap::new();
        for (name, values) in message.headers.iter().flat_map(HeaderMap::iter) {
            if !AsRef::<str>::as_ref(name).starts_with("Nats-Expected-") {
                headers.insert(name.clone(), values[0].clone());
            }
        }
        let id = headers.get("Nats-Msg-Id").map(ToString::to_string);
        messages.push(Message {
            id: id.unwrap_or_default(),
            subject: message.subject.to_string(),
            headers,
            payload: message.payload.clone(),
        });
    }
    Ok(messages)
}

/// Publishes the messages, plainly or each naming the sequence and the message before it, as the relay does.
async fn publish(
    context: &jetstream::Context,
    messages: &[Message],
    guarded: bool,
) -> anyhow::Result<Duration> {
    let name = unique_name().to_ascii_uppercase();
    let first = messages
        .first()
        .map(|message| message.subject.split('.').next().unwrap_or_default());
    let subjects = vec![format!("{}.>", first.unwrap_or_default())];
    context
        .create_stream(stream::Config {
            name: name.clone(),
            subjects,
            deny_delete: true,
            allow_direct: true,
            ..stream::Config::default()
        })
        .await?;
    let start = Instant::now();
    let mut acknowledgements = FuturesOrdered::new();
    let mut previous: Option<&Message> = None;
    for (sequence, message) in (0..).zip(messages) {
        let mut publish = PublishMessage::build()
            .payload(message.payload.clone())
            .headers(message.headers.clone());
        if guarded {
            publish = publish.expected_last_sequence(sequence);
            if let Some(previous) = previous.replace(message) {
                publish = publish.expected_last_message_id(&previous.id);
            }
        }
        let sent = context
            .send_publish(message.subject.clone(), publish)
            .await?;
        acknowledgements.push_back(sent.into_future());
        if acknowledgements.len() >= IN_FLIGHT {
            acknowledgements.try_next().await?;
        }
    }
    while acknowledgements.try_next().await?.is_some() {}
    let time = start.elapsed();
    context.delete_stream(name).await?;
    Ok(time)
}
