//! The only structure that shards share: anybody puts messages in, its owner takes all at once.
//!
//! A stack of nodes with one head pointer. Senders push with compare-and-swap; the owner swaps the
//! head out and reverses the list, so messages of one sender come in order and there is no ABA: no
//! node is ever popped alone.
//!
//! # Parking without a lost wake-up
//!
//! ```text
//!   owner:   parked = true;  fence;  mailbox empty?  ── yes ──> sleep until the bell
//!   sender:  push;           fence;  parked?         ── yes ──> ring the bell
//! ```
//!
//! Store-then-load on both sides: with a SeqCst fence between, at least one of the two loads sees
//! the other side's store. Without the fences both could read the old value, and the owner would
//! sleep on a full mailbox.

use std::fmt;
use std::ptr;

use crate::sync::{AtomicBool, AtomicPtr, Ordering, fence};

/// Messages for one owner.
pub(crate) struct Mailbox<T> {
    /// Newest node; null when empty, [`closed`] when nobody will take any more.
    head: AtomicPtr<Node<T>>,
    /// The owner sleeps, or is about to. Whoever turns it to false rings the bell.
    parked: AtomicBool,
}

struct Node<T> {
    value: T,
    next: *mut Self,
}

/// The owner is gone. Holds the message.
#[derive(Debug)]
pub(crate) struct Closed<T>(pub(crate) T);

/// What a sender must do after its message is in.
#[must_use]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sent {
    /// The owner is awake and will look.
    Awake,
    /// The owner sleeps: ring the bell.
    RingBell,
}

/// Mark of a closed mailbox: an address at which no node can lie.
fn closed<T>() -> *mut Node<T> {
    ptr::without_provenance_mut(align_of::<Node<T>>())
}

impl<T> Mailbox<T> {
    pub(crate) fn new() -> Self {
        Self { head: AtomicPtr::new(ptr::null_mut()), parked: AtomicBool::new(false) }
    }

    /// Puts a message in. From any thread.
    pub(crate) fn push(&self, value: T) -> Result<Sent, Closed<T>> {
        let node = Box::into_raw(Box::new(Node { value, next: ptr::null_mut() }));
        let mut head = self.head.load(Ordering::Relaxed);
        loop {
            if head == closed() {
                // SAFETY: made above and not published.
                let node = unsafe { Box::from_raw(node) };
                return Err(Closed(node.value));
            }
            // SAFETY: ours until published.
            unsafe { (*node).next = head };
            // Release: the owner's Acquire swap sees the node's fields.
            match self.head.compare_exchange_weak(head, node, Ordering::Release, Ordering::Relaxed)
            {
                Ok(_) => break,
                Err(now) => head = now,
            }
        }
        // Pairs with the fence in `prepare_park`.
        fence(Ordering::SeqCst);
        // Relaxed: the bell itself synchronises. The swap lets one of several senders ring.
        if self.parked.load(Ordering::Relaxed) && self.parked.swap(false, Ordering::Relaxed) {
            Ok(Sent::RingBell)
        } else {
            Ok(Sent::Awake)
        }
    }

    /// Takes everything, oldest first. For the owner.
    pub(crate) fn take(&self) -> Messages<T> {
        if self.head.load(Ordering::Relaxed).is_null() {
            return Messages(ptr::null_mut());
        }
        // Acquire: pairs with the Release of each push.
        self.drain(self.head.swap(ptr::null_mut(), Ordering::Acquire))
    }

    /// Whether nothing is there to take. For the owner, as a hint.
    pub(crate) fn is_empty(&self) -> bool {
        self.head.load(Ordering::Relaxed).is_null()
    }

    /// Closes the mailbox and takes what is left. Every later push fails.
    pub(crate) fn close(&self) -> Messages<T> {
        self.drain(self.head.swap(closed(), Ordering::Acquire))
    }

    /// Says that the owner is about to sleep. False: a message is here, do not.
    pub(crate) fn prepare_park(&self) -> bool {
        // A swap although the old value is not needed: all changes of the flag are read-modify-writes,
        // each following directly on the one it read, which loom can follow (it orders a plain store
        // and a swap that did not see each other either way).
        self.parked.swap(true, Ordering::Relaxed);
        // Pairs with the fence in `push`.
        fence(Ordering::SeqCst);
        let empty = self.head.load(Ordering::Relaxed).is_null();
        if !empty {
            self.unpark();
        }
        empty
    }

