//! The read models come out the same whichever log arrives first, and however the events are cut into batches.

use std::collections::BTreeMap;

use bed::Database;
use eventlog::{Fold as _, Metadata, RecordedEvent};
use projector::fold::Directory;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use proto::access::v1 as access;
use proto::identity::v1 as identity;
use proto::namespace::v1 as namespace;
use sqlx::{AssertSqlSafe, PgConnection, PgPool};
use time::OffsetDateTime;
use uuid::Uuid;

const TABLES: [&str; 11] = [
    "namespaces",
    "managed_identities",
    "assignments",
    "masks",
    "facts",
    "places",
    "members",
    "teams",
    "team_members",
    "service_accounts",
    "activities",
];
/// The groups and workspaces, each at the path to which its names lead, that are not in `places` so; and the other way
/// round. And what is gone and does not lie right below a group that is there, or at the top.
const MISPLACED: &str = "WITH RECURSIVE down (id, path) AS (
        SELECT id, name || '/' FROM namespaces WHERE parent_id = ''
        UNION ALL
        SELECT below.id, down.path || below.name || '/' FROM namespaces below JOIN down ON below.parent_id = down.id
    )
    SELECT coalesce(down.path, places.path) FROM down
    FULL JOIN (SELECT * FROM places WHERE NOT gone) places ON places.id = down.id AND places.path = down.path
    WHERE down.id IS NULL OR places.id IS NULL
    UNION ALL
    SELECT path FROM places WHERE gone AND NOT EXISTS (
        SELECT FROM (SELECT path FROM places WHERE NOT gone UNION ALL SELECT '') above
        WHERE places.path = above.path || '~' || places.id || '/'
    )";
const NAMES: [&str; 3] = ["a", "b", "c"];

/// Something that someone does; the numbers choose among what there is.
#[derive(Clone, Copy, Debug)]
enum Deed {
    MakeGroup(usize, usize),
    MakeWorkspace(usize, usize),
    Describe(usize),
    Move(usize, usize),
    DeleteGroup(usize),
    DeleteWorkspace(usize),
    MakeMembership(usize, usize),
    ChangeMembership(usize),
    DeleteMembership(usize),
    MakeIdentity(usize, usize),
    UpdateIdentity(usize),
    DeleteIdentity(usize),
    Assign(usize, usize),
    Unassign(usize),
    MoveIdentity(usize, usize),
    MakeAlias(usize, usize, usize),
    DeleteAlias(usize),
    MakeRule(usize),
    DeleteRule(usize),
    MakeMask(usize, usize),
    DeleteMask(usize),
    MakeTeam(usize),
    DescribeTeam(usize),
    JoinTeam(usize, usize),
    LeaveTeam(usize, usize),
    DeleteTeam(usize),
    MakeServiceAccount(usize, usize),
    UpdateServiceAccount(usize),
    DeleteServiceAccount(usize),
}

fn deed() -> impl Strategy<Value = Deed> {
    use Deed::{
        Assign, ChangeMembership, DeleteGroup, DeleteIdentity, DeleteMembership, DeleteRule,
        DeleteWorkspace, Describe, MakeGroup, MakeIdentity, MakeMembership, MakeRule,
        MakeWorkspace, Move, MoveIdentity, Unassign, UpdateIdentity,
    };
    let number = || 0..100_usize;
    prop_oneof![
        5 => (number(), number()).prop_map(|(a, b)| MakeGroup(a, b)),
        4 => (number(), number()).prop_map(|(a, b)| MakeWorkspace(a, b)),
        2 => number().prop_map(Describe),
        4 => (number(), number()).prop_map(|(a, b)| Move(a, b)),
        2 => number().prop_map(DeleteGroup),
        1 => number().prop_map(DeleteWorkspace),
        2 => (number(), number()).prop_map(|(a, b)| MakeMembership(a, b)),
        1 => number().prop_map(ChangeMembership),
        1 => number().prop_map(DeleteMembership),
        3 => (number(), number()).prop_map(|(a, b)| MakeIdentity(a, b)),
        2 => number().prop_map(UpdateIdentity),
        1 => number().prop_map(DeleteIdentity),
        3 => (number(), number()).prop_map(|(a, b)| Assign(a, b)),
        1 => number().prop_map(Unassign),
        1 => (number(), number()).prop_map(|(a, b)| MoveIdentity(a, b)),
        2 => (number(), number(), number()).prop_map(|(a, b, c)| Deed::MakeAlias(a, b, c)),
        1 => number().prop_map(Deed::DeleteAlias),
        1 => number().prop_map(MakeRule),
        1 => number().prop_map(DeleteRule),
        2 => (number(), number()).prop_map(|(a, b)| Deed::MakeMask(a, b)),
        1 => number().prop_map(Deed::DeleteMask),
        1 => number().prop_map(Deed::MakeTeam),
        1 => number().prop_map(Deed::DescribeTeam),
        3 => (number(), number()).prop_map(|(a, b)| Deed::JoinTeam(a, b)),
        1 => (number(), number()).prop_map(|(a, b)| Deed::LeaveTeam(a, b)),
        1 => number().prop_map(Deed::DeleteTeam),
        2 => (number(), number()).prop_map(|(a, b)| Deed::MakeServiceAccount(a, b)),
        1 => number().prop_map(Deed::UpdateServiceAccount),
        1 => number().prop_map(Deed::DeleteServiceAccount),
    ]
}

