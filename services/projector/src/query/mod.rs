//! The rows behind the directory's answers, a module for each topic.

pub(crate) mod managed_identities;
pub(crate) mod namespaces;
