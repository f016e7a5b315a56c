//! What the administrators' limits are, from the facts.

use eventlog::{Facts, Guard};
use model::Limit;

use crate::hierarchy::limit_key;

/// The value of a limit. `facts` has its key.
#[must_use]
pub fn value(facts: &Facts, limit: Limit) -> i64 {
    facts
        .get(&limit_key(limit))
        .and_then(|value| value.parse().ok())
        .unwrap_or(limit.default_value())
}

/// That it is still the same when the append is made.
#[must_use]
pub fn unchanged(facts: &Facts, limit: Limit) -> Guard {
    let key = limit_key(limit);
    let value = facts.get(&key).map(str::to_owned);
    Guard::Expect { key, value }
}
