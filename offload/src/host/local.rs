//! A queue on an executor of one thread, whichever it is: a task of its own turns it.

use std::cell::RefCell;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use crate::op::Op;
use crate::queue::{Park, Queue};
use crate::request::Request;

/// How long the driver works before other tasks run.
const SLICE: Duration = Duration::from_micros(50);

/// A queue that a [`Driver`] turns. Clones are the same queue.
#[derive(Clone)]
pub struct Local {
    shared: Rc<Shared>,
}

/// The task that turns the queue of a [`Local`]: to be spawned beside those that use it. It ends
/// when nobody has the queue any more and nothing is in flight.
///
/// As a future it is for queues without devices and team, whose completions nobody else tells of;
/// with them it keeps its executor awake as long as something is in flight, and does not help. Better
/// the host calls [`poll_turn`](Self::poll_turn) and waits for [`Queue::fd`].
#[must_use = "nothing happens on a queue that is not driven"]
pub struct Driver {
    shared: Rc<Shared>,
    /// Others have run since there was nothing to do.
    yielded: bool,
}

/// A request on its way.
#[must_use = "dropping an operation gives up its result"]
pub struct Submitted<R: Request> {
    op: Op<R>,
    shared: Rc<Shared>,
}

/// What [`Driver::poll_turn`] came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turned {
    /// There is more to do: the waker was woken, to run after others.
    Again,
    /// Nobody has the queue any more.
    Ended,
    /// Nothing to do until a submission wakes the task, [`Queue::fd`] is readable, or the deadline
    /// comes.
    Parked {
        /// When a device will have been too slow.
        deadline: Option<Instant>,
    },
}

struct Shared {
    queue: Queue,
    /// Of the driver, while it does not run.
    driver: RefCell<Option<Waker>>,
}

impl Local {
    /// `queue`, and the task that turns it.
    pub fn new(queue: Queue) -> (Self, Driver) {
        let shared = Rc::new(Shared { queue, driver: RefCell::new(None) });
        (Self { shared: Rc::clone(&shared) }, Driver { shared, yielded: false })
    }

    /// Submits `request` now if a slot is free, else as soon as its turn comes.
    pub fn submit<R: Request>(&self, request: R) -> Submitted<R> {
        let op = self.shared.queue.submit(request);
        self.shared.wake_driver();
        Submitted { op, shared: Rc::clone(&self.shared) }
    }

    /// The queue, to look at its counters.
    pub fn queue(&self) -> &Queue {
        &self.shared.queue
    }
}

impl Driver {
    /// The queue that it turns.
    pub fn queue(&self) -> &Queue {
        &self.shared.queue
    }

    /// Turns the queue for a while.
    pub fn poll_turn(&mut self, cx: &mut Context<'_>) -> Turned {
        let queue = &self.shared.queue;
        let turn = queue.turn(Instant::now(), SLICE);
        // Ours is the last reference: nobody can submit or wait.
        if Rc::strong_count(&self.shared) == 1 && queue.stats().in_flight() == 0 {
            return Turned::Ended;
        }
        let again = turn.busy || turn.units > 0 || !std::mem::replace(&mut self.yielded, true);
        if !again && !queue.flush() {
            self.shared.driver.replace(Some(cx.waker().clone()));
            if let Park::Sleep { deadline } = queue.prepare_park(Instant::now()) {
                // Whoever wakes us may not be the only one with something to submit.
                self.yielded = false;
                return Turned::Parked { deadline };
            }
        }
        if turn.busy || turn.units > 0 {
            self.yielded = false;
        }
        cx.waker().wake_by_ref();
        Turned::Again
    }
}

impl Future for Driver {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        match self.poll_turn(cx) {
            Turned::Ended => return Poll::Ready(()),
            Turned::Parked { .. } if self.queue().fd().is_some() => {
                self.queue().stay_deaf();
                if self.queue().stats().in_flight() > 0 {
                    cx.waker().wake_by_ref();
                }
            }
            Turned::Again | Turned::Parked { .. } => {}
        }
        Poll::Pending
    }
}

impl<R: Request> Future for Submitted<R> {
    type Output = R::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<R::Output> {
        let output = Pin::new(&mut self.op).poll(cx);
        if output.is_pending() {
            // It may have taken a slot just now.
            self.shared.wake_driver();
        }
        output
    }
}

impl<R: Request> Drop for Submitted<R> {
    fn drop(&mut self) {
        // It may have been the last that the driver waited for.
        self.shared.wake_driver();
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        self.shared.wake_driver();
    }
}

impl Shared {
    fn wake_driver(&self) {
        let waker = self.driver.take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl fmt::Debug for Local {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Local").field(&self.shared.queue).finish()
    }
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Driver").field(&self.shared.queue).finish()
    }
}

impl<R: Request> fmt::Debug for Submitted<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.op.fmt(f)
    }
}
