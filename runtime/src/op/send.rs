//! Sending to a socket.

use std::io;
use std::os::fd::AsRawFd;

use io_uring::{opcode, types};

use super::{SharedFd, len_of, submit};
use crate::buf::IoBuf;
use crate::ring::Sqe;

/// Sends the buffer's bytes behind `from`; may send less than all of them.
pub(crate) async fn send<B: IoBuf>(
    socket: SharedFd,
    buffer: B,
    from: usize,
) -> (io::Result<usize>, B) {
    let bytes = &buffer.bytes()[from..];
    let fd = types::Fd(socket.as_raw_fd());
    let sqe = opcode::Send::new(fd, bytes.as_ptr(), len_of(bytes.len()))
        .flags(libc::MSG_NOSIGNAL)
        .build();
    // SAFETY: the bytes stay where they are (`IoBuf`); buffer and socket are kept.
    let (result, (_, buffer)) = unsafe { submit(Sqe::Normal(sqe), (socket, buffer)) }.await;
    (result.map(|len| len as usize), buffer)
}
