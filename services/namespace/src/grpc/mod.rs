//! The rpcs: parse, locate, load, decide, append, convert.

mod access;
mod groups;
mod holdings;
mod initial_assignments;
mod limits;
mod memberships;
mod moves;
mod preview;
mod teams;
mod workspaces;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use edge::command::Commands;
use edge::hierarchy::{Hierarchy, Place, limit_key, member_key, name_key, sets};
use edge::limits::{unchanged, value};
use edge::status;
use edge::status::PreconditionViolation;
use eventlog::{Facts, Guard, Progress, StreamId};
use model::{Limit, MembershipId, Name, Principal};
use proto::namespace::v1::Event;
use tokio::sync::watch;
use tonic::Status;

use crate::domain::membership::Membership;
use crate::domain::{Destination, NoRoom};

/// Serves groups, workspaces, memberships, teams and limits.
#[derive(Clone)]
pub struct NamespaceRpc {
    commands: Commands,
    hierarchy: Hierarchy,
    administrators: Arc<BTreeSet<Principal>>,
    /// How far the log of `identity` was followed.
    identity: Option<watch::Receiver<Progress>>,
}

impl NamespaceRpc {
    /// On this log and the facts beside it.
    #[must_use]
    pub fn new(
        commands: Commands,
        hierarchy: Hierarchy,
        administrators: BTreeSet<Principal>,
    ) -> Self {
        Self {
            commands,
            hierarchy,
            administrators: Arc::new(administrators),
            identity: None,
        }
    }

    /// The same, which hears when more of the log of `identity` was followed.
    #[must_use]
    pub fn following(self, identity: watch::Receiver<Progress>) -> Self {
        Self {
            identity: Some(identity),
            ..self
        }
    }

    /// Carries out its commands.
    pub(crate) fn commands(&self) -> &Commands {
        &self.commands
    }

    /// Reads its facts.
    pub(crate) fn hierarchy(&self) -> &Hierarchy {
        &self.hierarchy
    }

    /// The memberships that a principal of ours holds itself.
    pub(crate) async fn memberships_of(
        &self,
        holder: &Principal,
    ) -> Result<Vec<MembershipId>, Status> {
        let prefix = held_prefix(holder);
        let held = self.commands.log().fact_keys(&prefix).await;
        let held = held.map_err(|error| status::log(&error))?;
        let namespaces = held.iter().filter_map(|key| key.strip_prefix(&prefix));
        let keys: Vec<_> = namespaces.map(|id| member_key(id, holder)).collect();
        let facts = self.facts(&keys).await?;
        let ids = keys.iter().filter_map(|key| membership_of(facts.get(key)?));
        Ok(ids.collect())
    }

    async fn facts(&self, keys: &[String]) -> Result<Facts, Status> {
        self.commands
            .log()
            .facts(keys)
            .await
            .map_err(|error| edge::status::log(&error))
    }

    /// The room for something of this name in a group, or at the top; `height` levels lie below it.
    async fn room(
        &self,
        kind: Sibling,
        above: Option<&Place>,
        name: &Name,
        height: usize,
    ) -> Result<Room, Status> {
        let above_id = above.map(|place| place.id().to_string());
        let above_id = above_id.unwrap_or_default();
        let (name, siblings) = (
            name_key(&above_id, name.as_str()),
            kind.count_key(&above_id),
        );
        let limits = [Limit::NamespaceDepth, kind.limit()];
        let keys = limits.map(limit_key);
        let keys = [vec![name.clone(), siblings.clone()], keys.to_vec()].concat();
        let facts = self.facts(&keys).await?;
        let max_depth = value(&facts, Limit::NamespaceDepth);
        let (present, max_siblings) = match above {
            Some(_) => (count(&facts, &siblings), value(&facts, kind.limit())),
            None => (0, i64::MAX),
        };
        let name_taken = facts.get(&name).is_some();
        let mut guards = vec![Guard::Expect {
            key: name,
            value: None,
        }];
        guards.extend(limits.map(|limit| unchanged(&facts, limit)));
        if let Some(above) = above {
            guards.extend(above.guards());
            guards.push(add(siblings, 1, 0, max_siblings));
        }
        Ok(Room {
            destination: Destination {
                depth: above.map_or(0, |place| place.nodes.len()) + 1 + height,
                max_depth: usize::try_from(max_depth).unwrap_or_default(),
                name_taken,
                siblings: present,
                max_siblings,
            },
            guards,
        })
    }
}

/// What counts among its own: subgroups, or workspaces.
#[derive(Clone, Copy)]
enum Sibling {
    Group,
    Workspace,
}

impl Sibling {
    fn count_key(self, above: impl fmt::Display) -> String {
        match self {
            Self::Group => subgroups_key(above),
            Self::Workspace => workspaces_key(above),
        }
    }

    fn limit(self) -> Limit {
        match self {
            Self::Group => Limit::GroupSubgroups,
            Self::Workspace => Limit::GroupWorkspaces,
        }
    }

    /// The refusal for want of room.
    fn refused(self, reason: NoRoom) -> Status {
        let message = reason.to_string();
        match (reason, self) {
            (NoRoom::NameTaken, _) => status::already_exists("NAME_TAKEN", &message),
            (NoRoom::TooDeep { .. }, _) => obstacle("DEPTH_LIMIT", "path", &message),
            (NoRoom::TooManySiblings(_), Self::Group) => {
                obstacle("SUBGROUP_LIMIT", "group", &message)
            }
            (NoRoom::TooManySiblings(_), Self::Workspace) => {
                obstacle("WORKSPACE_LIMIT", "workspace", &message)
            }
        }
    }
}

/// Where something is to lie, and what must still hold of it when the append is made; its sibling is counted there.
struct Room {
    destination: Destination,
    guards: Vec<Guard>,
}

/// The one thing that stands in the way.
fn obstacle(reason: &str, subject: &str, message: &str) -> Status {
    status::failed_precondition(
        reason,
        message,
        vec![PreconditionViolation::new(reason, subject, message)],
    )
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

/// The key of the count of memberships that a team holds.
fn holdings_key(team: impl fmt::Display) -> String {
    format!("holdings/{team}")
}

/// The key that says that a principal holds a membership in a group or workspace.
fn held_key(holder: &Principal, namespace: impl fmt::Display) -> String {
    format!("held/{holder}/{namespace}")
}

/// The keys of where a principal holds memberships start so.
fn held_prefix(holder: &Principal) -> String {
    format!("held/{holder}/")
}

/// Notes what a team or a service account holds, for its end; of users, who have none here, nothing.
fn held(membership: &Membership, holds: bool) -> Vec<Guard> {
    let holder = &membership.principal;
    if holder.resource().is_none() {
        return vec![];
    }
    let mut guards = vec![Guard::Set {
        key: held_key(holder, membership.namespace),
        value: holds.then(String::new),
    }];
    if let Principal::Team(team) = holder {
        let by = if holds { 1 } else { -1 };
        guards.push(add(holdings_key(team), by, 0, i64::MAX));
    }
    guards
}

/// The membership that the fact of a member names.
pub(crate) fn membership_of(member: &str) -> Option<MembershipId> {
    member.split_once('/')?.1.parse().ok()
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
