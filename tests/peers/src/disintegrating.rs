//! `disintegrate-postgres`: its event store's `append`, which checks that nothing with this id was appended.

use disintegrate::serde::json::Json;
use disintegrate::{Event, EventStore as _, query};
use disintegrate_postgres::{Error, PgEventStore};
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use uuid::Uuid;

use crate::Arguments;

#[derive(Clone, Debug, PartialEq, Eq, Event, Serialize, Deserialize)]
enum ThingEvent {
    Happened {
        #[id]
        thing: String,
        name: String,
        by: String,
    },
}

pub async fn run(pool: PgPool, arguments: &Arguments) -> anyhow::Result<(u64, f64)> {
    let made = crate::exists(&pool, "event").await?;
    if !made {
        make(&pool).await?;
    }
    let store = PgEventStore::new_uninitialized(pool, Json::<ThingEvent>::default());
    crate::measure(arguments, async || {
        let thing = Uuid::new_v4().simple().to_string();
        let event = ThingEvent::Happened {
            thing: thing.clone(),
            name: "acme/prod/deployer".to_owned(),
            by: "user:dev/alice".to_owned(),
        };
        match store
            .append(vec![event], query!(ThingEvent; thing == thing), 0)
            .await
        {
            Ok(_) => Ok(true),
            // Another caller came between: its caller would load and try again.
            Err(Error::Concurrency) => Ok(false),
            Err(Error::Database(sqlx::Error::Database(error)))
                if error.code().as_deref() == Some("40001") =>
            {
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    })
    .await
}

/// Makes the store's tables. Its functions hold a hexadecimal number, which PostgreSQL knows from version 16 on: below,
/// they get it in decimal.
async fn make(pool: &PgPool) -> anyhow::Result<()> {
    let unchecked = pool
        .connect_options()
        .as_ref()
        .clone()
        .options([("check_function_bodies", "off")]);
    PgEventStore::try_new(
        PgPool::connect_with(unchecked).await?,
        Json::<ThingEvent>::default(),
    )
    .await?;
    sqlx::query(
        "DO $$ BEGIN
             EXECUTE replace(pg_get_functiondef('event_store_begin_epoch'::regproc), '0xFFFFFFFF', '4294967295');
         END $$",
    )
    .execute(pool)
    .await?;
    Ok(())
}
