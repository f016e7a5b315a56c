//! Groups and workspaces.

use std::collections::HashMap;

use eventlog::{FoldError, RecordedEvent};
use proto::namespace::v1::Event;
use sqlx::PgConnection;

use super::{Stamps, inapplicable};

/// What a run of events changes that moves nothing: then it does not matter what of it is written first, as long as the
/// names that became free are free.
#[derive(Default)]
struct Changes<'a> {
    made: HashMap<String, Row<'a>>,
    /// Of rows that are there already.
    updated: HashMap<String, Update<'a>>,
    gone: Vec<String>,
}

struct Row<'a> {
    kind: &'static str,
    parent: String,
    name: String,
    description: String,
    max_job_duration: Option<i64>,
    first: &'a RecordedEvent,
    last: &'a RecordedEvent,
}

struct Update<'a> {
    description: String,
    max_job_duration: Option<i64>,
    last: &'a RecordedEvent,
}

pub(super) async fn apply(
    connection: &mut PgConnection,
    events: &[RecordedEvent],
) -> Result<(), FoldError> {
    let mut changes = Changes::default();
    for event in events {
        let decoded =
            Event::decode(&event.event_type, &event.payload).map_err(inapplicable(event))?;
        // What lies below what is deleted, and which name is free, depends on what was moved before: a move comes
        // between what was before it and what comes after it.
        match decoded {
            Event::GroupMoved(group) => {
                std::mem::take(&mut changes).write(connection).await?;
                relocate(connection, &group.group_id, &group.new_parent_id, event).await?;
            }
            Event::WorkspaceMoved(workspace) => {
                std::mem::take(&mut changes).write(connection).await?;
                let (id, group) = (&workspace.workspace_id, &workspace.new_group_id);
                relocate(connection, id, group, event).await?;
            }
            decoded => changes.add(event, decoded),
        }
    }
    Ok(changes.write(connection).await?)
}

fn seconds(duration: Option<prost_types::Duration>) -> Option<i64> {
    duration.map(|duration| duration.seconds)
}

impl<'a> Changes<'a> {
    fn add(&mut self, event: &'a RecordedEvent, decoded: Event) {
        match decoded {
            Event::GroupCreated(group) => {
                let row = Row {
                    kind: "group",
                    parent: group.parent_id,
                    name: group.name,
                    description: group.description,
                    max_job_duration: None,
                    first: event,
                    last: event,
                };
                self.made.insert(group.group_id, row);
            }
            Event::WorkspaceCreated(workspace) => {
                let row = Row {
                    kind: "workspace",
                    parent: workspace.group_id,
                    name: workspace.name,
                    description: workspace.description,
                    max_job_duration: seconds(workspace.max_job_duration),
                    first: event,
                    last: event,
                };
                self.made.insert(workspace.workspace_id, row);
            }
            Event::GroupUpdated(group) => {
                self.update(group.group_id, group.description, None, event);
            }
            Event::WorkspaceUpdated(workspace) => {
                let duration = seconds(workspace.max_job_duration);
                self.update(
                    workspace.workspace_id,
                    workspace.description,
                    duration,
                    event,
                );
            }
            Event::GroupDeleted(group) => self.gone.push(group.group_id),
            Event::WorkspaceDeleted(workspace) => self.gone.push(workspace.workspace_id),
            // A move is written by itself, and so are memberships and teams; the service that owns limits lists them.
            Event::GroupMoved(_)
            | Event::WorkspaceMoved(_)
            | Event::MembershipCreated(_)
            | Event::MembershipUpdated(_)
            | Event::MembershipDeleted(_)
            | Event::TeamCreated(_)
            | Event::TeamUpdated(_)
            | Event::TeamDeleted(_)
            | Event::TeamMemberAdded(_)
            | Event::TeamMemberRemoved(_)
            | Event::LimitChanged(_) => {}
        }
    }

