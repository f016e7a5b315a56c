//! Random commands against the real log and the model: told the same, and leaving the same behind.

use std::cell::Cell;

use bed::unique_name;
use eventlog::{Append, EventLog, Guard, StreamId};
use futures::future::join_all;
use proptest::collection::vec;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use proptest::{prop_assert, prop_assert_eq};
use tokio::runtime::Runtime;
use uuid::Uuid;

use crate::model::{KEYS, Line, Model, STREAMS, Told, appends};
use crate::scene::{database, open};

/// Keeps the cases apart in one log.
struct Tag(String);

impl Tag {
    fn stream(&self, name: &str) -> StreamId {
        StreamId::new("thing", format!("{}_{name}", self.0))
    }

    fn key(&self, name: &str) -> String {
        format!("{}/{name}", self.0)
    }

    fn on(&self, append: &Append) -> Append {
        let mut append = append.clone();
        for part in &mut append.streams {
            let name = part
                .stream_id
                .as_str()
                .rsplit('/')
                .next()
                .unwrap_or_default();
            part.stream_id = self.stream(name);
        }
        for guard in &mut append.guards {
            let (Guard::Expect { key, .. } | Guard::Set { key, .. } | Guard::Count { key, .. }) =
                guard;
            *key = self.key(key);
        }
        if let Some(command) = &mut append.command {
            command.id = Uuid::new_v5(&command.id, self.0.as_bytes());
        }
        append
    }
}

/// Each batch is there before any of it is answered, from one of two processes in turn.
async fn check(
    logs: &[EventLog; 2],
    tag: Tag,
    batches: &[Vec<Append>],
) -> Result<(), TestCaseError> {
    let start = logs[0]
        .head()
        .await
        .expect("the database is there")
        .position;
    let mut model = Model::behind(start);
    for (batch, log) in batches.iter().zip(logs.iter().cycle()) {
        let batch: Vec<_> = batch.iter().map(|append| tag.on(append)).collect();
        let answers = join_all(batch.iter().map(|append| log.append(append.clone()))).await;
        for (append, answer) in batch.iter().zip(answers) {
            prop_assert_eq!(Told::from(answer), model.carry_out(append), "{:?}", append);
        }
        prop_assert_eq!(
            log.head().await.expect("the database is there").position,
            model.head()
        );
    }
    let events = logs[0]
        .read(start, 10_000)
        .await
        .expect("the log can be read");
    let lines: Vec<_> = events
        .iter()
        .map(|event| Line {
            position: event.position,
            stream: event.stream_id.clone(),
            version: event.version,
            id: event.id,
        })
        .collect();
    prop_assert_eq!(lines, &model.lines[..]);
    for name in STREAMS {
        let stream = logs[0]
            .stream(&tag.stream(name))
            .await
            .expect("the log can be read");
        let of_stream: Vec<_> = events
            .iter()
            .filter(|event| event.stream_id == tag.stream(name).as_str())
            .cloned()
            .collect();
        prop_assert!(stream == of_stream);
    }
    let keys = KEYS.map(|name| tag.key(name));
    let facts = logs[0].facts(&keys).await.expect("facts can be read");
    for key in &keys {
        prop_assert_eq!(
            facts.get(key),
            model.facts.get(key).map(String::as_str),
            "{}",
            key
        );
    }
    Ok(())
}

#[test]
fn the_log_does_what_the_model_does() {
    let runtime = Runtime::new().expect("a runtime can be made");
    let (_database, logs) = runtime.block_on(async {
        let database = database().await;
        let logs = [open(&database).await, open(&database).await];
        (database, logs)
    });
    let (name, case) = (unique_name(), Cell::new(0));
    TestRunner::new(Config {
        cases: 64,
        failure_persistence: None,
        ..Config::default()
    })
    .run(&vec(appends(1..12), 1..5), |batches| {
        case.set(case.get() + 1);
        runtime.block_on(check(
            &logs,
            Tag(format!("{name}_{}", case.get())),
            &batches,
        ))
    })
    .unwrap_or_else(|error| panic!("{error}"));
}
