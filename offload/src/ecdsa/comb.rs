//! Multiples of the base point of P-256 in lanes: each lane has a scalar of its own.
//!
//! A scalar is cut into 52 windows of five bits, each a signed digit from -16 to 16, and for each
//! window there is a table of the multiples 1 to 16 of the base point times 2^(5 i). So nothing is
//! ever doubled: 52 additions make a product. A table is read as a whole, and the entry kept by mask.
//!
//! # Why the additions need no special cases
//!
//! The addition of a point in Jacobian coordinates and one in affine ones is wrong where the points
//! are equal or opposite, or one is at infinity. Windows are added from the lowest on. With S the sum
//! so far and A the addend of window i, both as multiples of the base point, and n the order:
//!
//! - As integers |S| < 0.52 2^(5 i), and |A| is at least 2^(5 i) unless its digit is 0. So S is
//!   neither A nor -A, nor is it modulo n below the last window, where |S| + |A| < 2^255 < n.
//! - In the last, i = 51, A is 0, 2^255 or 2^256. S + A is the scalar, from 1 to n - 1. Were S
//!   equal to A modulo n, the scalar would be 2 A less a multiple of n: 2^256 - n, which is below
//!   2^225, or 2^257 - 2 n, which is below 2^226. S, which is that less A, would be too large.
//! - The sum before the first digit that is not 0, and the addend of a digit that is 0, are at
//!   infinity: they are chosen away by mask.

use std::hint::black_box;
use std::sync::LazyLock;

use zeroize::{Zeroize, Zeroizing};

use super::field::{
    self, Constant, Element, Field, Prime, add, constant, inverse, multiply, select, square, sub,
    tighten,
};
use crate::rsa::digits::{Radix, Radix52};
use crate::rsa::lanes::{Lanes, X8, lanes_of};

const WINDOW_BITS: usize = 5;
const WINDOWS: usize = 52;
const ENTRIES: usize = 16;

/// An affine point, as Montgomery products take it, below 1.
#[derive(Clone, Copy)]
#[repr(C, align(16))]
struct Entry {
    x: Constant,
    y: Constant,
}

/// Made at the first use, in about 2 ms.
static TABLE: LazyLock<Box<[[Entry; ENTRIES]]>> = LazyLock::new(|| {
    // SAFETY: whoever multiplies has looked for the lanes (`multiply_base`).
    unsafe { table() }
});

/// The base point (FIPS 186-4, appendix D.1.2.3).
const BASE: [Constant; 2] = [
    [
        0x1_3945_d898_c296,
        0x8_12de_b33a_0f4a,
        0x3_a440_f277_037d,
        0x4_247f_8bce_6e56,
        0x6b17_d1f2_e12c,
    ],
    [
        0x6_4068_37bf_51f5,
        0x5_76b3_15ec_ecbb,
        0xc_0f9e_162b_ce33,
        0x7_f9b8_ee7e_b4a7,
        0x4fe3_42e2_fe1a,
    ],
];

/// The equation's constant (the same appendix): y^2 = x^3 - 3 x + b.
const B: Constant = [
    0xe_3c3e_27d2_604b,
    0xb_0cc5_3b0f_63bc,
    0x6_9886_bc65_1d06,
    0x9_3e7b_3ebb_d557,
    0x5ac6_35d8_aa3a,
];

/// Points in Jacobian coordinates: (X / Z^2, Y / Z^3). X is below 2, Y below 5, Z below 2.
struct Point<V> {
    x: Element<V>,
    y: Element<V>,
    z: Element<V>,
}

/// The affine coordinates, below 2, of the base point times each lane's scalar, which is from 1 to the
/// order less 1. As Montgomery products take them.
///
/// # Safety
///
/// [`lanes::are_here`](crate::rsa::lanes::are_here).
#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx512f,avx512dq,avx512vl,avx512ifma"))]
pub(super) unsafe fn multiply_base<V: Lanes>(scalars: &[Constant]) -> [Element<V>; 2] {
    // SAFETY: passed on from the caller.
    unsafe {
        let zero = V::splat(0);
        // The digits' sizes and signs, by windows.
        let mut sizes = [zero; WINDOWS];
        let mut signs = [zero; WINDOWS];
        load(scalars, &mut sizes, &mut signs);
        let one = constant::<V>(&Field::ONE);
        let mut sum = Point { x: [zero; 5], y: [zero; 5], z: [zero; 5] };
        // Sum of the sizes so far: 0 while the sum is at infinity.
        let mut so_far = zero;
        for ((size, sign), entries) in sizes.iter().zip(&signs).zip(TABLE.iter()) {
            let (mut x, mut y) = ([zero; 5], [zero; 5]);
            for (index, entry) in (1..).zip(entries) {
                let here = size.equals(V::splat(index));
                let mut at = 0;
                while at < 5 {
                    x[at] = V::select(here, x[at], V::splat(entry.x[at]));
                    y[at] = V::select(here, y[at], V::splat(entry.y[at]));
                    at += 1;
                }
            }
            let negative = sub::<Field, V, 1>([zero; 5], y);
            let y = select::<V>(sign.test(V::splat(1)), y, negative);
            let next = added(&sum, x, y);
            let (nothing, first) = (size.equals(zero), so_far.equals(zero));
            let choose =
                |next, addend, old| select::<V>(nothing, select::<V>(first, next, addend), old);
            sum = Point {
                x: choose(next.x, x, sum.x),
                y: choose(next.y, y, sum.y),
                z: choose(next.z, one, sum.z),
            };
            so_far = so_far.add(*size);
        }
        sizes.iter_mut().chain(&mut signs).for_each(|vector| lanes_of(vector).zeroize());
        affine(&sum)
    }
}

