//! The whole set in this process: own databases, own streams, every service through its own `run`.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Once};

use async_nats::jetstream;
use bed::{Database, NatsServer, eventually, free_port, shared_nats_url, unique_name};
use edge::settings::{self, Environment};
use sqlx::Row as _;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::issuer::{CallerIssuer, NAME};
use crate::user::User;

/// The four services.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Service {
    /// Groups, workspaces, memberships.
    Namespace,
    /// Managed identities.
    Identity,
    /// Jobs and credentials.
    Issuer,
    /// The directory.
    Projector,
}

impl Service {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::Namespace,
        Self::Identity,
        Self::Issuer,
        Self::Projector,
    ];
    /// Those with a log.
    pub const WITH_LOG: [Self; 3] = [Self::Namespace, Self::Identity, Self::Issuer];

    /// What it is called, its log too.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Namespace => "namespace",
            Self::Identity => "identity",
            Self::Issuer => "issuer",
            Self::Projector => "projector",
        }
    }
}

/// An event as its log holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// From 1.
    pub position: u64,
    /// `<aggregate>/<id>`.
    pub stream_id: String,
    /// The full name of its message.
    pub event_type: String,
    /// The message.
    pub payload: Vec<u8>,
    /// Who, as JSON.
    pub metadata: String,
}

/// All that a service may be told.
const VARIABLES: [&str; 20] = [
    "THARSIS_DATABASE_URL",
    "THARSIS_NATS_URL",
    "THARSIS_NATS_PREFIX",
    "THARSIS_GRPC_LISTEN",
    "THARSIS_OIDC_ISSUERS",
    "THARSIS_ADMINISTRATORS",
    "THARSIS_EVENT_READERS",
    "THARSIS_SERVICE_TOKEN_FILE",
    "THARSIS_NAMESPACE_URL",
    "THARSIS_IDENTITY_URL",
    "THARSIS_ISSUER_GRPC_URL",
    "THARSIS_PROJECTOR_URL",
    "THARSIS_HTTP_LISTEN",
    "THARSIS_ISSUER_URL",
    "THARSIS_KEY_ENCRYPTION_KEY_FILE",
    "THARSIS_KEY_SET_MAX_AGE_SECONDS",
    "THARSIS_CLOCK_SKEW_SECONDS",
    "THARSIS_KEY_ROTATION_SECONDS",
    "THARSIS_STALENESS_BOUND_SECONDS",
    "THARSIS_TRUSTED_ISSUER_NETWORKS",
];

/// How a world differs from the usual one.
#[derive(Default)]
pub struct Setup {
    own_nats: bool,
    staleness_bound: Option<u64>,
    keys: Option<KeyTimes>,
    issuer_path: &'static str,
}

/// Seconds in the life of a signing key.
#[derive(Clone, Copy, Debug)]
pub struct KeyTimes {
    /// How long relying parties may keep the key set.
    pub max_age: u64,
    /// By how much clocks may differ.
    pub clock_skew: u64,
    /// How long a key signs.
    pub rotation: u64,
}

impl Setup {
    /// With a NATS server that the test may kill.
    #[must_use]
    pub fn own_nats(self) -> Self {
        Self {
            own_nats: true,
            ..self
        }
    }

    /// With another bound, in seconds, on the age of the issuer's replica.
    #[must_use]
    pub fn staleness_bound(self, seconds: u64) -> Self {
        Self {
            staleness_bound: Some(seconds),
            ..self
        }
    }

    /// With an issuer whose URL has this path.
    #[must_use]
    pub fn issuer_path(self, path: &'static str) -> Self {
        Self {
            issuer_path: path,
            ..self
        }
    }

    /// With signing keys that live faster.
    #[must_use]
    pub fn keys(self, keys: KeyTimes) -> Self {
        Self {
            keys: Some(keys),
            ..self
        }
    }

