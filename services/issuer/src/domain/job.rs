//! A job: a run of Terraform in a workspace.

use model::attestation::ModuleDigest;
use model::{JobDuration, JobId, Principal, Stage, WorkspaceId};
use time::{Duration, OffsetDateTime};

/// How long a job that has ever sent a heartbeat may be silent, if it was not told otherwise.
pub const DEFAULT_HEARTBEAT_TIMEOUT: Duration = Duration::minutes(5);

/// Steps of a heartbeat time-out: by one at most a job lives longer than it may be silent, and so often it says that it lives.
const STEPS: i64 = 20;

/// A job's life so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// It was never opened.
    #[default]
    Absent,
    /// It was opened, and is over at its `expires`.
    Opened {
        /// What it is.
        job: Job,
        /// When it is over without another heartbeat. Nothing before the first: who never sends any need not.
        silent_after: Option<OffsetDateTime>,
    },
    /// It has come to its end.
    Ended(Job, End),
}

/// How a job came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It said so.
    Finished,
    /// Somebody has stopped it.
    Cancelled,
}

/// Why a job is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Over {
    /// It has taken longer than it may.
    #[error("the job is over; open another one")]
    Overdue,
    /// It has sent heartbeats, and no more.
    #[error("the job has been silent for longer than its heartbeat timeout; open another one")]
    Silent,
    /// It said so.
    #[error("the job has finished; open another one")]
    Finished,
    /// Somebody has stopped it.
    #[error("the job was cancelled; open another one")]
    Cancelled,
}

impl From<End> for Over {
    fn from(end: End) -> Self {
        match end {
            End::Finished => Self::Finished,
            End::Cancelled => Self::Cancelled,
        }
    }
}

/// A job that was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// Its id.
    pub id: JobId,
    /// Where it runs.
    pub workspace: WorkspaceId,
    /// What it does.
    pub stage: Stage,
    /// On whose behalf.
    pub principal: Principal,
    /// Who opened it on somebody else's behalf. Otherwise whoever may open jobs could get for them what access rules keep
    /// for others.
    pub opener: Option<Box<Principal>>,
    /// When it is over, whatever it says.
    pub expires: OffsetDateTime,
    /// How long it may be silent, once it has sent a heartbeat.
    pub heartbeat_timeout: Duration,
    /// What it runs, if whoever opened it has said so.
    pub module: Option<Module>,
}

/// What a job runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// For people.
    pub source: String,
    /// The digest of its package. Always there where there are attestations.
    pub digest: Option<ModuleDigest>,
    /// DSSE envelopes with in-toto statements about it, as they were sent.
    pub attestations: Vec<Vec<u8>>,
}

/// Until when a job lives, as far as is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Life {
    /// When it is over, whatever it says.
    pub expires: OffsetDateTime,
    /// When it is over without another heartbeat.
    pub silent_after: Option<OffsetDateTime>,
    /// Its end, if it has come.
    pub end: Option<End>,
}

impl Life {
    /// Why it is over by now, if it is.
    #[must_use]
    pub fn over(&self, now: OffsetDateTime) -> Option<Over> {
        match self.end {
            Some(end) => Some(end.into()),
            None if self.expires <= now => Some(Over::Overdue),
            None if self.silent_after.is_some_and(|end| end <= now) => Some(Over::Silent),
            None => None,
        }
    }
}

impl State {
    /// The job and its life; `None` if it was never opened.
    #[must_use]
    pub fn life(&self) -> Option<(&Job, Life)> {
        let (job, silent_after, end) = match self {
            Self::Absent => return None,
            Self::Opened { job, silent_after } => (job, *silent_after, None),
            Self::Ended(job, end) => (job, None, Some(*end)),
        };
        let life = Life {
            expires: job.expires,
            silent_after,
            end,
        };
        Some((job, life))
    }
}

/// What may be asked of a job.
#[derive(Clone, Debug)]
pub enum Command {
    /// Open it.
    Open(Job),
    /// Know that it is alive.
    Heartbeat(OffsetDateTime),
    /// It is done.
    Finish(OffsetDateTime),
    /// Stop it.
    Cancel(OffsetDateTime),
}

/// What happened to a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It was opened.
    Opened(Job),
    /// It was alive.
    Alive {
        /// When.
        at: OffsetDateTime,
        /// When it is over without another heartbeat.
        silent_after: OffsetDateTime,
    },
    /// It has come to its end.
    Ended(End, OffsetDateTime),
}

