//! An aggregate from its stream, and events into it.

use eventlog::{EventLog, Expected, NewEvent, RecordedEvent, StreamAppend, StreamId};
use time::OffsetDateTime;
use tonic::Status;

use crate::request::{etag, expected_version};
use crate::{clock, status};

/// An aggregate as its stream has it.
#[derive(Clone, Debug, Default)]
pub struct Loaded<S> {
    /// The folded events.
    pub state: S,
    /// Of the stream; 0 if there is none.
    pub version: u64,
    /// When its first event was recorded.
    pub create_time: Option<OffsetDateTime>,
    /// When its last event was recorded.
    pub update_time: Option<OffsetDateTime>,
}

impl<S> Loaded<S> {
    /// Changes with each change of the aggregate.
    #[must_use]
    pub fn etag(&self) -> String {
        etag(self.version)
    }

    /// Refuses if the caller saw another version; an empty etag asks for nothing.
    pub fn check_etag(&self, field: &str, given: &str) -> Result<(), Status> {
        match expected_version(field, given)? {
            Some(version) if version != self.version => Err(changed_since()),
            Some(_) | None => Ok(()),
        }
    }
}

/// The refusal of an etag that is not the present one.
#[must_use]
pub fn changed_since() -> Status {
    let message = "it was changed since the etag was read; get it again, then repeat";
    status::aborted("ETAG_MISMATCH", message)
}

/// Loads an aggregate: `read` decodes an event, `evolve` applies it.
pub async fn load<S: Default, E, X: std::error::Error + 'static>(
    log: &EventLog,
    stream: &StreamId,
    read: impl Fn(&RecordedEvent) -> Result<E, X>,
    evolve: impl Fn(&mut S, &E),
) -> Result<Loaded<S>, Status> {
    let events = log
        .stream(stream)
        .await
        .map_err(|error| status::log(&error))?;
    let mut loaded = Loaded {
        state: S::default(),
        version: 0,
        create_time: None,
        update_time: None,
    };
    for recorded in &events {
        let event = read(recorded).map_err(|error| status::internal(&error))?;
        evolve(&mut loaded.state, &event);
        loaded.version = recorded.version;
        loaded.create_time.get_or_insert(recorded.recorded_at);
        loaded.update_time = Some(recorded.recorded_at);
    }
    Ok(loaded)
}

/// Events to append behind a version of a stream, by type and payload. None, if there are no events.
pub fn append(
    stream_id: StreamId,
    expected: Expected,
    events: impl IntoIterator<Item = (&'static str, Vec<u8>)>,
) -> Option<StreamAppend> {
    let events: Vec<NewEvent> = events
        .into_iter()
        .map(|(event_type, payload)| NewEvent {
            id: clock::new_uuid(),
            event_type,
            payload,
        })
        .collect();
    (!events.is_empty()).then_some(StreamAppend {
        stream_id,
        expected,
        events,
    })
}
