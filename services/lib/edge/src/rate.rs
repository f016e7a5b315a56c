//! How many requests a caller may make: one who loops shall not crowd the others out.

use std::hash::Hash;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota};
use model::Principal;

/// After so many requests, callers who have been quiet are forgotten.
const SWEEP: u32 = 10_000;

/// Counts the requests of each caller in this process.
pub struct Rates<C: Hash + Eq + Clone = Principal> {
    limiter: DefaultKeyedRateLimiter<C>,
    clock: DefaultClock,
    asked: AtomicU32,
}

impl<C: Hash + Eq + Clone> Rates<C> {
    /// So many requests a second for each caller; twice as many at once after a quiet second.
    #[must_use]
    pub fn new(per_second: NonZeroU32) -> Self {
        let burst = per_second.saturating_mul(NonZeroU32::MIN.saturating_add(1));
        Self {
            limiter: DefaultKeyedRateLimiter::keyed(
                Quota::per_second(per_second).allow_burst(burst),
            ),
            clock: DefaultClock::default(),
            asked: AtomicU32::new(0),
        }
    }

    /// Counts one request. The error is after how long the caller may make the next one.
    pub fn count(&self, caller: &C) -> Result<(), Duration> {
        if self.asked.fetch_add(1, Ordering::Relaxed) % SWEEP == SWEEP - 1 {
            self.limiter.retain_recent();
        }
        self.limiter
            .check_key(caller)
            .map_err(|until| until.wait_time_from(self.clock.now()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_who_loops_waits_and_others_do_not() {
        let rates = Rates::new(NonZeroU32::MIN);
        let (alice, bob) = ["dev/alice", "dev/bob"]
            .map(|user| Principal::user(user).expect("a user"))
            .into();
        assert_eq!(rates.count(&alice), Ok(()));
        assert_eq!(rates.count(&alice), Ok(()));
        let wait = rates.count(&alice).expect_err("too many");
        assert!(wait <= Duration::from_secs(1), "{wait:?}");
        assert_eq!(rates.count(&bob), Ok(()));
    }
}
