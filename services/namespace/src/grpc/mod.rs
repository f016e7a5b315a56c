//! The rpcs: parse, locate, load, decide, append, convert.

mod groups;
mod memberships;
mod workspaces;

use std::fmt;

use edge::command::Commands;
use edge::hierarchy::{Hierarchy, sets};
use eventlog::{Facts, Guard, StreamId};
use proto::namespace::v1::Event;
use tonic::Status;

/// Serves groups, workspaces and memberships.
#[derive(Clone)]
pub struct NamespaceRpc {
    commands: Commands,
    hierarchy: Hierarchy,
}

impl NamespaceRpc {
    /// On this log and the facts beside it.
    #[must_use]
    pub fn new(commands: Commands, hierarchy: Hierarchy) -> Self {
        Self {
            commands,
            hierarchy,
        }
    }

    async fn facts(&self, keys: &[String]) -> Result<Facts, Status> {
        self.commands
            .log()
            .facts(keys)
            .await
            .map_err(|error| edge::status::log(&error))
    }
}

/// The key of the count of a group's subgroups.
fn subgroups_key(group: impl fmt::Display) -> String {
    format!("subgroups/{group}")
}

/// The key of the count of a group's workspaces.
fn workspaces_key(group: impl fmt::Display) -> String {
    format!("workspaces/{group}")
}

/// The key of the count of owners that a group or workspace itself has.
fn owners_key(namespace: impl fmt::Display) -> String {
    format!("owners/{namespace}")
}

fn count(facts: &Facts, key: &str) -> i64 {
    facts
        .get(key)
        .and_then(|count| count.parse().ok())
        .unwrap_or(0)
}

/// Adds to a count, between bounds.
fn add(key: String, by: i64, min: i64, max: i64) -> Guard {
    Guard::Count { key, by, min, max }
}

/// What the events change in the facts.
fn changes(events: &[Event]) -> Result<Vec<Guard>, Status> {
    let mut guards = Vec::new();
    for event in events {
        let changes = edge::hierarchy::namespace_changes(event)
            .map_err(|error| edge::status::internal(&error))?;
        guards.extend(sets(changes));
    }
    Ok(guards)
}

fn encoded(events: Vec<Event>) -> impl Iterator<Item = (&'static str, Vec<u8>)> {
    events
        .into_iter()
        .map(|event| (event.event_type(), event.encode()))
}

fn stream(aggregate: &str, id: impl fmt::Display) -> StreamId {
    StreamId::new(aggregate, id)
}
