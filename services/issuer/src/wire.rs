//! Between the domain and the wire: requests into commands, events and resources into messages.

pub(crate) mod signing_key;

use edge::request;
use edge::violations::Violations;
use eventlog::RecordedEvent;
use model::JobDuration;
use proto::EventError;
use proto::issuer::v1::{self as pb, Event};
use serde::Serialize;
use time::Duration;
use tonic::Status;
use uuid::Uuid;

use crate::domain::credential::Grant;
use crate::domain::job::{self, Job, Stage};

/// A recorded event of ours does not read as one.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unreadable {
    #[error(transparent)]
    Event(#[from] EventError),
    #[error("the event's {0} is malformed")]
    Field(&'static str),
}

fn parse<T: std::str::FromStr>(field: &'static str, text: &str) -> Result<T, Unreadable> {
    text.parse().map_err(|_| Unreadable::Field(field))
}

fn stage(stage: pb::Stage) -> Option<Stage> {
    match stage {
        pb::Stage::Unspecified => None,
        pb::Stage::Plan => Some(Stage::Plan),
        pb::Stage::Apply => Some(Stage::Apply),
    }
}

fn wire_stage(stage: Stage) -> pb::Stage {
    match stage {
        Stage::Plan => pb::Stage::Plan,
        Stage::Apply => pb::Stage::Apply,
    }
}

/// A job's events; `None` for those of its stream that don't change the job.
pub(crate) fn read_job(recorded: &RecordedEvent) -> Result<Option<job::Event>, Unreadable> {
    match Event::decode(&recorded.event_type, &recorded.payload)? {
        Event::JobOpened(event) => Ok(Some(job::Event::Opened(Job {
            id: parse("job id", &event.job_id)?,
            workspace: parse("workspace id", &event.workspace_id)?,
            stage: stage(event.stage()).ok_or(Unreadable::Field("stage"))?,
            principal: parse("principal", &event.principal)?,
            expires: event
                .expire_time
                .as_ref()
                .and_then(|time| request::time("expire_time", time).ok())
                .ok_or(Unreadable::Field("expire time"))?,
        }))),
        Event::CredentialIssued(_)
        | Event::SigningKeyCreated(_)
        | Event::SigningKeyPublished(_)
        | Event::SigningKeyRotationRequested(_)
        | Event::SigningKeyActivated(_)
        | Event::SigningKeyRetired(_)
        | Event::SigningKeyRemoved(_)
        | Event::SigningKeyRevoked(_) => Ok(None),
    }
}

pub(crate) fn write_job(event: &job::Event) -> Event {
    let job::Event::Opened(job) = event;
    Event::JobOpened(pb::JobOpened {
        job_id: job.id.to_string(),
        workspace_id: job.workspace.to_string(),
        stage: wire_stage(job.stage).into(),
        principal: job.principal.to_string(),
        expire_time: Some(request::timestamp(job.expires)),
    })
}

/// What a request says of a job to be opened.
pub(crate) struct Wanted {
    pub(crate) stage: Stage,
    /// None: as long as the workspace has it.
    pub(crate) duration: Option<Duration>,
}

pub(crate) fn wanted(job: &pb::Job) -> Result<Wanted, Status> {
    let mut violations = Violations::default();
    let stage = stage(job.stage());
    if stage.is_none() {
        violations.add("job.stage", "must be STAGE_PLAN or STAGE_APPLY");
    }
    let duration = job.max_duration.as_ref().and_then(|given| {
        let duration = Duration::new(given.seconds, given.nanos);
        let longest = Duration::seconds(JobDuration::LONGEST.seconds());
        let allowed = (Duration::SECOND..=longest).contains(&duration);
        let message = format!("must be from 1 second to {} hours", longest.whole_hours());
        violations.check(
            "job.max_duration",
            allowed.then_some(duration).ok_or(message),
        )
    });
    Ok(violations.finish(|| {
        Some(Wanted {
            stage: stage?,
            duration,
        })
    })?)
}

/// A job as callers see it. The time of its making is filled in by whoever knows it.
pub(crate) fn job_message(workspace_path: &str, job: &Job) -> pb::Job {
    pb::Job {
        id: job.id.to_string(),
        trn: format!("trn:job:{workspace_path}/{}", job.id),
        workspace_id: job.workspace.to_string(),
        stage: wire_stage(job.stage).into(),
        principal: job.principal.to_string(),
        max_duration: None,
        create_time: None,
        expire_time: Some(request::timestamp(job.expires)),
    }
}

/// The audit of a token.
pub(crate) fn issued(grant: &Grant, token_id: Uuid, issue_kid: &str) -> Event {
    Event::CredentialIssued(pb::CredentialIssued {
        job_id: grant.job.to_string(),
        workspace_id: grant.workspace.to_string(),
        managed_identity_id: grant.identity.to_string(),
        token_id: token_id.to_string(),
        subject: grant.identity.to_string(),
        audience: grant.audience.clone(),
        kid: issue_kid.to_owned(),
        issue_time: Some(request::timestamp(grant.issued)),
        expire_time: Some(request::timestamp(grant.expires)),
    })
}

/// The claims that every token of ours has (RFC 7519, 4.1).
#[derive(Serialize)]
struct Registered<'a> {
    iss: &'a str,
    sub: String,
    aud: &'a str,
    iat: i64,
    nbf: i64,
    exp: i64,
    jti: String,
}

/// A token for a cloud.
#[derive(Serialize)]
pub(crate) struct CredentialClaims<'a> {
    #[serde(flatten)]
    registered: Registered<'a>,
    tharsis_job_id: String,
    tharsis_stage: String,
    tharsis_workspace_id: String,
    tharsis_workspace_path: &'a str,
    tharsis_group_path: &'a str,
}

pub(crate) fn credential_claims<'a>(
    issuer: &'a str,
    grant: &'a Grant,
    token_id: Uuid,
    stage: Stage,
    workspace_path: &'a str,
) -> CredentialClaims<'a> {
    CredentialClaims {
        registered: Registered {
            iss: issuer,
            sub: grant.identity.to_string(),
            aud: &grant.audience,
            iat: grant.issued.unix_timestamp(),
            nbf: grant.issued.unix_timestamp(),
            exp: grant.expires.unix_timestamp(),
            jti: token_id.to_string(),
        },
        tharsis_job_id: grant.job.to_string(),
        tharsis_stage: stage.to_string(),
        tharsis_workspace_id: grant.workspace.to_string(),
        tharsis_workspace_path: workspace_path,
        tharsis_group_path: workspace_path
            .rsplit_once('/')
            .map_or("", |(group, _)| group),
    }
}

/// The token that a job calls us with: for us, and made of nothing but the job, so that a repeated request gets the
/// same one.
#[derive(Serialize)]
pub(crate) struct JobClaims<'a> {
    #[serde(flatten)]
    registered: Registered<'a>,
}

pub(crate) fn job_claims<'a>(
    issuer: &'a str,
    job_id: &str,
    opened: i64,
    expires: i64,
) -> JobClaims<'a> {
    JobClaims {
        registered: Registered {
            iss: issuer,
            sub: job_id.to_owned(),
            aud: issuer,
            iat: opened,
            nbf: opened,
            exp: expires,
            jti: job_id.to_owned(),
        },
    }
}
