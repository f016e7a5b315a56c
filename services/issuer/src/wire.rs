//! Between the domain and the wire: requests into commands, events and resources into messages.

pub(crate) mod job;
pub(crate) mod module;
pub(crate) mod signing_key;

use std::collections::BTreeMap;

use aws_lc_rs::digest::{SHA256, digest};
use edge::authentication::{Verified, leaned_on};
use edge::request;
use model::Stage;
use model::token_settings::TokenLifetime;
use model::trust::{Claims, is_plain};
use proto::EventError;
use proto::issuer::v1::{self as pb, Event};
use serde::Serialize;
use serde_json::Value;
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use crate::domain::credential::Grant;
use crate::domain::service_account_token;

/// A recorded event of ours does not read as one.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unreadable {
    #[error(transparent)]
    Event(#[from] EventError),
    #[error("the event's {0} is malformed")]
    Field(&'static str),
}

fn parse<T: std::str::FromStr>(field: &'static str, text: &str) -> Result<T, Unreadable> {
    text.parse().map_err(|_| Unreadable::Field(field))
}

/// The audit of a token, and of the key whose token it was asked for with.
pub(crate) fn issued(
    grant: &Grant,
    token_id: Uuid,
    kid: &str,
    revision: &str,
    job_token_kid: &str,
) -> Event {
    Event::CredentialIssued(pb::CredentialIssued {
        job_id: grant.job.to_string(),
        workspace_id: grant.workspace.to_string(),
        managed_identity_id: grant.identity.to_string(),
        token_id: token_id.to_string(),
        subject: grant.subject.clone(),
        audience: grant.audience.clone(),
        kid: kid.to_owned(),
        revision: revision.to_owned(),
        issue_time: Some(request::timestamp(grant.issued)),
        expire_time: Some(request::timestamp(grant.expires)),
        stage: job::wire_stage(grant.stage).into(),
        job_token_kid: job_token_kid.to_owned(),
    })
}

/// What the event of a token that was exchanged is made of.
pub(crate) struct Exchange<'a> {
    /// Where the service account is.
    pub(crate) group: String,
    pub(crate) token_id: Uuid,
    pub(crate) audience: String,
    pub(crate) kid: &'a str,
    /// Of a credential of our own: of the token with which its job asked for it.
    pub(crate) job_token_kid: String,
    pub(crate) revision: String,
    /// The token that was shown.
    pub(crate) verified: &'a Verified,
    pub(crate) grant: &'a service_account_token::Grant,
}

/// The audit of a service account's token.
pub(crate) fn exchanged(exchange: Exchange<'_>) -> Event {
    let Exchange {
        verified, grant, ..
    } = exchange;
    let claims = grant.claims.iter();
    let claims = claims.map(|(claim, value)| pb::AdmittedClaim {
        claim: claim.clone(),
        value: value.clone(),
    });
    let subject_token_kid = verified.leans_on.as_ref().and_then(leaned_on);
    let digits = |byte: &u8| format!("{byte:02x}");
    let hashed = |id: &String| -> String {
        let hash = digest(&SHA256, id.as_bytes());
        hash.as_ref().iter().map(digits).collect()
    };
    Event::ServiceAccountTokenIssued(pb::ServiceAccountTokenIssued {
        service_account_id: grant.account.to_string(),
        group_id: exchange.group,
        token_id: exchange.token_id.to_string(),
        audience: exchange.audience,
        kid: exchange.kid.to_owned(),
        issue_time: Some(request::timestamp(grant.issued)),
        expire_time: Some(request::timestamp(grant.expires)),
        subject_issuer: verified.issuer.clone(),
        subject: verified.subject.clone(),
        subject_audience: grant.policy.audience.to_string(),
        subject_token_id_sha256: verified.token_id.as_ref().map(hashed).unwrap_or_default(),
        claims: claims.collect(),
        revision: exchange.revision,
        subject_token_kid: subject_token_kid.unwrap_or_default().to_owned(),
        job_token_kid: exchange.job_token_kid,
    })
}

/// The claims that every token of ours has (RFC 7519, 4.1).
#[derive(Serialize)]
struct Registered<'a> {
    iss: &'a str,
    sub: String,
    aud: &'a str,
    iat: i64,
    nbf: i64,
    exp: i64,
    jti: String,
}

