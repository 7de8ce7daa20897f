//! Montgomery multiplication and squaring in lanes of doubles, in radix 2^50: for processors with AVX2
//! and fused multiply-adds.
//!
//! A multiply-add that rounds once takes a product apart without loss (Emmart, Zheng, Weems: Faster
//! Modular Exponentiation Using Double Precision Floating Point Arithmetic on the GPU, 2018):
//!
//! ```text
//!   high = fma(a, b, 1.5 2^102)                            to the next multiple of 2^50
//!   low  = fma(a, b, 1.5 2^102 + 1.5 2^52 - high)          what that left: 2^49 at most, either way
//! ```
//!
//! The last places of such doubles are worth 2^50 and 1: taken as integers, their bits are the two
//! parts of the product, each plus a constant. So columns are summed up as integers. How many parts a
//! column gets is known: it starts with the negative of all their constants. That holds as long as
//! |a b| is below 2^101, and as rounding is to the nearest, which it is wherever Rust code runs.
//!
//! # Signs
//!
//! Digits of results, and multipliers, are rounded too: between -2^49 and 2^49, and a bit more for a
//! digit that a carry came to. Numbers that come from elsewhere have digits from 0 to 2^50. Multipliers
//! add n / 2 at most, either way. R is at least 64 n ([`half_len`](super::lane_key::half_len)), so that the
//! product of factors below 4 n comes to less than n / 4 before that, and a result lies between -n and n.
//!
//! # Rows in twos
//!
//! Two rows are worked on together, so that a column is loaded and stored once for two products, and
//! all of it stays in sixteen registers. Their multipliers depend on each other, and on the rows before:
//! a chain of some seventy cycles, beside which the next two rows of the other factor are added. Squares
//! take half of the products, doubled.
//!
//! A column takes 4 L parts at most, each below 2^51: below 2^60 for 84 digits.
//!
//! Nothing here depends on the numbers: no branch, no address; and no double is ever so small that a
//! processor would take longer for it.

use std::arch::x86_64::{
    __m256d, __m256i, _mm256_add_epi64, _mm256_add_pd, _mm256_and_si256, _mm256_blendv_pd,
    _mm256_castpd_si256, _mm256_castsi256_pd, _mm256_cmpeq_epi64, _mm256_fmadd_pd, _mm256_or_si256,
    _mm256_set1_epi64x, _mm256_set1_pd, _mm256_setzero_si256, _mm256_slli_epi64, _mm256_srli_epi64,
    _mm256_sub_epi64, _mm256_sub_pd,
};
use std::mem::MaybeUninit;

use super::digits::{Radix, Radix50};
use super::lane_key::WINDOW_BITS;
use super::montgomery::{Montgomery, Selection, TABLE_LEN};

/// Bits of 2^52, 1.5 2^52 and 1.5 2^102.
const INTEGER_BITS: u64 = 0x4330 << 48;
const LOW_BITS: u64 = 0x4338 << 48;
const HIGH_BITS: u64 = 0x4658 << 48;

const INTEGER: f64 = f64::from_bits(INTEGER_BITS);
const LOW: f64 = f64::from_bits(LOW_BITS);
const HIGH: f64 = f64::from_bits(HIGH_BITS);

/// What makes every column positive, and a carry round.
const OFFSET: u64 = 1 << 62;
const HALF: u64 = 1 << (Radix50::BITS - 1);

const _: () = assert!(Radix50::BITS == 50, "the shifts say so themselves: their types differ");

/// Columns of a product of the longest numbers, of RSA-4096.
const COLUMNS_MAX: usize = 2 * 84;

/// Four lanes.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct D4(__m256d);

/// Whether this processor has what the kernels are compiled for.
pub(crate) fn is_here() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")
}

// SAFETY: a vector of doubles.
unsafe impl Montgomery for D4 {
    const COUNT: usize = 4;
    type Radix = Radix50;
    const SIGNED: bool = true;
    const WINDOWS_IN_STEP: usize = 16;
    type Four = Self;

    fn to_lane(digit: u64) -> u64 {
        #[allow(clippy::cast_precision_loss, reason = "digits are far below 2^53")]
        let double = digit.cast_signed() as f64;
        double.to_bits()
    }

    fn of_lane(lane: u64) -> u64 {
        #[allow(clippy::cast_possible_truncation, reason = "digits are integers")]
        let digit = f64::from_bits(lane) as i64;
        digit.cast_unsigned()
    }

