//! Counters: of each shard, written by it alone, read by anybody.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustls::CipherSuite;
use warpcore_offload::Kernel;

/// What a proxy has done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Connections accepted.
    pub accepted: u64,
    /// Of those, the ones that were refused: too many at a time.
    pub refused: u64,
    /// Handshakes that ended well.
    pub handshakes: u64,
    /// Of those, the ones that a ticket made short.
    pub resumed: u64,
    /// Handshakes that did not: refused by either side, cut off, or out of time.
    pub handshakes_failed: u64,
    /// Connections whose upstream could not be reached.
    pub upstream_failed: u64,
    /// Connections that one side cut off, or that were idle for too long, while they were relayed.
    pub relay_failed: u64,
    /// Connections that were open when the time to drain was over.
    pub cut_off: u64,
    /// What the shard's offload queue has done.
    pub queue: warpcore_offload::Stats,
}

impl Stats {
    /// Adds another shard's counters.
    pub fn add(&mut self, other: &Self) {
        self.accepted += other.accepted;
        self.refused += other.refused;
        self.handshakes += other.handshakes;
        self.resumed += other.resumed;
        self.handshakes_failed += other.handshakes_failed;
        self.upstream_failed += other.upstream_failed;
        self.relay_failed += other.relay_failed;
        self.cut_off += other.cut_off;
        self.queue.add(&other.queue);
    }
}

/// Why a connection was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Too many of the listener.
    Connections,
    /// Too many of this client.
    Client,
    /// Too many that have not shaken hands.
    Handshakes,
}

/// What is counted, with its name and label for others to read. Those of one name are together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub(crate) enum Counter {
    Accepted,
    RefusedClient,
    RefusedConnections,
    RefusedHandshakes,
    FailedHungUp,
    FailedProtocol,
    FailedProxyHeader,
    FailedTimeout,
    Tls12Full,
    Tls12Resumed,
    Tls13Full,
    Tls13Resumed,
    CutOff,
    Idle,
    RelayFailed,
    UpstreamFailed,
    Received,
    Sent,
    Paused,
}

impl Counter {
    pub(crate) const ALL: [Self; 19] = [
        Self::Accepted,
        Self::RefusedClient,
        Self::RefusedConnections,
        Self::RefusedHandshakes,
        Self::FailedHungUp,
        Self::FailedProtocol,
        Self::FailedProxyHeader,
        Self::FailedTimeout,
        Self::Tls12Full,
        Self::Tls12Resumed,
        Self::Tls13Full,
        Self::Tls13Resumed,
        Self::CutOff,
        Self::Idle,
        Self::RelayFailed,
        Self::UpstreamFailed,
        Self::Received,
        Self::Sent,
        Self::Paused,
    ];

    /// Name and labels, as Prometheus has them.
    pub(crate) fn name(self) -> (&'static str, &'static str) {
        match self {
            Self::Accepted => ("connections_accepted", ""),
            Self::RefusedClient => ("connections_refused", "reason=\"client\""),
            Self::RefusedConnections => ("connections_refused", "reason=\"connections\""),
            Self::RefusedHandshakes => ("connections_refused", "reason=\"handshakes\""),
            Self::FailedHungUp => ("handshakes_failed", "cause=\"hung_up\""),
            Self::FailedProtocol => ("handshakes_failed", "cause=\"protocol\""),
            Self::FailedProxyHeader => ("handshakes_failed", "cause=\"proxy_header\""),
            Self::FailedTimeout => ("handshakes_failed", "cause=\"timeout\""),
            Self::Tls12Full => ("handshakes", "version=\"1.2\",resumed=\"no\""),
            Self::Tls12Resumed => ("handshakes", "version=\"1.2\",resumed=\"yes\""),
            Self::Tls13Full => ("handshakes", "version=\"1.3\",resumed=\"no\""),
            Self::Tls13Resumed => ("handshakes", "version=\"1.3\",resumed=\"yes\""),
            Self::CutOff => ("connections_failed", "cause=\"drain\""),
            Self::Idle => ("connections_failed", "cause=\"idle\""),
            Self::RelayFailed => ("connections_failed", "cause=\"relay\""),
            Self::UpstreamFailed => ("connections_failed", "cause=\"upstream\""),
            Self::Received => ("relayed_bytes", "from=\"client\""),
            Self::Sent => ("relayed_bytes", "from=\"upstream\""),
            Self::Paused => ("accept_pauses", ""),
        }
    }
}

/// Upper bounds of the classes of durations, in microseconds; the last class has none.
pub(crate) const CLASSES_US: [u64; 15] = [
    100, 200, 500, 1000, 2000, 3000, 5000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000,
    1_000_000, 5_000_000,
];

