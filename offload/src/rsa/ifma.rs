//! Montgomery multiplication and squaring in lanes, in radix 2^52, by AVX-512 IFMA.
//!
//! Numbers are arrays of `L` digits, each digit a vector with one number's digit in each lane. The
//! products are *almost* reduced (Gueron, Krasnov: Software Implementation of Modular
//! Exponentiation, Using Advanced Vector Instructions Architectures, 2012): with R = 2^(52 L) and
//! factors whose product is below R n, the result is below 2 n, so that nothing needs to be
//! subtracted between the steps of an exponentiation. All digits of a result are below 2^52.
//!
//! # Rows in fives
//!
//! Five digits of the second factor (five *rows*) are worked on together:
//!
//! ```text
//!   column c of the sum += lo(a[c-r] b[r]) + hi(a[c-r-1] b[r])    for r = 0 .. 5
//!                        + lo(n[c-r] m[r]) + hi(n[c-r-1] m[r])
//! ```
//!
//! so that an accumulator is loaded and stored once for twenty multiply-adds, and six digits each of
//! `a` and `n` slide through registers. The five multipliers m make the five lowest columns 0; they
//! depend on each other, so whatever does not depend on the last one is added first. The chain of
//! one group is short enough that the processor computes it while it is still busy with the
//! columns of the group before.
//!
//! Squares take half of the products, doubled: off-diagonal products are summed up by groups of
//! rows; the ten columns that no later group touches are doubled there and get their squares on the
//! way. Then n is added, by rows in fives as above.
//!
//! Multiply-adds: 4 L^2 + L for a product, 3 L^2 + 2 L for a square. A column takes at most 4 L
//! products below 2^52: below 2^61 for 80 digits.
//!
//! Nothing here depends on the numbers: no branch, no address.
//!
//! Loops over five rows are written with `while`: the compiler unrolls these, so that all of it
//! stays in registers, and not all of those over ranges.

use super::digits::{Radix, Radix52};
use super::lane_key::WINDOW_BITS;
use super::lanes::{Lanes, X4};
use super::montgomery::{Montgomery, Selection, TABLE_LEN};

/// Rows that are worked on together; divides every `L`.
const ROWS: usize = 5;

// SAFETY: lanes are plain data (`Lanes`).
unsafe impl<V: Lanes> Montgomery for V {
    const COUNT: usize = <V as Lanes>::COUNT;
    type Radix = Radix52;
    const SIGNED: bool = false;
    const WINDOWS_IN_STEP: usize = 20;
    type Four = X4;

    fn to_lane(digit: u64) -> u64 {
        digit
    }

    fn of_lane(lane: u64) -> u64 {
        lane
    }

    unsafe fn multiply<const L: usize>(
        target: *mut V,
        a: *const V,
        b: *const V,
        n: *const V,
        k0: V,
    ) {
        // SAFETY: passed on from the caller, here and below.
        unsafe { multiply::<V, L>(target, a, b, n, k0) };
    }

    unsafe fn square<const L: usize>(
        target: *mut V,
        a: *const V,
        n: *const V,
        k0: V,
        room: *mut V,
    ) {
        // SAFETY: as above.
        unsafe { square::<V, L>(target, a, n, k0, room) };
    }

    unsafe fn square_and_select<const L: usize>(
        number: *mut V,
        n: *const V,
        k0: V,
        room: *mut V,
        selection: &Selection<V>,
    ) {
        for fifth in 0..WINDOW_BITS {
            // SAFETY: as above.
            unsafe { square_and_select::<V, L>(number, n, k0, room, selection, fifth) };
        }
    }

    unsafe fn add<const L: usize>(target: *mut V, a: *const V, b: *const V) {
        // SAFETY: as above.
        unsafe { add::<V, L>(target, a, b) };
    }
}

/// `target` = `a` `b` / R modulo `n`. `target` may be one of the factors.
///
/// # Safety
///
/// [`lanes::are_here`](super::lanes::are_here); each pointer is to `L` vectors; `L` is a multiple of
/// five and at least ten; digits are below 2^52; `n` is odd in each lane and `k0` its
/// [`negative_inverse`](super::digits::negative_inverse).
#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx512f,avx512dq,avx512vl,avx512ifma"))]
unsafe fn multiply<V: Lanes, const L: usize>(
    target: *mut V,
    a: *const V,
    b: *const V,
    n: *const V,
    k0: V,
) {
    const { assert!(L.is_multiple_of(ROWS) && L >= 2 * ROWS, "rows come in fives") };
    // SAFETY: as the caller promises; every index is below L.
    unsafe {
        let mut sum = [V::splat(0); L];
        for group in (0..L).step_by(ROWS) {
            let rows = std::array::from_fn(|row| *b.add(group + row));
            multiply_rows::<V, L>(&mut sum, a, n, k0, &rows);
        }
        normalize::<V, L>(target, sum.as_ptr());
    }
}

