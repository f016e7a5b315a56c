//! Tokens of issuers that trust policies name.

use super::*;

/// Trust in the tokens of an issuer, which signs with this algorithm, if it is said.
pub(super) fn policy(issuer: &str, algorithm: &str) -> TrustPolicy {
    TrustPolicy {
        issuer: issuer.parse().expect("a URL"),
        signing_algorithm: algorithm.parse().ok(),
        audience: "tharsis".parse().expect("an audience"),
        claims: BTreeMap::new(),
    }
}

/// Issuers on this machine.
fn trusted() -> TrustedIssuers {
    let own = OwnKeys {
        issuer: "https://own.example".to_owned(),
        keys: kept(&[]),
    };
    let networks = "127.0.0.0/8".parse().expect("networks");
    TrustedIssuers::new(networks, own).expect("a client")
}

#[tokio::test]
async fn the_key_or_the_policy_says_the_algorithm() {
    let signer = Signer::rsa("a");
    let answers = issuer(&[]).await;
    let token = signer.token(&json!({"alg": "RS256", "kid": "a"}), &claims(&answers));
    for (alg, in_policy, reason) in [
        (None, "", Some("TOKEN_KEY_WITHOUT_ALGORITHM")),
        (Some(Value::Null), "", Some("TOKEN_KEY_WITHOUT_ALGORITHM")),
        (Some(json!("RS257")), "", Some("TOKEN_KEY_UNKNOWN")),
        (Some(json!("RS257")), "RS256", Some("TOKEN_KEY_UNKNOWN")),
        (Some(json!(["RS256"])), "RS256", Some("TOKEN_KEY_UNKNOWN")),
        (Some(json!("RS256")), "", None),
        (None, "RS256", None),
        (None, "RS512", Some("TOKEN_ALGORITHM_REFUSED")),
        (
            Some(json!("RS256")),
            "RS512",
            Some("TOKEN_ALGORITHM_REFUSED"),
        ),
        (
            Some(json!("RS512")),
            "RS256",
            Some("TOKEN_ALGORITHM_REFUSED"),
        ),
    ] {
        let mut jwk = signer.jwk();
        if let Some(alg) = &alg {
            jwk["alg"] = alg.clone();
        }
        Answers::set(&answers.keys, vec![jwk]);
        let policies = [policy(&answers.url, in_policy)];
        let verified = trusted().verify(&token, &policies, &["acme"]).await;
        let refused = verified.as_ref().err().map(AuthenticationError::reason);
        assert_eq!(refused, reason, "{alg:?} {in_policy}");
        if let Ok(verified) = verified {
            assert_eq!(verified.declared, alg.is_some());
            assert_eq!(verified.algorithm, "RS256");
        }
    }
    // What one policy says of the issuer does not make the key say it for another one.
    Answers::set(&answers.keys, vec![signer.jwk()]);
    let policies = [policy(&answers.url, ""), policy(&answers.url, "RS256")];
    let verified = trusted().verify(&token, &policies, &["acme"]).await;
    let verified = verified.expect("verified");
    let [unsaid, said] = policies;
    assert!(!unsaid.is_signed_with(&verified.algorithm, verified.declared));
    assert!(said.is_signed_with(&verified.algorithm, verified.declared));
}

#[tokio::test]
async fn what_others_trust_does_not_make_an_issuers_keys_forgotten() {
    let signer = Signer::p256("a");
    let answers = issuer(&[&signer]).await;
    let trusted = trusted();
    let token = signer.token(&json!({"alg": "ES256", "kid": "a"}), &claims(&answers));
    let policies = [policy(&answers.url, "ES256")];
    trusted
        .verify(&token, &policies, &["acme"])
        .await
        .expect("verified");
    for other in 0..300 {
        let url = format!("http://127.0.0.1:1/{other}");
        let claims = with(claims(&answers), "iss", url.as_str());
        let token = signer.token(&json!({"alg": "ES256"}), &claims);
        // None of them has keys.
        let refused = trusted
            .verify(&token, &[policy(&url, "ES256")], &["acme"])
            .await;
        let reason = refused.expect_err("refused").reason();
        assert_eq!(reason, "TOKEN_ISSUER_UNAVAILABLE");
    }
    trusted
        .verify(&token, &policies, &["acme"])
        .await
        .expect("verified");
    assert_eq!(answers.fetches(), 1);
}

