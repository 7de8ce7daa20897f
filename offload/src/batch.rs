//! Gathers the requests of one kernel and dispatches them together.
//!
//! But for what is computed in lanes, nothing waits for company: a batch goes as soon as the one before it is finished, and takes
//! all that gathered meanwhile. Light load makes batches of one, heavy load makes large ones.

use std::cell::Cell;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

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

    pub(crate) fn len(&self) -> usize {
        self.gathered.len() + self.dispatched.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.gathered.is_empty() && self.dispatched.is_empty()
    }
}

/// Requests that wait for company: a few of them fill the lanes of a vector.
#[derive(Debug)]
pub(crate) struct Gathering {
    waiting: VecDeque<Token>,
    /// So many go together.
    together: usize,
    /// The longest that one waits for others while its core is busy: about what it costs alone.
    age: Duration,
    /// When the oldest was first seen by a turn. It starts anew for those who are left behind
    /// because they do not fit.
    since: Cell<Option<Instant>>,
    /// They need not wait any longer.
    flushed: bool,
}

impl Gathering {
    /// Room for `depth` requests, so that gathering never allocates.
    pub(crate) fn new(depth: usize, together: usize, age: Duration) -> Self {
        let waiting = VecDeque::with_capacity(depth);
        Self { waiting, together, age, since: Cell::new(None), flushed: false }
    }

    pub(crate) fn gather(&mut self, token: Token) {
        self.waiting.push_back(token);
    }

    /// How often those who wait fill all lanes.
    pub(crate) fn full(&self) -> usize {
        self.waiting.len() / self.together
    }

    /// No more will come for now.
    pub(crate) fn flush(&mut self) {
        self.flushed = !self.waiting.is_empty();
    }

    /// Whether it is time to start; by age too, if it is said what time it is.
    pub(crate) fn is_due(&self, now: Option<Instant>) -> bool {
        if self.waiting.is_empty() {
            return false;
        }
        let old = now.is_some_and(|now| {
            let since = self.since.get().unwrap_or(now);
            self.since.set(Some(since));
            now.saturating_duration_since(since) >= self.age
        });
        self.flushed || self.waiting.len() >= self.together || old
    }

    /// Takes the oldest and those after it that `fits` says go with it, in order, into `taken`,
    /// which is empty.
    pub(crate) fn take(&mut self, taken: &mut Vec<Token>, mut fits: impl FnMut(Token) -> bool) {
        self.waiting.retain(|token| {
            let goes = taken.len() < self.together && fits(*token);
            if goes {
                taken.push(*token);
            }
            !goes
        });
        self.since.set(None);
        self.flushed = false;
    }

    /// Takes one out, if it is among them.
    pub(crate) fn remove(&mut self, token: Token) -> bool {
        let Some(place) = self.waiting.iter().position(|waiting| *waiting == token) else {
            return false;
        };
        self.waiting.remove(place);
        if place == 0 {
            // The next one's clock starts anew.
            self.since.set(None);
        }
        self.flushed &= !self.waiting.is_empty();
        true
    }

    /// Takes the oldest.
    pub(crate) fn pop(&mut self) -> Option<Token> {
        self.waiting.pop_front()
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
        assert_eq!(stats.batch_classes, [2, 1, 0, 0, 0]);
    }

    #[test]
    fn those_for_lanes_go_by_number_by_age_or_when_nothing_else_comes() {
        let started = Instant::now();
        let after = |micros| Some(started + Duration::from_micros(micros));
        let mut gathering = Gathering::new(8, 4, Duration::from_micros(100));
        assert!(!gathering.is_due(after(0)));
        (0..3).for_each(|token| gathering.gather(token));
        assert!(!gathering.is_due(after(0)) && !gathering.is_due(after(99)));
        assert!(gathering.is_due(after(100)));
        let take = |gathering: &mut Gathering, fits: fn(Token) -> bool| {
            let mut taken = Vec::new();
            gathering.take(&mut taken, fits);
            taken
        };
        assert_eq!(take(&mut gathering, |token| token != 1), [0, 2]);
        // The clock starts anew for who was left.
        assert!(!gathering.is_due(after(101)));
        gathering.flush();
        assert!(gathering.is_due(None));
        assert_eq!(take(&mut gathering, |_| true), [1]);
        (3..9).for_each(|token| gathering.gather(token));
        assert!(gathering.remove(5) && !gathering.remove(5));
        assert!(gathering.is_due(None));
        assert_eq!(take(&mut gathering, |_| true), [3, 4, 6, 7]);
        assert!(!gathering.is_due(None));
        assert_eq!((gathering.pop(), gathering.pop()), (Some(8), None));
    }
}
