//! What a service is made of around its own rpcs: database, log and relay, followers, access layer, server.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use eventlog::bus::{self, Bus, BusError};
use eventlog::{
    EventLog, EventLogRpc, Fold, Follower, LogError, Owner, Progress, React, Reactions, Relay,
    RelayState,
};
use proto::eventlog::v1::consistency_service_server::ConsistencyServiceServer;
use proto::eventlog::v1::event_log_service_server::EventLogServiceServer;
use sqlx::PgPool;
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::timeout_at;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::authentication::{Authenticator, ClientError, OwnKeys};
use crate::authorization::InvalidContract;
use crate::channel::{Channel, ServiceToken};
use crate::consistency::{ConsistencyRpc, Positions, Visibility};
use crate::health::Health;
use crate::hierarchy::Hierarchy;
use crate::layer::AccessLayer;
use crate::metrics::{self, Sources};
use crate::rate::{PeerRates, Rates};
use crate::rpc::RpcLayer;
use crate::server::{ServeError, Services, serve};
use crate::settings::Settings;
use crate::status::chain;

/// Connections of a process to its database.
const CONNECTIONS: u32 = 16;
/// How long a request waits for one of them.
const CONNECTION_PATIENCE: Duration = Duration::from_secs(5);
/// Appends and followers pass through one locked row. What PostgreSQL does with a process that is stopped or cut off
/// while it holds the lock, and with those who wait for it: behind it a revocation may wait too.
const LOCK_LIMITS: [(&str, &str); 2] = [
    ("idle_in_transaction_session_timeout", "2s"),
    ("lock_timeout", "30s"),
];
/// What PostgreSQL does with a query that nobody waits for any more: it does not learn that its rpc is over.
const QUERY_LIMITS: [(&str, &str); 1] = [("statement_timeout", "60s")];
/// What queries cost is not known to PostgreSQL that go down a hierarchy, and to compile one (hundreds of milliseconds)
/// takes longer than it does.
const NO_COMPILING: [(&str, &str); 1] = [("jit", "off")];
/// So long a follower may fail to apply what is there until the service is not well. A deletion of millions of groups and
/// workspaces takes minutes.
const HELD_UP_FOR_LONG: Duration = Duration::from_mins(5);
/// How often the log's end is looked at for the metrics: any process may make it grow.
const LOOK: Duration = Duration::from_secs(1);
/// Between attempts to reach the database at the start.
const RETRY: Duration = Duration::from_secs(1);

