//! `CredentialService`.

use std::sync::Arc;

use edge::authentication::{AuthenticationError, leaned_on};
use edge::caller::Caller;
use edge::layer::Call;
use edge::status::PreconditionViolation;
use edge::{clock, request, status};
use eventlog::{
    Append, AppendError, ConsistencyToken, Expected, Head, Metadata, NewEvent, StreamAppend,
};
use futures::join;
use model::trust::Claims;
use model::{JobId, Principal};
use proto::issuer::v1 as pb;
use proto::issuer::v1::credential_service_server::CredentialService;
use time::OffsetDateTime;
use tokio::task::yield_now;
use tokio::time::Instant;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::current::until_steady;
use super::ground::{Ground, Remembered};
use super::job_facts::Known;
use super::jobs::workspace_deleted;
use super::refusals::{About, Denied, IDENTITY_NOT_FOUND, Refused, WORKSPACE_DELETED};
use super::{IssuerRpc, jobs};
use crate::domain::credential::{self, Grant, Question, Refusal, Refusals, job_findings};
use crate::domain::job::Over;
use crate::keys::ring::signs;
use crate::signing::{SigningError, SigningKey, TokenType};
use crate::wire::{self, CredentialClaims};

/// The word for a refusal, in answers and on the record.
pub(super) fn reason(refusal: &Refusal) -> &'static str {
    match refusal {
        Refusal::JobOver(Over::Overdue) => "JOB_OVER",
        Refusal::JobOver(Over::Silent) => "JOB_SILENT",
        Refusal::JobOver(Over::Finished) => "JOB_FINISHED",
        Refusal::JobOver(Over::Cancelled) => "JOB_CANCELLED",
        Refusal::PrincipalNotMember => "PRINCIPAL_NOT_MEMBER",
        Refusal::OpenerNotMember => "OPENER_NOT_MEMBER",
        Refusal::NotAssigned => "NOT_ASSIGNED",
        Refusal::NotInherited => "NOT_INHERITED",
        Refusal::Masked(_) => "MASKED",
        Refusal::RulesRefused(_) => "RULES_REFUSED",
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        Refusals::from(refusal).into()
    }
}

impl From<Refusals> for Status {
    fn from(refusals: Refusals) -> Self {
        let violations = refusals.all().flat_map(violations).collect();
        let first = &refusals.first;
        status::failed_precondition(reason(first), &first.to_string(), violations)
    }
}

/// What of a check stands in the way.
fn violations(refusal: &Refusal) -> Vec<PreconditionViolation> {
    let message = refusal.to_string();
    let violation = |subject: &str| PreconditionViolation::new(reason(refusal), subject, &message);
    match refusal {
        Refusal::RulesRefused(types) => types
            .iter()
            .map(|rule_type| violation(&rule_type.to_string()))
            .collect(),
        _ => vec![violation("job")],
    }
}

/// What a job gets, and what that was decided on.
pub(super) struct Granted {
    grant: Grant,
    pub(super) ground: Arc<Ground>,
    /// One at which it was so.
    revision: String,
}

impl Granted {
    fn claims<'a>(&'a self, issuer: &'a str, token_id: Uuid) -> CredentialClaims<'a> {
        let Self {
            grant,
            ground,
            revision,
        } = self;
        let (stage, path) = (ground.stage, &ground.workspace_path);
        wire::credential_claims(issuer, grant, token_id, stage, path, revision)
    }

    /// Until when a credential that was issued before passes for the one that the job would get now. `None` if it does not
    /// any more.
    pub(super) fn still(
        &self,
        issuer: &str,
        shown: &Claims,
    ) -> Result<Option<OffsetDateTime>, serde_json::Error> {
        let lifetime = self.ground.question.token_settings.lifetime;
        let until = wire::like_until(shown, &self.claims(issuer, Uuid::nil()), lifetime)?;
        Ok(until.filter(|until| *until > self.grant.issued))
    }
}

/// The same, with what it is signed with.
struct Signable {
    token_id: Uuid,
    granted: Granted,
    key: Arc<SigningKey>,
}

