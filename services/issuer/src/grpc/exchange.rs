//! `TokenService`, and the same for whoever comes over HTTP: a token of an issuer that a service account trusts in, a
//! token of ours out.

use std::net::IpAddr;

use edge::authentication::{self, AuthenticationError, Verified, revoked_key, service_audience};
use edge::caller::Caller;
use edge::hierarchy::{Place, read_trust, trust_key};
use edge::violations::Violations;
use edge::{aggregate, clock, naming, request, status};
use eventlog::{Append, AppendError, Expected, Guard, Head, Metadata, StreamId};
use model::trust::TrustPolicy;
use model::{JobId, Kind, ManagedIdentityId, Principal, Reference, ServiceAccountId};
use proto::issuer::v1 as pb;
use proto::issuer::v1::token_service_server::TokenService;
use time::{Duration, OffsetDateTime};
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::IssuerRpc;
use super::admission::busy;
use super::current::until_steady;
use super::refusals::Denied;
use crate::domain::service_account_token::{self, Grant, Question, Refusal};
use crate::jobs_on_record;
use crate::keys::ring::signs;
use crate::signing::TokenType;
use crate::wire;

const ACCOUNT: &str = "service_account_id";
const TOKEN: &str = "subject_token";
/// Of a credential: for which job it was issued.
const JOB_CLAIM: &str = "tharsis_job_id";

/// What someone asks for, who has nothing but the token.
pub(crate) struct Asked<'a> {
    /// The service account: id or TRN.
    pub(crate) account: &'a str,
    /// The token to exchange.
    pub(crate) token: &'a str,
    /// Whether it is said to be an ID token.
    pub(crate) id_token: bool,
    /// Whence it was asked.
    pub(crate) peer: Option<IpAddr>,
    pub(crate) traceparent: Option<String>,
}

/// What there is in exchange.
pub(crate) struct Exchanged {
    pub(crate) reply: pb::ExchangeTokenResponse,
    /// Of the token.
    pub(crate) lifetime: Duration,
}

/// A credential of ours that its job would be given again.
struct Standing {
    /// At the latest.
    until: OffsetDateTime,
    guards: Vec<Guard>,
    /// Of the token with which its job asked for it.
    job_token_kid: String,
}

/// The service account, as it was read.
struct Account {
    id: ServiceAccountId,
    place: Place,
    policies: Vec<TrustPolicy>,
    /// What must still hold when the token's event is appended.
    guards: Vec<Guard>,
}

#[derive(Debug, thiserror::Error)]
#[error("the trust policies of {0} can't be read")]
struct UnreadableTrust(ServiceAccountId);

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let reason = match refusal {
            Refusal::NotAdmitted(_) => "TOKEN_NOT_ADMITTED",
            Refusal::Expired => "TOKEN_EXPIRED",
        };
        status::unauthenticated(reason, &refusal.to_string())
    }
}

#[tonic::async_trait]
impl TokenService for IssuerRpc {
    async fn exchange_token(
        &self,
        request: Request<pb::ExchangeTokenRequest>,
    ) -> Result<Response<pb::ExchangeTokenResponse>, Status> {
        let peer = request.remote_addr().map(|address| address.ip());
        let (metadata, _, message) = request.into_parts();
        let exchanged = self.exchange(Asked {
            account: &message.service_account_id,
            token: &message.subject_token,
            id_token: false,
            peer,
            traceparent: request::traceparent(&metadata),
        });
        Ok(Response::new(exchanged.await?.reply))
    }
}

impl IssuerRpc {
    /// Exchanges a token. A refusal says why, here and in the log.
    pub(crate) async fn exchange(&self, asked: Asked<'_>) -> Result<Exchanged, Status> {
        let outcome = self.try_to_exchange(&asked).await;
        if let Err(refusal) = &outcome {
            let peer = asked.peer;
            let (code, why) = (refusal.code(), refusal.message());
            tracing::info!(?peer, ?code, why, "token not exchanged");
        }
        outcome
    }

    /// Counts a request that did not come through the access layer.
    pub(crate) fn count_peer(&self, peer: IpAddr) -> Result<(), Status> {
        let counted = self.shared.peer_rates.count(peer);
        counted.map_err(status::rate_limited)
    }

