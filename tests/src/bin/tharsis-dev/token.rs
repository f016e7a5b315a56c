//! `tharsis-dev token`.

use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use e2e::key::SigningKey;
use edge::clock;
use serde_json::json;

use crate::duration;

/// Whose token is printed, and how long it holds.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Who the token says that calls.
    #[arg(long, default_value = "admin")]
    pub(crate) subject: String,
    /// How long it holds.
    #[arg(long, default_value = "1h", value_parser = duration::parse)]
    pub(crate) ttl: Duration,
    /// The URL of the development issuer.
    #[arg(
        long,
        env = "THARSIS_DEV_IDP_URL",
        default_value = "http://127.0.0.1:7100"
    )]
    pub(crate) issuer: String,
    /// Whom the token is for.
    #[arg(long, env = "THARSIS_DEV_AUDIENCE", default_value = "tharsis")]
    pub(crate) audience: String,
    /// The file with the issuer's key.
    #[arg(long, env = "THARSIS_DEV_IDP_KEY_FILE")]
    pub(crate) key_file: PathBuf,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let token = token(arguments)?;
    writeln!(std::io::stdout(), "{token}").context("the token can't be printed")
}

/// The token that the arguments ask for.
pub(crate) fn token(arguments: &Arguments) -> Result<String> {
    let Arguments {
        subject,
        ttl,
        issuer,
        audience,
        key_file,
    } = arguments;
    let key = SigningKey::read(key_file)?.with_context(|| {
        format!(
            "there is no key in {}; `tharsis-dev idp` makes one",
            key_file.display()
        )
    })?;
    let now = clock::now();
    key.sign(&json!({
        "iss": issuer,
        "sub": subject,
        "aud": audience,
        "iat": now.unix_timestamp(),
        "exp": (now + *ttl).unix_timestamp(),
        "jti": clock::new_uuid().to_string(),
    }))
}
