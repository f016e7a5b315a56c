//! Against an issuer over real HTTP.

mod exchange;
mod keys;
mod malformed;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair,
    KeyPair as _, RSA_PKCS1_SHA256, RSA_PKCS1_SHA384, RSA_PKCS1_SHA512, RSA_PSS_SHA256,
    RSA_PSS_SHA512, RsaEncoding,
};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse as _;
use axum::routing::get;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use eventlog::Guard;
use futures::future::join_all;
use http::HeaderValue;
use jsonwebtoken::DecodingKey;
use jsonwebtoken::jwk::{Jwk, JwkSet};
use model::trust::TrustPolicy;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, watch};
use tonic_types::StatusExt as _;

use self::exchange::policy;
use super::own::LocalKeys;
use super::*;
use crate::clock;

enum Key {
    Rsa(RsaKeyPair),
    Ec(EcdsaKeyPair, &'static str),
    Ed(Ed25519KeyPair),
}

/// A key of an issuer, with the id that its JWK and its tokens have.
struct Signer {
    id: &'static str,
    key: Key,
}

impl Signer {
    fn rsa(id: &'static str) -> Self {
        Self {
            id,
            key: Key::Rsa(RsaKeyPair::generate(KeySize::Rsa2048).expect("a key")),
        }
    }

    fn p256(id: &'static str) -> Self {
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("a key");
        Self {
            id,
            key: Key::Ec(key, "P-256"),
        }
    }

    fn p384(id: &'static str) -> Self {
        let key = EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).expect("a key");
        Self {
            id,
            key: Key::Ec(key, "P-384"),
        }
    }

    fn ed25519(id: &'static str) -> Self {
        Self {
            id,
            key: Key::Ed(Ed25519KeyPair::generate().expect("a key")),
        }
    }

    fn jwk(&self) -> Value {
        let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let mut jwk = match &self.key {
            Key::Rsa(key) => {
                let public = DecodingKey::from_rsa_der(key.public_key().as_ref());
                serde_json::to_value(Jwk::from_decoding_key(&public, None).expect("a JWK"))
                    .expect("JSON")
            }
            Key::Ec(key, curve) => {
                let (x, y) =
                    key.public_key().as_ref()[1..].split_at(key.public_key().as_ref().len() / 2);
                json!({"kty": "EC", "crv": curve, "x": encode(x), "y": encode(y)})
            }
            Key::Ed(key) => {
                json!({"kty": "OKP", "crv": "Ed25519", "x": encode(key.public_key().as_ref())})
            }
        };
        jwk["kid"] = self.id.into();
        jwk
    }

    fn sign(&self, algorithm: &str, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match &self.key {
            Key::Rsa(key) => {
                let encoding: &'static dyn RsaEncoding = match algorithm {
                    "RS384" => &RSA_PKCS1_SHA384,
                    "RS512" => &RSA_PKCS1_SHA512,
                    "PS256" => &RSA_PSS_SHA256,
                    "PS512" => &RSA_PSS_SHA512,
                    _ => &RSA_PKCS1_SHA256,
                };
                let mut signature = vec![0; key.public_modulus_len()];
                key.sign(encoding, &random, message, &mut signature)
                    .expect("signed");
                signature
            }
            Key::Ec(key, _) => key
                .sign(&random, message)
                .expect("signed")
                .as_ref()
                .to_vec(),
            Key::Ed(key) => key.sign(message).as_ref().to_vec(),
        }
    }

    fn token(&self, header: &Value, claims: &Value) -> String {
        let part = |json: &Value| URL_SAFE_NO_PAD.encode(json.to_string());
        let message = format!("{}.{}", part(header), part(claims));
        let signature = self.sign(
            header["alg"].as_str().unwrap_or_default(),
            message.as_bytes(),
        );
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

/// What the issuer answers with.
struct Answers {
    url: String,
    discovery: Mutex<Value>,
    keys: Mutex<Vec<Value>>,
    cache_control: Mutex<&'static str>,
    status: Mutex<StatusCode>,
    asked: AtomicUsize,
    fetches: AtomicUsize,
    /// A permit for each fetch of the keys.
    gate: Semaphore,
}

impl Answers {
    fn set<T>(field: &Mutex<T>, value: T) {
        *field.lock().expect("unpoisoned") = value;
    }

    /// How often for the first of its documents.
    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    /// How often for the keys.
    fn fetches(&self) -> usize {
        self.fetches.load(Ordering::SeqCst)
    }
}

async fn discovery(State(answers): State<Arc<Answers>>) -> axum::response::Response {
    answers.asked.fetch_add(1, Ordering::SeqCst);
    let status = *answers.status.lock().expect("unpoisoned");
    let document = answers.discovery.lock().expect("unpoisoned").to_string();
    (status, [(header::LOCATION, "/elsewhere")], document).into_response()
}

/// Where a redirect would lead: a document that would do.
async fn elsewhere(State(answers): State<Arc<Answers>>) -> String {
    json!({"issuer": answers.url, "jwks_uri": format!("{}/jwks", answers.url)}).to_string()
}

async fn jwks(State(answers): State<Arc<Answers>>) -> axum::response::Response {
    answers.fetches.fetch_add(1, Ordering::SeqCst);
    answers.gate.acquire().await.expect("open").forget();
    let status = *answers.status.lock().expect("unpoisoned");
    let keys = answers.keys.lock().expect("unpoisoned").clone();
    let cache_control = *answers.cache_control.lock().expect("unpoisoned");
    (
        status,
        [(header::CACHE_CONTROL, cache_control)],
        json!({"keys": keys}).to_string(),
    )
        .into_response()
}

async fn issuer(keys: &[&Signer]) -> Arc<Answers> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let answers = Arc::new(Answers {
        discovery: Mutex::new(json!({"issuer": url, "jwks_uri": format!("{url}/jwks")})),
        url,
        keys: Mutex::new(keys.iter().map(|key| key.jwk()).collect()),
        cache_control: Mutex::new("max-age=600"),
        status: Mutex::new(StatusCode::OK),
        asked: AtomicUsize::new(0),
        fetches: AtomicUsize::new(0),
        gate: Semaphore::new(Semaphore::MAX_PERMITS),
    });
    let router = axum::Router::new()
        .route("/.well-known/openid-configuration", get(discovery))
        .route("/jwks", get(jwks))
        .route("/elsewhere", get(elsewhere))
        .with_state(Arc::clone(&answers));
    tokio::spawn(async move { axum::serve(listener, router).await });
    answers
}

