//! Which keys do, and for how long.

use futures::FutureExt as _;

use super::*;

#[tokio::test]
async fn an_rsa_key_that_could_be_broken_is_refused_for_that() {
    let signer = Signer::rsa("a");
    let answers = issuer(&[]).await;
    let token = signer.token(&json!({"alg": "RS256", "kid": "a"}), &claims(&answers));
    let of_bytes = |first: u8, bytes: usize| {
        let mut modulus = vec![0xff; bytes];
        modulus[0] = first;
        with(signer.jwk(), "n", URL_SAFE_NO_PAD.encode(modulus))
    };
    for (jwk, reason) in [
        (of_bytes(0xff, 128), "TOKEN_KEY_TOO_SHORT"),
        (of_bytes(0x7f, 256), "TOKEN_KEY_TOO_SHORT"),
        // A zero in front makes it no longer.
        (of_bytes(0, 256), "TOKEN_KEY_TOO_SHORT"),
        (with(signer.jwk(), "n", ""), "TOKEN_KEY_TOO_SHORT"),
        (of_bytes(0x80, 256), "TOKEN_SIGNATURE_INVALID"),
    ] {
        Answers::set(&answers.keys, vec![jwk.clone()]);
        let refused = caller(&authenticator(&answers), &token).await.err();
        assert_eq!(refused, Some(reason), "{jwk}");
    }
}

#[tokio::test]
async fn of_keys_with_the_same_id_each_is_tried_that_fits() {
    let (first, second, other) = (Signer::rsa("a"), Signer::rsa("a"), Signer::p256("a"));
    let answers = issuer(&[&other, &first, &second]).await;
    let authenticator = authenticator(&answers);
    let of = |signer: &Signer, algorithm: &str| {
        let header = json!({"alg": algorithm, "kid": "a"});
        signer.token(&header, &claims(&answers))
    };
    for (signer, algorithm) in [(&first, "RS256"), (&second, "RS256"), (&other, "ES256")] {
        let token = of(signer, algorithm);
        assert!(caller(&authenticator, &token).await.is_ok());
    }
    let stranger = of(&Signer::rsa("a"), "RS256");
    assert_eq!(
        caller(&authenticator, &stranger).await.err(),
        Some("TOKEN_SIGNATURE_INVALID")
    );
}

#[tokio::test]
async fn a_failed_look_for_a_key_is_not_the_word_on_keys_that_grow_old_later() {
    let (old, new) = (Signer::p256("old"), Signer::p256("new"));
    let answers = issuer(&[&old]).await;
    let authenticator = authenticator(&answers);
    let of = |signer: &Signer| {
        let header = json!({"alg": "ES256", "kid": signer.id});
        signer.token(&header, &claims(&answers))
    };
    assert!(caller(&authenticator, &of(&old)).await.is_ok());
    let keys = &authenticator.trusted.issuers[0].1;
    keys.age(Duration::from_secs(10));
    Answers::set(&answers.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(
        caller(&authenticator, &of(&new)).await.err(),
        Some("TOKEN_KEY_UNKNOWN")
    );
    // The issuer is back, and the old key withdrawn: whoever comes past its age waits for that.
    Answers::set(&answers.status, StatusCode::OK);
    Answers::set(&answers.keys, vec![new.jwk()]);
    keys.age(Duration::from_mins(10));
    assert_eq!(
        caller(&authenticator, &of(&old)).await.err(),
        Some("TOKEN_KEY_UNKNOWN")
    );
}

#[tokio::test]
async fn keys_that_must_not_be_kept_are_not_used_while_the_issuer_is_down() {
    let signer = Signer::p256("a");
    let answers = issuer(&[&signer]).await;
    Answers::set(&answers.cache_control, "no-store");
    let authenticator = authenticator(&answers);
    let token = signer.token(&json!({"alg": "ES256", "kid": "a"}), &claims(&answers));
    assert!(caller(&authenticator, &token).await.is_ok());
    Answers::set(&answers.status, StatusCode::SERVICE_UNAVAILABLE);
    let keys = &authenticator.trusted.issuers[0].1;
    keys.age(Duration::from_secs(50));
    assert!(caller(&authenticator, &token).await.is_ok());
    keys.age(Duration::from_secs(10));
    assert_eq!(
        caller(&authenticator, &token).await.err(),
        Some("TOKEN_ISSUER_UNAVAILABLE")
    );
}

#[tokio::test]
async fn the_own_issuers_keys_are_followed_closely() {
    let (first, second) = (Signer::rsa("a"), Signer::rsa("b"));
    let own = issuer(&[&first]).await;
    Answers::set(&own.cache_control, "max-age=20");
    let outbound = Outbound::anywhere().expect("a client");
    let keys = RemoteKeys::new("tharsis", &own.url, outbound, Bounds::OWN);
    let wanted = |id| Wanted {
        id: Some(id),
        algorithm: jsonwebtoken::Algorithm::RS256,
        declared: false,
    };
    assert!(keys.find(wanted("a")).await.is_ok());
    // A key that was published since is found at once,
    Answers::set(&own.keys, vec![first.jwk(), second.jwk()]);
    keys.age(Duration::from_secs(1));
    assert!(keys.find(wanted("b")).await.is_ok());
    // and one that was revoked does for a moment only, whatever is said to clouds.
    Answers::set(&own.keys, vec![second.jwk()]);
    keys.age(Duration::from_secs(5));
    let refused = keys.find(wanted("a")).await.expect_err("refused");
    assert_eq!(refused, AuthenticationError::KeyUnknown);
    // Nor do any for long while nothing is heard of the issuer.
    Answers::set(&own.status, StatusCode::SERVICE_UNAVAILABLE);
    keys.age(Duration::from_secs(100));
    assert!(keys.find(wanted("b")).await.is_ok());
    keys.age(Duration::from_secs(100));
    let refused = keys.find(wanted("b")).await.expect_err("refused");
    assert_eq!(refused.reason(), "TOKEN_ISSUER_UNAVAILABLE");
}

#[tokio::test]
async fn only_so_many_issuers_are_asked_at_once() {
    let outbound = Outbound::anywhere().expect("a client");
    let mut turns = vec![];
    while let Some(turn) = outbound.turn().now_or_never() {
        turns.push(turn.expect("a turn"));
    }
    assert_eq!(turns.len(), 32);
    turns.pop();
    assert!(outbound.turn().now_or_never().is_some());
}
