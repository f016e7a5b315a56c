//! Access rules: which jobs get a managed identity's credentials. One function decides, wherever it is asked.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use crate::attestation::{Attested, ModuleAttestation, PublicKey};
use crate::{Principal, Stage, TeamId};

/// One condition on the jobs that get an identity's credentials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessRule {
    /// Of which jobs. At least one.
    pub stages: BTreeSet<Stage>,
    /// What it asks of them.
    pub condition: Condition,
}

/// What a rule asks of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// It runs on behalf of one of these.
    EligiblePrincipals(BTreeSet<Principal>),
    /// What it runs has such an attestation.
    ModuleAttestation(ModuleAttestation),
}

/// The type of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RuleType {
    /// [`Condition::EligiblePrincipals`].
    EligiblePrincipals,
    /// [`Condition::ModuleAttestation`].
    ModuleAttestation,
}

/// What rules look at in a job.
#[derive(Clone, Copy, Debug)]
pub struct Run<'a> {
    /// What it does.
    pub stage: Stage,
    /// Who must be eligible, each as everyone whom it may act as: on whose behalf the job runs, and who opened it on that
    /// behalf.
    pub parties: &'a [Vec<Principal>],
    /// The attestations of its module, as far as the rules ask.
    pub attestations: &'a [Attested],
}

/// What a rule says of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is not for its stage.
    OtherStage,
    /// The run is as it asks.
    Holds,
    /// The run is not.
    DoesNotHold,
}

impl AccessRule {
    /// The teams that it names.
    pub fn teams(&self) -> impl Iterator<Item = TeamId> {
        let principals = match &self.condition {
            Condition::EligiblePrincipals(principals) => Some(principals),
            Condition::ModuleAttestation(_) => None,
        };
        let principals = principals.into_iter().flatten();
        principals.filter_map(|principal| match principal {
            Principal::Team(team) => Some(*team),
            _ => None,
        })
    }

    /// The keys that it names.
    pub fn public_keys(&self) -> impl Iterator<Item = &PublicKey> {
        let keys = match &self.condition {
            Condition::ModuleAttestation(attestation) => Some(&attestation.public_keys),
            Condition::EligiblePrincipals(_) => None,
        };
        keys.into_iter().flatten()
    }

    /// What it says of a run.
    #[must_use]
    pub fn verdict(&self, run: &Run<'_>) -> Verdict {
        if !self.stages.contains(&run.stage) {
            Verdict::OtherStage
        } else if self.condition.holds(run) {
            Verdict::Holds
        } else {
            Verdict::DoesNotHold
        }
    }
}

impl Condition {
    /// Its type.
    #[must_use]
    pub fn rule_type(&self) -> RuleType {
        match self {
            Self::EligiblePrincipals(_) => RuleType::EligiblePrincipals,
            Self::ModuleAttestation(_) => RuleType::ModuleAttestation,
        }
    }

    fn holds(&self, run: &Run<'_>) -> bool {
        match self {
            Self::EligiblePrincipals(eligible) => {
                let is_eligible = |party: &Vec<Principal>| {
                    let mut principals = party.iter();
                    principals.any(|principal| eligible.contains(principal))
                };
                !run.parties.is_empty() && run.parties.iter().all(is_eligible)
            }
            Self::ModuleAttestation(wanted) => wanted.holds(run.attestations),
        }
    }
}

/// The types of rules that refuse the run: those with rules for its stage of which none holds. None of them: the job gets
/// the credentials.
#[must_use]
pub fn refusing(rules: &[AccessRule], run: &Run<'_>) -> BTreeSet<RuleType> {
    let with = |wanted: Verdict| -> BTreeSet<RuleType> {
        let rules = rules.iter().filter(|rule| rule.verdict(run) == wanted);
        rules.map(|rule| rule.condition.rule_type()).collect()
    };
    let satisfied = with(Verdict::Holds);
    let mut refusing = with(Verdict::DoesNotHold);
    refusing.retain(|rule_type| !satisfied.contains(rule_type));
    refusing
}

