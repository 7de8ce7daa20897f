//! Receiving from a socket.

use std::io;
use std::os::fd::AsRawFd;

use io_uring::{opcode, types};

use super::{SharedFd, len_of, submit};
use crate::buf::IoBufMut;
use crate::ring::Sqe;

/// Receives into the buffer's room. 0: the peer has closed its side.
pub(crate) async fn recv<B: IoBufMut>(socket: SharedFd, mut buffer: B) -> (io::Result<usize>, B) {
    let (start, len_bytes) = buffer.room();
    let fd = types::Fd(socket.as_raw_fd());
    let sqe = opcode::Recv::new(fd, start, len_of(len_bytes)).build();
    // SAFETY: the room stays where it is (`IoBufMut`); buffer and socket are kept.
    let (result, (_, mut buffer)) = unsafe { submit(Sqe::Normal(sqe), (socket, buffer)) }.await;
    let result = result.map(|len| len as usize);
    if let Ok(len) = result {
        // SAFETY: the kernel wrote so many bytes at the start of the room.
        unsafe { buffer.filled(len) };
    }
    (result, buffer)
}
