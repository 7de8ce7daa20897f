//! Vectors of 64-bit lanes with the multiply-add of 52 bits: what the kernels are written in.
//!
//! A lane holds a digit of one number, and lanes never meet: eight numbers are computed with at
//! once. The methods are inlined into kernels that are compiled for the vector's instructions.

#[cfg(not(target_arch = "x86_64"))]
pub(crate) use portable::{X4, X8};
#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{X4, X8};

/// Whether this processor has what the kernels are compiled for.
pub(crate) fn are_here() -> bool {
    #[cfg(target_arch = "x86_64")]
    let here = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512ifma");
    #[cfg(not(target_arch = "x86_64"))]
    let here = false;
    here
}

/// Whether the kernels can be run with the portable vectors: on x86-64 they are compiled for
/// AVX-512, whichever vectors they are given.
#[cfg(test)]
pub(crate) fn kernels_run() -> bool {
    let run = cfg!(not(target_arch = "x86_64")) || are_here();
    if !run {
        warpcore_need::skipped("this processor has no AVX-512 IFMA");
    }
    run
}

/// A vector of lanes of 64 bits.
///
/// # Safety
///
/// The implementor is `COUNT` times 64 bits of plain data, lane after lane.
///
/// Each method may be called only where [`are_here`] is true.
#[allow(clippy::missing_safety_doc, reason = "the condition of all of them is the trait's")]
pub(crate) unsafe trait Lanes: Copy + Send + 'static {
    /// Lanes in a vector.
    const COUNT: usize;
    /// A bit for each lane.
    type Mask: Copy;

    /// `value` in each lane.
    unsafe fn splat(value: u64) -> Self;
    /// `self` plus the low 52 bits of the products of the low 52 bits of `a` and `b`.
    unsafe fn mul_lo(self, a: Self, b: Self) -> Self;
    /// `self` plus the high 52 bits of them.
    unsafe fn mul_hi(self, a: Self, b: Self) -> Self;
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn and(self, other: Self) -> Self;
    /// What lies above the digit.
    unsafe fn carry(self) -> Self;
    /// What lies above the digit, of a number with a sign.
    unsafe fn carry_signed(self) -> Self;
    /// What lies above the first 51 bits.
    unsafe fn carry_51(self) -> Self;
    /// The low 64 bits of the products.
    unsafe fn mul(self, other: Self) -> Self;
    /// Lanes that have a bit in common with `bits`.
    unsafe fn test(self, bits: Self) -> Self::Mask;
    /// Lanes that have the same number.
    unsafe fn equals(self, other: Self) -> Self::Mask;
    /// `one` where the mask is set, else `zero`.
    unsafe fn select(mask: Self::Mask, zero: Self, one: Self) -> Self;
}

/// The lanes of a vector, to be put in and taken out.
pub(crate) fn lanes_of<V: Lanes>(vector: &mut V) -> &mut [u64] {
    // SAFETY: a vector is COUNT times 64 bits of plain data (`Lanes`), and any bits are a vector.
    unsafe { std::slice::from_raw_parts_mut(std::ptr::from_mut(vector).cast(), V::COUNT) }
}