/// What there is, and the two logs that tell of it. Ids are the order in which things were made.
#[derive(Default)]
struct History {
    made: usize,
    /// Parent and name, by id.
    groups: BTreeMap<String, (String, String)>,
    workspaces: BTreeMap<String, (String, String)>,
    /// Namespace and user, by id.
    memberships: BTreeMap<String, (String, String)>,
    identities: BTreeMap<String, (String, String)>,
    /// Group, name and source, by id.
    aliases: BTreeMap<String, (String, String, String)>,
    assignments: Vec<(String, String)>,
    /// The identity, by id.
    rules: BTreeMap<String, String>,
    /// The group or workspace, by id.
    masks: BTreeMap<String, String>,
    /// Name and members, by id.
    teams: BTreeMap<String, (String, Vec<String>)>,
    /// Group and name, by id.
    accounts: BTreeMap<String, (String, String)>,
    namespace: Vec<RecordedEvent>,
    identity: Vec<RecordedEvent>,
}

fn pick<K: Clone, V>(from: &BTreeMap<K, V>, number: usize) -> Option<K> {
    from.keys().nth(number.checked_rem(from.len())?).cloned()
}

fn record(log: &mut Vec<RecordedEvent>, stream: String, event_type: &str, payload: Vec<u8>) {
    let position = log.len() as u64 + 1;
    let version = 1 + log.iter().filter(|event| event.stream_id == stream).count() as u64;
    log.push(RecordedEvent {
        position,
        stream_id: stream,
        version,
        id: Uuid::from_u128(u128::from(position)),
        event_type: event_type.to_owned(),
        payload: payload.into(),
        metadata: Metadata::default(),
        recorded_at: OffsetDateTime::UNIX_EPOCH + time::Duration::seconds(position.cast_signed()),
    });
}

impl History {
    fn of(deeds: &[Deed]) -> Self {
        let mut history = Self::default();
        deeds.iter().for_each(|deed| history.happens(*deed));
        history
    }

    /// No TypeID; here it only has to be one of its own.
    fn id(&mut self, prefix: &str) -> String {
        self.made += 1;
        format!("{prefix}_{}", self.made)
    }

    fn name_is_taken(&self, parent: &str, name: &str) -> bool {
        let both = self.groups.values().chain(self.workspaces.values());
        let wanted = (parent.to_owned(), name.to_owned());
        both.into_iter().any(|taken| *taken == wanted)
    }

    fn namespace(&mut self, aggregate: &str, id: &str, event: impl Into<namespace::Event>) {
        let event = event.into();
        let stream = format!("{aggregate}/{id}");
        record(
            &mut self.namespace,
            stream,
            event.event_type(),
            event.encode(),
        );
    }

    fn identity(&mut self, aggregate: &str, id: &str, event: impl Into<identity::Event>) {
        let event = event.into();
        let stream = format!("{aggregate}/{id}");
        record(
            &mut self.identity,
            stream,
            event.event_type(),
            event.encode(),
        );
    }

