//! How we end: as the command did. A shell that hears of a Ctrl-C ends its script if what it waited for died of that, and
//! goes on if it only says so (<https://www.cons.org/cracauer/sigint.html>).

use std::io;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::PathBuf;
use std::process::{self, Command, ExitCode, ExitStatus};

#[cfg(target_os = "linux")]
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::process::{Signal, getpid, kill_process};

use crate::failure::of_signal;

/// What ended the command, or us before it ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Code(u8),
    /// By its number.
    Signal(i32),
}

/// What asks for an end. Of others, a shell would report a crash of ours.
const ASKED_FOR: [Signal; 4] = [Signal::HUP, Signal::INT, Signal::QUIT, Signal::TERM];

impl End {
    pub(crate) fn of(command: ExitStatus) -> Self {
        match (command.code(), command.signal()) {
            (Some(code), _) => Self::Code(u8::try_from(code).unwrap_or(u8::MAX)),
            (None, Some(signal)) => Self::Signal(signal),
            (None, None) => Self::Code(u8::MAX),
        }
    }

    /// As a shell reports it.
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => of_signal(signal),
        }
    }

    /// Comes back only if we are to end by ourselves. To us the signals do nothing any more; so this program starts anew, as
    /// this process, to which they do what they usually do.
    pub(crate) fn come(self) -> ExitCode {
        if let Self::Signal(signal) = self
            && ASKED_FOR.map(Signal::as_raw).contains(&signal)
            && let Ok(program) = ourselves()
        {
            let _ = Command::new(program)
                .arg("--end-by")
                .arg(signal.to_string())
                .exec();
        }
        ExitCode::from(self.code())
    }
}

/// This program, also where another was installed meanwhile; whoever runs it.
pub(crate) fn ourselves() -> io::Result<PathBuf> {
    let ours = PathBuf::from(format!("/proc/{}/exe", process::id()));
    if ours.exists() {
        return Ok(ours);
    }
    std::env::current_exe()
}

/// Dies of the signal, unless it is ignored here, or does nothing, as to the first process of a container.
pub(crate) fn die_of(signal: i32) -> ExitCode {
    // The command has left its core, if it was to.
    #[cfg(target_os = "linux")]
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    if let Some(signal) = Signal::from_named_raw(signal) {
        let _ = kill_process(getpid(), signal);
    }
    ExitCode::from(of_signal(signal))
}
