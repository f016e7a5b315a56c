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
    pub(crate) const ASKING: [Signal; 6] = [
        Signal::HUP,
        Signal::INT,
        Signal::QUIT,
        Signal::TERM,
        Signal::USR1,
        Signal::USR2,
    ];
    /// Those that matter as well once the command runs: that it stopped or should, and that the terminal's size is another.
    pub(crate) const OF_A_JOB: [Signal; 3] = [Signal::CHILD, Signal::TSTP, Signal::WINCH];

    /// From here on they come here.
    pub(crate) fn listen(kinds: &[Signal]) -> Result<Self, Failure> {
        let listen = |kind: &Signal| {
            let heard = unix::signal(SignalKind::from_raw(kind.as_raw()));
            heard.map(|heard| (*kind, heard))
        };
        let heard: Result<_, _> = kinds.iter().map(listen).collect();
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