/// AVX-512 with multiply-adds of 52 bits.
#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m256i, __m512i, __mmask8, _mm256_add_epi64, _mm256_and_si256, _mm256_cmpeq_epi64_mask,
        _mm256_madd52hi_epu64, _mm256_madd52lo_epu64, _mm256_mask_blend_epi64, _mm256_mullo_epi64,
        _mm256_set1_epi64x, _mm256_srai_epi64, _mm256_srli_epi64, _mm256_sub_epi64,
        _mm256_test_epi64_mask, _mm512_add_epi64, _mm512_and_si512, _mm512_cmpeq_epi64_mask,
        _mm512_madd52hi_epu64, _mm512_madd52lo_epu64, _mm512_mask_blend_epi64, _mm512_mullo_epi64,
        _mm512_set1_epi64, _mm512_srai_epi64, _mm512_srli_epi64, _mm512_sub_epi64,
        _mm512_test_epi64_mask,
    };

    use super::Lanes;
    use crate::rsa::digits::{Radix, Radix52};

    /// Eight lanes.
    #[derive(Clone, Copy)]
    #[repr(transparent)]
    pub(crate) struct X8(__m512i);

    /// Four lanes.
    #[derive(Clone, Copy)]
    #[repr(transparent)]
    pub(crate) struct X4(__m256i);

    macro_rules! lanes {
        (
            $name:ident, $count:literal, $splat:ident, $mul_lo:ident, $mul_hi:ident, $add:ident,
            $sub:ident, $and:ident, $right:ident, $right_signed:ident, $mul:ident, $test:ident,
            $equals:ident, $select:ident
        ) => {
            // SAFETY: a vector of integers.
            unsafe impl Lanes for $name {
                const COUNT: usize = $count;
                type Mask = __mmask8;

                #[inline(always)]
                unsafe fn splat(value: u64) -> Self {
                    // SAFETY: here and below, the instructions are there (the trait's condition).
                    unsafe { Self($splat(value.cast_signed())) }
                }

                #[inline(always)]
                unsafe fn mul_lo(self, a: Self, b: Self) -> Self {
                    // SAFETY: as above.
                    unsafe { Self($mul_lo(self.0, a.0, b.0)) }
                }

                #[inline(always)]
                unsafe fn mul_hi(self, a: Self, b: Self) -> Self {
                    // SAFETY: as above.
                    unsafe { Self($mul_hi(self.0, a.0, b.0)) }
                }

                #[inline(always)]
                unsafe fn add(self, other: Self) -> Self {
                    // SAFETY: as above.
                    unsafe { Self($add(self.0, other.0)) }
                }

                #[inline(always)]
                unsafe fn sub(self, other: Self) -> Self {
                    // SAFETY: as above.
                    unsafe { Self($sub(self.0, other.0)) }
                }

                #[inline(always)]
                unsafe fn carry_signed(self) -> Self {
                    // SAFETY: as above.
                    unsafe { Self($right_signed::<52>(self.0)) }
                }

                #[inline(always)]
                unsafe fn equals(self, other: Self) -> Self::Mask {
                    // SAFETY: as above.
                    unsafe { $equals(self.0, other.0) }
                }

                #[inline(always)]
                unsafe fn carry_51(self) -> Self {
                    // SAFETY: as above.
                    unsafe { Self($right::<51>(self.0)) }
                }

                #[inline(always)]
                unsafe fn mul(self, other: Self) -> Self {
                    // SAFETY: as above.
                    unsafe { Self($mul(self.0, other.0)) }
                }

                #[inline(always)]
                unsafe fn and(self, other: Self) -> Self {
                    // SAFETY: as above.
                    unsafe { Self($and(self.0, other.0)) }
                }

                #[inline(always)]
                unsafe fn carry(self) -> Self {
                    // SAFETY: as above.
                    unsafe { Self($right::<52>(self.0)) }
                }

                #[inline(always)]
                unsafe fn test(self, bits: Self) -> Self::Mask {
                    // SAFETY: as above.
                    unsafe { $test(self.0, bits.0) }
                }

                #[inline(always)]
                unsafe fn select(mask: Self::Mask, zero: Self, one: Self) -> Self {
                    // SAFETY: as above.
                    unsafe { Self($select(mask, zero.0, one.0)) }
                }
            }
        };
    }

    const _: () = assert!(Radix52::BITS == 52, "the shifts say so themselves: their types differ");

    lanes! {
        X8, 8, _mm512_set1_epi64, _mm512_madd52lo_epu64, _mm512_madd52hi_epu64, _mm512_add_epi64,
        _mm512_sub_epi64, _mm512_and_si512, _mm512_srli_epi64, _mm512_srai_epi64,
        _mm512_mullo_epi64, _mm512_test_epi64_mask, _mm512_cmpeq_epi64_mask,
        _mm512_mask_blend_epi64
    }
    lanes! {
        X4, 4, _mm256_set1_epi64x, _mm256_madd52lo_epu64, _mm256_madd52hi_epu64, _mm256_add_epi64,
        _mm256_sub_epi64, _mm256_and_si256, _mm256_srli_epi64, _mm256_srai_epi64,
        _mm256_mullo_epi64, _mm256_test_epi64_mask, _mm256_cmpeq_epi64_mask,
        _mm256_mask_blend_epi64
    }
}

