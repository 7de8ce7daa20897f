//! Counters of one shard's part of the proxy.

use std::cell::Cell;

/// What a proxy has done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Connections accepted.
    pub accepted: u64,
    /// Handshakes that ended well.
    pub handshakes: u64,
    /// Handshakes that did not: refused by either side, cut off, or out of time.
    pub handshakes_failed: u64,
    /// Connections whose upstream could not be reached.
    pub upstream_failed: u64,
    /// Connections that were open when the time to drain was over.
    pub cut_off: u64,
    /// What the shard's offload queue has done.
    pub queue: warpcore_offload::Stats,
}

impl Stats {
    /// Adds another shard's counters.
    pub fn add(&mut self, other: &Self) {
        self.accepted += other.accepted;
        self.handshakes += other.handshakes;
        self.handshakes_failed += other.handshakes_failed;
        self.upstream_failed += other.upstream_failed;
        self.cut_off += other.cut_off;
        self.queue.add(&other.queue);
    }
}

/// Counters that the tasks of one shard share.
#[derive(Default)]
pub(crate) struct Counters(Cell<Stats>);

impl Counters {
    pub(crate) fn count(&self, change: impl FnOnce(&mut Stats)) {
        let mut stats = self.0.get();
        change(&mut stats);
        self.0.set(stats);
    }

    pub(crate) fn read(&self) -> Stats {
        self.0.get()
    }
}