/// `target` = `a`^2 / R modulo `n`. `target` may be `a`.
///
/// # Safety
///
/// As [`multiply`]; `room` is of 2 L vectors.
#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx512f,avx512dq,avx512vl,avx512ifma"))]
unsafe fn square<V: Lanes, const L: usize>(
    target: *mut V,
    a: *const V,
    n: *const V,
    k0: V,
    room: *mut V,
) {
    // SAFETY: passed on from the caller.
    unsafe { square_and::<V, L>(target, a, n, k0, room, || ()) };
}

/// Squares `number`, and on the way does a fifth of a [`Selection`]: `which` of five. The multiply-adds
/// keep one half of the vector units busy, and hardly load; selecting does nothing but load.
///
/// # Safety
///
/// As [`square`] and [`Selection`].
#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx512f,avx512dq,avx512vl,avx512ifma"))]
unsafe fn square_and_select<V: Lanes, const L: usize>(
    number: *mut V,
    n: *const V,
    k0: V,
    room: *mut V,
    selection: &Selection<V>,
    which: usize,
) {
    // SAFETY: passed on from the caller; digits are below L. There are 2 L / 5 groups of rows, and
    // L / 5 digits in a fifth.
    unsafe {
        let bits = selection.bits();
        let end = L / 5 * (which + 1);
        let mut digit = L / 5 * which;
        square_and::<V, L>(number, number, n, k0, room, || {
            if digit < end {
                selection.select::<L>(&bits, digit);
                digit += 1;
            }
        });
    }
}

/// A square, with something else done after each group of rows.
///
/// # Safety
///
/// As [`square`].
#[inline(always)]
unsafe fn square_and<V: Lanes, const L: usize>(
    target: *mut V,
    a: *const V,
    n: *const V,
    k0: V,
    room: *mut V,
    mut aside: impl FnMut(),
) {
    const { assert!(L.is_multiple_of(ROWS) && L >= 2 * ROWS, "rows come in fives") };
    // SAFETY: as the caller promises; every index is below L, in `room` below 2 L.
    unsafe {
        square_rows::<V, L, FIRST>(room, a, 0);
        aside();
        for group in (ROWS..L - ROWS).step_by(ROWS) {
            square_rows::<V, L, MIDDLE>(room, a, group);
            aside();
        }
        square_rows::<V, L, LAST>(room, a, L - ROWS);
        aside();
        for group in (0..L).step_by(ROWS) {
            reduce_rows::<V, L>(room.add(group), n, k0);
            aside();
        }
        normalize::<V, L>(target, room.add(L));
    }
}

impl<V: Lanes> Selection<V> {
    /// # Safety
    ///
    /// [`lanes::are_here`](super::lanes::are_here).
    #[inline(always)]
    unsafe fn bits(&self) -> [V::Mask; 5] {
        // SAFETY: passed on from the caller.
        unsafe {
            [
                self.index.test(V::splat(1)),
                self.index.test(V::splat(2)),
                self.index.test(V::splat(4)),
                self.index.test(V::splat(8)),
                self.index.test(V::splat(16)),
            ]
        }
    }

    /// Selects one digit.
    ///
    /// # Safety
    ///
    /// As [`bits`](Self::bits); target and every entry of the table have the digit.
    #[inline(always)]
    unsafe fn select<const L: usize>(&self, bits: &[V::Mask; 5], digit: usize) {
        // SAFETY: passed on from the caller.
        unsafe {
            // Two trees, one after the other, so that neither fills the registers; written without
            // closures: they would not be compiled for the vectors.
            let mut halves = [self.index; 2];
            let mut half = 0;
            while half < 2 {
                let mut entries = [self.index; TABLE_LEN / 2];
                let mut at = 0;
                while at < TABLE_LEN / 2 {
                    entries[at] = *self.table.add((half * TABLE_LEN / 2 + at) * L + digit);
                    at += 1;
                }
                let (mut bit, mut len) = (0, TABLE_LEN / 4);
                while len > 0 {
                    let mut at = 0;
                    while at < len {
                        entries[at] = V::select(bits[bit], entries[2 * at], entries[2 * at + 1]);
                        at += 1;
                    }
                    bit += 1;
                    len /= 2;
                }
                halves[half] = entries[0];
                half += 1;
            }
            *self.target.add(digit) = V::select(bits[4], halves[0], halves[1]);
        }
    }
}

