//! The plainest host: a thread that has no loop of its own and waits for one future.

use std::future::Future;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use crate::queue::{Park, Queue};

impl Queue {
    /// Polls `future` and turns the queue on this thread until the future is ready.
    ///
    /// # Panics
    ///
    /// If the queue has devices and the process has no file descriptor left to be woken by.
    pub fn run<F: Future>(&self, future: F) -> F::Output {
        let mut future = pin!(future);
        let bell = self.shared.bell.get_or_init(|| Bell::of(self));
        bell.rung.store(true, Ordering::Relaxed);
        let waker = Waker::from(Arc::clone(bell));
        let mut cx = Context::from_waker(&waker);
        loop {
            // Acquire: what the waking thread wrote before it rang is seen by the poll.
            if bell.rung.swap(false, Ordering::Acquire)
                && let Poll::Ready(output) = future.as_mut().poll(&mut cx)
            {
                // Should another `run` be in a future of this one: what woke it may have been
                // taken for ours.
                bell.rung.store(true, Ordering::Relaxed);
                // It need not be turned again soon, or ever.
                self.stay_deaf();
                return output;
            }
            let turn = self.turn(Instant::now(), Duration::ZERO);
            if turn.units > 0 || turn.busy {
                continue;
            }
            if let Park::Sleep { deadline } = self.prepare_park(Instant::now())
                && !bell.rung.load(Ordering::Relaxed)
            {
                bell.wait(self, deadline);
            }
        }
    }
}

/// Wakes the thread of [`Queue::run`].
pub(crate) struct Bell {
    rung: AtomicBool,
    thread: Thread,
    /// Rung too if the thread sleeps on files.
    event: Option<OwnedFd>,
}

impl Bell {
    fn of(queue: &Queue) -> Arc<Self> {
        let event = queue.fd().map(|_| {
            eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
                .expect("a file descriptor is left")
        });
        Arc::new(Self { rung: AtomicBool::new(true), thread: thread::current(), event })
    }

    /// Sleeps until it rings or a device has finished something. May return early.
    fn wait(&self, queue: &Queue, deadline: Option<Instant>) {
        let (Some(event), Some(devices)) = (&self.event, queue.fd()) else {
            // Returns at once if the bell rang since: `unpark` leaves a permit.
            return thread::park();
        };
        let timeout = deadline.map(|deadline| {
            let left = deadline.saturating_duration_since(Instant::now());
            Timespec::try_from(left).unwrap_or(Timespec { tv_sec: 3600, tv_nsec: 0 })
        });
        let mut files = [
            PollFd::from_borrowed_fd(event.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(devices, PollFlags::IN),
        ];
        // Interrupted, or out of memory: look once more.
        let _ = poll(&mut files, timeout.as_ref());
        let _ = rustix::io::read(event, &mut [0; 8]);
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        // Release: pairs with the swap in `run`.
        self.rung.store(true, Ordering::Release);
        match &self.event {
            // Full only after 2^64 - 2 rings.
            Some(event) => drop(rustix::io::write(event, &1_u64.to_ne_bytes())),
            None => self.thread.unpark(),
        }
    }
}