/// A job asks for more than its workspace allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be from 1 second to {0} seconds, the most that the workspace's jobs may live")]
pub struct TooLong(JobDuration);

/// How long a job lives that asks for this, in a workspace that allows this.
pub fn duration(
    wanted: Option<Duration>,
    of_workspace: Option<JobDuration>,
) -> Result<Duration, TooLong> {
    let longest = of_workspace.unwrap_or(JobDuration::LONGEST);
    let wanted = wanted.unwrap_or_else(|| {
        Duration::seconds(of_workspace.unwrap_or(JobDuration::DEFAULT).seconds())
    });
    if wanted <= Duration::seconds(longest.seconds()) {
        Ok(wanted)
    } else {
        Err(TooLong(longest))
    }
}

/// Why a command was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// There is no such job.
    #[error("the job does not exist")]
    Missing,
    /// Ids are never used again.
    #[error("the job was opened already")]
    Exists,
    /// It has come to its end.
    #[error(transparent)]
    Over(Over),
}

/// Decides a command.
pub fn decide(state: &State, command: Command) -> Result<Vec<Event>, Rejection> {
    match command {
        Command::Open(job) => match state {
            State::Absent => Ok(vec![Event::Opened(job)]),
            State::Opened { .. } | State::Ended(..) => Err(Rejection::Exists),
        },
        Command::Heartbeat(now) => heartbeat(state, now),
        Command::Finish(now) => end(state, End::Finished, now),
        Command::Cancel(now) => end(state, End::Cancelled, now),
    }
}

fn heartbeat(state: &State, now: OffsetDateTime) -> Result<Vec<Event>, Rejection> {
    let (job, life) = state.life().ok_or(Rejection::Missing)?;
    if let Some(over) = life.over(now) {
        return Err(Rejection::Over(over));
    }
    let silent_after = silent_after(now, job.heartbeat_timeout);
    if life.silent_after >= Some(silent_after) {
        return Ok(vec![]);
    }
    let at = now;
    Ok(vec![Event::Alive { at, silent_after }])
}

/// When a job is over that is silent from now on: never before its time-out is. Put off to the next of [`STEPS`] within the
/// time-out, or to a whole second, as facts have it: so a heartbeat right behind another one says nothing new, and the log
/// is not for them.
fn silent_after(now: OffsetDateTime, timeout: Duration) -> OffsetDateTime {
    let step = (timeout.whole_seconds() / STEPS).max(1);
    let earliest = now + timeout;
    let seconds = earliest.unix_timestamp() + i64::from(earliest.nanosecond() > 0);
    let end = seconds + (-seconds).rem_euclid(step);
    OffsetDateTime::from_unix_timestamp(end).unwrap_or(earliest)
}

/// A job that is overdue or was silent can still come to its end: then everybody knows which.
fn end(state: &State, end: End, now: OffsetDateTime) -> Result<Vec<Event>, Rejection> {
    let (_, life) = state.life().ok_or(Rejection::Missing)?;
    match life.end {
        None => Ok(vec![Event::Ended(end, now)]),
        Some(before) if before == end => Ok(vec![]),
        Some(before) => Err(Rejection::Over(before.into())),
    }
}

