//! Appends one small event to a new stream, again and again from several callers, with an event store that is not
//! ours, and prints what it did as one line of JSON.

mod cqrs;
mod disintegrating;

use std::future::Future;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;

/// Which event store.
#[derive(Clone, Copy, ValueEnum)]
enum Store {
    PostgresEs,
    DisintegratePostgres,
}

#[derive(Parser)]
struct Arguments {
    store: Store,
    /// An own database of this store; its tables are made if they are missing.
    #[arg(long)]
    database_url: String,
    #[arg(long)]
    callers: u32,
    #[arg(long)]
    seconds: f64,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let pool = PgPoolOptions::new()
        .min_connections(arguments.callers)
        .max_connections(arguments.callers)
        .acquire_timeout(Duration::from_secs(60))
        .connect(&arguments.database_url)
        .await?;
    let (events, seconds) = match arguments.store {
        Store::PostgresEs => cqrs::run(pool, &arguments).await?,
        Store::DisintegratePostgres => disintegrating::run(pool, &arguments).await?,
    };
    println!(
        "{}",
        serde_json::json!({ "events": events, "seconds": seconds })
    );
    Ok(())
}

/// Has each caller append until the time is up. An append that lost against another counts nothing.
async fn measure<F>(arguments: &Arguments, append: impl Fn() -> F) -> anyhow::Result<(u64, f64)>
where
    F: Future<Output = anyhow::Result<bool>>,
{
    let start = Instant::now();
    let end = start + Duration::from_secs_f64(arguments.seconds);
    let callers = (0..arguments.callers).map(|_| async {
        let mut events = 0;
        while Instant::now() < end {
            events += u64::from(append().await?);
        }
        anyhow::Ok(events)
    });
    let events = futures::future::try_join_all(callers).await?;
    Ok((events.iter().sum(), start.elapsed().as_secs_f64()))
}

async fn exists(pool: &PgPool, table: &str) -> anyhow::Result<bool> {
    let found: Option<String> = sqlx::query_scalar("SELECT to_regclass($1)::text")
        .bind(table)
        .fetch_one(pool)
        .await?;
    Ok(found.is_some())
}
