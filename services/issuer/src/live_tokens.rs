//! Which tokens of a signing key a cloud, or a service of ours, may still accept, read from the log.
//!
//! None lives longer than an hour, so the log's last hour has them all.

use edge::{clock, request};
use eventlog::{EventLog, LogError, RecordedEvent};
use proto::issuer::v1::{self as pb, Event};
use time::{Duration, OffsetDateTime};

use crate::domain::credential::MAX_LIFETIME;

/// Events that are read at once.
const PAGE: u64 = 1_000;
/// How often, in search of the last token of a key.
const PAGES: usize = 50;

/// When the last token of a retired key expires; `None` if none is alive. Where so much was issued in the last hour that
/// reading it would take long, the latest that may be. `clock_skew` is what our clock and the database's may differ by.
pub(crate) async fn last_expiry(
    log: &EventLog,
    kid: &str,
    clock_skew: Duration,
) -> Result<Option<OffsetDateTime>, LogError> {
    let now = clock::now();
    let mut after = first_alive(log, now - clock_skew).await?;
    let mut last = None;
    for _ in 0..PAGES {
        let events = log.read(after, PAGE).await?;
        let Some(end) = events.last() else {
            return Ok(last);
        };
        after = end.position;
        let expiries = events.iter().filter_map(|event| issued(event, kid));
        last = expiries.filter_map(|token| expiry(&token)).max().max(last);
    }
    Ok(Some(now + MAX_LIFETIME))
}

/// Live tokens of a key behind a position, in order, and the position behind which there may be more.
pub(crate) async fn list(
    log: &EventLog,
    kid: &str,
    clock_skew: Duration,
    after: u64,
    limit: usize,
) -> Result<(Vec<pb::LiveToken>, Option<u64>), LogError> {
    let now = clock::now();
    let mut after = after.max(first_alive(log, now - clock_skew).await?);
    let mut found = Vec::new();
    loop {
        let events = log.read(after, PAGE).await?;
        if events.is_empty() {
            return Ok((found, None));
        }
        for event in &events {
            after = event.position;
            let alive = |token: &pb::LiveToken| expiry(token).is_some_and(|end| end > now);
            let Some(token) = issued(event, kid).filter(alive) else {
                continue;
            };
            if found.len() == limit {
                return Ok((found, Some(event.position - 1)));
            }
            found.push(token);
        }
    }
}

/// The position behind which every token that is alive was issued.
async fn first_alive(log: &EventLog, now: OffsetDateTime) -> Result<u64, LogError> {
    let since = now - MAX_LIFETIME;
    // Times follow positions.
    let (mut low, mut high) = (0, log.head().await?.position);
    while low < high {
        let middle = low + (high - low) / 2;
        let at = log
            .read(middle, 1)
            .await?
            .first()
            .map(|event| event.recorded_at);
        if at.is_some_and(|at| at < since) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    Ok(low)
}

/// A token of the key. Those of jobs are not events of their own.
fn issued(recorded: &RecordedEvent, kid: &str) -> Option<pb::LiveToken> {
    let event = Event::decode(&recorded.event_type, &recorded.payload).ok()?;
    match event {
        Event::CredentialIssued(event) if event.kid == kid => Some(pb::LiveToken {
            token_id: event.token_id,
            managed_identity_id: event.managed_identity_id,
            workspace_id: event.workspace_id,
            job_id: event.job_id,
            audience: event.audience,
            issue_time: event.issue_time,
            expire_time: event.expire_time,
            ..pb::LiveToken::default()
        }),
        Event::ServiceAccountTokenIssued(event) if event.kid == kid => Some(pb::LiveToken {
            token_id: event.token_id,
            service_account_id: event.service_account_id,
            audience: event.audience,
            issue_time: event.issue_time,
            expire_time: event.expire_time,
            ..pb::LiveToken::default()
        }),
        _ => None,
    }
}

fn expiry(token: &pb::LiveToken) -> Option<OffsetDateTime> {
    request::time("expire_time", token.expire_time.as_ref()?).ok()
}
