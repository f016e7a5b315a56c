//! What is refused before the command runs, what it says, and with which exit code.

use std::ffi::OsStr;
use std::net::TcpListener;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bed::eventually;
use e2e::Service;
use e2e::user::job;
use tokio::time::timeout;

use crate::scene::{EXEC, Ran, Scene, runs};

#[track_caller]
fn failed(ran: &Ran, code: i32, words: &str) {
    assert_eq!(ran.code, Some(code), "{}", ran.said);
    assert!(ran.said.contains(words), "{}", ran.said);
    assert_eq!(ran.out, "", "the command did not run");
}

const SPEAKS: [&str; 3] = ["--", "echo", "it runs"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_failure_has_its_exit_code() {
    let mut scene = Scene::set().await;
    let mut exec = scene.exec(&SPEAKS);
    exec.env_remove("THARSIS_JOB_TOKEN");
    failed(&runs(exec).await, 64, "there is no job token");
    failed(&runs(scene.exec(&["terraform"])).await, 64, "Usage:");
    let mut exec = scene.exec_as("");
    exec.env("THARSIS_JOB_TOKEN_FILE", "/nowhere").args(SPEAKS);
    failed(&runs(exec).await, 64, "/nowhere");
    let empty = tempfile::NamedTempFile::new().expect("a file");
    let mut exec = scene.exec_as("");
    exec.env("THARSIS_JOB_TOKEN_FILE", empty.path())
        .args(SPEAKS);
    failed(&runs(exec).await, 64, "holds no token");

    let mut exec = scene.exec_as("hunter2");
    exec.args(SPEAKS);
    let ran = runs(exec).await;
    failed(&ran, 77, "does not take the job token");
    assert!(!ran.said.contains("hunter2"));

    let spare = scene.admin.creates_identity("acme/spare").await;
    let ran = runs(scene.exec(&["token", &spare.trn])).await;
    failed(&ran, 77, "NOT_ASSIGNED");
    let ran = runs(scene.exec(&["token", "acme/nope"])).await;
    failed(&ran, 77, "RESOURCE_NOT_FOUND");

    let empty = scene.admin.creates_workspace("acme/empty").await;
    let opened = scene.admin.opens_job(&empty.id).await;
    let mut exec = scene.exec_as(&opened.token);
    exec.args(SPEAKS);
    failed(&runs(exec).await, 78, "has no managed identities");
    let mut exec = scene.exec_as(&opened.token);
    exec.arg("--allow-none").args(SPEAKS);
    let ran = runs(exec).await;
    assert_eq!((ran.code, ran.out.as_str()), (Some(0), "it runs\n"));

    let mut short = job(&empty.id);
    short.job.get_or_insert_default().max_duration = Some(prost_types::Duration {
        seconds: 1,
        nanos: 0,
    });
    let short = scene.admin.asks(short).await.expect("opened").job_token;
    let ran = eventually(async || {
        let mut exec = scene.exec_as(&short);
        exec.arg("--allow-none").args(SPEAKS);
        let ran = runs(exec).await;
        if ran.code == Some(0) {
            Err("it is not over yet")
        } else {
            Ok(ran)
        }
    })
    .await;
    failed(&ran, 77, "the job is over");

    scene.world.stops(Service::Issuer).await;
    let mut exec = scene.exec(&["--patience", "1"]);
    exec.args(SPEAKS);
    failed(&runs(exec).await, 69, "does not answer");
    assert!(scene.folders().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_silent_is_waited_for_no_longer_than_patience_lasts() {
    let scene = Scene::set().await;
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", silent.local_addr().expect("it is bound"));
    let mut exec = scene.exec(&["--patience", "1"]);
    exec.env("THARSIS_ISSUER_GRPC_URL", url).args(SPEAKS);
    let begun = Instant::now();
    failed(&runs(exec).await, 69, "does not answer");
    let taken = begun.elapsed();
    assert!(taken < Duration::from_secs(6), "{taken:?}");
}

/// A pipe with a name, which nobody writes.
pub(crate) fn pipe(folder: &Path) -> PathBuf {
    let pipe = folder.join("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(made.expect("mkfifo runs").success());
    pipe
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pipe_is_waited_for_no_longer_than_patience_lasts_or_a_signal_comes() {
    let scene = Scene::set().await;
    let folder = tempfile::tempdir().expect("a folder");
    let pipe = pipe(folder.path());
    let exec = |patience| {
        let mut exec = scene.exec_as("");
        exec.env("THARSIS_JOB_TOKEN_FILE", &pipe)
            .args(["--patience", patience])
            .args(SPEAKS);
        exec
    };
    let begun = Instant::now();
    let ran = timeout(Duration::from_secs(8), runs(exec("1"))).await;
    failed(&ran.expect("it does not wait"), 64, "nobody writes");
    let mut waits = scene.program("timeout");
    // It is asked to end, and killed if it does not.
    waits
        .args(["-k", "5", "-s", "TERM", "1", EXEC, "--patience", "60"])
        .args(SPEAKS)
        .env_remove("THARSIS_JOB_TOKEN")
        .env("THARSIS_JOB_TOKEN_FILE", &pipe);
    failed(&runs(waits).await, 124, "ended by signal 15");
    let taken = begun.elapsed();
    assert!(taken < Duration::from_secs(8), "{taken:?}");

    let mut exec = scene.exec(&SPEAKS);
    exec.env("AWS_CONFIG_FILE", &pipe);
    let ran = timeout(Duration::from_secs(8), runs(exec)).await;
    failed(&ran.expect("it does not wait"), 64, "is a pipe");
    assert!(scene.folders().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_of_which_nobody_can_be_told_is_not_used() {
    let scene = Scene::set().await;
    let folder = tempfile::tempdir().expect("a folder");
    let odd = folder.path().join(OsStr::from_bytes(b"b\xffd"));
    std::fs::create_dir(&odd).expect("made");
    let mut exec = scene.exec(&SPEAKS);
    exec.env("XDG_RUNTIME_DIR", "/proc").env("TMPDIR", &odd);
    failed(&runs(exec).await, 73, "not UTF-8");
    assert_eq!(std::fs::read_dir(&odd).expect("read").count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_may_not_grow_are_an_error_and_leave_nothing_behind() {
    let scene = Scene::set().await;
    let mut shell = scene.program("sh");
    shell
        .args(["-c", "ulimit -f 0; exec \"$0\" \"$@\"", EXEC])
        .args(SPEAKS);
    failed(&runs(shell).await, 73, "");
    assert!(scene.folders().is_empty());
    // To the command it is what it was.
    let ran = runs(scene.exec(&["--", "sh", "-c", "kill -XFSZ $$; :"])).await;
    assert_eq!(ran.code, Some(153), "{}", ran.said);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_root_certificates_it_says_so() {
    let scene = Scene::set().await;
    let mut exec = scene.exec(&SPEAKS);
    exec.env("THARSIS_ISSUER_GRPC_URL", "https://127.0.0.1")
        .env("SSL_CERT_FILE", "/nowhere");
    failed(&runs(exec).await, 64, "no root certificates");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_exit_code_is_the_same_where_nobody_hears_why() {
    let scene = Scene::set().await;
    let (nobody, told) = std::io::pipe().expect("a pipe");
    drop(nobody);
    let mut exec = scene.exec(&SPEAKS);
    exec.env_remove("THARSIS_JOB_TOKEN").stderr(told);
    failed(&runs(exec).await, 64, "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn help_says_what_is_to_be_known() {
    let scene = Scene::set().await;
    let ran = runs(scene.exec(&["--help"])).await;
    assert_eq!(ran.code, Some(0));
    for word in [
        "tharsis-exec [OPTIONS] -- COMMAND",
        "THARSIS_JOB_TOKEN_FILE",
        "Exit codes",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
    ] {
        assert!(ran.out.contains(word), "{word}: {}", ran.out);
    }
}
