//! Tokens that are renewed while the command runs.

use std::collections::BTreeMap;
use std::future::pending;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bed::eventually;
use e2e::user::unassignment;
use e2e::{Service, relying_party};
use reqwest::{Client, StatusCode};
use rustix::io::ioctl_fionbio;
use rustix::process::Signal;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::command::sends;
use crate::failures::pipe;
use crate::scene::{EXEC, Scene, ended, read, runs};

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
    let file = first(&scene).await;
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

/// A pipe for messages that is full, and its other end.
fn full_pipe() -> (std::io::PipeReader, std::io::PipeWriter) {
    let (reader, mut writer) = std::io::pipe().expect("a pipe");
    ioctl_fionbio(&writer, true).expect("set");
    while writer.write(&[b'.'; 4096]).is_ok() {}
    ioctl_fionbio(&writer, false).expect("set");
    (reader, writer)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_read_what_it_says_does_not_hold_it_up() {
    let scene = Scene::set().await;
    let (_unread, full) = full_pipe();
    let child = scene
        .exec(&["--renew-after", "1", "--", "sleep", "1000"])
        .stderr(full)
        .spawn()
        .expect("it starts");
    first(&scene).await;
    let folder = scene.folders().pop().expect("there is one");
    let unassignment = unassignment(&scene.aws.id, &scene.job.job.workspace_id);
    scene.admin.asks(unassignment).await.expect("unassigned");
    eventually(
        async || match runs(scene.exec(&["token", &scene.aws.id])).await.code {
            Some(0) => Err("it is assigned still"),
            _ => Ok(()),
        },
    )
    .await;
    // Between the first and the last there is a refusal to tell of.
    let file = folder.join(format!("{}.token", scene.azure.id));
    for _ in 0..3 {
        let held = read(&file);
        changes(&file, &held).await;
    }
    sends(&child, Signal::TERM);
    assert_eq!(ended(child).await.signal, Some(15));
    assert!(scene.folders().is_empty());
}

/// A way to the issuer, which is lost without a word when it is told so; who connects again finds another.
struct Way {
    url: String,
    lost: Arc<Notify>,
    connections: Arc<AtomicUsize>,
    _open: JoinSet<()>,
}

impl Way {
    async fn to(issuer: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("it is bound"));
        let (lost, connections) = (Arc::<Notify>::default(), Arc::<AtomicUsize>::default());
        let (loses, counts) = (Arc::clone(&lost), Arc::clone(&connections));
        let mut open = JoinSet::new();
        open.spawn(async move {
            let mut ways = JoinSet::new();
            loop {
                let (mut near, _) = listener.accept().await.expect("a connection");
                let mut far = TcpStream::connect(&issuer).await.expect("the issuer");
                let loses = Arc::clone(&loses);
                counts.fetch_add(1, Ordering::SeqCst);
                ways.spawn(async move {
                    tokio::select! {
                        _ = copy_bidirectional(&mut near, &mut far) => {}
                        () = loses.notified() => pending().await,
                    }
                });
            }
        });
        Self {
            url,
            lost,
            connections,
            _open: open,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_issuer_that_is_gone_without_a_word_is_connected_to_anew() {
    let scene = Scene::set().await;
    let issuer = scene.issuer();
    let way = Way::to(issuer.trim_start_matches("http://").to_owned()).await;
    let end = tempfile::tempdir().expect("a folder");
    let end = end.path().join("end");
    let child = scene
        .exec(&["--renew-after", "1", "--", "sh", "-c", WAITS])
        .env("THE_END", &end)
        .env("THARSIS_ISSUER_GRPC_URL", &way.url)
        .spawn()
        .expect("it starts");
    let file = first(&scene).await;
    way.lost.notify_waiters();
    eventually(async || match way.connections.load(Ordering::SeqCst) {
        1 => Err("it still waits for the first"),
        _ => Ok(()),
    })
    .await;
    let held = read(&file);
    changes(&file, &held).await;
    std::fs::write(&end, "").expect("written");
    assert_eq!(ended(child).await.code, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_token_that_was_refused_may_be_another_the_next_time() {
    let scene = Scene::set().await;
    let folder = tempfile::tempdir().expect("a folder");
    let (end, job_token) = (folder.path().join("end"), folder.path().join("job-token"));
    std::fs::write(&job_token, &scene.job.token).expect("written");
    let mut child = scene
        .exec_as("")
        .args(["--renew-after", "1", "--", "sh", "-c", WAITS])
        .env("THARSIS_JOB_TOKEN_FILE", &job_token)
        .env("THE_END", &end)
        .spawn()
        .expect("it starts");
    let file = first(&scene).await;
    std::fs::write(&job_token, "hunter2").expect("written");
    let said = child.stderr.as_mut().expect("it is read");
    let mut lines = BufReader::new(said).lines();
    // Each of the five is refused.
    for _ in 0..5 {
        let line = lines.next_line().await.expect("read").expect("a line");
        assert!(line.contains("does not take the job token"), "{line}");
    }
    let held = read(&file);
    std::fs::write(&job_token, &scene.job.token).expect("written");
    changes(&file, &held).await;
    std::fs::write(&end, "").expect("written");
    assert_eq!(ended(child).await.code, Some(0));
}

/// As a file on a mount that hangs, a pipe keeps who reads it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_token_that_can_t_be_read_any_more_holds_no_signal_up() {
    let scene = Scene::set().await;
    let folder = tempfile::tempdir().expect("a folder");
    let job_token = folder.path().join("job-token");
    std::fs::write(&job_token, &scene.job.token).expect("written");
    let mut child = scene
        .exec_as("")
        .args(["--patience", "1", "--renew-after", "1"])
        .args(["--", "sleep", "1000"])
        .env("THARSIS_JOB_TOKEN_FILE", &job_token)
        .spawn()
        .expect("it starts");
    first(&scene).await;
    let pipe = pipe(folder.path());
    std::fs::rename(&pipe, &job_token).expect("moved");
    let said = child.stderr.as_mut().expect("it is read");
    let line = BufReader::new(said).lines().next_line().await;
    let line = line.expect("read").expect("a line");
    assert!(line.contains("can't be read in time"), "{line}");
    sends(&child, Signal::TERM);
    assert_eq!(ended(child).await.signal, Some(15));
    assert!(scene.folders().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_token_out_of_a_pipe_is_read_once_and_kept() {
    const PIPED: &str = r#"
        printf '%s\n' "$THARSIS_JOB_TOKEN" | {
            unset THARSIS_JOB_TOKEN
            THARSIS_JOB_TOKEN_FILE=/dev/stdin "$EXEC" -- sh -c 'test -s "$AWS_WEB_IDENTITY_TOKEN_FILE"'
        }
    "#;
    let scene = Scene::set().await;
    let mut shell = scene.program("sh");
    shell.args(["-c", PIPED]).env("EXEC", EXEC);
    let ran = runs(shell).await;
    assert_eq!((ran.code, ran.said.as_str()), (Some(0), ""));
}

/// As `AzureRM` and `AzureAD` ask for a token.
async fn asks(url: &str, secret: &str) -> Result<String, StatusCode> {
    let request = Client::new()
        .get(format!("{url}?audience=api%3A%2F%2FAzureADTokenExchange"))
        .bearer_auth(secret);
    let answer = request.send().await.expect("it is there");
    if !answer.status().is_success() {
        return Err(answer.status());
    }
    let body: Value = answer.json().await.expect("JSON");
    Ok(body["value"].as_str().expect("a token").to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_reads_a_file_only_once_asks_for_a_fresh_token() {
    let scene = Scene::set().await;
    let folder = tempfile::tempdir().expect("a folder");
    let (end, environment) = (folder.path().join("end"), folder.path().join("environment"));
    let script = format!(
        "env >\"$THE_ENVIRONMENT.draft\" && mv \"$THE_ENVIRONMENT.draft\" \"$THE_ENVIRONMENT\"; {WAITS}"
    );
    let child = scene
        .exec(&[
            "--azure-request-url",
            "--renew-after",
            "1",
            "--",
            "sh",
            "-c",
            &script,
        ])
        .env("THE_END", &end)
        .env("THE_ENVIRONMENT", &environment)
        .env("ARM_OIDC_TOKEN_FILE_PATH", "of-the-runner")
        .spawn()
        .expect("it starts");
    let text = eventually(async || {
        std::fs::read_to_string(&environment).map_err(|error| error.to_string())
    })
    .await;
    let environment: BTreeMap<&str, &str> = text
        .lines()
        .filter_map(|line| line.split_once('='))
        .collect();
    assert_eq!(
        environment.get("ARM_OIDC_TOKEN_FILE_PATH"),
        None,
        "of both, it would take the file"
    );
    assert_eq!(environment["ARM_USE_OIDC"], "true");
    let (url, secret) = (
        environment["ARM_OIDC_REQUEST_URL"],
        environment["ARM_OIDC_REQUEST_TOKEN"],
    );

    let first = asks(url, secret).await.expect("a token");
    let audience = "api://AzureADTokenExchange";
    let verified = relying_party::verify(&scene.world.issuer_url(), audience, &first).await;
    assert_eq!(verified.expect("it verifies").claims["sub"], scene.azure.id);
    eventually(async || match asks(url, secret).await {
        Ok(token) if token != first => Ok(()),
        answer => Err(format!("{answer:?}")),
    })
    .await;

    let other = url.replace(&scene.azure.id, &scene.aws.group_id);
    for (url, secret, refused) in [
        (url, "", StatusCode::UNAUTHORIZED),
        (url, &secret[1..], StatusCode::UNAUTHORIZED),
        (&other, secret, StatusCode::NOT_FOUND),
    ] {
        assert_eq!(asks(url, secret).await, Err(refused), "{url}");
    }
    std::fs::write(&end, "").expect("written");
    let ran = ended(child).await;
    assert_eq!(ran.code, Some(0), "{}", ran.said);
    Client::new()
        .get(url)
        .send()
        .await
        .expect_err("nobody is there any more");
}

/// The file of the AWS identity's token, once there is one.
async fn first(scene: &Scene) -> PathBuf {
    eventually(async || {
        let folder = scene.folders().pop().ok_or("there is no folder yet")?;
        let file = folder.join(format!("{}.token", scene.aws.id));
        file.exists().then_some(file).ok_or("nor a token")
    })
    .await
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
