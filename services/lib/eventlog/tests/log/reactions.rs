//! What follows from events: of each resource by itself, and nothing of one resource stands before that of another.

use std::fmt::Display;
use std::sync::{Arc, Mutex};

use bed::{Database, eventually};
use eventlog::{EventLog, Expected, Noted, Progress, React, ReactError, Reactions, RecordedEvent};
use proto::EventError;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use crate::scene::{database, event, open, stream, to};

/// More resources than are taken up at the same time.
const MANY: i64 = 20;

/// Of each event follows something for the resource that its payload names: for `long`, it takes until it is let
/// through; for `failing`, it fails until then.
#[derive(Debug, Default)]
struct Work {
    /// The resource of each pass, and by what it was taken up.
    begun: Mutex<Vec<(String, Uuid)>>,
    let_through: watch::Sender<bool>,
}

impl React for Work {
    fn concerns(&self, _: &str, event: &RecordedEvent) -> Result<Option<String>, EventError> {
        let resource = String::from_utf8(event.payload.to_vec()).expect("the tests' payloads");
        if resource == "unreadable" {
            return Err(EventError::Unknown(resource));
        }
        Ok(Some(resource))
    }

    async fn follow_up(&self, noted: &Noted) -> Result<(), ReactError> {
        let pass = (noted.resource.clone(), noted.event);
        self.begun.lock().expect("no holder panics").push(pass);
        let mut let_through = self.let_through.subscribe();
        if noted.resource.starts_with("failing") && !*let_through.borrow() {
            return Err("not yet".into());
        }
        if noted.resource.starts_with("long") {
            let_through.wait_for(|open| *open).await?;
        }
        Ok(())
    }
}

impl Work {
    /// By what each pass over the resource was taken up.
    fn passes(&self, resource: &str) -> Vec<Uuid> {
        let begun = self.begun.lock().expect("no holder panics");
        let of_resource = begun.iter().filter(|(of, _)| of == resource);
        of_resource.map(|(_, event)| *event).collect()
    }

    async fn has_begun(&self, resource: &str, passes: usize) {
        eventually(async || is(self.passes(resource).len() >= passes, "too few passes")).await;
    }
}

/// A process that carries out what follows from the events of a log.
struct Process {
    work: Arc<Work>,
    _followed: watch::Sender<Progress>,
    _running: AbortOnDropHandle<()>,
}

impl Process {
    fn start(log: &EventLog) -> Self {
        let work = Arc::new(Work::default());
        let (sender, followed) = watch::channel(Progress {
            current_at: Some(Instant::now()),
            ..Progress::default()
        });
        let reactions = Reactions::new(log.clone(), followed, Arc::clone(&work));
        Self {
            work,
            _followed: sender,
            _running: AbortOnDropHandle::new(tokio::spawn(reactions.run())),
        }
    }
}

fn is<T: Display>(holds: bool, otherwise: T) -> Result<(), T> {
    if holds { Ok(()) } else { Err(otherwise) }
}

/// An event for each of the resources, in one append.
async fn happens(log: &EventLog, resources: impl IntoIterator<Item = impl Into<Vec<u8>>>) {
    let events = resources.into_iter().map(event).collect();
    let append = to(stream("a"), Expected::Any, events);
    log.append(append).await.expect("nothing is in the way");
}

/// An event of a log that is followed.
async fn is_noted(database: &Database, resource: &str) {
    sqlx::query("INSERT INTO reactions VALUES ('followed', 1, $1, $2)")
        .bind(bed::unique_id())
        .bind(resource)
        .execute(database.pool())
        .await
        .expect("none was noted before");
}

/// Waits until so many noted events wait.
async fn wait(database: &Database, expected: i64) {
    eventually(async || {
        let waiting: i64 = sqlx::query_scalar("SELECT count(*) FROM reactions")
            .fetch_one(database.pool())
            .await
            .expect("the table is there");
        is(
            waiting == expected,
            format!("{waiting} wait, not {expected}"),
        )
    })
    .await;
}

#[tokio::test]
async fn several_events_of_a_resource_are_followed_up_by_one_pass() {
    let database = database().await;
    let log = open(&database).await;
    happens(&log, ["a", "b", "a", "a", "b"]).await;
    let process = Process::start(&log);
    process.work.has_begun("b", 1).await;
    wait(&database, 0).await;
    assert_eq!(process.work.passes("a").len(), 1);
    assert_eq!(process.work.passes("b").len(), 1);
}

#[tokio::test]
async fn what_is_noted_during_a_pass_is_followed_up_by_another() {
    let database = database().await;
    let log = open(&database).await;
    happens(&log, ["long"]).await;
    let process = Process::start(&log);
    process.work.has_begun("long", 1).await;
    happens(&log, ["long", "long"]).await;
    is_noted(&database, "long").await;
    wait(&database, 4).await;
    process.work.let_through.send_replace(true);
    wait(&database, 0).await;
    let passes = process.work.passes("long");
    // What the first one has done, the second one does again where it is called for again.
    assert_eq!(passes.len(), 2);
    assert_ne!(passes[0], passes[1]);
}

#[tokio::test]
async fn what_takes_long_or_fails_does_not_hold_up_the_rest() {
    let database = database().await;
    let log = open(&database).await;
    let failing = (0..MANY).map(|number| format!("failing {number}"));
    let failing: Vec<_> = failing.collect();
    happens(&log, ["long"]).await;
    happens(&log, failing.clone()).await;
    let process = Process::start(&log);
    process.work.has_begun("long", 1).await;
    happens(&log, ["short"]).await;
    process.work.has_begun("short", 1).await;
    wait(&database, 1 + MANY).await;
    for resource in &failing {
        process.work.has_begun(resource, 2).await;
    }
    process.work.let_through.send_replace(true);
    wait(&database, 0).await;
    assert_eq!(process.work.passes("long").len(), 1);
    assert_eq!(process.work.passes("short").len(), 1);
}

#[tokio::test]
async fn an_event_that_cannot_be_read_does_not_hold_up_what_is_noted() {
    let database = database().await;
    let log = open(&database).await;
    happens(&log, ["unreadable"]).await;
    is_noted(&database, "a").await;
    let process = Process::start(&log);
    wait(&database, 0).await;
    assert_eq!(process.work.passes("a").len(), 1);
}
