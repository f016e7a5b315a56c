//! The owner of a log, asked over gRPC: the truth, where the bus is only quick.

use std::time::Duration;

use futures::{Stream, StreamExt as _};
use proto::eventlog::v1 as wire;
use proto::eventlog::v1::event_log_service_client::EventLogServiceClient;
use time::OffsetDateTime;
use tonic::body::Body;
use tower::util::BoxCloneSyncService;
use uuid::Uuid;

use crate::event::{Metadata, RecordedEvent};
use crate::log::Head;

type Channel =
    BoxCloneSyncService<http::Request<Body>, http::Response<Body>, tonic::transport::Error>;

/// More than a page of the largest events.
const MAX_MESSAGE: usize = 64 << 20;
/// For an answer about the head.
const PATIENCE: Duration = Duration::from_secs(2);

/// The `EventLogService` of the service that owns a log.
#[derive(Clone)]
pub struct Owner {
    client: EventLogServiceClient<Channel>,
}

/// Why the owner's log can't be read.
#[derive(Debug, thiserror::Error)]
pub enum OwnerError {
    /// It did not answer, or refused.
    #[error("the owner of the log did not answer")]
    Refused(#[source] Box<tonic::Status>),
    /// It answered something that is not an event log's.
    #[error("the owner of the log answered with a malformed {0}")]
    Malformed(&'static str),
}

impl From<tonic::Status> for OwnerError {
    fn from(status: tonic::Status) -> Self {
        Self::Refused(Box::new(status))
    }
}

impl Owner {
    /// Reached by this channel, which presents the service's own token.
    pub fn new<S>(channel: S) -> Self
    where
        S: tower::Service<
                http::Request<Body>,
                Response = http::Response<Body>,
                Error = tonic::transport::Error,
            > + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send + 'static,
    {
        let client = EventLogServiceClient::new(BoxCloneSyncService::new(channel))
            .max_decoding_message_size(MAX_MESSAGE);
        Self { client }
    }

    /// Where the log ends, and the id of the event at a position, if there is one.
    pub async fn head(&self, position: u64) -> Result<(Head, Option<Uuid>), OwnerError> {
        let mut request = tonic::Request::new(wire::GetHeadRequest { position });
        request.set_timeout(PATIENCE);
        let answer = tokio::time::timeout(PATIENCE, self.client.clone().get_head(request))
            .await
            .map_err(|_| tonic::Status::deadline_exceeded("no answer about the head"))??
            .into_inner();
        let head = Head {
            epoch: epoch(&answer.epoch)?,
            position: answer.position,
        };
        let event_id = match answer.event_id.as_str() {
            "" => None,
            id => Some(id.parse().map_err(|_| OwnerError::Malformed("event id"))?),
        };
        Ok((head, event_id))
    }

    /// The events behind a position, in pages, up to the head as it is when the call begins.
    pub async fn read(
        &self,
        after: u64,
    ) -> Result<
        impl Stream<Item = Result<(Uuid, Vec<RecordedEvent>), OwnerError>> + use<>,
        OwnerError,
    > {
        let request = wire::ReadEventsRequest {
            after_position: after,
            limit: 0,
        };
        let pages = tokio::time::timeout(PATIENCE, self.client.clone().read_events(request))
            .await
            .map_err(|_| tonic::Status::deadline_exceeded("no answer about events"))??
            .into_inner();
        Ok(pages.map(|page| {
            let page = page?;
            let events = page
                .events
                .into_iter()
                .map(RecordedEvent::try_from)
                .collect::<Result<_, _>>()?;
            Ok((epoch(&page.epoch)?, events))
        }))
    }
}

fn epoch(text: &str) -> Result<Uuid, OwnerError> {
    text.parse().map_err(|_| OwnerError::Malformed("epoch"))
}

impl TryFrom<wire::RecordedEvent> for RecordedEvent {
    type Error = OwnerError;

    fn try_from(event: wire::RecordedEvent) -> Result<Self, OwnerError> {
        let metadata = event.metadata.unwrap_or_default();
        let time = event.record_time.unwrap_or_default();
        let nanoseconds = i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanos);
        Ok(Self {
            position: event.position,
            stream_id: event.stream_id,
            version: event.version,
            id: event
                .event_id
                .parse()
                .map_err(|_| OwnerError::Malformed("event id"))?,
            event_type: event.event_type,
            payload: event.payload.into(),
            metadata: Metadata {
                actor: metadata.actor,
                traceparent: Some(metadata.traceparent).filter(|text| !text.is_empty()),
            },
            recorded_at: OffsetDateTime::from_unix_timestamp_nanos(nanoseconds)
                .map_err(|_| OwnerError::Malformed("record time"))?,
        })
    }
}

impl From<RecordedEvent> for wire::RecordedEvent {
    fn from(event: RecordedEvent) -> Self {
        Self {
            position: event.position,
            stream_id: event.stream_id,
            version: event.version,
            event_id: event.id.to_string(),
            event_type: event.event_type,
            payload: event.payload.into(),
            metadata: Some(wire::EventMetadata {
                actor: event.metadata.actor,
                traceparent: event.metadata.traceparent.unwrap_or_default(),
            }),
            record_time: Some(prost_types::Timestamp {
                seconds: event.recorded_at.unix_timestamp(),
                nanos: i32::try_from(event.recorded_at.nanosecond()).unwrap_or_default(),
            }),
        }
    }
}
