//! How current that is which decisions lean on: what was revoked elsewhere has to be known here within a second, and
//! where that can't be told any more, nothing is issued.

use std::sync::atomic::Ordering;
use std::time::Duration;

use edge::status;
use eventlog::{Facts, Guard, Progress};
use tokio::time::{Instant, timeout};
use tonic::Status;
use uuid::Uuid;

use super::IssuerRpc;

/// What is known from longer ago than this is asked for anew: a revocation counts within a second.
const MOMENT: Duration = Duration::from_millis(900);
/// How long the answer is waited for.
const PATIENCE: Duration = Duration::from_millis(500);
/// How much longer, where a log is known to go on and the database does not take it: as long as somebody who was stopped can
/// keep a lock, and longer.
const MORE_PATIENCE: Duration = Duration::from_secs(3);

/// How often a request is decided before giving up. Each time something that it leans on changed meanwhile.
const ATTEMPTS: usize = 10;

/// Which one it is of the attempts to decide a request.
#[derive(Clone, Copy)]
pub(super) struct Attempt(usize);

impl Attempt {
    fn is_last(self) -> bool {
        self.0 == ATTEMPTS
    }
}

/// Decides a request, again and again as long as what that leans on changes meanwhile: then `decide` has to answer `None`.
pub(super) async fn until_steady<T, E, F>(decide: impl Fn(Attempt) -> F) -> Result<T, E>
where
    E: From<Status>,
    F: Future<Output = Result<Option<T>, E>>,
{
    for attempt in (1..=ATTEMPTS).map(Attempt) {
        if let Some(decided) = decide(attempt).await? {
            return Ok(decided);
        }
    }
    let message = "what this was decided on kept changing; try again";
    Err(status::aborted("CONTENTION", message).into())
}

/// Whether waiting would not make us know more.
fn is_fresh(progress: &Progress) -> bool {
    let current = progress.current_at;
    progress.halted.is_some() || current.is_some_and(|at| at.elapsed() <= MOMENT)
}

fn behind(log: &str, since: Instant) -> Status {
    let message = format!(
        "the log of {log} has gone on, and for {} ms the issuer could not apply it: what is asked for may be revoked; try \
         again",
        since.elapsed().as_millis()
    );
    status::unavailable("REPLICA_STALE", &message)
}

