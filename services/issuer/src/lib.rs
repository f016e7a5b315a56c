//! Jobs, signing keys, and the tokens that clouds exchange for credentials.

pub mod domain;
mod grpc;
pub mod http;
mod jobs_on_record;
pub mod keys;
mod live_tokens;
pub mod seal;
pub mod signing;
mod wire;

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use edge::authentication::{ClientError, Networks, OwnKeys, TrustedIssuers};
use edge::command::Commands;
use edge::hierarchy::{Hierarchy, Replica};
use edge::host::{Host, HostError, Peer, Readiness};
use edge::server::Services;
use edge::settings::{Environment, Secret, Settings};
use proto::issuer::v1::credential_service_server::CredentialServiceServer;
use proto::issuer::v1::job_service_server::JobServiceServer;
use proto::issuer::v1::signing_key_service_server::SigningKeyServiceServer;
use proto::issuer::v1::token_service_server::TokenServiceServer;
use sqlx::migrate::Migrator;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::domain::signing_key::Policy;
pub use crate::grpc::{IssuerRpc, Shared};
use crate::keys::{KeyError, Keys};
use crate::seal::{SealError, Sealer};

static MIGRATIONS: Migrator = sqlx::migrate!();

/// What the service is told.
#[derive(Clone, Debug)]
pub struct Config {
    /// What every service is told.
    pub settings: Settings,
    /// `THARSIS_HTTP_LISTEN`: discovery, keys and token exchange.
    pub http_listen: SocketAddr,
    /// The key-encryption keys.
    pub key_encryption_keys: KeyEncryptionKeys,
    /// `THARSIS_KEY_SET_MAX_AGE_SECONDS`, `THARSIS_CLOCK_SKEW_SECONDS`, `THARSIS_KEY_ROTATION_SECONDS`.
    pub key_policy: Policy,
    /// `THARSIS_STALENESS_BOUND_SECONDS`: how old the replica may be for a credential to be issued on it.
    pub staleness_bound: Duration,
    /// `THARSIS_TRUSTED_ISSUER_NETWORKS`: where issuers may be that trust policies name, besides public addresses.
    pub trusted_issuer_networks: Networks,
}

/// Where the key-encryption keys are.
#[derive(Clone, Debug)]
pub enum KeyEncryptionKeys {
    /// `THARSIS_KEY_ENCRYPTION_KEYS`.
    Given(Secret),
    /// `THARSIS_KEY_ENCRYPTION_KEY_FILE`.
    File(PathBuf),
}

/// The service can't start, or failed.
#[derive(Debug, thiserror::Error)]
pub enum IssuerError {
    /// What every service is made of.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The key-encryption key.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The signing keys.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// The HTTP client.
    #[error(transparent)]
    Client(#[from] ClientError),
}

impl Config {
    /// Reads it. `None` if something is wrong with it, which is then noted.
    pub fn read(environment: &mut Environment<'_>) -> Option<Self> {
        let settings = Settings::read(environment, Peer::Issuer);
        let http_listen = environment.required(
            "THARSIS_HTTP_LISTEN",
            "an address and port, such as 127.0.0.1:7105",
            str::parse,
        );
        let key_encryption_keys = key_encryption_keys(environment);
        let key_policy = key_policy(environment);
        // A follower asks for the log's end every second: a bound of one would be passed now and then while all is well.
        let staleness_bound = environment.or(
            "THARSIS_STALENESS_BOUND_SECONDS",
            "a whole number from 2 to 300",
            seconds(2..=300),
            || Duration::from_secs(10),
        );
        let trusted_issuer_networks = environment.or(
            "THARSIS_TRUSTED_ISSUER_NETWORKS",
            Networks::SETTING,
            str::parse,
            Networks::default,
        );
        Some(Self {
            settings: settings?,
            http_listen: http_listen?,
            key_encryption_keys: key_encryption_keys?,
            key_policy: key_policy?,
            staleness_bound: staleness_bound?,
            trusted_issuer_networks: trusted_issuer_networks?,
        })
    }
}

fn key_encryption_keys(environment: &mut Environment<'_>) -> Option<KeyEncryptionKeys> {
    let given = environment.optional_secret(
        "THARSIS_KEY_ENCRYPTION_KEYS",
        "32 bytes in base64; several with commas between, of which the first seals and all open",
        |text| Sealer::from_text(text).is_some(),
    )?;
    if let Some(given) = given {
        environment.optional(
            "THARSIS_KEY_ENCRYPTION_KEY_FILE",
            "left out where THARSIS_KEY_ENCRYPTION_KEYS is set",
            |_| Err::<(), _>("only one of both may be set"),
        )?;
        return Some(KeyEncryptionKeys::Given(given));
    }
    let file = environment.required(
        "THARSIS_KEY_ENCRYPTION_KEY_FILE",
        "the path of a file with 32 bytes in base64; several on lines of their own, of which the first seals and all open",
        str::parse::<PathBuf>,
    );
    file.map(KeyEncryptionKeys::File)
}

fn key_policy(environment: &mut Environment<'_>) -> Option<Policy> {
    let max_age = environment.or(
        "THARSIS_KEY_SET_MAX_AGE_SECONDS",
        "a whole number from 1 to 86400",
        seconds(1..=86_400),
        || Duration::from_mins(5),
    );
    let clock_skew = environment.or(
        "THARSIS_CLOCK_SKEW_SECONDS",
        "a whole number from 1 to 600",
        seconds(1..=600),
        || Duration::from_mins(1),
    );
    let rotation = environment.or(
        "THARSIS_KEY_ROTATION_SECONDS",
        "a whole number from 1 to 31536000",
        seconds(1..=31_536_000),
        || Duration::from_hours(30 * 24),
    );
    let (max_age, clock_skew, rotation) = (max_age?, clock_skew?, rotation?);
    let whole = |given: Duration| time::Duration::seconds(given.as_secs().cast_signed());
    Some(Policy {
        max_age: whole(max_age),
        clock_skew: whole(clock_skew),
        rotation: whole(rotation),
    })
}

fn seconds(allowed: RangeInclusive<u64>) -> impl FnOnce(&str) -> Result<Duration, &'static str> {
    move |text| {
        let seconds = text
            .parse()
            .ok()
            .filter(|seconds| allowed.contains(seconds));
        seconds.map(Duration::from_secs).ok_or("not such a number")
    }
}

