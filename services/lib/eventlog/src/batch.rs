//! Which commands of a batch are appended, and where: pure, so that it can be tested against a model.

use std::collections::HashMap;
use std::sync::Arc;

use time::OffsetDateTime;
use uuid::Uuid;

use crate::append::{Append, AppendError, Expected, Guard};
use crate::event::StreamId;

/// Bytes of an entry that is remembered, beside its text.
const ENTRY: usize = 64;

/// By their keys; `None`: there is no such fact.
type Facts = HashMap<String, Option<String>>;

/// What commands lean on, as it was at one revision of the log.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Ground {
    pub(crate) epoch: Uuid,
    pub(crate) position: u64,
    pub(crate) revision: i64,
    /// A stream that does not exist stands at 0.
    pub(crate) versions: HashMap<StreamId, u64>,
    pub(crate) facts: Facts,
    /// Of those that the batch at hand repeats.
    pub(crate) commands: HashMap<Uuid, CarriedOut>,
    held: Held,
    /// Bytes that it takes in memory, at most: what is told twice counts twice.
    pub(crate) size: usize,
}

/// What the commands of a batch make of its ground. Changes with each command that is placed, so that the next one sees
/// it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Changes {
    pub(crate) position: u64,
    pub(crate) versions: HashMap<StreamId, u64>,
    pub(crate) facts: Facts,
    commands: HashMap<Uuid, CarriedOut>,
    /// Beside those of the ground.
    held: Held,
}

/// Shared guards that were found to hold. Forgotten when a fact changes, be it by themselves.
#[derive(Clone, Debug, Default, PartialEq)]
struct Held(HashMap<usize, Arc<[Guard]>>);

impl Held {
    /// These very ones, not their like. As it keeps them, no others can be where they are.
    fn has(&self, guards: &Arc<[Guard]>) -> bool {
        self.0.contains_key(&Arc::as_ptr(guards).addr())
    }

    fn add(&mut self, guards: Arc<[Guard]>) {
        self.0.insert(Arc::as_ptr(&guards).addr(), guards);
    }
}

/// A command of an earlier append, or of the same batch.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct CarriedOut {
    pub(crate) fingerprint: Vec<u8>,
    pub(crate) first: u64,
    pub(crate) last: u64,
    /// `None`: when the batch is.
    pub(crate) recorded_at: Option<OffsetDateTime>,
    pub(crate) reply: Vec<u8>,
}

/// What happened to a command.
pub(crate) enum Verdict {
    /// It is appended.
    Place(Place),
    /// It had been carried out before.
    Replay(CarriedOut),
    Refuse(AppendError),
}

/// Where a command's events stand.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) first: u64,
    /// Of the one before its place, if it has no events.
    pub(crate) last: u64,
    /// The version of each stream's first event.
    pub(crate) first_versions: Vec<u64>,
}

impl Ground {
    /// Nothing but where the log ends.
    pub(crate) fn at(epoch: Uuid, position: u64, revision: i64) -> Self {
        Self {
            epoch,
            position,
            revision,
            versions: HashMap::new(),
            facts: HashMap::new(),
            commands: HashMap::new(),
            held: Held::default(),
            size: 0,
        }
    }

    /// Whether it tells all that these commands lean on, but for what became of them if they are not new.
    pub(crate) fn covers(&self, appends: &[Append]) -> bool {
        appends.iter().all(|append| {
            let mut streams = append.streams.iter().map(|stream| &stream.stream_id);
            let mut unknown = append.shared.iter().filter(|guards| !self.held.has(guards));
            let mut known = |guard: &Guard| self.facts.contains_key(guard.key());
            streams.all(|id| self.versions.contains_key(id))
                && unknown.all(|guards| guards.iter().all(&mut known))
                && append.guards.iter().all(known)
        })
    }

    /// What else is so at the same revision.
    pub(crate) fn extend(&mut self, other: Self) {
        self.tell(other.versions, other.facts);
        self.commands = other.commands;
    }

