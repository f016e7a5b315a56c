//! Where logs go, and how they look.

use std::io::IsTerminal as _;

use tracing::Level;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::{ParseError, filter_fn};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::{SubscriberInitExt as _, TryInitError};

use crate::settings::{LogFormat, LogSettings};

/// Logging can't be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter does not parse.
    #[error("the log filter does not parse")]
    Filter(#[from] ParseError),
    /// It is set up already.
    #[error("logging is set up twice")]
    Twice(#[from] TryInitError),
}

/// Sends the process's logs to standard output.
pub fn init(settings: &LogSettings) -> Result<(), TelemetryError> {
    let filter = EnvFilter::builder().parse(&settings.filter)?;
    let limits = filter_fn(|metadata| {
        let root = metadata.target().split("::").next().unwrap_or_default();
        let most = match root {
            // Below info, the HTTP stack logs headers, and with them tokens.
            "h2" | "hyper" | "hyper_util" | "reqwest" | "tonic" => Level::INFO,
            // Each of its attempts to connect again, every second, is an info.
            "async_nats" => Level::WARN,
            _ => Level::TRACE,
        };
        *metadata.level() <= most
    });
    let registry = tracing_subscriber::registry().with(filter).with(limits);
    match settings.format {
        LogFormat::Text => {
            let colours = std::io::stdout().is_terminal();
            registry
                .with(tracing_subscriber::fmt::layer().with_ansi(colours))
                .try_init()?;
        }
        LogFormat::Json => registry
            .with(tracing_subscriber::fmt::layer().json().flatten_event(true))
            .try_init()?,
    }
    Ok(())
}
