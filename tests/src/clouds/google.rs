//! Google Cloud: the Security Token Service, and the impersonation of a service account with what it gives
//! (<https://cloud.google.com/iam/docs/reference/sts/rest/v1/TopLevel/token>).

use axum::Router;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use axum::routing::post;
use edge::clock;
use jsonwebtoken::Algorithm;
use serde_json::json;
use time::Duration;
use time::format_description::well_known::Rfc3339;

use super::Clouds;
use super::answer::{bearer, form, json};
use super::verifier::{Wrong, unverified};

const EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
const JWT: &str = "urn:ietf:params:oauth:token-type:jwt";
const ID_TOKEN: &str = "urn:ietf:params:oauth:token-type:id_token";
const ACCESS_TOKEN: &str = "urn:ietf:params:oauth:token-type:access_token";

/// A refusal: OAuth's error, message.
struct Refusal(&'static str, String);

pub(super) fn router() -> Router<Clouds> {
    Router::new()
        .route("/v1/token", post(answer))
        .route("/v1/projects/-/serviceAccounts/{call}", post(impersonate))
}

async fn answer(State(clouds): State<Clouds>, body: String) -> Response {
    let form = form(&body);
    let field = |name: &str| form.get(name).map_or("", String::as_str);
    let refuse = |error, message: &str| Err(Refusal(error, message.to_owned()));
    let exchanged = match (field("grant_type"), field("subject_token_type")) {
        (EXCHANGE, JWT | ID_TOKEN) => {
            exchange(&clouds, field("audience"), field("subject_token")).await
        }
        (EXCHANGE, _) => refuse("invalid_request", "Invalid subject_token_type"),
        _ => refuse("unsupported_grant_type", "Invalid grant_type"),
    };
    match exchanged {
        Ok(access_token) => json(
            StatusCode::OK,
            json!({ "access_token": access_token, "issued_token_type": ACCESS_TOKEN, "token_type": "Bearer", "expires_in": 3_600 }),
        ),
        Err(Refusal(error, description)) => json(
            StatusCode::BAD_REQUEST,
            json!({ "error": error, "error_description": description }),
        ),
    }
}

/// The bearer becomes a principal of the pool: `principal://…/subject/<sub>`.
async fn exchange(clouds: &Clouds, audience: &str, token: &str) -> Result<String, Refusal> {
    let invalid = |message: &str| Err(Refusal("invalid_grant", message.to_owned()));
    let name = audience.strip_prefix("//iam.googleapis.com/");
    let provider = clouds.trusted(|trust| {
        let mut providers = trust.google.iter();
        let named = providers.find(|provider| Some(provider.name.as_str()) == name);
        named.cloned()
    });
    let Some(provider) = provider else {
        let message = "The target service indicated by the \"audience\" parameters is invalid";
        return Err(Refusal("invalid_target", message.to_owned()));
    };
    let Ok(said) = unverified(token) else {
        return invalid("Unable to parse the ID Token");
    };
    if said.iss != provider.issuer {
        let message = format!(
            "The issuer in ID Token {} does not match the expected ones: {}",
            said.iss, provider.issuer
        );
        return invalid(&message);
    }
    let algorithms = [Algorithm::RS256, Algorithm::ES256];
    let verified = clouds
        .verifier()
        .verify(token, &provider.issuer, &algorithms);
    let claims = match verified.await {
        Ok(claims) => claims,
        Err(Wrong::Keys) => return invalid("Error connecting to the given credential's issuer"),
        Err(Wrong::NotInTime) => return invalid("ID Token is stale to sign-in"),
        Err(Wrong::Malformed | Wrong::Algorithm) => return invalid("Unable to parse the ID Token"),
        Err(Wrong::Key | Wrong::Signature) => {
            return invalid("Invalid signature for the ID Token");
        }
    };
    if !claims
        .aud
        .names(&format!("https://iam.googleapis.com/{}", provider.name))
    {
        return invalid("The audience in ID Token does not match the expected audience");
    }
    let pool = provider
        .name
        .split("/providers/")
        .next()
        .unwrap_or_default();
    Ok(clouds.give(&format!(
        "principal://iam.googleapis.com/{pool}/subject/{}",
        claims.sub
    )))
}

/// `<email>:generateAccessToken`.
async fn impersonate(
    State(clouds): State<Clouds>,
    Path(call): Path<String>,
    headers: HeaderMap,
) -> Response {
    let refuse = |status: StatusCode, name: &str, message: &str| {
        let error = json!({ "code": status.as_u16(), "message": message, "status": name });
        json(status, json!({ "error": error }))
    };
    let principal = bearer(&headers).and_then(|token| clouds.whose(token));
    let Some(principal) = principal else {
        let message = "Request had invalid authentication credentials";
        return refuse(StatusCode::UNAUTHORIZED, "UNAUTHENTICATED", message);
    };
    let email = call
        .strip_suffix(":generateAccessToken")
        .unwrap_or_default();
    let permitted = clouds.trusted(|trust| {
        trust.google.iter().any(|provider| {
            let pool = provider
                .name
                .split("/providers/")
                .next()
                .unwrap_or_default();
            provider.service_accounts.iter().any(|account| {
                let user = format!(
                    "principal://iam.googleapis.com/{pool}/subject/{}",
                    account.subject
                );
                account.email == email && user == principal
            })
        })
    });
    if !permitted {
        let message = "Permission 'iam.serviceAccounts.getAccessToken' denied on resource (or it may not exist).";
        return refuse(StatusCode::FORBIDDEN, "PERMISSION_DENIED", message);
    }
    let expires = (clock::now() + Duration::hours(1)).replace_nanosecond(0);
    let expires = expires.ok().and_then(|time| time.format(&Rfc3339).ok());
    json(
        StatusCode::OK,
        json!({ "accessToken": clouds.give(email), "expireTime": expires }),
    )
}
