//! Which workspaces come to inherit which managed identities when something goes elsewhere, or is hidden no more: told
//! before it is done.

use std::collections::BTreeSet;

use eventlog::EventLog;
use model::{Kind, ManagedIdentityId, Mask, MaskId, ResourceId, WorkspaceId};
use proto::identity::v1 as pb;
use tonic::Status;

use crate::hierarchy::{Hierarchy, IDENTITY_NAMES, Node, identity_type_key};
use crate::masks::{self, MASKS};
use crate::status;

/// Pairs that an answer names.
const NAMED: usize = 1_000;

/// An identity as far as inheriting it goes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Inheritable {
    /// Its id.
    pub id: ManagedIdentityId,
    /// The word for its type.
    pub identity_type: String,
}

/// Identities that workspaces come to inherit.
#[derive(Clone, Debug, Default)]
pub struct Gained {
    /// 1,000 at most.
    pub identities: Vec<pb::GainedIdentity>,
    /// How many there are.
    pub count: i32,
}

/// A mask, and the workspaces at it or below it.
#[derive(Clone, Debug)]
pub struct Placed {
    /// Its group or workspace.
    pub namespace: ResourceId,
    /// Its id.
    pub id: MaskId,
    mask: Mask,
    workspaces: BTreeSet<WorkspaceId>,
}

/// The workspaces of a group or of a workspace itself, and the masks there and below.
#[derive(Clone, Debug)]
pub struct Subtree {
    workspaces: BTreeSet<WorkspaceId>,
    masks: Vec<Placed>,
}

/// The identities that are inherited at a place from it and from above: made in its groups, and hidden by no mask on the
/// way. The way is that of the place, the nearest first.
pub async fn at(log: &EventLog, way: &[Node]) -> Result<BTreeSet<Inheritable>, Status> {
    let mut found = BTreeSet::new();
    // Those of the places below the one that is looked at.
    let mut masks: Vec<Mask> = Vec::new();
    let places = way.iter().map(|node| node.id);
    for place in places.filter(|id| matches!(id.kind(), Kind::Group | Kind::Workspace)) {
        let made = made_in(log, place).await?;
        let hidden = |identity: &Inheritable| {
            let mut masks = masks.iter();
            masks.any(|mask| mask.hides(identity.id, &identity.identity_type))
        };
        found.extend(made.into_iter().filter(|identity| !hidden(identity)));
        let here = masks::of_namespace(log, place).await?;
        masks.extend(here.into_iter().map(|(_, mask)| mask));
    }
    Ok(found)
}

/// The identities that were made in a group.
async fn made_in(log: &EventLog, group: ResourceId) -> Result<Vec<Inheritable>, Status> {
    let names = log.fact_keys(&format!("{IDENTITY_NAMES}{group}/")).await;
    let names = names.map_err(|error| status::log(&error))?;
    let ids = facts(log, &names).await?;
    let ids: Vec<ManagedIdentityId> = names
        .iter()
        .filter_map(|name| ids.get(name)?.parse().ok())
        .collect();
    let keys: Vec<_> = ids.iter().map(identity_type_key).collect();
    let types = facts(log, &keys).await?;
    let made = ids.into_iter().zip(&keys).map(|(id, key)| Inheritable {
        id,
        identity_type: types.get(key).unwrap_or_default().to_owned(),
    });
    Ok(made.collect())
}

async fn facts(log: &EventLog, keys: &[String]) -> Result<eventlog::Facts, Status> {
    let facts = log.facts(keys).await;
    facts.map_err(|error| status::log(&error))
}

impl Subtree {
    /// Of a group or workspace.
    pub async fn of(log: &EventLog, hierarchy: &Hierarchy, id: ResourceId) -> Result<Self, Status> {
        let workspaces = workspaces(hierarchy, id).await?;
        let kept = hierarchy.facts_below(id, MASKS).await;
        let kept = kept.map_err(|error| status::database(&error))?;
        let namespaces = kept.iter().filter_map(|(key, _)| {
            let (namespace, _) = key.strip_prefix(MASKS)?.split_once('/')?;
            namespace.parse().ok()
        });
        let mut placed = Vec::new();
        for namespace in namespaces.collect::<BTreeSet<ResourceId>>() {
            let below = self::workspaces(hierarchy, namespace).await?;
            for (id, mask) in masks::of_namespace(log, namespace).await? {
                placed.push(Placed {
                    namespace,
                    id,
                    mask,
                    workspaces: below.clone(),
                });
            }
        }
        Ok(Self {
            workspaces,
            masks: placed,
        })
    }

    /// The workspaces to which an identity from above comes, through the masks that count.
    #[must_use]
    pub fn reached_by(
        &self,
        identity: &Inheritable,
        counts: impl Fn(&Placed) -> bool,
    ) -> BTreeSet<WorkspaceId> {
        let masks = self.masks.iter();
        let hiding = masks
            .filter(|placed| counts(placed))
            .filter(|placed| placed.mask.hides(identity.id, &identity.identity_type));
        let mut reached = self.workspaces.clone();
        for placed in hiding {
            reached.retain(|workspace| !placed.workspaces.contains(workspace));
        }
        reached
    }
}

impl Gained {
    /// These, as an answer tells of them.
    pub async fn of(
        hierarchy: &Hierarchy,
        pairs: &BTreeSet<(WorkspaceId, ManagedIdentityId)>,
    ) -> Result<Self, Status> {
        let mut identities = Vec::new();
        for (workspace, identity) in pairs.iter().take(NAMED) {
            let place = hierarchy.way_up((*workspace).into()).await;
            let place = place.map_err(|error| status::database(&error))?;
            identities.push(pb::GainedIdentity {
                workspace_id: workspace.to_string(),
                workspace_path: place.map(|place| place.path()).unwrap_or_default(),
                managed_identity_id: identity.to_string(),
            });
        }
        Ok(Self {
            identities,
            count: i32::try_from(pairs.len()).unwrap_or(i32::MAX),
        })
    }
}

/// The workspaces below a group, or the workspace.
async fn workspaces(
    hierarchy: &Hierarchy,
    id: ResourceId,
) -> Result<BTreeSet<WorkspaceId>, Status> {
    let below = hierarchy.below(id).await;
    let below = below.map_err(|error| status::database(&error))?;
    let below = below.into_iter().map(|(id, _)| id).chain([id]);
    Ok(below
        .filter_map(|id| WorkspaceId::try_from(id).ok())
        .collect())
}
