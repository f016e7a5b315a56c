//! A team: users that hold roles together.

use std::collections::BTreeSet;

use model::{Description, Name, Principal, TeamId};

/// Members of a team.
pub const MAX_MEMBERS: usize = 1_000;

/// A team's life so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// It was never made.
    #[default]
    Absent,
    /// It exists.
    Live {
        /// The team.
        team: Team,
        /// Who belongs to it.
        members: BTreeSet<Principal>,
    },
    /// It was deleted.
    Deleted,
}

/// A team that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Team {
    /// Its id.
    pub id: TeamId,
    /// Unique among teams. Never changes.
    pub name: Name,
    /// Free text.
    pub description: Description,
}

/// What may be asked of a team.
#[derive(Clone, Debug)]
pub enum Command {
    /// Make it.
    Create {
        /// The team to be.
        team: Team,
        /// Whether a team has the name.
        name_taken: bool,
    },
    /// Describe it.
    Describe(Description),
    /// Take someone in.
    Add(Principal),
    /// Take someone out.
    Remove(Principal),
    /// Delete it.
    Delete {
        /// The top-level groups whose last owner it is.
        last_owner_of: Vec<String>,
    },
}

/// What happened to a team.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It was made.
    Created(Team),
    /// It is described so now.
    Described(TeamId, Description),
    /// Someone belongs to it.
    Added(TeamId, Principal),
    /// Someone no longer does.
    Removed(TeamId, Principal),
    /// It is gone.
    Deleted(TeamId, Name),
}

/// Why a command was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// There is no such team.
    #[error("the team does not exist")]
    Missing,
    /// Another team has the name.
    #[error("a team with this name exists already; choose another name")]
    NameTaken,
    /// The team is full.
    #[error("the team has {MAX_MEMBERS} members, more are not allowed")]
    TooManyMembers,
    /// Nobody could give the groups an owner again.
    #[error("the team is the last owner of top-level groups; give them another owner first: {}", .0.join(", "))]
    LastOwner(Vec<String>),
}

/// Decides a command.
pub fn decide(state: &State, command: Command) -> Result<Vec<Event>, Rejection> {
    match (state, command) {
        (
            State::Absent,
            Command::Create {
                team,
                name_taken: false,
            },
        ) => Ok(vec![Event::Created(team)]),
        // Ids are made anew for each team and never used again.
        (_, Command::Create { .. }) => Err(Rejection::NameTaken),
        (State::Absent | State::Deleted, _) => Err(Rejection::Missing),
        (State::Live { team, members }, command) => change(team, members, command),
    }
}

fn change(
    team: &Team,
    members: &BTreeSet<Principal>,
    command: Command,
) -> Result<Vec<Event>, Rejection> {
    match command {
        Command::Create { .. } => Err(Rejection::NameTaken),
        Command::Describe(description) if team.description == description => Ok(vec![]),
        Command::Describe(description) => Ok(vec![Event::Described(team.id, description)]),
        Command::Add(member) if members.contains(&member) => Ok(vec![]),
        Command::Add(_) if members.len() >= MAX_MEMBERS => Err(Rejection::TooManyMembers),
        Command::Add(member) => Ok(vec![Event::Added(team.id, member)]),
        Command::Remove(member) if !members.contains(&member) => Ok(vec![]),
        Command::Remove(member) => Ok(vec![Event::Removed(team.id, member)]),
        Command::Delete { last_owner_of } if !last_owner_of.is_empty() => {
            Err(Rejection::LastOwner(last_owner_of))
        }
        Command::Delete { .. } => Ok(members
            .iter()
            .map(|member| Event::Removed(team.id, member.clone()))
            .chain([Event::Deleted(team.id, team.name.clone())])
            .collect()),
    }
}

/// Applies what happened.
pub fn evolve(state: &mut State, event: &Event) {
    match (state, event) {
        (state, Event::Created(team)) => {
            *state = State::Live {
                team: team.clone(),
                members: BTreeSet::new(),
            };
        }
        (State::Live { team, .. }, Event::Described(_, description)) => {
            team.description = description.clone();
        }
        (State::Live { members, .. }, Event::Added(_, member)) => {
            members.insert(member.clone());
        }
        (State::Live { members, .. }, Event::Removed(_, member)) => {
            members.remove(member);
        }
        (state, Event::Deleted(..)) => *state = State::Deleted,
        (State::Absent | State::Deleted, _) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform() -> Team {
        Team {
            id: TeamId::from_uuid(uuid::Uuid::from_u128(1)),
            name: "platform".parse().expect("a name"),
            description: Description::default(),
        }
    }

    fn user(number: usize) -> Principal {
        Principal::user(&format!("dev/user-{number}")).expect("a user")
    }

    fn with(events: impl IntoIterator<Item = Event>) -> State {
        let mut state = State::default();
        evolve(&mut state, &Event::Created(platform()));
        events
            .into_iter()
            .for_each(|event| evolve(&mut state, &event));
        state
    }

    fn added(number: usize) -> Event {
        Event::Added(platform().id, user(number))
    }

    const DELETE: Command = Command::Delete {
        last_owner_of: vec![],
    };

    #[test]
    fn a_name_is_of_one_team() {
        let create = |name_taken| Command::Create {
            team: platform(),
            name_taken,
        };
        assert_eq!(
            decide(&State::Absent, create(false)),
            Ok(vec![Event::Created(platform())])
        );
        assert_eq!(
            decide(&State::Absent, create(true)),
            Err(Rejection::NameTaken)
        );
        assert_eq!(decide(&with([]), create(false)), Err(Rejection::NameTaken));
    }

    #[test]
    fn who_is_in_is_added_to_nothing_and_who_is_not_removed_from_nothing() {
        let state = with([added(1)]);
        assert_eq!(decide(&state, Command::Add(user(1))), Ok(vec![]));
        assert_eq!(decide(&state, Command::Add(user(2))), Ok(vec![added(2)]));
        assert_eq!(decide(&state, Command::Remove(user(2))), Ok(vec![]));
        assert_eq!(
            decide(&state, Command::Remove(user(1))),
            Ok(vec![Event::Removed(platform().id, user(1))])
        );
    }

    #[test]
    fn a_full_team_takes_nobody_else() {
        let full = with((0..MAX_MEMBERS).map(added));
        assert_eq!(
            decide(&full, Command::Add(user(MAX_MEMBERS))),
            Err(Rejection::TooManyMembers)
        );
        assert_eq!(decide(&full, Command::Add(user(0))), Ok(vec![]));
    }

    #[test]
    fn a_deleted_team_has_no_members_and_stays_deleted() {
        let events = decide(&with([added(1), added(2)]), DELETE).expect("allowed");
        assert_eq!(events.len(), 3);
        let state = with([added(1), added(2)].into_iter().chain(events));
        assert_eq!(state, State::Deleted);
        assert_eq!(decide(&state, DELETE), Err(Rejection::Missing));
        let sole = Command::Delete {
            last_owner_of: vec!["acme".to_owned()],
        };
        assert_eq!(
            decide(&with([]), sole),
            Err(Rejection::LastOwner(vec!["acme".to_owned()]))
        );
    }
}