/// A service that is being put together.
pub struct Host {
    settings: Settings,
    pool: PgPool,
    queries: PgPool,
    bus: Bus,
    health: Health,
    stop: CancellationToken,
    tasks: TaskTracker,
    log: Option<EventLog>,
    relay: Option<watch::Receiver<RelayState>>,
    followed: Vec<(&'static str, watch::Receiver<Progress>)>,
    reactions_waiting: Option<watch::Receiver<u64>>,
    own_keys: Option<OwnKeys>,
    peer_rates: PeerRates,
}

/// The service can't start, or failed.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The database url is none.
    #[error("the database url can't be used")]
    DatabaseUrl(#[source] sqlx::Error),
    /// The database's tables can't be brought up to date.
    #[error("the database can't be migrated")]
    Migrate(#[from] MigrateError),
    /// The log can't be read.
    #[error(transparent)]
    Log(#[from] LogError),
    /// NATS can't be used.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// The HTTP client can't be made.
    #[error("the client for OIDC issuers can't be made")]
    Client(#[from] ClientError),
    /// A peer's address can't be used.
    #[error("a peer's address can't be used")]
    Peer(#[from] tonic::transport::Error),
    /// No peer of this service.
    #[error("{0} is no other service's address")]
    NoPeer(&'static str),
    /// The contract can't be enforced.
    #[error(transparent)]
    Contract(#[from] InvalidContract),
    /// The server failed.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// The server of metrics can't listen.
    #[error("metrics can't be served on {0}")]
    Metrics(SocketAddr, #[source] std::io::Error),
    /// Told to stop while starting.
    #[error("stopped while starting")]
    Stopped,
}

/// A service as the others know it, for its log or to wait for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Peer {
    /// `namespace`.
    Namespace,
    /// `identity`.
    Identity,
    /// `issuer`.
    Issuer,
    /// `projector`.
    Projector,
}

/// When a service that follows a log is ready to serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// With what it has, once it has anything: a replica serves while the log's owner is away.
    OnceBegun,
    /// At the log's end: read models that are being built are not shown.
    OnceCurrent,
}

impl Peer {
    /// Every one.
    pub(crate) const ALL: [Self; 4] = [
        Self::Namespace,
        Self::Identity,
        Self::Issuer,
        Self::Projector,
    ];

    /// Where the others find its address.
    pub(crate) fn variable(self) -> &'static str {
        match self {
            Self::Namespace => "THARSIS_NAMESPACE_URL",
            Self::Identity => "THARSIS_IDENTITY_URL",
            Self::Issuer => "THARSIS_ISSUER_GRPC_URL",
            Self::Projector => "THARSIS_PROJECTOR_URL",
        }
    }

    /// The name of its log.
    fn log(self) -> &'static str {
        match self {
            Self::Namespace => "namespace",
            Self::Identity => "identity",
            Self::Issuer => "issuer",
            Self::Projector => "projector",
        }
    }
}

impl Host {
    /// Connects. The database may come later than we: it is waited for. `schema` is where the tables are, if not in
    /// the database's default one.
    pub async fn connect(
        settings: Settings,
        schema: Option<&str>,
        own: Option<&Migrator>,
        stop: CancellationToken,
    ) -> Result<Self, HostError> {
        let options: PgConnectOptions = settings
            .database_url
            .reveal()
            .parse()
            .map_err(HostError::DatabaseUrl)?;
        let options = match schema {
            Some(schema) => options.options([("search_path", schema)]),
            None => options,
        }
        .options(LOCK_LIMITS)
        .options(NO_COMPILING);
        let connections = PgPoolOptions::new()
            .max_connections(CONNECTIONS)
            .acquire_timeout(CONNECTION_PATIENCE);
        let queries = options.clone().options(QUERY_LIMITS);
        let queries = connections.clone().connect_lazy_with(queries);
        let pool = connections.connect_lazy_with(options);
        stop.run_until_cancelled(reach(&pool))
            .await
            .ok_or(HostError::Stopped)?;
        if let Some(schema) = schema {
            // A name of our own, never of a request.
            let statement = sqlx::AssertSqlSafe(format!("CREATE SCHEMA IF NOT EXISTS {schema}"));
            sqlx::query(statement)
                .execute(&pool)
                .await
                .map_err(MigrateError::from)?;
        }
        eventlog::migrate(&pool, own).await?;
        let bus = Bus::connect(bus::Settings {
            url: settings.nats_url.reveal().to_owned(),
            credentials: settings.nats_credentials_file.clone(),
            prefix: settings.nats_prefix.clone(),
            replicas: settings.nats_replicas,
        })
        .await?;
        let health = Health::new();
        let tasks = TaskTracker::new();
        let peer_rates = PeerRates::new(settings.requests_per_second);
        Ok(Self {
            settings,
            pool,
            queries,
            bus,
            health,
            stop,
            tasks,
            log: None,
            relay: None,
            followed: vec![],
            reactions_waiting: None,
            own_keys: None,
            peer_rates,
        })
    }

    /// The database.
    #[must_use]
    pub fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// The database, for queries that take no longer than an rpc may: so many at once that followers and what rpcs lean
    /// on keep connections.
    #[must_use]
    pub fn queries(&self) -> &PgPool {
        &self.queries
    }

    /// Tells when to stop.
    #[must_use]
    pub fn stop(&self) -> &CancellationToken {
        &self.stop
    }

    /// Where a service says what its own work depends on.
    #[must_use]
    pub fn health(&self) -> Health {
        self.health.clone()
    }

    /// Opens the service's own log, and relays it.
    pub async fn open_log(&mut self, name: &'static str) -> Result<EventLog, HostError> {
        let log = EventLog::open(name, self.pool.clone()).await?;
        let relay = Relay::new(log.clone(), self.bus.clone());
        self.relay = Some(relay.state());
        self.beside(watch_relay(self.health.clone(), relay.state()));
        self.tasks.spawn(relay.run(self.stop.clone()));
        self.log = Some(log.clone());
        Ok(log)
    }

    /// Follows the log of another service. The service is unhealthy from a follower's halt on, and until the follower
    /// has come to the log's end for the first time, as `readiness` asks.
    pub async fn follow<F: Fold>(
        &mut self,
        peer: Peer,
        readiness: Readiness,
        fold: Arc<F>,
    ) -> Result<watch::Receiver<Progress>, HostError> {
        let log = peer.log();
        let begun = eventlog::checkpoint(&self.pool, log)
            .await
            .map_err(LogError::from)?
            .is_some();
        let owner = self.owner(peer)?;
        let follower = Follower::new(log, self.pool.clone(), self.bus.clone(), owner, fold);
        let progress = follower.progress();
        self.tasks.spawn(follower.run(self.stop.clone()));
        let ready = begun && readiness == Readiness::OnceBegun;
        let watched = watch_follower(self.health.clone(), log, ready, progress.clone());
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            stop.run_until_cancelled(watched).await;
        });
        self.followed.push((log, progress.clone()));
        Ok(progress)
    }

    /// Carries out what follows from events until told to stop.
    pub fn react<R: React>(&mut self, reactions: Reactions<R>) {
        self.reactions_waiting = Some(reactions.waiting());
        self.beside(reactions.run());
    }

    /// Runs a task of the service's own until it is told to stop.
    pub fn beside(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            stop.run_until_cancelled(task).await;
        });
    }

