//! Numbers modulo the two primes of P-256 in lanes: of its field, and of its order.
//!
//! Five digits of 52 bits hold a number below 2^260, which is 16 times either prime. Products are
//! Montgomery's, with R = 2^260: of factors below a p and b p, the product is below (a b / 16 + 1) p.
//! So as long as a b is at most 16, a product is below 2 p, and nothing needs to be subtracted
//! between steps. Each function says what it takes and gives in these terms: *below 5* means below
//! 5 p. Every digit of an element is below 2^52.
//!
//! Nothing depends on the numbers: no branch, no address.

use crate::element::{self, Columns};
pub(super) use crate::element::{Element, select};
use crate::rsa::digits::{Radix, Radix52};
use crate::rsa::lanes::Lanes;

/// The same number in all lanes.
pub(super) type Constant = [u64; 5];

/// A prime, and what multiplication modulo it needs.
pub(super) trait Prime {
    const DIGITS: Constant;
    /// The negative inverse of the lowest digit, modulo 2^52. If it is 1, that digit is 2^52 - 1.
    const K0: u64;
    /// R and R^2 modulo it.
    const ONE: Constant = power_of_two(260, Self::DIGITS);
    const R2: Constant = power_of_two(520, Self::DIGITS);
    /// The prime less 2, by digits of four bits, the highest first: what inverts.
    const INVERTING: [u8; 64] = inverting(Self::DIGITS);
}

/// The prime of the field (FIPS 186-4, appendix D.1.2.3): 2^256 - 2^224 + 2^192 + 2^96 - 1.
pub(super) struct Field;

impl Prime for Field {
    const DIGITS: Constant =
        [0xf_ffff_ffff_ffff, 0x0fff_ffff_ffff, 0, 0x10_0000_0000, 0xffff_ffff_0000];
    const K0: u64 = 1;
}

/// The order of the group.
pub(super) struct Order;

impl Prime for Order {
    const DIGITS: Constant = [
        0x9_cac2_fc63_2551,
        0xa_da71_79e8_4f3b,
        0xf_ffff_ffbc_e6fa,
        0xf_ffff_ffff,
        0xffff_ffff_0000,
    ];
    const K0: u64 = 0x1_c8aa_ee00_bc4f;
}

/// 2^256 less the field's prime.
const BEYOND: Constant = {
    let mut digits = [0; 5];
    let mut borrow = 0;
    let mut at = 0;
    while at < 5 {
        let top: u64 = if at == 4 { 1 << 48 } else { 0 };
        let difference = top.wrapping_sub(Field::DIGITS[at]).wrapping_sub(borrow);
        borrow = difference >> 63;
        digits[at] = difference & Radix52::MAX;
        at += 1;
    }
    digits
};

const fn power_of_two(power: usize, prime: Constant) -> Constant {
    let mut number = [1, 0, 0, 0, 0];
    let mut done = 0;
    while done < power {
        // Twice, less the prime if that leaves something.
        let (mut doubled, mut less) = (number, number);
        let (mut carry, mut borrow, mut at) = (0, 0, 0);
        while at < 5 {
            let twice = number[at] << 1 | carry;
            carry = twice >> Radix52::BITS;
            doubled[at] = twice & Radix52::MAX;
            let difference = doubled[at].wrapping_sub(prime[at]).wrapping_sub(borrow);
            borrow = difference >> 63;
            less[at] = difference & Radix52::MAX;
            at += 1;
        }
        number = if borrow == 0 { less } else { doubled };
        done += 1;
    }
    number
}

const fn inverting(prime: Constant) -> [u8; 64] {
    let mut nibbles = [0; 64];
    let mut at = 0;
    while at < 64 {
        let place = 4 * (63 - at);
        // Digits are a multiple of four bits.
        nibbles[at] = (prime[place / Radix52::BITS] >> (place % Radix52::BITS) & 15) as u8;
        at += 1;
    }
    // The lowest digit of both is odd, so that 2 is subtracted without a borrow, unless it is 1.
    if nibbles[63] == 1 {
        nibbles[63] = 15;
        nibbles[62] -= 1;
    } else {
        nibbles[63] -= 2;
    }
    nibbles
}

