//! The command, and what it is told while it runs.

use std::ffi::{OsStr, OsString};
use std::io;
#[cfg(target_os = "linux")]
use std::os::unix::process::CommandExt as _;
#[cfg(target_os = "linux")]
use std::path::Path;

use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, kill_current_process_group, kill_process,
    kill_process_group, waitid,
};
#[cfg(target_os = "linux")]
use rustix::process::{getpid, getppid, set_parent_process_death_signal};
use tokio::process::Command;

use crate::end::End;
use crate::environment::Environment;
use crate::failure::Failure;
use crate::signals::Signals;
use crate::terminal::Terminal;

/// Runs it to its end.
pub(crate) async fn run(
    command: &[OsString],
    environment: &Environment,
    signals: &mut Signals,
) -> Result<End, Failure> {
    let (program, arguments) = command
        .split_first()
        .ok_or_else(|| Failure::Usage(vec!["there is no command".to_owned()]))?;
    let not_run = |source| Failure::NotRun {
        command: program.display().to_string(),
        source,
    };
    let mut wanted = outliving_us_not(program);
    wanted.args(arguments);
    environment.apply(&mut wanted);
    // So it hears what is sent to us once, from us, whether that was sent to us alone or to all of our group.
    wanted.process_group(0);
    let terminal = Terminal::open();
    // Without one we stop and go on alone, as anybody would.
    let of_a_job: &[Signal] = match &terminal {
        Some(_) => &Signals::OF_A_JOB,
        None => &[],
    };
    let mut of_a_job = Signals::listen(of_a_job)?;
    let mut child = wanted.spawn().map_err(not_run)?;
    let id = child.id().and_then(|id| i32::try_from(id).ok());
    let mut running = Running {
        group: id
            .and_then(Pid::from_raw)
            .ok_or_else(|| not_run(io::Error::other("it is gone")))?,
        terminal,
        asked_to_end: None,
    };
    loop {
        let signal = tokio::select! {
            ended = child.wait() => {
                running.asks_the_rest();
                if let Some(terminal) = &mut running.terminal {
                    terminal.take_back();
                }
                return ended.map(End::of).map_err(not_run);
            }
            signal = signals.next() => signal,
            signal = of_a_job.next() => signal,
        };
        match signal {
            Signal::CHILD => running.looks_after_it(),
            signal => running.passes_on(signal),
        }
    }
}

/// It is asked to end when we are gone, also when we were killed, and so did not ask it: it would go on with nobody to see
/// to it. The kernel does that for who asks for it himself, so this program does, and becomes the command.
#[cfg(target_os = "linux")]
fn outliving_us_not(program: &OsStr) -> Command {
    // It is this program also where another was installed meanwhile.
    const OURSELVES: &str = "/proc/self/exe";
    if !Path::new(OURSELVES).exists() {
        return Command::new(program);
    }
    let mut wanted = Command::new(OURSELVES);
    let us = getpid().to_string();
    wanted.args(["--run-by", &us, "--"]).arg(program);
    wanted
}

#[cfg(not(target_os = "linux"))]
fn outliving_us_not(program: &OsStr) -> Command {
    Command::new(program)
}

/// Becomes the command, as that process's child. Comes back only if it can't.
#[cfg(target_os = "linux")]
pub(crate) fn become_it(command: &[OsString], parent: i32) -> Failure {
    let Some((program, arguments)) = command.split_first() else {
        return Failure::Usage(vec!["there is no command".to_owned()]);
    };
    let asked = set_parent_process_death_signal(Some(Signal::TERM));
    // It may have gone before that.
    if Pid::as_raw(getppid()) != parent {
        return Failure::Interrupted(Signal::TERM.as_raw());
    }
    let source = match asked {
        Ok(()) => std::process::Command::new(program).args(arguments).exec(),
        Err(error) => error.into(),
    };
    Failure::NotRun {
        command: program.display().to_string(),
        source,
    }
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn become_it(_: &[OsString], _: i32) -> Failure {
    Failure::Usage(vec!["--run-by is of Linux".to_owned()])
}

/// The command while it is not reaped: until then its number is nobody else's.
struct Running {
    /// Its number is also that of its group.
    group: Pid,
    terminal: Option<Terminal>,
    /// By which signal, if it alone was.
    asked_to_end: Option<Signal>,
}

// It may have ended just now; then nobody misses what it is not told.
impl Running {
    fn passes_on(&mut self, signal: Signal) {
        // It would end the command on the spot, as if that had spent its own time.
        let signal = match signal {
            ours if Signals::FOR_US_ALONE.contains(&ours) => Signal::TERM,
            signal => signal,
        };
        let ends = [Signal::HUP, Signal::INT, Signal::QUIT, Signal::TERM].contains(&signal);
        match (&self.terminal, signal) {
            // Nobody would continue it.
            (Some(terminal), Signal::TSTP) if !terminal.is_of_a_job() => return,
            // A terminal sends these to all of a group, where each process takes care of itself.
            (Some(_), Signal::HUP | Signal::INT | Signal::QUIT | Signal::TSTP | Signal::WINCH) => {
                let _ = kill_process_group(self.group, signal);
            }
            // What it has started it may want to end in its own way.
            _ => {
                let _ = kill_process(self.group, signal);
                self.asked_to_end = self.asked_to_end.or(ends.then_some(signal));
            }
        }
        // What is stopped would not hear that it should end.
        if ends {
            self.goes_on();
        }
    }

    /// What it has left behind when it was asked to end: that is in no group that whoever asked knows of.
    fn asks_the_rest(&self) {
        if let Some(signal) = self.asked_to_end {
            let _ = kill_process_group(self.group, signal);
            self.goes_on();
        }
    }

    /// If it has stopped: because it wants the terminal, which it gets, or else we stop with it, as one job.
    fn looks_after_it(&mut self) {
        let Some(terminal) = &mut self.terminal else {
            return;
        };
        let options = WaitIdOptions::STOPPED | WaitIdOptions::NOHANG;
        let stopped = waitid(WaitId::Pid(self.group), options).ok().flatten();
        let Some(by) = stopped.and_then(|status| status.stopping_signal()) else {
            return;
        };
        let wants_it = [Signal::TTIN, Signal::TTOU]
            .map(Signal::as_raw)
            .contains(&by);
        if !(wants_it && terminal.lend(self.group)) {
            if terminal.is_of_a_job() {
                // It takes the terminal. We come back from this when the shell continues us.
                let _ = kill_current_process_group(Signal::STOP);
            } else if by != Signal::TSTP.as_raw() {
                return;
            }
        }
        self.goes_on();
    }

    fn goes_on(&self) {
        let _ = kill_process_group(self.group, Signal::CONT);
    }
}