    /// As it is once the changes are written.
    pub(crate) fn change(&mut self, changes: &Changes, revision: i64) {
        let Changes {
            position,
            versions,
            facts,
            commands: _,
            held,
        } = changes;
        (self.position, self.revision) = (*position, revision);
        if facts.is_empty() {
            for guards in held.0.values() {
                self.size += ENTRY + guards.iter().map(size).sum::<usize>();
                self.held.add(Arc::clone(guards));
            }
        } else {
            self.held.0.clear();
        }
        self.tell(
            versions.iter().map(|(id, version)| (id.clone(), *version)),
            facts
                .iter()
                .map(|(key, value)| (key.clone(), value.clone())),
        );
        self.commands.clear();
    }

    /// What is so at its revision.
    pub(crate) fn tell(
        &mut self,
        versions: impl IntoIterator<Item = (StreamId, u64)>,
        facts: impl IntoIterator<Item = (String, Option<String>)>,
    ) {
        for (id, version) in versions {
            self.size += ENTRY + id.as_str().len();
            self.versions.insert(id, version);
        }
        for (key, value) in facts {
            self.size += ENTRY + key.len() + value.as_ref().map_or(0, String::len);
            self.facts.insert(key, value);
        }
    }
}

/// Bytes that a guard takes, at most.
fn size(guard: &Guard) -> usize {
    let value = match guard {
        Guard::Expect { value, .. } | Guard::Set { value, .. } => value.as_ref(),
        Guard::Count { .. } => None,
    };
    ENTRY + guard.key().len() + value.map_or(0, String::len)
}

impl Changes {
    /// None yet.
    pub(crate) fn on(ground: &Ground) -> Self {
        Self {
            position: ground.position,
            versions: HashMap::new(),
            facts: HashMap::new(),
            commands: HashMap::new(),
            held: Held::default(),
        }
    }

    /// Places one command behind those before it, or leaves all as it was.
    pub(crate) fn place(&mut self, ground: &Ground, append: &Append) -> Verdict {
        if let Some(verdict) = self.replay(ground, append) {
            return verdict;
        }
        let nothing_new = append.streams.is_empty() && append.command.is_none();
        if nothing_new || append.streams.iter().any(|stream| stream.events.is_empty()) {
            return Verdict::Refuse(AppendError::Empty);
        }
        let first_versions = match self.versions_after(ground, append) {
            Ok(versions) => versions,
            Err(error) => return Verdict::Refuse(error),
        };
        let facts = match self.facts_after(ground, append) {
            Ok(facts) => facts,
            Err(error) => return Verdict::Refuse(error),
        };
        let count: usize = append
            .streams
            .iter()
            .map(|stream| stream.events.len())
            .sum();
        let (first, last) = (self.position + 1, self.position + count as u64);
        self.position = last;
        for (stream, first) in append.streams.iter().zip(&first_versions) {
            self.versions.insert(
                stream.stream_id.clone(),
                first + stream.events.len() as u64 - 1,
            );
        }
        self.facts.extend(facts);
        if self.facts.is_empty() {
            let shared = append.shared.iter();
            let new = shared.filter(|guards| !ground.held.has(guards));
            new.for_each(|guards| self.held.add(Arc::clone(guards)));
        }
        if let Some(command) = &append.command {
            let carried_out = CarriedOut {
                fingerprint: command.fingerprint.clone(),
                first,
                last,
                recorded_at: None,
                reply: command.reply.clone(),
            };
            self.commands.insert(command.id, carried_out);
        }
        Verdict::Place(Place {
            first,
            last,
            first_versions,
        })
    }

    fn replay(&self, ground: &Ground, append: &Append) -> Option<Verdict> {
        let command = append.command.as_ref()?;
        let earlier = self.commands.get(&command.id);
        let earlier = earlier.or_else(|| ground.commands.get(&command.id))?;
        Some(if earlier.fingerprint == command.fingerprint {
            Verdict::Replay(earlier.clone())
        } else {
            Verdict::Refuse(AppendError::CommandReused)
        })
    }