/// `target` = `a` + `b`, which fits L digits.
///
/// # Safety
///
/// As [`multiply`].
#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx512f,avx512dq,avx512vl,avx512ifma"))]
unsafe fn add<V: Lanes, const L: usize>(target: *mut V, a: *const V, b: *const V) {
    // SAFETY: as the caller promises; every index is below L.
    unsafe {
        let sum: [V; L] = std::array::from_fn(|at| (*a.add(at)).add(*b.add(at)));
        normalize::<V, L>(target, sum.as_ptr());
    }
}

/// Adds `ROWS` rows of `a` `b` and as many of `n`, and shifts the sum down by as many digits.
///
/// # Safety
///
/// As [`multiply`].
#[inline(always)]
unsafe fn multiply_rows<V: Lanes, const L: usize>(
    sum: &mut [V; L],
    a: *const V,
    n: *const V,
    k0: V,
    b: &[V; ROWS],
) {
    // SAFETY: as the caller promises; every index is below L.
    unsafe {
        let zero = V::splat(0);
        let [a_low, n_low]: [[V; ROWS]; 2] = [a, n].map(|x| std::array::from_fn(|at| *x.add(at)));
        let mut m = [zero; ROWS];
        let mut carry = zero;
        // The columns that become 0.
        let mut column = 0;
        while column < ROWS {
            let (mut x, mut y) = (sum[column], zero);
            let mut row = 0;
            while row <= column {
                x = x.mul_lo(a_low[column - row], b[row]);
                if row < column {
                    y = y.mul_hi(a_low[column - row - 1], b[row]);
                }
                row += 1;
            }
            (m[column], carry) = multiplier(x.add(y), zero, carry, &n_low, &m, column, k0);
            column += 1;
        }
        // Digits column, column - 1, ... of both.
        let mut a_near = [zero, a_low[4], a_low[3], a_low[2], a_low[1], a_low[0]];
        let mut n_near = [zero, n_low[4], n_low[3], n_low[2], n_low[1], n_low[0]];
        for column in ROWS..L {
            (a_near[0], n_near[0]) = (*a.add(column), *n.add(column));
            // Four chains, so that the latency of one is hidden by the others.
            let (mut w, mut x, mut y, mut z) = (sum[column], zero, carry, zero);
            let mut row = 0;
            while row < ROWS {
                w = w.mul_lo(a_near[row], b[row]);
                x = x.mul_hi(a_near[row + 1], b[row]);
                y = y.mul_lo(n_near[row], m[row]);
                z = z.mul_hi(n_near[row + 1], m[row]);
                row += 1;
            }
            sum[column - ROWS] = w.add(x).add(y.add(z));
            carry = zero;
            (a_near, n_near) = (slide(zero, a_near), slide(zero, n_near));
        }
        // The columns above the digits, which start from nothing.
        for above in 0..ROWS {
            let (mut x, mut y) = (zero, zero);
            for row in 0..ROWS {
                if row > above {
                    x = x.mul_lo(a_near[row - above], b[row]);
                    x = x.mul_lo(n_near[row - above], m[row]);
                }
                if row >= above {
                    y = y.mul_hi(a_near[row + 1 - above], b[row]);
                    y = y.mul_hi(n_near[row + 1 - above], m[row]);
                }
            }
            sum[L - ROWS + above] = x.add(y);
        }
    }
}

/// `column` of the lowest five: x + y so far, without what `n` and the last multiplier add. Returns
/// its multiplier, and what goes to the next column.
///
/// # Safety
///
/// As [`Lanes`].
#[inline(always)]
unsafe fn multiplier<V: Lanes>(
    mut x: V,
    mut y: V,
    carry: V,
    n: &[V; ROWS],
    m: &[V; ROWS],
    column: usize,
    k0: V,
) -> (V, V) {
    // SAFETY: passed on from the caller.
    unsafe {
        let zero = V::splat(0);
        let mut row = 0;
        while row + 1 < column {
            x = x.mul_lo(n[column - row], m[row]);
            y = y.mul_hi(n[column - row - 1], m[row]);
            row += 1;
        }
        let mut lowest = x.add(y);
        if column > 0 {
            lowest = lowest.mul_lo(n[1], m[column - 1]);
            lowest = lowest.add(zero.mul_hi(n[0], m[column - 1])).add(carry);
        }
        let multiplier = zero.mul_lo(lowest, k0);
        (multiplier, lowest.mul_lo(n[0], multiplier).carry())
    }
}

#[inline(always)]
fn slide<V: Copy>(next: V, near: [V; ROWS + 1]) -> [V; ROWS + 1] {
    // Written out: a loop would become a copy in memory.
    [next, near[0], near[1], near[2], near[3], near[4]]
}

/// Digits below 2^52 of columns. The number fits L digits.
///
/// # Safety
///
/// As [`multiply`].
#[inline(always)]
unsafe fn normalize<V: Lanes, const L: usize>(target: *mut V, columns: *const V) {
    // SAFETY: as the caller promises; every index is below L.
    unsafe {
        let mask = V::splat(Radix52::MAX);
        let mut carry = V::splat(0);
        for column in 0..L {
            let sum = (*columns.add(column)).add(carry);
            *target.add(column) = sum.and(mask);
            carry = sum.carry();
        }
    }
}

