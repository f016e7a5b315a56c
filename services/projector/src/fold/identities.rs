//! Managed identities and their assignments.

use std::collections::HashMap;

use edge::hierarchy;
use eventlog::{FoldError, RecordedEvent};
use proto::identity::v1::{Event, ManagedIdentityAliasCreated};
use sqlx::PgConnection;

use super::{Stamps, inapplicable, places};

/// What a batch changes.
#[derive(Default)]
struct Changes<'a> {
    /// By id; with the event that made it, or none if that is in an earlier batch.
    identities: HashMap<String, Identity<'a>>,
    deleted: Vec<String>,
    /// By workspace and identity: whether it is assigned in the end.
    assignments: HashMap<(String, String), bool>,
}

struct Identity<'a> {
    made: Option<Made<'a>>,
    description: String,
    configuration: Vec<u8>,
    token_settings: Vec<u8>,
    last: &'a RecordedEvent,
}

struct Made<'a> {
    group: String,
    name: String,
    kind: &'static str,
    event: &'a RecordedEvent,
}

pub(super) async fn apply(
    connection: &mut PgConnection,
    events: &[RecordedEvent],
) -> Result<(), FoldError> {
    let mut changes = Changes::default();
    for event in events {
        let decoded =
            Event::decode(&event.event_type, &event.payload).map_err(inapplicable(event))?;
        match decoded {
            // Which name is free in a group depends on what was moved before.
            Event::ManagedIdentityMoved(moved) => {
                std::mem::take(&mut changes).write(connection).await?;
                relocate(
                    connection,
                    &moved.managed_identity_id,
                    &moved.new_group_id,
                    event,
                )
                .await?;
            }
            // What it presents is as its source is by then.
            Event::ManagedIdentityAliasCreated(alias) => {
                std::mem::take(&mut changes).write(connection).await?;
                insert_alias(connection, &alias, event).await?;
            }
            decoded => changes.add(event, decoded)?,
        }
    }
    changes.write(connection).await?;
    Ok(())
}

impl<'a> Changes<'a> {
    fn add(&mut self, event: &'a RecordedEvent, decoded: Event) -> Result<(), FoldError> {
        match decoded {
            Event::ManagedIdentityCreated(identity) => {
                let kind = hierarchy::identity_type(identity.configuration.as_ref());
                let kind = kind.map_err(|error| FoldError::Inapplicable {
                    position: event.position,
                    reason: error.into(),
                })?;
                let made = Some(Made {
                    group: identity.group_id,
                    name: identity.name,
                    kind,
                    event,
                });
                let row = Identity {
                    made,
                    description: identity.description,
                    configuration: bytes(identity.configuration),
                    token_settings: bytes(identity.token_settings),
                    last: event,
                };
                self.identities.insert(identity.managed_identity_id, row);
            }
            Event::ManagedIdentityUpdated(identity) => {
                let before = self.identities.remove(&identity.managed_identity_id);
                let made = before.and_then(|before| before.made);
                let row = Identity {
                    made,
                    description: identity.description,
                    configuration: bytes(identity.configuration),
                    token_settings: bytes(identity.token_settings),
                    last: event,
                };
                self.identities.insert(identity.managed_identity_id, row);
            }
            Event::ManagedIdentityDeleted(identity) => self.delete(identity.managed_identity_id),
            Event::ManagedIdentityAliasDeleted(alias) => self.delete(alias.managed_identity_id),
            Event::ManagedIdentityAssigned(assignment) => {
                self.assignments.insert(
                    (assignment.workspace_id, assignment.managed_identity_id),
                    true,
                );
            }
            Event::ManagedIdentityUnassigned(assignment) => {
                self.assignments.insert(
                    (assignment.workspace_id, assignment.managed_identity_id),
                    false,
                );
            }
            // Moves and aliases are written by themselves, and so are masks and service accounts; the service that owns
            // rules lists them.
            Event::ManagedIdentityMoved(_)
            | Event::ManagedIdentityAliasCreated(_)
            | Event::MaskCreated(_)
            | Event::MaskDeleted(_)
            | Event::AccessRuleCreated(_)
            | Event::AccessRuleUpdated(_)
            | Event::AccessRuleDeleted(_)
            | Event::InitialAssignmentsDecided(_)
            | Event::ServiceAccountCreated(_)
            | Event::ServiceAccountUpdated(_)
            | Event::ServiceAccountDeleted(_) => {}
        }
        Ok(())
    }

    fn delete(&mut self, id: String) {
        self.identities.remove(&id);
        self.assignments.retain(|(_, assigned), _| *assigned != id);
        self.deleted.push(id);
    }

    async fn write(self, connection: &mut PgConnection) -> sqlx::Result<()> {
        if !self.deleted.is_empty() {
            sqlx::query!(
                "WITH ended AS (DELETE FROM assignments WHERE managed_identity_id = ANY($1))
                 DELETE FROM managed_identities WHERE id = ANY($1)",
                &self.deleted
            )
            .execute(&mut *connection)
            .await?;
        }
        let (made, updated): (Vec<_>, Vec<_>) = self
            .identities
            .into_iter()
            .partition(|(_, identity)| identity.made.is_some());
        insert(connection, made).await?;
        update(connection, updated).await?;
        assign(connection, self.assignments).await
    }
}

fn bytes<M: prost::Message + Default>(message: Option<M>) -> Vec<u8> {
    message.unwrap_or_default().encode_to_vec()
}

