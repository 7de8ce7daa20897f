//! A private key laid out for the lanes: digits, and what Montgomery multiplication needs of each
//! modulus. Made once, when the key is read; wiped when it is dropped.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use zeroize::Zeroizing;

use super::digits::{self, Digits, Radix, Radix50, Radix52};
use super::key::PublicKey;
use super::montgomery::Unit;
use crate::error::KeyError;

/// Bits of the exponent that are used up at a time.
pub(crate) const WINDOW_BITS: usize = 5;

/// A key in lanes' form.
pub(crate) struct LaneKey {
    /// Tells keys apart for as long as the process lives.
    pub(crate) id: u64,
    /// Of its digits.
    pub(crate) radix_bits: usize,
    pub(crate) n: Modulus,
    pub(crate) exponent: u64,
    pub(crate) p: Prime,
    pub(crate) q: Prime,
    /// q^-1 R modulo p.
    pub(crate) q_inverse: Digits,
    /// Signatures that came out wrong. Relaxed: that cores draw other pairs soon is all that matters.
    pub(crate) faults: AtomicU32,
}

/// An odd modulus of `len` digits; R is the radix to the power of `len`.
pub(crate) struct Modulus {
    pub(crate) digits: Digits,
    pub(crate) k0: u64,
    /// R^2 modulo it.
    pub(crate) r2: Digits,
}

/// A prime factor and its exponent.
pub(crate) struct Prime {
    pub(crate) modulus: Modulus,
    /// R^3 modulo it.
    pub(crate) r3: Digits,
    /// d modulo the prime less one, by windows, the highest first.
    pub(crate) windows: Zeroizing<Vec<u8>>,
}

/// Windows of an exponent of so many bits.
pub(crate) const fn windows(bits: usize) -> usize {
    bits.div_ceil(WINDOW_BITS)
}

/// Digits of half a modulus of so many bytes: R is 64 times as much at least.
pub(crate) fn half_len<R: Radix>(modulus_len_bytes: usize) -> usize {
    (modulus_len_bytes * 8 / 2 + 6).div_ceil(R::BITS)
}

impl LaneKey {
    /// As this processor's lanes want it; none where there are no lanes.
    pub(crate) fn here(public: &PublicKey, numbers: &[u8]) -> Result<Option<Self>, KeyError> {
        let key = match Unit::here() {
            Some(Unit::Integers) => Self::new::<Radix52>(public, numbers)?,
            Some(Unit::Doubles) => Self::new::<Radix50>(public, numbers)?,
            None => return Ok(None),
        };
        Ok(Some(key))
    }

    /// `numbers` are d mod (q-1), d mod (p-1), q, p, q^-1 mod p, each half as long as the modulus.
    pub(crate) fn new<R: Radix>(public: &PublicKey, numbers: &[u8]) -> Result<Self, KeyError> {
        /// Only that each is another matters, so any ordering does.
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let k = public.modulus_len_bytes();
        let len = half_len::<R>(k);
        let fields: Vec<_> = numbers.chunks_exact(k / 2).collect();
        let [dq, dp, q, p, q_inverse] = fields[..] else {
            return Err(KeyError::Inconsistent("a number is missing"));
        };
        let n = Modulus::new::<R>(digits::from_bytes::<R>(public.modulus(), 2 * len))?;
        let (p, q) = (Prime::new::<R>(p, dp, len)?, Prime::new::<R>(q, dq, len)?);
        let mut product = Zeroizing::new(vec![0; 2 * len]);
        digits::multiply_add::<R>(&p.modulus.digits, &q.modulus.digits, &[], &mut product);
        if product != n.digits {
            return Err(KeyError::Inconsistent("p times q is not the modulus"));
        }
        let q_inverse = digits::from_bytes::<R>(q_inverse, len);
        let q_inverse = digits::shift::<R>(&q_inverse, R::BITS * len, &p.modulus.digits);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let (radix_bits, exponent) = (R::BITS, public.exponent());
        Ok(Self { id, radix_bits, n, exponent, p, q, q_inverse, faults: AtomicU32::new(0) })
    }
}

impl Modulus {
    pub(super) fn new<R: Radix>(number: Digits) -> Result<Self, KeyError> {
        if number[0] & 1 == 0 {
            return Err(KeyError::Inconsistent("a prime or the modulus is even"));
        }
        let k0 = digits::negative_inverse::<R>(number[0]);
        let r2 = digits::power_of_two::<R>(2 * R::BITS * number.len(), &number);
        Ok(Self { digits: number, k0, r2 })
    }
}

impl Prime {
    /// A prime whose top bit is set: half of the modulus exactly, so that 2 p is above q.
    fn new<R: Radix>(prime: &[u8], exponent: &[u8], len: usize) -> Result<Self, KeyError> {
        if prime[0] >> 7 == 0 {
            return Err(KeyError::Inconsistent("the primes are not of half the modulus' length"));
        }
        let modulus = Modulus::new::<R>(digits::from_bytes::<R>(prime, len))?;
        let r3 = digits::shift::<R>(&modulus.r2, R::BITS * len, &modulus.digits);
        let bit = |at: usize| {
            let byte = exponent.iter().rev().nth(at / 8);
            byte.map_or(0, |byte| byte >> (at % 8) & 1)
        };
        // Reserved as a whole: growing would leave copies.
        let count = windows(exponent.len() * 8);
        let mut windows = Zeroizing::new(Vec::with_capacity(count));
        for window in (0..count).rev() {
            let bits = (0..WINDOW_BITS).rev().map(|at| bit(window * WINDOW_BITS + at));
            windows.push(bits.fold(0, |sum, bit| sum << 1 | bit));
        }
        Ok(Self { modulus, r3, windows })
    }
}
