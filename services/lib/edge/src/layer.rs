//! The one layer in front of every rpc: authenticates, waits for the consistency token, authorizes. What it found goes
//! to the handler as a [`Call`], so a handler can neither forget nor repeat it.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::Extensions;
use http::request::Parts;
use http_body_util::{BodyExt as _, Full, Limited};
use model::{Permission, Requirement, ResourceId};
use prost_reflect::DynamicMessage;
use tokio::time::timeout;
use tonic::body::Body;
use tonic::{Request, Status};
use tower::{Layer, Service};

use crate::authentication::Authenticator;
use crate::authorization::{InvalidContract, Rule, field, is_set, rules};
use crate::caller::Caller;
use crate::consistency::{self, DEFAULT_WAIT, Positions};
use crate::guests::Guests;
use crate::hierarchy::{Hierarchy, Place};
use crate::rate::{self, PeerRates, Rates};
use crate::violations::Violations;
use crate::{command, rpc, status, texts};

/// What is taken of those who have shown a token.
const WITH_TOKEN: Size = Size {
    bytes: 1 << 20,
    patience: rpc::MAX_DURATION,
};
/// What is taken of others: the largest token to exchange, and what else there is in its request.
const WITHOUT_TOKEN: Size = Size {
    bytes: 32 << 10,
    patience: Duration::from_secs(10),
};
/// Requests of others at once, until they are read.
const GUESTS: usize = 1_024;
const TOKEN_FIELD: &str = "consistency_token";
const REQUEST_ID_FIELD: &str = "request_id";
const VALIDATE_ONLY_FIELD: &str = "validate_only";

/// Of a request.
#[derive(Clone, Copy)]
struct Size {
    bytes: usize,
    /// How long it may take to arrive.
    patience: Duration,
}

/// What the layer found out about a request.
#[derive(Clone, Debug)]
pub struct Call {
    /// Who calls.
    pub caller: Caller,
    /// The resource that the rpc's access option names, if the request names one.
    pub place: Option<Place>,
    /// Why the caller may not do it. Only of what a `request_id` names that the caller has used before: if it is the same
    /// request, it is answered as it was then, and if not, with this.
    pub refusal: Option<Status>,
    /// What the rpc needs.
    pub permission: Permission,
    /// Whether the caller only asks what would come of it.
    pub validate_only: bool,
    /// The rpc: `/tharsis.namespace.v1.GroupService/GetGroup`.
    pub method: String,
}

impl Call {
    /// Of a request that came through the layer.
    pub fn of<T>(request: &Request<T>) -> Result<Self, Status> {
        let call = request.extensions().get::<Self>().cloned();
        call.ok_or_else(|| Status::internal("the rpc is served without its access layer"))
    }

    /// The id of the resource that the access option names, if it is of the right type. `field` is what names it, and
    /// `kinds` what it may name.
    pub fn id<T: TryFrom<ResourceId>>(&self, field: &str, kinds: &str) -> Result<T, Status> {
        T::try_from(self.place()?.id())
            .map_err(|_| Violations::of(field, format!("must name a {kinds}")).into_status())
    }

    /// The resource that the access option names.
    pub fn place(&self) -> Result<&Place, Status> {
        self.allowed()?;
        self.place
            .as_ref()
            .ok_or_else(|| Status::internal("the rpc's access option names no resource"))
    }

    /// Refuses a caller who may not do it, now: a repeated request too.
    pub fn allowed(&self) -> Result<(), Status> {
        self.refusal.clone().map_or(Ok(()), Err)
    }
}

/// Puts the access layer in front of a service.
#[derive(Clone)]
pub struct AccessLayer {
    gate: Arc<Gate>,
}

struct Gate {
    rules: HashMap<String, Arc<Rule>>,
    authenticator: Authenticator,
    hierarchy: Hierarchy,
    positions: Positions,
    rates: Option<Rates>,
    peer_rates: PeerRates,
    guests: Guests,
}

impl AccessLayer {
    /// Fails if the contract can't be enforced.
    pub fn new(
        authenticator: Authenticator,
        hierarchy: Hierarchy,
        positions: Positions,
        rates: Option<Rates>,
        peer_rates: PeerRates,
    ) -> Result<Self, InvalidContract> {
        Ok(Self {
            gate: Arc::new(Gate {
                rules: rules()?,
                authenticator,
                hierarchy,
                positions,
                rates,
                peer_rates,
                guests: Guests::new(GUESTS),
            }),
        })
    }
}

