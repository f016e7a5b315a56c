//! Which tokens of a signing key a cloud, or a service of ours, may still accept, read from the log.
//!
//! None lives longer than an hour, so the log's last hour has them all.

use std::collections::BTreeMap;

use edge::request;
use eventlog::{EventLog, LogError, RecordedEvent};
use proto::issuer::v1::{self as pb, Event};
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use crate::domain::credential::MAX_LIFETIME;

/// Events that are read at once.
const PAGE: u64 = 1_000;
/// How often, in one search.
const PAGES: usize = 50;

/// When the last token of each key expires, as far as the log has been read.
#[derive(Default)]
pub(crate) struct Expiries {
    /// The log's epoch, and the position of the last event that was read.
    read: Option<(Uuid, u64)>,
    last: BTreeMap<String, OffsetDateTime>,
}

impl Expiries {
    /// Reads on, from the first token that may be alive, but not for long: a busy hour takes several turns, and no event is
    /// read twice. Answers whether it has come to where the log ended. `clock_skew` is what our clock and the database's may
    /// differ by.
    pub(crate) async fn read_on(
        &mut self,
        log: &EventLog,
        clock_skew: Duration,
        now: OffsetDateTime,
    ) -> Result<bool, LogError> {
        let end = log.head().await?;
        let read = self
            .read
            .take_if(|(epoch, position)| *epoch == end.epoch && *position <= end.position);
        // What was issued since it was read last may be over by now.
        let read = read.map_or(0, |(_, position)| position);
        let mut after = read.max(first_alive(log, now - clock_skew).await?);
        for _ in 0..PAGES {
            self.read = Some((end.epoch, after));
            if after >= end.position {
                return Ok(true);
            }
            let events = log.read(after, PAGE).await?;
            for (kid, expiry) in events.iter().filter_map(signed) {
                let last = self.last.entry(kid).or_insert(expiry);
                *last = expiry.max(*last);
            }
            after = events.last().map_or(after, |event| event.position);
        }
        self.read = Some((end.epoch, after));
        Ok(false)
    }

    /// When the last token of a key expires that was read; `None` if there was none.
    pub(crate) fn of(&self, kid: &str) -> Option<OffsetDateTime> {
        self.last.get(kid).copied()
    }
}

/// Live tokens of a key, or obtained with one of it, behind a position, in order, and the position behind which there may be
/// more. Fewer than the limit, or none, where so much else was issued that to read on would take long.
pub(crate) async fn list(
    log: &EventLog,
    kid: &str,
    clock_skew: Duration,
    after: u64,
    limit: usize,
) -> Result<(Vec<pb::LiveToken>, Option<u64>), LogError> {
    let now = log.now().await?;
    let after = after.max(first_alive(log, now - clock_skew).await?);
    let mut found = Found {
        tokens: vec![],
        after,
    };
    for _ in 0..PAGES {
        let events = log.read(found.after, PAGE).await?;
        if events.is_empty() {
            return Ok((found.tokens, None));
        }
        if found.is_full(&events, kid, now, limit) {
            break;
        }
    }
    Ok((found.tokens, Some(found.after)))
}

/// What a search has found so far.
struct Found {
    tokens: Vec<pb::LiveToken>,
    /// The position of the last event that it has looked at.
    after: u64,
}

impl Found {
    /// Looks at more events; stops before the first token too many, if there is one.
    fn is_full(
        &mut self,
        events: &[RecordedEvent],
        kid: &str,
        now: OffsetDateTime,
        limit: usize,
    ) -> bool {
        let alive = |token: &pb::LiveToken| expiry(token).is_some_and(|end| end > now);
        for event in events {
            if let Some(token) = issued(event, kid).filter(alive) {
                if self.tokens.len() == limit {
                    return true;
                }
                self.tokens.push(token);
            }
            self.after = event.position;
        }
        false
    }
}

/// The position behind which every token that is alive was issued.
async fn first_alive(log: &EventLog, now: OffsetDateTime) -> Result<u64, LogError> {
    // Whatever comes behind it is read too.
    let head = log.head().await?.position;
    // Times don't follow positions where the database's clock was set back. Materialized, for otherwise the log is walked
    // from its beginning until one is found.
    let first = sqlx::query_scalar!(
        r#"WITH alive AS MATERIALIZED (SELECT position FROM events WHERE recorded_at >= $1)
           SELECT min(position) FROM alive"#,
        now - MAX_LIFETIME
    );
    let first = first.fetch_one(log.pool()).await?;
    Ok(first.map_or(head, |first| first.cast_unsigned() - 1))
}

/// The key that has signed a token, and when the token expires.
fn signed(recorded: &RecordedEvent) -> Option<(String, OffsetDateTime)> {
    let (kid, expiry) = match Event::decode(&recorded.event_type, &recorded.payload).ok()? {
        Event::CredentialIssued(event) => (event.kid, event.expire_time),
        Event::ServiceAccountTokenIssued(event) => (event.kid, event.expire_time),
        _ => return None,
    };
    Some((kid, request::time("expire_time", &expiry?).ok()?))
}

