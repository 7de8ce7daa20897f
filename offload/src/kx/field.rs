//! Numbers modulo p = 2^255 - 19 in lanes, in radix 2^51.
//!
//! Five digits hold a number. A *tight* one has digits below 2^51 + 2^17, so that each fits the 52
//! bits that a multiply-add takes; every function takes and gives tight numbers. The high half of a
//! product of digits counts from bit 52, one above the radix: it is added twice, one digit higher.
//! Digits from the fifth on come back times 19, since 2^255 is 19 modulo p.
//!
//! Nothing depends on the numbers: no branch, no address.

use crate::element::{self, Columns};
pub(super) use crate::element::{Element, select};
use crate::rsa::lanes::Lanes;

const DIGIT_MAX: u64 = (1 << 51) - 1;

/// 16 p, whose digits are above those of any tight number.
const ABOVE: [u64; 5] = {
    let rest = 16 * DIGIT_MAX;
    [rest - 16 * 18, rest, rest, rest, rest]
};

/// The lowest digit, and each other, of 2^11 p.
const FAR_ABOVE: [u64; 2] = [(DIGIT_MAX << 11) - (18 << 11), DIGIT_MAX << 11];

/// The same number, tight. Digits are below 2^63.
///
/// # Safety
///
/// [`lanes::are_here`](crate::rsa::lanes::are_here), as for all functions here.
#[inline(always)]
unsafe fn tighten<V: Lanes>(digits: Element<V>) -> Element<V> {
    // SAFETY: passed on from the caller.
    unsafe {
        let mask = V::splat(DIGIT_MAX);
        let [a, b, c, d, e] = digits;
        [
            // The carry is below 2^12; times 19, below 2^17.
            a.and(mask).mul_lo(e.carry_51(), V::splat(19)),
            b.and(mask).add(a.carry_51()),
            c.and(mask).add(b.carry_51()),
            d.and(mask).add(c.carry_51()),
            e.and(mask).add(d.carry_51()),
        ]
    }
}

/// # Safety
///
/// As [`tighten`].
#[inline(always)]
pub(super) unsafe fn add<V: Lanes>(a: Element<V>, b: Element<V>) -> Element<V> {
    // SAFETY: passed on from the caller.
    unsafe {
        tighten([a[0].add(b[0]), a[1].add(b[1]), a[2].add(b[2]), a[3].add(b[3]), a[4].add(b[4])])
    }
}

/// # Safety
///
/// As [`tighten`].
#[inline(always)]
pub(super) unsafe fn sub<V: Lanes>(a: Element<V>, b: Element<V>) -> Element<V> {
    // SAFETY: passed on from the caller.
    unsafe {
        let above = |at: usize| V::splat(ABOVE[at]);
        let [k, l, m, n, o] = [above(0), above(1), above(2), above(3), above(4)];
        tighten([
            a[0].add(k).sub(b[0]),
            a[1].add(l).sub(b[1]),
            a[2].add(m).sub(b[2]),
            a[3].add(n).sub(b[3]),
            a[4].add(o).sub(b[4]),
        ])
    }
}

/// Of nine low and nine high columns of a product: digits below 2^61.
///
/// # Safety
///
/// As [`tighten`].
#[inline(always)]
unsafe fn reduce<V: Lanes>(Columns { low, high }: Columns<V>) -> Element<V> {
    // SAFETY: passed on from the caller.
    unsafe {
        // Below 5 * 2^52 + 2 * 5 * 2^52, and so below 2^56; times 20, below 2^61.
        let nineteen = V::splat(19);
        let column = [
            low[0],
            low[1].add(high[0].add(high[0])),
            low[2].add(high[1].add(high[1])),
            low[3].add(high[2].add(high[2])),
            low[4].add(high[3].add(high[3])),
            low[5].add(high[4].add(high[4])),
            low[6].add(high[5].add(high[5])),
            low[7].add(high[6].add(high[6])),
            low[8].add(high[7].add(high[7])),
            high[8].add(high[8]),
        ];
        [
            column[0].add(column[5].mul(nineteen)),
            column[1].add(column[6].mul(nineteen)),
            column[2].add(column[7].mul(nineteen)),
            column[3].add(column[8].mul(nineteen)),
            column[4].add(column[9].mul(nineteen)),
        ]
    }
}

/// # Safety
///
/// As [`tighten`].
#[inline(always)]
pub(super) unsafe fn multiply<V: Lanes>(a: Element<V>, b: Element<V>) -> Element<V> {
    // SAFETY: passed on from the caller.
    unsafe { tighten(multiply_loosely(a, b)) }
}

