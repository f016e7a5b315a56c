//! Where everything is.

use std::collections::HashMap;

use eventlog::{FoldError, RecordedEvent};
use proto::namespace::v1::Event;
use sqlx::PgConnection;

use super::inapplicable;
use crate::grams;

/// What a run of events makes in which nothing else happens to places.
#[derive(Default)]
struct Made {
    ids: Vec<String>,
    kinds: Vec<String>,
    names: Vec<String>,
    parents: Vec<String>,
}

pub(super) async fn apply(
    connection: &mut PgConnection,
    events: &[RecordedEvent],
) -> Result<(), FoldError> {
    let mut made = Made::default();
    for event in events {
        match Event::decode(&event.event_type, &event.payload).map_err(inapplicable(event))? {
            Event::GroupCreated(group) => {
                made.add("group", group.group_id, group.parent_id, group.name);
            }
            Event::WorkspaceCreated(workspace) => made.add(
                "workspace",
                workspace.workspace_id,
                workspace.group_id,
                workspace.name,
            ),
            // What lies below is a matter of the order: first everything before it.
            Event::GroupDeleted(group) => {
                std::mem::take(&mut made).write(connection).await?;
                delete(connection, &group.group_id).await?;
            }
            Event::WorkspaceDeleted(workspace) => {
                std::mem::take(&mut made).write(connection).await?;
                delete(connection, &workspace.workspace_id).await?;
            }
            Event::GroupMoved(group) => {
                std::mem::take(&mut made).write(connection).await?;
                relocate(connection, &group.group_id, &group.new_parent_id).await?;
            }
            Event::WorkspaceMoved(workspace) => {
                std::mem::take(&mut made).write(connection).await?;
                relocate(connection, &workspace.workspace_id, &workspace.new_group_id).await?;
            }
            Event::GroupUpdated(_)
            | Event::WorkspaceUpdated(_)
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
    Ok(made.write(connection).await?)
}

impl Made {
    fn add(&mut self, kind: &str, id: String, parent: String, name: String) {
        self.kinds.push(kind.to_owned());
        self.ids.push(id);
        self.parents.push(parent);
        self.names.push(name);
    }

    async fn write(self, connection: &mut PgConnection) -> sqlx::Result<()> {
        if self.ids.is_empty() {
            return Ok(());
        }
        let mut paths = paths(connection, &self.parents).await?;
        for ((id, parent), name) in self.ids.iter().zip(&self.parents).zip(&self.names) {
            let above = paths.get(parent).map_or("", String::as_str);
            paths.insert(id.clone(), format!("{above}{name}/"));
        }
        let paths: Vec<String> = self.ids.iter().map(|id| paths[id].clone()).collect();
        // An array of arrays can't be unnested by rows.
        let grams: Vec<String> = self.names.iter().map(|name| array(name)).collect();
        sqlx::query!(
            "INSERT INTO places (id, kind, name, path, grams)
             SELECT id, kind, name, path, grams::integer[]
             FROM UNNEST($1::text[], $2::text[], $3::text[], $4::text[], $5::text[]) AS made (id, kind, name, path, grams)",
            &self.ids,
            &self.kinds,
            &self.names,
            &paths,
            &grams
        )
        .execute(connection)
        .await?;
        Ok(())
    }
}

/// The grams of a name, as PostgreSQL reads an array.
pub(super) fn array(name: &str) -> String {
    let grams: Vec<String> = grams::of_name(name)
        .iter()
        .map(ToString::to_string)
        .collect();
    format!("{{{}}}", grams.join(","))
}

/// The paths of those of the places that are there.
async fn paths(
    connection: &mut PgConnection,
    ids: &[String],
) -> sqlx::Result<HashMap<String, String>> {
    let rows = sqlx::query!("SELECT id, path FROM places WHERE id = ANY($1)", ids)
        .fetch_all(connection)
        .await?;
    Ok(rows.into_iter().map(|row| (row.id, row.path)).collect())
}

/// Takes a place and everything below out of sight, to where only those see it who see what was above.
async fn delete(connection: &mut PgConnection, id: &str) -> sqlx::Result<()> {
    sqlx::query!(
        "WITH root AS (
             SELECT path, left(path, -length(name) - 1) || '~' || id || '/' AS new_path FROM places WHERE id = $1
         )
         UPDATE places SET path = root.new_path || substr(places.path, length(root.path) + 1), gone = true
         FROM root WHERE places.path >= root.path AND places.path < left(root.path, -1) || '0'",
        id
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Moves a place and everything below, gone or not.
async fn relocate(connection: &mut PgConnection, id: &str, parent: &str) -> sqlx::Result<()> {
    sqlx::query!(
        "WITH root AS (
             SELECT path, coalesce((SELECT above.path FROM places above WHERE above.id = $2), '') || name || '/' AS new_path
             FROM places WHERE id = $1
         )
         UPDATE places SET path = root.new_path || substr(places.path, length(root.path) + 1)
         FROM root WHERE places.path >= root.path AND places.path < left(root.path, -1) || '0'",
        id,
        parent
    )
    .execute(connection)
    .await?;
    Ok(())
}
