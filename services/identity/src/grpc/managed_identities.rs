//! Create, get, update and delete managed identities.

use edge::aggregate::{self, Loaded};
use edge::assignments::Ending;
use edge::authorization::locate;
use edge::command::{Decision, Mutation};
use edge::hierarchy::{Place, identity_name_key, limit_key};
use edge::layer::Call;
use edge::request::etag;
use edge::status::PreconditionViolation;
use edge::violations::Violations;
use edge::{aliases, clock, limits, request, status};
use eventlog::{Expected, Facts, Guard, StreamId};
use model::{AccessRuleId, Description, Limit, ManagedIdentityId, ResourceId, TokenSettings};
use proto::identity::v1 as pb;
use tonic::{Request, Response, Status};

use super::{
    IdentityRpc, access_rules, aliases_key, assigned_to_prefix, assignments_key, changes, count,
    encoded, siblings_key,
};
use crate::domain::managed_identity::{self, Event, Having, ManagedIdentity, Rejection, State};
use crate::wire::access_rule::Asked;
use crate::wire::{self, Given, Wanted};

/// Workspaces that a refusal names.
pub(super) const NAMED: usize = 10;

impl From<Rejection> for Status {
    fn from(rejection: Rejection) -> Self {
        let message = rejection.to_string();
        let refused = |reason: &'static str| {
            status::failed_precondition(
                reason,
                &message,
                vec![PreconditionViolation::new(
                    reason,
                    "managed_identity",
                    &message,
                )],
            )
        };
        match &rejection {
            Rejection::Missing => status::not_found("the managed identity"),
            Rejection::NameTaken => status::already_exists("NAME_TAKEN", &message),
            Rejection::TooMany(_) => refused("MANAGED_IDENTITY_LIMIT"),
            Rejection::OtherType => {
                Violations::of("managed_identity.configuration", message).into_status()
            }
            Rejection::AlgorithmNotTaken => {
                let field = "managed_identity.token_settings.signing_algorithm";
                Violations::of(field, message).into_status()
            }
            Rejection::AccountOutOfReach => refused("SERVICE_ACCOUNT_OUT_OF_REACH"),
            Rejection::SameGroup => refused("SAME_PARENT"),
            Rejection::AliasOfAlias(_) => refused("ALIAS_OF_ALIAS"),
            Rejection::InheritedAnyway => refused("INHERITED_ANYWAY"),
            Rejection::TooManyAliases(_) => refused("ALIAS_LIMIT"),
            Rejection::IsAlias(_) => refused("IS_ALIAS"),
            Rejection::Losing(workspaces) => {
                let losing = workspaces.iter().map(|path| having(path, None));
                status::failed_precondition("ASSIGNMENTS_LOST", &message, losing.collect())
            }
            Rejection::Assigned(workspaces) => {
                let assigned = workspaces
                    .iter()
                    .map(|having_it| having(&having_it.workspace, having_it.through.as_deref()));
                let assigned = assigned.collect();
                status::failed_precondition("MANAGED_IDENTITY_ASSIGNED", &message, assigned)
            }
        }
    }
}

fn having(workspace: &str, through: Option<&str>) -> PreconditionViolation {
    let has = through.map_or_else(
        || "has the managed identity".to_owned(),
        |alias| format!("has the managed identity through its alias {alias}"),
    );
    PreconditionViolation::new("ASSIGNED", workspace, &has)
}