    unsafe fn multiply<const L: usize>(
        target: *mut Self,
        a: *const Self,
        b: *const Self,
        n: *const Self,
        k0: Self,
    ) {
        // SAFETY: passed on from the caller, here and below.
        unsafe {
            let start = &Start::<L>::PRODUCT;
            multiply(target.cast(), a.cast(), b.cast(), n.cast(), k0.0, start, L);
        }
    }

    unsafe fn square<const L: usize>(
        target: *mut Self,
        a: *const Self,
        n: *const Self,
        k0: Self,
        room: *mut Self,
    ) {
        // SAFETY: as above.
        unsafe {
            let start = &Start::<L>::SQUARE;
            square(target.cast(), a.cast(), n.cast(), k0.0, start, L, room.cast());
        }
    }

    unsafe fn square_and_select<const L: usize>(
        number: *mut Self,
        n: *const Self,
        k0: Self,
        room: *mut Self,
        selection: &Selection<Self>,
    ) {
        let Selection { target, table, index } = selection;
        // SAFETY: as above.
        unsafe {
            for _ in 0..WINDOW_BITS {
                Self::square::<L>(number, number, n, k0, room);
            }
            select(target.cast(), table.cast(), _mm256_castpd_si256(index.0), L);
        }
    }

    unsafe fn add<const L: usize>(target: *mut Self, a: *const Self, b: *const Self) {
        // SAFETY: as above.
        unsafe { add(target.cast(), a.cast(), b.cast(), L) };
    }
}

/// What the columns of a product of L digits, and of a square, start with.
struct Start<const L: usize>;

impl<const L: usize> Start<L> {
    const PRODUCT: [u64; COLUMNS_MAX] = Self::columns(false);
    const SQUARE: [u64; COLUMNS_MAX] = Self::columns(true);

    const fn columns(square: bool) -> [u64; COLUMNS_MAX] {
        let mut columns = [0_u64; COLUMNS_MAX];
        let mut column = 0;
        while column + 1 < 2 * L {
            // Pairs of digits whose product belongs here.
            let ordered = if column < L { column + 1 } else { 2 * L - 1 - column };
            let factors = if square { ordered.div_ceil(2) } else { ordered };
            let parts = (factors + ordered) as u64;
            columns[column] = columns[column].wrapping_sub(parts.wrapping_mul(LOW_BITS));
            columns[column + 1] = columns[column + 1].wrapping_sub(parts.wrapping_mul(HIGH_BITS));
            column += 1;
        }
        columns
    }
}

/// Columns before anybody has put something in.
type Room = MaybeUninit<[__m256i; COLUMNS_MAX]>;

/// `target` = `a` `b` / R modulo `n`. `target` may be one of the factors.
///
/// # Safety
///
/// [`is_here`]; each pointer is to `len` digits, at least five and at most half of [`COLUMNS_MAX`], as the
/// module says; `start` is for this length; `n` is odd in each lane and `k0` its
/// [`negative_inverse`](super::digits::negative_inverse).
#[target_feature(enable = "avx2,fma")]
unsafe fn multiply(
    target: *mut __m256d,
    a: *const __m256d,
    b: *const __m256d,
    n: *const __m256d,
    k0: __m256d,
    start: &[u64; COLUMNS_MAX],
    len: usize,
) {
    let mut room = Room::uninit();
    // SAFETY: as the caller promises; rows are below `len`, and columns below 2 `len`.
    unsafe {
        let columns = room.as_mut_ptr().cast();
        begin(columns, start, len);
        let add = |row: usize| {
            if row + 1 < len {
                add_rows(columns.add(row), a, len, [*b.add(row), *b.add(row + 1)]);
            } else {
                add_row(columns.add(row), a, 0, len, *b.add(row));
            }
        };
        reduce(columns, n, k0, len, add);
        normalize(target, columns.add(len), len);
    }
}

