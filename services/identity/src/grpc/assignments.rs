//! Assign managed identities to workspaces, and take them away.

use edge::authorization::{find, locate};
use edge::command::{Decision, Mutation};
use edge::hierarchy::{Place, assignment_key, identity_type_key};
use edge::layer::Call;
use edge::status::PreconditionViolation;
use edge::violations::Violations;
use edge::{aggregate, aliases, naming, status};
use eventlog::{Expected, Guard, StreamId};
use model::{Kind, ManagedIdentityId, Reference, WorkspaceId};
use proto::identity::v1 as pb;
use tonic::{Request, Response, Status};

use super::{IdentityRpc, assigned_to_prefix, assignments_key, changes, encoded};
use crate::domain::assignment::{self, Event, Rejection, Rival};
use crate::wire;

impl From<Rejection> for Status {
    fn from(rejection: Rejection) -> Self {
        let message = rejection.to_string();
        let refused = |reason: &'static str, subject: &str| {
            status::failed_precondition(
                reason,
                &message,
                vec![PreconditionViolation::new(reason, subject, &message)],
            )
        };
        match &rejection {
            Rejection::NotInherited => refused("NOT_INHERITED", "managed_identity"),
            Rejection::Masked(mask) => refused("MASKED", &mask.to_string()),
            Rejection::TypeTaken(id) => refused("TYPE_TAKEN", &id.to_string()),
            Rejection::NotAssigned => refused("NOT_ASSIGNED", "managed_identity"),
        }
    }
}

impl IdentityRpc {
    pub(super) async fn assign(
        &self,
        request: Request<pb::AssignManagedIdentityRequest>,
    ) -> Result<Response<pb::AssignManagedIdentityResponse>, Status> {
        let call = Call::of(&request)?;
        let (metadata, _, message) = request.into_parts();
        let identity = reference(&message.managed_identity_id)?;
        let mutation = Mutation::new(&call, &metadata, &message, |m| {
            [&mut m.request_id, &mut m.consistency_token]
        });
        let decide = || self.decide_assign(&call, &identity, &message.managed_identity_id);
        self.commands
            .carry_out(
                mutation,
                decide,
                |reply| &mut reply.consistency_token,
                |_, _| {},
            )
            .await
    }

    pub(super) async fn unassign(
        &self,
        request: Request<pb::UnassignManagedIdentityRequest>,
    ) -> Result<Response<pb::UnassignManagedIdentityResponse>, Status> {
        let call = Call::of(&request)?;
        let (metadata, _, message) = request.into_parts();
        let identity = reference(&message.managed_identity_id)?;
        let mutation = Mutation::new(&call, &metadata, &message, |m| {
            [&mut m.request_id, &mut m.consistency_token]
        });
        let decide = || self.decide_unassign(&call, &identity, &message.managed_identity_id);
        self.commands
            .carry_out(
                mutation,
                decide,
                |reply| &mut reply.consistency_token,
                |_, _| {},
            )
            .await
    }

    async fn decide_assign(
        &self,
        call: &Call,
        reference: &Reference,
        named: &str,
    ) -> Result<Decision<pb::AssignManagedIdentityResponse>, Status> {
        let (workspace, place) = self.workspace(call).await?;
        let loaded = self.load_assignments(workspace).await?;
        let assigned = self
            .assigned(call, (workspace, &place), &loaded.state, reference, named)
            .await?;
        decision(
            workspace,
            Expected::Version(loaded.version),
            &assigned.events,
            [place.guards(), assigned.guards].concat(),
            pb::AssignManagedIdentityResponse::default(),
        )
    }

