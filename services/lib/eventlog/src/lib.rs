//! The event log of a service: append with guards, relay to JetStream, follow another service's log.
//!
//! The only code that touches events or NATS. It knows nothing of groups, identities or tokens.

mod append;
mod appender;
mod batch;
pub mod bus;
mod consistency;
mod event;
mod facts;
mod feed;
mod follower;
mod log;
#[cfg(test)]
#[path = "../tests/log/model.rs"]
mod model;
mod owner;
mod pace;
mod reactions;
mod recent;
mod relay;
mod rpc;

pub use append::{Append, AppendError, Appended, Command, Expected, Guard, StreamAppend};
pub use consistency::{ConsistencyToken, InvalidToken};
pub use event::{Metadata, NewEvent, RecordedEvent, StreamId};
pub use facts::{
    Change, Facts, apart as facts_apart, replicate as replicate_facts, write as write_facts,
};
pub use follower::{Fold, FoldError, Follower, Halt, Progress, checkpoint};
pub use log::{Carried, EventLog, Head, LogError, MIGRATIONS, migrate};
pub use owner::{Owner, OwnerError};
pub use reactions::{Noted, Noting, React, ReactError, Reactions};
pub use relay::{Relay, RelayState};
pub use rpc::EventLogRpc;
