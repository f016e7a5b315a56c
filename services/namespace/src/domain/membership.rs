//! A membership: one principal's role in one group or workspace.

use model::{MembershipId, NamespaceId, Principal, Role};

/// A membership's life so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// It was never made.
    #[default]
    Absent,
    /// It holds, as far as its own stream knows: the group or workspace may be gone.
    Live(Membership),
    /// It ended.
    Deleted,
}

/// A membership that holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// Its id.
    pub id: MembershipId,
    /// Where.
    pub namespace: NamespaceId,
    /// Who.
    pub principal: Principal,
    /// What.
    pub role: Role,
}

/// What may be asked of a membership.
#[derive(Clone, Debug)]
pub enum Command {
    /// Make it.
    Create {
        /// The membership to be.
        membership: Membership,
        /// Whether the principal has one there.
        exists: bool,
    },
    /// Give it another role.
    ChangeRole {
        /// The new role.
        role: Role,
        /// Whether it is the last owner of a top-level group.
        last_owner: bool,
    },
    /// End it.
    Delete {
        /// Whether it is the last owner of a top-level group.
        last_owner: bool,
    },
}

/// What happened to a membership. As it is afterwards, or was until its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It was made.
    Created(Membership),
    /// It has another role.
    RoleChanged(Membership),
    /// It ended.
    Deleted(Membership),
}

/// Why a command was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// There is no such membership.
    #[error("the membership does not exist")]
    Missing,
    /// The principal has one there.
    #[error("the principal has a membership there already; update that one")]
    Exists,
    /// Nobody could give the group an owner again.
    #[error("it is the last owner of a top-level group; make another owner first")]
    LastOwner,
}

/// Decides a command.
pub fn decide(state: &State, command: Command) -> Result<Vec<Event>, Rejection> {
    match (state, command) {
        (
            State::Absent,
            Command::Create {
                membership,
                exists: false,
            },
        ) => Ok(vec![Event::Created(membership)]),
        (_, Command::Create { .. }) => Err(Rejection::Exists),
        (State::Absent | State::Deleted, _) => Err(Rejection::Missing),
        (State::Live(membership), Command::ChangeRole { role, .. }) if membership.role == role => {
            Ok(vec![])
        }
        (
            State::Live(_),
            Command::ChangeRole {
                last_owner: true, ..
            }
            | Command::Delete { last_owner: true },
        ) => Err(Rejection::LastOwner),
        (State::Live(membership), Command::ChangeRole { role, .. }) => {
            Ok(vec![Event::RoleChanged(Membership {
                role,
                ..membership.clone()
            })])
        }
        (State::Live(membership), Command::Delete { .. }) => {
            Ok(vec![Event::Deleted(membership.clone())])
        }
    }
}

/// Applies what happened.
pub fn evolve(state: &mut State, event: &Event) {
    *state = match event {
        Event::Created(membership) | Event::RoleChanged(membership) => {
            State::Live(membership.clone())
        }
        Event::Deleted(_) => State::Deleted,
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::GroupId;

    fn alice(role: Role) -> Membership {
        Membership {
            id: MembershipId::from_uuid(uuid::Uuid::from_u128(1)),
            namespace: NamespaceId::Group(GroupId::from_uuid(uuid::Uuid::from_u128(2))),
            principal: Principal::user("dev/alice").expect("a user"),
            role,
        }
    }

    fn live(role: Role) -> State {
        let mut state = State::default();
        evolve(&mut state, &Event::Created(alice(role)));
        state
    }

    #[test]
    fn one_for_a_principal() {
        let create = |exists| Command::Create {
            membership: alice(Role::Viewer),
            exists,
        };
        assert_eq!(
            decide(&State::Absent, create(false)),
            Ok(vec![Event::Created(alice(Role::Viewer))])
        );
        assert_eq!(decide(&State::Absent, create(true)), Err(Rejection::Exists));
        assert_eq!(
            decide(&live(Role::Viewer), create(false)),
            Err(Rejection::Exists)
        );
    }

    #[test]
    fn the_last_owner_stays() {
        let owner = live(Role::Owner);
        let change = |role, last_owner| Command::ChangeRole { role, last_owner };
        assert_eq!(
            decide(&owner, change(Role::Viewer, true)),
            Err(Rejection::LastOwner)
        );
        assert_eq!(decide(&owner, change(Role::Owner, true)), Ok(vec![]));
        assert_eq!(
            decide(&owner, Command::Delete { last_owner: true }),
            Err(Rejection::LastOwner)
        );
        assert_eq!(
            decide(&owner, change(Role::Viewer, false)),
            Ok(vec![Event::RoleChanged(alice(Role::Viewer))])
        );
        assert_eq!(
            decide(&owner, Command::Delete { last_owner: false }),
            Ok(vec![Event::Deleted(alice(Role::Owner))])
        );
    }

    #[test]
    fn what_ended_stays_ended() {
        let mut state = live(Role::Viewer);
        evolve(&mut state, &Event::Deleted(alice(Role::Viewer)));
        assert_eq!(
            decide(&state, Command::Delete { last_owner: false }),
            Err(Rejection::Missing)
        );
    }
}
