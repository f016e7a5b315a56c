//! The managed identities that a workspace is made with: asked for here, decided by `identity`.

use std::time::Duration;

use edge::hierarchy::wire_principal;
use edge::initial_assignments::{decided_key, read};
use edge::layer::Call;
use edge::status;
use edge::violations::Violations;
use model::id::InvalidId;
use model::{InvalidReference, InvalidReferenceTo, Kind, Reference};
use proto::identity::v1 as identity;
use proto::namespace::v1 as pb;
use tokio::time::{Instant, timeout_at};
use tonic::Status;

use super::NamespaceRpc;

/// A workspace has one identity of each type; this leaves room for many that are refused.
const MAX: usize = 20;
const FIELD: &str = "managed_identity_ids";

/// What a request asks for; nothing, if it names none.
pub(super) fn requested(
    call: &Call,
    named: &[String],
    violations: &mut Violations,
) -> Option<pb::InitialAssignments> {
    if named.len() > MAX {
        violations.add(FIELD, format!("must not be more than {MAX}"));
    }
    for (index, name) in named.iter().enumerate().take(MAX) {
        let field = format!("{FIELD}[{index}]");
        match name.parse().map(|reference: Reference| reference.kind()) {
            Err(InvalidReference) => {
                violations.add(&field, InvalidReferenceTo(Kind::ManagedIdentity));
            }
            Ok(Kind::ManagedIdentity) if named.iter().take(index).any(|other| other == name) => {
                violations.add(&field, "must not be named twice");
            }
            Ok(Kind::ManagedIdentity) => {}
            Ok(_) => violations.add(&field, "must name a managed identity"),
        }
    }
    (!named.is_empty()).then(|| pb::InitialAssignments {
        requested_by: Some(wire_principal(&call.caller.principal)),
        managed_identities: named.to_vec(),
    })
}

impl NamespaceRpc {
    /// What came of it, as soon as it is known, for this long at most. It never fails: the workspace is made, and what
    /// can't be read is not known yet.
    pub(super) async fn initial_assignments(
        &self,
        workspace: &str,
        named: &[String],
        patience: Duration,
    ) -> Vec<pb::InitialAssignment> {
        let each = match self.outcome(workspace, patience).await {
            Ok(Outcome::Decided(outcomes)) => return outcomes.into_iter().map(told).collect(),
            Ok(Outcome::Gone) => gone,
            Ok(Outcome::Pending) | Err(_) => pending,
        };
        named.iter().map(|named| each(named)).collect()
    }

    async fn outcome(&self, workspace: &str, patience: Duration) -> Result<Outcome, Status> {
        let deadline = Instant::now() + patience;
        let id = workspace
            .parse()
            .map_err(|error: InvalidId| status::internal(&error))?;
        let mut identity = self.identity.clone();
        loop {
            if let Some(followed) = &mut identity {
                followed.mark_unchanged();
            }
            let key = decided_key(workspace);
            let facts = self.facts(std::slice::from_ref(&key)).await?;
            let decided = facts.get(&key).and_then(read);
            if let Some(identity::InitialAssignmentsDecided { outcomes, .. }) = decided {
                return Ok(Outcome::Decided(outcomes));
            }
            let there = self.hierarchy.way_up(id).await;
            if there.map_err(|error| status::database(&error))?.is_none() {
                return Ok(Outcome::Gone);
            }
            let more = match &mut identity {
                Some(followed) => timeout_at(deadline, followed.changed()).await.is_ok(),
                None => false,
            };
            if !more {
                return Ok(Outcome::Pending);
            }
        }
    }
}

/// What came of those of a workspace.
enum Outcome {
    Pending,
    Decided(Vec<identity::InitialAssignmentOutcome>),
    /// The workspace is deleted, and what was decided may be forgotten with it.
    Gone,
}

fn told(outcome: identity::InitialAssignmentOutcome) -> pb::InitialAssignment {
    let state = if outcome.managed_identity_id.is_empty() {
        pb::InitialAssignmentState::Refused
    } else {
        pb::InitialAssignmentState::Assigned
    };
    pb::InitialAssignment {
        managed_identity: outcome.managed_identity,
        state: state.into(),
        managed_identity_id: outcome.managed_identity_id,
        reason: outcome.reason,
        message: outcome.message,
    }
}

fn pending(named: &str) -> pb::InitialAssignment {
    pb::InitialAssignment {
        managed_identity: named.to_owned(),
        state: pb::InitialAssignmentState::Pending.into(),
        ..Default::default()
    }
}

/// As `AssignManagedIdentity` says it by now.
fn gone(named: &str) -> pb::InitialAssignment {
    let refusal = status::not_found("the workspace");
    pb::InitialAssignment {
        managed_identity: named.to_owned(),
        state: pb::InitialAssignmentState::Refused.into(),
        reason: status::reason(&refusal),
        message: refusal.message().to_owned(),
        ..Default::default()
    }
}
