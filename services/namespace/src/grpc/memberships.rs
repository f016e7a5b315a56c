//! `MembershipService`.

use edge::aggregate::{self, Loaded};
use edge::command::{Decision, Mutation};
use edge::hierarchy::{Place, member_key};
use edge::holder::Holder;
use edge::layer::Call;
use edge::request::etag;
use edge::status::PreconditionViolation;
use edge::violations::Violations;
use edge::{clock, request, status};
use eventlog::{Expected, Guard};
use model::{MembershipId, NamespaceId, Principal, Role};
use proto::namespace::v1 as pb;
use proto::namespace::v1::membership_service_server::MembershipService;
use tonic::{Request, Response, Status};

use super::access::may_join;
use super::{NamespaceRpc, add, changes, count, encoded, held, owners_key, stream};
use crate::domain::membership::{self, Membership};
use crate::wire;

impl From<membership::Rejection> for Status {
    fn from(rejection: membership::Rejection) -> Self {
        use membership::Rejection;
        let message = rejection.to_string();
        match rejection {
            Rejection::Missing => status::not_found("the membership"),
            Rejection::Exists => status::already_exists("MEMBERSHIP_EXISTS", &message),
            Rejection::LastOwner => status::failed_precondition(
                "LAST_OWNER",
                &message,
                vec![PreconditionViolation::new(
                    "LAST_OWNER",
                    "membership",
                    &message,
                )],
            ),
        }
    }
}

#[tonic::async_trait]
impl MembershipService for NamespaceRpc {
    async fn create_membership(
        &self,
        request: Request<pb::CreateMembershipRequest>,
    ) -> Result<Response<pb::CreateMembershipResponse>, Status> {
        let call = Call::of(&request)?;
        let (metadata, _, message) = request.into_parts();
        let (principal, role) = wire::member(
            message
                .membership
                .as_ref()
                .unwrap_or(&pb::Membership::default()),
        )?;
        let id = clock::new_id();
        let decide = || async {
            let namespace = call.id("membership.namespace_id", "group or a workspace")?;
            self.decide_create_membership(&call, (id, namespace), &principal, role)
                .await
        };
        let mutation = Mutation::new(&call, &metadata, &message, |m| {
            [&mut m.request_id, &mut m.consistency_token]
        });
        let answer = |reply: &mut pb::CreateMembershipResponse, time| {
            if let Some(membership) = &mut reply.membership {
                let time = request::timestamp(time);
                (membership.create_time, membership.update_time) = (Some(time), Some(time));
            }
        };
        self.commands
            .carry_out(
                mutation,
                decide,
                |reply| &mut reply.consistency_token,
                answer,
            )
            .await
    }

    async fn get_membership(
        &self,
        request: Request<pb::GetMembershipRequest>,
    ) -> Result<Response<pb::GetMembershipResponse>, Status> {
        let call = Call::of(&request)?;
        let place = call.place()?;
        let (_, loaded) = self.load_membership("id", place).await?;
        let membership::State::Live(membership) = &loaded.state else {
            return Err(membership::Rejection::Missing.into());
        };
        let message = message(place, membership, &loaded);
        Ok(Response::new(pb::GetMembershipResponse {
            membership: Some(message),
        }))
    }

    async fn update_membership(
        &self,
        request: Request<pb::UpdateMembershipRequest>,
    ) -> Result<Response<pb::UpdateMembershipResponse>, Status> {
        let call = Call::of(&request)?;
        let (metadata, _, message) = request.into_parts();
        let wanted = message.membership.clone().unwrap_or_default();
        let mut violations = Violations::default();
        violations.merge(request::update_mask(
            message.update_mask.as_ref(),
            &["role"],
        ));
        let role = wire::wanted_role(&wanted, &mut violations);
        let role = violations.finish(|| role)?;
        let mutation = Mutation::new(&call, &metadata, &message, |m| {
            [&mut m.request_id, &mut m.consistency_token]
        });
        let answer = |reply: &mut pb::UpdateMembershipResponse, time| {
            if let Some(membership) = &mut reply.membership {
                membership.update_time = Some(request::timestamp(time));
            }
        };
        self.commands
            .carry_out(
                mutation,
                || self.decide_change_role(&call, &wanted.etag, role),
                |reply| &mut reply.consistency_token,
                answer,
            )
            .await
    }

