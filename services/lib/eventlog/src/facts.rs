//! Facts: small keyed values that commands decide on, kept behind the head row.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sqlx::postgres::PgPoolOptions;
use sqlx::{Executor as _, PgConnection, PgPool};

/// A change of one fact. `None` takes it away.
pub type Change = (String, Option<String>);

/// Facts as they were at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts(HashMap<String, String>);

impl Facts {
    /// Reads those of the keys that there are.
    pub async fn read(pool: &PgPool, keys: &[String]) -> Result<Self, sqlx::Error> {
        let rows = sqlx::query!("SELECT key, value FROM facts WHERE key = ANY($1)", keys)
            .fetch_all(pool)
            .await?;
        Ok(rows.into_iter().map(|row| (row.key, row.value)).collect())
    }

    /// The same, and how far each log has been followed that they replicate, all of one moment.
    pub async fn read_at_checkpoints(
        pool: &PgPool,
        keys: &[String],
    ) -> Result<(Self, BTreeMap<String, u64>), sqlx::Error> {
        let rows = sqlx::query!(
            r#"SELECT key AS "name!", value, NULL::bigint AS position FROM facts WHERE key = ANY($1)
               UNION ALL SELECT log, NULL, position FROM checkpoints"#,
            keys
        );
        let (mut facts, mut checkpoints) = (Self::default(), BTreeMap::new());
        for row in rows.fetch_all(pool).await? {
            if let Some(value) = row.value {
                facts.0.insert(row.name, value);
            } else if let Some(position) = row.position {
                checkpoints.insert(row.name, position.cast_unsigned());
            }
        }
        Ok((facts, checkpoints))
    }

    /// The fact's value.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }
}

impl FromIterator<(String, String)> for Facts {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(facts: I) -> Self {
        Self(facts.into_iter().collect())
    }
}

/// How long the connection is waited for; in vain, if it was lost.
const PATIENCE: Duration = Duration::from_secs(5);

/// Room for facts apart from those of a database: on one connection to it, and gone with that.
pub async fn apart(pool: &PgPool) -> Result<PgPool, sqlx::Error> {
    let connected = Arc::new(AtomicBool::new(false));
    let apart = PgPoolOptions::new()
        .max_connections(1)
        .acquire_timeout(PATIENCE)
        .idle_timeout(None)
        .max_lifetime(None)
        // On another connection they are not there: what asks fails then, and is not answered with the database's own.
        .after_connect(move |connection, _| {
            let again = connected.swap(true, Ordering::Relaxed);
            Box::pin(async move {
                if again {
                    return Err(sqlx::Error::PoolClosed);
                }
                connection.execute("SET search_path TO pg_temp").await?;
                Ok(())
            })
        })
        .connect_with(pool.connect_options().as_ref().clone())
        .await?;
    apart
        .execute(
            r#"CREATE TEMP TABLE facts (
                   key text PRIMARY KEY COLLATE "C", value text NOT NULL COLLATE "C", log text NOT NULL COLLATE "C"
               )"#,
        )
        .await?;
    Ok(apart)
}

/// Writes facts that replicate those of the log `log`, in the transaction that moves the checkpoint, where commands
/// decide on them. It goes through the head row, so that an append sees either all of it or none.
pub async fn replicate(
    connection: &mut PgConnection,
    log: &str,
    changes: &[Change],
) -> Result<(), sqlx::Error> {
    if changes.is_empty() {
        return Ok(());
    }
    sqlx::query!("UPDATE log_head SET revision = revision + 1")
        .execute(&mut *connection)
        .await?;
    write(connection, log, changes).await
}

/// The same where nothing is ever appended. Of two changes of one key the later holds.
pub async fn write(
    connection: &mut PgConnection,
    log: &str,
    changes: &[Change],
) -> Result<(), sqlx::Error> {
    if changes.is_empty() {
        return Ok(());
    }
    let last: HashMap<&str, Option<&str>> = changes
        .iter()
        .map(|(key, value)| (key.as_str(), value.as_deref()))
        .collect();
    let gone: Vec<String> = last
        .iter()
        .filter(|(_, value)| value.is_none())
        .map(|(key, _)| (*key).to_owned())
        .collect();
    let (keys, values): (Vec<String>, Vec<String>) = last
        .iter()
        .filter_map(|(key, value)| value.map(|value| ((*key).to_owned(), value.to_owned())))
        .unzip();
    sqlx::query!(
        "WITH gone AS (DELETE FROM facts WHERE key = ANY($1))
         INSERT INTO facts (key, value, log) SELECT *, $4 FROM UNNEST($2::text[], $3::text[])
         ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        &gone,
        &keys,
        &values,
        log
    )
    .execute(&mut *connection)
    .await?;
    Ok(())
}
