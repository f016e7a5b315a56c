//! Access rules: requests into commands, events and rules into messages.

use std::collections::BTreeSet;

use edge::access_rules::{self, wire_attestation, wire_stages};
use edge::attestation;
use edge::hierarchy::wire_principal;
use edge::holder::Holder;
use edge::request::etag;
use edge::violations::Violations;
use eventlog::RecordedEvent;
use model::access_rule::{AccessRule, Condition};
use model::attestation::ModuleAttestation;
use model::{AccessRuleId, ResourceId, Stage};
use proto::identity::v1::{self as pb, Event, access_rule::Condition as Wire};

use super::{Unreadable, parse};
use crate::domain::access_rules::{
    Change, Event as Happened, Kept, MAX_PRINCIPALS, MAX_PUBLIC_KEYS,
};

pub(crate) fn read(recorded: &RecordedEvent) -> Result<Happened, Unreadable> {
    let rule = |rule: Option<AccessRule>| rule.ok_or(Unreadable::Field("access rule"));
    let (identity, id, revision, change) =
        match Event::decode(&recorded.event_type, &recorded.payload)? {
            Event::AccessRuleCreated(event) => {
                let change = Change::Created(rule(access_rules::created(&event))?);
                let ids = (event.managed_identity_id, event.access_rule_id);
                (ids.0, ids.1, event.revision, change)
            }
            Event::AccessRuleUpdated(event) => {
                let change = Change::Updated(rule(access_rules::updated(&event))?);
                let ids = (event.managed_identity_id, event.access_rule_id);
                (ids.0, ids.1, event.revision, change)
            }
            Event::AccessRuleDeleted(event) => {
                let ids = (event.managed_identity_id, event.access_rule_id);
                (ids.0, ids.1, event.revision, Change::Deleted)
            }
            event => return Err(Unreadable::Foreign(event.event_type().to_owned())),
        };
    Ok(Happened {
        identity: parse("managed identity id", &identity)?,
        id: parse("access rule id", &id)?,
        revision,
        change,
    })
}

pub(crate) fn write(event: &Happened) -> Event {
    let (managed_identity_id, access_rule_id) = (event.identity.to_string(), event.id.to_string());
    let revision = event.revision;
    match &event.change {
        Change::Created(rule) => Event::AccessRuleCreated(pb::AccessRuleCreated {
            managed_identity_id,
            access_rule_id,
            stages: wire_stages(rule),
            condition: Some(match condition(rule) {
                Wire::EligiblePrincipals(it) => {
                    pb::access_rule_created::Condition::EligiblePrincipals(it)
                }
                Wire::ModuleAttestation(it) => {
                    pb::access_rule_created::Condition::ModuleAttestation(it)
                }
            }),
            revision,
        }),
        Change::Updated(rule) => Event::AccessRuleUpdated(pb::AccessRuleUpdated {
            managed_identity_id,
            access_rule_id,
            stages: wire_stages(rule),
            condition: Some(match condition(rule) {
                Wire::EligiblePrincipals(it) => {
                    pb::access_rule_updated::Condition::EligiblePrincipals(it)
                }
                Wire::ModuleAttestation(it) => {
                    pb::access_rule_updated::Condition::ModuleAttestation(it)
                }
            }),
            revision,
        }),
        Change::Deleted => Event::AccessRuleDeleted(pb::AccessRuleDeleted {
            managed_identity_id,
            access_rule_id,
            revision,
        }),
    }
}

fn condition(rule: &AccessRule) -> Wire {
    match &rule.condition {
        Condition::EligiblePrincipals(principals) => {
            Wire::EligiblePrincipals(pb::EligiblePrincipals {
                principals: principals.iter().map(wire_principal).collect(),
            })
        }
        Condition::ModuleAttestation(wanted) => Wire::ModuleAttestation(wire_attestation(wanted)),
    }
}

/// The rule that a request gives.
#[derive(Clone)]
pub(crate) struct Asked {
    pub(crate) stages: BTreeSet<Stage>,
    pub(crate) condition: AskedCondition,
}