    /// What can't be done as things are is left out.
    fn happens(&mut self, deed: Deed) {
        match deed {
            Deed::MakeGroup(at, name) => self.make_group(at, name),
            Deed::MakeWorkspace(at, name) => self.make_workspace(at, name),
            Deed::Describe(number) => self.describe(number),
            Deed::Move(number, to) => self.relocate(number, to),
            Deed::DeleteGroup(number) => self.delete_group(number),
            Deed::DeleteWorkspace(number) => self.delete_workspace(number),
            Deed::MakeMembership(at, user) => self.make_membership(at, user),
            Deed::ChangeMembership(number) => self.change_membership(number, true),
            Deed::DeleteMembership(number) => self.change_membership(number, false),
            Deed::MakeIdentity(at, name) => self.make_identity(at, name),
            Deed::UpdateIdentity(number) => self.update_identity(number),
            Deed::DeleteIdentity(number) => self.delete_identity(number),
            Deed::Assign(identity, workspace) => self.assign(identity, workspace),
            Deed::Unassign(number) => self.unassign(number),
            Deed::MoveIdentity(identity, to) => self.move_identity(identity, to),
            Deed::MakeAlias(source, at, name) => self.make_alias(source, at, name),
            Deed::DeleteAlias(number) => self.delete_alias(number),
            Deed::MakeRule(identity) => self.make_rule(identity),
            Deed::DeleteRule(number) => self.delete_rule(number),
            Deed::MakeMask(at, what) => self.make_mask(at, what),
            Deed::DeleteMask(number) => self.delete_mask(number),
            Deed::MakeTeam(name) => self.make_team(name),
            Deed::DescribeTeam(number) => self.describe_team(number),
            Deed::JoinTeam(team, user) => self.join_team(team, user),
            Deed::LeaveTeam(team, user) => self.leave_team(team, user),
            Deed::DeleteTeam(number) => self.delete_team(number),
            Deed::MakeServiceAccount(at, name) => self.make_service_account(at, name),
            Deed::UpdateServiceAccount(number) => self.update_service_account(number),
            Deed::DeleteServiceAccount(number) => self.delete_service_account(number),
        }
    }

    fn make_group(&mut self, at: usize, name: usize) {
        let name = NAMES[name % NAMES.len()].to_owned();
        // One in five is at the top.
        let parent = if at.is_multiple_of(5) {
            None
        } else {
            pick(&self.groups, at)
        }
        .unwrap_or_default();
        if self.name_is_taken(&parent, &name) {
            return;
        }
        let id = self.id("grp");
        self.groups
            .insert(id.clone(), (parent.clone(), name.clone()));
        let event = namespace::GroupCreated {
            group_id: id.clone(),
            parent_id: parent,
            name,
            description: String::new(),
        };
        self.namespace("group", &id, event);
    }

    fn make_workspace(&mut self, at: usize, name: usize) {
        let name = NAMES[name % NAMES.len()].to_owned();
        let Some(group) = pick(&self.groups, at).filter(|group| !self.name_is_taken(group, &name))
        else {
            return;
        };
        let id = self.id("ws");
        self.workspaces
            .insert(id.clone(), (group.clone(), name.clone()));
        let event = namespace::WorkspaceCreated {
            workspace_id: id.clone(),
            group_id: group,
            name,
            description: id.clone(),
            max_job_duration: None,
            initial_assignments: None,
        };
        self.namespace("workspace", &id, event);
    }

    fn describe(&mut self, number: usize) {
        let description = format!("change {}", self.namespace.len());
        if let Some(group_id) = pick(&self.groups, number).filter(|_| number.is_multiple_of(2)) {
            let event = namespace::GroupUpdated {
                group_id: group_id.clone(),
                description,
            };
            self.namespace("group", &group_id, event);
        } else if let Some(workspace_id) = pick(&self.workspaces, number) {
            let max_job_duration = number.is_multiple_of(3).then_some(prost_types::Duration {
                seconds: 60,
                nanos: 0,
            });
            let event = namespace::WorkspaceUpdated {
                workspace_id: workspace_id.clone(),
                description,
                max_job_duration,
            };
            self.namespace("workspace", &workspace_id, event);
        }
    }

    /// Groups more often than workspaces, and one in five to the top.
    fn relocate(&mut self, number: usize, to: usize) {
        let to = if to.is_multiple_of(5) {
            String::new()
        } else {
            pick(&self.groups, to).unwrap_or_default()
        };
        if number.is_multiple_of(3) {
            self.move_workspace(number, to);
        } else {
            self.move_group(number, to);
        }
    }

