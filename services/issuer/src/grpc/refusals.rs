//! Refused credentials on the record: a refusal is answered once its event is durable.
//!
//! A client that asks in a loop must not fill the log: the same refusal of a job and an identity, with no credential issued to
//! the job between, is recorded by a process once in ten seconds; and so are ten of the names that a job makes up.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use edge::authentication::AuthenticationError;
use edge::layer::Call;
use edge::{aggregate, clock, request, status};
use eventlog::{Append, Expected, Metadata};
use model::{JobId, ManagedIdentityId, Stage, WorkspaceId};
use proto::issuer::v1::{self as pb, Event};
use tokio::time::Instant;
use tonic::Status;
use tonic::metadata::MetadataMap;

use super::{IssuerRpc, jobs};
use crate::wire;

/// For so long, the same refusal is not recorded again.
const PAUSE: Duration = Duration::from_secs(10);
/// Of what is not there, so many names that a job asks for are recorded in that time.
const NAMES: usize = 10;
/// Remembered at most; beyond, all that is older than the pause is forgotten, and then everything.
const REMEMBERED: usize = 10_000;

/// The reason, where a job names what does not exist.
pub(super) const IDENTITY_NOT_FOUND: &str = "IDENTITY_NOT_FOUND";
/// The reason, where a job's workspace is gone.
pub(super) const WORKSPACE_DELETED: &str = "WORKSPACE_DELETED";

/// What a refusal is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum About {
    /// All identities of the workspace.
    All,
    /// What the job named, an id or a TRN, of which its workspace knows no identity.
    Named(String),
    /// The identity that it named.
    Identity(ManagedIdentityId),
}

impl About {
    /// The id of the identity; empty if there is none.
    pub(super) fn identity(&self) -> String {
        match self {
            Self::Identity(id) => id.to_string(),
            Self::All | Self::Named(_) => String::new(),
        }
    }
}

/// A refusal that was decided.
#[derive(Clone, Debug)]
pub(super) struct Refused {
    pub(super) job: JobId,
    pub(super) workspace: WorkspaceId,
    pub(super) stage: Stage,
    pub(super) about: About,
    /// As the record has them.
    pub(super) reasons: Vec<&'static str>,
    /// One at which it was so.
    pub(super) revision: String,
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

impl Denied {
    /// What to answer, where it is not put on the record.
    pub(super) fn into_status(self) -> Status {
        match self {
            Self::Refused(refused) => refused.status,
            Self::Failed(status) => status,
        }
    }
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

type Asked = (JobId, About);

/// A refusal on the record.
struct Last {
    reasons: Vec<&'static str>,
    /// What the job was told: also which rules there are, and which mask.
    message: String,
    at: Instant,
    /// In the log.
    position: u64,
}

/// What each job was refused last, and recorded a short while ago.
#[derive(Default)]
pub(super) struct Recorded(Mutex<BTreeMap<Asked, Last>>);

impl Recorded {
    /// Where the same refusal was recorded, a short while ago.
    fn same(&self, refused: &Refused) -> Option<u64> {
        let recorded = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let last = recorded.get(&(refused.job, refused.about.clone()))?;
        let same = last.reasons == refused.reasons && last.message == refused.status.message();
        let same = same && last.at.elapsed() < PAUSE;
        same.then_some(last.position)
    }

    /// Whether a job has named enough things that are not there, for now.
    fn is_one_name_too_many(&self, refused: &Refused) -> bool {
        if !matches!(refused.about, About::Named(_)) {
            return false;
        }
        let recorded = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of_job = recorded.range((refused.job, About::Named(String::new()))..);
        let names = of_job
            .take_while(|((job, about), _)| *job == refused.job && matches!(about, About::Named(_)))
            .filter(|(_, last)| last.at.elapsed() < PAUSE);
        names.count() >= NAMES
    }