/// Issuers that take connections and say nothing, and how many they took.
async fn silent() -> (String, Arc<AtomicUsize>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0");
    let listener = listener.await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let taken = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&taken);
    tokio::spawn(async move {
        let mut kept = vec![];
        while let Ok((connection, _)) = listener.accept().await {
            kept.push(connection);
            counted.fetch_add(1, Ordering::SeqCst);
        }
    });
    (url, taken)
}

#[tokio::test]
async fn slow_issuers_that_one_trusts_keep_nobody_else_waiting() {
    let signer = Signer::p256("a");
    let (known, unseen) = (issuer(&[&signer]).await, issuer(&[&signer]).await);
    let (silent, taken) = silent().await;
    let trusted = Arc::new(trusted());
    let of = |url: &str| {
        let claims = with(claims(&known), "iss", url);
        signer.token(&json!({"alg": "ES256", "kid": "a"}), &claims)
    };
    let verified = async |answers: &Answers| {
        let policies = [policy(&answers.url, "ES256")];
        let verified = trusted
            .verify(&of(&answers.url), &policies, &["acme"])
            .await;
        verified.expect("verified");
    };
    verified(&known).await;
    let mut asked = tokio::task::JoinSet::new();
    for number in 0..300 {
        let url = format!("{silent}/{number}");
        let (trusted, token) = (Arc::clone(&trusted), of(&url));
        asked.spawn(async move {
            let policies = [policy(&url, "ES256")];
            trusted.verify(&token, &policies, &["mallory"]).await
        });
    }
    while taken.load(Ordering::SeqCst) < 8 {
        tokio::task::yield_now().await;
    }
    verified(&known).await;
    verified(&unseen).await;
    assert_eq!((known.fetches(), unseen.fetches()), (1, 1));
    // Nor is anybody kept waiting for long whose turn does not come.
    let first = asked.join_next().await.expect("one").expect("it ends");
    let AuthenticationError::IssuerUnavailable { why, .. } = first.expect_err("refused") else {
        panic!("unavailable");
    };
    assert_eq!(why, "too many issuers are being asked for their keys");
    assert_eq!(taken.load(Ordering::SeqCst), 8);
}

#[tokio::test]
async fn a_refresh_keeps_its_place_among_slow_issuers_when_nobody_waits_for_it() {
    let (old, new) = (Signer::p256("old"), Signer::p256("new"));
    let answers = issuer(&[&old]).await;
    let trusted = Arc::new(trusted());
    let of = |url: &str| {
        let claims = with(claims(&answers), "iss", url);
        old.token(&json!({"alg": "ES256", "kid": "old"}), &claims)
    };
    let policies = [policy(&answers.url, "ES256")];
    let token = of(&answers.url);
    let verified = trusted.verify(&token, &policies, &["acme"]).await;
    verified.expect("verified");
    let keys = [&old];
    let slow = join_all((0..8).map(|_| issuer(&keys))).await;
    for slow in &slow {
        slow.gate.forget_permits(Semaphore::MAX_PERMITS);
        let (trusted, token, url) = (Arc::clone(&trusted), of(&slow.url), slow.url.clone());
        tokio::spawn(async move {
            let policies = [policy(&url, "ES256")];
            trusted.verify(&token, &policies, &["acme"]).await
        });
    }
    while slow.iter().any(|slow| slow.fetches() == 0) {
        tokio::task::yield_now().await;
    }
    Answers::set(&answers.keys, vec![new.jwk()]);
    trusted
        .keys_of(&answers.url, "acme")
        .age(Duration::from_mins(10));
    // The old ones do while newer ones are not to be had.
    let verified = trusted.verify(&token, &policies, &["acme"]).await;
    verified.expect("verified");
    assert_eq!(answers.fetches(), 1);
    for slow in &slow {
        slow.gate.add_permits(1);
    }
    until("fetched", || answers.fetches() == 2).await;
    let verified = trusted.verify(&token, &policies, &["acme"]).await;
    assert_eq!(verified.expect_err("refused").reason(), "TOKEN_KEY_UNKNOWN");
}