    fn move_group(&mut self, number: usize, to: String) {
        let Some(id) = pick(&self.groups, number) else {
            return;
        };
        let (from, name) = self.groups[&id].clone();
        let mut above = Some(&to);
        while let Some(group) = above.filter(|group| !group.is_empty()) {
            if *group == id {
                return;
            }
            above = self.groups.get(group).map(|(parent, _)| parent);
        }
        if from == to || self.name_is_taken(&to, &name) {
            return;
        }
        self.groups.insert(id.clone(), (to.clone(), name.clone()));
        let event = namespace::GroupMoved {
            group_id: id.clone(),
            old_parent_id: from,
            new_parent_id: to,
            name,
        };
        self.namespace("group", &id, event);
    }

    fn move_workspace(&mut self, number: usize, to: String) {
        let Some(id) = pick(&self.workspaces, number).filter(|_| !to.is_empty()) else {
            return;
        };
        let (from, name) = self.workspaces[&id].clone();
        if from == to || self.name_is_taken(&to, &name) {
            return;
        }
        self.workspaces
            .insert(id.clone(), (to.clone(), name.clone()));
        let event = namespace::WorkspaceMoved {
            workspace_id: id.clone(),
            old_group_id: from,
            new_group_id: to,
            name,
        };
        self.namespace("workspace", &id, event);
    }

    fn delete_group(&mut self, number: usize) {
        let Some(id) = pick(&self.groups, number) else {
            return;
        };
        let (parent_id, name) = self.groups[&id].clone();
        let mut gone = vec![id.clone()];
        while let Some(group) = gone.pop() {
            self.groups.remove(&group);
            gone.extend(
                self.groups
                    .iter()
                    .filter(|(_, (parent, _))| *parent == group)
                    .map(|(id, _)| id.clone()),
            );
            self.workspaces.retain(|_, (parent, _)| *parent != group);
        }
        self.namespace(
            "group",
            &id,
            namespace::GroupDeleted {
                group_id: id.clone(),
                parent_id,
                name,
            },
        );
    }

    fn delete_workspace(&mut self, number: usize) {
        let Some(id) = pick(&self.workspaces, number) else {
            return;
        };
        let Some((group_id, name)) = self.workspaces.remove(&id) else {
            return;
        };
        self.namespace(
            "workspace",
            &id,
            namespace::WorkspaceDeleted {
                workspace_id: id.clone(),
                group_id,
                name,
            },
        );
    }

    fn make_membership(&mut self, at: usize, user: usize) {
        let user = format!("dev/{}", NAMES[user % NAMES.len()]);
        let Some(namespace_id) = pick(&self.groups, at) else {
            return;
        };
        let wanted = (namespace_id.clone(), user.clone());
        if self.memberships.values().any(|taken| *taken == wanted) {
            return;
        }
        let id = self.id("mbr");
        self.memberships.insert(id.clone(), wanted);
        let event = namespace::MembershipCreated {
            membership_id: id.clone(),
            namespace_id,
            principal: Some(principal(user)),
            role: access::Role::Viewer.into(),
        };
        self.namespace("membership", &id, event);
    }

    fn change_membership(&mut self, number: usize, stays: bool) {
        let Some(id) = pick(&self.memberships, number) else {
            return;
        };
        let (namespace_id, user) = self.memberships[&id].clone();
        if !self.groups.contains_key(&namespace_id) {
            return;
        }
        let (membership_id, principal) = (id.clone(), Some(principal(user)));
        if stays {
            let role = access::Role::Owner.into();
            self.namespace(
                "membership",
                &id,
                namespace::MembershipUpdated {
                    membership_id,
                    namespace_id,
                    principal,
                    role,
                },
            );
        } else {
            self.memberships.remove(&id);
            self.namespace(
                "membership",
                &id,
                namespace::MembershipDeleted {
                    membership_id,
                    namespace_id,
                    principal,
                },
            );
        }
    }

    fn make_identity(&mut self, at: usize, name: usize) {
        let name = NAMES[name % NAMES.len()].to_owned();
        let Some(group_id) = pick(&self.groups, at) else {
            return;
        };
        if self.identity_name_is_taken(&group_id, &name) {
            return;
        }
        let wanted = (group_id.clone(), name.clone());
        let id = self.id("mi");
        self.identities.insert(id.clone(), wanted);
        let event = identity::ManagedIdentityCreated {
            managed_identity_id: id.clone(),
            group_id,
            name,
            description: String::new(),
            configuration: Some(aws("first")),
            token_settings: None,
        };
        self.identity("managed_identity", &id, event);
    }

