//! Credentials: what a token costs the issuer's process, against what its signature alone costs; and how long one takes at
//! half the load that the issuer can take.

use std::fs;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use aws_lc_rs::encoding::{AsDer as _, Pkcs8V1Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::RSA_PKCS1_SHA256;
use e2e::clouds::example;
use e2e::{Service, User, World};
use issuer::Config;
use proto::issuer::v1::IssueCredentialsRequest;
use sqlx::PgPool;
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::report::{Row, report};

/// The clock of `/proc/PID/stat`, in ticks a second: on Linux always 100 as user space sees it (`man 7 time`).
const TICKS: f64 = 100.0;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Rounds; each issues credentials, one and all of a workspace's at a time, and makes plain signatures.
    #[arg(long, default_value_t = 10)]
    rounds: usize,
    /// Of issuing in a round; of signing, as much: half of it on all cores, before and after.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Jobs that ask at the same time, each for one credential after the other.
    #[arg(long, default_value_t = 32)]
    jobs: usize,
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let mut world = World::start().await;
    let admin = world.admin();
    let identities = identities(&admin).await;
    let (one, all) = (
        Asked::One(identities[0].as_str().into()),
        Asked::All(identities.len()),
    );
    let mut jobs = Vec::new();
    for _ in 0..arguments.jobs {
        let job = admin.opens_job("trn:workspace:acme/app").await;
        jobs.push(admin.with_token(&job.token));
    }
    // It would follow what is issued on the same cores, and the issuer does not need it.
    world.stops(Service::Projector).await;
    world.stops(Service::Issuer).await;
    let issuer = serve(&world)?;
    world.is_serving(Service::Issuer).await;
    let pid = issuer.id().context("the issuer has ended")?;
    let [
        mut issued,
        mut signed,
        mut issued_all,
        mut signed_all,
        mut alone,
    ] = [const { Vec::new() }; 5];
    let (mut halfway, mut beside, mut signing) = ([vec![], vec![]], [vec![], vec![]], Vec::new());
    let pool = world.database(Service::Issuer).pool();
    sqlx::query("CREATE TABLE plain (number int)")
        .execute(pool)
        .await?;
    let cores = u32::try_from(std::thread::available_parallelism()?.get())?;
    // The first credential of each job is decided from the database, and every connection is made.
    issue(&jobs, &one, 0.5).await?;
    issue(&jobs, &all, 0.5).await?;
    for round in 1..=arguments.rounds {
        let signed_before = sign(arguments.seconds / 4.0, cores).await?;
        let before = cpu(pid)?;
        let (tokens, wall) = issue(&jobs, &one, arguments.seconds).await?;
        issued.push(tokens / (cpu(pid)? - before));
        let signed_between = sign(arguments.seconds / 4.0, cores).await?;
        signed.push(f64::midpoint(signed_before, signed_between));
        let before = cpu(pid)?;
        let (tokens_of_all, _) = issue(&jobs, &all, arguments.seconds).await?;
        issued_all.push(tokens_of_all / (cpu(pid)? - before));
        let signed_after = sign(arguments.seconds / 4.0, cores).await?;
        signed_all.push(f64::midpoint(signed_between, signed_after));
        alone.push(sign(arguments.seconds / 2.0, 1).await?);
        let enough = CancellationToken::new();
        let (waited, inserted) = tokio::join!(
            async {
                let _over = enough.clone().drop_guard();
                wait(&jobs, &one, tokens / wall / 2.0, arguments.seconds).await
            },
            insert(pool, &enough)
        );
        for (quantiles, times) in [(&mut halfway, waited?), (&mut beside, inserted?)] {
            for (quantile, percent) in quantiles.iter_mut().zip([50, 99]) {
                let time = times.get(times.len() * percent / 100);
                quantile.push(time.map_or(f64::NAN, |time| time.as_secs_f64() * 1_000.0));
            }
        }
        signing.push(1_000.0 / alone[round - 1]);
        eprintln!(
            "round {round}: {:.0} credentials and {:.0} signatures in a second of CPU, {:.0} by one alone; {} at a time, \
             {:.0} and {:.0}; {:.0} credentials/s; at half of that p50 {:.2} ms, p99 {:.2} ms, a plain insert beside {:.2} and {:.2} ms",
            issued[round - 1],
            signed[round - 1],
            alone[round - 1],
            identities.len(),
            issued_all[round - 1],
            signed_all[round - 1],
            tokens / wall,
            halfway[0][round - 1],
            halfway[1][round - 1],
            beside[0][round - 1],
            beside[1][round - 1],
        );
    }
    let row = Row::new("credentials", "per CPU second", &issued)
        .against("raw RS256 signature", &signed, Some(0.8))
        .against("by one process alone", &alone, None);
    let row_of_all = Row::new("four at a time", "per CPU second", &issued_all).against(
        "raw RS256 signature",
        &signed_all,
        Some(0.8),
    );
    let half = |name: &str, quantile: usize| {
        Row::new(format!("{name} at half load"), "ms", &halfway[quantile])
            .against("one signature", &signing, None)
            .against("plain insert beside", &beside[quantile], None)
    };
    let rows = [row, row_of_all, half("p50", 0), half("p99", 1)];
    report("credentials", &rows)
}

