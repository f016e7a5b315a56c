//! Service accounts between the domain and the wire.

use std::collections::BTreeMap;

use edge::trust;
use edge::violations::Violations;
use eventlog::RecordedEvent;
use model::trust::TrustPolicy;
use model::{Description, Name};
use proto::identity::v1::{self as pb, Event};
use tonic::Status;

use super::{Unreadable, parse};
use crate::domain::service_account::{self, ServiceAccount};

pub(crate) fn read(recorded: &RecordedEvent) -> Result<service_account::Event, Unreadable> {
    let policies =
        |policies: &[pb::TrustPolicy]| trust::policies(policies).ok_or(Unreadable::Field("policy"));
    match Event::decode(&recorded.event_type, &recorded.payload)? {
        Event::ServiceAccountCreated(event) => {
            Ok(service_account::Event::Created(ServiceAccount {
                id: parse("service account id", &event.service_account_id)?,
                group: parse("group id", &event.group_id)?,
                name: parse("name", &event.name)?,
                description: parse("description", &event.description)?,
                trust: policies(&event.trust_policies)?,
            }))
        }
        Event::ServiceAccountUpdated(event) => Ok(service_account::Event::Updated(
            parse("description", &event.description)?,
            policies(&event.trust_policies)?,
        )),
        Event::ServiceAccountDeleted(_) => Ok(service_account::Event::Deleted),
        event => Err(Unreadable::Foreign(event.event_type().to_owned())),
    }
}

/// The event of a service account that is as given afterwards, or was until its end.
pub(crate) fn write(account: &ServiceAccount, event: &service_account::Event) -> Event {
    let (id, group_id, name) = (
        account.id.to_string(),
        account.group.to_string(),
        account.name.to_string(),
    );
    match event {
        service_account::Event::Created(account) => {
            Event::ServiceAccountCreated(pb::ServiceAccountCreated {
                service_account_id: id,
                group_id,
                name,
                description: account.description.to_string(),
                trust_policies: account.trust.iter().map(trust::message).collect(),
            })
        }
        service_account::Event::Updated(description, policies) => {
            Event::ServiceAccountUpdated(pb::ServiceAccountUpdated {
                service_account_id: id,
                description: description.to_string(),
                trust_policies: policies.iter().map(trust::message).collect(),
            })
        }
        service_account::Event::Deleted => {
            Event::ServiceAccountDeleted(pb::ServiceAccountDeleted {
                service_account_id: id,
                group_id,
                name,
            })
        }
    }
}

/// What a request says of a service account to be made.
pub(crate) struct Wanted {
    pub(crate) name: Name,
    pub(crate) description: Description,
    pub(crate) trust: Vec<TrustPolicy>,
}

pub(crate) fn wanted(account: &pb::ServiceAccount) -> Result<Wanted, Status> {
    let mut violations = Violations::default();
    let name = violations.check("service_account.name", account.name.parse());
    let description = violations.check("service_account.description", account.description.parse());
    let trust = policies(account, &mut violations);
    Ok(violations.finish(|| {
        Some(Wanted {
            name: name?,
            description: description?,
            trust: trust?,
        })
    })?)
}

/// The policies that a request gives.
pub(crate) fn policies(
    account: &pb::ServiceAccount,
    violations: &mut Violations,
) -> Option<Vec<TrustPolicy>> {
    const FIELD: &str = "service_account.trust_policies";
    let given = &account.trust_policies;
    if given.len() > TrustPolicy::MAX {
        violations.add(FIELD, format!("must be {} at most", TrustPolicy::MAX));
        return None;
    }
    let read = given
        .iter()
        .enumerate()
        .map(|(number, given)| violations.nested(&format!("{FIELD}[{number}]"), policy(given)));
    // Each is read, so that whatever is wrong is named.
    let read: Vec<_> = read.collect();
    read.into_iter().collect()
}

fn policy(given: &pb::TrustPolicy) -> Result<TrustPolicy, Violations> {
    let mut violations = Violations::default();
    let issuer = violations.check("issuer", given.issuer.parse());
    let audience = violations.check("audience", given.audience.parse());
    let algorithm = trust::signing_algorithm(given).transpose();
    let algorithm = violations.check("signing_algorithm", algorithm);
    if !(1..=TrustPolicy::MAX_CLAIMS).contains(&given.claims.len()) {
        let most = TrustPolicy::MAX_CLAIMS;
        violations.add("claims", format!("must be 1 to {most}"));
    }
    let mut claims = BTreeMap::new();
    for (number, condition) in given
        .claims
        .iter()
        .enumerate()
        .take(TrustPolicy::MAX_CLAIMS)
    {
        let field = format!("claims[{number}]");
        let name = violations.check(&format!("{field}.claim"), condition.claim.parse());
        let pattern = match trust::pattern(condition) {
            None => violations.required(&field, None),
            Some((of, pattern)) => violations.check(&format!("{field}.{of}"), pattern),
        };
        if let (Some(name), Some(pattern)) = (name, pattern)
            && claims.insert(name, pattern).is_some()
        {
            violations.add(&format!("{field}.claim"), "must not come twice in a policy");
        }
    }
    violations.finish(|| {
        Some(TrustPolicy {
            issuer: issuer?,
            audience: audience?,
            signing_algorithm: algorithm?,
            claims,
        })
    })
}

/// A service account as callers see it. Times and etag are filled in by whoever knows them.
pub(crate) fn message(group_path: &str, account: &ServiceAccount) -> pb::ServiceAccount {
    pb::ServiceAccount {
        id: account.id.to_string(),
        trn: format!("trn:service_account:{group_path}/{}", account.name),
        group_id: account.group.to_string(),
        name: account.name.to_string(),
        description: account.description.to_string(),
        trust_policies: account.trust.iter().map(trust::message).collect(),
        ..pb::ServiceAccount::default()
    }
}
