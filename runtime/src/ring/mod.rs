//! The kernel's ring, on the `io-uring` crate: set up with what this kernel has.

use std::io;
use std::time::Duration;

use io_uring::types::{SubmitArgs, Timespec};
use io_uring::{Builder, IoUring, cqueue, squeue};

use crate::error::Error;

/// An SQE to be submitted.
#[derive(Debug, Clone)]
pub enum Sqe {
    /// 64 bytes: fits every ring.
    Normal(squeue::Entry),
    /// 128 bytes: only on a ring that was set up for it
    /// ([`Builder::sqe128`](crate::Builder::sqe128)).
    Wide(squeue::Entry128),
}

/// A CQE that was reaped.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cqe {
    pub(crate) token: u64,
    /// What the system call would return, or minus its errno.
    pub(crate) result: i32,
    pub(crate) flags: u32,
}

/// One ring; one thread's.
pub(crate) enum Ring {
    Normal(IoUring<squeue::Entry>),
    Wide(IoUring<squeue::Entry128>),
}

macro_rules! on_ring {
    ($self:expr, $ring:ident => $body:expr) => {
        match $self {
            Self::Normal($ring) => $body,
            Self::Wide($ring) => $body,
        }
    };
}

impl Ring {
    /// A ring with `entries` SQEs and four times as many CQEs.
    pub(crate) fn new(entries: u32, sqe128: bool) -> Result<Self, Error> {
        let ring = if sqe128 {
            Self::Wide(build(entries, IoUring::builder)?)
        } else {
            Self::Normal(build(entries, IoUring::builder)?)
        };
        let params = on_ring!(&ring, ring => ring.params());
        if !params.is_feature_nodrop() {
            return Err(Error::RingFeature { feature: "NODROP", kernel: "5.5" });
        }
        if !params.is_feature_ext_arg() {
            return Err(Error::RingFeature { feature: "EXT_ARG", kernel: "5.11" });
        }
        Ok(ring)
    }

    /// Whether an SQE is of this ring's kind.
    pub(crate) fn fits(&self, sqe: &Sqe) -> bool {
        matches!((self, sqe), (Self::Wide(_), _) | (_, Sqe::Normal(_)))
    }

    /// Queues an SQE. False: the SQ is full, flush first.
    ///
    /// # Safety
    ///
    /// What the SQE names stays valid until its CQE.
    ///
    /// # Panics
    ///
    /// If it does not [fit](Self::fits).
    pub(crate) unsafe fn push(&mut self, sqe: &Sqe) -> bool {
        match (self, sqe) {
            // SAFETY: passed on from the caller, in all three arms.
            (Self::Normal(ring), Sqe::Normal(sqe)) => unsafe {
                ring.submission().push(sqe).is_ok()
            },
            (Self::Wide(ring), Sqe::Normal(sqe)) => {
                let sqe = squeue::Entry128::from(sqe.clone());
                // SAFETY: see above.
                unsafe { ring.submission().push(&sqe).is_ok() }
            }
            // SAFETY: see above.
            (Self::Wide(ring), Sqe::Wide(sqe)) => unsafe { ring.submission().push(sqe).is_ok() },
            (Self::Normal(_), Sqe::Wide(_)) => panic!("a wide SQE on a normal ring"),
        }
    }

    /// Submits what is queued and lets the kernel post what it has deferred. No system call when
    /// there is neither.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        on_ring!(self, ring => {
            let sq = ring.submission();
            let idle = sq.is_empty() && !sq.taskrun() && !sq.cq_overflow();
            drop(sq);
            if idle { Ok(()) } else { may_repeat(ring.submitter().submit_and_wait(0)) }
        })
    }

    /// Whether the kernel has posted something, or has deferred it until we ask. Reads shared memory
    /// only.
    pub(crate) fn has_news(&mut self) -> bool {
        on_ring!(self, ring => {
            let deferred = ring.submission().taskrun();
            deferred || !ring.completion().is_empty()
        })
    }

    /// Submits what is queued and sleeps until a CQE or for `timeout`.
    pub(crate) fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        on_ring!(self, ring => {
            let submitter = ring.submitter();
            may_repeat(match timeout {
                None => submitter.submit_and_wait(1),
                Some(timeout) => {
                    let timeout = Timespec::from(timeout);
                    submitter.submit_with_args(1, &SubmitArgs::new().timespec(&timeout))
                }
            })
        })
    }

    /// Moves what the kernel has posted to `cqes`.
    pub(crate) fn reap(&mut self, cqes: &mut Vec<Cqe>) {
        on_ring!(self, ring => cqes.extend(ring.completion().map(|cqe: cqueue::Entry| Cqe {
            token: cqe.user_data(),
            result: cqe.result(),
            flags: cqe.flags(),
        })));
    }
}

/// Tries the flags of the newest kernels first and gives up what this one does not know.
fn build<S: squeue::EntryMarker>(
    entries: u32,
    builder: fn() -> Builder<S, cqueue::Entry>,
) -> Result<IoUring<S>, Error> {
    type Setup<S> = fn(&mut Builder<S, cqueue::Entry>);
    let setups: [Setup<S>; 3] = [
        // 6.1: completions are posted when we ask, on our thread, without an interrupt.
        |builder| {
            builder.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag();
        },
        // 5.19: no interrupt, but posted at any system call.
        |builder| {
            builder.setup_coop_taskrun().setup_taskrun_flag();
        },
        |_| {},
    ];
    let mut refused = None;
    for (i, setup) in setups.iter().enumerate() {
        let mut builder = builder();
        builder.setup_clamp().setup_cqsize(4 * entries).dontfork();
        if i + 1 < setups.len() {
            // 5.18: one bad SQE does not hold up those behind it.
            builder.setup_submit_all();
        }
        setup(&mut builder);
        match builder.build(entries) {
            Ok(ring) => return Ok(ring),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => refused = Some(error),
            Err(error) => return Err(Error::Ring(error)),
        }
    }
    Err(Error::Ring(refused.unwrap_or_else(io::Error::last_os_error)))
}

/// Errors after which the next turn simply goes on: a signal, a timeout, a CQ to be reaped first,
/// a moment without memory.
fn may_repeat(result: io::Result<usize>) -> io::Result<()> {
    match result {
        Ok(_) => Ok(()),
        Err(error) => match error.raw_os_error() {
            Some(libc::EINTR | libc::ETIME | libc::EBUSY | libc::EAGAIN) => Ok(()),
            _ => Err(error),
        },
    }
}