    fn versions_after(&self, ground: &Ground, append: &Append) -> Result<Vec<u64>, AppendError> {
        let mut within: HashMap<&StreamId, u64> = HashMap::new();
        let mut first_versions = Vec::with_capacity(append.streams.len());
        for stream in &append.streams {
            let stands = within
                .get(&stream.stream_id)
                .or_else(|| self.versions.get(&stream.stream_id))
                .or_else(|| ground.versions.get(&stream.stream_id))
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

    /// The facts that the command changes.
    fn facts_after(&self, ground: &Ground, append: &Append) -> Result<Facts, AppendError> {
        let mut changed = Facts::new();
        for guards in &append.shared {
            let unchanged = self.facts.is_empty() && changed.is_empty();
            if unchanged && (ground.held.has(guards) || self.held.has(guards)) {
                continue;
            }
            for guard in guards.iter() {
                self.check(ground, guard, &mut changed)?;
            }
        }
        for guard in &append.guards {
            self.check(ground, guard, &mut changed)?;
        }
        Ok(changed)
    }

    fn check(
        &self,
        ground: &Ground,
        guard: &Guard,
        changed: &mut Facts,
    ) -> Result<(), AppendError> {
        let key = guard.key();
        let found = changed
            .get(key)
            .or_else(|| self.facts.get(key))
            .or_else(|| ground.facts.get(key))
            .and_then(Option::as_deref);
        let refused = || AppendError::GuardRefused {
            key: key.to_owned(),
            found: found.map(str::to_owned),
        };
        match guard {
            Guard::Expect { value, .. } if value.as_deref() != found => return Err(refused()),
            Guard::Expect { .. } => {}
            Guard::Set { value, .. } => {
                changed.insert(key.to_owned(), value.clone());
            }
            Guard::Count { by, min, max, .. } => {
                let count = found.map_or(Ok(0), str::parse::<i64>).ok();
                let count = count.and_then(|count| count.checked_add(*by));
                let count = count.filter(|count| (*min..=*max).contains(count));
                let count = count.ok_or_else(refused)?;
                let value = (count != 0).then(|| count.to_string());
                changed.insert(key.to_owned(), value);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::model::{KEYS, Model, STREAMS, Told, appends};

    fn told(verdict: Verdict) -> Told {
        match verdict {
            Verdict::Place(Place { first, last, .. }) => Told::Appended { first, last },
            Verdict::Replay(CarriedOut {
                first, last, reply, ..
            }) => Told::Replayed { first, last, reply },
            Verdict::Refuse(error) => Err(error).into(),
        }
    }

    fn batches() -> impl Strategy<Value = Vec<Vec<Append>>> {
        prop_oneof![vec(appends(1..12), 1..4), vec(appends(1..3), 1..12)]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

        /// What one batch has changed is the ground of the next.
        #[test]
        fn batches_do_what_the_model_does(start in 0..1_000_u64, batches in batches()) {
            let mut model = Model::behind(start);
            let (mut ground, mut carried_out) = (Ground::at(Uuid::nil(), start, 0), HashMap::new());
            for (batch, revision) in batches.iter().zip(1..) {
                ground.commands.clone_from(&carried_out);
                let mut changes = Changes::on(&ground);
                for append in batch {
                    let before = (model.clone(), changes.clone());
                    let verdict = changes.place(&ground, append);
                    if let Verdict::Place(Place { first, last, first_versions }) = &verdict {
                        let mut position = *first;
                        for (part, first) in append.streams.iter().zip(first_versions) {
                            let earlier = append.streams.iter().take_while(|other| !std::ptr::eq(*other, part));
                            let within: usize = earlier
                                .filter(|other| other.stream_id == part.stream_id)
                                .map(|other| other.events.len())
                                .sum();
                            prop_assert_eq!(*first, before.0.version(part.stream_id.as_str()) + within as u64 + 1);
                            position += part.events.len() as u64;
                        }
                        prop_assert_eq!(position, last + 1);
                    } else {
                        prop_assert_eq!(&changes, &before.1, "refused, and yet something changed");
                    }
                    prop_assert_eq!(told(verdict), model.carry_out(append), "{:?}", append);
                    prop_assert_eq!(changes.position, model.head());
                }
                carried_out.extend(changes.commands.clone());
                ground.change(&changes, revision);
                prop_assert!(ground.commands.is_empty());
            }
            for name in STREAMS {
                let stream = StreamId::new("thing", name);
                prop_assert_eq!(ground.versions.get(&stream).copied().unwrap_or(0), model.version(stream.as_str()));
            }
            for key in KEYS {
                prop_assert_eq!(ground.facts.get(key).cloned().flatten(), model.facts.get(key).cloned());
            }
        }
    }
}
