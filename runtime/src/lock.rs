//! A value that tasks of one shard change in turn, held across awaits.

use std::cell::{RefCell, RefMut};
use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::ops::{Deref, DerefMut};
use std::task::{Poll, Waker};

/// Gives its value to one task at a time.
#[derive(Default)]
pub struct Lock<T> {
    value: RefCell<T>,
    waiting: RefCell<VecDeque<Waker>>,
}

/// The value, until dropped.
#[must_use = "the lock is released at once"]
pub struct Held<'a, T> {
    /// Taken out first when the lock is released.
    value: Option<RefMut<'a, T>>,
    lock: &'a Lock<T>,
}

impl<T> Lock<T> {
    /// A lock around `value`.
    pub fn new(value: T) -> Self {
        Self { value: RefCell::new(value), waiting: RefCell::default() }
    }

    /// Waits for the value. It needs no shard: any executor of one thread will do.
    pub async fn hold(&self) -> Held<'_, T> {
        poll_fn(|cx| match self.value.try_borrow_mut() {
            Ok(value) => Poll::Ready(Held { value: Some(value), lock: self }),
            Err(_) => {
                let waker = cx.waker().clone();
                self.waiting.borrow_mut().push_back(waker);
                Poll::Pending
            }
        })
        .await
    }
}

impl<T> Deref for Held<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.value.as_deref().expect("held until dropped")
    }
}

impl<T> DerefMut for Held<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.value.as_deref_mut().expect("held until dropped")
    }
}

impl<T> Drop for Held<'_, T> {
    fn drop(&mut self) {
        self.value = None;
        // All of them: one that was cancelled while it waited would swallow the only call.
        let waiting = std::mem::take(&mut *self.lock.waiting.borrow_mut());
        waiting.into_iter().for_each(Waker::wake);
    }
}

impl<T> fmt::Debug for Lock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lock").field("held", &self.value.try_borrow_mut().is_err()).finish()
    }
}

impl<T> fmt::Debug for Held<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Held")
    }
}