    fn update_identity(&mut self, number: usize) {
        let Some(id) = pick(&self.identities, number) else {
            return;
        };
        let event = identity::ManagedIdentityUpdated {
            managed_identity_id: id.clone(),
            description: format!("change {}", self.identity.len()),
            configuration: Some(aws("other")),
            token_settings: Some(identity::TokenSettings {
                subject_mode: identity::SubjectMode::IdentityAndStage.into(),
                ..Default::default()
            }),
        };
        self.identity("managed_identity", &id, event);
    }

    fn delete_identity(&mut self, number: usize) {
        let Some(id) = pick(&self.identities, number) else {
            return;
        };
        let Some((group_id, name)) = self.identities.remove(&id) else {
            return;
        };
        let event = identity::ManagedIdentityDeleted {
            managed_identity_id: id.clone(),
            group_id,
            name,
        };
        self.identity("managed_identity", &id, event);
        let orphans = self.aliases.iter();
        let orphans = orphans.filter(|(_, (_, _, source))| *source == id);
        let orphans: Vec<_> = orphans.map(|(alias, _)| alias.clone()).collect();
        orphans.into_iter().for_each(|alias| self.end_alias(&alias));
    }

    fn assign(&mut self, identity: usize, workspace: usize) {
        let alias = pick(&self.aliases, identity / 2).filter(|_| identity.is_multiple_of(2));
        let (Some(identity), Some(workspace)) = (
            alias.or_else(|| pick(&self.identities, identity)),
            pick(&self.workspaces, workspace),
        ) else {
            return;
        };
        let pair = (workspace.clone(), identity.clone());
        if self.assignments.contains(&pair) {
            return;
        }
        self.assignments.push(pair);
        let event = identity::ManagedIdentityAssigned {
            managed_identity_id: identity,
            workspace_id: workspace.clone(),
        };
        self.identity("assignment", &workspace, event);
    }

    fn unassign(&mut self, number: usize) {
        if self.assignments.is_empty() {
            return;
        }
        let (workspace, identity) = self.assignments.remove(number % self.assignments.len());
        let event = identity::ManagedIdentityUnassigned {
            managed_identity_id: identity,
            workspace_id: workspace.clone(),
        };
        self.identity("assignment", &workspace, event);
    }
}

impl History {
    fn move_identity(&mut self, identity: usize, to: usize) {
        let (Some(id), Some(to)) = (pick(&self.identities, identity), pick(&self.groups, to))
        else {
            return;
        };
        let (from, name) = self.identities[&id].clone();
        if self.identity_name_is_taken(&to, &name) {
            return;
        }
        let wanted = (to.clone(), name.clone());
        self.identities.insert(id.clone(), wanted);
        let event = identity::ManagedIdentityMoved {
            managed_identity_id: id.clone(),
            old_group_id: from,
            new_group_id: to,
            name,
        };
        self.identity("managed_identity", &id, event);
    }

    fn identity_name_is_taken(&self, group: &str, name: &str) -> bool {
        let own = self.identities.values().map(|(group, name)| (group, name));
        let aliases = self.aliases.values().map(|(group, name, _)| (group, name));
        own.chain(aliases)
            .any(|(taken_in, taken)| taken_in == group && taken == name)
    }

    fn make_alias(&mut self, source: usize, at: usize, name: usize) {
        let name = NAMES[name % NAMES.len()].to_owned();
        let (Some(source_id), Some(group_id)) =
            (pick(&self.identities, source), pick(&self.groups, at))
        else {
            return;
        };
        if self.identity_name_is_taken(&group_id, &name) {
            return;
        }
        let id = self.id("mi");
        let made = (group_id.clone(), name.clone(), source_id.clone());
        self.aliases.insert(id.clone(), made);
        let event = identity::ManagedIdentityAliasCreated {
            managed_identity_id: id.clone(),
            group_id,
            name,
            source_id,
            r#type: "aws".to_owned(),
        };
        self.identity("managed_identity", &id, event);
    }

