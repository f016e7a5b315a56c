//! Memberships that end with who holds them, with where they are held, or by a move of that.

use edge::aggregate;
use edge::command::Decision;
use edge::hierarchy::{Place, member_key, node_key};
use edge::status;
use eventlog::{Expected, Guard, StreamAppend};
use model::{MembershipId, NamespaceId, Principal, ResourceId};
use tonic::Status;

use super::memberships::counts_as_owner;
use super::{NamespaceRpc, add, changes, encoded, held, held_key, owners_key, stream};
use crate::domain::membership::{self, Membership};
use crate::wire;

/// A membership with what its end depends on.
pub(super) struct Holding {
    pub(super) membership: Membership,
    /// What holds the group or workspace where it is; none if that is gone itself.
    pub(super) node: Option<String>,
    /// Whether nobody else owns that top-level group.
    pub(super) last_owner: bool,
}

impl Holding {
    /// What the group or workspace is called.
    pub(super) fn group_name(&self) -> Option<String> {
        let (_, name) = self.node.as_ref()?.split_once('/')?;
        Some(name.to_owned())
    }

    /// Its end.
    pub(super) fn end(&self) -> Result<(Option<StreamAppend>, Vec<Guard>), Status> {
        let Membership {
            id,
            namespace,
            principal,
            role,
        } = &self.membership;
        let state = membership::State::Live(self.membership.clone());
        let command = membership::Command::Delete { last_owner: false };
        let events = membership::decide(&state, command)?;
        let events: Vec<_> = events.iter().map(wire::write_membership).collect();
        let mut guards = vec![
            Guard::Expect {
                key: member_key(namespace, principal),
                value: Some(format!("{role}/{id}")),
            },
            Guard::Expect {
                key: node_key(namespace),
                value: self.node.clone(),
            },
            Guard::Set {
                key: held_key(principal, namespace),
                value: None,
            },
        ];
        // The count of what is gone went with it.
        if self.node.is_some() && counts_as_owner(principal, *role) {
            let least = i64::from(is_top_level(*namespace, self.node.as_deref()));
            guards.push(add(owners_key(namespace), -1, least, i64::MAX));
        }
        guards.extend(changes(&events)?);
        // Whatever else ends or changes it changes its fact too.
        let part = aggregate::append(stream("membership", id), Expected::Any, encoded(events));
        Ok((part, guards))
    }
}

/// Whether it is a group at the top, by the fact of its place.
pub(super) fn is_top_level(namespace: NamespaceId, node: Option<&str>) -> bool {
    matches!(namespace, NamespaceId::Group(_)) && node.is_some_and(|node| node.starts_with('/'))
}

impl NamespaceRpc {
    /// Ends a membership whose holder, group or workspace is gone, or that a service account holds where its own group is
    /// not above any more.
    pub(crate) async fn decide_end_membership(
        &self,
        id: MembershipId,
    ) -> Result<Decision<()>, Status> {
        let loaded = self.load_membership_stream(id).await?;
        let membership::State::Live(membership) = loaded.state else {
            return Ok(Decision::nothing());
        };
        let namespace = self.way_up(membership.namespace.into()).await?;
        let holder = match membership.principal.resource() {
            Some(holder) => Some(self.way_up(holder).await?),
            None => None,
        };
        let of_places = match (&namespace, holder) {
            (None, _) | (_, Some(None)) => vec![],
            (Some(namespace), Some(Some(account)))
                if matches!(membership.principal, Principal::ServiceAccount(_))
                    && !namespace.is_in_reach_of(&account) =>
            {
                [namespace.existence(), account.existence()].concat()
            }
            (Some(_), _) => return Ok(Decision::nothing()),
        };
        let node = node_key(membership.namespace);
        let facts = self.facts(std::slice::from_ref(&node)).await?;
        let of_team = held(&membership, false);
        let holding = Holding {
            membership,
            node: facts.get(&node).map(str::to_owned),
            last_owner: false,
        };
        let (part, guards) = holding.end()?;
        let decision = Decision {
            streams: part.into_iter().collect(),
            guards,
            reply: (),
        };
        Ok(decision.guarded(of_places).guarded(of_team))
    }

    pub(crate) async fn exists(&self, id: ResourceId) -> Result<bool, Status> {
        Ok(self.way_up(id).await?.is_some())
    }

    async fn way_up(&self, id: ResourceId) -> Result<Option<Place>, Status> {
        let place = self.hierarchy.way_up(id).await;
        place.map_err(|error| status::database(&error))
    }
}
