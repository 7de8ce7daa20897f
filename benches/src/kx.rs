//! What else a handshake computes: a fresh X25519 key and what it shares with a peer's, and signatures
//! of P-256, complete: with their nonces, checked.
//!
//! *x25519* and *p256 sign* have many waiting all the time; rivals make one after the other on the
//! same thread, but for crypto_mb, whose calls are of eight, bare. *N
//! waiting* is the time until N that were submitted together are all there.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use warpcore_offload::{EcdsaKey, EcdsaSign, KeyExchange, Queue, kernels};

use crate::harness::{Bench, OURS, System, Unit};
use crate::keys::generate;
#[cfg(feature = "rivals")]
use crate::rivals;

const ROUNDS: usize = 30;
/// Exchanges in a sample.
const COUNT: usize = 256;
/// Of RFC 7748, section 6.1.
const PEER: [u8; 32] = [
    0xde, 0x9e, 0xdb, 0x7d, 0x7b, 0x7d, 0xc1, 0xb4, 0xd3, 0x5b, 0x61, 0xc2, 0xec, 0xe4, 0x35, 0x37,
    0x3f, 0x83, 0x43, 0xc8, 0x5b, 0x78, 0x67, 0x4d, 0xad, 0xfc, 0x7e, 0x14, 0x6f, 0x88, 0x2b, 0x4f,
];

pub(crate) fn run(bench: &mut Bench) -> Result<(), String> {
    let queue = Queue::new(8);
    #[allow(unused_mut, reason = "with rivals it is")]
    let mut systems = vec![System::new(OURS, || waiting(&queue, 8, COUNT) / COUNT as f64)];
    #[cfg(feature = "rivals")]
    {
        let mut notes = Vec::new();
        systems.extend(rivals::exchange(PEER, COUNT, &mut notes));
        notes.into_iter().for_each(|note| bench.note(note));
    }
    bench.measure("x25519", Unit::Us, ROUNDS, systems);
    let multiply_add_ns = kernels::multiply_add_ns();
    if let Some(ns) = multiply_add_ns {
        bench.limit("x25519", EXCHANGE_MULTIPLY_ADDS * ns / 1e3);
    }
    for count in [1, 2, 4, 8] {
        let queue = &queue;
        let system = System::new(OURS, move || waiting(queue, count, count));
        let case = format!("x25519 {count} waiting");
        bench.measure(&case, Unit::Us, ROUNDS, vec![system]);
        bench.point("x25519", &case, count);
    }
    let der = generate("EC", "ec_paramgen_curve:P-256")?;
    let key =
        Arc::new(EcdsaKey::from_der(&der.clone_key().into()).map_err(|error| error.to_string())?);
    let queue = Queue::new(16);
    #[allow(unused_mut, reason = "with rivals it is")]
    let mut systems = vec![System::new(OURS, || sign(&queue, &key, 16, COUNT) / COUNT as f64)];
    #[cfg(feature = "rivals")]
    {
        let mut notes = Vec::new();
        systems.extend(rivals::sign_ecdsa(der.secret_pkcs8_der(), COUNT, &mut notes));
        notes.into_iter().for_each(|note| bench.note(note));
    }
    bench.measure("p256 sign", Unit::Us, ROUNDS, systems);
    if let Some(ns) = multiply_add_ns {
        bench.limit("p256 sign", ECDSA_MULTIPLY_ADDS * ns / 1e3);
    }
    for count in [1, 2, 4, 8] {
        let (queue, key) = (&queue, &key);
        let case = format!("p256 {count} waiting");
        let system = System::new(OURS, move || sign(queue, key, count, count));
        bench.measure(&case, Unit::Us, ROUNDS, vec![system]);
        bench.point("p256", &case, count);
    }
    if cfg!(not(feature = "rivals")) {
        bench.note("without rivals: build with `--features rivals` to measure them too");
    }
    Ok(())
}

/// Multiply-adds of an exchange, in vectors of eight lanes, of which four exchanges share each: 255
/// steps of the ladder, each of five products, four squares and one small factor, and an inversion.
const EXCHANGE_MULTIPLY_ADDS: f64 =
    (255.0 * (5.0 * 50.0 + 4.0 * 30.0 + 11.0) + 254.0 * 30.0 + 11.0 * 50.0) / 4.0;

/// Of a signature of P-256, of which eight share each vector: 52 additions of points, and an
/// inversion modulo each prime. A product takes 50, a square 30, a reduction 30 in the field and 55
/// modulo the order.
const ECDSA_MULTIPLY_ADDS: f64 = (52.0 * (8.0 * 80.0 + 3.0 * 60.0 + 9.0)
    + (256.0 * 60.0 + 33.0 * 80.0)
    + (256.0 * 85.0 + 56.0 * 105.0))
    / 8.0;

/// The time for `count` signatures, `waiting` at a time, in microseconds.
fn sign(queue: &Queue, key: &Arc<EcdsaKey>, waiting: usize, count: usize) -> f64 {
    let started = Instant::now();
    for _ in 0..count / waiting {
        let sign = |n: usize| EcdsaSign::new(Arc::clone(key), n.to_le_bytes().to_vec());
        let ops: Vec<_> = (0..waiting).map(|n| queue.submit(sign(n))).collect();
        queue.run(async {
            for op in ops {
                black_box(op.await.result).expect("a good key signs");
            }
        });
    }
    started.elapsed().as_secs_f64() * 1e6
}

/// The time for `count` exchanges, `waiting` at a time, in microseconds.
fn waiting(queue: &Queue, waiting: usize, count: usize) -> f64 {
    let started = Instant::now();
    for _ in 0..count / waiting {
        let ops: Vec<_> = (0..waiting).map(|_| queue.submit(KeyExchange::new(PEER))).collect();
        queue.run(async {
            for op in ops {
                black_box(op.await).expect("a good key");
            }
        });
    }
    started.elapsed().as_secs_f64() * 1e6
}
