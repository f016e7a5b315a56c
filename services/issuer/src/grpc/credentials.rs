//! `CredentialService`.

use std::sync::Arc;

use edge::authentication::AuthenticationError;
use edge::caller::Caller;
use edge::layer::Call;
use edge::status::PreconditionViolation;
use edge::{clock, request, status};
use eventlog::{
    Append, AppendError, ConsistencyToken, Expected, Head, Metadata, NewEvent, StreamAppend,
};
use futures::join;
use model::{JobId, Principal};
use proto::issuer::v1 as pb;
use proto::issuer::v1::credential_service_server::CredentialService;
use tokio::time::Instant;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::ground::Ground;
use super::job_facts::Known;
use super::jobs::workspace_deleted;
use super::refusals::{About, Denied, IDENTITY_NOT_FOUND, Refused, WORKSPACE_DELETED};
use super::{IssuerRpc, jobs};
use crate::domain::credential::{self, Grant, Question, Refusal, Refusals, job_findings};
use crate::domain::job::Over;
use crate::keys::ring::signs;
use crate::signing::{SigningError, SigningKey, TokenType};
use crate::wire;

/// How often a request is decided before giving up. Each time something that it leans on changed meanwhile.
const ATTEMPTS: usize = 10;

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
type Granted = (Grant, Arc<Ground>);

/// The same, with what it is signed with.
struct Signable {
    token_id: Uuid,
    grant: Grant,
    ground: Arc<Ground>,
    key: Arc<SigningKey>,
}

impl Signable {
    fn sign(&self, issuer: &str, revision: &str) -> Result<String, SigningError> {
        let Ground {
            stage,
            workspace_path: path,
            ..
        } = &*self.ground;
        let id = self.token_id;
        let claims = wire::credential_claims(issuer, &self.grant, id, *stage, path, revision);
        self.key.sign(TokenType::Credential, &claims)
    }

