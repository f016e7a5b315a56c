//! `MaskService`.

use std::collections::BTreeSet;

use edge::aggregate::{self, Loaded};
use edge::assignments::{Assignments, Ending};
use edge::authorization::find;
use edge::command::{Decision, Mutation};
use edge::hierarchy::{Place, identity_type_key};
use edge::layer::Call;
use edge::masks::{self, Inherited};
use edge::status::PreconditionViolation;
use edge::{clock, request, status};
use eventlog::{Expected, Guard, StreamId};
use futures::future::try_join_all;
use model::mask::Hidden;
use model::{ManagedIdentityId, MaskId, NamespaceId, ResourceId};
use proto::identity::v1 as pb;
use proto::identity::v1::mask_service_server::MaskService;
use tonic::{Request, Response, Status};

use super::{IdentityRpc, changes, count, encoded};
use crate::domain::mask::{self, Command, MAX_IN_NAMESPACE, Mask, Rejection, State};
use crate::wire::mask as wire;
use crate::wire::mask::{Hides, Named, Wanted};

impl From<Rejection> for Status {
    fn from(rejection: Rejection) -> Self {
        const LIMIT: &str = "MASK_LIMIT";
        let message = rejection.to_string();
        match rejection {
            Rejection::Missing => status::not_found("the mask"),
            Rejection::Exists => status::already_exists("MASK_EXISTS", &message),
            Rejection::TooMany => status::failed_precondition(
                LIMIT,
                &message,
                vec![PreconditionViolation::new(LIMIT, "namespace", &message)],
            ),
        }
    }
}

#[tonic::async_trait]
impl MaskService for IdentityRpc {
    async fn create_mask(
        &self,
        request: Request<pb::CreateMaskRequest>,
    ) -> Result<Response<pb::CreateMaskResponse>, Status> {
        let call = Call::of(&request)?;
        let (metadata, _, message) = request.into_parts();
        let wanted = wire::wanted(&message.mask.clone().unwrap_or_default())?;
        let id = clock::new_id();
        let mutation = Mutation::new(&call, &metadata, &message, |m| {
            [&mut m.request_id, &mut m.consistency_token]
        });
        let answer = |reply: &mut pb::CreateMaskResponse, time| {
            if let Some(mask) = &mut reply.mask {
                mask.create_time = Some(request::timestamp(time));
            }
        };
        self.commands
            .carry_out(
                mutation,
                || self.decide_create_mask(&call, id, &wanted),
                |reply| &mut reply.consistency_token,
                answer,
            )
            .await
    }

    async fn get_mask(
        &self,
        request: Request<pb::GetMaskRequest>,
    ) -> Result<Response<pb::GetMaskResponse>, Status> {
        let call = Call::of(&request)?;
        let place = call.place()?;
        let loaded = self.load_mask(call.id("id", "mask")?).await?;
        let namespace = place.above().ok_or(Rejection::Missing)?;
        let mask = message(&namespace, &loaded).ok_or(Rejection::Missing)?;
        Ok(Response::new(pb::GetMaskResponse { mask: Some(mask) }))
    }

    async fn delete_mask(
        &self,
        request: Request<pb::DeleteMaskRequest>,
    ) -> Result<Response<pb::DeleteMaskResponse>, Status> {
        let call = Call::of(&request)?;
        let (metadata, _, message) = request.into_parts();
        let mutation = Mutation::new(&call, &metadata, &message, |m| {
            [&mut m.request_id, &mut m.consistency_token]
        });
        let decide = || async {
            let place = call.relocate(&self.hierarchy).await?;
            let place = place.ok_or(Rejection::Missing)?;
            let id = call.id("id", "mask")?;
            let loaded = self.load_mask(id).await?;
            let decision = deletion(&loaded, place.guards())?;
            let namespace = place.above().ok_or(Rejection::Missing)?;
            let gained = self.gained_by_unmasking(&call, &namespace, id).await?;
            Ok(decision.map(pb::DeleteMaskResponse {
                gained_identities: gained.identities,
                gained_identity_count: gained.count,
                ..Default::default()
            }))
        };
        self.commands
            .carry_out(
                mutation,
                decide,
                |reply| &mut reply.consistency_token,
                |_, _| {},
            )
            .await
    }

