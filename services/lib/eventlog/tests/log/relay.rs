//! The relay on a real server: whatever happens, the stream ends equal to the log.

use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::stream::{Config, DiscardPolicy, RetentionPolicy, StorageType};
use async_nats::jetstream::{self, message::StreamMessage};
use bed::{NatsServer, eventually, shared_nats_url, unique_name};
use eventlog::bus::{Bus, Settings};
use eventlog::{Append, EventLog, Expected, Metadata, RecordedEvent, Relay, RelayState};
use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _};
use percent_encoding::percent_decode_str;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::scene::{
    HAPPENED, LOG, bus, database, event, events, grow, open, restored, stream, to, whole,
};

/// A relay that runs until it is dropped.
pub(crate) struct Running {
    state: watch::Receiver<RelayState>,
    task: AbortOnDropHandle<()>,
}

impl Running {
    pub(crate) async fn start(log: &EventLog, url: &str, prefix: &str) -> Self {
        Self::relay(Relay::new(log.clone(), bus(url, prefix).await))
    }

    fn relay(relay: Relay) -> Self {
        let state = relay.state();
        Self {
            state,
            task: AbortOnDropHandle::new(tokio::spawn(relay.run(CancellationToken::new()))),
        }
    }

    pub(crate) async fn published(&self, position: u64) {
        let mut state = self.state.clone();
        let reached = state.wait_for(|state| state.published >= position);
        let reached = tokio::time::timeout(Duration::from_secs(30), reached)
            .await
            .map(|reached| reached.is_ok());
        assert_eq!(
            reached,
            Ok(true),
            "waited for {position}: {:?}",
            *self.state.borrow()
        );
    }

    /// What it takes for a sign that the database was restored, it says in another way too.
    fn contradiction(&self) -> Option<String> {
        self.state.borrow().contradiction.clone()
    }

    async fn problem(&self, says: &str) {
        eventually(async || match &*self.state.borrow() {
            RelayState {
                problem: Some(problem),
                ..
            } if problem.contains(says) => Ok(()),
            state => Err(format!("{state:?}")),
        })
        .await;
    }
}

/// What a subscriber that is not ours finds in the stream.
pub(crate) struct Subscriber {
    pub(crate) context: jetstream::Context,
    prefix: String,
}

impl Subscriber {
    pub(crate) async fn at(url: &str, prefix: &str) -> Self {
        let client = async_nats::connect(url).await.expect("the server runs");
        Self {
            context: jetstream::new(client),
            prefix: prefix.to_owned(),
        }
    }

    pub(crate) fn stream(&self) -> String {
        format!("{}_{LOG}", self.prefix).to_ascii_uppercase()
    }

    pub(crate) async fn delete_stream(&self) {
        self.context
            .delete_stream(self.stream())
            .await
            .expect("there is one");
    }

    /// Nearly as the relay would.
    pub(crate) async fn create_stream(&self) {
        self.create_stream_with(Config::default()).await;
    }

    async fn create_stream_with(&self, config: Config) {
        let mut config = config;
        config.name = self.stream();
        if config.subjects.is_empty() {
            config.subjects = vec![format!("{}.{LOG}.>", self.prefix)];
        }
        let created = self.context.create_stream(config).await;
        created.expect("there is none");
    }

    /// Publishes one of its messages to another's stream.
    pub(crate) async fn hands_on(&self, sequence: u64, to: &Self) {
        let message = self.message(sequence).await;
        to.stores(message).await;
    }

    async fn message(&self, sequence: u64) -> StreamMessage {
        eventually(async || {
            let stream = self.context.get_stream(self.stream()).await;
            let stream = stream.map_err(|error| error.to_string())?;
            let message = stream.get_raw_message(sequence).await;
            message.map_err(|error| error.to_string())
        })
        .await
    }

    /// Publishes another's message to its own stream.
    async fn stores(&self, message: StreamMessage) {
        let (_, behind) = message.subject.split_once('.').expect("it has a prefix");
        let published = self.context.publish_with_headers(
            format!("{}.{behind}", self.prefix),
            message.headers,
            message.payload,
        );
        let acknowledged = published.await.expect("the server runs").await;
        acknowledged.expect("the stream takes it");
    }

