//! `tharsis-exec env` and `tharsis-exec token`.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use bed::eventually;
use e2e::clouds::example::ROLE;
use e2e::relying_party;
use e2e::user::unassignment;

use crate::scene::{EXEC, Ran, Scene, ended, read, runs};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shell_evaluates_the_exports_and_renews_in_place() {
    const TWICE: &str = r#"
        eval "$("$EXEC" env)" && cp "$AWS_WEB_IDENTITY_TOKEN_FILE" "$THARSIS_EXEC_FOLDER/first" &&
        eval "$("$EXEC" env)" && echo "$AWS_WEB_IDENTITY_TOKEN_FILE" && echo "$AWS_ROLE_ARN" &&
        echo "$AWS_EC2_METADATA_DISABLED $ARM_USE_CLI"
    "#;
    let scene = Scene::set().await;
    let mut shell = scene.program("sh");
    shell.args(["-c", TWICE]).env("EXEC", EXEC);
    // The user's own guards.
    shell
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .env("ARM_USE_CLI", "false");
    let ran = runs(shell).await;
    assert_eq!((ran.code, ran.said.as_str()), (Some(0), ""));
    let mut lines = ran.out.lines();
    let file = lines.next().expect("the file");
    assert_eq!(lines.next(), Some(ROLE));
    assert_eq!(lines.next(), Some("true false"));
    let folders = scene.folders();
    assert_eq!(folders.len(), 1, "the second uses the folder of the first");
    let (first, second) = (read(folders[0].join("first")), read(file));
    assert_ne!(first, second);
    for token in [first, second] {
        let verified = relying_party::verify(&scene.world.issuer_url(), "aws", &token).await;
        verified.expect("it verifies");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_second_time_an_identity_that_was_lost_is_lost_in_the_shell_too() {
    const TWICE: &str = r#"
        eval "$("$EXEC" env)" && mine="$AWS_WEB_IDENTITY_TOKEN_FILE" && test -e "$mine" && echo had &&
        cd "$GO" && touch had && until [ -e lost ]; do sleep 0.02; done &&
        eval "$("$EXEC" env)" && ! test -e "$mine" &&
        echo "${AWS_WEB_IDENTITY_TOKEN_FILE-} ${AWS_ROLE_ARN-} ${AWS_CONFIG_FILE-} $ARM_USE_OIDC"
    "#;
    let scene = Scene::set().await;
    let go = tempfile::tempdir().expect("a folder");
    let mut shell = scene.program("sh");
    shell.args(["-c", TWICE]).env("EXEC", EXEC);
    let child = shell.env("GO", go.path()).spawn().expect("it starts");
    eventually(async || {
        let had = go.path().join("had").exists();
        had.then_some(()).ok_or("it has none yet")
    })
    .await;
    let workspace = &scene.job.job.workspace_id;
    let unassignment = unassignment(&scene.aws.id, workspace);
    scene.admin.asks(unassignment).await.expect("unassigned");
    eventually(
        async || match runs(scene.exec(&["token", &scene.aws.id])).await {
            Ran { code: Some(0), .. } => Err("it is assigned still"),
            _ => Ok(()),
        },
    )
    .await;
    std::fs::write(go.path().join("lost"), "").expect("written");
    let ran = ended(child).await;
    assert_eq!(ran.out, "had\n   true\n", "{}", ran.said);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_rid_of_the_tokens_gets_new_ones() {
    const AFRESH: &str = r#"
        eval "$("$EXEC" env)" && rm -r "$THARSIS_EXEC_FOLDER" && gone="$AWS_CONFIG_FILE" &&
        eval "$("$EXEC" env)" && test "$AWS_CONFIG_FILE" != "$gone" && cat "$AWS_CONFIG_FILE"
    "#;
    let scene = Scene::set().await;
    let mut shell = scene.program("sh");
    shell.args(["-c", AFRESH]).env("EXEC", EXEC);
    let ran = runs(shell).await;
    assert_eq!((ran.code, ran.said.as_str()), (Some(0), ""));
    assert!(ran.out.contains(ROLE), "{}", ran.out);
    assert_eq!(scene.folders().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn somebody_else_s_folder_stays_as_it_is() {
    let scene = Scene::set().await;
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::set_permissions(folder.path(), Permissions::from_mode(0o700)).expect("set");
    let theirs = ["github.token", "kubeconfig", "aws-config"].map(|name| folder.path().join(name));
    for file in &theirs {
        std::fs::write(file, "of the user").expect("written");
    }
    for (named, code) in [(folder.path(), 73), (Path::new("."), 64)] {
        let mut exec = scene.exec(&["env"]);
        exec.env("THARSIS_EXEC_FOLDER", named)
            .current_dir(folder.path());
        let ran = runs(exec).await;
        assert_eq!(ran.code, Some(code), "{}", ran.said);
        assert!(ran.said.contains("THARSIS_EXEC_FOLDER"), "{}", ran.said);
        for file in &theirs {
            assert_eq!(read(file), "of the user", "{}", file.display());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_shell_evaluates_fails_as_we_do() {
    let scene = Scene::set().await;
    let mut shell = scene.program("sh");
    shell
        .args(["-c", r#"eval "$("$EXEC" env)"; echo "$?""#])
        .env("EXEC", EXEC)
        .env("THARSIS_JOB_TOKEN", "hunter2");
    let ran = runs(shell).await;
    assert_eq!(ran.out, "77\n", "{}", ran.said);
    for wrong in ["env --nope", "--patience 0 env", "env -- true", "env more"] {
        let mut shell = scene.program("sh");
        let script = format!(r#"eval "$("$EXEC" {wrong})"; echo "$?""#);
        shell.args(["-c", &script]).env("EXEC", EXEC);
        let ran = runs(shell).await;
        assert_eq!(ran.out, "64\n", "{wrong}: {}", ran.said);
    }
    let helps = runs(scene.exec(&["env", "--help"])).await;
    assert_eq!(helps.code, Some(0));
    assert!(!helps.out.contains("\n(exit"), "{}", helps.out);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_held_before_holds_where_it_fails() {
    let scene = Scene::set().await;
    let ran = runs(scene.exec(&["env"])).await;
    assert_eq!(ran.code, Some(0), "{}", ran.said);
    let folder = scene.folders().pop().expect("its folder");
    let config = folder.join("aws-config");
    let before = read(&config);
    assert!(before.contains(ROLE), "{before}");
    scene.admin.restricts(&scene.aws.id, &["dev/bob"]).await;
    eventually(async || {
        let mut exec = scene.exec(&["env"]);
        exec.env("THARSIS_EXEC_FOLDER", &folder)
            .env("AWS_CONFIG_FILE", &config);
        match runs(exec).await.code {
            Some(77) => Ok(()),
            code => Err(format!("the rule is not known to the issuer yet: {code:?}")),
        }
    })
    .await;
    assert_eq!(read(&config), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_token_is_printed_by_id_path_or_trn() {
    let scene = Scene::set().await;
    for name in [&scene.aws.id, &scene.aws.trn, "acme/deployer"] {
        let ran = runs(scene.exec(&["token", name])).await;
        assert_eq!((ran.code, ran.said.as_str()), (Some(0), ""));
        let issuer = scene.world.issuer_url();
        let verified = relying_party::verify(&issuer, "aws", ran.out.trim()).await;
        assert_eq!(verified.expect("it verifies").claims["sub"], scene.aws.id);
    }
    assert!(scene.folders().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_folder_stays_that_nobody_is_told_of() {
    let scene = Scene::set().await;
    let mut shell = scene.program("sh");
    let unheard = r#""$EXEC" env >&-; echo "$?"; "$EXEC" env >/dev/null; echo "$?""#;
    shell.args(["-c", unheard]).env("EXEC", EXEC);
    let ran = runs(shell).await;
    assert_eq!(ran.out, "73\n73\n", "{}", ran.said);
    assert!(scene.folders().is_empty());
    // One that is known is renewed in silence.
    let renews = r#"eval "$("$EXEC" env)"; "$EXEC" env >/dev/null; echo "$?""#;
    let mut shell = scene.program("sh");
    shell.args(["-c", renews]).env("EXEC", EXEC);
    let ran = runs(shell).await;
    assert_eq!(ran.out, "0\n", "{}", ran.said);
}
