//! Numbers as digits of a radix, the least first: how the kernels have them. What is done here
//! takes the same time whatever the numbers are: loops go by length, and choices by mask.

use std::hint::black_box;

use zeroize::Zeroizing;

/// A power of two that numbers are written in.
pub(crate) trait Radix: 'static {
    /// Bits of a digit.
    const BITS: usize;
    /// A digit of all ones.
    const MAX: u64 = (1 << Self::BITS) - 1;
}

/// That of multiply-adds of integers, AVX-512 IFMA.
pub(crate) enum Radix52 {}

/// That of multiply-adds of doubles.
pub(crate) enum Radix50 {}

impl Radix for Radix52 {
    const BITS: usize = 52;
}

impl Radix for Radix50 {
    const BITS: usize = 50;
}

/// Digits that are wiped when they are dropped.
pub(crate) type Digits = Zeroizing<Vec<u64>>;

/// `len` digits of a big-endian number, which fits them.
pub(crate) fn from_bytes<R: Radix>(bytes: &[u8], len: usize) -> Digits {
    let mut digits = Zeroizing::new(vec![0; len]);
    read::<R>(bytes, &mut digits);
    digits
}

/// Reads a big-endian number, which fits `digits`.
pub(crate) fn read<R: Radix>(bytes: &[u8], digits: &mut [u64]) {
    digits.fill(0);
    for (index, byte) in bytes.iter().rev().enumerate() {
        let (digit, shift) = (index * 8 / R::BITS, index * 8 % R::BITS);
        let bits = u64::from(*byte) << shift;
        digits[digit] |= bits & R::MAX;
        if let Some(next) = digits.get_mut(digit + 1) {
            *next |= bits >> R::BITS;
        }
    }
}

/// Writes digits as a big-endian number, which fits `bytes`.
pub(crate) fn write<R: Radix>(digits: &[u64], bytes: &mut [u8]) {
    for (index, byte) in bytes.iter_mut().rev().enumerate() {
        let (digit, shift) = (index * 8 / R::BITS, index * 8 % R::BITS);
        let low = digits.get(digit).map_or(0, |digit| digit >> shift);
        let high = digits.get(digit + 1).map_or(0, |digit| digit << (R::BITS - shift));
        *byte = (low | high).to_le_bytes()[0];
    }
}

/// Twice `number`, less `modulus` if that leaves something. `number` is below `modulus`, and twice
/// that fits the digits.
fn double<R: Radix>(number: &mut [u64], modulus: &[u64]) {
    let mut carry = 0;
    for digit in number.iter_mut() {
        let doubled = *digit << 1 | carry;
        *digit = doubled & R::MAX;
        carry = doubled >> R::BITS;
    }
    subtract_once::<R>(number, modulus);
}

/// `number`, less `modulus` unless that leaves less than nothing.
///
/// A function of its own, so that its machine code can be looked at: a compiler that sees where the
/// mask comes from makes a jump of it.
#[inline(never)]
pub(crate) fn subtract_once<R: Radix>(number: &mut [u64], modulus: &[u64]) {
    let mut borrow = 0_u64;
    for (digit, subtrahend) in number.iter().zip(modulus) {
        borrow = digit.wrapping_sub(*subtrahend).wrapping_sub(borrow) >> 63;
    }
    // All ones if it is to be subtracted.
    let mask = black_box(borrow.wrapping_sub(1));
    let mut borrow = 0;
    for (digit, subtrahend) in number.iter_mut().zip(modulus) {
        let difference = digit.wrapping_sub(*subtrahend & mask).wrapping_sub(borrow);
        borrow = difference >> 63;
        *digit = difference & R::MAX;
    }
}

/// Adds `other` to a number whose digits may be negative (two's complement) or too large, by a few bits;
/// the sum is not, and fits the digits.
pub(crate) fn add_signed<R: Radix>(number: &mut [u64], other: &[u64]) {
    let mut carry = 0_i64;
    for (digit, other) in number.iter_mut().zip(other) {
        let sum = digit.cast_signed() + other.cast_signed() + carry;
        *digit = sum.cast_unsigned() & R::MAX;
        carry = sum >> R::BITS;
    }
}