#[tokio::test]
async fn slow_issuers_that_one_group_trusts_leave_turns_and_places_to_those_beside_it() {
    let signer = Signer::p256("a");
    let answers = issuer(&[&signer]).await;
    let (silent, taken) = silent().await;
    let trusted = Arc::new(trusted());
    let of = |url: &str| {
        let claims = with(claims(&answers), "iss", url);
        signer.token(&json!({"alg": "ES256", "kid": "a"}), &claims)
    };
    let mut asked = tokio::task::JoinSet::new();
    for number in 0..300 {
        let url = format!("{silent}/{number}");
        let (trusted, token) = (Arc::clone(&trusted), of(&url));
        asked.spawn(async move {
            let policies = [policy(&url, "ES256")];
            let below = format!("mallory/{number}");
            let of = [below.as_str(), "mallory", "acme"];
            trusted.verify(&token, &policies, &of).await
        });
    }
    until("asked", || taken.load(Ordering::SeqCst) == 4).await;
    let policies = [policy(&answers.url, "ES256")];
    let verified = trusted
        .verify(&of(&answers.url), &policies, &["ci", "acme"])
        .await;
    verified.expect("verified");
    assert_eq!(taken.load(Ordering::SeqCst), 4);
}

#[tokio::test]
async fn keys_past_their_age_do_not_while_their_issuer_would_never_be_asked() {
    let signer = Signer::p256("a");
    let answers = issuer(&[&signer]).await;
    let (silent, taken) = silent().await;
    let trusted = Arc::new(trusted());
    let of = |url: &str| {
        let claims = with(claims(&answers), "iss", url);
        signer.token(&json!({"alg": "ES256", "kid": "a"}), &claims)
    };
    let (token, policies) = (of(&answers.url), [policy(&answers.url, "ES256")]);
    let verified = trusted.verify(&token, &policies, &["acme"]).await;
    verified.expect("verified");
    let mut asked = tokio::task::JoinSet::new();
    for number in 0..64 {
        let url = format!("{silent}/{number}");
        let (trusted, token) = (Arc::clone(&trusted), of(&url));
        asked.spawn(async move {
            let policies = [policy(&url, "ES256")];
            trusted.verify(&token, &policies, &["acme"]).await
        });
    }
    until("asked", || taken.load(Ordering::SeqCst) == 8).await;
    trusted
        .keys_of(&answers.url, "acme")
        .age(Duration::from_mins(10));
    let verified = trusted.verify(&token, &policies, &["acme"]).await;
    let AuthenticationError::IssuerUnavailable { why, .. } = verified.expect_err("refused") else {
        panic!("unavailable");
    };
    assert_eq!(why, "too many issuers are being asked for their keys");
}

/// Waits for it.
async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let so = async {
        while !is_so() {
            tokio::task::yield_now().await;
        }
    };
    let so = tokio::time::timeout(Duration::from_secs(30), so).await;
    assert!(so.is_ok(), "not {what}");
}