    async fn delete_membership(
        &self,
        request: Request<pb::DeleteMembershipRequest>,
    ) -> Result<Response<pb::DeleteMembershipResponse>, Status> {
        let call = Call::of(&request)?;
        let (metadata, _, message) = request.into_parts();
        let mutation = Mutation::new(&call, &metadata, &message, |m| {
            [&mut m.request_id, &mut m.consistency_token]
        });
        let decide = || self.decide_delete_membership(&call, &message.etag);
        self.commands
            .carry_out(
                mutation,
                decide,
                |reply| &mut reply.consistency_token,
                |_, _| {},
            )
            .await
    }

    async fn get_access(
        &self,
        request: Request<pb::GetAccessRequest>,
    ) -> Result<Response<pb::GetAccessResponse>, Status> {
        let call = Call::of(&request)?;
        let answer = self.access(&call, request.get_ref()).await?;
        Ok(Response::new(answer))
    }
}

impl NamespaceRpc {
    async fn load_membership(
        &self,
        field: &str,
        place: &Place,
    ) -> Result<(MembershipId, Loaded<membership::State>), Status> {
        let id = MembershipId::try_from(place.id())
            .map_err(|_| Violations::of(field, "must name a membership").into_status())?;
        Ok((id, self.load_membership_stream(id).await?))
    }

    pub(super) async fn load_membership_stream(
        &self,
        id: MembershipId,
    ) -> Result<Loaded<membership::State>, Status> {
        let (read, evolve) = (wire::read_membership, membership::evolve);
        aggregate::load(self.commands.log(), &stream("membership", id), read, evolve).await
    }

    async fn decide_create_membership(
        &self,
        call: &Call,
        (id, namespace): (MembershipId, NamespaceId),
        named: &Holder,
        role: Role,
    ) -> Result<Decision<pb::CreateMembershipResponse>, Status> {
        let place = call
            .relocate(&self.hierarchy)
            .await?
            .ok_or_else(|| status::not_found("the namespace"))?;
        let known = named.find(&self.hierarchy, &call.caller).await?;
        may_join(&known, &place)?;
        let of_principal = known.guards();
        let membership = Membership {
            id,
            namespace,
            principal: known.principal,
            role,
        };
        let member = member_key(membership.namespace, &membership.principal);
        let facts = self.facts(std::slice::from_ref(&member)).await?;
        let exists = facts.get(&member).is_some();
        let command = membership::Command::Create {
            membership: membership.clone(),
            exists,
        };
        let events: Vec<_> = membership::decide(&membership::State::Absent, command)?
            .iter()
            .map(wire::write_membership)
            .collect();
        let mut guards = place.guards();
        guards.extend(of_principal);
        guards.push(Guard::Expect {
            key: member,
            value: None,
        });
        let by = i64::from(counts_as_owner(&membership.principal, membership.role));
        guards.push(owners(&membership, by, 0));
        guards.extend(held(&membership, true));
        guards.extend(changes(&events)?);
        let mut reply = wire::membership_message(&place.path(), &membership);
        reply.etag = etag(events.len() as u64);
        let streams = aggregate::append(
            stream("membership", membership.id),
            Expected::Version(0),
            encoded(events),
        );
        let reply = pb::CreateMembershipResponse {
            membership: Some(reply),
            ..Default::default()
        };
        Ok(Decision {
            streams: streams.into_iter().collect(),
            guards,
            reply,
        })
    }

    async fn decide_change_role(
        &self,
        call: &Call,
        given_etag: &str,
        role: Role,
    ) -> Result<Decision<pb::UpdateMembershipResponse>, Status> {
        let ground = self.ground("membership.", call, given_etag).await?;
        let command = membership::Command::ChangeRole {
            role,
            last_owner: ground.last_owner,
        };
        let events = membership::decide(&ground.loaded.state, command)?;
        let mut after = ground.loaded.state.clone();
        events
            .iter()
            .for_each(|event| membership::evolve(&mut after, event));
        let membership::State::Live(membership) = &after else {
            return Err(membership::Rejection::Missing.into());
        };
        let owns = |role| i64::from(counts_as_owner(&ground.membership.principal, role));
        let by = owns(role) - owns(ground.membership.role);
        let mut reply = message(&ground.place, membership, &ground.loaded);
        reply.etag = etag(ground.loaded.version + events.len() as u64);
        let reply = pb::UpdateMembershipResponse {
            membership: Some(reply),
            ..Default::default()
        };
        ground.decision(&events, by, reply)
    }