/// `number` times 2^`power` modulo `modulus`.
pub(crate) fn shift<R: Radix>(number: &[u64], power: usize, modulus: &[u64]) -> Digits {
    let mut shifted = Zeroizing::new(number.to_vec());
    for _ in 0..power {
        double::<R>(&mut shifted, modulus);
    }
    shifted
}

/// 2^`power` modulo `modulus`, which is more than 1.
pub(crate) fn power_of_two<R: Radix>(power: usize, modulus: &[u64]) -> Digits {
    let mut one = Zeroizing::new(vec![0; modulus.len()]);
    one[0] = 1;
    shift::<R>(&one, power, modulus)
}

/// What makes the lowest digit 0 when so many times the modulus are added: the negative inverse of
/// an odd number modulo the radix, by Newton's iteration; each doubles the bits that are right.
pub(crate) fn negative_inverse<R: Radix>(lowest: u64) -> u64 {
    let mut inverse = 1_u64;
    for _ in 0..6 {
        inverse = inverse.wrapping_mul(2_u64.wrapping_sub(lowest.wrapping_mul(inverse)));
    }
    inverse.wrapping_neg() & R::MAX
}

/// `a` times `b` plus `c`; the sum is as long as `a` and `b` together, `c` at most as long as `b`.
pub(crate) fn multiply_add<R: Radix>(a: &[u64], b: &[u64], c: &[u64], sum: &mut [u64]) {
    assert!(sum.len() == a.len() + b.len() && c.len() <= b.len(), "the sum fits its digits");
    sum.fill(0);
    sum[..c.len()].copy_from_slice(c);
    for (start, a) in a.iter().enumerate() {
        let mut carry = 0_u128;
        for (digit, b) in sum[start..].iter_mut().zip(b) {
            let value = u128::from(*a) * u128::from(*b) + u128::from(*digit) + carry;
            *digit = low::<R>(value);
            carry = value >> R::BITS;
        }
        sum[start + b.len()] = low::<R>(carry);
    }
}

fn low<R: Radix>(value: u128) -> u64 {
    u64::try_from(value & u128::from(R::MAX)).expect("masked to a digit")
}

#[cfg(test)]
mod tests {
    use num_bigint::BigUint;
    use proptest::prelude::*;

    use super::*;

    fn big(digits: &[u64]) -> BigUint {
        digits.iter().rev().fold(BigUint::ZERO, |sum, digit| (sum << Radix52::BITS) + *digit)
    }

    proptest! {
        #[test]
        fn bytes_come_back(bytes in prop::collection::vec(any::<u8>(), 1..70)) {
            let digits = from_bytes::<Radix52>(&bytes, (bytes.len() * 8).div_ceil(Radix52::BITS));
            prop_assert_eq!(big(&digits), BigUint::from_bytes_be(&bytes));
            let mut back = vec![0; bytes.len()];
            write::<Radix52>(&digits, &mut back);
            prop_assert_eq!(back, bytes);
        }

        #[test]
        fn arithmetic_is_that_of_the_reference(
            a in prop::collection::vec(0..=Radix52::MAX, 5),
            b in prop::collection::vec(0..=Radix52::MAX, 5),
            power in 0..300_usize,
        ) {
            let mut modulus = b.clone();
            // A bit at least is free at the top, as in every modulus of ours.
            (modulus[0], modulus[4]) = (modulus[0] | 1, modulus[4] >> 1 | 1);
            let number: Vec<u64> = a.iter().zip(&modulus).map(|(a, n)| a % (n / 2 + 1)).collect();
            prop_assume!(big(&number) < big(&modulus));
            let two = BigUint::from(2_u8).pow(u32::try_from(power).expect("small"));
            let expected = big(&number) * &two % big(&modulus);
            prop_assert_eq!(big(&shift::<Radix52>(&number, power, &modulus)), expected);
            prop_assert_eq!(big(&power_of_two::<Radix52>(power, &modulus)), two % big(&modulus));
            let inverse = negative_inverse::<Radix52>(modulus[0]);
            prop_assert_eq!(inverse.wrapping_mul(modulus[0]) & Radix52::MAX, Radix52::MAX);
            let mut sum = vec![0; 10];
            multiply_add::<Radix52>(&a, &b, &number, &mut sum);
            prop_assert_eq!(big(&sum), big(&a) * big(&b) + big(&number));
        }
    }
}
