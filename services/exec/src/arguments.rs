//! The command line, and all that `--help` says.

use std::ffi::OsString;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::failure::Failure;

const AFTER_HELP: &str = "\
The command gets, by the type of each managed identity that its job's workspace has:
  AWS         AWS_ROLE_ARN, AWS_WEB_IDENTITY_TOKEN_FILE, AWS_ROLE_SESSION_NAME, an AWS_CONFIG_FILE with a profile
              of the identity's path, behind what an AWS_CONFIG_FILE of before, or ~/.aws/config, says, and an
              AWS_SHARED_CREDENTIALS_FILE: both without the credentials of the default profile
  Azure       ARM_USE_OIDC, ARM_CLIENT_ID, ARM_TENANT_ID, ARM_OIDC_TOKEN_FILE_PATH; AZURE_CLIENT_ID, AZURE_TENANT_ID,
              AZURE_FEDERATED_TOKEN_FILE
  Google      GOOGLE_APPLICATION_CREDENTIALS, CLOUDSDK_AUTH_CREDENTIAL_FILE_OVERRIDE (an external account)
  Kubernetes  KUBE_TOKEN, which stays as it is; KUBE_TOKEN_FILE; THARSIS_KUBECONFIG, with a user of the identity's path
  Tharsis     THARSIS_SERVICE_ACCOUNT_ID, THARSIS_SERVICE_ACCOUNT_TOKEN, which stays as it is;
              THARSIS_SERVICE_ACCOUNT_TOKEN_FILE
AzureRM and AzureAD read the file once, when they are configured: a longer plan or apply than the access token that they
get then is refused (AADSTS700024). With --azure-request-url they have ARM_OIDC_REQUEST_URL and ARM_OIDC_REQUEST_TOKEN
instead of the file, and ask there each time. Credentials of other kinds that a client would take first (AWS_ACCESS_KEY_ID,
ARM_CLIENT_SECRET, …) and the job token are taken out of its environment. To give it some on purpose:
tharsis-exec -- env AWS_ACCESS_KEY_ID=… COMMAND

Environment:
  THARSIS_ISSUER_GRPC_URL   the issuer: http(s)://host:port
  THARSIS_JOB_TOKEN         the job token; or
  THARSIS_JOB_TOKEN_FILE    the file that holds it; a pipe is read once
  THARSIS_EXEC_FOLDER       of `env`, which sets it: the folder to use again, if it is still there
                            (to be rid of its tokens: rm -r \"$THARSIS_EXEC_FOLDER\")
  THARSIS_EXEC_GOOGLE_STS_URL, THARSIS_EXEC_GOOGLE_IAM_CREDENTIALS_URL
                            where these of Google's are not at their public addresses

Exit codes: that of the command; 128 and the signal's number, where a signal ended it (or tharsis-exec before it ran),
which for SIGHUP, SIGINT, SIGQUIT and SIGTERM ends tharsis-exec as well, so that a script ends at a Ctrl-C;
  64   wrong arguments or environment: no job token, no issuer
  69   the issuer does not answer
  73   the files can't be written
  77   refused: the job is over, the job token is not taken, or the job does not get an identity
  78   the workspace has no managed identities
  126  the command can't be run; 127: there is no such command";

/// Runs a command with the credentials of its job's managed identities.
///
/// Each identity's token lies in a file that only this user reads, in a folder that is gone when the command ends. It is
/// renewed when two thirds of its life are over (Azure's: a third, for its SDKs go on with what they have read). Signals
/// are passed on to the command; if this is killed, the command is asked to end (SIGTERM; on Linux), and the files stay.
#[derive(Debug, Parser)]
#[command(
    name = "tharsis-exec",
    version,
    override_usage = "tharsis-exec [OPTIONS] -- COMMAND [ARGUMENT]...\n       tharsis-exec [OPTIONS] env\n       tharsis-exec [OPTIONS] token IDENTITY",
    after_help = AFTER_HELP,
    disable_help_subcommand = true
)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) asking: Asking,
    /// For ourselves: becomes the command, as the child of this process.
    #[arg(long, hide = true)]
    pub(crate) run_by: Option<i32>,
    /// For ourselves: brings the group of this process to the front of the terminal.
    #[arg(long, hide = true)]
    pub(crate) to_the_front: bool,
    /// For ourselves: ends by this signal.
    #[arg(long, hide = true)]
    pub(crate) end_by: Option<i32>,
    #[command(subcommand)]
    subcommand: Option<Printing>,
    /// The command to run, with its arguments.
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// How the issuer is asked.
#[derive(Args, Clone, Debug)]
pub(crate) struct Asking {
    /// Seconds that an issuer may not answer before the command runs.
    #[arg(
        long,
        global = true,
        value_name = "SECONDS",
        default_value = "30",
        value_parser = seconds
    )]
    pub(crate) patience: Duration,
    /// Renews each token after so many seconds, where that is sooner than it would be.
    #[arg(long, global = true, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) renew_after: Option<Duration>,
    /// Goes on without the identities that the job does not get, and says which.
    #[arg(long, global = true)]
    pub(crate) skip_refused: bool,
    /// Lets Azure's providers ask for a token each time, for they read a file only once: for runs longer than an hour.
    ///
    /// `tharsis-exec` answers them on loopback while the command runs; only who knows `ARM_OIDC_REQUEST_TOKEN` is answered.
    #[arg(long, global = true)]
    pub(crate) azure_request_url: bool,
    /// Goes on where the workspace has no managed identities.
    #[arg(long, global = true)]
    pub(crate) allow_none: bool,
}