/// `target` = `a`^2 / R modulo `n`. `target` may be `a`.
///
/// # Safety
///
/// As [`multiply`]; `columns` is of 2 `len` vectors.
#[target_feature(enable = "avx2,fma")]
unsafe fn square(
    target: *mut __m256d,
    a: *const __m256d,
    n: *const __m256d,
    k0: __m256d,
    start: &[u64; COLUMNS_MAX],
    len: usize,
    columns: *mut __m256i,
) {
    // SAFETY: as the caller promises; rows are below `len`, and columns below 2 `len`.
    unsafe {
        begin(columns, start, len);
        // A product belongs to the row of its first digit: all are there before its column is reduced.
        let add = |row: usize| {
            let own = columns.add(2 * row);
            let x = *a.add(row);
            let xx = split(x, x);
            *own = sum(*own, xx.low);
            if row + 1 == len {
                *own.add(1) = sum(*own.add(1), xx.high);
                return;
            }
            let y = *a.add(row + 1);
            let twice = [_mm256_add_pd(x, x), _mm256_add_pd(y, y)];
            let (xy, yy) = (split(twice[0], y), split(y, y));
            *own.add(1) = sum(*own.add(1), sum(xx.high, xy.low));
            *own.add(2) = sum(*own.add(2), sum(xy.high, yy.low));
            *own.add(3) = sum(*own.add(3), yy.high);
            if row + 2 < len {
                add_rows(own.add(2), a.add(row + 2), len - row - 2, twice);
            }
        };
        reduce(columns, n, k0, len, add);
        normalize(target, columns.add(len), len);
    }
}

/// `target` = `a` + `b`, which fits the digits.
///
/// # Safety
///
/// As [`multiply`].
#[target_feature(enable = "avx2,fma")]
unsafe fn add(target: *mut __m256d, a: *const __m256d, b: *const __m256d, len: usize) {
    // SAFETY: as the caller promises.
    unsafe {
        let mut room = Room::uninit();
        let columns = room.as_mut_ptr().cast::<__m256i>();
        for digit in 0..len {
            let double = _mm256_add_pd(*a.add(digit), *b.add(digit));
            let bits = _mm256_castpd_si256(_mm256_add_pd(double, _mm256_set1_pd(LOW)));
            columns.add(digit).write(_mm256_sub_epi64(bits, splat(LOW_BITS)));
        }
        normalize(target, columns, len);
    }
}

/// Digits of the entry of `table` that each lane of `index` names; every entry is read.
///
/// # Safety
///
/// [`is_here`]; 32 entries of `len` digits one after the other, as many of target; indices below 32.
#[target_feature(enable = "avx2,fma")]
unsafe fn select(target: *mut __m256d, table: *const __m256d, index: __m256i, len: usize) {
    const LEAVES: usize = 8;
    // SAFETY: as the caller promises.
    unsafe {
        let mut bits = [_mm256_set1_pd(0.0); WINDOW_BITS];
        let mut bit = 0;
        while bit < WINDOW_BITS {
            let one = splat(1 << bit);
            bits[bit] = _mm256_castsi256_pd(_mm256_cmpeq_epi64(_mm256_and_si256(index, one), one));
            bit += 1;
        }
        for digit in 0..len {
            let mut branches = [_mm256_set1_pd(0.0); TABLE_LEN / LEAVES];
            let mut branch = 0;
            while branch < TABLE_LEN / LEAVES {
                let entry = |leaf: usize| *table.add((branch * LEAVES + leaf) * len + digit);
                let a = _mm256_blendv_pd(entry(0), entry(1), bits[0]);
                let b = _mm256_blendv_pd(entry(2), entry(3), bits[0]);
                let c = _mm256_blendv_pd(entry(4), entry(5), bits[0]);
                let d = _mm256_blendv_pd(entry(6), entry(7), bits[0]);
                let (ab, cd) = (_mm256_blendv_pd(a, b, bits[1]), _mm256_blendv_pd(c, d, bits[1]));
                branches[branch] = _mm256_blendv_pd(ab, cd, bits[2]);
                branch += 1;
            }
            let [a, b, c, d] = branches;
            let (ab, cd) = (_mm256_blendv_pd(a, b, bits[3]), _mm256_blendv_pd(c, d, bits[3]));
            *target.add(digit) = _mm256_blendv_pd(ab, cd, bits[4]);
        }
    }
}

/// Both parts of a product, as the module says; `high` is worth 2^50.
struct Parts {
    high: __m256i,
    low: __m256i,
}

/// # Safety
///
/// [`is_here`], as for all functions from here on.
#[inline(always)]
unsafe fn split(a: __m256d, b: __m256d) -> Parts {
    // SAFETY: passed on from the caller.
    unsafe {
        let high = _mm256_fmadd_pd(a, b, _mm256_set1_pd(HIGH));
        let low = _mm256_fmadd_pd(a, b, _mm256_sub_pd(_mm256_set1_pd(HIGH + LOW), high));
        Parts { high: _mm256_castpd_si256(high), low: _mm256_castpd_si256(low) }
    }
}

