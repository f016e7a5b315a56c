//! Aliases as facts: managed identities that present the data, the rules and the subject of another one, their source.

use eventlog::{Change, EventLog, Guard};
use model::ManagedIdentityId;
use proto::identity::v1 as pb;
use tonic::Status;

use crate::hierarchy::{Hierarchy, identity_name_key, identity_type_key, node, node_key};
use crate::status;

/// The key of what an alias is an alias of. An identity without it is none, and never becomes one.
#[must_use]
pub fn source_key(alias: impl std::fmt::Display) -> String {
    format!("alias-source/{alias}")
}

/// The keys of the aliases of an identity start so; what follows is the alias's id.
#[must_use]
pub fn prefix(source: impl std::fmt::Display) -> String {
    format!("{ALIASES}{source}/")
}

/// The key of what happened last to the aliases of an identity. Whoever leans on which there are expects this.
#[must_use]
pub fn last_change_key(source: impl std::fmt::Display) -> String {
    format!("aliases/{source}")
}

/// The keys of all aliases start so, followed by the source.
const ALIASES: &str = "alias/";

/// Whether a fact says which aliases there are.
pub(crate) fn is_of_aliases(key: &str) -> bool {
    key.starts_with(ALIASES)
}

/// The facts that an alias is there.
pub(crate) fn is_made(event: &pb::ManagedIdentityAliasCreated) -> Vec<Change> {
    let (id, group, source) = (
        &event.managed_identity_id,
        &event.group_id,
        &event.source_id,
    );
    vec![
        node(id, group, &event.name),
        (identity_name_key(group, &event.name), Some(id.clone())),
        (identity_type_key(id), Some(event.r#type.clone())),
        (source_key(id), Some(source.clone())),
        (format!("{}{id}", prefix(source)), Some(String::new())),
        (last_change_key(source), Some(format!("{id} made"))),
    ]
}

/// The facts that it is gone.
pub(crate) fn is_gone(event: &pb::ManagedIdentityAliasDeleted) -> Vec<Change> {
    let (id, group, source) = (
        &event.managed_identity_id,
        &event.group_id,
        &event.source_id,
    );
    vec![
        (node_key(id), None),
        (identity_name_key(group, &event.name), None),
        (identity_type_key(id), None),
        (source_key(id), None),
        (format!("{}{id}", prefix(source)), None),
        (last_change_key(source), Some(format!("{id} gone"))),
    ]
}

/// Whose data, rules and subject an identity presents.
#[derive(Clone, Debug)]
pub struct Source {
    /// Of an alias its source; any other identity itself.
    pub id: ManagedIdentityId,
    /// What must still hold for an alias: that its source exists.
    pub guards: Vec<Guard>,
}

/// Whose data, rules and subject an identity that exists presents. `None` if it is an alias whose source is gone, and so
/// about to be deleted.
pub async fn source(
    log: &EventLog,
    hierarchy: &Hierarchy,
    id: ManagedIdentityId,
) -> Result<Option<Source>, Status> {
    let Some(source) = alias_of(log, id).await? else {
        return Ok(Some(Source { id, guards: vec![] }));
    };
    let place = hierarchy.way_up(source.into()).await;
    let place = place.map_err(|error| status::database(&error))?;
    Ok(place.map(|place| Source {
        id: source,
        guards: place.existence(),
    }))
}

/// What an identity is an alias of, whether that exists or not. `None` if it is no alias.
pub async fn alias_of(
    log: &EventLog,
    id: ManagedIdentityId,
) -> Result<Option<ManagedIdentityId>, Status> {
    let key = source_key(id);
    let facts = log.facts(std::slice::from_ref(&key)).await;
    let facts = facts.map_err(|error| status::log(&error))?;
    let source = facts.get(&key).map(str::parse).transpose();
    source.map_err(|error| status::internal(&error))
}

/// The aliases of an identity.
pub async fn of(
    log: &EventLog,
    source: ManagedIdentityId,
) -> Result<Vec<ManagedIdentityId>, Status> {
    let prefix = prefix(source);
    let keys = log.fact_keys(&prefix).await;
    let keys = keys.map_err(|error| status::log(&error))?;
    let ids = keys.iter().filter_map(|key| key.strip_prefix(&prefix));
    Ok(ids.filter_map(|id| id.parse().ok()).collect())
}