/// Puts the digits of scalars into their lanes. Not part of the kernel, whose instructions a compiler
/// would scatter them with.
#[inline(never)]
fn load<V: Lanes>(scalars: &[Constant], sizes: &mut [V; WINDOWS], signs: &mut [V; WINDOWS]) {
    for (lane, scalar) in scalars.iter().enumerate() {
        let digits = Zeroizing::new(recode(scalar));
        for (window, (size, sign)) in digits.iter().enumerate() {
            lanes_of(&mut sizes[window])[lane] = *size;
            lanes_of(&mut signs[window])[lane] = *sign;
        }
    }
}

/// The signed digits of a scalar, without a branch on it: each digit's size, and 1 if it is negative.
#[inline(never)]
fn recode(scalar: &Constant) -> [(u64, u64); WINDOWS] {
    let mut digits = [(0, 0); WINDOWS];
    let mut carry = 0;
    let mut words = *scalar;
    for digit in &mut digits {
        let value = (words[0] & 31) + carry;
        // From 17 on, 32 less, and one more in the next window.
        carry = black_box((value + 15) >> 5);
        let size = value.wrapping_add(carry.wrapping_mul(32_u64.wrapping_sub(2 * value)));
        *digit = (size, carry);
        // Down by a window.
        for at in 0..words.len() {
            let above = words.get(at + 1).copied().unwrap_or(0);
            words[at] =
                words[at] >> WINDOW_BITS | (above << (Radix52::BITS - WINDOW_BITS)) & Radix52::MAX;
        }
    }
    words.zeroize();
    digits
}

/// The sum of two points that are neither equal nor opposite nor at infinity, the second in affine
/// coordinates below 2 (madd of the Explicit-Formulas Database, by Hankerson, Menezes and Vanstone).
///
/// # Safety
///
/// As [`multiply_base`].
#[inline(always)]
unsafe fn added<V: Lanes>(a: &Point<V>, x: Element<V>, y: Element<V>) -> Point<V> {
    // SAFETY: passed on from the caller.
    unsafe {
        let zz = square::<Field, V>(a.z);
        let u = multiply::<Field, V>(x, zz);
        let s = multiply::<Field, V>(multiply::<Field, V>(y, a.z), zz);
        // Below 4, and below 7.
        let h = sub::<Field, V, 2>(u, a.x);
        let r = sub::<Field, V, 5>(s, a.y);
        let hh = square::<Field, V>(h);
        let hhh = multiply::<Field, V>(h, hh);
        let v = multiply::<Field, V>(a.x, hh);
        // r^2 is below 4.1 and what is taken from it below 6.
        let away = add(hhh, add(v, v));
        let x = tighten(sub::<Field, V, 6>(square::<Field, V>(r), away));
        // 7 times 4 over 16 and one: below 2.8; less 2 at most, below 5.
        let turned = multiply::<Field, V>(r, sub::<Field, V, 2>(v, x));
        let y = sub::<Field, V, 2>(turned, multiply::<Field, V>(a.y, hhh));
        Point { x, y, z: multiply::<Field, V>(a.z, h) }
    }
}

