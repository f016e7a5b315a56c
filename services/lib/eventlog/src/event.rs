//! Events, before and after they are recorded.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

/// A stream of one aggregate: `<aggregate>/<id>`, e.g. `group/grp_…`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(String);

impl StreamId {
    /// The stream of the aggregate with this id. Neither may hold what NATS gives a meaning in a subject.
    ///
    /// # Panics
    /// If one does: both come from our own code, never from a request.
    pub fn new(aggregate: &str, id: impl fmt::Display) -> Self {
        let id = id.to_string();
        let plain = |text: &str| {
            !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        };
        assert!(
            plain(aggregate) && plain(&id),
            "a stream id must be usable as a subject: {aggregate}/{id}"
        );
        Self(format!("{aggregate}/{id}"))
    }

    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An event to append.
#[derive(Clone, Debug, PartialEq)]
pub struct NewEvent {
    /// Unique for ever.
    pub id: Uuid,
    /// The full name of the payload's message.
    pub event_type: &'static str,
    /// The protobuf event.
    pub payload: Vec<u8>,
}

/// Who caused an event, and in what.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metadata {
    /// The principal: `user:dev/alice`.
    pub actor: String,
    /// The W3C trace context of the request, if it had one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
}

/// An event as its log holds it.
#[derive(Clone, Debug, PartialEq)]
pub struct RecordedEvent {
    /// 1, 2, 3, … in commit order.
    pub position: u64,
    /// `<aggregate>/<id>`.
    pub stream_id: String,
    /// Of the stream, from 1.
    pub version: u64,
    /// Unique for ever.
    pub id: Uuid,
    /// The full name of the payload's message.
    pub event_type: String,
    /// The protobuf event exactly as written.
    pub payload: Bytes,
    /// Who caused it.
    pub metadata: Metadata,
    /// When it was recorded, by the database's clock.
    pub recorded_at: OffsetDateTime,
}
