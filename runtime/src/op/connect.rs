//! Connecting a socket.

use std::io;
use std::os::fd::AsRawFd;

use io_uring::{opcode, types};
use socket2::SockAddr;

use super::{SharedFd, submit};
use crate::ring::Sqe;

/// Connects `socket` to `address`.
pub(crate) async fn connect(socket: SharedFd, address: SockAddr) -> io::Result<()> {
    let address = Box::new(address);
    let fd = types::Fd(socket.as_raw_fd());
    let sqe = opcode::Connect::new(fd, address.as_ptr().cast(), address.len()).build();
    // SAFETY: the address is boxed, and kept with the socket.
    let (result, _) = unsafe { submit(Sqe::Normal(sqe), (socket, address)) }.await;
    result.map(drop)
}
