//! From an acknowledged command to its answer in the directory, against a directory read that waits for nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use e2e::user::{self, User};
use e2e::{Service, World};
use proto::directory::v1::ListChildrenRequest;
use proto::namespace::v1::DeleteWorkspaceRequest;
use tokio::task::JoinSet;

use crate::report::{Row, report};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Rounds; each looks at an idle set, then at one under load.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Commands whose way is measured, in each half of a round.
    #[arg(long, default_value_t = 300)]
    commands: usize,
    /// Callers who change things all the time, in the half under load.
    #[arg(long, default_value_t = 4)]
    load: usize,
}

/// Latencies of a half, each sorted when it is complete.
#[derive(Default)]
struct Half {
    visible: Vec<Duration>,
    read: Vec<Duration>,
}

/// Milliseconds at 50 and 99 % of each round.
#[derive(Default)]
struct Quantiles {
    visible: [Vec<f64>; 2],
    read: [Vec<f64>; 2],
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let world = World::start().await;
    let admin = world.admin().in_a_hurry();
    for group in ["measured", "load"] {
        world.admin().creates_group(group).await;
    }
    let (mut idle, mut loaded) = (Quantiles::default(), Quantiles::default());
    for round in 1..=arguments.rounds {
        let names = |half: &str| format!("{half}-{round}");
        idle.add(measure(&admin, &names("idle"), arguments.commands).await?);
        let load = Load::begin(&admin, arguments.load, round);
        let half = measure(&admin, &names("loaded"), arguments.commands).await?;
        let (commands, seconds) = load.end().await?;
        loaded.add(half);
        eprintln!(
            "round {round}: idle p50 {:.2} ms, p99 {:.2} ms; beside {:.0} commands/s p50 {:.2} ms, p99 {:.2} ms",
            idle.visible[0][round - 1],
            idle.visible[1][round - 1],
            f64::from(commands) / seconds,
            loaded.visible[0][round - 1],
            loaded.visible[1][round - 1],
        );
    }
    let rows = [("idle", &idle), ("under load", &loaded)];
    let rows = rows.into_iter().flat_map(|(name, half)| {
        [(0, "p50"), (1, "p99")].map(|(index, quantile)| {
            Row::new(format!("{name} {quantile}"), "ms", &half.visible[index]).against(
                "read without waiting",
                &half.read[index],
                None,
            )
        })
    });
    report("lag", &rows.collect::<Vec<_>>())
}

/// One command after the other: each is acknowledged without waiting, then read with its consistency token, then read
/// again.
async fn measure(admin: &User, prefix: &str, commands: usize) -> anyhow::Result<Half> {
    let mut half = Half::default();
    let group = admin.creates_group(&format!("measured/{prefix}")).await;
    for number in 0..commands {
        let mut request = user::workspace(&format!("n{number}"));
        if let Some(workspace) = &mut request.workspace {
            workspace.group_id.clone_from(&group.id);
        }
        let made = admin.asks(request).await?;
        let read = async |consistency_token: String| {
            let request = ListChildrenRequest {
                group_id: group.id.clone(),
                page_size: 1,
                consistency_token,
                ..Default::default()
            };
            let start = Instant::now();
            admin.calls(Service::Projector, request).await?;
            anyhow::Ok(start.elapsed())
        };
        half.visible.push(read(made.consistency_token).await?);
        half.read.push(read(String::new()).await?);
    }
    Ok(half)
}

impl Quantiles {
    fn add(&mut self, half: Half) {
        for (mut times, quantiles) in [
            (half.visible, &mut self.visible),
            (half.read, &mut self.read),
        ] {
            times.sort_unstable();
            for (quantile, percent) in quantiles.iter_mut().zip([50, 99]) {
                let time = times.get(times.len() * percent / 100);
                quantile.push(time.map_or(f64::NAN, |time| time.as_secs_f64() * 1_000.0));
            }
        }
    }
}

/// Callers who go on making and deleting workspaces until they are told to end.
struct Load {
    enough: Arc<AtomicBool>,
    callers: JoinSet<anyhow::Result<u32>>,
    start: Instant,
}

impl Load {
    fn begin(admin: &User, callers: usize, round: usize) -> Self {
        let enough = Arc::<AtomicBool>::default();
        let make = |caller| {
            let (admin, enough) = (admin.clone(), Arc::clone(&enough));
            async move {
                let mut made = 0_u32;
                while !enough.load(Ordering::Relaxed) {
                    let path = format!("load/n{round}-{caller}-{made}");
                    let workspace = admin.creates_workspace(&path).await;
                    let request = DeleteWorkspaceRequest {
                        id: workspace.id,
                        ..Default::default()
                    };
                    admin.asks(request).await?;
                    made += 2;
                }
                anyhow::Ok(made)
            }
        };
        let callers = (0..callers).map(make).collect();
        Self {
            enough,
            callers,
            start: Instant::now(),
        }
    }

    /// How many commands were carried out, in how many seconds.
    async fn end(self) -> anyhow::Result<(u32, f64)> {
        let seconds = self.start.elapsed().as_secs_f64();
        self.enough.store(true, Ordering::Relaxed);
        let made: anyhow::Result<Vec<_>> = self.callers.join_all().await.into_iter().collect();
        Ok((made?.into_iter().sum(), seconds))
    }
}
