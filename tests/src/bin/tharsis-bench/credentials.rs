//! Credentials: what a token costs the issuer's process, against what its signature alone costs; and how long one takes at
//! half the load that the issuer can take. Both beside a service that does the least.

use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
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
use tonic::transport::Endpoint;

use crate::cpu::cpu;
use crate::least::{self, sign};
use crate::report::{Row, report};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Rounds; each issues credentials, one and all of a workspace's at a time, has the least service do as much, and makes
    /// plain signatures.
    #[arg(long, default_value_t = 10)]
    rounds: usize,
    /// Of issuing in a round; of signing, as much: half of it on all cores, before and after.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Jobs that ask at the same time, each for one credential after the other; over one connection, as a platform would
    /// that asks for its jobs.
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
    let pool = world.database(Service::Issuer).pool();
    least::create_table(pool).await?;
    let least = Server::least(&world, &jobs).await?;
    let environment = world.environment(Service::Issuer);
    let issuer = Server::start(&["serve-issuer"], environment, jobs)?;
    world.is_serving(Service::Issuer).await;
    // The first credential of each job is decided from the database, and every connection is made.
    for (server, asked) in [(&issuer, &one), (&issuer, &all), (&least, &one)] {
        server.issue(asked, 0.5).await?;
    }
    let cores = u32::try_from(std::thread::available_parallelism()?.get())?;
    let mut measured = Measured::default();
    for round in 1..=arguments.rounds {
        let signed_before = sign(arguments.seconds / 4.0, cores).await?;
        let (issued, rate) = issuer.issue(&one, arguments.seconds).await?;
        measured.issued.push(issued);
        let signed_between = sign(arguments.seconds / 4.0, cores).await?;
        let signed = f64::midpoint(signed_before, signed_between);
        measured.signed.push(signed);
        let (issued_all, _) = issuer.issue(&all, arguments.seconds).await?;
        measured.issued_all.push(issued_all);
        let signed_after = sign(arguments.seconds / 4.0, cores).await?;
        let signed_all = f64::midpoint(signed_between, signed_after);
        measured.signed_all.push(signed_all);
        let (at_least, _) = least.issue(&one, arguments.seconds).await?;
        measured.at_least.push(at_least);
        let alone = sign(arguments.seconds / 2.0, 1).await?;
        measured.alone.push(alone);
        measured.signing.push(1_000.0 / alone);
        let [ours, plain] = wait_beside(&issuer, &one, rate / 2.0, arguments.seconds, pool).await?;
        let [theirs, _] = wait_beside(&least, &one, rate / 2.0, arguments.seconds, pool).await?;
        measured.halfway.push(ours);
        measured.beside.push(plain);
        measured.halfway_at_least.push(theirs);
        eprintln!(
            "round {round}: {issued:.0} credentials in a second of CPU, {at_least:.0} of the least service, {signed:.0} \
             signatures, {alone:.0} by one alone; {} at a time, {issued_all:.0} and {signed_all:.0}; {rate:.0} credentials/s; \
             at half of that p50 {:.2} ms, p99 {:.2} ms, of the least service {:.2} and {:.2} ms, of a plain insert {:.2} and {:.2} ms",
            identities.len(),
            ours.p50,
            ours.p99,
            theirs.p50,
            theirs.p99,
            plain.p50,
            plain.p99,
        );
    }
    measured.report()
}

/// Of each round.
#[derive(Default)]
struct Measured {
    issued: Vec<f64>,
    issued_all: Vec<f64>,
    signed: Vec<f64>,
    signed_all: Vec<f64>,
    alone: Vec<f64>,
    at_least: Vec<f64>,
    halfway: Vec<Quantiles>,
    halfway_at_least: Vec<Quantiles>,
    beside: Vec<Quantiles>,
    /// Milliseconds.
    signing: Vec<f64>,
}

impl Measured {
    fn report(&self) -> anyhow::Result<()> {
        let row = Row::new("credentials", "per CPU second", &self.issued)
            .against("raw RS256 signature", &self.signed, Some(0.8))
            .against("by one process alone", &self.alone, None)
            .against("the least service", &self.at_least, None);
        let row_of_all = Row::new("four at a time", "per CPU second", &self.issued_all).against(
            "raw RS256 signature",
            &self.signed_all,
            Some(0.8),
        );
        let half = |name: &str, quantile: fn(&Quantiles) -> f64| {
            let of = |rounds: &[Quantiles]| rounds.iter().map(quantile).collect::<Vec<_>>();
            Row::new(format!("{name} at half load"), "ms", &of(&self.halfway))
                .against("one signature", &self.signing, None)
                .against("the least service", &of(&self.halfway_at_least), None)
                .against("plain insert beside", &of(&self.beside), None)
        };
        let (p50, p99) = (half("p50", |one| one.p50), half("p99", |one| one.p99));
        let over = self.halfway.iter().zip(&self.signing);
        let over: Vec<f64> = over.map(|(waited, one)| waited.p99 - one).collect();
        let over = Row::new("p99 over one signature", "ms", &over).aim_at_most(5.0);
        report("credentials", &[row, row_of_all, p50, p99, over])
    }
}

