//! Waiting for a condition, never for a time.

use std::fmt::Display;
use std::panic::Location;
use std::time::Duration;

use tokio::time::{Instant, sleep};

/// Longer than anything takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(5);

/// Looks again and again until the answer is `Ok`. `Err` says what was seen instead, and after 30 s the panic.
#[track_caller]
pub fn eventually<T, E: Display>(
    mut look: impl AsyncFnMut() -> Result<T, E>,
) -> impl Future<Output = T> {
    let caller = Location::caller();
    async move {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match look().await {
                Ok(seen) => return seen,
                Err(seen) if Instant::now() > deadline => {
                    panic!("waited in vain at {caller}; last seen: {seen}")
                }
                Err(_) => sleep(PAUSE).await,
            }
        }
    }
}
