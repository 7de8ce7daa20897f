//! Closing one direction of a socket.

use std::io;
use std::net::Shutdown;
use std::os::fd::AsRawFd;

use io_uring::{opcode, types};

use super::{SharedFd, submit};
use crate::ring::Sqe;

/// shutdown(2).
pub(crate) async fn shutdown(socket: SharedFd, how: Shutdown) -> io::Result<()> {
    let how = match how {
        Shutdown::Read => libc::SHUT_RD,
        Shutdown::Write => libc::SHUT_WR,
        Shutdown::Both => libc::SHUT_RDWR,
    };
    let sqe = opcode::Shutdown::new(types::Fd(socket.as_raw_fd()), how).build();
    // SAFETY: names no memory; the descriptor is kept.
    let (result, _) = unsafe { submit(Sqe::Normal(sqe), socket) }.await;
    result.map(drop)
}