impl<S> Layer<S> for AccessLayer {
    type Service = Access<S>;

    fn layer(&self, inner: S) -> Access<S> {
        Access {
            gate: Arc::clone(&self.gate),
            inner,
        }
    }
}

/// A service behind the access layer.
#[derive(Clone)]
pub struct Access<S> {
    gate: Arc<Gate>,
    inner: S,
}

impl<S> Service<http::Request<Body>> for Access<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        // Health and reflection are for everyone; whatever else is not in the contract does not exist.
        if !request.uri().path().starts_with("/tharsis.") {
            return Box::pin(self.inner.call(request));
        }
        let gate = Arc::clone(&self.gate);
        let clone = self.inner.clone();
        let mut ready = std::mem::replace(&mut self.inner, clone);
        Box::pin(async move {
            match gate.admit(request).await {
                Ok(request) => ready.call(request).await,
                Err(status) => Ok(status.into_http()),
            }
        })
    }
}

impl Gate {
    async fn admit(&self, request: http::Request<Body>) -> Result<http::Request<Body>, Status> {
        let path = request.uri().path().to_owned();
        let rule = self
            .rules
            .get(&path)
            .ok_or_else(|| status::not_served(&path))?;
        if rule.permission.requirement() == Requirement::Nothing {
            self.count_peer(request.extensions())?;
            let stay = self.guests.welcome(request.extensions());
            let read = self.read(rule, request, WITHOUT_TOKEN);
            let (parts, body, _) = stay.during(read).await??;
            return Ok(whole(parts, body));
        }
        let caller = self
            .authenticator
            .authenticate(request.headers())
            .await
            .map_err(Status::from)?;
        self.count(&caller)?;
        let (mut parts, body, message) = self.read(rule, request, WITH_TOKEN).await?;
        let validate_only = is_set(&message, VALIDATE_ONLY_FIELD);
        let (place, refusal) = match rule.authorize(&caller, &self.hierarchy, &message).await {
            Ok(place) => (place, None),
            // What a request names may be gone because it was carried out. Whether it is the same request, the handler
            // can tell, and does nothing else for it.
            Err(refusal) if self.was_carried_out(&caller, &message).await? => (None, Some(refusal)),
            Err(refusal) => return Err(refusal),
        };
        parts.extensions.insert(Call {
            caller,
            place,
            refusal,
            permission: rule.permission,
            validate_only,
            method: path,
        });
        Ok(whole(parts, body))
    }

    /// The request's message, once the state is visible that it asks for.
    async fn read(
        &self,
        rule: &Rule,
        request: http::Request<Body>,
        most: Size,
    ) -> Result<(Parts, Bytes, DynamicMessage), Status> {
        let patience = patience(request.headers());
        consistency::visibility_wait(request.headers())?;
        let (parts, body) = request.into_parts();
        let body = timeout(most.patience, Limited::new(body, most.bytes).collect())
            .await
            .map_err(|_| most.exceeded_in_time())?
            .map_err(|_| most.exceeded())?
            .to_bytes();
        let encoded = unframed(&body)?;
        let message = DynamicMessage::decode(rule.input.clone(), encoded.clone())
            .map_err(|_| Status::invalid_argument("the request is not a message of its type"))?;
        writable(&message, &encoded)?;
        if rule.input.get_field_by_name(TOKEN_FIELD).is_some() {
            self.reach(&field(&message, TOKEN_FIELD), patience).await?;
        }
        Ok((parts, body, message))
    }

