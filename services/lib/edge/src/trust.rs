//! Trust policies of service accounts as messages.

use std::collections::BTreeMap;

use model::trust::{Algorithm, InvalidAlgorithm, InvalidPattern, Pattern, TrustPolicy};
use proto::identity::v1 as pb;
use proto::identity::v1::claim_condition::Condition;

/// The policies of an event; `None` if one is not as our writers make them.
#[must_use]
pub fn policies(policies: &[pb::TrustPolicy]) -> Option<Vec<TrustPolicy>> {
    policies.iter().map(policy).collect()
}

fn policy(policy: &pb::TrustPolicy) -> Option<TrustPolicy> {
    let claims: Option<BTreeMap<_, _>> = policy
        .claims
        .iter()
        .map(|condition| {
            let (_, pattern) = pattern(condition)?;
            Some((condition.claim.parse().ok()?, pattern.ok()?))
        })
        .collect();
    Some(TrustPolicy {
        issuer: policy.issuer.parse().ok()?,
        signing_algorithm: signing_algorithm(policy).transpose().ok()?,
        audience: policy.audience.parse().ok()?,
        claims: claims?,
    })
}

/// What a policy says of its issuer's algorithm, if it does.
#[must_use]
pub fn signing_algorithm(policy: &pb::TrustPolicy) -> Option<Result<Algorithm, InvalidAlgorithm>> {
    let said = Some(&policy.signing_algorithm).filter(|said| !said.is_empty());
    said.map(|said| said.parse())
}

/// What a condition asks of its claim, and the field that says so; `None` if none does.
#[must_use]
pub fn pattern(
    condition: &pb::ClaimCondition,
) -> Option<(&'static str, Result<Pattern, InvalidPattern>)> {
    Some(match condition.condition.as_ref()? {
        Condition::Equals(text) => ("equals", Pattern::exact(text)),
        Condition::Glob(text) => ("glob", Pattern::glob(text)),
    })
}

/// A policy as messages have it.
#[must_use]
pub fn message(policy: &TrustPolicy) -> pb::TrustPolicy {
    let claims = policy.claims.iter().map(|(name, pattern)| {
        let condition = match pattern {
            Pattern::Exact(text) => Condition::Equals(text.clone()),
            Pattern::Glob(text) => Condition::Glob(text.clone()),
        };
        pb::ClaimCondition {
            claim: name.to_string(),
            condition: Some(condition),
        }
    });
    pb::TrustPolicy {
        issuer: policy.issuer.to_string(),
        audience: policy.audience.to_string(),
        claims: claims.collect(),
        signing_algorithm: policy
            .signing_algorithm
            .map_or_else(String::new, |algorithm| algorithm.as_str().to_owned()),
    }
}
