//! The stand-ins of the clouds refuse what the clouds refuse: else what they accept would show nothing.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use e2e::clouds::{Clouds, Cluster, FederatedCredential, Provider, Role, ServiceAccount, Trust};
use e2e::foreign::{Document, ForeignIssuer, KEYS};
use e2e::issuer::CallerIssuer;
use serde_json::{Value, json};
use tokio::net::TcpListener;

const ROLE: &str = "arn:aws:iam::123456789012:role/deployer";
const PROVIDER: &str = "projects/1/locations/global/workloadIdentityPools/pool/providers/main";
const EMAIL: &str = "deployer@acme.iam.gserviceaccount.com";
/// Every cloud of this scene takes it.
const AUDIENCE: &str = "https://iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/pool/providers/main";

const ASSERTION: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

const SIGNATURE: &str = "The ID Token's signature is not valid";
/// What each says to a good token.
const TAKEN: [&str; 4] = ["<SessionToken>", "access_token", "access_token", "v1.34.0"];
/// What each says to one that no key of the issuer signed.
const UNSIGNED: [&str; 4] = [
    SIGNATURE,
    "AADSTS50013",
    "Invalid signature",
    "Unauthorized",
];

struct Scene {
    issuer: CallerIssuer,
    clouds: Clouds,
    url: String,
    client: reqwest::Client,
}

impl Scene {
    async fn set() -> Self {
        let issuer = CallerIssuer::start().await;
        let clouds = Clouds::default();
        clouds.trust(trust(issuer.url()));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("it is bound"));
        let served = axum::serve(listener, clouds.router());
        tokio::spawn(async move { served.await });
        Self {
            issuer,
            clouds,
            url,
            client: reqwest::Client::new(),
        }
    }

    fn claims(&self) -> Value {
        let mut claims = self.issuer.claims("mi_1");
        claims["aud"] = AUDIENCE.into();
        claims
    }

    async fn posts(&self, path: &str, fields: &[(&str, &str)]) -> String {
        let form = reqwest::Url::parse_with_params("http://form/", fields).expect("a form");
        let request = self.client.post(format!("{}{path}", self.url));
        let request = request
            .header("content-type", "application/x-www-form-urlencoded")
            .body(form.query().unwrap_or_default().to_owned());
        answer(request).await
    }

    /// What AWS says to a token.
    async fn assumes(&self, role: &str, token: &str) -> String {
        let aws = [
            ("Action", "AssumeRoleWithWebIdentity"),
            ("RoleArn", role),
            ("RoleSessionName", "job_1"),
            ("WebIdentityToken", token),
        ];
        self.posts("/aws", &aws).await
    }

    /// What Google says to a token of this type.
    async fn exchanges(&self, audience: &str, of_type: &str, token: &str) -> String {
        let of_type = format!("urn:ietf:params:oauth:token-type:{of_type}");
        let google = [
            (
                "grant_type",
                "urn:ietf:params:oauth:grant-type:token-exchange",
            ),
            ("subject_token_type", of_type.as_str()),
            ("audience", audience),
            ("subject_token", token),
        ];
        self.posts("/google/v1/token", &google).await
    }

    /// What each cloud says to a token.
    async fn says(&self, token: &str) -> [String; 4] {
        let azure = [
            ("grant_type", "client_credentials"),
            ("client_id", "client"),
            ("client_assertion_type", ASSERTION),
            ("client_assertion", token),
        ];
        let google = format!("//iam.googleapis.com/{PROVIDER}");
        let version = self.client.get(format!("{}/kubernetes/version", self.url));
        [
            self.assumes(ROLE, token).await,
            self.posts("/tenant/oauth2/v2.0/token", &azure).await,
            self.exchanges(&google, "jwt", token).await,
            answer(version.bearer_auth(token)).await,
        ]
    }
}

/// In the one subject.
fn trust(issuer: &str) -> Trust {
    let (issuer, subject) = (issuer.to_owned(), "mi_1".to_owned());
    Trust {
        aws: vec![Role {
            arn: ROLE.to_owned(),
            issuer: issuer.clone(),
            audience: AUDIENCE.to_owned(),
            subject: subject.clone(),
        }],
        azure: vec![FederatedCredential {
            tenant_id: "tenant".to_owned(),
            client_id: "client".to_owned(),
            issuer: issuer.clone(),
            subject: subject.clone(),
            audience: AUDIENCE.to_owned(),
        }],
        google: vec![Provider {
            name: PROVIDER.to_owned(),
            issuer: issuer.clone(),
            service_accounts: vec![ServiceAccount {
                email: EMAIL.to_owned(),
                subject,
            }],
        }],
        kubernetes: vec![Cluster {
            issuer,
            audience: AUDIENCE.to_owned(),
        }],
    }
}

