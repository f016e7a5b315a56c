//! The access rules of one managed identity.

use std::collections::{BTreeMap, BTreeSet};

use model::access_rule::{AccessRule, Condition};
use model::{AccessRuleId, ManagedIdentityId, Stage};

/// Rules of an identity. Each issue of a credential reads all of them; a rule names up to [`MAX_PRINCIPALS`].
pub const MAX_RULES: usize = 100;
/// Principals of a rule.
pub const MAX_PRINCIPALS: usize = 100;
/// Public keys of a rule. An attestation is verified with each.
pub const MAX_PUBLIC_KEYS: usize = 10;
/// Public keys of all of an identity's rules: each attestation of a job may be verified with all of them.
pub const MAX_PUBLIC_KEYS_OF_ALL: usize = 100;

/// What rules there are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// By id, which is the order in which they were made.
    pub rules: BTreeMap<AccessRuleId, Kept>,
    /// How often they were changed.
    pub revision: u64,
}

/// A rule that there is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// As it is now.
    pub rule: AccessRule,
    /// Of its last change.
    pub revision: u64,
}

/// What may be asked of an identity's rules.
#[derive(Clone, Debug)]
pub enum Command {
    /// Make one.
    Create(AccessRuleId, AccessRule),
    /// Change one.
    Update {
        /// Which.
        id: AccessRuleId,
        /// The new stages, if they change.
        stages: Option<BTreeSet<Stage>>,
        /// The new condition, if it changes.
        condition: Option<Condition>,
    },
    /// Take one away.
    Delete(AccessRuleId),
}

/// What happened to an identity's rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Whose rule.
    pub identity: ManagedIdentityId,
    /// Which rule.
    pub id: AccessRuleId,
    /// How often the identity's rules were changed, this time included.
    pub revision: u64,
    /// What became of it.
    pub change: Change,
}

/// What became of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// It was made.
    Created(AccessRule),
    /// It is another now.
    Updated(AccessRule),
    /// It is gone.
    Deleted,
}

/// Why a command was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// There is no such rule.
    #[error("the access rule does not exist")]
    Missing,
    /// Ids are never used again.
    #[error("the access rule exists already")]
    Exists,
    /// The identity has as many as it may.
    #[error("the managed identity has {MAX_RULES} access rules, more are not allowed")]
    TooMany,
    /// They name as many public keys as they may.
    #[error(
        "the access rules of the managed identity would name more than {MAX_PUBLIC_KEYS_OF_ALL} public keys together"
    )]
    TooManyKeys,
    /// The type never changes.
    #[error("the type of an access rule never changes; make another one")]
    OtherType,
}

/// Decides a command about an identity's rules.
pub fn decide(
    identity: ManagedIdentityId,
    state: &State,
    command: Command,
) -> Result<Vec<Event>, Rejection> {
    let happened = |id, change| {
        vec![Event {
            identity,
            id,
            revision: state.revision + 1,
            change,
        }]
    };
    match command {
        Command::Create(id, _) if state.rules.contains_key(&id) => Err(Rejection::Exists),
        Command::Create(..) if state.rules.len() >= MAX_RULES => Err(Rejection::TooMany),
        Command::Create(id, rule) => {
            state.has_keys_for(id, &rule)?;
            Ok(happened(id, Change::Created(rule)))
        }
        Command::Update {
            id,
            stages,
            condition,
        } => {
            let before = &state.rules.get(&id).ok_or(Rejection::Missing)?.rule;
            let after = AccessRule {
                stages: stages.unwrap_or_else(|| before.stages.clone()),
                condition: condition.unwrap_or_else(|| before.condition.clone()),
            };
            if after.condition.rule_type() != before.condition.rule_type() {
                return Err(Rejection::OtherType);
            }
            if after == *before {
                return Ok(vec![]);
            }
            state.has_keys_for(id, &after)?;
            Ok(happened(id, Change::Updated(after)))
        }
        Command::Delete(id) if state.rules.contains_key(&id) => Ok(happened(id, Change::Deleted)),
        Command::Delete(_) => Err(Rejection::Missing),
    }
}

impl State {
    /// Whether the rules may name the public keys that this one does, beside those of all others.
    fn has_keys_for(&self, id: AccessRuleId, rule: &AccessRule) -> Result<(), Rejection> {
        let before = self
            .rules
            .get(&id)
            .map_or(0, |kept| kept.rule.public_keys().count());
        let named = self.rules.values().flat_map(|kept| kept.rule.public_keys());
        let now = rule.public_keys().count();
        // What there are too many of may still become fewer.
        if now > before && named.count() - before + now > MAX_PUBLIC_KEYS_OF_ALL {
            Err(Rejection::TooManyKeys)
        } else {
            Ok(())
        }
    }
}

