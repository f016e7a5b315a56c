//! Read your writes: waiting until this service has followed the logs as far as a token says, and, after a mutation,
//! until the others have.

use std::time::Duration;

use eventlog::{ConsistencyToken, EventLog, Head, Progress};
use futures::future::join_all;
use http::HeaderMap;
use proto::eventlog::v1 as wire;
use proto::eventlog::v1::consistency_service_client::ConsistencyServiceClient;
use proto::eventlog::v1::consistency_service_server::ConsistencyService;
use tokio::sync::watch;
use tokio::time::timeout;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};

use crate::channel::Channel;
use crate::status::{self, PreconditionViolation};
use crate::violations::Violations;

/// How long a read waits whose caller gave no deadline.
pub const DEFAULT_WAIT: Duration = Duration::from_secs(5);
/// How long a mutation waits for its own events to become visible everywhere, whose caller does not say.
const VISIBILITY_WAIT: Duration = Duration::from_secs(1);
/// The longest that a caller may ask for.
const MAX_VISIBILITY_WAIT: Duration = Duration::from_secs(30);
/// Request metadata: `none` answers a mutation as soon as it is durable, `10s` waits that long at most.
const WAIT_HEADER: &str = "tharsis-wait";
/// Response metadata of a mutation: whether its events are in the read models.
const VISIBLE_HEADER: &str = "tharsis-visible";

/// How far this service's own view of the logs has come. Cheap to clone.
#[derive(Clone, Default)]
pub struct Positions {
    own: Option<EventLog>,
    followed: Vec<(&'static str, watch::Receiver<Progress>)>,
}

const OTHER_EPOCH: &str = "CONSISTENCY_TOKEN_OTHER_EPOCH";

/// Why a token's state was not reached.
#[derive(Debug, thiserror::Error)]
pub enum NotReached {
    /// Not in the time that there was.
    #[error(
        "{log} has been followed up to {reached}, the token asks for {wanted}; try again later"
    )]
    Late {
        /// The log.
        log: String,
        /// How far it was followed.
        reached: u64,
        /// How far the token asks for.
        wanted: u64,
    },
    /// The token is of a log that was replaced since.
    #[error(
        "the consistency_token is of another {log} log: its database was replaced; drop the token"
    )]
    OtherEpoch {
        /// The log.
        log: String,
    },
    /// The follower stands still. Why is in the service's own log: it may be what the database said.
    #[error("following {log} has halted; an operator has to look after it")]
    Halted {
        /// The log.
        log: String,
    },
}

impl From<NotReached> for Status {
    fn from(error: NotReached) -> Self {
        let message = error.to_string();
        match error {
            NotReached::Late { .. } => {
                status::deadline_exceeded("CONSISTENCY_TOKEN_NOT_REACHED", &message)
            }
            NotReached::OtherEpoch { log } => {
                let obstacle = PreconditionViolation::new(OTHER_EPOCH, log, message.as_str());
                status::failed_precondition(OTHER_EPOCH, &message, vec![obstacle])
            }
            NotReached::Halted { .. } => status::unavailable("FOLLOWER_HALTED", &message),
        }
    }
}

impl Positions {
    /// What a service decides and answers on: its own log, if it has one, and those that it follows.
    #[must_use]
    pub fn new(
        own: Option<EventLog>,
        followed: Vec<(&'static str, watch::Receiver<Progress>)>,
    ) -> Self {
        Self { own, followed }
    }

    /// The service's own log, if it has one.
    #[must_use]
    pub fn own(&self) -> Option<&EventLog> {
        self.own.as_ref()
    }

    /// Waits until this service has everything up to the token. Logs that it does not follow play no role here, nor do
    /// those that it does not know: a newer service may have one.
    pub async fn reach(
        &self,
        token: &ConsistencyToken,
        patience: Duration,
    ) -> Result<(), NotReached> {
        let deadline = tokio::time::Instant::now() + patience;
        for (log, wanted) in token.logs() {
            if let Some(own) = self.own.as_ref().filter(|own| own.name() == log) {
                reach_own(own, log, wanted).await?;
            } else if let Some((_, progress)) = self.followed.iter().find(|(name, _)| *name == log)
            {
                let patience = deadline.saturating_duration_since(tokio::time::Instant::now());
                reach_one(log, wanted, progress.clone(), patience).await?;
            }
        }
        Ok(())
    }
}

/// What any of our processes appended, we see. A position that the log does not have is of no token of ours.
async fn reach_own(own: &EventLog, log: &str, wanted: Head) -> Result<(), NotReached> {
    let other_epoch = || NotReached::OtherEpoch {
        log: log.to_owned(),
    };
    if own.epoch() != wanted.epoch {
        return Err(other_epoch());
    }
    if *own.watch().borrow() >= wanted.position {
        return Ok(());
    }
    let head = own.head().await.map_err(|_| NotReached::Late {
        log: log.to_owned(),
        reached: *own.watch().borrow(),
        wanted: wanted.position,
    })?;
    if head.epoch != wanted.epoch {
        return Err(other_epoch());
    }
    if head.position < wanted.position {
        return Err(NotReached::Late {
            log: log.to_owned(),
            reached: head.position,
            wanted: wanted.position,
        });
    }
    Ok(())
}

async fn reach_one(
    log: &str,
    wanted: Head,
    mut progress: watch::Receiver<Progress>,
    patience: Duration,
) -> Result<(), NotReached> {
    let reached = progress.wait_for(|progress| {
        let there = progress.epoch == Some(wanted.epoch) && progress.position >= wanted.position;
        there
            || progress.halted.is_some()
            || progress.epoch.is_some_and(|epoch| epoch != wanted.epoch)
    });
    let reached = timeout(patience, reached)
        .await
        .ok()
        .and_then(Result::ok)
        .map(|progress| progress.clone());
    let now = reached.unwrap_or_else(|| progress.borrow().clone());
    match now {
        Progress {
            epoch: Some(epoch), ..
        } if epoch != wanted.epoch => Err(NotReached::OtherEpoch {
            log: log.to_owned(),
        }),
        Progress { position, .. } if position >= wanted.position => Ok(()),
        Progress {
            halted: Some(_), ..
        } => Err(NotReached::Halted {
            log: log.to_owned(),
        }),
        Progress { position, .. } => Err(NotReached::Late {
            log: log.to_owned(),
            reached: position,
            wanted: wanted.position,
        }),
    }
}

/// How long a mutation is to wait until it is visible, by its [`WAIT_HEADER`]; not at all, if that is `none`.
pub fn visibility_wait(headers: &HeaderMap) -> Result<Option<Duration>, Status> {
    let Some(value) = headers.get(WAIT_HEADER) else {
        return Ok(Some(VISIBILITY_WAIT));
    };
    if value == "none" {
        return Ok(None);
    }
    let seconds = value
        .to_str()
        .ok()
        .and_then(|text| text.strip_suffix('s'))
        // A number would take a sign.
        .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))
        .and_then(|digits| digits.parse().ok());
    let wait = seconds.map(Duration::from_secs);
    let wait = wait.filter(|wait| *wait <= MAX_VISIBILITY_WAIT);
    let wrong = || {
        let most = MAX_VISIBILITY_WAIT.as_secs();
        let wrong = format!("must be none, or seconds from 0s to {most}s, in the metadata");
        Violations::of(WAIT_HEADER, wrong).into_status()
    };
    wait.map(Some).ok_or_else(wrong)
}

