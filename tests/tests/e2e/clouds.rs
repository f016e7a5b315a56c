//! The stand-ins of the clouds refuse what the clouds refuse: else what they accept would show nothing.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use e2e::clouds::{Clouds, Cluster, FederatedCredential, Provider, Role, ServiceAccount, Trust};
use e2e::issuer::CallerIssuer;
use serde_json::{Value, json};
use tokio::net::TcpListener;

const ROLE: &str = "arn:aws:iam::123456789012:role/deployer";
const PROVIDER: &str = "projects/1/locations/global/workloadIdentityPools/pool/providers/main";
const EMAIL: &str = "deployer@acme.iam.gserviceaccount.com";
/// Every cloud of this scene takes it.
const AUDIENCE: &str = "https://iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/pool/providers/main";

struct Scene {
    issuer: CallerIssuer,
    url: String,
    client: reqwest::Client,
}

impl Scene {
    async fn set() -> Self {
        let issuer = CallerIssuer::start().await;
        let (of, subject) = (issuer.url().to_owned(), "mi_1".to_owned());
        let clouds = Clouds::default();
        clouds.trust(Trust {
            aws: vec![Role {
                arn: ROLE.to_owned(),
                issuer: of.clone(),
                audience: AUDIENCE.to_owned(),
                subject: subject.clone(),
            }],
            azure: vec![FederatedCredential {
                tenant_id: "tenant".to_owned(),
                client_id: "client".to_owned(),
                issuer: of.clone(),
                subject: subject.clone(),
                audience: AUDIENCE.to_owned(),
            }],
            google: vec![Provider {
                name: PROVIDER.to_owned(),
                issuer: of.clone(),
                service_accounts: vec![ServiceAccount {
                    email: EMAIL.to_owned(),
                    subject,
                }],
            }],
            kubernetes: vec![Cluster {
                issuer: of,
                audience: AUDIENCE.to_owned(),
            }],
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("it is bound"));
        let served = axum::serve(listener, clouds.router());
        tokio::spawn(async move { served.await });
        Self {
            issuer,
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

    /// What each cloud says to a token.
    async fn says(&self, token: &str) -> [String; 4] {
        let aws = [
            ("Action", "AssumeRoleWithWebIdentity"),
            ("RoleArn", ROLE),
            ("RoleSessionName", "job_1"),
            ("WebIdentityToken", token),
        ];
        let azure = [
            ("grant_type", "client_credentials"),
            ("client_id", "client"),
            (
                "client_assertion_type",
                "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
            ),
            ("client_assertion", token),
        ];
        let audience = format!("//iam.googleapis.com/{PROVIDER}");
        let google = [
            (
                "grant_type",
                "urn:ietf:params:oauth:grant-type:token-exchange",
            ),
            ("subject_token_type", "urn:ietf:params:oauth:token-type:jwt"),
            ("audience", &audience),
            ("subject_token", token),
        ];
        let version = self.client.get(format!("{}/kubernetes/version", self.url));
        [
            self.posts("/aws", &aws).await,
            self.posts("/azure/tenant/oauth2/v2.0/token", &azure).await,
            self.posts("/google/v1/token", &google).await,
            answer(version.bearer_auth(token)).await,
        ]
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
    let signature = "The ID Token's signature is not valid";
    let malformed = [signature, "AADSTS50027", "invalid_grant", "Unauthorized"];
    let unsigned = [
        signature,
        "AADSTS50013",
        "Invalid signature",
        "Unauthorized",
    ];
    let taken = ["<SessionToken>", "access_token", "access_token", "v1.34.0"];
    is_told(&scene, "good", &good, taken).await;
    let nonsense = ["valid JWT", "AADSTS50027", "invalid_grant", "Unauthorized"];
    is_told(&scene, "no token", "hunter2", nonsense).await;
    for algorithm in ["none", "HS256", "PS256"] {
        let token = forged(&good, &json!({ "alg": algorithm, "kid": kid }));
        is_told(&scene, algorithm, &token, malformed).await;
    }
    let token = forged(&good, &json!({ "alg": "RS256", "kid": "other" }));
    is_told(&scene, "an unknown key", &token, unsigned).await;
    let token = forged(&strangers, &json!({ "alg": "RS256", "kid": kid }));
    is_told(&scene, "a stranger's signature", &token, unsigned).await;
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