    /// The log of another service, by the service itself.
    pub fn owner(&self, peer: Peer) -> Result<Owner, HostError> {
        Ok(Owner::new(self.channel(peer)?))
    }

    /// A channel to another service.
    pub fn channel(&self, peer: Peer) -> Result<Channel, HostError> {
        let address = self.settings.peers.get(&peer);
        let address = address.ok_or(HostError::NoPeer(peer.variable()))?;
        let token = ServiceToken::in_file(self.settings.service_token_file.clone());
        Ok(Channel::to(address, token)?)
    }

    /// The services that see a mutation before it is answered.
    pub fn visibility(&self, peers: &[Peer]) -> Result<Visibility, HostError> {
        let channels: Result<Vec<_>, _> = peers.iter().map(|peer| self.channel(*peer)).collect();
        Ok(Visibility::new(channels?))
    }

    /// What counts the requests of those who have no token of ours: all of them together, over whatever they ask.
    #[must_use]
    pub fn peer_rates(&self) -> PeerRates {
        self.peer_rates.clone()
    }

    /// In the issuer: its tokens are verified with the keys that it has, and those of its jobs are taken too.
    pub fn signs_with(&mut self, keys: OwnKeys) {
        self.own_keys = Some(keys);
    }

    /// Serves behind the access layer until told to stop, then ends what runs beside.
    pub async fn serve(self, listener: TcpListener, services: Services) -> Result<(), HostError> {
        let rpcs = RpcLayer::default();
        self.serve_metrics(&rpcs).await?;
        let Settings {
            issuers,
            administrators,
            event_readers,
            requests_per_second,
            issuer_url,
            ..
        } = self.settings;
        let authenticator = Authenticator::new(issuers, administrators, event_readers)?;
        let authenticator = match self.own_keys {
            Some(keys) => authenticator.of_own_issuer(keys),
            None => authenticator.with_service_accounts(issuer_url),
        };
        let positions = Positions::new(self.log.clone(), self.followed);
        let layer = AccessLayer::new(
            authenticator,
            Hierarchy::new(self.pool.clone()),
            positions,
            requests_per_second.map(Rates::new),
            self.peer_rates,
        )?;
        let services = services.with(ConsistencyServiceServer::new(ConsistencyRpc));
        let services = match self.log {
            Some(log) => services.with(EventLogServiceServer::new(EventLogRpc::new(log))),
            None => services,
        };
        tracing::info!(address = ?listener.local_addr().ok(), "serving gRPC");
        let served = serve(
            listener,
            services,
            rpcs,
            layer,
            self.health,
            self.stop.clone(),
        )
        .await;
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        // A connection that hangs is not worth waiting for: whatever it holds is rolled back.
        let _ = tokio::time::timeout(CONNECTION_PATIENCE, self.pool.close()).await;
        let _ = tokio::time::timeout(CONNECTION_PATIENCE, self.queries.close()).await;
        Ok(served?)
    }

    /// Beside the rpcs, if a place is configured.
    async fn serve_metrics(&self, rpcs: &RpcLayer) -> Result<(), HostError> {
        let Some(address) = self.settings.metrics_listen else {
            return Ok(());
        };
        let log = self.log.as_ref().zip(self.relay.clone());
        let log = log.map(|(log, relay)| {
            let (end, looked_at) = watch::channel(*log.watch().borrow());
            self.beside(look_at_end(log.clone(), end));
            (log.name(), looked_at, relay)
        });
        let sources = Sources {
            rpcs: rpcs.0.clone(),
            health: self.health.clone(),
            pool: self.pool.clone(),
            log,
            followed: self.followed.clone(),
            reactions_waiting: self.reactions_waiting.clone(),
        };
        let listener = TcpListener::bind(address).await;
        let listener = listener.map_err(|error| HostError::Metrics(address, error))?;
        self.tasks
            .spawn(metrics::serve(listener, sources, self.stop.clone()));
        Ok(())
    }
}

