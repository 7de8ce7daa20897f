//! Counters of one queue. They only grow, and only their owner writes them.

/// A kind of work that is gathered and dispatched together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kernel {
    /// [`Check`](crate::Check).
    Check,
    /// [`Compress`](crate::Compress), and a [`Feed`](crate::Feed) that compresses.
    Compress,
    /// [`Call`](crate::Call), of any kernel.
    Custom,
    /// [`Decompress`](crate::Decompress), and a [`Feed`](crate::Feed) that decompresses.
    Decompress,
    /// [`EcdsaSign`](crate::EcdsaSign).
    Ecdsa,
    /// [`KeyExchange`](crate::KeyExchange).
    KeyExchange,
    /// [`Sign`](crate::Sign) and [`RsaPrivate`](crate::RsaPrivate).
    RsaPrivate,
    /// [`RsaPublic`](crate::RsaPublic).
    RsaPublic,
}

impl Kernel {
    /// Every kernel, in the order of [`Stats::kernels`].
    pub const ALL: [Self; 8] = [
        Self::Check,
        Self::Compress,
        Self::Custom,
        Self::Decompress,
        Self::Ecdsa,
        Self::KeyExchange,
        Self::RsaPrivate,
        Self::RsaPublic,
    ];

    /// Name for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Check => "check",
            Self::Compress => "compress",
            Self::Custom => "custom",
            Self::Decompress => "decompress",
            Self::Ecdsa => "p256",
            Self::KeyExchange => "x25519",
            Self::RsaPrivate => "rsa",
            Self::RsaPublic => "rsa public",
        }
    }
}

/// What a queue has done since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Requests that got a slot.
    pub submitted: u64,
    /// Requests that ended, with or without an error, dropped ones included.
    pub completed: u64,
    /// Of those, the ones that ended in an error.
    pub failed: u64,
    /// Operations that were dropped in flight; their buffers were kept until the end.
    pub dropped_in_flight: u64,
    /// Operations whose device may write to their targets for ever, so that these are leaked.
    pub stranded: u64,
    /// Times that a request found no free slot.
    pub full: u64,
    /// Per kernel, indexed as [`Kernel::ALL`].
    pub kernels: [KernelStats; Kernel::ALL.len()],
}

impl Stats {
    /// The counters of one kernel.
    pub fn kernel(&self, kernel: Kernel) -> &KernelStats {
        &self.kernels[kernel as usize]
    }

    /// Requests that have a slot and have not ended. Those that have keep it until they are asked for or dropped.
    pub fn in_flight(&self) -> u64 {
        self.submitted - self.completed
    }

    /// Adds another queue's counters, to show several cores as one.
    pub fn add(&mut self, other: &Self) {
        self.submitted += other.submitted;
        self.completed += other.completed;
        self.failed += other.failed;
        self.dropped_in_flight += other.dropped_in_flight;
        self.stranded += other.stranded;
        self.full += other.full;
        for (sum, kernel) in self.kernels.iter_mut().zip(&other.kernels) {
            sum.batches += kernel.batches;
            sum.requests += kernel.requests;
            sum.batch_len_max = sum.batch_len_max.max(kernel.batch_len_max);
            for (sum, class) in sum.batch_classes.iter_mut().zip(kernel.batch_classes) {
                *sum += class;
            }
            sum.on_device += kernel.on_device;
            sum.redone += kernel.redone;
            sum.spilled += kernel.spilled;
            sum.helped += kernel.helped;
        }
    }
}

/// What one kernel of a queue has done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KernelStats {
    /// Batches dispatched.
    pub batches: u64,
    /// Requests in them.
    pub requests: u64,
    /// Requests in the largest one.
    pub batch_len_max: u64,
    /// Batches by how many requests were in them: 1, up to 3, up to 7, up to 15, more.
    pub batch_classes: [u64; 5],
    /// Requests that a device finished.
    pub on_device: u64,
    /// Requests that software did after a device had failed to.
    pub redone: u64,
    /// Requests that a device could have done, but had no room or was out of service.
    pub spilled: u64,
    /// Requests that another thread of the [`Team`](crate::Team) did.
    pub helped: u64,
}

impl KernelStats {
    /// A batch of `len` requests was dispatched, if it has any.
    pub(crate) fn count_batch(&mut self, len: u64) {
        if len > 0 {
            self.batches += 1;
            self.requests += len;
            self.batch_len_max = self.batch_len_max.max(len);
            self.batch_classes[(len.ilog2() as usize).min(4)] += 1;
        }
    }
}