    fn credential(&self, token: String) -> pb::Credential {
        let Grant {
            identity,
            audience,
            expires,
            ..
        } = &self.grant;
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
fn audit(job: JobId, granted: &[Signable], revision: &str, metadata: Metadata) -> Append {
    let events = granted.iter().map(|signable| {
        let (grant, kid) = (&signable.grant, signable.key.kid());
        let event = wire::issued(grant, signable.token_id, kid, revision);
        NewEvent {
            id: clock::new_uuid(),
            event_type: event.event_type(),
            payload: event.encode(),
        }
    });
    let events = events.collect();
    let grounds = granted.iter().map(|signable| &signable.ground.guards);
    let shared = grounds.map(Arc::clone).collect();
    // One that does not sign any more is refused with the audit.
    let guards = granted
        .iter()
        .map(|signable| signs(&signable.key))
        .collect();
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
        return Err(status::permission_denied("Job", "this service"));
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

fn contention() -> Status {
    status::aborted(
        "CONTENTION",
        "what the credential depends on kept changing; try again",
    )
}

impl IssuerRpc {
    async fn issue_one(
        &self,
        call: &Call,
        metadata: &MetadataMap,
        job: JobId,
        named: &str,
    ) -> Result<pb::IssueCredentialResponse, Denied> {
        for _ in 0..ATTEMPTS {
            let since = self.current().await?;
            let (grant, ground) = self.decide(job, call, named).await?;
            let granted = vec![(grant, ground)];
            if let Some(mut issued) = self.issue(call, metadata, job, granted, since).await? {
                let credential = issued.credentials.pop().unwrap_or_default();
                return Ok(pb::IssueCredentialResponse {
                    token: credential.token,
                    token_id: credential.token_id,
                    expire_time: credential.expire_time,
                    consistency_token: issued.consistency_token,
                });
            }
            self.grounds.forget(job, named);
            self.look_for_keys().await?;
        }
        Err(contention().into())
    }

    /// What one identity is refused for does not keep the others from being issued.
    async fn issue_all(
        &self,
        call: &Call,
        metadata: &MetadataMap,
        job: JobId,
    ) -> Result<pb::IssueCredentialsResponse, Denied> {
        for _ in 0..ATTEMPTS {
            let since = self.current().await?;
            let (granted, refused) = match self.remembered_all(job).await? {
                Some(granted) => (granted, vec![]),
                None => self.decide_all(job, call).await?,
            };
            let identities: Vec<_> = granted.iter().map(|(grant, _)| grant.identity).collect();
            if let Some(issued) = self.issue(call, metadata, job, granted, since).await? {
                return self.tell(call, metadata, issued, refused).await;
            }
            for identity in identities {
                self.grounds.forget(job, &identity.to_string());
            }
            self.look_for_keys().await?;
        }
        Err(contention().into())
    }

    /// What a job gets for all that is assigned now, if all of it is remembered to be granted. Nothing else needs to be
    /// looked up then: what stands in the way of the job as a whole would be refused when the grants are recorded.
    async fn remembered_all(&self, job: JobId) -> Result<Option<Vec<Granted>>, Status> {
        let Some(workspace) = self.grounds.workspace(job) else {
            return Ok(None);
        };
        let assigned = self.assigned(workspace).await?;
        let granted = assigned.iter().map(|identity| {
            let named = identity.to_string();
            let ground = self.grounds.get(job, &named)?;
            let grant = self.decide_on(&ground, &named).ok()?;
            Some((grant, ground))
        });
        let granted: Option<Vec<_>> = granted.collect();
        Ok(granted.filter(|granted| !granted.is_empty()))
    }

    async fn decide_all(
        &self,
        job: JobId,
        call: &Call,
    ) -> Result<(Vec<Granted>, Vec<Refused>), Denied> {
        let known = self.known_job(job).await?;
        let known = known.ok_or_else(|| status::not_found(&job.to_string()))?;
        self.refuse_whole_job(&known).await?;
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
        if let Some(ground) = self.grounds.get(job, named)
            && let Ok(grant) = self.decide_on(&ground, named)
        {
            return Ok((grant, ground));
        }
        let (grant, ground) = self.decide_anew(job, &call.caller, named).await?;
        if self.shared.keys.active_for(grant.algorithm).is_none() {
            return Err(not_ready(&grant, self.revision()).into());
        }
        let ground = Arc::new(ground);
        self.grounds.remember(job, named, Arc::clone(&ground));
        Ok((grant, ground))
    }

    /// What a refusal is decided on was read in pieces: it counts only if all of them are so still, and so were at once.
    pub(super) async fn decide_anew(
        &self,
        job: JobId,
        caller: &Caller,
        named: &str,
    ) -> Result<(Grant, Ground), Denied> {
        for _ in 0..ATTEMPTS {
            let ground = self.look_up(job, caller, named).await?;
            match self.decide_on(&ground, named) {
                Ok(grant) => return Ok((grant, ground)),
                Err(refused) if self.hold_still(&ground.guards).await? => {
                    return Err(refused.into());
                }
                Err(_) => {}
            }
        }
        Err(contention().into())
    }

    pub(super) fn decide_on(&self, ground: &Ground, named: &str) -> Result<Grant, Refused> {
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
            revision: self.revision(),
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

    /// What a job would be refused for with any identity, and with none.
    async fn refuse_whole_job(&self, known: &Known) -> Result<(), Denied> {
        let Known { job, life, .. } = known;
        let refused = |reasons, status| Refused {
            job: job.id,
            workspace: job.workspace,
            stage: job.stage,
            about: About::All,
            reasons,
            revision: self.revision(),
            is_of_the_job: true,
            status,
        };
        let subject = self.subject(self.present(), job.id.into(), job.clone(), *life);
        let Some(subject) = subject.await? else {
            self.note_reached().await?;
            return Err(refused(vec![WORKSPACE_DELETED], workspace_deleted()).into());
        };
        self.note_reached().await?;
        let findings = job_findings(life, subject.without_role(), clock::now());
        match Refusals::among(findings) {
            Some(refusals) => Err(refused(reasons(&refusals), refusals.into()).into()),
            None => Ok(()),
        }
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
        let revision = self.revision();
        let granted = granted.into_iter().map(|(grant, ground)| {
            Some(Signable {
                token_id: clock::new_uuid(),
                key: shared.keys.active_for(grant.algorithm)?,
                grant,
                ground,
            })
        });
        let Some(granted) = granted.collect::<Option<Vec<_>>>() else {
            return Ok(None);
        };
        let append = async {
            if granted.is_empty() {
                return Ok(None);
            }
            let metadata = Metadata {
                actor: call.caller.principal.to_string(),
                traceparent: request::traceparent(metadata),
            };
            let mut append = audit(job, &granted, &revision, metadata);
            append.guards.extend(call.caller.leans_on.clone());
            shared.commands.log().append(append).await.map(Some)
        };
        let sign = async {
            let signed = granted.iter().map(|granted| {
                let token = granted.sign(&shared.issuer, &revision)?;
                Ok::<_, SigningError>(granted.credential(token))
            });
            signed.collect::<Result<Vec<_>, _>>()
        };
        // Signed while the audit becomes durable; the tokens leave only when it is.
        let (appended, credentials) = join!(append, sign);
        let appended = match appended {
            Ok(appended) => appended,
            Err(error) if call.caller.is_disowned(&error) => {
                return Err(AuthenticationError::KeyUnknown.into());
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
        let is_over = |signable: &Signable| signable.ground.question.job_life.over(now).is_some();
        if granted.iter().any(is_over) {
            return Ok(None);
        }
        self.recorded
            .forget(job, granted.iter().map(|it| it.grant.identity));
        let head = appended.map(|appended| Head {
            epoch: appended.epoch,
            position: appended.last,
        });
        Ok(Some(Issued {
            credentials: credentials.map_err(|error| status::internal(&error))?,
            consistency_token: self.reached(head),
        }))
    }

    /// How far the logs were known that a decision leans on, or a little further: `namespace=7,identity=9`.
    pub(super) fn revision(&self) -> String {
        let known = self
            .known()
            .map(|(log, _, position)| format!("{log}={position}"));
        known.collect::<Vec<_>>().join(",")
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
