//! The command.

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;

use tokio::process::Command;

use crate::environment::Environment;
use crate::failure::{Failure, of_signal};
use crate::signals::{Signals, in_front, is_of_the_terminal, pass_on};

/// Runs it to its end, and answers with its exit code.
pub(crate) async fn run(
    command: &[OsString],
    environment: &Environment,
    signals: &mut Signals,
) -> Result<u8, Failure> {
    let (program, arguments) = command
        .split_first()
        .ok_or_else(|| Failure::Usage(vec!["there is no command".to_owned()]))?;
    let not_run = |source| Failure::NotRun {
        command: program.display().to_string(),
        source,
    };
    let mut wanted = Command::new(program);
    wanted.args(arguments);
    environment.apply(&mut wanted);
    // Where the keys of a terminal send signals to all of our group, it stays in it, and in front. Elsewhere it is alone, so
    // that a signal to our group does not reach it twice.
    let in_our_group = in_front();
    if !in_our_group {
        wanted.process_group(0);
    }
    let mut child = wanted.spawn().map_err(not_run)?;
    let id = child.id();
    loop {
        tokio::select! {
            ended = child.wait() => return ended.map(code).map_err(not_run),
            signal = signals.next() => {
                if let Some(id) = id.filter(|_| !(in_our_group && is_of_the_terminal(signal))) {
                    pass_on(signal, id);
                }
            }
        }
    }
}

fn code(ended: ExitStatus) -> u8 {
    match (ended.code(), ended.signal()) {
        (Some(code), _) => u8::try_from(code).unwrap_or(u8::MAX),
        (None, Some(signal)) => of_signal(signal),
        (None, None) => u8::MAX,
    }
}
