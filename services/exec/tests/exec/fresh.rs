//! Tokens that are renewed while the command runs.

use std::sync::atomic::{AtomicBool, Ordering};

use bed::eventually;
use e2e::{Service, relying_party};

use crate::scene::{Scene, ended, read};

/// Runs until it may end.
const WAITS: &str = "until [ -e \"$THE_END\" ]; do sleep 0.02; done";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_is_renewed_in_one_piece_also_after_an_issuer_that_was_away() {
    let mut scene = Scene::set().await;
    let end = tempfile::tempdir().expect("a folder");
    let end = end.path().join("end");
    let child = scene
        .exec(&["--renew-after", "1", "--", "sh", "-c", WAITS])
        .env("THE_END", &end)
        .spawn()
        .expect("it starts");
    let file = eventually(async || {
        let folder = scene.folders().pop().ok_or("there is no folder yet")?;
        let file = folder.join(format!("{}.token", scene.aws.id));
        file.exists().then_some(file).ok_or("nor a token")
    })
    .await;
    let first = read(&file);

    let enough = AtomicBool::new(false);
    let shape = |token: &str| (token.len(), token.matches('.').count());
    tokio::task::block_in_place(|| {
        std::thread::scope(|threads| {
            threads.spawn(|| {
                while !enough.load(Ordering::Relaxed) {
                    assert_eq!(shape(&read(&file)), shape(&first));
                }
            });
            let runtime = tokio::runtime::Handle::current();
            let renewed = runtime.block_on(changes(&file, &first));
            enough.store(true, Ordering::Relaxed);
            assert_ne!(renewed, first);
        });
    });

    scene.world.stops(Service::Issuer).await;
    let held = read(&file);
    scene.world.starts(Service::Issuer).await;
    let renewed = changes(&file, &held).await;
    let verified = relying_party::verify(&scene.world.issuer_url(), "aws", &renewed).await;
    assert_eq!(verified.expect("it verifies").claims["sub"], scene.aws.id);
    std::fs::write(&end, "").expect("written");
    let ran = ended(child).await;
    assert_eq!(ran.code, Some(0), "{}", ran.said);
    assert!(!ran.said.contains(&renewed), "no token is in a message");
    assert!(scene.folders().is_empty());
}

/// What the file holds once that is something else.
async fn changes(file: &std::path::Path, from: &str) -> String {
    eventually(async || {
        let token = read(file);
        if token == from {
            Err("it is the same still")
        } else {
            Ok(token)
        }
    })
    .await
}
