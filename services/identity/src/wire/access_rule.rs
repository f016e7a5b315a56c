//! Access rules: requests into commands, events and rules into messages.

use std::collections::BTreeSet;

use edge::access_rules::{self, wire_stages};
use edge::hierarchy::wire_principal;
use edge::holder::Holder;
use edge::request::etag;
use edge::violations::Violations;
use eventlog::RecordedEvent;
use model::access_rule::{AccessRule, Condition};
use model::{AccessRuleId, ResourceId, Stage};
use proto::identity::v1::{self as pb, Event, access_rule::Condition as Wire};

use super::{Unreadable, parse};
use crate::domain::access_rules::{Change, Event as Happened, Kept, MAX_PRINCIPALS};

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
            condition: Some(pb::access_rule_created::Condition::EligiblePrincipals(
                eligible(rule),
            )),
            revision,
        }),
        Change::Updated(rule) => Event::AccessRuleUpdated(pb::AccessRuleUpdated {
            managed_identity_id,
            access_rule_id,
            stages: wire_stages(rule),
            condition: Some(pb::access_rule_updated::Condition::EligiblePrincipals(
                eligible(rule),
            )),
            revision,
        }),
        Change::Deleted => Event::AccessRuleDeleted(pb::AccessRuleDeleted {
            managed_identity_id,
            access_rule_id,
            revision,
        }),
    }
}

fn eligible(rule: &AccessRule) -> pb::EligiblePrincipals {
    let Condition::EligiblePrincipals(principals) = &rule.condition;
    pb::EligiblePrincipals {
        principals: principals.iter().map(wire_principal).collect(),
    }
}

/// The rule that a request gives.
#[derive(Clone)]
pub(crate) struct Asked {
    pub(crate) stages: BTreeSet<Stage>,
    /// Of which principals it asks to be run on behalf of one.
    pub(crate) eligible: Vec<Holder>,
}

/// Reads the rule that a request gives.
pub(crate) fn asked(rule: &pb::AccessRule) -> Result<Asked, Violations> {
    let mut violations = Violations::default();
    let stages = stages(rule, &mut violations);
    let eligible = eligible_of(rule, &mut violations);
    violations.finish(|| {
        Some(Asked {
            stages,
            eligible: eligible?,
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

/// The principals that a request's condition names.
pub(crate) fn eligible_of(
    rule: &pb::AccessRule,
    violations: &mut Violations,
) -> Option<Vec<Holder>> {
    const FIELD: &str = "eligible_principals";
    let Some(Wire::EligiblePrincipals(eligible)) = &rule.condition else {
        violations.add(FIELD, "must be set");
        return None;
    };
    let field = format!("{FIELD}.principals");
    if !(1..=MAX_PRINCIPALS).contains(&eligible.principals.len()) {
        violations.add(&field, format!("must be 1 to {MAX_PRINCIPALS}"));
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
        condition: Some(Wire::EligiblePrincipals(eligible(&kept.rule))),
        etag: etag(kept.revision),
        create_time: None,
        update_time: None,
    }
}
