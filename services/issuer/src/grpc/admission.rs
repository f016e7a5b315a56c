//! How much is done at once for whom nothing, or little, is known of yet, so that it leaves most of what there is to others.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::available_parallelism;
use std::time::Duration;

use edge::{http1, status};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tonic::Status;

/// Of the exchanges at once, those for the service accounts of one top-level group are a part like this: who waits for issuers
/// that it trusts keeps nobody else out.
const GROUPS: usize = 4;
/// And those of a group further down half of what the group above it has, but no fewer than these.
const LEAST: usize = 16;
/// Service accounts that are looked up at once. The other connections to the database are left to callers with a token of
/// ours and to what follows the logs.
const LOOK_UPS: usize = 4;
/// How long a look-up waits for the others.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long what is to be computed waits for its turn.
const TURN_PATIENCE: Duration = Duration::from_secs(5);

pub(super) struct Admission {
    /// How many at once, most of which wait for an issuer's keys.
    most: usize,
    exchanges: Semaphore,
    verifying: OfGroups,
    look_ups: Semaphore,
    computing: Arc<Semaphore>,
    computing_of: OfGroups,
}

impl Default for Admission {
    fn default() -> Self {
        // Over HTTP each has a connection of its own, and the other half of them is left for discovery and the key set.
        let most = http1::connections() / 2;
        let cores = available_parallelism().map_or(1, usize::from);
        Self {
            most,
            exchanges: Semaphore::new(most),
            verifying: OfGroups::default(),
            look_ups: Semaphore::new(LOOK_UPS),
            computing: Arc::new(Semaphore::new(cores.div_ceil(2))),
            computing_of: OfGroups::default(),
        }
    }
}

impl Admission {
    /// For as long as the exchange takes.
    pub(super) fn exchange(&self) -> Result<SemaphorePermit<'_>, Status> {
        self.exchanges.try_acquire().map_err(|_| busy())
    }

    /// For as long as the keys may be waited for that a service account of the first of these groups trusts; each of the
    /// others lies above the one before.
    pub(super) fn verification(
        &self,
        groups: &[&str],
    ) -> Result<Vec<OwnedSemaphorePermit>, Status> {
        let mut most = self.most.div_ceil(GROUPS);
        let places = groups.iter().rev().map(|group| {
            let places = self.verifying.of(group, most);
            most = (most / 2).max(LEAST);
            places.try_acquire_owned().map_err(|_| busy())
        });
        places.collect()
    }

    /// For as long as the service account is looked up, and not while its issuer is waited for.
    pub(super) async fn look_up(&self) -> Result<SemaphorePermit<'_>, Status> {
        let place = timeout(PATIENCE, self.look_ups.acquire()).await;
        place.ok().and_then(Result::ok).ok_or_else(busy)
    }

    /// Computes what may take long by what the members of a top-level group have put down: beside the threads that serve, one
    /// thing at a time for each such group, and for all of them so many that half of the cores are left. `None` if its turn
    /// does not come.
    pub(super) async fn compute<T: Send + 'static>(
        &self,
        group: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let turns = async {
            let of_group = self.computing_of.of(group, 1).acquire_owned().await;
            let of_all = Arc::clone(&self.computing).acquire_owned().await;
            // Neither is ever closed.
            of_group.ok().zip(of_all.ok())
        };
        let turns = timeout(TURN_PATIENCE, turns).await.ok()??;
        // Who hangs up does not end the work, nor its turns before it.
        let work = spawn_blocking(move || {
            let _turns = turns;
            work()
        });
        work.await.ok()
    }
}

/// The places of groups, of which one is taken or waited for.
#[derive(Default)]
struct OfGroups(Mutex<HashMap<String, Arc<Semaphore>>>);

impl OfGroups {
    /// Those of a group, which has so many.
    fn of(&self, group: &str, places: usize) -> Arc<Semaphore> {
        let mut groups = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        groups.retain(|_, places| Arc::strong_count(places) > 1);
        let of_group = groups
            .entry(group.to_owned())
            .or_insert_with(|| Arc::new(Semaphore::new(places)));
        Arc::clone(of_group)
    }
}

pub(super) fn busy() -> Status {
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
            .map(|_| admission.verification(&["acme"]).expect("a place"))
            .collect();
        assert_busy(&admission.verification(&["acme"]).expect_err("too many"));
        assert!(admission.verification(&["other"]).is_ok());
        drop(held);
        assert!(admission.verification(&["acme"]).is_ok());
    }

    #[test]
    fn nor_those_beside_it_below_the_same_group() {
        let admission = Admission::default();
        let mut held = vec![];
        while let Ok(places) = admission.verification(&["slow", "team", "acme"]) {
            held.push(places);
        }
        assert_eq!(held.len(), admission.most.div_ceil(GROUPS) / 4);
        assert!(admission.verification(&["other", "team", "acme"]).is_ok());
        // What was taken on the way to a group that has none left is given back.
        for _ in 0..admission.most {
            assert_busy(
                &admission
                    .verification(&["slow", "team", "acme"])
                    .expect_err("too many"),
            );
        }
        assert!(admission.verification(&["team", "acme"]).is_ok());
    }

    #[tokio::test]
    async fn one_thing_at_a_time_is_computed_for_a_group_and_others_have_their_turn() {
        let admission = Arc::new(Admission {
            computing: Arc::new(Semaphore::new(2)),
            ..Admission::default()
        });
        let (goes_on, waits) = std::sync::mpsc::channel();
        let (begins, begun) = tokio::sync::oneshot::channel();
        let long = tokio::spawn({
            let admission = Arc::clone(&admission);
            async move {
                let work = move || {
                    begins.send(()).expect("it is waited for");
                    waits.recv().expect("it goes on");
                };
                admission.compute("acme", work).await
            }
        });
        begun.await.expect("it begins");
        let (order, mut computed) = tokio::sync::mpsc::unbounded_channel();
        let computes = |group: &'static str| {
            let (admission, order) = (Arc::clone(&admission), order.clone());
            tokio::spawn(async move {
                let work = move || order.send(group).expect("it is read");
                admission.compute(group, work).await
            })
        };
        let second = computes("acme");
        for _ in 0..10 {
            assert_eq!(computes("other").await.expect("no panic"), Some(()));
            assert_eq!(computed.recv().await, Some("other"));
        }
        assert!(computed.try_recv().is_err());
        // Whoever asked for it may have gone; its turn ends when it is done.
        long.abort();
        goes_on.send(()).expect("it waits");
        assert_eq!(second.await.expect("no panic"), Some(()));
        assert_eq!(computed.recv().await, Some("acme"));
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
