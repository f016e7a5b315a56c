//! `LimitService`.

use edge::aggregate::{self, Loaded};
use edge::command::{Decision, Mutation};
use edge::layer::Call;
use edge::request;
use edge::request::etag;
use edge::violations::Violations;
use eventlog::Expected;
use model::Limit;
use proto::namespace::v1 as pb;
use proto::namespace::v1::limit_service_server::LimitService;
use tonic::{Request, Response, Status};

use super::{NamespaceRpc, changes, encoded, stream};
use crate::domain::limit;
use crate::wire;

impl From<limit::Rejection> for Status {
    fn from(rejection: limit::Rejection) -> Self {
        match rejection {
            limit::Rejection::OutOfBounds { .. } => {
                Violations::of("limit.value", rejection).into_status()
            }
        }
    }
}

#[tonic::async_trait]
impl LimitService for NamespaceRpc {
    async fn list_limits(
        &self,
        _request: Request<pb::ListLimitsRequest>,
    ) -> Result<Response<pb::ListLimitsResponse>, Status> {
        let mut limits = Vec::new();
        for limit in Limit::ALL {
            let loaded = self.load_limit(limit).await?;
            limits.push(message(limit, &loaded));
        }
        Ok(Response::new(pb::ListLimitsResponse { limits }))
    }

    async fn update_limit(
        &self,
        request: Request<pb::UpdateLimitRequest>,
    ) -> Result<Response<pb::UpdateLimitResponse>, Status> {
        let call = Call::of(&request)?;
        let (metadata, _, message) = request.into_parts();
        let wanted = message.limit.clone().unwrap_or_default();
        let mut violations = Violations::default();
        violations.merge(request::update_mask(
            message.update_mask.as_ref(),
            &["value"],
        ));
        let limit = violations.check("limit.id", wanted.id.parse());
        let limit = violations.finish(|| limit)?;
        let mutation = Mutation::new(&call, &metadata, &message, |m| {
            [&mut m.request_id, &mut m.consistency_token]
        });
        let answer = |reply: &mut pb::UpdateLimitResponse, time| {
            if let Some(limit) = &mut reply.limit {
                limit.update_time = Some(request::timestamp(time));
            }
        };
        self.commands
            .carry_out(
                mutation,
                || self.decide_update_limit(limit, wanted.value, &wanted.etag),
                |reply| &mut reply.consistency_token,
                answer,
            )
            .await
    }
}

impl NamespaceRpc {
    async fn load_limit(&self, limit: Limit) -> Result<Loaded<limit::State>, Status> {
        aggregate::load(
            self.commands.log(),
            &stream("limit", limit),
            wire::read_limit,
            limit::evolve,
        )
        .await
    }

    async fn decide_update_limit(
        &self,
        limit: Limit,
        value: i64,
        given_etag: &str,
    ) -> Result<Decision<pb::UpdateLimitResponse>, Status> {
        let mut loaded = self.load_limit(limit).await?;
        loaded.check_etag("limit.etag", given_etag)?;
        let version = loaded.version;
        let events = limit::decide(loaded.state, limit, value)?;
        for event in &events {
            limit::evolve(&mut loaded.state, event);
            loaded.version += 1;
        }
        let events: Vec<_> = events.iter().map(wire::write_limit).collect();
        let guards = changes(&events)?;
        let streams = aggregate::append(
            stream("limit", limit),
            Expected::Version(version),
            encoded(events),
        );
        Ok(Decision {
            streams: streams.into_iter().collect(),
            guards,
            reply: pb::UpdateLimitResponse {
                limit: Some(message(limit, &loaded)),
                ..Default::default()
            },
        })
    }
}

fn message(limit: Limit, loaded: &Loaded<limit::State>) -> pb::Limit {
    pb::Limit {
        etag: etag(loaded.version),
        update_time: loaded.update_time.map(request::timestamp),
        ..wire::limit_message(limit, loaded.state)
    }
}
