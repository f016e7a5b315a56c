//! Azure: the token endpoint of Microsoft Entra, with a client assertion instead of a secret
//! (<https://learn.microsoft.com/entra/identity-platform/v2-oauth2-client-creds-grant-flow>).

use axum::Router;
use axum::extract::{Path, State};
use axum::http::header::HOST;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use axum::routing::{get, post};
use jsonwebtoken::Algorithm;
use serde_json::json;

use super::answer::{form, json};
use super::verifier::{Audience, Wrong, unverified};
use super::{Clouds, FederatedCredential};

const ASSERTION: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// A refusal: OAuth's error, the number of the AADSTS code, message.
struct Refusal(&'static str, u32, String);

pub(super) fn router() -> Router<Clouds> {
    Router::new()
        .route(
            "/{tenant}/v2.0/.well-known/openid-configuration",
            get(discovery),
        )
        .route("/{tenant}/oauth2/v2.0/token", post(answer))
}

/// MSAL asks for it before it asks for a token. What is given out here is no JWT, so nobody looks for the keys.
async fn discovery(
    State(clouds): State<Clouds>,
    Path(tenant): Path<String>,
    headers: HeaderMap,
) -> Response {
    if !has(&clouds, &tenant) {
        return refused(&unknown("invalid_tenant", &tenant));
    }
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    let base = format!("https://{}/{tenant}", host.unwrap_or_default());
    json(
        StatusCode::OK,
        json!({
            "issuer": format!("{base}/v2.0"),
            "authorization_endpoint": format!("{base}/oauth2/v2.0/authorize"),
            "token_endpoint": format!("{base}/oauth2/v2.0/token"),
            "jwks_uri": format!("{base}/discovery/v2.0/keys"),
        }),
    )
}

async fn answer(
    State(clouds): State<Clouds>,
    Path(tenant): Path<String>,
    body: String,
) -> Response {
    let form = form(&body);
    let field = |name: &str| form.get(name).map_or("", String::as_str);
    let grant = (field("grant_type"), field("client_assertion_type"));
    let exchanged = if grant == ("client_credentials", ASSERTION) {
        exchange(
            &clouds,
            &tenant,
            field("client_id"),
            field("client_assertion"),
        )
        .await
    } else {
        let message = "The request body must contain a client_assertion of type jwt-bearer";
        Err(Refusal("invalid_request", 900_144, message.to_owned()))
    };
    match exchanged {
        Ok(access_token) => json(
            StatusCode::OK,
            json!({ "token_type": "Bearer", "expires_in": 3_599, "ext_expires_in": 3_599, "access_token": access_token }),
        ),
        Err(refusal) => refused(&refusal),
    }
}

fn refused(Refusal(error, code, message): &Refusal) -> Response {
    let status = match *error {
        "invalid_client" => StatusCode::UNAUTHORIZED,
        _ => StatusCode::BAD_REQUEST,
    };
    let description = format!("AADSTS{code}: {message}");
    json(
        status,
        json!({ "error": error, "error_description": description, "error_codes": [code] }),
    )
}

fn has(clouds: &Clouds, tenant: &str) -> bool {
    clouds.trusted(|trust| {
        let mut credentials = trust.azure.iter();
        credentials.any(|credential| credential.tenant_id == tenant)
    })
}

/// The error differs by who asks.
fn unknown(error: &'static str, tenant: &str) -> Refusal {
    Refusal(error, 90_002, format!("Tenant '{tenant}' not found"))
}

/// Issuer, subject and audience are compared exactly, one after the other; only RS256 is taken.
async fn exchange(
    clouds: &Clouds,
    tenant: &str,
    client: &str,
    assertion: &str,
) -> Result<String, Refusal> {
    let invalid = |code, message: String| Err(Refusal("invalid_client", code, message));
    if !has(clouds, tenant) {
        return Err(unknown("invalid_request", tenant));
    }
    let Ok(said) = unverified(assertion) else {
        let message = "JWT token is invalid or malformed".to_owned();
        return Err(Refusal("invalid_request", 50_027, message));
    };
    let known = clouds.trusted(|trust| trust.azure.clone());
    let of_application = |credential: &FederatedCredential| {
        credential.tenant_id == tenant && credential.client_id == client
    };
    let credentials: Vec<_> = known.into_iter().filter(of_application).collect();
    if credentials.is_empty() {
        let message =
            format!("Application with identifier '{client}' was not found in the directory");
        return Err(Refusal("unauthorized_client", 700_016, message));
    }
    let none = |what: &str, given: &str| {
        format!(
            "No matching federated identity record found for presented assertion {what} '{given}'"
        )
    };
    if !credentials
        .iter()
        .any(|credential| credential.issuer == said.iss)
    {
        return invalid(700_211, none("issuer", &said.iss));
    }
    match clouds
        .verifier()
        .verify(assertion, &said.iss, &[Algorithm::RS256])
        .await
    {
        Ok(_) => {}
        Err(Wrong::NotInTime) => {
            let message = "Client assertion is not within its valid time range".to_owned();
            return invalid(700_024, message);
        }
        Err(Wrong::Malformed | Wrong::Algorithm) => {
            let message = "JWT token is invalid or malformed".to_owned();
            return Err(Refusal("invalid_request", 50_027, message));
        }
        Err(Wrong::Keys) => {
            let message = "Request to External OIDC endpoint failed".to_owned();
            return Err(Refusal("invalid_request", 501_661, message));
        }
        Err(Wrong::Key | Wrong::Signature) => {
            let message = "Assertion failed signature validation".to_owned();
            return invalid(50_013, message);
        }
    }
    let of_issuer = credentials
        .iter()
        .filter(|credential| credential.issuer == said.iss);
    let of_subject: Vec<_> = of_issuer
        .filter(|credential| credential.subject == said.sub)
        .collect();
    if of_subject.is_empty() {
        return invalid(700_213, none("subject", &said.sub));
    }
    match &said.aud {
        Audience::One(audience)
            if of_subject
                .iter()
                .any(|credential| credential.audience == *audience) =>
        {
            Ok(clouds.give(client))
        }
        Audience::One(audience) => invalid(700_212, none("audience", audience)),
        Audience::Many(_) => invalid(700_212, none("audience", "a list")),
    }
}