fn configured(answers: &Answers) -> Issuer {
    Issuer {
        name: "dev".into(),
        url: answers.url.clone(),
        audience: "tharsis".into(),
    }
}

fn authenticator(answers: &Answers) -> Authenticator {
    let names = |name: &str| BTreeSet::from([Principal::user(name).expect("a principal")]);
    Authenticator::new(
        vec![configured(answers)],
        names("dev/admin"),
        names("dev/projector"),
    )
    .expect("an authenticator")
}

fn claims(answers: &Answers) -> Value {
    let now = clock::now().unix_timestamp();
    json!({"iss": answers.url, "aud": "tharsis", "sub": "alice", "iat": now, "exp": now + 600})
}

fn with(mut claims: Value, name: &str, value: impl Into<Value>) -> Value {
    claims[name] = value.into();
    claims
}

fn without(mut claims: Value, name: &str) -> Value {
    claims.as_object_mut().expect("an object").remove(name);
    claims
}

fn headers(token: &str) -> HeaderMap {
    let value = HeaderValue::try_from(format!("Bearer {token}")).expect("a header");
    [(AUTHORIZATION, value)].into_iter().collect()
}

/// Who the token says that calls, or the reason why it is refused.
async fn caller(authenticator: &Authenticator, token: &str) -> Result<Caller, &'static str> {
    authenticator
        .authenticate(&headers(token))
        .await
        .map_err(|error| error.reason())
}

fn user(subject: &str) -> Principal {
    Principal::User {
        issuer: "dev".into(),
        subject: subject.into(),
    }
}

#[tokio::test]
async fn tokens_of_every_allowed_algorithm_are_taken() {
    let signers = [
        Signer::rsa("rsa"),
        Signer::p256("p256"),
        Signer::p384("p384"),
        Signer::ed25519("ed"),
    ];
    let answers = issuer(&signers.each_ref()).await;
    let authenticator = authenticator(&answers);
    for (index, algorithm) in [
        (0, "RS256"),
        (0, "RS384"),
        (0, "RS512"),
        (0, "PS256"),
        (0, "PS512"),
        (1, "ES256"),
        (2, "ES384"),
        (3, "EdDSA"),
    ] {
        let signer = &signers[index];
        let token = signer.token(
            &json!({"alg": algorithm, "kid": signer.id}),
            &claims(&answers),
        );
        let caller = caller(&authenticator, &token).await;
        assert_eq!(
            caller.map(|caller| caller.principal),
            Ok(user("alice")),
            "{algorithm}"
        );
    }
    assert_eq!(answers.fetches(), 1);
}

#[tokio::test]
async fn the_configuration_makes_administrators_and_event_readers() {
    let signer = Signer::p256("a");
    let answers = issuer(&[&signer]).await;
    let authenticator = authenticator(&answers);
    for (subject, administrator, event_reader) in [
        ("alice", false, false),
        ("admin", true, false),
        ("projector", false, true),
    ] {
        let token = signer.token(
            &json!({"alg": "ES256", "kid": "a"}),
            &with(claims(&answers), "sub", subject),
        );
        let expected = Caller {
            principal: user(subject),
            administrator,
            event_reader,
            leans_on: None,
        };
        assert_eq!(caller(&authenticator, &token).await, Ok(expected));
    }
}

