//! What is said on the standard error. While the command runs, nothing waits until that is written: who reads it may have
//! stopped reading, as a terminal has after Ctrl-S, and the tokens are to be renewed, and signals passed on, all the same.

use std::io::{self, Write as _};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};

/// How many wait to be written before the next are lost.
const MOST: usize = 64;

/// How long the end waits for those that are not written yet.
const PATIENCE: Duration = Duration::from_secs(1);

static ASIDE: OnceLock<SyncSender<Next>> = OnceLock::new();
static LOST: AtomicUsize = AtomicUsize::new(0);

enum Next {
    Message(String),
    /// Dropped when all before it is written.
    End(Sender<()>),
}

pub(crate) fn say(message: &str) {
    match ASIDE.get() {
        None => write(message),
        Some(aside) => {
            if aside.try_send(Next::Message(message.to_owned())).is_err() {
                LOST.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// From here on nobody waits for what he says.
pub(crate) fn step_aside() -> io::Result<()> {
    let (aside, messages) = sync_channel(MOST);
    thread::Builder::new().spawn(move || write_each(&messages))?;
    let _ = ASIDE.set(aside);
    Ok(())
}

/// Waits for what was said, but not for who does not read it.
pub(crate) fn finish() {
    let (last, written) = channel();
    if let Some(aside) = ASIDE.get()
        && aside.try_send(Next::End(last)).is_ok()
    {
        let _ = written.recv_timeout(PATIENCE);
    }
}

fn write_each(messages: &Receiver<Next>) {
    // A terminal may stop who writes from behind (`stty tostop`), and our whole group with it; not who is deaf to that.
    let _ = SigSet::from(Signal::SIGTTOU).thread_block();
    for next in messages {
        match LOST.swap(0, Ordering::Relaxed) {
            0 => {}
            lost => write(&format!(
                "{lost} messages are lost: nobody read them in time"
            )),
        }
        match next {
            Next::Message(message) => write(&message),
            Next::End(written) => drop(written),
        }
    }
}

fn write(message: &str) {
    // Where nobody listens any more, the command goes on.
    let _ = writeln!(io::stderr(), "tharsis-exec: {message}");
}
