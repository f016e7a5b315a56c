//! A mask: what a group or workspace, and everything below it, does without of what it inherits.

use model::{MaskId, NamespaceId};

/// Masks of a group or workspace.
pub const MAX_IN_NAMESPACE: i64 = 100;
/// Exceptions of a mask.
pub const MAX_EXCEPTIONS: usize = 100;

/// A mask's life so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// It was never made.
    #[default]
    Absent,
    /// It hides, as far as its own stream knows: the group or workspace may be gone.
    Live(Mask),
    /// It was deleted.
    Deleted,
}

/// A mask that there is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mask {
    /// Its id.
    pub id: MaskId,
    /// From where on it hides.
    pub namespace: NamespaceId,
    /// What.
    pub content: model::Mask,
}

/// What may be asked of a mask.
#[derive(Clone, Debug)]
pub enum Command {
    /// Make it.
    Create {
        /// The mask to be.
        mask: Mask,
        /// Masks that the group or workspace has already.
        siblings: i64,
    },
    /// Delete it.
    Delete,
}

/// What happened to a mask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It was made.
    Created(Mask),
    /// It is gone; as it was.
    Deleted(MaskId, NamespaceId),
}

/// Why a command was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// There is no such mask.
    #[error("the mask does not exist")]
    Missing,
    /// Ids are never used again.
    #[error("the mask exists already")]
    Exists,
    /// There are as many as there may be.
    #[error("there are {MAX_IN_NAMESPACE} masks here, more are not allowed")]
    TooMany,
}

/// Decides a command.
pub fn decide(state: &State, command: Command) -> Result<Vec<Event>, Rejection> {
    match (state, command) {
        (State::Absent, Command::Create { siblings, .. }) if siblings >= MAX_IN_NAMESPACE => {
            Err(Rejection::TooMany)
        }
        (State::Absent, Command::Create { mask, .. }) => Ok(vec![Event::Created(mask)]),
        (_, Command::Create { .. }) => Err(Rejection::Exists),
        (State::Live(mask), Command::Delete) => Ok(vec![Event::Deleted(mask.id, mask.namespace)]),
        (State::Absent | State::Deleted, Command::Delete) => Err(Rejection::Missing),
    }
}

/// Applies what happened.
pub fn evolve(state: &mut State, event: &Event) {
    *state = match event {
        Event::Created(mask) => State::Live(mask.clone()),
        Event::Deleted(..) => State::Deleted,
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::mask::Hidden;
    use uuid::Uuid;

    fn mask() -> Mask {
        Mask {
            id: MaskId::from_uuid(Uuid::from_u128(1)),
            namespace: NamespaceId::Group(model::GroupId::from_uuid(Uuid::from_u128(2))),
            content: model::Mask {
                hides: Hidden::Everything,
                exceptions: [].into(),
            },
        }
    }

    #[test]
    fn it_is_made_once_and_deleted_once() {
        let create = |siblings| Command::Create {
            mask: mask(),
            siblings,
        };
        let mut state = State::default();
        assert_eq!(decide(&state, create(100)), Err(Rejection::TooMany));
        assert_eq!(decide(&state, Command::Delete), Err(Rejection::Missing));
        let made = decide(&state, create(99)).expect("made");
        made.iter().for_each(|event| evolve(&mut state, event));
        assert_eq!(state, State::Live(mask()));
        assert_eq!(decide(&state, create(0)), Err(Rejection::Exists));
        let gone = decide(&state, Command::Delete).expect("deleted");
        assert_eq!(gone, [Event::Deleted(mask().id, mask().namespace)]);
        gone.iter().for_each(|event| evolve(&mut state, event));
        assert_eq!(decide(&state, Command::Delete), Err(Rejection::Missing));
    }
}
