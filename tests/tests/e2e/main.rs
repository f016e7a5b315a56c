//! The whole set, as its callers, relying parties and subscribers see it.

mod access;
mod assignments;
mod audit;
mod clouds;
mod consistency;
mod credentials;
mod directory;
mod edge;
mod errors;
mod events;
mod faults;
mod golden;
mod idempotency;
mod job_identities;
mod jobs;
mod keys;
mod layout;
mod limits;
mod load;
mod main_job;
mod moves;
mod search;
mod tree;
mod trial;
mod types;
mod updates;
