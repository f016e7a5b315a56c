//! Jobs and the credentials that they were given, and the tokens of service accounts.

use edge::hierarchy::node_key;
use edge::request;
use edge::violations::Violations;
use eventlog::{Change, FoldError, RecordedEvent};
use prost::Message as _;
use prost_types::Timestamp;
use proto::issuer::v1::{CredentialIssued, Event, JobOpened, Module};
use sqlx::PgConnection;
use time::OffsetDateTime;

use super::inapplicable;

/// An event has no time, or one that is none.
#[derive(Debug, thiserror::Error)]
#[error("the event has no valid {0}")]
struct MalformedTime(&'static str);

/// Answers with the facts: where a job is found.
pub(super) async fn apply(
    connection: &mut PgConnection,
    events: &[RecordedEvent],
) -> Result<Vec<Change>, FoldError> {
    let (mut jobs, mut credentials, mut facts) = (vec![], vec![], vec![]);
    for event in events {
        match Event::decode(&event.event_type, &event.payload).map_err(inapplicable(event))? {
            Event::JobOpened(job) => {
                let key = node_key(&job.job_id);
                facts.push((key, Some(format!("{}/", job.workspace_id))));
                let expires = time(event, "expire_time", job.expire_time.as_ref())?;
                jobs.push((event, job, expires));
            }
            Event::CredentialIssued(credential) => {
                let issued = time(event, "issue_time", credential.issue_time.as_ref())?;
                let expires = time(event, "expire_time", credential.expire_time.as_ref())?;
                credentials.push(Answer {
                    event,
                    place: credential.workspace_id.clone(),
                    service_account: None,
                    credential,
                    at: issued,
                    expires: Some(expires),
                    reasons: String::new(),
                    requested_identity: String::new(),
                });
            }
            Event::CredentialRefused(refused) => {
                let at = time(event, "refuse_time", refused.refuse_time.as_ref())?;
                let credential = CredentialIssued {
                    job_id: refused.job_id,
                    workspace_id: refused.workspace_id,
                    managed_identity_id: refused.managed_identity_id,
                    stage: refused.stage,
                    revision: refused.revision,
                    ..Default::default()
                };
                credentials.push(Answer {
                    event,
                    place: credential.workspace_id.clone(),
                    service_account: None,
                    credential,
                    at,
                    expires: None,
                    reasons: refused.reasons.join(","),
                    requested_identity: refused.requested_identity,
                });
            }
            Event::ServiceAccountTokenIssued(token) => {
                let at = time(event, "issue_time", token.issue_time.as_ref())?;
                let expires = time(event, "expire_time", token.expire_time.as_ref())?;
                let credential = CredentialIssued {
                    token_id: token.token_id,
                    // Of the token that was signed; the event has that of the one that was exchanged.
                    subject: token.service_account_id.clone(),
                    audience: token.audience,
                    kid: token.kid,
                    revision: token.revision,
                    ..Default::default()
                };
                credentials.push(Answer {
                    event,
                    place: token.group_id,
                    service_account: Some(token.service_account_id),
                    credential,
                    at,
                    expires: Some(expires),
                    reasons: String::new(),
                    requested_identity: String::new(),
                });
            }
            Event::JobTokenRepeated(_)
            | Event::JobHeartbeatReceived(_)
            | Event::JobFinished(_)
            | Event::JobCancelled(_)
            | Event::SigningKeyCreated(_)
            | Event::SigningKeyPublished(_)
            | Event::SigningKeyRotationRequested(_)
            | Event::SigningKeyActivated(_)
            | Event::SigningKeyRetired(_)
            | Event::SigningKeyRemoved(_)
            | Event::SigningKeyRevoked(_) => {}
        }
    }
    open(connection, jobs).await?;
    issue(connection, credentials).await?;
    Ok(facts)
}

fn time(
    event: &RecordedEvent,
    field: &'static str,
    time: Option<&Timestamp>,
) -> Result<OffsetDateTime, FoldError> {
    let malformed = || FoldError::Inapplicable {
        position: event.position,
        reason: MalformedTime(field).into(),
    };
    let time = time.ok_or_else(malformed)?;
    request::time(field, time).map_err(|_: Violations| malformed())
}

async fn open(
    connection: &mut PgConnection,
    jobs: Vec<(&RecordedEvent, JobOpened, OffsetDateTime)>,
) -> sqlx::Result<()> {
    if jobs.is_empty() {
        return Ok(());
    }
    let (mut ids, mut workspaces, mut stages, mut principals) = (vec![], vec![], vec![], vec![]);
    let (mut openers, mut created, mut expire) = (vec![], vec![], vec![]);
    let (mut heartbeat_timeouts, mut modules) = (vec![], vec![]);
    for (event, job, expires) in jobs {
        ids.push(job.job_id);
        workspaces.push(job.workspace_id);
        stages.push(job.stage);
        principals.push(job.principal);
        openers.push(job.opener);
        created.push(event.recorded_at);
        expire.push(expires);
        heartbeat_timeouts.push(job.heartbeat_timeout.unwrap_or_default().encode_to_vec());
        modules.push(job.module.map(|module| {
            let shown = Module {
                attestations: vec![],
                ..module
            };
            shown.encode_to_vec()
        }));
    }
    sqlx::query!(
        "INSERT INTO jobs
             (id, workspace_id, stage, principal, opener, created_at, expires_at, heartbeat_timeout, module)
         SELECT * FROM UNNEST
             ($1::text[], $2::text[], $3::integer[], $4::text[], $5::text[], $6::timestamptz[], $7::timestamptz[],
              $8::bytea[], $9::bytea[])",
        &ids,
        &workspaces,
        &stages,
        &principals,
        &openers,
        &created,
        &expire,
        &heartbeat_timeouts,
        &modules as &[Option<Vec<u8>>]
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// What came of a request for a credential.
struct Answer<'a> {
    event: &'a RecordedEvent,
    /// The workspace, or the group of the service account.
    place: String,
    service_account: Option<String>,
    /// What a refused one does not have is empty.
    credential: CredentialIssued,
    at: OffsetDateTime,
    expires: Option<OffsetDateTime>,
    reasons: String,
    requested_identity: String,
}

impl Answer<'_> {
    /// The identity whose subject the token has, if that is not the one that the job named.
    fn source(&self) -> Option<String> {
        let named = &self.credential.managed_identity_id;
        if named.is_empty() {
            return None;
        }
        // The stage may follow.
        let identity = self.credential.subject.split(':').next();
        let identity = identity.filter(|identity| !identity.is_empty() && identity != named);
        identity.map(str::to_owned)
    }
}

async fn issue(connection: &mut PgConnection, answers: Vec<Answer<'_>>) -> sqlx::Result<()> {
    if answers.is_empty() {
        return Ok(());
    }
    let (mut positions, mut tokens, mut jobs, mut workspaces, mut identities) =
        (vec![], vec![], vec![], vec![], vec![]);
    let (mut subjects, mut audiences, mut kids, mut issue_times, mut expire_times) =
        (vec![], vec![], vec![], vec![], vec![]);
    let (mut reasons, mut service_accounts, mut places) = (vec![], vec![], vec![]);
    let (mut stages, mut revisions, mut requested) = (vec![], vec![], vec![]);
    let (mut record_times, mut sources) = (vec![], vec![]);
    for answer in answers {
        sources.push(answer.source());
        let credential = answer.credential;
        positions.push(answer.event.position.cast_signed());
        record_times.push(answer.event.recorded_at);
        tokens.push(credential.token_id);
        jobs.push(credential.job_id);
        workspaces.push(credential.workspace_id);
        identities.push(credential.managed_identity_id);
        subjects.push(credential.subject);
        audiences.push(credential.audience);
        kids.push(credential.kid);
        issue_times.push(answer.at);
        expire_times.push(answer.expires);
        reasons.push(answer.reasons);
        service_accounts.push(answer.service_account);
        places.push(answer.place);
        stages.push(credential.stage);
        revisions.push(credential.revision);
        requested.push(answer.requested_identity);
    }
    sqlx::query!(
        "INSERT INTO credentials
             (position, token_id, job_id, workspace_id, managed_identity_id, subject, audience, kid, issued_at, expires_at,
              reasons, service_account_id, place_id, stage, revision, requested_identity, recorded_at, source_id)
         SELECT * FROM UNNEST
             ($1::bigint[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[],
              $9::timestamptz[], $10::timestamptz[], $11::text[], $12::text[], $13::text[], $14::integer[], $15::text[],
              $16::text[], $17::timestamptz[], $18::text[])",
        &positions,
        &tokens,
        &jobs,
        &workspaces,
        &identities,
        &subjects,
        &audiences,
        &kids,
        &issue_times,
        &expire_times as &[Option<OffsetDateTime>],
        &reasons,
        &service_accounts as &[Option<String>],
        &places,
        &stages,
        &revisions,
        &requested,
        &record_times,
        &sources as &[Option<String>]
    )
    .execute(connection)
    .await?;
    Ok(())
}
