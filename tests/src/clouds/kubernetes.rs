//! Kubernetes: an API server that authenticates bearer tokens of an OIDC issuer
//! (<https://kubernetes.io/docs/reference/access-authn-authz/authentication/#openid-connect-tokens>).

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use axum::routing::{get, post};
use jsonwebtoken::Algorithm;
use serde_json::json;

use super::Clouds;
use super::answer::{bearer, json};
use super::verifier::unverified;

pub(super) fn router() -> Router<Clouds> {
    // The Python client asks with a slash, the others without.
    Router::new()
        .route("/version", get(version))
        .route("/version/", get(version))
        .route(
            "/apis/authentication.k8s.io/v1/selfsubjectreviews",
            post(review),
        )
}

async fn version(State(clouds): State<Clouds>, headers: HeaderMap) -> Response {
    match user(&clouds, &headers).await {
        Some(_) => json(
            StatusCode::OK,
            json!({ "major": "1", "minor": "34", "gitVersion": "v1.34.0", "gitCommit": "", "gitTreeState": "clean",
                    "buildDate": "", "goVersion": "", "compiler": "", "platform": "" }),
        ),
        None => unauthorized(),
    }
}

/// Who am I?
async fn review(State(clouds): State<Clouds>, headers: HeaderMap) -> Response {
    match user(&clouds, &headers).await {
        Some(user) => json(
            StatusCode::CREATED,
            json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview", "metadata": {},
                    "status": { "userInfo": { "username": user, "groups": ["system:authenticated"] } } }),
        ),
        None => unauthorized(),
    }
}

/// The name to bind roles to: the subject, with the prefix that `GetSetupInstructions` has the cluster put before it. A
/// cluster does not say why it does not know a user.
async fn user(clouds: &Clouds, headers: &HeaderMap) -> Option<String> {
    let token = bearer(headers)?;
    let said = unverified(token).ok()?;
    let clusters = clouds.trusted(|trust| trust.kubernetes.clone());
    let cluster = clusters.iter().find(|cluster| cluster.issuer == said.iss)?;
    let verified = clouds.verifier().verify(
        token,
        &cluster.issuer,
        &[Algorithm::RS256, Algorithm::ES256],
    );
    let claims = verified.await.ok()?;
    let known = claims.aud.names(&cluster.audience);
    known.then(|| format!("tharsis:{}", claims.sub))
}

fn unauthorized() -> Response {
    json(
        StatusCode::UNAUTHORIZED,
        json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": "Unauthorized",
                "reason": "Unauthorized", "code": 401 }),
    )
}
