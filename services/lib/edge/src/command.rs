//! The way of a command: decide, append, decide again if someone came between, answer once it is visible.

use std::future::Future;

use aws_lc_rs::digest::{SHA256, digest};
use eventlog::{
    Append, AppendError, Appended, Command, ConsistencyToken, EventLog, Guard, Head, Metadata,
    StreamAppend,
};
use model::Principal;
use prost::Message;
use prost_types::Any;
use time::OffsetDateTime;
use tonic::metadata::MetadataMap;
use tonic::{Response, Status};
use uuid::Uuid;

use crate::authentication::AuthenticationError;
use crate::caller::Caller;
use crate::consistency::{Visibility, response, visibility_wait};
use crate::layer::Call;
use crate::violations::Violations;
use crate::{request, status};

/// How often a command is decided before giving up. Each time someone else got through, so the whole advances.
const ATTEMPTS: usize = 20;
/// The uuid v5 namespace of command ids: a caller's `request_id` is its own.
const COMMANDS: Uuid = Uuid::from_u128(0x6f2b_1f0e_9d5c_4c53_8a55_6d1f_3a0c_7e21);

/// What a decider decided.
#[derive(Debug)]
pub struct Decision<R> {
    /// The events, by stream; none if nothing changes.
    pub streams: Vec<StreamAppend>,
    /// What it leaned on, and what it changes beside the streams.
    pub guards: Vec<Guard>,
    /// What to answer.
    pub reply: R,
}

impl<R> Decision<R> {
    /// The same, with another reply.
    #[must_use]
    pub fn map<T>(self, reply: T) -> Decision<T> {
        Decision {
            streams: self.streams,
            guards: self.guards,
            reply,
        }
    }

    /// The same, which leans on these too.
    #[must_use]
    pub fn guarded(mut self, guards: Vec<Guard>) -> Self {
        self.guards.extend(guards);
        self
    }
}

impl Decision<()> {
    /// Nothing changes.
    #[must_use]
    pub fn nothing() -> Self {
        Self {
            streams: vec![],
            guards: vec![],
            reply: (),
        }
    }
}

/// What the responses of all mutations have in common: encoded, it can be merged into any of them.
#[derive(Clone, PartialEq, Message)]
struct Planned {
    #[prost(message, repeated, tag = "15")]
    planned_events: Vec<Any>,
}

/// What the requests of all mutations have in common: encoded, it can be merged into any of them.
#[derive(Clone, PartialEq, Message)]
struct Tried {
    #[prost(bool, optional, tag = "15")]
    validate_only: Option<bool>,
}

/// A request that changes something, as far as every one is alike.
pub struct Mutation<'a> {
    /// What the access layer found.
    pub call: &'a Call,
    /// The request's metadata.
    pub metadata: &'a MetadataMap,
    /// The request's `request_id`; may be empty.
    pub request_id: String,
    /// The request's content, encoded without `request_id`, `consistency_token` and `validate_only`: whether a request is
    /// the same does not hang on them.
    pub content: Vec<u8>,
}

impl<'a> Mutation<'a> {
    /// Of a request; `aside` names its `request_id` and `consistency_token`, which are not part of its content.
    pub fn new<M: Message + Clone>(
        call: &'a Call,
        metadata: &'a MetadataMap,
        message: &M,
        aside: impl Fn(&mut M) -> [&mut String; 2],
    ) -> Self {
        let mut content = message.clone();
        let [request_id, _] = aside(&mut content).map(std::mem::take);
        if call.validate_only {
            let carried_out = Tried {
                validate_only: Some(false),
            };
            // A test of the contract checks that each mutation has the field.
            let _ = content.merge(carried_out.encode_to_vec().as_slice());
        }
        Self {
            call,
            metadata,
            request_id,
            content: content.encode_to_vec(),
        }
    }
}

/// Carries out the commands of a service. Cheap to clone.
#[derive(Clone)]
pub struct Commands {
    log: EventLog,
    visibility: Visibility,
    followed: &'static [&'static str],
}

