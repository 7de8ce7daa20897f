//! RSA signatures: how many, and how soon.
//!
//! Ours are complete, as a server gets them: through the queue, blinded, verified before they leave.
//! *sign* has eight waiting all the time; rivals sign one after the other on the same thread. *N
//! waiting* is the time until N signatures that were submitted together are all there. *bare* is the
//! exponentiation alone, which is all that crypto_mb does.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use warpcore_offload::{PrivateKey, Queue, Scheme, Sign, kernels};

use crate::harness::{Bench, OURS, System, Unit};
use crate::keys::generate;
#[cfg(feature = "rivals")]
use crate::rivals;

const ROUNDS: usize = 12;

pub(crate) fn run(bench: &mut Bench) -> Result<(), String> {
    let multiply_add_ns = kernels::multiply_add_ns();
    // Signatures in a sample: some milliseconds of the fastest.
    for (bits, count) in [(2048, 96), (3072, 32), (4096, 16)] {
        let der = generate("RSA", &format!("rsa_keygen_bits:{bits}"))?;
        let key =
            PrivateKey::from_der(&der.clone_key().into()).map_err(|error| error.to_string())?;
        let signer = Signer { queue: Queue::new(8), key: Arc::new(key) };
        #[allow(unused_mut, reason = "with rivals it is")]
        let mut systems = vec![System::new(OURS, || signer.waiting(8, count) / count as f64)];
        #[cfg(feature = "rivals")]
        let mut notes = Vec::new();
        #[cfg(feature = "rivals")]
        systems.extend(rivals::sign(der.secret_pkcs8_der(), count, &mut notes));
        // For each of a count, or a call of eight as a whole.
        #[cfg(feature = "rivals")]
        let mut bare = |each: bool| {
            let count = if each { count } else { 8 };
            rivals::rsa_bare(der.secret_pkcs8_der(), count, !each, &mut notes)
        };
        #[cfg(not(feature = "rivals"))]
        let bare = |_each: bool| None::<System<'static>>;
        let case = format!("rsa-{bits} sign");
        bench.measure(&case, Unit::Us, ROUNDS, systems);
        if let Some(ns) = multiply_add_ns {
            bench.limit(&case, multiply_adds(bits) * ns / 1e3);
        }
        if let Some(mut power) = kernels::RsaPower::new(&signer.key) {
            let ours = System::new(OURS, move || {
                let started = Instant::now();
                (0..count / power.together()).for_each(|_| power.run());
                started.elapsed().as_secs_f64() * 1e6 / count as f64
            });
            let case = format!("rsa-{bits} bare");
            bench.measure(&case, Unit::Us, ROUNDS, [ours].into_iter().chain(bare(true)).collect());
        }
        for waiting in [1, 2, 4, 8] {
            let signer = &signer;
            let case = format!("rsa-{bits} {waiting} waiting");
            let ours = System::new(OURS, move || signer.waiting(waiting, waiting));
            // Its calls are of eight, however few there are.
            let rival = bare(false).filter(|_| waiting >= 4);
            bench.measure(&case, Unit::Us, ROUNDS, [ours].into_iter().chain(rival).collect());
            bench.point(&format!("rsa-{bits}"), &case, waiting);
        }
        #[cfg(feature = "rivals")]
        notes.into_iter().for_each(|note| bench.note(note));
    }
    if cfg!(not(feature = "rivals")) {
        bench.note("without rivals: build with `--features rivals` to measure them too");
    }
    Ok(())
}

/// Multiply-adds of a signature, in vectors of eight lanes, of which four signatures share each:
/// with windows of five bits, half a signature's squares and products of L digits, and its table.
/// What blinds and verifies comes on top, and is not counted: it is not what limits.
fn multiply_adds(bits: usize) -> f64 {
    let digits = bits / 1024 * 20 / 2;
    let windows = (bits / 2).div_ceil(5);
    let reduction = 2 * digits * digits + digits;
    let square = digits * (digits + 1) + reduction;
    let product = 2 * digits * digits + reduction;
    ((5 * windows + 15) * square + (windows + 15) * product) as f64 / 4.0
}

struct Signer {
    queue: Queue,
    key: Arc<PrivateKey>,
}

impl Signer {
    /// The time for `count` signatures, `waiting` at a time, in microseconds.
    fn waiting(&self, waiting: usize, count: usize) -> f64 {
        let sign = |n: usize| {
            let message = n.to_le_bytes().to_vec();
            self.queue.submit(Sign::new(Arc::clone(&self.key), Scheme::Pkcs1Sha256, message))
        };
        let started = Instant::now();
        for _ in 0..count / waiting {
            let ops: Vec<_> = (0..waiting).map(sign).collect();
            self.queue.run(async {
                for op in ops {
                    black_box(op.await.result).expect("a good key signs");
                }
            });
        }
        started.elapsed().as_secs_f64() * 1e6
    }
}