impl Signable {
    fn sign(&self, issuer: &str) -> Result<String, SigningError> {
        let claims = self.granted.claims(issuer, self.token_id);
        self.key.sign(TokenType::Credential, &claims)
    }

    fn credential(&self, token: String) -> pb::Credential {
        let Grant {
            identity,
            audience,
            expires,
            ..
        } = &self.granted.grant;
        pb::Credential {
            managed_identity_id: identity.to_string(),
            audience: audience.clone(),
            token,
            token_id: self.token_id.to_string(),
            expire_time: Some(request::timestamp(*expires)),
        }
    }
}

/// What puts tokens on the record, if all that they lean on is so still.
fn audit(job: JobId, caller: &Caller, granted: &[Signable], metadata: Metadata) -> Append {
    let job_token_kid = caller.leans_on.as_ref().and_then(leaned_on);
    let job_token_kid = job_token_kid.unwrap_or_default();
    let events = granted.iter().map(|signable| {
        let Granted {
            grant, revision, ..
        } = &signable.granted;
        let (token_id, kid) = (signable.token_id, signable.key.kid());
        let event = wire::issued(grant, token_id, kid, revision, job_token_kid);
        NewEvent {
            id: clock::new_uuid(),
            event_type: event.event_type(),
            payload: event.encode(),
        }
    });
    let events = events.collect();
    let grounds = granted.iter().map(|signable| &signable.granted.ground);
    let shared = grounds.map(|ground| Arc::clone(&ground.guards)).collect();
    // One that does not sign any more is refused with the audit.
    let signing = granted.iter().map(|signable| signs(&signable.key));
    let guards = signing.chain(caller.leans_on.clone()).collect();
    Append {
        command: None,
        streams: vec![StreamAppend {
            stream_id: jobs::stream(job),
            expected: Expected::Any,
            events,
        }],
        shared,
        guards,
        metadata,
    }
}

/// Credentials, signed and on the record, and the state that they were decided on.
struct Issued {
    credentials: Vec<pb::Credential>,
    consistency_token: String,
}

#[tonic::async_trait]
impl CredentialService for IssuerRpc {
    async fn issue_credential(
        &self,
        request: Request<pb::IssueCredentialRequest>,
    ) -> Result<Response<pb::IssueCredentialResponse>, Status> {
        let (call, metadata, message, job) = asked(request)?;
        match self
            .issue_one(&call, &metadata, job, &message.managed_identity_id)
            .await
        {
            Ok(response) => Ok(Response::new(response)),
            Err(denied) => Err(self.answer(&call, &metadata, denied).await),
        }
    }

    async fn explain_credential(
        &self,
        request: Request<pb::ExplainCredentialRequest>,
    ) -> Result<Response<pb::ExplainCredentialResponse>, Status> {
        let call = Call::of(&request)?;
        let explained = self.explain(&call, request.get_ref()).await?;
        Ok(Response::new(explained))
    }

    async fn list_job_managed_identities(
        &self,
        request: Request<pb::ListJobManagedIdentitiesRequest>,
    ) -> Result<Response<pb::ListJobManagedIdentitiesResponse>, Status> {
        let call = Call::of(&request)?;
        self.job_identities(&call).await.map(Response::new)
    }

    async fn issue_credentials(
        &self,
        request: Request<pb::IssueCredentialsRequest>,
    ) -> Result<Response<pb::IssueCredentialsResponse>, Status> {
        let (call, metadata, _, job) = asked(request)?;
        match self.issue_all(&call, &metadata, job).await {
            Ok(response) => Ok(Response::new(response)),
            Err(denied) => Err(self.answer(&call, &metadata, denied).await),
        }
    }
}

fn asked<T>(request: Request<T>) -> Result<(Call, MetadataMap, T, JobId), Status> {
    let call = Call::of(&request)?;
    let (metadata, _, message) = request.into_parts();
    let Principal::Job(job) = call.caller.principal else {
        return Err(status::permission_denied(call.permission, "this service"));
    };
    Ok((call, metadata, message, job))
}

/// The words for each of them.
fn reasons(refusals: &Refusals) -> Vec<&'static str> {
    refusals.all().map(reason).collect()
}

