//! Who makes a request, as their token and the service's configuration say. What they may do where is not here.

use eventlog::{AppendError, Guard};
use model::Principal;

/// An authenticated caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Whom the token names.
    pub principal: Principal,
    /// Configured to be an owner everywhere.
    pub administrator: bool,
    /// Configured to read the event logs.
    pub event_reader: bool,
    /// In the issuer, of a token of its own: what says that the token's key is not revoked. It goes with each append that
    /// the caller asks for, as what this process knows of the keys may be a moment old.
    pub leans_on: Option<Guard>,
}

impl Caller {
    /// Whether it was refused because the key of the caller's token is revoked.
    #[must_use]
    pub fn is_disowned(&self, error: &AppendError) -> bool {
        let AppendError::GuardRefused { key, .. } = error else {
            return false;
        };
        let guard = self.leans_on.as_ref();
        guard.is_some_and(|guard| guard.key() == key)
    }
}
