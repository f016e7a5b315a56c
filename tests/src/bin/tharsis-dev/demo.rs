//! The main job, end to end, as a person would do it.

use anyhow::{Result, bail};

/// What the demo is told.
#[derive(clap::Args)]
pub(crate) struct Arguments {}

#[expect(clippy::unused_async, reason = "written with the services")]
pub(crate) async fn run(_arguments: Arguments) -> Result<()> {
    bail!("the demo is not written yet")
}
