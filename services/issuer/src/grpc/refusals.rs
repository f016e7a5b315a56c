//! Refused credentials on the record: a refusal is answered once its event is durable.
//!
//! A client that asks in a loop must not fill the log: the same refusal of a job and an identity is recorded by a process
//! once in ten seconds.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use edge::layer::Call;
use edge::{aggregate, clock, request, status};
use eventlog::{Append, Expected, Metadata};
use model::{JobId, ManagedIdentityId, WorkspaceId};
use proto::issuer::v1::{self as pb, Event};
use tokio::time::Instant;
use tonic::Status;
use tonic::metadata::MetadataMap;

use super::{IssuerRpc, jobs};

/// For so long, the same refusal is not recorded again.
const PAUSE: Duration = Duration::from_secs(10);
/// Remembered at most; beyond, all that is older than the pause is forgotten, and then everything.
const REMEMBERED: usize = 10_000;

/// The reason, where a job names what does not exist.
pub(super) const IDENTITY_NOT_FOUND: &str = "IDENTITY_NOT_FOUND";

/// A refusal that was decided.
#[derive(Clone, Debug)]
pub(super) struct Refused {
    pub(super) job: JobId,
    pub(super) workspace: Option<WorkspaceId>,
    /// None, if there is no such identity.
    pub(super) identity: Option<ManagedIdentityId>,
    /// As the record has it. The answer may say less: who may not know of an identity is told that there is none.
    pub(super) reason: &'static str,
    /// Whether it would be the same for any identity.
    pub(super) is_of_the_job: bool,
    pub(super) status: Status,
}

/// Why there is no credential.
#[derive(Debug)]
pub(super) enum Denied {
    /// It was decided.
    Refused(Box<Refused>),
    /// It could not be decided.
    Failed(Status),
}

impl From<Status> for Denied {
    fn from(status: Status) -> Self {
        Self::Failed(status)
    }
}

impl From<Refused> for Denied {
    fn from(refused: Refused) -> Self {
        Self::Refused(Box::new(refused))
    }
}

type Same = (JobId, Option<ManagedIdentityId>, &'static str);

/// What was recorded a short while ago.
#[derive(Default)]
pub(super) struct Recorded(Mutex<HashMap<Same, Instant>>);

impl Recorded {
    fn has(&self, same: &Same) -> bool {
        let recorded = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        recorded.get(same).is_some_and(|at| at.elapsed() < PAUSE)
    }

    fn add(&self, same: Same) {
        let mut recorded = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if recorded.len() >= REMEMBERED {
            recorded.retain(|_, at| at.elapsed() < PAUSE);
        }
        if recorded.len() >= REMEMBERED {
            recorded.clear();
        }
        recorded.insert(same, Instant::now());
    }
}

impl IssuerRpc {
    /// What to answer, once it is on the record.
    pub(super) async fn answer(
        &self,
        call: &Call,
        metadata: &MetadataMap,
        denied: Denied,
    ) -> Status {
        match denied {
            Denied::Failed(status) => status,
            Denied::Refused(refused) => match self.record(call, metadata, &refused).await {
                Ok(()) => refused.status,
                Err(status) => status,
            },
        }
    }

    pub(super) async fn record(
        &self,
        call: &Call,
        metadata: &MetadataMap,
        refused: &Refused,
    ) -> Result<(), Status> {
        let same = (refused.job, refused.identity, refused.reason);
        if self.recorded.has(&same) {
            return Ok(());
        }
        let text = |id: Option<String>| id.unwrap_or_default();
        let event = Event::CredentialRefused(pb::CredentialRefused {
            job_id: refused.job.to_string(),
            workspace_id: text(refused.workspace.map(|id| id.to_string())),
            managed_identity_id: text(refused.identity.map(|id| id.to_string())),
            reasons: vec![refused.reason.to_owned()],
            refuse_time: Some(request::timestamp(clock::now())),
        });
        let event = (event.event_type(), event.encode());
        let stream = aggregate::append(jobs::stream(refused.job), Expected::Any, [event]);
        let append = Append {
            command: None,
            streams: stream.into_iter().collect(),
            guards: vec![],
            metadata: Metadata {
                actor: call.caller.principal.to_string(),
                traceparent: request::traceparent(metadata),
            },
        };
        let log = self.shared.commands.log();
        log.append(append).await.map_err(|error| {
            let message = "the refusal could not be recorded, so it is not answered; try again";
            status::logged(&error, status::unavailable("LOG_UNAVAILABLE", message))
        })?;
        self.recorded.add(same);
        Ok(())
    }
}
