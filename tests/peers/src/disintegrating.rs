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
    let serde = Json::<ThingEvent>::default();
    let store = if made {
        PgEventStore::new_uninitialized(pool, serde)
    } else {
        PgEventStore::try_new(pool, serde).await?
    };
    crate::measure(arguments, async || {
        let thing = Uuid::new_v4().simple().to_string();
        let event = ThingEvent::Happened {
            thing: thing.clone(),
            name: "acme/prod/deployer".to_owned(),
            by: "user:dev/alice".to_owned(),
        };
        match store.append(vec![event], query!(ThingEvent; thing == thing), 0).await {
            Ok(_) => Ok(true),
            // Another caller came between: its caller would load and try again.
            Err(Error::Concurrency) => Ok(false),
            Err(Error::Database(sqlx::Error::Database(error))) if error.code().as_deref() == Some("40001") => Ok(false),
            Err(error) => Err(error.into()),
        }
    })
    .await
}
