//! The hierarchy as facts: what is above what, what it is called, who has which role where.
//!
//! One scheme of keys for the service that owns a thing, which writes its facts in the append's own transaction, and
//! for those that keep a replica, which write the same facts from the same events. So both decide alike.

mod changes;
mod keys;

use eventlog::Guard;
use model::{Kind, Principal, Reference, ResourceId, Role, TeamId, Trn, trn::Last};
use sqlx::PgPool;

pub use self::changes::*;
use self::keys::TEAM_NAME;
pub use self::keys::*;
use crate::roles::{Found, Grant, teams_of};

/// A resource that exists, with everything above it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The resource itself first, then what is above it, to the top.
    pub nodes: Vec<Node>,
    /// The asking principal's role here: the highest of the nearest memberships of it and of its teams.
    pub role: Option<Role>,
    /// What that role rests on: the fact of that membership, that nothing nearer overrules it, and that the principal
    /// is in the team that has it. Nothing for a role that the configuration gives.
    pub granted_by: Vec<(String, Option<String>)>,
    /// The memberships that count here, the one that gives the role first.
    pub grants: Vec<Grant>,
}

/// A resource in a [`Place`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its id.
    pub id: ResourceId,
    /// Its name; empty for what has none.
    pub name: String,
}

impl Place {
    /// The resource itself.
    #[must_use]
    pub fn id(&self) -> ResourceId {
        self.nodes[0].id
    }

    /// The names from the top, joined by `/`.
    #[must_use]
    pub fn path(&self) -> String {
        self.path_of(0)
    }

    /// The same of one of the nodes.
    #[must_use]
    pub fn path_of(&self, node: usize) -> String {
        let names: Vec<&str> = self
            .nodes
            .iter()
            .skip(node)
            .rev()
            .map(|node| node.name.as_str())
            .filter(|name| !name.is_empty())
            .collect();
        names.join("/")
    }

    /// What the principal may know of it: its path, or without a role here its id alone.
    #[must_use]
    pub fn shown(&self) -> String {
        if self.role.is_some() {
            self.path()
        } else {
            self.id().to_string()
        }
    }

    /// The name that people give it.
    #[must_use]
    pub fn trn(&self) -> String {
        match self.id().kind() {
            kind @ (Kind::Membership
            | Kind::Job
            | Kind::SigningKey
            | Kind::AccessRule
            | Kind::Mask) => {
                format!("trn:{kind}:{}/{}", self.path(), self.id())
            }
            kind => format!("trn:{kind}:{}", self.path()),
        }
    }

    /// Of the group right above, or of the workspace.
    #[must_use]
    pub fn parent(&self) -> Option<ResourceId> {
        self.nodes.get(1).map(|node| node.id)
    }

    /// What is above everything else here: the top-level group.
    #[must_use]
    pub fn top(&self) -> ResourceId {
        self.nodes[self.nodes.len() - 1].id
    }

    /// The place right above, with the role that the principal has here.
    #[must_use]
    pub fn above(&self) -> Option<Self> {
        let nodes = self.nodes.get(1..).filter(|nodes| !nodes.is_empty())?;
        Some(Self {
            nodes: nodes.to_vec(),
            ..self.clone()
        })
    }

    /// Whether the resource is this one or below it.
    #[must_use]
    pub fn is_within(&self, id: ResourceId) -> bool {
        self.nodes.iter().any(|node| node.id == id)
    }

    /// Whether a service account can be of use here: its group is this place or above it.
    #[must_use]
    pub fn is_in_reach_of(&self, account: &Self) -> bool {
        account.parent().is_some_and(|group| self.is_within(group))
    }

    /// What must still hold when the append is made: everything from here to the top is where it was, and the
    /// membership that gives the role still does.
    #[must_use]
    pub fn guards(&self) -> Vec<Guard> {
        let granted_by = self.granted_by.iter().cloned();
        let granted_by = granted_by.map(|(key, value)| Guard::Expect { key, value });
        self.existence().into_iter().chain(granted_by).collect()
    }