#[derive(Debug, Subcommand)]
enum Printing {
    /// Prints the environment as exports for a shell: eval "$(tharsis-exec env)".
    ///
    /// The files stay, and the tokens in them hold until they expire: nothing renews them but the same again, which
    /// uses the same folder (`THARSIS_EXEC_FOLDER`). To be rid of them: `rm -r "$THARSIS_EXEC_FOLDER"`. Where it fails, it prints `(exit CODE)`, so that eval fails too.
    Env,
    /// Prints a token for one identity.
    Token {
        /// Its id, path or TRN.
        #[arg(value_name = "IDENTITY")]
        identity: String,
    },
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Run the command, whose first part is the program.
    Run(Vec<OsString>),
    /// Print exports.
    Env,
    /// Print a token of this identity.
    Token(String),
}

impl Arguments {
    pub(crate) fn action(self) -> Result<Action, Failure> {
        match (self.subcommand, self.command) {
            (None, command) if !command.is_empty() => Ok(Action::Run(command)),
            (Some(_), _) if self.asking.azure_request_url => Err(Failure::Usage(vec![
                "--azure-request-url is for a command: nobody answers there once tharsis-exec has ended"
                    .to_owned(),
            ])),
            (Some(Printing::Env), command) if command.is_empty() => Ok(Action::Env),
            (Some(Printing::Token { identity }), command) if command.is_empty() => {
                Ok(Action::Token(identity))
            }
            _ => Err(Failure::Usage(vec![
                "what is to be run? tharsis-exec -- COMMAND [ARGUMENT]…; see tharsis-exec --help"
                    .to_owned(),
            ])),
        }
    }
}

/// Whether what is printed is for a shell to evaluate, also where something is wrong with the rest of the arguments.
pub(crate) fn are_for_exports(arguments: &[OsString]) -> bool {
    let mut ours = arguments.iter().skip(1).take_while(|part| *part != "--");
    ours.find(|part| *part == "env" || *part == "token")
        .is_some_and(|subcommand| subcommand == "env")
}

/// A day at most: none of our tokens holds longer.
fn seconds(text: &str) -> Result<Duration, &'static str> {
    let seconds = text
        .parse()
        .ok()
        .filter(|count| (1..=86_400).contains(count));
    seconds
        .map(Duration::from_secs)
        .ok_or("must be a whole number from 1 to 86400")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(arguments: &[&str]) -> Option<Action> {
        let arguments = ["tharsis-exec"].iter().chain(arguments);
        Arguments::try_parse_from(arguments).ok()?.action().ok()
    }

    #[test]
    fn what_is_for_a_shell_is_known_of_wrong_arguments_too() {
        for (arguments, are) in [
            (&["env"][..], true),
            (&["--patience", "0", "env"], true),
            (&["env", "--nope"], true),
            (&["env", "--", "true"], true),
            (&["--", "env"], false),
            (&["token", "env", "--nope"], false),
            (&["--nope"], false),
        ] {
            let all = ["tharsis-exec"].iter().chain(arguments);
            let all: Vec<_> = all.map(OsString::from).collect();
            assert_eq!(are_for_exports(&all), are, "{arguments:?}");
        }
    }

    #[test]
    fn what_comes_behind_the_dashes_is_the_command_s() {
        let command =
            |parts: &[&str]| Some(Action::Run(parts.iter().map(OsString::from).collect()));
        assert_eq!(
            parsed(&["--", "terraform", "apply", "--help"]),
            command(&["terraform", "apply", "--help"])
        );
        assert_eq!(parsed(&["--patience", "5", "--", "env"]), command(&["env"]));
        assert_eq!(parsed(&["env"]), Some(Action::Env));
        assert_eq!(
            parsed(&["token", "acme/deployer"]),
            Some(Action::Token("acme/deployer".to_owned()))
        );
        assert_eq!(parsed(&["env", "--patience", "5"]), Some(Action::Env));
        for wrong in [
            &[][..],
            &["--"],
            &["terraform", "apply"],
            &["token"],
            &["env", "--", "terraform"],
            &["env", "--azure-request-url"],
            &["--patience", "0", "env"],
            &["--renew-after", "2d", "env"],
        ] {
            assert_eq!(parsed(wrong), None, "{wrong:?}");
        }
    }
}
