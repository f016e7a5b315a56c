//! Tokens that are not quite what they should be.

use super::*;

#[tokio::test]
async fn what_could_be_read_in_two_ways_or_in_none_is_malformed() {
    let signer = Signer::p256("a");
    let answers = issuer(&[&signer]).await;
    let authenticator = authenticator(&answers);
    let sign = |header: &str, claims: &str| {
        let part = |json: &str| URL_SAFE_NO_PAD.encode(json);
        let message = format!("{}.{}", part(header), part(claims));
        let signature = signer.sign("ES256", message.as_bytes());
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
    };
    let (header, good) = (r#"{"alg":"ES256","kid":"a"}"#, claims(&answers).to_string());
    assert!(caller(&authenticator, &sign(header, &good)).await.is_ok());
    let also = |member: &str| format!("{{{member},{}", good.trim_start_matches('{'));
    for (header, claims) in [
        (r#"{"alg":"ES256","alg":"ES256","kid":"a"}"#, good.clone()),
        (r#"{"alg":"ES256","kid":"b","kid":"a"}"#, good.clone()),
        (r#"{"alg":"ES256","kid":"a","x":1,"x":1}"#, good.clone()),
        (header, also(r#""sub":"admin""#)),
        (header, also(r#""exp":1"#)),
        (header, also(r#""ref":"a","ref":"b""#)),
        (header, also(r#""r\u0065f":"a","ref":"b""#)),
        (header, also(r#""jti":1e1000"#)),
        (header, format!("{good} {good}")),
        (header, "[1]".to_owned()),
        (header, "null".to_owned()),
        (header, "not JSON".to_owned()),
        (r#"["ES256"]"#, good.clone()),
        (r#""ES256""#, good.clone()),
        (r#"{"alg":7,"kid":"a"}"#, good.clone()),
        (r#"{"alg":null,"kid":"a"}"#, good.clone()),
        (r#"{"alg":"ES256","kid":7}"#, good.clone()),
        (r#"{"alg":"ES256","kid":"a","typ":["JWT"]}"#, good.clone()),
        (r#"{"alg":"ES256","kid":"a","crit":null}"#, good.clone()),
        (r#"{"alg":"ES256","kid":"a","crit":[]}"#, good.clone()),
        (r#"{"alg":"ES256","kid":"a","crit":"exp"}"#, good.clone()),
        (r#"{"alg":"ES256","kid":"a","b64":false}"#, good.clone()),
        (r#"{"alg":"ES256","kid":"a","b64":true}"#, good.clone()),
        (r#"{"alg":"ES256","kid":"a","enc":"A256GCM"}"#, good.clone()),
        (r#"{"alg":"ES256","kid":"a","zip":"DEF"}"#, good.clone()),
    ] {
        let refused = caller(&authenticator, &sign(header, &claims)).await.err();
        assert_eq!(refused, Some("TOKEN_MALFORMED"), "{header} {claims}");
    }
}

#[tokio::test]
async fn a_claim_of_another_type_is_the_one_that_is_named() {
    let signer = Signer::p256("a");
    let answers = issuer(&[&signer]).await;
    let authenticator = authenticator(&answers);
    let good = claims(&answers);
    let now = clock::now().unix_timestamp();
    let says = async |name: &str, value: Value| {
        let header = json!({"alg": "ES256", "kid": "a"});
        let token = signer.token(&header, &with(good.clone(), name, value));
        authenticator.authenticate(&headers(&token)).await
    };
    for (name, value) in [
        ("exp", json!(null)),
        ("exp", json!([now + 600])),
        ("exp", json!(-1.5)),
        ("exp", json!(1e30)),
        ("nbf", json!(null)),
        ("nbf", json!(-1)),
        ("nbf", json!("0")),
        ("iat", json!(null)),
        ("iat", json!("0")),
        ("iat", json!([0])),
        ("iss", json!(null)),
        ("iss", json!([answers.url])),
        ("sub", json!(null)),
        ("sub", json!({})),
        ("aud", json!(null)),
        ("aud", json!(7)),
        ("aud", json!(["tharsis", null])),
        ("aud", json!([["tharsis"]])),
        ("jti", json!(null)),
        ("jti", json!(7)),
        ("jti", json!(["7"])),
    ] {
        let error = says(name, value.clone()).await.expect_err("refused");
        let expected = AuthenticationError::ClaimInvalid(name);
        assert_eq!(error, expected, "{name} {value}");
    }
    for (iat, reason) in [
        (json!(now + 60), Some("TOKEN_NOT_YET_VALID")),
        (json!(1e30), Some("TOKEN_NOT_YET_VALID")),
        (json!(now + 20), None),
        (json!(0), None),
        (json!(-1), None),
        (json!(0.5), None),
    ] {
        let refused = says("iat", iat.clone()).await.err();
        let refused = refused.as_ref().map(AuthenticationError::reason);
        assert_eq!(refused, reason, "{iat}");
    }
    assert!(says("exp", json!(u64::MAX)).await.is_ok());
}

#[tokio::test]
async fn only_what_says_who_someone_is_is_taken_from_callers() {
    let signer = Signer::p256("a");
    let answers = issuer(&[&signer]).await;
    let authenticator = authenticator(&answers);
    for (typ, reason) in [
        ("JWT", None),
        ("at+jwt", None),
        ("application/AT+JWT", None),
        ("logout+jwt", Some("TOKEN_TYPE_REFUSED")),
        ("dpop+jwt", Some("TOKEN_TYPE_REFUSED")),
        ("sa+jwt", Some("TOKEN_TYPE_REFUSED")),
        ("", Some("TOKEN_TYPE_REFUSED")),
    ] {
        let header = json!({"alg": "ES256", "kid": "a", "typ": typ});
        let token = signer.token(&header, &claims(&answers));
        assert_eq!(caller(&authenticator, &token).await.err(), reason, "{typ}");
    }
}

#[tokio::test]
async fn an_algorithm_without_public_keys_is_refused_before_any_is_fetched() {
    let answers = issuer(&[]).await;
    let authenticator = authenticator(&answers);
    Answers::set(&answers.status, StatusCode::SERVICE_UNAVAILABLE);
    let signer = Signer::p256("a");
    for header in [
        json!({"alg": "HS256"}),
        json!({"alg": "HS512", "kid": "a"}),
        json!({"alg": "none"}),
    ] {
        let token = signer.token(&header, &claims(&answers));
        assert_eq!(
            caller(&authenticator, &token).await.err(),
            Some("TOKEN_ALGORITHM_REFUSED"),
            "{header}"
        );
    }
}