    /// The services themselves are not counted: they ask as often as the events come.
    fn count(&self, caller: &Caller) -> Result<(), Status> {
        match &self.rates {
            Some(rates) if !caller.event_reader => {
                rates.count(&caller.principal).map_err(status::rate_limited)
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Who asks without a token is counted before anything is read of them, or waited for.
    fn count_peer(&self, request: &Extensions) -> Result<(), Status> {
        let peer = rate::peer_of(request);
        let counted = peer.map_or(Ok(()), |peer| self.peer_rates.count(peer));
        counted.map_err(status::rate_limited)
    }

    async fn was_carried_out(
        &self,
        caller: &Caller,
        message: &DynamicMessage,
    ) -> Result<bool, Status> {
        let id = command::id_of(&caller.principal, &field(message, REQUEST_ID_FIELD))?;
        let (Some(id), Some(log)) = (id, self.positions.own()) else {
            return Ok(false);
        };
        let carried = log
            .carried_out(id)
            .await
            .map_err(|error| status::log(&error))?;
        Ok(carried.is_some())
    }

    async fn reach(&self, token: &str, patience: Duration) -> Result<(), Status> {
        if token.is_empty() {
            return Ok(());
        }
        let token = token
            .parse()
            .map_err(|error| Violations::of(TOKEN_FIELD, error).into_status())?;
        Ok(self.positions.reach(&token, patience).await?)
    }
}

impl Size {
    fn exceeded(self) -> Status {
        let kib = self.bytes >> 10;
        let message = format!("the request exceeds {kib} KiB or broke off");
        status::resource_exhausted("REQUEST_TOO_LARGE", &message)
    }

    fn exceeded_in_time(self) -> Status {
        let seconds = self.patience.as_secs();
        let message = format!("the request did not arrive within {seconds} s");
        status::deadline_exceeded("DEADLINE_EXCEEDED", &message)
    }
}

fn whole(parts: Parts, body: Bytes) -> http::Request<Body> {
    http::Request::from_parts(parts, Body::new(Full::new(body)))
}

/// Refuses texts that PostgreSQL does not keep, whatever field they are in: those that are recorded would be in the log
/// for ever, and those that are asked for are nowhere.
fn writable(message: &DynamicMessage, encoded: &[u8]) -> Result<(), Violations> {
    // Texts are encoded as they are, and few messages hold any such byte.
    if !encoded.contains(&0) {
        return Ok(());
    }
    let mut violations = Violations::default();
    for field in texts::with_nul(message) {
        violations.add(&field, "must not hold the character U+0000");
    }
    violations.finish(|| Some(()))
}

/// The message in the frame of a unary request
/// (<https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>: flag, length, message).
fn unframed(body: &Bytes) -> Result<Bytes, Status> {
    let (Some(flag), Some(length)) = (body.first(), body.get(1..5)) else {
        return Err(Status::invalid_argument("the request has no message"));
    };
    if *flag != 0 {
        return Err(Status::unimplemented("requests must not be compressed"));
    }
    let length = length
        .iter()
        .fold(0_usize, |length, byte| length << 8 | usize::from(*byte));
    let message = body.slice(5..);
    if message.len() == length {
        Ok(message)
    } else {
        Err(Status::invalid_argument("the request must be one message"))
    }
}

/// How long the caller waits for what it asks, by its `grpc-timeout`, less what the answer takes to get there.
fn patience(headers: &http::HeaderMap) -> Duration {
    rpc::deadline(headers).map_or(DEFAULT_WAIT, |given| {
        given.mul_f64(0.9).min(rpc::MAX_DURATION)
    })
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use futures::{FutureExt as _, StreamExt as _, stream};
    use prost_reflect::{DescriptorPool, Kind};
    use sqlx::PgPool;
    use tokio::net::{TcpListener, TcpStream};
    use tonic::transport::server::Connected as _;

    use super::*;

    #[test]
    fn the_answer_has_time_to_get_there() {
        let with = |value| {
            patience(&http::HeaderMap::from_iter([(
                http::HeaderName::from_static("grpc-timeout"),
                http::HeaderValue::from_static(value),
            )]))
        };
        assert_eq!(with("1S"), Duration::from_millis(900));
        assert_eq!(with("99999999H"), rpc::MAX_DURATION);
        assert_eq!(with("1x"), DEFAULT_WAIT);
    }

    fn gate(peer_rates: PeerRates) -> Gate {
        let pool = PgPool::connect_lazy("postgres://nobody@127.0.0.1:1/none").expect("a pool");
        let nobody = Authenticator::new(vec![], [].into(), [].into());
        Gate {
            rules: rules().expect("the contract is enforceable"),
            authenticator: nobody.expect("an authenticator"),
            hierarchy: Hierarchy::new(pool),
            positions: Positions::new(None, vec![]),
            rates: None,
            peer_rates,
            guests: Guests::new(2),
        }
    }

    /// Of somebody without a token: of its body this comes, and no end.
    fn beginning(body: Vec<u8>) -> http::Request<Body> {
        let body = stream::iter([Ok::<_, Infallible>(Bytes::from(body))]).chain(stream::pending());
        let body = Body::new(axum::body::Body::from_stream(body));
        let request = http::Request::post("/tharsis.issuer.v1.TokenService/ExchangeToken");
        request.body(body).expect("a request")
    }

    #[tokio::test]
    async fn who_has_no_token_is_counted_before_anything_is_read() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let peer = TcpStream::connect(address).await.expect("connected");
        let gate = gate(PeerRates::new(Some(NonZeroU32::MIN)));
        let asks = || {
            let mut request = beginning(vec![]);
            request.extensions_mut().insert(peer.connect_info());
            gate.admit(request).now_or_never()
        };
        assert!(asks().is_none() && asks().is_none());
        let refused = asks().expect("an answer").expect_err("too many");
        assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
    }

    #[tokio::test]
    async fn of_those_without_a_token_little_is_kept_and_not_for_long() {
        let gate = gate(PeerRates::new(None));
        let fits = gate.admit(beginning(vec![0; WITHOUT_TOKEN.bytes]));
        assert!(fits.now_or_never().is_none());
        let larger = gate.admit(beginning(vec![0; WITHOUT_TOKEN.bytes + 1]));
        let refused = larger.now_or_never().expect("an answer");
        let refused = refused.expect_err("too large");
        assert_eq!(status::reason(&refused), "REQUEST_TOO_LARGE");
        let rule = &gate.rules["/tharsis.issuer.v1.TokenService/ExchangeToken"];
        let at_once = Size {
            patience: Duration::ZERO,
            ..WITHOUT_TOKEN
        };
        let late = gate.read(rule, beginning(vec![0]), at_once).await;
        let late = late.expect_err("too late");
        assert_eq!(late.code(), tonic::Code::DeadlineExceeded);
    }

    #[tokio::test]
    async fn of_those_without_a_token_few_are_read_at_once() {
        let gate = gate(PeerRates::new(None));
        let mut reading: Vec<_> = (0..3)
            .map(|_| Box::pin(gate.admit(beginning(vec![0]))))
            .collect();
        for reading in &mut reading {
            assert!(reading.now_or_never().is_none());
        }
        let first = (&mut reading[0]).now_or_never().expect("an answer");
        let first = first.expect_err("it made room");
        assert_eq!(first.code(), tonic::Code::Unavailable);
        assert!((&mut reading[1]).now_or_never().is_none());
    }

    #[test]
    fn frames() {
        assert_eq!(
            unframed(&Bytes::from_static(b"\0\0\0\0\x02ab")).ok(),
            Some(Bytes::from_static(b"ab"))
        );
        for bad in [
            &b""[..],
            b"\0\0\0",
            b"\x01\0\0\0\0",
            b"\0\0\0\0\x02a",
            b"\0\0\0\0\x01a\0\0\0\0\0",
        ] {
            assert!(unframed(&Bytes::copy_from_slice(bad)).is_err());
        }
    }

    #[test]
    fn every_mutation_can_be_tried() {
        let pool = DescriptorPool::decode(proto::DESCRIPTORS).expect("the descriptors");
        let methods = pool
            .services()
            .flat_map(|service| service.methods().collect::<Vec<_>>());
        let mut mutations = 0;
        for method in
            methods.filter(|method| method.input().get_field_by_name(REQUEST_ID_FIELD).is_some())
        {
            let name = method.full_name();
            let tried = method.input().get_field_by_name(VALIDATE_ONLY_FIELD);
            assert_eq!(
                tried.map(|field| (field.kind(), field.number())),
                Some((Kind::Bool, 15)),
                "{name} can't be tried"
            );
            let planned = method.output().get_field_by_name("planned_events");
            assert_eq!(
                planned.map(|field| field.number()),
                Some(15),
                "{name} does not say what it would do"
            );
            mutations += 1;
        }
        assert!(mutations > 0);
    }

    #[test]
    fn every_rpc_has_a_rule() {
        let rules = rules().expect("the contract is enforceable");
        assert!(rules.contains_key("/tharsis.issuer.v1.CredentialService/IssueCredential"));
    }
}
