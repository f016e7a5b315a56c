//! A reference model of the log, written from its rules and not from its code: slow, obvious, one command after the
//! other. The unit tests of the batch include this file too, so its names come from the root of either crate.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use proptest::collection::vec;
use proptest::prelude::*;
use uuid::Uuid;

use crate::{
    Append, AppendError, Appended, Command, Expected, Guard, Metadata, NewEvent, StreamAppend,
    StreamId,
};

/// What a command is told, without what only a database knows.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Told {
    Appended {
        first: u64,
        last: u64,
    },
    Replayed {
        first: u64,
        last: u64,
        reply: Vec<u8>,
    },
    Stands {
        stream: String,
        at: u64,
    },
    Refused {
        key: String,
        found: Option<String>,
    },
    Reused,
    Empty,
}

impl From<Result<Appended, AppendError>> for Told {
    fn from(answer: Result<Appended, AppendError>) -> Self {
        match answer {
            Ok(Appended {
                first,
                last,
                replayed: None,
                ..
            }) => Self::Appended { first, last },
            Ok(Appended {
                first,
                last,
                replayed: Some(reply),
                ..
            }) => Self::Replayed { first, last, reply },
            Err(AppendError::VersionConflict { stream_id, actual }) => Self::Stands {
                stream: stream_id.to_string(),
                at: actual,
            },
            Err(AppendError::GuardRefused { key, found }) => Self::Refused { key, found },
            Err(AppendError::CommandReused) => Self::Reused,
            Err(AppendError::Empty) => Self::Empty,
            Err(error) => panic!("no rule says {error:?}"),
        }
    }
}

/// An event as the model remembers it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Line {
    pub(crate) position: u64,
    pub(crate) stream: String,
    pub(crate) version: u64,
    pub(crate) id: Uuid,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Model {
    /// Where the log ended before.
    start: u64,
    pub(crate) lines: Vec<Line>,
    pub(crate) facts: BTreeMap<String, String>,
    answered: Vec<(Command, u64, u64)>,
}

impl Model {
    pub(crate) fn behind(start: u64) -> Self {
        Self {
            start,
            ..Self::default()
        }
    }

    pub(crate) fn version(&self, stream: &str) -> u64 {
        self.lines
            .iter()
            .filter(|line| line.stream == stream)
            .count() as u64
    }

    pub(crate) fn head(&self) -> u64 {
        self.start + self.lines.len() as u64
    }

    /// A command has its whole effect or none.
    pub(crate) fn carry_out(&mut self, append: &Append) -> Told {
        let mut tried = self.clone();
        let told = tried.try_out(append);
        if matches!(told, Told::Appended { .. }) {
            *self = tried;
        }
        told
    }

    fn try_out(&mut self, append: &Append) -> Told {
        // Whoever asked the same before is told the same, whatever happened since.
        if let Some(command) = &append.command
            && let Some((earlier, first, last)) = self
                .answered
                .iter()
                .find(|(earlier, ..)| earlier.id == command.id)
        {
            return if earlier.fingerprint == command.fingerprint {
                Told::Replayed {
                    first: *first,
                    last: *last,
                    reply: earlier.reply.clone(),
                }
            } else {
                Told::Reused
            };
        }
        // A command that had nothing to change is remembered like any other.
        if append.streams.is_empty() && append.command.is_none() {
            return Told::Empty;
        }
        if append.streams.iter().any(|part| part.events.is_empty()) {
            return Told::Empty;
        }
        let first = self.head() + 1;
        for part in &append.streams {
            let stream = part.stream_id.to_string();
            let at = self.version(&stream);
            if let Expected::Version(expected) = part.expected
                && expected != at
            {
                return Told::Stands { stream, at };
            }
            for event in &part.events {
                let (position, version) = (self.head() + 1, self.version(&stream) + 1);
                self.lines.push(Line {
                    position,
                    stream: stream.clone(),
                    version,
                    id: event.id,
                });
            }
        }
        for guard in append
            .shared
            .iter()
            .flat_map(|guards| guards.iter())
            .chain(&append.guards)
        {
            if let Err(told) = self.pass(guard) {
                return told;
            }
        }
        let last = self.head();
        self.answered
            .extend(append.command.clone().map(|command| (command, first, last)));
        Told::Appended { first, last }
    }

