//! What the set does in a second, each beside its limit in the same run: the ratio is the result, not the number.
//!
//! Reads the environment of the tests; `deploy/dev bench` sets it.

mod append;
mod cpu;
mod credentials;
mod lag;
mod least;
mod project;
mod relay;
mod report;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tokio::runtime::Builder;

/// Benchmarks. Run them in release.
#[derive(Parser)]
#[command(name = "tharsis-bench", version)]
struct Arguments {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Subcommand)]
enum Bench {
    /// Appends from 1, 8 and 64 callers, against single-row inserts and other event stores.
    Append(append::Arguments),
    /// The relay into an empty stream, against a plain pipelined publish.
    Relay(relay::Arguments),
    /// The read models from nothing, against a copy of their rows.
    Project(project::Arguments),
    /// CPU time of the issuer for each credential, against that of the signature alone.
    Credentials(credentials::Arguments),
    /// From an acknowledged command to the directory, idle and under load.
    Lag(lag::Arguments),
    /// The issuer of `credentials`, in a process of its own.
    #[command(hide = true)]
    ServeIssuer,
    /// The signatures of `credentials`, in a process of their own.
    #[command(hide = true)]
    Sign(least::SignArguments),
    /// The service that `credentials` is compared with, in a process of its own.
    #[command(hide = true)]
    ServeLeast(least::ServeArguments),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // Whoever asks for credentials shares the cores with whom it asks: one thread takes less of them than several, which
    // wake each other.
    let mut runtime = match arguments.bench {
        Bench::Credentials(_) => Builder::new_current_thread(),
        _ => Builder::new_multi_thread(),
    };
    match runtime.enable_all().build() {
        Ok(runtime) => runtime.block_on(run(arguments)),
        Err(error) => {
            eprintln!("tharsis-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> ExitCode {
    let done = match arguments.bench {
        Bench::Append(arguments) => append::run(arguments).await,
        Bench::Relay(arguments) => relay::run(arguments).await,
        Bench::Project(arguments) => project::run(arguments).await,
        Bench::Credentials(arguments) => credentials::run(arguments).await,
        Bench::Lag(arguments) => lag::run(arguments).await,
        Bench::ServeIssuer => credentials::serve_issuer().await,
        Bench::Sign(arguments) => least::sign_alone(&arguments),
        Bench::ServeLeast(arguments) => least::serve(&arguments).await,
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tharsis-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
