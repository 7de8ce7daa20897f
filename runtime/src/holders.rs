//! Counts who holds something, and waits until nobody does.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

/// How many hold it now. Clones share the count.
#[derive(Debug, Clone, Default)]
pub struct Holders(Rc<Shared>);

/// One holder, until dropped.
#[derive(Debug)]
pub struct Holder(Rc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    count: Cell<u64>,
    /// Waits for the count to become 0.
    waiter: RefCell<Option<Waker>>,
}

impl Holders {
    /// One more.
    #[must_use = "counted only until dropped"]
    pub fn enter(&self) -> Holder {
        self.0.count.set(self.0.count.get() + 1);
        Holder(Rc::clone(&self.0))
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.0.count.get()
    }

    /// Waits until there are none. For one task at a time.
    pub async fn none(&self) {
        poll_fn(|cx| {
            if self.count() == 0 {
                return Poll::Ready(());
            }
            let old = self.0.waiter.replace(Some(cx.waker().clone()));
            drop(old);
            Poll::Pending
        })
        .await;
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.0.count.set(self.0.count.get() - 1);
        let waiter = self.0.waiter.take();
        if let Some(waiter) = waiter {
            waiter.wake();
        }
    }
}
