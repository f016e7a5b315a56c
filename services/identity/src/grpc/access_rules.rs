//! `AccessRuleService`.

use std::collections::{BTreeSet, HashMap};

use edge::aggregate::{self, Loaded};
use edge::command::{Decision, Mutation};
use edge::hierarchy::Place;
use edge::holder::Holder;
use edge::layer::Call;
use edge::request::{self, expected_version};
use edge::status::PreconditionViolation;
use edge::violations::Violations;
use edge::{aliases, clock, status};
use eventlog::{Expected, Guard, StreamAppend, StreamId};
use model::access_rule::{AccessRule, Condition};
use model::{AccessRuleId, ManagedIdentityId, Principal};
use proto::identity::v1 as pb;
use proto::identity::v1::access_rule_service_server::AccessRuleService;
use time::OffsetDateTime;
use tonic::{Request, Response, Status};

use super::{IdentityRpc, changes, encoded};
use crate::domain::access_rules::{self, Command, Event, Rejection};
use crate::domain::managed_identity;
use crate::wire::access_rule::{self as wire, AskedCondition};

impl From<Rejection> for Status {
    fn from(rejection: Rejection) -> Self {
        let message = rejection.to_string();
        match rejection {
            Rejection::Missing => status::not_found("the access rule"),
            Rejection::Exists => status::already_exists("ACCESS_RULE_EXISTS", &message),
            Rejection::TooMany | Rejection::TooManyKeys => status::failed_precondition(
                "ACCESS_RULE_LIMIT",
                &message,
                vec![PreconditionViolation::new(
                    "ACCESS_RULE_LIMIT",
                    "managed_identity",
                    &message,
                )],
            ),
            Rejection::OtherType => Violations::of("access_rule", message).into_status(),
        }
    }
}

/// Whom the rules of a request name: each is looked up once, in however many of them it comes.
pub(super) type Named = HashMap<Holder, Principal>;

/// An identity's rules, and when each was made and changed.
#[derive(Clone, Debug, Default)]
struct Rules {
    state: access_rules::State,
    times: HashMap<AccessRuleId, (OffsetDateTime, OffsetDateTime)>,
}

fn evolve(rules: &mut Rules, (event, at): &(Event, OffsetDateTime)) {
    access_rules::evolve(&mut rules.state, event);
    let times = rules.times.entry(event.id).or_insert((*at, *at));
    times.1 = *at;
}

