//! How many exchange tokens at once. Nothing is known of who they are until their tokens are verified, so they leave most of
//! what there is to those of whom something is known.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use edge::{http1, status};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};
use tokio::time::timeout;
use tonic::Status;

/// Of the exchanges at once, those for the service accounts of one top-level group are a part like this: who waits for issuers
/// that it trusts keeps nobody else out.
const GROUPS: usize = 4;
/// Service accounts that are looked up at once. The other connections to the database are left to callers with a token of
/// ours and to what follows the logs.
const LOOK_UPS: usize = 4;
/// How long a look-up waits for the others.
const PATIENCE: Duration = Duration::from_secs(1);

pub(super) struct Admission {
    /// How many at once, most of which wait for an issuer's keys.
    most: usize,
    exchanges: Semaphore,
    /// Of each top-level group for which there are any.
    of: Mutex<HashMap<String, Arc<Semaphore>>>,
    look_ups: Semaphore,
}

impl Default for Admission {
    fn default() -> Self {
        // Over HTTP each has a connection of its own, and the other half of them is left for discovery and the key set.
        let most = http1::connections() / 2;
        Self {
            most,
            exchanges: Semaphore::new(most),
            of: Mutex::default(),
            look_ups: Semaphore::new(LOOK_UPS),
        }
    }
}

impl Admission {
    /// For as long as the exchange takes.
    pub(super) fn exchange(&self) -> Result<SemaphorePermit<'_>, Status> {
        self.exchanges.try_acquire().map_err(|_| busy())
    }

    /// For as long as the keys may be waited for that a service account of this group trusts.
    pub(super) fn verification(&self, group: &str) -> Result<OwnedSemaphorePermit, Status> {
        let mut of = self.of.lock().unwrap_or_else(PoisonError::into_inner);
        of.retain(|_, places| Arc::strong_count(places) > 1);
        let places = of
            .entry(group.to_owned())
            .or_insert_with(|| Arc::new(Semaphore::new(self.most.div_ceil(GROUPS))));
        Arc::clone(places).try_acquire_owned().map_err(|_| busy())
    }

    /// For as long as the service account is looked up, and not while its issuer is waited for.
    pub(super) async fn look_up(&self) -> Result<SemaphorePermit<'_>, Status> {
        let place = timeout(PATIENCE, self.look_ups.acquire()).await;
        place.ok().and_then(Result::ok).ok_or_else(busy)
    }
}

fn busy() -> Status {
    let message = "the issuer is busy exchanging the tokens of others; ask again in a second";
    status::unavailable("EXCHANGE_BUSY", message)
}

#[cfg(test)]
mod tests {
    use tonic::Code;
    use tonic_types::StatusExt as _;

    use super::*;

    fn assert_busy(refused: &Status) {
        assert_eq!(
            (refused.code(), status::reason(refused).as_str()),
            (Code::Unavailable, "EXCHANGE_BUSY")
        );
        assert!(refused.get_details_retry_info().is_some());
    }

    #[tokio::test]
    async fn a_look_up_waits_for_the_others_but_not_long() {
        let admission = Admission::default();
        let mut held = vec![];
        for _ in 0..LOOK_UPS {
            held.push(admission.look_up().await.expect("a place"));
        }
        assert_busy(&admission.look_up().await.expect_err("too many"));
        let (next, ()) = tokio::join!(admission.look_up(), async { held.clear() });
        assert!(next.is_ok());
    }

    #[test]
    fn one_group_keeps_no_other_one_out() {
        let admission = Admission::default();
        let held: Vec<_> = (0..admission.most.div_ceil(GROUPS))
            .map(|_| admission.verification("acme").expect("a place"))
            .collect();
        assert_busy(&admission.verification("acme").expect_err("too many"));
        assert!(admission.verification("other").is_ok());
        drop(held);
        assert!(admission.verification("acme").is_ok());
    }

    #[test]
    fn beyond_so_many_exchanges_nobody_waits() {
        let admission = Admission::default();
        let mut held: Vec<_> = (0..admission.most)
            .map(|_| admission.exchange().expect("a place"))
            .collect();
        assert_busy(&admission.exchange().expect_err("too many"));
        held.pop();
        assert!(admission.exchange().is_ok());
    }
}
