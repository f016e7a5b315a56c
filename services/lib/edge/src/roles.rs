//! Which role a principal has in a place: of the nearest membership of each principal that it acts as, the highest. A
//! user acts as itself and as each of its teams.

use std::collections::BTreeMap;

use model::{MembershipId, Principal, Role, TeamId};

use crate::hierarchy::{member_key, node_key};

/// The key that says that a user belongs to a team.
#[must_use]
pub fn team_of_key(member: &Principal, team: impl std::fmt::Display) -> String {
    format!("team-of/{member}/{team}")
}

/// Between which keys the teams of a principal are. A subject may hold slashes: behind the first key, whatever holds
/// another slash is of another principal.
pub(crate) fn teams_of(principal: &Principal) -> (String, String) {
    // What follows on a slash.
    let end = char::from(b'/' + 1);
    (
        format!("team-of/{principal}/"),
        format!("team-of/{principal}{end}"),
    )
}

/// A membership that counts for a principal in a place: the nearest of its own, or of one of its teams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// What it gives.
    pub role: Role,
    /// Which it is.
    pub membership: MembershipId,
    /// Where it is: which of the place's nodes.
    pub at: usize,
    /// Through which team the principal has it; none if it is the principal's own.
    pub team: Option<TeamId>,
}

/// What the facts say of a principal on the way up from a resource.
pub(crate) struct Found<'a> {
    pub(crate) principal: &'a Principal,
    /// The ids of the resource and of what is above it.
    pub(crate) nodes: Vec<&'a str>,
    /// At each of them, the fact of the principal's own membership.
    pub(crate) own: Vec<Option<&'a str>>,
    /// At each of them, those of its teams: `<team id>/<team's name>/<role>/<membership id>`.
    pub(crate) teams: Vec<&'a [String]>,
    /// If the principal is a resource itself, its own way up: `<id>/<parent id>/<name>`.
    pub(crate) way: &'a [String],
}

impl Found<'_> {
    /// The memberships that count, the one that gives the role first, and what that one rests on: that it is there,
    /// that nothing nearer overrules it, and that the principal is who has it.
    pub(crate) fn grants(&self) -> (Vec<Grant>, Vec<(String, Option<String>)>) {
        let mut grants: Vec<Grant> = self.own_grant().into_iter().collect();
        let mut of_teams: BTreeMap<TeamId, (Grant, &str)> = BTreeMap::new();
        for (at, found) in self.teams.iter().enumerate() {
            for (team, name, held) in found.iter().filter_map(|text| team_grant(text)) {
                if let Some(grant) = grant(held, at, Some(team)) {
                    of_teams.entry(team).or_insert((grant, name));
                }
            }
        }
        grants.extend(of_teams.values().map(|(grant, _)| grant.clone()));
        // Of equal ones the principal's own comes first: it rests on less.
        grants.sort_by_key(|grant| std::cmp::Reverse(grant.role));
        let rests_on = grants.first().map_or_else(Vec::new, |grant| {
            let team = grant.team.and_then(|team| of_teams.get(&team));
            self.rests_on(grant, team.map(|(_, name)| *name))
        });
        (grants, rests_on)
    }

    fn own_grant(&self) -> Option<Grant> {
        let nearest = self.own.iter().position(Option::is_some)?;
        grant(self.own[nearest]?, nearest, None).filter(|_| self.may_be_member(nearest))
    }

    /// Whether the principal can be a member at this node. If it is a resource, it has to exist; and from below a
    /// service account's group the node may have been moved away.
    fn may_be_member(&self, at: usize) -> bool {
        if self.principal.resource().is_none() {
            return true;
        }
        let way: Vec<_> = self.own_way().collect();
        let exists = way.last().is_some_and(|(_, value)| value.starts_with('/'));
        let group = way.get(1);
        exists && group.is_none_or(|(group, _)| self.nodes[at..].contains(group))
    }

    /// The nodes of the principal's own way up, and the fact of each.
    fn own_way(&self) -> impl Iterator<Item = (&str, &str)> {
        self.way.iter().filter_map(|node| node.split_once('/'))
    }

    fn rests_on(&self, grant: &Grant, team_name: Option<&str>) -> Vec<(String, Option<String>)> {
        let holder = grant
            .team
            .map_or_else(|| self.principal.clone(), Principal::Team);
        let mut facts: Vec<_> = self.nodes[..=grant.at]
            .iter()
            .enumerate()
            .map(|(at, node)| {
                let held = (at == grant.at).then(|| format!("{}/{}", grant.role, grant.membership));
                (member_key(node, &holder), held)
            })
            .collect();
        if let (Some(team), Some(name)) = (grant.team, team_name) {
            facts.push((node_key(team), Some(format!("/{name}"))));
            facts.push((team_of_key(self.principal, team), Some(String::new())));
        }
        facts.extend(
            self.own_way()
                .map(|(id, value)| (node_key(id), Some(value.to_owned()))),
        );
        facts
    }
}