    fn update(
        &mut self,
        id: String,
        description: String,
        max_job_duration: Option<i64>,
        last: &'a RecordedEvent,
    ) {
        if let Some(row) = self.made.get_mut(&id) {
            (row.description, row.max_job_duration) = (description, max_job_duration);
            row.last = last;
        } else {
            let update = Update {
                description,
                max_job_duration,
                last,
            };
            self.updated.insert(id, update);
        }
    }

    async fn write(mut self, connection: &mut PgConnection) -> sqlx::Result<()> {
        self.gone.extend(delete(connection, &self.gone).await?);
        self.drop_made_and_gone();
        insert(connection, self.made).await?;
        update(connection, self.updated).await
    }

    /// What was made within the run, and deleted or left below what was deleted, is never written: its name may be
    /// another's by now.
    fn drop_made_and_gone(&mut self) {
        let mut roots: Vec<String> = self.gone.clone();
        while let Some(root) = roots.pop() {
            self.made.remove(&root);
            let below: Vec<String> = self
                .made
                .iter()
                .filter(|(_, row)| row.parent == root)
                .map(|(id, _)| id.clone())
                .collect();
            roots.extend(below);
        }
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

async fn relocate(
    connection: &mut PgConnection,
    id: &str,
    parent: &str,
    event: &RecordedEvent,
) -> sqlx::Result<()> {
    sqlx::query!(
        "UPDATE namespaces SET parent_id = $2, version = $3, updated_at = $4 WHERE id = $1",
        id,
        parent,
        event.version.cast_signed(),
        event.recorded_at
    )
    .execute(connection)
    .await?;
    Ok(())
}

async fn insert(connection: &mut PgConnection, made: HashMap<String, Row<'_>>) -> sqlx::Result<()> {
    if made.is_empty() {
        return Ok(());
    }
    let (mut ids, mut kinds, mut parents, mut names, mut descriptions) =
        (vec![], vec![], vec![], vec![], vec![]);
    let mut durations = vec![];
    let mut stamps = Stamps::default();
    for (id, row) in made {
        ids.push(id);
        kinds.push(row.kind.to_owned());
        parents.push(row.parent);
        names.push(row.name);
        descriptions.push(row.description);
        durations.push(row.max_job_duration);
        stamps.add(row.first, row.last);
    }
    sqlx::query!(
        "INSERT INTO namespaces
             (id, kind, parent_id, name, description, max_job_duration, version, created_at, updated_at)
         SELECT * FROM UNNEST
             ($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::bigint[],
              $8::timestamptz[], $9::timestamptz[])",
        &ids,
        &kinds,
        &parents,
        &names,
        &descriptions,
        &durations as &[Option<i64>],
        &stamps.versions,
        &stamps.created,
        &stamps.updated
    )
    .execute(connection)
    .await?;
    Ok(())
}

async fn update(
    connection: &mut PgConnection,
    updated: HashMap<String, Update<'_>>,
) -> sqlx::Result<()> {
    if updated.is_empty() {
        return Ok(());
    }
    let (mut ids, mut descriptions, mut durations) = (vec![], vec![], vec![]);
    let (mut versions, mut times) = (vec![], vec![]);
    for (id, update) in updated {
        ids.push(id);
        descriptions.push(update.description);
        durations.push(update.max_job_duration);
        versions.push(update.last.version.cast_signed());
        times.push(update.last.recorded_at);
    }
    sqlx::query!(
        "UPDATE namespaces
         SET description = new.description, max_job_duration = new.max_job_duration, version = new.version,
             updated_at = new.updated_at
         FROM UNNEST($1::text[], $2::text[], $3::bigint[], $4::bigint[], $5::timestamptz[])
             AS new (id, description, max_job_duration, version, updated_at)
         WHERE namespaces.id = new.id",
        &ids,
        &descriptions,
        &durations as &[Option<i64>],
        &versions,
        &times
    )
    .execute(connection)
    .await?;
    Ok(())
}