/// What the rule that a request gives asks of a job.
#[derive(Clone)]
pub(crate) enum AskedCondition {
    /// To be run on behalf of one of these.
    Eligible(Vec<Holder>),
    /// To run what is attested.
    Attestation(ModuleAttestation),
}

/// Reads the rule that a request gives.
pub(crate) fn asked(rule: &pb::AccessRule) -> Result<Asked, Violations> {
    let mut violations = Violations::default();
    let stages = stages(rule, &mut violations);
    let condition = condition_of(rule, &mut violations);
    violations.finish(|| {
        Some(Asked {
            stages,
            condition: condition?,
        })
    })
}

/// The stages that a request gives; none means both.
pub(crate) fn stages(rule: &pb::AccessRule, violations: &mut Violations) -> BTreeSet<Stage> {
    if rule.stages.is_empty() {
        return Stage::ALL.into();
    }
    let mut stages = BTreeSet::new();
    for (index, given) in rule.stages.iter().enumerate().take(MAX_STAGES) {
        let field = format!("stages[{index}]");
        let stage =
            access_rules::stage(*given).ok_or("must be RULE_STAGE_PLAN or RULE_STAGE_APPLY");
        stages.extend(violations.check(&field, stage));
    }
    if rule.stages.len() > MAX_STAGES {
        violations.add("stages", "must be two at most");
    }
    stages
}

const MAX_STAGES: usize = Stage::ALL.len();

/// The condition that a request gives.
pub(crate) fn condition_of(
    rule: &pb::AccessRule,
    violations: &mut Violations,
) -> Option<AskedCondition> {
    match &rule.condition {
        Some(Wire::EligiblePrincipals(eligible)) => {
            eligible_of(eligible, violations).map(AskedCondition::Eligible)
        }
        Some(Wire::ModuleAttestation(wanted)) => {
            attestation_of(wanted, violations).map(AskedCondition::Attestation)
        }
        None => {
            violations.add("eligible_principals", "must be set, or module_attestation");
            None
        }
    }
}

fn attestation_of(
    wanted: &pb::ModuleAttestation,
    violations: &mut Violations,
) -> Option<ModuleAttestation> {
    const FIELD: &str = "module_attestation";
    let mut inner = Violations::default();
    if !(1..=MAX_PUBLIC_KEYS).contains(&wanted.public_keys.len()) {
        inner.add("public_keys", format!("must be 1 to {MAX_PUBLIC_KEYS}"));
    }
    let mut public_keys = BTreeSet::new();
    for (index, pem) in wanted.public_keys.iter().enumerate().take(MAX_PUBLIC_KEYS) {
        let field = format!("public_keys[{index}]");
        public_keys.extend(inner.check(&field, attestation::public_key(pem)));
    }
    let says = wanted.predicate_type.as_str();
    let says = (!says.is_empty()).then(|| says.parse()).transpose();
    let predicate_type = inner.check("predicate_type", says);
    let read = inner.finish(|| {
        Some(ModuleAttestation {
            public_keys,
            predicate_type: predicate_type?,
        })
    });
    violations.nested(FIELD, read)
}

fn eligible_of(
    eligible: &pb::EligiblePrincipals,
    violations: &mut Violations,
) -> Option<Vec<Holder>> {
    let field = "eligible_principals.principals";
    if !(1..=MAX_PRINCIPALS).contains(&eligible.principals.len()) {
        violations.add(field, format!("must be 1 to {MAX_PRINCIPALS}"));
        return None;
    }
    let mut principals = Vec::new();
    for (index, given) in eligible.principals.iter().enumerate() {
        let field = format!("{field}[{index}]");
        principals.extend(violations.nested(&field, Holder::read(given)));
    }
    Some(principals)
}

/// A rule as callers see it. Times are filled in by whoever knows them.
pub(crate) fn message(
    identity_path: &str,
    identity: ResourceId,
    id: AccessRuleId,
    kept: &Kept,
) -> pb::AccessRule {
    pb::AccessRule {
        id: id.to_string(),
        trn: format!("trn:access_rule:{identity_path}/{id}"),
        managed_identity_id: identity.to_string(),
        stages: wire_stages(&kept.rule),
        condition: Some(condition(&kept.rule)),
        etag: etag(kept.revision),
        create_time: None,
        update_time: None,
    }
}
