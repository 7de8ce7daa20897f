//! Accepting connections: one SQE for all of them (5.19), or one each.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use io_uring::{opcode, types};

use super::slab::Polled;
use super::{SharedFd, outcome};
use crate::ring::Sqe;
use crate::shard::{Shard, current};
use crate::sys;

/// A stream of accepted connections. The kernel goes on accepting between two polls; dropping it
/// stops that and closes what nobody took.
pub(crate) struct AcceptMulti {
    shard: Rc<Shard>,
    listener: SharedFd,
    /// The SQE in flight, if any.
    token: Option<usize>,
    /// All connections by one SQE: nobody else accepts from this socket, and the kernel can.
    multishot: bool,
    /// It was stopped, and the backlog has not been looked at since.
    last_look: bool,
}

impl AcceptMulti {
    pub(crate) fn new(listener: SharedFd, multishot: bool) -> Self {
        Self { shard: current(), listener, token: None, multishot, last_look: false }
    }

    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<OwnedFd>> {
        loop {
            let token = match self.token {
                Some(token) => token,
                None => self.arm(),
            };
            match self.shard.poll_op(token, cx.waker()) {
                Polled::Pending { .. } => return Poll::Pending,
                Polled::Ended => self.disarm(),
                Polled::Result(result) if self.multishot && result == -libc::EINVAL => {
                    self.multishot = false;
                    self.disarm();
                }
                Polled::Result(result) => return Poll::Ready(accepted(result)),
            }
        }
    }

    /// Asks the kernel to accept no more; what it has accepted before is left to be polled.
    pub(crate) fn stop(&mut self) {
        self.last_look = true;
        if let Some(token) = self.token {
            self.shard.cancel_op(token);
        }
    }

    /// After [`AcceptMulti::stop`]: the next of what is left.
    pub(crate) fn poll_left(&mut self, cx: &mut Context<'_>) -> Poll<Option<OwnedFd>> {
        loop {
            let token = match self.token {
                Some(token) => token,
                // A connection may have woken us alone, of all who wait for one, and been left in the
                // backlog by the cancellation: nobody else would hear of it before the next.
                None if std::mem::take(&mut self.last_look) => {
                    let token = self.arm();
                    self.shard.cancel_op(token);
                    token
                }
                None => return Poll::Ready(None),
            };
            match self.shard.poll_op(token, cx.waker()) {
                Polled::Pending { .. } => return Poll::Pending,
                Polled::Ended => self.disarm(),
                Polled::Result(result) => {
                    if let Ok(fd) = accepted(result) {
                        // Where one SQE is for one of them there may be another.
                        self.last_look |= !self.multishot;
                        return Poll::Ready(Some(fd));
                    }
                }
            }
        }
    }

    fn arm(&mut self) -> usize {
        let fd = types::Fd(self.listener.as_raw_fd());
        let sqe = if self.multishot {
            opcode::AcceptMulti::new(fd).flags(libc::SOCK_CLOEXEC).build()
        } else {
            opcode::Accept::new(fd, std::ptr::null_mut(), std::ptr::null_mut())
                .flags(libc::SOCK_CLOEXEC)
                .build()
        };
        // SAFETY: the SQE names no memory, and `abandon_op` keeps the listener open until the last
        // CQE.
        let token = unsafe {
            self.shard.submit(Sqe::Normal(sqe), |fd| {
                if fd >= 0 {
                    sys::close(fd);
                }
            })
        };
        self.token = Some(token);
        token
    }

    fn disarm(&mut self) {
        if let Some(token) = self.token.take() {
            let listener = Arc::clone(&self.listener);
            self.shard.abandon_op(token, listener);
        }
    }
}

fn accepted(result: i32) -> io::Result<OwnedFd> {
    outcome(result).map(|fd| {
        let fd = i32::try_from(fd).expect("descriptors are positive ints");
        // SAFETY: the kernel has just made it for us.
        unsafe { OwnedFd::from_raw_fd(fd) }
    })
}

impl Drop for AcceptMulti {
    fn drop(&mut self) {
        self.disarm();
    }
}

impl fmt::Debug for AcceptMulti {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AcceptMulti").field("listener", &self.listener).finish()
    }
}
