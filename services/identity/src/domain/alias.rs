//! An alias: another name of a managed identity, in another group. It is in a stream of its own, like an identity, and
//! has nothing to change there: what it presents is its source's.

use model::{GroupId, ManagedIdentityId, Name};

use super::managed_identity::{Event, Rejection};

/// An alias that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alias {
    /// Its own id.
    pub id: ManagedIdentityId,
    /// Its group.
    pub group: GroupId,
    /// Unique among the group's identities and aliases. Never changes.
    pub name: Name,
    /// Whose data, rules and subject it presents. Never an alias.
    pub source: ManagedIdentityId,
}

/// An alias to be made.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The alias to be.
    pub alias: Alias,
    /// The word for its source's type.
    pub identity_type: String,
    /// What its source is an alias of, if it is one.
    pub source_is_alias_of: Option<ManagedIdentityId>,
    /// Whether the alias's group lies at the source's group or below it.
    pub inherited: bool,
    /// Whether an identity of the group has the name.
    pub name_taken: bool,
    /// Identities that the group has already.
    pub siblings: i64,
    /// The most of them.
    pub max_siblings: i64,
    /// Aliases that the source has already.
    pub aliases: i64,
    /// The most of them.
    pub max_aliases: i64,
}

/// Decides whether it is made.
pub(super) fn create(wanted: Wanted) -> Result<Vec<Event>, Rejection> {
    if let Some(source) = wanted.source_is_alias_of {
        return Err(Rejection::AliasOfAlias(source));
    }
    if wanted.inherited {
        return Err(Rejection::InheritedAnyway);
    }
    if wanted.name_taken {
        return Err(Rejection::NameTaken);
    }
    if wanted.siblings >= wanted.max_siblings {
        return Err(Rejection::TooMany(wanted.siblings));
    }
    if wanted.aliases >= wanted.max_aliases {
        return Err(Rejection::TooManyAliases(wanted.aliases));
    }
    Ok(vec![Event::AliasCreated(
        wanted.alias,
        wanted.identity_type,
    )])
}

#[cfg(test)]
mod tests {
    use super::super::managed_identity::{Command, State, decide, evolve};
    use super::*;

    const SOURCE: u128 = 1;

    fn id(number: u128) -> ManagedIdentityId {
        ManagedIdentityId::from_uuid(uuid::Uuid::from_u128(number))
    }

    fn alias() -> Alias {
        Alias {
            id: id(2),
            group: GroupId::from_uuid(uuid::Uuid::from_u128(3)),
            name: "shared".parse().expect("a name"),
            source: id(SOURCE),
        }
    }

    fn wanted() -> Wanted {
        Wanted {
            alias: alias(),
            identity_type: "aws".to_owned(),
            source_is_alias_of: None,
            inherited: false,
            name_taken: false,
            siblings: 9,
            max_siblings: 10,
            aliases: 9,
            max_aliases: 10,
        }
    }

    fn live() -> State {
        let mut state = State::default();
        let made = decide(&State::Absent, Command::CreateAlias(wanted())).expect("made");
        made.iter().for_each(|event| evolve(&mut state, event));
        state
    }

    #[test]
    fn it_is_made_where_its_source_is_not_inherited_and_there_is_room() {
        assert_eq!(live(), State::Alias(alias()));
        let source_is_alias_of = Some(id(7));
        for (wanted, rejection) in [
            (
                Wanted {
                    source_is_alias_of,
                    inherited: true,
                    ..wanted()
                },
                Rejection::AliasOfAlias(id(7)),
            ),
            (
                Wanted {
                    inherited: true,
                    name_taken: true,
                    ..wanted()
                },
                Rejection::InheritedAnyway,
            ),
            (
                Wanted {
                    name_taken: true,
                    siblings: 10,
                    ..wanted()
                },
                Rejection::NameTaken,
            ),
            (
                Wanted {
                    siblings: 10,
                    aliases: 10,
                    ..wanted()
                },
                Rejection::TooMany(10),
            ),
            (
                Wanted {
                    aliases: 10,
                    ..wanted()
                },
                Rejection::TooManyAliases(10),
            ),
        ] {
            assert_eq!(
                decide(&State::Absent, Command::CreateAlias(wanted)),
                Err(rejection)
            );
        }
        assert_eq!(
            decide(&live(), Command::CreateAlias(wanted())),
            Err(Rejection::NameTaken)
        );
    }

    #[test]
    fn it_is_never_changed() {
        let update = Command::Update {
            description: None,
            configuration: None,
            token_settings: None,
        };
        let to = Command::Move {
            to: GroupId::from_uuid(uuid::Uuid::from_u128(8)),
            name_taken: false,
            siblings: 0,
            max_siblings: 10,
            account_within_reach: true,
            losing: vec![],
        };
        for command in [update, to] {
            assert_eq!(
                decide(&live(), command),
                Err(Rejection::IsAlias(id(SOURCE)))
            );
        }
    }

    #[test]
    fn its_end_says_what_it_was() {
        let delete = Command::Delete {
            assigned: vec![],
            force: false,
        };
        let events = decide(&live(), delete.clone()).expect("allowed");
        assert_eq!(events, vec![Event::AliasDeleted(alias())]);
        let mut state = live();
        events.iter().for_each(|event| evolve(&mut state, event));
        assert_eq!(decide(&state, delete), Err(Rejection::Missing));
    }
}