async fn answer(request: reqwest::RequestBuilder) -> String {
    let answer = request.send().await.expect("an answer");
    answer.text().await.expect("a text")
}

/// With another header, and so another signature or none.
fn forged(token: &str, header: &Value) -> String {
    let mut parts = token.split('.').skip(1);
    let (claims, signature) = (parts.next().expect("claims"), parts.next());
    let header = URL_SAFE_NO_PAD.encode(header.to_string());
    format!("{header}.{claims}.{}", signature.unwrap_or_default())
}

/// What each cloud must say to it.
async fn is_told(scene: &Scene, what: &str, token: &str, wanted: [&str; 4]) {
    for (said, wanted) in scene.says(token).await.iter().zip(wanted) {
        assert!(said.contains(wanted), "{what}: {wanted}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_the_issuer_did_not_sign_is_refused_with_the_clouds_own_codes() {
    let scene = Scene::set().await;
    let good = scene.issuer.sign(&scene.claims());
    let kid = e2e::issuer::key().jwk().common.key_id.clone();
    let stranger = e2e::key::SigningKey::generate().expect("a key");
    let strangers = stranger.sign(&scene.claims()).expect("signed");
    let malformed = [SIGNATURE, "AADSTS50027", "invalid_grant", "Unauthorized"];
    is_told(&scene, "good", &good, TAKEN).await;
    let nonsense = ["valid JWT", "AADSTS50027", "invalid_grant", "Unauthorized"];
    is_told(&scene, "no token", "hunter2", nonsense).await;
    for algorithm in ["none", "HS256", "PS256"] {
        let token = forged(&good, &json!({ "alg": algorithm, "kid": kid }));
        is_told(&scene, algorithm, &token, malformed).await;
    }
    let token = forged(&good, &json!({ "alg": "RS256", "kid": "other" }));
    is_told(&scene, "an unknown key", &token, UNSIGNED).await;
    let token = forged(&strangers, &json!({ "alg": "RS256", "kid": kid }));
    is_told(&scene, "a stranger's signature", &token, UNSIGNED).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_issuer_s_keys_are_kept_for_as_long_as_it_says() {
    let scene = Scene::set().await;
    let issuer = ForeignIssuer::start().await;
    scene.clouds.trust_only(trust(issuer.url()));
    let mut claims = issuer.claims("mi_1");
    claims["aud"] = AUDIENCE.into();
    let key = e2e::issuer::key();
    let token = key.sign(&claims).expect("signed");
    // It says nothing of keeping them.
    is_told(&scene, "good", &token, TAKEN).await;
    issuer.serves(KEYS, Document::Json(json!({ "keys": [] })));
    is_told(&scene, "of a key that is gone", &token, UNSIGNED).await;
    let away = [
        "Couldn't retrieve verification key",
        "AADSTS501661",
        "Error connecting",
        "Unauthorized",
    ];
    issuer.serves(KEYS, Document::Failure);
    is_told(&scene, "no keys", &token, away).await;
    issuer.serves(KEYS, Document::Kept(json!({ "keys": [key.jwk()] }), 300));
    is_told(&scene, "of a key that is back", &token, TAKEN).await;
    issuer.serves(KEYS, Document::Failure);
    is_told(&scene, "of a key that is kept", &token, TAKEN).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_s_roles_have_a_provider_in_common() {
    const BELOW_A_PATH: &str = "arn:aws:iam::123456789012:role/teams/web/deployer";
    let scene = Scene::set().await;
    let token = scene.issuer.sign(&scene.claims());
    let role = |arn: &str, audience: &str| Role {
        arn: arn.to_owned(),
        audience: audience.to_owned(),
        ..trust(scene.issuer.url()).aws.remove(0)
    };
    scene.clouds.trust_only(Trust {
        aws: vec![role(ROLE, "other"), role(BELOW_A_PATH, AUDIENCE)],
        ..Trust::default()
    });
    let assumed = scene.assumes(BELOW_A_PATH, &token).await;
    let arn = "<Arn>arn:aws:sts::123456789012:assumed-role/deployer/job_1</Arn>";
    assert!(assumed.contains(arn), "{assumed}");
    let refused = scene.assumes(ROLE, &token).await;
    assert!(refused.contains("AccessDenied"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn google_takes_the_audience_and_the_type_that_it_defines() {
    let scene = Scene::set().await;
    let token = scene.issuer.sign(&scene.claims());
    let audience = format!("//iam.googleapis.com/{PROVIDER}");
    for (audience, of_type, wanted) in [
        (audience.as_str(), "id_token", "access_token"),
        (&audience, "saml2", "invalid_request"),
        (PROVIDER, "jwt", "invalid_target"),
    ] {
        let said = scene.exchanges(audience, of_type, &token).await;
        assert!(said.contains(wanted), "{audience} {of_type}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn azure_s_clients_find_where_tokens_are_asked_for() {
    let scene = Scene::set().await;
    let finds = async |tenant: &str| {
        let path = format!("/{tenant}/v2.0/.well-known/openid-configuration");
        answer(scene.client.get(format!("{}{path}", scene.url))).await
    };
    let found: Value = serde_json::from_str(&finds("tenant").await).expect("JSON");
    let authority = scene.url.replacen("http:", "https:", 1);
    let token_endpoint = format!("{authority}/tenant/oauth2/v2.0/token");
    assert_eq!(found["token_endpoint"], token_endpoint);
    assert_eq!(found["issuer"], format!("{authority}/tenant/v2.0"));
    let nowhere = finds("other").await;
    assert!(nowhere.contains("AADSTS90002"), "{nowhere}");
    let grant = [
        ("grant_type", "client_credentials"),
        ("client_assertion_type", ASSERTION),
    ];
    let nowhere = scene.posts("/other/oauth2/v2.0/token", &grant).await;
    assert!(nowhere.contains("AADSTS90002"), "{nowhere}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_for_others_is_refused_with_the_clouds_own_codes() {
    let scene = Scene::set().await;
    let late = [
        "ExpiredTokenException",
        "AADSTS700024",
        "stale",
        "Unauthorized",
    ];
    for (claim, value, wanted) in [
        ("exp", json!(1_000), late),
        ("nbf", json!(4_000_000_000_u64), late),
        (
            "iss",
            json!("https://other.example.com"),
            [
                "No OpenIDConnect provider found",
                "AADSTS700211",
                "The issuer in ID Token",
                "Unauthorized",
            ],
        ),
        (
            "aud",
            json!("other"),
            [
                "Incorrect token audience",
                "AADSTS700212",
                "The audience in ID Token",
                "Unauthorized",
            ],
        ),
        // Google maps the subject and looks at it later; a cluster knows everybody whom the issuer knows.
        (
            "sub",
            json!("mi_2"),
            ["AccessDenied", "AADSTS700213", "access_token", "v1.34.0"],
        ),
    ] {
        let mut claims = scene.claims();
        claims[claim] = value;
        is_told(&scene, claim, &scene.issuer.sign(&claims), wanted).await;
    }
    let mut endless = scene.claims();
    endless.as_object_mut().expect("claims").remove("exp");
    let malformed = [
        "InvalidIdentityToken",
        "AADSTS50027",
        "invalid_grant",
        "Unauthorized",
    ];
    is_told(&scene, "no exp", &scene.issuer.sign(&endless), malformed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_they_give_out_is_the_bearer_s_alone() {
    let scene = Scene::set().await;
    let impersonates = async |subject: &str| {
        let mut claims = scene.claims();
        claims["sub"] = subject.into();
        let said = scene.says(&scene.issuer.sign(&claims)).await;
        let said: Value = serde_json::from_str(&said[2]).expect("JSON");
        let token = said["access_token"].as_str().expect("a token").to_owned();
        let url = format!(
            "{}/google/v1/projects/-/serviceAccounts/{EMAIL}:generateAccessToken",
            scene.url
        );
        answer(scene.client.post(url).bearer_auth(token)).await
    };
    assert!(impersonates("mi_1").await.contains("accessToken"));
    assert!(impersonates("mi_2").await.contains("PERMISSION_DENIED"));
    let nobody = scene
        .posts("/aws", &[("Action", "GetCallerIdentity")])
        .await;
    assert!(nobody.contains("InvalidClientTokenId"), "{nobody}");
}
