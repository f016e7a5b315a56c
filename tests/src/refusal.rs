//! What a refusal says: code, reason, fields, what stands in the way.

use std::fmt::Debug;

use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// The stable reason; empty where there is none.
#[must_use]
pub fn reason(status: &Status) -> String {
    status
        .get_details_error_info()
        .map(|info| info.reason)
        .unwrap_or_default()
}

/// The paths of the wrong fields.
#[must_use]
pub fn fields(status: &Status) -> Vec<String> {
    let violations = status
        .get_details_bad_request()
        .map(|details| details.field_violations);
    violations
        .unwrap_or_default()
        .into_iter()
        .map(|violation| violation.field)
        .collect()
}

/// What stands in the way: type and subject.
#[must_use]
pub fn obstacles(status: &Status) -> Vec<(String, String)> {
    let violations = status
        .get_details_precondition_failure()
        .map(|details| details.violations);
    violations
        .unwrap_or_default()
        .into_iter()
        .map(|violation| (violation.r#type, violation.subject))
        .collect()
}

/// The refusal, which must have this code and reason.
#[track_caller]
pub fn refused<T: Debug>(outcome: Result<T, Status>, code: Code, why: &str) -> Status {
    let status = outcome.expect_err("it is refused");
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (code, why),
        "{status:?}"
    );
    status
}

/// `NOT_FOUND`.
#[track_caller]
pub fn not_found<T: Debug>(outcome: Result<T, Status>) {
    let status = refused(outcome, Code::NotFound, "RESOURCE_NOT_FOUND");
    assert!(status.get_details_resource_info().is_some(), "{status:?}");
}

/// `INVALID_ARGUMENT` for exactly these fields.
#[track_caller]
pub fn invalid<T: Debug>(outcome: Result<T, Status>, wrong: &[&str]) {
    let status = outcome.expect_err("it is refused");
    assert_eq!(
        (status.code(), fields(&status)),
        (
            Code::InvalidArgument,
            wrong.iter().map(ToString::to_string).collect()
        ),
        "{status:?}"
    );
    let details = status.get_details_bad_request().expect("violations");
    assert!(
        details
            .field_violations
            .iter()
            .all(|violation| !violation.description.is_empty())
    );
}