    fn delete_alias(&mut self, number: usize) {
        if let Some(id) = pick(&self.aliases, number) {
            self.end_alias(&id);
        }
    }

    fn end_alias(&mut self, id: &str) {
        let Some((group_id, name, source_id)) = self.aliases.remove(id) else {
            return;
        };
        let event = identity::ManagedIdentityAliasDeleted {
            managed_identity_id: id.to_owned(),
            group_id,
            name,
            source_id,
        };
        self.identity("managed_identity", id, event);
    }

    fn make_rule(&mut self, identity: usize) {
        let Some(identity) = pick(&self.identities, identity) else {
            return;
        };
        let id = self.id("rule");
        self.rules.insert(id.clone(), identity.clone());
        let eligible = identity::EligiblePrincipals {
            principals: vec![principal("dev/a".to_owned())],
        };
        let event = identity::AccessRuleCreated {
            managed_identity_id: identity.clone(),
            access_rule_id: id,
            stages: vec![1, 2],
            condition: Some(identity::access_rule_created::Condition::EligiblePrincipals(eligible)),
            revision: self.identity.len() as u64,
        };
        self.identity("access_rule", &identity, event);
    }

    fn delete_rule(&mut self, number: usize) {
        let Some(id) = pick(&self.rules, number) else {
            return;
        };
        let Some(identity) = self.rules.remove(&id) else {
            return;
        };
        let event = identity::AccessRuleDeleted {
            managed_identity_id: identity.clone(),
            access_rule_id: id,
            revision: self.identity.len() as u64,
        };
        self.identity("access_rule", &identity, event);
    }

    fn make_team(&mut self, name: usize) {
        let name = NAMES[name % NAMES.len()].to_owned();
        if self.teams.values().any(|(taken, _)| *taken == name) {
            return;
        }
        let team_id = self.id("team");
        self.teams.insert(team_id.clone(), (name.clone(), vec![]));
        let event = namespace::TeamCreated {
            team_id: team_id.clone(),
            name,
            description: String::new(),
        };
        self.namespace("team", &team_id, event);
    }

    fn describe_team(&mut self, number: usize) {
        let Some(team_id) = pick(&self.teams, number) else {
            return;
        };
        let event = namespace::TeamUpdated {
            team_id: team_id.clone(),
            description: format!("change {}", self.namespace.len()),
        };
        self.namespace("team", &team_id, event);
    }

    fn leave_team(&mut self, team: usize, user: usize) {
        let Some(team_id) = pick(&self.teams, team) else {
            return;
        };
        let Some((_, members)) = self.teams.get_mut(&team_id) else {
            return;
        };
        let Some(number) = user.checked_rem(members.len()) else {
            return;
        };
        let member = members.remove(number);
        let event = namespace::TeamMemberRemoved {
            team_id: team_id.clone(),
            member: Some(principal(member)),
        };
        self.namespace("team", &team_id, event);
    }

    fn join_team(&mut self, team: usize, user: usize) {
        let member = format!("dev/{}", NAMES[user % NAMES.len()]);
        let Some(team_id) = pick(&self.teams, team) else {
            return;
        };
        let Some((_, members)) = self.teams.get_mut(&team_id) else {
            return;
        };
        if members.contains(&member) {
            return;
        }
        members.push(member.clone());
        let event = namespace::TeamMemberAdded {
            team_id: team_id.clone(),
            member: Some(principal(member)),
        };
        self.namespace("team", &team_id, event);
    }

    fn make_mask(&mut self, at: usize, what: usize) {
        let both = self.groups.keys().chain(self.workspaces.keys());
        let places: Vec<String> = both.cloned().collect();
        let Some(at) = at.checked_rem(places.len()) else {
            return;
        };
        let (id, namespace_id) = (self.id("mask"), places[at].clone());
        self.masks.insert(id.clone(), namespace_id.clone());
        let hidden = match what % 2 {
            0 => identity::mask_created::Hidden::Everything(true),
            _ => identity::mask_created::Hidden::Type("aws".to_owned()),
        };
        let event = identity::MaskCreated {
            mask_id: id.clone(),
            namespace_id,
            hidden: Some(hidden),
            exception_ids: vec![],
        };
        self.identity("mask", &id, event);
    }