#[tokio::test]
async fn bad_claims_are_refused() {
    let signer = Signer::p256("a");
    let answers = issuer(&[&signer]).await;
    let authenticator = authenticator(&answers);
    let good = claims(&answers);
    let now = clock::now().unix_timestamp();
    let cases = [
        (with(good.clone(), "exp", now - 31), "TOKEN_EXPIRED"),
        (without(good.clone(), "exp"), "TOKEN_CLAIM_INVALID"),
        (with(good.clone(), "exp", "soon"), "TOKEN_CLAIM_INVALID"),
        (with(good.clone(), "exp", -1), "TOKEN_CLAIM_INVALID"),
        (with(good.clone(), "nbf", now + 40), "TOKEN_NOT_YET_VALID"),
        (with(good.clone(), "nbf", "soon"), "TOKEN_CLAIM_INVALID"),
        (with(good.clone(), "aud", "other"), "TOKEN_AUDIENCE_WRONG"),
        (with(good.clone(), "aud", json!([])), "TOKEN_AUDIENCE_WRONG"),
        (
            with(good.clone(), "aud", "tharsis "),
            "TOKEN_AUDIENCE_WRONG",
        ),
        (
            with(good.clone(), "aud", json!({"tharsis": 1})),
            "TOKEN_CLAIM_INVALID",
        ),
        (without(good.clone(), "aud"), "TOKEN_CLAIM_INVALID"),
        (
            with(good.clone(), "iss", "http://elsewhere"),
            "TOKEN_ISSUER_UNKNOWN",
        ),
        (
            with(good.clone(), "iss", format!("{}/", answers.url)),
            "TOKEN_ISSUER_UNKNOWN",
        ),
        (
            with(good.clone(), "iss", json!([answers.url])),
            "TOKEN_CLAIM_INVALID",
        ),
        (without(good.clone(), "iss"), "TOKEN_CLAIM_INVALID"),
        (with(good.clone(), "sub", ""), "TOKEN_CLAIM_INVALID"),
        (with(good.clone(), "sub", "a\nb"), "TOKEN_CLAIM_INVALID"),
        (
            with(good.clone(), "sub", "a".repeat(400)),
            "TOKEN_CLAIM_INVALID",
        ),
        (with(good.clone(), "sub", 7), "TOKEN_CLAIM_INVALID"),
        (without(good.clone(), "sub"), "TOKEN_CLAIM_INVALID"),
    ];
    for (claims, reason) in cases {
        let token = signer.token(&json!({"alg": "ES256", "kid": "a"}), &claims);
        assert_eq!(
            caller(&authenticator, &token).await.err(),
            Some(reason),
            "{claims}"
        );
    }
    for tolerated in [
        with(good.clone(), "exp", now - 20),
        with(good.clone(), "nbf", now + 20),
        with(good.clone(), "aud", json!(["other", "tharsis"])),
    ] {
        let token = signer.token(&json!({"alg": "ES256", "kid": "a"}), &tolerated);
        assert!(caller(&authenticator, &token).await.is_ok(), "{tolerated}");
    }
}

