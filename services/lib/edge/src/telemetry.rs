//! Where logs go, and how they look.

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
    // Below info, the HTTP stack logs headers, and with them tokens.
    let no_headers = filter_fn(|metadata| {
        let http = ["h2", "hyper", "hyper_util", "reqwest", "tonic"];
        let root = metadata.target().split("::").next().unwrap_or_default();
        *metadata.level() <= Level::INFO || !http.contains(&root)
    });
    let registry = tracing_subscriber::registry().with(filter).with(no_headers);
    match settings.format {
        LogFormat::Text => registry.with(tracing_subscriber::fmt::layer()).try_init()?,
        LogFormat::Json => registry
            .with(tracing_subscriber::fmt::layer().json().flatten_event(true))
            .try_init()?,
    }
    Ok(())
}
