//! What the set does in a second, each beside its limit in the same run: the ratio is the result, not the number.
//!
//! Reads the environment of the tests; `deploy/dev bench` sets it.

mod append;
mod relay;
mod report;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

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
}

#[tokio::main]
async fn main() -> ExitCode {
    let done = match Arguments::parse().bench {
        Bench::Append(arguments) => append::run(arguments).await,
        Bench::Relay(arguments) => relay::run(arguments).await,
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tharsis-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
