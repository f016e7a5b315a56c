//! A workspace.

use model::{Description, GroupId, JobDuration, Name, WorkspaceId};

use super::{Destination, NoRoom};

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
    /// How long its jobs may live; none: as long as any.
    pub max_job_duration: Option<JobDuration>,
}

/// How long the jobs of a workspace may live, as somebody wants it to be; none: as long as any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaxJobDuration(pub Option<JobDuration>);

/// What may be asked of a workspace.
#[derive(Clone, Debug)]
pub enum Command {
    /// Make it.
    Create {
        /// The workspace to be.
        workspace: Workspace,
        /// Where it is to lie.
        destination: Destination,
    },
    /// Change it.
    Update {
        /// The new description, if it changes.
        description: Option<Description>,
        /// The new maximum, if it changes.
        max_job_duration: Option<MaxJobDuration>,
    },
    /// Put it elsewhere.
    Move {
        /// The group that it is to lie in.
        to: GroupId,
        /// Where it is to lie.
        destination: Destination,
    },
    /// Delete it.
    Delete,
}

/// What happened to a workspace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It was made.
    Created(Workspace),
    /// Its description or maximum changed.
    Updated {
        /// Which.
        id: WorkspaceId,
        /// As it is now.
        description: Description,
        /// As it is now.
        max_job_duration: Option<JobDuration>,
    },
    /// It lies elsewhere.
    Moved {
        /// Which.
        id: WorkspaceId,
        /// Where it was.
        from: GroupId,
        /// Where it is.
        to: GroupId,
        /// What it is called.
        name: Name,
    },
    /// It is gone.
    Deleted(Workspace),
}

/// Why a command was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// There is no such workspace.
    #[error("the workspace does not exist")]
    Missing,
    /// It can't lie there.
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
    /// It lies there.
    #[error("the workspace lies there already")]
    SameGroup,
}

/// Decides a command.
pub fn decide(state: &State, command: Command) -> Result<Vec<Event>, Rejection> {
    match (state, command) {
        (
            State::Absent,
            Command::Create {
                workspace,
                destination,
            },
        ) => {
            destination.check()?;
            Ok(vec![Event::Created(workspace)])
        }
        // Ids are made anew for each workspace and never used again.
        (_, Command::Create { .. }) => Err(NoRoom::NameTaken.into()),
        (State::Absent | State::Deleted, _) => Err(Rejection::Missing),
        (
            State::Live(workspace),
            Command::Update {
                description,
                max_job_duration,
            },
        ) => Ok(update(workspace, description, max_job_duration)),
        (State::Live(workspace), Command::Move { to, .. }) if to == workspace.group => {
            Err(Rejection::SameGroup)
        }
        (State::Live(workspace), Command::Move { to, destination }) => {
            destination.check()?;
            Ok(vec![Event::Moved {
                id: workspace.id,
                from: workspace.group,
                to,
                name: workspace.name.clone(),
            }])
        }
        (State::Live(workspace), Command::Delete) => Ok(vec![Event::Deleted(workspace.clone())]),
    }
}

fn update(
    workspace: &Workspace,
    description: Option<Description>,
    max_job_duration: Option<MaxJobDuration>,
) -> Vec<Event> {
    let description = description.unwrap_or_else(|| workspace.description.clone());
    let max_job_duration = max_job_duration.map_or(workspace.max_job_duration, |wanted| wanted.0);
    if (&description, max_job_duration) == (&workspace.description, workspace.max_job_duration) {
        return vec![];
    }
    vec![Event::Updated {
        id: workspace.id,
        description,
        max_job_duration,
    }]
}

/// Applies what happened.
pub fn evolve(state: &mut State, event: &Event) {
    match (event, state) {
        (Event::Created(workspace), state) => *state = State::Live(workspace.clone()),
        (
            Event::Updated {
                description,
                max_job_duration,
                ..
            },
            State::Live(workspace),
        ) => {
            workspace.description = description.clone();
            workspace.max_job_duration = *max_job_duration;
        }
        (Event::Moved { to, .. }, State::Live(workspace)) => workspace.group = *to,
        (Event::Updated { .. } | Event::Moved { .. }, State::Absent | State::Deleted) => {}
        (Event::Deleted(_), state) => *state = State::Deleted,
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::tight;
    use super::*;

    fn group(number: u128) -> GroupId {
        GroupId::from_uuid(uuid::Uuid::from_u128(number))
    }

    fn web() -> Workspace {
        Workspace {
            id: WorkspaceId::from_uuid(uuid::Uuid::from_u128(1)),
            group: group(2),
            name: "web".parse().expect("a name"),
            description: Description::default(),
            max_job_duration: None,
        }
    }

    fn live() -> State {
        let mut state = State::default();
        evolve(&mut state, &Event::Created(web()));
        state
    }

    fn create() -> Command {
        Command::Create {
            workspace: web(),
            destination: tight(),
        }
    }

    #[test]
    fn it_is_made_and_deleted_once() {
        let mut state = State::default();
        let made = decide(&state, create()).expect("allowed");
        made.iter().for_each(|event| evolve(&mut state, event));
        let gone = decide(&state, Command::Delete).expect("allowed");
        assert_eq!(gone, vec![Event::Deleted(web())]);
        gone.iter().for_each(|event| evolve(&mut state, event));
        assert_eq!(decide(&state, Command::Delete), Err(Rejection::Missing));
        assert_eq!(decide(&state, create()), Err(NoRoom::NameTaken.into()));
    }

    #[test]
    fn an_update_changes_what_it_names() {
        let hour = JobDuration::from_seconds(3_600).expect("a duration");
        let update = |max_job_duration| Command::Update {
            description: None,
            max_job_duration,
        };
        let mut state = live();
        assert_eq!(decide(&state, update(None)), Ok(vec![]));
        assert_eq!(
            decide(&state, update(Some(MaxJobDuration(None)))),
            Ok(vec![])
        );
        let updated = decide(&state, update(Some(MaxJobDuration(Some(hour))))).expect("allowed");
        updated.iter().for_each(|event| evolve(&mut state, event));
        let expected = Workspace {
            max_job_duration: Some(hour),
            ..web()
        };
        assert_eq!(state, State::Live(expected));
        assert_eq!(decide(&state, update(None)), Ok(vec![]));
        let reset = decide(&state, update(Some(MaxJobDuration(None)))).expect("allowed");
        reset.iter().for_each(|event| evolve(&mut state, event));
        assert_eq!(state, live());
    }

    #[test]
    fn it_moves_to_another_group_with_room() {
        let to = |number, destination| Command::Move {
            to: group(number),
            destination,
        };
        assert_eq!(decide(&live(), to(2, tight())), Err(Rejection::SameGroup));
        let full = Destination {
            name_taken: true,
            ..tight()
        };
        assert_eq!(decide(&live(), to(3, full)), Err(NoRoom::NameTaken.into()));
        let moved = decide(&live(), to(3, tight())).expect("allowed");
        let mut state = live();
        moved.iter().for_each(|event| evolve(&mut state, event));
        assert_eq!(decide(&state, to(3, tight())), Err(Rejection::SameGroup));
        assert_eq!(
            decide(&State::Deleted, to(3, tight())),
            Err(Rejection::Missing)
        );
    }
}
