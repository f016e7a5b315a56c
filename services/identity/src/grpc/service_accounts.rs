//! `ServiceAccountService`.

use edge::aggregate::{self, Loaded};
use edge::command::{Decision, Mutation};
use edge::hierarchy::{Place, limit_key, service_account_name_key};
use edge::layer::Call;
use edge::request::etag;
use edge::status::PreconditionViolation;
use edge::violations::Violations;
use edge::{clock, limits, request, status};
use eventlog::{Expected, Guard, StreamAppend, StreamId};
use model::{GroupId, Limit, ServiceAccountId};
use proto::identity::v1 as pb;
use proto::identity::v1::service_account_service_server::ServiceAccountService;
use tonic::{Request, Response, Status};

use super::{IdentityRpc, changes, count, encoded};
use crate::domain::service_account::{self, Command, Rejection, ServiceAccount, State};
use crate::wire;

impl From<Rejection> for Status {
    fn from(rejection: Rejection) -> Self {
        const LIMIT: &str = "SERVICE_ACCOUNT_LIMIT";
        let message = rejection.to_string();
        match rejection {
            Rejection::Missing => status::not_found("the service account"),
            Rejection::NameTaken => status::already_exists("NAME_TAKEN", &message),
            Rejection::TooMany(_) => status::failed_precondition(
                LIMIT,
                &message,
                vec![PreconditionViolation::new(LIMIT, "group", &message)],
            ),
        }
    }
}