    async fn try_to_exchange(&self, asked: &Asked<'_>) -> Result<Exchanged, Status> {
        let reference = &named(asked)?;
        // Before the account is looked for: what is no token is refused alike, whether the account is there or not.
        authentication::named_issuer(asked.token)?;
        let _admitted = self.admission.exchange()?;
        until_steady(|_| async move {
            self.current().await?;
            let mut account = self.trusting(reference, asked.account).await?;
            let verified = self.verify(&account, asked).await?;
            // Only now, for the issuer may have taken long to give its keys. What the account was found to be before is
            // among the guards: if it is otherwise now, it is looked at again.
            let since = self.current().await?;
            let question = Question {
                account: account.id,
                policies: account
                    .policies
                    .iter()
                    .filter(|policy| policy.is_signed_with(&verified.algorithm, verified.declared))
                    .cloned()
                    .collect(),
                issuer: verified.issuer.clone(),
                audiences: verified.audiences.clone(),
                claims: verified.claims.clone(),
                valid_until: verified.expires,
                now: clock::now(),
            };
            // Policies may ask for patterns that take long to be looked for.
            let decide = move || service_account_token::decide(&question);
            let group = account.place.top().to_string();
            let decided = self.admission.compute(&group, decide).await;
            let mut grant = decided.ok_or_else(busy)??;
            let mut job_token_kid = String::new();
            if verified.issuer == self.shared.issuer {
                let credential = self.still_granted(&verified, &account.place).await?;
                grant.expires = grant.expires.min(credential.until);
                account.guards.extend(credential.guards);
                job_token_kid = credential.job_token_kid;
            }
            account.guards.extend(verified.leans_on.clone());
            if let Some(revision) = self.still_at(&account.guards).await? {
                let exchanged = self
                    .sign_and_record(asked, account, &verified, &grant, job_token_kid, revision)
                    .await?;
                if let Some(exchanged) = exchanged {
                    self.refuse_if_late(since)?;
                    return Ok(Some(exchanged));
                }
            }
            self.look_for_keys().await?;
            Ok(None)
        })
        .await
    }

    /// The service account and what it trusts. Who asks is not told whether it is not there or trusts nobody.
    async fn trusting(&self, reference: &Reference, named: &str) -> Result<Account, Status> {
        let hierarchy = &self.shared.hierarchy;
        let database = |error: sqlx::Error| status::database(&error);
        let missing = || status::not_trusting(named);
        let _looking_up = self.admission.look_up().await?;
        // As many look-ups where there is none: how long they take must not tell either.
        let id = hierarchy.resolve(reference).await.map_err(database)?;
        let none = ServiceAccountId::from_uuid(Uuid::nil());
        let place = hierarchy.way_up(id.unwrap_or(none.into())).await;
        let place = place.map_err(database)?;
        let is_named = |place: &Place| match reference {
            Reference::Id(_) => true,
            Reference::Trn(trn) => place.trn() == trn.to_string(),
        };
        let place = place.filter(is_named);
        let id = place.as_ref().and_then(|place| place.id().try_into().ok());
        let id: ServiceAccountId = id.unwrap_or(none);
        let key = trust_key(id);
        let facts = self.shared.commands.log().facts(std::slice::from_ref(&key));
        let facts = facts.await.map_err(|error| status::log(&error))?;
        let (place, fact) = place.zip(facts.get(&key)).ok_or_else(missing)?;
        let policies = read_trust(fact);
        let policies = policies.ok_or_else(|| status::internal(&UnreadableTrust(id)))?;
        let mut guards = place.existence();
        guards.push(Guard::Expect {
            value: Some(fact.to_owned()),
            key,
        });
        Ok(Account {
            id,
            place,
            policies,
            guards,
        })
    }

    /// Verifies the token, if the service account trusts its issuer: nobody else's keys are ever fetched.
    async fn verify(&self, account: &Account, asked: &Asked<'_>) -> Result<Verified, Status> {
        let groups = account.place.nodes.iter().skip(1);
        let groups: Vec<_> = groups.map(|group| group.id.to_string()).collect();
        let groups: Vec<_> = groups.iter().map(String::as_str).collect();
        let _verifying = self.admission.verification(&groups)?;
        let trusted = &self.shared.trusted;
        let verified = trusted.verify(asked.token, &account.policies, &groups);
        let verified = verified.await;
        let verified = verified.map_err(|error| match error {
            AuthenticationError::IssuerUnknown => status::not_trusting(asked.account),
            other => other.into(),
        })?;
        if asked.id_token && verified.access_token {
            return Err(AuthenticationError::TypeRefused.into());
        }
        Ok(verified)
    }

