//! What may happen to jobs and signing keys, which credentials jobs get, and for which tokens service accounts get one:
//! pure deciders.

pub mod credential;
pub mod job;
pub mod service_account_token;
pub mod signing_key;
