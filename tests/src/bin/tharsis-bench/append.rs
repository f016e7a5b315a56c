//! Appends: one small event to a new stream, from several callers at once.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use bed::{Database, unique_id};
use eventlog::{Append, EventLog, Expected, Metadata, NewEvent, StreamAppend, StreamId};
use futures::future::try_join_all;
use serde::Deserialize;
use sqlx::postgres::PgPoolOptions;
use tokio::process::Command;

use crate::report::{Row, report};

const CALLERS: [u32; 3] = [1, 8, 64];
const EVENT_TYPE: &str = "tharsis.bench.v1.Happened";
/// As large as the events of the services usually are.
const PAYLOAD: &[u8] =
    b"\x0a\x1bgrp_01hz3x8v4ye2nrkq3w5m7p9t\x12\x12acme/prod/deployer\x1a\x0euser:dev/alice";

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Rounds; each runs every contender once for each number of callers.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Of one contender in a round.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Leaves the other event stores out.
    #[arg(long)]
    no_peers: bool,
}

/// Those that take their turns, with the least ratio at 64 callers that we want of ours to theirs.
#[derive(Clone, Copy, PartialEq)]
enum Contender {
    Ours,
    SingleInserts,
    Peer(&'static str),
}

impl Contender {
    fn name(self) -> &'static str {
        match self {
            Self::Ours => "tharsis",
            Self::SingleInserts => "single inserts",
            Self::Peer(name) => name,
        }
    }

    fn aim(self) -> Option<f64> {
        match self {
            Self::Ours => None,
            Self::SingleInserts => Some(3.0),
            Self::Peer(_) => Some(5.0),
        }
    }
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let mut contenders = vec![Contender::Ours, Contender::SingleInserts];
    if !arguments.no_peers && peers_are_built().await {
        contenders.extend(["postgres-es", "disintegrate-postgres"].map(Contender::Peer));
    }
    let mut databases = Vec::new();
    for contender in &contenders {
        let database = Database::create().await;
        if matches!(contender, Contender::Ours | Contender::SingleInserts) {
            eventlog::migrate(database.pool(), None).await?;
        }
        databases.push(database);
    }
    // By callers, then contender.
    let mut rates = vec![vec![Vec::new(); contenders.len()]; CALLERS.len()];
    let mut positions = AtomicI64::new(0);
    for round in 1..=arguments.rounds {
        for (callers, rates) in CALLERS.into_iter().zip(&mut rates) {
            for ((contender, database), rates) in contenders.iter().zip(&databases).zip(rates) {
                let rate = match contender {
                    Contender::Ours => ours(database, callers, arguments.seconds).await,
                    Contender::SingleInserts => {
                        single_inserts(database, callers, arguments.seconds, &mut positions).await
                    }
                    Contender::Peer(name) => peer(name, database, callers, arguments.seconds).await,
                };
                let rate =
                    rate.with_context(|| format!("{} from {callers} callers", contender.name()))?;
                eprintln!(
                    "round {round}: {callers:>2} callers, {}: {rate:.0} events/s",
                    contender.name()
                );
                rates.push(rate);
            }
        }
    }
    let rows: Vec<_> = CALLERS
        .into_iter()
        .zip(&rates)
        .map(|(callers, rates)| {
            let row = Row::new(format!("{callers} callers"), "events/s", &rates[0]);
            contenders
                .iter()
                .zip(rates)
                .skip(1)
                .fold(row, |row, (contender, rates)| {
                    row.against(
                        contender.name(),
                        rates,
                        contender.aim().filter(|_| callers == 64),
                    )
                })
        })
        .collect();
    report("append", &rows)
}

/// Has each caller append until the time is up.
async fn measure<F>(
    callers: u32,
    seconds: f64,
    caller: impl Fn(Instant) -> F,
) -> anyhow::Result<f64>
where
    F: Future<Output = anyhow::Result<u32>> + Send + 'static,
{
    let start = Instant::now();
    let end = start + Duration::from_secs_f64(seconds);
    let callers = (0..callers).map(|_| tokio::spawn(caller(end)));
    let mut events = 0;
    for of_one in try_join_all(callers).await? {
        events += of_one?;
    }
    Ok(f64::from(events) / start.elapsed().as_secs_f64())
}

