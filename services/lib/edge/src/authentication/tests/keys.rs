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
        // Nor are there signatures of these.
        (of_bytes(0xff, 1_025), "TOKEN_KEY_UNUSABLE"),
        (with(signer.jwk(), "e", "Ag"), "TOKEN_KEY_UNUSABLE"),
        (with(signer.jwk(), "e", "AQ"), "TOKEN_KEY_UNUSABLE"),
        (with(signer.jwk(), "e", ""), "TOKEN_KEY_UNUSABLE"),
    ] {
        Answers::set(&answers.keys, vec![jwk.clone()]);
        let refused = caller(&authenticator(&answers), &token).await.err();
        assert_eq!(refused, Some(reason), "{jwk}");
    }
}

#[tokio::test]
async fn zeros_in_front_of_a_number_change_nothing_and_a_coordinate_has_its_length() {
    let (rsa, p256) = (Signer::rsa("a"), Signer::p256("a"));
    let answers = issuer(&[]).await;
    for name in ["n", "e"] {
        let number = rsa.jwk()[name]
            .as_str()
            .map(|text| URL_SAFE_NO_PAD.decode(text));
        let mut number = number.expect("a text").expect("base64url");
        number.insert(0, 0);
        let jwk = with(rsa.jwk(), name, URL_SAFE_NO_PAD.encode(number));
        Answers::set(&answers.keys, vec![jwk]);
        let token = rsa.token(&json!({"alg": "RS256", "kid": "a"}), &claims(&answers));
        let taken = caller(&authenticator(&answers), &token).await;
        assert!(taken.is_ok(), "{name}: {taken:?}");
    }
    let token = p256.token(&json!({"alg": "ES256", "kid": "a"}), &claims(&answers));
    for name in ["x", "y"] {
        let jwk = with(p256.jwk(), name, URL_SAFE_NO_PAD.encode([7; 31]));
        Answers::set(&answers.keys, vec![jwk]);
        let refused = caller(&authenticator(&answers), &token).await.err();
        assert_eq!(refused, Some("TOKEN_KEY_UNUSABLE"), "{name}");
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
async fn keys_that_take_the_place_of_others_are_found_whatever_they_are_called() {
    let (old, new) = (Signer::p256("a"), Signer::p256("a"));
    let other = Signer::rsa("a");
    let unnamed = |signer: &Signer| without(signer.jwk(), "kid");
    for (before, after, signer, algorithm, reason) in [
        (
            old.jwk(),
            new.jwk(),
            &new,
            "ES256",
            "TOKEN_SIGNATURE_INVALID",
        ),
        (
            unnamed(&old),
            unnamed(&new),
            &new,
            "ES256",
            "TOKEN_SIGNATURE_INVALID",
        ),
        (
            old.jwk(),
            other.jwk(),
            &other,
            "RS256",
            "TOKEN_ALGORITHM_REFUSED",
        ),
    ] {
        let answers = issuer(&[]).await;
        Answers::set(&answers.keys, vec![before]);
        let authenticator = authenticator(&answers);
        let of = |signer: &Signer, algorithm: &str| {
            let header = json!({"alg": algorithm, "kid": "a"});
            signer.token(&header, &claims(&answers))
        };
        assert!(caller(&authenticator, &of(&old, "ES256")).await.is_ok());
        Answers::set(&answers.keys, vec![after]);
        let token = of(signer, algorithm);
        for _ in 0..2 {
            let refused = caller(&authenticator, &token).await.err();
            assert_eq!(refused, Some(reason));
        }
        assert_eq!(answers.fetches(), 1, "less than 10 s ago");
        let keys = &authenticator.trusted.issuers[0].1;
        keys.age(Duration::from_secs(10));
        assert!(caller(&authenticator, &token).await.is_ok());
        // What is forged does not have them fetched more often.
        let forged = of(&Signer::p256("a"), "ES256");
        assert!(caller(&authenticator, &forged).await.is_err());
        assert_eq!(answers.fetches(), 2);
    }
}

#[tokio::test]
async fn what_is_wrong_with_a_key_need_not_stay_so() {
    let signer = Signer::rsa("a");
    let answers = issuer(&[&signer]).await;
    let keys = foreign(&answers);
    let said = async || {
        let wanted = Wanted {
            id: Some("a"),
            algorithm: jsonwebtoken::Algorithm::RS256,
            declared: true,
        };
        keys.verify(wanted, &[], |_| Ok(())).await
    };
    assert_eq!(said().await, Err(AuthenticationError::KeyWithoutAlgorithm));
    Answers::set(&answers.keys, vec![with(signer.jwk(), "alg", "RS256")]);
    keys.age(Duration::from_secs(10));
    assert_eq!(said().await, Ok(()));
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
    // It may be there: nobody knows.
    for _ in 0..2 {
        assert_eq!(
            caller(&authenticator, &of(&new)).await.err(),
            Some("TOKEN_ISSUER_UNAVAILABLE")
        );
    }
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
    let (first, second) = (Signer::p256("a"), Signer::p256("b"));
    let own = issuer(&[&first]).await;
    Answers::set(&own.cache_control, "max-age=20");
    let outbound = Outbound::anywhere().expect("a client");
    let keys = RemoteKeys::new("tharsis", &own.url, outbound, Bounds::OWN);
    assert!(finds(&keys, "a").await.is_ok());
    // A key that was published since is found at once,
    Answers::set(&own.keys, vec![first.jwk(), second.jwk()]);
    keys.age(Duration::from_secs(1));
    assert!(finds(&keys, "b").await.is_ok());
    // and one that was revoked does for a moment only, whatever is said to clouds.
    Answers::set(&own.keys, vec![second.jwk()]);
    keys.age(Duration::from_secs(5));
    let refused = finds(&keys, "a").await.expect_err("refused");
    assert_eq!(refused, AuthenticationError::KeyUnknown);
    // Nor do any for long while nothing is heard of the issuer.
    Answers::set(&own.status, StatusCode::SERVICE_UNAVAILABLE);
    keys.age(Duration::from_secs(100));
    assert!(finds(&keys, "b").await.is_ok());
    keys.age(Duration::from_secs(100));
    let refused = finds(&keys, "b").await.expect_err("refused");
    assert_eq!(refused.reason(), "TOKEN_ISSUER_UNAVAILABLE");
}

/// Whether there is a key with this id.
async fn finds(keys: &RemoteKeys, id: &str) -> Result<(), AuthenticationError> {
    let wanted = Wanted {
        id: Some(id),
        algorithm: jsonwebtoken::Algorithm::ES256,
        declared: false,
    };
    keys.verify(wanted, &[], |_| Ok(())).await
}

/// Of an issuer that others run.
fn foreign(answers: &Answers) -> Arc<RemoteKeys> {
    let outbound = Outbound::anywhere().expect("a client");
    let keys = RemoteKeys::new("ci", &answers.url, outbound, Bounds::FOREIGN);
    Arc::new(keys)
}

#[tokio::test]
async fn only_so_many_issuers_are_asked_at_once() {
    let outbound = Outbound::anywhere().expect("a client");
    let turn = |of: &[&str]| outbound.place(of)?.turn().now_or_never();
    let mut turns = vec![];
    for (of, all) in [
        // Half as many for what is below, and the rest for what is beside it.
        (vec!["j", "i", "h", "g", "a"], 1),
        (vec!["h", "g", "a"], 2),
        (vec!["g", "a"], 4),
        (vec!["k", "a"], 8),
        (vec!["a"], 8),
        (vec!["b"], 16),
        (vec!["c"], 24),
        (vec!["d"], 32),
        (vec!["e"], 32),
    ] {
        while let Some(turn) = turn(&of) {
            turns.push(turn.expect("a turn"));
        }
        assert_eq!(turns.len(), all, "{of:?}");
    }
    turns.pop();
    assert!(turn(&["f"]).is_some());
}

#[tokio::test]
async fn keys_do_while_their_issuer_takes_its_time_for_newer_ones() {
    let (old, new) = (Signer::p256("old"), Signer::p256("new"));
    let answers = issuer(&[&old]).await;
    let keys = foreign(&answers);
    assert!(finds(&keys, "old").await.is_ok());
    answers.gate.forget_permits(Semaphore::MAX_PERMITS);
    Answers::set(&answers.keys, vec![new.jwk()]);
    keys.age(Duration::from_mins(10));
    assert!(finds(&keys, "old").await.is_ok());
    assert!(keys.is_in_flight(), "it was not waited for");
    answers.gate.add_permits(1);
    // Whoever needs a newer one waits.
    assert!(finds(&keys, "new").await.is_ok());
    assert_eq!(answers.fetches(), 2);
}

#[tokio::test]
async fn an_issuer_that_fails_is_asked_soon_and_then_less_and_less() {
    let signer = Signer::p256("a");
    let answers = issuer(&[&signer]).await;
    Answers::set(&answers.status, StatusCode::SERVICE_UNAVAILABLE);
    let keys = foreign(&answers);
    assert!(finds(&keys, "a").await.is_err());
    for (asked, pause) in [1, 2, 4, 8, 16, 32, 60, 60].into_iter().enumerate() {
        let half = Duration::from_secs(pause) / 2;
        for due in [false, true] {
            keys.age(half);
            assert!(finds(&keys, "a").await.is_err());
            let asked = asked + 1 + usize::from(due);
            assert_eq!(answers.asked(), asked, "{pause} s");
        }
    }
    Answers::set(&answers.status, StatusCode::OK);
    keys.age(Duration::from_mins(1));
    assert!(finds(&keys, "a").await.is_ok());
}

#[tokio::test]
async fn a_slow_issuer_is_left_alone_after_it_has_failed() {
    let signer = Signer::p256("a");
    let answers = issuer(&[&signer]).await;
    answers.gate.forget_permits(Semaphore::MAX_PERMITS);
    let keys = foreign(&answers);
    let asking = tokio::spawn({
        let keys = Arc::clone(&keys);
        async move { finds(&keys, "a").await.is_err() }
    });
    while answers.fetches() == 0 {
        tokio::task::yield_now().await;
    }
    // It takes its time, and fails then.
    keys.age(Duration::from_mins(1));
    Answers::set(&answers.status, StatusCode::SERVICE_UNAVAILABLE);
    answers.gate.add_permits(1);
    assert!(asking.await.expect("it ends"));
    assert!(finds(&keys, "a").await.is_err());
    assert_eq!(answers.asked(), 1);
}
