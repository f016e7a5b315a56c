//! Aliases of managed identities.

use edge::aliases::alias_of;
use edge::authorization::find;
use edge::command::{Decision, Mutation};
use edge::hierarchy::{Place, identity_name_key, identity_type_key, limit_key};
use edge::layer::Call;
use edge::request::etag;
use edge::violations::Violations;
use edge::{aggregate, clock, limits, request, status};
use eventlog::{Expected, Guard, StreamAppend};
use model::{GroupId, Limit, ManagedIdentityId, Name, Permission};
use proto::identity::v1::{self as pb, Event};
use tonic::{Code, Request, Response, Status};

use super::managed_identities::stream;
use super::{IdentityRpc, aliases_key, changes, count, encoded, siblings_key};
use crate::domain::alias::{self, Alias};
use crate::domain::managed_identity::{self, Command, ManagedIdentity, Rejection, State};
use crate::wire;

impl IdentityRpc {
    pub(super) async fn create_alias(
        &self,
        request: Request<pb::CreateManagedIdentityAliasRequest>,
    ) -> Result<Response<pb::CreateManagedIdentityAliasResponse>, Status> {
        let call = Call::of(&request)?;
        let (metadata, _, message) = request.into_parts();
        let mut violations = Violations::default();
        let name = violations.check("name", message.name.parse());
        if message.source_id.is_empty() {
            violations.add("source_id", "must be set, to an id or a TRN");
        }
        let name: Name = violations.finish(|| name)?;
        let id = clock::new_id();
        let mutation = Mutation::new(&call, &metadata, &message, |m| {
            [&mut m.request_id, &mut m.consistency_token]
        });
        let answer = |reply: &mut pb::CreateManagedIdentityAliasResponse, time| {
            if let Some(identity) = &mut reply.managed_identity {
                let time = request::timestamp(time);
                (identity.create_time, identity.update_time) = (Some(time), Some(time));
            }
        };
        self.commands
            .carry_out(
                mutation,
                || self.decide_create_alias(&call, id, &name, &message.source_id),
                |reply| &mut reply.consistency_token,
                answer,
            )
            .await
    }