impl IdentityRpc {
    pub(super) async fn create(
        &self,
        request: Request<pb::CreateManagedIdentityRequest>,
    ) -> Result<Response<pb::CreateManagedIdentityResponse>, Status> {
        let call = Call::of(&request)?;
        let (metadata, _, message) = request.into_parts();
        let identity = message.managed_identity.clone().unwrap_or_default();
        let (wanted, rules) = wire::wanted_with_rules(&identity, &message.access_rules)?;
        let id = clock::new_id();
        let rules: Vec<_> = rules
            .into_iter()
            .map(|rule| (clock::new_id(), rule))
            .collect();
        let decide = || self.decide_create(&call, id, &wanted, &rules);
        let mutation = Mutation::new(&call, &metadata, &message, |m| {
            [&mut m.request_id, &mut m.consistency_token]
        });
        let answer = |reply: &mut pb::CreateManagedIdentityResponse, time| {
            if let Some(identity) = &mut reply.managed_identity {
                let time = request::timestamp(time);
                (identity.create_time, identity.update_time) = (Some(time), Some(time));
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

    pub(super) async fn get(
        &self,
        request: Request<pb::GetManagedIdentityRequest>,
    ) -> Result<Response<pb::GetManagedIdentityResponse>, Status> {
        let call = Call::of(&request)?;
        let place = call.place()?;
        let (_, loaded) = self.load("id", place).await?;
        let group_path = group_path(place);
        let message = match &loaded.state {
            State::Live(identity) => message(&group_path, identity, &loaded),
            State::Alias(alias) => pb::ManagedIdentity {
                etag: loaded.etag(),
                create_time: loaded.create_time.map(request::timestamp),
                update_time: loaded.update_time.map(request::timestamp),
                ..wire::alias_message(&group_path, alias, &self.source(alias).await?)
            },
            State::Absent | State::Deleted => return Err(Rejection::Missing.into()),
        };
        Ok(Response::new(pb::GetManagedIdentityResponse {
            managed_identity: Some(message),
        }))
    }

    pub(super) async fn update(
        &self,
        request: Request<pb::UpdateManagedIdentityRequest>,
    ) -> Result<Response<pb::UpdateManagedIdentityResponse>, Status> {
        let call = Call::of(&request)?;
        let (metadata, _, message) = request.into_parts();
        let wanted = message.managed_identity.clone().unwrap_or_default();
        let mut violations = Violations::default();
        let mask = violations.merge(request::update_mask(
            message.update_mask.as_ref(),
            &["description", "configuration", "token_settings"],
        ));
        let changes = |field| mask.as_ref().is_some_and(|mask| mask.has(field));
        // Who knows nothing of them changes the rest as a whole, and not what the cloud expects as subject.
        let unmasked = message.update_mask.as_ref();
        let unmasked = unmasked.is_none_or(|mask| mask.paths.is_empty());
        let of_tokens = changes("token_settings") && !(unmasked && wanted.token_settings.is_none());
        let description = changes("description")
            .then(|| violations.check("managed_identity.description", wanted.description.parse()))
            .flatten();
        let configuration = changes("configuration")
            .then(|| wire::configuration(&wanted, &mut violations))
            .flatten();
        let token_settings = of_tokens
            .then(|| wire::wanted_tokens(&wanted, &mut violations))
            .flatten();
        violations.finish(|| Some(()))?;
        let mutation = Mutation::new(&call, &metadata, &message, |m| {
            [&mut m.request_id, &mut m.consistency_token]
        });
        let answer = |reply: &mut pb::UpdateManagedIdentityResponse, time| {
            if let Some(identity) = &mut reply.managed_identity {
                identity.update_time = Some(request::timestamp(time));
            }
        };
        let decide = || {
            self.decide_update(
                &call,
                &wanted.etag,
                description.clone(),
                configuration.as_ref(),
                token_settings,
            )
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

    pub(super) async fn delete(
        &self,
        request: Request<pb::DeleteManagedIdentityRequest>,
    ) -> Result<Response<pb::DeleteManagedIdentityResponse>, Status> {
        let call = Call::of(&request)?;
        let (metadata, _, message) = request.into_parts();
        let mutation = Mutation::new(&call, &metadata, &message, |m| {
            [&mut m.request_id, &mut m.consistency_token]
        });
        let decide = || self.decide_delete(&call, &message.etag, message.force);
        self.commands
            .carry_out(
                mutation,
                decide,
                |reply| &mut reply.consistency_token,
                |_, _| {},
            )
            .await
    }

    pub(super) async fn load(
        &self,
        field: &str,
        place: &Place,
    ) -> Result<(ManagedIdentityId, Loaded<State>), Status> {
        let id = ManagedIdentityId::try_from(place.id())
            .map_err(|_| Violations::of(field, "must name a managed identity").into_status())?;
        Ok((id, self.load_stream(id).await?))
    }

    pub(super) async fn load_stream(&self, id: ManagedIdentityId) -> Result<Loaded<State>, Status> {
        let (read, evolve) = (wire::read_identity, managed_identity::evolve);
        aggregate::load(self.commands.log(), &stream(id), read, evolve).await
    }

    async fn decide_create(
        &self,
        call: &Call,
        id: ManagedIdentityId,
        wanted: &Wanted,
        asked: &[(AccessRuleId, Asked)],
    ) -> Result<Decision<pb::CreateManagedIdentityResponse>, Status> {
        let group = call
            .relocate(&self.hierarchy)
            .await?
            .ok_or_else(|| status::not_found("the group"))?;
        let (configuration, of_account) = self.settle(call, &wanted.configuration, &group).await?;
        let identity = ManagedIdentity {
            id,
            group: call.id("managed_identity.group_id", "group")?,
            name: wanted.name.clone(),
            description: wanted.description.clone(),
            configuration,
            token_settings: wanted.token_settings,
        };
        let name = identity_name_key(&identity.group.to_string(), identity.name.as_str());
        let siblings = siblings_key(identity.group);
        let limit = Limit::GroupManagedIdentities;
        let keys = [name.clone(), siblings.clone(), limit_key(limit)];
        let facts = self.facts(&keys).await?;
        let max_siblings = limits::value(&facts, limit);
        let command = managed_identity::Command::Create {
            identity: identity.clone(),
            name_taken: facts.get(&name).is_some(),
            siblings: count(&facts, &siblings),
            max_siblings,
        };
        let events: Vec<_> = managed_identity::decide(&State::Absent, command)?
            .iter()
            .map(wire::write_identity)
            .collect();
        let mut guards = [group.guards(), of_account].concat();
        guards.push(Guard::Expect {
            key: name,
            value: None,
        });
        guards.push(Guard::Count {
            key: siblings,
            by: 1,
            min: 0,
            max: max_siblings,
        });
        guards.push(limits::unchanged(&facts, limit));
        guards.extend(changes(&events)?);
        let mut reply = wire::message(&group.path(), &identity);
        reply.etag = etag(events.len() as u64);
        let (mut rules, mut named) = (Vec::new(), access_rules::Named::new());
        for (id, asked) in asked {
            let (rule, known) = self.rule(call, &group, asked, &mut named).await?;
            rules.push((*id, rule));
            guards.extend(known);
        }
        let (rules, of_rules) = access_rules::first(identity.id, &rules)?;
        guards.extend(of_rules);
        let made = aggregate::append(stream(identity.id), Expected::Version(0), encoded(events));
        let reply = pb::CreateManagedIdentityResponse {
            managed_identity: Some(reply),
            warnings: self.warnings(&identity.configuration),
            ..Default::default()
        };
        Ok(Decision {
            streams: made.into_iter().chain(rules).collect(),
            guards,
            reply,
        })
    }

    async fn decide_update(
        &self,
        call: &Call,
        given_etag: &str,
        description: Option<Description>,
        configuration: Option<&Given>,
        token_settings: Option<TokenSettings>,
    ) -> Result<Decision<pb::UpdateManagedIdentityResponse>, Status> {
        let place = call
            .relocate(&self.hierarchy)
            .await?
            .ok_or(Rejection::Missing)?;
        let (id, loaded) = self.load("managed_identity.id", &place).await?;
        loaded.check_etag("managed_identity.etag", given_etag)?;
        let (configuration, of_account) = match configuration {
            Some(given) => {
                let (configuration, guards) = self.settle(call, given, &place).await?;
                (Some(configuration), guards)
            }
            None => (None, vec![]),
        };
        let command = managed_identity::Command::Update {
            description,
            configuration,
            token_settings,
        };
        let events = managed_identity::decide(&loaded.state, command)?;
        let mut after = loaded.state.clone();
        events
            .iter()
            .for_each(|event| managed_identity::evolve(&mut after, event));
        let State::Live(identity) = &after else {
            return Err(Rejection::Missing.into());
        };
        let mut reply = message(&group_path(&place), identity, &loaded);
        reply.etag = etag(loaded.version + events.len() as u64);
        let events: Vec<_> = events.iter().map(wire::write_identity).collect();
        let mut guards = [place.guards(), of_account].concat();
        guards.extend(changes(&events)?);
        let streams = aggregate::append(
            stream(id),
            Expected::Version(loaded.version),
            encoded(events),
        );
        let reply = pb::UpdateManagedIdentityResponse {
            managed_identity: Some(reply),
            warnings: self.warnings(&identity.configuration),
            ..Default::default()
        };
        Ok(Decision {
            streams: streams.into_iter().collect(),
            guards,
            reply,
        })
    }

    async fn decide_delete(
        &self,
        call: &Call,
        given_etag: &str,
        force: bool,
    ) -> Result<Decision<pb::DeleteManagedIdentityResponse>, Status> {
        let place = call
            .relocate(&self.hierarchy)
            .await?
            .ok_or(Rejection::Missing)?;
        let (deletion, ending) = self
            .deletion(call, &place, place.guards(), given_etag, force)
            .await?;
        Ok(deletion.map(pb::DeleteManagedIdentityResponse {
            ending_assignments: ending.assignments,
            ending_assignment_count: ending.count,
            ..Default::default()
        }))
    }

    /// The end of an identity or alias, if these hold still; and what ends with it, for those who only ask.
    pub(super) async fn deletion(
        &self,
        call: &Call,
        place: &Place,
        mut guards: Vec<Guard>,
        given_etag: &str,
        force: bool,
    ) -> Result<(Decision<()>, Ending), Status> {
        let (id, loaded) = self.load("id", place).await?;
        loaded.check_etag("etag", given_etag)?;
        let (assigned, unassigned) = self.having(call, id).await?;
        let command = managed_identity::Command::Delete { assigned, force };
        let events = managed_identity::decide(&loaded.state, command)?;
        guards.extend(place.parent().map(leaves));
        if !force {
            guards.extend(unassigned);
        }
        guards.extend(of_source(&events));
        let events: Vec<_> = events.iter().map(wire::write_identity).collect();
        guards.extend(changes(&events)?);
        let streams = aggregate::append(
            stream(id),
            Expected::Version(loaded.version),
            encoded(events),
        );
        let deletion = Decision {
            streams: streams.into_iter().collect(),
            guards,
            reply: (),
        };
        Ok((deletion, self.ending_by_deletion(call, id).await?))
    }

    /// Deletes an identity whose group is gone, or an alias whose group or source is. Nobody else can change it any more.
    pub(crate) async fn decide_delete_with_ground(
        &self,
        id: ManagedIdentityId,
    ) -> Result<Decision<()>, Status> {
        let loaded = self.load_stream(id).await?;
        let (group, stands) = match &loaded.state {
            State::Live(identity) => (identity.group, self.exists(id.into()).await?),
            State::Alias(alias) => {
                let stands = self.exists(id.into()).await?;
                (
                    alias.group,
                    stands && self.exists(alias.source.into()).await?,
                )
            }
            State::Absent | State::Deleted => return Ok(Decision::nothing()),
        };
        if stands {
            return Ok(Decision::nothing());
        }
        let command = managed_identity::Command::Delete {
            assigned: vec![],
            force: true,
        };
        let events = managed_identity::decide(&loaded.state, command)?;
        let mut guards = vec![leaves(group.into())];
        guards.extend(of_source(&events));
        let events: Vec<_> = events.iter().map(wire::write_identity).collect();
        guards.extend(changes(&events)?);
        let expected = Expected::Version(loaded.version);
        Ok(Decision {
            streams: aggregate::append(stream(id), expected, encoded(events))
                .into_iter()
                .collect(),
            guards,
            reply: (),
        })
    }

    /// Workspaces that exist and have an identity or an alias of it, a few of them; and that no other one has when the
    /// append is made, if none has now.
    async fn having(
        &self,
        call: &Call,
        id: ManagedIdentityId,
    ) -> Result<(Vec<Having>, Vec<Guard>), Status> {
        // Read before the aliases are: one that comes between the two reads makes the append refuse.
        let last_change = aliases::last_change_key(id);
        let before = self.facts(std::slice::from_ref(&last_change)).await?;
        let aliases = aliases::of(self.commands.log(), id).await?;
        let all: Vec<_> = [id].into_iter().chain(aliases).collect();
        let counts: Vec<_> = all.iter().map(assignments_key).collect();
        let facts = self.facts(&counts).await?;
        let mut workspaces = Vec::new();
        for identity in all {
            if workspaces.len() < NAMED && count(&facts, &assignments_key(identity)) > 0 {
                let through = (identity != id).then_some(identity);
                let having = self.assigned_to(call, identity, through).await?;
                workspaces.extend(having);
            }
        }
        workspaces.truncate(NAMED);
        let expect = |facts: &Facts, key: String| Guard::Expect {
            value: facts.get(&key).map(str::to_owned),
            key,
        };
        let unassigned = counts.into_iter().map(|key| expect(&facts, key));
        let unassigned = unassigned.chain([expect(&before, last_change)]);
        Ok((workspaces, unassigned.collect()))
    }

    async fn assigned_to(
        &self,
        call: &Call,
        id: ManagedIdentityId,
        alias: Option<ManagedIdentityId>,
    ) -> Result<Vec<Having>, Status> {
        let through = match alias {
            Some(alias) => locate(&self.hierarchy, alias.into(), &call.caller)
                .await?
                .map(|place| place.shown()),
            None => None,
        };
        let prefix = assigned_to_prefix(id);
        let keys = self
            .commands
            .log()
            .fact_keys(&prefix)
            .await
            .map_err(|error| status::log(&error))?;
        let mut having = Vec::new();
        for key in keys {
            let Some(Ok(workspace)) = key.strip_prefix(&prefix).map(str::parse::<ResourceId>)
            else {
                continue;
            };
            if let Some(place) = locate(&self.hierarchy, workspace, &call.caller).await? {
                having.push(Having {
                    workspace: place.shown(),
                    through: through.clone(),
                });
            }
            if having.len() == NAMED {
                break;
            }
        }
        Ok(having)
    }
}

/// One less in the group that it leaves.
fn leaves(group: ResourceId) -> Guard {
    one_less(siblings_key(group))
}

/// One alias less of its source, if it is one.
fn of_source(events: &[Event]) -> Option<Guard> {
    events.iter().find_map(|event| match event {
        Event::AliasDeleted(alias) => Some(one_less(aliases_key(alias.source))),
        _ => None,
    })
}

fn one_less(key: String) -> Guard {
    Guard::Count {
        key,
        by: -1,
        min: 0,
        max: i64::MAX,
    }
}

pub(super) fn stream(id: ManagedIdentityId) -> StreamId {
    StreamId::new("managed_identity", id)
}

/// An identity as callers see it, by the path of its group.
pub(super) fn message(
    group_path: &str,
    identity: &ManagedIdentity,
    loaded: &Loaded<State>,
) -> pb::ManagedIdentity {
    pb::ManagedIdentity {
        etag: loaded.etag(),
        create_time: loaded.create_time.map(request::timestamp),
        update_time: loaded.update_time.map(request::timestamp),
        ..wire::message(group_path, identity)
    }
}

/// The path of the group that an identity's place is in.
fn group_path(place: &Place) -> String {
    let path = place.path();
    path.rsplit_once('/')
        .map_or_else(String::new, |(group, _)| group.to_owned())
}