impl KeyEncryptionKeys {
    fn read(&self) -> Result<Sealer, SealError> {
        let variable = || SealError::Key("THARSIS_KEY_ENCRYPTION_KEYS".to_owned());
        match self {
            Self::Given(text) => Sealer::from_text(text.reveal()).ok_or_else(variable),
            Self::File(path) => Sealer::from_file(path),
        }
    }
}

/// Serves until told to stop: gRPC on the one listener, discovery on the other.
pub async fn run(
    config: Config,
    listener: TcpListener,
    http_listener: TcpListener,
    stop: CancellationToken,
) -> Result<(), IssuerError> {
    let sealer = config.key_encryption_keys.read()?;
    let administrators = config.settings.administrators.clone();
    let issuer_url = config.settings.issuer_url.clone();
    let mut host = Host::connect(config.settings, None, Some(&MIGRATIONS), stop.clone()).await?;
    let log = host.open_log("issuer").await?;
    let keys = Box::pin(Keys::open(&log, sealer, config.key_policy)).await?;
    let fold = Arc::new(Replica);
    let namespace = host
        .follow(Peer::Namespace, Readiness::OnceBegun, Arc::clone(&fold))
        .await?;
    let identity = host
        .follow(Peer::Identity, Readiness::OnceBegun, fold)
        .await?;
    let own_keys = |keys| OwnKeys {
        issuer: issuer_url.clone(),
        keys,
    };
    host.signs_with(own_keys(keys.of_jobs()));
    let trusted = TrustedIssuers::new(config.trusted_issuer_networks, own_keys(keys.published()))?;
    let rpc = IssuerRpc::new(Shared {
        commands: Commands::new(
            log,
            host.visibility(&[Peer::Projector])?,
            &["namespace", "identity"],
        ),
        hierarchy: Hierarchy::new(host.pool().clone()),
        keys: keys.clone(),
        administrators,
        issuer: issuer_url.clone(),
        replica: vec![("namespace", namespace), ("identity", identity)],
        owners: vec![
            ("namespace", host.owner(Peer::Namespace)?),
            ("identity", host.owner(Peer::Identity)?),
        ],
        staleness_bound: config.staleness_bound,
        trusted,
        peer_rates: host.peer_rates(),
    });
    let services = Services::default()
        .with(JobServiceServer::new(rpc.clone()))
        .with(SigningKeyServiceServer::new(rpc.clone()))
        .with(CredentialServiceServer::new(rpc.clone()))
        .with(TokenServiceServer::new(rpc.clone()));
    let http = http::serve(http_listener, &issuer_url, keys.clone(), rpc, stop.clone());
    let health = host.health();
    let (grpc, (), ()) = tokio::join!(
        async {
            let served = host.serve(listener, services).await;
            stop.cancel();
            served
        },
        http,
        Box::pin(keys.run(health, stop.clone()))
    );
    Ok(grpc?)
}

#[cfg(test)]
mod tests {
    use edge::settings;

    use super::*;

    #[test]
    fn key_encryption_keys_are_at_one_place() {
        let key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
        let set = [
            ("THARSIS_KEY_ENCRYPTION_KEYS", key),
            ("THARSIS_KEY_ENCRYPTION_KEY_FILE", "/run/key"),
        ];
        let read = |set: &[(&str, &str)]| {
            let lookup = |variable: &str| {
                let found = set.iter().find(|(name, _)| *name == variable);
                found.map(|(_, value)| (*value).to_owned())
            };
            settings::from(&lookup, key_encryption_keys)
        };
        assert!(read(&set[..1]).is_ok() && read(&set[1..]).is_ok());
        let both = read(&set).err().map(|error| error.to_string());
        assert!(both.is_some_and(|error| error.contains("THARSIS_KEY_ENCRYPTION_KEY_FILE")));
    }
}
