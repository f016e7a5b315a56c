//! A job whose workspace has an identity of each type, and the program.

use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use e2e::clouds::example::identities;
use e2e::user::OpenedJob;
use e2e::{Service, User, World};
use proto::identity::v1::configuration::Type;
use proto::identity::v1::{ManagedIdentity, TharsisConfiguration};
use tempfile::TempDir;
use tokio::process::{Child, Command};

/// `tharsis-exec`.
pub(crate) const EXEC: &str = env!("CARGO_BIN_EXE_tharsis-exec");

/// Becomes a program that ignores no signal: whoever runs the tests may, as `nohup` does.
const AS_USUAL: &str = "
import os, signal, sys
for one in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGPIPE,
            signal.SIGXFSZ):
    signal.signal(one, signal.SIG_DFL)
os.execvp(sys.argv[1], sys.argv[1:])
";

/// The job, and the folder in which the program makes its own.
pub(crate) struct Scene {
    pub(crate) world: World,
    pub(crate) admin: User,
    pub(crate) job: OpenedJob,
    pub(crate) aws: ManagedIdentity,
    pub(crate) azure: ManagedIdentity,
    pub(crate) google: ManagedIdentity,
    pub(crate) kubernetes: ManagedIdentity,
    pub(crate) tharsis: ManagedIdentity,
    runtime: TempDir,
}

impl Scene {
    pub(crate) async fn set() -> Self {
        let world = World::start().await;
        let admin = world.admin();
        admin.creates_group("acme").await;
        let web = admin.creates_workspace("acme/web").await;
        let registers = async |(name, configuration): (&str, Type)| {
            let path = format!("acme/{name}");
            let identity = admin.registers(&path, configuration).await;
            admin.assigns(&identity.id, &web.id).await;
            identity
        };
        let [aws, azure, google, kubernetes] = identities();
        let account = admin.creates_service_account("acme/ci").await;
        let tharsis = Type::Tharsis(TharsisConfiguration {
            service_account_id: account.id,
        });
        Self {
            aws: registers(aws).await,
            azure: registers(azure).await,
            google: registers(google).await,
            kubernetes: registers(kubernetes).await,
            tharsis: registers(("as-ci", tharsis)).await,
            job: admin.opens_job(&web.id).await,
            admin,
            world,
            runtime: tempfile::tempdir().expect("a folder"),
        }
    }

    /// The program, as this job.
    pub(crate) fn exec(&self, arguments: &[&str]) -> Command {
        let mut command = self.exec_as(&self.job.token);
        command.args(arguments);
        command
    }

    /// The program with another job's token.
    pub(crate) fn exec_as(&self, job_token: &str) -> Command {
        let mut command = self.program(EXEC);
        command.env("THARSIS_JOB_TOKEN", job_token);
        command
    }

    /// Any program, in the environment of this job.
    pub(crate) fn program(&self, program: &str) -> Command {
        let mut command = Command::new("python3");
        command.args(["-c", AS_USUAL, program]);
        // Whoever runs the tests may have credentials of their own.
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("XDG_RUNTIME_DIR", self.runtime.path())
            .env("THARSIS_ISSUER_GRPC_URL", self.issuer())
            .env("THARSIS_JOB_TOKEN", &self.job.token)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        command
    }

    pub(crate) fn issuer(&self) -> String {
        let environment = self.world.environment(Service::Projector);
        let found = environment
            .into_iter()
            .find(|(variable, _)| *variable == "THARSIS_ISSUER_GRPC_URL");
        found.expect("the set has an issuer").1
    }

    /// The folders that the program has now.
    pub(crate) fn folders(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.runtime.path()).expect("it can be read");
        entries
            .map(|entry| entry.expect("an entry").path())
            .collect()
    }
}

/// What a run of the program came to.
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    /// Of which it died, if not of itself.
    pub(crate) signal: Option<i32>,
    pub(crate) out: String,
    pub(crate) said: String,
}

/// To its end.
pub(crate) async fn runs(mut command: Command) -> Ran {
    ended(command.spawn().expect("it starts")).await
}

pub(crate) async fn ended(child: Child) -> Ran {
    let output = child.wait_with_output().await.expect("it ends");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ran {
        code: output.status.code(),
        signal: output.status.signal(),
        out: text(&output.stdout),
        said: text(&output.stderr),
    }
}

pub(crate) fn read(path: impl AsRef<Path>) -> String {
    std::fs::read_to_string(path).expect("it can be read")
}
