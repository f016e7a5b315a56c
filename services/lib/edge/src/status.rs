//! Statuses with `google.rpc` details. Each carries an `ErrorInfo` with a reason that stays the same for ever, and a
//! message that says what to do next. What went wrong below reaches the log, never a client.

use std::error::Error;
use std::time::Duration;

use eventlog::LogError;
use model::{Permission, Reference, Requirement, ResourceId, Trn};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

pub use tonic_types::PreconditionViolation;

use crate::clock;

/// The domain of every reason.
pub const DOMAIN: &str = "tharsis";

/// When to try again after an `UNAVAILABLE`, or what was busy.
const RETRY: Duration = Duration::from_secs(1);
/// Bytes of a text that came from a caller, in an answer: some clients take 8 KiB of headers at most.
const MAX_TEXT: usize = 256;

/// The reason that a status of ours has; empty if it is of somebody else.
#[must_use]
pub fn reason(status: &Status) -> String {
    let info = status.get_details_error_info();
    info.map(|info| info.reason).unwrap_or_default()
}

/// `NOT_FOUND`, for what does not exist and for what the caller may not know to exist.
#[must_use]
pub fn not_found(resource: &str) -> Status {
    missing(
        resource,
        "does not exist, or you may not see it; check the name, or ask an owner for a role",
    )
}

/// `NOT_FOUND`, for a service account that is not there, and for one that trusts no token of the issuer: who asks may not
/// know which.
#[must_use]
pub fn not_trusting(resource: &str) -> Status {
    missing(
        resource,
        "does not exist, or trusts no tokens of the token's issuer; check the name, and that a trust policy of it has \
         the token's iss, byte for byte",
    )
}

fn missing(resource: &str, what: &str) -> Status {
    let resource = shortened(resource);
    let kind = match resource.parse() {
        Ok(Reference::Id(id)) => ResourceId::kind(&id).as_str(),
        Ok(Reference::Trn(Trn { kind, .. })) => kind.as_str(),
        Err(_) => "",
    };
    let message = format!("{resource} {what}");
    let mut details = ErrorDetails::new();
    details.set_resource_info(
        kind,
        resource,
        "",
        "does not exist, or is hidden from the caller",
    );
    with_details(Code::NotFound, "RESOURCE_NOT_FOUND", &message, details)
}

/// `PERMISSION_DENIED`: the caller knows the resource and lacks the permission.
#[must_use]
pub fn permission_denied(permission: Permission, resource: &str) -> Status {
    let advice = match permission.requirement() {
        Requirement::JobToken => {
            "call with a job token as bearer, the job_token of OpenJob's answer"
        }
        Requirement::Administrator => "only administrators have it, whom the configuration names",
        Requirement::EventReader => {
            "only event readers and administrators have it, whom the configuration names"
        }
        Requirement::Nothing | Requirement::Token | Requirement::Role(_) => {
            "ask an owner of it for a role that has it"
        }
    };
    denied(permission, resource, advice)
}

/// `PERMISSION_DENIED` at the top, where no role reaches: it is meant by an empty `field`.
#[must_use]
pub fn denied_at_the_top(permission: Permission, field: &str) -> Status {
    let advice =
        format!("only administrators, whom the configuration names, may leave {field} empty");
    denied(permission, "the top level", &advice)
}

fn denied(permission: Permission, resource: &str, advice: &str) -> Status {
    let (permission, resource) = (format!("{permission:?}"), shortened(resource));
    let message = format!("{permission} on {resource} is not yours; {advice}");
    let mut details = ErrorDetails::new();
    let metadata = [("permission", &permission), ("resource", &resource)];
    let metadata = metadata.map(|(key, value)| (key.to_owned(), value.clone()));
    details.set_error_info("PERMISSION_DENIED", DOMAIN, metadata);
    Status::with_error_details(Code::PermissionDenied, message, details)
}

/// `UNAUTHENTICATED`: the token does not do.
#[must_use]
pub fn unauthenticated(reason: &str, message: &str) -> Status {
    plain(Code::Unauthenticated, reason, message)
}

