//! Random commands against the real log and the model: told the same, and leaving the same behind.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::sync::Arc;

use bed::unique_name;
use eventlog::{Append, EventLog, Guard, StreamId, replicate_facts};
use futures::future::join_all;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use tokio::runtime::Runtime;
use uuid::Uuid;

use crate::model::{KEYS, Line, Model, STREAMS, Told, appends};
use crate::scene::{database, open};

/// Keeps the cases apart in one log.
struct Tag {
    name: String,
    /// What stands for guards that appends share: for the same the same.
    shared: RefCell<HashMap<*const Guard, Arc<[Guard]>>>,
}

impl Tag {
    fn new(name: String) -> Self {
        Self {
            name,
            shared: RefCell::default(),
        }
    }

    fn stream(&self, name: &str) -> StreamId {
        StreamId::new("thing", format!("{}_{name}", self.name))
    }

    fn key(&self, name: &str) -> String {
        format!("{}/{name}", self.name)
    }

    fn guard(&self, mut guard: Guard) -> Guard {
        let (Guard::Expect { key, .. } | Guard::Set { key, .. } | Guard::Count { key, .. }) =
            &mut guard;
        *key = self.key(key);
        guard
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
        for guards in &mut append.shared {
            let mut shared = self.shared.borrow_mut();
            let here = shared.entry(guards.as_ptr()).or_insert_with(|| {
                let here = guards.iter().map(|guard| self.guard(guard.clone()));
                here.collect()
            });
            *guards = Arc::clone(here);
        }
        let guards = std::mem::take(&mut append.guards);
        append.guards = guards.into_iter().map(|guard| self.guard(guard)).collect();
        if let Some(command) = &mut append.command {
            command.id = Uuid::new_v5(&command.id, self.name.as_bytes());
        }
        append
    }
}

/// What happens to a log.
#[derive(Clone, Debug)]
enum Step {
    /// Each command is there before any of them is answered.
    Batch {
        /// By which process.
        process: usize,
        appends: Vec<Append>,
    },
    /// A follower writes a fact of another log.
    Replicate {
        key: &'static str,
        value: Option<String>,
    },
}

/// Mostly one process writes for a while: what it knows of the log is right until somebody else comes between.
fn steps() -> impl Strategy<Value = Vec<Step>> {
    let process = prop_oneof![12 => Just(0), 1 => Just(1)];
    let batch =
        (process, appends(1..8)).prop_map(|(process, appends)| Step::Batch { process, appends });
    let value = prop::option::of(prop::sample::select(&["1", "taken"][..]));
    let replicate =
        (prop::sample::select(&KEYS[..]), value).prop_map(|(key, value)| Step::Replicate {
            key,
            value: value.map(str::to_owned),
        });
    vec(prop_oneof![12 => batch, 1 => replicate], 1..12)
}

async fn check(logs: &[EventLog; 2], tag: Tag, steps: &[Step]) -> Result<(), TestCaseError> {
    let start = logs[0]
        .head()
        .await
        .expect("the database is there")
        .position;
    let mut model = Model::behind(start);
    for step in steps {
        let (log, batch): (_, Vec<_>) = match step {
            Step::Batch { process, appends } => (
                &logs[*process],
                appends.iter().map(|append| tag.on(append)).collect(),
            ),
            Step::Replicate { key, value } => {
                let key = tag.key(key);
                let change = (key.clone(), value.clone());
                let mut connection = logs[0].pool().acquire().await.expect("a connection");
                replicate_facts(&mut connection, "other", &[change])
                    .await
                    .expect("the database is there");
                match value {
                    Some(value) => drop(model.facts.insert(key, value.clone())),
                    None => drop(model.facts.remove(&key)),
                }
                continue;
            }
        };
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
    .run(&steps(), |steps| {
        case.set(case.get() + 1);
        runtime.block_on(check(
            &logs,
            Tag::new(format!("{name}_{}", case.get())),
            &steps,
        ))
    })
    .unwrap_or_else(|error| panic!("{error}"));
}