/// Twice a point (dbl-2001-b of the Explicit-Formulas Database, for a = -3).
///
/// # Safety
///
/// As [`multiply_base`].
#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx512f,avx512dq,avx512vl,avx512ifma"))]
unsafe fn doubled<V: Lanes>(a: &Point<V>) -> Point<V> {
    // SAFETY: passed on from the caller.
    unsafe {
        let y = tighten(a.y);
        let delta = square::<Field, V>(a.z);
        let gamma = square::<Field, V>(y);
        let beta = multiply::<Field, V>(a.x, gamma);
        let product = multiply::<Field, V>(sub::<Field, V, 2>(a.x, delta), add(a.x, delta));
        let alpha = tighten(add(add(product, product), product));
        let beta4 = tighten(add(add(beta, beta), add(beta, beta)));
        let x = tighten(sub::<Field, V, 4>(square::<Field, V>(alpha), add(beta4, beta4)));
        let z = sub::<Field, V, 4>(square::<Field, V>(tighten(add(y, a.z))), add(gamma, delta));
        let gamma2 = square::<Field, V>(tighten(add(gamma, gamma)));
        let y = sub::<Field, V, 4>(
            multiply::<Field, V>(alpha, sub::<Field, V, 2>(beta4, x)),
            add(gamma2, gamma2),
        );
        Point { x, y: tighten(y), z: tighten(z) }
    }
}

/// The affine coordinates, below 2.
///
/// # Safety
///
/// As [`multiply_base`].
#[inline(always)]
unsafe fn affine<V: Lanes>(point: &Point<V>) -> [Element<V>; 2] {
    // SAFETY: passed on from the caller.
    unsafe {
        let inverted = inverse::<Field, V>(point.z);
        let squared = square::<Field, V>(inverted);
        let cubed = multiply::<Field, V>(squared, inverted);
        [multiply::<Field, V>(point.x, squared), multiply::<Field, V>(point.y, cubed)]
    }
}

/// Whether affine points, below 2, are on the curve: bit by bit in lanes, then alike for all.
///
/// # Safety
///
/// As [`multiply_base`].
#[inline(always)]
pub(super) unsafe fn off_curve<V: Lanes>(x: Element<V>, y: Element<V>) -> Element<V> {
    // SAFETY: passed on from the caller.
    unsafe {
        let r2 = constant::<V>(&Field::R2);
        let b = multiply::<Field, V>(constant::<V>(&B), r2);
        let cubed = multiply::<Field, V>(square::<Field, V>(x), x);
        let right = sub::<Field, V, 6>(add(cubed, b), add(add(x, x), x));
        // As a plain number below 2.
        let difference = sub::<Field, V, 2>(right, square::<Field, V>(y));
        multiply::<Field, V>(difference, constant::<V>(&[1, 0, 0, 0, 0]))
    }
}

/// # Safety
///
/// As [`multiply_base`].
unsafe fn table() -> Box<[[Entry; ENTRIES]]> {
    // SAFETY: passed on from the caller. One lane is filled and seven go along.
    unsafe {
        let r2 = constant::<X8>(&Field::R2);
        let one = constant::<X8>(&Field::ONE);
        let base = |at: usize| multiply::<Field, X8>(constant::<X8>(&BASE[at]), r2);
        let (mut x, mut y) = (base(0), base(1));
        let mut windows = Vec::with_capacity(WINDOWS);
        for _ in 0..WINDOWS {
            let mut multiples = Vec::with_capacity(ENTRIES);
            multiples.push(Point { x, y, z: one });
            multiples.push(doubled(&multiples[0]));
            for at in 2..ENTRIES {
                multiples.push(added(&multiples[at - 1], x, y));
            }
            let next = affine(&doubled(&multiples[ENTRIES - 1]));
            let entries: Vec<Entry> = multiples
                .chunks_exact(X8::COUNT)
                .flat_map(|points| {
                    // Each in a lane of its own, to be inverted together.
                    let mut together = Point { x, y, z: one };
                    for (lane, point) in points.iter().enumerate() {
                        let pairs = [
                            (&mut together.x, &point.x),
                            (&mut together.y, &point.y),
                            (&mut together.z, &point.z),
                        ];
                        for (to, from) in pairs {
                            put(to, lane, take(from, 0));
                        }
                    }
                    let [x, y] = affine(&together);
                    (0..X8::COUNT).map(move |lane| Entry { x: take(&x, lane), y: take(&y, lane) })
                })
                .collect();
            windows.push(
                <[Entry; ENTRIES]>::try_from(entries)
                    .unwrap_or_else(|_| unreachable!("two groups of eight")),
            );
            [x, y] = next;
        }
        windows.into()
    }
}

/// A lane's number, below the prime.
fn take<V: Lanes>(element: &Element<V>, lane: usize) -> Constant {
    let mut element = *element;
    let mut digits = [0; 5];
    for (digit, vector) in digits.iter_mut().zip(&mut element) {
        *digit = lanes_of(vector)[lane];
    }
    field::reduced::<Field>(digits)
}

fn put<V: Lanes>(element: &mut Element<V>, lane: usize, digits: Constant) {
    for (digit, vector) in digits.iter().zip(element) {
        lanes_of(vector)[lane] = *digit;
    }
}