/// How long things took, by class.
#[derive(Debug, Default)]
pub(crate) struct Durations {
    classes: [AtomicU64; CLASSES_US.len() + 1],
    sum_us: AtomicU64,
}

impl Durations {
    pub(crate) fn add(&self, duration: Duration) {
        let us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let class = CLASSES_US.iter().position(|bound| us <= *bound);
        add(&self.classes[class.unwrap_or(CLASSES_US.len())], 1);
        add(&self.sum_us, us);
    }

    /// How many are in each class, and microseconds of all.
    pub(crate) fn get(&self) -> ([u64; CLASSES_US.len() + 1], u64) {
        let classes = std::array::from_fn(|class| self.classes[class].load(Ordering::Relaxed));
        (classes, self.sum_us.load(Ordering::Relaxed))
    }
}

/// What handshakes ask of the queue.
pub(crate) const ASKED: [Kernel; 3] = [Kernel::Ecdsa, Kernel::KeyExchange, Kernel::RsaPrivate];

/// Every suite of the provider.
pub(crate) const SUITES: [CipherSuite; 9] = [
    CipherSuite::TLS13_AES_256_GCM_SHA384,
    CipherSuite::TLS13_AES_128_GCM_SHA256,
    CipherSuite::TLS13_CHACHA20_POLY1305_SHA256,
    CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
    CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
    CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
    CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
];

/// Of one shard.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    counts: [AtomicU64; Counter::ALL.len()],
    /// Handshakes that ended well.
    pub(crate) handshakes: Durations,
    asked: [Durations; Kernel::ALL.len()],
    /// As [`SUITES`].
    suites: [AtomicU64; SUITES.len()],
    /// As the shard has published it last.
    snapshot: Mutex<Snapshot>,
}

/// What the queue and the runtime of a shard count, which it alone can read.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Snapshot {
    pub(crate) queue: warpcore_offload::Stats,
    /// Tasks of the shard that panicked.
    pub(crate) panics: u64,
}

impl Counters {
    pub(crate) fn count(&self, counter: Counter) {
        self.add(counter, 1);
    }

    pub(crate) fn add(&self, counter: Counter, count: u64) {
        add(&self.counts[counter as usize], count);
    }

    /// From a request of a handshake to its answer.
    pub(crate) fn asked(&self, kernel: Kernel) -> &Durations {
        &self.asked[kernel as usize]
    }

    pub(crate) fn agreed(&self, suite: CipherSuite) {
        if let Some(index) = SUITES.iter().position(|known| *known == suite) {
            add(&self.suites[index], 1);
        }
    }

    /// Handshakes that ended well with this suite.
    pub(crate) fn with_suite(&self, suite: CipherSuite) -> u64 {
        let index = SUITES.iter().position(|known| *known == suite);
        index.map_or(0, |index| self.suites[index].load(Ordering::Relaxed))
    }

    pub(crate) fn publish(&self, snapshot: Snapshot) {
        *self.snapshot.lock().unwrap_or_else(PoisonError::into_inner) = snapshot;
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        *self.snapshot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn get(&self, counter: Counter) -> u64 {
        self.counts[counter as usize].load(Ordering::Relaxed)
    }

    /// As people count them, without the queue's.
    pub(crate) fn stats(&self) -> Stats {
        let sum = |name: &str| {
            let of_name = Counter::ALL.into_iter().filter(|counter| counter.name().0 == name);
            of_name.map(|counter| self.get(counter)).sum()
        };
        Stats {
            accepted: self.get(Counter::Accepted),
            refused: sum("connections_refused"),
            handshakes: sum("handshakes"),
            resumed: self.get(Counter::Tls12Resumed) + self.get(Counter::Tls13Resumed),
            handshakes_failed: sum("handshakes_failed"),
            upstream_failed: self.get(Counter::UpstreamFailed),
            relay_failed: self.get(Counter::Idle) + self.get(Counter::RelayFailed),
            cut_off: self.get(Counter::CutOff),
            queue: warpcore_offload::Stats::default(),
        }
    }
}

/// Only the shard whose counter it is writes: no operation has to be atomic, only the value.
fn add(counter: &AtomicU64, count: u64) {
    let sum = counter.load(Ordering::Relaxed).wrapping_add(count);
    counter.store(sum, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_suite_is_counted() {
        let provided = crate::provider::base::ALL_CIPHER_SUITES;
        let provided: Vec<_> = provided.iter().map(|suite| suite.suite()).collect();
        assert_eq!(provided, SUITES);
    }

    #[test]
    fn every_counter_is_where_it_says() {
        for (index, counter) in Counter::ALL.into_iter().enumerate() {
            assert_eq!(counter as usize, index);
        }
    }
}
