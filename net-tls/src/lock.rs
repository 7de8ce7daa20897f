//! A lock for tasks of one shard, held across awaits and handed over in order.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::{Poll, Waker};

/// Guards nothing by type: it orders the sends of one socket.
#[derive(Default)]
pub(crate) struct Lock {
    held: Cell<bool>,
    waiting: RefCell<VecDeque<Waker>>,
}

/// Releases the lock when dropped.
pub(crate) struct Held<'a>(&'a Lock);

impl Lock {
    pub(crate) async fn hold(&self) -> Held<'_> {
        poll_fn(|cx| {
            if self.held.replace(true) {
                self.waiting.borrow_mut().push_back(cx.waker().clone());
                Poll::Pending
            } else {
                Poll::Ready(Held(self))
            }
        })
        .await
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.held.set(false);
        // All of them: one that was cancelled while it waited would swallow the only call.
        let waiting = std::mem::take(&mut *self.0.waiting.borrow_mut());
        waiting.into_iter().for_each(Waker::wake);
    }
}