    /// Waits until a follower has its consumer.
    pub(crate) async fn is_subscribed_to(&self) {
        eventually(async || {
            let stream = self
                .context
                .get_stream(self.stream())
                .await
                .map_err(|error| error.to_string())?;
            match stream.cached_info().state.consumer_count {
                0 => Err("the stream has no consumer".to_owned()),
                _ => Ok(()),
            }
        })
        .await;
    }

    async fn last_sequence(&self) -> Result<u64, String> {
        let stream = self
            .context
            .get_stream(self.stream())
            .await
            .map_err(|error| error.to_string())?;
        Ok(stream.cached_info().state.last_sequence)
    }

    async fn messages(&self) -> Result<Vec<StreamMessage>, String> {
        let stream = self
            .context
            .get_stream(self.stream())
            .await
            .map_err(|error| error.to_string())?;
        let state = &stream.cached_info().state;
        if state.messages > 0 && state.first_sequence != 1 {
            return Err(format!("the stream begins at {}", state.first_sequence));
        }
        futures::stream::iter(1..=state.last_sequence)
            .map(|sequence| stream.get_raw_message(sequence))
            .buffered(64)
            .map_err(|error| error.to_string())
            .try_collect()
            .await
    }

    /// Waits until the stream holds the log, the whole log, and nothing but the log.
    pub(crate) async fn finds(&self, log: &EventLog) {
        let events = whole(log).await;
        eventually(async || match self.last_sequence().await? {
            last if last == events.len() as u64 => Ok(()),
            last => Err(format!(
                "the stream ends at {last}, the log at {}",
                events.len()
            )),
        })
        .await;
        let messages = self.messages().await.expect("the stream can be read");
        assert_eq!(messages.len(), events.len());
        for (event, message) in events.iter().zip(&messages) {
            self.is_same(log, event, message);
        }
    }

    fn is_same(&self, log: &EventLog, event: &RecordedEvent, message: &StreamMessage) {
        assert_eq!(message.sequence, event.position);
        assert_eq!(message.payload, event.payload);
        let aggregate = event.stream_id.replace('/', ".");
        assert_eq!(
            message.subject.as_str(),
            format!("{}.{LOG}.{aggregate}.Happened", self.prefix)
        );
        for (name, value) in [
            ("ce-id", event.id.to_string()),
            ("ce-position", event.position.to_string()),
            ("ce-streamversion", event.version.to_string()),
            ("ce-subject", event.stream_id.clone()),
            ("ce-type", HAPPENED.to_owned()),
            ("ce-epoch", log.epoch().to_string()),
            ("Nats-Msg-Id", event.id.to_string()),
        ] {
            assert_eq!(
                header(&message.headers, name),
                value,
                "{name} at {}",
                event.position
            );
        }
        let Metadata { actor, traceparent } = &event.metadata;
        let found = percent_decode_str(header(&message.headers, "ce-actor"));
        assert_eq!(found.decode_utf8().expect("UTF-8"), actor.as_str());
        let found = message.headers.get("ce-traceparent");
        assert_eq!(found.map(ToString::to_string), *traceparent);
        assert_eq!(time(&message.headers), event.recorded_at);
    }
}

fn time(headers: &HeaderMap) -> OffsetDateTime {
    OffsetDateTime::parse(header(headers, "ce-time"), &Rfc3339).expect("a time")
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers
        .get(name)
        .unwrap_or_else(|| panic!("no {name} in {headers:?}"))
        .as_str()
}

#[tokio::test]
async fn what_is_appended_while_the_relay_runs_is_published_as_the_log_holds_it() {
    let (database, prefix) = (database().await, unique_name());
    let log = open(&database).await;
    let relay = Running::start(&log, &shared_nats_url(), &prefix).await;
    for (position, text) in (1..).zip(["one", "two", "three", "four"]) {
        let append = to(stream(text), Expected::Any, vec![event(text)]);
        let traceparent =
            format!("00-0af7651916cd43dd8448eb211c80319c-b7ad6b716920333{position}-01");
        let metadata = Metadata {
            actor: format!("user:dev/{text}"),
            traceparent: Some(traceparent),
        };
        log.append(Append { metadata, ..append }).await.unwrap();
        relay.published(position).await;
    }
    let subscriber = Subscriber::at(&shared_nats_url(), &prefix).await;
    subscriber.finds(&log).await;
}