#[tokio::test]
async fn forged_tokens_are_refused() {
    let (rsa, stranger, other) = (Signer::rsa("a"), Signer::rsa("a"), Signer::p256("b"));
    let answers = issuer(&[&rsa, &other]).await;
    let authenticator = authenticator(&answers);
    let good = claims(&answers);
    let token = rsa.token(&json!({"alg": "RS256", "kid": "a"}), &good);
    let parts: Vec<&str> = token.split('.').collect();
    let encode = |json: &Value| URL_SAFE_NO_PAD.encode(json.to_string());
    let promoted = encode(&with(good.clone(), "sub", "admin"));
    let none = encode(&json!({"alg": "none", "kid": "a"}));
    let symmetric = {
        let message = format!(
            "{}.{}",
            encode(&json!({"alg": "HS256", "kid": "a"})),
            encode(&good)
        );
        let Key::Rsa(key) = &rsa.key else {
            unreachable!()
        };
        let secret =
            aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, key.public_key().as_ref());
        let tag = aws_lc_rs::hmac::sign(&secret, message.as_bytes());
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(tag.as_ref()))
    };
    let cases = [
        (
            format!("{}.{promoted}.{}", parts[0], parts[2]),
            "TOKEN_SIGNATURE_INVALID",
        ),
        (
            stranger.token(&json!({"alg": "RS256", "kid": "a"}), &good),
            "TOKEN_SIGNATURE_INVALID",
        ),
        (
            format!("{}.{}.", parts[0], parts[1]),
            "TOKEN_SIGNATURE_INVALID",
        ),
        (format!("{none}.{}.", parts[1]), "TOKEN_ALGORITHM_REFUSED"),
        (symmetric, "TOKEN_ALGORITHM_REFUSED"),
        (
            rsa.token(&json!({"alg": "ES256", "kid": "a"}), &good),
            "TOKEN_ALGORITHM_REFUSED",
        ),
        (
            other.token(&json!({"alg": "RS256", "kid": "b"}), &good),
            "TOKEN_ALGORITHM_REFUSED",
        ),
        (
            rsa.token(&json!({"alg": "RS256", "kid": "b"}), &good),
            "TOKEN_ALGORITHM_REFUSED",
        ),
        (
            rsa.token(&json!({"alg": "RS256"}), &good),
            "TOKEN_KEY_UNKNOWN",
        ),
        (
            rsa.token(&json!({"alg": "RS256", "kid": "c"}), &good),
            "TOKEN_KEY_UNKNOWN",
        ),
        (
            stranger.token(&json!({"alg": "RS256", "jwk": stranger.jwk()}), &good),
            "TOKEN_KEY_UNKNOWN",
        ),
        (
            rsa.token(
                &json!({"alg": "RS256", "kid": "a", "crit": ["b64"], "b64": true}),
                &good,
            ),
            "TOKEN_MALFORMED",
        ),
        (rsa.token(&json!({"kid": "a"}), &good), "TOKEN_MALFORMED"),
        (parts[..2].join("."), "TOKEN_MALFORMED"),
        (format!("{token}.x"), "TOKEN_MALFORMED"),
        ("a.b.c".to_owned(), "TOKEN_MALFORMED"),
        ("x".repeat(MAX_TOKEN + 1), "TOKEN_TOO_LARGE"),
    ];
    for (token, reason) in cases {
        assert_eq!(
            caller(&authenticator, &token).await.err(),
            Some(reason),
            "{token}"
        );
    }
    assert!(caller(&authenticator, &token).await.is_ok());
}

#[tokio::test]
async fn headers_other_than_one_bearer_are_refused() {
    let signer = Signer::p256("a");
    let answers = issuer(&[&signer]).await;
    let authenticator = authenticator(&answers);
    let good = signer.token(&json!({"alg": "ES256"}), &claims(&answers));
    let header = |values: &[&[u8]]| -> HeaderMap {
        values
            .iter()
            .map(|value| {
                (
                    AUTHORIZATION,
                    HeaderValue::from_bytes(value).expect("a header"),
                )
            })
            .collect()
    };
    let mut twice = headers(&good);
    twice.append(AUTHORIZATION, HeaderValue::from_static("Bearer x"));
    let cases = [
        (HeaderMap::new(), "TOKEN_MISSING"),
        (header(&[b"Bearer "]), "TOKEN_MISSING"),
        (header(&[b"Bearer"]), "AUTHORIZATION_HEADER_INVALID"),
        (header(&[b"Basic YTpi"]), "AUTHORIZATION_HEADER_INVALID"),
        (
            header(&["Bearer é".as_bytes()]),
            "AUTHORIZATION_HEADER_INVALID",
        ),
        (twice, "AUTHORIZATION_HEADER_INVALID"),
    ];
    for (headers, reason) in cases {
        let error = authenticator
            .authenticate(&headers)
            .await
            .expect_err("refused");
        assert_eq!(error.reason(), reason, "{headers:?}");
    }
    let lowercase = header(&[format!("bearer {good}").as_bytes()]);
    assert!(authenticator.authenticate(&lowercase).await.is_ok());
}

#[tokio::test]
async fn a_key_is_used_only_for_what_its_jwk_says() {
    let signer = Signer::rsa("a");
    let answers = issuer(&[]).await;
    for (name, value, reason) in [
        ("use", json!("enc"), Some("TOKEN_KEY_UNKNOWN")),
        ("use", json!("sig"), None),
        ("key_ops", json!(["encrypt"]), Some("TOKEN_KEY_UNKNOWN")),
        ("key_ops", json!(["verify"]), None),
        ("alg", json!("RS512"), Some("TOKEN_ALGORITHM_REFUSED")),
        ("alg", json!("HS256"), Some("TOKEN_KEY_UNKNOWN")),
        ("alg", json!("RS256"), None),
        ("kty", json!("oct"), Some("TOKEN_KEY_UNKNOWN")),
    ] {
        let odd = json!({"kty": "new", "kid": 7});
        Answers::set(
            &answers.keys,
            vec![odd, with(signer.jwk(), name, value.clone())],
        );
        let token = signer.token(&json!({"alg": "RS256", "kid": "a"}), &claims(&answers));
        let refused = caller(&authenticator(&answers), &token).await.err();
        assert_eq!(refused, reason, "{name} {value}");
    }
}

