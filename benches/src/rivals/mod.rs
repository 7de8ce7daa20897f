//! Who else does it, as a user would use them.

/// Loads a function of the library.
macro_rules! function {
    ($library:expr, $name:literal, fn($($argument:ty),* $(,)?) -> $result:ty) => {{
        type Function = unsafe extern "C" fn($($argument),*) -> $result;
        let function: Result<libloading::Symbol<'_, Function>, _> =
            // SAFETY: the library's documentation of this name declares it so.
            unsafe { $library.get($name) };
        *function.map_err(|error| error.to_string())?
    }};
}

mod aws_lc;
pub(crate) mod codecs;
mod crossbeam;
mod crypto_mb;
mod openssl;
mod ring;
mod tokio;

use std::time::Instant;

use crate::harness::System;

/// Signs a message, and forgets the signature.
type Signer = Box<dyn FnMut(&[u8])>;

/// Who else makes RSA signatures (PKCS#1 v1.5, SHA-256) with a key in PKCS#8 DER; a sample is of
/// `count` of them. What is not on this machine is left out, with a note.
pub(crate) fn sign(der: &[u8], count: usize, notes: &mut Vec<String>) -> Vec<System<'static>> {
    let mut systems = Vec::new();
    let mut add = |name: &str, signer: Result<Signer, String>| match signer {
        Ok(mut sign) => systems.push(System::new(name, move || per_signature(count, &mut sign))),
        Err(why) => notes.push(format!("without {name}: {why}")),
    };
    add("openssl", openssl::signer(der));
    add("aws-lc-rs", aws_lc::signer(der));
    add("ring", ring::signer(der));
    systems
}

fn per_signature(count: usize, sign: &mut dyn FnMut(&[u8])) -> f64 {
    let started = Instant::now();
    for n in 0..count {
        sign(&n.to_le_bytes());
    }
    started.elapsed().as_secs_f64() * 1e6 / count as f64
}

/// Intel's crypto_mb with the same key: bare, in calls of eight; for each signature, or `whole` calls.
pub(crate) fn rsa_bare(
    key: &[u8],
    count: usize,
    whole: bool,
    notes: &mut Vec<String>,
) -> Option<System<'static>> {
    let numbers = pkcs8::PrivateKeyInfoRef::try_from(key).ok()?;
    let numbers = pkcs1::RsaPrivateKeyRef::try_from(numbers.private_key.as_bytes()).ok()?;
    let bits = numbers.modulus.as_bytes().len() * 8;
    let words = |number: pkcs1::UintRef<'_>| {
        let mut bytes: Vec<u8> = number.as_bytes().iter().rev().copied().collect();
        bytes.resize(bits / 16, 0);
        let word = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
        bytes.chunks_exact(8).map(word).collect()
    };
    let numbers =
        [numbers.prime1, numbers.prime2, numbers.exponent1, numbers.exponent2, numbers.coefficient]
            .map(words);
    noted("crypto_mb", crypto_mb::rsa(bits, numbers, count.div_ceil(8), !whole), notes)
}

/// Whoever is not on this machine is left out, with a note.
fn noted(
    name: &str,
    system: Result<System<'static>, String>,
    notes: &mut Vec<String>,
) -> Option<System<'static>> {
    system.map_err(|why| notes.push(format!("without {name}: {why}"))).ok()
}

/// Who else signs with P-256 and SHA-256, with a key in PKCS#8 DER; a sample is of `count`.
pub(crate) fn sign_ecdsa(
    der: &[u8],
    count: usize,
    notes: &mut Vec<String>,
) -> Vec<System<'static>> {
    let mut add = |name: &str, signer: Result<Signer, String>| {
        let system =
            signer.map(|mut sign| System::new(name, move || per_signature(count, &mut sign)));
        noted(name, system, notes)
    };
    let systems = [
        add("openssl", openssl::signer(der)),
        add("aws-lc-rs", aws_lc::ecdsa_signer(der)),
        add("ring", ring::ecdsa_signer(der)),
        noted("crypto_mb", crypto_mb::ecdsa(count.div_ceil(8)), notes),
    ];
    systems.into_iter().flatten().collect()
}

/// Who else exchanges keys by X25519 with `peer`; a sample is of `count` exchanges.
pub(crate) fn exchange(
    peer: [u8; 32],
    count: usize,
    notes: &mut Vec<String>,
) -> Vec<System<'static>> {
    let system = |name: &str, exchange: fn(&[u8; 32])| {
        System::new(name, move || {
            let started = Instant::now();
            (0..count).for_each(|_| exchange(&peer));
            started.elapsed().as_secs_f64() * 1e6 / count as f64
        })
    };
    let mut systems = vec![system("aws-lc-rs", aws_lc::exchange), system("ring", ring::exchange)];
    systems.extend(noted("crypto_mb", crypto_mb::exchange(peer, count.div_ceil(8)), notes));
    systems
}

/// Ways to hand nothing at all to another thread and wait for it, `depth` at a time.
pub(crate) fn hand_over(depth: usize) -> Result<Vec<System<'static>>, String> {
    let mut parking = crossbeam::Worker::start(crossbeam::Wait::Parking)?;
    let mut spinning = crossbeam::Worker::start(crossbeam::Wait::Spinning)?;
    let blocking = tokio::Blocking::new()?;
    Ok(vec![
        System::new("crossbeam + oneshot", move || parking.sample(depth)),
        System::new("crossbeam + oneshot, spin", move || spinning.sample(depth)),
        System::new("tokio spawn_blocking", move || blocking.sample(depth)),
    ])
}