#[tokio::test]
async fn an_event_is_a_cloudevent_on_the_bus() {
    let (database, prefix) = (database().await, unique_name());
    let log = open(&database).await;
    let mut append: Append = to(stream("a"), Expected::Any, vec![event([0, 1, 255])]);
    append.metadata = Metadata {
        actor: "user:dev/Zoë \"Z\" 100%\r\n".to_owned(),
        traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned()),
    };
    log.append(append).await.unwrap();
    // Nobody, and no payload: still events.
    log.append(Append {
        metadata: Metadata::default(),
        ..to(stream("a"), Expected::Any, vec![event("")])
    })
    .await
    .unwrap();
    let relay = Running::start(&log, &shared_nats_url(), &prefix).await;
    relay.published(2).await;

    let subscriber = Subscriber::at(&shared_nats_url(), &prefix).await;
    subscriber.finds(&log).await;
    let messages = subscriber.messages().await.unwrap();
    let headers = &messages[0].headers;
    let recorded = &whole(&log).await[0];
    assert_eq!(header(headers, "ce-specversion"), "1.0");
    assert_eq!(header(headers, "ce-source"), "urn:tharsis:test");
    assert_eq!(
        header(headers, "ce-actor"),
        "user:dev/Zo%C3%AB%20%22Z%22%20100%25%0D%0A"
    );
    assert_eq!(
        header(headers, "ce-traceparent"),
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    );
    assert_eq!(header(headers, "content-type"), "application/protobuf");
    assert_eq!(time(headers), recorded.recorded_at);
    assert_eq!(header(&messages[1].headers, "ce-actor"), "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_relays_at_once_under_appends_store_each_event_once_and_neither_takes_the_other_for_a_problem()
 {
    let (database, prefix, url) = (database().await, unique_name(), shared_nats_url());
    let logs = [open(&database).await, open(&database).await];
    let relays = [
        Running::start(&logs[0], &url, &prefix).await,
        Running::start(&logs[1], &url, &prefix).await,
    ];
    // Until they are connected, they say that they are not.
    let begun = grow(&logs[0], "a", 1).await;
    for relay in &relays {
        relay.published(begun).await;
    }
    let refused = relays.each_ref().map(|relay| {
        let mut state = relay.state.clone();
        AbortOnDropHandle::new(tokio::spawn(async move {
            let refused = |state: &RelayState| {
                let problem = state.problem.as_ref();
                problem.is_some_and(|problem| problem.contains("wrong last sequence"))
            };
            let refused = state.wait_for(refused).await;
            refused.map(|state| state.clone())
        }))
    });
    let writers = (0..8).map(|writer| {
        let log = logs[writer % 2].clone();
        tokio::spawn(async move {
            for _ in 0..40 {
                grow(&log, &format!("w{writer}"), 1 + writer).await;
            }
        })
    });
    for writer in futures::future::join_all(writers).await {
        writer.unwrap();
    }
    let end = logs[0].head().await.unwrap().position;
    for relay in &relays {
        relay.published(end).await;
    }
    for refused in refused {
        assert!(!refused.is_finished(), "{:?}", refused.await);
    }
    Subscriber::at(&url, &prefix).await.finds(&logs[0]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_killed_in_flight_is_taken_over_from() {
    let (database, prefix, url) = (database().await, unique_name(), shared_nats_url());
    let log = open(&database).await;
    grow(&log, "a", 4_000).await;
    for reached in [1, 700, 1_500, 2_300] {
        let relay = Running::start(&log, &url, &prefix).await;
        relay.published(reached).await;
        relay.task.abort();
    }
    let relay = Running::start(&log, &url, &prefix).await;
    relay.published(4_000).await;
    Subscriber::at(&url, &prefix).await.finds(&log).await;
}

#[tokio::test]
async fn a_deleted_stream_is_filled_again_under_appends_and_when_idle() {
    let (database, prefix, url) = (database().await, unique_name(), shared_nats_url());
    let log = open(&database).await;
    grow(&log, "a", 300).await;
    let relay = Running::start(&log, &url, &prefix).await;
    relay.published(300).await;
    let subscriber = Subscriber::at(&url, &prefix).await;

    subscriber.delete_stream().await;
    grow(&log, "a", 100).await;
    subscriber.finds(&log).await;

    // Nothing is appended any more that would tell the relay.
    relay.published(400).await;
    subscriber.delete_stream().await;
    subscriber.finds(&log).await;
}

#[tokio::test]
async fn a_lost_tail_is_filled_again_with_the_same_sequences() {
    let (database, prefix, mut nats) = (database().await, unique_name(), NatsServer::start().await);
    let log = open(&database).await;
    grow(&log, "a", 100).await;
    let relay = Running::start(&log, &nats.url(), &prefix).await;
    relay.published(100).await;
    nats.kill();
    let earlier = nats.save();
    nats.restart().await;
    grow(&log, "a", 100).await;
    relay.published(200).await;
    nats.kill();
    nats.restore(&earlier);
    nats.restart().await;
    Subscriber::at(&nats.url(), &prefix).await.finds(&log).await;
}

#[tokio::test]
async fn appends_go_on_while_nats_is_away() {
    let (database, prefix, mut nats) = (database().await, unique_name(), NatsServer::start().await);
    let log = open(&database).await;
    let relay = Running::start(&log, &nats.url(), &prefix).await;
    grow(&log, "a", 100).await;
    relay.published(100).await;
    nats.kill();
    grow(&log, "a", 3_000).await;
    relay.problem("").await;
    assert_eq!(relay.contradiction(), None);
    nats.restart().await;
    relay.published(3_100).await;
    assert_eq!(relay.state.borrow().problem, None);
    Subscriber::at(&nats.url(), &prefix).await.finds(&log).await;
}

#[tokio::test]
async fn nats_may_come_after_the_relay() {
    let (database, prefix, mut nats) = (database().await, unique_name(), NatsServer::start().await);
    nats.kill();
    let log = open(&database).await;
    grow(&log, "a", 100).await;
    let relay = Running::start(&log, &nats.url(), &prefix).await;
    relay.problem("NATS is not connected").await;
    nats.restart().await;
    relay.published(100).await;
    Subscriber::at(&nats.url(), &prefix).await.finds(&log).await;
}

#[tokio::test]
async fn a_wiped_server_is_filled_again_under_load_and_when_idle() {
    let (database, prefix, mut nats) = (database().await, unique_name(), NatsServer::start().await);
    let log = open(&database).await;
    let relay = Running::start(&log, &nats.url(), &prefix).await;
    let load = tokio::spawn({
        let log = log.clone();
        async move {
            for _ in 0..50 {
                grow(&log, "a", 30).await;
            }
        }
    });
    relay.published(100).await;
    nats.kill();
    nats.wipe();
    nats.restart().await;
    load.await.unwrap();
    Subscriber::at(&nats.url(), &prefix).await.finds(&log).await;

    relay.published(1_500).await;
    nats.kill();
    nats.wipe();
    nats.restart().await;
    Subscriber::at(&nats.url(), &prefix).await.finds(&log).await;
}

#[tokio::test]
async fn a_stream_of_another_epoch_is_reported_and_left_alone() {
    let (first, second, prefix, url) = (
        database().await,
        database().await,
        unique_name(),
        shared_nats_url(),
    );
    let (first, second) = (open(&first).await, open(&second).await);
    grow(&first, "a", 5).await;
    grow(&second, "a", 10).await;
    let relay = Running::start(&first, &url, &prefix).await;
    relay.published(5).await;
    drop(relay);
    let relay = Running::start(&second, &url, &prefix).await;
    relay
        .problem(&format!(
            "holds a log of epoch {}, ours is {}",
            first.epoch(),
            second.epoch()
        ))
        .await;
    assert_eq!(relay.contradiction(), None);
    let subscriber = Subscriber::at(&url, &prefix).await;
    subscriber.finds(&first).await;
    // What the report tells to do helps.
    subscriber.delete_stream().await;
    subscriber.finds(&second).await;
}

#[tokio::test]
async fn a_stream_ahead_of_the_log_is_reported_and_left_alone() {
    let (database, prefix, url) = (database().await, unique_name(), shared_nats_url());
    let log = open(&database).await;
    grow(&log, "a", 10).await;
    let (_backup, restored) = restored(&log, 4).await;
    let relay = Running::start(&log, &url, &prefix).await;
    relay.published(10).await;
    drop(relay);
    let relay = Running::start(&restored, &url, &prefix).await;
    relay.problem("ends at 10, but the log at 4").await;
    let told = relay.contradiction().expect("it contradicts the log");
    let (epoch, delete) = (told.find("give its log a new epoch"), told.find("delete"));
    assert!(epoch.is_some() && epoch < delete, "{told}");
    let subscriber = Subscriber::at(&url, &prefix).await;
    subscriber.finds(&log).await;

    subscriber.delete_stream().await;
    relay.published(4).await;
    assert_eq!(relay.contradiction(), None);
}

#[tokio::test]
async fn a_stream_of_a_log_that_went_back_and_grew_again_is_reported_and_left_alone() {
    let (database, prefix, url) = (database().await, unique_name(), shared_nats_url());
    let log = open(&database).await;
    grow(&log, "a", 10).await;
    let (_backup, restored) = restored(&log, 8).await;
    grow(&restored, "b", 4).await;
    let relay = Running::start(&log, &url, &prefix).await;
    relay.published(10).await;
    drop(relay);
    let relay = Running::start(&restored, &url, &prefix).await;
    relay.problem("another event at 10").await;
    assert!(relay.contradiction().is_some());
    Subscriber::at(&url, &prefix).await.finds(&log).await;
}

#[tokio::test]
async fn a_database_put_back_under_a_running_relay_is_reported_and_nothing_follows() {
    let (database, prefix, url) = (database().await, unique_name(), shared_nats_url());
    let log = open(&database).await;
    let relay = Running::start(&log, &url, &prefix).await;
    grow(&log, "a", 3).await;
    relay.published(3).await;
    let published = whole(&log).await;
    let put_back = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                    WHERE datname = current_database() AND pid <> pg_backend_pid();
                    ALTER TABLE events DISABLE TRIGGER ALL;
                    DELETE FROM events WHERE position = 3;
                    ALTER TABLE events ENABLE TRIGGER ALL;
                    UPDATE log_head SET position = 2, revision = revision - 1";
    let pool = database.another_pool(1);
    sqlx::raw_sql(put_back).execute(&pool).await.unwrap();
    // Now another event stands at the end, at the same position and revision.
    let other = EventLog::open(LOG, pool).await.unwrap();
    grow(&other, "b", 1).await;
    eventually(async || {
        let append = to(stream("a"), Expected::Any, vec![event("next")]);
        log.append(append).await.map_err(|error| error.to_string())
    })
    .await;
    relay.problem("another event at 3").await;
    let subscriber = Subscriber::at(&url, &prefix).await;
    let messages = subscriber.messages().await.unwrap();
    let ids = messages
        .iter()
        .map(|it| header(&it.headers, "ce-id").to_owned());
    let expected = published.iter().map(|event| event.id.to_string());
    assert!(ids.eq(expected));
}

#[tokio::test]
async fn what_others_publish_into_the_stream_is_reported_and_nothing_follows_it() {
    let (database, prefix, url) = (database().await, unique_name(), shared_nats_url());
    let log = open(&database).await;
    grow(&log, "a", 5).await;
    let relay = Running::start(&log, &url, &prefix).await;
    relay.published(5).await;
    let subscriber = Subscriber::at(&url, &prefix).await;
    let stray = subscriber
        .context
        .publish(format!("{prefix}.{LOG}.thing.a.Happened"), "stray".into())
        .await;
    assert_eq!(stray.unwrap().await.unwrap().sequence, 6);
    grow(&log, "a", 5).await;
    relay.problem("holds a log of epoch none").await;
    assert_eq!(subscriber.last_sequence().await, Ok(6));
}

#[tokio::test]
async fn a_server_that_does_not_remember_the_last_messages_id_takes_the_next_ones() {
    let (database, url) = (database().await, shared_nats_url());
    let (prefix, complete) = (unique_name(), unique_name());
    let log = open(&database).await;
    grow(&log, "a", 2).await;
    let _complete = Running::start(&log, &url, &complete).await;
    let complete = Subscriber::at(&url, &complete).await;
    let subscriber = Subscriber::at(&url, &prefix).await;
    subscriber.create_stream().await;
    complete.hands_on(1, &subscriber).await;
    let mut last = complete.message(2).await;
    // As after a restart of an older one: what is stored is right, what is remembered of it is not.
    last.headers.insert("Nats-Msg-Id", "another");
    subscriber.stores(last).await;

    let relay = Running::start(&log, &url, &prefix).await;
    relay.published(2).await;
    let mut state = relay.state.clone();
    let refused = AbortOnDropHandle::new(tokio::spawn(async move {
        let refused = |state: &RelayState| {
            let problem = state.problem.as_ref();
            problem.is_some_and(|problem| problem.contains("wrong last msg"))
        };
        state.wait_for(refused).await.map(|state| state.clone())
    }));
    grow(&log, "a", 2).await;
    relay.published(4).await;
    assert!(!refused.is_finished(), "{:?}", refused.await);
    let names = async |sequence| {
        let headers = subscriber.message(sequence).await.headers;
        let previous = headers.get("Nats-Expected-Last-Msg-Id");
        previous.map(ToString::to_string)
    };
    assert_eq!(names(3).await, None);
    assert_eq!(names(4).await, Some(whole(&log).await[2].id.to_string()));
}

#[tokio::test]
async fn a_problem_that_stays_is_reported_once() {
    let (database, prefix, url) = (database().await, unique_name(), shared_nats_url());
    let log = open(&database).await;
    let subscriber = Subscriber::at(&url, &prefix).await;
    let client = async_nats::connect(&url).await.expect("the server runs");
    let looked_at = format!("$JS.API.STREAM.INFO.{}", subscriber.stream());
    let mut begins = client.subscribe(looked_at).await.expect("it may");
    client.flush().await.expect("the server runs");
    grow(&log, "a", 1).await;
    // More than a server takes.
    let too_much = to(stream("b"), Expected::Any, vec![event(vec![0; 2_000_000])]);
    log.append(too_much).await.unwrap();
    let mut relay = Running::start(&log, &url, &prefix).await;
    relay.problem("payload").await;
    relay.published(1).await;
    relay.state.mark_unchanged();
    while begins.next().now_or_never().is_some() {}
    for _ in 0..3 {
        begins.next().await.expect("it begins again");
    }
    assert!(!relay.state.has_changed().unwrap(), "{:?}", relay.state);
}

#[tokio::test]
async fn a_stream_that_was_made_otherwise_is_put_right() {
    let (database, url) = (database().await, shared_nats_url());
    let log = open(&database).await;
    grow(&log, "a", 10).await;
    for otherwise in [
        Config {
            max_messages: 5,
            ..Config::default()
        },
        Config {
            max_messages: 5,
            discard: DiscardPolicy::New,
            ..Config::default()
        },
        Config {
            max_age: Duration::from_secs(1),
            duplicate_window: Duration::from_secs(1),
            ..Config::default()
        },
        Config {
            retention: RetentionPolicy::Interest,
            ..Config::default()
        },
        Config {
            subjects: vec![unique_name()],
            allow_rollup: true,
            ..Config::default()
        },
    ] {
        let prefix = unique_name();
        let subscriber = Subscriber::at(&url, &prefix).await;
        subscriber.create_stream_with(otherwise).await;
        let _relay = Running::start(&log, &url, &prefix).await;
        subscriber.finds(&log).await;
        let stream = subscriber.context.get_stream(subscriber.stream()).await;
        let stream = stream.expect("there is one");
        let config = &stream.cached_info().config;
        assert!(config.max_age.is_zero() && config.deny_delete && config.allow_direct);
    }
}

#[tokio::test]
async fn nobody_takes_events_out_of_the_stream() {
    let (database, prefix, url) = (database().await, unique_name(), shared_nats_url());
    let log = open(&database).await;
    grow(&log, "a", 3).await;
    let relay = Running::start(&log, &url, &prefix).await;
    relay.published(3).await;
    let subscriber = Subscriber::at(&url, &prefix).await;
    let stream = subscriber.context.get_stream(subscriber.stream()).await;
    let stream = stream.expect("there is one");
    stream.purge().await.expect_err("it is denied");
    stream.delete_message(2).await.expect_err("it is denied");
    subscriber.finds(&log).await;
}

#[tokio::test]
async fn what_can_not_be_put_right_in_a_stream_is_reported() {
    let (database, prefix, url) = (database().await, unique_name(), shared_nats_url());
    let log = open(&database).await;
    grow(&log, "a", 3).await;
    let subscriber = Subscriber::at(&url, &prefix).await;
    let in_memory = Config {
        storage: StorageType::Memory,
        ..Config::default()
    };
    subscriber.create_stream_with(in_memory).await;
    let relay = Running::start(&log, &url, &prefix).await;
    let differs = "storage is \"memory\" and not \"file\"";
    relay.problem(differs).await;
    relay.problem(&subscriber.stream()).await;
    assert_eq!(relay.contradiction(), None);
    // What the report tells to do helps.
    subscriber.delete_stream().await;
    subscriber.finds(&log).await;
    drop(relay);

    // A server alone keeps one copy.
    let settings = Settings {
        url: url.clone(),
        credentials: None,
        prefix: prefix.clone(),
        replicas: 3,
    };
    let bus = Bus::connect(settings).await.expect("the server runs");
    let relay = Running::relay(Relay::new(log.clone(), bus));
    relay.problem("num_replicas is 1 and not 3").await;
}

#[tokio::test]
async fn a_stream_that_lacks_its_beginning_or_middle_is_reported() {
    let (database, url) = (database().await, shared_nats_url());
    let log = open(&database).await;
    grow(&log, "a", 5).await;
    let lacks = async |first_sequence: u64, deleted: Option<u64>, says: &str| {
        let (prefix, complete) = (unique_name(), unique_name());
        let subscriber = Subscriber::at(&url, &prefix).await;
        let otherwise = Config {
            first_sequence: Some(first_sequence),
            ..Config::default()
        };
        subscriber.create_stream_with(otherwise).await;
        if let Some(deleted) = deleted {
            let _relay = Running::start(&log, &url, &complete).await;
            let complete = Subscriber::at(&url, &complete).await;
            for sequence in 1..=5 {
                complete.hands_on(sequence, &subscriber).await;
            }
            let stream = subscriber.context.get_stream(subscriber.stream()).await;
            let deleted = stream.expect("there is one").delete_message(deleted).await;
            assert!(deleted.expect("nothing denies it"));
        }
        let relay = Running::start(&log, &url, &prefix).await;
        relay.problem(says).await;
        assert_eq!(relay.contradiction(), None);
        // What the report tells to do helps.
        subscriber.delete_stream().await;
        subscriber.finds(&log).await;
        relay.published(5).await;
        assert_eq!(relay.state.borrow().problem, None);
    };
    futures::join!(
        lacks(3, None, "lacks 2 positions before its end, and begins at 3"),
        lacks(
            1,
            Some(1),
            "lacks 1 positions before its end, and begins at 2"
        ),
        lacks(
            1,
            Some(3),
            "lacks 1 positions before its end, and begins at 1"
        ),
    );
}

#[tokio::test]
async fn a_stream_that_is_cut_short_meanwhile_is_reported_and_the_relay_goes_on() {
    let (database, prefix, url) = (database().await, unique_name(), shared_nats_url());
    let log = open(&database).await;
    grow(&log, "a", 5).await;
    let relay = Running::start(&log, &url, &prefix).await;
    relay.published(5).await;
    let subscriber = Subscriber::at(&url, &prefix).await;
    let stream = subscriber.context.get_stream(subscriber.stream()).await;
    let short = Config {
        max_messages: 3,
        ..stream.expect("there is one").cached_info().config.clone()
    };
    let cut = subscriber.context.update_stream(short).await;
    cut.expect("nothing denies it");
    relay.problem("lacks 2 positions").await;
    grow(&log, "a", 1).await;
    relay.published(6).await;
    assert_eq!(subscriber.last_sequence().await, Ok(6));
}

#[tokio::test]
async fn one_server_of_several_is_enough() {
    let (database, prefix, url) = (database().await, unique_name(), shared_nats_url());
    let log = open(&database).await;
    grow(&log, "a", 3).await;
    let nobody = TcpListener::bind(("127.0.0.1", 0))
        .await
        .expect("a port is free");
    let nobody = nobody.local_addr().expect("it is bound");
    let relay = Running::start(&log, &format!("nats://{nobody},{url}"), &prefix).await;
    relay.published(3).await;
    Subscriber::at(&url, &prefix).await.finds(&log).await;
}

/// A way to a server on which its answers can be held back.
struct Way {
    url: String,
    held: watch::Sender<bool>,
}

impl Way {
    async fn to(url: &str) -> Self {
        let server = url.trim_start_matches("nats://").to_owned();
        let listener = TcpListener::bind(("127.0.0.1", 0))
            .await
            .expect("a port is free");
        let url = format!("nats://{}", listener.local_addr().expect("it is bound"));
        let (held, is_held) = watch::channel(false);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(&server).await.expect("it runs");
                tokio::spawn(carry(client, server, is_held.clone()));
            }
        });
        Self { url, held }
    }
}

