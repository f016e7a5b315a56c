//! A command with the credentials of its job's managed identities: it asks the issuer for a token for each, puts them
//! where the clouds' own clients look, and keeps them fresh until the command ends. A token is in files that only their
//! owner reads and, where a client takes it no other way, in the command's environment; it is in no message.

mod arguments;
mod child;
mod end;
mod endpoint;
mod environment;
mod failure;
mod folder;
mod fresh;
mod issuer;
mod job_token;
mod messages;
mod provider;
mod settings;
mod signals;
mod terminal;
mod token;

use std::ffi::OsString;
use std::fs::File;
use std::future::pending;
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::process::ExitCode;

use clap::Parser as _;
use tokio::runtime::Builder;

use crate::arguments::{Action, Arguments, Asking};
use crate::end::End;
use crate::endpoint::Endpoint;
use crate::environment::Environment;
use crate::failure::Failure;
use crate::folder::Folder;
use crate::issuer::{Found, Identity, Issuer};
use crate::messages::say;
use crate::settings::Settings;
use crate::signals::Signals;
use crate::token::Token;

/// Does what the arguments ask for; answers with the command's own exit code, or with one of those in `--help`.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<_> = arguments.into_iter().collect();
    let for_a_shell = arguments::are_for_exports(&arguments);
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => {
            // What can't be said on a closed output is not said.
            let _ = error.print();
            if !error.use_stderr() {
                return ExitCode::SUCCESS;
            }
            if for_a_shell {
                print_failure(failure::USAGE);
            }
            return ExitCode::from(failure::USAGE);
        }
    };
    if arguments.to_the_front {
        return terminal::to_the_front().map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS);
    }
    if let Some(signal) = arguments.end_by {
        return end::die_of(signal);
    }
    let done = match arguments.run_by {
        Some(parent) => arguments
            .action()
            .and_then(|action| become_it(action, parent)),
        None => Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|source| Failure::file("signals and connections can't be waited for", source))
            .and_then(|runtime| {
                let done = runtime.block_on(carry_out(arguments));
                // A host may be looked up still, or a pipe be read.
                runtime.shutdown_background();
                done
            }),
    };
    let end = done.unwrap_or_else(|failure| {
        say(&failure.to_string());
        if for_a_shell {
            print_failure(failure.code());
        }
        failure.end()
    });
    messages::finish();
    end.come()
}

fn become_it(action: Action, parent: i32) -> Result<End, Failure> {
    match action {
        Action::Run(command) => Err(child::become_it(&command, parent)),
        Action::Env | Action::Token(_) => Ok(End::Code(failure::USAGE)),
    }
}

async fn carry_out(arguments: Arguments) -> Result<End, Failure> {
    let asking = arguments.asking.clone();
    let action = arguments.action()?;
    let mut signals = Signals::listen(Signals::ASKING)?;
    #[cfg(target_os = "linux")]
    signals.listen_to_the_nameless();
    signals::survive_full_files()?;
    let mut settings = Settings::read(&|name| std::env::var(name).ok())?;
    settings.job_token = tokio::select! {
        token = settings.job_token.kept(asking.patience) => token?,
        signal = signals.next() => return Err(Failure::Interrupted(signal.as_raw())),
    };
    let issuer = Issuer::at(&settings, asking.patience)?;
    // Whatever is under way is dropped, with what it has written, when a signal comes before the command runs.
    let doing = async {
        match action {
            Action::Run(command) => {
                let folder = Folder::temporary()?;
                let endpoint = if asking.azure_request_url {
                    Some(Endpoint::open().await?)
                } else {
                    None
                };
                let (environment, tokens) =
                    prepare(&issuer, &asking, &settings, &folder, endpoint.as_ref()).await?;
                Ok(Some((command, folder, endpoint, environment, tokens)))
            }
            Action::Env => print_exports(&issuer, &asking, &settings)
                .await
                .map(|()| None),
            Action::Token(identity) => print_token(&issuer, &identity).await.map(|()| None),
        }
    };
    let prepared = tokio::select! {
        prepared = doing => prepared?,
        signal = signals.next() => return Err(Failure::Interrupted(signal.as_raw())),
    };
    let Some((command, folder, endpoint, environment, tokens)) = prepared else {
        return Ok(End::Code(0));
    };
    messages::step_aside().map_err(|source| Failure::file("no thread for messages", source))?;
    let identities: Vec<_> = tokens
        .iter()
        .map(|(identity, _)| identity.clone())
        .collect();
    let answers = async {
        match endpoint {
            Some(endpoint) => endpoint.serve(&folder, &identities).await,
            None => pending().await,
        }
    };
    let end = tokio::select! {
        end = child::run(&command, &environment, &mut signals) => end,
        never = fresh::keep(&issuer, &folder, tokens, asking.renew_after) => match never {},
        never = answers => match never {},
    };
    match (end, folder.remove()) {
        (Ok(End::Code(0)), Err(failure)) => Err(failure),
        (end, removed) => {
            // What became of the command counts for more.
            if let Err(failure) = removed {
                say(&failure.to_string());
            }
            end
        }
    }
}