/// Tells where the log ends, whichever process has made it grow, and however NATS is.
async fn look_at_end(log: EventLog, end: watch::Sender<u64>) {
    loop {
        if let Ok(head) = log.head().await {
            end.send_replace(head.position);
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Tells health whether the stream contradicts the log, which is then not what it was. That a relay stands still for
/// another reason keeps nobody from being served: followers read the log itself. It says so in its own log lines.
async fn watch_relay(health: Health, mut relay: watch::Receiver<RelayState>) {
    loop {
        let contradiction = relay.borrow_and_update().contradiction.clone();
        let holds = contradiction.clone().map_or(Ok(()), Err);
        health.set("relay", holds).await;
        let other = |state: &RelayState| state.contradiction != contradiction;
        if relay.wait_for(other).await.is_err() {
            return;
        }
    }
}

/// Tells health how a follower is: catching up, following, held up for long, halted.
async fn watch_follower(
    health: Health,
    log: &str,
    ready: bool,
    mut progress: watch::Receiver<Progress>,
) {
    let condition = format!("follower:{log}");
    let first = if ready {
        Ok(())
    } else {
        Err("has not reached the log's end yet".to_owned())
    };
    health.set(&condition, first).await;
    let reached = |progress: &Progress| progress.current_at.is_some() || progress.halted.is_some();
    let reached = progress.wait_for(reached).await;
    if reached.is_ok_and(|progress| progress.halted.is_none()) {
        health.set(&condition, Ok(())).await;
    }
    let troubled =
        |progress: &Progress| progress.halted.is_some() || progress.held_up_since.is_some();
    // Its sender lives as long as the follower.
    while let Ok(now) = progress.wait_for(troubled).await.map(|now| now.clone()) {
        if let Some(halt) = now.halted {
            return health.set(&condition, Err(halt.to_string())).await;
        }
        let Some(since) = now.held_up_since else {
            continue;
        };
        let over = |progress: &Progress| {
            progress.halted.is_some() || progress.held_up_since != Some(since)
        };
        let soon_over = timeout_at(since + HELD_UP_FOR_LONG, progress.wait_for(over));
        if soon_over.await.is_err() {
            let wrong = "events wait that the database does not take".to_owned();
            health.set(&condition, Err(wrong)).await;
            let over = progress.wait_for(over).await;
            if over.is_ok_and(|progress| progress.halted.is_none()) {
                health.set(&condition, Ok(())).await;
            }
        }
    }
}

/// Waits until the database answers.
async fn reach(pool: &PgPool) {
    while let Err(error) = pool.acquire().await {
        tracing::warn!(error = chain(&error), "waiting for the database");
        tokio::time::sleep(RETRY).await;
    }
}

#[cfg(test)]
mod tests {
    use eventlog::Halt;
    use tokio::time::{Instant, timeout};
    use tokio_util::task::AbortOnDropHandle;

    use super::*;

    /// Waits until health says so.
    async fn holds(health: &Health, condition: &str, expected: bool) {
        let says = async {
            while health.conditions().await != [(condition.to_owned(), expected)] {
                tokio::task::yield_now().await;
            }
        };
        let said = timeout(Duration::from_secs(30), says).await;
        assert!(
            said.is_ok(),
            "waited for {expected}: {:?}",
            health.wrong().await
        );
    }

    #[tokio::test]
    async fn a_follower_that_is_held_up_for_long_is_not_well_until_it_moves() {
        let now = Instant::now();
        let long_ago = now.checked_sub(HELD_UP_FOR_LONG);
        let follower = watch::Sender::new(Progress {
            current_at: Some(now),
            ..Progress::default()
        });
        let health = Health::new();
        let watched = watch_follower(health.clone(), "namespace", false, follower.subscribe());
        let watched = tokio::spawn(watched);
        holds(&health, "follower:namespace", true).await;
        follower.send_modify(|progress| progress.held_up_since = long_ago);
        holds(&health, "follower:namespace", false).await;
        follower.send_modify(|progress| progress.held_up_since = None);
        holds(&health, "follower:namespace", true).await;
        follower.send_modify(|progress| progress.held_up_since = long_ago);
        holds(&health, "follower:namespace", false).await;
        follower.send_modify(|progress| progress.halted = Some(Halt::Diverged { position: 1 }));
        watched.await.expect("it ends there");
        let wrong = &health.wrong().await["follower:namespace"];
        assert!(wrong.contains("another event at 1"), "{wrong}");
    }

    #[tokio::test]
    async fn a_stream_that_contradicts_the_log_is_told_and_no_other_problem_of_the_relay() {
        let relay = watch::Sender::new(RelayState::default());
        let health = Health::new();
        let _watched =
            AbortOnDropHandle::new(tokio::spawn(watch_relay(health.clone(), relay.subscribe())));
        holds(&health, "relay", true).await;
        relay.send_modify(|state| {
            state.problem = Some("NATS is not connected".to_owned());
            state.contradiction = Some("ends at 10, but the log at 4".to_owned());
        });
        holds(&health, "relay", false).await;
        assert_eq!(
            health.wrong().await["relay"],
            "ends at 10, but the log at 4"
        );
        relay.send_modify(|state| state.contradiction = None);
        holds(&health, "relay", true).await;
    }
}
