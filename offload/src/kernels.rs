//! The kernels by themselves, for benchmarks: no part of the interface, and no use in a server.
//!
//! What is missing here is what makes a signature safe to give away: nothing is verified.

use std::fmt;
use std::sync::Arc;

use crate::ecdsa::{EcdsaKey, EcdsaSigner};
use crate::kx::Exchanger;
use crate::rsa::lanes::{self, Lanes, X8};
use crate::rsa::{Batch, Blinding, Input, PrivateKey, Salts, Signer, batch};

/// Exponentiations with an RSA key, as many as go together: two primes each.
pub struct RsaPower {
    key: Arc<PrivateKey>,
    number: Vec<u8>,
    blinding: Blinding,
    batch: Box<dyn Batch>,
}

impl RsaPower {
    /// None where there are no lanes, or the key has none.
    pub fn new(key: &Arc<PrivateKey>) -> Option<Self> {
        let lane_key = key.lanes()?;
        let wide = Signer::together()? == Signer::TOGETHER_MAX;
        let mut batch = batch(key.modulus_len_bytes(), wide)?;
        let blinding = batch.draw_blinding(lane_key, &mut Salts::new()).ok()?;
        let mut number = vec![0x5a; key.modulus_len_bytes()];
        number[0] = 0;
        Some(Self { key: Arc::clone(key), number, blinding, batch })
    }

    /// How many go together.
    pub fn together(&self) -> usize {
        self.batch.room()
    }

    /// From here on with this key, of the same size, and this number. What blinds them stays the
    /// first key's: results mean nothing then.
    pub fn put(&mut self, key: &Arc<PrivateKey>, number: &[u8]) {
        self.key = Arc::clone(key);
        self.number.copy_from_slice(number);
    }

    /// Once.
    pub fn run(&mut self) {
        let lane_key = self.key.lanes().expect("looked at when it was made");
        if !self.blinding.is_good_for(4, lane_key) {
            let drawn = self.batch.draw_blinding(lane_key, &mut Salts::new());
            self.blinding = drawn.expect("the kernel gives random numbers");
        }
        let input = || Input { key: Arc::clone(&self.key), number: &self.number };
        let inputs: Vec<_> = std::iter::repeat_with(input).take(self.together()).collect();
        self.batch.start(&inputs, std::slice::from_mut(&mut self.blinding), &[0; 4]);
        while !self.batch.step() {}
    }
}

/// Four key exchanges in eight lanes.
pub struct Exchanges(Exchanger);

impl Exchanges {
    /// None where there are no lanes.
    pub fn new() -> Option<Self> {
        Exchanger::has_lanes().then(|| Self(Exchanger::new()))
    }

    /// Once.
    pub fn run(&mut self, peers: &[[u8; 32]; 4]) {
        drop(std::hint::black_box(self.0.exchange(peers)));
    }
}

/// Eight signatures of P-256 in eight lanes.
pub struct EcdsaSignatures(EcdsaSigner);

impl EcdsaSignatures {
    /// None where there are no lanes.
    pub fn new() -> Option<Self> {
        EcdsaSigner::has_lanes().then(|| Self(EcdsaSigner::new()))
    }

    /// Once.
    pub fn run(&mut self, key: &EcdsaKey, hashes: &[[u8; 32]; 8]) {
        let signatures = hashes.map(|hash| (key, hash));
        drop(std::hint::black_box(self.0.sign(&signatures)));
    }
}

/// Eight points times eight scalars (RFC 7748), in lanes.
///
/// # Panics
///
/// Where there are no lanes.
pub fn x25519(scalars: &[[u8; 32]; 8], points: &[[u8; 32]; 8]) -> [[u8; 32]; 8] {
    assert!(lanes::are_here(), "this processor has no lanes");
    let mut products = [[0; 32]; 8];
    crate::kx::multiply(scalars, points, &mut products);
    products
}

/// Eight signatures of P-256 by nonces, secrets and hashes, in lanes; r and s of each.
///
/// # Panics
///
/// Where there are no lanes.
pub fn p256(
    nonces: &[[u8; 32]; 8],
    secrets: &[[u8; 32]; 8],
    hashes: &[[u8; 32]; 8],
) -> [[[u64; 5]; 2]; 8] {
    assert!(lanes::are_here(), "this processor has no lanes");
    crate::ecdsa::sign_bare(nonces, secrets, hashes)
}

/// What a vector of eight multiply-adds of 52 bits takes when nothing is in its way, in
/// nanoseconds: the limit of all the kernels. None where there are no lanes.
pub fn multiply_add_ns() -> Option<f64> {
    const COUNT: u32 = 1 << 16;
    /// Chains that do not depend on each other: more than the instruction takes cycles.
    const CHAINS: u32 = 16;

    #[cfg_attr(
        target_arch = "x86_64",
        target_feature(enable = "avx512f,avx512dq,avx512vl,avx512ifma")
    )]
    unsafe fn chains() -> [X8; CHAINS as usize] {
        // SAFETY: the caller has looked for the lanes.
        unsafe {
            let factor = std::hint::black_box(X8::splat(0x3_1415_9265_3589));
            let mut sums = [factor; CHAINS as usize];
            for _ in 0..COUNT {
                for sum in &mut sums {
                    *sum = sum.mul_lo(factor, factor);
                }
            }
            sums
        }
    }

    if !lanes::are_here() {
        return None;
    }
    let sample = || {
        let started = std::time::Instant::now();
        // SAFETY: just looked.
        std::hint::black_box(unsafe { chains() });
        started.elapsed().as_secs_f64() * 1e9 / f64::from(COUNT * CHAINS)
    };
    Some((0..9).map(|_| sample()).fold(f64::INFINITY, f64::min))
}

impl fmt::Debug for RsaPower {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RsaPower")
    }
}

impl fmt::Debug for Exchanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Exchanges")
    }
}

impl fmt::Debug for EcdsaSignatures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EcdsaSignatures")
    }
}
