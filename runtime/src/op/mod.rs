//! One io_uring operation as a future; then one operation per file.
//!
//! What the kernel may touch lies in the operation's `keep` and in heap blocks that it owns. While
//! the future lives it owns the keep; if it is dropped before the CQE, the keep moves to the slab
//! of operations, an `ASYNC_CANCEL` is queued, and the memory is freed by the last CQE.

mod accept;
mod connect;
mod fsync;
mod poll_add;
mod read;
mod recv;
mod send;
pub(crate) mod slab;
mod write;

use std::fmt;
use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use crate::ring::Sqe;
use crate::shard::{Shard, current};
use slab::Polled;

pub(crate) use accept::AcceptMulti;
pub(crate) use connect::connect;
pub(crate) use fsync::fsync;
pub use poll_add::readable;
pub(crate) use read::read_at;
pub(crate) use recv::recv;
pub(crate) use send::send;
pub(crate) use write::write_at;

pub use crate::ring::Sqe as RawSqe;
pub use io_uring::{opcode, types};

/// A descriptor that operations share: it is not closed, and so its number not reused, while an
/// SQE that names it may still be waiting to be submitted.
pub(crate) type SharedFd = Arc<OwnedFd>;

/// An operation that ends with one CQE. Its output is the result and what was kept for the kernel.
#[must_use = "dropping an operation cancels it"]
pub struct Op<K: 'static> {
    shard: Rc<Shard>,
    token: usize,
    /// None once the output was handed out.
    keep: Option<K>,
}

impl<K> Unpin for Op<K> {}

/// Submits any SQE of the `io-uring` crate on the current shard's ring: for commands that this
/// crate has no function for. Its user data is overwritten.
///
/// # Safety
///
/// Every address in `sqe` lies in memory that `keep` owns and that stays in place when `keep` is
/// moved, the descriptor in it is owned by `keep`, and it makes one CQE.
pub unsafe fn submit<K: 'static>(sqe: Sqe, keep: K) -> Op<K> {
    // SAFETY: passed on from the caller; a result that nobody sees is a number.
    unsafe { submit_reclaiming(sqe, keep, |_| {}) }
}

/// As [`submit`], with what to do about a result whose future is gone.
///
/// # Safety
///
/// As [`submit`].
unsafe fn submit_reclaiming<K: 'static>(sqe: Sqe, keep: K, reclaim: fn(i32)) -> Op<K> {
    let shard = current();
    // SAFETY: the operation keeps what the SQE names until the CQE, see the module's words.
    let token = unsafe { shard.submit(sqe, reclaim) };
    Op { shard, token, keep: Some(keep) }
}

impl<K> Future for Op<K> {
    type Output = (io::Result<u32>, K);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        assert!(self.keep.is_some(), "an operation was polled after it gave its output");
        match self.shard.poll_op(self.token, cx.waker()) {
            Polled::Pending { .. } => Poll::Pending,
            Polled::Result(result) => {
                let keep = self.keep.take().expect("checked above");
                // The kernel is done: nothing is left to care for.
                self.shard.abandon_op(self.token, ());
                Poll::Ready((outcome(result), keep))
            }
            Polled::Ended => unreachable!("one CQE, taken once"),
        }
    }
}

impl<K: 'static> Drop for Op<K> {
    fn drop(&mut self) {
        if let Some(keep) = self.keep.take() {
            self.shard.abandon_op(self.token, keep);
        }
    }
}

impl<K> fmt::Debug for Op<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Op").field("token", &self.token).finish()
    }
}

/// A CQE's result as a system call's.
pub(crate) fn outcome(result: i32) -> io::Result<u32> {
    u32::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result))
}

/// Length of an SQE's buffer: one operation moves at most 2 GiB (MAX_RW_COUNT), callers go on.
pub(crate) fn len_of(len_bytes: usize) -> u32 {
    const LEN_BYTES_MAX: usize = 0x7fff_f000;
    u32::try_from(len_bytes.min(LEN_BYTES_MAX)).expect("bounded above")
}
