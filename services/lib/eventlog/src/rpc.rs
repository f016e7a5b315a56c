//! `EventLogService`: the log for followers that missed something on the bus.

use std::pin::Pin;

use futures::{Stream, StreamExt as _};
use proto::eventlog::v1 as wire;
use proto::eventlog::v1::event_log_service_server::EventLogService;
use tonic::{Request, Response, Status};

use crate::log::{EventLog, LogError};
use crate::relay::chain;

/// Events in a message.
const PAGE: u64 = 500;

/// Serves a log.
#[derive(Clone)]
pub struct EventLogRpc(EventLog);

impl EventLogRpc {
    /// Serves this log.
    #[must_use]
    pub fn new(log: EventLog) -> Self {
        Self(log)
    }
}

impl From<LogError> for Status {
    fn from(error: LogError) -> Self {
        tracing::error!(error = chain(&error), "the log can't be read");
        Self::unavailable("the event log can't be read at the moment; try again")
    }
}

#[tonic::async_trait]
impl EventLogService for EventLogRpc {
    type ReadEventsStream =
        Pin<Box<dyn Stream<Item = Result<wire::ReadEventsResponse, Status>> + Send>>;

    async fn read_events(
        &self,
        request: Request<wire::ReadEventsRequest>,
    ) -> Result<Response<Self::ReadEventsStream>, Status> {
        let request = request.into_inner();
        let log = self.0.clone();
        let head = log.head().await?;
        let end = match request.limit {
            0 => head.position,
            limit => head
                .position
                .min(request.after_position.saturating_add(limit)),
        };
        let pages = futures::stream::try_unfold(
            (log, request.after_position),
            move |(log, after)| async move {
                if after >= end {
                    return Ok(None);
                }
                let events = log.read(after, PAGE.min(end - after)).await?;
                let Some(last) = events.last().map(|event| event.position) else {
                    return Ok(None);
                };
                let page = wire::ReadEventsResponse {
                    epoch: head.epoch.to_string(),
                    events: events.into_iter().map(wire::RecordedEvent::from).collect(),
                };
                Ok(Some((page, (log, last))))
            },
        );
        Ok(Response::new(pages.boxed()))
    }

    async fn get_head(
        &self,
        request: Request<wire::GetHeadRequest>,
    ) -> Result<Response<wire::GetHeadResponse>, Status> {
        let event_id = self.0.event_id(request.get_ref().position).await?;
        let head = self.0.head().await?;
        Ok(Response::new(wire::GetHeadResponse {
            epoch: head.epoch.to_string(),
            position: head.position,
            event_id: event_id.map(|id| id.to_string()).unwrap_or_default(),
        }))
    }
}