impl Commands {
    /// Appends to this log, and answers once the followers see it. What is decided leans on the `followed` logs too.
    #[must_use]
    pub fn new(log: EventLog, visibility: Visibility, followed: &'static [&'static str]) -> Self {
        Self {
            log,
            visibility,
            followed,
        }
    }

    /// The log.
    #[must_use]
    pub fn log(&self) -> &EventLog {
        &self.log
    }

    /// Carries out one command. `decide` is called again, and has to load again, whenever another command came
    /// between; once only, and nothing is appended, if the caller asks what would come of it. `token` is the reply's
    /// `consistency_token`; `answer` completes the reply with the time at which it was recorded, if something had to change.
    pub async fn carry_out<R, D, F>(
        &self,
        mutation: Mutation<'_>,
        mut decide: D,
        token: impl Fn(&mut R) -> &mut String,
        answer: impl FnOnce(&mut R, OffsetDateTime),
    ) -> Result<Response<R>, Status>
    where
        R: Message + Default,
        D: FnMut() -> F,
        F: Future<Output = Result<Decision<R>, Status>>,
    {
        let identity = identity(&mutation)?;
        let before = self.carried_out(&mutation, identity.as_ref()).await;
        if !matches!(before, Ok(Some(_))) {
            mutation.call.allowed()?;
        }
        let (appended, mut reply) = match before? {
            Some(carried) => carried,
            None if mutation.call.validate_only => return plan(decide().await?),
            None => {
                self.outcome(&mutation, identity.as_ref(), &mut decide, &token)
                    .await?
            }
        };
        let head = match &appended {
            Some(appended) => Head {
                epoch: appended.epoch,
                position: appended.last,
            },
            // Nothing had to change: what the caller asked for is already so, at the latest since the head.
            None => self.log.head().await.map_err(|error| status::log(&error))?,
        };
        let token = token(&mut reply);
        let mut reached = ConsistencyToken::of(self.log.name(), head);
        reached.merge(token.parse().unwrap_or_default());
        *token = reached.to_string();
        let visible = self.visibility.wait(token, mutation.metadata).await;
        if let Some(appended) = appended.filter(|appended| !appended.is_empty()) {
            answer(&mut reply, appended.recorded_at);
        }
        Ok(response(reply, visible))
    }

    /// The same answer, once the others see besides what this service has seen of the followed logs by now. It never
    /// fails: what was answered is durable, and how far that is, if it can't be read, the others don't see.
    pub async fn and_what_followed<R>(
        &self,
        answered: Response<R>,
        token: impl Fn(&mut R) -> &mut String,
        metadata: &MetadataMap,
    ) -> Response<R> {
        let mut reply = answered.into_inner();
        let Ok(mut reached) = self.leaned_on().await else {
            let wait = visibility_wait(metadata.as_ref()).unwrap_or_default();
            return response(reply, wait.map(|_| false));
        };
        let token = token(&mut reply);
        reached.merge(token.parse().unwrap_or_default());
        *token = reached.to_string();
        let visible = self.visibility.wait(token, metadata).await;
        response(reply, visible)
    }

    /// How far the followed logs had come in what was decided on, or a little further.
    async fn leaned_on(&self) -> Result<ConsistencyToken, Status> {
        let mut leaned_on = ConsistencyToken::default();
        for log in self.followed {
            let checkpoint = eventlog::checkpoint(self.log.pool(), log)
                .await
                .map_err(|error| status::database(&error))?;
            if let Some(head) = checkpoint {
                leaned_on.merge(ConsistencyToken::of(log, head));
            }
        }
        Ok(leaned_on)
    }

    /// Of a request that was not carried out when we looked. Without a place in the log, if nothing had to change.
    async fn outcome<R, D, F>(
        &self,
        mutation: &Mutation<'_>,
        identity: Option<&(Uuid, Vec<u8>)>,
        decide: &mut D,
        token: &impl Fn(&mut R) -> &mut String,
    ) -> Result<(Option<Appended>, R), Status>
    where
        R: Message + Default,
        D: FnMut() -> F,
        F: Future<Output = Result<Decision<R>, Status>>,
    {
        let decided = self
            .decide_and_append(mutation, identity, decide, token)
            .await;
        if let Ok((Some(_), _)) = decided {
            return decided;
        }
        // The same request may have come through meanwhile, and be what stands in its own way.
        match self.carried_out(mutation, identity).await {
            Ok(Some(carried)) => Ok(carried),
            Ok(None) => decided,
            Err(refusal) => decided.and(Err(refusal)),
        }
    }

    /// Where the request's events stand and what was answered, if it was carried out before.
    async fn carried_out<R: Message + Default>(
        &self,
        mutation: &Mutation<'_>,
        identity: Option<&(Uuid, Vec<u8>)>,
    ) -> Result<Option<(Option<Appended>, R)>, Status> {
        let Some((id, fingerprint)) = identity else {
            return Ok(None);
        };
        let carried = self.log.carried_out(*id).await;
        match carried.map_err(|error| status::log(&error))? {
            Some(carried) if carried.fingerprint == *fingerprint => {
                self.check_token(&mutation.call.caller).await?;
                let reply = replayed(&carried.appended)?.unwrap_or_default();
                Ok(Some((Some(carried.appended), reply)))
            }
            Some(_) => Err(reused()),
            None => Ok(None),
        }
    }

    /// Where nothing is appended that would check it.
    async fn check_token(&self, caller: &Caller) -> Result<(), Status> {
        let Some(Guard::Expect { key, value }) = &caller.leans_on else {
            return Ok(());
        };
        let facts = self.log.facts(std::slice::from_ref(key)).await;
        let facts = facts.map_err(|error| status::log(&error))?;
        if facts.get(key) == value.as_deref() {
            Ok(())
        } else {
            Err(AuthenticationError::KeyRevoked.into())
        }
    }

    async fn decide_and_append<R, D, F>(
        &self,
        mutation: &Mutation<'_>,
        identity: Option<&(Uuid, Vec<u8>)>,
        decide: &mut D,
        token: &impl Fn(&mut R) -> &mut String,
    ) -> Result<(Option<Appended>, R), Status>
    where
        R: Message + Default,
        D: FnMut() -> F,
        F: Future<Output = Result<Decision<R>, Status>>,
    {
        for _ in 0..ATTEMPTS {
            let mut decision = decide().await?;
            // Kept with the reply, so that a retry is answered alike.
            *token(&mut decision.reply) = self.leaned_on().await?.to_string();
            let caller = &mutation.call.caller;
            if decision.streams.is_empty() && identity.is_none() {
                self.check_token(caller).await?;
                return Ok((None, decision.reply));
            }
            // Before what it changes itself: it may be what revokes the key of its own token.
            let leans_on = caller.leans_on.iter().cloned();
            let append = Append {
                command: identity.map(|(id, fingerprint)| Command {
                    id: *id,
                    fingerprint: fingerprint.clone(),
                    reply: decision.reply.encode_to_vec(),
                }),
                streams: decision.streams,
                shared: vec![],
                guards: leans_on.chain(decision.guards).collect(),
                metadata: Metadata {
                    actor: caller.principal.to_string(),
                    traceparent: request::traceparent(mutation.metadata),
                },
            };
            match self.log.append(append).await {
                Ok(appended) => {
                    let earlier = replayed(&appended)?;
                    return Ok((Some(appended), earlier.unwrap_or(decision.reply)));
                }
                Err(error) if caller.is_disowned(&error) => {
                    return Err(AuthenticationError::KeyRevoked.into());
                }
                Err(error) => refusal(&error).map_or(Ok(()), Err)?,
            }
        }
        Err(contention())
    }

    /// Carries out what follows from an event for one target of it: once, however often and by however many processes
    /// the event is met. It is done in the name of `actor`, or else of this service. Nobody waits for it to be visible.
    pub async fn react<D, F>(
        &self,
        event: Uuid,
        target: &str,
        actor: Option<&Principal>,
        mut decide: D,
    ) -> Result<(), Status>
    where
        D: FnMut() -> F,
        F: Future<Output = Result<Decision<()>, Status>>,
    {
        for _ in 0..ATTEMPTS {
            let decision = decide().await?;
            if decision.streams.is_empty() {
                return Ok(());
            }
            let append = Append {
                command: Some(Command {
                    id: Uuid::new_v5(&event, target.as_bytes()),
                    fingerprint: vec![],
                    reply: vec![],
                }),
                streams: decision.streams,
                shared: vec![],
                guards: decision.guards,
                metadata: Metadata {
                    actor: actor.map_or_else(
                        || format!("service:{}", self.log.name()),
                        ToString::to_string,
                    ),
                    traceparent: None,
                },
            };
            match self.log.append(append).await {
                Ok(_) => return Ok(()),
                Err(error) => refusal(&error).map_or(Ok(()), Err)?,
            }
        }
        Err(contention())
    }
}

