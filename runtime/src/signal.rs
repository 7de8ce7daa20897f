//! SIGTERM and SIGINT, and SIGHUP, as a request to stop.
//!
//! A thread of its own waits for them: it outlives every shard, so a signal is heard as long as
//! anything runs.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::sync::Arc;

use crate::shard::{Remote, stop_all};
use crate::sys::{self, SignalMask};

/// Keeps the signals from killing the process, and tells the machine of them.
pub(crate) struct Signals {
    file: File,
    /// Readable once the machine has ended.
    ended: File,
    /// What this thread blocked before; put back by the drop.
    _before: SignalMask,
}

impl Signals {
    /// To be made before any other thread starts: they inherit the mask.
    pub(crate) fn block(hangup: bool) -> io::Result<Self> {
        let mut signals = vec![libc::SIGINT, libc::SIGTERM];
        if hangup && !sys::is_ignored(libc::SIGHUP)? {
            signals.push(libc::SIGHUP);
        }
        let (file, before) = sys::signalfd(&signals)?;
        Ok(Self { file, ended: sys::eventfd()?, _before: before })
    }

    /// Stops the machine at each signal, until [`Signals::end`].
    pub(crate) fn watch(&self, machine: &Arc<[Arc<Remote>]>) {
        loop {
            let ended = match sys::poll_either(self.file.as_raw_fd(), self.ended.as_raw_fd()) {
                Ok((_, ended)) => ended,
                Err(error) => {
                    tracing::error!("signals can no longer be heard: {error}");
                    return;
                }
            };
            // All that is pending, also at the end: unread, it would kill the process once the
            // mask is gone.
            let mut siginfo = [0; size_of::<libc::signalfd_siginfo>()];
            while (&self.file).read_exact(&mut siginfo).is_ok() {
                // The number comes first (signalfd(2)).
                let number = siginfo.first_chunk().copied().map_or(0, u32::from_ne_bytes);
                stop_all(machine);
                tracing::info!(signal = number, "stopping");
            }
            if ended {
                return;
            }
        }
    }

    /// Ends the watch.
    pub(crate) fn end(&self) {
        // One write to a counter that nobody else writes: never full.
        let _ = (&self.ended).write_all(&1_u64.to_ne_bytes());
    }
}
