//! `SigningKeyService`.

use std::collections::BTreeSet;

use edge::command::{Decision, Mutation};
use edge::layer::Call;
use edge::status::chain;
use edge::violations::Violations;
use edge::{clock, status};
use eventlog::{Guard, StreamAppend};
use model::signing_algorithm::InvalidSigningAlgorithm;
use model::{
    Description, ManagedIdentityId, Reference, SigningAlgorithm, SigningKeyId, Trn, trn::Last,
};
use proto::issuer::v1 as pb;
use proto::issuer::v1::signing_key_service_server::SigningKeyService;
use tokio::sync::OnceCell;
use tonic::{Code, Request, Response, Status};

use super::IssuerRpc;
use crate::domain::job::Job;
use crate::domain::signing_key::{Command, Event, Fresh, KeyRing, Rejection, decide, evolve};
use crate::keys::ring::Recorded;
use crate::keys::vault::Vault;
use crate::keys::{KeyError, ring};
use crate::wire::signing_key::message;
use crate::{jobs_on_record, live_tokens};

/// Rows of a page, if the request does not say.
const DEFAULT_PAGE: i32 = 50;
/// Keys of a page at most.
const MAX_KEYS: i32 = 100;
/// Tokens of a page at most, and in the answer to a revocation.
const MAX_TOKENS: i32 = 1_000;
/// Jobs in the answer to a revocation at most.
const MAX_JOBS: usize = 1_000;

impl From<Rejection> for Status {
    fn from(rejection: Rejection) -> Self {
        match rejection {
            Rejection::Missing => status::not_found("the signing key"),
            Rejection::NoSuccessor => status::aborted("NO_SUCCESSOR", &rejection.to_string()),
        }
    }
}

impl From<KeyError> for Status {
    fn from(error: KeyError) -> Self {
        Self::from(&error)
    }
}

impl From<&KeyError> for Status {
    fn from(error: &KeyError) -> Self {
        match error {
            KeyError::Closed(error) => Self::from(&**error),
            KeyError::Seal { .. } => {
                let message = format!(
                    "the issuer can't sign until an operator has looked after it: {error}; try again: another one may"
                );
                status::unavailable("SIGNING_KEY_CLOSED", &message)
            }
            KeyError::Log(error) => status::log(error),
            KeyError::Database(error) => status::database(error),
            KeyError::Rejected(rejection) => (*rejection).into(),
            KeyError::Clock { .. } => status::unavailable("CLOCK_OFF", &error.to_string()),
            KeyError::Append(_) => status::logged(
                error,
                status::unavailable("LOG_UNAVAILABLE", "the log can't be written; try again"),
            ),
            KeyError::Signing(_)
            | KeyError::Event(_)
            | KeyError::Missing(_)
            | KeyError::Public(_) => status::internal(error),
        }
    }
}

/// A request to revoke a key.
struct Revocation<'a> {
    id: SigningKeyId,
    named: &'a str,
    reason: &'a Description,
    only_tried: bool,
    /// The key that is to sign instead, once one had to be made: the same, however often it is decided.
    fresh: OnceCell<Fresh>,
}

#[tonic::async_trait]
impl SigningKeyService for IssuerRpc {
    async fn get_signing_key(
        &self,
        request: Request<pb::GetSigningKeyRequest>,
    ) -> Result<Response<pb::GetSigningKeyResponse>, Status> {
        let named = request.into_inner().id;
        let id = signing_key_id("id", &named)?;
        let ring = ring::load_one(self.shared.commands.log(), id).await?;
        let signing_key = Some(shown(&ring, id, &named)?);
        Ok(Response::new(pb::GetSigningKeyResponse { signing_key }))
    }

    async fn list_signing_keys(
        &self,
        request: Request<pb::ListSigningKeysRequest>,
    ) -> Result<Response<pb::ListSigningKeysResponse>, Status> {
        let request = request.into_inner();
        let size = page_size(request.page_size, MAX_KEYS)?;
        let before = match request.page_token.as_str() {
            "" => None,
            token => Some(signing_key_id("page_token", token)?),
        };
        let algorithm = algorithm(&request.algorithm)?;
        let recorded = ring::load(self.shared.commands.log()).await?;
        let keys = recorded.ring.keys().rev();
        let keys = keys.filter(|key| algorithm.is_none_or(|wanted| key.made.algorithm == wanted));
        let keys = keys.filter(|key| before.is_none_or(|before| key.made.id < before));
        let mut signing_keys: Vec<_> = keys.take(size + 1).map(message).collect();
        let more = signing_keys.len() > size;
        signing_keys.truncate(size);
        let last = signing_keys.last().filter(|_| more);
        let next_page_token = last.map_or_else(String::new, |last| last.id.clone());
        Ok(Response::new(pb::ListSigningKeysResponse {
            signing_keys,
            next_page_token,
        }))
    }

