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
use proto::directory::v1 as directory;
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
fn keys_of_all_kinds(other: &SigningKey) -> Value {
    let jwk = serde_json::to_value(key().jwk()).expect("JSON");
    let other = serde_json::to_value(other.jwk()).expect("JSON");
    let keys = json!([
        with(other, "kid", "twice"),
        with(jwk.clone(), "kid", "twice"),
        jwk,
        with(with(jwk.clone(), "use", "enc"), "kid", "enc"),
        with(with(jwk.clone(), "alg", "RS384"), "kid", "rs384"),
        without(without(with(jwk.clone(), "kid", "plain"), "alg"), "use"),
        with(with(jwk.clone(), "kid", "null"), "alg", Value::Null),
        with(with(jwk.clone(), "kid", "new"), "alg", "RS257"),
        with(with(jwk.clone(), "kid", "short"), "n", URL_SAFE_NO_PAD.encode([0xff; 128])),
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
    let other = SigningKey::generate().expect("a key");
    ci.serves(KEYS, Document::Json(keys_of_all_kinds(&other)));

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
    let forged = other.sign_as(&header, &claims).expect("signed");
    let critical = with(with(header.clone(), "crit", json!(["b64"])), "b64", false);

    let taken = [
        good.clone(),
        heads("kid", "twice"),
        heads("typ", "at+jwt"),
        says("aud", json!(["x", "tharsis"])),
        // What says where a key is, or is one, is not looked at.
        heads("jku", NOWHERE),
    ];
    for token in &taken {
        exchanges(&world, &account, token).await.token();
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
        (heads("kid", "plain"), "TOKEN_KEY_WITHOUT_ALGORITHM"),
        (heads("kid", "null"), "TOKEN_KEY_WITHOUT_ALGORITHM"),
        (heads("kid", "new"), "TOKEN_KEY_UNKNOWN"),
        (heads("kid", "short"), "TOKEN_KEY_TOO_SHORT"),
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
    assert_eq!(issued(&world).await, taken.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_must_be_of_its_type_and_within_its_bounds() {
    let (world, ci) = tokio::join!(World::start(), ForeignIssuer::start());
    let admin = world.admin();
    admin.creates_group("acme").await;
    let account = makes(&admin, "acme/ci", ci.url()).await;
    let now = edge::clock::now().unix_timestamp();
    let says =
        |name: &str, value: Value| signed(&key().header(), &with(ci.claims(SUBJECT), name, value));
    let taken = [
        ("exp", json!(4_000_000_000.5)),
        ("exp", u64::MAX.into()),
        ("iat", (-1).into()),
        ("iat", 0.5.into()),
    ];
    for (name, value) in taken.clone() {
        let token = says(name, value);
        exchanges(&world, &account, &token).await.token();
    }
    for (name, value, reason) in [
        ("exp", (now - 31).into(), "TOKEN_EXPIRED"),
        ("nbf", (now + 600).into(), "TOKEN_NOT_YET_VALID"),
        ("exp", "tomorrow".into(), "TOKEN_CLAIM_INVALID"),
        ("exp", Value::Null, "TOKEN_CLAIM_INVALID"),
        ("exp", json!([now + 600]), "TOKEN_CLAIM_INVALID"),
        ("exp", (-1).into(), "TOKEN_CLAIM_INVALID"),
        ("exp", 1e30.into(), "TOKEN_CLAIM_INVALID"),
        ("nbf", Value::Null, "TOKEN_CLAIM_INVALID"),
        ("iat", Value::Null, "TOKEN_CLAIM_INVALID"),
        ("iat", now.to_string().into(), "TOKEN_CLAIM_INVALID"),
        ("iat", (now + 600).into(), "TOKEN_NOT_YET_VALID"),
        ("iat", 1e30.into(), "TOKEN_NOT_YET_VALID"),
        ("jti", 7.into(), "TOKEN_CLAIM_INVALID"),
        ("jti", json!(["7"]), "TOKEN_CLAIM_INVALID"),
        ("sub", "repo:acme/\n".into(), "TOKEN_CLAIM_INVALID"),
        (
            "sub",
            format!("repo:acme/{}", "x".repeat(1_024)).into(),
            "TOKEN_CLAIM_INVALID",
        ),
    ] {
        let shown = says(name, value.clone());
        let (_, said, description) = refusal(&world, &account, &shown).await;
        assert_eq!(said, reason, "{name} {value}");
        let named = description.contains(name) || reason != "TOKEN_CLAIM_INVALID";
        assert!(named, "{name}: {description}");
    }
    assert_eq!(issued(&world).await, taken.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_can_be_read_in_two_ways_is_read_in_none() {
    let (world, ci) = tokio::join!(World::start(), ForeignIssuer::start());
    let admin = world.admin();
    admin.creates_group("acme").await;
    let account = makes(&admin, "acme/ci", ci.url()).await;
    let (header, claims) = (key().header().to_string(), ci.claims(SUBJECT).to_string());
    let good = key().sign_texts(&header, &claims).expect("signed");
    exchanges(&world, &account, &good).await.token();

    let also = |object: &str, member: &str| format!("{{{member},{}", &object[1..]);
    let heads = |member: &str| key().sign_texts(&also(&header, member), &claims);
    let says = |member: &str| key().sign_texts(&header, &also(&claims, member));
    let texts = |header: &str, claims: &str| key().sign_texts(header, claims);
    let (message, signature) = good.rsplit_once('.').expect("a signature");
    let (head, rest) = good.split_once('.').expect("a header");
    // The last character has four bits that say nothing: they must be zeros.
    let (start, last) = signature.split_at(signature.len() - 1);
    let next = char::from(last.as_bytes()[0] + 1);
    let nested = with(key().header(), "cty", "JWT").to_string();
    for (number, bad) in [
        heads(r#""alg":"RS256""#),
        heads(r#""kid":"other""#),
        heads(r#""x":1,"x":1"#),
        heads(r#""crit":null"#),
        heads(r#""crit":[]"#),
        heads(r#""b64":false"#),
        heads(r#""enc":"A256GCM""#),
        heads(r#""zip":"DEF""#),
        says(r#""sub":"repo:acme/other""#),
        says(r#""environment":"dev""#),
        says(r#""environ\u006dent":"dev""#),
        says(r#""more":1e1000"#),
        texts("[]", &claims),
        texts(&header, "[]"),
        texts(&header, "text"),
        texts(&nested, &good),
        Ok(format!("{head}=.{rest}")),
        Ok(format!("{good}==")),
        Ok(format!("{message}.{start}{next}")),
        Ok(format!("{message}.+/")),
        Ok(format!(
            "{}.a.b.c.d",
            encoded(&json!({"alg": "RSA-OAEP", "enc": "A256GCM"}))
        )),
    ]
    .into_iter()
    .enumerate()
    {
        let (error, reason, _) = refusal(&world, &account, &bad.expect("signed")).await;
        assert_eq!(
            (error.as_str(), reason.as_str()),
            ("invalid_request", "TOKEN_MALFORMED"),
            "{number}"
        );
    }
    assert_eq!(issued(&world).await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_does_not_bring_its_key() {
    let (world, ci, other) = tokio::join!(
        World::start(),
        ForeignIssuer::start(),
        ForeignIssuer::start()
    );
    let admin = world.admin();
    admin.creates_group("acme").await;
    let account = makes(&admin, "acme/ci", ci.url()).await;
    let forger = SigningKey::generate().expect("a key");
    let jwk = serde_json::to_value(forger.jwk()).expect("JSON");
    other.serves(KEYS, Document::Json(json!({ "keys": [jwk] })));
    let elsewhere = format!("{}{KEYS}", other.url());
    for (name, value) in [
        ("jwk", jwk.clone()),
        ("jku", elsewhere.clone().into()),
        ("x5u", elsewhere.into()),
        ("x5c", json!(["AAAA"])),
    ] {
        for (kid, reason) in [
            (key().header()["kid"].clone(), "TOKEN_SIGNATURE_INVALID"),
            (forger.header()["kid"].clone(), "TOKEN_KEY_UNKNOWN"),
        ] {
            let header = with(with(key().header(), "kid", kid), name, value.clone());
            let forged = forger.sign_as(&header, &ci.claims(SUBJECT));
            let said = refusal(&world, &account, &forged.expect("signed")).await.1;
            assert_eq!(said, reason, "{name}");
        }
    }
    assert_eq!(other.fetches(), 0);
    // Nor does an issuer without any have one for it.
    ci.serves(KEYS, Document::Json(json!({ "keys": [] })));
    let empty = ForeignIssuer::start().await;
    empty.serves(KEYS, Document::Json(json!({ "keys": [] })));
    let account = makes(&admin, "acme/empty", empty.url()).await;
    let said = refusal(&world, &account, &empty.token(SUBJECT)).await.1;
    assert_eq!(said, "TOKEN_KEY_UNKNOWN");
    assert_eq!(issued(&world).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_may_say_what_an_issuers_keys_do_not() {
    let (world, ci) = tokio::join!(World::start(), ForeignIssuer::start());
    let admin = world.admin();
    admin.creates_group("acme").await;
    let jwk = serde_json::to_value(key().jwk()).expect("JSON");
    let keys = json!({ "keys": [without(jwk, "alg")] });
    ci.serves(KEYS, Document::Json(keys));
    let names = async |path: &str, algorithm: &str| {
        let mut request = ci.trusted_by(path, "repo:acme/*");
        let account = request.service_account.get_or_insert_default();
        algorithm.clone_into(&mut account.trust_policies[0].signing_algorithm);
        let made = admin.asks(request).await.expect("made");
        made.service_account.expect("it")
    };
    let said = names("acme/said", "RS256").await;
    assert_eq!(said.trust_policies[0].signing_algorithm, "RS256");
    exchanges(&world, &said.id, &ci.token(SUBJECT))
        .await
        .token();
    for (path, algorithm, reason) in [
        ("acme/unsaid", "", "TOKEN_KEY_WITHOUT_ALGORITHM"),
        ("acme/other", "RS512", "TOKEN_ALGORITHM_REFUSED"),
    ] {
        let account = names(path, algorithm).await;
        let refused = refusal(&world, &account.id, &ci.token(SUBJECT)).await.1;
        assert_eq!(refused, reason, "{path}");
    }
    let seen = admin.asks(directory::ListServiceAccountsRequest {
        group_id: "trn:group:acme".to_owned(),
        ..Default::default()
    });
    let seen = seen.await.expect("listed").service_accounts;
    let mut seen = seen.into_iter().filter_map(|listed| listed.service_account);
    let seen = seen.find(|account| account.id == said.id);
    assert_eq!(seen.expect("it").trust_policies, said.trust_policies);
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
        bad("endless", DISCOVERY, Document::Endless, large),
        bad("endless-keys", KEYS, Document::Endless, large),
        bad("dripping", DISCOVERY, Document::Drip, slow),
        bad("dripping-keys", KEYS, Document::Drip, slow),
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
        ("down", NOWHERE, "no connection to it can be made"),
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
        unavailable(account.clone(), token, why, name).await;
        // What is refused anyway is, whether there are keys or not.
        let header = without(with(key().header(), "alg", "HS256"), "kid");
        let said = refusal(&world, &account, &signed(&header, &claims(issuer, SUBJECT))).await;
        assert_eq!(said.1, "TOKEN_ALGORITHM_REFUSED");
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
        // For 10 s after they were fetched it is known not to be among them, and then it is not known.
        let known = ["TOKEN_KEY_UNKNOWN", "TOKEN_ISSUER_UNAVAILABLE"];
        assert!(known.contains(&reason.as_str()), "{reason}");
    }
    assert!(ci.fetches() <= before + 1);
    exchanges(&world, &account, &ci.token(SUBJECT))
        .await
        .token();
}
