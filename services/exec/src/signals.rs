//! Signals that are not for us but for the command.

use std::future::poll_fn;
use std::task::Poll;

use rustix::process::Signal;
use tokio::signal::unix::{self, SignalKind};

use crate::failure::Failure;

/// The signals that ask a process for something.
pub(crate) struct Signals(Vec<(Signal, unix::Signal)>);

impl Signals {
    /// Those that ask whoever we are.
    pub(crate) const ASKING: &[Signal] = &[
        Signal::HUP,
        Signal::INT,
        Signal::QUIT,
        Signal::TERM,
        Signal::USR1,
        Signal::USR2,
        Signal::ALARM,
        Signal::VTALARM,
        Signal::PROF,
        Signal::XCPU,
        #[cfg(target_os = "linux")]
        Signal::IO,
        #[cfg(target_os = "linux")]
        Signal::POWER,
    ];
    /// Those that would end who does not expect them: most come when the time is over that we were given, and the command
    /// was not.
    pub(crate) const FOR_US_ALONE: &[Signal] = &[
        Signal::ALARM,
        Signal::VTALARM,
        Signal::PROF,
        Signal::XCPU,
        #[cfg(target_os = "linux")]
        Signal::IO,
        #[cfg(target_os = "linux")]
        Signal::POWER,
    ];
    /// Those that matter as well once the command runs: that it stopped or should, and that the terminal's size is another.
    pub(crate) const OF_A_JOB: [Signal; 3] = [Signal::CHILD, Signal::TSTP, Signal::WINCH];

    /// From here on they come here. What we are to ignore, as under `nohup`, we go on ignoring, and so does the command.
    pub(crate) fn listen(kinds: &[Signal]) -> Result<Self, Failure> {
        let ignored = ignored();
        let is_heard = |kind: &&Signal| **kind == Signal::CHILD || !is_among(ignored, **kind);
        let listen = |kind: &Signal| {
            let heard = unix::signal(SignalKind::from_raw(kind.as_raw()));
            heard.map(|heard| (*kind, heard))
        };
        let heard: Result<_, _> = kinds.iter().filter(is_heard).map(listen).collect();
        let heard = heard.map_err(|source| Failure::file("signals can't be heard", source))?;
        Ok(Self(heard))
    }

    /// Takes those without a name (`SIGRTMIN` to `SIGRTMAX`) as asking for the end, which they would be.
    #[cfg(target_os = "linux")]
    pub(crate) fn listen_to_the_nameless(&mut self) {
        let ignored = ignored();
        let heard = (34..=64)
            .filter(|number| ignored >> (number - 1) & 1 == 0)
            // Some C library may keep the first for itself.
            .filter_map(|number| unix::signal(SignalKind::from_raw(number)).ok());
        self.0.extend(heard.map(|heard| (Signal::TERM, heard)));
    }

    /// The next that comes.
    pub(crate) async fn next(&mut self) -> Signal {
        poll_fn(|context| {
            let mut all = self.0.iter_mut();
            let came =
                all.find_map(|(kind, heard)| heard.poll_recv(context).is_ready().then_some(*kind));
            came.map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }
}

/// From here on a file that may not grow is an error, and does not end us with all that we would have cleaned up. To the
/// command it is what it was to us.
pub(crate) fn survive_full_files() -> Result<(), Failure> {
    Signals::listen(&[Signal::XFSZ]).map(drop)
}

/// The signals that this process ignores, as bits, the lowest of the first one (`proc_pid_status(5)`). None, where the system
/// does not tell.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let bits = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let bits = bits.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok());
    bits.unwrap_or_default()
}

/// Whether we were told to ignore it, as by `nohup`.
pub(crate) fn is_ignored(signal: Signal) -> bool {
    is_among(ignored(), signal)
}

fn is_among(signals: u64, signal: Signal) -> bool {
    signals >> (signal.as_raw() - 1) & 1 == 1
}