#[tonic::async_trait]
impl ServiceAccountService for IdentityRpc {
    async fn create_service_account(
        &self,
        request: Request<pb::CreateServiceAccountRequest>,
    ) -> Result<Response<pb::CreateServiceAccountResponse>, Status> {
        let call = Call::of(&request)?;
        let (metadata, _, message) = request.into_parts();
        let account = message.service_account.clone().unwrap_or_default();
        let wanted = wire::service_account::wanted(&account)?;
        let id = clock::new_id();
        let decide = || async {
            let account = ServiceAccount {
                id,
                group: call.id("service_account.group_id", "group")?,
                name: wanted.name.clone(),
                description: wanted.description.clone(),
                trust: wanted.trust.clone(),
            };
            self.decide_create_account(&call, account).await
        };
        let mutation = Mutation::new(&call, &metadata, &message, |m| {
            [&mut m.request_id, &mut m.consistency_token]
        });
        let answer = |reply: &mut pb::CreateServiceAccountResponse, time| {
            if let Some(account) = &mut reply.service_account {
                let time = request::timestamp(time);
                (account.create_time, account.update_time) = (Some(time), Some(time));
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

    async fn get_service_account(
        &self,
        request: Request<pb::GetServiceAccountRequest>,
    ) -> Result<Response<pb::GetServiceAccountResponse>, Status> {
        let call = Call::of(&request)?;
        let place = call.place()?;
        let loaded = self.load_account("id", place).await?;
        let State::Live(account) = &loaded.state else {
            return Err(Rejection::Missing.into());
        };
        Ok(Response::new(pb::GetServiceAccountResponse {
            service_account: Some(message(place, account, &loaded)),
        }))
    }

    async fn update_service_account(
        &self,
        request: Request<pb::UpdateServiceAccountRequest>,
    ) -> Result<Response<pb::UpdateServiceAccountResponse>, Status> {
        let call = Call::of(&request)?;
        let (metadata, _, message) = request.into_parts();
        let wanted = message.service_account.clone().unwrap_or_default();
        let mut violations = Violations::default();
        let mask = violations.merge(request::update_mask(
            message.update_mask.as_ref(),
            &["description", "trust_policies"],
        ));
        let changes = |field| mask.as_ref().is_some_and(|mask| mask.has(field));
        let description = changes("description")
            .then(|| violations.check("service_account.description", wanted.description.parse()))
            .flatten();
        let trust = changes("trust_policies")
            .then(|| wire::service_account::policies(&wanted, &mut violations))
            .flatten();
        violations.finish(|| Some(()))?;
        let mutation = Mutation::new(&call, &metadata, &message, |m| {
            [&mut m.request_id, &mut m.consistency_token]
        });
        let answer = |reply: &mut pb::UpdateServiceAccountResponse, time| {
            if let Some(account) = &mut reply.service_account {
                account.update_time = Some(request::timestamp(time));
            }
        };
        let decide = || {
            let command = Command::Update {
                description: description.clone(),
                trust: trust.clone(),
            };
            self.decide_update_account(&call, &wanted.etag, command)
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

    async fn delete_service_account(
        &self,
        request: Request<pb::DeleteServiceAccountRequest>,
    ) -> Result<Response<pb::DeleteServiceAccountResponse>, Status> {
        let call = Call::of(&request)?;
        let (metadata, _, message) = request.into_parts();
        let mutation = Mutation::new(&call, &metadata, &message, |m| {
            [&mut m.request_id, &mut m.consistency_token]
        });
        self.commands
            .carry_out(
                mutation,
                || self.decide_delete_account(&call, &message.etag),
                |reply| &mut reply.consistency_token,
                |_, _| {},
            )
            .await
    }
}

impl IdentityRpc {
    async fn load_account(&self, field: &str, place: &Place) -> Result<Loaded<State>, Status> {
        let id = ServiceAccountId::try_from(place.id())
            .map_err(|_| Violations::of(field, "must name a service account").into_status())?;
        self.load_account_stream(id).await
    }

    async fn load_account_stream(&self, id: ServiceAccountId) -> Result<Loaded<State>, Status> {
        let (read, evolve) = (wire::service_account::read, service_account::evolve);
        aggregate::load(self.commands.log(), &stream(id), read, evolve).await
    }

    async fn decide_create_account(
        &self,
        call: &Call,
        account: ServiceAccount,
    ) -> Result<Decision<pb::CreateServiceAccountResponse>, Status> {
        let group = call
            .relocate(&self.hierarchy)
            .await?
            .ok_or_else(|| status::not_found("the group"))?;
        let name = service_account_name_key(&account.group.to_string(), account.name.as_str());
        let siblings = siblings_key(account.group);
        let limit = Limit::GroupServiceAccounts;
        let keys = [name.clone(), siblings.clone(), limit_key(limit)];
        let facts = self.facts(&keys).await?;
        let max_siblings = limits::value(&facts, limit);
        let command = Command::Create {
            account: account.clone(),
            name_taken: facts.get(&name).is_some(),
            siblings: count(&facts, &siblings),
            max_siblings,
        };
        let events = service_account::decide(&State::Absent, command)?;
        let mut guards = group.guards();
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
        let mut reply = wire::service_account::message(&group.path(), &account);
        reply.etag = etag(events.len() as u64);
        let reply = pb::CreateServiceAccountResponse {
            service_account: Some(reply),
            ..Default::default()
        };
        decision(&account, 0, &events, guards, reply)
    }

    async fn decide_update_account(
        &self,
        call: &Call,
        given_etag: &str,
        command: Command,
    ) -> Result<Decision<pb::UpdateServiceAccountResponse>, Status> {
        let place = call
            .relocate(&self.hierarchy)
            .await?
            .ok_or(Rejection::Missing)?;
        let loaded = self.load_account("service_account.id", &place).await?;
        loaded.check_etag("service_account.etag", given_etag)?;
        let events = service_account::decide(&loaded.state, command)?;
        let mut after = loaded.state.clone();
        events
            .iter()
            .for_each(|event| service_account::evolve(&mut after, event));
        let State::Live(account) = &after else {
            return Err(Rejection::Missing.into());
        };
        let mut reply = message(&place, account, &loaded);
        reply.etag = etag(loaded.version + events.len() as u64);
        let reply = pb::UpdateServiceAccountResponse {
            service_account: Some(reply),
            ..Default::default()
        };
        decision(account, loaded.version, &events, place.guards(), reply)
    }

    async fn decide_delete_account(
        &self,
        call: &Call,
        given_etag: &str,
    ) -> Result<Decision<pb::DeleteServiceAccountResponse>, Status> {
        let place = call
            .relocate(&self.hierarchy)
            .await?
            .ok_or(Rejection::Missing)?;
        let loaded = self.load_account("id", &place).await?;
        loaded.check_etag("etag", given_etag)?;
        let events = service_account::decide(&loaded.state, Command::Delete)?;
        let State::Live(account) = &loaded.state else {
            return Err(Rejection::Missing.into());
        };
        let mut guards = place.guards();
        guards.push(leaves(account.group));
        let reply = pb::DeleteServiceAccountResponse::default();
        decision(account, loaded.version, &events, guards, reply)
    }

    /// Deletes a service account whose group is gone. Nobody else can change it any more.
    pub(crate) async fn decide_delete_account_with_group(
        &self,
        id: ServiceAccountId,
    ) -> Result<Decision<()>, Status> {
        if self.exists(id.into()).await? {
            return Ok(Decision::nothing());
        }
        let loaded = self.load_account_stream(id).await?;
        let State::Live(account) = &loaded.state else {
            return Ok(Decision::nothing());
        };
        let events = service_account::decide(&loaded.state, Command::Delete)?;
        let guards = vec![leaves(account.group)];
        decision(account, loaded.version, &events, guards, ())
    }
}

/// One less in the group that it leaves.
fn leaves(group: GroupId) -> Guard {
    Guard::Count {
        key: siblings_key(group),
        by: -1,
        min: 0,
        max: i64::MAX,
    }
}

fn decision<R>(
    account: &ServiceAccount,
    version: u64,
    events: &[service_account::Event],
    mut guards: Vec<Guard>,
    reply: R,
) -> Result<Decision<R>, Status> {
    let events = events.iter();
    let events: Vec<_> = events
        .map(|event| wire::service_account::write(account, event))
        .collect();
    guards.extend(changes(&events)?);
    let part: Option<StreamAppend> = aggregate::append(
        stream(account.id),
        Expected::Version(version),
        encoded(events),
    );
    Ok(Decision {
        streams: part.into_iter().collect(),
        guards,
        reply,
    })
}

/// The key of the count of a group's service accounts.
fn siblings_key(group: impl std::fmt::Display) -> String {
    format!("service-accounts/{group}")
}

fn stream(id: ServiceAccountId) -> StreamId {
    StreamId::new("service_account", id)
}

fn message(place: &Place, account: &ServiceAccount, loaded: &Loaded<State>) -> pb::ServiceAccount {
    let path = place.path();
    let group_path = path.rsplit_once('/').map_or("", |(group, _)| group);
    pb::ServiceAccount {
        etag: loaded.etag(),
        create_time: loaded.create_time.map(request::timestamp),
        update_time: loaded.update_time.map(request::timestamp),
        ..wire::service_account::message(group_path, account)
    }
}
