//! `JobService`.

use edge::authentication::leaned_on;
use edge::caller::Caller;
use edge::command::{Decision, Mutation};
use edge::hierarchy::{Place, max_job_duration_key};
use edge::layer::Call;
use edge::status::PreconditionViolation;
use edge::violations::Violations;
use edge::{aggregate, clock, request, status};
use eventlog::{Expected, Guard, StreamAppend, StreamId};
use model::{JobDuration, JobId, Principal, WorkspaceId};
use prost_types::Any;
use proto::issuer::v1::job_service_server::JobService;
use proto::issuer::v1::{self as pb, Event};
use time::{Duration, OffsetDateTime};
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};

use super::ground::may_open;
use super::refusals::WORKSPACE_DELETED;
use super::{IssuerRpc, job_facts};
use crate::domain::credential::Refusal;
use crate::domain::job::{self, Command, Job, Life, Rejection, State};
use crate::keys::KeyError;
use crate::signing::TokenType;
use crate::wire;

impl From<Rejection> for Status {
    fn from(rejection: Rejection) -> Self {
        match rejection {
            Rejection::Missing => status::not_found("the job"),
            Rejection::Exists => status::already_exists("JOB_EXISTS", &rejection.to_string()),
            Rejection::Over(over) => Refusal::JobOver(over).into(),
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
        // A repeated request gets a token too, and that is only for who may open a job now.
        call.allowed()?;
        // Its end, and its token's, are told by our clock.
        self.shared.keys.clock_agrees()?;
        // Not opened here if its token could not be signed.
        self.shared.keys.active()?;
        let (metadata, _, message) = request.into_parts();
        let wanted = wire::job::wanted(message.job.as_ref().unwrap_or(&pb::Job::default()))?;
        let (id, now) = (clock::new_id(), clock::now());
        let decide = || async {
            let workspace = call.id("job.workspace_id", "workspace")?;
            let (duration, allowed) = self.duration(workspace, wanted.duration).await?;
            let principal = wanted.principal.as_ref().unwrap_or(&call.caller.principal);
            let job = Job {
                id,
                workspace,
                stage: wanted.stage,
                principal: principal.clone(),
                opener: opener(&call.caller, principal),
                // At most as long as was asked for: what is begun of the last second does not count.
                expires: (now + duration).replace_nanosecond(0).unwrap_or(now),
                heartbeat_timeout: wanted.heartbeat_timeout,
                module: wanted.module.clone(),
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
        let reply = response.get_mut();
        let job = reply.job.as_ref();
        let opened = job.filter(|job| job.id == id.to_string()).map(|_| now);
        if opened.is_none() {
            reply.planned_events = self.repeat(&call, &metadata, job).await?;
        }
        if call.validate_only {
            return Ok(response);
        }
        // Another issuer may just have revoked the key that we sign with.
        self.look_for_keys().await?;
        self.refuse_on_wrong_end(job, opened, wanted.duration)?;
        // Not part of what the log keeps as the reply: a token is never written down.
        reply.job_token = self.job_token(job)?;
        Ok(response)
    }

    async fn get_job(
        &self,
        request: Request<pb::GetJobRequest>,
    ) -> Result<Response<pb::GetJobResponse>, Status> {
        let call = Call::of(&request)?;
        let job = self.message(call.place()?).await?;
        Ok(Response::new(pb::GetJobResponse { job: Some(job) }))
    }

    async fn heartbeat_job(
        &self,
        request: Request<pb::HeartbeatJobRequest>,
    ) -> Result<Response<pb::HeartbeatJobResponse>, Status> {
        let call = Call::of(&request)?;
        let (metadata, _, message) = request.into_parts();
        let decide = || async {
            let command = Command::Heartbeat(clock::now());
            let (streams, guards, state) = self.decide_job(own(&call)?, command).await?;
            let (job, life) = state.life().ok_or(Rejection::Missing)?;
            // Nothing is issued there any more: whoever runs it is told.
            if self.place_of_job(job).await?.is_none() {
                return Err(workspace_deleted());
            }
            let reply = pb::HeartbeatJobResponse {
                silent_time: life.silent_after.map(request::timestamp),
                expire_time: Some(request::timestamp(life.expires)),
                ..pb::HeartbeatJobResponse::default()
            };
            Ok(Decision {
                streams,
                guards,
                reply,
            })
        };
        let mutation = Mutation::new(&call, &metadata, &message, |m| {
            [&mut m.request_id, &mut m.consistency_token]
        });
        let commands = &self.shared.commands;
        commands
            .carry_out(
                mutation,
                decide,
                |reply| &mut reply.consistency_token,
                |_, _| {},
            )
            .await
    }

    async fn finish_job(
        &self,
        request: Request<pb::FinishJobRequest>,
    ) -> Result<Response<pb::FinishJobResponse>, Status> {
        let call = Call::of(&request)?;
        let (metadata, _, message) = request.into_parts();
        let decide = || async {
            let command = Command::Finish(clock::now());
            let (streams, guards, _) = self.decide_job(own(&call)?, command).await?;
            let reply = pb::FinishJobResponse::default();
            Ok(Decision {
                streams,
                guards,
                reply,
            })
        };
        let mutation = Mutation::new(&call, &metadata, &message, |m| {
            [&mut m.request_id, &mut m.consistency_token]
        });
        let commands = &self.shared.commands;
        commands
            .carry_out(
                mutation,
                decide,
                |reply| &mut reply.consistency_token,
                |_, _| {},
            )
            .await
    }

    async fn cancel_job(
        &self,
        request: Request<pb::CancelJobRequest>,
    ) -> Result<Response<pb::CancelJobResponse>, Status> {
        let call = Call::of(&request)?;
        let (metadata, _, message) = request.into_parts();
        let decide = || self.decide_cancel(&call);
        let mutation = Mutation::new(&call, &metadata, &message, |m| {
            [&mut m.request_id, &mut m.consistency_token]
        });
        let commands = &self.shared.commands;
        commands
            .carry_out(
                mutation,
                decide,
                |reply| &mut reply.consistency_token,
                |_, _| {},
            )
            .await
    }
}

/// What a job is told whose workspace is gone.
pub(super) fn workspace_deleted() -> Status {
    let message = "the job's workspace was deleted: nothing more is issued";
    let obstacle = PreconditionViolation::new(WORKSPACE_DELETED, "workspace", message);
    status::failed_precondition(WORKSPACE_DELETED, message, vec![obstacle])
}

/// The job that calls.
fn own(call: &Call) -> Result<JobId, Status> {
    let Principal::Job(job) = call.caller.principal else {
        return Err(status::permission_denied(call.permission, "this service"));
    };
    Ok(job)
}

/// Who is asked besides the one on whose behalf a job is opened: whoever opens it for another one. Administrators are
/// owners everywhere by configuration, which no event takes away; they are not.
fn opener(caller: &Caller, principal: &Principal) -> Option<Box<Principal>> {
    let is_asked = !caller.administrator && caller.principal != *principal;
    is_asked.then(|| caller.principal.clone().into())
}

fn job_id(place: &Place) -> Result<JobId, Status> {
    JobId::try_from(place.id()).map_err(|_| Violations::of("id", "must name a job").into_status())
}

impl IssuerRpc {
    /// The job at a place, as it is now.
    async fn message(&self, place: &Place) -> Result<pb::Job, Status> {
        let known = self.known_job(job_id(place)?).await?;
        let known = known.ok_or(Rejection::Missing)?;
        self.message_of(place, &known.job, &known.life, clock::now())
            .await
    }

    /// Of its stream no more is read than the first event: the audit of its credentials is in it, too.
    async fn message_of(
        &self,
        place: &Place,
        job: &Job,
        life: &Life,
        now: OffsetDateTime,
    ) -> Result<pb::Job, Status> {
        let stream = stream(job.id);
        let begun = self.shared.commands.log().stream_begun(&stream).await;
        let begun = begun.map_err(|error| status::log(&error))?;
        let mut message = wire::job::message(&place.path(), job, life, now);
        message.create_time = begun.map(request::timestamp);
        Ok(message)
    }

    /// What comes of a command to a job that was opened, and the job as it leaves it.
    async fn decide_job(
        &self,
        id: JobId,
        command: Command,
    ) -> Result<(Vec<StreamAppend>, Vec<Guard>, State), Status> {
        let known = self.known_job(id).await?.ok_or(Rejection::Missing)?;
        let events = job::decide(&known.state, command)?;
        let mut state = known.state.clone();
        events
            .iter()
            .for_each(|event| job::evolve(&mut state, event));
        let events = events
            .iter()
            .map(|event| wire::job::write(&known.job, event));
        let events: Vec<_> = events
            .map(|event| (event.event_type(), event.encode()))
            .collect();
        // The facts tell of every change of its life; credentials come and go beside it.
        let streams = aggregate::append(stream(id), Expected::Any, events);
        let mut guards: Vec<Guard> = known.guards().collect();
        guards.extend(job_facts::sets(&state));
        Ok((streams.into_iter().collect(), guards, state))
    }

    async fn decide_cancel(&self, call: &Call) -> Result<Decision<pb::CancelJobResponse>, Status> {
        let place = call.relocate(&self.shared.hierarchy).await?;
        let place = place.ok_or_else(|| status::not_found("the job"))?;
        let now = clock::now();
        let id = job_id(&place)?;
        let (streams, mut guards, state) = self.decide_job(id, Command::Cancel(now)).await?;
        guards.extend(place.guards());
        let (job, life) = state.life().ok_or(Rejection::Missing)?;
        let message = self.message_of(&place, job, &life, now).await?;
        let reply = pb::CancelJobResponse {
            job: Some(message),
            ..pb::CancelJobResponse::default()
        };
        Ok(Decision {
            streams,
            guards,
            reply,
        })
    }

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
        let mut guards = place.guards();
        guards.push(allowed);
        guards.extend(self.on_behalf(call, &job).await?);
        let events = job::decide(&State::Absent, Command::Open(job.clone()))?;
        let mut state = State::Absent;
        events
            .iter()
            .for_each(|event| job::evolve(&mut state, event));
        guards.extend(job_facts::sets(&state));
        let kid = call.caller.leans_on.as_ref().and_then(leaned_on);
        guards.extend(kid.map(|kid| job_facts::opened_with(job.id, kid)));
        let events = events
            .iter()
            .map(|event| match wire::job::write(&job, event) {
                Event::JobOpened(opened) => Event::JobOpened(pb::JobOpened {
                    opener_token_kid: kid.unwrap_or_default().to_owned(),
                    ..opened
                }),
                other => other,
            });
        let events: Vec<_> = events
            .map(|event| (event.event_type(), event.encode()))
            .collect();
        let streams = aggregate::append(stream(job.id), Expected::Version(0), events);
        let life = state
            .life()
            .map(|(_, life)| life)
            .ok_or(Rejection::Missing)?;
        let reply = pb::OpenJobResponse {
            job: Some(wire::job::message(&place.path(), &job, &life, clock::now())),
            ..pb::OpenJobResponse::default()
        };
        Ok(Decision {
            streams: streams.into_iter().collect(),
            guards,
            reply,
        })
    }

    /// The token of a job that was opened before is given only to who could open it now, and while it lives; and whose
    /// token it was asked for with is on record before. Answers with what is only planned.
    async fn repeat(
        &self,
        call: &Call,
        metadata: &MetadataMap,
        job: Option<&pb::Job>,
    ) -> Result<Vec<Any>, Status> {
        let id = job.and_then(|job| job.id.parse().ok());
        let id = id.ok_or(Rejection::Missing)?;
        let decide = || self.decide_repeat(call, id);
        // As a rule there is nothing to record, and so nothing that anybody would have to see first.
        if decide().await?.streams.is_empty() {
            return Ok(vec![]);
        }
        // The request's own id stands for the opening.
        let mutation = Mutation {
            call,
            metadata,
            request_id: String::new(),
            content: vec![],
        };
        let commands = &self.shared.commands;
        let recorded = commands
            .carry_out(
                mutation,
                decide,
                |reply| &mut reply.consistency_token,
                |_, _| {},
            )
            .await?;
        Ok(recorded.into_inner().planned_events)
    }

    async fn decide_repeat(
        &self,
        call: &Call,
        id: JobId,
    ) -> Result<Decision<pb::OpenJobResponse>, Status> {
        let known = self.known_job(id).await?.ok_or(Rejection::Missing)?;
        if let Some(over) = known.life.over(clock::now()) {
            return Err(Refusal::JobOver(over).into());
        }
        let (job, present) = (&known.job, self.present());
        // What the request names may be another workspace by now.
        let place = self.place_for(present, job.workspace.into(), &call.caller.principal);
        let place = place.await?.filter(may_open);
        let place = place.ok_or_else(|| status::not_found("the workspace"))?;
        let mut guards: Vec<Guard> = known.guards().collect();
        guards.extend(place.guards());
        guards.extend(self.on_behalf(call, job).await?);
        let mut event = None;
        if let Some(kid) = call.caller.leans_on.as_ref().and_then(leaned_on)
            && let Some(facts) = self.repeats_with(id, kid).await?
        {
            guards.extend(facts);
            let repeated = wire::job::repeated(job, kid, clock::now());
            event = Some((repeated.event_type(), repeated.encode()));
        }
        let streams = aggregate::append(stream(id), Expected::Any, event);
        Ok(Decision {
            streams: streams.into_iter().collect(),
            guards,
            reply: pb::OpenJobResponse::default(),
        })
    }

    /// What must hold for a job on behalf of somebody else than the caller: whoever that is could open it too.
    async fn on_behalf(&self, call: &Call, job: &Job) -> Result<Vec<Guard>, Status> {
        if job.principal == call.caller.principal {
            return Ok(vec![]);
        }
        let present = self.present();
        let place = self
            .place_for(present, job.workspace.into(), &job.principal)
            .await?;
        let place = place.filter(may_open).ok_or(Refusal::PrincipalNotMember)?;
        Ok(place.guards())
    }

    /// Where our clock was found to be wrong only when the job was recorded, its end is wrong, too: nobody gets its token.
    /// When it was opened by our clock, its end tells of a request that was carried out before.
    fn refuse_on_wrong_end(
        &self,
        job: Option<&pb::Job>,
        opened: Option<OffsetDateTime>,
        wanted: Option<Duration>,
    ) -> Result<(), KeyError> {
        let now = clock::now();
        let time = |given: Option<&prost_types::Timestamp>| {
            let seconds = given.map_or(0, |given| given.seconds);
            OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(now)
        };
        let (recorded_at, end) = job.map_or((now, now), |job| {
            let (opened, end) = (job.create_time.as_ref(), job.expire_time.as_ref());
            (time(opened), time(end))
        });
        let longest = wanted.unwrap_or(Duration::seconds(JobDuration::LONGEST.seconds()));
        let opened = opened.unwrap_or(end - longest);
        self.shared.keys.recorded_in_time(opened, recorded_at, now)
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
            .active()?
            .sign(TokenType::Access, &claims)
            .map_err(|error| status::internal(&error))
    }
}

pub(super) fn stream(id: JobId) -> StreamId {
    StreamId::new("job", id)
}