/// # Safety
///
/// [`lanes::are_here`](crate::rsa::lanes::are_here), as for all functions here.
#[inline(always)]
pub(super) unsafe fn constant<V: Lanes>(digits: &Constant) -> Element<V> {
    // SAFETY: passed on from the caller.
    unsafe {
        [
            V::splat(digits[0]),
            V::splat(digits[1]),
            V::splat(digits[2]),
            V::splat(digits[3]),
            V::splat(digits[4]),
        ]
    }
}

/// The same number, with digits below 2^52; they may be negative before.
///
/// # Safety
///
/// As [`constant`].
#[inline(always)]
unsafe fn carried<V: Lanes>(mut digits: Element<V>) -> Element<V> {
    // SAFETY: passed on from the caller.
    unsafe {
        let mask = V::splat(Radix52::MAX);
        let mut at = 0;
        while at < 4 {
            digits[at + 1] = digits[at + 1].add(digits[at].carry_signed());
            digits[at] = digits[at].and(mask);
            at += 1;
        }
        digits
    }
}

/// The sum, which must be below 16.
///
/// # Safety
///
/// As [`constant`].
#[inline(always)]
pub(super) unsafe fn add<V: Lanes>(a: Element<V>, b: Element<V>) -> Element<V> {
    // SAFETY: passed on from the caller.
    unsafe {
        carried([a[0].add(b[0]), a[1].add(b[1]), a[2].add(b[2]), a[3].add(b[3]), a[4].add(b[4])])
    }
}

/// `a` less `b`, which is below `B`, plus `B` primes.
///
/// # Safety
///
/// As [`constant`].
#[inline(always)]
pub(super) unsafe fn sub<P: Prime, V: Lanes, const B: u64>(
    a: Element<V>,
    b: Element<V>,
) -> Element<V> {
    // SAFETY: passed on from the caller.
    unsafe {
        let mut difference = a;
        let mut at = 0;
        while at < 5 {
            difference[at] = a[at].add(V::splat(B * P::DIGITS[at])).sub(b[at]);
            at += 1;
        }
        carried(difference)
    }
}

/// # Safety
///
/// As [`constant`].
#[inline(always)]
pub(super) unsafe fn multiply<P: Prime, V: Lanes>(a: Element<V>, b: Element<V>) -> Element<V> {
    // SAFETY: passed on from the caller.
    unsafe { reduce::<P, V>(element::multiply(a, b)) }
}

/// # Safety
///
/// As [`constant`].
#[inline(always)]
pub(super) unsafe fn square<P: Prime, V: Lanes>(a: Element<V>) -> Element<V> {
    // SAFETY: passed on from the caller.
    unsafe { reduce::<P, V>(element::square(a)) }
}

/// A product, divided by R.
///
/// # Safety
///
/// As [`constant`].
#[inline(always)]
unsafe fn reduce<P: Prime, V: Lanes>(Columns { low, high }: Columns<V>) -> Element<V> {
    // SAFETY: passed on from the caller.
    unsafe {
        let zero = V::splat(0);
        let mut sum = [
            low[0],
            low[1].add(high[0]),
            low[2].add(high[1]),
            low[3].add(high[2]),
            low[4].add(high[3]),
            low[5].add(high[4]),
            low[6].add(high[5]),
            low[7].add(high[6]),
            low[8].add(high[7]),
            high[8],
        ];
        // Columns stay below 2^57: ten products of the factors and ten of the prime.
        let mut row = 0;
        while row < 5 {
            let (m, first) = if P::K0 == 1 {
                // The lowest digit of the prime is 2^52 - 1: with m = sum[row], adding m primes is
                // adding m (prime + 1) and taking the digit itself away.
                (sum[row], 1)
            } else {
                (zero.mul_lo(sum[row], V::splat(P::K0)), 0)
            };
            let mut at = first;
            while at < 5 {
                // Where the lowest digit is left out, prime + 1 has one more in the next.
                let digit = P::DIGITS[at] + u64::from(first == 1 && at == 1);
                if digit != 0 {
                    sum[row + at] = sum[row + at].mul_lo(m, V::splat(digit));
                    sum[row + at + 1] = sum[row + at + 1].mul_hi(m, V::splat(digit));
                }
                at += 1;
            }
            sum[row + 1] = sum[row + 1].add(sum[row].carry());
            row += 1;
        }
        carried([sum[5], sum[6], sum[7], sum[8], sum[9]])
    }
}