/// A token that the key has signed, or that was obtained with one. Those of jobs are not events of their own.
fn issued(recorded: &RecordedEvent, kid: &str) -> Option<pb::LiveToken> {
    let event = Event::decode(&recorded.event_type, &recorded.payload).ok()?;
    match event {
        Event::CredentialIssued(event) if event.kid == kid || event.job_token_kid == kid => {
            Some(pb::LiveToken {
                token_id: event.token_id,
                subject: event.subject,
                kid: event.kid,
                managed_identity_id: event.managed_identity_id,
                workspace_id: event.workspace_id,
                job_id: event.job_id,
                audience: event.audience,
                issue_time: event.issue_time,
                expire_time: event.expire_time,
                ..pb::LiveToken::default()
            })
        }
        Event::ServiceAccountTokenIssued(event)
            if [&event.kid, &event.subject_token_kid, &event.job_token_kid]
                .iter()
                .any(|of| *of == kid) =>
        {
            Some(pb::LiveToken {
                token_id: event.token_id,
                subject: event.service_account_id.clone(),
                kid: event.kid,
                service_account_id: event.service_account_id,
                audience: event.audience,
                issue_time: event.issue_time,
                expire_time: event.expire_time,
                ..pb::LiveToken::default()
            })
        }
        _ => None,
    }
}

fn expiry(token: &pb::LiveToken) -> Option<OffsetDateTime> {
    request::time("expire_time", token.expire_time.as_ref()?).ok()
}

#[cfg(test)]
mod tests {
    use bed::Database;
    use edge::clock;
    use eventlog::{Append, Expected, Metadata, NewEvent, StreamAppend, StreamId};
    use model::JobId;

    use super::*;
    use crate::MIGRATIONS;

    async fn log(database: &Database) -> EventLog {
        let tables = eventlog::migrate(database.pool(), Some(&MIGRATIONS)).await;
        tables.expect("tables");
        let log = EventLog::open("issuer", database.pool().clone());
        log.await.expect("a log")
    }

    fn issued_by(kid: &str) -> Event {
        let now = clock::now();
        Event::CredentialIssued(pb::CredentialIssued {
            token_id: clock::new_uuid().to_string(),
            kid: kid.to_owned(),
            issue_time: Some(request::timestamp(now)),
            expire_time: Some(request::timestamp(now + Duration::minutes(15))),
            ..Default::default()
        })
    }

    async fn append(log: &EventLog, events: impl Iterator<Item = Event>) {
        let events = events.map(|event| NewEvent {
            id: clock::new_uuid(),
            event_type: event.event_type(),
            payload: event.encode(),
        });
        let job: JobId = clock::new_id();
        let append = Append {
            command: None,
            streams: vec![StreamAppend {
                stream_id: StreamId::new("job", job),
                expected: Expected::Any,
                events: events.collect(),
            }],
            shared: vec![],
            guards: vec![],
            metadata: Metadata {
                actor: format!("job:{job}"),
                traceparent: None,
            },
        };
        log.append(append).await.expect("appended");
    }

    #[tokio::test]
    async fn a_key_has_the_tokens_that_were_obtained_with_its_own_but_waits_for_none_of_them() {
        let database = Database::create().await;
        let log = log(&database).await;
        let now = clock::now();
        let obtained = [
            issued_by("signed"),
            Event::CredentialIssued(pb::CredentialIssued {
                job_token_kid: "signed".to_owned(),
                kid: "other".to_owned(),
                subject: "its source:apply".to_owned(),
                expire_time: Some(request::timestamp(now + Duration::minutes(45))),
                ..Default::default()
            }),
            Event::ServiceAccountTokenIssued(pb::ServiceAccountTokenIssued {
                subject_token_kid: "signed".to_owned(),
                kid: "other".to_owned(),
                service_account_id: "account".to_owned(),
                expire_time: Some(request::timestamp(now + Duration::minutes(45))),
                ..Default::default()
            }),
            Event::ServiceAccountTokenIssued(pb::ServiceAccountTokenIssued {
                job_token_kid: "signed".to_owned(),
                subject_token_kid: "other".to_owned(),
                kid: "other".to_owned(),
                service_account_id: "of a job's credential".to_owned(),
                expire_time: Some(request::timestamp(now + Duration::minutes(45))),
                ..Default::default()
            }),
            issued_by("other"),
        ];
        append(&log, obtained.into_iter()).await;
        let listed = list(&log, "signed", Duration::ZERO, 0, 10).await;
        let (tokens, _) = listed.expect("read");
        let tokens = tokens.iter();
        let tokens: Vec<_> = tokens.map(|token| [&*token.kid, &*token.subject]).collect();
        assert_eq!(
            tokens,
            [
                ["signed", ""],
                ["other", "its source:apply"],
                ["other", "account"],
                ["other", "of a job's credential"]
            ]
        );
        let mut expiries = Expiries::default();
        let read = expiries.read_on(&log, Duration::ZERO, now).await;
        assert!(read.expect("read"));
        let last = expiries.of("signed").expect("one is alive");
        assert!(last < now + Duration::minutes(20), "{last}");
        assert_eq!(expiries.of("unknown"), None);
        // Where the log is another one, with fewer events, nothing of it is taken as read.
        let other = Database::create().await;
        let other = super::tests::log(&other).await;
        append(&other, [issued_by("another")].into_iter()).await;
        let read = expiries.read_on(&other, Duration::ZERO, now).await;
        assert!(read.expect("read"));
        assert!(expiries.of("another").is_some());
    }

