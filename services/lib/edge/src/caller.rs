//! Who makes a request, as their token and the service's configuration say. What they may do where is not here.

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
}
