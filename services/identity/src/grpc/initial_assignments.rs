//! The managed identities that a workspace is made with: assigned in the name of who made it, once it is there.

use edge::authorization::locate;
use edge::caller::Caller;
use edge::command::Decision;
use edge::hierarchy;
use edge::initial_assignments::{decided_key, read, requested_key};
use edge::layer::Call;
use edge::status;
use eventlog::{Expected, Guard};
use model::{Permission, Principal, Reference, WorkspaceId};
use proto::namespace::v1::InitialAssignments;
use tonic::{Code, Status};

use super::IdentityRpc;
use super::assignments::decision;
use crate::domain::assignment::{self, Event, Outcome, Refusal};

/// What a workspace is to be made with.
pub(crate) struct Requested {
    /// Who made it.
    pub(crate) by: Principal,
    /// As the request named them.
    named: Vec<String>,
}

impl IdentityRpc {
    /// What a workspace is to be made with, if it was not decided yet.
    pub(crate) async fn initially_requested(
        &self,
        workspace: WorkspaceId,
    ) -> Result<Option<Requested>, Status> {
        let (requested, decided) = (requested_key(workspace), decided_key(workspace));
        let facts = self.facts(&[requested.clone(), decided.clone()]).await?;
        let Some(fact) = facts
            .get(&requested)
            .filter(|_| facts.get(&decided).is_none())
        else {
            return Ok(None);
        };
        let malformed = || Status::internal(format!("{requested} is malformed"));
        let message: InitialAssignments = read(fact).ok_or_else(malformed)?;
        let by = hierarchy::principal(message.requested_by.as_ref()).ok_or_else(malformed)?;
        Ok(Some(Requested {
            by,
            named: message.managed_identities,
        }))
    }

    /// Assigns what may be assigned, in the order in which they were named, and tells of each what came of it.
    pub(crate) async fn decide_initial_assignments(
        &self,
        workspace: WorkspaceId,
        requested: &Requested,
    ) -> Result<Decision<()>, Status> {
        let caller = Caller {
            administrator: self.administrators.contains(&requested.by),
            principal: requested.by.clone(),
            event_reader: false,
            leans_on: None,
        };
        let place = locate(&self.hierarchy, workspace.into(), &caller).await?;
        let undecided = self.initially_requested(workspace).await?;
        let Some(place) = place.filter(|_| undecided.is_some()) else {
            return Ok(Decision::nothing());
        };
        let call = Call {
            caller,
            place: Some(place.clone()),
            refusal: None,
            permission: Permission::WorkspaceUpdate,
            validate_only: false,
            method: String::new(),
        };
        let loaded = self.load_assignments(workspace).await?;
        let mut state = loaded.state;
        let mut guards = vec![Guard::Expect {
            key: decided_key(workspace),
            value: None,
        }];
        guards.extend(place.guards());
        let (mut events, mut outcomes) = (vec![], vec![]);
        for named in &requested.named {
            let assigned = match self.initially(&call, workspace, &state, named).await {
                Ok(assigned) => {
                    for event in &assigned.events {
                        assignment::evolve(&mut state, event);
                    }
                    events.extend(assigned.events);
                    guards.extend(assigned.guards);
                    Ok(assigned.identity)
                }
                Err(status) => Err(refusal(status)?),
            };
            outcomes.push(Outcome {
                named: named.clone(),
                assigned,
            });
        }
        events.push(Event::Begun(workspace, outcomes));
        let expected = Expected::Version(loaded.version);
        decision(workspace, expected, &events, guards, ())
    }

    /// Like `AssignManagedIdentity` of whoever made the workspace.
    async fn initially(
        &self,
        call: &Call,
        workspace: WorkspaceId,
        state: &assignment::State,
        named: &str,
    ) -> Result<super::assignments::Assigned, Status> {
        let (_, place) = self.workspace(call).await?;
        let reference: Reference = named
            .parse()
            .map_err(|_| Status::internal(format!("{workspace} is to be made with {named}")))?;
        self.assigned(call, (workspace, &place), state, &reference, named)
            .await
    }
}

/// The refusal, if it is one; not if something failed, and may come out otherwise when it is tried again.
fn refusal(status: Status) -> Result<Refusal, Status> {
    match status.code() {
        Code::NotFound | Code::PermissionDenied | Code::FailedPrecondition => Ok(Refusal {
            reason: status::reason(&status),
            message: status.message().to_owned(),
        }),
        _ => Err(status),
    }
}