/// The sum and the difference of two products, which need not be tight for that.
///
/// # Safety
///
/// As [`tighten`].
#[inline(always)]
pub(super) unsafe fn sum_and_difference<V: Lanes>(
    first: (Element<V>, Element<V>),
    second: (Element<V>, Element<V>),
) -> (Element<V>, Element<V>) {
    // SAFETY: passed on from the caller. Digits of both are below 2^61; with 2^11 p between them
    // they stay above 0, and below 2^63.
    unsafe {
        let a = multiply_loosely(first.0, first.1);
        let b = multiply_loosely(second.0, second.1);
        let sum = [a[0].add(b[0]), a[1].add(b[1]), a[2].add(b[2]), a[3].add(b[3]), a[4].add(b[4])];
        let (low, rest) = (V::splat(FAR_ABOVE[0]), V::splat(FAR_ABOVE[1]));
        let difference = [
            a[0].add(low).sub(b[0]),
            a[1].add(rest).sub(b[1]),
            a[2].add(rest).sub(b[2]),
            a[3].add(rest).sub(b[3]),
            a[4].add(rest).sub(b[4]),
        ];
        (tighten(sum), tighten(difference))
    }
}

/// A product with digits below 2^61.
///
/// # Safety
///
/// As [`tighten`].
#[inline(always)]
unsafe fn multiply_loosely<V: Lanes>(a: Element<V>, b: Element<V>) -> Element<V> {
    // SAFETY: passed on from the caller.
    unsafe { reduce(element::multiply(a, b)) }
}

/// # Safety
///
/// As [`tighten`].
#[inline(always)]
pub(super) unsafe fn square<V: Lanes>(a: Element<V>) -> Element<V> {
    // SAFETY: passed on from the caller.
    unsafe { tighten(reduce(element::square(a))) }
}

/// `a` + `factor` `b`, for a factor below 2^18.
///
/// # Safety
///
/// As [`tighten`].
#[inline(always)]
pub(super) unsafe fn add_times<V: Lanes>(a: Element<V>, b: Element<V>, factor: u64) -> Element<V> {
    // SAFETY: passed on from the caller.
    unsafe {
        let factor = V::splat(factor);
        let zero = V::splat(0);
        let twice_high = |digit: V| {
            let high = zero.mul_hi(digit, factor);
            high.add(high)
        };
        // What comes out at the top is below 2^19.
        let top = twice_high(b[4]);
        tighten([
            a[0].mul_lo(b[0], factor).mul_lo(top, V::splat(19)),
            a[1].mul_lo(b[1], factor).add(twice_high(b[0])),
            a[2].mul_lo(b[2], factor).add(twice_high(b[1])),
            a[3].mul_lo(b[3], factor).add(twice_high(b[2])),
            a[4].mul_lo(b[4], factor).add(twice_high(b[3])),
        ])
    }
}

/// The digits of 32 little-endian bytes, without the top bit (RFC 7748, section 5).
pub(super) fn digits(bytes: &[u8; 32]) -> [u64; 5] {
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    let (a, b, c, d) = (word(0), word(8), word(16), word(24));
    [
        a & DIGIT_MAX,
        (a >> 51 | b << 13) & DIGIT_MAX,
        (b >> 38 | c << 26) & DIGIT_MAX,
        (c >> 25 | d << 39) & DIGIT_MAX,
        d >> 12 & DIGIT_MAX,
    ]
}

/// The bytes of the number below p that tight digits stand for.
pub(super) fn bytes(digits: [u64; 5]) -> [u8; 32] {
    let mut digits = digits;
    // Twice: the first carry may leave a second.
    for _ in 0..2 {
        let mut carry = 0;
        for digit in &mut digits {
            *digit += carry;
            carry = *digit >> 51;
            *digit &= DIGIT_MAX;
        }
        digits[0] += carry * 19;
    }
    // Below 2^255 + 19 by now: p is to be subtracted if adding 19 reaches 2^255.
    let mut carry = 19;
    for digit in digits {
        carry = (digit + carry) >> 51;
    }
    carry *= 19;
    for digit in &mut digits {
        *digit += carry;
        carry = *digit >> 51;
        *digit &= DIGIT_MAX;
    }
    let [a, b, c, d, e] = digits;
    let words = [a | b << 51, b >> 13 | c << 38, c >> 26 | d << 25, d >> 39 | e << 12];
    let mut bytes = [0; 32];
    for (place, word) in bytes.chunks_exact_mut(8).zip(words) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}
