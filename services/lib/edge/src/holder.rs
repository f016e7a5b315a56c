//! Whom requests name in memberships and in rules: users by their names, teams and service accounts by id or TRN.

use eventlog::Guard;
use model::{Kind, Principal, Reference, ResourceId};
use proto::access::v1 as access;
use tonic::Status;

use crate::authorization;
use crate::caller::Caller;
use crate::hierarchy::{Hierarchy, Place};
use crate::status;
use crate::violations::Violations;

/// Whom a request names.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Holder {
    /// A user. Whether there is such a one, its issuer knows.
    User(Principal),
    /// A team or a service account.
    Resource {
        /// Which.
        reference: Reference,
        /// As the request says it: what is hidden is refused in the words in which what does not exist is.
        text: String,
    },
}

/// Whom a request names, and that there is such a one.
#[derive(Clone, Debug)]
pub struct Known {
    /// Who.
    pub principal: Principal,
    /// Where it is in the hierarchy, with the caller's role there, if it is a resource itself.
    pub place: Option<Place>,
    /// As the request says it.
    pub named: String,
}

impl Holder {
    /// Reads one; fields are named from the message on.
    pub fn read(principal: &access::Principal) -> Result<Self, Violations> {
        use access::principal::Kind as Given;
        let resource = |field: &str, kind: Kind, text: &str| {
            let reference = text.parse().ok();
            let reference = reference.filter(|reference: &Reference| reference.kind() == kind);
            let reference = reference.ok_or_else(|| {
                Violations::of(field, format!("must be the id or the TRN of a {kind}"))
            })?;
            let text = text.to_owned();
            Ok(Self::Resource { reference, text })
        };
        match principal.kind.as_ref() {
            Some(Given::User(user)) => Principal::user(user)
                .map(Self::User)
                .map_err(|error| Violations::of("user", error)),
            Some(Given::Team(team)) => resource("team", Kind::Team, team),
            Some(Given::ServiceAccount(account)) => {
                resource("service_account", Kind::ServiceAccount, account)
            }
            None => Err(Violations::of("kind", "must be set")),
        }
    }

    /// Who that is. `NOT_FOUND` if there is no such one; what the caller may not know of is for the asker to refuse.
    pub async fn find(&self, hierarchy: &Hierarchy, caller: &Caller) -> Result<Known, Status> {
        let (reference, text) = match self {
            Self::Resource { reference, text } => (reference, text),
            Self::User(user) => {
                return Ok(Known {
                    principal: user.clone(),
                    place: None,
                    named: String::new(),
                });
            }
        };
        let place = authorization::find(hierarchy, reference, caller).await?;
        let place = place.ok_or_else(|| status::not_found(text))?;
        let principal = match place.id() {
            ResourceId::Team(id) => Principal::Team(id),
            ResourceId::ServiceAccount(id) => Principal::ServiceAccount(id),
            _ => return Err(status::not_found(text)),
        };
        Ok(Known {
            principal,
            place: Some(place),
            named: text.clone(),
        })
    }
}

impl Known {
    /// What must hold for there to be such a principal.
    #[must_use]
    pub fn guards(&self) -> Vec<Guard> {
        self.place
            .as_ref()
            .map(Place::existence)
            .unwrap_or_default()
    }

    /// Whether it is a service account of a group in which a place is, and so inherited there.
    #[must_use]
    pub fn is_inherited_by(&self, place: &Place) -> bool {
        let group = self.place.as_ref().and_then(Place::parent);
        group.is_some_and(|group| place.is_within(group))
    }

    /// Whether it is a service account of a group in which the caller has no role: one that it may not know of.
    #[must_use]
    pub fn is_hidden(&self) -> bool {
        let role = self.place.as_ref().map(|place| place.role);
        matches!(self.principal, Principal::ServiceAccount(_)) && role == Some(None)
    }
}
