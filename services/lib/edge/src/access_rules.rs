//! Access rules as facts and as messages: the service that owns them writes what the issuer decides on.

use std::collections::BTreeSet;

use eventlog::Change;
use model::access_rule::{AccessRule, Condition};
use model::attestation::ModuleAttestation;
use model::{Principal, Stage};
use proto::identity::v1 as pb;

use crate::attestation;
use crate::hierarchy::{MalformedEvent, principal};

/// The key of how often an identity's rules were changed. Whoever leans on the rules expects this: so a rule that comes,
/// changes or goes meanwhile is noticed.
#[must_use]
pub fn revision_key(identity: impl std::fmt::Display) -> String {
    format!("access-rules/{identity}")
}

/// The keys of an identity's rules start so; what follows is the rule's id.
#[must_use]
pub fn rules_prefix(identity: impl std::fmt::Display) -> String {
    format!("access-rule/{identity}/")
}

/// The facts that a rule is now this one, by the ids of the identity and the rule.
pub(crate) fn is_now(
    identity: &str,
    id: &str,
    rule: Option<AccessRule>,
    revision: u64,
) -> Result<Vec<Change>, MalformedEvent> {
    let rule = rule.ok_or(MalformedEvent::AccessRule)?;
    Ok(vec![
        (
            format!("{}{id}", rules_prefix(identity)),
            Some(rule.to_string()),
        ),
        (revision_key(identity), Some(revision.to_string())),
    ])
}

/// The facts that a rule is gone.
pub(crate) fn is_gone(identity: &str, id: &str, revision: u64) -> Vec<Change> {
    vec![
        (format!("{}{id}", rules_prefix(identity)), None),
        (revision_key(identity), Some(revision.to_string())),
    ]
}

/// The rule of an event that made one.
#[must_use]
pub fn created(event: &pb::AccessRuleCreated) -> Option<AccessRule> {
    use pb::access_rule_created::Condition as Wire;
    let condition = match event.condition.as_ref()? {
        Wire::EligiblePrincipals(eligible) => eligible_principals(eligible),
        Wire::ModuleAttestation(attestation) => module_attestation(attestation),
    };
    rule(&event.stages, condition?)
}

/// The rule of an event that changed one.
#[must_use]
pub fn updated(event: &pb::AccessRuleUpdated) -> Option<AccessRule> {
    use pb::access_rule_updated::Condition as Wire;
    let condition = match event.condition.as_ref()? {
        Wire::EligiblePrincipals(eligible) => eligible_principals(eligible),
        Wire::ModuleAttestation(attestation) => module_attestation(attestation),
    };
    rule(&event.stages, condition?)
}

fn rule(stages: &[i32], condition: Condition) -> Option<AccessRule> {
    let stages: Option<BTreeSet<Stage>> = stages.iter().copied().map(stage).collect();
    // A rule for no stage would be none, and one for nobody, or for no key, refuses all.
    let stages = stages.filter(|stages| !stages.is_empty())?;
    Some(AccessRule { stages, condition })
}

fn eligible_principals(eligible: &pb::EligiblePrincipals) -> Option<Condition> {
    let principals = eligible.principals.iter();
    let principals = principals.map(|eligible| principal(Some(eligible)));
    let principals: Option<BTreeSet<Principal>> = principals.collect();
    principals.map(Condition::EligiblePrincipals)
}

fn module_attestation(wanted: &pb::ModuleAttestation) -> Option<Condition> {
    let keys = wanted.public_keys.iter();
    let keys: Option<BTreeSet<_>> = keys.map(|pem| attestation::public_key(pem).ok()).collect();
    let says = wanted.predicate_type.as_str();
    let says = (!says.is_empty()).then(|| says.parse()).transpose();
    Some(Condition::ModuleAttestation(ModuleAttestation {
        public_keys: keys?,
        predicate_type: says.ok()?,
    }))
}

/// A rule's attestation as messages have it.
#[must_use]
pub fn wire_attestation(wanted: &ModuleAttestation) -> pb::ModuleAttestation {
    let says = wanted.predicate_type.as_ref();
    pb::ModuleAttestation {
        public_keys: wanted.public_keys.iter().map(attestation::pem).collect(),
        predicate_type: says.map(ToString::to_string).unwrap_or_default(),
    }
}

/// The stage of a message.
#[must_use]
pub fn stage(stage: i32) -> Option<Stage> {
    match pb::RuleStage::try_from(stage).ok()? {
        pb::RuleStage::Unspecified => None,
        pb::RuleStage::Plan => Some(Stage::Plan),
        pb::RuleStage::Apply => Some(Stage::Apply),
    }
}

/// A rule's stages as messages have them.
#[must_use]
pub fn wire_stages(rule: &AccessRule) -> Vec<i32> {
    let wire = |stage: &Stage| match stage {
        Stage::Plan => pb::RuleStage::Plan.into(),
        Stage::Apply => pb::RuleStage::Apply.into(),
    };
    rule.stages.iter().map(wire).collect()
}