#[inline(always)]
unsafe fn sum(a: __m256i, b: __m256i) -> __m256i {
    // SAFETY: passed on from the caller.
    unsafe { _mm256_add_epi64(a, b) }
}

#[inline(always)]
unsafe fn splat(value: u64) -> __m256i {
    // SAFETY: passed on from the caller.
    unsafe { _mm256_set1_epi64x(value.cast_signed()) }
}

/// What a column has for the next, which leaves the digit nearest to 0.
#[inline(always)]
unsafe fn carry(column: __m256i) -> __m256i {
    // SAFETY: passed on from the caller. AVX2 has no shift of 64 bits that keeps the sign.
    unsafe {
        let positive = _mm256_srli_epi64::<50>(sum(column, splat(OFFSET + HALF)));
        _mm256_sub_epi64(positive, splat(OFFSET >> Radix50::BITS))
    }
}

/// How often `n` is to be added for the digit of this column to become 0.
///
/// The constants that the column still waits for end in more than fifty zeros: they make no
/// difference to its digit.
#[inline(always)]
unsafe fn multiplier(column: __m256i, k0: __m256d) -> __m256d {
    const { assert!(LOW_BITS.trailing_zeros() >= 50 && HIGH_BITS.trailing_zeros() >= 50) };
    // SAFETY: passed on from the caller.
    unsafe {
        let digit = _mm256_and_si256(column, splat(Radix50::MAX));
        let digit = _mm256_castsi256_pd(_mm256_or_si256(digit, splat(INTEGER_BITS)));
        let digit = _mm256_sub_pd(digit, _mm256_set1_pd(INTEGER));
        // The low part of the product, as a double.
        let high = _mm256_fmadd_pd(digit, k0, _mm256_set1_pd(HIGH));
        _mm256_fmadd_pd(digit, k0, _mm256_sub_pd(_mm256_set1_pd(HIGH), high))
    }
}

/// Gives 2 `len` columns what they start with.
#[inline(always)]
unsafe fn begin(columns: *mut __m256i, start: &[u64; COLUMNS_MAX], len: usize) {
    for (column, value) in start[..2 * len].iter().enumerate() {
        // SAFETY: as the caller promises: as many columns.
        unsafe { columns.add(column).write(splat(*value)) };
    }
}

/// Adds rows two by two, by `add` (the last alone, if `len` is odd), and as many rows of `n`, which make
/// the lower `len` columns 0. While multipliers are computed, the next rows are added.
#[inline(always)]
unsafe fn reduce(
    columns: *mut __m256i,
    n: *const __m256d,
    k0: __m256d,
    len: usize,
    add: impl Fn(usize),
) {
    // SAFETY: as the caller promises: `len` digits, and 2 `len` columns.
    unsafe {
        add(0);
        let mut reduction = Reduction::new(columns, n, k0);
        let mut row = 2;
        while row + 1 < len {
            add(row);
            reduction.apply(columns.add(row - 2), n, len);
            reduction = Reduction::new(columns.add(row), n, k0);
            row += 2;
        }
        if row < len {
            add(row);
        }
        reduction.apply(columns.add(row - 2), n, len);
        if row < len {
            reduce_row(columns.add(row), n, k0, len);
        }
    }
}

/// Two rows of `n` that make the two lowest columns 0.
struct Reduction {
    m: [__m256d; 2],
    /// High parts that the next column gets.
    high: [__m256i; 2],
    to_next: __m256i,
}

impl Reduction {
    #[inline(always)]
    unsafe fn new(columns: *const __m256i, n: *const __m256d, k0: __m256d) -> Self {
        // SAFETY: passed on from the caller.
        unsafe {
            let [n0, n1] = [*n, *n.add(1)];
            let m0 = multiplier(*columns, k0);
            let (first, second) = (split(n0, m0), split(n1, m0));
            let to_next = carry(sum(*columns, first.low));
            let column = sum(sum(*columns.add(1), first.high), sum(to_next, second.low));
            let m1 = multiplier(column, k0);
            let other = split(n0, m1);
            let to_next = carry(sum(column, other.low));
            Self { m: [m0, m1], high: [second.high, other.high], to_next }
        }
    }

