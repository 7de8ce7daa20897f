//! Waiting until a descriptor is readable.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use io_uring::{opcode, types};

use super::submit;
use crate::ring::Sqe;

/// Waits until `fd` can be read, or has failed.
pub async fn readable(fd: &Arc<OwnedFd>) -> io::Result<()> {
    let events = u32::try_from(libc::POLLIN).expect("a small positive flag");
    let sqe = opcode::PollAdd::new(types::Fd(fd.as_raw_fd()), events).build();
    // SAFETY: names no memory; the descriptor is kept.
    let (result, _) = unsafe { submit(Sqe::Normal(sqe), Arc::clone(fd)) }.await;
    result.map(drop)
}