/// Of times, in milliseconds.
#[derive(Clone, Copy)]
struct Quantiles {
    p50: f64,
    p99: f64,
}

impl Quantiles {
    fn of(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        let at = |percent: usize| {
            let time = times.get(times.len() * percent / 100);
            time.map_or(f64::NAN, |time| time.as_secs_f64() * 1_000.0)
        };
        Self {
            p50: at(50),
            p99: at(99),
        }
    }
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
/// the audit of a credential costs at the same time.
async fn insert(pool: &PgPool, stop: &CancellationToken) -> anyhow::Result<Vec<Duration>> {
    let mut inserted = Vec::new();
    while stop
        .run_until_cancelled(tokio::time::sleep(Duration::from_millis(10)))
        .await
        .is_some()
    {
        let begun = Instant::now();
        least::insert(pool).await?;
        inserted.push(begun.elapsed());
    }
    Ok(inserted)
}

/// Has a server asked so many times a second, with a plain insert beside. Answers with how long either took.
async fn wait_beside(
    server: &Server,
    asked: &Asked,
    rate: f64,
    seconds: f64,
    pool: &PgPool,
) -> anyhow::Result<[Quantiles; 2]> {
    let enough = CancellationToken::new();
    let (waited, inserted) = tokio::join!(
        async {
            let _over = enough.clone().drop_guard();
            wait(&server.jobs, asked, rate, seconds).await
        },
        insert(pool, &enough)
    );
    Ok([Quantiles::of(waited?), Quantiles::of(inserted?)])
}

/// Has the jobs ask so many times a second in all, however long an answer takes. Answers with how long each took from
/// when it was due.
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
    waited.into_iter().collect()
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

/// A process that answers jobs; it ends with the value.
struct Server {
    process: u32,
    jobs: Vec<User>,
    _running: Child,
}

impl Server {
    /// This program with another command.
    fn start(
        arguments: &[&str],
        environment: Vec<(&'static str, String)>,
        jobs: Vec<User>,
    ) -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args(arguments)
            .envs(environment)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let running = command.spawn().context("a server can't be started")?;
        Ok(Self {
            process: running.id().context("a server has ended")?,
            jobs,
            _running: running,
        })
    }

    /// The service of [`least`], with the same callers.
    async fn least(world: &World, jobs: &[User]) -> anyhow::Result<Self> {
        let port = bed::free_port();
        let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{port}"))?;
        let channels = Arc::new([(Service::Issuer, endpoint.connect_lazy())].into());
        let jobs = jobs.iter().map(|job| {
            let (principal, token) = (job.principal().to_owned(), job.token().to_owned());
            User::new(Arc::clone(&channels), principal, token)
        });
        let database = world.database(Service::Issuer).url().to_owned();
        let started = Self::start(
            &["serve-least", "--port", &port.to_string()],
            vec![("THARSIS_DATABASE_URL", database)],
            jobs.collect(),
        )?;
        bed::eventually(async || Asked::One("".into()).of(&started.jobs[0]).await).await;
        Ok(started)
    }

    /// As much as it can. Answers with how many credentials there were in a second of its CPU, and in a second.
    async fn issue(&self, asked: &Asked, seconds: f64) -> anyhow::Result<(f64, f64)> {
        let before = cpu(self.process)?;
        let (tokens, wall) = issue(&self.jobs, asked, seconds).await?;
        Ok((tokens / (cpu(self.process)? - before), tokens / wall))
    }
}

/// What the process of the issuer does.
pub(crate) async fn serve_issuer() -> anyhow::Result<()> {
    let config = edge::settings::from_process(Config::read)?;
    let listener = TcpListener::bind(config.settings.grpc_listen).await?;
    let http_listener = TcpListener::bind(config.http_listen).await?;
    Ok(issuer::run(config, listener, http_listener, CancellationToken::new()).await?)
}
