//! Making a file durable.

use std::io;
use std::os::fd::AsRawFd;

use io_uring::{opcode, types};

use super::{SharedFd, submit};
use crate::ring::Sqe;

/// fsync(2), or fdatasync(2) when only `data` matters. Runs on a kernel thread, not on the shard.
pub(crate) async fn fsync(file: SharedFd, data: bool) -> io::Result<()> {
    let flags = if data { types::FsyncFlags::DATASYNC } else { types::FsyncFlags::empty() };
    let sqe = opcode::Fsync::new(types::Fd(file.as_raw_fd())).flags(flags).build();
    // SAFETY: names no memory; the descriptor is kept.
    let (result, _) = unsafe { submit(Sqe::Normal(sqe), file) }.await;
    result.map(drop)
}
