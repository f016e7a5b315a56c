//! Which commands of a batch are appended, and where: pure, so that it can be tested against a model.

use std::collections::HashMap;

use time::OffsetDateTime;
use uuid::Uuid;

use crate::append::{Append, AppendError, Appended, Expected, Guard};
use crate::event::StreamId;

/// What the batch leans on, as it was at one revision of the log. Changes with each command that is placed, so that the next one
/// sees it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Ground {
    pub(crate) epoch: Uuid,
    pub(crate) position: u64,
    pub(crate) revision: i64,
    /// When what is placed is recorded. Read behind the position, so that times follow positions.
    pub(crate) now: OffsetDateTime,
    /// A missing stream stands at 0.
    pub(crate) versions: HashMap<StreamId, u64>,
    pub(crate) facts: HashMap<String, String>,
    pub(crate) commands: HashMap<Uuid, CarriedOut>,
}

/// A command of an earlier append.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct CarriedOut {
    pub(crate) fingerprint: Vec<u8>,
    pub(crate) first: u64,
    pub(crate) last: u64,
    pub(crate) recorded_at: OffsetDateTime,
    pub(crate) reply: Vec<u8>,
}

/// What happened to a command.
pub(crate) enum Verdict {
    /// Its events get these positions, and each of its streams these versions: `(version of the first event)`.
    Place {
        appended: Appended,
        first_versions: Vec<u64>,
    },
    /// It had been carried out before.
    Replay(Appended),
    Refuse(AppendError),
}

impl Ground {
    /// Places one command behind those before it, or leaves the ground as it was.
    pub(crate) fn place(&mut self, append: &Append) -> Verdict {
        if let Some(verdict) = self.replay(append) {
            return verdict;
        }
        let nothing_new = append.streams.is_empty() && append.command.is_none();
        if nothing_new || append.streams.iter().any(|stream| stream.events.is_empty()) {
            return Verdict::Refuse(AppendError::Empty);
        }
        let first_versions = match self.versions_after(append) {
            Ok(versions) => versions,
            Err(error) => return Verdict::Refuse(error),
        };
        let facts = match self.facts_after(&append.guards) {
            Ok(facts) => facts,
            Err(error) => return Verdict::Refuse(error),
        };
        let count: usize = append
            .streams
            .iter()
            .map(|stream| stream.events.len())
            .sum();
        let appended = Appended {
            epoch: self.epoch,
            first: self.position + 1,
            last: self.position + count as u64,
            recorded_at: self.now,
            replayed: None,
        };
        self.position = appended.last;
        for (stream, first) in append.streams.iter().zip(&first_versions) {
            self.versions.insert(
                stream.stream_id.clone(),
                first + stream.events.len() as u64 - 1,
            );
        }
        for (key, value) in facts {
            match value {
                Some(value) => self.facts.insert(key, value),
                None => self.facts.remove(&key),
            };
        }
        if let Some(command) = &append.command {
            let carried_out = CarriedOut {
                fingerprint: command.fingerprint.clone(),
                first: appended.first,
                last: appended.last,
                recorded_at: self.now,
                reply: command.reply.clone(),
            };
            self.commands.insert(command.id, carried_out);
        }
        Verdict::Place {
            appended,
            first_versions,
        }
    }

    fn replay(&self, append: &Append) -> Option<Verdict> {
        let command = append.command.as_ref()?;
        let earlier = self.commands.get(&command.id)?;
        Some(if earlier.fingerprint == command.fingerprint {
            Verdict::Replay(Appended {
                epoch: self.epoch,
                first: earlier.first,
                last: earlier.last,
                recorded_at: earlier.recorded_at,
                replayed: Some(earlier.reply.clone()),
            })
        } else {
            Verdict::Refuse(AppendError::CommandReused)
        })
    }

