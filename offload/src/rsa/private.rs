//! Private operations of several keys at once: the two primes of a key are two lanes.
//!
//! ```text
//!   full width, a lane a signature        half width, two lanes a signature
//!
//!   blind: m r^e mod n  ───────────────>  mod p, mod q; table of 32 powers
//!                                         five squarings and a product for each window of
//!                                         d mod (p-1), d mod (q-1)                  <- step
//!   s' = s_q + q h  <───────────────────  h = (s_p - s_q) q^-1 mod p   (Garner)
//!   unblind: s' r^-1 mod n
//!   verify: s^e = m, before it leaves
//! ```
//!
//! An exponentiation yields between windows: [`Batch::step`] does some, for about 50 us. Lanes without
//! a signature compute with the modulus 1. Everything that depends on a key lies in the batch's room
//! and is wiped when the batch ends.

use std::sync::Arc;

use super::blinding::{Blinding, PAIRS};
use super::digits::{self, Digits, Radix};
use super::encode::Salts;
#[cfg(target_arch = "x86_64")]
use super::fma::D4;
use super::key::PrivateKey;
use super::lane_key::{LaneKey, Modulus, half_len, windows};
use super::lanes::{X4, X8};
use super::montgomery::{Montgomery, Selection, TABLE_LEN, Unit};
use crate::error::Error;
use crate::wipe::burn_stack;
use num_bigint::BigUint;

/// The most signatures of a batch: the primes of four keys fill eight lanes.
pub(crate) const SIGNATURES_MAX: usize = 4;

/// A number to raise to a key's private exponent: below the modulus, big-endian, as long as it.
pub(crate) struct Input<'a> {
    pub(crate) key: Arc<PrivateKey>,
    pub(crate) number: &'a [u8],
}

/// Lanes for keys of one size. Made once and used for batch after batch.
pub(crate) trait Batch: Send {
    /// Starts with up to [`Batch::room`] numbers, each with its key's blinding.
    fn start(&mut self, inputs: &[Input<'_>], blindings: &mut [Blinding], which: &[usize]);

    /// Goes on for some windows. True: [`finish`](Self::finish) is next.
    fn step(&mut self) -> bool;

    /// Writes results, as long as their moduli. A result that is wrong is not written, and says so.
    fn finish(&mut self, results: &mut [&mut [u8]]) -> [Result<(), Error>; SIGNATURES_MAX];

    /// The most signatures at a time.
    fn room(&self) -> usize;

    /// Pairs of `key`, drawn anew.
    fn draw_blinding(&mut self, key: &LaneKey, salts: &mut Salts) -> Result<Blinding, Error>;
}

/// A batch for keys of `modulus_len_bytes`; `wide`: of four signatures, else of two. None where there
/// are no lanes, or for other lengths.
pub(crate) fn batch(modulus_len_bytes: usize, wide: bool) -> Option<Box<dyn Batch>> {
    Some(match (Unit::here()?, modulus_len_bytes, wide) {
        (Unit::Integers, 128, false) => Box::new(Private::<X4, 10, 20>::new()),
        (Unit::Integers, 128, true) => Box::new(Private::<X8, 10, 20>::new()),
        (Unit::Integers, 256, false) => Box::new(Private::<X4, 20, 40>::new()),
        (Unit::Integers, 256, true) => Box::new(Private::<X8, 20, 40>::new()),
        (Unit::Integers, 384, false) => Box::new(Private::<X4, 30, 60>::new()),
        (Unit::Integers, 384, true) => Box::new(Private::<X8, 30, 60>::new()),
        (Unit::Integers, 512, false) => Box::new(Private::<X4, 40, 80>::new()),
        (Unit::Integers, 512, true) => Box::new(Private::<X8, 40, 80>::new()),
        #[cfg(target_arch = "x86_64")]
        (Unit::Doubles, 128, false) => Box::new(Private::<D4, 11, 22>::new()),
        #[cfg(target_arch = "x86_64")]
        (Unit::Doubles, 256, false) => Box::new(Private::<D4, 21, 42>::new()),
        #[cfg(target_arch = "x86_64")]
        (Unit::Doubles, 384, false) => Box::new(Private::<D4, 31, 62>::new()),
        #[cfg(target_arch = "x86_64")]
        (Unit::Doubles, 512, false) => Box::new(Private::<D4, 42, 84>::new()),
        _ => return None,
    })
}

/// `V` holds the halves of `L` digits; four lanes the whole numbers of `M` = 2 `L`.
struct Private<V: Montgomery, const L: usize, const M: usize> {
    keys: [Option<Arc<PrivateKey>>; SIGNATURES_MAX],
    half: Ring<V, L>,
    full: Ring<V::Four, M>,
    /// R^3 of the primes; q^-1 R.
    r3: Number<V, L>,
    q_inverse: Number<V, L>,
    /// Entries of L digits, one after the other.
    table: Vec<V>,
    power: Number<V, L>,
    factor: Number<V, L>,
    /// A digit of the exponent for each window, the highest first.
    windows: Vec<V>,
    /// The next window.
    window: usize,
    /// What must come out of the public operation.
    expected: Number<V::Four, M>,
    /// The inverse factors of the blinding, for afterwards.
    inverse: Number<V::Four, M>,
    whole: Number<V::Four, M>,
    base: Number<V::Four, M>,
}

/// A number in each lane. Wiped when it is dropped.
#[derive(Clone)]
struct Number<V: Montgomery, const L: usize>(Box<[V; L]>);

/// Arithmetic modulo a number in each lane.
struct Ring<V: Montgomery, const L: usize> {
    n: Number<V, L>,
    k0: V,
    r2: Number<V, L>,
    one: Number<V, L>,
    /// Room for squares.
    room: Vec<V>,
}

impl<V: Montgomery, const L: usize> Number<V, L> {
    fn zero() -> Self {
        // SAFETY: lanes are plain data (`Montgomery`): all zeros is a vector of zeros.
        Self(vec![unsafe { std::mem::zeroed::<V>() }; L].try_into().ok().expect("L vectors"))
    }

    fn lanes(&self) -> &[u64] {
        // SAFETY: a vector is COUNT times 64 bits of plain data (`Montgomery`).
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), L * V::COUNT) }
    }

    fn lanes_mut(&mut self) -> &mut [u64] {
        lanes_mut(self.0.as_mut_slice())
    }

    fn put(&mut self, lane: usize, digits: &[u64]) {
        for (place, digit) in self.lanes_mut()[lane..].iter_mut().step_by(V::COUNT).zip(digits) {
            *place = V::to_lane(*digit);
        }
    }

    fn get(&self, lane: usize) -> Digits {
        let digits = self.lanes()[lane..].iter().step_by(V::COUNT);
        Digits::new(digits.map(|digit| V::of_lane(*digit)).collect())
    }

    fn ptr(&self) -> *const V {
        self.0.as_ptr()
    }
}