/// Which group of rows of a square it is: the first finds nothing in the room, the last has no
/// digits behind its own.
const FIRST: u8 = 0;
const MIDDLE: u8 = 1;
const LAST: u8 = 2;

/// Adds the products of five digits, from `group` on, with all that follow, and finishes the ten
/// columns that no later group adds to.
///
/// # Safety
///
/// As [`square`].
#[inline(always)]
unsafe fn square_rows<V: Lanes, const L: usize, const WHICH: u8>(
    room: *mut V,
    a: *const V,
    group: usize,
) {
    // SAFETY: as the caller promises; every index is below L, in `room` below 2 L.
    unsafe {
        let zero = V::splat(0);
        let last = WHICH == LAST;
        let a_low: [V; 2 * ROWS] =
            std::array::from_fn(|at| if last && at >= ROWS { zero } else { *a.add(group + at) });
        let b = &a_low[..ROWS];
        for column in 0..2 * ROWS {
            let empty = WHICH == FIRST || last && column >= ROWS;
            let place = room.add(2 * group + column);
            let (mut x, mut y) = (if empty { zero } else { *place }, zero);
            let mut row = 0;
            while row < ROWS {
                // The other digit comes after this one, and in the last group is one of its own.
                let other = |column: usize| {
                    column.checked_sub(row).filter(|at| *at > row && !(last && *at >= ROWS))
                };
                if let Some(at) = other(column) {
                    x = x.mul_lo(a_low[at], b[row]);
                }
                if let Some(at) = column.checked_sub(1).and_then(other) {
                    y = y.mul_hi(a_low[at], b[row]);
                }
                row += 1;
            }
            let sum = x.add(y);
            let doubled = sum.add(sum);
            let own = b[column / 2];
            *place = match column % 2 {
                0 => doubled.mul_lo(own, own),
                _ => doubled.mul_hi(own, own),
            };
        }
        if last {
            return;
        }
        let mut near = [zero, a_low[9], a_low[8], a_low[7], a_low[6], a_low[5]];
        for column in group + 2 * ROWS..L {
            near[0] = *a.add(column);
            let place = room.add(group + column);
            let (mut x, mut y) = (if WHICH == FIRST { zero } else { *place }, zero);
            let mut row = 0;
            while row < ROWS {
                x = x.mul_lo(near[row], b[row]);
                y = y.mul_hi(near[row + 1], b[row]);
                row += 1;
            }
            *place = x.add(y);
            near = slide(zero, near);
        }
        // Nobody was here before.
        for above in 0..ROWS {
            let (mut x, mut y) = (zero, zero);
            for row in above..ROWS {
                if row > above {
                    x = x.mul_lo(near[row - above], b[row]);
                }
                y = y.mul_hi(near[row + 1 - above], b[row]);
            }
            *room.add(group + L + above) = x.add(y);
        }
    }
}

/// Adds five rows of `n`, which make the five lowest columns 0.
///
/// # Safety
///
/// As [`square`]; `columns` is of L + 5 vectors.
#[inline(always)]
unsafe fn reduce_rows<V: Lanes, const L: usize>(columns: *mut V, n: *const V, k0: V) {
    // SAFETY: as the caller promises; every index is below L, in `columns` below L + 5.
    unsafe {
        let zero = V::splat(0);
        let n_low: [V; ROWS] = std::array::from_fn(|at| *n.add(at));
        let mut m = [zero; ROWS];
        let mut carry = zero;
        for column in 0..ROWS {
            let sum = *columns.add(column);
            (m[column], carry) = multiplier(sum, zero, carry, &n_low, &m, column, k0);
        }
        let mut near = [zero, n_low[4], n_low[3], n_low[2], n_low[1], n_low[0]];
        for column in ROWS..L {
            near[0] = *n.add(column);
            let (mut x, mut y) = (*columns.add(column), carry);
            let mut row = 0;
            while row < ROWS {
                x = x.mul_lo(near[row], m[row]);
                y = y.mul_hi(near[row + 1], m[row]);
                row += 1;
            }
            *columns.add(column) = x.add(y);
            carry = zero;
            near = slide(zero, near);
        }
        for above in 0..ROWS {
            let (mut x, mut y) = (*columns.add(L + above), zero);
            for row in above..ROWS {
                if row > above {
                    x = x.mul_lo(near[row - above], m[row]);
                }
                y = y.mul_hi(near[row + 1 - above], m[row]);
            }
            *columns.add(L + above) = x.add(y);
        }
    }
}
