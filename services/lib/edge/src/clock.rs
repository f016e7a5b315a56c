//! The one place that reads the clock and makes random ids. What decides takes both as arguments.

use time::OffsetDateTime;
use type_safe_id::{StaticType, TypeSafeId};
use uuid::Uuid;

/// The time now, in UTC.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "the one place that may")]
pub fn now() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}

/// A new id, which sorts by the time of its making.
#[must_use]
pub fn new_id<T: StaticType>() -> TypeSafeId<T> {
    TypeSafeId::from_uuid(new_uuid())
}

/// A new `UUIDv7`.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "the one place that may")]
pub fn new_uuid() -> Uuid {
    Uuid::now_v7()
}