/// A token for a cloud.
#[derive(Serialize)]
pub(crate) struct CredentialClaims<'a> {
    #[serde(flatten)]
    registered: Registered<'a>,
    tharsis_job_id: String,
    tharsis_stage: String,
    tharsis_workspace_id: String,
    tharsis_workspace_path: &'a str,
    tharsis_group_path: &'a str,
    tharsis_revision: &'a str,
}

pub(crate) fn credential_claims<'a>(
    issuer: &'a str,
    grant: &'a Grant,
    token_id: Uuid,
    stage: Stage,
    workspace_path: &'a str,
    revision: &'a str,
) -> CredentialClaims<'a> {
    CredentialClaims {
        registered: Registered {
            iss: issuer,
            sub: grant.subject.clone(),
            aud: &grant.audience,
            iat: grant.issued.unix_timestamp(),
            nbf: grant.issued.unix_timestamp(),
            exp: grant.expires.unix_timestamp(),
            jti: token_id.to_string(),
        },
        tharsis_job_id: grant.job.to_string(),
        tharsis_stage: stage.to_string(),
        tharsis_workspace_id: grant.workspace.to_string(),
        tharsis_workspace_path: workspace_path,
        tharsis_group_path: workspace_path
            .rsplit_once('/')
            .map_or("", |(group, _)| group),
        tharsis_revision: revision,
    }
}

/// Claims that are a credential's own. In all others it is as any that is issued for the same, as long as that stays the
/// same.
const OF_ONE_ALONE: [&str; 5] = ["iat", "nbf", "exp", "jti", "tharsis_revision"];

/// Until when a credential that was shown passes for one that is issued now: not beyond the life that this one may have.
/// `None` if they say different things.
pub(crate) fn like_until(
    shown: &Claims,
    now: &CredentialClaims<'_>,
    lifetime: TokenLifetime,
) -> Result<Option<OffsetDateTime>, serde_json::Error> {
    let now: BTreeMap<String, Value> = serde_json::from_value(serde_json::to_value(now)?)?;
    // As whoever verifies a token has them.
    let now = now.iter().filter_map(|(name, value)| {
        let said = value.as_str().filter(|said| is_plain(said))?;
        Some((name.as_str(), said))
    });
    let shown_claims = shown
        .iter()
        .map(|(name, said)| (name.as_str(), said.as_str()));
    let lasting = |(name, _): &(&str, &str)| !OF_ONE_ALONE.contains(name);
    let is_like = now.filter(lasting).eq(shown_claims.filter(lasting));
    let issued = shown.get("iat").and_then(|at| at.parse().ok());
    let issued = issued.and_then(|at| OffsetDateTime::from_unix_timestamp(at).ok());
    let end = issued.map(|at| at + Duration::seconds(lifetime.seconds()));
    Ok(end.filter(|_| is_like))
}

/// The token that someone calls us with.
#[derive(Serialize)]
pub(crate) struct CallerClaims<'a> {
    #[serde(flatten)]
    registered: Registered<'a>,
}

/// A job's: made of nothing but the job, so that a repeated request gets the same one.
pub(crate) fn job_claims<'a>(
    issuer: &'a str,
    job_id: &str,
    opened: i64,
    expires: i64,
) -> CallerClaims<'a> {
    CallerClaims {
        registered: Registered {
            iss: issuer,
            sub: job_id.to_owned(),
            aud: issuer,
            iat: opened,
            nbf: opened,
            exp: expires,
            jti: job_id.to_owned(),
        },
    }
}

/// A service account's.
pub(crate) fn service_account_claims<'a>(
    issuer: &'a str,
    audience: &'a str,
    grant: &service_account_token::Grant,
    token_id: Uuid,
) -> CallerClaims<'a> {
    CallerClaims {
        registered: Registered {
            iss: issuer,
            sub: grant.account.to_string(),
            aud: audience,
            iat: grant.issued.unix_timestamp(),
            nbf: grant.issued.unix_timestamp(),
            exp: grant.expires.unix_timestamp(),
            jti: token_id.to_string(),
        },
    }
}
