//! ECDSA signatures of P-256 with SHA-256: eight at a time in lanes, where the processor has them
//! and three or more wait; else one at a time by `ring`.
//!
//! ```text
//!   field.rs   numbers modulo both primes      comb.rs    multiples of the base point
//!   nonce.rs   one nonce for each signature    key.rs     what signs
//! ```
//!
//! A signature is not verified whole, which would cost three of them: what is checked before it
//! leaves is that the nonce's point is on the curve, and that neither half is 0.

mod comb;
mod field;
mod key;
mod nonce;

use ring::digest::{SHA256, digest};
use ring::rand::SystemRandom;
use zeroize::{DefaultIsZeroes, Zeroize, Zeroizing};

use self::field::{Constant, Element, Field, Order, Prime, add, constant, inverse, multiply};
pub use self::key::EcdsaKey;
use self::nonce::{nonce, number};
use crate::error::Error;
use crate::rsa::Salts;
use crate::rsa::digits::{self, Radix52};
use crate::rsa::lanes::{self, Lanes, X4, X8, lanes_of};
use crate::wipe::burn_stack;

/// The longest signature: two numbers of 33 bytes and what DER puts around them.
pub(crate) const ECDSA_LEN_BYTES_MAX: usize = 72;

/// What one core needs to sign.
pub(crate) struct EcdsaSigner {
    random: SystemRandom,
    salts: Salts,
}

/// A signature in DER (`Ecdsa-Sig-Value` of RFC 3279, section 2.2.3).
pub(crate) struct Der {
    bytes: [u8; ECDSA_LEN_BYTES_MAX],
    len_bytes: usize,
}

impl EcdsaSigner {
    /// The most signatures that go together, and the fewest for which that pays.
    pub(crate) const TOGETHER: usize = 8;
    pub(crate) const TOGETHER_MIN: usize = 3;

    pub(crate) fn new() -> Self {
        Self { random: SystemRandom::new(), salts: Salts::new() }
    }

    /// Whether signatures gather for lanes on this processor.
    pub(crate) fn has_lanes() -> bool {
        lanes::are_here()
    }

    /// By ring.
    pub(crate) fn sign_alone(
        &self,
        key: &EcdsaKey,
        message: &[u8],
        target: &mut [u8],
    ) -> Result<usize, Error> {
        let signature = key.pair().sign(&self.random, message).map_err(|_| Error::Sign)?;
        let signature = signature.as_ref();
        let len_bytes = target.len();
        target
            .get_mut(..signature.len())
            .ok_or(Error::TargetTooSmall { len_bytes })?
            .copy_from_slice(signature);
        Ok(signature.len())
    }

    /// A signature of nothing, as those of many are made.
    fn try_out(&mut self, key: &EcdsaKey) -> Result<Der, Error> {
        if Self::has_lanes() {
            let hash = digest(&SHA256, &[]);
            let hash = hash.as_ref().try_into().expect("SHA-256 has 32 bytes");
            return self.sign(&[(key, hash)])?.pop().flatten().ok_or(Error::Sign);
        }
        let mut der = Der { bytes: [0; ECDSA_LEN_BYTES_MAX], len_bytes: 0 };
        der.len_bytes = self.sign_alone(key, &[], &mut der.bytes)?;
        Ok(der)
    }

    /// Signs hashes, eight at most, each with its key. One that did not come out right is none.
    pub(crate) fn sign(
        &mut self,
        signatures: &[(&EcdsaKey, [u8; 32])],
    ) -> Result<Vec<Option<Der>>, Error> {
        assert!(Self::has_lanes(), "who gathers has looked");
        let mut lanes = Zeroizing::new([Lane::default(); Self::TOGETHER]);
        for (lane, (key, hash)) in lanes.iter_mut().zip(signatures) {
            let random = self.salts.number(32)?;
            lane.nonce = *nonce(&key.secret, hash, &random);
            lane.secret = *key.digits;
            lane.hash = number(hash);
        }
        let lanes = &mut lanes[..signatures.len()];
        // SAFETY: looked for above.
        unsafe {
            if lanes.len() <= X4::COUNT {
                sign::<X4>(lanes);
            } else {
                sign::<X8>(lanes);
            }
        }
        // Nonces above all: one of them and its signature give the key away.
        burn_stack();
        Ok(lanes.iter().map(|lane| lane.good.then(|| Der::of(&lane.r, &lane.s))).collect())
    }
}

