//! `postgres-es`, the PostgreSQL side of `cqrs-es`: its repository's `persist`, without loading the aggregate before.

use cqrs_es::persist::{PersistedEventRepository as _, SerializedEvent};
use cqrs_es::{Aggregate, DomainEvent};
use postgres_es::PostgresEventRepository;
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use uuid::Uuid;

use crate::Arguments;

/// From the crate's `db/init.sql`.
const TABLE: &str = "CREATE TABLE events (
    aggregate_type text                         NOT NULL,
    aggregate_id   text                         NOT NULL,
    sequence       bigint CHECK (sequence >= 0) NOT NULL,
    event_type     text                         NOT NULL,
    event_version  text                         NOT NULL,
    payload        json                         NOT NULL,
    metadata       json                         NOT NULL,
    PRIMARY KEY (aggregate_type, aggregate_id, sequence)
)";

#[derive(Default, Serialize, Deserialize)]
struct Thing;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Happened;

#[derive(Debug)]
struct Never;

impl std::fmt::Display for Never {
    fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        Ok(())
    }
}

impl std::error::Error for Never {}

impl DomainEvent for Happened {
    fn event_type(&self) -> String {
        "Happened".to_owned()
    }

    fn event_version(&self) -> String {
        "1.0".to_owned()
    }
}

impl Aggregate for Thing {
    const TYPE: &'static str = "thing";
    type Command = ();
    type Event = Happened;
    type Error = Never;
    type Services = ();

    async fn handle(
        &mut self,
        (): (),
        (): &(),
        _: &cqrs_es::event_sink::EventSink<Self>,
    ) -> Result<(), Never> {
        Ok(())
    }

    fn apply(&mut self, _: Happened) {}
}

pub async fn run(pool: PgPool, arguments: &Arguments) -> anyhow::Result<(u64, f64)> {
    if !crate::exists(&pool, "events").await? {
        sqlx::query(TABLE).execute(&pool).await?;
    }
    let repository = PostgresEventRepository::new(pool);
    crate::measure(arguments, async || {
        let event = SerializedEvent::new(
            Uuid::new_v4().simple().to_string(),
            1,
            "thing".to_owned(),
            "Happened".to_owned(),
            "1.0".to_owned(),
            serde_json::json!({ "Happened": { "name": "acme/prod/deployer", "by": "user:dev/alice" } }),
            serde_json::json!({ "actor": "user:dev/alice" }),
        );
        repository.persist::<Thing>(&[event], None).await?;
        Ok(true)
    })
    .await
}