fn revision(positions: impl Iterator<Item = (&'static str, u64)>) -> String {
    let positions = positions.map(|(log, position)| format!("{log}={position}"));
    positions.collect::<Vec<_>>().join(",")
}

impl IssuerRpc {
    /// Since when what we know is known to be so. If that is more than a moment ago, something may have been revoked
    /// meanwhile: then word is waited for, but not long, for an owner that is away revokes nothing either. One that is not
    /// away, and says that its log goes on, may have.
    pub(super) async fn current(&self) -> Result<Instant, Status> {
        self.shared.keys.clock_agrees()?;
        let mut replica = self.shared.replica.iter();
        if !replica.all(|(_, progress)| is_fresh(&progress.borrow())) {
            let _ = timeout(PATIENCE, self.word()).await;
            if self.unapplied().is_some() {
                let _ = timeout(MORE_PATIENCE, self.word()).await;
            }
            if let Some((log, since)) = self.unapplied() {
                return Err(behind(log, since));
            }
        }
        self.refuse_on_stale_replica()
    }

    /// A log of which more is known to be there than is applied, for more than a moment; and since when.
    fn unapplied(&self) -> Option<(&'static str, Instant)> {
        let mut replica = self.shared.replica.iter();
        replica.find_map(|(log, progress)| {
            let progress = progress.borrow();
            let ahead = progress.ahead.filter(|_| !is_fresh(&progress));
            ahead.map(|(_, since)| (*log, since))
        })
    }

    /// Comes when all logs are known up to a moment ago.
    async fn word(&self) {
        for (_, progress) in &self.shared.replica {
            // Its sender lives as long as the follower.
            let _ = progress.clone().wait_for(is_fresh).await;
        }
    }

    /// How far each log is known: its epoch, once there is word of it, and a position.
    pub(super) fn known(&self) -> impl Iterator<Item = (&'static str, Option<Uuid>, u64)> {
        let replica = self.shared.replica.iter().zip(&*self.reached);
        replica.map(|((log, progress), reached)| {
            let progress = progress.borrow();
            let position = progress.position.max(reached.load(Ordering::Relaxed));
            (*log, progress.epoch, position)
        })
    }

    /// The revision of what is known: `namespace=7,identity=9`.
    pub(super) fn revision(&self) -> String {
        revision(self.known().map(|(log, _, position)| (log, position)))
    }

    /// The revision at which all is as these guards expect, as late as any that is known. `None` if it is not any more.
    pub(super) async fn still_at(&self, guards: &[Guard]) -> Result<Option<String>, Status> {
        let expected: Vec<(&String, Option<&str>)> = guards
            .iter()
            .filter_map(|guard| match guard {
                Guard::Expect { key, value } => Some((key, value.as_deref())),
                Guard::Set { .. } | Guard::Count { .. } => None,
            })
            .collect();
        let keys: Vec<String> = expected.iter().map(|(key, _)| (*key).clone()).collect();
        let (facts, revision) = self.facts_now(&keys).await?;
        let mut expected = expected.into_iter();
        let all = expected.all(|(key, value)| facts.get(key) == value);
        Ok(all.then_some(revision))
    }

    /// The same for what was read since the revision `before`. Of a role that somebody does not have, no guard tells: then
    /// nothing at all may have changed. Unless it is the last attempt: under a log that never rests, nobody would be told of
    /// a refusal.
    pub(super) async fn found_at(
        &self,
        guards: &[Guard],
        has_role: bool,
        before: &str,
        attempt: Attempt,
    ) -> Result<Option<String>, Status> {
        let revision = self.still_at(guards).await?;
        let settled = has_role || attempt.is_last();
        Ok(revision.filter(|revision| settled || revision == before))
    }

    /// The revision of what is in the database: of what has been read of it before, or a later one.
    pub(super) async fn revision_now(&self) -> Result<String, Status> {
        let (_, revision) = self.facts_now(&[]).await?;
        Ok(revision)
    }

    /// Facts, and their revision.
    async fn facts_now(&self, keys: &[String]) -> Result<(Facts, String), Status> {
        let found = self.shared.commands.log().facts_at_checkpoints(keys).await;
        let (facts, checkpoints) = found.map_err(|error| status::log(&error))?;
        let logs = self.shared.replica.iter().zip(&*self.reached);
        let now = logs.map(|((log, _), reached)| {
            let position = checkpoints.get(*log).copied().unwrap_or_default();
            // The followers tell of what they have written a moment later, and of what another process has written later
            // still.
            reached.fetch_max(position, Ordering::Relaxed);
            (*log, position)
        });
        Ok((facts, revision(now)))
    }

    /// Past the bound, what we know may be revoked already: we refuse rather than guess. Answers since when all of it is
    /// known to be so.
    pub(super) fn refuse_on_stale_replica(&self) -> Result<Instant, Status> {
        let mut since = Instant::now();
        for (log, progress) in &self.shared.replica {
            let progress = progress.borrow();
            if progress.halted.is_some() {
                let message = format!(
                    "the issuer does not follow {log} any more; no credentials are issued until an operator has looked \
                     after it"
                );
                return Err(status::unavailable("FOLLOWER_HALTED", &message));
            }
            let current = progress.current_at;
            since = current
                .filter(|at| self.is_within_bound(*at))
                .map(|at| since.min(at))
                .ok_or_else(|| self.stale(log, current))?;
        }
        // Whose tokens are of a key that was revoked, too.
        let looked = self.shared.keys.looked();
        if !self.is_within_bound(looked) {
            return Err(self.stale("its signing keys", Some(looked)));
        }
        Ok(since.min(looked))
    }

    /// To record it may have taken long. Then the record says of tokens that they were issued, and nobody has them.
    pub(super) fn refuse_if_late(&self, since: Instant) -> Result<(), Status> {
        if self.is_within_bound(since) {
            return Ok(());
        }
        Err(self.stale("the logs that it decides on", Some(since)))
    }

    fn is_within_bound(&self, since: Instant) -> bool {
        since.elapsed() <= self.shared.staleness_bound
    }

    fn stale(&self, log: &str, current: Option<Instant>) -> Status {
        let age = current.map_or("ever".to_owned(), |at| {
            format!("{} s", at.elapsed().as_secs())
        });
        let message = format!(
            "the issuer has not been up to date with {log} for {age}, longer than the bound of {} s; no credentials \
             are issued until it is",
            self.shared.staleness_bound.as_secs()
        );
        status::unavailable("REPLICA_STALE", &message)
    }
}