    /// The same, whatever the asking principal's role: everything from here to the top is where it was.
    #[must_use]
    pub fn existence(&self) -> Vec<Guard> {
        let parents = self
            .nodes
            .iter()
            .skip(1)
            .map(|node| node.id.to_string())
            .chain([String::new()]);
        let nodes = self.nodes.iter().zip(parents);
        let way_up = nodes
            .map(|(node, parent)| (node_key(node.id), Some(format!("{parent}/{}", node.name))));
        way_up
            .map(|(key, value)| Guard::Expect { key, value })
            .collect()
    }
}

/// Reads the hierarchy from a service's facts. Cheap to clone.
#[derive(Clone)]
pub struct Hierarchy {
    pool: PgPool,
}

/// More than the depth of any hierarchy: a loop in the data must not become one of ours.
const MAX_DEPTH: i32 = 64;

impl Hierarchy {
    /// The facts of this database.
    #[must_use]
    pub fn new(pool: PgPool) -> Self {
        Self { pool }
    }

    /// The place of a resource, and the principal's role there. `None` if it does not exist.
    pub async fn locate(
        &self,
        id: ResourceId,
        principal: &Principal,
    ) -> sqlx::Result<Option<Place>> {
        let own = principal.resource().map(|id| id.to_string());
        let (teams_from, teams_to) = teams_of(principal);
        let rows = sqlx::query!(
            r#"WITH RECURSIVE up (id, value, depth) AS (
                   SELECT $1::text COLLATE "C", value, 0 FROM facts WHERE key = 'node/' || $1
                   UNION ALL
                   SELECT split_part(up.value, '/', 1), above.value, depth + 1
                   FROM up JOIN facts above ON above.key = 'node/' || split_part(up.value, '/', 1)
                   WHERE depth < $3
               ), way (id, value, depth) AS (
                   SELECT $6::text COLLATE "C", value, 0 FROM facts WHERE key = 'node/' || $6
                   UNION ALL
                   SELECT split_part(way.value, '/', 1), above.value, depth + 1
                   FROM way JOIN facts above ON above.key = 'node/' || split_part(way.value, '/', 1)
                   WHERE depth < $3
               ), teams (id, node) AS MATERIALIZED (
                   -- Each a look at one key: nothing that a plan could turn into reading all facts.
                   SELECT id, (SELECT node.value FROM facts node WHERE node.key = 'node/' || id)
                   FROM (SELECT substr(key, length($4) + 1) AS id FROM facts WHERE key > $4 AND key < $5) AS of_principal
                   WHERE strpos(id, '/') = 0
               )
               SELECT id AS "id!", value AS "value!",
                      (SELECT member.value FROM facts member WHERE member.key = 'member/' || up.id || '/' || $2) AS member,
                      ARRAY(
                          SELECT held FROM (
                              SELECT teams.id || teams.node || '/' || (
                                  SELECT member.value FROM facts member
                                  WHERE member.key = 'member/' || up.id || '/team:' || teams.id
                              ) AS held
                              FROM teams
                          ) AS of_teams
                          WHERE held IS NOT NULL
                      ) AS "teams!: Vec<String>",
                      ARRAY(SELECT way.id || '/' || way.value FROM way ORDER BY way.depth) AS "way!: Vec<String>"
               FROM up ORDER BY depth"#,
            id.to_string(),
            principal.to_string(),
            MAX_DEPTH,
            teams_from,
            teams_to,
            own.unwrap_or_default()
        )
        .fetch_all(&self.pool)
        .await?;
        let Some(nodes) = nodes(rows.iter().map(|row| (&row.id, &row.value)))? else {
            return Ok(None);
        };
        let found = Found {
            principal,
            nodes: rows.iter().map(|row| row.id.as_str()).collect(),
            own: rows.iter().map(|row| row.member.as_deref()).collect(),
            teams: rows.iter().map(|row| row.teams.as_slice()).collect(),
            way: rows.first().map_or(&[], |row| row.way.as_slice()),
        };
        let (grants, granted_by) = found.grants();
        Ok(Some(Place {
            nodes,
            role: grants.first().map(|grant| grant.role),
            granted_by,
            grants,
        }))
    }

    /// The place of a resource, whoever asks. `None` if it does not exist.
    pub async fn way_up(&self, id: ResourceId) -> sqlx::Result<Option<Place>> {
        let rows = sqlx::query!(
            r#"WITH RECURSIVE up (id, value, depth) AS (
                   SELECT $1::text COLLATE "C", value, 0 FROM facts WHERE key = 'node/' || $1
                   UNION ALL
                   SELECT split_part(up.value, '/', 1), above.value, depth + 1
                   FROM up JOIN facts above ON above.key = 'node/' || split_part(up.value, '/', 1)
                   WHERE depth < $2
               )
               SELECT id AS "id!", value AS "value!" FROM up ORDER BY depth"#,
            id.to_string(),
            MAX_DEPTH
        )
        .fetch_all(&self.pool)
        .await?;
        let nodes = nodes(rows.iter().map(|row| (&row.id, &row.value)))?;
        Ok(nodes.map(|nodes| Place {
            nodes,
            role: None,
            granted_by: vec![],
            grants: vec![],
        }))
    }

    /// The id of what a request names. `None` if there is no such thing; an id is not looked up.
    pub async fn resolve(&self, reference: &Reference) -> sqlx::Result<Option<ResourceId>> {
        match reference {
            Reference::Id(id)
            | Reference::Trn(Trn {
                last: Last::Id(id), ..
            }) => Ok(Some(*id)),
            Reference::Trn(trn) => self.walk(trn).await,
        }
    }

    /// The groups and workspaces below a group, each with how many levels below: as the names lead down, so that what
    /// lay below a group when it was deleted is found from there still.
    pub async fn below(&self, group: ResourceId) -> sqlx::Result<Vec<(ResourceId, usize)>> {
        let rows = sqlx::query!(
            r#"WITH RECURSIVE below (id, level) AS (
                   SELECT $1::text COLLATE "C", 0
                   UNION ALL
                   SELECT named.value, level + 1
                   FROM below CROSS JOIN LATERAL (
                       -- What is right below: 0 follows on / in the order of the keys. Of each by itself (OFFSET): a plan
                       -- that knows neither how many there are nor what they are called reads all facts for each.
                       SELECT value FROM facts
                       WHERE key > 'name/' || below.id || '/' AND key < 'name/' || below.id || '0' OFFSET 0
                   ) named
                   WHERE level < $2
               )
               SELECT id AS "id!", level AS "level!" FROM below WHERE level > 0"#,
            group.to_string(),
            MAX_DEPTH
        )
        .fetch_all(&self.pool)
        .await?;
        let below = rows.into_iter().map(|row| {
            let id = row.id.parse().map_err(|error| {
                let error: model::id::InvalidId = error;
                sqlx::Error::Decode(error.into())
            })?;
            Ok((id, usize::try_from(row.level).unwrap_or_default()))
        });
        below.collect()
    }

    /// As whom a principal may see and do things: itself, unless it is gone, and its teams.
    pub async fn acts_as(&self, principal: &Principal) -> sqlx::Result<Vec<Principal>> {
        if let Some(id) = principal.resource()
            && self.locate(id, principal).await?.is_none()
        {
            return Ok(vec![]);
        }
        let (from, to) = teams_of(principal);
        let teams = sqlx::query_scalar!(
            r#"SELECT id AS "id!" FROM (SELECT substr(key, length($1) + 1) AS id FROM facts WHERE key > $1 AND key < $2)
                   AS of_principal
               WHERE strpos(id, '/') = 0 AND (SELECT node.key FROM facts node WHERE node.key = 'node/' || id) IS NOT NULL"#,
            from,
            to
        )
        .fetch_all(&self.pool)
        .await?;
        let teams = teams.iter().filter_map(|id| id.parse::<TeamId>().ok());
        Ok([principal.clone()]
            .into_iter()
            .chain(teams.map(Principal::Team))
            .collect())
    }

    /// The facts `<prefix><id>/…` of a group or workspace and of everything below it, as the names lead down.
    pub async fn facts_below(
        &self,
        id: ResourceId,
        prefix: &str,
    ) -> sqlx::Result<Vec<(String, String)>> {
        let rows = sqlx::query!(
            r#"WITH RECURSIVE below (id, level) AS (
                   SELECT $1::text COLLATE "C", 0
                   UNION ALL
                   SELECT named.value, level + 1
                   FROM below CROSS JOIN LATERAL (
                       -- See `below`.
                       SELECT value FROM facts
                       WHERE key > 'name/' || below.id || '/' AND key < 'name/' || below.id || '0' OFFSET 0
                   ) named
                   WHERE level < $3
               )
               SELECT fact.key AS "key!", fact.value AS "value!"
               FROM below CROSS JOIN LATERAL (
                   SELECT key, value FROM facts
                   WHERE key > $2 || below.id || '/' AND key < $2 || below.id || '0' OFFSET 0
               ) fact
               ORDER BY fact.key"#,
            id.to_string(),
            prefix,
            MAX_DEPTH
        )
        .fetch_all(&self.pool)
        .await?;
        let facts = rows.into_iter().map(|row| (row.key, row.value));
        Ok(facts.collect())
    }

    async fn walk(&self, trn: &Trn) -> sqlx::Result<Option<ResourceId>> {
        let Last::Name(last) = &trn.last else {
            return Ok(None);
        };
        let names: Vec<String> = trn
            .parents
            .iter()
            .chain([last])
            .map(ToString::to_string)
            .collect();
        let last_prefix = match trn.kind {
            Kind::ManagedIdentity => "identity-name/",
            Kind::ServiceAccount => SERVICE_ACCOUNT_NAMES,
            Kind::Team => TEAM_NAME,
            _ => "name/",
        };
        let found = sqlx::query_scalar!(
            r#"WITH RECURSIVE down (id, depth) AS (
                   SELECT ''::text COLLATE "C", 0
                   UNION ALL
                   SELECT below.value, depth + 1
                   FROM down JOIN facts below ON below.key =
                       CASE WHEN depth + 1 = cardinality($1::text[]) THEN $2 ELSE 'name/' END
                       || down.id || '/' || ($1::text[])[depth + 1]
               )
               SELECT id AS "id!" FROM down WHERE depth = cardinality($1::text[])"#,
            &names,
            last_prefix
        )
        .fetch_optional(&self.pool)
        .await?;
        Ok(found
            .and_then(|id| id.parse::<ResourceId>().ok())
            .filter(|id| id.kind() == trn.kind))
    }
}

/// The nodes from a resource to the top, by their ids and facts. `None` if they don't reach it.
fn nodes<'a>(
    way_up: impl DoubleEndedIterator<Item = (&'a String, &'a String)> + Clone,
) -> sqlx::Result<Option<Vec<Node>>> {
    let top = way_up.clone().next_back();
    if !top.is_some_and(|(_, value)| value.starts_with('/')) {
        return Ok(None);
    }
    let nodes = way_up.map(|(id, value)| {
        let name = value.split_once('/').map_or("", |(_, name)| name);
        let id = id.parse();
        Ok(Node {
            id: id.map_err(|error: model::id::InvalidId| sqlx::Error::Decode(error.into()))?,
            name: name.to_owned(),
        })
    });
    nodes.collect::<sqlx::Result<_>>().map(Some)
}
