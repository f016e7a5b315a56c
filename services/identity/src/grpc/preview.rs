//! Which workspaces would lose and gain a managed identity: for those who only ask.

use std::collections::BTreeSet;

use edge::assignments::{Assignments, Ending, Identity};
use edge::hierarchy::{Place, identity_type_key};
use edge::inheritance::{self, Gained, Inheritable, Subtree};
use edge::layer::Call;
use edge::{aliases, status};
use model::{GroupId, ManagedIdentityId, MaskId, WorkspaceId};
use tonic::Status;

use super::{IdentityRpc, assigned_to_prefix};

impl IdentityRpc {
    /// By its deletion, which takes its aliases along.
    pub(super) async fn ending_by_deletion(
        &self,
        call: &Call,
        id: ManagedIdentityId,
    ) -> Result<Ending, Status> {
        if !call.validate_only {
            return Ok(Ending::default());
        }
        let aliases = aliases::of(self.commands.log(), id).await?;
        let identities: Vec<_> = [id].into_iter().chain(aliases).collect();
        let assignments = self.assignments_of(&identities).await?;
        assignments
            .ending(&self.hierarchy, &call.caller, |_, _| true)
            .await
    }

    /// By its move to another group: all of them inherit it from there too, but a mask may lie between.
    pub(super) async fn ending_by_move(
        &self,
        call: &Call,
        id: ManagedIdentityId,
        to: GroupId,
    ) -> Result<Ending, Status> {
        if !call.validate_only {
            return Ok(Ending::default());
        }
        let assignments = self.assignments_of(&[id]).await?;
        let mut lost: BTreeSet<WorkspaceId> = BTreeSet::new();
        for identity in &assignments.identities {
            let moved = Identity {
                group: to.into(),
                ..identity.clone()
            };
            for (workspace, _) in assignments.pairs() {
                let place = self.way_up((*workspace).into()).await?;
                let log = self.commands.log();
                if place.is_some() && moved.is_out_of_reach(log, place.as_ref()).await? {
                    lost.insert(*workspace);
                }
            }
        }
        let ends = |workspace, _| lost.contains(&workspace);
        assignments
            .ending(&self.hierarchy, &call.caller, ends)
            .await
    }

    /// By its move to another group.
    pub(super) async fn gained_by_move(
        &self,
        call: &Call,
        id: ManagedIdentityId,
        (from, to): (GroupId, GroupId),
    ) -> Result<Gained, Status> {
        if !call.validate_only {
            return Ok(Gained::default());
        }
        let kind = identity_type_key(id);
        let facts = self.facts(std::slice::from_ref(&kind)).await?;
        let identity = Inheritable {
            id,
            identity_type: facts.get(&kind).unwrap_or_default().to_owned(),
        };
        let log = self.commands.log();
        // A mask hides nothing of the group at which it lies.
        let reached = async |group: GroupId| {
            let subtree = Subtree::of(log, &self.hierarchy, group.into()).await?;
            Ok::<_, Status>(subtree.reached_by(&identity, |mask| mask.namespace != group.into()))
        };
        let (before, after) = (reached(from).await?, reached(to).await?);
        let gained = after
            .difference(&before)
            .map(|workspace| (*workspace, identity.id));
        Gained::of(&self.hierarchy, &gained.collect()).await
    }

    /// By the end of a mask.
    pub(super) async fn gained_by_unmasking(
        &self,
        call: &Call,
        namespace: &Place,
        id: MaskId,
    ) -> Result<Gained, Status> {
        if !call.validate_only {
            return Ok(Gained::default());
        }
        let log = self.commands.log();
        let above = namespace.nodes.get(1..).unwrap_or_default();
        let subtree = Subtree::of(log, &self.hierarchy, namespace.id()).await?;
        let mut gained = BTreeSet::new();
        for identity in inheritance::at(log, above).await? {
            let before = subtree.reached_by(&identity, |_| true);
            let after = subtree.reached_by(&identity, |mask| mask.id != id);
            let of_identity = after.difference(&before);
            gained.extend(of_identity.map(|workspace| (*workspace, identity.id)));
        }
        Gained::of(&self.hierarchy, &gained).await
    }

    async fn assignments_of(
        &self,
        identities: &[ManagedIdentityId],
    ) -> Result<Assignments, Status> {
        let log = self.commands.log();
        let mut pairs = Vec::new();
        for id in identities {
            let prefix = assigned_to_prefix(id);
            let keys = log.fact_keys(&prefix).await;
            let keys = keys.map_err(|error| status::log(&error))?;
            let workspaces = keys.iter().filter_map(|key| key.strip_prefix(&prefix));
            pairs.extend(workspaces.filter_map(|workspace| Some((workspace.parse().ok()?, *id))));
        }
        Assignments::of(log, &self.hierarchy, pairs).await
    }
}
