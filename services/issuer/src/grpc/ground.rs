//! What a credential is decided on, and a memory of it: most jobs ask for the same identities again and again.
//!
//! The memory can be wrong without harm. What it says goes with the audit event as guards, which the append checks under
//! the head lock that the replica's follower takes too; a refused guard forgets and looks again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use edge::caller::Caller;
use edge::hierarchy::{Place, assignment_key, identity_audience_key, identity_type_key};
use edge::violations::Violations;
use edge::{authorization, status};
use eventlog::Guard;
use model::{JobId, ManagedIdentityId, Reference, WorkspaceId};
use time::OffsetDateTime;
use tonic::Status;

use super::{IssuerRpc, job_key};
use crate::domain::credential::Question;
use crate::domain::job::Stage;

/// Remembered at most; beyond, all is forgotten.
const REMEMBERED: usize = 10_000;

/// What is known of a job and an identity.
pub(super) struct Ground {
    pub(super) stage: Stage,
    pub(super) workspace_path: String,
    /// The question, as of the time it was looked up.
    pub(super) question: Question,
    /// What must still hold when the audit event is appended.
    pub(super) guards: Vec<Guard>,
}

#[derive(Default)]
pub(super) struct Grounds(Mutex<HashMap<(JobId, String), Arc<Ground>>>);

impl Grounds {
    pub(super) fn get(&self, job: JobId, identity: &str) -> Option<Arc<Ground>> {
        let grounds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        grounds.get(&(job, identity.to_owned())).cloned()
    }

    pub(super) fn remember(&self, job: JobId, identity: &str, ground: Arc<Ground>) {
        let mut grounds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if grounds.len() >= REMEMBERED {
            grounds.clear();
        }
        grounds.insert((job, identity.to_owned()), ground);
    }

    pub(super) fn forget(&self, job: JobId, identity: &str) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&(job, identity.to_owned()));
    }
}

impl IssuerRpc {
    /// Where a job is, and the workspace that it runs in.
    pub(super) async fn job_place(
        &self,
        job: JobId,
        caller: &Caller,
    ) -> Result<(Place, WorkspaceId), Status> {
        let place = authorization::locate(&self.shared.hierarchy, job.into(), caller).await?;
        let workspace = |place: &Place| WorkspaceId::try_from(place.parent()?).ok();
        place
            .and_then(|place| workspace(&place).map(|workspace| (place, workspace)))
            .ok_or_else(|| status::not_found(&job.to_string()))
    }

    /// Looks up what a job's request for an identity is decided on.
    pub(super) async fn look_up(
        &self,
        job: JobId,
        caller: &Caller,
        named: &str,
    ) -> Result<Ground, Status> {
        let hierarchy = &self.shared.hierarchy;
        let reference: Reference = named
            .parse()
            .map_err(|error| Violations::of("managed_identity_id", error).into_status())?;
        let (job_place, workspace) = self.job_place(job, caller).await?;
        // A job sees what its workspace has, and nothing else: all other identities don't exist for it.
        let identity_place = authorization::find(hierarchy, &reference, caller).await?;
        let identity_place = identity_place.ok_or_else(|| status::not_found(named))?;
        let identity = ManagedIdentityId::try_from(identity_place.id()).map_err(|_| {
            Violations::of("managed_identity_id", "must name a managed identity").into_status()
        })?;
        let (known, assignment, kind, audience) = (
            job_key(job),
            assignment_key(workspace, identity),
            identity_type_key(identity),
            identity_audience_key(identity),
        );
        let keys = [&known, &assignment, &kind, &audience].map(String::clone);
        let facts = self
            .shared
            .commands
            .log()
            .facts(&keys)
            .await
            .map_err(|error| status::log(&error))?;
        let (stage, job_expires) = facts
            .get(&known)
            .and_then(read_job)
            .ok_or_else(|| status::not_found(&job.to_string()))?;
        let assigned = facts.get(&assignment).is_some();
        let inherited = identity_place
            .parent()
            .is_some_and(|group| job_place.is_within(group));
        if !assigned && !inherited {
            return Err(status::not_found(named));
        }
        let mut guards = job_place.guards();
        guards.extend(identity_place.guards());
        guards.extend(keys.map(|key| Guard::Expect {
            value: facts.get(&key).map(str::to_owned),
            key,
        }));
        Ok(Ground {
            stage,
            workspace_path: job_place.path(),
            question: Question {
                job,
                workspace,
                job_expires,
                identity,
                assigned,
                inherited,
                audience: facts
                    .get(&audience)
                    .or_else(|| facts.get(&kind))
                    .unwrap_or_default()
                    .to_owned(),
                now: OffsetDateTime::UNIX_EPOCH,
            },
            guards,
        })
    }
}

pub(super) fn read_job(known: &str) -> Option<(Stage, OffsetDateTime)> {
    let (stage, expires) = known.split_once('/')?;
    let expires = OffsetDateTime::from_unix_timestamp(expires.parse().ok()?).ok()?;
    Some((stage.parse().ok()?, expires))
}