/// What goes into a signature and what comes out.
#[derive(Clone, Copy, Default)]
struct Lane {
    nonce: Constant,
    /// The key's secret times R.
    secret: Constant,
    hash: Constant,
    r: Constant,
    s: Constant,
    good: bool,
}

impl DefaultIsZeroes for Lane {}

/// Signs hashes with nonces and secrets times R, eight at a time: r and s of each. For benchmarks.
#[cfg(feature = "kernels")]
pub(crate) fn sign_bare(
    nonces: &[[u8; 32]; 8],
    secrets: &[[u8; 32]; 8],
    hashes: &[[u8; 32]; 8],
) -> [[Constant; 2]; 8] {
    assert!(lanes::are_here(), "the caller has looked");
    let mut lanes: [Lane; 8] = std::array::from_fn(|at| Lane {
        nonce: number(&nonces[at]),
        secret: number(&secrets[at]),
        hash: number(&hashes[at]),
        ..Lane::default()
    });
    // SAFETY: looked for above.
    unsafe { sign::<X8>(&mut lanes) };
    lanes.map(|lane| [lane.r, lane.s])
}

/// # Safety
///
/// [`lanes::are_here`].
#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx512f,avx512dq,avx512vl,avx512ifma"))]
unsafe fn sign<V: Lanes>(signatures: &mut [Lane]) {
    // SAFETY: passed on from the caller.
    unsafe {
        let (zero, one) = (constant::<V>(&[0; 5]), constant::<V>(&[1, 0, 0, 0, 0]));
        let nonces = Zeroizing::new(signatures.iter().map(|lane| lane.nonce).collect::<Vec<_>>());
        let [x, y] = comb::multiply_base::<V>(&nonces);
        let mut off_curve = comb::off_curve::<V>(x, y);
        let mut x = multiply::<Field, V>(x, one);
        for (at, lane) in signatures.iter_mut().enumerate() {
            // Public from here on: x of the point, modulo the order.
            lane.r = field::reduced::<Order>(field::reduced::<Field>(take(&mut x, at)));
            lane.good = field::reduced::<Field>(take(&mut off_curve, at)) == [0; 5];
        }
        let mut k = load(signatures, |lane| &lane.nonce, zero);
        let mut d = load(signatures, |lane| &lane.secret, zero);
        let r = load(signatures, |lane| &lane.r, zero);
        let z = load(signatures, |lane| &lane.hash, zero);
        let mut inverted = inverse::<Order, V>(multiply::<Order, V>(k, constant(&Order::R2)));
        // z is below 2 and r d below 2.
        let sum = add(z, multiply::<Order, V>(r, d));
        let mut s = multiply::<Order, V>(sum, inverted);
        for (at, lane) in signatures.iter_mut().enumerate() {
            lane.s = field::reduced::<Order>(take(&mut s, at));
            lane.good &= lane.r != [0; 5] && lane.s != [0; 5];
        }
        for vector in k.iter_mut().chain(&mut d).chain(&mut inverted) {
            lanes_of(vector).zeroize();
        }
    }
}

/// Puts a number of each signature into its lane. Not part of the kernel, as `comb::load`.
#[inline(never)]
fn load<V: Lanes>(
    lanes: &[Lane],
    number: impl Fn(&Lane) -> &Constant,
    mut element: Element<V>,
) -> Element<V> {
    for (at, lane) in lanes.iter().enumerate() {
        for (vector, digit) in element.iter_mut().zip(number(lane)) {
            lanes_of(vector)[at] = *digit;
        }
    }
    element
}