/// A workspace, `acme/app`, with an identity of each type. Answers with their ids.
async fn identities(admin: &User) -> Vec<String> {
    admin.creates_group("acme").await;
    admin.creates_workspace("acme/app").await;
    let mut identities = Vec::new();
    for (name, configuration) in example::identities() {
        let path = format!("acme/{name}");
        let identity = admin.registers(&path, configuration).await.id;
        admin.assigns(&identity, "trn:workspace:acme/app").await;
        identities.push(identity);
    }
    identities
}

/// Until told to stop, a hundred times a second at most, how long a plain row takes until it is durable: the least that
/// the audit of a credential costs at the same time. Sorted.
async fn insert(pool: &PgPool, stop: &CancellationToken) -> anyhow::Result<Vec<Duration>> {
    let mut inserted = Vec::new();
    while stop
        .run_until_cancelled(tokio::time::sleep(Duration::from_millis(10)))
        .await
        .is_some()
    {
        let begun = Instant::now();
        let row = sqlx::query("INSERT INTO plain VALUES (1)");
        row.execute(pool).await?;
        inserted.push(begun.elapsed());
    }
    inserted.sort_unstable();
    Ok(inserted)
}

/// Has the jobs ask so many times a second in all, however long an answer takes. Answers with how long each took from
/// when it was due, sorted.
async fn wait(
    jobs: &[User],
    asked: &Asked,
    rate: f64,
    seconds: f64,
) -> anyhow::Result<Vec<Duration>> {
    let (due, mut dues) = mpsc::unbounded_channel();
    let start = Instant::now();
    let clock = std::thread::spawn(move || tick(start, rate, seconds, &due));
    let (mut jobs, mut asking) = (jobs.iter().cycle(), JoinSet::new());
    while let Some((due, job)) = dues.recv().await.zip(jobs.next()) {
        let (job, asked) = (job.clone(), asked.clone());
        asking.spawn(async move {
            asked.of(&job).await?;
            anyhow::Ok(start.elapsed().saturating_sub(due))
        });
    }
    let waited = asking.join_all().await;
    ensure!(clock.join().is_ok(), "the clock stopped");
    let mut waited: Vec<_> = waited.into_iter().collect::<anyhow::Result<_>>()?;
    waited.sort_unstable();
    Ok(waited)
}

/// Says so many times a second that it is time. The runtime's own timers are a millisecond or two late, which would count
/// as waiting.
#[expect(
    clippy::disallowed_methods,
    reason = "on a thread of its own, which sleeps as exactly as the system does"
)]
fn tick(start: Instant, rate: f64, seconds: f64, told: &mpsc::UnboundedSender<Duration>) {
    let dues = (0_u32..).map(|number| Duration::from_secs_f64(f64::from(number) / rate));
    for due in dues.take_while(|due| due.as_secs_f64() <= seconds) {
        std::thread::sleep(due.saturating_sub(start.elapsed()));
        if told.send(due).is_err() {
            break;
        }
    }
}

/// Has each job ask until the time is up. Answers with how many credentials there were, and in how many seconds.
async fn issue(jobs: &[User], asked: &Asked, seconds: f64) -> anyhow::Result<(f64, f64)> {
    let start = Instant::now();
    let ask = |job: &User| {
        let (job, asked) = (job.clone(), asked.clone());
        async move {
            let mut issued = 0;
            while start.elapsed() < Duration::from_secs_f64(seconds) {
                issued += asked.of(&job).await?;
            }
            anyhow::Ok(issued)
        }
    };
    let asking: JoinSet<_> = jobs.iter().map(ask).collect();
    let mut issued = 0;
    for of_one in asking.join_all().await {
        issued += of_one?;
    }
    Ok((f64::from(issued), start.elapsed().as_secs_f64()))
}