impl<V: Montgomery, const L: usize> Drop for Number<V, L> {
    fn drop(&mut self) {
        wipe(&mut *self.0);
    }
}

/// Wipes vectors, whole ones at a time: `zeroize` goes by words, and a batch has 60 KiB to wipe.
fn wipe<V: Montgomery>(vectors: &mut [V]) {
    lanes_mut(vectors).fill(0);
    // SAFETY: does nothing, to memory that the compiler must take for read: so the zeros are
    // written.
    unsafe {
        std::arch::asm!("/* {0} */", in(reg) vectors.as_ptr(), options(nostack, preserves_flags));
    }
}

fn lanes_mut<V: Montgomery>(vectors: &mut [V]) -> &mut [u64] {
    // SAFETY: a vector is COUNT times 64 bits of plain data (`Montgomery`), and any bits are a vector.
    unsafe { std::slice::from_raw_parts_mut(vectors.as_mut_ptr().cast(), vectors.len() * V::COUNT) }
}

impl<V: Montgomery, const L: usize> Ring<V, L> {
    fn new() -> Self {
        let zero = Number::<V, L>::zero();
        let mut one = zero.clone();
        one.lanes_mut()[..V::COUNT].fill(V::to_lane(1));
        let mut ring = Self { n: zero.clone(), k0: zero.0[0], r2: zero, one, room: Vec::new() };
        ring.room = vec![ring.k0; 2 * L];
        ring.clear();
        ring
    }

    /// Each lane has the modulus 1.
    fn clear(&mut self) {
        self.n.0.copy_from_slice(&*self.one.0);
        lanes_mut(std::slice::from_mut(&mut self.k0)).fill(V::to_lane(V::Radix::MAX));
        wipe(&mut *self.r2.0);
        wipe(&mut self.room);
    }

    fn set(&mut self, lane: usize, modulus: &Modulus) {
        self.n.put(lane, &modulus.digits);
        self.r2.put(lane, &modulus.r2);
        lanes_mut(std::slice::from_mut(&mut self.k0))[lane] = V::to_lane(modulus.k0);
    }

    /// `target` = `a` `b` / R.
    fn multiply(&self, target: &mut Number<V, L>, a: &Number<V, L>, b: &Number<V, L>) {
        // SAFETY: only made where the lanes are (`batch`); numbers have L vectors, whose digits come
        // from `put` and from the kernels; moduli are odd, with their inverse beside them.
        unsafe {
            V::multiply::<L>(target.0.as_mut_ptr(), a.ptr(), b.ptr(), self.n.ptr(), self.k0);
        }
    }

