//! A job: a run of Terraform in a workspace.

use std::fmt;
use std::str::FromStr;

use model::{JobDuration, JobId, Principal, WorkspaceId};
use time::{Duration, OffsetDateTime};

/// A job's life so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// It was never opened.
    #[default]
    Absent,
    /// It was opened, and is over at its `expires`.
    Opened(Job),
}

/// The part of a run that a job does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// It looks what would change.
    Plan,
    /// It changes it.
    Apply,
}

/// The text is not a [`Stage`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a stage")]
pub struct InvalidStage;

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plan => "plan",
            Self::Apply => "apply",
        })
    }
}

impl FromStr for Stage {
    type Err = InvalidStage;

    fn from_str(text: &str) -> Result<Self, InvalidStage> {
        match text {
            "plan" => Ok(Self::Plan),
            "apply" => Ok(Self::Apply),
            _ => Err(InvalidStage),
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
    /// When it is over, whatever it says.
    pub expires: OffsetDateTime,
}

/// What may be asked of a job.
#[derive(Clone, Debug)]
pub enum Command {
    /// Open it.
    Open(Job),
}

/// What happened to a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It was opened.
    Opened(Job),
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
}

/// Decides a command.
pub fn decide(state: &State, command: Command) -> Result<Vec<Event>, Rejection> {
    match (state, command) {
        (State::Absent, Command::Open(job)) => Ok(vec![Event::Opened(job)]),
        (State::Opened(_), Command::Open(_)) => Err(Rejection::Exists),
    }
}

/// Applies what happened.
pub fn evolve(state: &mut State, event: &Event) {
    let Event::Opened(job) = event;
    *state = State::Opened(job.clone());
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let job = Job {
            id: JobId::from_uuid(uuid::Uuid::from_u128(1)),
            workspace: WorkspaceId::from_uuid(uuid::Uuid::from_u128(2)),
            stage: Stage::Plan,
            principal: Principal::user("dev/alice").expect("a user"),
            expires: OffsetDateTime::UNIX_EPOCH,
        };
        let mut state = State::default();
        let events = decide(&state, Command::Open(job.clone())).expect("allowed");
        events.iter().for_each(|event| evolve(&mut state, event));
        assert_eq!(state, State::Opened(job.clone()));
        assert_eq!(decide(&state, Command::Open(job)), Err(Rejection::Exists));
    }
}
