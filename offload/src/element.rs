//! Field elements of five digits in lanes: what both curves share. Each digit is below 2^52, in whatever
//! radix.

use crate::rsa::lanes::Lanes;

/// A number in each lane.
pub(crate) type Element<V> = [V; 5];

/// The columns of a product that are not added up yet: sums of the low halves of products of digits,
/// and of the high halves, which count one digit more.
pub(crate) struct Columns<V> {
    pub(crate) low: [V; 9],
    pub(crate) high: [V; 9],
}

/// # Safety
///
/// [`lanes::are_here`](crate::rsa::lanes::are_here), as for all functions here.
#[inline(always)]
pub(crate) unsafe fn multiply<V: Lanes>(a: Element<V>, b: Element<V>) -> Columns<V> {
    // SAFETY: passed on from the caller.
    unsafe {
        let zero = V::splat(0);
        let (mut low, mut high) = ([zero; 9], [zero; 9]);
        let mut i = 0;
        while i < 5 {
            let mut j = 0;
            while j < 5 {
                low[i + j] = low[i + j].mul_lo(a[i], b[j]);
                high[i + j] = high[i + j].mul_hi(a[i], b[j]);
                j += 1;
            }
            i += 1;
        }
        Columns { low, high }
    }
}

/// # Safety
///
/// As [`multiply`].
#[inline(always)]
pub(crate) unsafe fn square<V: Lanes>(a: Element<V>) -> Columns<V> {
    // SAFETY: passed on from the caller.
    unsafe {
        let zero = V::splat(0);
        let (mut low, mut high) = ([zero; 9], [zero; 9]);
        let mut i = 0;
        while i < 5 {
            let mut j = i + 1;
            while j < 5 {
                low[i + j] = low[i + j].mul_lo(a[i], a[j]);
                high[i + j] = high[i + j].mul_hi(a[i], a[j]);
                j += 1;
            }
            i += 1;
        }
        let mut column = 0;
        while column < 9 {
            low[column] = low[column].add(low[column]);
            high[column] = high[column].add(high[column]);
            if column % 2 == 0 {
                let own = a[column / 2];
                low[column] = low[column].mul_lo(own, own);
                high[column] = high[column].mul_hi(own, own);
            }
            column += 1;
        }
        Columns { low, high }
    }
}

/// `one` where the mask is set, else `zero`.
///
/// # Safety
///
/// As [`multiply`].
#[inline(always)]
pub(crate) unsafe fn select<V: Lanes>(
    mask: V::Mask,
    zero: Element<V>,
    one: Element<V>,
) -> Element<V> {
    // SAFETY: passed on from the caller.
    unsafe {
        [
            V::select(mask, zero[0], one[0]),
            V::select(mask, zero[1], one[1]),
            V::select(mask, zero[2], one[2]),
            V::select(mask, zero[3], one[3]),
            V::select(mask, zero[4], one[4]),
        ]
    }
}