/// Reads the fact of a membership, `<role>/<membership id>`.
fn grant(held: &str, at: usize, team: Option<TeamId>) -> Option<Grant> {
    let (role, membership) = held.split_once('/')?;
    Some(Grant {
        role: role.parse().ok()?,
        membership: membership.parse().ok()?,
        at,
        team,
    })
}

/// Team, its name, and the fact of its membership.
fn team_grant(text: &str) -> Option<(TeamId, &str, &str)> {
    let (team, rest) = text.split_once('/')?;
    let (name, held) = rest.split_once('/')?;
    Some((team.parse().ok()?, name, held))
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::ServiceAccountId;
    use proptest::prelude::*;
    use uuid::Uuid;

    const NODES: [&str; 3] = ["ws", "inner", "outer"];

    fn membership(number: u128) -> MembershipId {
        MembershipId::from_uuid(Uuid::from_u128(number))
    }

    fn team(number: u128) -> TeamId {
        TeamId::from_uuid(Uuid::from_u128(number))
    }

    fn held(role: Role, number: u128) -> String {
        format!("{role}/{}", membership(number))
    }

    fn alice() -> Principal {
        Principal::user("dev/alice").expect("a user")
    }

    fn found<'a>(
        principal: &'a Principal,
        own: &'a [Option<String>; 3],
        teams: &'a [Vec<String>; 3],
        way: &'a [String],
    ) -> Found<'a> {
        Found {
            principal,
            nodes: NODES.to_vec(),
            own: own.iter().map(Option::as_deref).collect(),
            teams: teams.iter().map(Vec::as_slice).collect(),
            way,
        }
    }

    #[test]
    fn the_nearest_of_each_counts_and_the_highest_of_those_wins() {
        let (alice, own) = (alice(), [None, Some(held(Role::Viewer, 1)), None]);
        let of_team = |number, role, membership| {
            format!("{}/t{number}/{}", team(number), held(role, membership))
        };
        // The first team is an owner further up, but a viewer nearer; the second a deployer at the top.
        let teams = [
            vec![],
            vec![of_team(1, Role::Viewer, 2)],
            vec![of_team(1, Role::Owner, 3), of_team(2, Role::Deployer, 4)],
        ];
        let (grants, rests_on) = found(&alice, &own, &teams, &[]).grants();
        let seen: Vec<_> = grants
            .iter()
            .map(|grant| (grant.role, grant.at, grant.team))
            .collect();
        assert_eq!(
            seen,
            [
                (Role::Deployer, 2, Some(team(2))),
                (Role::Viewer, 1, None),
                (Role::Viewer, 1, Some(team(1)))
            ]
        );
        let holder = Principal::Team(team(2));
        assert_eq!(
            rests_on,
            [
                (member_key("ws", &holder), None),
                (member_key("inner", &holder), None),
                (member_key("outer", &holder), Some(held(Role::Deployer, 4))),
                (node_key(team(2)), Some("/t2".to_owned())),
                (team_of_key(&alice, team(2)), Some(String::new())),
            ]
        );
    }

    #[test]
    fn who_is_gone_has_no_role() {
        let robot = Principal::ServiceAccount(ServiceAccountId::from_uuid(Uuid::from_u128(9)));
        let (own, teams) = (
            [Some(held(Role::Owner, 1)), None, None],
            [const { vec![] }; 3],
        );
        let way = ["sa_9/outer/ci".to_owned(), "outer//acme".to_owned()];
        let (grants, rests_on) = found(&robot, &own, &teams, &way).grants();
        assert_eq!(grants.len(), 1);
        assert_eq!(
            rests_on,
            [
                (member_key("ws", &robot), Some(held(Role::Owner, 1))),
                (node_key("sa_9"), Some("outer/ci".to_owned())),
                (node_key("outer"), Some("/acme".to_owned())),
            ]
        );
        // Deleted, or its group is.
        for way in [&way[..0], &way[..1]] {
            assert_eq!(
                found(&robot, &own, &teams, way).grants(),
                (vec![], vec![]),
                "{way:?}"
            );
        }
    }

    #[test]
    fn a_service_account_has_no_role_where_its_group_is_not_above() {
        let robot = Principal::ServiceAccount(ServiceAccountId::from_uuid(Uuid::from_u128(9)));
        let teams = [const { vec![] }; 3];
        let way = |group: &str| {
            let above = format!("{group}/top/name");
            [format!("sa_9/{group}/ci"), above, "top//top".to_owned()]
        };
        for (at, group, counts) in [
            (0, "inner", true),
            (1, "inner", true),
            (2, "inner", false),
            (0, "elsewhere", false),
        ] {
            let mut own = [None, None, None];
            own[at] = Some(held(Role::Owner, 1));
            let (grants, _) = found(&robot, &own, &teams, &way(group)).grants();
            assert_eq!(grants.len(), usize::from(counts), "{group} at {at}");
        }
        // A team is in no group.
        let (team, own) = (
            Principal::Team(team(1)),
            [None, Some(held(Role::Viewer, 1)), None],
        );
        let (grants, _) = found(&team, &own, &teams, &["t_1//ops".to_owned()]).grants();
        assert_eq!(grants.len(), 1);
    }

    #[test]
    fn teams_of_others_are_not_between_the_keys() {
        let (from, to) = teams_of(&alice());
        let hers = team_of_key(&alice(), team(1));
        assert!(from < hers && hers < to);
        for other in ["dev/alic", "dev/alice2", "dev/alicf"] {
            let other = Principal::user(other).expect("a user");
            let key = team_of_key(&other, team(1));
            assert!(key <= from || to <= key, "{key}");
        }
    }

    proptest! {
        #[test]
        fn more_memberships_of_teams_never_take_a_role_away(
            own in prop::option::of(0..3_usize),
            roles in prop::collection::vec((0..3_usize, 0..3_usize, 1..4_u128), 0..6),
        ) {
            let all = [Role::Viewer, Role::Deployer, Role::Owner];
            let alice = alice();
            let mut facts = [None, None, None];
            if let Some(at) = own {
                facts[at] = Some(held(Role::Deployer, 1));
            }
            let alone = found(&alice, &facts, &[const { vec![] }; 3], &[]).grants();
            let mut teams = [const { vec![] }; 3];
            for (number, (at, role, of)) in (2..).zip(roles) {
                teams[at].push(format!("{}/t/{}", team(of), held(all[role], number)));
            }
            let together = found(&alice, &facts, &teams, &[]).grants();
            let role = |grants: &[Grant]| grants.first().map(|grant| grant.role);
            prop_assert!(role(&together.0) >= role(&alone.0));
        }
    }
}
