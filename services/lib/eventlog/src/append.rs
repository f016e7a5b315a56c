//! What a command asks the log for, and what it is told.

use std::sync::Arc;

use time::OffsetDateTime;
use uuid::Uuid;

use crate::event::{Metadata, NewEvent, StreamId};

/// One command's events, all appended or none. A command without events had nothing to change; it is remembered, so that
/// its retry changes nothing either, whatever came between.
#[derive(Clone, Debug, Default)]
pub struct Append {
    /// Makes a retry idempotent.
    pub command: Option<Command>,
    /// The events, by stream, in the order in which they get their positions.
    pub streams: Vec<StreamAppend>,
    /// Guards that other appends have too, checked before its own. The same ones are neither copied nor, while no fact
    /// changes, checked again.
    pub shared: Vec<Arc<[Guard]>>,
    /// What must hold of the facts, and what changes in them, in this order.
    pub guards: Vec<Guard>,
    /// Goes with each event.
    pub metadata: Metadata,
}

/// Events of one stream.
#[derive(Clone, Debug)]
pub struct StreamAppend {
    /// The stream.
    pub stream_id: StreamId,
    /// Where the stream must stand.
    pub expected: Expected,
    /// At least one.
    pub events: Vec<NewEvent>,
}

/// Where a stream must stand for an append to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Anywhere: the events depend on nothing in the stream.
    Any,
    /// At this version; 0 for a stream that does not exist.
    Version(u64),
}

/// A request that is carried out once, however often it is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// Chosen by the caller, or derived from what is reacted to.
    pub id: Uuid,
    /// A digest of the request's content.
    pub fingerprint: Vec<u8>,
    /// What to answer, now and on each retry. Never holds a secret.
    pub reply: Vec<u8>,
}

/// A condition on the facts, checked and carried out in the append's own transaction behind the head row: no other
/// append comes between.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Guard {
    /// The key has this value, or none.
    Expect {
        /// The fact.
        key: String,
        /// `None`: there is no such fact.
        value: Option<String>,
    },
    /// From now on the key has this value, or none.
    Set {
        /// The fact.
        key: String,
        /// `None`: there is no such fact.
        value: Option<String>,
    },
    /// Adds to a count, which must then lie within the bounds. Unlike `Expect` and `Set` together, commands that
    /// count at the same time don't refuse each other.
    Count {
        /// The fact; a missing one counts 0.
        key: String,
        /// What to add; 0 only checks.
        by: i64,
        /// The least it may be afterwards.
        min: i64,
        /// The most it may be afterwards.
        max: i64,
    },
}

impl Append {
    /// In the order in which they are checked.
    pub(crate) fn all_guards(&self) -> impl Iterator<Item = &Guard> {
        let shared = self.shared.iter().flat_map(|guards| guards.iter());
        shared.chain(&self.guards)
    }
}

impl Appended {
    /// Whether the command had nothing to change.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.last < self.first
    }
}

impl Guard {
    /// The fact that it is about.
    #[must_use]
    pub fn key(&self) -> &str {
        match self {
            Self::Expect { key, .. } | Self::Set { key, .. } | Self::Count { key, .. } => key,
        }
    }
}

/// Where the events stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Appended {
    /// The log's epoch.
    pub epoch: Uuid,
    /// Of the command's first event.
    pub first: u64,
    /// Of the command's last event; of the one before its place, if it has none.
    pub last: u64,
    /// When, by the database's clock.
    pub recorded_at: OffsetDateTime,
    /// Set if the command had been carried out before: the reply of then. Nothing was appended now.
    pub replayed: Option<Vec<u8>>,
}

/// Why nothing was appended.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AppendError {
    /// Another command came first. Load and decide again.
    #[error("stream {stream_id} stands at version {actual}")]
    VersionConflict {
        /// The stream.
        stream_id: StreamId,
        /// Where it stands.
        actual: u64,
    },
    /// A fact is not as the command expects. Load and decide again.
    #[error("fact {key} is {found:?}")]
    GuardRefused {
        /// The fact.
        key: String,
        /// Its value.
        found: Option<String>,
    },
    /// The command id was used for a request with another content.
    #[error("the command id was used for another request")]
    CommandReused,
    /// There are no events and no command to remember, or a stream without events.
    #[error("nothing to append")]
    Empty,
    /// The log is shutting down. Nothing was appended.
    #[error("the log is closed")]
    Closed,
    /// The database failed, and nothing was appended.
    #[error("the database failed")]
    Database(#[source] Arc<sqlx::Error>),
    /// The database failed at the commit, and could not be asked since. Repeat with the same command id.
    #[error("whether the events were appended is not known")]
    OutcomeUnknown(#[source] Arc<sqlx::Error>),
}