async fn ours(database: &Database, callers: u32, seconds: f64) -> anyhow::Result<f64> {
    let log = EventLog::open("bench", database.another_pool(4)).await?;
    measure(callers, seconds, |end| {
        let log = log.clone();
        async move {
            let mut events = 0;
            while Instant::now() < end {
                let id = unique_id();
                let append = Append {
                    streams: vec![StreamAppend {
                        stream_id: StreamId::new("thing", id.simple()),
                        expected: Expected::Version(0),
                        events: vec![NewEvent {
                            id,
                            event_type: EVENT_TYPE,
                            payload: PAYLOAD.to_vec(),
                        }],
                    }],
                    metadata: Metadata {
                        actor: "user:dev/alice".to_owned(),
                        traceparent: None,
                    },
                    ..Append::default()
                };
                log.append(append).await?;
                events += 1;
            }
            Ok(events)
        }
    })
    .await
}

/// The same rows, each in a transaction of its own, from as many connections. Nothing is checked.
async fn single_inserts(
    database: &Database,
    callers: u32,
    seconds: f64,
    positions: &mut AtomicI64,
) -> anyhow::Result<f64> {
    let pool = PgPoolOptions::new()
        .min_connections(callers)
        .max_connections(callers)
        .connect(database.url())
        .await?;
    let next = Arc::new(AtomicI64::new(*positions.get_mut()));
    let rate = measure(callers, seconds, |end| {
        let (pool, next) = (pool.clone(), Arc::clone(&next));
        async move {
            let mut connection = pool.acquire().await?;
            let metadata = serde_json::json!({ "actor": "user:dev/alice" });
            let mut events = 0;
            while Instant::now() < end {
                let id = unique_id();
                sqlx::query(
                    "INSERT INTO events
                         (position, stream_id, version, event_id, event_type, payload, metadata, recorded_at)
                     VALUES ($1, $2, 1, $3, $4, $5, $6, now())",
                )
                .bind(next.fetch_add(1, Ordering::Relaxed) + 1)
                .bind(format!("thing/{}", id.simple()))
                .bind(id)
                .bind(EVENT_TYPE)
                .bind(PAYLOAD)
                .bind(&metadata)
                .execute(&mut *connection)
                .await?;
                events += 1;
            }
            Ok(events)
        }
    })
    .await;
    *positions.get_mut() = next.load(Ordering::Relaxed);
    rate
}

#[derive(Deserialize)]
struct Done {
    events: f64,
    seconds: f64,
}

/// In a process of its own, with connections of its own.
async fn peer(name: &str, database: &Database, callers: u32, seconds: f64) -> anyhow::Result<f64> {
    let done = Command::new("cargo")
        .args(["run", "--quiet", "--release", "--locked", "--manifest-path"])
        .arg(peers())
        .args(["--", name, "--database-url", database.url()])
        .args([
            "--callers",
            &callers.to_string(),
            "--seconds",
            &seconds.to_string(),
        ])
        .stderr(Stdio::inherit())
        .output()
        .await?;
    if !done.status.success() {
        bail!("the peer ended with {}", done.status);
    }
    let Done { events, seconds } = serde_json::from_slice(&done.stdout)?;
    Ok(events / seconds)
}

fn peers() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("peers/Cargo.toml")
}

async fn peers_are_built() -> bool {
    eprintln!("building the other event stores (tests/peers)");
    let built = Command::new("cargo")
        .args(["build", "--release", "--locked", "--manifest-path"])
        .arg(peers())
        .stdout(Stdio::null())
        .status()
        .await;
    let built = built.is_ok_and(|status| status.success());
    if !built {
        eprintln!("they can't be built here: postgres-es and disintegrate-postgres are left out");
    }
    built
}
