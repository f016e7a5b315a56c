//! How much a follower applies in one transaction, and how long that may take.
//!
//! What takes too long is rolled back, and would take as long again: so less is tried, down to one event. One event may
//! change as many rows as there are, and is given more time whenever it was not enough. A database that vanished is not
//! waited for any longer for that: each attempt begins with a connection on which it has answered just now.

use std::time::Duration;

/// Events in a transaction at most.
pub(crate) const BATCH: usize = 500;
/// The most time that one event is given: a connection that broke unnoticed in between is waited for as long.
const LONGEST: Duration = Duration::from_mins(30);

/// Of one follower.
#[derive(Debug)]
pub(crate) struct Pace {
    /// Events in the next transaction at most.
    pub(crate) events: usize,
    /// For the next transaction.
    pub(crate) patience: Duration,
    usual: Duration,
}

impl Pace {
    /// Whole batches, for each of which there is so much time.
    pub(crate) fn new(usual: Duration) -> Self {
        Self {
            events: BATCH,
            patience: usual,
            usual,
        }
    }

    /// So many events took longer than there was time for.
    pub(crate) fn slower(&mut self, events: usize) {
        if events > 1 {
            self.events = events / 2;
        } else {
            self.patience = (2 * self.patience).min(LONGEST);
        }
    }

    /// Events were applied. Twice as many are tried only if there seems to be time for them, and to spare.
    pub(crate) fn applied(&mut self, took: Duration) {
        if took < self.usual / 4 {
            self.events = BATCH.min(2 * self.events);
            self.patience = self.usual;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USUAL: Duration = Duration::from_secs(8);

    #[test]
    fn what_takes_too_long_is_halved_and_then_given_more_time() {
        let mut pace = Pace::new(USUAL);
        pace.slower(5);
        assert_eq!((pace.events, pace.patience), (2, USUAL));
        pace.slower(2);
        assert_eq!((pace.events, pace.patience), (1, USUAL));
        pace.slower(1);
        assert_eq!((pace.events, pace.patience), (1, 2 * USUAL));
        pace.slower(1);
        assert_eq!((pace.events, pace.patience), (1, 4 * USUAL));
        for _ in 0..100 {
            pace.slower(1);
        }
        assert_eq!((pace.events, pace.patience), (1, LONGEST));
    }

    #[test]
    fn more_is_tried_once_there_is_time_to_spare() {
        let mut pace = Pace::new(USUAL);
        pace.slower(2);
        pace.slower(1);
        pace.applied(USUAL);
        assert_eq!((pace.events, pace.patience), (1, 2 * USUAL));
        for events in [2, 4, 8, 16, 32, 64, 128, 256, 500, 500] {
            pace.applied(Duration::from_secs(1));
            assert_eq!((pace.events, pace.patience), (events, USUAL));
        }
    }
}