    /// That the job would be given this credential of ours again, of an identity that could stand for the service account,
    /// and until when: what has revoked it since, or moved it away, or changed what it would say, the token does not tell.
    async fn still_granted(
        &self,
        verified: &Verified,
        account: &Place,
    ) -> Result<Standing, Status> {
        let missing = |claim| Status::from(AuthenticationError::ClaimInvalid(claim));
        let said = verified.claims.get(JOB_CLAIM);
        let job: JobId = said
            .and_then(|job| job.parse().ok())
            .ok_or_else(|| missing(JOB_CLAIM))?;
        let (subject, _) = verified
            .subject
            .split_once(':')
            .unwrap_or((&verified.subject, ""));
        let source: ManagedIdentityId = subject.parse().map_err(|_| missing("sub"))?;
        let identity = self.presenting(source, job).await?;
        let caller = Caller {
            principal: Principal::Job(job),
            administrator: false,
            event_reader: false,
            leans_on: None,
        };
        let granted = self.decide_anew(job, &caller, &identity.to_string()).await;
        let granted = granted.map_err(|denied| match denied {
            Denied::Refused(refused) => {
                let reason = status::reason(&refused.status);
                status::unauthenticated(&reason, refused.status.message())
            }
            Denied::Failed(status) => status,
        })?;
        let place = self.shared.hierarchy.way_up(source.into()).await;
        let place = place.map_err(|error| status::database(&error))?;
        let within_reach = place.filter(|place| place.is_in_reach_of(account));
        let place = within_reach.ok_or_else(out_of_reach)?;
        let until = granted.still(&self.shared.issuer, &verified.claims);
        let until = until.map_err(|error| status::internal(&error))?;
        let until = until.ok_or_else(outdated)?;
        let (job_token_kid, not_revoked) = self.asked_with(verified, job).await?;
        let guards = [
            place.existence(),
            granted.ground.guards.to_vec(),
            Vec::from_iter(not_revoked),
        ]
        .concat();
        Ok(Standing {
            until,
            guards,
            job_token_kid,
        })
    }

    /// The `kid` of the token with which a job asked for this credential of ours, and that this key is not revoked: whoever
    /// has it may have been the job. The record tells, and has every credential that we gave.
    async fn asked_with(
        &self,
        verified: &Verified,
        job: JobId,
    ) -> Result<(String, Option<Guard>), Status> {
        let issued = verified.claims.get("iat").and_then(|at| at.parse().ok());
        let issued = issued.and_then(|at| OffsetDateTime::from_unix_timestamp(at).ok());
        let issued = issued.ok_or(AuthenticationError::ClaimInvalid("iat"))?;
        let token_id = verified.token_id.as_deref().unwrap_or_default();
        let skew = self.shared.keys.policy().clock_skew;
        let log = self.shared.commands.log();
        let credential = jobs_on_record::credential(log, job, token_id, issued, skew).await;
        let credential = credential.map_err(|error| status::log(&error))?;
        let kid = credential.ok_or_else(not_on_record)?.job_token_kid;
        if kid.is_empty() {
            return Ok((kid, None));
        }
        let key = revoked_key(&kid);
        let facts = log.facts(std::slice::from_ref(&key)).await;
        let facts = facts.map_err(|error| status::log(&error))?;
        if facts.get(&key).is_some() {
            return Err(asked_with_revoked());
        }
        Ok((kid, Some(Guard::Expect { key, value: None })))
    }

    /// The identity with the source's subject that the job's workspace has: the source, or an alias of it.
    async fn presenting(
        &self,
        source: ManagedIdentityId,
        job: JobId,
    ) -> Result<ManagedIdentityId, Status> {
        let Some(known) = self.known_job(job).await? else {
            return Ok(source);
        };
        for assigned in self.assigned(known.job.workspace).await? {
            let presented = self.present().source(assigned).await?;
            if presented.is_some_and(|presented| presented.id == source) {
                return Ok(assigned);
            }
        }
        Ok(source)
    }

