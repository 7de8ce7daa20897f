//! Reading a file.

use std::io;
use std::os::fd::AsRawFd;

use io_uring::{opcode, types};

use super::{SharedFd, len_of, submit};
use crate::buf::IoBufMut;
use crate::ring::Sqe;
use crate::sys;

/// Reads at `offset` into the buffer's room. What is in memory already is copied at once, without
/// the ring; only a read that has to wait goes through it.
pub(crate) async fn read_at<B: IoBufMut>(
    file: SharedFd,
    mut buffer: B,
    offset: u64,
) -> (io::Result<usize>, B) {
    let (start, len_bytes) = buffer.room();
    // SAFETY: the room is ours until it is filled.
    let result = match unsafe { sys::read_nowait(&file, start, len_bytes, offset) } {
        Err(error) if must_wait(&error) => {
            let sqe = opcode::Read::new(types::Fd(file.as_raw_fd()), start, len_of(len_bytes))
                .offset(offset)
                .build();
            // SAFETY: the room stays where it is (`IoBufMut`); buffer and file are kept.
            let (result, keep) = unsafe { submit(Sqe::Normal(sqe), (file, buffer)) }.await;
            buffer = keep.1;
            result.map(|len| len as usize)
        }
        result => result,
    };
    if let Ok(len) = result {
        // SAFETY: the kernel wrote so many bytes at the start of the room.
        unsafe { buffer.filled(len) };
    }
    (result, buffer)
}

/// Not in memory, or a file system (5.x FUSE, NFS) that cannot tell.
fn must_wait(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock || error.raw_os_error() == Some(libc::EOPNOTSUPP)
}
