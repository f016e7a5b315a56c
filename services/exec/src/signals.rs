//! Signals that are not for us but for the command.

use std::future::poll_fn;
use std::task::Poll;

use rustix::process::{Pid, Signal, getpgrp, kill_process};
use tokio::signal::unix::{self, SignalKind};

use crate::failure::Failure;

/// The signals that ask a process for something.
pub(crate) struct Signals(Vec<(Signal, unix::Signal)>);

impl Signals {
    const KINDS: [Signal; 6] = [
        Signal::HUP,
        Signal::INT,
        Signal::QUIT,
        Signal::TERM,
        Signal::USR1,
        Signal::USR2,
    ];

    /// From here on they come here.
    pub(crate) fn listen() -> Result<Self, Failure> {
        let listen = |kind: Signal| {
            let heard = unix::signal(SignalKind::from_raw(kind.as_raw()));
            heard.map(|heard| (kind, heard))
        };
        let heard: Result<_, _> = Self::KINDS.into_iter().map(listen).collect();
        let heard = heard.map_err(|source| Failure::file("signals can't be heard", source))?;
        Ok(Self(heard))
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

/// Passes a signal on to a child, which is not reaped yet.
pub(crate) fn pass_on(signal: Signal, child: u32) {
    let child = i32::try_from(child).ok().and_then(Pid::from_raw);
    if let Some(child) = child {
        // It may have ended just now; then nobody misses it.
        let _ = kill_process(child, signal);
    }
}

/// Whether our process group is the one that the keys of a terminal send signals to.
pub(crate) fn in_front() -> bool {
    let terminal = std::fs::File::open("/dev/tty").ok();
    let front = terminal.and_then(|terminal| rustix::termios::tcgetpgrp(terminal).ok());
    front == Some(getpgrp())
}

/// Whether the keys of the terminal send this signal to all of our process group, the command included. A second
/// interrupt makes Terraform give up at once: so it must not get two for one.
pub(crate) fn is_of_the_terminal(signal: Signal) -> bool {
    let by_keys = [Signal::INT, Signal::QUIT, Signal::HUP].contains(&signal);
    by_keys && in_front()
}
