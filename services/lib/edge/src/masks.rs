//! Masks as facts and as messages: the service that owns them and the issuer ask alike what they hide.

use std::collections::BTreeSet;

use eventlog::{Change, EventLog, Guard};
use model::mask::{Hidden, InvalidMask};
use model::{Kind, ManagedIdentityId, Mask, MaskId, ResourceId};
use proto::identity::v1 as pb;
use tonic::Status;

use crate::hierarchy::{IDENTITY_TYPES, MalformedEvent, Place, node, node_key};
use crate::status;

/// The key of what happened last to the masks of a group or workspace. Whoever leans on them expects this: so one that
/// comes or goes meanwhile is noticed.
fn last_change_key(namespace: impl std::fmt::Display) -> String {
    format!("{LAST_CHANGES}{namespace}")
}

/// The keys of the masks of a group or workspace start so; what follows is the mask's id.
#[must_use]
pub fn prefix(namespace: impl std::fmt::Display) -> String {
    format!("{MASKS}{namespace}/")
}

/// The keys of all masks start so, followed by the group or workspace.
pub const MASKS: &str = "mask/";

const LAST_CHANGES: &str = "masks/";

/// Whether a fact says which masks there are.
pub(crate) fn is_of_masks(key: &str) -> bool {
    key.starts_with(MASKS) || key.starts_with(LAST_CHANGES)
}

/// The facts that a mask is there.
pub(crate) fn is_made(event: &pb::MaskCreated) -> Result<Vec<Change>, MalformedEvent> {
    let (namespace, id) = (&event.namespace_id, &event.mask_id);
    let mask = mask(event).ok_or(MalformedEvent::Mask)?;
    Ok(vec![
        node(id, namespace, ""),
        (format!("{}{id}", prefix(namespace)), Some(mask.to_string())),
        (last_change_key(namespace), Some(format!("{id} made"))),
    ])
}

/// The facts that it is gone.
pub(crate) fn is_gone(event: &pb::MaskDeleted) -> Vec<Change> {
    let (namespace, id) = (&event.namespace_id, &event.mask_id);
    vec![
        (node_key(id), None),
        (format!("{}{id}", prefix(namespace)), None),
        (last_change_key(namespace), Some(format!("{id} gone"))),
    ]
}

/// The mask of an event.
#[must_use]
pub fn mask(event: &pb::MaskCreated) -> Option<Mask> {
    use pb::mask_created::Hidden as Wire;
    let hides = match event.hidden.as_ref()? {
        Wire::ManagedIdentityId(id) => Hidden::Identity(id.parse().ok()?),
        Wire::Type(word) => Hidden::Type(identity_type(word)?.to_owned()),
        Wire::Everything(everything) => everything.then_some(Hidden::Everything)?,
    };
    let exceptions = event.exception_ids.iter().map(|id| id.parse().ok());
    Some(Mask {
        hides,
        exceptions: exceptions.collect::<Option<BTreeSet<_>>>()?,
    })
}

/// The type of identities that a word names.
#[must_use]
pub fn identity_type(word: &str) -> Option<&'static str> {
    IDENTITY_TYPES.into_iter().find(|known| *known == word)
}

/// An identity, as far as masks ask.
#[derive(Clone, Copy, Debug)]
pub struct Inherited<'a> {
    /// Its id.
    pub id: ManagedIdentityId,
    /// The word for its type.
    pub identity_type: &'a str,
    /// Its group.
    pub group: ResourceId,
}

/// The nearest mask that hides an identity in a place below its group, and what must still hold for that.
pub async fn hiding(
    log: &EventLog,
    place: &Place,
    identity: Inherited<'_>,
) -> Result<(Option<MaskId>, Vec<Guard>), Status> {
    let below = place
        .nodes
        .iter()
        .map(|node| node.id)
        .take_while(|id| *id != identity.group)
        .filter(|id| matches!(id.kind(), Kind::Group | Kind::Workspace));
    let below: Vec<ResourceId> = below.collect();
    let keys: Vec<String> = below.iter().map(last_change_key).collect();
    let facts = log
        .facts(&keys)
        .await
        .map_err(|error| status::log(&error))?;
    let guards = keys.iter().map(|key| Guard::Expect {
        key: key.clone(),
        value: facts.get(key).map(str::to_owned),
    });
    let guards = guards.collect();
    for (namespace, key) in below.iter().zip(&keys) {
        if facts.get(key).is_none() {
            continue;
        }
        for (id, mask) in of_namespace(log, *namespace).await? {
            if mask.hides(identity.id, identity.identity_type) {
                return Ok((Some(id), guards));
            }
        }
    }
    Ok((None, guards))
}

/// The masks of a group or workspace, in the order in which they were made.
pub async fn of_namespace(
    log: &EventLog,
    namespace: ResourceId,
) -> Result<Vec<(MaskId, Mask)>, Status> {
    let prefix = prefix(namespace);
    let keys = log.fact_keys(&prefix).await;
    let keys = keys.map_err(|error| status::log(&error))?;
    let facts = log
        .facts(&keys)
        .await
        .map_err(|error| status::log(&error))?;
    let read = |key: &String| {
        let id = key.strip_prefix(&prefix)?.parse().ok()?;
        // One that can't be read must not be left out: that could be to let a job have what is hidden.
        let mask = facts.get(key)?.parse::<Mask>();
        Some(mask.map(|mask| (id, mask)))
    };
    let masks: Result<Vec<_>, InvalidMask> = keys.iter().filter_map(read).collect();
    masks.map_err(|error| status::internal(&error))
}
