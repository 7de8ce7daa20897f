//! Operations in flight: what the kernel's `user_data` stands for, and who owns the memory that
//! the kernel may still touch.

use std::any::Any;
use std::collections::VecDeque;
use std::task::Waker;

use slab::Slab;

use crate::ring::Cqe;

/// Set in the flags of a CQE when more will follow for the same SQE (IORING_CQE_F_MORE).
pub(crate) const CQE_MORE: u32 = 1 << 1;

/// One operation.
pub(crate) struct Entry {
    state: State,
    /// What to do with a result that nobody will see, such as closing an accepted socket.
    reclaim: fn(i32),
}

enum State {
    /// Results that have come and are not taken; the kernel may send more while `open`.
    Live { results: VecDeque<i32>, waker: Option<Waker>, open: bool },
    /// The future is gone. The memory stays until the last CQE.
    Orphan { _keep: Box<dyn Any> },
}

/// Every operation of one ring.
#[derive(Default)]
pub(crate) struct Operations {
    entries: Slab<Entry>,
    /// SQEs whose last CQE has not come.
    pub(crate) in_flight: usize,
}

/// What a future finds.
pub(crate) enum Polled {
    /// `known`: the next CQE wakes this task already.
    Pending {
        known: bool,
    },
    Result(i32),
    /// Every result was taken and no more will come.
    Ended,
}

impl Operations {
    pub(crate) fn insert(&mut self, reclaim: fn(i32)) -> usize {
        self.in_flight += 1;
        self.entries.insert(Entry {
            state: State::Live { results: VecDeque::new(), waker: None, open: true },
            reclaim,
        })
    }

    /// Files a CQE. Returns whom to wake, and what to drop once nothing is borrowed: a keep is the
    /// caller's, and its drop may submit or drop operations.
    pub(crate) fn complete(&mut self, cqe: Cqe) -> (Option<Waker>, Option<Entry>) {
        let more = cqe.flags & CQE_MORE != 0;
        let found = usize::try_from(cqe.token).ok();
        let Some((token, entry)) =
            found.and_then(|token| Some((token, self.entries.get_mut(token)?)))
        else {
            // Nobody's: the result of a cancellation.
            return (None, None);
        };
        if !more {
            self.in_flight -= 1;
        }
        match &mut entry.state {
            State::Live { results, waker, open } => {
                results.push_back(cqe.result);
                *open = more;
                (waker.take(), None)
            }
            State::Orphan { .. } => {
                (entry.reclaim)(cqe.result);
                (None, (!more).then(|| self.entries.remove(token)))
            }
        }
    }

    pub(crate) fn poll(&mut self, token: usize, waker: &Waker) -> Polled {
        let State::Live { results, waker: known, open } = &mut self.entries[token].state else {
            unreachable!("an orphan has no future");
        };
        match results.pop_front() {
            Some(result) => Polled::Result(result),
            None if *open => {
                let known = known.as_ref().is_some_and(|known| known.will_wake(waker));
                Polled::Pending { known }
            }
            None => Polled::Ended,
        }
    }

    /// Sets whom the next CQE wakes; returns whom it would have woken.
    pub(crate) fn set_waker(&mut self, token: usize, waker: Waker) -> Option<Waker> {
        match &mut self.entries[token].state {
            State::Live { waker: known, .. } => known.replace(waker),
            State::Orphan { .. } => unreachable!("an orphan has no future"),
        }
    }

    /// Whether the kernel may still send a CQE.
    pub(crate) fn is_open(&self, token: usize) -> bool {
        matches!(self.entries[token].state, State::Live { open: true, .. })
    }

    /// The future of an open operation is gone; `keep` stays until the last CQE. Returns what to
    /// drop once nothing is borrowed.
    #[must_use]
    pub(crate) fn orphan(&mut self, token: usize, keep: Box<dyn Any>) -> Option<Waker> {
        let entry = &mut self.entries[token];
        let State::Live { results, waker, .. } = &mut entry.state else {
            unreachable!("an operation has one future");
        };
        results.drain(..).for_each(entry.reclaim);
        let waker = waker.take();
        entry.state = State::Orphan { _keep: keep };
        waker
    }

    /// Takes out an operation whose last CQE has come.
    pub(crate) fn remove(&mut self, token: usize) -> Entry {
        let mut entry = self.entries.remove(token);
        if let State::Live { results, .. } = &mut entry.state {
            results.drain(..).for_each(entry.reclaim);
        }
        entry
    }
}