/// What a job asks for.
#[derive(Clone)]
enum Asked {
    /// The credential of the identity with this id.
    One(Arc<str>),
    /// Those of all the workspace's identities, which are so many.
    All(usize),
}

impl Asked {
    /// Asks a job's issuer. Answers with how many credentials it got.
    async fn of(&self, job: &User) -> anyhow::Result<u32> {
        let tokens = match self {
            Self::One(identity) => vec![job.asks(e2e::user::credential(identity)).await?.token],
            Self::All(count) => {
                let all = job.asks(IssueCredentialsRequest::default()).await?;
                ensure!(
                    all.credentials.len() == *count,
                    "refused: {:?}",
                    all.refusals
                );
                let credentials = all.credentials.into_iter();
                credentials.map(|credential| credential.token).collect()
            }
        };
        ensure!(
            tokens.iter().all(|token| !token.is_empty()),
            "there is no token"
        );
        Ok(u32::try_from(tokens.len())?)
    }
}

/// The issuer in a process of its own; it ends with the value.
fn serve(world: &World) -> anyhow::Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command
        .arg("serve-issuer")
        .envs(world.environment(Service::Issuer))
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command.spawn().context("the issuer can't be started")
}

/// What the process of [`serve`] does.
pub(crate) async fn serve_issuer() -> anyhow::Result<()> {
    let config = edge::settings::from_process(Config::read)?;
    let listener = TcpListener::bind(config.settings.grpc_listen).await?;
    let http_listener = TcpListener::bind(config.http_listen).await?;
    Ok(issuer::run(config, listener, http_listener, CancellationToken::new()).await?)
}

/// Signatures in a second of CPU, of so many processes that do nothing else at the same time. With all cores busy, as
/// they are while credentials are issued: a second of a core is worth less where its twin is busy too.
async fn sign(seconds: f64, processes: u32) -> anyhow::Result<f64> {
    let signing: JoinSet<_> = (0..processes)
        .map(|_| async move {
            let done = Command::new(std::env::current_exe()?)
                .args(["sign", "--seconds", &seconds.to_string()])
                .stderr(Stdio::inherit())
                .output()
                .await?;
            ensure!(done.status.success(), "signing ended with {}", done.status);
            anyhow::Ok(String::from_utf8(done.stdout)?.trim().parse::<f64>()?)
        })
        .collect();
    let signed = signing.join_all().await;
    let signed: Vec<f64> = signed.into_iter().collect::<anyhow::Result<_>>()?;
    Ok(signed.iter().sum::<f64>() / f64::from(processes))
}

#[derive(clap::Args)]
pub(crate) struct SignArguments {
    #[arg(long)]
    seconds: f64,
}

/// What the process of [`sign`] does.
#[expect(clippy::print_stdout, reason = "it is the answer")]
pub(crate) fn sign_alone(arguments: &SignArguments) -> anyhow::Result<()> {
    let der: Pkcs8V1Der = KeyPair::generate(KeySize::Rsa2048)?.as_der()?;
    let key = KeyPair::from_pkcs8(der.as_ref())?;
    // As long as the header and claims of a credential are.
    let message = [b'x'; 800];
    let mut signature = vec![0; key.public_modulus_len()];
    let (start, before) = (Instant::now(), cpu(std::process::id())?);
    let mut signatures = 0_u32;
    while start.elapsed() < Duration::from_secs_f64(arguments.seconds) {
        key.sign(
            &RSA_PKCS1_SHA256,
            &SystemRandom::new(),
            &message,
            &mut signature,
        )?;
        signatures += 1;
    }
    println!(
        "{}",
        f64::from(signatures) / (cpu(std::process::id())? - before)
    );
    Ok(())
}

/// Seconds of CPU that a process has used, in user space and in the kernel.
fn cpu(pid: u32) -> anyhow::Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))
        .context("the CPU time of a process is read from /proc, which only Linux has")?;
    // The command's name stands in parentheses and may hold anything; utime and stime are the 14th and 15th word.
    let words = stat.rsplit(") ").next().unwrap_or_default();
    let ticks: Vec<f64> = words
        .split(' ')
        .skip(11)
        .take(2)
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    Ok(ticks.iter().sum::<f64>() / TICKS)
}
