//! The tasks of one shard: spawned, run in order of readiness, joined, cancelled.
//!
//! Task memory and wakers are `async-task`'s. A waker may be used from any thread: on the shard
//! itself it puts the task in the ready queue, elsewhere it goes through the shard's mailbox.

mod join;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use async_task::Runnable;
use slab::Slab;

pub use join::{JoinError, JoinHandle};

use crate::shard::Schedule;

/// Ready tasks, and a waker for every task that lives, so that shutdown finds the ones asleep.
#[derive(Default)]
pub(crate) struct Executor {
    ready: RefCell<VecDeque<Runnable>>,
    live: Rc<RefCell<Slab<Waker>>>,
    panics: Cell<u64>,
}

impl Executor {
    /// Spawns a task; `schedule` is called when it is to be run again.
    pub(crate) fn spawn<F>(&self, future: F, schedule: Schedule) -> JoinHandle<F::Output>
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        let key = self.live.borrow().vacant_key();
        let guarded = Guarded {
            future: Some(future),
            _registration: Registration { live: Rc::clone(&self.live), key },
        };
        let (runnable, task) =
            async_task::spawn_local(guarded, move |runnable| schedule.schedule(runnable));
        self.live.borrow_mut().insert(runnable.waker());
        self.ready.borrow_mut().push_back(runnable);
        JoinHandle::new(task)
    }

    pub(crate) fn push(&self, runnable: Runnable) {
        self.ready.borrow_mut().push_back(runnable);
    }

    /// Runs at most as many tasks as are ready now: what they wake waits for the next turn, so
    /// that completions are looked at in between.
    pub(crate) fn run(&self) {
        let ready = self.ready.borrow().len();
        for _ in 0..ready {
            let runnable = self.ready.borrow_mut().pop_front();
            let Some(runnable) = runnable else { break };
            runnable.run();
        }
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.ready.borrow().is_empty()
    }

    /// Tasks that have not ended.
    pub(crate) fn live(&self) -> usize {
        self.live.borrow().len()
    }

    pub(crate) fn panics(&self) -> u64 {
        self.panics.get()
    }

    pub(crate) fn count_panic(&self) {
        self.panics.set(self.panics.get() + 1);
    }

    /// Cancels every task: each future is dropped on this thread.
    pub(crate) fn cancel_all(&self) {
        while self.live() > 0 {
            // Waking puts every sleeping task in the ready queue; dropping its `Runnable` drops
            // its future. A future that spawns in its drop is met in the next round.
            let wakers: Vec<Waker> = self.live.borrow().iter().map(|(_, w)| w.clone()).collect();
            wakers.into_iter().for_each(Waker::wake);
            let before = self.live();
            while let Some(runnable) = { self.ready.borrow_mut().pop_front() } {
                drop(runnable);
            }
            if self.live() == before {
                // Those whose wake-up lies in the mailbox.
                break;
            }
        }
    }
}

/// Takes the task off the list of the living when its future is dropped, ended or not.
struct Registration {
    live: Rc<RefCell<Slab<Waker>>>,
    key: usize,
}

impl Drop for Registration {
    fn drop(&mut self) {
        let waker = self.live.borrow_mut().try_remove(self.key);
        drop(waker);
    }
}

/// Turns a panic of the future into its result.
struct Guarded<F> {
    /// Pinned with this struct; dropped in place.
    future: Option<F>,
    _registration: Registration,
}

impl<F: Future> Future for Guarded<F> {
    type Output = Result<F::Output, String>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // SAFETY: `future` is never moved: only polled here and dropped in place.
        let mut slot = unsafe { self.map_unchecked_mut(|this| &mut this.future) };
        // A future that panicked is not polled again, so nobody sees what it left half done. It is
        // dropped here when it has ended: a panic of that drop is the task's too.
        let polled = catch_unwind(AssertUnwindSafe(|| {
            let future = slot.as_mut().as_pin_mut().expect("a task is not polled after it ended");
            let polled = future.poll(cx);
            if polled.is_ready() {
                slot.set(None);
            }
            polled
        }));
        match polled {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(output)) => Poll::Ready(Ok(output)),
            Err(payload) => {
                // A payload whose drop panics again would take the shard down: it is given up.
                let message = crate::shard::report_panic(&*payload);
                std::mem::forget(payload);
                Poll::Ready(Err(message))
            }
        }
    }
}

impl<F> Drop for Guarded<F> {
    fn drop(&mut self) {
        // A cancelled future. `async-task` ends the process on a panic of its drop; it is the
        // task's own business.
        let future = AssertUnwindSafe(&mut self.future);
        if let Err(payload) = catch_unwind(move || *{ future }.0 = None) {
            crate::shard::report_panic(&*payload);
            std::mem::forget(payload);
        }
    }
}