/// The first key of an algorithm signs when every relying party has had the time to read of it.
fn not_ready(grant: &Grant, revision: String) -> Refused {
    const REASON: &str = "SIGNING_KEY_NOT_READY";
    let message = format!(
        "the first signing key for {} is not known to all relying parties yet; try again in a few minutes",
        grant.algorithm
    );
    Refused {
        job: grant.job,
        workspace: grant.workspace,
        stage: grant.stage,
        about: About::Identity(grant.identity),
        reasons: vec![REASON],
        revision,
        is_of_the_job: false,
        status: status::unavailable(REASON, &message),
    }
}

/// What a job gets on a ground that was so at a revision.
fn decide_on(ground: &Ground, named: &str, revision: &str) -> Result<Grant, Refused> {
    let question = Question {
        now: clock::now(),
        ..ground.question.clone()
    };
    let (job, workspace, stage) = (question.job, question.workspace, question.stage);
    let identity = question.identity;
    let is_hidden = !question.assigned && !question.inherited;
    let refused = |about, reasons, is_of_the_job, status| Refused {
        job,
        workspace,
        stage,
        about,
        reasons,
        revision: revision.to_owned(),
        is_of_the_job,
        status,
    };
    credential::decide(question).map_err(|refusals| {
        // A job sees what its workspace has, and nothing else: all other identities don't exist for it, nor for
        // those who read the record of its workspace.
        if is_hidden {
            let about = About::Named(named.to_owned());
            let reasons = vec![IDENTITY_NOT_FOUND];
            return refused(about, reasons, false, status::not_found(named));
        }
        let is_of_the_job = matches!(
            refusals.first,
            Refusal::JobOver(_) | Refusal::PrincipalNotMember | Refusal::OpenerNotMember
        );
        let (about, reasons) = (About::Identity(identity), reasons(&refusals));
        refused(about, reasons, is_of_the_job, refusals.into())
    })
}

impl IssuerRpc {
    async fn issue_one(
        &self,
        call: &Call,
        metadata: &MetadataMap,
        job: JobId,
        named: &str,
    ) -> Result<pb::IssueCredentialResponse, Denied> {
        let mut issued = until_steady(|_| async move {
            let since = self.current().await?;
            let granted = vec![self.decide(job, call, named).await?];
            let issued = self.issue(call, metadata, job, granted, since).await?;
            if issued.is_none() {
                self.grounds.forget(job, named);
                self.look_for_keys().await?;
            }
            Ok::<_, Denied>(issued)
        })
        .await?;
        let credential = issued.credentials.pop().unwrap_or_default();
        Ok(pb::IssueCredentialResponse {
            token: credential.token,
            token_id: credential.token_id,
            expire_time: credential.expire_time,
            consistency_token: issued.consistency_token,
        })
    }

    /// What one identity is refused for does not keep the others from being issued.
    async fn issue_all(
        &self,
        call: &Call,
        metadata: &MetadataMap,
        job: JobId,
    ) -> Result<pb::IssueCredentialsResponse, Denied> {
        let (issued, refused) = until_steady(|_| async move {
            let since = self.current().await?;
            let (granted, refused) = match self.remembered_all(job).await? {
                Some(granted) => (granted, vec![]),
                None => self.decide_all(job, call).await?,
            };
            let identities = granted.iter().map(|granted| granted.grant.identity);
            let identities: Vec<_> = identities.collect();
            let issued = self.issue(call, metadata, job, granted, since).await?;
            if issued.is_none() {
                for identity in identities {
                    self.grounds.forget(job, &identity.to_string());
                }
                self.look_for_keys().await?;
            }
            Ok::<_, Denied>(issued.map(|issued| (issued, refused)))
        })
        .await?;
        self.tell(call, metadata, issued, refused).await
    }

    /// What a job gets for all that is assigned now, if all of it is remembered to be granted. Nothing else needs to be
    /// looked up then: what stands in the way of the job as a whole would be refused when the grants are recorded.
    async fn remembered_all(&self, job: JobId) -> Result<Option<Vec<Granted>>, Status> {
        let Some(workspace) = self.grounds.workspace(job) else {
            return Ok(None);
        };
        let mut all = Vec::new();
        for identity in self.assigned(workspace).await? {
            let Some(granted) = self.remembered(job, &identity.to_string()).await? else {
                return Ok(None);
            };
            all.push(granted);
        }
        Ok(Some(all).filter(|all| !all.is_empty()))
    }

