//! What this process appended just now. The relay takes it from here instead of asking the database for what was sent
//! there a moment ago.
//!
//! It is a memory of the log and never more: taken is only what stands right behind an event that the relay knows, and
//! what follows that without a gap. Whatever else there is in the log, the relay reads there.

use std::sync::{Mutex, MutexGuard, PoisonError};

use uuid::Uuid;

use crate::event::RecordedEvent;

/// Bytes that are remembered at most; beyond, the relay is far behind and reads the log.
const REMEMBERED: usize = 4 << 20;
/// Of an event in memory, beside its payload, more or less.
const EVENT: usize = 512;

#[derive(Default)]
pub(crate) struct Recent(Mutex<Chain>);

/// Events that follow each other in the log.
#[derive(Default)]
struct Chain {
    /// The one before the first, if that is known.
    before: Option<(u64, Uuid)>,
    events: Vec<RecordedEvent>,
    size: usize,
}

fn place(event: &RecordedEvent) -> (u64, Uuid) {
    (event.position, event.id)
}

impl Chain {
    fn end(&self) -> Option<(u64, Uuid)> {
        self.events.last().map(place).or(self.before)
    }

    /// The events, if they follow this one; from then on only what comes.
    fn behind(&mut self, position: u64, id: Uuid) -> Option<Vec<RecordedEvent>> {
        let known = if self.before == Some((position, id)) {
            0
        } else {
            let found = self
                .events
                .binary_search_by_key(&position, |it| it.position);
            found.ok().filter(|index| self.events[*index].id == id)? + 1
        };
        self.before = self.end();
        self.size = 0;
        Some(std::mem::take(&mut self.events).split_off(known))
    }
}

impl Recent {
    fn chain(&self) -> MutexGuard<'_, Chain> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What comes may not follow what came: the database may have been put back to an earlier state meanwhile.
    pub(crate) fn begin_anew(&self) {
        *self.chain() = Chain::default();
    }

    /// Adds what was appended just now, in order.
    pub(crate) fn add(&self, events: Vec<RecordedEvent>) {
        let Some(first) = events.first() else {
            return;
        };
        let mut chain = self.chain();
        let end = chain.end();
        if end.is_none_or(|(position, _)| position + 1 != first.position) {
            *chain = Chain::default();
        }
        let size = |event: &RecordedEvent| EVENT + event.payload.len();
        chain.size += events.iter().map(size).sum::<usize>();
        chain.events.extend(events);
        if chain.size > REMEMBERED {
            *chain = Chain {
                before: chain.end(),
                ..Chain::default()
            };
        }
    }

