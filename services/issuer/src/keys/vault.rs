//! The private halves of the signing keys, sealed, in the database.

use std::sync::Arc;

use edge::clock;
use model::SigningAlgorithm;
use sqlx::PgPool;

use super::KeyError;
use crate::domain::signing_key::Fresh;
use crate::seal::Sealer;
use crate::signing::SigningKey;

/// Keeps private halves. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Vault {
    pool: PgPool,
    sealer: Arc<Sealer>,
}

impl Vault {
    pub(crate) fn new(pool: PgPool, sealer: Sealer) -> Self {
        let sealer = Arc::new(sealer);
        Self { pool, sealer }
    }

    /// Makes a key. Kept before any event names it: one that no event names is never used, and one that an event names
    /// is never missing.
    pub(crate) async fn make(&self, algorithm: SigningAlgorithm) -> Result<Fresh, KeyError> {
        let key = generate(algorithm).await?;
        let sealed = self.seal(key.kid(), &key.to_pkcs8()?)?;
        sqlx::query!(
            "INSERT INTO signing_keys (kid, sealed) VALUES ($1, $2)",
            key.kid(),
            sealed
        )
        .execute(&self.pool)
        .await?;
        Ok(fresh(algorithm, &key))
    }

    /// A key like one that is made, and is not kept: for what is only tried.
    pub(crate) async fn sample(algorithm: SigningAlgorithm) -> Result<Fresh, KeyError> {
        Ok(fresh(algorithm, &generate(algorithm).await?))
    }

    /// The private half of a key.
    pub(super) async fn read(
        &self,
        algorithm: SigningAlgorithm,
        kid: &str,
    ) -> Result<SigningKey, KeyError> {
        let sealed = sqlx::query_scalar!("SELECT sealed FROM signing_keys WHERE kid = $1", kid)
            .fetch_optional(&self.pool)
            .await?
            .ok_or_else(|| KeyError::Missing(kid.to_owned()))?;
        Ok(SigningKey::from_pkcs8(
            algorithm,
            &self.open(kid, &sealed)?.plain,
        )?)
    }

    /// Destroys private halves: what signs no more can't be stolen.
    pub(crate) async fn destroy(&self, kids: &[String]) -> Result<(), KeyError> {
        sqlx::query!("DELETE FROM signing_keys WHERE kid = ANY($1)", kids)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Destroys private halves of other keys than these, unless they were made within the last hour: they may be those of
    /// keys that an issuer, which is at it, has not named in the log yet.
    pub(super) async fn destroy_all_but(&self, kids: &[String]) -> Result<(), KeyError> {
        let destroyed = sqlx::query_scalar!(
            "DELETE FROM signing_keys WHERE kid <> ALL($1) AND made < now() - interval '1 hour' RETURNING kid",
            kids
        )
        .fetch_all(&self.pool)
        .await?;
        for kid in destroyed {
            tracing::info!(kid, "private half that no event names destroyed");
        }
        Ok(())
    }

    /// Seals with the first key-encryption key what another one has sealed. Answers whether that was nothing. What can't be
    /// opened stays as it is, and is an error once the others are sealed.
    pub(super) async fn reseal(&self) -> Result<bool, KeyError> {
        let (mut nothing, mut closed) = (true, None);
        let rows = sqlx::query!("SELECT kid, sealed FROM signing_keys")
            .fetch_all(&self.pool)
            .await?;
        for row in rows {
            let opened = match self.open(&row.kid, &row.sealed) {
                Ok(opened) if opened.by_first => continue,
                Ok(opened) => opened,
                Err(error) => {
                    closed.get_or_insert(error);
                    continue;
                }
            };
            nothing = false;
            // Another issuer may do the same at this moment, or destroy it.
            sqlx::query!(
                "UPDATE signing_keys SET sealed = $2 WHERE kid = $1 AND sealed = $3",
                row.kid,
                self.seal(&row.kid, &opened.plain)?,
                row.sealed
            )
            .execute(&self.pool)
            .await?;
            tracing::info!(
                kid = row.kid,
                "signing key sealed with the first key-encryption key"
            );
        }
        closed.map_or(Ok(nothing), Err)
    }

    fn seal(&self, kid: &str, plain: &[u8]) -> Result<Vec<u8>, KeyError> {
        let sealed = self.sealer.seal(kid, plain);
        sealed.map_err(|source| KeyError::seal(kid, source))
    }

    fn open(&self, kid: &str, sealed: &[u8]) -> Result<crate::seal::Opened, KeyError> {
        let opened = self.sealer.open(kid, sealed);
        opened.map_err(|source| KeyError::seal(kid, source))
    }
}

async fn generate(algorithm: SigningAlgorithm) -> Result<SigningKey, KeyError> {
    // Finding primes takes a tenth of a second, or a few.
    let key = tokio::task::spawn_blocking(move || SigningKey::generate(algorithm)).await;
    Ok(key.map_err(|_| crate::signing::SigningError::Provider)??)
}

fn fresh(algorithm: SigningAlgorithm, key: &SigningKey) -> Fresh {
    Fresh {
        id: clock::new_id(),
        kid: key.kid().to_owned(),
        algorithm,
        public_jwk: key.public_jwk().to_string(),
    }
}
