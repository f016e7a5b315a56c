//! The projector: the read models from nothing, out of the owners' logs over gRPC, against `PostgreSQL` copying the rows
//! that come out of it.

use std::time::{Duration, Instant};

use anyhow::ensure;
use bed::{Database, eventually};
use e2e::user::aws;
use e2e::{Service, World};
use edge::clock;
use eventlog::{Append, EventLog, Expected, Metadata, NewEvent, StreamAppend, StreamId};
use futures::stream::FuturesUnordered;
use futures::{StreamExt as _, TryStreamExt as _};
use model::{GroupId, JobId, ManagedIdentityId, MembershipId, WorkspaceId};
use proto::access::v1::{self as access, principal};
use proto::{identity, issuer, namespace};
use sqlx::{AssertSqlSafe, PgPool};

use crate::report::{Row, report};

/// Events in a transaction of the follower, and so rows in one of the copy.
const BATCH: i64 = 500;
const TABLES: [&str; 4] = ["namespaces", "managed_identities", "assignments", "facts"];

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Rounds; each builds the read models from nothing, and copies their rows.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// In the logs, about.
    #[arg(long, default_value_t = 240_000)]
    events: usize,
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let mut world = World::start().await;
    eprintln!("filling the logs with {} events", arguments.events);
    fill(&world, arguments.events).await?;
    let mut events = 0.0;
    for service in Service::WITH_LOG {
        events += f64::from(u32::try_from(head(world.database(service)).await?)?);
    }
    let (mut projected, mut copied) = (Vec::new(), Vec::new());
    for round in 1..=arguments.rounds {
        let rate = |time: Duration| events / time.as_secs_f64();
        world.loses_database(Service::Projector).await;
        let start = Instant::now();
        world.starts(Service::Projector).await;
        caught_up(&world).await;
        projected.push(rate(start.elapsed()));
        copied.push(rate(copy(world.database(Service::Projector).pool()).await?));
        eprintln!(
            "round {round}: projected {:.0}, copied {:.0} events/s",
            projected[round - 1],
            copied[round - 1]
        );
    }
    let row = Row::new("rebuild", "events/s", &projected)
        .aim(60_000.0)
        .against("copy of the rows", &copied, None);
    report("project", &[row])
}

async fn head(database: &Database) -> anyhow::Result<i64> {
    let head = sqlx::query_scalar("SELECT position FROM log_head");
    Ok(head.fetch_one(database.pool()).await?)
}

async fn caught_up(world: &World) {
    let pool = world.database(Service::Projector).pool();
    let followed = format!(
        "SELECT position FROM {}.checkpoints WHERE log = $1",
        projector::SCHEMA
    );
    for service in Service::WITH_LOG {
        let head = head(world.database(service)).await;
        let head = head.expect("the log has a head");
        eventually(async || {
            let position: Result<i64, _> = sqlx::query_scalar(AssertSqlSafe(followed.clone()))
                .bind(service.name())
                .fetch_one(pool)
                .await;
            match position {
                Ok(position) if position >= head => Ok(()),
                position => Err(format!("{service:?}: {position:?} of {head}")),
            }
        })
        .await;
    }
}

/// Copies the read models' rows into empty tables with the same indexes, in transactions of a batch each.
async fn copy(pool: &PgPool) -> anyhow::Result<Duration> {
    let schema = projector::SCHEMA;
    let mut time = Duration::ZERO;
    for table in TABLES {
        let make = format!("CREATE TABLE copy (LIKE {schema}.{table} INCLUDING ALL)");
        sqlx::raw_sql(AssertSqlSafe(make)).execute(pool).await?;
        let sizes = format!(
            "SELECT count(*), pg_relation_size('{schema}.{table}') / 8192 FROM {schema}.{table}"
        );
        let (rows, pages): (i64, i64) =
            sqlx::query_as(AssertSqlSafe(sizes)).fetch_one(pool).await?;
        ensure!(rows > 0, "{table} is empty");
        let step = (BATCH * pages / rows).max(1);
        let start = Instant::now();
        for page in (0..pages).step_by(usize::try_from(step)?) {
            let batch = format!(
                "INSERT INTO copy SELECT * FROM {schema}.{table} \
                 WHERE ctid >= '({page},0)'::tid AND ctid < '({},0)'::tid",
                page + step
            );
            sqlx::raw_sql(AssertSqlSafe(batch)).execute(pool).await?;
        }
        time += start.elapsed();
        sqlx::raw_sql("DROP TABLE copy").execute(pool).await?;
    }
    Ok(time)
}

/// Fills the logs as a platform does over time: many small groups with their workspaces, members, identities,
/// assignments and credentials.
async fn fill(world: &World, events: usize) -> anyhow::Result<()> {
    let open = async |service: Service| {
        EventLog::open(service.name(), world.database(service).another_pool(4)).await
    };
    let (namespaces, identities, issuers) = (
        open(Service::Namespace).await?,
        open(Service::Identity).await?,
        open(Service::Issuer).await?,
    );
    let teams: Vec<Team> = (0..events / Team::EVENTS).map(Team::new).collect();
    append(&namespaces, teams.iter().map(Team::namespaces)).await?;
    append(&identities, teams.iter().map(Team::identities)).await?;
    append(&issuers, teams.iter().map(Team::credentials)).await
}

/// The events of a stream, encoded.
type Stream = (StreamId, Vec<NewEvent>);