    fn versions_after(&self, append: &Append) -> Result<Vec<u64>, AppendError> {
        let mut within: HashMap<&StreamId, u64> = HashMap::new();
        let mut first_versions = Vec::with_capacity(append.streams.len());
        for stream in &append.streams {
            let stands = within
                .get(&stream.stream_id)
                .or_else(|| self.versions.get(&stream.stream_id))
                .copied()
                .unwrap_or(0);
            match stream.expected {
                Expected::Version(version) if version != stands => {
                    return Err(AppendError::VersionConflict {
                        stream_id: stream.stream_id.clone(),
                        actual: stands,
                    });
                }
                Expected::Any | Expected::Version(_) => {}
            }
            first_versions.push(stands + 1);
            within.insert(&stream.stream_id, stands + stream.events.len() as u64);
        }
        Ok(first_versions)
    }

    fn facts_after(
        &self,
        guards: &[Guard],
    ) -> Result<HashMap<String, Option<String>>, AppendError> {
        let mut changed: HashMap<String, Option<String>> = HashMap::new();
        for guard in guards {
            let key = guard.key();
            let found = match changed.get(key) {
                Some(value) => value.clone(),
                None => self.facts.get(key).cloned(),
            };
            match guard {
                Guard::Expect { value, .. } if *value != found => {
                    return Err(AppendError::GuardRefused {
                        key: key.to_owned(),
                        found,
                    });
                }
                Guard::Expect { .. } => {}
                Guard::Set { value, .. } => {
                    changed.insert(key.to_owned(), value.clone());
                }
                Guard::Count { by, min, max, .. } => {
                    let count = found.as_deref().map_or(Ok(0), str::parse::<i64>).ok();
                    match count.and_then(|count| count.checked_add(*by)) {
                        Some(count) if (*min..=*max).contains(&count) => {
                            let value = (count != 0).then(|| count.to_string());
                            changed.insert(key.to_owned(), value);
                        }
                        _ => {
                            return Err(AppendError::GuardRefused {
                                key: key.to_owned(),
                                found,
                            });
                        }
                    }
                }
            }
        }
        Ok(changed)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::{KEYS, Model, STREAMS, Told, appends};

    fn told(verdict: Verdict) -> Told {
        match verdict {
            Verdict::Place { appended, .. } | Verdict::Replay(appended) => Ok(appended).into(),
            Verdict::Refuse(error) => Err(error).into(),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_batch_does_what_the_model_does(start in 0..1_000_u64, appends in appends(1..30)) {
            let mut model = Model::behind(start);
            let mut ground = Ground {
                epoch: Uuid::nil(),
                position: start,
                revision: 0,
                now: OffsetDateTime::UNIX_EPOCH,
                versions: HashMap::new(),
                facts: HashMap::new(),
                commands: HashMap::new(),
            };
            for append in &appends {
                let before = (model.clone(), ground.clone());
                let verdict = ground.place(append);
                if let Verdict::Place { appended, first_versions } = &verdict {
                    let mut position = appended.first;
                    for (part, first) in append.streams.iter().zip(first_versions) {
                        let earlier = append.streams.iter().take_while(|other| !std::ptr::eq(*other, part));
                        let within: usize = earlier
                            .filter(|other| other.stream_id == part.stream_id)
                            .map(|other| other.events.len())
                            .sum();
                        prop_assert_eq!(*first, before.0.version(part.stream_id.as_str()) + within as u64 + 1);
                        position += part.events.len() as u64;
                    }
                    prop_assert_eq!(position, appended.last + 1);
                } else {
                    prop_assert_eq!(&ground, &before.1, "refused, and yet something changed");
                }
                prop_assert_eq!(told(verdict), model.carry_out(append), "{:?}", append);
                prop_assert_eq!(ground.position, model.head());
            }
            for name in STREAMS {
                let stream = StreamId::new("thing", name);
                prop_assert_eq!(ground.versions.get(&stream).copied().unwrap_or(0), model.version(stream.as_str()));
            }
            for key in KEYS {
                prop_assert_eq!(ground.facts.get(key), model.facts.get(key));
            }
        }
    }
}
