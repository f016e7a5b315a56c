//! What follows from events: whoever is moved away from an identity loses it, and what is deleted takes along what hangs
//! on it.
//!
//! Each such event is noted in the transaction that moves the checkpoint past it, and taken up from there: what it may
//! have changed is looked at as it is now, and what has lost its ground is ended by an ordinary command, whose id is
//! derived from the event and from what it ends. So it may stop anywhere and begin again, and several processes may do
//! it side by side. Nothing slips through between: a command that leans on what was before the event is either appended
//! before the event is noted, and then seen here, or refused by its guards.
//!
//! For another kind of dependant: say in `noted` by which events it may lose its ground, and in `follow_up` how it is
//! found and what ends it.

mod noted;

use std::time::Duration;

use edge::hierarchy::{ASSIGNMENTS, IDENTITY_NAMES};
use edge::status;
use eventlog::Progress;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use model::{ManagedIdentityId, ResourceId, WorkspaceId};
use sqlx::PgPool;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tonic::Status;

pub(crate) use self::noted::Follows;
use self::noted::Noted;
use crate::grpc::{IdentityRpc, assigned_to_prefix};

/// How often to look without being woken: another process may have appended.
const POLL: Duration = Duration::from_secs(1);
/// Between attempts, while something fails.
const RETRY: Duration = Duration::from_millis(200);
/// Commands at a time: they share the appender's batches.
const AT_ONCE: usize = 32;

/// Carries out what follows from events.
pub(crate) struct Reactions {
    rpc: IdentityRpc,
    pool: PgPool,
    namespace: watch::Receiver<Progress>,
}

impl Reactions {
    /// With the commands of the service; `namespace` tells how far its log was followed.
    pub(crate) fn new(rpc: IdentityRpc, namespace: watch::Receiver<Progress>) -> Self {
        Self {
            pool: rpc.commands().log().pool().clone(),
            rpc,
            namespace,
        }
    }

    /// Goes on for ever.
    pub(crate) async fn run(mut self) {
        // A replica that is being built tells of places where things are no more.
        let current = |progress: &Progress| progress.current_at.is_some();
        if self.namespace.wait_for(current).await.is_err() {
            return;
        }
        let mut own = self.rpc.commands().log().watch();
        loop {
            own.mark_unchanged();
            self.namespace.mark_unchanged();
            if let Err(error) = self.catch_up().await {
                tracing::warn!(
                    code = ?error.code(),
                    error = error.message(),
                    "what follows from an event is held up"
                );
                sleep(RETRY).await;
                continue;
            }
            let woken = async {
                tokio::select! {
                    Ok(()) = own.changed() => {}
                    Ok(()) = self.namespace.changed() => {}
                    else => std::future::pending().await,
                }
            };
            let _ = timeout(POLL, woken).await;
        }
    }

    /// Until nothing is left to be done.
    async fn catch_up(&self) -> Result<(), Status> {
        noted::look_through(self.rpc.commands().log())
            .await
            .map_err(|error| Status::unavailable(status::chain(&error)))?;
        let database = |error: sqlx::Error| status::database(&error);
        loop {
            let waiting = noted::waiting(&self.pool).await.map_err(database)?;
            if waiting.is_empty() {
                return Ok(());
            }
            for noted in waiting {
                self.follow_up(&noted).await?;
                noted.done(&self.pool).await.map_err(database)?;
            }
        }
    }

    /// Ends what lost its ground by an event.
    async fn follow_up(&self, noted: &Noted) -> Result<(), Status> {
        match noted.resource {
            ResourceId::Group(_) | ResourceId::Workspace(_) => {
                let assignments = self.below(noted.resource, ASSIGNMENTS).await?;
                let pairs = assignments.iter().filter_map(|(key, _)| pair(key));
                self.end(noted, pairs.collect()).await?;
                let identities = self.below(noted.resource, IDENTITY_NAMES).await?;
                let identities = identities.iter().filter_map(|(_, id)| id.parse().ok());
                self.delete(noted, identities.collect()).await
            }
            ResourceId::ManagedIdentity(identity) => {
                let prefix = assigned_to_prefix(identity);
                let keys = self.rpc.commands().log().fact_keys(&prefix).await;
                let keys = keys.map_err(|error| status::log(&error))?;
                let workspaces = keys
                    .iter()
                    .filter_map(|key| key.strip_prefix(&prefix)?.parse().ok());
                let pairs = workspaces.map(|workspace| (workspace, identity));
                self.end(noted, pairs.collect()).await
            }
            // Noted by a newer process beside this one, which knows what follows from it.
            other => Err(Status::unimplemented(format!("what follows from {other}"))),
        }
    }

    async fn below(
        &self,
        resource: ResourceId,
        prefix: &str,
    ) -> Result<Vec<(String, String)>, Status> {
        let facts = self.rpc.hierarchy().facts_below(resource, prefix).await;
        facts.map_err(|error| status::database(&error))
    }

    /// Ends those of the assignments that are not inherited.
    async fn end(
        &self,
        noted: &Noted,
        pairs: Vec<(WorkspaceId, ManagedIdentityId)>,
    ) -> Result<(), Status> {
        let ended = stream::iter(pairs).map(|(workspace, identity)| async move {
            let target = format!("{workspace}/{identity}");
            let decide = || self.rpc.decide_end(workspace, identity);
            self.rpc
                .commands()
                .react(noted.event, &target, decide)
                .await
        });
        ended.buffer_unordered(AT_ONCE).try_collect().await
    }

    /// Deletes those of the identities whose group is gone.
    async fn delete(
        &self,
        noted: &Noted,
        identities: Vec<ManagedIdentityId>,
    ) -> Result<(), Status> {
        let deleted = stream::iter(identities).map(|identity| async move {
            let decide = || self.rpc.decide_delete_with_group(identity);
            let target = identity.to_string();
            self.rpc
                .commands()
                .react(noted.event, &target, decide)
                .await
        });
        deleted.buffer_unordered(AT_ONCE).try_collect().await
    }
}

/// The workspace and the identity of an assignment's key.
fn pair(key: &str) -> Option<(WorkspaceId, ManagedIdentityId)> {
    let (workspace, identity) = key.strip_prefix(ASSIGNMENTS)?.split_once('/')?;
    Some((workspace.parse().ok()?, identity.parse().ok()?))
}