    /// `number` = `number` `b` / R.
    fn multiply_by(&self, number: &mut Number<V, L>, b: &Number<V, L>) {
        let target = number.0.as_mut_ptr();
        // SAFETY: as above; the target may be a factor.
        unsafe { V::multiply::<L>(target, target, b.ptr(), self.n.ptr(), self.k0) };
    }

    /// `number` = `number`^2 / R.
    fn square(&mut self, number: &mut Number<V, L>) {
        let (target, room) = (number.0.as_mut_ptr(), self.room.as_mut_ptr());
        // SAFETY: as above; the room is of 2 L.
        unsafe { V::square::<L>(target, target, self.n.ptr(), self.k0, room) };
    }

    /// Digits of a lane, below its modulus; the number was almost reduced.
    fn reduced(&self, number: &Number<V, L>, lane: usize) -> Digits {
        let mut digits = number.get(lane);
        let modulus = self.n.get(lane);
        if V::SIGNED {
            digits::add_signed::<V::Radix>(&mut digits, &modulus);
        }
        digits::subtract_once::<V::Radix>(&mut digits, &modulus);
        digits
    }

    /// `number` = `number`^exponent R, for exponents that are public; from the number itself.
    fn public_power(&mut self, number: &mut Number<V, L>, exponents: &[u64]) {
        self.multiply_by(number, &self.r2);
        let base = number.clone();
        let top = exponents.iter().fold(1, |all, exponent| all | exponent).ilog2();
        if exponents.iter().all(|exponent| *exponent == exponents[0]) {
            for bit in (0..top).rev() {
                self.square(number);
                if exponents[0] >> bit & 1 == 1 {
                    self.multiply_by(number, &base);
                }
            }
            return;
        }
        let mut one = self.one.clone();
        self.multiply_by(&mut one, &self.r2);
        let bits = |bit: u32| exponents.iter().map(move |exponent| exponent >> bit & 1 == 1);
        // Lanes whose exponent is shorter start at 1.
        let mut factor = one.clone();
        for (lane, set) in bits(top).enumerate() {
            number.put(lane, &if set { base.get(lane) } else { one.get(lane) });
        }
        for bit in (0..top).rev() {
            self.square(number);
            if bits(bit).any(|set| set) {
                for (lane, set) in bits(bit).enumerate() {
                    factor.put(lane, &if set { base.get(lane) } else { one.get(lane) });
                }
                self.multiply_by(number, &factor);
            }
        }
    }
}

impl<V: Montgomery, const L: usize, const M: usize> Private<V, L, M> {
    /// Windows in a step: about 50 us, by the square of the length.
    const STEP: usize = V::WINDOWS_IN_STEP * 400 / (L * L);
    /// Half of the modulus' bits: ten digits, and a part of one, for each 512.
    const WINDOWS: usize = windows(L / 10 * 512);

    fn new() -> Self {
        const {
            assert!(M == 2 * L && V::COUNT <= 2 * SIGNATURES_MAX, "two halves are a whole");
            assert!(V::Four::COUNT == SIGNATURES_MAX, "a lane for each whole");
        }
        let (half, full) = (Number::<V, L>::zero(), Number::<V::Four, M>::zero());
        Self {
            keys: Default::default(),
            half: Ring::new(),
            full: Ring::new(),
            r3: half.clone(),
            q_inverse: half.clone(),
            table: vec![half.0[0]; TABLE_LEN * L],
            power: half.clone(),
            factor: half.clone(),
            windows: vec![half.0[0]; Self::WINDOWS],
            window: 0,
            expected: full.clone(),
            inverse: full.clone(),
            whole: full.clone(),
            base: full,
        }
    }

    fn lane_key(&self, signature: usize) -> Option<&LaneKey> {
        self.keys[signature].as_ref().and_then(|key| key.lanes())
    }

    fn exponents(&self) -> [u64; SIGNATURES_MAX] {
        // Lanes without a signature go along with the first.
        let first = self.lane_key(0).map_or(1, |key| key.exponent);
        std::array::from_fn(|signature| self.lane_key(signature).map_or(first, |key| key.exponent))
    }

    /// Wipes what depends on keys, and what kernels have left on this stack.
    fn clear(&mut self) {
        burn_stack();
        self.keys = Default::default();
        self.half.clear();
        self.full.clear();
        wipe(&mut self.table);
        for number in [&mut self.r3, &mut self.q_inverse, &mut self.power, &mut self.factor] {
            wipe(&mut *number.0);
        }
        for number in [&mut self.expected, &mut self.inverse, &mut self.whole, &mut self.base] {
            wipe(&mut *number.0);
        }
        wipe(&mut self.windows);
    }
}