async fn carry(
    client: TcpStream,
    server: TcpStream,
    mut held: watch::Receiver<bool>,
) -> std::io::Result<()> {
    let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
        (client.into_split(), server.into_split());
    let answers = async {
        let mut answer = vec![0; 65_536];
        loop {
            let count = from_server.read(&mut answer).await?;
            if count == 0 || held.wait_for(|held| !held).await.is_err() {
                return Ok(());
            }
            to_client.write_all(&answer[..count]).await?;
        }
    };
    tokio::select! {
        copied = tokio::io::copy(&mut from_client, &mut to_server) => copied.map(|_| ()),
        ended = answers => ended,
    }
}

#[tokio::test]
async fn however_much_is_appended_while_acknowledgements_are_late_it_is_published() {
    let (database, nats) = futures::join!(database(), NatsServer::start());
    let (log, prefix) = (open(&database).await, unique_name());
    let way = Way::to(&nats.url()).await;
    let relay = Running::start(&log, &way.url, &prefix).await;
    let subscriber = Subscriber::at(&nats.url(), &prefix).await;
    let append = async |count| {
        let append = to(stream("a"), Expected::Any, events(count));
        log.append(append)
            .await
            .expect("nothing is in the way")
            .last
    };
    let first = append(1).await;
    relay.published(first).await;
    // With what is in flight already, more than may be: all that memory holds of the log.
    way.held.send_replace(true);
    let in_flight = append(1_200).await;
    let end = append(7_500).await;
    eventually(async || match subscriber.last_sequence().await? {
        last if last > in_flight => Ok(()),
        // It took so long that the relay gave up on the acknowledgements.
        _ if relay.state.borrow().problem.is_some() => Ok(()),
        last => Err(format!("the stream ends at {last}")),
    })
    .await;
    way.held.send_replace(false);
    relay.published(end).await;
    assert_eq!(subscriber.last_sequence().await, Ok(end));
}

/// A server that says who it is, and no more.
async fn server_of_version(version: &'static str) -> String {
    let listener = TcpListener::bind(("127.0.0.1", 0))
        .await
        .expect("a port is free");
    let url = format!("nats://{}", listener.local_addr().expect("it is bound"));
    tokio::spawn(async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            let greeting = format!(
                "INFO {{\"server_id\":\"x\",\"version\":\"{version}\",\"max_payload\":1048576,\"headers\":true}}\r\nPONG\r\n"
            );
            tokio::spawn(async move {
                connection.write_all(greeting.as_bytes()).await?;
                while connection.read(&mut [0; 1_024]).await? > 0 {}
                std::io::Result::Ok(())
            });
        }
    });
    url
}

#[tokio::test]
async fn an_old_server_is_refused() {
    let database = database().await;
    let log = open(&database).await;
    let relay = Running::start(&log, &server_of_version("2.9.10").await, &unique_name()).await;
    relay
        .problem("nats-server 2.9.10 is too old: 2.10.23 or newer is needed")
        .await;
}
