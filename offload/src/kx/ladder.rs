//! The Montgomery ladder of X25519 (RFC 7748, section 5) in lanes: each lane has a scalar and a point
//! of its own.

use zeroize::Zeroize;

use super::field::{
    self, Element, add, add_times, multiply, select, square, sub, sum_and_difference,
};
use crate::rsa::lanes::{Lanes, lanes_of};

/// (486662 - 2) / 4.
const A24: u64 = 121_665;

/// Multiplies the point of each lane by its scalar, which is clamped here. Lanes beyond the inputs
/// compute something that nobody looks at.
///
/// # Safety
///
/// [`lanes::are_here`](crate::rsa::lanes::are_here).
#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx512f,avx512dq,avx512vl,avx512ifma"))]
pub(super) unsafe fn multiply_points<V: Lanes>(
    scalars: &[[u8; 32]],
    points: &[[u8; 32]],
    products: &mut [[u8; 32]],
) {
    assert!(scalars.len() <= V::COUNT && scalars.len() == points.len(), "a lane for each");
    // SAFETY: passed on from the caller; lanes are plain data (`Lanes`).
    unsafe {
        let zero = V::splat(0);
        // Words of 64 bits, the lowest first.
        let mut words = [zero; 4];
        let mut u: Element<V> = [zero; 5];
        load(scalars, points, &mut words, &mut u);
        words[0] = words[0].and(V::splat(!7));
        words[3] = words[3].and(V::splat(u64::MAX >> 1));
        let one: Element<V> = [V::splat(1), zero, zero, zero, zero];
        let (mut x2, mut z2, mut x3, mut z3) = (one, [zero; 5], u, one);
        // Bit 254 is set in every clamped scalar; it is taken from there and not from the words.
        let mut bit = 254;
        let mut word = words[3];
        lanes_of(&mut word).iter_mut().for_each(|word| *word |= 1 << 62);
        words[3] = word;
        // Whether the two points stand swapped.
        let mut swapped = zero;
        loop {
            let set = words[bit / 64].test(V::splat(1 << (bit % 64)));
            let now = V::select(set, zero, V::splat(1));
            // Swapped now and not before, or before and not now.
            let mask = now.add(swapped).test(V::splat(1));
            swapped = now;
            (x2, x3) = (select::<V>(mask, x2, x3), select::<V>(mask, x3, x2));
            (z2, z3) = (select::<V>(mask, z2, z3), select::<V>(mask, z3, z2));
            let (a, b) = (add(x2, z2), sub(x2, z2));
            let (c, d) = (add(x3, z3), sub(x3, z3));
            let (aa, bb) = (square(a), square(b));
            let e = sub(aa, bb);
            let (sum, difference) = sum_and_difference((d, a), (c, b));
            x3 = square(sum);
            z3 = multiply(u, square(difference));
            x2 = multiply(aa, bb);
            z2 = multiply(e, add_times(aa, e, A24));
            if bit == 0 {
                break;
            }
            bit -= 1;
        }
        // Bit 0 of a clamped scalar is 0: nothing stands swapped.
        let mut product = multiply(x2, inverse(z2));
        for (lane, bytes) in products.iter_mut().take(scalars.len()).enumerate() {
            let mut digits = [0; 5];
            for (digit, vector) in digits.iter_mut().zip(&mut product) {
                *digit = lanes_of(vector)[lane];
            }
            *bytes = field::bytes(digits);
            digits.zeroize();
        }
        for vector in words.iter_mut().chain(&mut product) {
            lanes_of(vector).zeroize();
        }
    }
}

/// Puts scalars and points into their lanes. Not part of the kernel, whose instructions a compiler
/// would gather them with.
#[inline(never)]
fn load<V: Lanes>(
    scalars: &[[u8; 32]],
    points: &[[u8; 32]],
    words: &mut [V; 4],
    u: &mut Element<V>,
) {
    for (lane, (scalar, point)) in scalars.iter().zip(points).enumerate() {
        for (word, bytes) in words.iter_mut().zip(scalar.chunks_exact(8)) {
            let bytes = bytes.try_into().expect("eight bytes");
            lanes_of(word)[lane] = u64::from_le_bytes(bytes);
        }
        for (digit, value) in u.iter_mut().zip(field::digits(point)) {
            lanes_of(digit)[lane] = value;
        }
    }
}

/// 1 / `z`, and 0 of 0: `z`^(p - 2), p - 2 = 2^255 - 21.
///
/// # Safety
///
/// As [`multiply_points`].
#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx512f,avx512dq,avx512vl,avx512ifma"))]
unsafe fn inverse<V: Lanes>(z: Element<V>) -> Element<V> {
    // SAFETY: passed on from the caller.
    unsafe {
        let z2 = square(z);
        let z9 = multiply(squares::<V>(z2, 2), z);
        let z11 = multiply(z9, z2);
        // z_n stands for z^(2^n - 1).
        let z_5 = multiply(square(z11), z9);
        let z_10 = multiply(squares::<V>(z_5, 5), z_5);
        let z_20 = multiply(squares::<V>(z_10, 10), z_10);
        let z_40 = multiply(squares::<V>(z_20, 20), z_20);
        let z_50 = multiply(squares::<V>(z_40, 10), z_10);
        let z_100 = multiply(squares::<V>(z_50, 50), z_50);
        let z_200 = multiply(squares::<V>(z_100, 100), z_100);
        let z_250 = multiply(squares::<V>(z_200, 50), z_50);
        multiply(squares::<V>(z_250, 5), z11)
    }
}

/// # Safety
///
/// As [`multiply_points`].
#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx512f,avx512dq,avx512vl,avx512ifma"))]
unsafe fn squares<V: Lanes>(mut z: Element<V>, count: usize) -> Element<V> {
    for _ in 0..count {
        // SAFETY: passed on from the caller.
        z = unsafe { square(z) };
    }
    z
}
