//! Access rules: which jobs get a managed identity's credentials. One function decides, wherever it is asked.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

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
}

/// The type of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RuleType {
    /// [`Condition::EligiblePrincipals`].
    EligiblePrincipals,
}

/// What rules look at in a job.
#[derive(Clone, Copy, Debug)]
pub struct Run<'a> {
    /// What it does.
    pub stage: Stage,
    /// On whose behalf: everyone whom the job may act as.
    pub principals: &'a [Principal],
}

impl AccessRule {
    /// The teams that it names.
    pub fn teams(&self) -> impl Iterator<Item = TeamId> {
        let Condition::EligiblePrincipals(principals) = &self.condition;
        principals.iter().filter_map(|principal| match principal {
            Principal::Team(team) => Some(*team),
            _ => None,
        })
    }
}

impl Condition {
    /// Its type.
    #[must_use]
    pub fn rule_type(&self) -> RuleType {
        match self {
            Self::EligiblePrincipals(_) => RuleType::EligiblePrincipals,
        }
    }

    fn holds(&self, run: &Run<'_>) -> bool {
        match self {
            Self::EligiblePrincipals(eligible) => run
                .principals
                .iter()
                .any(|principal| eligible.contains(principal)),
        }
    }
}

/// The types of rules that refuse the run: those with rules for its stage of which none holds. None of them: the job gets
/// the credentials.
#[must_use]
pub fn refusing(rules: &[AccessRule], run: &Run<'_>) -> BTreeSet<RuleType> {
    let of_stage = || {
        rules
            .iter()
            .filter(|rule| rule.stages.contains(&run.stage))
            .map(|rule| &rule.condition)
    };
    let satisfied: BTreeSet<RuleType> = of_stage()
        .filter(|condition| condition.holds(run))
        .map(Condition::rule_type)
        .collect();
    of_stage()
        .map(Condition::rule_type)
        .filter(|rule_type| !satisfied.contains(rule_type))
        .collect()
}

/// The text is not an [`AccessRule`] as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an access rule")]
pub struct InvalidAccessRule;

impl fmt::Display for RuleType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::EligiblePrincipals => "eligible_principals",
        })
    }
}

/// As it is kept: the stages, the type, and what belongs to it, each in a line; no principal has one in its name.
impl fmt::Display for AccessRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stages: Vec<String> = self.stages.iter().map(ToString::to_string).collect();
        write!(f, "{}\n{}", stages.join(","), self.condition.rule_type())?;
        match &self.condition {
            Condition::EligiblePrincipals(principals) => principals
                .iter()
                .try_for_each(|principal| write!(f, "\n{principal}")),
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
        let principals = [user(who)];
        let run = Run {
            stage,
            principals: &principals,
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
    fn a_job_on_behalf_of_nobody_is_refused() {
        let run = Run {
            stage: Stage::Plan,
            principals: &[],
        };
        assert!(!refusing(&[rule(&Stage::ALL, &["alice"])], &run).is_empty());
    }

    proptest! {
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
        fn no_text_makes_the_parser_panic(text in "(plan|apply|,|\n|eligible_principals|user:dev/a|.){0,8}") {
            let _ = text.parse::<AccessRule>();
        }
    }
}