/// A lane's number.
#[inline(never)]
fn take<V: Lanes>(element: &mut Element<V>, lane: usize) -> Constant {
    let mut digits = [0; 5];
    for (digit, vector) in digits.iter_mut().zip(element) {
        *digit = lanes_of(vector)[lane];
    }
    digits
}

impl Der {
    fn of(r: &Constant, s: &Constant) -> Self {
        let mut der = Self { bytes: [0; ECDSA_LEN_BYTES_MAX], len_bytes: 2 };
        der.put(r);
        der.put(s);
        der.bytes[0] = 0x30;
        der.bytes[1] = u8::try_from(der.len_bytes - 2).expect("70 bytes at most");
        der
    }

    /// Appends an INTEGER.
    fn put(&mut self, number: &Constant) {
        let mut bytes = [0; 33];
        digits::write::<Radix52>(number, &mut bytes);
        // Not negative, so that one zero stays before a top bit that is set.
        let zeros = bytes.windows(2).take_while(|pair| pair[0] == 0 && pair[1] < 0x80).count();
        let bytes = &bytes[zeros..];
        let len_bytes = u8::try_from(bytes.len()).expect("33 bytes at most");
        let place = &mut self.bytes[self.len_bytes..];
        place[..2].copy_from_slice(&[0x02, len_bytes]);
        place[2..][..bytes.len()].copy_from_slice(bytes);
        self.len_bytes += 2 + bytes.len();
    }
}

