//! Tokens that must not be exchanged, and issuers that must not be believed: each refused with its reason, over HTTP as a
//! CI job meets it.

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use e2e::foreign::{DISCOVERY, Document, ForeignIssuer, KEYS, claims, trusting};
use e2e::issuer::key;
use e2e::key::SigningKey;
use e2e::{Service, User, World};
use futures::future::join_all;
use serde_json::{Value, json};

use crate::token_exchange::exchanges;

const SUBJECT: &str = "repo:acme/web";
/// Where no token of a test leads.
const NOWHERE: &str = "http://127.0.0.1:1";

fn encoded(json: &Value) -> String {
    URL_SAFE_NO_PAD.encode(json.to_string())
}

fn with(mut json: Value, name: &str, value: impl Into<Value>) -> Value {
    json[name] = value.into();
    json
}

fn without(mut json: Value, name: &str) -> Value {
    json.as_object_mut().expect("an object").remove(name);
    json
}

fn signed(header: &Value, claims: &Value) -> String {
    key().sign_as(header, claims).expect("signed")
}

/// Signed with the public key as if it were a shared secret.
fn confused(claims: &Value) -> String {
    let header = json!({"alg": "HS256", "typ": "JWT", "kid": key().header()["kid"]});
    let message = format!("{}.{}", encoded(&header), encoded(claims));
    let public = serde_json::to_vec(key().jwk()).expect("JSON");
    let secret = hmac::Key::new(hmac::HMAC_SHA256, &public);
    let signature = hmac::sign(&secret, message.as_bytes());
    format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
}

async fn makes(admin: &User, path: &str, issuer: &str) -> String {
    let made = admin.asks(trusting(path, issuer, "repo:acme/*")).await;
    made.expect("made").service_account.expect("it").id
}

/// Error and reason of what is refused; the reason alone of what is not would be empty.
async fn refusal(world: &World, account: &str, token: &str) -> (String, String, String) {
    let answer = exchanges(world, account, token).await.body;
    assert!(answer["access_token"].is_null(), "{answer}");
    let text = |name: &str| answer[name].as_str().unwrap_or_default().to_owned();
    (text("error"), text("reason"), text("error_description"))
}

