//! `CredentialService`.

use std::sync::Arc;

use edge::layer::Call;
use edge::status::PreconditionViolation;
use edge::{clock, request, status};
use eventlog::{
    Append, AppendError, ConsistencyToken, Expected, Head, Metadata, NewEvent, Progress,
    StreamAppend,
};
use futures::join;
use model::{JobId, Principal};
use proto::issuer::v1 as pb;
use proto::issuer::v1::credential_service_server::CredentialService;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};

use super::ground::Ground;
use super::{IssuerRpc, jobs};
use crate::domain::credential::{self, Question, Refusal};
use crate::keys::ring::signs;
use crate::signing::TokenType;
use crate::wire;

/// How often a request is decided before giving up. Each time something that it leans on changed meanwhile.
const ATTEMPTS: usize = 10;

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let reason = match refusal {
            Refusal::JobOver => "JOB_OVER",
            Refusal::NotAssigned => "NOT_ASSIGNED",
            Refusal::NotInherited => "NOT_INHERITED",
        };
        let message = refusal.to_string();
        status::failed_precondition(
            reason,
            &message,
            vec![PreconditionViolation::new(reason, "job", &message)],
        )
    }
}

#[tonic::async_trait]
impl CredentialService for IssuerRpc {
    async fn issue_credential(
        &self,
        request: Request<pb::IssueCredentialRequest>,
    ) -> Result<Response<pb::IssueCredentialResponse>, Status> {
        let call = Call::of(&request)?;
        let (metadata, _, message) = request.into_parts();
        let Principal::Job(job) = call.caller.principal else {
            return Err(status::permission_denied("Job", "this service"));
        };
        self.refuse_on_stale_replica()?;
        let named = message.managed_identity_id.as_str();
        for _ in 0..ATTEMPTS {
            let ground = self.ground(job, &call, named).await?;
            if let Some(response) = self.issue(&call, &metadata, &ground).await? {
                self.grounds.remember(job, named, ground);
                return Ok(Response::new(response));
            }
            self.grounds.forget(job, named);
            self.look_for_keys().await?;
        }
        Err(status::aborted(
            "CONTENTION",
            "what the credential depends on kept changing; try again",
        ))
    }

    async fn list_job_managed_identities(
        &self,
        request: Request<pb::ListJobManagedIdentitiesRequest>,
    ) -> Result<Response<pb::ListJobManagedIdentitiesResponse>, Status> {
        let call = Call::of(&request)?;
        self.job_identities(&call).await.map(Response::new)
    }
}

impl IssuerRpc {
    /// Past the bound, what we know may be revoked already: we refuse rather than guess.
    fn refuse_on_stale_replica(&self) -> Result<(), Status> {
        for (log, progress) in &self.shared.replica {
            let Progress {
                current_at: current,
                halted,
                ..
            } = progress.borrow().clone();
            if let Some(halt) = halted {
                let message = format!(
                    "the issuer does not follow {log} any more: {halt}; no credentials are issued until an operator \
                     has looked after it"
                );
                return Err(status::unavailable("FOLLOWER_HALTED", &message));
            }
            if current.is_none_or(|at| at.elapsed() > self.shared.staleness_bound) {
                let age = current.map_or("ever".to_owned(), |at| {
                    format!("{} s", at.elapsed().as_secs())
                });
                let message = format!(
                    "the issuer has not been up to date with {log} for {age}, longer than the bound of {} s; no \
                     credentials are issued until it is",
                    self.shared.staleness_bound.as_secs()
                );
                return Err(status::unavailable("REPLICA_STALE", &message));
            }
        }
        Ok(())
    }

    async fn ground(&self, job: JobId, call: &Call, named: &str) -> Result<Arc<Ground>, Status> {
        match self.grounds.get(job, named) {
            Some(ground) => Ok(ground),
            None => self.look_up(job, &call.caller, named).await.map(Arc::new),
        }
    }

    /// Decides, records, signs. `None` if what the decision leans on has changed.
    async fn issue(
        &self,
        call: &Call,
        metadata: &MetadataMap,
        ground: &Ground,
    ) -> Result<Option<pb::IssueCredentialResponse>, Status> {
        let shared = &self.shared;
        let question = Question {
            now: clock::now(),
            ..ground.question.clone()
        };
        let grant = match credential::decide(question) {
            Ok(grant) => grant,
            Err(refusal) => {
                self.grounds
                    .forget(ground.question.job, &ground.question.identity.to_string());
                return Err(refusal.into());
            }
        };
        let token_id = clock::new_uuid();
        let key = shared.keys.active();
        // One that does not sign any more is refused with the audit.
        let mut guards = ground.guards.clone();
        guards.push(signs(key.kid()));
        let event = wire::issued(&grant, token_id, key.kid());
        let event = NewEvent {
            id: clock::new_uuid(),
            event_type: event.event_type(),
            payload: event.encode(),
        };
        let append = shared.commands.log().append(Append {
            command: None,
            streams: vec![StreamAppend {
                stream_id: jobs::stream(grant.job),
                expected: Expected::Any,
                events: vec![event],
            }],
            guards,
            metadata: Metadata {
                actor: call.caller.principal.to_string(),
                traceparent: request::traceparent(metadata),
            },
        });
        let claims = wire::credential_claims(
            &shared.issuer,
            &grant,
            token_id,
            ground.stage,
            &ground.workspace_path,
        );
        // Signed while the audit event becomes durable; the token leaves only when it is.
        let (appended, token) = join!(append, async { key.sign(TokenType::Credential, &claims) });
        let appended = match appended {
            Ok(appended) => appended,
            Err(AppendError::GuardRefused { .. } | AppendError::VersionConflict { .. }) => {
                return Ok(None);
            }
            Err(error) => {
                let message =
                    "the credential's audit could not be recorded, so none is issued; try again";
                return Err(status::logged(
                    &error,
                    status::unavailable("LOG_UNAVAILABLE", message),
                ));
            }
        };
        let head = Head {
            epoch: appended.epoch,
            position: appended.last,
        };
        let mut reached = ConsistencyToken::of(shared.commands.log().name(), head);
        for (log, progress) in &shared.replica {
            let Progress {
                epoch, position, ..
            } = *progress.borrow();
            if let Some(epoch) = epoch {
                reached.merge(ConsistencyToken::of(log, Head { epoch, position }));
            }
        }
        Ok(Some(pb::IssueCredentialResponse {
            token: token.map_err(|error| status::internal(&error))?,
            token_id: token_id.to_string(),
            expire_time: Some(request::timestamp(grant.expires)),
            consistency_token: reached.to_string(),
        }))
    }
}
