//! The whole set in one process, as a [`World`] that a test may stop and break, and those on its outside: callers with
//! their OIDC issuer, and a relying party.
//!
//! `deploy/dev test` starts the servers that a world stands on. Whatever goes wrong here panics: a test can't go on.

#![expect(
    clippy::missing_panics_doc,
    reason = "all of it panics when a test can't go on"
)]

pub mod attestation;
pub mod clouds;
pub mod foreign;
pub mod issuer;
pub mod key;
pub mod refusal;
pub mod relying_party;
pub mod rpc;
pub mod user;
pub mod world;

pub use user::User;
pub use world::{Service, World};
