//! What may happen to jobs, and which credentials they get: pure deciders.

pub mod credential;
pub mod job;