#[tokio::test]
async fn an_only_key_needs_no_id() {
    let signer = Signer::p256("a");
    let answers = issuer(&[&signer]).await;
    let token = signer.token(&json!({"alg": "ES256"}), &claims(&answers));
    assert!(caller(&authenticator(&answers), &token).await.is_ok());
    Answers::set(&answers.keys, vec![without(signer.jwk(), "kid")]);
    let token = signer.token(&json!({"alg": "ES256", "kid": "any"}), &claims(&answers));
    assert!(caller(&authenticator(&answers), &token).await.is_ok());
}

#[tokio::test]
async fn without_keys_the_caller_is_told_to_try_again() {
    let signer = Signer::p256("a");
    let answers = issuer(&[&signer]).await;
    let token = signer.token(&json!({"alg": "ES256", "kid": "a"}), &claims(&answers));
    let url = answers.url.clone();
    for (status, document) in [
        (StatusCode::INTERNAL_SERVER_ERROR, json!({})),
        (
            StatusCode::FOUND,
            json!({"issuer": url, "jwks_uri": format!("{url}/jwks")}),
        ),
        (StatusCode::OK, json!("x".repeat(600 << 10))),
        (
            StatusCode::OK,
            json!({"issuer": format!("{url}/"), "jwks_uri": format!("{url}/jwks")}),
        ),
        (StatusCode::OK, json!({"issuer": url, "jwks_uri": "/jwks"})),
        (
            StatusCode::OK,
            json!({"issuer": url, "jwks_uri": "file:///etc/passwd"}),
        ),
        (
            StatusCode::OK,
            json!({"issuer": url, "jwks_uri": format!("{url}/nothing")}),
        ),
    ] {
        Answers::set(&answers.status, status);
        Answers::set(&answers.discovery, document.clone());
        let error = authenticator(&answers)
            .authenticate(&headers(&token))
            .await
            .expect_err("refused");
        let status = Status::from(error);
        assert_eq!(status.code(), tonic::Code::Unavailable, "{document:.100}");
        let info = status.get_details_error_info().expect("error info");
        assert_eq!(info.reason, "TOKEN_ISSUER_UNAVAILABLE");
    }
    assert_eq!(answers.fetches(), 0);
}