/// Some that say what they are for, and one that says nothing.
fn keys_of_all_kinds() -> Value {
    let jwk = serde_json::to_value(key().jwk()).expect("JSON");
    let keys = json!([
        jwk,
        with(with(jwk.clone(), "use", "enc"), "kid", "enc"),
        with(with(jwk.clone(), "alg", "RS384"), "kid", "rs384"),
        without(without(with(jwk.clone(), "kid", "plain"), "alg"), "use"),
        {"kty": "oct", "kid": "oct", "k": "AAAA"},
    ]);
    json!({ "keys": keys })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_token_is_refused_for_what_is_bad_in_it() {
    let (world, ci) = tokio::join!(World::start(), ForeignIssuer::start());
    let admin = world.admin();
    admin.creates_group("acme").await;
    let account = makes(&admin, "acme/ci", ci.url()).await;
    ci.serves(KEYS, Document::Json(keys_of_all_kinds()));

    let now = edge::clock::now().unix_timestamp();
    let (header, claims) = (key().header(), ci.claims(SUBJECT));
    let says = |name: &str, value: Value| signed(&header, &with(claims.clone(), name, value));
    let lacks = |name: &str| signed(&header, &without(claims.clone(), name));
    let heads = |name: &str, value: &str| signed(&with(header.clone(), name, value), &claims);
    let good = signed(&header, &claims);
    let (message, _) = good.rsplit_once('.').expect("a signature");
    let unsigned = format!(
        "{}.{}.",
        encoded(&with(header.clone(), "alg", "none")),
        encoded(&claims)
    );
    let other = SigningKey::generate().expect("a key");
    let forged = other.sign_as(&header, &claims).expect("signed");
    let critical = with(with(header.clone(), "crit", json!(["b64"])), "b64", false);

    // A key of which its type says enough is used with the algorithms of the type (RFC 7517, 4.4: alg is optional).
    for taken in [
        good.clone(),
        heads("kid", "plain"),
        heads("typ", "at+jwt"),
        says("aud", json!(["x", "tharsis"])),
    ] {
        exchanges(&world, &account, &taken).await.token();
    }
    let long = says("padding", "x".repeat(48 << 10).into());
    assert!(long.len() >= 64 << 10);
    for (bad, reason) in [
        (unsigned, "TOKEN_ALGORITHM_REFUSED"),
        (
            signed(&with(header.clone(), "alg", "None"), &claims),
            "TOKEN_ALGORITHM_REFUSED",
        ),
        (confused(&claims), "TOKEN_ALGORITHM_REFUSED"),
        (heads("alg", "HS256"), "TOKEN_ALGORITHM_REFUSED"),
        (heads("alg", "ES256"), "TOKEN_ALGORITHM_REFUSED"),
        (heads("kid", "rs384"), "TOKEN_ALGORITHM_REFUSED"),
        (heads("kid", "enc"), "TOKEN_KEY_UNKNOWN"),
        (heads("kid", "oct"), "TOKEN_KEY_UNKNOWN"),
        (heads("kid", "nobody's"), "TOKEN_KEY_UNKNOWN"),
        (
            signed(&without(header.clone(), "kid"), &claims),
            "TOKEN_KEY_UNKNOWN",
        ),
        (heads("typ", "logout+jwt"), "TOKEN_TYPE_REFUSED"),
        (heads("typ", "sa+jwt"), "TOKEN_TYPE_REFUSED"),
        (signed(&critical, &claims), "TOKEN_MALFORMED"),
        (forged, "TOKEN_SIGNATURE_INVALID"),
        (format!("{message}.AAAA"), "TOKEN_SIGNATURE_INVALID"),
        (format!("{message}."), "TOKEN_SIGNATURE_INVALID"),
        (
            says("aud", "sts.amazonaws.com".into()),
            "TOKEN_AUDIENCE_WRONG",
        ),
        (says("aud", json!([])), "TOKEN_AUDIENCE_WRONG"),
        (lacks("aud"), "TOKEN_CLAIM_INVALID"),
        (lacks("exp"), "TOKEN_CLAIM_INVALID"),
        (says("exp", "tomorrow".into()), "TOKEN_CLAIM_INVALID"),
        (says("exp", (now - 31).into()), "TOKEN_EXPIRED"),
        (says("nbf", (now + 600).into()), "TOKEN_NOT_YET_VALID"),
        (lacks("sub"), "TOKEN_CLAIM_INVALID"),
        (says("sub", json!(["repo:acme/web"])), "TOKEN_CLAIM_INVALID"),
        (lacks("iss"), "TOKEN_CLAIM_INVALID"),
        (says("iss", json!([ci.url()])), "TOKEN_CLAIM_INVALID"),
        (says("sub", "repo:acm/web".into()), "TOKEN_NOT_ADMITTED"),
        (says("sub", "xrepo:acme/web".into()), "TOKEN_NOT_ADMITTED"),
        (long, "TOKEN_TOO_LARGE"),
        ("garbage".to_owned(), "TOKEN_MALFORMED"),
        ("a.b.c".to_owned(), "TOKEN_MALFORMED"),
        ("..".to_owned(), "TOKEN_MALFORMED"),
        (format!("{good}.{good}"), "TOKEN_MALFORMED"),
    ] {
        let (error, said, description) = refusal(&world, &account, &bad).await;
        let shown = &bad[..bad.len().min(200)];
        assert_eq!(
            (error.as_str(), said.as_str()),
            ("invalid_request", reason),
            "{shown}"
        );
        assert!(!description.is_empty(), "{shown}");
    }
    let (error, said, _) = refusal(&world, &account, &says("iss", NOWHERE.into())).await;
    assert_eq!(
        (error.as_str(), said.as_str()),
        ("invalid_target", "RESOURCE_NOT_FOUND")
    );
    // In what it differs from the policy is told; what the policy asks for is not.
    let differs = refusal(&world, &account, &says("sub", "repo:acm/web".into()))
        .await
        .2;
    assert!(
        differs.contains(": sub") && !differs.contains("acme/"),
        "{differs}"
    );
    assert_eq!(issued(&world).await, 4);
}

async fn issued(world: &World) -> usize {
    let log = world.log(Service::Issuer).await;
    let issued =
        |event: &&e2e::world::Event| event.event_type.ends_with("ServiceAccountTokenIssued");
    log.iter().filter(issued).count()
}

/// What is the matter with an issuer, and what whoever shows its token is told.
struct Bad {
    name: &'static str,
    documents: Vec<(&'static str, Document)>,
    why: &'static str,
}

fn bad(name: &'static str, path: &'static str, document: Document, why: &'static str) -> Bad {
    Bad {
        name,
        documents: vec![(path, document)],
        why,
    }
}

fn bad_issuers(good: &ForeignIssuer) -> Vec<Bad> {
    let discovery =
        |issuer: &str, keys: String| Document::Json(json!({ "issuer": issuer, "jwks_uri": keys }));
    let keys = |base: &str| format!("{base}{KEYS}");
    let other = "its discovery document is of another issuer";
    let uri = "its jwks_uri is not an absolute https URL";
    let json = "its document is not the JSON that is expected";
    let moved = "it redirects, which is not followed";
    let large = "its document is larger than 262144 bytes";
    let slow = "it does not answer within 5 s";
    vec![
        bad(
            "another",
            DISCOVERY,
            discovery(good.url(), keys(good.url())),
            other,
        ),
        bad(
            "file",
            DISCOVERY,
            discovery("", "file:///etc/passwd".to_owned()),
            other,
        ),
        bad(
            "moved",
            DISCOVERY,
            Document::Moved(format!("{}{DISCOVERY}", good.url())),
            moved,
        ),
        bad("moved-keys", KEYS, Document::Moved(keys(good.url())), moved),
        bad("huge", DISCOVERY, Document::Huge(300 << 10), large),
        bad("huge-keys", KEYS, Document::Huge(1 << 20), large),
        bad("failing", DISCOVERY, Document::Failure, "it answers 500"),
        bad("not-json", DISCOVERY, Document::Huge(10), json),
        bad(
            "no-keys",
            KEYS,
            Document::Json(json!({ "keys": "none" })),
            json,
        ),
        bad("relative", "", discovery("", "/jwks".to_owned()), uri),
        bad(
            "local",
            "",
            discovery("", "file:///etc/passwd".to_owned()),
            uri,
        ),
        bad(
            "inside",
            "",
            discovery("", "http://169.254.169.254/latest/meta-data".to_owned()),
            "it is not at a public address",
        ),
        bad(
            "mapped",
            "",
            discovery("", "http://[::ffff:10.0.0.1]/jwks".to_owned()),
            "it is not at a public address",
        ),
        bad("slow", DISCOVERY, Document::Silence, slow),
        bad("slow-keys", KEYS, Document::Silence, slow),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_issuer_that_is_down_slow_or_hostile_is_not_believed() {
    let (world, good) = tokio::join!(World::start(), ForeignIssuer::start());
    let admin = world.admin();
    admin.creates_group("acme").await;
    let unavailable = async |account: String, token: String, why: &str, name: &str| {
        let (error, reason, description) = refusal(&world, &account, &token).await;
        assert_eq!(
            (error.as_str(), reason.as_str()),
            ("temporarily_unavailable", "TOKEN_ISSUER_UNAVAILABLE"),
            "{name}: {description}"
        );
        assert!(description.contains(why), "{name}: {description}");
    };
    let mut shown = vec![];
    for bad in bad_issuers(&good) {
        let issuer = ForeignIssuer::start().await;
        for (path, document) in bad.documents {
            match document {
                // Its own discovery document, but for where the keys are.
                Document::Json(json) if path.is_empty() => {
                    let document = with(json, "issuer", issuer.url());
                    issuer.serves(DISCOVERY, Document::Json(document));
                }
                document => issuer.serves(path, document),
            }
        }
        let account = makes(&admin, &format!("acme/{}", bad.name), issuer.url()).await;
        shown.push((account, issuer, bad.why, bad.name));
    }
    for some in shown.chunks(4) {
        let each = some.iter().map(|(account, issuer, why, name)| {
            unavailable(account.clone(), issuer.token(SUBJECT), why, name)
        });
        join_all(each).await;
    }
    // Nobody was led to the good one.
    assert_eq!(good.fetches(), 0);

    for (name, issuer, why) in [
        ("down", NOWHERE, "it can't be reached"),
        (
            "loopback",
            "http://[::1]:1",
            "it is not at a public address",
        ),
        (
            "private",
            "https://10.0.0.1",
            "it is not at a public address",
        ),
        (
            "metadata",
            "https://169.254.169.254",
            "it is not at a public address",
        ),
        (
            "short",
            "https://0x0a000001",
            "it is not at a public address",
        ),
        (
            "link-local",
            "https://[fe80::1]",
            "it is not at a public address",
        ),
    ] {
        let account = makes(&admin, &format!("acme/{name}"), issuer).await;
        let token = key().sign(&claims(issuer, SUBJECT)).expect("signed");
        unavailable(account, token, why, name).await;
    }
    assert_eq!(issued(&world).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_that_were_seen_do_while_the_issuer_is_down() {
    let (world, ci) = tokio::join!(World::start(), ForeignIssuer::start());
    let admin = world.admin();
    admin.creates_group("acme").await;
    let account = makes(&admin, "acme/ci", ci.url()).await;
    exchanges(&world, &account, &ci.token(SUBJECT))
        .await
        .token();
    ci.serves(DISCOVERY, Document::Failure);
    exchanges(&world, &account, &ci.token(SUBJECT))
        .await
        .token();
    // A key that is not among them is not looked for again and again.
    let before = ci.fetches();
    for _ in 0..5 {
        let header = with(key().header(), "kid", "new");
        let token = signed(&header, &ci.claims(SUBJECT));
        let (_, reason, _) = refusal(&world, &account, &token).await;
        assert_eq!(reason, "TOKEN_KEY_UNKNOWN");
    }
    assert!(ci.fetches() <= before + 1);
    exchanges(&world, &account, &ci.token(SUBJECT))
        .await
        .token();
}
