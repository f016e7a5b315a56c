//! A service account: what acts for a program, which shows tokens of an issuer that the account trusts.

use model::trust::TrustPolicy;
use model::{Description, GroupId, Name, ServiceAccountId};

/// A service account's life so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// It was never made.
    #[default]
    Absent,
    /// It exists, as far as its own stream knows: its group may be gone.
    Live(ServiceAccount),
    /// It was deleted.
    Deleted,
}

/// A service account that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceAccount {
    /// Its id.
    pub id: ServiceAccountId,
    /// Its group.
    pub group: GroupId,
    /// Unique among the group's service accounts. Never changes.
    pub name: Name,
    /// Free text.
    pub description: Description,
    /// Which tokens it stands for; with none, nobody gets a token of ours for it.
    pub trust: Vec<TrustPolicy>,
}

/// What may be asked of a service account.
#[derive(Clone, Debug)]
pub enum Command {
    /// Make it.
    Create {
        /// The service account to be.
        account: ServiceAccount,
        /// Whether one of the group has the name.
        name_taken: bool,
        /// Service accounts that the group has already.
        siblings: i64,
        /// The most of them.
        max_siblings: i64,
    },
    /// Change it.
    Update {
        /// The new description, if it changes.
        description: Option<Description>,
        /// The new policies, if they change.
        trust: Option<Vec<TrustPolicy>>,
    },
    /// Delete it.
    Delete,
}

/// What happened to a service account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It was made.
    Created(ServiceAccount),
    /// Its description or its policies changed; both as they are now.
    Updated(Description, Vec<TrustPolicy>),
    /// It is gone.
    Deleted,
}

/// Why a command was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// There is no such service account.
    #[error("the service account does not exist")]
    Missing,
    /// The name is used in the group.
    #[error("a service account with this name exists in the group already; choose another name")]
    NameTaken,
    /// The group is full.
    #[error("the group has {0} service accounts, more are not allowed")]
    TooMany(i64),
}

/// Decides a command.
pub fn decide(state: &State, command: Command) -> Result<Vec<Event>, Rejection> {
    match (state, command) {
        (
            State::Absent,
            Command::Create {
                name_taken: true, ..
            },
        ) => Err(Rejection::NameTaken),
        (
            State::Absent,
            Command::Create {
                siblings,
                max_siblings,
                ..
            },
        ) if siblings >= max_siblings => Err(Rejection::TooMany(siblings)),
        (State::Absent, Command::Create { account, .. }) => Ok(vec![Event::Created(account)]),
        // Ids are made anew for each and never used again.
        (_, Command::Create { .. }) => Err(Rejection::NameTaken),
        (State::Absent | State::Deleted, _) => Err(Rejection::Missing),
        (State::Live(account), Command::Update { description, trust }) => {
            let description = description.unwrap_or_else(|| account.description.clone());
            let trust = trust.unwrap_or_else(|| account.trust.clone());
            if description == account.description && trust == account.trust {
                return Ok(vec![]);
            }
            Ok(vec![Event::Updated(description, trust)])
        }
        (State::Live(_), Command::Delete) => Ok(vec![Event::Deleted]),
    }
}

/// Applies what happened.
pub fn evolve(state: &mut State, event: &Event) {
    match (state, event) {
        (state, Event::Created(account)) => *state = State::Live(account.clone()),
        (State::Live(account), Event::Updated(description, trust)) => {
            account.description = description.clone();
            account.trust.clone_from(trust);
        }
        (State::Absent | State::Deleted, Event::Updated(..)) => {}
        (state, Event::Deleted) => *state = State::Deleted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ci() -> ServiceAccount {
        ServiceAccount {
            id: ServiceAccountId::from_uuid(uuid::Uuid::from_u128(1)),
            group: GroupId::from_uuid(uuid::Uuid::from_u128(2)),
            name: "ci".parse().expect("a name"),
            description: Description::default(),
            trust: vec![],
        }
    }

    fn live() -> State {
        let mut state = State::default();
        evolve(&mut state, &Event::Created(ci()));
        state
    }

    #[test]
    fn it_is_made_once_and_within_the_limit() {
        let create = |name_taken, siblings| Command::Create {
            account: ci(),
            name_taken,
            siblings,
            max_siblings: 10,
        };
        assert_eq!(
            decide(&State::Absent, create(false, 9)),
            Ok(vec![Event::Created(ci())])
        );
        assert_eq!(
            decide(&State::Absent, create(true, 0)),
            Err(Rejection::NameTaken)
        );
        assert_eq!(
            decide(&State::Absent, create(false, 10)),
            Err(Rejection::TooMany(10))
        );
        assert_eq!(decide(&live(), create(false, 0)), Err(Rejection::NameTaken));
    }

    #[test]
    fn an_update_changes_what_it_names() {
        let update = |description: Option<&str>| Command::Update {
            description: description.map(|text| text.parse().expect("a description")),
            trust: None,
        };
        assert_eq!(decide(&live(), update(None)), Ok(vec![]));
        let events = decide(&live(), update(Some("builds"))).expect("allowed");
        let mut state = live();
        events.iter().for_each(|event| evolve(&mut state, event));
        let State::Live(account) = &state else {
            panic!("it lives")
        };
        assert_eq!(
            (account.description.as_str(), &account.name),
            ("builds", &ci().name)
        );
    }

    #[test]
    fn what_is_deleted_stays_deleted() {
        let events = decide(&live(), Command::Delete).expect("allowed");
        let mut state = live();
        events.iter().for_each(|event| evolve(&mut state, event));
        assert_eq!(decide(&state, Command::Delete), Err(Rejection::Missing));
    }
}