/// `UNIMPLEMENTED`: an rpc of another service, or none.
#[must_use]
pub fn not_served(method: &str) -> Status {
    let message = format!(
        "{} is not served here; if it is an rpc of ours, another service serves it: call that one's address",
        shortened(method)
    );
    plain(Code::Unimplemented, "NOT_SERVED", &message)
}

/// `FAILED_PRECONDITION`, with what stands in the way: each a type, a subject and a description.
#[must_use]
pub fn failed_precondition(
    reason: &str,
    message: &str,
    obstacles: Vec<PreconditionViolation>,
) -> Status {
    let mut details = ErrorDetails::new();
    if !obstacles.is_empty() {
        details.set_precondition_failure(obstacles);
    }
    with_details(Code::FailedPrecondition, reason, message, details)
}

/// `ALREADY_EXISTS`.
#[must_use]
pub fn already_exists(reason: &str, message: &str) -> Status {
    plain(Code::AlreadyExists, reason, message)
}

/// `ABORTED`: someone else came between; read again and repeat.
#[must_use]
pub fn aborted(reason: &str, message: &str) -> Status {
    plain(Code::Aborted, reason, message)
}

/// `UNAVAILABLE`: the same request may succeed later.
#[must_use]
pub fn unavailable(reason: &str, message: &str) -> Status {
    let details = ErrorDetails::with_retry_info(Some(RETRY));
    with_details(Code::Unavailable, reason, message, details)
}

/// `DEADLINE_EXCEEDED`.
#[must_use]
pub fn deadline_exceeded(reason: &str, message: &str) -> Status {
    plain(Code::DeadlineExceeded, reason, message)
}

/// `RESOURCE_EXHAUSTED`: a limit was met.
#[must_use]
pub fn resource_exhausted(reason: &str, message: &str) -> Status {
    plain(Code::ResourceExhausted, reason, message)
}

/// `RESOURCE_EXHAUSTED`: the caller asks too often; says when to ask again.
#[must_use]
pub fn rate_limited(wait: Duration) -> Status {
    let message = format!(
        "you ask more often than you may; ask again in {} ms",
        wait.as_millis() + 1
    );
    let details = ErrorDetails::with_retry_info(Some(wait));
    with_details(Code::ResourceExhausted, "RATE_LIMITED", &message, details)
}

/// `RESOURCE_EXHAUSTED`: others use what there is of something; the same request may succeed later.
#[must_use]
pub fn busy(reason: &str, message: &str) -> Status {
    let details = ErrorDetails::with_retry_info(Some(RETRY));
    with_details(Code::ResourceExhausted, reason, message, details)
}