/// The text is not an [`AccessRule`] as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an access rule")]
pub struct InvalidAccessRule;

impl fmt::Display for RuleType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::EligiblePrincipals => "eligible_principals",
            Self::ModuleAttestation => "module_attestation",
        })
    }
}

/// As it is kept: the stages, the type, and what belongs to it, each in a line; no principal or predicate type has one in
/// its name. The predicate type comes before the keys, empty if it is not asked for.
impl fmt::Display for AccessRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stages: Vec<String> = self.stages.iter().map(ToString::to_string).collect();
        write!(f, "{}\n{}", stages.join(","), self.condition.rule_type())?;
        match &self.condition {
            Condition::EligiblePrincipals(principals) => principals
                .iter()
                .try_for_each(|principal| write!(f, "\n{principal}")),
            Condition::ModuleAttestation(wanted) => {
                let says = wanted.predicate_type.as_ref();
                write!(f, "\n{}", says.map_or("", |says| says.as_str()))?;
                let mut keys = wanted.public_keys.iter();
                keys.try_for_each(|key| write!(f, "\n{key}"))
            }
        }
    }
}

impl FromStr for AccessRule {
    type Err = InvalidAccessRule;

    fn from_str(text: &str) -> Result<Self, InvalidAccessRule> {
        let mut lines = text.split('\n');
        let stages = lines.next().ok_or(InvalidAccessRule)?;
        let stages: Result<BTreeSet<Stage>, _> = stages.split(',').map(str::parse).collect();
        let condition = match lines.next() {
            Some("eligible_principals") => {
                let principals: Result<_, _> = lines.map(str::parse).collect();
                Condition::EligiblePrincipals(principals.map_err(|_| InvalidAccessRule)?)
            }
            Some("module_attestation") => {
                let says = lines.next().ok_or(InvalidAccessRule)?;
                let says = (!says.is_empty()).then(|| says.parse()).transpose();
                let keys: Result<_, _> = lines.map(str::parse).collect();
                Condition::ModuleAttestation(ModuleAttestation {
                    public_keys: keys.map_err(|_| InvalidAccessRule)?,
                    predicate_type: says.map_err(|_| InvalidAccessRule)?,
                })
            }
            _ => return Err(InvalidAccessRule),
        };
        Ok(Self {
            stages: stages.map_err(|_| InvalidAccessRule)?,
            condition,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn user(name: &str) -> Principal {
        Principal::user(&format!("dev/{name}")).expect("a user")
    }

    fn rule(stages: &[Stage], users: &[&str]) -> AccessRule {
        AccessRule {
            stages: stages.iter().copied().collect(),
            condition: Condition::EligiblePrincipals(users.iter().map(|name| user(name)).collect()),
        }
    }

    fn refuses(rules: &[AccessRule], stage: Stage, who: &str) -> bool {
        let parties = [vec![user(who)]];
        let run = Run {
            stage,
            parties: &parties,
            attestations: &[],
        };
        let refusing = refusing(rules, &run);
        assert!(refusing.is_empty() || refusing == BTreeSet::from([RuleType::EligiblePrincipals]));
        !refusing.is_empty()
    }

    #[test]
    fn without_a_rule_for_the_stage_anyone_may() {
        assert!(!refuses(&[], Stage::Apply, "alice"));
        let planners = [rule(&[Stage::Plan], &["bob"])];
        assert!(!refuses(&planners, Stage::Apply, "alice"));
        assert!(refuses(&planners, Stage::Plan, "alice"));
        assert!(!refuses(&planners, Stage::Plan, "bob"));
    }

    #[test]
    fn one_rule_of_a_type_is_enough() {
        let rules = [
            rule(&[Stage::Apply], &["alice"]),
            rule(&Stage::ALL, &["bob", "carol"]),
        ];
        for (stage, who, refused) in [
            (Stage::Apply, "alice", false),
            (Stage::Apply, "carol", false),
            (Stage::Apply, "mallory", true),
            (Stage::Plan, "alice", true),
            (Stage::Plan, "bob", false),
        ] {
            assert_eq!(refuses(&rules, stage, who), refused, "{stage} {who}");
        }
    }

    #[test]
    fn everybody_has_to_be_eligible() {
        let rules = [rule(&Stage::ALL, &["alice", "bob"])];
        for (parties, refused) in [
            (vec![], true),
            (vec![vec![]], true),
            (vec![vec![user("alice")], vec![user("bob")]], false),
            (vec![vec![user("alice")], vec![user("mallory")]], true),
            (vec![vec![user("mallory")], vec![user("alice")]], true),
            (vec![vec![user("mallory"), user("alice")]], false),
        ] {
            let run = Run {
                stage: Stage::Plan,
                parties: &parties,
                attestations: &[],
            };
            assert_eq!(!refusing(&rules, &run).is_empty(), refused, "{parties:?}");
        }
    }

    fn attested(key: &str) -> AccessRule {
        AccessRule {
            stages: Stage::ALL.into(),
            condition: Condition::ModuleAttestation(ModuleAttestation {
                public_keys: [key.parse().expect("a key")].into(),
                predicate_type: None,
            }),
        }
    }

    #[test]
    fn each_type_that_has_rules_must_let_it() {
        let rules = [
            rule(&Stage::ALL, &["alice"]),
            rule(&Stage::ALL, &["bob"]),
            attested("aaaa"),
            attested("bbbb"),
        ];
        let signed = |key: &str| Attested {
            predicate_type: "urn:scan".parse().expect("a URI"),
            signed_by: [key.parse().expect("a key")].into(),
        };
        let refusing = |who: &str, attestations: &[Attested]| {
            let parties = [vec![user(who)]];
            let run = Run {
                stage: Stage::Apply,
                parties: &parties,
                attestations,
            };
            refusing(&rules, &run)
        };
        assert_eq!(refusing("bob", &[signed("bbbb")]), [].into());
        assert_eq!(
            refusing("carol", &[signed("aaaa")]),
            [RuleType::EligiblePrincipals].into()
        );
        assert_eq!(
            refusing("bob", &[signed("cccc")]),
            [RuleType::ModuleAttestation].into()
        );
        assert_eq!(
            refusing("carol", &[]),
            [RuleType::EligiblePrincipals, RuleType::ModuleAttestation].into()
        );
    }

    proptest! {
        #[test]
        fn what_is_kept_of_attestations_reads_back(
            stages in prop::collection::btree_set(prop::sample::select(&Stage::ALL[..]), 1..3),
            keys in prop::collection::btree_set("[A-Za-z0-9+/]{4,80}={0,2}", 1..4),
            says in prop::option::of("[a-z]{1,5}:[!-~]{1,40}"),
        ) {
            let rule = AccessRule {
                stages,
                condition: Condition::ModuleAttestation(ModuleAttestation {
                    public_keys: keys.iter().map(|key| key.parse().expect("a key")).collect(),
                    predicate_type: says.map(|says| says.parse().expect("a URI")),
                }),
            };
            prop_assert_eq!(rule.to_string().parse(), Ok(rule));
        }

        #[test]
        fn what_is_kept_reads_back(
            stages in prop::collection::btree_set(prop::sample::select(&Stage::ALL[..]), 1..3),
            users in prop::collection::btree_set("[^\\p{Cc}]{1,20}", 1..5),
        ) {
            let rule = AccessRule {
                stages,
                condition: Condition::EligiblePrincipals(users.iter().map(|name| user(name)).collect()),
            };
            prop_assert_eq!(rule.to_string().parse(), Ok(rule));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "(plan|apply|,|\n|eligible_principals|module_attestation|user:dev/a|.){0,8}") {
            let _ = text.parse::<AccessRule>();
        }
    }
}
