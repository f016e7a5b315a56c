//! Which workspaces would lose and gain which managed identities: for those who only ask.

use std::collections::BTreeSet;

use edge::assignments::{Assignments, Ending};
use edge::hierarchy::{Node, Place};
use edge::inheritance::{self, Gained, Subtree};
use edge::layer::Call;
use tonic::Status;

use super::NamespaceRpc;

impl NamespaceRpc {
    /// By a move of a group or workspace; to the top, if it is to nowhere.
    pub(super) async fn ending_by_move(
        &self,
        call: &Call,
        place: &Place,
        to: Option<&Place>,
    ) -> Result<Ending, Status> {
        if !call.validate_only {
            return Ok(Ending::default());
        }
        let log = self.commands.log();
        let assignments = Assignments::below(log, &self.hierarchy, place.id()).await?;
        let mut lost = BTreeSet::new();
        // Those of the groups that move along stay.
        let from_above = assignments.identities.iter();
        for identity in from_above.filter(|identity| identity.is_from_above(place)) {
            if identity.is_out_of_reach(log, to).await? {
                lost.insert(identity.id);
            }
        }
        let ends = |_, identity| lost.contains(&identity);
        assignments
            .ending(&self.hierarchy, &call.caller, ends)
            .await
    }

    /// What comes to be inherited by a move, which no mask within what is moved hides.
    pub(super) async fn gained_by_move(
        &self,
        call: &Call,
        place: &Place,
        to: Option<&Place>,
    ) -> Result<Gained, Status> {
        if !call.validate_only {
            return Ok(Gained::default());
        }
        let log = self.commands.log();
        let above = |place: &Place| place.nodes.get(1..).unwrap_or_default().to_vec();
        let there: &[Node] = to.map_or(&[], |to| &to.nodes);
        let before = inheritance::at(log, &above(place)).await?;
        let after = inheritance::at(log, there).await?;
        let subtree = Subtree::of(log, &self.hierarchy, place.id()).await?;
        let gained = after.difference(&before).flat_map(|identity| {
            let reached = subtree.reached_by(identity, |_| true);
            reached
                .into_iter()
                .map(|workspace| (workspace, identity.id))
        });
        Gained::of(&self.hierarchy, &gained.collect()).await
    }

    /// By its deletion, which takes along the aliases elsewhere of what was made there.
    pub(super) async fn ending_by_deletion(
        &self,
        call: &Call,
        place: &Place,
    ) -> Result<Ending, Status> {
        if !call.validate_only {
            return Ok(Ending::default());
        }
        let log = self.commands.log();
        let assignments = Assignments::hanging_on(log, &self.hierarchy, place.id()).await?;
        assignments
            .ending(&self.hierarchy, &call.caller, |_, _| true)
            .await
    }
}