/// `ConsistencyService`: the layer in front has waited already, with the token in the request.
pub struct ConsistencyRpc;

#[tonic::async_trait]
impl ConsistencyService for ConsistencyRpc {
    async fn r#await(
        &self,
        _request: Request<wire::AwaitRequest>,
    ) -> Result<Response<wire::AwaitResponse>, Status> {
        Ok(Response::new(wire::AwaitResponse {}))
    }
}

/// The services that have to see a mutation before it is answered.
#[derive(Clone, Default)]
pub struct Visibility {
    followers: Vec<ConsistencyServiceClient<Channel>>,
}

impl Visibility {
    /// Those reached by these channels.
    #[must_use]
    pub fn new(followers: impl IntoIterator<Item = Channel>) -> Self {
        Self {
            followers: followers
                .into_iter()
                .map(ConsistencyServiceClient::new)
                .collect(),
        }
    }

    /// Waits until the followers have what was written, for as long as the caller asks ([`visibility_wait`]). It never
    /// fails: what was written is durable whether seen or not.
    pub async fn wait(&self, token: &str, metadata: &MetadataMap) -> Option<bool> {
        let patience = visibility_wait(metadata.as_ref()).unwrap_or_default()?;
        let each = self.followers.iter().map(|follower| {
            let mut follower = follower.clone();
            let mut request = Request::new(wire::AwaitRequest {
                consistency_token: token.to_owned(),
            });
            request.set_timeout(patience);
            async move {
                matches!(
                    timeout(patience, follower.r#await(request)).await,
                    Ok(Ok(_))
                )
            }
        });
        Some(join_all(each).await.into_iter().all(|visible| visible))
    }
}

/// An answer that says whether what it tells of is visible, if that was waited for.
pub fn response<T>(message: T, visible: Option<bool>) -> Response<T> {
    let mut response = Response::new(message);
    if let Some(visible) = visible {
        let value = if visible { "true" } else { "false" };
        response.metadata_mut().insert(
            VISIBLE_HEADER,
            tonic::metadata::MetadataValue::from_static(value),
        );
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_halted_a_follower_is_not_for_callers() {
        let said = "duplicate key value violates unique constraint \"namespaces_by_parent\"";
        let (_follower, progress) = watch::channel(Progress {
            halted: Some(eventlog::Halt::Inapplicable(said.into())),
            ..Progress::default()
        });
        let head = Head {
            epoch: uuid::Uuid::nil(),
            position: 1,
        };
        let positions = Positions::new(None, vec![("namespace", progress)]);
        let token = ConsistencyToken::of("namespace", head);
        let reached = positions.reach(&token, DEFAULT_WAIT).await;
        let status = Status::from(reached.expect_err("it stands still"));
        assert_eq!(
            (status.code(), status.message()),
            (
                tonic::Code::Unavailable,
                "following namespace has halted; an operator has to look after it"
            )
        );
    }

    #[test]
    fn a_caller_says_how_long_to_wait() {
        let wait = |value| {
            let headers = HeaderMap::from_iter([(
                http::HeaderName::from_static(WAIT_HEADER),
                http::HeaderValue::from_static(value),
            )]);
            visibility_wait(&headers).ok()
        };
        assert_eq!(
            visibility_wait(&HeaderMap::new()).ok(),
            Some(Some(VISIBILITY_WAIT))
        );
        assert_eq!(wait("none"), Some(None));
        assert_eq!(wait("0s"), Some(Some(Duration::ZERO)));
        assert_eq!(wait("30s"), Some(Some(MAX_VISIBILITY_WAIT)));
        for odd in [
            "",
            "s",
            "5",
            "-1s",
            "+1s",
            "1.5s",
            "31s",
            "99999999999999999999s",
        ] {
            assert_eq!(wait(odd), None, "{odd}");
        }
    }
}
