//! RSA signatures: how many, and how soon.
//!
//! Ours are complete, as a server gets them: through the queue, blinded, verified before they leave.
//! *sign* has eight waiting all the time; rivals sign one after the other on the same thread. *N
//! waiting* is the time until N signatures that were submitted together are all there.

use std::hint::black_box;
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use warpcore_offload::{PrivateKey, Queue, Scheme, Sign};

#[cfg(feature = "rivals")]
use rustls_pki_types::pem::PemObject;

use crate::harness::{Bench, OURS, System, Unit};
#[cfg(feature = "rivals")]
use crate::rivals;

const ROUNDS: usize = 12;

pub(crate) fn run(bench: &mut Bench) -> Result<(), String> {
    // Signatures in a sample: some milliseconds of the fastest.
    for (bits, count) in [(2048, 96), (3072, 32), (4096, 16)] {
        let pem = generate(bits)?;
        let key = PrivateKey::from_pem(&pem).map_err(|error| error.to_string())?;
        let signer = Signer { queue: Queue::new(8), key: Arc::new(key) };
        let mut systems = vec![System::new(OURS, || signer.waiting(8, count) / count as f64)];
        #[cfg(feature = "rivals")]
        {
            let mut notes = Vec::new();
            let der = rustls_pki_types::PrivatePkcs8KeyDer::from_pem_slice(&pem)
                .map_err(|error| error.to_string())?;
            systems.extend(rivals::sign(der.secret_pkcs8_der(), count, &mut notes));
            notes.into_iter().for_each(|note| bench.note(note));
        }
        bench.measure(&format!("rsa-{bits} sign"), Unit::Us, ROUNDS, systems);
        systems = Vec::new();
        for waiting in [1, 2, 4, 8] {
            let signer = &signer;
            systems.push(System::new(OURS, move || signer.waiting(waiting, waiting)));
            let case = format!("rsa-{bits} {waiting} waiting");
            bench.measure(&case, Unit::Us, ROUNDS, std::mem::take(&mut systems));
        }
    }
    if cfg!(not(feature = "rivals")) {
        bench.note("without rivals: build with `--features rivals` to measure them too");
    }
    Ok(())
}

/// A throw-away key, PKCS#8 in PEM.
fn generate(bits: usize) -> Result<Vec<u8>, String> {
    let option = format!("rsa_keygen_bits:{bits}");
    let arguments = ["genpkey", "-quiet", "-algorithm", "RSA", "-pkeyopt", &option];
    let output = Command::new("openssl").args(arguments).output();
    let output = output.map_err(|error| format!("openssl: {error}; `apt-get install openssl`"))?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    Ok(output.stdout)
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