#[tokio::test]
async fn keys_are_there_as_soon_as_the_issuer_is() {
    let signer = Signer::p256("a");
    let answers = issuer(&[&signer]).await;
    let authenticator = authenticator(&answers);
    let token = signer.token(&json!({"alg": "ES256", "kid": "a"}), &claims(&answers));
    Answers::set(&answers.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(
        caller(&authenticator, &token).await.err(),
        Some("TOKEN_ISSUER_UNAVAILABLE")
    );
    Answers::set(&answers.status, StatusCode::OK);
    authenticator.trusted.issuers[0]
        .1
        .age(Duration::from_secs(1));
    assert!(caller(&authenticator, &token).await.is_ok());
}

#[tokio::test]
async fn an_unknown_key_is_looked_for_but_not_too_often() {
    let (old, new) = (Signer::p256("old"), Signer::p256("new"));
    let answers = issuer(&[&old]).await;
    let authenticator = authenticator(&answers);
    let of = |signer: &Signer| {
        signer.token(
            &json!({"alg": "ES256", "kid": signer.id}),
            &claims(&answers),
        )
    };
    assert!(caller(&authenticator, &of(&old)).await.is_ok());
    Answers::set(&answers.keys, vec![new.jwk()]);
    assert_eq!(
        caller(&authenticator, &of(&new)).await.err(),
        Some("TOKEN_KEY_UNKNOWN")
    );
    assert_eq!(
        answers.fetches(),
        1,
        "the keys were fetched less than 10 s ago"
    );
    authenticator.trusted.issuers[0]
        .1
        .age(Duration::from_secs(10));
    let tokens: Vec<String> = (0..50).map(|_| of(&new)).collect();
    let callers = join_all(tokens.iter().map(|token| caller(&authenticator, token))).await;
    assert!(callers.iter().all(Result::is_ok));
    assert_eq!(answers.fetches(), 2, "one fetch for all");
    assert_eq!(
        caller(&authenticator, &of(&old)).await.err(),
        Some("TOKEN_KEY_UNKNOWN")
    );
}

#[tokio::test]
async fn a_caller_who_hangs_up_does_not_stop_the_fetch() {
    let signer = Signer::p256("a");
    let answers = issuer(&[&signer]).await;
    answers.gate.forget_permits(Semaphore::MAX_PERMITS);
    let authenticator = authenticator(&answers);
    let token = signer.token(&json!({"alg": "ES256", "kid": "a"}), &claims(&answers));
    let hanging_up = tokio::spawn({
        let (authenticator, headers) = (authenticator.clone(), headers(&token));
        async move { authenticator.authenticate(&headers).await.is_ok() }
    });
    while answers.fetches() == 0 {
        tokio::task::yield_now().await;
    }
    hanging_up.abort();
    assert!(hanging_up.await.is_err());
    answers.gate.add_permits(1);
    assert!(caller(&authenticator, &token).await.is_ok());
    assert_eq!(answers.fetches(), 1);
}

#[tokio::test]
async fn old_keys_do_for_an_hour_while_the_issuer_is_down() {
    let signer = Signer::p256("a");
    let answers = issuer(&[&signer]).await;
    let authenticator = authenticator(&answers);
    let token = signer.token(&json!({"alg": "ES256", "kid": "a"}), &claims(&answers));
    assert!(caller(&authenticator, &token).await.is_ok());
    let keys = &authenticator.trusted.issuers[0].1;
    keys.age(Duration::from_secs(599));
    assert!(caller(&authenticator, &token).await.is_ok());
    assert_eq!(answers.fetches(), 1, "max-age is honoured");
    Answers::set(&answers.status, StatusCode::SERVICE_UNAVAILABLE);
    for _ in 0..3 {
        keys.age(Duration::from_secs(1_000));
        assert!(caller(&authenticator, &token).await.is_ok());
    }
    keys.age(Duration::from_secs(1_000));
    assert_eq!(
        caller(&authenticator, &token).await.err(),
        Some("TOKEN_ISSUER_UNAVAILABLE")
    );
    Answers::set(&answers.status, StatusCode::OK);
    keys.age(Duration::from_secs(10));
    assert!(caller(&authenticator, &token).await.is_ok());
}

#[tokio::test]
async fn a_withdrawn_key_does_no_longer_after_its_age() {
    let (old, new) = (Signer::p256("old"), Signer::p256("new"));
    let answers = issuer(&[&old]).await;
    let authenticator = authenticator(&answers);
    let token = old.token(&json!({"alg": "ES256", "kid": "old"}), &claims(&answers));
    assert!(caller(&authenticator, &token).await.is_ok());
    Answers::set(&answers.keys, vec![new.jwk()]);
    authenticator.trusted.issuers[0]
        .1
        .age(Duration::from_mins(10));
    assert_eq!(
        caller(&authenticator, &token).await.err(),
        Some("TOKEN_KEY_UNKNOWN")
    );
}

#[tokio::test]
async fn jobs_call_with_their_tokens() {
    const URL: &str = "https://issuer.example";
    let (user_key, job_key, next) = (Signer::p256("u"), Signer::rsa("j"), Signer::rsa("k"));
    let answers = issuer(&[&user_key]).await;
    let (keys, receiver) = watch::channel(set(&[&job_key]));
    let own = OwnKeys {
        issuer: URL.into(),
        keys: receiver,
    };
    let authenticator = authenticator(&answers).of_own_issuer(own);

    let job: model::JobId = clock::new_id();
    let header = json!({"alg": "RS256", "kid": "j", "typ": "at+jwt"});
    let good = with(
        with(with(claims(&answers), "iss", URL), "aud", URL),
        "sub",
        job.to_string(),
    );
    let expected = Caller {
        principal: Principal::Job(job),
        administrator: false,
        event_reader: false,
        leans_on: Some(revocation_of("j")),
    };
    assert_eq!(
        caller(&authenticator, &job_key.token(&header, &good)).await,
        Ok(expected)
    );

    let now = clock::now().unix_timestamp();
    for (header, claims, reason) in [
        (
            json!({"alg": "RS256", "kid": "j"}),
            good.clone(),
            "TOKEN_TYPE_REFUSED",
        ),
        (
            json!({"alg": "RS256", "kid": "j", "typ": "JWT"}),
            good.clone(),
            "TOKEN_TYPE_REFUSED",
        ),
        // Whether its key is revoked could not be asked.
        (
            json!({"alg": "RS256", "typ": "at+jwt"}),
            good.clone(),
            "TOKEN_KEY_UNKNOWN",
        ),
        (
            header.clone(),
            with(good.clone(), "aud", "sts.amazonaws.com"),
            "TOKEN_AUDIENCE_WRONG",
        ),
        (
            header.clone(),
            with(good.clone(), "sub", "admin"),
            "TOKEN_CLAIM_INVALID",
        ),
        (
            header.clone(),
            with(good.clone(), "exp", now - 31),
            "TOKEN_EXPIRED",
        ),
        (
            header.clone(),
            with(good.clone(), "iss", "https://issuer.example/"),
            "TOKEN_ISSUER_UNKNOWN",
        ),
    ] {
        assert_eq!(
            caller(&authenticator, &job_key.token(&header, &claims))
                .await
                .err(),
            Some(reason),
            "{claims}"
        );
    }
    let by_user_key = user_key.token(&json!({"alg": "ES256", "kid": "u", "typ": "at+jwt"}), &good);
    assert_eq!(
        caller(&authenticator, &by_user_key).await.err(),
        Some("TOKEN_KEY_UNKNOWN")
    );

    keys.send_replace(set(&[&job_key, &next]));
    let rotated = next.token(&json!({"alg": "RS256", "kid": "k", "typ": "at+jwt"}), &good);
    assert!(caller(&authenticator, &rotated).await.is_ok());
    let user_token = user_key.token(&json!({"alg": "ES256", "kid": "u"}), &claims(&answers));
    assert!(caller(&authenticator, &user_token).await.is_ok());

    // Shown before or not: a token holds no longer than its key.
    let shown = job_key.token(&header, &good);
    for _ in 0..2 {
        assert!(caller(&authenticator, &shown).await.is_ok());
    }
    let (content, signature) = shown.rsplit_once('.').expect("a signature");
    let others = rotated.rsplit_once('.').expect("a signature").1;
    assert_ne!(signature, others);
    assert_eq!(
        caller(&authenticator, &format!("{content}.{others}"))
            .await
            .err(),
        Some("TOKEN_SIGNATURE_INVALID")
    );
    keys.send_replace(set(&[&next]));
    assert_eq!(
        caller(&authenticator, &shown).await.err(),
        Some("TOKEN_KEY_UNKNOWN")
    );
}

#[test]
fn what_was_verified_is_remembered_for_its_keys_and_until_it_expires() {
    let (signer, next) = (Signer::p256("a"), Signer::p256("b"));
    let (keys, receiver) = watch::channel(set(&[&signer]));
    let local = LocalKeys::new(receiver);
    let (now, token) = (clock::now().unix_timestamp(), [1; 32]);
    let first = local.now();
    let job = Caller {
        principal: Principal::user("dev/alice").expect("a principal"),
        administrator: false,
        event_reader: false,
        leans_on: None,
    };
    assert_eq!(local.known(&token), None);
    local.remember(&first, token, &job, now + 600);
    assert_eq!(local.known(&token), Some(job.clone()));
    assert_eq!(local.known(&[2; 32]), None);
    local.remember(&first, [2; 32], &job, now);
    assert_eq!(local.known(&[2; 32]), None, "it has expired");
    keys.send_replace(set(&[&signer, &next]));
    assert_eq!(local.known(&token), None, "the keys are others");
    local.remember(&first, token, &job, now + 600);
    assert_eq!(
        local.known(&token),
        None,
        "it was verified with the keys before"
    );
    local.remember(&local.now(), token, &job, now + 600);
    assert_eq!(local.known(&token), Some(job.clone()));
}

/// What goes with all that is asked for with a token of this key.
fn revocation_of(kid: &str) -> Guard {
    let key = revoked_key(kid);
    Guard::Expect { key, value: None }
}

/// A key set of these.
fn set(signers: &[&Signer]) -> JwkSet {
    let keys = signers
        .iter()
        .map(|signer| serde_json::from_value(signer.jwk()).expect("a JWK"));
    JwkSet {
        keys: keys.collect(),
    }
}

/// Keys that another task would change.
fn kept(signers: &[&Signer]) -> watch::Receiver<JwkSet> {
    watch::channel(set(signers)).1
}

#[tokio::test]
async fn service_accounts_call_every_service_and_jobs_only_the_issuer() {
    let (user_key, own_key) = (Signer::p256("u"), Signer::rsa("o"));
    let callers = issuer(&[&user_key]).await;
    let own = issuer(&[&own_key]).await;
    let elsewhere = authenticator(&callers).with_service_accounts(own.url.clone());
    let here = authenticator(&callers).of_own_issuer(OwnKeys {
        issuer: own.url.clone(),
        keys: kept(&[&own_key]),
    });
    let id: model::ServiceAccountId = clock::new_id();
    let header = |typ: &str| json!({"alg": "RS256", "kid": "o", "typ": typ});
    let audience = service_audience(&own.url);
    let good = with(
        with(claims(&own), "aud", audience.as_str()),
        "sub",
        id.to_string(),
    );
    for (authenticator, leans_on) in [(&elsewhere, None), (&here, Some(revocation_of("o")))] {
        for typ in ["sa+jwt", "SA+JWT", "application/sa+jwt"] {
            let called = caller(authenticator, &own_key.token(&header(typ), &good)).await;
            let expected = Caller {
                principal: Principal::ServiceAccount(id),
                administrator: false,
                event_reader: false,
                leans_on: leans_on.clone(),
            };
            assert_eq!(called, Ok(expected), "{typ}");
        }
        let job: model::JobId = clock::new_id();
        for (other, reason) in [
            (with(good.clone(), "aud", "tharsis"), "TOKEN_AUDIENCE_WRONG"),
            (
                with(good.clone(), "aud", own.url.as_str()),
                "TOKEN_AUDIENCE_WRONG",
            ),
            (
                with(good.clone(), "sub", job.to_string()),
                "TOKEN_CLAIM_INVALID",
            ),
            (
                with(good.clone(), "sub", "dev/admin"),
                "TOKEN_CLAIM_INVALID",
            ),
            (without(good.clone(), "exp"), "TOKEN_CLAIM_INVALID"),
        ] {
            let token = own_key.token(&header("sa+jwt"), &other);
            assert_eq!(
                caller(authenticator, &token).await.err(),
                Some(reason),
                "{other}"
            );
        }
        let by_user_key = json!({"alg": "ES256", "kid": "u", "typ": "sa+jwt"});
        let refused = authenticator
            .authenticate(&headers(&user_key.token(&by_user_key, &good)))
            .await;
        // Our own services don't wait 10 s until they look for a key.
        assert_eq!(refused, Err(AuthenticationError::OwnKeyUnknown));
    }
    // Of another type it is no service account's, and of no issuer that is known where jobs don't call.
    for (typ, at_issuer) in [
        ("JWT", "TOKEN_TYPE_REFUSED"),
        ("at+jwt", "TOKEN_AUDIENCE_WRONG"),
    ] {
        let token = own_key.token(&header(typ), &good);
        assert_eq!(caller(&here, &token).await.err(), Some(at_issuer));
        assert_eq!(
            caller(&elsewhere, &token).await.err(),
            Some("TOKEN_ISSUER_UNKNOWN")
        );
    }
}

#[tokio::test]
async fn a_name_leads_only_to_where_an_issuer_may_be() {
    let (signer, own_key) = (Signer::p256("a"), Signer::rsa("o"));
    let answers = issuer(&[&signer]).await;
    let by_name = answers.url.replace("127.0.0.1", "localhost");
    Answers::set(
        &answers.discovery,
        json!({"issuer": by_name, "jwks_uri": format!("{by_name}/jwks")}),
    );
    let token = signer.token(
        &json!({"alg": "ES256", "kid": "a"}),
        &with(claims(&answers), "iss", by_name.as_str()),
    );
    let verified = async |networks: &str| {
        let own = OwnKeys {
            issuer: "https://issuer.example".to_owned(),
            keys: kept(&[&own_key]),
        };
        let trusted = TrustedIssuers::new(networks.parse().expect("networks"), own);
        let trusted = trusted.expect("a client");
        trusted
            .verify(&token, &[policy(&by_name, "ES256")], &["acme"])
            .await
    };
    let unavailable = Err(AuthenticationError::IssuerUnavailable {
        issuer: by_name.clone(),
        why: "it is not at a public address".to_owned(),
    });
    assert_eq!(verified("").await, unavailable);
    assert_eq!(verified("10.0.0.0/8").await, unavailable);
    assert_eq!(answers.fetches(), 0);
    let taken = verified("127.0.0.0/8").await.expect("verified");
    assert_eq!((taken.issuer, taken.subject.as_str()), (by_name, "alice"));
    assert_eq!(taken.audiences, ["tharsis"]);
}

#[tokio::test]
async fn what_a_token_says_is_read_as_texts() {
    const URL: &str = "https://issuer.example";
    let own_key = Signer::rsa("o");
    let own = OwnKeys {
        issuer: URL.to_owned(),
        keys: kept(&[&own_key]),
    };
    let trusted = TrustedIssuers::new(Networks::default(), own).expect("a client");
    let policies = [policy(URL, "RS256")];
    let said = json!({
        "iss": URL, "sub": "alice", "aud": ["x", 7, "tharsis"], "exp": 4_000_000_000.7, "jti": "1",
        "run": 12, "main": true, "groups": ["a"], "more": {"a": "b"}, "none": null,
    });
    let header = json!({"alg": "RS256", "kid": "o", "typ": "JWT"});
    let verify = async |claims: &Value| {
        let token = own_key.token(&header, claims);
        trusted.verify(&token, &policies, &["acme"]).await
    };
    // An audience that is no text spoils the claim as a whole.
    assert_eq!(
        verify(&said).await,
        Err(AuthenticationError::ClaimInvalid("aud"))
    );
    let said = with(said, "aud", json!(["x", "tharsis"]));
    let said = verify(&said).await.expect("verified");
    assert_eq!(said.audiences, ["x", "tharsis"]);
    assert_eq!(said.expires.unix_timestamp(), 4_000_000_000);
    for (name, value) in [("run", "12"), ("main", "true"), ("sub", "alice")] {
        assert_eq!(said.claims.get(name).map(String::as_str), Some(value));
    }
    for name in ["groups", "more", "none", "aud"] {
        assert!(!said.claims.contains_key(name), "{name}");
    }
    // Nobody trusts the issuer for anything.
    let token = own_key.token(&header, &json!({"iss": URL}));
    assert_eq!(
        trusted
            .verify(&token, &[policy("https://other.example", "")], &["acme"])
            .await,
        Err(AuthenticationError::IssuerUnknown)
    );
}