    fn delete_mask(&mut self, number: usize) {
        let Some(id) = pick(&self.masks, number) else {
            return;
        };
        let namespace_id = self.masks.remove(&id).expect("it was picked");
        let event = identity::MaskDeleted {
            mask_id: id.clone(),
            namespace_id,
        };
        self.identity("mask", &id, event);
    }

    fn delete_team(&mut self, number: usize) {
        let Some(team_id) = pick(&self.teams, number) else {
            return;
        };
        let Some((name, members)) = self.teams.remove(&team_id) else {
            return;
        };
        for member in members {
            let event = namespace::TeamMemberRemoved {
                team_id: team_id.clone(),
                member: Some(principal(member)),
            };
            self.namespace("team", &team_id, event);
        }
        let event = namespace::TeamDeleted {
            team_id: team_id.clone(),
            name,
        };
        self.namespace("team", &team_id, event);
    }

    fn make_service_account(&mut self, at: usize, name: usize) {
        let name = NAMES[name % NAMES.len()].to_owned();
        let Some(group_id) = pick(&self.groups, at) else {
            return;
        };
        let wanted = (group_id.clone(), name.clone());
        if self.accounts.values().any(|taken| *taken == wanted) {
            return;
        }
        let id = self.id("sa");
        self.accounts.insert(id.clone(), wanted);
        let event = identity::ServiceAccountCreated {
            service_account_id: id.clone(),
            group_id,
            name,
            description: String::new(),
            trust_policies: vec![],
        };
        self.identity("service_account", &id, event);
    }

    fn update_service_account(&mut self, number: usize) {
        let Some(id) = pick(&self.accounts, number) else {
            return;
        };
        let event = identity::ServiceAccountUpdated {
            service_account_id: id.clone(),
            description: format!("change {}", self.identity.len()),
            trust_policies: vec![identity::TrustPolicy {
                issuer: "https://ci.example.com".to_owned(),
                ..identity::TrustPolicy::default()
            }],
        };
        self.identity("service_account", &id, event);
    }

    fn delete_service_account(&mut self, number: usize) {
        let Some(id) = pick(&self.accounts, number) else {
            return;
        };
        let Some((group_id, name)) = self.accounts.remove(&id) else {
            return;
        };
        let event = identity::ServiceAccountDeleted {
            service_account_id: id.clone(),
            group_id,
            name,
        };
        self.identity("service_account", &id, event);
    }
}

fn principal(user: String) -> access::Principal {
    access::Principal {
        kind: Some(access::principal::Kind::User(user)),
    }
}

fn aws(role: &str) -> identity::Configuration {
    let role_arn = format!("arn:aws:iam::123456789012:role/{role}");
    let aws = identity::AwsConfiguration { role_arn };
    identity::Configuration {
        r#type: Some(identity::configuration::Type::Aws(aws)),
    }
}

/// The aliases that don't show what their sources do. Each source of the histories is there until its aliases are gone.
const UNLIKE_SOURCES: &str = "SELECT alias.id FROM managed_identities alias
    LEFT JOIN managed_identities source ON source.id = alias.source_id
    WHERE alias.source_id IS NOT NULL
      AND (alias.description, alias.configuration, alias.token_settings, alias.type)
          IS DISTINCT FROM (source.description, source.configuration, source.token_settings, source.type)";

/// The read models after these batches of the two logs, each a flag, whether of `namespace`, and a number of events;
/// in the end the rest of each. Nothing of it stays.
async fn read_models(pool: &PgPool, history: &History, batches: &[(bool, usize)]) -> Vec<String> {
    let mut transaction = pool.begin().await.expect("a transaction");
    let (mut namespace, mut identity) = (history.namespace.as_slice(), history.identity.as_slice());
    for (of_namespace, count) in batches
        .iter()
        .copied()
        .chain([(true, usize::MAX), (false, usize::MAX)])
    {
        let (log, rest) = if of_namespace {
            ("namespace", &mut namespace)
        } else {
            ("identity", &mut identity)
        };
        let (batch, left) = rest.split_at(count.min(rest.len()));
        *rest = left;
        if !batch.is_empty() {
            Directory
                .apply(&mut transaction, log, batch)
                .await
                .expect("it applies");
        }
    }
    let misplaced: Vec<String> = sqlx::query_scalar(MISPLACED)
        .fetch_all(&mut *transaction)
        .await
        .expect("rows");
    assert_eq!(misplaced, [""; 0]);
    let unlike: Vec<String> = sqlx::query_scalar(UNLIKE_SOURCES)
        .fetch_all(&mut *transaction)
        .await
        .expect("rows");
    assert_eq!(unlike, [""; 0]);
    let mut rows = Vec::new();
    for table in TABLES {
        rows.extend(content(&mut transaction, table).await);
    }
    transaction.rollback().await.expect("nothing stays");
    rows
}