    /// Starts it; every service serves when it answers.
    pub async fn start(self) -> World {
        tell_what_happens();
        let nats = if self.own_nats {
            Some(NatsServer::start().await)
        } else {
            None
        };
        let (callers, databases, listeners, http) = tokio::join!(
            CallerIssuer::start(),
            Box::pin(databases()),
            Box::pin(each(async |_| listener().await)),
            listener()
        );
        let issuer_port = http.local_addr().expect("it is bound").port();
        let ports: BTreeMap<_, _> = listeners
            .iter()
            .map(|(service, listener)| {
                let address = listener.local_addr().expect("it is bound");
                (*service, address.port())
            })
            .collect();
        let channel = |port: u16| {
            let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{port}"));
            endpoint.expect("an address").connect_lazy()
        };
        let channels = ports
            .iter()
            .map(|(service, port)| (*service, channel(*port)));
        let mut world = World {
            folder: Folder::create(&callers),
            channels: Arc::new(channels.collect()),
            nats_prefix: unique_name(),
            setup: self,
            nats,
            callers,
            databases,
            ports,
            issuer_port,
            running: BTreeMap::new(),
        };
        let mut http = Some(http);
        for (service, listener) in listeners {
            let http = http.take_if(|_| service == Service::Issuer);
            world.run(service, listener, http);
        }
        for service in Service::ALL {
            world.is_serving(service).await;
        }
        world
    }
}

/// The set. Stopped, and its databases dropped, with this value.
pub struct World {
    setup: Setup,
    running: BTreeMap<Service, Running>,
    channels: Arc<BTreeMap<Service, Channel>>,
    ports: BTreeMap<Service, u16>,
    issuer_port: u16,
    nats_prefix: String,
    nats: Option<NatsServer>,
    callers: CallerIssuer,
    folder: Folder,
    databases: BTreeMap<Service, Database>,
}

/// Another process of the issuer.
pub struct Sibling {
    /// Where it serves discovery.
    pub url: String,
    metrics: String,
    channels: Arc<BTreeMap<Service, Channel>>,
    running: Running,
}

impl Sibling {
    /// What its metrics say.
    pub async fn metrics(&self) -> reqwest::Result<String> {
        reqwest::get(&self.metrics).await?.text().await
    }

    /// The same caller, who talks to this issuer.
    #[must_use]
    pub fn for_user(&self, user: &User) -> User {
        User::new(
            Arc::clone(&self.channels),
            user.principal().to_owned(),
            user.token().to_owned(),
        )
    }
}

impl Drop for Sibling {
    fn drop(&mut self) {
        self.running.stop.cancel();
        self.running.ended.abort();
    }
}

struct Running {
    stop: CancellationToken,
    ended: JoinHandle<Result<(), String>>,
}

impl World {
    /// The usual one.
    pub async fn start() -> Self {
        Setup::default().start().await
    }

    /// Someone with a token of the callers' issuer, who waits until everybody sees a change, however slow the machine.
    #[must_use]
    pub fn user(&self, subject: &str) -> User {
        User::new(
            Arc::clone(&self.channels),
            format!("{NAME}/{subject}"),
            self.callers.token(subject),
        )
        .saying("tharsis-wait", "30s")
    }

    /// Someone without a token.
    #[must_use]
    pub fn stranger(&self) -> User {
        self.user("stranger").with_token("")
    }

    /// The configured administrator.
    #[must_use]
    pub fn admin(&self) -> User {
        self.user("admin")
    }

    /// Whose tokens are taken.
    #[must_use]
    pub fn callers(&self) -> &CallerIssuer {
        &self.callers
    }

    /// The `iss` of the credentials.
    #[must_use]
    pub fn issuer_url(&self) -> String {
        format!(
            "http://127.0.0.1:{}{}",
            self.issuer_port, self.setup.issuer_path
        )
    }

    /// The database of a service.
    #[must_use]
    pub fn database(&self, service: Service) -> &Database {
        &self.databases[&service]
    }

