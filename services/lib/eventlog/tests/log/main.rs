//! The log, the relay and the follower against real PostgreSQL and real NATS, as several processes would use them.

mod append;
mod follower;
mod lost_answer;
mod oracle;
mod relay;
mod scene;