/// The same in plain arithmetic: for other processors, on which nobody calls it, and as the
/// reference of the tests.
#[cfg(any(test, not(target_arch = "x86_64")))]
pub(crate) mod portable {
    use super::Lanes;
    use crate::rsa::digits::{Radix, Radix52};

    /// Eight lanes.
    #[cfg(not(target_arch = "x86_64"))]
    pub(crate) type X8 = Portable<8>;
    /// Four lanes.
    pub(crate) type X4 = Portable<4>;

    /// Lanes side by side.
    #[derive(Clone, Copy)]
    #[repr(transparent)]
    pub(crate) struct Portable<const N: usize>([u64; N]);

    impl<const N: usize> Portable<N> {
        fn with(self, other: Self, work: impl Fn(u64, u64) -> u64) -> Self {
            Self(std::array::from_fn(|lane| work(self.0[lane], other.0[lane])))
        }

        fn product(a: u64, b: u64) -> u128 {
            u128::from(a & Radix52::MAX) * u128::from(b & Radix52::MAX)
        }
    }

    // SAFETY: an array of integers; the methods ask for nothing.
    unsafe impl<const N: usize> Lanes for Portable<N> {
        const COUNT: usize = N;
        type Mask = [bool; N];

        unsafe fn splat(value: u64) -> Self {
            Self([value; N])
        }

        unsafe fn mul_lo(self, a: Self, b: Self) -> Self {
            let low = |a, b| {
                let bits = Self::product(a, b) & u128::from(Radix52::MAX);
                u64::try_from(bits).expect("masked to 52 bits")
            };
            self.with(a.with(b, low), u64::wrapping_add)
        }

        unsafe fn mul_hi(self, a: Self, b: Self) -> Self {
            let high = |a, b| {
                u64::try_from(Self::product(a, b) >> Radix52::BITS).expect("52 bits are left")
            };
            self.with(a.with(b, high), u64::wrapping_add)
        }

        unsafe fn add(self, other: Self) -> Self {
            self.with(other, u64::wrapping_add)
        }

        unsafe fn sub(self, other: Self) -> Self {
            self.with(other, u64::wrapping_sub)
        }

        unsafe fn and(self, other: Self) -> Self {
            self.with(other, |a, b| a & b)
        }

        unsafe fn mul(self, other: Self) -> Self {
            self.with(other, u64::wrapping_mul)
        }

        unsafe fn carry(self) -> Self {
            self.with(self, |a, _| a >> Radix52::BITS)
        }

        unsafe fn carry_signed(self) -> Self {
            self.with(self, |a, _| (a.cast_signed() >> Radix52::BITS).cast_unsigned())
        }

        unsafe fn equals(self, other: Self) -> Self::Mask {
            std::array::from_fn(|lane| self.0[lane] == other.0[lane])
        }

        unsafe fn carry_51(self) -> Self {
            self.with(self, |a, _| a >> 51)
        }

        unsafe fn test(self, bits: Self) -> Self::Mask {
            std::array::from_fn(|lane| self.0[lane] & bits.0[lane] != 0)
        }

        unsafe fn select(mask: Self::Mask, zero: Self, one: Self) -> Self {
            Self(std::array::from_fn(|lane| if mask[lane] { one.0[lane] } else { zero.0[lane] }))
        }
    }
}