/// Gets a token for each identity, writes the files, and says what the environment must be.
async fn prepare(
    issuer: &Issuer<'_>,
    asking: &Asking,
    settings: &Settings,
    folder: &Folder,
    endpoint: Option<&Endpoint>,
) -> Result<(Environment, Vec<(Identity, Token)>), Failure> {
    let Found { identities, job } = issuer.find().await?;
    if identities.is_empty() && !asking.allow_none {
        return Err(Failure::NoIdentities);
    }
    let mut environment = Environment::default();
    if let Some(before) = &settings.folder {
        let lookup = |name: &str| std::env::var(name).ok();
        provider::take_out_of(before, &lookup, &mut environment);
    }
    environment.unset("THARSIS_JOB_TOKEN");
    environment.unset("THARSIS_JOB_TOKEN_FILE");
    // All of them first: the files of before are as they were if one can't be had.
    let (mut tokens, mut refused) = (Vec::new(), Vec::new());
    let ask = async |identity: &Identity| match issuer.token(&identity.id, &identity.path).await {
        Err(refusal @ Failure::Refused { .. }) if asking.skip_refused => {
            say(&format!("going on without it: {refusal}"));
            Ok(None)
        }
        answer => answer.map(Some),
    };
    for (identity, token) in fresh::begin(identities, ask).await? {
        match token {
            Some(token) => tokens.push((identity, token)),
            None => refused.push(identity),
        }
    }
    for identity in tokens.iter().map(|(identity, _)| identity).chain(&refused) {
        provider::withhold(identity, &mut environment);
    }
    for identity in &refused {
        provider::close(identity, settings, folder, &mut environment)?;
    }
    provider::provide(&tokens, &job, settings, folder, endpoint, &mut environment)?;
    Ok((environment, tokens))
}

async fn print_exports(
    issuer: &Issuer<'_>,
    asking: &Asking,
    settings: &Settings,
) -> Result<(), Failure> {
    let before = settings.folder.as_deref().map(Folder::again).transpose()?;
    let folder = match before.flatten() {
        Some(folder) => folder,
        None if is_unheard() => {
            let source = io::Error::other("nobody would know of the folder with the tokens");
            return Err(Failure::file("the standard output leads nowhere", source));
        }
        None => Folder::temporary()?,
    };
    let (mut environment, tokens) = prepare(issuer, asking, settings, &folder, None).await?;
    folder.remove_the_rest()?;
    // The shell asks again, to renew.
    environment.keep("THARSIS_JOB_TOKEN");
    environment.keep("THARSIS_JOB_TOKEN_FILE");
    environment.set("THARSIS_EXEC_FOLDER", folder.path().display().to_string());
    provider::note(&|name| std::env::var(name).ok(), &mut environment);
    let left = tokens.iter().map(|(_, token)| token.left().as_secs()).min();
    let text = format!(
        "{}# The tokens hold for {} s. To renew them: eval \"$(tharsis-exec env)\"\n\
         # To be rid of them: rm -r \"$THARSIS_EXEC_FOLDER\"\n",
        environment.exports(),
        left.unwrap_or_default()
    );
    print(&text)?;
    folder.leave();
    Ok(())
}

async fn print_token(issuer: &Issuer<'_>, identity: &str) -> Result<(), Failure> {
    let reference = issuer::reference(identity);
    let token = issuer.token(&reference, identity).await?;
    print(&format!("{}\n", token.text()))
}

/// A shell takes it for done where there is nothing to evaluate.
fn print_failure(code: u8) {
    let _ = print(&format!("(exit {code})\n"));
}

fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    let printed = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    printed.map_err(|source| Failure::file("the standard output", source))
}

/// Whether what is printed goes to `/dev/null`, which also stands in for an output that was closed when we started.
fn is_unheard() -> bool {
    let out = io::stdout().as_fd().try_clone_to_owned().map(File::from);
    let out = out.and_then(|out| out.metadata());
    match (out, std::fs::metadata("/dev/null")) {
        (Ok(out), Ok(null)) => out.rdev() == null.rdev(),
        _ => false,
    }
}