async fn content(connection: &mut PgConnection, table: &str) -> Vec<String> {
    let query = format!("SELECT '{table} ' || to_jsonb({table})::text FROM {table} ORDER BY 1");
    sqlx::query_scalar(AssertSqlSafe(query))
        .fetch_all(connection)
        .await
        .expect("rows")
}

#[test]
fn the_order_of_the_logs_and_the_batches_make_no_difference() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let database = runtime.block_on(async {
        let database = Database::create().await;
        eventlog::migrate(database.pool(), Some(&projector::MIGRATIONS))
            .await
            .expect("tables");
        database
    });
    let deeds = prop::collection::vec(deed(), 1..80);
    let batches = prop::collection::vec((any::<bool>(), 1..8_usize), 0..30);
    let mut runner = TestRunner::new(Config {
        cases: 64,
        failure_persistence: None,
        ..Config::default()
    });
    let outcome = runner.run(&(deeds, batches), |(deeds, batches)| {
        let history = History::of(&deeds);
        let (expected, seen, one_by_one) = runtime.block_on(async {
            let all = history.namespace.len() + history.identity.len();
            let one_by_one: Vec<_> = (0..2 * all).map(|n| (n % 2 == 0, 1)).collect();
            (
                read_models(database.pool(), &history, &[]).await,
                read_models(database.pool(), &history, &batches).await,
                read_models(database.pool(), &history, &one_by_one).await,
            )
        });
        prop_assert_eq!(&one_by_one, &expected);
        prop_assert_eq!(&seen, &expected);
        Ok(())
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
}

/// The read models after all of a log, in batches of one event.
async fn after(history: &History, query: &'static str) -> Vec<(String, String)> {
    let database = Database::create().await;
    eventlog::migrate(database.pool(), Some(&projector::MIGRATIONS))
        .await
        .expect("tables");
    let mut connection = database.pool().acquire().await.expect("a connection");
    for (log, events) in [
        ("namespace", &history.namespace),
        ("identity", &history.identity),
    ] {
        for event in events {
            let event = std::slice::from_ref(event);
            let applied = Directory.apply(&mut connection, log, event).await;
            applied.expect("it applies");
        }
    }
    let rows = sqlx::query_as(query).fetch_all(&mut *connection).await;
    rows.expect("rows")
}

#[tokio::test]
async fn a_nul_in_a_log_is_left_out() {
    let mut history = History::default();
    let group_id = history.id("grp");
    let event = namespace::GroupCreated {
        group_id: group_id.clone(),
        parent_id: String::new(),
        name: "acme".to_owned(),
        description: "\0a\0\tb\0".to_owned(),
    };
    history.namespace("group", &group_id, event);
    let account = history.id("sa");
    let event = identity::ServiceAccountCreated {
        service_account_id: account.clone(),
        group_id: group_id.clone(),
        name: "ci".to_owned(),
        description: "\0".to_owned(),
        trust_policies: vec![],
    };
    history.identity("service_account", &account, event);
    let described = after(
        &history,
        "SELECT id, description FROM namespaces UNION ALL SELECT id, description FROM service_accounts",
    );
    assert_eq!(
        described.await,
        [(group_id, "a\tb".to_owned()), (account, String::new())]
    );
}

#[tokio::test]
async fn what_changes_in_a_service_account_happened_in_its_group() {
    let deeds = [
        Deed::MakeGroup(0, 0),
        Deed::MakeServiceAccount(0, 0),
        Deed::UpdateServiceAccount(0),
        Deed::DeleteServiceAccount(0),
    ];
    let history = History::of(&deeds);
    let (group, account) = ("grp_1".to_owned(), "sa_2".to_owned());
    let happened = after(
        &history,
        "SELECT resource_id, place_id FROM activities WHERE resource_id = 'sa_2'",
    );
    assert_eq!(happened.await, vec![(account, group); 3]);
}
