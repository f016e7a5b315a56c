//! A workspace.

use model::{Description, GroupId, Name, WorkspaceId};

use super::{MAX_CHILDREN, MAX_DEPTH};

/// A workspace's life so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// It was never made.
    #[default]
    Absent,
    /// It exists, as far as its own stream knows: a group above may be gone.
    Live(Workspace),
    /// It was deleted.
    Deleted,
}

/// A workspace that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workspace {
    /// Its id.
    pub id: WorkspaceId,
    /// Its group.
    pub group: GroupId,
    /// Unique in the group, subgroups included.
    pub name: Name,
    /// Free text.
    pub description: Description,
}

/// What may be asked of a workspace.
#[derive(Clone, Debug)]
pub enum Command {
    /// Make it.
    Create {
        /// The workspace to be.
        workspace: Workspace,
        /// Names in its path.
        depth: usize,
        /// Whether a subgroup or workspace of the group has the name.
        name_taken: bool,
        /// Workspaces that the group has already.
        siblings: i64,
    },
    /// Delete it.
    Delete,
}

/// What happened to a workspace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It was made.
    Created(Workspace),
    /// It is gone.
    Deleted(Workspace),
}

/// Why a command was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// There is no such workspace.
    #[error("the workspace does not exist")]
    Missing,
    /// The name is used in the group.
    #[error("a group or workspace with this name exists there already; choose another name")]
    NameTaken,
    /// The path would be too long.
    #[error("the workspace would lie {0} levels deep, {MAX_DEPTH} at most are allowed")]
    TooDeep(usize),
    /// The group is full.
    #[error("the group has {MAX_CHILDREN} workspaces, more are not allowed")]
    TooManySiblings,
}

/// Decides a command.
pub fn decide(state: &State, command: Command) -> Result<Vec<Event>, Rejection> {
    match (state, command) {
        (
            State::Absent,
            Command::Create {
                workspace,
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
                Ok(vec![Event::Created(workspace)])
            }
        }
        // Ids are made anew for each workspace and never used again.
        (State::Live(_) | State::Deleted, Command::Create { .. }) => Err(Rejection::NameTaken),
        (State::Live(workspace), Command::Delete) => Ok(vec![Event::Deleted(workspace.clone())]),
        (State::Absent | State::Deleted, Command::Delete) => Err(Rejection::Missing),
    }
}

/// Applies what happened.
pub fn evolve(state: &mut State, event: &Event) {
    *state = match event {
        Event::Created(workspace) => State::Live(workspace.clone()),
        Event::Deleted(_) => State::Deleted,
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn web() -> Workspace {
        Workspace {
            id: WorkspaceId::from_uuid(uuid::Uuid::from_u128(1)),
            group: GroupId::from_uuid(uuid::Uuid::from_u128(2)),
            name: "web".parse().expect("a name"),
            description: Description::default(),
        }
    }

    fn create(depth: usize, name_taken: bool, siblings: i64) -> Command {
        Command::Create {
            workspace: web(),
            depth,
            name_taken,
            siblings,
        }
    }

    #[test]
    fn it_is_made_and_deleted_once() {
        let mut state = State::default();
        let made = decide(&state, create(2, false, 0)).expect("allowed");
        made.iter().for_each(|event| evolve(&mut state, event));
        let gone = decide(&state, Command::Delete).expect("allowed");
        assert_eq!(gone, vec![Event::Deleted(web())]);
        gone.iter().for_each(|event| evolve(&mut state, event));
        assert_eq!(decide(&state, Command::Delete), Err(Rejection::Missing));
        assert_eq!(
            decide(&state, create(2, false, 0)),
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
            decide(&State::Absent, create(2, false, MAX_CHILDREN)),
            Err(Rejection::TooManySiblings)
        );
        assert_eq!(
            decide(&State::Absent, create(2, true, 0)),
            Err(Rejection::NameTaken)
        );
    }
}