/// What to answer to a failed append; `None` if another command came first, and this one is to be decided again.
fn refusal(error: &AppendError) -> Option<Status> {
    Some(match error {
        AppendError::VersionConflict { .. } | AppendError::GuardRefused { .. } => return None,
        AppendError::CommandReused => reused(),
        AppendError::OutcomeUnknown(_) => status::logged(
            error,
            status::unavailable(
                "OUTCOME_UNKNOWN",
                "whether it was carried out is not known; repeat the request with the same request_id, or look before \
                 you repeat it",
            ),
        ),
        AppendError::Database(_) | AppendError::Closed => status::logged(
            error,
            status::unavailable("LOG_UNAVAILABLE", "nothing was changed; try again"),
        ),
        AppendError::Empty => status::internal(error),
    })
}

fn contention() -> Status {
    status::aborted(
        "CONTENTION",
        "others kept changing the same thing; nothing was changed, try again",
    )
}

/// The answer to a request that only asks what would come of it.
fn plan<R: Message + Default>(decision: Decision<R>) -> Result<Response<R>, Status> {
    let events = decision.streams.into_iter().flat_map(|part| part.events);
    let planned = Planned {
        planned_events: events
            .map(|event| Any {
                type_url: format!("type.googleapis.com/{}", event.event_type),
                value: event.payload,
            })
            .collect(),
    };
    let mut reply = decision.reply;
    reply
        .merge(planned.encode_to_vec().as_slice())
        .map_err(|error| status::internal(&error))?;
    Ok(Response::new(reply))
}

