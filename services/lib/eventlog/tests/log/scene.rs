//! The words that the tests are written in.

use bed::{Database, unique_id};
use eventlog::bus::{Bus, Settings};
use eventlog::{
    Append, Command, EventLog, Expected, Metadata, NewEvent, RecordedEvent, StreamAppend, StreamId,
};

/// The name of the log that the tests write.
pub(crate) const LOG: &str = "test";
/// The type of every event of the tests.
pub(crate) const HAPPENED: &str = "tharsis.test.v1.Happened";

/// A database with the log's tables.
pub(crate) async fn database() -> Database {
    let database = Database::create().await;
    eventlog::migrate(database.pool(), None)
        .await
        .expect("the migrations fit an empty database");
    database
}

/// The log in that database, opened as by another process.
pub(crate) async fn open(database: &Database) -> EventLog {
    EventLog::open(LOG, database.another_pool(4))
        .await
        .expect("the log can be opened")
}

pub(crate) fn stream(id: &str) -> StreamId {
    StreamId::new("thing", id)
}

pub(crate) fn event(payload: impl Into<Vec<u8>>) -> NewEvent {
    NewEvent {
        id: unique_id(),
        event_type: HAPPENED,
        payload: payload.into(),
    }
}

pub(crate) fn events(count: usize) -> Vec<NewEvent> {
    (0..count)
        .map(|number| event(format!("event {number}")))
        .collect()
}

pub(crate) fn to(stream_id: StreamId, expected: Expected, events: Vec<NewEvent>) -> Append {
    Append {
        streams: vec![StreamAppend {
            stream_id,
            expected,
            events,
        }],
        metadata: Metadata {
            actor: "user:dev/alice".to_owned(),
            traceparent: None,
        },
        ..Append::default()
    }
}

pub(crate) fn command(fingerprint: &str) -> Command {
    Command {
        id: unique_id(),
        fingerprint: fingerprint.into(),
        reply: format!("done: {fingerprint}").into(),
    }
}

/// Appends events to a stream, some in a command, and says where the log ends then.
pub(crate) async fn grow(log: &EventLog, id: &str, count: usize) -> u64 {
    let mut last = 0;
    for chunk in events(count).chunks(200) {
        let appended = log
            .append(to(stream(id), Expected::Any, chunk.to_vec()))
            .await
            .expect("nothing is in the way");
        last = appended.last;
    }
    last
}

/// A database that was restored from a backup of this log, taken when it held so many events; its epoch is the same.
pub(crate) async fn restored(log: &EventLog, events: usize) -> (Database, EventLog) {
    let database = database().await;
    sqlx::query("UPDATE log_head SET epoch = $1")
        .bind(log.epoch())
        .execute(database.pool())
        .await
        .expect("the head row is there");
    let backup = open(&database).await;
    for event in whole(log).await.into_iter().take(events) {
        let again = NewEvent {
            id: event.id,
            event_type: HAPPENED,
            payload: event.payload.to_vec(),
        };
        backup
            .append(to(stream("a"), Expected::Any, vec![again]))
            .await
            .expect("nothing is in the way");
    }
    (database, backup)
}

/// The whole log.
pub(crate) async fn whole(log: &EventLog) -> Vec<RecordedEvent> {
    log.read(0, u64::MAX).await.expect("the log can be read")
}

/// The bus at this url, under a prefix of the test's own.
pub(crate) async fn bus(url: &str, prefix: &str) -> Bus {
    let settings = Settings {
        url: url.to_owned(),
        credentials: None,
        prefix: prefix.to_owned(),
        replicas: 1,
    };
    Bus::connect(settings).await.expect("the address is one")
}