    async fn rotate_signing_key(
        &self,
        request: Request<pb::RotateSigningKeyRequest>,
    ) -> Result<Response<pb::RotateSigningKeyResponse>, Status> {
        let call = Call::of(&request)?;
        let (metadata, _, message) = request.into_parts();
        let algorithm = algorithm(&message.algorithm)?.unwrap_or_default();
        let mutation = Mutation::new(&call, &metadata, &message, |m| {
            [&mut m.request_id, &mut m.consistency_token]
        });
        let carried_out = self.shared.commands.carry_out(
            mutation,
            || self.decide_rotate(algorithm),
            |reply| &mut reply.consistency_token,
            |_, _| {},
        );
        let response = carried_out.await?;
        if call.validate_only {
            return Ok(response);
        }
        self.look_for_keys().await?;
        self.shared.keys.wake();
        Ok(response)
    }

    async fn revoke_signing_key(
        &self,
        request: Request<pb::RevokeSigningKeyRequest>,
    ) -> Result<Response<pb::RevokeSigningKeyResponse>, Status> {
        let call = Call::of(&request)?;
        // A repeated request is told of the tokens that live now.
        call.allowed()?;
        let (metadata, _, message) = request.into_parts();
        let mut violations = Violations::default();
        let id = violations.merge(signing_key_id("id", &message.id));
        let reason = violations.check("reason", message.reason.parse::<Description>());
        let (id, reason) = violations.finish(|| Some((id?, reason?)))?;
        let mutation = Mutation::new(&call, &metadata, &message, |m| {
            [&mut m.request_id, &mut m.consistency_token]
        });
        let wanted = Revocation {
            id,
            named: &message.id,
            reason: &reason,
            only_tried: call.validate_only,
            fresh: OnceCell::new(),
        };
        let carried_out = self.shared.commands.carry_out(
            mutation,
            || self.decide_revoke(&wanted),
            |reply| &mut reply.consistency_token,
            |_, _| {},
        );
        let carried_out = carried_out.await;
        if let Some(fresh) = wanted.fresh.get().filter(|_| !call.validate_only) {
            let failure = carried_out.as_ref().err();
            if let Err(error) = self.destroy_unused(fresh, failure).await {
                tracing::warn!(
                    kid = fresh.kid,
                    error = chain(&error),
                    "unused signing key is kept"
                );
            }
        }
        let mut response = carried_out?;
        if !call.validate_only {
            self.look_for_keys().await?;
            self.shared.keys.wake();
        }
        self.add_live_tokens(response.get_mut()).await?;
        Ok(response)
    }

    async fn list_live_tokens(
        &self,
        request: Request<pb::ListLiveTokensRequest>,
    ) -> Result<Response<pb::ListLiveTokensResponse>, Status> {
        let request = request.into_inner();
        let named = request.signing_key_id.as_str();
        let id = signing_key_id("signing_key_id", named)?;
        let size = page_size(request.page_size, MAX_TOKENS)?;
        let after = match request.page_token.as_str() {
            "" => 0,
            token => token.parse().map_err(|_| {
                Violations::of("page_token", "must be a next_page_token").into_status()
            })?,
        };
        let ring = ring::load_one(self.shared.commands.log(), id).await?;
        let kid = shown(&ring, id, named)?.kid;
        let (live_tokens, next_page_token) = self.live_tokens(&kid, after, size).await?;
        Ok(Response::new(pb::ListLiveTokensResponse {
            live_tokens,
            next_page_token,
        }))
    }
}

impl IssuerRpc {
    /// What was changed in the log, or refused there, is known to this process from here on.
    pub(super) async fn look_for_keys(&self) -> Result<(), Status> {
        Ok(self.shared.keys.look().await?)
    }

