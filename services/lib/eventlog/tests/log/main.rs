//! The log, the relay and the follower against real PostgreSQL and real NATS, as several processes would use them.

mod append;
mod follower;
mod lost_answer;
mod model;
mod oracle;
mod property;
mod reactions;
mod relay;
mod scene;

// The model is also part of the crate's unit tests, and finds these at the root of either.
use eventlog::{
    Append, AppendError, Appended, Command, Expected, Guard, Metadata, NewEvent, StreamAppend,
    StreamId,
};