    /// The NATS server of this world's own.
    pub fn nats(&mut self) -> &mut NatsServer {
        self.nats
            .as_mut()
            .expect("the world has a NATS server of its own")
    }

    /// Stops a service, as SIGTERM does.
    pub async fn stops(&mut self, service: Service) {
        let Running { stop, ended } = self.running.remove(&service).expect("it runs");
        stop.cancel();
        let ended = ended.await.expect("it does not panic");
        assert_eq!(ended, Ok(()), "{service:?}");
    }

    /// Starts a service again, at the same address and with what its database has.
    pub async fn starts(&mut self, service: Service) {
        let bind = async |port: u16| {
            eventually(async || TcpListener::bind(("127.0.0.1", port)).await).await
        };
        let listener = bind(self.ports[&service]).await;
        let http = match service {
            Service::Issuer => Some(bind(self.issuer_port).await),
            _ => None,
        };
        self.run(service, listener, http);
    }

    /// Another process of the issuer beside the first, on the same database. It runs until the value is dropped.
    pub async fn runs_another_issuer(&self) -> Sibling {
        let (listener, http) = tokio::join!(listener(), listener());
        let port = listener.local_addr().expect("it is bound").port();
        let url = format!("http://{}", http.local_addr().expect("it is bound"));
        let metrics = format!("127.0.0.1:{}", free_port());
        let lookup = |variable: &str| match variable {
            "THARSIS_METRICS_LISTEN" => Some(metrics.clone()),
            _ => self.setting(Service::Issuer, variable),
        };
        let config = read(&lookup, issuer::Config::read);
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let ended =
            tokio::spawn(async move { told(issuer::run(config, listener, http, stopped).await) });
        let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{port}"));
        let channel = endpoint.expect("an address").connect_lazy();
        let mut client = HealthClient::new(channel.clone());
        eventually(async || {
            let answer = client.check(HealthCheckRequest::default()).await;
            match answer.map(|answer| answer.get_ref().status()) {
                Ok(ServingStatus::Serving) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        let mut channels = (*self.channels).clone();
        channels.insert(Service::Issuer, channel);
        Sibling {
            url,
            metrics: format!("http://{metrics}/metrics"),
            channels: Arc::new(channels),
            running: Running { stop, ended },
        }
    }

    /// Replaces a file that the services read.
    pub fn writes(&self, name: &str, content: &str) {
        fs::write(self.folder.0.join(name), content).expect("a file can be written");
    }

    /// Stops a service, and gives it an empty database.
    pub async fn loses_database(&mut self, service: Service) {
        self.stops(service).await;
        self.databases.insert(service, Database::create().await);
    }

    /// Waits until a service says that it serves.
    pub async fn is_serving(&self, service: Service) {
        eventually(async || {
            if let Some(running) = self.running.get(&service)
                && running.ended.is_finished()
            {
                panic!("{service:?} has ended");
            }
            match self.health(service).await {
                ServingStatus::Serving => Ok(()),
                status => Err(format!("{service:?} is {status:?}")),
            }
        })
        .await;
    }

    /// What a service says of its health; unknown, if it says nothing.
    pub async fn health(&self, service: Service) -> ServingStatus {
        let mut client = HealthClient::new(self.channels[&service].clone());
        let answer = client.check(HealthCheckRequest::default()).await;
        answer.map_or(ServingStatus::Unknown, |answer| answer.get_ref().status())
    }

    /// Every event of a service.
    pub async fn log(&self, service: Service) -> Vec<Event> {
        let rows = sqlx::query(
            "SELECT position, stream_id, event_type, payload, metadata::text AS metadata FROM events ORDER BY position",
        )
        .fetch_all(self.database(service).pool())
        .await
        .expect("the log can be read");
        let event = |row: &sqlx::postgres::PgRow| Event {
            position: row.get::<i64, _>("position").cast_unsigned(),
            stream_id: row.get("stream_id"),
            event_type: row.get("event_type"),
            payload: row.get("payload"),
            metadata: row.get("metadata"),
        };
        rows.iter().map(event).collect()
    }

    /// Those that callers have asked for, and not what the service did by itself because of others.
    pub async fn asked_for(&self, service: Service) -> Vec<Event> {
        let mut events = self.log(service).await;
        events.retain(|event| !event.metadata.contains(r#""service:"#));
        events
    }

    /// The message at each sequence of a service's stream, once it holds as many as the log.
    pub async fn stream(&self, service: Service) -> Vec<jetstream::message::StreamMessage> {
        let client = async_nats::connect(self.nats_url())
            .await
            .expect("NATS answers");
        let context = jetstream::new(client);
        let name = format!("{}_{}", self.nats_prefix, service.name()).to_ascii_uppercase();
        let wanted = self
            .log(service)
            .await
            .last()
            .map_or(0, |event| event.position);
        let stream = eventually(async || {
            let mut stream = context
                .get_stream(&name)
                .await
                .map_err(|error| error.to_string())?;
            let state = &stream
                .info()
                .await
                .map_err(|error| error.to_string())?
                .state;
            if state.last_sequence >= wanted && state.messages == state.last_sequence {
                Ok(stream)
            } else {
                Err(format!("{name} holds {} of {wanted}", state.messages))
            }
        })
        .await;
        let mut messages = Vec::new();
        for sequence in 1..=wanted {
            let message = stream.get_raw_message(sequence).await;
            messages.push(message.expect("each sequence has a message"));
        }
        messages
    }

    fn nats_url(&self) -> String {
        self.nats
            .as_ref()
            .map_or_else(shared_nats_url, NatsServer::url)
    }

    fn run(&mut self, service: Service, listener: TcpListener, http: Option<TcpListener>) {
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let lookup = |variable: &str| self.setting(service, variable);
        let ended = match service {
            Service::Namespace => {
                let config = read(&lookup, namespace::Config::read);
                tokio::spawn(async move { told(namespace::run(config, listener, stopped).await) })
            }
            Service::Identity => {
                let config = read(&lookup, identity::Config::read);
                tokio::spawn(async move { told(identity::run(config, listener, stopped).await) })
            }
            Service::Issuer => {
                let config = read(&lookup, issuer::Config::read);
                let http = http.expect("the issuer has two listeners");
                tokio::spawn(
                    async move { told(issuer::run(config, listener, http, stopped).await) },
                )
            }
            Service::Projector => {
                let config = read(&lookup, projector::Config::read);
                tokio::spawn(async move { told(projector::run(config, listener, stopped).await) })
            }
        };
        self.running.insert(service, Running { stop, ended });
    }

    /// The environment of a service, for a process of its own: each variable that the set gives a value.
    #[must_use]
    pub fn environment(&self, service: Service) -> Vec<(&'static str, String)> {
        let value = |variable| Some((variable, self.setting(service, variable)?));
        VARIABLES.into_iter().filter_map(value).collect()
    }

    /// What a service is told.
    fn setting(&self, service: Service, variable: &str) -> Option<String> {
        let grpc = |service| format!("127.0.0.1:{}", self.ports[&service]);
        let peer = |service| Some(format!("http://{}", grpc(service)));
        let file = |name: &str| Some(self.folder.0.join(name).display().to_string());
        match variable {
            "THARSIS_DATABASE_URL" => Some(self.databases[&service].url().to_owned()),
            "THARSIS_NATS_URL" => Some(self.nats_url()),
            "THARSIS_NATS_PREFIX" => Some(self.nats_prefix.clone()),
            "THARSIS_GRPC_LISTEN" => Some(grpc(service)),
            "THARSIS_OIDC_ISSUERS" => Some(self.callers.setting()),
            "THARSIS_ADMINISTRATORS" => Some(format!("{NAME}/admin")),
            "THARSIS_EVENT_READERS" => Some(
                Service::ALL
                    .map(|service| format!("{NAME}/{}", service.name()))
                    .join(","),
            ),
            "THARSIS_SERVICE_TOKEN_FILE" => file(service.name()),
            "THARSIS_NAMESPACE_URL" => peer(Service::Namespace),
            "THARSIS_IDENTITY_URL" => peer(Service::Identity),
            "THARSIS_ISSUER_GRPC_URL" => peer(Service::Issuer),
            "THARSIS_PROJECTOR_URL" => peer(Service::Projector),
            "THARSIS_HTTP_LISTEN" => Some(format!("127.0.0.1:{}", self.issuer_port)),
            "THARSIS_ISSUER_URL" => Some(self.issuer_url()),
            // Where the tests' issuers are.
            "THARSIS_TRUSTED_ISSUER_NETWORKS" => Some("127.0.0.1/32".to_owned()),
            "THARSIS_KEY_ENCRYPTION_KEY_FILE" => file("key-encryption-key"),
            "THARSIS_STALENESS_BOUND_SECONDS" => {
                self.setup.staleness_bound.map(|bound| bound.to_string())
            }
            "THARSIS_KEY_SET_MAX_AGE_SECONDS" => {
                self.setup.keys.map(|keys| keys.max_age.to_string())
            }
            "THARSIS_CLOCK_SKEW_SECONDS" => self.setup.keys.map(|keys| keys.clock_skew.to_string()),
            "THARSIS_KEY_ROTATION_SECONDS" => self.setup.keys.map(|keys| keys.rotation.to_string()),
            _ => None,
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // Nobody waits for a drain: the databases go at once.
        for running in self.running.values() {
            running.stop.cancel();
            running.ended.abort();
        }
    }
}

fn read<T>(
    lookup: &dyn Fn(&str) -> Option<String>,
    build: impl FnOnce(&mut Environment<'_>) -> Option<T>,
) -> T {
    settings::from(lookup, build).expect("the configuration is right")
}

fn told<E: std::error::Error>(ended: Result<(), E>) -> Result<(), String> {
    ended.map_err(|error| {
        let error = edge::status::chain(&error);
        eprintln!("a service has ended: {error}");
        error
    })
}

async fn each<T>(make: impl AsyncFn(Service) -> T) -> BTreeMap<Service, T> {
    let [a, b, c, d] = Service::ALL;
    let (of_a, of_b, of_c, of_d) = tokio::join!(make(a), make(b), make(c), make(d));
    [(a, of_a), (b, of_b), (c, of_c), (d, of_d)].into()
}

async fn databases() -> BTreeMap<Service, Database> {
    each(async |_| Database::create().await).await
}

/// On a port to which a service can come back: below those that the kernel gives to outgoing connections.
async fn listener() -> TcpListener {
    eventually(async || TcpListener::bind(("127.0.0.1", bed::free_port())).await).await
}

/// `THARSIS_LOG=info cargo test …` shows what the services say.
fn tell_what_happens() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if let Ok(filter) = std::env::var("THARSIS_LOG") {
            let format = settings::LogFormat::Text;
            let settings = settings::LogSettings { filter, format };
            edge::telemetry::init(&settings).expect("telemetry can be set up");
        }
    });
}

/// The files that the services read. Removed with this value.
struct Folder(PathBuf);

impl Folder {
    fn create(callers: &CallerIssuer) -> Self {
        let folder = Self(std::env::temp_dir().join(unique_name()));
        fs::create_dir(&folder.0).expect("a folder can be made in the temporary one");
        let write = |name: &str, content: &str| {
            fs::write(folder.0.join(name), content).expect("a file can be written");
        };
        for service in Service::ALL {
            write(service.name(), &callers.token(service.name()));
        }
        // 32 bytes in base64; what they are does not matter here.
        write(
            "key-encryption-key",
            "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
        );
        folder
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("{} stays behind: {error}", self.0.display());
        }
    }
}
