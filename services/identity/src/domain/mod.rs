//! What may happen to managed identities and their assignments: pure deciders. What they lean on beyond their own
//! stream comes in with the command; the append checks that it still holds.

pub mod access_rules;
pub mod alias;
pub mod assignment;
pub mod aws;
pub mod azure;
pub mod google;
pub mod kubernetes;
pub mod managed_identity;
pub mod mask;
pub mod service_account;
pub mod setup;
