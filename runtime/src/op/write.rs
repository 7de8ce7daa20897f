//! Writing a file.

use std::io;
use std::os::fd::AsRawFd;

use io_uring::{opcode, types};

use super::{SharedFd, len_of, submit};
use crate::buf::IoBuf;
use crate::ring::Sqe;

/// Writes the buffer at `offset`; may write less than all of it.
pub(crate) async fn write_at<B: IoBuf>(
    file: SharedFd,
    buffer: B,
    from: usize,
    offset: u64,
) -> (io::Result<usize>, B) {
    let bytes = &buffer.bytes()[from..];
    let fd = types::Fd(file.as_raw_fd());
    let sqe = opcode::Write::new(fd, bytes.as_ptr(), len_of(bytes.len())).offset(offset).build();
    // SAFETY: the bytes stay where they are (`IoBuf`); buffer and file are kept.
    let (result, (_, buffer)) = unsafe { submit(Sqe::Normal(sqe), (file, buffer)) }.await;
    (result.map(|len| len as usize), buffer)
}