    async fn list_masks(
        &self,
        request: Request<pb::ListMasksRequest>,
    ) -> Result<Response<pb::ListMasksResponse>, Status> {
        let call = Call::of(&request)?;
        let _: NamespaceId = call.id("namespace_id", "group or a workspace")?;
        let place = call.place()?;
        let masks = masks::of_namespace(self.commands.log(), place.id()).await?;
        let loaded = masks.into_iter().map(|(id, _)| self.load_mask(id));
        let loaded = try_join_all(loaded).await?;
        let masks = loaded.iter().filter_map(|loaded| message(place, loaded));
        Ok(Response::new(pb::ListMasksResponse {
            masks: masks.collect(),
        }))
    }
}

impl IdentityRpc {
    async fn load_mask(&self, id: MaskId) -> Result<Loaded<State>, Status> {
        aggregate::load(self.commands.log(), &stream(id), wire::read, mask::evolve).await
    }

    async fn decide_create_mask(
        &self,
        call: &Call,
        id: MaskId,
        wanted: &Wanted,
    ) -> Result<Decision<pb::CreateMaskResponse>, Status> {
        let namespace: NamespaceId = call.id("mask.namespace_id", "group or a workspace")?;
        let place = call.relocate(&self.hierarchy).await?;
        let place = place.ok_or_else(|| status::not_found("the namespace"))?;
        let (content, known) = self.content(call, &place, wanted).await?;
        let siblings = siblings_key(namespace);
        let facts = self.facts(std::slice::from_ref(&siblings)).await?;
        let mask = Mask {
            id,
            namespace,
            content,
        };
        let command = Command::Create {
            mask: mask.clone(),
            siblings: count(&facts, &siblings),
        };
        let events = mask::decide(&State::Absent, command)?;
        let events: Vec<_> = events.iter().map(wire::write).collect();
        let mut guards = [place.guards(), known].concat();
        guards.push(Guard::Count {
            key: siblings,
            by: 1,
            min: 0,
            max: MAX_IN_NAMESPACE,
        });
        guards.extend(changes(&events)?);
        let hidden = self.hidden(call, &place, &mask.content).await?;
        let streams = aggregate::append(stream(id), Expected::Version(0), encoded(events));
        Ok(Decision {
            streams: streams.into_iter().collect(),
            guards,
            reply: pb::CreateMaskResponse {
                mask: Some(wire::message(&place.path(), &mask)),
                hidden_assignments: hidden.assignments,
                hidden_assignment_count: hidden.count,
                ..Default::default()
            },
        })
    }

    /// The mask that a request asks for, and what must hold for the identities that it names to be inherited here.
    async fn content(
        &self,
        call: &Call,
        place: &Place,
        wanted: &Wanted,
    ) -> Result<(model::Mask, Vec<Guard>), Status> {
        let mut guards = Vec::new();
        let hides = match &wanted.hides {
            Hides::Everything => Hidden::Everything,
            Hides::Type(word) => Hidden::Type((*word).to_owned()),
            Hides::Identity(named) => {
                let (id, known) = self.inherited(call, place, named).await?;
                guards.extend(known);
                Hidden::Identity(id)
            }
        };
        let mut exceptions = BTreeSet::new();
        for named in &wanted.exceptions {
            let (id, known) = self.inherited(call, place, named).await?;
            guards.extend(known);
            exceptions.insert(id);
        }
        Ok((model::Mask { hides, exceptions }, guards))
    }