async fn insert(
    connection: &mut PgConnection,
    made: Vec<(String, Identity<'_>)>,
) -> sqlx::Result<()> {
    let (mut ids, mut groups, mut names, mut descriptions, mut configurations) =
        (vec![], vec![], vec![], vec![], vec![]);
    let (mut types, mut grams, mut tokens) = (vec![], vec![], vec![]);
    let mut stamps = Stamps::default();
    for (id, identity) in made {
        let Some(made) = identity.made else { continue };
        ids.push(id);
        groups.push(made.group);
        types.push(made.kind.to_owned());
        grams.push(places::array(&made.name));
        names.push(made.name);
        descriptions.push(identity.description);
        configurations.push(identity.configuration);
        tokens.push(identity.token_settings);
        stamps.add(made.event, identity.last);
    }
    if ids.is_empty() {
        return Ok(());
    }
    sqlx::query!(
        "INSERT INTO managed_identities
             (id, group_id, name, description, configuration, version, created_at, updated_at, type, grams, token_settings)
         SELECT id, group_id, name, description, configuration, version, created_at, updated_at, type, grams::integer[],
                token_settings
         FROM UNNEST
             ($1::text[], $2::text[], $3::text[], $4::text[], $5::bytea[], $6::bigint[], $7::timestamptz[],
              $8::timestamptz[], $9::text[], $10::text[], $11::bytea[])
             AS made (id, group_id, name, description, configuration, version, created_at, updated_at, type, grams,
                      token_settings)",
        &ids,
        &groups,
        &names,
        &descriptions,
        &configurations,
        &stamps.versions,
        &stamps.created,
        &stamps.updated,
        &types,
        &grams,
        &tokens
    )
    .execute(connection)
    .await?;
    Ok(())
}

async fn update(
    connection: &mut PgConnection,
    updated: Vec<(String, Identity<'_>)>,
) -> sqlx::Result<()> {
    if updated.is_empty() {
        return Ok(());
    }
    let (mut ids, mut descriptions, mut configurations, mut tokens) =
        (vec![], vec![], vec![], vec![]);
    let (mut versions, mut times) = (vec![], vec![]);
    for (id, identity) in updated {
        ids.push(id);
        descriptions.push(identity.description);
        configurations.push(identity.configuration);
        tokens.push(identity.token_settings);
        versions.push(identity.last.version.cast_signed());
        times.push(identity.last.recorded_at);
    }
    sqlx::query!(
        "UPDATE managed_identities identity
         SET description = new.description, configuration = new.configuration, version = new.version,
             updated_at = new.updated_at, token_settings = new.token_settings
         FROM UNNEST($1::text[], $2::text[], $3::bytea[], $4::bigint[], $5::timestamptz[], $6::bytea[])
             AS new (id, description, configuration, version, updated_at, token_settings)
         WHERE identity.id = new.id",
        &ids,
        &descriptions,
        &configurations,
        &versions,
        &times,
        &tokens
    )
    .execute(&mut *connection)
    .await?;
    sqlx::query!(
        "UPDATE managed_identities alias
         SET description = new.description, configuration = new.configuration, token_settings = new.token_settings
         FROM UNNEST($1::text[], $2::text[], $3::bytea[], $4::bytea[])
             AS new (source_id, description, configuration, token_settings)
         WHERE alias.source_id = new.source_id",
        &ids,
        &descriptions,
        &configurations,
        &tokens
    )
    .execute(connection)
    .await?;
    Ok(())
}

async fn insert_alias(
    connection: &mut PgConnection,
    alias: &ManagedIdentityAliasCreated,
    event: &RecordedEvent,
) -> sqlx::Result<()> {
    sqlx::query!(
        "INSERT INTO managed_identities
             (id, source_id, group_id, name, description, configuration, token_settings, type, grams, version, created_at,
              updated_at)
         SELECT $1, id, $3, $4, description, configuration, token_settings, type, $5::text::integer[], $6, $7, $7
         FROM managed_identities WHERE id = $2",
        alias.managed_identity_id,
        alias.source_id,
        alias.group_id,
        alias.name,
        places::array(&alias.name),
        event.version.cast_signed(),
        event.recorded_at
    )
    .execute(connection)
    .await?;
    Ok(())
}

async fn relocate(
    connection: &mut PgConnection,
    id: &str,
    group: &str,
    event: &RecordedEvent,
) -> sqlx::Result<()> {
    sqlx::query!(
        "UPDATE managed_identities SET group_id = $2, version = $3, updated_at = $4 WHERE id = $1",
        id,
        group,
        event.version.cast_signed(),
        event.recorded_at
    )
    .execute(connection)
    .await?;
    Ok(())
}

async fn assign(
    connection: &mut PgConnection,
    assignments: HashMap<(String, String), bool>,
) -> sqlx::Result<()> {
    if assignments.is_empty() {
        return Ok(());
    }
    let (assigned, unassigned): (Vec<_>, Vec<_>) =
        assignments.into_iter().partition(|(_, assigned)| *assigned);
    let columns =
        |pairs: Vec<((String, String), bool)>| pairs.into_iter().map(|(pair, _)| pair).unzip();
    let (workspaces, identities): (Vec<String>, Vec<String>) = columns(unassigned);
    sqlx::query!(
        "DELETE FROM assignments USING UNNEST($1::text[], $2::text[]) AS gone (workspace_id, managed_identity_id)
         WHERE assignments.workspace_id = gone.workspace_id
           AND assignments.managed_identity_id = gone.managed_identity_id",
        &workspaces,
        &identities
    )
    .execute(&mut *connection)
    .await?;
    let (workspaces, identities): (Vec<String>, Vec<String>) = columns(assigned);
    // Assigned, unassigned and assigned again within a batch, the row may be there from before.
    sqlx::query!(
        "INSERT INTO assignments (workspace_id, managed_identity_id) SELECT * FROM UNNEST($1::text[], $2::text[])
         ON CONFLICT DO NOTHING",
        &workspaces,
        &identities
    )
    .execute(connection)
    .await?;
    Ok(())
}