impl<V: Montgomery, const L: usize, const M: usize> Drop for Private<V, L, M> {
    /// A batch may end without its signatures.
    fn drop(&mut self) {
        self.clear();
    }
}

impl<V: Montgomery, const L: usize, const M: usize> Batch for Private<V, L, M> {
    fn start(&mut self, inputs: &[Input<'_>], blindings: &mut [Blinding], which: &[usize]) {
        assert!(inputs.len() <= self.room(), "more signatures than lanes");
        let mut pairs = [0; SIGNATURES_MAX];
        let mut factor = Number::<V::Four, M>::zero();
        for (index, input) in inputs.iter().enumerate() {
            self.keys[index] = Some(Arc::clone(&input.key));
            let key = input.key.lanes().expect("the caller asks only with keys for lanes");
            assert_eq!(half_len::<V::Radix>(input.key.modulus_len_bytes()), L, "keys of one size");
            assert_eq!(key.radix_bits, V::Radix::BITS, "keys for these lanes");
            self.full.set(index, &key.n);
            for (lane, prime) in [(2 * index, &key.p), (2 * index + 1, &key.q)] {
                self.half.set(lane, &prime.modulus);
                self.r3.put(lane, &prime.r3);
                let windows = lanes_mut(&mut self.windows);
                for (place, window) in
                    windows[lane..].iter_mut().step_by(V::COUNT).zip(prime.windows.iter())
                {
                    *place = (*window).into();
                }
            }
            self.q_inverse.put(2 * index, &key.q_inverse);
            let mut digits = Digits::new(vec![0; M]);
            digits::read::<V::Radix>(input.number, &mut digits);
            self.expected.put(index, &digits);
            let (pair, (power, inverse)) = blindings[which[index]].take();
            pairs[index] = pair;
            factor.put(index, power);
            self.inverse.put(index, inverse);
        }
        self.full.multiply(&mut self.whole, &self.expected, &factor);
        // The next use has the squares.
        let mut inverse = self.inverse.clone();
        self.full.square(&mut factor);
        self.full.square(&mut inverse);
        for index in 0..inputs.len() {
            let pair = blindings[which[index]].replace(pairs[index]);
            *pair = (factor.get(index), inverse.get(index));
        }

        // x = low + high R: its residue times R is low R^2 / R + high R^3 / R.
        for index in 0..inputs.len() {
            let digits = self.whole.get(index);
            for lane in [2 * index, 2 * index + 1] {
                self.power.put(lane, &digits[..L]);
                self.factor.put(lane, &digits[L..]);
            }
        }
        self.half.multiply_by(&mut self.power, &self.half.r2);
        self.half.multiply_by(&mut self.factor, &self.r3);
        let (sum, high) = (self.power.0.as_mut_ptr(), self.factor.ptr());
        // SAFETY: as in `Ring::multiply`; four times the modulus fits L digits.
        unsafe { V::add::<L>(sum, sum, high) };
        // The powers from 0 to 31, by squares where that goes.
        let first = self.power.clone();
        self.factor.0.copy_from_slice(&*self.half.one.0);
        self.half.multiply_by(&mut self.factor, &self.half.r2);
        self.put_entry(0);
        self.power.0.copy_from_slice(&*self.factor.0);
        self.factor.0.copy_from_slice(&*first.0);
        self.put_entry(1);
        for entry in 2..TABLE_LEN {
            if entry.is_multiple_of(2) {
                self.get_entry(entry / 2);
                self.half.square(&mut self.factor);
            } else {
                self.half.multiply_by(&mut self.factor, &first);
            }
            self.put_entry(entry);
        }
        self.window = 0;
    }

    fn step(&mut self) -> bool {
        let end = (self.window + Self::STEP.max(1)).min(Self::WINDOWS);
        while self.window < end {
            // From 1, the first time: as every other.
            self.do_window();
        }
        end == Self::WINDOWS
    }

    fn finish(&mut self, results: &mut [&mut [u8]]) -> [Result<(), Error>; SIGNATURES_MAX] {
        self.half.multiply_by(&mut self.power, &self.half.one);
        let count = results.len();
        wipe(&mut *self.factor.0);
        let mut residues = Vec::with_capacity(count);
        for index in 0..count {
            let of_p = self.half.reduced(&self.power, 2 * index);
            let of_q = self.half.reduced(&self.power, 2 * index + 1);
            // s_p - s_q + 2 p is above 0 and below 4 p, with digits that may borrow.
            let mut difference = of_p;
            for (digit, subtrahend) in difference.iter_mut().zip(of_q.iter()) {
                *digit = digit.wrapping_sub(*subtrahend);
            }
            let p = self.half.n.get(2 * index);
            let twice = Digits::new(p.iter().map(|digit| 2 * digit).collect());
            digits::add_signed::<V::Radix>(&mut difference, &twice);
            self.factor.put(2 * index, &difference);
            residues.push(of_q);
        }
        self.half.multiply_by(&mut self.factor, &self.q_inverse);
        let mut whole = Digits::new(vec![0; M]);
        for (index, of_q) in residues.iter().enumerate() {
            let h = self.half.reduced(&self.factor, 2 * index);
            digits::multiply_add::<V::Radix>(&self.half.n.get(2 * index + 1), &h, of_q, &mut whole);
            self.whole.put(index, &whole);
        }
        self.full.multiply_by(&mut self.whole, &self.inverse);
        for index in 0..count {
            let reduced = self.full.reduced(&self.whole, index);
            self.whole.put(index, &reduced);
        }
        self.base = self.whole.clone();
        let exponents = self.exponents();
        self.full.public_power(&mut self.base, &exponents);
        self.full.multiply_by(&mut self.base, &self.full.one);
        let mut ends = [const { Err(Error::Sign) }; SIGNATURES_MAX];
        for (index, result) in results.iter_mut().enumerate() {
            if self.full.reduced(&self.base, index) == self.expected.get(index) {
                digits::write::<V::Radix>(&self.whole.get(index), result);
                ends[index] = Ok(());
            }
        }
        self.clear();
        ends
    }

    fn room(&self) -> usize {
        V::COUNT / 2
    }

    fn draw_blinding(&mut self, key: &LaneKey, salts: &mut Salts) -> Result<Blinding, Error> {
        let blinding = self.blinding(key, salts);
        self.full.clear();
        blinding
    }
}

impl<V: Montgomery, const L: usize, const M: usize> Private<V, L, M> {
    /// A window: five squares, and on the way its factor, the entry of the table that its digit of
    /// the exponent names.
    fn do_window(&mut self) {
        let (target, index) = (self.factor.0.as_mut_ptr(), self.windows[self.window]);
        let selection = Selection { target, table: self.table.as_ptr(), index };
        let (power, room) = (self.power.0.as_mut_ptr(), self.half.room.as_mut_ptr());
        let (n, k0) = (self.half.n.ptr(), self.half.k0);
        // SAFETY: as in `Ring::square`; 32 entries of L digits, and indices are five bits.
        unsafe { V::square_and_select::<L>(power, n, k0, room, &selection) };
        self.half.multiply_by(&mut self.power, &self.factor);
        self.window += 1;
    }