impl AsRef<[u8]> for Der {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.len_bytes]
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ring::rand::SystemRandom;
    use ring::signature::{ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
    use rustls_pki_types::PrivatePkcs8KeyDer;

    use super::*;
    use crate::rsa::lanes::portable;

    fn key() -> Arc<EcdsaKey> {
        let der =
            EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &SystemRandom::new())
                .expect("random numbers");
        let der = PrivatePkcs8KeyDer::from(der.as_ref()).into();
        Arc::new(EcdsaKey::from_der(&der).expect("a good key"))
    }

    fn sha256(message: &[u8]) -> [u8; 32] {
        let hash = digest(&SHA256, message);
        hash.as_ref().try_into().expect("32 bytes")
    }

    fn verify(key: &EcdsaKey, message: &[u8], signature: &[u8]) {
        ring::signature::UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, key.public())
            .verify(message, signature)
            .expect("ring takes it");
    }

    #[test]
    fn every_fill_of_the_lanes_signs() {
        if !lanes::are_here() {
            warpcore_need::skipped("this processor has no AVX-512 IFMA");
            return;
        }
        let keys = [key(), key(), key()];
        let mut signer = EcdsaSigner::new();
        for round in 0..40_u32 {
            for count in 1..=8_u8 {
                let messages: Vec<_> =
                    (0..count).map(|at| [round.to_le_bytes().as_slice(), &[at]].concat()).collect();
                let signatures: Vec<_> = messages
                    .iter()
                    .enumerate()
                    .map(|(at, message)| (&*keys[at % 3], sha256(message)))
                    .collect();
                let made = signer.sign(&signatures).expect("random numbers");
                assert_eq!(made.len(), usize::from(count));
                for ((der, message), (key, _)) in made.iter().zip(&messages).zip(&signatures) {
                    verify(key, message, der.as_ref().expect("it came out right").as_ref());
                }
            }
        }
    }

    /// RFC 6979, appendix A.2.5, by what other processors would do too.
    #[test]
    fn the_signature_of_the_rfc() {
        let hex = |text: &str| -> [u8; 32] {
            std::array::from_fn(|at| {
                u8::from_str_radix(&text[2 * at..2 * at + 2], 16).expect("hex")
            })
        };
        let secret = hex("C9AFA9D845BA75166B5C215767B1D6934E50C3DB36E89B127B8A622B120F6721");
        let shifted = digits::shift::<Radix52>(&number(&secret), 260, &Order::DIGITS);
        let hash = sha256(b"sample");
        let lane = Lane {
            nonce: *nonce(&secret, &hash, &[]),
            secret: std::array::from_fn(|at| shifted[at]),
            hash: number(&hash),
            ..Lane::default()
        };
        let r = number(&hex("EFD48B2AACB6A8FD1140DD9CD45E81D69D2C877B56AAF991C34D0EA84EAF3716"));
        let s = number(&hex("F7CB1C942D657C41D436C7A1B6E29F65F3E900DBB9AFF4064DC4AB2F843ACDA8"));
        if !lanes::are_here() {
            warpcore_need::skipped("this processor has no AVX-512 IFMA");
            return;
        }
        // SAFETY: just looked; the portable ones need nothing but the table, which does.
        unsafe {
            for sign in [sign::<X4>, sign::<X8>, sign::<portable::X4>] {
                let mut lanes = [lane; 3];
                sign(&mut lanes);
                for lane in lanes {
                    assert!(lane.good);
                    assert_eq!((lane.r, lane.s), (r, s));
                }
            }
        }
    }

    /// Nonces at the ends: their points are known to be right by the curve's equation and by
    /// opposite nonces having one x.
    #[test]
    fn nonces_at_the_ends() {
        if !lanes::are_here() {
            warpcore_need::skipped("this processor has no AVX-512 IFMA");
            return;
        }
        let mut below = Order::DIGITS;
        let mut lanes = Vec::new();
        for nonce in 1..=4_u64 {
            below[0] -= 1;
            let lane = Lane { nonce: [nonce, 0, 0, 0, 0], ..Lane::default() };
            lanes.push(Lane { secret: [1, 0, 0, 0, 0], hash: [1, 0, 0, 0, 0], ..lane });
            lanes.push(Lane {
                secret: [1, 0, 0, 0, 0],
                hash: [1, 0, 0, 0, 0],
                nonce: below,
                ..lane
            });
        }
        // SAFETY: just looked.
        unsafe { sign::<X8>(&mut lanes) };
        let bits = |at: u32| [1_u64 << 47, (1 << 48) - 1, 31, 1 << 4].map(|digit| digit >> at);
        let mut patterns: Vec<_> = (0..2)
            .flat_map(|at| {
                let [a, b, c, d] = bits(at);
                [[a, 0, 0, 0, 0], [0, 0, 0, 0, a], [0, 0, 0, 0, b >> 1], [c, c, c, c, d | 1]]
            })
            .map(|nonce| Lane {
                nonce,
                secret: [1, 0, 0, 0, 0],
                hash: [3, 0, 0, 0, 0],
                ..Lane::default()
            })
            .collect();
        // SAFETY: as above.
        unsafe { sign::<X8>(&mut patterns) };
        assert!(lanes.iter().chain(&patterns).all(|lane| lane.good));
        for pair in lanes.chunks_exact(2) {
            assert_eq!(pair[0].r, pair[1].r, "k and n - k");
        }
        // x of the base point, of FIPS 186-4, appendix D.1.2.3.
        let x = "6B17D1F2E12C4247F8BCE6E563A440F277037D812DEB33A0F4A13945D898C296";
        let x: [u8; 32] =
            std::array::from_fn(|at| u8::from_str_radix(&x[2 * at..2 * at + 2], 16).expect("hex"));
        assert_eq!(lanes[0].r, number(&x));
    }

    #[test]
    fn der_is_as_short_as_it_can_be() {
        let one = [1, 0, 0, 0, 0];
        let small = Der::of(&one, &[0x80, 0, 0, 0, 0]);
        assert_eq!(small.as_ref(), [0x30, 7, 2, 1, 1, 2, 2, 0, 0x80]);
        let mut large = Order::DIGITS;
        large[0] -= 1;
        assert_eq!(Der::of(&large, &large).as_ref().len(), ECDSA_LEN_BYTES_MAX);
    }
}