/// Stands before an issuer, which is at this URL then, and how many connections are open to it.
async fn before(answers: &Answers) -> (String, Arc<AtomicUsize>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0");
    let listener = listener.await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let discovery = json!({"issuer": url, "jwks_uri": format!("{url}/jwks")});
    Answers::set(&answers.discovery, discovery);
    let behind = answers.url.trim_start_matches("http://").to_owned();
    let open = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&open);
    tokio::spawn(async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            let (open, behind) = (Arc::clone(&counted), behind.clone());
            open.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(async move {
                let mut behind = tokio::net::TcpStream::connect(behind)
                    .await
                    .expect("connected");
                let _ = tokio::io::copy_bidirectional(&mut connection, &mut behind).await;
                open.fetch_sub(1, Ordering::SeqCst);
            });
        }
    });
    (url, open)
}

#[tokio::test]
async fn no_connection_to_an_issuer_stays_open() {
    let signer = Signer::p256("a");
    let answers = issuer(&[&signer]).await;
    let (url, open) = before(&answers).await;
    let claims = with(claims(&answers), "iss", url.as_str());
    let token = signer.token(&json!({"alg": "ES256", "kid": "a"}), &claims);
    let trusted = trusted();
    let verified = trusted
        .verify(&token, &[policy(&url, "ES256")], &["acme"])
        .await;
    verified.expect("verified");
    until("closed", || open.load(Ordering::SeqCst) == 0).await;
}

/// As many issuers as there are paths, with one key.
async fn many(signer: &Signer) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0");
    let listener = listener.await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let (base, keys) = (url.clone(), json!({"keys": [signer.jwk()]}));
    let discovery = async move |axum::extract::Path(number): axum::extract::Path<String>| {
        json!({"issuer": format!("{base}/{number}"), "jwks_uri": format!("{base}/jwks")})
            .to_string()
    };
    let router = axum::Router::new()
        .route("/{number}/.well-known/openid-configuration", get(discovery))
        .route("/jwks", get(async move || keys.to_string()));
    tokio::spawn(async move { axum::serve(listener, router).await });
    url
}

#[tokio::test]
async fn who_has_most_issuers_is_the_first_of_whose_one_is_forgotten() {
    let signer = Signer::p256("a");
    let answers = issuer(&[&signer]).await;
    let many = many(&signer).await;
    let trusted = trusted();
    let verified = async |url: &str, of: &str| {
        let claims = with(claims(&answers), "iss", url);
        let token = signer.token(&json!({"alg": "ES256", "kid": "a"}), &claims);
        let verified = trusted.verify(&token, &[policy(url, "ES256")], &[of]).await;
        verified.expect("verified");
    };
    verified(&answers.url, "acme").await;
    for number in 0..300 {
        verified(&format!("{many}/{number}"), "mallory").await;
    }
    // Nor does it count for what it is not that another one names it too.
    verified(&answers.url, "mallory").await;
    for number in 300..600 {
        verified(&format!("{many}/{number}"), "mallory").await;
    }
    verified(&answers.url, "acme").await;
    assert_eq!(answers.fetches(), 1);
}

#[tokio::test]
async fn what_a_token_says_is_short_and_plain() {
    let signer = Signer::p256("a");
    let answers = issuer(&[&signer]).await;
    let trusted = trusted();
    let policies = [policy(&answers.url, "ES256")];
    let long = "a".repeat(1_025);
    let said = |name: &str, value: &str| {
        let claims = with(claims(&answers), name, value);
        signer.token(&json!({"alg": "ES256", "kid": "a"}), &claims)
    };
    for value in [long.as_str(), "a\nb", "a\u{7f}"] {
        assert_eq!(
            trusted
                .verify(&said("sub", value), &policies, &["acme"])
                .await
                .err(),
            Some(AuthenticationError::ClaimInvalid("sub"))
        );
        let verified = trusted
            .verify(&said("ref", value), &policies, &["acme"])
            .await;
        let claims = verified.expect("verified").claims;
        assert!(!claims.contains_key("ref"));
    }
    let verified = trusted
        .verify(&said("ref", &long[1..]), &policies, &["acme"])
        .await;
    assert!(verified.expect("verified").claims.contains_key("ref"));
}