/// Applies what happened.
pub fn evolve(state: &mut State, event: &Event) {
    match (&mut *state, event) {
        (_, Event::Opened(job)) => {
            *state = State::Opened {
                job: job.clone(),
                silent_after: None,
            };
        }
        (
            State::Opened { silent_after, .. },
            Event::Alive {
                silent_after: end, ..
            },
        ) => {
            *silent_after = Some(*end);
        }
        (State::Opened { job, .. }, Event::Ended(end, _)) => {
            *state = State::Ended(job.clone(), *end);
        }
        (State::Absent | State::Ended(..), Event::Alive { .. } | Event::Ended(..)) => {}
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOON: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

    fn job() -> Job {
        Job {
            id: JobId::from_uuid(uuid::Uuid::from_u128(1)),
            workspace: WorkspaceId::from_uuid(uuid::Uuid::from_u128(2)),
            stage: Stage::Plan,
            principal: Principal::user("dev/alice").expect("a user"),
            opener: None,
            expires: NOON + Duration::hours(1),
            heartbeat_timeout: Duration::minutes(4),
            module: None,
        }
    }

    fn after(commands: &[Command]) -> State {
        let mut state = State::default();
        for command in commands {
            let events = decide(&state, command.clone()).expect("allowed");
            events.iter().for_each(|event| evolve(&mut state, event));
        }
        state
    }

    fn at(minutes: i64) -> OffsetDateTime {
        NOON + Duration::minutes(minutes)
    }

    #[test]
    fn a_job_lives_as_long_as_its_workspace_allows() {
        let hour = JobDuration::from_seconds(3_600).expect("a duration");
        assert_eq!(duration(None, None), Ok(Duration::hours(12)));
        assert_eq!(
            duration(Some(Duration::hours(24)), None),
            Ok(Duration::hours(24))
        );
        assert_eq!(duration(None, Some(hour)), Ok(Duration::hours(1)));
        let minute = Some(Duration::minutes(1));
        assert_eq!(duration(minute, Some(hour)), Ok(Duration::minutes(1)));
        let more = Some(Duration::hours(1) + Duration::nanoseconds(1));
        assert_eq!(duration(more, Some(hour)), Err(TooLong(hour)));
    }

    #[test]
    fn a_job_is_opened_once() {
        let state = after(&[Command::Open(job())]);
        assert_eq!(state.life().map(|(opened, _)| opened.clone()), Some(job()));
        assert_eq!(decide(&state, Command::Open(job())), Err(Rejection::Exists));
    }

    #[test]
    fn only_who_has_ever_sent_a_heartbeat_is_missed() {
        let over = |state: &State, now| state.life().and_then(|(_, life)| life.over(now));
        let quiet = after(&[Command::Open(job())]);
        assert_eq!(over(&quiet, at(59)), None);
        assert_eq!(over(&quiet, at(60)), Some(Over::Overdue));
        let beating = after(&[Command::Open(job()), Command::Heartbeat(at(10))]);
        assert_eq!(over(&beating, at(13)), None);
        assert_eq!(over(&beating, at(14)), Some(Over::Silent));
        assert_eq!(
            decide(&beating, Command::Heartbeat(at(14))),
            Err(Rejection::Over(Over::Silent))
        );
        // One right behind another says nothing new.
        assert_eq!(decide(&beating, Command::Heartbeat(at(10))), Ok(vec![]));
        let beat = |now| decide(&beating, Command::Heartbeat(now));
        let alive = |at, silent_after| Ok(vec![Event::Alive { at, silent_after }]);
        assert_eq!(beat(at(11)), alive(at(11), at(15)));
        let late = at(11) + Duration::milliseconds(950);
        assert_eq!(beat(late), alive(late, at(15) + Duration::seconds(12)));
    }

    proptest! {
        #[test]
        fn no_job_is_missed_too_early_nor_much_too_late(
            millis in 0..10_000_000_i64,
            timeout in 1..3_600_i64,
        ) {
            let (now, timeout) = (NOON + Duration::milliseconds(millis), Duration::seconds(timeout));
            let end = silent_after(now, timeout);
            let late = end - (now + timeout);
            prop_assert!(!late.is_negative(), "{late}");
            prop_assert!(late < Duration::SECOND.max(timeout / 20) + Duration::SECOND, "{late}");
            prop_assert_eq!(end.nanosecond(), 0);
        }
    }

    #[test]
    fn a_job_ends_once() {
        for (ends, other, end) in [
            (
                Command::Finish(at(1)),
                Command::Cancel(at(2)),
                End::Finished,
            ),
            (
                Command::Cancel(at(1)),
                Command::Finish(at(2)),
                End::Cancelled,
            ),
        ] {
            let state = after(&[Command::Open(job()), ends.clone()]);
            assert_eq!(decide(&state, ends), Ok(vec![]));
            let over = Err(Rejection::Over(end.into()));
            assert_eq!(decide(&state, other), over);
            assert_eq!(decide(&state, Command::Heartbeat(at(2))), over);
        }
        let missing = Err(Rejection::Missing);
        for command in [
            Command::Heartbeat(NOON),
            Command::Finish(NOON),
            Command::Cancel(NOON),
        ] {
            assert_eq!(decide(&State::Absent, command), missing);
        }
    }

    #[test]
    fn a_job_that_is_overdue_can_still_be_finished() {
        let state = after(&[Command::Open(job())]);
        let ended = Event::Ended(End::Finished, at(61));
        assert_eq!(decide(&state, Command::Finish(at(61))), Ok(vec![ended]));
    }
}
