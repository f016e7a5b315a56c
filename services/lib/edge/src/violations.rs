//! Collecting what is wrong with the fields of a request, so that one answer names all of it. What a field may hold is
//! decided by the type that it is parsed into, not here.

use std::fmt::Display;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt as _};

use crate::status::{DOMAIN, shortened};

/// More than this many are not sent: an answer's headers are limited.
const MAX_SENT: usize = 16;

/// What is wrong with a request, by the dotted path of each field.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Violations(Vec<Violation>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Violation {
    field: String,
    description: String,
}

impl Violations {
    /// One wrong field.
    #[must_use]
    pub fn of(field: &str, description: impl Display) -> Self {
        let mut violations = Self::default();
        violations.add(field, description);
        violations
    }

    /// Adds a wrong field.
    pub fn add(&mut self, field: &str, description: impl Display) {
        self.0.push(Violation {
            field: shortened(field),
            description: shortened(&description.to_string()),
        });
    }

    /// The value of a field, or `None` with the error noted.
    pub fn check<T, E: Display>(&mut self, field: &str, value: Result<T, E>) -> Option<T> {
        value.map_err(|error| self.add(field, error)).ok()
    }

    /// The value of a field that must be set.
    pub fn required<T>(&mut self, field: &str, value: Option<T>) -> Option<T> {
        if value.is_none() {
            self.add(field, "must be set");
        }
        value
    }

    /// The value of a message in a field. What is wrong in it is noted with the field's path in front.
    pub fn nested<T>(&mut self, field: &str, value: Result<T, Violations>) -> Option<T> {
        value
            .map_err(|inner| self.0.extend(inner.within(field).0))
            .ok()
    }

    /// The value of something that names its fields by full paths already.
    pub fn merge<T>(&mut self, value: Result<T, Violations>) -> Option<T> {
        value.map_err(|inner| self.0.extend(inner.0)).ok()
    }

    /// With each path below the given one.
    #[must_use]
    pub fn within(mut self, field: &str) -> Self {
        for violation in &mut self.0 {
            violation.field = shortened(&format!("{field}.{}", violation.field));
        }
        self
    }

    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What `build` makes of the checked values, if nothing was wrong. `build` answers `None` only if one of them is,
    /// so `violations.finish(|| Some(CreateGroup { name: name?, parent: parent? }))` reads well.
    pub fn finish<T>(mut self, build: impl FnOnce() -> Option<T>) -> Result<T, Self> {
        if !self.is_empty() {
            return Err(self);
        }
        build().ok_or_else(|| {
            self.add("", "is incomplete");
            self
        })
    }

    /// `INVALID_ARGUMENT`, with each wrong field.
    #[must_use]
    pub fn into_status(mut self) -> Status {
        self.0.truncate(MAX_SENT);
        let fields: Vec<String> = self
            .0
            .iter()
            .map(|violation| format!("{} {}", violation.field, violation.description))
            .collect();
        let message = shortened(&format!("invalid request: {}", fields.join("; ")));
        let sent = self
            .0
            .into_iter()
            .map(|violation| FieldViolation::new(violation.field, violation.description));
        let mut details = ErrorDetails::with_bad_request(sent.collect::<Vec<_>>());
        details.set_error_info("INVALID_FIELD", DOMAIN, []);
        Status::with_error_details(Code::InvalidArgument, message, details)
    }
}

impl From<Violations> for Status {
    fn from(violations: Violations) -> Self {
        violations.into_status()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{Description, Name};

    #[derive(Debug, PartialEq)]
    struct Group {
        name: Name,
        description: Description,
    }

    fn group(name: &str, description: &str) -> Result<Group, Violations> {
        let mut violations = Violations::default();
        let name = violations.check("name", name.parse());
        let description = violations.check("description", description.parse());
        violations.finish(|| {
            Some(Group {
                name: name?,
                description: description?,
            })
        })
    }

    #[test]
    fn every_wrong_field_is_named_by_its_path() {
        let mut violations = Violations::default();
        assert_eq!(
            violations.nested("group", group("A", &"x".repeat(2000))),
            None
        );
        assert_eq!(violations.required("parent", None::<u8>), None);
        let status = violations.into_status();
        assert_eq!(status.code(), Code::InvalidArgument);
        let details = status.get_error_details();
        let fields = details
            .bad_request()
            .map(|bad| bad.field_violations.clone())
            .expect("field violations");
        let fields: Vec<&str> = fields
            .iter()
            .map(|violation| violation.field.as_str())
            .collect();
        assert_eq!(fields, ["group.name", "group.description", "parent"]);
        let info = details.error_info().expect("error info");
        assert_eq!(
            (info.reason.as_str(), info.domain.as_str()),
            ("INVALID_FIELD", "tharsis")
        );
        assert!(
            status
                .message()
                .starts_with("invalid request: group.name must be 1 to 64"),
            "{}",
            status.message()
        );
    }

    #[test]
    fn a_sound_message_is_built() {
        assert!(group("a", "").is_ok());
    }

    #[test]
    fn an_answer_stays_small_whatever_is_sent() {
        let mut violations = Violations::default();
        for index in 0..1000 {
            violations.add(
                &format!("list[{index}]{}", "a".repeat(10_000)),
                "ä".repeat(10_000),
            );
        }
        let bytes: usize = violations
            .into_status()
            .into_http::<()>()
            .headers()
            .values()
            .map(http::HeaderValue::len)
            .sum();
        assert!(bytes < 16 << 10, "{bytes}");
    }
}