    /// What comes of assigning an identity to a workspace that has these.
    pub(super) async fn assigned(
        &self,
        call: &Call,
        (workspace, place): (WorkspaceId, &Place),
        state: &assignment::State,
        reference: &Reference,
        named: &str,
    ) -> Result<Assigned, Status> {
        let found = find(&self.hierarchy, reference, &call.caller).await?;
        let identity_place = found.ok_or_else(|| status::not_found(named))?;
        let identity = identity_id(&identity_place)?;
        let inherited = inherits(place, &identity_place);
        // What the workspace does not inherit, its deployer may not even know of.
        if !inherited && identity_place.role.is_none() {
            return Err(status::not_found(named));
        }
        let same_type = self.rivals(call, place, identity, state).await?;
        let (masked, mut guards) = self.hiding(place, &identity_place).await?;
        // What an alias presents must be there when it is assigned: its source's end takes away all that are assigned.
        let source = aliases::source(self.commands.log(), &self.hierarchy, identity).await?;
        guards.extend(source.ok_or_else(|| status::not_found(named))?.guards);
        let command = assignment::Command::Assign {
            workspace,
            identity,
            inherited,
            masked,
            same_type,
        };
        let events = assignment::decide(state, command)?;
        guards.extend(identity_place.guards());
        Ok(Assigned {
            identity,
            events,
            guards,
        })
    }

    async fn decide_unassign(
        &self,
        call: &Call,
        reference: &Reference,
        named: &str,
    ) -> Result<Decision<pb::UnassignManagedIdentityResponse>, Status> {
        let (workspace, place) = self.workspace(call).await?;
        let loaded = self.load_assignments(workspace).await?;
        let missing = || status::not_found(named);
        // By id, one that is gone can still be taken away.
        let resolved = self
            .hierarchy
            .resolve(reference)
            .await
            .map_err(|error| status::database(&error))?;
        let identity = resolved.ok_or_else(missing)?;
        let identity = ManagedIdentityId::try_from(identity).map_err(|_| missing())?;
        if !loaded.state.contains(&identity) {
            // What the workspace neither has nor inherits, its deployer may not even know of.
            let found = locate(&self.hierarchy, identity.into(), &call.caller).await?;
            found
                .filter(|found| found.role.is_some() || inherits(&place, found))
                .ok_or_else(missing)?;
        }
        let events = assignment::decide(
            &loaded.state,
            assignment::Command::Unassign {
                workspace,
                identity,
            },
        )?;
        let reply = pb::UnassignManagedIdentityResponse::default();
        let expected = Expected::Version(loaded.version);
        decision(workspace, expected, &events, place.guards(), reply)
    }

    /// Ends an assignment whose workspace or identity is gone, or which is not inherited any more, or hidden. Decided on the facts alone:
    /// whatever else of the workspace changes at the same moment does not stand in the way.
    pub(crate) async fn decide_end(
        &self,
        workspace: WorkspaceId,
        identity: ManagedIdentityId,
    ) -> Result<Decision<()>, Status> {
        let assignment = assignment_key(workspace, identity);
        let facts = self.facts(std::slice::from_ref(&assignment)).await?;
        let value = facts.get(&assignment).map(str::to_owned);
        let place = self.way_up(workspace.into()).await?;
        let identity_place = self.way_up(identity.into()).await?;
        let (state, mut guards) = (value.iter().map(|_| identity).collect(), vec![]);
        // What is gone never comes back; what lies elsewhere may have come back when the append is made.
        let inherited = match (place, identity_place) {
            (Some(place), Some(identity_place)) => {
                guards.extend(place.guards());
                guards.extend(identity_place.guards());
                let (masked, masks) = self.hiding(&place, &identity_place).await?;
                guards.extend(masks);
                inherits(&place, &identity_place) && masked.is_none()
            }
            (None, _) | (_, None) => false,
        };
        guards.push(Guard::Expect {
            key: assignment,
            value,
        });
        let command = assignment::Command::End {
            workspace,
            identity,
            inherited,
        };
        let events = assignment::decide(&state, command)?;
        decision(workspace, Expected::Any, &events, guards, ())
    }

    pub(super) async fn workspace(&self, call: &Call) -> Result<(WorkspaceId, Place), Status> {
        let place = call
            .relocate(&self.hierarchy)
            .await?
            .ok_or_else(|| status::not_found("the workspace"))?;
        let id = WorkspaceId::try_from(place.id())
            .map_err(|_| Violations::of("workspace_id", "must name a workspace").into_status())?;
        Ok((id, place))
    }