#[tonic::async_trait]
impl AccessRuleService for IdentityRpc {
    async fn create_access_rule(
        &self,
        request: Request<pb::CreateAccessRuleRequest>,
    ) -> Result<Response<pb::CreateAccessRuleResponse>, Status> {
        let call = Call::of(&request)?;
        let (metadata, _, message) = request.into_parts();
        let wanted = message.access_rule.clone().unwrap_or_default();
        let asked = wire::asked(&wanted).map_err(|violations| violations.within("access_rule"))?;
        let id = clock::new_id();
        let decide = || async {
            let place = self
                .identity_place(&call, "access_rule.managed_identity_id")
                .await?;
            let (rule, known) = self.rule(&call, &place, &asked, &mut Named::new()).await?;
            let command = Command::Create(id, rule);
            let (decision, rule) = self.decide_rule(&place, id, "", command).await?;
            Ok(decision.guarded(known).map(pb::CreateAccessRuleResponse {
                access_rule: rule,
                ..Default::default()
            }))
        };
        let mutation = Mutation::new(&call, &metadata, &message, |m| {
            [&mut m.request_id, &mut m.consistency_token]
        });
        let answer = |reply: &mut pb::CreateAccessRuleResponse, time| {
            if let Some(rule) = &mut reply.access_rule {
                let time = request::timestamp(time);
                (rule.create_time, rule.update_time) = (Some(time), Some(time));
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

    async fn get_access_rule(
        &self,
        request: Request<pb::GetAccessRuleRequest>,
    ) -> Result<Response<pb::GetAccessRuleResponse>, Status> {
        let call = Call::of(&request)?;
        let id = call.id("id", "access rule")?;
        let place = above(call.place()?)?;
        let (_, loaded) = self.load_rules(&place).await?;
        let rule = message(&place, id, &loaded.state).ok_or(Rejection::Missing)?;
        Ok(Response::new(pb::GetAccessRuleResponse {
            access_rule: Some(rule),
        }))
    }

    async fn update_access_rule(
        &self,
        request: Request<pb::UpdateAccessRuleRequest>,
    ) -> Result<Response<pb::UpdateAccessRuleResponse>, Status> {
        let call = Call::of(&request)?;
        let (metadata, _, message) = request.into_parts();
        let wanted = message.access_rule.clone().unwrap_or_default();
        let mut violations = Violations::default();
        let mask = violations.merge(request::update_mask(
            message.update_mask.as_ref(),
            &["stages", "eligible_principals", "module_attestation"],
        ));
        let changes = |field| mask.as_ref().is_some_and(|mask| mask.has(field));
        let mut inner = Violations::default();
        let stages = changes("stages").then(|| wire::stages(&wanted, &mut inner));
        let condition = changes("eligible_principals") || changes("module_attestation");
        let asked = condition
            .then(|| wire::condition_of(&wanted, &mut inner))
            .flatten();
        violations.nested("access_rule", inner.finish(|| Some(())));
        violations.finish(|| Some(()))?;
        let decide = || async {
            let id = call.id("access_rule.id", "access rule")?;
            let place = self.rule_place(&call).await?;
            let (condition, known) = match &asked {
                Some(asked) => {
                    let (condition, known) = self
                        .condition(&call, &place, asked, &mut Named::new())
                        .await?;
                    (Some(condition), known)
                }
                None => (None, vec![]),
            };
            let command = Command::Update {
                id,
                stages: stages.clone(),
                condition,
            };
            let (decision, rule) = self.decide_rule(&place, id, &wanted.etag, command).await?;
            Ok(decision.guarded(known).map(pb::UpdateAccessRuleResponse {
                access_rule: rule,
                ..Default::default()
            }))
        };
        let mutation = Mutation::new(&call, &metadata, &message, |m| {
            [&mut m.request_id, &mut m.consistency_token]
        });
        let answer = |reply: &mut pb::UpdateAccessRuleResponse, time| {
            if let Some(rule) = &mut reply.access_rule {
                rule.update_time = Some(request::timestamp(time));
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

    async fn delete_access_rule(
        &self,
        request: Request<pb::DeleteAccessRuleRequest>,
    ) -> Result<Response<pb::DeleteAccessRuleResponse>, Status> {
        let call = Call::of(&request)?;
        let (metadata, _, message) = request.into_parts();
        let decide = || async {
            let id = call.id("id", "access rule")?;
            let place = self.rule_place(&call).await?;
            let command = Command::Delete(id);
            let (decision, _) = self.decide_rule(&place, id, &message.etag, command).await?;
            Ok(decision.map(pb::DeleteAccessRuleResponse::default()))
        };
        let mutation = Mutation::new(&call, &metadata, &message, |m| {
            [&mut m.request_id, &mut m.consistency_token]
        });
        self.commands
            .carry_out(
                mutation,
                decide,
                |reply| &mut reply.consistency_token,
                |_, _| {},
            )
            .await
    }

    async fn list_access_rules(
        &self,
        request: Request<pb::ListAccessRulesRequest>,
    ) -> Result<Response<pb::ListAccessRulesResponse>, Status> {
        let call = Call::of(&request)?;
        let id = call.id("managed_identity_id", "managed identity")?;
        let place = call.place()?;
        let source = aliases::source(self.commands.log(), &self.hierarchy, id).await?;
        let source = source.ok_or(managed_identity::Rejection::Missing)?;
        let loaded = self.load_rules_of(source.id).await?;
        let ids = loaded.state.state.rules.keys();
        let rules = ids.filter_map(|id| message(place, *id, &loaded.state));
        // Where the rules of an alias's source are, whoever sees the alias may not know.
        let access_rules = rules.map(|rule| {
            if source.id == id {
                return rule;
            }
            pb::AccessRule {
                managed_identity_id: source.id.to_string(),
                trn: String::new(),
                ..rule
            }
        });
        Ok(Response::new(pb::ListAccessRulesResponse {
            access_rules: access_rules.collect(),
        }))
    }
}

impl IdentityRpc {
    /// The place of the identity that a request names.
    async fn identity_place(&self, call: &Call, field: &str) -> Result<Place, Status> {
        let id = call.id(field, "managed identity")?;
        if let Some(source) = aliases::alias_of(self.commands.log(), id).await? {
            return Err(managed_identity::Rejection::IsAlias(source).into());
        }
        let place = call.relocate(&self.hierarchy).await?;
        place.ok_or_else(|| status::not_found("the managed identity"))
    }

    /// The place of the identity whose rule a request names.
    async fn rule_place(&self, call: &Call) -> Result<Place, Status> {
        let place = call.relocate(&self.hierarchy).await?;
        above(&place.ok_or(Rejection::Missing)?)
    }

    /// The rule that a request gives an identity in, or of, this place, and what must hold for whom it names to be there,
    /// as far as they are not among those named before.
    pub(super) async fn rule(
        &self,
        call: &Call,
        place: &Place,
        asked: &wire::Asked,
        named: &mut Named,
    ) -> Result<(AccessRule, Vec<Guard>), Status> {
        let condition = self.condition(call, place, &asked.condition, named);
        let (condition, guards) = condition.await?;
        let stages = asked.stages.clone();
        Ok((AccessRule { stages, condition }, guards))
    }

    /// The same of a condition.
    async fn condition(
        &self,
        call: &Call,
        place: &Place,
        asked: &AskedCondition,
        named: &mut Named,
    ) -> Result<(Condition, Vec<Guard>), Status> {
        let eligible = match asked {
            AskedCondition::Eligible(eligible) => eligible,
            AskedCondition::Attestation(wanted) => {
                return Ok((Condition::ModuleAttestation(wanted.clone()), vec![]));
            }
        };
        let (mut principals, mut guards) = (BTreeSet::new(), Vec::new());
        for holder in eligible {
            if let Some(principal) = named.get(holder) {
                principals.insert(principal.clone());
                continue;
            }
            let known = holder.find(&self.hierarchy, &call.caller).await?;
            if known.is_hidden() && !known.is_inherited_by(place) {
                return Err(status::not_found(&known.named));
            }
            guards.extend(known.guards());
            principals.insert(known.principal.clone());
            named.insert(holder.clone(), known.principal);
        }
        Ok((Condition::EligiblePrincipals(principals), guards))
    }

    async fn load_rules(
        &self,
        identity: &Place,
    ) -> Result<(ManagedIdentityId, Loaded<Rules>), Status> {
        let id = ManagedIdentityId::try_from(identity.id())
            .map_err(|_| status::not_found("the managed identity"))?;
        Ok((id, self.load_rules_of(id).await?))
    }

    async fn load_rules_of(&self, identity: ManagedIdentityId) -> Result<Loaded<Rules>, Status> {
        let read = |recorded: &eventlog::RecordedEvent| {
            wire::read(recorded).map(|event| (event, recorded.recorded_at))
        };
        aggregate::load(self.commands.log(), &stream(identity), read, evolve).await
    }

    /// Deletes the rules of an identity that is gone. Nobody else can change them any more.
    pub(crate) async fn decide_delete_rules(
        &self,
        identity: ManagedIdentityId,
    ) -> Result<Decision<()>, Status> {
        if self.exists(identity.into()).await? {
            return Ok(Decision::nothing());
        }
        let Loaded { state, version, .. } = self.load_rules_of(identity).await?;
        let mut left = state.state;
        let mut events = Vec::new();
        while let Some(id) = left.rules.keys().next().copied() {
            for event in access_rules::decide(identity, &left, Command::Delete(id))? {
                access_rules::evolve(&mut left, &event);
                events.push(wire::write(&event));
            }
        }
        let guards = changes(&events)?;
        let expected = Expected::Version(version);
        let streams = aggregate::append(stream(identity), expected, encoded(events));
        Ok(Decision {
            streams: streams.into_iter().collect(),
            guards,
            reply: (),
        })
    }

    /// Decides about a rule of an identity; answers with the rule as it is afterwards too, if it is.
    async fn decide_rule(
        &self,
        place: &Place,
        rule: AccessRuleId,
        given_etag: &str,
        command: Command,
    ) -> Result<(Decision<()>, Option<pb::AccessRule>), Status> {
        let (id, loaded) = self.load_rules(place).await?;
        check_etag(&loaded.state, rule, &command, given_etag)?;
        let events = access_rules::decide(id, &loaded.state.state, command)?;
        let mut after = loaded.state.clone();
        events
            .iter()
            .for_each(|event| access_rules::evolve(&mut after.state, event));
        let events: Vec<_> = events.iter().map(wire::write).collect();
        let mut guards = place.guards();
        guards.extend(changes(&events)?);
        let streams = aggregate::append(
            stream(id),
            Expected::Version(loaded.version),
            encoded(events),
        );
        let decision = Decision {
            streams: streams.into_iter().collect(),
            guards,
            reply: (),
        };
        Ok((decision, message(place, rule, &after)))
    }
}

/// The rules that an identity has from the beginning.
pub(super) fn first(
    identity: ManagedIdentityId,
    rules: &[(AccessRuleId, AccessRule)],
) -> Result<(Option<StreamAppend>, Vec<Guard>), Status> {
    let mut state = access_rules::State::default();
    let mut events = Vec::new();
    for (id, rule) in rules {
        for event in access_rules::decide(identity, &state, Command::Create(*id, rule.clone()))? {
            access_rules::evolve(&mut state, &event);
            events.push(wire::write(&event));
        }
    }
    let guards = changes(&events)?;
    let append = aggregate::append(stream(identity), Expected::Version(0), encoded(events));
    Ok((append, guards))
}

fn check_etag(
    rules: &Rules,
    rule: AccessRuleId,
    command: &Command,
    given: &str,
) -> Result<(), Status> {
    let field = match command {
        Command::Create(..) => return Ok(()),
        Command::Update { .. } => "access_rule.etag",
        Command::Delete(_) => "etag",
    };
    let present = rules.state.rules.get(&rule).map(|kept| kept.revision);
    match expected_version(field, given)? {
        Some(expected) if present.is_some_and(|present| present != expected) => {
            Err(aggregate::changed_since())
        }
        Some(_) | None => Ok(()),
    }
}

fn message(identity: &Place, rule: AccessRuleId, rules: &Rules) -> Option<pb::AccessRule> {
    let kept = rules.state.rules.get(&rule)?;
    let times = rules.times.get(&rule);
    Some(pb::AccessRule {
        create_time: times.map(|times| request::timestamp(times.0)),
        update_time: times.map(|times| request::timestamp(times.1)),
        ..wire::message(&identity.path(), identity.id(), rule, kept)
    })
}

/// The place of the identity that a rule is of.
fn above(rule: &Place) -> Result<Place, Status> {
    rule.above().ok_or_else(|| Rejection::Missing.into())
}

fn stream(identity: ManagedIdentityId) -> StreamId {
    StreamId::new("access_rule", identity)
}
