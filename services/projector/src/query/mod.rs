//! The rows behind the directory's answers, a module for each topic.
//!
//! Queries with filters that a request may leave out are planned anew for each request, as unnamed statements: a plan
//! that suits every request suits none.

pub(crate) mod activities;
pub(crate) mod credentials;
pub(crate) mod from_above;
pub(crate) mod jobs;
pub(crate) mod managed_identities;
pub(crate) mod members;
pub(crate) mod namespaces;
mod places;
pub(crate) mod search;
pub(crate) mod service_accounts;
pub(crate) mod teams;
pub(crate) mod visible;
