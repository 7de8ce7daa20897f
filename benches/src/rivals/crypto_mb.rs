//! Intel's crypto_mb, eight lanes of AVX-512 IFMA, loaded at run time: bare operations, without
//! blinding and verification.

use std::ffi::c_int;
use std::hint::black_box;
use std::ptr::{null, null_mut};
use std::time::Instant;

use libloading::Library;

use crate::harness::System;

const NAME: &str = "crypto_mb, bare";

/// Addresses of eight numbers.
type Eight<T> = [*const T; 8];

type RsaPrivate = unsafe extern "C" fn(
    *const *const u8,
    *const *mut u8,
    *const *const u64,
    *const *const u64,
    *const *const u64,
    *const *const u64,
    *const *const u64,
    c_int,
    *const u8,
    *mut u8,
) -> u32;

fn library() -> Result<&'static Library, String> {
    // SAFETY: a library of functions; its initialisers are Intel's own.
    let library = unsafe { Library::new("libcrypto_mb.so") };
    let library = library.map_err(|error| {
        format!("{error}; `pip install ipp-crypto intel-cmplr-lib-rt`, and its lib folder in LD_LIBRARY_PATH")
    })?;
    // For good: what is loaded from it is used until the end.
    Ok(Box::leak(Box::new(library)))
}

/// One call signs eight; a sample is of `calls` of them, for each signature or as a whole.
/// `numbers`: p, q, d mod p-1, d mod q-1, q^-1 mod p, little-endian.
pub(super) fn rsa(
    bits: usize,
    numbers: [Vec<u64>; 5],
    calls: usize,
    each: bool,
) -> Result<System<'static>, String> {
    let library = library()?;
    let private = function!(
        library,
        b"mbx_rsa_private_crt_mb8",
        fn(
            *const *const u8,
            *const *mut u8,
            *const *const u64,
            *const *const u64,
            *const *const u64,
            *const *const u64,
            *const *const u64,
            c_int,
            *const u8,
            *mut u8,
        ) -> u32
    );
    let private: RsaPrivate = private;
    let mut from = vec![0x5a_u8; bits / 8];
    from[0] = 0;
    let mut to = vec![vec![0_u8; bits / 8]; 8];
    Ok(System::new(NAME, move || {
        let from: Eight<u8> = [from.as_ptr(); 8];
        let mut targets = [null_mut(); 8];
        for (target, to) in targets.iter_mut().zip(&mut to) {
            *target = to.as_mut_ptr();
        }
        let [p, q, dp, dq, iq]: [Eight<u64>; 5] =
            std::array::from_fn(|at| [numbers[at].as_ptr(); 8]);
        let bits = c_int::try_from(bits).expect("4096 at most");
        let started = Instant::now();
        for _ in 0..calls {
            // SAFETY: as its header says: eight inputs and outputs as long as the modulus, five
            // numbers half as long; method and buffer are its own if null.
            let status = unsafe {
                private(
                    from.as_ptr(),
                    targets.as_ptr(),
                    p.as_ptr(),
                    q.as_ptr(),
                    dp.as_ptr(),
                    dq.as_ptr(),
                    iq.as_ptr(),
                    bits,
                    null(),
                    null_mut(),
                )
            };
            assert_eq!(status, 0, "a good key");
        }
        black_box(&to);
        let us = started.elapsed().as_secs_f64() * 1e6 / calls as f64;
        if each { us / 8.0 } else { us }
    }))
}

/// Eight fresh keys and shared secrets for a call, or rather what comes after drawing the keys.
pub(super) fn exchange(peer: [u8; 32], calls: usize) -> Result<System<'static>, String> {
    let library = library()?;
    let public = function!(
        library,
        b"mbx_x25519_public_key_mb8",
        fn(*const *mut u8, *const *const u8) -> u32
    );
    let shared = function!(
        library,
        b"mbx_x25519_mb8",
        fn(*const *mut u8, *const *const u8, *const *const u8) -> u32
    );
    let mut to = [[0_u8; 32]; 8];
    let secret = [0x55_u8; 32];
    Ok(System::new(NAME, move || {
        let targets = to.each_mut().map(|to| to.as_mut_ptr());
        let (secrets, peers) = ([secret.as_ptr(); 8], [peer.as_ptr(); 8]);
        let started = Instant::now();
        for _ in 0..calls {
            // SAFETY: as its header says: eight numbers of 32 bytes each.
            let status = unsafe {
                public(targets.as_ptr(), secrets.as_ptr())
                    | shared(targets.as_ptr(), secrets.as_ptr(), peers.as_ptr())
            };
            assert_eq!(status, 0, "a good key");
        }
        black_box(&to);
        started.elapsed().as_secs_f64() * 1e6 / (8 * calls) as f64
    }))
}

/// Eight signatures of P-256 for a call, without making the nonces.
pub(super) fn ecdsa(calls: usize) -> Result<System<'static>, String> {
    let library = library()?;
    let sign = function!(
        library,
        b"mbx_nistp256_ecdsa_sign_mb8",
        fn(
            *const *mut u8,
            *const *mut u8,
            *const *const u8,
            *const *const u64,
            *const *const u64,
            *mut u8,
        ) -> u32
    );
    let (mut r, mut s) = ([[0_u8; 32]; 8], [[0_u8; 32]; 8]);
    let (message, nonce, secret) = ([7_u8; 32], [11_u64, 12, 13, 14], [15_u64, 16, 17, 18]);
    Ok(System::new(NAME, move || {
        let (rs, ss) = (r.each_mut().map(|r| r.as_mut_ptr()), s.each_mut().map(|s| s.as_mut_ptr()));
        let messages = [message.as_ptr(); 8];
        let (nonces, secrets) = ([nonce.as_ptr(); 8], [secret.as_ptr(); 8]);
        let started = Instant::now();
        for _ in 0..calls {
            // SAFETY: as its header says: eight numbers of 32 bytes each; the buffer is its own if
            // null.
            let status = unsafe {
                sign(
                    rs.as_ptr(),
                    ss.as_ptr(),
                    messages.as_ptr(),
                    nonces.as_ptr(),
                    secrets.as_ptr(),
                    null_mut(),
                )
            };
            assert_eq!(status, 0, "a good key");
        }
        black_box((&r, &s));
        started.elapsed().as_secs_f64() * 1e6 / (8 * calls) as f64
    }))
}
