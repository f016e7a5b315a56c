//! `JobService`.

use edge::command::{Decision, Mutation};
use edge::hierarchy::{max_job_duration_key, node_key};
use edge::layer::Call;
use edge::violations::Violations;
use edge::{aggregate, clock, request, status};
use eventlog::{Expected, Guard, StreamId};
use model::{JobId, WorkspaceId};
use proto::issuer::v1 as pb;
use proto::issuer::v1::job_service_server::JobService;
use time::Duration;
use tonic::{Request, Response, Status};

use super::{IssuerRpc, job_key};
use crate::domain::job::{self, Job, Rejection, State};
use crate::signing::TokenType;
use crate::wire;

impl From<Rejection> for Status {
    fn from(rejection: Rejection) -> Self {
        match rejection {
            Rejection::Missing => status::not_found("the job"),
            Rejection::Exists => status::already_exists("JOB_EXISTS", &rejection.to_string()),
        }
    }
}

#[tonic::async_trait]
impl JobService for IssuerRpc {
    async fn open_job(
        &self,
        request: Request<pb::OpenJobRequest>,
    ) -> Result<Response<pb::OpenJobResponse>, Status> {
        let call = Call::of(&request)?;
        let (metadata, _, message) = request.into_parts();
        let wanted = wire::wanted(message.job.as_ref().unwrap_or(&pb::Job::default()))?;
        let (id, now) = (clock::new_id(), clock::now());
        let decide = || async {
            let workspace = call.id("job.workspace_id", "workspace")?;
            let (duration, allowed) = self.duration(workspace, wanted.duration).await?;
            let job = Job {
                id,
                workspace,
                stage: wanted.stage,
                principal: call.caller.principal.clone(),
                expires: (now + duration).replace_nanosecond(0).unwrap_or(now),
            };
            self.decide_open(&call, job, allowed).await
        };
        let mutation = Mutation::new(&call, &metadata, &message, |m| {
            [&mut m.request_id, &mut m.consistency_token]
        });
        let answer = |reply: &mut pb::OpenJobResponse, time| {
            if let Some(job) = &mut reply.job {
                job.create_time = Some(request::timestamp(time));
            }
        };
        let mut response = self
            .shared
            .commands
            .carry_out(
                mutation,
                decide,
                |reply| &mut reply.consistency_token,
                answer,
            )
            .await?;
        if call.validate_only {
            return Ok(response);
        }
        // Not part of what the log keeps as the reply: a token is never written down.
        let token = self.job_token(response.get_ref().job.as_ref())?;
        response.get_mut().job_token = token;
        Ok(response)
    }

    async fn get_job(
        &self,
        request: Request<pb::GetJobRequest>,
    ) -> Result<Response<pb::GetJobResponse>, Status> {
        let call = Call::of(&request)?;
        let place = call.place()?;
        let id = JobId::try_from(place.id())
            .map_err(|_| Violations::of("id", "must name a job").into_status())?;
        let log = self.shared.commands.log();
        let evolve = |state: &mut State, event: &Option<job::Event>| {
            if let Some(event) = event {
                job::evolve(state, event);
            }
        };
        let loaded = aggregate::load(log, &stream(id), wire::read_job, evolve).await?;
        let State::Opened(job) = &loaded.state else {
            return Err(Rejection::Missing.into());
        };
        let mut message = wire::job_message(&place.path(), job);
        message.create_time = loaded.create_time.map(request::timestamp);
        Ok(Response::new(pb::GetJobResponse { job: Some(message) }))
    }
}

impl IssuerRpc {
    /// How long a job may live in a workspace, and that the workspace still says so when the append is made.
    async fn duration(
        &self,
        workspace: WorkspaceId,
        wanted: Option<Duration>,
    ) -> Result<(Duration, Guard), Status> {
        let key = max_job_duration_key(workspace);
        let log = self.shared.commands.log();
        let facts = log.facts(std::slice::from_ref(&key)).await;
        let facts = facts.map_err(|error| status::log(&error))?;
        let value = facts.get(&key).map(str::to_owned);
        let of_workspace = value.as_deref().and_then(|seconds| seconds.parse().ok());
        let duration = job::duration(wanted, of_workspace)
            .map_err(|error| Violations::of("job.max_duration", error).into_status())?;
        Ok((duration, Guard::Expect { key, value }))
    }

    async fn decide_open(
        &self,
        call: &Call,
        job: Job,
        allowed: Guard,
    ) -> Result<Decision<pb::OpenJobResponse>, Status> {
        let place = call
            .relocate(&self.shared.hierarchy)
            .await?
            .ok_or_else(|| status::not_found("the workspace"))?;
        let events: Vec<_> = job::decide(&State::Absent, job::Command::Open(job.clone()))?
            .iter()
            .map(wire::write_job)
            .map(|event| (event.event_type(), event.encode()))
            .collect();
        let mut guards = place.guards();
        guards.push(allowed);
        guards.push(Guard::Set {
            key: node_key(job.id),
            value: Some(format!("{}/", job.workspace)),
        });
        let known = format!("{}/{}", job.stage, job.expires.unix_timestamp());
        guards.push(Guard::Set {
            key: job_key(job.id),
            value: Some(known),
        });
        let streams = aggregate::append(stream(job.id), Expected::Version(0), events);
        let reply = pb::OpenJobResponse {
            job: Some(wire::job_message(&place.path(), &job)),
            ..pb::OpenJobResponse::default()
        };
        Ok(Decision {
            streams: streams.into_iter().collect(),
            guards,
            reply,
        })
    }

    fn job_token(&self, job: Option<&pb::Job>) -> Result<String, Status> {
        let seconds = |time: Option<&prost_types::Timestamp>| time.map_or(0, |time| time.seconds);
        let (id, opened, expires) = job.map_or(("", 0, 0), |job| {
            (
                job.id.as_str(),
                seconds(job.create_time.as_ref()),
                seconds(job.expire_time.as_ref()),
            )
        });
        let claims = wire::job_claims(&self.shared.issuer, id, opened, expires);
        self.shared
            .keys
            .active()
            .sign(TokenType::Access, &claims)
            .map_err(|error| status::internal(&error))
    }
}

pub(super) fn stream(id: JobId) -> StreamId {
    StreamId::new("job", id)
}
