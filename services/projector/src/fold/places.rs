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

/// Takes a place and everything below out of sight, to where only those see it who see what was above. Each of them lies
/// right there from then on, whatever was above it: paths that kept the names of what is gone would grow with every
/// move of the group that they lie in, and with every deletion, until one is too long for its index.
async fn delete(connection: &mut PgConnection, id: &str) -> sqlx::Result<()> {
    sqlx::query!(
        "WITH root AS (
             SELECT path, left(path, -length(name) - 1) AS above FROM places WHERE id = $1
         )
         UPDATE places SET path = root.above || '~' || places.id || '/', gone = true
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

#[cfg(test)]
mod tests {
    use bed::Database;
    use eventlog::Metadata;
    use model::{GroupId, Limit};
    use proto::namespace::v1::{GroupCreated, GroupDeleted, GroupMoved};
    use sqlx::PgPool;
    use time::OffsetDateTime;
    use uuid::Uuid;

    use super::*;

    /// The places, by what happened to groups with names as long as they may be.
    struct Tree {
        database: Database,
        events: u64,
    }

    impl Tree {
        async fn create() -> Self {
            let database = Database::create().await;
            eventlog::migrate(database.pool(), Some(&crate::MIGRATIONS))
                .await
                .expect("tables");
            Self {
                database,
                events: 0,
            }
        }

        fn pool(&self) -> &PgPool {
            self.database.pool()
        }

        async fn happens(&mut self, event: impl Into<Event>) {
            let event = event.into();
            self.events += 1;
            let recorded = RecordedEvent {
                position: self.events,
                stream_id: "group/any".to_owned(),
                version: self.events,
                id: Uuid::from_u128(u128::from(self.events)),
                event_type: event.event_type().to_owned(),
                payload: event.encode().into(),
                metadata: Metadata::default(),
                recorded_at: OffsetDateTime::UNIX_EPOCH,
            };
            let mut connection = self.pool().acquire().await.expect("a connection");
            apply(&mut connection, &[recorded])
                .await
                .unwrap_or_else(|error| panic!("{event:?}: {error:?}"));
        }

        /// Groups, each in the one before. Their ids.
        async fn chain(&mut self, mut parent: String, length: usize) -> Vec<String> {
            let mut ids = vec![];
            for _ in 0..length {
                let id = GroupId::from_uuid(Uuid::from_u128(u128::from(self.events))).to_string();
                let event = GroupCreated {
                    group_id: id.clone(),
                    parent_id: parent,
                    name: longest_name(self.events),
                    description: String::new(),
                };
                self.happens(event).await;
                parent = id.clone();
                ids.push(id);
            }
            ids
        }

        async fn relocate(&mut self, id: &str, parent: &str) {
            let event = GroupMoved {
                group_id: id.to_owned(),
                new_parent_id: parent.to_owned(),
                ..GroupMoved::default()
            };
            self.happens(event).await;
        }

        async fn delete(&mut self, id: &str) {
            let event = GroupDeleted {
                group_id: id.to_owned(),
                ..GroupDeleted::default()
            };
            self.happens(event).await;
        }

        async fn path(&self, id: &str) -> String {
            sqlx::query_scalar("SELECT path FROM places WHERE id = $1")
                .bind(id)
                .fetch_one(self.pool())
                .await
                .expect("it is there")
        }
    }

    /// One of its own, which PostgreSQL can't compress.
    fn longest_name(seed: u64) -> String {
        let mut state = seed;
        let mut next = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let digit = u32::try_from((state >> 33) % 36).expect("small");
            char::from_digit(digit, 36).expect("a digit")
        };
        (0..64).map(|_| next()).collect()
    }

    #[tokio::test]
    async fn the_deepest_path_fits_its_index() {
        let mut tree = Tree::create().await;
        let deepest = usize::try_from(Limit::NamespaceDepth.max_value()).expect("positive");
        let chain = tree.chain(String::new(), deepest).await;
        let last = chain.last().expect("some");
        assert_eq!(tree.path(last).await.len(), 65 * deepest);
        tree.delete(last).await;
    }

    #[tokio::test]
    async fn what_is_gone_fits_its_index_wherever_it_is_taken() {
        let mut tree = Tree::create().await;
        let top = tree.chain(String::new(), 1).await.remove(0);
        let c = tree.chain(top.clone(), 19).await;
        tree.delete(&c[1]).await;
        let d = tree.chain(top.clone(), 18).await;
        tree.relocate(&c[0], &d[17]).await;
        tree.delete(&d[1]).await;
        let e = tree.chain(top.clone(), 18).await;
        tree.relocate(&d[0], &e[17]).await;
        for gone in c.iter().chain(&d[1..]) {
            assert_eq!(
                tree.path(gone).await,
                format!("{}~{gone}/", tree.path(&d[0]).await)
            );
        }
        tree.delete(&top).await;
        for gone in c.iter().chain(&d).chain(&e) {
            assert_eq!(tree.path(gone).await, format!("~{gone}/"));
        }
    }
}