async fn append(log: &EventLog, teams: impl Iterator<Item = Vec<Stream>>) -> anyhow::Result<()> {
    let mut appends = FuturesUnordered::new();
    for streams in teams {
        let streams = streams.into_iter().map(|(stream_id, events)| StreamAppend {
            stream_id,
            expected: Expected::Any,
            events,
        });
        let append = Append {
            streams: streams.collect(),
            metadata: Metadata {
                actor: "user:dev/alice".to_owned(),
                traceparent: None,
            },
            ..Append::default()
        };
        appends.push(log.append(append));
        if appends.len() >= 200 {
            appends.try_next().await?;
        }
    }
    while let Some(appended) = appends.next().await {
        appended?;
    }
    Ok(())
}

/// A group, and what stands below it.
struct Team {
    number: usize,
    group: GroupId,
    workspaces: [WorkspaceId; 4],
    identities: [ManagedIdentityId; 3],
}

macro_rules! event {
    ($package:ident :: $name:ident { $($field:tt)* }) => {{
        let event = $package::v1::Event::$name($package::v1::$name { $($field)* });
        NewEvent {
            id: clock::new_uuid(),
            event_type: event.event_type(),
            payload: event.encode(),
        }
    }};
}

impl Team {
    /// Of each team, in all logs.
    const EVENTS: usize = 30;

    fn new(number: usize) -> Self {
        Self {
            number,
            group: clock::new_id(),
            workspaces: std::array::from_fn(|_| clock::new_id()),
            identities: std::array::from_fn(|_| clock::new_id()),
        }
    }

    /// Seven events.
    fn namespaces(&self) -> Vec<Stream> {
        let group = event!(namespace::GroupCreated {
            group_id: self.group.to_string(),
            parent_id: String::new(),
            name: format!("team-{}", self.number),
            description: "what the team runs".to_owned(),
        });
        let mut streams = vec![(StreamId::new("group", self.group), vec![group])];
        for (number, workspace) in self.workspaces.iter().enumerate() {
            let created = event!(namespace::WorkspaceCreated {
                workspace_id: workspace.to_string(),
                group_id: self.group.to_string(),
                name: format!("stage-{number}"),
                description: String::new(),
                max_job_duration: None,
                initial_assignments: None,
            });
            streams.push((StreamId::new("workspace", workspace), vec![created]));
        }
        for role in [access::Role::Owner, access::Role::Deployer] {
            let id: MembershipId = clock::new_id();
            let user = format!("dev/{}-of-team-{}", role.as_str_name(), self.number);
            let principal = access::Principal {
                kind: Some(principal::Kind::User(user)),
            };
            let created = event!(namespace::MembershipCreated {
                membership_id: id.to_string(),
                namespace_id: self.group.to_string(),
                principal: Some(principal),
                role: role.into(),
            });
            streams.push((StreamId::new("membership", id), vec![created]));
        }
        streams
    }

    /// Fourteen: each identity is made, one is changed, and all are assigned to most workspaces, one not for long.
    fn identities(&self) -> Vec<Stream> {
        let mut streams = Vec::new();
        for (number, identity) in self.identities.iter().enumerate() {
            let role = |name: &str| Some(aws(&format!("arn:aws:iam::123456789012:role/{name}")));
            let mut events = vec![event!(identity::ManagedIdentityCreated {
                managed_identity_id: identity.to_string(),
                group_id: self.group.to_string(),
                name: format!("deployer-{number}"),
                description: String::new(),
                token_settings: None,
                configuration: role("deployer"),
            })];
            if number == 0 {
                events.push(event!(identity::ManagedIdentityUpdated {
                    managed_identity_id: identity.to_string(),
                    description: "for production".to_owned(),
                    token_settings: None,
                    configuration: role("production"),
                }));
            }
            streams.push((StreamId::new("managed_identity", identity), events));
        }
        let [first, ..] = self.identities;
        for (workspace, identities) in self.workspaces.iter().zip([3, 3, 2, 1]) {
            let assigned = self.identities[..identities].iter().map(|identity| {
                event!(identity::ManagedIdentityAssigned {
                    managed_identity_id: identity.to_string(),
                    workspace_id: workspace.to_string(),
                })
            });
            let mut events: Vec<_> = assigned.collect();
            if identities == 1 {
                events.push(event!(identity::ManagedIdentityUnassigned {
                    managed_identity_id: first.to_string(),
                    workspace_id: workspace.to_string(),
                }));
            }
            streams.push((StreamId::new("assignment", workspace), events));
        }
        streams
    }

    /// Nine: three jobs, each with two credentials.
    fn credentials(&self) -> Vec<Stream> {
        let [workspace, ..] = self.workspaces;
        let times = || Some(prost_types::Timestamp::default());
        let job = |()| {
            let job: JobId = clock::new_id();
            let mut events = vec![event!(issuer::JobOpened {
                job_id: job.to_string(),
                workspace_id: workspace.to_string(),
                stage: issuer::v1::Stage::Apply.into(),
                principal: "user:dev/alice".to_owned(),
                opener: String::new(),
                expire_time: times(),
                heartbeat_timeout: None,
                module: None,
                opener_token_kid: String::new(),
            })];
            events.extend(self.identities[..2].iter().map(|identity| {
                event!(issuer::CredentialIssued {
                    job_id: job.to_string(),
                    workspace_id: workspace.to_string(),
                    managed_identity_id: identity.to_string(),
                    token_id: clock::new_uuid().to_string(),
                    subject: identity.to_string(),
                    audience: "aws".to_owned(),
                    kid: "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs".to_owned(),
                    issue_time: times(),
                    expire_time: times(),
                    revision: "namespace=1,identity=1".to_owned(),
                    stage: 2,
                    job_token_kid: "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs".to_owned(),
                })
            }));
            (StreamId::new("job", job), events)
        };
        [(); 3].map(job).into()
    }
}
