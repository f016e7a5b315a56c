//! What goes wrong before and around the command, and the exit code of each. The numbers are those of `sysexits.h` and,
//! for the command that can't be run, of `env`: a command's own codes are seldom among them.

use std::io;

use crate::end::End;

/// `EX_USAGE`.
pub(crate) const USAGE: u8 = 64;

/// Why the command does not run, or did not run to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// Each is something to put right.
    #[error("{}", .0.join("; "))]
    Usage(Vec<String>),
    /// What may be there when it is asked for again.
    #[error("{0}")]
    Unavailable(String),
    #[error("{what}: {source}")]
    File { what: String, source: io::Error },
    #[error("the job is over: {0}")]
    JobOver(String),
    #[error("the issuer does not take the job token: {0}")]
    JobTokenRefused(String),
    #[error("no credential for {identity} ({reason}): {message}")]
    Refused {
        identity: String,
        reason: String,
        message: String,
    },
    #[error(
        "the job's workspace has no managed identities; assign some, or say --allow-none to run without"
    )]
    NoIdentities,
    #[error("{command} can't be run: {source}")]
    NotRun { command: String, source: io::Error },
    /// The number of the signal.
    #[error("ended by signal {0} before the command ran")]
    Interrupted(i32),
}

impl Failure {
    pub(crate) fn file(what: &str, source: io::Error) -> Self {
        Self::File {
            what: what.to_owned(),
            source,
        }
    }

    /// How we end for it.
    pub(crate) fn end(&self) -> End {
        match self {
            Self::Interrupted(signal) => End::Signal(*signal),
            failure => End::Code(failure.code()),
        }
    }

    pub(crate) fn code(&self) -> u8 {
        match self {
            Self::Usage(_) => USAGE,
            Self::Unavailable(_) => 69,
            Self::File { .. } => 73,
            Self::JobOver(_) | Self::JobTokenRefused(_) | Self::Refused { .. } => 77,
            Self::NoIdentities => 78,
            Self::NotRun { source, .. } if source.kind() == io::ErrorKind::NotFound => 127,
            Self::NotRun { .. } => 126,
            Self::Interrupted(signal) => of_signal(*signal),
        }
    }
}

/// As a shell reports a process that a signal ended.
pub(crate) fn of_signal(signal: i32) -> u8 {
    u8::try_from(signal).unwrap_or(u8::MAX).saturating_add(128)
}
