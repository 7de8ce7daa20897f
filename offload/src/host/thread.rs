//! The plainest host: a thread that has no loop of its own and waits for one future.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Duration;

use crate::queue::{Park, Queue};

impl Queue {
    /// Polls `future` and turns the queue on this thread until the future is ready.
    pub fn run<F: Future>(&self, future: F) -> F::Output {
        let mut future = pin!(future);
        let bell = Arc::new(Bell { rung: AtomicBool::new(true), thread: thread::current() });
        let waker = Waker::from(Arc::clone(&bell));
        let mut cx = Context::from_waker(&waker);
        loop {
            // Acquire: what the waking thread wrote before it rang is seen by the poll.
            if bell.rung.swap(false, Ordering::Acquire)
                && let Poll::Ready(output) = future.as_mut().poll(&mut cx)
            {
                return output;
            }
            self.turn(Duration::ZERO);
            if self.prepare_park() == Park::Sleep && !bell.rung.load(Ordering::Relaxed) {
                // `park` returns at once if the bell rang since: `unpark` leaves a permit.
                thread::park();
            }
        }
    }
}

struct Bell {
    rung: AtomicBool,
    thread: Thread,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        // Release: pairs with the swap in `run`.
        self.rung.store(true, Ordering::Release);
        self.thread.unpark();
    }
}