    /// What a job gets, if that is remembered and is so still.
    async fn remembered(&self, job: JobId, named: &str) -> Result<Option<Granted>, Status> {
        let Some(Remembered {
            ground,
            mut revision,
        }) = self.grounds.get(job, named)
        else {
            return Ok(None);
        };
        if revision != self.revision() {
            let Some(now) = self.still_at(&ground.guards).await? else {
                return Ok(None);
            };
            revision = now;
            self.remember(job, named, &ground, &revision);
        }
        let grant = decide_on(&ground, named, &revision).ok();
        Ok(grant.map(|grant| Granted {
            grant,
            ground,
            revision,
        }))
    }

    fn remember(&self, job: JobId, named: &str, ground: &Arc<Ground>, revision: &str) {
        let known = Remembered {
            ground: Arc::clone(ground),
            revision: revision.to_owned(),
        };
        self.grounds.remember(job, named, known);
    }

    async fn decide_all(
        &self,
        job: JobId,
        call: &Call,
    ) -> Result<(Vec<Granted>, Vec<Refused>), Denied> {
        let known = self.refuse_whole_job(job).await?;
        let (mut granted, mut refused) = (Vec::new(), Vec::new());
        for identity in self.assigned(known.job.workspace).await? {
            match self.decide(job, call, &identity.to_string()).await {
                Ok(grant) => granted.push(grant),
                // Deleted since: an assignment alone is none.
                Err(Denied::Refused(refusal)) if refusal.reasons == [IDENTITY_NOT_FOUND] => {}
                Err(Denied::Refused(refusal)) if !refusal.is_of_the_job => {
                    refused.push(*refusal);
                }
                Err(denied) => return Err(denied),
            }
        }
        Ok((granted, refused))
    }

    async fn tell(
        &self,
        call: &Call,
        metadata: &MetadataMap,
        issued: Issued,
        refused: Vec<Refused>,
    ) -> Result<pb::IssueCredentialsResponse, Denied> {
        let mut refusals = Vec::new();
        for refusal in refused {
            self.record(call, metadata, &refusal).await?;
            refusals.push(pb::CredentialRefusal {
                managed_identity_id: refusal.about.identity(),
                reasons: refusal.reasons.iter().map(ToString::to_string).collect(),
                message: refusal.status.message().to_owned(),
            });
        }
        Ok(pb::IssueCredentialsResponse {
            credentials: issued.credentials,
            refusals,
            consistency_token: issued.consistency_token,
        })
    }

    /// What is remembered may be wrong. A grant is checked when it is recorded; a refusal has to be looked up.
    async fn decide(&self, job: JobId, call: &Call, named: &str) -> Result<Granted, Denied> {
        if let Some(granted) = self.remembered(job, named).await? {
            return Ok(granted);
        }
        let granted = self.decide_anew(job, &call.caller, named).await?;
        let Granted {
            grant,
            ground,
            revision,
        } = &granted;
        let key = self.shared.keys.active_for(grant.algorithm);
        if key.map_err(Status::from)?.is_none() {
            return Err(not_ready(grant, revision.clone()).into());
        }
        self.remember(job, named, ground, revision);
        Ok(granted)
    }

    /// What is decided on was read in pieces: it counts only if all of them are so still, and so were at once.
    pub(super) async fn decide_anew(
        &self,
        job: JobId,
        caller: &Caller,
        named: &str,
    ) -> Result<Granted, Denied> {
        until_steady(|attempt| async move {
            let before = self.revision_now().await?;
            let ground = self.look_up(job, caller, named).await?;
            let has_role = ground.question.without_role.is_none();
            let at = self.found_at(&ground.guards, has_role, &before, attempt);
            let Some(revision) = at.await? else {
                return Ok(None);
            };
            let grant = decide_on(&ground, named, &revision)?;
            Ok(Some(Granted {
                grant,
                ground: Arc::new(ground),
                revision,
            }))
        })
        .await
    }

