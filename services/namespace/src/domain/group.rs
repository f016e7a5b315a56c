//! A group.

use model::{Description, GroupId, Name};

use super::{MAX_CHILDREN, MAX_DEPTH};

/// A group's life so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// It was never made.
    #[default]
    Absent,
    /// It exists, as far as its own stream knows: a group above may be gone.
    Live(Group),
    /// It was deleted.
    Deleted,
}

/// A group that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Its id.
    pub id: GroupId,
    /// The group above; none at the top.
    pub parent: Option<GroupId>,
    /// Unique below the parent, workspaces included.
    pub name: Name,
    /// Free text.
    pub description: Description,
}

/// What may be asked of a group.
#[derive(Clone, Debug)]
pub enum Command {
    /// Make it.
    Create {
        /// The group to be.
        group: Group,
        /// Names in its path.
        depth: usize,
        /// Whether a group or workspace below the parent has the name.
        name_taken: bool,
        /// Groups that the parent has already; 0 at the top, where there is no limit.
        siblings: i64,
    },
    /// Delete it.
    Delete {
        /// Subgroups that exist.
        subgroups: i64,
        /// Workspaces that exist in it.
        workspaces: i64,
        /// Everything below goes too.
        force: bool,
    },
}

/// What happened to a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It was made.
    Created(Group),
    /// It is gone, with everything below.
    Deleted(Group),
}

/// Why a command was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// There is no such group.
    #[error("the group does not exist")]
    Missing,
    /// The name is used below the same parent.
    #[error("a group or workspace with this name exists there already; choose another name")]
    NameTaken,
    /// The path would be too long.
    #[error("the group would lie {0} levels deep, {MAX_DEPTH} at most are allowed")]
    TooDeep(usize),
    /// The parent is full.
    #[error("the parent has {MAX_CHILDREN} subgroups, more are not allowed")]
    TooManySiblings,
    /// Something is below it.
    #[error(
        "the group has {subgroups} subgroups and {workspaces} workspaces; delete them first, or set force"
    )]
    NotEmpty {
        /// Subgroups that exist.
        subgroups: i64,
        /// Workspaces that exist in it.
        workspaces: i64,
    },
}

/// Decides a command.
pub fn decide(state: &State, command: Command) -> Result<Vec<Event>, Rejection> {
    match (state, command) {
        (
            State::Absent,
            Command::Create {
                group,
                depth,
                name_taken,
                siblings,
            },
        ) => {
            if name_taken {
                Err(Rejection::NameTaken)
            } else if depth > MAX_DEPTH {
                Err(Rejection::TooDeep(depth))
            } else if siblings >= MAX_CHILDREN {
                Err(Rejection::TooManySiblings)
            } else {
                Ok(vec![Event::Created(group)])
            }
        }
        // Ids are made anew for each group and never used again.
        (State::Live(_) | State::Deleted, Command::Create { .. }) => Err(Rejection::NameTaken),
        (
            State::Live(group),
            Command::Delete {
                subgroups,
                workspaces,
                force,
            },
        ) => {
            if !force && (subgroups > 0 || workspaces > 0) {
                Err(Rejection::NotEmpty {
                    subgroups,
                    workspaces,
                })
            } else {
                Ok(vec![Event::Deleted(group.clone())])
            }
        }
        (State::Absent | State::Deleted, Command::Delete { .. }) => Err(Rejection::Missing),
    }
}

/// Applies what happened.
pub fn evolve(state: &mut State, event: &Event) {
    *state = match event {
        Event::Created(group) => State::Live(group.clone()),
        Event::Deleted(_) => State::Deleted,
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acme() -> Group {
        Group {
            id: GroupId::from_uuid(uuid::Uuid::from_u128(1)),
            parent: None,
            name: "acme".parse().expect("a name"),
            description: Description::default(),
        }
    }

    fn given(events: &[Event]) -> State {
        let mut state = State::default();
        events.iter().for_each(|event| evolve(&mut state, event));
        state
    }

    fn create(depth: usize, name_taken: bool, siblings: i64) -> Command {
        Command::Create {
            group: acme(),
            depth,
            name_taken,
            siblings,
        }
    }

    #[test]
    fn a_group_is_made_once() {
        assert_eq!(
            decide(&given(&[]), create(1, false, 0)),
            Ok(vec![Event::Created(acme())])
        );
        assert_eq!(
            decide(&given(&[Event::Created(acme())]), create(1, false, 0)),
            Err(Rejection::NameTaken)
        );
    }

    #[test]
    fn limits_hold_at_their_edges() {
        assert!(decide(&State::Absent, create(MAX_DEPTH, false, MAX_CHILDREN - 1)).is_ok());
        assert_eq!(
            decide(&State::Absent, create(MAX_DEPTH + 1, false, 0)),
            Err(Rejection::TooDeep(21))
        );
        assert_eq!(
            decide(&State::Absent, create(1, false, MAX_CHILDREN)),
            Err(Rejection::TooManySiblings)
        );
        assert_eq!(
            decide(&State::Absent, create(1, true, 0)),
            Err(Rejection::NameTaken)
        );
    }

    #[test]
    fn a_group_that_holds_something_goes_only_by_force() {
        let live = given(&[Event::Created(acme())]);
        let delete = |subgroups, workspaces, force| Command::Delete {
            subgroups,
            workspaces,
            force,
        };
        assert_eq!(
            decide(&live, delete(1, 2, false)),
            Err(Rejection::NotEmpty {
                subgroups: 1,
                workspaces: 2
            })
        );
        assert_eq!(
            decide(&live, delete(1, 2, true)),
            Ok(vec![Event::Deleted(acme())])
        );
        assert_eq!(
            decide(&live, delete(0, 0, false)),
            Ok(vec![Event::Deleted(acme())])
        );
        let gone = given(&[Event::Created(acme()), Event::Deleted(acme())]);
        assert_eq!(decide(&gone, delete(0, 0, true)), Err(Rejection::Missing));
    }
}
