//! Key exchanges: a fresh X25519 key, and what it shares with a peer's, as a TLS server needs them.
//!
//! *x25519* has eight waiting all the time; rivals make one after the other on the same thread. *N
//! waiting* is the time until N that were submitted together are all there.

use std::hint::black_box;
use std::time::Instant;

use warpcore_offload::{KeyExchange, Queue};

use crate::harness::{Bench, OURS, System, Unit};
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
    systems.extend(rivals::exchange(PEER, COUNT));
    bench.measure("x25519", Unit::Us, ROUNDS, systems);
    for count in [1, 2, 4, 8] {
        let queue = &queue;
        let system = System::new(OURS, move || waiting(queue, count, count));
        bench.measure(&format!("x25519 {count} waiting"), Unit::Us, ROUNDS, vec![system]);
    }
    if cfg!(not(feature = "rivals")) {
        bench.note("without rivals: build with `--features rivals` to measure them too");
    }
    Ok(())
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
