//! The tree of groups and workspaces as the log of `namespace` tells of it, to compare with what the services keep.

use std::collections::{BTreeMap, BTreeSet};

use bed::eventually;
use e2e::{Service, World};
use proto::namespace::v1::Event;
use sqlx::Row as _;

/// Parent and name of each group and workspace that exists, by id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tree(pub(crate) BTreeMap<String, (String, String)>);

impl Tree {
    /// Folds the log.
    pub(crate) async fn read(world: &World) -> Self {
        let mut tree = Self::default();
        for event in world.log(Service::Namespace).await {
            let event = Event::decode(&event.event_type, &event.payload).expect("an event");
            tree.apply(event);
        }
        tree
    }

    fn apply(&mut self, event: Event) {
        match event {
            Event::GroupCreated(group) => {
                self.0.insert(group.group_id, (group.parent_id, group.name));
            }
            Event::WorkspaceCreated(workspace) => {
                let place = (workspace.group_id, workspace.name);
                self.0.insert(workspace.workspace_id, place);
            }
            Event::GroupMoved(group) => {
                let place = (group.new_parent_id, group.name);
                let before = self.0.insert(group.group_id, place).expect("it exists");
                assert_eq!(before.0, group.old_parent_id);
            }
            Event::WorkspaceMoved(workspace) => {
                let place = (workspace.new_group_id, workspace.name);
                let before = self.0.insert(workspace.workspace_id, place);
                assert_eq!(before.expect("it exists").0, workspace.old_group_id);
            }
            Event::GroupDeleted(group) => self.delete(&group.group_id),
            Event::WorkspaceDeleted(workspace) => self.delete(&workspace.workspace_id),
            _ => {}
        }
    }

    fn delete(&mut self, id: &str) {
        self.0.remove(id).expect("it exists");
        let below: Vec<String> = self
            .0
            .iter()
            .filter(|(_, (parent, _))| parent == id)
            .map(|(id, _)| id.clone())
            .collect();
        below.iter().for_each(|id| self.delete(id));
    }

    /// The ids from a thing to the top; panics if that is nowhere.
    pub(crate) fn way_up<'a>(&'a self, id: &'a str) -> Vec<&'a str> {
        let mut way = vec![id];
        while let Some((parent, _)) = way.last().and_then(|last| self.0.get(*last)) {
            assert!(way.len() < 100, "{id} lies below itself");
            if parent.is_empty() {
                return way;
            }
            way.push(parent);
        }
        panic!("{id} lies nowhere: {way:?}");
    }

    /// Names in the longest path.
    pub(crate) fn depth(&self) -> usize {
        let depths = self.0.keys().map(|id| self.way_up(id).len());
        depths.max().unwrap_or(0)
    }

    /// Panics unless each way leads to the top and each name is one thing's.
    pub(crate) fn is_sound(&self) {
        self.depth();
        let places: BTreeSet<_> = self.0.values().collect();
        assert_eq!(places.len(), self.0.len(), "a name is used twice");
    }

    /// What is right below, by what it is and what contains it: `subgroups/grp_…`.
    fn counts(&self) -> BTreeMap<String, i64> {
        let mut counts = BTreeMap::new();
        for (id, (parent, _)) in self.0.iter().filter(|(_, (parent, _))| !parent.is_empty()) {
            let what = if id.starts_with("grp_") {
                "subgroups"
            } else {
                "workspaces"
            };
            *counts.entry(format!("{what}/{parent}")).or_default() += 1;
        }
        counts
    }
}

/// Every service keeps the tree that the log tells of, as soon as it has followed it.
pub(crate) async fn is_the_same_everywhere(world: &World) -> Tree {
    let tree = Tree::read(world).await;
    tree.is_sound();
    for (service, facts) in [
        (Service::Namespace, "facts"),
        (Service::Identity, "facts"),
        (Service::Issuer, "facts"),
        (Service::Projector, "directory_v10.facts"),
    ] {
        eventually(async || {
            let kept = kept_tree(&tree, &facts_of(world, service, facts, "node/").await);
            if kept == tree {
                Ok(())
            } else {
                Err(format!("{service:?} keeps {kept:?}, the log has {tree:?}"))
            }
        })
        .await;
    }
    let facts = facts_of(world, Service::Namespace, "facts", "").await;
    let counted = facts.into_iter().filter_map(|(key, value)| {
        let (what, group) = key.split_once('/')?;
        let counts = ["subgroups", "workspaces"].contains(&what) && tree.0.contains_key(group);
        counts.then(|| (key.clone(), value.parse::<i64>().expect("a count")))
    });
    assert_eq!(counted.collect::<BTreeMap<_, _>>(), tree.counts());
    tree
}

/// The nodes that have a way to the top; those below what is gone have none any more.
fn kept_tree(told: &Tree, nodes: &BTreeMap<String, String>) -> Tree {
    let ours = nodes.iter().filter_map(|(key, value)| {
        let id = key.strip_prefix("node/")?;
        let ours = id.starts_with("grp_") || id.starts_with("ws_");
        let (parent, name) = value.split_once('/')?;
        ours.then(|| (id.to_owned(), (parent.to_owned(), name.to_owned())))
    });
    let all: BTreeMap<_, _> = ours.collect();
    let reaches_top = |id: &str| {
        let mut at = id;
        // A loop is no way to the top either.
        for _ in 0..100 {
            match all.get(at) {
                Some((parent, _)) if parent.is_empty() => return true,
                Some((parent, _)) => at = parent,
                None => return false,
            }
        }
        assert!(!told.0.contains_key(id), "{id} lies below itself");
        false
    };
    let live = all.iter().filter(|(id, _)| reaches_top(id));
    Tree(
        live.map(|(id, place)| (id.clone(), place.clone()))
            .collect(),
    )
}

/// The facts of a service that start so.
pub(crate) async fn facts_of(
    world: &World,
    service: Service,
    table: &str,
    prefix: &str,
) -> BTreeMap<String, String> {
    let query = format!("SELECT key, value FROM {table} WHERE starts_with(key, $1)");
    let rows = sqlx::query(sqlx::AssertSqlSafe(query))
        .bind(prefix)
        .fetch_all(world.database(service).pool())
        .await
        .expect("facts can be read");
    let fact = |row: &sqlx::postgres::PgRow| (row.get("key"), row.get("value"));
    rows.iter().map(fact).collect()
}
