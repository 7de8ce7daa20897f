//! Gathers the requests of one kernel and dispatches them together.
//!
//! Nothing waits for company: a batch goes as soon as the one before it is finished, and takes
//! all that gathered meanwhile. Light load makes batches of one, heavy load makes large ones.

use std::collections::VecDeque;

use crate::stats::KernelStats;

/// Index of a slot: ties a completion to its operation.
pub(crate) type Token = u32;

/// The requests of one kernel, in order of submission. Holds tokens only.
#[derive(Debug)]
pub(crate) struct Batch {
    /// Submitted, and not in a batch yet.
    gathered: VecDeque<Token>,
    /// What is left of the batch that runs.
    dispatched: VecDeque<Token>,
}

impl Batch {
    /// Room for `depth` requests, so that gathering never allocates.
    pub(crate) fn new(depth: usize) -> Self {
        Self {
            gathered: VecDeque::with_capacity(depth),
            dispatched: VecDeque::with_capacity(depth),
        }
    }

    pub(crate) fn gather(&mut self, token: Token) {
        self.gathered.push_back(token);
    }

    /// The next request to run. Dispatches what gathered when the last batch is used up.
    pub(crate) fn next(&mut self, stats: &mut KernelStats) -> Option<Token> {
        if self.dispatched.is_empty() && !self.gathered.is_empty() {
            std::mem::swap(&mut self.gathered, &mut self.dispatched);
            stats.count_batch(self.dispatched.len() as u64);
        }
        self.dispatched.pop_front()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.gathered.is_empty() && self.dispatched.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_gathers_while_a_batch_runs_is_the_next_batch() {
        let mut batch = Batch::new(8);
        let mut stats = KernelStats::default();
        batch.gather(0);
        assert_eq!(batch.next(&mut stats), Some(0));
        for token in 1..4 {
            batch.gather(token);
        }
        assert_eq!(batch.next(&mut stats), Some(1));
        batch.gather(4);
        assert_eq!(batch.next(&mut stats), Some(2));
        assert_eq!(batch.next(&mut stats), Some(3));
        assert_eq!(batch.next(&mut stats), Some(4));
        assert_eq!(batch.next(&mut stats), None);
        assert!(batch.is_empty());
        assert_eq!((stats.batches, stats.requests, stats.batch_len_max), (3, 5, 3));
    }
}
