//! The signing keys of this issuer: made at the first start, kept encrypted, published by discovery.

use std::sync::Arc;

use edge::clock;
use eventlog::{
    Append, AppendError, EventLog, Expected, Guard, LogError, Metadata, NewEvent, StreamAppend,
    StreamId,
};
use jsonwebtoken::jwk::JwkSet;
use model::SigningKeyId;
use proto::issuer::v1::{Event, SigningKeyActivated, SigningKeyCreated};
use tokio::sync::watch;

use crate::seal::{SealError, Sealer};
use crate::signing::{SigningError, SigningKey};

/// The fact that names the key that signs, by its `kid`.
const ACTIVE: &str = "signing-key/active";

/// The key that signs, and those that relying parties are told of. Cheap to clone.
#[derive(Clone)]
pub struct Keys {
    active: Arc<SigningKey>,
    published: watch::Receiver<JwkSet>,
    // Keeps the receivers open.
    _publisher: Arc<watch::Sender<JwkSet>>,
}

/// The signing keys can't be made or read.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// A stored key can't be opened.
    #[error("signing key {kid}: {source}")]
    Seal {
        /// Which.
        kid: String,
        /// Why.
        source: SealError,
    },
    /// A key can't be made or used.
    #[error(transparent)]
    Signing(#[from] SigningError),
    /// The log can't be read.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The log can't be written.
    #[error("the signing key can't be recorded")]
    Append(#[from] AppendError),
    /// The database failed.
    #[error("the database failed")]
    Database(#[from] sqlx::Error),
    /// The log names a key that is not there.
    #[error("the private half of signing key {0} is missing from the database")]
    Missing(String),
}

impl Keys {
    /// Reads the active key, or makes the first one. Several issuers that start at once end with the same key.
    pub async fn open(log: &EventLog, sealer: &Sealer) -> Result<Self, KeyError> {
        loop {
            let facts = log.facts(&[ACTIVE.to_owned()]).await?;
            if let Some(kid) = facts.get(ACTIVE) {
                return Self::read(log, sealer, kid).await;
            }
            match Self::make(log, sealer).await {
                // Another issuer was quicker.
                Ok(()) | Err(KeyError::Append(AppendError::GuardRefused { .. })) => {}
                Err(error) => return Err(error),
            }
        }
    }

    async fn read(log: &EventLog, sealer: &Sealer, kid: &str) -> Result<Self, KeyError> {
        let sealed = sqlx::query_scalar!("SELECT sealed FROM signing_keys WHERE kid = $1", kid)
            .fetch_optional(log.pool())
            .await?
            .ok_or_else(|| KeyError::Missing(kid.to_owned()))?;
        let opened = sealer.open(kid, &sealed).map_err(|source| KeyError::Seal {
            kid: kid.to_owned(),
            source,
        })?;
        let key = SigningKey::from_pkcs8(&opened)?;
        let (publisher, published) = watch::channel(JwkSet {
            keys: vec![key.verifying_jwk()?],
        });
        Ok(Self {
            active: Arc::new(key),
            published,
            _publisher: Arc::new(publisher),
        })
    }

    async fn make(log: &EventLog, sealer: &Sealer) -> Result<(), KeyError> {
        let key = SigningKey::generate()?;
        let kid = key.kid().to_owned();
        let sealed = sealer
            .seal(&kid, &key.to_pkcs8()?)
            .map_err(|source| KeyError::Seal {
                kid: kid.clone(),
                source,
            })?;
        // The private half first: one that no event names is never used, and one that an event names is never missing.
        sqlx::query!(
            "INSERT INTO signing_keys (kid, sealed) VALUES ($1, $2)",
            kid,
            sealed
        )
        .execute(log.pool())
        .await?;
        let id: SigningKeyId = clock::new_id();
        let events = [
            Event::from(SigningKeyCreated {
                signing_key_id: id.to_string(),
                kid: kid.clone(),
                algorithm: "RS256".to_owned(),
                public_jwk: key.public_jwk().to_string(),
            }),
            Event::from(SigningKeyActivated {
                signing_key_id: id.to_string(),
            }),
        ];
        let events = events.into_iter().map(|event| NewEvent {
            id: clock::new_uuid(),
            event_type: event.event_type(),
            payload: event.encode(),
        });
        let stream_id = StreamId::new("signing_key", id);
        log.append(Append {
            command: None,
            streams: vec![StreamAppend {
                stream_id,
                expected: Expected::Version(0),
                events: events.collect(),
            }],
            guards: vec![
                Guard::Expect {
                    key: ACTIVE.to_owned(),
                    value: None,
                },
                Guard::Set {
                    key: ACTIVE.to_owned(),
                    value: Some(kid.clone()),
                },
            ],
            metadata: Metadata {
                actor: "service:issuer".to_owned(),
                traceparent: None,
            },
        })
        .await?;
        tracing::info!(kid, "signing key made");
        Ok(())
    }

    /// The key that signs.
    #[must_use]
    pub fn active(&self) -> &SigningKey {
        &self.active
    }

    /// The keys that relying parties verify with.
    #[must_use]
    pub fn published(&self) -> watch::Receiver<JwkSet> {
        self.published.clone()
    }
}