    /// What was appended behind this event. `None` if that is not known: the log tells.
    pub(crate) fn take(&self, position: u64, id: Uuid) -> Option<Vec<RecordedEvent>> {
        self.chain().behind(position, id)
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::append::{Append, Expected, StreamAppend};
    use crate::event::{Metadata, NewEvent, StreamId};
    use crate::log::{EventLog, migrate};

    fn event(position: u64, payload: usize) -> RecordedEvent {
        RecordedEvent {
            position,
            stream_id: "thing/a".to_owned(),
            version: position,
            id: bed::unique_id(),
            event_type: "tharsis.test.v1.Happened".to_owned(),
            payload: vec![b'x'; payload].into(),
            metadata: Metadata::default(),
            recorded_at: time::OffsetDateTime::UNIX_EPOCH,
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Ours(u64),
        AnotherProcess(u64),
        NewConnection,
        /// The database is back at an earlier state, and the connections to it ended.
        PutBack(u64),
        /// Takes what stands behind the event so many before the end.
        Take(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => (1..4_u64).prop_map(Step::Ours),
            1 => (1..3_u64).prop_map(Step::AnotherProcess),
            1 => Just(Step::NewConnection),
            1 => (1..5_u64).prop_map(Step::PutBack),
            4 => prop_oneof![Just(0), 0..6_u64].prop_map(Step::Take),
        ];
        vec(step, 1..40)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

        /// However the log came to be, what is taken is what it holds there.
        #[test]
        fn what_is_taken_stands_in_the_log(steps in steps()) {
            let recent = Recent::default();
            let mut log: Vec<RecordedEvent> = vec![];
            // What an older state of the log held, and a relay may still know.
            let mut gone: Vec<RecordedEvent> = vec![];
            let grow = |log: &mut Vec<RecordedEvent>, count| {
                let new: Vec<_> = (1..=count).map(|next| event(log.len() as u64 + next, 8)).collect();
                log.extend(new.iter().cloned());
                new
            };
            for step in steps {
                match step {
                    Step::Ours(count) => recent.add(grow(&mut log, count)),
                    Step::AnotherProcess(count) => {
                        grow(&mut log, count);
                    }
                    Step::NewConnection => recent.begin_anew(),
                    Step::PutBack(count) => {
                        let kept = log.len().saturating_sub(usize::try_from(count).expect("small"));
                        gone.extend(log.split_off(kept));
                        recent.begin_anew();
                    }
                    Step::Take(back) => {
                        for of_old in &gone {
                            prop_assert_eq!(recent.take(of_old.position, of_old.id), None);
                        }
                        let from = log.len().saturating_sub(usize::try_from(back).expect("small"));
                        let Some(known) = from.checked_sub(1).map(|index| &log[index]) else { continue };
                        if let Some(taken) = recent.take(known.position, known.id) {
                            prop_assert_eq!(&taken[..], &log[from..from + taken.len()]);
                        }
                    }
                }
            }
        }

        /// A relay that keeps up needs the log only for where it begins.
        #[test]
        fn who_keeps_up_gets_everything(batches in vec(1..4_u64, 1..20)) {
            let recent = Recent::default();
            let mut known = event(7, 8);
            recent.add(vec![known.clone()]);
            for count in batches {
                let new: Vec<_> = (1..=count).map(|next| event(known.position + next, 8)).collect();
                recent.add(new.clone());
                let taken = recent.take(known.position, known.id);
                known = new.last().expect("at least one").clone();
                prop_assert_eq!(taken, Some(new));
            }
            prop_assert_eq!(recent.take(known.position, known.id), Some(vec![]));
        }
    }

    #[tokio::test]
    async fn behind_a_lost_connection_it_is_not_known_what_follows() {
        let database = bed::Database::create().await;
        migrate(database.pool(), None).await.expect("migrated");
        let pool = database.another_pool(2);
        let log = EventLog::open("test", pool).await.expect("opened");
        let append = async || {
            let event = NewEvent {
                id: bed::unique_id(),
                event_type: "tharsis.test.v1.Happened",
                payload: vec![],
            };
            let streams = vec![StreamAppend {
                stream_id: StreamId::new("thing", "a"),
                expected: Expected::Any,
                events: vec![event],
            }];
            let append = Append {
                streams,
                ..Append::default()
            };
            log.append(append).await.map_err(|error| error.to_string())
        };
        append().await.expect("appended");
        append().await.expect("appended");
        let both = log.read(0, 2).await.expect("read");
        let taken = log.recent().take(1, both[0].id);
        assert_eq!(taken, Some(both[1..].to_vec()));
        let all = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                   WHERE datname = current_database() AND pid <> pg_backend_pid()";
        let ended = sqlx::raw_sql(all).execute(database.pool()).await;
        ended.expect("the connections end");
        bed::eventually(append).await;
        assert_eq!(log.recent().take(2, both[1].id), None);
    }

    #[test]
    fn what_is_too_much_is_left_to_the_log() {
        let recent = Recent::default();
        let (first, large, next) = (event(1, 8), event(2, REMEMBERED), event(3, 8));
        recent.add(vec![first.clone(), large.clone()]);
        recent.add(vec![next.clone()]);
        assert_eq!(recent.take(first.position, first.id), None);
        assert_eq!(recent.take(large.position, large.id), Some(vec![next]));
    }
}