    async fn decide_rotate(
        &self,
        algorithm: SigningAlgorithm,
    ) -> Result<Decision<pb::RotateSigningKeyResponse>, Status> {
        let recorded = ring::load(self.shared.commands.log()).await?;
        let ring = recorded.ring.only(algorithm);
        let now = self.shared.keys.time().await?;
        let policy = *self.shared.keys.policy();
        let others = recorded.ring.others(algorithm, &policy);
        let rotate = Command::Rotate {
            now,
            others,
            policy,
        };
        let events = decide(&ring, rotate)?;
        let (streams, guards, ring) = Self::changes(&recorded, &events);
        let reply = pb::RotateSigningKeyResponse {
            signing_key: ring.only(algorithm).active().map(message),
            ..pb::RotateSigningKeyResponse::default()
        };
        Ok(Decision {
            streams,
            guards,
            reply,
        })
    }

    async fn decide_revoke(
        &self,
        revocation: &Revocation<'_>,
    ) -> Result<Decision<pb::RevokeSigningKeyResponse>, Status> {
        let id = revocation.id;
        let log = self.shared.commands.log();
        let mut recorded = ring::load(log).await?;
        let all = recorded.ring.clone();
        if recorded.ring.get(id).is_none() {
            // One that is over is not among them any more; that it has leaked goes on the record all the same. One that
            // never was is not found.
            let over = ring::load_one(log, id).await?;
            shown(&over, id, revocation.named)?;
            recorded.ring = over;
        }
        let revoked = recorded.ring.get(id).ok_or(Rejection::Missing)?;
        let algorithm = revoked.made.algorithm;
        let signs = all.only(algorithm).active().cloned();
        let of_algorithm = recorded.ring.only(algorithm);
        let fresh = if of_algorithm.wants_key_to_revoke(id) {
            let make = async || {
                if revocation.only_tried {
                    Vault::sample(algorithm).await
                } else {
                    self.shared.keys.vault().make(algorithm).await
                }
            };
            Some(revocation.fresh.get_or_try_init(make).await?.clone())
        } else {
            None
        };
        let command = Command::Revoke {
            id,
            reason: revocation.reason.to_string(),
            // Also where our own clock is wrong: a key that leaked is not waited for.
            now: log.now().await.map_err(|error| status::log(&error))?,
            fresh,
        };
        let events = decide(&of_algorithm, command)?;
        let (streams, guards, ring) = Self::changes(&recorded, &events);
        let active = ring.only(algorithm).active().cloned().or(signs);
        let reply = pb::RevokeSigningKeyResponse {
            signing_key: ring.get(id).map(message),
            active_signing_key: active.as_ref().map(message),
            ..pb::RevokeSigningKeyResponse::default()
        };
        Ok(Decision {
            streams,
            guards,
            reply,
        })
    }

    /// Adds the tokens of the key to the answer to its revocation. They are not part of what the log keeps as the reply: it
    /// has them already.
    async fn add_live_tokens(
        &self,
        reply: &mut pb::RevokeSigningKeyResponse,
    ) -> Result<(), Status> {
        let Some(key) = &reply.signing_key else {
            return Ok(());
        };
        let size = page_size(MAX_TOKENS, MAX_TOKENS)?;
        (reply.live_tokens, reply.next_page_token) = self.live_tokens(&key.kid, 0, size).await?;
        let tokens = &reply.live_tokens;
        let identities = tokens.iter().flat_map(|token| {
            [
                Some(token.managed_identity_id.as_str()),
                named_identity(token),
            ]
        });
        let identities = each_once(identities.flatten());
        let jobs = self.living_jobs(&key.kid).await?;
        let workspaces = jobs.iter().map(|job| job.workspace.to_string());
        let workspaces = workspaces.chain(tokens.iter().map(|token| token.workspace_id.clone()));
        let workspaces = each_once(workspaces);
        let accounts = tokens.iter().map(|token| token.service_account_id.as_str());
        let accounts = each_once(accounts);
        reply.managed_identity_ids = identities;
        reply.workspace_ids = workspaces;
        reply.service_account_ids = accounts;
        reply.job_ids = jobs.iter().map(|job| job.id.to_string()).collect();
        Ok(())
    }

