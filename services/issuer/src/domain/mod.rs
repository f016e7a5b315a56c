//! What may happen to jobs and signing keys, and which credentials jobs get: pure deciders.

pub mod credential;
pub mod job;
pub mod signing_key;
