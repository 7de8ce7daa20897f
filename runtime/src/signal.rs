//! SIGTERM and SIGINT as a request to stop.

use std::fs::File;
use std::io;

use crate::shard::stop;
use crate::{fs, sys};

/// The signals that ask a process to end, as a file. To be made before any other thread starts:
/// the signals are kept from this thread's handlers and from those of its children.
pub(crate) fn listen() -> io::Result<File> {
    sys::signalfd(&[libc::SIGINT, libc::SIGTERM])
}

/// Stops the machine at the first signal; later ones are read and change nothing.
pub(crate) async fn watch(signals: File) {
    let signals = fs::File::from(signals);
    loop {
        let siginfo = Vec::with_capacity(size_of::<libc::signalfd_siginfo>());
        let (result, siginfo) = signals.read_stream(siginfo).await;
        if let Err(error) = result {
            tracing::error!("signals can no longer be read: {error}");
            return;
        }
        // The number comes first (signalfd(2)).
        let number = siginfo.first_chunk().map_or(0, |bytes| u32::from_ne_bytes(*bytes));
        tracing::info!(signal = number, "stopping");
        stop();
    }
}
