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
    Pending,
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

    /// Files a CQE and returns whom to wake.
    pub(crate) fn complete(&mut self, cqe: Cqe) -> Option<Waker> {
        let token = usize::try_from(cqe.token).ok()?;
        let more = cqe.flags & CQE_MORE != 0;
        let entry = self.entries.get_mut(token)?;
        if !more {
            self.in_flight -= 1;
        }
        match &mut entry.state {
            State::Live { results, waker, open } => {
                results.push_back(cqe.result);
                *open = more;
                waker.take()
            }
            State::Orphan { .. } => {
                (entry.reclaim)(cqe.result);
                if !more {
                    self.entries.remove(token);
                }
                None
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
                match known {
                    Some(known) => known.clone_from(waker),
                    none => *none = Some(waker.clone()),
                }
                Polled::Pending
            }
            None => Polled::Ended,
        }
    }

    /// Forgets an operation whose future is dropped. True: the kernel still has it, and `keep`
    /// was taken into care; cancel it.
    pub(crate) fn abandon(&mut self, token: usize, keep: impl FnOnce() -> Box<dyn Any>) -> bool {
        let entry = &mut self.entries[token];
        let State::Live { results, open, .. } = &mut entry.state else {
            unreachable!("an operation has one future");
        };
        results.drain(..).for_each(entry.reclaim);
        if *open {
            entry.state = State::Orphan { _keep: keep() };
        } else {
            self.entries.remove(token);
        }
        matches!(self.entries.get(token), Some(Entry { state: State::Orphan { .. }, .. }))
    }
}
