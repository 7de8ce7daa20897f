//! What exponentiation in lanes asks of its vectors, which have it by the multiply-adds of AVX-512
//! ([`ifma`](super::ifma)) or by those of doubles ([`fma`](super::fma)).

use super::digits::Radix;
#[cfg(target_arch = "x86_64")]
use super::fma;
use super::lanes;

/// What computes in lanes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Multiply-adds of integers: AVX-512 IFMA.
    Integers,
    /// Multiply-adds of doubles: AVX2 and FMA.
    Doubles,
}

impl Unit {
    /// The best of this processor.
    pub(crate) fn here() -> Option<Self> {
        if lanes::are_here() {
            return Some(Self::Integers);
        }
        #[cfg(target_arch = "x86_64")]
        if fma::is_here() {
            return Some(Self::Doubles);
        }
        None
    }
}

/// Entries of a table of powers.
pub(crate) const TABLE_LEN: usize = 32;

/// Montgomery arithmetic: each lane has a number, and a modulus, of its own.
///
/// Numbers are arrays of `L` digits, each digit a vector with one number's digit in each lane; R is
/// the [`Radix`](Self::Radix) to the power of `L`. Results are *almost* reduced: below 2 n, or, if they have
/// signs, between -n and n.
///
/// # Safety
///
/// The implementor is `COUNT` times 64 bits of plain data, lane after lane.
///
/// The unsafe methods may be called only where the processor has the instructions. Each pointer is to `L`
/// vectors, `room` to 2 `L`; digits come from [`to_lane`](Self::to_lane) or from these methods; `n` is odd
/// in each lane and `k0` its [`negative_inverse`](super::digits::negative_inverse). A target may be
/// one of the factors.
#[allow(clippy::missing_safety_doc, reason = "the conditions of all of them are the trait's")]
pub(crate) unsafe trait Montgomery: Copy + Send + 'static {
    /// Lanes in a vector.
    const COUNT: usize;
    /// What numbers are written in.
    type Radix: Radix;
    /// Whether digits, and numbers, lie around 0.
    const SIGNED: bool;
    /// Windows of exponents of 1024 bits that take about 50 us.
    const WINDOWS_IN_STEP: usize;
    /// Four lanes in the same radix.
    type Four: Montgomery<Radix = Self::Radix>;

    /// What a lane holds for a digit, which may be negative (two's complement).
    fn to_lane(digit: u64) -> u64;
    /// The digit that a lane holds.
    fn of_lane(lane: u64) -> u64;

    /// `target` = `a` `b` / R modulo `n`.
    unsafe fn multiply<const L: usize>(
        target: *mut Self,
        a: *const Self,
        b: *const Self,
        n: *const Self,
        k0: Self,
    );

    /// `target` = `a`^2 / R modulo `n`.
    unsafe fn square<const L: usize>(
        target: *mut Self,
        a: *const Self,
        n: *const Self,
        k0: Self,
        room: *mut Self,
    );

    /// Squares a number five times, and makes a selection, in whatever order is best.
    unsafe fn square_and_select<const L: usize>(
        number: *mut Self,
        n: *const Self,
        k0: Self,
        room: *mut Self,
        selection: &Selection<Self>,
    );

    /// `target` = `a` + `b`, which fits L digits.
    unsafe fn add<const L: usize>(target: *mut Self, a: *const Self, b: *const Self);
}

/// The entry of a table that each lane names, to be read without telling which: every entry is read,
/// whatever is chosen.
pub(crate) struct Selection<V> {
    pub(crate) target: *mut V,
    /// 32 entries of L digits, one after the other.
    pub(crate) table: *const V,
    /// Below 32 in each lane.
    pub(crate) index: V,
}
