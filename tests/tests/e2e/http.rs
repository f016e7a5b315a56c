//! What the issuer serves over HTTP, and where.

use e2e::foreign::ForeignIssuer;
use e2e::world::Setup;
use e2e::{World, relying_party};
use reqwest::header::{ALLOW, CACHE_CONTROL, CONTENT_LENGTH, ETAG, IF_NONE_MATCH};
use reqwest::{Method, StatusCode};
use serde_json::Value;

use crate::token_exchange::exchanges;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_issuer_whose_url_has_a_path_serves_there_and_at_the_root() {
    let setup = Setup::default().issuer_path("/oidc/tharsis");
    let (world, ci) = tokio::join!(setup.start(), ForeignIssuer::start());
    let admin = world.admin();
    admin.creates_group("acme").await;
    let web = admin.creates_workspace("acme/web").await;
    let deployer = admin.creates_identity("acme/deployer").await;
    admin.assigns(&deployer.id, &web.id).await;
    let job = admin.opens_job(&web.id).await;
    let issued = admin.asks_as(&job.token, &deployer.id).await;
    let token = issued.expect("a credential").token;
    let url = world.issuer_url();
    let verified = relying_party::verify(&url, "aws", &token).await;
    let keys_url = verified.expect("a stranger verifies it").keys_url;
    assert_eq!(keys_url, format!("{url}/oauth/discovery/keys"));
    let made = admin.asks(ci.trusted_by("acme/ci", "repo:acme/*")).await;
    let account = made.expect("made").service_account.expect("it");
    exchanges(&world, &account.id, &ci.token("repo:acme/web"))
        .await
        .token();

    let root = url.strip_suffix("/oidc/tharsis").expect("its path");
    let client = reqwest::Client::new();
    for path in [".well-known/openid-configuration", "oauth/discovery/keys"] {
        let ask = async |base: &str, method: Method, known: &str| {
            let request = client.request(method, format!("{base}/{path}"));
            let request = request.header(IF_NONE_MATCH, known);
            request.send().await.expect("an answer")
        };
        let below = ask(&url, Method::GET, "").await;
        assert_eq!(below.status(), StatusCode::OK);
        let etag = below.headers()[ETAG].to_str().expect("text").to_owned();
        let body = below.text().await.expect("a body");
        for base in [url.as_str(), root] {
            let got = ask(base, Method::GET, "").await;
            assert_eq!(got.text().await.expect("a body"), body);
            let head = ask(base, Method::HEAD, "").await;
            assert_eq!(head.status(), StatusCode::OK);
            assert_eq!(head.headers()[CONTENT_LENGTH], body.len().to_string());
            assert_eq!(head.headers()[ETAG], etag);
            for method in [Method::GET, Method::HEAD] {
                let known = ask(base, method, &etag).await;
                assert_eq!(known.status(), StatusCode::NOT_MODIFIED);
                assert!(!known.headers().contains_key(CONTENT_LENGTH));
                assert_eq!(known.headers()[ETAG], etag);
                assert_eq!(known.headers()[CACHE_CONTROL], "public, max-age=300");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_served_is_refused_in_json_that_nobody_keeps() {
    let world = World::start().await;
    let client = reqwest::Client::new();
    for (method, path, status) in [
        (Method::GET, "/token", StatusCode::METHOD_NOT_ALLOWED),
        (
            Method::POST,
            "/oauth/discovery/keys",
            StatusCode::METHOD_NOT_ALLOWED,
        ),
        (Method::GET, "/", StatusCode::NOT_FOUND),
        (Method::POST, "/token/", StatusCode::NOT_FOUND),
    ] {
        let url = format!("{}{path}", world.issuer_url());
        let answer = client.request(method, url).send().await.expect("an answer");
        assert_eq!(answer.status(), status, "{path}");
        assert_eq!(answer.headers()[CACHE_CONTROL], "no-store", "{path}");
        let allowed = answer.headers().contains_key(ALLOW);
        assert_eq!(allowed, status == StatusCode::METHOD_NOT_ALLOWED, "{path}");
        let body: Value = answer.json().await.expect("JSON");
        assert_eq!(body["error"], "invalid_request");
    }
}
