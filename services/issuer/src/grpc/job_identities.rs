//! Which managed identities a job may ask credentials for.

use edge::hierarchy::{assignment_key, identity_configuration_key, read_configuration};
use edge::layer::Call;
use edge::{authorization, clock, status};
use model::{Principal, ResourceId};
use proto::issuer::v1 as pb;
use tonic::Status;

use super::ground::read_job;
use super::{IssuerRpc, job_key};
use crate::domain::credential::Refusal;

impl IssuerRpc {
    /// What the workspace of the calling job has, by path.
    pub(super) async fn job_identities(
        &self,
        call: &Call,
    ) -> Result<pb::ListJobManagedIdentitiesResponse, Status> {
        let Principal::Job(job) = call.caller.principal else {
            return Err(status::permission_denied("Job", "this service"));
        };
        let log = self.shared.commands.log();
        let (job_place, workspace) = self.job_place(job, &call.caller).await?;
        let prefix = assignment_key(workspace, "");
        let assigned = log.fact_keys(&prefix).await;
        let assigned = assigned.map_err(|error| status::log(&error))?;
        let assigned: Vec<ResourceId> = assigned
            .iter()
            .filter_map(|key| key.strip_prefix(&prefix)?.parse().ok())
            .collect();
        let mut keys: Vec<String> = assigned.iter().map(identity_configuration_key).collect();
        keys.push(job_key(job));
        let facts = log
            .facts(&keys)
            .await
            .map_err(|error| status::log(&error))?;
        let expires = facts.get(&job_key(job)).and_then(read_job);
        if expires.is_none_or(|(_, expires)| expires <= clock::now()) {
            return Err(Refusal::JobOver.into());
        }
        let mut identities = Vec::new();
        for id in assigned {
            let place = authorization::locate(&self.shared.hierarchy, id, &call.caller).await?;
            // An assignment may outlive its identity, or the workspace's inheriting it, until the event that ends it
            // has come.
            let inherited = place.filter(|place| {
                let group = place.parent();
                group.is_some_and(|group| job_place.is_within(group))
            });
            let Some(place) = inherited else { continue };
            let configuration = facts.get(&identity_configuration_key(id));
            identities.push(pb::JobManagedIdentity {
                id: id.to_string(),
                trn: place.trn(),
                path: place.path(),
                configuration: configuration.and_then(read_configuration),
            });
        }
        identities.sort_by(|one, other| one.path.cmp(&other.path));
        Ok(pb::ListJobManagedIdentitiesResponse {
            managed_identities: identities,
            job_id: job.to_string(),
            workspace_id: workspace.to_string(),
        })
    }
}
