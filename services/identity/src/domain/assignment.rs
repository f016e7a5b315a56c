//! The managed identities of one workspace.

use std::collections::BTreeSet;

use model::{ManagedIdentityId, MaskId, WorkspaceId};

/// What is assigned, whether it can still be used or not.
pub type State = BTreeSet<ManagedIdentityId>;

/// What may be asked of a workspace's assignments.
#[derive(Clone, Debug)]
pub enum Command {
    /// Assign an identity.
    Assign {
        /// The workspace.
        workspace: WorkspaceId,
        /// The identity.
        identity: ManagedIdentityId,
        /// Whether the workspace lies below the identity's group.
        inherited: bool,
        /// What hides it from the workspace, if something does.
        masked: Option<MaskId>,
        /// Those assigned of the same type.
        same_type: Vec<Rival>,
    },
    /// Take an identity away that the workspace no longer inherits.
    End {
        /// The workspace.
        workspace: WorkspaceId,
        /// The identity.
        identity: ManagedIdentityId,
        /// Whether both exist, the workspace lies below the identity's group, and nothing between hides it.
        inherited: bool,
    },
    /// Take an identity away.
    Unassign {
        /// The workspace.
        workspace: WorkspaceId,
        /// The identity.
        identity: ManagedIdentityId,
    },
}

/// An assigned identity of the same type as one to be assigned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rival {
    /// Which.
    pub id: ManagedIdentityId,
    /// Whether it exists, and is inherited by the workspace and not hidden from it.
    pub usable: bool,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The workspace's jobs may get the identity's credentials.
    Assigned(WorkspaceId, ManagedIdentityId),
    /// They no longer may.
    Unassigned(WorkspaceId, ManagedIdentityId),
    /// What the workspace was to be made with is assigned or refused.
    Begun(WorkspaceId, Vec<Outcome>),
}

/// What came of an identity that a workspace was to be made with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// As the request named it.
    pub named: String,
    /// The identity, if it is assigned.
    pub assigned: Result<ManagedIdentityId, Refusal>,
}

/// Why it is not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// A word that stays the same for ever: `TYPE_TAKEN`.
    pub reason: String,
    /// The same for people.
    pub message: String,
}

/// Why a command was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// The workspace does not inherit the identity.
    #[error(
        "the workspace does not lie below the managed identity's group; only inherited identities can be assigned"
    )]
    NotInherited,
    /// It is hidden there.
    #[error("the mask {0} hides the managed identity from the workspace; its owner can delete it")]
    Masked(MaskId),
    /// One of a type is all that a workspace may have.
    #[error(
        "the workspace has a managed identity of this type already, {0}; unassign that one first"
    )]
    TypeTaken(ManagedIdentityId),
    /// It is not assigned.
    #[error("the managed identity is not assigned to the workspace")]
    NotAssigned,
}

/// Decides a command.
pub fn decide(state: &State, command: Command) -> Result<Vec<Event>, Rejection> {
    match command {
        Command::Assign {
            inherited: false, ..
        } => Err(Rejection::NotInherited),
        Command::Assign {
            masked: Some(mask), ..
        } => Err(Rejection::Masked(mask)),
        Command::Assign { identity, .. } if state.contains(&identity) => Ok(vec![]),
        Command::Assign {
            workspace,
            identity,
            same_type,
            ..
        } => {
            if let Some(rival) = same_type.iter().find(|rival| rival.usable) {
                return Err(Rejection::TypeTaken(rival.id));
            }
            // One that can't be used any more only stands in the way.
            let unassigned = same_type
                .iter()
                .map(|rival| Event::Unassigned(workspace, rival.id));
            Ok(unassigned
                .chain([Event::Assigned(workspace, identity)])
                .collect())
        }
        Command::End {
            workspace,
            identity,
            inherited: false,
        } if state.contains(&identity) => Ok(vec![Event::Unassigned(workspace, identity)]),
        Command::End { .. } => Ok(vec![]),
        Command::Unassign {
            workspace,
            identity,
        } if state.contains(&identity) => Ok(vec![Event::Unassigned(workspace, identity)]),
        Command::Unassign { .. } => Err(Rejection::NotAssigned),
    }
}

/// Applies what happened.
pub fn evolve(state: &mut State, event: &Event) {
    match event {
        Event::Assigned(_, identity) => state.insert(*identity),
        Event::Unassigned(_, identity) => state.remove(identity),
        Event::Begun(..) => false,
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn web() -> WorkspaceId {
        WorkspaceId::from_uuid(uuid::Uuid::from_u128(1))
    }

    fn identity(number: u128) -> ManagedIdentityId {
        ManagedIdentityId::from_uuid(uuid::Uuid::from_u128(number))
    }

    fn assign(number: u128, inherited: bool, same_type: Vec<Rival>) -> Command {
        Command::Assign {
            workspace: web(),
            identity: identity(number),
            inherited,
            masked: None,
            same_type,
        }
    }

    #[test]
    fn what_a_mask_hides_is_not_assigned() {
        let mask = MaskId::from_uuid(uuid::Uuid::from_u128(7));
        let hidden = Command::Assign {
            workspace: web(),
            identity: identity(2),
            inherited: true,
            masked: Some(mask),
            same_type: vec![],
        };
        let refused = Err(Rejection::Masked(mask));
        assert_eq!(decide(&State::default(), hidden), refused);
    }

    #[test]
    fn only_what_is_inherited_is_assigned_and_once() {
        let mut state = State::default();
        assert_eq!(
            decide(&state, assign(2, false, vec![])),
            Err(Rejection::NotInherited)
        );
        let events = decide(&state, assign(2, true, vec![])).expect("allowed");
        assert_eq!(events, vec![Event::Assigned(web(), identity(2))]);
        events.iter().for_each(|event| evolve(&mut state, event));
        assert_eq!(decide(&state, assign(2, true, vec![])), Ok(vec![]));
    }

    #[test]
    fn one_of_a_type_and_the_unusable_one_makes_room() {
        let state = State::from([identity(2)]);
        let rival = |usable| {
            vec![Rival {
                id: identity(2),
                usable,
            }]
        };
        assert_eq!(
            decide(&state, assign(3, true, rival(true))),
            Err(Rejection::TypeTaken(identity(2)))
        );
        assert_eq!(
            decide(&state, assign(3, true, rival(false))),
            Ok(vec![
                Event::Unassigned(web(), identity(2)),
                Event::Assigned(web(), identity(3))
            ])
        );
    }

    #[test]
    fn only_what_is_not_inherited_any_more_ends() {
        let end = |number, inherited| Command::End {
            workspace: web(),
            identity: identity(number),
            inherited,
        };
        let state = State::from([identity(2)]);
        assert_eq!(decide(&state, end(2, true)), Ok(vec![]));
        assert_eq!(
            decide(&state, end(2, false)),
            Ok(vec![Event::Unassigned(web(), identity(2))])
        );
        assert_eq!(decide(&state, end(3, false)), Ok(vec![]));
    }

    #[test]
    fn only_what_is_assigned_is_taken_away() {
        let unassign = |number| Command::Unassign {
            workspace: web(),
            identity: identity(number),
        };
        let state = State::from([identity(2)]);
        assert_eq!(
            decide(&state, unassign(2)),
            Ok(vec![Event::Unassigned(web(), identity(2))])
        );
        assert_eq!(decide(&state, unassign(3)), Err(Rejection::NotAssigned));
    }
}