    /// Adds them to the columns behind.
    #[inline(always)]
    unsafe fn apply(self, columns: *mut __m256i, n: *const __m256d, len: usize) {
        // SAFETY: as the caller promises: `len` digits, and two columns more.
        unsafe {
            let next = columns.add(2);
            *next = sum(*next, self.to_next);
            let rows = Rows { b: self.m, near: *n.add(1), high: self.high };
            rows.add_to(columns, n, 2, len).end(columns.add(len));
        }
    }
}

/// Adds one row of `n`, which makes the lowest column 0.
#[inline(always)]
unsafe fn reduce_row(columns: *mut __m256i, n: *const __m256d, k0: __m256d, len: usize) {
    // SAFETY: as the caller promises: `len` digits, and a column more.
    unsafe {
        let m = multiplier(*columns, k0);
        let lowest = split(*n, m);
        let to_next = carry(sum(*columns, lowest.low));
        *columns.add(1) = sum(*columns.add(1), sum(lowest.high, to_next));
        add_row(columns, n, 1, len, m);
    }
}

/// Two rows that are being added.
struct Rows {
    b: [__m256d; 2],
    /// The digit that the second row has yet to be multiplied by.
    near: __m256d,
    /// High parts of the column before.
    high: [__m256i; 2],
}

impl Rows {
    /// Goes on with the digits of `x` from `from` to `to`.
    #[inline(always)]
    unsafe fn add_to(
        self,
        columns: *mut __m256i,
        x: *const __m256d,
        from: usize,
        to: usize,
    ) -> Self {
        let Self { b, mut near, mut high } = self;
        for digit in from..to {
            // SAFETY: passed on from the caller.
            unsafe {
                let next = *x.add(digit);
                let (first, second) = (split(next, b[0]), split(near, b[1]));
                let column = columns.add(digit);
                let before = sum(sum(*column, high[0]), high[1]);
                *column = sum(before, sum(first.low, second.low));
                (near, high) = (next, [first.high, second.high]);
            }
        }
        Self { b, near, high }
    }

    /// Adds what is left to the two columns behind the digits.
    #[inline(always)]
    unsafe fn end(self, end: *mut __m256i) {
        let Self { b, near, high } = self;
        // SAFETY: passed on from the caller.
        unsafe {
            let last = split(near, b[1]);
            *end = sum(sum(*end, high[0]), sum(high[1], last.low));
            *end.add(1) = sum(*end.add(1), last.high);
        }
    }
}

/// Adds two rows: `len` digits of `x`, at least one, times each of `b`, the second a column farther.
#[inline(always)]
unsafe fn add_rows(columns: *mut __m256i, x: *const __m256d, len: usize, b: [__m256d; 2]) {
    // SAFETY: as the caller promises: `len` digits, and two columns more.
    unsafe {
        let first = split(*x, b[0]);
        *columns = sum(*columns, first.low);
        let rows = Rows { b, near: *x, high: [first.high, _mm256_setzero_si256()] };
        rows.add_to(columns, x, 1, len).end(columns.add(len));
    }
}

/// Adds digits of `x` from `from` to `len` times `b`, in one row.
#[inline(always)]
unsafe fn add_row(columns: *mut __m256i, x: *const __m256d, from: usize, len: usize, b: __m256d) {
    // SAFETY: as the caller promises: `len` digits, and a column more.
    unsafe {
        let mut high = _mm256_setzero_si256();
        for digit in from..len {
            let parts = split(*x.add(digit), b);
            let column = columns.add(digit);
            *column = sum(sum(*column, high), parts.low);
            high = parts.high;
        }
        *columns.add(len) = sum(*columns.add(len), high);
    }
}

/// Digits of columns, each with what the one before has for it. The number fits the digits.
#[inline(always)]
unsafe fn normalize(target: *mut __m256d, columns: *const __m256i, len: usize) {
    // SAFETY: as the caller promises: as many columns as digits of target.
    unsafe {
        let mut carried = _mm256_setzero_si256();
        for digit in 0..len {
            let mut column = *columns.add(digit);
            let mut to_next = _mm256_setzero_si256();
            if digit + 1 < len {
                to_next = carry(column);
                column = _mm256_sub_epi64(column, _mm256_slli_epi64::<50>(to_next));
            }
            let bits = sum(sum(column, carried), splat(LOW_BITS));
            *target.add(digit) = _mm256_sub_pd(_mm256_castsi256_pd(bits), _mm256_set1_pd(LOW));
            carried = to_next;
        }
    }
}
