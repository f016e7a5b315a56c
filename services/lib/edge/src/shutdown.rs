//! From signals to a cancellation that everything in a process watches.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// As a shell reports a process that a signal ended.
const INTERRUPTED: i32 = 130;

/// Cancelled at the first SIGTERM or SIGINT; the second ends the process at once.
pub fn on_signal() -> io::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let stop = CancellationToken::new();
    let cancelled = stop.clone();
    tokio::spawn(async move {
        for seen in 0_u8.. {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if seen > 0 {
                tracing::warn!("second signal, exiting without draining");
                std::process::exit(INTERRUPTED);
            }
            tracing::info!("signal received, draining");
            cancelled.cancel();
        }
    });
    Ok(stop)
}