/// The same number modulo the field's prime, below 1.001; `a` is below 16.
///
/// # Safety
///
/// As [`constant`].
#[inline(always)]
pub(super) unsafe fn tighten<V: Lanes>(a: Element<V>) -> Element<V> {
    // SAFETY: passed on from the caller.
    unsafe {
        // How often 2^256 fits: that is replaced by its residue, which is below 2^224.
        let times = V::splat(0).mul_hi(a[4], V::splat(1 << 4));
        let mut sum = a;
        sum[4] = a[4].and(V::splat((1 << 48) - 1));
        let mut at = 0;
        while at < 5 {
            if BEYOND[at] != 0 {
                sum[at] = sum[at].mul_lo(times, V::splat(BEYOND[at]));
            }
            if at < 4 && BEYOND[at] > 1 {
                sum[at + 1] = sum[at + 1].mul_hi(times, V::splat(BEYOND[at]));
            }
            at += 1;
        }
        carried(sum)
    }
}

/// R^2 / `a`, and 0 of 0: both as a Montgomery product takes them. By Fermat, in windows of four
/// bits of the exponent, which is public.
///
/// # Safety
///
/// As [`constant`].
#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx512f,avx512dq,avx512vl,avx512ifma"))]
pub(super) unsafe fn inverse<P: Prime, V: Lanes>(a: Element<V>) -> Element<V> {
    // SAFETY: passed on from the caller.
    unsafe {
        let mut powers = [a; 16];
        for at in 2..16 {
            powers[at] = match at % 2 {
                0 => square::<P, V>(powers[at / 2]),
                _ => multiply::<P, V>(powers[at - 1], a),
            };
        }
        let mut result = powers[usize::from(P::INVERTING[0])];
        for window in &P::INVERTING[1..] {
            for _ in 0..4 {
                result = square::<P, V>(result);
            }
            if *window != 0 {
                result = multiply::<P, V>(result, powers[usize::from(*window)]);
            }
        }
        result
    }
}

/// The number below the prime that digits of one below 4 stand for.
pub(super) fn reduced<P: Prime>(mut digits: Constant) -> Constant {
    for _ in 0..3 {
        crate::rsa::digits::subtract_once::<Radix52>(&mut digits, &P::DIGITS);
    }
    digits
}

#[cfg(test)]
mod tests {
    use num_bigint::BigUint;
    use proptest::prelude::*;

    use super::*;
    use crate::rsa::digits;
    use crate::rsa::lanes::{self, X4, X8, lanes_of, portable};

    fn big(digits: &[u64]) -> BigUint {
        digits.iter().rev().fold(BigUint::ZERO, |sum, digit| (sum << Radix52::BITS) + *digit)
    }

    fn lane<V: Lanes>(mut element: Element<V>, lane: usize) -> Constant {
        let mut digits = [0; 5];
        for (digit, vector) in digits.iter_mut().zip(&mut element) {
            *digit = lanes_of(vector)[lane];
        }
        digits
    }

    /// # Safety
    ///
    /// As [`constant`].
    unsafe fn element<V: Lanes>(numbers: &[Constant]) -> Element<V> {
        // SAFETY: passed on from the caller.
        let mut element = unsafe { constant::<V>(&[0; 5]) };
        for (lane, number) in numbers.iter().enumerate().take(V::COUNT) {
            for (vector, digit) in element.iter_mut().zip(number) {
                lanes_of(vector)[lane] = *digit;
            }
        }
        element
    }

