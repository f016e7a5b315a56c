//! Which managed identities a job may ask credentials for.

use edge::hierarchy::{identity_configuration_key, read_configuration};
use edge::layer::Call;
use edge::{authorization, status};
use futures::future::try_join_all;
use model::Principal;
use proto::issuer::v1 as pb;
use tonic::Status;

use super::IssuerRpc;
use super::jobs::workspace_deleted;
use super::refusals::Denied;

impl IssuerRpc {
    /// What the workspace of the calling job has, by path.
    pub(super) async fn job_identities(
        &self,
        call: &Call,
    ) -> Result<pb::ListJobManagedIdentitiesResponse, Status> {
        let Principal::Job(job) = call.caller.principal else {
            return Err(status::permission_denied(call.permission, "this service"));
        };
        let log = self.shared.commands.log();
        // Who gets nothing more may not know either what there would be.
        let known = self.refuse_whole_job(job).await;
        let known = known.map_err(Denied::into_status)?;
        let job_place = self.place_of_job(&known.job).await?;
        let job_place = job_place.ok_or_else(workspace_deleted)?;
        let assigned = self.assigned(known.job.workspace).await?;
        let assigned = try_join_all(assigned.into_iter().map(async |id| {
            let source = self.present().source(id).await?;
            Ok::<_, Status>(source.map(|source| (id, identity_configuration_key(source.id))))
        }));
        // An alias whose source is gone is about to go itself.
        let assigned: Vec<_> = assigned.await?.into_iter().flatten().collect();
        let keys: Vec<String> = assigned.iter().map(|(_, key)| key.clone()).collect();
        let facts = log
            .facts(&keys)
            .await
            .map_err(|error| status::log(&error))?;
        let mut identities = Vec::new();
        for (id, configuration) in assigned {
            let place =
                authorization::locate(&self.shared.hierarchy, id.into(), &call.caller).await?;
            // An assignment may outlive its identity, or the workspace's inheriting it, until the event that ends it
            // has come.
            let inherited = place.filter(|place| {
                let group = place.parent();
                group.is_some_and(|group| job_place.is_within(group))
            });
            let Some(place) = inherited else { continue };
            let configuration = facts.get(&configuration);
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
            workspace_id: known.job.workspace.to_string(),
        })
    }
}