    fn pass(&mut self, guard: &Guard) -> Result<(), Told> {
        let found = self.facts.get(guard.key()).cloned();
        let refused = Err(Told::Refused {
            key: guard.key().to_owned(),
            found: found.clone(),
        });
        match guard {
            Guard::Expect { value, .. } => return if *value == found { Ok(()) } else { refused },
            Guard::Set {
                key,
                value: Some(value),
            } => drop(self.facts.insert(key.clone(), value.clone())),
            Guard::Set { key, value: None } => drop(self.facts.remove(key)),
            Guard::Count { key, by, min, max } => {
                // A fact that is no number can't be counted, and a count of 0 is no fact.
                let Ok(count) = found.unwrap_or("0".to_owned()).parse::<i64>() else {
                    return refused;
                };
                let Some(count) = count.checked_add(*by) else {
                    return refused;
                };
                if count < *min || count > *max {
                    return refused;
                }
                match count {
                    0 => drop(self.facts.remove(key)),
                    _ => drop(self.facts.insert(key.clone(), count.to_string())),
                }
            }
        }
        Ok(())
    }
}

pub(crate) const STREAMS: [&str; 3] = ["a", "b", "c"];
pub(crate) const KEYS: [&str; 3] = ["x", "y", "z"];

/// Few streams, keys and command ids, so that commands get into each other's way.
pub(crate) fn appends(
    count: impl Into<prop::collection::SizeRange>,
) -> impl Strategy<Value = Vec<Append>> {
    vec(append(), count)
}

fn append() -> impl Strategy<Value = Append> {
    let command = (0..6u128, 0..2u8, any::<u8>()).prop_map(|(id, fingerprint, reply)| Command {
        id: Uuid::from_u128(id),
        fingerprint: vec![fingerprint],
        reply: vec![reply],
    });
    (
        prop::option::of(command),
        vec(part(), 0..4),
        vec(shared(), 0..3),
        // Often none: what is shared holds until a fact changes.
        prop_oneof![Just(vec![]), vec(guard(), 0..4)],
    )
        .prop_map(|(command, streams, shared, guards)| Append {
            command,
            streams,
            shared,
            guards,
            metadata: Metadata::default(),
        })
}

/// Few again, and the very same ones: mostly such as can hold for a while, and some that change a fact.
fn shared() -> impl Strategy<Value = Arc<[Guard]>> {
    static SHARED: LazyLock<Vec<Arc<[Guard]>>> = LazyLock::new(|| {
        let value = |value: &str| Some(value.to_owned()).filter(|it| !it.is_empty());
        let expect = |(key, expected): (&str, &str)| Guard::Expect {
            key: key.to_owned(),
            value: value(expected),
        };
        let set = Guard::Set {
            key: "x".to_owned(),
            value: value("1"),
        };
        let count = Guard::Count {
            key: "y".to_owned(),
            by: 0,
            min: 0,
            max: 1,
        };
        vec![
            [].into(),
            [("x", "")].map(expect).into(),
            [("y", ""), ("z", "")].map(expect).into(),
            [("x", "1"), ("z", "")].map(expect).into(),
            [expect(("z", "")), set].into(),
            [count, expect(("y", "1"))].into(),
        ]
    });
    prop::sample::select(&SHARED[..])
}

fn part() -> impl Strategy<Value = StreamAppend> {
    let expected = prop_oneof![Just(Expected::Any), (0..5u64).prop_map(Expected::Version)];
    let event = any::<u128>().prop_map(|id| NewEvent {
        id: Uuid::from_u128(id),
        event_type: "tharsis.test.v1.Happened",
        payload: id.to_be_bytes().to_vec(),
    });
    // Mostly some events: a command without is refused, and shows nothing else.
    let events = prop_oneof![1 => vec(event.clone(), 0..1), 30 => vec(event, 1..4)];
    (prop::sample::select(&STREAMS[..]), expected, events).prop_map(|(stream, expected, events)| {
        StreamAppend {
            stream_id: StreamId::new("thing", stream),
            expected,
            events,
        }
    })
}

fn guard() -> impl Strategy<Value = Guard> {
    let key = || prop::sample::select(&KEYS[..]).prop_map(str::to_owned);
    let value = || {
        let values = [
            None,
            None,
            Some("0"),
            Some("1"),
            Some("2"),
            Some("taken"),
            Some("9223372036854775807"),
        ];
        prop::sample::select(values.map(|value| value.map(str::to_owned)).to_vec())
    };
    prop_oneof![
        (key(), value()).prop_map(|(key, value)| Guard::Expect { key, value }),
        (key(), value()).prop_map(|(key, value)| Guard::Set { key, value }),
        (key(), -2..3i64, -1..2i64, 0..4i64).prop_map(|(key, by, min, max)| Guard::Count {
            key,
            by,
            min,
            max
        }),
    ]
}
