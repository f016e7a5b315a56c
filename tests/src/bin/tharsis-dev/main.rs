//! What a development machine needs beside the services: an OIDC issuer, callers' tokens, waiting for the set, the demo,
//! stand-ins of the clouds, and a job for trying them.

mod clouds;
mod demo;
mod duration;
mod idp;
mod job;
mod set;
mod token;
mod wait;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Tools for the development set. Never for production.
#[derive(Parser)]
#[command(name = "tharsis-dev", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serves the development OIDC issuer: discovery and keys.
    Idp(idp::Arguments),
    /// Prints a caller's token, signed with the development issuer's key.
    Token(token::Arguments),
    /// Waits until services answer.
    Wait(wait::Arguments),
    /// Serves the stand-ins of the clouds.
    Clouds(clouds::Clouds),
    /// Opens a job with an identity of each type, and prints the exports for `tharsis-exec` and the clouds' clients.
    Job(job::Job),
    /// Runs the main job against a running set, and checks each step.
    Demo(demo::Demo),
}

#[tokio::main]
async fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Idp(arguments) => idp::run(arguments).await,
        Command::Token(arguments) => token::run(&arguments),
        Command::Wait(arguments) => wait::run(arguments).await,
        Command::Clouds(arguments) => clouds::run(arguments).await,
        Command::Job(arguments) => job::run(arguments).await,
        Command::Demo(arguments) => demo::run(arguments).await,
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tharsis-dev: {error:#}");
            ExitCode::FAILURE
        }
    }
}