    pub(super) async fn load_assignments(
        &self,
        workspace: WorkspaceId,
    ) -> Result<aggregate::Loaded<assignment::State>, Status> {
        aggregate::load(
            self.commands.log(),
            &stream(workspace),
            wire::read_assignment,
            assignment::evolve,
        )
        .await
    }

    /// Those assigned of the same type as an identity.
    async fn rivals(
        &self,
        call: &Call,
        workspace: &Place,
        identity: ManagedIdentityId,
        assigned: &assignment::State,
    ) -> Result<Vec<Rival>, Status> {
        let others: Vec<ManagedIdentityId> = assigned
            .iter()
            .copied()
            .filter(|other| *other != identity)
            .collect();
        let keys: Vec<String> = others
            .iter()
            .chain([&identity])
            .map(identity_type_key)
            .collect();
        let facts = self.facts(&keys).await?;
        let wanted = facts.get(&identity_type_key(identity));
        let mut rivals = Vec::new();
        for other in others {
            let kind = facts.get(&identity_type_key(other));
            // One that was deleted has no type any more; it is cleared away whichever it had.
            if kind.is_none() || kind == wanted {
                let place = locate(&self.hierarchy, other.into(), &call.caller).await?;
                let source = aliases::source(self.commands.log(), &self.hierarchy, other).await?;
                let usable = match place.filter(|place| inherits(workspace, place)) {
                    Some(place) if source.is_some() => {
                        self.hiding(workspace, &place).await?.0.is_none()
                    }
                    Some(_) | None => false,
                };
                rivals.push(Rival { id: other, usable });
            }
        }
        Ok(rivals)
    }
}

/// What comes of assigning an identity, and what it leans on beside the workspace.
pub(super) struct Assigned {
    pub(super) identity: ManagedIdentityId,
    pub(super) events: Vec<Event>,
    pub(super) guards: Vec<Guard>,
}

pub(super) fn decision<R>(
    workspace: WorkspaceId,
    expected: Expected,
    events: &[Event],
    mut guards: Vec<Guard>,
    reply: R,
) -> Result<Decision<R>, Status> {
    for event in events {
        let (identity, by, value) = match event {
            Event::Assigned(_, identity) => (identity, 1, Some(String::new())),
            Event::Unassigned(_, identity) => (identity, -1, None),
            Event::Begun(..) => continue,
        };
        guards.push(Guard::Count {
            key: assignments_key(identity),
            by,
            min: 0,
            max: i64::MAX,
        });
        guards.push(Guard::Set {
            key: format!("{}{workspace}", assigned_to_prefix(identity)),
            value,
        });
    }
    let events: Vec<_> = events.iter().map(wire::write_assignment).collect();
    guards.extend(changes(&events)?);
    let streams = aggregate::append(stream(workspace), expected, encoded(events));
    Ok(Decision {
        streams: streams.into_iter().collect(),
        guards,
        reply,
    })
}

/// Whether a workspace lies below the group of an identity.
fn inherits(workspace: &Place, identity: &Place) -> bool {
    identity
        .parent()
        .is_some_and(|group| workspace.is_within(group))
}

fn stream(workspace: WorkspaceId) -> StreamId {
    StreamId::new("assignment", workspace)
}

/// What a request names, by what it says alone: whether something else of that name exists is not for everybody to know.
fn reference(text: &str) -> Result<Reference, Status> {
    const FIELD: &str = "managed_identity_id";
    let reference = naming::reference(FIELD, text)?;
    if reference.kind() == Kind::ManagedIdentity {
        Ok(reference)
    } else {
        Err(Violations::of(FIELD, "must name a managed identity").into_status())
    }
}

fn identity_id(place: &Place) -> Result<ManagedIdentityId, Status> {
    ManagedIdentityId::try_from(place.id()).map_err(|_| {
        Violations::of("managed_identity_id", "must name a managed identity").into_status()
    })
}
