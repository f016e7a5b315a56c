//! Which service account an identity stands for: it has to exist, and to be of the identity's group or of one above it.

use edge::authorization::{find, locate};
use edge::hierarchy::Place;
use edge::layer::Call;
use edge::status;
use edge::violations::Violations;
use eventlog::Guard;
use model::ServiceAccountId;
use tonic::Status;

use super::IdentityRpc;
use crate::domain::managed_identity::{Configuration, Rejection};
use crate::wire::Given;

const FIELD: &str = "managed_identity.configuration.tharsis.service_account_id";

impl IdentityRpc {
    /// The configuration that a request gives an identity in, or of, this place; and what must still hold for it.
    pub(super) async fn settle(
        &self,
        call: &Call,
        given: &Given,
        place: &Place,
    ) -> Result<(Configuration, Vec<Guard>), Status> {
        let (reference, named) = match given {
            Given::Complete(configuration) => return Ok((configuration.clone(), vec![])),
            Given::OfAccount(reference, named) => (reference, named),
        };
        let found = find(&self.hierarchy, reference, &call.caller).await?;
        let found = found.ok_or_else(|| status::not_found(named))?;
        let account = ServiceAccountId::try_from(found.id())
            .map_err(|_| Violations::of(FIELD, "must name a service account").into_status())?;
        if place.is_in_reach_of(&found) {
            return Ok((Configuration::Tharsis { account }, found.existence()));
        }
        // What is elsewhere, the caller may not even know of.
        Err(match found.role {
            Some(_) => Rejection::AccountOutOfReach.into(),
            None => status::not_found(named),
        })
    }

    /// Whether the service account that an identity stands for, if it does, could be chosen in a group too; and that it
    /// stays so. One that is gone is in nobody's reach any more, and so keeps nothing from moving.
    pub(super) async fn account_within_reach(
        &self,
        call: &Call,
        configuration: &Configuration,
        group: &Place,
    ) -> Result<(bool, Vec<Guard>), Status> {
        let Configuration::Tharsis { account } = configuration else {
            return Ok((true, vec![]));
        };
        let place = locate(&self.hierarchy, (*account).into(), &call.caller).await?;
        Ok(place.map_or((true, vec![]), |place| {
            (group.is_in_reach_of(&place), place.existence())
        }))
    }
}
