//! What the command gets, and what becomes of its end and of signals.

use std::collections::BTreeMap;

use bed::eventually;
use e2e::clouds::example::{CLIENT, PROVIDER, ROLE, TENANT};
use e2e::relying_party;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Child;

use crate::scene::{EXEC, Ran, Scene, ended, runs};

/// Prints its environment, and the mode and content of each file in the folder of the tokens.
const TELLS: &str = r#"
    env
    cd "$(dirname "$AWS_WEB_IDENTITY_TOKEN_FILE")"
    echo "=== $(stat -c %a .)"
    for file in *; do echo "=== $(stat -c %a "$file") $file"; cat "$file"; echo; done
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_finds_the_tokens_where_the_clouds_clients_look() {
    let scene = Scene::set().await;
    let mut exec = scene.exec(&["--", "sh", "-c", TELLS]);
    exec.env("AWS_ACCESS_KEY_ID", "of the runner")
        .env("AWS_PROFILE", "of the runner")
        .env("ARM_CLIENT_SECRET", "of the runner")
        .env("KUBE_USER", "of the runner")
        .env("AZURE_AUTHORITY_HOST", "of the runner");
    let Ran {
        code, out, said, ..
    } = runs(exec).await;
    assert_eq!((code, said.as_str()), (Some(0), ""));
    assert_eq!(scene.folders(), Vec::<std::path::PathBuf>::new());

    let (environment, files) = out.split_once("=== 700\n").expect("the folder is private");
    let environment: BTreeMap<_, _> = environment
        .lines()
        .filter_map(|line| line.split_once('='))
        .collect();
    let files: BTreeMap<_, _> = files
        .split("=== 600 ")
        .skip(1)
        .filter_map(|file| file.split_once('\n'))
        .map(|(name, content)| (name, content.trim()))
        .collect();
    assert!(!out.contains("=== 644"), "{out}");
    let named = |variable: &str| {
        let name = environment[variable].rsplit('/').next();
        files[name.expect("a path")]
    };
    for (variable, value) in [
        ("AWS_ROLE_ARN", ROLE),
        ("AWS_ROLE_SESSION_NAME", scene.job.job.id.as_str()),
        ("ARM_USE_OIDC", "true"),
        ("ARM_CLIENT_ID", CLIENT),
        ("ARM_TENANT_ID", TENANT),
        ("AZURE_CLIENT_ID", CLIENT),
        ("AZURE_AUTHORITY_HOST", "of the runner"),
    ] {
        assert_eq!(environment.get(variable), Some(&value), "{variable}");
    }
    for absent in [
        "THARSIS_JOB_TOKEN",
        "AWS_ACCESS_KEY_ID",
        "AWS_PROFILE",
        "ARM_CLIENT_SECRET",
        "ARM_OIDC_TOKEN",
        "KUBE_USER",
    ] {
        assert_eq!(environment.get(absent), None, "{absent}");
    }
    assert_eq!(environment["KUBE_TOKEN"], named("KUBE_TOKEN_FILE"));
    assert!(named("AWS_CONFIG_FILE").contains("[profile acme/deployer]"));
    assert!(named("GOOGLE_APPLICATION_CREDENTIALS").contains(PROVIDER));
    assert!(named("THARSIS_KUBECONFIG").contains("acme/cluster"));
    let google = format!("https://iam.googleapis.com/{PROVIDER}");
    let google_token = format!("{}.token", scene.google.id);
    for (audience, identity, token) in [
        ("aws", &scene.aws, named("AWS_WEB_IDENTITY_TOKEN_FILE")),
        (
            "api://AzureADTokenExchange",
            &scene.azure,
            named("AZURE_FEDERATED_TOKEN_FILE"),
        ),
        (&google, &scene.google, files[google_token.as_str()]),
        ("kubernetes", &scene.kubernetes, environment["KUBE_TOKEN"]),
        (
            "tharsis",
            &scene.tharsis,
            named("THARSIS_SERVICE_ACCOUNT_TOKEN_FILE"),
        ),
    ] {
        let verified = relying_party::verify(&scene.world.issuer_url(), audience, token).await;
        assert_eq!(verified.expect("it verifies").claims["sub"], identity.id);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn its_exit_code_is_ours() {
    let scene = Scene::set().await;
    for (command, code) in [
        (&["sh", "-c", "exit 7"][..], 7),
        (&["sh", "-c", "kill -KILL $$"], 137),
        (&["/"], 126),
        (&["no-such-command"], 127),
    ] {
        let arguments: Vec<&str> = ["--"].iter().chain(command).copied().collect();
        let ran = runs(scene.exec(&arguments)).await;
        assert_eq!(ran.code, Some(code), "{command:?}: {}", ran.said);
        assert!(scene.folders().is_empty(), "{command:?}");
    }
    // Also where the folder is gone already, or can't be removed.
    for (command, code, told) in [
        ("rm -r \"$FOLDER\"; exit 7", 7, false),
        ("rm -r \"$FOLDER\"; touch \"$FOLDER\"; exit 7", 7, true),
        ("rm -r \"$FOLDER\"; touch \"$FOLDER\"", 73, true),
    ] {
        let command = format!("FOLDER=$(dirname \"$AWS_WEB_IDENTITY_TOKEN_FILE\"); {command}");
        let ran = runs(scene.exec(&["--", "sh", "-c", &command])).await;
        assert_eq!(ran.code, Some(code), "{command}: {}", ran.said);
        assert_eq!(ran.said.contains("stays behind"), told, "{}", ran.said);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runtime_folder_that_can_t_be_used_is_not_used() {
    let scene = Scene::set().await;
    let folder = tempfile::tempdir().expect("a folder");
    let mut exec = scene.exec(&["--", "sh", "-c", "echo \"$AWS_WEB_IDENTITY_TOKEN_FILE\""]);
    exec.env("XDG_RUNTIME_DIR", "/proc")
        .env("TMPDIR", folder.path());
    let ran = runs(exec).await;
    assert_eq!(ran.code, Some(0), "{}", ran.said);
    let file = std::path::Path::new(&ran.out);
    assert!(file.starts_with(folder.path()), "{}", ran.out);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_name_of_the_temporary_folder_is_none() {
    let scene = Scene::set().await;
    let here = tempfile::tempdir().expect("a folder");
    let mut exec = scene.exec(&["--", "sh", "-c", "echo \"$AWS_WEB_IDENTITY_TOKEN_FILE\""]);
    exec.env("XDG_RUNTIME_DIR", "/proc")
        .env("TMPDIR", "")
        .current_dir(here.path());
    let ran = runs(exec).await;
    assert_eq!(ran.code, Some(0), "{}", ran.said);
    let file = std::path::Path::new(&ran.out);
    assert!(
        file.is_absolute() && !file.starts_with(here.path()),
        "{}",
        ran.out
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_its_identity_the_command_is_nobody_rather_than_the_runner() {
    let scene = Scene::set().await;
    for refused in [&scene.aws, &scene.google] {
        scene.admin.restricts(&refused.id, &["dev/bob"]).await;
    }
    let home = tempfile::tempdir().expect("a folder");
    std::fs::create_dir(home.path().join(".aws")).expect("made");
    for file in ["config", "credentials"] {
        let keys = "[default]\nregion = eu-west-1\naws_access_key_id = AKIDRUNNER\n";
        std::fs::write(home.path().join(".aws").join(file), keys).expect("written");
    }
    let tells = "cat \"$AWS_CONFIG_FILE\" \"$AWS_SHARED_CREDENTIALS_FILE\"
        echo \"${AWS_ACCESS_KEY_ID-} ${AWS_WEB_IDENTITY_TOKEN_FILE-} $ARM_CLIENT_ID\"
        test -e \"$GOOGLE_APPLICATION_CREDENTIALS\" || echo \"$AWS_EC2_METADATA_DISABLED\"
        case \"$GOOGLE_APPLICATION_CREDENTIALS\" in \"$XDG_RUNTIME_DIR\"/*) echo nowhere;; esac";
    let ran = eventually(async || {
        let mut exec = scene.exec(&["--skip-refused", "--", "sh", "-c", tells]);
        exec.env("AWS_ACCESS_KEY_ID", "of the runner")
            .env("HOME", home.path())
            .env("AWS_WEB_IDENTITY_TOKEN_FILE", "of the runner");
        let ran = runs(exec).await;
        match ran.said.matches("going on without it").count() {
            2 => Ok(ran),
            _ => Err("the rules are not known to the issuer yet"),
        }
    })
    .await;
    let region = "[default]\nregion = eu-west-1\n";
    let wanted = format!("{region}{region}  {CLIENT}\ntrue\nnowhere\n");
    assert_eq!(ran.out, wanted, "{}", ran.said);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_can_t_be_read_of_aws_s_configuration_is_as_if_it_were_not_there() {
    let scene = Scene::set().await;
    let folder = tempfile::tempdir().expect("a folder");
    let latin = folder.path().join("latin");
    std::fs::write(&latin, b"# f\xfcr alle\n[other]\nregion = eu-west-1\n").expect("written");
    let tells = "cat \"$AWS_SHARED_CREDENTIALS_FILE\"; grep -c '^.profile' \"$AWS_CONFIG_FILE\"";
    let mut exec = scene.exec(&["--", "sh", "-c", tells]);
    exec.env("AWS_CONFIG_FILE", folder.path())
        .env("AWS_SHARED_CREDENTIALS_FILE", &latin);
    let ran = runs(exec).await;
    assert_eq!(ran.code, Some(0), "{}", ran.said);
    assert!(ran.said.contains("going on without AWS's"), "{}", ran.said);
    let wanted = "[other]\nregion = eu-west-1\n1\n";
    assert!(ran.out.ends_with(wanted), "{}", ran.out);
}

/// Waits for what the command writes.
async fn writes(child: &mut Child, line: &str) {
    let out = child.stdout.as_mut().expect("it is read");
    let mut lines = BufReader::with_capacity(1, out).lines();
    while let Some(next) = lines.next_line().await.expect("it can be read") {
        if next == line {
            return;
        }
    }
    panic!("it never wrote {line}");
}

pub(crate) fn sends(child: &Child, signal: Signal) {
    let id = child.id().and_then(|id| i32::try_from(id).ok());
    let id = id.and_then(Pid::from_raw).expect("it runs");
    kill_process(id, signal).expect("it is ours");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signal_is_the_command_s() {
    let scene = Scene::set().await;
    for signal in [Signal::INT, Signal::TERM, Signal::HUP, Signal::USR1] {
        // It takes its time, as Terraform does, and then says how it went.
        const CAREFUL: &str = "trap 'echo asked; sleep 0.1; exit 3' INT TERM HUP USR1; echo ready; \
                               while :; do sleep 0.02; done";
        let mut child = scene
            .exec(&["--", "sh", "-c", CAREFUL])
            .spawn()
            .expect("it starts");
        writes(&mut child, "ready").await;
        sends(&child, signal);
        let ran = ended(child).await;
        assert_eq!(
            (ran.code, ran.out.as_str()),
            (Some(3), "asked\n"),
            "{signal:?}"
        );
        assert!(scene.folders().is_empty(), "{signal:?}");
    }
    // Those that would end us alone ask the command to end.
    for signal in ["ALRM", "VTALRM", "PROF", "XCPU", "IO", "PWR", "40"] {
        let asked = "trap 'exit 3' TERM; echo ready; while :; do sleep 0.02; done";
        let mut child = scene
            .exec(&["--", "sh", "-c", asked])
            .spawn()
            .expect("it starts");
        writes(&mut child, "ready").await;
        let kill = format!("kill -{signal} {}", child.id().expect("it runs"));
        let sent = std::process::Command::new("sh")
            .args(["-c", &kill])
            .status();
        assert!(sent.expect("sh runs").success(), "{signal}");
        assert_eq!(ended(child).await.code, Some(3), "{signal}");
        assert!(scene.folders().is_empty(), "{signal}");
    }
    // One that does not listen to it is ended by it, and we say so as a shell would.
    let mut child = scene
        .exec(&["--", "sh", "-c", "echo ready; exec sleep 60"])
        .spawn()
        .expect("it starts");
    writes(&mut child, "ready").await;
    sends(&child, Signal::TERM);
    assert_eq!(ended(child).await.signal, Some(15));
    assert!(scene.folders().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_command_has_left_behind_is_asked_to_end_too() {
    let scene = Scene::set().await;
    // The shell does not wait for what it has in front.
    let starts = "sh -c 'echo $$ >\"$NUMBER\"; echo ready; exec sleep 1000 >/dev/null 2>&1'; :";
    let number = tempfile::NamedTempFile::new().expect("a file");
    let mut child = scene
        .exec(&["--", "sh", "-c", starts])
        .env("NUMBER", number.path())
        .spawn()
        .expect("it starts");
    writes(&mut child, "ready").await;
    sends(&child, Signal::TERM);
    assert_eq!(ended(child).await.signal, Some(15));
    let number = std::fs::read_to_string(number.path()).expect("its number");
    eventually(async || {
        let status = std::fs::read_to_string(format!("/proc/{}/stat", number.trim()));
        match status {
            // Nobody may be there to reap it.
            Ok(status) if !status.contains(") Z ") => Err(status),
            _ => Ok(()),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_to_be_ignored_is_ignored_by_the_command_too() {
    let scene = Scene::set().await;
    let end = tempfile::tempdir().expect("a folder");
    let temporary = end.path().join("temporary");
    std::fs::create_dir(&temporary).expect("made");
    let end = end.path().join("end");
    let waits = "echo ready; until [ -e \"$THE_END\" ]; do sleep 0.02; done; exit 7";
    let mut child = scene
        .program("sh")
        .args(["-c", "trap '' HUP; exec \"$0\" \"$@\"", EXEC])
        .args(["--", "sh", "-c", waits])
        .env("THE_END", &end)
        .env("TMPDIR", &temporary)
        .spawn()
        .expect("it starts");
    writes(&mut child, "ready").await;
    sends(&child, Signal::HUP);
    // That of the session is gone when the session is.
    assert!(scene.folders().is_empty());
    let folders = std::fs::read_dir(&temporary).expect("read");
    assert_eq!(folders.count(), 1);
    std::fs::write(&end, "").expect("written");
    let ran = ended(child).await;
    assert_eq!(ran.code, Some(7), "{}", ran.said);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signal_before_the_command_runs_ends_it_all() {
    let mut scene = Scene::set().await;
    scene.world.stops(e2e::Service::Issuer).await;
    let child = scene
        .exec(&["--patience", "60", "--", "true"])
        .spawn()
        .expect("it starts");
    eventually(async || match scene.folders().len() {
        1 => Ok(()),
        count => Err(format!("{count} folders")),
    })
    .await;
    sends(&child, Signal::TERM);
    let ran = ended(child).await;
    assert_eq!(ran.signal, Some(15), "{}", ran.said);
    assert!(scene.folders().is_empty());
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_is_asked_to_end_when_we_are_killed() {
    let scene = Scene::set().await;
    let folder = tempfile::tempdir().expect("a folder");
    let asked = folder.path().join("asked");
    let tells = "trap 'touch \"$ASKED\"; exit' TERM; echo ready; while :; do sleep 0.02; done";
    let mut child = scene
        .exec(&["--", "sh", "-c", tells])
        .env("ASKED", &asked)
        .spawn()
        .expect("it starts");
    writes(&mut child, "ready").await;
    sends(&child, Signal::KILL);
    eventually(async || asked.exists().then_some(()).ok_or("it was not asked")).await;
}

/// Asks for the end of what runs in a terminal of its own, as it is told; says how often the command was asked, and how it
/// ended.
const ASKS: &str = r#"
import os, pty, signal, sys
child, terminal = pty.fork()
if child == 0:
    os.execv(sys.argv[3], sys.argv[3:])
out = b""
while b"ready" not in out:
    out += os.read(terminal, 1024)
whom, how = sys.argv[1], getattr(signal, sys.argv[2])
if whom == "key":
    os.write(terminal, b"\x03")
elif whom == "process":
    os.kill(child, how)
else:
    os.killpg(child, how)
try:
    while more := os.read(terminal, 1024):
        out += more
except OSError:
    pass  # nobody has the terminal any more
_, status = os.waitpid(child, 0)
print(out.decode().split()[-2:], os.waitstatus_to_exitcode(status))
"#;

/// Says how often it was asked to end: Terraform gives up at the second time.
const COUNTS: &str = r#"
import os, signal, threading
asks = [signal.SIGINT, signal.SIGTERM]
signal.pthread_sigmask(signal.SIG_BLOCK, asks)
# Said once it waits for the signal: two that came before would be one.
threading.Timer(0.1, print, [f"ready {os.getppid()}."], {"flush": True}).start()
asked = 0
while signal.sigtimedwait(asks, 0.5 if asked else 60):
    asked += 1
print(f"\nasked {asked}")
exit(3)
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_a_terminal_a_key_and_whoever_else_ask_once() {
    let scene = Scene::set().await;
    for (whom, how) in [
        ("key", "SIGINT"),
        ("process", "SIGINT"),
        ("group", "SIGINT"),
        ("group", "SIGTERM"),
    ] {
        let mut python = scene.program("python3");
        python.args(["-c", ASKS, whom, how, EXEC, "--", "python3", "-c", COUNTS]);
        let ran = runs(python).await;
        assert_eq!(ran.out, "['asked', '1'] 3\n", "{whom} {how}: {}", ran.said);
        assert!(scene.folders().is_empty());
    }
}

/// In a terminal, ends what a script of a shell waits for; says whether the script goes on, and how the shell ends.
const ENDS_ONE_OF_A_SCRIPT: &str = r#"
import os, pty, sys
child, terminal = pty.fork()
if child == 0:
    os.execvp("bash", ["bash", "-c", '"$@"; echo next', "bash", *sys.argv[1:]])
out = b""
while b"ready" not in out:
    out += os.read(terminal, 1024)
os.write(terminal, b"\x03")
try:
    while more := os.read(terminal, 1024):
        out += more
except OSError:
    pass  # nobody has the terminal any more
_, status = os.waitpid(child, 0)
print("next" in out.decode(), os.waitstatus_to_exitcode(status))
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_script_ends_with_the_command_that_a_key_ended() {
    let scene = Scene::set().await;
    let mut python = scene.program("python3");
    python.args(["-c", ENDS_ONE_OF_A_SCRIPT, EXEC]);
    python.args(["--", "sh", "-c", "echo ready; exec sleep 1000"]);
    let ran = runs(python).await;
    assert_eq!(ran.out, "False -2\n", "{}", ran.said);
    assert!(scene.folders().is_empty());
}

/// In a terminal that stops who writes from behind, runs from behind what has something to say.
const SAYS_FROM_BEHIND: &str = r#"
import os, pty, signal, sys
child, terminal = pty.fork()
if child == 0:
    os.execvp("sh", ["sh", "-mc", 'stty tostop; "$@" & wait $!; echo "ended $?"', "sh", *sys.argv[1:]])
signal.alarm(30)
out = b""
try:
    while more := os.read(terminal, 1024):
        out += more
except OSError:
    pass  # nobody has the terminal any more
os.waitpid(child, 0)
print("stays behind" in out.decode(), out.decode().split()[-2:])
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_it_says_from_behind_does_not_stop_it() {
    let scene = Scene::set().await;
    let command = "FOLDER=$(dirname \"$AWS_WEB_IDENTITY_TOKEN_FILE\")
        rm -r \"$FOLDER\"; touch \"$FOLDER\"; exit 7";
    let mut python = scene.program("python3");
    python.args(["-c", SAYS_FROM_BEHIND, EXEC, "--", "sh", "-c", command]);
    let ran = runs(python).await;
    assert_eq!(ran.out, "True ['ended', '7']\n", "{}", ran.said);
}

/// In a terminal, but not in front there, asks the whole group to end.
const ASKS_BEHIND: &str = r#"
import os, pty, re, signal, sys
child, terminal = pty.fork()
if child == 0:
    os.execvp("sh", ["sh", "-mc", '"$@" & wait $!; echo "ended $?"', "sh", *sys.argv[1:]])
out = b""
while not (ready := re.search(rb"ready (\d+)\.", out)):
    out += os.read(terminal, 1024)
os.killpg(int(ready[1]), signal.SIGTERM)
try:
    while more := os.read(terminal, 1024):
        out += more
except OSError:
    pass  # nobody has the terminal any more
os.waitpid(child, 0)
print(out.decode().split()[-4:])
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signal_to_the_group_asks_once_also_behind_a_terminal() {
    let scene = Scene::set().await;
    let mut python = scene.program("python3");
    python.args(["-c", ASKS_BEHIND, EXEC, "--", "python3", "-c", COUNTS]);
    let ran = runs(python).await;
    let wanted = "['asked', '1', 'ended', '3']\n";
    assert_eq!(ran.out, wanted, "{}", ran.said);
    assert!(scene.folders().is_empty());
}

/// Starts a script in the background of a shell, and brings it to the front: before it wants to read, or once it has
/// stopped for that. Says what the command and the rest of the script read.
const BRINGS_TO_THE_FRONT: &str = r#"
import os, pty, re, sys, time
when, go, program = sys.argv[1:]
child, terminal = pty.fork()
if child == 0:
    os.execvp("bash", ["bash", "--norc", "-i"])
out = ""
def until(words):
    global out
    while not (found := re.search(words, out)):
        out += os.read(terminal, 1024).decode()
    return found
def types(line):
    os.write(terminal, line.encode() + b"\n")
command = f"echo of=$PPID.; until [ -e {go} ]; do sleep 0.02; done; read x; echo got=$x."
script = go + ".sh"
with open(script, "w") as file:
    print(f"{program} -- sh -c '{command}'\nread y; echo then=$y.", file=file)
types(f"sh {script} &")
ours = until(r"of=(\d+)\.")[1]
if when == "stopped":
    open(go, "w").close()
    while " T " not in open(f"/proc/{ours}/stat").read():
        time.sleep(0.02)
types("fg")
until(re.escape(f"sh {script}\r\n"))
open(go, "w").close()
types("yes")
until(r"got=yes\.")
types("too")
until(r"then=too\.")
types("exit")
os.waitpid(child, 0)
print("it was read")
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_brought_to_the_front_reads_from_the_terminal() {
    let scene = Scene::set().await;
    let folder = tempfile::tempdir().expect("a folder");
    for when in ["running", "stopped"] {
        let go = folder.path().join(when);
        let mut python = scene.program("python3");
        python.args(["-c", BRINGS_TO_THE_FRONT, when]);
        python.arg(go).arg(EXEC);
        let ran = runs(python).await;
        assert_eq!(ran.out, "it was read\n", "{when}: {}", ran.said);
        assert!(scene.folders().is_empty(), "{when}");
    }
}

/// In a terminal, runs a script of which the command and the rest read, and installs the program anew meanwhile.
#[cfg(target_os = "linux")]
const READS_ON: &str = r#"
import os, pty, shutil, signal, sys
ours, program = sys.argv[1:]
shutil.copy(program, ours)
script = f"{ours} -- sh -c 'echo ready; read x; echo got=$x.'; read y; echo then=$y."
child, terminal = pty.fork()
if child == 0:
    os.execvp("bash", ["bash", "-c", script])
signal.alarm(30)
out = ""
def until(words):
    global out
    while words not in out:
        out += os.read(terminal, 1024).decode()
until("ready")
shutil.copy(program, ours + ".new")
os.rename(ours + ".new", ours)
os.write(terminal, b"yes\n")
until("got=yes.")
os.write(terminal, b"too\n")
until("then=too.")
os.waitpid(child, 0)
print("it was read")
"#;

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_terminal_is_given_back_also_where_another_was_installed_meanwhile() {
    let scene = Scene::set().await;
    let folder = tempfile::tempdir().expect("a folder");
    let ours = folder.path().join("tharsis-exec");
    let mut python = scene.program("python3");
    python.args(["-c", READS_ON]).arg(ours).arg(EXEC);
    let ran = runs(python).await;
    assert_eq!(ran.out, "it was read\n", "{}", ran.said);
    assert!(scene.folders().is_empty());
}