    fn add(&self, refused: &Refused, position: u64) {
        let mut recorded = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if recorded.len() >= REMEMBERED {
            recorded.retain(|_, last| last.at.elapsed() < PAUSE);
        }
        if recorded.len() >= REMEMBERED {
            recorded.clear();
        }
        let last = Last {
            reasons: refused.reasons.clone(),
            message: refused.status.message().to_owned(),
            at: Instant::now(),
            position,
        };
        recorded.insert((refused.job, refused.about.clone()), last);
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
        if self.is_recorded(refused).await? || self.recorded.is_one_name_too_many(refused) {
            return Ok(());
        }
        let requested = match &refused.about {
            About::Named(named) => named.clone(),
            About::All | About::Identity(_) => String::new(),
        };
        let event = Event::CredentialRefused(pb::CredentialRefused {
            job_id: refused.job.to_string(),
            workspace_id: refused.workspace.to_string(),
            managed_identity_id: refused.about.identity(),
            reasons: refused.reasons.iter().map(ToString::to_string).collect(),
            refuse_time: Some(request::timestamp(clock::now())),
            stage: wire::job::wire_stage(refused.stage).into(),
            revision: refused.revision.clone(),
            requested_identity: requested,
        });
        let event = (event.event_type(), event.encode());
        let stream = aggregate::append(jobs::stream(refused.job), Expected::Any, [event]);
        let append = Append {
            command: None,
            streams: stream.into_iter().collect(),
            shared: vec![],
            guards: call.caller.leans_on.iter().cloned().collect(),
            metadata: Metadata {
                actor: call.caller.principal.to_string(),
                traceparent: request::traceparent(metadata),
            },
        };
        let log = self.shared.commands.log();
        let appended = log.append(append).await.map_err(|error| {
            if call.caller.is_disowned(&error) {
                return AuthenticationError::KeyRevoked.into();
            }
            let message = "the refusal could not be recorded, so it is not answered; try again";
            status::logged(&error, status::unavailable("LOG_UNAVAILABLE", message))
        })?;
        self.recorded.add(refused, appended.last);
        Ok(())
    }

    /// Whether the same was recorded a short while ago, and nobody has issued anything to the job since: another process may
    /// have, and the audit must not end with that.
    async fn is_recorded(&self, refused: &Refused) -> Result<bool, Status> {
        let Some(position) = self.recorded.same(refused) else {
            return Ok(false);
        };
        let issued = Event::CredentialIssued(pb::CredentialIssued::default()).event_type();
        let (log, stream) = (self.shared.commands.log(), jobs::stream(refused.job));
        let since = log.has_happened_since(&stream, position, issued).await;
        Ok(!since.map_err(|error| status::log(&error))?)
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn id(number: u128) -> ManagedIdentityId {
        ManagedIdentityId::from_uuid(Uuid::from_u128(number))
    }

    fn refused(job: u128, about: About, reason: &'static str) -> Refused {
        Refused {
            job: JobId::from_uuid(Uuid::from_u128(job)),
            workspace: WorkspaceId::from_uuid(Uuid::from_u128(1)),
            stage: Stage::Plan,
            about,
            reasons: vec![reason],
            revision: String::new(),
            is_of_the_job: false,
            status: Status::internal(""),
        }
    }

    #[test]
    fn the_same_refusal_is_known() {
        let recorded = Recorded::default();
        let masked = refused(1, About::Identity(id(1)), "MASKED");
        assert_eq!(recorded.same(&masked), None);
        recorded.add(&masked, 7);
        assert_eq!(recorded.same(&masked), Some(7));
        for other in [
            refused(2, About::Identity(id(1)), "MASKED"),
            refused(1, About::Identity(id(2)), "MASKED"),
            refused(1, About::Identity(id(1)), "NOT_ASSIGNED"),
            refused(1, About::Named(id(1).to_string()), "MASKED"),
            refused(1, About::All, "MASKED"),
        ] {
            assert_eq!(recorded.same(&other), None, "{other:?}");
        }
        // Of other rules, or another mask, it is another one.
        let mut other = masked.clone();
        other.status = Status::internal("another mask");
        assert_eq!(recorded.same(&other), None);
        // Refused for something else meanwhile, it is no longer what was recorded last.
        recorded.add(&refused(1, About::Identity(id(1)), "NOT_ASSIGNED"), 8);
        assert_eq!(recorded.same(&masked), None);
    }

    #[test]
    fn a_job_makes_up_names_in_vain() {
        let recorded = Recorded::default();
        let named =
            |job, name: usize| refused(job, About::Named(name.to_string()), IDENTITY_NOT_FOUND);
        for name in 0..NAMES {
            assert!(!recorded.is_one_name_too_many(&named(1, name)), "{name}");
            recorded.add(&named(1, name), 7);
        }
        assert!(recorded.is_one_name_too_many(&named(1, NAMES)));
        assert!(!recorded.is_one_name_too_many(&named(2, NAMES)));
        let masked = refused(1, About::Identity(id(1)), "MASKED");
        assert!(!recorded.is_one_name_too_many(&masked));
    }
}
