//! The whole set, as its callers, relying parties and subscribers see it.

mod access;
mod assignments;
mod chance;
mod consistency;
mod credentials;
mod directory;
mod edge;
mod errors;
mod events;
mod faults;
mod golden;
mod idempotency;
mod layout;
mod limits;
mod load;
mod main_job;
mod moves;
mod reactions;
mod tree;
mod trial;
mod types;
mod updates;
