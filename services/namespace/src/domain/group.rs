//! A group.

use model::{Description, GroupId, Name};

use super::{Destination, NoRoom};

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
        /// Where it is to lie.
        destination: Destination,
    },
    /// Change it.
    Update {
        /// The new description, if it changes.
        description: Option<Description>,
    },
    /// Put it elsewhere, with everything below.
    Move {
        /// The group that it is to lie in; none: the top.
        to: Option<GroupId>,
        /// Whether that is the group itself, or lies below it.
        into_itself: bool,
        /// Where the longest path below it is to lie.
        destination: Destination,
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
    /// Its description changed.
    Updated {
        /// Which.
        id: GroupId,
        /// As it is now.
        description: Description,
    },
    /// It lies elsewhere, with everything below.
    Moved {
        /// Which.
        id: GroupId,
        /// Where it was; none: at the top.
        from: Option<GroupId>,
        /// Where it is.
        to: Option<GroupId>,
        /// What it is called.
        name: Name,
    },
    /// It is gone, with everything below.
    Deleted(Group),
}

/// Why a command was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// There is no such group.
    #[error("the group does not exist")]
    Missing,
    /// It can't lie there.
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
    /// It lies there.
    #[error("the group lies there already")]
    SameParent,
    /// It would lie below itself.
    #[error("a group can't be moved into itself, nor below itself")]
    IntoItself,
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
        (State::Absent, Command::Create { group, destination }) => {
            destination.check()?;
            Ok(vec![Event::Created(group)])
        }
        // Ids are made anew for each group and never used again.
        (_, Command::Create { .. }) => Err(NoRoom::NameTaken.into()),
        (State::Absent | State::Deleted, _) => Err(Rejection::Missing),
        (State::Live(group), Command::Update { description }) => {
            let description = description.filter(|new| *new != group.description);
            let updated = description.map(|description| Event::Updated {
                id: group.id,
                description,
            });
            Ok(updated.into_iter().collect())
        }
        (
            State::Live(_),
            Command::Move {
                into_itself: true, ..
            },
        ) => Err(Rejection::IntoItself),
        (State::Live(group), Command::Move { to, .. }) if to == group.parent => {
            Err(Rejection::SameParent)
        }
        (
            State::Live(group),
            Command::Move {
                to, destination, ..
            },
        ) => {
            destination.check()?;
            Ok(vec![Event::Moved {
                id: group.id,
                from: group.parent,
                to,
                name: group.name.clone(),
            }])
        }
        (
            State::Live(_),
            Command::Delete {
                subgroups,
                workspaces,
                force: false,
            },
        ) if subgroups > 0 || workspaces > 0 => Err(Rejection::NotEmpty {
            subgroups,
            workspaces,
        }),
        (State::Live(group), Command::Delete { .. }) => Ok(vec![Event::Deleted(group.clone())]),
    }
}

/// Applies what happened.
pub fn evolve(state: &mut State, event: &Event) {
    match (event, state) {
        (Event::Created(group), state) => *state = State::Live(group.clone()),
        (Event::Updated { description, .. }, State::Live(group)) => {
            group.description = description.clone();
        }
        (Event::Moved { to, .. }, State::Live(group)) => group.parent = *to,
        (Event::Updated { .. } | Event::Moved { .. }, State::Absent | State::Deleted) => {}
        (Event::Deleted(_), state) => *state = State::Deleted,
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::tight;
    use super::*;

    fn id(number: u128) -> GroupId {
        GroupId::from_uuid(uuid::Uuid::from_u128(number))
    }

    fn acme() -> Group {
        Group {
            id: id(1),
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

    fn create(destination: Destination) -> Command {
        Command::Create {
            group: acme(),
            destination,
        }
    }

    fn moved(to: Option<GroupId>) -> Command {
        Command::Move {
            to,
            into_itself: false,
            destination: tight(),
        }
    }

    #[test]
    fn a_group_is_made_once_and_where_there_is_room() {
        assert_eq!(
            decide(&given(&[]), create(tight())),
            Ok(vec![Event::Created(acme())])
        );
        assert_eq!(
            decide(&given(&[Event::Created(acme())]), create(tight())),
            Err(NoRoom::NameTaken.into())
        );
        let deep = Destination {
            max_depth: 19,
            ..tight()
        };
        assert_eq!(
            decide(&State::Absent, create(deep)),
            Err(NoRoom::TooDeep { depth: 20, max: 19 }.into())
        );
    }

    #[test]
    fn an_update_changes_what_it_names() {
        let live = given(&[Event::Created(acme())]);
        let update = |description: Option<&str>| Command::Update {
            description: description.map(|text| text.parse().expect("a description")),
        };
        let updated = decide(&live, update(Some("all of us"))).expect("allowed");
        let state = given(&[Event::Created(acme()), updated[0].clone()]);
        assert!(
            matches!(&state, State::Live(group) if group.description.to_string() == "all of us")
        );
        assert_eq!(decide(&state, update(Some("all of us"))), Ok(vec![]));
        assert_eq!(decide(&state, update(None)), Ok(vec![]));
        assert_eq!(
            decide(&State::Deleted, update(None)),
            Err(Rejection::Missing)
        );
    }

    #[test]
    fn a_group_moves_to_another_parent_only() {
        let live = given(&[Event::Created(acme())]);
        assert_eq!(decide(&live, moved(None)), Err(Rejection::SameParent));
        let events = decide(&live, moved(Some(id(2)))).expect("allowed");
        assert_eq!(
            events,
            [Event::Moved {
                id: id(1),
                from: None,
                to: Some(id(2)),
                name: acme().name,
            }]
        );
        let below = given(&[Event::Created(acme()), events[0].clone()]);
        assert_eq!(
            decide(&below, moved(Some(id(2)))),
            Err(Rejection::SameParent)
        );
        assert!(decide(&below, moved(None)).is_ok());
        assert_eq!(
            decide(&State::Deleted, moved(None)),
            Err(Rejection::Missing)
        );
    }

    #[test]
    fn a_group_moves_neither_below_itself_nor_where_there_is_no_room() {
        let live = given(&[Event::Created(acme())]);
        let into_itself = Command::Move {
            to: Some(id(1)),
            into_itself: true,
            destination: tight(),
        };
        assert_eq!(decide(&live, into_itself), Err(Rejection::IntoItself));
        let full = Command::Move {
            to: Some(id(2)),
            into_itself: false,
            destination: Destination {
                max_siblings: 999,
                ..tight()
            },
        };
        assert_eq!(
            decide(&live, full),
            Err(NoRoom::TooManySiblings(999).into())
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