    /// What a job would be refused for with any identity, and with none.
    pub(super) async fn refuse_whole_job(&self, job: JobId) -> Result<Known, Denied> {
        until_steady(|attempt| async move {
            let before = self.revision_now().await?;
            let known = self.known_job(job).await?;
            let known = known.ok_or_else(|| status::not_found(&job.to_string()))?;
            let refused = |reasons, revision, status| Refused {
                job,
                workspace: known.job.workspace,
                stage: known.job.stage,
                about: About::All,
                reasons,
                revision,
                is_of_the_job: true,
                status,
            };
            let subject = self.subject(self.present(), job.into(), known.job.clone(), known.life);
            let Some(subject) = subject.await? else {
                let (reasons, revision) = (vec![WORKSPACE_DELETED], self.revision_now().await?);
                return Err(refused(reasons, revision, workspace_deleted()).into());
            };
            let findings = job_findings(&known.life, subject.without_role(), clock::now());
            let Some(refusals) = Refusals::among(findings) else {
                return Ok(Some(known));
            };
            let guards: Vec<_> = subject.guards().into_iter().chain(known.guards()).collect();
            let has_role = subject.without_role().is_none();
            let at = self.found_at(&guards, has_role, &before, attempt);
            let Some(revision) = at.await? else {
                return Ok(None);
            };
            Err(refused(reasons(&refusals), revision, refusals.into()).into())
        })
        .await
    }

    /// Records and signs what was decided on what was known since then. `None` if what the decisions lean on has
    /// changed.
    async fn issue(
        &self,
        call: &Call,
        metadata: &MetadataMap,
        job: JobId,
        granted: Vec<Granted>,
        since: Instant,
    ) -> Result<Option<Issued>, Status> {
        let shared = &self.shared;
        let mut signable = vec![];
        for granted in granted {
            let Some(key) = shared.keys.active_for(granted.grant.algorithm)? else {
                return Ok(None);
            };
            signable.push(Signable {
                token_id: clock::new_uuid(),
                key,
                granted,
            });
        }
        let granted = signable;
        let append = async {
            if granted.is_empty() {
                return Ok(None);
            }
            let metadata = Metadata {
                actor: call.caller.principal.to_string(),
                traceparent: request::traceparent(metadata),
            };
            let append = audit(job, &call.caller, &granted, metadata);
            shared.commands.log().append(append).await.map(Some)
        };
        let sign = async {
            // A signature keeps its thread busy for longer than all the rest: first whatever else is due there, above all the
            // append, which would begin only after it.
            yield_now().await;
            let signed = granted.iter().map(|granted| {
                let token = granted.sign(&shared.issuer)?;
                Ok::<_, SigningError>(granted.credential(token))
            });
            signed.collect::<Result<Vec<_>, _>>()
        };
        let before = clock::now();
        // Signed while the audit becomes durable; the tokens leave only when it is.
        let (appended, credentials) = join!(append, sign);
        let appended = match appended {
            Ok(appended) => appended,
            Err(error) if call.caller.is_disowned(&error) => {
                return Err(AuthenticationError::KeyRevoked.into());
            }
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
        self.refuse_if_late(since)?;
        let now = clock::now();
        if let Some(appended) = &appended {
            let recorded_at = appended.recorded_at;
            shared.keys.recorded_in_time(before, recorded_at, now)?;
        }
        let mut lives = granted.iter().map(|it| it.granted.ground.question.job_life);
        if lives.any(|life| life.over(now).is_some()) {
            return Ok(None);
        }
        let head = appended.map(|appended| Head {
            epoch: appended.epoch,
            position: appended.last,
        });
        Ok(Some(Issued {
            credentials: credentials.map_err(|error| status::internal(&error))?,
            consistency_token: self.reached(head),
        }))
    }

    pub(super) fn reached(&self, own: Option<Head>) -> String {
        let own = own.map(|head| (self.shared.commands.log().name(), head));
        let known = self.known().filter_map(|(log, epoch, position)| {
            let epoch = epoch?;
            Some((log, Head { epoch, position }))
        });
        let reached: ConsistencyToken = own.into_iter().chain(known).collect();
        reached.to_string()
    }
}