    /// Signs, and records it. `None` if what was decided on has changed.
    async fn sign_and_record(
        &self,
        asked: &Asked<'_>,
        account: Account,
        verified: &Verified,
        grant: &Grant,
        job_token_kid: String,
        revision: String,
    ) -> Result<Option<Exchanged>, Status> {
        let shared = &self.shared;
        let (key, token_id) = (shared.keys.active()?, clock::new_uuid());
        let audience = service_audience(&shared.issuer);
        let claims = wire::service_account_claims(&shared.issuer, &audience, grant, token_id);
        let token = key.sign(TokenType::ServiceAccount, &claims);
        let token = token.map_err(|error| status::internal(&error))?;
        let group = account.place.parent().map(|group| group.to_string());
        let event = wire::exchanged(wire::Exchange {
            group: group.unwrap_or_default(),
            token_id,
            audience,
            kid: key.kid(),
            job_token_kid,
            revision,
            verified,
            grant,
        });
        let event = (event.event_type(), event.encode());
        let mut guards = account.guards;
        // A key that does not sign any more is refused with the event.
        guards.push(signs(&key));
        let streams = aggregate::append(stream(account.id), Expected::Any, [event]);
        let append = Append {
            command: None,
            streams: streams.into_iter().collect(),
            shared: vec![],
            guards,
            metadata: Metadata {
                actor: Principal::ServiceAccount(account.id).to_string(),
                traceparent: asked.traceparent.clone(),
            },
        };
        let before = clock::now();
        let appended = match shared.commands.log().append(append).await {
            Ok(appended) => appended,
            Err(AppendError::GuardRefused { .. } | AppendError::VersionConflict { .. }) => {
                return Ok(None);
            }
            Err(error) => {
                let message =
                    "the token's issue could not be recorded, so none is issued; try again";
                let status = status::unavailable("LOG_UNAVAILABLE", message);
                return Err(status::logged(&error, status));
            }
        };
        let recorded_at = appended.recorded_at;
        shared
            .keys
            .recorded_in_time(before, recorded_at, clock::now())?;
        let head = Head {
            epoch: appended.epoch,
            position: appended.last,
        };
        let reply = pb::ExchangeTokenResponse {
            token,
            token_id: token_id.to_string(),
            expire_time: Some(request::timestamp(grant.expires)),
            consistency_token: self.reached(Some(head)),
        };
        let lifetime = grant.expires - grant.issued;
        Ok(Some(Exchanged { reply, lifetime }))
    }
}

fn out_of_reach() -> Status {
    status::unauthenticated(
        "SERVICE_ACCOUNT_OUT_OF_REACH",
        "the managed identity's group is neither that of the service account nor below it",
    )
}

fn asked_with_revoked() -> Status {
    status::unauthenticated(
        "TOKEN_KEY_REVOKED",
        "the credential was asked for with a job token of a key that was revoked; ask for a new one with a new job token",
    )
}

fn not_on_record() -> Status {
    status::unauthenticated(
        "CREDENTIAL_UNKNOWN",
        "the credential is not on the record of those that were issued; ask for a new one",
    )
}

fn outdated() -> Status {
    status::unauthenticated(
        "CREDENTIAL_OUTDATED",
        "what the credential says of its job and managed identity, or how long it lives, is not so any more; ask \
         for a new one",
    )
}

fn stream(id: ServiceAccountId) -> StreamId {
    StreamId::new("service_account", id)
}

/// The service account that is named. Whatever is wrong is said at once.
fn named(asked: &Asked<'_>) -> Result<Reference, Status> {
    let mut violations = Violations::default();
    violations.required(TOKEN, (!asked.token.is_empty()).then_some(()));
    let reference = violations.merge(naming::reference(ACCOUNT, asked.account));
    let kind = reference.as_ref().map(|reference| match reference {
        Reference::Id(id) => id.kind(),
        Reference::Trn(trn) => trn.kind,
    });
    if kind.is_some_and(|kind| kind != Kind::ServiceAccount) {
        violations.add(ACCOUNT, "must name a service account");
    }
    Ok(violations.finish(|| reference)?)
}