    /// Numbers of all sizes that fit: some near multiples of the prime.
    fn numbers<P: Prime>() -> impl Strategy<Value = Constant> {
        let near = (0..4_u8, -2_i8..=2).prop_map(|(times, away)| {
            let number = big(&P::DIGITS) * times + 2_u8;
            let number = number + u8::try_from(away + 2).expect("at most 4");
            let number = if number > BigUint::from(4_u8) { number - 4_u8 } else { number };
            let bytes = number.to_bytes_be();
            let digits = digits::from_bytes::<Radix52>(&bytes, 5);
            std::array::from_fn(|at| digits[at])
        });
        let any = prop::array::uniform5(0..=Radix52::MAX).prop_map(|mut digits| {
            // Below 4.
            digits[4] >>= 3;
            digits
        });
        prop_oneof![near, any]
    }

    /// # Safety
    ///
    /// As [`constant`].
    unsafe fn check<P: Prime, V: Lanes>(a: &[Constant], b: &[Constant]) {
        let prime = big(&P::DIGITS);
        let r = (BigUint::from(1_u8) << 260) % &prime;
        // SAFETY: passed on from the caller.
        unsafe {
            let (x, y) = (element::<V>(a), element::<V>(b));
            let product = multiply::<P, V>(x, y);
            let squared = square::<P, V>(x);
            let sum = add(x, y);
            let difference = sub::<P, V, 4>(x, y);
            let inverted = inverse::<P, V>(x);
            for at in 0..V::COUNT {
                let (a, b) = (big(&a[at]), big(&b[at]));
                let digits = lane(product, at);
                assert!(digits.iter().all(|digit| *digit <= Radix52::MAX));
                assert!(big(&digits) < &prime * 2_u8);
                assert_eq!(big(&digits) * &r % &prime, &a * &b % &prime);
                assert_eq!(big(&reduced::<P>(digits)), big(&digits) % &prime);
                assert_eq!(big(&lane(squared, at)) * &r % &prime, &a * &a % &prime);
                assert_eq!(big(&lane(sum, at)), &a + &b);
                assert_eq!(big(&lane(difference, at)), &a + &prime * 4_u8 - &b);
                let expected = if (&a % &prime) == BigUint::ZERO { 0_u8 } else { 1 };
                let back = big(&lane(inverted, at)) * a % &prime;
                assert_eq!(back, &r * &r % &prime * expected);
            }
        }
    }

    proptest! {
        #[test]
        fn arithmetic_is_that_of_the_reference(
            field in prop::collection::vec((numbers::<Field>(), numbers::<Field>()), 8),
            order in prop::collection::vec((numbers::<Order>(), numbers::<Order>()), 8),
        ) {
            let (a, b): (Vec<_>, Vec<_>) = field.into_iter().unzip();
            let (c, d): (Vec<_>, Vec<_>) = order.into_iter().unzip();
            if lanes::kernels_run() {
                // SAFETY: just looked; the vectors are plain arithmetic.
                unsafe {
                    check::<Field, portable::X4>(&a, &b);
                    check::<Order, portable::X4>(&c, &d);
                }
            }
            if lanes::are_here() {
                // SAFETY: just looked.
                unsafe {
                    check::<Field, X8>(&a, &b);
                    check::<Field, X4>(&a, &b);
                    check::<Order, X8>(&c, &d);
                    check::<Order, X4>(&c, &d);
                }
            }
        }

        #[test]
        fn tightened_is_the_same_number(mut digits in prop::array::uniform5(0..=Radix52::MAX)) {
            let prime = big(&Field::DIGITS);
            prop_assume!(big(&digits) < &prime * 16_u8);
            digits[4] &= Radix52::MAX;
            // SAFETY: plain arithmetic.
            let tight = unsafe { lane(tighten(element::<portable::X4>(&[digits])), 0) };
            prop_assert_eq!(big(&tight) % &prime, big(&digits) % &prime);
            prop_assert!(big(&tight) * 1000_u32 < prime * 1001_u32);
        }
    }
}
