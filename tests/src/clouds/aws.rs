//! AWS: the Security Token Service
//! (<https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRoleWithWebIdentity.html>).

use axum::Router;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::post;
use edge::clock;
use jsonwebtoken::Algorithm;
use time::Duration;
use time::format_description::well_known::Rfc3339;

use super::Clouds;
use super::answer::form;
use super::verifier::{Wrong, unverified};

/// <https://docs.aws.amazon.com/IAM/latest/UserGuide/id_roles_providers_create_oidc.html>.
const ALGORITHMS: [Algorithm; 5] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::ES256,
    Algorithm::ES384,
];

/// A refusal: status, code, message.
struct Refusal(StatusCode, &'static str, String);

pub(super) fn router() -> Router<Clouds> {
    Router::new()
        .route("/aws", post(answer))
        .route("/aws/", post(answer))
}

async fn answer(State(clouds): State<Clouds>, headers: HeaderMap, body: String) -> Response {
    let form = form(&body);
    let field = |name: &str| form.get(name).map_or("", String::as_str);
    let (action, answered) = match field("Action") {
        "AssumeRoleWithWebIdentity" => (
            "AssumeRoleWithWebIdentity",
            assume(
                &clouds,
                field("RoleArn"),
                field("RoleSessionName"),
                field("WebIdentityToken"),
            )
            .await,
        ),
        "GetCallerIdentity" => ("GetCallerIdentity", caller(&clouds, &headers)),
        other => {
            let message = format!("Could not find operation {other}");
            (
                "",
                Err(Refusal(StatusCode::BAD_REQUEST, "InvalidAction", message)),
            )
        }
    };
    let id = clock::new_uuid();
    let (status, xml) = match answered {
        Ok(result) => (
            StatusCode::OK,
            format!(
                r#"<{action}Response xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><{action}Result>{result}</{action}Result><ResponseMetadata><RequestId>{id}</RequestId></ResponseMetadata></{action}Response>"#
            ),
        ),
        Err(Refusal(status, code, message)) => (
            status,
            format!(
                r#"<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><Error><Type>Sender</Type><Code>{code}</Code><Message>{}</Message></Error><RequestId>{id}</RequestId></ErrorResponse>"#,
                escaped(&message)
            ),
        ),
    };
    (status, [(CONTENT_TYPE, "text/xml")], xml).into_response()
}

async fn assume(clouds: &Clouds, arn: &str, session: &str, token: &str) -> Result<String, Refusal> {
    let refuse =
        |code, message: &str| Err(Refusal(StatusCode::BAD_REQUEST, code, message.to_owned()));
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_+=,.@-".contains(&byte);
    if !(2..=64).contains(&session.len()) || !session.bytes().all(allowed) {
        return refuse(
            "ValidationError",
            "1 validation error detected: roleSessionName",
        );
    }
    let Ok(said) = unverified(token) else {
        return refuse(
            "InvalidIdentityToken",
            "The ID Token provided is not a valid JWT",
        );
    };
    let roles = clouds.trusted(|trust| trust.aws.clone());
    let account = |arn: &str| arn.split(':').nth(4).map(str::to_owned);
    // The account has one provider for an issuer, which takes all of the audiences.
    let of_provider: Vec<_> = roles
        .into_iter()
        .filter(|role| role.issuer == said.iss && account(&role.arn) == account(arn))
        .collect();
    if of_provider.is_empty() {
        let message = format!(
            "No OpenIDConnect provider found in your account for {}",
            said.iss
        );
        return refuse("InvalidIdentityToken", &message);
    }
    let verified = clouds.verifier().verify(token, &said.iss, &ALGORITHMS);
    let claims = match verified.await {
        Ok(claims) => claims,
        Err(Wrong::Keys) => {
            return refuse(
                "InvalidIdentityToken",
                "Couldn't retrieve verification key from your identity provider",
            );
        }
        Err(Wrong::NotInTime) => {
            return refuse(
                "ExpiredTokenException",
                "Token expired: its time is not now",
            );
        }
        Err(Wrong::Malformed | Wrong::Algorithm | Wrong::Key | Wrong::Signature) => {
            return refuse(
                "InvalidIdentityToken",
                "The ID Token's signature is not valid",
            );
        }
    };
    let of_audience: Vec<_> = of_provider
        .iter()
        .filter(|role| claims.aud.names(&role.audience))
        .collect();
    if of_audience.is_empty() {
        return refuse("InvalidIdentityToken", "Incorrect token audience");
    }
    if !of_audience
        .iter()
        .any(|role| role.arn == arn && role.subject == claims.sub)
    {
        let message = "Not authorized to perform sts:AssumeRoleWithWebIdentity".to_owned();
        return Err(Refusal(StatusCode::FORBIDDEN, "AccessDenied", message));
    }
    // It has the role's name, without the path.
    let owner = arn.split(":role/").next().unwrap_or_default();
    let name = arn.rsplit('/').next().unwrap_or_default();
    let assumed = format!(
        "{}:assumed-role/{name}/{session}",
        owner.replace(":iam:", ":sts:")
    );
    let session_token = clouds.give(&assumed);
    let expires = (clock::now() + Duration::hours(1)).replace_nanosecond(0);
    let expires = expires.ok().and_then(|time| time.format(&Rfc3339).ok());
    Ok(format!(
        "<SubjectFromWebIdentityToken>{}</SubjectFromWebIdentityToken><Provider>{}</Provider><AssumedRoleUser><Arn>{assumed}</Arn><AssumedRoleId>AROA:{session}</AssumedRoleId></AssumedRoleUser><Credentials><AccessKeyId>{}</AccessKeyId><SecretAccessKey>secret</SecretAccessKey><SessionToken>{session_token}</SessionToken><Expiration>{}</Expiration></Credentials>",
        escaped(&claims.sub),
        escaped(&claims.iss),
        access_key(&session_token),
        expires.unwrap_or_default()
    ))
}

/// Belongs to the session token.
fn access_key(session_token: &str) -> String {
    format!("ASIA{}", session_token[16..].to_ascii_uppercase())
}

/// Who signed the request. The key must be the token's; the signature itself is not looked at.
fn caller(clouds: &Clouds, headers: &HeaderMap) -> Result<String, Refusal> {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let token = header("x-amz-security-token").unwrap_or_default();
    let signed = header("authorization").unwrap_or_default();
    let key = |token: &str| format!("Credential={}/", access_key(token));
    match clouds.whose(token).filter(|_| signed.contains(&key(token))) {
        Some(arn) => {
            let account = arn.split(':').nth(4).unwrap_or_default();
            Ok(format!(
                "<Arn>{arn}</Arn><UserId>AROA</UserId><Account>{account}</Account>"
            ))
        }
        None => Err(Refusal(
            StatusCode::FORBIDDEN,
            "InvalidClientTokenId",
            "The security token included in the request is invalid".to_owned(),
        )),
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
