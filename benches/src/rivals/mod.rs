//! Who else does it, as a user would use them.

mod aws_lc;
mod crossbeam;
mod openssl;
mod ring;
mod tokio;

use std::time::Instant;

use crate::harness::System;

/// Who else makes RSA signatures (PKCS#1 v1.5, SHA-256) with a key in PKCS#8 DER; a sample is of
/// `count` of them. What is not on this machine is left out, with a note.
pub(crate) fn sign(der: &[u8], count: usize, notes: &mut Vec<String>) -> Vec<System<'static>> {
    let mut systems = Vec::new();
    let mut add = |name: &str, signer: Result<Box<dyn FnMut(&[u8])>, String>| match signer {
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

/// Who else exchanges keys by X25519 with `peer`; a sample is of `count` exchanges.
pub(crate) fn exchange(peer: [u8; 32], count: usize) -> Vec<System<'static>> {
    let system = |name: &str, exchange: fn(&[u8; 32])| {
        System::new(name, move || {
            let started = Instant::now();
            (0..count).for_each(|_| exchange(&peer));
            started.elapsed().as_secs_f64() * 1e6 / count as f64
        })
    };
    vec![system("aws-lc-rs", aws_lc::exchange), system("ring", ring::exchange)]
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