    async fn decide_delete_membership(
        &self,
        call: &Call,
        given_etag: &str,
    ) -> Result<Decision<pb::DeleteMembershipResponse>, Status> {
        let ground = self.ground("", call, given_etag).await?;
        let command = membership::Command::Delete {
            last_owner: ground.last_owner,
        };
        let events = membership::decide(&ground.loaded.state, command)?;
        let owner = counts_as_owner(&ground.membership.principal, ground.membership.role);
        let reply = pb::DeleteMembershipResponse::default();
        let mut decision = ground.decision(&events, -i64::from(owner), reply)?;
        decision.guards.extend(held(&ground.membership, false));
        Ok(decision)
    }

    /// What a change of a membership is decided on.
    async fn ground(&self, within: &str, call: &Call, given_etag: &str) -> Result<Ground, Status> {
        let place = call
            .relocate(&self.hierarchy)
            .await?
            .ok_or(membership::Rejection::Missing)?;
        let (_, loaded) = self.load_membership(&format!("{within}id"), &place).await?;
        loaded.check_etag(&format!("{within}etag"), given_etag)?;
        let membership::State::Live(membership) = loaded.state.clone() else {
            return Err(membership::Rejection::Missing.into());
        };
        let owners = owners_key(membership.namespace);
        let facts = self.facts(std::slice::from_ref(&owners)).await?;
        // The membership itself and its group: a place of two nodes is right below the top.
        let top_level =
            place.nodes.len() == 2 && matches!(membership.namespace, NamespaceId::Group(_));
        let owner = counts_as_owner(&membership.principal, membership.role);
        let last_owner = top_level && owner && count(&facts, &owners) <= 1;
        Ok(Ground {
            place,
            loaded,
            membership,
            top_level,
            last_owner,
        })
    }
}

struct Ground {
    place: Place,
    loaded: Loaded<membership::State>,
    membership: Membership,
    top_level: bool,
    last_owner: bool,
}

impl Ground {
    fn decision<R>(
        &self,
        events: &[membership::Event],
        owners_by: i64,
        reply: R,
    ) -> Result<Decision<R>, Status> {
        let events: Vec<_> = events.iter().map(wire::write_membership).collect();
        let mut guards = self.place.guards();
        guards.push(owners(
            &self.membership,
            owners_by,
            i64::from(self.top_level && owners_by < 0),
        ));
        guards.extend(changes(&events)?);
        let stream = stream("membership", self.membership.id);
        let streams = aggregate::append(
            stream,
            Expected::Version(self.loaded.version),
            encoded(events),
        );
        Ok(Decision {
            streams: streams.into_iter().collect(),
            guards,
            reply,
        })
    }
}

/// Whether a top-level group has an owner in this principal. A team counts, with or without members: who is in it is
/// the administrators' to say, and it is not deleted while a group would be left without an owner. A service account does
/// not: its life ends in another service's log, with it or with its group, and no guard here could keep it.
pub(super) fn counts_as_owner(principal: &Principal, role: Role) -> bool {
    role == Role::Owner && !matches!(principal, Principal::ServiceAccount(_))
}

/// Counts the owners of the membership's group or workspace.
fn owners(membership: &Membership, by: i64, min: i64) -> Guard {
    add(owners_key(membership.namespace), by, min, i64::MAX)
}

fn message(
    place: &Place,
    membership: &Membership,
    loaded: &Loaded<membership::State>,
) -> pb::Membership {
    pb::Membership {
        etag: loaded.etag(),
        create_time: loaded.create_time.map(request::timestamp),
        update_time: loaded.update_time.map(request::timestamp),
        ..wire::membership_message(&place.path(), membership)
    }
}
