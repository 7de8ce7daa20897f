//! Blinding of private operations (Kocher: Timing Attacks on Implementations of Diffie-Hellman,
//! RSA, DSS, and Other Systems, 1996): a message is multiplied by r^e before, and the result by r^-1
//! after, so that nobody knows what number is raised to the secret exponent.

use std::sync::atomic::Ordering;

use super::digits::Digits;
use super::lane_key::LaneKey;

/// Pairs of a key that are good at the same time: more than a batch has signatures.
pub(crate) const PAIRS: usize = 8;
/// Times that each pair is squared before all are drawn anew.
const USES_MAX: u32 = 32;

/// The pairs of one key, on one core.
pub(crate) struct Blinding {
    /// r^e and r^-1, both times R modulo n; r differs from pair to pair.
    pairs: [(Digits, Digits); PAIRS],
    next: usize,
    uses_left: u32,
    /// Of the key, when they were drawn.
    faults: u32,
}

impl Blinding {
    pub(crate) fn new(pairs: [(Digits, Digits); PAIRS], key: &LaneKey) -> Self {
        let uses_left = USES_MAX * u32::try_from(PAIRS).expect("few");
        Self { pairs, next: 0, uses_left, faults: key.faults.load(Ordering::Relaxed) }
    }

    /// Whether so many signatures can be blinded before it is time for other pairs, for `key`, whose they
    /// are.
    pub(crate) fn is_good_for(&self, signatures: u32, key: &LaneKey) -> bool {
        self.uses_left >= signatures && self.faults == key.faults.load(Ordering::Relaxed)
    }

    /// The next pair, which is to be replaced by its squares before it comes again.
    pub(crate) fn take(&mut self) -> (usize, &(Digits, Digits)) {
        let index = self.next;
        self.next = (self.next + 1) % PAIRS;
        self.uses_left -= 1;
        (index, &self.pairs[index])
    }

    pub(crate) fn replace(&mut self, index: usize) -> &mut (Digits, Digits) {
        &mut self.pairs[index]
    }
}