    /// The first of the jobs that were opened, or asked for again, with a token which a key has signed and that live.
    async fn living_jobs(&self, kid: &str) -> Result<Vec<Job>, Status> {
        let skew = self.shared.keys.policy().clock_skew;
        let log = self.shared.commands.log();
        let opened = jobs_on_record::opened_with(log, kid, skew).await;
        let mut living = vec![];
        for id in opened.map_err(|error| status::log(&error))? {
            let known = self.known_job(id).await?;
            let lives = known.filter(|known| known.life.over(clock::now()).is_none());
            living.extend(lives.map(|known| known.job));
            if living.len() == MAX_JOBS {
                break;
            }
        }
        Ok(living)
    }

    /// Destroys a key that was made for what came out otherwise. Where the log may name it yet, it stays.
    async fn destroy_unused(
        &self,
        fresh: &Fresh,
        failure: Option<&Status>,
    ) -> Result<(), KeyError> {
        let is_unknown = failure.is_some_and(|status| status.code() == Code::Unavailable);
        let recorded = ring::load_one(self.shared.commands.log(), fresh.id).await?;
        if is_unknown || recorded.get(fresh.id).is_some() {
            return Ok(());
        }
        let kids = [fresh.kid.clone()];
        self.shared.keys.vault().destroy(&kids).await
    }

    /// What to append, and the keys as it leaves them.
    fn changes(recorded: &Recorded, events: &[Event]) -> (Vec<StreamAppend>, Vec<Guard>, KeyRing) {
        let mut ring = recorded.ring.clone();
        events.iter().for_each(|event| evolve(&mut ring, event));
        if events.is_empty() {
            return (vec![], vec![], ring);
        }
        let (streams, guards) = recorded.changes(events);
        (streams, guards, ring)
    }

    async fn live_tokens(
        &self,
        kid: &str,
        after: u64,
        limit: usize,
    ) -> Result<(Vec<pb::LiveToken>, String), Status> {
        let skew = self.shared.keys.policy().clock_skew;
        let log = self.shared.commands.log();
        let (tokens, next) = live_tokens::list(log, kid, skew, after, limit)
            .await
            .map_err(|error| status::log(&error))?;
        Ok((
            tokens,
            next.map_or_else(String::new, |next| next.to_string()),
        ))
    }
}

fn each_once(ids: impl Iterator<Item = impl Into<String>>) -> Vec<String> {
    let ids: BTreeSet<String> = ids.map(Into::into).collect();
    ids.into_iter().filter(|id| !id.is_empty()).collect()
}

/// The identity that a token's subject names, with a stage or without: that of an alias's is the source.
fn named_identity(token: &pb::LiveToken) -> Option<&str> {
    let (named, _) = token
        .subject
        .split_once(':')
        .unwrap_or((&token.subject, ""));
    named.parse::<ManagedIdentityId>().ok().map(|_| named)
}

/// The algorithm that a request names; `None` if it names none.
fn algorithm(text: &str) -> Result<Option<SigningAlgorithm>, Violations> {
    if text.is_empty() {
        return Ok(None);
    }
    let algorithm = text.parse();
    algorithm
        .map(Some)
        .map_err(|error: InvalidSigningAlgorithm| Violations::of("algorithm", error))
}

fn shown(ring: &KeyRing, id: SigningKeyId, named: &str) -> Result<pb::SigningKey, Status> {
    let key = ring.get(id).ok_or_else(|| status::not_found(named))?;
    Ok(message(key))
}

fn signing_key_id(field: &str, text: &str) -> Result<SigningKeyId, Violations> {
    let wrong = || Violations::of(field, "must be the id or the TRN of a signing key");
    let id = match text.parse().map_err(|_| wrong())? {
        Reference::Id(id) => id,
        Reference::Trn(Trn {
            last: Last::Id(id),
            parents,
            ..
        }) if parents.is_empty() => id,
        Reference::Trn(_) => return Err(wrong()),
    };
    SigningKeyId::try_from(id).map_err(|_| wrong())
}

fn page_size(given: i32, most: i32) -> Result<usize, Violations> {
    let size = if given == 0 {
        DEFAULT_PAGE
    } else {
        given.min(most)
    };
    usize::try_from(size).map_err(|_| Violations::of("page_size", "must not be negative"))
}