    pub(super) async fn delete_alias(
        &self,
        request: Request<pb::DeleteManagedIdentityAliasRequest>,
    ) -> Result<Response<pb::DeleteManagedIdentityAliasResponse>, Status> {
        let call = Call::of(&request)?;
        let (metadata, _, message) = request.into_parts();
        if message.id.is_empty() {
            return Err(Violations::of("id", "must be set, to an id or a TRN").into_status());
        }
        let mutation = Mutation::new(&call, &metadata, &message, |m| {
            [&mut m.request_id, &mut m.consistency_token]
        });
        let decide = || async {
            let (place, guards) = self.deletable(&call, &message.id).await?;
            let (mut deletion, ending) = self
                .deletion(&call, &place, guards, &message.etag, message.force)
                .await?;
            // Whoever owns the source alone sees no more of an alias than that it is there.
            if message.validate_only && place.role.is_none() {
                leave_out_where_it_is(&mut deletion.streams)?;
            }
            Ok(deletion.map(pb::DeleteManagedIdentityAliasResponse {
                ending_assignments: ending.assignments,
                ending_assignment_count: ending.count,
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

    /// What an alias presents.
    pub(super) async fn source(&self, alias: &Alias) -> Result<ManagedIdentity, Status> {
        match self.load_stream(alias.source).await?.state {
            State::Live(source) if self.exists(alias.source.into()).await? => Ok(source),
            _ => Err(Rejection::Missing.into()),
        }
    }

    async fn decide_create_alias(
        &self,
        call: &Call,
        id: ManagedIdentityId,
        name: &Name,
        source: &str,
    ) -> Result<Decision<pb::CreateManagedIdentityAliasResponse>, Status> {
        let group = call.relocate(&self.hierarchy).await?;
        let group = group.ok_or_else(|| status::not_found("the group"))?;
        let group_id: GroupId = call.id("group_id", "group")?;
        let create = Permission::ManagedIdentityCreate;
        let source = call.permitted(&self.hierarchy, create, "source_id", source);
        let source_place = source.await?;
        let source = ManagedIdentityId::try_from(source_place.id())
            .map_err(|_| Violations::of("source_id", "must name a managed identity"))?;
        let alias = Alias {
            id,
            group: group_id,
            name: name.clone(),
            source,
        };
        let name = identity_name_key(&group_id.to_string(), name.as_str());
        let (siblings, aliases) = (siblings_key(group_id), aliases_key(source));
        let kind = identity_type_key(source);
        let (of_group, of_source) = (Limit::GroupManagedIdentities, Limit::ManagedIdentityAliases);
        let keys = [&name, &siblings, &aliases, &kind].map(String::clone);
        let keys = [
            keys.as_slice(),
            &[limit_key(of_group), limit_key(of_source)],
        ]
        .concat();
        let facts = self.facts(&keys).await?;
        let (max_siblings, max_aliases) = (
            limits::value(&facts, of_group),
            limits::value(&facts, of_source),
        );
        let wanted = alias::Wanted {
            alias: alias.clone(),
            identity_type: facts.get(&kind).unwrap_or_default().to_owned(),
            source_is_alias_of: alias_of(self.commands.log(), source).await?,
            inherited: source_place
                .parent()
                .is_some_and(|above| group.is_within(above)),
            name_taken: facts.get(&name).is_some(),
            siblings: count(&facts, &siblings),
            max_siblings,
            aliases: count(&facts, &aliases),
            max_aliases,
        };
        let events = managed_identity::decide(&State::Absent, Command::CreateAlias(wanted))?;
        let events: Vec<_> = events.iter().map(wire::write_identity).collect();
        let one_more = |key, max| Guard::Count {
            key,
            by: 1,
            min: 0,
            max,
        };
        let mut guards = [group.guards(), source_place.guards()].concat();
        guards.extend([
            Guard::Expect {
                key: name,
                value: None,
            },
            one_more(siblings, max_siblings),
            one_more(aliases, max_aliases),
            limits::unchanged(&facts, of_group),
            limits::unchanged(&facts, of_source),
        ]);
        guards.extend(changes(&events)?);
        let mut message = wire::alias_message(&group.path(), &alias, &self.source(&alias).await?);
        message.etag = etag(events.len() as u64);
        let streams = aggregate::append(stream(id), Expected::Version(0), encoded(events));
        Ok(Decision {
            streams: streams.into_iter().collect(),
            guards,
            reply: pb::CreateManagedIdentityAliasResponse {
                managed_identity: Some(message),
                ..Default::default()
            },
        })
    }

    /// The place of an alias that the caller may delete: by what it may do in the alias's group, or in its source's; and
    /// what must still hold for that.
    async fn deletable(&self, call: &Call, named: &str) -> Result<(Place, Vec<Guard>), Status> {
        const FIELD: &str = "id";
        let delete = Permission::ManagedIdentityDelete;
        let permitted = call.permitted(&self.hierarchy, delete, FIELD, named).await;
        let reference = named
            .parse()
            .map_err(|error| Violations::of(FIELD, error).into_status())?;
        let Some(place) = find(&self.hierarchy, &reference, &call.caller).await? else {
            return Err(status::not_found(named));
        };
        let source = match ManagedIdentityId::try_from(place.id()) {
            Ok(id) => alias_of(self.commands.log(), id).await?,
            Err(_) => None,
        };
        let (refusal, source) = match (permitted, source) {
            (Ok(_), None) => return Err(Violations::of(FIELD, "must name an alias").into_status()),
            (Ok(place), Some(_)) => {
                let guards = place.guards();
                return Ok((place, guards));
            }
            (Err(refusal), None) => return Err(refusal),
            (Err(refusal), Some(source)) => (refusal, source),
        };
        if !matches!(refusal.code(), Code::NotFound | Code::PermissionDenied) {
            return Err(refusal);
        }
        let source = source.to_string();
        match call
            .permitted(&self.hierarchy, delete, FIELD, &source)
            .await
        {
            Ok(source) => Ok((place.clone(), [place.existence(), source.guards()].concat())),
            // Who sees one of the two may know of the alias.
            Err(status) if status.code() == Code::PermissionDenied => Err(status),
            Err(status) if status.code() == Code::NotFound => Err(refusal),
            Err(status) => Err(status),
        }
    }
}

fn leave_out_where_it_is(streams: &mut [StreamAppend]) -> Result<(), Status> {
    for event in streams.iter_mut().flat_map(|stream| &mut stream.events) {
        let read = Event::decode(event.event_type, &event.payload);
        let read = read.map_err(|error| status::internal(&error))?;
        if let Event::ManagedIdentityAliasDeleted(deleted) = read {
            let deleted = pb::ManagedIdentityAliasDeleted {
                group_id: String::new(),
                name: String::new(),
                ..deleted
            };
            event.payload = Event::ManagedIdentityAliasDeleted(deleted).encode();
        }
    }
    Ok(())
}