    /// Says that the owner is awake again.
    pub(crate) fn unpark(&self) {
        self.parked.swap(false, Ordering::Relaxed);
    }

    /// Turns a stack that the owner has swapped out into a queue.
    fn drain(&self, mut node: *mut Node<T>) -> Messages<T> {
        let mut oldest = ptr::null_mut();
        while !node.is_null() && node != closed() {
            // SAFETY: reachable from a head we swapped out, so ours alone; published by a Release
            // that our Acquire saw.
            let next = unsafe { std::mem::replace(&mut (*node).next, oldest) };
            oldest = node;
            node = next;
        }
        Messages(oldest)
    }
}

// SAFETY: messages change threads, nothing else in it is tied to one.
unsafe impl<T: Send> Send for Mailbox<T> {}
// SAFETY: as above; all shared state is atomic.
unsafe impl<T: Send> Sync for Mailbox<T> {}

impl<T> Drop for Mailbox<T> {
    fn drop(&mut self) {
        drop(self.close());
    }
}

impl<T> fmt::Debug for Mailbox<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Mailbox")
    }
}

/// Messages that were taken, oldest first.
pub(crate) struct Messages<T>(*mut Node<T>);

impl<T> Iterator for Messages<T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        if self.0.is_null() {
            return None;
        }
        // SAFETY: `drain` left us the only owner of the list.
        let node = unsafe { Box::from_raw(self.0) };
        self.0 = node.next;
        Some(node.value)
    }
}

impl<T> Drop for Messages<T> {
    fn drop(&mut self) {
        self.by_ref().for_each(drop);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn messages_of_one_sender_come_in_order() {
        let mailbox = Mailbox::new();
        for value in 0..5 {
            assert_eq!(mailbox.push(value).expect("open"), Sent::Awake);
        }
        assert_eq!(mailbox.take().collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
        assert_eq!(mailbox.take().count(), 0);
    }

    #[test]
    fn a_closed_mailbox_hands_messages_back() {
        let mailbox = Mailbox::new();
        let _ = mailbox.push(Box::new(1)).expect("open");
        assert_eq!(mailbox.close().collect::<Vec<_>>(), [Box::new(1)]);
        assert_eq!(mailbox.push(Box::new(2)).expect_err("closed").0, Box::new(2));
    }

    #[test]
    fn what_nobody_takes_is_dropped() {
        let counted = std::sync::Arc::new(());
        let mailbox = Mailbox::new();
        let _ = mailbox.push(std::sync::Arc::clone(&counted)).expect("open");
        let _ = mailbox.push(std::sync::Arc::clone(&counted)).expect("open");
        let mut taken = mailbox.take();
        let _ = taken.next();
        drop((taken, mailbox));
        assert_eq!(std::sync::Arc::strong_count(&counted), 1);
    }
}

/// Every interleaving: `RUSTFLAGS="--cfg loom" cargo test -p warpcore-runtime --lib mailbox`.
#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use loom::sync::Arc;
    use loom::thread;

    /// Owner and senders as a shard does it; a message the owner sleeps on is a deadlock that loom
    /// reports.
    fn park(senders: usize) {
        loom::model(move || {
            let mailbox = Arc::new(Mailbox::new());
            let bell = Arc::new(loom::sync::Notify::new());
            let threads: Vec<_> = (0..senders)
                .map(|value| {
                    let (mailbox, bell) = (Arc::clone(&mailbox), Arc::clone(&bell));
                    thread::spawn(move || {
                        if mailbox.push(value).expect("open") == Sent::RingBell {
                            bell.notify();
                        }
                    })
                })
                .collect();
            let mut sum = 0;
            let mut count = 0;
            while count < senders {
                for value in mailbox.take() {
                    sum += value;
                    count += 1;
                }
                if count < senders && mailbox.prepare_park() {
                    bell.wait();
                    mailbox.unpark();
                }
            }
            assert_eq!(sum, (0..senders).sum());
            threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
        });
    }

    #[test]
    fn no_wake_up_is_lost() {
        park(1);
        park(2);
    }

    #[test]
    fn a_message_is_taken_or_handed_back_never_both() {
        loom::model(|| {
            let mailbox = Arc::new(Mailbox::new());
            let sender = {
                let mailbox = Arc::clone(&mailbox);
                thread::spawn(move || mailbox.push(Box::new(7)).is_ok())
            };
            let taken = mailbox.close().count();
            let sent = sender.join().expect("no panic");
            assert_eq!(usize::from(sent), taken);
        });
    }
}
