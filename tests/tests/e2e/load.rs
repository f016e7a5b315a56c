//! Callers who go on whatever happens: each repeats a request, with its request id, until it is answered.

use std::error::Error as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bed::{eventually, unique_id};
use e2e::rpc::Rpc;
use e2e::user::{aws_identity, workspace};
use e2e::{Service, User, World};
use proto::identity::v1 as identity;
use proto::namespace::v1 as namespace;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tonic::Code;

/// A workspace and an identity, as they were acknowledged.
type Made = (namespace::Workspace, identity::ManagedIdentity);

/// Makes workspaces and identities in one group, two at a time.
pub(crate) struct Load {
    enough: Arc<AtomicBool>,
    acknowledged: Arc<AtomicUsize>,
    callers: JoinSet<Vec<Made>>,
    /// What there was before.
    before: [usize; 2],
}

impl Load {
    /// Begins, in a group that there is.
    pub(crate) async fn begin(world: &World, user: &User, group: &str) -> Self {
        let mut load = Self {
            before: created(world).await,
            enough: Arc::default(),
            acknowledged: Arc::default(),
            callers: JoinSet::new(),
        };
        for caller in 0..2 {
            let (enough, acknowledged) = (Arc::clone(&load.enough), Arc::clone(&load.acknowledged));
            let (user, group) = (user.in_a_hurry(), group.to_owned());
            load.callers.spawn(async move {
                let mut made = Vec::new();
                while !enough.load(Ordering::Relaxed) {
                    let path = format!("{group}/n{caller}-{}", made.len());
                    made.push(make(&user, &path).await);
                    acknowledged.fetch_add(1, Ordering::Relaxed);
                }
                made
            });
        }
        load
    }

    /// Waits until so many more were acknowledged.
    pub(crate) async fn goes_on(&self, more: usize) {
        let wanted = self.acknowledged.load(Ordering::Relaxed) + more;
        eventually(async || match self.acknowledged.load(Ordering::Relaxed) {
            so_far if so_far >= wanted => Ok(()),
            so_far => Err(format!("{so_far} of {wanted} acknowledged")),
        })
        .await;
    }

    /// Ends. Everything acknowledged is in the logs, once.
    pub(crate) async fn ends(self, world: &World) -> Vec<Made> {
        self.enough.store(true, Ordering::Relaxed);
        let made = self.callers.join_all().await.concat();
        let (workspaces, identities) = (
            world.log(Service::Namespace).await,
            world.log(Service::Identity).await,
        );
        for (workspace, identity) in &made {
            for (log, stream) in [
                (&workspaces, format!("workspace/{}", workspace.id)),
                (&identities, format!("managed_identity/{}", identity.id)),
            ] {
                let count = log.iter().filter(|event| event.stream_id == stream).count();
                assert_eq!(count, 1, "{stream} was acknowledged");
            }
        }
        // And nothing that was not.
        let after = self.before.map(|before| before + made.len());
        assert_eq!(created(world).await, after);
        made
    }
}

/// How many workspaces and identities were ever made.
async fn created(world: &World) -> [usize; 2] {
    let count = async |service, event_type: &str| {
        let log = world.log(service).await;
        log.iter()
            .filter(|event| event.event_type == event_type)
            .count()
    };
    [
        count(Service::Namespace, "tharsis.namespace.v1.WorkspaceCreated").await,
        count(
            Service::Identity,
            "tharsis.identity.v1.ManagedIdentityCreated",
        )
        .await,
    ]
}

async fn make(user: &User, path: &str) -> Made {
    let request = namespace::CreateWorkspaceRequest {
        request_id: unique_id().to_string(),
        ..workspace(path)
    };
    let made = persist(user, request).await;
    let request = identity::CreateManagedIdentityRequest {
        request_id: unique_id().to_string(),
        consistency_token: made.consistency_token,
        ..aws_identity(path)
    };
    let identity = persist(user, request).await;
    (
        made.workspace.expect("the workspace"),
        identity.managed_identity.expect("the identity"),
    )
}

/// Longer than anything that a test breaks stays broken.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(20);

/// Asks until it is answered. What may pass is waited out, anything else fails.
async fn persist<R: Rpc>(user: &User, request: R) -> R::Answer {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match user.asks(request.clone()).await {
            Ok(answer) => return answer,
            Err(status) => {
                // A service that stops ends its connections; what the client then says of them has a cause of its own.
                let passing = status.source().is_some()
                    || [Code::Unavailable, Code::DeadlineExceeded].contains(&status.code());
                assert!(passing && Instant::now() < deadline, "{status:?}");
            }
        }
        sleep(PAUSE).await;
    }
}
