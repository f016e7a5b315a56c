//! Groups and workspaces.

use std::collections::HashMap;

use eventlog::{FoldError, RecordedEvent};
use proto::namespace::v1::Event;
use sqlx::PgConnection;

use super::{Stamps, inapplicable};

struct Row<'a> {
    kind: &'static str,
    parent: String,
    name: String,
    description: String,
    event: &'a RecordedEvent,
}

pub(super) async fn apply(
    connection: &mut PgConnection,
    events: &[RecordedEvent],
) -> Result<(), FoldError> {
    let mut made: HashMap<String, Row<'_>> = HashMap::new();
    let mut gone = Vec::new();
    for event in events {
        match Event::decode(&event.event_type, &event.payload).map_err(inapplicable(event))? {
            Event::GroupCreated(group) => {
                let (parent, name, description) = (group.parent_id, group.name, group.description);
                made.insert(
                    group.group_id,
                    Row {
                        kind: "group",
                        parent,
                        name,
                        description,
                        event,
                    },
                );
            }
            Event::WorkspaceCreated(workspace) => {
                let (parent, name, description) =
                    (workspace.group_id, workspace.name, workspace.description);
                made.insert(
                    workspace.workspace_id,
                    Row {
                        kind: "workspace",
                        parent,
                        name,
                        description,
                        event,
                    },
                );
            }
            Event::GroupDeleted(group) => gone.push(group.group_id),
            Event::WorkspaceDeleted(workspace) => gone.push(workspace.workspace_id),
            // Who is a member where is in the facts.
            Event::MembershipCreated(_)
            | Event::MembershipUpdated(_)
            | Event::MembershipDeleted(_) => {}
        }
    }
    gone.extend(delete(connection, &gone).await?);
    drop_made_and_gone(&mut made, &gone);
    insert(connection, made).await?;
    Ok(())
}

/// What was made within the batch, and deleted or left below what was deleted, is never written: its name may be
/// another's by now.
fn drop_made_and_gone(made: &mut HashMap<String, Row<'_>>, gone: &[String]) {
    let mut roots: Vec<String> = gone.to_vec();
    while let Some(root) = roots.pop() {
        made.remove(&root);
        let below: Vec<String> = made
            .iter()
            .filter(|(_, row)| row.parent == root)
            .map(|(id, _)| id.clone())
            .collect();
        roots.extend(below);
    }
}

/// Deletes with everything below, of rows that are there already. Answers with the ids of all of them.
async fn delete(connection: &mut PgConnection, gone: &[String]) -> sqlx::Result<Vec<String>> {
    if gone.is_empty() {
        return Ok(vec![]);
    }
    sqlx::query_scalar!(
        "WITH RECURSIVE below (id) AS (
             SELECT id FROM namespaces WHERE id = ANY($1)
             UNION
             SELECT namespaces.id FROM namespaces JOIN below ON namespaces.parent_id = below.id
         )
         DELETE FROM namespaces USING below WHERE namespaces.id = below.id RETURNING namespaces.id",
        gone
    )
    .fetch_all(connection)
    .await
}

async fn insert(connection: &mut PgConnection, made: HashMap<String, Row<'_>>) -> sqlx::Result<()> {
    if made.is_empty() {
        return Ok(());
    }
    let (mut ids, mut kinds, mut parents, mut names, mut descriptions) =
        (vec![], vec![], vec![], vec![], vec![]);
    let mut stamps = Stamps {
        versions: vec![],
        created: vec![],
        updated: vec![],
    };
    for (id, row) in made {
        ids.push(id);
        kinds.push(row.kind.to_owned());
        parents.push(row.parent);
        names.push(row.name);
        descriptions.push(row.description);
        stamps.versions.push(row.event.version.cast_signed());
        stamps.created.push(row.event.recorded_at);
        stamps.updated.push(row.event.recorded_at);
    }
    sqlx::query!(
        "INSERT INTO namespaces (id, kind, parent_id, name, description, version, created_at, updated_at)
         SELECT * FROM UNNEST
             ($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::timestamptz[], $8::timestamptz[])",
        &ids,
        &kinds,
        &parents,
        &names,
        &descriptions,
        &stamps.versions,
        &stamps.created,
        &stamps.updated
    )
    .execute(connection)
    .await?;
    Ok(())
}