/// `INTERNAL`: logs the error with its causes; the client gets an id to find them by.
#[must_use]
pub fn internal(error: &(dyn Error + 'static)) -> Status {
    let incident = clock::new_uuid().to_string();
    tracing::error!(incident, error = chain(error), "request failed");
    let message =
        format!("something went wrong on our side; report it with the incident {incident}");
    let details =
        ErrorDetails::with_error_info("INTERNAL", DOMAIN, [("incident".to_owned(), incident)]);
    Status::with_error_details(Code::Internal, message, details)
}

/// The status for a failing database: `UNAVAILABLE` if it can't be reached, `DEADLINE_EXCEEDED` if a query took longer than
/// an rpc may, `INTERNAL` if it refused a query of ours.
#[must_use]
pub fn database(error: &sqlx::Error) -> Status {
    let code = error
        .as_database_error()
        .and_then(sqlx::error::DatabaseError::code);
    // query_canceled, by the statement_timeout.
    if code.as_deref() == Some("57014") {
        return logged(
            error,
            deadline_exceeded(
                "DEADLINE_EXCEEDED",
                "the query took longer than an rpc may; ask for less, by a narrower filter",
            ),
        );
    }
    let away = match error {
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => true,
        // Class 08 is a broken connection, 53 out of resources, 57 shut down by an operator
        // (https://www.postgresql.org/docs/current/errcodes-appendix.html).
        sqlx::Error::Database(error) => error.code().is_some_and(|code| {
            ["08", "53", "57"]
                .iter()
                .any(|class| code.starts_with(class))
        }),
        _ => false,
    };
    if !away {
        // Copied, for it does not outlive the call as the cause of another error.
        return internal(&DatabaseFailure(chain(error)));
    }
    logged(
        error,
        unavailable(
            "DATABASE_UNAVAILABLE",
            "the database can't be reached at the moment; try again",
        ),
    )
}

/// The status for a log that can't be read.
#[must_use]
pub fn log(error: &LogError) -> Status {
    match error {
        LogError::Database(error) => database(error),
    }
}

/// The status, after the error behind it is logged with its causes.
#[must_use]
pub fn logged(error: &(dyn Error + 'static), status: Status) -> Status {
    tracing::error!(code = ?status.code(), error = chain(error), "request failed");
    status
}

/// An error and its causes, for a log.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// The text, cut where it is too long for an answer.
pub(crate) fn shortened(text: &str) -> String {
    if text.len() <= MAX_TEXT {
        return text.to_owned();
    }
    let end = text.floor_char_boundary(MAX_TEXT);
    format!("{}…", text.get(..end).unwrap_or_default())
}

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct DatabaseFailure(String);

fn plain(code: Code, reason: &str, message: &str) -> Status {
    with_details(code, reason, message, ErrorDetails::new())
}

fn with_details(code: Code, reason: &str, message: &str, mut details: ErrorDetails) -> Status {
    details.set_error_info(reason, DOMAIN, []);
    Status::with_error_details(code, message, details)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(status: &Status) -> String {
        status
            .get_details_error_info()
            .map(|info| format!("{}/{}", info.domain, info.reason))
            .unwrap_or_default()
    }

    #[test]
    fn what_is_missing_is_named_with_its_type() {
        let status = not_found("trn:managed_identity:acme/deployer");
        assert_eq!(
            (status.code(), reason(&status)),
            (Code::NotFound, "tharsis/RESOURCE_NOT_FOUND".to_owned())
        );
        let info = status.get_details_resource_info().expect("resource info");
        assert_eq!(info.resource_type, "managed_identity");
        assert_eq!(info.resource_name, "trn:managed_identity:acme/deployer");
    }

    #[test]
    fn who_may_not_is_told_who_may() {
        for (permission, who) in [
            (Permission::Job, "call with a job token"),
            (Permission::Administrator, "only administrators"),
            (Permission::EventsRead, "only event readers"),
            (Permission::GroupView, "ask an owner of it for a role"),
        ] {
            let status = permission_denied(permission, "this service");
            assert_eq!(reason(&status), "tharsis/PERMISSION_DENIED");
            assert!(status.message().contains(who), "{}", status.message());
        }
        let status = denied_at_the_top(Permission::GroupCreate, "group.parent_id");
        assert!(
            status
                .message()
                .ends_with("may leave group.parent_id empty")
        );
    }

    #[test]
    fn an_internal_error_tells_the_client_nothing_but_an_incident() {
        let status = internal(&std::io::Error::other("password=hunter2"));
        assert_eq!(
            (status.code(), reason(&status)),
            (Code::Internal, "tharsis/INTERNAL".to_owned())
        );
        assert!(!format!("{status:?}").contains("hunter2"));
        let info = status.get_details_error_info().expect("error info");
        assert!(status.message().contains(&info.metadata["incident"]));
    }

    #[test]
    fn a_database_that_is_away_can_be_tried_again() {
        let status = database(&sqlx::Error::PoolTimedOut);
        assert_eq!(
            (status.code(), reason(&status)),
            (Code::Unavailable, "tharsis/DATABASE_UNAVAILABLE".to_owned())
        );
        assert!(status.get_details_retry_info().is_some());
        assert_eq!(database(&sqlx::Error::RowNotFound).code(), Code::Internal);
    }

    #[test]
    fn what_stands_in_the_way_is_listed() {
        let obstacle = PreconditionViolation::new("CHILD", "grp_1", "is below it");
        let status = failed_precondition(
            "GROUP_NOT_EMPTY",
            "delete what is below it first",
            vec![obstacle],
        );
        let failure = status
            .get_details_precondition_failure()
            .expect("precondition failure");
        assert_eq!(
            failure
                .violations
                .first()
                .map(|violation| violation.subject.as_str()),
            Some("grp_1")
        );
        assert_eq!(reason(&status), "tharsis/GROUP_NOT_EMPTY");
    }
}