    /// Has an event recorded so many hours from now.
    async fn recorded(database: &Database, position: i64, hours: i64) {
        let unguarded = "ALTER TABLE events DISABLE TRIGGER events_are_never_changed";
        let unguarded = sqlx::raw_sql(unguarded).execute(database.pool()).await;
        unguarded.expect("they can be changed");
        let at = clock::now() + Duration::hours(hours);
        let set = sqlx::query("UPDATE events SET recorded_at = $1 WHERE position = $2");
        let set = set.bind(at).bind(position).execute(database.pool()).await;
        set.expect("recorded then");
    }

    #[tokio::test]
    async fn what_was_issued_long_ago_is_not_read() {
        let database = Database::create().await;
        let log = log(&database).await;
        let mut expiries = Expiries::default();
        for kid in ["first", "later", "last"] {
            append(&log, [issued_by(kid)].into_iter()).await;
            let position = log.head().await.expect("a head").position.cast_signed();
            if kid == "last" {
                let read = expiries.read_on(&log, Duration::ZERO, clock::now()).await;
                assert!(read.expect("read"));
                assert!(expiries.of(kid).is_some());
            } else {
                recorded(&database, position, -2).await;
            }
            if kid == "first" {
                let read = expiries.read_on(&log, Duration::ZERO, clock::now()).await;
                assert!(read.expect("read"));
            }
            assert_eq!(expiries.of("first"), None);
            assert_eq!(expiries.of("later"), None);
        }
    }

    #[tokio::test]
    async fn whatever_times_events_have_no_token_is_overlooked() {
        let database = Database::create().await;
        let log = log(&database).await;
        let hours = [-9, -8, -7, 0, -6, 0, -5, -9, -8, -7, -6, -5, -4];
        append(&log, hours.iter().map(|_| issued_by("signed"))).await;
        for (position, hours) in (1..).zip(hours) {
            recorded(&database, position, hours).await;
        }
        let listed = list(&log, "signed", Duration::ZERO, 0, 100).await;
        let (tokens, next) = listed.expect("read");
        assert_eq!((tokens.len(), next), (hours.len() - 3, None));
        let mut expiries = Expiries::default();
        let read = expiries.read_on(&log, Duration::ZERO, clock::now()).await;
        assert!(read.expect("read"));
        assert!(expiries.of("signed").is_some());
    }

    #[tokio::test]
    async fn a_search_ends_however_much_others_have_signed() {
        let database = Database::create().await;
        let log = log(&database).await;
        append(&log, [issued_by("rare")].into_iter()).await;
        for _ in 0..PAGES {
            let page = usize::try_from(PAGE).expect("a few");
            append(
                &log,
                std::iter::repeat_with(|| issued_by("busy")).take(page),
            )
            .await;
        }
        append(&log, [issued_by("rare")].into_iter()).await;
        // When the last token of a key expires is found in several turns, and not where they end.
        let (mut expiries, now) = (Expiries::default(), clock::now());
        for done in [false, true, true] {
            let read = expiries.read_on(&log, Duration::ZERO, now).await;
            assert_eq!(read.expect("read"), done);
        }
        assert!(
            expiries
                .of("rare")
                .is_some_and(|last| last < now + Duration::minutes(16))
        );
        let search = async |after, limit| {
            let found = list(&log, "rare", Duration::ZERO, after, limit).await;
            let (tokens, next) = found.expect("read");
            (tokens.len(), next)
        };
        let (found, next) = search(0, 10).await;
        assert_eq!((found, next), (1, Some(PAGE * PAGES as u64)));
        assert_eq!(search(next.unwrap_or_default(), 10).await, (1, None));
        // What is full ends too, before the token that is one too many.
        let busy = list(&log, "busy", Duration::ZERO, 0, 10).await;
        let (tokens, next) = busy.expect("read");
        assert_eq!((tokens.len(), next), (10, Some(11)));
    }
}
