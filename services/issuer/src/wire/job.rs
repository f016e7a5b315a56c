//! Jobs between the domain and the wire.

use edge::request;
use edge::violations::Violations;
use model::{JobDuration, Principal, Stage};
use proto::issuer::v1::{self as pb, Event};
use time::{Duration, OffsetDateTime};
use tonic::Status;

use super::module;
use crate::domain::job::{self, DEFAULT_HEARTBEAT_TIMEOUT, End, Job, Life, Module, Over};

/// How long a job may be told to be silent at most.
const MAX_HEARTBEAT_TIMEOUT: Duration = Duration::hours(1);

pub(crate) fn stage(stage: pb::Stage) -> Option<Stage> {
    match stage {
        pb::Stage::Unspecified => None,
        pb::Stage::Plan => Some(Stage::Plan),
        pb::Stage::Apply => Some(Stage::Apply),
    }
}

pub(crate) fn wire_stage(stage: Stage) -> pb::Stage {
    match stage {
        Stage::Plan => pb::Stage::Plan,
        Stage::Apply => pb::Stage::Apply,
    }
}

pub(crate) fn write(job: &Job, event: &job::Event) -> Event {
    let (job_id, workspace_id) = (job.id.to_string(), job.workspace.to_string());
    let time = |at: &OffsetDateTime| Some(request::timestamp(*at));
    match event {
        job::Event::Opened(job) => Event::JobOpened(pb::JobOpened {
            job_id,
            workspace_id,
            stage: wire_stage(job.stage).into(),
            principal: job.principal.to_string(),
            opener: opener(job),
            expire_time: time(&job.expires),
            heartbeat_timeout: Some(wire_duration(job.heartbeat_timeout)),
            module: job.module.as_ref().map(module::write),
            // Of the request and not of the job: whoever opens it says so.
            opener_token_kid: String::new(),
        }),
        job::Event::Alive { at, silent_after } => {
            Event::JobHeartbeatReceived(pb::JobHeartbeatReceived {
                job_id,
                workspace_id,
                heartbeat_time: time(at),
                silent_time: time(silent_after),
            })
        }
        job::Event::Ended(End::Finished, at) => Event::JobFinished(pb::JobFinished {
            job_id,
            workspace_id,
            finish_time: time(at),
        }),
        job::Event::Ended(End::Cancelled, at) => Event::JobCancelled(pb::JobCancelled {
            job_id,
            workspace_id,
            cancel_time: time(at),
        }),
    }
}

/// That a job's token was asked for again with a token of this signing key.
pub(crate) fn repeated(job: &Job, opener_token_kid: &str, at: OffsetDateTime) -> Event {
    Event::JobTokenRepeated(pb::JobTokenRepeated {
        job_id: job.id.to_string(),
        workspace_id: job.workspace.to_string(),
        opener_token_kid: opener_token_kid.to_owned(),
        repeat_time: Some(request::timestamp(at)),
    })
}

/// What a request says of a job to be opened.
pub(crate) struct Wanted {
    pub(crate) stage: Stage,
    /// None: as long as the workspace has it.
    pub(crate) duration: Option<Duration>,
    pub(crate) heartbeat_timeout: Duration,
    /// On whose behalf, if not the caller's.
    pub(crate) principal: Option<Principal>,
    pub(crate) module: Option<Module>,
}

pub(crate) fn wanted(job: &pb::Job) -> Result<Wanted, Status> {
    let mut violations = Violations::default();
    let stage = stage(job.stage());
    if stage.is_none() {
        violations.add("job.stage", "must be STAGE_PLAN or STAGE_APPLY");
    }
    let longest = Duration::seconds(JobDuration::LONGEST.seconds());
    let allowed = |most| move |given: &Duration| (Duration::SECOND..=most).contains(given);
    let given = job.max_duration.as_ref().map(duration);
    let wrong = format!("must be from 1 second to {} hours", longest.whole_hours());
    if given.is_some_and(|given| !given.as_ref().is_some_and(allowed(longest))) {
        violations.add("job.max_duration", wrong);
    }
    let timeout = job.heartbeat_timeout.as_ref().map(duration);
    let timeout = timeout.unwrap_or(Some(DEFAULT_HEARTBEAT_TIMEOUT));
    let timeout = timeout.filter(allowed(MAX_HEARTBEAT_TIMEOUT));
    let timeout = timeout.ok_or("must be from 1 second to 1 hour");
    let timeout = violations.check("job.heartbeat_timeout", timeout);
    let principal = match job.principal.as_str() {
        "" => Some(None),
        text => {
            let parsed = principal(text);
            violations.check("job.principal", parsed).map(Some)
        }
    };
    let module = job.module.as_ref().map(module::wanted).transpose();
    let module = violations.nested("job.module", module);
    Ok(violations.finish(|| {
        Some(Wanted {
            stage: stage?,
            duration: given.flatten(),
            heartbeat_timeout: whole_seconds(timeout?),
            principal: principal?,
            module: module?,
        })
    })?)
}

/// Somebody who may hold a membership.
pub(crate) fn principal(text: &str) -> Result<Principal, &'static str> {
    let someone = |principal: &Principal| !matches!(principal, Principal::Job(_));
    text.parse().ok().filter(someone).ok_or(
        "must be who may be a member, user:<issuer name>/<subject>, service_account:sa_… or team:team_…, or empty",
    )
}

/// `None` for what is none: the parts have the same sign, and the second is below one second
/// (<https://protobuf.dev/reference/protobuf/google.protobuf/#duration>).
fn duration(given: &prost_types::Duration) -> Option<Duration> {
    let (seconds, nanos) = (given.seconds, given.nanos);
    let valid = nanos.abs() < 1_000_000_000 && seconds.signum() * i64::from(nanos).signum() >= 0;
    valid.then(|| Duration::seconds(seconds) + Duration::nanoseconds(nanos.into()))
}

/// Silence is counted in whole seconds: a part of one is a whole.
fn whole_seconds(duration: Duration) -> Duration {
    let begun = duration.subsec_nanoseconds() > 0;
    Duration::seconds(duration.whole_seconds() + i64::from(begun))
}

fn opener(job: &Job) -> String {
    let opener = job.opener.as_ref();
    opener.map_or_else(String::new, ToString::to_string)
}

fn wire_duration(duration: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: duration.whole_seconds(),
        nanos: duration.subsec_nanoseconds(),
    }
}

/// A job as callers see it. The time of its making is filled in by whoever knows it.
pub(crate) fn message(
    workspace_path: &str,
    job: &Job,
    life: &Life,
    now: OffsetDateTime,
) -> pb::Job {
    let state = match life.over(now) {
        None => pb::JobState::Open,
        Some(Over::Overdue) => pb::JobState::Overdue,
        Some(Over::Silent) => pb::JobState::Silent,
        Some(Over::Finished) => pb::JobState::Finished,
        Some(Over::Cancelled) => pb::JobState::Cancelled,
    };
    pb::Job {
        id: job.id.to_string(),
        trn: format!("trn:job:{workspace_path}/{}", job.id),
        workspace_id: job.workspace.to_string(),
        stage: wire_stage(job.stage).into(),
        principal: job.principal.to_string(),
        opener: opener(job),
        max_duration: None,
        create_time: None,
        expire_time: Some(request::timestamp(job.expires)),
        heartbeat_timeout: Some(wire_duration(job.heartbeat_timeout)),
        silent_time: life.silent_after.map(request::timestamp),
        state: state.into(),
        module: job.module.as_ref().map(module::message),
    }
}