    /// An identity that is inherited in a place: made in a group above it. All others are none to whoever has a role here.
    async fn inherited(
        &self,
        call: &Call,
        place: &Place,
        named: &Named,
    ) -> Result<(ManagedIdentityId, Vec<Guard>), Status> {
        let missing = || status::not_found(&named.text);
        let found = find(&self.hierarchy, &named.reference, &call.caller).await?;
        let found = found.ok_or_else(missing)?;
        let group = found.parent();
        let inherited = group.is_some_and(|group| is_above(group, place));
        if !inherited {
            if found.role.is_none() {
                return Err(missing());
            }
            let message = format!(
                "{} is not inherited here: a mask hides nothing else",
                named.text
            );
            let violation = PreconditionViolation::new("NOT_INHERITED", &named.text, &message);
            return Err(status::failed_precondition(
                "NOT_INHERITED",
                &message,
                vec![violation],
            ));
        }
        let id = ManagedIdentityId::try_from(found.id()).map_err(|_| missing())?;
        Ok((id, found.existence()))
    }

    /// The assignments in a place and below it of what a mask there would hide.
    async fn hidden(
        &self,
        call: &Call,
        place: &Place,
        mask: &model::Mask,
    ) -> Result<Ending, Status> {
        let log = self.commands.log();
        let assignments = Assignments::below(log, &self.hierarchy, place.id()).await?;
        let identities = assignments.identities.iter();
        let hidden = identities.filter(|identity| {
            identity.is_from_above(place) && mask.hides(identity.id, &identity.identity_type)
        });
        let hidden: BTreeSet<_> = hidden.map(|identity| identity.id).collect();
        let ends = |_, identity| hidden.contains(&identity);
        assignments
            .ending(&self.hierarchy, &call.caller, ends)
            .await
    }

    /// The nearest mask that hides an identity in a place, and what must still hold for that.
    pub(super) async fn hiding(
        &self,
        place: &Place,
        identity: &Place,
    ) -> Result<(Option<MaskId>, Vec<Guard>), Status> {
        let (Ok(id), Some(group)) = (
            ManagedIdentityId::try_from(identity.id()),
            identity.parent(),
        ) else {
            return Ok((None, vec![]));
        };
        let kind = identity_type_key(id);
        let facts = self.facts(std::slice::from_ref(&kind)).await?;
        let inherited = Inherited {
            id,
            identity_type: facts.get(&kind).unwrap_or_default(),
            group,
        };
        masks::hiding(self.commands.log(), place, inherited).await
    }

    /// Deletes a mask whose group or workspace is gone. Nobody else can change it any more.
    pub(crate) async fn decide_delete_mask_with_namespace(
        &self,
        id: MaskId,
    ) -> Result<Decision<()>, Status> {
        if self.exists(id.into()).await? {
            return Ok(Decision::nothing());
        }
        let loaded = self.load_mask(id).await?;
        match loaded.state {
            State::Live(_) => deletion(&loaded, vec![]),
            State::Absent | State::Deleted => Ok(Decision::nothing()),
        }
    }
}

/// Its end, if this holds still.
fn deletion(loaded: &Loaded<State>, mut guards: Vec<Guard>) -> Result<Decision<()>, Status> {
    let State::Live(mask) = &loaded.state else {
        return Err(Rejection::Missing.into());
    };
    let events = mask::decide(&loaded.state, Command::Delete)?;
    let events: Vec<_> = events.iter().map(wire::write).collect();
    guards.push(Guard::Count {
        key: siblings_key(mask.namespace),
        by: -1,
        min: 0,
        max: i64::MAX,
    });
    guards.extend(changes(&events)?);
    let expected = Expected::Version(loaded.version);
    let streams = aggregate::append(stream(mask.id), expected, encoded(events));
    Ok(Decision {
        streams: streams.into_iter().collect(),
        guards,
        reply: (),
    })
}

/// Whether a group lies above a place, and is not that itself.
fn is_above(group: ResourceId, place: &Place) -> bool {
    place.id() != group && place.is_within(group)
}

/// The key of the count of the masks of a group or workspace.
fn siblings_key(namespace: impl std::fmt::Display) -> String {
    format!("mask-count/{namespace}")
}

fn stream(id: MaskId) -> StreamId {
    StreamId::new("mask", id)
}

fn message(namespace: &Place, loaded: &Loaded<State>) -> Option<pb::Mask> {
    let State::Live(mask) = &loaded.state else {
        return None;
    };
    Some(pb::Mask {
        create_time: loaded.create_time.map(request::timestamp),
        ..wire::message(&namespace.path(), mask)
    })
}
