//! What the log has of jobs: which were opened with a token of a key, and what one of them got.

use std::collections::BTreeSet;

use eventlog::{EventLog, LogError, StreamId};
use futures::TryStreamExt as _;
use model::{JobDuration, JobId};
use proto::issuer::v1::{self as pb, Event};
use time::{Duration, OffsetDateTime};

/// How long it takes at most, from a credential's `iat`, until it is on record: it would not have left otherwise.
const TO_RECORD: Duration = Duration::MINUTE;

/// How the keys of the facts begin that a job's token was asked for again with a token which a key has signed and the job
/// was not opened with; the job's id follows.
pub(crate) fn repeated_with(kid: &str) -> String {
    format!("job-repeated/{kid}/")
}

/// The jobs that were opened, or asked for again, with a token which a key has signed, in the order of their opening. They
/// may be over.
pub(crate) async fn opened_with(
    log: &EventLog,
    kid: &str,
    clock_skew: Duration,
) -> Result<BTreeSet<JobId>, LogError> {
    let longest = Duration::seconds(JobDuration::LONGEST.seconds());
    let alive = log.now().await? - clock_skew - longest;
    let mut opened = sqlx::query!(
        "SELECT event_type, payload FROM events
         WHERE event_type = 'tharsis.issuer.v1.JobOpened' AND recorded_at >= $1
         ORDER BY recorded_at, position",
        alive
    )
    .fetch(log.pool());
    // Their ids tell when they were opened.
    let mut jobs = BTreeSet::new();
    while let Some(recorded) = opened.try_next().await? {
        let event = Event::decode(&recorded.event_type, &recorded.payload).ok();
        if let Some(Event::JobOpened(opened)) = event
            && opened.opener_token_kid == kid
        {
            jobs.extend(opened.job_id.parse::<JobId>().ok());
        }
    }
    let prefix = repeated_with(kid);
    let repeated = log.fact_keys(&prefix).await?;
    let repeated = repeated.iter().filter_map(|key| key.strip_prefix(&prefix));
    jobs.extend(repeated.filter_map(|id| id.parse::<JobId>().ok()));
    Ok(jobs)
}

/// What a job got, by its `jti` and its `iat`.
pub(crate) async fn credential(
    log: &EventLog,
    job: JobId,
    token_id: &str,
    issued: OffsetDateTime,
    clock_skew: Duration,
) -> Result<Option<pb::CredentialIssued>, LogError> {
    let stream = StreamId::new("job", job);
    // Of all that a job got in that time no more than the one is read.
    let recorded = sqlx::query!(
        "SELECT event_type, payload FROM events
         WHERE stream_id = $1 AND event_type = 'tharsis.issuer.v1.CredentialIssued' AND recorded_at BETWEEN $2 AND $3
           AND position($4::bytea IN payload) > 0
         LIMIT 1",
        stream.as_str(),
        issued - clock_skew - Duration::SECOND,
        issued + clock_skew + TO_RECORD,
        token_id.as_bytes()
    );
    let recorded = recorded.fetch_optional(log.pool()).await?;
    let event = recorded.and_then(|event| Event::decode(&event.event_type, &event.payload).ok());
    Ok(match event {
        Some(Event::CredentialIssued(event)) if event.token_id == token_id => Some(event),
        _ => None,
    })
}