/// Applies what happened.
pub fn evolve(state: &mut State, event: &Event) {
    state.revision = event.revision;
    match &event.change {
        Change::Created(rule) | Change::Updated(rule) => {
            let kept = Kept {
                rule: rule.clone(),
                revision: event.revision,
            };
            state.rules.insert(event.id, kept);
        }
        Change::Deleted => {
            state.rules.remove(&event.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::Principal;
    use model::attestation::ModuleAttestation;

    fn deployer() -> ManagedIdentityId {
        ManagedIdentityId::from_uuid(uuid::Uuid::from_u128(1))
    }

    fn id(number: usize) -> AccessRuleId {
        AccessRuleId::from_uuid(uuid::Uuid::from_u128(number as u128))
    }

    fn only(user: &str) -> AccessRule {
        let user = Principal::user(&format!("dev/{user}")).expect("a user");
        AccessRule {
            stages: Stage::ALL.into(),
            condition: Condition::EligiblePrincipals([user].into()),
        }
    }

    fn update(number: usize, rule: AccessRule) -> Command {
        Command::Update {
            id: id(number),
            stages: Some(rule.stages),
            condition: Some(rule.condition),
        }
    }

    fn carry_out(state: &mut State, command: Command) -> Result<usize, Rejection> {
        let events = decide(deployer(), state, command)?;
        events.iter().for_each(|event| evolve(state, event));
        Ok(events.len())
    }

    #[test]
    fn each_change_has_a_revision_of_its_own() {
        let mut state = State::default();
        assert_eq!(
            carry_out(&mut state, Command::Create(id(1), only("alice"))),
            Ok(1)
        );
        assert_eq!(
            carry_out(&mut state, Command::Create(id(2), only("bob"))),
            Ok(1)
        );
        assert_eq!(carry_out(&mut state, update(1, only("carol"))), Ok(1));
        assert_eq!(state.revision, 3);
        assert_eq!(
            state.rules[&id(1)],
            Kept {
                rule: only("carol"),
                revision: 3
            }
        );
        assert_eq!(state.rules[&id(2)].revision, 2);
        assert_eq!(carry_out(&mut state, update(1, only("carol"))), Ok(0));
        assert_eq!(carry_out(&mut state, Command::Delete(id(2))), Ok(1));
        assert_eq!(
            (state.revision, state.rules.keys().copied().collect()),
            (4, vec![id(1)])
        );
    }

    fn attested(first: usize, keys: usize) -> AccessRule {
        let keys = (first..first + keys).map(|number| format!("key{number}").parse());
        AccessRule {
            stages: Stage::ALL.into(),
            condition: Condition::ModuleAttestation(ModuleAttestation {
                public_keys: keys.collect::<Result<_, _>>().expect("keys"),
                predicate_type: None,
            }),
        }
    }

    #[test]
    fn rules_name_so_many_keys_together() {
        let mut state = State::default();
        for number in 0..MAX_PUBLIC_KEYS_OF_ALL / MAX_PUBLIC_KEYS {
            let rule = attested(number * MAX_PUBLIC_KEYS, MAX_PUBLIC_KEYS);
            assert_eq!(
                carry_out(&mut state, Command::Create(id(number), rule)),
                Ok(1)
            );
        }
        let more = |rule| Command::Create(id(MAX_RULES), rule);
        let refused = Err(Rejection::TooManyKeys);
        assert_eq!(carry_out(&mut state, more(attested(0, 1))), refused);
        // Others than those that it has, or fewer.
        assert_eq!(carry_out(&mut state, update(0, attested(500, 10))), Ok(1));
        assert_eq!(carry_out(&mut state, update(0, attested(500, 9))), Ok(1));
        assert_eq!(carry_out(&mut state, more(attested(600, 2))), refused);
        assert_eq!(carry_out(&mut state, more(attested(600, 1))), Ok(1));
        assert_eq!(carry_out(&mut state, update(0, attested(500, 10))), refused);
        assert_eq!(
            carry_out(
                &mut state,
                Command::Create(id(MAX_RULES + 1), only("alice"))
            ),
            Ok(1)
        );
    }

    #[test]
    fn what_is_not_there_can_not_change_and_nothing_comes_twice() {
        let mut state = State::default();
        for command in [update(1, only("alice")), Command::Delete(id(1))] {
            assert_eq!(carry_out(&mut state, command), Err(Rejection::Missing));
        }
        let create = || Command::Create(id(1), only("alice"));
        assert_eq!(carry_out(&mut state, create()), Ok(1));
        assert_eq!(carry_out(&mut state, create()), Err(Rejection::Exists));
    }

    #[test]
    fn an_identity_has_so_many_at_most() {
        let mut state = State::default();
        for number in 0..MAX_RULES {
            let create = Command::Create(id(number), only("alice"));
            assert_eq!(carry_out(&mut state, create), Ok(1));
        }
        let more = Command::Create(id(MAX_RULES), only("alice"));
        assert_eq!(carry_out(&mut state, more), Err(Rejection::TooMany));
    }
}
