//! Which workspaces lose which managed identities when something goes elsewhere, is hidden or is deleted: told before it
//! is done.

use std::collections::BTreeSet;

use eventlog::EventLog;
use model::{ManagedIdentityId, ResourceId, WorkspaceId};
use proto::identity::v1 as pb;
use tonic::Status;

use crate::authorization::locate;
use crate::caller::Caller;
use crate::hierarchy::{
    ASSIGNMENTS, Hierarchy, IDENTITY_NAMES, IDENTITY_TYPE, Place, identity_type_key,
};
use crate::masks::{self, Inherited};
use crate::{aliases, status};

/// Assignments that an answer names.
const NAMED: usize = 1_000;

/// Whether a fact is of those that this is read from.
#[must_use]
pub fn is_of_assignments(key: &str) -> bool {
    let of_identities = ["node/mi_", IDENTITY_NAMES, IDENTITY_TYPE, ASSIGNMENTS];
    let is_of_identities = of_identities.iter().any(|prefix| key.starts_with(prefix));
    is_of_identities || aliases::is_of_aliases(key) || masks::is_of_masks(key)
}

/// An identity that is assigned somewhere.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Its id.
    pub id: ManagedIdentityId,
    /// The word for its type.
    pub identity_type: String,
    /// Its group.
    pub group: ResourceId,
}

/// Assignments, and the identities of them that exist.
#[derive(Clone, Debug)]
pub struct Assignments {
    pairs: Vec<(WorkspaceId, ManagedIdentityId)>,
    /// Each once.
    pub identities: Vec<Identity>,
}

/// Assignments that end.
#[derive(Clone, Debug, Default)]
pub struct Ending {
    /// 1,000 at most.
    pub assignments: Vec<pb::EndingAssignment>,
    /// How many there are.
    pub count: i32,
}

impl Identity {
    /// Whether it was made in a group above a place, and so comes to it from outside.
    #[must_use]
    pub fn is_from_above(&self, place: &Place) -> bool {
        place.id() != self.group && place.is_within(self.group)
    }

    /// Whether it would not be inherited, or would be hidden, by what lies at a place and below it; none is the top.
    pub async fn is_out_of_reach(
        &self,
        log: &EventLog,
        place: Option<&Place>,
    ) -> Result<bool, Status> {
        let Some(place) = place.filter(|place| place.is_within(self.group)) else {
            return Ok(true);
        };
        let inherited = Inherited {
            id: self.id,
            identity_type: &self.identity_type,
            group: self.group,
        };
        let (mask, _) = masks::hiding(log, place, inherited).await?;
        Ok(mask.is_some())
    }
}

impl Assignments {
    /// Those of a group or workspace, and of what lies below it.
    pub async fn below(
        log: &EventLog,
        hierarchy: &Hierarchy,
        id: ResourceId,
    ) -> Result<Self, Status> {
        Self::of(log, hierarchy, pairs_below(hierarchy, id).await?).await
    }

    /// The same, and those elsewhere of aliases of what was made in the group or below it.
    pub async fn hanging_on(
        log: &EventLog,
        hierarchy: &Hierarchy,
        id: ResourceId,
    ) -> Result<Self, Status> {
        let mut pairs: BTreeSet<_> = pairs_below(hierarchy, id).await?.into_iter().collect();
        let made = hierarchy.facts_below(id, IDENTITY_NAMES).await;
        let made = made.map_err(|error| status::database(&error))?;
        for source in made
            .iter()
            .filter_map(|(_, identity)| identity.parse().ok())
        {
            for alias in aliases::of(log, source).await? {
                let place = hierarchy.way_up(alias.into()).await;
                let place = place.map_err(|error| status::database(&error))?;
                let Some(group) = place.and_then(|place| place.parent()) else {
                    continue;
                };
                let below = pairs_below(hierarchy, group).await?;
                pairs.extend(below.into_iter().filter(|(_, assigned)| *assigned == alias));
            }
        }
        Self::of(log, hierarchy, pairs.into_iter().collect()).await
    }

    /// These.
    pub async fn of(
        log: &EventLog,
        hierarchy: &Hierarchy,
        pairs: Vec<(WorkspaceId, ManagedIdentityId)>,
    ) -> Result<Self, Status> {
        let ids: BTreeSet<_> = pairs.iter().map(|(_, identity)| *identity).collect();
        let mut identities = Vec::new();
        for id in ids {
            let place = hierarchy.way_up(id.into()).await;
            let place = place.map_err(|error| status::database(&error))?;
            // What hangs on one that is gone ends anyway.
            let Some(group) = place.and_then(|place| place.parent()) else {
                continue;
            };
            let kind = identity_type_key(id);
            let facts = log.facts(std::slice::from_ref(&kind)).await;
            let facts = facts.map_err(|error| status::log(&error))?;
            identities.push(Identity {
                id,
                identity_type: facts.get(&kind).unwrap_or_default().to_owned(),
                group,
            });
        }
        Ok(Self { pairs, identities })
    }

    /// Each, with its workspace's id.
    #[must_use]
    pub fn pairs(&self) -> &[(WorkspaceId, ManagedIdentityId)] {
        &self.pairs
    }

    /// Those that end, as an answer tells the caller of them: an alias takes its assignments along wherever they are.
    pub async fn ending(
        &self,
        hierarchy: &Hierarchy,
        caller: &Caller,
        ends: impl Fn(WorkspaceId, ManagedIdentityId) -> bool + Send,
    ) -> Result<Ending, Status> {
        let pairs = self.pairs.iter();
        let pairs = pairs.filter(|(workspace, identity)| ends(*workspace, *identity));
        let ending: Vec<_> = pairs.collect();
        let mut assignments = Vec::new();
        for (workspace, identity) in ending.iter().take(NAMED) {
            let place = locate(hierarchy, (*workspace).into(), caller).await?;
            let seen = place.filter(|place| place.role.is_some());
            assignments.push(pb::EndingAssignment {
                workspace_id: workspace.to_string(),
                workspace_path: seen.map(|place| place.path()).unwrap_or_default(),
                managed_identity_id: identity.to_string(),
            });
        }
        Ok(Ending {
            assignments,
            count: i32::try_from(ending.len()).unwrap_or(i32::MAX),
        })
    }
}

/// The workspaces of a group and below it, or a workspace, each with an identity that it has.
async fn pairs_below(
    hierarchy: &Hierarchy,
    id: ResourceId,
) -> Result<Vec<(WorkspaceId, ManagedIdentityId)>, Status> {
    let facts = hierarchy.facts_below(id, ASSIGNMENTS).await;
    let facts = facts.map_err(|error| status::database(&error))?;
    let pairs = facts.iter().filter_map(|(key, _)| {
        let (workspace, identity) = key.strip_prefix(ASSIGNMENTS)?.split_once('/')?;
        Some((workspace.parse().ok()?, identity.parse().ok()?))
    });
    Ok(pairs.collect())
}