    /// Puts `factor` into the table.
    fn put_entry(&mut self, entry: usize) {
        self.table[entry * L..][..L].copy_from_slice(&*self.factor.0);
    }

    /// Gets an entry of the table into `factor`.
    fn get_entry(&mut self, entry: usize) {
        self.factor.0.copy_from_slice(&self.table[entry * L..][..L]);
    }

    fn blinding(&mut self, key: &LaneKey, salts: &mut Salts) -> Result<Blinding, Error> {
        let len_bytes = M / 20 * 128;
        self.full.clear();
        // r^e in one lane, r^-1 in another.
        (0..2).for_each(|lane| self.full.set(lane, &key.n));
        let n = BigUint::from_bytes_be(&bytes_of::<V::Radix>(&key.n.digits, len_bytes));
        for _ in 0..16 {
            let [r, z] = [salts.number(len_bytes)?, salts.number(len_bytes)?]
                .map(|bytes| digits::from_bytes::<V::Radix>(&bytes, M));
            let mut number = Number::zero();
            let mut mask = Number::zero();
            number.put(0, &r);
            mask.put(0, &z);
            // r z modulo n is as random as z is: what the inversion's time tells is nothing of r.
            self.full.multiply_by(&mut number, &self.full.r2);
            self.full.multiply_by(&mut number, &mask);
            let product = self.full.reduced(&number, 0);
            let product = BigUint::from_bytes_be(&bytes_of::<V::Radix>(&product, len_bytes));
            let Some(inverse) = product.modinv(&n) else { continue };
            // r^-1 = (r z)^-1 z.
            wipe(&mut *number.0);
            number.put(1, &digits::from_bytes::<V::Radix>(&inverse.to_bytes_be(), M));
            self.full.multiply_by(&mut number, &self.full.r2);
            wipe(&mut *mask.0);
            mask.put(1, &z);
            self.full.multiply_by(&mut number, &mask);
            let inverse = number.get(1);
            // Lane 0 is raised to e, lane 1 to 1: both times R by that.
            number.put(0, &r);
            number.put(1, &inverse);
            self.full.public_power(&mut number, &[key.exponent, 1]);
            // Odd powers: no square of one is a square of another.
            let mut squared = number.clone();
            self.full.square(&mut squared);
            let pairs: [(Digits, Digits); PAIRS] = std::array::from_fn(|_| {
                let pair = (number.get(0), number.get(1));
                self.full.multiply_by(&mut number, &squared);
                pair
            });
            return Ok(Blinding::new(pairs, key));
        }
        Err(Error::Sign)
    }
}

fn bytes_of<R: Radix>(digits: &[u64], len_bytes: usize) -> zeroize::Zeroizing<Vec<u8>> {
    let mut bytes = zeroize::Zeroizing::new(vec![0; len_bytes]);
    digits::write::<R>(digits, &mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use rustls_pki_types::PrivatePkcs8KeyDer;

    use proptest::prelude::*;

    use super::*;
    use crate::rsa::Numbers;
    use crate::rsa::lane_key::Modulus;
    use crate::rsa::lanes::{self, portable};
    use num_bigint::BigInt;

    fn key() -> Arc<PrivateKey> {
        let der = include_bytes!("../backend/conformance_key.der").as_slice();
        Arc::new(PrivateKey::from_der(&PrivatePkcs8KeyDer::from(der).into()).expect("a good key"))
    }

    /// The key with other numbers, in the radix of these vectors.
    fn key_of<V: Montgomery>(key: &PrivateKey, numbers: &[u8]) -> Arc<PrivateKey> {
        let lane_key = LaneKey::new::<V::Radix>(key.public(), numbers).expect("a good key");
        Arc::new(key.with_lanes(lane_key))
    }

    fn crt_numbers(key: &PrivateKey) -> &[u8] {
        let Numbers::Crt(numbers) = key.numbers() else { panic!("its primes are known") };
        numbers
    }

    fn has_integers() -> bool {
        let here = lanes::are_here();
        if !here {
            warpcore_need::skipped("in part: this processor has no AVX-512 IFMA");
        }
        here
    }

    #[cfg(target_arch = "x86_64")]
    fn has_doubles() -> bool {
        let here = crate::rsa::fma::is_here();
        if !here {
            warpcore_need::skipped("in part: this processor has no AVX2 and FMA");
        }
        here
    }

    /// Numbers at both ends of what there is, and some between.
    fn numbers(key: &PrivateKey) -> Vec<Vec<u8>> {
        let modulus = BigUint::from_bytes_be(key.public().modulus());
        let some = BigUint::from_bytes_be(&[0x5a; 255]);
        [BigUint::from(0_u8), BigUint::from(1_u8), &modulus - 1_u8, some]
            .iter()
            .map(|number| {
                let bytes = number.to_bytes_be();
                [vec![0; 256 - bytes.len()], bytes].concat()
            })
            .collect()
    }

    /// The last of the numbers, which are the most telling.
    fn last_numbers(key: &PrivateKey, count: usize) -> Vec<Vec<u8>> {
        numbers(key).split_off(SIGNATURES_MAX - count)
    }

    /// Starts with numbers, lets `meddle` with the batch, and returns how they end. The key has these
    /// `crt` numbers.
    fn run<V: Montgomery, const L: usize, const M: usize>(
        crt: &[u8],
        numbers: &[Vec<u8>],
        meddle: impl FnOnce(&mut Private<V, L, M>),
    ) -> Vec<(Result<(), Error>, Vec<u8>)> {
        let key = key_of::<V>(&key(), crt);
        let mut batch = Private::<V, L, M>::new();
        let lanes = key.lanes().expect("a key for lanes");
        let blinding = batch.draw_blinding(lanes, &mut Salts::new()).expect("drawn");
        let inputs: Vec<_> =
            numbers.iter().map(|number| Input { key: Arc::clone(&key), number }).collect();
        batch.start(&inputs, &mut [blinding], &vec![0; inputs.len()]);
        meddle(&mut batch);
        while !batch.step() {}
        let mut results = vec![vec![0; 256]; inputs.len()];
        let mut targets: Vec<_> = results.iter_mut().map(Vec::as_mut_slice).collect();
        let ends = batch.finish(&mut targets);
        assert!(batch.power.lanes().iter().all(|digit| *digit == 0), "wiped");
        ends.into_iter().zip(results).collect()
    }

    fn powers<V: Montgomery, const L: usize, const M: usize>(count: usize) {
        let key = key();
        let numbers = last_numbers(&key, count);
        let ends = run::<V, L, M>(crt_numbers(&key), &numbers, |_| {});
        assert_eq!(ends.len(), count);
        for ((end, result), number) in ends.into_iter().zip(numbers) {
            assert_eq!(end, Ok(()));
            assert!(key.public().maps(&result, &number));
        }
    }

    #[test]
    fn powers_are_those_of_the_reference() {
        if has_integers() {
            powers::<X8, 20, 40>(4);
            powers::<X4, 20, 40>(1);
            powers::<X4, 20, 40>(2);
            // What other processors would do.
            powers::<portable::X4, 20, 40>(2);
        }
        #[cfg(target_arch = "x86_64")]
        if has_doubles() {
            powers::<D4, 21, 42>(1);
            powers::<D4, 21, 42>(2);
        }
    }

    /// The number that digits, which may have signs, make.
    fn big<R: Radix>(digits: &[u64]) -> BigInt {
        let zero = BigInt::ZERO;
        digits.iter().rev().fold(zero, |sum, digit| (sum << R::BITS) + digit.cast_signed())
    }

    fn digits_of<V: Montgomery, const L: usize>(number: &BigUint) -> Digits {
        digits::from_bytes::<V::Radix>(&number.to_bytes_be(), L)
    }

    /// Odd moduli of so many bits, among them those whose digits are all ones or almost all zeros.
    fn moduli(bits: usize, random: &[u8]) -> Vec<BigUint> {
        let top = BigUint::from(1_u8) << (bits - 1);
        let any = |at: usize| {
            let bytes: Vec<u8> = random.iter().cycle().skip(at).take(bits / 8).copied().collect();
            BigUint::from_bytes_be(&bytes) | &top | BigUint::from(1_u8)
        };
        vec![
            (&top << 1_u8) - 1_u8,
            &top + 1_u8,
            (BigUint::from(1_u8) << 52) - 1_u8,
            &top + (BigUint::from(1_u8) << (bits / 2)) - 1_u8,
            any(0),
            any(1),
            any(2),
            any(3),
        ]
    }

    /// The ring, and a window, of each lane, against the reference.
    fn check<V: Montgomery, const L: usize, const M: usize>(random: &[u8]) {
        let moduli = moduli(L / 10 * 512, random);
        let r = BigUint::from(1_u8) << (V::Radix::BITS * L);
        let inverse = |n: &BigUint| r.modinv(n).expect("moduli are odd");
        let mut batch = Private::<V, L, M>::new();
        let mut a = Number::<V, L>::zero();
        let mut b = a.clone();
        // Almost reduced: below twice the modulus.
        let number = |n: &BigUint, at: usize| match at % 6 {
            0 => BigUint::ZERO,
            1 => BigUint::from(1_u8),
            2 => n - 1_u8,
            3 => n.clone(),
            4 => n * 2_u8 - 1_u8,
            _ => {
                let bytes: Vec<u8> =
                    random.iter().cycle().skip(at).take(V::Radix::BITS * L / 8).copied().collect();
                BigUint::from_bytes_be(&bytes) % (n * 2_u8)
            }
        };
        for round in 0..36 {
            let lanes = || (0..V::COUNT).map(|lane| &moduli[(lane + round) % moduli.len()]);
            for (lane, n) in lanes().enumerate() {
                let modulus = Modulus::new::<V::Radix>(digits_of::<V, L>(n)).expect("odd");
                batch.half.set(lane, &modulus);
                a.put(lane, &digits_of::<V, L>(&number(n, round)));
                b.put(lane, &digits_of::<V, L>(&number(n, round / 6 + lane)));
            }
            let mut product = a.clone();
            batch.half.multiply(&mut product, &a, &b);
            let mut squared = a.clone();
            batch.half.square(&mut squared);
            // The highest windows of exponents that are all ones, and others.
            let index = |lane: usize| (31 + round * lane) % 32;
            for entry in 0..TABLE_LEN {
                for (lane, n) in lanes().enumerate() {
                    batch.factor.put(lane, &digits_of::<V, L>(&number(n, entry + lane)));
                }
                batch.put_entry(entry);
            }
            for lane in 0..V::COUNT {
                lanes_mut(&mut batch.windows)[lane] = index(lane) as u64;
            }
            batch.power.0.copy_from_slice(&*a.0);
            batch.window = 0;
            batch.do_window();
            for (lane, n) in lanes().enumerate() {
                // As they were put: not negative.
                let [x, y] = [&a, &b].map(|number| big::<V::Radix>(&number.get(lane)));
                let [x, y] = [x, y].map(|number| number.to_biguint().expect("not negative"));
                for result in [&product, &squared, &batch.power] {
                    let digits = result.get(lane);
                    let (from, to) = match V::SIGNED {
                        true => (-BigInt::from(n.clone()), BigInt::from(n.clone())),
                        false => (BigInt::ZERO, BigInt::from(n * 2_u8)),
                    };
                    assert!((from..to).contains(&big::<V::Radix>(&digits)), "almost reduced");
                    let is_digit = |digit: u64| match V::SIGNED {
                        // A half, and a carry.
                        true => digit.cast_signed().unsigned_abs() <= V::Radix::MAX / 2 + (1 << 10),
                        false => digit <= V::Radix::MAX,
                    };
                    assert!(digits.iter().all(|digit| is_digit(*digit)));
                }
                let inverse = inverse(n);
                let reduced = |number: &Number<V, L>| {
                    let digits = batch.half.reduced(number, lane);
                    assert!(digits.iter().all(|digit| *digit <= V::Radix::MAX));
                    big::<V::Radix>(&digits).to_biguint().expect("below the modulus")
                };
                assert_eq!(reduced(&product), &x * &y * &inverse % n);
                assert_eq!(reduced(&squared), &x * &x * &inverse % n);
                let entry = number(n, index(lane) + lane);
                let expected = x.pow(32) * entry * inverse.pow(32) % n;
                assert_eq!(reduced(&batch.power), expected, "{round} {lane}");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2, ..ProptestConfig::default() })]

        #[test]
        fn rings_are_those_of_the_reference(random in prop::collection::vec(any::<u8>(), 600)) {
            if lanes::kernels_run() {
                check::<portable::X4, 10, 20>(&random);
            }
            #[cfg(target_arch = "x86_64")]
            if has_doubles() {
                check::<D4, 11, 22>(&random);
                check::<D4, 21, 42>(&random);
                check::<D4, 31, 62>(&random);
                check::<D4, 42, 84>(&random);
            }
            if has_integers() {
                check::<X4, 10, 20>(&random);
                check::<X8, 10, 20>(&random);
                check::<X4, 20, 40>(&random);
                check::<X8, 20, 40>(&random);
                check::<X8, 30, 60>(&random);
                check::<X4, 40, 80>(&random);
                check::<X8, 40, 80>(&random);
            }
        }
    }

    /// Both orders of the primes: the difference of the halves has either sign.
    fn either_order<V: Montgomery, const L: usize, const M: usize>() {
        let key = key();
        let messages = last_numbers(&key, V::COUNT / 2);
        let crt = crt_numbers(&key);
        let field = |at: usize| &crt[at * 128..][..128];
        let (dq, dp, q, p) = (field(0), field(1), field(2), field(3));
        let [big_p, big_q] = [p, q].map(BigUint::from_bytes_be);
        let swapped = big_p.modinv(&big_q).expect("they are prime").to_bytes_be();
        let swapped = [vec![0; 128 - swapped.len()], swapped].concat();
        let swapped = [dp, dq, p, q, &swapped].concat();
        for crt in [crt, &swapped] {
            let ends = run::<V, L, M>(crt, &messages, |_| {});
            for ((end, result), number) in ends.into_iter().zip(&messages) {
                assert!(end == Ok(()) && key.public().maps(&result, number));
            }
        }
    }

    #[test]
    fn either_prime_may_be_the_larger() {
        if has_integers() {
            either_order::<X8, 20, 40>();
        }
        #[cfg(target_arch = "x86_64")]
        if has_doubles() {
            either_order::<D4, 21, 42>();
        }
    }

    /// One wrong bit in the power modulo one prime would give the key away (Boneh, DeMillo, Lipton,
    /// 1997): it is withheld, and the others are not touched by it.
    fn wrong_is_withheld<V: Montgomery, const L: usize, const M: usize>() {
        let key = key();
        let numbers = last_numbers(&key, V::COUNT / 2);
        let ends = run::<V, L, M>(crt_numbers(&key), &numbers, |batch| {
            assert!(!batch.step());
            // The prime q of the second.
            let mut digits = batch.power.get(3);
            digits[0] ^= 1;
            batch.power.put(3, &digits);
        });
        for (index, ((end, result), number)) in ends.into_iter().zip(numbers).enumerate() {
            if index == 1 {
                assert_eq!((end, result), (Err(Error::Sign), vec![0; 256]));
            } else {
                assert!(end == Ok(()) && key.public().maps(&result, &number), "{index}");
            }
        }
    }

    #[test]
    fn what_came_out_wrong_is_withheld() {
        if has_integers() {
            wrong_is_withheld::<X8, 20, 40>();
        }
        #[cfg(target_arch = "x86_64")]
        if has_doubles() {
            wrong_is_withheld::<D4, 21, 42>();
        }
    }
}
