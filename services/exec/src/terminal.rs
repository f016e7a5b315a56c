//! The terminal that we were started at, where one group of processes is in front: its keys send signals to that one, and
//! no other may read from it or set it. The command has a group of its own, which is in front from when it wants to read
//! until it stops or ends. Until then ours is, with whoever else is in it: a script, or a pager that reads what the
//! command writes.

use std::fs::File;
use std::io;
use std::process::Command;

use rustix::process::{Pid, getpgrp, getsid};
use rustix::termios::{tcgetpgrp, tcsetpgrp};

use crate::end::ourselves;
use crate::messages::say;

pub(crate) struct Terminal {
    device: File,
    ours: Pid,
    lent_to: Option<Pid>,
}

impl Terminal {
    /// Ours, if we have one.
    pub(crate) fn open() -> Option<Self> {
        let device = File::open("/dev/tty").ok()?;
        Some(Self {
            device,
            ours: getpgrp(),
            lent_to: None,
        })
    }

    /// Whether we are a shell's job, which it continues when it was stopped. The group of the session's first process is
    /// nobody's: what stops there stays so.
    pub(crate) fn is_of_a_job(&self) -> bool {
        getsid(None).is_ok_and(|session| session != self.ours)
    }

    /// Brings another group to the front if ours is there; says whether it did.
    pub(crate) fn lend(&mut self, to: Pid) -> bool {
        let lent = self.front() == Some(self.ours) && tcsetpgrp(&self.device, to).is_ok();
        if lent {
            self.lent_to = Some(to);
        }
        lent
    }

    /// Brings our group back to the front: whoever started us may not do so itself.
    pub(crate) fn take_back(&mut self) {
        let lent_to = self.lent_to.take();
        if lent_to.is_none() || self.front() != lent_to {
            return;
        }
        // Who does it from behind is stopped for it, unless it is deaf to that; a shell makes a process so without `unsafe`.
        let front = ourselves().and_then(|program| {
            Command::new("sh")
                .args(["-c", "trap '' TTOU; exec \"$@\"", "sh"])
                .arg(program)
                .arg("--to-the-front")
                .status()
        });
        let why = match front {
            Ok(status) if status.success() => return,
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        };
        say(&format!("the terminal is not given back: {why}"));
    }

    fn front(&self) -> Option<Pid> {
        tcgetpgrp(&self.device).ok()
    }
}

/// Brings our group to the front, which must not be stopped for that.
pub(crate) fn to_the_front() -> io::Result<()> {
    let device = File::open("/dev/tty")?;
    Ok(tcsetpgrp(&device, getpgrp())?)
}