/// The id of the command that a request makes; none if it has no `request_id`. Derived with the caller, so that nobody
/// can meet another's.
pub(crate) fn id_of(caller: &Principal, request_id: &str) -> Result<Option<Uuid>, Violations> {
    let request_id = request::request_id(request_id)?;
    Ok(request_id.map(|id| Uuid::new_v5(&COMMANDS, format!("{caller} {id}").as_bytes())))
}

/// The id and fingerprint that make a retry known.
fn identity(mutation: &Mutation<'_>) -> Result<Option<(Uuid, Vec<u8>)>, Status> {
    let id = id_of(&mutation.call.caller.principal, &mutation.request_id)?;
    let content = [mutation.call.method.as_bytes(), b"\n", &mutation.content].concat();
    Ok(id.map(|id| (id, digest(&SHA256, &content).as_ref().to_vec())))
}

fn replayed<R: Message + Default>(appended: &Appended) -> Result<Option<R>, Status> {
    let Some(reply) = &appended.replayed else {
        return Ok(None);
    };
    R::decode(reply.as_slice())
        .map(Some)
        .map_err(|error| status::internal(&error))
}

fn reused() -> Status {
    status::already_exists(
        "REQUEST_ID_REUSED",
        "the request_id was used for a request with another content; use a new UUID for each new request",
    )
}
